/* SPDX-License-Identifier: MIT */
/*
 * DMA inside callbacks: what is done at once, what is posted and in which order it is then made,
 * what a read sees of it, and that no bound can be passed or memory lost.
 */
#include "fixture.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../engine/dma.h"
#include "../../memory/doorbell.h"

enum { BIG = 256 << 10 };
#define BIG_GPA UINT64_C(0x40000000)

static struct machine machine;
static const struct bb_attrs nobody;
static char trace[256];
static uint64_t ram_at_message;

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    (void)address;
    (void)data;
    memcpy(&ram_at_message, machine.ram_host, 8);
    strcat(trace, "m");
    return BB_OK;
}

static void setup(void)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver},
                                      .external_lock = outer_hooks};

    trace[0] = '\0';
    ram_at_message = 0;
    machine_make(&machine, &config);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(dma_posted, .init = setup, .fini = teardown, .timeout = 60);

static struct probe a, b;

/* b remembers what it is written. */
static uint8_t b_bytes[DEVICE_BYTES];
static unsigned b_count;
static struct bb_attrs b_attrs;

static int b_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                   uint64_t value)
{
    (void)probe;
    memcpy(&b_bytes[offset], &value, size);
    b_attrs = bb_access_attrs(ctx);
    b_count++;
    if (strlen(trace) < 200) {
        strcat(trace, "b");
    }
    return BB_OK;
}

static int b_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t *value)
{
    (void)probe;
    b_attrs = bb_access_attrs(ctx);
    memcpy(value, &b_bytes[offset], size);
    return BB_OK;
}

/* What a does when it is written: a step of the test, which may not assert where it is not in the
 * main thread's access; all of them are. */
static void make(enum bb_class klass_a, enum bb_class klass_b,
                 int (*step)(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                             unsigned size, uint64_t value))
{
    b_count = 0;
    memset(b_bytes, 0, sizeof(b_bytes));
    a = (struct probe){.write = step};
    b = (struct probe){.write = b_write, .read = b_read};
    probe_make(&machine, &a, "a", 0, klass_a);
    probe_make(&machine, &b, "b", 1, klass_b);
}

static void drop(void)
{
    probe_drop(&a);
    probe_drop(&b);
}

static uint8_t bytes[BIG];

static int ram_at_once(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    uint64_t back = 0, old = 0;
    uint8_t copy[300];
    size_t done = 0;

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_write(ctx, machine.mmio, 0x101, bytes, 300, nobody, &done), BB_OK);
    cr_assert_eq(done, 300);
    cr_assert_eq(memcmp(machine.ram_host + 0x101, bytes, 300), 0, "written at once");
    cr_assert_eq(bb_dma_read(ctx, machine.mmio, 0x101, copy, 300, nobody, NULL), BB_OK);
    cr_assert_eq(memcmp(copy, bytes, 300), 0);
    cr_assert_eq(bb_dma_fill(ctx, machine.mmio, 0x400, 0x33, 9, nobody, NULL), BB_OK);
    cr_assert_eq(machine.ram_host[0x408], 0x33);
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, 0x500, 8, BB_BIG_ENDIAN, nobody, 5), BB_OK);
    cr_assert_eq(bb_dma_atomic(ctx, machine.mmio, 0x500, 8, BB_BIG_ENDIAN, nobody, BB_ATOMIC_ADD, 0,
                               1, &old),
                 BB_OK);
    cr_assert_eq(old, 5);
    cr_assert_eq(bb_dma_load(ctx, machine.mmio, 0x500, 8, BB_BIG_ENDIAN, nobody, &back), BB_OK);
    cr_assert_eq(back, 6);
    return BB_OK;
}

Test(dma_posted, ram_is_reached_at_once_whatever_the_chain_holds)
{
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(i * 11 + 1);
    }
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        memset(machine.ram_host, 0, 0x1000);
        make((enum bb_class)klass, BB_CLASS_LOCKFREE, ram_at_once);
        mmio_write(&machine, a.gpa, 4, 1);
        cr_assert_eq(a.writes, 1);
        cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 0);
        drop();
    }
}

