/* SPDX-License-Identifier: MIT */
/*
 * Lookup and translation without an engine: what is found and how much of it, what is kept and for
 * whom, what voids it, what a callback may answer. The callback looks in a table of the test's.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

enum { PAGES_MAX = 1024, BUS_BYTES = 1 << 24 };

#define RW (BB_IOMMU_READ | BB_IOMMU_WRITE)

struct page {
    uint32_t requester;
    bool secure;
    bool privileged;
    int result; /* what the callback returns */
    struct bb_iommu_entry entry;
};

/* An IOMMU of the test's, and what its callback was asked. */
struct unit {
    struct bb_region *region;
    struct page page[PAGES_MAX];
    size_t count;
    unsigned asked;
    enum bb_iommu_access last_access;
    const struct bb_iommu_entry *forced; /* what it answers, whatever the table says */
    void (*during)(struct bb_ctx *ctx, struct unit *unit, bb_gpa_t iova);
    void *arg;
};

static struct fixture fixture;
static struct bb_space *bus, *memory, *other;
static struct unit unit;

static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    struct unit *of = opaque;
    const struct page *found = NULL;

    of->asked++;
    of->last_access = access;
    for (size_t i = 0; i < of->count; i++) {
        const struct page *page = &of->page[i];

        if (page->requester == attrs.requester_id && page->secure == attrs.secure &&
            page->privileged == attrs.privileged &&
            iova - page->entry.iova <= bb_mask_low(page->entry.page_bits)) {
            found = page;
        }
    }
    if (of->forced != NULL) {
        *entry = *of->forced;
        return BB_OK;
    }
    if (found != NULL) {
        *entry = found->entry;
    }
    int result = found == NULL ? BB_E_DECODE : found->result;
    if (of->during != NULL) {
        of->during(ctx, of, iova);
    }
    return result;
}

static const struct bb_iommu_ops ops = {translate};

static void unit_make(struct unit *made, const char *name, uint64_t size_bytes)
{
    struct bb_iommu_config config = {name, size_bytes, &ops, made};
    struct bb_error err = {0};

    memset(made, 0, sizeof(*made));
    cr_assert_eq(
        bb_iommu_create_(fixture.ctx, &config, &(struct bb_owner_){0}, &made->region, &err), BB_OK,
        "%s", err.text);
}

static void map(struct bb_space *space, bb_gpa_t gpa, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(fixture.ctx, space, gpa, region, &err), BB_OK, "%s", err.text);
}

static struct page *page_add(struct unit *to, bb_gpa_t iova, unsigned bits, struct bb_space *target,
                             bb_gpa_t translated)
{
    struct page *page = &to->page[to->count++];

    *page = (struct page){.entry = {target, iova, translated, bits, RW}};
    return page;
}

static void begin(void)
{
    fixture_begin(&fixture);
    bus = fixture_space(&fixture, "bus", BB_SPACE_MMIO, 0);
    memory = fixture_space(&fixture, "memory", BB_SPACE_MMIO, 0);
    other = fixture_space(&fixture, "other", BB_SPACE_MMIO, 0);
    unit_make(&unit, "iommu", BUS_BYTES);
    map(bus, 0, unit.region);
}

static void end(void)
{
    fixture_remove(&fixture, unit.region);
    bb_iotlb_free_(bb_mem_ctx_(fixture.ctx));
    fixture_end(&fixture);
}

TestSuite(memory_iommu, .init = begin, .fini = end);

static int resolve_as(struct bb_space *space, bb_gpa_t gpa, uint64_t length,
                      enum bb_iommu_access access, struct bb_attrs attrs, struct bb_found_ *found)
{
    memset(found, 0, sizeof(*found));
    bb_section_enter_(fixture.ctx);
    int result =
        bb_map_resolve_(bb_mem_ctx_(fixture.ctx), space, gpa, length, access, attrs, found);
    bb_section_leave_(fixture.ctx);
    cr_assert(found->length >= 1 && found->length <= length, "0x%" PRIx64 " of 0x%" PRIx64,
              found->length, length);
    return result;
}

