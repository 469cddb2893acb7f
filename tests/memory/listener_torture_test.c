/* SPDX-License-Identifier: MIT */
/*
 * Many threads change the map, some as if inside a callback; a listener keeps a copy of the view
 * from what it is told alone. Each call must fit the copy, and in the end copy and view are equal.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "../../base/atomic.h"
#include "../../memory/listener.h"
#include "fixture.h"

enum { THREADS = 4, REGIONS = 6, SHADOW_MAX = 256 };

static struct fixture fixture;
static struct bb_space *mem;
static struct bb_region *regions[THREADS][REGIONS];
static uint32_t stop; /* (a) main -> changers */

/* Written in hooks, which run one at a time; read by main once the changers are joined. */
static struct {
    struct bb_range range[SHADOW_MAX];
    size_t count;
    bool open;          /* between begin and commit */
    size_t removes_due; /* of the running change */
    size_t adds_due;
    uint64_t changes;
    const char *wrong; /* the first claim that did not hold */
} shadow;

static void claim(bool holds, const char *text)
{
    if (!holds && shadow.wrong == NULL) {
        shadow.wrong = text;
    }
}

static void on_begin(void *opaque, const struct bb_change *change)
{
    (void)opaque;
    claim(!shadow.open, "begin comes after the commit of the one before");
    claim(change->space == mem, "the change is of the listener's space");
    shadow.open = true;
    shadow.removes_due = change->removed;
    shadow.adds_due = change->added;
    shadow.changes++;
}

static void on_removed(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    claim(shadow.open && shadow.removes_due-- > 0, "as many removed as begin said");
    for (size_t i = 0; i < shadow.count; i++) {
        const struct bb_range *known = &shadow.range[i];
        if (known->first == range->first && known->last == range->last &&
            known->region == range->region && known->offset == range->offset) {
            shadow.range[i] = shadow.range[--shadow.count];
            return;
        }
    }
    claim(false, "a range that is removed was added before");
}

static void on_added(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    claim(shadow.open && shadow.removes_due == 0, "added comes after all removed");
    claim(shadow.adds_due-- > 0, "as many added as begin said");
    for (size_t i = 0; i < shadow.count; i++) {
        claim(shadow.range[i].last < range->first || range->last < shadow.range[i].first,
              "an added range overlaps none");
    }
    if (shadow.count < SHADOW_MAX) {
        shadow.range[shadow.count++] = *range;
    } else {
        claim(false, "few enough ranges for the copy");
    }
}

static void on_commit(void *opaque)
{
    (void)opaque;
    claim(shadow.open && shadow.removes_due == 0 && shadow.adds_due == 0,
          "commit comes after all that begin said");
    shadow.open = false;
}

static const struct bb_listener_ops shadow_ops = {
    .begin = on_begin, .removed = on_removed, .added = on_added, .commit = on_commit};

struct changer {
    unsigned index;
    uint64_t seed;
    pthread_t thread;
};

/* One change of a thread's own regions, which overlap the others' at other priorities. */
static void change(struct bb_ctx *ctx, struct bb_region **mine, int priority,
                   struct test_random *random)
{
    struct bb_region *region = mine[test_random_below(random, REGIONS)];
    struct bb_region *second = mine[test_random_below(random, REGIONS)];
    struct bb_txn *txn;

    if (bb_txn_begin(ctx, &txn, NULL) != BB_OK) {
        return;
    }
    switch (test_random_below(random, 4)) {
    case 0:
        bb_txn_place(txn, bb_space_root(mem), test_random_below(random, 64) * 0x40, region,
                     priority, NULL);
        break;
    case 1:
        bb_txn_unmap(txn, region, NULL);
        break;
    case 2:
        bb_txn_move(txn, region, test_random_below(random, 64) * 0x40, NULL);
        bb_txn_enable(txn, second, true, NULL);
        break;
    default:
        bb_txn_enable(txn, region, false, NULL);
        break;
    }
    bb_txn_commit(txn, NULL); /* refused as often as not: overlaps, in a place already */
}

static void *changer_run(void *arg)
{
    struct changer *changer = arg;
    struct test_random random = {.state = changer->seed};
    struct bb_ctx *ctx = fixture_attach(&fixture, "changer");

    while (bb_load_relaxed(&stop) == 0) { /* relaxed: it guards nothing */
        bool inside = test_random_below(&random, 2) != 0;
        ctx->callback_depth += inside ? 1 : 0;
        for (unsigned i = test_random_below(&random, 3) + 1; i > 0; i--) {
            change(ctx, regions[changer->index], (int)changer->index, &random);
        }
        ctx->callback_depth -= inside ? 1 : 0;
        if (bb_mem_ctx_(ctx)->untold) {
            ctx->pending = false;
            bb_listeners_settle_(ctx);
        }
    }
    bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static bool matches(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    size_t *matched = opaque;

    for (size_t i = 0; i < shadow.count; i++) {
        if (shadow.range[i].first == first && shadow.range[i].last == last &&
            shadow.range[i].region == region) {
            (*matched)++;
            return true;
        }
    }
    cr_assert(false, "0x%" PRIx64 "-0x%" PRIx64 " was never told", first, last);
    return false;
}

Test(listener_torture, a_copy_kept_from_what_is_told_is_the_view, .timeout = 300)
{
    struct bb_listener_config config = {.name = "shadow", .ops = &shadow_ops};
    struct changer changers[THREADS];
    struct bb_listener *listener;
    struct test_random random;
    size_t matched = 0;

    uint64_t seed = test_random_begin(&random);
    fixture_begin(&fixture);
    mem = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 32);
    config.space = mem;
    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, NULL), BB_OK);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned j = 0; j < REGIONS; j++) {
            regions[i][j] = fixture_region(&fixture, "region", (j + 1) * 0x60, 1);
        }
        changers[i] = (struct changer){.index = i, .seed = test_random_next(&random)};
    }
    for (unsigned i = 0; i < THREADS; i++) {
        cr_assert_eq(pthread_create(&changers[i].thread, NULL, changer_run, &changers[i]), 0);
    }
    uint64_t until = test_now_ns() + test_stress_ns();
    uint64_t listeners = 0;
    while (test_now_ns() < until) { /* others come and go meanwhile */
        struct bb_listener *other;
        static const struct bb_listener_ops nothing;
        struct bb_listener_config second = {.name = "other", .space = mem, .ops = &nothing};
        cr_assert_eq(bb_listener_add(fixture.ctx, &second, &other, NULL), BB_OK);
        cr_assert_eq(bb_listener_remove(fixture.ctx, other, NULL), BB_OK);
        listeners++;
    }
    bb_store_relaxed(&stop, 1u);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(changers[i].thread, NULL);
    }
    cr_assert_null(shadow.wrong, "seed %" PRIu64 ": not so: %s", seed, shadow.wrong);
    cr_assert(!shadow.open, "seed %" PRIu64, seed);
    bb_space_each(fixture.ctx, mem, matches, &matched);
    cr_assert_eq(matched, shadow.count, "seed %" PRIu64 ": %zu of %zu are in the view", seed,
                 matched, shadow.count);
    cr_assert_gt(shadow.changes, 100u);
    cr_assert_gt(listeners, 10u);
    cr_assert_eq(bb_listener_remove(fixture.ctx, listener, NULL), BB_OK);
    cr_assert_eq(shadow.count, 0u);
    cr_assert_null(shadow.wrong, "seed %" PRIu64 ": not so: %s", seed, shadow.wrong);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned j = 0; j < REGIONS; j++) {
            fixture_remove(&fixture, regions[i][j]);
        }
    }
    fixture_end(&fixture);
}
