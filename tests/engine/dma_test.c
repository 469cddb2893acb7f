/* SPDX-License-Identifier: MIT */
/*
 * DMA and typed access of an embedder's thread: what is copied, how far it comes, what a device
 * sees of it, and what is refused. Inside callbacks: dma_posted_test.c.
 */
#include "fixture.h"

#include <sched.h>
#include <string.h>

#include "../../engine/dma.h"
#include "../../memory/dirty.h"

enum { LOG_MAX = 512 };

static struct machine machine;
static const struct bb_attrs nobody;

static void setup(void)
{
    machine_make(&machine, NULL);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(dma, .init = setup, .fini = teardown, .timeout = 60);

/* A device that is a few bytes of memory, and remembers how it was accessed. */
static struct bank {
    struct probe probe;
    uint8_t bytes[DEVICE_BYTES];
    struct {
        uint64_t offset;
        unsigned size;
        bool write;
    } log[LOG_MAX];
    unsigned count;
    struct bb_attrs attrs; /* of the last access */
    uint64_t refuses;      /* accesses of this offset; UINT64_MAX: none */
} bank;

static void bank_note(struct bb_ctx *ctx, uint64_t offset, unsigned size, bool write)
{
    if (bank.count < LOG_MAX) {
        bank.log[bank.count].offset = offset;
        bank.log[bank.count].size = size;
        bank.log[bank.count].write = write;
    }
    bank.count++;
    bank.attrs = bb_access_attrs(ctx);
}

static int bank_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    (void)probe;
    bank_note(ctx, offset, size, false);
    memcpy(value, &bank.bytes[offset], size);
    return offset == bank.refuses ? BB_E_DEVICE : BB_OK;
}

static int bank_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)probe;
    bank_note(ctx, offset, size, true);
    if (offset == bank.refuses) {
        return BB_E_DEVICE;
    }
    memcpy(&bank.bytes[offset], &value, size);
    return BB_OK;
}

/* Right behind RAM. */
static void bank_make(const struct bb_region_config *config)
{
    memset(&bank, 0, sizeof(bank));
    bank.refuses = UINT64_MAX;
    bank.probe.read = bank_read;
    bank.probe.write = bank_write;
    probe_make_config(&machine, &bank.probe, "bank", 0, config);
    cr_assert_eq(bb_region_move(machine.ctx, bank.probe.region, RAM_BYTES, NULL), BB_OK);
}

static const struct bb_region_config plain;

static void pattern(uint8_t *bytes, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++) {
        bytes[i] = (uint8_t)(i * 7 + seed + (i >> 8) * 13);
    }
}

static int read_at(bb_gpa_t gpa, void *bytes, size_t length, size_t *done)
{
    return bb_dma_read(machine.ctx, machine.mmio, gpa, bytes, length, nobody, done);
}

static int write_at(bb_gpa_t gpa, const void *bytes, size_t length, size_t *done)
{
    return bb_dma_write(machine.ctx, machine.mmio, gpa, bytes, length, nobody, done);
}

Test(dma, every_alignment_and_length_is_copied_exactly_and_nothing_beside_it)
{
    uint8_t from[128], into[128], expected[128];

    pattern(from, sizeof(from), 1);
    for (unsigned at = 0; at < 16; at++) {
        for (unsigned skew = 0; skew < 8; skew++) {
            for (unsigned length = 0; length < 48; length++) {
                size_t done = SIZE_MAX;

                memset(machine.ram_host, 0xee, 128);
                memset(expected, 0xee, 128);
                memcpy(expected + 32 + at, from + skew, length);
                cr_assert_eq(write_at(32 + at, from + skew, length, &done), BB_OK);
                cr_assert_eq(done, length);
                cr_assert_eq(memcmp(machine.ram_host, expected, 128), 0, "write %u+%u at %u",
                             length, skew, at);

                memset(into, 0xdd, sizeof(into));
                memset(expected, 0xdd, sizeof(expected));
                memcpy(expected + 16 + skew, from + skew, length);
                cr_assert_eq(read_at(32 + at, into + 16 + skew, length, &done), BB_OK);
                cr_assert_eq(done, length);
                cr_assert_eq(memcmp(into, expected, sizeof(into)), 0, "read %u+%u at %u", length,
                             skew, at);

                memset(expected, 0xee, 128);
                memset(expected + 32 + at, 0x5a, length);
                memset(machine.ram_host, 0xee, 128);
                cr_assert_eq(
                    bb_dma_fill(machine.ctx, machine.mmio, 32 + at, 0x5a, length, nobody, &done),
                    BB_OK);
                cr_assert_eq(done, length);
                cr_assert_eq(memcmp(machine.ram_host, expected, 128), 0, "fill %u at %u", length,
                             at);
            }
        }
    }
}

