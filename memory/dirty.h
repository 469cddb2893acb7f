/* SPDX-License-Identifier: MIT */
/*
 * Dirty logging: which pages of RAM were written.
 *
 * Several clients (migration, a display) log at once, each with a bitmap of its own for each region
 * it logs, a bit for each page of BB_DIRTY_PAGE_BYTES. While no client logs a region its writers
 * pay one load of a word of the region, which they hold shared.
 *
 * What is promised. A write that dirties a page sets the bits after its data;
 * bb_dirty_sync_and_clear() takes a bit before its caller reads the page. So whoever syncs, then
 * reads, has the data of every write whose bit it took, and a write that it missed sets the bit
 * again for the next sync. A write that began after bb_dirty_start() returned is logged. Memory
 * that is mapped (bb_dma_map()) is marked when it is unmapped, and what the embedder writes by
 * itself when it says so with bb_dirty_mark().
 *
 * An accelerator's own log is merged by its listener (memory/listener.h): bb_dirty_sync_and_clear()
 * has log_sync called first, in which the adapter calls bb_dirty_merge().
 */
#ifndef BUSBAR_MEMORY_DIRTY_H
#define BUSBAR_MEMORY_DIRTY_H

#include "region.h"

BB_BEGIN_DECLS

struct bb_dirty_client;

enum { BB_DIRTY_PAGE_BYTES = 4096, BB_DIRTY_CLIENTS_MAX = 8 };

/*
 * Makes a client of the engine's.
 * Returns BB_OK; BB_E_INVAL without a name or a place; BB_E_LIMIT past BB_DIRTY_CLIENTS_MAX;
 * BB_E_NOMEM.
 * Threads: the context's own; takes the map's lock.
 * Lifetime: until bb_dirty_client_destroy(), which stops its logs and comes before the engine's
 * end. Destroying needs that no other call for the client runs, and returns BB_OK; BB_E_INVAL for
 * none of this engine; BB_E_CONTEXT as bb_dirty_start().
 */
BB_API int bb_dirty_client_create(struct bb_ctx *ctx, const char *name,
                                  struct bb_dirty_client **client, struct bb_error *err);
BB_API int bb_dirty_client_destroy(struct bb_ctx *ctx, struct bb_dirty_client *client,
                                   struct bb_error *err);

/*
 * Starts logging writes to a RAM region (or a ROM device's memory) for one client, with no page
 * dirty, or stops and drops its log. A region that is resized stays logged.
 * Returns BB_OK; BB_E_INVAL for a region without memory, or one of another engine; BB_E_EXIST where
 * it is logged for that client already, BB_E_NOENT where it is not; BB_E_STATE where the region is
 * being removed (its logs end with it); BB_E_NOMEM; BB_E_CONTEXT inside any callback, section, pin
 * or lock.
 * Threads: the context's own; waits for a grace period, so that every write made after the return
 * is logged, and the data of those made before is there.
 * Lifetime: calls for a region begin before its removal is asked for, which waits for those that
 * run; so for bb_dirty_sync_and_clear().
 */
BB_API int bb_dirty_start(struct bb_ctx *ctx, struct bb_dirty_client *client,
                          struct bb_region *region, struct bb_error *err);
BB_API int bb_dirty_stop(struct bb_ctx *ctx, struct bb_dirty_client *client,
                         struct bb_region *region, struct bb_error *err);

/*
 * Takes what was written since the last call: the bits of the pages that [offset, offset + length)
 * touches are cleared, and each that was set is set in `bitmap` (bit 0 of word 0 is the first page
 * touched; others are left as they are; may be NULL). Every accelerator is asked for its own first.
 * *pages receives how many bits were taken (may be NULL).
 * Returns BB_OK; BB_E_RANGE for a range outside the region or empty; BB_E_NOENT where the client
 * does not log it; BB_E_INVAL, BB_E_STATE and BB_E_CONTEXT as bb_dirty_start().
 * Threads: the context's own, several at once too: each bit is taken by one.
 * Ordering: acquire, pairs with the release in bb_dirty_mark().
 */
BB_API int bb_dirty_sync_and_clear(struct bb_ctx *ctx, struct bb_dirty_client *client,
                                   struct bb_region *region, uint64_t offset, uint64_t length,
                                   uint64_t *bitmap, uint64_t *pages, struct bb_error *err);

/*
 * Marks the pages of [offset, offset + length), cut at the region's end, for every client that logs
 * the region; to be called after the data was written. Nothing where nobody logs it.
 * Threads: any with a context, also in callbacks; lock-free.
 * Ordering: release.
 */
BB_API void bb_dirty_mark(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset,
                          uint64_t length);

/*
 * Marks the pages whose bits are set in `bitmap`, of `pages` bits, the first of which is the page
 * that holds `offset`: an accelerator's log.
 * Threads and Ordering: as bb_dirty_mark().
 */
BB_API void bb_dirty_merge(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset,
                           const uint64_t *bitmap, uint64_t pages);

/* A bit for each client that logs the region now, by the number it has. Threads: any; wait-free. */
BB_API uint32_t bb_dirty_clients(const struct bb_region *region);

BB_END_DECLS

#endif
