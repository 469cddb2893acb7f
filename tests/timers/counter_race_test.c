/* SPDX-License-Identifier: MIT */
/*
 * The counter's races, one by one, on one thread: the source's hook does what writers did while
 * the reader was between its two loads of the era word. The numbers in names and comments are the
 * points of the argument in timers/counter.c.
 */
#include <criterion/criterion.h>

#include "scripted_source.h"
#include "test_seed.h"

static struct scripted_source time_;
static struct bb_counter counter;

static void make_running(uint64_t tick_ns)
{
    struct bb_time_source source = scripted_source_of(&time_);

    time_ = (struct scripted_source){.now_ns = 0};
    bb_counter_init(&counter, &source, tick_ns);
    bb_counter_run(&counter);
}

/*
 * The counter that everybody writes first: a state word, then the clock. It is here to show that
 * the script that follows would catch it.
 */
static struct {
    bool running;
    bb_ns_t start_ns;
    uint64_t value;
} naive;

static uint64_t naive_read(void)
{
    if (!naive.running) {
        return naive.value;
    }
    return naive.value + (scripted_now(&time_) - naive.start_ns);
}

static void naive_halt(void *arg)
{
    (void)arg;
    naive.value += time_.now_ns - naive.start_ns;
    naive.running = false;
    time_.now_ns += 50;
}

Test(counter_race, a_naive_counter_runs_backwards_in_this_script)
{
    uint64_t late, after;

    time_ = (struct scripted_source){.now_ns = 0};
    naive.running = true;
    time_.now_ns = 100;
    time_.early = naive_halt;
    late = naive_read();
    after = naive_read();
    cr_assert_eq(late, 150);
    cr_assert_eq(after, 100);
}

static void halt_then_time_passes(void *arg)
{
    (void)arg;
    cr_assert_eq(bb_counter_halt(&counter), 100);
    time_.now_ns += 50;
}

Test(counter_race, a_reader_late_across_a_halt_returns_the_halted_value)
{
    make_running(1);
    time_.now_ns = 100;
    time_.early = halt_then_time_passes;
    cr_assert_eq(bb_counter_read(&counter), 100);
    cr_assert_eq(bb_counter_read(&counter), 100);
}

Test(counter_race, a_reader_that_sampled_before_a_halt_returns_the_halted_value)
{
    bool running = true;
    bb_ns_t at_ns;

    make_running(1);
    time_.now_ns = 100;
    time_.late = halt_then_time_passes;
    cr_assert_eq(bb_counter_read_state(&counter, &running, &at_ns), 100);
    cr_assert_not(running);
    cr_assert_eq(at_ns, 100);
}

static void halt_and_run(void *arg)
{
    (void)arg;
    cr_assert_eq(bb_counter_halt(&counter), 100);
    time_.now_ns += 50;
    bb_counter_run(&counter);
    time_.now_ns += 7;
}

Test(counter_race, a_reader_late_across_halt_and_run_returns_the_value_kept_between)
{
    bool running = false;
    bb_ns_t at_ns;

    make_running(1);
    time_.now_ns = 100;
    time_.early = halt_and_run;
    cr_assert_eq(bb_counter_read_state(&counter, &running, &at_ns), 100);
    cr_assert(running);
    cr_assert_eq(at_ns, 150);
    cr_assert_eq(bb_counter_read(&counter), 107);
}

static void halt_set_and_run(void *arg)
{
    (void)arg;
    (void)bb_counter_halt(&counter);
    time_.now_ns += 50;
    bb_counter_set(&counter, 1000);
    time_.now_ns += 50;
    bb_counter_run(&counter);
    time_.now_ns += 7;
}

Test(counter_race, a_reader_late_across_halt_set_and_run_returns_what_was_set)
{
    make_running(1);
    time_.now_ns = 100;
    time_.early = halt_set_and_run;
    cr_assert_eq(bb_counter_read(&counter), 1000);
    cr_assert_eq(bb_counter_read(&counter), 1007);
}

static void set_running_back(void *arg)
{
    (void)arg;
    bb_counter_set(&counter, 3);
    time_.now_ns += 20;
}

Test(counter_race, a_reader_late_across_a_set_while_running_returns_what_was_set)
{
    make_running(1);
    time_.now_ns = 100;
    time_.early = set_running_back;
    cr_assert_eq(bb_counter_read(&counter), 3);
    cr_assert_eq(bb_counter_read(&counter), 23);
}

static void set_and_halt(void *arg)
{
    (void)arg;
    bb_counter_set(&counter, 3);
    time_.now_ns += 20;
    (void)bb_counter_halt(&counter);
}

Test(counter_race, a_reader_late_across_set_and_halt_returns_the_halted_value)
{
    make_running(1);
    time_.now_ns = 100;
    time_.late = set_and_halt;
    cr_assert_eq(bb_counter_read(&counter), 23);
}

/* `*arg` toggles, 10 ns running and 10 ns halted each; ends as it began, running. */
static void toggle(void *arg)
{
    for (unsigned i = 0; i < *(unsigned *)arg; i++) {
        time_.now_ns += 10;
        (void)bb_counter_halt(&counter);
        time_.now_ns += 10;
        bb_counter_run(&counter);
    }
}

