/* SPDX-License-Identifier: MIT */
/*
 * Looking at the map: the tree of regions, the flat view of a space, and the structure that
 * dispatch walks, as data to visit or as text to read.
 */
#ifndef BUSBAR_MEMORY_INSPECT_H
#define BUSBAR_MEMORY_INSPECT_H

#include "listener.h"

BB_BEGIN_DECLS

/* One region as the tree has it. Pointers are valid during the visit. */
struct bb_tree_node {
    unsigned depth; /* 0: the space's root */
    struct bb_region *region;
    const char *name;
    enum bb_kind kind;
    const char *device; /* NULL: none */
    uint64_t offset;    /* in its container */
    bb_gpa_t first;     /* in the space, whether it is shown there or not; at most 2^64 - 1 */
    uint64_t size_bytes;
    int priority;
    bool enabled;
    bool read_only;
    bool rom_mode;
    const struct bb_region *target; /* of an alias; NULL once that is removed */
    uint64_t target_offset;
    size_t doorbells;
    size_t coalesced; /* ranges */
};

/*
 * Visits the tree below a space's root, each region before its children, those in rising order of
 * offset, then falling priority; targets of aliases are not walked into. `visit` stops it by
 * returning false.
 * Returns BB_OK; before any visit BB_E_NOMEM, or BB_E_CONTEXT in a callback or a section or under a
 * lock.
 * Threads: the context's own; holds the map's lock meanwhile, so `visit` must not change the map,
 * look at it in this way again, or take long.
 */
BB_API int bb_tree_each(struct bb_ctx *ctx, struct bb_space *space,
                        bool (*visit)(void *opaque, const struct bb_tree_node *node), void *opaque);

/* Visits the flat view, in rising order of address, as of one moment. In a read section. */
BB_API void bb_flat_each(struct bb_ctx *ctx, struct bb_space *space,
                         bool (*visit)(void *opaque, const struct bb_range *range), void *opaque);

/* One node of the tree that dispatch walks. */
struct bb_dispatch_node {
    unsigned depth; /* 0: the first one that a lookup meets */
    bb_gpa_t base;
    unsigned shift; /* a slot stands for 2^shift addresses */
    unsigned used;  /* slots of 64 that lead somewhere */
};
struct bb_dispatch_usage {
    size_t nodes;
    size_t leaves;
    unsigned depth;     /* nodes on the longest way to a leaf */
    size_t bytes;       /* of both */
    size_t bytes_total; /* of the views of all spaces, the spaces, regions, doorbells, spare nodes,
                           and all that waits for a grace period */
};
/*
 * Visits the nodes of a space's view (`visit` may be NULL, and stops by returning false) and adds
 * up (`usage` may be NULL). In a read section; for `usage` the map's lock is taken before it.
 * Threads: the context's own.
 */
BB_API void bb_dispatch_each(struct bb_ctx *ctx, struct bb_space *space,
                             bool (*visit)(void *opaque, const struct bb_dispatch_node *node),
                             void *opaque, struct bb_dispatch_usage *usage);

enum bb_print { BB_PRINT_TREE = 1, BB_PRINT_FLAT = 2, BB_PRINT_DISPATCH = 4, BB_PRINT_ALL = 7 };
/*
 * Writes all spaces as text, a line at a time without its end: `what` is enum bb_print, OR-ed. Each
 * part is of one moment, and `put` is called where its visits are.
 * Returns as bb_tree_each(), after whole parts.
 * Threads: as bb_tree_each().
 */
BB_API int bb_map_print(struct bb_ctx *ctx, unsigned what,
                        void (*put)(void *opaque, const char *line), void *opaque);

/* "RAM", "I/O", ... Threads: any; wait-free. */
BB_API const char *bb_kind_name(enum bb_kind kind);

BB_END_DECLS

#endif
