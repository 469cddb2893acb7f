/* SPDX-License-Identifier: MIT */
/*
 * Readers beside a writer that replaces pairs of regions, one of each pair in either space. Every
 * pair has a number, one higher than the one before it. Whoever looks at both spaces must never
 * see a hole, a number lower than one it saw, or, in one view, two numbers; and what it finds must
 * still be alive: freed regions, leaves and nodes are poisoned.
 *
 * BUSBAR_STRESS_SECONDS sets how long each test runs.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>

#include "fixture.h"

enum { READERS = 3, FILLERS = 40 };

static const bb_gpa_t PAIR_GPA = 0xfed00000;
static const uint64_t PAIR_BYTES = 0x400;

static struct fixture fixture;
static struct bb_space *left, *right;
static struct bb_region *mover; /* in `left`, now before the pair, now behind it */
static int stop;                /* (a) set by main */
static int attached;            /* (a) readers that have begun */

struct reader {
    pthread_t thread;
    uint64_t looks;
    char fault[160]; /* the first thing that was wrong; read after the join */
};

/* The number of what lies at the pair's address in `space`; 0: a hole. Inside a section. */
static uint64_t number_in(struct bb_ctx *ctx, struct bb_space *space, uint64_t offset)
{
    const struct bb_flat_ *hit = bb_map_find_(bb_mem_ctx_(ctx), space, PAIR_GPA + offset);
    uint64_t value = 0;

    if (hit == NULL) {
        return 0;
    }
    if (fixture_read(ctx, hit->region, 0, 8, &value) != BB_OK) {
        return POISON_WORD;
    }
    return value;
}

static void look(struct reader *reader, struct bb_ctx *ctx, uint64_t *newest)
{
    /* Alternating order: a commit published in two halves shows in one of them. */
    struct bb_space *first = reader->looks % 2 != 0 ? left : right;
    struct bb_space *second = reader->looks % 2 != 0 ? right : left;
    uint64_t offset = reader->looks % PAIR_BYTES;

    bb_section_enter_(ctx);
    uint64_t a = number_in(ctx, first, offset);
    uint64_t b = number_in(ctx, second, offset);
    if (a == 0 || b == 0) {
        snprintf(reader->fault, sizeof(reader->fault), "a hole: %" PRIu64 ", %" PRIu64, a, b);
    } else if (a < *newest || b < a) {
        snprintf(reader->fault, sizeof(reader->fault),
                 "back in time: %" PRIu64 " then %" PRIu64 " then %" PRIu64, *newest, a, b);
    } else {
        *newest = b;
    }

    const struct bb_root_ *root = bb_deref_(&fixture.map->root);
    const struct bb_flat_ *in_left = bb_view_find_(&root->view[left->index], PAIR_GPA + offset);
    const struct bb_flat_ *in_right = bb_view_find_(&root->view[right->index], PAIR_GPA + offset);
    if (in_left == NULL || in_right == NULL ||
        in_left->region->opaque != in_right->region->opaque) {
        snprintf(reader->fault, sizeof(reader->fault), "two numbers, or a hole, in one view");
    }
    bb_section_leave_(ctx);
}

struct walk {
    bb_gpa_t behind; /* first address that may come next */
    uint64_t number; /* the pair's; 0: not met */
    unsigned movers;
    bool fault;
};

static bool walk(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct walk *walk = opaque;

    walk->fault |= first < walk->behind || last < first || region->last != last - first;
    walk->behind = last + 1;
    if (first == PAIR_GPA) {
        walk->fault |= walk->number != 0;
        walk->number = (uint64_t)(uintptr_t)region->opaque;
    }
    walk->movers += region == mover;
    return true;
}

/* A visit is of one moment too, and that moment is not before what was seen already. */
static void look_by_walking(struct reader *reader, struct bb_ctx *ctx, uint64_t *newest)
{
    struct walk state = {0};

    bb_space_each(ctx, left, walk, &state);
    if (state.fault || state.number < *newest) {
        snprintf(reader->fault, sizeof(reader->fault), "a walk out of order, or back in time");
    } else if (state.movers != 1) {
        snprintf(reader->fault, sizeof(reader->fault), "a walk met %u movers", state.movers);
    }
    *newest = state.number;
}

static void *read_pairs(void *arg)
{
    struct reader *reader = arg;
    struct bb_ctx *ctx = fixture_attach(&fixture, "reader");
    uint64_t newest = 0;

    /* Relaxed: only counts readers; what they read was published before they were made. */
    bb_fetch_add_relaxed(&attached, 1);
    if (ctx == NULL) {
        snprintf(reader->fault, sizeof(reader->fault), "can't attach");
        return NULL;
    }
    /* Relaxed: a late look does no harm. */
    while (!bb_load_relaxed(&stop) && reader->fault[0] == '\0') {
        look(reader, ctx, &newest);
        if (reader->looks++ % 16 == 0) {
            look_by_walking(reader, ctx, &newest);
        }
    }
    bb_ctx_detach_(ctx, NULL);
    return NULL;
}

