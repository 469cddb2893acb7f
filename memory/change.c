/* SPDX-License-Identifier: MIT */
/*
 * The changes of a transaction, one by one: judged by what those before it left, made in the
 * regions' own fields, undone. Under the map's lock.
 *
 * What a change may have made stale in views is noted before it and after it. Making one swaps what
 * it holds with what was there, so that undoing it is making it again. The tree is linked through
 * the regions themselves: no undoing needs memory.
 *
 * Invariants of the tree of regions: a region is in its container's list of children, and in its
 * index where it is enabled; it is in its target's list of aliases; nobody contains itself, be it
 * by way of aliases; and no region reaches past 2^64 from its place, nor an alias's window.
 */
#include <inttypes.h>

#include "memory_internal.h"

/* Places. */

/* What is written before a container's name. */
static const char *space_word(const struct bb_region *container)
{
    return container->root_of != NULL ? "space " : "";
}

static void index_out(struct bb_region *region)
{
    if (region->parent != NULL && region->enabled) {
        bb_interval_remove_(&region->parent->index, region);
    }
}

static void index_in(struct bb_region *region)
{
    if (region->parent != NULL && region->enabled) {
        bb_interval_insert_(&region->parent->index, region);
    }
}

/*
 * Attachment. A region is attached where some way leads down to it from a space's root, through
 * places and aliases, shown or not. It counts the edges that end at it and begin at attached
 * regions, so that the first and the last of them are known; the graph has no cycles, so the count
 * is exact.
 *
 * What is attached bit by bit may in the end hang together in longer chains than the bound allows:
 * nothing of it is shown. So whoever takes it down, or puts it back, uses a list and no stack.
 */

/* One edge that leads to `region` goes; puts it on the list where that was the last. */
static void detach_one(struct bb_region *region, struct bb_region **list)
{
    if (--region->attached == 0) {
        region->attach_next = *list;
        *list = region;
    }
}

static void attach_one(struct bb_region *region, struct bb_region **list)
{
    if (region->attached++ == 0) {
        region->attach_next = *list;
        *list = region;
    }
}

/* `region`, and what is below it in its turn. */
static void each_below(struct bb_region *region,
                       void (*one)(struct bb_region *region, struct bb_region **list))
{
    struct bb_region *list = NULL;

    one(region, &list);
    while (list != NULL) {
        struct bb_region *next = list;

        list = next->attach_next;
        for (struct bb_region *child = next->child; child != NULL; child = child->sibling) {
            one(child, &list);
        }
        if (next->target != NULL) {
            one(next->target, &list);
        }
    }
}

void bb_change_detach_(struct bb_region *region)
{
    each_below(region, detach_one);
}

/* BB_OK, or BB_E_LIMIT where it goes on for more than `levels`; then nothing is attached. */
static int attach(struct bb_region *region, unsigned levels)
{
    int result = BB_OK;

    if (region->attached > 0) {
        region->attached++;
        return BB_OK;
    }
    if (levels == 0) {
        return BB_E_LIMIT;
    }
    struct bb_region *child = region->child;
    while (child != NULL) {
        result = attach(child, levels - 1);
        if (result != BB_OK) {
            break;
        }
        child = child->sibling;
    }
    if (result == BB_OK && region->target != NULL) {
        result = attach(region->target, levels - 1);
    }
    if (result != BB_OK) {
        for (struct bb_region *done = region->child; done != child; done = done->sibling) {
            bb_change_detach_(done);
        }
        return result;
    }
    region->attached = 1;
    return BB_OK;
}

/* Attachment is the caller's. */
static void link_child(struct bb_region *container, struct bb_region *region)
{
    region->parent = container;
    region->sibling = container->child;
    region->sibling_link = &container->child;
    if (container->child != NULL) {
        container->child->sibling_link = &region->sibling;
    }
    container->child = region;
    index_in(region);
}

void bb_change_unlink_(struct bb_region *region)
{
    index_out(region);
    *region->sibling_link = region->sibling;
    if (region->sibling != NULL) {
        region->sibling->sibling_link = region->sibling_link;
    }
    if (region->parent->attached > 0) {
        bb_change_detach_(region);
    }
    region->parent = NULL;
}

