/* SPDX-License-Identifier: MIT */
/*
 * Devices: their lock with its inbox, their regions, and their removal.
 *
 * The inbox. Work for a device whose lock is held is pushed (a bit for a notified pin, a timer on a
 * stack), and then:
 *   pusher:  push;    full fence;  try the lock; if taken, empty the inbox, release
 *   holder:  release; full fence;  look at the inbox; if not empty, go on as a pusher
 * Invariants:
 *  1. If the pusher's try fails, the holder's release comes after it, so the holder's look comes
 *     after the push and finds it. (The fences forbid the look before the release, and the try
 *     before the push.) Nothing stays in an inbox without somebody bound to look.
 *  2. Nobody waits: a pusher that fails goes on, a holder looks a bounded number of times and then
 *     has bb-control look. A pusher that holds a narrow lock has bb-control look at once: the
 *     sink's notified() may wait for a narrow lock of its own, and two such would be an order. So
 *     does one that holds several locks already, of sinks that feed sinks.
 *  3. bb_device_lock() empties the inbox before it returns: a register read under the lock sees
 *     everything that was pushed before it.
 *
 * Removal. Set `removing`, unmap, disarm, disconnect; then wait for a grace period and for the
 * device's pins. After that no access, notification, effect or inbox of it is in flight. bb-control
 * then disarms once more, waiting (a callback in flight may have armed a timer meanwhile), and
 * withdraws asserted lines; then the device is destroyed. Each wait holds nothing.
 */
#include <string.h>

#include "engine_internal.h"

void bb_waiter_init_(struct bb_waiter_ *waiter)
{
    pthread_mutex_init(&waiter->mutex, NULL);
    pthread_cond_init(&waiter->cond, NULL);
    waiter->done = false;
}

void bb_waiter_signal_(struct bb_waiter_ *waiter)
{
    pthread_mutex_lock(&waiter->mutex);
    waiter->done = true;
    pthread_cond_signal(&waiter->cond);
    pthread_mutex_unlock(&waiter->mutex);
}

void bb_waiter_wait_(struct bb_waiter_ *waiter)
{
    pthread_mutex_lock(&waiter->mutex);
    while (!waiter->done) {
        pthread_cond_wait(&waiter->cond, &waiter->mutex);
    }
    pthread_mutex_unlock(&waiter->mutex);
    pthread_cond_destroy(&waiter->cond);
    pthread_mutex_destroy(&waiter->mutex);
}

/* --- Creation ----------------------------------------------------------------------------------
 */

int bb_device_create(struct bb_ctx *ctx, const struct bb_device_config *config,
                     struct bb_device **device, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    int result;

    if (config == NULL || config->name == NULL || config->name[0] == '\0' || device == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a device needs a name and a place");
    }
    struct bb_device *made = bb_heap_alloc_aligned(engine->heap, sizeof(*made), 64);
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "device %s: out of memory", config->name);
    }
    result = bb_lock_init_(&made->lock, config->name, BB_RANK_DEVICE);
    if (result == BB_OK) {
        result = bb_lock_init_(&made->baseline, config->name, BB_RANK_BASELINE);
        if (result != BB_OK) {
            bb_lock_fini_(&made->lock);
        }
    }
    if (result != BB_OK) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return bb_error_set(err, result, "device %s: no lock could be made", config->name);
    }
    strncpy(made->name, config->name, sizeof(made->name) - 1);
    made->engine = engine;
    made->ops = config->ops;
    made->opaque = config->opaque;
    made->parts = 1;
    bb_lock_acquire(ctx, &engine->table);
    if (engine->device_count == BB_DEVICES_MAX_) {
        result =
            bb_error_set(err, BB_E_LIMIT, "device %s: there are %d devices, the most there can be",
                         config->name, BB_DEVICES_MAX_);
    } else {
        made->id = ++engine->last_device_id;
        made->next = engine->devices;
        engine->devices = made;
        engine->device_count++;
    }
    bb_lock_release(ctx, &engine->table);
    if (result != BB_OK) {
        bb_lock_fini_(&made->baseline);
        bb_lock_fini_(&made->lock);
        bb_heap_free(engine->heap, made, sizeof(*made));
        return result;
    }
    *device = made;
    return BB_OK;
}

