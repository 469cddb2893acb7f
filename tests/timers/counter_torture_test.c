/* SPDX-License-Identifier: MIT */
/*
 * The counter under real threads: readers hand each other the highest value seen through an atomic
 * maximum, so that each read knows of values that happened before it on any thread, while a writer
 * halts and runs. Not one step backwards. BUSBAR_STRESS_SECONDS says for how long.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <unistd.h>

#include "../../timers/timers_internal.h"
#include "test_seed.h"

enum { READERS = 4 };

struct torture {
    struct bb_counter *counter;
    struct bb_counter *below; /* toggled too; NULL: none */
    bool writer_stalls;       /* the writer gives its processor away in the middle of halts */
    uint64_t seed;
    uint64_t latest;    /* (a) the highest value that any reader returned */
    uint64_t backwards; /* (a) */
    uint64_t reads;     /* (a) */
    uint64_t halts;     /* (a) */
    uint32_t stop;      /* (a) */
};

static void *reader(void *opaque)
{
    struct torture *torture = opaque;
    uint64_t reads = 0, backwards = 0;

    while (bb_load_relaxed(&torture->stop) == 0) { /* relaxed: only ends the loop */
        /* Pairs with the CAS below on other readers: their reads happened before ours. */
        uint64_t floor = bb_load_acquire(&torture->latest);
        uint64_t value = bb_counter_read(torture->counter);

        reads++;
        if (value < floor) {
            backwards++;
        }
        while (floor < value && !bb_cas_acq_rel(&torture->latest, &floor, value)) {
        }
    }
    (void)bb_fetch_add_relaxed(&torture->reads, reads); /* relaxed: read after joining */
    (void)bb_fetch_add_relaxed(&torture->backwards, backwards);
    return NULL;
}

static void *writer(void *opaque)
{
    struct torture *torture = opaque;
    uint64_t state = torture->seed, halts = 0;

    while (bb_load_relaxed(&torture->stop) == 0) { /* relaxed: only ends the loop */
        struct bb_counter *counter = torture->counter;

        if (torture->below != NULL && test_random(&state) % 2 == 0) {
            counter = torture->below;
        }
        bb_counter_run(counter);
        for (uint64_t pause = test_random(&state) % 256; pause > 0; pause--) {
            bb_cpu_relax();
        }
        bb_counter_halt_begin_(counter);
        if (torture->writer_stalls && halts % 16 == 0) {
            (void)sched_yield();
        }
        bb_counter_halt_finish_(counter);
        bb_counter_run(counter);
        halts++;
    }
    torture->halts = halts;
    return NULL;
}

static void run_torture(struct torture *torture)
{
    pthread_t threads[READERS + 1];
    uint64_t end_ns = test_host_ns() + UINT64_C(1000000000) * test_stress_seconds();

    torture->seed = test_seed();
    cr_assert_eq(pthread_create(&threads[READERS], NULL, writer, torture), 0);
    for (unsigned i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, reader, torture), 0);
    }
    while (test_host_ns() < end_ns) {
        (void)usleep(20000);
    }
    bb_store_relaxed(&torture->stop, 1u); /* relaxed: only ends the loops */
    for (unsigned i = 0; i <= READERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    cr_log_info("%lu reads, %lu halts, %lu steps backwards", (unsigned long)torture->reads,
                (unsigned long)torture->halts, (unsigned long)torture->backwards);
    cr_assert_gt(torture->reads, 1000);
    cr_assert_gt(torture->halts, 10);
    cr_assert_eq(torture->backwards, 0, "%lu of %lu reads went backwards, BUSBAR_TEST_SEED=%lu",
                 (unsigned long)torture->backwards, (unsigned long)torture->reads,
                 (unsigned long)torture->seed);
}

static bb_ns_t raw_now(void *opaque)
{
    (void)opaque;
    return test_host_ns();
}

static const struct bb_time_source raw = {.now_ns = raw_now};

static bb_ns_t counter_now(void *opaque)
{
    return bb_counter_read(opaque);
}

TestSuite(counter_torture, .timeout = 600);

Test(counter_torture, readers_of_a_toggled_counter_never_see_it_run_backwards)
{
    struct bb_counter counter;
    struct torture torture = {.counter = &counter};

    bb_counter_init(&counter, &raw, 1);
    run_torture(&torture);
}

Test(counter_torture, nor_while_the_writer_is_descheduled_in_the_middle_of_halts)
{
    struct bb_counter counter;
    struct torture torture = {.counter = &counter, .writer_stalls = true};

    bb_counter_init(&counter, &raw, 1);
    run_torture(&torture);
}

Test(counter_torture, nor_over_the_virtual_clock)
{
    struct bb_heap *heap;
    struct bb_clock *clock;
    struct bb_counter counter;
    struct bb_time_source source;
    struct torture torture = {.counter = &counter};

    cr_assert_eq(bb_heap_create(NULL, &heap, NULL), BB_OK);
    cr_assert_eq(bb_clock_create_(heap, BB_CLOCK_HOST, &clock, NULL), BB_OK);
    bb_clock_start(clock);
    source = bb_clock_source(clock);
    bb_counter_init(&counter, &source, 1);
    run_torture(&torture);
    bb_clock_destroy_(clock);
    cr_assert_eq(bb_heap_destroy(heap, NULL), BB_OK);
}

Test(counter_torture, nor_over_a_counter_that_is_toggled_itself)
{
    struct bb_counter below, counter;
    struct bb_time_source source = {.now_ns = counter_now, .opaque = &below, .ordered = true};
    struct torture torture = {.counter = &counter, .below = &below};

    bb_counter_init(&below, &raw, 1);
    bb_counter_run(&below);
    bb_counter_init(&counter, &source, 1);
    run_torture(&torture);
}
