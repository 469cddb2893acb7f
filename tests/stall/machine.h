/* SPDX-License-Identifier: MIT */
/*
 * The machine of the stall test: every device of the tree, mapped, with what is needed to walk
 * their tables of paths.
 */
#ifndef BUSBAR_TESTS_STALL_MACHINE_H
#define BUSBAR_TESTS_STALL_MACHINE_H

#include "../../engine/device.h"

struct bb_ioapic;

enum { MAPPED_MAX = 32, MACHINE_PINS = 24 };

struct mapped {
    struct bb_region *region;
    struct bb_space *space;
    bb_gpa_t gpa;
};

struct machine {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* of the thread that built it */
    struct bb_space *mmio;
    struct bb_space *pio;
    struct mapped mapped[MAPPED_MAX];
    unsigned mapped_count;
    struct bb_device *board; /* owns the sources */
    struct bb_line *lines[MACHINE_PINS];
    struct bb_source *edge;  /* of pin 3 */
    struct bb_source *level; /* of pin 4 */
    struct bb_source *other; /* of pin 4 too, and of the workers */
    struct bb_ioapic *ioapic;
    struct bb_region *spare;  /* not mapped: what a map change maps and unmaps */
    struct bb_region *locked; /* DEVICE_LOCK */
};

/* Builds it on the calling thread. Aborts with a message where anything fails. */
void machine_build(struct machine *machine);

#endif
