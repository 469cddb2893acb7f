/* SPDX-License-Identifier: MIT */
/*
 * Contexts: a thread's membership of a domain, and of liburcu's registry.
 *
 * liburcu's registry is per process and registering twice aborts. So a thread is registered here
 * when its first context attaches and nobody has registered it before, and is unregistered when
 * the last one detaches, if it was registered here. Contexts of several domains share the thread's
 * one reader record, so a section begun in one counts for all.
 *
 * Thread-local storage is used in attaching and detaching alone; the way of an access finds the
 * record through the context.
 */
#include "rcu_internal.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What this thread has attached; owner only, by its nature. */
static __thread struct {
    struct bb_ctx *contexts; /* linked by thread_next */
    bool registered;         /* with liburcu, by us */
} mine;

/*
 * Process-wide, because thread-exit hooks are: the key whose destructor detaches what a thread
 * leaves behind. Made once, kept as long as the library is loaded; the process's end and dlclose()
 * give it back, so that no thread that ends later calls into code that is gone.
 */
static pthread_key_t exit_key;
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;
static int exit_key_error = -1; /* -1: not made */

static void unlink_from_domain(struct bb_ctx *ctx)
{
    struct bb_rcu *rcu = ctx->rcu;

    (void)pthread_mutex_lock(&rcu->contexts_lock);
    if (ctx->prev != NULL) {
        ctx->prev->next = ctx->next;
    } else {
        rcu->contexts = ctx->next;
    }
    if (ctx->next != NULL) {
        ctx->next->prev = ctx->prev;
    }
    (void)pthread_mutex_unlock(&rcu->contexts_lock);
}

static void unlink_from_thread(const struct bb_ctx *ctx)
{
    struct bb_ctx **link = &mine.contexts;

    while (*link != ctx) {
        link = &(*link)->thread_next;
    }
    *link = ctx->thread_next;
}

/* On the owner's thread, with nothing held. */
static void detach(struct bb_ctx *ctx)
{
    struct bb_heap *heap = ctx->rcu->config.heap;

    if (ctx->fini != NULL) {
        ctx->fini(ctx);
    }
    unlink_from_thread(ctx);
    unlink_from_domain(ctx);
    if (mine.contexts == NULL) {
        if (mine.registered) {
            urcu_memb_unregister_thread();
            mine.registered = false;
        }
        (void)pthread_setspecific(exit_key, NULL);
    }
    bb_heap_free(heap, ctx, ctx->bytes);
}

/*
 * A thread has ended with contexts attached. If it ended inside a callback or a section it took
 * that section's end with it: leave the section, so that grace periods go on, and say so.
 */
static void thread_exit(void *unused)
{
    (void)unused;
    while (mine.contexts != NULL) {
        struct bb_ctx *ctx = mine.contexts;

        if (!bb_ctx_may_block_(ctx)) {
            (void)fprintf(stderr,
                          "busbar: thread '%s' (tid %d) ended inside a callback, read section, pin "
                          "or lock\n",
                          ctx->name, ctx->tid);
            while (mine.registered && bb_section_active_(ctx)) {
                bb_section_leave_(ctx);
            }
            ctx->callback_depth = 0;
            ctx->lock_depth = 0;
            ctx->narrow_depth = 0;
            ctx->pin_depth = 0;
        }
        detach(ctx);
    }
}

static void make_exit_key(void)
{
    exit_key_error = pthread_key_create(&exit_key, thread_exit);
}

__attribute__((destructor)) static void delete_exit_key(void)
{
    if (exit_key_error == 0) {
        (void)pthread_key_delete(exit_key);
    }
}

int bb_ctx_attach_(struct bb_rcu *rcu, const char *name, size_t bytes,
                   void (*fini)(struct bb_ctx *ctx), struct bb_ctx **ctx, struct bb_error *err)
{
    struct bb_ctx *made;

    assert(bytes >= sizeof(*made));
    if (name == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a context needs a name; name is NULL");
    }
    (void)pthread_once(&exit_key_once, make_exit_key);
    if (exit_key_error != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "no thread-exit hook: %s", strerror(exit_key_error));
    }
    for (const struct bb_ctx *other = mine.contexts; other != NULL; other = other->thread_next) {
        if (other->rcu == rcu) {
            return bb_error_set(err, BB_E_EXIST,
                                "this thread is attached to this engine already, as '%s'",
                                other->name);
        }
    }
    made = bb_heap_alloc_aligned(rcu->config.heap, bytes, BB_CACHE_LINE_BYTES);
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for context '%s' (%zu bytes)", name, bytes);
    }
    if (pthread_setspecific(exit_key, &mine) != 0) {
        bb_heap_free(rcu->config.heap, made, bytes);
        return bb_error_set(err, BB_E_NOMEM, "no memory for the thread-exit hook of '%s'", name);
    }
    if (mine.contexts == NULL && !URCU_TLS(urcu_memb_reader).registered) {
        urcu_memb_register_thread();
        mine.registered = true;
    }
    made->reader = &URCU_TLS(urcu_memb_reader);
    made->gp = &urcu_memb_gp;
    made->fences = urcu_memb_has_sys_membarrier == 0;
    made->rcu = rcu;
    made->tid = gettid();
    made->bytes = bytes;
    made->fini = fini;
    (void)snprintf(made->name, sizeof(made->name), "%s", name);
    made->thread_next = mine.contexts;
    mine.contexts = made;

    (void)pthread_mutex_lock(&rcu->contexts_lock);
    made->next = rcu->contexts;
    if (made->next != NULL) {
        made->next->prev = made;
    }
    rcu->contexts = made;
    (void)pthread_mutex_unlock(&rcu->contexts_lock);
    *ctx = made;
    return BB_OK;
}

int bb_ctx_detach_(struct bb_ctx *ctx, struct bb_error *err)
{
    if (ctx->tid != gettid()) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "context '%s' belongs to thread %d and can be detached there alone",
                            ctx->name, ctx->tid);
    }
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "context '%s' is inside a callback, read section, pin or lock",
                            ctx->name);
    }
    detach(ctx);
    return BB_OK;
}

void bb_rcu_each_ctx_(struct bb_rcu *rcu, void (*fn)(struct bb_ctx *ctx, void *arg), void *arg)
{
    (void)pthread_mutex_lock(&rcu->contexts_lock);
    for (struct bb_ctx *ctx = rcu->contexts; ctx != NULL; ctx = ctx->next) {
        fn(ctx, arg);
    }
    (void)pthread_mutex_unlock(&rcu->contexts_lock);
}

/*
 * As liburcu's own unlock does; with atomic accesses, because two readers that leave at once both
 * write the word, and ThreadSanitizer would call the plain stores of liburcu's version a race.
 */
void bb_section_wake_(struct bb_ctx *ctx)
{
    /* Relaxed: see bb_section_awaited_(). */
    bb_store_relaxed(&ctx->gp->futex, 0);
    (void)futex_async(&ctx->gp->futex, FUTEX_WAKE, 1, NULL, NULL, 0);
}

void bb_rcu_read_lock(struct bb_ctx *ctx)
{
    bb_section_enter_(ctx);
}

void bb_rcu_read_unlock(struct bb_ctx *ctx)
{
    bb_section_leave_(ctx);
}

struct bb_heap *bb_ctx_heap_(const struct bb_ctx *ctx)
{
    return ctx->rcu->config.heap;
}
