/* SPDX-License-Identifier: MIT */
/*
 * The engine object: creation and destruction, contexts, statistics.
 *
 * Destruction checks first and destroys after: with a context, a device, a line, a region, a
 * mapping, a listener or a dirty log's client still there it says which and does nothing. Then its
 * threads are stopped in the order in which they depend on one another (timers, control,
 * completions, reclaim), and the heap shows whether every byte came back.
 */
#include <string.h>
#include <unistd.h>

#include "engine_internal.h"

#define DEFERRED_BYTES_DEFAULT (UINT64_C(64) << 20)
#define STALL_REPORT_DEFAULT_NS UINT64_C(1000000000)

static void add_counts(struct bb_counts_ *sum, const struct bb_counts_ *counts)
{
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)counts;

    _Static_assert(sizeof(*sum) % sizeof(*to) == 0, "counts are 64-bit words");
    for (size_t i = 0; i < sizeof(*sum) / sizeof(*to); i++) {
        to[i] += bb_load_relaxed(&from[i]); /* relaxed: see bb_count_ */
    }
}

/* Detaching: the counts of the context go to the engine's, so that the sum never shrinks. */
static void ctx_fini(struct bb_ctx *ctx)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    struct bb_engine *engine = e->engine;

    /* Nothing that it posted keeps a device after it; where the thread ended in a callback the
     * chain can't be finished any more: what it held is never released. The device's id is what is
     * left of the callback of a fast access. */
    if (e->active || e->chain.epilogue || ctx->device_id != 0) {
        bb_chain_drop_(e);
    } else {
        bb_chain_settle_(e);
    }
    if (e->ring != NULL) { /* NULL: attaching failed there */
        bb_ring_detach_(e);
    }
    bb_iotlb_free_(&e->mem);
    bb_tally_detach_(e);
    pthread_mutex_lock(&engine->gone_mutex);
    add_counts(&engine->gone, &e->counts);
    for (size_t i = 0; i < sizeof(e->counts) / sizeof(uint64_t); i++) {
        bb_store_relaxed(&((uint64_t *)&e->counts)[i], 0); /* under the mutex, as the sum is */
    }
    pthread_mutex_unlock(&engine->gone_mutex);
}

int bb_ctx_attach(struct bb_engine *engine, const char *name, struct bb_ctx **ctx,
                  struct bb_error *err)
{
    struct bb_ctx *made;

    if (engine == NULL || ctx == NULL || name == NULL || name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL, "a context needs an engine, a name and a place");
    }
    int result = bb_ctx_attach_(engine->rcu, name, sizeof(struct bb_ectx_), ctx_fini, &made, err);
    if (result != BB_OK) {
        return result;
    }
    struct bb_ectx_ *e = bb_ectx_(made);
    e->mem.map = engine->map;
    e->engine = engine;
    bb_chain_init_(&e->chain);
    result = bb_ring_attach_(e);
    if (result != BB_OK) {
        (void)bb_ctx_detach_(made, NULL);
        return bb_error_set(err, result, "context '%.31s': out of memory", name);
    }
    *ctx = made;
    return BB_OK;
}

/* The context of a thread that the engine made; embedders see it in hooks, and have no say in it.
 */
static bool is_own(const struct bb_engine *engine, const struct bb_ctx *ctx)
{
    return ctx == engine->control_ctx || ctx == engine->complete_ctx || ctx == engine->timers_ctx;
}

int bb_ctx_detach(struct bb_ctx *ctx, struct bb_error *err)
{
    if (ctx == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no context to detach: it is NULL");
    }
    if (is_own(bb_ectx_(ctx)->engine, ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "context '%s' is the engine's own; bb_engine_destroy() detaches it",
                            ctx->name);
    }
    if (!bb_may_block_(bb_ectx_(ctx))) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "bb_ctx_detach inside a callback, read section, pin or lock");
    }
    return bb_ctx_detach_(ctx, err);
}

struct bb_engine *bb_ctx_engine(const struct bb_ctx *ctx)
{
    return ((const struct bb_ectx_ *)(const void *)ctx)->engine;
}

struct bb_clock *bb_engine_clock(struct bb_engine *engine)
{
    return engine->clock;
}

enum bb_lock_mode bb_engine_lock_mode(const struct bb_engine *engine)
{
    return engine->lock_mode;
}

struct bb_heap_usage bb_engine_memory(struct bb_engine *engine)
{
    return bb_heap_usage(engine->heap);
}

static int timers_attach(void *opaque, struct bb_ctx **ctx, struct bb_error *err)
{
    struct bb_engine *engine = opaque;
    int result = bb_ctx_attach(engine, "bb-timers", ctx, err);

    engine->timers_ctx = result == BB_OK ? *ctx : NULL;
    return result;
}

