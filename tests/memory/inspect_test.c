/* SPDX-License-Identifier: MIT */
/*
 * Looking at the map: what the visitors say of a known one, its text to the letter, the figures of
 * the dispatch structure against what is counted in another way, and looking while others change.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static struct fixture fixture;
static struct bb_space *mmio, *pio;

static void begin(void)
{
    fixture_begin(&fixture);
    mmio = fixture_space(&fixture, "mmio", BB_SPACE_MMIO, 36);
    pio = fixture_space(&fixture, "pio", BB_SPACE_PIO, 0);
}

static void end(void)
{
    bb_iotlb_free_(bb_mem_ctx_(fixture.ctx));
    fixture_end(&fixture);
}

TestSuite(memory_inspect, .init = begin, .fini = end);

static struct bb_region *container(const char *name, uint64_t size_bytes)
{
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_container_create(fixture.ctx, name, size_bytes, &region, &err), BB_OK, "%s",
                 err.text);
    return region;
}

static struct bb_region *alias(const char *name, struct bb_region *target, uint64_t offset,
                               uint64_t size_bytes, bool read_only)
{
    struct bb_alias_config config = {name, target, offset, size_bytes, read_only};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

static struct bb_region *io(const char *name, uint64_t size_bytes, const char *device)
{
    static const struct bb_region_ops none = {.read = NULL};
    struct bb_region_config config = {.name = name, .size_bytes = size_bytes, .ops = &none};
    static uint32_t coalesced; /* of all devices together */
    struct bb_owner_ owner = {.name = device, .coalesced = &coalesced};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_region_create_io_(fixture.ctx, &config, &owner, &region, &err), BB_OK, "%s",
                 err.text);
    return region;
}

static void place(struct bb_region *in, bb_gpa_t offset, struct bb_region *region, int priority)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_place(fixture.ctx, in, offset, region, priority, &err), BB_OK, "%s",
                 err.text);
}

/* The map of most tests here. */
static struct {
    struct bb_region *ram, *rom, *pci, *vga, *low, *bar, *hidden, *gone, *hole, *iommu, *port;
    struct bb_region *all[16];
    size_t count;
} map;

static struct bb_region *mine(struct bb_region *region)
{
    return map.all[map.count++] = region;
}

static int no_translation(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova,
                          enum bb_iommu_access access, struct bb_attrs attrs,
                          struct bb_iommu_entry *entry)
{
    (void)ctx, (void)opaque, (void)iova, (void)access, (void)attrs, (void)entry;
    return BB_E_DECODE;
}

