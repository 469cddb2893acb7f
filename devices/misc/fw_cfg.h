/* SPDX-License-Identifier: MIT */
/*
 * fw_cfg: the firmware configuration device of QEMU's documentation (docs/specs/fw_cfg): a 16-bit
 * selector port and an 8-bit data port behind which a guest finds items by number.
 *
 * Items are added before the device is mapped and are immutable from then on.
 * Ownership: bb_fw_cfg_create() to bb_device_remove() on bb_fw_cfg_device(). Threads: control.
 */
#ifndef BUSBAR_DEVICES_MISC_FW_CFG_H
#define BUSBAR_DEVICES_MISC_FW_CFG_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_fw_cfg;

enum {
    BB_FW_CFG_SIGNATURE = 0x00, /* "QEMU" */
    BB_FW_CFG_ID = 0x01,        /* u32: 1, the selector and data interface */
    BB_FW_CFG_RAM_SIZE = 0x03,  /* u64 */
    BB_FW_CFG_NB_CPUS = 0x05,   /* u16 */
    BB_FW_CFG_MAX_CPUS = 0x0f,  /* u16 */
    BB_FW_CFG_FILE_DIR = 0x19,  /* u32 big-endian: 0 files */
    BB_FW_CFG_ITEMS_MAX = 64,
    BB_FW_CFG_ITEM_BYTES_MAX = 16 << 20,
};

struct bb_fw_cfg_config {
    const char *name; /* NULL: "fw-cfg" */
    uint16_t cpus;
    uint64_t ram_bytes;
};

/*
 * Creates it with the items named above. Returns BB_OK; BB_E_INVAL without a configuration;
 * BB_E_NOMEM; what bb_device_create() returns.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_fw_cfg_create(struct bb_ctx *ctx, const struct bb_fw_cfg_config *config,
                            struct bb_fw_cfg **dev, struct bb_error *err);

/*
 * Adds an item; `bytes` is copied. Only before the region is mapped. Returns BB_OK; BB_E_EXIST for
 * a key that is there; BB_E_RANGE for a key with bit 14 set or a size over
 * BB_FW_CFG_ITEM_BYTES_MAX; BB_E_LIMIT past BB_FW_CFG_ITEMS_MAX items; BB_E_NOMEM.
 * Threads: control, one at a time; allocates. Lifetime: the item's is the device's.
 */
BB_API int bb_fw_cfg_add(struct bb_ctx *ctx, struct bb_fw_cfg *dev, uint16_t key, const void *bytes,
                         size_t n, struct bb_error *err);

/* The device, for removal; and its region: 2 ports, usually at 0x510. Threads: any; wait-free. */
BB_API struct bb_device *bb_fw_cfg_device(const struct bb_fw_cfg *dev);
BB_API struct bb_region *bb_fw_cfg_region(const struct bb_fw_cfg *dev);

BB_END_DECLS

#endif
