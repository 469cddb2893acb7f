/* SPDX-License-Identifier: MIT */
/*
 * A transaction is seen whole or not at all.
 *
 * A writer turns two places, x and y, back and forth between two states by one transaction at a
 * time, and numbers them: `begun` before each commit, `done` after it. A reader looks at x and y
 * between loading `done` and loading `begun`. Where the two are one apart, one commit at most was
 * published meanwhile, and what it looked at one after the other (by two accesses, or by the two
 * pieces of one that straddles them) is old and old, old and new, or new and new; but never new,
 * then old. A visit of the flat view, which shows both at once, is never old beside new in either
 * order. Where the two are equal it is exactly what the last commit left.
 *
 * The control makes the same change by two transactions, and must be seen half done.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../base/atomic.h"
#include "../../engine/device.h"
#include "../../memory/inspect.h"

enum {
    PART_BYTES = 4, /* x and y are this long, and neighbours where they lie in one space */
    X = 0x1000,
    Y = X + PART_BYTES,
    AWAY = 0x8000,
    READERS_MAX = 64,
    NOTHING = 0xff,
    WAYS = 4,        /* of looking: x then y, y then x, one access, one visit */
    PATIENCE_S = 60, /* with a host that lets nobody look */
};

/* Which byte each of the two places shows; in state 0 and in state 1. */
struct scene {
    void (*build)(void);
    /* Adds what leads to `state`, of x (part 0) or of y (part 1), to a transaction. */
    void (*turn)(struct bb_txn *txn, int state, int part);
    uint8_t shows[2][2]; /* [state][part] */
    bool two_spaces;
};

static struct bb_engine *engine;
static struct bb_ctx *ctx;
static struct bb_space *spaces[2];
static struct bb_device *device;
static struct bb_region *regions[8];
static unsigned region_count;

static const struct scene *scene;
static uint64_t begun, done; /* numbers of commits; the state after commit n is n & 1 */
static bool stop;

struct reader {
    pthread_t thread;
    uint64_t looked;     /* times that could be judged */
    uint64_t during;     /* of these, with a commit under way */
    uint64_t half[WAYS]; /* seen half done, by way of looking */
    uint64_t whole;      /* looks at both at once */
    bool failed;
};
static struct reader readers[READERS_MAX];

static int answer(struct bb_ctx *reader, void *opaque, uint64_t offset, unsigned size,
                  uint64_t *value)
{
    (void)reader;
    (void)offset;
    (void)size;
    *value = (uint64_t)(uintptr_t)opaque * UINT64_C(0x0101010101010101);
    return BB_OK;
}

static const struct bb_region_ops answer_ops = {.read = answer};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* BUSBAR_STRESS_SECONDS, shared by the suite's storms. */
static uint64_t storm_ns(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");

    return (uint64_t)((text == NULL ? 1.0 : atof(text)) * 1e9 / 5);
}

static unsigned reader_count(void)
{
    const char *text = getenv("BUSBAR_STRESS_THREADS");
    unsigned count = text == NULL ? 3 : (unsigned)atoi(text);

    return count < 1 ? 1 : count > READERS_MAX ? READERS_MAX : count;
}

static struct bb_region *make_io(const char *name, uint8_t byte, uint64_t size)
{
    struct bb_region_config config = {.name = name,
                                      .size_bytes = size,
                                      .ops = &answer_ops,
                                      .opaque = (void *)(uintptr_t)byte,
                                      .klass = BB_CLASS_LOCKFREE};
    struct bb_error err = {0};

    cr_assert_eq(bb_device_region_create(ctx, device, &config, &regions[region_count], &err), BB_OK,
                 "%s", err.text);
    return regions[region_count++];
}

static struct bb_region *make_container(const char *name, uint64_t size)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_container_create(ctx, name, size, &regions[region_count], &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_device_adopt(ctx, device, regions[region_count], &err), BB_OK, "%s", err.text);
    return regions[region_count++];
}

static void place(struct bb_region *container, uint64_t offset, struct bb_region *region,
                  int priority)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(ctx, container, offset, region, priority, &err), BB_OK, "%s",
                 err.text);
}

/* The scenes. */