Test(dma, a_copy_longer_than_a_section_is_whole)
{
    enum { BIG = 1 << 20, AT = 0x1000003 };
    struct bb_ram_config config = {.name = "big", .size_bytes = BIG + 0x1000};
    uint8_t *from = malloc(BIG), *into = malloc(BIG);
    struct bb_region *big;
    size_t done = 0;

    cr_assert_eq(bb_ram_create(machine.ctx, &config, &big, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, AT & ~0xfff, big, NULL), BB_OK);
    pattern(from, BIG, 3);
    cr_assert_eq(write_at(AT, from, BIG, &done), BB_OK);
    cr_assert_eq(done, BIG);
    cr_assert_eq(memcmp((uint8_t *)bb_region_host(big) + 3, from, BIG), 0);
    cr_assert_eq(read_at(AT, into, BIG, &done), BB_OK);
    cr_assert_eq(memcmp(into, from, BIG), 0);
    free(from);
    free(into);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, big, NULL), BB_OK);
}

Test(dma, what_is_no_ram_is_accessed_in_rising_order_by_aligned_pieces)
{
    static const struct {
        uint64_t offset;
        unsigned size;
    } expected[] = {{0, 8}, {8, 8}, {16, 2}, {18, 1}};
    uint8_t from[24], into[24];
    size_t done = 0;

    bank_make(&plain);
    pattern(from, sizeof(from), 9);
    cr_assert_eq(write_at(RAM_BYTES - 5, from, sizeof(from), &done), BB_OK);
    cr_assert_eq(done, sizeof(from));
    cr_assert_eq(memcmp(machine.ram_host + RAM_BYTES - 5, from, 5), 0);
    cr_assert_eq(memcmp(bank.bytes, from + 5, 19), 0);
    cr_assert_eq(bank.count, BB_ARRAY_LEN(expected));
    for (unsigned i = 0; i < bank.count; i++) {
        cr_assert_eq(bank.log[i].offset, expected[i].offset);
        cr_assert_eq(bank.log[i].size, expected[i].size);
    }
    bank.count = 0;
    cr_assert_eq(read_at(RAM_BYTES - 5, into, sizeof(into), &done), BB_OK);
    cr_assert_eq(memcmp(into, from, sizeof(into)), 0);
    cr_assert_eq(bank.count, BB_ARRAY_LEN(expected), "each byte is read once");
    bank.count = 0;
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, RAM_BYTES + 3, 0xa5, 10, nobody, &done),
                 BB_OK);
    cr_assert_eq(bank.bytes[2], from[7]);
    cr_assert_eq(bank.bytes[3], 0xa5);
    cr_assert_eq(bank.bytes[12], 0xa5);
    cr_assert_eq(bank.bytes[13], from[18]);
    cr_assert_eq(bank.count, 4, "1 at 3, 4 at 4, 4 at 8, 1 at 12");
    probe_drop(&bank.probe);
}

Test(dma, a_device_of_four_byte_registers_is_copied_in_these)
{
    struct bb_region_config config = {.rules = {.valid_min = 4, .valid_max = 4}};
    uint8_t from[16], into[16];

    bank_make(&config);
    pattern(from, sizeof(from), 5);
    cr_assert_eq(write_at(RAM_BYTES, from, sizeof(from), NULL), BB_OK);
    cr_assert_eq(read_at(RAM_BYTES, into, sizeof(into), NULL), BB_OK);
    cr_assert_eq(memcmp(into, from, sizeof(into)), 0);
    cr_assert_eq(bank.count, 8);
    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(bank.log[i].size, 4);
    }
    probe_drop(&bank.probe);
}

Test(dma, a_copy_ends_at_the_first_part_that_fails_and_says_how_far_it_came)
{
    uint8_t from[DEVICE_BYTES + 64], into[DEVICE_BYTES + 64];
    size_t done = 0;

    bank_make(&plain);
    pattern(from, sizeof(from), 2);
    memset(into, 0x77, sizeof(into));

    /* RAM, all of the device, then a hole. */
    cr_assert_eq(write_at(RAM_BYTES - 8, from, DEVICE_BYTES + 9, &done), BB_E_DECODE);
    cr_assert_eq(done, DEVICE_BYTES + 8);
    cr_assert_eq(read_at(RAM_BYTES - 8, into, DEVICE_BYTES + 20, &done), BB_E_DECODE);
    cr_assert_eq(done, DEVICE_BYTES + 8);
    cr_assert_eq(memcmp(into, from, done), 0);
    for (size_t i = done; i < sizeof(into); i++) {
        cr_assert_eq(into[i], 0x77, "what could not be read was touched");
    }
    struct bb_engine_stats stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(stats.unassigned_writes, 1);
    cr_assert_eq(stats.unassigned_reads, 1);

    /* A device that refuses one register. */
    bank.refuses = 16;
    memset(into, 0x77, sizeof(into));
    cr_assert_eq(read_at(RAM_BYTES, into, 64, &done), BB_E_DEVICE);
    cr_assert_eq(done, 16);
    cr_assert_eq(into[16], 0x77);
    cr_assert_eq(write_at(RAM_BYTES, from, 64, &done), BB_E_DEVICE);
    cr_assert_eq(done, 16);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, RAM_BYTES + 16, 0, 1, nobody, &done),
                 BB_E_DEVICE);
    cr_assert_eq(done, 0);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 3);

    /* A hole at once. */
    cr_assert_eq(read_at(0x20000000, into, 8, &done), BB_E_DECODE);
    cr_assert_eq(done, 0);
    probe_drop(&bank.probe);
}

