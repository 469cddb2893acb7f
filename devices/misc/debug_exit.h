/* SPDX-License-Identifier: MIT */
/*
 * Debug-exit port: a guest's write hands the embedder a code, by which test guests report their
 * result and stop. Reads yield zero. There is no hardware specification; hypervisors' test guests
 * write it at port 0xf4.
 *
 * Ownership: bb_debug_exit_create() to bb_device_remove() on bb_debug_exit_device().
 */
#ifndef BUSBAR_DEVICES_MISC_DEBUG_EXIT_H
#define BUSBAR_DEVICES_MISC_DEBUG_EXIT_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_debug_exit;

struct bb_debug_exit_config {
    const char *name; /* NULL: "debug-exit" */
    /*
     * Called once for each write, of 1, 2 or 4 bytes, zero-extended. Runs in a read section, on
     * several threads at once where several vCPUs write; must not block. Needed.
     */
    void (*exit)(void *opaque, uint32_t code);
    void *opaque;
};

/*
 * Creates it. Returns BB_OK; BB_E_INVAL without `exit`; BB_E_NOMEM; what bb_device_create()
 * returns.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_debug_exit_create(struct bb_ctx *ctx, const struct bb_debug_exit_config *config,
                                struct bb_debug_exit **dev, struct bb_error *err);

/* The device, for removal; and its region: 4 ports, usually at 0xf4. Threads: any; wait-free. */
BB_API struct bb_device *bb_debug_exit_device(const struct bb_debug_exit *dev);
BB_API struct bb_region *bb_debug_exit_region(const struct bb_debug_exit *dev);

BB_END_DECLS

#endif
