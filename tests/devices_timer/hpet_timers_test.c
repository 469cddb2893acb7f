/* SPDX-License-Identifier: MIT */
/* When HPET timers match: one-shot, periodic, widths, value-set, halts, late and missed matches. */
#include "fixture.h"

#include <criterion/criterion.h>

enum { PIN = 16 };

/* Edge-triggered, enabled, routed to PIN, with these bits besides. */
static void configure(struct machine *m, unsigned timer, uint64_t bits)
{
    put(m, conf_of(timer), route_to(PIN) | INT_ENB | bits);
}

static uint32_t rises(struct machine *m)
{
    return pin_rises(m, PIN);
}

Test(hpet_timers, the_counter_counts_while_enabled_and_stands_while_not)
{
    struct machine *m = set_up(NULL);

    put(m, GEN_CONF, ENABLE);
    step_ns(m, 99);
    cr_assert_eq(get(m, MAIN_CNT), 9);
    step_ns(m, 1);
    cr_assert_eq(get(m, MAIN_CNT), 10);
    put(m, GEN_CONF, 0);
    step(m, 1000);
    cr_assert_eq(get(m, MAIN_CNT), 10);
    put(m, GEN_CONF, ENABLE);
    step(m, 5);
    cr_assert_eq(get(m, MAIN_CNT), 15);
    put(m, MAIN_CNT, UINT64_MAX - 1);
    step(m, 3);
    cr_assert_eq(get(m, MAIN_CNT), 1, "it wraps");
    tear_down(m);
}

Test(hpet_timers, one_shot_fires_at_the_comparator_and_once)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, 0);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 999);
    step_ns(m, TICK_NS - 1);
    cr_assert_eq(rises(m), 0);
    step_ns(m, 1);
    cr_assert_eq(rises(m), 1);
    cr_assert(!pin_level(m, PIN), "an edge, not a level");
    cr_assert_eq(get(m, GINTR_STA), 0, "no status in edge mode");
    cr_assert_eq(get(m, comp_of(0)), 1000);
    step(m, UINT64_C(10000000000));
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, a_match_aimed_in_the_middle_of_a_tick_is_met_where_its_tick_begins)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, 0);
    put(m, GEN_CONF, ENABLE);
    step_ns(m, 7);
    put(m, comp_of(0), 10);
    step_ns(m, 92);
    cr_assert_eq(rises(m), 0);
    step_ns(m, 1);
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, one_shot_in_32_bit_mode_fires_again_after_each_wrap)
{
    struct machine *m = set_up(NULL);

    configure(m, 1, MODE32);
    put(m, comp_of(1), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    cr_assert_eq(rises(m), 1);
    step(m, BB_BIT64(32) - 1);
    cr_assert_eq(rises(m), 1);
    step(m, 1);
    cr_assert_eq(rises(m), 2);
    step(m, 3 * BB_BIT64(32));
    cr_assert_eq(rises(m), 5);
    tear_down(m);
}

Test(hpet_timers, match_across_the_counters_own_wrap)
{
    struct machine *m = set_up(NULL);
    uint64_t expiries;

    put(m, MAIN_CNT, UINT64_MAX - 99);
    configure(m, 0, 0);
    put(m, comp_of(0), 50);
    put(m, GEN_CONF, ENABLE);
    step(m, 149);
    cr_assert_eq(rises(m), 0);
    step(m, 1);
    cr_assert_eq(rises(m), 1);

    /* And when aimed after the wrap, in a counter that was started before it. */
    expiries = bb_engine_stats(m->ctx).expiries;
    put(m, comp_of(0), 100);
    step(m, 49);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(bb_engine_stats(m->ctx).expiries, expiries, "armed for a time that is not past");
    step(m, 2);
    cr_assert_eq(rises(m), 2);
    cr_assert_eq(bb_engine_stats(m->ctx).expiries, expiries + 1);
    tear_down(m);
}

Test(hpet_timers, in_32_bit_mode_the_high_half_counts_for_nothing)
{
    struct machine *m = set_up(NULL);

    put(m, MAIN_CNT, UINT64_C(0x700000000));
    configure(m, 0, MODE32);
    put(m, comp_of(0), 1000);
    configure(m, 1, 0);
    put(m, comp_of(1), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    cr_assert_eq(rises(m), 1, "timer 0 alone");
    tear_down(m);
}

Test(hpet_timers, periodic_fires_at_every_period_and_moves_its_comparator)
{
    struct machine *m = set_up(NULL);
    unsigned i;

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, GEN_CONF, ENABLE);
    for (i = 1; i <= 5; i++) {
        step(m, 19999);
        cr_assert_eq(rises(m), i - 1);
        cr_assert_eq(get(m, comp_of(0)), i * 20000);
        step(m, 1);
        cr_assert_eq(rises(m), i);
        cr_assert_eq(get(m, comp_of(0)), (i + 1) * 20000);
    }
    tear_down(m);
}

Test(hpet_timers, value_set_writes_comparator_and_period_and_the_next_write_the_period)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    cr_assert_neq(get(m, conf_of(0)) & VAL_SET, 0);
    put(m, comp_of(0), 30000);
    cr_assert_eq(get(m, conf_of(0)) & VAL_SET, 0, "used up");
    cr_assert_eq(get(m, comp_of(0)), 30000);
    put(m, comp_of(0), 50000);
    cr_assert_eq(get(m, comp_of(0)), 30000, "without value-set a write is the period");
    put(m, GEN_CONF, ENABLE);
    step(m, 30000);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 80000);
    step(m, 49999);
    cr_assert_eq(rises(m), 1);
    step(m, 1);
    cr_assert_eq(rises(m), 2);
    tear_down(m);
}

