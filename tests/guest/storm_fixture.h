/* SPDX-License-Identifier: MIT */
/*
 * One run of the storm for a test, sized by BUSBAR_STRESS_SECONDS (1 by default), and the claims
 * that every run must meet. A failing claim prints the storm's own table.
 */
#ifndef BUSBAR_TESTS_GUEST_STORM_FIXTURE_H
#define BUSBAR_TESTS_GUEST_STORM_FIXTURE_H

#include "../../vmm/run.h"

/* BUSBAR_STRESS_SECONDS, at least 1. */
unsigned stress_seconds(void);

/*
 * Parameters for about a second of each phase that is asked for, times stress_seconds(): reads are
 * totals over all vCPUs, so the time does not follow their number.
 */
struct bb_storm_params storm_sized(unsigned vcpus, bool threads, unsigned phases);

/* Runs it and asserts that it could be made and was not ended early. */
struct bb_storm_results storm_run(const struct bb_storm_params *params, bool threads,
                                  enum bb_lock_mode lock_mode);

/* Asserts that it passed, printing its table where not. */
void assert_ok(const struct bb_storm_results *results);

enum {
    ALL_PHASES = (1 << STORM_PHASES) - 1,
    READ_PHASE = 1 << STORM_READ,
    TORTURE_PHASE = 1 << STORM_TORTURE,
    NOISY_PHASE = 1 << STORM_NOISY,
    TIMERS_PHASE = 1 << STORM_TIMERS,
};

#endif
