/* SPDX-License-Identifier: MIT */
/*
 * Where an access leads: the lookup, and the translations on the way.
 *
 * A translation is asked of the region's callback and kept in the context that asked, so a hit
 * reads no line that another thread writes but the region's epoch, and writes none at all.
 *
 * Why an invalidated translation is not used. Whoever changes the tables behind a region changes
 * them first and calls bb_iommu_invalidate() then, which moves the epoch by a read-modify-write
 * with release. A context loads the epoch with acquire, and only then looks for an entry that bears
 * this very epoch, or asks the callback and keeps the answer under it.
 *  1. An entry under epoch E was computed by a callback that began after E had been loaded. Where
 *     that load read what an invalidation stored, all that came before the invalidation is seen by
 *     the callback: no entry of an epoch is older than the invalidation that began the epoch, also
 *     where callback and invalidation ran at once (then the entry bears the epoch before it).
 *  2. An access that begins after bb_iommu_invalidate() has returned loads its epoch, or a later
 *     one: coherence of one word. Entries of epochs before it don't match.
 *  3. An access that loaded an epoch before it does so in the read section in which it uses what it
 *     found. The grace period that completes an invalidation begins after the epoch has moved: it
 *     waits for that section, and one that it does not wait for loads the new epoch.
 * An invalidation voids all of its region, whatever its range: an epoch a range would have every
 * hit look at more lines, and what is lost is asked for again at the cost of a callback.
 *
 * An entry names its region by serial, which no other region ever gets, and its target is a space,
 * which lives as long as the engine: an entry that outlives its region matches nothing and leads
 * nowhere.
 *
 * Bounds. Translations lead on at most BB_IOMMU_NEST_MAX times, and callbacks run inside one
 * another (a table that is itself reached through an IOMMU) at most as deep, so a table that leads
 * to itself ends in a fault.
 */
#include <assert.h>
#include <inttypes.h>

#include "memory_internal.h"

enum {
    IOTLB_SETS = 128,
    IOTLB_WAYS = 2,
    CACHED_BITS_MIN = 12,
    FAULT_BITS = 12,          /* how much a fault covers, at most: to the end of such a page */
    IOTLB_RETRY_MASK = 0x3ff, /* without memory for a cache it is tried again each 1024 misses */
};

/* Pages are kept by what they cover of aligned blocks of these sizes; see class_of(). */
static const uint8_t class_bits[] = {12, 21, 30};

struct iotlb_entry {
    uint64_t serial; /* of the region; 0: empty */
    uint64_t epoch;
    uint64_t who;
    struct bb_iommu_entry page;
};

struct bb_iotlb_ {
    unsigned classes; /* a bit for each class that has ever had an entry */
    struct iotlb_entry entry[IOTLB_SETS][IOTLB_WAYS];
};

struct bb_iommu_notifier {
    struct bb_rcu_head head;        /* once it is removed */
    struct bb_iommu_notifier *next; /* (a) written under the map's lock, read in sections */
    struct bb_region *region;
    struct bb_iommu_notifier_config config;
    struct bb_heap *heap;
    void (*done)(void *opaque);
    void *done_opaque;
};

struct bb_iommu_ {
    const struct bb_iommu_ops *ops; /* immutable, as the next two */
    void *opaque;
    uint64_t serial;
    uint64_t epoch;                      /* (a) moved by invalidations on any thread */
    struct bb_iommu_notifier *notifiers; /* (a) as `next` of a notifier */
};

static uint64_t who_of(struct bb_attrs attrs)
{
    return attrs.requester_id | (uint64_t)attrs.secure << 32 | (uint64_t)attrs.privileged << 33;
}

/* The class under which a page of that size is kept: the largest block that it fills. */
static unsigned class_of(unsigned page_bits)
{
    unsigned class = BB_ARRAY_LEN(class_bits) - 1;

    while (class_bits[class] > page_bits) {
        class --;
    }
    return class;
}

