/* SPDX-License-Identifier: MIT */
/* Dirty logs' tests: a map with one RAM region, clients, and what their syncs take. */
#ifndef BUSBAR_TESTS_MEMORY_DIRTY_FIXTURE_H
#define BUSBAR_TESTS_MEMORY_DIRTY_FIXTURE_H

#include "fixture.h"

enum { DIRTY_PAGES = 200, DIRTY_WORDS = 4 };

extern struct fixture dirty_fixture;
extern struct bb_region *dirty_ram; /* DIRTY_PAGES long, and may grow to twice that; NULL: freed */

void dirty_begin(void);
void dirty_end(void);

struct bb_region *dirty_make_ram(uint64_t pages);

struct bb_dirty_client *dirty_make_client(const char *name);
void dirty_destroy(struct bb_dirty_client *client);
void dirty_start(struct bb_dirty_client *client, struct bb_region *region);
void dirty_stop(struct bb_dirty_client *client, struct bb_region *region);

/* An access of dirty_ram, as the engine makes it. */
void dirty_write_at(uint64_t offset, unsigned size);

/* Syncs dirty_ram; returns how many bits were taken. sync_all clears the bitmap first. */
uint64_t dirty_sync_range(struct bb_dirty_client *client, uint64_t offset, uint64_t length,
                          uint64_t *bitmap);
uint64_t dirty_sync_all(struct bb_dirty_client *client, uint64_t bitmap[DIRTY_WORDS]);

/* Exactly these pages, up to the first negative one, are taken by a sync. */
void dirty_taken_are(struct bb_dirty_client *client, const int *pages);
#define DIRTY_TAKEN(client, ...) dirty_taken_are(client, (const int[]){__VA_ARGS__})

#endif
