/* SPDX-License-Identifier: MIT */
/* The timer queue under a manual clock: order, races by script, bounds, refusals. */
#include <stdio.h>
#include <string.h>

#include "queue_fixture.h"
#include "test_seed.h"

enum { TIMERS = 16, LOG_MAX = 4096 };

/* A timer that notes its firings, then does what its script says. */
struct logged {
    struct bb_timer_ timer;
    unsigned id;
    enum bb_expiry_ (*script)(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns);
    unsigned fired;
};

static struct queue_fixture fixture;
static struct logged timers[TIMERS];
static struct {
    unsigned id;
    bb_ns_t deadline_ns;
    bb_ns_t now_ns;
} entries[LOG_MAX];
static unsigned logged_count;

static enum bb_expiry_ expired(struct bb_ctx *ctx, struct bb_timer_ *timer, bb_ns_t deadline_ns)
{
    struct logged *self = BB_CONTAINER_OF(timer, struct logged, timer);

    cr_assert_eq(ctx->lock_depth, 0, "no callback runs with the queue's lock held");
    if (logged_count < LOG_MAX) {
        entries[logged_count].id = self->id;
        entries[logged_count].deadline_ns = deadline_ns;
        entries[logged_count].now_ns = bb_clock_now_ns(fixture.clock);
    }
    logged_count++;
    self->fired++;
    return self->script == NULL ? BB_EXPIRY_DONE_ : self->script(ctx, self, deadline_ns);
}

static void make(void)
{
    fixture_make(&fixture, BB_CLOCK_MANUAL);
    for (unsigned i = 0; i < TIMERS; i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
        timers[i].id = i;
    }
}

static void drop(void)
{
    fixture_drop(&fixture);
}

TestSuite(queue, .init = make, .fini = drop);

static void arm(unsigned i, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(fixture.ctx, &timers[i].timer, deadline_ns), BB_OK);
}

static bool disarm(unsigned i)
{
    return bb_timer_disarm_(fixture.ctx, &timers[i].timer);
}

static bool armed(unsigned i)
{
    return bb_timer_armed_(fixture.ctx, &timers[i].timer);
}

static int step(uint64_t delta_ns)
{
    return bb_clock_step(fixture.ctx, fixture.clock, delta_ns, NULL);
}

/* The ids that fired since the last call, as text: "2 0 1 ". */
static const char *fired(void)
{
    static char text[LOG_MAX * 3];
    size_t used = 0;

    text[0] = '\0';
    for (unsigned i = 0; i < logged_count && i < LOG_MAX && used < sizeof text - 16; i++) {
        used += (size_t)snprintf(text + used, 16, "%u ", entries[i].id);
    }
    logged_count = 0;
    return text;
}

Test(queue, fires_by_deadline_and_ties_by_arming)
{
    arm(0, 300);
    arm(1, 100);
    arm(2, 200);
    arm(3, 100);
    arm(4, 300);
    cr_assert_eq(step(99), BB_OK);
    cr_assert_str_eq(fired(), "");
    cr_assert_eq(step(1), BB_OK);
    cr_assert_str_eq(fired(), "1 3 ");
    cr_assert_eq(step(1000), BB_OK);
    cr_assert_str_eq(fired(), "2 0 4 ");
    cr_assert_eq(step(1000), BB_OK);
    cr_assert_str_eq(fired(), "");
}

Test(queue, arming_again_moves_a_timer_and_renews_its_place_among_ties)
{
    arm(0, 100);
    arm(1, 100);
    arm(2, 500);
    arm(0, 100);
    arm(2, 50);
    arm(1, 700);
    arm(1, 100);
    cr_assert_eq(step(1000), BB_OK);
    cr_assert_str_eq(fired(), "2 0 1 ");
}

Test(queue, the_clock_stands_at_each_deadline_while_it_is_fired)
{
    arm(0, 10);
    arm(1, 25);
    arm(2, 25);
    arm(3, 40);
    cr_assert_eq(step(40), BB_OK);
    cr_assert_eq(logged_count, 4);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(entries[i].now_ns, entries[i].deadline_ns);
    }
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 40);
}

Test(queue, a_step_of_nothing_fires_what_is_due_in_order_of_deadline)
{
    cr_assert_eq(step(1000), BB_OK);
    arm(0, 900);
    arm(1, 1001);
    arm(2, 300);
    arm(3, 1000);
    arm(4, 0);
    cr_assert_eq(step(0), BB_OK);
    cr_assert_eq(entries[0].now_ns, 1000);
    cr_assert_eq(entries[0].deadline_ns, 0);
    cr_assert_str_eq(fired(), "4 2 0 3 ");
    cr_assert(armed(1));
    /* Outside a step nothing can loop: armed again for now, it is due now. */
    arm(4, 1000);
    cr_assert_eq(step(0), BB_OK);
    cr_assert_str_eq(fired(), "4 ");
}

