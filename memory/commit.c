/* SPDX-License-Identifier: MIT */
/*
 * Commits: from changes of the tree of regions to a new published root.
 *
 * A commit works on a copy of the root that no one else sees. What its changes may have made stale
 * is noted by range; in the end those ranges are rendered, what came out is compared with what the
 * trees hold, and where it differs the trees are edited. Publishing is one store; what it replaced
 * is handed to rcu/ in one piece, hung on the root that it replaced, so that a commit of any size
 * defers one object with an honest byte count.
 *
 * Invariants:
 *  1. The published root is replaced only under the map's lock.
 *  2. A root's views and all they lead to stay as they were published (the lists that hang on a
 *     root, and the `next` of nodes and leaves, are the writer's: no reader looks at them).
 *  3. A root is freed after a grace period that began after its successor was published.
 *  4. A view is canonical: leaves that continue each other (the same region, on from the same byte,
 *     shown the same way) are one leaf. Hence a view is a function of its tree of regions, whatever
 * the history, and a listener's ranges are as few as they can be. Kept by refresh(), which widens a
 *     stale range to the leaves that touch it.
 */
#include <string.h>

#include "memory_internal.h"

enum { SCRATCH_PIECES_MAX = 1 << 14 };

/* What a commit needs room for; kept for the next one, unless it has grown large. */
struct bb_scratch_ {
    struct bb_stale_ *stale;
    size_t stale_count;
    size_t stale_room;
    struct bb_pieces_ rendered;
    struct bb_pieces_ now; /* the rendered, and what touches it, joined */
    struct bb_pieces_ old;
    struct bb_delta_
        delta[BB_SPACES_MAX]; /* of the spaces that changed, those before delta_count */
    size_t delta_count;
};

static size_t root_bytes(uint32_t space_count)
{
    return sizeof(struct bb_root_) + space_count * sizeof(struct bb_view_);
}

struct bb_root_ *bb_root_alloc_(struct bb_heap *heap, uint32_t space_count)
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
    bb_bells_free_(root->heap, root->dead_bells);
    bb_heap_free(root->heap, root, root->bytes);
}

/* Stale ranges. */

static bool stale_before(const struct bb_stale_ *a, const struct bb_stale_ *b)
{
    return a->space != b->space ? a->space < b->space : a->first < b->first;
}

static void stale_sift(struct bb_stale_ *stale, size_t root, size_t count)
{
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count) {
            return;
        }
        if (child + 1 < count && stale_before(&stale[child], &stale[child + 1])) {
            child++;
        }
        if (!stale_before(&stale[root], &stale[child])) {
            return;
        }
        struct bb_stale_ held = stale[root];
        stale[root] = stale[child];
        stale[child] = held;
        root = child;
    }
}

/* By space and first address; in place. Most come in order: then it costs one look at each. */
static void stale_sort(struct bb_stale_ *stale, size_t count)
{
    size_t sorted = 1;

    while (sorted < count && !stale_before(&stale[sorted], &stale[sorted - 1])) {
        sorted++;
    }
    if (sorted >= count) {
        return;
    }
    for (size_t i = count / 2; i > 0; i--) {
        stale_sift(stale, i - 1, count);
    }
    for (size_t left = count; left > 1; left--) {
        struct bb_stale_ held = stale[0];
        stale[0] = stale[left - 1];
        stale[left - 1] = held;
        stale_sift(stale, 0, left - 1);
    }
}

static int stale_add(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last)
{
    struct bb_map *map = opaque;
    struct bb_scratch_ *scratch = map->scratch;

    if (scratch->stale_count == scratch->stale_room) {
        size_t room = scratch->stale_room == 0 ? 16 : 2 * scratch->stale_room;
        struct bb_stale_ *stale = bb_heap_alloc(map->heap, room * sizeof(stale[0]));
        if (stale == NULL) {
            return BB_E_NOMEM;
        }
        if (scratch->stale_count != 0) {
            memcpy(stale, scratch->stale, scratch->stale_count * sizeof(stale[0]));
        }
        bb_heap_free(map->heap, scratch->stale, scratch->stale_room * sizeof(stale[0]));
        scratch->stale = stale;
        scratch->stale_room = room;
    }
    scratch->stale[scratch->stale_count++] =
        (struct bb_stale_){.space = space->index, .first = first, .last = last};
    return BB_OK;
}

