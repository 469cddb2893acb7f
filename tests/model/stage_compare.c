/* SPDX-License-Identifier: MIT */
/*
 * Engine and model compared: views at every boundary, what accesses meet, what listeners have been
 * told, the tree itself. stage.h.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "stage.h"

/*
 * What listeners are told. A mirror of a space's view, kept as its listener is told; what can't be
 * is noted in the mirror.
 */

static void mirror_fails(struct stage_mirror *mirror, const char *what)
{
    mirror->wrong = mirror->wrong != NULL ? mirror->wrong : what;
}

/* Where a range that begins at `first` is or belongs. */
static unsigned mirror_find(const struct stage_mirror *mirror, bb_gpa_t first)
{
    unsigned at = 0;

    while (at < mirror->count && mirror->range[at].first < first) {
        at++;
    }
    return at;
}

static bool same_range(const struct bb_range *a, const struct bb_range *b)
{
    return a->space == b->space && a->first == b->first && a->last == b->last &&
           a->region == b->region && a->offset == b->offset && a->kind == b->kind &&
           a->read_only == b->read_only && a->memory == b->memory && a->host == b->host;
}

static void mirror_begin(void *opaque, const struct bb_change *change)
{
    struct stage_mirror *mirror = opaque;

    if (mirror->open) {
        mirror_fails(mirror, "begin inside a commit");
    }
    mirror->open = true;
    mirror->change = *change;
}

static void mirror_removed(void *opaque, const struct bb_range *range)
{
    struct stage_mirror *mirror = opaque;
    unsigned at = mirror_find(mirror, range->first);

    if (!mirror->open || mirror->change.removed-- == 0 ||
        (range->memory && mirror->change.memory_removed-- == 0)) {
        mirror_fails(mirror, "more is removed than was said");
    }
    if (at == mirror->count || !same_range(&mirror->range[at], range)) {
        mirror_fails(mirror, "what was not there is removed");
        return;
    }
    mirror->count--;
    memmove(&mirror->range[at], &mirror->range[at + 1],
            (mirror->count - at) * sizeof(mirror->range[0]));
}

static void mirror_added(void *opaque, const struct bb_range *range)
{
    struct stage_mirror *mirror = opaque;
    unsigned at = mirror_find(mirror, range->first);

    if (!mirror->open || mirror->change.added-- == 0 ||
        (range->memory && mirror->change.memory_added-- == 0)) {
        mirror_fails(mirror, "more is added than was said");
    }
    if ((at > 0 && mirror->range[at - 1].last >= range->first) ||
        (at < mirror->count && mirror->range[at].first <= range->last) ||
        mirror->count == STAGE_RANGES_MAX) {
        mirror_fails(mirror, "what is added is in the place of something else");
        return;
    }
    memmove(&mirror->range[at + 1], &mirror->range[at],
            (mirror->count - at) * sizeof(mirror->range[0]));
    mirror->range[at] = *range;
    mirror->count++;
}

static void mirror_commit(void *opaque)
{
    struct stage_mirror *mirror = opaque;

    if (!mirror->open || mirror->change.removed != 0 || mirror->change.added != 0 ||
        mirror->change.memory_removed != 0 || mirror->change.memory_added != 0) {
        mirror_fails(mirror, "less is told than was said");
    }
    mirror->open = false;
}

const struct bb_listener_ops stage_mirror_ops = {.begin = mirror_begin,
                                                 .removed = mirror_removed,
                                                 .added = mirror_added,
                                                 .commit = mirror_commit};

/* Views. */

struct view {
    struct bb_range range[STAGE_RANGES_MAX];
    unsigned count;
    unsigned each; /* ranges that bb_space_each() has shown likewise */
    bool differs;
};

static bool take_range(void *opaque, const struct bb_range *range)
{
    struct view *view = opaque;

    if (view->count == STAGE_RANGES_MAX) {
        return false;
    }
    view->range[view->count++] = *range;
    return true;
}

static bool check_each(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct view *view = opaque;
    const struct bb_range *range = &view->range[view->each];

    view->differs = view->differs || view->each == view->count || range->first != first ||
                    range->last != last || range->region != region;
    view->each += view->each < view->count;
    return true;
}

