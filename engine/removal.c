/* SPDX-License-Identifier: MIT */
/*
 * The removal of devices, and of regions by themselves.
 *
 * A device: unmap its regions, set `removing`, disarm, disconnect; then wait for a grace period and
 * for the device's pins. After that no access, notification, effect or inbox of it is in flight.
 * bb-control then disarms once more, waiting (a callback in flight may have armed a timer
 * meanwhile), and withdraws asserted lines; then the device is destroyed. Each wait holds nothing.
 */
#include "engine_internal.h"

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