/*
 * Looks for `region` among `from`, its containers and the aliases that show them: BB_OK, BB_E_INVAL
 * where it is there, BB_E_LIMIT.
 */
static int find_above(struct bb_map *map, struct bb_region *from, const struct bb_region *region,
                      unsigned depth)
{
    int result = BB_OK;

    if (from == region) {
        return BB_E_INVAL;
    }
    if (depth == BB_DEPTH_MAX) {
        return BB_E_LIMIT;
    }
    if (from->mark == map->walk) {
        return BB_OK;
    }
    from->mark = map->walk;
    if (from->parent != NULL) {
        result = find_above(map, from->parent, region, depth + 1);
    }
    for (struct bb_region *alias = from->aliases; alias != NULL && result == BB_OK;
         alias = alias->alias_next) {
        result = find_above(map, alias, region, depth + 1);
    }
    return result;
}

int bb_change_out_of_memory_(struct bb_error *err, const struct bb_region *region)
{
    return bb_error_set(err, BB_E_NOMEM, "no memory to change where region '%s' is shown",
                        region->name);
}

static int too_much(struct bb_error *err, const struct bb_region *region)
{
    return bb_error_set(err, BB_E_LIMIT,
                        "region '%s' lies too deep or is shown in too many places: at most %d "
                        "levels, %d places, %d steps to render it; put fewer aliases over it",
                        region->name, BB_DEPTH_MAX, BB_INSTANCES_MAX, BB_RENDER_MAX);
}

int bb_change_failed_(struct bb_error *err, const struct bb_region *region, int result)
{
    return result == BB_E_LIMIT ? too_much(err, region) : bb_change_out_of_memory_(err, region);
}

int bb_change_stale_(struct bb_commit_ *commit, struct bb_region *region, struct bb_error *err)
{
    int result = bb_commit_stale_(commit, region, 0, region->last);

    return result == BB_OK ? BB_OK : bb_change_failed_(err, region, result);
}

static int check_place(struct bb_map *map, const struct bb_op_ *op, struct bb_error *err)
{
    const struct bb_region *region = op->region;

    if (op->container->removing) {
        return bb_error_set(err, BB_E_STATE,
                            "region '%s' can't be put into '%s', which is being removed",
                            region->name, op->container->name);
    }
    if (region->parent != NULL) {
        return bb_error_set(err, BB_E_EXIST,
                            "region '%s' is mapped already, at 0x%" PRIx64
                            " of %s'%s'; unmap it first, or make an alias of it",
                            region->name, region->at, space_word(region->parent),
                            region->parent->name);
    }
    map->walk++;
    int result = find_above(map, op->container, region, 0);
    if (result == BB_E_INVAL) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%s' can't be put into '%s': it would contain itself, which "
                            "makes a cycle",
                            region->name, op->container->name);
    }
    return result == BB_OK ? BB_OK : too_much(err, region);
}

int bb_change_check_wrap_(const struct bb_region *region, uint64_t at, uint64_t last,
                          struct bb_error *err)
{
    if (at > UINT64_MAX - last) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%s' of 0x%" PRIx64 " bytes at 0x%" PRIx64
                            " goes past the end of the address range; the highest place for it is "
                            "0x%" PRIx64,
                            region->name, bb_last_size_(last), at, UINT64_MAX - last);
    }
    return BB_OK;
}

static int place(struct bb_commit_ *commit, struct bb_op_ *op, struct bb_error *err)
{
    struct bb_region *region = op->region;
    int result = check_place(commit->map, op, err);

    if (result == BB_OK) {
        result = bb_change_check_wrap_(region, op->number, region->last, err);
    }
    if (result != BB_OK) {
        return result;
    }
    region->at = op->number;
    region->priority = op->priority;
    result = op->container->attached > 0 ? attach(region, BB_DEPTH_MAX) : BB_OK;
    if (result != BB_OK) {
        return too_much(err, region);
    }
    link_child(op->container, region);
    result = bb_change_stale_(commit, region, err);
    if (result != BB_OK) {
        bb_change_unlink_(region);
    }
    return result;
}

