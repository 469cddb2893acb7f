/* SPDX-License-Identifier: MIT */
/*
 * Regions: made, checked, described, freed. What an access does to one is in access.c, where it
 * is placed in txn.c, its memory in ram.c.
 */
#include <inttypes.h>
#include <string.h>

#include "memory_internal.h"

enum { CALLBACK_BYTES_MAX = 8, ACCESS_BYTES_MAX = 64 };

static const uint64_t ROM_BYTES_MAX = BB_BIT64(46);
static const uint64_t IO_BYTES_MAX = BB_BIT64(63);

/* Gives a zero size its default, then refuses what is no access size. */
static int normalise_size(uint8_t *size, uint8_t if_zero, unsigned max, const char *field,
                          const char *name, struct bb_error *err)
{
    if (*size == 0) {
        *size = if_zero;
    }
    if (*size > max || !bb_is_pow2(*size)) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': %s is %u; it must be a power of two, %u at most", name,
                            field, *size, max);
    }
    return BB_OK;
}

static int normalise_rules(struct bb_access_rules *rules, const struct bb_region_config *config,
                           struct bb_error *err)
{
    const char *name = config->name;

    *rules = config->rules;
    const uint8_t all = CALLBACK_BYTES_MAX;
    if (normalise_size(&rules->valid_min, 1, ACCESS_BYTES_MAX, "valid_min", name, err) != BB_OK ||
        normalise_size(&rules->valid_max, all, ACCESS_BYTES_MAX, "valid_max", name, err) != BB_OK ||
        normalise_size(&rules->impl_min, 1, all, "impl_min", name, err) != BB_OK ||
        normalise_size(&rules->impl_max, all, all, "impl_max", name, err) != BB_OK) {
        return BB_E_INVAL;
    }
    if (rules->valid_min > rules->valid_max) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': valid_min %u is over valid_max %u; it must be at most "
                            "that",
                            name, rules->valid_min, rules->valid_max);
    }
    if (rules->impl_min > rules->impl_max) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': impl_min %u is over impl_max %u; it must be at most "
                            "that",
                            name, rules->impl_min, rules->impl_max);
    }
    if (rules->endian != BB_LITTLE_ENDIAN && rules->endian != BB_BIG_ENDIAN) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': endian %d is neither BB_LITTLE_ENDIAN nor "
                            "BB_BIG_ENDIAN",
                            name, (int)rules->endian);
    }
    if (config->size_bytes % rules->impl_min != 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': its size 0x%" PRIx64 " is no multiple of impl_min %u, "
                            "so that a widened access would reach over its end",
                            name, config->size_bytes, rules->impl_min);
    }
    return BB_OK;
}

static int check_paths(const struct bb_region_config *config, struct bb_error *err)
{
    if (config->path_count != 0 && config->paths == NULL) {
        return bb_error_set(err, BB_E_INVAL, "region '%.31s': %zu path rows, but no table",
                            config->name, config->path_count);
    }
    for (size_t i = 0; i < config->path_count; i++) {
        const struct bb_path_row *row = &config->paths[i];
        if (row->first > row->last || row->last >= config->size_bytes) {
            return bb_error_set(err, BB_E_INVAL,
                                "region '%.31s': path row %zu covers 0x%" PRIx64 "-0x%" PRIx64
                                "; it must lie within 0x0-0x%" PRIx64,
                                config->name, i, row->first, row->last, config->size_bytes - 1);
        }
        if ((row->read == BB_PATH_NARROW_LOCK || row->write == BB_PATH_NARROW_LOCK) &&
            row->waits_for == NULL) {
            return bb_error_set(err, BB_E_INVAL,
                                "region '%.31s': path row %zu waits for a narrow lock without "
                                "naming it in waits_for",
                                config->name, i);
        }
    }
    return BB_OK;
}

