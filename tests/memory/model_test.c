/* SPDX-License-Identifier: MIT */
/*
 * Random transactions over two spaces against a table of where each region is: results, contents
 * at every boundary byte, and visits agree; memory is bounded by what is mapped.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "fixture.h"

/* One thread but bb-reclaim: ThreadSanitizer needs no more than a part of it. */
enum { REGIONS = 96, SPACES = 2, OPERATIONS = BB_TSAN ? 4000 : 20000 };

/* Where a region is, as the table has it. */
struct place {
    int space; /* -1: nowhere */
    bb_gpa_t first;
    bb_gpa_t last;
};

static struct fixture fixture;
static struct bb_space *spaces[SPACES];
static struct bb_region *regions[REGIONS];
static struct place table[REGIONS];
static struct test_random random_numbers;
static uint64_t seed;

static unsigned below(unsigned bound)
{
    return test_random_below(&random_numbers, bound);
}

/* The region that the table has at an address, other than `except`; -1 for none. */
static int table_at(int space, bb_gpa_t first, bb_gpa_t last)
{
    for (int i = 0; i < REGIONS; i++) {
        if (table[i].space == space && table[i].first <= last && first <= table[i].last) {
            return i;
        }
    }
    return -1;
}

static void check_address(int space, bb_gpa_t gpa)
{
    int expected = table_at(space, gpa, gpa);

    cr_assert_eq(fixture_find(&fixture, spaces[space], gpa),
                 expected < 0 ? NULL : regions[expected],
                 "space %d at 0x%" PRIx64 ", seed %" PRIu64, space, gpa, seed);
}

struct walk {
    int space;
    unsigned met;
    bb_gpa_t behind; /* the last one's last byte */
};

static bool walk(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct walk *walk = opaque;
    int expected = table_at(walk->space, first, first);

    cr_assert(expected >= 0 && regions[expected] == region && table[expected].first == first &&
                  table[expected].last == last,
              "visit of 0x%" PRIx64 ", seed %" PRIu64, first, seed);
    cr_assert(walk->met == 0 || first > walk->behind, "order, seed %" PRIu64, seed);
    walk->behind = last;
    walk->met++;
    return true;
}

static void check_everything(void)
{
    unsigned mapped[SPACES] = {0};

    for (int i = 0; i < REGIONS; i++) {
        const struct place *place = &table[i];
        if (place->space >= 0) {
            mapped[place->space]++;
            check_address(place->space, place->first);
            check_address(place->space, place->last);
            check_address(place->space, place->first - 1);
            check_address(place->space, place->last + 1);
        }
    }
    for (int space = 0; space < SPACES; space++) {
        struct walk state = {.space = space};
        bb_space_each(fixture.ctx, spaces[space], walk, &state);
        cr_assert_eq(state.met, mapped[space], "seed %" PRIu64, seed);
    }
}

/* A place that meets others often; sizes are the regions' own. */
static bb_gpa_t random_gpa(void)
{
    static const bb_gpa_t bases[] = {0, 0xfed00000, BB_BIT64(40), UINT64_MAX - 0xfffff};
    bb_gpa_t gpa = bases[below(BB_ARRAY_LEN(bases))];

    return gpa + (test_random_next(&random_numbers) & bb_mask_low(below(21)));
}

/* Adds one random change to `txn` and to the table. Returns the result that the table foretells. */
static int random_change(struct bb_txn *txn)
{
    int which = (int)below(REGIONS);
    int space = (int)below(SPACES);
    struct place *place = &table[which];

    /* Usually what can be done, sometimes what can't. */
    bool unmap = (place->space >= 0) != (below(16) == 0);
    if (unmap) {
        cr_assert_eq(bb_txn_unmap(txn, regions[which], NULL), BB_OK);
        int result = place->space >= 0 ? BB_OK : BB_E_NOENT;
        place->space = -1;
        return result;
    }
    bb_gpa_t gpa = random_gpa();
    bb_gpa_t last = 0;
    bool fits = bb_range_last(gpa, regions[which]->size_bytes, &last);
    int result = bb_txn_map(txn, spaces[space], gpa, regions[which], NULL);
    cr_assert_eq(result, fits ? BB_OK : BB_E_RANGE, "seed %" PRIu64, seed);
    if (result != BB_OK) {
        return BB_OK; /* refused when it was added: no part of the transaction */
    }
    if (place->space >= 0 || table_at(space, gpa, last) >= 0) {
        return BB_E_EXIST;
    }
    *place = (struct place){.space = space, .first = gpa, .last = last};
    return BB_OK;
}

static bool moved(const struct place *before, const struct place *now)
{
    return before->space >= 0 && (before->space != now->space || before->first != now->first);
}

static void look_where_changed(const struct place *before, const struct place *now)
{
    for (int i = 0; i < REGIONS; i++) {
        if (moved(&before[i], &now[i])) {
            cr_assert_eq(fixture_find(&fixture, spaces[before[i].space], before[i].first),
                         regions[i]);
        }
    }
}

