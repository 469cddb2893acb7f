/* SPDX-License-Identifier: MIT */
/*
 * Transactions: a list of changes, judged and made in order at commit.
 *
 * Each change is judged against what the ones before it left, in the trees of the commit under way
 * and in the regions' own fields, both under the map's lock. Where one does not fit, the fields are
 * put back in reverse order and the trees are dropped, so that nothing has changed.
 */
#include <inttypes.h>
#include <string.h>

#include "memory_internal.h"

enum { OPS_INLINE = 4 };

struct op {
    struct bb_region *region;
    struct bb_space *space; /* map: where to; unmap: NULL, then where it was, for undoing */
    bb_gpa_t gpa;           /* likewise */
    bool map;
};

struct bb_txn {
    struct bb_ctx *ctx;
    struct op *ops;
    size_t count;
    size_t capacity;
    struct op few[OPS_INLINE]; /* used until they don't suffice */
};

static void txn_init(struct bb_txn *txn, struct bb_ctx *ctx)
{
    memset(txn, 0, sizeof(*txn));
    txn->ctx = ctx;
    txn->ops = txn->few;
    txn->capacity = OPS_INLINE;
}

static void txn_fini(struct bb_txn *txn)
{
    if (txn->ops != txn->few) {
        bb_heap_free(bb_mem_ctx_(txn->ctx)->map->heap, txn->ops,
                     txn->capacity * sizeof(txn->ops[0]));
    }
}

static int txn_add(struct bb_txn *txn, const struct op *op, struct bb_error *err)
{
    if (txn->count == txn->capacity) {
        struct bb_heap *heap = bb_mem_ctx_(txn->ctx)->map->heap;
        size_t capacity = txn->capacity * 2;
        struct op *ops = bb_heap_alloc(heap, capacity * sizeof(ops[0]));
        if (ops == NULL) {
            return bb_error_set(err, BB_E_NOMEM, "no memory for change %zu of a transaction",
                                txn->count + 1);
        }
        memcpy(ops, txn->ops, txn->count * sizeof(ops[0]));
        txn_fini(txn);
        txn->ops = ops;
        txn->capacity = capacity;
    }
    txn->ops[txn->count++] = *op;
    return BB_OK;
}

static int out_of_memory(struct bb_error *err, const struct bb_region *region)
{
    return bb_error_set(err, BB_E_NOMEM, "no memory to change where region '%s' is mapped",
                        region->name);
}

static int check_map(const struct bb_commit_ *commit, const struct op *op, struct bb_error *err)
{
    const struct bb_region *region = op->region;
    bb_gpa_t last = op->gpa + (region->size_bytes - 1);

    if (region->removing) {
        return bb_error_set(err, BB_E_STATE, "region '%s' is being removed and can't be mapped",
                            region->name);
    }
    if (region->space != NULL) {
        return bb_error_set(err, BB_E_EXIST,
                            "region '%s' is mapped already, at 0x%" PRIx64 " of space '%s'; unmap "
                            "it first",
                            region->name, region->gpa, region->space->name);
    }
    const struct bb_flat_ *there =
        bb_radix_next_(commit->root->view[op->space->index].tree, op->gpa);
    if (there != NULL && there->first <= last) {
        bb_gpa_t there_last = bb_flat_last_(there);
        return bb_error_set(
            err, BB_E_EXIST,
            "region '%s' at 0x%" PRIx64 "-0x%" PRIx64 " of space '%s' overlaps region '%s' at "
            "0x%" PRIx64 "-0x%" PRIx64 " in 0x%" PRIx64 "-0x%" PRIx64,
            region->name, op->gpa, last, op->space->name, there->region->name, there->first,
            there_last, op->gpa > there->first ? op->gpa : there->first,
            last < there_last ? last : there_last);
    }
    return BB_OK;
}

static int apply_map(struct bb_commit_ *commit, const struct op *op, struct bb_error *err)
{
    struct bb_region *region = op->region;
    int result = check_map(commit, op, err);

    if (result != BB_OK) {
        return result;
    }
    result = bb_radix_set_(&commit->edit, &commit->root->view[op->space->index].tree, op->gpa,
                           op->gpa + (region->size_bytes - 1), region, 0);
    if (result != BB_OK) {
        return out_of_memory(err, region);
    }
    region->space = op->space;
    region->gpa = op->gpa;
    commit->changed |= BB_BIT64(op->space->index);
    return BB_OK;
}

/* Takes `region` out of the tree; it must be mapped. */
static int clear_region(struct bb_commit_ *commit, struct bb_region *region, struct bb_error *err)
{
    uint32_t index = region->space->index;
    int result = bb_radix_set_(&commit->edit, &commit->root->view[index].tree, region->gpa,
                               region->gpa + (region->size_bytes - 1), NULL, 0);

    if (result != BB_OK) {
        return out_of_memory(err, region);
    }
    commit->changed |= BB_BIT64(index);
    return BB_OK;
}

