/* SPDX-License-Identifier: MIT */
/*
 * PCI configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2) with a host bridge at 0:0.0 and
 * nothing else on the bus: what a guest that scans needs to find.
 *
 * Ownership: bb_pci_config_create() to bb_device_remove() on bb_pci_config_device().
 * Threads: control.
 */
#ifndef BUSBAR_DEVICES_MISC_PCI_CONFIG_H
#define BUSBAR_DEVICES_MISC_PCI_CONFIG_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_pci_config;

struct bb_pci_config_config {
    const char *name;   /* NULL: "pci-config" */
    uint16_t vendor_id; /* of the host bridge; both 0: 8086:1237 */
    uint16_t device_id;
};

/*
 * Creates it. Returns BB_OK; BB_E_NOMEM; what bb_device_create() returns. `config` may be NULL.
 * Threads: control, with a context; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_pci_config_create(struct bb_ctx *ctx, const struct bb_pci_config_config *config,
                                struct bb_pci_config **dev, struct bb_error *err);

/* The device, for removal; and its region: 8 ports, usually at 0xcf8. Threads: any; wait-free. */
BB_API struct bb_device *bb_pci_config_device(const struct bb_pci_config *dev);
BB_API struct bb_region *bb_pci_config_region(const struct bb_pci_config *dev);

BB_END_DECLS

#endif
