/* SPDX-License-Identifier: MIT */
/*
 * Random programs for the whole machine: no access of a guest crashes, hangs, leaks or returns what
 * is not among the results of an access. BUSBAR_TEST_SEED repeats a run.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "machine.h"

enum { PROGRAM_BYTES_MAX = 30000 };

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void run_seed(uint64_t seed)
{
    static uint8_t program[PROGRAM_BYTES_MAX];
    uint64_t state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    size_t bytes = next(&state) % PROGRAM_BYTES_MAX;

    for (size_t i = 0; i < bytes; i++) {
        program[i] = (uint8_t)(next(&state) >> 24);
    }
    const char *wrong = machine_run_program(program, bytes);
    cr_assert_null(wrong, "BUSBAR_TEST_SEED=%llu: %s", (unsigned long long)seed, wrong);
}

Test(machine, an_empty_program_leaves_nothing_behind)
{
    cr_assert_null(machine_run_program(NULL, 0));
}

Test(machine, random_programs_neither_crash_nor_leak)
{
    const char *text = getenv("BUSBAR_TEST_SEED");
    const char *duration = getenv("BUSBAR_STRESS_SECONDS");
    time_t end = time(NULL) + (duration != NULL ? strtol(duration, NULL, 10) : 1);
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) << 20;

    /* Said beforehand, because a crash says nothing afterwards. */
    fprintf(stderr, "first BUSBAR_TEST_SEED=%llu\n", (unsigned long long)seed);
    do {
        run_seed(seed++);
    } while (text == NULL && time(NULL) <= end);
    fprintf(stderr, "last BUSBAR_TEST_SEED=%llu\n", (unsigned long long)(seed - 1));
}
