/* SPDX-License-Identifier: MIT */
/* Grace periods, deferred work, and the byte bound. */
#include "rcu_test.h"

/* Lets the sitter go once a grace period has begun to wait for it. */
struct releaser {
    struct bb_rcu *rcu;
    struct sitter *sitter;
    uint64_t before;
};

static void *release_main(void *arg)
{
    struct releaser *releaser = arg;

    await_grace_begun(releaser->rcu, releaser->before);
    gate_raise(&releaser->sitter->leave);
    return NULL;
}

Test(rcu_grace, synchronize_returns_only_after_a_reader_inside_has_left)
{
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    struct releaser releaser;
    pthread_t thread;

    domain_begin(&domain, NULL);
    sitter_start(&sitter, domain.rcu, "reader");
    releaser = (struct releaser){domain.rcu, &sitter, graces_begun(domain.rcu)};
    cr_assert_eq(pthread_create(&thread, NULL, release_main, &releaser), 0);
    cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    cr_assert_eq(bb_load_relaxed(&sitter.left), 1);
    (void)pthread_join(thread, NULL);
    (void)pthread_join(sitter.thread, NULL);
    domain_end(&domain);
}

/* Deferred work that notes when it ran. */
struct job {
    struct bb_rcu_head head;
    struct gate *done;
    const uint32_t *left;
    uint32_t left_then;
    char thread[16];
    int number;
    int *order;
    struct bb_rcu *rcu;
};

static void job_run(struct bb_rcu_head *head)
{
    struct job *job = BB_CONTAINER_OF(head, struct job, head);

    if (job->left != NULL) {
        job->left_then = bb_load_relaxed(job->left);
    }
    (void)pthread_getname_np(pthread_self(), job->thread, sizeof(job->thread));
    if (job->order != NULL) {
        job->order[gate_value(job->done)] = job->number;
    }
    gate_raise(job->done);
}

Test(rcu_grace, deferred_work_runs_on_its_thread_after_every_reader_has_left)
{
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    struct gate done = GATE_INIT;
    struct job job[2] = {{.done = &done, .left = &sitter.left},
                         {.done = &done, .left = &sitter.left}};
    uint64_t before;

    domain_begin(&domain, NULL);
    sitter_start(&sitter, domain.rcu, "reader");
    before = graces_begun(domain.rcu);
    bb_rcu_call(domain.ctx, &job[0].head, job_run, 0);
    bb_rcu_defer_(domain.rcu, &job[1].head, job_run, 0);
    await_grace_begun(domain.rcu, before);
    cr_assert_eq(gate_value(&done), 0);
    sitter_end(&sitter);
    gate_await(&done, 2);
    cr_assert_eq(job[0].left_then, 1);
    cr_assert_eq(job[1].left_then, 1);
    cr_assert_str_eq(job[0].thread, "bb-complete");
    cr_assert_str_eq(job[1].thread, "bb-reclaim");
    domain_end(&domain);
}

enum { ORDER_JOBS = 2000 };

Test(rcu_grace, calls_of_one_thread_run_in_their_order)
{
    static struct job jobs[ORDER_JOBS];
    static int order[ORDER_JOBS];
    struct domain domain;
    struct gate done = GATE_INIT;

    domain_begin(&domain, NULL);
    for (int i = 0; i < ORDER_JOBS; i++) {
        jobs[i] = (struct job){.done = &done, .number = i, .order = order};
        bb_rcu_call(domain.ctx, &jobs[i].head, job_run, 0);
        if (i % 500 == 0) {
            cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK); /* several batches */
        }
    }
    gate_await(&done, ORDER_JOBS);
    for (int i = 0; i < ORDER_JOBS; i++) {
        cr_assert_eq(order[i], i);
    }
    domain_end(&domain);
}

struct stuck {
    struct bb_rcu_head head;
    struct gate begun;
    struct gate go;
};

static void stuck_run(struct bb_rcu_head *head)
{
    struct stuck *stuck = BB_CONTAINER_OF(head, struct stuck, head);

    gate_raise(&stuck->begun);
    gate_await(&stuck->go, 1);
}

Test(rcu_grace, a_completion_that_blocks_stops_neither_frees_nor_the_byte_bound)
{
    const struct bb_rcu_config_ config = {.deferred_bytes_max = 1000};
    struct domain domain;
    struct stuck stuck = {.begun = GATE_INIT, .go = GATE_INIT};
    struct gate freed = GATE_INIT;
    struct gate called = GATE_INIT;
    struct job freeing = {.done = &freed};
    struct job calling = {.done = &called};

    domain_begin(&domain, &config);
    bb_rcu_call(domain.ctx, &stuck.head, stuck_run, 0);
    gate_await(&stuck.begun, 1);
    bb_rcu_call(domain.ctx, &calling.head, job_run, 5000);
    cr_assert(bb_rcu_over_bound_(domain.rcu) || bb_rcu_stats(domain.ctx).deferred_bytes == 0);
    bb_rcu_throttle_(domain.ctx); /* must return although that work can't run yet */
    bb_rcu_defer_(domain.rcu, &freeing.head, job_run, 5000);
    gate_await(&freed, 1);
    bb_rcu_throttle_(domain.ctx);
    cr_assert_eq(gate_value(&called), 0);
    gate_raise(&stuck.go);
    gate_await(&called, 1);
    domain_end(&domain);
}

