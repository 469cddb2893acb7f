/* SPDX-License-Identifier: MIT */
/* The timer queue under a manual clock: order, races by script, parking. */
#include "logged_timers.h"

TestSuite(queue, .init = make, .fini = drop, .timeout = 60);

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