static void check_where_changed(const struct place *before)
{
    for (int i = REGIONS - 1; i >= 0; i--) {
        if (moved(&before[i], &table[i])) {
            check_address(before[i].space, before[i].first);
        }
    }
}

static void random_transaction(unsigned changes)
{
    static struct place before[REGIONS];
    int foretold = BB_OK;
    struct bb_txn *txn;

    memcpy(before, table, sizeof(table));
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    for (unsigned i = 0; i < changes && foretold == BB_OK; i++) {
        foretold = random_change(txn);
    }
    if (below(32) == 0) {
        bb_txn_abort(txn);
        memcpy(table, before, sizeof(table));
        return;
    }
    /* Have hits remembered for what is about to go, and try them before anything else is. */
    look_where_changed(before, table);
    cr_assert_eq(bb_txn_commit(txn, NULL), foretold, "seed %" PRIu64, seed);
    if (foretold != BB_OK) {
        memcpy(table, before, sizeof(table));
    } else {
        check_where_changed(before);
    }
}

static void begin(void)
{
    fixture_begin(&fixture);
    seed = test_random_begin(&random_numbers);
    for (int i = 0; i < SPACES; i++) {
        spaces[i] = fixture_space(&fixture, "s", BB_SPACE_MMIO, 64);
    }
    for (int i = 0; i < REGIONS; i++) {
        uint64_t size = (test_random_next(&random_numbers) & bb_mask_low(below(17))) + 1;
        size = below(3) == 0 ? (size + 0xfff) & ~UINT64_C(0xfff) : size;
        regions[i] = fixture_region(&fixture, "r", size, (uint64_t)i);
        table[i].space = -1;
    }
}

static void end(void)
{
    for (int i = 0; i < REGIONS; i++) {
        fixture_remove(&fixture, regions[i]);
    }
    fixture_end(&fixture);
}

TestSuite(model, .init = begin, .fini = end);

Test(model, random_transactions_agree_with_a_table_at_every_boundary_byte)
{
    for (unsigned done = 0; done < OPERATIONS;) {
        unsigned changes = below(4) == 0 ? 1 + below(8) : 1;
        random_transaction(changes);
        check_everything();
        done += changes;
    }
}

Test(model, churn_leaves_no_more_memory_in_use_than_what_is_mapped_needs)
{
    uint64_t empty = fixture_settled_bytes(&fixture);

    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 500; i++) {
            random_transaction(1);
        }
        unsigned mapped = 0;
        for (int i = 0; i < REGIONS; i++) {
            mapped += table[i].space >= 0;
        }
        /*
         * A node's block holds the first or the last byte of some leaf, or that leaf would stand in
         * the slot above it; a byte lies in one block at each of 11 levels.
         */
        uint64_t bound = mapped * (sizeof(struct bb_flat_) + 22 * sizeof(struct bb_node_));
        cr_assert_leq(fixture_settled_bytes(&fixture), empty + bound, "seed %" PRIu64, seed);
    }
    for (int i = 0; i < REGIONS; i++) {
        if (table[i].space >= 0) {
            cr_assert_eq(bb_space_unmap(fixture.ctx, regions[i], NULL), BB_OK);
            table[i].space = -1;
        }
    }
    cr_assert_eq(fixture_settled_bytes(&fixture), empty, "seed %" PRIu64, seed);
}

Test(model, memory_waiting_for_a_reader_is_bounded_and_released_when_it_leaves)
{
    /* The writer itself is the reader, so it may not wait: it is told to do so later instead. */
    bb_gpa_t gpa = 0x1000;

    uint64_t before = fixture_settled_bytes(&fixture);
    cr_assert_not(fixture.ctx->throttle);
    bb_section_enter_(fixture.ctx);
    for (unsigned i = 0; i < 100000 && !fixture.ctx->throttle; i++) {
        cr_assert_eq(bb_space_map(fixture.ctx, spaces[0], gpa, regions[0], NULL), BB_OK);
        cr_assert_eq(bb_space_unmap(fixture.ctx, regions[0], NULL), BB_OK);
    }
    cr_assert(fixture.ctx->throttle, "the bytes deferred were never over the bound");
    uint64_t live = bb_heap_usage(fixture.memory.heap).live_bytes -
                    fixture.map->pool.count * sizeof(struct bb_node_);
    cr_assert_eq(live - before, bb_rcu_stats(fixture.ctx).deferred_bytes,
                 "what is said to be deferred is not what is allocated");
    bb_section_leave_(fixture.ctx);
    fixture.ctx->throttle = false;
    bb_rcu_throttle_(fixture.ctx);
    cr_assert_not(bb_rcu_over_bound_(fixture.rcu));
    cr_assert_eq(fixture_settled_bytes(&fixture), before);
}
