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
#include "dirty.h"
#include "inspect.h"
#include "iommu.h"
#include "ram.h"
#include "space.h"

enum {
    BB_RADIX_BITS_ = 6,
    BB_RADIX_SLOTS_ = 64,
    BB_RADIX_LEAF_TAG_ = 63,
    BB_RADIX_LEAF_BIT_ = 1, /* set in that tag, and in no shift: those are multiples of 6 */
    BB_HIT_SPACES_ = 8,     /* spaces share entries beyond this many; generations keep them apart */
    BB_HIT_WAY_BITS_ = 3,
    BB_HIT_WAYS_ = 1 << BB_HIT_WAY_BITS_,
    BB_ACCESS_BYTES_MAX_ = 64, /* of one access */
};

/*
 * Spreads addresses over the ways of a space's last-hit entries: odd, and chosen so that the
 * registers a PC guest polls (HPET, I/O APIC, PM timer, UART) fall on different ways.
 */
#define BB_HIT_MULTIPLIER_ UINT32_C(0x546e197b)

struct bb_ram_block_;
struct bb_iommu_;
struct bb_dirty_log_;

/* The doorbells and coalesced ranges of a region: immutable once published with a leaf. */
struct bb_coalesced_ {
    uint64_t first, last; /* offsets in the region */
};
struct bb_bells_ {
    struct bb_bells_ *next; /* the writer's: list of replaced ones */
    uint32_t doorbell_count;
    uint32_t coalesced_count;
    struct bb_coalesced_ *coalesced; /* in rising order, in the same allocation */
    size_t bytes;
    struct bb_doorbell doorbell[]; /* in rising order of offset */
};

struct bb_region {
    /* Immutable after creation; read by the access path. */
    int (*read)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value);
    int (*write)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value);
    int (*accept)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, bool write,
                  struct bb_attrs attrs);
    void *opaque;
    struct bb_device *owner; /* opaque here; NULL: none. (a) where bb_device_adopt() may set it,
                                once, under the map's lock: for kinds without callbacks */
    union {
        struct {
            uint32_t depth;    /* 1 */
            uint32_t owner_id; /* for ctx->device_id */
        };
        uint64_t frame; /* what the fast path stores in ctx->frame */
    };
    uint8_t kind;        /* enum bb_kind */
    uint8_t klass;       /* enum bb_class */
    uint8_t read_sizes;  /* OR of the sizes for which an aligned read goes straight to the callback:
                            valid,      implemented, native endianness, no accept hook, callback not
                            NULL */
    uint8_t write_sizes; /* likewise for writes */
    bool reentrant;
    uint8_t *host;                /* RAM, ROM device: first byte; else NULL */
    struct bb_access_rules rules; /* normalised: no zero sizes */
    const struct bb_path_row *paths;
    size_t path_count;
    uint32_t count_index; /* of its counters in each context; given again only to a later region */
    /* (a) A bit for each client that logs it, written by dirty.c alone. Every write of memory reads
     * it, so it stands among what nobody writes. */
    uint32_t dirty_clients;
    struct bb_ram_block_ *block; /* memory that is mapped here; NULL: the embedder's, or none */
    struct bb_iommu_ *iommu;     /* IOMMU regions */
    char name[BB_CTX_NAME_BYTES];
    const char *device_name; /* NULL: none. Set once more by bb_device_adopt(), under the map's
                                lock, under which it is read */

    /*
     * Who uses the region outside a section: mappings, events not yet told to listeners. A device's
     * region uses the device's pins, which removal waits for; others use their own, and so do RAM
     * regions that a device has adopted.
     */
    struct bb_pins_ *pins;
    struct bb_pins_ own_pins;
    uint32_t *coalesced; /* its device's count of coalesced ranges, under the map's lock; NULL: no
                            device */
    bool leaving; /* the engine's, under its table lock: the removal of this region, which has no
                     device, has been asked for, and no device adopts it any more */

    /* (a) Dirty logs, by client: dirty.c. */
    struct bb_dirty_log_ *dirty_log[BB_DIRTY_CLIENTS_MAX];
    bool log_told; /* listener.c's: listeners know that it is logged */

    /* The tree. Guarded by the map's lock, but `last` is (a): written under it, read anywhere. */
    uint64_t last;            /* highest offset */
    uint64_t last_max;        /* to which RAM may grow */
    struct bb_space *root_of; /* the space whose root this is */
    struct bb_region *parent; /* NULL: in no place */
    uint32_t attached;        /* of the edges that lead to it (its place, aliases of it), those from
                                 regions below a space's root; 1 for a root */
    struct bb_region *attach_next; /* while they are counted: change.c */
    uint64_t at;                   /* its offset there */
    int priority;
    bool enabled;
    bool removing;
    bool read_only;
    bool rom_mode;
    struct bb_region *child; /* first of its children, enabled or not, in no order */
    struct bb_region *sibling, **sibling_link;
    struct bb_region *index; /* root of the interval tree of its enabled children: interval.c */
    struct bb_region *left, *right; /* in its parent's */
    uint64_t reach;                 /* highest offset below this node of it */
    uint64_t serial;                /* orders nodes at one offset; never given twice */
    int height;
    struct bb_region *target; /* alias: what it shows; NULL once that is removed */
    uint64_t target_offset;
    struct bb_region *aliases; /* first of those that show this region */
    struct bb_region *alias_next, **alias_link;
    struct bb_bells_ *bells; /* NULL: none */
    uint64_t mark;           /* number of the last walk that met it */
    struct bb_map *map;      /* whose it is; immutable */
    struct bb_region *all_next,
        **all_link; /* all regions but roots, until retired: what destruction names */
};