static void timers_detach(void *opaque, struct bb_ctx *ctx)
{
    (void)opaque;
    (void)bb_ctx_detach_(ctx, NULL);
}

/* Runs `fn` on bb-complete and waits for it: that thread's context is made and dropped there. */
struct complete_job {
    struct bb_rcu_head head;
    struct bb_engine *engine;
    struct bb_waiter_ waiter;
    int result;
    struct bb_error error;
};

static void complete_attach(struct bb_rcu_head *head)
{
    struct complete_job *job = BB_CONTAINER_OF(head, struct complete_job, head);

    job->result =
        bb_ctx_attach(job->engine, "bb-complete", &job->engine->complete_ctx, &job->error);
    bb_waiter_signal_(&job->waiter);
}

static void complete_detach(struct bb_rcu_head *head)
{
    struct complete_job *job = BB_CONTAINER_OF(head, struct complete_job, head);

    job->result = bb_ctx_detach_(job->engine->complete_ctx, &job->error);
    bb_waiter_signal_(&job->waiter);
}

static int on_complete(struct bb_engine *engine, void (*fn)(struct bb_rcu_head *head),
                       struct bb_error *err)
{
    struct complete_job job = {.engine = engine};

    bb_waiter_init_(&job.waiter);
    bb_rcu_complete_now_(engine->rcu, &job.head, fn);
    bb_waiter_wait_(&job.waiter);
    if (job.result != BB_OK && err != NULL) {
        *err = job.error;
    }
    return job.result;
}

static int check_config(const struct bb_engine_config *config, struct bb_error *err)
{
    const struct bb_external_lock *external = &config->external_lock;

    if ((unsigned)config->lock_mode > BB_LOCK_BIG) {
        return bb_error_set(err, BB_E_INVAL, "lock_mode %d is none of BB_LOCK_FREE, _DEVICE, _BIG",
                            (int)config->lock_mode);
    }
    if ((unsigned)config->clock_mode > BB_CLOCK_MANUAL) {
        return bb_error_set(err, BB_E_INVAL, "clock_mode %d is neither host nor manual",
                            (int)config->clock_mode);
    }
    if ((external->lock == NULL) != (external->unlock == NULL) ||
        (external->lock == NULL) != (external->held == NULL)) {
        return bb_error_set(err, BB_E_INVAL,
                            "external_lock needs all of lock, unlock and held, or none");
    }
    if (config->chain_effects_max > BB_CHAIN_EFFECTS_MAX_) {
        return bb_error_set(err, BB_E_RANGE, "chain_effects_max %u is over %d",
                            config->chain_effects_max, BB_CHAIN_EFFECTS_MAX_);
    }
    return BB_OK;
}

static uint32_t slow_bits(enum bb_lock_mode mode)
{
    return mode == BB_LOCK_BIG ? BB_SLOW_LOCK_BIG_
                               : (mode == BB_LOCK_DEVICE ? BB_SLOW_LOCK_DEVICE_ : 0);
}

/* What files of their own keep for the engine; each needs its heap alone. */
static int parts_create(struct bb_engine *engine, struct bb_error *err)
{
    int result = bb_tallies_create_(engine);

    if (result != BB_OK) {
        goto no_tallies;
    }
    result = bb_coalescer_create_(engine);
    if (result != BB_OK) {
        goto no_coalescer;
    }
    result = bb_bounces_create_(engine);
    if (result != BB_OK) {
        goto no_bounces;
    }
    return BB_OK;

no_bounces:
    bb_coalescer_destroy_(engine);
no_coalescer:
    bb_tallies_destroy_(engine);
no_tallies:
    return bb_error_set(err, result, "engine: out of memory");
}

static void parts_destroy(struct bb_engine *engine)
{
    bb_bounces_destroy_(engine);
    bb_coalescer_destroy_(engine);
    bb_tallies_destroy_(engine);
}

int bb_engine_create(const struct bb_engine_config *config, struct bb_engine **engine,
                     struct bb_error *err)
{
    static const struct bb_engine_config defaults = {0};
    struct bb_heap *heap;
    struct bb_engine *made;
    int result;

