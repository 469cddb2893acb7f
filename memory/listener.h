/* SPDX-License-Identifier: MIT */
/*
 * Listeners: who mirrors the flat view of a space somewhere else, as an accelerator's adapter does
 * with memory slots, ioeventfds and coalesced ranges.
 *
 * The flat view of a space is the list of ranges, in rising order, of which each shows one
 * contiguous part of one region; neighbours that continue each other are one range. A commit that
 * changes it calls, for each listener of the space:
 *
 *   begin                  told what is to come
 *   removed, falling order of address; doorbells and coalesced ranges of each before it
 *   [the commit is published: from here on accesses meet the new view]
 *   added, rising order; unchanged likewise, in between
 *   commit
 *
 * so that an accelerator's slot is gone before the view shows something else there, and comes after
 * it. Where one range takes the place of another, begin can stop the processors and commit let them
 * go. Listeners of lower priority are called first in begin, added, unchanged and commit, last in
 * removed.
 *
 * A region whose doorbells or coalesced ranges alone changed is no change of the range: it is told
 * unchanged, and the difference as doorbells and coalesced ranges that go and come. A commit that
 * changes nothing of all this is not told.
 *
 * A commit made inside a callback is published at once; its calls are made, all of them, before the
 * outermost access returns, or by another thread's commit that comes first, or, where something was
 * removed, by bb-control. One made in a read section outside callbacks is told by its thread's next
 * access, commit or detaching, or by those others. Commits are told in their order, one at a time.
 * Regions that are removed stay until their removal has been told. Until those calls are made the
 * mirror shows what was there before, to whoever goes by it: a processor may still reach memory
 * through its slot that accesses no longer find, so such a commit is whole for accesses alone.
 *
 * Threads: the hooks run on the committing thread, with the map's locks held: they must not change
 * the map, make accesses or create anything in the engine. They may look, by bb_flat_each() or
 * bb_space_each() (bb_tree_each() and, for usage, bb_dispatch_each() take a lock that is held),
 * block in the operating system, and wait for vCPUs to leave their processor, never for an access.
 */
#ifndef BUSBAR_MEMORY_LISTENER_H
#define BUSBAR_MEMORY_LISTENER_H

#include "doorbell.h"
#include "space.h"

BB_BEGIN_DECLS

struct bb_listener;

/* One range of a flat view. */
struct bb_range {
    struct bb_space *space;
    bb_gpa_t first;
    bb_gpa_t last;
    struct bb_region *region;
    uint64_t offset; /* in the region, of `first` */
    enum bb_kind kind;
    bool read_only; /* memory that accesses through this range don't write */
    bool memory;    /* reads are of memory at `host`: RAM, ROM, a ROM device in ROM mode */
    void *host;     /* where `memory`: of `first` */
};

/* What a commit does to one space. */
struct bb_change {
    struct bb_space *space;
    size_t removed, added;               /* ranges */
    size_t memory_removed, memory_added; /* of these, with `memory` set */
};

struct bb_listener_ops {
    void (*begin)(void *opaque, const struct bb_change *change);
    void (*removed)(void *opaque, const struct bb_range *range);
    void (*added)(void *opaque, const struct bb_range *range);
    /* NULL unless wanted: with it a commit costs this listener's space as a whole. */
    void (*unchanged)(void *opaque, const struct bb_range *range);
    /* A doorbell or a coalesced range of a region that a range shows, at its address there. */
    void (*doorbell_removed)(void *opaque, struct bb_space *space, bb_gpa_t at,
                             const struct bb_doorbell *doorbell);
    void (*doorbell_added)(void *opaque, struct bb_space *space, bb_gpa_t at,
                           const struct bb_doorbell *doorbell);
    void (*coalesced_removed)(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last);
    void (*coalesced_added)(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last);
    void (*commit)(void *opaque);
    /*
     * Logging of a memory range begins for its first client, ends for its last; and the
     * accelerator's log of it is wanted now, by bb_dirty_merge(). A range that appears while its
     * region is logged has log_start called behind added; one that disappears has log_sync and
     * log_stop called ahead of removed, so that nothing that it saw is lost. Where processors write
     * between added and log_start, added begins the log by itself: bb_dirty_clients() is not 0.
     */
    void (*log_start)(void *opaque, const struct bb_range *range);
    void (*log_stop)(void *opaque, const struct bb_range *range);
    void (*log_sync)(struct bb_ctx *ctx, void *opaque, const struct bb_range *range);
};

struct bb_listener_config {
    const char *name;                  /* copied, at most 31 bytes */
    struct bb_space *space;            /* whose view it mirrors */
    const struct bb_listener_ops *ops; /* kept; NULL hooks are not called */
    void *opaque;
    int priority;
};

/*
 * Adds a listener, telling it of all there is (begin, added for each range, commit), or removes
 * one, telling it that all is removed. Logs that run are started and stopped likewise.
 * Returns BB_OK; BB_E_INVAL without name, space or ops, or for another engine's; BB_E_NOMEM;
 * BB_E_CONTEXT inside any callback, section, pin or lock.
 * Threads: the context's own; takes the map's locks.
 * Lifetime: after bb_listener_remove() no hook runs; bb_engine_destroy() wants it called first.
 */
BB_API int bb_listener_add(struct bb_ctx *ctx, const struct bb_listener_config *config,
                           struct bb_listener **listener, struct bb_error *err);
BB_API int bb_listener_remove(struct bb_ctx *ctx, struct bb_listener *listener,
                              struct bb_error *err);

BB_END_DECLS

#endif