Test(hpet_timers, value_set_by_halves_needs_the_bit_for_each)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    put32(m, comp_of(0), 0x10000);
    cr_assert_eq(get(m, comp_of(0)), UINT64_C(0xffffffff00010000));
    put32(m, comp_of(0) + 4, 0);
    cr_assert_eq(get(m, comp_of(0)), UINT64_C(0xffffffff00010000), "that was the period's half");
    configure(m, 0, PERIODIC | VAL_SET);
    put32(m, comp_of(0) + 4, 0);
    cr_assert_eq(get(m, comp_of(0)), 0x10000);
    put(m, GEN_CONF, ENABLE);
    step(m, 0x10000);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 0x20000);
    tear_down(m);
}

Test(hpet_timers, a_new_period_takes_effect_after_the_match_that_is_under_way)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, GEN_CONF, ENABLE);
    step(m, 25000);
    put(m, comp_of(0), 70000);
    cr_assert_eq(get(m, comp_of(0)), 40000);
    step(m, 15000);
    cr_assert_eq(rises(m), 2);
    cr_assert_eq(get(m, comp_of(0)), 110000);
    tear_down(m);
}

Test(hpet_timers, periodic_in_32_bit_mode_wraps_its_comparator)
{
    struct machine *m = set_up(NULL);

    put(m, MAIN_CNT, UINT32_MAX - 50000);
    configure(m, 0, PERIODIC | VAL_SET | MODE32);
    put(m, comp_of(0), UINT64_C(0xdead00000000ffff));
    cr_assert_eq(get(m, comp_of(0)), 0xffff);
    configure(m, 0, PERIODIC | VAL_SET | MODE32);
    put32(m, comp_of(0), UINT32_MAX - 30000);
    put32(m, comp_of(0), 40000);
    put(m, GEN_CONF, ENABLE);
    step(m, 20000);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 40000 - 30000 - 1);
    step(m, 40000);
    cr_assert_eq(rises(m), 2);
    cr_assert_eq(get(m, MAIN_CNT), UINT64_C(0x100000000) + 9999);
    tear_down(m);
}

Test(hpet_timers, entering_32_bit_mode_clears_the_high_half_for_good)
{
    struct machine *m = set_up(NULL);

    put(m, comp_of(2), UINT64_C(0x1234567800001000));
    put(m, conf_of(2), MODE32);
    cr_assert_eq(get(m, comp_of(2)), 0x1000);
    put32(m, comp_of(2) + 4, 0x99);
    cr_assert_eq(get(m, comp_of(2)), 0x1000, "no high half in 32-bit mode");
    put(m, conf_of(2), 0);
    cr_assert_eq(get(m, comp_of(2)), 0x1000);
    tear_down(m);
}

Test(hpet_timers, periodic_comparator_skips_missed_ticks_in_one_step)
{
    struct machine *m = set_up(NULL);
    uint64_t began = host_ns();

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 1);
    put(m, GEN_CONF, ENABLE);
    step_ns(m, 100000000);
    cr_assert_eq(get(m, comp_of(0)), 10000001, "as if each match had happened");
    /* At most one interrupt in 100 us: 1 000 in 100 ms, and the first. */
    cr_assert_leq(rises(m), 1001);
    cr_assert_geq(rises(m), 999);
    cr_assert_lt(host_ns() - began, 5000000000, "bounded host time");
    tear_down(m);
}

