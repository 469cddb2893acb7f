/* SPDX-License-Identifier: MIT */
/* The storm on host threads: no KVM needed, and the form in which sanitizers see it. */
#include <criterion/criterion.h>

#include "../../base/atomic.h"
#include "storm_fixture.h"

TestSuite(storm_on_threads, .timeout = 900);

static void run_and_check(unsigned count, unsigned phases, enum bb_lock_mode lock_mode)
{
    struct bb_storm_params params = storm_sized(count, true, phases);
    struct bb_storm_results results = storm_run(&params, true, lock_mode);
    assert_ok(&results);
    cr_assert(results.threads);
    cr_assert_eq(results.vcpus, count);
    cr_assert_eq(results.lock_mode, lock_mode);
}

Test(storm_on_threads, one_thread_passes_every_phase)
{
    run_and_check(1, ALL_PHASES, BB_LOCK_FREE);
}

Test(storm_on_threads, two_threads_pass_every_phase)
{
    run_and_check(2, ALL_PHASES, BB_LOCK_FREE);
}

Test(storm_on_threads, two_threads_pass_every_phase_with_a_lock_a_device)
{
    run_and_check(2, ALL_PHASES, BB_LOCK_DEVICE);
}

Test(storm_on_threads, two_threads_pass_every_phase_under_one_big_lock)
{
    run_and_check(2, ALL_PHASES, BB_LOCK_BIG);
}

Test(storm_on_threads, sixty_four_threads_pass_every_phase)
{
    run_and_check(64, ALL_PHASES, BB_LOCK_FREE);
}

Test(storm_on_threads, counter_never_steps_back_while_threads_read_and_one_toggles_it)
{
    struct bb_storm_params params = storm_sized(4, true, TORTURE_PHASE);
    struct bb_storm_results results = storm_run(&params, true, BB_LOCK_FREE);
    assert_ok(&results);
    cr_assert_geq(results.reading[STORM_TORTURE].reads, 3 * params.torture_reads);
    cr_assert_geq(results.toggles, STORM_TURNS_MIN, "the counter was not really toggled");
}

/* Reads that are over before the one that disturbs them has begun would prove nothing. */
Test(storm_on_threads, short_phases_last_until_the_one_that_disturbs_has_had_its_turns)
{
    struct bb_storm_params params = storm_sized(2, true, TORTURE_PHASE | NOISY_PHASE);
    params.torture_reads = 1;
    params.noisy_reads = 1;
    for (unsigned i = 0; i < 20; i++) {
        struct bb_storm_results results = storm_run(&params, true, BB_LOCK_FREE);
        assert_ok(&results);
        cr_assert_geq(results.toggles, STORM_TURNS_MIN);
        cr_assert_geq(results.holds, STORM_TURNS_MIN);
        cr_assert_gt(results.reading[STORM_TORTURE].per_second, 0);
    }
}

Test(storm_on_threads, a_thousand_and_twenty_four_handles_work_at_once)
{
    enum { HANDLES = BB_TSAN ? 256 : STORM_VCPUS_MAX };
    struct bb_storm_params params = storm_sized(HANDLES, true, READ_PHASE);
    params.reads = 100;
    struct bb_storm_results results = storm_run(&params, true, BB_LOCK_FREE);
    assert_ok(&results);
    cr_assert_eq(results.reading[STORM_READ].reads, HANDLES * 100);
}

Test(storm_on_threads, count_out_of_range_is_refused)
{
    struct bb_storm_results results;
    struct bb_error err = {0};
    struct bb_storm_params params = bb_storm_defaults(0, true);
    cr_assert_eq(bb_storm_run_threads(NULL, NULL, NULL, &params, NULL, &results, &err), BB_E_RANGE);
    params = bb_storm_defaults(STORM_VCPUS_MAX + 1, true);
    cr_assert_eq(bb_storm_run_threads(NULL, NULL, NULL, &params, NULL, &results, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "1 to 1024"), "%s", err.text);
}
