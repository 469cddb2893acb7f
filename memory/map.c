/* SPDX-License-Identifier: MIT */
/*
 * The map: its address spaces, its one published root, and commits.
 *
 * A commit works on a copy of the root that no one else sees. Publishing is one store; what it
 * replaced is handed to rcu/ in one piece, hung on the root that it replaced, so that a commit of
 * any size defers one object with an honest byte count.
 *
 * Invariants:
 *  1. The published root is replaced only under the map's lock.
 *  2. A root's views and all they lead to stay as they were published (the lists that hang on a
 *     root, and the `next` of nodes and leaves, are the writer's: no reader looks at them).
 *  3. A root is freed after a grace period that began after its successor was published.
 */
#include <string.h>

#include "memory_internal.h"

static size_t root_bytes(uint32_t space_count)
{
    return sizeof(struct bb_root_) + space_count * sizeof(struct bb_view_);
}

static struct bb_root_ *root_alloc(struct bb_heap *heap, uint32_t space_count)
{
    size_t bytes = root_bytes(space_count);
    struct bb_root_ *root = bb_heap_alloc_aligned(heap, bytes, BB_CACHE_LINE_BYTES);

    if (root != NULL) {
        root->bytes = bytes;
        root->heap = heap;
    }
    return root;
}

/* Runs on bb-reclaim, after the root's grace period. */
static void root_free(struct bb_rcu_head *head)
{
    struct bb_root_ *root = BB_CONTAINER_OF(head, struct bb_root_, head);

    bb_radix_free_dead_(root->heap, root->dead_nodes, root->dead_leaves);
    bb_heap_free(root->heap, root, root->bytes);
}

void bb_name_copy_(char out[BB_CTX_NAME_BYTES], const char *name)
{
    size_t length = strnlen(name, BB_CTX_NAME_BYTES - 1);

    memcpy(out, name, length);
    out[length] = '\0';
}

int bb_commit_begin_(struct bb_commit_ *commit, struct bb_ctx *ctx, uint32_t extra_spaces)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;

    bb_lock_acquire(ctx, &map->lock);
    memset(commit, 0, sizeof(*commit));
    commit->root = root_alloc(map->heap, map->space_count + extra_spaces);
    if (commit->root == NULL) {
        bb_lock_release(ctx, &map->lock);
        return BB_E_NOMEM;
    }
    commit->ctx = ctx;
    commit->map = map;
    commit->edit.heap = map->heap;
    commit->edit.pool = &map->pool;
    commit->edit.txn = ++map->txn;
    /* Relaxed: the root is replaced only under the lock, which is held. */
    const struct bb_root_ *now = bb_load_relaxed(&map->root);
    memcpy(commit->root->view, now->view, map->space_count * sizeof(now->view[0]));
    return BB_OK;
}

void bb_commit_publish_(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;
    struct bb_root_ *root = commit->root;

    for (uint64_t left = commit->changed; left != 0; left &= left - 1) {
        unsigned index = (unsigned)__builtin_ctzll(left);

        root->view[index].generation = ++map->generation;
        /* The announcement. Release, pairs with bb_map_find_inside_(): whoever has the new root has
         * seen this, since the root's release comes after it, and so has whoever is told by them.
         */
        bb_store_release(&map->space[index]->generation, map->generation);
    }
    /* Relaxed: as in bb_commit_begin_(). */
    struct bb_root_ *old = bb_load_relaxed(&map->root);
    old->dead_nodes = commit->edit.dead_nodes;
    old->dead_leaves = commit->edit.dead_leaves;
    size_t bytes = old->bytes + commit->edit.dead_bytes;
    /*
     * Release: the views, nodes and leaves written above are seen by whoever loads this root with
     * acquire, in bb_map_find_inside_() and bb_space_each().
     */
    bb_publish_(&map->root, root);
    bb_lock_release(commit->ctx, &map->lock);

    bb_rcu_defer_(map->rcu, &old->head, root_free, bytes);
    bb_rcu_throttle_(commit->ctx);
}

void bb_commit_abandon_(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;

    for (uint32_t i = 0; i < map->space_count; i++) {
        bb_radix_undo_(&commit->edit, commit->root->view[i].tree);
    }
    bb_heap_free(map->heap, commit->root, commit->root->bytes);
    bb_lock_release(commit->ctx, &map->lock);
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

    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_space *made = bb_heap_alloc(map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for space '%.31s'", config->name);
    }
    bool pio = config->kind == BB_SPACE_PIO;
    made->kind = (uint8_t)config->kind;
    made->last = bb_mask_low(config->bits != 0 ? config->bits : pio ? 16 : 64);
    made->unassigned = config->unassigned_reads_zero ? 0 : UINT64_MAX;
    bb_name_copy_(made->name, config->name);

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
    bb_heap_free(map->heap, made, sizeof(*made));
    return result;
}

const char *bb_space_name(const struct bb_space *space)
{
    return space->name;
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

    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for the map");
    }
    made->root = root_alloc(heap, 0);
    if (made->root == NULL) {
        bb_heap_free(heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_NOMEM, "no memory for the map's root");
    }
    if (bb_lock_init_(&made->lock, "map", BB_RANK_MAP) != BB_OK) {
        bb_heap_free(heap, made->root, made->root->bytes);
        bb_heap_free(heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_SYSTEM, "the map's lock can't be made");
    }
    made->rcu = rcu;
    made->heap = heap;
    *map = made;
    return BB_OK;
}

void bb_map_destroy_(struct bb_map *map)
{
    for (uint32_t i = 0; i < map->space_count; i++) {
        bb_heap_free(map->heap, map->space[i], sizeof(*map->space[i]));
    }
    bb_pool_empty_(&map->pool, map->heap);
    bb_heap_free(map->heap, map->root, map->root->bytes);
    bb_lock_fini_(&map->lock);
    bb_heap_free(map->heap, map, sizeof(*map));
}
