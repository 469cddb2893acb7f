/* SPDX-License-Identifier: MIT */
/*
 * Prints the tables of paths of every device of the tree as docs/memory-model.md has them: the
 * machine of the stall test, and what a device has besides in another configuration.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../../devices/intc/ioapic.h"
#include "../stall/machine.h"

static const char *path_name(enum bb_path path)
{
    switch (path) {
    case BB_PATH_WAIT_FREE:
        return "wait-free";
    case BB_PATH_LOCK_FREE:
        return "lock-free";
    case BB_PATH_NARROW_LOCK:
        return "lock";
    case BB_PATH_SLEEPS:
        return "sleeps";
    }
    return "?";
}

static const char *class_name(enum bb_class klass)
{
    switch (klass) {
    case BB_CLASS_LOCKFREE:
        return "LOCKFREE";
    case BB_CLASS_DEVICE_LOCK:
        return "DEVICE_LOCK";
    case BB_CLASS_MAY_SLEEP:
        return "MAY_SLEEP";
    case BB_CLASS_EXTERNAL_LOCK:
        return "EXTERNAL_LOCK";
    }
    return "?";
}

static void print_region(const struct bb_region *region, const char *suffix)
{
    size_t rows;
    const struct bb_path_row *row = bb_region_paths(region, &rows);

    for (size_t i = 0; i < rows; i++) {
        printf("| %s%s | %s | %s | 0x%03" PRIx64 "–0x%03" PRIx64 " | %s | %s | %s |\n",
               bb_region_name(region), suffix, class_name(bb_region_class(region)), row[i].name,
               row[i].first, row[i].last, path_name(row[i].read), path_name(row[i].write),
               row[i].waits_for != NULL ? row[i].waits_for : "");
    }
}

static int install(struct bb_ctx *ctx, void *opaque, const struct bb_ioapic_route *table,
                   unsigned pins)
{
    (void)ctx;
    (void)opaque;
    (void)table;
    (void)pins;
    return BB_OK;
}

int main(void)
{
    static struct machine machine;
    const struct bb_ioapic_config routed = {.routes = {.install = install}};
    struct bb_ioapic *ioapic;
    struct bb_error err;

    machine_build(&machine);
    printf("| region | class | register | offsets | read | write | waits for |\n");
    printf("|---|---|---|---|---|---|---|\n");
    for (unsigned i = 0; i < machine.mapped_count; i++) {
        print_region(machine.mapped[i].region, "");
        if (machine.mapped[i].region == bb_ioapic_region(machine.ioapic)) {
            if (bb_ioapic_create(machine.ctx, &routed, &ioapic, &err) != BB_OK) {
                fprintf(stderr, "print_paths: %s\n", err.text);
                return 1;
            }
            print_region(bb_ioapic_region(ioapic), ", with routes");
        }
    }
    return 0;
}
