/* SPDX-License-Identifier: MIT */
/*
 * Looking at the map. The tree is read under the map's lock, for it is the writer's; views are read
 * as accesses read them, in a section.
 *
 * The walk of the tree keeps what it has yet to visit in one array, which is as long as the tree
 * has regions: what it needs of memory it needs before the first visit, and of the thread's stack
 * nothing, however deep the tree.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "memory_internal.h"

const char *bb_kind_name(enum bb_kind kind)
{
    switch (kind) {
    case BB_KIND_CONTAINER:
        return "container";
    case BB_KIND_ALIAS:
        return "alias";
    case BB_KIND_RAM:
        return "RAM";
    case BB_KIND_ROM_DEVICE:
        return "ROM device";
    case BB_KIND_IO:
        return "I/O";
    case BB_KIND_RESERVED:
        return "reserved";
    case BB_KIND_IOMMU:
        return "IOMMU";
    }
    return "unknown";
}

/* The tree. */

/* A region yet to be visited. */
struct due {
    struct bb_region *region;
    bb_gpa_t first;
    unsigned depth;
};

/* True where `a` is visited before `b`; siblings both. */
static bool comes_first(const struct due *a, const struct due *b)
{
    if (a->region->at != b->region->at) {
        return a->region->at < b->region->at;
    }
    if (a->region->priority != b->region->priority) {
        return a->region->priority > b->region->priority;
    }
    return a->region->serial < b->region->serial;
}

/* Lets the entry at `top` sink to its place in a heap whose root is what is visited first. */
static void sink(struct due *heap, size_t top, size_t count)
{
    struct due entry = heap[top];

    for (size_t below = 2 * top + 1; below < count; below = 2 * top + 1) {
        if (below + 1 < count && comes_first(&heap[below + 1], &heap[below])) {
            below++;
        }
        if (!comes_first(&heap[below], &entry)) {
            break;
        }
        heap[top] = heap[below];
        top = below;
    }
    heap[top] = entry;
}

/* The first to be visited last, as a stack wants it. In place: libc's may allocate. */
static void sort(struct due *due, size_t count)
{
    for (size_t i = count / 2; i-- > 0;) {
        sink(due, i, count);
    }
    for (size_t left = count; left > 1; left--) {
        struct due first = due[0];

        due[0] = due[left - 1];
        due[left - 1] = first;
        sink(due, 0, left - 1);
    }
}

static size_t count_tree(const struct bb_region *root)
{
    const struct bb_region *at = root;
    size_t count = 1;

    for (;;) {
        if (at->child != NULL) {
            at = at->child;
        } else {
            while (at != root && at->sibling == NULL) {
                at = at->parent;
            }
            if (at == root) {
                return count;
            }
            at = at->sibling;
        }
        count++;
    }
}

static struct bb_tree_node node_of(const struct due *due)
{
    struct bb_region *region = due->region;

    return (struct bb_tree_node){
        .depth = due->depth,
        .region = region,
        .name = region->name,
        .kind = (enum bb_kind)region->kind,
        .device = region->device_name,
        .offset = region->at,
        .first = due->first,
        .size_bytes = bb_region_size(region),
        .priority = region->priority,
        .enabled = region->enabled,
        .read_only = region->read_only,
        .rom_mode = region->rom_mode,
        .target = region->target,
        .target_offset = region->target_offset,
        .doorbells = region->bells == NULL ? 0 : region->bells->doorbell_count,
        .coalesced = region->bells == NULL ? 0 : region->bells->coalesced_count,
    };
}

static void walk_tree(struct due *due, struct bb_region *root,
                      bool (*visit)(void *opaque, const struct bb_tree_node *node), void *opaque)
{
    size_t count = 0;

    due[count++] = (struct due){root, 0, 0};
    while (count > 0) {
        struct due at = due[--count];
        struct bb_tree_node node = node_of(&at);
        size_t from = count;

        if (!visit(opaque, &node)) {
            return;
        }
        for (struct bb_region *child = at.region->child; child != NULL; child = child->sibling) {
            /* Behind a container that was made smaller a child may lie past all addresses. */
            bb_gpa_t first = at.first > UINT64_MAX - child->at ? UINT64_MAX : at.first + child->at;

            due[count++] = (struct due){child, first, at.depth + 1};
        }
        sort(&due[from], count - from);
    }
}

int bb_tree_each(struct bb_ctx *ctx, struct bb_space *space,
                 bool (*visit)(void *opaque, const struct bb_tree_node *node), void *opaque)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;

    if (!bb_ctx_may_block_(ctx)) {
        return BB_E_CONTEXT;
    }
    bb_lock_acquire(ctx, &map->lock);
    size_t bytes = count_tree(space->root) * sizeof(struct due);
    struct due *due = bb_heap_alloc(map->heap, bytes);
    if (due != NULL) {
        walk_tree(due, space->root, visit, opaque);
    }
    bb_lock_release(ctx, &map->lock);
    bb_heap_free(map->heap, due, bytes);
    return due != NULL ? BB_OK : BB_E_NOMEM;
}

/* The flat view. */

