/* SPDX-License-Identifier: MIT */
/*
 * The gate, pause and resume. bb-control, which looks at a pause under way, is in control.c.
 *
 * Pausing: OPEN -> CLOSING (gate bit set, clock stopped, a grace period asked for) -> CLOSED once
 * the grace period has passed and no context is busy. Why CLOSED means that no callback runs:
 *  1. An access that saw the gate open did so in a section that the grace period waited for.
 *  2. If it went on outside that section (a pinned callback, a posted effect, a second piece), it
 *     had set `busy` inside the section; scan_busy() runs after the grace period and sees it.
 *  3. Contexts become busy later only by passing the gate again, and it is closed. An access that
 *     can't wait at the gate without harm (its thread holds the embedder's lock, a section, or a
 *     ranked lock) passes while CLOSING, by setting `busy` under the control mutex, under which
 *     CLOSED is decided; once CLOSED it is refused.
 *  4. Coalesced writes are callbacks to come, too. Once the grace period is over and nobody is busy
 *     none can be taken any more; bb-control makes what is left, and still_locked() waits until
 *     nothing is pending. A maker passes no gate. It is busy before it says that nothing is left,
 *     so a look at contexts after one at what is pending finds it (coalesce.c, invariant 6).
 *  5. Work in a device's inbox is a callback to come: still_locked() waits for it. What an
 *     embedder's own thread sets off while CLOSED (a line that it sets, a device that it removes)
 *     is that thread's doing, and is not held up.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine_internal.h"

enum { PAUSE_LOOK_NS = 1000000 };

static bb_ns_t host_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (bb_ns_t)now.tv_sec * 1000000000u + (bb_ns_t)now.tv_nsec;
}

/* The gate. */

static bool external_held(const struct bb_engine *engine)
{
    return engine->external.held != NULL && engine->external.held(engine->external.opaque);
}

/*
 * Meets a closed gate. Returns 1 to look again, 0 where the access passes (busy is set), -1 where
 * it may neither wait nor pass.
 */
static int gate_meet(struct bb_ectx_ *e)
{
    struct bb_engine *engine = e->engine;
    bool holds = bb_section_active_(&e->mem.base) || e->mem.base.lock_depth > 0;
    bool external = external_held(engine);
    int verdict = 1;

    bb_count_(e, gate_waits);
    pthread_mutex_lock(&engine->control);
    if (engine->pause_state == BB_CLOSING_ && (holds || external)) {
        /* Pairs with scan_busy(); under the mutex under which CLOSED is decided. */
        bb_store_release(&e->busy, 1);
        verdict = 0;
    } else if (engine->pause_state != BB_OPEN_) {
        if (holds || external) {
            verdict = -1; /* who resumes may want what we hold */
        } else {
            pthread_cond_wait(&engine->changed, &engine->control);
        }
    }
    pthread_mutex_unlock(&engine->control);
    return verdict;
}

/* Begins an outermost chain: false where it can't (BB_E_CONTEXT). Sets busy, takes the big lock. */
bool bb_gate_enter_(struct bb_ectx_ *e)
{
    struct bb_ctx *ctx = &e->mem.base;
    uint32_t slow;

    /* What an event left to be run keeps us busy: at the gate we would wait for who waits for us.
     */
    bb_chain_settle_(e);
    for (;;) {
        bb_section_enter_(ctx);
        slow = bb_load_acquire(&e->mem.map->gate); /* as in fast_find() (dispatch.c) */
        if ((slow & BB_SLOW_GATE_) == 0) {
            /* In the section: seen by scan_busy() after the grace period that waits for us. */
            bb_store_release(&e->busy, 1);
            bb_section_leave_(ctx);
            break;
        }
        bb_section_leave_(ctx);
        int verdict = gate_meet(e);
        if (verdict < 0) {
            return false;
        }
        if (verdict == 0) {
            break;
        }
    }
    e->active = true;
    /* Never behind a ranked lock: others take those with the big lock held. Such an access finds
     * LOCKFREE regions only, which keep themselves together. */
    if ((slow & BB_SLOW_LOCK_BIG_) != 0 && ctx->lock_depth == 0) {
        bb_big_lock_(e);
    }
    return true;
}

void bb_gate_leave_(struct bb_ectx_ *e)
{
    if (e->big) {
        bb_big_unlock_(e);
    }
}

void bb_big_lock_(struct bb_ectx_ *e)
{
    pthread_mutex_lock(&e->engine->big);
    e->big = true;
}

void bb_big_unlock_(struct bb_ectx_ *e)
{
    e->big = false;
    pthread_mutex_unlock(&e->engine->big);
}

