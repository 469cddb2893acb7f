/* SPDX-License-Identifier: MIT */
/*
 * The storm: threads make, change and remove everything that a map is made of while others access
 * it.
 *
 * What would show a mistake. Every piece of the engine's memory, every device's state and all RAM
 * is filled with poison when it is given back, and kept for a while before it is used again, so
 * that who uses it too late finds poison, and who writes to it spoils it and is found out by that.
 * A callback looks whether its device lives, before and after; a device's end looks whether a
 * callback runs. A value says which window of the map it belongs to and at which offset of a page,
 * so that a reader knows what a right one looks like wherever things are moved. Sanitizers see the
 * same in their own way.
 */
#include "fixture.h"

#include <sched.h>
#include <string.h>

#include "../../engine/dma.h"
#include "../../memory/ram.h"
#include "poison.h"

TestSuite(storm, .timeout = 300);

/* --- What is in the map ------------------------------------------------------------------------
 */

enum {
    WRITERS = 4,
    READERS = 8,
    WINDOWS_EACH = 4,
    WINDOWS = WRITERS * WINDOWS_EACH,
    THINGS = 2, /* in each window, one over the other */
    PAGE = 0x1000,
    WINDOW_PAGES = 16,
    WINDOW_BYTES = WINDOW_PAGES * PAGE,
};

#define WINDOWS_GPA UINT64_C(0xc0000000)
#define MAGIC UINT64_C(0x11fe11fe11fe11fe)
#define TAG UINT64_C(0xb5b5)
#define KILL_DEVICE UINT64_C(0xdead000000000001)
#define KILL_REGION UINT64_C(0xdead000000000002)

enum thing_kind { LOCKFREE, DEVICE_LOCK, MAY_SLEEP, RAM, BOARD, ALIAS, KINDS };

struct storm;
struct thing;

/* A region with callbacks, or memory. */
struct part {
    struct thing *thing;
    struct bb_region *region;
    unsigned gone; /* (a) its own removal is complete */
};

/* Something made, changed and removed as one. In memory of the engine's heap. */
struct thing {
    uint64_t magic; /* (a) */
    struct storm *storm;
    unsigned window;
    unsigned inside; /* (a) callbacks that run */
    unsigned ends;   /* (a) completions to come */
    enum thing_kind kind;
    struct bb_device *device; /* NULL: RAM */
    struct bb_region *top;    /* what is put into the window: part 0, or what shows the parts */
    struct part part[3];
    uint64_t *host;
    size_t pages;
};

/* What a writer knows of one, besides. */
struct place {
    struct thing *thing;
    bool enabled;
};

struct storm {
    struct machine machine;
    struct bb_region *window[WINDOWS];
    uint64_t seed;
    unsigned stop;        /* (a) */
    uint64_t outstanding; /* (a) things made whose end has not been seen */
    uint64_t made, removed, callbacks, reads, changes; /* (a) */
    unsigned failed;                                   /* (a) */
    pthread_mutex_t mutex;
    char why[400]; /* the first failure */
};

struct storm_thread {
    struct storm *storm;
    unsigned number;
    uint64_t random;
    int priority; /* writers: the last one given out */
    struct place place[WINDOWS_EACH][THINGS];
};

static void fail(struct storm *storm, const char *what, uint64_t a, uint64_t b, const char *text)
{
    pthread_mutex_lock(&storm->mutex);
    if (bb_fetch_add_relaxed(&storm->failed, 1) == 0) {
        (void)snprintf(storm->why, sizeof(storm->why), "%s: %#llx %#llx %s", what,
                       (unsigned long long)a, (unsigned long long)b, text);
    }
    pthread_mutex_unlock(&storm->mutex);
}

static uint64_t next_random(struct storm_thread *thread)
{
    uint64_t x = thread->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    thread->random = x;
    return x * UINT64_C(0x2545f4914f6cdd1d) >> 20;
}

static uint64_t value_of(unsigned window, uint64_t offset)
{
    return TAG << 48 | (uint64_t)window << 32 | (uint32_t)offset;
}

