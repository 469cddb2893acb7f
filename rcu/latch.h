/* SPDX-License-Identifier: MIT */
/*
 * A latch: a value of up to seven 64-bit words in two copies, one of which is always whole.
 *
 * For state of a few words that is read on every access and seldom written. A reader finishes even
 * while the writer is stopped in the middle of a write, which a reader of a seqlock does not: it
 * starts again only when the writer has moved on. It writes nothing, so readers don't disturb one
 * another. Writers exclude one another by the caller's own lock.
 *
 * `sequence` is raised twice a write; its low bit says which copy readers take.
 *
 *   write from sequence s (even):  sequence = s + 1   readers move to copy 1, the old value
 *                                  copy 0 = new       nobody is meant to be in it
 *                                  sequence = s + 2   readers move to copy 0, the new value
 *                                  copy 1 = new       nobody is meant to be in it
 *
 * Invariants:
 *  1. While `sequence` is s, copy s & 1 is whole and is not being written: it was finished before
 *     s was stored (the store of s is a release, bb_latch_read()'s load of it an acquire), and the
 *     writer stores s + 1 before it touches that copy again.
 *  2. A reader that met a word of a later write sees, when it loads `sequence` again, that it has
 *     changed: each word is stored with release, after the sequence that announced the change, and
 *     loaded with acquire, before the second load. So an unchanged sequence means that every word
 *     is of the value that was current when the sequence was first loaded.
 *  3. A reader retries only when the writer has taken one of its two steps meanwhile: lock-free; a
 *     stopped writer costs it at most one retry.
 *  4. sequence >> 1 names the value: it is the same for all who read the same write. It does not
 *     wrap (2^63 writes).
 *
 * Public: usable by device models outside the tree. Compiles as C11 and C++17.
 */
#ifndef BUSBAR_RCU_LATCH_H
#define BUSBAR_RCU_LATCH_H

#include "../base/atomic.h"

#include <assert.h>

/* Tests define this to look in between a write's steps. */
#ifndef BB_LATCH_STEP_
#define BB_LATCH_STEP_(latch) ((void)0)
#endif

BB_BEGIN_DECLS

enum { BB_LATCH_WORDS_MAX = 7 };

struct bb_latch {
    uint64_t sequence; /* written by the writer, read by all */
    uint64_t copy[2][BB_LATCH_WORDS_MAX];
};

/* Gives the latch its first value, of `words` 64-bit words (1 to 7; always the same for one latch).
 * Threads: before the latch is shared. */
static inline void bb_latch_init(struct bb_latch *latch, const uint64_t *value, unsigned words)
{
    assert(words != 0 && words <= BB_LATCH_WORDS_MAX);
    latch->sequence = 0;
    for (unsigned i = 0; i < words; i++) {
        latch->copy[0][i] = value[i];
        latch->copy[1][i] = value[i];
    }
}

/*
 * Replaces the value. Threads: one writer at a time, by the caller's lock; wait-free.
 * Ordering: what was written before is seen by who reads this value; pairs with bb_latch_read().
 */
static inline void bb_latch_write(struct bb_latch *latch, const uint64_t *value, unsigned words)
{
    /* Relaxed: only the writer, which the caller's lock makes one, changes it. */
    uint64_t sequence = bb_load_relaxed(&latch->sequence);

    for (unsigned copy = 0; copy < 2; copy++) {
        /* Release; partner: the first load of bb_latch_read() (invariant 1). */
        bb_store_release(&latch->sequence, ++sequence);
        BB_LATCH_STEP_(latch);
        for (unsigned i = 0; i < words; i++) {
            /* Release; partner: the loads of words in bb_latch_read() (invariant 2). */
            bb_store_release(&latch->copy[copy][i], value[i]);
            BB_LATCH_STEP_(latch);
        }
    }
}

/*
 * Reads the value into `value`. Returns its number, for bb_latch_changed().
 * Threads: any; lock-free, and a stopped writer holds nobody up.
 */
static inline uint64_t bb_latch_read(const struct bb_latch *latch, uint64_t *value, unsigned words)
{
    uint64_t sequence;

    do {
        /* Acquire; partner: bb_latch_write(): the copy it names is whole. */
        sequence = bb_load_acquire(&latch->sequence);
        for (unsigned i = 0; i < words; i++) {
            /* Acquire; partner: the stores of words: keeps the load below behind. */
            value[i] = bb_load_acquire(&latch->copy[sequence & 1][i]);
        }
        /* Relaxed: ordered by the acquires above. */
    } while (bb_load_relaxed(&latch->sequence) != sequence);
    return sequence >> 1;
}

/*
 * True where the value has been replaced since the read that returned `number`. A reader that
 * combines the value with a clock reads the value, the clock, then asks this; between the clock and
 * this goes bb_load_fence_serializing(), because nothing weaker keeps a load behind rdtsc.
 * Threads: any; wait-free. Ordering: acquire; pairs with bb_latch_write().
 */
static inline bool bb_latch_changed(const struct bb_latch *latch, uint64_t number)
{
    return bb_load_acquire(&latch->sequence) >> 1 != number;
}

BB_END_DECLS

#endif