const char *bb_device_name(const struct bb_device *device)
{
    return device->name;
}

uint32_t bb_device_id(const struct bb_device *device)
{
    return device->id;
}

/* Copies the name of device `id`, or "no device" text, into `name`; returns it. */
const char *bb_device_name_of_(struct bb_ctx *ctx, struct bb_engine *engine, uint32_t id,
                               char *name, size_t bytes)
{
    strncpy(name, "(gone)", bytes - 1);
    name[bytes - 1] = '\0';
    bb_lock_acquire(ctx, &engine->table);
    for (const struct bb_device *d = engine->devices; d != NULL; d = d->next) {
        if (d->id == id) {
            strncpy(name, d->name, bytes - 1);
        }
    }
    bb_lock_release(ctx, &engine->table);
    return name;
}

void *bb_device_alloc(struct bb_engine *engine, size_t bytes)
{
    return bb_heap_alloc(engine->heap, bytes);
}

void bb_device_free(struct bb_engine *engine, void *memory, size_t bytes)
{
    bb_heap_free(engine->heap, memory, bytes);
}

void bb_device_each_region(struct bb_ctx *ctx, struct bb_device *device,
                           void (*visit)(void *opaque, const struct bb_region *region),
                           void *opaque)
{
    bb_lock_acquire(ctx, &device->engine->table);
    for (size_t i = 0; i < device->region_count; i++) {
        visit(opaque, device->regions[i]);
    }
    bb_lock_release(ctx, &device->engine->table);
}

/* Room for one more region; under the table lock. */
static bool regions_reserve_locked(struct bb_device *device)
{
    struct bb_heap *heap = device->engine->heap;

    if (device->region_count < device->region_room) {
        return true;
    }
    size_t room = device->region_room == 0 ? 4 : device->region_room * 2;
    struct bb_region **regions = bb_heap_alloc(heap, room * sizeof(*regions));
    if (regions == NULL) {
        return false;
    }
    if (device->region_count > 0) {
        memcpy(regions, device->regions, device->region_count * sizeof(*regions));
    }
    bb_heap_free(heap, device->regions, device->region_room * sizeof(*regions));
    device->regions = regions;
    device->region_room = room;
    return true;
}

int bb_device_region_create(struct bb_ctx *ctx, struct bb_device *device,
                            const struct bb_region_config *config, struct bb_region **region,
                            struct bb_error *err)
{
    if (device == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a region needs a device and a place");
    }
    struct bb_engine *engine = device->engine;
    struct bb_region *made;
    int result;

    if (bb_ectx_(ctx)->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "device %s is another engine's than the context",
                            device->name);
    }
    if (config != NULL && config->klass == BB_CLASS_EXTERNAL_LOCK &&
        engine->external.lock == NULL) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "region %s of %s is EXTERNAL_LOCK, but the engine was created without "
                            "external_lock hooks",
                            config->name == NULL ? "?" : config->name, device->name);
    }
    result = bb_region_create_io_(ctx, config, device, device->id, &made, err);
    if (result != BB_OK) {
        return result;
    }
    bb_lock_acquire(ctx, &engine->table);
    if (bb_load_relaxed(&device->removing) != 0) { /* guarded by the table lock */
        result = bb_error_set(err, BB_E_STATE, "device %s is being removed", device->name);
    } else if (!regions_reserve_locked(device)) {
        result = bb_error_set(err, BB_E_NOMEM, "device %s: out of memory", device->name);
    } else {
        device->regions[device->region_count++] = made;
    }
    bb_lock_release(ctx, &engine->table);
    if (result != BB_OK) {
        bb_region_free_(engine->heap, made);
        return result;
    }
    *region = made;
    return BB_OK;
}

/* --- The lock and its inbox ---------------------------------------------------------------------
 */

