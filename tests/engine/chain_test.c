/* SPDX-License-Identifier: MIT */
/*
 * The chain rules (docs/architecture.md, "Chains"), each with the deadlock or the disorder that it
 * excludes: a suite with a timeout is the test for "does not deadlock".
 */
#include "fixture.h"

#include <string.h>

#include "../../engine/engine_internal.h"

enum { LOG_MAX = 64 };

static struct machine machine;
static struct {
    uint64_t address;
    uint32_t data;
    uint64_t ram; /* what the guest's memory held when the message arrived */
} messages[LOG_MAX];
static unsigned message_count;
static char trace[256];

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    if (message_count < LOG_MAX) {
        messages[message_count].address = address;
        messages[message_count].data = data;
        memcpy(&messages[message_count].ram, machine.ram_host, 8);
    }
    message_count++;
    strcat(trace, "m");
    return BB_OK;
}

static void setup(void)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver},
                                      .external_lock = outer_hooks};

    message_count = 0;
    trace[0] = '\0';
    machine_make(&machine, &config);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(chain, .init = setup, .fini = teardown, .timeout = 60);

static struct probe a, b, c;

/* A write to any of them is forwarded to the probe in `arg`, if there is one. */
static int forward(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                   uint64_t value)
{
    struct probe *to = probe->arg;

    strcat(trace, probe == &a ? "a" : (probe == &b ? "b" : "c"));
    if (to == NULL) {
        return BB_OK;
    }
    int result = bb_mmio_write(ctx, machine.mmio, to->gpa + offset, size, value + 1);
    strcat(trace, "."); /* the write call has returned */
    return result;
}

Test(chain, a_write_under_a_device_lock_is_posted_and_done_before_the_access_returns)
{
    a = (struct probe){.write = forward, .arg = &b};
    b = (struct probe){.write = forward};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, 10);
    cr_assert_str_eq(trace, "a.b");
    cr_assert_eq(b.last_value, 11);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 1);
    probe_drop(&a);
    probe_drop(&b);
}

Test(chain, lockfree_reaches_lockfree_at_once_and_anything_else_later)
{
    a = (struct probe){.write = forward, .arg = &b};
    b = (struct probe){.write = forward, .arg = &c};
    c = (struct probe){.write = forward};
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
    probe_make(&machine, &c, "c", 2, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, "ab..c");
    cr_assert_eq(c.last_value, 3);
    probe_drop(&a);
    probe_drop(&b);
    probe_drop(&c);
}

static int read_other(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct probe *to = probe->arg;

    return to == NULL ? BB_OK : bb_mmio_read(ctx, machine.mmio, to->gpa + offset, size, value);
}

Test(chain, a_read_that_may_not_run_at_once_is_a_device_error_and_counted)
{
    uint64_t value = 0;

    for (unsigned klass = BB_CLASS_DEVICE_LOCK; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        uint64_t before = bb_engine_stats(machine.ctx).nested_refused;
        a = (struct probe){.read = read_other, .arg = &b};
        b = (struct probe){0};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, a.gpa, 4, &value), BB_E_DEVICE);
        cr_assert_eq(value, 0xffffffff);
        cr_assert_eq(b.reads, 0);
        cr_assert_eq(bb_engine_stats(machine.ctx).nested_refused, before + 1);
        probe_drop(&a);
        probe_drop(&b);
    }
}

static int dma(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
               uint64_t value)
{
    uint64_t back = 0;

    (void)probe;
    (void)offset;
    (void)size;
    if (bb_mmio_write(ctx, machine.mmio, 0x100, 8, value) != BB_OK ||
        bb_mmio_read(ctx, machine.mmio, 0x100, 8, &back) != BB_OK) {
        return BB_E_DEVICE;
    }
    return back == value ? BB_OK : BB_E_DEVICE;
}

Test(chain, ram_is_reached_at_once_whatever_the_chain_holds)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        a = (struct probe){.write = dma};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        mmio_write(&machine, a.gpa, 8, 0x1122334455667788 + klass);
        cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 0);
        probe_drop(&a);
    }
}

/* Posts a write to b, then data to RAM, then a message. */
static int write_data_announce(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                               unsigned size, uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)bb_mmio_write(ctx, machine.mmio, b.gpa, 4, 1);
    (void)bb_mmio_write(ctx, machine.mmio, 0, 8, value);
    uint64_t seen = 0;
    (void)bb_mmio_read(ctx, machine.mmio, 0, 8, &seen);
    if (seen != value) {
        return BB_E_DEVICE; /* the chain does not see its own write */
    }
    (void)bb_mmio_read(ctx, machine.mmio, 2, 2, &seen);
    if (seen != ((value >> 16) & 0xffff)) {
        return BB_E_DEVICE;
    }
    return bb_msi_send(ctx, 0xfee00000, 0x41);
}