Test(dma, the_ends_of_the_map)
{
    uint8_t bytes[16] = {0};
    size_t done = 7;

    cr_assert_eq(write_at(RAM_BYTES - 16, bytes, 16, &done), BB_OK);
    cr_assert_eq(write_at(RAM_BYTES - 15, bytes, 16, &done), BB_E_DECODE);
    cr_assert_eq(done, 15);
    cr_assert_eq(write_at(UINT64_MAX - 15, bytes, 16, &done), BB_E_DECODE, "2^64 - 1 is the last");
    cr_assert_eq(write_at(UINT64_MAX - 14, bytes, 16, &done), BB_E_RANGE);
    cr_assert_eq(done, 0);
    cr_assert_eq(write_at(UINT64_MAX, bytes, 1, &done), BB_E_DECODE);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, 0, 0, SIZE_MAX, nobody, &done),
                 BB_E_DECODE);
    cr_assert_eq(done, RAM_BYTES);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, 1, 0, SIZE_MAX, nobody, &done), BB_E_DECODE,
                 "1 to 2^64 - 1");
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, 2, 0, SIZE_MAX, nobody, &done), BB_E_RANGE);
}

Test(dma, memory_that_is_read_only_refuses_writes_and_keeps_what_it_has)
{
    struct bb_ram_config config = {.name = "rom", .size_bytes = 0x1000, .read_only = true};
    struct bb_region *rom;
    uint8_t bytes[32];
    uint64_t old = 0;
    size_t done = 0;

    cr_assert_eq(bb_ram_create(machine.ctx, &config, &rom, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, RAM_BYTES, rom, NULL), BB_OK);
    memset(bb_region_host(rom), 0x42, 0x1000);
    memset(bytes, 1, sizeof(bytes));
    cr_assert_eq(write_at(RAM_BYTES - 4, bytes, sizeof(bytes), &done), BB_E_DEVICE);
    cr_assert_eq(done, 4);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 1);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, RAM_BYTES, 1, 1, nobody, NULL),
                 BB_E_DEVICE);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, RAM_BYTES, 4, BB_LITTLE_ENDIAN, nobody, 1),
                 BB_E_DEVICE);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, RAM_BYTES, 4, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DEVICE);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 4);
    cr_assert_eq(read_at(RAM_BYTES, bytes, sizeof(bytes), &done), BB_OK);
    cr_assert_eq(bytes[0], 0x42);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, rom, NULL), BB_OK);
}

Test(dma, ram_refuses_writes_where_it_is_seen_through_a_read_only_alias)
{
    struct bb_alias_config config = {
        .name = "alias", .target = machine.ram, .size_bytes = 0x1000, .read_only = true};
    struct bb_region *alias;
    uint64_t value = 0;

    cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0x100000, alias, NULL), BB_OK);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 0x10, 4, BB_LITTLE_ENDIAN, nobody, 9),
                 BB_OK);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 0x100010, 4, BB_LITTLE_ENDIAN, nobody, 1),
                 BB_E_DEVICE);
    cr_assert_eq(write_at(0x100010, "abcd", 4, NULL), BB_E_DEVICE);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x100010, 4, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &value),
                 BB_E_DEVICE);
    cr_assert_eq(
        bb_dma_load(machine.ctx, machine.mmio, 0x100010, 4, BB_LITTLE_ENDIAN, nobody, &value),
        BB_OK);
    cr_assert_eq(value, 9);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, NULL), BB_OK);
}

Test(dma, a_rom_device_is_read_as_memory_and_written_by_its_callback)
{
    struct bb_region_config config = {.rom_device = true};
    uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint8_t into[8];

    bank_make(&config);
    memset(bb_region_host(bank.probe.region), 0x99, DEVICE_BYTES);
    cr_assert_eq(write_at(RAM_BYTES, bytes, 8, NULL), BB_OK);
    cr_assert_eq(bank.count, 1);
    cr_assert_eq(bank.bytes[7], 8);
    cr_assert_eq(read_at(RAM_BYTES, into, 8, NULL), BB_OK);
    cr_assert_eq(into[0], 0x99);
    cr_assert_eq(bank.count, 1, "the read made no callback");
    probe_drop(&bank.probe);
}

