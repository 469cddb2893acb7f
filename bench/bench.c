/* SPDX-License-Identifier: MIT */
/*
 * bench_engine: measures the engine against docs/performance.md's goals, and prints for each the
 * figure and whether it is met. A goal that is missed is no failure of the program: its exit status
 * says whether it could measure.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

struct group {
    const char *name;
    const char *what;
    void (*run)(const struct bench_options *options);
};

static const struct group groups[] = {
    {"dispatch", "an access above the direct call, one thread", bench_dispatch},
    {"field", "maps of 8 to 10 000 regions, 1 to 4 threads, five designs", bench_field},
    {"scaling", "one thread to as many as there are cores, up to 16", bench_scaling},
    {"baselines", "the same register under other designs, two threads", bench_baselines},
    {"hpet", "the HPET's main counter above the clock read", bench_hpet},
    {"contended", "the HPET's main counter, lock-free and big mutex, 2 and 64 threads",
     bench_contended},
    {"holder", "p99.9 of a read beside a device that holds its lock", bench_holder},
    {"grace", "grace periods, readers beside map changes", bench_grace},
    {"map", "one region in a map of 10 000, and a commit of 2 000", bench_map},
    {"timers", "cancel and arm among 100 000 armed timers", bench_timers},
};

enum { GROUPS = sizeof(groups) / sizeof(groups[0]) };

static void usage(FILE *out)
{
    (void)fprintf(out,
                  "usage: bench_engine [--list] [--group NAME]... [--seconds S] [--json FILE]\n"
                  "  --list       the groups\n"
                  "  --group NAME only this group; may be repeated\n"
                  "  --seconds S  for each measurement (default 3)\n"
                  "  --json FILE  the figures, also as JSON\n"
                  "On a machine that runs other jobs, a raised priority gives cleaner figures:\n"
                  "  nice -n -15 bench_engine\n");
}

static int bad(const char *what, const char *value, const char *right)
{
    (void)fprintf(stderr, "bench: %s '%s': %s\n", what, value, right);
    return 2;
}

int main(int argc, char **argv)
{
    struct bench_options options = {.seconds = 3};
    const char *json_path = NULL;
    bool chosen[GROUPS] = {false}, any = false;
    unsigned met, missed;
    FILE *json = NULL;

    (void)bench_cores();
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--list") == 0) {
            for (unsigned g = 0; g < GROUPS; g++) {
                printf("%-10s %s\n", groups[g].name, groups[g].what);
            }
            return 0;
        }
        if (strcmp(argv[i], "--help") == 0) {
            usage(stdout);
            return 0;
        }
        if (value == NULL) {
            usage(stderr);
            return 2;
        }
        if (strcmp(argv[i], "--group") == 0) {
            unsigned g = 0;

            while (g < GROUPS && strcmp(groups[g].name, value) != 0) {
                g++;
            }
            if (g == GROUPS) {
                return bad("no group", value, "see --list");
            }
            chosen[g] = any = true;
        } else if (strcmp(argv[i], "--seconds") == 0) {
            char *end;

            options.seconds = strtod(value, &end);
            if (*end != '\0' || end == value || !(options.seconds > 0 && options.seconds <= 3600)) {
                return bad("--seconds", value, "more than 0, at most 3600");
            }
        } else if (strcmp(argv[i], "--json") == 0) {
            json_path = value;
        } else {
            usage(stderr);
            return 2;
        }
    }
    if (json_path != NULL) {
        json = fopen(json_path, "w");
        if (json == NULL) {
            return bad("can't write", json_path, strerror(errno));
        }
    }
    bench_json_begin(json, &options);
    for (unsigned g = 0; g < GROUPS; g++) {
        if (!any || chosen[g]) {
            groups[g].run(&options);
        }
    }
    bench_json_end(json);
    if (json != NULL && fclose(json) != 0) {
        return bad("can't write", json_path, strerror(errno));
    }
    bench_verdict(&met, &missed);
    printf("\n%u goals met, %u missed\n", met, missed);
    return 0;
}
