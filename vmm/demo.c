/* SPDX-License-Identifier: MIT */
/* The demonstration: its runs, its table and what it says of them; see demo.h. */
#include "demo.h"
#include "../base/bits.h"
#include "demo_limits.h"
#include "hist.h"
#include "run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const unsigned vcpu_counts[] = {2, 8, 32};
enum { COUNTS = 3, ROUNDS = 3, FIGURES = 8, BUDGET_SECONDS = 100 };

/* What answers the accesses of a run. */
enum demo_answer {
    DEMO_FREE, /* the engine, each region by its class */
    DEMO_BIG,  /* the engine under one pthread mutex */
    DEMO_BARE, /* the KVM_RUN loop itself: no engine, so no lock either; guests only */
    DEMO_ANSWERS,
};
static const char *const answer_names[DEMO_ANSWERS] = {"free", "big", "bare"};

/* The figures of one run, and of several: the median of each. */
enum figure {
    READ_RATE,
    READ_AVG,
    READ_P50,
    READ_P99,
    READ_P999,
    NOISY_P50,
    NOISY_P99,
    NOISY_P999,
};

struct cell {
    double samples[FIGURES][ROUNDS];
    unsigned runs;
};

/* One half of the demonstration: guests, or host threads. */
struct half {
    const char *title;
    bool threads;
    struct cell cells[COUNTS][DEMO_ANSWERS];
};

struct demo {
    int signal_fd;
    unsigned ended_by_signal; /* 128 + its number; 0: none came */
    struct half guest, threads;
    unsigned runs_done, runs_total;
    bool tty;      /* stderr is a terminal: progress stays on one line */
    bool with_kvm; /* false: no guests */
    /* Of the runs with all four phases. */
    uint64_t reads, backward, toggles, programmed, arrived;
    unsigned rounds; /* that were made */
    bool failed;
};

static void progress(struct demo *demo, const struct half *half, unsigned vcpus,
                     enum demo_answer answer)
{
    demo->runs_done++;
    if (demo->tty) {
        fprintf(stderr, "\r[%2u/%u] %u %s, %s    ", demo->runs_done, demo->runs_total, vcpus,
                half->threads ? "host threads" : "vCPUs", answer_names[answer]);
    } else {
        fprintf(stderr, "demo: run %u of %u: %u %s, %s\n", demo->runs_done, demo->runs_total, vcpus,
                half->threads ? "host threads" : "vCPUs", answer_names[answer]);
    }
    fflush(stderr);
}

static void progress_end(const struct demo *demo)
{
    if (demo->tty) {
        fprintf(stderr, "\r%60s\r", "");
    }
}

/*
 * What one run does. The first round of free and big makes all four phases, so that the figures
 * come with proof that the answers are right; the others only the two that are timed.
 */
static struct bb_storm_params run_params(bool threads, unsigned vcpus, bool all_phases)
{
    struct bb_storm_params params = bb_storm_defaults(vcpus, threads);
    unsigned readers = vcpus - 1;
    if (!all_phases) {
        params.phases = 1u << STORM_READ | 1u << STORM_NOISY;
    }
    params.reads = (threads ? 1000000 : 16000) / vcpus;
    params.torture_reads = (threads ? 200000 : 4000) / readers;
    params.noisy_reads = 6000 / readers;
    params.pin = true;
    params.timer_rounds = 24 / vcpus > 3 ? 24 / vcpus : 3;
    return params;
}

static void keep(struct cell *cell, const struct bb_storm_results *results)
{
    const struct bb_storm_latency *read = &results->reading[STORM_READ];
    const struct bb_storm_latency *noisy = &results->reading[STORM_NOISY];
    const double figures[FIGURES] = {
        [READ_RATE] = read->per_second, [READ_AVG] = read->avg_ns,     [READ_P50] = read->p50_ns,
        [READ_P99] = read->p99_ns,      [READ_P999] = read->p999_ns,   [NOISY_P50] = noisy->p50_ns,
        [NOISY_P99] = noisy->p99_ns,    [NOISY_P999] = noisy->p999_ns,
    };
    for (unsigned i = 0; i < FIGURES; i++) {
        cell->samples[i][cell->runs] = figures[i];
    }
    cell->runs++;
}

static void count_checks(struct demo *demo, const struct bb_storm_results *results)
{
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        const struct bb_storm_latency *latency = &results->reading[phase];
        demo->reads += latency->reads;
        demo->backward += latency->backward_self + latency->backward_cross;
    }
    demo->toggles += results->toggles;
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        demo->programmed += results->programmed[route];
        demo->arrived += results->arrived[route];
    }
}

