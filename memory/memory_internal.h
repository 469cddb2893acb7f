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
    struct bb_bells_ *dead_bells; /* and bells */
    size_t dead_bytes;            /* of all */
};

/*
 * Makes [first, last] of `*tree` lead to what `piece` says (whose own bounds are the same), or to
 * nothing where `piece` is NULL. Whatever was there is replaced; leaves that reach over either
 * end are cut.
 * Returns BB_OK, or BB_E_NOMEM: then `*tree` is well formed but the range may be half set, and the
 * edit is to be undone.
 */
int bb_radix_set_(struct bb_edit_ *edit, uintptr_t *tree, bb_gpa_t first, bb_gpa_t last,
                  const struct bb_piece_ *piece);

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

/* A range of addresses of one space that a change may be seen in. */
struct bb_stale_ {
    uint32_t space;
    bb_gpa_t first;
    bb_gpa_t last;
};

struct bb_told_;

/* A root for so many spaces; NULL without memory. */
struct bb_root_ *bb_root_alloc_(struct bb_heap *heap, uint32_t space_count);
/* The map's scratch. BB_OK or BB_E_NOMEM. */
int bb_scratch_create_(struct bb_map *map);
void bb_scratch_destroy_(struct bb_map *map);
/* Gives its buffers back. Under the map's lock. */
void bb_scratch_empty_(struct bb_map *map);

/*
 * A commit under way: begins with the map's lock taken, ends with it released. Every space's tree
 * is in `root`, the root to be.
 */
struct bb_commit_ {
    struct bb_ctx *ctx;
    struct bb_map *map;
    struct bb_edit_ edit;
    struct bb_root_ *root;
    struct bb_told_ *told;
    uint64_t changed; /* a bit for each space whose view changes, by index */
    bool telling;     /* the listeners' lock is held */
    bool removal;     /* nothing is too much: see render.c */
    bool whole;       /* of a removal: every space is stale from end to end */
};

/*
 * Takes the lock and makes the new root, a copy of the published one with `extra_spaces` more
 * views. Returns BB_OK, or BB_E_NOMEM with the lock released.
 */
int bb_commit_begin_(struct bb_commit_ *commit, struct bb_ctx *ctx, uint32_t extra_spaces);
/* Notes that what [first, last] of `region` shows is to be rendered anew, wherever it is seen now.
 * To be called before a change and after it. BB_OK, BB_E_NOMEM, BB_E_LIMIT. */
int bb_commit_stale_(struct bb_commit_ *commit, struct bb_region *region, uint64_t first,
                     uint64_t last);
/* The last that can fail: renders what is stale, and readies listeners. BB_OK, BB_E_NOMEM,
 * BB_E_LIMIT. */
int bb_commit_ready_(struct bb_commit_ *commit);
/* Publishes, releases the lock, defers what was replaced. */
void bb_commit_publish_(struct bb_commit_ *commit);
/* Frees what was made, releases the lock; nothing has changed. */
void bb_commit_abandon_(struct bb_commit_ *commit);

/*
 * interval.c: a container's enabled children, as a balanced tree ordered by offset, each node with
 * the highest offset below it. Intrusive: nothing here allocates or fails. `*root` is the
 * container's `index`.
 */
void bb_interval_insert_(struct bb_region **root, struct bb_region *region);
void bb_interval_remove_(struct bb_region **root, struct bb_region *region);
/* Calls `visit` for those that meet [first, last], in rising order of offset, until it returns
 * false. */
bool bb_interval_each_(struct bb_region *root, uint64_t first, uint64_t last,
                       bool (*visit)(void *opaque, struct bb_region *region), void *opaque);

/* Pieces in rising order of address, not touching where they could be one. */
struct bb_pieces_ {
    struct bb_piece_ *piece;
    size_t count;
    size_t room;
};
void bb_pieces_free_(struct bb_heap *heap, struct bb_pieces_ *pieces);
/* Makes room for `more` pieces. BB_OK or BB_E_NOMEM. */
int bb_pieces_reserve_(struct bb_heap *heap, struct bb_pieces_ *pieces, size_t more);