static void make_map(void)
{
    static const struct bb_iommu_ops ops = {no_translation};
    struct bb_ram_config ram = {.name = "ram", .size_bytes = 0x100000};
    struct bb_ram_config rom = {.name = "bios", .size_bytes = 0x10000, .read_only = true};
    struct bb_iommu_config iommu = {"smmu", 0x1000000, &ops, NULL};
    struct bb_doorbell bell = {.offset = 4, .size = 4, .fd = 0};
    struct bb_error err = {0};
    struct bb_ctx *ctx = fixture.ctx;
    struct bb_txn *txn = NULL;

    map.count = 0;
    cr_assert_eq(bb_ram_create(ctx, &ram, &map.ram, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ram_create(ctx, &rom, &map.rom, &err), BB_OK, "%s", err.text);
    cr_assert_eq(
        bb_iommu_create_(ctx, &iommu, &(struct bb_owner_){.name = "arm-smmu"}, &map.iommu, &err),
        BB_OK, "%s", err.text);
    cr_assert_eq(bb_reserved_create(ctx, "hole", 0x1000, &map.hole, &err), BB_OK, "%s", err.text);
    mine(map.ram);
    mine(map.rom);
    mine(map.iommu);
    mine(map.hole);
    map.pci = mine(container("pci", 0x10000000));
    map.vga = mine(io("vga", 0x20000, "vga"));
    map.bar = mine(io("bar", 0x1000, "nic"));
    map.hidden = mine(io("hidden", 0x1000, NULL));
    map.port = mine(io("port80", 1, "debug"));
    map.low = mine(alias("vga-low", map.vga, 0x8000, 0x8000, true));
    map.gone = mine(alias("stale", map.hidden, 0, 0x100, false));

    place(bb_space_root(mmio), 0, map.ram, 0);
    place(bb_space_root(mmio), 0xa0000, map.low, 1);
    place(bb_space_root(mmio), 0xf0000, map.rom, 2);
    place(bb_space_root(mmio), 0xe0000000, map.pci, -1);
    place(map.pci, 0x2000, map.bar, 0);
    place(map.pci, 0x1000, map.hidden, 0);
    place(map.pci, 0x1000, map.hole, 5);
    place(bb_space_root(mmio), 0x800000000, map.iommu, 0);
    place(bb_space_root(pio), 0x80, map.port, 0);
    place(bb_space_root(pio), 0x200, map.gone, 0);
    cr_assert_eq(bb_region_enable(ctx, map.hidden, false, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_begin(ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_doorbell_add(txn, map.bar, &bell, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_coalesce(txn, map.bar, 0x10, 8, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_coalesce(txn, map.bar, 0x20, 8, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static void drop_map(void)
{
    for (size_t i = 0; i < map.count; i++) {
        fixture_remove(&fixture, map.all[i]);
    }
}

/* The tree. */

struct nodes {
    struct bb_tree_node node[64];
    size_t count;
    size_t stop_at; /* 0: never */
};

static bool take_node(void *opaque, const struct bb_tree_node *node)
{
    struct nodes *nodes = opaque;

    nodes->node[nodes->count++] = *node;
    return nodes->count != nodes->stop_at;
}

Test(memory_inspect, the_tree_is_visited_from_the_top_in_rising_order_of_offset)
{
    struct nodes nodes = {.count = 0};

    make_map();
    const struct {
        unsigned depth;
        struct bb_region *region;
        bb_gpa_t first;
    } row[] = {
        {0, bb_space_root(mmio), 0}, {1, map.ram, 0},          {1, map.low, 0xa0000},
        {1, map.rom, 0xf0000},       {1, map.pci, 0xe0000000}, {2, map.hole, 0xe0001000},
        {2, map.hidden, 0xe0001000}, {2, map.bar, 0xe0002000}, {1, map.iommu, 0x800000000},
    };
    cr_assert_eq(bb_tree_each(fixture.ctx, mmio, take_node, &nodes), BB_OK);
    cr_assert_eq(nodes.count, BB_ARRAY_LEN(row), "%zu", nodes.count);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        const struct bb_tree_node *node = &nodes.node[i];

        cr_assert_eq(node->region, row[i].region, "row %zu is '%s'", i, node->name);
        cr_assert_eq(node->depth, row[i].depth, "row %zu", i);
        cr_assert_eq(node->first, row[i].first, "row %zu: 0x%" PRIx64, i, node->first);
        cr_assert_str_eq(node->name, bb_region_name(row[i].region));
        cr_assert_eq(node->size_bytes, bb_region_size(row[i].region), "row %zu", i);
        cr_assert_eq(node->kind, bb_region_kind(row[i].region), "row %zu", i);
    }
    const struct bb_tree_node *low = &nodes.node[2], *hidden = &nodes.node[6],
                              *bar = &nodes.node[7];
    cr_assert(low->target == map.vga && low->target_offset == 0x8000 && low->read_only);
    cr_assert(low->priority == 1 && low->enabled && low->device == NULL);
    cr_assert(!hidden->enabled && hidden->offset == 0x1000 && hidden->priority == 0);
    cr_assert_str_eq(bar->device, "nic");
    cr_assert(bar->doorbells == 1 && bar->coalesced == 2 && bar->offset == 0x2000);
    drop_map();
}

Test(memory_inspect, a_visit_that_returns_false_is_the_last)
{
    make_map();
    for (size_t stop = 1; stop <= 9; stop++) {
        struct nodes nodes = {.stop_at = stop};

        cr_assert_eq(bb_tree_each(fixture.ctx, mmio, take_node, &nodes), BB_OK);
        cr_assert_eq(nodes.count, stop);
    }
    drop_map();
}

Test(memory_inspect, siblings_are_sorted_whatever_order_they_came_in)
{
    enum { COUNT = 60 };
    struct bb_region *region[COUNT];
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    struct nodes nodes = {.count = 0};

    for (unsigned i = 0; i < COUNT; i++) {
        region[i] = io("r", 0x10, NULL);
        /* Disabled, so that many can be in one place. */
        cr_assert_eq(bb_region_enable(fixture.ctx, region[i], false, NULL), BB_OK);
        place(bb_space_root(mmio), test_random_below(&random, 4) * 0x10, region[i],
              (int)test_random_below(&random, 5) - 2);
    }
    cr_assert_eq(bb_tree_each(fixture.ctx, mmio, take_node, &nodes), BB_OK);
    cr_assert_eq(nodes.count, COUNT + 1);
    for (unsigned i = 2; i <= COUNT; i++) {
        const struct bb_tree_node *before = &nodes.node[i - 1], *node = &nodes.node[i];

        cr_assert(before->offset < node->offset ||
                      (before->offset == node->offset && before->priority >= node->priority),
                  "node %u (seed %" PRIu64 ")", i, seed);
        for (unsigned j = 1; j < i; j++) {
            cr_assert_neq(nodes.node[j].region, node->region, "seed %" PRIu64, seed);
        }
    }
    for (unsigned i = 0; i < COUNT; i++) {
        fixture_remove(&fixture, region[i]);
    }
}

Test(memory_inspect, a_child_past_all_addresses_is_said_to_be_at_the_last_one)
{
    struct nodes nodes = {.count = 0};
    struct bb_region *high = container("high", 0x20000), *child = io("child", 0x10, NULL);
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    place(high, 0x18000, child, 0);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, high, 0x10000, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    struct bb_space *wide = fixture_space(&fixture, "wide", BB_SPACE_MMIO, 64);
    place(bb_space_root(wide), UINT64_MAX - 0xffff, high, 0);
    cr_assert_eq(bb_tree_each(fixture.ctx, wide, take_node, &nodes), BB_OK);
    cr_assert_eq(nodes.count, 3);
    cr_assert_eq(nodes.node[2].first, UINT64_MAX);
    cr_assert_eq(nodes.node[2].offset, 0x18000);
    fixture_remove(&fixture, child);
    fixture_remove(&fixture, high);
}

Test(memory_inspect, the_tree_is_not_walked_where_its_lock_could_not_be_waited_for)
{
    struct nodes nodes = {.count = 0};

    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_tree_each(fixture.ctx, mmio, take_node, &nodes), BB_E_CONTEXT);
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_ALL, NULL, NULL), BB_E_CONTEXT);
    bb_section_leave_(fixture.ctx);
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_tree_each(fixture.ctx, mmio, take_node, &nodes), BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_eq(nodes.count, 0);
}

/* The flat view. */

struct ranges {
    struct bb_range range[64];
    size_t count;
    size_t stop_at;
};

static bool take_range(void *opaque, const struct bb_range *range)
{
    struct ranges *ranges = opaque;

    ranges->range[ranges->count++] = *range;
    return ranges->count != ranges->stop_at;
}

Test(memory_inspect, the_flat_view_is_visited_in_rising_order)
{
    struct ranges ranges = {.count = 0};

    make_map();
    const struct {
        bb_gpa_t first, last;
        struct bb_region *region;
        uint64_t offset;
        bool read_only, memory;
    } row[] = {
        {0, 0x9ffff, map.ram, 0, false, true},
        {0xa0000, 0xa7fff, map.vga, 0x8000, true, false},
        {0xa8000, 0xeffff, map.ram, 0xa8000, false, true},
        {0xf0000, 0xfffff, map.rom, 0, true, true},
        {0xe0001000, 0xe0001fff, map.hole, 0, false, false},
        {0xe0002000, 0xe0002fff, map.bar, 0, false, false},
        {0x800000000, 0x800ffffff, map.iommu, 0, false, false},
    };
    bb_flat_each(fixture.ctx, mmio, take_range, &ranges);
    cr_assert_eq(ranges.count, BB_ARRAY_LEN(row), "%zu", ranges.count);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        const struct bb_range *range = &ranges.range[i];

        cr_assert_eq(range->space, mmio);
        cr_assert(range->first == row[i].first && range->last == row[i].last, "row %zu", i);
        cr_assert_eq(range->region, row[i].region, "row %zu", i);
        cr_assert_eq(range->offset, row[i].offset, "row %zu", i);
        cr_assert_eq(range->kind, bb_region_kind(row[i].region), "row %zu", i);
        cr_assert(range->memory == row[i].memory, "row %zu", i);
        cr_assert(!range->memory || range->read_only == row[i].read_only, "row %zu", i);
        cr_assert_eq(range->host,
                     range->memory ? (uint8_t *)bb_region_host(row[i].region) + row[i].offset
                                   : NULL,
                     "row %zu", i);
    }
    for (size_t stop = 1; stop <= 7; stop++) {
        ranges = (struct ranges){.stop_at = stop};
        bb_flat_each(fixture.ctx, mmio, take_range, &ranges);
        cr_assert_eq(ranges.count, stop);
    }
    drop_map();
}

Test(memory_inspect, a_range_up_to_the_last_address_is_the_last)
{
    struct ranges ranges = {.count = 0};
    struct bb_space *wide = fixture_space(&fixture, "wide", BB_SPACE_MMIO, 64);
    struct bb_region *hole = NULL;

    cr_assert_eq(bb_reserved_create(fixture.ctx, "all", BB_SIZE_ALL, &hole, NULL), BB_OK);
    place(bb_space_root(wide), 0, hole, 0);
    bb_flat_each(fixture.ctx, wide, take_range, &ranges);
    cr_assert(ranges.count == 1 && ranges.range[0].first == 0 &&
              ranges.range[0].last == UINT64_MAX);
    fixture_remove(&fixture, hole);
}

/* The dispatch structure. */

struct dispatch {
    size_t nodes, slots;
    unsigned deepest;
    size_t stop_at;
};

static bool take_dispatch(void *opaque, const struct bb_dispatch_node *node)
{
    struct dispatch *dispatch = opaque;

    cr_assert(node->used >= 1 && node->used <= 64 && node->shift % 6 == 0 && node->shift <= 60);
    cr_assert_eq(node->base & bb_mask_low(node->shift + 6), 0);
    dispatch->nodes++;
    dispatch->slots += node->used;
    dispatch->deepest = node->depth > dispatch->deepest ? node->depth : dispatch->deepest;
    return dispatch->nodes != dispatch->stop_at;
}

/* Leaves, counted by the walk that needs no nodes. */
static size_t count_leaves(struct bb_space *space)
{
    size_t count = 0;

    bb_section_enter_(fixture.ctx);
    const struct bb_root_ *root = bb_deref_(&fixture.map->root);
    uintptr_t tree = root->view[space->index].tree;
    const struct bb_flat_ *leaf = bb_radix_next_(tree, 0);
    for (; leaf != NULL; leaf = bb_radix_next_(tree, bb_flat_last_(leaf) + 1)) {
        count++;
    }
    bb_section_leave_(fixture.ctx);
    return count;
}

Test(memory_inspect, the_figures_of_a_view_add_up)
{
    enum { COUNT = 300 };
    static struct bb_region *region[COUNT];
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    struct bb_dispatch_usage usage;

    bb_dispatch_each(fixture.ctx, mmio, NULL, NULL, &usage);
    cr_assert(usage.nodes == 0 && usage.leaves == 0 && usage.depth == 0 && usage.bytes == 0);
    for (unsigned i = 0; i < COUNT; i++) {
        region[i] = io("r", 1 + test_random_below(&random, 0x8000), NULL);
        place(bb_space_root(mmio), (bb_gpa_t)i << (i % 3 == 0 ? 16 : 24), region[i], (int)i);

        struct dispatch dispatch = {.nodes = 0};
        bb_dispatch_each(fixture.ctx, mmio, take_dispatch, &dispatch, &usage);
        cr_assert_eq(usage.nodes, dispatch.nodes, "seed %" PRIu64, seed);
        cr_assert_eq(usage.leaves, count_leaves(mmio), "seed %" PRIu64, seed);
        cr_assert_eq(usage.depth, dispatch.nodes == 0 ? 0 : dispatch.deepest + 1, "seed %" PRIu64,
                     seed);
        cr_assert_eq(usage.bytes, usage.nodes * sizeof(struct bb_node_) +
                                      usage.leaves * sizeof(struct bb_flat_));
        /* Each node but the first, and each leaf, has a slot that leads to it. */
        cr_assert(dispatch.nodes == 0 || dispatch.slots >= dispatch.nodes - 1 + usage.leaves,
                  "seed %" PRIu64, seed);
    }
    cr_assert_gt(usage.nodes, 3);
    struct dispatch stopped = {.stop_at = 2};
    struct bb_dispatch_usage all;
    bb_dispatch_each(fixture.ctx, mmio, take_dispatch, &stopped, &all);
    cr_assert_eq(stopped.nodes, 2);
    cr_assert_eq(all.nodes, usage.nodes);
    bb_dispatch_each(fixture.ctx, mmio, NULL, NULL, NULL);
    for (unsigned i = 0; i < COUNT; i++) {
        fixture_remove(&fixture, region[i]);
    }
}

/* What the heap has given since, and what the map says of itself: both since `before`. */
struct taken {
    size_t map;
    uint64_t heap;
};

static struct taken taken(struct taken before)
{
    struct bb_dispatch_usage usage;

    bb_dispatch_each(fixture.ctx, pio, NULL, NULL, &usage);
    return (struct taken){usage.bytes_total - before.map,
                          bb_heap_usage(fixture.memory.heap).live_bytes - before.heap};
}

Test(memory_inspect, what_the_map_takes_of_the_heap_is_what_the_heap_lost)
{
    enum { COUNT = 40, CHANGES = 50 };
    struct bb_region *region[COUNT];
    struct bb_doorbell bell = {.offset = 4, .size = 4, .fd = 0};
    struct bb_error err = {0};

    /* Twice: commits keep some memory for the next one, which is not said to be the map's. */
    for (unsigned round = 0; round < 2; round++) {
        (void)fixture_settled_bytes(&fixture);
        struct taken before = taken((struct taken){0, 0});
        for (unsigned i = 0; i < COUNT; i++) {
            region[i] = io("r", 0x1000, NULL);
            place(bb_space_root(i % 2 == 0 ? mmio : pio), i << (i % 2 == 0 ? 16 : 4), region[i],
                  (int)i);
        }
        struct bb_txn *txn = NULL;
        cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
        cr_assert_eq(bb_txn_doorbell_add(txn, region[0], &bell, &err), BB_OK, "%s", err.text);
        cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
        (void)fixture_settled_bytes(&fixture);
        struct taken settled = taken(before);
        cr_assert_geq(settled.map, COUNT * (sizeof(struct bb_region) + sizeof(struct bb_flat_)));
        cr_assert(round == 0 || settled.map == settled.heap, "%zu, but %" PRIu64, settled.map,
                  settled.heap);

        /* What a reader keeps from being freed counts, too. */
        struct taken few = {0, 0}, many;
        bb_section_enter_(fixture.ctx);
        for (unsigned i = 0; i < CHANGES + 2; i++) {
            few = i == 2 ? taken(before) : few;
            cr_assert_eq(bb_region_enable(fixture.ctx, region[1], i % 2 == 1, NULL), BB_OK);
        }
        many = taken(before);
        bb_section_leave_(fixture.ctx);
        cr_assert_geq(many.map, few.map + CHANGES * sizeof(struct bb_root_));
        cr_assert_eq(many.map - few.map, many.heap - few.heap, "%zu to %zu", few.map, many.map);
        for (unsigned i = 0; i < COUNT; i++) {
            fixture_remove(&fixture, region[i]);
        }
    }
}

/* Text. */

struct text {
    char bytes[16384];
    size_t used;
};

static void take_line(void *opaque, const char *line)
{
    struct text *text = opaque;
    int length = snprintf(text->bytes + text->used, sizeof(text->bytes) - text->used, "%s\n", line);

    text->used += (size_t)length;
    cr_assert_lt(text->used, sizeof(text->bytes));
}

static const char tree_text[] =
    "space 'mmio': memory, 36 bits\n"
    "  tree:\n"
    "    000000000-fffffffff  container 'mmio', priority 0\n"
    "      000000000-0000fffff  RAM 'ram', priority 0\n"
    "      0000a0000-0000a7fff  alias 'vga-low', priority 1, of 'vga' + 0x8000, read-only\n"
    "      0000f0000-0000fffff  RAM 'bios', priority 2, read-only\n"
    "      0e0000000-0efffffff  container 'pci', priority -1\n"
    "        0e0001000-0e0001fff  reserved 'hole', priority 5\n"
    "        0e0001000-0e0001fff  I/O 'hidden', priority 0, disabled\n"
    "        0e0002000-0e0002fff  I/O 'bar', priority 0, device 'nic', 1 doorbell, "
    "2 coalesced ranges\n"
    "      800000000-800ffffff  IOMMU 'smmu', priority 0, device 'arm-smmu'\n"
    "space 'pio': ports, 16 bits\n"
    "  tree:\n"
    "    0000-ffff  container 'pio', priority 0\n"
    "      0080-0080  I/O 'port80', priority 0, device 'debug'\n"
    "      0200-02ff  alias 'stale', priority 0, of nothing any more\n";

static const char flat_text[] = "space 'mmio': memory, 36 bits\n"
                                "  flat view:\n"
                                "    000000000-00009ffff  RAM 'ram' + 0x0\n"
                                "    0000a0000-0000a7fff  I/O 'vga' + 0x8000, read-only\n"
                                "    0000a8000-0000effff  RAM 'ram' + 0xa8000\n"
                                "    0000f0000-0000fffff  RAM 'bios' + 0x0, read-only\n"
                                "    0e0001000-0e0001fff  reserved 'hole' + 0x0\n"
                                "    0e0002000-0e0002fff  I/O 'bar' + 0x0\n"
                                "    800000000-800ffffff  IOMMU 'smmu' + 0x0\n"
                                "space 'pio': ports, 16 bits\n"
                                "  flat view:\n"
                                "    0080-0080  I/O 'port80' + 0x0\n";

Test(memory_inspect, the_text_is_the_map_s_to_the_letter)
{
    static struct text text;

    make_map();
    fixture_remove(&fixture, map.hidden);
    struct bb_region *hidden = io("hidden", 0x1000, NULL);
    for (size_t i = 0; i < map.count; i++) {
        map.all[i] = map.all[i] == map.hidden ? hidden : map.all[i];
    }
    cr_assert_eq(bb_region_enable(fixture.ctx, hidden, false, NULL), BB_OK);
    place(map.pci, 0x1000, hidden, 0);

    text.used = 0;
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_TREE, take_line, &text), BB_OK);
    cr_assert_str_eq(text.bytes, tree_text, "%s", text.bytes);
    text.used = 0;
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_FLAT, take_line, &text), BB_OK);
    cr_assert_str_eq(text.bytes, flat_text, "%s", text.bytes);
    drop_map();
}

