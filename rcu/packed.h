/* SPDX-License-Identifier: MIT */
/*
 * Packed snapshots: fields of one 64-bit word, read by one load and changed by one
 * compare-and-swap, so that whoever reads has all of them as of one moment.
 *
 * The weakest thing that does for a register file which fits: prefer it to a latch, and a latch to
 * a lock. Where a value may come back (A, B, A) and that matters, give the word a version field and
 * bump it in every change.
 *
 * Invariants:
 *  1. Every change of a shared word is a compare-and-swap from the word on which it was computed:
 *     no change is lost, and each is made to the value it saw.
 *  2. An attempt fails only because another thread's change succeeded meanwhile: lock-free. A
 *     thread stopped anywhere holds nobody up. It is not wait-free: a thread can lose for as long
 *     as others succeed.
 *  3. A change releases what its thread wrote before and acquires what the previous changer wrote
 *     before; bb_packed_load() acquires likewise. Successive changes form one order, and who reads
 *     the word has seen what all changes up to it had behind them.
 *
 * Public: usable by device models outside the tree. Compiles as C11 and C++17.
 */
#ifndef BUSBAR_RCU_PACKED_H
#define BUSBAR_RCU_PACKED_H

#include "../base/atomic.h"
#include "../base/bits.h"

BB_BEGIN_DECLS

/* Where a field lies: `width` bits from bit `low`; width 1 to 64, low + width at most 64. */
struct bb_packed_field {
    uint8_t low;
    uint8_t width;
};

/* The field's value in a word that has been loaded. */
static inline uint64_t bb_packed_get(uint64_t word, struct bb_packed_field field)
{
    return bb_field_get(word, field.low, field.width);
}

/* The word with that field replaced; bits of `value` beyond the field are dropped. */
static inline uint64_t bb_packed_set(uint64_t word, struct bb_packed_field field, uint64_t value)
{
    return bb_field_set(word, field.low, field.width, value);
}

/* The word with that field raised by one, wrapping inside the field: for version fields. */
static inline uint64_t bb_packed_bump(uint64_t word, struct bb_packed_field field)
{
    return bb_packed_set(word, field, bb_packed_get(word, field) + 1);
}

/* True where the fields lie inside 64 bits and no two of them overlap. */
static inline bool bb_packed_layout_ok(const struct bb_packed_field *fields, size_t count)
{
    uint64_t used = 0;

    for (size_t i = 0; i < count; i++) {
        uint64_t mask;

        if (fields[i].width == 0 || fields[i].low >= 64 || fields[i].width > 64 - fields[i].low) {
            return false;
        }
        mask = bb_mask_low(fields[i].width) << fields[i].low;
        if ((used & mask) != 0) {
            return false;
        }
        used |= mask;
    }
    return true;
}

/* All fields as of one moment. Wait-free. Ordering: acquire; pairs with bb_packed_update(). */
static inline uint64_t bb_packed_load(const uint64_t *word)
{
    return bb_load_acquire(word);
}

/*
 * Changes the word: `change` is given the present word in `*next`, makes it what it should become
 * and returns true, or returns false to leave it as it is. It may be called several times, each
 * time with a fresh word, and must have no effect but on `*next` and what `argument` points to.
 * `before` and `after` (NULL is allowed) receive the word that was changed and what it became;
 * where nothing was changed, both the word that was seen.
 * Returns true where the word was changed.
 * Threads: any; lock-free. Ordering: acquire and release, with itself and bb_packed_load(); acquire
 * alone where nothing was changed.
 */
static inline bool bb_packed_update(uint64_t *word, bool (*change)(uint64_t *next, void *argument),
                                    void *argument, uint64_t *before, uint64_t *after)
{
    uint64_t seen = bb_load_acquire(word); /* partner: the swap below, in another thread */
    uint64_t next;
    bool changed;

    do {
        next = seen;
        changed = change(&next, argument);
        /* Acquire and release; partners: itself and bb_packed_load() (invariant 3). */
    } while (changed && !bb_cas_acq_rel(word, &seen, next));

    if (before != NULL) {
        *before = seen;
    }
    if (after != NULL) {
        *after = changed ? next : seen;
    }
    return changed;
}

BB_END_DECLS

#endif