/* A region freed, after its readers are gone, on bb-reclaim. */
struct doomed {
    struct bb_rcu_head head;
    struct bb_region *region[2];
    struct bb_heap *heap;
};

static void free_doomed(struct bb_rcu_head *head)
{
    struct doomed *doomed = BB_CONTAINER_OF(head, struct doomed, head);

    for (int i = 0; i < 2; i++) {
        bb_region_free_(doomed->heap, doomed->region[i]);
    }
    bb_heap_free(doomed->heap, doomed, sizeof(*doomed));
}

static void doom(struct bb_region *a, struct bb_region *b)
{
    struct doomed *doomed = bb_heap_alloc(fixture.memory.heap, sizeof(*doomed));

    cr_assert_not_null(doomed);
    doomed->heap = fixture.memory.heap;
    doomed->region[0] = a;
    doomed->region[1] = b;
    cr_assert_eq(bb_regions_retire_(fixture.ctx, doomed->region, 2, NULL), BB_OK);
    bb_rcu_defer_(fixture.rcu, &doomed->head, free_doomed,
                  sizeof(*doomed) + 2 * sizeof(struct bb_region));
    bb_rcu_throttle_(fixture.ctx);
}

static void make_pair(struct bb_region *pair[2], uint64_t number)
{
    pair[0] = fixture_region(&fixture, "left", PAIR_BYTES, number);
    pair[1] = fixture_region(&fixture, "right", PAIR_BYTES, number);
}

static bb_gpa_t mover_gpa(uint64_t number)
{
    return number % 2 != 0 ? PAIR_GPA - 0x10000 : PAIR_GPA + 0x10000;
}

static void replace_pair(struct bb_region *pair[2], uint64_t number)
{
    struct bb_region *next[2];
    struct bb_txn *txn;
    struct bb_error err = {0};

    make_pair(next, number);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, pair[0], &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, pair[1], &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, left, PAIR_GPA, next[0], &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, right, PAIR_GPA, next[1], &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, mover, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, left, mover_gpa(number), mover, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    doom(pair[0], pair[1]);
    pair[0] = next[0];
    pair[1] = next[1];
}

Test(torture, readers_see_each_transaction_whole_and_nothing_that_was_freed)
{
    struct reader readers[READERS] = {0};
    struct bb_region *fillers[FILLERS];
    struct bb_region *pair[2];
    struct test_random random;
    uint64_t number = 1;

    fixture_begin(&fixture);
    uint64_t seed = test_random_begin(&random);
    left = fixture_space(&fixture, "left", BB_SPACE_MMIO, 0);
    right = fixture_space(&fixture, "right", BB_SPACE_MMIO, 0);
    /* Neighbours, so that the trees have paths to copy; they come and go as well. */
    for (unsigned i = 0; i < FILLERS; i++) {
        fillers[i] = fixture_region(&fixture, "filler", 0x100, 1);
    }
    mover = fixture_region(&fixture, "mover", 0x40, 1);
    make_pair(pair, number);
    cr_assert_eq(bb_space_map(fixture.ctx, left, mover_gpa(number), mover, NULL), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, left, PAIR_GPA, pair[0], NULL), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, right, PAIR_GPA, pair[1], NULL), BB_OK);
    for (int i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_create(&readers[i].thread, NULL, read_pairs, &readers[i]), 0);
    }
    while (bb_load_relaxed(&attached) < READERS) {
        sched_yield();
    }

    uint64_t end_ns = test_now_ns() + test_stress_ns();
    while (test_now_ns() < end_ns) {
        replace_pair(pair, ++number);
        unsigned which = test_random_below(&random, FILLERS);
        if (fillers[which]->parent != NULL) {
            cr_assert_eq(bb_space_unmap(fixture.ctx, fillers[which], NULL), BB_OK);
        } else {
            bb_gpa_t gpa = PAIR_GPA + PAIR_BYTES + 0x100 * (bb_gpa_t)which;
            cr_assert_eq(
                bb_space_map(fixture.ctx, which % 2 != 0 ? left : right, gpa, fillers[which], NULL),
                BB_OK);
        }
    }
    bb_store_relaxed(&stop, 1);
    for (int i = 0; i < READERS; i++) {
        pthread_join(readers[i].thread, NULL);
    }
    for (int i = 0; i < READERS; i++) {
        cr_assert_eq(readers[i].fault[0], '\0',
                     "reader %d after %" PRIu64 " looks and %" PRIu64 " commits: %s, seed %" PRIu64,
                     i, readers[i].looks, number, readers[i].fault, seed);
        cr_assert_gt(readers[i].looks, 0);
    }
    for (unsigned i = 0; i < FILLERS; i++) {
        fixture_remove(&fixture, fillers[i]);
    }
    fixture_remove(&fixture, mover);
    fixture_remove(&fixture, pair[0]);
    fixture_remove(&fixture, pair[1]);
    fixture_end(&fixture);
}

enum { WRITERS = 3 };