static int unplace(struct bb_commit_ *commit, struct bb_op_ *op, struct bb_error *err)
{
    struct bb_region *region = op->region;

    if (region->parent == NULL) {
        return bb_error_set(err, BB_E_NOENT, "region '%s' is not mapped", region->name);
    }
    int result = bb_change_stale_(commit, region, err);
    if (result == BB_OK) {
        op->container = region->parent;
        op->number = region->at;
        op->priority = region->priority;
        bb_change_unlink_(region);
    }
    return result;
}

/* Changes that are their own undoing: what the op holds and what the region holds change places. */

static void swap_number(uint64_t *a, uint64_t *b)
{
    uint64_t held = *a;

    *a = *b;
    *b = held;
}

static void swap_flag(bool *a, bool *b)
{
    bool held = *a;

    *a = *b;
    *b = held;
}

static void swap_bells(struct bb_op_ *op)
{
    struct bb_region *region = op->region;
    struct bb_bells_ *held = region->bells;

    if (region->coalesced != NULL) {
        *region->coalesced -= held != NULL ? held->coalesced_count : 0;
        *region->coalesced += op->bells != NULL ? op->bells->coalesced_count : 0;
    }
    region->bells = op->bells;
    op->bells = held;
}

static void swap(struct bb_op_ *op)
{
    struct bb_region *region = op->region;
    uint64_t last = region->last;

    switch ((enum bb_op_kind_)op->kind) {
    case BB_OP_MOVE_:
        index_out(region);
        swap_number(&op->number, &region->at);
        index_in(region);
        break;
    case BB_OP_PRIORITY_: {
        int held = region->priority;
        region->priority = op->priority;
        op->priority = held;
        break;
    }
    case BB_OP_ENABLE_:
        index_out(region);
        swap_flag(&op->flag, &region->enabled);
        index_in(region);
        break;
    case BB_OP_RESIZE_:
        index_out(region);
        bb_store_relaxed(&region->last, op->number); /* relaxed: others read it as a figure alone */
        op->number = last;
        index_in(region);
        break;
    case BB_OP_WINDOW_:
        swap_number(&op->number, &region->target_offset);
        break;
    case BB_OP_ROM_MODE_:
        swap_flag(&op->flag, &region->rom_mode);
        break;
    case BB_OP_READ_ONLY_:
        swap_flag(&op->flag, &region->read_only);
        break;
    default:
        swap_bells(op);
        break;
    }
}

static int check_swap(const struct bb_op_ *op, struct bb_error *err)
{
    const struct bb_region *region = op->region;

    switch ((enum bb_op_kind_)op->kind) {
    case BB_OP_MOVE_:
        if (region->parent == NULL) {
            return bb_error_set(err, BB_E_NOENT, "region '%s' is not mapped and can't be moved",
                                region->name);
        }
        return bb_change_check_wrap_(region, op->number, region->last, err);
    case BB_OP_RESIZE_:
        if (region->kind == BB_KIND_ALIAS && region->target_offset > UINT64_MAX - op->number) {
            return bb_error_set(err, BB_E_RANGE,
                                "alias '%s' of 0x%" PRIx64 " bytes at 0x%" PRIx64
                                " of its target goes past 2^64",
                                region->name, bb_last_size_(op->number), region->target_offset);
        }
        return region->parent == NULL ? BB_OK
                                      : bb_change_check_wrap_(region, region->at, op->number, err);
    case BB_OP_WINDOW_:
        if (op->number > UINT64_MAX - region->last) {
            return bb_error_set(err, BB_E_RANGE,
                                "alias '%s' of 0x%" PRIx64 " bytes at 0x%" PRIx64
                                " of its target goes past 2^64",
                                region->name, bb_last_size_(region->last), op->number);
        }
        return BB_OK;
    default:
        return BB_OK;
    }
}

/* Notes all regions of a device as stale: the first coalesced range, and the last, change how they
 * are shown. */
