/* SPDX-License-Identifier: MIT */
/* The map, the region and the clients of dirty_fixture.h. */
#include "dirty_fixture.h"

#include <criterion/criterion.h>
#include <string.h>

struct fixture dirty_fixture;
struct bb_region *dirty_ram;

struct bb_region *dirty_make_ram(uint64_t pages)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = pages * BB_DIRTY_PAGE_BYTES,
                                   .size_bytes_max = 2 * pages * BB_DIRTY_PAGE_BYTES};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_ram_create(dirty_fixture.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

void dirty_begin(void)
{
    fixture_begin(&dirty_fixture);
    dirty_ram = dirty_make_ram(DIRTY_PAGES);
}

void dirty_end(void)
{
    if (dirty_ram != NULL) {
        fixture_remove(&dirty_fixture, dirty_ram);
    }
    fixture_end(&dirty_fixture);
}

struct bb_dirty_client *dirty_make_client(const char *name)
{
    struct bb_dirty_client *client = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_client_create(dirty_fixture.ctx, name, &client, &err), BB_OK, "%s",
                 err.text);
    return client;
}

void dirty_destroy(struct bb_dirty_client *client)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_client_destroy(dirty_fixture.ctx, client, &err), BB_OK, "%s", err.text);
}

void dirty_start(struct bb_dirty_client *client, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_start(dirty_fixture.ctx, client, region, &err), BB_OK, "%s", err.text);
}

void dirty_stop(struct bb_dirty_client *client, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_stop(dirty_fixture.ctx, client, region, &err), BB_OK, "%s", err.text);
}

void dirty_write_at(uint64_t offset, unsigned size)
{
    cr_assert_eq(fixture_write(dirty_fixture.ctx, dirty_ram, offset, size, 1), BB_OK);
}

uint64_t dirty_sync_range(struct bb_dirty_client *client, uint64_t offset, uint64_t length,
                          uint64_t *bitmap)
{
    struct bb_error err = {0};
    uint64_t pages = UINT64_MAX;

    cr_assert_eq(bb_dirty_sync_and_clear(dirty_fixture.ctx, client, dirty_ram, offset, length,
                                         bitmap, &pages, &err),
                 BB_OK, "%s", err.text);
    return pages;
}

uint64_t dirty_sync_all(struct bb_dirty_client *client, uint64_t bitmap[DIRTY_WORDS])
{
    memset(bitmap, 0, DIRTY_WORDS * sizeof(bitmap[0]));
    return dirty_sync_range(client, 0, (uint64_t)DIRTY_PAGES * BB_DIRTY_PAGE_BYTES, bitmap);
}

void dirty_taken_are(struct bb_dirty_client *client, const int *pages)
{
    uint64_t bitmap[DIRTY_WORDS], wanted[DIRTY_WORDS] = {0}, count = 0;

    for (; pages[count] >= 0; count++) {
        wanted[pages[count] / 64] |= BB_BIT64(pages[count] % 64);
    }
    cr_assert_eq(dirty_sync_all(client, bitmap), count);
    cr_assert_eq(memcmp(bitmap, wanted, sizeof(wanted)), 0);
}
