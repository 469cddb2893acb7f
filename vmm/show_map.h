/* SPDX-License-Identifier: MIT */
/* `busbar map`: what the PC's address spaces consist of. */
#ifndef BUSBAR_VMM_SHOW_MAP_H
#define BUSBAR_VMM_SHOW_MAP_H

#include "options.h"

/*
 * Builds the machine that `options` describes (vcpus, memory_bytes, json), prints its map on stdout
 * and takes it apart. Returns the exit status; errors are one line on stderr.
 */
int bb_show_map(const struct bb_options *options);

#endif
