/* SPDX-License-Identifier: MIT */
/*
 * The service thread under a host clock. Nothing here sleeps to let time pass: tests wait for what
 * is to happen on a condition variable, and what must not happen is asked for after something that
 * could only come later.
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "queue_fixture.h"
#include "test_seed.h"

enum { MILLISECOND = 1000000 };

/* A timer that counts its firings under `mutex` and then does what its script says. */
struct served {
    struct bb_timer_ timer;
    enum bb_expiry_ (*script)(struct bb_ctx *ctx, struct served *self, bb_ns_t deadline_ns);
    unsigned fired; /* guarded by `mutex` */
    bb_ns_t deadline_ns;
    bb_ns_t now_ns;
};

static struct queue_fixture fixture;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct served timers[4];

static enum bb_expiry_ expired(struct bb_ctx *ctx, struct bb_timer_ *timer, bb_ns_t deadline_ns)
{
    struct served *self = BB_CONTAINER_OF(timer, struct served, timer);
    enum bb_expiry_ expiry = BB_EXPIRY_DONE_;
    bb_ns_t now_ns = bb_clock_now_ns(fixture.clock);

    if (self->script != NULL) {
        expiry = self->script(ctx, self, deadline_ns);
    }
    (void)pthread_mutex_lock(&mutex);
    self->fired++;
    self->deadline_ns = deadline_ns;
    self->now_ns = now_ns;
    (void)pthread_cond_broadcast(&changed);
    (void)pthread_mutex_unlock(&mutex);
    return expiry;
}

static void make(void)
{
    fixture_make(&fixture, BB_CLOCK_HOST);
    for (unsigned i = 0; i < BB_ARRAY_LEN(timers); i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
    }
}

static void drop(void)
{
    fixture_drop(&fixture);
}

TestSuite(service, .init = make, .fini = drop, .timeout = 30);

static bb_ns_t now(void)
{
    return bb_clock_now_ns(fixture.clock);
}

static void arm(unsigned i, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(fixture.ctx, &timers[i].timer, deadline_ns), BB_OK);
}

static void await(unsigned i, unsigned fired)
{
    (void)pthread_mutex_lock(&mutex);
    while (timers[i].fired < fired) {
        (void)pthread_cond_wait(&changed, &mutex);
    }
    (void)pthread_mutex_unlock(&mutex);
}

static unsigned fired(unsigned i)
{
    unsigned count;

    (void)pthread_mutex_lock(&mutex);
    count = timers[i].fired;
    (void)pthread_mutex_unlock(&mutex);
    return count;
}

Test(service, fires_at_the_deadline_and_not_before)
{
    for (unsigned n = 1; n <= 20; n++) {
        bb_ns_t deadline_ns = now() + MILLISECOND;

        arm(0, deadline_ns);
        await(0, n);
        cr_assert_eq(timers[0].deadline_ns, deadline_ns);
        cr_assert_geq(timers[0].now_ns, deadline_ns);
    }
}

Test(service, fires_at_once_what_is_armed_for_the_past)
{
    arm(0, 0);
    await(0, 1);
    cr_assert_eq(timers[0].deadline_ns, 0);
}

Test(service, an_earlier_arming_wakes_the_thread_from_a_later_one)
{
    arm(0, now() + UINT64_C(3600000000000));
    arm(1, now() + MILLISECOND);
    await(1, 1);
    arm(2, now() + 2 * MILLISECOND);
    arm(3, now() + MILLISECOND);
    await(3, 1);
    await(2, 1);
    cr_assert_eq(fired(0), 0);
    cr_assert(bb_timer_disarm_(fixture.ctx, &timers[0].timer));
}

Test(service, time_without_end_does_not_fire)
{
    arm(0, UINT64_MAX);
    arm(1, now() + MILLISECOND);
    await(1, 1);
    cr_assert_eq(fired(0), 0);
}

Test(service, nothing_fires_while_the_clock_is_stopped)
{
    bb_ns_t deadline_ns;

    bb_clock_stop(fixture.clock);
    deadline_ns = now() + MILLISECOND;
    arm(0, deadline_ns);
    arm(1, 0);
    /* Host time passes both; stopping again wakes the thread, so it looks again and again. */
    for (uint64_t end = test_host_ns() + 5 * MILLISECOND; test_host_ns() < end;) {
        bb_clock_stop(fixture.clock);
    }
    cr_assert_eq(fired(0), 0);
    cr_assert_eq(fired(1), 0);
    cr_assert_eq(now() + MILLISECOND, deadline_ns);
    bb_clock_start(fixture.clock);
    await(1, 1);
    await(0, 1);
    cr_assert_geq(timers[0].now_ns, deadline_ns);
}

