/* SPDX-License-Identifier: MIT */
/*
 * Readers on host threads while another halts, restarts and sets the counter and a third programs
 * timers. What readers see must have an order; failures are counted by threads and judged by the
 * test itself. How long: BUSBAR_STRESS_SECONDS.
 */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

enum { READERS = 3, LONG_SECONDS = 30, LONG_READS = 10000000, PERIOD = 20000 };

struct torture {
    struct machine *machine;
    uint32_t stop;     /* (a) set by the test; relaxed: nothing hangs on it */
    uint64_t highest;  /* (a) highest count returned so far; raised with release, read with acquire:
                          the happens-before between readers */
    uint64_t sequence; /* (a) changes of ENABLE_CNF begun and ended; even: none under way, and bit 1
                          is ENABLE_CNF */
    uint64_t reads;    /* (a) statistics, relaxed, like the rest */
    uint64_t toggles;
    uint64_t stable; /* checks that met no change */
    uint64_t backward_own;
    uint64_t backward_other;
    uint64_t unstable; /* GEN_CONF or the counter was not what the last write made it */
    uint64_t bad_comparator;
    uint64_t failed; /* accesses */
};

struct thread {
    struct torture *torture;
    struct bb_ctx *ctx;
    pthread_t id;
};

static uint64_t read_at(struct thread *thread, uint64_t offset)
{
    uint64_t value = 0;

    if (bb_mmio_read(thread->ctx, thread->torture->machine->space, HPET_BASE + offset, 8, &value) !=
        BB_OK) {
        (void)bb_fetch_add_relaxed(&thread->torture->failed, 1);
    }
    return value;
}

static void write_at(struct thread *thread, uint64_t offset, uint64_t value)
{
    if (bb_mmio_write(thread->ctx, thread->torture->machine->space, HPET_BASE + offset, 8, value) !=
        BB_OK) {
        (void)bb_fetch_add_relaxed(&thread->torture->failed, 1);
    }
}

static bool begin(struct thread *thread, const char *name)
{
    if (bb_ctx_attach(thread->torture->machine->engine, name, &thread->ctx, NULL) != BB_OK) {
        (void)bb_fetch_add_relaxed(&thread->torture->failed, 1);
        return false;
    }
    return true;
}

static bool stopped(const struct thread *thread)
{
    return bb_load_relaxed(&thread->torture->stop) != 0;
}

/* Timer 2 is periodic from 0: its comparator is a multiple, next after the count. */
static void check_comparator(struct thread *thread)
{
    uint64_t before = read_at(thread, MAIN_CNT);
    uint64_t comparator = read_at(thread, comp_of(2));
    uint64_t after = read_at(thread, MAIN_CNT);

    if (comparator % PERIOD != 0 || comparator <= before || comparator > after + PERIOD) {
        (void)bb_fetch_add_relaxed(&thread->torture->bad_comparator, 1);
    }
}

/* Where no change came between, the registers are as the last one left them. */
static void check_stable(struct thread *thread)
{
    struct torture *torture = thread->torture;
    /* Pairs with toggle(): the change is complete. */
    uint64_t sequence = bb_load_acquire(&torture->sequence);
    uint64_t conf = read_at(thread, GEN_CONF);
    uint64_t first = read_at(thread, MAIN_CNT);
    uint64_t second = read_at(thread, MAIN_CNT);

    bb_fence_full(); /* the reads before the validation */
    if ((sequence & 1) == 0 && bb_load_acquire(&torture->sequence) == sequence) {
        (void)bb_fetch_add_relaxed(&torture->stable, 1);
        if (conf != (sequence >> 1 & 1) || (conf == 0 && first != second)) {
            (void)bb_fetch_add_relaxed(&torture->unstable, 1);
        }
    }
}

