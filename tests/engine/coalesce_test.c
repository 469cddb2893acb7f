/* SPDX-License-Identifier: MIT */
/* Coalesced writes: when they are made, which are taken, and in which order they are made. */
#include "target.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../memory/doorbell.h"

TestSuite(coalesce_memory, .timeout = 60);
TestSuite(coalesce, .init = world_setup, .fini = world_drop, .timeout = 120);

/* When they are made. */

Test(coalesce, writes_are_left_until_any_region_of_their_device_is_read)
{
    leave(0, 1, 0x11);
    leave(RANGE - 8, 8, UINT64_C(0x1122334455667788));
    leave(6, 2, 0xbeef);
    leave(8, 4, 0xcafe0000);
    leave(8, 4, 0);
    cr_assert_eq(made_count, 0);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 5);
    cr_assert_eq(made_count, 5);
    assert_made(0, &target.probe, 0, 1, 0x11);
    assert_made(1, &target.probe, RANGE - 8, 8, UINT64_C(0x1122334455667788));
    assert_made(2, &target.probe, 6, 2, 0xbeef);
    assert_made(3, &target.probe, 8, 4, 0xcafe0000);
    assert_made(4, &target.probe, 8, 4, 0);
    leave(0, 4, 1);
    (void)mmio_read(&machine, target.probe.gpa + 4, 4);
    cr_assert_eq(made_count, 6);
}

Test(coalesce, writes_are_made_before_any_other_write_to_their_device)
{
    leave(0, 4, 1);
    mmio_write(&machine, target.status_gpa, 4, 2);
    leave(0, 4, 3);
    mmio_write(&machine, target.probe.gpa + RANGE, 4, 4); /* behind the range */
    leave(0, 4, 5);
    mmio_write(&machine, target.probe.gpa + RANGE - 4, 8, 6); /* half in it: not taken */
    assert_made(0, &target.probe, 0, 4, 1);
    assert_made(1, &target.probe, 0x1000, 4, 2);
    assert_made(2, &target.probe, 0, 4, 3);
    assert_made(3, &target.probe, RANGE, 4, 4);
    assert_made(4, &target.probe, 0, 4, 5);
    cr_assert_eq(made_count, 7);
}

Test(coalesce, accesses_to_another_device_leave_them)
{
    leave(0, 4, 1);
    mmio_write(&machine, other.gpa, 4, 2);
    (void)mmio_read(&machine, other.gpa, 4);
    mmio_write(&machine, 0x100, 4, 3);
    cr_assert_eq(mmio_read(&machine, 0x100, 4), 3);
    cr_assert_eq(made_count, 1);
    assert_made(0, &other, 0, 4, 2);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 1);
}

Test(coalesce, a_flush_makes_them)
{
    leave(0, 4, 1);
    leave(4, 4, 2);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, 2);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, 2);
}

static void leave_and_go(struct bb_ctx *ctx, void *arg)
{
    struct target *t = arg;

    for (uint64_t i = 0; i < 3; i++) {
        if (bb_mmio_write(ctx, machine.mmio, t->probe.gpa, 4, i) != BB_OK) {
            abort();
        }
    }
    if (bb_engine_stats(ctx).coalesced != 3) {
        abort();
    }
}

Test(coalesce, a_context_that_is_detached_leaves_none)
{
    struct worker worker;

    worker_start(&worker, &machine, "leaver", leave_and_go, &target);
    worker_join(&worker);
    cr_assert_eq(made_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_made(i, &target.probe, 0, 4, i);
    }
}

/* Many times: whoever looks first, the thread that waits or bb-control, sees them. */
Test(coalesce, a_pause_leaves_none)
{
    struct bb_error err = {0};

    for (unsigned i = 0; i < 200; i++) {
        leave(0, 4, 2 * i);
        leave(0, 4, 2 * i + 1);
        cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
        cr_assert_eq(made_count, 2 * i + 2);
        cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    }
}

static void paused(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err)
{
    (void)err;
    if (result != BB_OK || bb_engine_resume(ctx, NULL) != BB_OK) {
        abort();
    }
    door_open(opaque);
}

