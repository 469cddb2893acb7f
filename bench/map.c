/* SPDX-License-Identifier: MIT */
/*
 * Changes of the map: what a grace period costs, what readers notice of changes at 10 000 a second,
 * what one change costs in a map of 10 000 regions.
 */
#include <stdlib.h>
#include <time.h>
#include <urcu/urcu-memb.h>

#include "../base/atomic.h"
#include "bench.h"

enum {
    IDLE = 64,
    REGIONS = 10000,
    SLICE_MS = 50,
    CHANGE_INTERVAL_NS = 100000,
    READS = 8, /* timed together: the clock's own cost is that of several reads */
};
#define MANY_GPA UINT64_C(0x200000000)
#define MANY_STRIDE UINT64_C(0x1000)

/* Readers beside changes. */

struct traffic {
    struct bench_machine *machine;
    struct bb_region *region;
    bool mapped;
    struct bench_samples *latency;
    uint64_t changes;
    uint64_t next_ns;
};

static unsigned run_traffic(struct bench_thread *thread, void *argument)
{
    struct traffic *traffic = argument;
    struct bb_ctx *ctx = thread->ctx[0];
    struct bb_error err;

    if (thread->index == 0) {
        for (unsigned i = 0; i < 1000; i++) {
            uint64_t value;
            uint64_t begin_ns = bench_now_ns();

            for (unsigned read = 0; read < READS; read++) {
                (void)bb_mmio_read(ctx, traffic->machine->mmio, BENCH_HOT_GPA, 4, &value);
            }
            bench_add(traffic->latency, (double)(bench_now_ns() - begin_ns) / READS);
        }
        return 1000 * READS;
    }
    while (bench_now_ns() < traffic->next_ns) {
    }
    traffic->next_ns = bench_now_ns() + CHANGE_INTERVAL_NS;
    int result = traffic->mapped
                     ? bb_space_unmap(ctx, traffic->region, &err)
                     : bb_space_map(ctx, traffic->machine->mmio, MANY_GPA, traffic->region, &err);
    if (result != BB_OK) {
        bench_die(&err, "changing the map");
    }
    traffic->mapped = !traffic->mapped;
    traffic->changes++;
    return 1;
}

static struct bb_region *one_region(const struct bench_machine *machine, unsigned target)
{
    static const struct bb_region_ops ops = {.read = bench_target_read};
    struct bb_region_config config = {
        .name = "one",
        .size_bytes = 0x800,
        .ops = &ops,
        .opaque = &machine->targets[target],
        .klass = BB_CLASS_LOCKFREE,
    };
    struct bb_region *region;
    struct bb_error err;

    if (bb_device_region_create(machine->ctx, machine->device, &config, &region, &err) != BB_OK) {
        bench_die(&err, "making a region");
    }
    return region;
}

static void readers_beside_changes(const struct bench_options *options)
{
    struct bench_machine machine, *machines[] = {&machine};
    static struct bench_team team;
    struct bench_samples calm = {0}, changing = {0};
    struct traffic traffic = {.machine = &machine};
    uint64_t begin_ns, until_ns, changing_ns = 0;

    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_STAND_INS);
    traffic.region = one_region(&machine, BENCH_HOT);
    bench_team_create(&team, 2, machines, 1);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        uint64_t slice_ns;

        traffic.latency = &calm;
        bench_team_slice(&team, 1, SLICE_MS, run_traffic, &traffic);
        traffic.latency = &changing;
        slice_ns = bench_now_ns();
        bench_team_slice(&team, 2, SLICE_MS, run_traffic, &traffic);
        changing_ns += bench_now_ns() - slice_ns;
        bench_progress(0.5 + (double)(bench_now_ns() - begin_ns) / (options->seconds * 2e9));
    } while (bench_now_ns() < until_ns);
    double rate = (double)traffic.changes / ((double)changing_ns / 1e9);
    bench_report(BENCH_AT_MOST, 2, bench_quantile(&changing, 0.999) / bench_quantile(&calm, 0.999),
                 "", "reader p99.9, map changing / calm",
                 "%.0f / %.0f ns (%u reads together); %.0f changes a second; p50 %.1f / %.1f",
                 bench_quantile(&changing, 0.999) * READS, bench_quantile(&calm, 0.999) * READS,
                 READS, rate, bench_median(&changing), bench_median(&calm));
    bench_free(&calm);
    bench_free(&changing);
    bench_team_destroy(&team);
    bench_machine_destroy(&machine);
}

