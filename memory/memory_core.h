/* SPDX-License-Identifier: MIT */
/*
 * What engine/ needs of memory/: the region's layout, the published view, and the inlined lookup.
 * Not installed.
 *
 * The view. One immutable root per map, published by one release store, holds for every space its
 * generation and the tagged pointer to its radix tree. A tree node has 64 slots, one for each
 * value of six address bits; levels that would have a single child are left out (the leaf's own
 * bounds are checked in the end, so skipped bits need no check on the way down). A slot word is
 *   0                         nothing below
 *   leaf pointer | 63         a struct bb_flat_, 64-byte aligned
 *   node pointer | shift      a struct bb_node_, 64-byte aligned; shift 0, 6, ... 60
 * so that the shift by which the address is moved is the slot word itself (x86 masks it).
 *
 * Invariants:
 *  1. Nodes, leaves and roots reachable from a published root never change.
 *  2. A generation is given to one view of one space once in the engine's life. A commit announces
 *     it in the space before it publishes the root that has the view. A last-hit entry with the
 *     generation that the reader just loaded from the space names a leaf of that view: the entry
 *     was made from the published root, and the commit that replaces the view, had it announced
 *     itself, would have changed the generation. So the view was current when the generation was
 *     loaded, and the reader's section, which began before any grace period for its successor,
 *     keeps the leaf alive. Between announcement and publication entries don't match, and readers
 *     walk the old root: nobody sees the new view before all entries of the old one are void.
 *  3. What a commit replaced is freed after a grace period that began after the new root was
 *     published.
 */
#ifndef BUSBAR_MEMORY_CORE_H
#define BUSBAR_MEMORY_CORE_H

#include "../rcu/rcu_core.h"
#include "region.h"
#include "space.h"

enum {
    BB_RADIX_BITS_ = 6,
    BB_RADIX_SLOTS_ = 64,
    BB_RADIX_LEAF_TAG_ = 63,
    BB_RADIX_LEAF_BIT_ = 1, /* set in that tag, and in no shift: those are multiples of 6 */
    BB_HIT_SPACES_ = 8,     /* spaces share entries beyond this many; generations keep them apart */
    BB_HIT_WAY_BITS_ = 3,
    BB_HIT_WAYS_ = 1 << BB_HIT_WAY_BITS_,
};

/*
 * Spreads addresses over the ways of a space's last-hit entries: odd, and chosen so that the
 * registers a PC guest polls (HPET, I/O APIC, PM timer, UART) fall on different ways.
 */
#define BB_HIT_MULTIPLIER_ UINT32_C(0x546e197b)

enum bb_region_kind_ { BB_REGION_IO_, BB_REGION_RAM_ };

struct bb_region {
    /* Immutable after creation; read by the access path. */
    int (*read)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    int (*write)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value);
    void *opaque;
    struct bb_device *owner; /* opaque here; NULL for RAM */
    union {
        struct {
            uint32_t depth;    /* 1 */
            uint32_t owner_id; /* for ctx->device_id */
        };
        uint64_t frame; /* what the fast path stores in ctx->frame */
    };
    uint8_t kind;       /* enum bb_region_kind_ */
    uint8_t klass;      /* enum bb_class */
    uint8_t fast_sizes; /* OR of the sizes for which an aligned access goes straight to the
                           callbacks: valid, implemented, native endianness, both non-NULL
                           callbacks */
    bool reentrant;
    uint8_t *host; /* RAM: first byte; else NULL */
    uint64_t size_bytes;
    struct bb_access_rules rules; /* normalised: no zero sizes */
    bool read_only;
    bool host_owned; /* RAM that busbar mapped itself */
    const struct bb_path_row *paths;
    size_t path_count;
    char name[BB_CTX_NAME_BYTES];
    /* Guarded by the map's lock. */
    struct bb_space *space; /* where it is mapped; NULL: nowhere */
    bb_gpa_t gpa;
    bool removing;
    struct bb_region *ram_next; /* the map's list of RAM, until it is retired */
};

/*
 * One mapped range: a leaf of the tree. The first cache line holds all that a read needs, copied
 * from the region, so that an access to a range out of many meets one cold line and not two.
 */