/* Sizes of which an aligned access goes straight to a callback. */
static uint8_t fast_sizes(const struct bb_access_rules *rules, bool callback, bool accept)
{
    unsigned sizes = 0;

    if (rules->endian != BB_LITTLE_ENDIAN || !callback || accept) {
        return 0;
    }
    for (unsigned size = 1; size <= CALLBACK_BYTES_MAX; size *= 2) {
        if (size >= rules->valid_min && size <= rules->valid_max && size >= rules->impl_min &&
            size <= rules->impl_max) {
            sizes |= size;
        }
    }
    return (uint8_t)sizes;
}

static bool known_class(enum bb_class klass)
{
    return klass == BB_CLASS_LOCKFREE || klass == BB_CLASS_DEVICE_LOCK ||
           klass == BB_CLASS_MAY_SLEEP || klass == BB_CLASS_EXTERNAL_LOCK;
}

/* What is made and what knows it. */

bool bb_size_last_(uint64_t size_bytes, uint64_t *last)
{
    if (size_bytes == 0) {
        return false;
    }
    *last = size_bytes == BB_SIZE_ALL ? UINT64_MAX : size_bytes - 1;
    return true;
}

uint64_t bb_last_size_(uint64_t last)
{
    return last == UINT64_MAX ? BB_SIZE_ALL : last + 1;
}

struct bb_region *bb_region_alloc_(struct bb_ctx *ctx, enum bb_kind kind, const char *name,
                                   uint64_t last, const struct bb_owner_ *owner,
                                   struct bb_error *err)
{
    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_region *made = bb_heap_alloc(map->heap, sizeof(*made));

    if (made == NULL) {
        bb_error_set(err, BB_E_NOMEM, "no memory for region '%.31s'", name);
        return NULL;
    }
    made->kind = (uint8_t)kind;
    made->klass = BB_CLASS_LOCKFREE;
    made->map = map;
    made->owner = owner->device;
    made->depth = 1;
    made->owner_id = owner->id;
    made->pins = owner->pins != NULL ? owner->pins : &made->own_pins;
    made->coalesced = owner->coalesced;
    made->device_name = owner->name;
    made->last = last;
    made->last_max = last;
    made->enabled = true;
    bb_name_copy_(made->name, name);
    return made;
}

/* Room for one more index that is given back, so that giving it back can't fail. */
static int count_room(struct bb_map *map)
{
    if (map->count_free_room > map->count_next) {
        return BB_OK;
    }
    uint32_t room = map->count_free_room == 0 ? 64 : 2 * map->count_free_room;
    uint32_t *list = bb_heap_alloc(map->heap, room * sizeof(list[0]));
    if (list == NULL) {
        return BB_E_NOMEM;
    }
    if (map->count_free_count != 0) {
        memcpy(list, map->count_free, map->count_free_count * sizeof(list[0]));
    }
    bb_heap_free(map->heap, map->count_free, map->count_free_room * sizeof(list[0]));
    map->count_free = list;
    map->count_free_room = room;
    return BB_OK;
}

static int enlist_locked(struct bb_map *map, struct bb_region *region)
{
    if (count_room(map) != BB_OK) {
        return BB_E_NOMEM;
    }
    region->count_index =
        map->count_free_count > 0 ? map->count_free[--map->count_free_count] : map->count_next++;
    region->serial = ++map->serial;
    region->all_next = map->all;
    region->all_link = &map->all;
    if (map->all != NULL) {
        map->all->all_link = &region->all_next;
    }
    map->all = region;
    return BB_OK;
}

int bb_region_enlist_(struct bb_ctx *ctx, struct bb_region *region, struct bb_error *err)
{
    struct bb_map *map = region->map;

    bb_lock_acquire(ctx, &map->lock);
    int result = enlist_locked(map, region);
    bb_lock_release(ctx, &map->lock);
    return result == BB_OK ? BB_OK
                           : bb_error_set(err, result, "no memory for region '%s'", region->name);
}

void bb_region_delist_(struct bb_region *region)
{
    struct bb_map *map = region->map;

    *region->all_link = region->all_next;
    if (region->all_next != NULL) {
        region->all_next->all_link = region->all_link;
    }
    map->count_free[map->count_free_count++] = region->count_index;
}

