/* SPDX-License-Identifier: MIT */
/*
 * What engine/ needs of timers/: clocks, and the timer queue under bb_device_timer_*().
 * Not installed. A queue has one service thread (none with a manual clock, where bb_clock_step()
 * runs expiries on the stepping thread).
 *
 * A timer is armed with an absolute virtual time. Each arming has a generation, so an expiry that
 * lost a race against a disarm or a later arming is dropped before its callback begins; one that
 * has begun runs, and the device rechecks its own state.
 */
#ifndef BUSBAR_TIMERS_CORE_H
#define BUSBAR_TIMERS_CORE_H

#include "../rcu/rcu_core.h"
#include "clock.h"

struct bb_timer_queue;

enum bb_expiry_ {
    BB_EXPIRY_DONE_, /* handled, or taken over by the caller's inbox */
    BB_EXPIRY_PARK_, /* not now: put it back at its deadline unless it was armed anew meanwhile.
                        The caller sees to it that the clock is stopped, or is about to be. */
};

struct bb_timer_ {
    enum bb_expiry_ (*fn)(struct bb_ctx *ctx, struct bb_timer_ *timer, bb_ns_t deadline_ns);
    struct bb_timer_queue *queue;
    /* Guarded by the queue's lock. */
    bb_ns_t deadline_ns;
    bb_ns_t due_ns;        /* when it is to fire: the deadline, or not_before_ns if that is later */
    bb_ns_t not_before_ns; /* set when it fires; see "How often" below */
    uint64_t sequence;     /* arming order, for ties */
    uint64_t generation;   /* counts armings and disarmings */
    uint64_t expired_generation; /* what it was when the timer was last taken off to fire */
    uint32_t heap_index;         /* UINT32_MAX: not queued */
};

/*
 * How often. A timer that its callback arms again for a time already passed must neither loop nor
 * keep later timers from their turn. With a host clock a timer fires at most once in
 * BB_TIMER_PERIOD_MIN_NS_ of virtual time, a fraction of what a wake-up is late anyway; within a
 * step of a manual clock it fires at most once at any one instant. Armed for earlier, it is due
 * when that has passed, behind everything that is due before; its callback is still told the
 * deadline it was armed with.
 */
enum { BB_TIMER_PERIOD_MIN_NS_ = 10000 };

struct bb_timer_queue_config_ {
    struct bb_heap *heap;
    struct bb_rcu *rcu;
    struct bb_clock *clock;
    /* Makes and drops the service thread's context, on that thread. */
    int (*attach)(void *opaque, struct bb_ctx **ctx, struct bb_error *err);
    void (*detach)(void *opaque, struct bb_ctx *ctx);
    /*
     * May be NULL. Called under the queue's lock and in a read section when an expiry is taken off
     * the queue, before its fn is called with neither: where the owner takes the pin (for fn to
     * put) that keeps the timer's memory until then. False drops the expiry: the owner is going
     * away. An owner that marks itself so, then disarms its timers, then drains its pins, has no
     * fn begun afterwards.
     */
    bool (*begin)(struct bb_timer_ *timer);
    void *opaque;
};

int bb_clock_create_(struct bb_heap *heap, enum bb_clock_mode mode, struct bb_clock **clock,
                     struct bb_error *err);
void bb_clock_destroy_(struct bb_clock *clock);

/*
 * A clock has at most one queue (BB_E_EXIST). The service thread is named "bb-timers", slack 1 ns,
 * every signal blocked. Returns also BB_E_NOMEM, BB_E_SYSTEM, or what attach returned.
 */
int bb_timer_queue_create_(const struct bb_timer_queue_config_ *config,
                           struct bb_timer_queue **queue, struct bb_error *err);
/* Stops the service thread. Timers still armed are forgotten. Before bb_clock_destroy_(). */
void bb_timer_queue_destroy_(struct bb_timer_queue *queue);

/*
 * After fn has returned BB_EXPIRY_DONE_ the queue does not touch the timer on account of that
 * expiry; after BB_EXPIRY_PARK_ only where it was neither armed nor disarmed meanwhile. Parked
 * timers are tried again when the clock is next started, or after a millisecond of running clock.
 */
void bb_timer_init_(struct bb_timer_ *timer, struct bb_timer_queue *queue,
                    enum bb_expiry_ (*fn)(struct bb_ctx *ctx, struct bb_timer_ *timer,
                                          bb_ns_t deadline_ns));
/*
 * Arms, or moves, a timer; a deadline in the past expires at once, on the service thread. `ctx` is
 * for the ranked lock only. BB_E_NOMEM where the heap could not grow; then it is as before.
 * Callable in callbacks and under locks below rank TIMERS.
 */
int bb_timer_arm_(struct bb_ctx *ctx, struct bb_timer_ *timer, bb_ns_t deadline_ns);
/* Disarms; does not wait. Returns true where it was armed and its callback will not begin. */
bool bb_timer_disarm_(struct bb_ctx *ctx, struct bb_timer_ *timer);
bool bb_timer_armed_(struct bb_ctx *ctx, struct bb_timer_ *timer);
/*
 * True where the timer was armed or disarmed since its last expiry began: what is asked before an
 * expiry that lay in an inbox is run late, to drop one that has lost the race.
 */
bool bb_timer_superseded_(struct bb_ctx *ctx, struct bb_timer_ *timer);
/*
 * Disarms and waits until its callback doesn't run. BB_E_CONTEXT, with nothing done, where the
 * context may not block or is the one that runs the callback.
 */
int bb_timer_disarm_wait_(struct bb_ctx *ctx, struct bb_timer_ *timer);

#endif
