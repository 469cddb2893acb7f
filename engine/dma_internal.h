/* SPDX-License-Identifier: MIT */
/* What dma.c and dma_value.c share. */
#ifndef BUSBAR_ENGINE_DMA_INTERNAL_H
#define BUSBAR_ENGINE_DMA_INTERNAL_H

#include "dma.h"
#include "engine_internal.h"

struct bb_transfer_ {
    struct bb_space *space;
    bb_gpa_t gpa;
    uint8_t *to;         /* a read's; NULL: it is a write */
    const uint8_t *from; /* a write's; NULL: `fill`, over and over */
    uint8_t fill;
    struct bb_attrs attrs;
    uint64_t length;
    uint64_t done;
    uint64_t counted; /* serial of the memory that it was last counted for; 0: none */
};

/* Makes a transfer that does not wrap and is not empty, wherever the context stands. */
int bb_dma_move_(struct bb_ctx *ctx, struct bb_transfer_ *t);

/* Counts what ended a transfer before any access was made. */
void bb_dma_failed_(struct bb_ectx_ *e, bool write, int result);

/* Where the host finds what was found in memory. */
static inline uint8_t *bb_found_host_(const struct bb_found_ *found)
{
    return found->leaf->host + (found->offset - found->leaf->region_offset);
}

static inline bool bb_leaf_writable_(const struct bb_flat_ *leaf)
{
    return leaf->memory && leaf->kind == BB_KIND_RAM && !leaf->read_only;
}

#endif