static void build_swap(void)
{
    place(bb_space_root(spaces[0]), X, make_io("a", 0xa1, PART_BYTES), 0);
    place(bb_space_root(spaces[0]), Y, make_io("b", 0xb2, PART_BYTES), 0);
}

static void turn_swap(struct bb_txn *txn, int state, int part)
{
    cr_assert_eq(bb_txn_move(txn, regions[part ^ state], part == 0 ? X : Y, NULL), BB_OK);
}

static void build_spaces(void)
{
    place(bb_space_root(spaces[0]), X, make_io("a", 0xa1, PART_BYTES), 0);
    place(bb_space_root(spaces[1]), Y, make_io("b", 0xb2, PART_BYTES), 0);
}

static void turn_spaces(struct bb_txn *txn, int state, int part)
{
    struct bb_region *region = regions[part ^ state];

    cr_assert_eq(bb_txn_unmap(txn, region, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(txn, spaces[part], part == 0 ? X : Y, region, NULL), BB_OK);
}

static void build_enable(void)
{
    for (int part = 0; part < 2; part++) {
        struct bb_region *root = bb_space_root(spaces[0]);
        place(root, part == 0 ? X : Y, make_io("front", 0xa1, PART_BYTES), 1);
        place(root, part == 0 ? X : Y, make_io("behind", 0xb2, PART_BYTES), 0);
    }
}

static void turn_enable(struct bb_txn *txn, int state, int part)
{
    cr_assert_eq(bb_txn_enable(txn, regions[2 * part], state == 0, NULL), BB_OK);
}

static void build_window(void)
{
    struct bb_region *bank = make_container("bank", 2 * PART_BYTES);

    place(bank, 0, make_io("low", 0xa1, PART_BYTES), 0);
    place(bank, PART_BYTES, make_io("high", 0xb2, PART_BYTES), 0);
    for (int part = 0; part < 2; part++) {
        struct bb_alias_config config = {.name = "window",
                                         .target = bank,
                                         .offset = part == 0 ? 0 : PART_BYTES,
                                         .size_bytes = PART_BYTES};
        cr_assert_eq(bb_alias_create(ctx, &config, &regions[region_count], NULL), BB_OK);
        cr_assert_eq(bb_device_adopt(ctx, device, regions[region_count], NULL), BB_OK);
        place(bb_space_root(spaces[0]), part == 0 ? X : Y, regions[region_count++], 0);
    }
}

static void turn_window(struct bb_txn *txn, int state, int part)
{
    cr_assert_eq(bb_txn_window(txn, regions[3 + part], (part ^ state) * PART_BYTES, NULL), BB_OK);
}

/* One container with two children in it, another with one that fills it; they change places. */
static void build_bridges(void)
{
    struct bb_region *here = make_container("here", 2 * PART_BYTES);
    struct bb_region *there = make_container("there", 2 * PART_BYTES);

    place(here, 0, make_io("a", 0xa1, PART_BYTES), 0);
    place(here, PART_BYTES, make_io("b", 0xb2, PART_BYTES), 0);
    place(there, 0, make_io("c", 0xc3, 2 * PART_BYTES), 0);
    place(bb_space_root(spaces[0]), X, here, 0);
    place(bb_space_root(spaces[0]), AWAY, there, 0);
}

static void turn_bridges(struct bb_txn *txn, int state, int part)
{
    cr_assert_eq(bb_txn_move(txn, regions[part], (part == 0) == (state == 0) ? X : AWAY, NULL),
                 BB_OK);
}

static const struct scene swap = {build_swap, turn_swap, {{0xa1, 0xb2}, {0xb2, 0xa1}}, false};
static const struct scene two_spaces = {
    build_spaces, turn_spaces, {{0xa1, 0xb2}, {0xb2, 0xa1}}, true};
static const struct scene enable = {build_enable, turn_enable, {{0xa1, 0xa1}, {0xb2, 0xb2}}, false};
static const struct scene window = {build_window, turn_window, {{0xa1, 0xb2}, {0xb2, 0xa1}}, false};
static const struct scene bridges = {
    build_bridges, turn_bridges, {{0xa1, 0xb2}, {0xc3, 0xc3}}, false};

/* Looking. */

static uint8_t look(struct bb_ctx *reader, int part)
{
    uint64_t value = 0;

    (void)bb_mmio_read(reader, spaces[scene->two_spaces ? part : 0], part == 0 ? X : Y, 1, &value);
    return (uint8_t)value;
}

/* One access that meets both, x first. */
static void look_straddling(struct bb_ctx *reader, uint8_t seen[2])
{
    uint64_t value = 0;

    (void)bb_mmio_read(reader, spaces[0], X, 2 * PART_BYTES, &value);
    seen[0] = (uint8_t)value;
    seen[1] = (uint8_t)(value >> (8 * PART_BYTES));
}

struct visit {
    uint8_t seen[2];
};

static bool visit_range(void *opaque, const struct bb_range *range)
{
    struct visit *visit = opaque;

    for (int part = 0; part < 2; part++) {
        bb_gpa_t at = part == 0 ? X : Y;
        if (range->first <= at && at <= range->last) {
            const char *name = bb_region_name(range->region);
            visit->seen[part] = name[0] == 'a' || name[0] == 'f' || name[0] == 'l' ? 0xa1
                                : name[0] == 'b' || name[0] == 'h'                 ? 0xb2
                                                                                   : 0xc3;
        }
    }
    return true;
}

static bool is_state(const uint8_t seen[2], uint64_t state)
{
    return seen[0] == scene->shows[state & 1][0] && seen[1] == scene->shows[state & 1][1];
}

/* Whether what was seen, in this order, can be while commit `last` + 1 may or may not be published
 * in between. */
static bool in_order(const uint8_t seen[2], int first, uint64_t last)
{
    return is_state(seen, last) || is_state(seen, last + 1) ||
           (seen[first] == scene->shows[last & 1][first] &&
            seen[!first] == scene->shows[(last + 1) & 1][!first]);
}

static void look_once(struct reader *reader, struct bb_ctx *own, unsigned way)
{
    uint8_t seen[2] = {NOTHING, NOTHING};
    int first = way & 1;
    bool one_space = !scene->two_spaces;
    bool at_once = way == 3 && one_space;
    /* Pairs with the writer's release: the commit is seen by what is looked at from here on. */
    uint64_t before = bb_load_acquire(&done);

    if (way == 2 && one_space) {
        look_straddling(own, seen);
    } else if (!at_once) {
        seen[first] = look(own, first);
        seen[!first] = look(own, !first);
    } else {
        struct visit visit = {{NOTHING, NOTHING}};
        bb_flat_each(own, spaces[0], visit_range, &visit);
        memcpy(seen, visit.seen, sizeof(seen));
    }
    /* After the looks, each of which ends in acquire loads; the store that it reads was made before
     * the commit that they may have met. */
    uint64_t after = bb_load_acquire(&begun);
    if (after - before > 1) {
        return;
    }
    bool half = after == before ? !is_state(seen, before)
                : at_once       ? !is_state(seen, before) && !is_state(seen, after)
                                : !in_order(seen, first, before);
    reader->during += after != before;
    reader->whole += at_once;
    /* Relaxed, these two: the writer asks whether there is anything yet, and sums up after joining.
     */
    bb_store_relaxed(&reader->half[way], reader->half[way] + half);
    bb_store_relaxed(&reader->looked, reader->looked + 1);
}

static void *reader_main(void *arg)
{
    struct reader *reader = arg;
    struct bb_ctx *own;

    if (bb_ctx_attach(engine, "reader", &own, NULL) != BB_OK) {
        reader->failed = true;
        return NULL;
    }
    /* Relaxed: a flag that guards nothing. */
    for (unsigned way = 0; !bb_load_relaxed(&stop); way++) {
        look_once(reader, own, way % WAYS);
    }
    reader->failed = bb_ctx_detach(own, NULL) != BB_OK;
    return NULL;
}

/* Turning. */

static void turn(uint64_t number, bool by_two)
{
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    bb_store_relaxed(&begun, number); /* ordered by the commit's own release */
    for (int part = 0; part < 2; part++) {
        if (txn == NULL) {
            cr_assert_eq(bb_txn_begin(ctx, &txn, &err), BB_OK, "%s", err.text);
        }
        scene->turn(txn, (int)(number & 1), part);
        if (by_two || part == 1) {
            cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
            txn = NULL;
        }
    }
    bb_store_release(&done, number); /* pairs with look_once() */
}

/* Whether readers have seen what the storm is for: something, or every way that can a change half
 * done. (Who looks at y first can't: x is turned first.) */
static bool seen_enough(bool by_two, unsigned count)
{
    uint64_t looked = 0, half[WAYS] = {0};

    for (unsigned i = 0; i < count; i++) {
        looked += bb_load_relaxed(&readers[i].looked); /* as in look_once() */
        for (unsigned way = 0; way < WAYS; way++) {
            half[way] += bb_load_relaxed(&readers[i].half[way]);
        }
    }
    return by_two ? half[0] > 0 && half[2] > 0 && half[3] > 0 : looked > 0;
}

/* Turns for a time, and on until enough was seen. */
static struct reader storm(const struct scene *which, bool by_two, uint64_t for_ns)
{
    unsigned count = reader_count();
    uint64_t end = now_ns() + for_ns, number = 0;
    struct reader sum = {0};

    scene = which;
    scene->build();
    for (unsigned i = 0; i < count; i++) {
        cr_assert_eq(pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]), 0);
    }
    do {
        turn(++number, by_two);
    } while (now_ns() < end ||
             (!seen_enough(by_two, count) && now_ns() < end + PATIENCE_S * UINT64_C(1000000000)));
    bb_store_relaxed(&stop, true); /* a flag that guards nothing */
    for (unsigned i = 0; i < count; i++) {
        pthread_join(readers[i].thread, NULL);
        cr_assert_not(readers[i].failed);
        sum.looked += readers[i].looked;
        sum.during += readers[i].during;
        for (unsigned way = 0; way < WAYS; way++) {
            sum.half[way] += readers[i].half[way];
        }
        sum.whole += readers[i].whole;
    }
    fprintf(
        stderr,
        "%llu commits, %llu looks that could be judged, %llu during one, %llu at both at once\n",
        (unsigned long long)number, (unsigned long long)sum.looked, (unsigned long long)sum.during,
        (unsigned long long)sum.whole);
    return sum;
}