bool bb_device_inbox_empty_(const struct bb_device *device)
{
    /* Relaxed: callers put a full fence before, or hold the lock and read what they then take. */
    return bb_load_relaxed(&device->inbox_pins) == 0 &&
           bb_load_relaxed(&device->inbox_timers) == NULL;
}

/* Runs the callbacks of the timers in the inbox, in the order in which they were pushed. */
static void take_timers(struct bb_ctx *ctx, struct bb_device *device)
{
    /* Acquire: pairs with the release swap in inbox_push() (device_timer.c). Release: who finds the
     * inbox empty finds us busy; pairs with inboxes_empty() (pause.c). */
    struct bb_device_timer *stack = bb_xchg_acq_rel(&device->inbox_timers, NULL);
    struct bb_device_timer *queue = NULL;

    while (stack != NULL) {
        struct bb_device_timer *next = stack->inbox_next;
        stack->inbox_next = queue;
        queue = stack;
        stack = next;
    }
    while (queue != NULL) {
        struct bb_device_timer *timer = queue;
        bb_ns_t deadline_ns = timer->inbox_deadline_ns;

        queue = timer->inbox_next;
        /* From here on it may be pushed again; release: pairs with the exchange in inbox_push(). */
        bb_store_release(&timer->inboxed, 0);
        /* Armed or disarmed meanwhile, by whoever held the lock: it has lost the race. */
        if (!bb_timer_superseded_(ctx, &timer->timer)) {
            bb_device_timer_run_(ctx, timer, deadline_ns);
        }
    }
}

/* Does the inbox's work, one pass. Under the device's lock. */
void bb_device_drain_inbox_(struct bb_ctx *ctx, struct bb_device *device)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);

    if (bb_load_acquire(&device->removing) != 0) { /* pairs with begin_removal() */
        return;
    }
    bool begun = bb_event_begin_(e);
    /* Relaxed: our own. Release: pairs with scan_busy(), and comes before what is taken out. */
    bool busy = bb_load_relaxed(&e->busy) != 0;
    bb_store_release(&e->busy, 1);
    if (bb_load_relaxed(&device->inbox_pins) != 0) {
        /* Acquire: pairs with the release of the bit in bb_device_notify(). Release: as in
         * take_timers(). */
        uint64_t pins = bb_xchg_acq_rel(&device->inbox_pins, 0);
        if (pins != 0 && device->ops != NULL && device->ops->notified != NULL) {
            struct bb_inbox_frame_ frame = bb_inbox_frame_enter_(e, device);
            device->ops->notified(ctx, device->opaque, pins);
            bb_inbox_frame_leave_(e, frame);
        }
    }
    if (bb_load_relaxed(&device->inbox_timers) != NULL) {
        take_timers(ctx, device);
    }
    if (!busy && !ctx->pending) {
        bb_busy_clear_(e); /* else at the end of the chain */
    }
    bb_event_end_(e, begun);
}

/* The pusher's half of the inbox's protocol, and what a holder goes on with after its release. */
void bb_device_try_drain_(struct bb_ctx *ctx, struct bb_device *device)
{
    int rounds =
        ctx->narrow_depth == 0 && ctx->lock_depth < BB_INBOX_LOCKS_MAX_ ? BB_INBOX_ROUNDS_ : 0;

    for (int round = 0; round < rounds; round++) {
        /* Between the push (or the release) and the look and the try: invariant 1. */
        bb_fence_full();
        if (bb_device_inbox_empty_(device) || bb_load_relaxed(&device->removing) != 0 ||
            !bb_lock_try(ctx, &device->lock)) {
            return;
        }
        bb_device_drain_inbox_(ctx, device);
        bb_lock_release(ctx, &device->lock);
    }
    if (!bb_device_inbox_empty_(device)) {
        bb_control_service_(device);
    }
}

void bb_device_lock(struct bb_ctx *ctx, struct bb_device *device)
{
    bb_lock_acquire(ctx, &device->lock);
    if (BB_UNLIKELY(!bb_device_inbox_empty_(device))) {
        bb_device_drain_inbox_(ctx, device);
    }
}