int bb_commit_stale_(struct bb_commit_ *commit, struct bb_region *region, uint64_t first,
                     uint64_t last)
{
    struct bb_map *map = commit->map;
    int result = commit->whole ? BB_OK : bb_instances_(region, first, last, stale_add, map);

    if (result != BB_E_LIMIT || !commit->removal) {
        return result;
    }
    /* Too many to look for. What is shown has been rendered before, so all of it can be again. */
    commit->whole = true;
    map->scratch->stale_count = 0;
    for (uint32_t i = 0; i < map->space_count; i++) {
        result = stale_add(map, map->space[i], 0, map->space[i]->last);
        if (result != BB_OK) {
            return result;
        }
    }
    return BB_OK;
}

static void scratch_trim(struct bb_scratch_ *scratch, struct bb_heap *heap)
{
    struct bb_pieces_ *pieces[] = {&scratch->rendered, &scratch->now, &scratch->old};

    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        if (pieces[i]->room > SCRATCH_PIECES_MAX) {
            bb_pieces_free_(heap, pieces[i]);
        }
    }
    for (size_t i = 0; i < scratch->delta_count; i++) {
        struct bb_delta_ *delta = &scratch->delta[i];
        delta->removed.count = 0;
        delta->added.count = 0;
        if (delta->removed.room + delta->added.room > SCRATCH_PIECES_MAX) {
            bb_pieces_free_(heap, &delta->removed);
            bb_pieces_free_(heap, &delta->added);
        }
    }
    if (scratch->stale_room > SCRATCH_PIECES_MAX) {
        bb_heap_free(heap, scratch->stale, scratch->stale_room * sizeof(scratch->stale[0]));
        scratch->stale = NULL;
        scratch->stale_room = 0;
    }
    scratch->stale_count = 0;
    scratch->delta_count = 0;
}

int bb_scratch_create_(struct bb_map *map)
{
    map->scratch = bb_heap_alloc(map->heap, sizeof(*map->scratch));
    return map->scratch != NULL ? BB_OK : BB_E_NOMEM;
}

void bb_scratch_empty_(struct bb_map *map)
{
    struct bb_scratch_ *scratch = map->scratch;
    struct bb_heap *heap = map->heap;

    bb_heap_free(heap, scratch->stale, scratch->stale_room * sizeof(scratch->stale[0]));
    bb_pieces_free_(heap, &scratch->rendered);
    bb_pieces_free_(heap, &scratch->now);
    bb_pieces_free_(heap, &scratch->old);
    for (size_t i = 0; i < BB_SPACES_MAX; i++) {
        bb_pieces_free_(heap, &scratch->delta[i].removed);
        bb_pieces_free_(heap, &scratch->delta[i].added);
    }
    memset(scratch, 0, sizeof(*scratch));
}

void bb_scratch_destroy_(struct bb_map *map)
{
    if (map->scratch != NULL) {
        bb_scratch_empty_(map);
        bb_heap_free(map->heap, map->scratch, sizeof(*map->scratch));
    }
}

/* From stale ranges to edits. */

/* True where two pieces show a region the same way. */
static bool alike(const struct bb_piece_ *a, const struct bb_piece_ *b)
{
    return a->region == b->region && a->bells == b->bells && a->read_only == b->read_only &&
           a->memory == b->memory && a->drains == b->drains;
}

static bool same(const struct bb_piece_ *a, const struct bb_piece_ *b)
{
    return a->first == b->first && a->last == b->last && a->offset == b->offset && alike(a, b);
}

/* Appends a piece; one that continues the last piece makes it longer. */
static int append(struct bb_heap *heap, struct bb_pieces_ *pieces, const struct bb_piece_ *piece)
{
    if (pieces->count > 0) {
        struct bb_piece_ *before = &pieces->piece[pieces->count - 1];
        if (before->last + 1 == piece->first && alike(before, piece) &&
            before->offset + (piece->first - before->first) == piece->offset) {
            before->last = piece->last;
            return BB_OK;
        }
    }
    int result = bb_pieces_reserve_(heap, pieces, 1);
    if (result == BB_OK) {
        pieces->piece[pieces->count++] = *piece;
    }
    return result;
}

static const struct bb_flat_ *leaf_at(uintptr_t tree, bb_gpa_t gpa)
{
    const struct bb_flat_ *leaf = bb_radix_next_(tree, gpa);

    return leaf != NULL && leaf->first <= gpa ? leaf : NULL;
}

/*
 * Renders [first, last] into scratch->now, with what touches it on either side, and what the tree
 * has in the same range into scratch->old.
 */
