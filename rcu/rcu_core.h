/* SPDX-License-Identifier: MIT */
/*
 * What the other modules of the library need of rcu/: the context, the inlined read section, RCU
 * domains (one per engine), deferred work, pins and embedded ranked locks. Not installed.
 *
 * The flavour is hidden here. Nothing outside rcu/ names liburcu, so that another flavour, or
 * reader records of our own, can be measured by changing this header and rcu/ alone.
 *
 * Layers extend the context by embedding: `struct bb_mem_ctx_ { struct bb_ctx base; ... }`,
 * `struct bb_ectx_ { struct bb_mem_ctx_ mem; ... }`; all start at the same address, and
 * bb_ctx_attach_() is told the size of the outermost.
 */
#ifndef BUSBAR_RCU_CORE_H
#define BUSBAR_RCU_CORE_H

#include <pthread.h>
#include <urcu/static/urcu-memb.h>
#include <urcu/urcu-memb.h>

#include "../base/atomic.h"
#include "../base/bits.h"
#include "../base/heap.h"
#include "lock.h"
#include "rcu.h"

enum { BB_CTX_NAME_BYTES = 32, BB_LOCKS_HELD_MAX = 8 };

struct bb_rcu;

struct bb_lock {
    pthread_mutex_t mutex;
    enum bb_lock_rank rank;       /* immutable */
    char name[BB_CTX_NAME_BYTES]; /* immutable */
};

/*
 * Per-thread, per-engine context. Fields are written by the owning thread only; those marked (a)
 * are read by other threads and therefore accessed atomically.
 */
struct bb_ctx {
    struct urcu_reader *reader; /* the owner's liburcu record, cached: no TLS on the hot path */
    struct urcu_gp *gp;         /* immutable: liburcu's own, cached likewise */
    struct bb_rcu *rcu;         /* immutable */
    union {
        struct {
            uint32_t callback_depth; /* device callbacks active on this context */
            uint32_t device_id; /* (a) of the device whose callback runs; 0: none. For reports */
        };
        uint64_t frame; /* both, for the fast path, which sets and clears them by one store */
    };
    uint32_t lock_depth;   /* ranked locks held */
    uint32_t narrow_depth; /* of these, locks of rank NARROW */
    uint32_t pin_depth;    /* pins held by callbacks active on this context */
    union {
        struct {
            bool throttle; /* the outermost epilogue must wait for the byte bound */
            bool pending;  /* the outermost access has effects to run, records to give back */
        };
        uint16_t epilogue; /* either */
    };
    bool fences;                  /* immutable: this host has no membarrier, sections need fences */
    char name[BB_CTX_NAME_BYTES]; /* immutable */
    int tid;                      /* immutable: the owner's kernel thread id */
    size_t bytes;                 /* immutable: the allocation's size */
    void (*fini)(struct bb_ctx *ctx); /* upper layers' part of detaching; may be NULL */
    struct bb_ctx *next; /* guarded by the domain's context lock: list of its contexts */
    struct bb_ctx *prev;
    struct bb_ctx *thread_next; /* owner only: list of this thread's contexts, for thread exit */
#ifndef NDEBUG
    struct {
        const struct bb_lock *lock;
        void *stack[16];
        int frames;
    } held[BB_LOCKS_HELD_MAX]; /* owner only: for the order checker */
#endif
};

#if BB_TSAN
/* Tell the checker what a grace period orders; see rcu/tsan.c. */
void bb_rcu_tsan_enter_(void);
void bb_rcu_tsan_leave_(void);
#else
static inline void bb_rcu_tsan_enter_(void) {}
static inline void bb_rcu_tsan_leave_(void) {}
#endif

/* Wakes a grace period that sleeps for readers. Not inlined: it is rare, and calls. */
void bb_section_wake_(struct bb_ctx *ctx);

/* True where a grace period sleeps for readers. Relaxed: the barriers around the store of `ctr`
 * order it against liburcu's setting it; the word guards no data. */
static inline bool bb_section_awaited_(const struct bb_ctx *ctx)
{
    return BB_UNLIKELY(bb_load_relaxed(&ctx->gp->futex) == -1);
}

/*
 * The read section, through the cached record: the same stores that liburcu's own read lock makes
 * (urcu/static/urcu-memb.h), without its TLS access. Relaxed, because the order comes from liburcu:
 * compiler barriers here (fences where the host has no membarrier) against the membarrier in
 * urcu_memb_synchronize_rcu(). Never by plain stores: the stall report (bb_gp_watch_) reads the
 * record on another thread.
 */