int bb_change_stale_device_(struct bb_commit_ *commit, const struct bb_region *region,
                            struct bb_error *err)
{
    int result = BB_OK;

    for (struct bb_region *other = commit->map->all; other != NULL && result == BB_OK;
         other = other->all_next) {
        if (other->coalesced == region->coalesced) {
            result = bb_change_stale_(commit, other, err);
        }
    }
    return result;
}

static int change(struct bb_commit_ *commit, struct bb_op_ *op, struct bb_error *err)
{
    struct bb_region *region = op->region;
    int result = check_swap(op, err);

    if (result == BB_OK && op->kind >= BB_OP_DOORBELL_ADD_) {
        result = bb_bells_change_(commit->map->heap, op, region->bells, &op->bells, err);
    }
    if (result != BB_OK) {
        return result;
    }
    bool drains = region->coalesced != NULL && *region->coalesced > 0;
    result = bb_change_stale_(commit, region, err);
    if (result == BB_OK) {
        swap(op);
        result = bb_change_stale_(commit, region, err);
        if (result == BB_OK && region->coalesced != NULL && drains != (*region->coalesced > 0)) {
            result = bb_change_stale_device_(commit, region, err);
        }
        if (result != BB_OK) {
            swap(op);
        }
    }
    if (result != BB_OK && op->kind >= BB_OP_DOORBELL_ADD_) {
        bb_bells_free_(commit->map->heap, op->bells);
    }
    return result;
}

int bb_change_apply_(struct bb_commit_ *commit, struct bb_op_ *op, struct bb_error *err)
{
    if (op->region->removing) {
        return bb_error_set(err, BB_E_STATE,
                            "region '%s' is being removed and can't be mapped or changed",
                            op->region->name);
    }
    switch ((enum bb_op_kind_)op->kind) {
    case BB_OP_PLACE_:
        return place(commit, op, err);
    case BB_OP_UNPLACE_:
        return unplace(commit, op, err);
    default:
        return change(commit, op, err);
    }
}

/* Puts back what an applied op changed. */
void bb_change_undo_(struct bb_map *map, struct bb_op_ *op)
{
    struct bb_region *region = op->region;

    switch ((enum bb_op_kind_)op->kind) {
    case BB_OP_PLACE_:
        bb_change_unlink_(region);
        break;
    case BB_OP_UNPLACE_:
        region->at = op->number;
        region->priority = op->priority;
        if (op->container->attached > 0) {
            each_below(region, attach_one); /* it was there: it fits */
        }
        link_child(op->container, region);
        break;
    default:
        swap(op);
        if (op->kind >= BB_OP_DOORBELL_ADD_) {
            bb_bells_free_(map->heap, op->bells);
        }
        break;
    }
}

/* Overlaps. */

struct rival {
    const struct bb_region *region;
    const struct bb_region *found;
};

static bool same_level(void *opaque, struct bb_region *other)
{
    struct rival *rival = opaque;

    if (other == rival->region || other->priority != rival->region->priority) {
        return true;
    }
    rival->found = other;
    return false;
}

int bb_change_check_overlap_(const struct bb_region *region, struct bb_error *err)
{
    struct rival rival = {.region = region};
    uint64_t end = region->at + region->last;

    if (region->parent == NULL || !region->enabled ||
        bb_interval_each_(region->parent->index, region->at, end, same_level, &rival)) {
        return BB_OK;
    }
    const struct bb_region *other = rival.found;
    uint64_t other_end = other->at + other->last;
    return bb_error_set(
        err, BB_E_EXIST,
        "region '%s' at 0x%" PRIx64 "-0x%" PRIx64 " of %s'%s' overlaps region '%s' at 0x%" PRIx64
        "-0x%" PRIx64 " in 0x%" PRIx64 "-0x%" PRIx64 ", with the same priority %d",
        region->name, region->at, end, space_word(region->parent), region->parent->name,
        other->name, other->at, other_end, region->at > other->at ? region->at : other->at,
        end < other_end ? end : other_end, region->priority);
}