/* Odd multipliers, so that neighbouring blocks, requesters and regions fall on different sets. */
static struct iotlb_entry *set_of(struct bb_iotlb_ *iotlb, uint64_t serial, uint64_t who,
                                  bb_gpa_t iova, unsigned class)
{
    uint64_t key = (iova >> class_bits[class]) * UINT64_C(0x9e3779b97f4a7c15) +
                   who * UINT64_C(0xd1b54a32d192ed03) + serial * UINT64_C(0x8cb92ba72f3d8dd7) +
                   class;

    return iotlb->entry[((key ^ key >> 29) * UINT64_C(0xbf58476d1ce4e5b9)) >> 57];
}
_Static_assert(IOTLB_SETS == 1 << (64 - 57), "set_of() yields seven bits");

static bool covers(const struct bb_iommu_entry *page, bb_gpa_t iova)
{
    return ((iova ^ page->iova) & ~bb_mask_low(page->page_bits)) == 0;
}

static bool permits(const struct bb_iommu_entry *page, enum bb_iommu_access access)
{
    return (page->access & access) == (unsigned)access;
}

static const struct bb_iommu_entry *cache_find(struct bb_iotlb_ *iotlb, uint64_t serial,
                                               uint64_t epoch, uint64_t who, bb_gpa_t iova,
                                               enum bb_iommu_access access)
{
    for (unsigned left = iotlb->classes; left != 0; left &= left - 1) {
        const struct iotlb_entry *set =
            set_of(iotlb, serial, who, iova, (unsigned)__builtin_ctz(left));

        for (unsigned way = 0; way < IOTLB_WAYS; way++) {
            const struct iotlb_entry *entry = &set[way];
            if (entry->serial == serial && entry->epoch == epoch && entry->who == who &&
                covers(&entry->page, iova) && permits(&entry->page, access)) {
                return &entry->page;
            }
        }
    }
    return NULL;
}

/* In front of its set, whose last entry goes, unless it takes the place of an older answer to the
 * same question. */
static void cache_put(struct bb_iotlb_ *iotlb, const struct iotlb_entry *fresh, bb_gpa_t iova)
{
    unsigned class = class_of(fresh->page.page_bits);
    struct iotlb_entry *set = set_of(iotlb, fresh->serial, fresh->who, iova, class);

    if (set[0].serial != fresh->serial || set[0].who != fresh->who || !covers(&set[0].page, iova)) {
        set[1] = set[0];
    }
    set[0] = *fresh;
    iotlb->classes |= 1u << class;
}

/* On failure the context goes without. */
static void make_cache(struct bb_mem_ctx_ *mem)
{
    if (mem->iotlb == NULL && (mem->iommu_stats.misses & IOTLB_RETRY_MASK) == 0) {
        mem->iotlb =
            bb_heap_alloc_aligned(mem->map->heap, sizeof(*mem->iotlb), BB_CACHE_LINE_BYTES);
    }
}

void bb_iotlb_free_(struct bb_mem_ctx_ *mem)
{
    bb_heap_free(mem->map->heap, mem->iotlb, sizeof(*mem->iotlb));
    mem->iotlb = NULL;
}

/*
 * The pin keeps what the callback sets off to what rule 1 of the chains allows under a lock: RAM at
 * once, the rest posted or refused. It may well run under one, the accessing device's.
 */
int bb_iommu_ask_(struct bb_ctx *ctx, const struct bb_region *region, bb_gpa_t iova,
                  enum bb_iommu_access access, struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    const struct bb_iommu_ *iommu = region->iommu;

    ctx->pin_depth++;
    int result = iommu->ops->translate(ctx, iommu->opaque, iova, access, attrs, entry);
    ctx->pin_depth--;
    return result;
}

static int ask(struct bb_mem_ctx_ *mem, const struct bb_region *region, bb_gpa_t iova,
               enum bb_iommu_access access, struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    struct bb_ctx *ctx = &mem->base;
    int result;

    if (mem->translating == BB_IOMMU_NEST_MAX) {
        return BB_E_DECODE;
    }
    mem->translating++;
    if (mem->map->translate != NULL) {
        result = mem->map->translate(ctx, region, iova, access, attrs, entry);
    } else {
        uint32_t device_id = ctx->device_id;
        /* Relaxed: others read it for reports. */
        bb_store_relaxed(&ctx->device_id, region->owner_id);
        ctx->callback_depth++;
        result = bb_iommu_ask_(ctx, region, iova, access, attrs, entry);
        ctx->callback_depth--;
        bb_store_relaxed(&ctx->device_id, device_id);
    }
    mem->translating--;
    return result;
}