static enum bb_expiry_ arm_others(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    (void)self;
    cr_assert_eq(bb_timer_arm_(ctx, &timers[1].timer, deadline_ns + 30), BB_OK);
    cr_assert_eq(bb_timer_arm_(ctx, &timers[2].timer, deadline_ns), BB_OK);
    cr_assert_eq(bb_timer_arm_(ctx, &timers[3].timer, deadline_ns + 31), BB_OK);
    cr_assert_eq(bb_timer_arm_(ctx, &timers[4].timer, 1), BB_OK);
    return BB_EXPIRY_DONE_;
}

Test(queue, what_a_callback_arms_fires_in_the_same_step_where_it_falls_due)
{
    timers[0].script = arm_others;
    arm(0, 70);
    arm(5, 90);
    cr_assert_eq(step(100), BB_OK);
    cr_assert_eq(entries[1].now_ns, 70, "armed for the past, fired at the present");
    cr_assert_eq(entries[1].deadline_ns, 1);
    cr_assert_eq(entries[2].now_ns, 70);
    cr_assert_str_eq(fired(), "0 4 2 5 1 ");
    cr_assert(armed(3));
    cr_assert_eq(step(1), BB_OK);
    cr_assert_str_eq(fired(), "3 ");
}

static enum bb_expiry_ arm_self_now(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(ctx, &self->timer, deadline_ns), BB_OK);
    return BB_EXPIRY_DONE_;
}

Test(queue, a_timer_that_arms_itself_for_now_fires_once_an_instant_and_starves_nobody)
{
    timers[0].script = arm_self_now;
    arm(0, 10);
    arm(1, 10);
    arm(2, 12);
    cr_assert_eq(step(10), BB_OK);
    cr_assert_str_eq(fired(), "0 1 ");
    cr_assert_eq(step(5), BB_OK);
    cr_assert_eq(timers[0].fired, 6);
    cr_assert_eq(entries[0].deadline_ns, 10, "it is told what it was armed for");
    cr_assert_eq(entries[0].now_ns, 11);
    cr_assert_str_eq(fired(), "0 0 2 0 0 0 ");
    cr_assert(disarm(0));
}

static enum bb_expiry_ arm_partner(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(ctx, &timers[self->id ^ 1].timer, deadline_ns), BB_OK);
    return BB_EXPIRY_DONE_;
}

Test(queue, two_timers_that_arm_each_other_for_now_end_the_instant)
{
    timers[0].script = arm_partner;
    timers[1].script = arm_partner;
    arm(0, 10);
    arm(2, 11);
    cr_assert_eq(step(12), BB_OK);
    cr_assert_leq(timers[0].fired + timers[1].fired, 6);
    cr_assert_eq(timers[2].fired, 1);
}

Test(queue, a_disarmed_timer_does_not_fire)
{
    cr_assert_not(disarm(0));
    arm(0, 10);
    arm(1, 10);
    cr_assert(armed(0));
    cr_assert(disarm(0));
    cr_assert_not(armed(0));
    cr_assert_not(disarm(0));
    cr_assert_eq(step(100), BB_OK);
    cr_assert_str_eq(fired(), "1 ");
    cr_assert_not(disarm(1), "it has fired");
}

static enum bb_expiry_ disarm_next(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    (void)deadline_ns;
    cr_assert(bb_timer_disarm_(ctx, &timers[self->id + 1].timer));
    cr_assert_not(bb_timer_armed_(ctx, &self->timer));
    cr_assert_not(bb_timer_disarm_(ctx, &self->timer), "this expiry has begun");
    return BB_EXPIRY_DONE_;
}

Test(queue, a_callback_disarms_one_that_is_due_at_the_same_instant)
{
    timers[0].script = disarm_next;
    arm(0, 10);
    arm(1, 10);
    arm(2, 10);
    cr_assert_eq(step(10), BB_OK);
    cr_assert_str_eq(fired(), "0 2 ");
}

static enum bb_expiry_ arm_and_disarm_self(struct bb_ctx *ctx, struct logged *self,
                                           bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(ctx, &self->timer, deadline_ns + 5), BB_OK);
    cr_assert(bb_timer_disarm_(ctx, &self->timer));
    return BB_EXPIRY_DONE_;
}

