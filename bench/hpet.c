/* SPDX-License-Identifier: MIT */
/*
 * Reads of the HPET's main counter, against what no design can avoid: a direct call that reads the
 * clock that the engine's clock is made of.
 */
#include "bench.h"

enum { SLICE_MS = 25, BATCH = 1000, CROWD = 64 };

static struct bench_access counter_access(const struct bench_machine *machine)
{
    return (struct bench_access){.space = machine->mmio, .gpa = BENCH_HPET_COUNTER, .size = 8};
}

void bench_hpet(const struct bench_options *options)
{
    struct bench_machine machine;
    struct bench_samples clock = {0}, counter = {0}, turns = {0}, ratio = {0};
    uint64_t begin_ns, until_ns;

    bench_group_begin("hpet", "HPET main counter, one thread");
    bench_pin(0);
    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_REAL);
    struct bench_access one = counter_access(&machine);
    struct bench_access some[] = {
        one,
        {.space = machine.pio, .gpa = BENCH_PORT, .size = 4},
        {.space = machine.mmio, .gpa = BENCH_IOAPIC_WINDOW, .size = 4},
    };
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        double limit = (double)bench_loop_clock(machine.ctx, BENCH_BATCH) / BENCH_BATCH;
        double read = (double)bench_loop_engine(machine.ctx, &one, BENCH_BATCH) / BENCH_BATCH;

        bench_add(&clock, limit);
        bench_add(&counter, read);
        bench_add(&ratio, read / limit);
        bench_add(&turns,
                  (double)bench_loop_engine_turns(machine.ctx, some, 3, BENCH_BATCH) / BENCH_BATCH);
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    bench_report(BENCH_SHOWN, 0, bench_median(&clock), "ns", "direct call that reads the clock",
                 "clock_gettime; least-disturbed tenth %.2f", bench_quantile(&clock, 0.1));
    bench_report(BENCH_AT_MOST, 1.3, bench_median(&ratio), "",
                 "HPET counter / direct call that reads the clock",
                 "%.2f ns; least-disturbed tenth %.2f, ratio of these %.3f; %zu batches",
                 bench_median(&counter), bench_quantile(&counter, 0.1),
                 bench_quantile(&counter, 0.1) / bench_quantile(&clock, 0.1), counter.count);
    bench_report(BENCH_SHOWN, 0, bench_median(&turns), "ns",
                 "HPET counter, PM timer, I/O APIC window in turn", "two of three read the clock");
    bench_free(&clock);
    bench_free(&counter);
    bench_free(&turns);
    bench_free(&ratio);
    bench_machine_destroy(&machine);
}

struct contest {
    struct bench_access access[2];
    unsigned machine;
    pthread_mutex_t mutex;
};

static unsigned run_engine(struct bench_thread *thread, void *argument)
{
    const struct contest *contest = argument;

    (void)bench_loop_engine(thread->ctx[contest->machine], &contest->access[contest->machine],
                            BATCH);
    return BATCH;
}

static unsigned run_clock(struct bench_thread *thread, void *argument)
{
    (void)argument;
    (void)bench_loop_clock(thread->ctx[0], BATCH);
    return BATCH;
}

static unsigned run_mutex_clock(struct bench_thread *thread, void *argument)
{
    struct contest *contest = argument;

    (void)bench_loop_mutex_clock(&contest->mutex, thread->ctx[0], BATCH);
    return BATCH;
}

enum { FREE, BIG, CLOCK, MUTEX_CLOCK, CONTESTANTS };

void bench_contended(const struct bench_options *options)
{
    struct bench_machine free_machine, big_machine;
    struct bench_machine *machines[] = {&free_machine, &big_machine};
    static struct bench_team team;
    struct contest contest = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    struct bench_samples few[CONTESTANTS] = {0};
    double crowd_accesses[CONTESTANTS] = {0}, crowd_ns[CONTESTANTS] = {0};
    size_t batches[CONTESTANTS] = {0};
    unsigned threads = bench_cores() < 2 ? 1 : 2;
    uint64_t begin_ns, until_ns;

    bench_group_begin("contended", "HPET main counter, unpaced: lock-free and under one big mutex");
    bench_machine_create(&free_machine, BB_LOCK_FREE, BENCH_REAL);
    bench_machine_create(&big_machine, BB_LOCK_BIG, BENCH_REAL);
    contest.access[0] = counter_access(&free_machine);
    contest.access[1] = counter_access(&big_machine);
    bench_team_create(&team, CROWD, machines, 2);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        for (unsigned who = 0; who < CONTESTANTS; who++) {
            unsigned (*run)(struct bench_thread *, void *) =
                who == CLOCK ? run_clock : (who == MUTEX_CLOCK ? run_mutex_clock : run_engine);
            uint64_t slice_ns;

            contest.machine = who == BIG ? 1 : 0;
            bench_team_slice(&team, threads, SLICE_MS, run, &contest);
            batches[who] += bench_team_collect(&team, threads, BATCH, &few[who]);
            slice_ns = bench_now_ns();
            bench_team_slice(&team, CROWD, SLICE_MS, run, &contest);
            crowd_ns[who] += (double)(bench_now_ns() - slice_ns);
            for (unsigned t = 0; t < CROWD; t++) {
                crowd_accesses[who] += (double)team.thread[t].accesses;
            }
        }
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);

    /* Means: who waits for a mutex makes few batches, and long ones. */
    double engine = bench_mean(&few[BIG]) / bench_mean(&few[FREE]);
    double bare = bench_mean(&few[MUTEX_CLOCK]) / bench_mean(&few[CLOCK]);
    bench_report(BENCH_SHOWN, 0, engine, "times", "big mutex / lock-free, 2 threads",
                 "%.1f / %.1f ns (p50 %.1f / %.1f); %zu and %zu of %zu and %zu batches together",
                 bench_mean(&few[BIG]), bench_mean(&few[FREE]), bench_median(&few[BIG]),
                 bench_median(&few[FREE]), few[BIG].count, few[FREE].count, batches[BIG],
                 batches[FREE]);
    bench_report(BENCH_SHOWN, 0, bare, "times", "bare clock with / without the mutex, 2 threads",
                 "%.1f / %.1f ns (p50 %.1f / %.1f)", bench_mean(&few[MUTEX_CLOCK]),
                 bench_mean(&few[CLOCK]), bench_median(&few[MUTEX_CLOCK]),
                 bench_median(&few[CLOCK]));
    bench_report(BENCH_AT_LEAST, 0.8, engine / bare, "", "the first as a share of the second",
                 "what a lock-free engine can win, and wins");
    for (unsigned who = 0; who < CONTESTANTS; who++) {
        crowd_ns[who] /= crowd_accesses[who];
    }
    bench_report(BENCH_SHOWN, 0, crowd_ns[BIG] / crowd_ns[FREE], "times",
                 "big mutex / lock-free, 64 threads",
                 "%.1f / %.1f ns an access of all; bare clock with / without mutex %.1f / %.1f",
                 crowd_ns[BIG], crowd_ns[FREE], crowd_ns[MUTEX_CLOCK], crowd_ns[CLOCK]);
    for (unsigned who = 0; who < CONTESTANTS; who++) {
        bench_free(&few[who]);
    }
    bench_team_destroy(&team);
    bench_machine_destroy(&free_machine);
    bench_machine_destroy(&big_machine);
}
