/* SPDX-License-Identifier: MIT */
/*
 * A heap, an RCU domain, a clock, its queue and the calling thread's context, for the suites of
 * the timer queue. `alloc_left` bounds the heap's allocations where it is not negative.
 */
#ifndef BUSBAR_TESTS_TIMERS_QUEUE_FIXTURE_H
#define BUSBAR_TESTS_TIMERS_QUEUE_FIXTURE_H

#include <criterion/criterion.h>
#include <stdlib.h>

#include "../../timers/timers_internal.h"

struct queue_fixture {
    struct bb_heap *heap;
    struct bb_rcu *rcu;
    struct bb_clock *clock;
    struct bb_timer_queue *queue;
    struct bb_ctx *ctx;
    int alloc_left;
};

static inline void *fixture_alloc(void *opaque, size_t bytes, size_t align)
{
    struct queue_fixture *fixture = opaque;
    int left = bb_load_relaxed(&fixture->alloc_left);

    if (left == 0) {
        return NULL;
    }
    if (left > 0) {
        bb_store_relaxed(&fixture->alloc_left, left - 1);
    }
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static inline void fixture_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    free(memory);
}

static inline int fixture_attach(void *opaque, struct bb_ctx **ctx, struct bb_error *err)
{
    struct queue_fixture *fixture = opaque;

    return bb_ctx_attach_(fixture->rcu, "bb-timers", sizeof(struct bb_ctx), NULL, ctx, err);
}

static inline void fixture_detach(void *opaque, struct bb_ctx *ctx)
{
    (void)opaque;
    (void)bb_ctx_detach_(ctx, NULL);
}

static inline struct bb_timer_queue_config_ fixture_config(struct queue_fixture *fixture)
{
    return (struct bb_timer_queue_config_){
        .heap = fixture->heap,
        .rcu = fixture->rcu,
        .clock = fixture->clock,
        .attach = fixture_attach,
        .detach = fixture_detach,
        .opaque = fixture,
    };
}

/* Everything but the queue; the clock runs. */
static inline void fixture_make_clock(struct queue_fixture *fixture, enum bb_clock_mode mode)
{
    const struct bb_allocator allocator = {fixture_alloc, fixture_free, fixture};
    struct bb_rcu_config_ config = {.deferred_bytes_max = 1 << 20, .stall_ns = 10000000000u};
    struct bb_error err = {.text = ""};

    fixture->alloc_left = -1;
    cr_assert_eq(bb_heap_create(&allocator, &fixture->heap, &err), BB_OK, "%s", err.text);
    config.heap = fixture->heap;
    cr_assert_eq(bb_rcu_create_(&config, &fixture->rcu, &err), BB_OK, "%s", err.text);
    cr_assert_eq(
        bb_ctx_attach_(fixture->rcu, "test", sizeof(struct bb_ctx), NULL, &fixture->ctx, &err),
        BB_OK, "%s", err.text);
    cr_assert_eq(bb_clock_create_(fixture->heap, mode, &fixture->clock, &err), BB_OK, "%s",
                 err.text);
    bb_clock_start(fixture->clock);
}

static inline void fixture_make(struct queue_fixture *fixture, enum bb_clock_mode mode)
{
    struct bb_timer_queue_config_ config;
    struct bb_error err = {.text = ""};

    fixture_make_clock(fixture, mode);
    config = fixture_config(fixture);
    cr_assert_eq(bb_timer_queue_create_(&config, &fixture->queue, &err), BB_OK, "%s", err.text);
}

static inline void fixture_drop_clock(struct queue_fixture *fixture)
{
    struct bb_error err = {.text = ""};

    bb_clock_destroy_(fixture->clock);
    cr_assert_eq(bb_ctx_detach_(fixture->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_rcu_destroy_(fixture->rcu, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_heap_destroy(fixture->heap, &err), BB_OK, "%s", err.text);
}

/* Drops everything, and shows that nothing was leaked. */
static inline void fixture_drop(struct queue_fixture *fixture)
{
    bb_timer_queue_destroy_(fixture->queue);
    fixture_drop_clock(fixture);
}

#endif
