/* SPDX-License-Identifier: MIT */
/* Pins and drains: whom a drain waits for, whom not, and in which order drains end. */
#include "rcu_test.h"

struct drain {
    struct bb_pin_drain_ drain;
    struct gate *done;
    int *order;
    int number;
    uint32_t held_then;
    const uint32_t *left;
    uint32_t left_then;
    char thread[16];
};

static void drained(struct bb_pin_drain_ *d)
{
    struct drain *drain = BB_CONTAINER_OF(d, struct drain, drain);

    if (d->pins != NULL) {
        drain->held_then = bb_pins_held_(d->pins);
    }
    if (drain->left != NULL) {
        drain->left_then = bb_load_relaxed(drain->left);
    }
    if (drain->order != NULL) {
        drain->order[gate_value(drain->done)] = drain->number;
    }
    (void)pthread_getname_np(pthread_self(), drain->thread, sizeof(drain->thread));
    gate_raise(drain->done);
}

static unsigned pin(struct bb_ctx *ctx, struct bb_pins_ *pins)
{
    unsigned side;

    bb_rcu_read_lock(ctx);
    side = bb_pins_get_(pins);
    bb_rcu_read_unlock(ctx);
    return side;
}

/* Waits until bb-reclaim has sent newcomers to `side`. */
static void await_side(const struct bb_pins_ *pins, uint32_t side)
{
    while (bb_load_relaxed(&pins->index) != side) {
        (void)sched_yield();
    }
}

/* Waits for two whole grace periods: a drain asked for before that waited for nobody has ended. */
static void settle(struct domain *domain)
{
    for (int i = 0; i < 3; i++) {
        struct gate done = GATE_INIT;
        struct drain drain = {.done = &done};

        bb_pins_drain_(domain->rcu, NULL, &drain.drain, BB_ON_RECLAIM_, drained);
        gate_await(&done, 1);
    }
}

Test(rcu_pins, a_drain_of_unheld_pins_ends_on_the_thread_it_asked_for)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain a = {.done = &done};
    struct drain b = {.done = &done};

    domain_begin(&domain, NULL);
    bb_pins_drain_(domain.rcu, &pins, &a.drain, BB_ON_RECLAIM_, drained);
    gate_await(&done, 1);
    bb_pins_drain_(domain.rcu, &pins, &b.drain, BB_ON_COMPLETION_, drained);
    gate_await(&done, 2);
    cr_assert_str_eq(a.thread, "bb-reclaim");
    cr_assert_str_eq(b.thread, "bb-complete");
    domain_end(&domain);
}

Test(rcu_pins, a_drain_waits_for_the_pin_held_when_it_was_asked_for)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drain = {.done = &done};

    domain_begin(&domain, NULL);
    for (int round = 1; round <= 4; round++) { /* both sides, twice */
        unsigned side = pin(domain.ctx, &pins);

        bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
        await_side(&pins, side ^ 1);
        settle(&domain);
        cr_assert_eq(gate_value(&done), round - 1);
        bb_pins_put_(domain.rcu, &pins, side);
        gate_await(&done, round);
        cr_assert_eq(drain.held_then, 0);
    }
    domain_end(&domain);
}

Test(rcu_pins, newcomers_do_not_keep_a_drain_from_ending)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drain = {.done = &done};
    struct drain second = {.done = &done};
    unsigned old;
    unsigned newcomer;

    domain_begin(&domain, NULL);
    old = pin(domain.ctx, &pins);
    bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
    await_side(&pins, old ^ 1);
    newcomer = pin(domain.ctx, &pins);
    cr_assert_neq(newcomer, old);
    bb_pins_put_(domain.rcu, &pins, old);
    gate_await(&done, 1);
    cr_assert_eq(drain.held_then, 1, "the newcomer still holds its pin");

    /* The next drain is for the newcomer. */
    bb_pins_drain_(domain.rcu, &pins, &second.drain, BB_ON_RECLAIM_, drained);
    settle(&domain);
    cr_assert_eq(gate_value(&done), 1);
    bb_pins_put_(domain.rcu, &pins, newcomer);
    gate_await(&done, 2);
    domain_end(&domain);
}

