/* SPDX-License-Identifier: MIT */
/* Chains that begin outside any access, that cross inboxes, and what queues behind a write. */
#include "fixture.h"

#include <string.h>

#include "../../engine/engine_internal.h"

static struct machine machine;
static struct probe a, b, c, d;
static char trace[256];

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    (void)address;
    strcat(trace, "m");
    if (data == 1) { /* a sink that is a model: it writes to d */
        (void)bb_mmio_write(ctx, machine.mmio, d.gpa, 4, 0);
    }
    strcat(trace, ".");
    return BB_OK;
}

static void setup(void)
{
    struct bb_engine_config config = {.clock_mode = BB_CLOCK_MANUAL,
                                      .msi_sink = {.deliver = deliver}};

    trace[0] = '\0';
    machine_make(&machine, &config);
    a = (struct probe){0};
    b = (struct probe){0};
    c = (struct probe){0};
    d = (struct probe){0};
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(crossing, .init = setup, .fini = teardown, .timeout = 60);

static int note(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                uint64_t value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    strcat(trace, probe == &b ? "b" : (probe == &c ? "c" : "d"));
    return BB_OK;
}

static int write_send_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                            uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    if (bb_mmio_write(ctx, machine.mmio, b.gpa, 4, 0) != BB_OK ||
        bb_msi_send(ctx, 0xfee00000, (uint32_t)value) != BB_OK ||
        bb_mmio_write(ctx, machine.mmio, c.gpa, 4, 0) != BB_OK) {
        return BB_E_DEVICE;
    }
    return BB_OK;
}

Test(crossing, a_message_sink_that_makes_an_access_does_not_run_the_epilogue_again)
{
    a.write = write_send_write;
    b.write = c.write = d.write = note;
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &c, "c", 2, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &d, "d", 3, BB_CLASS_LOCKFREE);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, "bmd.c", "%s", trace);
    trace[0] = '\0';
    cr_assert_eq(bb_msi_send(machine.ctx, 0xfee00000, 1), BB_OK);
    cr_assert_str_eq(trace, "md.", "%s", trace);
    probe_drop(&a);
    probe_drop(&b);
    probe_drop(&c);
    probe_drop(&d);
}

static struct bb_line *line;
static struct bb_source *source;
static unsigned held_in_call;
static unsigned calls;

static void called(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)opaque;
    (void)argument;
    calls++;
    if (ctx->lock_depth != 0 || bb_section_active_(ctx)) {
        held_in_call++;
    }
}

static void post_in_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    (void)opaque;
    (void)pin;
    (void)bb_post(ctx, b.device, called, NULL, 0);
}

Test(crossing, what_a_sink_posts_runs_with_nothing_held_whoever_set_the_line)
{
    struct bb_line_sink to = {.notify = post_in_notify};

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
    to.device = b.device;
    cr_assert_eq(bb_line_create(machine.ctx, "line", &to, &line, NULL), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, a.device, line, &source, NULL), BB_OK);
    bb_source_set(machine.ctx, source, true);
    cr_assert_eq(calls, 1);
    bb_source_pulse(machine.ctx, source);
    bb_device_lock(machine.ctx, a.device);
    bb_source_set(machine.ctx, source, false);
    cr_assert_eq(calls, 1, "not under the lock");
    bb_device_unlock(machine.ctx, a.device);
    cr_assert_eq(calls, 2, "but when it is released");
    cr_assert_eq(held_in_call, 0);
    bb_rcu_read_lock(machine.ctx);
    cr_assert_eq(bb_post(machine.ctx, b.device, called, NULL, 0), BB_E_CONTEXT);
    bb_rcu_read_unlock(machine.ctx);
    probe_drop(&a);
    probe_drop(&b);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

/* x writes to the sink's region; meanwhile another thread sets the sink's line; the sink, when its
 * lock is released, writes to x. */
static struct bb_device *sink;
static struct bb_region *sink_region;

static void sink_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    (void)opaque;
    bb_device_notify(ctx, sink, pin);
}

