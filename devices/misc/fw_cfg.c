/* SPDX-License-Identifier: MIT */
/*
 * fw_cfg, the traditional interface of QEMU's documentation (docs/specs/fw_cfg): a write of 16 bits
 * to the selector port chooses an item and goes to its start; each read of the data port yields the
 * next byte, and zero past the end or where there is no such item.
 *
 * Selector and offset are one atomic word, so that an access never pairs one item's selector with
 * another's offset: concurrent vCPUs get bytes of one item in some order, and never one out of
 * bounds. Items are immutable once the region is mapped, which publishes them.
 * Left out: the DMA interface, files, and writing (obsolete by the specification).
 */
#include "fw_cfg.h"

#include <string.h>

#include "../../base/atomic.h"
#include "../../base/bits.h"

enum { SELECTOR = 0, DATA = 1, PORTS = 2 };
enum { KEY_WRITE = 0x4000 }; /* bit 14: to be written; no item has it */

struct item {
    uint16_t key;
    uint32_t bytes;
    uint8_t *data;
};

struct bb_fw_cfg {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;

    /* Immutable once mapped. */
    size_t item_count;
    struct item items[BB_FW_CFG_ITEMS_MAX];

    uint64_t cursor; /* (a) key << 32 | offset; vCPUs, by compare-and-swap */
};

static const struct item *find(const struct bb_fw_cfg *dev, uint16_t key)
{
    for (size_t i = 0; i < dev->item_count; i++) {
        if (dev->items[i].key == key) {
            return &dev->items[i];
        }
    }
    return NULL;
}

static uint8_t next_byte(struct bb_fw_cfg *dev)
{
    /* Relaxed, here and in the swaps: the word refers to nothing but items that don't change. */
    uint64_t cursor = bb_load_relaxed(&dev->cursor);
    for (;;) {
        const struct item *item = find(dev, (uint16_t)(cursor >> 32));
        uint32_t offset = (uint32_t)cursor;
        if (item == NULL || offset >= item->bytes) {
            return 0; /* the offset stays: it must not wrap into the item again */
        }
        uint8_t byte = item->data[offset];
        if (bb_cas_relaxed(&dev->cursor, &cursor, cursor + 1)) {
            return byte;
        }
    }
}

static int port_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    (void)ctx;
    if (size != 1) {
        return BB_E_DEVICE;
    }
    *value = offset == DATA ? next_byte(opaque) : 0;
    return BB_OK;
}

static int port_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_fw_cfg *dev = opaque;
    (void)ctx;
    if (offset == SELECTOR && size == 2) {
        bb_store_relaxed(&dev->cursor, (value & 0xffff) << 32); /* as in next_byte() */
    }
    return BB_OK;
}

static void dev_destroy(void *opaque)
{
    struct bb_fw_cfg *dev = opaque;
    for (size_t i = 0; i < dev->item_count; i++) {
        bb_device_free(dev->engine, dev->items[i].data, dev->items[i].bytes);
    }
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops port_ops = {.read = port_read, .write = port_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_fw_cfg_device(const struct bb_fw_cfg *dev)
{
    return dev->device;
}

struct bb_region *bb_fw_cfg_region(const struct bb_fw_cfg *dev)
{
    return dev->region;
}

int bb_fw_cfg_add(struct bb_ctx *ctx, struct bb_fw_cfg *dev, uint16_t key, const void *bytes,
                  size_t n, struct bb_error *err)
{
    (void)ctx;
    if ((key & KEY_WRITE) != 0) {
        return bb_error_set(err, BB_E_RANGE, "fw_cfg key 0x%x: bit 14 marks writes, not items",
                            (unsigned)key);
    }
    if (n > BB_FW_CFG_ITEM_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE, "fw_cfg key 0x%x: %zu bytes; at most %d",
                            (unsigned)key, n, BB_FW_CFG_ITEM_BYTES_MAX);
    }
    if (find(dev, key) != NULL) {
        return bb_error_set(err, BB_E_EXIST, "fw_cfg key 0x%x is there already", (unsigned)key);
    }
    if (dev->item_count == BB_FW_CFG_ITEMS_MAX) {
        return bb_error_set(err, BB_E_LIMIT, "fw_cfg key 0x%x: there are %d items already",
                            (unsigned)key, BB_FW_CFG_ITEMS_MAX);
    }
    uint8_t *data = NULL;
    if (n != 0) {
        data = bb_device_alloc(dev->engine, n);
        if (data == NULL) {
            return bb_error_set(err, BB_E_NOMEM, "no memory for fw_cfg key 0x%x", (unsigned)key);
        }
        memcpy(data, bytes, n);
    }
    dev->items[dev->item_count++] = (struct item){.key = key, .bytes = (uint32_t)n, .data = data};
    return BB_OK;
}

/* Adds an integer of `n` bytes, little-endian as all of fw_cfg's are but the file directory. */
static int add_integer(struct bb_ctx *ctx, struct bb_fw_cfg *dev, uint16_t key, uint64_t value,
                       size_t n, struct bb_error *err)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
    return bb_fw_cfg_add(ctx, dev, key, bytes, n, err);
}

static int add_items(struct bb_ctx *ctx, struct bb_fw_cfg *dev,
                     const struct bb_fw_cfg_config *config, struct bb_error *err)
{
    const struct {
        uint16_t key;
        uint64_t value;
        size_t bytes;
    } integers[] = {
        {BB_FW_CFG_ID, 1, 4},
        {BB_FW_CFG_RAM_SIZE, config->ram_bytes, 8},
        {BB_FW_CFG_NB_CPUS, config->cpus, 2},
        {BB_FW_CFG_MAX_CPUS, config->cpus, 2},
        {BB_FW_CFG_FILE_DIR, 0, 4},
    };
    int result = bb_fw_cfg_add(ctx, dev, BB_FW_CFG_SIGNATURE, "QEMU", 4, err);
    for (size_t i = 0; result == BB_OK && i < BB_ARRAY_LEN(integers); i++) {
        result = add_integer(ctx, dev, integers[i].key, integers[i].value, integers[i].bytes, err);
    }
    return result;
}

int bb_fw_cfg_create(struct bb_ctx *ctx, const struct bb_fw_cfg_config *config,
                     struct bb_fw_cfg **out, struct bb_error *err)
{
    static const struct bb_path_row paths[] = {
        {"selector", SELECTOR, SELECTOR, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
        {"data", DATA, DATA, BB_PATH_LOCK_FREE, BB_PATH_WAIT_FREE, NULL},
    };
    if (config == NULL) {
        return bb_error_set(err, BB_E_INVAL, "fw_cfg without a configuration");
    }
    const char *name = config->name != NULL ? config->name : "fw-cfg";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_fw_cfg *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for fw_cfg %s", name);
    }
    dev->engine = engine;

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = dev};
    int result = bb_device_create(ctx, &device, &dev->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, dev, sizeof *dev);
        return result;
    }
    const struct bb_region_config region = {
        .name = name,
        .size_bytes = PORTS,
        .ops = &port_ops,
        .opaque = dev,
        .klass = BB_CLASS_LOCKFREE,
        .rules = {.valid_min = 1, .valid_max = 2, .impl_min = 1, .impl_max = 2},
        .paths = paths,
        .path_count = BB_ARRAY_LEN(paths),
    };
    result = add_items(ctx, dev, config, err);
    if (result == BB_OK) {
        result = bb_device_region_create(ctx, dev->device, &region, &dev->region, err);
    }
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `dev`. */
        (void)bb_device_remove(ctx, dev->device, NULL, NULL, NULL);
        return result;
    }
    *out = dev;
    return BB_OK;
}
