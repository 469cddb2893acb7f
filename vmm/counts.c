/* SPDX-License-Identifier: MIT */
/* Collecting and printing counts of accesses; see counts.h. */
#include "counts.h"

#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"
#include "../engine/device.h"
#include "../memory/inspect.h"

void bb_counts_init(struct bb_counts *counts, unsigned vcpus)
{
    *counts = (struct bb_counts){.vcpus = vcpus};
    pthread_mutex_init(&counts->lock, NULL);
}

void bb_counts_fini(struct bb_counts *counts)
{
    for (size_t i = 0; i < counts->count; i++) {
        free(counts->row[i].vcpu);
    }
    free(counts->row);
    pthread_mutex_destroy(&counts->lock);
}

/* One thread's taking. */
struct take {
    struct bb_counts *counts;
    struct bb_ctx *ctx;
    const char *name;
    unsigned vcpu;
    struct bb_region_counts found; /* of the region that is looked at */
};

static bool is_empty(const struct bb_region_counts *counts)
{
    return counts->reads == 0 && counts->writes == 0 && counts->refused == 0;
}

static void visit_context(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    struct take *take = opaque;

    if (name != NULL && strcmp(name, take->name) == 0) {
        take->found = *counts;
    }
}

/* Under the lock. NULL without memory. */
static struct bb_counts_row *row_of(struct bb_counts *counts, const struct bb_region *region)
{
    for (size_t i = 0; i < counts->count; i++) {
        if (counts->row[i].key == region) {
            return &counts->row[i];
        }
    }
    if (counts->count == counts->room) {
        size_t room = counts->room == 0 ? 32 : 2 * counts->room;
        struct bb_counts_row *row = realloc(counts->row, room * sizeof(row[0]));
        if (row == NULL) {
            return NULL;
        }
        counts->row = row;
        counts->room = room;
    }
    struct bb_counts_row *made = &counts->row[counts->count];
    const struct bb_device *device = bb_region_device(region);
    *made = (struct bb_counts_row){.key = region};
    made->vcpu = calloc(counts->vcpus, sizeof(made->vcpu[0]));
    if (made->vcpu == NULL) {
        return NULL;
    }
    snprintf(made->region, sizeof(made->region), "%s", bb_region_name(region));
    snprintf(made->device, sizeof(made->device), "%s",
             device == NULL ? "" : bb_device_name(device));
    counts->count++;
    return made;
}

static bool visit_range(void *opaque, const struct bb_range *range)
{
    struct take *take = opaque;
    struct bb_counts *counts = take->counts;

    take->found = (struct bb_region_counts){0};
    bb_region_counts_each(take->ctx, range->region, visit_context, take);
    if (is_empty(&take->found)) {
        return true;
    }
    pthread_mutex_lock(&counts->lock);
    struct bb_counts_row *row = row_of(counts, range->region);
    if (row != NULL) {
        row->vcpu[take->vcpu] = take->found; /* again the same where several ranges show it */
    } else {
        counts->incomplete = true;
    }
    pthread_mutex_unlock(&counts->lock);
    return true;
}

void bb_counts_take(struct bb_counts *counts, struct bb_ctx *ctx, unsigned vcpu, const char *name)
{
    struct take take = {.counts = counts, .ctx = ctx, .name = name, .vcpu = vcpu};

    for (unsigned i = 0; counts != NULL && i < BB_ARRAY_LEN(counts->spaces); i++) {
        if (counts->spaces[i] != NULL) {
            bb_flat_each(ctx, counts->spaces[i], visit_range, &take);
        }
    }
}

static void print_row(FILE *out, const char *region, const char *device, const char *vcpu,
                      const struct bb_region_counts *counts)
{
    fprintf(out, "  %-20s  %-16s  %5s  %12llu  %12llu  %10llu\n", region, device, vcpu,
            (unsigned long long)counts->reads, (unsigned long long)counts->writes,
            (unsigned long long)counts->refused);
}

void bb_counts_print(FILE *out, const struct bb_counts *counts)
{
    fprintf(out, "accesses by region and vCPU\n  %-20s  %-16s  %5s  %12s  %12s  %10s\n", "region",
            "device", "vCPU", "reads", "writes", "refused");
    for (size_t i = 0; i < counts->count; i++) {
        const struct bb_counts_row *row = &counts->row[i];
        struct bb_region_counts sum = {0};

        for (unsigned n = 0; n < counts->vcpus; n++) {
            sum.reads += row->vcpu[n].reads;
            sum.writes += row->vcpu[n].writes;
            sum.refused += row->vcpu[n].refused;
        }
        print_row(out, row->region, row->device, "all", &sum);
        for (unsigned n = 0; n < counts->vcpus; n++) {
            char number[16];
            snprintf(number, sizeof(number), "%u", n);
            if (!is_empty(&row->vcpu[n])) {
                print_row(out, "", "", number, &row->vcpu[n]);
            }
        }
    }
    if (counts->incomplete) {
        fputs("  some are missing: there was no memory for them\n", out);
    }
}