Test(queue, a_callback_takes_back_its_own_arming)
{
    timers[0].script = arm_and_disarm_self;
    arm(0, 10);
    cr_assert_eq(step(100), BB_OK);
    cr_assert_str_eq(fired(), "0 ");
}

/* Generations: what an inbox asks before it runs an expiry late. */

static enum bb_expiry_ check_superseded(struct bb_ctx *ctx, struct logged *self,
                                        bb_ns_t deadline_ns)
{
    cr_assert_not(bb_timer_superseded_(ctx, &self->timer));
    if (self->id == 1) {
        (void)bb_timer_disarm_(ctx, &self->timer);
        cr_assert(bb_timer_superseded_(ctx, &self->timer));
    }
    if (self->id == 2) {
        cr_assert_eq(bb_timer_arm_(ctx, &self->timer, deadline_ns + 50), BB_OK);
        cr_assert(bb_timer_superseded_(ctx, &self->timer));
        self->id = 3;
    }
    return BB_EXPIRY_DONE_;
}

Test(queue, an_expiry_is_superseded_by_a_later_disarm_or_arming)
{
    for (unsigned i = 0; i < 3; i++) {
        timers[i].script = check_superseded;
        arm(i, 10);
    }
    cr_assert_eq(step(10), BB_OK);
    cr_assert_not(bb_timer_superseded_(fixture.ctx, &timers[0].timer));
    arm(0, 99);
    cr_assert(bb_timer_superseded_(fixture.ctx, &timers[0].timer));
    cr_assert_eq(step(50), BB_OK);
    cr_assert_eq(timers[2].fired, 2);
    cr_assert_not(bb_timer_superseded_(fixture.ctx, &timers[2].timer));
}

/* Parking. */

static enum bb_expiry_ park_once(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    (void)deadline_ns;
    if (self->fired > 1) {
        return BB_EXPIRY_DONE_;
    }
    bb_clock_stop(fixture.clock);
    if (self->id == 1) {
        (void)bb_timer_disarm_(ctx, &self->timer);
    }
    if (self->id == 2) {
        cr_assert_eq(bb_timer_arm_(ctx, &self->timer, 500), BB_OK);
    }
    return BB_EXPIRY_PARK_;
}

Test(queue, a_parked_expiry_comes_back_at_its_deadline)
{
    timers[0].script = park_once;
    arm(0, 10);
    arm(3, 10);
    cr_assert_eq(step(100), BB_E_STATE);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 10, "the step ended there");
    cr_assert(armed(0));
    cr_assert_str_eq(fired(), "0 ");
    cr_assert_eq(step(0), BB_E_STATE);
    bb_clock_start(fixture.clock);
    cr_assert_eq(step(0), BB_OK);
    cr_assert_eq(entries[0].deadline_ns, 10);
    cr_assert_str_eq(fired(), "0 3 ", "in its old place");
}

Test(queue, a_parked_expiry_that_was_disarmed_meanwhile_does_not_come_back)
{
    timers[1].script = park_once;
    arm(1, 10);
    cr_assert_eq(step(100), BB_E_STATE);
    cr_assert_not(armed(1));
    bb_clock_start(fixture.clock);
    cr_assert_eq(step(1000), BB_OK);
    cr_assert_eq(timers[1].fired, 1);
}

Test(queue, a_parked_expiry_that_was_armed_meanwhile_keeps_that_arming)
{
    timers[2].script = park_once;
    arm(2, 10);
    cr_assert_eq(step(100), BB_E_STATE);
    bb_clock_start(fixture.clock);
    cr_assert_eq(step(489), BB_OK);
    cr_assert_eq(timers[2].fired, 1);
    cr_assert_eq(step(1), BB_OK);
    cr_assert_eq(timers[2].fired, 2);
}

static enum bb_expiry_ stop_clock(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)self;
    (void)deadline_ns;
    bb_clock_stop(fixture.clock);
    return BB_EXPIRY_DONE_;
}

Test(queue, a_clock_stopped_by_a_callback_stands_at_that_deadline)
{
    timers[0].script = stop_clock;
    arm(0, 10);
    arm(1, 10);
    arm(2, 20);
    cr_assert_eq(step(100), BB_E_STATE);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 10);
    cr_assert_str_eq(fired(), "0 ");
    bb_clock_start(fixture.clock);
    cr_assert_eq(step(90), BB_OK);
    cr_assert_str_eq(fired(), "1 2 ");
}

