/* SPDX-License-Identifier: MIT */
/*
 * bb-control, the thread that does the engine's own waiting: pauses, the second halves of removals,
 * cancel hooks, inboxes that nobody else could empty, and telling listeners of removals that were
 * asked for where they could not be told.
 *
 * bb-control never runs the embedder's completions, so removals that it finishes never wait for
 * one; it does call cancel hooks, which must not block. It also does the work of inboxes that
 * nobody else could, and what that posts: such an effect may wait for another device's lock or
 * sleep in a MAY_SLEEP callback. For a pause it makes the coalesced writes that are left (pause.c),
 * which may wait likewise. So a thread that waits for a pause looks for itself, too; a pause that
 * was asked for asynchronously then goes on once that effect is done. While a pause is under way
 * both look every millisecond, so that a context need not wake them at the end of a chain with a
 * fence.
 */
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "engine_internal.h"

/* Sleeps on `cond` until host time `until_ns`; UINT64_MAX: for as long as it takes. */
void bb_control_wait_locked_(struct bb_engine *engine, pthread_cond_t *cond, bb_ns_t until_ns)
{
    struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};

    if (until_ns == UINT64_MAX) {
        pthread_cond_wait(cond, &engine->control);
    } else {
        (void)pthread_cond_timedwait(cond, &engine->control, &until);
    }
}

static void queue_service(struct bb_device *device, bool cancel)
{
    struct bb_engine *engine = device->engine;

    pthread_mutex_lock(&engine->control);
    device->cancel_wanted |= cancel;
    if (!device->service_queued) {
        device->service_queued = true;
        device->service_pin = bb_pins_get_(&device->pins);
        device->service_next = engine->service;
        engine->service = device;
        pthread_cond_signal(&engine->control_wake);
    }
    pthread_mutex_unlock(&engine->control);
}

/* Has bb-control look at the device's inbox. From any thread, in a section of the device's. */
void bb_control_service_(struct bb_device *device)
{
    queue_service(device, false);
}

/* Has bb-control call the device's cancel hook, which wants nothing held. Likewise. */
void bb_control_cancel_(struct bb_device *device)
{
    queue_service(device, true);
}

/*
 * Has bb-control tell listeners what commits made with something held have left untold. Such a
 * commit is told by its own thread at its first chance, which may be long after: for a removal that
 * is too late, since it waits for what pins the region.
 */
void bb_control_tell_(struct bb_engine *engine)
{
    pthread_mutex_lock(&engine->control);
    engine->tell = true;
    pthread_cond_signal(&engine->control_wake);
    pthread_mutex_unlock(&engine->control);
}

/* Has bb-control do the second half of a removal. */
void bb_control_retire_(struct bb_device *device)
{
    struct bb_engine *engine = device->engine;

    pthread_mutex_lock(&engine->control);
    device->retired_next = engine->retired;
    engine->retired = device;
    pthread_cond_signal(&engine->control_wake);
    pthread_mutex_unlock(&engine->control);
}

/* Does what is queued; true where there was something. Under the mutex, which it drops. */
static bool control_work_locked(struct bb_engine *engine)
{
    struct bb_ctx *ctx = engine->control_ctx;
    struct bb_device *device = engine->retired;

    if (engine->tell) {
        engine->tell = false;
        pthread_mutex_unlock(&engine->control);
        bb_listeners_settle_(ctx);
        pthread_mutex_lock(&engine->control);
        return true;
    }
    if (device != NULL) {
        engine->retired = device->retired_next;
        pthread_mutex_unlock(&engine->control);
        bb_device_retire_(ctx, device);
        pthread_mutex_lock(&engine->control);
        return true;
    }
    device = engine->service;
    if (device != NULL) {
        engine->service = device->service_next;
        device->service_queued = false;
        unsigned pin = device->service_pin;
        bool cancel = device->cancel_wanted;
        device->cancel_wanted = false;
        pthread_mutex_unlock(&engine->control);
        if (cancel) {
            device->ops->cancel(ctx, device->opaque);
        }
        bb_section_enter_(ctx);
        bb_device_try_drain_(ctx, device);
        bb_section_leave_(ctx);
        bb_chain_settle_(bb_ectx_(ctx));
        bb_pins_put_(engine->rcu, &device->pins, pin);
        pthread_mutex_lock(&engine->control);
        return true;
    }
    return false;
}

static void *control_main(void *arg)
{
    struct bb_engine *engine = arg;
    struct bb_ctx *ctx = NULL;

    prctl(PR_SET_NAME, "bb-control");
    int result = bb_ctx_attach(engine, "bb-control", &ctx, &engine->control_error);
    pthread_mutex_lock(&engine->control);
    engine->control_ctx = ctx;
    engine->control_result = result;
    engine->control_ready = true;
    pthread_cond_broadcast(&engine->changed);
    while (result == BB_OK) {
        do {
            engine->control_working = true; /* looked at where the work drops the mutex */
        } while (control_work_locked(engine));
        engine->control_working = false;
        bb_ns_t next = bb_pause_step_locked_(engine, ctx);
        if (engine->tell || engine->retired != NULL || engine->service != NULL) {
            continue;
        }
        if (engine->requests == NULL) {
            if (engine->control_stop) {
                break;
            }
            next = UINT64_MAX;
        }
        bb_control_wait_locked_(engine, &engine->control_wake, next);
    }
    pthread_mutex_unlock(&engine->control);
    if (ctx != NULL) {
        (void)bb_ctx_detach_(ctx, NULL);
    }
    return NULL;
}

int bb_control_start_(struct bb_engine *engine, struct bb_error *err)
{
    pthread_condattr_t attr;
    sigset_t all, before;
    int error;

    pthread_mutex_init(&engine->control, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->control_wake, &attr);
    pthread_cond_init(&engine->changed, &attr);
    pthread_condattr_destroy(&attr);
    /* Signals to the process are for the embedder's threads. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&engine->control_thread, NULL, control_main, engine);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "bb-control can't be started: %s", strerror(error));
    }
    pthread_mutex_lock(&engine->control);
    while (!engine->control_ready) {
        pthread_cond_wait(&engine->changed, &engine->control);
    }
    pthread_mutex_unlock(&engine->control);
    if (engine->control_result != BB_OK) {
        pthread_join(engine->control_thread, NULL);
        if (err != NULL) {
            *err = engine->control_error;
        }
    }
    return engine->control_result;
}

void bb_control_stop_(struct bb_engine *engine)
{
    pthread_mutex_lock(&engine->control);
    engine->control_stop = true;
    pthread_cond_signal(&engine->control_wake);
    pthread_mutex_unlock(&engine->control);
    pthread_join(engine->control_thread, NULL);
}
