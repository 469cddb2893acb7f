/* SPDX-License-Identifier: MIT */
/* Pause and resume: what they wait for, what they undo, and that none of it deadlocks. */
#include "fixture.h"

#include <string.h>

enum { FOREVER = 0 };

static struct machine machine;

static void setup(void)
{
    struct bb_engine_config config = {
        .external_lock = outer_hooks,
    };

    machine_make(&machine, &config);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(pause, .init = setup, .fini = teardown, .timeout = 120);

struct sleeper {
    struct door entered;
    struct door leave;
};

static int sleep_in_callback(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                             unsigned size, uint64_t *value)
{
    struct sleeper *sleeper = probe->arg;

    (void)ctx;
    (void)offset;
    (void)size;
    door_open(&sleeper->entered);
    door_wait(&sleeper->leave);
    *value = 5;
    return BB_OK;
}

static void cancel_sleep(struct probe *probe)
{
    struct sleeper *sleeper = probe->arg;

    door_open(&sleeper->leave);
}

static void read_probe(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;
    uint64_t value = 0;

    if (bb_mmio_read(ctx, probe->machine->mmio, probe->gpa, 4, &value) != BB_OK) {
        abort();
    }
}

static void pause_now(uint64_t deadline_ns)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_engine_pause(machine.ctx, deadline_ns, &err), BB_OK, "%s", err.text);
    cr_assert(bb_engine_paused(machine.engine));
}

Test(pause, stops_the_clock_and_accesses_until_resumed)
{
    struct probe probe = {0};
    struct worker worker;
    struct bb_clock *clock = bb_engine_clock(machine.engine);

    probe_make(&machine, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    pause_now(FOREVER);
    bb_ns_t stopped = bb_clock_now_ns(clock);
    worker_start(&worker, &machine, "waits", read_probe, &probe);
    while (bb_engine_stats(machine.ctx).gate_waits == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    cr_assert_eq(bb_load_relaxed(&probe.reads), 0);
    cr_assert_eq(bb_clock_now_ns(clock), stopped);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    cr_assert_eq(probe.reads, 1);
    cr_assert_not(bb_engine_paused(machine.engine));
    while (bb_clock_now_ns(clock) == stopped) {
    }
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_E_STATE);
    probe_drop(&probe);
}

Test(pause, nests)
{
    pause_now(FOREVER);
    pause_now(FOREVER);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    cr_assert(bb_engine_paused(machine.engine));
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    cr_assert_not(bb_engine_paused(machine.engine));
}

Test(pause, a_deadline_undoes_it_and_names_device_and_thread)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe slow = {.read = sleep_in_callback, .arg = &sleeper};
    struct probe quick = {0};
    struct worker worker;
    struct bb_error err = {0};

    probe_make(&machine, &slow, "sleepy", 0, BB_CLASS_MAY_SLEEP);
    probe_make(&machine, &quick, "quick", 1, BB_CLASS_LOCKFREE);
    worker_start(&worker, &machine, "vcpu-7", read_probe, &slow);
    door_wait(&sleeper.entered);
    cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, &err), BB_E_TIMEOUT);
    cr_assert_not_null(strstr(err.text, "sleepy"), "%s", err.text);
    cr_assert_not_null(strstr(err.text, "vcpu-7"), "%s", err.text);
    cr_assert_not(bb_engine_paused(machine.engine));
    (void)mmio_read(&machine, quick.gpa, 4); /* the gate is open again */
    cr_assert(bb_clock_running(bb_engine_clock(machine.engine)));
    door_open(&sleeper.leave);
    worker_join(&worker);
    pause_now(FOREVER);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    probe_drop(&slow);
    probe_drop(&quick);
}

static int hold_in_section(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                           uint64_t *value)
{
    return sleep_in_callback(ctx, probe, offset, size, value);
}

