/* SPDX-License-Identifier: MIT */
/* Contexts: attaching, detaching, liburcu's registration, threads that end. */
#include "rcu_test.h"

static bool thread_is_registered(void)
{
    return URCU_TLS(urcu_memb_reader).registered != 0;
}

Test(rcu_context, attaching_twice_to_one_engine_is_refused_by_name)
{
    struct domain domain;
    struct bb_ctx *second = NULL;
    struct bb_error err = {.text = ""};

    domain_begin(&domain, NULL);
    cr_assert_eq(bb_ctx_attach_(domain.rcu, "again", sizeof(*second), NULL, &second, &err),
                 BB_E_EXIST);
    cr_assert_null(second);
    cr_assert_not_null(strstr(err.text, "'main'"), "%s", err.text);
    domain_end(&domain);
}

Test(rcu_context, a_context_needs_a_name_and_a_long_one_is_cut)
{
    struct domain domain;
    struct bb_ctx *ctx = NULL;

    domain_begin(&domain, NULL);
    cr_assert_eq(bb_ctx_detach_(domain.ctx, NULL), BB_OK);
    domain.ctx = NULL;
    cr_assert_eq(bb_ctx_attach_(domain.rcu, NULL, sizeof(*ctx), NULL, &ctx, NULL), BB_E_INVAL);
    cr_assert_null(ctx);
    cr_assert_eq(bb_ctx_attach_(domain.rcu, "0123456789012345678901234567890123456789",
                                sizeof(*ctx), NULL, &ctx, NULL),
                 BB_OK);
    cr_assert_str_eq(ctx->name, "0123456789012345678901234567890");
    cr_assert_eq(bb_ctx_detach_(ctx, NULL), BB_OK);
    domain_end(&domain);
}

Test(rcu_context, the_last_detach_unregisters_the_thread)
{
    struct domain first;
    struct domain second;

    cr_assert_not(thread_is_registered());
    domain_begin(&first, NULL);
    cr_assert(thread_is_registered());
    domain_begin(&second, NULL);
    domain_end(&first);
    cr_assert(thread_is_registered(), "another engine's context is still attached");
    domain_end(&second);
    cr_assert_not(thread_is_registered());
}

Test(rcu_context, an_embedders_own_registration_is_left_alone)
{
    struct domain domain;

    urcu_memb_register_thread();
    domain_begin(&domain, NULL);
    domain_end(&domain);
    cr_assert(thread_is_registered());
    urcu_memb_unregister_thread();
}

Test(rcu_context, a_section_of_one_engine_counts_for_the_other_on_the_same_thread)
{
    struct domain first;
    struct domain second;

    domain_begin(&first, NULL);
    domain_begin(&second, NULL);
    bb_rcu_read_lock(first.ctx);
    bb_rcu_read_lock(second.ctx);
    cr_assert_eq(bb_rcu_synchronize(second.ctx), BB_E_CONTEXT);
    bb_rcu_read_unlock(second.ctx);
    cr_assert_eq(bb_rcu_synchronize(second.ctx), BB_E_CONTEXT);
    bb_rcu_read_unlock(first.ctx);
    cr_assert_eq(bb_rcu_synchronize(second.ctx), BB_OK);
    domain_end(&first);
    domain_end(&second);
}

/* What a thread leaves behind, seen by a thread-exit hook that runs after busbar's. */
struct leaver {
    struct domain domain[2];
    bool in_section;
    bool own_registration;
    bool registered_after;
    pthread_key_t key;
};

static unsigned finis;

static void count_fini(struct bb_ctx *ctx)
{
    (void)ctx;
    finis++;
}

static void look_after(void *arg)
{
    struct leaver *leaver = arg;

    leaver->registered_after = thread_is_registered();
    if (leaver->own_registration) {
        urcu_memb_unregister_thread();
    }
}

static void *leave_attached(void *arg)
{
    struct leaver *leaver = arg;
    struct bb_ctx *ctx = NULL;

    if (leaver->own_registration) {
        urcu_memb_register_thread();
    }
    for (int i = 0; i < 2; i++) {
        if (bb_ctx_attach_(leaver->domain[i].rcu, "leaver", sizeof(*ctx), count_fini, &ctx, NULL) !=
            BB_OK) {
            abort();
        }
    }
    /* Keys' destructors run in the order of the keys: this one is newer than busbar's. */
    (void)pthread_setspecific(leaver->key, leaver);
    if (leaver->in_section) {
        bb_rcu_read_lock(ctx);
    }
    return NULL;
}

