/* SPDX-License-Identifier: MIT */
/*
 * memory/'s own: edits of the radix tree, and commits of the map. For the module's files and its
 * tests.
 *
 * An edit is what one commit does to the trees of all spaces. It holds what the commit replaced,
 * and the commit's number, by which nodes that it made itself are told from published ones.
 * Everything here needs the map's lock, or a map that no one else can see.
 */
#ifndef BUSBAR_MEMORY_INTERNAL_H
#define BUSBAR_MEMORY_INTERNAL_H

#include "memory_core.h"

/*
 * One leaf put in or taken out copies at most the nodes whose block it covers in part: one at the
 * top and two on each of the ten levels below.
 */
enum { BB_RADIX_LEVELS_ = 11, BB_RADIX_RESERVE_ = 2 * BB_RADIX_LEVELS_ };

struct bb_edit_ {
    struct bb_heap *heap;
    struct bb_node_pool_ *pool;
    uint64_t txn;                 /* marks what this edit made */
    struct bb_node_ *dead_nodes;  /* published nodes that it replaced */
    struct bb_flat_ *dead_leaves; /* published leaves likewise */
    size_t dead_bytes;            /* of both */
};

/*
 * Makes [first, last] of `*tree` lead to `region`, whose byte `region_offset` comes first, or to
 * nothing where `region` is NULL. Whatever was there is replaced; leaves that reach over either
 * end are cut.
 * Returns BB_OK, or BB_E_NOMEM: then `*tree` is well formed but the range may be half set, and the
 * edit is to be undone.
 */
int bb_radix_set_(struct bb_edit_ *edit, uintptr_t *tree, bb_gpa_t first, bb_gpa_t last,
                  struct bb_region *region, uint64_t region_offset);

/*
 * The leaf that holds `gpa`, or else the first one behind it; NULL where there is none. Also in a
 * read section, on a published tree.
 */
const struct bb_flat_ *bb_radix_next_(uintptr_t tree, bb_gpa_t gpa);

/* Frees what the edit made in `tree`, which was never published. */
void bb_radix_undo_(struct bb_edit_ *edit, uintptr_t tree);

/* Frees lists of replaced nodes and leaves. On any thread, after their grace period. */
void bb_radix_free_dead_(struct bb_heap *heap, struct bb_node_ *nodes, struct bb_flat_ *leaves);

/* Fills the pool to BB_RADIX_RESERVE_ nodes. BB_OK or BB_E_NOMEM. */
int bb_pool_fill_(struct bb_node_pool_ *pool, struct bb_heap *heap);
void bb_pool_empty_(struct bb_node_pool_ *pool, struct bb_heap *heap);

static inline bb_gpa_t bb_flat_last_(const struct bb_flat_ *leaf)
{
    return leaf->first + leaf->last_offset;
}

/*
 * A commit under way: begins with the map's lock taken, ends with it released. Every space's tree
 * is in `root`, the root to be.
 */
struct bb_commit_ {
    struct bb_ctx *ctx;
    struct bb_map *map;
    struct bb_edit_ edit;
    struct bb_root_ *root;
    uint64_t changed; /* a bit for each space changed, by index */
};

/*
 * Takes the lock and makes the new root, a copy of the published one with `space_count` views.
 * Returns BB_OK, or BB_E_NOMEM with the lock released.
 */
int bb_commit_begin_(struct bb_commit_ *commit, struct bb_ctx *ctx, uint32_t extra_spaces);
/* Publishes, releases the lock, defers what was replaced. */
void bb_commit_publish_(struct bb_commit_ *commit);
/* Frees what was made, releases the lock; nothing has changed. */
void bb_commit_abandon_(struct bb_commit_ *commit);

/* Copies at most BB_CTX_NAME_BYTES - 1 bytes of a name. */
void bb_name_copy_(char out[BB_CTX_NAME_BYTES], const char *name);

#endif