Test(counter_race, any_number_of_eras_may_pass_inside_one_read)
{
    static const unsigned eras[] = {1, 2, 6, 7, 8, 9, 15, 16, 17, 100};

    for (size_t i = 0; i < BB_ARRAY_LEN(eras); i++) {
        for (unsigned late = 0; late < 2; late++) {
            unsigned n = eras[i];

            make_running(1);
            time_.now_ns = 100;
            time_.arg = &n;
            *(late ? &time_.late : &time_.early) = toggle;
            cr_assert_eq(bb_counter_read(&counter), 100 + 10 * n, "%u eras", n);
            time_.now_ns += 1;
            cr_assert_eq(bb_counter_read(&counter), 100 + 10 * n + 1, "%u eras", n);
        }
    }
}

static void toggle_and_halt(void *arg)
{
    toggle(arg);
    (void)bb_counter_halt(&counter);
    time_.now_ns += 33;
}

Test(counter_race, any_number_of_eras_may_pass_and_end_in_a_halt)
{
    static const unsigned eras[] = {1, 7, 8, 9, 100};

    for (size_t i = 0; i < BB_ARRAY_LEN(eras); i++) {
        unsigned n = eras[i];

        make_running(1);
        time_.now_ns = 100;
        time_.arg = &n;
        time_.early = toggle_and_halt;
        cr_assert_eq(bb_counter_read(&counter), 100 + 10 * n, "%u eras", n);
    }
}

Test(counter_race, a_writer_stalled_in_the_middle_of_a_halt_keeps_no_reader_waiting)
{
    bool running = true;

    make_running(10);
    time_.now_ns = 1000;
    bb_counter_halt_begin_(&counter);
    /* The first reader decides; later ones agree, however late they come. */
    cr_assert_eq(bb_counter_read(&counter), 100);
    for (unsigned i = 0; i < 10; i++) {
        time_.now_ns += 1000;
        cr_assert_eq(bb_counter_read_state(&counter, &running, NULL), 100);
        cr_assert_not(running);
    }
}

Test(counter_race, a_helper_that_decides_before_the_writer_is_believed_by_it)
{
    make_running(1);
    time_.now_ns = 100;
    bb_counter_halt_begin_(&counter);
    cr_assert_eq(bb_counter_read(&counter), 100);
    time_.now_ns = 500;
    bb_counter_halt_finish_(&counter);
    cr_assert_eq(bb_counter_halt(&counter), 100);
    bb_counter_run(&counter);
    time_.now_ns = 503;
    cr_assert_eq(bb_counter_read(&counter), 103);
}

Test(counter_race, a_writer_goes_on_after_one_that_never_finished_its_halt)
{
    for (unsigned op = 0; op < 4; op++) {
        make_running(1);
        time_.now_ns = 100;
        bb_counter_halt_begin_(&counter);
        time_.now_ns = 130;
        switch (op) {
        case 0:
            cr_assert_eq(bb_counter_halt(&counter), 130);
            break;
        case 1:
            bb_counter_run(&counter);
            cr_assert_eq(bb_counter_read(&counter), 130);
            break;
        case 2:
            bb_counter_set(&counter, 9);
            cr_assert_eq(bb_counter_read(&counter), 9);
            time_.now_ns = 200;
            cr_assert_eq(bb_counter_read(&counter), 9);
            break;
        default:
            cr_assert_eq(bb_counter_time_of(&counter, 500), UINT64_MAX);
            cr_assert_eq(bb_counter_read(&counter), 130);
            break;
        }
    }
}

/* Another reader decides, and much time passes, while this helper is about to propose. */
static void other_helper_decides(void *arg)
{
    (void)arg;
    cr_assert_eq(bb_counter_read(&counter), 100);
    time_.now_ns += 400;
}

Test(counter_race, two_helpers_agree_though_they_sampled_apart)
{
    make_running(1);
    time_.now_ns = 100;
    bb_counter_halt_begin_(&counter);
    time_.early = other_helper_decides;
    cr_assert_eq(bb_counter_read(&counter), 100);
    bb_counter_halt_finish_(&counter);
    cr_assert_eq(bb_counter_read(&counter), 100);
}

static void halt_begins(void *arg)
{
    (void)arg;
    bb_counter_halt_begin_(&counter);
}

Test(counter_race, a_reader_that_runs_into_a_stalled_halt_decides_not_below_its_sample)
{
    make_running(1);
    time_.now_ns = 100;
    time_.late = halt_begins;
    cr_assert_eq(bb_counter_read(&counter), 100);
    time_.now_ns = 900;
    cr_assert_eq(bb_counter_read(&counter), 100);
}

/*
 * Point 1. A helper of era n is stalled with its sample taken while its slot passes to era
 * n + BB_COUNTER_ERAS, which is left `stopping` or running, undecided both.
 */