Test(dma, careless_input_is_refused_and_changes_nothing)
{
    uint8_t bytes[8] = {0};
    uint64_t value = 7;
    size_t done = 9;
    struct bb_ctx *ctx = machine.ctx;
    struct bb_space *space = machine.mmio;

    cr_assert_eq(bb_dma_read(NULL, space, 0, bytes, 8, nobody, &done), BB_E_INVAL);
    cr_assert_eq(done, 0);
    cr_assert_eq(bb_dma_read(ctx, NULL, 0, bytes, 8, nobody, NULL), BB_E_INVAL);
    cr_assert_eq(bb_dma_read(ctx, space, 0, NULL, 8, nobody, NULL), BB_E_INVAL);
    cr_assert_eq(bb_dma_write(ctx, space, 0, NULL, 8, nobody, NULL), BB_E_INVAL);
    cr_assert_eq(bb_dma_fill(ctx, NULL, 0, 1, 8, nobody, NULL), BB_E_INVAL);
    cr_assert_eq(bb_dma_read(ctx, space, 0, NULL, 0, nobody, &done), BB_OK);
    cr_assert_eq(bb_dma_write(ctx, space, UINT64_MAX, NULL, 0, nobody, &done), BB_OK);

    for (unsigned size = 0; size < 20; size++) {
        bool right = size == 1 || size == 2 || size == 4 || size == 8;
        cr_assert_eq(bb_dma_load(ctx, space, 0, size, BB_LITTLE_ENDIAN, nobody, &value),
                     right ? BB_OK : BB_E_RANGE);
        cr_assert_eq(bb_dma_store(ctx, space, 0, size, BB_LITTLE_ENDIAN, nobody, 0),
                     right ? BB_OK : BB_E_RANGE);
        cr_assert_eq(bb_dma_atomic(ctx, space, 0, size, BB_LITTLE_ENDIAN, nobody, BB_ATOMIC_OR, 0,
                                   0, &value),
                     size == 4 || size == 8 ? BB_OK : BB_E_RANGE);
    }
    value = 7;
    cr_assert_eq(bb_dma_load(ctx, space, UINT64_MAX, 2, BB_LITTLE_ENDIAN, nobody, &value),
                 BB_E_RANGE);
    cr_assert_eq(bb_dma_load(ctx, space, 0, 4, BB_LITTLE_ENDIAN, nobody, NULL), BB_E_INVAL);
    cr_assert_eq(bb_dma_load(ctx, space, 0, 4, (enum bb_endian)7, nobody, &value), BB_E_INVAL);
    cr_assert_eq(bb_dma_store(NULL, space, 0, 4, BB_LITTLE_ENDIAN, nobody, 1), BB_E_INVAL);
    cr_assert_eq(bb_dma_store(ctx, NULL, 0, 4, BB_LITTLE_ENDIAN, nobody, 1), BB_E_INVAL);
    cr_assert_eq(
        bb_dma_atomic(ctx, space, 2, 4, BB_LITTLE_ENDIAN, nobody, BB_ATOMIC_ADD, 0, 1, &value),
        BB_E_RANGE);
    cr_assert_eq(
        bb_dma_atomic(ctx, space, 4, 8, BB_LITTLE_ENDIAN, nobody, BB_ATOMIC_ADD, 0, 1, &value),
        BB_E_RANGE);
    cr_assert_eq(bb_dma_atomic(ctx, space, 0, 4, BB_LITTLE_ENDIAN, nobody, (enum bb_atomic_op)6, 0,
                               1, &value),
                 BB_E_INVAL);
    cr_assert_eq(
        bb_dma_atomic(ctx, space, 0, 4, BB_LITTLE_ENDIAN, nobody, BB_ATOMIC_ADD, 0, 1, NULL),
        BB_E_INVAL);
    cr_assert_eq(value, 7);
    memset(bytes, 0, sizeof(bytes));
    cr_assert_eq(memcmp(machine.ram_host, bytes, 8), 0);
}