/* What a callback may answer, and no more: it is a device's, and reads tables of a guest's. */
static bool well_formed(const struct bb_mem_ctx_ *mem, const struct bb_iommu_entry *page,
                        bb_gpa_t iova)
{
    return page->target != NULL && page->target->root->map == mem->map && page->page_bits <= 63 &&
           ((page->iova | page->translated) & bb_mask_low(page->page_bits)) == 0 &&
           covers(page, iova);
}

/* What no cache has is asked for, into *fresh, whose key is filled in, and kept. */
static __attribute__((noinline)) int ask_anew(struct bb_mem_ctx_ *mem,
                                              const struct bb_region *region, bb_gpa_t iova,
                                              enum bb_iommu_access access, struct bb_attrs attrs,
                                              struct iotlb_entry *fresh)
{
    make_cache(mem);
    mem->iommu_stats.misses++;
    int result = ask(mem, region, iova, access, attrs, &fresh->page);
    if (result != BB_OK) {
        return result == BB_E_DECODE ? BB_E_DECODE : BB_E_DEVICE;
    }
    if (!well_formed(mem, &fresh->page, iova) || !permits(&fresh->page, access)) {
        return BB_E_DEVICE;
    }
    if (mem->iotlb != NULL && fresh->page.page_bits >= CACHED_BITS_MIN) {
        cache_put(mem->iotlb, fresh, iova);
    }
    return BB_OK;
}

/* The page that holds `iova`, in the cache or in *fresh, until the next translation; or the fault.
 */
static inline int translate(struct bb_mem_ctx_ *mem, const struct bb_region *region, bb_gpa_t iova,
                            enum bb_iommu_access access, struct bb_attrs attrs,
                            struct iotlb_entry *fresh, const struct bb_iommu_entry **page)
{
    const struct bb_iommu_ *iommu = region->iommu;
    uint64_t who = who_of(attrs);
    /* Before the cache is looked at and before the callback; pairs with bb_iommu_invalidate(). */
    uint64_t epoch = bb_load_acquire(&iommu->epoch);

    if (BB_LIKELY(mem->iotlb != NULL)) {
        *page = cache_find(mem->iotlb, iommu->serial, epoch, who, iova, access);
        if (BB_LIKELY(*page != NULL)) {
            mem->iommu_stats.hits++;
            return BB_OK;
        }
    }
    *fresh = (struct iotlb_entry){.serial = iommu->serial, .epoch = epoch, .who = who};
    *page = &fresh->page;
    return ask_anew(mem, region, iova, access, attrs, fresh);
}

/* `length` cut to the end of the aligned block of 2^bits bytes that holds `at`. */
static uint64_t cut(uint64_t length, uint64_t at, unsigned bits)
{
    uint64_t left = ~at & bb_mask_low(bits); /* behind `at` */

    return length - 1 > left ? left + 1 : length;
}

/*
 * `gpa` was found in no leaf. Cuts *length to the hole; or returns the leaf that holds it by now,
 * where a commit came in between.
 */
static const struct bb_flat_ *leaf_behind_hole(struct bb_mem_ctx_ *mem,
                                               const struct bb_space *space, bb_gpa_t gpa,
                                               uint64_t *length)
{
    /* Pairs with the release store of the root in bb_commit_publish_(). */
    const struct bb_root_ *root = bb_deref_(&mem->map->root);
    const struct bb_flat_ *next = bb_radix_next_(root->view[space->index].tree, gpa);

    if (next != NULL && next->first <= gpa) {
        return next;
    }
    if (next != NULL && next->first - gpa < *length) {
        *length = next->first - gpa;
    }
    return NULL;
}