static void *swap_own_pair(void *arg)
{
    struct reader *writer = arg;
    struct bb_ctx *ctx = fixture_attach(&fixture, "writer");
    uint64_t index = (uint64_t)writer->looks;
    struct bb_region_config config = {
        .name = "own", .size_bytes = 0x40, .ops = &(struct bb_region_ops){.read = NULL}};
    struct bb_region *region = NULL;
    uint64_t commits = 0;
    bb_gpa_t home = 0x40 * index;

    if (ctx == NULL ||
        bb_region_create_io_(ctx, &config, &(struct bb_owner_){.id = (uint32_t)index}, &region,
                             NULL) != BB_OK) {
        snprintf(writer->fault, sizeof(writer->fault), "can't begin");
        return NULL;
    }
    /* Relaxed: a late look does no harm. */
    while (!bb_load_relaxed(&stop) && writer->fault[0] == '\0') {
        struct bb_space *space = commits % 2 != 0 ? left : right;
        if (bb_space_map(ctx, space, home, region, NULL) != BB_OK) {
            snprintf(writer->fault, sizeof(writer->fault), "map failed");
            break;
        }
        bb_section_enter_(ctx);
        const struct bb_flat_ *hit = bb_map_find_(bb_mem_ctx_(ctx), space, home + 0x3f);
        if (hit == NULL || hit->region != region) {
            snprintf(writer->fault, sizeof(writer->fault), "its own commit is not seen");
        }
        bb_section_leave_(ctx);
        if (bb_space_unmap(ctx, region, NULL) != BB_OK) {
            snprintf(writer->fault, sizeof(writer->fault), "unmap failed");
        }
        commits++;
    }
    if (bb_regions_retire_(ctx, &region, 1, NULL) == BB_OK) {
        bb_rcu_synchronize(ctx);
        bb_region_free_(fixture.memory.heap, region);
    }
    writer->looks = commits;
    bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(torture, writers_beside_each_other_each_find_what_they_committed)
{
    struct reader writers[WRITERS] = {0};

    fixture_begin(&fixture);
    left = fixture_space(&fixture, "left", BB_SPACE_MMIO, 0);
    right = fixture_space(&fixture, "right", BB_SPACE_MMIO, 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].looks = i;
        cr_assert_eq(pthread_create(&writers[i].thread, NULL, swap_own_pair, &writers[i]), 0);
    }
    uint64_t end_ns = test_now_ns() + test_stress_ns();
    while (test_now_ns() < end_ns) {
        sched_yield();
    }
    bb_store_relaxed(&stop, 1);
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    for (int i = 0; i < WRITERS; i++) {
        cr_assert_eq(writers[i].fault[0], '\0', "writer %d: %s", i, writers[i].fault);
        cr_assert_gt(writers[i].looks, 0);
    }
    fixture_settled_bytes(&fixture);
    fixture_end(&fixture);
}

enum { TEAR_OFFSETS = 64 };

static struct bb_region *shared_ram;

/* Writes all zeros and all ones, of every size, where all threads do. */
static void *flip_ram(void *arg)
{
    struct reader *writer = arg;
    struct bb_ctx *ctx = fixture_attach(&fixture, "flipper");

    if (ctx == NULL) {
        snprintf(writer->fault, sizeof(writer->fault), "can't attach");
        return NULL;
    }
    /* Relaxed: a late look does no harm. */
    while (!bb_load_relaxed(&stop)) {
        uint64_t value = writer->looks % 2 != 0 ? UINT64_MAX : 0;
        for (unsigned size = 1; size <= 8; size *= 2) {
            /* Each size has eight bytes of its own, so that a mixture is a torn access. */
            fixture_write(ctx, shared_ram, (uint64_t)size * 8, size, value);
        }
        writer->looks++;
    }
    bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(torture, an_aligned_access_to_ram_is_never_torn)
{
    struct reader writers[2] = {0};
    struct bb_ram_config config = {.name = "ram", .size_bytes = TEAR_OFFSETS + 8};
    uint64_t looks = 0;

    fixture_begin(&fixture);
    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &shared_ram, NULL), BB_OK);
    for (int i = 0; i < 2; i++) {
        writers[i].looks = (uint64_t)i;
        cr_assert_eq(pthread_create(&writers[i].thread, NULL, flip_ram, &writers[i]), 0);
    }
    uint64_t end_ns = test_now_ns() + test_stress_ns();
    uint64_t torn = 0;
    while (test_now_ns() < end_ns && torn == 0) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            uint64_t value = 1;
            fixture_read(fixture.ctx, shared_ram, (uint64_t)size * 8, size, &value);
            torn = value == 0 || value == bb_mask_bytes(size) ? torn : value;
        }
        looks++;
    }
    bb_store_relaxed(&stop, 1);
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i].thread, NULL);
        cr_assert_eq(writers[i].fault[0], '\0', "%s", writers[i].fault);
    }
    cr_assert_eq(torn, 0, "0x%" PRIx64 " after %" PRIu64 " looks", torn, looks);
    fixture_remove(&fixture, shared_ram);
    fixture_end(&fixture);
}
