/* SPDX-License-Identifier: MIT */
/* The model of model.h. Nothing here is clever; that is the point of it. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

bool model_broken;

void model_begin(struct model *model, const uint64_t last[MODEL_SPACES])
{
    memset(model, 0, sizeof(*model));
    for (int space = 0; space < MODEL_SPACES; space++) {
        model->region[space] = (struct model_region){.exists = true,
                                                     .kind = BB_KIND_CONTAINER,
                                                     .last = last[space],
                                                     .parent = MODEL_NONE,
                                                     .enabled = true,
                                                     .target = MODEL_NONE};
    }
}

static bool is_root(int region)
{
    return region < MODEL_SPACES;
}

static bool wraps(uint64_t at, uint64_t last)
{
    return last > UINT64_MAX - at;
}

/* True where `inner` can be met on the way down from `outer`, whatever is enabled. */
static bool reaches(const struct model *model, int outer, int inner)
{
    if (outer == MODEL_NONE) {
        return false;
    }
    if (outer == inner || reaches(model, model->region[outer].target, inner)) {
        return true;
    }
    for (int child = 0; child < MODEL_REGIONS_MAX; child++) {
        if (model->region[child].exists && model->region[child].parent == outer &&
            reaches(model, child, inner)) {
            return true;
        }
    }
    return false;
}

int model_ask(const struct model *model, const struct model_change *change)
{
    const struct model_region *region = &model->region[change->region];
    const struct model_region *container =
        change->container == MODEL_NONE ? NULL : &model->region[change->container];

    if (is_root(change->region)) {
        return BB_E_INVAL;
    }
    switch (change->kind) {
    case MODEL_PLACE:
        if (container->kind == BB_KIND_ALIAS || container->kind == BB_KIND_IOMMU) {
            return BB_E_INVAL;
        }
        return wraps(change->number, region->last) ? BB_E_RANGE : BB_OK;
    case MODEL_MAP:
        return wraps(change->number, region->last) ||
                       change->number + region->last > container->last
                   ? BB_E_RANGE
                   : BB_OK;
    case MODEL_RESIZE:
        if (change->number == 0) {
            return BB_E_RANGE;
        }
        switch (region->kind) {
        case BB_KIND_IO:
            return change->number > UINT64_C(1) << 63 || change->number % region->impl_min != 0
                       ? BB_E_RANGE
                       : BB_OK;
        case BB_KIND_RAM:
            return change->number - 1 > region->last_max ? BB_E_RANGE : BB_OK;
        case BB_KIND_ROM_DEVICE:
        case BB_KIND_IOMMU:
            return BB_E_UNSUPPORTED;
        default:
            return BB_OK;
        }
    case MODEL_WINDOW:
        return region->kind == BB_KIND_ALIAS ? BB_OK : BB_E_INVAL;
    case MODEL_ROM_MODE:
        return region->kind == BB_KIND_ROM_DEVICE ? BB_OK : BB_E_INVAL;
    case MODEL_READ_ONLY:
        return region->kind == BB_KIND_RAM || region->kind == BB_KIND_ALIAS ? BB_OK : BB_E_INVAL;
    default:
        return BB_OK;
    }
}

static int change_place(struct model *model, const struct model_change *change)
{
    struct model_region *region = &model->region[change->region];

    if (region->parent != MODEL_NONE) {
        return BB_E_EXIST;
    }
    if (reaches(model, change->region, change->container)) {
        return BB_E_INVAL;
    }
    if (wraps(change->number, region->last)) {
        return BB_E_RANGE;
    }
    region->parent = change->container;
    region->at = change->number;
    region->priority = change->kind == MODEL_MAP ? 0 : change->priority;
    return BB_OK;
}

static int change_resize(struct model_region *region, uint64_t size)
{
    uint64_t last = size == BB_SIZE_ALL ? UINT64_MAX : size - 1;

    if ((region->kind == BB_KIND_ALIAS && wraps(region->window, last)) ||
        (region->parent != MODEL_NONE && wraps(region->at, last))) {
        return BB_E_RANGE;
    }
    region->last = last;
    return BB_OK;
}

int model_change(struct model *model, const struct model_change *change)
{
    struct model_region *region = &model->region[change->region];

    switch (change->kind) {
    case MODEL_PLACE:
    case MODEL_MAP:
        return change_place(model, change);
    case MODEL_UNMAP:
    case MODEL_MOVE:
        if (region->parent == MODEL_NONE) {
            return BB_E_NOENT;
        }
        if (change->kind == MODEL_UNMAP) {
            region->parent = MODEL_NONE;
        } else if (wraps(change->number, region->last)) {
            return BB_E_RANGE;
        } else {
            region->at = change->number;
        }
        return BB_OK;
    case MODEL_PRIORITY:
        region->priority = change->priority;
        return BB_OK;
    case MODEL_ENABLE:
        region->enabled = change->flag;
        return BB_OK;
    case MODEL_RESIZE:
        return change_resize(region, change->number);
    case MODEL_WINDOW:
        if (wraps(change->number, region->last)) {
            return BB_E_RANGE;
        }
        region->window = change->number;
        return BB_OK;
    case MODEL_ROM_MODE:
        region->rom_mode = change->flag;
        return BB_OK;
    case MODEL_READ_ONLY:
        region->read_only = change->flag;
        return BB_OK;
    case MODEL_CHANGES:
        break;
    }
    abort();
}

int model_judge(const struct model *model)
{
    for (int a = 0; a < MODEL_REGIONS_MAX; a++) {
        const struct model_region *first = &model->region[a];
        for (int b = a + 1; b < MODEL_REGIONS_MAX; b++) {
            const struct model_region *second = &model->region[b];
            if (first->exists && second->exists && first->parent != MODEL_NONE &&
                first->parent == second->parent && first->enabled && second->enabled &&
                first->priority == second->priority && first->at <= second->at + second->last &&
                second->at <= first->at + first->last) {
                return BB_E_EXIST;
            }
        }
    }
    return BB_OK;
}