Test(hpet_timers, a_disabled_timer_is_silent_and_goes_on_counting_periods)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, conf_of(0), route_to(PIN) | PERIODIC);
    put(m, GEN_CONF, ENABLE);
    step(m, 110000);
    cr_assert_eq(rises(m), 0);
    cr_assert_eq(get(m, comp_of(0)), 120000);
    configure(m, 0, PERIODIC);
    cr_assert_eq(rises(m), 0, "what was missed while disabled stays missed");
    step(m, 10000);
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, disabling_while_armed_disarms)
{
    struct machine *m = set_up(NULL);
    uint64_t expiries;

    configure(m, 0, 0);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 500);
    expiries = bb_engine_stats(m->ctx).expiries;
    put(m, conf_of(0), route_to(PIN));
    step(m, 1000);
    cr_assert_eq(rises(m), 0);
    cr_assert_eq(bb_engine_stats(m->ctx).expiries, expiries, "not even a wasted expiry");
    configure(m, 0, 0);
    step(m, 1000);
    cr_assert_eq(rises(m), 0, "the match is past");
    tear_down(m);
}

Test(hpet_timers, halting_holds_a_match_until_the_counter_gets_there)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, 0);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 999);
    put(m, GEN_CONF, 0);
    step(m, 100000);
    cr_assert_eq(rises(m), 0);
    put(m, GEN_CONF, ENABLE);
    cr_assert_eq(rises(m), 0);
    step(m, 1);
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, setting_the_counter_moves_every_match)
{
    static const bool running[] = {false, true};
    unsigned i;

    for (i = 0; i < 2; i++) {
        struct machine *m = set_up(NULL);

        configure(m, 0, 0);
        configure(m, 1, PERIODIC | VAL_SET);
        put(m, comp_of(0), 100000);
        put(m, comp_of(1), 30000);
        put(m, GEN_CONF, ENABLE);
        step(m, 40000);
        cr_assert_eq(rises(m), 1);
        if (!running[i]) {
            put(m, GEN_CONF, 0);
        }
        put(m, MAIN_CNT, 59999);
        cr_assert_eq(get(m, comp_of(1)), 60000, "a comparator stands while the counter jumps");
        put(m, GEN_CONF, ENABLE);
        step(m, 1);
        cr_assert_eq(rises(m), 2);
        step(m, 29999);
        cr_assert_eq(rises(m), 2);
        step(m, 1);
        cr_assert_eq(rises(m), 3);
        step(m, 10000);
        cr_assert_eq(rises(m), 4);
        tear_down(m);
    }
}

Test(hpet_timers, a_counter_set_beyond_a_match_does_not_meet_it)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, 0);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    put(m, MAIN_CNT, 1001);
    step(m, 100000);
    cr_assert_eq(rises(m), 0);
    put(m, MAIN_CNT, 0);
    step(m, 1000);
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, a_comparator_written_late_fires_at_once)
{
    struct machine *m = set_up(NULL);

    put(m, GEN_CONF, ENABLE);
    step(m, 150000000);
    configure(m, 0, 0);
    put(m, comp_of(0), 150000000 - 1);
    cr_assert_eq(rises(m), 1, "one tick late");
    put(m, comp_of(0), 50000000);
    cr_assert_eq(rises(m), 2, "one second late: the last that counts");
    put(m, comp_of(0), 50000000 - 1);
    cr_assert_eq(rises(m), 2, "later still");
    put(m, comp_of(0), 150000000);
    cr_assert_eq(rises(m), 3, "equal");
    put(m, GEN_CONF, 0);
    put(m, comp_of(0), 150000000 - 1);
    put(m, GEN_CONF, ENABLE);
    step(m, 100000);
    cr_assert_eq(rises(m), 3, "nothing is late while the counter stands");
    tear_down(m);
}

Test(hpet_timers, a_late_periodic_comparator_fires_once_and_keeps_its_phase)
{
    struct machine *m = set_up(NULL);

    put(m, GEN_CONF, ENABLE);
    step(m, 1000000);
    configure(m, 0, PERIODIC);
    put(m, comp_of(0), 30000);
    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 1020000);
    step(m, 20000);
    cr_assert_eq(rises(m), 2);
    tear_down(m);
}