struct bb_flat_ {
    bb_gpa_t first;
    uint64_t last_offset;   /* size - 1 */
    uint64_t region_offset; /* of `first` inside the region */
    int (*read)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    void *opaque;
    struct bb_device *owner;
    uint64_t frame;      /* what the fast path stores in ctx->frame */
    uint32_t fast_sizes; /* sizes of which every access that is aligned in the region goes straight
                            to its callbacks: the region's own, where it is LOCKFREE and the range
                            ends on a multiple of them; else 0 */
    struct bb_region *region;
    /* The writer's, under the map's lock; no reader looks at them. */
    uint64_t txn; /* the commit that made it */
    struct bb_flat_ *next;
};
_Static_assert(offsetof(struct bb_flat_, region) == BB_CACHE_LINE_BYTES, "the read's own line");

struct bb_node_ {
    uintptr_t slot[BB_RADIX_SLOTS_];
    /* The writer's, under the map's lock; readers look at `used` alone, to walk. */
    uint64_t used; /* a bit for each slot that is not 0 */
    bb_gpa_t base; /* first address of the aligned block of 64 << shift that the node stands for */
    uint64_t txn;  /* the commit that made it; it alone may change it before publication */
    struct bb_node_ *next; /* in the list of spare, or of replaced, nodes */
};

struct bb_view_ {
    uint64_t generation; /* never 0 */
    uintptr_t tree;      /* a slot word */
};

struct bb_root_ {
    struct bb_rcu_head head; /* defers the root and, with it, what its successor replaced */
    size_t bytes;
    /* Set by the commit that replaces it; what is freed along with it. */
    struct bb_heap *heap;
    struct bb_node_ *dead_nodes;
    struct bb_flat_ *dead_leaves;
    struct bb_view_ view[]; /* by space index */
};

/* Nodes ready for use, so that one change of a tree can't run out of memory half-way. */
struct bb_node_pool_ {
    struct bb_node_ *first;
    unsigned count;
};

struct bb_space {
    uint64_t generation;  /* (a) of its newest view; written by commit under the map's lock, before
                             the root; read by the access path */
    uint32_t index;       /* immutable from here to name */
    uint32_t hit_offset;  /* of this space's last-hit entries in struct bb_mem_ctx_ */
    uint32_t view_offset; /* of this space's view in struct bb_root_ */
    uint8_t kind;
    uint64_t last;       /* highest address */
    uint64_t unassigned; /* what a read of nothing yields: all ones or zero */
    char name[BB_CTX_NAME_BYTES];
};

struct bb_map {
    struct bb_root_ *root; /* (a) published by commit under `lock`; read in sections */
    uint32_t gate; /* (a) the engine's: loaded beside `root` by every access; see engine/pause.c */
    struct bb_rcu *rcu;
    struct bb_heap *heap;
    struct bb_lock lock; /* rank MAP: one writer */
    /* Guarded by `lock`. */
    uint64_t generation; /* last given out */
    uint64_t txn;        /* last commit number */
    struct bb_space *space[BB_SPACES_MAX];
    uint32_t space_count;
    struct bb_region *ram; /* RAM regions not yet retired: what destruction names */
    struct bb_node_pool_ pool;
};

/* A space's last-hit entries, one a way; each half is an array, so that a way scales an address. */
struct bb_hits_ {
    uint64_t generation[BB_HIT_WAYS_]; /* 0: empty */
    const struct bb_flat_ *leaf[BB_HIT_WAYS_];
};

/* memory's part of a context. */
struct bb_mem_ctx_ {
    struct bb_ctx base;
    struct bb_map *map;                   /* immutable */
    struct bb_hits_ hits[BB_HIT_SPACES_]; /* owner only */
};

static inline struct bb_mem_ctx_ *bb_mem_ctx_(struct bb_ctx *ctx)
{
    return (struct bb_mem_ctx_ *)(void *)ctx;
}

int bb_map_create_(struct bb_rcu *rcu, struct bb_heap *heap, struct bb_map **map,
                   struct bb_error *err);
