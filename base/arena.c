/* SPDX-License-Identifier: MIT */
/*
 * Arenas over the private copy of jemalloc (cmake/private-jemalloc.sh makes it); see
 * base_internal.h.
 *
 * The symbols below are jemalloc's own with a prefix. Declaring them hidden here hides the
 * definitions too: the linker gives a symbol the strictest visibility that any reference asks for.
 */
#include "base_internal.h"

#include <jemalloc/jemalloc.h>
#include <stdio.h>

#define PRIVATE __attribute__((visibility("hidden")))

PRIVATE void *bb_je_mallocx(size_t bytes, int flags);
PRIVATE void bb_je_dallocx(void *memory, int flags);
PRIVATE int bb_je_mallctl(const char *name, void *old, size_t *old_bytes, void *new_value,
                          size_t new_bytes);

/*
 * What the copy starts with, unless MALLOC_CONF in the environment says otherwise: no thread caches
 * and no arenas besides ours, so that a thread that allocates here leaves nothing behind.
 */
PRIVATE extern const char *bb_je_malloc_conf;
const char *bb_je_malloc_conf = "tcache:false,narenas:1";

enum { NAME_BYTES = 64 };

bool bb_arena_create_(unsigned *index)
{
    size_t bytes = sizeof(*index);
    return bb_je_mallctl("arenas.create", index, &bytes, NULL, 0) == 0;
}

void bb_arena_destroy_(unsigned index)
{
    char name[NAME_BYTES];

    snprintf(name, sizeof(name), "arena.%u.destroy", index);
    bb_je_mallctl(name, NULL, NULL, NULL, 0);
}

void *bb_arena_alloc_(unsigned index, size_t bytes, size_t align)
{
    return bb_je_mallocx(bytes, MALLOCX_ARENA(index) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(align));
}

void bb_arena_free_(void *memory)
{
    bb_je_dallocx(memory, MALLOCX_TCACHE_NONE);
}

static uint64_t statistic(const char *format, unsigned index)
{
    char name[NAME_BYTES];
    size_t value = 0;
    size_t bytes = sizeof(value);

    snprintf(name, sizeof(name), format, index);
    return bb_je_mallctl(name, &value, &bytes, NULL, 0) == 0 ? value : 0;
}

uint64_t bb_arena_allocated_(unsigned index)
{
    uint64_t epoch = 1;

    /* jemalloc's figures are a copy taken when the epoch was last written. */
    bb_je_mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch));
    return statistic("stats.arenas.%u.small.allocated", index) +
           statistic("stats.arenas.%u.large.allocated", index);
}
