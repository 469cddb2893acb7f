/* SPDX-License-Identifier: MIT */
/*
 * The timer queue: a binary heap under one lock of rank TIMERS, and the thread that serves it.
 *
 * Invariants:
 *  1. A timer is in the heap exactly while it is armed. Taking it off (to fire, or by a disarm) is
 *     done under the lock, so each arming ends once: it fires, is disarmed, or is superseded by a
 *     later arming.
 *  2. No callback runs with the lock held, and one callback runs at a time: `firing` names it.
 *  3. The heap has room for everything in it and for the timer that fires now, so putting a parked
 *     one back can't fail. Only arming grows it.
 *  4. The service thread sleeps until the due time of the heap's top at the latest. Whoever makes
 *     an earlier one, or starts or stops the clock, changes `wake` before it looks at `sleeping`;
 *     the thread sets `sleeping` before the kernel compares `wake`. One of them sees the other.
 *
 * Order: by due time, then by deadline, then by arming. timers_core.h says when due time and
 * deadline differ. That bound also keeps a fast timer from starving others: it comes back behind
 * every timer due before it, and everything that is due in a finite time has a finite number of
 * firings before it.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "timers_internal.h"

#define NOT_QUEUED UINT32_MAX
enum { CAPACITY_FIRST = 16 };
/* How long parked timers rest where nobody starts the clock. */
enum { PARK_REST_NS = 1000000 };

struct bb_timer_queue {
    struct bb_timer_queue_config_ config; /* immutable */
    bool has_thread;                      /* immutable */
    struct bb_lock lock;

    /* Guarded by the lock. */
    struct bb_timer_ **armed; /* the heap */
    uint32_t count;
    uint32_t capacity;
    uint64_t next_sequence;
    struct bb_timer_ *firing; /* its callback runs now; compared, never followed */
    struct bb_ctx *firing_ctx;
    bool firing_superseded; /* it was armed or disarmed since its callback began */
    bool in_step;           /* a manual step is on its way */
    uint32_t waiters;       /* threads in bb_timer_disarm_wait_() */

    /* (a) Changed under the lock at each callback's end; bb_timer_disarm_wait_() sleeps on it. */
    uint32_t fired;

    /* (a) Shared with the service thread, each on whoever's behalf the argument at the top says. */
    uint32_t wake;     /* changed by anyone; the service thread sleeps on it */
    uint32_t sleeping; /* written by the service thread, read by who wakes it */
    uint32_t clock_changes;
    uint32_t stop; /* written once, by bb_timer_queue_destroy_() */

    /* Written by the service thread before it reports, read by the creator afterwards. */
    pthread_t thread;
    uint32_t reported; /* (a) 1: `result` and `error` are there */
    int result;
    struct bb_error error;
};

static void futex_wait(uint32_t *word, uint32_t seen, const struct timespec *until)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, seen, until, NULL,
                  FUTEX_BITSET_MATCH_ANY);
}

static void futex_wake_all(uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static bb_ns_t host_now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (bb_ns_t)now.tv_sec * 1000000000u + (bb_ns_t)now.tv_nsec;
}

/* The heap. */

static bool before(const struct bb_timer_ *a, const struct bb_timer_ *b)
{
    if (a->due_ns != b->due_ns) {
        return a->due_ns < b->due_ns;
    }
    if (a->deadline_ns != b->deadline_ns) {
        return a->deadline_ns < b->deadline_ns;
    }
    return a->sequence < b->sequence;
}

static void place_locked(struct bb_timer_queue *queue, uint32_t index, struct bb_timer_ *timer)
{
    queue->armed[index] = timer;
    timer->heap_index = index;
}