Test(dma, values_lie_in_memory_in_the_order_asked_for)
{
    static const uint64_t value = 0x0123456789abcdef;

    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned at = 64; at < 80; at++) {
            uint64_t back = 0;
            uint8_t *host = machine.ram_host + at;

            memset(machine.ram_host, 0, 128);
            cr_assert_eq(
                bb_dma_store(machine.ctx, machine.mmio, at, size, BB_LITTLE_ENDIAN, nobody, value),
                BB_OK);
            for (unsigned i = 0; i < size; i++) {
                cr_assert_eq(host[i], (uint8_t)(value >> (8 * i)));
            }
            cr_assert_eq(host[size], 0);
            cr_assert_eq(
                bb_dma_load(machine.ctx, machine.mmio, at, size, BB_LITTLE_ENDIAN, nobody, &back),
                BB_OK);
            cr_assert_eq(back, value & bb_mask_bytes(size));
            cr_assert_eq(
                bb_dma_store(machine.ctx, machine.mmio, at, size, BB_BIG_ENDIAN, nobody, value),
                BB_OK);
            for (unsigned i = 0; i < size; i++) {
                cr_assert_eq(host[i], (uint8_t)(value >> (8 * (size - 1 - i))));
            }
            cr_assert_eq(
                bb_dma_load(machine.ctx, machine.mmio, at, size, BB_BIG_ENDIAN, nobody, &back),
                BB_OK);
            cr_assert_eq(back, value & bb_mask_bytes(size));
        }
    }
}

Test(dma, a_value_may_straddle_and_is_left_alone_where_part_of_it_fails)
{
    uint64_t value = 0;

    bank_make(&plain);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, RAM_BYTES - 3, 8, BB_BIG_ENDIAN, nobody,
                              0x1122334455667788),
                 BB_OK);
    cr_assert_eq(machine.ram_host[RAM_BYTES - 3], 0x11);
    cr_assert_eq(bank.bytes[0], 0x44);
    cr_assert_eq(bank.bytes[4], 0x88);
    cr_assert_eq(
        bb_dma_load(machine.ctx, machine.mmio, RAM_BYTES - 3, 8, BB_BIG_ENDIAN, nobody, &value),
        BB_OK);
    cr_assert_eq(value, 0x1122334455667788);
    bank.refuses = 4;
    value = 5;
    cr_assert_eq(
        bb_dma_load(machine.ctx, machine.mmio, RAM_BYTES - 3, 8, BB_BIG_ENDIAN, nobody, &value),
        BB_E_DEVICE);
    cr_assert_eq(value, 5);
    cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, RAM_BYTES + DEVICE_BYTES - 2, 4,
                             BB_LITTLE_ENDIAN, nobody, &value),
                 BB_E_DECODE);
    cr_assert_eq(value, 5);
    /* Aligned, and yet not in one piece of RAM. */
    bank.refuses = UINT64_MAX;
    cr_assert_eq(bb_space_unmap(machine.ctx, bank.probe.region, NULL), BB_OK);
    cr_assert_eq(bb_region_place(machine.ctx, bb_space_root(machine.mmio), 0x4004,
                                 bank.probe.region, 1, NULL),
                 BB_OK);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 0x4000, 8, BB_LITTLE_ENDIAN, nobody,
                              0x8877665544332211),
                 BB_OK);
    cr_assert_eq(machine.ram_host[0x4004], 0);
    cr_assert_eq(bank.bytes[3], 0x88);
    cr_assert_eq(
        bb_dma_load(machine.ctx, machine.mmio, 0x4000, 8, BB_LITTLE_ENDIAN, nobody, &value), BB_OK);
    cr_assert_eq(value, 0x8877665544332211);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x4000, 8, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &value),
                 BB_E_DEVICE);
    cr_assert_eq(bb_region_move(machine.ctx, bank.probe.region, RAM_BYTES, NULL), BB_OK);
    bank.count = 0;
    cr_assert_eq(
        bb_dma_load(machine.ctx, machine.mmio, RAM_BYTES + 8, 4, BB_LITTLE_ENDIAN, nobody, &value),
        BB_OK);
    cr_assert_eq(bank.count, 1);
    cr_assert_eq(bank.log[0].size, 4, "an aligned value is one access");
    probe_drop(&bank.probe);
}

