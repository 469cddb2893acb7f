/* SPDX-License-Identifier: MIT */
/*
 * Lookup and translation without an engine: what is found and how much of it, what is kept and for
 * whom, what a callback may answer. What voids it: iommu_invalidation_test.c.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "iommu_fixture.h"

TestSuite(memory_iommu, .init = iommu_begin, .fini = iommu_end);

/* Lookup. */

Test(memory_iommu, a_lookup_ends_where_the_leaf_or_the_hole_does)
{
    struct bb_region *low = fixture_region(&fixture, "low", 0x100, 1);
    struct bb_region *high = fixture_region(&fixture, "high", 0x1000, 2);
    map(memory, 0x1000, low);
    map(memory, UINT64_MAX - 0xfff, high);

    const struct {
        bb_gpa_t gpa;
        uint64_t asked;
        uint64_t length;
        struct bb_region *region;
        uint64_t offset;
    } row[] = {
        {0, 1, 1, NULL, 0},
        {0, 0x1000, 0x1000, NULL, 0},
        {0, 0x1001, 0x1000, NULL, 0},
        {0xfff, 8, 1, NULL, 0},
        {0x1000, 0x100, 0x100, low, 0},
        {0x1000, UINT64_MAX, 0x100, low, 0},
        {0x10ff, 1, 1, low, 0xff},
        {0x10ff, 2, 1, low, 0xff},
        {0x1100, 8, 8, NULL, 0},
        {0x1100, UINT64_MAX - 0x1100, UINT64_MAX - 0x1fff - 0x100, NULL, 0},
        {UINT64_MAX - 0xfff, 0x1000, 0x1000, high, 0},
        {UINT64_MAX, 1, 1, high, 0xfff},
    };
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        struct bb_found_ found;
        int result = resolve_as(memory, row[i].gpa, row[i].asked, BB_IOMMU_WRITE,
                                (struct bb_attrs){0}, &found);

        cr_assert_eq(result, BB_OK, "row %zu", i);
        cr_assert_eq(found.leaf == NULL ? NULL : found.leaf->region, row[i].region, "row %zu", i);
        cr_assert_eq(found.length, row[i].length, "row %zu: 0x%" PRIx64, i, found.length);
        cr_assert_eq(found.offset, row[i].offset, "row %zu", i);
        cr_assert(found.space == memory && found.gpa == row[i].gpa, "row %zu", i);
    }
    fixture_remove(&fixture, low);
    fixture_remove(&fixture, high);
}

