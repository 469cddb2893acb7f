/* SPDX-License-Identifier: MIT */
/*
 * Scripted interleavings: expiries that come late, because the timer thread is kept busy, and
 * reads in the middle of a write, whose steps are taken here one by one.
 */
#include "../../devices/timer/hpet_internal.h"
#include "fixture.h"

#include <criterion/criterion.h>
#include <sched.h>

enum { PIN = 16, DELTA = 200000 /* 2 ms */ };

/* A device whose timer's callback keeps the timer thread until it is let go. */
struct blocker {
    struct bb_device *device;
    struct bb_device_timer *timer;
    uint32_t entered; /* (a) set by the callback, release; read by the test, acquire */
    uint32_t let_go;  /* (a) the other way round */
};

static void block(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct blocker *blocker = opaque;

    (void)ctx;
    (void)deadline_ns;
    bb_store_release(&blocker->entered, 1);          /* pairs with keep_timers_busy() */
    while (bb_load_acquire(&blocker->let_go) == 0) { /* pairs with let_timers_go() */
        sched_yield();
    }
}

static void keep_timers_busy(struct machine *m, struct blocker *blocker)
{
    struct bb_device_config device = {.name = "blocker"};
    struct bb_device_timer_config timer = {.expired = block, .opaque = blocker};

    cr_assert_eq(bb_device_create(m->ctx, &device, &blocker->device, NULL), BB_OK);
    cr_assert_eq(bb_device_timer_create(m->ctx, blocker->device, &timer, &blocker->timer, NULL),
                 BB_OK);
    cr_assert_eq(bb_device_timer_arm(m->ctx, blocker->timer, 0), BB_OK);
    while (bb_load_acquire(&blocker->entered) == 0) { /* pairs with block() */
        sched_yield();
    }
}

/* Returns once every expiry that was waiting has been served. */
static void let_timers_go(struct machine *m, struct blocker *blocker)
{
    struct bb_device_timer_config timer = {.expired = block, .opaque = blocker};
    struct bb_device_timer *last;

    bb_store_relaxed(&blocker->entered, 0); /* published by the arming below */
    bb_store_release(&blocker->let_go, 1);  /* pairs with block() */
    cr_assert_eq(bb_device_timer_create(m->ctx, blocker->device, &timer, &last, NULL), BB_OK);
    /* Behind all that are due: they are served in order of deadline. */
    cr_assert_eq(bb_device_timer_arm(m->ctx, last, bb_clock_now_ns(m->clock)), BB_OK);
    while (bb_load_acquire(&blocker->entered) == 0) { /* pairs with block() */
        sched_yield();
    }
    cr_assert_eq(bb_device_remove_wait(m->ctx, blocker->device, NULL), BB_OK);
}

/* Timer 0 armed for DELTA ticks ahead; on return its match is past and nobody has served it. */
static struct machine *overdue(struct blocker *blocker, uint64_t bits)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_HOST};
    struct machine *m = set_up(&options);

    keep_timers_busy(m, blocker);
    put(m, conf_of(0), route_to(PIN) | INT_ENB | bits);
    put(m, comp_of(0), DELTA);
    put(m, GEN_CONF, ENABLE);
    while (get(m, MAIN_CNT) <= DELTA) {
        sched_yield();
    }
    cr_assert_eq(pin_rises(m, PIN), 0);
    return m;
}

Test(hpet_race, halting_after_an_overdue_match_delivers_it_once)
{
    struct blocker blocker = {0};
    struct machine *m = overdue(&blocker, 0);

    put(m, GEN_CONF, 0);
    cr_assert_eq(pin_rises(m, PIN), 1);
    let_timers_go(m, &blocker);
    cr_assert_eq(pin_rises(m, PIN), 1);
    tear_down(m);
}

Test(hpet_race, disabling_after_an_overdue_match_delivers_it_once)
{
    struct blocker blocker = {0};
    struct machine *m = overdue(&blocker, 0);

    put(m, conf_of(0), route_to(PIN));
    cr_assert_eq(pin_rises(m, PIN), 1);
    let_timers_go(m, &blocker);
    cr_assert_eq(pin_rises(m, PIN), 1);
    tear_down(m);
}

Test(hpet_race, aiming_anew_after_an_overdue_match_delivers_it_once)
{
    struct blocker blocker = {0};
    struct machine *m = overdue(&blocker, 0);

    put(m, comp_of(0), UINT64_C(1) << 40);
    cr_assert_eq(pin_rises(m, PIN), 1);
    let_timers_go(m, &blocker);
    cr_assert_eq(pin_rises(m, PIN), 1, "the late expiry finds that its match is gone");
    tear_down(m);
}

Test(hpet_race, setting_the_counter_after_an_overdue_match_delivers_it_once)
{
    struct blocker blocker = {0};
    struct machine *m = overdue(&blocker, 0);

    put(m, MAIN_CNT, UINT64_C(1) << 40);
    cr_assert_eq(pin_rises(m, PIN), 1);
    let_timers_go(m, &blocker);
    cr_assert_eq(pin_rises(m, PIN), 1);
    tear_down(m);
}

Test(hpet_race, a_late_expiry_is_served_when_the_timers_get_to_it)
{
    struct blocker blocker = {0};
    struct machine *m = overdue(&blocker, INT_LEVEL);

    cr_assert_eq(get(m, GINTR_STA), 0);
    let_timers_go(m, &blocker);
    cr_assert_eq(get(m, GINTR_STA), 1);
    cr_assert(pin_level(m, PIN));
    tear_down(m);
}