    if (config == NULL) {
        config = &defaults;
    }
    if (engine == NULL) {
        return bb_error_set(err, BB_E_INVAL, "bb_engine_create needs a place for the engine");
    }
    result = check_config(config, err);
    if (result != BB_OK) {
        return result;
    }
    result = bb_heap_create(config->allocator, &heap, err);
    if (result != BB_OK) {
        return result;
    }
    made = bb_heap_alloc_aligned(heap, sizeof(*made), BB_CACHE_LINE_BYTES);
    if (made == NULL) {
        result = bb_error_set(err, BB_E_NOMEM, "engine: out of memory");
        goto no_engine;
    }
    made->heap = heap;
    made->lock_mode = config->lock_mode;
    made->chain_effects_max =
        config->chain_effects_max != 0 ? config->chain_effects_max : BB_CHAIN_EFFECTS_DEFAULT_;
    made->msi_sink = config->msi_sink;
    made->external = config->external_lock;
    strncpy(made->name, config->name != NULL ? config->name : "busbar", sizeof(made->name) - 1);
    pthread_mutex_init(&made->big, NULL);
    pthread_mutex_init(&made->gone_mutex, NULL);
    result = bb_lock_init_(&made->table, "engine table", BB_RANK_ENGINE);
    if (result != BB_OK) {
        result = bb_error_set(err, result, "engine: no lock could be made");
        goto no_lock;
    }
    struct bb_rcu_config_ rcu = {
        .heap = heap,
        .deferred_bytes_max =
            config->deferred_bytes_max != 0 ? config->deferred_bytes_max : DEFERRED_BYTES_DEFAULT,
        .stall_ns =
            config->stall_report_ns != 0 ? config->stall_report_ns : STALL_REPORT_DEFAULT_NS,
        .stall = config->stall,
        .stall_opaque = config->stall_opaque,
    };
    result = bb_rcu_create_(&rcu, &made->rcu, err);
    if (result != BB_OK) {
        goto no_rcu;
    }
    result = bb_map_create_(made->rcu, heap, &made->map, err);
    if (result != BB_OK) {
        goto no_map;
    }
    made->map->gate = slow_bits(config->lock_mode) | (config->count_accesses ? BB_SLOW_COUNT_ : 0);
    made->map->translate = bb_translate_;
    result = parts_create(made, err);
    if (result != BB_OK) {
        goto no_parts;
    }
    result = bb_clock_create_(heap, config->clock_mode, &made->clock, err);
    if (result != BB_OK) {
        goto no_clock;
    }
    struct bb_timer_queue_config_ timers = {
        .heap = heap,
        .rcu = made->rcu,
        .clock = made->clock,
        .attach = timers_attach,
        .detach = timers_detach,
        .opaque = made,
    };
    result = bb_timer_queue_create_(&timers, &made->timers, err);
    if (result != BB_OK) {
        goto no_timers;
    }
    result = bb_control_start_(made, err);
    if (result != BB_OK) {
        goto no_control;
    }
    result = on_complete(made, complete_attach, err);
    if (result != BB_OK) {
        goto no_complete;
    }
    if (made->control_ctx->fences) {
        made->map->gate |= BB_SLOW_FENCES_; /* nobody but us knows the engine yet */
    }
    bb_clock_start(made->clock);
    *engine = made;
    return BB_OK;

no_complete:
    bb_control_stop_(made);
no_control:
    bb_timer_queue_destroy_(made->timers);
no_timers:
    bb_clock_destroy_(made->clock);
no_clock:
    parts_destroy(made);
no_parts:
    bb_map_destroy_(made->map);
no_map:
    (void)bb_rcu_destroy_(made->rcu, NULL);
no_rcu:
    bb_lock_fini_(&made->table);
no_lock:
    bb_heap_free(heap, made, sizeof(*made));
no_engine:
    (void)bb_heap_destroy(heap, NULL);
    return result;
}

struct ctx_search {
    const struct bb_engine *engine;
    int tid;                     /* the caller's */
    char own[BB_CTX_NAME_BYTES]; /* the caller's context, where it is one of the engine's own */
    char name[BB_CTX_NAME_BYTES];
};

static void find_embedders_ctx(struct bb_ctx *ctx, void *arg)
{
    struct ctx_search *search = arg;

    if (!is_own(search->engine, ctx)) {
        memcpy(search->name, ctx->name, sizeof(search->name));
    } else if (ctx->tid == search->tid) {
        memcpy(search->own, ctx->name, sizeof(search->own));
    }
}

/* The same for what is mapped, what maps it, and who watches. */
static int check_map_empty(struct bb_engine *engine, struct bb_error *err)
{
    struct bb_map *map = engine->map;
    size_t mappings = bb_mappings_left_(engine);
    char name[BB_CTX_NAME_BYTES] = "";
    enum bb_kind kind = BB_KIND_CONTAINER;

    /* Before regions: the removal of one may have been asked for and be waiting for these. */
    if (mappings > 0) {
        return bb_error_set(err, BB_E_STATE,
                            "mappings of guest memory are still there: %zu; bb_dma_unmap() them "
                            "first",
                            mappings);
    }
    /* Not by bb_lock_acquire(), as for the table. */
    pthread_mutex_lock(&map->lock.mutex);
    if (map->all != NULL) {
        memcpy(name, map->all->name, sizeof(name));
        kind = (enum bb_kind)map->all->kind;
    }
    pthread_mutex_unlock(&map->lock.mutex);
    if (name[0] != '\0') {
        return bb_error_set(err, BB_E_STATE,
                            "%s region %s is still there; bb_region_remove_wait() it first",
                            bb_kind_name(kind), name);
    }
    if (bb_listeners_left_(map, name)) {
        return bb_error_set(err, BB_E_STATE,
                            "listener %s is still there; bb_listener_remove() it first", name);
    }
    if (bb_dirty_left_(map, name)) {
        return bb_error_set(err, BB_E_STATE,
                            "client %s of dirty logs is still there; bb_dirty_client_destroy() it "
                            "first",
                            name);
    }
    return BB_OK;
}

