/* SPDX-License-Identifier: MIT */
/*
 * The steps of topology.h's programs: a byte says which, those behind it with what. Here are those
 * that look and listen, and those whose arguments are none.
 */
#include <string.h>

#include "topology_internal.h"

/* The rest. */

static void dirty_step(void)
{
    uint64_t how = take(1);
    int number = (int)((how >> 4) % CLIENTS);
    struct slot *slot = take_region();
    struct bb_error *err = &world.err;

    if (world.client[number] == NULL) {
        struct bb_dirty_client *made = NULL;
        if (CHECK(bb_dirty_client_create(world.ctx, "client", &made, err)) == BB_OK) {
            world.client[number] = made;
        }
        if (world.client[number] == NULL) {
            return;
        }
    }
    if (slot == NULL) {
        return;
    }
    switch (how & 7) {
    case 0:
    case 1:
        CHECK(bb_dirty_start(world.ctx, world.client[number], slot->region, err));
        break;
    case 2:
        CHECK(bb_dirty_stop(world.ctx, world.client[number], slot->region, err));
        break;
    case 3:
    case 4: {
        uint64_t pages = 0;
        uint64_t offset = take_number(), length = take_number();
        /* No region with memory has more than fits in the buffer's bits. */
        CHECK(bb_dirty_sync_and_clear(world.ctx, world.client[number], slot->region, offset, length,
                                      (uint64_t *)(void *)world.buffer, &pages, err));
        break;
    }
    case 5: {
        uint64_t offset = take_number();
        bb_dirty_mark(world.ctx, slot->region, offset, take_number());
        break;
    }
    case 6: {
        uint64_t offset = take_number();
        bb_dirty_merge(world.ctx, slot->region, offset,
                       (const uint64_t *)(const void *)world.buffer,
                       take_number() % (8 * BUFFER_BYTES));
        break;
    }
    default:
        remove_client(number);
        break;
    }
}

static void listener_step(void)
{
    uint64_t how = take(1);
    int number = (int)(how % LISTENERS);

    if (world.listener[number] != NULL) {
        remove_listener(number);
        return;
    }
    struct bb_listener_config config = {.name = "listener",
                                        .space = take_space(how),
                                        .ops = (how & 8) != 0 ? &full_listener_ops : &listener_ops,
                                        .priority = (int)(int8_t)how};
    CHECK(bb_listener_add(world.ctx, &config, &world.listener[number], &world.err));
}

static void ignore_range(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)ctx;
    (void)opaque;
    if (first > last) {
        fail("a notifier is told of a range that ends before it begins");
    }
}

static void ignore_entry(struct bb_ctx *ctx, void *opaque, const struct bb_iommu_entry *entry)
{
    (void)ctx;
    (void)opaque;
    (void)entry;
}

static void iommu_step(void)
{
    uint64_t how = take(1);
    struct slot *slot = (how & 0x80) != 0 ? take_region() : take_region_of(BB_KIND_IOMMU);
    int number = (int)((how >> 3) % NOTIFIERS);
    bb_gpa_t first = take_number(), last = take_number();
    struct bb_error *err = &world.err;

    if (slot == NULL) {
        return;
    }
    switch (how & 7) {
    case 0:
    case 1:
    case 2:
        CHECK(bb_iommu_invalidate(world.ctx, slot->region, first, last, NULL, NULL, err));
        break;
    case 3:
        if ((how & 0x60) == 0x60) { /* it waits for a grace period: not often */
            CHECK(bb_iommu_invalidate_wait(world.ctx, slot->region, first, last, err));
        }
        break;
    case 4: {
        struct bb_iommu_entry entry = {.target = world.space[0],
                                       .iova = first,
                                       .translated = last,
                                       .page_bits = (unsigned)how & 63,
                                       .access = (unsigned)how & 3};
        CHECK(bb_iommu_announce(world.ctx, slot->region, &entry, err));
        break;
    }
    default:
        if (world.notifier[number] != NULL) {
            remove_notifier(number);
            return;
        }
        struct bb_iommu_notifier_config config = {.first = first,
                                                  .last = last,
                                                  .unmapped = (how & 1) != 0 ? ignore_range : NULL,
                                                  .mapped = (how & 2) != 0 ? ignore_entry : NULL};
        if (CHECK(bb_iommu_notifier_add(world.ctx, slot->region, &config, &world.notifier[number],
                                        err)) == BB_OK) {
            world.notifier_of[number] = (int)slot->number;
        }
        break;
    }
}

