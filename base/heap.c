/* SPDX-License-Identifier: MIT */
/*
 * Heaps: one allocator each, and counters that tell at destruction whether all came back; see
 * heap.h.
 *
 * Whatever the memory comes from, it is reached through a struct bb_allocator: the embedder's, or
 * one over libc. The counters are the heap's own, so that a leak is found alike with every kind.
 *
 * Invariants: live_bytes and live_blocks count what alloc returned and free has not taken back;
 * every block that leaves this file is zeroed.
 */
#include "heap.h"

#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "bits.h"

enum { HEAP_ALIGN_DEFAULT = 16, HEAP_ALIGN_MIN = 8, HEAP_ALIGN_MAX = 4096 };

struct bb_heap {
    struct bb_allocator allocator; /* immutable */
    const char *kind;              /* immutable */
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

int bb_heap_create(const struct bb_allocator *allocator, struct bb_heap **heap,
                   struct bb_error *err)
{
    static const struct bb_allocator libc = {libc_alloc, libc_free, NULL};
    struct bb_heap *created;

    if (allocator != NULL && (allocator->alloc == NULL || allocator->free == NULL)) {
        return bb_error_set(err, BB_E_INVAL, "allocator has no %s function; both are needed",
                            allocator->alloc == NULL ? "alloc" : "free");
    }
    const struct bb_allocator *used = allocator != NULL ? allocator : &libc;
    created = used->alloc(used->opaque, sizeof(*created), HEAP_ALIGN_DEFAULT);
    if (created == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a heap of %zu bytes", sizeof(*created));
    }
    *created = (struct bb_heap){
        .allocator = *used,
        .kind = allocator != NULL ? "embedder" : "libc",
    };
    *heap = created;
    return BB_OK;
}

int bb_heap_destroy(struct bb_heap *heap, struct bb_error *err)
{
    struct bb_heap_usage usage = bb_heap_usage(heap);

    if (usage.live_blocks != 0) {
        return bb_error_set(err, BB_E_STATE, "%llu bytes in %llu blocks are still allocated",
                            (unsigned long long)usage.live_bytes,
                            (unsigned long long)usage.live_blocks);
    }
    struct bb_allocator allocator = heap->allocator;
    allocator.free(allocator.opaque, heap, sizeof(*heap));
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
        .arena_bytes = 0,
        .kind = heap->kind,
    };
}