/* What still stands in the way of destruction, if anything. Needs no context. */
static int check_empty(struct bb_engine *engine, struct bb_error *err)
{
    struct ctx_search search = {.engine = engine, .tid = gettid()};

    bb_rcu_each_ctx_(engine->rcu, find_embedders_ctx, &search);
    if (search.own[0] != '\0') {
        return bb_error_set(err, BB_E_CONTEXT,
                            "bb_engine_destroy would wait for %s, the thread that it was called "
                            "on; call it on a thread of your own",
                            search.own);
    }
    if (search.name[0] != '\0') {
        return bb_error_set(err, BB_E_STATE,
                            "thread %s is still attached; bb_ctx_detach() it first", search.name);
    }
    /* Not by bb_lock_acquire(): no context is left but the engine's own. bb-control may be ending a
     * removal. */
    char name[BB_CTX_NAME_BYTES] = "";
    bool removing = false;
    pthread_mutex_lock(&engine->table.mutex);
    if (engine->devices != NULL) {
        memcpy(name, engine->devices->name, sizeof(name));
        removing = bb_load_relaxed(&engine->devices->removing) != 0;
    }
    pthread_mutex_unlock(&engine->table.mutex);
    if (name[0] != '\0') {
        return bb_error_set(err, BB_E_STATE, "device %s is still there; remove it first%s", name,
                            removing ? " (its removal has begun: wait for its completion)" : "");
    }
    if (engine->lines != NULL) {
        return bb_error_set(err, BB_E_STATE, "line %s is still there; bb_line_destroy() it first",
                            engine->lines->name);
    }
    return check_map_empty(engine, err);
}

int bb_engine_destroy(struct bb_engine *engine, struct bb_error *err)
{
    if (engine == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no engine to destroy: it is NULL");
    }
    struct bb_heap *heap = engine->heap;
    int result = check_empty(engine, err);

    if (result != BB_OK) {
        return result;
    }
    bb_timer_queue_destroy_(engine->timers);
    engine->timers_ctx = NULL;
    bb_control_stop_(engine);
    engine->control_ctx = NULL;
    (void)on_complete(engine, complete_detach, NULL);
    bb_map_destroy_(engine->map);
    result = bb_rcu_destroy_(engine->rcu, err);
    if (result != BB_OK) {
        return result;
    }
    parts_destroy(engine); /* deferred work, all done now, may have needed them */
    bb_clock_destroy_(engine->clock);
    bb_lock_fini_(&engine->table);
    pthread_mutex_destroy(&engine->big);
    pthread_mutex_destroy(&engine->gone_mutex);
    pthread_mutex_destroy(&engine->control);
    pthread_cond_destroy(&engine->control_wake);
    pthread_cond_destroy(&engine->changed);
    bb_heap_free(heap, engine, sizeof(*engine));
    return bb_heap_destroy(heap, err);
}

static void sum_counts(struct bb_ctx *ctx, void *arg)
{
    add_counts(arg, &bb_ectx_(ctx)->counts);
}

struct bb_engine_stats bb_engine_stats(struct bb_ctx *ctx)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    struct bb_counts_ sum;

    pthread_mutex_lock(&engine->gone_mutex);
    sum = engine->gone;
    bb_rcu_each_ctx_(engine->rcu, sum_counts, &sum);
    pthread_mutex_unlock(&engine->gone_mutex);
    return (struct bb_engine_stats){
        .unassigned_reads = sum.unassigned_reads,
        .unassigned_writes = sum.unassigned_writes,
        .refused = sum.refused,
        .reentrant = sum.reentrant,
        .nested_refused = sum.nested_refused,
        .effects_posted = sum.effects_posted,
        .effects_refused = sum.effects_refused,
        .msi_sent = sum.msi_sent,
        .msi_dropped = sum.msi_dropped,
        .expiries = sum.expiries,
        .expiries_inboxed = sum.expiries_inboxed,
        .gate_waits = sum.gate_waits,
        .coalesced = sum.coalesced,
        .doorbells_rung = sum.doorbells_rung,
        .doorbells_failed = sum.doorbells_failed,
    };
}
