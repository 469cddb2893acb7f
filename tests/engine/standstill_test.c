/* SPDX-License-Identifier: MIT */
/* Pause against inboxes, held locks and bb-control at work; the lock modes against held locks. */
#include "fixture.h"

#include <string.h>

static struct machine machine;
static struct probe a, b, c;

static void make(enum bb_lock_mode mode)
{
    struct bb_engine_config config = {
        .lock_mode = mode,
        .clock_mode = BB_CLOCK_MANUAL,
        .external_lock = outer_hooks,
    };

    machine_make(&machine, &config);
    a = (struct probe){0};
    b = (struct probe){0};
    c = (struct probe){0};
}

TestSuite(standstill, .timeout = 60);

static void read_once(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;
    uint64_t value;

    if (bb_mmio_read(ctx, machine.mmio, probe->gpa, 4, &value) != BB_OK) {
        abort();
    }
}

struct holder {
    struct bb_device *device;
    struct door held;
    struct door release;
};

static void hold_device(struct bb_ctx *ctx, void *arg)
{
    struct holder *holder = arg;

    bb_device_lock(ctx, holder->device);
    door_open(&holder->held);
    door_wait(&holder->release);
    bb_device_unlock(ctx, holder->device);
}

static uint64_t expiries;

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)opaque;
    (void)deadline_ns;
    (void)bb_fetch_add_acq_rel(&expiries, 1); /* pairs with the tests' acquire loads */
}

Test(standstill, is_not_reached_while_work_lies_in_an_inbox)
{
    struct holder holder = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct bb_device_timer_config config = {.expired = expired, .locked = true};
    struct bb_device_timer *timer;
    struct worker worker;
    struct bb_error err = {0};

    make(BB_LOCK_FREE);
    probe_make(&machine, &a, "held-one", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_device_timer_create(machine.ctx, a.device, &config, &timer, NULL), BB_OK);
    holder.device = a.device;
    worker_start(&worker, &machine, "holder", hold_device, &holder);
    door_wait(&holder.held);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, timer, 10), BB_OK);
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), 10, NULL), BB_OK);
    /* The holder would run the expiry on release, in the middle of the pause. */
    do { /* at first the grace period may be what a busy host is late with */
        cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, &err), BB_E_TIMEOUT);
    } while (strstr(err.text, "held-one") == NULL);
    door_open(&holder.release);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_load_acquire(&expiries), 1, "paused before the inbox was empty");
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    probe_drop(&a);
    machine_drop(&machine);
}

static void expired_at_the_door(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct holder *callback = opaque;

    (void)ctx;
    (void)deadline_ns;
    door_open(&callback->held);
    door_wait(&callback->release);
}

Test(standstill, is_not_reached_while_a_thread_outside_any_access_runs_what_it_found)
{
    struct holder holder = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct holder callback = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct bb_device_timer_config config = {
        .expired = expired_at_the_door, .opaque = &callback, .locked = true};
    struct bb_device_timer *timer;
    struct worker worker;

    make(BB_LOCK_FREE);
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_device_timer_create(machine.ctx, a.device, &config, &timer, NULL), BB_OK);
    holder.device = a.device;
    worker_start(&worker, &machine, "holder", hold_device, &holder);
    door_wait(&holder.held);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, timer, 10), BB_OK);
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), 10, NULL), BB_OK);
    door_open(&holder.release);
    door_wait(&callback.held); /* out of the inbox; its callback is in the middle */
    /* The inbox is empty and the holder is in no section: that it is busy is all there is to see.
     */
    cr_assert_eq(bb_engine_pause(machine.ctx, 50000000, NULL), BB_E_TIMEOUT);
    door_open(&callback.release);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    worker_join(&worker);
    probe_drop(&a);
    machine_drop(&machine);
}

/* The storm: a locked timer that is always due, threads that hold the device's lock outside any
 * access and so run its expiries, and pauses. */
static bool frozen;
static unsigned stop;
static unsigned ran_frozen;
static struct bb_device_timer *storm_timer;

static void storm_expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)opaque;
    (void)deadline_ns;
    for (unsigned i = 0; i < 50; i++) {
        if (bb_load_acquire(&frozen)) { /* pairs with the test's release stores */
            (void)bb_fetch_add_relaxed(&ran_frozen, 1);
            break;
        }
    }
    (void)bb_fetch_add_acq_rel(&expiries, 1); /* pairs with the test's acquire load */
    (void)bb_device_timer_arm(ctx, storm_timer, 0);
}

static void lock_until_told(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    for (unsigned i = 0; bb_load_relaxed(&stop) == 0; i++) {
        bb_device_lock(ctx, a.device);
        /* Now and then for longer than a pause takes to close. */
        uint64_t end = host_ns() + (i % 16 == 0 ? 3000000 : 5000);
        while (host_ns() < end) {
        }
        bb_device_unlock(ctx, a.device);
    }
}