static void begin(void)
{
    struct bb_error err = {0};
    struct bb_device_config config = {.name = "device"};

    cr_assert_eq(bb_engine_create(NULL, &engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(engine, "writer", &ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_device_create(ctx, &config, &device, &err), BB_OK, "%s", err.text);
    for (int i = 0; i < 2; i++) {
        struct bb_space_config space = {.name = i == 0 ? "one" : "two"};
        cr_assert_eq(bb_space_create(ctx, &space, &spaces[i], &err), BB_OK, "%s", err.text);
    }
}

static void end(void)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(ctx, device, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(engine, &err), BB_OK, "%s", err.text);
}

TestSuite(atomicity, .init = begin, .fini = end, .timeout = 600);

static void never_half_done(const struct scene *which)
{
    struct reader sum = storm(which, false, storm_ns());

    cr_assert_gt(sum.looked, 0, "nobody looked");
    for (unsigned way = 0; way < WAYS; way++) {
        cr_assert_eq(sum.half[way], 0, "%llu of %llu looks saw a transaction half done, in way %u",
                     (unsigned long long)sum.half[way], (unsigned long long)sum.looked, way);
    }
}

Test(atomicity, two_regions_that_swap_are_never_seen_half_swapped)
{
    never_half_done(&swap);
}

Test(atomicity, two_regions_that_swap_spaces_are_never_seen_half_swapped)
{
    never_half_done(&two_spaces);
}

Test(atomicity, two_regions_that_are_shown_and_hidden_change_together)
{
    never_half_done(&enable);
}

Test(atomicity, two_aliases_whose_windows_move_change_together)
{
    never_half_done(&window);
}

Test(atomicity, a_container_moves_with_all_its_children_at_once)
{
    never_half_done(&bridges);
}

/* So that the readers are known to see what is there to be seen. */
Test(atomicity, the_same_change_by_two_transactions_is_seen_half_done)
{
    struct reader sum = storm(&enable, true, 0);

    cr_assert_gt(sum.half[0], 0, "%llu looks, %llu of them during a change",
                 (unsigned long long)sum.looked, (unsigned long long)sum.during);
    cr_assert_gt(sum.half[2], 0);
    cr_assert_gt(sum.half[3], 0);
}
