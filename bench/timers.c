/* SPDX-License-Identifier: MIT */
/*
 * Cancelling and arming timers among 100 000 armed ones, on two threads: the engine's queue, and a
 * binary heap under one mutex. Nothing expires; CPU time is the whole process's.
 */
#include <stdlib.h>

#include "bench.h"

enum { TIMERS = 100000, SLICE_MS = 25, BATCH = 200, THREADS = 2 };
#define FAR_NS UINT64_C(3600000000000)

/* The baseline. */

struct heap {
    pthread_mutex_t mutex;
    uint32_t count;
    uint64_t deadline_ns[TIMERS]; /* by timer */
    uint32_t place[TIMERS];       /* by timer: where in `timer` it is */
    uint32_t timer[TIMERS];       /* the heap */
};

static void put_at(struct heap *heap, uint32_t place, uint32_t timer)
{
    heap->timer[place] = timer;
    heap->place[timer] = place;
}

static void sift_up(struct heap *heap, uint32_t place)
{
    uint32_t timer = heap->timer[place];

    while (place > 0) {
        uint32_t parent = (place - 1) / 2;

        if (heap->deadline_ns[heap->timer[parent]] <= heap->deadline_ns[timer]) {
            break;
        }
        put_at(heap, place, heap->timer[parent]);
        place = parent;
    }
    put_at(heap, place, timer);
}

static void sift_down(struct heap *heap, uint32_t place)
{
    uint32_t timer = heap->timer[place];

    for (;;) {
        uint32_t child = place * 2 + 1;

        if (child >= heap->count) {
            break;
        }
        if (child + 1 < heap->count &&
            heap->deadline_ns[heap->timer[child + 1]] < heap->deadline_ns[heap->timer[child]]) {
            child++;
        }
        if (heap->deadline_ns[heap->timer[child]] >= heap->deadline_ns[timer]) {
            break;
        }
        put_at(heap, place, heap->timer[child]);
        place = child;
    }
    put_at(heap, place, timer);
}

static void heap_arm(struct heap *heap, uint32_t timer, uint64_t deadline_ns)
{
    pthread_mutex_lock(&heap->mutex);
    heap->deadline_ns[timer] = deadline_ns;
    put_at(heap, heap->count++, timer);
    sift_up(heap, heap->count - 1);
    pthread_mutex_unlock(&heap->mutex);
}

static void heap_cancel(struct heap *heap, uint32_t timer)
{
    uint32_t place, last;

    pthread_mutex_lock(&heap->mutex);
    place = heap->place[timer];
    last = heap->timer[--heap->count];
    if (last != timer) {
        put_at(heap, place, last);
        sift_up(heap, place);
        sift_down(heap, heap->place[last]);
    }
    pthread_mutex_unlock(&heap->mutex);
}

/* The measurement. */

struct bank {
    struct heap heap;
    struct bb_device_timer *timer[TIMERS];
    uint64_t seed[THREADS * 8]; /* a line each */
};

static uint32_t pick(struct bank *bank, const struct bench_thread *thread)
{
    /* Threads have timers of their own, as vCPUs have. */
    return (uint32_t)(bench_random(&bank->seed[thread->index * 8]) % (TIMERS / THREADS) * THREADS +
                      thread->index);
}

static uint64_t deadline(struct bank *bank, const struct bench_thread *thread)
{
    return FAR_NS + bench_random(&bank->seed[thread->index * 8]) % FAR_NS;
}

static unsigned run_engine(struct bench_thread *thread, void *argument)
{
    struct bank *bank = argument;

    for (unsigned i = 0; i < BATCH; i++) {
        struct bb_device_timer *timer = bank->timer[pick(bank, thread)];

        bb_device_timer_disarm(thread->ctx[0], timer);
        if (bb_device_timer_arm(thread->ctx[0], timer, deadline(bank, thread)) != BB_OK) {
            bench_die(NULL, "a timer can't be armed");
        }
    }
    return BATCH;
}

static unsigned run_heap(struct bench_thread *thread, void *argument)
{
    struct bank *bank = argument;

    for (unsigned i = 0; i < BATCH; i++) {
        uint32_t timer = pick(bank, thread);

        heap_cancel(&bank->heap, timer);
        heap_arm(&bank->heap, timer, deadline(bank, thread));
    }
    return BATCH;
}

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)ctx;
    (void)opaque;
    (void)deadline_ns;
}

static void arm_all(const struct bench_machine *machine, struct bank *bank)
{
    struct bb_device_timer_config config = {.expired = expired};
    uint64_t seed = 521288629;
    struct bb_error err;

    pthread_mutex_init(&bank->heap.mutex, NULL);
    for (unsigned i = 0; i < TIMERS; i++) {
        uint64_t at_ns = FAR_NS + bench_random(&seed) % FAR_NS;

        if (bb_device_timer_create(machine->ctx, machine->device, &config, &bank->timer[i], &err) !=
                BB_OK ||
            bb_device_timer_arm(machine->ctx, bank->timer[i], at_ns) != BB_OK) {
            bench_die(&err, "making timers");
        }
        heap_arm(&bank->heap, i, at_ns);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        bank->seed[i * 8] = 1234567 + i;
    }
}

void bench_timers(const struct bench_options *options)
{
    struct bench_machine machine, *machines[] = {&machine};
    static struct bench_team team;
    static struct bank bank;
    struct bench_samples times[2] = {0};
    double cpu_ns[2] = {0}, operations[2] = {0};
    uint64_t begin_ns, until_ns;
    static unsigned (*const run[2])(struct bench_thread *, void *) = {run_heap, run_engine};

    bench_group_begin("timers", "cancel and arm among 100 000 armed timers, two threads");
    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_STAND_INS);
    bank = (struct bank){0};
    arm_all(&machine, &bank);
    bench_team_create(&team, THREADS, machines, 1);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        for (unsigned which = 0; which < 2; which++) {
            uint64_t cpu_begin_ns = bench_cpu_ns();

            bench_team_slice(&team, THREADS, SLICE_MS, run[which], &bank);
            cpu_ns[which] += (double)(bench_cpu_ns() - cpu_begin_ns);
            operations[which] += (double)(team.thread[0].accesses + team.thread[1].accesses);
            bench_team_collect(&team, THREADS, BATCH, &times[which]);
        }
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    /* Means: who waits for a lock makes few batches, and long ones. */
    bench_report(BENCH_AT_LEAST, 6, bench_mean(&times[0]) / bench_mean(&times[1]), "times",
                 "mutex and binary heap / engine's queue",
                 "%.0f / %.0f ns an operation (p50 %.0f / %.0f); CPU time %.0f / %.0f ns",
                 bench_mean(&times[0]), bench_mean(&times[1]), bench_median(&times[0]),
                 bench_median(&times[1]), cpu_ns[0] / operations[0], cpu_ns[1] / operations[1]);
    bench_free(&times[0]);
    bench_free(&times[1]);
    bench_team_destroy(&team);
    bench_machine_destroy(&machine);
}