Test(rcu_pins, a_pin_taken_under_a_pin_while_a_drain_waits_holds_up_the_next_drain_only)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drain = {.done = &done};
    struct drain second = {.done = &done};
    unsigned outer;
    unsigned nested;

    domain_begin(&domain, NULL);
    outer = pin(domain.ctx, &pins);
    bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
    await_side(&pins, outer ^ 1);
    nested = bb_pins_get_(&pins); /* in no section */
    bb_pins_drain_(domain.rcu, &pins, &second.drain, BB_ON_RECLAIM_, drained);
    bb_pins_put_(domain.rcu, &pins, outer);
    gate_await(&done, 1);
    settle(&domain);
    cr_assert_eq(gate_value(&done), 1);
    bb_pins_put_(domain.rcu, &pins, nested);
    gate_await(&done, 2);
    domain_end(&domain);
}

Test(rcu_pins, a_nested_get_that_loaded_the_index_before_the_flip_is_waited_for)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drain = {.done = &done};
    unsigned outer;
    unsigned stale;

    domain_begin(&domain, NULL);
    outer = pin(domain.ctx, &pins);
    stale = bb_load_relaxed(&pins.index); /* bb_pins_get_() stopped between its two steps */
    bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
    await_side(&pins, stale ^ 1);
    settle(&domain);
    (void)bb_fetch_add_relaxed(&pins.count[stale], 1);
    bb_pins_put_(domain.rcu, &pins, outer);
    settle(&domain);
    cr_assert_eq(gate_value(&done), 0);
    bb_pins_put_(domain.rcu, &pins, stale);
    gate_await(&done, 1);
    domain_end(&domain);
}

Test(rcu_pins, a_pin_taken_in_a_section_that_the_drain_met_is_waited_for)
{
    struct domain domain;

    domain_begin(&domain, NULL);
    for (int round = 0; round < 4; round++) {
        struct bb_pins_ pins = {0};
        struct gate done = GATE_INIT;
        struct drain drain = {.done = &done};
        uint64_t before = graces_begun(domain.rcu);
        unsigned side;

        bb_rcu_read_lock(domain.ctx); /* the object is found here, pinned only later */
        if (round % 2 == 0) {
            bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
        } else {
            bb_pins_drain_all_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
        }
        await_grace_begun(domain.rcu, before);
        side = bb_pins_get_(&pins);
        bb_rcu_read_unlock(domain.ctx);
        settle(&domain);
        cr_assert_eq(gate_value(&done), 0, "round %d", round);
        bb_pins_put_(domain.rcu, &pins, side);
        gate_await(&done, 1);
    }
    domain_end(&domain);
}

Test(rcu_pins, a_pin_on_the_side_that_newcomers_do_not_take_is_waited_for)
{
    struct domain domain;

    domain_begin(&domain, NULL);
    for (int round = 0; round < 4; round++) {
        struct bb_pins_ pins = {.index = (uint32_t)round & 1};
        struct gate done = GATE_INIT;
        struct drain drain = {.done = &done};
        unsigned other = pins.index ^ 1;

        /* Of one who loaded the index before the flip of an earlier drain. */
        (void)bb_fetch_add_relaxed(&pins.count[other], 1);
        if (round < 2) {
            bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
        } else {
            bb_pins_drain_all_(domain.rcu, &pins, &drain.drain, BB_ON_RECLAIM_, drained);
        }
        settle(&domain);
        cr_assert_eq(gate_value(&done), 0, "round %d", round);
        bb_pins_put_(domain.rcu, &pins, other);
        gate_await(&done, 1);
    }
    domain_end(&domain);
}

