/* SPDX-License-Identifier: MIT */
/*
 * The engine: one virtual machine's device side. It owns the map of address spaces, the clock,
 * the timers, the devices and the memory they take. Several engines may live in one process and
 * share nothing but liburcu's reader registry (rcu/rcu.h).
 *
 * Ownership: bb_engine_create() to bb_engine_destroy(); regions, spaces, devices, lines belong to
 * the engine they were made in. Threads: every thread that calls in has a context of this engine,
 * except where a function says otherwise; a context is not checked, nor, by accesses, a space. The
 * engine has threads of its own: bb-reclaim, bb-complete, bb-control and, where its clock follows
 * host time, bb-timers.
 *
 *   | function          | vCPU thread | control thread | in a callback       |
 *   |-------------------|-------------|----------------|---------------------|
 *   | access.h          | yes         | yes            | yes, by chain rules |
 *   | line.h set/pulse  | yes         | yes            | yes                 |
 *   | pause, resume     | no callback | yes            | asynchronous form   |
 *   | create, destroy   | -           | yes            | no                  |
 */
#ifndef BUSBAR_ENGINE_ENGINE_H
#define BUSBAR_ENGINE_ENGINE_H

#include "../base/heap.h"
#include "../memory/space.h"
#include "../rcu/rcu.h"
#include "../timers/clock.h"

BB_BEGIN_DECLS

struct bb_engine;
struct bb_device;

/* How accesses are kept apart: the real thing, and two honest baselines to measure it against. */
enum bb_lock_mode {
    BB_LOCK_FREE,   /* each region by its class */
    BB_LOCK_DEVICE, /* every LOCKFREE region as if it were DEVICE_LOCK */
    BB_LOCK_BIG,    /* every outermost access and expiry under one pthread mutex, besides */
};

/* The embedder's own lock, for EXTERNAL_LOCK regions. */
struct bb_external_lock {
    void (*lock)(void *opaque);
    void (*unlock)(void *opaque);
    bool (*held)(void *opaque); /* by the calling thread */
    void *opaque;
};

/* Where message-signalled interrupts go: an in-kernel local APIC, or a model. */
struct bb_msi_sink {
    /*
     * Delivers one message. Called in callbacks, sections and under device locks: lock-free, or at
     * least never waiting for a thread that waits for a device. Returns BB_OK, or BB_E_DEVICE
     * where nobody takes the message (counted).
     */
    int (*deliver)(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data);
    void *opaque;
};

struct bb_engine_config {
    const char *name;                     /* copied, at most 31 bytes; NULL: "busbar" */
    const struct bb_allocator *allocator; /* NULL: an arena of the engine's own */
    enum bb_lock_mode lock_mode;
    enum bb_clock_mode clock_mode;
    struct bb_external_lock external_lock; /* all NULL: EXTERNAL_LOCK regions are refused */
    struct bb_msi_sink msi_sink;           /* deliver NULL: messages are counted and dropped */
    uint64_t deferred_bytes_max;           /* 0: 64 MiB */
    uint64_t stall_report_ns;              /* 0: 1 s */
    void (*stall)(void *opaque, const struct bb_rcu_stall *stall); /* NULL: stderr, rate-limited */
    void *stall_opaque;
    unsigned chain_effects_max; /* lifetime budget of a chain, 1 to 1024; 0: 256 */
    bool count_accesses; /* begin with accesses counted for each region: bb_engine_count_accesses()
                          */
};

/*
 * Creates an engine and starts its clock. `config` NULL means all defaults.
 * Returns BB_OK; BB_E_INVAL or BB_E_RANGE for a bad field; BB_E_NOMEM; BB_E_SYSTEM where threads
 * can't be made. Threads: any, no context needed. Lifetime: until bb_engine_destroy().
 */
BB_API int bb_engine_create(const struct bb_engine_config *config, struct bb_engine **engine,
                            struct bb_error *err);

/*
 * Destroys an engine. All contexts must be detached; all devices, lines, regions, mappings,
 * listeners and clients of dirty logs gone. The removal of a region that was asked for is waited
 * for. Proves that nothing leaked: every byte of its heap has been given back.
 * Returns BB_OK; BB_E_STATE naming what is still there (one of these, or the bytes), or
 * BB_E_CONTEXT on a thread of the engine's own (in a removal's or a pause's `done`), and then
 * nothing was done.
 * Threads: any without a context of this engine; waits for deferred work.
 */
BB_API int bb_engine_destroy(struct bb_engine *engine, struct bb_error *err);

/*
 * Attaches the calling thread. `name` (copied, at most 31 bytes) is used in reports.
 * Returns BB_OK; BB_E_EXIST where this thread has a context of this engine; BB_E_NOMEM;
 * BB_E_INVAL without a name.
 * Threads: any, for itself; allocates, may block.
 * Lifetime: until bb_ctx_detach(), or the end of the thread, which detaches it.
 */
BB_API int bb_ctx_attach(struct bb_engine *engine, const char *name, struct bb_ctx **ctx,
                         struct bb_error *err);

/*
 * Detaches. Returns BB_OK, or BB_E_CONTEXT inside a callback, section, pin or lock, on another
 * thread than the one that attached it, or for a context of the engine's own, as hooks are given.
 * Threads: the context's own; may block.
 */
