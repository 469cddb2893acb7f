/* SPDX-License-Identifier: MIT */
/*
 * Transactions: a list of changes, made in order at commit (change.c says how each is), then judged
 * as a whole, rendered and published (commit.c). What can fail comes in this order: the changes,
 * the check for overlaps, rendering. Where one fails the changes are undone in reverse order and
 * the new trees are dropped, so that nothing has changed.
 */
#include <inttypes.h>
#include <string.h>

#include "memory_internal.h"

enum { OPS_INLINE = 2 };

struct bb_txn {
    struct bb_ctx *ctx;
    struct bb_op_ *ops;
    size_t count;
    size_t capacity;
    struct bb_txn *parent;         /* whose changes this one's join */
    struct bb_txn *nested;         /* the open one inside this one */
    bool orphan;                   /* the parent is gone */
    struct bb_op_ few[OPS_INLINE]; /* used until they don't suffice */
};

static struct bb_map *map_of(const struct bb_txn *txn)
{
    return bb_mem_ctx_(txn->ctx)->map;
}

/* The list. */

static void txn_init(struct bb_txn *txn, struct bb_ctx *ctx)
{
    /* The changes are filled in as they come. */
    memset(txn, 0, offsetof(struct bb_txn, few));
    txn->ctx = ctx;
    txn->ops = txn->few;
    txn->capacity = OPS_INLINE;
}

static void ops_free(struct bb_txn *txn)
{
    if (txn->ops != txn->few) {
        bb_heap_free(map_of(txn)->heap, txn->ops, txn->capacity * sizeof(txn->ops[0]));
    }
}

static int ops_reserve(struct bb_txn *txn, size_t more, struct bb_error *err)
{
    size_t capacity = txn->capacity;

    if (capacity - txn->count >= more) {
        return BB_OK;
    }
    while (capacity - txn->count < more) {
        capacity *= 2;
    }
    struct bb_op_ *ops = bb_heap_alloc(map_of(txn)->heap, capacity * sizeof(ops[0]));
    if (ops == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for change %zu of a transaction",
                            txn->count + more);
    }
    memcpy(ops, txn->ops, txn->count * sizeof(ops[0]));
    ops_free(txn);
    txn->ops = ops;
    txn->capacity = capacity;
    return BB_OK;
}

int bb_txn_add_(struct bb_txn *txn, const struct bb_op_ *op, struct bb_error *err)
{
    if (txn == NULL || op->region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a change needs a transaction and a region");
    }
    if (txn->nested != NULL) {
        return bb_error_set(err, BB_E_STATE,
                            "the transaction has a nested one open; commit or abort that first");
    }
    if (op->region->map != map_of(txn)) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%s' is of another engine than the transaction",
                            op->region->name);
    }
    if (op->region->root_of != NULL && op->kind < BB_OP_DOORBELL_ADD_) {
        return bb_error_set(err, BB_E_INVAL, "'%s' is the root of a space and can't be changed",
                            op->region->name);
    }
    int result = ops_reserve(txn, 1, err);
    if (result == BB_OK) {
        txn->ops[txn->count++] = *op;
    }
    return result;
}

/* Commit. */

static int txn_run(struct bb_txn *txn, struct bb_error *err)
{
    struct bb_commit_ commit;
    size_t made = 0;
    int result = BB_OK;

    if (txn->count == 0) {
        return BB_OK;
    }
    if (bb_commit_begin_(&commit, txn->ctx, 0) != BB_OK) {
        return bb_change_out_of_memory_(err, txn->ops[0].region);
    }
    for (; made < txn->count && result == BB_OK; made++) {
        result = bb_change_apply_(&commit, &txn->ops[made], err);
        if (result != BB_OK) {
            break;
        }
    }
    for (size_t i = 0; i < txn->count && result == BB_OK; i++) {
        result = bb_change_check_overlap_(txn->ops[i].region, err);
    }
    if (result == BB_OK) {
        result = bb_commit_ready_(&commit);
        if (result != BB_OK) {
            bb_change_failed_(err, txn->ops[0].region, result);
        }
    }
    if (result != BB_OK) {
        while (made > 0) {
            bb_change_undo_(commit.map, &txn->ops[--made]);
        }
        bb_commit_abandon_(&commit);
        return result;
    }
    for (size_t i = 0; i < txn->count; i++) {
        struct bb_bells_ *old = txn->ops[i].kind >= BB_OP_DOORBELL_ADD_ ? txn->ops[i].bells : NULL;
        if (old != NULL) {
            old->next = commit.edit.dead_bells;
            commit.edit.dead_bells = old;
            commit.edit.dead_bytes += old->bytes;
        }
    }
    bb_commit_publish_(&commit);
    return BB_OK;
}

static int txn_create(struct bb_ctx *ctx, struct bb_txn **txn, struct bb_error *err)
{
    struct bb_txn *made = bb_heap_alloc(bb_mem_ctx_(ctx)->map->heap, sizeof(*made));

    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a transaction");
    }
    txn_init(made, ctx);
    *txn = made;
    return BB_OK;
}

