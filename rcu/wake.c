/* SPDX-License-Identifier: MIT */
/*
 * Sleeping on a futex, woken without a lock: bb_rcu_call() and bb_pins_put_() may be made anywhere,
 * so their wake-up may not wait for anybody.
 *
 * Invariants:
 *  1. Work is published before `sequence` is raised (signal), and `sequence` is read before work
 *     is looked for (seen). So who sleeps on the sequence it read after looking in vain misses no
 *     work: either it saw the work, or the sequence has moved on and the sleep returns at once.
 *  2. A waker that sees no sleeper may skip the system call. The waker raises `sequence`, full
 *     fence, reads `sleepers`; the sleeper raises `sleepers`, full fence, has the kernel compare
 *     `sequence`. One of the two sees the other's store, whatever the interleaving.
 */
#include "rcu_internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_S = 1000000000 };

uint32_t bb_wake_seen_(const struct bb_wake_ *wake)
{
    /* Pairs with the increment in bb_wake_signal_(): work published before it is seen after. */
    return bb_load_acquire(&wake->sequence);
}

void bb_wake_sleep_(struct bb_wake_ *wake, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec timeout = {
        .tv_sec = (time_t)(timeout_ns / NS_PER_S),
        .tv_nsec = (long)(timeout_ns % NS_PER_S),
    };

    /* Relaxed: the fence below orders it, the value guards no data. */
    (void)bb_fetch_add_relaxed(&wake->sleepers, 1);
    /* Store of `sleepers` before the kernel's load of `sequence`; partner: bb_wake_signal_().
     * Without it both sides could miss each other and the sleep would last for ever. */
    bb_fence_full();
    (void)syscall(SYS_futex, &wake->sequence, FUTEX_WAIT_PRIVATE, seen,
                  timeout_ns == BB_FOREVER_NS_ ? NULL : &timeout, NULL, 0);
    (void)bb_fetch_add_relaxed(&wake->sleepers, -1u);
}

void bb_wake_signal_(struct bb_wake_ *wake)
{
    /* Release, for bb_wake_seen_(): what was published before is found by who reads this. */
    (void)bb_fetch_add_acq_rel(&wake->sequence, 1);
    /* Store of `sequence` before the load of `sleepers`; partner: bb_wake_sleep_(). */
    bb_fence_full();
    if (bb_load_relaxed(&wake->sleepers) != 0) {
        (void)syscall(SYS_futex, &wake->sequence, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}

bb_ns_t bb_host_now_ns_(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (bb_ns_t)now.tv_sec * NS_PER_S + (bb_ns_t)now.tv_nsec;
}