static bool is_value_at(uint64_t value, bb_gpa_t gpa)
{
    unsigned window = (unsigned)((gpa - WINDOWS_GPA) / WINDOW_BYTES);

    return value >> 48 == TAG && (value >> 32 & 0xffff) == window &&
           (value & (PAGE - 1)) == (gpa & (PAGE - 1));
}

static void look_alive(struct thing *thing, const char *when)
{
    uint64_t magic = bb_load_relaxed(&thing->magic);

    if (magic != MAGIC) {
        /* Nothing else of it can be trusted, the storm included. */
        (void)fprintf(stderr, "a callback runs %s its device is gone: magic %#llx\n", when,
                      (unsigned long long)magic);
        abort();
    }
}

static void look_present(struct part *part, const char *when)
{
    look_alive(part->thing, when);
    if (bb_load_acquire(&part->gone) != 0) { /* pairs with part_end() */
        fail(part->thing->storm, "a callback of a region that is gone", part->thing->window,
             part->thing->kind, when);
    }
}

static void callback_begins(struct part *part)
{
    struct thing *thing = part->thing;

    look_present(part, "although");
    (void)bb_fetch_add_relaxed(&thing->inside, 1);
    (void)bb_fetch_add_relaxed(&thing->storm->callbacks, 1);
    if (thing->kind == MAY_SLEEP) {
        for (unsigned i = 0; i < 3; i++) {
            (void)sched_yield();
        }
    }
}

static void callback_ends(struct part *part)
{
    look_present(part, "while");
    (void)bb_fetch_sub_release(&part->thing->inside, 1); /* pairs with thing_end() */
}

/* One completion of a thing's; after the last it is freed. */
static void thing_put(struct thing *thing)
{
    struct storm *storm = thing->storm;

    if (bb_fetch_sub_acq_rel(&thing->ends, 1) == 1) { /* pairs with itself */
        bb_device_free(storm->machine.engine, thing, sizeof(*thing));
        (void)bb_fetch_sub_release(&storm->outstanding, 1); /* pairs with the end of the test */
    }
}

/* A part's own removal is complete. */
static void part_end(void *opaque)
{
    struct part *part = opaque;

    bb_store_release(&part->gone, 1); /* pairs with look_present() */
    thing_put(part->thing);
}

/* The end of a thing: its device's `destroy`, or the end of its RAM. */
static void thing_end(void *opaque)
{
    struct thing *thing = opaque;

    look_alive(thing, "no more:");
    if (bb_load_acquire(&thing->inside) != 0) { /* pairs with callback_ends() */
        fail(thing->storm, "ended with callbacks inside", thing->window, thing->kind, "");
    }
    if (thing->host != NULL) {
        poison_bury(thing->host, thing->pages * PAGE);
    }
    bb_store_relaxed(&thing->magic, 0);
    thing_put(thing);
}

static int thing_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct part *part = opaque;

    (void)ctx, (void)size;
    callback_begins(part);
    *value = value_of(part->thing->window, offset);
    callback_ends(part);
    return BB_OK;
}

static int thing_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    struct part *part = opaque;
    int result = BB_OK;

    (void)offset, (void)size;
    callback_begins(part);
    if (value == KILL_DEVICE) {
        result = bb_device_remove(ctx, part->thing->device, NULL, NULL, NULL);
    } else if (value == KILL_REGION) {
        (void)bb_fetch_add_relaxed(&part->thing->ends, 1);
        result = bb_region_remove(ctx, part->region, part_end, part, NULL);
    }
    callback_ends(part);
    return result == BB_OK ? BB_OK : BB_E_DEVICE;
}

static const struct bb_region_ops thing_ops = {.read = thing_read, .write = thing_write};

static const struct bb_device_ops thing_device_ops = {.destroy = thing_end};

/* --- Writers ------------------------------------------------------------------------------------
 */

static bool ok(struct storm_thread *thread, int result, const char *what,
               const struct bb_error *err)
{
    if (result != BB_OK) {
        fail(thread->storm, what, (uint64_t)(unsigned)-result, thread->number, err->text);
    }
    return result == BB_OK;
}

