/* SPDX-License-Identifier: MIT */
/*
 * A map without an engine above it: a heap that can fail and poisons, a domain, the map, and the
 * main thread's context. Regions whose callbacks answer with a number of their own.
 */
#ifndef BUSBAR_TESTS_MEMORY_FIXTURE_H
#define BUSBAR_TESTS_MEMORY_FIXTURE_H

#include "../../memory/memory_internal.h"
#include "test_memory.h"

struct fixture {
    struct test_memory memory;
    struct bb_rcu *rcu;
    struct bb_map *map;
    struct bb_ctx *ctx;
};

void fixture_begin(struct fixture *fixture);
/* Asserts that all memory has come back. Regions must have been freed. */
void fixture_end(struct fixture *fixture);

/* A context for the calling thread. On another thread than main: NULL on failure. */
struct bb_ctx *fixture_attach(struct fixture *fixture, const char *name);

struct bb_space *fixture_space(struct fixture *fixture, const char *name, enum bb_space_kind kind,
                               unsigned bits);

/* A LOCKFREE region of default rules whose every read yields `answer`. */
struct bb_region *fixture_region(struct fixture *fixture, const char *name, uint64_t size,
                                 uint64_t answer);

/* Waits until what was deferred has been freed. Returns the bytes in use, the spare nodes aside. */
uint64_t fixture_settled_bytes(struct fixture *fixture);

/* Unmaps it if it is mapped, waits out the readers, frees it. */
void fixture_remove(struct fixture *fixture, struct bb_region *region);

/* One access of a region, shown as it is, in a section. */
int fixture_read(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset, unsigned size,
                 uint64_t *value);
int fixture_write(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset, unsigned size,
                  uint64_t value);

/* The region at `gpa`, looked up as an access does; NULL for none. Asserts the hit's bounds. */
struct bb_region *fixture_find(struct fixture *fixture, struct bb_space *space, bb_gpa_t gpa);

#endif
