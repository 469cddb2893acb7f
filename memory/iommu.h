/* SPDX-License-Identifier: MIT */
/*
 * IOMMU regions: an access of one goes where a translation leads, for its requester.
 *
 * An IOMMU region lies in a space that stands for what a DMA master sees. An access (or a piece of
 * one, cut at page bounds) is translated by the device's callback to an address in a target space,
 * where the lookup goes on; the target may hold IOMMU regions again (nested translation, at most
 * BB_IOMMU_NEST_MAX deep, past which it is a decode error, counted). Different requesters may be
 * led to different spaces.
 *
 * Translations are cached in each context by region, requester and page; a hit writes no shared
 * line. Each entry bears the region's epoch, and any invalidation moves that: the next access of
 * any context asks the callback again. An access in flight may still use what it found; one form of
 * invalidation waits these out, as an IOMMU's completion wait must.
 */
#ifndef BUSBAR_MEMORY_IOMMU_H
#define BUSBAR_MEMORY_IOMMU_H

#include "region.h"

BB_BEGIN_DECLS

enum { BB_IOMMU_NEST_MAX = 4 };

enum bb_iommu_access { BB_IOMMU_READ = 1, BB_IOMMU_WRITE = 2 };

/* One translation: 2^page_bits bytes from `iova` on lead to `target` at `translated`. Both are
 * aligned to as much. */
struct bb_iommu_entry {
    struct bb_space *target;
    bb_gpa_t iova;       /* offset in the region */
    bb_gpa_t translated; /* address in the target space */
    unsigned page_bits;  /* 0 to 63; with 12 and more it is cached */
    unsigned access;     /* enum bb_iommu_access, OR-ed: what is permitted */
};

struct bb_iommu_ops {
    /*
     * Translates `iova` (offset in the region) for an access `access` of `attrs` (an atomic access
     * asks for both). Fills *entry, which comes zeroed, and returns BB_OK; or BB_E_DECODE or
     * BB_E_DEVICE: a fault, which the device records and the access has as its result. An entry
     * that does not permit the access is a fault likewise (BB_E_DEVICE): the callback is asked each
     * time, so that it can record each fault. An entry that does not cover `iova`, is not aligned
     * or has no target in this engine is a device error, counted. A fault stands for the access as
     * far as it lies in the same 4 KiB. Runs in a read section, perhaps under the lock of the
     * device that makes the access: lock-free. It may read RAM with bb_dma_load() and send
     * messages; other writes that it makes are posted, other reads refused. Tables that are
     * themselves reached through an IOMMU are translated BB_IOMMU_NEST_MAX deep.
     */
    int (*translate)(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry);
};

struct bb_iommu_config {
    const char *name;    /* copied, at most 31 bytes */
    uint64_t size_bytes; /* 1 to 2^64 - 2, or BB_SIZE_ALL */
    const struct bb_iommu_ops *ops;
    void *opaque;
};

/*
 * Makes every cached translation of [first, last] (offsets in the region; others too) void for all
 * requesters and contexts, and calls the notifiers whose range it meets, with the part that they
 * share. To be called after the tables were changed. When it returns, no access that begins uses
 * them. `done` (may be NULL) is called on bb-complete once no access that began before uses them
 * either; but a MAY_SLEEP or EXTERNAL_LOCK callback that such an access has reached is not waited
 * for, and a mapping made with bb_dma_map() stays: its owner adds a notifier.
 * Returns BB_OK; BB_E_INVAL for a region of another kind or engine; BB_E_RANGE for first > last;
 * BB_E_NOMEM (then the translations are void all the same, notifiers were called, and `done` will
 * not be called).
 * Threads: the context's own, also in callbacks; lock-free but for the notifiers'.
 */
BB_API int bb_iommu_invalidate(struct bb_ctx *ctx, struct bb_region *iommu, bb_gpa_t first,
                               bb_gpa_t last, void (*done)(void *opaque), void *opaque,
                               struct bb_error *err);
/* The same, waiting for them. Returns, besides, BB_E_CONTEXT inside any callback, section, pin or
 * lock. */
BB_API int bb_iommu_invalidate_wait(struct bb_ctx *ctx, struct bb_region *iommu, bb_gpa_t first,
                                    bb_gpa_t last, struct bb_error *err);

/*
 * Notifiers: for those who keep translations themselves (mappings made with bb_dma_map(), a device
 * in another process). `unmapped` is called by invalidations, `mapped` by bb_iommu_announce().
 */
struct bb_iommu_notifier;
struct bb_iommu_notifier_config {
    bb_gpa_t first, last; /* offsets in the region */
    void (*unmapped)(struct bb_ctx *ctx, void *opaque, bb_gpa_t first,
                     bb_gpa_t last); /* may be NULL */
    void (*mapped)(struct bb_ctx *ctx, void *opaque,
                   const struct bb_iommu_entry *entry); /* likewise */
    void *opaque;
};
/*
 * Adds or removes a notifier. Both are called in a read section by whoever invalidates or
 * announces, perhaps by several at once; they must not block. After bb_iommu_notifier_remove()
 * `done` (may be NULL) is called on bb-complete when neither runs nor will run.
 * Returns BB_OK; BB_E_INVAL for a region of another kind or engine, no callback; BB_E_RANGE;
 * BB_E_NOMEM.
 * Threads: the context's own; take the map's lock.
 * Lifetime: removed before its region.
 */
BB_API int bb_iommu_notifier_add(struct bb_ctx *ctx, struct bb_region *iommu,
                                 const struct bb_iommu_notifier_config *config,
                                 struct bb_iommu_notifier **notifier, struct bb_error *err);
BB_API int bb_iommu_notifier_remove(struct bb_ctx *ctx, struct bb_iommu_notifier *notifier,
                                    void (*done)(void *opaque), void *opaque, struct bb_error *err);

/* Tells the notifiers whose range the entry's page meets of a new translation. Returns BB_OK, or
 * BB_E_INVAL for a region of another kind or engine, or an entry that translate could not give.
 * Threads: the context's own; in callbacks too. */
BB_API int bb_iommu_announce(struct bb_ctx *ctx, struct bb_region *iommu,
                             const struct bb_iommu_entry *entry, struct bb_error *err);

/* Of the calling context: translations found in its cache, asked of a callback, and faults, those
 * past BB_IOMMU_NEST_MAX included. Threads: its own. */
struct bb_iommu_stats {
    uint64_t hits, misses, faults;
};
BB_API struct bb_iommu_stats bb_iommu_stats(const struct bb_ctx *ctx);

BB_END_DECLS

#endif
