/* SPDX-License-Identifier: MIT */
/*
 * The domain: deferred work, its two threads, and the byte bound.
 *
 * Work is pushed on a queue by one compare-and-swap and taken whole. bb-reclaim takes what there
 * is, waits for one grace period for all of it, runs the library's own frees, and hands called
 * work to bb-complete, which alone runs user code: a slow completion delays completions, never a
 * free.
 *
 * Invariants:
 *  1. A piece of work is taken before the grace period that it is run after begins.
 *  2. Work that one thread pushed on one queue is run in the order in which it was pushed: pushes
 *     on a queue have one order, the taker reverses it back, and batches are run, or handed on
 *     whole, one after the other.
 *  3. `pending` counts a piece from before its push until after its function has returned; so
 *     nothing is left, and nothing that runs can add anything, once it is 0.
 *  4. `deferred_bytes` is given back when the free has been run, or when called work has been
 *     handed to bb-complete. So who waits for the byte bound waits for grace periods and for
 *     library code, never for an embedder's completion (which may itself wait for the bound).
 */
#include "rcu_internal.h"

#include <signal.h>
#include <string.h>

#define DEFERRED_BYTES_DEFAULT (UINT64_C(64) << 20)
#define STALL_NS_DEFAULT UINT64_C(1000000000)
#define STALL_NS_MAX (UINT64_MAX / 4) /* so that times computed from it don't wrap */

/* Pushes the chain first..last, newest first. Lock-free. */
void bb_rcu_push_(struct bb_rcu_head **top, struct bb_rcu_head *first, struct bb_rcu_head *last)
{
    struct bb_rcu_head *old = bb_load_relaxed(top); /* relaxed: checked by the exchange below */

    do {
        last->next = old;
        /* Release: the chain and what it is about are seen by take(). */
    } while (!bb_cas_release(top, &old, first));
}

/* Takes the whole queue, newest first. */
static struct bb_rcu_head *take(struct bb_rcu_head **top)
{
    /* Acquire; partner: bb_rcu_push_(). Relaxed look first: an empty queue is found again by who
     * is signalled after a push. */
    return bb_load_relaxed(top) == NULL ? NULL : bb_xchg_acquire(top, NULL);
}

static struct bb_rcu_head *reverse(struct bb_rcu_head *head)
{
    struct bb_rcu_head *reversed = NULL;

    while (head != NULL) {
        struct bb_rcu_head *next = head->next;

        head->next = reversed;
        reversed = head;
        head = next;
    }
    return reversed;
}

static void account(struct bb_rcu *rcu, size_t bytes)
{
    /* Relaxed: a figure; the bound is a matter of a moment and guards no data. */
    uint64_t now = bb_fetch_add_relaxed(&rcu->deferred_bytes, bytes) + bytes;
    uint64_t peak = bb_load_relaxed(&rcu->deferred_peak);

    while (now > peak && !bb_cas_relaxed(&rcu->deferred_peak, &peak, now)) {
    }
}

static void unaccount(struct bb_rcu *rcu, uint64_t bytes)
{
    if (bytes != 0) {
        (void)bb_fetch_add_relaxed(&rcu->deferred_bytes, -bytes);
        bb_wake_signal_(&rcu->bound_wake);
    }
}

void bb_rcu_work_done_(struct bb_rcu *rcu, uint64_t count)
{
    /* Release; partner: bb_rcu_destroy_(), which frees the domain after it has read 0. */
    if (count != 0 && bb_fetch_sub_acq_rel(&rcu->pending, count) == count) {
        bb_wake_signal_(&rcu->idle_wake);
    }
}

static void submit(struct bb_rcu *rcu, struct bb_rcu_head **queue, struct bb_rcu_head *head,
                   void (*fn)(struct bb_rcu_head *head), size_t bytes)
{
    head->fn = fn;
    head->bytes = bytes;
    /* Relaxed: the push below releases it to the thread that will lower it. */
    (void)bb_fetch_add_relaxed(&rcu->pending, 1);
    account(rcu, bytes);
    bb_rcu_push_(queue, head, head);
    bb_wake_signal_(&rcu->reclaim_wake);
}

void bb_rcu_defer_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                   void (*fn)(struct bb_rcu_head *head), size_t bytes)
{
    submit(rcu, &rcu->deferred, head, fn, bytes);
}

void bb_rcu_complete_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                      void (*fn)(struct bb_rcu_head *head), size_t bytes)
{
    submit(rcu, &rcu->called, head, fn, bytes);
}

void bb_rcu_call(struct bb_ctx *ctx, struct bb_rcu_head *head, void (*fn)(struct bb_rcu_head *head),
                 size_t bytes)
{
    bb_rcu_complete_(ctx->rcu, head, fn, bytes);
    if (bb_rcu_over_bound_(ctx->rcu)) {
        ctx->throttle = true;
    }
}

