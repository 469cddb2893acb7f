/* SPDX-License-Identifier: MIT */
/*
 * Listeners: telling who mirrors a flat view what each commit does to it.
 *
 * What there is to tell of a commit, struct bb_told_, is made by news.c.
 *
 * Two locks. The listeners' own is held by whoever calls hooks, and by a commit that may call them
 * from before it takes the map's lock until it has told: that keeps tellings in the order of
 * commits. The map's guards the queue of what commits inside callbacks, which can't take the
 * listeners' lock, have left to be told.
 *
 * Invariants:
 *  1. The list of listeners changes under both locks; either is enough to walk it.
 *  2. News is appended to the queue under the map's lock, by the commit that it is of. A commit
 * that may tell empties the queue first, under both locks, so that what was published before it is
 *     told before it; and what it tells itself has been told when the next one takes the locks.
 *  3. Who takes news off the queue holds the listeners' lock until it is told. So whoever has taken
 *     that lock and found the queue empty knows that all commits before are told.
 *  4. Queued news pins the region of every range in it. The pin is taken under the map's lock, and
 *     a removal asks for its drain after a commit of its own, under that lock; so no removal misses
 *     it, and the region stays until it has been told of.
 *  5. `log_told` of a region says what listeners know of its logging; it changes under both locks.
 *     Every range of memory is told log_start once while it is known and logged, and log_stop once
 *     after it.
 */
#include "listener_internal.h"

struct bb_range bb_piece_range_(struct bb_space *space, const struct bb_piece_ *piece)
{
    const struct bb_region *region = piece->region;

    return (struct bb_range){
        .space = space,
        .first = piece->first,
        .last = piece->last,
        .region = piece->region,
        .offset = piece->offset,
        .kind = (enum bb_kind)region->kind,
        .read_only = piece->read_only,
        .memory = piece->memory,
        .host = piece->memory ? region->host + piece->offset : NULL,
    };
}

/* Telling: all of it under the listeners' lock. */

static const struct bb_news_ *news_of(const struct bb_told_ *told, const struct bb_space *space)
{
    for (size_t i = 0; i < told->count; i++) {
        if (told->news[i].change.space == space) {
            return &told->news[i];
        }
    }
    return NULL;
}

static void tell_begin(const struct bb_listener *l, const struct bb_change *change)
{
    if (l->ops->begin != NULL) {
        l->ops->begin(l->opaque, change);
    }
}

static void tell_commit(const struct bb_listener *l)
{
    if (l->ops->commit != NULL) {
        l->ops->commit(l->opaque);
    }
}

/* What a log is about: the memory of a ROM device only where it is shown. */
static bool is_logged(const struct bb_piece_ *piece)
{
    return piece->memory && piece->region->log_told;
}

static void tell_range_removed(struct bb_ctx *ctx, const struct bb_listener *l,
                               const struct bb_piece_ *piece)
{
    struct bb_range range = bb_piece_range_(l->space, piece);

    if (is_logged(piece)) {
        if (l->ops->log_sync != NULL) {
            l->ops->log_sync(ctx, l->opaque, &range);
        }
        if (l->ops->log_stop != NULL) {
            l->ops->log_stop(l->opaque, &range);
        }
    }
    if (l->ops->removed != NULL) {
        l->ops->removed(l->opaque, &range);
    }
}

static void tell_range_added(const struct bb_listener *l, const struct bb_piece_ *piece)
{
    struct bb_range range = bb_piece_range_(l->space, piece);

    if (l->ops->added != NULL) {
        l->ops->added(l->opaque, &range);
    }
    if (is_logged(piece) && l->ops->log_start != NULL) {
        l->ops->log_start(l->opaque, &range);
    }
}

static void tell_removed(struct bb_ctx *ctx, const struct bb_listener *l,
                         const struct bb_event_ *event)
{
    switch (event->kind) {
    case BB_EVENT_DOORBELL_:
        if (l->ops->doorbell_removed != NULL) {
            l->ops->doorbell_removed(l->opaque, l->space, event->bell.at, &event->bell.doorbell);
        }
        break;
    case BB_EVENT_COALESCED_:
        if (l->ops->coalesced_removed != NULL) {
            l->ops->coalesced_removed(l->opaque, l->space, event->coalesced.first,
                                      event->coalesced.last);
        }
        break;
    default:
        tell_range_removed(ctx, l, &event->piece);
        break;
    }
}