Test(service, a_deadline_moves_with_the_time_for_which_the_clock_was_stopped)
{
    uint64_t host_ns = test_host_ns();
    bb_ns_t begun_ns = now();

    arm(0, begun_ns + 20 * MILLISECOND);
    bb_clock_stop(fixture.clock);
    for (uint64_t end = test_host_ns() + 5 * MILLISECOND; test_host_ns() < end;) {
    }
    bb_clock_start(fixture.clock);
    await(0, 1);
    cr_assert_geq(timers[0].now_ns, begun_ns + 20 * MILLISECOND);
    cr_assert_geq(test_host_ns() - host_ns, 25 * MILLISECOND);
}

static enum bb_expiry_ arm_next_nanosecond(struct bb_ctx *ctx, struct served *self,
                                           bb_ns_t deadline_ns)
{
    (void)bb_timer_arm_(ctx, &self->timer, deadline_ns + 1);
    return BB_EXPIRY_DONE_;
}

Test(service, a_period_of_one_nanosecond_is_bounded_and_starves_nobody)
{
    bb_ns_t begun_ns = now(), elapsed_ns;
    unsigned count;

    timers[0].script = arm_next_nanosecond;
    arm(0, begun_ns);
    for (unsigned n = 1; n <= 10; n++) {
        arm(1, now() + MILLISECOND);
        await(1, n);
        for (unsigned k = 0; k < 100; k++) {
            arm(2, now() + UINT64_C(3600000000000));
            cr_assert(bb_timer_disarm_(fixture.ctx, &timers[2].timer));
        }
    }
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_OK);
    count = fired(0);
    elapsed_ns = now() - begun_ns;
    cr_assert_geq(count, 2);
    cr_assert_leq(count, elapsed_ns / BB_TIMER_PERIOD_MIN_NS_ + 1);
}

/* disarm_wait. */

static bool gate_open, at_gate, left_gate; /* guarded by `mutex` */

static enum bb_expiry_ wait_at_gate(struct bb_ctx *ctx, struct served *self, bb_ns_t deadline_ns)
{
    (void)pthread_mutex_lock(&mutex);
    at_gate = true;
    (void)pthread_cond_broadcast(&changed);
    while (!gate_open) {
        (void)pthread_cond_wait(&changed, &mutex);
    }
    (void)pthread_mutex_unlock(&mutex);
    /* Arms itself behind the waiter's back; the waiter must disarm that too. */
    (void)bb_timer_arm_(ctx, &self->timer, deadline_ns);
    (void)pthread_mutex_lock(&mutex);
    left_gate = true;
    (void)pthread_mutex_unlock(&mutex);
    return BB_EXPIRY_DONE_;
}

struct waiter {
    int result;
    bool callback_had_ended;
    bool done; /* guarded by `mutex` */
};

static void *disarm_and_wait(void *opaque)
{
    struct waiter *waiter = opaque;
    struct bb_ctx *ctx;

    waiter->result = bb_ctx_attach_(fixture.rcu, "waiter", sizeof *ctx, NULL, &ctx, NULL);
    if (waiter->result != BB_OK) {
        return NULL;
    }
    waiter->result = bb_timer_disarm_wait_(ctx, &timers[0].timer);
    (void)pthread_mutex_lock(&mutex);
    waiter->callback_had_ended = left_gate;
    waiter->done = true;
    (void)pthread_mutex_unlock(&mutex);
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(service, disarm_wait_returns_only_when_the_callback_has_ended_and_nothing_is_armed)
{
    struct waiter waiter = {.result = BB_E_INVAL};
    pthread_t thread;
    bool done_early = false;

    timers[0].script = wait_at_gate;
    arm(0, now());
    (void)pthread_mutex_lock(&mutex);
    while (!at_gate) {
        (void)pthread_cond_wait(&changed, &mutex);
    }
    (void)pthread_mutex_unlock(&mutex);
    cr_assert_not(bb_timer_disarm_(fixture.ctx, &timers[0].timer), "disarming does not wait");
    /* Waiting for a timer that does not run now returns at once. */
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[1].timer), BB_OK);
    cr_assert_eq(pthread_create(&thread, NULL, disarm_and_wait, &waiter), 0);
    for (uint64_t end = test_host_ns() + 5 * MILLISECOND; test_host_ns() < end;) {
        (void)pthread_mutex_lock(&mutex);
        done_early |= waiter.done;
        (void)pthread_mutex_unlock(&mutex);
    }
    cr_assert_not(done_early);
    (void)pthread_mutex_lock(&mutex);
    gate_open = true;
    (void)pthread_cond_broadcast(&changed);
    (void)pthread_mutex_unlock(&mutex);
    (void)pthread_join(thread, NULL);
    cr_assert_eq(waiter.result, BB_OK);
    cr_assert(waiter.callback_had_ended);
    cr_assert_not(bb_timer_armed_(fixture.ctx, &timers[0].timer));
}