Test(pause, a_lockfree_callback_that_does_not_return_is_named_too)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe stuck = {.read = hold_in_section, .arg = &sleeper};
    struct worker worker;
    struct bb_error err = {0};

    probe_make(&machine, &stuck, "stuck", 0, BB_CLASS_LOCKFREE);
    worker_start(&worker, &machine, "vcpu-3", read_probe, &stuck);
    door_wait(&sleeper.entered);
    cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, &err), BB_E_TIMEOUT);
    cr_assert_not_null(strstr(err.text, "stuck"), "%s", err.text);
    door_open(&sleeper.leave);
    worker_join(&worker);
    probe_drop(&stuck);
}

Test(pause, the_cancel_hook_makes_a_sleeping_callback_return)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe slow = {.read = sleep_in_callback, .cancel = cancel_sleep, .arg = &sleeper};
    struct worker worker;

    probe_make(&machine, &slow, "slow", 0, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "reader", read_probe, &slow);
    door_wait(&sleeper.entered);
    pause_now(FOREVER);
    cr_assert_geq(bb_load_acquire(&slow.cancelled), 1);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    probe_drop(&slow);
}

static struct door paused = DOOR_INIT;
static int paused_result;
static unsigned paused_reads;

static void on_paused(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err)
{
    struct probe *probe = opaque;

    (void)err;
    paused_result = result;
    paused_reads = (unsigned)bb_load_relaxed(&probe->reads);
    if (result == BB_OK && bb_engine_resume(ctx, NULL) != BB_OK) {
        abort();
    }
    door_open(&paused);
}

static int pause_in_callback(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                             unsigned size, uint64_t *value)
{
    (void)offset;
    (void)size;
    if (bb_engine_pause_async(ctx, FOREVER, on_paused, probe, NULL) != BB_OK) {
        return BB_E_DEVICE;
    }
    *value = bb_engine_paused(machine.engine); /* not while this callback runs */
    return BB_OK;
}

Test(pause, can_be_asked_for_in_the_callback_of_the_device_to_be_paused)
{
    struct probe probe = {.read = pause_in_callback};

    probe_make(&machine, &probe, "asks", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(mmio_read(&machine, probe.gpa, 4), 0);
    door_wait(&paused);
    cr_assert_eq(paused_result, BB_OK);
    cr_assert_eq(paused_reads, 1);
    probe_drop(&probe);
}

/* Effects of a chain that has begun pass the gate: the poster asks for the pause, then posts. */
static struct probe target;

static int pause_then_post(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                           uint64_t value)
{
    (void)offset;
    if (bb_engine_pause_async(ctx, FOREVER, on_paused, &target, NULL) != BB_OK) {
        return BB_E_DEVICE;
    }
    (void)probe;
    return bb_mmio_write(ctx, machine.mmio, target.gpa, size, value);
}

static int count_as_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    (void)bb_fetch_add_relaxed(&probe->reads, 1);
    return BB_OK;
}

Test(pause, waits_for_the_effects_of_a_chain_that_has_begun)
{
    struct probe probe = {.write = pause_then_post};

    target = (struct probe){.write = count_as_read};
    probe_make(&machine, &probe, "posts", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &target, "target", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, probe.gpa, 4, 1);
    door_wait(&paused);
    cr_assert_eq(paused_reads, 1, "paused before the posted write had run");
    probe_drop(&probe);
    probe_drop(&target);
}

struct expiring {
    struct bb_device_timer *timer;
    uint64_t expiries;
    struct door fired;
};

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct expiring *expiring = opaque;

    (void)ctx;
    (void)deadline_ns;
    (void)bb_fetch_add_acq_rel(&expiring->expiries, 1); /* pairs with the test's acquire load */
    door_open(&expiring->fired);
}