static void sift_up_locked(struct bb_timer_queue *queue, uint32_t index, struct bb_timer_ *timer)
{
    while (index > 0 && before(timer, queue->armed[(index - 1) / 2])) {
        place_locked(queue, index, queue->armed[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    place_locked(queue, index, timer);
}

static void sift_down_locked(struct bb_timer_queue *queue, uint32_t index, struct bb_timer_ *timer)
{
    for (;;) {
        uint32_t child = 2 * index + 1;

        if (child >= queue->count) {
            break;
        }
        if (child + 1 < queue->count && before(queue->armed[child + 1], queue->armed[child])) {
            child++;
        }
        if (!before(queue->armed[child], timer)) {
            break;
        }
        place_locked(queue, index, queue->armed[child]);
        index = child;
    }
    place_locked(queue, index, timer);
}

static void insert_locked(struct bb_timer_queue *queue, struct bb_timer_ *timer)
{
    sift_up_locked(queue, queue->count++, timer);
}

static void remove_locked(struct bb_timer_queue *queue, struct bb_timer_ *timer)
{
    uint32_t index = timer->heap_index;
    struct bb_timer_ *last = queue->armed[--queue->count];

    timer->heap_index = NOT_QUEUED;
    if (last == timer) {
        return;
    }
    if (index > 0 && before(last, queue->armed[(index - 1) / 2])) {
        sift_up_locked(queue, index, last);
    } else {
        sift_down_locked(queue, index, last);
    }
}

/* Room for one more, and for the one that fires. */
static int reserve_locked(struct bb_timer_queue *queue)
{
    uint32_t wanted = queue->count + 2, capacity;
    struct bb_timer_ **grown;

    if (wanted <= queue->capacity) {
        return BB_OK;
    }
    if (wanted > UINT32_MAX / 2) {
        return BB_E_NOMEM;
    }
    capacity = queue->capacity == 0 ? CAPACITY_FIRST : queue->capacity * 2;
    grown = bb_heap_alloc(queue->config.heap, capacity * sizeof *grown);
    if (grown == NULL) {
        return BB_E_NOMEM;
    }
    if (queue->count > 0) {
        memcpy(grown, queue->armed, queue->count * sizeof *grown);
    }
    bb_heap_free(queue->config.heap, queue->armed, queue->capacity * sizeof *grown);
    queue->armed = grown;
    queue->capacity = capacity;
    return BB_OK;
}

/* Notes that what fires now was overtaken, if it is this timer. */
static void supersede_locked(struct bb_timer_queue *queue, struct bb_timer_ *timer)
{
    timer->generation++;
    if (queue->firing == timer) {
        queue->firing_superseded = true;
    }
}

static bool disarm_locked(struct bb_timer_queue *queue, struct bb_timer_ *timer)
{
    supersede_locked(queue, timer);
    if (timer->heap_index == NOT_QUEUED) {
        return false;
    }
    remove_locked(queue, timer);
    return true;
}

/*
 * Fires the top of the heap at virtual time `now_ns`, unless its owner wants it dropped. Enters
 * and leaves with the lock held; releases it round the callback.
 */
static enum bb_expiry_ fire_locked(struct bb_timer_queue *queue, struct bb_ctx *ctx, bb_ns_t now_ns)
{
    struct bb_timer_ *timer = queue->armed[0];
    bb_ns_t deadline_ns = timer->deadline_ns;
    bool in_step = queue->in_step;
    enum bb_expiry_ expiry;

    remove_locked(queue, timer);
    if (queue->config.begin != NULL) {
        bool begun;

        bb_section_enter_(ctx);
        begun = queue->config.begin(timer);
        bb_section_leave_(ctx);
        if (!begun) {
            return BB_EXPIRY_DONE_;
        }
    }
    timer->expired_generation = timer->generation;
    timer->not_before_ns = now_ns + (in_step ? 1 : BB_TIMER_PERIOD_MIN_NS_);
    queue->firing = timer;
    queue->firing_ctx = ctx;
    queue->firing_superseded = false;
    bb_lock_release(ctx, &queue->lock);
    expiry = timer->fn(ctx, timer, deadline_ns);
    bb_lock_acquire(ctx, &queue->lock);
    /* From here on the timer is followed only where it is parked and nobody has touched it. */
    if (expiry == BB_EXPIRY_PARK_ && !queue->firing_superseded) {
        timer->due_ns = deadline_ns;
        insert_locked(queue, timer);
    }
    queue->firing = NULL;
    queue->firing_ctx = NULL;
    /* Relaxed: the lock orders it; the kernel's comparison only has to see that it changed. */
    bb_store_relaxed(&queue->fired, bb_load_relaxed(&queue->fired) + 1);
    if (queue->waiters > 0) {
        futex_wake_all(&queue->fired);
    }
    return expiry;
}

/* The service thread. */

/* Makes the service thread look again. Anyone, with or without the lock. */
static void wake_service(struct bb_timer_queue *queue)
{
    /* Pairs with the load of `wake` in serve(): what was changed before is seen after. */
    (void)bb_fetch_add_acq_rel(&queue->wake, 1);
    /* `wake` before `sleeping`; see sleep_until(). */
    bb_fence_full();
    if (bb_load_relaxed(&queue->sleeping) != 0) { /* relaxed: ordered by the fence */
        futex_wake_all(&queue->wake);
    }
}

/* Sleeps until `wake` is no longer `seen`, or host time `until_ns` (UINT64_MAX: for ever). */
static void sleep_until(struct bb_timer_queue *queue, uint32_t seen, bb_ns_t until_ns)
{
    struct timespec until = {
        .tv_sec = (time_t)(until_ns / 1000000000u),
        .tv_nsec = (long)(until_ns % 1000000000u),
    };

    bb_store_relaxed(&queue->sleeping, 1u); /* relaxed: ordered by the fence */
    /*
     * `sleeping` before the kernel's load of `wake`. Otherwise both could be missed: we sleep on
     * the old `wake` while the waker finds nobody asleep.
     */
    bb_fence_full();
    futex_wait(&queue->wake, seen, until_ns == UINT64_MAX ? NULL : &until);
    bb_store_relaxed(&queue->sleeping, 0u); /* relaxed: a wake too many is harmless */
}

static void serve(struct bb_timer_queue *queue, struct bb_ctx *ctx)
{
    bb_ns_t parked_until_ns = 0; /* host time; 0: nothing is parked */
    uint32_t parked_at = 0;

    for (;;) {
        /* Pairs with wake_service(). */
        uint32_t seen = bb_load_acquire(&queue->wake);
        /* Relaxed: ordered by the load of `wake`, which changes after it. */
        uint32_t changes = bb_load_relaxed(&queue->clock_changes);
        struct bb_counter_state_ now;
        bb_ns_t due_ns;

        if (bb_load_relaxed(&queue->stop) != 0) { /* relaxed: likewise */
            return;
        }
        now = bb_clock_state_(queue->config.clock);
        if (!now.running) {
            sleep_until(queue, seen, UINT64_MAX);
            continue;
        }
        if (parked_until_ns != 0 && changes == parked_at && now.source_ns < parked_until_ns) {
            sleep_until(queue, seen, parked_until_ns);
            continue;
        }
        parked_until_ns = 0;
        bb_lock_acquire(ctx, &queue->lock);
        due_ns = queue->count == 0 ? UINT64_MAX : queue->armed[0]->due_ns;
        if (due_ns <= now.value) {
            if (fire_locked(queue, ctx, now.value) == BB_EXPIRY_PARK_) {
                parked_until_ns = host_now_ns() + PARK_REST_NS;
                parked_at = changes;
            }
            bb_lock_release(ctx, &queue->lock);
            continue;
        }
        bb_lock_release(ctx, &queue->lock);
        sleep_until(queue, seen,
                    due_ns >= BB_TIME_LIMIT_ ? UINT64_MAX : now.source_ns + (due_ns - now.value));
    }
}

static void *service_thread(void *opaque)
{
    struct bb_timer_queue *queue = opaque;
    struct bb_ctx *ctx = NULL;
    int result;

    (void)prctl(PR_SET_NAME, "bb-timers", 0ul, 0ul, 0ul);
    (void)prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    result = queue->config.attach(queue->config.opaque, &ctx, &queue->error);
    queue->result = result;
    bb_store_release(&queue->reported, 1u); /* pairs with start_service() */
    futex_wake_all(&queue->reported);
    if (result == BB_OK) {
        serve(queue, ctx);
        queue->config.detach(queue->config.opaque, ctx);
    }
    return NULL;
}

static int start_service(struct bb_timer_queue *queue, struct bb_error *err)
{
    sigset_t all, old;
    int error;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    error = pthread_create(&queue->thread, NULL, service_thread, queue);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "the timer thread could not be created: %s",
                            strerror(error));
    }
    while (bb_load_acquire(&queue->reported) == 0) { /* pairs with service_thread() */
        futex_wait(&queue->reported, 0, NULL);
    }
    if (queue->result != BB_OK) {
        (void)pthread_join(queue->thread, NULL);
        return bb_error_set(err, queue->result, "the timer thread could not attach: %s",
                            queue->error.text);
    }
    return BB_OK;
}

/* What the clock calls. */

void bb_timer_queue_clock_changed_(struct bb_timer_queue *queue)
{
    /* Relaxed: published by wake_service(). */
    (void)bb_fetch_add_relaxed(&queue->clock_changes, 1);
    wake_service(queue);
}

int bb_timer_queue_step_(struct bb_ctx *ctx, struct bb_timer_queue *queue, bb_ns_t target_ns)
{
    struct bb_clock *clock = queue->config.clock;
    bb_ns_t now_ns = bb_clock_now_ns(clock);
    int rc = BB_OK;

    bb_lock_acquire(ctx, &queue->lock);
    queue->in_step = true;
    while (queue->count > 0 && queue->armed[0]->due_ns <= target_ns) {
        if (!bb_clock_running(clock)) {
            rc = BB_E_STATE;
            goto out;
        }
        if (queue->armed[0]->due_ns > now_ns) {
            now_ns = queue->armed[0]->due_ns;
            bb_clock_move_(clock, now_ns);
        }
        if (fire_locked(queue, ctx, now_ns) == BB_EXPIRY_PARK_) {
            rc = BB_E_STATE;
            goto out;
        }
    }
    bb_clock_move_(clock, target_ns);
out:
    queue->in_step = false;
    bb_lock_release(ctx, &queue->lock);
    return rc;
}

/* Timers. */

void bb_timer_init_(struct bb_timer_ *timer, struct bb_timer_queue *queue,
                    enum bb_expiry_ (*fn)(struct bb_ctx *ctx, struct bb_timer_ *timer,
                                          bb_ns_t deadline_ns))
{
    *timer = (struct bb_timer_){.fn = fn, .queue = queue, .heap_index = NOT_QUEUED};
}

int bb_timer_arm_(struct bb_ctx *ctx, struct bb_timer_ *timer, bb_ns_t deadline_ns)
{
    struct bb_timer_queue *queue = timer->queue;
    bool wake = false;
    int rc = BB_OK;

    bb_lock_acquire(ctx, &queue->lock);
    if (timer->heap_index == NOT_QUEUED) {
        rc = reserve_locked(queue);
    }
    if (rc == BB_OK) {
        /* A manual clock's bound is for one step: between steps nothing can loop. */
        bool bounded = queue->has_thread || queue->in_step;

        (void)disarm_locked(queue, timer);
        timer->deadline_ns = deadline_ns;
        timer->due_ns =
            bounded && timer->not_before_ns > deadline_ns ? timer->not_before_ns : deadline_ns;
        timer->sequence = queue->next_sequence++;
        insert_locked(queue, timer);
        wake = queue->has_thread && timer->heap_index == 0;
    }
    bb_lock_release(ctx, &queue->lock);
    if (wake) {
        wake_service(queue);
    }
    return rc;
}

bool bb_timer_disarm_(struct bb_ctx *ctx, struct bb_timer_ *timer)
{
    bool was_armed;

    bb_lock_acquire(ctx, &timer->queue->lock);
    was_armed = disarm_locked(timer->queue, timer);
    bb_lock_release(ctx, &timer->queue->lock);
    return was_armed;
}

bool bb_timer_armed_(struct bb_ctx *ctx, struct bb_timer_ *timer)
{
    bool armed;

    bb_lock_acquire(ctx, &timer->queue->lock);
    armed = timer->heap_index != NOT_QUEUED;
    bb_lock_release(ctx, &timer->queue->lock);
    return armed;
}

bool bb_timer_superseded_(struct bb_ctx *ctx, struct bb_timer_ *timer)
{
    bool superseded;

    bb_lock_acquire(ctx, &timer->queue->lock);
    superseded = timer->generation != timer->expired_generation;
    bb_lock_release(ctx, &timer->queue->lock);
    return superseded;
}

int bb_timer_disarm_wait_(struct bb_ctx *ctx, struct bb_timer_ *timer)
{
    struct bb_timer_queue *queue = timer->queue;

    if (!bb_ctx_may_block_(ctx)) {
        return BB_E_CONTEXT;
    }
    bb_lock_acquire(ctx, &queue->lock);
    if (queue->firing == timer && queue->firing_ctx == ctx) {
        bb_lock_release(ctx, &queue->lock);
        return BB_E_CONTEXT;
    }
    /* Disarmed at each turn: the callback that is waited for may have armed it again. */
    (void)disarm_locked(queue, timer);
    while (queue->firing == timer) {
        uint32_t seen = bb_load_relaxed(&queue->fired); /* relaxed: changed under the lock */

        queue->waiters++;
        bb_lock_release(ctx, &queue->lock);
        futex_wait(&queue->fired, seen, NULL);
        bb_lock_acquire(ctx, &queue->lock);
        queue->waiters--;
        (void)disarm_locked(queue, timer);
    }
    bb_lock_release(ctx, &queue->lock);
    return BB_OK;
}

/* Creation. */

int bb_timer_queue_create_(const struct bb_timer_queue_config_ *config,
                           struct bb_timer_queue **queue, struct bb_error *err)
{
    struct bb_timer_queue *made;
    int rc;

    made = bb_heap_alloc_aligned(config->heap, sizeof *made, BB_CACHE_LINE_BYTES);
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a timer queue (%zu bytes)",
                            sizeof *made);
    }
    made->config = *config;
    made->has_thread = bb_clock_mode(config->clock) == BB_CLOCK_HOST;
    rc = bb_lock_init_(&made->lock, "timer queue", BB_RANK_TIMERS);
    if (rc != BB_OK) {
        (void)bb_error_set(err, rc, "the timer queue's lock could not be made");
        goto free_queue;
    }
    rc = bb_clock_attach_queue_(config->clock, made);
    if (rc != BB_OK) {
        (void)bb_error_set(err, rc, "the clock has a timer queue already");
        goto drop_lock;
    }
    if (made->has_thread) {
        rc = start_service(made, err);
        if (rc != BB_OK) {
            goto drop_clock;
        }
    }
    *queue = made;
    return BB_OK;

drop_clock:
    bb_clock_detach_queue_(config->clock);
drop_lock:
    bb_lock_fini_(&made->lock);
free_queue:
    bb_heap_free(config->heap, made, sizeof *made);
    return rc;
}

void bb_timer_queue_destroy_(struct bb_timer_queue *queue)
{
    struct bb_heap *heap = queue->config.heap;

    bb_clock_detach_queue_(queue->config.clock);
    if (queue->has_thread) {
        bb_store_relaxed(&queue->stop, 1u); /* relaxed: published by wake_service() */
        wake_service(queue);
        (void)pthread_join(queue->thread, NULL);
    }
    bb_lock_fini_(&queue->lock);
    bb_heap_free(heap, queue->armed, queue->capacity * sizeof(struct bb_timer_ *));
    bb_heap_free(heap, queue, sizeof *queue);
}
