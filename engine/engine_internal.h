/* SPDX-License-Identifier: MIT */
/*
 * The engine's own structures, shared by its files.
 *
 * A chain is an outermost access, an expiry or a bb_post() made outside any callback, and all it
 * sets off on its context. What it may do at once, and what is posted, is in chain.c. The fields of
 * a context belong to its thread; those marked (a) are read by others and accessed atomically.
 */
#ifndef BUSBAR_ENGINE_INTERNAL_H
#define BUSBAR_ENGINE_INTERNAL_H

#include <pthread.h>

#include "../memory/memory_core.h"
#include "../timers/timers_core.h"
#include "device.h"

enum {
    BB_CHAIN_QUEUE_ = 64,    /* effects of one chain outstanding at once */
    BB_CHAIN_RECORDS_ = 512, /* ancestry records of one chain */
    BB_CHAIN_NO_RECORD_ = 0xffff,
    BB_BULK_FEW_ = 48, /* a posted DMA write of so many bytes needs no memory of the heap's */
    BB_NEST_MAX_ = 16, /* callbacks active at once on one context */
    BB_CHAIN_EFFECTS_DEFAULT_ = 256,
    BB_CHAIN_EFFECTS_MAX_ = 1024,
    BB_DEVICES_MAX_ = 65535,
    BB_INBOX_ROUNDS_ = 4,    /* re-checks after an unlock before bb-control takes over */
    BB_INBOX_LOCKS_MAX_ = 4, /* locks held with which a sink's lock is still tried for */
};

enum bb_effect_kind_ {
    BB_EFFECT_WRITE_, /* a write to `space` */
    BB_EFFECT_BULK_,  /* a write by DMA: many bytes are in memory of the heap's that it owns */
    BB_EFFECT_MSI_,   /* address, data */
    BB_EFFECT_RAISE_, /* look at `source` again */
    BB_EFFECT_PULSE_, /* one edge on `source` */
    BB_EFFECT_CALL_,  /* bb_post() */
};

struct bb_effect_ {
    uint8_t kind;
    uint8_t size;
    uint8_t pin_side;
    uint16_t record;          /* ancestry of the callback that posted it */
    uint16_t next;            /* index of the next effect to run; BB_CHAIN_QUEUE_: none */
    struct bb_device *device; /* pinned until it has run; NULL: nobody to pin */
    union {
        struct {
            struct bb_space *space;
            bb_gpa_t gpa;
            union {
                uint64_t value;
                uint8_t bytes[BB_ACCESS_BYTES_MAX_]; /* in order of address */
            };
            struct bb_attrs attrs;
        } write;
        struct {
            struct bb_space *space;
            bb_gpa_t gpa;
            uint8_t *bytes; /* the heap's; NULL: those in `few` */
            uint32_t length;
            struct bb_attrs attrs;
            uint8_t few[BB_BULK_FEW_];
        } bulk;
        struct {
            uint64_t address;
            uint32_t data;
        } msi;
        struct {
            struct bb_source *source;
            uint64_t sequence;
        } line;
        struct {
            void (*fn)(struct bb_ctx *ctx, void *opaque, uint64_t argument);
            void *opaque;
            uint64_t argument;
        } call;
    };
};

/* Who is in the chain: a device, and the record of what set it off. */
struct bb_record_ {
    uint32_t device_id;
    uint16_t parent;
};

struct bb_chain_ {
    struct bb_device *device; /* whose callback runs; stale while callback_depth is 0 */
    uint16_t record;          /* its record; 0 for an outermost access */
    uint16_t record_count;    /* records in use; 1 between chains */
    uint16_t head;            /* first effect to run; BB_CHAIN_QUEUE_: none */
    uint16_t insert;     /* effect behind which the next one goes; BB_CHAIN_QUEUE_: at the head */
    uint16_t free;       /* list of unused effects */
    uint16_t ordered;    /* order-keeping effects posted since the running one began */
    uint32_t spent;      /* effects posted in the chain's life */
    uint32_t bulk_bytes; /* of BULK effects outstanding, at most BB_DMA_POSTED_MAX */
    bool epilogue;       /* effects are running */
    struct bb_effect_ effect[BB_CHAIN_QUEUE_];
    struct bb_record_ records[BB_CHAIN_RECORDS_];
};

