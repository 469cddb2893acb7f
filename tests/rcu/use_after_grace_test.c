/* SPDX-License-Identifier: MIT */
/*
 * ThreadSanitizer builds only: errors in the use of grace periods are injected and must be
 * reported (status 66 is the sanitizer's), and the correct forms must be quiet. The threads tell
 * each other how far they are by relaxed accesses, which order nothing in the sanitizer's eyes.
 */
#include "rcu_test.h"

enum { REPORTED = 66 };

struct box {
    struct bb_rcu *rcu;
    uint64_t *published; /* (a) */
    uint32_t step;       /* (a) */
    bool read_after_unlock;
    uint64_t sum;
};

static void reach(struct box *box, uint32_t step)
{
    bb_store_relaxed(&box->step, step);
}

static void await(struct box *box, uint32_t step)
{
    while (bb_load_relaxed(&box->step) < step) {
        (void)sched_yield();
    }
}

static void *reader_main(void *arg)
{
    struct box *box = arg;
    struct bb_ctx *ctx = domain_attach(box->rcu, "reader");
    uint64_t *value;

    if (ctx == NULL) {
        abort();
    }
    bb_rcu_read_lock(ctx);
    value = bb_deref_(&box->published);
    if (!box->read_after_unlock) {
        box->sum += *value;
    }
    bb_rcu_read_unlock(ctx);
    if (box->read_after_unlock) {
        box->sum += *value;
    }
    reach(box, 1);
    await(box, 2);
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static void run(bool grace, bool read_after_unlock)
{
    struct domain domain;
    struct box box = {.step = 0, .read_after_unlock = read_after_unlock};
    uint64_t *value;
    pthread_t thread;

    domain_begin(&domain, NULL);
    box.rcu = domain.rcu;
    value = malloc(sizeof(*value));
    cr_assert_not_null(value);
    *value = 7;
    bb_publish_(&box.published, value);
    cr_assert_eq(pthread_create(&thread, NULL, reader_main, &box), 0);
    await(&box, 1);
    bb_publish_(&box.published, (uint64_t *)NULL);
    if (grace) {
        cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    }
    free(value);
    reach(&box, 2);
    (void)pthread_join(thread, NULL);
    domain_end(&domain);
}

Test(rcu_use_after_grace, a_free_without_a_grace_period_is_reported, .exit_code = REPORTED)
{
    run(false, false);
}

Test(rcu_use_after_grace, a_free_after_a_grace_period_is_quiet)
{
    run(true, false);
}

Test(rcu_use_after_grace, a_use_behind_the_section_is_reported, .exit_code = REPORTED)
{
    run(true, true);
}

/* The same through deferred work: it runs on bb-complete, which bb-reclaim has waited for. */
struct deferred {
    struct bb_rcu_head head;
    uint64_t value;
    struct box *box;
};

static void deferred_free(struct bb_rcu_head *head)
{
    struct deferred *deferred = BB_CONTAINER_OF(head, struct deferred, head);
    struct box *box = deferred->box;

    free(deferred);
    reach(box, 2); /* only now may the reader do more, which might order it before the free */
}

static void run_deferred(bool read_after_unlock)
{
    struct domain domain;
    struct box box = {.step = 0, .read_after_unlock = read_after_unlock};
    struct deferred *deferred;
    pthread_t thread;

    domain_begin(&domain, NULL);
    box.rcu = domain.rcu;
    deferred = malloc(sizeof(*deferred));
    cr_assert_not_null(deferred);
    deferred->value = 7;
    deferred->box = &box;
    bb_publish_(&box.published, &deferred->value);
    cr_assert_eq(pthread_create(&thread, NULL, reader_main, &box), 0);
    await(&box, 1);
    bb_publish_(&box.published, (uint64_t *)NULL);
    bb_rcu_call(domain.ctx, &deferred->head, deferred_free, sizeof(*deferred));
    (void)pthread_join(thread, NULL);
    domain_end(&domain);
}

Test(rcu_use_after_grace, a_deferred_free_is_quiet)
{
    run_deferred(false);
}

Test(rcu_use_after_grace, a_use_behind_the_section_of_what_a_deferred_free_frees_is_reported,
     .exit_code = REPORTED)
{
    run_deferred(true);
}