static int render_range(struct bb_commit_ *commit, const struct bb_space *space, bb_gpa_t first,
                        bb_gpa_t last)
{
    struct bb_heap *heap = commit->map->heap;
    struct bb_scratch_ *scratch = commit->map->scratch;
    uintptr_t tree = commit->root->view[space->index].tree;
    const struct bb_flat_ *left = first > 0 ? leaf_at(tree, first - 1) : NULL;
    const struct bb_flat_ *right = last < UINT64_MAX ? leaf_at(tree, last + 1) : NULL;
    bb_gpa_t from = left != NULL ? left->first : first;
    bb_gpa_t to = right != NULL ? bb_flat_last_(right) : last;
    int result = BB_OK;

    scratch->rendered.count = 0;
    scratch->now.count = 0;
    scratch->old.count = 0;
    if (left != NULL) {
        struct bb_piece_ piece = bb_leaf_piece_(left);
        piece.last = first - 1;
        result = append(heap, &scratch->now, &piece);
    }
    if (result == BB_OK) {
        result = bb_render_(heap, space->root, first, last, !commit->removal, &scratch->rendered);
    }
    for (size_t i = 0; i < scratch->rendered.count && result == BB_OK; i++) {
        result = append(heap, &scratch->now, &scratch->rendered.piece[i]);
    }
    if (result == BB_OK && right != NULL) {
        struct bb_piece_ piece = bb_leaf_piece_(right);
        if (piece.first <= last) {
            piece.offset += last + 1 - piece.first;
            piece.first = last + 1;
        }
        result = append(heap, &scratch->now, &piece);
    }
    for (bb_gpa_t at = from; result == BB_OK;) {
        const struct bb_flat_ *leaf = bb_radix_next_(tree, at);
        if (leaf == NULL || leaf->first > to) {
            break;
        }
        struct bb_piece_ piece = bb_leaf_piece_(leaf);
        result = bb_pieces_reserve_(heap, &scratch->old, 1);
        if (result == BB_OK) {
            scratch->old.piece[scratch->old.count++] = piece;
        }
        if (piece.last >= to) {
            break;
        }
        at = piece.last + 1;
    }
    return result;
}

static int remove_piece(struct bb_commit_ *commit, struct bb_delta_ *delta,
                        const struct bb_piece_ *piece)
{
    struct bb_heap *heap = commit->map->heap;
    uint32_t index = delta->space->index;

    /* One that this commit made itself, for the stale range before: only that range's last can
     * touch this one. */
    if (delta->added.count > 0 && same(&delta->added.piece[delta->added.count - 1], piece)) {
        delta->added.count--;
    } else {
        int result = bb_pieces_reserve_(heap, &delta->removed, 1);
        if (result != BB_OK) {
            return result;
        }
        delta->removed.piece[delta->removed.count++] = *piece;
    }
    return bb_radix_set_(&commit->edit, &commit->root->view[index].tree, piece->first, piece->last,
                         NULL);
}

static int add_piece(struct bb_commit_ *commit, struct bb_delta_ *delta,
                     const struct bb_piece_ *piece)
{
    int result = bb_pieces_reserve_(commit->map->heap, &delta->added, 1);

    if (result != BB_OK) {
        return result;
    }
    delta->added.piece[delta->added.count++] = *piece;
    return bb_radix_set_(&commit->edit, &commit->root->view[delta->space->index].tree, piece->first,
                         piece->last, piece);
}

/* Brings [first, last] of a space's tree up to date. */
static int refresh(struct bb_commit_ *commit, struct bb_delta_ *delta, bb_gpa_t first,
                   bb_gpa_t last)
{
    const struct bb_scratch_ *scratch = commit->map->scratch;
    const struct bb_pieces_ *old = &scratch->old, *now = &scratch->now;
    int result = render_range(commit, delta->space, first, last);
    bool differs = false;

    /* Both lists rise, and a piece that stays begins where it began: one pass pairs them. */
    for (size_t i = 0, j = 0; i < old->count && result == BB_OK; i++) {
        while (j < now->count && now->piece[j].first < old->piece[i].first) {
            j++;
        }
        if (j == now->count || !same(&old->piece[i], &now->piece[j])) {
            result = remove_piece(commit, delta, &old->piece[i]);
            differs = true;
        }
    }
    for (size_t i = 0, j = 0; j < now->count && result == BB_OK; j++) {
        while (i < old->count && old->piece[i].first < now->piece[j].first) {
            i++;
        }
        if (i == old->count || !same(&old->piece[i], &now->piece[j])) {
            result = add_piece(commit, delta, &now->piece[j]);
            differs = true;
        }
    }
    if (differs) {
        commit->changed |= BB_BIT64(delta->space->index);
    }
    return result;
}

