/* SPDX-License-Identifier: MIT */
/*
 * Heaps: one allocator each, and counters that tell at destruction whether all came back; see
 * heap.h.
 *
 * Whatever the memory comes from, it is reached through a struct bb_allocator: the embedder's, one
 * over an arena of the heap's own, or one over libc. The counters are the heap's own, so that a
 * leak is found alike with every kind; an arena's statistics must agree with them in the end.
 *
 * Invariants: live_bytes and live_blocks count what alloc returned and free has not taken back;
 * every block that leaves this file is zeroed. The heap's own record is not in its arena, so that
 * an arena in which nothing is allocated is a heap that leaked nothing.
 */
#include "heap.h"

#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "base_internal.h"
#include "bits.h"

enum { HEAP_ALIGN_DEFAULT = 16, HEAP_ALIGN_MIN = 8, HEAP_ALIGN_MAX = 4096 };

struct bb_heap {
    struct bb_allocator allocator; /* immutable */
    struct bb_allocator record;    /* immutable: where this record itself came from */
    const char *kind;              /* immutable */
    bool has_arena;                /* immutable */
    unsigned arena;                /* immutable: its index, where has_arena */
    /* Written by any thread's alloc and free; read by usage and destroy. Independent counters:
     * nothing is published through them. */
    uint64_t live_bytes;
    uint64_t live_blocks;
};

static void *libc_alloc(void *opaque, size_t bytes, size_t align)
{
    void *memory = NULL;

    (void)opaque;
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void libc_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    free(memory);
}

static const struct bb_allocator libc_allocator = {libc_alloc, libc_free, NULL};

#ifdef BUSBAR_ARENA

static void *arena_alloc(void *opaque, size_t bytes, size_t align)
{
    const struct bb_heap *heap = opaque;
    return bb_arena_alloc_(heap->arena, bytes, align);
}

static void arena_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    bb_arena_free_(memory);
}

/* Gives a heap an arena of its own. A heap for which jemalloc makes none stays with libc. */
static void open_arena(struct bb_heap *heap)
{
    if (bb_arena_create_(&heap->arena)) {
        heap->has_arena = true;
        heap->kind = "jemalloc arena";
        heap->allocator = (struct bb_allocator){arena_alloc, arena_free, heap};
    }
}

static uint64_t arena_bytes(const struct bb_heap *heap)
{
    return heap->has_arena ? bb_arena_allocated_(heap->arena) : 0;
}

static void close_arena(struct bb_heap *heap)
{
    if (heap->has_arena) {
        bb_arena_destroy_(heap->arena);
    }
}

#else

static void open_arena(struct bb_heap *heap)
{
    (void)heap;
}

static uint64_t arena_bytes(const struct bb_heap *heap)
{
    (void)heap;
    return 0;
}

static void close_arena(struct bb_heap *heap)
{
    (void)heap;
}

#endif

int bb_heap_create(const struct bb_allocator *allocator, struct bb_heap **heap,
                   struct bb_error *err)
{
    const struct bb_allocator *record = allocator != NULL ? allocator : &libc_allocator;
    struct bb_heap *created;

    if (record->alloc == NULL || record->free == NULL) {
        return bb_error_set(err, BB_E_INVAL, "allocator has no %s function; both are needed",
                            record->alloc == NULL ? "alloc" : "free");
    }
    created = record->alloc(record->opaque, sizeof(*created), HEAP_ALIGN_DEFAULT);
    if (created == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a heap's record of %zu bytes",
                            sizeof(*created));
    }
    *created = (struct bb_heap){
        .allocator = *record,
        .record = *record,
        .kind = allocator != NULL ? "embedder" : "libc",
    };
    if (allocator == NULL) {
        open_arena(created);
    }
    *heap = created;
    return BB_OK;
}

int bb_heap_destroy(struct bb_heap *heap, struct bb_error *err)
{
    struct bb_heap_usage usage = bb_heap_usage(heap);

    if (usage.live_blocks != 0 || usage.live_bytes != 0) {
        return bb_error_set(err, BB_E_STATE, "%lld bytes in %lld blocks are still allocated",
                            (long long)usage.live_bytes, (long long)usage.live_blocks);
    }
    if (usage.arena_bytes != 0) {
        return bb_error_set(err, BB_E_STATE,
                            "all blocks were freed, yet the arena still holds %llu bytes: a block "
                            "was freed twice or with another's size",
                            (unsigned long long)usage.arena_bytes);
    }
    close_arena(heap);
    struct bb_allocator record = heap->record;
    record.free(record.opaque, heap, sizeof(*heap));
    return BB_OK;
}

void *bb_heap_alloc(struct bb_heap *heap, size_t bytes)
{
    return bb_heap_alloc_aligned(heap, bytes, HEAP_ALIGN_DEFAULT);
}

void *bb_heap_alloc_aligned(struct bb_heap *heap, size_t bytes, size_t align)
{
    if (bytes == 0 || !bb_is_pow2(align) || align < HEAP_ALIGN_MIN || align > HEAP_ALIGN_MAX) {
        return NULL;
    }
    void *memory = heap->allocator.alloc(heap->allocator.opaque, bytes, align);
    if (memory == NULL) {
        return NULL;
    }
    memset(memory, 0, bytes);
    /* Relaxed: destroy needs exclusion, and usage wants no more than each figure on its own. */
    bb_fetch_add_relaxed(&heap->live_bytes, (uint64_t)bytes);
    bb_fetch_add_relaxed(&heap->live_blocks, UINT64_C(1));
    return memory;
}

void bb_heap_free(struct bb_heap *heap, void *memory, size_t bytes)
{
    if (memory == NULL) {
        return;
    }
    /* Relaxed, as in alloc. Before the free, so that the counters never claim less than is live. */
    bb_fetch_add_relaxed(&heap->live_bytes, (uint64_t)0 - bytes);
    bb_fetch_add_relaxed(&heap->live_blocks, UINT64_MAX);
    heap->allocator.free(heap->allocator.opaque, memory, bytes);
}

struct bb_heap_usage bb_heap_usage(struct bb_heap *heap)
{
    return (struct bb_heap_usage){
        /* Relaxed: figures for people. */
        .live_bytes = bb_load_relaxed(&heap->live_bytes),
        .live_blocks = bb_load_relaxed(&heap->live_blocks),
        .arena_bytes = arena_bytes(heap),
        .kind = heap->kind,
    };
}
