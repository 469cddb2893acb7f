/* SPDX-License-Identifier: MIT */
/*
 * The radix tree alone, against a sorted array of ranges: what it leads to at every boundary byte,
 * the shape it must have, what it allocates, and that the tree before an edit stays as it was.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "../../memory/memory_internal.h"
#include "test_memory.h"

/* One thread: ThreadSanitizer finds nothing here that fewer rounds don't show. */
enum { REGIONS = 16, RANGES_MAX = 512, ROUNDS = BB_TSAN ? 2000 : 20000 };

/* The reference: ranges in rising order, cut and joined by shifting an array. */
struct range {
    bb_gpa_t first;
    bb_gpa_t last;
    struct bb_region *region;
    uint64_t offset;
};

struct model {
    struct range range[RANGES_MAX];
    unsigned count;
};

struct tree_test {
    struct test_memory memory;
    struct bb_node_pool_ pool;
    struct bb_region region[REGIONS]; /* only their addresses matter */
    struct model model;
    uintptr_t tree;
    uint64_t txn;
    uint64_t seed;
    struct test_random random;
};

static void model_insert(struct model *model, unsigned at, struct range range)
{
    cr_assert_lt(model->count, RANGES_MAX);
    memmove(&model->range[at + 1], &model->range[at],
            (model->count - at) * sizeof(model->range[0]));
    model->range[at] = range;
    model->count++;
}