BB_API int bb_ctx_detach(struct bb_ctx *ctx, struct bb_error *err);

/* Whose context it is; its clock; how it was configured. Threads: any; wait-free. */
BB_API struct bb_engine *bb_ctx_engine(const struct bb_ctx *ctx);
BB_API struct bb_clock *bb_engine_clock(struct bb_engine *engine);
BB_API enum bb_lock_mode bb_engine_lock_mode(const struct bb_engine *engine);

/*
 * Pause: closes the gate for new accesses and expiries, stops the clock, calls the cancel hook of
 * every device that holds an access outside a section, and waits until no callback runs and no
 * posted effect is outstanding. An access that meets the closed gate waits there, holding nothing,
 * until the engine is resumed; one whose thread holds the external lock, a section or a ranked lock
 * is refused with BB_E_CONTEXT instead. Effects of a chain that has begun pass the gate. What a
 * thread of the embedder sets off itself while the engine is paused (by setting a line, or removing
 * a device, which withdraws its lines) is not held up: stop backends first.
 *
 * If that takes longer than `deadline_ns` (host time from now; 0: wait for ever), the pause is
 * undone, as if it had not been asked for, and the text names the device and thread in the way.
 * Pauses nest: each needs its resume.
 *
 * Returns BB_OK; BB_E_TIMEOUT; BB_E_CONTEXT inside a callback, section, pin or lock, or while the
 * external lock is held.
 * Threads: the context's own; blocks. Ordering: everything that accesses did before is seen by the
 * caller on return.
 */
BB_API int bb_engine_pause(struct bb_ctx *ctx, uint64_t deadline_ns, struct bb_error *err);

/*
 * The same without waiting: `done` is called on bb-complete with BB_OK or BB_E_TIMEOUT. Callable
 * anywhere, also in a callback of the device to be paused.
 * Returns BB_OK, or BB_E_NOMEM (then `done` is not called).
 * Threads: the context's own; never waits for a callback. Ordering: as above, for `done`.
 */
BB_API int bb_engine_pause_async(struct bb_ctx *ctx, uint64_t deadline_ns,
                                 void (*done)(struct bb_ctx *ctx, void *opaque, int result,
                                              const struct bb_error *err),
                                 void *opaque, struct bb_error *err);

/*
 * Undoes one pause. Returns BB_OK, or BB_E_STATE where the engine is not paused.
 * Threads: the context's own; never waits for a callback. Ordering: what the caller did before is
 * seen by every access that goes on or begins after it.
 */
BB_API int bb_engine_resume(struct bb_ctx *ctx, struct bb_error *err);
/* Whether the engine stands still at this moment. Threads: any; takes the control mutex briefly. */
BB_API bool bb_engine_paused(struct bb_engine *engine);

/* Counters since creation, summed over contexts, attached and gone; each exact once its thread
 * is quiet. No access writes a shared line to keep them. */
struct bb_engine_stats {
    uint64_t unassigned_reads; /* no region there */
    uint64_t unassigned_writes;
    uint64_t refused;        /* device errors: by a device or by access rules */
    uint64_t reentrant;      /* refused: the chain is in that device already */
    uint64_t nested_refused; /* nested reads that may not run at once */
    uint64_t effects_posted;
    uint64_t effects_refused; /* queue full or budget spent */
    uint64_t msi_sent;
    uint64_t msi_dropped;
    uint64_t expiries;         /* device timers' callbacks run */
    uint64_t expiries_inboxed; /* of these, handed to a device's inbox because its lock was held */
    uint64_t gate_waits;       /* accesses that met a closed gate */
    uint64_t coalesced;        /* writes taken to be made later (memory/doorbell.h) */
    uint64_t doorbells_rung;
    uint64_t doorbells_failed; /* whose descriptor took no write; the callback ran instead */
};

/* Threads: the context's own; takes a lock of contexts that no access takes. */
BB_API struct bb_engine_stats bb_engine_stats(struct bb_ctx *ctx);

/*
 * Turns the counting of accesses by region and context on or off; while it is on, accesses take the
 * slower path of dispatch, and each writes memory of its own context alone.
 * Threads: the context's own; takes the control mutex briefly.
 */
BB_API void bb_engine_count_accesses(struct bb_ctx *ctx, bool on);

/* What one context did with one region while counting was on. A split access counts once. */
struct bb_region_counts {
    uint64_t reads;
    uint64_t writes;
    uint64_t refused; /* of either */
};
/*
 * Calls `visit` for each attached context that has accessed `region`, with the context's name, and
 * once for all that have detached since (name NULL). Threads: the context's own; `visit` runs under
 * a lock of contexts and must not call the engine.
 */
BB_API void bb_region_counts_each(struct bb_ctx *ctx, const struct bb_region *region,
                                  void (*visit)(void *opaque, const char *name,
                                                const struct bb_region_counts *counts),
                                  void *opaque);
/* What the engine's heap holds. Threads: any. */
BB_API struct bb_heap_usage bb_engine_memory(struct bb_engine *engine);

BB_END_DECLS

#endif
