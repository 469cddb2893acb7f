/* SPDX-License-Identifier: MIT */
/*
 * The virtual clock: monotonic host time less the time it was stopped, or a time moved by hand.
 * Each engine has one (bb_engine_clock()).
 *
 * Threads: bb_clock_now_ns from any thread, with or without a context, lock-free (see counter.h);
 * the rest from control threads, serialised by the clock's own lock. It never goes backwards for
 * one thread, nor across threads with a happens-before between them.
 */
#ifndef BUSBAR_TIMERS_CLOCK_H
#define BUSBAR_TIMERS_CLOCK_H

#include "counter.h"

BB_BEGIN_DECLS

struct bb_ctx;
struct bb_clock;

enum bb_clock_mode {
    BB_CLOCK_HOST,   /* follows CLOCK_MONOTONIC while it runs */
    BB_CLOCK_MANUAL, /* moves by bb_clock_step() only; for tests and qtest */
};

/*
 * Virtual time now. Starts at 0, stopped; the engine starts it at creation.
 * Threads: any, with or without a context; lock-free as a counter's read is.
 * Ordering: sampled after the caller's earlier loads and before its later ones.
 */
BB_API bb_ns_t bb_clock_now_ns(struct bb_clock *clock);

/* The clock as the source of a counter. Threads: any; wait-free. Lifetime: the clock's. */
BB_API struct bb_time_source bb_clock_source(struct bb_clock *clock);

/* How it was made, and whether it runs at this moment. Threads: any; wait-free. */
BB_API enum bb_clock_mode bb_clock_mode(const struct bb_clock *clock);
BB_API bool bb_clock_running(struct bb_clock *clock);

/*
 * Stops and restarts it. While stopped, no timer expires; timers armed for a time that is passed
 * meanwhile don't exist, since it does not pass. A manual clock "runs" in the sense that steps
 * fire timers. Idempotent. bb_engine_pause() and bb_engine_resume() call these.
 * Threads: control; take the clock's lock. Ordering: a read that begins after bb_clock_stop() has
 * returned yields the time at which the clock stands.
 */
BB_API void bb_clock_stop(struct bb_clock *clock);
BB_API void bb_clock_start(struct bb_clock *clock);

/*
 * Moves a manual clock forward by `delta_ns` (0 is allowed: fires what is due) and fires every
 * timer that falls due on the way, on this thread, in order of deadline, ties in order of arming;
 * while one runs the clock stands at its deadline. Timers armed by callbacks count if they fall
 * due on the way; one that is armed for an instant at which it has just fired is due a nanosecond
 * later, so that every instant ends. At the end of time (2^63 - 1 ns) the clock stays there.
 * Returns BB_OK; BB_E_STATE where the clock is not manual, is stopped, or is being stepped
 * already, and where it is stopped on the way: then it stands where that happened; BB_E_CONTEXT
 * inside a callback, section, pin or lock.
 * Threads: the context's own; one step at a time.
 */
BB_API int bb_clock_step(struct bb_ctx *ctx, struct bb_clock *clock, uint64_t delta_ns,
                         struct bb_error *err);

BB_END_DECLS

#endif
