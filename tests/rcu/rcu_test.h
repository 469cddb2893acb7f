/* SPDX-License-Identifier: MIT */
/*
 * What the suites of rcu/ share: a domain with this thread attached, and gates, by which threads
 * tell each other how far they are without sleeping.
 */
#ifndef BUSBAR_TESTS_RCU_RCU_TEST_H
#define BUSBAR_TESTS_RCU_RCU_TEST_H

#include "../../rcu/rcu_internal.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct domain {
    struct bb_heap *heap;
    struct bb_rcu *rcu;
    struct bb_ctx *ctx; /* the main thread's */
};

static inline struct bb_ctx *domain_attach(struct bb_rcu *rcu, const char *name)
{
    struct bb_ctx *ctx = NULL;

    return bb_ctx_attach_(rcu, name, sizeof(*ctx), NULL, &ctx, NULL) == BB_OK ? ctx : NULL;
}

static inline void domain_begin(struct domain *domain, const struct bb_rcu_config_ *config)
{
    struct bb_rcu_config_ own = {.stall_ns = UINT64_C(60000000000)};
    struct bb_error err = {.text = ""};

    if (config != NULL) {
        own = *config;
    }
    cr_assert_eq(bb_heap_create(NULL, &domain->heap, &err), BB_OK, "%s", err.text);
    own.heap = domain->heap;
    cr_assert_eq(bb_rcu_create_(&own, &domain->rcu, &err), BB_OK, "%s", err.text);
    domain->ctx = domain_attach(domain->rcu, "main");
    cr_assert_not_null(domain->ctx);
}

/* Ends it, proving that nothing is left. */
static inline void domain_end(struct domain *domain)
{
    struct bb_error err = {.text = ""};

    if (domain->ctx != NULL) {
        cr_assert_eq(bb_ctx_detach_(domain->ctx, &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_rcu_destroy_(domain->rcu, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_heap_destroy(domain->heap, &err), BB_OK, "%s", err.text);
}

/* A number that only rises, and can be waited for. */
struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t risen;
    int value;
};

#define GATE_INIT                                                                                  \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0                                     \
    }

static inline void gate_raise(struct gate *gate)
{
    (void)pthread_mutex_lock(&gate->mutex);
    gate->value++;
    (void)pthread_cond_broadcast(&gate->risen);
    (void)pthread_mutex_unlock(&gate->mutex);
}

static inline void gate_await(struct gate *gate, int value)
{
    (void)pthread_mutex_lock(&gate->mutex);
    while (gate->value < value) {
        (void)pthread_cond_wait(&gate->risen, &gate->mutex);
    }
    (void)pthread_mutex_unlock(&gate->mutex);
}

static inline int gate_value(struct gate *gate)
{
    int value;

    (void)pthread_mutex_lock(&gate->mutex);
    value = gate->value;
    (void)pthread_mutex_unlock(&gate->mutex);
    return value;
}

/* Waits until a grace period of the domain has begun since `before` was read. */
static inline uint64_t graces_begun(struct bb_rcu *rcu)
{
    uint64_t begun;

    (void)pthread_mutex_lock(&rcu->gp.lock);
    begun = rcu->gp.started;
    (void)pthread_mutex_unlock(&rcu->gp.lock);
    return begun;
}

static inline void await_grace_begun(struct bb_rcu *rcu, uint64_t before)
{
    while (graces_begun(rcu) <= before) {
        (void)sched_yield();
    }
}

/* A thread that sits in a read section until it is let go. */
struct sitter {
    struct bb_rcu *rcu;
    const char *name;
    uint32_t device_id;
    struct gate inside;
    struct gate leave;
    uint32_t left; /* (a) set just before it leaves the section */
    int tid;
    pthread_t thread;
};

static inline void *sitter_main(void *arg)
{
    struct sitter *sitter = arg;
    struct bb_ctx *ctx = domain_attach(sitter->rcu, sitter->name);

    if (ctx == NULL) {
        abort();
    }
    bb_store_relaxed(&ctx->device_id, sitter->device_id);
    sitter->tid = ctx->tid;
    bb_rcu_read_lock(ctx);
    gate_raise(&sitter->inside);
    gate_await(&sitter->leave, 1);
    bb_store_relaxed(&sitter->left, 1u);
    bb_rcu_read_unlock(ctx);
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static inline void sitter_start(struct sitter *sitter, struct bb_rcu *rcu, const char *name)
{
    sitter->rcu = rcu;
    sitter->name = name;
    (void)pthread_mutex_init(&sitter->inside.mutex, NULL);
    (void)pthread_cond_init(&sitter->inside.risen, NULL);
    (void)pthread_mutex_init(&sitter->leave.mutex, NULL);
    (void)pthread_cond_init(&sitter->leave.risen, NULL);
    cr_assert_eq(pthread_create(&sitter->thread, NULL, sitter_main, sitter), 0);
    gate_await(&sitter->inside, 1);
}

static inline void sitter_end(struct sitter *sitter)
{
    gate_raise(&sitter->leave);
    (void)pthread_join(sitter->thread, NULL);
}

/* Seconds that torture runs: BUSBAR_STRESS_SECONDS, 1 without it. */
static inline bb_ns_t stress_ns(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");

    return (text == NULL ? 1 : strtoull(text, NULL, 10)) * UINT64_C(1000000000);
}

/* Seed of the test's randomness: BUSBAR_SEED, else the time. Print it where a claim fails. */
static inline uint64_t seed_of_run(void)
{
    const char *text = getenv("BUSBAR_SEED");

    return text == NULL ? bb_host_now_ns_() | 1 : strtoull(text, NULL, 0) | 1;
}

/* xorshift64*, one state a thread. */
static inline uint32_t random_next(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * UINT64_C(0x2545F4914F6CDD1D)) >> 32);
}

#endif
