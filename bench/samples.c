/* SPDX-License-Identifier: MIT */
/* Samples, quantiles, clocks. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

void bench_add(struct bench_samples *samples, double value)
{
    if (samples->count == samples->room) {
        size_t room = samples->room == 0 ? 4096 : samples->room * 2;
        double *grown = realloc(samples->value, room * sizeof(*grown));

        if (grown == NULL) {
            bench_die(NULL, "no memory for samples");
        }
        samples->value = grown;
        samples->room = room;
    }
    samples->value[samples->count++] = value;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_quantile(const struct bench_samples *samples, double q)
{
    double *sorted, found;
    size_t at;

    if (samples->count == 0) {
        return 0;
    }
    sorted = malloc(samples->count * sizeof(*sorted));
    if (sorted == NULL) {
        bench_die(NULL, "no memory to sort samples");
    }
    memcpy(sorted, samples->value, samples->count * sizeof(*sorted));
    qsort(sorted, samples->count, sizeof(*sorted), by_value);
    at = (size_t)(q * (double)samples->count);
    found = sorted[at < samples->count ? at : samples->count - 1];
    free(sorted);
    return found;
}

double bench_median(const struct bench_samples *samples)
{
    return bench_quantile(samples, 0.5);
}

double bench_mean(const struct bench_samples *samples)
{
    double sum = 0;

    for (size_t i = 0; i < samples->count; i++) {
        sum += samples->value[i];
    }
    return samples->count == 0 ? 0 : sum / (double)samples->count;
}

void bench_free(struct bench_samples *samples)
{
    free(samples->value);
    *samples = (struct bench_samples){0};
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t bench_now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t bench_cpu_ns(void)
{
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

void bench_spin_ns(uint64_t ns)
{
    uint64_t until = bench_now_ns() + ns;

    while (bench_now_ns() < until) {
    }
}

uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    return x * UINT64_C(0x2545f4914f6cdd1d);
}