static void tell_added(const struct bb_listener *l, const struct bb_event_ *event)
{
    switch (event->kind) {
    case BB_EVENT_DOORBELL_:
        if (l->ops->doorbell_added != NULL) {
            l->ops->doorbell_added(l->opaque, l->space, event->bell.at, &event->bell.doorbell);
        }
        break;
    case BB_EVENT_COALESCED_:
        if (l->ops->coalesced_added != NULL) {
            l->ops->coalesced_added(l->opaque, l->space, event->coalesced.first,
                                    event->coalesced.last);
        }
        break;
    case BB_EVENT_UNCHANGED_:
        if (l->ops->unchanged != NULL) {
            struct bb_range range = bb_piece_range_(l->space, &event->piece);
            l->ops->unchanged(l->opaque, &range);
        }
        break;
    default:
        tell_range_added(l, &event->piece);
        break;
    }
}

static void tell_before(struct bb_ctx *ctx, const struct bb_listeners_ *all,
                        const struct bb_told_ *told)
{
    for (const struct bb_listener *l = all->first; l != NULL; l = l->next) {
        const struct bb_news_ *news = news_of(told, l->space);
        if (news != NULL) {
            tell_begin(l, &news->change);
        }
    }
    for (const struct bb_listener *l = all->last; l != NULL; l = l->prev) {
        const struct bb_news_ *news = news_of(told, l->space);
        for (size_t i = 0; news != NULL && i < news->removed_count; i++) {
            tell_removed(ctx, l, &news->removed[i]);
        }
    }
}

static void tell_after(const struct bb_listeners_ *all, const struct bb_told_ *told)
{
    for (const struct bb_listener *l = all->first; l != NULL; l = l->next) {
        const struct bb_news_ *news = news_of(told, l->space);
        for (size_t i = 0; news != NULL && i < news->added_count; i++) {
            tell_added(l, &news->added[i]);
        }
    }
    for (const struct bb_listener *l = all->first; l != NULL; l = l->next) {
        if (news_of(told, l->space) != NULL) {
            tell_commit(l);
        }
    }
}

/* Each range's region is pinned, or let go. */
static void pin_news(struct bb_map *map, struct bb_event_ *events, size_t count, bool pin)
{
    for (size_t i = 0; i < count; i++) {
        if (events[i].kind != BB_EVENT_RANGE_ && events[i].kind != BB_EVENT_UNCHANGED_) {
            continue;
        }
        struct bb_pins_ *pins = events[i].piece.region->pins;
        if (pin) {
            events[i].pin = bb_pins_get_(pins);
        } else {
            bb_pins_put_(map->rcu, pins, events[i].pin);
        }
    }
}

static void pin_told(struct bb_map *map, struct bb_told_ *told, bool pin)
{
    for (size_t i = 0; i < told->count; i++) {
        pin_news(map, told->news[i].removed, told->news[i].removed_count, pin);
        pin_news(map, told->news[i].added, told->news[i].added_count, pin);
    }
}

/* Takes what is queued; under the map's lock. */
static struct bb_told_ *take_queue(struct bb_listeners_ *all)
{
    struct bb_told_ *queue = all->queue;

    /* Relaxed: see bb_listeners_lock_(); everything else is ordered by the map's lock. */
    bb_store_relaxed(&all->queue, (struct bb_told_ *)NULL);
    all->queue_end = &all->queue;
    return queue;
}

static void tell_queue(struct bb_ctx *ctx, struct bb_map *map, struct bb_told_ *queue)
{
    while (queue != NULL) {
        struct bb_told_ *told = queue;

        queue = told->next;
        tell_before(ctx, map->listeners, told);
        tell_after(map->listeners, told);
        pin_told(map, told, false);
        bb_heap_free(map->heap, told, told->bytes);
    }
}

