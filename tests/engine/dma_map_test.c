/* SPDX-License-Identifier: MIT */
/*
 * Mappings of guest memory: what is mapped as it is and what through a bounce buffer, how long
 * either lasts, and that neither can be had without bound.
 */
#include "fixture.h"

#include <string.h>

#include "../../engine/dma.h"
#include "../../engine/engine_internal.h"
#include "../../memory/dirty.h"

enum { REGISTERS_BYTES = 0x20000, PAGE = 0x1000 };

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

TestSuite(dma_map, .init = setup, .fini = teardown, .timeout = 60);

/* Registers that are memory to whoever accesses them, and to nobody else. */
static struct probe bank;
static uint8_t bank_bytes[REGISTERS_BYTES];
static uint64_t bank_refuses_from;

static int bank_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    (void)ctx;
    (void)probe;
    if (offset >= bank_refuses_from) {
        return BB_E_DEVICE;
    }
    memcpy(value, &bank_bytes[offset], size);
    return BB_OK;
}

static int bank_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)ctx;
    (void)probe;
    if (offset >= bank_refuses_from) {
        return BB_E_DEVICE;
    }
    memcpy(&bank_bytes[offset], &value, size);
    return BB_OK;
}

static void bank_make(enum bb_class klass)
{
    struct bb_region_config config = {.klass = klass, .size_bytes = REGISTERS_BYTES};

    bank = (struct probe){.read = bank_read, .write = bank_write};
    bank_refuses_from = UINT64_MAX;
    for (size_t i = 0; i < REGISTERS_BYTES; i++) {
        bank_bytes[i] = (uint8_t)(i + (i >> 8));
    }
    probe_make_config(&machine, &bank, "bank", 0x10, &config);
}

static struct bb_dma_mapping *map(bb_gpa_t gpa, uint64_t *length, enum bb_dma_direction direction)
{
    struct bb_dma_mapping *mapping = NULL;
    struct bb_error err = {0};

    cr_assert_eq(
        bb_dma_map(machine.ctx, machine.mmio, gpa, length, direction, nobody, &mapping, &err),
        BB_OK, "%s", err.text);
    cr_assert_not_null(mapping);
    return mapping;
}

static void unmap(struct bb_dma_mapping *mapping, uint64_t written)
{
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, written), BB_OK);
}

static struct bb_region *ram_at(bb_gpa_t gpa, uint64_t size_bytes, bool read_only)
{
    struct bb_ram_config config = {
        .name = "more", .size_bytes = size_bytes, .read_only = read_only};
    struct bb_region *region;

    cr_assert_eq(bb_ram_create(machine.ctx, &config, &region, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, gpa, region, NULL), BB_OK);
    return region;
}

Test(dma_map, ram_is_mapped_as_it_is_up_to_the_end_of_its_piece)
{
    static const enum bb_dma_direction directions[] = {BB_DMA_FROM_GUEST, BB_DMA_TO_GUEST,
                                                       BB_DMA_BOTH};

    for (unsigned i = 0; i < BB_ARRAY_LEN(directions); i++) {
        uint64_t length = 100;
        struct bb_dma_mapping *mapping = map(0x123, &length, directions[i]);
        cr_assert_eq(length, 100);
        cr_assert(!bb_dma_bounced(mapping));
        cr_assert_eq(bb_dma_host(mapping), machine.ram_host + 0x123);
        unmap(mapping, 0);

        length = UINT64_C(1) << 32;
        mapping = map(8, &length, directions[i]);
        cr_assert_eq(length, RAM_BYTES - 8);
        unmap(mapping, 0);

        length = 1;
        mapping = map(RAM_BYTES - 1, &length, directions[i]);
        cr_assert_eq(length, 1);
        unmap(mapping, 0);
    }
    /* Something lies over it: two pieces of one region. */
    bank_make(BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_space_unmap(machine.ctx, bank.region, NULL), BB_OK);
    cr_assert_eq(
        bb_region_place(machine.ctx, bb_space_root(machine.mmio), 0x4000, bank.region, 1, NULL),
        BB_OK);
    uint64_t length = RAM_BYTES;
    struct bb_dma_mapping *mapping = map(0x1000, &length, BB_DMA_BOTH);
    cr_assert_eq(length, 0x3000);
    unmap(mapping, 0);
    probe_drop(&bank);
}

