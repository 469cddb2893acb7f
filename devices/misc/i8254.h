/* SPDX-License-Identifier: MIT */
/*
 * 8254 programmable interval timer and the PC's system control port B (0x61), by which guests gate
 * its channel 2 and watch the output to calibrate other clocks. Counters are derived from the
 * engine's clock at 1 193 182 Hz, never ticked.
 *
 * Ownership: bb_i8254_create() to bb_device_remove() on bb_i8254_device(). Threads: control.
 */
#ifndef BUSBAR_DEVICES_MISC_I8254_H
#define BUSBAR_DEVICES_MISC_I8254_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_i8254;

enum { BB_I8254_HZ = 1193182 };

enum bb_i8254_part {
    BB_I8254_COUNTERS, /* 4 ports, usually at 0x40 */
    BB_I8254_PORT_B,   /* 1 port, usually at 0x61 */
    BB_I8254_PARTS,
};

struct bb_i8254_config {
    const char *name;    /* NULL: "i8254" */
    struct bb_line *irq; /* channel 0's output; NULL: not connected */
};

/*
 * Creates it. Returns BB_OK; BB_E_NOMEM; what bb_device_create() returns. `config` may be NULL.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_i8254_create(struct bb_ctx *ctx, const struct bb_i8254_config *config,
                           struct bb_i8254 **dev, struct bb_error *err);

/* The device, for removal; and the region of one part. Threads: any; wait-free. */
BB_API struct bb_device *bb_i8254_device(const struct bb_i8254 *dev);
BB_API struct bb_region *bb_i8254_region(const struct bb_i8254 *dev, enum bb_i8254_part part);

BB_END_DECLS

#endif
