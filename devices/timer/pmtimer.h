/* SPDX-License-Identifier: MIT */
/*
 * The ACPI power management timer (ACPI 6.5, section 4.8.2.1): a free-running counter of 24 or 32
 * bits at 3.579545 MHz, derived from the engine's virtual clock. One read-only register of four
 * bytes, PM_TMR; reads are lock-free and never go backwards except by wrapping. TMR_STS, the
 * overflow event, belongs to the PM1 event registers and is not here.
 *
 * Ownership: bb_pmtimer_create() to bb_device_remove(bb_pmtimer_device(timer)), which frees it.
 * Threads: the guest from any vCPU thread at once; creation with a context; queries from any.
 */
#ifndef BUSBAR_DEVICES_TIMER_PMTIMER_H
#define BUSBAR_DEVICES_TIMER_PMTIMER_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_pmtimer;

enum { BB_PMTIMER_HZ = 3579545, BB_PMTIMER_REGION_BYTES = 4 };

struct bb_pmtimer_config {
    const char *name;       /* copied; NULL: "pm-timer" */
    struct bb_clock *clock; /* the engine's: bb_engine_clock() */
    unsigned bits;          /* 24 or 32 (TMR_VAL_EXT in the FADT); 0: 24 */
};

/*
 * Creates a PM timer; map bb_pmtimer_region() into the port space.
 * Returns BB_OK; BB_E_INVAL without a clock; BB_E_RANGE for other widths; BB_E_NOMEM.
 * Threads: a control thread with a context; allocates.
 * Lifetime: until bb_device_remove() of its device completes.
 */
BB_API int bb_pmtimer_create(struct bb_ctx *ctx, const struct bb_pmtimer_config *config,
                             struct bb_pmtimer **timer, struct bb_error *err);

/* The device, for removal; and its one region, of class LOCKFREE. Threads: any; wait-free. */
BB_API struct bb_device *bb_pmtimer_device(const struct bb_pmtimer *timer);
BB_API struct bb_region *bb_pmtimer_region(const struct bb_pmtimer *timer);

/*
 * Returns the whole count, before it is cut to the register's width, at virtual time `now_ns`;
 * exact. Threads: any; no state. Source: ACPI 6.5, 4.8.2.1.
 */
BB_API uint64_t bb_pmtimer_count(bb_ns_t now_ns);

BB_END_DECLS

#endif
