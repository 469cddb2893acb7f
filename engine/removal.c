/* SPDX-License-Identifier: MIT */
/*
 * The removal of devices, and of regions by themselves.
 *
 * Removal has two halves. The first takes regions out of the map (bb_regions_retire_(), one commit)
 * and can fail; the second waits, and can't. What it waits for:
 *
 *   a region of a device   a grace period and the device's pins: callbacks outside sections,
 *                          mappings of a ROM device's memory
 *   any other region       a grace period and the region's own pins: mappings; and its listeners'
 *                          events, which pin what they name until they have been told
 *   a device               all of the above for all its regions; then bb-control disarms its timers
 *                          once more, waiting (a callback in flight may have armed one meanwhile),
 *                          and withdraws its asserted lines
 *
 * Each wait holds nothing. A device that was asked to go stays until the last of its `parts` has
 * ended: its own pins, the pins of each region that it has adopted, regions that are on their way
 * out by themselves.
 *
 * Who excludes whom. A region of a device is retired under the engine's table lock, and so are a
 * device's all together: each of the two finds the other not begun, or past the point where it can
 * fail. A region without a device is marked as leaving under that lock, so that no device adopts
 * it, and retired without it, since that may take long: RAM that is in use has an accelerator's
 * processors stopped by its listener.
 *
 * Deferred memory. What removal keeps until its grace period is over counts against the engine's
 * bound, by way of the `weight` of each: so who removes faster than readers leave waits for them,
 * as who commits faster does. Only for the grace period: a wait for pins is a wait for callbacks,
 * and one of these may be what waits for the bound.
 */
#include "engine_internal.h"

/* A region of the device's with pins of its own, whose drain is one of the device's parts. */
struct bb_adopted_drain_ {
    struct bb_pin_drain_ drain;
    struct bb_device *device;
};

/*
 * One of the device's parts has ended. After the last nothing in rcu/ knows the pins any longer,
 * and the second half of removal may free them.
 */
static void part_ended(struct bb_device *device)
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

/*
 * The end of either first half, with the table lock released. What listeners have not been told,
 * because something is held here, or by whoever committed in a callback that still runs, they are
 * told by bb-control: their events pin what is to go, and this thread, or that callback, may wait
 * for that. Where deferred memory is over its bound this waits, or has the epilogue wait.
 */
static void settle(struct bb_ctx *ctx)
{
    if (bb_listeners_untold_(bb_mem_ctx_(ctx)->map)) {
        bb_control_tell_(bb_ectx_(ctx)->engine);
    }
    if (bb_may_block_(bb_ectx_(ctx))) {
        bb_rcu_throttle_(ctx);
    } else if (bb_rcu_over_bound_(ctx->rcu)) {
        ctx->throttle = true;
    }
}

/* Regions by themselves. */

struct region_removal {
    struct bb_pin_drain_ drain;
    struct bb_rcu_head weight;
    unsigned waits; /* of these two; bb-reclaim's alone */
    bool part;      /* of its device's removal, should that be asked for */
    struct bb_engine *engine;
    struct bb_region *region;
    void (*done)(void *opaque);
    void *opaque;
    struct bb_waiter_ *waiter;
};

/* On bb-complete. */
static void region_complete(struct bb_rcu_head *head)
{
    struct region_removal *removal = BB_CONTAINER_OF(head, struct region_removal, weight);
    void (*done)(void *) = removal->done;
    void *opaque = removal->opaque;

    bb_heap_free(removal->engine->heap, removal, sizeof(*removal));
    if (done != NULL) {
        done(opaque);
    }
}

/* On bb-reclaim, so that the device's own removal never waits for somebody's `done`. */
static void region_wait_ended(struct region_removal *removal)
{
    struct bb_engine *engine = removal->engine;
    struct bb_waiter_ *waiter = removal->waiter;

    if (--removal->waits > 0) {
        return;
    }
    struct bb_device *device = removal->part ? removal->region->owner : NULL;
    bb_region_free_(engine->heap, removal->region);
    if (device != NULL) {
        part_ended(device);
    }
    if (waiter != NULL) {
        bb_heap_free(engine->heap, removal, sizeof(*removal));
        bb_waiter_signal_(waiter);
    } else {
        bb_rcu_complete_now_(engine->rcu, &removal->weight, region_complete);
    }
}

static void region_drained(struct bb_pin_drain_ *drain)
{
    region_wait_ended(BB_CONTAINER_OF(drain, struct region_removal, drain));
}

static void region_weighed(struct bb_rcu_head *head)
{
    region_wait_ended(BB_CONTAINER_OF(head, struct region_removal, weight));
}

/* Retires a region and takes it from its device's list, so that the device's removal does not see
 * it. Under the table lock. */
static int retire_owned_locked(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_device *device = region->owner;
    size_t i = 0;
    int result;

    if (bb_load_relaxed(&device->removing) != 0) { /* set under the table lock */
        return bb_error_set(err, BB_E_STATE, "region %s is being removed already, with its device",
                            region->name);
    }
    while (i < device->region_count && device->regions[i] != region) {
        i++;
    }
    if (i == device->region_count) {
        return bb_error_set(err, BB_E_STATE, "region %s is being removed already", region->name);
    }
    result = bb_regions_retire_(ctx, &region, 1, err);
    if (result == BB_OK) {
        device->regions[i] = device->regions[--device->region_count];
        device->adopted -= region->pins == &region->own_pins;
        /* Relaxed: the device's own part is still there, and is dropped after this lock's next
         * holder has set `removing`. */
        (void)bb_fetch_add_relaxed(&device->parts, 1);
    }
    return result;
}

/* The first half. *part is set where the region has a device. */
static int region_retire(struct bb_ctx *ctx, struct bb_region *region, bool *part,
                         struct bb_error *err)
{
    struct bb_lock *table = &bb_ectx_(ctx)->engine->table;
    int result = BB_OK;