/* Tells what is queued, under the listeners' lock and not the map's. */
static void settle_locked(struct bb_ctx *ctx, struct bb_map *map)
{
    bb_lock_acquire(ctx, &map->lock);
    struct bb_told_ *queue = take_queue(map->listeners);
    bb_lock_release(ctx, &map->lock);
    tell_queue(ctx, map, queue);
}

bool bb_listeners_may_tell_(const struct bb_ctx *ctx)
{
    return ctx->callback_depth == 0 && ctx->pin_depth == 0 && !bb_section_active_(ctx);
}

void bb_listeners_lock_(struct bb_ctx *ctx, struct bb_map *map)
{
    bb_lock_acquire(ctx, &map->listeners->lock);
    /* Relaxed: what is missed here is found under the map's lock, or left to who queued it. */
    if (bb_load_relaxed(&map->listeners->queue) != NULL) {
        settle_locked(ctx, map);
    }
}

void bb_listeners_unlock_(struct bb_ctx *ctx, struct bb_map *map)
{
    bb_lock_release(ctx, &map->listeners->lock);
}

void bb_listeners_before_(struct bb_ctx *ctx, struct bb_told_ *told)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;

    if (told == NULL || !bb_listeners_may_tell_(ctx)) {
        return;
    }
    tell_queue(ctx, map, take_queue(map->listeners));
    tell_before(ctx, map->listeners, told);
}

void bb_listeners_after_(struct bb_ctx *ctx, struct bb_told_ *told)
{
    struct bb_mem_ctx_ *mem = bb_mem_ctx_(ctx);
    struct bb_map *map = mem->map;

    if (told == NULL) {
        return;
    }
    if (bb_listeners_may_tell_(ctx)) {
        tell_after(map->listeners, told);
        bb_heap_free(map->heap, told, told->bytes);
        return;
    }
    pin_told(map, told, true);
    /* Relaxed: as in take_queue(). */
    bb_store_relaxed(map->listeners->queue_end, told);
    map->listeners->queue_end = &told->next;
    mem->untold = true;
    ctx->pending = true;
}

void bb_listeners_drop_(struct bb_ctx *ctx, struct bb_told_ *told)
{
    if (told != NULL) {
        bb_heap_free(bb_mem_ctx_(ctx)->map->heap, told, told->bytes);
    }
}

bool bb_listeners_left_(const struct bb_map *map, char name[BB_CTX_NAME_BYTES])
{
    /* No lock: who added or removed one has detached since. */
    const struct bb_listener *first = map->listeners->first;

    if (first != NULL) {
        bb_name_copy_(name, first->name);
    }
    return first != NULL;
}

bool bb_listeners_untold_(const struct bb_map *map)
{
    /* Relaxed: the map's lock, which the caller's commit took after who queued, orders it. */
    return bb_load_relaxed(&map->listeners->queue) != NULL;
}

void bb_listeners_settle_(struct bb_ctx *ctx)
{
    struct bb_mem_ctx_ *mem = bb_mem_ctx_(ctx);

    mem->untold = false;
    /* Also where another thread has emptied the queue: it tells under this lock. */
    bb_lock_acquire(ctx, &mem->map->listeners->lock);
    settle_locked(ctx, mem->map);
    bb_lock_release(ctx, &mem->map->listeners->lock);
}

/* One hook for every range of a view that shows a region's memory. */
struct log {
    struct bb_ctx *ctx;
    const struct bb_listener *listener;
    const struct bb_region *region;
    enum bb_log_hook_ hook;
};

static void log_piece(void *opaque, const struct bb_piece_ *piece)
{
    const struct log *log = opaque;
    const struct bb_listener *l = log->listener;

    if (piece->region != log->region || !piece->memory) {
        return;
    }
    struct bb_range range = bb_piece_range_(l->space, piece);
    if (log->hook == BB_LOG_SYNC_ && l->ops->log_sync != NULL) {
        l->ops->log_sync(log->ctx, l->opaque, &range);
    } else if (log->hook == BB_LOG_START_ && l->ops->log_start != NULL) {
        l->ops->log_start(l->opaque, &range);
    } else if (log->hook == BB_LOG_STOP_ && l->ops->log_stop != NULL) {
        l->ops->log_stop(l->opaque, &range);
    }
}