Test(memory_inspect, the_text_of_the_dispatch_structure_has_its_nodes_and_their_sum)
{
    static struct text text;
    char expected[1024];
    struct bb_region *one, *two;
    struct bb_dispatch_usage usage;

    one = io("one", 0x1000, NULL);
    two = io("two", 0x1000, NULL);
    place(bb_space_root(mmio), 0x3000, one, 0);
    place(bb_space_root(mmio), 0x10000000, two, 0);
    (void)fixture_settled_bytes(&fixture);
    bb_dispatch_each(fixture.ctx, mmio, NULL, NULL, &usage);
    snprintf(expected, sizeof(expected),
             "space 'mmio': memory, 36 bits\n"
             "  dispatch:\n"
             "    000000000  64 slots of 2^24, 2 used\n"
             "    1 node and 2 leaves, 1 deep: %zu bytes; the whole map: %zu bytes\n"
             "space 'pio': ports, 16 bits\n"
             "  dispatch:\n"
             "    0 nodes and 0 leaves, 0 deep: 0 bytes; the whole map: %zu bytes\n",
             sizeof(struct bb_node_) + 2 * sizeof(struct bb_flat_), usage.bytes_total,
             usage.bytes_total);
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_DISPATCH, take_line, &text), BB_OK);
    cr_assert_str_eq(text.bytes, expected, "%s", text.bytes);
    text.used = 0;
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_ALL, take_line, &text), BB_OK);
    cr_assert(strstr(text.bytes, "  tree:") < strstr(text.bytes, "  flat view:") &&
              strstr(text.bytes, "  flat view:") < strstr(text.bytes, "  dispatch:"));
    fixture_remove(&fixture, one);
    fixture_remove(&fixture, two);
}