void bb_rcu_ready_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                   void (*fn)(struct bb_rcu_head *head))
{
    head->fn = fn;
    head->bytes = 0;
    bb_rcu_push_(&rcu->ready, head, head);
    bb_wake_signal_(&rcu->complete_wake);
}

void bb_rcu_complete_now_(struct bb_rcu *rcu, struct bb_rcu_head *head,
                          void (*fn)(struct bb_rcu_head *head))
{
    (void)bb_fetch_add_relaxed(&rcu->pending, 1); /* relaxed: as in submit() */
    bb_rcu_ready_(rcu, head, fn);
}

bool bb_rcu_over_bound_(struct bb_rcu *rcu)
{
    /* Relaxed: see account(). */
    return bb_load_relaxed(&rcu->deferred_bytes) > rcu->config.deferred_bytes_max;
}

void bb_rcu_throttle_(struct bb_ctx *ctx)
{
    struct bb_rcu *rcu = ctx->rcu;

    ctx->throttle = false;
    if (!bb_rcu_over_bound_(rcu)) {
        return;
    }
    if (!bb_ctx_may_block_(ctx)) {
        ctx->throttle = true;
        return;
    }
    (void)bb_fetch_add_relaxed(&rcu->throttled, 1); /* relaxed: a counter */
    for (;;) {
        uint32_t seen = bb_wake_seen_(&rcu->bound_wake);

        if (!bb_rcu_over_bound_(rcu)) {
            return;
        }
        bb_wake_sleep_(&rcu->bound_wake, seen, BB_FOREVER_NS_);
    }
}

/* Hands a queue of called work to bb-complete as it is, newest first. */
static void hand_over(struct bb_rcu *rcu, struct bb_rcu_head *first)
{
    struct bb_rcu_head *last = first;
    uint64_t bytes = first->bytes;

    while (last->next != NULL) {
        last = last->next;
        bytes += last->bytes;
    }
    bb_rcu_push_(&rcu->ready, first, last);
    bb_wake_signal_(&rcu->complete_wake);
    unaccount(rcu, bytes);
}

static void run_frees(struct bb_rcu *rcu, struct bb_rcu_head *head)
{
    uint64_t bytes = 0;
    uint64_t count = 0;

    while (head != NULL) {
        struct bb_rcu_head *next = head->next;

        bytes += head->bytes;
        count++;
        head->fn(head);
        head = next;
    }
    unaccount(rcu, bytes);
    bb_rcu_work_done_(rcu, count);
}

/* True where something waits for a grace period. */
static bool grace_wanted(struct bb_rcu *rcu)
{
    /* Relaxed: what is missed here was pushed after the wake's sequence was read. */
    return bb_load_relaxed(&rcu->deferred) != NULL || bb_load_relaxed(&rcu->called) != NULL ||
           bb_load_relaxed(&rcu->drains) != NULL || rcu->due != NULL;
}

static void grace_round(struct bb_rcu *rcu)
{
    struct bb_rcu_head *deferred;
    struct bb_rcu_head *called;
    struct bb_pin_drain_ *sections = NULL;

    bb_gp_pace_(rcu); /* first, so that what comes in meanwhile is in this batch */
    deferred = reverse(take(&rcu->deferred));
    called = take(&rcu->called);
    bb_pins_begin_(rcu, reverse(take(&rcu->drains)), &sections);

    bb_gp_wait_(rcu);

    run_frees(rcu, deferred);
    if (called != NULL) {
        hand_over(rcu, called);
    }
    bb_pins_graced_(rcu, sections);
}

static void *reclaim_main(void *arg)
{
    struct bb_rcu *rcu = arg;

    for (;;) {
        uint32_t seen = bb_wake_seen_(&rcu->reclaim_wake);

        if (grace_wanted(rcu)) {
            grace_round(rcu);
        }
        bb_pins_advance_(rcu);
        if (grace_wanted(rcu)) {
            continue;
        }
        /* Acquire; partner: bb_rcu_destroy_(). Nothing is pending once it is set. */
        if (bb_load_acquire(&rcu->stopping) != 0) {
            return NULL;
        }
        bb_wake_sleep_(&rcu->reclaim_wake, seen, BB_FOREVER_NS_);
    }
}

static void *complete_main(void *arg)
{
    struct bb_rcu *rcu = arg;

    for (;;) {
        uint32_t seen = bb_wake_seen_(&rcu->complete_wake);
        struct bb_rcu_head *head = reverse(take(&rcu->ready));
        uint64_t watch_ns;

        while (head != NULL) {
            struct bb_rcu_head *next = head->next;

            head->fn(head);
            bb_rcu_work_done_(rcu, 1);
            (void)bb_gp_watch_(rcu);
            head = next;
        }
        watch_ns = bb_gp_watch_(rcu);
        /* Acquire; partner: bb_rcu_destroy_(). */
        if (bb_load_acquire(&rcu->stopping) != 0) {
            return NULL;
        }
        bb_wake_sleep_(&rcu->complete_wake, seen, watch_ns);
    }
}