Test(chain, data_and_message_keep_their_order_behind_a_posted_write)
{
    a = (struct probe){.write = write_data_announce};
    b = (struct probe){.write = forward};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 8, 0xabcdef0123456789);
    cr_assert_str_eq(trace, "bm");
    cr_assert_eq(message_count, 1);
    cr_assert_eq(messages[0].ram, 0xabcdef0123456789, "announced before the data was there");
    probe_drop(&a);
    probe_drop(&b);
}

/* a posts writes to b and to c; b forwards to a RAM-free c2. Depth first: a. b's own before c. */
static struct probe d;
static int write_two(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t value)
{
    (void)probe;
    strcat(trace, "a");
    (void)bb_mmio_write(ctx, machine.mmio, b.gpa + offset, size, value);
    (void)bb_mmio_write(ctx, machine.mmio, c.gpa + offset, size, value);
    (void)bb_msi_send(ctx, 0xfee00000, 1);
    return BB_OK;
}

static int note_d(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    strcat(trace, "d");
    return BB_OK;
}

Test(chain, what_a_posted_write_causes_comes_before_what_was_posted_after_it)
{
    a = (struct probe){.write = write_two};
    b = (struct probe){.write = forward, .arg = &d};
    c = (struct probe){.write = forward};
    d = (struct probe){.write = note_d};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &c, "c", 2, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &d, "d", 3, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, "ab.dcm", "%s", trace);
    probe_drop(&a);
    probe_drop(&b);
    probe_drop(&c);
    probe_drop(&d);
}

Test(chain, a_device_that_reaches_itself_is_refused_and_counted)
{
    static const enum bb_class classes[] = {BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK,
                                            BB_CLASS_MAY_SLEEP};

    for (unsigned i = 0; i < 3; i++) {
        uint64_t before = bb_engine_stats(machine.ctx).reentrant;
        trace[0] = '\0';
        a = (struct probe){.write = forward, .arg = &b};
        b = (struct probe){.write = forward, .arg = &a};
        probe_make(&machine, &a, "a", 0, classes[i]);
        probe_make(&machine, &b, "b", 1, classes[i]);
        (void)bb_mmio_write(machine.ctx, machine.mmio, a.gpa, 4, 1);
        cr_assert_eq(a.writes, 1);
        cr_assert_eq(b.writes, 1);
        cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, before + 1);
        probe_drop(&a);
        probe_drop(&b);
    }
}

static int ping_b_only(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    struct probe *to = probe->arg;

    /* Only a write that comes from outside is passed on: even values. */
    if (offset != 0) {
        return BB_OK;
    }
    return bb_mmio_write(ctx, machine.mmio, to->gpa + 4, size, value);
}

Test(chain, a_declared_loop_comes_back_to_its_device)
{
    struct bb_region_config loop = {.klass = BB_CLASS_DEVICE_LOCK, .reentrant = true};

    a = (struct probe){.write = ping_b_only, .arg = &b};
    b = (struct probe){.write = forward, .arg = &a};
    probe_make_config(&machine, &a, "a", 0, &loop);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(a.writes, 2, "b was allowed to answer a");
    cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, 0);
    probe_drop(&a);
    probe_drop(&b);
}

static int ping(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                uint64_t value)
{
    struct probe *to = probe->arg;

    return bb_mmio_write(ctx, machine.mmio, to->gpa + offset, size, value);
}

Test(chain, two_devices_that_write_to_each_other_for_ever_are_stopped_by_the_budget)
{
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK, .reentrant = true};

    a = (struct probe){.write = ping, .arg = &b};
    b = (struct probe){.write = ping, .arg = &a};
    probe_make_config(&machine, &a, "a", 0, &config);
    probe_make_config(&machine, &b, "b", 1, &config);
    (void)bb_mmio_write(machine.ctx, machine.mmio, a.gpa, 4, 1);
    struct bb_engine_stats stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(stats.effects_posted, 256);
    cr_assert_eq(a.writes + b.writes, 257);
    cr_assert_eq(stats.effects_refused, 1);
    /* The next chain has a budget of its own. */
    (void)bb_mmio_write(machine.ctx, machine.mmio, a.gpa, 4, 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 512);
    probe_drop(&a);
    probe_drop(&b);
}

