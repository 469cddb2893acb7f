/* SPDX-License-Identifier: MIT */
/* Interrupt lines: wired OR, counted rises, pulled levels, sinks with and without a lock. */
#include "fixture.h"

#include <string.h>

static struct machine machine;
static struct probe owner, other;

static void setup(void)
{
    machine_make(&machine, NULL);
    owner = (struct probe){0};
    other = (struct probe){0};
    probe_make(&machine, &owner, "owner", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &other, "other", 1, BB_CLASS_LOCKFREE);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(line, .init = setup, .fini = teardown, .timeout = 120);

static struct bb_line *make_line(const struct bb_line_sink *sink)
{
    struct bb_line *line;
    struct bb_error err = {0};

    cr_assert_eq(bb_line_create(machine.ctx, "line", sink, &line, &err), BB_OK, "%s", err.text);
    return line;
}

static struct bb_source *make_source(struct probe *probe, struct bb_line *line)
{
    struct bb_source *source;
    struct bb_error err = {0};

    cr_assert_eq(bb_source_create(machine.ctx, probe->device, line, &source, &err), BB_OK, "%s",
                 err.text);
    return source;
}

static void drop_all(struct bb_line *line)
{
    probe_drop(&owner);
    probe_drop(&other);
    if (line != NULL) {
        cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
    }
}

Test(line, the_level_is_the_or_of_its_sources)
{
    struct bb_line *line = make_line(NULL);
    struct bb_source *s[2] = {make_source(&owner, line), make_source(&other, line)};

    for (unsigned bits = 0; bits < 4; bits++) {
        bb_source_set(machine.ctx, s[0], bits & 1);
        bb_source_set(machine.ctx, s[1], bits & 2);
        cr_assert_eq(bb_line_read(line).level, bits != 0);
        cr_assert_eq(bb_source_level(s[0]), bits & 1);
    }
    drop_all(line);
}

Test(line, rises_count_changes_of_the_or_and_pulses)
{
    struct bb_line *line = make_line(NULL);
    struct bb_source *s[2] = {make_source(&owner, line), make_source(&other, line)};

    bb_source_set(machine.ctx, s[0], true);
    bb_source_set(machine.ctx, s[0], true);
    bb_source_set(machine.ctx, s[1], true);
    bb_source_set(machine.ctx, s[0], false);
    cr_assert_eq(bb_line_read(line).rises, 1);
    bb_source_pulse(machine.ctx, s[0]); /* the line is high: the OR does not rise */
    cr_assert_eq(bb_line_read(line).rises, 1);
    bb_source_set(machine.ctx, s[1], false);
    bb_source_pulse(machine.ctx, s[0]);
    cr_assert_eq(bb_line_read(line).rises, 2);
    cr_assert_not(bb_line_read(line).level);
    drop_all(line);
}

Test(line, thirty_two_sources_fit_and_the_next_is_refused_with_a_way_out)
{
    struct bb_line *line = make_line(NULL);
    struct bb_source *s;
    struct bb_error err = {0};

    for (unsigned i = 0; i < BB_LINE_SOURCES_MAX; i++) {
        s = make_source(i % 2 ? &owner : &other, line);
        bb_source_set(machine.ctx, s, true);
    }
    cr_assert_eq(bb_source_create(machine.ctx, owner.device, line, &s, &err), BB_E_LIMIT);
    cr_assert_not_null(strstr(err.text, "second line"), "%s", err.text);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, &err), BB_E_STATE);
    probe_drop(&owner);
    cr_assert(bb_line_read(line).level);
    probe_drop(&other);
    cr_assert_not(bb_line_read(line).level);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
}

Test(line, a_source_without_a_line_keeps_its_level)
{
    struct bb_source *source = make_source(&owner, NULL);

    bb_source_set(machine.ctx, source, true);
    bb_source_pulse(machine.ctx, source);
    cr_assert(bb_source_level(source));
    drop_all(NULL);
}

/* A lock-free edge sink: consumes rises by compare-and-swap, counts what it took. */
struct edge_sink {
    struct bb_line *line;
    uint32_t consumed;
    uint64_t taken;
};

static void edge_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct edge_sink *sink = opaque;
    uint32_t consumed = bb_load_acquire(&sink->consumed);

    (void)ctx;
    (void)pin;
    for (;;) {
        uint32_t rises = bb_line_read(bb_load_acquire(&sink->line)).rises;
        if (rises == consumed) {
            return;
        }
        if ((int32_t)(rises - consumed) > 0 && bb_cas_acq_rel(&sink->consumed, &consumed, rises)) {
            (void)bb_fetch_add_relaxed(&sink->taken, rises - consumed);
            consumed = rises;
        } else {
            consumed = bb_load_acquire(&sink->consumed);
        }
    }
}

struct toggler {
    struct bb_source *source;
    uint64_t pulses;
    unsigned seconds;
};

static void pulse_on(struct bb_ctx *ctx, void *arg)
{
    struct toggler *toggler = arg;
    uint64_t end = host_ns() + toggler->seconds * UINT64_C(1000000000);

    while (host_ns() < end) {
        for (unsigned i = 0; i < 100; i++) {
            bb_source_pulse(ctx, toggler->source);
        }
        toggler->pulses += 100;
    }
}