#define OK(call) ok(thread, call, #call, &err)

static void fill_ram(struct thing *thing)
{
    thing->host = aligned_alloc(PAGE, thing->pages * PAGE);
    for (size_t i = 0; i < thing->pages * PAGE / 8; i++) {
        thing->host[i] = value_of(thing->window, i * 8);
    }
}

static bool make_ram(struct storm_thread *thread, struct bb_ctx *ctx, struct thing *thing,
                     struct part *part)
{
    struct bb_error err = {0};

    fill_ram(thing);
    struct bb_ram_config config = {.name = "storm-ram",
                                   .size_bytes = thing->pages * PAGE,
                                   .backing = BB_RAM_EMBEDDER,
                                   .host = thing->host};
    return OK(bb_ram_create(ctx, &config, &part->region, &err));
}

static bool make_io(struct storm_thread *thread, struct bb_ctx *ctx, struct thing *thing,
                    enum bb_class klass, struct part *part)
{
    struct bb_error err = {0};
    struct bb_region_config config = {.name = "storm-io",
                                      .size_bytes = thing->pages * PAGE,
                                      .ops = &thing_ops,
                                      .opaque = part,
                                      .klass = klass};

    return OK(bb_device_region_create(ctx, thing->device, &config, &part->region, &err));
}

/* A container with two regions with callbacks, one over the other, and memory behind them. */
static bool make_board(struct storm_thread *thread, struct bb_ctx *ctx, struct thing *thing)
{
    struct bb_error err = {0};

    return OK(bb_container_create(ctx, "storm-board", 8 * PAGE, &thing->top, &err)) &&
           OK(bb_device_adopt(ctx, thing->device, thing->top, &err)) &&
           make_io(thread, ctx, thing, BB_CLASS_LOCKFREE, &thing->part[0]) &&
           make_io(thread, ctx, thing, BB_CLASS_DEVICE_LOCK, &thing->part[1]) &&
           make_ram(thread, ctx, thing, &thing->part[2]) &&
           OK(bb_device_adopt(ctx, thing->device, thing->part[2].region, &err)) &&
           OK(bb_region_place(ctx, thing->top, 0, thing->part[0].region, 1, &err)) &&
           OK(bb_region_place(ctx, thing->top, PAGE, thing->part[1].region, 2, &err)) &&
           OK(bb_region_place(ctx, thing->top, 2 * PAGE, thing->part[2].region, 0, &err));
}

static bool make_alias(struct storm_thread *thread, struct bb_ctx *ctx, struct thing *thing)
{
    struct bb_error err = {0};

    thing->pages = 4;
    if (!make_io(thread, ctx, thing, BB_CLASS_LOCKFREE, &thing->part[0])) {
        return false;
    }
    struct bb_alias_config config = {.name = "storm-alias",
                                     .target = thing->part[0].region,
                                     .offset = PAGE,
                                     .size_bytes = 4 * PAGE};
    return OK(bb_alias_create(ctx, &config, &thing->top, &err)) &&
           OK(bb_device_adopt(ctx, thing->device, thing->top, &err));
}

static void make_thing(struct storm_thread *thread, struct bb_ctx *ctx, unsigned w,
                       struct place *place)
{
    struct storm *storm = thread->storm;
    struct bb_error err = {0};
    struct thing *thing = bb_device_alloc(storm->machine.engine, sizeof(*thing));
    struct bb_device_config device = {.name = "storm", .ops = &thing_device_ops, .opaque = thing};
    bool made = true;