static uintptr_t tree_of(const struct bb_map *map, const struct bb_space *space)
{
    /* Relaxed: the root is replaced only under the map's lock, which is held. */
    return bb_load_relaxed(&map->root)->view[space->index].tree;
}

void bb_listeners_log_(struct bb_ctx *ctx, struct bb_region *region, enum bb_log_hook_ hook)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct log log = {.ctx = ctx, .region = region, .hook = hook};

    bb_lock_acquire(ctx, &map->listeners->lock);
    bb_lock_acquire(ctx, &map->lock);
    tell_queue(ctx, map, take_queue(map->listeners));
    bool news = hook == BB_LOG_SYNC_ || region->log_told != (hook == BB_LOG_START_);
    if (hook != BB_LOG_SYNC_) {
        region->log_told = hook == BB_LOG_START_;
    }
    for (const struct bb_listener *l = map->listeners->first; news && l != NULL; l = l->next) {
        bool wants =
            l->ops->log_start != NULL || l->ops->log_stop != NULL || l->ops->log_sync != NULL;
        if (wants) {
            log.listener = l;
            bb_view_walk_(tree_of(map, l->space), false, log_piece, &log);
        }
    }
    bb_lock_release(ctx, &map->lock);
    bb_lock_release(ctx, &map->listeners->lock);
}

/* All that a view has, told to one listener as added or as removed. */
struct present {
    struct bb_ctx *ctx;
    const struct bb_listener *listener;
    struct bb_change change;
    bool adding;
};

static void count_piece(void *opaque, const struct bb_piece_ *piece)
{
    struct present *present = opaque;
    struct bb_change *change = &present->change;

    if (present->adding) {
        change->added++;
        change->memory_added += piece->memory ? 1 : 0;
    } else {
        change->removed++;
        change->memory_removed += piece->memory ? 1 : 0;
    }
}

/* Bells of one piece, told one by one: nothing here can run out of memory. */
static void tell_bells(const struct present *present, const struct bb_piece_ *piece)
{
    struct bb_bell_span_ span = bb_bells_in_(piece);
    struct bb_event_ event = {.kind = BB_EVENT_DOORBELL_};
    struct bb_coalesced_ part;

    for (size_t i = 0; i < span.count; i++) {
        event.bell.at = piece->first + (span.at[i].offset - piece->offset);
        event.bell.doorbell = span.at[i];
        if (present->adding) {
            tell_added(present->listener, &event);
        } else {
            tell_removed(present->ctx, present->listener, &event);
        }
    }
    event = (struct bb_event_){.kind = BB_EVENT_COALESCED_};
    for (uint32_t i = 0; piece->bells != NULL && i < piece->bells->coalesced_count; i++) {
        if (!bb_coalesced_in_(piece, &piece->bells->coalesced[i], &part)) {
            continue;
        }
        event.coalesced.first = piece->first + (part.first - piece->offset);
        event.coalesced.last = event.coalesced.first + (part.last - part.first);
        if (present->adding) {
            tell_added(present->listener, &event);
        } else {
            tell_removed(present->ctx, present->listener, &event);
        }
    }
}

static void tell_piece(void *opaque, const struct bb_piece_ *piece)
{
    const struct present *present = opaque;

    if (present->adding) {
        tell_range_added(present->listener, piece);
        tell_bells(present, piece);
    } else {
        tell_bells(present, piece);
        tell_range_removed(present->ctx, present->listener, piece);
    }
}

/* Under both locks. */
static void tell_present(struct bb_ctx *ctx, const struct bb_listener *listener, bool adding)
{
    struct present present = {
        .ctx = ctx, .listener = listener, .change = {.space = listener->space}, .adding = adding};
    uintptr_t tree = tree_of(listener->map, listener->space);

    bb_view_walk_(tree, false, count_piece, &present);
    tell_begin(listener, &present.change);
    bb_view_walk_(tree, !adding, tell_piece, &present);
    tell_commit(listener);
}

static void enlist(struct bb_listeners_ *all, struct bb_listener *made)
{
    struct bb_listener *behind = all->last;

    while (behind != NULL && behind->priority > made->priority) {
        behind = behind->prev;
    }
    made->prev = behind;
    made->next = behind == NULL ? all->first : behind->next;
    *(made->prev == NULL ? &all->first : &made->prev->next) = made;
    *(made->next == NULL ? &all->last : &made->next->prev) = made;
}

