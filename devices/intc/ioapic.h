/* SPDX-License-Identifier: MIT */
/*
 * I/O APIC: Intel 82093AA as later chip sets have it, version 0x20 with an EOI register.
 *
 * Each input pin pulls an interrupt line; its redirection entry turns edges and levels into
 * messages, sent by bb_msi_send(). Everything is lock-free: an entry is one atomic word, and a
 * write, a delivery and an end of interrupt are each one compare-and-swap of it.
 *
 * Ownership: bb_ioapic_create() to bb_device_remove() on bb_ioapic_device(), which frees it; its
 * pins' lines are disconnected then.
 *
 *   | function               | vCPU thread | control thread | in a callback        |
 *   |------------------------|-------------|----------------|----------------------|
 *   | bb_ioapic_eoi, _stats  | yes         | yes            | yes                  |
 *   | the line sinks         | yes         | yes            | yes, under any lock  |
 *   | bb_ioapic_connect      | -           | yes            | no                   |
 *   | create, remove         | -           | yes            | remove: yes          |
 */
#ifndef BUSBAR_DEVICES_INTC_IOAPIC_H
#define BUSBAR_DEVICES_INTC_IOAPIC_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_ioapic;

enum {
    BB_IOAPIC_PINS_MIN = 24,
    BB_IOAPIC_PINS_MAX = 120, /* what the 8-bit register index reaches */
    BB_IOAPIC_SIZE_BYTES = 0x1000,
};

/* Where a pin's interrupt goes, as an interrupt controller in the kernel must know it. */
struct bb_ioapic_route {
    bool valid;       /* unmasked, or Remote IRR is set so that its EOI is still awaited */
    uint64_t address; /* of the message */
    uint32_t data;    /* of the message; bit 15 where it is level-triggered */
};

/*
 * For a local APIC that has to be told the routes before they are used (KVM_SET_GSI_ROUTING: a
 * level interrupt on a vector that it doesn't know ends without an exit). With `install` set, a
 * guest's write of a redirection entry takes effect, and can be read back, once a table that
 * contains it is installed; the access that wrote it returns after that.
 */
struct bb_ioapic_routes {
    /*
     * Installs the whole table, one row a pin. Called from the epilogue of accesses, with nothing
     * held but a narrow lock of the I/O APIC's own, which makes calls follow one another; may
     * block in the operating system. Returns BB_OK; anything else leaves the entries that would
     * have changed masked, until a later call succeeds.
     */
    int (*install)(struct bb_ctx *ctx, void *opaque, const struct bb_ioapic_route *table,
                   unsigned pins);
    /* Called the first time `install` fails, with what it returned. May be NULL. */
    void (*failed)(void *opaque, int result);
    void *opaque;
};

struct bb_ioapic_config {
    const char *name;               /* NULL: "ioapic" */
    unsigned pins;                  /* 24 to 120; 0: 24 */
    uint8_t id;                     /* initial APIC ID, 0 to 15 */
    struct bb_ioapic_routes routes; /* install NULL: entries take effect in the write */
    /*
     * Called at the end of a level interrupt of `pin`, before the line is looked at again, so that
     * a source that keeps no level of its own (an irqfd) can state it anew. Runs in a read section
     * and must not block. May be NULL.
     */
    void (*resample)(struct bb_ctx *ctx, void *opaque, unsigned pin);
    void *resample_opaque;
};

/*
 * Creates an I/O APIC with all entries masked. `config` NULL means all defaults.
 * Returns BB_OK; BB_E_RANGE for pins or id; BB_E_NOMEM; whatever bb_device_create() returns.
 * Threads: control; allocates. Lifetime: until its device is removed.
 */
BB_API int bb_ioapic_create(struct bb_ctx *ctx, const struct bb_ioapic_config *config,
                            struct bb_ioapic **ioapic, struct bb_error *err);

/* The device, for removal; and its region, 4 KiB, for 0xfec00000. Threads: any; wait-free. */
BB_API struct bb_device *bb_ioapic_device(const struct bb_ioapic *ioapic);
BB_API struct bb_region *bb_ioapic_region(const struct bb_ioapic *ioapic);

/*
 * What bb_line_create() connects a line to a pin with; then tell the pin its line:
 *     sink = bb_ioapic_line_sink(ioapic, 4);
 *     bb_line_create(ctx, "serial", &sink, &line, err);
 *     bb_ioapic_connect(ctx, ioapic, 4, line);
 * A pin number out of range yields a sink that does nothing. Threads: control.
 */
BB_API struct bb_line_sink bb_ioapic_line_sink(struct bb_ioapic *ioapic, unsigned pin);

/*
 * Tells a pin which line to pull. `line` NULL disconnects it; do so before the line is destroyed.
 * Returns BB_OK, BB_E_RANGE for a pin that isn't there, BB_E_EXIST where it has another line.
 * Threads: control, while the line's sources are silent.
 */
BB_API int bb_ioapic_connect(struct bb_ctx *ctx, struct bb_ioapic *ioapic, unsigned pin,
                             struct bb_line *line);

/*
 * A local APIC's end of interrupt for `vector` (KVM_EXIT_IOAPIC_EOI): clears Remote IRR of every
 * level entry with that vector, and delivers again where the line is still asserted.
 * Threads: any with a context, also in callbacks; lock-free.
 */
BB_API void bb_ioapic_eoi(struct bb_ctx *ctx, struct bb_ioapic *ioapic, uint8_t vector);

struct bb_ioapic_stats {
    uint64_t sends_refused;    /* messages that nobody took */
    uint64_t routes_installed; /* calls of routes.install that succeeded */
    uint64_t routes_failed;    /* and that didn't */
};

/* Counters since creation, each on its own. Threads: any. */
BB_API struct bb_ioapic_stats bb_ioapic_stats(const struct bb_ioapic *ioapic);

BB_END_DECLS

#endif