/* Index of the first range that does not end before `gpa`. */
static unsigned model_at(const struct model *model, bb_gpa_t gpa)
{
    unsigned low = 0, high = model->count;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (model->range[middle].last < gpa) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void model_set(struct model *model, bb_gpa_t first, bb_gpa_t last, struct bb_region *region,
                      uint64_t offset)
{
    unsigned at = model_at(model, first);

    while (at < model->count && model->range[at].first <= last) {
        struct range old = model->range[at];
        memmove(&model->range[at], &model->range[at + 1],
                (model->count - at - 1) * sizeof(model->range[0]));
        model->count--;
        if (old.first < first) {
            struct range left = {old.first, first - 1, old.region, old.offset};
            model_insert(model, at++, left);
        }
        if (old.last > last) {
            struct range right = {last + 1, old.last, old.region,
                                  old.offset + (last + 1 - old.first)};
            model_insert(model, at, right);
        }
    }
    if (region != NULL) {
        struct range made = {first, last, region, offset};
        model_insert(model, at, made);
    }
}

static const struct range *model_find(const struct model *model, bb_gpa_t gpa)
{
    unsigned at = model_at(model, gpa);

    return at < model->count && model->range[at].first <= gpa ? &model->range[at] : NULL;
}

static void check_at(const struct tree_test *test, uintptr_t tree, const struct model *model,
                     bb_gpa_t gpa)
{
    struct bb_view_ view = {.generation = 1, .tree = tree};
    const struct bb_flat_ *leaf = bb_view_find_(&view, gpa);
    const struct range *range = model_find(model, gpa);

    cr_assert_eq(leaf != NULL, range != NULL, "at 0x%" PRIx64 ", seed %" PRIu64, gpa, test->seed);
    if (leaf != NULL) {
        cr_assert(leaf->first == range->first && bb_flat_last_(leaf) == range->last &&
                      leaf->region == range->region && leaf->region_offset == range->offset,
                  "other leaf at 0x%" PRIx64 ", seed %" PRIu64, gpa, test->seed);
    }
}

/* Every boundary byte and the one on either side of it, and the walk. */
static void check_contents(const struct tree_test *test, uintptr_t tree, const struct model *model)
{
    const struct bb_flat_ *leaf = bb_radix_next_(tree, 0);

    check_at(test, tree, model, 0);
    check_at(test, tree, model, UINT64_MAX);
    for (unsigned i = 0; i < model->count; i++) {
        const struct range *range = &model->range[i];
        check_at(test, tree, model, range->first);
        check_at(test, tree, model, range->last);
        check_at(test, tree, model, range->first - 1); /* wraps to the other end: as good */
        check_at(test, tree, model, range->last + 1);
        cr_assert(leaf != NULL && leaf->first == range->first && bb_flat_last_(leaf) == range->last,
                  "walk leaves the order at range %u, seed %" PRIu64, i, test->seed);
        leaf = range->last == UINT64_MAX ? NULL : bb_radix_next_(tree, range->last + 1);
    }
    cr_assert_null(leaf, "walk goes on behind the last range, seed %" PRIu64, test->seed);
}

/* What the tree holds of a block, from the model alone. */
struct part {
    unsigned ranges;
    bb_gpa_t lo;
    bb_gpa_t hi;
};

static struct part model_part(const struct model *model, bb_gpa_t first, bb_gpa_t last)
{
    struct part part = {0, UINT64_MAX, 0};

    for (unsigned i = model_at(model, first); i < model->count; i++) {
        const struct range *range = &model->range[i];
        if (range->first > last) {
            break;
        }
        bb_gpa_t lo = range->first > first ? range->first : first;
        bb_gpa_t hi = range->last < last ? range->last : last;
        part.ranges++;
        part.lo = lo < part.lo ? lo : part.lo;
        part.hi = hi > part.hi ? hi : part.hi;
    }
    return part;
}

/* Checks a word against the three rules at the head of radix.c. Returns the bytes of its nodes. */
static size_t check_shape(const struct tree_test *test, uintptr_t word, bb_gpa_t first,
                          bb_gpa_t last)
{
    struct part part = model_part(&test->model, first, last);

    if (part.ranges == 0) {
        cr_assert_eq(word, 0, "seed %" PRIu64, test->seed);
        return 0;
    }
    if (part.ranges == 1) {
        cr_assert_eq(word & 63, BB_RADIX_LEAF_TAG_, "one leaf and no leaf word, seed %" PRIu64,
                     test->seed);
        return 0;
    }
    unsigned shift = (unsigned)(word & 63);
    const struct bb_node_ *node = (const struct bb_node_ *)(word & ~(uintptr_t)63);
    cr_assert_eq(shift % BB_RADIX_BITS_, 0, "seed %" PRIu64, test->seed);
    cr_assert(shift <= 60 && ((part.lo ^ part.hi) >> shift) != 0 &&
                  (shift == 60 || (part.lo ^ part.hi) >> (shift + 6) == 0),
              "a node at shift %u for 0x%" PRIx64 "-0x%" PRIx64 ", seed %" PRIu64, shift, part.lo,
              part.hi, test->seed);
    cr_assert_eq(node->base, part.lo & ~bb_mask_low(shift + BB_RADIX_BITS_), "seed %" PRIu64,
                 test->seed);
    size_t bytes = sizeof(*node);
    for (unsigned i = 0; i < BB_RADIX_SLOTS_; i++) {
        bb_gpa_t slot_first = node->base + ((bb_gpa_t)i << shift);
        cr_assert_eq((node->used >> i) & 1, node->slot[i] != 0, "seed %" PRIu64, test->seed);
        if (shift == 60 && i > 15) {
            cr_assert_eq(node->slot[i], 0, "seed %" PRIu64, test->seed);
            continue;
        }
        bytes += check_shape(test, node->slot[i], slot_first, slot_first + bb_mask_low(shift));
    }
    return bytes;
}

static size_t live_bytes(struct tree_test *test)
{
    return bb_heap_usage(test->memory.heap).live_bytes - test->pool.count * sizeof(struct bb_node_);
}

static struct bb_edit_ edit_begin(struct tree_test *test)
{
    return (struct bb_edit_){.heap = test->memory.heap, .pool = &test->pool, .txn = ++test->txn};
}

static void edit_done(struct tree_test *test, struct bb_edit_ *edit)
{
    bb_radix_free_dead_(test->memory.heap, edit->dead_nodes, edit->dead_leaves);
}

static void set(struct tree_test *test, struct bb_edit_ *edit, uintptr_t *tree, bb_gpa_t first,
                bb_gpa_t last, struct bb_region *region, uint64_t offset)
{
    struct bb_piece_ piece = {.first = first, .last = last, .region = region, .offset = offset};

    cr_assert_eq(bb_radix_set_(edit, tree, first, last, region == NULL ? NULL : &piece), BB_OK);
    model_set(&test->model, first, last, region, offset);
}

/* One edit of one change, its predecessor freed at once. */
static void set_alone(struct tree_test *test, bb_gpa_t first, bb_gpa_t last,
                      struct bb_region *region)
{
    struct bb_edit_ edit = edit_begin(test);

    set(test, &edit, &test->tree, first, last, region, 0);
    edit_done(test, &edit);
    check_contents(test, test->tree, &test->model);
    size_t nodes = check_shape(test, test->tree, 0, UINT64_MAX);
    cr_assert_eq(live_bytes(test), nodes + test->model.count * sizeof(struct bb_flat_));
}

static void test_begin(struct tree_test *test)
{
    memset(test, 0, sizeof(*test));
    test->seed = test_random_begin(&test->random);
    test_memory_begin(&test->memory);
}

static void test_end(struct tree_test *test)
{
    set_alone(test, 0, UINT64_MAX, NULL);
    cr_assert_eq(test->tree, 0);
    bb_pool_empty_(&test->pool, test->memory.heap);
    test_memory_end(&test->memory);
}

/*
 * Ranges that meet each other often: a base out of a few, an offset and a length of random
 * magnitude, now and then rounded to the grid of a level.
 */
static void random_range(struct tree_test *test, bb_gpa_t *first, bb_gpa_t *last)
{
    static const bb_gpa_t bases[] = {
        0, 0x1000, 0xfec00000, 0x100000000, BB_BIT64(60), BB_BIT64(63), UINT64_MAX - 0xfff};
    struct test_random *random = &test->random;
    bb_gpa_t offset = test_random_next(random) & bb_mask_low(test_random_below(random, 15));
    uint64_t length = test_random_next(random) & bb_mask_low(test_random_below(random, 15));

    if (test_random_below(random, 16) == 0) {
        length = test_random_next(random) & bb_mask_low(test_random_below(random, 64));
    }
    *first = bases[test_random_below(random, BB_ARRAY_LEN(bases))] + offset;
    if (test_random_below(random, 3) == 0) {
        unsigned level = BB_RADIX_BITS_ * test_random_below(random, 4);
        *first &= ~bb_mask_low(level);
        length |= bb_mask_low(level);
    }
    *last = length > UINT64_MAX - *first ? UINT64_MAX : *first + length;
}

static struct tree_test shared; /* too large for a stack frame; a process runs one test */

Test(radix, first_and_last_byte_of_the_address_range_can_be_mapped)
{
    struct tree_test *test = &shared;
    test_begin(test);
    set_alone(test, 0, 0, &test->region[0]);
    set_alone(test, UINT64_MAX, UINT64_MAX, &test->region[1]);
    set_alone(test, 1, UINT64_MAX - 1, &test->region[2]);
    set_alone(test, 1, UINT64_MAX - 1, NULL);
    set_alone(test, 0, UINT64_MAX, &test->region[3]);
    set_alone(test, BB_BIT64(63), BB_BIT64(63), NULL);
    test_end(test);
}

Test(radix, neighbours_at_every_level_boundary_stay_apart)
{
    struct tree_test *test = &shared;
    test_begin(test);
    for (unsigned level = 0; level < 64; level++) {
        bb_gpa_t edge = BB_BIT64(level);
        set_alone(test, 0, UINT64_MAX, NULL);
        set_alone(test, edge - 1, edge - 1, &test->region[0]);
        set_alone(test, edge, edge, &test->region[1]);
        set_alone(test, edge + 1, UINT64_MAX, &test->region[2]);
        set_alone(test, edge, edge, NULL);
    }
    test_end(test);
}

Test(radix, a_single_leaf_needs_no_node_wherever_it_lies)
{
    struct tree_test *test = &shared;
    test_begin(test);
    set_alone(test, 0x123, 0xfedcba9876543210, &test->region[0]);
    cr_assert_eq(test->tree & 63, BB_RADIX_LEAF_TAG_);
    set_alone(test, 0x122, 0x122, &test->region[1]);
    set_alone(test, 0x122, 0x122, NULL);
    cr_assert_eq(test->tree & 63, BB_RADIX_LEAF_TAG_);
    test_end(test);
}

Test(radix, random_edits_agree_with_a_sorted_array_and_leave_the_old_tree_alone)
{
    struct tree_test *test = &shared;
    static struct model before;

    test_begin(test);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uintptr_t tree = test->tree;
        struct bb_edit_ edit = edit_begin(test);
        before = test->model;

        unsigned changes = test_random_below(&test->random, 4) == 0 ? 5 : 1;
        for (unsigned i = 0; i < changes; i++) {
            bb_gpa_t first, last;
            random_range(test, &first, &last);
            /* Clear more than is set once there is much, so that the size swings. */
            bool clear = test_random_below(&test->random, 256) < test->model.count * 2;
            struct bb_region *region = &test->region[test_random_below(&test->random, REGIONS)];
            set(test, &edit, &tree, first, last, clear ? NULL : region,
                clear ? 0 : test_random_next(&test->random));
        }

        check_contents(test, test->tree, &before);
        check_contents(test, tree, &test->model);
        if (test_random_below(&test->random, 4) == 0) {
            bb_radix_undo_(&edit, tree);
            test->model = before;
        } else {
            test->tree = tree;
            edit_done(test, &edit);
        }
        cr_assert_leq(test->pool.count, BB_RADIX_RESERVE_);
        if (round % 16 != 0) {
            continue; /* shape costs more than the rest, and a fault in it stays */
        }
        size_t nodes = check_shape(test, test->tree, 0, UINT64_MAX);
        cr_assert_eq(live_bytes(test), nodes + test->model.count * sizeof(struct bb_flat_),
                     "leak, or an early free, before round %u, seed %" PRIu64, round, test->seed);
    }
    test_end(test);
}

