/* SPDX-License-Identifier: MIT */
/*
 * Ranked locks over pthread mutexes, and the checker of their order.
 *
 * Why ranks exclude deadlock: a thread that waits for a lock holds only lower ranks. Along a cycle
 * of threads that wait for one another ranks would rise for ever. bb_lock_try() never waits, so it
 * closes no cycle and is allowed at any rank; what it took counts like any other held lock when
 * the next one is waited for.
 *
 * The checker (debug builds) keeps, in the context, each held lock with the stack on which it was
 * taken. It aborts, after printing both stacks, on: a lock of a rank not above all held ones, a
 * release of a lock that is not held, the destruction of a held one, more than BB_LOCKS_HELD_MAX.
 */
#include "rcu_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef NDEBUG
#include <execinfo.h>
#include <unistd.h>

enum { STACK_FRAMES = 16 };

static void print_here(const char *what)
{
    void *stack[STACK_FRAMES];

    (void)dprintf(STDERR_FILENO, "  %s:\n", what);
    backtrace_symbols_fd(stack, backtrace(stack, STACK_FRAMES), STDERR_FILENO);
}

static void check_order(const struct bb_ctx *ctx, const struct bb_lock *lock)
{
    for (uint32_t i = 0; i < ctx->lock_depth; i++) {
        const struct bb_lock *held = ctx->held[i].lock;

        if (held->rank >= lock->rank) {
            (void)dprintf(STDERR_FILENO,
                          "busbar: lock order: thread '%s' takes '%s' (rank %d) while it holds "
                          "'%s' (rank %d)\n  '%s' was taken at:\n",
                          ctx->name, lock->name, (int)lock->rank, held->name, (int)held->rank,
                          held->name);
            backtrace_symbols_fd(ctx->held[i].stack, ctx->held[i].frames, STDERR_FILENO);
            print_here("the other is taken at");
            abort();
        }
    }
}

static void note_taken(struct bb_ctx *ctx, const struct bb_lock *lock)
{
    uint32_t i = ctx->lock_depth;

    if (i == BB_LOCKS_HELD_MAX) {
        (void)dprintf(STDERR_FILENO, "busbar: thread '%s' holds %d locks and takes '%s'\n",
                      ctx->name, BB_LOCKS_HELD_MAX, lock->name);
        print_here("here");
        abort();
    }
    ctx->held[i].lock = lock;
    ctx->held[i].frames = backtrace(ctx->held[i].stack, STACK_FRAMES);
}

static void note_released(struct bb_ctx *ctx, const struct bb_lock *lock)
{
    uint32_t last = ctx->lock_depth;
    uint32_t i = last;

    while (i != 0 && ctx->held[i - 1].lock != lock) {
        i--;
    }
    if (i == 0) {
        (void)dprintf(STDERR_FILENO, "busbar: thread '%s' releases '%s', which it does not hold\n",
                      ctx->name, lock->name);
        print_here("here");
        abort();
    }
    memmove(&ctx->held[i - 1], &ctx->held[i], (last - i) * sizeof(ctx->held[0]));
}

static void check_free(struct bb_lock *lock)
{
    if (pthread_mutex_trylock(&lock->mutex) != 0) {
        (void)dprintf(STDERR_FILENO, "busbar: lock '%s' is destroyed while it is held\n",
                      lock->name);
        print_here("here");
        abort();
    }
    (void)pthread_mutex_unlock(&lock->mutex);
}
#else
static void check_order(const struct bb_ctx *ctx, const struct bb_lock *lock)
{
    (void)ctx;
    (void)lock;
}

static void note_taken(struct bb_ctx *ctx, const struct bb_lock *lock)
{
    (void)ctx;
    (void)lock;
}

static void note_released(struct bb_ctx *ctx, const struct bb_lock *lock)
{
    (void)ctx;
    (void)lock;
}

static void check_free(struct bb_lock *lock)
{
    (void)lock;
}
#endif

int bb_lock_init_(struct bb_lock *lock, const char *name, enum bb_lock_rank rank)
{
    if (pthread_mutex_init(&lock->mutex, NULL) != 0) {
        return BB_E_SYSTEM;
    }
    lock->rank = rank;
    (void)snprintf(lock->name, sizeof(lock->name), "%s", name);
    return BB_OK;
}

void bb_lock_fini_(struct bb_lock *lock)
{
    check_free(lock);
    (void)pthread_mutex_destroy(&lock->mutex);
}

static bool rank_known(enum bb_lock_rank rank)
{
    switch (rank) {
    case BB_RANK_EXTERNAL:
    case BB_RANK_BASELINE:
    case BB_RANK_DEVICE:
    case BB_RANK_NARROW:
    case BB_RANK_ENGINE:
    case BB_RANK_LISTENERS:
    case BB_RANK_MAP:
    case BB_RANK_TIMERS:
    case BB_RANK_RCU:
        return true;
    }
    return false;
}

int bb_lock_create(struct bb_ctx *ctx, const char *name, enum bb_lock_rank rank,
                   struct bb_lock **lock, struct bb_error *err)
{
    struct bb_heap *heap = bb_ctx_heap_(ctx);
    struct bb_lock *made;

    if (name == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a lock needs a name; name is NULL");
    }
    if (!rank_known(rank)) {
        return bb_error_set(err, BB_E_INVAL, "lock '%s': rank %d is none of enum bb_lock_rank",
                            name, (int)rank);
    }
    made = bb_heap_alloc(heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for lock '%s'", name);
    }
    if (bb_lock_init_(made, name, rank) != BB_OK) {
        bb_heap_free(heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_NOMEM, "no mutex for lock '%s'", name);
    }
    *lock = made;
    return BB_OK;
}

void bb_lock_destroy(struct bb_ctx *ctx, struct bb_lock *lock)
{
    if (lock != NULL) {
        bb_lock_fini_(lock);
        bb_heap_free(bb_ctx_heap_(ctx), lock, sizeof(*lock));
    }
}

void bb_lock_acquire(struct bb_ctx *ctx, struct bb_lock *lock)
{
    check_order(ctx, lock);
    (void)pthread_mutex_lock(&lock->mutex);
    note_taken(ctx, lock);
    ctx->lock_depth++;
    ctx->narrow_depth += lock->rank == BB_RANK_NARROW ? 1 : 0;
}

bool bb_lock_try(struct bb_ctx *ctx, struct bb_lock *lock)
{
    if (pthread_mutex_trylock(&lock->mutex) != 0) {
        return false;
    }
    note_taken(ctx, lock);
    ctx->lock_depth++;
    ctx->narrow_depth += lock->rank == BB_RANK_NARROW ? 1 : 0;
    return true;
}

void bb_lock_release(struct bb_ctx *ctx, struct bb_lock *lock)
{
    note_released(ctx, lock);
    ctx->lock_depth--;
    ctx->narrow_depth -= lock->rank == BB_RANK_NARROW ? 1 : 0;
    (void)pthread_mutex_unlock(&lock->mutex);
}
