/* SPDX-License-Identifier: MIT */
/*
 * Retirement: the first half of removal. The regions go out of the map in one commit, and nothing
 * leads to them from then on; who still sees them in a section or holds a pin is waited for by the
 * second half (engine/removal.c).
 */
#include "memory_internal.h"

static int check_retire(const struct bb_map *map, const struct bb_region *region,
                        struct bb_error *err)
{
    if (region->map != map) {
        return bb_error_set(err, BB_E_INVAL, "region '%s' is of another engine than the context",
                            region->name);
    }
    if (region->root_of != NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "'%s' is the root of a space, which lives as long as its engine",
                            region->name);
    }
    if (region->removing) {
        return bb_error_set(err, BB_E_STATE, "region '%s' is being removed already", region->name);
    }
    return BB_OK;
}

/* Takes a region that is no longer shown out of everything that leads to it. */
static void retire(struct bb_region *region)
{
    if (region->parent != NULL) {
        bb_change_unlink_(region);
    }
    while (region->aliases != NULL) {
        struct bb_region *alias = region->aliases;
        region->aliases = alias->alias_next;
        alias->target = NULL;
        if (alias->attached > 0) {
            bb_change_detach_(region);
        }
    }
    /* Nothing leads to it now, so it is not attached, nor is anything attached through it. */
    while (region->child != NULL) {
        bb_change_unlink_(region->child);
    }
    if (region->target != NULL) {
        *region->alias_link = region->alias_next;
        if (region->alias_next != NULL) {
            region->alias_next->alias_link = region->alias_link;
        }
        region->target = NULL;
    }
    bb_region_delist_(region);
}

int bb_regions_retire_(struct bb_ctx *ctx, struct bb_region *const *regions, size_t count,
                       struct bb_error *err)
{
    struct bb_commit_ commit;
    size_t marked = 0;
    int result = BB_OK;

    if (count == 0) {
        return BB_OK;
    }
    if (bb_commit_begin_(&commit, ctx, 0) != BB_OK) {
        return bb_change_out_of_memory_(err, regions[0]);
    }
    commit.removal = true;
    for (size_t i = 0; i < count && result == BB_OK; i++) {
        result = check_retire(commit.map, regions[i], err);
        if (result == BB_OK) {
            result = bb_change_stale_(&commit, regions[i], err);
        }
    }
    /* A region that is being removed shows nothing, whatever leads to it: that is all that
     * rendering needs, and easily undone. */
    for (; marked < count && result == BB_OK; marked++) {
        struct bb_region *region = regions[marked];
        bool drains = region->coalesced != NULL && *region->coalesced > 0;
        region->removing = true;
        if (region->bells != NULL && region->coalesced != NULL) {
            *region->coalesced -= region->bells->coalesced_count;
            if (drains && *region->coalesced == 0) {
                result = bb_change_stale_device_(&commit, region, err);
            }
        }
    }
    if (result == BB_OK) {
        result = bb_commit_ready_(&commit);
        if (result != BB_OK) {
            bb_change_failed_(err, regions[0], result);
        }
    }
    if (result != BB_OK) {
        while (marked > 0) {
            struct bb_region *region = regions[--marked];
            region->removing = false;
            if (region->bells != NULL && region->coalesced != NULL) {
                *region->coalesced += region->bells->coalesced_count;
            }
        }
        bb_commit_abandon_(&commit);
        return result;
    }
    for (size_t i = 0; i < count; i++) {
        retire(regions[i]);
    }
    bb_commit_publish_(&commit);
    return BB_OK;
}