Test(radix, an_edit_that_meets_no_memory_at_any_allocation_can_be_undone)
{
    struct tree_test *test = &shared;
    static struct model before;

    test_begin(test);
    for (unsigned i = 0; i < 200; i++) {
        bb_gpa_t first, last;
        random_range(test, &first, &last);
        set_alone(test, first, last, &test->region[i % REGIONS]);
    }
    before = test->model;
    size_t bytes = live_bytes(test);
    bool succeeded = false;
    for (long n = 0; !succeeded; n++) {
        uintptr_t tree = test->tree;
        struct bb_edit_ edit = edit_begin(test);
        int result = BB_OK;

        cr_assert_lt(n, 10000);
        bb_pool_empty_(&test->pool, test->memory.heap);
        test_memory_fail_after(&test->memory, n);
        for (unsigned i = 0; i < 8 && result == BB_OK; i++) {
            bb_gpa_t first = (bb_gpa_t)i * 0x333 + 0x800;
            struct bb_piece_ piece = {
                .first = first, .last = first + 0x2000, .region = &test->region[i], .offset = i};
            result = bb_radix_set_(&edit, &tree, first, first + 0x2000, i % 3 == 2 ? NULL : &piece);
        }
        test_memory_fail_after(&test->memory, -1);
        cr_assert(result == BB_OK || result == BB_E_NOMEM);
        succeeded = result == BB_OK;
        cr_assert(!succeeded || n > 30, "the change succeeds with %ld allocations", n);
        bb_radix_undo_(&edit, tree);
        check_contents(test, test->tree, &before);
        cr_assert_eq(live_bytes(test), bytes, "after failure %ld, seed %" PRIu64, n, test->seed);
    }
    check_shape(test, test->tree, 0, UINT64_MAX);
    test_end(test);
}

