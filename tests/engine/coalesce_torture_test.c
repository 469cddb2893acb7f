/* SPDX-License-Identifier: MIT */
/*
 * Coalesced writes from many vCPUs, in the order of what the vCPUs tell one another.
 *
 * Some threads pass a token. Who has it writes to a LOCKFREE device the numbers that come next,
 * reads back how far the device is, or flushes, and passes it on; so every number that was written
 * before must have been made, once and in order, whoever made it. The device keeps plain memory:
 * under ThreadSanitizer a write that is not seen as the token promises is a race.
 * Others meanwhile make noise on a second device, whose writes have effects on sleeping ones and on
 * such under the embedder's lock, and so are makers of the token's writes too. Short-lived vCPUs
 * leave writes and detach; the main thread pauses and resumes.
 */
#include "fixture.h"

#include <sched.h>
#include <string.h>

#include "../../memory/doorbell.h"

enum { TOKENS = 3, NOISES = 3, RANGE = 0x80 };

static struct machine machine;

static struct {
    uint32_t stop;     /* main's; relaxed: a hint */
    uint32_t turn;     /* whose the token is; released by who passes it, acquired by who gets it */
    uint64_t next;     /* with the token: the next number to be written */
    uint64_t expected; /* the device's own, plain on purpose */
    uint32_t wrong;    /* (a) counts, looked at in the end */
    uint32_t late;
    uint64_t passes;
} token;

static struct {
    uint64_t issued[NOISES]; /* by its thread, relaxed: pauses are the order */
    uint64_t returned[NOISES];
    uint64_t refused;  /* writes and reads under the embedder's lock */
    uint64_t visitors; /* writes by short-lived vCPUs; main's */
    uint32_t failed;
} noise;

static struct probe counted, noisy, sleepy, locked;
static uint64_t seed;

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int count_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    if (value != (uint32_t)token.expected) {
        (void)bb_fetch_add_relaxed(&token.wrong, 1); /* a count */
    }
    token.expected++;
    return BB_OK;
}

static int count_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    *value = token.expected;
    return BB_OK;
}

/* Posts to both, for the device's lock is held. */
static int noisy_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)bb_mmio_write(ctx, machine.mmio, sleepy.gpa, 4, value);
    (void)bb_mmio_write(ctx, machine.mmio, locked.gpa, 4, value);
    return BB_OK;
}

static int yield_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    if (value % 8 == 0) {
        sched_yield();
    }
    return BB_OK;
}

struct actor {
    unsigned index;
    uint64_t random;
};

static void check(bool good)
{
    if (!good) {
        (void)bb_fetch_add_relaxed(&token.late, 1); /* a count */
    }
}

static void act(struct bb_ctx *ctx, struct actor *actor)
{
    uint64_t random = draw(&actor->random);
    uint64_t value = 0;
    unsigned burst = random % 8 == 7 ? 300 : (unsigned)(random >> 8) % 4;

    for (unsigned i = 0; i < burst; i++) {
        check(bb_mmio_write(ctx, machine.mmio, counted.gpa + i * 4 % RANGE, 4,
                            (uint32_t)token.next++) == BB_OK);
    }
    switch ((random >> 16) % 8) {
    case 0: /* behind the range: made at once */
        check(bb_mmio_write(ctx, machine.mmio, counted.gpa + RANGE, 4, (uint32_t)token.next++) ==
              BB_OK);
        break;
    case 1:
    case 2:
        check(bb_mmio_read(ctx, machine.mmio, counted.gpa, 8, &value) == BB_OK);
        check(value == token.next);
        break;
    case 3:
        check(bb_coalesced_flush(ctx) == BB_OK);
        check(token.expected == token.next);
        break;
    default:
        break;
    }
}

static void pass_token(struct bb_ctx *ctx, void *arg)
{
    struct actor *actor = arg;

    while (bb_load_relaxed(&token.stop) == 0) { /* a hint: the token stays with somebody */
        /* Pairs with the release below: what was done before with the token. */
        if (bb_load_acquire(&token.turn) != actor->index) {
            sched_yield();
            continue;
        }
        act(ctx, actor);
        bb_store_relaxed(&token.passes, token.passes + 1); /* with the token; main looks at it */
        bb_store_release(&token.turn, (uint32_t)(draw(&actor->random) % TOKENS));
    }
}

static void fail_unless(bool good)
{
    if (!good) {
        (void)bb_fetch_add_relaxed(&noise.failed, 1); /* a count */
    }
}

static void make_noise(struct bb_ctx *ctx, void *arg)
{
    struct actor *actor = arg;
    uint64_t *issued = &noise.issued[actor->index];
    uint64_t *returned = &noise.returned[actor->index];
    uint64_t value;

    while (bb_load_relaxed(&token.stop) == 0) {
        uint64_t random = draw(&actor->random);
        bool hold = random % 16 == 0;

        if (hold) {
            outer_lock(NULL);
        }
        for (unsigned i = 0; i < (random >> 8) % 8; i++) {
            bb_store_relaxed(issued, *issued + 1); /* this thread's own */
            int result = bb_mmio_write(ctx, machine.mmio, noisy.gpa + i * 4, 4, random >> 20);
            /* Refused where it would have to wait, or stand at the gate, with the lock held. */
            fail_unless(result == BB_OK || (hold && result == BB_E_CONTEXT));
            if (result == BB_OK) {
                bb_store_relaxed(returned, *returned + 1);
            } else {
                bb_store_relaxed(issued, *issued - 1);
                (void)bb_fetch_add_relaxed(&noise.refused, 1); /* a count */
            }
        }
        if ((random >> 16) % 4 == 0) {
            int result = bb_mmio_read(ctx, machine.mmio, noisy.gpa + 0x90, 4, &value);
            fail_unless(result == BB_OK || (hold && result == BB_E_CONTEXT));
        }
        if (hold) {
            outer_unlock(NULL);
        }
        switch ((random >> 18) % 4) {
        case 0:
            fail_unless(bb_coalesced_flush(ctx) == BB_OK);
            break;
        case 1:
            fail_unless(bb_mmio_write(ctx, machine.mmio, locked.gpa, 4, random) == BB_OK);
            break;
        default:
            break;
        }
    }
}