void bb_region_free_(struct bb_heap *heap, struct bb_region *region)
{
    bb_dirty_free_(heap, region);
    bb_ram_free_(heap, region);
    bb_iommu_free_(heap, region);
    bb_bells_free_(heap, region->bells);
    bb_heap_free(heap, region, sizeof(*region));
}

static int check_name(const char *name, void *place, const char *what, struct bb_error *err)
{
    if (name == NULL || name[0] == '\0' || place == NULL) {
        bb_error_set(err, BB_E_INVAL, "%s needs a configuration with a name, and a place", what);
        return BB_E_INVAL; /* for clang-tidy, which can't see that it is what the call returns */
    }
    return BB_OK;
}

static int create_plain(struct bb_ctx *ctx, enum bb_kind kind, const char *name,
                        uint64_t size_bytes, struct bb_region **region, struct bb_error *err)
{
    uint64_t last;
    int result = check_name(name, region, "a region", err);

    if (result != BB_OK) {
        return result;
    }
    if (!bb_size_last_(size_bytes, &last)) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%.31s': size_bytes is 0; it must be 1 to 2^64 - 2, or "
                            "BB_SIZE_ALL",
                            name);
    }
    struct bb_region *made = bb_region_alloc_(ctx, kind, name, last, &(struct bb_owner_){0}, err);
    if (made == NULL) {
        return BB_E_NOMEM;
    }
    result = bb_region_enlist_(ctx, made, err);
    if (result != BB_OK) {
        bb_region_free_(made->map->heap, made);
        return result;
    }
    *region = made;
    return BB_OK;
}

int bb_container_create(struct bb_ctx *ctx, const char *name, uint64_t size_bytes,
                        struct bb_region **region, struct bb_error *err)
{
    return create_plain(ctx, BB_KIND_CONTAINER, name, size_bytes, region, err);
}

int bb_reserved_create(struct bb_ctx *ctx, const char *name, uint64_t size_bytes,
                       struct bb_region **region, struct bb_error *err)
{
    return create_plain(ctx, BB_KIND_RESERVED, name, size_bytes, region, err);
}

/* Makes `alias` known to its target. The map's lock is held. */
static int alias_link_locked(struct bb_map *map, struct bb_region *alias, struct bb_region *target,
                             struct bb_error *err)
{
    if (target->removing) {
        return bb_error_set(err, BB_E_STATE,
                            "alias '%s': its target '%s' is being removed and can't be shown",
                            alias->name, target->name);
    }
    if (enlist_locked(map, alias) != BB_OK) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for alias '%s'", alias->name);
    }
    alias->target = target;
    alias->alias_next = target->aliases;
    alias->alias_link = &target->aliases;
    if (target->aliases != NULL) {
        target->aliases->alias_link = &alias->alias_next;
    }
    target->aliases = alias;
    return BB_OK;
}

int bb_alias_create(struct bb_ctx *ctx, const struct bb_alias_config *config,
                    struct bb_region **region, struct bb_error *err)
{
    uint64_t last;
    int result = check_name(config != NULL ? config->name : NULL, region, "an alias", err);

    if (result != BB_OK) {
        return result;
    }
    if (config->target == NULL || config->target->map != bb_mem_ctx_(ctx)->map) {
        return bb_error_set(err, BB_E_INVAL, "alias '%.31s': target %s", config->name,
                            config->target == NULL ? "is NULL; it must be the region to show"
                                                   : "is a region of another engine");
    }
    if (!bb_size_last_(config->size_bytes, &last) || config->offset > UINT64_MAX - last) {
        return bb_error_set(err, BB_E_RANGE,
                            "alias '%.31s': 0x%" PRIx64 " bytes at offset 0x%" PRIx64
                            " of its target; it must be at least 1 byte and end within 2^64",
                            config->name, config->size_bytes, config->offset);
    }
    struct bb_region *made =
        bb_region_alloc_(ctx, BB_KIND_ALIAS, config->name, last, &(struct bb_owner_){0}, err);
    if (made == NULL) {
        return BB_E_NOMEM;
    }
    made->target_offset = config->offset;
    made->read_only = config->read_only;
    bb_lock_acquire(ctx, &made->map->lock);
    result = alias_link_locked(made->map, made, config->target, err);
    bb_lock_release(ctx, &made->map->lock);
    if (result != BB_OK) {
        bb_region_free_(made->map->heap, made);
        return result;
    }
    *region = made;
    return BB_OK;
}