static int resolve(bb_gpa_t gpa, uint64_t length, struct bb_found_ *found)
{
    return resolve_as(bus, gpa, length, BB_IOMMU_READ, (struct bb_attrs){0}, found);
}

/* Asserts that `gpa` of the bus leads to `translated` of `space`, and for how long. */
static void leads_to(bb_gpa_t gpa, struct bb_space *space, bb_gpa_t translated, uint64_t length)
{
    struct bb_found_ found;

    cr_assert_eq(resolve(gpa, length, &found), BB_OK, "0x%" PRIx64, gpa);
    cr_assert_eq(found.space, space, "0x%" PRIx64 " leads to another space", gpa);
    cr_assert_eq(found.gpa, translated, "0x%" PRIx64 " leads to 0x%" PRIx64 ", not 0x%" PRIx64, gpa,
                 found.gpa, translated);
}

/* --- Lookup -------------------------------------------------------------------------------------
 */

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

/* --- Translation --------------------------------------------------------------------------------
 */

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

/* --- Faults -------------------------------------------------------------------------------------
 */

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

/* --- Invalidation -------------------------------------------------------------------------------
 */

Test(memory_iommu, an_invalidation_voids_what_was_kept)
{
    struct page *page = page_add(&unit, 0x1000, 12, memory, 0x42000);
    struct bb_error err = {0};

    leads_to(0x1000, memory, 0x42000, 4);
    page->entry.target = other;
    page->entry.translated = 0x8000;
    leads_to(0x1000, memory, 0x42000, 4); /* nobody said so */
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0x1000, 0x1fff, NULL, NULL, &err),
                 BB_OK, "%s", err.text);
    leads_to(0x1000, other, 0x8000, 4);
    page->entry.translated = 0x9000;
    cr_assert_eq(bb_iommu_invalidate_wait(fixture.ctx, unit.region, 0x1000, 0x1fff, &err), BB_OK,
                 "%s", err.text);
    leads_to(0x1000, other, 0x9000, 4);
}

/* The table changes, and is said to have, after the callback has read it. */
static void change_meanwhile(struct bb_ctx *ctx, struct unit *of, bb_gpa_t iova)
{
    of->during = NULL;
    of->page[0].entry.translated = 0x9000;
    cr_assert_eq(bb_iommu_invalidate(ctx, of->region, iova, iova, NULL, NULL, NULL), BB_OK);
}

Test(memory_iommu, an_answer_that_was_overtaken_by_an_invalidation_is_not_kept)
{
    page_add(&unit, 0x1000, 12, memory, 0x8000);
    unit.during = change_meanwhile;
    leads_to(0x1000, memory, 0x8000, 4); /* it began before */
    leads_to(0x1000, memory, 0x9000, 4);
    leads_to(0x1000, memory, 0x9000, 4);
    cr_assert_eq(unit.asked, 2);
}

Test(memory_iommu, an_invalidation_of_one_region_leaves_others_alone)
{
    struct unit second;

    unit_make(&second, "second", 0x10000);
    map(bus, BUS_BYTES, second.region);
    page_add(&unit, 0x1000, 12, memory, 0x8000);
    page_add(&second, 0x1000, 12, memory, 0x9000);
    leads_to(0x1000, memory, 0x8000, 4);
    leads_to(BUS_BYTES + 0x1000, memory, 0x9000, 4);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, second.region, 0, 0, NULL, NULL, NULL), BB_OK);
    leads_to(0x1000, memory, 0x8000, 4);
    leads_to(BUS_BYTES + 0x1000, memory, 0x9000, 4);
    cr_assert_eq(unit.asked, 1);
    cr_assert_eq(second.asked, 2);
    fixture_remove(&fixture, second.region);
}

