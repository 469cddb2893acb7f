/* SPDX-License-Identifier: MIT */
/*
 * Threads arm and disarm timers while the service thread fires them, callbacks arm them again, and
 * the clock is stopped and started. Every arming is accounted for: it fired once, or its disarm
 * said that it will not. BUSBAR_STRESS_SECONDS says for how long.
 */
#include <pthread.h>

#include "queue_fixture.h"
#include "test_seed.h"

enum { THREADS = 8, TIMERS = 64 };

/*
 * `mutex` makes disarm-then-arm one step among threads, so that no arming overwrites another and
 * armed == fired + disarmed holds in the end. The service thread fires without it.
 */
struct counted {
    struct bb_timer_ timer;
    pthread_mutex_t mutex;
    uint64_t armed;         /* guarded by `mutex` */
    uint64_t disarmed;      /* guarded by `mutex`: disarms that returned true */
    bb_ns_t last_ns;        /* guarded by `mutex`: makes deadlines unique */
    uint64_t fired;         /* (a) written by the service thread */
    bb_ns_t fired_ns;       /* the service thread's: the last deadline fired */
    uint32_t running;       /* (a) a callback of it runs now */
    uint32_t out_of_order;  /* (a) a deadline not above the one before: fired twice or revived */
    uint32_t before_time;   /* (a) fired too early */
    uint32_t after_waiting; /* (a) ran after disarm_wait returned */
};

static struct queue_fixture fixture;
static struct counted timers[TIMERS];
static uint32_t stop, failures;
static uint64_t seed;

/* Disarms, and arms again where `delta_ns` is not UINT64_MAX. Enters with the mutex held. */
static void turn_over(struct bb_ctx *ctx, struct counted *timer, uint64_t delta_ns)
{
    bb_ns_t deadline_ns;

    timer->disarmed += bb_timer_disarm_(ctx, &timer->timer);
    if (delta_ns == UINT64_MAX) {
        return;
    }
    deadline_ns = bb_clock_now_ns(fixture.clock) + delta_ns;
    timer->last_ns = deadline_ns > timer->last_ns ? deadline_ns : timer->last_ns + 1;
    timer->armed++;
    if (bb_timer_arm_(ctx, &timer->timer, timer->last_ns) != BB_OK) {
        (void)bb_fetch_add_relaxed(&failures, 1u); /* relaxed: read after joining */
    }
}

static enum bb_expiry_ expired(struct bb_ctx *ctx, struct bb_timer_ *base, bb_ns_t deadline_ns)
{
    struct counted *timer = BB_CONTAINER_OF(base, struct counted, timer);

    bb_store_relaxed(&timer->running, 1u); /* relaxed: disarm_wait orders it, or reports */
    if (deadline_ns <= timer->fired_ns) {
        bb_store_relaxed(&timer->out_of_order, 1u);
    }
    if (bb_clock_now_ns(fixture.clock) < deadline_ns) {
        bb_store_relaxed(&timer->before_time, 1u);
    }
    timer->fired_ns = deadline_ns;
    (void)bb_fetch_add_relaxed(&timer->fired, 1u);
    if (deadline_ns % 4 == 0 && pthread_mutex_trylock(&timer->mutex) == 0) {
        turn_over(ctx, timer, deadline_ns % 30000);
        (void)pthread_mutex_unlock(&timer->mutex);
    }
    bb_store_relaxed(&timer->running, 0u);
    return BB_EXPIRY_DONE_;
}