int bb_txn_begin(struct bb_ctx *ctx, struct bb_txn **txn, struct bb_error *err)
{
    if (txn == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a transaction needs a place");
    }
    return txn_create(ctx, txn, err);
}

int bb_txn_nest(struct bb_txn *parent, struct bb_txn **txn, struct bb_error *err)
{
    if (parent == NULL || txn == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a nested transaction needs a parent and a place");
    }
    if (parent->nested != NULL) {
        return bb_error_set(err, BB_E_STATE,
                            "the transaction has a nested one open already; nest in that one");
    }
    int result = txn_create(parent->ctx, txn, err);
    if (result == BB_OK) {
        (*txn)->parent = parent;
        parent->nested = *txn;
    }
    return result;
}

/* Hands the changes of a nested transaction to the one around it. */
static int txn_join(struct bb_txn *txn, struct bb_error *err)
{
    struct bb_txn *parent = txn->parent;
    int result = ops_reserve(parent, txn->count, err);

    if (result == BB_OK) {
        memcpy(&parent->ops[parent->count], txn->ops, txn->count * sizeof(txn->ops[0]));
        parent->count += txn->count;
    }
    return result;
}

int bb_txn_commit(struct bb_txn *txn, struct bb_error *err)
{
    int result;

    if (txn == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no transaction to commit: it is NULL");
    }
    if (txn->nested != NULL) {
        return bb_error_set(err, BB_E_STATE,
                            "the transaction has a nested one open; commit or abort that first");
    }
    if (txn->orphan) {
        result = bb_error_set(err, BB_E_STATE,
                              "the transaction that this one is nested in has been aborted");
    } else {
        result = txn->parent != NULL ? txn_join(txn, err) : txn_run(txn, err);
    }
    bb_txn_abort(txn);
    return result;
}

void bb_txn_abort(struct bb_txn *txn)
{
    if (txn == NULL) {
        return;
    }
    if (txn->nested != NULL) {
        txn->nested->parent = NULL;
        txn->nested->orphan = true;
    }
    if (txn->parent != NULL) {
        txn->parent->nested = NULL;
    }
    ops_free(txn);
    bb_heap_free(map_of(txn)->heap, txn, sizeof(*txn));
}

/* The changes that can be asked for. */

int bb_txn_place(struct bb_txn *txn, struct bb_region *container, bb_gpa_t offset,
                 struct bb_region *region, int priority, struct bb_error *err)
{
    if (txn == NULL || container == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "placing needs a transaction, a container and a region");
    }
    if (container->map != map_of(txn)) {
        return bb_error_set(err, BB_E_INVAL, "'%s' is of another engine than the transaction",
                            container->name);
    }
    if (container->kind == BB_KIND_ALIAS || container->kind == BB_KIND_IOMMU) {
        return bb_error_set(err, BB_E_INVAL, "region '%s' can't be put into '%s', %s", region->name,
                            container->name,
                            container->kind == BB_KIND_ALIAS ? "an alias" : "an IOMMU");
    }
    uint64_t last = bb_load_relaxed(&region->last); /* relaxed: judged again at commit */
    int result = bb_change_check_wrap_(region, offset, last, err);
    if (result != BB_OK) {
        return result;
    }
    return bb_txn_add_(txn,
                       &(struct bb_op_){.kind = BB_OP_PLACE_,
                                        .region = region,
                                        .container = container,
                                        .number = offset,
                                        .priority = priority},
                       err);
}

int bb_txn_map(struct bb_txn *txn, struct bb_space *space, bb_gpa_t gpa, struct bb_region *region,
               struct bb_error *err)
{
    if (txn == NULL || space == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL, "mapping needs a transaction, a space and a region");
    }
    uint64_t last = bb_load_relaxed(&region->last); /* relaxed: as in bb_txn_place() */
    int result = bb_change_check_wrap_(region, gpa, last, err);
    if (result == BB_OK && gpa + last > space->last) {
        result = bb_error_set(err, BB_E_RANGE,
                              "region '%s' at 0x%" PRIx64 "-0x%" PRIx64
                              " exceeds space '%s', which ends at 0x%" PRIx64,
                              region->name, gpa, gpa + last, space->name, space->last);
    }
    return result != BB_OK ? result : bb_txn_place(txn, space->root, gpa, region, 0, err);
}

/* A change of `region` that is to be of the kind that `fits` says. */
static int txn_change(struct bb_txn *txn, const struct bb_op_ *op, bool fits, const char *what,
                      struct bb_error *err)
{
    if (txn != NULL && op->region != NULL && !fits) {
        return bb_error_set(err, BB_E_INVAL, "region '%s' is %s", op->region->name, what);
    }
    return bb_txn_add_(txn, op, err);
}

int bb_txn_unmap(struct bb_txn *txn, struct bb_region *region, struct bb_error *err)
{
    return bb_txn_add_(txn, &(struct bb_op_){.kind = BB_OP_UNPLACE_, .region = region}, err);
}

int bb_txn_move(struct bb_txn *txn, struct bb_region *region, bb_gpa_t offset, struct bb_error *err)
{
    return bb_txn_add_(
        txn, &(struct bb_op_){.kind = BB_OP_MOVE_, .region = region, .number = offset}, err);
}