struct longest {
    size_t lines, length;
};

static void take_longest(void *opaque, const char *line)
{
    struct longest *longest = opaque;
    size_t length = strlen(line);

    longest->lines++;
    longest->length = length > longest->length ? length : longest->length;
}

Test(memory_inspect, a_deep_tree_is_printed_whole)
{
    enum { DEEP = 200 };
    static struct bb_region *region[DEEP];
    struct longest longest = {.lines = 0};
    char name[BB_CTX_NAME_BYTES];

    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    for (unsigned i = 0; i < DEEP; i++) {
        region[i] = container(name, 0x1000);
        place(i == 0 ? bb_space_root(mmio) : region[i - 1], 0, region[i], INT32_MIN);
    }
    cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_TREE, take_longest, &longest), BB_OK);
    cr_assert_eq(longest.lines, 2 + 1 + DEEP + 2 + 1);
    cr_assert_eq(longest.length, 4 + 2 * DEEP +
                                     strlen("000000000-000000fff  container ''"
                                            ", priority -2147483648") +
                                     strlen(name));
    for (unsigned i = DEEP; i-- > 0;) {
        fixture_remove(&fixture, region[i]);
    }
}

Test(memory_inspect, each_kind_has_a_name_and_nothing_else_has)
{
    static const struct {
        enum bb_kind kind;
        const char *name;
    } row[] = {{BB_KIND_CONTAINER, "container"},
               {BB_KIND_ALIAS, "alias"},
               {BB_KIND_RAM, "RAM"},
               {BB_KIND_ROM_DEVICE, "ROM device"},
               {BB_KIND_IO, "I/O"},
               {BB_KIND_RESERVED, "reserved"},
               {BB_KIND_IOMMU, "IOMMU"},
               {(enum bb_kind)7, "unknown"},
               {(enum bb_kind)0xffffff, "unknown"}};

    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        cr_assert_str_eq(bb_kind_name(row[i].kind), row[i].name);
    }
}

