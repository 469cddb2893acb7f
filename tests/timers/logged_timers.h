/* SPDX-License-Identifier: MIT */
/*
 * Timers under a manual clock that note their firings, with what suites about them have in common.
 */
#ifndef BUSBAR_TESTS_TIMERS_LOGGED_TIMERS_H
#define BUSBAR_TESTS_TIMERS_LOGGED_TIMERS_H

#include <stdio.h>
#include <string.h>

#include "queue_fixture.h"

enum { TIMERS = 16, LOG_MAX = 4096 };

/* A timer that notes its firings, then does what its script says. */
struct logged {
    struct bb_timer_ timer;
    unsigned id;
    enum bb_expiry_ (*script)(struct bb_ctx *ctx, struct logged *self, bb_ns_t deadline_ns);
    unsigned fired;
};

static struct queue_fixture fixture;
static struct logged timers[TIMERS];
static struct {
    unsigned id;
    bb_ns_t deadline_ns;
    bb_ns_t now_ns;
} entries[LOG_MAX];
static unsigned logged_count;

static inline enum bb_expiry_ expired(struct bb_ctx *ctx, struct bb_timer_ *timer,
                                      bb_ns_t deadline_ns)
{
    struct logged *self = BB_CONTAINER_OF(timer, struct logged, timer);

    cr_assert_eq(ctx->lock_depth, 0, "no callback runs with the queue's lock held");
    if (logged_count < LOG_MAX) {
        entries[logged_count].id = self->id;
        entries[logged_count].deadline_ns = deadline_ns;
        entries[logged_count].now_ns = bb_clock_now_ns(fixture.clock);
    }
    logged_count++;
    self->fired++;
    return self->script == NULL ? BB_EXPIRY_DONE_ : self->script(ctx, self, deadline_ns);
}

static inline void make(void)
{
    fixture_make(&fixture, BB_CLOCK_MANUAL);
    for (unsigned i = 0; i < TIMERS; i++) {
        bb_timer_init_(&timers[i].timer, fixture.queue, expired);
        timers[i].id = i;
    }
}

static inline void drop(void)
{
    fixture_drop(&fixture);
}

static inline void arm(unsigned i, bb_ns_t deadline_ns)
{
    cr_assert_eq(bb_timer_arm_(fixture.ctx, &timers[i].timer, deadline_ns), BB_OK);
}

static inline bool disarm(unsigned i)
{
    return bb_timer_disarm_(fixture.ctx, &timers[i].timer);
}

static inline bool armed(unsigned i)
{
    return bb_timer_armed_(fixture.ctx, &timers[i].timer);
}

static inline int step(uint64_t delta_ns)
{
    return bb_clock_step(fixture.ctx, fixture.clock, delta_ns, NULL);
}

/* The ids that fired since the last call, as text: "2 0 1 ". */
static inline const char *fired(void)
{
    static char text[LOG_MAX * 3];
    size_t used = 0;

    text[0] = '\0';
    for (unsigned i = 0; i < logged_count && i < LOG_MAX && used < sizeof text - 16; i++) {
        used += (size_t)snprintf(text + used, 16, "%u ", entries[i].id);
    }
    logged_count = 0;
    return text;
}

#endif