Test(memory_iommu, a_regions_translations_are_never_anothers)
{
    struct bb_error err = {0};

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    for (unsigned i = 0; i < 20; i++) {
        unit.page[0].entry.translated = (bb_gpa_t)i << 12;
        leads_to(0x1000, memory, (bb_gpa_t)i << 12, 4);
        /* The next one may well lie at the same place in the heap. */
        fixture_remove(&fixture, unit.region);
        struct page page = unit.page[0];
        unit_make(&unit, "next", BUS_BYTES);
        unit.page[unit.count++] = page;
        cr_assert_eq(bb_space_map(fixture.ctx, bus, 0, unit.region, &err), BB_OK, "%s", err.text);
    }
}

static void set_flag(void *opaque)
{
    bb_store_release((unsigned *)opaque, 1); /* pairs with flag_wait() */
}

static void flag_wait(unsigned *flag)
{
    while (bb_load_acquire(flag) == 0) { /* pairs with set_flag() */
        sched_yield();
    }
}

Test(memory_iommu, an_invalidation_completes_after_the_sections_that_began_before)
{
    unsigned done = 0;

    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0, 9, set_flag, &done, NULL), BB_OK);
    uint64_t periods = bb_rcu_stats(fixture.ctx).grace_periods;
    for (unsigned i = 0; i < 1000; i++) {
        sched_yield();
    }
    cr_assert_eq(bb_load_acquire(&done), 0); /* pairs with set_flag() */
    cr_assert_eq(bb_rcu_stats(fixture.ctx).grace_periods, periods);
    bb_section_leave_(fixture.ctx);
    flag_wait(&done);
}

Test(memory_iommu, a_waiting_invalidation_is_refused_where_it_would_wait_for_itself)
{
    struct bb_error err = {0};

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    leads_to(0x1000, memory, 0x8000, 4);
    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_iommu_invalidate_wait(fixture.ctx, unit.region, 0, 9, &err), BB_E_CONTEXT);
    bb_section_leave_(fixture.ctx);
    cr_assert_not_null(strstr(err.text, "bb_iommu_invalidate()"));
    leads_to(0x1000, memory, 0x8000, 4);
    cr_assert_eq(unit.asked, 1, "a refused invalidation has voided something");
}

Test(memory_iommu, an_invalidation_without_memory_to_tell_of_its_end_is_made_all_the_same)
{
    struct bb_error err = {0};
    unsigned done = 0;

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    leads_to(0x1000, memory, 0x8000, 4);
    unit.page[0].entry.translated = 0x9000;
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0, 9, set_flag, &done, &err),
                 BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_not_null(strstr(err.text, "'iommu', which is made"));
    leads_to(0x1000, memory, 0x9000, 4);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    cr_assert_eq(bb_load_acquire(&done), 0); /* pairs with set_flag() */
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

/*
 * Random tables that change, with and without saying so: what is found is always what the table
 * says now, or has said since the last invalidation.
 */
Test(memory_iommu, what_is_found_was_in_the_table_since_the_last_invalidation)
{
    enum { PAGES = 600, STEPS = 60000 };
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    static bb_gpa_t said[PAGES][64]; /* what page i has led to since then */
    static unsigned says[PAGES];

    for (unsigned i = 0; i < PAGES; i++) {
        page_add(&unit, (bb_gpa_t)i << 12, 12, memory, (bb_gpa_t)i << 20);
        said[i][0] = (bb_gpa_t)i << 20;
        says[i] = 1;
    }
    for (unsigned step = 0; step < STEPS; step++) {
        unsigned i = test_random_below(&random, PAGES);
        unsigned what = test_random_below(&random, 400);

        if (what == 0) {
            for (unsigned j = 0; j < PAGES; j++) {
                said[j][0] = unit.page[j].entry.translated;
                says[j] = 1;
            }
            cr_assert_eq(
                bb_iommu_invalidate(fixture.ctx, unit.region, 0, UINT64_MAX, NULL, NULL, NULL),
                BB_OK);
        } else if (what < 20 && says[i] < 64) {
            unit.page[i].entry.translated = (test_random_next(&random) >> 20) << 12;
            said[i][says[i]++] = unit.page[i].entry.translated;
        } else {
            struct bb_found_ found;
            bool ok = false;

            cr_assert_eq(resolve((bb_gpa_t)i << 12, 8, &found), BB_OK);
            for (unsigned j = 0; j < says[i]; j++) {
                ok |= said[i][j] == found.gpa;
            }
            cr_assert(ok, "step %u, page %u leads to 0x%" PRIx64 " (seed %" PRIu64 ")", step, i,
                      found.gpa, seed);
        }
    }
    struct bb_iommu_stats stats = bb_iommu_stats(fixture.ctx);
    cr_assert(stats.hits > STEPS / 10 && stats.misses > 600, "%" PRIu64 " hits", stats.hits);
}

