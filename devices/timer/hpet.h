/* SPDX-License-Identifier: MIT */
/*
 * High Precision Event Timers (IA-PC HPET 1.0a): one block of 3 to 32 timers over one 64-bit main
 * counter that follows the engine's virtual clock.
 *
 * Every register read is lock-free: it never waits for a writer, wherever that writer is stopped,
 * and the main counter never runs backwards across a halt. Writes and expiries are serialised by
 * the device's lock; which path each register has is in the region's table (bb_region_paths()).
 * The head of hpet.c says what is modelled and where it departs from the specification.
 *
 * Ownership: bb_hpet_create() to bb_device_remove(bb_hpet_device(hpet)), which frees it; region
 * and device belong to it. Lines belong to the caller and must outlive the device.
 * Threads: everything the guest can do, from any vCPU thread at once; the functions here from
 * threads with a context, and the three queries from any.
 */
#ifndef BUSBAR_DEVICES_TIMER_HPET_H
#define BUSBAR_DEVICES_TIMER_HPET_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_hpet;

enum {
    BB_HPET_TIMERS_MIN = 3,
    BB_HPET_TIMERS_MAX = 32,
    BB_HPET_PINS = 32,          /* what Tn_INT_ROUTE_CNF can name */
    BB_HPET_REGION_BYTES = 1024 /* as specified; 25 timers and more need 32 more bytes each */
};

struct bb_hpet_config {
    const char *name;       /* copied; NULL: "hpet" */
    struct bb_clock *clock; /* the engine's: bb_engine_clock() */
    unsigned timers;        /* 3 to 32; 0: 3 */
    uint64_t tick_ns;       /* of the main counter, 1 to 100; 0: 10 */

    /* Tn_INT_ROUTE_CAP: the I/O APIC pins that each timer can be routed to. */
    uint32_t route_cap[BB_HPET_TIMERS_MAX];
    /* By pin, the I/O APIC's input lines; NULL: an interrupt routed there goes nowhere. */
    struct bb_line *lines[BB_HPET_PINS];
    /* Where timers 0 and 1 go while LEG_RT_CNF is set: in a PC, the I/O APIC's pins 2 and 8 (and
     * the 8259's inputs 0 and 8, through a line that feeds both). NULL: nowhere. */
    struct bb_line *legacy_irq0;
    struct bb_line *legacy_irq8;

    bool msi_capable;    /* Tn_FSB_INT_DEL_CAP, for all timers */
    bool legacy_capable; /* LEG_RT_CAP */
    uint8_t revision_id; /* REV_ID; 0, which the specification forbids: 1 */
    uint16_t vendor_id;  /* VENDOR_ID; 0: 0x8086 */
};

/*
 * Creates an HPET in its reset state (halted, all timers off); map bb_hpet_region() to use it.
 * Returns BB_OK; BB_E_INVAL without a clock; BB_E_RANGE for a bad number of timers or tick;
 * BB_E_LIMIT where a line has no room for a source; BB_E_NOMEM.
 * Threads: a control thread with a context; allocates.
 * Lifetime: until bb_device_remove() of its device completes.
 */
BB_API int bb_hpet_create(struct bb_ctx *ctx, const struct bb_hpet_config *config,
                          struct bb_hpet **hpet, struct bb_error *err);

/* The device, for removal; and its one region, of class LOCKFREE. Threads: any; wait-free. */
BB_API struct bb_device *bb_hpet_device(const struct bb_hpet *hpet);
BB_API struct bb_region *bb_hpet_region(const struct bb_hpet *hpet);

/*
 * Returns the low half of the capability register, as ACPI's HPET table wants it (Event Timer Block
 * ID). Threads: any; wait-free. Source: IA-PC HPET 1.0a, 2.3.4 and 3.2.4.
 */
BB_API uint32_t bb_hpet_block_id(const struct bb_hpet *hpet);

BB_END_DECLS

#endif