int bb_map_resolve_(struct bb_mem_ctx_ *mem, struct bb_space *space, bb_gpa_t gpa, uint64_t length,
                    enum bb_iommu_access access, struct bb_attrs attrs, struct bb_found_ *found)
{
    assert(length != 0);
    for (unsigned level = 0;; level++) {
        uint64_t inside;
        const struct bb_flat_ *leaf = bb_map_find_inside_(mem, space, gpa, &inside);

        if (BB_UNLIKELY(leaf == NULL)) {
            leaf = leaf_behind_hole(mem, space, gpa, &length);
            if (leaf == NULL) {
                *found = (struct bb_found_){.space = space, .gpa = gpa, .length = length};
                return BB_OK;
            }
            inside = gpa - leaf->first;
        }
        if (length - 1 > leaf->last_offset - inside) {
            length = leaf->last_offset - inside + 1;
        }
        uint64_t offset = leaf->region_offset + inside;
        if (BB_LIKELY(leaf->kind != BB_KIND_IOMMU)) {
            *found = (struct bb_found_){
                .leaf = leaf, .space = space, .gpa = gpa, .offset = offset, .length = length};
            return BB_OK;
        }

        struct iotlb_entry fresh;
        const struct bb_iommu_entry *page = NULL;
        int result = level == BB_IOMMU_NEST_MAX
                         ? BB_E_DECODE
                         : translate(mem, leaf->region, offset, access, attrs, &fresh, &page);
        if (result != BB_OK) {
            mem->iommu_stats.faults++;
            found->length = cut(length, offset, FAULT_BITS);
            return result;
        }
        length = cut(length, offset, page->page_bits);
        gpa = page->translated + (offset - page->iova);
        space = page->target;
    }
}

/* Creation. */

int bb_iommu_create_(struct bb_ctx *ctx, const struct bb_iommu_config *config,
                     const struct bb_owner_ *owner, struct bb_region **region, struct bb_error *err)
{
    struct bb_heap *heap = bb_mem_ctx_(ctx)->map->heap;
    uint64_t last;

    if (config == NULL || region == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL,
                            "an IOMMU needs a configuration with a name, and a place");
    }
    if (config->ops == NULL || config->ops->translate == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "IOMMU '%.31s': ops is %s; it must point to a translate callback",
                            config->name, config->ops == NULL ? "NULL" : "without one");
    }
    if (!bb_size_last_(config->size_bytes, &last)) {
        return bb_error_set(err, BB_E_RANGE,
                            "IOMMU '%.31s': size_bytes is 0; it must be 1 to 2^64 - 2, or "
                            "BB_SIZE_ALL",
                            config->name);
    }
    struct bb_region *made = bb_region_alloc_(ctx, BB_KIND_IOMMU, config->name, last, owner, err);
    if (made == NULL) {
        return BB_E_NOMEM;
    }
    made->klass = BB_CLASS_LOCKFREE;
    made->iommu = bb_heap_alloc_aligned(heap, sizeof(*made->iommu), BB_CACHE_LINE_BYTES);
    int result = BB_E_NOMEM;
    if (made->iommu == NULL) {
        bb_error_set(err, result, "no memory for IOMMU '%.31s'", config->name);
    } else {
        made->iommu->ops = config->ops;
        made->iommu->opaque = config->opaque;
        result = bb_region_enlist_(ctx, made, err);
    }
    if (result != BB_OK) {
        bb_region_free_(heap, made);
        return result;
    }
    made->iommu->serial = made->serial;
    *region = made;
    return BB_OK;
}

void bb_iommu_free_(struct bb_heap *heap, struct bb_region *region)
{
    struct bb_iommu_ *iommu = region->iommu;

    if (iommu == NULL) {
        return;
    }
    for (struct bb_iommu_notifier *left = iommu->notifiers; left != NULL;) {
        struct bb_iommu_notifier *next = left->next;

        bb_heap_free(heap, left, sizeof(*left));
        left = next;
    }
    bb_heap_free(heap, iommu, sizeof(*iommu));
    region->iommu = NULL;
}

/* Invalidation. */

static int check_iommu(const struct bb_ctx *ctx, const struct bb_region *region, const char *what,
                       struct bb_error *err)
{
    if (region == NULL || region->kind != BB_KIND_IOMMU) {
        return bb_error_set(err, BB_E_INVAL, "%s: %s is no IOMMU region", what,
                            region == NULL ? "NULL" : region->name);
    }
    if (region->map != ((const struct bb_mem_ctx_ *)(const void *)ctx)->map) {
        return bb_error_set(err, BB_E_INVAL, "%s: '%s' is of another engine than the context", what,
                            region->name);
    }
    return BB_OK;
}

