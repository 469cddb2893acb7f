/* SPDX-License-Identifier: MIT */
/*
 * The storm's writers, and the devices and memory that they make; see storm.h.
 *
 * A callback looks whether its device and its region live, before and after; a device's end looks
 * whether a callback runs.
 */
#include <sched.h>
#include <string.h>

#include "../../memory/ram.h"
#include "poison.h"
#include "storm.h"

#define MAGIC UINT64_C(0x11fe11fe11fe11fe)
#define KILL_DEVICE UINT64_C(0xdead000000000001)
#define KILL_REGION UINT64_C(0xdead000000000002)

enum thing_kind { LOCKFREE, DEVICE_LOCK, MAY_SLEEP, RAM, BOARD, ALIAS, KINDS };

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

void storm_fail(struct storm *storm, const char *what, uint64_t a, uint64_t b, const char *text)
{
    pthread_mutex_lock(&storm->mutex);
    if (bb_fetch_add_relaxed(&storm->failed, 1) == 0) {
        (void)snprintf(storm->why, sizeof(storm->why), "%s: %#llx %#llx %s", what,
                       (unsigned long long)a, (unsigned long long)b, text);
    }
    pthread_mutex_unlock(&storm->mutex);
}

uint64_t storm_random(struct storm_thread *thread)
{
    uint64_t x = thread->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    thread->random = x;
    return x * UINT64_C(0x2545f4914f6cdd1d) >> 20;
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
        storm_fail(part->thing->storm, "a callback of a region that is gone", part->thing->window,
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
        storm_fail(thing->storm, "ended with callbacks inside", thing->window, thing->kind, "");
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

/* Writers. */

static bool ok(struct storm_thread *thread, int result, const char *what,
               const struct bb_error *err)
{
    if (result != BB_OK) {
        storm_fail(thread->storm, what, (uint64_t)(unsigned)-result, thread->number, err->text);
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
    thing->kind = (enum thing_kind)(storm_random(thread) % KINDS);
    thing->pages = 1 + storm_random(thread) % 3;
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
                             storm_random(thread) % WINDOW_PAGES * PAGE, thing->top,
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
        storm_fail(storm, "the write that kills", (uint64_t)(unsigned)-result, thing->kind, "");
    }
    return true;
}

static void remove_thing(struct storm_thread *thread, struct bb_ctx *ctx, struct place *place)
{
    struct thing *thing = place->thing;
    struct bb_error err = {0};
    uint64_t how = storm_random(thread) % 6;

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
    if (storm_random(thread) % 2 == 0) {
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
    uint64_t page = storm_random(thread) % WINDOW_PAGES;

    (void)bb_fetch_add_relaxed(&thread->storm->changes, 1);
    switch (storm_random(thread) % 5) {
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

bool storm_goes_on(const struct storm *storm)
{
    /* Relaxed: the joins order what matters. */
    return bb_load_relaxed(&storm->stop) == 0 && bb_load_relaxed(&storm->failed) == 0;
}

void storm_write(struct bb_ctx *ctx, void *arg)
{
    struct storm_thread *thread = arg;
    struct storm *storm = thread->storm;
    struct bb_error err = {0};

    while (storm_goes_on(storm)) {
        unsigned w = (unsigned)(storm_random(thread) % WINDOWS_EACH);
        struct place *places = thread->place[w];
        struct place *place = &places[storm_random(thread) % THINGS];
        struct bb_region *window = storm->window[thread->number * WINDOWS_EACH + w];

        if (place->thing == NULL) {
            make_thing(thread, ctx, w, place);
        } else if (storm_random(thread) % 6 == 0) {
            remove_thing(thread, ctx, place);
        } else if (storm_random(thread) % 8 == 0) {
            (void)OK(bb_region_enable(ctx, window, false, &err));
            (void)OK(bb_region_enable(ctx, window, true, &err));
        } else if (storm_random(thread) % 8 == 0 && places[0].thing != NULL &&
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