/* A command to b, then data to RAM, then a message. */
static int command_data_message(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                unsigned size, uint64_t value)
{
    struct bb_attrs attrs = {.requester_id = 77};
    uint64_t back = 0, old = 0;
    uint8_t copy[0x300];

    (void)probe;
    (void)offset;
    (void)size;
    cr_assert_eq(bb_dma_write(ctx, machine.mmio, b.gpa, bytes, 24, attrs, NULL), BB_OK);
    cr_assert_eq(b_count, 0, "posted");
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, 0, 8, BB_LITTLE_ENDIAN, nobody, value), BB_OK);
    cr_assert_eq(bb_dma_fill(ctx, machine.mmio, 0x100, 0xab, 0x200, nobody, NULL), BB_OK);
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, 0x180, 2, BB_BIG_ENDIAN, nobody, 0x1234), BB_OK);
    cr_assert_eq(machine.ram_host[0x100], 0, "data is not seen before the command");
    cr_assert_eq(machine.ram_host[0], 0, "nor a single value");

    /* Its own reads see all of it, in order. */
    cr_assert_eq(bb_dma_load(ctx, machine.mmio, 0, 8, BB_LITTLE_ENDIAN, nobody, &back), BB_OK);
    cr_assert_eq(back, value);
    cr_assert_eq(bb_dma_read(ctx, machine.mmio, 0x80, copy, 0x300, nobody, NULL), BB_OK);
    cr_assert_eq(copy[0x7f], 0);
    cr_assert_eq(copy[0x80], 0xab);
    cr_assert_eq(copy[0x100], 0x12);
    cr_assert_eq(copy[0x101], 0x34);
    cr_assert_eq(copy[0x102], 0xab);
    cr_assert_eq(copy[0x27f], 0xab);
    cr_assert_eq(copy[0x280], 0);
    cr_assert_eq(bb_mmio_read(ctx, machine.mmio, 0x180, 4, &back), BB_OK);
    cr_assert_eq(back, 0xabab3412);

    /* What can't queue is refused. */
    cr_assert_eq(bb_dma_atomic(ctx, machine.mmio, 0x40, 8, BB_LITTLE_ENDIAN, nobody, BB_ATOMIC_ADD,
                               0, 1, &old),
                 BB_E_DEVICE);
    cr_assert_eq(bb_msi_send(ctx, 0xfee00000, 1), BB_OK);
    strcat(trace, ".");
    return BB_OK;
}

/* MAY_SLEEP: in no section, where outermost accesses take shorter ways. */
Test(dma_posted, what_comes_behind_a_posted_write_is_seen_behind_it)
{
    static const enum bb_class classes[] = {BB_CLASS_DEVICE_LOCK, BB_CLASS_MAY_SLEEP};

    for (unsigned i = 0; i < BB_ARRAY_LEN(classes); i++) {
        memset(machine.ram_host, 0, 0x1000);
        trace[0] = '\0';
        make(classes[i], BB_CLASS_DEVICE_LOCK, command_data_message);
        mmio_write(&machine, a.gpa, 8, 0x1122334455667788);
        cr_assert_str_eq(trace, ".bbbm");
        cr_assert_eq(memcmp(b_bytes, bytes, 24), 0);
        cr_assert_eq(b_attrs.requester_id, 77, "a posted write keeps its attributes");
        cr_assert_eq(ram_at_message, 0x1122334455667788, "announced before the data was there");
        cr_assert_eq(machine.ram_host[0x100], 0xab);
        cr_assert_eq(machine.ram_host[0x180], 0x12);
        cr_assert_eq(machine.ram_host[0x2ff], 0xab);
        cr_assert_eq(bb_engine_stats(machine.ctx).nested_refused, i + 1);
        drop();
    }
}

static int half_ram(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                    uint64_t value)
{
    size_t done = 0;

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_write(ctx, machine.mmio, RAM_BYTES - 16, bytes, 16 + 100, nobody, &done),
                 BB_OK);
    cr_assert_eq(done, 116);
    cr_assert_eq(memcmp(machine.ram_host + RAM_BYTES - 16, bytes, 16), 0, "RAM at once");
    cr_assert_eq(b_count, 0, "the device later");
    return BB_OK;
}

Test(dma_posted, a_write_of_ram_and_a_locked_device_does_ram_at_once_and_posts_the_rest_as_one)
{
    for (size_t i = 0; i < 256; i++) {
        bytes[i] = (uint8_t)(i + 1);
    }
    make(BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK, half_ram);
    cr_assert_eq(bb_region_move(machine.ctx, b.region, RAM_BYTES, NULL), BB_OK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(memcmp(b_bytes, bytes + 16, 100), 0);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 1);
    drop();
}