void bb_busy_clear_(struct bb_ectx_ *e)
{
    /* Relaxed: only this thread sets it. */
    if (bb_load_relaxed(&e->busy) == 0) {
        return;
    }
    /* Release: pairs with scan_busy(); what the chain did is seen by who finds it done. */
    bb_store_release(&e->busy, 0);
    if ((bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_GATE_) != 0) {
        /* A hint: bb-control looks by itself, should this load have missed the gate. */
        pthread_mutex_lock(&e->engine->control);
        pthread_cond_signal(&e->engine->control_wake);
        pthread_mutex_unlock(&e->engine->control);
    }
}

/* Pause, under the control mutex. */

static void set_gate(struct bb_engine *engine, bool closed)
{
    uint32_t bits = bb_load_relaxed(&engine->map->gate); /* written under the mutex alone */

    bits = closed ? bits | BB_SLOW_GATE_ : bits & ~(uint32_t)BB_SLOW_GATE_;
    /* Release: an access that finds the gate open again sees what was done while it was closed;
     * pairs, through the section's own ordering, with fast_find() and bb_gate_enter_(). */
    bb_store_release(&engine->map->gate, bits);
}

static void pause_grace_over(struct bb_pin_drain_ *drain);

static void ask_for_grace_locked(struct bb_engine *engine)
{
    engine->pause_grace = false;
    if (!engine->pause_drain_busy) {
        engine->pause_drain_busy = true;
        engine->pause_ticket_asked = engine->pause_ticket;
        bb_pins_drain_(engine->rcu, NULL, &engine->pause_drain, BB_ON_RECLAIM_, pause_grace_over);
    }
}

static void pause_grace_over(struct bb_pin_drain_ *drain)
{
    struct bb_engine *engine = BB_CONTAINER_OF(drain, struct bb_engine, pause_drain);

    pthread_mutex_lock(&engine->control);
    engine->pause_drain_busy = false;
    if (engine->pause_ticket_asked == engine->pause_ticket) {
        engine->pause_grace = true;
    } else if (engine->pause_state == BB_CLOSING_) {
        ask_for_grace_locked(engine); /* the gate was opened and closed again meanwhile */
    }
    pthread_cond_signal(&engine->control_wake);
    pthread_mutex_unlock(&engine->control);
}

static void close_gate_locked(struct bb_engine *engine)
{
    engine->pause_state = BB_CLOSING_;
    engine->pause_ticket++;
    set_gate(engine, true);
    engine->clock_was_running = bb_clock_running(engine->clock);
    bb_clock_stop(engine->clock);
    ask_for_grace_locked(engine);
}

static void open_gate_locked(struct bb_engine *engine)
{
    engine->pause_state = BB_OPEN_;
    set_gate(engine, false);
    if (engine->clock_was_running) {
        bb_clock_start(engine->clock);
    }
    pthread_cond_broadcast(&engine->changed);
}

struct busy_scan {
    uint32_t device_id;
    uint32_t inbox_of; /* a device whose inbox has work in it; 0: none found */
    bool busy;
    bool control;   /* bb-control has something to do that runs callbacks */
    bool coalesced; /* writes are left */
    bool in_callback;
    char thread[BB_CTX_NAME_BYTES];
};

/* A context in the way: busy, or (for reports before the grace period is over) in a callback. */
static void scan_busy(struct bb_ctx *ctx, void *arg)
{
    struct busy_scan *scan = arg;
    struct bb_ectx_ *e = bb_ectx_(ctx);
    uint32_t device_id = bb_load_relaxed(&ctx->device_id); /* a report */

    /* Acquire: pairs with bb_busy_clear_(); after the grace period it sees every store of 1 that
     * was made in a section before. */
    if (bb_load_acquire(&e->busy) != 0) {
        scan->busy = true;
    } else if (device_id == 0) {
        return;
    }
    scan->in_callback = true;
    if (scan->device_id == 0) {
        scan->device_id = device_id;
        memcpy(scan->thread, ctx->name, sizeof(scan->thread));
    }
}

static void pause_complete(struct bb_rcu_head *head)
{
    struct bb_pause_request_ *request = BB_CONTAINER_OF(head, struct bb_pause_request_, head);
    struct bb_engine *engine = request->engine;

    request->done(engine->complete_ctx, request->opaque, request->result,
                  request->result == BB_OK ? NULL : &request->error);
    bb_heap_free(engine->heap, request, sizeof(*request));
}

static void finish_request_locked(struct bb_engine *engine, struct bb_pause_request_ *request)
{
    if (request->waited) {
        request->finished = true;
        pthread_cond_broadcast(&engine->changed);
    } else {
        bb_rcu_complete_now_(engine->rcu, &request->head, pause_complete);
    }
}

static void say_who_is_in_the_way(struct bb_engine *engine, struct bb_ctx *ctx,
                                  struct bb_error *err, const struct busy_scan *scan)
{
    char device[BB_CTX_NAME_BYTES];