int bb_commit_ready_(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;
    struct bb_scratch_ *scratch = map->scratch;
    int result = BB_OK;

    stale_sort(scratch->stale, scratch->stale_count);
    for (size_t i = 0; i < scratch->stale_count && result == BB_OK;) {
        struct bb_stale_ range = scratch->stale[i++];
        while (
            i < scratch->stale_count && scratch->stale[i].space == range.space &&
            (scratch->stale[i].first <= range.last || scratch->stale[i].first - 1 == range.last)) {
            if (scratch->stale[i].last > range.last) {
                range.last = scratch->stale[i].last;
            }
            i++;
        }
        struct bb_delta_ *delta = &scratch->delta[scratch->delta_count];
        struct bb_space *space = map->space[range.space];
        if (scratch->delta_count > 0 && delta[-1].space == space) {
            delta--;
        } else {
            delta->space = space;
            delta->removed.count = 0;
            delta->added.count = 0;
            scratch->delta_count++;
        }
        result = refresh(commit, delta, range.first, range.last);
    }
    if (result == BB_OK && commit->changed != 0) {
        result = bb_listeners_prepare_(commit->ctx, map, commit->root, scratch->delta,
                                       scratch->delta_count, &commit->told);
    }
    return result;
}

int bb_commit_begin_(struct bb_commit_ *commit, struct bb_ctx *ctx, uint32_t extra_spaces)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;

    memset(commit, 0, sizeof(*commit));
    commit->ctx = ctx;
    commit->map = map;
    commit->telling = bb_listeners_may_tell_(ctx);
    if (commit->telling) {
        bb_listeners_lock_(ctx, map);
    }
    bb_lock_acquire(ctx, &map->lock);
    commit->root = bb_root_alloc_(map->heap, map->space_count + extra_spaces);
    if (commit->root == NULL) {
        bb_lock_release(ctx, &map->lock);
        if (commit->telling) {
            bb_listeners_unlock_(ctx, map);
        }
        return BB_E_NOMEM;
    }
    commit->edit.heap = map->heap;
    commit->edit.pool = &map->pool;
    commit->edit.txn = ++map->txn;
    /* Relaxed: the root is replaced only under the lock, which is held. */
    const struct bb_root_ *now = bb_load_relaxed(&map->root);
    memcpy(commit->root->view, now->view, map->space_count * sizeof(now->view[0]));
    return BB_OK;
}

static void commit_end(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;

    scratch_trim(map->scratch, map->heap);
    bb_lock_release(commit->ctx, &map->lock);
    if (commit->telling) {
        bb_listeners_unlock_(commit->ctx, map);
    }
}

void bb_commit_publish_(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;
    struct bb_root_ *root = commit->root;

    if (commit->changed == 0 && commit->edit.dead_bells == NULL) {
        bb_heap_free(map->heap, root, root->bytes); /* the published root says it all */
        commit_end(commit);
        return;
    }
    if (commit->told != NULL) {
        bb_listeners_before_(commit->ctx, commit->told);
    }
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
    old->dead_bells = commit->edit.dead_bells;
    size_t bytes = old->bytes + commit->edit.dead_bytes;
    /*
     * Release: the views, nodes and leaves written above are seen by whoever loads this root with
     * acquire, in bb_map_find_inside_() and bb_space_each().
     */
    bb_publish_(&map->root, root);
    if (commit->told != NULL) {
        bb_listeners_after_(commit->ctx, commit->told);
    }
    commit_end(commit);

    bb_rcu_defer_(map->rcu, &old->head, root_free, bytes);
    bb_rcu_throttle_(commit->ctx);
}

void bb_commit_abandon_(struct bb_commit_ *commit)
{
    struct bb_map *map = commit->map;

    if (commit->told != NULL) {
        bb_listeners_drop_(commit->ctx, commit->told);
    }
    for (uint32_t i = 0; i < map->space_count; i++) {
        bb_radix_undo_(&commit->edit, commit->root->view[i].tree);
    }
    bb_heap_free(map->heap, commit->root, commit->root->bytes);
    commit_end(commit);
}
