/* SPDX-License-Identifier: MIT */
/*
 * The enabled children of a container, to be found by the offsets that they cover: a
 * height-balanced binary tree in the regions themselves, ordered by offset and, where two begin
 * together, by serial. Each node knows the highest offset that any region below it covers
 * (`reach`), so that a search for those that meet a range leaves out whole subtrees: k regions of n
 * are found in O(k + log n) steps.
 *
 * Invariants, for each node: those left of it are ordered before it, those right of it after it;
 * the heights of its two subtrees differ by one at most; `height` and `reach` are those of its
 * subtree. An order key never changes while a region is in the tree: it is taken out, changed, put
 * back. All of it under the map's lock. A tree of 2^32 regions is less than 48 high, which bounds
 * the recursion.
 */
#include <assert.h>

#include "memory_internal.h"

static uint64_t end_of(const struct bb_region *region)
{
    return region->at + region->last;
}

static int height_of(const struct bb_region *node)
{
    return node == NULL ? 0 : node->height;
}

static bool before(const struct bb_region *a, const struct bb_region *b)
{
    return a->at != b->at ? a->at < b->at : a->serial < b->serial;
}

static void measure(struct bb_region *node)
{
    int left = height_of(node->left), right = height_of(node->right);
    uint64_t reach = end_of(node);

    if (node->left != NULL && node->left->reach > reach) {
        reach = node->left->reach;
    }
    if (node->right != NULL && node->right->reach > reach) {
        reach = node->right->reach;
    }
    node->reach = reach;
    node->height = 1 + (left > right ? left : right);
}

static struct bb_region *rotate_right(struct bb_region *node)
{
    struct bb_region *top = node->left;

    node->left = top->right;
    top->right = node;
    measure(node);
    measure(top);
    return top;
}

static struct bb_region *rotate_left(struct bb_region *node)
{
    struct bb_region *top = node->right;

    node->right = top->left;
    top->left = node;
    measure(node);
    measure(top);
    return top;
}

/* The subtree of `node`, whose own subtrees are in order, with its balance restored. */
static struct bb_region *balance(struct bb_region *node)
{
    int lean = height_of(node->left) - height_of(node->right);

    if (lean > 1) {
        if (height_of(node->left->left) < height_of(node->left->right)) {
            node->left = rotate_left(node->left);
        }
        return rotate_right(node);
    }
    if (lean < -1) {
        if (height_of(node->right->right) < height_of(node->right->left)) {
            node->right = rotate_right(node->right);
        }
        return rotate_left(node);
    }
    measure(node);
    return node;
}

static struct bb_region *insert(struct bb_region *node, struct bb_region *region)
{
    if (node == NULL) {
        region->left = NULL;
        region->right = NULL;
        measure(region);
        return region;
    }
    if (before(region, node)) {
        node->left = insert(node->left, region);
    } else {
        node->right = insert(node->right, region);
    }
    return balance(node);
}

/* The subtree without its first node, which goes to *first. */
static struct bb_region *take_first(struct bb_region *node, struct bb_region **first)
{
    if (node->left == NULL) {
        *first = node;
        return node->right;
    }
    node->left = take_first(node->left, first);
    return balance(node);
}

static struct bb_region *take(struct bb_region *node, struct bb_region *region)
{
    assert(node != NULL);
    if (node == region) {
        struct bb_region *next;

        if (node->right == NULL) {
            return node->left;
        }
        struct bb_region *right = take_first(node->right, &next);
        next->left = node->left;
        next->right = right;
        return balance(next);
    }
    if (before(region, node)) {
        node->left = take(node->left, region);
    } else {
        node->right = take(node->right, region);
    }
    return balance(node);
}

void bb_interval_insert_(struct bb_region **root, struct bb_region *region)
{
    *root = insert(*root, region);
}

void bb_interval_remove_(struct bb_region **root, struct bb_region *region)
{
    *root = take(*root, region);
}

bool bb_interval_each_(struct bb_region *root, uint64_t first, uint64_t last,
                       bool (*visit)(void *opaque, struct bb_region *region), void *opaque)
{
    if (root == NULL || root->reach < first) {
        return true;
    }
    if (!bb_interval_each_(root->left, first, last, visit, opaque)) {
        return false;
    }
    if (root->at > last) {
        return true;
    }
    if (end_of(root) >= first && !visit(opaque, root)) {
        return false;
    }
    return bb_interval_each_(root->right, first, last, visit, opaque);
}
