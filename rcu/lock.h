/* SPDX-License-Identifier: MIT */
/*
 * Ranked locks: mutexes that know their place.
 *
 * A thread may take a lock only while every lock it holds has a lower rank; two locks of one rank
 * never nest. Device models need only one: the device's own (bb_device_lock() in
 * engine/device.h), or narrow locks made here for parts of a LOCKFREE device. Because the engine
 * runs no other device's code while one is held (docs/architecture.md, "Chains"), there is no
 * order between devices to get wrong.
 *
 * Debug builds check the order and abort after printing where both locks were taken; release
 * builds only count, in the context, how many are held.
 */
#ifndef BUSBAR_RCU_LOCK_H
#define BUSBAR_RCU_LOCK_H

#include "rcu.h"

BB_BEGIN_DECLS

struct bb_lock;

enum bb_lock_rank {
    BB_RANK_EXTERNAL = 10, /* the embedder's own lock, taken through its hooks */
    BB_RANK_BASELINE = 15, /* a device's lock in BB_LOCK_DEVICE mode, around its LOCKFREE regions */
    BB_RANK_DEVICE = 20,   /* a device's lock */
    BB_RANK_NARROW = 30, /* a lock inside a LOCKFREE device: one timer, one channel, one context */
    BB_RANK_ENGINE = 40, /* the engine's object tables */
    BB_RANK_LISTENERS = 45, /* telling the map's listeners */
    BB_RANK_MAP = 50,       /* the map's writer */
    BB_RANK_TIMERS = 60,    /* a timer queue */
    BB_RANK_RCU = 70,       /* deferred work */
};

/*
 * Creates a lock. `name` is copied (at most 31 bytes); rank BB_RANK_NARROW is the one that device
 * models use.
 * Returns BB_OK, BB_E_NOMEM, or BB_E_INVAL for a NULL name or an unknown rank.
 * Threads: the context's own; allocates. Lifetime: until bb_lock_destroy(); destroying a held lock
 * is a bug that debug builds report.
 */
BB_API int bb_lock_create(struct bb_ctx *ctx, const char *name, enum bb_lock_rank rank,
                          struct bb_lock **lock, struct bb_error *err);
BB_API void bb_lock_destroy(struct bb_ctx *ctx, struct bb_lock *lock);

/*
 * Takes and releases a lock. Inside a callback this is allowed; while it is held the chain rules
 * apply: nested accesses run at once only on RAM, everything else is posted.
 * Threads: the context's own; bb_lock_acquire blocks while another thread holds it,
 * bb_lock_try returns false instead. Ordering: acquire and release, paired with each other.
 */
BB_API void bb_lock_acquire(struct bb_ctx *ctx, struct bb_lock *lock);
BB_API bool bb_lock_try(struct bb_ctx *ctx, struct bb_lock *lock);
BB_API void bb_lock_release(struct bb_ctx *ctx, struct bb_lock *lock);

BB_END_DECLS

#endif