/* --- Notifiers ----------------------------------------------------------------------------------
 */

struct heard {
    unsigned unmapped, mapped;
    bb_gpa_t first, last;
    struct bb_iommu_entry entry;
};

static void hear_unmapped(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    struct heard *heard = opaque;

    cr_assert(bb_section_active_(ctx));
    heard->unmapped++;
    heard->first = first;
    heard->last = last;
}

static void hear_mapped(struct bb_ctx *ctx, void *opaque, const struct bb_iommu_entry *entry)
{
    struct heard *heard = opaque;

    cr_assert(bb_section_active_(ctx));
    heard->mapped++;
    heard->entry = *entry;
}

static struct bb_iommu_notifier *notify(struct heard *heard, bb_gpa_t first, bb_gpa_t last)
{
    struct bb_iommu_notifier_config config = {first, last, hear_unmapped, hear_mapped, heard};
    struct bb_iommu_notifier *notifier = NULL;
    struct bb_error err = {0};

    memset(heard, 0, sizeof(*heard));
    cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &notifier, &err), BB_OK,
                 "%s", err.text);
    return notifier;
}

Test(memory_iommu, a_notifier_hears_of_the_part_that_it_shares)
{
    static const struct {
        bb_gpa_t first, last;
        bool heard;
        bb_gpa_t from, to;
    } row[] = {
        {0, 0xfff, false, 0, 0},
        {0, 0x1000, true, 0x1000, 0x1000},
        {0x1200, 0x12ff, true, 0x1200, 0x12ff},
        {0x1fff, 0x5000, true, 0x1fff, 0x1fff},
        {0x2000, UINT64_MAX, false, 0, 0},
        {0, UINT64_MAX, true, 0x1000, 0x1fff},
    };
    struct heard heard, all;

    notify(&heard, 0x1000, 0x1fff); /* left to the region to free */
    notify(&all, 0, UINT64_MAX);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        heard.unmapped = all.unmapped = 0;
        cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, row[i].first, row[i].last, NULL,
                                         NULL, NULL),
                     BB_OK);
        cr_assert_eq(heard.unmapped, row[i].heard ? 1 : 0, "row %zu", i);
        cr_assert(!row[i].heard || (heard.first == row[i].from && heard.last == row[i].to),
                  "row %zu", i);
        cr_assert(all.unmapped == 1 && all.first == row[i].first && all.last == row[i].last);
    }
    cr_assert_eq(heard.mapped + all.mapped, 0);
}

Test(memory_iommu, a_notifier_hears_of_pages_that_meet_its_range)
{
    const struct {
        struct bb_iommu_entry entry;
        bool heard;
    } row[] = {
        {{memory, 0x1000, 0, 12, RW}, true},  {{memory, 0, 0, 12, RW}, false},
        {{memory, 0x2000, 0, 12, RW}, false}, {{memory, 0, 0, 21, BB_IOMMU_READ}, true},
        {{memory, 0x1fff, 5, 0, RW}, true},   {{other, 0, 0, 63, 0}, true},
    };
    struct heard heard;

    notify(&heard, 0x1000, 0x1fff);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        struct bb_error err = {0};

        heard.mapped = 0;
        cr_assert_eq(bb_iommu_announce(fixture.ctx, unit.region, &row[i].entry, &err), BB_OK, "%s",
                     err.text);
        cr_assert_eq(heard.mapped, row[i].heard ? 1 : 0, "row %zu", i);
        cr_assert(!row[i].heard || heard.entry.iova == row[i].entry.iova, "row %zu", i);
    }
    cr_assert_eq(heard.unmapped, 0);
}

