/* SPDX-License-Identifier: MIT */
/*
 * Pins, and waiting for those who hold one.
 *
 * A drain's states, all moved on bb-reclaim:
 *   asked    pushed by bb_pins_drain_(); a drain without pins goes straight to "sections"
 *   queued   another drain of the same pins is in progress: wait for it (newest first)
 *   due      it leads; a grace period is due
 *   waiting  that grace period is over. First until the side that newcomers don't take is empty;
 *            then newcomers are sent there (but see 5), and it waits until the side that they took
 *            before is empty
 *   done     fn is run on the thread it asked for
 * All drains that are queued when one in progress ends make one batch: one pass serves them all.
 *
 * Why it is right. Let `index` be the side that newcomers take when the drain's grace period ends,
 * `other` the other one; "old" pins are those that exist when the drain is asked for, and those
 * that are taken in sections which exist then: such a section may have found the object before it
 * was unpublished, and pin it only later.
 *  1. The index changes only on bb-reclaim, by the drain in progress, of which there is one.
 *  2. Old pins are in a count when the grace period ends, or have been put: the sections in which
 *     they are taken have ended.
 *  3. Once `other` is found 0 after the grace period, it stays 0 until the flip. Who raises it
 * loaded the index before an earlier flip. In a section: that section began before this grace
 * period and is over. Under a pin P of the same object: while P is held on `other`, that is not 0.
 * And P on `index` loaded the index earlier still, before the flip before that one; the drain
 *     between the two found that side 0 before it flipped, so P had been put, and the raise made.
 *  4. So `other`, once found 0, has lost its old pins. Then comes the flip. Whatever
 *     raises `index` after it is no old pin, and there are finitely many who loaded the index
 *     before; so newcomers don't keep the drain from ending. Once `index` is found 0, its old pins
 *     are gone too.
 *  5. A drain of all pins (bb_pins_drain_all_) does not flip. Its object is no longer published, so
 *     after the grace period pins are taken only under held ones, and, by 3, on `index`. Let Q be
 *     taken under P. P on `other`: finding `other` 0 has seen P's put, and with it that Q is
 *     counted. P on `index`: the count does not pass through 0 between P and Q. So when both sides
 *     have been found 0, in this order, nobody holds a pin or can come to hold one.
 *  6. A pin taken before the object is published is ordered before every drain by the publication.
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
     * own put does (invariants 3 and 5). */
    unsigned side = bb_load_relaxed(&pins->index);

    (void)bb_fetch_add_relaxed(&pins->count[side], 1);
    return side;
}

void bb_pins_put_(struct bb_rcu *rcu, struct bb_pins_ *pins, unsigned side)
{
    /* Release: what the holder did comes before the drain's fn; partner: step(). */
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

static void ask(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain), bool all)
{
    drain->pins = pins;
    drain->next = NULL;
    drain->fn = fn;
    drain->on = on;
    drain->all = all;
    drain->turned = false;
    drain->head.fn = NULL;
    drain->head.bytes = 0;
    /* Relaxed: released by the push. */
    (void)bb_fetch_add_relaxed(&rcu->pending, 1);
    bb_rcu_push_(&rcu->drains, &drain->head, &drain->head);
    bb_wake_signal_(&rcu->reclaim_wake);
}

void bb_pins_drain_(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                    enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain))
{
    ask(rcu, pins, drain, on, fn, false);
}

void bb_pins_drain_all_(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                        enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain))
{
    ask(rcu, pins, drain, on, fn, true);
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
static void lead(struct bb_rcu *rcu, struct bb_pin_drain_ *leader)
{
    for (const struct bb_pin_drain_ *d = leader->next; d != NULL; d = d->next) {
        leader->all = leader->all || d->all;
    }
    leader->pins->active = leader;
    leader->head.next = rcu->due == NULL ? NULL : &rcu->due->head;
    rcu->due = leader;
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
            lead(rcu, drain);
        } else {
            drain->next = drain->pins->queue;
            drain->pins->queue = drain;
        }
    }
}

void bb_pins_graced_(struct bb_rcu *rcu, struct bb_pin_drain_ *sections)
{
    uint32_t waiting = rcu->drains_waiting;

    while (rcu->due != NULL) {
        struct bb_pin_drain_ *leader = rcu->due;

        rcu->due = leader->head.next == NULL ? NULL : drain_of(leader->head.next);
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

/* True where the drain that `leader` leads has ended. */
static bool step(struct bb_pin_drain_ *leader)
{
    struct bb_pins_ *pins = leader->pins;

    if (!leader->turned) {
        uint32_t index = bb_load_relaxed(&pins->index); /* relaxed: only this thread writes it */

        /* Acquire; partner: bb_pins_put_(). */
        if (bb_load_acquire(&pins->count[index ^ 1]) != 0) {
            return false;
        }
        leader->side = index;
        leader->turned = true;
        if (!leader->all) {
            /* Relaxed: it guards nothing; the next drain's grace period ends all doubt. */
            bb_store_relaxed(&pins->index, index ^ 1);
        }
    }
    /* Acquire; partner: bb_pins_put_(). */
    return bb_load_acquire(&pins->count[leader->side]) == 0;
}

void bb_pins_advance_(struct bb_rcu *rcu)
{
    struct bb_pin_drain_ *leader = rcu->waiting;
    struct bb_pin_drain_ *waiting = NULL;
    struct bb_pin_drain_ *done = NULL;
    uint32_t still = 0;

    while (leader != NULL) {
        struct bb_pin_drain_ *next = leader->head.next == NULL ? NULL : drain_of(leader->head.next);

        if (step(leader)) {
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
            lead(rcu, batch);
        }
        finish(rcu, ended); /* last: it may free the pins */
    }
}
