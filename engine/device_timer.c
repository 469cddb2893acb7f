/* SPDX-License-Identifier: MIT */
/*
 * Timers of devices: an expiry is an outermost access of its own.
 *
 * A locked timer's expiry goes through the device's inbox: push, full fence, try the lock. If the
 * lock is held, its holder runs the expiry on release. So the service thread waits for no device,
 * and a callback is race-free against the device's MMIO because both are under one lock, without
 * any order between that lock and the timer queue's: the queue's lock is never held in a callback.
 * Where the timer was armed or disarmed under the lock meanwhile, the expiry has lost and is
 * dropped.
 *
 * What the inbox does not cover: the effects that a callback posts. They run in the epilogue on the
 * service thread, and a posted write to a DEVICE_LOCK region, or a raise behind one, waits there
 * for that device's lock, and all expiries with it. It waits holding nothing, so nothing is locked
 * up, but a vCPU that is preempted in that device delays every timer of the engine for as long. A
 * callback that sets lines, sends messages and reaches RAM and LOCKFREE regions never gets there.
 */
#include "engine_internal.h"

/* Runs the callback, under the device's lock where the timer is locked. */
void bb_device_timer_run_(struct bb_ctx *ctx, struct bb_device_timer *timer, bb_ns_t deadline_ns)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    struct bb_inbox_frame_ frame = bb_inbox_frame_enter_(e, timer->device);

    bb_count_(e, expiries);
    timer->config.expired(ctx, timer->config.opaque, deadline_ns);
    bb_inbox_frame_leave_(e, frame);
}

static void inbox_push(struct bb_device_timer *timer, bb_ns_t deadline_ns)
{
    struct bb_device *device = timer->device;

    /* Acquire: pairs with the release store in take_timers() (device.c), after which the links are
     * ours again. Release: pairs with the same store's next reader. */
    if (bb_xchg_acq_rel(&timer->inboxed, 1) != 0) {
        return; /* it is in there already and has not run yet: one callback serves both */
    }
    timer->inbox_deadline_ns = deadline_ns;
    struct bb_device_timer *head = bb_load_relaxed(&device->inbox_timers); /* the swap decides */
    do {
        timer->inbox_next = head;
        /* Release: pairs with the acquire exchange in take_timers() (device.c). */
    } while (!bb_cas_release(&device->inbox_timers, &head, timer));
}

static enum bb_expiry_ expire(struct bb_ctx *ctx, struct bb_timer_ *base, bb_ns_t deadline_ns)
{
    struct bb_device_timer *timer = BB_CONTAINER_OF(base, struct bb_device_timer, timer);
    struct bb_device *device = timer->device;
    struct bb_engine *engine = device->engine;
    struct bb_ectx_ *e = bb_ectx_(ctx);
    enum bb_expiry_ result = BB_EXPIRY_DONE_;
    bool big = engine->lock_mode == BB_LOCK_BIG;

    if (big) {
        bb_big_lock_(e);
    }
    bb_section_enter_(ctx);
    if ((bb_load_acquire(&engine->map->gate) & BB_SLOW_GATE_) != 0) { /* as in dispatch.c */
        result = BB_EXPIRY_PARK_; /* the clock is being stopped; it comes back when it runs again */
    } else if (bb_load_acquire(&device->removing) == 0) { /* pairs with retire_device_locked() */
        e->active = true;
        bb_store_release(&e->busy, 1); /* pairs with scan_busy(); in the section, as there */
        if (timer->config.locked) {
            inbox_push(timer, deadline_ns);
            bb_device_try_drain_(ctx, device);
            if (bb_load_relaxed(&timer->inboxed) != 0) { /* a statistic */
                bb_count_(e, expiries_inboxed);
            }
        } else {
            bb_device_timer_run_(ctx, timer, deadline_ns);
        }
    }
    bb_section_leave_(ctx);
    if (e->active) {
        bb_chain_finish_(e);
    }
    if (big) {
        bb_big_unlock_(e);
    }
    return result;
}

int bb_device_timer_create(struct bb_ctx *ctx, struct bb_device *device,
                           const struct bb_device_timer_config *config,
                           struct bb_device_timer **timer, struct bb_error *err)
{
    if (device == NULL || timer == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a timer needs a device and a place");
    }
    struct bb_engine *engine = device->engine;

    if (bb_ectx_(ctx)->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "device %s is another engine's than the context",
                            device->name);
    }
    if (config == NULL || config->expired == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a timer of %s has no expired function", device->name);
    }
    struct bb_device_timer *made = bb_heap_alloc(engine->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "a timer of %s: out of memory", device->name);
    }
    made->device = device;
    made->config = *config;
    bb_timer_init_(&made->timer, engine->timers, expire);
    bb_lock_acquire(ctx, &engine->table);
    bool removing = bb_load_relaxed(&device->removing) != 0; /* guarded by the table lock */
    if (!removing) {
        made->next = device->timers;
        device->timers = made;
    }
    bb_lock_release(ctx, &engine->table);
    if (removing) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_STATE, "device %s is being removed", device->name);
    }
    *timer = made;
    return BB_OK;
}

int bb_device_timer_arm(struct bb_ctx *ctx, struct bb_device_timer *timer, bb_ns_t deadline_ns)
{
    /* Acquire: pairs with retire_device_locked(). An arming that slips through is harmless: removal
     * disarms once more when nothing of the device runs any longer. */
    if (bb_load_acquire(&timer->device->removing) != 0) {
        return BB_E_STATE;
    }
    return bb_timer_arm_(ctx, &timer->timer, deadline_ns);
}

void bb_device_timer_disarm(struct bb_ctx *ctx, struct bb_device_timer *timer)
{
    (void)bb_timer_disarm_(ctx, &timer->timer);
}
