/* SPDX-License-Identifier: MIT */
/* The table on stdout, progress on stderr where that is a terminal, and the same figures as JSON.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

static struct {
    FILE *json;
    bool rows; /* some are written */
    unsigned met;
    unsigned missed;
    const char *group;
    uint64_t shown_ns;
} report;

void bench_group_begin(const char *name, const char *what)
{
    report.group = name;
    printf("\n%s: %s\n", name, what);
    (void)fflush(stdout);
}

static void clear_progress(void)
{
    if (isatty(STDERR_FILENO)) {
        (void)fputs("\r\033[K", stderr);
    }
}

void bench_progress(double done)
{
    uint64_t now_ns = bench_now_ns();

    if (isatty(STDERR_FILENO) && now_ns - report.shown_ns > 200000000) {
        report.shown_ns = now_ns;
        (void)fprintf(stderr, "\r  %s %3.0f %%", report.group, done < 1 ? done * 100 : 100.0);
    }
}

static const char *verdict_word(enum bench_goal kind, double goal, double figure)
{
    bool met = kind == BENCH_AT_MOST ? figure <= goal : figure >= goal;

    if (kind == BENCH_SHOWN) {
        return "";
    }
    if (met) {
        report.met++;
    } else {
        report.missed++;
    }
    return met ? "pass" : "MISS";
}

void bench_report(enum bench_goal kind, double goal, double figure, const char *unit,
                  const char *name, const char *detail, ...)
{
    const char *sign = kind == BENCH_AT_MOST ? "<=" : ">=";
    const char *word = verdict_word(kind, goal, figure);
    char how[256], limit[32] = "";
    va_list arguments;

    va_start(arguments, detail);
    (void)vsnprintf(how, sizeof(how), detail, arguments);
    va_end(arguments);
    if (kind != BENCH_SHOWN) {
        (void)snprintf(limit, sizeof(limit), "%s %g", sign, goal);
    }
    clear_progress();
    printf("  %-52s %9.3g %-5s %-8s %-4s  %s\n", name, figure, unit, limit, word, how);
    (void)fflush(stdout);
    if (report.json != NULL) {
        /* Names and details are ours and need no escapes. */
        (void)fprintf(report.json,
                      "%s\n    {\"group\": \"%s\", \"name\": \"%s\", \"figure\": %.6g, "
                      "\"unit\": \"%s\", ",
                      report.rows ? "," : "", report.group, name, figure, unit);
        if (kind != BENCH_SHOWN) {
            (void)fprintf(report.json, "\"goal\": \"%s\", \"pass\": %s, ", limit,
                          word[0] == 'p' ? "true" : "false");
        }
        (void)fprintf(report.json, "\"detail\": \"%s\"}", how);
        report.rows = true;
    }
}

void bench_json_begin(FILE *json, const struct bench_options *options)
{
    time_t now = time(NULL);
    struct tm utc;
    char date[32] = "";

    if (gmtime_r(&now, &utc) != NULL) {
        (void)strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    report.json = json;
    if (json != NULL) {
        (void)fprintf(json,
                      "{\n  \"date\": \"%s\",\n  \"cores\": %u,\n  \"seconds\": %g,\n"
                      "  \"rows\": [",
                      date, bench_cores(), options->seconds);
    }
}

void bench_json_end(FILE *json)
{
    if (json != NULL) {
        (void)fprintf(json, "\n  ]\n}\n");
    }
}

void bench_verdict(unsigned *met, unsigned *missed)
{
    *met = report.met;
    *missed = report.missed;
}

void bench_die(const struct bb_error *err, const char *what)
{
    clear_progress();
    (void)fprintf(stderr, "bench: %s%s%s\n", what, err != NULL ? ": " : "",
                  err != NULL ? err->text : "");
    exit(2);
}