static void sink_notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    (void)opaque;
    (void)pins;
    (void)bb_mmio_write(ctx, machine.mmio, a.gpa + 4, 4, 7);
}

static void set_line(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    bb_source_set(ctx, source, true);
}

static int sink_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct worker worker;

    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    (void)value;
    worker_start(&worker, &machine, "other-vcpu", set_line, NULL);
    worker_join(&worker);
    return BB_OK;
}

static int write_to_sink(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)probe;
    return offset != 0 ? BB_OK : bb_mmio_write(ctx, machine.mmio, DEVICE_GPA(5), size, value);
}

Test(crossing, what_another_vcpu_left_in_an_inbox_is_not_refused_for_the_finders_ancestry)
{
    static const struct bb_device_ops ops = {.notified = sink_notified};
    static const struct bb_region_ops region_ops = {.write = sink_write};
    struct bb_device_config config = {.name = "sink", .ops = &ops};
    struct bb_region_config region = {
        .name = "sink", .size_bytes = 16, .ops = &region_ops, .klass = BB_CLASS_DEVICE_LOCK};
    struct bb_line_sink to = {.notify = sink_notify};

    a.write = write_to_sink;
    probe_make(&machine, &a, "x", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "setter", 1, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_create(machine.ctx, &config, &sink, NULL), BB_OK);
    cr_assert_eq(bb_device_region_create(machine.ctx, sink, &region, &sink_region, NULL), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, DEVICE_GPA(5), sink_region, NULL), BB_OK);
    to.device = sink;
    cr_assert_eq(bb_line_create(machine.ctx, "line", &to, &line, NULL), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, b.device, line, &source, NULL), BB_OK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, 0);
    cr_assert_eq(a.writes, 2);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink, NULL), BB_OK);
    probe_drop(&a);
    probe_drop(&b);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

static struct bb_device_timer *timer;
static uint64_t expiries;

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)opaque;
    (void)deadline_ns;
    (void)bb_fetch_add_acq_rel(&expiries, 1); /* pairs with the test's acquire load */
}

static struct door held = DOOR_INIT;
static struct door release = DOOR_INIT;

static void hold_then_disarm(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    bb_device_lock(ctx, a.device);
    door_open(&held);
    door_wait(&release);
    bb_device_timer_disarm(ctx, timer);
    bb_device_unlock(ctx, a.device);
}

Test(crossing, an_expiry_in_the_inbox_that_was_disarmed_under_the_lock_is_dropped)
{
    struct bb_device_timer_config config = {.expired = expired, .locked = true};
    struct worker worker;

    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_device_timer_create(machine.ctx, a.device, &config, &timer, NULL), BB_OK);
    worker_start(&worker, &machine, "holder", hold_then_disarm, NULL);
    door_wait(&held);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, timer, 10), BB_OK);
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), 10, NULL), BB_OK);
    door_open(&release);
    worker_join(&worker);
    cr_assert_eq(bb_load_acquire(&expiries), 0, "disarmed before it ran, and ran");
    cr_assert_eq(bb_device_timer_arm(machine.ctx, timer, 20), BB_OK);
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), 10, NULL), BB_OK);
    cr_assert_eq(bb_load_acquire(&expiries), 1, "the next one runs");
    probe_drop(&a);
}

/* Sinks that feed sinks. */
enum { CASCADE = 12 };

static struct stage {
    struct bb_device *device;
    struct bb_line *in;
    struct bb_source *out; /* the next stage's line */
    uint32_t level;
} stages[CASCADE];

static void stage_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct stage *stage = opaque;

    bb_device_notify(ctx, stage->device, pin);
}

static void stage_notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    struct stage *stage = opaque;
    bool level = bb_line_read(stage->in).level;

    (void)pins;
    bb_store_release(&stage->level, level); /* pairs with the test's acquire load */
    if (stage->out != NULL) {
        bb_source_set(ctx, stage->out, level);
    }
}

