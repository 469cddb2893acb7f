/* SPDX-License-Identifier: MIT */
/*
 * Counts of accesses by region and context, for who asks what a guest does.
 *
 * Each context keeps its own, in memory that it alone writes: no access writes a line that another
 * one touches. A region's slot is found by region->count_index: in chunks of 64 slots, which lie
 * in levels, of which level n holds 2^n chunks. So nothing is ever moved to grow, and a context
 * pays for the chunks that it has touched. The context's thread allocates a chunk when it first
 * needs it; where there is no memory the access is not counted, and goes on.
 *
 * An index is given to a later region once its region has been removed, and slots are not visited
 * for that. So a slot bears the serial number of the region that it counts for: whoever counts for
 * a younger region begins anew, and whoever comes late for an older one is not counted.
 *
 * Invariants:
 *  1. A slot has one writer, its context's thread; in the table of what is gone, whoever holds that
 *     table's mutex.
 *  2. Counts that are read between two loads of one serial belong to that serial: a slot that
 *     changes hands loses its serial first, and every count is stored with release, so that who
 *     has loaded one that is younger than the loss finds the loss.
 *  3. A chunk that others can find is freed or changes its writer under that mutex alone, under
 *     which they look.
 */
#include "engine_internal.h"

enum { SLOTS = 64, LEVELS = 27 }; /* 64 * (2^27 - 1) slots: more than count_index has values */

/* All (a). */
struct slot {
    uint64_t serial; /* 0: counts for nobody */
    uint64_t reads;
    uint64_t writes;
    uint64_t refused;
};

struct chunk {
    struct slot slot[SLOTS];
};

struct bb_tally_ {
    struct chunk **level[LEVELS]; /* (a), and so is what each points to: published by the writer */
};

struct bb_tallies_ {
    pthread_mutex_t mutex;
    struct bb_tally_ gone; /* of contexts that have detached; guarded by `mutex` */
};

static size_t level_bytes(unsigned level)
{
    return sizeof(struct chunk *) << level;
}

/* Where the slot of an index is. */
static unsigned place(uint32_t index, uint32_t *position)
{
    uint32_t number = index / SLOTS + 1;
    unsigned level = 31 - (unsigned)__builtin_clz(number);

    *position = number - (UINT32_C(1) << level);
    return level;
}

static struct slot *find(const struct bb_tally_ *tally, uint32_t index)
{
    uint32_t position;
    /* Acquire, both: pair with bb_publish_() in need(); relaxed would do for the writer itself. */
    struct chunk **chunks = bb_deref_(&tally->level[place(index, &position)]);
    struct chunk *chunk = chunks == NULL ? NULL : bb_deref_(&chunks[position]);

    return chunk == NULL ? NULL : &chunk->slot[index % SLOTS];
}

/* The same, made where it is not there. NULL without memory. */
static struct slot *need(struct bb_heap *heap, struct bb_tally_ *tally, uint32_t index)
{
    uint32_t position;
    unsigned level = place(index, &position);
    struct chunk **chunks = tally->level[level];
    struct chunk *chunk;

    if (chunks == NULL) {
        chunks = bb_heap_alloc(heap, level_bytes(level));
        if (chunks == NULL) {
            return NULL;
        }
        bb_publish_(&tally->level[level], chunks); /* pairs with find() */
    }
    chunk = chunks[position];
    if (chunk == NULL) {
        chunk = bb_heap_alloc_aligned(heap, sizeof(*chunk), BB_CACHE_LINE_BYTES);
        if (chunk == NULL) {
            return NULL;
        }
        bb_publish_(&chunks[position], chunk); /* pairs with find() */
    }
    return &chunk->slot[index % SLOTS];
}

/* One more; by the writer. Release: invariant 2, pairs with read_slot(). */
static void add(uint64_t *count, uint64_t more)
{
    bb_store_release(count, bb_load_relaxed(count) + more);
}

/* Makes the slot count for `serial`; false where that is older than what it counts for. */
static bool claim(struct slot *slot, uint64_t serial)
{
    uint64_t before = bb_load_relaxed(&slot->serial); /* relaxed: we are its writer */

    if (before == serial) {
        return true;
    }
    if (before > serial) {
        return false;
    }
    /* In this order: invariant 2. Relaxed: released by the stores behind it; all pair with
     * read_slot(). */
    bb_store_relaxed(&slot->serial, 0);
    bb_store_release(&slot->reads, 0);
    bb_store_release(&slot->writes, 0);
    bb_store_release(&slot->refused, 0);
    bb_store_release(&slot->serial, serial);
    return true;
}

void bb_tally_(struct bb_ectx_ *e, struct bb_counted_ region, bool write, int result)
{
    struct bb_heap *heap = e->engine->heap;
    struct bb_tally_ *tally = e->tally;

    if (tally == NULL) {
        tally = bb_heap_alloc(heap, sizeof(*tally));
        if (tally == NULL) {
            return;
        }
        bb_publish_(&e->tally, tally); /* pairs with visit_context() */
    }
    struct slot *slot = need(heap, tally, region.index);
    if (slot == NULL || !claim(slot, region.serial)) {
        return;
    }
    add(write ? &slot->writes : &slot->reads, 1);
    if (result != BB_OK) {
        add(&slot->refused, 1);
    }
}

/* What a table says of a region: false where it says nothing. On any thread that keeps the table.
 */
static bool read_slot(const struct bb_tally_ *tally, const struct bb_region *region,
                      struct bb_region_counts *counts)
{
    const struct slot *slot = find(tally, region->count_index);