Test(coalesce, a_pause_without_a_thread_that_waits_leaves_none)
{
    struct door door = DOOR_INIT;

    leave(0, 4, 1);
    cr_assert_eq(bb_engine_pause_async(machine.ctx, 0, paused, &door, NULL), BB_OK);
    door_wait(&door);
    cr_assert_eq(made_count, 1);
}

static int in_order(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                    uint64_t value)
{
    (void)ctx;
    (void)probe;
    if (size == 4 && offset == value * 4 % RANGE && value == made_count) {
        made_count++;
    }
    return BB_OK;
}

Test(coalesce, a_stream_of_64_KiB_arrives_whole_and_in_order)
{
    enum { WRITES = 0x10000 / 4 };

    target.probe.write = in_order;
    for (unsigned i = 0; i < WRITES; i++) {
        mmio_write(&machine, target.probe.gpa + i * 4 % RANGE, 4, i);
        cr_assert_leq(i + 1 - made_count, RING);
    }
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, WRITES);
    cr_assert_eq(target.probe.writes, WRITES);
    uint64_t taken = bb_engine_stats(machine.ctx).coalesced;
    cr_assert_eq(taken, WRITES - WRITES / (RING + 1)); /* the one that finds it full is made */
}

Test(coalesce, a_range_taken_off_takes_no_more_and_what_it_took_is_made)
{
    leave(0, 4, 1);
    change_range(target.probe.region, 0, RANGE, false);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    mmio_write(&machine, target.probe.gpa, 4, 2);
    cr_assert_eq(made_count, 2);
    assert_made(0, &target.probe, 0, 4, 1);
    assert_made(1, &target.probe, 0, 4, 2);
}

Test(coalesce, a_write_meets_what_the_map_shows_when_it_is_made)
{
    leave(4, 4, 1);
    cr_assert_eq(bb_space_unmap(machine.ctx, target.probe.region, NULL), BB_OK);
    cr_assert_eq(bb_region_move(machine.ctx, other.region, target.probe.gpa, NULL), BB_OK);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    assert_made(0, &other, 4, 4, 1);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, other.gpa, target.probe.region, NULL),
                 BB_OK);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, other.gpa, 4, 2), BB_OK);
    cr_assert_eq(bb_space_unmap(machine.ctx, target.probe.region, NULL), BB_OK);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_writes, 1);
}

/* Which writes. */

Test(coalesce, a_range_is_found_among_as_many_as_there_can_be)
{
    struct bb_region_config config = {.size_bytes = 0x8000, .klass = BB_CLASS_DEVICE_LOCK};
    struct probe wide = {.write = note};
    struct bb_error err = {0};
    uint64_t taken = 0;

    probe_make_config(&machine, &wide, "wide", 9, &config);
    /* 4 bytes of every 16, from the highest down. */
    struct bb_txn *txn;
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    for (unsigned i = BB_COALESCED_MAX; i > 0; i--) {
        cr_assert_eq(bb_txn_coalesce(txn, wide.region, (i - 1) * 16 + 4, 4, NULL), BB_OK);
    }
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    for (unsigned i = 0; i < BB_COALESCED_MAX; i++) {
        for (unsigned at = 0; at < 16; at += 2) {
            mmio_write(&machine, wide.gpa + i * 16 + at, 2, i);
            taken += at == 4 || at == 6 ? 1 : 0;
        }
        cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, taken, "range %u", i);
    }
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(wide.writes, BB_COALESCED_MAX * 8);
    cr_assert_eq(try_range(wide.region, 0x7000, 4, true, &err), BB_E_LIMIT);
    cr_assert_not_null(strstr(err.text, "1024"), "%s", err.text);
    probe_drop(&wide);
}

Test(coalesce, an_alias_of_the_region_takes_them_too)
{
    struct bb_alias_config config = {
        .name = "window", .target = target.probe.region, .size_bytes = DEVICE_BYTES};
    struct bb_region *alias;

    cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.pio, 0x100, alias, NULL), BB_OK);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.pio, 0x104, 4, 1), BB_OK);
    leave(8, 4, 2);
    cr_assert_eq(made_count, 0);
    uint64_t value;
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.pio, 0x1f0, 4, &value), BB_OK);
    assert_made(0, &target.probe, 4, 4, 1);
    assert_made(1, &target.probe, 8, 4, 2);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, NULL), BB_OK);
}

