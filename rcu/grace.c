/* SPDX-License-Identifier: MIT */
/*
 * Grace periods: whoever needs one leads it or shares one that has not begun yet.
 *
 * A caller needs a grace period that begins after its call: the one numbered started + 1. If
 * nobody leads, it leads: waits until the rate limit allows (other callers join meanwhile), counts
 * it as begun, lets liburcu wait for the readers, counts it as completed. bb-reclaim is one of the
 * callers, the others are in bb_rcu_synchronize(). So a domain makes at most 1 000 grace periods a
 * second however many ask, and the first one after a pause begins at once.
 *
 * Stalls. bb-complete looks at the running grace period. liburcu flips its phase bit at the start
 * of a grace period, a reader copies it on entering, and no grace period ends while a reader with
 * the old phase is inside: so the reader's own word says whether its section began before the
 * grace period, and no snapshot is needed. liburcu is process-wide; where none of this domain's
 * contexts is in the way, the report says that the reader is not of this engine.
 *
 * While bb-complete runs a completion it does not watch; a completion that itself stays in a read
 * section is therefore reported only after it has returned.
 */
#include "rcu_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { NS_PER_S = 1000000000, NS_PER_MS = 1000000, STALL_TEXT_BYTES = 512 };

int bb_gp_init_(struct bb_gp_ *gp)
{
    if (pthread_mutex_init(&gp->lock, NULL) != 0) {
        return BB_E_SYSTEM;
    }
    if (pthread_cond_init(&gp->ended, NULL) != 0) {
        (void)pthread_mutex_destroy(&gp->lock);
        return BB_E_SYSTEM;
    }
    return BB_OK;
}

void bb_gp_fini_(struct bb_gp_ *gp)
{
    (void)pthread_cond_destroy(&gp->ended);
    (void)pthread_mutex_destroy(&gp->lock);
}

static void sleep_until(bb_ns_t deadline_ns)
{
    struct timespec deadline = {
        .tv_sec = (time_t)(deadline_ns / NS_PER_S),
        .tv_nsec = (long)(deadline_ns % NS_PER_S),
    };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) {
    }
}

/* Drops and retakes the lock while it sleeps. */
static void pace_locked(struct bb_gp_ *gp)
{
    bb_ns_t due_ns = gp->start_ns == 0 ? 0 : gp->start_ns + BB_GP_INTERVAL_NS_;

    if (due_ns > bb_host_now_ns_()) {
        (void)pthread_mutex_unlock(&gp->lock);
        sleep_until(due_ns);
        (void)pthread_mutex_lock(&gp->lock);
    }
}

void bb_gp_pace_(struct bb_rcu *rcu)
{
    (void)pthread_mutex_lock(&rcu->gp.lock);
    pace_locked(&rcu->gp);
    (void)pthread_mutex_unlock(&rcu->gp.lock);
}

static void lead_locked(struct bb_rcu *rcu)
{
    struct bb_gp_ *gp = &rcu->gp;
    bool wake;

    gp->led = true;
    pace_locked(gp);
    gp->started++;
    gp->start_ns = bb_host_now_ns_();
    gp->report_after = rcu->config.stall_ns;
    gp->report_ns = gp->start_ns + gp->report_after;
    wake = !gp->watched;
    (void)pthread_mutex_unlock(&gp->lock);

    if (wake) {
        bb_wake_signal_(&rcu->complete_wake);
    }
    bb_rcu_tsan_before_();
    urcu_memb_synchronize_rcu();
    bb_rcu_tsan_after_();

    (void)pthread_mutex_lock(&gp->lock);
    gp->completed = gp->started;
    gp->led = false;
    (void)pthread_cond_broadcast(&gp->ended);
}

void bb_gp_wait_(struct bb_rcu *rcu)
{
    struct bb_gp_ *gp = &rcu->gp;
    uint64_t wanted;

    (void)pthread_mutex_lock(&gp->lock);
    wanted = gp->started + 1;
    while (gp->completed < wanted) {
        if (gp->led) {
            (void)pthread_cond_wait(&gp->ended, &gp->lock);
        } else {
            lead_locked(rcu);
        }
    }
    (void)pthread_mutex_unlock(&gp->lock);
}

int bb_rcu_synchronize(struct bb_ctx *ctx)
{
    if (!bb_ctx_may_block_(ctx)) {
        return BB_E_CONTEXT;
    }
    bb_gp_wait_(ctx->rcu);
    return BB_OK;
}

struct bb_rcu_stats bb_rcu_stats(struct bb_ctx *ctx)
{
    struct bb_rcu *rcu = ctx->rcu;
    struct bb_rcu_stats stats;

    /* Relaxed: figures, each on its own. */
    stats.deferred_bytes = bb_load_relaxed(&rcu->deferred_bytes);
    stats.deferred_peak = bb_load_relaxed(&rcu->deferred_peak);
    stats.throttled = bb_load_relaxed(&rcu->throttled);
    (void)pthread_mutex_lock(&rcu->gp.lock);
    stats.grace_periods = rcu->gp.completed;
    stats.stalls = rcu->gp.stalls;
    (void)pthread_mutex_unlock(&rcu->gp.lock);
    return stats;
}

