/* SPDX-License-Identifier: MIT */
/*
 * How many random programs a suite runs, from the environment: the one of BUSBAR_SEED, so many as
 * BUSBAR_TREES says, or as many as fit in BUSBAR_STRESS_SECONDS (one second where it is not set).
 */
#ifndef BUSBAR_TESTS_MODEL_BUDGET_H
#define BUSBAR_TESTS_MODEL_BUDGET_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct budget {
    uint64_t seed; /* of the first program; each further one has the next */
    uint64_t most; /* programs */
    double limit_s;
    uint64_t start_ns;
};

static inline uint64_t budget_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline double budget_spent_s(const struct budget *budget)
{
    return (double)(budget_now_ns() - budget->start_ns) / 1e9;
}

static inline bool budget_allows(const struct budget *budget, uint64_t done)
{
    return done < budget->most && budget_spent_s(budget) < budget->limit_s;
}

/* Says the first seed beforehand, because a crash says nothing afterwards. */
static inline struct budget budget_begin(void)
{
    const char *given = getenv("BUSBAR_SEED");
    const char *trees = getenv("BUSBAR_TREES");
    const char *seconds = getenv("BUSBAR_STRESS_SECONDS");
    struct budget budget = {
        .seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) << 24,
        .most = given != NULL   ? 1
                : trees != NULL ? strtoull(trees, NULL, 0)
                                : UINT64_MAX,
        .limit_s = given != NULL || trees != NULL ? 1e9
                   : seconds != NULL              ? atof(seconds)
                                                  : 1.0,
        .start_ns = budget_now_ns(),
    };

    fprintf(stderr, "first BUSBAR_SEED=%" PRIu64 "\n", budget.seed);
    return budget;
}

#endif