void model_remove(struct model *model, int region)
{
    for (int other = 0; other < MODEL_REGIONS_MAX; other++) {
        if (model->region[other].parent == region) {
            model->region[other].parent = MODEL_NONE;
        }
        if (model->region[other].target == region) {
            model->region[other].target = MODEL_NONE;
        }
    }
    model->region[region] = (struct model_region){.parent = MODEL_NONE, .target = MODEL_NONE};
}

static const struct model_byte nothing = {.region = MODEL_NONE};

/* The child to be asked after those of priority `above` and more; MODEL_NONE where there is none.
 * Of one priority at most one holds the offset. */
static int next_child(const struct model *model, int parent, uint64_t offset, int64_t above)
{
    int best = MODEL_NONE;

    for (int i = 0; i < MODEL_REGIONS_MAX; i++) {
        const struct model_region *child = &model->region[i];
        if (!child->exists || child->parent != parent || !child->enabled || offset < child->at ||
            offset - child->at > child->last) {
            continue;
        }
        int64_t rank = model_broken ? -(int64_t)child->priority : child->priority;
        int64_t best_rank = best == MODEL_NONE ? INT64_MIN
                            : model_broken     ? -(int64_t)model->region[best].priority
                                               : model->region[best].priority;
        if (rank < above && rank > best_rank) {
            best = i;
        }
    }
    return best;
}

static struct model_byte resolve_in(const struct model *model, int number, uint64_t offset,
                                    bool read_only)
{
    const struct model_region *region = &model->region[number];

    if (!region->enabled || offset > region->last) {
        return nothing;
    }
    if (region->kind == BB_KIND_ALIAS) {
        return region->target == MODEL_NONE
                   ? nothing
                   : resolve_in(model, region->target, region->window + offset,
                                read_only || region->read_only);
    }
    int64_t above = INT64_MAX;
    for (;;) {
        int child = next_child(model, number, offset, above);
        if (child == MODEL_NONE) {
            break;
        }
        int64_t priority = model->region[child].priority;
        struct model_byte found =
            resolve_in(model, child, offset - model->region[child].at, read_only);
        if (found.region != MODEL_NONE) {
            return found;
        }
        above = model_broken ? -priority : priority;
    }
    if (region->kind == BB_KIND_CONTAINER) {
        return nothing;
    }
    return (struct model_byte){
        .region = number, .offset = offset, .read_only = read_only || region->read_only};
}

struct model_byte model_resolve(const struct model *model, int space, bb_gpa_t gpa)
{
    return resolve_in(model, space, gpa, false);
}

/* Wide enough for every place that a region of 2^64 bytes can have through aliases. */
__extension__ typedef __int128 wide;

struct bounds {
    bb_gpa_t *at; /* NULL: only count */
    unsigned count;
    unsigned places;
    wide last; /* of the space */
};

static void add_bound(struct bounds *bounds, wide at)
{
    if (bounds->at != NULL && at >= 0 && at <= bounds->last && bounds->count < MODEL_BOUNDS_MAX) {
        bounds->at[bounds->count++] = (bb_gpa_t)at;
    }
}

/* Both ends of a range, and what is beside them. */
static void add_range(struct bounds *bounds, wide first, wide last)
{
    for (int beside = -1; beside <= 1; beside++) {
        add_bound(bounds, first + beside);
        add_bound(bounds, last + beside);
    }
}

/* The region whose byte 0 is at `base`, seen through a window from `low` to `high`. */
static void bounds_in(const struct model *model, int number, wide base, wide low, wide high,
                      struct bounds *bounds)
{
    const struct model_region *region = &model->region[number];
    wide first = base, last = base + region->last;

    if (bounds->places > MODEL_PLACES_MANY) {
        return;
    }
    bounds->places++;
    add_range(bounds, first, last);
    first = first < low ? low : first;
    last = last > high ? high : last;
    if (first > last) {
        return;
    }
    add_range(bounds, first, last);
    if (region->kind == BB_KIND_ALIAS) {
        if (region->target != MODEL_NONE) {
            bounds_in(model, region->target, base - region->window, first, last, bounds);
        }
        return;
    }
    for (int child = 0; child < MODEL_REGIONS_MAX; child++) {
        if (model->region[child].exists && model->region[child].parent == number) {
            bounds_in(model, child, base + model->region[child].at, first, last, bounds);
        }
    }
}

static int compare_addresses(const void *left, const void *right)
{
    bb_gpa_t a = *(const bb_gpa_t *)left, b = *(const bb_gpa_t *)right;

    return a < b ? -1 : a > b;
}

unsigned model_bounds(const struct model *model, int space, bb_gpa_t *at)
{
    struct bounds bounds = {.at = at, .last = (wide)model->region[space].last};
    unsigned kept = 0;

    add_bound(&bounds, 0);
    add_bound(&bounds, bounds.last);
    bounds_in(model, space, 0, 0, bounds.last, &bounds);
    qsort(at, bounds.count, sizeof(*at), compare_addresses);
    for (unsigned i = 0; i < bounds.count; i++) {
        if (kept == 0 || at[kept - 1] != at[i]) {
            at[kept++] = at[i];
        }
    }
    return kept;
}

unsigned model_places(const struct model *model)
{
    struct bounds bounds = {0};

    for (int space = 0; space < MODEL_SPACES; space++) {
        bounds_in(model, space, 0, 0, (wide)model->region[space].last, &bounds);
    }
    return bounds.places;
}