static void run_one(struct demo *demo, struct half *half, unsigned count_index,
                    enum demo_answer answer, bool all_phases)
{
    unsigned vcpus = vcpu_counts[count_index];
    struct bb_storm_run run = {
        .params = run_params(half->threads, vcpus, all_phases),
        .lock_mode = answer == DEMO_BIG ? BB_LOCK_BIG : BB_LOCK_FREE,
        .threads = half->threads,
        .bare = answer == DEMO_BARE,
    };
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_error err;
    progress(demo, half, vcpus, answer);
    int result = bb_storm_run(&run, demo->signal_fd, &results, &outcome, &err);
    if (result == BB_OK && outcome.reason == BB_STOP_SIGNAL) {
        demo->ended_by_signal = outcome.status;
        return;
    }
    if (result != BB_OK || !bb_storm_ok(&results)) {
        progress_end(demo);
        demo->failed = true;
        if (result != BB_OK) {
            fprintf(stderr, "busbar: %u %s, %s: %s\n", vcpus,
                    half->threads ? "host threads" : "vCPUs", answer_names[answer], err.text);
        } else {
            bb_storm_print_table(stderr, &results);
        }
        return;
    }
    keep(&half->cells[count_index][answer], &results);
    if (answer != DEMO_BARE) {
        count_checks(demo, &results);
    }
}

/* One run of each kind: of every count of vCPUs, with every answer. */
static void run_round(struct demo *demo, struct half *half, unsigned round)
{
    unsigned answers = half->threads ? DEMO_BARE : DEMO_ANSWERS;
    for (unsigned count = 0; count < COUNTS; count++) {
        for (unsigned i = 0; i < answers; i++) {
            /* Every other round in reverse, so that no one always goes first. */
            enum demo_answer answer = (enum demo_answer)(round % 2 ? answers - 1 - i : i);
            if (demo->ended_by_signal || demo->failed) {
                return;
            }
            run_one(demo, half, count, answer, round == 0 && answer != DEMO_BARE);
        }
    }
}

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* As many rounds as there is time for, one at least; on an idle machine all of them. */
static void run_rounds(struct demo *demo)
{
    double began = now_seconds(), spent = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round != 0 && spent + spent / round > BUDGET_SECONDS) {
            break;
        }
        if (demo->with_kvm) {
            run_round(demo, &demo->guest, round);
        }
        run_round(demo, &demo->threads, round);
        demo->rounds++;
        spent = now_seconds() - began;
    }
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const struct cell *cell, enum figure figure)
{
    double sorted[ROUNDS];
    if (cell->runs == 0) {
        return 0;
    }
    memcpy(sorted, cell->samples[figure], sizeof(sorted));
    qsort(sorted, cell->runs, sizeof(sorted[0]), compare_doubles);
    return sorted[cell->runs / 2];
}

static void print_row(unsigned vcpus, const char *name, const struct cell *cell)
{
    char text[FIGURES][16];
    for (unsigned i = READ_AVG; i < FIGURES; i++) {
        bb_hist_format_ns(text[i], sizeof(text[i]), median(cell, (enum figure)i));
    }
    printf("%5u  %-5s %11.0f %9s %9s %9s %9s  |%9s %9s %9s\n", vcpus, name, median(cell, READ_RATE),
           text[READ_AVG], text[READ_P50], text[READ_P99], text[READ_P999], text[NOISY_P50],
           text[NOISY_P99], text[NOISY_P999]);
}

/* How much better the first is than the second: rates up, latencies down. */
static double gain(const struct cell *better, const struct cell *worse, enum figure figure)
{
    double a = median(better, figure), b = median(worse, figure);
    if (a == 0 || b == 0) {
        return 0;
    }
    return figure == READ_RATE ? a / b : b / a;
}

static void print_gains(unsigned vcpus, const char *name, const struct cell *a,
                        const struct cell *b)
{
    printf("%5u  %-5s", vcpus, name);
    for (unsigned i = 0; i < FIGURES; i++) {
        char text[16];
        double times = gain(a, b, (enum figure)i);
        snprintf(text, sizeof(text), times < 100 ? "x%.2f" : "x%.0f", times);
        printf("%s%*s", i == NOISY_P50 ? "  |" : " ", i == READ_RATE ? 11 : 9, text);
    }
    printf("\n");
}

static void print_half(const struct half *half)
{
    printf("\n%s\n", half->title);
    printf("%5s  %-5s %11s %9s %9s %9s %9s  |%s\n", half->threads ? "thr." : "vCPUs", "lock",
           "reads/s", "avg", "p50", "p99", "p99.9", "  beside a noisy neighbour:");
    printf("%5s  %-5s %11s %9s %9s %9s %9s  |%9s %9s %9s\n", "", "", "", "", "", "", "", "p50",
           "p99", "p99.9");
    for (unsigned count = 0; count < COUNTS; count++) {
        const struct cell *cells = half->cells[count];
        unsigned vcpus = vcpu_counts[count];
        print_row(vcpus, "free", &cells[DEMO_FREE]);
        print_row(vcpus, "big", &cells[DEMO_BIG]);
        if (!half->threads) {
            print_row(vcpus, "bare", &cells[DEMO_BARE]);
        }
        print_gains(vcpus, "gain", &cells[DEMO_FREE], &cells[DEMO_BIG]);
    }
}

