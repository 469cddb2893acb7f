/* SPDX-License-Identifier: MIT */
/*
 * The path-copied radix tree behind a view: see memory_core.h for its words.
 *
 * The tree is a function of what it holds. A slot (and likewise the tree itself) stands for a
 * block of addresses, and its word says what the leaves that meet the block look like:
 *  1. no leaf: 0;
 *  2. one leaf: that leaf, however little of the block it covers, since a reader checks the leaf's
 *     bounds in the end;
 *  3. several: a node, at the lowest shift at which they still differ in a slot's six bits.
 * Hence a node always has two slots that differ, is never deeper than the leaves make it, and the
 * number of nodes is bounded by the number of leaves and their levels, whatever the history.
 *
 * An edit never writes a node or a leaf that another commit made: it copies a node once, changes
 * the copy, and lists the original as replaced. What it made itself it changes in place, and gives
 * back at once when it no longer needs it, since no reader can have seen it.
 *
 * Putting in or taking out one leaf can't fail: the nodes it may need are in the pool before it
 * begins. So there is no state in the middle of a change to be undone, only whole edits.
 */
#include <assert.h>
#include <string.h>

#include "memory_internal.h"

static bool is_leaf(uintptr_t word)
{
    return (word & 63) == BB_RADIX_LEAF_TAG_;
}

static struct bb_flat_ *leaf_of(uintptr_t word)
{
    return (struct bb_flat_ *)(word & ~(uintptr_t)63);
}

static struct bb_node_ *node_of(uintptr_t word)
{
    return (struct bb_node_ *)(word & ~(uintptr_t)63);
}

static unsigned shift_of(uintptr_t word)
{
    return (unsigned)(word & 63);
}

static unsigned slot_of(bb_gpa_t gpa, unsigned shift)
{
    return (unsigned)(gpa >> shift) & (BB_RADIX_SLOTS_ - 1);
}

static bb_gpa_t gpa_max(bb_gpa_t a, bb_gpa_t b)
{
    return a > b ? a : b;
}

static bb_gpa_t gpa_min(bb_gpa_t a, bb_gpa_t b)
{
    return a < b ? a : b;
}

/* Pool. */

static void pool_put(struct bb_node_pool_ *pool, struct bb_heap *heap, struct bb_node_ *node)
{
    if (pool->count >= BB_RADIX_RESERVE_) {
        bb_heap_free(heap, node, sizeof(*node));
        return;
    }
    node->next = pool->first;
    pool->first = node;
    pool->count++;
}

static struct bb_node_ *pool_take(struct bb_node_pool_ *pool)
{
    struct bb_node_ *node = pool->first;

    assert(node != NULL);
    pool->first = node->next;
    pool->count--;
    return node;
}

int bb_pool_fill_(struct bb_node_pool_ *pool, struct bb_heap *heap)
{
    while (pool->count < BB_RADIX_RESERVE_) {
        struct bb_node_ *node =
            bb_heap_alloc_aligned(heap, sizeof(struct bb_node_), BB_CACHE_LINE_BYTES);
        if (node == NULL) {
            return BB_E_NOMEM;
        }
        pool_put(pool, heap, node);
    }
    return BB_OK;
}

void bb_pool_empty_(struct bb_node_pool_ *pool, struct bb_heap *heap)
{
    while (pool->first != NULL) {
        bb_heap_free(heap, pool_take(pool), sizeof(struct bb_node_));
    }
}

/* Nodes and leaves of an edit. */

static struct bb_node_ *node_make(struct bb_edit_ *edit, bb_gpa_t base)
{
    struct bb_node_ *node = pool_take(edit->pool);

    memset(node, 0, sizeof(*node));
    node->base = base;
    node->txn = edit->txn;
    return node;
}