void bb_flat_each(struct bb_ctx *ctx, struct bb_space *space,
                  bool (*visit)(void *opaque, const struct bb_range *range), void *opaque)
{
    bb_section_enter_(ctx);
    /* Pairs with the release store of the root in bb_commit_publish_(). */
    const struct bb_root_ *root = bb_deref_(&bb_mem_ctx_(ctx)->map->root);
    uintptr_t tree = root->view[space->index].tree;
    const struct bb_flat_ *leaf = bb_radix_next_(tree, 0);
    while (leaf != NULL) {
        bb_gpa_t last = bb_flat_last_(leaf);
        struct bb_piece_ piece = bb_leaf_piece_(leaf);
        struct bb_range range = bb_piece_range_(space, &piece);

        if (!visit(opaque, &range) || last == UINT64_MAX) {
            break;
        }
        leaf = bb_radix_next_(tree, last + 1);
    }
    bb_section_leave_(ctx);
}

/* What dispatch walks. */

struct nodes {
    bool (*visit)(void *opaque, const struct bb_dispatch_node *node);
    void *opaque;
    struct bb_dispatch_usage usage;
    uintptr_t leaf; /* the one met last: a leaf may stand in many slots, always in a row */
};

/* At most 11 levels deep. */
static void walk_nodes(struct nodes *nodes, uintptr_t word, unsigned depth)
{
    if (word == 0) {
        return;
    }
    if ((word & BB_RADIX_LEAF_BIT_) != 0) {
        nodes->usage.leaves += word != nodes->leaf ? 1 : 0;
        nodes->usage.depth = depth > nodes->usage.depth ? depth : nodes->usage.depth;
        nodes->leaf = word;
        return;
    }
    const struct bb_node_ *node = (const struct bb_node_ *)(word & ~(uintptr_t)63);
    struct bb_dispatch_node shown = {.depth = depth,
                                     .base = node->base,
                                     .shift = (unsigned)(word & 63),
                                     .used = (unsigned)__builtin_popcountll(node->used)};
    nodes->usage.nodes++;
    if (nodes->visit != NULL && !nodes->visit(nodes->opaque, &shown)) {
        nodes->visit = NULL;
    }
    for (uint64_t left = node->used; left != 0; left &= left - 1) {
        walk_nodes(nodes, node->slot[__builtin_ctzll(left)], depth + 1);
    }
}

static size_t usage_bytes(const struct bb_dispatch_usage *usage)
{
    return usage->nodes * sizeof(struct bb_node_) + usage->leaves * sizeof(struct bb_flat_);
}

static size_t region_bytes(const struct bb_region *region)
{
    return sizeof(*region) + (region->bells == NULL ? 0 : region->bells->bytes);
}

/* What the map has of the heap besides the trees of views. */
static size_t bytes_around(struct bb_ctx *ctx, struct bb_map *map)
{
    size_t bytes = bb_rcu_stats(ctx).deferred_bytes;

    bb_lock_acquire(ctx, &map->lock);
    bytes += map->pool.count * sizeof(struct bb_node_);
    for (uint32_t i = 0; i < map->space_count; i++) {
        bytes += sizeof(*map->space[i]) + region_bytes(map->space[i]->root);
    }
    for (const struct bb_region *region = map->all; region != NULL; region = region->all_next) {
        bytes += region_bytes(region);
    }
    bb_lock_release(ctx, &map->lock);
    return bytes;
}

/* Views in a root: it has been made for so many. */
static size_t view_count(const struct bb_root_ *root)
{
    return (root->bytes - sizeof(*root)) / sizeof(root->view[0]);
}

void bb_dispatch_each(struct bb_ctx *ctx, struct bb_space *space,
                      bool (*visit)(void *opaque, const struct bb_dispatch_node *node),
                      void *opaque, struct bb_dispatch_usage *usage)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct nodes nodes = {.visit = visit, .opaque = opaque};
    size_t total = usage == NULL ? 0 : bytes_around(ctx, map);

    bb_section_enter_(ctx);
    /* Pairs with the release store of the root in bb_commit_publish_(). */
    const struct bb_root_ *root = bb_deref_(&map->root);
    walk_nodes(&nodes, root->view[space->index].tree, 0);
    if (usage != NULL) {
        total += root->bytes;
        for (size_t i = 0; i < view_count(root); i++) {
            struct nodes others = {.visit = NULL};

            walk_nodes(&others, root->view[i].tree, 0);
            total += usage_bytes(&others.usage);
        }
    }
    bb_section_leave_(ctx);
    if (usage != NULL) {
        *usage = nodes.usage;
        usage->bytes = usage_bytes(usage);
        usage->bytes_total = total;
    }
}

/* As text. */

enum { LINE_BYTES = 1024, INDENT_MAX = 2 * BB_DEPTH_MAX };

struct print {
    void (*put)(void *opaque, const char *line);
    void *opaque;
    int digits; /* of an address */
    int used;   /* of `line` */
    char line[LINE_BYTES];
};

static BB_PRINTF(2, 3) void add(struct print *print, const char *format, ...)
{
    size_t room = (size_t)(LINE_BYTES - print->used);
    va_list args;

    va_start(args, format);
    int length = vsnprintf(print->line + print->used, room, format, args);
    va_end(args);
    print->used += length < 0 ? 0 : (size_t)length < room ? length : (int)room - 1;
}

