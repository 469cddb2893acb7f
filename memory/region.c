/* SPDX-License-Identifier: MIT */
/*
 * Regions: made, checked, described, freed. What an access does to one is in access.c, where it
 * is mapped in txn.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory_internal.h"

enum { ACCESS_BYTES_MAX = 8 };

static const uint64_t RAM_BYTES_MAX = BB_BIT64(46);
static const uint64_t IO_BYTES_MAX = BB_BIT64(63);

/* Gives a zero size its default, then refuses what is no access size. */
static int normalise_size(uint8_t *size, uint8_t if_zero, const char *field, const char *name,
                          struct bb_error *err)
{
    if (*size == 0) {
        *size = if_zero;
    }
    if (*size > ACCESS_BYTES_MAX || !bb_is_pow2(*size)) {
        return bb_error_set(err, BB_E_INVAL, "region '%.31s': %s is %u; it must be 1, 2, 4 or 8",
                            name, field, *size);
    }
    return BB_OK;
}

static int normalise_rules(struct bb_access_rules *rules, const struct bb_region_config *config,
                           struct bb_error *err)
{
    const char *name = config->name;

    *rules = config->rules;
    if (normalise_size(&rules->valid_min, 1, "valid_min", name, err) != BB_OK ||
        normalise_size(&rules->valid_max, ACCESS_BYTES_MAX, "valid_max", name, err) != BB_OK ||
        normalise_size(&rules->impl_min, 1, "impl_min", name, err) != BB_OK ||
        normalise_size(&rules->impl_max, ACCESS_BYTES_MAX, "impl_max", name, err) != BB_OK) {
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

static uint8_t fast_sizes(const struct bb_region *region)
{
    const struct bb_access_rules *rules = &region->rules;
    unsigned sizes = 0;

    if (rules->endian != BB_LITTLE_ENDIAN || region->read == NULL || region->write == NULL) {
        return 0;
    }
    for (unsigned size = 1; size <= ACCESS_BYTES_MAX; size *= 2) {
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

int bb_region_create_io_(struct bb_ctx *ctx, const struct bb_region_config *config,
                         struct bb_device *owner, uint32_t owner_id, struct bb_region **region,
                         struct bb_error *err)
{
    if (config == NULL || region == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL,
                            "a region needs a configuration with a name, and a place");
    }
    if (config->ops == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "region '%.31s': ops is NULL; it must point to its "
                            "callbacks",
                            config->name);
    }
    if (config->size_bytes == 0 || config->size_bytes > IO_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE,
                            "region '%.31s': size_bytes is 0x%" PRIx64 "; it must be 1 to 2^63",
                            config->name, config->size_bytes);
    }
    if (!known_class(config->klass)) {
        return bb_error_set(err, BB_E_INVAL, "region '%.31s': klass %d is no enum bb_class",
                            config->name, (int)config->klass);
    }
    struct bb_access_rules rules;
    int result = normalise_rules(&rules, config, err);
    if (result == BB_OK) {
        result = check_paths(config, err);
    }
    if (result != BB_OK) {
        return result;
    }

    struct bb_region *made = bb_heap_alloc(bb_mem_ctx_(ctx)->map->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for region '%.31s'", config->name);
    }
    made->read = config->ops->read;
    made->write = config->ops->write;
    made->opaque = config->opaque;
    made->owner = owner;
    made->depth = 1;
    made->owner_id = owner_id;
    made->kind = BB_REGION_IO_;
    made->klass = (uint8_t)config->klass;
    made->rules = rules;
    made->fast_sizes = fast_sizes(made);
    made->reentrant = config->reentrant;
    made->size_bytes = config->size_bytes;
    made->paths = config->paths;
    made->path_count = config->path_count;
    bb_name_copy_(made->name, config->name);
    *region = made;
    return BB_OK;
}

int bb_ram_create(struct bb_ctx *ctx, const struct bb_ram_config *config, struct bb_region **region,
                  struct bb_error *err)
{
    if (config == NULL || region == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL, "RAM needs a configuration with a name, and a place");
    }
    if (config->size_bytes == 0 || config->size_bytes > RAM_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE,
                            "RAM '%.31s': size_bytes is 0x%" PRIx64 "; it must be 1 to 2^46",
                            config->name, config->size_bytes);
    }
    if ((uintptr_t)config->host % 8 != 0) {
        return bb_error_set(err, BB_E_INVAL, "RAM '%.31s': host address %p must be a multiple of 8",
                            config->name, config->host);
    }

    struct bb_map *map = bb_mem_ctx_(ctx)->map;
    struct bb_heap *heap = map->heap;
    struct bb_region *made = bb_heap_alloc(heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for RAM '%.31s'", config->name);
    }
    made->host = config->host;
    if (made->host == NULL) {
        /* NORESERVE: guests rarely touch all their memory, and hosts are overcommitted. */
        void *host = mmap(NULL, config->size_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (host == MAP_FAILED) {
            int code = errno;
            bb_heap_free(heap, made, sizeof(*made));
            return bb_error_set(err, BB_E_SYSTEM,
                                "RAM '%.31s': 0x%" PRIx64 " bytes can't be mapped: %s",
                                config->name, config->size_bytes, strerror(code));
        }
        made->host = host;
        made->host_owned = true;
    }
    made->kind = BB_REGION_RAM_;
    made->klass = BB_CLASS_LOCKFREE;
    made->rules = (struct bb_access_rules){.valid_min = 1,
                                           .valid_max = ACCESS_BYTES_MAX,
                                           .impl_min = 1,
                                           .impl_max = ACCESS_BYTES_MAX,
                                           .unaligned = true,
                                           .endian = BB_LITTLE_ENDIAN};
    made->size_bytes = config->size_bytes;
    made->read_only = config->read_only;
    bb_name_copy_(made->name, config->name);
    bb_lock_acquire(ctx, &map->lock);
    made->ram_next = map->ram;
    map->ram = made;
    bb_lock_release(ctx, &map->lock);
    *region = made;
    return BB_OK;
}

void bb_region_free_(struct bb_heap *heap, struct bb_region *region)
{
    if (region->host_owned) {
        munmap(region->host, region->size_bytes);
    }
    bb_heap_free(heap, region, sizeof(*region));
}

void *bb_region_host(const struct bb_region *region)
{
    return region->host;
}

const char *bb_region_name(const struct bb_region *region)
{
    return region->name;
}

uint64_t bb_region_size(const struct bb_region *region)
{
    return region->size_bytes;
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