Test(pause, parks_timers_and_resume_lets_them_fire)
{
    struct probe probe = {0};
    struct expiring expiring = {.fired = DOOR_INIT};
    struct bb_device_timer_config config = {
        .expired = expired, .opaque = &expiring, .locked = true};

    probe_make(&machine, &probe, "timer", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_timer_create(machine.ctx, probe.device, &config, &expiring.timer, NULL),
                 BB_OK);
    for (unsigned round = 0; round < 50; round++) {
        struct door closed = DOOR_INIT;
        expiring.fired = closed;
        uint64_t before = bb_load_acquire(&expiring.expiries);
        pause_now(FOREVER);
        cr_assert_eq(bb_device_timer_arm(machine.ctx, expiring.timer, 0), BB_OK);
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        cr_assert_eq(bb_load_acquire(&expiring.expiries), before, "fired while paused");
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
        door_wait(&expiring.fired);
    }
    probe_drop(&probe);
}

Test(pause, is_refused_where_it_would_deadlock_with_the_external_lock)
{
    outer_lock(NULL);
    cr_assert_eq(bb_engine_pause(machine.ctx, FOREVER, NULL), BB_E_CONTEXT);
    outer_unlock(NULL);
}

Test(pause, external_lock_regions_run_under_it_and_never_take_it_twice)
{
    struct probe probe = {0};

    probe_make(&machine, &probe, "old", 0, BB_CLASS_EXTERNAL_LOCK);
    (void)mmio_read(&machine, probe.gpa, 4);
    cr_assert_not(outer_is_held(NULL));
    outer_lock(NULL);
    (void)mmio_read(&machine, probe.gpa, 4); /* would hang if it were taken again */
    cr_assert(outer_is_held(NULL));
    outer_unlock(NULL);
    probe_drop(&probe);
}

/* The storm: accesses of every class, lines, timers; pauses from outside. Nothing runs in them. */
static unsigned storm_stop;
static unsigned storm_running;
static unsigned storm_bad;
static bool storm_frozen;

static int storm_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    (void)bb_fetch_add_acq_rel(&storm_running, 1);
    if (bb_load_acquire(&storm_frozen)) {
        (void)bb_fetch_add_relaxed(&storm_bad, 1);
    }
    (void)bb_fetch_sub_acq_rel(&storm_running, 1);
    return BB_OK;
}

static int storm_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    uint64_t ignored;
    struct probe *to = probe->arg;

    (void)storm_read(ctx, probe, offset, size, &ignored);
    return to == NULL ? BB_OK : bb_mmio_write(ctx, machine.mmio, to->gpa, size, value);
}

static void storm_access(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;

    while (bb_load_relaxed(&storm_stop) == 0) {
        uint64_t value;
        if (bb_mmio_read(ctx, machine.mmio, probe->gpa, 4, &value) != BB_OK ||
            bb_mmio_write(ctx, machine.mmio, probe->gpa, 4, 1) != BB_OK) {
            abort();
        }
    }
}

Test(pause, nothing_runs_while_paused_whatever_was_in_flight)
{
    static const enum bb_class classes[] = {BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK,
                                            BB_CLASS_MAY_SLEEP, BB_CLASS_EXTERNAL_LOCK};
    struct probe probes[4] = {0};
    struct worker workers[4];
    unsigned pauses = 0;

    for (unsigned i = 0; i < 4; i++) {
        probes[i].read = storm_read;
        probes[i].write = storm_write;
        probes[i].arg = i < 3 ? &probes[i + 1] : NULL;
        probe_make(&machine, &probes[i], "storm", i, classes[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        worker_start(&workers[i], &machine, "storm", storm_access, &probes[i]);
    }
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);
    do {
        pause_now(FOREVER);
        bb_store_release(&storm_frozen, true);
        cr_assert_eq(bb_load_acquire(&storm_running), 0, "a callback runs while paused");
        uint64_t now = host_ns();
        while (host_ns() < now + 100000) {
        }
        bb_store_release(&storm_frozen, false);
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
        pauses++;
    } while (host_ns() < end);
    bb_store_relaxed(&storm_stop, 1);
    for (unsigned i = 0; i < 4; i++) {
        worker_join(&workers[i]);
    }
    cr_assert_eq(storm_bad, 0);
    cr_assert_gt(pauses, 0);
    for (unsigned i = 0; i < 4; i++) {
        probe_drop(&probes[i]);
    }
}