Test(hpet_race, a_late_periodic_expiry_merges_what_was_missed)
{
    struct blocker blocker = {0};
    struct machine_options options = {.clock_mode = BB_CLOCK_HOST};
    struct machine *m = set_up(&options);
    uint64_t before, comparator;

    keep_timers_busy(m, &blocker);
    put(m, conf_of(0), route_to(PIN) | INT_ENB | PERIODIC | VAL_SET);
    put(m, comp_of(0), DELTA);
    put(m, GEN_CONF, ENABLE);
    while (get(m, MAIN_CNT) <= 5 * DELTA) {
        sched_yield();
    }
    before = get(m, MAIN_CNT);
    comparator = get(m, comp_of(0));
    cr_assert_gt(comparator, before, "the comparator moves without an expiry");
    cr_assert_eq(comparator % DELTA, 0);
    put(m, GEN_CONF, 0);
    cr_assert_eq(pin_rises(m, PIN), 1, "five matches, one interrupt");
    let_timers_go(m, &blocker);
    cr_assert_eq(pin_rises(m, PIN), 1);
    tear_down(m);
}

/* The steps of write_general(), with reads in between. */
Test(hpet_race, gen_conf_and_the_counter_change_at_one_moment)
{
    struct machine *m = set_up(NULL);
    const uint64_t number = UINT64_C(77) << HPET_GENERAL_NUMBER_SHIFT;
    const uint64_t stop = number | (uint64_t)ENABLE << HPET_GENERAL_BEFORE_SHIFT | LEGACY;
    const uint64_t go = (uint64_t)LEGACY << HPET_GENERAL_BEFORE_SHIFT | ENABLE;

    put(m, GEN_CONF, ENABLE);
    bb_store_release(&m->hpet->general, stop | HPET_GENERAL_CHANGING);
    cr_assert_eq(get(m, GEN_CONF), ENABLE, "the counter still runs");
    (void)bb_counter_halt(&m->hpet->counter);
    cr_assert_eq(get(m, GEN_CONF), LEGACY, "it has stopped: the whole register has changed");
    bb_store_release(&m->hpet->general, stop);
    cr_assert_eq(get(m, GEN_CONF), LEGACY);
    bb_store_release(&m->hpet->general, number | go | HPET_GENERAL_CHANGING);
    cr_assert_eq(get(m, GEN_CONF), LEGACY);
    bb_counter_run(&m->hpet->counter);
    cr_assert_eq(get(m, GEN_CONF), ENABLE);
    bb_store_release(&m->hpet->general, number | go);
    cr_assert_eq(get(m, GEN_CONF), ENABLE);
    tear_down(m);
}

/* The steps of write_counter(), with reads in between. */
Test(hpet_race, a_comparator_stands_still_while_the_counter_is_being_set)
{
    struct machine *m = set_up(NULL);
    struct bb_hpet_timer_ *timer = &m->hpet->timer[0];

    put(m, conf_of(0), INT_ENB | PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, GEN_CONF, ENABLE);
    step(m, 50000);
    (void)bb_counter_halt(&m->hpet->counter);
    cr_assert_eq(get(m, comp_of(0)), 60000);
    bb_hpet_publish_(timer, true);
    cr_assert_eq(get(m, comp_of(0)), 60000);
    bb_counter_set(&m->hpet->counter, 1000000);
    cr_assert_eq(get(m, comp_of(0)), 60000, "the counter has changed, the anchor has not");
    bb_hpet_aim_(&timer->state, 1000000, BB_HPET_AIM_EQUAL_, 0);
    bb_hpet_publish_(timer, false);
    cr_assert_eq(get(m, comp_of(0)), 60000);
    tear_down(m);
}

/* A writer stopped with any timer's publication half done must not hold a reader up. */
Test(hpet_race, a_read_completes_while_a_publication_is_half_done)
{
    struct machine *m = set_up(NULL);
    struct bb_latch *latch = &m->hpet->timer[1].published;

    put(m, comp_of(1), 12345);
    put(m, fsb_of(1), 678);
    /* What bb_latch_write() has done after its first step and a word. */
    bb_store_release(&latch->sequence, latch->sequence + 1);
    bb_store_release(&latch->copy[0][1], UINT64_C(0xdead));
    cr_assert_eq(get(m, comp_of(1)), 12345);
    cr_assert_eq(get(m, fsb_of(1)), 678);
    bb_store_release(&latch->copy[0][1], UINT64_C(12345));
    bb_store_release(&latch->sequence, latch->sequence + 1);
    tear_down(m);
}

Test(hpet_race, a_read_completes_while_a_halt_is_half_done)
{
    struct machine *m = set_up(NULL);
    uint64_t count;

    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    /* STOPPING is published and its value undecided: bb_counter_halt() after its first step. */
    (void)bb_fetch_add_acq_rel(&m->hpet->counter.era, 1);
    count = get(m, MAIN_CNT);
    cr_assert_eq(count, 1000);
    step(m, 500);
    cr_assert_eq(get(m, MAIN_CNT), 1000, "the first reader has decided it");
    cr_assert_eq(get(m, comp_of(0)), UINT64_MAX);
    bb_counter_run(&m->hpet->counter);
    tear_down(m);
}