static void *reader(void *opaque)
{
    struct thread *thread = opaque;
    struct torture *torture = thread->torture;
    uint64_t own = 0;
    uint64_t reads = 0;

    if (!begin(thread, "reader")) {
        return NULL;
    }
    while (!stopped(thread)) {
        /* Pairs with the raise below, on other threads. */
        uint64_t seen = bb_load_acquire(&torture->highest);
        uint64_t count = read_at(thread, MAIN_CNT);

        if (count < own) {
            (void)bb_fetch_add_relaxed(&torture->backward_own, 1);
        }
        if (count < seen) {
            (void)bb_fetch_add_relaxed(&torture->backward_other, 1);
        }
        own = count;
        while (seen < count && !bb_cas_acq_rel(&torture->highest, &seen, count)) {
        }
        if (++reads % 64 == 0) {
            check_comparator(thread);
            check_stable(thread);
        }
    }
    (void)bb_fetch_add_relaxed(&torture->reads, reads);
    (void)bb_ctx_detach(thread->ctx, NULL);
    return NULL;
}

static void *toggler(void *opaque)
{
    struct thread *thread = opaque;
    struct torture *torture = thread->torture;
    uint64_t random = 1;
    uint64_t toggles = 0;

    if (!begin(thread, "toggler")) {
        return NULL;
    }
    for (; !stopped(thread); toggles++) {
        uint64_t pause = next_random(&random) % 64;

        /* Both pair with check_stable(). The counter was enabled when it began: sequence 2. */
        (void)bb_fetch_add_acq_rel(&torture->sequence, 1);
        write_at(thread, GEN_CONF, toggles % 2 == 0 ? 0 : ENABLE);
        (void)bb_fetch_add_acq_rel(&torture->sequence, 1);
        while (pause-- > 0) {
            bb_cpu_relax();
        }
    }
    (void)bb_fetch_add_relaxed(&torture->toggles, toggles);
    (void)bb_ctx_detach(thread->ctx, NULL);
    return NULL;
}

/* Programs timers 0 and 1, so that expiries run beside everything else. */
static void *programmer(void *opaque)
{
    struct thread *thread = opaque;
    uint64_t random = 2;

    if (!begin(thread, "programmer")) {
        return NULL;
    }
    while (!stopped(thread)) {
        unsigned timer = (unsigned)(next_random(&random) % 2);
        uint64_t bits = next_random(&random) & (INT_LEVEL | PERIODIC | MODE32 | FSB_EN);

        write_at(thread, conf_of(timer), bits | route_to(16) | INT_ENB | VAL_SET);
        write_at(thread, comp_of(timer), read_at(thread, MAIN_CNT) + next_random(&random) % 20000);
        write_at(thread, comp_of(timer), 1 + next_random(&random) % 20000);
        write_at(thread, GINTR_STA, 3);
    }
    (void)bb_ctx_detach(thread->ctx, NULL);
    return NULL;
}

static void run_for_a_while(struct torture *torture, void *(*const entries[])(void *),
                            unsigned count)
{
    struct thread threads[8] = {0};
    uint64_t until = host_ns() + stress_ns();
    unsigned i;

    cr_assert_leq(count, BB_ARRAY_LEN(threads));
    for (i = 0; i < count; i++) {
        threads[i].torture = torture;
        cr_assert_eq(pthread_create(&threads[i].id, NULL, entries[i], &threads[i]), 0);
    }
    while (host_ns() < until) {
        sched_yield();
    }
    bb_store_relaxed(&torture->stop, 1);
    for (i = 0; i < count; i++) {
        pthread_join(threads[i].id, NULL);
    }
    cr_assert_eq(torture->failed, 0);
}

Test(hpet_torture, the_counter_never_runs_backwards_across_halts)
{
    static void *(*const entries[])(void *) = {reader, reader, reader, toggler, programmer};
    struct machine_options options = {.clock_mode = BB_CLOCK_HOST};
    struct torture torture = {.machine = set_up(&options), .sequence = 2};

    put(torture.machine, conf_of(2), route_to(17) | INT_ENB | PERIODIC | VAL_SET);
    put(torture.machine, comp_of(2), PERIOD);
    put(torture.machine, GEN_CONF, ENABLE);
    run_for_a_while(&torture, entries, BB_ARRAY_LEN(entries));
    cr_assert_eq(torture.backward_own, 0, "%lu steps back for one reader",
                 (unsigned long)torture.backward_own);
    cr_assert_eq(torture.backward_other, 0, "%lu steps back across readers",
                 (unsigned long)torture.backward_other);
    cr_assert_eq(torture.unstable, 0, "%lu of %lu", (unsigned long)torture.unstable,
                 (unsigned long)torture.stable);
    cr_assert_eq(torture.bad_comparator, 0, "%lu comparators that no count explains",
                 (unsigned long)torture.bad_comparator);
    cr_assert_gt(torture.toggles, 1);
    cr_assert_gt(torture.reads, 0);
    cr_assert_gt(torture.stable, 0);
    if (stress_ns() >= (uint64_t)LONG_SECONDS * 1000000000 && !BB_TSAN) {
        cr_assert_geq(torture.reads, LONG_READS, "%lu reads", (unsigned long)torture.reads);
    }
    cr_log_info("%lu reads, %lu toggles, %lu stable checks", (unsigned long)torture.reads,
                (unsigned long)torture.toggles, (unsigned long)torture.stable);
    tear_down(torture.machine);
}

