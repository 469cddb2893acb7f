/* SPDX-License-Identifier: MIT */
/*
 * RAM and ROM as regions: checks of what the embedder asks for, creation, and what a ROM device
 * needs of it. The memory itself is a block of ram_block.c.
 *
 * Every field of the configuration that means nothing to the backing is refused: the embedder meant
 * something else.
 */
#include <inttypes.h>
#include <unistd.h>

#include "memory_internal.h"

enum {
    CALLBACK_BYTES_MAX = 8,
    HOST_ALIGN_BYTES = 8,
};

static const uint64_t RAM_BYTES_MAX = BB_BIT64(46);
static const uint64_t PAGE_BYTES_MAX = BB_BIT64(40);

static uint64_t host_page_bytes(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* ANONYMOUS with `host` set is the embedder's memory. */
static enum bb_ram_backing backing_of(const struct bb_ram_config *config)
{
    return config->backing == BB_RAM_ANONYMOUS && config->host != NULL ? BB_RAM_EMBEDDER
                                                                       : config->backing;
}

static int check_fields(const struct bb_ram_config *config, struct bb_error *err)
{
    static const char *const names[] = {"BB_RAM_ANONYMOUS", "BB_RAM_EMBEDDER", "BB_RAM_MEMFD",
                                        "BB_RAM_FILE", "BB_RAM_HUGETLB"};
    const unsigned embedder = 1u << BB_RAM_EMBEDDER, file = 1u << BB_RAM_FILE, mapped = ~embedder;
    const struct {
        const char *field;
        bool set;
        unsigned goes_with;
    } fields[] = {
        {"host", config->host != NULL, embedder},
        {"path", config->path != NULL, file},
        {"fd", config->fd > 0, file},
        {"fd_offset", config->fd_offset != 0, file},
        {"private_file", config->private_file, file},
        {"page_bytes", config->page_bytes != 0, mapped},
        {"numa", config->numa, mapped},
        {"prefault", config->prefault, mapped},
    };
    enum bb_ram_backing backing = backing_of(config);

    for (size_t i = 0; i < BB_ARRAY_LEN(fields); i++) {
        if (fields[i].set && (fields[i].goes_with & 1u << backing) == 0) {
            return bb_error_set(err, BB_E_INVAL,
                                "RAM '%.31s': %s is set, which does not go with %s", config->name,
                                fields[i].field, names[backing]);
        }
    }
    if (config->path != NULL && config->fd > 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': path and fd are both set; leave fd 0 to mean the path",
                            config->name);
    }
    if (!config->numa != (config->numa_nodes == 0)) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': numa is %s and numa_nodes 0x%" PRIx64
                            "; either both are set or neither",
                            config->name, config->numa ? "true" : "false", config->numa_nodes);
    }
    if (config->prefault_threads > (config->prefault ? BB_PREFAULT_THREADS_MAX_ : 0)) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': prefault_threads is %u; it must be at most %d, and 0 "
                            "without prefault",
                            config->name, config->prefault_threads, BB_PREFAULT_THREADS_MAX_);
    }
    return BB_OK;
}

static int check_sizes(const struct bb_ram_config *config, struct bb_error *err)
{
    uint64_t page = host_page_bytes();

    if (config->size_bytes == 0 || config->size_bytes > RAM_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE,
                            "RAM '%.31s': size_bytes is 0x%" PRIx64 "; it must be 1 to 2^46",
                            config->name, config->size_bytes);
    }
    if (bb_ram_bytes_max_(config) < config->size_bytes ||
        bb_ram_bytes_max_(config) > RAM_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE,
                            "RAM '%.31s': size_bytes_max is 0x%" PRIx64
                            "; it must be 0, or size_bytes, 0x%" PRIx64 ", to 2^46",
                            config->name, config->size_bytes_max, config->size_bytes);
    }
    if (config->page_bytes != 0 && (!bb_is_pow2(config->page_bytes) || config->page_bytes < page ||
                                    config->page_bytes > PAGE_BYTES_MAX)) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': page_bytes is 0x%" PRIx64
                            "; it must be 0 or a power of two from 0x%" PRIx64 " to 2^40",
                            config->name, config->page_bytes, page);
    }
    return BB_OK;
}