Test(dma_map, what_is_no_ram_is_read_when_it_is_mapped_and_written_when_it_is_unmapped)
{
    uint64_t length = 300;
    struct bb_dma_mapping *mapping;
    uint8_t *host;

    bank_make(BB_CLASS_DEVICE_LOCK);
    mapping = map(bank.gpa + 16, &length, BB_DMA_BOTH);
    cr_assert_eq(length, 300);
    cr_assert(bb_dma_bounced(mapping));
    host = bb_dma_host(mapping);
    cr_assert_eq(memcmp(host, bank_bytes + 16, 300), 0);
    cr_assert_eq(bank.writes, 0);
    memset(host, 0xcd, 300);
    cr_assert_neq(bank_bytes[16], 0xcd);
    unmap(mapping, 200);
    cr_assert_eq(bank_bytes[16], 0xcd);
    cr_assert_eq(bank_bytes[16 + 199], 0xcd);
    cr_assert_eq(bank_bytes[16 + 200], (uint8_t)(16 + 200), "200 bytes were written, no more");
    cr_assert_eq(bank_bytes[15], 15);

    /* One direction alone. */
    bank.reads = bank.writes = 0;
    length = 64;
    mapping = map(bank.gpa, &length, BB_DMA_TO_GUEST);
    cr_assert_eq(bank.reads, 0);
    host = bb_dma_host(mapping);
    for (unsigned i = 0; i < 64; i++) {
        cr_assert_eq(host[i], 0, "nothing of the host's is shown to the guest");
    }
    unmap(mapping, 1000);
    cr_assert_eq(bank.writes, 8, "all of it, and not more");
    length = 64;
    mapping = map(bank.gpa, &length, BB_DMA_FROM_GUEST);
    unmap(mapping, 64);
    cr_assert_eq(bank.writes, 8, "nothing to be written back");
    probe_drop(&bank);
}

Test(dma_map, read_only_memory_is_mapped_to_be_read_and_bounced_to_be_written)
{
    struct bb_region *rom = ram_at(0x100000, PAGE, true);
    uint8_t *rom_host = bb_region_host(rom);
    uint64_t length = PAGE;
    struct bb_dma_mapping *mapping;

    rom_host[7] = 0x77;
    mapping = map(0x100000, &length, BB_DMA_FROM_GUEST);
    cr_assert_eq(bb_dma_host(mapping), rom_host);
    unmap(mapping, 0);
    length = 16;
    mapping = map(0x100000, &length, BB_DMA_BOTH);
    cr_assert(bb_dma_bounced(mapping));
    cr_assert_eq(((uint8_t *)bb_dma_host(mapping))[7], 0x77);
    memset(bb_dma_host(mapping), 1, 16);
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 16), BB_E_DEVICE);
    cr_assert_eq(rom_host[7], 0x77);
    cr_assert_eq(bb_engine_memory(machine.engine).live_bytes > 0, true);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, rom, NULL), BB_OK);
}

Test(dma_map, a_rom_devices_memory_is_pinned_by_its_device)
{
    struct bb_region_config config = {.rom_device = true, .size_bytes = PAGE};
    struct probe rom = {0};
    uint64_t length = PAGE;
    struct bb_dma_mapping *mapping;

    probe_make_config(&machine, &rom, "rom device", 1, &config);
    mapping = map(rom.gpa, &length, BB_DMA_FROM_GUEST);
    cr_assert_eq(bb_dma_host(mapping), bb_region_host(rom.region));
    cr_assert_eq(bb_pins_held_(&rom.device->pins), 1);
    unmap(mapping, 0);
    cr_assert_eq(bb_pins_held_(&rom.device->pins), 0);
    length = 32;
    mapping = map(rom.gpa, &length, BB_DMA_TO_GUEST);
    cr_assert(bb_dma_bounced(mapping));
    unmap(mapping, 32);
    cr_assert_eq(rom.writes, 4, "its callback is written");
    probe_drop(&rom);
}