Test(dma, atomics_do_what_they_are_named_in_both_orders)
{
    static const uint64_t before = 0x00000000fffffff0, operand = 0x0000000100000123;
    static const uint64_t after[] = {
        [BB_ATOMIC_EXCHANGE] = 0x0000000100000123, [BB_ATOMIC_ADD] = 0x0000000200000113,
        [BB_ATOMIC_AND] = 0x0000000000000120,      [BB_ATOMIC_OR] = 0x00000001fffffff3,
        [BB_ATOMIC_XOR] = 0x00000001fffffed3,      [BB_ATOMIC_COMPARE_EXCHANGE] = operand,
    };

    for (unsigned size = 4; size <= 8; size *= 2) {
        for (unsigned endian = 0; endian < 2; endian++) {
            for (unsigned op = 0; op < BB_ARRAY_LEN(after); op++) {
                uint64_t mask = bb_mask_bytes(size), old = 0, value = 0;
                enum bb_endian order = endian == 0 ? BB_LITTLE_ENDIAN : BB_BIG_ENDIAN;

                memset(machine.ram_host, 0xee, 64);
                cr_assert_eq(
                    bb_dma_store(machine.ctx, machine.mmio, 16, size, order, nobody, before),
                    BB_OK);
                cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 16, size, order, nobody,
                                           (enum bb_atomic_op)op, before, operand, &old),
                             BB_OK);
                cr_assert_eq(old, before & mask);
                cr_assert_eq(
                    bb_dma_load(machine.ctx, machine.mmio, 16, size, order, nobody, &value), BB_OK);
                cr_assert_eq(value, after[op] & mask, "op %u, size %u, order %u: %llx", op, size,
                             endian, (unsigned long long)value);
                cr_assert_eq(machine.ram_host[15], 0xee);
                cr_assert_eq(machine.ram_host[16 + size], 0xee);

                /* A comparison that fails says what is there, and changes nothing. */
                if (op == BB_ATOMIC_COMPARE_EXCHANGE) {
                    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 16, size, order, nobody,
                                               (enum bb_atomic_op)op, before, 1, &old),
                                 BB_OK);
                    cr_assert_eq(old, operand & mask);
                    cr_assert_eq(
                        bb_dma_load(machine.ctx, machine.mmio, 16, size, order, nobody, &value),
                        BB_OK);
                    cr_assert_eq(value, operand & mask);
                }
            }
        }
    }
}

Test(dma, an_atomic_on_anything_but_ram_is_refused_and_counted)
{
    uint64_t old = 3;

    bank_make(&plain);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, RAM_BYTES, 4, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DEVICE);
    cr_assert_eq(bank.count, 0);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x20000000, 8, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DECODE);
    cr_assert_eq(old, 3);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_writes, 1);
    probe_drop(&bank.probe);
}

Test(dma, a_device_sees_the_attributes_of_who_reaches_it)
{
    struct bb_attrs attrs = {.requester_id = 0x1234, .secure = true};
    uint64_t value = 0;

    bank_make(&plain);
    cr_assert_eq(bb_dma_write(machine.ctx, machine.mmio, RAM_BYTES, "abcd", 4, attrs, NULL), BB_OK);
    cr_assert_eq(bank.attrs.requester_id, 0x1234);
    cr_assert(bank.attrs.secure && !bank.attrs.privileged);
    cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, RAM_BYTES, 4, BB_LITTLE_ENDIAN,
                             (struct bb_attrs){.privileged = true}, &value),
                 BB_OK);
    cr_assert_eq(bank.attrs.requester_id, 0);
    cr_assert(!bank.attrs.secure && bank.attrs.privileged);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, RAM_BYTES, 4, &value), BB_OK);
    cr_assert(!bank.attrs.privileged);
    probe_drop(&bank.probe);
}

/* Each write posts a call. */
static unsigned calls;
static void note_call(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)ctx;
    (void)opaque;
    cr_assert_eq(argument, calls, "effects of one part come before the next part");
    calls++;
}

static int post_each(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t value)
{
    (void)size;
    (void)value;
    cr_assert_eq(offset / 8, calls);
    return bb_post(ctx, probe->device, note_call, NULL, offset / 8);
}

Test(dma, a_long_copy_to_a_device_has_an_epilogue_after_each_access)
{
    enum { WORDS = 1024 };
    struct bb_region_config config = {.size_bytes = WORDS * 8};
    struct probe probe = {.write = post_each};

    calls = 0;
    probe_make_config(&machine, &probe, "poster", 1, &config);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, probe.gpa, 0, WORDS * 8, nobody, NULL),
                 BB_OK);
    cr_assert_eq(calls, WORDS);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, 0);
    probe_drop(&probe);
}

Test(dma, what_is_written_is_dirty_and_what_is_read_is_not)
{
    struct bb_dirty_client *client;
    uint64_t bitmap = 0, pages = 0, old = 0;
    uint8_t bytes[0x1000] = {0};

    cr_assert_eq(bb_dirty_client_create(machine.ctx, "test", &client, NULL), BB_OK);
    cr_assert_eq(bb_dirty_start(machine.ctx, client, machine.ram, NULL), BB_OK);
    cr_assert_eq(read_at(0, bytes, sizeof(bytes), NULL), BB_OK);
    cr_assert_eq(write_at(0x1ffe, bytes, 4, NULL), BB_OK);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, 0x4000, 1, 0x1000, nobody, NULL), BB_OK);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 0x6ff8, 8, BB_BIG_ENDIAN, nobody, 1),
                 BB_OK);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x8000, 4, BB_BIG_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_OK);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x9000, 4, BB_BIG_ENDIAN, nobody,
                               BB_ATOMIC_COMPARE_EXCHANGE, 55, 1, &old),
                 BB_OK, "fails to compare");
    cr_assert_eq(bb_dirty_sync_and_clear(machine.ctx, client, machine.ram, 0, RAM_BYTES, &bitmap,
                                         &pages, NULL),
                 BB_OK);
    cr_assert_eq(bitmap, 1 << 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8, "%llx",
                 (unsigned long long)bitmap);
    cr_assert_eq(pages, 5);
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client, NULL), BB_OK);
}

