/* SPDX-License-Identifier: MIT */
/*
 * Address spaces and the transactions that change them.
 *
 * An engine has one map: the set of its address spaces, published as a whole through one pointer. A
 * space shows the tree of regions below its root; what it shows is kept as a flat view, each part
 * of which is rendered anew only where a change can be seen. A transaction collects changes over
 * any of the spaces and makes them visible at once; readers see all of it or none. Its cost follows
 * the change, not the map: a path-copied radix tree. (An access that straddles regions is one
 * access of each, in rising order of address, as on a bus: each of them sees the map whole, and
 * none an older one than those before it.)
 *
 * Changes are made in the order in which they were added, each judged by what those before it left;
 * that no two enabled siblings of one priority overlap is judged once at the end, so that a
 * transaction can swap two regions in any order. A region that is in no space can be changed
 * likewise, at less cost.
 *
 * Bounds: regions nest at most BB_DEPTH_MAX deep, aliases included, and one change may be seen in
 * at most BB_INSTANCES_MAX places, each of which is rendered in at most BB_RENDER_MAX steps; past
 * these a commit is refused with BB_E_LIMIT. (Aliases of aliases can multiply a region beyond all
 * bounds.) A removal is not refused: it may cost what the changes before it cost together.
 *
 * Threads: spaces are created by control threads and live as long as the engine. Transactions may
 * be built and committed on any thread with a context, also inside a device callback; two commits
 * are serialised by a lock that no access takes. A transaction belongs to one thread.
 */
#ifndef BUSBAR_MEMORY_SPACE_H
#define BUSBAR_MEMORY_SPACE_H

#include "region.h"

BB_BEGIN_DECLS

struct bb_space;
struct bb_txn;

enum bb_space_kind { BB_SPACE_MMIO, BB_SPACE_PIO };

/* What a failed read yields. All zero: all ones, as on x86. */
enum bb_fill_kind { BB_FILL_ONES, BB_FILL_ZEROS, BB_FILL_PATTERN };
struct bb_fill {
    enum bb_fill_kind kind;
    uint64_t pattern; /* BB_FILL_PATTERN: its low bytes, as many as the access has; a wider access
                         has it repeated every 8 */
};

struct bb_space_config {
    const char *name; /* copied, at most 31 bytes */
    enum bb_space_kind kind;
    unsigned bits;               /* width of an address, 1 to 64; 0: 64 for MMIO, 16 for PIO */
    struct bb_fill decode_error; /* what a read of nothing yields */
    struct bb_fill device_error; /* what a refused read yields */
};

enum {
    BB_SPACES_MAX = 64,
    BB_DEPTH_MAX = 256,
    BB_INSTANCES_MAX = 1 << 16,
    BB_RENDER_MAX = 1 << 20,
};

/*
 * Creates an empty address space.
 * Returns BB_OK; BB_E_RANGE for bits over 64; BB_E_INVAL without a name, or for an unknown kind of
 * space or fill; BB_E_LIMIT past BB_SPACES_MAX; BB_E_NOMEM.
 * Threads: the context's own; takes the map's lock.
 * Lifetime: the engine's.
 */
BB_API int bb_space_create(struct bb_ctx *ctx, const struct bb_space_config *config,
                           struct bb_space **space, struct bb_error *err);

/* Its name, as configured. Threads: any; wait-free. Lifetime: the space's. */
BB_API const char *bb_space_name(const struct bb_space *space);

/*
 * Its root: a container as wide as the space, into which regions are put and which aliases may show
 * in other spaces. It can't itself be put anywhere, moved, resized, disabled or removed.
 * Threads: any; wait-free.
 * Lifetime: the space's.
 */
BB_API struct bb_region *bb_space_root(const struct bb_space *space);

/*
 * Begins a transaction. Nothing is locked until it is committed.
 * Returns BB_OK or BB_E_NOMEM.
 * Threads: the context's own; allocates.
 * Lifetime: until bb_txn_commit() or bb_txn_abort(), on the same thread. Regions that it names are
 * not freed before: their removal is not yet complete (that it was asked for is BB_E_STATE).
 */
BB_API int bb_txn_begin(struct bb_ctx *ctx, struct bb_txn **txn, struct bb_error *err);

/*
 * Begins a transaction inside another: what is added to it joins `parent`'s changes, behind them,
 * when it is committed, and becomes visible with them; aborted, it leaves nothing there. While it
 * is open `parent` takes no changes. Any depth.
 * Returns BB_OK; BB_E_INVAL without a parent; BB_E_STATE where the parent has one open; BB_E_NOMEM.
 */
BB_API int bb_txn_nest(struct bb_txn *parent, struct bb_txn **txn, struct bb_error *err);

/*
 * Adds one change: puts `region` into `container` at `offset`, with a priority; the higher one is
 * in front. The end of the container clips it.
 * Returns BB_OK; BB_E_NOMEM; BB_E_INVAL where `container` is an alias or an IOMMU, or `region` a
 * space's root; BB_E_RANGE where offset and size wrap at 2^64.
 * Threads: the thread that began it; allocates.
 */