/* Starts a thread that takes none of the embedder's signals. */
static int start_thread(pthread_t *thread, const char *name, void *(*main_fn)(void *), void *arg)
{
    sigset_t all;
    sigset_t old;
    int rc;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(thread, NULL, main_fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0) {
        (void)pthread_setname_np(*thread, name);
    }
    return rc;
}

static void stop(struct bb_rcu *rcu)
{
    /* Release; partners: reclaim_main(), complete_main(). */
    bb_store_release(&rcu->stopping, 1u);
    bb_wake_signal_(&rcu->reclaim_wake);
    bb_wake_signal_(&rcu->complete_wake);
}

int bb_rcu_create_(const struct bb_rcu_config_ *config, struct bb_rcu **rcu, struct bb_error *err)
{
    struct bb_rcu *made;
    int rc;

    if (config->heap == NULL) {
        return bb_error_set(err, BB_E_INVAL, "an RCU domain needs a heap; heap is NULL");
    }
    made = bb_heap_alloc_aligned(config->heap, sizeof(*made), BB_CACHE_LINE_BYTES);
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for an RCU domain (%zu bytes)",
                            sizeof(*made));
    }
    made->config = *config;
    if (made->config.deferred_bytes_max == 0) {
        made->config.deferred_bytes_max = DEFERRED_BYTES_DEFAULT;
    }
    if (made->config.stall_ns == 0) {
        made->config.stall_ns = STALL_NS_DEFAULT;
    }
    if (made->config.stall_ns > STALL_NS_MAX) {
        made->config.stall_ns = STALL_NS_MAX;
    }
    rc = bb_gp_init_(&made->gp);
    if (rc != BB_OK) {
        (void)bb_error_set(err, rc, "no mutex for an RCU domain");
        goto no_gp;
    }
    if (pthread_mutex_init(&made->contexts_lock, NULL) != 0) {
        rc = bb_error_set(err, BB_E_SYSTEM, "no mutex for an RCU domain");
        goto no_lock;
    }
    rc = start_thread(&made->complete_thread, "bb-complete", complete_main, made);
    if (rc != 0) {
        rc =
            bb_error_set(err, BB_E_SYSTEM, "thread bb-complete can't be started: %s", strerror(rc));
        goto no_complete;
    }
    rc = start_thread(&made->reclaim_thread, "bb-reclaim", reclaim_main, made);
    if (rc != 0) {
        rc = bb_error_set(err, BB_E_SYSTEM, "thread bb-reclaim can't be started: %s", strerror(rc));
        goto no_reclaim;
    }
    *rcu = made;
    return BB_OK;

no_reclaim:
    stop(made);
    (void)pthread_join(made->complete_thread, NULL);
no_complete:
    (void)pthread_mutex_destroy(&made->contexts_lock);
no_lock:
    bb_gp_fini_(&made->gp);
no_gp:
    bb_heap_free(config->heap, made, sizeof(*made));
    return rc;
}

int bb_rcu_destroy_(struct bb_rcu *rcu, struct bb_error *err)
{
    int rc = BB_OK;

    if (pthread_equal(pthread_self(), rcu->reclaim_thread) != 0 ||
        pthread_equal(pthread_self(), rcu->complete_thread) != 0) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "an engine can't be destroyed by its own completion; destroy it on "
                            "another thread");
    }
    (void)pthread_mutex_lock(&rcu->contexts_lock);
    if (rcu->contexts != NULL) {
        rc = bb_error_set(err, BB_E_STATE,
                          "context '%s' (tid %d) is still attached; detach it first",
                          rcu->contexts->name, rcu->contexts->tid);
    }
    (void)pthread_mutex_unlock(&rcu->contexts_lock);
    if (rc != BB_OK) {
        return rc;
    }

    for (;;) {
        uint32_t seen = bb_wake_seen_(&rcu->idle_wake);

        /* Acquire; partner: bb_rcu_work_done_(). */
        if (bb_load_acquire(&rcu->pending) == 0) {
            break;
        }
        bb_wake_sleep_(&rcu->idle_wake, seen, BB_FOREVER_NS_);
    }
    stop(rcu);
    (void)pthread_join(rcu->reclaim_thread, NULL);
    (void)pthread_join(rcu->complete_thread, NULL);
    (void)pthread_mutex_destroy(&rcu->contexts_lock);
    bb_gp_fini_(&rcu->gp);
    bb_heap_free(rcu->config.heap, rcu, sizeof(*rcu));
    return BB_OK;
}
