/* SPDX-License-Identifier: MIT */
/*
 * The allocator interface, and heaps: one per engine, so that an engine's memory is its own, can
 * be accounted, and at destruction can be shown to have been given back.
 *
 * A heap's memory comes from a jemalloc arena of its own, built into the library under private
 * names so that the embedder's malloc is untouched; from libc under sanitizers, which can't see
 * into an arena; or from functions the embedder supplies. Freed with the size it was asked with.
 *
 * Threads: alloc, free and usage may run at once from any thread; create and destroy need
 * exclusion. Alloc and free may take a lock inside the allocator: they belong to control paths,
 * never to an access path.
 */
#ifndef BUSBAR_BASE_HEAP_H
#define BUSBAR_BASE_HEAP_H

#include "result.h"

BB_BEGIN_DECLS

/* What an embedder supplies to give an engine its memory. Both functions are called on any thread.
 */
struct bb_allocator {
    /* `bytes` > 0 of memory aligned to `align` (a power of two, 8 to 4096), or NULL. */
    void *(*alloc)(void *opaque, size_t bytes, size_t align);
    /* Takes back what alloc gave, with the size it was asked with. */
    void (*free)(void *opaque, void *memory, size_t bytes);
    void *opaque;
};

struct bb_heap;

struct bb_heap_usage {
    uint64_t live_bytes;  /* asked for and not yet freed */
    uint64_t live_blocks; /* likewise, in blocks */
    uint64_t arena_bytes; /* what the arena itself says is allocated; 0 where it can't say */
    const char *kind;     /* "jemalloc arena", "libc" or "embedder" */
};

/*
 * Creates a heap. `allocator` NULL means the built-in one.
 * Returns BB_OK, or BB_E_NOMEM, or BB_E_INVAL for an allocator with a NULL function.
 * Threads: any. Lifetime: until bb_heap_destroy(); `allocator` is copied, its `opaque` kept.
 */
BB_API int bb_heap_create(const struct bb_allocator *allocator, struct bb_heap **heap,
                          struct bb_error *err);

/*
 * Destroys a heap. Returns BB_OK, or BB_E_STATE with the number of blocks and bytes in the text
 * where something is still allocated; then the heap lives on and nothing was done.
 * Threads: one, while no other uses the heap.
 */
BB_API int bb_heap_destroy(struct bb_heap *heap, struct bb_error *err);

/*
 * Returns zeroed memory of `bytes`, aligned to 16, or NULL.
 * Threads: any; may take the allocator's lock. Lifetime: until bb_heap_free().
 */
BB_API void *bb_heap_alloc(struct bb_heap *heap, size_t bytes);

/* The same, aligned to `align`, a power of two from 8 to 4096. Threads, lifetime: as above. */
BB_API void *bb_heap_alloc_aligned(struct bb_heap *heap, size_t bytes, size_t align);

/*
 * Gives memory back; NULL is allowed. `bytes` is what it was asked with.
 * Threads: any, also another than the one that asked for it; may take the allocator's lock.
 */
BB_API void bb_heap_free(struct bb_heap *heap, void *memory, size_t bytes);

/* Returns what is allocated at this moment. Threads: any; each figure is exact on its own. */
BB_API struct bb_heap_usage bb_heap_usage(struct bb_heap *heap);

BB_END_DECLS

#endif