static unsigned removed;
static struct door removed_door;

static void note_removed(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_acq_rel(&removed, 1); /* pairs with the test's acquire load */
    door_open(&removed_door);
}

Test(dma_map, a_mapping_outlives_moving_and_unmapping_and_removal_waits_for_it)
{
    struct bb_region *ram = ram_at(0x100000, 4 * PAGE, false);
    struct bb_region *other;
    uint64_t length = 2 * PAGE, other_length = PAGE;
    uint8_t *host = bb_region_host(ram), *mapped;
    struct bb_dma_mapping *mapping, *second;
    uint64_t value = 0;

    removed = 0;
    removed_door = (struct door)DOOR_INIT;
    mapping = map(0x101000, &length, BB_DMA_BOTH);
    second = map(0x100000, &other_length, BB_DMA_FROM_GUEST);
    mapped = bb_dma_host(mapping);
    cr_assert_eq(mapped, host + PAGE);
    cr_assert_eq(bb_region_move(machine.ctx, ram, 0x200000, NULL), BB_OK);
    mapped[0] = 0x5a;
    cr_assert_eq(mmio_read(&machine, 0x201000, 1), 0x5a, "it is that memory, wherever it lies");
    cr_assert_eq(bb_space_unmap(machine.ctx, ram, NULL), BB_OK);
    mapped[1] = 0x5b;
    cr_assert_eq(bb_region_remove(machine.ctx, ram, note_removed, NULL, NULL), BB_OK);
    /* A removal that began later, and all that waited with it, comes to its end; this one doesn't.
     */
    for (unsigned round = 0; round < 3; round++) {
        other = ram_at(0x300000, PAGE, false);
        cr_assert_eq(bb_region_remove_wait(machine.ctx, other, NULL), BB_OK);
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        cr_assert_eq(bb_load_acquire(&removed), 0, "removed under a mapping");
        memset(mapped, 0x66, length);
    }
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0x200000, 1, &value), BB_E_DECODE);
    unmap(second, 0);
    cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    cr_assert_eq(bb_load_acquire(&removed), 0, "one of two mappings was left");
    cr_assert_eq(mapped[1], 0x66);
    unmap(mapping, length);
    door_wait(&removed_door);
    cr_assert_eq(bb_load_acquire(&removed), 1);
}

Test(dma_map, bounce_buffers_are_bounded_together_and_given_back)
{
    enum { COUNT = BB_BOUNCE_TOTAL / BB_BOUNCE_MAX };
    static struct bb_dma_mapping *mappings[COUNT + 1];
    uint64_t length;
    struct bb_error err = {0};
    struct bb_heap_usage before;

    bank_make(BB_CLASS_LOCKFREE);
    before = bb_engine_memory(machine.engine);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            length = UINT64_C(1) << 32;
            mappings[i] = map(bank.gpa, &length, BB_DMA_TO_GUEST);
            cr_assert_eq(length, BB_BOUNCE_MAX);
        }
        length = 1;
        cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, bank.gpa, &length, BB_DMA_FROM_GUEST,
                                nobody, &mappings[COUNT], &err),
                     BB_E_LIMIT);
        cr_assert_eq(err.code, BB_E_LIMIT);
        cr_assert_eq(length, 1);
        cr_assert_null(mappings[COUNT]);
        /* RAM needs none. */
        length = 64;
        mappings[COUNT] = map(0, &length, BB_DMA_BOTH);
        unmap(mappings[COUNT], 0);
        /* One given back is one to be had. */
        unmap(mappings[0], 0);
        length = 100;
        mappings[0] = map(bank.gpa, &length, BB_DMA_FROM_GUEST);
        for (unsigned i = 0; i < COUNT; i++) {
            unmap(mappings[i], 0);
        }
        mappings[COUNT] = NULL;
    }
    cr_assert_leq(bb_engine_memory(machine.engine).live_bytes, before.live_bytes);
    probe_drop(&bank);
}