/* Counters of one context: written by its thread, read by bb_engine_stats(). (a) */
struct bb_counts_ {
    uint64_t unassigned_reads;
    uint64_t unassigned_writes;
    uint64_t refused;
    uint64_t reentrant;
    uint64_t nested_refused;
    uint64_t effects_posted;
    uint64_t effects_refused;
    uint64_t msi_sent;
    uint64_t msi_dropped;
    uint64_t expiries;
    uint64_t expiries_inboxed;
    uint64_t gate_waits;
    uint64_t coalesced;
    uint64_t doorbells_rung;
    uint64_t doorbells_failed;
};

struct bb_ectx_ {
    struct bb_mem_ctx_ mem;
    struct bb_engine *engine; /* immutable */
    /* Of the fast read whose callback runs: kept here, and not in a register across the call. */
    const struct bb_space *fast_space;
    uint32_t busy;           /* (a) the chain is or may be outside a section: pause waits for it */
    bool big;                /* this chain has the big lock */
    bool active;             /* a chain has begun that will run bb_chain_finish_() */
    struct bb_attrs attrs;   /* of the access whose callback runs; all zero on the fast path */
    struct bb_ring_ *ring;   /* coalesced writes: coalesce.c; made when the context is attached */
    struct bb_tally_ *tally; /* counts by region: counters.c; NULL until counting is first on */
    struct bb_counts_ counts;
    struct bb_chain_ chain;
};

/* Bits of bb_map.gate; 0: accesses need nothing but their region's class. Written by pause. */
enum {
    BB_SLOW_GATE_ = 1,
    BB_SLOW_LOCK_DEVICE_ = 2,
    BB_SLOW_LOCK_BIG_ = 4,
    BB_SLOW_FENCES_ = 8, /* this host has no membarrier: sections need fences */
    BB_SLOW_COUNT_ = 16, /* accesses are counted by region */
};

enum bb_pause_state_ { BB_OPEN_, BB_CLOSING_, BB_CLOSED_ };

struct bb_pause_request_ {
    struct bb_pause_request_ *next;
    bb_ns_t deadline_ns; /* host monotonic; UINT64_MAX: none */
    void (*done)(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err);
    void *opaque;
    bool waited; /* a thread waits for `finished`; it owns the request */
    bool finished;
    int result;
    struct bb_error error;
    struct bb_engine *engine;
    struct bb_rcu_head head;
};

struct bb_engine {
    uint32_t chain_effects_max; /* immutable from here on */
    enum bb_lock_mode lock_mode;
    struct bb_map *map;
    struct bb_rcu *rcu;
    struct bb_heap *heap;
    struct bb_clock *clock;
    struct bb_timer_queue *timers;
    struct bb_msi_sink msi_sink;
    struct bb_external_lock external;
    char name[BB_CTX_NAME_BYTES];

    struct bb_coalescer_ *coalescer; /* coalesce.c */
    struct bb_bounces_ *bounces;     /* dma_map.c */
    struct bb_tallies_ *tallies;     /* counters.c: of contexts that are gone */

    pthread_mutex_t big __attribute__((aligned(BB_CACHE_LINE_BYTES))); /* BB_LOCK_BIG */

    /* Objects; guarded by `table` (rank ENGINE). */
    struct bb_lock table;
    struct bb_device *devices;
    struct bb_line *lines;
    uint32_t device_count;
    uint32_t last_device_id;
    struct bb_counts_ gone; /* counts of contexts that detached; guarded by `gone_mutex` */
    pthread_mutex_t gone_mutex;

    /* bb-control and pause; guarded by `control` except where marked. */
    pthread_mutex_t control;
    pthread_cond_t control_wake; /* work for bb-control */
    pthread_cond_t changed;      /* gate opened, a request finished, bb-control ready or gone */
    pthread_t control_thread;
    struct bb_ctx *control_ctx;  /* bb-control's own */
    struct bb_ctx *complete_ctx; /* bb-complete's own */
    struct bb_ctx *timers_ctx;   /* bb-timers' own; NULL with a manual clock */
    bool control_ready;
    bool control_working; /* bb-control is at a service or a retirement, without the mutex */
    bool control_stop;
    int control_result;
    struct bb_error control_error;
    enum bb_pause_state_ pause_state;
    uint32_t pause_count;        /* pauses not yet resumed */
    uint64_t pause_ticket;       /* counts closings, to tell an old grace period from a new one */
    uint64_t pause_ticket_asked; /* the closing that the running grace period is for */
    bool pause_grace;            /* a grace period has passed since the last closing */
    bool clock_was_running;
    struct bb_pause_request_ *requests;
    struct bb_pin_drain_ pause_drain; /* the grace period of the closing; one at a time */
    bool pause_drain_busy;
    struct bb_device *service; /* devices whose inbox bb-control shall look at */
    struct bb_device *retired; /* devices drained, waiting for the second half of removal */
    bool tell;                 /* bb-control shall tell listeners what is untold */
};

