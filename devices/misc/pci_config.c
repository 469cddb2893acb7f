/* SPDX-License-Identifier: MIT */
/*
 * PCI configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): an address latch of 32 bits, and
 * a data window through which bytes of the addressed function's configuration space are reached.
 * The bus has a host bridge at 0:0.0, whose header is read-only; any other function doesn't answer,
 * which reads as all ones (6.1).
 *
 * The latch is one atomic word that vCPUs race for by the mechanism's nature; configuration space
 * is constant. So every access is wait-free.
 * Left out: other devices, bridges, the reset control register at 0xcf9, ECAM.
 */
#include "pci_config.h"

#include "../../base/atomic.h"
#include "../../base/bits.h"

enum { CONFIG_ADDRESS = 0, CONFIG_DATA = 4, PORTS = 8 };

#define ADDRESS_ENABLE UINT32_C(0x80000000)
#define ADDRESS_WRITABLE UINT32_C(0x80fffffc)
#define ADDRESS_FUNCTION UINT32_C(0x00ffff00) /* bus, device, function */
#define ADDRESS_REGISTER UINT32_C(0x000000fc)

/* Configuration space header, type 0 (6.2.1). */
enum { VENDOR_ID = 0x00, DEVICE_ID = 0x02, COMMAND = 0x04, REVISION_ID = 0x08, SUBCLASS = 0x0a };
enum { BASE_CLASS = 0x0b, SPACE_BYTES = 256 };
enum { COMMAND_MEMORY_MASTER = 0x06, CLASS_BRIDGE = 0x06, SUBCLASS_HOST = 0x00 };
enum { DEFAULT_VENDOR = 0x8086, DEFAULT_DEVICE = 0x1237 };

struct bb_pci_config {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    uint8_t bridge[SPACE_BYTES];

    uint32_t address; /* (a) CONFIG_ADDRESS; vCPUs */
};

static int port_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_pci_config *dev = opaque;
    (void)ctx;
    uint32_t address = bb_load_relaxed(&dev->address); /* a word on its own */
    *value = bb_mask_bytes(size);
    if (offset < CONFIG_DATA) {
        if (size == 4) {
            *value = address;
        }
    } else if ((address & ADDRESS_ENABLE) != 0 && (address & ADDRESS_FUNCTION) == 0) {
        /* Accesses are aligned, so this ends within the register. */
        unsigned first = (address & ADDRESS_REGISTER) + (unsigned)(offset - CONFIG_DATA);
        *value = 0;
        for (unsigned i = 0; i < size; i++) {
            *value |= (uint64_t)dev->bridge[first + i] << 8 * i;
        }
    }
    return BB_OK;
}

static int port_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_pci_config *dev = opaque;
    (void)ctx;
    if (offset == CONFIG_ADDRESS && size == 4) { /* narrower ones pass the latch by */
        bb_store_relaxed(&dev->address, (uint32_t)value & ADDRESS_WRITABLE); /* likewise */
    }
    return BB_OK;
}

static void dev_destroy(void *opaque)
{
    struct bb_pci_config *dev = opaque;
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops port_ops = {.read = port_read, .write = port_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_pci_config_device(const struct bb_pci_config *dev)
{
    return dev->device;
}

struct bb_region *bb_pci_config_region(const struct bb_pci_config *dev)
{
    return dev->region;
}

static void put16(uint8_t *bytes, uint16_t value)
{
    bytes[0] = (uint8_t)value;
    bytes[1] = (uint8_t)(value >> 8);
}

int bb_pci_config_create(struct bb_ctx *ctx, const struct bb_pci_config_config *config,
                         struct bb_pci_config **out, struct bb_error *err)
{
    static const struct bb_pci_config_config defaults;
    static const struct bb_path_row paths[] = {
        {"CONFIG_ADDRESS", CONFIG_ADDRESS, CONFIG_ADDRESS + 3, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE,
         NULL},
        {"CONFIG_DATA", CONFIG_DATA, CONFIG_DATA + 3, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
    };
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "pci-config";
    bool given = config->vendor_id != 0 || config->device_id != 0;
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_pci_config *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for PCI configuration ports %s", name);
    }
    dev->engine = engine;
    put16(&dev->bridge[VENDOR_ID], given ? config->vendor_id : DEFAULT_VENDOR);
    put16(&dev->bridge[DEVICE_ID], given ? config->device_id : DEFAULT_DEVICE);
    put16(&dev->bridge[COMMAND], COMMAND_MEMORY_MASTER);
    dev->bridge[REVISION_ID] = 2;
    dev->bridge[SUBCLASS] = SUBCLASS_HOST;
    dev->bridge[BASE_CLASS] = CLASS_BRIDGE;

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