Test(dma_map, a_bounce_buffer_holds_what_could_be_read_and_none_is_made_of_nothing)
{
    uint64_t length = 1000;
    struct bb_dma_mapping *mapping = NULL;
    struct bb_error err = {0};

    bank_make(BB_CLASS_LOCKFREE);
    bank_refuses_from = 40;
    mapping = map(bank.gpa, &length, BB_DMA_FROM_GUEST);
    cr_assert_eq(length, 40);
    unmap(mapping, 0);
    length = 1000;
    mapping = NULL;
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, bank.gpa + 40, &length, BB_DMA_BOTH, nobody,
                            &mapping, &err),
                 BB_E_DEVICE);
    cr_assert_eq(length, 1000);
    cr_assert_null(mapping);
    for (unsigned direction = BB_DMA_FROM_GUEST; direction <= BB_DMA_BOTH; direction++) {
        cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x50000000, &length,
                                (enum bb_dma_direction)direction, nobody, &mapping, &err),
                     BB_E_DECODE);
        cr_assert_not_null(strstr(err.text, "0x50000000"), "%s", err.text);
    }
    struct bb_engine_stats stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(stats.unassigned_reads, 2);
    cr_assert_eq(stats.unassigned_writes, 1);
    /* What refuses to be written says so when it is unmapped, and is unmapped all the same. */
    length = 80;
    mapping = map(bank.gpa, &length, BB_DMA_TO_GUEST);
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 80), BB_E_DEVICE);
    cr_assert_eq(bb_mappings_left_(machine.engine), 0);
    probe_drop(&bank);
}

Test(dma_map, careless_input_is_refused_and_changes_nothing)
{
    uint64_t length = 8;
    struct bb_dma_mapping *mapping = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_dma_map(NULL, machine.mmio, 0, &length, BB_DMA_BOTH, nobody, &mapping, &err),
                 BB_E_INVAL);
    cr_assert_eq(bb_dma_map(machine.ctx, NULL, 0, &length, BB_DMA_BOTH, nobody, &mapping, &err),
                 BB_E_INVAL);
    cr_assert_eq(
        bb_dma_map(machine.ctx, machine.mmio, 0, NULL, BB_DMA_BOTH, nobody, &mapping, &err),
        BB_E_INVAL);
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0, &length, BB_DMA_BOTH, nobody, NULL, &err),
                 BB_E_INVAL);
    for (int direction = -1; direction <= 8; direction++) {
        if (direction < 1 || direction > 3) {
            cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0, &length,
                                    (enum bb_dma_direction)direction, nobody, &mapping, &err),
                         BB_E_INVAL);
        }
    }
    length = 0;
    cr_assert_eq(
        bb_dma_map(machine.ctx, machine.mmio, 0, &length, BB_DMA_BOTH, nobody, &mapping, &err),
        BB_E_RANGE);
    length = (UINT64_C(1) << 32) + 1;
    cr_assert_eq(
        bb_dma_map(machine.ctx, machine.mmio, 0, &length, BB_DMA_BOTH, nobody, &mapping, NULL),
        BB_E_RANGE);
    cr_assert_eq(length, (UINT64_C(1) << 32) + 1);
    length = 2;
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, UINT64_MAX, &length, BB_DMA_BOTH, nobody,
                            &mapping, &err),
                 BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "wrap"), "%s", err.text);
    cr_assert_null(mapping);
    cr_assert_eq(bb_dma_unmap(machine.ctx, NULL, 0), BB_E_INVAL);
    length = 8;
    mapping = map(0, &length, BB_DMA_BOTH);
    cr_assert_eq(bb_dma_unmap(NULL, mapping, 0), BB_E_INVAL);
    unmap(mapping, 0);
}

Test(dma_map, a_context_of_another_engine_unmaps_nothing)
{
    struct machine other;
    uint64_t length = 8;
    struct bb_dma_mapping *mapping = map(0, &length, BB_DMA_BOTH);

    machine_make(&other, NULL);
    cr_assert_eq(bb_dma_unmap(other.ctx, mapping, 8), BB_E_INVAL);
    cr_assert_eq(bb_mappings_left_(machine.engine), 1);
    machine_drop(&other);
    unmap(mapping, 0);
}

static struct bb_dma_mapping *left_behind[2];