/*
 * render.c: what the tree below `root` shows in [first, last], into `pieces`, which is empty.
 * BB_OK, BB_E_NOMEM, BB_E_LIMIT.
 */
int bb_render_(struct bb_heap *heap, struct bb_region *root, bb_gpa_t first, bb_gpa_t last,
               bool bounded, struct bb_pieces_ *pieces);
/*
 * Calls `emit` for each part of a space in which [first, last] of a region would be seen if nothing
 * hid it. BB_OK, what `emit` returned, or BB_E_LIMIT.
 */
int bb_instances_(struct bb_region *region, uint64_t first, uint64_t last,
                  int (*emit)(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last),
                  void *opaque);

/* What a commit changes in the flat view of one space: whole ranges, in rising order. */
struct bb_delta_ {
    struct bb_space *space;
    struct bb_pieces_ removed;
    struct bb_pieces_ added;
};

/*
 * listener.c. A commit, under the map's lock: `prepare` makes everything ready that needs memory
 * (BB_E_NOMEM: the commit is given up; *told NULL where no listener minds); `before` is called
 * ahead of publication and `after` behind it, with the map's lock still held; a `told` that was
 * prepared goes to either `after` or `drop`. Where the context may tell (bb_listeners_may_tell_)
 * they call the hooks; otherwise `after` leaves everything to bb_listeners_settle_() and sets
 * mem->untold and ctx->pending. The lock of listeners is taken before the map's by who may tell,
 * and is what keeps tellings in order.
 */
struct bb_told_;
int bb_listeners_create_(struct bb_map *map);
void bb_listeners_destroy_(struct bb_map *map);
bool bb_listeners_may_tell_(const struct bb_ctx *ctx);
void bb_listeners_lock_(struct bb_ctx *ctx, struct bb_map *map);
void bb_listeners_unlock_(struct bb_ctx *ctx, struct bb_map *map);
int bb_listeners_prepare_(struct bb_ctx *ctx, struct bb_map *map, const struct bb_root_ *root,
                          const struct bb_delta_ *deltas, size_t count, struct bb_told_ **told);
void bb_listeners_before_(struct bb_ctx *ctx, struct bb_told_ *told);
void bb_listeners_after_(struct bb_ctx *ctx, struct bb_told_ *told);
void bb_listeners_drop_(struct bb_ctx *ctx, struct bb_told_ *told);
/* For dirty.c, from a context that may tell, with neither lock held: calls one log hook for every
 * range of the views that shows `region` as memory. */
enum bb_log_hook_ { BB_LOG_START_, BB_LOG_STOP_, BB_LOG_SYNC_ };
void bb_listeners_log_(struct bb_ctx *ctx, struct bb_region *region, enum bb_log_hook_ hook);

/* What a piece or a leaf is to a listener and to who looks. */
struct bb_range bb_piece_range_(struct bb_space *space, const struct bb_piece_ *piece);
struct bb_piece_ bb_leaf_piece_(const struct bb_flat_ *leaf);

/*
 * Changes of a transaction, judged and made at commit by txn.c.
 */
enum bb_op_kind_ {
    BB_OP_PLACE_,
    BB_OP_UNPLACE_,
    BB_OP_MOVE_,
    BB_OP_PRIORITY_,
    BB_OP_ENABLE_,
    BB_OP_RESIZE_,
    BB_OP_WINDOW_,
    BB_OP_ROM_MODE_,
    BB_OP_READ_ONLY_,
    BB_OP_DOORBELL_ADD_,
    BB_OP_DOORBELL_REMOVE_,
    BB_OP_COALESCE_,
    BB_OP_UNCOALESCE_,
};

