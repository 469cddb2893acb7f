/* SPDX-License-Identifier: MIT */
/*
 * A region's doorbells and coalesced ranges: what a transaction may ask for, and the arrays after
 * one change of them.
 *
 * The arrays of a region are one immutable object (struct bb_bells_): a change makes a new one, and
 * a commit publishes it with the region's leaves. Doorbells stand in the order of (offset, size,
 * value). At most one of them is rung by any write: one that begins at an offset with any size is
 * the only one there, and one of a size with any value the only one there of that size. So a search
 * can compare a write with each as it would compare two doorbells, and a wildcard ends it.
 * Coalesced ranges don't overlap, and stand in rising order. Ringing and taking are
 * engine/coalesce.c's.
 */
#include <inttypes.h>
#include <string.h>

#include "memory_internal.h"

/* What a transaction may ask for. */

static int check_place(const struct bb_region *region, const char *what, uint64_t offset,
                       uint64_t length, struct bb_error *err)
{
    uint64_t region_last = bb_load_relaxed(&region->last); /* any recent size: the commit before
                                                              this one may change it as well */
    uint64_t last;

    if (!bb_range_last(offset, length, &last) || last > region_last) {
        return bb_error_set(err, BB_E_RANGE,
                            "%s of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
                            " does not lie inside region '%s', whose last offset is 0x%" PRIx64,
                            what, length, offset, region->name, region_last);
    }
    return BB_OK;
}

static int check_doorbell(const struct bb_txn *txn, const struct bb_region *region,
                          const struct bb_doorbell *doorbell, struct bb_error *err)
{
    if (txn == NULL || region == NULL || doorbell == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "a doorbell needs a transaction, a region and what "
                            "it is; one of them is NULL");
    }
    if (region->kind != BB_KIND_IO && region->kind != BB_KIND_ROM_DEVICE) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%s' is of kind %s; only I/O regions and ROM devices have "
                            "doorbells",
                            region->name, bb_kind_name((enum bb_kind)region->kind));
    }
    if (doorbell->size > 8 || (doorbell->size != 0 && !bb_is_pow2(doorbell->size))) {
        return bb_error_set(err, BB_E_INVAL,
                            "doorbell at offset 0x%" PRIx64 " of region '%s': size %u is none of "
                            "1, 2, 4, 8, or 0 for any",
                            doorbell->offset, region->name, doorbell->size);
    }
    if (doorbell->match_value && doorbell->size == 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "doorbell at offset 0x%" PRIx64
                            " of region '%s' matches value 0x%" PRIx64
                            " of a write of any size; give it a size",
                            doorbell->offset, region->name, doorbell->value);
    }
    if (doorbell->match_value && (doorbell->value & ~bb_mask_bytes(doorbell->size)) != 0) {
        return bb_error_set(err, BB_E_RANGE,
                            "doorbell at offset 0x%" PRIx64 " of region '%s': value 0x%" PRIx64
                            " does not fit a write of %u bytes, at most 0x%" PRIx64,
                            doorbell->offset, region->name, doorbell->value, doorbell->size,
                            bb_mask_bytes(doorbell->size));
    }
    return BB_OK;
}

static int add_doorbell_op(struct bb_txn *txn, enum bb_op_kind_ kind, struct bb_region *region,
                           const struct bb_doorbell *doorbell, struct bb_error *err)
{
    struct bb_op_ op = {.kind = (uint8_t)kind, .region = region, .doorbell = *doorbell};

    if (!doorbell->match_value) {
        op.doorbell.value = 0; /* what no one looks at is no part of what it is */
    }
    return bb_txn_add_(txn, &op, err);
}

int bb_txn_doorbell_add(struct bb_txn *txn, struct bb_region *region,
                        const struct bb_doorbell *doorbell, struct bb_error *err)
{
    int result = check_doorbell(txn, region, doorbell, err);

    if (result != BB_OK) {
        return result;
    }
    if (doorbell->fd < 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "doorbell at offset 0x%" PRIx64 " of region '%s': %d is no descriptor; "
                            "give it an eventfd",
                            doorbell->offset, region->name, doorbell->fd);
    }
    result = check_place(region, "a doorbell", doorbell->offset,
                         doorbell->size == 0 ? 1 : doorbell->size, err);
    if (result != BB_OK) {
        return result;
    }
    return add_doorbell_op(txn, BB_OP_DOORBELL_ADD_, region, doorbell, err);
}

int bb_txn_doorbell_remove(struct bb_txn *txn, struct bb_region *region,
                           const struct bb_doorbell *doorbell, struct bb_error *err)
{
    int result = check_doorbell(txn, region, doorbell, err);

    return result != BB_OK ? result
                           : add_doorbell_op(txn, BB_OP_DOORBELL_REMOVE_, region, doorbell, err);
}