static void run_leaver(struct leaver *leaver)
{
    pthread_t thread;

    finis = 0;
    domain_begin(&leaver->domain[0], NULL);
    domain_begin(&leaver->domain[1], NULL);
    cr_assert_eq(pthread_key_create(&leaver->key, look_after), 0);
    cr_assert_eq(pthread_create(&thread, NULL, leave_attached, leaver), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(finis, 2);
    cr_assert_eq(bb_rcu_synchronize(leaver->domain[0].ctx), BB_OK);
    domain_end(&leaver->domain[0]);
    domain_end(&leaver->domain[1]);
}

Test(rcu_context, a_thread_that_ends_is_detached_everywhere_and_unregistered)
{
    struct leaver leaver = {.in_section = false};

    run_leaver(&leaver);
    cr_assert_not(leaver.registered_after);
}

Test(rcu_context, a_thread_that_ends_keeps_the_embedders_registration)
{
    struct leaver leaver = {.own_registration = true};

    run_leaver(&leaver);
    cr_assert(leaver.registered_after);
}

Test(rcu_context, a_thread_that_ends_in_a_section_does_not_hold_up_grace_periods)
{
    struct leaver leaver = {.in_section = true};

    run_leaver(&leaver);
    cr_assert_not(leaver.registered_after);
}

/* A thread that enters a section and ends there when it is told to. */
struct ender {
    struct bb_rcu *rcu;
    struct gate inside;
    struct gate end;
};

static void *end_inside(void *arg)
{
    struct ender *ender = arg;
    struct bb_ctx *ctx = domain_attach(ender->rcu, "ender");

    if (ctx == NULL) {
        abort();
    }
    bb_rcu_read_lock(ctx);
    gate_raise(&ender->inside);
    gate_await(&ender->end, 1);
    return NULL;
}

static void nothing(struct bb_rcu_head *head)
{
    (void)head;
}

Test(rcu_context, a_thread_that_ends_in_a_section_wakes_the_grace_period_that_waits_for_it,
     .timeout = 60)
{
    struct domain domain;
    struct ender ender = {.inside = GATE_INIT, .end = GATE_INIT};
    struct bb_rcu_head head;
    pthread_t thread;

    domain_begin(&domain, NULL);
    ender.rcu = domain.rcu;
    cr_assert_eq(pthread_create(&thread, NULL, end_inside, &ender), 0);
    gate_await(&ender.inside, 1);
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    while (bb_load_relaxed(&urcu_memb_gp.futex) != -1) {
        (void)sched_yield();
    }
    gate_raise(&ender.end);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    domain_end(&domain); /* waits for the call */
}

struct stranger {
    struct bb_ctx *ctx;
    int rc;
};

static void *detach_elsewhere(void *arg)
{
    struct stranger *stranger = arg;

    stranger->rc = bb_ctx_detach_(stranger->ctx, NULL);
    return NULL;
}

Test(rcu_context, detaching_on_another_thread_is_refused)
{
    struct domain domain;
    struct stranger stranger = {.rc = BB_OK};
    pthread_t thread;

    domain_begin(&domain, NULL);
    stranger.ctx = domain.ctx;
    cr_assert_eq(pthread_create(&thread, NULL, detach_elsewhere, &stranger), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(stranger.rc, BB_E_CONTEXT);
    domain_end(&domain);
}

Test(rcu_context, what_may_block_is_refused_in_a_section_lock_pin_and_callback)
{
    struct domain domain;
    struct bb_lock *lock = NULL;

    domain_begin(&domain, NULL);
    cr_assert_eq(bb_lock_create(domain.ctx, "l", BB_RANK_NARROW, &lock, NULL), BB_OK);

    bb_rcu_read_lock(domain.ctx);
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_E_CONTEXT);
    cr_assert_eq(bb_ctx_detach_(domain.ctx, NULL), BB_E_CONTEXT);
    bb_rcu_read_unlock(domain.ctx);

    bb_lock_acquire(domain.ctx, lock);
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_E_CONTEXT);
    cr_assert_eq(bb_ctx_detach_(domain.ctx, NULL), BB_E_CONTEXT);
    bb_lock_release(domain.ctx, lock);

    domain.ctx->pin_depth++;
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_E_CONTEXT);
    cr_assert_eq(bb_ctx_detach_(domain.ctx, NULL), BB_E_CONTEXT);
    domain.ctx->pin_depth--;

    domain.ctx->callback_depth++;
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_E_CONTEXT);
    cr_assert_eq(bb_ctx_detach_(domain.ctx, NULL), BB_E_CONTEXT);
    domain.ctx->callback_depth--;

    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    bb_lock_destroy(domain.ctx, lock);
    domain_end(&domain);
}