Test(rcu_pins, a_drain_of_all_pins_waits_for_a_chain_of_pins_taken_under_pins)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct gate all_done = GATE_INIT;
    struct drain first = {.done = &done};
    struct drain second = {.done = &all_done};
    struct drain all = {.done = &all_done};
    unsigned held;

    domain_begin(&domain, NULL);
    held = pin(domain.ctx, &pins);
    bb_pins_drain_(domain.rcu, &pins, &first.drain, BB_ON_RECLAIM_, drained);
    await_side(&pins, held ^ 1); /* so that the chain begins on the side that is left */
    /* These two make one batch, which has to wait for what either waits for. */
    bb_pins_drain_(domain.rcu, &pins, &second.drain, BB_ON_RECLAIM_, drained);
    bb_pins_drain_all_(domain.rcu, &pins, &all.drain, BB_ON_RECLAIM_, drained);
    for (int i = 0; i < 5; i++) {
        unsigned next = bb_pins_get_(&pins); /* in no section */

        bb_pins_put_(domain.rcu, &pins, held);
        held = next;
        settle(&domain);
        cr_assert_eq(gate_value(&all_done), 0, "link %d", i);
    }
    cr_assert_eq(gate_value(&done), 1);
    bb_pins_put_(domain.rcu, &pins, held);
    gate_await(&all_done, 2);
    domain_end(&domain);
}

Test(rcu_pins, drains_of_the_same_pins_end_in_the_order_they_were_asked_for)
{
    enum { DRAINS = 8 };
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drains[DRAINS];
    int order[DRAINS];
    unsigned side;

    domain_begin(&domain, NULL);
    side = pin(domain.ctx, &pins);
    for (int i = 0; i < DRAINS; i++) {
        drains[i] = (struct drain){.done = &done, .order = order, .number = i};
        bb_pins_drain_(domain.rcu, &pins, &drains[i].drain, BB_ON_RECLAIM_, drained);
        if (i == 0 || i == 4) {
            settle(&domain);
        }
    }
    cr_assert_eq(gate_value(&done), 0);
    bb_pins_put_(domain.rcu, &pins, side);
    gate_await(&done, DRAINS);
    for (int i = 0; i < DRAINS; i++) {
        cr_assert_eq(order[i], i);
    }
    domain_end(&domain);
}

Test(rcu_pins, a_drain_waits_for_sections_with_pins_and_without)
{
    struct domain domain;
    struct bb_pins_ pins = {0};

    domain_begin(&domain, NULL);
    for (int round = 0; round < 2; round++) {
        struct gate done = GATE_INIT;
        struct sitter sitter = {.tid = 0};
        struct drain drain = {.done = &done, .left = &sitter.left};
        uint64_t before;

        sitter_start(&sitter, domain.rcu, "reader");
        before = graces_begun(domain.rcu);
        /* On bb-reclaim: one that does not wait ends before its grace period begins. */
        bb_pins_drain_(domain.rcu, round == 0 ? NULL : &pins, &drain.drain, BB_ON_RECLAIM_,
                       drained);
        await_grace_begun(domain.rcu, before);
        cr_assert_eq(gate_value(&done), 0, "round %d", round);
        sitter_end(&sitter);
        gate_await(&done, 1);
        cr_assert_eq(drain.left_then, 1, "round %d", round);
    }
    domain_end(&domain);
}

Test(rcu_pins, drains_of_other_pins_do_not_wait_for_a_held_one)
{
    struct domain domain;
    struct bb_pins_ held = {0};
    struct bb_pins_ other = {0};
    struct gate held_done = GATE_INIT;
    struct gate other_done = GATE_INIT;
    struct drain a = {.done = &held_done};
    struct drain b = {.done = &other_done};
    unsigned side;

    domain_begin(&domain, NULL);
    side = pin(domain.ctx, &held);
    bb_pins_drain_(domain.rcu, &held, &a.drain, BB_ON_RECLAIM_, drained);
    bb_pins_drain_(domain.rcu, &other, &b.drain, BB_ON_RECLAIM_, drained);
    gate_await(&other_done, 1);
    cr_assert_eq(gate_value(&held_done), 0);
    bb_pins_put_(domain.rcu, &held, side);
    gate_await(&held_done, 1);
    domain_end(&domain);
}

Test(rcu_pins, destroying_the_domain_waits_for_drains)
{
    struct domain domain;
    struct bb_pins_ pins = {0};
    struct gate done = GATE_INIT;
    struct drain drain = {.done = &done};

    domain_begin(&domain, NULL);
    bb_pins_drain_(domain.rcu, &pins, &drain.drain, BB_ON_COMPLETION_, drained);
    domain_end(&domain);
    cr_assert_eq(gate_value(&done), 1);
}