static void slot_passes_on(void *arg)
{
    bool stopping = *(bool *)arg;

    bb_counter_halt_finish_(&counter);
    cr_assert_eq(bb_counter_read(&counter), 100);
    for (unsigned i = 0; i < BB_COUNTER_ERAS; i++) {
        time_.now_ns += 10;
        bb_counter_run(&counter);
        time_.now_ns += 10;
        if (i < BB_COUNTER_ERAS - 1) {
            (void)bb_counter_halt(&counter);
        } else if (stopping) {
            bb_counter_halt_begin_(&counter);
        }
    }
}

Test(counter_race, a_helper_of_an_era_long_gone_can_not_decide_a_later_one)
{
    for (unsigned stopping = 0; stopping < 2; stopping++) {
        bool arg = stopping != 0;
        uint64_t value;

        make_running(1);
        time_.now_ns = 100;
        bb_counter_halt_begin_(&counter);
        time_.arg = &arg;
        time_.late = slot_passes_on;
        value = bb_counter_read(&counter);
        cr_assert_geq(value, 100);
        cr_assert_leq(value, 100 + 10 * BB_COUNTER_ERAS);
        if (!stopping) {
            time_.now_ns += 5;
            cr_assert_eq(bb_counter_read(&counter), 105 + 10 * BB_COUNTER_ERAS);
            cr_assert_eq(bb_counter_halt(&counter), 105 + 10 * BB_COUNTER_ERAS);
        }
        cr_assert_eq(bb_counter_halt(&counter), 100 + 10 * BB_COUNTER_ERAS + (stopping ? 0 : 5));
    }
}

/* A counter over a counter, as a device's over the virtual clock. */
static struct bb_counter outer;

static bb_ns_t inner_now(void *opaque)
{
    return bb_counter_read(opaque);
}

static void make_nested(void)
{
    struct bb_time_source source = {.now_ns = inner_now, .opaque = &counter, .ordered = true};

    make_running(1);
    bb_counter_init(&outer, &source, 10);
    bb_counter_run(&outer);
}

static void halt_inner(void *arg)
{
    (void)arg;
    (void)bb_counter_halt(&counter);
    time_.now_ns += 500;
}

static void halt_outer(void *arg)
{
    (void)arg;
    (void)bb_counter_halt(&outer);
    time_.now_ns += 500;
}

static void halt_both(void *arg)
{
    halt_outer(arg);
    halt_inner(arg);
}

static void restart_inner(void *arg)
{
    halt_inner(arg);
    bb_counter_run(&counter);
}

Test(counter_race, a_counter_over_a_counter_never_runs_backwards_whichever_is_halted)
{
    static void (*const hooks[])(void *) = {halt_inner, halt_outer, halt_both, restart_inner};

    for (size_t i = 0; i < BB_ARRAY_LEN(hooks); i++) {
        for (unsigned late = 0; late < 2; late++) {
            uint64_t value;

            make_nested();
            time_.now_ns = 1000;
            *(late ? &time_.late : &time_.early) = hooks[i];
            value = bb_counter_read(&outer);
            cr_assert_eq(value, 100, "hook %zu %s: %lu", i, late ? "late" : "early",
                         (unsigned long)value);
            cr_assert_eq(bb_counter_read(&outer), 100);
        }
    }
}

/*
 * Random scripts: inside each read a few random operations and passages of time. Without sets the
 * value must lie between what the counter showed before the read and what it shows after it.
 */
static uint64_t script_state;

static void random_script(void *arg)
{
    unsigned steps = (unsigned)(test_random(&script_state) % 40);

    (void)arg;
    for (unsigned i = 0; i < steps; i++) {
        switch (test_random(&script_state) % 5) {
        case 0:
            (void)bb_counter_halt(&counter);
            break;
        case 1:
        case 2:
            bb_counter_run(&counter);
            break;
        case 3:
            (void)bb_counter_read(&counter);
            break;
        default:
            if ((counter.era & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_) {
                bb_counter_halt_begin_(&counter);
            }
            break;
        }
        time_.now_ns += test_random(&script_state) % 30;
    }
}

Test(counter_race, random_scripts_inside_a_read_never_move_it_out_of_its_interval)
{
    uint64_t seed = test_seed();
    unsigned overtaken = 0;

    script_state = seed;
    make_running(7);
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t low, value, high;
        uint64_t era;

        bb_counter_run(&counter);
        low = bb_counter_read(&counter);
        if (test_random(&script_state) % 4 == 0) {
            bb_counter_halt_begin_(&counter);
        }
        era = counter.era;
        *(test_random(&script_state) % 2 ? &time_.late : &time_.early) = random_script;
        value = bb_counter_read(&counter);
        overtaken += (counter.era >> BB_ERA_SHIFT_) >= (era >> BB_ERA_SHIFT_) + BB_COUNTER_ERAS;
        high = bb_counter_read(&counter);
        cr_assert(low <= value && value <= high,
                  "read %u: %lu not in [%lu, %lu], BUSBAR_TEST_SEED=%lu", i, (unsigned long)value,
                  (unsigned long)low, (unsigned long)high, (unsigned long)seed);
    }
    cr_assert_gt(overtaken, 100, "the scripts must overtake slots to test them");
}