/* While others change it. */

enum { CHANGERS = 2, CHANGED = 40 };

struct changer {
    unsigned index;
    struct bb_region *region[CHANGED];
    const uint32_t *stop;
    uint64_t commits;
    bool failed;
};

/* Places its regions and takes them out again, in another tree position each time. */
static void *change(void *opaque)
{
    struct changer *changer = opaque;
    struct bb_ctx *ctx = fixture_attach(&fixture, "changer");
    struct test_random random = {changer->index + 1};
    bool placed[CHANGED] = {false};

    changer->failed = ctx == NULL;
    while (!changer->failed && bb_load_acquire(changer->stop) == 0) { /* pairs with the test's */
        unsigned i = test_random_below(&random, CHANGED);
        int result = placed[i] ? bb_space_unmap(ctx, changer->region[i], NULL)
                               : bb_region_place(ctx, bb_space_root(mmio),
                                                 test_random_below(&random, 1 << 20) << 8,
                                                 changer->region[i],
                                                 (int)(changer->index * CHANGED + i), NULL);
        changer->failed = result != BB_OK;
        placed[i] = !placed[i];
        changer->commits++;
    }
    if (ctx != NULL) {
        changer->failed |= bb_ctx_detach_(ctx, NULL) != BB_OK;
    }
    return NULL;
}

