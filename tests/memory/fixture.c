/* SPDX-License-Identifier: MIT */
/* The map without an engine of fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>

static int answer_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    *value = (uint64_t)(uintptr_t)opaque;
    return BB_OK;
}

static int ignore_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    (void)value;
    return BB_OK;
}

static const struct bb_region_ops answer_ops = {.read = answer_read, .write = ignore_write};

struct bb_ctx *fixture_attach(struct fixture *fixture, const char *name)
{
    struct bb_ctx *ctx = NULL;

    if (bb_ctx_attach_(fixture->rcu, name, sizeof(struct bb_mem_ctx_), NULL, &ctx, NULL) != BB_OK) {
        return NULL;
    }
    bb_mem_ctx_(ctx)->map = fixture->map;
    return ctx;
}

void fixture_begin(struct fixture *fixture)
{
    struct bb_error err = {0};

    test_memory_begin(&fixture->memory);
    struct bb_rcu_config_ config = {.heap = fixture->memory.heap,
                                    .deferred_bytes_max = 16 << 20,
                                    .stall_ns = UINT64_C(10000000000)};
    cr_assert_eq(bb_rcu_create_(&config, &fixture->rcu, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_map_create_(fixture->rcu, fixture->memory.heap, &fixture->map, &err), BB_OK,
                 "%s", err.text);
    fixture->ctx = fixture_attach(fixture, "main");
    cr_assert_not_null(fixture->ctx);
}

void fixture_end(struct fixture *fixture)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_ctx_detach_(fixture->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_rcu_destroy_(fixture->rcu, &err), BB_OK, "%s", err.text);
    bb_map_destroy_(fixture->map);
    test_memory_end(&fixture->memory);
}

struct bb_space *fixture_space(struct fixture *fixture, const char *name, enum bb_space_kind kind,
                               unsigned bits)
{
    struct bb_space_config config = {.name = name, .kind = kind, .bits = bits};
    struct bb_space *space = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_space_create(fixture->ctx, &config, &space, &err), BB_OK, "%s", err.text);
    return space;
}

struct bb_region *fixture_region(struct fixture *fixture, const char *name, uint64_t size,
                                 uint64_t answer)
{
    struct bb_region_config config = {.name = name,
                                      .size_bytes = size,
                                      .ops = &answer_ops,
                                      .opaque = (void *)(uintptr_t)answer,
                                      .klass = BB_CLASS_LOCKFREE};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(
        bb_region_create_io_(fixture->ctx, &config, &(struct bb_owner_){.id = 1}, &region, &err),
        BB_OK, "%s", err.text);
    return region;
}

uint64_t fixture_settled_bytes(struct fixture *fixture)
{
    cr_assert_eq(bb_rcu_synchronize(fixture->ctx), BB_OK);
    while (bb_rcu_stats(fixture->ctx).deferred_bytes != 0) {
        sched_yield();
    }
    bb_scratch_empty_(fixture->map);
    return bb_heap_usage(fixture->memory.heap).live_bytes -
           fixture->map->pool.count * sizeof(struct bb_node_);
}

void fixture_remove(struct fixture *fixture, struct bb_region *region)
{
    struct bb_error err = {0};

    if (!region->removing) {
        cr_assert_eq(bb_regions_retire_(fixture->ctx, &region, 1, &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_rcu_synchronize(fixture->ctx), BB_OK);
    bb_region_free_(fixture->memory.heap, region);
}

static struct bb_flat_ shown(struct bb_region *region)
{
    bool memory = region->kind == BB_KIND_RAM || region->rom_mode;

    return (struct bb_flat_){.last_offset = region->last,
                             .read = region->read,
                             .write = region->write,
                             .opaque = region->opaque,
                             .region = region,
                             .host = memory ? region->host : NULL,
                             .kind = region->kind,
                             .read_only = region->read_only,
                             .memory = memory};
}

int fixture_read(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset, unsigned size,
                 uint64_t *value)
{
    struct bb_flat_ leaf = shown(region);
    uint64_t read = 0;

    bb_section_enter_(ctx);
    int result = bb_leaf_read_(ctx, &leaf, offset, &read, size, (struct bb_attrs){0});
    bb_section_leave_(ctx);
    if (result == BB_OK) {
        *value = read;
    }
    return result;
}

int fixture_write(struct bb_ctx *ctx, struct bb_region *region, uint64_t offset, unsigned size,
                  uint64_t value)
{
    struct bb_flat_ leaf = shown(region);

    bb_section_enter_(ctx);
    int result = bb_leaf_write_(ctx, &leaf, offset, &value, size, (struct bb_attrs){0});
    bb_section_leave_(ctx);
    return result;
}

struct bb_region *fixture_find(struct fixture *fixture, struct bb_space *space, bb_gpa_t gpa)
{
    struct bb_region *region = NULL;

    bb_section_enter_(fixture->ctx);
    const struct bb_flat_ *hit = bb_map_find_(bb_mem_ctx_(fixture->ctx), space, gpa);
    if (hit != NULL) {
        region = hit->region;
        cr_assert(gpa - hit->first <= hit->last_offset, "0x%" PRIx64 " is outside of its hit", gpa);
    }
    bb_section_leave_(fixture->ctx);
    return region;
}