static int check_range(const struct bb_region *region, bb_gpa_t first, bb_gpa_t last,
                       const char *what, struct bb_error *err)
{
    if (first > last) {
        return bb_error_set(err, BB_E_RANGE,
                            "%s of '%s': first 0x%" PRIx64 " is behind last 0x%" PRIx64, what,
                            region->name, first, last);
    }
    return BB_OK;
}

static void tell_unmapped(struct bb_ctx *ctx, const struct bb_iommu_ *iommu, bb_gpa_t first,
                          bb_gpa_t last)
{
    bb_section_enter_(ctx);
    /* Acquire; partners: bb_iommu_notifier_add(), bb_iommu_notifier_remove(). */
    for (struct bb_iommu_notifier *at = bb_deref_(&iommu->notifiers); at != NULL;
         at = bb_deref_(&at->next)) {
        const struct bb_iommu_notifier_config *config = &at->config;

        if (config->unmapped != NULL && config->first <= last && first <= config->last) {
            config->unmapped(ctx, config->opaque, first > config->first ? first : config->first,
                             last < config->last ? last : config->last);
        }
    }
    bb_section_leave_(ctx);
}

/* Voids all translations of the region, and tells of the range. */
static void void_range(struct bb_ctx *ctx, struct bb_iommu_ *iommu, bb_gpa_t first, bb_gpa_t last)
{
    /* Release; partner: the acquire load in translate(). The caller's change of the tables comes
     * before the new epoch for whoever asks under it. */
    (void)bb_fetch_add_acq_rel(&iommu->epoch, 1);
    /*
     * The change of the tables before the load of the list. Its partner is the fence in
     * bb_iommu_notifier_add(). Without them somebody who adds a notifier and then reads the old
     * table might not be found here.
     */
    bb_fence_full();
    tell_unmapped(ctx, iommu, first, last);
}

struct voided {
    struct bb_rcu_head head;
    struct bb_heap *heap;
    void (*done)(void *opaque);
    void *opaque;
};

static void voided_done(struct bb_rcu_head *head)
{
    struct voided voided = *BB_CONTAINER_OF(head, struct voided, head);

    bb_heap_free(voided.heap, BB_CONTAINER_OF(head, struct voided, head), sizeof(voided));
    voided.done(voided.opaque);
}

int bb_iommu_invalidate(struct bb_ctx *ctx, struct bb_region *iommu, bb_gpa_t first, bb_gpa_t last,
                        void (*done)(void *opaque), void *opaque, struct bb_error *err)
{
    struct bb_heap *heap = bb_mem_ctx_(ctx)->map->heap;
    int result = check_iommu(ctx, iommu, "invalidation", err);

    if (result == BB_OK) {
        result = check_range(iommu, first, last, "invalidation", err);
    }
    if (result != BB_OK) {
        return result;
    }
    void_range(ctx, iommu->iommu, first, last);
    if (done == NULL) {
        return BB_OK;
    }
    struct voided *voided = bb_heap_alloc(heap, sizeof(*voided));
    if (voided == NULL) {
        return bb_error_set(err, BB_E_NOMEM,
                            "no memory to complete the invalidation of '%s', which is made",
                            iommu->name);
    }
    voided->heap = heap;
    voided->done = done;
    voided->opaque = opaque;
    bb_rcu_call(ctx, &voided->head, voided_done, sizeof(*voided));
    return BB_OK;
}

int bb_iommu_invalidate_wait(struct bb_ctx *ctx, struct bb_region *iommu, bb_gpa_t first,
                             bb_gpa_t last, struct bb_error *err)
{
    if (!bb_ctx_may_block_(ctx)) {
        return bb_error_set(err, BB_E_CONTEXT,
                            "an invalidation can't be waited for inside a callback, a section, a "
                            "pin or a lock; bb_iommu_invalidate() can be asked to tell");
    }
    int result = bb_iommu_invalidate(ctx, iommu, first, last, NULL, NULL, err);
    return result == BB_OK ? bb_rcu_synchronize(ctx) : result;
}

/* Notifiers. */