static int lockfree_to_lockfree(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                unsigned size, uint64_t value)
{
    struct bb_attrs attrs = {.requester_id = 5, .privileged = true};
    uint8_t copy[100];

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_write(ctx, machine.mmio, b.gpa, bytes, 100, attrs, NULL), BB_OK);
    cr_assert_eq(memcmp(b_bytes, bytes, 100), 0, "at once");
    cr_assert(b_attrs.requester_id == 5 && b_attrs.privileged);
    cr_assert_eq(bb_access_attrs(ctx).requester_id, 0, "a's own are what they were");
    cr_assert_eq(bb_dma_read(ctx, machine.mmio, b.gpa, copy, 100, nobody, NULL), BB_OK);
    cr_assert_eq(memcmp(copy, bytes, 100), 0);
    return BB_OK;
}

Test(dma_posted, lockfree_reaches_lockfree_at_once)
{
    memset(bytes, 0x66, 100);
    make(BB_CLASS_LOCKFREE, BB_CLASS_LOCKFREE, lockfree_to_lockfree);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(a.writes, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 0);
    drop();
}

static int read_locked(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    uint8_t copy[16];
    size_t done = 0;
    uint64_t back = 3;

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    memset(copy, 0x11, sizeof(copy));
    cr_assert_eq(bb_dma_read(ctx, machine.mmio, RAM_BYTES - 8, copy, 16, nobody, &done),
                 BB_E_DEVICE);
    cr_assert_eq(done, 8);
    cr_assert_eq(copy[8], 0x11);
    cr_assert_eq(bb_dma_load(ctx, machine.mmio, RAM_BYTES, 4, BB_LITTLE_ENDIAN, nobody, &back),
                 BB_E_DEVICE);
    cr_assert_eq(back, 3);
    return BB_OK;
}

Test(dma_posted, a_read_that_may_not_run_at_once_is_a_device_error_and_counted)
{
    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_LOCKFREE, read_locked);
    cr_assert_eq(bb_region_move(machine.ctx, b.region, RAM_BYTES, NULL), BB_OK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).nested_refused, 2);
    cr_assert_eq(b.reads, 0);
    drop();
}

static int write_self(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    size_t done = 9;

    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_write(ctx, machine.mmio, probe->gpa, bytes, 64, nobody, &done),
                 BB_E_DEVICE);
    cr_assert_eq(done, 0);
    return BB_OK;
}

static int write_b_writes_a(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                            uint64_t value)
{
    struct probe *to = probe == &a ? &b : &a;

    (void)offset;
    (void)size;
    (void)value;
    (void)bb_dma_write(ctx, machine.mmio, to->gpa, bytes, 64, nobody, NULL);
    return BB_OK;
}

Test(dma_posted, a_device_that_reaches_itself_by_dma_is_refused_and_counted)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        uint64_t before = bb_engine_stats(machine.ctx).reentrant;
        make((enum bb_class)klass, BB_CLASS_DEVICE_LOCK, write_self);
        mmio_write(&machine, a.gpa, 4, 1);
        cr_assert_eq(a.writes, 1);
        cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, before + 1);
        drop();
    }
    /* By way of another device, from a posted bulk write. */
    uint64_t before = bb_engine_stats(machine.ctx).reentrant;
    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_DEVICE_LOCK, write_b_writes_a);
    b.write = write_b_writes_a;
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(a.writes, 1);
    cr_assert_eq(b.writes, 8);
    cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, before + 8);
    drop();
}

static int fill_all_of_b(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    return bb_dma_fill(ctx, machine.mmio, b.gpa, 1, BIG, nobody, NULL);
}

Test(dma_posted, a_posted_bulk_write_to_a_device_is_made_however_long_it_is)
{
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK, .size_bytes = BIG};

    a = (struct probe){.write = fill_all_of_b};
    b = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make_config(&machine, &b, "b", 0x1000, &config);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(b.writes, BIG / 8);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, 0);
    drop();
}

/* Effects of a bulk write's callbacks run behind it and before what was posted later. */
static int two_bulks(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    cr_assert_eq(bb_dma_fill(ctx, machine.mmio, b.gpa, 1, 16, nobody, NULL), BB_OK);
    cr_assert_eq(bb_msi_send(ctx, 0, 0), BB_OK);
    return BB_OK;
}

