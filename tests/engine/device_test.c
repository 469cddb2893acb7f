/* SPDX-License-Identifier: MIT */
/* Devices: timers through the inbox, removal in every situation, and the storm that joins them. */
#include "fixture.h"

#include <string.h>

static struct machine machine;

static void setup_manual(void)
{
    struct bb_engine_config config = {.clock_mode = BB_CLOCK_MANUAL};

    machine_make(&machine, &config);
}

static void setup_host(void)
{
    machine_make(&machine, NULL);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(device, .init = setup_manual, .fini = teardown, .timeout = 120);
TestSuite(device_host, .init = setup_host, .fini = teardown, .timeout = 120);

struct ticking {
    struct probe probe;
    struct bb_device_timer *timer;
    uint64_t expiries;
    uint64_t period_ns;
    bb_ns_t last_deadline_ns;
    struct door expired;
};

static void tick(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct ticking *ticking = opaque;

    ticking->last_deadline_ns = deadline_ns;
    (void)bb_fetch_add_acq_rel(&ticking->expiries, 1); /* pairs with the tests' acquire loads */
    if (ticking->period_ns != 0) {
        (void)bb_device_timer_arm(ctx, ticking->timer, deadline_ns + ticking->period_ns);
    }
    door_open(&ticking->expired);
}

static void ticking_make(struct ticking *ticking, const char *name, unsigned n, bool locked)
{
    struct bb_device_timer_config config = {.expired = tick, .opaque = ticking, .locked = locked};
    struct door closed = DOOR_INIT;

    memset(ticking, 0, sizeof(*ticking));
    ticking->expired = closed;
    probe_make(&machine, &ticking->probe, name, n, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(
        bb_device_timer_create(machine.ctx, ticking->probe.device, &config, &ticking->timer, NULL),
        BB_OK);
}

static void step(uint64_t ns)
{
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), ns, NULL), BB_OK);
}

Test(device, a_timer_expires_at_its_time_and_once)
{
    struct ticking ticking;

    for (unsigned locked = 0; locked < 2; locked++) {
        ticking_make(&ticking, "tick", 0, locked);
        bb_ns_t now = bb_clock_now_ns(bb_engine_clock(machine.engine));
        cr_assert_eq(bb_device_timer_arm(machine.ctx, ticking.timer, now + 100), BB_OK);
        step(99);
        cr_assert_eq(ticking.expiries, 0);
        step(1);
        cr_assert_eq(ticking.expiries, 1);
        cr_assert_eq(ticking.last_deadline_ns, now + 100);
        step(1000);
        cr_assert_eq(ticking.expiries, 1);
        bb_device_timer_disarm(machine.ctx, ticking.timer);
        probe_drop(&ticking.probe);
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

Test(device, an_expiry_that_finds_the_lock_held_is_run_by_the_holder)
{
    struct ticking ticking;
    struct holder holder = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct worker worker;

    ticking_make(&ticking, "tick", 0, true);
    holder.device = ticking.probe.device;
    worker_start(&worker, &machine, "holder", hold_device, &holder);
    door_wait(&holder.held);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, ticking.timer, 10), BB_OK);
    step(10); /* returns: nobody waits for the holder */
    cr_assert_eq(bb_load_acquire(&ticking.expiries), 0);
    cr_assert_eq(bb_engine_stats(machine.ctx).expiries_inboxed, 1);
    door_open(&holder.release);
    worker_join(&worker);
    cr_assert_eq(bb_load_acquire(&ticking.expiries), 1);
    probe_drop(&ticking.probe);
}

Test(device, removal_disarms_and_a_removed_devices_timer_never_fires)
{
    struct ticking ticking;

    ticking_make(&ticking, "tick", 0, true);
    ticking.period_ns = 10;
    cr_assert_eq(bb_device_timer_arm(machine.ctx, ticking.timer, 10), BB_OK);
    step(95);
    cr_assert_eq(ticking.expiries, 9);
    probe_drop(&ticking.probe);
    step(1000);
    cr_assert_eq(ticking.expiries, 9);
}

Test(device_host, the_timer_thread_is_not_stopped_by_a_device_that_is)
{
    struct ticking stuck, live;
    struct holder holder = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct worker worker;

    ticking_make(&stuck, "stuck", 0, true);
    ticking_make(&live, "live", 1, true);
    holder.device = stuck.probe.device;
    worker_start(&worker, &machine, "holder", hold_device, &holder);
    door_wait(&holder.held);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, stuck.timer, 1), BB_OK);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, live.timer, 2), BB_OK);
    door_wait(&live.expired); /* a timeout here: the thread waits for the stuck device */
    cr_assert_eq(bb_load_acquire(&stuck.expiries), 0);
    door_open(&holder.release);
    worker_join(&worker);
    door_wait(&stuck.expired);
    probe_drop(&stuck.probe);
    probe_drop(&live.probe);
}

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

    if (bb_mmio_read(ctx, probe->machine->mmio, probe->gpa, 4, &value) != BB_OK || value != 5) {
        abort();
    }
}

