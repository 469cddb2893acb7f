/* SPDX-License-Identifier: MIT */
/*
 * Everything at once: threads that come and go, nested sections over published objects, several
 * writers that free through all three ways (call, defer, synchronize), two domains. An object's
 * words say whether it is alive; sanitizers see the frees themselves.
 */
#include "rcu_test.h"

enum { READERS = 3, WRITERS = 2, SLOTS = 4, DOMAINS = 2, ALIVE = 0x600d };

struct object {
    struct bb_rcu_head head;
    struct bb_heap *heap;
    uint32_t state; /* plain on purpose: publication and grace periods order it */
    uint32_t copy;
};

struct stress {
    struct domain domain[DOMAINS];
    struct object *slot[DOMAINS][SLOTS]; /* (a) */
    uint32_t stop;                       /* (a) */
    uint32_t errors;                     /* (a) */
    uint64_t reads;                      /* (a) */
    uint64_t replaced;                   /* (a) */
    uint64_t seed;
};

static void object_free(struct bb_rcu_head *head)
{
    struct object *object = BB_CONTAINER_OF(head, struct object, head);

    object->state = 0;
    object->copy = 1;
    bb_heap_free(object->heap, object, sizeof(*object));
}

static struct object *object_create(struct bb_heap *heap)
{
    struct object *object = bb_heap_alloc(heap, sizeof(*object));

    if (object == NULL) {
        abort();
    }
    object->heap = heap;
    object->state = ALIVE;
    object->copy = ALIVE;
    return object;
}

static void look(struct stress *s, const struct object *object)
{
    if (object->state != ALIVE || object->copy != ALIVE) {
        (void)bb_fetch_add_relaxed(&s->errors, 1);
    }
}

static void *reader_main(void *arg)
{
    struct stress *s = arg;
    uint64_t random = 0;
    uint64_t reads = 0;

    while (bb_load_relaxed(&s->stop) == 0) {
        struct bb_ctx *ctx[DOMAINS];

        for (int d = 0; d < DOMAINS; d++) {
            ctx[d] = domain_attach(s->domain[d].rcu, "reader");
            if (ctx[d] == NULL) {
                abort();
            }
        }
        if (random == 0) {
            random = s->seed ^ ((uint64_t)ctx[0]->tid << 32);
        }
        for (int i = 0; i < 2000; i++) {
            uint32_t r = random_next(&random);
            struct object *outer;

            bb_rcu_read_lock(ctx[0]);
            outer = bb_deref_(&s->slot[0][r % SLOTS]);
            look(s, outer);
            if ((r & 0x100) != 0) {
                bb_rcu_read_lock(ctx[1]);
                look(s, bb_deref_(&s->slot[1][(r >> 4) % SLOTS]));
                bb_rcu_read_unlock(ctx[1]);
            }
            if ((r & 0xfe00) == 0) {
                (void)sched_yield();
            }
            look(s, outer);
            bb_rcu_read_unlock(ctx[0]);
            reads++;
        }
        for (int d = 0; d < DOMAINS; d++) {
            (void)bb_ctx_detach_(ctx[d], NULL);
        }
    }
    (void)bb_fetch_add_relaxed(&s->reads, reads);
    return NULL;
}

static void *writer_main(void *arg)
{
    struct stress *s = arg;
    struct bb_ctx *ctx[DOMAINS];
    uint64_t replaced = 0;
    uint64_t random;

    for (int d = 0; d < DOMAINS; d++) {
        ctx[d] = domain_attach(s->domain[d].rcu, "writer");
        if (ctx[d] == NULL) {
            abort();
        }
    }
    random = s->seed ^ ((uint64_t)ctx[0]->tid << 32);
    while (bb_load_relaxed(&s->stop) == 0) {
        uint32_t r = random_next(&random);
        unsigned d = r & 1;
        struct object *made = object_create(s->domain[d].heap);
        /* Release for readers, acquire for the other writer's object: partner bb_deref_. */
        struct object *old = bb_xchg_acq_rel(&s->slot[d][(r >> 1) % SLOTS], made);

        if ((r & 0xff0000) == 0) {
            (void)bb_rcu_synchronize(ctx[d]);
            object_free(&old->head);
        } else if ((r & 0x100) != 0) {
            bb_rcu_call(ctx[d], &old->head, object_free, sizeof(*old));
        } else {
            bb_rcu_defer_(s->domain[d].rcu, &old->head, object_free, sizeof(*old));
        }
        bb_rcu_throttle_(ctx[d]);
        replaced++;
    }
    (void)bb_fetch_add_relaxed(&s->replaced, replaced);
    for (int d = 0; d < DOMAINS; d++) {
        (void)bb_ctx_detach_(ctx[d], NULL);
    }
    return NULL;
}

/* Stalls are reported as often as can be, so that the watcher meets contexts that come and go. */
static void count_stall(void *opaque, const struct bb_rcu_stall *stall)
{
    struct stress *s = opaque;

    if (stall->text == NULL || (stall->thread_name == NULL) != (stall->tid == 0)) {
        (void)bb_fetch_add_relaxed(&s->errors, 1);
    }
}

static void stress(void)
{
    static struct stress s;
    const struct bb_rcu_config_ config = {
        .deferred_bytes_max = 1 << 16, .stall_ns = 2000, .stall = count_stall, .stall_opaque = &s};
    pthread_t threads[READERS + WRITERS];
    bb_ns_t end_ns = bb_host_now_ns_() + stress_ns();

    s.seed = seed_of_run();
    for (int d = 0; d < DOMAINS; d++) {
        domain_begin(&s.domain[d], &config);
        for (int i = 0; i < SLOTS; i++) {
            s.slot[d][i] = object_create(s.domain[d].heap);
        }
    }
    for (int i = 0; i < READERS + WRITERS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, i < READERS ? reader_main : writer_main, &s),
                     0);
    }
    while (bb_host_now_ns_() < end_ns) {
        cr_assert_eq(bb_rcu_synchronize(s.domain[0].ctx), BB_OK);
    }
    bb_store_relaxed(&s.stop, 1u);
    for (int i = 0; i < READERS + WRITERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    for (int d = 0; d < DOMAINS; d++) {
        cr_assert_leq(bb_rcu_stats(s.domain[d].ctx).deferred_peak,
                      (1 << 16) + WRITERS * sizeof(struct object));
        for (int i = 0; i < SLOTS; i++) {
            bb_rcu_defer_(s.domain[d].rcu, &s.slot[d][i]->head, object_free, sizeof(struct object));
        }
        domain_end(&s.domain[d]);
    }
    cr_assert_eq(s.errors, 0, "seed %#llx", (unsigned long long)s.seed);
    cr_assert_gt(s.reads, 0);
    cr_assert_gt(s.replaced, 0);
}

Test(rcu_stress, nothing_is_freed_under_a_reader, .timeout = 200)
{
    stress();
}

#ifndef urcu_memb_has_sys_membarrier /* a constant where liburcu is built to need membarrier */
Test(rcu_stress, nothing_is_freed_under_a_reader_on_a_host_without_membarrier, .timeout = 200)
{
    struct domain domain;

    urcu_memb_has_sys_membarrier = 0;
    domain_begin(&domain, NULL);
    cr_assert(domain.ctx->fences);
    domain_end(&domain);
    stress();
}
#endif
