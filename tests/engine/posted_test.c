/* SPDX-License-Identifier: MIT */
/* What becomes of writes that are not made at once, and of accesses of a thread that holds a lock.
 */
#include "target.h"

TestSuite(posted, .init = world_setup, .fini = world_drop, .timeout = 60);

Test(posted, a_posted_write_is_made_and_not_left_with_the_coalesced_ones)
{
    other.write = note_and_post;
    other.arg = &target.probe;
    mmio_write(&machine, other.gpa, 4, 7);
    cr_assert_eq(made_count, 2, "when the access returns all that it set off is done");
    assert_made(0, &other, 0, 4, 7);
    cr_assert_eq(made[1].probe, &target.probe);
    cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, 0);
    /* It drains nothing either: only outermost accesses do. */
    leave(0, 4, 1);
    mmio_write(&machine, other.gpa, 4, 8);
    cr_assert_eq(made_count, 4);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 3);
}

static void add_counts(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    (void)name;
    *(uint64_t *)opaque += counts->writes;
}

Test(posted, a_coalesced_write_counts_when_it_is_made_and_once)
{
    uint64_t writes = 0;

    bb_engine_count_accesses(machine.ctx, true);
    leave(0, 4, 1);
    leave(8, 8, 2);
    bb_region_counts_each(machine.ctx, target.probe.region, add_counts, &writes);
    cr_assert_eq(writes, 0);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    bb_region_counts_each(machine.ctx, target.probe.region, add_counts, &writes);
    cr_assert_eq(writes, 2);
}

/* Writes to the probe at `arg`, then to memory, which has to queue; then has that address show this
 * very device. */
static int post_and_move(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    struct probe *next = probe->arg;

    (void)offset;
    (void)size;
    if (value == 1) {
        cr_assert_eq(bb_mmio_write(ctx, machine.mmio, next->gpa, 4, 2), BB_OK);
        cr_assert_eq(bb_mmio_write(ctx, machine.mmio, 0x2000, 4, 3), BB_OK);
        cr_assert_eq(bb_space_unmap(ctx, machine.ram, NULL), BB_OK);
        cr_assert_eq(bb_region_move(ctx, probe->region, 0x2000, NULL), BB_OK);
    }
    return BB_OK;
}

Test(posted, a_write_that_leads_back_to_its_poster_by_the_time_it_is_made_is_refused_and_counted)
{
    struct probe poster = {.write = post_and_move, .arg = &target.probe};
    struct bb_engine_stats before, after;

    probe_make(&machine, &poster, "poster", 5, BB_CLASS_DEVICE_LOCK);
    before = bb_engine_stats(machine.ctx);
    mmio_write(&machine, poster.gpa, 4, 1);
    after = bb_engine_stats(machine.ctx);
    cr_assert_eq(poster.writes, 1);
    cr_assert_eq(made_count, 1);
    cr_assert_eq(after.reentrant - before.reentrant, 1);
    cr_assert_eq(after.refused - before.refused, 1);
    /* In a chain of its own it is no loop. */
    mmio_write(&machine, 0x2000, 4, 4);
    cr_assert_eq(poster.writes, 2);
    cr_assert_eq(bb_space_unmap(machine.ctx, poster.region, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0, machine.ram, NULL), BB_OK);
    probe_drop(&poster);
}

/* Writes to the target, which is posted, and behind that to memory, which it reads then. */
static int write_and_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                          uint64_t value)
{
    (void)offset;
    (void)size;
    cr_assert_eq(bb_mmio_write(ctx, machine.mmio, target.probe.gpa, 4, value), BB_OK);
    cr_assert_eq(bb_mmio_write(ctx, machine.mmio, 0x200, 4, value), BB_OK);
    return bb_mmio_read(ctx, machine.mmio, 0x200, 4, probe->arg);
}

static void set_read_only(bool read_only)
{
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_read_only(txn, machine.ram, read_only, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
}

Test(posted, memory_is_read_as_the_chain_leaves_it_and_read_only_memory_as_it_is)
{
    uint64_t seen = 0;

    mmio_write(&machine, 0x200, 4, 0x1111);
    other.write = write_and_read;
    other.arg = &seen;
    mmio_write(&machine, other.gpa, 4, 0x2222);
    cr_assert_eq(seen, 0x2222);
    cr_assert_eq(mmio_read(&machine, 0x200, 4), 0x2222);
    set_read_only(true);
    mmio_write(&machine, other.gpa, 4, 0x3333);
    cr_assert_eq(seen, 0x2222);
    cr_assert_eq(mmio_read(&machine, 0x200, 4), 0x2222);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 1);
}

Test(posted, under_a_ranked_lock_an_outermost_access_waits_for_no_other)
{
    static const int wanted[] = {
        [BB_CLASS_LOCKFREE] = BB_OK,
        [BB_CLASS_DEVICE_LOCK] = BB_E_CONTEXT,
        [BB_CLASS_MAY_SLEEP] = BB_E_CONTEXT,
        [BB_CLASS_EXTERNAL_LOCK] = BB_E_CONTEXT,
    };

    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct probe probe = {.write = NULL};
        uint64_t value = 0;

        probe_make(&machine, &probe, "probe", klass + 2, (enum bb_class)klass);
        bb_device_lock(machine.ctx, other.device);
        cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, probe.gpa, 4, 1), wanted[klass]);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa, 4, &value), wanted[klass]);
        cr_assert_eq(value, wanted[klass] == BB_OK ? 0 : UINT32_MAX);
        cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x300, 4, klass), BB_OK);
        bb_device_unlock(machine.ctx, other.device);
        cr_assert_eq(probe.writes, wanted[klass] == BB_OK ? 1 : 0);
        mmio_write(&machine, probe.gpa, 4, 1);
        probe_drop(&probe);
    }
}
