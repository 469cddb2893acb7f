/* SPDX-License-Identifier: MIT */
/*
 * i8042 keyboard controller with nothing plugged in: answers its own commands, so that guests find
 * a controller without keyboard and mouse, and passes on the request to reset the machine.
 *
 * Ownership: bb_i8042_create() to bb_device_remove() on bb_i8042_device(). Threads: control.
 */
#ifndef BUSBAR_DEVICES_MISC_I8042_H
#define BUSBAR_DEVICES_MISC_I8042_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_i8042;

enum bb_i8042_part {
    BB_I8042_DATA,    /* 1 port, usually at 0x60 */
    BB_I8042_COMMAND, /* 1 port, usually at 0x64; reads are the status */
    BB_I8042_PARTS,
};

struct bb_i8042_config {
    const char *name; /* NULL: "i8042" */
    /*
     * The guest asked for a reset. Runs in a read section, perhaps on several threads at once;
     * must not block. NULL: the request is ignored.
     */
    void (*reset)(void *opaque);
    void *opaque;
};

/*
 * Creates it. Returns BB_OK; BB_E_NOMEM; what bb_device_create() returns. `config` may be NULL.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_i8042_create(struct bb_ctx *ctx, const struct bb_i8042_config *config,
                           struct bb_i8042 **dev, struct bb_error *err);

/* The device, for removal; and the region of one part. Threads: any; wait-free. */
BB_API struct bb_device *bb_i8042_device(const struct bb_i8042 *dev);
BB_API struct bb_region *bb_i8042_region(const struct bb_i8042 *dev, enum bb_i8042_part part);

BB_END_DECLS

#endif
