/* SPDX-License-Identifier: MIT */
/*
 * Debug-exit port. Holds no state of its own: each write is one call of the embedder's function,
 * so it is as lock-free as that. What the code means is the embedder's affair.
 */
#include "debug_exit.h"

#include "../../base/bits.h"

enum { PORTS = 4 };

struct bb_debug_exit {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    void (*exit)(void *opaque, uint32_t code);
    void *opaque;
};

static int port_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    *value = 0;
    return BB_OK;
}

static int port_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_debug_exit *dev = opaque;
    (void)ctx;
    (void)offset;
    dev->exit(dev->opaque, (uint32_t)(value & bb_mask_bytes(size)));
    return BB_OK;
}

static void dev_destroy(void *opaque)
{
    struct bb_debug_exit *dev = opaque;
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops port_ops = {.read = port_read, .write = port_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_debug_exit_device(const struct bb_debug_exit *dev)
{
    return dev->device;
}

struct bb_region *bb_debug_exit_region(const struct bb_debug_exit *dev)
{
    return dev->region;
}

int bb_debug_exit_create(struct bb_ctx *ctx, const struct bb_debug_exit_config *config,
                         struct bb_debug_exit **out, struct bb_error *err)
{
    static const struct bb_path_row paths[] = {
        {"code", 0, PORTS - 1, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    };
    if (config == NULL || config->exit == NULL) {
        return bb_error_set(err, BB_E_INVAL, "debug-exit port without an exit function");
    }
    const char *name = config->name != NULL ? config->name : "debug-exit";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_debug_exit *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for debug-exit port %s", name);
    }
    dev->engine = engine;
    dev->exit = config->exit;
    dev->opaque = config->opaque;

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
        .rules = {.valid_min = 1, .valid_max = 4, .impl_min = 1, .impl_max = 4},
        .paths = paths,
        .path_count = BB_ARRAY_LEN(paths),
    };
    result = bb_device_region_create(ctx, dev->device, &region, &dev->region, err);
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `dev`. */
        (void)bb_device_remove(ctx, dev->device, NULL, NULL, NULL);
        return result;
    }
    *out = dev;
    return BB_OK;
}
