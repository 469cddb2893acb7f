/* SPDX-License-Identifier: MIT */
/* The timer queue under a manual clock: refusals, memory, the ends of time, and a model of it. */
#include "logged_timers.h"
#include "test_seed.h"

TestSuite(queue_limits, .init = make, .fini = drop, .timeout = 60);

static struct logged many[200];

static enum bb_expiry_ park_behind_another(struct bb_ctx *ctx, struct logged *self,
                                           bb_ns_t deadline_ns)
{
    if (self->fired == 1) {
        cr_assert_eq(bb_timer_arm_(ctx, &timers[0].timer, deadline_ns + 1), BB_OK);
        return BB_EXPIRY_PARK_;
    }
    return BB_EXPIRY_DONE_;
}

Test(queue_limits, there_is_room_for_a_parked_expiry_though_its_callback_armed_another)
{
    for (unsigned n = 0; n < 70; n++) {
        bb_timer_init_(&many[n].timer, fixture.queue, expired);
        many[n].script = park_behind_another;
        for (unsigned i = 0; i <= n; i++) {
            many[i].fired = i < n;
            cr_assert_eq(bb_timer_arm_(fixture.ctx, &many[i].timer, n * 10 + (i < n)), BB_OK);
        }
        cr_assert_eq(step(n * 10 - bb_clock_now_ns(fixture.clock)), BB_E_STATE);
        cr_assert_eq(step(9), BB_OK);
        cr_assert_eq(many[n].fired, 2);
    }
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

Test(queue_limits, a_callback_can_neither_step_nor_wait_for_itself)
{
    timers[0].script = step_and_wait;
    arm(0, 10);
    cr_assert_eq(step(10), BB_OK);
    cr_assert_eq(timers[0].fired, 1);
}

Test(queue_limits, disarm_wait_is_refused_wherever_the_thread_may_not_block)
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

Test(queue_limits, arming_without_memory_fails_and_leaves_every_timer_as_it_was)
{
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

Test(queue_limits, time_without_end_is_never_due)
{
    arm(0, UINT64_MAX);
    arm(1, BB_TIME_LIMIT_);
    arm(2, BB_TIME_LIMIT_ - 1);
    cr_assert_eq(step(UINT64_MAX), BB_OK);
    cr_assert_str_eq(fired(), "2 ");
    cr_assert(armed(0));
}

static unsigned begun;

static bool begin_all_but_2(struct bb_timer_ *timer)
{
    cr_assert(bb_section_active_(fixture.ctx), "a pin is taken in a section");
    cr_assert_eq(fixture.ctx->lock_depth, 1, "and before a disarm could come between");
    begun++;
    return BB_CONTAINER_OF(timer, struct logged, timer)->id != 2;
}

Test(queue_limits, a_clock_has_one_queue_and_its_owner_may_drop_what_begins)
{
    struct bb_timer_queue_config_ config = fixture_config(&fixture);
    struct bb_timer_queue *other = NULL;
    struct bb_error err = {.code = 0};

    cr_assert_eq(bb_timer_queue_create_(&config, &other, &err), BB_E_EXIST);
    cr_assert_eq(err.code, BB_E_EXIST);
    cr_assert_null(other);
    bb_timer_queue_destroy_(fixture.queue);
    cr_assert_eq(step(10), BB_OK, "a clock without a queue steps alone");
    config.begin = begin_all_but_2;
    cr_assert_eq(bb_timer_queue_create_(&config, &fixture.queue, &err), BB_OK);
    for (unsigned i = 0; i < 4; i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
        arm(i, 20);
    }
    cr_assert(disarm(1));
    cr_assert_eq(step(10), BB_OK);
    cr_assert_eq(begun, 3);
    cr_assert_str_eq(fired(), "0 3 ");
    cr_assert_not(armed(2));
}

/*
 * Against a model: a flat array searched for its least (deadline, arming). Each round arms, moves
 * and disarms at random, then steps; both must fire the same timers in the same order.
 */
Test(queue_limits, fires_as_a_flat_model_does)
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

Test(queue_limits, many_small_steps_fire_what_one_large_step_fires)
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