static void map_and_go(struct bb_ctx *ctx, void *arg)
{
    uint64_t length = 64;

    (void)arg;
    (void)bb_dma_map(ctx, machine.mmio, 0x100, &length, BB_DMA_BOTH, nobody, &left_behind[0], NULL);
    (void)bb_dma_map(ctx, machine.mmio, bank.gpa, &length, BB_DMA_BOTH, nobody, &left_behind[1],
                     NULL);
}

Test(dma_map, a_mapping_outlives_the_context_that_made_it_and_any_other_ends_it)
{
    struct worker worker;

    bank_make(BB_CLASS_LOCKFREE);
    worker_start(&worker, &machine, "mapper", map_and_go, NULL);
    worker_join(&worker);
    cr_assert_not_null(left_behind[0]);
    cr_assert_not_null(left_behind[1]);
    ((uint8_t *)bb_dma_host(left_behind[0]))[0] = 0x12;
    ((uint8_t *)bb_dma_host(left_behind[1]))[0] = 0x34;
    unmap(left_behind[0], 1);
    unmap(left_behind[1], 1);
    cr_assert_eq(machine.ram_host[0x100], 0x12);
    cr_assert_eq(bank_bytes[0], 0x34);
    probe_drop(&bank);
}

Test(dma_map, an_engine_is_not_destroyed_under_a_mapping)
{
    struct machine other;
    struct bb_dma_mapping *mapping = NULL;
    uint64_t length = 8;
    struct bb_error err = {0};
    struct probe device = {0};

    machine_make(&other, NULL);
    probe_make(&other, &device, "device", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(
        bb_dma_map(other.ctx, other.mmio, device.gpa, &length, BB_DMA_BOTH, nobody, &mapping, NULL),
        BB_OK);
    probe_drop(&device);
    cr_assert_eq(bb_region_remove_wait(other.ctx, other.ram, NULL), BB_OK);
    cr_assert_eq(bb_ctx_detach(other.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(other.engine, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "mapping"), "%s", err.text);
    cr_assert_eq(bb_ctx_attach(other.engine, "again", &other.ctx, NULL), BB_OK);
    cr_assert_eq(bb_dma_unmap(other.ctx, mapping, 0), BB_OK);
    cr_assert_eq(bb_ctx_detach(other.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(other.engine, &err), BB_OK, "%s", err.text);
}

Test(dma_map, what_was_written_is_marked_dirty_when_it_is_unmapped)
{
    struct bb_dirty_client *client;
    uint64_t bitmap = 0, pages = 0, length = 4 * PAGE;
    struct bb_dma_mapping *mapping;

    cr_assert_eq(bb_dirty_client_create(machine.ctx, "test", &client, NULL), BB_OK);
    cr_assert_eq(bb_dirty_start(machine.ctx, client, machine.ram, NULL), BB_OK);
    mapping = map(PAGE + 8, &length, BB_DMA_BOTH);
    cr_assert_eq(bb_dirty_sync_and_clear(machine.ctx, client, machine.ram, 0, RAM_BYTES, &bitmap,
                                         &pages, NULL),
                 BB_OK);
    cr_assert_eq(pages, 0);
    unmap(mapping, PAGE);
    cr_assert_eq(bb_dirty_sync_and_clear(machine.ctx, client, machine.ram, 0, RAM_BYTES, &bitmap,
                                         &pages, NULL),
                 BB_OK);
    cr_assert_eq(bitmap, 6, "%llx", (unsigned long long)bitmap);
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client, NULL), BB_OK);
}

/* An allocator that gives only so often. */
static uint32_t allocations_left;

static void *counted_alloc(void *opaque, size_t bytes, size_t align)
{
    void *memory = NULL;

    (void)opaque;
    if (bb_load_relaxed(&allocations_left) == 0) {
        return NULL;
    }
    bb_store_relaxed(&allocations_left, bb_load_relaxed(&allocations_left) - 1);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void counted_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    free(memory);
}

Test(dma_map, without_memory_nothing_is_mapped_and_nothing_is_kept)
{
    struct bb_allocator allocator = {counted_alloc, counted_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};
    struct probe device = {0};
    struct machine meagre;
    struct bb_error err = {0};

    bb_store_relaxed(&allocations_left, UINT32_MAX);
    machine_make(&meagre, &config);
    probe_make(&meagre, &device, "device", 0, BB_CLASS_LOCKFREE);
    for (unsigned given = 0; given < 2; given++) {
        struct bb_dma_mapping *mapping = NULL;
        uint64_t length = BB_BOUNCE_MAX;

        bb_store_relaxed(&allocations_left, given);
        int result = bb_dma_map(meagre.ctx, meagre.mmio, device.gpa, &length, BB_DMA_BOTH, nobody,
                                &mapping, &err);
        bb_store_relaxed(&allocations_left, UINT32_MAX);
        cr_assert_eq(result, BB_E_NOMEM);
        cr_assert_null(mapping);
        cr_assert_eq(length, BB_BOUNCE_MAX);
        cr_assert_eq(bb_mappings_left_(meagre.engine), 0);
    }
    /* What was reserved for it can be had. */
    static struct bb_dma_mapping *all[BB_BOUNCE_TOTAL / DEVICE_BYTES];
    for (unsigned i = 0; i < BB_ARRAY_LEN(all); i++) {
        uint64_t length = DEVICE_BYTES;
        cr_assert_eq(bb_dma_map(meagre.ctx, meagre.mmio, device.gpa, &length, BB_DMA_TO_GUEST,
                                nobody, &all[i], &err),
                     BB_OK, "%u: %s", i, err.text);
    }
    for (unsigned i = 0; i < BB_ARRAY_LEN(all); i++) {
        cr_assert_eq(bb_dma_unmap(meagre.ctx, all[i], 0), BB_OK);
    }
    probe_drop(&device);
    machine_drop(&meagre);
}

/* In callbacks. */

static int map_in_callback(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                           uint64_t value)
{
    uint64_t length = 64;
    struct bb_dma_mapping *mapping = NULL;

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_map(ctx, machine.mmio, 0x200, &length, BB_DMA_BOTH, nobody, &mapping, NULL),
                 BB_OK);
    cr_assert(!bb_dma_bounced(mapping));
    memset(bb_dma_host(mapping), 3, 64);
    cr_assert_eq(bb_dma_unmap(ctx, mapping, 64), BB_OK);

    /* Once a write is posted: through it, and behind it. */
    cr_assert_eq(bb_dma_fill(ctx, machine.mmio, bank.gpa, 9, 64, nobody, NULL), BB_OK);
    cr_assert_eq(bb_dma_fill(ctx, machine.mmio, 0x200, 4, 32, nobody, NULL), BB_OK);
    length = 64;
    cr_assert_eq(bb_dma_map(ctx, machine.mmio, 0x200, &length, BB_DMA_BOTH, nobody, &mapping, NULL),
                 BB_OK);
    cr_assert(bb_dma_bounced(mapping));
    cr_assert_eq(((uint8_t *)bb_dma_host(mapping))[31], 4, "its own posted write is seen");
    cr_assert_eq(((uint8_t *)bb_dma_host(mapping))[32], 3);
    memset(bb_dma_host(mapping), 5, 64);
    cr_assert_eq(bb_dma_unmap(ctx, mapping, 64), BB_OK);
    cr_assert_eq(machine.ram_host[0x200], 3, "nothing overtakes what was posted");

    /* A device that may not be read now can't be mapped to be read. */
    length = 8;
    cr_assert_eq(
        bb_dma_map(ctx, machine.mmio, bank.gpa, &length, BB_DMA_FROM_GUEST, nobody, &mapping, NULL),
        BB_E_DEVICE);
    return BB_OK;
}