struct bb_source {
    struct bb_line *line;     /* immutable; NULL: goes nowhere */
    uint32_t bit;             /* immutable: mask in the line's word */
    uint32_t level;           /* (a) what it drives, for sources that go nowhere */
    uint64_t sequence;        /* (a) sets so far; tells a posted raise that it is out of date */
    struct bb_device *device; /* immutable */
    struct bb_source *next;   /* guarded by the engine's table lock */
};

struct bb_line {
    uint64_t word; /* (a) asserting sources in the low half, rises in the high half */
    struct bb_line_sink_box_ *sink; /* (a) published; NULL: connected to nothing */
    struct bb_engine *engine;
    uint32_t source_bits; /* guarded by the table lock: bits given out */
    struct bb_line *next; /* likewise */
    struct bb_rcu_head head;
    char name[BB_CTX_NAME_BYTES];
};

struct bb_line_sink_box_ {
    struct bb_line_sink sink;
    struct bb_rcu_head head;
    struct bb_engine *engine;
};

struct bb_waiter_ {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
};

struct bb_device_timer {
    struct bb_timer_ timer;
    struct bb_device *device;             /* immutable */
    struct bb_device_timer_config config; /* immutable */
    struct bb_device_timer *next;         /* guarded by the table lock: the device's list */
    struct bb_device_timer *inbox_next;   /* the pusher's, then the drainer's */
    bb_ns_t inbox_deadline_ns;            /* likewise */
    uint32_t inboxed;                     /* (a) in the device's inbox */
};

struct bb_device {
    struct bb_lock lock; /* rank DEVICE */
    /* The inbox: pushed to by any thread, emptied under `lock`. */
    uint64_t inbox_pins;                  /* (a) */
    struct bb_device_timer *inbox_timers; /* (a) a stack */
    struct bb_pins_ pins;
    uint32_t coalesced;       /* its regions' coalesced ranges; under the map's lock */
    uint32_t parts;           /* (a) waits to come before it may be freed: removal.c */
    uint32_t removing;        /* (a) set once, under the table lock */
    struct bb_engine *engine; /* immutable from here on */
    const struct bb_device_ops *ops;
    void *opaque;
    uint32_t id;
    char name[BB_CTX_NAME_BYTES];
    struct bb_lock baseline; /* BB_LOCK_DEVICE takes it for LOCKFREE regions */
    /* Guarded by the engine's table lock. */
    struct bb_device *next;
    struct bb_region **regions;
    size_t region_count;
    size_t region_room;
    size_t adopted; /* of them, those with pins of their own */
    struct bb_device_timer *timers;
    struct bb_source *sources;
    /* Guarded by the engine's control mutex. */
    struct bb_device *service_next;
    bool service_queued;
    bool cancel_wanted;
    unsigned service_pin;
    struct bb_device *retired_next;
    /* The remover's. */
    struct bb_pin_drain_ drain;
    struct bb_adopted_drain_ *adopted_drains; /* one for each region adopted */
    size_t adopted_drain_count;
    struct bb_rcu_head weight;
    struct bb_rcu_head head;
    void (*done)(void *opaque);
    void *done_opaque;
    struct bb_waiter_ *waiter;
};

static inline struct bb_ectx_ *bb_ectx_(struct bb_ctx *ctx)
{
    return (struct bb_ectx_ *)(void *)ctx;
}

/* A counter of this context: one writer, so load and store need no read-modify-write. Relaxed:
 * readers want no order, only whole values. */
#define bb_count_(e, field)                                                                        \
    bb_store_relaxed(&(e)->counts.field, bb_load_relaxed(&(e)->counts.field) + 1)