/* Grace periods. */

void bench_grace(const struct bench_options *options)
{
    struct bench_machine machine, *machines[] = {&machine};
    static struct bench_team team;
    struct bench_samples grace = {0}, bare = {0};
    const struct timespec apart = {.tv_nsec = 1200000}; /* no pacing: at most 1 000 a second */
    uint64_t begin_ns, until_ns;

    bench_group_begin("grace", "grace periods, and readers beside map changes");
    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_STAND_INS);
    bench_team_create(&team, IDLE, machines, 1);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        uint64_t from_ns;

        nanosleep(&apart, NULL);
        from_ns = bench_now_ns();
        if (bb_rcu_synchronize(machine.ctx) != BB_OK) {
            bench_die(NULL, "a grace period was refused");
        }
        bench_add(&grace, (double)(bench_now_ns() - from_ns) / 1000);
        /* The same readers: liburcu's registry is the process's. */
        nanosleep(&apart, NULL);
        from_ns = bench_now_ns();
        urcu_memb_synchronize_rcu();
        bench_add(&bare, (double)(bench_now_ns() - from_ns) / 1000);
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 2e9));
    } while (bench_now_ns() < until_ns);
    bench_report(BENCH_AT_MOST, 2, bench_median(&grace), "us",
                 "grace period with 64 idle contexts, p50",
                 "p10 %.2f, p99 %.2f us; liburcu's own p50 %.2f, p10 %.2f us; %zu",
                 bench_quantile(&grace, 0.1), bench_quantile(&grace, 0.99), bench_median(&bare),
                 bench_quantile(&bare, 0.1), grace.count);
    bench_free(&grace);
    bench_free(&bare);
    bench_team_destroy(&team);
    bench_machine_destroy(&machine);
    if (bench_cores() >= 2) {
        readers_beside_changes(options);
    }
}

/* Many changes at once. */

enum { COMMIT = 2000 };

/* Places, then takes out, COMMIT regions in one transaction each, beside the 10 000 that are there.
 */
static void many_at_once(struct bench_machine *machine, const struct bench_options *options)
{
    static struct bb_region *region[COMMIT];
    struct bench_samples placed = {0}, taken = {0};
    struct bb_txn *txn;
    struct bb_error err;
    uint64_t until_ns;

    for (unsigned i = 0; i < COMMIT; i++) {
        region[i] = one_region(machine, BENCH_HOT);
    }
    until_ns = bench_now_ns() + (uint64_t)(options->seconds * 1e9);
    for (bool place = true; !place || bench_now_ns() < until_ns; place = !place) {
        if (bb_txn_begin(machine->ctx, &txn, &err) != BB_OK) {
            bench_die(&err, "beginning a transaction");
        }
        uint64_t from_ns = bench_now_ns();
        for (unsigned i = 0; i < COMMIT; i++) {
            bb_gpa_t gpa = MANY_GPA + (uint64_t)i * 5 * MANY_STRIDE + 0x800;
            int result = place ? bb_txn_map(txn, machine->mmio, gpa, region[i], &err)
                               : bb_txn_unmap(txn, region[i], &err);
            if (result != BB_OK) {
                bench_die(&err, "adding to a transaction");
            }
        }
        if (bb_txn_commit(txn, &err) != BB_OK) {
            bench_die(&err, "committing 2 000 changes");
        }
        bench_add(place ? &placed : &taken, (double)(bench_now_ns() - from_ns) / 1e6);
        (void)bb_rcu_synchronize(machine->ctx); /* so that no commit pays for another's memory */
    }
    bench_report(BENCH_SHOWN, 0, bench_median(&placed), "ms", "2 000 regions placed by one commit",
                 "%.2f us a region; p10 %.2f, p99 %.2f ms; %zu",
                 bench_median(&placed) * 1e3 / COMMIT, bench_quantile(&placed, 0.1),
                 bench_quantile(&placed, 0.99), placed.count);
    bench_report(BENCH_SHOWN, 0, bench_median(&taken), "ms",
                 "2 000 regions taken out by one commit", "%.2f us a region; p10 %.2f, p99 %.2f ms",
                 bench_median(&taken) * 1e3 / COMMIT, bench_quantile(&taken, 0.1),
                 bench_quantile(&taken, 0.99));
    bench_free(&placed);
    bench_free(&taken);
}

