/* SPDX-License-Identifier: MIT */
/*
 * Programs of the topology fuzz target in the suite: the corpus that is kept in the tree, each file
 * on an engine that has run those before it, and random ones. BUSBAR_SEED repeats a run of these.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "topology.h"

enum { PROGRAM_BYTES_MAX = 4096 };

static uint8_t program[PROGRAM_BYTES_MAX];

static size_t read_program(const char *directory, const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    cr_assert_not_null(file, "%s can't be opened", path);
    size_t bytes = fread(program, 1, sizeof(program), file);
    fclose(file);
    return bytes;
}

Test(topology, programs_of_the_corpus_neither_crash_nor_leak)
{
    DIR *directory = opendir(TOPOLOGY_CORPUS);
    unsigned ran = 0;

    cr_assert_not_null(directory, "%s can't be opened", TOPOLOGY_CORPUS);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        /* Said beforehand, because a crash says nothing afterwards. */
        fprintf(stderr, "%s\n", entry->d_name);
        const char *wrong = topology_run(program, read_program(TOPOLOGY_CORPUS, entry->d_name));
        cr_assert_null(wrong, "%s: %s", entry->d_name, wrong);
        ran++;
    }
    closedir(directory);
    const char *wrong = topology_end();
    cr_assert_null(wrong, "%s", wrong);
    cr_assert_gt(ran, 10, "%u programs: where is the corpus?", ran);
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

Test(topology, random_programs_neither_crash_nor_leak, .timeout = 7200)
{
    const char *text = getenv("BUSBAR_SEED");
    const char *duration = getenv("BUSBAR_STRESS_SECONDS");
    time_t until = time(NULL) + (duration != NULL ? strtol(duration, NULL, 10) : 1);
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) << 20;

    fprintf(stderr, "first BUSBAR_SEED=%llu\n", (unsigned long long)seed);
    do {
        uint64_t state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        size_t bytes = next(&state) % PROGRAM_BYTES_MAX;
        for (size_t i = 0; i < bytes; i++) {
            program[i] = (uint8_t)(next(&state) >> 24);
        }
        const char *wrong = topology_run(program, bytes);
        cr_assert_null(wrong, "BUSBAR_SEED=%llu: %s", (unsigned long long)seed, wrong);
        seed++;
    } while (text == NULL && time(NULL) < until);
    const char *wrong = topology_end();
    cr_assert_null(wrong, "%s", wrong);
}