Test(radix, no_change_of_one_leaf_takes_more_nodes_than_the_reserve)
{
    struct tree_test *test = &shared;
    test_begin(test);
    /* Two nodes a level: a range whose ends each share a block, at every level, with others. */
    bb_gpa_t first = UINT64_C(0x5555555555555555), last = UINT64_C(0xaaaaaaaaaaaaaaaa);
    for (unsigned shift = 0; shift < 64; shift += BB_RADIX_BITS_) {
        set_alone(test, first - BB_BIT64(shift), first - BB_BIT64(shift), &test->region[0]);
        set_alone(test, last + BB_BIT64(shift), last + BB_BIT64(shift), &test->region[1]);
    }
    for (unsigned i = 0; i < 4; i++) {
        set_alone(test, first, last, &test->region[2]); /* asserts inside when the pool runs dry */
        set_alone(test, first, last, NULL);
    }
    test_end(test);
}

/* Whether every access of `size` that is aligned in the region and begins in the leaf ends there.
 */
static bool stays_inside(const struct bb_flat_ *leaf, unsigned size)
{
    for (bb_gpa_t gpa = leaf->first; gpa <= bb_flat_last_(leaf); gpa++) {
        uint64_t offset = gpa - leaf->first + leaf->region_offset;
        if (offset % size == 0 && bb_flat_last_(leaf) - gpa < size - 1) {
            return false;
        }
    }
    return true;
}

Test(radix, a_leaf_is_fast_only_for_accesses_that_cannot_reach_over_its_ends)
{
    struct tree_test *test = &shared;
    test_begin(test);
    test->region[0].klass = BB_CLASS_LOCKFREE;
    test->region[0].read_sizes = 1 | 2 | 4 | 8;
    test->region[1].klass = BB_CLASS_DEVICE_LOCK;
    test->region[1].read_sizes = 1 | 2 | 4 | 8;
    test->region[2].klass = BB_CLASS_LOCKFREE;
    test->region[2].read_sizes = 4;

    for (uint64_t bytes = 1; bytes <= 10; bytes++) {
        for (bb_gpa_t cut = 0; cut < bytes; cut++) {
            for (unsigned which = 0; which < 3; which++) {
                /* A region at an odd address, its first bytes covered by nothing. */
                set_alone(test, 0x1003, 0x1003 + bytes - 1, &test->region[which]);
                if (cut != 0) {
                    set_alone(test, 0x1003, 0x1003 + cut - 1, NULL);
                }
                const struct bb_flat_ *leaf = bb_radix_next_(test->tree, 0);
                for (unsigned size = 1; size <= 8; size *= 2) {
                    bool fast = (leaf->read_sizes & size) != 0;
                    bool may = which != 1 && (test->region[which].read_sizes & size) != 0;
                    if (fast) {
                        cr_assert(may && stays_inside(leaf, size),
                                  "%u bytes in a leaf of %" PRIu64 " less %" PRIu64, size, bytes,
                                  cut);
                    } else if (may) {
                        cr_assert(bytes % size != 0 || cut % size != 0, "%u bytes are slow", size);
                    }
                }
                set_alone(test, 0, UINT64_MAX, NULL);
            }
        }
    }
    test_end(test);
}