void bb_device_unlock(struct bb_ctx *ctx, struct bb_device *device)
{
    bb_lock_release(ctx, &device->lock);
    bb_device_try_drain_(ctx, device);
    bb_chain_settle_(bb_ectx_(ctx));
}

void bb_device_notify(struct bb_ctx *ctx, struct bb_device *device, unsigned pin)
{
    bb_section_enter_(ctx);
    /* Release: what the notifier published is seen by notified(); acquire for the fence-free case
     * in which the exchange in bb_device_drain_inbox_() came before. */
    (void)bb_fetch_or_acq_rel(&device->inbox_pins, BB_BIT64(pin & 63));
    bb_device_try_drain_(ctx, device);
    bb_section_leave_(ctx);
    bb_chain_settle_(bb_ectx_(ctx));
}

/* --- Removal ------------------------------------------------------------------------------------
 */

/*
 * One of the drains of the device's pins has ended: its own, or that of a region that was removed
 * by itself. After the last one nothing in rcu/ knows the pins any longer, and the second half of
 * removal may free them.
 */
static void part_drained(struct bb_device *device)
{
    /* Acquire and release, paired with itself: the last comes after all that the others did. */
    if (bb_fetch_sub_acq_rel(&device->parts, 1) == 1) {
        bb_control_retire_(device);
    }
}

/* Makes callbacks in flight return: here, or, where something is held here, on bb-control. */
static void cancel(struct bb_ctx *ctx, struct bb_device *device)
{
    if (device->ops == NULL || device->ops->cancel == NULL) {
        return;
    }
    if (bb_may_block_(bb_ectx_(ctx))) {
        device->ops->cancel(ctx, device->opaque);
    } else {
        bb_section_enter_(ctx);
        bb_control_cancel_(device);
        bb_section_leave_(ctx);
    }
}

struct region_removal {
    struct bb_pin_drain_ drain;
    struct bb_engine *engine;
    struct bb_region *region;
    void (*done)(void *opaque);
    void *opaque;
    struct bb_waiter_ *waiter;
};

/* On bb-complete. */
static void region_complete(struct bb_rcu_head *head)
{
    struct region_removal *removal = BB_CONTAINER_OF(head, struct region_removal, drain.head);
    void (*done)(void *) = removal->done;
    void *opaque = removal->opaque;

    bb_heap_free(removal->engine->heap, removal, sizeof(*removal));
    if (done != NULL) {
        done(opaque);
    }
}

/* On bb-reclaim, so that the device's own removal never waits for somebody's `done`. */
static void region_drained(struct bb_pin_drain_ *drain)
{
    struct region_removal *removal = BB_CONTAINER_OF(drain, struct region_removal, drain);
    struct bb_engine *engine = removal->engine;
    struct bb_waiter_ *waiter = removal->waiter;
    struct bb_device *device = removal->region->owner;

    bb_region_free_(engine->heap, removal->region);
    if (device != NULL) {
        part_drained(device);
    }
    if (waiter != NULL) {
        bb_heap_free(engine->heap, removal, sizeof(*removal));
        bb_waiter_signal_(waiter);
    } else {
        bb_rcu_complete_now_(engine->rcu, &removal->drain.head, region_complete);
    }
}

/*
 * Unmaps a region and takes it from its device's list, so that the device's removal does not see
 * it. Under the table lock as a whole, as the first half of a device's removal is: each of the two
 * finds the other not begun, or past the point where it can fail.
 */