/* The node itself where this edit made it, else a copy, the original listed as replaced. */
static struct bb_node_ *node_own(struct bb_edit_ *edit, struct bb_node_ *node)
{
    if (node->txn == edit->txn) {
        return node;
    }
    struct bb_node_ *copy = pool_take(edit->pool);
    memcpy(copy, node, sizeof(*copy));
    copy->txn = edit->txn;
    node->next = edit->dead_nodes;
    edit->dead_nodes = node;
    edit->dead_bytes += sizeof(*node);
    return copy;
}

static void node_set(struct bb_node_ *node, unsigned slot, uintptr_t word)
{
    node->slot[slot] = word;
    if (word != 0) {
        node->used |= BB_BIT64(slot);
    } else {
        node->used &= ~BB_BIT64(slot);
    }
}

/* Gives up a leaf that is no longer in the tree. */
static void leaf_drop(struct bb_edit_ *edit, struct bb_flat_ *leaf)
{
    if (leaf->txn == edit->txn) {
        bb_heap_free(edit->heap, leaf, sizeof(*leaf));
        return;
    }
    leaf->next = edit->dead_leaves;
    edit->dead_leaves = leaf;
    edit->dead_bytes += sizeof(*leaf);
}

/* Shift of the lowest level at which two different addresses lie in different slots. */
static unsigned split_shift(bb_gpa_t a, bb_gpa_t b)
{
    unsigned bit = 63u - (unsigned)__builtin_clzll(a ^ b);

    return bit / BB_RADIX_BITS_ * BB_RADIX_BITS_;
}

/*
 * The word for block [first, last] after `leaf`, which covers [lo, hi] of it, has joined what
 * `word` holds. No address of [lo, hi] is covered yet.
 */
static uintptr_t put(struct bb_edit_ *edit, uintptr_t word, bb_gpa_t first, bb_gpa_t last,
                     uintptr_t leaf, bb_gpa_t lo, bb_gpa_t hi)
{
    if (word == 0) {
        return leaf;
    }

    bb_gpa_t old_lo, old_hi; /* where in the block `word` has something */
    if (is_leaf(word)) {
        old_lo = gpa_max(leaf_of(word)->first, first);
        old_hi = gpa_min(bb_flat_last_(leaf_of(word)), last);
    } else {
        old_lo = node_of(word)->base;
        old_hi = old_lo + bb_mask_low(shift_of(word) + BB_RADIX_BITS_);
    }

    unsigned shift = split_shift(gpa_min(lo, old_lo), gpa_max(hi, old_hi));
    struct bb_node_ *node;
    if (!is_leaf(word) && shift == shift_of(word)) {
        node = node_own(edit, node_of(word));
    } else {
        node = node_make(edit, lo & ~bb_mask_low(shift + BB_RADIX_BITS_));
        for (unsigned i = slot_of(old_lo, shift); i <= slot_of(old_hi, shift); i++) {
            node_set(node, i, word);
        }
    }
    unsigned from = slot_of(lo, shift), to = slot_of(hi, shift);
    for (unsigned i = from; i <= to; i++) {
        if (i != from && i != to) {
            node_set(node, i, leaf); /* covered whole, so nothing else is there */
            continue;
        }
        bb_gpa_t slot_first = node->base + ((bb_gpa_t)i << shift);
        bb_gpa_t slot_last = slot_first + bb_mask_low(shift);
        node_set(node, i,
                 put(edit, node->slot[i], slot_first, slot_last, leaf, gpa_max(lo, slot_first),
                     gpa_min(hi, slot_last)));
    }
    return (uintptr_t)node | shift;
}

/* The simplest word for what `node`, made by this edit, holds. */
static uintptr_t simplify(struct bb_edit_ *edit, struct bb_node_ *node, unsigned shift)
{
    uintptr_t word = node->used == 0 ? 0 : node->slot[__builtin_ctzll(node->used)];

    if ((node->used & (node->used - 1)) != 0) {
        if (!is_leaf(word)) {
            return (uintptr_t)node | shift;
        }
        for (uint64_t left = node->used; left != 0; left &= left - 1) {
            if (node->slot[__builtin_ctzll(left)] != word) {
                return (uintptr_t)node | shift;
            }
        }
    }
    pool_put(edit->pool, edit->heap, node);
    return word;
}