Test(crossing, a_long_cascade_of_locked_sinks_holds_few_locks_at_once)
{
    static const struct bb_device_ops ops = {.notified = stage_notified};

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < CASCADE; i++) {
        struct bb_device_config config = {.name = "stage", .ops = &ops, .opaque = &stages[i]};
        cr_assert_eq(bb_device_create(machine.ctx, &config, &stages[i].device, NULL), BB_OK);
        struct bb_line_sink to = {
            .notify = stage_notify, .opaque = &stages[i], .device = stages[i].device};
        cr_assert_eq(bb_line_create(machine.ctx, "in", &to, &stages[i].in, NULL), BB_OK);
    }
    for (unsigned i = 0; i + 1 < CASCADE; i++) {
        cr_assert_eq(
            bb_source_create(machine.ctx, stages[i].device, stages[i + 1].in, &stages[i].out, NULL),
            BB_OK);
    }
    cr_assert_eq(bb_source_create(machine.ctx, a.device, stages[0].in, &source, NULL), BB_OK);
    for (unsigned round = 0; round < 10; round++) {
        uint32_t level = (round + 1) % 2;
        bb_source_set(machine.ctx, source, level);
        while (bb_load_acquire(&stages[CASCADE - 1].level) != level) {
            cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        }
    }
    probe_drop(&a);
    for (unsigned i = 0; i < CASCADE; i++) {
        cr_assert_eq(bb_device_remove_wait(machine.ctx, stages[i].device, NULL), BB_OK);
    }
    for (unsigned i = 0; i < CASCADE; i++) {
        cr_assert_eq(bb_line_destroy(machine.ctx, stages[i].in, NULL), BB_OK);
    }
}

static uint64_t ram_at_write;

static int look_at_ram(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    memcpy(&ram_at_write, machine.ram_host, 8);
    strcat(trace, "b");
    return BB_OK;
}

static int write_then_dma(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                          uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)bb_mmio_write(ctx, machine.mmio, b.gpa, 4, 0);
    (void)bb_mmio_write(ctx, machine.mmio, 0, 8, value);
    return bb_mmio_write(ctx, machine.mmio, d.gpa, 4, 0);
}

Test(crossing, what_follows_a_posted_write_is_seen_by_nobody_before_that_write_is_made)
{
    a.write = write_then_dma;
    b.write = look_at_ram;
    d.write = note;
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &d, "d", 3, BB_CLASS_LOCKFREE);
    mmio_write(&machine, a.gpa, 8, 0x77);
    cr_assert_eq(ram_at_write, 0, "the DMA overtook the write");
    cr_assert_eq(machine.ram_host[0], 0x77);
    cr_assert_str_eq(trace, "bd", "the second device was reached first: %s", trace);
    probe_drop(&a);
    probe_drop(&b);
    probe_drop(&d);
}

static struct door effect_runs = DOOR_INIT;
static struct door effect_ends = DOOR_INIT;
static unsigned destroyed_in_effect;

static int outwait_grace_periods(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                 unsigned size, uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    door_open(&effect_runs);
    door_wait(&effect_ends);
    destroyed_in_effect = bb_load_acquire(&a.destroyed);
    return BB_OK;
}

static void pass_grace_periods(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    door_wait(&effect_runs);
    for (unsigned i = 0; i < 20; i++) {
        (void)bb_rcu_synchronize(ctx);
    }
    door_open(&effect_ends);
}

static int post_and_remove_self(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    if (bb_mmio_write(ctx, machine.mmio, b.gpa, 4, value) != BB_OK) {
        return BB_E_DEVICE;
    }
    return bb_device_remove(ctx, probe->device, NULL, NULL, NULL);
}

Test(crossing, removal_waits_for_an_effect_as_long_as_that_takes)
{
    struct worker worker;

    a.write = post_and_remove_self;
    b.write = outwait_grace_periods;
    probe_make(&machine, &a, "poster", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "slow", 1, BB_CLASS_MAY_SLEEP);
    worker_start(&worker, &machine, "grace", pass_grace_periods, NULL);
    mmio_write(&machine, a.gpa, 4, 1);
    worker_join(&worker);
    cr_assert_eq(destroyed_in_effect, 0, "destroyed while an effect of it ran");
    while (bb_load_acquire(&a.destroyed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    probe_drop(&b);
}