/* Rising, not overlapping, no two that could be one. */
static const char *check_canonical(struct stage *stage, int space, const struct view *view)
{
    const char *name = topology_space_name[space];

    for (unsigned i = 0; i < view->count; i++) {
        const struct bb_range *range = &view->range[i];
        if (range->first > range->last || range->last > topology_space_last[space] ||
            range->space != stage->space[space]) {
            return stage_wrong(stage, "%s: range [0x%" PRIx64 ", 0x%" PRIx64 "]", name,
                               range->first, range->last);
        }
        if (i == 0) {
            continue;
        }
        const struct bb_range *before = &view->range[i - 1];
        if (range->first <= before->last) {
            return stage_wrong(stage,
                               "%s: [0x%" PRIx64 ", 0x%" PRIx64
                               "] comes after, or meets, [.., 0x%" PRIx64 "]",
                               name, range->first, range->last, before->last);
        }
        if (range->first == before->last + 1 && range->region == before->region &&
            range->offset == before->offset + (range->first - before->first) &&
            range->read_only == before->read_only && range->memory == before->memory) {
            return stage_wrong(stage,
                               "%s: what ends at 0x%" PRIx64 " goes on behind it as another range",
                               name, before->last);
        }
    }
    return NULL;
}

static const struct bb_range *range_at(const struct view *view, bb_gpa_t gpa)
{
    unsigned low = 0, high = view->count;

    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (view->range[middle].last < gpa) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < view->count && view->range[low].first <= gpa ? &view->range[low] : NULL;
}

static uint8_t fill_byte(const struct bb_fill *fill)
{
    return fill->kind == BB_FILL_ONES    ? 0xff
           : fill->kind == BB_FILL_ZEROS ? 0
                                         : (uint8_t)fill->pattern;
}

/* Reads the byte, and where it is memory writes it back: what is met must be what the model says.
 */
static const char *check_access(struct stage *stage, int space, bb_gpa_t gpa,
                                struct model_byte expected)
{
    const struct stage_region *region =
        expected.region == MODEL_NONE ? NULL : &stage->region[expected.region];
    enum bb_kind kind = region == NULL ? BB_KIND_CONTAINER : region->make.kind;
    bool memory =
        kind == BB_KIND_RAM || (region != NULL && stage->model.region[expected.region].rom_mode);
    bool callback = kind == BB_KIND_IO || (kind == BB_KIND_ROM_DEVICE && !memory);
    int wanted = memory || callback ? BB_OK : BB_E_DECODE;
    uint8_t byte = kind == BB_KIND_RAM ? stage_arena_byte(region->make.arena + expected.offset)
                   : wanted == BB_OK   ? stage_byte(expected.region, expected.offset)
                                       : fill_byte(&stage_decode_fill[space]);
    uint64_t value = UINT64_C(0x5555555555555555);

    if (stage->views_only) {
        return NULL;
    }
    stage->call_count = 0;
    int result = bb_mmio_read(stage->ctx, stage->space[space], gpa, 1, &value);
    if (result != wanted || value != byte) {
        return stage_wrong(stage,
                           "%s: reading 0x%" PRIx64 " gives %s and 0x%" PRIx64 ", not %s and 0x%x",
                           topology_space_name[space], gpa, bb_result_name(result), value,
                           bb_result_name(wanted), byte);
    }
    bool called = callback || kind == BB_KIND_IOMMU;
    if (stage->call_count != called || (called && stage->call[0].region != expected.region)) {
        return stage_wrong(stage, "%s: reading 0x%" PRIx64 " made %u callbacks, the first of #%d",
                           topology_space_name[space], gpa, stage->call_count,
                           stage->call_count > 0 ? stage->call[0].region : MODEL_NONE);
    }
    if (kind == BB_KIND_RAM) {
        wanted = expected.read_only ? BB_E_DEVICE : BB_OK;
        result = bb_mmio_write(stage->ctx, stage->space[space], gpa, 1, byte);
        if (result != wanted) {
            return stage_wrong(stage, "%s: writing 0x%" PRIx64 " gives %s, not %s",
                               topology_space_name[space], gpa, bb_result_name(result),
                               bb_result_name(wanted));
        }
    }
    return NULL;
}

