/* SPDX-License-Identifier: MIT */
/* Many threads at one pin: edges are counted exactly, levels never go stale or double. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

enum { VECTOR = 0x41, PIN = 5 };

struct shared {
    struct rig *rig;
    uint64_t seed;
    uint64_t until_ns;
    uint32_t stop;      /* (a) */
    uint32_t phase;     /* (a) as pulse_and_judge() says */
    uint32_t pending;   /* (a) messages whose end of interrupt is due */
    uint32_t doubled;   /* (a) more than one was */
    uint32_t rewritten; /* what rewrite() wrote last; read after its end */
    const char *wrong;
};

static bool stopped(struct shared *shared)
{
    return bb_load_acquire(&shared->stop) != 0 || host_ns() >= shared->until_ns;
}

/* Rewrites the destination and ends other vectors: changes the entry, and nothing that counts. */
static void *disturb(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    uint64_t state = shared->seed ^ 0xd15;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "disturber", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        bb_ioapic_eoi(ctx, rig->ioapic, (uint8_t)(next_random(&state) | 0x80));
        bb_source_pulse(ctx, rig->source[PIN + 1][0]);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

static void *toggle_mask(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "masker", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, 0x10 + 2 * PIN);
    for (uint32_t phase = 0; !stopped(shared); phase += 4) {
        bb_store_release(&shared->phase, phase + 1); /* pairs with pulse_and_judge() */
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, VECTOR);
        bb_store_release(&shared->phase, phase + 2); /* likewise */
        for (unsigned i = 0; i < 50; i++) {
            bb_cpu_relax();
        }
        bb_store_release(&shared->phase, phase + 3); /* likewise */
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, MASKED | VECTOR);
        bb_store_release(&shared->phase, phase + 4); /* likewise */
        for (unsigned i = 0; i < 50; i++) {
            bb_cpu_relax();
        }
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* Phases: in 4k the pin is masked, in 4k + 2 it is not, between them it is being changed. */
static void pulse_and_judge(struct shared *shared, uint64_t counts[2])
{
    struct rig *rig = shared->rig;
    uint32_t phase = bb_load_acquire(&shared->phase); /* pairs with toggle_mask() */
    uint64_t before = delivered(rig, VECTOR);

    pulse_pin(rig, PIN);
    bb_fence_full(); /* the phase is read after the deliveries are */
    uint64_t got = delivered(rig, VECTOR) - before;
    if (bb_load_acquire(&shared->phase) != phase) { /* likewise */
        return;
    }
    if (phase % 4 == 2) {
        counts[1]++;
        if (got != 1) {
            shared->wrong = got == 0 ? "an edge on an unmasked pin was lost"
                                     : "an edge on an unmasked pin was delivered twice";
        }
    } else if (phase % 4 == 0) {
        counts[0]++;
        if (got != 0) {
            shared->wrong = "an edge on a masked pin was delivered";
        }
    }
}

Test(ioapic_torture, every_edge_counts_once_or_not_at_all_as_the_mask_says, .timeout = 120)
{
    struct rig *rig = set_up(NULL);
    struct shared shared = {.rig = rig, .seed = seed(5), .until_ns = host_ns() + stress_ns()};
    uint64_t counts[2] = {0, 0};
    pthread_t masker, disturber;

    entry_write(rig, rig->ctx, PIN + 1, 0x42);
    entry_write(rig, rig->ctx, PIN, MASKED | VECTOR);
    cr_assert_eq(pthread_create(&masker, NULL, toggle_mask, &shared), 0);
    cr_assert_eq(pthread_create(&disturber, NULL, disturb, &shared), 0);
    while (shared.wrong == NULL && !stopped(&shared)) {
        pulse_and_judge(&shared, counts);
    }
    bb_store_release(&shared.stop, 1);
    cr_assert_eq(pthread_join(masker, NULL), 0);
    cr_assert_eq(pthread_join(disturber, NULL), 0);
    cr_assert_null(shared.wrong, "%s; seed %llu", shared.wrong, (unsigned long long)shared.seed);
    cr_assert_gt(counts[0], 0, "no pulse fell into a masked phase: nothing was tested");
    cr_assert_gt(counts[1], 0, "no pulse fell into an unmasked phase: nothing was tested");
    tear_down(rig);
}