Test(coalesce, a_write_with_attributes_is_made_at_once_behind_what_is_left)
{
    uint32_t value = 2;

    leave(0, 4, 1);
    cr_assert_eq(bb_access_write(machine.ctx, machine.mmio, target.probe.gpa, &value, 4,
                                 (struct bb_attrs){.requester_id = 8}),
                 BB_OK);
    assert_made(0, &target.probe, 0, 4, 1);
    assert_made(1, &target.probe, 0, 4, 2);
}

Test(coalesce, a_doorbell_goes_first)
{
    struct bb_doorbell bell = {.offset = 8,
                               .size = 4,
                               .match_value = true,
                               .value = 5,
                               .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    struct bb_txn *txn;
    uint64_t count = 0;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, target.probe.region, &bell, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    leave(8, 4, 4);
    mmio_write(&machine, target.probe.gpa + 8, 4, 5);
    leave(8, 4, 6);
    cr_assert_eq(read(bell.fd, &count, sizeof(count)), (ssize_t)sizeof(count));
    cr_assert_eq(count, 1);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, 2);
    close(bell.fd);
}

Test(coalesce, a_range_that_makes_no_sense_is_refused_with_what_would)
{
    static const struct {
        uint64_t offset, length;
        bool add;
        int result;
        const char *says;
    } rows[] = {
        {RANGE, 0, true, BB_E_RANGE, "no bytes"},
        {UINT64_MAX, 2, true, BB_E_RANGE, "wraps"},
        {RANGE, DEVICE_BYTES - RANGE + 1, true, BB_E_RANGE, "0xff"},
        {DEVICE_BYTES, 1, true, BB_E_RANGE, "0xff"},
        {0, 1, true, BB_E_EXIST, "0x0-0x7f"},
        {RANGE - 1, 2, true, BB_E_EXIST, "0x0-0x7f"},
        {0, DEVICE_BYTES, true, BB_E_EXIST, "0x0-0x7f"},
        {0, RANGE - 1, false, BB_E_NOENT, "0x0-0x7e"},
        {1, RANGE - 1, false, BB_E_NOENT, "0x1-0x7f"},
        {RANGE, 4, false, BB_E_NOENT, "0x80-0x83"},
        {0, 0, false, BB_E_RANGE, "no bytes"},
        {RANGE, DEVICE_BYTES - RANGE, true, BB_OK, NULL},
        {0, RANGE, false, BB_OK, NULL},
        {0, RANGE, true, BB_OK, NULL},
    };
    struct probe sleepy = {0};
    struct bb_error err = {0};

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cr_assert_eq(
            try_range(target.probe.region, rows[i].offset, rows[i].length, rows[i].add, &err),
            rows[i].result, "row %u: %s", i, err.text);
        cr_assert(rows[i].says == NULL || strstr(err.text, rows[i].says) != NULL, "row %u: %s", i,
                  err.text);
    }
    probe_make(&machine, &sleepy, "sleepy", 2, BB_CLASS_MAY_SLEEP);
    cr_assert_eq(try_range(sleepy.region, 0, 4, true, &err), BB_E_UNSUPPORTED);
    cr_assert_eq(try_range(machine.ram, 0, 4, true, &err), BB_E_INVAL);
    cr_assert_eq(try_range(NULL, 0, 4, true, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_coalesce(NULL, target.probe.region, 0, 4, &err), BB_E_INVAL);
    probe_drop(&sleepy);
}

static uint32_t allocs_left = UINT32_MAX; /* (a) engine threads allocate too */

static void *some_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    /* Relaxed: a count. */
    if (bb_load_relaxed(&allocs_left) != UINT32_MAX &&
        (int32_t)bb_fetch_add_relaxed(&allocs_left, UINT32_MAX) <= 0) {
        return NULL;
    }
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void plain_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    free(memory);
}

/* The transaction fails at its first allocation, its second, ..., and is whole when none is left
 * to fail at. */