static void *arm_and_disarm(void *opaque)
{
    uint64_t state = seed + (uint64_t)(uintptr_t)opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach_(fixture.rcu, "arms", sizeof *ctx, NULL, &ctx, NULL) != BB_OK) {
        (void)bb_fetch_add_relaxed(&failures, 1u); /* relaxed: read after joining */
        return NULL;
    }
    while (bb_load_relaxed(&stop) == 0) { /* relaxed: only ends the loop */
        struct counted *timer = &timers[test_random(&state) % TIMERS];
        uint64_t choice = test_random(&state) % 16;

        (void)pthread_mutex_lock(&timer->mutex);
        if (choice == 0) {
            /* Where a disarm_wait raced with an expiry, it cannot say which it was: count. */
            timer->disarmed += bb_timer_disarm_(ctx, &timer->timer);
            if (bb_timer_disarm_wait_(ctx, &timer->timer) != BB_OK) {
                (void)bb_fetch_add_relaxed(&failures, 1u); /* relaxed: read after joining */
            }
            /* The mutex is held, so nobody arms it: from here on it must be still. */
            if (bb_load_relaxed(&timer->running) != 0) {
                bb_store_relaxed(&timer->after_waiting, 1u);
            }
        } else if (choice < 4) {
            turn_over(ctx, timer, UINT64_MAX);
        } else {
            turn_over(ctx, timer, test_random(&state) % (choice < 10 ? 2000 : 200000));
        }
        (void)pthread_mutex_unlock(&timer->mutex);
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

TestSuite(stress, .timeout = 600);

Test(stress, every_arming_fires_once_or_is_disarmed)
{
    pthread_t threads[THREADS];
    uint64_t state, end_ns, armed = 0, fired = 0, disarmed = 0;

    state = seed = test_seed();
    fixture_make(&fixture, BB_CLOCK_HOST);
    for (unsigned i = 0; i < TIMERS; i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
        (void)pthread_mutex_init(&timers[i].mutex, NULL);
    }
    end_ns = test_host_ns() + UINT64_C(1000000000) * test_stress_seconds();
    for (uintptr_t i = 0; i < THREADS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, arm_and_disarm, (void *)i), 0);
    }
    while (test_host_ns() < end_ns) {
        bb_clock_stop(fixture.clock);
        for (uint64_t k = test_random(&state) % 1000; k > 0; k--) {
            bb_cpu_relax();
        }
        bb_clock_start(fixture.clock);
        for (uint64_t k = test_random(&state) % 100000; k > 0; k--) {
            bb_cpu_relax();
        }
    }
    bb_store_relaxed(&stop, 1u); /* relaxed: only ends the loops */
    for (unsigned i = 0; i < THREADS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    /* What is still armed must fire by itself: wait for it, arm nothing, disarm nothing. */
    end_ns = test_host_ns() + UINT64_C(10000000000);
    for (unsigned i = 0; i < TIMERS; i++) {
        struct counted *timer = &timers[i];
        bool accounted = false;

        while (!accounted && test_host_ns() < end_ns) {
            (void)pthread_mutex_lock(&timer->mutex);
            accounted = timer->armed == bb_load_relaxed(&timer->fired) + timer->disarmed;
            (void)pthread_mutex_unlock(&timer->mutex);
            (void)sched_yield();
        }
        cr_assert(accounted, "timer %u: %lu armed, %lu fired, %lu disarmed, BUSBAR_TEST_SEED=%lu",
                  i, (unsigned long)timer->armed, (unsigned long)bb_load_relaxed(&timer->fired),
                  (unsigned long)timer->disarmed, (unsigned long)seed);
        cr_assert_not(bb_timer_armed_(fixture.ctx, &timer->timer));
        cr_assert_eq(bb_load_relaxed(&timer->out_of_order), 0);
        cr_assert_eq(bb_load_relaxed(&timer->before_time), 0);
        cr_assert_eq(bb_load_relaxed(&timer->after_waiting), 0);
        armed += timer->armed;
        fired += bb_load_relaxed(&timer->fired); /* as above */
        disarmed += timer->disarmed;
    }
    cr_log_info("%lu armed, %lu fired, %lu disarmed", (unsigned long)armed, (unsigned long)fired,
                (unsigned long)disarmed);
    cr_assert_eq(failures, 0);
    cr_assert_gt(fired, 100);
    cr_assert_gt(disarmed, 100);
    fixture_drop(&fixture);
}