static int number_of(const struct stage *stage, const struct bb_region *region)
{
    for (int i = 0; i < MODEL_REGIONS_MAX; i++) {
        if (stage->region[i].region == region) {
            return i;
        }
    }
    return MODEL_NONE;
}

static const char *check_byte(struct stage *stage, int space, bb_gpa_t gpa, const struct view *view)
{
    struct model_byte expected = model_resolve(&stage->model, space, gpa);
    const struct bb_range *range = range_at(view, gpa);
    const char *name = topology_space_name[space];

    stage->compared++;
    if (expected.region == MODEL_NONE && range == NULL) {
        return check_access(stage, space, gpa, expected);
    }
    if (expected.region == MODEL_NONE) {
        return stage_wrong(stage, "%s: 0x%" PRIx64 " shows #%d, the model nothing", name, gpa,
                           number_of(stage, range->region));
    }
    if (range == NULL) {
        return stage_wrong(stage, "%s: 0x%" PRIx64 " shows nothing, the model #%d+0x%" PRIx64, name,
                           gpa, expected.region, expected.offset);
    }
    const struct stage_region *region = &stage->region[expected.region];
    const struct model_region *model = &stage->model.region[expected.region];
    uint64_t offset = range->offset + (gpa - range->first);

    stage->shown++;
    if (range->region != region->region || offset != expected.offset) {
        return stage_wrong(
            stage, "%s: 0x%" PRIx64 " shows #%d+0x%" PRIx64 ", the model #%d+0x%" PRIx64, name, gpa,
            number_of(stage, range->region), offset, expected.region, expected.offset);
    }
    bool memory = model->kind == BB_KIND_RAM || model->rom_mode;
    const uint8_t *host = memory ? (uint8_t *)bb_region_host(region->region) + range->offset : NULL;
    if (range->kind != model->kind || range->memory != memory ||
        (memory && range->host != (const void *)host) ||
        (model->kind == BB_KIND_RAM && range->read_only != expected.read_only)) {
        return stage_wrong(stage,
                           "%s: 0x%" PRIx64
                           " in #%d: kind %d, memory %d, read-only %d; the model: %d, "
                           "%d, %d (or another host address)",
                           name, gpa, expected.region, (int)range->kind, range->memory,
                           range->read_only, (int)model->kind, memory, expected.read_only);
    }
    return check_access(stage, space, gpa, expected);
}

/* What the listener was told of must be what there is. */
static const char *check_mirror(struct stage *stage, int space, const struct view *view)
{
    const struct stage_mirror *mirror = &stage->mirror[space];
    const char *name = topology_space_name[space];

    if (mirror->listener == NULL) {
        return NULL;
    }
    if (mirror->wrong != NULL || mirror->open) {
        return stage_wrong(stage, "%s: the listener: %s", name,
                           mirror->open ? "the commit does not end" : mirror->wrong);
    }
    for (unsigned i = 0; i < view->count && i < mirror->count; i++) {
        if (!same_range(&view->range[i], &mirror->range[i])) {
            return stage_wrong(
                stage, "%s: the listener was not told of [0x%" PRIx64 ", 0x%" PRIx64 "] as it is",
                name, view->range[i].first, view->range[i].last);
        }
    }
    return view->count == mirror->count
               ? NULL
               : stage_wrong(stage, "%s: the listener was told of %u ranges, there are %u", name,
                             mirror->count, view->count);
}

const char *stage_compare_space(struct stage *stage, int space, bool bounds)
{
    static struct view view;
    static bb_gpa_t at[MODEL_BOUNDS_MAX];
    const char *text;

    view.count = 0;
    view.each = 0;
    view.differs = false;
    bb_flat_each(stage->ctx, stage->space[space], take_range, &view);
    bb_space_each(stage->ctx, stage->space[space], check_each, &view);
    if (view.differs || view.each != view.count) {
        return stage_wrong(stage, "%s: bb_space_each() and bb_flat_each() differ",
                           topology_space_name[space]);
    }
    text = check_canonical(stage, space, &view);
    if (text == NULL) {
        text = check_mirror(stage, space, &view);
    }
    for (unsigned i = 0; i < view.count && text == NULL; i++) {
        for (int beside = -1; beside <= 1 && text == NULL; beside++) {
            bb_gpa_t first = view.range[i].first + (bb_gpa_t)beside;
            bb_gpa_t last = view.range[i].last + (bb_gpa_t)beside;
            if (first <= topology_space_last[space]) {
                text = check_byte(stage, space, first, &view);
            }
            if (last <= topology_space_last[space] && text == NULL) {
                text = check_byte(stage, space, last, &view);
            }
        }
    }
    unsigned count = bounds ? model_bounds(&stage->model, space, at) : 0;
    for (unsigned i = 0; i < count && text == NULL; i++) {
        text = check_byte(stage, space, at[i], &view);
    }
    return text;
}