static inline void bb_section_enter_(struct bb_ctx *ctx)
{
    struct urcu_reader *reader = ctx->reader;
    unsigned long ctr = reader->ctr;

    cmm_barrier();
    if (BB_LIKELY((ctr & URCU_GP_CTR_NEST_MASK) == 0)) {
        bb_store_relaxed(&reader->ctr, bb_load_relaxed(&ctx->gp->ctr));
        cmm_barrier();
        if (BB_UNLIKELY(ctx->fences)) {
            cmm_smp_mb();
        }
    } else {
        bb_store_relaxed(&reader->ctr, ctr + URCU_GP_COUNT);
    }
    bb_rcu_tsan_enter_();
}

static inline void bb_section_leave_(struct bb_ctx *ctx)
{
    struct urcu_reader *reader = ctx->reader;
    unsigned long ctr = reader->ctr;

    bb_rcu_tsan_leave_();
    cmm_barrier();
    if (BB_UNLIKELY(ctx->fences)) {
        cmm_smp_mb();
    }
    bb_store_relaxed(&reader->ctr, ctr - URCU_GP_COUNT);
    cmm_barrier();
    if (BB_UNLIKELY(ctx->fences)) {
        cmm_smp_mb();
    }
    /* An inner section's end wakes nobody, but asking costs less than telling them apart. */
    if (bb_section_awaited_(ctx)) {
        bb_section_wake_(ctx);
    }
}

/*
 * The same for an outermost section on a host with membarrier (ctx->fences is false). What is
 * stored depends on no earlier store: a counter loaded and stored again would be a chain through
 * memory from one access to the next. The caller has seen that no section is active.
 */
static inline void bb_section_enter_outermost_(struct bb_ctx *ctx)
{
    cmm_barrier();
    bb_store_relaxed(&ctx->reader->ctr, bb_load_relaxed(&ctx->gp->ctr));
    cmm_barrier();
    bb_rcu_tsan_enter_();
}

/* A count of 0 is all that grace periods look for in a reader that is outside. */
static inline void bb_section_leave_outermost_(struct bb_ctx *ctx)
{
    bb_rcu_tsan_leave_();
    cmm_barrier();
    bb_store_relaxed(&ctx->reader->ctr, 0);
    cmm_barrier();
    if (bb_section_awaited_(ctx)) {
        bb_section_wake_(ctx);
    }
}

/* True where the calling thread is in a read section, whoever began it. */
static inline bool bb_section_active_(const struct bb_ctx *ctx)
{
    return (ctx->reader->ctr & URCU_GP_CTR_NEST_MASK) != 0;
}

/* True where the calling thread may block: no callback, section, pin or ranked lock. */
static inline bool bb_ctx_may_block_(const struct bb_ctx *ctx)
{
    return ctx->callback_depth == 0 && ctx->lock_depth == 0 && ctx->pin_depth == 0 &&
           !bb_section_active_(ctx);
}

struct bb_rcu_config_ {
    struct bb_heap *heap;
    uint64_t deferred_bytes_max; /* the byte bound */
    uint64_t stall_ns;           /* a grace period longer than this is reported */
    void (*stall)(void *opaque, const struct bb_rcu_stall *stall); /* NULL: a line on stderr, at
                                                                      most one a second */
    void *stall_opaque;
};

/*
 * A domain has two threads: "bb-reclaim" waits for grace periods (at most 1 000 a second, so
 * batched) and runs bb_rcu_defer_ work and drained pins marked BB_ON_RECLAIM_; it never runs
 * user code. "bb-complete" runs bb_rcu_call work and drained pins marked BB_ON_COMPLETION_, and
 * watches for stalls.
 */
int bb_rcu_create_(const struct bb_rcu_config_ *config, struct bb_rcu **rcu, struct bb_error *err);
/* Runs all deferred work, stops the threads. BB_E_STATE, naming one, while contexts are attached.
 */
int bb_rcu_destroy_(struct bb_rcu *rcu, struct bb_error *err);

/*
 * Attaches the calling thread: allocates `bytes` (at least sizeof(struct bb_ctx)), zeroed and
 * cache-line aligned, from the domain's heap, and registers the thread with liburcu if nobody has.
 * A thread that ends with contexts attached has them detached by a thread-exit hook. `fini` is
 * called by bb_ctx_detach_(), before anything is torn down.
 * BB_E_EXIST where this thread already has a context in this domain.
 */
int bb_ctx_attach_(struct bb_rcu *rcu, const char *name, size_t bytes,
                   void (*fini)(struct bb_ctx *ctx), struct bb_ctx **ctx, struct bb_error *err);