/* The last: no contexts are left, all regions are unmapped. */
void bb_map_destroy_(struct bb_map *map);

/*
 * Walks the tree of `view` for `gpa`. Returns the leaf that holds it or NULL. In a read section;
 * wait-free: at most 11 steps.
 */
static inline const struct bb_flat_ *bb_view_find_(const struct bb_view_ *view, bb_gpa_t gpa)
{
    uintptr_t word = view->tree;

    while ((word & BB_RADIX_LEAF_BIT_) == 0) {
        if (word == 0) {
            return NULL;
        }
        const struct bb_node_ *node = (const struct bb_node_ *)(word & ~(uintptr_t)63);
        word = node->slot[(gpa >> (word & 63)) & (BB_RADIX_SLOTS_ - 1)];
    }
    const struct bb_flat_ *leaf = (const struct bb_flat_ *)(word - BB_RADIX_LEAF_TAG_);
    return gpa - leaf->first <= leaf->last_offset ? leaf : NULL;
}

/*
 * What lies at `gpa`, and how far behind its first address in *inside; or NULL. In a read section;
 * valid until that ends.
 */
static inline __attribute__((always_inline)) const struct bb_flat_ *
bb_map_find_inside_(struct bb_mem_ctx_ *mem, const struct bb_space *space, bb_gpa_t gpa,
                    uint64_t *inside)
{
    struct bb_hits_ *hits = (void *)((char *)mem + space->hit_offset);
    uint32_t way = ((uint32_t)gpa * BB_HIT_MULTIPLIER_) >> (32 - BB_HIT_WAY_BITS_);

    /* Pairs with the announcement in bb_commit_publish_(); invariant 2. */
    if (BB_LIKELY(hits->generation[way] == bb_load_acquire(&space->generation))) {
        const struct bb_flat_ *leaf = hits->leaf[way];

        *inside = gpa - leaf->first;
        if (BB_LIKELY(*inside <= leaf->last_offset)) {
            return leaf;
        }
    }
    /* Pairs with the release store of the root in bb_commit_publish_(). */
    const struct bb_root_ *root = bb_deref_(&mem->map->root);
    const struct bb_view_ *view = (const void *)((const char *)root + space->view_offset);
    const struct bb_flat_ *leaf = bb_view_find_(view, gpa);

    if (leaf != NULL) {
        *inside = gpa - leaf->first;
        hits->generation[way] = view->generation;
        hits->leaf[way] = leaf;
    }
    return leaf;
}

static inline const struct bb_flat_ *bb_map_find_(struct bb_mem_ctx_ *mem,
                                                  const struct bb_space *space, bb_gpa_t gpa)
{
    uint64_t inside;

    return bb_map_find_inside_(mem, space, gpa, &inside);
}

/*
 * Makes an I/O region; the owner is opaque here. Checks and normalises the rules: sizes are powers
 * of two in order, 1 to 8. Errors as for bb_device_region_create().
 */
int bb_region_create_io_(struct bb_ctx *ctx, const struct bb_region_config *config,
                         struct bb_device *owner, uint32_t owner_id, struct bb_region **region,
                         struct bb_error *err);
/*
 * First half of removal: refuses later mappings and unmaps it if mapped (one commit for all of
 * `count` regions). BB_E_STATE where one is being removed already.
 */
int bb_regions_retire_(struct bb_ctx *ctx, struct bb_region *const *regions, size_t count,
                       struct bb_error *err);
/* Second half: frees it. No section or pin may still see it. On any thread. */
void bb_region_free_(struct bb_heap *heap, struct bb_region *region);

/*
 * One access of `size` 1, 2, 4 or 8 that lies inside the region, by its rules: refuses it
 * (BB_E_DEVICE), or makes one or several callbacks, widened, split, byte-swapped. Whatever the
 * class asks for (lock, pin) is held by the caller. RAM: relaxed-atomic pieces, read-only refused.
 * `*value` is written on success only.
 */
int bb_region_read_(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                    unsigned size, uint64_t *value);
int bb_region_write_(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                     unsigned size, uint64_t value);

#endif