Test(memory_iommu, a_region_as_wide_as_all_addresses_has_no_end_to_wrap_at)
{
    struct bb_region *all = NULL;
    struct bb_found_ found;
    struct unit wide;

    cr_assert_eq(bb_reserved_create(fixture.ctx, "all", BB_SIZE_ALL, &all, NULL), BB_OK);
    cr_assert_eq(bb_region_place(fixture.ctx, bb_space_root(memory), 0, all, 0, NULL), BB_OK);
    cr_assert_eq(resolve_as(memory, 0, UINT64_MAX, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_OK);
    cr_assert(found.leaf != NULL && found.length == UINT64_MAX);
    fixture_remove(&fixture, all);
    unit_make(&wide, "wide", BB_SIZE_ALL);
    map(other, 0, wide.region);
    page_add(&wide, 0, 63, memory, BB_BIT64(63));
    page_add(&wide, BB_BIT64(63), 63, memory, 0);
    cr_assert_eq(resolve_as(other, 0, UINT64_MAX, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_OK);
    cr_assert(found.gpa == BB_BIT64(63) && found.length == BB_BIT64(63));
    cr_assert_eq(resolve_as(other, UINT64_MAX, 1, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_OK);
    cr_assert(found.gpa == BB_BIT64(63) - 1 && found.length == 1);
    fixture_remove(&fixture, wide.region);
}

/* Translation. */

Test(memory_iommu, an_access_goes_where_its_page_leads_and_no_further)
{
    struct bb_region *region = fixture_region(&fixture, "r", 0x10000, 1);
    struct bb_found_ found;

    map(memory, 0x40000, region);
    page_add(&unit, 0x1000, 12, memory, 0x42000);
    page_add(&unit, 0x2000, 12, other, 0x7000);
    cr_assert_eq(resolve(0x1ffc, 16, &found), BB_OK);
    cr_assert_eq(found.leaf->region, region);
    cr_assert(found.space == memory && found.gpa == 0x42ffc && found.offset == 0x2ffc);
    cr_assert_eq(found.length, 4);
    cr_assert_eq(resolve(0x2000, 16, &found), BB_OK);
    cr_assert_null(found.leaf);
    cr_assert(found.space == other && found.gpa == 0x7000 && found.length == 16);
    fixture_remove(&fixture, region);
}

Test(memory_iommu, a_page_that_leads_over_the_end_of_a_region_is_cut_there)
{
    struct bb_region *region = fixture_region(&fixture, "r", 0x800, 1);
    struct bb_found_ found;

    map(memory, 0x40000, region);
    page_add(&unit, 0, 21, memory, 0);
    cr_assert_eq(resolve(0x407ff, 8, &found), BB_OK);
    cr_assert(found.leaf != NULL && found.offset == 0x7ff && found.length == 1);
    cr_assert_eq(resolve(0x40800, 8, &found), BB_OK);
    cr_assert(found.leaf == NULL && found.length == 8);
    cr_assert_eq(resolve(0x3fffe, 8, &found), BB_OK);
    cr_assert(found.leaf == NULL && found.length == 2);
    fixture_remove(&fixture, region);
}

Test(memory_iommu, a_callback_is_asked_for_offsets_in_its_region)
{
    struct bb_alias_config config = {"window", unit.region, 0x5000, 0x2000, false};
    struct bb_region *window = NULL;
    struct bb_found_ found;
    struct bb_error err = {0};

    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &window, &err), BB_OK, "%s", err.text);
    map(other, 0x90000, window);
    page_add(&unit, 0x6000, 12, memory, 0x3000);
    cr_assert_eq(resolve_as(other, 0x91008, 0x1000, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_OK);
    cr_assert(found.space == memory && found.gpa == 0x3008 && found.length == 0xff8);
    cr_assert_eq(resolve_as(other, 0x90000, 0x1800, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_E_DECODE);
    fixture_remove(&fixture, window);
}

Test(memory_iommu, a_translation_found_once_is_not_asked_for_again)
{
    struct bb_iommu_stats before = bb_iommu_stats(fixture.ctx);

    page_add(&unit, 0x1000, 12, memory, 0x42000);
    for (unsigned i = 0; i < 10; i++) {
        leads_to(0x1000 + i * 8, memory, 0x42000 + i * 8, 8);
    }
    cr_assert_eq(unit.asked, 1, "asked %u times", unit.asked);
    struct bb_iommu_stats after = bb_iommu_stats(fixture.ctx);
    cr_assert_eq(after.misses - before.misses, 1);
    cr_assert_eq(after.hits - before.hits, 9);
    cr_assert_eq(after.faults, before.faults);
}

Test(memory_iommu, large_pages_are_kept_in_few_parts)
{
    static const struct {
        unsigned bits;
        unsigned parts; /* at most, for a walk over 4 MiB */
    } row[] = {{12, 1024}, {14, 1024}, {16, 1024}, {20, 1024}, {21, 2}, {22, 2}, {30, 1}, {63, 1}};

    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        struct bb_error err = {0};

        unit.count = 0;
        unit.asked = 0;
        for (bb_gpa_t iova = 0; iova < 4 << 20 && unit.count < PAGES_MAX;
             iova += bb_mask_low(row[i].bits) + 1) {
            page_add(&unit, iova, row[i].bits, memory, iova);
        }
        cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0, UINT64_MAX, NULL, NULL, &err),
                     BB_OK, "%s", err.text);
        for (bb_gpa_t iova = 0; iova < 4 << 20; iova += 0x1000) {
            leads_to(iova + 4, memory, iova + 4, 4);
            leads_to(iova + 0xffc, memory, iova + 0xffc, 4);
        }
        cr_assert_leq(unit.asked, row[i].parts, "%u bits: asked %u times", row[i].bits, unit.asked);
    }
}

Test(memory_iommu, pages_of_less_than_4_kib_are_asked_for_each_time)
{
    struct bb_found_ found;

    page_add(&unit, 0x1000, 11, memory, 0x8000);
    page_add(&unit, 0x1800, 0, memory, 0x9001);
    for (unsigned i = 1; i <= 3; i++) {
        leads_to(0x1000, memory, 0x8000, 4);
        cr_assert_eq(unit.asked, i);
    }
    cr_assert_eq(resolve(0x17ff, 8, &found), BB_OK);
    cr_assert_eq(found.length, 1);
    cr_assert_eq(resolve(0x1800, 8, &found), BB_OK);
    cr_assert(found.gpa == 0x9001 && found.length == 1);
}