    if (scan->device_id != 0) {
        bb_error_set(err, BB_E_TIMEOUT,
                     "pause undone: thread %s is still in a callback of device %s", scan->thread,
                     bb_device_name_of_(ctx, engine, scan->device_id, device, sizeof(device)));
    } else if (scan->busy) {
        bb_error_set(err, BB_E_TIMEOUT, "pause undone: thread %s has posted effects outstanding",
                     scan->thread);
    } else if (scan->control) {
        bb_error_set(err, BB_E_TIMEOUT,
                     "pause undone: bb-control is still at work for a device or its removal");
    } else if (scan->coalesced) {
        bb_error_set(err, BB_E_TIMEOUT, "pause undone: coalesced writes have not all been made");
    } else if (scan->inbox_of != 0) {
        bb_error_set(
            err, BB_E_TIMEOUT,
            "pause undone: a thread outside any access holds the lock of device %s, for which "
            "work has come in meanwhile",
            bb_device_name_of_(ctx, engine, scan->inbox_of, device, sizeof(device)));
    } else {
        bb_error_set(err, BB_E_TIMEOUT,
                     "pause undone: a read section outside any device did not end");
    }
}

/* Calls the cancel hooks of devices that are pinned. Under the control mutex, which it drops. */
static void cancel_pinned(struct bb_engine *engine, struct bb_ctx *ctx)
{
    uint32_t below = UINT32_MAX;

    pthread_mutex_unlock(&engine->control);
    for (;;) {
        struct bb_device *found = NULL;
        unsigned side = 0;

        bb_lock_acquire(ctx, &engine->table);
        for (struct bb_device *d = engine->devices; d != NULL; d = d->next) {
            /* A device that is being removed has had its cancel hook called by that. */
            if (d->id < below && (found == NULL || d->id > found->id) && d->ops != NULL &&
                d->ops->cancel != NULL && bb_pins_held_(&d->pins) > 0 &&
                bb_load_relaxed(&d->removing) == 0) { /* set under the table lock */
                found = d;
            }
        }
        if (found != NULL) {
            below = found->id;
            bb_section_enter_(ctx);
            side = bb_pins_get_(&found->pins);
            bb_section_leave_(ctx);
        }
        bb_lock_release(ctx, &engine->table);
        if (found == NULL) {
            break;
        }
        found->ops->cancel(ctx, found->opaque);
        bb_pins_put_(engine->rcu, &found->pins, side);
    }
    pthread_mutex_lock(&engine->control);
}

/*
 * True where no device's inbox has anything in it; else `id` is the device whose has. Acquire: who
 * emptied one made itself busy before (bb_device_drain_inbox_()), and a look at contexts after this
 * one finds it so.
 */
static bool inboxes_empty(struct bb_engine *engine, struct bb_ctx *ctx, uint32_t *id)
{
    bool empty = true;

    bb_lock_acquire(ctx, &engine->table);
    for (struct bb_device *d = engine->devices; d != NULL && empty; d = d->next) {
        if (bb_load_relaxed(&d->removing) == 0 && /* set under the table lock */
            (bb_load_acquire(&d->inbox_pins) != 0 || bb_load_acquire(&d->inbox_timers) != NULL)) {
            empty = false;
            *id = d->id;
        }
    }
    bb_lock_release(ctx, &engine->table);
    return empty;
}

/*
 * Decides whether everything stands still. Once the grace period is over and no context is busy no
 * chain exists, so no write is taken and nothing is pushed to an inbox any more, but by who makes
 * the writes that are left. What lies in an inbox then is in the hands of an embedder's thread that
 * holds a device's lock, outside any access, or of bb-control. Whoever has made writes or emptied
 * an inbox is found busy by the second look, or has done the work.
 */
static bool still_locked(struct bb_engine *engine, struct bb_ctx *ctx, struct busy_scan *scan)
{
    bb_rcu_each_ctx_(engine->rcu, scan_busy, scan);
    if (!engine->pause_grace || scan->busy) {
        return false;
    }
    if (engine->service != NULL || engine->retired != NULL || engine->control_working) {
        scan->control = true;
        return false;
    }
    if (bb_coalesce_pending_(engine)) {
        scan->coalesced = true;
        return false;
    }
    if (!inboxes_empty(engine, ctx, &scan->inbox_of)) {
        return false;
    }
    bb_rcu_each_ctx_(engine->rcu, scan_busy, scan);
    return !scan->busy;
}

/*
 * Has bb-control make the writes that are left, or leave that to who is at it. Not before the grace
 * period is over: until then vCPUs may leave more. Not on the thread that waits for the pause: a
 * callback may wait past the deadline, which it is to keep, and for a cancel hook, which it is to
 * call. Under the control mutex, which it drops.
 */