Test(memory_iommu, a_removed_notifier_is_not_called_and_says_when_it_is_gone)
{
    struct heard heard[3];
    struct bb_iommu_notifier *notifier[3];
    unsigned done = 0;

    for (unsigned i = 0; i < 3; i++) {
        notifier[i] = notify(&heard[i], 0, 0xfff);
    }
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[1], set_flag, &done, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    flag_wait(&done);
    cr_assert(heard[0].unmapped == 1 && heard[1].unmapped == 0 && heard[2].unmapped == 1);
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[2], NULL, NULL, NULL), BB_OK);
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[0], NULL, NULL, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    cr_assert(heard[0].unmapped == 1 && heard[1].unmapped == 0 && heard[2].unmapped == 1);
}

static struct bb_iommu_notifier *own;

static void remove_own(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)first;
    (void)last;
    cr_assert_eq(bb_iommu_notifier_remove(ctx, own, set_flag, opaque, NULL), BB_OK);
}

Test(memory_iommu, a_notifier_may_remove_itself)
{
    unsigned done = 0;
    struct bb_iommu_notifier_config config = {0, 9, remove_own, NULL, &done};

    cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &own, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    flag_wait(&done);
}

enum { TELLERS = 2, HEARERS = 6, HEARER_ALIVE = 0x600d };

/* A notifier's owner: gone as soon as its removal has said so. */
struct hearer {
    struct bb_iommu_notifier *notifier;
    uint32_t alive; /* (a) */
    uint32_t gone;  /* (a) */
    uint32_t heard; /* (a) */
};

static uint32_t tellers_stop; /* (a) */
static uint32_t heard_late;   /* (a) */

static void hear(struct hearer *hearer)
{
    if (bb_load_relaxed(&hearer->alive) != HEARER_ALIVE) { /* written when no call can run */
        bb_store_relaxed(&heard_late, 1);                  /* looked at in the end */
    }
    (void)bb_fetch_add_relaxed(&hearer->heard, 1); /* a counter */
}

static void hearer_unmapped(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)ctx, (void)first, (void)last;
    hear(opaque);
}

static void hearer_mapped(struct bb_ctx *ctx, void *opaque, const struct bb_iommu_entry *entry)
{
    (void)ctx, (void)entry;
    hear(opaque);
}

static void hearer_gone(void *opaque)
{
    struct hearer *hearer = opaque;

    bb_store_relaxed(&hearer->alive, 0);
    bb_store_release(&hearer->gone, 1); /* pairs with the test's load */
}

static void *tell(void *opaque)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "teller");
    struct bb_iommu_entry entry = {memory, 0x1000, 0, 12, RW};
    bool ok = ctx != NULL;

    (void)opaque;
    while (ok && bb_load_acquire(&tellers_stop) == 0) { /* pairs with the test's store */
        ok = bb_iommu_invalidate(ctx, unit.region, 0, 0x1fff, NULL, NULL, NULL) == BB_OK &&
             bb_iommu_announce(ctx, unit.region, &entry, NULL) == BB_OK;
    }
    if (ctx != NULL) {
        ok &= bb_ctx_detach_(ctx, NULL) == BB_OK;
    }
    return ok ? NULL : &heard_late;
}

