/* SPDX-License-Identifier: MIT */
/*
 * Read sections, grace periods and deferred work, over liburcu's memb flavour.
 *
 * Every thread that touches an engine has a context, `struct bb_ctx`, made by
 * bb_ctx_attach() (engine/engine.h). A context belongs to the thread that attached it: every
 * function here that takes one must be called on that thread.
 *
 * What is process-wide: liburcu's reader registry. A thread is registered with it when its first
 * context attaches and unregistered when the last one detaches or the thread ends; a registration
 * that the embedder made itself is detected and left alone. A reader of any engine, or of the
 * embedder's own liburcu use, that stays in a read section delays the grace periods of all. After
 * fork() the child may only exec or _exit.
 */
#ifndef BUSBAR_RCU_RCU_H
#define BUSBAR_RCU_RCU_H

#include "../base/result.h"

BB_BEGIN_DECLS

struct bb_ctx;

/*
 * Begins and ends a read section of the calling thread. Sections nest. What a section found
 * through a published pointer stays allocated until the section ends. Callbacks of a LOCKFREE or
 * DEVICE_LOCK region already run inside one.
 * Threads: the context's own; wait-free; no read-modify-write, no fence instruction.
 * Ordering: pairs with bb_rcu_synchronize().
 */
BB_API void bb_rcu_read_lock(struct bb_ctx *ctx);
BB_API void bb_rcu_read_unlock(struct bb_ctx *ctx);

/*
 * Waits until every read section that was running when it was called has ended.
 * Returns BB_OK, or BB_E_CONTEXT inside a callback, a read section, a pin or a ranked lock.
 * Threads: the context's own; blocks.
 */
BB_API int bb_rcu_synchronize(struct bb_ctx *ctx);

/* Room for one piece of deferred work, embedded in the object it is about. Contents private. */
struct bb_rcu_head {
    struct bb_rcu_head *next;
    void (*fn)(struct bb_rcu_head *head);
    size_t bytes;
};

/*
 * Runs fn(head) on the engine's completion thread once every read section that is running now has
 * ended. User code is welcome there; it runs with no lock, section or pin held, and one completion
 * at a time, those of one thread in their order. `bytes` is what the work will free; it counts
 * against the engine's bound of deferred memory until the grace period has ended, so that who waits
 * for the bound waits for readers alone and never for a completion.
 * Threads: the context's own, also inside callbacks, sections and locks; never blocks, lock-free.
 * Lifetime: `head` belongs to busbar until fn is called.
 */
BB_API void bb_rcu_call(struct bb_ctx *ctx, struct bb_rcu_head *head,
                        void (*fn)(struct bb_rcu_head *head), size_t bytes);

/* Counters of one engine's grace periods; read at any time, each figure on its own. */
struct bb_rcu_stats {
    uint64_t grace_periods;  /* completed */
    uint64_t stalls;         /* reported */
    uint64_t deferred_bytes; /* waiting for a grace period now */
    uint64_t deferred_peak;  /* the most there ever was */
    uint64_t throttled;      /* times a writer had to wait for the byte bound */
};

/* Threads: the context's own; takes the grace periods' lock. */
BB_API struct bb_rcu_stats bb_rcu_stats(struct bb_ctx *ctx);

/*
 * A grace period that takes longer than the engine's limit; given to the engine's stall hook once,
 * and again each time that it has taken ten times as long. The hook is called on bb-complete, with
 * no lock held; the structure and its strings are its own only during the call. While bb-complete
 * runs a completion (bb_rcu_call(), a removal's `done`) it does not watch, and a stall that began
 * meanwhile is reported after that completion has returned.
 */
struct bb_rcu_stall {
    uint64_t waited_ns;      /* how long the grace period has been waiting */
    const char *thread_name; /* the context in the way; NULL: none of this engine, see `text` */
    int tid;                 /* its kernel thread id; 0 where thread_name is NULL */
    uint32_t device_id;      /* the device whose callback it is in; 0: none */
    const char *text;        /* the whole report as one line */
};

BB_END_DECLS

#endif