static void note_c(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)ctx;
    (void)opaque;
    (void)argument;
    strcat(trace, "c");
}

static int b_posts(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                   uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    strcat(trace, "b");
    return bb_post(ctx, probe->device, note_c, NULL, 0);
}

Test(dma_posted, what_a_posted_bulk_write_causes_comes_before_what_was_posted_after_it)
{
    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_DEVICE_LOCK, two_bulks);
    b.write = b_posts;
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, "bbccm", "%s", trace);
    drop();
}

/* A doorbell of b, which is a device that is locked, is no callback of it. */
static int bell;
static uint64_t rung_in_callback;

static uint64_t rung(void)
{
    uint64_t count = 0;

    return read(bell, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static int ring_b(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    if (value == 2) {
        cr_assert_eq(bb_dma_store(ctx, machine.mmio, b.gpa, 4, BB_LITTLE_ENDIAN, nobody, 1), BB_OK);
        cr_assert_eq(b_count, 0, "posted");
    }
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, b.gpa + 16, 4, BB_LITTLE_ENDIAN, nobody, 1),
                 BB_OK);
    rung_in_callback = rung();
    return BB_OK;
}

Test(dma_posted, a_doorbell_is_rung_at_once_and_behind_a_posted_write_in_its_turn)
{
    struct bb_txn *txn;

    bell = eventfd(0, EFD_NONBLOCK);
    struct bb_doorbell doorbell = {.offset = 16, .size = 4, .fd = bell};

    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_DEVICE_LOCK, ring_b);
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, b.region, &doorbell, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(rung_in_callback, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 0);
    mmio_write(&machine, a.gpa, 4, 2);
    cr_assert_eq(rung_in_callback, 0);
    cr_assert_eq(rung(), 1);
    cr_assert_eq(b_count, 1, "the doorbell itself ran no callback");
    drop();
    close(bell);
}

/* Bounds. */

static int results[8];
static size_t dones[8];

static int post_too_much(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    (void)bb_dma_store(ctx, machine.mmio, b.gpa, 4, BB_LITTLE_ENDIAN, nobody, 1);
    for (unsigned i = 0; i < 5; i++) {
        results[i] =
            bb_dma_write(ctx, machine.mmio, BIG_GPA + i * 8, bytes, BIG, nobody, &dones[i]);
    }
    results[5] = bb_dma_fill(ctx, machine.mmio, BIG_GPA, 1, SIZE_MAX / 2, nobody, &dones[5]);
    results[6] = bb_dma_fill(ctx, machine.mmio, BIG_GPA + BIG, 0x77, 8, nobody, &dones[6]);
    return BB_OK;
}

Test(dma_posted, what_a_chain_posts_is_bounded_and_the_next_chain_has_it_anew)
{
    struct bb_ram_config config = {.name = "big", .size_bytes = BIG * 2};
    struct bb_region *big;
    uint8_t *host;

    cr_assert_eq(bb_ram_create(machine.ctx, &config, &big, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, BIG_GPA, big, NULL), BB_OK);
    host = bb_region_host(big);
    memset(bytes, 0x21, sizeof(bytes));
    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_DEVICE_LOCK, post_too_much);
    for (unsigned round = 1; round <= 3; round++) {
        struct bb_heap_usage before = bb_engine_memory(machine.engine);
        mmio_write(&machine, a.gpa, 4, 1);
        struct bb_heap_usage after = bb_engine_memory(machine.engine);
        for (unsigned i = 0; i < 3; i++) {
            cr_assert_eq(results[i], BB_OK);
            cr_assert_eq(dones[i], BIG);
        }
        /* 1 MiB is four of these; but 4 bytes are taken already. */
        cr_assert_eq(results[3], BB_E_LIMIT);
        cr_assert_eq(dones[3], 0);
        cr_assert_eq(results[5], BB_E_LIMIT);
        cr_assert_eq(dones[5], 0);
        cr_assert_eq(results[6], BB_OK);
        cr_assert_eq(host[BIG + 7], 0x77);
        cr_assert_eq(host[BIG + 15], 0x21, "the third");
        cr_assert_eq(host[BIG + 16], 0, "the fourth was refused whole");
        cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, round * 3);
        /* Less where something was reclaimed meanwhile; and the fixture looks for leaks. */
        cr_assert_leq(after.live_bytes, before.live_bytes);
    }
    drop();
    cr_assert_eq(bb_region_remove_wait(machine.ctx, big, NULL), BB_OK);
}