static void add_counts(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    struct bb_region_counts *sum = opaque;

    (void)name;
    sum->reads += counts->reads;
    sum->writes += counts->writes;
    sum->refused += counts->refused;
}

static struct bb_region_counts counts_of(const struct bb_region *region)
{
    struct bb_region_counts sum = {0};

    bb_region_counts_each(machine.ctx, region, add_counts, &sum);
    return sum;
}

Test(dma, a_transfer_counts_once_for_memory_and_by_access_for_a_device)
{
    enum { BIG = 1 << 18 };
    struct bb_ram_config config = {.name = "big", .size_bytes = BIG};
    struct bb_region *big;
    uint8_t *bytes = malloc(BIG);
    uint64_t value = 0;

    bank_make(&plain);
    cr_assert_eq(bb_ram_create(machine.ctx, &config, &big, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0x100000, big, NULL), BB_OK);
    bb_engine_count_accesses(machine.ctx, true);
    cr_assert_eq(read_at(0x100000, bytes, BIG, NULL), BB_OK);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 0x100000, 4, BB_BIG_ENDIAN, nobody, 1),
                 BB_OK);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x100000, 4, BB_BIG_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &value),
                 BB_OK);
    cr_assert_eq(read_at(RAM_BYTES - 8, bytes, 24, NULL), BB_OK);
    bb_engine_count_accesses(machine.ctx, false);
    cr_assert_eq(counts_of(big).reads, 1, "256 KiB in four sections");
    cr_assert_eq(counts_of(big).writes, 2);
    cr_assert_eq(counts_of(machine.ram).reads, 1);
    cr_assert_eq(counts_of(bank.probe.region).reads, 2);
    free(bytes);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, big, NULL), BB_OK);
    probe_drop(&bank.probe);
}

/*
 * Translations of less than a page are not kept, so each lookup of RAM stamps it anew: what was
 * fetched twice bears a later stamp.
 */
static struct bb_region *iommu;
static uint64_t stamp;

static int stamping(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                    struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    (void)ctx;
    (void)opaque;
    (void)access;
    (void)attrs;
    stamp++;
    for (unsigned i = 0; i < 16; i++) {
        bb_store_relaxed(&machine.ram_host[i], (uint8_t)stamp);
    }
    *entry = (struct bb_iommu_entry){.target = machine.mmio,
                                     .iova = iova & ~UINT64_C(15),
                                     .translated = iova < 16 ? 0 : bank.probe.gpa,
                                     .page_bits = 4,
                                     .access = BB_IOMMU_READ | BB_IOMMU_WRITE};
    return BB_OK;
}

Test(dma, no_byte_of_ram_is_fetched_twice_when_a_transfer_meets_a_device)
{
    static const struct bb_iommu_ops ops = {stamping};
    struct bb_iommu_config config = {.name = "stamps", .size_bytes = 0x1000, .ops = &ops};
    uint8_t into[32];

    bank_make(&plain);
    cr_assert_eq(bb_region_move(machine.ctx, bank.probe.region, bank.probe.gpa, NULL), BB_OK);
    cr_assert_eq(bb_device_iommu_create(machine.ctx, bank.probe.device, &config, &iommu, NULL),
                 BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0x10000000, iommu, NULL), BB_OK);
    stamp = 0;
    cr_assert_eq(read_at(0x10000000, into, 32, NULL), BB_OK);
    cr_assert_gt(stamp, 1, "the device was looked up, after RAM had been read");
    for (unsigned i = 0; i < 16; i++) {
        cr_assert_eq(into[i], 1, "byte %u is of lookup %u", i, into[i]);
    }
    cr_assert_eq(bank.count, 2, "two words of the device, each read once");
    probe_drop(&bank.probe);
}

/* A copy into a device that waits, with a pause beside it. */
static struct door inside, go_on;

static int wait_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)size;
    (void)value;
    if (offset == 0) {
        door_open(&inside);
        door_wait(&go_on);
    }
    return BB_OK;
}

static int worker_result;
static size_t worker_done;
static struct probe slow;

static void copy_to_slow(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    worker_result = bb_dma_fill(ctx, machine.mmio, slow.gpa, 1, DEVICE_BYTES, nobody, &worker_done);
}