int bb_iommu_notifier_add(struct bb_ctx *ctx, struct bb_region *iommu,
                          const struct bb_iommu_notifier_config *config,
                          struct bb_iommu_notifier **notifier, struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    int result = check_iommu(ctx, iommu, "notifier", err);

    if (result != BB_OK) {
        return result;
    }
    if (config == NULL || notifier == NULL ||
        (config->unmapped == NULL && config->mapped == NULL)) {
        return bb_error_set(err, BB_E_INVAL,
                            "notifier of '%s': it needs a configuration with a callback, and a "
                            "place",
                            iommu->name);
    }
    result = check_range(iommu, config->first, config->last, "notifier", err);
    if (result != BB_OK) {
        return result;
    }
    struct bb_iommu_notifier *made = bb_heap_alloc(map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a notifier of '%s'", iommu->name);
    }
    made->region = iommu;
    made->config = *config;
    made->heap = map->heap;

    bb_lock_acquire(ctx, &map->lock);
    /* Relaxed: the list is written under the lock alone, and nobody sees `made` yet. */
    bb_store_relaxed(&made->next, bb_load_relaxed(&iommu->iommu->notifiers));
    /* Release; partner: the list's loads in tell_unmapped() and bb_iommu_announce(). */
    bb_publish_(&iommu->iommu->notifiers, made);
    bb_lock_release(ctx, &map->lock);
    /* The list before what the caller now reads of the tables; partner: void_range(). */
    bb_fence_full();
    *notifier = made;
    return BB_OK;
}

static void notifier_gone(struct bb_rcu_head *head)
{
    struct bb_iommu_notifier *notifier = BB_CONTAINER_OF(head, struct bb_iommu_notifier, head);
    void (*done)(void *opaque) = notifier->done;
    void *opaque = notifier->done_opaque;

    bb_heap_free(notifier->heap, notifier, sizeof(*notifier));
    if (done != NULL) {
        done(opaque);
    }
}

int bb_iommu_notifier_remove(struct bb_ctx *ctx, struct bb_iommu_notifier *notifier,
                             void (*done)(void *opaque), void *opaque, struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;

    if (notifier == NULL) {
        return bb_error_set(err, BB_E_INVAL, "there is no notifier NULL to remove");
    }
    if (notifier->region->map != map) {
        return bb_error_set(err, BB_E_INVAL,
                            "the notifier of '%s' is of another engine than the context",
                            notifier->region->name);
    }
    bb_lock_acquire(ctx, &map->lock);
    struct bb_iommu_notifier **link = &notifier->region->iommu->notifiers;
    /* Relaxed: as in bb_iommu_notifier_add(). */
    while (bb_load_relaxed(link) != notifier) {
        link = &bb_load_relaxed(link)->next;
    }
    /* Release: what follows may have been published since the link's holder was; partner: the
     * list's loads, as above. */
    bb_publish_(link, bb_load_relaxed(&notifier->next));
    bb_lock_release(ctx, &map->lock);
    notifier->done = done;
    notifier->done_opaque = opaque;
    bb_rcu_call(ctx, &notifier->head, notifier_gone, sizeof(*notifier));
    return BB_OK;
}

int bb_iommu_announce(struct bb_ctx *ctx, struct bb_region *iommu,
                      const struct bb_iommu_entry *entry, struct bb_error *err)
{
    int result = check_iommu(ctx, iommu, "announcement", err);

    if (result != BB_OK) {
        return result;
    }
    if (entry == NULL || !well_formed(bb_mem_ctx_(ctx), entry, entry->iova)) {
        return bb_error_set(err, BB_E_INVAL,
                            "announcement to '%s': it needs an entry with a target of this engine, "
                            "page_bits of 0 to 63, and both addresses aligned to the page",
                            iommu->name);
    }
    bb_gpa_t last = entry->iova + bb_mask_low(entry->page_bits);

    bb_section_enter_(ctx);
    /* Acquire; partners: bb_iommu_notifier_add(), bb_iommu_notifier_remove(). */
    for (struct bb_iommu_notifier *at = bb_deref_(&iommu->iommu->notifiers); at != NULL;
         at = bb_deref_(&at->next)) {
        const struct bb_iommu_notifier_config *config = &at->config;

        if (config->mapped != NULL && config->first <= last && entry->iova <= config->last) {
            config->mapped(ctx, config->opaque, entry);
        }
    }
    bb_section_leave_(ctx);
    return BB_OK;
}

struct bb_iommu_stats bb_iommu_stats(const struct bb_ctx *ctx)
{
    return ((const struct bb_mem_ctx_ *)(const void *)ctx)->iommu_stats;
}
