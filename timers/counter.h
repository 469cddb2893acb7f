/* SPDX-License-Identifier: MIT */
/*
 * A counter that can be halted, restarted and set while any number of threads read it, and that
 * never runs backwards across a halt. Derived (start value + elapsed), never ticked. The virtual
 * clock is one over host time; a device's main counter is one over the virtual clock.
 *
 * Why this is not a state word and a clock read: a reader that loads "running", reads the clock,
 * and is late, returns a time after the one at which the counter was halted; the next reader then
 * sees it run backwards. So a halt is published first and its value decided afterwards:
 *
 *  1. The writer moves the era word RUNNING -> STOPPING by a read-modify-write, then a full fence.
 *  2. Whoever sees STOPPING (the writer, or any reader) reads the source and proposes that time;
 *     one compare-and-swap on the era's halt slot decides it. Nobody waits for the writer.
 *  3. A reader of a running counter loads the era word, reads the source, and loads the era word
 *     again, the three kept in that order (fences, or `ordered` below). If it is unchanged, the
 *     source was read before STOPPING was visible, hence before any proposal's source read: the
 *     halt value can't be less. If it changed, the reader returns the value of the transition it
 *     ran into.
 *
 * Invariants, given a source that is monotonic across threads with a happens-before:
 *  A. No value returned by a read that began after a returned read ended is smaller, unless
 *     bb_counter_set() came between.
 *  B. A reader completes in a bounded number of its own steps unless writers keep changing the era
 *     meanwhile (lock-free); it never waits for a writer that is stopped, wherever it is stopped.
 *
 * Writers need exclusion among themselves (a device's lock); readers need nothing.
 * Public, so that devices outside the tree can use it.
 */
#ifndef BUSBAR_TIMERS_COUNTER_H
#define BUSBAR_TIMERS_COUNTER_H

#include "../base/result.h"

BB_BEGIN_DECLS

/*
 * A monotonic time, readable by any thread in wait-free time, in nanoseconds, below 2^63.
 *
 * `ordered` says that now_ns keeps order by itself: it samples the time after every earlier load
 * of its caller, and before every later load whose address depends on what it returned (fences
 * round an rdtsc do that, as does a plain acquire load of a time kept in memory). Where it is
 * false the counter puts a serialising fence on either side of the call.
 */
struct bb_time_source {
    bb_ns_t (*now_ns)(void *opaque);
    void *opaque;
    bool ordered;
};

enum { BB_COUNTER_ERAS = 8 };

/* Private contents; public only so that it can be embedded. */
struct bb_counter {
    struct bb_time_source source; /* immutable */
    uint64_t tick_ns;             /* immutable: nanoseconds a tick, at least 1 */
    uint64_t tick_reciprocal;     /* immutable: 2^64 / tick_ns, rounded up */
    uint64_t reciprocal_below;    /* immutable: it divides times below this exactly */
    uint64_t era;                 /* (a) era number and phase; written by the writer, and by
                                     helpers for STOPPING -> HALTED */
    struct {
        uint64_t number;      /* (a) era that this slot describes */
        uint64_t start_ns;    /* (a) source time at which it began running */
        uint64_t start_value; /* (a) its value then, or its constant value where it is halted */
        uint64_t halt_ns;     /* (a) decided halt time; bit 63 | number: undecided */
    } slot[BB_COUNTER_ERAS];
};

/*
 * Initialises a halted counter of value 0. `tick_ns` of 0 is taken as 1. Threads: one, before any
 * other sees it. Lifetime: needs no end; what `source` refers to must outlive it.
 */
BB_API void bb_counter_init(struct bb_counter *counter, const struct bb_time_source *source,
                            uint64_t tick_ns);

/*
 * The value now.
 * Ordering: the source is sampled after the caller's earlier loads and before its later ones.
 * Threads: any; lock-free as invariant B says; never writes a line unless it meets a halt in
 * progress, which it helps to complete.
 */
BB_API uint64_t bb_counter_read(struct bb_counter *counter);

/*
 * The value, and whether the counter runs, as of one moment; `*source_ns` (may be NULL) receives
 * the source time that the value belongs to: of a halted counter, the time at which it was halted
 * or set. Threads: as bb_counter_read().
 */
BB_API uint64_t bb_counter_read_state(struct bb_counter *counter, bool *running,
                                      bb_ns_t *source_ns);

/*
 * The three below are for writers, of which there is one at a time; they wait for nobody.
 * Halts and returns the value at which it stands; the value again where it is halted already.
 * Ordering: no read that begins later returns more, and none that had ended had returned more.
 */
BB_API uint64_t bb_counter_halt(struct bb_counter *counter);
/* Lets it run on from where it stands; nothing where it runs already. */
BB_API void bb_counter_run(struct bb_counter *counter);
/* Sets the value, running or halted. The one way for it to go backwards. */
BB_API void bb_counter_set(struct bb_counter *counter, uint64_t value);

/*
 * The source time at which a running counter reaches `value`, rounded up to the first nanosecond
 * at which a read returns at least `value`; UINT64_MAX where that is beyond the range of time.
 * A value already passed yields a time in the past. UINT64_MAX while halted.
 * Threads: any; lock-free as a read is. Beside a writer, of the counter as it was or as it became.
 */
BB_API bb_ns_t bb_counter_time_of(struct bb_counter *counter, uint64_t value);

BB_END_DECLS

#endif