Test(line, no_pulse_is_lost_and_none_is_seen_twice)
{
    struct edge_sink sink = {0};
    struct bb_line_sink to = {.notify = edge_notify, .opaque = &sink};
    struct bb_line *line = make_line(&to);
    enum { MAX = 64 };
    struct worker workers[MAX];
    struct toggler togglers[MAX] = {0};
    unsigned threads = stress_threads(4) > MAX ? MAX : stress_threads(4);
    unsigned sources = threads < BB_LINE_SOURCES_MAX ? threads : BB_LINE_SOURCES_MAX;
    struct bb_source *source[MAX];
    uint64_t pulses = 0;

    bb_store_release(&sink.line, line);
    for (unsigned i = 0; i < sources; i++) {
        source[i] = make_source(&owner, line);
    }
    for (unsigned i = 0; i < threads; i++) {
        togglers[i].source = source[i % sources];
        togglers[i].seconds = stress_seconds();
        worker_start(&workers[i], &machine, "pulse", pulse_on, &togglers[i]);
    }
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&workers[i]);
        pulses += togglers[i].pulses;
    }
    cr_assert_eq((uint32_t)pulses, bb_line_read(line).rises);
    cr_assert_eq(sink.taken, pulses, "taken %lu of %lu", (unsigned long)sink.taken,
                 (unsigned long)pulses);
    drop_all(line);
}

/* A level sink: publishes the level it pulled, and pulls again until nothing changed. */
struct level_sink {
    struct bb_line *line;
    uint64_t state; /* published level, with a version so that publishers don't pass each other */
};

static void level_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct level_sink *sink = opaque;
    uint64_t state = bb_load_acquire(&sink->state);

    (void)ctx;
    (void)pin;
    for (;;) {
        uint64_t level = bb_line_read(bb_load_acquire(&sink->line)).level;
        uint64_t next = ((state >> 1) + 1) << 1 | level;
        if (!bb_cas_acq_rel(&sink->state, &state, next)) {
            continue; /* pulled before somebody else published: pull again */
        }
        state = next;
        if (bb_line_read(sink->line).level == (level != 0)) {
            return;
        }
    }
}

static void toggle_on(struct bb_ctx *ctx, void *arg)
{
    struct toggler *toggler = arg;
    uint64_t end = host_ns() + toggler->seconds * UINT64_C(1000000000);

    do {
        for (unsigned i = 0; i < 100; i++) {
            bb_source_set(ctx, toggler->source, true);
            bb_source_set(ctx, toggler->source, false);
        }
    } while (host_ns() < end);
    bb_source_set(ctx, toggler->source, toggler->pulses != 0);
}

Test(line, a_slow_setter_never_leaves_a_stale_level_behind)
{
    struct level_sink sink = {0};
    struct bb_line_sink to = {.notify = level_notify, .opaque = &sink};
    struct bb_line *line = make_line(&to);
    struct worker workers[4];
    struct toggler togglers[4] = {0};
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);

    bb_store_release(&sink.line, line);
    for (unsigned i = 0; i < 4; i++) {
        togglers[i].source = make_source(&owner, line);
    }
    for (unsigned round = 0; host_ns() < end; round++) {
        bool wanted = round % 2;
        for (unsigned i = 0; i < 4; i++) {
            togglers[i].pulses = wanted && i == round % 4;
            worker_start(&workers[i], &machine, "toggle", toggle_on, &togglers[i]);
        }
        for (unsigned i = 0; i < 4; i++) {
            worker_join(&workers[i]);
        }
        cr_assert_eq(bb_line_read(line).level, wanted);
        cr_assert_eq(sink.state & 1, wanted, "round %u: stale level", round);
    }
    drop_all(line);
}

/* A sink under its device's lock, by bb_device_notify(). */
struct locked_sink {
    struct bb_device *device;
    struct bb_line *line[4];
    bool level[4]; /* guarded by the device's lock */
    uint32_t consumed[4];
    uint64_t edges;
    bool wrong;
};

static void locked_notify(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct locked_sink *sink = opaque;

    bb_device_notify(ctx, sink->device, pin);
}

static void locked_notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    struct locked_sink *sink = opaque;

    (void)ctx;
    for (unsigned pin = 0; pin < 4; pin++) {
        if ((pins >> pin & 1) != 0) {
            struct bb_line_state state = bb_line_read(sink->line[pin]);
            sink->level[pin] = state.level;
            sink->edges += state.rises - sink->consumed[pin];
            sink->consumed[pin] = state.rises;
        }
    }
}

static const struct bb_device_ops locked_ops = {.notified = locked_notified};

