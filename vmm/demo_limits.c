/* SPDX-License-Identifier: MIT */
/* The machine's limits, for the demonstration to show beside its figures. */
#include "demo_limits.h"
#include "../base/atomic.h"

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A register that a function returns: through a pointer that the compiler can't see through. */
struct limit_register {
    uint64_t value;
};

__attribute__((noinline)) static uint64_t register_read(void *opaque)
{
    return bb_load_relaxed(&((struct limit_register *)opaque)->value);
}

static uint64_t clock_gettime_read(void *opaque)
{
    (void)opaque;
    return now_ns();
}

static uint64_t ordered_tsc_read(void *opaque)
{
#if defined(__x86_64__)
    uint32_t low, high;
    (void)opaque;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
#else
    return clock_gettime_read(opaque);
#endif
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(uint64_t (*read)(void *opaque))
{
    enum { ROUNDS = 9, READS = 200000 };
    uint64_t (*volatile opaque_read)(void *) = read;
    struct limit_register target = {0};
    double ns[ROUNDS];
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t from = now_ns();
        for (unsigned i = 0; i < READS; i++) {
            (void)opaque_read(&target);
        }
        ns[round] = (double)(now_ns() - from) / READS;
    }
    qsort(ns, ROUNDS, sizeof(ns[0]), compare_doubles);
    return ns[ROUNDS / 2];
}

struct demo_limits demo_measure_limits(void)
{
    return (struct demo_limits){.direct_call = measure(register_read),
                                .clock_read = measure(clock_gettime_read),
                                .ordered_tsc = measure(ordered_tsc_read)};
}