static bool visit_space(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    (void)opaque;
    return first <= last && region != NULL;
}

static bool visit_flat(void *opaque, const struct bb_range *range)
{
    bb_gpa_t *next = opaque;

    if (range->first < *next || range->last < range->first) {
        fail("a flat view that does not rise at 0x%llx", (unsigned long long)range->first);
    }
    *next = range->last + 1;
    return *next != 0;
}

static bool visit_tree(void *opaque, const struct bb_tree_node *node)
{
    (void)opaque;
    return node->region != NULL;
}

static bool visit_dispatch(void *opaque, const struct bb_dispatch_node *node)
{
    (void)opaque;
    return node->used <= 64;
}

static void put_line(void *opaque, const char *line)
{
    (void)opaque;
    world.told += strlen(line);
}

static void visit_counts(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    (void)opaque;
    (void)name;
    world.told += counts->reads;
}

/* What returns BB_OK, or BB_E_CONTEXT where a callback runs; it takes no error to fill. */
static void check_visit(const char *call, int result)
{
    if (result != BB_OK && !(result == BB_E_CONTEXT && world.depth > 0)) {
        fail("%s returned %s", call, bb_result_name(result));
    }
}

static void look_step(void)
{
    uint64_t how = take(1);
    struct bb_space *space = take_space(how);
    struct bb_dispatch_usage usage;
    bb_gpa_t next = 0;

    switch (how & 7) {
    case 0:
        bb_space_each(world.ctx, space, visit_space, NULL);
        break;
    case 1:
    case 2:
        bb_flat_each(world.ctx, space, visit_flat, &next);
        break;
    case 3:
        check_visit("bb_tree_each", bb_tree_each(world.ctx, space, visit_tree, NULL));
        break;
    case 4:
        bb_dispatch_each(world.ctx, space, visit_dispatch, NULL, &usage);
        break;
    case 5:
        check_visit("bb_map_print", bb_map_print(world.ctx, (unsigned)(how >> 3), put_line, NULL));
        break;
    case 6:
        bb_engine_count_accesses(world.ctx, (how & 0x10) != 0);
        break;
    default: {
        struct slot *slot = take_region();
        if (slot != NULL) {
            bb_region_counts_each(world.ctx, slot->region, visit_counts, NULL);
        }
        check_visit("bb_coalesced_flush", bb_coalesced_flush(world.ctx));
        break;
    }
    }
}

