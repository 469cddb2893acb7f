/* SPDX-License-Identifier: MIT */
/*
 * Devices: their lock with its inbox, and their regions. Their removal is in removal.c.
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

/* Creation. */

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
    enum { AT_A_TIME = 16 };
    const struct bb_region *some[AT_A_TIME];
    size_t next = 0, count;

    /* Foreign code runs under no lock of ours; the section keeps what is being removed. */
    bb_section_enter_(ctx);
    do {
        count = 0;
        bb_lock_acquire(ctx, &device->engine->table);
        while (count < AT_A_TIME && next < device->region_count) {
            some[count++] = device->regions[next++];
        }
        bb_lock_release(ctx, &device->engine->table);
        for (size_t i = 0; i < count; i++) {
            visit(opaque, some[i]);
        }
    } while (count == AT_A_TIME);
    bb_section_leave_(ctx);
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

/* What all who give a device a region check first. */
static int check_device(struct bb_ctx *ctx, const struct bb_device *device, const void *region,
                        struct bb_error *err)
{
    if (device == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a region needs a device and a place");
    }
    if (bb_ectx_(ctx)->engine != device->engine) {
        return bb_error_set(err, BB_E_INVAL, "device %s is another engine's than the context",
                            device->name);
    }
    return BB_OK;
}

/* Whether the device takes one more region; if so there is room for it. Under the table lock. */
static int may_grow_locked(struct bb_device *device, struct bb_error *err)
{
    if (bb_load_relaxed(&device->removing) != 0) { /* guarded by the table lock */
        return bb_error_set(err, BB_E_STATE, "device %s is being removed", device->name);
    }
    if (!regions_reserve_locked(device)) {
        return bb_error_set(err, BB_E_NOMEM, "device %s: out of memory", device->name);
    }
    return BB_OK;
}

/*
 * Makes a region of one of two kinds; the other configuration is NULL. Under the table lock as a
 * whole, so that a region that the map knows never has to be taken back because its device is
 * being removed meanwhile.
 */
static int region_create(struct bb_ctx *ctx, struct bb_device *device,
                         const struct bb_region_config *io, const struct bb_iommu_config *iommu,
                         struct bb_region **region, struct bb_error *err)
{
    struct bb_owner_ owner = {.device = device,
                              .id = device->id,
                              .name = device->name,
                              .pins = &device->pins,
                              .coalesced = &device->coalesced};
    struct bb_region *made;

    bb_lock_acquire(ctx, &device->engine->table);
    int result = may_grow_locked(device, err);
    if (result == BB_OK) {
        result = iommu != NULL ? bb_iommu_create_(ctx, iommu, &owner, &made, err)
                               : bb_region_create_io_(ctx, io, &owner, &made, err);
    }
    if (result == BB_OK) {
        device->regions[device->region_count++] = made;
        *region = made;
    }
    bb_lock_release(ctx, &device->engine->table);
    return result;
}

int bb_device_region_create(struct bb_ctx *ctx, struct bb_device *device,
                            const struct bb_region_config *config, struct bb_region **region,
                            struct bb_error *err)
{
    int result = check_device(ctx, device, region, err);

    if (result != BB_OK) {
        return result;
    }
    if (config != NULL && config->klass == BB_CLASS_EXTERNAL_LOCK &&
        device->engine->external.lock == NULL) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "region %s of %s is EXTERNAL_LOCK, but the engine was created without "
                            "external_lock hooks",
                            config->name == NULL ? "?" : config->name, device->name);
    }
    return region_create(ctx, device, config, NULL, region, err);
}

int bb_device_iommu_create(struct bb_ctx *ctx, struct bb_device *device,
                           const struct bb_iommu_config *config, struct bb_region **region,
                           struct bb_error *err)
{
    int result = check_device(ctx, device, region, err);

    if (result != BB_OK) {
        return result;
    }
    if (config == NULL) {
        return bb_error_set(err, BB_E_INVAL, "an IOMMU region of %s needs a configuration",
                            device->name);
    }
    return region_create(ctx, device, NULL, config, region, err);
}

/*
 * Adoption changes `owner` and the device's name, which for such a region no access looks at: there
 * is no callback to run in a device's name. They are written once more than at creation, under the
 * locks of table and map both, so that who holds either may read; others load `owner` alone. What
 * accesses and mappings do look at stays as it is: no id, so that reports and chains don't take
 * memory for a device, and the region's own pins, so that mappings made before adoption and after
 * are waited for in one place.
 */
int bb_device_adopt(struct bb_ctx *ctx, struct bb_device *device, struct bb_region *region,
                    struct bb_error *err)
{
    int result = check_device(ctx, device, region, err);

    if (result != BB_OK) {
        return result;
    }
    if (region->root_of != NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "region %s is the root of a space, which lives as long as the engine",
                            region->name);
    }
    struct bb_map *map = device->engine->map;
    if (region->map != map) {
        return bb_error_set(err, BB_E_INVAL, "region %s is another engine's than device %s",
                            region->name, device->name);
    }
    bb_lock_acquire(ctx, &device->engine->table);
    if (region->owner != NULL) { /* written under the table lock */
        result = bb_error_set(err, BB_E_EXIST, "region %s belongs to device %s already",
                              region->name, region->owner->name);
    } else if (region->leaving) {
        result = bb_error_set(err, BB_E_STATE, "region %s is being removed", region->name);
    } else {
        result = may_grow_locked(device, err);
    }
    if (result == BB_OK) {
        device->regions[device->region_count++] = region;
        device->adopted++;
        bb_lock_acquire(ctx, &map->lock);
        /* Release: who finds the device by its region finds it whole; pairs with
         * bb_region_device(). */
        bb_store_release(&region->owner, device);
        region->device_name = device->name; /* for who looks at the map, under its lock */
        bb_lock_release(ctx, &map->lock);
    }
    bb_lock_release(ctx, &device->engine->table);
    return result;
}

/* The lock and its inbox. */

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

    if (bb_load_acquire(&device->removing) != 0) { /* pairs with retire_device_locked() */
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