Test(rcu_grace, work_past_its_grace_period_runs_behind_what_was_ready_before)
{
    struct domain domain;
    struct stuck stuck = {.begun = GATE_INIT, .go = GATE_INIT};
    struct gate done = GATE_INIT;
    int order[3] = {-1, -1, -1};
    struct job jobs[3];

    domain_begin(&domain, NULL);
    bb_rcu_complete_now_(domain.rcu, &stuck.head, stuck_run);
    gate_await(&stuck.begun, 1);
    for (int i = 0; i < 3; i++) {
        jobs[i] = (struct job){.done = &done, .number = i, .order = order};
        bb_rcu_complete_now_(domain.rcu, &jobs[i].head, job_run);
    }
    gate_raise(&stuck.go);
    gate_await(&done, 3);
    cr_assert_eq(order[0], 0);
    cr_assert_eq(order[1], 1);
    cr_assert_eq(order[2], 2);
    domain_end(&domain);
}

/* A writer that defers `count` pieces of `bytes`, keeping to the bound. */
enum { FLOOD_PIECES = 500, FLOOD_BYTES = 100, FLOOD_BOUND = 1000 };

struct flood {
    struct bb_rcu *rcu;
    struct job jobs[FLOOD_PIECES];
    struct gate freed;
    bool by_call;
};