static int check_host(const struct bb_ram_config *config, struct bb_error *err)
{
    uint64_t last;

    if (config->host == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': host is NULL; BB_RAM_EMBEDDER needs the memory",
                            config->name);
    }
    if ((uintptr_t)config->host % HOST_ALIGN_BYTES != 0) {
        return bb_error_set(err, BB_E_INVAL, "RAM '%.31s': host is %p; it must be a multiple of %d",
                            config->name, config->host, HOST_ALIGN_BYTES);
    }
    if (!bb_range_last((uintptr_t)config->host, bb_ram_bytes_max_(config), &last)) {
        return bb_error_set(err, BB_E_RANGE,
                            "RAM '%.31s': 0x%" PRIx64 " bytes at host %p wrap at 2^64",
                            config->name, bb_ram_bytes_max_(config), config->host);
    }
    return BB_OK;
}

static int check_config(const struct bb_ram_config *config, struct bb_region *const *region,
                        struct bb_error *err)
{
    if (config == NULL || region == NULL || config->name == NULL || config->name[0] == '\0') {
        return bb_error_set(err, BB_E_INVAL, "RAM needs a configuration with a name, and a place");
    }
    switch (config->backing) {
    case BB_RAM_ANONYMOUS:
    case BB_RAM_EMBEDDER:
    case BB_RAM_MEMFD:
    case BB_RAM_FILE:
    case BB_RAM_HUGETLB:
        break;
    default:
        return bb_error_set(err, BB_E_INVAL, "RAM '%.31s': backing %d is no enum bb_ram_backing",
                            config->name, (int)config->backing);
    }
    int result = check_fields(config, err);
    if (result == BB_OK) {
        result = check_sizes(config, err);
    }
    if (result == BB_OK && backing_of(config) == BB_RAM_EMBEDDER) {
        result = check_host(config, err);
    }
    return result;
}

int bb_ram_create(struct bb_ctx *ctx, const struct bb_ram_config *config, struct bb_region **region,
                  struct bb_error *err)
{
    struct bb_heap *heap = bb_mem_ctx_(ctx)->map->heap;
    struct bb_ram_block_ *block = NULL;
    int result = check_config(config, region, err);

    if (result != BB_OK) {
        return result;
    }
    void *host = config->host;
    if (host == NULL) {
        result = bb_ram_block_make_(heap, config, &block, &host, err);
        if (result != BB_OK) {
            return result;
        }
    }
    struct bb_region *made = bb_region_alloc_(ctx, BB_KIND_RAM, config->name,
                                              config->size_bytes - 1, &(struct bb_owner_){0}, err);
    if (made == NULL) {
        bb_ram_block_free_(heap, block);
        return BB_E_NOMEM;
    }
    made->klass = BB_CLASS_LOCKFREE;
    made->rules = (struct bb_access_rules){.valid_min = 1,
                                           .valid_max = BB_ACCESS_BYTES_MAX_,
                                           .impl_min = 1,
                                           .impl_max = CALLBACK_BYTES_MAX,
                                           .unaligned = true,
                                           .endian = BB_LITTLE_ENDIAN};
    made->last_max = bb_ram_bytes_max_(config) - 1;
    made->read_only = config->read_only;
    made->host = host;
    made->block = block;
    result = bb_region_enlist_(ctx, made, err);
    if (result != BB_OK) {
        bb_region_free_(heap, made);
        return result;
    }
    *region = made;
    return BB_OK;
}

int bb_ram_attach_(struct bb_ctx *ctx, struct bb_region *region, uint64_t bytes,
                   struct bb_error *err)
{
    struct bb_ram_config config = {.name = region->name, .size_bytes = bytes};
    void *host;
    int result =
        bb_ram_block_make_(bb_mem_ctx_(ctx)->map->heap, &config, &region->block, &host, err);

    if (result == BB_OK) {
        region->host = host;
    }
    return result;
}

void bb_ram_free_(struct bb_heap *heap, struct bb_region *region)
{
    bb_ram_block_free_(heap, region->block);
    region->block = NULL;
}

int bb_ram_fd(const struct bb_region *region, uint64_t *offset)
{
    if (region->block == NULL || !region->block->shared) {
        return -1;
    }
    if (offset != NULL) {
        *offset = region->block->fd_offset;
    }
    return region->block->fd;
}

uint64_t bb_ram_page_bytes(const struct bb_region *region)
{
    return region->block != NULL ? region->block->page_bytes : host_page_bytes();
}