Test(hpet_timers, changing_the_mode_while_armed_takes_effect_at_once)
{
    struct machine *m = set_up(NULL);

    /* 64-bit one-shot, beyond 32 bits, cut to 32 bits. */
    configure(m, 0, 0);
    put(m, comp_of(0), UINT64_C(0x100000000) + 5000);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    configure(m, 0, MODE32);
    step(m, 4000);
    cr_assert_eq(rises(m), 1);

    /* Periodic to one-shot: the comparator stays where it got to. */
    configure(m, 1, PERIODIC | VAL_SET);
    put(m, comp_of(1), 20000);
    step(m, 20000);
    cr_assert_eq(rises(m), 2);
    configure(m, 1, 0);
    cr_assert_eq(get(m, comp_of(1)), 40000);
    step(m, 20000);
    cr_assert_eq(rises(m), 3);
    step(m, 100000);
    cr_assert_eq(rises(m), 3);
    tear_down(m);
}

Test(hpet_timers, a_configuration_write_at_the_match_does_not_repeat_it)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, 0);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    cr_assert_eq(rises(m), 1);
    configure(m, 0, MODE32);
    configure(m, 0, 0);
    put(m, GEN_CONF, 0);
    put(m, GEN_CONF, ENABLE);
    cr_assert_eq(rises(m), 1);
    tear_down(m);
}

Test(hpet_timers, a_comparator_equal_to_the_halted_count_is_met_by_enabling)
{
    struct machine *m = set_up(NULL);

    put(m, MAIN_CNT, 5000);
    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 5000);
    cr_assert_eq(get(m, comp_of(0)), 5000);
    cr_assert_eq(rises(m), 0);
    put(m, GEN_CONF, ENABLE);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 10000);
    put(m, GEN_CONF, 0);
    cr_assert_eq(get(m, comp_of(0)), 10000, "and stays met, though no time has passed");
    tear_down(m);
}

Test(hpet_timers, a_comparator_written_anew_is_not_held_back_by_the_match_before)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 20);
    put(m, GEN_CONF, ENABLE);
    step(m, 30);
    cr_assert_eq(rises(m), 1);
    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 100);
    step(m, 69);
    cr_assert_eq(rises(m), 1);
    step(m, 1);
    cr_assert_eq(rises(m), 2);
    tear_down(m);
}

Test(hpet_timers, a_periodic_timer_of_period_zero_fires_once)
{
    struct machine *m = set_up(NULL);

    configure(m, 0, PERIODIC | VAL_SET);
    put(m, comp_of(0), 1000);
    put(m, comp_of(0), 0);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000000);
    cr_assert_eq(rises(m), 1);
    cr_assert_eq(get(m, comp_of(0)), 1000);
    tear_down(m);
}

Test(hpet_timers, one_timer_may_be_all_timers)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = 32};
    struct machine *m = set_up(&options);
    unsigned i;

    for (i = 0; i < 32; i++) {
        configure(m, i, 0);
        put(m, comp_of(i), 1000 + i);
    }
    put(m, GEN_CONF, ENABLE);
    for (i = 0; i < 32; i++) {
        step(m, i == 0 ? 1000 : 1);
        cr_assert_eq(rises(m), i + 1);
    }
    tear_down(m);
}

Test(hpet_timers, removal_with_armed_timers_leaves_nothing_behind)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = 32};
    struct machine *m = set_up(&options);
    uint32_t before;
    unsigned i;

    for (i = 0; i < 32; i++) {
        configure(m, i, PERIODIC | VAL_SET | (i % 2 != 0 ? INT_LEVEL : 0));
        put(m, comp_of(i), 20000 + i);
    }
    put(m, GEN_CONF, ENABLE);
    step(m, 50000);
    cr_assert(pin_level(m, PIN));
    cr_assert_eq(bb_device_remove_wait(m->ctx, bb_hpet_device(m->hpet), NULL), BB_OK);
    m->hpet = NULL;
    cr_assert(!pin_level(m, PIN), "the level is withdrawn");
    before = rises(m);
    step(m, 1000000);
    cr_assert_eq(rises(m), before, "no timer runs any longer");
    tear_down(m);
}

Test(hpet_timers, every_lock_mode_gives_the_same_timers)
{
    static const enum bb_lock_mode modes[] = {BB_LOCK_FREE, BB_LOCK_DEVICE, BB_LOCK_BIG};
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(modes); i++) {
        struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .lock_mode = modes[i]};
        struct machine *m = set_up(&options);

        configure(m, 0, PERIODIC | VAL_SET);
        put(m, comp_of(0), 20000);
        put(m, GEN_CONF, ENABLE);
        step(m, 100000);
        cr_assert_eq(rises(m), 5);
        cr_assert_eq(get(m, MAIN_CNT), 100000);
        tear_down(m);
    }
}