static int fill_queue(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    int result = BB_OK;

    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    for (unsigned i = 0; i < 64; i++) {
        cr_assert_eq(bb_dma_fill(ctx, machine.mmio, b.gpa, (uint8_t)i, 64, nobody, NULL), BB_OK);
    }
    result = bb_dma_fill(ctx, machine.mmio, b.gpa, 99, 64, nobody, &dones[0]);
    cr_assert_eq(result, BB_E_LIMIT);
    cr_assert_eq(dones[0], 0);
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, b.gpa, 4, BB_LITTLE_ENDIAN, nobody, 99),
                 BB_E_LIMIT);
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, 0, 4, BB_LITTLE_ENDIAN, nobody, 99), BB_E_LIMIT,
                 "RAM has to queue as well");
    return BB_OK;
}

Test(dma_posted, a_full_queue_refuses_and_what_was_posted_still_runs)
{
    make(BB_CLASS_DEVICE_LOCK, BB_CLASS_DEVICE_LOCK, fill_queue);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(b_count, 64 * 8);
    cr_assert_eq(b_bytes[63], 63);
    cr_assert_eq(machine.ram_host[0], 0);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, 3);
    drop();
}

/* An allocator that has had enough. */
static uint64_t refuse_over;

static void *meagre_alloc(void *opaque, size_t wanted, size_t align)
{
    void *memory = NULL;

    (void)opaque;
    if (wanted > bb_load_relaxed(&refuse_over)) {
        return NULL;
    }
    return posix_memalign(&memory, align, wanted) == 0 ? memory : NULL;
}

static void meagre_free(void *opaque, void *memory, size_t size)
{
    (void)opaque;
    (void)size;
    free(memory);
}

static struct machine meagre;

static int post_without_memory(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                               unsigned size, uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    bb_store_relaxed(&refuse_over, 0);
    results[0] = bb_dma_fill(ctx, meagre.mmio, b.gpa, 1, 128, nobody, &dones[0]);
    results[1] = bb_dma_fill(ctx, meagre.mmio, b.gpa, 1, 32, nobody, &dones[1]);
    bb_store_relaxed(&refuse_over, UINT64_MAX);
    return BB_OK;
}

Test(dma_posted, without_memory_a_bulk_write_is_refused_whole_and_a_few_bytes_need_none)
{
    struct bb_allocator allocator = {meagre_alloc, meagre_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};

    bb_store_relaxed(&refuse_over, UINT64_MAX);
    machine_make(&meagre, &config);
    b_count = 0;
    a = (struct probe){.write = post_without_memory};
    b = (struct probe){.write = b_write};
    probe_make(&meagre, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&meagre, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&meagre, a.gpa, 4, 1);
    cr_assert_eq(results[0], BB_E_NOMEM);
    cr_assert_eq(dones[0], 0);
    cr_assert_eq(results[1], BB_OK);
    cr_assert_eq(b_count, 4);
    cr_assert_eq(bb_engine_stats(meagre.ctx).effects_refused, 1);
    drop();
    machine_drop(&meagre);
}

/* A thread that ends in a callback takes what it posted with it. */
static int post_and_end(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    (void)bb_dma_fill(ctx, machine.mmio, b.gpa, 1, 200, nobody, NULL);
    (void)bb_dma_fill(ctx, machine.mmio, 0, 1, 5000, nobody, NULL);
    pthread_exit(NULL);
}

static void *ending_thread(void *arg)
{
    struct bb_ctx *ctx;

    (void)arg;
    if (bb_ctx_attach(machine.engine, "ends", &ctx, NULL) != BB_OK) {
        abort();
    }
    (void)bb_mmio_write(ctx, machine.mmio, a.gpa, 4, 1);
    return NULL;
}

Test(dma_posted, a_thread_that_ends_in_a_callback_leaves_none_of_its_bytes_behind)
{
    struct bb_heap_usage before, after;
    pthread_t thread;

    make(BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK, post_and_end);
    before = bb_engine_memory(machine.engine);
    cr_assert_eq(pthread_create(&thread, NULL, ending_thread, NULL), 0);
    pthread_join(thread, NULL);
    after = bb_engine_memory(machine.engine);
    cr_assert_leq(after.live_bytes, before.live_bytes);
    cr_assert_eq(b_count, 0);
    drop();
}