static unsigned done_calls;

static void count_done(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_acq_rel(&done_calls, 1); /* pairs with the tests' acquire loads */
}

Test(device, removal_waits_for_a_callback_that_sleeps_and_everyone_else_goes_on)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe slow = {.read = sleep_in_callback, .arg = &sleeper};
    struct probe quick = {0};
    struct worker worker;

    probe_make(&machine, &slow, "slow", 0, BB_CLASS_MAY_SLEEP);
    probe_make(&machine, &quick, "quick", 1, BB_CLASS_LOCKFREE);
    worker_start(&worker, &machine, "reader", read_probe, &slow);
    door_wait(&sleeper.entered);
    bb_store_relaxed(&done_calls, 0);
    cr_assert_eq(bb_device_remove(machine.ctx, slow.device, count_done, NULL, NULL), BB_OK);
    /* Grace periods and other removals pass while it is asleep. */
    probe_drop(&quick);
    cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    cr_assert_eq(bb_load_acquire(&slow.destroyed), 0);
    door_open(&sleeper.leave);
    worker_join(&worker);
    while (bb_load_acquire(&done_calls) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    cr_assert_eq(bb_load_acquire(&slow.destroyed), 1);
}

Test(device, removal_calls_the_cancel_hook_of_a_callback_that_sleeps)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe slow = {.read = sleep_in_callback, .cancel = cancel_sleep, .arg = &sleeper};
    struct worker worker;

    probe_make(&machine, &slow, "slow", 0, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "reader", read_probe, &slow);
    door_wait(&sleeper.entered);
    probe_drop(&slow); /* would wait for ever without the hook */
    worker_join(&worker);
    cr_assert_geq(bb_load_acquire(&slow.cancelled), 1);
}

Test(device, a_region_removed_by_itself_leaves_the_device)
{
    struct probe probe = {0};
    uint64_t value;

    probe_make(&machine, &probe, "part", 0, BB_CLASS_LOCKFREE);
    bb_store_relaxed(&done_calls, 0);
    cr_assert_eq(bb_region_remove(machine.ctx, probe.region, count_done, NULL, NULL), BB_OK);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa, 4, &value), BB_E_DECODE);
    while (bb_load_acquire(&done_calls) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    probe_drop(&probe);
}

Test(device, a_removed_device_refuses_new_parts)
{
    struct sleeper sleeper = {DOOR_INIT, DOOR_INIT};
    struct probe slow = {.read = sleep_in_callback, .arg = &sleeper};
    struct worker worker;
    struct bb_error err = {0};
    struct bb_source *source;
    struct bb_device_timer *timer;
    struct bb_device_timer_config config = {.expired = tick};

    probe_make(&machine, &slow, "slow", 0, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "reader", read_probe, &slow);
    door_wait(&sleeper.entered);
    cr_assert_eq(bb_device_remove(machine.ctx, slow.device, NULL, NULL, &err), BB_OK);
    cr_assert_eq(bb_device_remove(machine.ctx, slow.device, NULL, NULL, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "slow"), "%s", err.text);
    cr_assert_eq(bb_source_create(machine.ctx, slow.device, NULL, &source, &err), BB_E_STATE);
    cr_assert_eq(bb_device_timer_create(machine.ctx, slow.device, &config, &timer, &err),
                 BB_E_STATE);
    door_open(&sleeper.leave);
    worker_join(&worker);
    while (bb_load_acquire(&slow.destroyed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

/* The storm: accesses, timers and lines of devices that come and go. */
enum { STORM_SLOTS = 8, STORM_READERS = 4 };

struct storm_device {
    uint64_t poison; /* a value while it lives, another once freed */
    struct bb_device *device;
    struct bb_region *region;
    struct bb_source *source;
    struct bb_device_timer *timer;
};

static unsigned storm_stop;
static unsigned storm_bad;
static uint64_t storm_accesses;
static unsigned storm_alive;

enum { ALIVE = 0x600d600d, DEAD = 0x0bad0bad };

static void storm_check(const struct storm_device *device)
{
    if (bb_load_relaxed(&device->poison) != ALIVE) {
        (void)bb_fetch_add_relaxed(&storm_bad, 1);
    }
}

static int storm_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct storm_device *device = opaque;

    (void)size;
    storm_check(device);
    bb_source_set(ctx, device->source, offset & 4);
    (void)bb_device_timer_arm(ctx, device->timer,
                              bb_clock_now_ns(bb_engine_clock(machine.engine)) + 1000);
    *value = 1;
    return BB_OK;
}

static int storm_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    struct storm_device *device = opaque;

    storm_check(device);
    if (value == 1) { /* pass it on, by a posted write */
        return bb_mmio_write(ctx, machine.mmio, DEVICE_GPA(offset / 8 % STORM_SLOTS), size, 2);
    }
    if (value == 3) { /* remove itself */
        (void)bb_device_remove(ctx, device->device, NULL, NULL, NULL);
    }
    return BB_OK;
}

static const struct bb_region_ops storm_region_ops = {.read = storm_read, .write = storm_write};

static void storm_expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct storm_device *device = opaque;

    (void)deadline_ns;
    storm_check(device);
    bb_source_pulse(ctx, device->source);
}