/* Regions. */

struct tree_walk {
    struct stage *stage;
    int space;
    int above[MODEL_REGIONS_MAX + 1]; /* the region at each depth on the way */
    unsigned met;
    const char *wrong;
};

/* A node of bb_tree_each() against the model. */
static bool check_node(void *opaque, const struct bb_tree_node *node)
{
    struct tree_walk *walk = opaque;
    struct stage *stage = walk->stage;
    int number = number_of(stage, node->region);

    walk->met++;
    if (number == MODEL_NONE || node->depth > MODEL_REGIONS_MAX) {
        walk->wrong = stage_wrong(stage, "%s: the tree has a region that is not there",
                                  topology_space_name[walk->space]);
        return false;
    }
    const struct model_region *model = &stage->model.region[number];
    walk->above[node->depth] = number;
    int parent = node->depth == 0 ? MODEL_NONE : walk->above[node->depth - 1];
    int target = node->target == NULL ? MODEL_NONE : number_of(stage, node->target);
    bool stray = node->target != NULL && target == MODEL_NONE; /* shows what was removed */
    if (model->parent != parent ||
        (parent != MODEL_NONE &&
         (model->at != node->offset || model->priority != node->priority)) ||
        model->enabled != node->enabled || model->kind != node->kind ||
        (model->last == UINT64_MAX ? BB_SIZE_ALL : model->last + 1) != node->size_bytes ||
        model->target != target || stray ||
        (model->kind == BB_KIND_ALIAS && model->window != node->target_offset) ||
        model->read_only != node->read_only || model->rom_mode != node->rom_mode) {
        walk->wrong = stage_wrong(stage, "%s: #%d in the tree is not as the model has it",
                                  topology_space_name[walk->space], number);
        return false;
    }
    return true;
}

static bool under(const struct model *model, int region, int root)
{
    while (region != MODEL_NONE && region != root) {
        region = model->region[region].parent;
    }
    return region == root;
}

static const char *compare_tree(struct stage *stage, int space)
{
    struct tree_walk walk = {.stage = stage, .space = space};
    unsigned expected = 0;

    for (int i = 0; i < MODEL_REGIONS_MAX; i++) {
        expected += stage->model.region[i].exists && under(&stage->model, i, space);
    }
    int result = bb_tree_each(stage->ctx, stage->space[space], check_node, &walk);
    if (walk.wrong == NULL && (result != BB_OK || walk.met != expected)) {
        walk.wrong =
            stage_wrong(stage, "%s: bb_tree_each() gives %s and %u regions of %u",
                        topology_space_name[space], bb_result_name(result), walk.met, expected);
    }
    return walk.wrong;
}

/* What can be asked of regions themselves. */
static const char *compare_regions(struct stage *stage)
{
    for (int i = 0; i < MODEL_REGIONS_MAX; i++) {
        const struct model_region *model = &stage->model.region[i];
        const struct bb_region *region = stage->region[i].region;
        if (!model->exists) {
            continue;
        }
        uint64_t size = model->last == UINT64_MAX ? BB_SIZE_ALL : model->last + 1;
        if (bb_region_size(region) != size || bb_region_kind(region) != model->kind) {
            return stage_wrong(
                stage, "#%d is of 0x%" PRIx64 " bytes and kind %d; the model: 0x%" PRIx64 ", %d", i,
                bb_region_size(region), (int)bb_region_kind(region), size, (int)model->kind);
        }
    }
    return NULL;
}

const char *stage_compare(struct stage *stage)
{
    const char *text = compare_regions(stage);

    for (int space = 0; space < MODEL_SPACES && text == NULL; space++) {
        text = compare_tree(stage, space);
        if (text == NULL) {
            text = stage_compare_space(stage, space, true);
        }
    }
    return text;
}