static int region_retire(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_device *device = region->owner;
    int result = BB_E_STATE;
    size_t i = 0;

    if (device == NULL) {
        return bb_regions_retire_(ctx, &region, 1, err);
    }
    bb_lock_acquire(ctx, &device->engine->table);
    if (bb_load_relaxed(&device->removing) == 0) { /* set under the table lock */
        while (i < device->region_count && device->regions[i] != region) {
            i++;
        }
        if (i < device->region_count) {
            result = bb_regions_retire_(ctx, &region, 1, err);
        } else {
            bb_error_set(err, result, "region %s is being removed already", region->name);
        }
    } else {
        bb_error_set(err, result, "region %s is being removed already, with its device",
                     region->name);
    }
    if (result == BB_OK) {
        device->regions[i] = device->regions[--device->region_count];
        /* Relaxed: the device's own part is still there, and is dropped after this lock's next
         * holder has set `removing`. */
        (void)bb_fetch_add_relaxed(&device->parts, 1);
    }
    bb_lock_release(ctx, &device->engine->table);
    return result;
}

static int region_remove(struct bb_ctx *ctx, struct bb_region *region, void (*done)(void *opaque),
                         void *opaque, struct bb_waiter_ *waiter, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    struct region_removal *removal;
    int result;

    if (region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no region to remove: it is NULL");
    }
    if (region->owner != NULL && region->owner->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "region %s is another engine's than the context",
                            region->name);
    }
    removal = bb_heap_alloc(engine->heap, sizeof(*removal));
    if (removal == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "removing region %s: out of memory", region->name);
    }
    struct bb_device *device = region->owner;
    bool sleeps = region->klass >= BB_CLASS_MAY_SLEEP;
    result = region_retire(ctx, region, err);
    if (result != BB_OK) {
        bb_heap_free(engine->heap, removal, sizeof(*removal));
        return result;
    }
    removal->engine = engine;
    removal->region = region;
    removal->done = done;
    removal->opaque = opaque;
    removal->waiter = waiter;
    if (device != NULL && sleeps) {
        cancel(ctx, device);
    }
    bb_pins_drain_(engine->rcu, device != NULL ? &device->pins : NULL, &removal->drain,
                   BB_ON_RECLAIM_, region_drained);
    if (ctx->throttle) {
        bb_rcu_throttle_(ctx); /* could not wait under the table lock */
    }
    return BB_OK;
}

int bb_region_remove(struct bb_ctx *ctx, struct bb_region *region, void (*done)(void *opaque),
                     void *opaque, struct bb_error *err)
{
    return region_remove(ctx, region, done, opaque, NULL, err);
}

static int refuse_blocking(struct bb_error *err, const char *function)
{
    return bb_error_set(err, BB_E_CONTEXT,
                        "%s would block inside a callback, read section, pin or lock; use its "
                        "asynchronous form there",
                        function);
}

int bb_region_remove_wait(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_waiter_ waiter;

    if (!bb_may_block_(bb_ectx_(ctx))) {
        return refuse_blocking(err, "bb_region_remove_wait");
    }
    bb_waiter_init_(&waiter);
    int result = region_remove(ctx, region, NULL, NULL, &waiter, err);
    if (result != BB_OK) {
        bb_waiter_signal_(&waiter);
    }
    bb_waiter_wait_(&waiter);
    return result;
}

static void device_drained(struct bb_pin_drain_ *drain)
{
    part_drained(BB_CONTAINER_OF(drain, struct bb_device, drain));
}

/* Destroys a device of which nothing is left but itself. */
static void device_free(struct bb_device *device)
{
    struct bb_heap *heap = device->engine->heap;

    if (device->ops != NULL && device->ops->destroy != NULL) {
        device->ops->destroy(device->opaque);
    }
    bb_lock_fini_(&device->baseline);
    bb_lock_fini_(&device->lock);
    bb_heap_free(heap, device, sizeof(*device));
}

static void device_complete(struct bb_rcu_head *head)
{
    struct bb_device *device = BB_CONTAINER_OF(head, struct bb_device, head);
    void (*done)(void *) = device->done;
    void *opaque = device->done_opaque;

    device_free(device);
    if (done != NULL) {
        done(opaque);
    }
}