/* chain.c */
void bb_chain_root_(struct bb_ectx_ *e);
void bb_chain_init_(struct bb_chain_ *chain);
bool bb_chain_has_(const struct bb_chain_ *chain, uint16_t record, uint32_t device_id);
uint16_t bb_chain_record_(struct bb_ectx_ *e, uint32_t device_id, uint16_t parent);
struct bb_effect_ *bb_chain_post_(struct bb_ectx_ *e, struct bb_device *device, bool ordered,
                                  enum bb_effect_kind_ kind);
void bb_chain_finish_(struct bb_ectx_ *e);
/* Between two parts of one outermost access: runs what the part posted; the chain goes on. */
void bb_chain_step_(struct bb_ectx_ *e);
void bb_chain_settle_(struct bb_ectx_ *e);
/* In a callback: whether a callback of `region` may run at once (rule 1), leaving aside whether the
 * chain is in its device already. */
bool bb_chain_at_once_(const struct bb_ectx_ *e, const struct bb_region *region);
/* Lays what the chain has posted so far over what a nested access has read of memory. `attrs` NULL:
 * the address leads to memory untranslated, so that writes of any requester are meant; else those
 * of that requester alone. */
void bb_chain_forward_bytes_(const struct bb_ectx_ *e, const struct bb_space *space, bb_gpa_t gpa,
                             const struct bb_attrs *attrs, uint8_t *bytes, uint64_t length);
bool bb_may_block_(const struct bb_ectx_ *e);

/* A callback about to run on this context, and what to put back after it. */
struct bb_frame_ {
    struct bb_device *device;
    uint32_t device_id;
    uint16_t record;
    struct bb_attrs
        attrs; /* all zero within, until the access that the callback serves sets them */
};
struct bb_frame_ bb_frame_enter_(struct bb_ectx_ *e, struct bb_device *device, uint32_t device_id,
                                 uint16_t record);
void bb_frame_leave_(struct bb_ectx_ *e, struct bb_frame_ frame);

/* The same for work found in an inbox, which is no consequence of the chain that found it. */
struct bb_inbox_frame_ {
    struct bb_frame_ frame;
    uint32_t spent;
    uint16_t record_count;
    bool pending;
};
struct bb_inbox_frame_ bb_inbox_frame_enter_(struct bb_ectx_ *e, struct bb_device *device);
void bb_inbox_frame_leave_(struct bb_ectx_ *e, struct bb_inbox_frame_ frame);
/* A chain that an embedder's thread begins by setting a line, sending a message or taking a lock.
 */
bool bb_event_begin_(struct bb_ectx_ *e);
void bb_event_end_(struct bb_ectx_ *e, bool begun);
void bb_chain_drop_(struct bb_ectx_ *e);

/* dispatch.c: one write of an effect, by the rules of an outermost access of a running chain. */
int bb_access_effect_(struct bb_ectx_ *e, const struct bb_effect_ *effect);
/*
 * An access of 1 to 64 bytes, as pieces: nested where a callback runs, else an outermost access of
 * a chain that has begun (bb_gate_enter_()) and that the caller finishes. `bytes` as for
 * bb_access_read(). Counted.
 */
int bb_access_pieces_(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                      unsigned size, bool write, struct bb_attrs attrs);

/* coalesce.c */
int bb_coalescer_create_(struct bb_engine *engine);
void bb_coalescer_destroy_(struct bb_engine *engine);
int bb_ring_attach_(struct bb_ectx_ *e);
void bb_ring_detach_(struct bb_ectx_ *e); /* makes what is in it; in a context's fini */
/* In a section: rings the doorbell that such a write of the leaf's region has. False where it has
 * none. */
bool bb_doorbell_ring_(struct bb_ectx_ *e, const struct bb_flat_ *leaf, uint64_t offset,
                       unsigned size, uint64_t value);
/* In a section, outermost: takes a write that falls in a coalesced range. False where it does not,
 * the ring is full or being emptied, or another context has writes left: then it is to be made, as
 * any access, once what is left has been. */
bool bb_coalesce_take_(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa,
                       const struct bb_flat_ *leaf, uint64_t offset, unsigned size, uint64_t value);
