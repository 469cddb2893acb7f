/* SPDX-License-Identifier: MIT */
/* Poisoned memory; see poison.h. */
#include "poison.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { POISON = 0xdb, KEPT = 4096 };

static struct {
    pthread_mutex_t mutex;
    struct {
        unsigned char *memory;
        size_t bytes;
    } kept[KEPT];
    size_t next;
    unsigned spoiled;
} grave = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* Keeps `memory` (NULL: nothing) in place of what was kept the longest. */
static void keep(unsigned char *memory, size_t bytes)
{
    pthread_mutex_lock(&grave.mutex);
    unsigned char *oldest = grave.kept[grave.next].memory;
    size_t oldest_bytes = grave.kept[grave.next].bytes;
    grave.kept[grave.next].memory = memory;
    grave.kept[grave.next].bytes = bytes;
    grave.next = (grave.next + 1) % KEPT;
    for (size_t i = 0; oldest != NULL && i < oldest_bytes; i++) {
        grave.spoiled += oldest[i] != POISON;
    }
    pthread_mutex_unlock(&grave.mutex);
    free(oldest);
}

void poison_bury(void *memory, size_t bytes)
{
    memset(memory, POISON, bytes);
    keep(memory, bytes);
}

unsigned poison_spoiled(void)
{
    for (size_t i = 0; i < KEPT; i++) {
        keep(NULL, 0);
    }
    return grave.spoiled;
}

static void *poison_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void poison_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    poison_bury(memory, bytes);
}

const struct bb_allocator poison_allocator = {poison_alloc, poison_free, NULL};