static int wait_in_callback;

static enum bb_expiry_ disarm_wait_self(struct bb_ctx *ctx, struct served *self,
                                        bb_ns_t deadline_ns)
{
    (void)deadline_ns;
    wait_in_callback = bb_timer_disarm_wait_(ctx, &self->timer);
    return BB_EXPIRY_DONE_;
}

Test(service, disarm_wait_in_the_callback_itself_is_an_error_and_no_hang)
{
    timers[0].script = disarm_wait_self;
    arm(0, now());
    await(0, 1);
    cr_assert_eq(wait_in_callback, BB_E_CONTEXT);
}

/* Parking. */

static enum bb_expiry_ park_first(struct bb_ctx *ctx, struct served *self, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)deadline_ns;
    return self->fired == 0 ? BB_EXPIRY_PARK_ : BB_EXPIRY_DONE_;
}

Test(service, a_parked_expiry_comes_back_when_the_clock_is_started)
{
    bb_ns_t deadline_ns = now();

    timers[0].script = park_first;
    arm(0, deadline_ns);
    await(0, 1);
    bb_clock_stop(fixture.clock);
    bb_clock_start(fixture.clock);
    await(0, 2);
    cr_assert_eq(timers[0].deadline_ns, deadline_ns);
    cr_assert_not(bb_timer_armed_(fixture.ctx, &timers[0].timer));
}

Test(service, a_parked_expiry_comes_back_though_nobody_stops_the_clock)
{
    timers[0].script = park_first;
    arm(0, now());
    await(0, 2);
}

static enum bb_expiry_ park_always(struct bb_ctx *ctx, struct served *self, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)self;
    (void)deadline_ns;
    return BB_EXPIRY_PARK_;
}

Test(service, parking_over_and_over_does_not_spin)
{
    uint64_t host_ns = test_host_ns();

    timers[0].script = park_always;
    arm(0, now());
    await(0, 10);
    cr_assert_geq(test_host_ns() - host_ns, 9 * MILLISECOND);
}

/* The thread. */

static char thread_name[17];
static int thread_slack;
static bool signals_blocked;

static enum bb_expiry_ look_at_thread(struct bb_ctx *ctx, struct served *self, bb_ns_t deadline_ns)
{
    sigset_t blocked;

    (void)ctx;
    (void)self;
    (void)deadline_ns;
    (void)prctl(PR_GET_NAME, thread_name, 0ul, 0ul, 0ul);
    thread_slack = prctl(PR_GET_TIMERSLACK, 0ul, 0ul, 0ul, 0ul);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    signals_blocked = sigismember(&blocked, SIGINT) == 1 && sigismember(&blocked, SIGUSR1) == 1;
    return BB_EXPIRY_DONE_;
}

Test(service, the_thread_is_named_precise_and_takes_no_signals)
{
    sigset_t blocked;

    timers[0].script = look_at_thread;
    arm(0, now());
    await(0, 1);
    cr_assert_str_eq(thread_name, "bb-timers");
    cr_assert_eq(thread_slack, 1);
    cr_assert(signals_blocked);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    cr_assert_eq(sigismember(&blocked, SIGUSR1), 0, "the creator's mask is as it was");
}

Test(service, goes_away_with_timers_armed_and_with_the_clock_stopped)
{
    arm(0, now() + UINT64_C(3600000000000));
    arm(1, UINT64_MAX);
    bb_clock_stop(fixture.clock);
    arm(2, 0);
}

static int refuse_attach(void *opaque, struct bb_ctx **ctx, struct bb_error *err)
{
    (void)opaque;
    (void)ctx;
    return bb_error_set(err, BB_E_LIMIT, "no context for you");
}

Test(service, a_thread_that_can_not_attach_fails_the_queue_whole)
{
    struct bb_timer_queue_config_ config;
    struct bb_timer_queue *queue = NULL;
    struct bb_clock *clock;
    struct bb_error err = {.code = 0};

    cr_assert_eq(bb_clock_create_(fixture.heap, BB_CLOCK_HOST, &clock, NULL), BB_OK);
    config = fixture_config(&fixture);
    config.clock = clock;
    config.attach = refuse_attach;
    cr_assert_eq(bb_timer_queue_create_(&config, &queue, &err), BB_E_LIMIT);
    cr_assert_null(queue);
    cr_assert_not_null(strstr(err.text, "no context for you"));
    config.attach = fixture_attach;
    cr_assert_eq(bb_timer_queue_create_(&config, &queue, &err), BB_OK, "the clock is free again");
    bb_timer_queue_destroy_(queue);
    bb_clock_destroy_(clock);
}