/*
 * The counter jumps between 0 and 2^40. Timer 2's comparator moves only while the count is small
 * enough to meet it, so it stays a small multiple; a state of before a jump combined with a count
 * of after it would give a large one, or no multiple.
 */
static void *jumper(void *opaque)
{
    struct thread *thread = opaque;
    uint64_t jumps = 0;

    if (!begin(thread, "jumper")) {
        return NULL;
    }
    for (; !stopped(thread); jumps++) {
        write_at(thread, MAIN_CNT, jumps % 2 == 0 ? BB_BIT64(40) : 0);
        if (jumps % 1024 == 0) {
            /* Back to where it is met again. */
            write_at(thread, conf_of(2), INT_ENB | PERIODIC | VAL_SET);
            write_at(thread, comp_of(2), PERIOD);
        }
    }
    (void)bb_fetch_add_relaxed(&thread->torture->toggles, jumps);
    (void)bb_ctx_detach(thread->ctx, NULL);
    return NULL;
}

static void *comparator_reader(void *opaque)
{
    struct thread *thread = opaque;
    uint64_t reads = 0;

    if (!begin(thread, "reader")) {
        return NULL;
    }
    for (; !stopped(thread); reads++) {
        uint64_t comparator = read_at(thread, comp_of(2));

        if (comparator % PERIOD != 0 || comparator >= BB_BIT64(39)) {
            (void)bb_fetch_add_relaxed(&thread->torture->bad_comparator, 1);
        }
    }
    (void)bb_fetch_add_relaxed(&thread->torture->reads, reads);
    (void)bb_ctx_detach(thread->ctx, NULL);
    return NULL;
}

Test(hpet_torture, a_comparator_is_never_combined_with_a_count_of_another_time)
{
    static void *(*const entries[])(void *) = {comparator_reader, comparator_reader, jumper};
    struct machine_options options = {.clock_mode = BB_CLOCK_HOST};
    struct torture torture = {.machine = set_up(&options)};

    put(torture.machine, conf_of(2), INT_ENB | PERIODIC | VAL_SET);
    put(torture.machine, comp_of(2), PERIOD);
    put(torture.machine, GEN_CONF, ENABLE);
    run_for_a_while(&torture, entries, BB_ARRAY_LEN(entries));
    cr_assert_eq(torture.bad_comparator, 0, "%lu of %lu", (unsigned long)torture.bad_comparator,
                 (unsigned long)torture.reads);
    cr_assert_gt(torture.toggles, 1);
    tear_down(torture.machine);
}

Test(hpet_torture, removal_meets_readers_and_expiries_in_flight)
{
    uint64_t until = host_ns() + stress_ns();

    do {
        struct machine_options options = {.clock_mode = BB_CLOCK_HOST, .timers = 32};
        struct machine *m = set_up(&options);
        unsigned i;

        for (i = 0; i < 32; i++) {
            put(m, conf_of(i),
                route_to(16 + i % 8) | INT_ENB | PERIODIC | VAL_SET | (i % 2 != 0 ? INT_LEVEL : 0));
            put(m, comp_of(i), 10000 + i);
        }
        put(m, GEN_CONF, ENABLE);
        while (get(m, GINTR_STA) == 0) {
            bb_cpu_relax();
        }
        tear_down(m);
    } while (host_ns() < until);
}
