/* SPDX-License-Identifier: MIT */
/*
 * The tree of regions and what it shows, claim by claim. That every tree shows what the rules say
 * is tests/model's; here stand the rules one at a time, the bounds, and what is refused.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static struct fixture fixture;
static struct bb_space *mem;

static void begin(void)
{
    fixture_begin(&fixture);
    mem = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
}

static void end(void)
{
    fixture_end(&fixture);
}

TestSuite(tree, .init = begin, .fini = end);

static struct bb_region *container(const char *name, uint64_t size)
{
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_container_create(fixture.ctx, name, size, &region, &err), BB_OK, "%s",
                 err.text);
    return region;
}

static struct bb_region *alias(const char *name, struct bb_region *target, uint64_t offset,
                               uint64_t size)
{
    struct bb_alias_config config = {
        .name = name, .target = target, .offset = offset, .size_bytes = size};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

static struct bb_region *io(const char *name, uint64_t size)
{
    return fixture_region(&fixture, name, size, 1);
}

static void place(struct bb_region *into, uint64_t at, struct bb_region *region, int priority)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(fixture.ctx, into, at, region, priority, &err), BB_OK, "%s",
                 err.text);
}

static void map(uint64_t at, struct bb_region *region, int priority)
{
    place(bb_space_root(mem), at, region, priority);
}

static void drop(struct bb_region *region)
{
    fixture_remove(&fixture, region);
}

struct text {
    char line[1024];
    size_t used;
};

static bool describe(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct text *text = opaque;

    text->used += (size_t)snprintf(text->line + text->used, sizeof(text->line) - text->used,
                                   "%s%" PRIx64 "-%" PRIx64 " %s", text->used > 0 ? ", " : "",
                                   first, last, region->name);
    return text->used < sizeof(text->line);
}

/* The view as text; valid until the next call. */
static const char *view_of(struct bb_space *space)
{
    static struct text text;

    text = (struct text){.used = 0};
    bb_space_each(fixture.ctx, space, describe, &text);
    return text.line;
}

#define SHOWS(expected) cr_assert_str_eq(view_of(mem), expected)

Test(tree, a_container_shows_its_children_and_clips_them)
{
    struct bb_region *box = container("box", 0x100), *a = io("a", 0x40), *b = io("b", 0x40);

    place(box, 0x10, a, 0);
    place(box, 0xe0, b, 0);
    SHOWS("");
    map(0x1000, box, 0);
    SHOWS("1010-104f a, 10e0-10ff b");
    drop(box);
    SHOWS("");
    cr_assert_null(a->parent);
    map(0x2000, a, 0);
    SHOWS("2000-203f a");
    drop(a);
    drop(b);
}

Test(tree, the_higher_priority_is_in_front_and_holes_show_what_is_behind)
{
    struct bb_region *back = io("back", 0x1000), *box = container("box", 0x400);
    struct bb_region *front = io("front", 0x100);

    place(box, 0x100, front, 0);
    map(0, back, 0);
    map(0x200, box, 1);
    SHOWS("0-2ff back, 300-3ff front, 400-fff back");
    cr_assert_eq(bb_region_enable(fixture.ctx, front, false, NULL), BB_OK);
    SHOWS("0-fff back");
    cr_assert_eq(bb_region_enable(fixture.ctx, front, true, NULL), BB_OK);
    struct bb_txn *txn;
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_priority(txn, box, -1, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    SHOWS("0-fff back");
    drop(front);
    drop(box);
    drop(back);
}

Test(tree, a_region_with_children_shows_itself_where_they_leave_holes)
{
    struct bb_region *device = io("device", 0x100), *part = io("part", 0x10);

    place(device, 0x20, part, 0);
    map(0, device, 0);
    SHOWS("0-1f device, 20-2f part, 30-ff device");
    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_map_find_(bb_mem_ctx_(fixture.ctx), mem, 0x35)->region_offset, 0x30);
    bb_section_leave_(fixture.ctx);
    drop(part);
    SHOWS("0-ff device");
    drop(device);
}