static int apply_unmap(struct bb_commit_ *commit, struct op *op, struct bb_error *err)
{
    struct bb_region *region = op->region;

    if (region->removing) {
        return bb_error_set(err, BB_E_STATE, "region '%s' is being removed, and so unmapped",
                            region->name);
    }
    if (region->space == NULL) {
        return bb_error_set(err, BB_E_NOENT, "region '%s' is not mapped", region->name);
    }
    int result = clear_region(commit, region, err);
    if (result != BB_OK) {
        return result;
    }
    op->space = region->space;
    op->gpa = region->gpa;
    region->space = NULL;
    return BB_OK;
}

/* Puts back the fields that an applied op changed. The map's lock is held. */
static void undo_op(const struct op *op)
{
    if (op->map) {
        op->region->space = NULL;
    } else {
        op->region->space = op->space;
        op->region->gpa = op->gpa;
    }
}

static int txn_run(struct bb_txn *txn, struct bb_error *err)
{
    if (txn->count == 0) {
        return BB_OK;
    }

    struct bb_commit_ commit;
    if (bb_commit_begin_(&commit, txn->ctx, 0) != BB_OK) {
        return out_of_memory(err, txn->ops[0].region);
    }
    for (size_t i = 0; i < txn->count; i++) {
        struct op *op = &txn->ops[i];
        int result = op->map ? apply_map(&commit, op, err) : apply_unmap(&commit, op, err);
        if (result != BB_OK) {
            while (i > 0) {
                undo_op(&txn->ops[--i]);
            }
            bb_commit_abandon_(&commit);
            return result;
        }
    }
    bb_commit_publish_(&commit);
    return BB_OK;
}

int bb_txn_begin(struct bb_ctx *ctx, struct bb_txn **txn, struct bb_error *err)
{
    if (txn == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a transaction needs a place");
    }
    struct bb_txn *made = bb_heap_alloc(bb_mem_ctx_(ctx)->map->heap, sizeof(*made));

    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a transaction");
    }
    txn_init(made, ctx);
    *txn = made;
    return BB_OK;
}

int bb_txn_map(struct bb_txn *txn, struct bb_space *space, bb_gpa_t gpa, struct bb_region *region,
               struct bb_error *err)
{
    if (txn == NULL || space == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "mapping needs a transaction, a space and a region");
    }
    bb_gpa_t last;
    if (!bb_range_last(gpa, region->size_bytes, &last)) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%s' of 0x%" PRIx64 " bytes at 0x%" PRIx64
                            " goes past the end of the address range; the highest place for it is "
                            "0x%" PRIx64,
                            region->name, region->size_bytes, gpa,
                            UINT64_MAX - (region->size_bytes - 1));
    }
    if (last > space->last) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%s' at 0x%" PRIx64 "-0x%" PRIx64
                            " exceeds space '%s', which ends at 0x%" PRIx64,
                            region->name, gpa, last, space->name, space->last);
    }
    return txn_add(txn, &(struct op){.region = region, .space = space, .gpa = gpa, .map = true},
                   err);
}

int bb_txn_unmap(struct bb_txn *txn, struct bb_region *region, struct bb_error *err)
{
    if (txn == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "unmapping needs a transaction and a region");
    }
    return txn_add(txn, &(struct op){.region = region, .map = false}, err);
}

int bb_txn_commit(struct bb_txn *txn, struct bb_error *err)
{
    if (txn == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no transaction to commit: it is NULL");
    }
    int result = txn_run(txn, err);

    bb_txn_abort(txn);
    return result;
}

void bb_txn_abort(struct bb_txn *txn)
{
    if (txn == NULL) {
        return;
    }
    txn_fini(txn);
    bb_heap_free(bb_mem_ctx_(txn->ctx)->map->heap, txn, sizeof(*txn));
}

int bb_space_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, struct bb_region *region,
                 struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    int result = bb_txn_map(&txn, space, gpa, region, err);
    return result != BB_OK ? result : txn_run(&txn, err);
}

int bb_space_unmap(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    int result = bb_txn_unmap(&txn, region, err);
    return result != BB_OK ? result : txn_run(&txn, err);
}

int bb_regions_retire_(struct bb_ctx *ctx, struct bb_region *const *regions, size_t count,
                       struct bb_error *err)
{
    if (count == 0) {
        return BB_OK;
    }

    struct bb_commit_ commit;
    if (bb_commit_begin_(&commit, ctx, 0) != BB_OK) {
        return out_of_memory(err, regions[0]);
    }
    for (size_t i = 0; i < count; i++) {
        struct bb_region *region = regions[i];
        int result = BB_OK;
        if (region->removing) {
            result =
                bb_error_set(err, BB_E_STATE, "region '%s' is being removed already", region->name);
        } else if (region->space != NULL) {
            result = clear_region(&commit, region, err);
        }
        if (result != BB_OK) {
            bb_commit_abandon_(&commit);
            return result;
        }
    }
    for (size_t i = 0; i < count; i++) {
        regions[i]->removing = true;
        regions[i]->space = NULL;
        if (regions[i]->kind == BB_REGION_RAM_) {
            struct bb_region **link = &bb_mem_ctx_(ctx)->map->ram;
            while (*link != regions[i]) {
                link = &(*link)->ram_next;
            }
            *link = regions[i]->ram_next;
        }
    }
    if (commit.changed != 0) {
        bb_commit_publish_(&commit);
    } else {
        bb_commit_abandon_(&commit); /* none was mapped: the published root stands */
    }
    return BB_OK;
}
