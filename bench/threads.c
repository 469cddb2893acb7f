/* SPDX-License-Identifier: MIT */
/* Which cores there are, and staying on one. */
#include <sched.h>

#include "bench.h"

unsigned bench_cores(void)
{
    static unsigned cores; /* asked for first by main(), before any thread is pinned */
    cpu_set_t set;

    if (cores == 0) {
        cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    }
    return cores;
}

void bench_pin(unsigned core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(core, &set);
    /* Where that is refused the thread runs anywhere, and figures are noisier. */
    (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}
