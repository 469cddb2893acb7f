/* SPDX-License-Identifier: MIT */
/* Coalesced writes: who waits while they are made, who is refused, and what ends in the middle. */
#include "target.h"

TestSuite(coalesce_wait, .init = world_setup, .fini = world_drop, .timeout = 120);
TestSuite(coalesce_modes, .timeout = 120);

struct stuck {
    struct door entered;
    struct door leave;
};

static int wait_in_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    struct stuck *stuck = probe->arg;

    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    door_open(&stuck->entered);
    door_wait(&stuck->leave);
    return BB_OK;
}

struct reader {
    struct door begun;
    uint64_t value;
    uint32_t done; /* (a) */
};

static void read_status(struct bb_ctx *ctx, void *arg)
{
    struct reader *reader = arg;

    door_open(&reader->begun);
    if (bb_mmio_read(ctx, machine.mmio, target.status_gpa, 4, &reader->value) != BB_OK) {
        abort();
    }
    bb_store_release(&reader->done, 1); /* pairs with the test's acquire load */
}

static void flush(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    if (bb_coalesced_flush(ctx) != BB_OK) {
        abort();
    }
}

/* The status is LOCKFREE, so that nothing but the making can hold its reader up. */
Test(coalesce_wait, a_stopped_maker_delays_accesses_to_such_devices_and_no_others)
{
    struct stuck stuck = {DOOR_INIT, DOOR_INIT};
    struct reader reader = {.begun = DOOR_INIT};
    struct worker maker, waiter;

    target.probe.write = wait_in_write;
    target.probe.arg = &stuck;
    leave(0, 4, 1);
    leave(0, 4, 2);
    worker_start(&maker, &machine, "maker", flush, NULL);
    door_wait(&stuck.entered);
    worker_start(&waiter, &machine, "waiter", read_status, &reader);
    door_wait(&reader.begun);
    for (unsigned i = 0; i < 1000; i++) {
        mmio_write(&machine, other.gpa, 4, i);
        (void)mmio_read(&machine, other.gpa, 4);
        mmio_write(&machine, 0x10, 4, i);
        cr_assert_eq(bb_load_acquire(&reader.done), 0);
    }
    door_open(&stuck.leave);
    worker_join(&waiter);
    worker_join(&maker);
    cr_assert_eq(reader.value, 2);
    cr_assert_eq(other.writes, 1000);
}

Test(coalesce_wait, a_write_that_comes_while_they_are_made_is_made_behind_them)
{
    struct stuck stuck = {DOOR_INIT, DOOR_INIT};
    struct worker maker, writer;
    uint64_t value = 3;

    target.probe.write = wait_in_write;
    target.probe.arg = &stuck;
    leave(0, 4, 1);
    leave(0, 4, 2);
    worker_start(&maker, &machine, "maker", flush, NULL);
    door_wait(&stuck.entered);
    worker_start(&writer, &machine, "writer", write_one, &value);
    door_open(&stuck.leave);
    worker_join(&writer);
    worker_join(&maker);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 3);
    cr_assert_eq(target.probe.last_value, 3);
}

Test(coalesce_wait, a_pause_past_its_deadline_says_that_writes_are_left_and_the_next_succeeds)
{
    struct stuck stuck = {DOOR_INIT, DOOR_INIT};
    struct bb_error err = {0};

    target.probe.write = wait_in_write;
    target.probe.arg = &stuck;
    leave(0, 4, 1);
    /* bb-control makes it, and is stopped in it; this thread keeps the deadline. */
    cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, &err), BB_E_TIMEOUT);
    cr_assert_not_null(strstr(err.text, "target"), "%s", err.text);
    door_wait(&stuck.entered);
    door_open(&stuck.leave);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
    cr_assert_eq(target.probe.writes, 1);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
}

/* A callback that sleeps until it is cancelled, reached by what a coalesced write posts. */
static void cancel_wait(struct probe *probe)
{
    struct stuck *stuck = probe->arg;

    door_open(&stuck->leave);
}

Test(coalesce_wait, a_pause_cancels_what_the_maker_waits_for)
{
    struct stuck stuck = {DOOR_INIT, DOOR_INIT};
    struct probe sleepy = {.write = wait_in_write, .cancel = cancel_wait, .arg = &stuck};
    struct bb_error err = {0};

    probe_make(&machine, &sleepy, "sleepy", 2, BB_CLASS_MAY_SLEEP);
    target.probe.write = note_and_post;
    target.probe.arg = &sleepy;
    leave(0, 4, 1);
    leave(0, 4, 2);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
    cr_assert_eq(made_count, 2);
    cr_assert_eq(sleepy.writes, 2);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    probe_drop(&sleepy);
}

