/* SPDX-License-Identifier: MIT */
/*
 * The domain's own layout and what the files of rcu/ call of one another. Not for other modules.
 *
 *   wake.c     sleeping and waking without a lock on the waker's side
 *   grace.c    grace periods: shared by all who wait, paced, watched for stalls
 *   defer.c    the domain, its two threads, the queues of deferred work, the byte bound
 *   pins.c     pins and their drains (the drain's state machine runs on bb-reclaim)
 *   context.c  contexts, liburcu's registration, the thread-exit hook
 *   lock.c     ranked locks and the order checker
 *   tsan.c     what a grace period orders, in words ThreadSanitizer understands
 *
 * Mutexes here (contexts_lock, gp.lock) are leaves: nothing else is taken, and no foreign code but
 * bb_rcu_each_ctx_'s callback is run, while one is held.
 */
#ifndef BUSBAR_RCU_INTERNAL_H
#define BUSBAR_RCU_INTERNAL_H

#include "rcu_core.h"

enum { BB_GP_INTERVAL_NS_ = 1000000 }; /* between starts of grace periods: at most 1 000 a second */

#define BB_FOREVER_NS_ UINT64_MAX

/*
 * Something a thread sleeps on. See wake.c for why no wake-up is lost.
 */
struct bb_wake_ {
    uint32_t sequence; /* (a) raised by wakers; the futex word */
    uint32_t sleepers; /* (a) raised by sleepers around their sleep */
};

/* The sequence to hand to bb_wake_sleep_; read it before looking for work. */
uint32_t bb_wake_seen_(const struct bb_wake_ *wake);
/* Sleeps until bb_wake_signal_ is called after `seen` was read, or `timeout_ns` have passed; may
 * return early. */
void bb_wake_sleep_(struct bb_wake_ *wake, uint32_t seen, uint64_t timeout_ns);
/* Wakes all sleepers. Lock-free; a system call only where somebody sleeps. */
void bb_wake_signal_(struct bb_wake_ *wake);

/* Host time, monotonic. */
bb_ns_t bb_host_now_ns_(void);

struct bb_gp_ {
    pthread_mutex_t lock;
    pthread_cond_t ended; /* a grace period has ended, or the leader gave up its place */
    /* Guarded by `lock`. */
    uint64_t started;       /* number of the last grace period that began */
    uint64_t completed;     /* number of the last that ended */
    bool led;               /* some thread is pacing or inside a grace period */
    bool watched;           /* bb-complete will look again by itself */
    bb_ns_t start_ns;       /* when the last began; 0: none yet */
    bb_ns_t report_ns;      /* when the running one is next reported */
    uint64_t report_after;  /* and how long it has waited then */
    uint64_t stalls;        /* reports made */
    bb_ns_t last_stderr_ns; /* when the default report was last written; 0: never */
};

struct bb_rcu {
    /* Immutable once created. */
    struct bb_rcu_config_ config;
    pthread_t reclaim_thread;
    pthread_t complete_thread;

    /*
     * Queues: a push is one compare-and-swap at the top, a take is one exchange of the whole, so
     * nothing is ever popped singly. Newest first; the taker reverses.
     */
    struct bb_rcu_head *deferred __attribute__((aligned(BB_CACHE_LINE_BYTES))); /* (a) to run on
                                                                                   bb-reclaim */
    struct bb_rcu_head *called; /* (a) to run on bb-complete after a grace period */
    struct bb_rcu_head *drains; /* (a) drains asked for */
    uint64_t pending;           /* (a) pieces of work of any kind not yet run to their end */
    uint64_t deferred_bytes;    /* (a) raised by pushers, lowered by bb-reclaim */
    uint64_t deferred_peak;     /* (a) highest value that deferred_bytes had */
    uint64_t throttled;         /* (a) waits for the byte bound */
    struct bb_wake_ reclaim_wake;

    struct bb_rcu_head *ready __attribute__((aligned(BB_CACHE_LINE_BYTES))); /* (a) to run on
                                                                                bb-complete now */
    struct bb_wake_ complete_wake;
    struct bb_wake_ bound_wake; /* deferred_bytes fell */
    struct bb_wake_ idle_wake;  /* pending fell to 0 */
    uint32_t stopping;          /* (a) written by bb_rcu_destroy_ once pending is 0 */

    uint32_t drains_waiting; /* (a) drains that wait for holders; written by bb-reclaim, read by
                                bb_pins_put_ */
    /* bb-reclaim only. */
    struct bb_pin_drain_ *due;     /* leaders for which a grace period is due */
    struct bb_pin_drain_ *waiting; /* leaders past that grace period, waiting for holders */

    struct bb_gp_ gp;

    pthread_mutex_t contexts_lock;
    struct bb_ctx *contexts; /* guarded by contexts_lock */
};

/* grace.c */
int bb_gp_init_(struct bb_gp_ *gp);
void bb_gp_fini_(struct bb_gp_ *gp);
/* Waits until a grace period may begin under the rate limit, so that a caller can collect work. */
void bb_gp_pace_(struct bb_rcu *rcu);
/* Waits for a grace period that begins after the call, leading it or sharing another's. */
void bb_gp_wait_(struct bb_rcu *rcu);
/* Reports a stall that is due. Returns in how many ns bb-complete must look again. */
uint64_t bb_gp_watch_(struct bb_rcu *rcu);

/* defer.c */
void bb_rcu_push_(struct bb_rcu_head **top, struct bb_rcu_head *first, struct bb_rcu_head *last);
void bb_rcu_work_done_(struct bb_rcu *rcu, uint64_t count);
/* Hands work that was counted as pending already to bb-complete. */
void bb_rcu_ready_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                   void (*fn)(struct bb_rcu_head *head));

/* pins.c; all on bb-reclaim. `asked` is a taken queue, newest first. */
void bb_pins_begin_(struct bb_rcu *rcu, struct bb_rcu_head *asked, struct bb_pin_drain_ **sections);
void bb_pins_graced_(struct bb_rcu *rcu, struct bb_pin_drain_ *sections);
void bb_pins_advance_(struct bb_rcu *rcu);

/* tsan.c */
void bb_rcu_tsan_before_(void);
void bb_rcu_tsan_after_(void);

#endif
