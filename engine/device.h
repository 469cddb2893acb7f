/* SPDX-License-Identifier: MIT */
/*
 * Devices: the owner of regions, timers, interrupt sources and a lock, and the unit of removal.
 *
 * A device's lock has an inbox. Whoever finds the lock held (a timer's expiry, a line's setter)
 * leaves its work in the inbox and goes on; who holds the lock does that work on release. So a
 * vCPU that is preempted inside a device delays that device, never a timer thread and never
 * another device that pulls one of its lines.
 *
 * Lifetime: bb_device_create() to bb_device_remove(), which may be called in the device's own
 * callback. Threads: creation and removal from any thread with a context; the rest as stated.
 */
#ifndef BUSBAR_ENGINE_DEVICE_H
#define BUSBAR_ENGINE_DEVICE_H

#include "../memory/iommu.h"
#include "../rcu/lock.h"
#include "access.h"
#include "line.h"

BB_BEGIN_DECLS

struct bb_device_timer;

struct bb_device_ops {
    /*
     * Make MAY_SLEEP or EXTERNAL_LOCK callbacks of this device that are in flight return soon.
     * Called by pause and removal, on any thread (on bb-control where the removal was asked for
     * with something held), with nothing held, perhaps several times; must not block. NULL: they
     * are waited for.
     */
    void (*cancel)(struct bb_ctx *ctx, void *opaque);
    /*
     * Work found in the inbox by bb_device_notify(): runs under the device's lock. `pins` has a bit
     * for each pin notified since it last ran.
     */
    void (*notified)(struct bb_ctx *ctx, void *opaque, uint64_t pins);
    /*
     * Set every line from the device's state, anew. Needed only by a device that sets its lines
     * outside its lock and makes nested writes: a raise that had to queue behind such a write is
     * made by calling this, under the device's lock. NULL: such a raise is made, under the lock,
     * unless the source was set again meanwhile.
     */
    void (*relevel)(struct bb_ctx *ctx, void *opaque);
    /*
     * Removal is complete: no callback of the device runs or will run. Frees the device's own
     * state. Runs on bb-complete or in bb_device_remove_wait(), with nothing held.
     */
    void (*destroy)(void *opaque);
};

struct bb_device_config {
    const char *name;                /* copied, at most 31 bytes */
    const struct bb_device_ops *ops; /* kept; NULL: no hooks */
    void *opaque;
};

/*
 * Creates a device without regions. Returns BB_OK, BB_E_INVAL without a name, BB_E_LIMIT past
 * 65 535 devices, BB_E_NOMEM. Threads: any with a context; allocates.
 */
BB_API int bb_device_create(struct bb_ctx *ctx, const struct bb_device_config *config,
                            struct bb_device **device, struct bb_error *err);

/* Its name, as configured. Threads: any; wait-free. Lifetime: the device's. */
BB_API const char *bb_device_name(const struct bb_device *device);
/* The number by which reports name it; never 0, not used again. Threads: any; wait-free. */
BB_API uint32_t bb_device_id(const struct bb_device *device);
/*
 * Calls `visit` for each region of the device, in a read section and under no lock. One that is
 * created or removed meanwhile may be visited or not.
 * Threads: the context's own; takes the engine's table lock in between.
 */
BB_API void bb_device_each_region(struct bb_ctx *ctx, struct bb_device *device,
                                  void (*visit)(void *opaque, const struct bb_region *region),
                                  void *opaque);

/*
 * Memory for a device's state, zeroed, from the engine's heap; NULL where there is none. Freed
 * with the size it was asked with, usually in `destroy`. Threads: any.
 */
BB_API void *bb_device_alloc(struct bb_engine *engine, size_t bytes);
BB_API void bb_device_free(struct bb_engine *engine, void *memory, size_t bytes);

/*
 * Adds an I/O region to a device; map it with bb_space_map() or a transaction.
 * Returns BB_OK; BB_E_INVAL for a missing name or ops, sizes that are no powers of two, min over
 * max; BB_E_RANGE for a size of 0 or over 2^63; BB_E_UNSUPPORTED for EXTERNAL_LOCK without lock
 * hooks in the engine; BB_E_STATE where the device is being removed; BB_E_NOMEM.
 * Threads: the context's own; allocates. Lifetime: until it, or its device, is removed.
 */
BB_API int bb_device_region_create(struct bb_ctx *ctx, struct bb_device *device,
                                   const struct bb_region_config *config, struct bb_region **region,
                                   struct bb_error *err);

/*
 * Adds an IOMMU region to a device. Returns as bb_device_region_create().
 */
BB_API int bb_device_iommu_create(struct bb_ctx *ctx, struct bb_device *device,
                                  const struct bb_iommu_config *config, struct bb_region **region,
                                  struct bb_error *err);

/*
 * Gives a region that belongs to no device (a container, an alias, RAM, a reserved one) to
 * `device`: it is removed along with it, and can be removed before. Accesses and mappings of it are
 * as before.
 * Returns BB_OK; BB_E_EXIST where it has an owner; BB_E_INVAL for a space's root or another
 * engine's; BB_E_STATE where either is being removed; BB_E_NOMEM.
 * Threads: the context's own; takes the engine's table lock.
 */
BB_API int bb_device_adopt(struct bb_ctx *ctx, struct bb_device *device, struct bb_region *region,
                           struct bb_error *err);