static void visit(struct bb_ctx *ctx, void *arg)
{
    unsigned count = *(unsigned *)arg;

    for (unsigned i = 0; i < count; i++) {
        fail_unless(bb_mmio_write(ctx, machine.mmio, noisy.gpa, 4, i) == BB_OK);
    }
}

static uint64_t sum(const uint64_t *counts)
{
    uint64_t total = noise.visitors;

    for (unsigned i = 0; i < NOISES; i++) {
        total += bb_load_relaxed(&counts[i]);
    }
    return total;
}

static uint64_t noisy_made(void)
{
    return bb_load_relaxed(&noisy.writes);
}

/* Everything that had returned before the pause has been made when it is there, and nothing more
 * is until it is over. */
static void pause_once(void)
{
    struct bb_error err = {0};
    uint64_t returned = sum(noise.returned);

    cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "seed %llu: %s",
                 (unsigned long long)seed, err.text);
    uint64_t there = noisy_made();
    uint64_t counts = token.expected; /* plain: the pause is the order */
    cr_assert_geq(there, returned, "seed %llu", (unsigned long long)seed);
    sched_yield();
    cr_assert_eq(noisy_made(), there, "seed %llu", (unsigned long long)seed);
    cr_assert_eq(token.expected, counts, "seed %llu", (unsigned long long)seed);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
}

static void coalesce(struct probe *probe)
{
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_coalesce(txn, probe->region, 0, RANGE, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
}

static void run(enum bb_lock_mode mode, uint64_t duration_ns)
{
    struct bb_engine_config config = {
        .lock_mode = mode,
        .external_lock = outer_hooks,
    };
    struct worker worker[TOKENS + NOISES], visitor;
    struct actor actor[TOKENS + NOISES];
    uint64_t until, taken, rounds = 0, random = seed;

    memset(&token, 0, sizeof(token));
    memset(&noise, 0, sizeof(noise));
    machine_make(&machine, &config);
    counted = (struct probe){.read = count_read, .write = count_write};
    noisy = (struct probe){.write = noisy_write};
    sleepy = (struct probe){.write = yield_write};
    locked = (struct probe){.write = yield_write};
    probe_make(&machine, &counted, "counted", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &noisy, "noisy", 1, BB_CLASS_DEVICE_LOCK);
    probe_make(&machine, &sleepy, "sleepy", 2, BB_CLASS_MAY_SLEEP);
    probe_make(&machine, &locked, "locked", 3, BB_CLASS_EXTERNAL_LOCK);
    coalesce(&counted);
    coalesce(&noisy);
    for (unsigned i = 0; i < TOKENS + NOISES; i++) {
        bool passes = i < TOKENS;
        actor[i] = (struct actor){passes ? i : i - TOKENS, seed * 2654435761u + i + 1};
        worker_start(&worker[i], &machine, passes ? "token" : "noise",
                     passes ? pass_token : make_noise, &actor[i]);
    }
    until = host_ns() + duration_ns;
    while (host_ns() < until || bb_load_relaxed(&token.passes) == 0) { /* a hint */
        unsigned count = (unsigned)(draw(&random) % 5);

        worker_start(&visitor, &machine, "visitor", visit, &count);
        worker_join(&visitor);
        noise.visitors += count;
        cr_assert_geq(noisy_made(), noise.visitors);
        if (rounds++ % 4 == 0) {
            pause_once();
        }
    }
    bb_store_relaxed(&token.stop, 1); /* joined next */
    for (unsigned i = 0; i < TOKENS + NOISES; i++) {
        worker_join(&worker[i]);
    }
    taken = bb_engine_stats(machine.ctx).coalesced;
    cr_assert_eq(token.wrong, 0, "seed %llu: %u numbers out of order", (unsigned long long)seed,
                 token.wrong);
    cr_assert_eq(token.late, 0, "seed %llu: %u numbers late", (unsigned long long)seed, token.late);
    cr_assert_eq(noise.failed, 0, "seed %llu", (unsigned long long)seed);
    cr_assert_eq(token.expected, token.next); /* all are detached: nothing is left */
    cr_assert_eq(noisy_made(), sum(noise.issued));
    cr_assert_eq(bb_load_relaxed(&sleepy.writes), noisy_made());
    cr_assert_geq(bb_load_relaxed(&locked.writes), noisy_made());
    cr_assert_gt(taken, 0);
    probe_drop(&counted);
    probe_drop(&noisy);
    probe_drop(&sleepy);
    probe_drop(&locked);
    machine_drop(&machine);
}

TestSuite(coalesce_torture, .timeout = 600);

static void torture(enum bb_lock_mode mode)
{
    seed = host_ns() | 1;
    run(mode, (uint64_t)stress_seconds() * 1000000000u);
}

Test(coalesce_torture, each_write_is_made_once_in_order_and_before_who_is_told_of_it_looks)
{
    torture(BB_LOCK_FREE);
}

Test(coalesce_torture, likewise_with_a_lock_for_each_device)
{
    torture(BB_LOCK_DEVICE);
}

Test(coalesce_torture, likewise_with_the_big_lock_which_gives_way_to_the_embedders)
{
    torture(BB_LOCK_BIG);
}
