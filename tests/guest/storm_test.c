/* SPDX-License-Identifier: MIT */
/* The storm in guests on KVM: every access of every vCPU goes through the engine. */
#include <criterion/criterion.h>

#include "../vmm/command.h"
#include "storm_fixture.h"

static void need_kvm(void)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
}

TestSuite(storm_in_a_guest, .timeout = 900);

Test(storm_in_a_guest, one_vcpu_passes_every_phase)
{
    need_kvm();
    struct bb_storm_params params = storm_sized(1, false, ALL_PHASES);
    struct bb_storm_results results = storm_run(&params, false, BB_LOCK_FREE);
    assert_ok(&results);
}

Test(storm_in_a_guest, two_vcpus_pass_every_phase_under_each_kind_of_lock)
{
    need_kvm();
    for (int lock_mode = BB_LOCK_FREE; lock_mode <= BB_LOCK_BIG; lock_mode++) {
        struct bb_storm_params params = storm_sized(2, false, ALL_PHASES);
        params.reads = 500;
        params.torture_reads = 500;
        params.noisy_reads = 200;
        struct bb_storm_results results = storm_run(&params, false, (enum bb_lock_mode)lock_mode);
        assert_ok(&results);
        cr_assert_eq((int)results.lock_mode, (int)lock_mode);
        cr_assert_eq(results.reading[STORM_READ].reads, 1000);
    }
}

Test(storm_in_a_guest, counter_never_steps_back_while_eight_vcpus_read_and_one_toggles_it)
{
    need_kvm();
    struct bb_storm_params params = storm_sized(8, false, TORTURE_PHASE);
    struct bb_storm_results results = storm_run(&params, false, BB_LOCK_FREE);
    assert_ok(&results);
    cr_assert_geq(results.reading[STORM_TORTURE].reads, 7 * params.torture_reads);
    cr_assert_geq(results.toggles, STORM_TURNS_MIN, "the counter was not really toggled");
    cr_assert_eq(results.halted_moved, 0);
}

Test(storm_in_a_guest, no_timer_interrupt_of_eight_vcpus_is_lost)
{
    need_kvm();
    struct bb_storm_params params = storm_sized(8, false, TIMERS_PHASE);
    params.timer_rounds = 6 * stress_seconds();
    struct bb_storm_results results = storm_run(&params, false, BB_LOCK_FREE);
    uint64_t total = 0;
    assert_ok(&results);
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        cr_assert_gt(results.programmed[route], 0, "route %u was never used", route);
        cr_assert_eq(results.arrived[route], results.programmed[route]);
        total += results.arrived[route];
    }
    cr_assert_eq(total, 8 * params.timer_rounds);
}

Test(storm_in_a_guest, noisy_neighbour_really_holds_its_lock_while_others_read)
{
    need_kvm();
    struct bb_storm_params params = storm_sized(2, false, NOISY_PHASE);
    struct bb_storm_results results = storm_run(&params, false, BB_LOCK_FREE);
    assert_ok(&results);
    cr_assert_geq(results.holds, STORM_TURNS_MIN);
    cr_assert_geq(results.reading[STORM_NOISY].reads, params.noisy_reads);
}

Test(storm_in_a_guest, bare_loop_answers_the_reading_phases)
{
    need_kvm();
    struct bb_storm_run run = {.params = storm_sized(2, false, READ_PHASE | NOISY_PHASE),
                               .bare = true};
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_error err = {0};
    cr_assert_eq(bb_storm_run(&run, -1, &results, &outcome, &err), BB_OK, "%s", err.text);
    assert_ok(&results);
}

Test(storm_in_a_guest, memory_too_small_for_the_vcpus_is_refused)
{
    need_kvm();
    struct bb_storm_run run = {.params = storm_sized(64, false, READ_PHASE),
                               .memory_bytes = 4 << 20};
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_error err = {0};
    cr_assert_eq(bb_storm_run(&run, -1, &results, &outcome, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "64 vCPUs"), "%s", err.text);
}

/* Five minutes where two processors are shared by 255 vCPUs: in the long form only. */
Test(storm_in_a_guest, two_hundred_and_fifty_five_vcpus_complete)
{
    need_kvm();
    struct bb_storm_params params = storm_sized(255, false, READ_PHASE | NOISY_PHASE);
    if (stress_seconds() >= 10) {
        params.phases = ALL_PHASES;
    }
    params.reads = 20;
    params.torture_reads = 20;
    params.noisy_reads = 10;
    struct bb_storm_results results = storm_run(&params, false, BB_LOCK_FREE);
    assert_ok(&results);
    cr_assert_eq(results.reading[STORM_READ].reads, 255 * 20);
}