Test(coalesce_memory, that_runs_out_leaves_doorbells_and_ranges_as_they_were)
{
    struct bb_allocator allocator = {some_alloc, plain_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};
    struct bb_doorbell bell = {.offset = 0x20, .size = 4, .fd = eventfd(0, EFD_NONBLOCK)};
    struct probe probe = {.write = note};
    int result = BB_E_NOMEM;
    uint32_t fails = 0;

    machine_make(&machine, &config);
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_DEVICE_LOCK);
    change_range(probe.region, 0x40, 4, true);
    for (; result != BB_OK; fails++) {
        struct bb_txn *txn;

        cr_assert_lt(fails, 1000);
        cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
        cr_assert_eq(bb_txn_coalesce(txn, probe.region, 0x10, 4, NULL), BB_OK);
        cr_assert_eq(bb_txn_doorbell_add(txn, probe.region, &bell, NULL), BB_OK);
        cr_assert_eq(bb_txn_uncoalesce(txn, probe.region, 0x40, 4, NULL), BB_OK);
        bb_store_relaxed(&allocs_left, fails);
        result = bb_txn_commit(txn, NULL);
        bb_store_relaxed(&allocs_left, UINT32_MAX);
        cr_assert(result == BB_OK || result == BB_E_NOMEM, "%d", result);
        made_count = 0;
        mmio_write(&machine, probe.gpa + 0x40, 4, 1);
        mmio_write(&machine, probe.gpa + 0x20, 4, 2);
        mmio_write(&machine, probe.gpa + 0x10, 4, 3);
        cr_assert_eq(made_count, result == BB_OK ? 1 : 3);
        cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, fails + 1);
        cr_assert_eq(bb_engine_stats(machine.ctx).doorbells_rung, result == BB_OK ? 1 : 0);
        cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    }
    cr_assert_gt(fails, 3);
    probe_drop(&probe);
    machine_drop(&machine);
    close(bell.fd);
}

/* Order. */

Test(coalesce, another_vcpus_write_comes_behind_what_was_left_before)
{
    struct worker worker;
    uint64_t value = 2;

    leave(0, 4, 1);
    worker_start(&worker, &machine, "second", write_one, &value);
    worker_join(&worker);
    cr_assert_eq(made_count, 2);
    assert_made(0, &target.probe, 0, 4, 1);
    assert_made(1, &target.probe, 0, 4, 2);
    leave(0, 4, 3);
}

Test(coalesce, what_a_write_causes_comes_before_the_next_of_them)
{
    struct target far = {.probe = {.write = note_and_post}};

    /* target posts to `far`, whose range takes nothing of it, and that to `other`. */
    target_make(&far, "far", 2, BB_CLASS_DEVICE_LOCK);
    far.probe.arg = &other;
    target.probe.write = note_and_post;
    target.probe.arg = &far.probe;
    for (unsigned i = 0; i < 3; i++) {
        leave(0, 4, i);
    }
    (void)mmio_read(&machine, far.status_gpa, 4);
    cr_assert_eq(made_count, 9);
    for (unsigned i = 0; i < 3; i++) {
        assert_made(3 * i, &target.probe, 0, 4, i);
        assert_made(3 * i + 1, &far.probe, 0, 4, i);
        assert_made(3 * i + 2, &other, 0, 4, i);
    }
    cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, 3);
    probe_drop(&far.probe);
}

Test(coalesce, each_write_has_a_budget_of_its_own)
{
    /* Two devices that write to each other: without a bound, for ever; with one for all together,
     * the second write would be made without its effects. */
    struct target back = {.probe = {.write = note_and_post, .arg = &target.probe}};
    struct bb_engine_stats stats;

    target_make(&back, "back", 2, BB_CLASS_DEVICE_LOCK);
    target.probe.write = note_and_post;
    target.probe.arg = &back.probe;
    leave(0, 4, 1);
    leave(0, 4, 2);
    (void)mmio_read(&machine, target.status_gpa, 4);
    stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(made_count, 4); /* each came to `back`, and was refused the way home */
    cr_assert_eq(stats.reentrant, 2);
    assert_made(3, &back.probe, 0, 4, 2);
    probe_drop(&back.probe);
}

static int refuse(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t value)
{
    (void)note(ctx, probe, offset, size, value);
    return BB_E_DEVICE;
}

Test(coalesce, a_write_that_its_device_refuses_is_counted_and_the_next_is_made)
{
    target.probe.write = refuse;
    leave(0, 4, 1);
    leave(0, 4, 2);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 0);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 2);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 2);
}