/* The word for a block after `leaf`, which covers [lo, hi] of it, has left what `word` holds. */
static uintptr_t take(struct bb_edit_ *edit, uintptr_t word, uintptr_t leaf, bb_gpa_t lo,
                      bb_gpa_t hi)
{
    if (word == leaf) {
        return 0;
    }
    assert(word != 0 && !is_leaf(word));

    unsigned shift = shift_of(word);
    struct bb_node_ *node = node_own(edit, node_of(word));
    unsigned from = slot_of(lo, shift), to = slot_of(hi, shift);
    for (unsigned i = from; i <= to; i++) {
        if (i != from && i != to) {
            node_set(node, i, 0); /* covered whole, so nothing else is there */
            continue;
        }
        bb_gpa_t slot_first = node->base + ((bb_gpa_t)i << shift);
        bb_gpa_t slot_last = slot_first + bb_mask_low(shift);
        node_set(node, i,
                 take(edit, node->slot[i], leaf, gpa_max(lo, slot_first), gpa_min(hi, slot_last)));
    }
    return simplify(edit, node, shift);
}

/*
 * See struct bb_flat_. An access that begins in the range at a multiple of its size reaches over
 * the range's end only where that end is no such multiple.
 */
static uint32_t fast_sizes(const struct bb_piece_ *piece, uint8_t sizes)
{
    uint64_t end = piece->offset + (piece->last - piece->first) + 1;

    /* The sizes are powers of two: keep those up to the lowest bit set in `end`. */
    return piece->region->klass == BB_CLASS_LOCKFREE && !piece->drains
               ? (uint32_t)(sizes & ((end & -end) * 2 - 1))
               : 0;
}

static int add_leaf(struct bb_edit_ *edit, uintptr_t *tree, const struct bb_piece_ *piece)
{
    const struct bb_region *region = piece->region;

    if (bb_pool_fill_(edit->pool, edit->heap) != BB_OK) {
        return BB_E_NOMEM;
    }
    struct bb_flat_ *leaf =
        bb_heap_alloc_aligned(edit->heap, sizeof(struct bb_flat_), BB_CACHE_LINE_BYTES);
    if (leaf == NULL) {
        return BB_E_NOMEM;
    }
    *leaf = (struct bb_flat_){
        .first = piece->first,
        .last_offset = piece->last - piece->first,
        .region_offset = piece->offset,
        .read = region->read,
        .opaque = region->opaque,
        .owner = region->owner,
        .frame = region->frame,
        .read_sizes = piece->memory ? 0 : fast_sizes(piece, region->read_sizes),
        .write_sizes = piece->bells != NULL ? 0 : fast_sizes(piece, region->write_sizes),
        .region = piece->region,
        .write = region->write,
        .host = piece->memory ? region->host + piece->offset : NULL,
        .bells = piece->bells,
        .kind = region->kind,
        .read_only = piece->read_only,
        .memory = piece->memory,
        .drains = piece->drains,
        .txn = edit->txn,
    };
    *tree = put(edit, *tree, 0, UINT64_MAX, (uintptr_t)leaf | BB_RADIX_LEAF_TAG_, piece->first,
                piece->last);
    return BB_OK;
}

struct bb_piece_ bb_leaf_piece_(const struct bb_flat_ *leaf)
{
    return (struct bb_piece_){
        .first = leaf->first,
        .last = bb_flat_last_(leaf),
        .region = leaf->region,
        .offset = leaf->region_offset,
        .bells = leaf->bells,
        .read_only = leaf->read_only,
        .memory = leaf->memory,
        .drains = leaf->drains,
    };
}