    if (thing == NULL) {
        abort();
    }
    thing->magic = MAGIC;
    thing->storm = storm;
    thing->ends = 1;
    for (unsigned i = 0; i < 3; i++) {
        thing->part[i].thing = thing;
    }
    thing->window = thread->number * WINDOWS_EACH + w;
    thing->kind = (enum thing_kind)(next_random(thread) % KINDS);
    thing->pages = 1 + next_random(thread) % 3;
    (void)bb_fetch_add_relaxed(&storm->outstanding, 1);
    if (thing->kind != RAM) {
        made = OK(bb_device_create(ctx, &device, &thing->device, &err));
    }
    switch (thing->kind) {
    case RAM:
        made = make_ram(thread, ctx, thing, &thing->part[0]);
        thing->top = thing->part[0].region;
        break;
    case BOARD:
        made = made && make_board(thread, ctx, thing);
        break;
    case ALIAS:
        made = made && make_alias(thread, ctx, thing);
        break;
    default:
        made = made && make_io(thread, ctx, thing,
                               thing->kind == LOCKFREE      ? BB_CLASS_LOCKFREE
                               : thing->kind == DEVICE_LOCK ? BB_CLASS_DEVICE_LOCK
                                                            : BB_CLASS_MAY_SLEEP,
                               &thing->part[0]);
        thing->top = thing->part[0].region;
    }
    if (!made) {
        return; /* the test has failed */
    }
    place->thing = thing;
    place->enabled = true;
    (void)OK(bb_region_place(ctx, storm->window[thing->window],
                             next_random(thread) % WINDOW_PAGES * PAGE, thing->top,
                             ++thread->priority, &err));
    (void)bb_fetch_add_relaxed(&storm->made, 1);
}

/* Has a thing's own callback remove it, or its region; false where it can't be reached. */
static bool kill_from_inside(struct storm_thread *thread, struct bb_ctx *ctx, struct thing *thing,
                             bool device)
{
    struct storm *storm = thread->storm;
    struct bb_error err = {0};
    struct bb_txn *txn;

    if (thing->kind > MAY_SLEEP) {
        return false;
    }
    /* In front of all others, where the write will find it. */
    if (!OK(bb_txn_begin(ctx, &txn, &err)) || !OK(bb_txn_enable(txn, thing->top, true, &err)) ||
        !OK(bb_txn_priority(txn, thing->top, ++thread->priority, &err)) ||
        !OK(bb_txn_move(txn, thing->top, 0, &err)) || !OK(bb_txn_commit(txn, &err))) {
        return true;
    }
    int result = bb_mmio_write(ctx, storm->machine.mmio,
                               WINDOWS_GPA + (uint64_t)thing->window * WINDOW_BYTES, 8,
                               device ? KILL_DEVICE : KILL_REGION);
    if (result != BB_OK) {
        fail(storm, "the write that kills", (uint64_t)(unsigned)-result, thing->kind, "");
    }
    return true;
}

static void remove_thing(struct storm_thread *thread, struct bb_ctx *ctx, struct place *place)
{
    struct thing *thing = place->thing;
    struct bb_error err = {0};
    uint64_t how = next_random(thread) % 6;

    place->thing = NULL;
    (void)bb_fetch_add_relaxed(&thread->storm->removed, 1);
    if (thing->kind == RAM) {
        if (how < 3) {
            (void)OK(bb_region_remove(ctx, thing->top, thing_end, thing, &err));
        } else if (OK(bb_region_remove_wait(ctx, thing->top, &err))) {
            thing_end(thing);
        }
        return;
    }
    struct bb_device *device = thing->device;
    switch (how) {
    case 0:
        if (kill_from_inside(thread, ctx, thing, true)) {
            return;
        }
        break;
    case 1:
        (void)kill_from_inside(thread, ctx, thing, false);
        break;
    case 2: /* what others show, or lie in, before them */
        (void)bb_fetch_add_relaxed(&thing->ends, 1);
        (void)OK(bb_region_remove(ctx, thing->part[0].region, part_end, &thing->part[0], &err));
        break;
    case 3:
        if (OK(bb_region_remove_wait(ctx, thing->top, &err)) &&
            thing->top == thing->part[0].region) {
            bb_store_release(&thing->part[0].gone, 1); /* pairs with look_present() */
        }
        break;
    default:
        break;
    }
    if (next_random(thread) % 2 == 0) {
        (void)OK(bb_device_remove_wait(ctx, device, &err));
    } else {
        (void)OK(bb_device_remove(ctx, device, NULL, NULL, &err));
    }
}