static void put(struct print *print)
{
    print->put(print->opaque, print->line);
    print->used = 0;
}

static void add_range(struct print *print, unsigned indent, bb_gpa_t first, uint64_t size_bytes)
{
    uint64_t behind = size_bytes == BB_SIZE_ALL ? UINT64_MAX : size_bytes - 1;
    bb_gpa_t last = behind > UINT64_MAX - first ? UINT64_MAX : first + behind;

    add(print, "%*s%0*" PRIx64 "-%0*" PRIx64 "  ", (int)(indent < INDENT_MAX ? indent : INDENT_MAX),
        "", print->digits, first, print->digits, last);
}

static void add_count(struct print *print, size_t count, const char *one, const char *many)
{
    if (count != 0) {
        add(print, ", %zu %s", count, count == 1 ? one : many);
    }
}

static bool print_region(void *opaque, const struct bb_tree_node *node)
{
    struct print *print = opaque;

    add_range(print, 4 + 2 * node->depth, node->first, node->size_bytes);
    add(print, "%s '%s', priority %d", bb_kind_name(node->kind), node->name, node->priority);
    if (node->kind == BB_KIND_ALIAS) {
        if (node->target == NULL) {
            add(print, ", of nothing any more");
        } else {
            add(print, ", of '%s' + 0x%" PRIx64, bb_region_name(node->target), node->target_offset);
        }
    }
    if (node->device != NULL) {
        add(print, ", device '%s'", node->device);
    }
    add(print, "%s%s%s", node->enabled ? "" : ", disabled", node->read_only ? ", read-only" : "",
        node->rom_mode ? ", ROM mode" : "");
    add_count(print, node->doorbells, "doorbell", "doorbells");
    add_count(print, node->coalesced, "coalesced range", "coalesced ranges");
    put(print);
    return true;
}

static bool print_range(void *opaque, const struct bb_range *range)
{
    struct print *print = opaque;

    add(print, "    %0*" PRIx64 "-%0*" PRIx64 "  %s '%s' + 0x%" PRIx64, print->digits, range->first,
        print->digits, range->last, bb_kind_name(range->kind), bb_region_name(range->region),
        range->offset);
    add(print, "%s%s", range->read_only ? ", read-only" : "",
        range->memory && range->kind != BB_KIND_RAM ? ", read as memory" : "");
    put(print);
    return true;
}

static bool print_node(void *opaque, const struct bb_dispatch_node *node)
{
    struct print *print = opaque;

    add(print, "    %*s%0*" PRIx64 "  64 slots of 2^%u, %u used", (int)(2 * node->depth), "",
        print->digits, node->base, node->shift, node->used);
    put(print);
    return true;
}

static void print_dispatch(struct print *print, struct bb_ctx *ctx, struct bb_space *space)
{
    struct bb_dispatch_usage usage;

    bb_dispatch_each(ctx, space, print_node, print, &usage);
    add(print, "    %zu %s and %zu %s, %u deep: %zu bytes; the whole map: %zu bytes", usage.nodes,
        usage.nodes == 1 ? "node" : "nodes", usage.leaves, usage.leaves == 1 ? "leaf" : "leaves",
        usage.depth, usage.bytes, usage.bytes_total);
    put(print);
}

static int print_space(struct print *print, struct bb_ctx *ctx, struct bb_space *space,
                       unsigned what)
{
    int bits = 64 - __builtin_clzll(space->last);
    int result = BB_OK;

    print->digits = (bits + 3) / 4;
    add(print, "space '%s': %s, %d bits", space->name,
        space->kind == BB_SPACE_PIO ? "ports" : "memory", bits);
    put(print);
    if ((what & BB_PRINT_TREE) != 0) {
        add(print, "  tree:");
        put(print);
        result = bb_tree_each(ctx, space, print_region, print);
    }
    if ((what & BB_PRINT_FLAT) != 0 && result == BB_OK) {
        add(print, "  flat view:");
        put(print);
        bb_flat_each(ctx, space, print_range, print);
    }
    if ((what & BB_PRINT_DISPATCH) != 0 && result == BB_OK) {
        add(print, "  dispatch:");
        put(print);
        print_dispatch(print, ctx, space);
    }
    return result;
}

int bb_map_print(struct bb_ctx *ctx, unsigned what, void (*to)(void *opaque, const char *line),
                 void *opaque)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_space *space[BB_SPACES_MAX];
    struct print print = {.put = to, .opaque = opaque};
    int result = BB_OK;

    if (!bb_ctx_may_block_(ctx)) {
        return BB_E_CONTEXT;
    }
    bb_lock_acquire(ctx, &map->lock);
    uint32_t count = map->space_count;
    for (uint32_t i = 0; i < count; i++) {
        space[i] = map->space[i];
    }
    bb_lock_release(ctx, &map->lock);
    for (uint32_t i = 0; i < count && result == BB_OK; i++) {
        result = print_space(&print, ctx, space[i], what);
    }
    return result;
}