static int add_coalesced_op(struct bb_txn *txn, enum bb_op_kind_ kind, struct bb_region *region,
                            uint64_t offset, uint64_t length, struct bb_error *err)
{
    uint64_t last;

    if (txn == NULL || region == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "coalescing needs a transaction and a region; one of them is NULL");
    }
    if (region->kind != BB_KIND_IO) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%s' is of kind %s; only writes of I/O regions are coalesced",
                            region->name, bb_kind_name((enum bb_kind)region->kind));
    }
    if (region->klass != BB_CLASS_LOCKFREE && region->klass != BB_CLASS_DEVICE_LOCK) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "region '%s' is of a class that may sleep; only writes of LOCKFREE and "
                            "DEVICE_LOCK regions are coalesced",
                            region->name);
    }
    if (length == 0 || !bb_range_last(offset, length, &last)) {
        return bb_error_set(err, BB_E_RANGE,
                            "a coalesced range of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
                            " of region '%s' has no bytes, or wraps",
                            length, offset, region->name);
    }
    if (kind == BB_OP_COALESCE_) { /* what is taken off may lie outside, since a resize */
        int result = check_place(region, "a coalesced range", offset, length, err);
        if (result != BB_OK) {
            return result;
        }
    }
    return bb_txn_add_(
        txn, &(struct bb_op_){.kind = (uint8_t)kind, .region = region, .coalesced = {offset, last}},
        err);
}

int bb_txn_coalesce(struct bb_txn *txn, struct bb_region *region, uint64_t offset, uint64_t length,
                    struct bb_error *err)
{
    return add_coalesced_op(txn, BB_OP_COALESCE_, region, offset, length, err);
}

int bb_txn_uncoalesce(struct bb_txn *txn, struct bb_region *region, uint64_t offset,
                      uint64_t length, struct bb_error *err)
{
    return add_coalesced_op(txn, BB_OP_UNCOALESCE_, region, offset, length, err);
}

/* The arrays after one change. */

/* Below 0, 0 or above 0 as `a` stands before, in the place of, or behind `b`; 0 too where one write
 * would ring both. */
static int compare_doorbells(const struct bb_doorbell *a, const struct bb_doorbell *b)
{
    if (a->offset != b->offset) {
        return a->offset < b->offset ? -1 : 1;
    }
    if (a->size == 0 || b->size == 0) {
        return 0;
    }
    if (a->size != b->size) {
        return a->size < b->size ? -1 : 1;
    }
    if (!a->match_value || !b->match_value) {
        return 0;
    }
    return a->value == b->value ? 0 : (a->value < b->value ? -1 : 1);
}

static bool same_doorbell(const struct bb_doorbell *a, const struct bb_doorbell *b)
{
    return a->offset == b->offset && a->size == b->size && a->match_value == b->match_value &&
           a->value == b->value;
}

/* How many doorbells of `bells` stand before `doorbell`. */
static uint32_t doorbells_before(const struct bb_bells_ *bells, const struct bb_doorbell *doorbell)
{
    uint32_t i = 0;

    while (bells != NULL && i < bells->doorbell_count &&
           compare_doorbells(&bells->doorbell[i], doorbell) < 0) {
        i++;
    }
    return i;
}

static uint32_t ranges_before(const struct bb_bells_ *bells, uint64_t first)
{
    uint32_t i = 0;

    while (bells != NULL && i < bells->coalesced_count && bells->coalesced[i].last < first) {
        i++;
    }
    return i;
}

static struct bb_bells_ *bells_alloc(struct bb_heap *heap, uint32_t doorbells, uint32_t ranges)
{
    size_t doorbell_bytes = doorbells * sizeof(struct bb_doorbell);
    size_t bytes =
        sizeof(struct bb_bells_) + doorbell_bytes + ranges * sizeof(struct bb_coalesced_);
    struct bb_bells_ *bells = bb_heap_alloc(heap, bytes);

    _Static_assert(sizeof(struct bb_doorbell) % _Alignof(struct bb_coalesced_) == 0 &&
                       sizeof(struct bb_bells_) % _Alignof(struct bb_coalesced_) == 0,
                   "ranges stand directly behind doorbells");
    if (bells != NULL) {
        bells->next = NULL;
        bells->doorbell_count = doorbells;
        bells->coalesced_count = ranges;
        bells->coalesced = (void *)((char *)bells->doorbell + doorbell_bytes);
        bells->bytes = bytes;
    }
    return bells;
}

/* Copies `count` elements of `size` bytes but for what happens at `at`: one goes, or comes. */
static void copy_around(void *to, const void *from, uint32_t count, uint32_t at, size_t size,
                        const void *added)
{
    size_t skip_to = added != NULL ? 1 : 0;
    size_t skip_from = added != NULL ? 0 : 1;

    if (from != NULL) { /* NULL: there were none */
        memcpy(to, from, at * size);
    }
    if (added != NULL) {
        memcpy((char *)to + at * size, added, size);
    }
    if (count - skip_from > at) {
        memcpy((char *)to + (at + skip_to) * size, (const char *)from + (at + skip_from) * size,
               (count - skip_from - at) * size);
    }
}

static int no_memory(struct bb_error *err, const struct bb_region *region)
{
    return bb_error_set(err, BB_E_NOMEM, "no memory for the doorbells of region '%s'",
                        region->name);
}