static void delist(struct bb_listeners_ *all, struct bb_listener *gone)
{
    *(gone->prev == NULL ? &all->first : &gone->prev->next) = gone->next;
    *(gone->next == NULL ? &all->last : &gone->next->prev) = gone->prev;
}

int bb_listener_add(struct bb_ctx *ctx, const struct bb_listener_config *config,
                    struct bb_listener **listener, struct bb_error *err)
{
    if (config == NULL || listener == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL,
                            "a listener needs a configuration with a name, and a place");
    }
    if (config->space == NULL || config->ops == NULL) {
        return bb_error_set(err, BB_E_INVAL, "listener '%.31s' needs %s", config->name,
                            config->space == NULL ? "a space" : "hooks: ops is NULL");
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "listener '%.31s' is added inside a callback, section, pin or lock, "
                            "and would be told of everything at once",
                            config->name);
    }
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    if (config->space->root->map != map) {
        return bb_error_set(err, BB_E_INVAL,
                            "listener '%.31s': space '%s' is of another engine than the context",
                            config->name, config->space->name);
    }
    struct bb_listener *made = bb_heap_alloc(map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for listener '%.31s'", config->name);
    }
    made->map = map;
    made->space = config->space;
    made->ops = config->ops;
    made->opaque = config->opaque;
    made->priority = config->priority;
    bb_name_copy_(made->name, config->name);

    bb_lock_acquire(ctx, &map->listeners->lock);
    bb_lock_acquire(ctx, &map->lock);
    tell_queue(ctx, map, take_queue(map->listeners));
    enlist(map->listeners, made);
    tell_present(ctx, made, true);
    bb_lock_release(ctx, &map->lock);
    bb_lock_release(ctx, &map->listeners->lock);
    *listener = made;
    return BB_OK;
}

int bb_listener_remove(struct bb_ctx *ctx, struct bb_listener *listener, struct bb_error *err)
{
    if (listener == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no listener to remove: it is NULL");
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "listener '%s' is removed inside a callback, section, pin or lock, and "
                            "would be told of everything at once",
                            listener->name);
    }
    struct bb_map *map = listener->map;
    if (map != bb_mem_ctx_(ctx)->map) {
        return bb_error_set(err, BB_E_INVAL, "listener '%s' is of another engine than the context",
                            listener->name);
    }

    bb_lock_acquire(ctx, &map->listeners->lock);
    bb_lock_acquire(ctx, &map->lock);
    tell_queue(ctx, map, take_queue(map->listeners));
    tell_present(ctx, listener, false);
    delist(map->listeners, listener);
    bb_lock_release(ctx, &map->lock);
    bb_lock_release(ctx, &map->listeners->lock);
    bb_heap_free(map->heap, listener, sizeof(*listener));
    return BB_OK;
}

int bb_listeners_create_(struct bb_map *map)
{
    struct bb_listeners_ *made = bb_heap_alloc(map->heap, sizeof(*made));

    if (made == NULL) {
        return BB_E_NOMEM;
    }
    if (bb_lock_init_(&made->lock, "listeners", BB_RANK_LISTENERS) != BB_OK) {
        bb_heap_free(map->heap, made, sizeof(*made));
        return BB_E_NOMEM;
    }
    made->queue_end = &made->queue;
    map->listeners = made;
    return BB_OK;
}

void bb_listeners_destroy_(struct bb_map *map)
{
    struct bb_listeners_ *all = map->listeners;

    if (all == NULL) {
        return;
    }
    while (all->queue != NULL) { /* nobody is left to tell, and no region to keep */
        struct bb_told_ *told = all->queue;
        all->queue = told->next;
        bb_heap_free(map->heap, told, told->bytes);
    }
    while (all->first != NULL) {
        struct bb_listener *listener = all->first;
        delist(all, listener);
        bb_heap_free(map->heap, listener, sizeof(*listener));
    }
    bb_lock_fini_(&all->lock);
    bb_heap_free(map->heap, all, sizeof(*all));
    map->listeners = NULL;
}
