/* SPDX-License-Identifier: MIT */
/*
 * Doorbells: writes of a region that need no callback at once.
 *
 * A doorbell turns a write into a signal of an eventfd: the callback does not run, whoever waits on
 * the descriptor goes to work. What the region's rules and its accept hook say is not asked, and
 * coalesced writes are left as they are: who wakes flushes them before it looks at the device.
 *
 * A coalesced range takes writes of 1, 2, 4 or 8 bytes, without attributes, that lie in it as a
 * whole into a buffer and has them made together, later, in the order in which they were taken:
 * before the next access by any vCPU of any region of that device, before a pause completes, when
 * the buffer is full, when another vCPU writes to a coalesced range of any device, when the context
 * that left them is detached, and when somebody asks (bb_coalesced_flush(), engine/access.h).
 * Writes that are taken are BB_OK; what is refused when they are made is counted only. A doorbell
 * for the same write goes first.
 *
 * What a coalesced range leaves to its user:
 *  - Outermost accesses alone have writes made. A callback's own accesses, posted effects, timers
 *    and notifications of the device find it as it is: where they must see what the guest wrote,
 *    that register is none to coalesce. A thread of the embedder's own flushes first.
 *  - A write is made at the address that it was for, and meets what the map shows there then. So
 *    whoever moves, hides or removes the region flushes first. Removal does not do it by itself: it
 *    may have to cancel what the maker of the writes waits for. After a range was taken off,
 *    accesses no longer have its writes made: flush after that commit. With the engine paused
 *    nothing is left, and nothing can be missed.
 *  - While writes are made, each with the effects that it posts, other accesses to devices with
 *    coalesced ranges wait for the end, whatever the devices' tables of paths say. So what such a
 *    write posts must not wait for such an access, as a MAY_SLEEP callback could that waits for
 *    another thread.
 *
 * Both belong to a region and hold wherever it is shown, on host threads by the engine and, through
 * a listener (memory/listener.h), inside an accelerator. They are changed by transactions
 * (memory/space.h) and change as everything else in them does.
 */
#ifndef BUSBAR_MEMORY_DOORBELL_H
#define BUSBAR_MEMORY_DOORBELL_H

#include "region.h"

BB_BEGIN_DECLS

struct bb_txn;

struct bb_doorbell {
    uint64_t offset;  /* in the region, of the write's first byte */
    unsigned size;    /* 1, 2, 4 or 8; 0: writes of any size that begin there */
    bool match_value; /* only writes of `value`; needs a size */
    uint64_t value;   /* as the access has it, byte 0 lowest, whatever the region's byte order */
    int fd; /* an eventfd, the embedder's, non-blocking: where it is no longer open, or takes no
               write, the write reaches the callback as if there were no doorbell; a full counter
               counts as rung. It stays open until a transaction that removes the doorbell, or its
               region, has committed, listeners have been told (in a callback: when its access has
               returned), and a grace period has passed (bb_rcu_synchronize()) */
};

/*
 * Adds to a transaction: a doorbell is put on an I/O region or a ROM device, or the one with the
 * same offset, size, match and value taken off.
 * Returns BB_OK; BB_E_INVAL for a region of another kind, a size that is none of these, a value to
 * match without a size, and, to add, a descriptor below 0; BB_E_RANGE for a value that a write of
 * that size can't have, and, to add, an end outside the region; BB_E_NOMEM.
 * At commit: BB_E_EXIST where it has one already that the same write would ring; BB_E_NOENT where
 * there is none to take off; BB_E_LIMIT past BB_DOORBELLS_MAX on one region.
 * Threads: the thread that began the transaction.
 */
enum { BB_DOORBELLS_MAX = 1024 };
BB_API int bb_txn_doorbell_add(struct bb_txn *txn, struct bb_region *region,
                               const struct bb_doorbell *doorbell, struct bb_error *err);
BB_API int bb_txn_doorbell_remove(struct bb_txn *txn, struct bb_region *region,
                                  const struct bb_doorbell *doorbell, struct bb_error *err);

/*
 * Adds to a transaction: writes to [offset, offset + length) of an I/O region are coalesced; or no
 * longer. Only regions of class LOCKFREE and DEVICE_LOCK: others may wait for who waits for the
 * buffers.
 * Returns BB_OK; BB_E_UNSUPPORTED for another class; BB_E_INVAL for another kind; BB_E_RANGE for a
 * length of 0, or, to add, an end outside the region; BB_E_NOMEM.
 * At commit: BB_E_EXIST where it overlaps a coalesced range; BB_E_NOENT where there is no such
 * range; BB_E_LIMIT past BB_COALESCED_MAX on one region.
 * Threads: the thread that began the transaction.
 */
enum { BB_COALESCED_MAX = 1024 };
BB_API int bb_txn_coalesce(struct bb_txn *txn, struct bb_region *region, uint64_t offset,
                           uint64_t length, struct bb_error *err);
BB_API int bb_txn_uncoalesce(struct bb_txn *txn, struct bb_region *region, uint64_t offset,
                             uint64_t length, struct bb_error *err);

BB_END_DECLS

#endif
