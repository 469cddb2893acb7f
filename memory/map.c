/* SPDX-License-Identifier: MIT */
/*
 * The map: its address spaces. How its root is replaced is in commit.c.
 */
#include <string.h>

#include "memory_internal.h"

void bb_name_copy_(char out[BB_CTX_NAME_BYTES], const char *name)
{
    size_t length = strnlen(name, BB_CTX_NAME_BYTES - 1);

    memcpy(out, name, length);
    out[length] = '\0';
}

static bool fill_value(const struct bb_fill *fill, uint64_t *value)
{
    switch (fill->kind) {
    case BB_FILL_ONES:
        *value = UINT64_MAX;
        return true;
    case BB_FILL_ZEROS:
        *value = 0;
        return true;
    case BB_FILL_PATTERN:
        *value = fill->pattern;
        return true;
    }
    return false;
}

int bb_space_create(struct bb_ctx *ctx, const struct bb_space_config *config,
                    struct bb_space **space, struct bb_error *err)
{
    if (config == NULL || space == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL,
                            "an address space needs a configuration with a name, and a place");
    }
    if (config->kind != BB_SPACE_MMIO && config->kind != BB_SPACE_PIO) {
        return bb_error_set(err, BB_E_INVAL,
                            "space '%.31s': kind %d is neither BB_SPACE_MMIO nor BB_SPACE_PIO",
                            config->name, (int)config->kind);
    }
    if (config->bits > 64) {
        return bb_error_set(err, BB_E_RANGE, "space '%.31s': %u address bits; 1 to 64 are possible",
                            config->name, config->bits);
    }

    uint64_t decode_fill, device_fill;
    if (!fill_value(&config->decode_error, &decode_fill) ||
        !fill_value(&config->device_error, &device_fill)) {
        return bb_error_set(err, BB_E_INVAL, "space '%.31s': fill %d or %d is no enum bb_fill_kind",
                            config->name, (int)config->decode_error.kind,
                            (int)config->device_error.kind);
    }

    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_space *made = bb_heap_alloc(map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for space '%.31s'", config->name);
    }
    bool pio = config->kind == BB_SPACE_PIO;
    made->kind = (uint8_t)config->kind;
    made->last = bb_mask_low(config->bits != 0 ? config->bits : pio ? 16 : 64);
    made->decode_fill = decode_fill;
    made->device_fill = device_fill;
    bb_name_copy_(made->name, config->name);
    made->root = bb_region_alloc_(ctx, BB_KIND_CONTAINER, made->name, made->last,
                                  &(struct bb_owner_){0}, err);
    if (made->root == NULL) {
        bb_heap_free(map->heap, made, sizeof(*made));
        return BB_E_NOMEM;
    }
    made->root->root_of = made;
    made->root->attached = 1;

    struct bb_commit_ commit;
    int result = bb_commit_begin_(&commit, ctx, 1);
    if (result != BB_OK) {
        bb_error_set(err, result, "no memory for space '%s'", made->name);
        goto free_made;
    }
    if (map->space_count == BB_SPACES_MAX) {
        bb_commit_abandon_(&commit);
        result = bb_error_set(err, BB_E_LIMIT, "space '%s': an engine has at most %d spaces",
                              made->name, BB_SPACES_MAX);
        goto free_made;
    }
    made->index = map->space_count++;
    made->view_offset =
        (uint32_t)(offsetof(struct bb_root_, view) + made->index * sizeof(struct bb_view_));
    made->hit_offset = (uint32_t)(offsetof(struct bb_mem_ctx_, hits) +
                                  made->index % BB_HIT_SPACES_ * sizeof(struct bb_hits_));
    map->space[made->index] = made;
    commit.changed = BB_BIT64(made->index);
    bb_commit_publish_(&commit);
    *space = made;
    return BB_OK;

free_made:
    bb_region_free_(map->heap, made->root);
    bb_heap_free(map->heap, made, sizeof(*made));
    return result;
}

const char *bb_space_name(const struct bb_space *space)
{
    return space->name;
}

struct bb_region *bb_space_root(const struct bb_space *space)
{
    return space->root;
}

void bb_space_each(struct bb_ctx *ctx, struct bb_space *space,
                   bool (*visit)(void *opaque, bb_gpa_t first, bb_gpa_t last,
                                 const struct bb_region *region),
                   void *opaque)
{
    bb_section_enter_(ctx);
    /* Pairs with the release store of the root in bb_commit_publish_(). */
    const struct bb_root_ *root = bb_deref_(&bb_mem_ctx_(ctx)->map->root);
    uintptr_t tree = root->view[space->index].tree;
    const struct bb_flat_ *leaf = bb_radix_next_(tree, 0);
    while (leaf != NULL) {
        bb_gpa_t last = bb_flat_last_(leaf);
        if (!visit(opaque, leaf->first, last, leaf->region) || last == UINT64_MAX) {
            break;
        }
        leaf = bb_radix_next_(tree, last + 1);
    }
    bb_section_leave_(ctx);
}

int bb_map_create_(struct bb_rcu *rcu, struct bb_heap *heap, struct bb_map **map,
                   struct bb_error *err)
{
    struct bb_map *made = bb_heap_alloc(heap, sizeof(*made));
    int result = BB_E_NOMEM;

    if (made == NULL) {
        return bb_error_set(err, result, "no memory for the map");
    }
    made->rcu = rcu;
    made->heap = heap;
    made->root = bb_root_alloc_(heap, 0);
    if (made->root == NULL || bb_scratch_create_(made) != BB_OK) {
        bb_error_set(err, result, "no memory for the map's root");
        goto free_parts;
    }
    if (bb_lock_init_(&made->lock, "map", BB_RANK_MAP) != BB_OK) {
        result = bb_error_set(err, BB_E_SYSTEM, "the map's lock can't be made");
        goto free_parts;
    }
    result = bb_listeners_create_(made);
    if (result != BB_OK) {
        bb_error_set(err, result, "the map's list of listeners can't be made");
        goto fini_lock;
    }
    result = bb_dirty_create_(made);
    if (result != BB_OK) {
        bb_error_set(err, result, "the map's list of dirty logs can't be made");
        goto free_listeners;
    }
    *map = made;
    return BB_OK;

free_listeners:
    bb_listeners_destroy_(made);
fini_lock:
    bb_lock_fini_(&made->lock);
free_parts:
    bb_scratch_destroy_(made);
    bb_heap_free(heap, made->root, made->root != NULL ? made->root->bytes : 0);
    bb_heap_free(heap, made, sizeof(*made));
    return result;
}

void bb_map_destroy_(struct bb_map *map)
{
    bb_dirty_destroy_(map);
    bb_listeners_destroy_(map);
    for (uint32_t i = 0; i < map->space_count; i++) {
        bb_region_free_(map->heap, map->space[i]->root);
        bb_heap_free(map->heap, map->space[i], sizeof(*map->space[i]));
    }
    bb_heap_free(map->heap, map->count_free, map->count_free_room * sizeof(map->count_free[0]));
    bb_scratch_destroy_(map);
    bb_pool_empty_(&map->pool, map->heap);
    bb_heap_free(map->heap, map->root, map->root->bytes);
    bb_lock_fini_(&map->lock);
    bb_heap_free(map->heap, map, sizeof(*map));
}
