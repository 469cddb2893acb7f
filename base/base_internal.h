/* SPDX-License-Identifier: MIT */
/*
 * Arenas: jemalloc's, from a copy of it whose names are private to busbar. Only heap.c uses them,
 * and only where the build found jemalloc and no sanitizer is on (BUSBAR_ARENA).
 *
 * An arena is named by jemalloc's index of it. Alloc and free may run at once from any thread;
 * create and destroy of one arena need exclusion. No thread cache stands in between, so that what
 * was freed is back in the arena when free returns, its statistics are exact, and destroying it
 * leaves no cache with pointers into it. That costs about 150 ns a call, on control paths only.
 */
#ifndef BUSBAR_BASE_INTERNAL_H
#define BUSBAR_BASE_INTERNAL_H

#include "api.h"

/* Creates an arena and stores its index. False where jemalloc can make no more. */
bool bb_arena_create_(unsigned *index);

/* Destroys an arena and gives its pages back. Whatever is still allocated in it is gone. */
void bb_arena_destroy_(unsigned index);

/* `bytes` > 0 aligned to `align` (a power of two), or NULL. */
void *bb_arena_alloc_(unsigned index, size_t bytes, size_t align);
void bb_arena_free_(void *memory);

/* The bytes allocated in this arena as jemalloc counts them: sizes rounded up to its classes. */
uint64_t bb_arena_allocated_(unsigned index);

#endif
