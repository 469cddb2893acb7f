/* SPDX-License-Identifier: MIT */
/*
 * The frame in which an IOMMU's translate callback runs: its own device's, called by the chain.
 *
 * Nothing is judged: a translation is no access, and an accessing device may be translated by an
 * IOMMU that is on the chain's way already (a device reset by it makes a last write, say). What the
 * callback posts bears its device's name and pins it, so that removal waits for it.
 */
#include "engine_internal.h"

int bb_translate_(struct bb_ctx *ctx, const struct bb_region *region, bb_gpa_t iova,
                  enum bb_iommu_access access, struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    struct bb_chain_ *chain = &e->chain;
    uint16_t records_before = chain->record_count;
    uint32_t spent_before = chain->spent;
    /* The first record is not filled in yet where no callback and no effect runs. */
    bool inside = ctx->callback_depth > 0 || chain->epilogue;

    bb_chain_root_(e);
    uint16_t record =
        bb_chain_record_(e, region->owner_id, inside ? chain->record : BB_CHAIN_NO_RECORD_);
    /* Out of records: the finder's ancestry, which refuses more, never less. */
    struct bb_frame_ frame = bb_frame_enter_(
        e, region->owner, region->owner_id, record == BB_CHAIN_NO_RECORD_ ? chain->record : record);
    int result = bb_iommu_ask_(ctx, region, iova, access, attrs, entry);

    bb_frame_leave_(e, frame);
    if (chain->spent == spent_before) {
        chain->record_count = records_before; /* nothing refers to it */
    }
    return result;
}