    bb_lock_acquire(ctx, table);
    *part = region->owner != NULL; /* written under the table lock */
    if (*part) {
        result = retire_owned_locked(ctx, region, err);
    } else if (region->leaving) {
        result = bb_error_set(err, BB_E_STATE, "region %s is being removed already", region->name);
    } else {
        region->leaving = true;
    }
    bb_lock_release(ctx, table);
    if (result == BB_OK && !*part) {
        result = bb_regions_retire_(ctx, &region, 1, err);
        if (result != BB_OK) {
            bb_lock_acquire(ctx, table);
            region->leaving = false;
            bb_lock_release(ctx, table);
        }
    }
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
    struct bb_device *device = bb_region_device(region);
    if (region->map != engine->map) {
        return bb_error_set(err, BB_E_INVAL, "region %s is another engine's than the context",
                            region->name);
    }
    removal = bb_heap_alloc(engine->heap, sizeof(*removal));
    if (removal == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "removing region %s: out of memory", region->name);
    }
    result = region_retire(ctx, region, &removal->part, err);
    if (result != BB_OK) {
        bb_heap_free(engine->heap, removal, sizeof(*removal));
        return result;
    }
    struct bb_pins_ *pins = region->pins;
    bool own = pins == &region->own_pins;
    bool sleeps = region->klass >= BB_CLASS_MAY_SLEEP;

    removal->waits = 2;
    removal->engine = engine;
    removal->region = region;
    removal->done = done;
    removal->opaque = opaque;
    removal->waiter = waiter;
    if (sleeps && device != NULL) {
        cancel(ctx, device);
    }
    bb_rcu_defer_(engine->rcu, &removal->weight, region_weighed,
                  sizeof(*removal) + sizeof(*region));
    /* Own pins are freed with the region: none may be left. A device's go on to be taken, by other
     * regions' callbacks: those that exist now are waited for. */
    if (own) {
        bb_pins_drain_all_(engine->rcu, pins, &removal->drain, BB_ON_RECLAIM_, region_drained);
    } else {
        bb_pins_drain_(engine->rcu, pins, &removal->drain, BB_ON_RECLAIM_, region_drained);
    }
    settle(ctx);
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

/* Devices. */

static void device_drained(struct bb_pin_drain_ *drain)
{
    part_ended(BB_CONTAINER_OF(drain, struct bb_device, drain));
}

static void device_weighed(struct bb_rcu_head *head)
{
    part_ended(BB_CONTAINER_OF(head, struct bb_device, weight));
}

static void adopted_drained(struct bb_pin_drain_ *drain)
{
    part_ended(BB_CONTAINER_OF(drain, struct bb_adopted_drain_, drain)->device);
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
    bb_heap_free(heap, device->adopted_drains,
                 device->adopted_drain_count * sizeof(*device->adopted_drains));
    if (waiter != NULL) {
        bb_waiter_signal_(waiter); /* bb_device_remove_wait() frees it */
    } else {
        bb_rcu_complete_now_(engine->rcu, &device->head, device_complete);
    }
}

/* The first half: what can fail. Under the table lock. */
static int retire_device_locked(struct bb_ctx *ctx, struct bb_device *device, struct bb_error *err)
{
    struct bb_heap *heap = device->engine->heap;
    struct bb_adopted_drain_ *drains = NULL;
    size_t count = device->adopted;

    if (bb_load_relaxed(&device->removing) != 0) { /* written under the table lock */
        return bb_error_set(err, BB_E_STATE, "device %s is being removed already", device->name);
    }
    if (count > 0) {
        drains = bb_heap_alloc(heap, count * sizeof(*drains));
        if (drains == NULL) {
            return bb_error_set(err, BB_E_NOMEM, "removing device %s: out of memory", device->name);
        }
    }
    /* While `removing` is not set, expiries, arming and the inbox go on: nothing is lost where this
     * fails. */
    int result = bb_regions_retire_(ctx, device->regions, device->region_count, err);
    if (result != BB_OK) {
        bb_heap_free(heap, drains, count * sizeof(*drains));
        return result;
    }
    device->adopted_drains = drains;
    device->adopted_drain_count = count;
    /* Release: pairs with the acquire loads on expiry, arming and draining. From here on `regions`,
     * `timers` and `sources` do not change: creation, adoption and region removal refuse. */
    bb_store_release(&device->removing, 1);
    return BB_OK;
}

/* Begins all the waits of a device's removal but those that regions of it have begun already. */
static void begin_waits(struct bb_device *device)
{
    struct bb_rcu *rcu = device->engine->rcu;
    size_t bytes = sizeof(*device) + device->region_count * sizeof(struct bb_region);
    size_t next = 0;

    /* Relaxed: the device's own part, which is counted from the beginning, is still there. */
    (void)bb_fetch_add_relaxed(&device->parts, (uint32_t)device->adopted_drain_count + 1);
    bb_rcu_defer_(rcu, &device->weight, device_weighed, bytes);
    for (size_t i = 0; i < device->region_count; i++) {
        struct bb_region *region = device->regions[i];

        if (region->pins == &region->own_pins) {
            struct bb_adopted_drain_ *adopted = &device->adopted_drains[next++];

            adopted->device = device;
            bb_pins_drain_all_(rcu, region->pins, &adopted->drain, BB_ON_RECLAIM_, adopted_drained);
        }
    }
    /* The last: with its own part the device may be gone. */
    bb_pins_drain_all_(rcu, &device->pins, &device->drain, BB_ON_RECLAIM_, device_drained);
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
    result = retire_device_locked(ctx, device, err);
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
    begin_waits(device);
    settle(ctx);
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