/* Exchanges what two things of one window have, at once. */
static void swap_things(struct storm_thread *thread, struct bb_ctx *ctx, struct place *places,
                        struct bb_region *window)
{
    struct bb_error err = {0};
    struct bb_txn *txn;
    bool all = OK(bb_txn_begin(ctx, &txn, &err));

    for (unsigned i = 0; all && i < THINGS; i++) {
        all = OK(bb_txn_unmap(txn, places[i].thing->top, &err));
    }
    for (unsigned i = 0; all && i < THINGS; i++) {
        all = OK(bb_txn_place(txn, window, i * 2 * PAGE, places[i].thing->top, ++thread->priority,
                              &err));
    }
    if (all) {
        (void)OK(bb_txn_commit(txn, &err));
    }
}

static void change_thing(struct storm_thread *thread, struct bb_ctx *ctx, struct place *place)
{
    struct thing *thing = place->thing;
    struct bb_error err = {0};
    struct bb_txn *txn;
    uint64_t page = next_random(thread) % WINDOW_PAGES;

    (void)bb_fetch_add_relaxed(&thread->storm->changes, 1);
    switch (next_random(thread) % 5) {
    case 0:
        (void)OK(bb_region_move(ctx, thing->top, page * PAGE, &err));
        break;
    case 1:
        place->enabled = !place->enabled;
        (void)OK(bb_region_enable(ctx, thing->top, place->enabled, &err));
        break;
    case 2:
        if (OK(bb_txn_begin(ctx, &txn, &err)) &&
            OK(bb_txn_priority(txn, thing->top, ++thread->priority, &err))) {
            (void)OK(bb_txn_commit(txn, &err));
        }
        break;
    case 3:
        if (thing->kind == BOARD) {
            (void)OK(bb_region_move(ctx, thing->part[page % 3].region, page / 3 * PAGE, &err));
        } else if (thing->kind == ALIAS && OK(bb_txn_begin(ctx, &txn, &err)) &&
                   OK(bb_txn_window(txn, thing->top, page % 4 * PAGE, &err))) {
            (void)OK(bb_txn_commit(txn, &err));
        }
        break;
    default:
        if (OK(bb_txn_begin(ctx, &txn, &err)) && OK(bb_txn_unmap(txn, thing->top, &err)) &&
            OK(bb_txn_place(txn, thread->storm->window[thing->window], page * PAGE, thing->top,
                            ++thread->priority, &err))) {
            (void)OK(bb_txn_commit(txn, &err));
        }
    }
}

static bool goes_on(const struct storm *storm)
{
    /* Relaxed: the joins order what matters. */
    return bb_load_relaxed(&storm->stop) == 0 && bb_load_relaxed(&storm->failed) == 0;
}

static void write_storm(struct bb_ctx *ctx, void *arg)
{
    struct storm_thread *thread = arg;
    struct storm *storm = thread->storm;
    struct bb_error err = {0};

    while (goes_on(storm)) {
        unsigned w = (unsigned)(next_random(thread) % WINDOWS_EACH);
        struct place *places = thread->place[w];
        struct place *place = &places[next_random(thread) % THINGS];
        struct bb_region *window = storm->window[thread->number * WINDOWS_EACH + w];

        if (place->thing == NULL) {
            make_thing(thread, ctx, w, place);
        } else if (next_random(thread) % 6 == 0) {
            remove_thing(thread, ctx, place);
        } else if (next_random(thread) % 8 == 0) {
            (void)OK(bb_region_enable(ctx, window, false, &err));
            (void)OK(bb_region_enable(ctx, window, true, &err));
        } else if (next_random(thread) % 8 == 0 && places[0].thing != NULL &&
                   places[1].thing != NULL) {
            swap_things(thread, ctx, places, window);
        } else {
            change_thing(thread, ctx, place);
        }
    }
    for (unsigned i = 0; i < WINDOWS_EACH * THINGS; i++) {
        struct place *place = &thread->place[i / THINGS][i % THINGS];

        if (place->thing != NULL && bb_load_relaxed(&storm->failed) == 0) {
            remove_thing(thread, ctx, place);
        }
    }
}

/* --- Readers ------------------------------------------------------------------------------------
 */