Test(standstill, holds_for_expiries_whoever_would_run_them)
{
    struct bb_engine_config engine_config = {0};
    struct bb_device_timer_config config = {.expired = storm_expired, .locked = true};
    struct worker workers[2];

    machine_make(&machine, &engine_config);
    a = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_device_timer_create(machine.ctx, a.device, &config, &storm_timer, NULL), BB_OK);
    for (unsigned i = 0; i < 2; i++) {
        worker_start(&workers[i], &machine, "locker", lock_until_told, NULL);
    }
    cr_assert_eq(bb_device_timer_arm(machine.ctx, storm_timer, 0), BB_OK);
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);
    do {
        cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
        bb_store_release(&frozen, true); /* pairs with storm_expired() */
        uint64_t thaw = host_ns() + 100000;
        while (host_ns() < thaw) {
        }
        bb_store_release(&frozen, false); /* likewise */
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    } while (host_ns() < end);
    bb_store_relaxed(&stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        worker_join(&workers[i]);
    }
    cr_assert_eq(bb_load_relaxed(&ran_frozen), 0, "%u expiries in pauses", ran_frozen);
    cr_assert_gt(bb_load_acquire(&expiries), 0);
    probe_drop(&a);
    machine_drop(&machine);
}

static int gate_result;
static uint64_t gate_value;

static void read_under_outer_lock(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    outer_lock(NULL);
    gate_value = 0;
    gate_result = bb_mmio_read(ctx, machine.mmio, a.gpa, 4, &gate_value);
    outer_unlock(NULL);
}

Test(standstill, refuses_who_holds_the_external_lock_rather_than_keep_it_at_the_gate)
{
    struct worker worker;

    make(BB_LOCK_FREE);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
    worker_start(&worker, &machine, "old-loop", read_under_outer_lock, NULL);
    worker_join(&worker); /* would wait for the resume, with the lock that we want next */
    outer_lock(NULL);
    outer_unlock(NULL);
    cr_assert_eq(gate_result, BB_E_CONTEXT);
    cr_assert_eq(gate_value, 0xffffffff);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    probe_drop(&a);
    machine_drop(&machine);
}

/* A sink whose notified() writes to c. */
static struct bb_device *sink;
static struct bb_line *line;
static struct bb_source *source;

static void sink_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    (void)opaque;
    bb_device_notify(ctx, sink, pin);
}

static void sink_notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    (void)opaque;
    (void)bb_mmio_write(ctx, machine.mmio, c.gpa, 4, pins);
}

static void sink_make(void)
{
    static const struct bb_device_ops ops = {.notified = sink_notified};
    struct bb_device_config config = {.name = "sink", .ops = &ops};
    struct bb_line_sink to = {.notify = sink_notify};

    cr_assert_eq(bb_device_create(machine.ctx, &config, &sink, NULL), BB_OK);
    to.device = sink;
    cr_assert_eq(bb_line_create(machine.ctx, "line", &to, &line, NULL), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, a.device, line, &source, NULL), BB_OK);
}

static void sink_drop(void)
{
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink, NULL), BB_OK);
    probe_drop(&a);
    probe_drop(&c);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

static struct door entered = DOOR_INIT;
static struct door leave = DOOR_INIT;

static int sleep_in_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                          uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    door_open(&entered);
    door_wait(&leave);
    return BB_OK;
}

static void cancel_sleep(struct probe *probe)
{
    (void)probe;
    door_open(&leave);
}

Test(standstill, is_reached_although_bb_control_sleeps_in_what_a_sink_posted)
{
    struct bb_lock *narrow;
    struct bb_error err = {0};

    make(BB_LOCK_FREE);
    c.write = sleep_in_write;
    c.cancel = cancel_sleep;
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &c, "sleepy", 1, BB_CLASS_MAY_SLEEP);
    sink_make();
    /* Under a narrow lock the sink is left to bb-control, and with it what the sink posts. */
    cr_assert_eq(bb_lock_create(machine.ctx, "narrow", BB_RANK_NARROW, &narrow, NULL), BB_OK);
    bb_lock_acquire(machine.ctx, narrow);
    bb_source_set(machine.ctx, source, true);
    bb_lock_release(machine.ctx, narrow);
    door_wait(&entered);
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    bb_lock_destroy(machine.ctx, narrow);
    sink_drop();
    machine_drop(&machine);
}

static struct door set_door = DOOR_INIT;
static struct door access_door = DOOR_INIT;

