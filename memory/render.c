/* SPDX-License-Identifier: MIT */
/*
 * From the tree of regions to the flat view, for a range of addresses and no further.
 *
 * Rendering walks down: what a region shows in a range is what its enabled children show there, by
 * falling priority, each filling the holes that those before it have left, and in the end the
 * region itself fills what remains. The outcome is a function of the tree alone, so a part of a
 * view can be rendered by itself, and is the same as if all of it had been.
 *
 * Which part has to be is found by walking up: from a region to its container and to the aliases
 * that show it, clipped at each step, to the roots of spaces. A region below which nothing has
 * changed is not looked at.
 *
 * Offsets. A walk carries offsets into the region that it is at, never beyond its end; an address
 * is such an offset plus a base, modulo 2^64. No sum of an offset in a region and the region's
 * place wraps, since transactions refuse places from which a region would reach past 2^64.
 *
 * Bounds: the depth and the number of steps of a walk are counted, for aliases of aliases can show
 * a region in more places than there is memory. The rendering that a removal asks for is not
 * bounded: it looks only at places that earlier commits, within the bounds, have rendered. Walking
 * up has no such excuse, since a disabled container, or one that clips, can hide any number of
 * places; a removal that meets too many renders everything anew (commit.c). Walking up leaves out
 * what is below no space's root: regions that are not attached may show one another as often as
 * they like.
 */
#include <string.h>

#include "memory_internal.h"

enum { FEW_CHILDREN = 6 };

void bb_pieces_free_(struct bb_heap *heap, struct bb_pieces_ *pieces)
{
    bb_heap_free(heap, pieces->piece, pieces->room * sizeof(pieces->piece[0]));
    memset(pieces, 0, sizeof(*pieces));
}

int bb_pieces_reserve_(struct bb_heap *heap, struct bb_pieces_ *pieces, size_t more)
{
    if (pieces->room - pieces->count >= more) {
        return BB_OK;
    }
    size_t room = pieces->room < 16 ? 16 : pieces->room;
    while (room - pieces->count < more) {
        room *= 2;
    }
    struct bb_piece_ *piece = bb_heap_alloc(heap, room * sizeof(piece[0]));
    if (piece == NULL) {
        return BB_E_NOMEM;
    }
    if (pieces->count != 0) {
        memcpy(piece, pieces->piece, pieces->count * sizeof(piece[0]));
    }
    bb_heap_free(heap, pieces->piece, pieces->room * sizeof(piece[0]));
    pieces->piece = piece;
    pieces->room = room;
    return BB_OK;
}

/* Down: rendering. */

struct render {
    struct bb_heap *heap;
    struct bb_pieces_ *out;
    uint64_t steps;
    uint64_t steps_max;
    unsigned depth;
};

/* Index of the first piece that ends at or behind `gpa`. */
static size_t lower_bound(const struct bb_pieces_ *pieces, bb_gpa_t gpa)
{
    size_t low = 0, high = pieces->count;

    if (high > 0 && pieces->piece[high - 1].last < gpa) {
        return high; /* the common case: pieces come in rising order */
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pieces->piece[middle].last < gpa) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The part of `whole` in [first, last]. */
static struct bb_piece_ part(const struct bb_piece_ *whole, bb_gpa_t first, bb_gpa_t last)
{
    struct bb_piece_ piece = *whole;

    piece.offset += first - whole->first;
    piece.first = first;
    piece.last = last;
    return piece;
}

/* Lets `whole` fill the holes that are left in its range. */
static int fill(struct render *render, const struct bb_piece_ *whole)
{
    struct bb_pieces_ *out = render->out;
    size_t from = lower_bound(out, whole->first), to = from, holes = 0;
    bb_gpa_t at = whole->first; /* first address not yet known to be covered */
    bool open = true;           /* there is such an address */

    while (open && to < out->count && out->piece[to].first <= whole->last) {
        holes += out->piece[to].first > at ? 1 : 0;
        open = out->piece[to].last < whole->last;
        at = out->piece[to].last + 1;
        to++;
    }
    holes += open ? 1 : 0;
    if (holes == 0) {
        return BB_OK;
    }
    int result = bb_pieces_reserve_(render->heap, out, holes);
    if (result != BB_OK) {
        return result;
    }
    struct bb_piece_ *piece = out->piece;
    memmove(&piece[to + holes], &piece[to], (out->count - to) * sizeof(piece[0]));
    out->count += holes;
    /* From behind, so that nothing is overwritten before it has been moved. */
    size_t into = to + holes;
    bb_gpa_t end = whole->last;
    for (open = true; open && to > from;) {
        struct bb_piece_ there = piece[--to];
        if (there.last < end) {
            piece[--into] = part(whole, there.last + 1, end);
        }
        piece[--into] = there;
        open = there.first > whole->first;
        end = there.first - 1;
    }
    if (open) {
        piece[--into] = part(whole, whole->first, end);
    }
    return BB_OK;
}

/* Children that meet a range. */
struct children {
    struct bb_region *few[FEW_CHILDREN];
    struct bb_region **all; /* `few`, or from the heap */
    size_t count;
    size_t room;
    bool alike; /* of one priority */
    struct bb_heap *heap;
};

static bool collect(void *opaque, struct bb_region *region)
{
    struct children *children = opaque;

    if (children->count == children->room) {
        size_t room = children->room * 4;
        struct bb_region **all = bb_heap_alloc(children->heap, room * sizeof(all[0]));
        if (all == NULL) {
            return false;
        }
        memcpy(all, children->all, children->count * sizeof(all[0]));
        if (children->all != children->few) {
            bb_heap_free(children->heap, children->all, children->room * sizeof(all[0]));
        }
        children->all = all;
        children->room = room;
    }
    children->alike =
        children->alike && (children->count == 0 || children->all[0]->priority == region->priority);
    children->all[children->count++] = region;
    return true;
}

/* True where `a` is shown before `b`: by falling priority, then rising offset. */
static bool in_front(const struct bb_region *a, const struct bb_region *b)
{
    if (a->priority != b->priority) {
        return a->priority > b->priority;
    }
    return a->at != b->at ? a->at < b->at : a->serial < b->serial;
}

static void sift_down(struct bb_region **all, size_t root, size_t count)
{
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count) {
            return;
        }
        if (child + 1 < count && in_front(all[child], all[child + 1])) {
            child++;
        }
        if (!in_front(all[root], all[child])) {
            return;
        }
        struct bb_region *held = all[root];
        all[root] = all[child];
        all[child] = held;
        root = child;
    }
}