static void *flood_main(void *arg)
{
    struct flood *flood = arg;
    struct bb_ctx *ctx = domain_attach(flood->rcu, "writer");

    if (ctx == NULL) {
        abort();
    }
    for (int i = 0; i < FLOOD_PIECES; i++) {
        flood->jobs[i] = (struct job){.done = &flood->freed};
        if (flood->by_call) {
            bb_rcu_call(ctx, &flood->jobs[i].head, job_run, FLOOD_BYTES);
        } else {
            bb_rcu_defer_(flood->rcu, &flood->jobs[i].head, job_run, FLOOD_BYTES);
        }
        bb_rcu_throttle_(ctx);
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static void flood_meets_the_bound(bool by_call)
{
    static struct flood flood;
    const struct bb_rcu_config_ config = {.deferred_bytes_max = FLOOD_BOUND};
    struct sitter sitter = {.tid = 0};
    struct domain domain;
    pthread_t writer;

    domain_begin(&domain, &config);
    flood.rcu = domain.rcu;
    flood.by_call = by_call;
    (void)pthread_mutex_init(&flood.freed.mutex, NULL);
    (void)pthread_cond_init(&flood.freed.risen, NULL);
    sitter_start(&sitter, domain.rcu, "reader");
    cr_assert_eq(pthread_create(&writer, NULL, flood_main, &flood), 0);
    while (bb_rcu_stats(domain.ctx).throttled == 0) {
        (void)sched_yield();
    }
    cr_assert_eq(bb_rcu_stats(domain.ctx).deferred_bytes, FLOOD_BOUND + FLOOD_BYTES,
                 "the writer stops at the first piece over the bound");
    cr_assert_eq(gate_value(&flood.freed), 0);
    sitter_end(&sitter);
    (void)pthread_join(writer, NULL);
    gate_await(&flood.freed, FLOOD_PIECES);
    cr_assert_leq(bb_rcu_stats(domain.ctx).deferred_peak, FLOOD_BOUND + FLOOD_BYTES);
    domain_end(&domain);
}

Test(rcu_grace, a_flood_of_frees_stays_inside_the_byte_bound_and_all_of_them_run)
{
    flood_meets_the_bound(false);
}

Test(rcu_grace, a_flood_of_calls_stays_inside_the_byte_bound_and_all_of_them_run)
{
    flood_meets_the_bound(true);
}

Test(rcu_grace, over_the_bound_inside_a_section_the_wait_is_left_to_the_epilogue)
{
    const struct bb_rcu_config_ config = {.deferred_bytes_max = 10};
    struct domain domain;
    struct gate done = GATE_INIT;
    struct job job = {.done = &done};

    domain_begin(&domain, &config);
    bb_rcu_read_lock(domain.ctx);
    bb_rcu_call(domain.ctx, &job.head, job_run, 11);
    cr_assert(domain.ctx->throttle);
    domain.ctx->throttle = false;
    bb_rcu_throttle_(domain.ctx); /* would wait for ever for this very section */
    cr_assert(domain.ctx->throttle);
    bb_rcu_read_unlock(domain.ctx);
    bb_rcu_throttle_(domain.ctx);
    cr_assert_not(domain.ctx->throttle);
    cr_assert_eq(bb_rcu_stats(domain.ctx).deferred_bytes, 0);
    domain_end(&domain);
}

static void job_adds(struct bb_rcu_head *head)
{
    struct job *job = BB_CONTAINER_OF(head, struct job, head);

    gate_raise(job->done);
    if (job->number-- > 0) {
        if (job->number % 2 == 0) {
            bb_rcu_defer_(job->rcu, head, job_adds, 8);
        } else {
            bb_rcu_complete_(job->rcu, head, job_adds, 8);
        }
    }
}

Test(rcu_grace, destroying_runs_all_work_also_what_work_adds)
{
    struct domain domain;
    struct gate done = GATE_INIT;
    struct job job = {.done = &done, .number = 9};

    domain_begin(&domain, NULL);
    job.rcu = domain.rcu;
    bb_rcu_defer_(domain.rcu, &job.head, job_adds, 8);
    domain_end(&domain);
    cr_assert_eq(gate_value(&done), 10);
}

/* A completion that waits itself, with a context of its own. */
struct waiter {
    struct bb_rcu_head head;
    struct bb_rcu *rcu;
    int synchronized;
    int destroyed;
    struct gate done;
};

static void waiter_run(struct bb_rcu_head *head)
{
    struct waiter *waiter = BB_CONTAINER_OF(head, struct waiter, head);
    struct bb_ctx *ctx;

    waiter->destroyed = bb_rcu_destroy_(waiter->rcu, NULL);
    ctx = domain_attach(waiter->rcu, "completion");
    if (ctx == NULL) {
        abort();
    }
    waiter->synchronized = bb_rcu_synchronize(ctx);
    (void)bb_ctx_detach_(ctx, NULL);
    gate_raise(&waiter->done);
}

Test(rcu_grace, a_completion_may_wait_for_a_grace_period_but_not_destroy_its_engine)
{
    struct domain domain;
    struct waiter waiter = {.synchronized = 1, .destroyed = 1, .done = GATE_INIT};

    domain_begin(&domain, NULL);
    waiter.rcu = domain.rcu;
    bb_rcu_call(domain.ctx, &waiter.head, waiter_run, 0);
    gate_await(&waiter.done, 1); /* its context must be gone */
    domain_end(&domain);
    cr_assert_eq(waiter.synchronized, BB_OK);
    cr_assert_eq(waiter.destroyed, BB_E_CONTEXT);
}

Test(rcu_grace, grace_periods_begin_at_most_a_thousand_times_a_second)
{
    enum { ROUNDS = 30 };
    struct domain domain;
    bb_ns_t start_ns;

    domain_begin(&domain, NULL);
    start_ns = bb_host_now_ns_();
    for (int i = 0; i < ROUNDS; i++) {
        cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    }
    cr_assert_geq(bb_host_now_ns_() - start_ns, (uint64_t)(ROUNDS - 1) * BB_GP_INTERVAL_NS_);
    cr_assert_eq(bb_rcu_stats(domain.ctx).grace_periods, ROUNDS);
    domain_end(&domain);
}

Test(rcu_grace, many_pieces_share_a_grace_period)
{
    static struct job jobs[1000];
    struct domain domain;
    struct gate done = GATE_INIT;
    struct sitter sitter = {.tid = 0};
    uint64_t before;

    domain_begin(&domain, NULL);
    sitter_start(&sitter, domain.rcu, "reader");
    before = graces_begun(domain.rcu);
    jobs[0] = (struct job){.done = &done};
    bb_rcu_defer_(domain.rcu, &jobs[0].head, job_run, 0);
    await_grace_begun(domain.rcu, before);
    for (int i = 1; i < 1000; i++) {
        jobs[i] = (struct job){.done = &done};
        bb_rcu_defer_(domain.rcu, &jobs[i].head, job_run, 0);
    }
    sitter_end(&sitter);
    gate_await(&done, 1000);
    cr_assert_leq(graces_begun(domain.rcu) - before, 2);
    domain_end(&domain);
}

struct synchronizer {
    struct bb_rcu *rcu;
    struct gate *ready;
    struct gate *go;
};

static void *synchronize_once(void *arg)
{
    struct synchronizer *s = arg;
    struct bb_ctx *ctx = domain_attach(s->rcu, "waiter");

    gate_raise(s->ready);
    gate_await(s->go, 1);
    if (ctx == NULL || bb_rcu_synchronize(ctx) != BB_OK) {
        abort();
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(rcu_grace, threads_that_wait_at_once_share_grace_periods)
{
    enum { WAITERS = 16 };
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    struct gate ready = GATE_INIT;
    struct gate go = GATE_INIT;
    struct synchronizer s;
    pthread_t threads[WAITERS];
    uint64_t before;

    domain_begin(&domain, NULL);
    s = (struct synchronizer){domain.rcu, &ready, &go};
    before = graces_begun(domain.rcu);
    sitter_start(&sitter, domain.rcu, "reader");
    for (int i = 0; i < WAITERS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, synchronize_once, &s), 0);
    }
    gate_await(&ready, WAITERS);
    gate_raise(&go);
    await_grace_begun(domain.rcu, before);
    sitter_end(&sitter);
    for (int i = 0; i < WAITERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    cr_assert_lt(graces_begun(domain.rcu) - before, WAITERS);
    domain_end(&domain);
}