static void set_in_section_then_access(struct bb_ctx *ctx, void *arg)
{
    bb_rcu_read_lock(ctx);
    bb_source_set(ctx, source, true);
    bb_rcu_read_unlock(ctx);
    door_open(&set_door);
    door_wait(&access_door);
    read_once(ctx, arg);
}

static struct door paused = DOOR_INIT;
static int paused_result;

static void on_paused(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err)
{
    (void)opaque;
    (void)err;
    paused_result = result;
    if (result == BB_OK && bb_engine_resume(ctx, NULL) != BB_OK) {
        abort();
    }
    door_open(&paused);
}

Test(standstill, is_not_waited_for_at_the_gate_by_a_thread_whose_effects_it_waits_for)
{
    struct worker worker;

    make(BB_LOCK_FREE);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &c, "c", 1, BB_CLASS_DEVICE_LOCK);
    sink_make();
    worker_start(&worker, &machine, "setter", set_in_section_then_access, &a);
    door_wait(&set_door);
    cr_assert_eq(bb_engine_pause_async(machine.ctx, UINT64_C(10000000000), on_paused, NULL, NULL),
                 BB_OK);
    door_open(&access_door);
    door_wait(&paused);
    cr_assert_eq(paused_result, BB_OK);
    worker_join(&worker);
    cr_assert_eq(bb_load_relaxed(&c.writes), 1);
    sink_drop();
    machine_drop(&machine);
}

static int sleep_until_left(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                            uint64_t value)
{
    return sleep_in_write(ctx, probe, offset, size, value);
}

static int pass_on(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                   uint64_t value)
{
    (void)probe;
    return bb_mmio_write(ctx, machine.mmio, c.gpa + offset, size, value);
}

static void write_once(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;

    if (bb_mmio_write(ctx, machine.mmio, probe->gpa, 4, 1) != BB_OK) {
        abort();
    }
}

Test(standstill, is_not_reached_while_an_effect_of_the_fast_path_runs)
{
    struct worker worker;
    struct bb_error err = {0};

    make(BB_LOCK_FREE);
    a.write = pass_on;
    c.write = sleep_until_left;
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &c, "effect", 1, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "writer", write_once, &a);
    door_wait(&entered);
    cr_assert_eq(bb_engine_pause(machine.ctx, 20000000, &err), BB_E_TIMEOUT);
    cr_assert_not_null(strstr(err.text, "effect"), "%s", err.text);
    door_open(&leave);
    worker_join(&worker);
    probe_drop(&a);
    probe_drop(&c);
    machine_drop(&machine);
}

enum { CROSSINGS = 20000 };

static void read_often(struct bb_ctx *ctx, void *arg)
{
    for (unsigned i = 0; i < CROSSINGS; i++) {
        read_once(ctx, arg);
    }
}

static void read_often_under_outer_lock(struct bb_ctx *ctx, void *arg)
{
    for (unsigned i = 0; i < CROSSINGS; i++) {
        outer_lock(NULL);
        read_once(ctx, arg);
        outer_unlock(NULL);
    }
}

static void read_often_under_device_lock(struct bb_ctx *ctx, void *arg)
{
    for (unsigned i = 0; i < CROSSINGS; i++) {
        bb_device_lock(ctx, b.device);
        read_once(ctx, arg);
        bb_device_unlock(ctx, b.device);
    }
}

Test(standstill, of_two_threads_never_comes_of_the_big_lock_and_the_external_one)
{
    struct worker one, two;

    make(BB_LOCK_BIG);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "old", 1, BB_CLASS_EXTERNAL_LOCK);
    worker_start(&one, &machine, "holds-outer", read_often_under_outer_lock, &a);
    worker_start(&two, &machine, "wants-outer", read_often, &b);
    worker_join(&one);
    worker_join(&two);
    probe_drop(&a);
    probe_drop(&b);
    machine_drop(&machine);
}

Test(standstill, of_two_threads_never_comes_of_the_big_lock_and_a_devices)
{
    struct worker one, two;

    make(BB_LOCK_BIG);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    worker_start(&one, &machine, "holds-device", read_often_under_device_lock, &a);
    worker_start(&two, &machine, "wants-device", read_often, &b);
    worker_join(&one);
    worker_join(&two);
    probe_drop(&a);
    probe_drop(&b);
    machine_drop(&machine);
}

Test(standstill, is_not_risked_by_an_access_under_a_device_lock_with_baseline_locks)
{
    uint64_t value;

    make(BB_LOCK_DEVICE);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    bb_device_lock(machine.ctx, b.device);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, a.gpa, 4, &value), BB_E_CONTEXT);
    bb_device_unlock(machine.ctx, b.device);
    probe_drop(&a);
    probe_drop(&b);
    machine_drop(&machine);
}