/*
 * Torture. Objects are published in slots, found and pinned in sections, used outside them, also
 * through a second pin taken under the first; a writer replaces an object, drains it and frees it
 * in the drain's function. An object that has been drained may not be in use, nor come into use.
 */
enum { SLOTS = 3, USERS = 3, ALIVE = 0x600d, DEAD = 0xdead };

struct object {
    struct bb_pins_ pins;
    struct bb_pin_drain_ drain;
    struct bb_heap *heap;
    uint32_t users; /* (a) */
    uint32_t state; /* (a) ALIVE or DEAD */
    uint32_t *used_after_drain;
};

struct torture {
    struct domain domain;
    struct object *slot[SLOTS]; /* (a) */
    uint32_t stop;              /* (a) */
    uint32_t errors;            /* (a) */
    uint64_t seed;
    uint64_t uses; /* (a) */
};

static void object_drained(struct bb_pin_drain_ *drain)
{
    struct object *object = BB_CONTAINER_OF(drain, struct object, drain);

    if (bb_load_relaxed(&object->users) != 0) {
        (void)bb_fetch_add_relaxed(object->used_after_drain, 1);
    }
    bb_store_relaxed(&object->state, (uint32_t)DEAD);
    bb_heap_free(object->heap, object, sizeof(*object));
}

static struct object *object_create(struct torture *t)
{
    struct object *object = bb_heap_alloc(t->domain.heap, sizeof(*object));

    if (object == NULL) {
        abort();
    }
    object->heap = t->domain.heap;
    object->state = ALIVE;
    object->used_after_drain = &t->errors;
    return object;
}

static void use(struct torture *t, struct object *object)
{
    (void)bb_fetch_add_relaxed(&object->users, 1);
    if (bb_load_relaxed(&object->state) != ALIVE) {
        (void)bb_fetch_add_relaxed(&t->errors, 1);
    }
    (void)bb_fetch_add_relaxed(&object->users, -1u);
}

