/* SPDX-License-Identifier: MIT */
/* What the suites of IOMMUs stand on; see iommu_fixture.h. */
#include "iommu_fixture.h"

#include <inttypes.h>
#include <string.h>

struct fixture fixture;
struct bb_space *bus, *memory, *other;
struct unit unit;

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

const struct bb_iommu_ops unit_ops = {translate};

void unit_make(struct unit *made, const char *name, uint64_t size_bytes)
{
    struct bb_iommu_config config = {name, size_bytes, &unit_ops, made};
    struct bb_error err = {0};

    memset(made, 0, sizeof(*made));
    cr_assert_eq(
        bb_iommu_create_(fixture.ctx, &config, &(struct bb_owner_){0}, &made->region, &err), BB_OK,
        "%s", err.text);
}

void map(struct bb_space *space, bb_gpa_t gpa, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(fixture.ctx, space, gpa, region, &err), BB_OK, "%s", err.text);
}

struct page *page_add(struct unit *to, bb_gpa_t iova, unsigned bits, struct bb_space *target,
                      bb_gpa_t translated)
{
    struct page *page = &to->page[to->count++];

    *page = (struct page){.entry = {target, iova, translated, bits, RW}};
    return page;
}

void iommu_begin(void)
{
    fixture_begin(&fixture);
    bus = fixture_space(&fixture, "bus", BB_SPACE_MMIO, 0);
    memory = fixture_space(&fixture, "memory", BB_SPACE_MMIO, 0);
    other = fixture_space(&fixture, "other", BB_SPACE_MMIO, 0);
    unit_make(&unit, "iommu", BUS_BYTES);
    map(bus, 0, unit.region);
}

void iommu_end(void)
{
    fixture_remove(&fixture, unit.region);
    bb_iotlb_free_(bb_mem_ctx_(fixture.ctx));
    fixture_end(&fixture);
}

int resolve_as(struct bb_space *space, bb_gpa_t gpa, uint64_t length, enum bb_iommu_access access,
               struct bb_attrs attrs, struct bb_found_ *found)
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

int resolve(bb_gpa_t gpa, uint64_t length, struct bb_found_ *found)
{
    return resolve_as(bus, gpa, length, BB_IOMMU_READ, (struct bb_attrs){0}, found);
}

void leads_to(bb_gpa_t gpa, struct bb_space *space, bb_gpa_t translated, uint64_t length)
{
    struct bb_found_ found;

    cr_assert_eq(resolve(gpa, length, &found), BB_OK, "0x%" PRIx64, gpa);
    cr_assert_eq(found.space, space, "0x%" PRIx64 " leads to another space", gpa);
    cr_assert_eq(found.gpa, translated, "0x%" PRIx64 " leads to 0x%" PRIx64 ", not 0x%" PRIx64, gpa,
                 found.gpa, translated);
}