Test(coalesce_wait, a_removal_cancels_what_the_maker_waits_for)
{
    struct stuck stuck = {DOOR_INIT, DOOR_INIT};
    struct probe sleepy = {.write = wait_in_write, .cancel = cancel_wait, .arg = &stuck};
    struct worker maker;

    probe_make(&machine, &sleepy, "sleepy", 2, BB_CLASS_MAY_SLEEP);
    target.probe.write = note_and_post;
    target.probe.arg = &sleepy;
    leave(0, 4, 1);
    worker_start(&maker, &machine, "maker", flush, NULL);
    door_wait(&stuck.entered);
    probe_drop(&sleepy);
    worker_join(&maker);
    cr_assert_eq(made_count, 1);
}

static void assert_context(void)
{
    uint64_t value = 0;

    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_E_CONTEXT);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, target.status_gpa, 4, &value),
                 BB_E_CONTEXT);
    cr_assert_eq(value, UINT32_MAX);
    cr_assert_eq(made_count, 0);
}

Test(coalesce_wait, who_holds_something_is_refused_and_not_made_to_wait)
{
    uint64_t value;

    leave(0, 4, 1);
    bb_rcu_read_lock(machine.ctx);
    assert_context();
    leave(0, 4, 2); /* waits for nobody */
    bb_rcu_read_unlock(machine.ctx);
    bb_device_lock(machine.ctx, other.device);
    assert_context();
    bb_device_unlock(machine.ctx, other.device);
    outer_lock(NULL);
    assert_context();
    outer_unlock(NULL);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 2);
    /* With nothing left there is nothing to wait for. */
    bb_rcu_read_lock(machine.ctx);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, target.status_gpa, 4, &value), BB_OK);
    bb_rcu_read_unlock(machine.ctx);
}

static int flush_inside(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    uint64_t status = 0;
    int result = bb_coalesced_flush(ctx);

    (void)note(ctx, probe, offset, size, value);
    if (result != BB_E_CONTEXT) {
        return result;
    }
    /* A nested read makes nothing: it sees the device as it is. */
    result = bb_mmio_read(ctx, machine.mmio, target.status_gpa, 4, &status);
    *(uint64_t *)probe->arg = status;
    return result;
}

Test(coalesce_wait, an_access_of_a_callback_leaves_them)
{
    uint64_t seen = UINT64_MAX;

    other.write = flush_inside;
    other.arg = &seen;
    leave(0, 4, 1);
    mmio_write(&machine, other.gpa, 4, 2);
    cr_assert_eq(seen, 0);
    cr_assert_eq(made_count, 1);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 1);
}

static int end_here(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                    uint64_t value)
{
    (void)note(ctx, probe, offset, size, value);
    if (value == 2) {
        pthread_exit(NULL);
    }
    return BB_OK;
}

static void leave_and_end(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    (void)bb_mmio_write(ctx, machine.mmio, target.probe.gpa, 4, 7);
    (void)bb_mmio_write(ctx, machine.mmio, target.probe.gpa, 4, 8);
    (void)bb_mmio_write(ctx, machine.mmio, other.gpa, 4, 2);
    abort(); /* it has ended */
}

Test(coalesce_wait, a_thread_that_ends_in_a_callback_takes_what_it_left_with_it)
{
    struct worker worker;

    other.write = end_here;
    worker_start(&worker, &machine, "ends", leave_and_end, NULL);
    worker_join(&worker);
    cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, 2);
    cr_assert_eq(made_count, 1);
    leave(0, 4, 3);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 1);
    assert_made(1, &target.probe, 0, 4, 3);
}

Test(coalesce_modes, a_maker_that_ends_in_a_callback_leaves_the_rest_to_the_next)
{
    struct worker worker;

    world_make(BB_LOCK_FREE, BB_CLASS_LOCKFREE); /* it takes no lock with it */
    target.probe.write = end_here;
    for (unsigned i = 1; i < 4; i++) {
        leave(0, 4, i);
    }
    worker_start(&worker, &machine, "ends", flush, NULL);
    worker_join(&worker);
    cr_assert_eq(made_count, 2);
    cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 3);
    assert_made(2, &target.probe, 0, 4, 3);
    leave(0, 4, 4);
    cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
    cr_assert_eq(made_count, 4);
    world_drop();
}

/* Classes and modes. */

Test(coalesce_modes, hold_for_lockfree_regions_and_every_lock_mode)
{
    static const enum bb_lock_mode modes[] = {BB_LOCK_FREE, BB_LOCK_DEVICE, BB_LOCK_BIG};
    static const enum bb_class classes[] = {BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK};

    for (unsigned i = 0; i < 6; i++) {
        world_make(modes[i / 2], classes[i % 2]);
        leave(0, 4, 1);
        leave(0, 4, 2);
        cr_assert_eq(mmio_read(&machine, target.status_gpa, 4), 2);
        leave(0, 4, 3);
        cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
        cr_assert_eq(made_count, 3);
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
        leave(0, 4, 4);
        cr_assert_eq(bb_coalesced_flush(machine.ctx), BB_OK);
        cr_assert_eq(made_count, 4);
        world_drop();
    }
}