/* True where a write is or may be left unmade by any context. False: every write that was taken
 * before has been made, with its effects, and is seen. */
bool bb_coalesce_pending_(const struct bb_engine *engine);
/* Makes them all, or waits for who does. In a chain that has begun, outermost, with nothing held;
 * inside the making of one it does nothing. What is taken meanwhile is left: once is enough. */
void bb_coalesce_drain_(struct bb_ectx_ *e);
/* For bb-control, with nothing held and no chain begun: makes them unless somebody is at it. */
void bb_coalesce_try_(struct bb_ectx_ *e);

/* counters.c. What counting needs of a region, which may be gone by then. */
struct bb_counted_ {
    uint64_t serial; /* never 0 */
    uint32_t index;
};
static inline struct bb_counted_ bb_counted_of_(const struct bb_region *region)
{
    return (struct bb_counted_){.serial = region->serial, .index = region->count_index};
}
void bb_tally_(struct bb_ectx_ *e, struct bb_counted_ region, bool write, int result);
void bb_tally_detach_(struct bb_ectx_ *e);
int bb_tallies_create_(struct bb_engine *engine);
void bb_tallies_destroy_(struct bb_engine *engine);

static inline const uint8_t *bb_bulk_bytes_(const struct bb_effect_ *effect)
{
    return effect->bulk.bytes != NULL ? effect->bulk.bytes : effect->bulk.few;
}

/* dma.c: makes a posted bulk write, by the rules of an outermost access of a running chain. Its
 * bytes are freed by chain.c, whether it was made or dropped. */
void bb_dma_effect_(struct bb_ectx_ *e, const struct bb_effect_ *effect);
/* translate.c: for struct bb_map. */
int bb_translate_(struct bb_ctx *ctx, const struct bb_region *region, bb_gpa_t iova,
                  enum bb_iommu_access access, struct bb_attrs attrs, struct bb_iommu_entry *entry);

/* dma_map.c */
int bb_bounces_create_(struct bb_engine *engine);
void bb_bounces_destroy_(struct bb_engine *engine);
/* The mappings not yet undone, for bb_engine_destroy(). */
size_t bb_mappings_left_(const struct bb_engine *engine);

/* pause.c */
bool bb_gate_enter_(struct bb_ectx_ *e);
void bb_gate_leave_(struct bb_ectx_ *e);
void bb_big_lock_(struct bb_ectx_ *e);
void bb_big_unlock_(struct bb_ectx_ *e);
void bb_busy_clear_(struct bb_ectx_ *e);
bb_ns_t bb_pause_step_locked_(struct bb_engine *engine, struct bb_ctx *ctx);

/* control.c */
void bb_control_wait_locked_(struct bb_engine *engine, pthread_cond_t *cond, bb_ns_t until_ns);
int bb_control_start_(struct bb_engine *engine, struct bb_error *err);
void bb_control_stop_(struct bb_engine *engine);
void bb_control_service_(struct bb_device *device);
void bb_control_cancel_(struct bb_device *device);
void bb_control_retire_(struct bb_device *device);
void bb_control_tell_(struct bb_engine *engine);

/* device.c */
void bb_device_drain_inbox_(struct bb_ctx *ctx, struct bb_device *device);
void bb_device_try_drain_(struct bb_ctx *ctx, struct bb_device *device);
bool bb_device_inbox_empty_(const struct bb_device *device);
const char *bb_device_name_of_(struct bb_ctx *ctx, struct bb_engine *engine, uint32_t id,
                               char *name, size_t bytes);

/* removal.c */
void bb_device_retire_(struct bb_ctx *ctx, struct bb_device *device);

/* line.c */
void bb_source_apply_(struct bb_ctx *ctx, struct bb_source *source, bool level);
void bb_source_effect_(struct bb_ctx *ctx, const struct bb_effect_ *effect);
void bb_lines_disconnect_(struct bb_ctx *ctx, struct bb_device *device);

/* device_timer.c */
void bb_device_timer_run_(struct bb_ctx *ctx, struct bb_device_timer *timer, bb_ns_t deadline_ns);

void bb_waiter_init_(struct bb_waiter_ *waiter);
void bb_waiter_signal_(struct bb_waiter_ *waiter);
void bb_waiter_wait_(struct bb_waiter_ *waiter);

#endif
