/* SPDX-License-Identifier: MIT */
/*
 * Pins, and waiting for those who hold one.
 *
 * A drain's states, all moved on bb-reclaim:
 *   asked    pushed by bb_pins_drain_(); a drain without pins goes straight to "sections"
 *   queued   another drain of the same pins is in progress: wait for it (newest first)
 *   flipped  it leads: newcomers were sent to the other side; a grace period is due
 *   waiting  that grace period is over; waits until the old side's count is 0
 *   done     fn is run on the thread it asked for
 * All drains that are queued when one in progress ends make one batch: one flip serves them all.
 *
 * Why it is right. Let a drain flip from side `old` to side `new`.
 *  1. While no drain of the pins is in progress, the count of the side that newcomers don't take
 *     is 0. True at first; invariant 4 keeps it so.
 *  2. Who takes a pin inside a section loaded the index and raised the count within that section.
 *     If the section began before the drain's grace period, both are over when it ends; if it
 *     began after, it sees the flip and raises `new`. So after the grace period no section raises
 *     `old`, until the next flip, which is not made before this drain has ended.
 *  3. Who takes a pin while holding another, P, of the same pins may have loaded the index long
 *     ago, in no section. Suppose it raises `old` having loaded the index before the flip.
 *     - P is on `old`: it was counted there before the grace period ended (by 2, or by this for
 *       the pin under which P itself was taken) and is put only after the raise. So the count does
 *       not pass through 0 in between: the drain waits for both.
 *     - P is on `new`: P's index was loaded before the previous flip, from `new` to `old` (loaded
 *       after the present one, it would have let the later load see `old` no more). The previous
 *       drain waited for P, and so for the raise, before the present one flipped: the raise is one
 *       that the present drain finds in the count.
 *     So no rise of `old` comes after its count was found 0 behind the grace period.
 *  4. By 2 and 3, once the count of `old` is found 0 after the grace period it stays 0 until the
 *     drain has ended and the next one flips: invariant 1 for the next drain, whose `new` it is.
 *     By 1, every pin that existed when the drain was asked for was on `old`, or was put.
 *  5. A pin taken before the object is published is ordered before every drain by the publication.
 *  6. Newcomers take `new`, so they don't keep a drain from ending.
 *
 * A put may be the last thing that its thread does to the object: the drain's fn may free it as
 * soon as the count is 0. After lowering the count a put therefore looks at the domain alone.
 */
#include "rcu_internal.h"

#include <assert.h>

static struct bb_pin_drain_ *drain_of(struct bb_rcu_head *head)
{
    return BB_CONTAINER_OF(head, struct bb_pin_drain_, head);
}

unsigned bb_pins_get_(struct bb_pins_ *pins)
{
    /* Relaxed, both: the grace period of the drain orders them (invariant 2), or the held pin's
     * own put does (invariant 3). */
    unsigned side = bb_load_relaxed(&pins->index);

    (void)bb_fetch_add_relaxed(&pins->count[side], 1);
    return side;
}

void bb_pins_put_(struct bb_rcu *rcu, struct bb_pins_ *pins, unsigned side)
{
    /* Release: what the holder did comes before the drain's fn; partner: side_is_empty(). */
    uint32_t before = bb_fetch_sub_release(&pins->count[side], 1);

    assert(before != 0);
    if (before == 1) {
        /* Store of the count before the load of drains_waiting; partner: bb_pins_graced_(), which
         * stores drains_waiting, fence, loads the count. Without it the last put could miss the
         * drain, the drain the put, and the drain would never end. */
        bb_fence_full();
        if (bb_load_relaxed(&rcu->drains_waiting) != 0) {
            bb_wake_signal_(&rcu->reclaim_wake);
        }
    }
}

uint32_t bb_pins_held_(const struct bb_pins_ *pins)
{
    /* Relaxed: for reports. */
    return bb_load_relaxed(&pins->count[0]) + bb_load_relaxed(&pins->count[1]);
}

void bb_pins_drain_(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                    enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain))
{
    drain->pins = pins;
    drain->next = NULL;
    drain->fn = fn;
    drain->on = on;
    drain->head.fn = NULL;
    drain->head.bytes = 0;
    /* Relaxed: released by the push. */
    (void)bb_fetch_add_relaxed(&rcu->pending, 1);
    bb_rcu_push_(&rcu->drains, &drain->head, &drain->head);
    bb_wake_signal_(&rcu->reclaim_wake);
}