BB_API int bb_txn_place(struct bb_txn *txn, struct bb_region *container, bb_gpa_t offset,
                        struct bb_region *region, int priority, struct bb_error *err);

/*
 * The same for the root of a space, with priority 0, and only where the region ends inside the
 * space. Results as for bb_txn_place(); BB_E_RANGE also where it exceeds the space's width.
 */
BB_API int bb_txn_map(struct bb_txn *txn, struct bb_space *space, bb_gpa_t gpa,
                      struct bb_region *region, struct bb_error *err);
/* Takes a region out of its container, whichever that is. Its own children stay in it. */
BB_API int bb_txn_unmap(struct bb_txn *txn, struct bb_region *region, struct bb_error *err);

/*
 * Further changes of a region, placed or not; each takes what bb_txn_place() takes and returns what
 * it returns.
 *
 *   | function  | changes                          | refused                                      |
 *   |-----------|----------------------------------|----------------------------------------------|
 *   | move      | its offset in its container      | at commit, BB_E_NOENT: it is in none         |
 *   | priority  | its priority among siblings      |                                              |
 *   | enable    | shown or hidden; at first shown  |                                              |
 *   | resize    | its size, see below              | BB_E_RANGE, BB_E_UNSUPPORTED                 |
 *   | window    | where in its target an alias     | BB_E_INVAL: it is no alias                   |
 *   |           | begins                           |                                              |
 *   | rom_mode  | whether reads of a ROM device    | BB_E_INVAL: it is no ROM device              |
 *   |           | are of its memory, or callbacks  |                                              |
 *   | read_only | whether guest writes of RAM, or  | BB_E_INVAL: it is neither                    |
 *   |           | through an alias, are refused    |                                              |
 *
 * Containers, aliases and reserved regions get any size from 1 to BB_SIZE_ALL, I/O regions 1 to
 * 2^63 and a multiple of impl_min, RAM up to its size_bytes_max; others keep theirs.
 */
BB_API int bb_txn_move(struct bb_txn *txn, struct bb_region *region, bb_gpa_t offset,
                       struct bb_error *err);
BB_API int bb_txn_priority(struct bb_txn *txn, struct bb_region *region, int priority,
                           struct bb_error *err);
BB_API int bb_txn_enable(struct bb_txn *txn, struct bb_region *region, bool enabled,
                         struct bb_error *err);
BB_API int bb_txn_resize(struct bb_txn *txn, struct bb_region *region, uint64_t size_bytes,
                         struct bb_error *err);
BB_API int bb_txn_window(struct bb_txn *txn, struct bb_region *alias, uint64_t offset,
                         struct bb_error *err);
BB_API int bb_txn_rom_mode(struct bb_txn *txn, struct bb_region *region, bool rom_mode,
                           struct bb_error *err);
BB_API int bb_txn_read_only(struct bb_txn *txn, struct bb_region *region, bool read_only,
                            struct bb_error *err);

/*
 * Makes every change of the transaction visible at once, and frees it, whether it succeeds or not
 * (but where a nested one is open: then it stays). A nested one hands its changes to its parent.
 * Returns BB_OK; or, with nothing changed: BB_E_EXIST where two enabled siblings of one priority
 * overlap (the text names both and the overlap) or a region is in a place already; BB_E_NOENT where
 * a region to be unmapped or moved is in none; BB_E_STATE where a region is being removed, or has a
 * nested transaction open; BB_E_INVAL where a region would contain itself; BB_E_LIMIT past the
 * bounds above; BB_E_NOMEM.
 * Threads: the thread that began it; takes the map's lock for the time of the change. Where
 * deferred memory is over its bound it waits for grace periods, or, inside a callback, has the
 * chain's epilogue wait; listeners likewise are told by the epilogue then.
 * Ordering: a thread that is told of the commit by the committer sees it in its next access.
 */
BB_API int bb_txn_commit(struct bb_txn *txn, struct bb_error *err);

/* Drops a transaction; nothing of it becomes visible. Threads: the thread that began it. */
BB_API void bb_txn_abort(struct bb_txn *txn);

/* A transaction of one change. Results and Threads as for the parts. */
BB_API int bb_space_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa,
                        struct bb_region *region, struct bb_error *err);
BB_API int bb_space_unmap(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err);
BB_API int bb_region_place(struct bb_ctx *ctx, struct bb_region *container, bb_gpa_t offset,
                           struct bb_region *region, int priority, struct bb_error *err);
BB_API int bb_region_enable(struct bb_ctx *ctx, struct bb_region *region, bool enabled,
                            struct bb_error *err);
BB_API int bb_region_move(struct bb_ctx *ctx, struct bb_region *region, bb_gpa_t offset,
                          struct bb_error *err);

/*
 * Visits what is mapped in a space, in rising order of address, as of one moment. `visit` runs in a
 * read section and stops the walk by returning false.
 * Threads: the context's own.
 */
BB_API void bb_space_each(struct bb_ctx *ctx, struct bb_space *space,
                          bool (*visit)(void *opaque, bb_gpa_t first, bb_gpa_t last,
                                        const struct bb_region *region),
                          void *opaque);

BB_END_DECLS

#endif
