/* SPDX-License-Identifier: MIT */
/*
 * What the files of timers/ share among themselves and with their own tests: the counter's read
 * path as an inline function, so that the virtual clock reads the host's time with no indirect
 * call in between; the halves of a halt, so that a test can leave a writer between them; and what
 * a clock tells its queue.
 */
#ifndef BUSBAR_TIMERS_INTERNAL_H
#define BUSBAR_TIMERS_INTERNAL_H

#include <time.h>

#include "timers_core.h"

/* The era word: number << BB_ERA_SHIFT_ | phase. A word never comes back once it was left. */
enum bb_era_phase_ {
    BB_ERA_RUNNING_ = 0,
    BB_ERA_STOPPING_ = 1, /* a halt is published and its time not yet, or only just, decided */
    BB_ERA_HALTED_ = 2,
};
/* A slot is 32 bytes, so that an era word's low byte, less the phase, is where its slot begins. */
enum { BB_ERA_SHIFT_ = 5, BB_ERA_PHASE_MASK_ = 3 };

/* Times are below this; a slot's halt_ns at or above it is undecided. */
#define BB_TIME_LIMIT_ BB_BIT64(63)

/*
 * Zero, in a way that neither compiler nor processor knows before `sample` is known: a load whose
 * address it is added to begins after the time was sampled. It does for validation what a fence
 * behind the sample would do and costs 6 to 8 ns less, since later work need not wait; loads after
 * an acquire load are behind the sample with it. On x86
 * `and` with 0 is no zeroing idiom (xor and sub of a register with itself are), and there is no
 * processor of that kind that predicts values. Elsewhere it is a fence.
 */
static inline uint64_t bb_zero_after_(bb_ns_t sample)
{
#if defined(__x86_64__)
    __asm__ __volatile__("andq $0, %0" : "+r"(sample) : : "memory", "cc");
    return sample;
#else
    (void)sample;
    bb_load_fence_serializing();
    return 0;
#endif
}

struct bb_counter_state_ {
    uint64_t value;
    bb_ns_t source_ns;
    bool running;
};

/*
 * Whole ticks in `ns`. With r = 2^64 / tick rounded up, and r * tick = 2^64 + e, ns * r / 2^64
 * exceeds ns / tick by ns * e / (tick * 2^64): less than 1 / tick, so never carried into the next
 * integer, while ns * e < 2^64.
 */
static inline uint64_t bb_counter_ticks_(const struct bb_counter *counter, uint64_t ns)
{
    if (BB_LIKELY(ns < counter->reciprocal_below)) {
        return (uint64_t)(((unsigned __int128)ns * counter->tick_reciprocal) >> 64);
    }
    return ns / counter->tick_ns;
}

/*
 * The rest of a read whose first load of the era word gave `first`: it was not RUNNING, or was no
 * longer the era word when the source had been read.
 */
struct bb_counter_state_ bb_counter_transition_(struct bb_counter *counter, uint64_t first);

/*
 * The read path; invariants and their argument are in counter.c. `now_ns`, `ordered` and
 * `unit_tick` (tick_ns is 1) are parameters so that a caller that knows them pays for nothing.
 */
static inline __attribute__((always_inline)) struct bb_counter_state_
bb_counter_sample_(struct bb_counter *counter, bb_ns_t (*now_ns)(void *opaque), void *opaque,
                   bool ordered, bool unit_tick)
{
    /* Pairs with publish(): the slot's fields are those of this era, or of a later one. */
    uint64_t era = bb_load_acquire(&counter->era);

    if (BB_LIKELY((era & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_)) {
        bb_ns_t source_ns, start_ns;
        uint64_t start_value, zero;
        unsigned i;

        if (!ordered) {
            bb_load_fence_serializing(); /* the sample comes after the load of the era word */
        }
        source_ns = now_ns(opaque);
        if (!ordered) {
            bb_load_fence_serializing(); /* and before the one that validates it */
        }
        zero = bb_zero_after_(source_ns);
        /* Worked out here, so that nothing but the era word needs a register during the call. */
        __asm__("" : "+r"(era));
        i = (unsigned)(era >> BB_ERA_SHIFT_) % BB_COUNTER_ERAS;
        /*
         * Pair with publish(): who sees a field of a later era also sees the era word changed. Read
         * here and not before the sample, whose fence would wait for them.
         */
        start_ns = bb_load_acquire(&counter->slot[i].start_ns);
        start_value = bb_load_acquire(&counter->slot[i].start_value);
        /* Pairs with bb_counter_halt_begin_() and publish(). Acquire, too, so that the caller's
         * later loads (an outer counter's validation among them) come behind the sample. */
        if (BB_LIKELY(bb_load_acquire((uint64_t *)((char *)&counter->era + zero)) == era)) {
            uint64_t elapsed_ns = source_ns > start_ns ? source_ns - start_ns : 0;

            return (struct bb_counter_state_){
                .value =
                    start_value + (unit_tick ? elapsed_ns : bb_counter_ticks_(counter, elapsed_ns)),
                .source_ns = source_ns,
                .running = true,
            };
        }
    }
    return bb_counter_transition_(counter, era);
}

/*
 * An ordered source without a fence of ours: the kernel's vDSO orders its counter read behind
 * earlier loads (lfence;rdtsc or rdtscp), and the result depends on what it read.
 */
static inline bb_ns_t bb_host_now_(void *opaque)
{
    struct timespec now;

    (void)opaque;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (bb_ns_t)now.tv_sec * 1000000000u + (bb_ns_t)now.tv_nsec;
}

/* The time of a clock in host mode, given its counter, which is its first member. */
static inline __attribute__((always_inline)) bb_ns_t bb_virtual_now_(void *opaque)
{
    return bb_counter_sample_(opaque, bb_host_now_, NULL, true, true).value;
}
/* The same as a function with an address, by which bb_counter_read() knows such a source. */
bb_ns_t bb_clock_virtual_now_(void *opaque);

/* The first half of bb_counter_halt(): publishes STOPPING. The counter must be running. */
void bb_counter_halt_begin_(struct bb_counter *counter);
/* The second half: decides the halt where nobody has, and publishes HALTED. */
void bb_counter_halt_finish_(struct bb_counter *counter);

/* The queue side of a clock, called with the clock's own lock held. */
void bb_timer_queue_clock_changed_(struct bb_timer_queue *queue);
/*
 * A manual clock's step to `target_ns`, on the stepping thread. Returns BB_OK, or BB_E_STATE where
 * the clock was stopped, or an expiry was parked, on the way; then it stands where that happened.
 */
int bb_timer_queue_step_(struct bb_ctx *ctx, struct bb_timer_queue *queue, bb_ns_t target_ns);

/* The clock side of a queue. Attaching: BB_OK, or BB_E_EXIST where it has one. */
int bb_clock_attach_queue_(struct bb_clock *clock, struct bb_timer_queue *queue);
void bb_clock_detach_queue_(struct bb_clock *clock);
/* Virtual time, the host time that it belongs to, and whether it passes, as of one moment. */
struct bb_counter_state_ bb_clock_state_(struct bb_clock *clock);
/* Moves a manual clock to a later time. The stepping thread only. */
void bb_clock_move_(struct bb_clock *clock, bb_ns_t now_ns);

#endif