static void storm_destroy(void *opaque)
{
    struct storm_device *device = opaque;

    storm_check(device);
    bb_store_relaxed(&device->poison, DEAD);
    (void)bb_fetch_sub_acq_rel(&storm_alive, 1); /* pairs with the test's acquire load */
    free(device);
}

static const struct bb_device_ops storm_ops = {.destroy = storm_destroy};

static struct bb_line *storm_line;

static bool storm_make(struct bb_ctx *ctx, unsigned slot, enum bb_class klass,
                       struct bb_device **made)
{
    struct storm_device *device = calloc(1, sizeof(*device));
    struct bb_device_config config = {.name = "storm", .ops = &storm_ops, .opaque = device};
    struct bb_region_config region = {.name = "storm",
                                      .size_bytes = DEVICE_BYTES,
                                      .ops = &storm_region_ops,
                                      .opaque = device,
                                      .klass = klass,
                                      .reentrant = true};
    struct bb_device_timer_config timer = {
        .expired = storm_expired, .opaque = device, .locked = klass == BB_CLASS_DEVICE_LOCK};

    device->poison = ALIVE;
    (void)bb_fetch_add_relaxed(&storm_alive, 1);
    if (bb_device_create(ctx, &config, &device->device, NULL) != BB_OK ||
        bb_device_region_create(ctx, device->device, &region, &device->region, NULL) != BB_OK ||
        bb_source_create(ctx, device->device, storm_line, &device->source, NULL) != BB_OK ||
        bb_device_timer_create(ctx, device->device, &timer, &device->timer, NULL) != BB_OK) {
        abort();
    }
    *made = device->device;
    if (bb_space_map(ctx, machine.mmio, DEVICE_GPA(slot), device->region, NULL) != BB_OK) {
        /* The slot is still taken by one that removed itself a moment ago. */
        (void)bb_device_remove_wait(ctx, device->device, NULL);
        return false;
    }
    return true;
}

static void storm_churn(struct bb_ctx *ctx, void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    unsigned slot = seed % STORM_SLOTS;

    while (bb_load_relaxed(&storm_stop) == 0) {
        struct bb_device *device;
        enum bb_class klass = (enum bb_class)((unsigned)rand_r(&seed) % 3);

        if (!storm_make(ctx, slot, klass, &device)) {
            continue;
        }
        for (unsigned i = 0; i < 20; i++) {
            uint64_t value;
            (void)bb_mmio_read(ctx, machine.mmio, DEVICE_GPA(slot), 4, &value);
        }
        if (rand_r(&seed) % 2 == 0) {
            /* By itself, in its own callback. */
            (void)bb_mmio_write(ctx, machine.mmio, DEVICE_GPA(slot), 4, 3);
        } else if (bb_device_remove_wait(ctx, device, NULL) != BB_OK) {
            abort();
        }
    }
}

static void storm_access(struct bb_ctx *ctx, void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    uint64_t count = 0;

    while (bb_load_relaxed(&storm_stop) == 0) {
        uint64_t value;
        bb_gpa_t gpa =
            DEVICE_GPA((unsigned)rand_r(&seed) % STORM_SLOTS) + ((unsigned)rand_r(&seed) % 32) * 8;

        if (rand_r(&seed) % 2 == 0) {
            (void)bb_mmio_read(ctx, machine.mmio, gpa, 4, &value);
        } else {
            (void)bb_mmio_write(ctx, machine.mmio, gpa, 4, (unsigned)rand_r(&seed) % 3);
        }
        count++;
    }
    (void)bb_fetch_add_relaxed(&storm_accesses, count);
}

Test(device_host, nothing_of_a_removed_device_ever_runs)
{
    struct worker churn[2];
    struct worker access[64];
    unsigned threads = stress_threads(STORM_READERS) > 64 ? 64 : stress_threads(STORM_READERS);

    cr_assert_eq(bb_line_create(machine.ctx, "storm", NULL, &storm_line, NULL), BB_OK);
    for (unsigned i = 0; i < 2; i++) {
        worker_start(&churn[i], &machine, "churn", storm_churn, (void *)(uintptr_t)(i + 1));
    }
    for (unsigned i = 0; i < threads; i++) {
        worker_start(&access[i], &machine, "access", storm_access, (void *)(uintptr_t)(i + 7));
    }
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);
    while (host_ns() < end) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    bb_store_relaxed(&storm_stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        worker_join(&churn[i]);
    }
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&access[i]);
    }
    while (bb_load_acquire(&storm_alive) != 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    cr_assert_eq(storm_bad, 0, "%u callbacks of dead devices", storm_bad);
    cr_assert_gt(storm_accesses, 0);
    cr_assert_not(bb_line_read(storm_line).level, "asserted levels are withdrawn");
    cr_assert_eq(bb_line_destroy(machine.ctx, storm_line, NULL), BB_OK);
}
