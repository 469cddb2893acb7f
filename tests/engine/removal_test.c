/* SPDX-License-Identifier: MIT */
/* Removal against removal, against failure, and against chains that have not ended. */
#include "fixture.h"

#include <string.h>

#include "../../engine/engine_internal.h"

static struct machine machine;
static struct probe a, b;

static void setup(void)
{
    struct bb_engine_config config = {.clock_mode = BB_CLOCK_MANUAL, .external_lock = outer_hooks};

    machine_make(&machine, &config);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(removal, .init = setup, .fini = teardown, .timeout = 60);
TestSuite(removal_alone, .timeout = 60);

static void wait_destroyed(struct probe *probe)
{
    while (bb_load_acquire(&probe->destroyed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

static unsigned done_calls;

static void count_done(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_acq_rel(&done_calls, 1); /* pairs with the tests' acquire loads */
}

static void remove_a(struct bb_ctx *ctx, void *arg)
{
    *(int *)arg = bb_device_remove(ctx, a.device, NULL, NULL, NULL);
}

static bool meanwhile_done;
static unsigned destroyed_meanwhile;

/* Called in the middle of the region's removal: lets the device's removal go as far as it can. */
static void remove_the_device_meanwhile(struct probe *probe)
{
    struct worker worker;
    int result = BB_E_STATE;

    if (meanwhile_done) {
        return;
    }
    meanwhile_done = true;
    worker_start(&worker, &machine, "remover", remove_a, &result);
    worker_join(&worker);
    for (unsigned i = 0; i < 20; i++) {
        (void)bb_rcu_synchronize(machine.ctx);
    }
    destroyed_meanwhile = bb_load_acquire(&probe->destroyed);
}

Test(removal, a_device_outlives_the_removal_of_its_region_that_has_begun)
{
    meanwhile_done = false;
    bb_store_relaxed(&done_calls, 0);
    a = (struct probe){.cancel = remove_the_device_meanwhile};
    probe_make(&machine, &a, "a", 0, BB_CLASS_MAY_SLEEP);
    cr_assert_eq(bb_region_remove(machine.ctx, a.region, count_done, NULL, NULL), BB_OK);
    cr_assert(meanwhile_done);
    cr_assert_eq(destroyed_meanwhile, 0, "freed under the removal of its region");
    wait_destroyed(&a);
    while (bb_load_acquire(&done_calls) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

static unsigned refuse_allocations;
static int armed_meanwhile;
static struct bb_ctx *arming_ctx;
static struct bb_device_timer *timer;
static uint64_t expiries;

static void *refusing_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    if (bb_load_relaxed(&refuse_allocations) != 0) {
        armed_meanwhile = bb_device_timer_arm(arming_ctx, timer, 5);
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

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)opaque;
    (void)deadline_ns;
    expiries++;
}

Test(removal_alone, that_fails_for_want_of_memory_has_not_begun)
{
    struct bb_allocator allocator = {refusing_alloc, plain_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator, .clock_mode = BB_CLOCK_MANUAL};
    struct bb_device_timer_config timer_config = {.expired = expired, .locked = true};

    a = (struct probe){0};
    machine_make(&machine, &config);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_timer_create(machine.ctx, a.device, &timer_config, &timer, NULL), BB_OK);
    cr_assert_eq(bb_device_timer_arm(machine.ctx, timer, 1000), BB_OK);
    arming_ctx = machine.ctx;
    armed_meanwhile = BB_E_STATE;
    bb_store_relaxed(&refuse_allocations, 1);
    /* The removal's own record is not the map's: the first allocation is the commit's. */
    cr_assert_eq(bb_device_remove(machine.ctx, a.device, NULL, NULL, NULL), BB_E_NOMEM);
    bb_store_relaxed(&refuse_allocations, 0);
    cr_assert_eq(armed_meanwhile, BB_OK, "refused for a removal that never was: %d",
                 armed_meanwhile);
    cr_assert_eq(bb_clock_step(machine.ctx, bb_engine_clock(machine.engine), 10, NULL), BB_OK);
    cr_assert_eq(expiries, 1);
    (void)mmio_read(&machine, a.gpa, 4);
    probe_drop(&a);
    machine_drop(&machine);
}

static int remove_self(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)offset;
    (void)size;
    return value == 0 ? bb_device_remove(ctx, probe->device, NULL, NULL, NULL)
                      : bb_region_remove(ctx, probe->region, NULL, NULL, NULL);
}

static unsigned held_in_cancel;
static unsigned cancels;

static void note_what_is_held(struct bb_ctx *ctx, void *opaque)
{
    (void)opaque;
    if (ctx->lock_depth != 0 || ctx->callback_depth != 0 || bb_section_active_(ctx)) {
        bb_store_relaxed(&held_in_cancel, 1);
    }
    (void)bb_fetch_add_acq_rel(&cancels, 1); /* pairs with the test's acquire load */
}

static int write_self(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    return remove_self(ctx, opaque, offset, size, value);
}

static void set_destroyed(void *opaque)
{
    struct probe *probe = opaque;

    (void)bb_fetch_add_acq_rel(&probe->destroyed, 1); /* pairs with wait_destroyed() */
}

Test(removal, the_cancel_hook_is_called_with_nothing_held_wherever_removal_is_asked_for)
{
    static const struct bb_region_ops region_ops = {.write = write_self};
    static const struct bb_device_ops ops = {.cancel = note_what_is_held, .destroy = set_destroyed};

    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct bb_device_config config = {.name = "a", .ops = &ops, .opaque = &a};
        struct bb_region_config region = {.name = "a",
                                          .size_bytes = 16,
                                          .ops = &region_ops,
                                          .opaque = &a,
                                          .klass = (enum bb_class)klass};

        a = (struct probe){0};
        bb_store_relaxed(&cancels, 0);
        cr_assert_eq(bb_device_create(machine.ctx, &config, &a.device, NULL), BB_OK);
        cr_assert_eq(bb_device_region_create(machine.ctx, a.device, &region, &a.region, NULL),
                     BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, DEVICE_GPA(0), a.region, NULL), BB_OK);
        mmio_write(&machine, DEVICE_GPA(0), 4, 0);
        wait_destroyed(&a);
        cr_assert_eq(bb_load_relaxed(&held_in_cancel), 0, "class %u", klass);
        cr_assert_geq(bb_load_acquire(&cancels), 1);
    }
}

static void on_paused(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err)
{
    (void)opaque;
    (void)err;
    if (result == BB_OK && bb_engine_resume(ctx, NULL) != BB_OK) {
        abort();
    }
    (void)bb_fetch_add_acq_rel(&done_calls, 1); /* pairs with the test's acquire load */
}

struct reader {
    struct door inside;
    struct door leave;
};

static void read_until_told(struct bb_ctx *ctx, void *arg)
{
    struct reader *reader = arg;

    bb_rcu_read_lock(ctx);
    door_open(&reader->inside);
    door_wait(&reader->leave);
    bb_rcu_read_unlock(ctx);
}

struct destroyer {
    struct bb_engine *engine;
    struct bb_error err;
    int result;
};

static void *destroy_engine(void *arg)
{
    struct destroyer *destroyer = arg;

    destroyer->result = bb_engine_destroy(destroyer->engine, &destroyer->err);
    return NULL;
}

Test(removal_alone, of_the_engine_lets_an_asynchronous_pause_end_first)
{
    struct machine other;

    machine_make(&other, NULL);
    bb_store_relaxed(&done_calls, 0);
    for (unsigned i = 0; i < 10; i++) {
        struct bb_engine *engine;
        struct bb_ctx *ctx;
        struct bb_error err = {0};
        struct destroyer destroyer = {0};
        struct reader reader = {DOOR_INIT, DOOR_INIT};
        struct worker worker;
        pthread_t thread;

        cr_assert_eq(bb_engine_create(NULL, &engine, &err), BB_OK);
        cr_assert_eq(bb_ctx_attach(engine, "main", &ctx, &err), BB_OK);
        worker_start(&worker, &other, "reader", read_until_told, &reader);
        door_wait(&reader.inside);
        cr_assert_eq(bb_engine_pause_async(ctx, 0, on_paused, NULL, &err), BB_OK);
        cr_assert_eq(bb_ctx_detach(ctx, &err), BB_OK);
        destroyer.engine = engine;
        cr_assert_eq(pthread_create(&thread, NULL, destroy_engine, &destroyer), 0);
        /* The pause's grace period waits for this reader, while destruction goes as far as it
         * can. Too short a wait makes the test easier, never wrong. */
        uint64_t end = host_ns() + 20000000;
        while (host_ns() < end) {
        }
        door_open(&reader.leave);
        pthread_join(thread, NULL);
        worker_join(&worker);
        cr_assert_eq(destroyer.result, BB_OK, "round %u: %s", i, destroyer.err.text);
        cr_assert_eq(bb_load_acquire(&done_calls), i + 1);
    }
    machine_drop(&other);
}

/* A sink whose notified() writes to b: an effect of whoever sets its line. */
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
    (void)bb_mmio_write(ctx, machine.mmio, b.gpa, 4, pins);
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
    probe_drop(&b);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

static void set_in_section(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    bb_rcu_read_lock(ctx);
    bb_source_set(ctx, source, true);
    bb_rcu_read_unlock(ctx);
}

Test(removal, does_not_wait_for_what_a_thread_that_is_gone_had_posted)
{
    struct worker worker;

    a = (struct probe){0};
    b = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    sink_make();
    worker_start(&worker, &machine, "setter", set_in_section, NULL);
    worker_join(&worker);
    cr_assert_eq(bb_load_relaxed(&b.writes), 1, "its effect ran before it was gone");
    sink_drop(); /* would wait for ever for the effect's pin */
}

static void block_on_door(void *opaque)
{
    door_wait(opaque);
    (void)bb_fetch_add_acq_rel(&done_calls, 1); /* pairs with the test's acquire load */
}

Test(removal, that_blocks_does_not_queue_behind_anothers_completion)
{
    struct door door = DOOR_INIT;

    bb_store_relaxed(&done_calls, 0);
    a = (struct probe){0};
    b = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_remove(machine.ctx, a.device, block_on_door, &door, NULL), BB_OK);
    wait_destroyed(&a); /* the completion is at the door, or about to be */
    cr_assert_eq(bb_region_remove(machine.ctx, b.region, NULL, NULL, NULL), BB_OK);
    probe_drop(&b); /* a region of it is being removed by itself, with a completion to come */
    cr_assert_eq(bb_load_acquire(&done_calls), 0);
    door_open(&door);
    while (bb_load_acquire(&done_calls) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

Test(removal, and_pieces_of_another_engine_are_refused_by_name)
{
    struct machine other;
    struct bb_error err = {0};

    machine_make(&other, NULL);
    a = (struct probe){0};
    struct bb_region_ops ops = {0};
    struct bb_region_config region = {.name = "r", .size_bytes = 4, .ops = &ops};
    struct bb_device_timer_config timer_config = {.expired = expired};
    struct bb_region *made_region;

    probe_make(&machine, &a, "mine", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_region_create(other.ctx, a.device, &region, &made_region, &err),
                 BB_E_INVAL);
    cr_assert_eq(bb_device_timer_create(other.ctx, a.device, &timer_config, &timer, &err),
                 BB_E_INVAL);
    cr_assert_eq(bb_source_create(other.ctx, a.device, NULL, &source, &err), BB_E_INVAL);
    struct bb_line_sink to = {.notify = sink_notify, .device = a.device};
    cr_assert_eq(bb_line_create(other.ctx, "line", &to, &line, &err), BB_E_INVAL);
    cr_assert_eq(bb_device_remove(other.ctx, a.device, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "mine"), "%s", err.text);
    cr_assert_eq(bb_region_remove(other.ctx, a.region, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "mine"), "%s", err.text);
    cr_assert_eq(bb_device_remove(machine.ctx, NULL, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_region_remove(machine.ctx, NULL, NULL, NULL, &err), BB_E_INVAL);
    probe_drop(&a);
    machine_drop(&other);
}