static int change_doorbells(struct bb_heap *heap, const struct bb_op_ *op,
                            const struct bb_bells_ *old, struct bb_bells_ **made,
                            struct bb_error *err)
{
    bool add = op->kind == BB_OP_DOORBELL_ADD_;
    const struct bb_doorbell *bell = &op->doorbell;
    uint32_t count = old == NULL ? 0 : old->doorbell_count;
    uint32_t ranges = old == NULL ? 0 : old->coalesced_count;
    uint32_t at = doorbells_before(old, bell);
    const struct bb_doorbell *there =
        at < count && compare_doorbells(&old->doorbell[at], bell) == 0 ? &old->doorbell[at] : NULL;

    if (add && there != NULL) {
        return bb_error_set(err, BB_E_EXIST,
                            "region '%s' has a doorbell at offset 0x%" PRIx64
                            " of size %u (0: any) "
                            "and %s that a write for the new one, of size %u and %s, would ring",
                            op->region->name, there->offset, there->size,
                            there->match_value ? "one value" : "any value", bell->size,
                            bell->match_value ? "one value" : "any value");
    }
    if (add && count >= BB_DOORBELLS_MAX) {
        return bb_error_set(err, BB_E_LIMIT, "region '%s' has %u doorbells, the most there can be",
                            op->region->name, count);
    }
    if (!add && (there == NULL || !same_doorbell(there, bell))) {
        return bb_error_set(err, BB_E_NOENT,
                            "region '%s' has no doorbell at offset 0x%" PRIx64
                            " of size %u and %s to take off",
                            op->region->name, bell->offset, bell->size,
                            bell->match_value ? "that value" : "any value");
    }
    uint32_t after = add ? count + 1 : count - 1;
    if (after + ranges == 0) {
        *made = NULL;
        return BB_OK;
    }
    struct bb_bells_ *bells = bells_alloc(heap, after, ranges);
    if (bells == NULL) {
        return no_memory(err, op->region);
    }
    copy_around(bells->doorbell, count > 0 ? old->doorbell : NULL, count, at, sizeof(*bell),
                add ? bell : NULL);
    if (ranges > 0) {
        memcpy(bells->coalesced, old->coalesced, ranges * sizeof(old->coalesced[0]));
    }
    *made = bells;
    return BB_OK;
}

static int change_ranges(struct bb_heap *heap, const struct bb_op_ *op, const struct bb_bells_ *old,
                         struct bb_bells_ **made, struct bb_error *err)
{
    bool add = op->kind == BB_OP_COALESCE_;
    const struct bb_coalesced_ *range = &op->coalesced;
    uint32_t doorbells = old == NULL ? 0 : old->doorbell_count;
    uint32_t count = old == NULL ? 0 : old->coalesced_count;
    uint32_t at = ranges_before(old, range->first);
    const struct bb_coalesced_ *there =
        at < count && old->coalesced[at].first <= range->last ? &old->coalesced[at] : NULL;

    if (add && there != NULL) {
        return bb_error_set(err, BB_E_EXIST,
                            "region '%s': coalesced range 0x%" PRIx64 "-0x%" PRIx64
                            " overlaps 0x%" PRIx64 "-0x%" PRIx64,
                            op->region->name, range->first, range->last, there->first, there->last);
    }
    if (add && count >= BB_COALESCED_MAX) {
        return bb_error_set(err, BB_E_LIMIT,
                            "region '%s' has %u coalesced ranges, the most there can be",
                            op->region->name, count);
    }
    if (!add && (there == NULL || there->first != range->first || there->last != range->last)) {
        return bb_error_set(err, BB_E_NOENT,
                            "region '%s' has no coalesced range 0x%" PRIx64 "-0x%" PRIx64
                            " to take off",
                            op->region->name, range->first, range->last);
    }
    uint32_t after = add ? count + 1 : count - 1;
    if (after + doorbells == 0) {
        *made = NULL;
        return BB_OK;
    }
    struct bb_bells_ *bells = bells_alloc(heap, doorbells, after);
    if (bells == NULL) {
        return no_memory(err, op->region);
    }
    if (doorbells > 0) {
        memcpy(bells->doorbell, old->doorbell, doorbells * sizeof(old->doorbell[0]));
    }
    copy_around(bells->coalesced, count > 0 ? old->coalesced : NULL, count, at, sizeof(*range),
                add ? range : NULL);
    *made = bells;
    return BB_OK;
}

int bb_bells_change_(struct bb_heap *heap, const struct bb_op_ *op, const struct bb_bells_ *old,
                     struct bb_bells_ **made, struct bb_error *err)
{
    return op->kind == BB_OP_DOORBELL_ADD_ || op->kind == BB_OP_DOORBELL_REMOVE_
               ? change_doorbells(heap, op, old, made, err)
               : change_ranges(heap, op, old, made, err);
}

void bb_bells_free_(struct bb_heap *heap, struct bb_bells_ *bells)
{
    while (bells != NULL) {
        struct bb_bells_ *next = bells->next;

        bb_heap_free(heap, bells, bells->bytes);
        bells = next;
    }
}