struct in_order {
    bb_gpa_t next;
    uint64_t offset;
    bool any, wrong;
};

static bool check_range(void *opaque, const struct bb_range *range)
{
    struct in_order *order = opaque;

    order->wrong |= order->any && range->first < order->next;
    order->wrong |= range->last < range->first;
    order->next = range->last + 1;
    order->any = true;
    return true;
}

static bool check_node(void *opaque, const struct bb_tree_node *node)
{
    struct in_order *order = opaque;

    order->wrong |= node->depth == 1 && node->offset < order->offset;
    order->wrong |= node->depth > 1;
    order->offset = node->offset;
    return true;
}

static void drop_line(void *opaque, const char *line)
{
    (void)line;
    ++*(uint64_t *)opaque;
}

Test(memory_inspect, each_look_is_at_one_moment_while_others_change_the_map, .timeout = 300)
{
    static struct changer changer[CHANGERS];
    pthread_t thread[CHANGERS];
    uint32_t stop = 0;
    uint64_t looks = 0, lines = 0;

    for (unsigned i = 0; i < CHANGERS; i++) {
        changer[i] = (struct changer){.index = i, .stop = &stop};
        for (unsigned j = 0; j < CHANGED; j++) {
            changer[i].region[j] = io("r", 0x1000, "device");
        }
        cr_assert_eq(pthread_create(&thread[i], NULL, change, &changer[i]), 0);
    }
    for (uint64_t until = test_now_ns() + test_stress_ns(); test_now_ns() < until; looks++) {
        struct in_order flat = {.any = false}, tree = {.any = false};
        struct bb_dispatch_usage usage;

        bb_flat_each(fixture.ctx, mmio, check_range, &flat);
        cr_assert(!flat.wrong, "look %" PRIu64 ": ranges overlap", looks);
        cr_assert_eq(bb_tree_each(fixture.ctx, mmio, check_node, &tree), BB_OK);
        cr_assert(!tree.wrong, "look %" PRIu64 ": the tree is out of order", looks);
        bb_dispatch_each(fixture.ctx, mmio, NULL, NULL, &usage);
        cr_assert_eq(usage.bytes, usage.nodes * sizeof(struct bb_node_) +
                                      usage.leaves * sizeof(struct bb_flat_));
        cr_assert_eq(bb_map_print(fixture.ctx, BB_PRINT_ALL, drop_line, &lines), BB_OK);
    }
    bb_store_release(&stop, 1); /* pairs with change() */
    for (unsigned i = 0; i < CHANGERS; i++) {
        pthread_join(thread[i], NULL);
        cr_assert(!changer[i].failed && changer[i].commits > 0);
        for (unsigned j = 0; j < CHANGED; j++) {
            fixture_remove(&fixture, changer[i].region[j]);
        }
    }
    cr_assert(looks > 0 && lines > looks);
}