    /* Acquire, all: pair with claim() and add(). The second load of the serial comes after the
     * counts' for that: invariant 2. */
    if (slot == NULL || bb_load_acquire(&slot->serial) != region->serial) {
        return false;
    }
    counts->reads = bb_load_acquire(&slot->reads);
    counts->writes = bb_load_acquire(&slot->writes);
    counts->refused = bb_load_acquire(&slot->refused);
    return bb_load_relaxed(&slot->serial) == region->serial;
}

struct count_visit {
    const struct bb_region *region;
    void (*visit)(void *opaque, const char *name, const struct bb_region_counts *counts);
    void *opaque;
};

static void visit_context(struct bb_ctx *ctx, void *arg)
{
    const struct count_visit *visit = arg;
    struct bb_tally_ *tally = bb_deref_(&bb_ectx_(ctx)->tally); /* pairs with bb_tally_() */
    struct bb_region_counts counts;

    if (tally != NULL && read_slot(tally, visit->region, &counts)) {
        visit->visit(visit->opaque, ctx->name, &counts);
    }
}

void bb_region_counts_each(struct bb_ctx *ctx, const struct bb_region *region,
                           void (*visit)(void *opaque, const char *name,
                                         const struct bb_region_counts *counts),
                           void *opaque)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;
    struct count_visit each = {region, visit, opaque};
    struct bb_region_counts counts;

    /* The mutex throughout, so that a context that detaches is met once: here or there. */
    pthread_mutex_lock(&engine->tallies->mutex);
    bb_rcu_each_ctx_(engine->rcu, visit_context, &each);
    if (read_slot(&engine->tallies->gone, region, &counts)) {
        visit(opaque, NULL, &counts);
    }
    pthread_mutex_unlock(&engine->tallies->mutex);
}

/* Adds what one chunk counted to another. Both are ours: invariant 1. */
static void merge(struct chunk *to, const struct chunk *from)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *sum = &to->slot[i];
        const struct slot *slot = &from->slot[i];
        /* Relaxed, all: their writer is this thread, or was one before that released the mutex. */
        uint64_t serial = bb_load_relaxed(&slot->serial);

        if (serial != 0 && claim(sum, serial)) {
            add(&sum->reads, bb_load_relaxed(&slot->reads));
            add(&sum->writes, bb_load_relaxed(&slot->writes));
            add(&sum->refused, bb_load_relaxed(&slot->refused));
        }
    }
}

/* Moves all that `from` has to `to`, allocating nothing, so that nothing can be lost. */
static void fold(struct bb_heap *heap, struct bb_tally_ *to, struct bb_tally_ *from)
{
    for (unsigned level = 0; level < LEVELS; level++) {
        struct chunk **sums = to->level[level];
        struct chunk **chunks = from->level[level];

        if (chunks != NULL && sums == NULL) {
            to->level[level] = chunks;
        } else if (chunks != NULL) {
            for (size_t i = 0; i < (size_t)1 << level; i++) {
                if (sums[i] == NULL) {
                    sums[i] = chunks[i];
                } else if (chunks[i] != NULL) {
                    merge(sums[i], chunks[i]);
                    bb_heap_free(heap, chunks[i], sizeof(*chunks[i]));
                }
            }
            bb_heap_free(heap, chunks, level_bytes(level));
        }
    }
}

void bb_tally_detach_(struct bb_ectx_ *e)
{
    struct bb_engine *engine = e->engine;
    struct bb_tally_ *tally = e->tally;

    if (tally == NULL) {
        return;
    }
    pthread_mutex_lock(&engine->tallies->mutex); /* invariant 3 */
    bb_store_relaxed(&e->tally, NULL);           /* relaxed: others look under the mutex */
    fold(engine->heap, &engine->tallies->gone, tally);
    pthread_mutex_unlock(&engine->tallies->mutex);
    bb_heap_free(engine->heap, tally, sizeof(*tally));
}

void bb_engine_count_accesses(struct bb_ctx *ctx, bool on)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;

    pthread_mutex_lock(&engine->control);
    uint32_t bits = bb_load_relaxed(&engine->map->gate); /* written under the mutex alone */

    bits = on ? bits | BB_SLOW_COUNT_ : bits & ~(uint32_t)BB_SLOW_COUNT_;
    /* Release: whoever loads this in place of what set_gate() (pause.c) stored before sees what it
     * would have seen there; pairs with fast_find() and bb_gate_enter_(). */
    bb_store_release(&engine->map->gate, bits);
    pthread_mutex_unlock(&engine->control);
}

int bb_tallies_create_(struct bb_engine *engine)
{
    struct bb_tallies_ *tallies = bb_heap_alloc(engine->heap, sizeof(*tallies));

    if (tallies == NULL) {
        return BB_E_NOMEM;
    }
    pthread_mutex_init(&tallies->mutex, NULL);
    engine->tallies = tallies;
    return BB_OK;
}

void bb_tallies_destroy_(struct bb_engine *engine)
{
    struct bb_tallies_ *tallies = engine->tallies;

    for (unsigned level = 0; level < LEVELS; level++) {
        struct chunk **chunks = tallies->gone.level[level];

        for (size_t i = 0; chunks != NULL && i < (size_t)1 << level; i++) {
            bb_heap_free(engine->heap, chunks[i], sizeof(*chunks[i]));
        }
        bb_heap_free(engine->heap, chunks, chunks == NULL ? 0 : level_bytes(level));
    }
    pthread_mutex_destroy(&tallies->mutex);
    bb_heap_free(engine->heap, tallies, sizeof(*tallies));
    engine->tallies = NULL;
}