/* Heapsort: in place, and never more than n log n steps, whatever the order is. */
static void sort_children(struct bb_region **all, size_t count)
{
    for (size_t i = count / 2; i > 0; i--) {
        sift_down(all, i - 1, count);
    }
    for (size_t left = count; left > 1; left--) {
        struct bb_region *held = all[0];
        all[0] = all[left - 1];
        all[left - 1] = held;
        sift_down(all, 0, left - 1);
    }
}

static int show(struct render *render, struct bb_region *region, bb_gpa_t base, uint64_t first,
                uint64_t last, bool read_only);

static int show_children(struct render *render, struct bb_region *region, bb_gpa_t base,
                         uint64_t first, uint64_t last, bool read_only)
{
    struct children children = {.room = FEW_CHILDREN, .alike = true, .heap = render->heap};
    int result = BB_OK;

    children.all = children.few;
    if (!bb_interval_each_(region->index, first, last, collect, &children)) {
        result = BB_E_NOMEM;
    } else if (!children.alike) {
        sort_children(children.all, children.count);
    }
    for (size_t i = 0; i < children.count && result == BB_OK; i++) {
        struct bb_region *child = children.all[i];
        uint64_t end = child->at + child->last;
        result = show(render, child, base + child->at,
                      (first > child->at ? first : child->at) - child->at,
                      (last < end ? last : end) - child->at, read_only);
    }
    if (children.all != children.few) {
        bb_heap_free(render->heap, children.all, children.room * sizeof(children.all[0]));
    }
    return result;
}

/* What offsets [first, last] of `region`, whose first byte is at address `base`, show. */
static int show(struct render *render, struct bb_region *region, bb_gpa_t base, uint64_t first,
                uint64_t last, bool read_only)
{
    int result = BB_OK;

    if (!region->enabled || region->removing) {
        return BB_OK;
    }
    if (++render->steps > render->steps_max || render->depth == BB_DEPTH_MAX) {
        return BB_E_LIMIT;
    }
    render->depth++;
    if (region->kind == BB_KIND_ALIAS) {
        struct bb_region *target = region->target;
        uint64_t window = region->target_offset;
        if (target != NULL && first + window <= target->last) {
            last += window;
            result =
                show(render, target, base - window, first + window,
                     last < target->last ? last : target->last, read_only || region->read_only);
        }
    } else {
        if (region->index != NULL) {
            result = show_children(render, region, base, first, last, read_only);
        }
        if (result == BB_OK && region->kind != BB_KIND_CONTAINER) {
            result = fill(render, &(struct bb_piece_){
                                      .first = base + first,
                                      .last = base + last,
                                      .region = region,
                                      .offset = first,
                                      .bells = region->bells,
                                      .read_only = read_only || region->read_only,
                                      .memory = region->kind == BB_KIND_RAM || region->rom_mode,
                                      .drains = region->coalesced != NULL && *region->coalesced > 0,
                                  });
        }
    }
    render->depth--;
    return result;
}

int bb_render_(struct bb_heap *heap, struct bb_region *root, bb_gpa_t first, bb_gpa_t last,
               bool bounded, struct bb_pieces_ *pieces)
{
    struct render render = {
        .heap = heap, .out = pieces, .steps_max = bounded ? BB_RENDER_MAX : UINT64_MAX};

    return show(&render, root, 0, first, last, false);
}

/* Up: where a region is seen. */

struct ascent {
    int (*emit)(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last);
    void *opaque;
    uint64_t steps;
    unsigned depth;
};

static int ascend(struct ascent *ascent, struct bb_region *region, uint64_t first, uint64_t last)
{
    int result = BB_OK;

    if (!region->enabled || region->removing || region->attached == 0 || first > region->last) {
        return BB_OK;
    }
    if (++ascent->steps > BB_INSTANCES_MAX || ascent->depth == BB_DEPTH_MAX) {
        return BB_E_LIMIT;
    }
    if (last > region->last) {
        last = region->last;
    }
    ascent->depth++;
    if (region->root_of != NULL) {
        result = ascent->emit(ascent->opaque, region->root_of, first, last);
    } else if (region->parent != NULL) {
        result = ascend(ascent, region->parent, region->at + first, region->at + last);
    }
    for (struct bb_region *alias = region->aliases; alias != NULL && result == BB_OK;
         alias = alias->alias_next) {
        uint64_t window = alias->target_offset;
        if (last >= window && first <= window + alias->last) {
            result = ascend(ascent, alias, first > window ? first - window : 0, last - window);
        }
    }
    ascent->depth--;
    return result;
}

int bb_instances_(struct bb_region *region, uint64_t first, uint64_t last,
                  int (*emit)(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last),
                  void *opaque)
{
    struct ascent ascent = {.emit = emit, .opaque = opaque};

    return ascend(&ascent, region, first, last);
}
