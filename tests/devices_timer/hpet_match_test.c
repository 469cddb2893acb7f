/* SPDX-License-Identifier: MIT */
/*
 * The comparator's arithmetic against a comparator that is really ticked: one that compares after
 * every increment of a counter, as section 2.3.9.2 of the specification words it.
 */
#include "../../devices/timer/hpet_internal.h"
#include "fixture.h"

#include <criterion/criterion.h>

enum { SEED = 20261121 };

struct ticked {
    uint64_t mask;
    bool periodic;
    uint64_t comparator;
    uint64_t period;
    uint64_t count;
    uint64_t matches;
};

static void tick(struct ticked *model)
{
    model->count++;
    if ((model->count & model->mask) == model->comparator) {
        model->matches++;
        if (model->periodic) {
            model->comparator = (model->comparator + model->period) & model->mask;
        }
    }
}

static struct bb_hpet_state_ state_of(uint64_t config, uint64_t comparator, uint64_t period)
{
    return (struct bb_hpet_state_){.config = config, .comparator = comparator, .period = period};
}

Test(hpet_match, agrees_with_a_counter_that_is_ticked)
{
    uint64_t start = seed(SEED);
    uint64_t random = start;
    unsigned round;

    for (round = 0; round < 3000; round++) {
        bool mode32 = (next_random(&random) & 1) != 0;
        bool periodic = (next_random(&random) & 1) != 0;
        uint64_t mask = mode32 ? UINT32_MAX : UINT64_MAX;
        /* Near the wrap of 32 or 64 bits, or anywhere. */
        uint64_t count = (next_random(&random) & 1) != 0 ? next_random(&random)
                                                         : mask - next_random(&random) % 64;
        struct bb_hpet_state_ state =
            state_of((mode32 ? HPET_TN_32MODE : 0) | (periodic ? HPET_TN_TYPE : 0),
                     (count + 1 + next_random(&random) % 100) & mask, next_random(&random) % 40);
        struct ticked model = {mask, periodic, state.comparator, state.period, count, 0};
        unsigned moves;

        bb_hpet_aim_(&state, count, BB_HPET_AIM_NEXT_, 0);
        for (moves = 0; moves < 12; moves++) {
            uint64_t before = model.matches;
            uint64_t ticks = next_random(&random) % 70;

            while (ticks-- > 0) {
                tick(&model);
            }
            cr_assert_eq(bb_hpet_matched_(&state, model.count), model.matches != before,
                         "seed %#lx round %u", (unsigned long)start, round);
            bb_hpet_advance_(&state, model.count);
            cr_assert_eq(state.comparator, model.comparator, "seed %#lx round %u",
                         (unsigned long)start, round);
        }
    }
}

Test(hpet_match, a_64_bit_one_shot_matches_once)
{
    struct bb_hpet_state_ state = state_of(0, 100, 0);

    bb_hpet_aim_(&state, 50, BB_HPET_AIM_EQUAL_, 0);
    cr_assert(!bb_hpet_matched_(&state, 99));
    cr_assert(bb_hpet_matched_(&state, 100));
    bb_hpet_advance_(&state, 100);
    cr_assert_eq(state.distance, HPET_NEVER);
    cr_assert(!bb_hpet_matched_(&state, 99), "2^64 - 1 ticks later");
}

Test(hpet_match, a_32_bit_one_shot_matches_once_a_wrap)
{
    struct bb_hpet_state_ state = state_of(HPET_TN_32MODE, 100, 0);

    bb_hpet_aim_(&state, 50, BB_HPET_AIM_EQUAL_, 0);
    bb_hpet_advance_(&state, 150);
    cr_assert(!bb_hpet_matched_(&state, 100 + BB_BIT64(32) - 1));
    cr_assert(bb_hpet_matched_(&state, 100 + BB_BIT64(32)));
    cr_assert_eq(state.comparator, 100);
}

Test(hpet_match, any_number_of_missed_periods_takes_one_step)
{
    struct bb_hpet_state_ state = state_of(HPET_TN_TYPE, 1, 1);

    bb_hpet_aim_(&state, 0, BB_HPET_AIM_EQUAL_, 0);
    bb_hpet_advance_(&state, BB_BIT64(62) + 12345);
    cr_assert_eq(state.comparator, BB_BIT64(62) + 12346);
    cr_assert_eq(state.distance, 1);
}

Test(hpet_match, aims_at_equality_now_or_a_wrap_later_as_asked)
{
    struct bb_hpet_state_ state = state_of(0, 500, 0);

    bb_hpet_aim_(&state, 500, BB_HPET_AIM_EQUAL_, 0);
    cr_assert(bb_hpet_matched_(&state, 500));
    bb_hpet_aim_(&state, 500, BB_HPET_AIM_NEXT_, 0);
    cr_assert_eq(state.distance, HPET_NEVER);
    state.config = HPET_TN_32MODE;
    bb_hpet_aim_(&state, 500, BB_HPET_AIM_NEXT_, 0);
    cr_assert_eq(state.distance, BB_BIT64(32));
}

Test(hpet_match, takes_a_late_aim_inside_the_window_only)
{
    static const uint64_t modes[] = {0, HPET_TN_32MODE};
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(modes); i++) {
        struct bb_hpet_state_ state = state_of(modes[i], 1000, 0);

        bb_hpet_aim_(&state, 1000 + 64, BB_HPET_AIM_LATE_, 64);
        cr_assert(bb_hpet_matched_(&state, 1000 + 64));
        bb_hpet_aim_(&state, 1000 + 65, BB_HPET_AIM_LATE_, 64);
        cr_assert(!bb_hpet_matched_(&state, 1000 + 65 + 5000));
    }
}

Test(hpet_match, a_late_periodic_aim_skips_to_the_next_period)
{
    struct bb_hpet_state_ state = state_of(HPET_TN_TYPE, 1000, 300);

    bb_hpet_aim_(&state, 1700, BB_HPET_AIM_LATE_, 1000);
    cr_assert(bb_hpet_matched_(&state, 1700));
    bb_hpet_advance_(&state, 1700);
    cr_assert_eq(state.comparator, 1900);
    cr_assert_eq(state.distance, 200);
}