static void *pulse(void *opaque)
{
    struct shared *shared = opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(shared->rig->engine, "pulser", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        bb_source_pulse(ctx, shared->rig->source[PIN][1]);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* Several pulsers: edges that are not told apart become one message, never more than there were;
 * and the last pulse of all is never the one that is lost. */
Test(ioapic_torture, racing_pulses_coalesce_and_the_last_is_delivered, .timeout = 120)
{
    struct rig *rig = set_up(NULL);
    struct shared shared = {.rig = rig, .seed = seed(6), .until_ns = host_ns() + stress_ns()};
    pthread_t threads[3];

    entry_write(rig, rig->ctx, PIN, VECTOR);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, pulse, &shared), 0);
    }
    cr_assert_eq(pthread_create(&threads[2], NULL, disturb, &shared), 0);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    uint32_t rises = bb_line_read(rig->line[PIN]).rises;
    cr_assert_gt(delivered(rig, VECTOR), 0);
    cr_assert_leq(delivered(rig, VECTOR), rises);
    uint64_t before = delivered(rig, VECTOR);
    entry_write(rig, rig->ctx, PIN, VECTOR);
    cr_assert_eq(delivered(rig, VECTOR), before, "nothing was left over");
    pulse_pin(rig, PIN);
    cr_assert_eq(delivered(rig, VECTOR), before + 1);
    tear_down(rig);
}

static void note_level(struct rig *rig, struct bb_ctx *ctx, uint8_t vector)
{
    struct shared *shared = rig->user;

    (void)ctx;
    if (vector == VECTOR && bb_fetch_add_acq_rel(&shared->pending, 1) != 0) {
        bb_store_relaxed(&shared->doubled, 1);
    }
}

/* Ends each message once. */
static void *end_interrupts(void *opaque)
{
    struct shared *shared = opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(shared->rig->engine, "apic", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        if (bb_load_acquire(&shared->pending) != 0) {
            (void)bb_fetch_sub_acq_rel(&shared->pending, 1);
            bb_ioapic_eoi(ctx, shared->rig->ioapic, VECTOR);
        }
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

struct setter {
    struct shared *shared;
    unsigned source;
    bool final;
};

static void *set_level(void *opaque)
{
    struct setter *setter = opaque;
    struct shared *shared = setter->shared;
    struct bb_source *source = shared->rig->source[PIN][setter->source];
    uint64_t state = shared->seed * 2 + setter->source;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(shared->rig->engine, "setter", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        bb_source_set(ctx, source, next_random(&state) & 1);
    }
    bb_source_set(ctx, source, setter->final);
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* Rewrites one half of the entry, by turns the destination, and mask and polarity. */
static void *rewrite(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    uint64_t state = shared->seed ^ 0x3e3;
    bool low = (shared->seed & 4) != 0;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "rewriter", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, 0x10 + 2 * PIN + !low);
    do {
        uint64_t value = next_random(&state);
        if (low) {
            value = (value & (MASKED | 0x2000)) | LEVEL | VECTOR;
        }
        shared->rewritten = (uint32_t)value;
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, value & 0xffffffff);
    } while (!stopped(shared));
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* One storm; then the pin must be in service if and only if it is asserted. */
static void level_storm(struct rig *rig, uint64_t round_seed, uint64_t length_ns)
{
    struct shared shared = {.rig = rig, .seed = round_seed, .until_ns = host_ns() + length_ns};
    struct setter setters[2] = {{&shared, 0, round_seed & 1}, {&shared, 1, round_seed & 2}};
    bool high = setters[0].final || setters[1].final;
    pthread_t threads[4];

    rig->user = &shared;
    rig->delivered = note_level;
    shared.pending = (entry_read(rig, rig->ctx, PIN) & REMOTE_IRR) != 0;
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, set_level, &setters[i]), 0);
    }
    cr_assert_eq(pthread_create(&threads[2], NULL, end_interrupts, &shared), 0);
    cr_assert_eq(pthread_create(&threads[3], NULL, rewrite, &shared), 0);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    uint64_t entry = entry_read(rig, rig->ctx, PIN);
    uint32_t half = (uint32_t)((round_seed & 4) != 0 ? entry & ~REMOTE_IRR : entry >> 32);
    uint32_t wrote = (round_seed & 4) != 0 ? shared.rewritten : shared.rewritten & 0xff000000;
    cr_assert_eq(half, wrote, "a guest's write was lost: %#x, wrote %#x; seed %llu", half, wrote,
                 (unsigned long long)round_seed);
    entry_write(rig, rig->ctx, PIN, LEVEL | VECTOR);
    cr_assert_eq(shared.doubled, 0, "delivered again before its end; seed %llu",
                 (unsigned long long)round_seed);
    for (unsigned i = 0; i < 4; i++) {
        bool in_service = (entry_read(rig, rig->ctx, PIN) & REMOTE_IRR) != 0;
        cr_assert_eq(in_service, shared.pending == 1, "a message for each Remote IRR; seed %llu",
                     (unsigned long long)round_seed);
        if (i > 0 || high) {
            cr_assert_eq(in_service, high, "the line is %s; seed %llu", high ? "high" : "low",
                         (unsigned long long)round_seed);
        }
        if (shared.pending != 0) {
            shared.pending--;
            bb_ioapic_eoi(rig->ctx, rig->ioapic, VECTOR);
        }
    }
    cr_assert_eq(shared.doubled, 0);
}