Test(memory_iommu, requesters_and_their_states_have_translations_of_their_own)
{
    static const struct bb_attrs who[] = {
        {0, false, false}, {7, false, false}, {7, true, false},        {7, false, true},
        {7, true, true},   {8, false, false}, {UINT32_MAX, true, true}};

    for (size_t i = 0; i < BB_ARRAY_LEN(who); i++) {
        struct page *page = page_add(&unit, 0x1000, 12, i % 2 == 0 ? memory : other, i << 12);
        page->requester = who[i].requester_id;
        page->secure = who[i].secure;
        page->privileged = who[i].privileged;
    }
    for (unsigned round = 0; round < 3; round++) {
        for (size_t i = 0; i < BB_ARRAY_LEN(who); i++) {
            struct bb_found_ found;
            cr_assert_eq(resolve_as(bus, 0x1000, 4, BB_IOMMU_READ, who[i], &found), BB_OK);
            cr_assert_eq(found.space, i % 2 == 0 ? memory : other, "requester %zu", i);
            cr_assert_eq(found.gpa, i << 12, "requester %zu", i);
        }
    }
    struct bb_found_ found;
    cr_assert_eq(
        resolve_as(bus, 0x1000, 4, BB_IOMMU_READ, (struct bb_attrs){9, false, false}, &found),
        BB_E_DECODE);
}

/* So many that each set of the cache has had several. */
Test(memory_iommu, many_requesters_share_a_cache_and_no_translation)
{
    enum { MANY = 1000 };

    for (unsigned i = 0; i < MANY; i++) {
        page_add(&unit, 0x1000, 12, memory, (bb_gpa_t)i << 12)->requester = i;
    }
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < MANY; i++) {
            struct bb_found_ found;
            struct bb_attrs who = {.requester_id = i};

            cr_assert_eq(resolve_as(bus, 0x1000, 4, BB_IOMMU_READ, who, &found), BB_OK);
            cr_assert_eq(found.gpa, (bb_gpa_t)i << 12, "requester %u is led as %" PRIu64, i,
                         found.gpa >> 12);
        }
    }
}

/* Faults. */

Test(memory_iommu, an_access_that_is_not_permitted_is_a_device_error_each_time_asked)
{
    struct page *page = page_add(&unit, 0x1000, 12, memory, 0x42000);
    struct bb_iommu_stats before = bb_iommu_stats(fixture.ctx);
    struct bb_attrs none = {0};
    struct bb_found_ found;

    page->entry.access = BB_IOMMU_READ;
    leads_to(0x1000, memory, 0x42000, 4);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(resolve_as(bus, 0x1000, 4, BB_IOMMU_WRITE, none, &found), BB_E_DEVICE);
        cr_assert_eq(unit.asked, 2 + i);
        cr_assert_eq(unit.last_access, BB_IOMMU_WRITE);
    }
    cr_assert_eq(resolve_as(bus, 0x1000, 4, (enum bb_iommu_access)RW, none, &found), BB_E_DEVICE);
    leads_to(0x1000, memory, 0x42000, 4);
    cr_assert_eq(unit.asked, 5, "a refused write has voided what reads use");
    cr_assert_eq(bb_iommu_stats(fixture.ctx).faults - before.faults, 4);

    /* What was read-only may become writable with no invalidation. */
    page->entry.access = RW;
    cr_assert_eq(resolve_as(bus, 0x1000, 4, BB_IOMMU_WRITE, none, &found), BB_OK);
    cr_assert_eq(resolve_as(bus, 0x1000, 4, (enum bb_iommu_access)RW, none, &found), BB_OK);
    leads_to(0x1000, memory, 0x42000, 4);
    cr_assert_eq(unit.asked, 6);

    page->entry.access = BB_IOMMU_WRITE;
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, UINT64_MAX, NULL, NULL, NULL);
    cr_assert_eq(resolve(0x1000, 4, &found), BB_E_DEVICE);
    cr_assert_eq(resolve_as(bus, 0x1000, 4, BB_IOMMU_WRITE, none, &found), BB_OK);
}