/* One change in a large map. */

void bench_map(const struct bench_options *options)
{
    struct bench_machine machine;
    struct bench_samples added = {0}, removed = {0};
    struct bb_region *region;
    struct bb_heap_usage before, after;
    uint64_t seed = 362436069;
    struct bb_txn *txn;
    struct bb_error err;
    uint64_t begin_ns, until_ns;

    bench_group_begin("map", "one region in a map of 10 000");
    bench_pin(0);
    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_STAND_INS);
    if (bb_txn_begin(machine.ctx, &txn, &err) != BB_OK) {
        bench_die(&err, "beginning a transaction");
    }
    for (unsigned i = 0; i < REGIONS; i++) {
        if (bb_txn_map(txn, machine.mmio, MANY_GPA + i * MANY_STRIDE,
                       one_region(&machine, BENCH_HOT), &err) != BB_OK) {
            bench_die(&err, "mapping many regions");
        }
    }
    if (bb_txn_commit(txn, &err) != BB_OK) {
        bench_die(&err, "mapping many regions");
    }
    region = one_region(&machine, BENCH_HOT);
    before = bb_engine_memory(machine.engine);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        /* In the gaps between the others. */
        bb_gpa_t gpa = MANY_GPA + bench_random(&seed) % REGIONS * MANY_STRIDE + 0x800;
        uint64_t from_ns = bench_now_ns(), between_ns;

        if (bb_space_map(machine.ctx, machine.mmio, gpa, region, &err) != BB_OK) {
            bench_die(&err, "adding a region");
        }
        between_ns = bench_now_ns();
        if (bb_space_unmap(machine.ctx, region, &err) != BB_OK) {
            bench_die(&err, "removing a region");
        }
        bench_add(&removed, (double)(bench_now_ns() - between_ns) / 1000);
        bench_add(&added, (double)(between_ns - from_ns) / 1000);
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    (void)bb_rcu_synchronize(machine.ctx);
    after = bb_engine_memory(machine.engine);
    bench_report(BENCH_AT_MOST, 20, bench_median(&added), "us", "region added, p50",
                 "p10 %.2f, p99 %.2f us; %zu", bench_quantile(&added, 0.1),
                 bench_quantile(&added, 0.99), added.count);
    bench_report(BENCH_AT_MOST, 20, bench_median(&removed), "us", "region removed, p50",
                 "p10 %.2f, p99 %.2f us", bench_quantile(&removed, 0.1),
                 bench_quantile(&removed, 0.99));
    bench_report(BENCH_AT_MOST, 64, (double)bb_rcu_stats(machine.ctx).deferred_peak / (1 << 20),
                 "MiB", "deferred memory, at most",
                 "bound 64 MiB; the engine had %.1f MiB before, %.1f MiB after",
                 (double)before.live_bytes / (1 << 20), (double)after.live_bytes / (1 << 20));
    bench_free(&added);
    bench_free(&removed);
    many_at_once(&machine, options);
    bench_machine_destroy(&machine);
}
