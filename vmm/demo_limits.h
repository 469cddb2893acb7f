/* SPDX-License-Identifier: MIT */
/* What an access can't be cheaper than on this machine. */
#ifndef BUSBAR_VMM_DEMO_LIMITS_H
#define BUSBAR_VMM_DEMO_LIMITS_H

/* In ns: medians of several measurements. */
struct demo_limits {
    double direct_call; /* an indirect call of a function that returns a register */
    double clock_read;  /* clock_gettime(CLOCK_MONOTONIC) */
    double ordered_tsc; /* lfence; rdtsc */
};

/* Takes a fraction of a second. Threads: any. */
struct demo_limits demo_measure_limits(void);

#endif