/* Runs on bb-complete. */
static void complete(struct bb_rcu_head *head)
{
    struct bb_pin_drain_ *drain = drain_of(head);

    drain->fn(drain);
}

/* Ends a chain of drains, linked by `next`, oldest first. Each may be freed by its fn. */
static void finish(struct bb_rcu *rcu, struct bb_pin_drain_ *drain)
{
    while (drain != NULL) {
        struct bb_pin_drain_ *next = drain->next;

        if (drain->on == BB_ON_COMPLETION_) {
            bb_rcu_ready_(rcu, &drain->head, complete);
        } else {
            drain->fn(drain);
            bb_rcu_work_done_(rcu, 1);
        }
        drain = next;
    }
}

/* Makes `leader`, with the chain behind it, the drain in progress of its pins. */
static void flip(struct bb_rcu *rcu, struct bb_pin_drain_ *leader)
{
    struct bb_pins_ *pins = leader->pins;
    uint32_t old = bb_load_relaxed(&pins->index); /* relaxed: only this thread writes it */

    leader->side = old;
    pins->active = leader;
    /* Relaxed: the grace period that follows orders it before sections that begin then. */
    bb_store_relaxed(&pins->index, old ^ 1);
    leader->head.next = rcu->flipped == NULL ? NULL : &rcu->flipped->head;
    rcu->flipped = leader;
}

void bb_pins_begin_(struct bb_rcu *rcu, struct bb_rcu_head *asked, struct bb_pin_drain_ **sections)
{
    struct bb_pin_drain_ **tail = sections;

    while (asked != NULL) {
        struct bb_pin_drain_ *drain = drain_of(asked);

        asked = asked->next;
        drain->next = NULL;
        if (drain->pins == NULL) {
            *tail = drain;
            tail = &drain->next;
        } else if (drain->pins->active == NULL) {
            flip(rcu, drain);
        } else {
            drain->next = drain->pins->queue;
            drain->pins->queue = drain;
        }
    }
}

void bb_pins_graced_(struct bb_rcu *rcu, struct bb_pin_drain_ *sections)
{
    uint32_t waiting = rcu->drains_waiting;

    while (rcu->flipped != NULL) {
        struct bb_pin_drain_ *leader = rcu->flipped;

        rcu->flipped = leader->head.next == NULL ? NULL : drain_of(leader->head.next);
        leader->head.next = rcu->waiting == NULL ? NULL : &rcu->waiting->head;
        rcu->waiting = leader;
        waiting++;
    }
    bb_store_relaxed(&rcu->drains_waiting, waiting);
    /* Store of drains_waiting before the loads of counts in bb_pins_advance_(); partner:
     * bb_pins_put_(). */
    bb_fence_full();
    finish(rcu, sections);
}

static bool side_is_empty(const struct bb_pin_drain_ *leader)
{
    /* Acquire; partner: bb_pins_put_(). */
    return bb_load_acquire(&leader->pins->count[leader->side]) == 0;
}

void bb_pins_advance_(struct bb_rcu *rcu)
{
    struct bb_pin_drain_ *leader = rcu->waiting;
    struct bb_pin_drain_ *waiting = NULL;
    struct bb_pin_drain_ *done = NULL;
    uint32_t still = 0;

    while (leader != NULL) {
        struct bb_pin_drain_ *next = leader->head.next == NULL ? NULL : drain_of(leader->head.next);

        if (side_is_empty(leader)) {
            leader->head.next = done == NULL ? NULL : &done->head;
            done = leader;
        } else {
            leader->head.next = waiting == NULL ? NULL : &waiting->head;
            waiting = leader;
            still++;
        }
        leader = next;
    }
    rcu->waiting = waiting;
    bb_store_relaxed(&rcu->drains_waiting, still); /* relaxed: lowering it only saves wake-ups */

    while (done != NULL) {
        struct bb_pin_drain_ *ended = done;
        struct bb_pins_ *pins = ended->pins;
        struct bb_pin_drain_ *batch = NULL;

        done = ended->head.next == NULL ? NULL : drain_of(ended->head.next);
        while (pins->queue != NULL) {
            struct bb_pin_drain_ *drain = pins->queue;

            pins->queue = drain->next;
            drain->next = batch;
            batch = drain;
        }
        pins->active = NULL;
        if (batch != NULL) {
            flip(rcu, batch);
        }
        finish(rcu, ended); /* last: it may free the pins */
    }
}