static int post_many(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t value)
{
    (void)probe;
    for (uint64_t i = 0; i < value; i++) {
        if (bb_mmio_write(ctx, machine.mmio, b.gpa + offset, size, i) != BB_OK) {
            return BB_E_DEVICE;
        }
    }
    return BB_OK;
}

Test(chain, a_full_queue_is_a_device_error_and_what_was_posted_still_runs)
{
    a = (struct probe){.write = post_many};
    b = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, BB_CHAIN_QUEUE_);
    cr_assert_eq(b.writes, BB_CHAIN_QUEUE_);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, a.gpa, 4, BB_CHAIN_QUEUE_ + 1),
                 BB_E_DEVICE);
    cr_assert_eq(b.writes, 2 * BB_CHAIN_QUEUE_);
    cr_assert_eq(b.last_value, BB_CHAIN_QUEUE_ - 1);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, 1);
    probe_drop(&a);
    probe_drop(&b);
}

static void hammer_a(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;

    for (unsigned i = 0; i < 20000; i++) {
        if (bb_mmio_write(ctx, machine.mmio, probe->gpa, 4, i) != BB_OK) {
            abort();
        }
    }
}

/* The AB-BA of every bus with a lock per device: held while the other's is taken. */
Test(chain, two_vcpus_that_cross_two_locked_devices_do_not_deadlock)
{
    struct worker one, two;

    a = (struct probe){.write = ping_b_only, .arg = &b};
    b = (struct probe){.write = ping_b_only, .arg = &a};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    worker_start(&one, &machine, "one", hammer_a, &a);
    worker_start(&two, &machine, "two", hammer_a, &b);
    worker_join(&one);
    worker_join(&two);
    cr_assert_eq(a.writes, 40000);
    cr_assert_eq(b.writes, 40000);
    cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, 0,
                 "re-entrancy is a matter of one chain, not of two vCPUs at once");
    probe_drop(&a);
    probe_drop(&b);
}

static struct bb_lock *narrow;

static int narrow_then_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                             unsigned size, uint64_t value)
{
    struct probe *to = probe->arg;
    int result;

    bb_lock_acquire(ctx, narrow);
    result = bb_mmio_write(ctx, machine.mmio, to->gpa + offset, size, value);
    strcat(trace, "."); /* returned, lock still held */
    bb_lock_release(ctx, narrow);
    return result;
}

Test(chain, a_narrow_lock_in_a_lockfree_device_counts_as_a_lock)
{
    a = (struct probe){.write = narrow_then_write, .arg = &b};
    b = (struct probe){.write = forward};
    cr_assert_eq(bb_lock_create(machine.ctx, "narrow", BB_RANK_NARROW, &narrow, NULL), BB_OK);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, ".b");
    probe_drop(&a);
    probe_drop(&b);
    bb_lock_destroy(machine.ctx, narrow);
}

static unsigned call_depths;
static uint64_t call_order;

static void called(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)opaque;
    call_order = call_order * 10 + argument;
    call_depths += ctx->lock_depth + (bb_section_active_(ctx) ? 100 : 0);
}

static int post_calls(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    if (bb_post(ctx, probe->device, called, NULL, 1) != BB_OK ||
        bb_post(ctx, probe->device, called, NULL, 2) != BB_OK) {
        return BB_E_DEVICE;
    }
    call_order = 0; /* neither has run yet */
    return BB_OK;
}

Test(chain, posted_calls_run_in_order_with_nothing_held_before_the_access_returns)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        call_order = 0;
        call_depths = 0;
        a = (struct probe){.write = post_calls};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        mmio_write(&machine, a.gpa, 4, 1);
        cr_assert_eq(call_order, 12);
        cr_assert_eq(call_depths, 0);
        call_order = 0;
        cr_assert_eq(bb_post(machine.ctx, a.device, called, NULL, 3), BB_OK);
        cr_assert_eq(call_order, 3, "outside a callback it has run on return");
        probe_drop(&a);
    }
}

static int results[4];

static int try_blocking(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    results[0] = bb_device_remove_wait(ctx, probe->device, NULL);
    results[1] = bb_region_remove_wait(ctx, probe->region, NULL);
    results[2] = bb_engine_pause(ctx, 1000000, NULL);
    results[3] = bb_rcu_synchronize(ctx);
    return BB_OK;
}

static void posted_blocking(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    struct probe *probe = opaque;

    (void)try_blocking(ctx, probe, 0, 0, argument);
}

static void assert_all_refused(const char *where)
{
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(results[i], BB_E_CONTEXT, "%s, call %u: %d", where, i, results[i]);
    }
}