Test(tree, an_alias_shows_its_window_wherever_it_is_and_also_in_another_space)
{
    struct bb_space *other = fixture_space(&fixture, "other", BB_SPACE_MMIO, 32);
    struct bb_region *a = io("a", 0x1000), *one = alias("one", a, 0x800, 0x100);
    struct bb_region *two = alias("two", one, 0x80, 0x200),
                     *all = alias("all", mem->root, 0, BB_SIZE_ALL);

    map(0, a, 0);
    map(0x2000, one, 0);
    map(0x3000, two, 0);
    SHOWS("0-fff a, 2000-20ff a, 3000-307f a");
    place(bb_space_root(other), 0, all, 0);
    cr_assert_str_eq(view_of(other), "0-fff a, 2000-20ff a, 3000-307f a");
    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_map_find_(bb_mem_ctx_(fixture.ctx), other, 0x3001)->region_offset, 0x880);
    bb_section_leave_(fixture.ctx);

    cr_assert_eq(bb_region_move(fixture.ctx, a, 0x100, NULL), BB_OK);
    SHOWS("100-10ff a, 2000-20ff a, 3000-307f a");
    struct bb_txn *txn;
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_window(txn, one, 0xff8, NULL), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, two, 0x10, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    cr_assert_str_eq(view_of(other), "100-10ff a, 2000-2007 a", "the target's end is the window's");
    drop(a);
    cr_assert_str_eq(view_of(other), "", "aliases of what is gone show nothing");
    drop(one);
    drop(two);
    drop(all);
}

Test(tree, neighbours_that_continue_each_other_are_one_range)
{
    struct bb_region *ram = io("ram", 0x1000), *low = alias("low", ram, 0, 0x800);
    struct bb_region *high = alias("high", ram, 0x800, 0x800), *hole = io("hole", 0x100);

    map(0x10000, low, 0);
    map(0x10800, high, 0);
    SHOWS("10000-10fff ram");
    map(0x10400, hole, 1);
    SHOWS("10000-103ff ram, 10400-104ff hole, 10500-10fff ram");
    uint64_t leaves = bb_heap_usage(fixture.memory.heap).live_bytes;
    drop(hole);
    SHOWS("10000-10fff ram");
    (void)leaves;
    drop(low);
    drop(high);
    drop(ram);
}

Test(tree, a_whole_space_can_be_covered_and_moved_to_its_last_byte)
{
    struct bb_region *all = NULL, *last = io("last", 1), *box = container("box", BB_SIZE_ALL);

    cr_assert_eq(bb_reserved_create(fixture.ctx, "all", BB_SIZE_ALL, &all, NULL), BB_OK);
    cr_assert_eq(bb_region_size(all), BB_SIZE_ALL);
    map(0, all, -1);
    SHOWS("0-ffffffffffffffff all");
    map(0, box, 1);
    place(box, UINT64_MAX, last, 0);
    SHOWS("0-fffffffffffffffe all, ffffffffffffffff-ffffffffffffffff last");
    cr_assert_eq(bb_region_move(fixture.ctx, last, 0, NULL), BB_OK);
    SHOWS("0-0 last, 1-ffffffffffffffff all");
    cr_assert_eq(bb_region_move(fixture.ctx, box, 1, NULL), BB_E_RANGE);
    SHOWS("0-0 last, 1-ffffffffffffffff all");
    drop(last);
    drop(box);
    drop(all);
}

