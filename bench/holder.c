/* SPDX-License-Identifier: MIT */
/*
 * A reader of the HPET beside a holder: a thread that is 50 us inside a device that keeps its lock,
 * then rests 10 us. The reader thinks for 8 us between reads; a read's latency counts from the
 * moment it was begun. Three designs: each device by its class; one pthread mutex; one fair ticket
 * lock round every access. The bare clock, read beside the same holder, is what the machine gave.
 */
#include "../base/atomic.h"
#include "bench.h"

enum { HOLD_NS = 50000, REST_NS = 10000, THINK_NS = 8000, SLICE_MS = 100 };

struct ticket_lock {
    uint32_t next __attribute__((aligned(64)));
    uint32_t owner __attribute__((aligned(64)));
};

static void ticket_acquire(struct ticket_lock *lock)
{
    uint32_t mine = bb_fetch_add_relaxed(&lock->next, 1); /* only gives out numbers */

    /* Pairs with ticket_release(). */
    while (bb_load_acquire(&lock->owner) != mine) {
        bb_cpu_relax();
    }
}

static void ticket_release(struct ticket_lock *lock)
{
    /* Pairs with ticket_acquire(). Relaxed load: the holder's own. */
    bb_store_release(&lock->owner, bb_load_relaxed(&lock->owner) + 1);
}

enum design { FREE, MUTEX, TICKET, CLOCK, DESIGNS };

struct scene {
    struct bench_machine *machine;
    enum design design;
    unsigned ctx;
    struct ticket_lock ticket;
    struct bench_samples latency[DESIGNS]; /* the reader's */
};

static void hold(struct bench_thread *thread, struct scene *scene)
{
    struct bb_ctx *ctx = thread->ctx[scene->ctx];

    if (scene->design == TICKET) {
        ticket_acquire(&scene->ticket);
    }
    (void)bb_mmio_write(ctx, scene->machine->mmio, BENCH_HOLDER_GPA, 4, HOLD_NS);
    if (scene->design == TICKET) {
        ticket_release(&scene->ticket);
    }
    bench_spin_ns(REST_NS);
}

static void read_once(struct bench_thread *thread, struct scene *scene)
{
    struct bb_ctx *ctx = thread->ctx[scene->ctx];
    uint64_t value, begin_ns;

    bench_spin_ns(THINK_NS);
    begin_ns = bench_now_ns();
    if (scene->design == TICKET) {
        ticket_acquire(&scene->ticket);
    }
    if (scene->design == CLOCK) {
        (void)bench_loop_clock(ctx, 1);
    } else {
        (void)bb_mmio_read(ctx, scene->machine->mmio, BENCH_HPET_COUNTER, 8, &value);
    }
    if (scene->design == TICKET) {
        ticket_release(&scene->ticket);
    }
    bench_add(&scene->latency[scene->design], (double)(bench_now_ns() - begin_ns));
}

static unsigned run(struct bench_thread *thread, void *argument)
{
    if (thread->index == 0) {
        read_once(thread, argument);
    } else {
        hold(thread, argument);
    }
    return 1;
}

void bench_holder(const struct bench_options *options)
{
    static const char *const names[DESIGNS] = {
        [FREE] = "lock-free",
        [MUTEX] = "one pthread mutex",
        [TICKET] = "one fair ticket lock",
        [CLOCK] = "bare clock, no engine",
    };
    struct bench_machine free_machine, big_machine;
    struct bench_machine *machines[] = {&free_machine, &big_machine};
    static struct bench_team team;
    static struct scene scene;
    double p999[DESIGNS];
    uint64_t begin_ns, until_ns;

    bench_group_begin("holder", "p99.9 of an HPET read beside a device that holds its lock");
    if (bench_cores() < 2) {
        bench_report(BENCH_SHOWN, 0, 1, "core", "needs two", "nothing measured");
        return;
    }
    bench_machine_create(&free_machine, BB_LOCK_FREE, BENCH_REAL);
    bench_machine_create(&big_machine, BB_LOCK_BIG, BENCH_REAL);
    bench_team_create(&team, 2, machines, 2);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        for (unsigned design = 0; design < DESIGNS; design++) {
            scene.design = (enum design)design;
            scene.ctx = design == MUTEX ? 1 : 0;
            scene.machine = machines[scene.ctx];
            bench_team_slice(&team, 2, SLICE_MS, run, &scene);
        }
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    for (unsigned design = 0; design < DESIGNS; design++) {
        const struct bench_samples *latency = &scene.latency[design];

        p999[design] = bench_quantile(latency, 0.999);
        bench_report(BENCH_SHOWN, 0, p999[design] / 1000, "us", names[design],
                     "p99.9; p50 %.2f, p99 %.2f us; %zu reads", bench_median(latency) / 1000,
                     bench_quantile(latency, 0.99) / 1000, latency->count);
    }
    bench_report(BENCH_AT_LEAST, 500, p999[MUTEX] / p999[FREE], "times",
                 "p99.9, pthread mutex / lock-free", "against the bare clock instead: %.0f",
                 p999[MUTEX] / p999[CLOCK]);
    bench_report(BENCH_AT_LEAST, 50, p999[TICKET] / p999[FREE], "times",
                 "p99.9, fair ticket lock / lock-free", "against the bare clock instead: %.0f",
                 p999[TICKET] / p999[CLOCK]);
    for (unsigned design = 0; design < DESIGNS; design++) {
        bench_free(&scene.latency[design]);
    }
    bench_team_destroy(&team);
    bench_machine_destroy(&free_machine);
    bench_machine_destroy(&big_machine);
}