static void make_coalesced(struct bb_engine *engine, struct bb_ctx *ctx)
{
    if (ctx == engine->control_ctx && engine->pause_state == BB_CLOSING_ && engine->pause_grace &&
        bb_coalesce_pending_(engine)) {
        pthread_mutex_unlock(&engine->control);
        bb_coalesce_try_(bb_ectx_(ctx));
        pthread_mutex_lock(&engine->control);
    }
}

/* One look at a pause under way. Returns the host time of the next look, UINT64_MAX: none. */
bb_ns_t bb_pause_step_locked_(struct bb_engine *engine, struct bb_ctx *ctx)
{
    struct busy_scan scan = {0};

    if (engine->requests == NULL) {
        return UINT64_MAX;
    }
    if (engine->pause_state == BB_CLOSING_) {
        cancel_pinned(engine, ctx);
    }
    make_coalesced(engine, ctx);
    if (engine->pause_state == BB_CLOSING_ && still_locked(engine, ctx, &scan)) {
        engine->pause_state = BB_CLOSED_;
    }
    bb_ns_t now = host_now_ns();
    for (struct bb_pause_request_ **link = &engine->requests; *link != NULL;) {
        struct bb_pause_request_ *request = *link;

        if (engine->pause_state == BB_CLOSED_) {
            request->result = BB_OK;
        } else if (now >= request->deadline_ns) {
            request->result = BB_E_TIMEOUT;
            say_who_is_in_the_way(engine, ctx, &request->error, &scan);
            if (--engine->pause_count == 0) {
                open_gate_locked(engine);
            }
        } else {
            link = &request->next;
            continue;
        }
        *link = request->next;
        finish_request_locked(engine, request);
    }
    return engine->requests == NULL ? UINT64_MAX : now + PAUSE_LOOK_NS;
}

static void add_request_locked(struct bb_engine *engine, struct bb_pause_request_ *request,
                               uint64_t deadline_ns)
{
    bb_ns_t now = host_now_ns();

    request->engine = engine;
    request->deadline_ns =
        deadline_ns == 0 || deadline_ns > UINT64_MAX - now ? UINT64_MAX : now + deadline_ns;
    if (engine->pause_count++ == 0) {
        close_gate_locked(engine);
    }
    request->next = engine->requests;
    engine->requests = request;
    pthread_cond_signal(&engine->control_wake);
}

int bb_engine_pause(struct bb_ctx *ctx, uint64_t deadline_ns, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    struct bb_pause_request_ request = {.waited = true};

    if (!bb_may_block_(bb_ectx_(ctx))) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "bb_engine_pause would block inside a callback, read section, pin or "
                            "lock, the external lock included; use bb_engine_pause_async there");
    }
    pthread_mutex_lock(&engine->control);
    add_request_locked(engine, &request, deadline_ns);
    /* Looks for itself, too: bb-control may be at work that waits for a cancel hook of ours. */
    while (!request.finished) {
        bb_ns_t next = bb_pause_step_locked_(engine, ctx);
        if (!request.finished) {
            bb_control_wait_locked_(engine, &engine->changed, next);
        }
    }
    pthread_mutex_unlock(&engine->control);
    if (request.result != BB_OK && err != NULL) {
        *err = request.error;
    }
    return request.result;
}

int bb_engine_pause_async(struct bb_ctx *ctx, uint64_t deadline_ns,
                          void (*done)(struct bb_ctx *ctx, void *opaque, int result,
                                       const struct bb_error *err),
                          void *opaque, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;

    if (done == NULL) {
        return bb_error_set(err, BB_E_INVAL, "bb_engine_pause_async needs a done function");
    }
    struct bb_pause_request_ *request = bb_heap_alloc(engine->heap, sizeof(*request));
    if (request == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "pause: out of memory");
    }
    request->done = done;
    request->opaque = opaque;
    pthread_mutex_lock(&engine->control);
    add_request_locked(engine, request, deadline_ns);
    pthread_mutex_unlock(&engine->control);
    return BB_OK;
}

int bb_engine_resume(struct bb_ctx *ctx, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    int result = BB_OK;

    pthread_mutex_lock(&engine->control);
    uint32_t unfinished = 0;
    for (const struct bb_pause_request_ *r = engine->requests; r != NULL; r = r->next) {
        unfinished++;
    }
    if (engine->pause_state != BB_CLOSED_ || engine->pause_count <= unfinished) {
        result = bb_error_set(err, BB_E_STATE, "the engine is not paused");
    } else if (--engine->pause_count == 0) {
        open_gate_locked(engine);
    }
    pthread_mutex_unlock(&engine->control);
    return result;
}

bool bb_engine_paused(struct bb_engine *engine)
{
    pthread_mutex_lock(&engine->control);
    bool paused = engine->pause_state == BB_CLOSED_;
    pthread_mutex_unlock(&engine->control);
    return paused;
}
