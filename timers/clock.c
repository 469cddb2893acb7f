/* SPDX-License-Identifier: MIT */
/*
 * The virtual clock. In host mode it is a counter of 1 ns ticks over CLOCK_MONOTONIC (counter.c
 * has the argument why it never runs backwards); in manual mode a word that one stepping thread
 * moves forward. Its own lock serialises start and stop and is a leaf: nothing is taken under it,
 * so it needs no rank and its callers no context.
 */
#include "clock.h"

#include <pthread.h>
#include <time.h>

#include "timers_internal.h"

struct bb_clock {
    struct bb_counter host;  /* host mode; its writers hold `lock`. First: see bb_virtual_now_() */
    enum bb_clock_mode mode; /* immutable */
    struct bb_heap *heap;    /* immutable */
    bb_ns_t manual_ns;       /* (a) manual mode; written by the stepping thread, read by any */
    bool running;            /* (a) written under `lock`, read by any */
    bool stepping;           /* (a) a step is in progress; taken by CAS by the stepping thread */
    pthread_mutex_t lock;
    struct bb_timer_queue *queue; /* (a) written under `lock` */
};

static bb_ns_t manual_now(void *opaque)
{
    struct bb_clock *clock = opaque;

    return bb_load_acquire(&clock->manual_ns); /* pairs with bb_clock_move_() */
}

_Static_assert(offsetof(struct bb_clock, host) == 0, "a clock is passed on as its counter");

bb_ns_t bb_clock_virtual_now_(void *opaque)
{
    return bb_virtual_now_(opaque);
}

bb_ns_t bb_clock_now_ns(struct bb_clock *clock)
{
    return clock->mode == BB_CLOCK_HOST ? bb_virtual_now_(&clock->host) : manual_now(clock);
}

struct bb_time_source bb_clock_source(struct bb_clock *clock)
{
    return (struct bb_time_source){
        .now_ns = clock->mode == BB_CLOCK_HOST ? bb_clock_virtual_now_ : manual_now,
        .opaque = clock,
        .ordered = true,
    };
}

struct bb_counter_state_ bb_clock_state_(struct bb_clock *clock)
{
    if (clock->mode == BB_CLOCK_HOST) {
        return bb_counter_sample_(&clock->host, bb_host_now_, NULL, true, true);
    }
    return (struct bb_counter_state_){
        .value = manual_now(clock),
        .running = bb_clock_running(clock),
    };
}

void bb_clock_move_(struct bb_clock *clock, bb_ns_t now_ns)
{
    bb_store_release(&clock->manual_ns, now_ns); /* pairs with manual_now() */
}

enum bb_clock_mode bb_clock_mode(const struct bb_clock *clock)
{
    return clock->mode;
}

bool bb_clock_running(struct bb_clock *clock)
{
    return bb_load_acquire(&clock->running); /* pairs with set_running() */
}

static void set_running(struct bb_clock *clock, bool running)
{
    struct bb_timer_queue *queue;

    (void)pthread_mutex_lock(&clock->lock);
    if (clock->mode == BB_CLOCK_HOST) {
        if (running) {
            bb_counter_run(&clock->host);
        } else {
            (void)bb_counter_halt(&clock->host);
        }
    }
    bb_store_release(&clock->running, running); /* pairs with bb_clock_running() */
    /* Also where nothing changed: a start is what parked timers wait for. Relaxed: under the lock.
     */
    queue = bb_load_relaxed(&clock->queue);
    if (queue != NULL) {
        bb_timer_queue_clock_changed_(queue);
    }
    (void)pthread_mutex_unlock(&clock->lock);
}

void bb_clock_stop(struct bb_clock *clock)
{
    set_running(clock, false);
}

void bb_clock_start(struct bb_clock *clock)
{
    set_running(clock, true);
}

int bb_clock_step(struct bb_ctx *ctx, struct bb_clock *clock, uint64_t delta_ns,
                  struct bb_error *err)
{
    struct bb_timer_queue *queue;
    bb_ns_t now_ns, target_ns;
    bool idle = false;
    int rc = BB_OK;

    if (clock->mode != BB_CLOCK_MANUAL) {
        return bb_error_set(err, BB_E_STATE,
                            "the clock follows host time; only a manual clock can be stepped");
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "a clock can't be stepped inside a callback, section, pin or lock");
    }
    /* Pairs with the release at the end of the step before: steps see each other's clock. */
    if (!bb_cas_acquire(&clock->stepping, &idle, true)) {
        return bb_error_set(err, BB_E_STATE, "the clock is being stepped; one step at a time");
    }
    if (!bb_clock_running(clock)) {
        rc = bb_error_set(err, BB_E_STATE, "the clock is stopped; start it before stepping it");
        goto out;
    }
    now_ns = manual_now(clock);
    target_ns = delta_ns < BB_TIME_LIMIT_ - 1 - now_ns ? now_ns + delta_ns : BB_TIME_LIMIT_ - 1;
    queue = bb_load_acquire(&clock->queue); /* pairs with bb_clock_attach_queue_() */
    if (queue == NULL) {
        bb_clock_move_(clock, target_ns);
        goto out;
    }
    rc = bb_timer_queue_step_(ctx, queue, target_ns);
    if (rc != BB_OK) {
        (void)bb_error_set(err, rc, "the clock was stopped while it was stepped; it stands at %llu",
                           (unsigned long long)manual_now(clock));
    }
out:
    bb_store_release(&clock->stepping, false); /* pairs with the CAS above */
    return rc;
}

int bb_clock_attach_queue_(struct bb_clock *clock, struct bb_timer_queue *queue)
{
    int rc = BB_E_EXIST;

    (void)pthread_mutex_lock(&clock->lock);
    /* Relaxed: written under the lock only. */
    if (bb_load_relaxed(&clock->queue) == NULL) {
        bb_store_release(&clock->queue, queue); /* pairs with bb_clock_step() */
        rc = BB_OK;
    }
    (void)pthread_mutex_unlock(&clock->lock);
    return rc;
}

void bb_clock_detach_queue_(struct bb_clock *clock)
{
    (void)pthread_mutex_lock(&clock->lock);
    bb_store_release(&clock->queue, NULL); /* pairs with bb_clock_step() */
    (void)pthread_mutex_unlock(&clock->lock);
}

int bb_clock_create_(struct bb_heap *heap, enum bb_clock_mode mode, struct bb_clock **clock,
                     struct bb_error *err)
{
    const struct bb_time_source host = {.now_ns = bb_host_now_, .ordered = true};
    struct bb_clock *made;

    if (mode != BB_CLOCK_HOST && mode != BB_CLOCK_MANUAL) {
        return bb_error_set(err, BB_E_INVAL, "clock mode %d is neither BB_CLOCK_HOST nor _MANUAL",
                            (int)mode);
    }
    made = bb_heap_alloc_aligned(heap, sizeof *made, BB_CACHE_LINE_BYTES);
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a clock (%zu bytes)", sizeof *made);
    }
    made->mode = mode;
    made->heap = heap;
    bb_counter_init(&made->host, &host, 1);
    (void)pthread_mutex_init(&made->lock, NULL);
    *clock = made;
    return BB_OK;
}

void bb_clock_destroy_(struct bb_clock *clock)
{
    (void)pthread_mutex_destroy(&clock->lock);
    bb_heap_free(clock->heap, clock, sizeof *clock);
}