Test(tree, siblings_of_one_priority_overlap_only_while_one_is_hidden)
{
    struct bb_region *a = io("a", 0x100), *b = io("b", 0x100);
    struct bb_txn *txn;
    struct bb_error err = {0};

    map(0, a, 0);
    cr_assert_eq(bb_region_place(fixture.ctx, mem->root, 0x80, b, 0, &err), BB_E_EXIST);
    cr_assert_eq(bb_region_enable(fixture.ctx, b, false, NULL), BB_OK);
    map(0x80, b, 0);
    SHOWS("0-ff a");
    cr_assert_eq(bb_region_enable(fixture.ctx, b, true, &err), BB_E_EXIST);
    cr_assert(!b->enabled);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_enable(txn, b, true, NULL), BB_OK);
    cr_assert_eq(bb_txn_enable(txn, a, false, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    SHOWS("80-17f b");
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_priority(txn, a, 3, NULL), BB_OK);
    cr_assert_eq(bb_txn_enable(txn, a, true, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    SHOWS("0-ff a, 100-17f b");
    drop(a);
    drop(b);
}

Test(tree, a_region_never_contains_itself)
{
    struct bb_region *outer = container("outer", 0x1000), *inner = container("inner", 0x1000);
    struct bb_region *window = alias("window", outer, 0, 0x1000);
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(fixture.ctx, outer, 0, outer, 0, &err), BB_E_INVAL);
    place(outer, 0, inner, 0);
    cr_assert_eq(bb_region_place(fixture.ctx, inner, 0, outer, 0, &err), BB_E_INVAL);
    cr_assert_not_null(
        strstr(err.text, "'outer' can't be put into 'inner': it would contain itself"), "%s",
        err.text);
    cr_assert_eq(bb_region_place(fixture.ctx, inner, 0, window, 0, &err), BB_E_INVAL);
    cr_assert_eq(bb_region_place(fixture.ctx, window, 0, inner, 0, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "an alias"), "%s", err.text);
    map(0, outer, 0);
    struct bb_region *everything = alias("everything", mem->root, 0, BB_SIZE_ALL);
    cr_assert_eq(bb_region_place(fixture.ctx, inner, 0, everything, 0, &err), BB_E_INVAL);
    cr_assert_eq(bb_region_place(fixture.ctx, inner, 0, mem->root, 0, &err), BB_E_INVAL);
    drop(everything);
    drop(window);
    drop(inner);
    drop(outer);
}

Test(tree, sizes_and_places_that_can_not_be_are_refused_with_what_would_be_right)
{
    struct bb_region *region = NULL, *a = io("a", 0x100), *view;
    struct bb_error err = {0};
    struct bb_txn *txn;

    cr_assert_eq(bb_container_create(fixture.ctx, "c", 0, &region, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "BB_SIZE_ALL"), "%s", err.text);
    cr_assert_eq(bb_container_create(fixture.ctx, "", 1, &region, &err), BB_E_INVAL);
    cr_assert_eq(bb_container_create(fixture.ctx, "c", 1, NULL, &err), BB_E_INVAL);
    struct bb_alias_config config = {
        .name = "w", .target = a, .offset = 2, .size_bytes = BB_SIZE_ALL};
    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &region, &err), BB_E_RANGE);
    config.size_bytes = 0;
    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &region, &err), BB_E_RANGE);
    config.target = NULL;
    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &region, &err), BB_E_INVAL);
    cr_assert_null(region);
    cr_assert_eq(bb_region_place(fixture.ctx, mem->root, UINT64_MAX - 0xfe, a, 0, &err),
                 BB_E_RANGE);
    cr_assert_eq(bb_region_place(fixture.ctx, NULL, 0, a, 0, &err), BB_E_INVAL);
    cr_assert_eq(bb_region_move(fixture.ctx, a, 0, &err), BB_E_NOENT);

    view = alias("view", a, 0x10, 0x10);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, a, 0, &err), BB_E_RANGE);
    cr_assert_eq(bb_txn_resize(txn, a, BB_SIZE_ALL, &err), BB_E_RANGE);
    cr_assert_eq(bb_txn_window(txn, a, 0, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_rom_mode(txn, a, true, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_read_only(txn, a, true, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_enable(txn, mem->root, false, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_enable(NULL, a, false, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_enable(txn, NULL, false, &err), BB_E_INVAL);
    cr_assert_eq(bb_txn_window(txn, view, UINT64_MAX, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_E_RANGE);
    cr_assert_eq(view->target_offset, 0x10);
    drop(view);
    drop(a);
}

Test(tree, a_size_of_2_to_the_64_is_not_called_0_bytes)
{
    struct bb_region *box = container("box", BB_SIZE_ALL), *part = io("part", 0x10);
    struct bb_region *window = alias("window", box, 0x1000, 0x1000);
    struct bb_txn *txn;
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(fixture.ctx, mem->root, 1, box, 0, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, " 0xffffffffffffffff bytes"), "%s", err.text);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, part, BB_SIZE_ALL, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, " 0xffffffffffffffff bytes"), "%s", err.text);
    cr_assert_eq(bb_txn_resize(txn, window, BB_SIZE_ALL, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, " 0xffffffffffffffff bytes"), "%s", err.text);
    drop(window);
    drop(box);
    drop(part);
}

Test(tree, a_nested_transaction_joins_its_parent_or_leaves_nothing)
{
    struct bb_region *a = io("a", 0x10), *b = io("b", 0x10), *c = io("c", 0x10);
    struct bb_txn *outer, *inner, *deeper;
    struct bb_error err = {0};

    cr_assert_eq(bb_txn_begin(fixture.ctx, &outer, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(outer, mem, 0, a, NULL), BB_OK);
    cr_assert_eq(bb_txn_nest(outer, &inner, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(outer, mem, 0x10, b, &err), BB_E_STATE);
    cr_assert_eq(bb_txn_nest(outer, &deeper, &err), BB_E_STATE);
    cr_assert_eq(bb_txn_commit(outer, &err), BB_E_STATE);
    cr_assert_eq(bb_txn_map(inner, mem, 0x10, b, NULL), BB_OK);
    cr_assert_eq(bb_txn_nest(inner, &deeper, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(deeper, mem, 0x20, c, NULL), BB_OK);
    bb_txn_abort(deeper);
    cr_assert_eq(bb_txn_commit(inner, NULL), BB_OK);
    SHOWS("");
    cr_assert_eq(bb_txn_commit(outer, &err), BB_OK, "%s", err.text);
    SHOWS("0-f a, 10-1f b");

    cr_assert_eq(bb_txn_begin(fixture.ctx, &outer, NULL), BB_OK);
    cr_assert_eq(bb_txn_nest(outer, &inner, NULL), BB_OK);
    cr_assert_eq(bb_txn_unmap(inner, a, NULL), BB_OK);
    bb_txn_abort(outer);
    cr_assert_eq(bb_txn_commit(inner, &err), BB_E_STATE, "its parent is gone");
    SHOWS("0-f a, 10-1f b");
    drop(a);
    drop(b);
    drop(c);
}

Test(tree, one_transaction_of_many_changes_spans_spaces_and_is_one_publication)
{
    struct bb_space *io_space = fixture_space(&fixture, "io", BB_SPACE_PIO, 0);
    struct bb_region *box = container("box", 0x1000), *a = io("a", 0x10), *b = io("b", 0x10);
    struct bb_txn *txn;

    map(0, box, 0);
    place(box, 0, a, 0);
    uint64_t before = fixture.map->txn;
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_move(txn, box, 0x4000, NULL), BB_OK);
    cr_assert_eq(bb_txn_place(txn, box, 0x100, b, 0, NULL), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(txn, io_space, 0x60, a, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    cr_assert_eq(fixture.map->txn, before + 1);
    SHOWS("4100-410f b");
    cr_assert_str_eq(view_of(io_space), "60-6f a");
    drop(a);
    drop(b);
    drop(box);
}

enum { LEVELS = 40 };

Test(tree, aliases_that_would_multiply_without_end_are_refused_and_nothing_has_changed)
{
    struct bb_region *box[LEVELS], *pair[LEVELS][2], *leaf = io("leaf", 1);
    struct bb_error err = {0};
    int result = BB_OK;
    unsigned built = 1;

    /* Each level shows the one below it twice: 2^n places of the leaf. */
    box[0] = container("box", 1);
    place(box[0], 0, leaf, 0);
    map(0, box[0], 0);
    unsigned shown = 0;
    for (; built < LEVELS && result == BB_OK; built++) {
        box[built] = container("box", UINT64_C(1) << built);
        for (unsigned i = 0; i < 2; i++) {
            pair[built][i] = alias("half", box[built - 1], 0, UINT64_C(1) << (built - 1));
            place(box[built], (uint64_t)i << (built - 1), pair[built][i], 0);
        }
        result = bb_region_place(fixture.ctx, mem->root, UINT64_C(1) << (built + 1), box[built], 0,
                                 &err);
        shown = built;
    }
    cr_assert_eq(result, BB_E_LIMIT);
    cr_assert_not_null(strstr(err.text, "put fewer aliases over it"), "%s", err.text);
    cr_assert_geq(shown, 10);
    cr_assert_null(box[shown]->parent);
    cr_assert_eq(fixture_find(&fixture, mem, 0), leaf);
    cr_assert_null(fixture_find(&fixture, mem, UINT64_C(1) << (shown + 1)));
    for (unsigned i = built; i-- > 1;) {
        drop(box[i]);
        drop(pair[i][0]);
        drop(pair[i][1]);
    }
    drop(box[0]);
    drop(leaf);
}

Test(tree, a_tree_deeper_than_the_bound_is_refused_where_it_would_be_shown)
{
    static struct bb_region *box[BB_DEPTH_MAX + 8];
    struct bb_region *leaf = io("leaf", 0x10);
    struct bb_error err = {0};

    for (unsigned i = 0; i < BB_ARRAY_LEN(box); i++) {
        box[i] = container("box", 0x10);
        if (i > 0) {
            place(box[i], 0, box[i - 1], 0); /* from below, so that nobody looks up a long way */
        }
    }
    cr_assert_eq(bb_region_place(fixture.ctx, box[0], 0, leaf, 0, &err), BB_E_LIMIT);
    cr_assert_eq(bb_region_place(fixture.ctx, box[16], 0, leaf, 1, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_region_place(fixture.ctx, mem->root, 0, box[BB_ARRAY_LEN(box) - 1], 0, &err),
                 BB_E_LIMIT);
    SHOWS("");
    cr_assert_eq(bb_region_place(fixture.ctx, mem->root, 0, box[BB_DEPTH_MAX], 0, &err), BB_E_EXIST,
                 "it is in the next one");
    drop(leaf);
    for (unsigned i = 0; i < BB_ARRAY_LEN(box); i++) {
        drop(box[i]);
    }
}

/* Chains of containers, each begun by an alias at the bottom of the one above: each was shallow
 * when it was put into the space. What hangs together by now is far deeper than the bound. */
enum { CHAINS = 150, CHAIN = 200 };
static struct bb_region *chain[CHAINS][CHAIN], *link_below[CHAINS];

static void *take_down(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "small stack");
    struct bb_txn *txn = NULL;
    bool *good = arg;

    *good = ctx != NULL && bb_txn_begin(ctx, &txn, NULL) == BB_OK &&
            bb_txn_unmap(txn, chain[0][0], NULL) == BB_OK &&
            bb_txn_unmap(txn, chain[1][0], NULL) == BB_OK &&
            bb_txn_commit(txn, NULL) == BB_E_NOENT && /* undone */
            bb_space_unmap(ctx, chain[0][0], NULL) == BB_OK;
    if (ctx != NULL) {
        (void)bb_ctx_detach_(ctx, NULL);
    }
    return NULL;
}

Test(tree, what_hangs_together_below_the_bound_takes_no_stack_to_take_down)
{
    pthread_attr_t attributes;
    pthread_t thread;
    bool good = false;

    for (unsigned i = CHAINS; i-- > 0;) {
        for (unsigned j = 0; j < CHAIN; j++) {
            chain[i][j] = container("link", 0x1000);
            if (j > 0) {
                place(chain[i][j - 1], 0, chain[i][j], 0);
            }
        }
        if (i + 1 < CHAINS) {
            link_below[i] = alias("below", chain[i + 1][0], 0, 0x1000);
            place(chain[i][CHAIN - 1], 0, link_below[i], 0);
        }
        cr_assert_eq(bb_region_enable(fixture.ctx, chain[i][0], false, NULL), BB_OK);
        map(i * 0x1000, chain[i][0], 0);
    }
    for (unsigned i = 1; i < CHAINS; i++) {
        cr_assert_eq(bb_space_unmap(fixture.ctx, chain[i][0], NULL), BB_OK);
    }
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 512 << 10);
    cr_assert_eq(pthread_create(&thread, &attributes, take_down, &good), 0);
    pthread_attr_destroy(&attributes);
    pthread_join(thread, NULL);
    cr_assert(good);
    cr_assert_eq(chain[CHAINS - 1][CHAIN - 1]->attached, 0);
    cr_assert_eq(bb_regions_retire_(fixture.ctx, &chain[0][0], CHAINS * CHAIN, NULL), BB_OK);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    for (unsigned i = 0; i < CHAINS; i++) {
        for (unsigned j = 0; j < CHAIN; j++) {
            bb_region_free_(fixture.memory.heap, chain[i][j]);
        }
        if (link_below[i] != NULL) {
            drop(link_below[i]);
        }
    }
}

/*
 * Hidden, it may have any number of places: nothing was rendered when they were made. To look at
 * each of them would take years.
 */
Test(tree, removal_of_what_is_hidden_in_2_to_the_60_places_ends)
{
    enum { LEVELS = 61 };
    struct bb_region *box[LEVELS], *pair[LEVELS][2];
    struct bb_region *leaf = io("leaf", 0x10), *near = io("near", 0x10);
    struct bb_region *cupboard = container("cupboard", 0x1000), *window = alias("w", leaf, 0, 0x10);

    map(0x8000, window, 0);
    map(0x9000, near, 0);
    cr_assert_eq(bb_region_enable(fixture.ctx, cupboard, false, NULL), BB_OK);
    map(0, cupboard, 0);
    box[0] = container("box", 0x10);
    place(box[0], 0, leaf, 0);
    for (unsigned i = 1; i < LEVELS; i++) {
        box[i] = container("box", 0x10);
        for (unsigned j = 0; j < 2; j++) {
            pair[i][j] = alias("same", box[i - 1], 0, 0x10);
            place(box[i], 0, pair[i][j], (int)j);
        }
    }
    place(cupboard, 0, box[LEVELS - 1], 0);
    SHOWS("8000-800f leaf, 9000-900f near");
    drop(leaf);
    SHOWS("9000-900f near");
    drop(cupboard);
    for (unsigned i = 1; i < LEVELS; i++) {
        drop(pair[i][0]);
        drop(pair[i][1]);
        drop(box[i]);
    }
    drop(box[0]);
    drop(window);
    drop(near);
}

Test(tree, no_memory_at_any_allocation_changes_nothing)
{
    struct bb_region *back = io("back", 0x1000), *box = container("box", 0x1000);
    struct bb_region *part[24], *window = alias("window", box, 0x100, 0x800);
    struct bb_txn *txn;
    struct bb_error err = {0};
    long failures = 0;
    int result;

    map(0, back, 0);
    map(0x8000, window, 0);
    for (unsigned i = 0; i < BB_ARRAY_LEN(part); i++) {
        part[i] = io("part", 0x10);
        place(box, 0x40 * (uint64_t)i, part[i], (int)(i % 5));
    }
    char before[1024];
    snprintf(before, sizeof(before), "%s", view_of(mem));
    for (;; failures++) {
        bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
        uint64_t live = fixture_settled_bytes(&fixture);
        cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
        cr_assert_eq(bb_txn_place(txn, mem->root, 0, box, 1, NULL), BB_OK);
        cr_assert_eq(bb_txn_move(txn, window, 0x9000, NULL), BB_OK);
        cr_assert_eq(bb_txn_priority(txn, part[3], 9, NULL), BB_OK);
        cr_assert_eq(bb_txn_enable(txn, part[4], false, NULL), BB_OK);
        cr_assert_eq(bb_txn_resize(txn, part[5], 0x100, NULL), BB_OK);
        cr_assert_eq(bb_txn_unmap(txn, part[6], NULL), BB_OK);
        test_memory_fail_after(&fixture.memory, failures);
        result = bb_txn_commit(txn, &err);
        test_memory_fail_after(&fixture.memory, -1);
        if (result == BB_OK) {
            break;
        }
        cr_assert_eq(result, BB_E_NOMEM);
        cr_assert_str_eq(view_of(mem), before, "after %ld allocations", failures);
        cr_assert(box->parent == NULL && window->at == 0x8000 && part[3]->priority == 3 &&
                  part[4]->enabled && part[5]->last == 0xf && part[6]->parent == box);
        bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
        cr_assert_eq(fixture_settled_bytes(&fixture), live, "failure %ld leaks", failures);
    }
    cr_assert_gt(failures, 20);
    for (unsigned i = 0; i < BB_ARRAY_LEN(part); i++) {
        drop(part[i]);
    }
    drop(window);
    drop(box);
    drop(back);
}
