/* SPDX-License-Identifier: MIT */
/*
 * IOMMUs without an engine: a bus with an IOMMU whose callback looks in a table of the test's, and
 * the memory that it leads to. One of each a program: the suites' .init and .fini make it and take
 * it down.
 */
#ifndef BUSBAR_TESTS_MEMORY_IOMMU_FIXTURE_H
#define BUSBAR_TESTS_MEMORY_IOMMU_FIXTURE_H

#include <criterion/criterion.h>

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

extern struct fixture fixture;
extern struct bb_space *bus, *memory, *other;
extern struct unit unit; /* at 0 of the bus */
extern const struct bb_iommu_ops unit_ops;

void iommu_begin(void);
void iommu_end(void);

void unit_make(struct unit *made, const char *name, uint64_t size_bytes);
void map(struct bb_space *space, bb_gpa_t gpa, struct bb_region *region);
/* For requester 0, readable and writable. */
struct page *page_add(struct unit *to, bb_gpa_t iova, unsigned bits, struct bb_space *target,
                      bb_gpa_t translated);

/* bb_map_resolve_() in a section of its own; the second: to read, on the bus, without attributes.
 */
int resolve_as(struct bb_space *space, bb_gpa_t gpa, uint64_t length, enum bb_iommu_access access,
               struct bb_attrs attrs, struct bb_found_ *found);
int resolve(bb_gpa_t gpa, uint64_t length, struct bb_found_ *found);
/* Asserts that `gpa` of the bus leads to `translated` of `space`, and for how long. */
void leads_to(bb_gpa_t gpa, struct bb_space *space, bb_gpa_t translated, uint64_t length);

#endif