Test(queue, a_stop_between_steps_keeps_what_is_armed)
{
    arm(0, 10);
    bb_clock_stop(fixture.clock);
    arm(1, 5);
    cr_assert_eq(step(100), BB_E_STATE);
    bb_clock_start(fixture.clock);
    cr_assert_eq(step(10), BB_OK);
    cr_assert_str_eq(fired(), "1 0 ");
}

/* Refusals. */

static enum bb_expiry_ step_and_wait(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    (void)deadline_ns;
    cr_assert_eq(bb_clock_step(ctx, fixture.clock, 5, NULL), BB_E_STATE);
    cr_assert_eq(bb_timer_arm_(ctx, &self->timer, 900), BB_OK);
    cr_assert_eq(bb_timer_disarm_wait_(ctx, &self->timer), BB_E_CONTEXT);
    cr_assert(bb_timer_armed_(ctx, &self->timer), "what is refused does nothing");
    return BB_EXPIRY_DONE_;
}

Test(queue, a_callback_can_neither_step_nor_wait_for_itself)
{
    timers[0].script = step_and_wait;
    arm(0, 10);
    cr_assert_eq(step(10), BB_OK);
    cr_assert_eq(timers[0].fired, 1);
}

Test(queue, disarm_wait_is_refused_wherever_the_thread_may_not_block)
{
    struct bb_lock *lock;

    cr_assert_eq(bb_lock_create(fixture.ctx, "narrow", BB_RANK_NARROW, &lock, NULL), BB_OK);
    arm(0, 10);
    bb_rcu_read_lock(fixture.ctx);
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_E_CONTEXT);
    bb_rcu_read_unlock(fixture.ctx);
    bb_lock_acquire(fixture.ctx, lock);
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_E_CONTEXT);
    bb_lock_release(fixture.ctx, lock);
    fixture.ctx->callback_depth++;
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_E_CONTEXT);
    fixture.ctx->callback_depth--;
    fixture.ctx->pin_depth++;
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_E_CONTEXT);
    fixture.ctx->pin_depth--;
    cr_assert(armed(0), "what is refused does nothing");
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_OK);
    cr_assert_not(armed(0));
    cr_assert_eq(bb_timer_disarm_wait_(fixture.ctx, &timers[0].timer), BB_OK);
    bb_lock_destroy(fixture.ctx, lock);
}

Test(queue, arming_without_memory_fails_and_leaves_every_timer_as_it_was)
{
    static struct logged many[200];
    unsigned made = 0;

    fixture.alloc_left = 0;
    for (; made < 200; made++) {
        bb_timer_init_(&many[made].timer, fixture.queue, expired);
        if (bb_timer_arm_(fixture.ctx, &many[made].timer, 10 + made) != BB_OK) {
            break;
        }
    }
    cr_assert_eq(made, 0, "the first array needs memory");
    cr_assert_not(bb_timer_armed_(fixture.ctx, &many[0].timer));
    fixture.alloc_left = 1;
    for (; made < 200; made++) {
        bb_timer_init_(&many[made].timer, fixture.queue, expired);
        if (bb_timer_arm_(fixture.ctx, &many[made].timer, 10 + made) != BB_OK) {
            break;
        }
    }
    cr_assert(made > 1 && made < 200);
    cr_assert_not(bb_timer_armed_(fixture.ctx, &many[made].timer));
    /* Moving an armed timer needs no memory. */
    cr_assert_eq(bb_timer_arm_(fixture.ctx, &many[0].timer, 5), BB_OK);
    fixture.alloc_left = -1;
    cr_assert_eq(bb_timer_arm_(fixture.ctx, &many[made].timer, 6), BB_OK);
    cr_assert_eq(step(1000), BB_OK);
    cr_assert_eq(logged_count, made + 1);
    for (unsigned i = 0; i <= made; i++) {
        cr_assert_eq(many[i].fired, 1);
    }
}

Test(queue, time_without_end_is_never_due)
{
    arm(0, UINT64_MAX);
    arm(1, BB_TIME_LIMIT_);
    arm(2, BB_TIME_LIMIT_ - 1);
    cr_assert_eq(step(UINT64_MAX), BB_OK);
    cr_assert_str_eq(fired(), "2 ");
    cr_assert(armed(0));
}

static unsigned begun;

static void note_begin(struct bb_timer_ *timer)
{
    (void)timer;
    begun++;
}