/* Arguments that are none. */
static void bad_step(void)
{
    struct bb_error *err = &world.err;
    struct bb_region *region = NULL;
    struct bb_txn *txn = NULL;
    struct bb_space *space = NULL;
    int result = BB_OK;

    switch (take(1) % 12) {
    case 0:
        result = CHECK(bb_container_create(world.ctx, NULL, take_number(), &region, err));
        break;
    case 1:
        result = CHECK(bb_container_create(world.ctx, "none", 0, &region, err));
        break;
    case 2:
        result = CHECK(bb_reserved_create(world.ctx, "none", 4, NULL, err));
        break;
    case 3: {
        struct bb_alias_config config = {
            .name = "far", .offset = 3, .size_bytes = UINT64_MAX, .target = NULL};
        result = CHECK(bb_alias_create(world.ctx, &config, &region, err));
        break;
    }
    case 4: {
        struct bb_alias_config config = {.name = "far",
                                         .offset = 3,
                                         .size_bytes = UINT64_MAX - take(1) % 2,
                                         .target = bb_space_root(world.space[0])};
        result = CHECK(bb_alias_create(world.ctx, &config, &region, err));
        break;
    }
    case 5:
        result = CHECK(bb_txn_nest(NULL, &txn, err));
        break;
    case 6:
        result = CHECK(bb_txn_commit(NULL, err));
        break;
    case 7: {
        struct bb_ram_config config = {.name = "none", .size_bytes = take(1) == 0 ? 0 : UINT64_MAX};
        result = CHECK(bb_ram_create(world.ctx, &config, &region, err));
        break;
    }
    case 8: {
        struct bb_space_config config = {.name = take(1) == 0 ? NULL : "none", .bits = 65};
        result = CHECK(bb_space_create(world.ctx, &config, &space, err));
        break;
    }
    case 9: {
        struct bb_ram_config config = {.name = "none",
                                       .size_bytes = 16,
                                       .backing = (enum bb_ram_backing)(5 + take(1)),
                                       .host = world.arena + 4};
        result = CHECK(bb_ram_create(world.ctx, &config, &region, err));
        break;
    }
    case 10:
        result = CHECK(bb_region_remove(world.ctx, bb_space_root(world.space[0]), NULL, NULL, err));
        break;
    default:
        result = CHECK(bb_region_place(world.ctx, bb_space_root(world.space[0]), 0,
                                       bb_space_root(world.space[1]), 0, err));
        break;
    }
    if (result == BB_OK) {
        fail("what can't be was made");
    }
}

/* Inside something. */

static void posted(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)opaque;
    (void)argument;
    (void)callback(ctx);
}

/* Steps in a section, under a device's lock, in a posted call, in an inbox. */
static void inside_step(void)
{
    uint64_t how = take(1);
    int number = (int)((how >> 3) % DEVICES);
    struct bb_device *device = world.device[number];

    if (world.depth >= CALLBACK_DEPTH_MAX) {
        return;
    }
    world.depth++;
    switch (how & 3) {
    case 0:
        bb_rcu_read_lock(world.ctx);
        (void)callback(world.ctx);
        bb_rcu_read_unlock(world.ctx);
        break;
    case 1: {
        int result = bb_post(world.ctx, device, posted, NULL, how);
        if (result != BB_OK && result != BB_E_LIMIT && result != BB_E_CONTEXT &&
            (result != BB_E_INVAL || device != NULL)) {
            fail("bb_post() returned %s", bb_result_name(result));
        }
        break;
    }
    case 2:
        /* A callback may hold a lock already, and locks of one rank don't nest. */
        if (device != NULL && world.depth == 1) {
            world.locked = number;
            bb_device_lock(world.ctx, device);
            (void)callback(world.ctx);
            bb_device_unlock(world.ctx, device);
            world.locked = -1;
        }
        break;
    default:
        if (device != NULL) {
            bb_device_notify(world.ctx, device, (unsigned)how >> 2);
        }
        break;
    }
    world.depth--;
}

void step(void)
{
    uint64_t what = take(1);

    if (what < 0x30) {
        make_region_step();
    } else if (what < 0x80) {
        change_step();
    } else if (what < 0x90) {
        change_alone_step();
    } else if (what < 0xb8) {
        access_step();
    } else if (what < 0xc4) {
        dma_step();
    } else if (what < 0xcc) {
        typed_step();
    } else if (what < 0xd4) {
        map_step();
    } else if (what < 0xdc) {
        iommu_step();
    } else if (what < 0xe0) {
        look_step();
    } else if (what < 0xe4) {
        dirty_step();
    } else if (what < 0xe8) {
        begin_step();
    } else if (what < 0xec) {
        commit_step();
    } else {
        static void (*const rest[])(void) = {
            abort_step,         remove_region_step, remove_region_step, adopt_step,
            remove_device_step, listener_step,      listener_step,      bad_step,
            look_step,          dirty_step,         inside_step,        inside_step,
        };
        rest[(what - 0xec) % BB_ARRAY_LEN(rest)]();
    }
}