/* Takes `leaf` out, except for what lies outside [first, last]: that stays, as new leaves. */
static int cut_leaf(struct bb_edit_ *edit, uintptr_t *tree, struct bb_flat_ *leaf, bb_gpa_t first,
                    bb_gpa_t last)
{
    struct bb_piece_ whole = bb_leaf_piece_(leaf);
    int result = bb_pool_fill_(edit->pool, edit->heap);

    if (result != BB_OK) {
        return result;
    }
    *tree = take(edit, *tree, (uintptr_t)leaf | BB_RADIX_LEAF_TAG_, whole.first, whole.last);
    if (whole.first < first) {
        struct bb_piece_ piece = whole;
        piece.last = first - 1;
        result = add_leaf(edit, tree, &piece);
    }
    if (result == BB_OK && whole.last > last) {
        struct bb_piece_ piece = whole;
        piece.first = last + 1;
        piece.offset += piece.first - whole.first;
        result = add_leaf(edit, tree, &piece);
    }
    leaf_drop(edit, leaf);
    return result;
}

int bb_radix_set_(struct bb_edit_ *edit, uintptr_t *tree, bb_gpa_t first, bb_gpa_t last,
                  const struct bb_piece_ *piece)
{
    for (;;) {
        /* The tree is this edit's to change; `next` only reads, hence its const. */
        struct bb_flat_ *leaf = (struct bb_flat_ *)bb_radix_next_(*tree, first);
        if (leaf == NULL || leaf->first > last) {
            break;
        }
        int result = cut_leaf(edit, tree, leaf, first, last);
        if (result != BB_OK) {
            return result;
        }
    }
    return piece == NULL ? BB_OK : add_leaf(edit, tree, piece);
}

const struct bb_flat_ *bb_radix_next_(uintptr_t tree, bb_gpa_t gpa)
{
    if (tree == 0) {
        return NULL;
    }
    if (is_leaf(tree)) {
        return bb_flat_last_(leaf_of(tree)) >= gpa ? leaf_of(tree) : NULL;
    }

    const struct bb_node_ *node = node_of(tree);
    unsigned shift = shift_of(tree);
    uint64_t left = node->used;
    if (gpa > node->base) {
        if (gpa - node->base > bb_mask_low(shift + BB_RADIX_BITS_)) {
            return NULL;
        }
        left &= ~bb_mask_low(slot_of(gpa, shift));
    }
    for (; left != 0; left &= left - 1) {
        const struct bb_flat_ *leaf = bb_radix_next_(node->slot[__builtin_ctzll(left)], gpa);
        if (leaf != NULL) {
            return leaf;
        }
    }
    return NULL;
}

/*
 * Frees this edit's part of a subtree. A leaf may stand in many slots, always in a row: `*held` is
 * the one met last, freed when another is met.
 */
static void undo(struct bb_edit_ *edit, uintptr_t word, struct bb_flat_ **held)
{
    if (word == 0) {
        return;
    }
    if (is_leaf(word)) {
        struct bb_flat_ *leaf = leaf_of(word);
        if (leaf->txn == edit->txn && leaf != *held) {
            bb_heap_free(edit->heap, *held, sizeof(**held));
            *held = leaf;
        }
        return;
    }
    struct bb_node_ *node = node_of(word);
    if (node->txn != edit->txn) {
        return; /* published, and so is everything below it */
    }
    for (uint64_t left = node->used; left != 0; left &= left - 1) {
        undo(edit, node->slot[__builtin_ctzll(left)], held);
    }
    pool_put(edit->pool, edit->heap, node);
}

void bb_radix_undo_(struct bb_edit_ *edit, uintptr_t tree)
{
    struct bb_flat_ *held = NULL;

    undo(edit, tree, &held);
    bb_heap_free(edit->heap, held, sizeof(*held));
}

void bb_radix_free_dead_(struct bb_heap *heap, struct bb_node_ *nodes, struct bb_flat_ *leaves)
{
    while (nodes != NULL) {
        struct bb_node_ *next = nodes->next;
        bb_heap_free(heap, nodes, sizeof(*nodes));
        nodes = next;
    }
    while (leaves != NULL) {
        struct bb_flat_ *next = leaves->next;
        bb_heap_free(heap, leaves, sizeof(*leaves));
        leaves = next;
    }
}
