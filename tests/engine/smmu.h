/* SPDX-License-Identifier: MIT */
/*
 * A model of an IOMMU whose tables lie in guest RAM, an entry of eight bytes a page: bit 0 read,
 * bit 1 write, the rest where the page is. One machine a program, with a bus that the model is on.
 */
#ifndef BUSBAR_TESTS_ENGINE_SMMU_H
#define BUSBAR_TESTS_ENGINE_SMMU_H

#include "../../engine/dma.h"
#include "fixture.h"

enum {
    PAGE = 0x1000,
    TABLE_ENTRIES = 16,
    TABLE = 0x8000, /* of requester 1; each further one's 0x100 behind */
    TABLE_STEP = 0x100,
    REQUESTERS = 4,
};

#define MAPPED UINT64_C(3)

struct smmu {
    struct machine *machine;
    struct bb_device *device;
    struct bb_region *region;
    struct bb_space *target; /* where pages lie */
    struct bb_space *tables; /* where tables lie */
    bool tells;              /* of faults, by a message */
    uint64_t asked;
    /* What it does besides; NULL: nothing. */
    void (*besides)(struct bb_ctx *ctx, struct smmu *smmu, struct bb_attrs attrs);
    void *arg;
};

extern struct machine machine;
extern struct bb_space *bus; /* what the masters see */
extern struct smmu smmu;     /* on it; leads to MMIO space */
extern const struct bb_attrs nobody;
extern uint64_t messages, last_message; /* that were sent */

/* The suites' .init and .fini. */
void smmu_begin(void);
void smmu_end(void);

struct bb_attrs master(uint32_t id);
struct bb_space *space_make(const char *name);
void smmu_make(struct smmu *made, const char *name, struct bb_space *in, struct bb_space *target);
void smmu_drop(struct smmu *dropped);

/* Sets an entry of a requester's table, as a guest does. */
void page_set(uint32_t requester, bb_gpa_t iova, uint64_t word);
void void_all(struct bb_region *region);

/* Eight bytes on the bus, by a requester. */
int load(struct bb_ctx *ctx, bb_gpa_t gpa, uint32_t requester, uint64_t *value);
int store(struct bb_ctx *ctx, bb_gpa_t gpa, uint32_t requester, uint64_t value);
uint64_t ram_word(bb_gpa_t gpa);

#endif