Test(memory_iommu, notifiers_come_and_go_while_they_are_called, .timeout = 300)
{
    static struct hearer hearer[HEARERS];
    pthread_t thread[TELLERS];
    uint64_t heard = 0, rounds = 0;
    bool failed = false;

    for (unsigned i = 0; i < TELLERS; i++) {
        cr_assert_eq(pthread_create(&thread[i], NULL, tell, NULL), 0);
    }
    for (unsigned i = 0; i < HEARERS; i++) {
        hearer[i].gone = 1;
    }
    for (uint64_t until = test_now_ns() + test_stress_ns(); test_now_ns() < until; rounds++) {
        struct hearer *one = &hearer[rounds % HEARERS];
        struct bb_iommu_notifier_config config = {0x800, 0x17ff, hearer_unmapped, hearer_mapped,
                                                  one};

        if (one->notifier != NULL) {
            cr_assert_eq(
                bb_iommu_notifier_remove(fixture.ctx, one->notifier, hearer_gone, one, NULL),
                BB_OK);
            one->notifier = NULL;
            continue;
        }
        flag_wait(&one->gone); /* pairs with hearer_gone() */
        heard += one->heard;
        *one = (struct hearer){.alive = HEARER_ALIVE};
        cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &one->notifier, NULL),
                     BB_OK);
    }
    bb_store_release(&tellers_stop, 1); /* pairs with tell() */
    for (unsigned i = 0; i < TELLERS; i++) {
        void *result;

        pthread_join(thread[i], &result);
        failed |= result != NULL;
    }
    cr_assert(!failed);
    cr_assert_eq(heard_late, 0, "a notifier was called after it was gone");
    cr_assert(rounds > 100 && heard > 0, "%" PRIu64 " rounds, %" PRIu64 " heard", rounds, heard);
}

/* --- Misuse -------------------------------------------------------------------------------------
 */

Test(memory_iommu, making_one_of_nonsense_is_refused_with_a_reason)
{
    static const struct bb_iommu_ops without = {NULL};
    static const struct {
        struct bb_iommu_config config;
        int code;
        const char *text;
    } row[] = {
        {{NULL, 16, &ops, NULL}, BB_E_INVAL, "with a name"},
        {{"", 16, &ops, NULL}, BB_E_INVAL, "with a name"},
        {{"i", 16, NULL, NULL}, BB_E_INVAL, "IOMMU 'i': ops is NULL"},
        {{"i", 16, &without, NULL}, BB_E_INVAL, "IOMMU 'i': ops is without one"},
        {{"i", 0, &ops, NULL}, BB_E_RANGE, "size_bytes is 0"},
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
    struct bb_iommu_config config = {"i", 16, &ops, NULL};
    cr_assert_eq(bb_iommu_create_(fixture.ctx, &config, &nobody, NULL, &err), BB_E_INVAL);
    for (long left = 0; left < 2; left++) {
        test_memory_fail_after(&fixture.memory, left);
        cr_assert_eq(bb_iommu_create_(fixture.ctx, &config, &nobody, &region, &err), BB_E_NOMEM);
        test_memory_fail_after(&fixture.memory, -1);
        cr_assert_not_null(strstr(err.text, "'i'"), "%s", err.text);
    }
}

Test(memory_iommu, what_makes_no_sense_is_refused_with_a_reason)
{
    struct bb_region *region = fixture_region(&fixture, "io", 16, 1);
    struct bb_iommu_notifier_config empty = {0, 9, NULL, NULL, NULL};
    struct bb_iommu_notifier_config turned = {9, 8, hear_unmapped, NULL, NULL};
    struct bb_iommu_notifier_config good = {8, 9, hear_unmapped, NULL, NULL};
    struct bb_iommu_entry entry = {memory, 0x1000, 0x1001, 12, RW};
    struct bb_iommu_notifier *notifier = NULL;
    struct bb_ctx *ctx = fixture.ctx;
    struct bb_error err = {0};

    cr_assert_eq(bb_iommu_invalidate(ctx, region, 0, 9, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "io is no IOMMU region"), "%s", err.text);
    cr_assert_eq(bb_iommu_invalidate(ctx, NULL, 0, 9, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_invalidate_wait(ctx, region, 0, 9, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_invalidate(ctx, unit.region, 9, 8, NULL, NULL, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "first 0x9 is behind last 0x8"), "%s", err.text);
    cr_assert_eq(bb_iommu_notifier_add(ctx, region, &good, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, NULL, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &good, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &empty, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &turned, &notifier, &err), BB_E_RANGE);
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &good, &notifier, &err), BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_null(notifier);
    cr_assert_eq(bb_iommu_notifier_remove(ctx, NULL, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, region, &entry, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, unit.region, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, unit.region, &entry, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "aligned to the page"), "%s", err.text);
    fixture_remove(&fixture, region);
}