static void print_limits(const struct demo *demo, const struct demo_limits *limits)
{
    printf("\nLimits here: a direct call %.1f ns; lfence+rdtsc %.1f ns; clock_gettime %.1f ns",
           limits->direct_call, limits->ordered_tsc, limits->clock_read);
    if (demo->with_kvm) {
        char text[16];
        printf("; an exit answered by no engine (bare, p50 at 2 vCPUs) %s",
               bb_hist_format_ns(text, sizeof(text),
                                 median(&demo->guest.cells[0][DEMO_BARE], READ_P50)));
    }
    printf(".\nMedians of %u runs each, taken in turn. Checked on the way: %llu reads, %llu steps "
           "backward while ENABLE_CNF was toggled "
           "%llu times; %llu of %llu timer interrupts arrived.\n",
           demo->rounds, (unsigned long long)demo->reads, (unsigned long long)demo->backward,
           (unsigned long long)demo->toggles, (unsigned long long)demo->arrived,
           (unsigned long long)demo->programmed);
}

/* The two lines to take home, made of this run's figures alone. */
static void print_conclusion(const struct demo *demo)
{
    const struct cell(*threads)[DEMO_ANSWERS] = demo->threads.cells;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    printf("\n=> Host threads, where an access costs what emulation costs: lock-free gives x%.1f / "
           "x%.1f / x%.1f the big lock's reads/s at 2 / 8 / 32 threads; beside a device that is "
           "busy 50 us at a time p99.9 is x%.0f / x%.0f / x%.0f better.\n",
           gain(&threads[0][DEMO_FREE], &threads[0][DEMO_BIG], READ_RATE),
           gain(&threads[1][DEMO_FREE], &threads[1][DEMO_BIG], READ_RATE),
           gain(&threads[2][DEMO_FREE], &threads[2][DEMO_BIG], READ_RATE),
           gain(&threads[0][DEMO_FREE], &threads[0][DEMO_BIG], NOISY_P999),
           gain(&threads[1][DEMO_FREE], &threads[1][DEMO_BIG], NOISY_P999),
           gain(&threads[2][DEMO_FREE], &threads[2][DEMO_BIG], NOISY_P999));
    if (!demo->with_kvm) {
        printf("=> No guest was run, for want of a usable /dev/kvm. There are %ld processors: with "
               "more threads than that, tails are the scheduler's as well.\n",
               processors);
        return;
    }
    const struct cell *two = demo->guest.cells[0];
    char bare[16];
    printf("=> Guests pay for an exit with every access (bare: p50 %s), engine to bare is x%.2f at "
           "p50, and lock-free gives x%.2f the big lock's reads/s at 2 vCPUs; beside the noisy "
           "device p99 is x%.1f, p99.9 x%.1f better%s. There are %ld processors: with more vCPUs "
           "than that, tails are the scheduler's, bare's too.\n",
           bb_hist_format_ns(bare, sizeof(bare), median(&two[DEMO_BARE], READ_P50)),
           median(&two[DEMO_FREE], READ_P50) / median(&two[DEMO_BARE], READ_P50),
           gain(&two[DEMO_FREE], &two[DEMO_BIG], READ_RATE),
           gain(&two[DEMO_FREE], &two[DEMO_BIG], NOISY_P99),
           gain(&two[DEMO_FREE], &two[DEMO_BIG], NOISY_P999),
           median(&two[DEMO_BARE], NOISY_P999) > 50000
               ? " (no verdict on p99.9: bare's own is over 50 us, which is this machine's)"
               : "",
           processors);
}

int bb_demo(bool kvm, int signal_fd)
{
    struct demo demo = {
        .signal_fd = signal_fd,
        .guest = {.title = "In a guest on KVM: every access is an exit"},
        .threads = {.title = "On host threads: every access is a call", .threads = true},
        .runs_total = COUNTS * ROUNDS * (DEMO_BARE + (kvm ? DEMO_ANSWERS : 0)),
        .tty = isatty(STDERR_FILENO) == 1,
        .with_kvm = kvm,
    };
    struct demo_limits limits = demo_measure_limits();
    run_rounds(&demo);
    progress_end(&demo);
    if (demo.ended_by_signal) {
        fprintf(stderr, "busbar: the demonstration was ended early\n");
        return (int)demo.ended_by_signal;
    }
    if (demo.failed) {
        return 1;
    }
    if (kvm) {
        print_half(&demo.guest);
    }
    print_half(&demo.threads);
    print_limits(&demo, &limits);
    print_conclusion(&demo);
    return 0;
}