/* What the watcher found out about a grace period; names are copied, contexts may go away. */
struct suspects {
    char text[STALL_TEXT_BYTES];
    size_t used;
    char first_name[BB_CTX_NAME_BYTES];
    int first_tid;
    uint32_t first_device;
    unsigned in_the_way;
    bool active; /* some context is in a section that the grace period need not wait for */
};

static void BB_PRINTF(2, 3) append(struct suspects *found, const char *fmt, ...)
{
    va_list args;
    size_t room = sizeof(found->text) - found->used;
    int n;

    va_start(args, fmt);
    n = vsnprintf(found->text + found->used, room, fmt, args);
    va_end(args);
    if (n > 0) {
        found->used += (size_t)n < room ? (size_t)n : room - 1;
    }
}

static void suspect(struct bb_ctx *ctx, void *arg)
{
    struct suspects *found = arg;
    /* Relaxed: a judgement of a moment; a report of a section that has just ended is dropped when
     * its grace period turns out to be over. */
    unsigned long word = bb_load_relaxed(&ctx->reader->ctr);
    unsigned long phase = bb_load_relaxed(&urcu_memb_gp.ctr);
    uint32_t device_id = bb_load_relaxed(&ctx->device_id);

    if ((word & URCU_GP_CTR_NEST_MASK) == 0) {
        return;
    }
    if (((word ^ phase) & URCU_GP_CTR_PHASE) == 0) {
        found->active = true;
        return;
    }
    if (found->in_the_way == 0) {
        memcpy(found->first_name, ctx->name, sizeof(found->first_name));
        found->first_tid = ctx->tid;
        found->first_device = device_id;
    }
    append(found, "%s thread '%s' (tid %d)", found->in_the_way == 0 ? "" : ",", ctx->name,
           ctx->tid);
    if (device_id != 0) {
        append(found, " in a callback of device %u", device_id);
    }
    found->in_the_way++;
}

static void report(struct bb_rcu *rcu, const struct suspects *found, bb_ns_t waited_ns, bool quiet)
{
    char text[STALL_TEXT_BYTES + 128];
    unsigned long long ms = waited_ns / NS_PER_MS;
    struct bb_rcu_stall stall = {.waited_ns = waited_ns, .text = text};

    if (found->in_the_way == 0) {
        (void)snprintf(text, sizeof(text),
                       "a grace period has waited %llu ms for a reader outside this engine "
                       "(another engine, or the embedder's own liburcu use)",
                       ms);
    } else {
        (void)snprintf(text, sizeof(text), "a grace period has waited %llu ms for%s", ms,
                       found->text);
        stall.thread_name = found->first_name;
        stall.tid = found->first_tid;
        stall.device_id = found->first_device;
    }
    if (rcu->config.stall != NULL) {
        rcu->config.stall(rcu->config.stall_opaque, &stall);
    } else if (!quiet) {
        (void)fprintf(stderr, "busbar: %s\n", text);
    }
}

static uint64_t saturating_mul(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX / 4 / b ? UINT64_MAX / 4 : a * b;
}

uint64_t bb_gp_watch_(struct bb_rcu *rcu)
{
    struct bb_gp_ *gp = &rcu->gp;
    struct suspects found = {.used = 0};
    uint64_t number;
    uint64_t wait_ns;
    bb_ns_t now_ns;
    bb_ns_t waited_ns;
    bool due;
    bool quiet;

    (void)pthread_mutex_lock(&gp->lock);
    now_ns = bb_host_now_ns_();
    number = gp->started;
    if (gp->completed == number) {
        /* Keep looking for one more period, so that a domain that is busy with short grace periods
         * does not wake this thread for each. */
        gp->watched = gp->start_ns != 0 && now_ns - gp->start_ns < rcu->config.stall_ns;
        wait_ns = gp->watched ? rcu->config.stall_ns : BB_FOREVER_NS_;
        (void)pthread_mutex_unlock(&gp->lock);
        return wait_ns;
    }
    gp->watched = true;
    due = now_ns >= gp->report_ns;
    wait_ns = due ? 0 : gp->report_ns - now_ns;
    (void)pthread_mutex_unlock(&gp->lock);
    if (!due) {
        return wait_ns;
    }

    bb_rcu_each_ctx_(rcu, suspect, &found);

    (void)pthread_mutex_lock(&gp->lock);
    if (gp->completed >= number) {
        (void)pthread_mutex_unlock(&gp->lock);
        return 0;
    }
    waited_ns = now_ns - gp->start_ns;
    if (found.in_the_way == 0 && found.active && waited_ns < 2 * gp->report_after) {
        /* liburcu may not have flipped its phase yet: look again before blaming a stranger. */
        gp->report_ns = now_ns + gp->report_after / 8 + 1;
        (void)pthread_mutex_unlock(&gp->lock);
        return 0;
    }
    gp->stalls++;
    gp->report_after = saturating_mul(gp->report_after, 10);
    gp->report_ns = gp->start_ns + gp->report_after;
    quiet = gp->last_stderr_ns != 0 && now_ns - gp->last_stderr_ns < NS_PER_S;
    if (!quiet) {
        gp->last_stderr_ns = now_ns;
    }
    (void)pthread_mutex_unlock(&gp->lock);

    report(rcu, &found, waited_ns, quiet);
    return 0;
}