static void locked_sink_make(struct locked_sink *sink, unsigned lines)
{
    struct bb_device_config config = {.name = "sink", .ops = &locked_ops, .opaque = sink};

    cr_assert_eq(bb_device_create(machine.ctx, &config, &sink->device, NULL), BB_OK);
    for (unsigned pin = 0; pin < lines; pin++) {
        struct bb_line_sink to = {
            .notify = locked_notify, .opaque = sink, .pin = pin, .device = sink->device};
        sink->line[pin] = make_line(&to);
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

Test(line, a_setter_does_not_wait_for_the_sinks_lock_and_the_holder_does_the_work)
{
    struct locked_sink sink = {0};
    struct holder holder = {.held = DOOR_INIT, .release = DOOR_INIT};
    struct worker worker;

    locked_sink_make(&sink, 2);
    struct bb_source *source = make_source(&owner, sink.line[0]);
    bb_source_set(machine.ctx, source, true);
    cr_assert(sink.level[0], "a free lock: done when the raise returns");

    holder.device = sink.device;
    worker_start(&worker, &machine, "holder", hold_device, &holder);
    door_wait(&holder.held);
    bb_source_set(machine.ctx, source, false); /* returns, although the lock is held */
    cr_assert(sink.level[0], "not yet");
    door_open(&holder.release);
    worker_join(&worker);
    cr_assert_not(sink.level[0], "the holder found it on release");
    probe_drop(&owner);
    probe_drop(&other);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink.device, NULL), BB_OK);
    for (unsigned pin = 0; pin < 2; pin++) {
        cr_assert_eq(bb_line_destroy(machine.ctx, sink.line[pin], NULL), BB_OK);
    }
}

Test(line, taking_the_lock_empties_the_inbox_first)
{
    struct locked_sink sink = {0};
    struct bb_lock *narrow;

    locked_sink_make(&sink, 1);
    struct bb_source *source = make_source(&owner, sink.line[0]);
    /* A setter under a narrow lock may not run the sink itself; bb-control or a reader will. */
    cr_assert_eq(bb_lock_create(machine.ctx, "narrow", BB_RANK_NARROW, &narrow, NULL), BB_OK);
    for (unsigned i = 0; i < 1000; i++) {
        bb_lock_acquire(machine.ctx, narrow);
        bb_source_set(machine.ctx, source, i % 2 == 0);
        bb_lock_release(machine.ctx, narrow);
        bb_device_lock(machine.ctx, sink.device);
        bool seen = sink.level[0];
        bb_device_unlock(machine.ctx, sink.device);
        cr_assert_eq(seen, i % 2 == 0, "round %u", i);
    }
    bb_lock_destroy(machine.ctx, narrow);
    probe_drop(&owner);
    probe_drop(&other);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink.device, NULL), BB_OK);
    cr_assert_eq(bb_line_destroy(machine.ctx, sink.line[0], NULL), BB_OK);
}

static void lock_on(struct bb_ctx *ctx, void *arg)
{
    struct toggler *toggler = arg;
    struct bb_device *device = (struct bb_device *)(void *)toggler->source;
    uint64_t end = host_ns() + toggler->seconds * UINT64_C(1000000000);

    while (host_ns() < end) {
        bb_device_lock(ctx, device);
        bb_device_unlock(ctx, device);
    }
}

Test(line, an_inbox_loses_no_edge_while_others_hold_the_lock)
{
    struct locked_sink sink = {0};
    struct worker workers[6];
    struct toggler togglers[6] = {0};
    uint64_t pulses = 0;

    locked_sink_make(&sink, 4);
    for (unsigned i = 0; i < 6; i++) {
        togglers[i].seconds = stress_seconds();
        togglers[i].source =
            i < 4 ? make_source(&owner, sink.line[i]) : (struct bb_source *)(void *)sink.device;
        worker_start(&workers[i], &machine, "storm", i < 4 ? pulse_on : lock_on, &togglers[i]);
    }
    for (unsigned i = 0; i < 6; i++) {
        worker_join(&workers[i]);
        pulses += togglers[i].pulses;
    }
    bb_device_lock(machine.ctx, sink.device);
    uint64_t edges = sink.edges;
    bb_device_unlock(machine.ctx, sink.device);
    cr_assert_eq(edges, pulses);
    probe_drop(&owner);
    probe_drop(&other);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink.device, NULL), BB_OK);
    for (unsigned pin = 0; pin < 4; pin++) {
        cr_assert_eq(bb_line_destroy(machine.ctx, sink.line[pin], NULL), BB_OK);
    }
}

Test(line, removing_the_sinks_device_disconnects_its_lines)
{
    struct locked_sink sink = {0};

    locked_sink_make(&sink, 1);
    struct bb_source *source = make_source(&owner, sink.line[0]);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, sink.device, NULL), BB_OK);
    bb_source_set(machine.ctx, source, true);
    cr_assert_not(sink.level[0]);
    cr_assert(bb_line_read(sink.line[0]).level);
    drop_all(sink.line[0]);
}

Test(line, bad_arguments_are_named)
{
    struct bb_line *line;
    struct bb_line_sink sink = {0};
    struct bb_error err = {0};

    cr_assert_eq(bb_line_create(machine.ctx, NULL, NULL, &line, &err), BB_E_INVAL);
    cr_assert_eq(bb_line_create(machine.ctx, "x", &sink, &line, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "notify"));
    drop_all(NULL);
}