int bb_txn_priority(struct bb_txn *txn, struct bb_region *region, int priority,
                    struct bb_error *err)
{
    return bb_txn_add_(
        txn, &(struct bb_op_){.kind = BB_OP_PRIORITY_, .region = region, .priority = priority},
        err);
}

int bb_txn_enable(struct bb_txn *txn, struct bb_region *region, bool enabled, struct bb_error *err)
{
    return bb_txn_add_(
        txn, &(struct bb_op_){.kind = BB_OP_ENABLE_, .region = region, .flag = enabled}, err);
}

static int check_resize(const struct bb_region *region, uint64_t last, struct bb_error *err)
{
    switch ((enum bb_kind)region->kind) {
    case BB_KIND_CONTAINER:
    case BB_KIND_ALIAS:
    case BB_KIND_RESERVED:
        return BB_OK;
    case BB_KIND_IO:
        if (last > BB_BIT64(63) - 1 || (last + 1) % region->rules.impl_min != 0) {
            return bb_error_set(err, BB_E_RANGE,
                                "region '%s' can't have 0x%" PRIx64
                                " bytes: 1 to 2^63, a multiple of its impl_min %u",
                                region->name, bb_last_size_(last), region->rules.impl_min);
        }
        return BB_OK;
    case BB_KIND_RAM:
        if (last > region->last_max) {
            return bb_error_set(err, BB_E_RANGE,
                                "RAM '%s' can't have 0x%" PRIx64 " bytes: it was made with "
                                "size_bytes_max 0x%" PRIx64,
                                region->name, bb_last_size_(last), region->last_max + 1);
        }
        return BB_OK;
    default:
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "region '%s' is %s, which has the size it was made with", region->name,
                            region->kind == BB_KIND_IOMMU ? "an IOMMU" : "a ROM device");
    }
}

int bb_txn_resize(struct bb_txn *txn, struct bb_region *region, uint64_t size_bytes,
                  struct bb_error *err)
{
    uint64_t last = 0;

    if (txn != NULL && region != NULL) {
        if (!bb_size_last_(size_bytes, &last)) {
            return bb_error_set(err, BB_E_RANGE,
                                "region '%s' can't have 0 bytes; disable or unmap it to hide it",
                                region->name);
        }
        int result = check_resize(region, last, err);
        if (result != BB_OK) {
            return result;
        }
    }
    return bb_txn_add_(
        txn, &(struct bb_op_){.kind = BB_OP_RESIZE_, .region = region, .number = last}, err);
}

int bb_txn_window(struct bb_txn *txn, struct bb_region *alias, uint64_t offset,
                  struct bb_error *err)
{
    return txn_change(
        txn, &(struct bb_op_){.kind = BB_OP_WINDOW_, .region = alias, .number = offset},
        alias != NULL && alias->kind == BB_KIND_ALIAS, "no alias and has no window", err);
}

int bb_txn_rom_mode(struct bb_txn *txn, struct bb_region *region, bool rom_mode,
                    struct bb_error *err)
{
    return txn_change(txn,
                      &(struct bb_op_){.kind = BB_OP_ROM_MODE_, .region = region, .flag = rom_mode},
                      region != NULL && region->kind == BB_KIND_ROM_DEVICE,
                      "no ROM device and has no modes", err);
}

int bb_txn_read_only(struct bb_txn *txn, struct bb_region *region, bool read_only,
                     struct bb_error *err)
{
    return txn_change(
        txn, &(struct bb_op_){.kind = BB_OP_READ_ONLY_, .region = region, .flag = read_only},
        region != NULL && (region->kind == BB_KIND_RAM || region->kind == BB_KIND_ALIAS),
        "neither RAM nor an alias; what it refuses is for its callbacks to say", err);
}

/* Transactions of one change. */

static int run_one(struct bb_txn *txn, int result, struct bb_error *err)
{
    if (result == BB_OK) {
        result = txn_run(txn, err);
    }
    ops_free(txn);
    return result;
}

int bb_space_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, struct bb_region *region,
                 struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    return run_one(&txn, bb_txn_map(&txn, space, gpa, region, err), err);
}

int bb_space_unmap(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    return run_one(&txn, bb_txn_unmap(&txn, region, err), err);
}

int bb_region_place(struct bb_ctx *ctx, struct bb_region *container, bb_gpa_t offset,
                    struct bb_region *region, int priority, struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    return run_one(&txn, bb_txn_place(&txn, container, offset, region, priority, err), err);
}

int bb_region_enable(struct bb_ctx *ctx, struct bb_region *region, bool enabled,
                     struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    return run_one(&txn, bb_txn_enable(&txn, region, enabled, err), err);
}

int bb_region_move(struct bb_ctx *ctx, struct bb_region *region, bb_gpa_t offset,
                   struct bb_error *err)
{
    struct bb_txn txn;

    txn_init(&txn, ctx);
    return run_one(&txn, bb_txn_move(&txn, region, offset, err), err);
}
