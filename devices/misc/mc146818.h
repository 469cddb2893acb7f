/* SPDX-License-Identifier: MIT */
/*
 * MC146818 real-time clock and its non-volatile bytes, behind the PC's index and data ports. Time
 * of day is a base plus the engine's clock.
 *
 * Ownership: bb_mc146818_create() to bb_device_remove() on bb_mc146818_device(). Threads: control.
 */
#ifndef BUSBAR_DEVICES_MISC_MC146818_H
#define BUSBAR_DEVICES_MISC_MC146818_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_mc146818;

enum { BB_MC146818_BYTES = 128 };

struct bb_mc146818_config {
    const char *name;    /* NULL: "mc146818" */
    int64_t base_unix_s; /* time of day, in seconds since 1970, at virtual time 0; years 1970 to
                            2099 */
};

/*
 * Returns BB_OK; BB_E_RANGE for a base outside those years; BB_E_NOMEM; what bb_device_create()
 * returns. `config` may be NULL: 2000-01-01.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_mc146818_create(struct bb_ctx *ctx, const struct bb_mc146818_config *config,
                              struct bb_mc146818 **dev, struct bb_error *err);

/*
 * Sets a non-volatile byte, 0x0e to 0x7f except the century (0x32). Returns BB_OK or BB_E_RANGE.
 * Threads: any with a context, outside callbacks; takes the device's lock.
 */
BB_API int bb_mc146818_set_byte(struct bb_ctx *ctx, struct bb_mc146818 *dev, uint8_t index,
                                uint8_t value);

/* The device, for removal; and its region: 2 ports, usually at 0x70. Threads: any; wait-free. */
BB_API struct bb_device *bb_mc146818_device(const struct bb_mc146818 *dev);
BB_API struct bb_region *bb_mc146818_region(const struct bb_mc146818 *dev);

BB_END_DECLS

#endif