Test(chain, blocking_calls_are_refused_wherever_they_could_deadlock)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        a = (struct probe){.write = try_blocking};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        memset(results, 0, sizeof(results));
        mmio_write(&machine, a.gpa, 4, 1);
        assert_all_refused("callback");
        cr_assert_eq(bb_post(machine.ctx, a.device, posted_blocking, &a, 0), BB_OK);
        assert_all_refused("posted call, which pins its device");
        bb_device_lock(machine.ctx, a.device);
        (void)try_blocking(machine.ctx, &a, 0, 0, 0);
        bb_device_unlock(machine.ctx, a.device);
        assert_all_refused("device lock");
        bb_rcu_read_lock(machine.ctx);
        (void)try_blocking(machine.ctx, &a, 0, 0, 0);
        bb_rcu_read_unlock(machine.ctx);
        assert_all_refused("section");
        probe_drop(&a);
    }
}

static int remove_self_and_post(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    /* The effect posted before keeps the device until it has run. */
    if (bb_mmio_write(ctx, machine.mmio, b.gpa, 4, 77) != BB_OK) {
        return BB_E_DEVICE;
    }
    return bb_device_remove(ctx, probe->device, NULL, NULL, NULL);
}

static int destroyed_yet(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    *(unsigned *)probe->arg = bb_load_acquire(&a.destroyed) + 1;
    return BB_OK;
}

Test(chain, posting_pins_the_poster_until_its_effect_has_run)
{
    unsigned answer = 0;

    a = (struct probe){.write = remove_self_and_post};
    b = (struct probe){.write = destroyed_yet, .arg = &answer};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_eq(answer, 1, "the effect ran, and its poster was not destroyed then");
    cr_assert_eq(b.last_value, 77);
    while (bb_load_acquire(&a.destroyed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
    probe_drop(&b);
}

static int remove_self(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    int first = bb_device_remove(ctx, probe->device, NULL, NULL, NULL);
    int second = bb_device_remove(ctx, probe->device, NULL, NULL, NULL);
    bool alive = bb_load_acquire(&probe->destroyed) == 0;

    return first == BB_OK && second == BB_E_STATE && alive ? BB_OK : BB_E_DEVICE;
}

Test(chain, a_device_may_remove_itself_in_its_own_callback)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        uint64_t value;

        a = (struct probe){.write = remove_self};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        mmio_write(&machine, a.gpa, 4, 1);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, a.gpa, 4, &value), BB_E_DECODE);
        while (bb_load_acquire(&a.destroyed) == 0) {
            cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        }
    }
}

static struct bb_source *source;
static struct bb_line *line;

static int write_then_raise(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                            uint64_t value)
{
    (void)probe;
    (void)bb_mmio_write(ctx, machine.mmio, b.gpa + offset, size, value);
    bb_source_set(ctx, source, true);
    if (value == 2) {
        bb_source_set(ctx, source, false); /* the raise is out of date before it was made */
    }
    if (value == 3) {
        bb_source_pulse(ctx, source);
    }
    return bb_line_read(line).level ? BB_E_DEVICE : BB_OK; /* not before the write */
}

static int note_level(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    strcat(trace, bb_line_read(line).level ? "H" : "L");
    return BB_OK;
}

Test(chain, a_raise_queues_behind_a_posted_write_and_a_later_lower_wins)
{
    a = (struct probe){.write = write_then_raise};
    b = (struct probe){.write = note_level};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &b, "b", 1, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_line_create(machine.ctx, "line", NULL, &line, NULL), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, a.device, line, &source, NULL), BB_OK);
    mmio_write(&machine, a.gpa, 4, 1);
    cr_assert_str_eq(trace, "L", "the write came first");
    cr_assert(bb_line_read(line).level, "and the raise after it");
    bb_source_set(machine.ctx, source, false);
    mmio_write(&machine, a.gpa, 4, 2);
    cr_assert_not(bb_line_read(line).level, "a posted raise is no value: the later lower stands");
    uint32_t rises = bb_line_read(line).rises;
    bb_source_set(machine.ctx, source, false);
    mmio_write(&machine, a.gpa, 4, 3);
    cr_assert_eq(bb_line_read(line).rises, rises + 1);
    probe_drop(&a);
    cr_assert_not(bb_line_read(line).level, "removal withdraws the level");
    probe_drop(&b);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

Test(chain, a_nested_write_to_nothing_is_a_decode_error_at_once)
{
    a = (struct probe){.write = forward, .arg = &b};
    b = (struct probe){.gpa = 0xfd000000};
    probe_make(&machine, &a, "a", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, a.gpa, 4, 1), BB_E_DEVICE);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_writes, 1);
    probe_drop(&a);
}
