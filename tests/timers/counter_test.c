/* SPDX-License-Identifier: MIT */
/* The counter with nobody in the way: arithmetic, transitions, limits. */
#include <criterion/criterion.h>

#include "scripted_source.h"
#include "test_seed.h"

static struct scripted_source time_;
static struct bb_counter counter;

static void make(uint64_t tick_ns, bb_ns_t now_ns)
{
    struct bb_time_source source = scripted_source_of(&time_);

    time_ = (struct scripted_source){.now_ns = now_ns};
    bb_counter_init(&counter, &source, tick_ns);
}

Test(counter, begins_halted_at_zero_whatever_the_time_is)
{
    bool running = true;
    bb_ns_t at_ns;

    make(10, 123456);
    cr_assert_eq(bb_counter_read(&counter), 0);
    cr_assert_eq(bb_counter_read_state(&counter, &running, &at_ns), 0);
    cr_assert_not(running);
    cr_assert_eq(bb_counter_halt(&counter), 0);
    time_.now_ns += 1000;
    cr_assert_eq(bb_counter_read(&counter), 0);
}

Test(counter, counts_whole_ticks_since_it_was_run)
{
    make(10, 1000);
    bb_counter_run(&counter);
    cr_assert_eq(bb_counter_read(&counter), 0);
    time_.now_ns = 1009;
    cr_assert_eq(bb_counter_read(&counter), 0);
    time_.now_ns = 1010;
    cr_assert_eq(bb_counter_read(&counter), 1);
    time_.now_ns = 1000 + 10 * UINT64_C(123456789012) + 9;
    cr_assert_eq(bb_counter_read(&counter), UINT64_C(123456789012));
}

Test(counter, takes_a_tick_of_zero_as_one)
{
    make(0, 5);
    bb_counter_run(&counter);
    time_.now_ns = 12;
    cr_assert_eq(bb_counter_read(&counter), 7);
}

Test(counter, works_over_a_source_that_does_not_order_itself)
{
    struct bb_time_source source = {.now_ns = scripted_now, .opaque = &time_};

    time_ = (struct scripted_source){.now_ns = 5};
    bb_counter_init(&counter, &source, 2);
    bb_counter_run(&counter);
    time_.now_ns = 11;
    cr_assert_eq(bb_counter_read(&counter), 3);
    cr_assert_eq(bb_counter_halt(&counter), 3);
}

Test(counter, stands_while_halted_and_goes_on_from_the_same_value)
{
    make(10, 0);
    bb_counter_run(&counter);
    time_.now_ns = 1005;
    cr_assert_eq(bb_counter_halt(&counter), 100);
    time_.now_ns = 5000;
    cr_assert_eq(bb_counter_read(&counter), 100);
    cr_assert_eq(bb_counter_halt(&counter), 100);
    bb_counter_run(&counter);
    cr_assert_eq(bb_counter_read(&counter), 100);
    time_.now_ns = 5009;
    cr_assert_eq(bb_counter_read(&counter), 100);
    time_.now_ns = 5010;
    cr_assert_eq(bb_counter_read(&counter), 101);
}

Test(counter, keeps_its_value_over_more_eras_than_it_has_slots)
{
    make(3, 7);
    for (uint64_t i = 0; i < 1000; i++) {
        bb_counter_run(&counter);
        cr_assert_eq(bb_counter_read(&counter), i);
        time_.now_ns += 3;
        cr_assert_eq(bb_counter_halt(&counter), i + 1);
        time_.now_ns += 1000;
        cr_assert_eq(bb_counter_read(&counter), i + 1);
    }
}

Test(counter, running_twice_is_running_once)
{
    make(1, 0);
    bb_counter_run(&counter);
    time_.now_ns = 50;
    bb_counter_run(&counter);
    cr_assert_eq(bb_counter_read(&counter), 50);
}

Test(counter, can_be_set_halted_and_running_and_backwards)
{
    make(10, 100);
    bb_counter_set(&counter, 77);
    cr_assert_eq(bb_counter_read(&counter), 77);
    time_.now_ns = 900;
    cr_assert_eq(bb_counter_read(&counter), 77);
    bb_counter_run(&counter);
    time_.now_ns = 1000;
    cr_assert_eq(bb_counter_read(&counter), 87);
    bb_counter_set(&counter, 5);
    cr_assert_eq(bb_counter_read(&counter), 5);
    time_.now_ns = 1020;
    cr_assert_eq(bb_counter_read(&counter), 7);
    cr_assert_eq(bb_counter_halt(&counter), 7);
}

Test(counter, wraps_at_2_to_the_64)
{
    make(1, 0);
    bb_counter_set(&counter, UINT64_MAX);
    bb_counter_run(&counter);
    cr_assert_eq(bb_counter_read(&counter), UINT64_MAX);
    time_.now_ns = 3;
    cr_assert_eq(bb_counter_read(&counter), 2);
    cr_assert_eq(bb_counter_halt(&counter), 2);
}