Test(dma_map, in_a_callback_a_mapping_keeps_the_order_of_what_was_posted)
{
    struct probe device = {.write = map_in_callback};

    bank_make(BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &device, "device", 0, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, device.gpa, 4, 1);
    cr_assert_eq(device.writes, 1);
    cr_assert_eq(bank_bytes[0], 9);
    cr_assert_eq(machine.ram_host[0x200], 5);
    cr_assert_eq(machine.ram_host[0x23f], 5);
    cr_assert_eq(bb_mappings_left_(machine.engine), 0);
    probe_drop(&device);
    probe_drop(&bank);
}

/* Through translations. */

static struct {
    unsigned access;
    bb_gpa_t base;
} table;

static int walk(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    (void)ctx;
    (void)opaque;
    (void)access;
    if (attrs.requester_id != 3) {
        return BB_E_DEVICE;
    }
    *entry = (struct bb_iommu_entry){.target = machine.mmio,
                                     .iova = iova & ~UINT64_C(0xfff),
                                     .translated = table.base + (iova & ~UINT64_C(0xfff)),
                                     .page_bits = 12,
                                     .access = table.access};
    return BB_OK;
}

Test(dma_map, a_translated_mapping_ends_with_its_page_and_needs_what_its_direction_needs)
{
    static const struct bb_iommu_ops ops = {walk};
    struct bb_iommu_config config = {.name = "iommu", .size_bytes = 0x100000, .ops = &ops};
    struct bb_attrs attrs = {.requester_id = 3};
    struct bb_region *iommu;
    struct bb_dma_mapping *mapping = NULL;
    uint64_t length = 0x2000, old = 0;

    bank_make(BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_iommu_create(machine.ctx, bank.device, &config, &iommu, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0x10000000, iommu, NULL), BB_OK);
    table.base = 0x4000;
    table.access = BB_IOMMU_READ | BB_IOMMU_WRITE;
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x10000010, &length, BB_DMA_BOTH, attrs,
                            &mapping, NULL),
                 BB_OK);
    cr_assert_eq(length, 0xff0);
    cr_assert_eq(bb_dma_host(mapping), machine.ram_host + 0x4010);
    unmap(mapping, 0);
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x10000010, &length, BB_DMA_BOTH, nobody,
                            &mapping, NULL),
                 BB_E_DEVICE, "another requester");

    /* Only to be written: not to be mapped for both, nor to be changed atomically. */
    table.access = BB_IOMMU_WRITE;
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, iommu, 0, 0xfffff, NULL), BB_OK);
    length = 8;
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x10000010, &length, BB_DMA_TO_GUEST, attrs,
                            &mapping, NULL),
                 BB_OK);
    unmap(mapping, 0);
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x10000010, &length, BB_DMA_BOTH, attrs,
                            &mapping, NULL),
                 BB_E_DEVICE);
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x10000010, 8, BB_LITTLE_ENDIAN, attrs,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DEVICE);
    table.access = BB_IOMMU_READ | BB_IOMMU_WRITE;
    cr_assert_eq(bb_dma_atomic(machine.ctx, machine.mmio, 0x10000010, 8, BB_LITTLE_ENDIAN, attrs,
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_OK);
    cr_assert_eq(machine.ram_host[0x4010], 1);

    /* A bounce buffer is written back to where its address leads by then. */
    table.base = bank.gpa;
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, iommu, 0, 0xfffff, NULL), BB_OK);
    length = 8;
    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0x10000000, &length, BB_DMA_BOTH, attrs,
                            &mapping, NULL),
                 BB_OK);
    cr_assert(bb_dma_bounced(mapping));
    memset(bb_dma_host(mapping), 0x44, 8);
    table.base = 0x8000;
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, iommu, 0, 0xfffff, NULL), BB_OK);
    unmap(mapping, 8);
    cr_assert_eq(machine.ram_host[0x8007], 0x44);
    cr_assert_eq(bank_bytes[7], 7);

    /* And a copy goes from page to page. */
    uint8_t from[0x1800];
    memset(from, 0x31, sizeof(from));
    cr_assert_eq(
        bb_dma_write(machine.ctx, machine.mmio, 0x10000801, from, sizeof(from), attrs, NULL),
        BB_OK);
    cr_assert_eq(machine.ram_host[0x8800], 0);
    cr_assert_eq(machine.ram_host[0x8801], 0x31);
    cr_assert_eq(machine.ram_host[0xa000], 0x31);
    cr_assert_eq(machine.ram_host[0xa001], 0);
    probe_drop(&bank);
}