static void *user_main(void *arg)
{
    struct torture *t = arg;
    struct bb_ctx *ctx = domain_attach(t->domain.rcu, "user");
    uint64_t uses = 0;
    uint64_t random;

    if (ctx == NULL) {
        abort();
    }
    random = t->seed ^ ((uint64_t)ctx->tid << 32);
    while (bb_load_relaxed(&t->stop) == 0) {
        uint32_t r = random_next(&random);
        struct object *object;
        unsigned side;

        bb_rcu_read_lock(ctx);
        object = bb_deref_(&t->slot[r % SLOTS]);
        side = bb_pins_get_(&object->pins);
        bb_rcu_read_unlock(ctx);
        use(t, object);
        if ((r & 0x100) != 0) {
            unsigned nested = bb_pins_get_(&object->pins);

            bb_pins_put_(t->domain.rcu, &object->pins, side);
            side = nested;
            if ((r & 0x200) != 0) {
                (void)sched_yield();
            }
            use(t, object);
        }
        bb_pins_put_(t->domain.rcu, &object->pins, side);
        uses++;
    }
    (void)bb_fetch_add_relaxed(&t->uses, uses);
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(rcu_pins, torture_a_drained_object_is_never_in_use, .timeout = 200)
{
    static struct torture t;
    pthread_t users[USERS];
    bb_ns_t end_ns = bb_host_now_ns_() + stress_ns();
    uint64_t random;
    uint64_t replaced = 0;

    t.seed = seed_of_run();
    random = t.seed;
    domain_begin(&t.domain, NULL);
    for (int i = 0; i < SLOTS; i++) {
        t.slot[i] = object_create(&t);
    }
    for (int i = 0; i < USERS; i++) {
        cr_assert_eq(pthread_create(&users[i], NULL, user_main, &t), 0);
    }
    while (bb_host_now_ns_() < end_ns) {
        struct object *old;
        uint32_t i = random_next(&random) % SLOTS;

        old = t.slot[i];
        bb_publish_(&t.slot[i], object_create(&t));
        bb_pins_drain_all_(t.domain.rcu, &old->pins, &old->drain,
                           (random_next(&random) & 1) != 0 ? BB_ON_RECLAIM_ : BB_ON_COMPLETION_,
                           object_drained);
        replaced++;
        if (replaced % 8 == 0) {
            cr_assert_eq(bb_rcu_synchronize(t.domain.ctx), BB_OK);
        }
    }
    bb_store_relaxed(&t.stop, 1u);
    for (int i = 0; i < USERS; i++) {
        (void)pthread_join(users[i], NULL);
    }
    for (int i = 0; i < SLOTS; i++) {
        bb_pins_drain_all_(t.domain.rcu, &t.slot[i]->pins, &t.slot[i]->drain, BB_ON_RECLAIM_,
                           object_drained);
    }
    domain_end(&t.domain);
    cr_assert_eq(t.errors, 0, "seed %#llx", (unsigned long long)t.seed);
    cr_assert_gt(t.uses, 0);
    cr_assert_gt(replaced, 0);
}

/* Many drains of one object that stays: each must see the count of its moment gone. */
struct sweep {
    struct domain domain;
    struct bb_pins_ pins;
    uint32_t stop; /* (a) */
    uint64_t seed;
    uint64_t holding[USERS]; /* (a) the number of the hold that the user is in; 0: none */
    uint64_t before[USERS];
    struct gate done;
    uint32_t errors;
};

struct sweep_user {
    struct sweep *sweep;
    int number;
};

static void *sweep_main(void *arg)
{
    struct sweep_user *user = arg;
    struct sweep *s = user->sweep;
    struct bb_ctx *ctx = domain_attach(s->domain.rcu, "sweeper");
    uint64_t hold = 0;
    uint64_t random;

    if (ctx == NULL) {
        abort();
    }
    random = s->seed ^ ((uint64_t)ctx->tid << 32);
    while (bb_load_relaxed(&s->stop) == 0) {
        unsigned side = pin(ctx, &s->pins);

        /* Release and the acquire in the test's loop: whoever reads the number knows that the pin
         * is held; and the reverse on letting go. */
        bb_store_release(&s->holding[user->number], ++hold);
        if (random_next(&random) % 4 == 0) {
            (void)sched_yield();
        }
        bb_store_release(&s->holding[user->number], UINT64_C(0));
        bb_pins_put_(s->domain.rcu, &s->pins, side);
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static void sweep_drained(struct bb_pin_drain_ *drain)
{
    struct sweep *s = BB_CONTAINER_OF(drain->pins, struct sweep, pins);

    for (int i = 0; i < USERS; i++) {
        if (s->before[i] != 0 && bb_load_acquire(&s->holding[i]) == s->before[i]) {
            s->errors++;
        }
    }
    gate_raise(&s->done);
}

Test(rcu_pins, torture_every_hold_seen_before_a_drain_is_over_when_it_ends, .timeout = 200)
{
    static struct sweep s;
    struct sweep_user users[USERS];
    struct bb_pin_drain_ drain;
    pthread_t threads[USERS];
    bb_ns_t end_ns = bb_host_now_ns_() + stress_ns();
    int drains = 0;

    s.seed = seed_of_run();
    (void)pthread_mutex_init(&s.done.mutex, NULL);
    (void)pthread_cond_init(&s.done.risen, NULL);
    domain_begin(&s.domain, NULL);
    for (int i = 0; i < USERS; i++) {
        users[i] = (struct sweep_user){&s, i};
        cr_assert_eq(pthread_create(&threads[i], NULL, sweep_main, &users[i]), 0);
    }
    while (bb_host_now_ns_() < end_ns) {
        for (int i = 0; i < USERS; i++) {
            s.before[i] = bb_load_acquire(&s.holding[i]);
        }
        bb_pins_drain_(s.domain.rcu, &s.pins, &drain, BB_ON_RECLAIM_, sweep_drained);
        gate_await(&s.done, ++drains);
    }
    bb_store_relaxed(&s.stop, 1u);
    for (int i = 0; i < USERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    cr_assert_eq(s.errors, 0, "%d drains, seed %#llx", drains, (unsigned long long)s.seed);
    cr_assert_gt(drains, 0);
    domain_end(&s.domain);
}