Test(ioapic_torture, after_a_storm_of_levels_the_pin_is_as_its_line_is, .timeout = 120)
{
    struct rig *rig = set_up(NULL);
    uint64_t until_ns = host_ns() + stress_ns();
    uint64_t state = seed(7);

    entry_write(rig, rig->ctx, PIN, LEVEL | VECTOR);
    do {
        level_storm(rig, next_random(&state), 2000000);
    } while (host_ns() < until_ns);
    cr_assert_gt(delivered(rig, VECTOR), 0);
    tear_down(rig);
}

/* Its lines are pulsed and its registers read from other threads while it is removed. */
static void *read_window(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    struct bb_ctx *ctx;
    uint64_t value;

    if (bb_ctx_attach(rig->engine, "reader", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, VECTOR);
        (void)bb_mmio_read(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, &value);
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + EOIR, 4, VECTOR);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(ioapic_torture, removal_under_fire_completes_and_nothing_runs_after_it, .timeout = 120)
{
    uint64_t until_ns = host_ns() + stress_ns();

    do {
        struct rig *rig = set_up(NULL);
        struct shared shared = {.rig = rig, .until_ns = UINT64_MAX};
        struct bb_error err = {0};
        pthread_t threads[2];

        entry_write(rig, rig->ctx, PIN, VECTOR);
        cr_assert_eq(pthread_create(&threads[0], NULL, pulse, &shared), 0);
        cr_assert_eq(pthread_create(&threads[1], NULL, read_window, &shared), 0);
        while (delivered(rig, VECTOR) < 100) {
            bb_cpu_relax();
        }
        cr_assert_eq(bb_device_remove_wait(rig->ctx, bb_ioapic_device(rig->ioapic), &err), BB_OK,
                     "%s", err.text);
        rig->ioapic = NULL;
        uint64_t messages = bb_load_relaxed(&rig->messages);
        uint32_t rises = bb_line_read(rig->line[PIN]).rises;
        while (bb_line_read(rig->line[PIN]).rises - rises < 100) {
            bb_cpu_relax();
        }
        cr_assert_eq(bb_load_relaxed(&rig->messages), messages);
        bb_store_release(&shared.stop, 1);
        for (unsigned i = 0; i < 2; i++) {
            cr_assert_eq(pthread_join(threads[i], NULL), 0);
        }
        tear_down(rig);
    } while (host_ns() < until_ns);
}