/* What a flat view shows in [first, last]: a part of one region, from its byte `offset` on. */
struct bb_piece_ {
    bb_gpa_t first;
    bb_gpa_t last;
    struct bb_region *region;
    uint64_t offset;
    const struct bb_bells_ *bells; /* the region's, at the time of the commit */
    bool read_only;                /* the region's own, or an alias's on the way to it */
    bool memory;                   /* reads are of the region's host memory */
    bool drains;                   /* its device has coalesced ranges: accesses drain them first */
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
    uint64_t frame;       /* what the fast path stores in ctx->frame */
    uint32_t read_sizes;  /* sizes of which every read that is aligned in the region goes straight
                             to its callback: the region's own, where it is LOCKFREE and the range
                             ends on a multiple of them; else 0 */
    uint32_t write_sizes; /* likewise for writes; 0 too where the region has bells */
    struct bb_region *region;
    int (*write)(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value);
    uint8_t *host; /* of `first`, where `memory`; else NULL */
    const struct bb_bells_ *bells;
    uint8_t kind; /* enum bb_kind */
    bool read_only;
    bool memory;
    bool drains; /* as in struct bb_piece_; then no access is fast */
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
    struct bb_bells_ *dead_bells;
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
    uint64_t last;        /* highest address */
    uint64_t decode_fill; /* what a read of nothing yields, 8 bytes of it */
    uint64_t device_fill; /* what a refused read yields */
    struct bb_region *root;
    char name[BB_CTX_NAME_BYTES];
};

struct bb_map {
    struct bb_root_ *root; /* (a) published by commit under `lock`; read in sections */
    uint32_t gate; /* (a) the engine's: loaded beside `root` by every access; see engine/pause.c */
    struct bb_rcu *rcu;
    struct bb_heap *heap;
    /* The engine's, set once before any context is attached: calls bb_iommu_ask_() in a frame of
     * the chain. NULL: there are no chains. */
    int (*translate)(struct bb_ctx *ctx, const struct bb_region *region, bb_gpa_t iova,
                     enum bb_iommu_access access, struct bb_attrs attrs,
                     struct bb_iommu_entry *entry);
    struct bb_lock lock; /* rank MAP: one writer */
    /* Guarded by `lock`. */
    uint64_t generation; /* last given out */
    uint64_t txn;        /* last commit number */
    struct bb_space *space[BB_SPACES_MAX];
    uint32_t space_count;
    struct bb_region *all; /* regions not yet retired, but spaces' roots: what destruction names */
    uint64_t serial;       /* last given to a region */
    uint64_t walk;         /* number of the last walk up the tree */
    struct bb_node_pool_ pool;
    struct bb_scratch_ *scratch;     /* buffers that commits use again: map.c */
    struct bb_listeners_ *listeners; /* listener.c; guarded by its own lock besides */
    struct bb_dirty_ *dirty;         /* dirty.c: the clients */
    /* Guarded by `lock`. */
    uint32_t *count_free; /* counter indexes given back */
    uint32_t count_free_count, count_free_room, count_next;
};