Test(memory_iommu, a_fault_is_the_accesss_result_up_to_the_end_of_its_4_kib)
{
    static const struct {
        int returned, result;
    } row[] = {{BB_E_DECODE, BB_E_DECODE}, {BB_E_DEVICE, BB_E_DEVICE}, {BB_E_NOMEM, BB_E_DEVICE},
               {-1000, BB_E_DEVICE},       {1, BB_E_DEVICE},           {INT32_MAX, BB_E_DEVICE}};
    struct page *page = page_add(&unit, 0x1000, 12, memory, 0x42000);

    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        struct bb_found_ found;

        page->result = row[i].returned;
        for (unsigned again = 0; again < 2; again++) {
            cr_assert_eq(resolve(0x1ffd, 0x2000, &found), row[i].result, "row %zu", i);
            cr_assert_eq(found.length, 3);
        }
        cr_assert_eq(unit.asked, 2 * i + 2, "a fault was kept");
    }
}

Test(memory_iommu, what_a_callback_makes_up_is_a_device_error)
{
    struct bb_space *target = memory;
    const struct bb_iommu_entry bad[] = {
        {NULL, 0x1000, 0x4000, 12, RW},
        {target, 0x2000, 0x4000, 12, RW},         /* another page */
        {target, 0x0000, 0x4000, 12, RW},         /* likewise */
        {target, 0x1008, 0x4000, 12, RW},         /* not aligned */
        {target, 0x1000, 0x4001, 12, RW},         /* likewise */
        {target, 0x1000, 0x4000, 13, RW},         /* likewise */
        {target, 0x0000, 0x1000, 13, RW},         /* likewise */
        {target, 0x0000, 0x0000, 64, RW},         /* no size */
        {target, 0x0000, 0x0000, UINT32_MAX, RW}, /* likewise */
        {target, 0x1000, 0x4000, 12, 0},          /* no permission */
        {target, 0x1000, 0x4000, 12, 0xfc},       /* likewise */
        {0},
    };

    for (size_t i = 0; i < BB_ARRAY_LEN(bad); i++) {
        uint64_t faults = bb_iommu_stats(fixture.ctx).faults;
        struct bb_found_ found;

        unit.forced = &bad[i];
        cr_assert_eq(resolve(0x1ffc, 8, &found), BB_E_DEVICE, "row %zu", i);
        cr_assert_eq(found.length, 4, "row %zu", i);
        cr_assert_eq(bb_iommu_stats(fixture.ctx).faults, faults + 1, "row %zu", i);
    }
    cr_assert_eq(unit.asked, BB_ARRAY_LEN(bad), "one of them was kept");
}

Test(memory_iommu, a_target_of_another_engine_is_a_device_error)
{
    static struct fixture second;
    struct bb_found_ found;

    fixture_begin(&second);
    page_add(&unit, 0x1000, 12, fixture_space(&second, "theirs", BB_SPACE_MMIO, 0), 0x4000);
    cr_assert_eq(resolve(0x1000, 4, &found), BB_E_DEVICE);
    fixture_end(&second);
}

