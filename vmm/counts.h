/* SPDX-License-Identifier: MIT */
/*
 * Who accessed what: the engine's counts by region and context (bb_region_counts_each()), taken
 * from each vCPU's thread when it ends, for a report.
 *
 * Threads: bb_counts_take() on any, several at once; the rest on one, before the first of these and
 * after the last.
 */
#ifndef BUSBAR_VMM_COUNTS_H
#define BUSBAR_VMM_COUNTS_H

#include <pthread.h>
#include <stdio.h>

#include "../engine/engine.h"

struct bb_counts_row {
    const struct bb_region *key; /* not looked at once the machine is gone */
    char region[32], device[32]; /* device "": none */
    struct bb_region_counts *vcpu;
};

struct bb_counts {
    struct bb_space *spaces[2]; /* those whose regions are asked for */
    unsigned vcpus;
    pthread_mutex_t lock; /* guards the rest */
    struct bb_counts_row *row;
    size_t count, room;
    bool incomplete; /* there was no memory for some */
};

void bb_counts_init(struct bb_counts *counts, unsigned vcpus);
void bb_counts_fini(struct bb_counts *counts);

/*
 * Takes the counts of the calling thread, which is vCPU number `vcpu` and whose context has that
 * name: of every region that the spaces show now. `counts` may be NULL.
 */
void bb_counts_take(struct bb_counts *counts, struct bb_ctx *ctx, unsigned vcpu, const char *name);

/* A table: each region's sum, then each vCPU that accessed it. */
void bb_counts_print(FILE *out, const struct bb_counts *counts);

#endif
