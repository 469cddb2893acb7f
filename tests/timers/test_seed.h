/* SPDX-License-Identifier: MIT */
/* Seeded randomness and durations for the suites of timers/. */
#ifndef BUSBAR_TESTS_TIMERS_TEST_SEED_H
#define BUSBAR_TESTS_TIMERS_TEST_SEED_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* splitmix64: one multiplication chain a number, any seed is good. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* BUSBAR_TEST_SEED, or the time, so that runs differ; whoever uses it prints it on failure. */
static inline uint64_t test_seed(void)
{
    const char *text = getenv("BUSBAR_TEST_SEED");

    return text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
}

/* How long a torture runs: BUSBAR_STRESS_SECONDS, 1 where it is not set. */
static inline unsigned test_stress_seconds(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");
    unsigned long seconds = text != NULL ? strtoul(text, NULL, 10) : 1;

    return seconds == 0 ? 1 : (unsigned)seconds;
}

static inline uint64_t test_host_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