Test(memory_iommu, translations_lead_on_four_times_and_no_further)
{
    struct unit *chain[BB_IOMMU_NEST_MAX + 1];
    struct bb_space *space[BB_IOMMU_NEST_MAX + 2];
    struct bb_found_ found;

    space[0] = other;
    for (unsigned i = 0; i <= BB_IOMMU_NEST_MAX; i++) {
        char name[16];

        snprintf(name, sizeof(name), "stage %u", i);
        space[i + 1] = fixture_space(&fixture, name, BB_SPACE_MMIO, 0);
        chain[i] = malloc(sizeof(*chain[i]));
        cr_assert_not_null(chain[i]);
        unit_make(chain[i], name, BUS_BYTES);
        map(space[i], 0, chain[i]->region);
        /* The later the smaller: the smallest decides. */
        page_add(chain[i], 0, 21 - i, space[i + 1], 0);
    }
    cr_assert_eq(resolve_as(space[1], 8, 1 << 24, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_OK);
    cr_assert(found.space == space[BB_IOMMU_NEST_MAX + 1] && found.gpa == 8);
    cr_assert_eq(found.length, (1 << 17) - 8, "0x%" PRIx64, found.length);
    uint64_t faults = bb_iommu_stats(fixture.ctx).faults;
    cr_assert_eq(resolve_as(space[0], 8, 1 << 24, BB_IOMMU_READ, (struct bb_attrs){0}, &found),
                 BB_E_DECODE);
    cr_assert_eq(bb_iommu_stats(fixture.ctx).faults, faults + 1);
    cr_assert_eq(chain[BB_IOMMU_NEST_MAX]->asked, 1, "the fifth was asked from the first on");
    for (unsigned i = 0; i <= BB_IOMMU_NEST_MAX; i++) {
        fixture_remove(&fixture, chain[i]->region);
        free(chain[i]);
    }
}

Test(memory_iommu, a_table_that_leads_back_ends_in_a_fault)
{
    struct bb_found_ found;

    page_add(&unit, 0x1000, 12, bus, 0x2000);
    page_add(&unit, 0x2000, 12, bus, 0x1000);
    page_add(&unit, 0x3000, 12, bus, 0x3000);
    cr_assert_eq(resolve(0x1000, 4, &found), BB_E_DECODE);
    cr_assert_eq(resolve(0x3000, 4, &found), BB_E_DECODE);
    cr_assert_eq(unit.asked, 3);
}

/* Looks the same address up again, as a callback does that reads its table through itself. */
static void look_again(struct bb_ctx *ctx, struct unit *of, bb_gpa_t iova)
{
    struct bb_found_ found;
    unsigned *deepest = of->arg;
    uint32_t depth = ctx->callback_depth;

    *deepest = depth > *deepest ? depth : *deepest;
    cr_assert(ctx->pin_depth == depth, "a callback's accesses are not kept to RAM");
    (void)bb_map_resolve_(bb_mem_ctx_(ctx), bus, iova, 4, BB_IOMMU_READ, (struct bb_attrs){0},
                          &found);
}

Test(memory_iommu, a_callback_that_needs_itself_is_called_four_deep)
{
    struct bb_found_ found;
    unsigned deepest = 0;

    unit.during = look_again;
    unit.arg = &deepest;
    page_add(&unit, 0x1000, 12, memory, 0x2000);
    cr_assert_eq(resolve(0x5000, 4, &found), BB_E_DECODE);
    cr_assert_eq(deepest, BB_IOMMU_NEST_MAX);
    cr_assert_eq(unit.asked, BB_IOMMU_NEST_MAX);
    unit.asked = 0;
    leads_to(0x1000, memory, 0x2000, 4);
    cr_assert_eq(fixture.ctx->callback_depth, 0);
    cr_assert_eq(fixture.ctx->pin_depth, 0);
    cr_assert_eq(fixture.ctx->device_id, 0);
}

Test(memory_iommu, without_memory_for_a_cache_every_access_asks)
{
    test_memory_fail_after(&fixture.memory, 0);
    page_add(&unit, 0x1000, 12, memory, 0x8000);
    for (unsigned i = 1; i <= 1024; i++) {
        leads_to(0x1000, memory, 0x8000, 4);
        cr_assert_eq(unit.asked, i);
    }
    test_memory_fail_after(&fixture.memory, -1);
    leads_to(0x1000, memory, 0x8000, 4); /* the 1025th miss: memory is asked for again */
    leads_to(0x1000, memory, 0x8000, 4);
    cr_assert_eq(unit.asked, 1025);
}

Test(memory_iommu, making_one_of_nonsense_is_refused_with_a_reason)
{
    static const struct bb_iommu_ops without = {NULL};
    static const struct {
        struct bb_iommu_config config;
        int code;
        const char *text;
    } row[] = {
        {{NULL, 16, &unit_ops, NULL}, BB_E_INVAL, "with a name"},
        {{"", 16, &unit_ops, NULL}, BB_E_INVAL, "with a name"},
        {{"i", 16, NULL, NULL}, BB_E_INVAL, "IOMMU 'i': ops is NULL"},
        {{"i", 16, &without, NULL}, BB_E_INVAL, "IOMMU 'i': ops is without one"},
        {{"i", 0, &unit_ops, NULL}, BB_E_RANGE, "size_bytes is 0"},
    };
    const struct bb_owner_ nobody = {0};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        cr_assert_eq(bb_iommu_create_(fixture.ctx, &row[i].config, &nobody, &region, &err),
                     row[i].code, "row %zu", i);
        cr_assert_not_null(strstr(err.text, row[i].text), "row %zu: %s", i, err.text);
        cr_assert_null(region);
    }
    cr_assert_eq(bb_iommu_create_(fixture.ctx, NULL, &nobody, &region, &err), BB_E_INVAL);
    struct bb_iommu_config config = {"i", 16, &unit_ops, NULL};
    cr_assert_eq(bb_iommu_create_(fixture.ctx, &config, &nobody, NULL, &err), BB_E_INVAL);
    for (long left = 0; left < 2; left++) {
        test_memory_fail_after(&fixture.memory, left);
        cr_assert_eq(bb_iommu_create_(fixture.ctx, &config, &nobody, &region, &err), BB_E_NOMEM);
        test_memory_fail_after(&fixture.memory, -1);
        cr_assert_not_null(strstr(err.text, "'i'"), "%s", err.text);
    }
}