/* A space's last-hit entries, one a way; each half is an array, so that a way scales an address. */
struct bb_hits_ {
    uint64_t generation[BB_HIT_WAYS_]; /* 0: empty */
    const struct bb_flat_ *leaf[BB_HIT_WAYS_];
};

struct bb_iotlb_;

/* memory's part of a context. */
struct bb_mem_ctx_ {
    struct bb_ctx base;
    struct bb_map *map;                   /* immutable */
    struct bb_hits_ hits[BB_HIT_SPACES_]; /* owner only */
    struct bb_iotlb_ *iotlb;              /* owner only, as the next two: iommu.c */
    struct bb_iommu_stats iommu_stats;
    uint32_t translating; /* translate callbacks active */
    bool untold; /* owner only: commits made in this chain's callbacks have yet to be told to
                    listeners */
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

/* A region's device, as far as memory/ has to do with it. All zero: none. */
struct bb_owner_ {
    struct bb_device *device;
    uint32_t id;
    const char *name; /* outlives its regions */
    struct bb_pins_ *pins;
    uint32_t *coalesced;
};

/*
 * region.c: a zeroed region of a kind and size (`last` is its highest offset), with its name,
 * enabled, in no place, not yet known to the map; and its entry in the map's list, with which it
 * gets a serial and an index for counters. NULL / BB_E_NOMEM with the error set.
 */
struct bb_region *bb_region_alloc_(struct bb_ctx *ctx, enum bb_kind kind, const char *name,
                                   uint64_t last, const struct bb_owner_ *owner,
                                   struct bb_error *err);
int bb_region_enlist_(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err);
/* What a size of containers and the like means: its highest offset. False for 0. */
bool bb_size_last_(uint64_t size_bytes, uint64_t *last);
/* And back. */
uint64_t bb_last_size_(uint64_t last);

/*
 * Makes an I/O region or a ROM device. Checks and normalises the rules. Errors as for
 * bb_device_region_create().
 */
int bb_region_create_io_(struct bb_ctx *ctx, const struct bb_region_config *config,
                         const struct bb_owner_ *owner, struct bb_region **region,
                         struct bb_error *err);
/*
 * First half of removal: refuses later placing, takes it out of its place, its children out of it,
 * and what its aliases show away (one commit for all of `count` regions). BB_E_STATE where one is
 * being removed already; BB_E_INVAL for a space's root.
 */
int bb_regions_retire_(struct bb_ctx *ctx, struct bb_region *const *regions, size_t count,
                       struct bb_error *err);
/* Second half: frees it. No section or pin may still see it. On any thread. */
void bb_region_free_(struct bb_heap *heap, struct bb_region *region);

/* ram.c: zeroed memory for a ROM device, into region->host and region->block; and the end of
 * either. */
int bb_ram_attach_(struct bb_ctx *ctx, struct bb_region *region, uint64_t bytes,
                   struct bb_error *err);
void bb_ram_free_(struct bb_heap *heap, struct bb_region *region);

/* dirty.c. The map's clients; a region's logs, once nobody sees them. */
int bb_dirty_create_(struct bb_map *map);
void bb_dirty_destroy_(struct bb_map *map);
void bb_dirty_free_(struct bb_heap *heap, struct bb_region *region);
void bb_dirty_mark_(struct bb_region *region, uint64_t offset, uint64_t length);

/* After bytes of a region's memory were written, in the section in which it was found. */
static inline void bb_dirty_wrote_(struct bb_region *region, uint64_t offset, uint64_t length)
{
    /* Relaxed: a client that starts waits for a grace period after it has set its bit, and for the
     * logs' own order see dirty.c. */
    if (BB_UNLIKELY(bb_load_relaxed(&region->dirty_clients) != 0)) {
        bb_dirty_mark_(region, offset, length);
    }
}

/* iommu.c. */
int bb_iommu_create_(struct bb_ctx *ctx, const struct bb_iommu_config *config,
                     const struct bb_owner_ *owner, struct bb_region **region,
                     struct bb_error *err);
void bb_iommu_free_(struct bb_heap *heap, struct bb_region *region);
void bb_iotlb_free_(struct bb_mem_ctx_ *mem); /* when a context ends */
/* Calls the region's translate callback, with what it does besides reaching RAM kept from running
 * at once; the frame is the caller's. */
int bb_iommu_ask_(struct bb_ctx *ctx, const struct bb_region *region, bb_gpa_t iova,
                  enum bb_iommu_access access, struct bb_attrs attrs, struct bb_iommu_entry *entry);

/* Where an access of [gpa, gpa + length) leads. */
struct bb_found_ {
    const struct bb_flat_ *leaf; /* never an IOMMU's; NULL: nothing there */
    struct bb_space *space;      /* where it was found: behind the last translation */
    bb_gpa_t gpa;                /* likewise */
    uint64_t offset;             /* in the region */
    uint64_t length; /* how much of it lies in this leaf, this hole, these translations: 1 at
                        least, at most what was asked */
};
/*
 * Looks up and translates. BB_OK, with *found whole; or the result that the access has: a fault of
 * a translation (BB_E_DECODE, BB_E_DEVICE), then found->length alone is set. In a read section;
 * what is found is valid until that ends.
 */
int bb_map_resolve_(struct bb_mem_ctx_ *mem, struct bb_space *space, bb_gpa_t gpa, uint64_t length,
                    enum bb_iommu_access access, struct bb_attrs attrs, struct bb_found_ *found);

/*
 * RAM is shared with vCPUs that run outside busbar. Relaxed: each piece is one copy of naturally
 * aligned bytes; order between accesses is the guest's own business, and the engine's rule about
 * DMA data and interrupts is kept by line and MSI code. Size 1, 2, 4 or 8, aligned.
 */
static inline uint64_t bb_ram_load_(const void *at, unsigned size)
{
    switch (size) {
    case 1:
        return bb_load_relaxed((const uint8_t *)at);
    case 2:
        return bb_load_relaxed((const uint16_t *)at);
    case 4:
        return bb_load_relaxed((const uint32_t *)at);
    default:
        return bb_load_relaxed((const uint64_t *)at);
    }
}

/* Relaxed: as for bb_ram_load_(). */
static inline void bb_ram_store_(void *at, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        bb_store_relaxed((uint8_t *)at, (uint8_t)value);
        break;
    case 2:
        bb_store_relaxed((uint16_t *)at, (uint16_t)value);
        break;
    case 4:
        bb_store_relaxed((uint32_t *)at, (uint32_t)value);
        break;
    default:
        bb_store_relaxed((uint64_t *)at, value);
        break;
    }
}