static void read_storm(struct bb_ctx *ctx, void *arg)
{
    struct storm_thread *thread = arg;
    struct storm *storm = thread->storm;
    uint64_t reads = 0;

    while (goes_on(storm)) {
        bb_gpa_t gpa = WINDOWS_GPA + next_random(thread) % (WINDOWS * WINDOW_BYTES / 8) * 8;
        uint64_t value = 0;
        int result = bb_mmio_read(ctx, storm->machine.mmio, gpa, 8, &value);

        reads++;
        if (result == BB_OK ? !is_value_at(value, gpa)
                            : result != BB_E_DECODE || value != UINT64_MAX) {
            fail(storm, "a read", gpa, value, bb_result_name(result));
        }
        /* What was read is right there whatever is there by now. */
        if (result == BB_OK && reads % 4 == 0) {
            result = bb_mmio_write(ctx, storm->machine.mmio, gpa, 8, value);
            if (result != BB_OK && result != BB_E_DECODE) {
                fail(storm, "a write", gpa, value, bb_result_name(result));
            }
        }
    }
    (void)bb_fetch_add_relaxed(&storm->reads, reads);
}

Test(storm, of_regions_made_changed_and_removed_meets_no_reader_with_what_is_gone)
{
    static struct storm storm;
    static struct storm_thread threads[WRITERS + 64];
    static struct worker workers[WRITERS + 64];
    struct bb_engine_config config = {.allocator = &poison_allocator};
    struct bb_error err = {0};
    unsigned readers = stress_threads(READERS);

    memset(&storm, 0, sizeof(storm));
    pthread_mutex_init(&storm.mutex, NULL);
    storm.seed = host_ns();
    readers = readers > 64 ? 64 : readers;
    machine_make(&storm.machine, &config);
    for (unsigned w = 0; w < WINDOWS; w++) {
        cr_assert_eq(
            bb_container_create(storm.machine.ctx, "window", WINDOW_BYTES, &storm.window[w], &err),
            BB_OK, "%s", err.text);
        cr_assert_eq(bb_space_map(storm.machine.ctx, storm.machine.mmio,
                                  WINDOWS_GPA + (uint64_t)w * WINDOW_BYTES, storm.window[w], &err),
                     BB_OK, "%s", err.text);
    }
    for (unsigned i = 0; i < WRITERS + readers; i++) {
        threads[i] =
            (struct storm_thread){.storm = &storm,
                                  .number = i,
                                  .random = (storm.seed + i) * UINT64_C(0x9e3779b97f4a7c15)};
        worker_start(&workers[i], &storm.machine, i < WRITERS ? "writer" : "reader",
                     i < WRITERS ? write_storm : read_storm, &threads[i]);
    }
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);
    while (host_ns() < end && bb_load_relaxed(&storm.failed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(storm.machine.ctx), BB_OK);
    }
    bb_store_relaxed(&storm.stop, 1);
    for (unsigned i = 0; i < WRITERS + readers; i++) {
        worker_join(&workers[i]);
    }
    cr_assert_eq(bb_load_relaxed(&storm.failed), 0, "seed %llu: %s", (unsigned long long)storm.seed,
                 storm.why);
    while (bb_load_acquire(&storm.outstanding) != 0) { /* pairs with thing_end() */
        cr_assert_eq(bb_rcu_synchronize(storm.machine.ctx), BB_OK);
    }
    for (unsigned w = 0; w < WINDOWS; w++) {
        cr_assert_eq(bb_region_remove_wait(storm.machine.ctx, storm.window[w], &err), BB_OK, "%s",
                     err.text);
    }
    cr_assert_eq(storm.made, storm.removed);
    cr_assert_gt(storm.removed, 20);
    cr_assert_gt(storm.changes, 20);
    cr_assert_gt(storm.callbacks, 100);
    cr_assert_gt(storm.reads, 1000);
    machine_drop(&storm.machine); /* every byte came back */
    cr_assert_eq(poison_spoiled(), 0, "seed %llu: bytes written to memory that had been freed",
                 (unsigned long long)storm.seed);
    pthread_mutex_destroy(&storm.mutex);
}
