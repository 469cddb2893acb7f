/* SPDX-License-Identifier: MIT */
/*
 * Address spaces and the transactions that change them.
 *
 * An engine has one map: the set of its address spaces, published as a whole through one pointer.
 * A transaction collects changes over any of the spaces and makes them visible at once; readers
 * see all of it or none. Its cost follows the change, not the map: a path-copied radix tree.
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

struct bb_space_config {
    const char *name; /* copied, at most 31 bytes */
    enum bb_space_kind kind;
    unsigned bits;              /* width of an address, 1 to 64; 0: 64 for MMIO, 16 for PIO */
    bool unassigned_reads_zero; /* what a read of nothing, or a refused read, yields: all ones
                                   (as on x86) where false, zero where true */
};

enum { BB_SPACES_MAX = 64 };

/*
 * Creates an empty address space.
 * Returns BB_OK; BB_E_RANGE for bits over 64; BB_E_INVAL without a name; BB_E_LIMIT past
 * BB_SPACES_MAX; BB_E_NOMEM.
 * Threads: the context's own; takes the map's lock. Lifetime: the engine's.
 */
BB_API int bb_space_create(struct bb_ctx *ctx, const struct bb_space_config *config,
                           struct bb_space **space, struct bb_error *err);

/* Its name, as configured. Threads: any; wait-free. Lifetime: the space's. */
BB_API const char *bb_space_name(const struct bb_space *space);

/*
 * Begins a transaction. Nothing is locked until it is committed.
 * Returns BB_OK or BB_E_NOMEM. Threads: the context's own; allocates.
 * Lifetime: until bb_txn_commit() or bb_txn_abort(), on the same thread.
 */
BB_API int bb_txn_begin(struct bb_ctx *ctx, struct bb_txn **txn, struct bb_error *err);

/*
 * Adds one change to a transaction: map `region` whole at `gpa`, or unmap it from wherever it is.
 * Whether they fit is judged at commit, in the order they were added, so that one transaction can
 * unmap A and map B in its place.
 * Returns BB_OK; BB_E_NOMEM; BB_E_RANGE where gpa + size wraps or exceeds the space's width.
 * Threads: the thread that began it; allocates.
 */
BB_API int bb_txn_map(struct bb_txn *txn, struct bb_space *space, bb_gpa_t gpa,
                      struct bb_region *region, struct bb_error *err);
BB_API int bb_txn_unmap(struct bb_txn *txn, struct bb_region *region, struct bb_error *err);

/*
 * Makes every change of the transaction visible at once, and frees it, whether it succeeds or not.
 * Returns BB_OK; or, with nothing changed: BB_E_EXIST where a range overlaps a mapped region (the
 * text names both and the overlap) or a region is mapped already; BB_E_NOENT where a region to be
 * unmapped is not mapped; BB_E_STATE where a region is being removed; BB_E_NOMEM.
 * Threads: the thread that began it; takes the map's lock for the time of the change. Where
 * deferred memory is over its bound it waits for grace periods, or, inside a callback, has the
 * chain's epilogue wait.
 * Ordering: a thread that is told of the commit by the committer sees it in its next access.
 */
BB_API int bb_txn_commit(struct bb_txn *txn, struct bb_error *err);

/* Drops a transaction; nothing of it becomes visible. Threads: the thread that began it. */
BB_API void bb_txn_abort(struct bb_txn *txn);

/* A transaction of one change. Results and Threads as for the parts. */
BB_API int bb_space_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa,
                        struct bb_region *region, struct bb_error *err);
BB_API int bb_space_unmap(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err);

/*
 * Visits what is mapped in a space, in rising order of address, as of one moment. `visit` runs in
 * a read section and stops the walk by returning false. Threads: the context's own.
 */
BB_API void bb_space_each(struct bb_ctx *ctx, struct bb_space *space,
                          bool (*visit)(void *opaque, bb_gpa_t first, bb_gpa_t last,
                                        const struct bb_region *region),
                          void *opaque);

BB_END_DECLS

#endif
