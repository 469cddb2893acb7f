/* SPDX-License-Identifier: MIT */
/* See storm_fixture.h. */
#include "storm_fixture.h"
#include "../../base/atomic.h"

#include <criterion/criterion.h>
#include <stdlib.h>

unsigned stress_seconds(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");
    int seconds = text ? atoi(text) : 1;
    return seconds > 1 ? (unsigned)seconds : 1;
}

static uint64_t share(uint64_t total, unsigned count)
{
    return total / count > 10 ? total / count : 10;
}

struct bb_storm_params storm_sized(unsigned vcpus, bool threads, unsigned phases)
{
    struct bb_storm_params params = bb_storm_defaults(vcpus, threads);
    unsigned readers = vcpus > 1 ? vcpus - 1 : 1;
    /* An access costs 100 us in a guest whose instructions are emulated, 0.2 us on a thread; under
     * ThreadSanitizer about ten times that. */
    uint64_t a_second = (threads ? (BB_TSAN ? 20000 : 200000) : 4000) * (uint64_t)stress_seconds();
    params.phases = phases;
    params.reads = share(a_second, vcpus);
    params.torture_reads = share(a_second, readers);
    params.noisy_reads = share(threads ? 2000 : 1000, readers);
    params.timer_rounds = vcpus < 8 ? 12 : 3;
    return params;
}

struct bb_storm_results storm_run(const struct bb_storm_params *params, bool threads,
                                  enum bb_lock_mode lock_mode)
{
    struct bb_storm_run run = {.params = *params, .lock_mode = lock_mode, .threads = threads};
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_error err = {0};
    int result = bb_storm_run(&run, -1, &results, &outcome, &err);
    cr_assert_eq(result, BB_OK, "%s", err.text);
    return results;
}

void assert_ok(const struct bb_storm_results *results)
{
    bool ok = bb_storm_ok(results);
    if (!ok) {
        bb_storm_print_table(stderr, results);
    }
    cr_assert(ok, "the storm failed; its table is above");
}