/*
 * access.c: one access of 1 to 64 bytes that lies inside the region, by its rules: refuses it, or
 * makes one or several callbacks, widened, split, byte-swapped; or touches memory. Whatever the
 * class asks for (lock, pin) is held by the caller, who also keeps what `leaf` says alive. `bytes`
 * is written on success only, in order of address. Returns BB_OK, BB_E_DEVICE, or BB_E_DECODE where
 * the accept hook says so.
 */
int bb_leaf_read_(struct bb_ctx *ctx, const struct bb_flat_ *leaf, uint64_t offset, void *bytes,
                  unsigned size, struct bb_attrs attrs);
int bb_leaf_write_(struct bb_ctx *ctx, const struct bb_flat_ *leaf, uint64_t offset,
                   const void *bytes, unsigned size, struct bb_attrs attrs);

/*
 * For the engine's end, when no context is left but its own: whether a listener, a client of dirty
 * logs, is there; its name goes to `name`.
 */
bool bb_listeners_left_(const struct bb_map *map, char name[BB_CTX_NAME_BYTES]);
bool bb_dirty_left_(const struct bb_map *map, char name[BB_CTX_NAME_BYTES]);

/* listener.c: tells what commits made in callbacks have left untold. With nothing held. */
void bb_listeners_settle_(struct bb_ctx *ctx);
/* Whether there is such; a commit of the caller's comes behind all that may pin what it removed. */
bool bb_listeners_untold_(const struct bb_map *map);

#endif