Test(dma, a_pause_waits_for_a_copy_in_flight_to_its_last_byte)
{
    struct worker worker;

    inside = (struct door)DOOR_INIT;
    go_on = (struct door)DOOR_INIT;
    slow = (struct probe){.write = wait_write};
    probe_make(&machine, &slow, "slow", 1, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "copier", copy_to_slow, NULL);
    door_wait(&inside);
    cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, NULL), BB_E_TIMEOUT);
    door_open(&go_on);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
    cr_assert_eq(bb_load_relaxed(&slow.writes), DEVICE_BYTES / 8);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    cr_assert_eq(worker_result, BB_OK);
    cr_assert_eq(worker_done, DEVICE_BYTES);
    probe_drop(&slow);
}

Test(dma, the_baselines_and_an_engine_that_counts_do_all_of_it_too)
{
    for (unsigned mode = BB_LOCK_FREE; mode <= BB_LOCK_BIG; mode++) {
        struct bb_engine_config config = {.lock_mode = (enum bb_lock_mode)mode,
                                          .count_accesses = true};
        uint8_t from[64], into[64];
        uint64_t value = 0;
        size_t done = 0;

        machine_drop(&machine);
        machine_make(&machine, &config);
        bank_make(&plain);
        pattern(from, sizeof(from), mode);
        cr_assert_eq(write_at(RAM_BYTES - 30, from, 64, &done), BB_OK);
        cr_assert_eq(done, 64);
        cr_assert_eq(read_at(RAM_BYTES - 30, into, 64, &done), BB_OK);
        cr_assert_eq(memcmp(from, into, 64), 0);
        cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 8, 8, BB_BIG_ENDIAN, nobody, 41),
                     BB_OK);
        cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 8, 8, BB_BIG_ENDIAN, nobody,
                                   BB_ATOMIC_ADD, 0, 1, &value),
                     BB_OK);
        cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, 8, 8, BB_BIG_ENDIAN, nobody, &value),
                     BB_OK);
        cr_assert_eq(value, 42);
        probe_drop(&bank.probe);
    }
}

static void write_ram(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    worker_result = bb_dma_fill(ctx, machine.mmio, 0, 1, 64, nobody, &worker_done);
}

Test(dma, a_copy_that_meets_a_closed_gate_waits_or_where_it_holds_a_lock_is_refused)
{
    struct worker worker;
    struct bb_lock *lock;
    uint64_t value = 0;
    size_t done = 4;

    cr_assert_eq(bb_lock_create(machine.ctx, "narrow", BB_RANK_NARROW, &lock, NULL), BB_OK);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
    uint64_t waits = bb_engine_stats(machine.ctx).gate_waits;
    worker_start(&worker, &machine, "writer", write_ram, NULL);
    while (bb_engine_stats(machine.ctx).gate_waits == waits) {
        sched_yield();
    }
    cr_assert_eq(bb_load_relaxed(&machine.ram_host[0]), 0);
    bb_lock_acquire(machine.ctx, lock);
    cr_assert_eq(write_at(0, "x", 1, &done), BB_E_CONTEXT);
    cr_assert_eq(done, 0);
    cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, 0, 4, BB_LITTLE_ENDIAN, nobody, &value),
                 BB_E_CONTEXT);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0, 4, BB_LITTLE_ENDIAN, nobody,
                               BB_ATOMIC_ADD, 0, 1, &value),
                 BB_E_CONTEXT);
    bb_lock_release(machine.ctx, lock);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    cr_assert_eq(worker_result, BB_OK);
    cr_assert_eq(machine.ram_host[63], 1);
    bb_lock_destroy(machine.ctx, lock);
}

Test(dma, ram_is_reached_inside_an_embedders_section_and_under_its_lock)
{
    struct bb_lock *lock;
    uint64_t value = 0;

    bank_make(&plain);
    cr_assert_eq(bb_lock_create(machine.ctx, "narrow", BB_RANK_NARROW, &lock, NULL), BB_OK);
    bb_rcu_read_lock(machine.ctx);
    bb_lock_acquire(machine.ctx, lock);
    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, 8, 8, BB_BIG_ENDIAN, nobody, 0x55), BB_OK);
    cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, 8, 8, BB_BIG_ENDIAN, nobody, &value),
                 BB_OK);
    cr_assert_eq(value, 0x55);
    cr_assert_eq(bb_dma_fill(machine.ctx, machine.mmio, RAM_BYTES - 8, 0x11, 16, nobody, NULL),
                 BB_OK);
    cr_assert_eq(bank.bytes[7], 0x11);
    bb_lock_release(machine.ctx, lock);
    bb_rcu_read_unlock(machine.ctx);
    probe_drop(&bank.probe);
    bb_lock_destroy(machine.ctx, lock);
}