Test(counter, takes_a_source_before_its_start_as_its_start)
{
    make(1, 1000);
    bb_counter_set(&counter, 40);
    bb_counter_run(&counter);
    time_.now_ns = 10;
    cr_assert_eq(bb_counter_read(&counter), 40);
    cr_assert_eq(bb_counter_halt(&counter), 40);
    cr_assert_eq(bb_counter_read(&counter), 40);
}

Test(counter, tells_value_phase_and_time_of_one_moment)
{
    bool running = false;
    bb_ns_t at_ns = 0;

    make(10, 1000);
    bb_counter_run(&counter);
    time_.now_ns = 1234;
    cr_assert_eq(bb_counter_read_state(&counter, &running, &at_ns), 23);
    cr_assert(running);
    cr_assert_eq(at_ns, 1234);
    (void)bb_counter_halt(&counter);
    time_.now_ns = 9999;
    cr_assert_eq(bb_counter_read_state(&counter, &running, NULL), 23);
    cr_assert_eq(bb_counter_read_state(&counter, &running, &at_ns), 23);
    cr_assert_not(running);
    cr_assert_eq(at_ns, 1234);
}

Test(counter, time_of_is_the_first_nanosecond_at_which_the_value_is_read)
{
    static const uint64_t ticks[] = {1, 2, 3, 7, 10, 100, 1000, 279, 1000000000};

    for (size_t i = 0; i < BB_ARRAY_LEN(ticks); i++) {
        make(ticks[i], 12345);
        bb_counter_set(&counter, 50);
        bb_counter_run(&counter);
        for (uint64_t value = 51; value < 200; value++) {
            bb_ns_t at_ns = bb_counter_time_of(&counter, value);

            time_.now_ns = at_ns;
            cr_assert_eq(bb_counter_read(&counter), value, "tick %lu", (unsigned long)ticks[i]);
            time_.now_ns = at_ns - 1;
            cr_assert_eq(bb_counter_read(&counter), value - 1, "tick %lu", (unsigned long)ticks[i]);
        }
    }
}

Test(counter, time_of_a_passed_value_is_not_in_the_future)
{
    make(10, 1000);
    bb_counter_set(&counter, 500);
    bb_counter_run(&counter);
    time_.now_ns = 2000;
    cr_assert_leq(bb_counter_time_of(&counter, 550), 2000);
    cr_assert_leq(bb_counter_time_of(&counter, 500), 2000);
    cr_assert_leq(bb_counter_time_of(&counter, 0), 2000);
}

Test(counter, time_of_a_halted_counter_or_beyond_time_is_never)
{
    const bb_ns_t last_ns = BB_TIME_LIMIT_ - 1;

    make(10, 1000);
    cr_assert_eq(bb_counter_time_of(&counter, 0), UINT64_MAX);
    bb_counter_run(&counter);
    /* The last tick inside time, the first outside, and both kinds of overflow. */
    cr_assert_eq(bb_counter_time_of(&counter, (last_ns - 1000) / 10),
                 1000 + (last_ns - 1000) / 10 * 10);
    cr_assert_eq(bb_counter_time_of(&counter, (last_ns - 1000) / 10 + 1), UINT64_MAX);
    cr_assert_eq(bb_counter_time_of(&counter, UINT64_MAX / 10), UINT64_MAX);
    cr_assert_eq(bb_counter_time_of(&counter, UINT64_MAX / 10 + 1), UINT64_MAX);
    cr_assert_eq(bb_counter_time_of(&counter, UINT64_MAX), UINT64_MAX);
    (void)bb_counter_halt(&counter);
    cr_assert_eq(bb_counter_time_of(&counter, 0), UINT64_MAX);
}

Test(counter, divides_by_its_reciprocal_as_division_does)
{
    uint64_t seed = test_seed(), state = seed;

    for (unsigned i = 0; i < 20000; i++) {
        uint64_t tick_ns = (test_random(&state) >> (test_random(&state) % 64)) | (i < 70 ? i : 0);
        uint64_t cases[6];

        make(tick_ns, 0);
        tick_ns = tick_ns == 0 ? 1 : tick_ns;
        cases[0] = test_random(&state) >> (test_random(&state) % 64);
        cases[1] = cases[0] / tick_ns * tick_ns;
        cases[2] = cases[1] - 1;
        cases[3] = counter.reciprocal_below;
        cases[4] = counter.reciprocal_below - 1;
        cases[5] = cases[4] / tick_ns * tick_ns - 1;
        for (size_t k = 0; k < BB_ARRAY_LEN(cases); k++) {
            cr_assert_eq(bb_counter_ticks_(&counter, cases[k]), cases[k] / tick_ns,
                         "%lu / %lu, BUSBAR_TEST_SEED=%lu", (unsigned long)cases[k],
                         (unsigned long)tick_ns, (unsigned long)seed);
        }
    }
}

Test(counter, reads_the_whole_range_of_time)
{
    make(10, 0);
    bb_counter_run(&counter);
    time_.now_ns = BB_TIME_LIMIT_ - 1;
    cr_assert_eq(bb_counter_read(&counter), (BB_TIME_LIMIT_ - 1) / 10);
    cr_assert_eq(bb_counter_halt(&counter), (BB_TIME_LIMIT_ - 1) / 10);
}