/*
 * Removes one region of any kind: takes it out of the map at once; when no callback of it runs or
 * will run, and no mapping of its memory is left, it is freed and `done` (may be NULL) is called on
 * bb-complete, in no order with others.
 * Returns BB_OK; BB_E_STATE where it is being removed already; BB_E_INVAL for a space's root or
 * another engine's; BB_E_NOMEM; on errors it is as it was.
 * Threads: the context's own, also in callbacks of the region itself; never waits for a callback.
 * Where deferred memory is over its bound it waits for read sections, as a commit does.
 * Lifetime: a callback may still run on return, never once `done` is called.
 */
BB_API int bb_region_remove(struct bb_ctx *ctx, struct bb_region *region,
                            void (*done)(void *opaque), void *opaque, struct bb_error *err);
/*
 * The same, waiting: on return no callback of it runs or will run.
 * Returns, besides, BB_E_CONTEXT inside any callback, section, pin or lock. Threads: blocks.
 */
BB_API int bb_region_remove_wait(struct bb_ctx *ctx, struct bb_region *region,
                                 struct bb_error *err);

/*
 * Removes a device: unmaps all its regions in one transaction, disarms its timers, withdraws its
 * asserted lines, calls its cancel hook, waits (elsewhere) until no access, expiry, notification or
 * posted effect of it is in flight, then frees it: `destroy` is called, then `done` (may be NULL),
 * both on bb-complete.
 * Returns BB_OK; BB_E_STATE where it is being removed already; BB_E_NOMEM, with nothing done.
 * Threads: the context's own; callable anywhere, also in the device's own callback, where it
 * completes after that callback has returned. Never waits for a callback.
 */
BB_API int bb_device_remove(struct bb_ctx *ctx, struct bb_device *device,
                            void (*done)(void *opaque), void *opaque, struct bb_error *err);
/*
 * The same, waiting; never queues behind other removals' `done`. Returns, besides, BB_E_CONTEXT
 * inside any callback, section, pin or lock. Threads: blocks.
 */
BB_API int bb_device_remove_wait(struct bb_ctx *ctx, struct bb_device *device,
                                 struct bb_error *err);

/*
 * The device's lock. Releasing it does the inbox's work. Not recursive; callbacks of DEVICE_LOCK
 * regions, and expiries and notifications, run under it already.
 * Threads: the context's own; acquire blocks while another thread holds it. Rank DEVICE.
 */
BB_API void bb_device_lock(struct bb_ctx *ctx, struct bb_device *device);
BB_API void bb_device_unlock(struct bb_ctx *ctx, struct bb_device *device);

/*
 * Has ops->notified run under the device's lock with bit `pin` (0 to 63) set: now, if the lock is
 * free, else by whoever holds it. For sinks whose state needs the lock. Every register
 * read of such a device runs under the lock, and therefore sees what was notified before it:
 * bb_device_lock() drains the inbox first.
 * Threads: the context's own, also in callbacks and under any lock; lock-free, but for handing an
 * inbox that does not get empty to bb-control. Ordering: what the caller did before is seen by
 * ops->notified.
 */
BB_API void bb_device_notify(struct bb_ctx *ctx, struct bb_device *device, unsigned pin);

/*
 * Timers. The callback runs on bb-timers (or on whoever holds the device's lock, by the inbox), as
 * an access of its own: under the device's lock where `locked`, in a read section always.
 * It may arm, disarm, set lines, send messages, make nested accesses. A write that it posts to a
 * DEVICE_LOCK region may make all timers wait for that device's lock. A callback may be late, and
 * may come after a disarm that lost the race: check the device's state. A locked timer that was
 * disarmed or armed anew under the device's lock is not called for what had expired before.
 */
struct bb_device_timer_config {
    void (*expired)(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns);
    void *opaque;
    bool locked;
};
/*
 * Creates a timer, disarmed. Returns BB_OK; BB_E_INVAL without `expired`; BB_E_STATE where the
 * device is being removed; BB_E_NOMEM. Threads: the context's own; allocates.
 * Lifetime: the device's; removal disarms it, and no callback runs once removal is complete.
 */
BB_API int bb_device_timer_create(struct bb_ctx *ctx, struct bb_device *device,
                                  const struct bb_device_timer_config *config,
                                  struct bb_device_timer **timer, struct bb_error *err);

/*
 * Arms for an absolute virtual time, or moves it there; a time in the past expires at once.
 * Disarming does not wait. Callable in callbacks and under the device's lock.
 * bb_device_timer_arm returns BB_OK, BB_E_STATE where the device is being removed, or BB_E_NOMEM
 * with the timer as it was.
 * Threads: the context's own; both take the timer queue's lock for a bounded time.
 * Lifetime: after a disarm the callback may still come once, as said above.
 */
BB_API int bb_device_timer_arm(struct bb_ctx *ctx, struct bb_device_timer *timer,
                               bb_ns_t deadline_ns);
BB_API void bb_device_timer_disarm(struct bb_ctx *ctx, struct bb_device_timer *timer);

/*
 * Posts a call: `fn` runs in the epilogue of the outermost access, with no lock, section or pin
 * held, in order with the other effects of the chain; it may block. The device is pinned until it
 * has run. Outside any callback it runs before bb_post() returns. Where the device is gone
 * meanwhile it still runs: removal waits for it.
 * Returns BB_OK; BB_E_INVAL without a device or a function; BB_E_LIMIT where the queue is full or
 * the chain's budget is spent (counted);
 * BB_E_CONTEXT outside any callback while the thread is in a section or holds a ranked lock.
 * Threads: the context's own. Lifetime: `opaque` is the caller's until `fn` has run.
 */
BB_API int bb_post(struct bb_ctx *ctx, struct bb_device *device,
                   void (*fn)(struct bb_ctx *ctx, void *opaque, uint64_t argument), void *opaque,
                   uint64_t argument);

BB_END_DECLS

#endif