static int check_io(const struct bb_region_config *config, struct bb_access_rules *rules,
                    struct bb_error *err)
{
    uint64_t max = config->rom_device ? ROM_BYTES_MAX : IO_BYTES_MAX;

    if (config->ops == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': ops is NULL; it must point to its callbacks",
                            config->name);
    }
    if (config->size_bytes == 0 || config->size_bytes > max) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%.31s': size_bytes is 0x%" PRIx64 "; it must be 1 to 2^%d",
                            config->name, config->size_bytes, config->rom_device ? 46 : 63);
    }
    if (!known_class(config->klass)) {
        return bb_error_set(err, BB_E_INVAL, "region '%.31s': klass %d is no enum bb_class",
                            config->name, (int)config->klass);
    }
    int result = normalise_rules(rules, config, err);
    return result == BB_OK ? check_paths(config, err) : result;
}

int bb_region_create_io_(struct bb_ctx *ctx, const struct bb_region_config *config,
                         const struct bb_owner_ *owner, struct bb_region **region,
                         struct bb_error *err)
{
    struct bb_access_rules rules = {0};
    int result = check_name(config != NULL ? config->name : NULL, region, "a region", err);

    if (result == BB_OK) {
        result = check_io(config, &rules, err);
    }
    if (result != BB_OK) {
        return result;
    }
    struct bb_region *made =
        bb_region_alloc_(ctx, config->rom_device ? BB_KIND_ROM_DEVICE : BB_KIND_IO, config->name,
                         config->size_bytes - 1, owner, err);
    if (made == NULL) {
        return BB_E_NOMEM;
    }
    made->read = config->ops->read;
    made->write = config->ops->write;
    made->accept = config->ops->accept;
    made->opaque = config->opaque;
    made->klass = (uint8_t)config->klass;
    made->rules = rules;
    made->read_sizes = fast_sizes(&rules, made->read != NULL, made->accept != NULL);
    made->write_sizes = fast_sizes(&rules, made->write != NULL, made->accept != NULL);
    made->reentrant = config->reentrant;
    made->paths = config->paths;
    made->path_count = config->path_count;
    made->rom_mode = config->rom_device;
    if (config->rom_device) {
        result = bb_ram_attach_(ctx, made, config->size_bytes, err);
    }
    if (result == BB_OK) {
        result = bb_region_enlist_(ctx, made, err);
    }
    if (result != BB_OK) {
        bb_region_free_(made->map->heap, made);
        return result;
    }
    *region = made;
    return BB_OK;
}

/* What a region says of itself. */

void *bb_region_host(const struct bb_region *region)
{
    return region->host;
}

const char *bb_region_name(const struct bb_region *region)
{
    return region->name;
}

enum bb_kind bb_region_kind(const struct bb_region *region)
{
    return (enum bb_kind)region->kind;
}

struct bb_device *bb_region_device(const struct bb_region *region)
{
    return bb_load_acquire(&region->owner); /* pairs with bb_device_adopt() */
}

uint64_t bb_region_size(const struct bb_region *region)
{
    uint64_t last = bb_load_relaxed(&region->last); /* relaxed: a figure that guards nothing */

    return bb_last_size_(last);
}

enum bb_class bb_region_class(const struct bb_region *region)
{
    return (enum bb_class)region->klass;
}

const struct bb_path_row *bb_region_paths(const struct bb_region *region, size_t *count)
{
    if (count != NULL) {
        *count = region->path_count;
    }
    return region->paths;
}