Test(rcu_context, a_domain_with_contexts_is_not_destroyed_and_lives_on)
{
    struct domain domain;
    struct bb_error err = {.text = ""};

    domain_begin(&domain, NULL);
    cr_assert_eq(bb_rcu_destroy_(domain.rcu, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "'main'"), "%s", err.text);
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    domain_end(&domain);
}

static void count_ctx(struct bb_ctx *ctx, void *arg)
{
    (void)ctx;
    (*(unsigned *)arg)++;
}

Test(rcu_context, every_attached_context_is_visited_once)
{
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    unsigned seen = 0;

    domain_begin(&domain, NULL);
    sitter_start(&sitter, domain.rcu, "other");
    bb_rcu_each_ctx_(domain.rcu, count_ctx, &seen);
    cr_assert_eq(seen, 2);
    sitter_end(&sitter);
    seen = 0;
    bb_rcu_each_ctx_(domain.rcu, count_ctx, &seen);
    cr_assert_eq(seen, 1);
    domain_end(&domain);
}

/* An embedder's allocator that can be told to give nothing. */
static bool memory_is_out;

static void *alloc_or_not(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    return memory_is_out ? NULL : aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void free_it(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    free(memory);
}

Test(rcu_context, without_memory_nothing_is_half_done)
{
    const struct bb_allocator allocator = {.alloc = alloc_or_not, .free = free_it};
    struct bb_rcu_config_ config = {.stall_ns = UINT64_MAX};
    struct domain domain = {.ctx = NULL};
    struct bb_lock *lock = NULL;
    struct bb_rcu *rcu = NULL;

    cr_assert_eq(bb_rcu_create_(&config, &rcu, NULL), BB_E_INVAL, "no heap");
    cr_assert_eq(bb_heap_create(&allocator, &domain.heap, NULL), BB_OK);
    config.heap = domain.heap;
    memory_is_out = true;
    cr_assert_eq(bb_rcu_create_(&config, &rcu, NULL), BB_E_NOMEM);
    cr_assert_null(rcu);
    memory_is_out = false;
    cr_assert_eq(bb_rcu_create_(&config, &domain.rcu, NULL), BB_OK);
    memory_is_out = true;
    cr_assert_eq(bb_ctx_attach_(domain.rcu, "c", sizeof(*domain.ctx), NULL, &domain.ctx, NULL),
                 BB_E_NOMEM);
    cr_assert_null(domain.ctx);
    cr_assert_not(thread_is_registered());
    memory_is_out = false;
    domain.ctx = domain_attach(domain.rcu, "c");
    cr_assert_not_null(domain.ctx);
    memory_is_out = true;
    cr_assert_eq(bb_lock_create(domain.ctx, "l", BB_RANK_NARROW, &lock, NULL), BB_E_NOMEM);
    cr_assert_null(lock);
    memory_is_out = false;
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK, "the longest stall time does not wrap");
    cr_assert_eq(bb_rcu_stats(domain.ctx).stalls, 0);
    domain_end(&domain);
}

Test(rcu_context, without_threads_nothing_is_half_done)
{
    struct bb_rcu_config_ config = {.stall_ns = 0};
    struct bb_error err = {.text = ""};
    struct bb_rcu *rcu = NULL;
    pthread_attr_t attr;

    cr_assert_eq(bb_heap_create(NULL, &config.heap, NULL), BB_OK);
    cr_assert_eq(pthread_attr_init(&attr), 0);
    cr_assert_eq(pthread_attr_setstacksize(&attr, (size_t)1 << 47), 0); /* there is no such stack */
    cr_assert_eq(pthread_setattr_default_np(&attr), 0);
    cr_assert_eq(bb_rcu_create_(&config, &rcu, &err), BB_E_SYSTEM);
    cr_assert_null(rcu);
    cr_assert_not_null(strstr(err.text, "bb-"), "%s", err.text);
    cr_assert_eq(bb_heap_destroy(config.heap, &err), BB_OK, "%s", err.text);
}