Test(queue, a_clock_has_one_queue_and_a_queue_tells_what_begins)
{
    struct bb_timer_queue_config_ config = fixture_config(&fixture);
    struct bb_timer_queue *other = NULL;
    struct bb_error err = {.code = 0};

    cr_assert_eq(bb_timer_queue_create_(&config, &other, &err), BB_E_EXIST);
    cr_assert_eq(err.code, BB_E_EXIST);
    cr_assert_null(other);
    bb_timer_queue_destroy_(fixture.queue);
    cr_assert_eq(step(10), BB_OK, "a clock without a queue steps alone");
    config.begin = note_begin;
    cr_assert_eq(bb_timer_queue_create_(&config, &fixture.queue, &err), BB_OK);
    for (unsigned i = 0; i < 3; i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
        arm(i, 20);
    }
    cr_assert(disarm(1));
    cr_assert_eq(step(10), BB_OK);
    cr_assert_eq(begun, 2);
}

/*
 * Against a model: a flat array searched for its least (deadline, arming). Each round arms, moves
 * and disarms at random, then steps; both must fire the same timers in the same order.
 */
Test(queue, fires_as_a_flat_model_does)
{
    enum { MODEL = 300 };
    static struct logged all[MODEL];
    static struct {
        bool armed;
        bb_ns_t deadline_ns;
        uint64_t sequence;
    } model[MODEL];
    uint64_t seed = test_seed(), state = seed, sequence = 0;
    bb_ns_t now_ns = 0;

    for (unsigned i = 0; i < MODEL; i++) {
        bb_timer_init_(&all[i].timer, fixture.queue, expired);
        all[i].id = i;
    }
    for (unsigned round = 0; round < 2000; round++) {
        unsigned expected = 0;

        for (uint64_t k = test_random(&state) % 60; k > 0; k--) {
            unsigned i = (unsigned)(test_random(&state) % MODEL);

            if (test_random(&state) % 3 == 0) {
                cr_assert_eq(bb_timer_disarm_(fixture.ctx, &all[i].timer), model[i].armed);
                model[i].armed = false;
                continue;
            }
            model[i].armed = true;
            model[i].deadline_ns = now_ns + test_random(&state) % 300;
            model[i].deadline_ns -= model[i].deadline_ns < 50 ? 0 : 50;
            model[i].sequence = sequence++;
            cr_assert_eq(bb_timer_arm_(fixture.ctx, &all[i].timer, model[i].deadline_ns), BB_OK);
        }
        logged_count = 0;
        now_ns += test_random(&state) % 100;
        cr_assert_eq(step(now_ns - bb_clock_now_ns(fixture.clock)), BB_OK);
        for (;;) {
            unsigned least = MODEL;

            for (unsigned i = 0; i < MODEL; i++) {
                if (model[i].armed && model[i].deadline_ns <= now_ns &&
                    (least == MODEL || model[i].deadline_ns < model[least].deadline_ns ||
                     (model[i].deadline_ns == model[least].deadline_ns &&
                      model[i].sequence < model[least].sequence))) {
                    least = i;
                }
            }
            if (least == MODEL) {
                break;
            }
            model[least].armed = false;
            cr_assert_lt(expected, logged_count, "round %u, BUSBAR_TEST_SEED=%lu", round,
                         (unsigned long)seed);
            cr_assert_eq(entries[expected].id, least, "round %u, BUSBAR_TEST_SEED=%lu", round,
                         (unsigned long)seed);
            cr_assert_eq(entries[expected].deadline_ns, model[least].deadline_ns);
            expected++;
        }
        cr_assert_eq(expected, logged_count, "round %u, BUSBAR_TEST_SEED=%lu", round,
                     (unsigned long)seed);
    }
}

static enum bb_expiry_ periodic(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(ctx, &self->timer, deadline_ns + 7 * (self->id + 1)), BB_OK);
    return BB_EXPIRY_DONE_;
}

Test(queue, many_small_steps_fire_what_one_large_step_fires)
{
    char once[sizeof entries / sizeof entries[0] * 3];

    for (unsigned pass = 0; pass < 2; pass++) {
        bb_ns_t base_ns = bb_clock_now_ns(fixture.clock);

        for (unsigned i = 0; i < 5; i++) {
            timers[i].script = periodic;
            arm(i, base_ns + i);
        }
        for (unsigned k = 0; k < (pass == 0 ? 1 : 1000); k++) {
            cr_assert_eq(step(pass == 0 ? 1000 : 1), BB_OK);
        }
        if (pass == 0) {
            (void)snprintf(once, sizeof once, "%s", fired());
        } else {
            cr_assert_str_eq(fired(), once);
        }
    }
    cr_assert_gt(strlen(once), 100);
}