struct bb_op_ {
    uint8_t kind; /* enum bb_op_kind_ */
    bool flag;
    struct bb_region *region;
    struct bb_region *container; /* PLACE: where to; UNPLACE: where it was, for undoing */
    uint64_t number;             /* offset, `last`, window; swapped with what was there when made */
    int priority;                /* likewise */
    union {
        struct bb_doorbell doorbell;
        struct bb_coalesced_ coalesced;
    };
    struct bb_bells_ *bells; /* doorbells and coalesced ranges: what was there before, once made */
};
int bb_txn_add_(struct bb_txn *txn, const struct bb_op_ *op, struct bb_error *err);

/*
 * change.c: makes one change, noting what it makes stale; the error is set where it does not fit,
 * and then nothing has changed. Undoing puts back what was there.
 */
int bb_change_apply_(struct bb_commit_ *commit, struct bb_op_ *op, struct bb_error *err);
void bb_change_undo_(struct bb_map *map, struct bb_op_ *op);
/* BB_E_EXIST where the region shares addresses with an enabled sibling of its priority. */
int bb_change_check_overlap_(const struct bb_region *region, struct bb_error *err);
/* BB_E_RANGE where a region of that size would reach past 2^64 from `at`. */
int bb_change_check_wrap_(const struct bb_region *region, uint64_t at, uint64_t last,
                          struct bb_error *err);
/* Notes a region, or all of its device's, as stale: they are to be rendered anew wherever they are
 * seen. */
int bb_change_stale_(struct bb_commit_ *commit, struct bb_region *region, struct bb_error *err);
int bb_change_stale_device_(struct bb_commit_ *commit, const struct bb_region *region,
                            struct bb_error *err);
/* Takes a region out of its container. */
void bb_change_unlink_(struct bb_region *region);
/* One edge less leads to it from attached regions. */
void bb_change_detach_(struct bb_region *region);
/* Sets the text for BB_E_NOMEM, or for that or BB_E_LIMIT; returns the code. */
int bb_change_out_of_memory_(struct bb_error *err, const struct bb_region *region);
int bb_change_failed_(struct bb_error *err, const struct bb_region *region, int result);

/*
 * bells.c: the array after one change of `old` (NULL: none), which stays as it is. *made is NULL
 * where nothing is left. BB_OK, BB_E_EXIST, BB_E_NOENT, BB_E_LIMIT, BB_E_NOMEM, with the error set.
 */
int bb_bells_change_(struct bb_heap *heap, const struct bb_op_ *op, const struct bb_bells_ *old,
                     struct bb_bells_ **made, struct bb_error *err);
void bb_bells_free_(struct bb_heap *heap, struct bb_bells_ *bells); /* a list */

/* Takes a region that is retired from the map's list. The map's lock is held. */
void bb_region_delist_(struct bb_region *region);

/*
 * ram_block.c: memory that is mapped here. The configuration has been checked (ram.c); its fields
 * are what they mean to `backing`, which is not the embedder's.
 */
struct bb_ram_block_ {
    uint8_t *mapping; /* guards included; NULL: nothing is mapped */
    size_t mapping_bytes;
    uint64_t page_bytes; /* of the pages behind it */
    uint64_t fd_offset;  /* in the file, of the region's first byte */
    int fd;              /* -1: none */
    bool shared;         /* who maps `fd` elsewhere has the same memory */
};
enum { BB_PREFAULT_THREADS_MAX_ = 64 };
/* *host receives the first byte. Results as for bb_ram_create(). */
int bb_ram_block_make_(struct bb_heap *heap, const struct bb_ram_config *config,
                       struct bb_ram_block_ **block, void **host, struct bb_error *err);
/* Unmaps, closes, frees. NULL: nothing. On any thread. */
void bb_ram_block_free_(struct bb_heap *heap, struct bb_ram_block_ *block);
/* How much is mapped: size_bytes_max, or size_bytes where that is 0. */
uint64_t bb_ram_bytes_max_(const struct bb_ram_config *config);

/* Copies at most BB_CTX_NAME_BYTES - 1 bytes of a name. */
void bb_name_copy_(char out[BB_CTX_NAME_BYTES], const char *name);

#endif
