/* SPDX-License-Identifier: MIT */
/*
 * The board's own few ports, as one device: the ACPI PM1a block with power-off, and what public
 * test images use: a port that powers off on the string "Shutdown", ports that set an interrupt
 * line by hand, and one that unmaps a page of guest memory from the host for a moment.
 *
 * Source: ACPI 6.4, sections 4.8.3.1 and 4.8.3.2. PM1a status never rises (there are no buttons);
 * its enable bits are kept; SCI_EN is always set.
 */
#ifndef BUSBAR_VMM_BOARD_PORTS_H
#define BUSBAR_VMM_BOARD_PORTS_H

#include "../engine/device.h"
#include "board.h"
#include "guest_memory.h"
#include "stop.h"

struct bb_board_ports_config {
    struct bb_stop *stop;                 /* power-off goes there */
    const struct bb_gmem *mem;            /* for the page to unmap */
    struct bb_line *lines[BB_BOARD_GSIS]; /* what port 0x2000 + n sets */
};

/*
 * Creates the device and maps its regions into `pio`. It frees itself on bb_device_remove().
 * Returns BB_OK, or what bb_device_create(), bb_source_create() or bb_space_map() return, with
 * nothing left behind.
 */
int bb_board_ports_create(struct bb_ctx *ctx, struct bb_space *pio,
                          const struct bb_board_ports_config *config, struct bb_device **device,
                          struct bb_error *err);

#endif