/* BB_E_CONTEXT where bb_ctx_may_block_() is false, or on another thread than the owner. */
int bb_ctx_detach_(struct bb_ctx *ctx, struct bb_error *err);

/* Calls fn for each attached context of the domain, under its context lock (rank RCU). */
void bb_rcu_each_ctx_(struct bb_rcu *rcu, void (*fn)(struct bb_ctx *ctx, void *arg), void *arg);

/* As bb_rcu_call, but on bb-reclaim: for the library's own frees and wake-ups only. */
void bb_rcu_defer_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                   void (*fn)(struct bb_rcu_head *head), size_t bytes);
/* As bb_rcu_call, without a context. */
void bb_rcu_complete_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                      void (*fn)(struct bb_rcu_head *head), size_t bytes);
/* Runs fn on bb-complete with no grace period in between. For work already past one. */
void bb_rcu_complete_now_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                          void (*fn)(struct bb_rcu_head *head));

/* True where deferred memory is over the bound. */
bool bb_rcu_over_bound_(struct bb_rcu *rcu);
/*
 * To be called by a writer after it deferred: where the bound is exceeded, waits until it is not,
 * or, where the context may not block, sets ctx->throttle so that the outermost epilogue calls this
 * again.
 */
void bb_rcu_throttle_(struct bb_ctx *ctx);

/*
 * Pins: a count of holders who may be outside any read section, and an asynchronous wait for those
 * who hold one now. Two counters, as in SRCU: a drain sends newcomers to the other side, so that
 * they don't starve it. A pin is taken inside a read section (or while another pin of
 * the same object is held, or before the object is published) and is released anywhere.
 */
struct bb_pins_ {
    uint32_t index;               /* (a) 0 or 1: the side newcomers take; flipped by bb-reclaim */
    uint32_t count[2];            /* (a) holders a side */
    struct bb_pin_drain_ *active; /* bb-reclaim only: the drain in progress */
    struct bb_pin_drain_ *queue;  /* bb-reclaim only: drains waiting their turn, newest first */
};

enum bb_drain_on_ { BB_ON_RECLAIM_, BB_ON_COMPLETION_ };

struct bb_pin_drain_ {
    struct bb_rcu_head head;
    struct bb_pins_ *pins;
    struct bb_pin_drain_ *next;
    void (*fn)(struct bb_pin_drain_ *drain);
    enum bb_drain_on_ on;
    bool all;      /* waits for pins taken under pins, too */
    bool turned;   /* the side that newcomers don't take has been found empty */
    uint32_t side; /* then: the one it waits for */
};

/* Takes a pin; returns the side to give back to bb_pins_put_(). Lock-free, one read-modify-write.
 */
unsigned bb_pins_get_(struct bb_pins_ *pins);
/* Releases it; wakes bb-reclaim where a drain waits for this side and this was its last. */
void bb_pins_put_(struct bb_rcu *rcu, struct bb_pins_ *pins, unsigned side);
/* Holders now, both sides: for reports only. */
uint32_t bb_pins_held_(const struct bb_pins_ *pins);
/*
 * Calls fn once every read section that exists now has ended, and every pin that exists now or is
 * taken in one of these sections has been put. Pins taken under a held pin meanwhile may outlive
 * it. `pins` NULL waits for sections alone. Callable anywhere, never blocks. `drain` belongs to
 * rcu/ until fn is called; the pins must live until the last drain that was asked for has called
 * its fn.
 */
void bb_pins_drain_(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                    enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain));
/*
 * The same for pins of an object that can no longer be found: waits until there is no pin at all,
 * those taken under held ones included, so that fn may free the object. While newcomers still find
 * the object, they keep this one from ending.
 */
void bb_pins_drain_all_(struct bb_rcu *rcu, struct bb_pins_ *pins, struct bb_pin_drain_ *drain,
                        enum bb_drain_on_ on, void (*fn)(struct bb_pin_drain_ *drain));

/* Embedded locks. init returns BB_OK or BB_E_SYSTEM. */
int bb_lock_init_(struct bb_lock *lock, const char *name, enum bb_lock_rank rank);
void bb_lock_fini_(struct bb_lock *lock);

/* The heap of the context's engine. */
struct bb_heap *bb_ctx_heap_(const struct bb_ctx *ctx);

/* Publishes `p` for readers in sections: everything written before is seen by who loads it. */
#define bb_publish_(slot, p) bb_store_release((slot), (p))
/* Loads a published pointer inside a section; pairs with bb_publish_. */
#define bb_deref_(slot) bb_load_acquire((slot))

#endif