/* The second half of removal, on bb-control: no callback of the device runs or can begin. */
void bb_device_retire_(struct bb_ctx *ctx, struct bb_device *device)
{
    struct bb_engine *engine = device->engine;
    struct bb_heap *heap = engine->heap;
    struct bb_waiter_ *waiter = device->waiter;

    while (device->timers != NULL) {
        struct bb_device_timer *timer = device->timers;
        (void)bb_timer_disarm_wait_(ctx, &timer->timer);
        device->timers = timer->next;
        bb_heap_free(heap, timer, sizeof(*timer));
    }
    for (struct bb_source *source = device->sources; source != NULL; source = source->next) {
        bb_source_apply_(ctx, source, false);
    }
    bb_chain_settle_(bb_ectx_(ctx));
    bb_lock_acquire(ctx, &engine->table);
    while (device->sources != NULL) {
        struct bb_source *source = device->sources;
        if (source->line != NULL) {
            source->line->source_bits &= ~source->bit;
        }
        device->sources = source->next;
        bb_heap_free(heap, source, sizeof(*source));
    }
    struct bb_device **link = &engine->devices;
    while (*link != device) {
        link = &(*link)->next;
    }
    *link = device->next;
    engine->device_count--;
    bb_lock_release(ctx, &engine->table);
    for (size_t i = 0; i < device->region_count; i++) {
        bb_region_free_(heap, device->regions[i]);
    }
    bb_heap_free(heap, device->regions, device->region_room * sizeof(struct bb_region *));
    if (waiter != NULL) {
        bb_waiter_signal_(waiter); /* bb_device_remove_wait() frees it */
    } else {
        bb_rcu_complete_now_(engine->rcu, &device->head, device_complete);
    }
}

static int begin_removal(struct bb_ctx *ctx, struct bb_device *device, void (*done)(void *opaque),
                         void *opaque, struct bb_waiter_ *waiter, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    int result;

    if (device == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no device to remove: it is NULL");
    }
    if (device->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "device %s is another engine's than the context",
                            device->name);
    }
    bb_lock_acquire(ctx, &engine->table);
    if (bb_load_relaxed(&device->removing) != 0) { /* written under the table lock */
        result = bb_error_set(err, BB_E_STATE, "device %s is being removed already", device->name);
    } else {
        /* First what can fail. While `removing` is not set, expiries, arming and the inbox go on:
         * nothing is lost where this fails. */
        result = bb_regions_retire_(ctx, device->regions, device->region_count, err);
    }
    if (result == BB_OK) {
        /* Release: pairs with the acquire loads on expiry, arming and draining. From here on
         * `regions`, `timers` and `sources` do not change: creation and region removal refuse. */
        bb_store_release(&device->removing, 1);
    }
    bb_lock_release(ctx, &engine->table);
    if (result != BB_OK) {
        return result;
    }
    for (struct bb_device_timer *t = device->timers; t != NULL; t = t->next) {
        (void)bb_timer_disarm_(ctx, &t->timer);
    }
    bb_lines_disconnect_(ctx, device);
    device->done = done;
    device->done_opaque = opaque;
    device->waiter = waiter;
    cancel(ctx, device);
    bb_pins_drain_all_(engine->rcu, &device->pins, &device->drain, BB_ON_RECLAIM_, device_drained);
    if (ctx->throttle) {
        bb_rcu_throttle_(ctx); /* could not wait under the table lock */
    }
    return BB_OK;
}

int bb_device_remove(struct bb_ctx *ctx, struct bb_device *device, void (*done)(void *opaque),
                     void *opaque, struct bb_error *err)
{
    return begin_removal(ctx, device, done, opaque, NULL, err);
}

int bb_device_remove_wait(struct bb_ctx *ctx, struct bb_device *device, struct bb_error *err)
{
    struct bb_waiter_ waiter;

    if (!bb_may_block_(bb_ectx_(ctx))) {
        return refuse_blocking(err, "bb_device_remove_wait");
    }
    bb_waiter_init_(&waiter);
    int result = begin_removal(ctx, device, NULL, NULL, &waiter, err);
    if (result != BB_OK) {
        bb_waiter_signal_(&waiter);
    }
    bb_waiter_wait_(&waiter);
    if (result == BB_OK) {
        device_free(device);
    }
    return result;
}
