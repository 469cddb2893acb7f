/* SPDX-License-Identifier: MIT */
/*
 * The storm's phases, written once and compiled twice: into the guest payload, where an access is
 * an instruction that traps, and into the monitor for host threads, where it is a call.
 *
 * The platform, storm_host.h or guests/storm_guest.h, defines struct storm_cpu (with the members
 * control, self and index) and, for it:
 *   storm_read64, storm_write64, storm_write32   one device access
 *   storm_ticks                                  a time stamp, not moved past an access
 *   storm_relax                                  sleeps for a while; takes what is pending
 *   storm_interrupts                             how many came by a route, so far
 *   storm_interrupt_begins                       level route: which timer's status is to be cleared
 *   storm_stopped                                the run is to end early
 *   storm_fail                                   the run can't go on, and why
 *   STORM_CHAINED                                1: a read's time stamp is also the next one's
 */
#ifndef BUSBAR_VMM_STORM_PHASES_H
#define BUSBAR_VMM_STORM_PHASES_H

#include "../base/atomic.h"
#include "storm_abi.h"

#include <stdbool.h>

/* IA-PC HPET 1.0a, section 2.3: registers and bits. */
enum {
    HPET_GCAP = 0x000,
    HPET_GEN_CONF = 0x010,
    HPET_GINTR_STS = 0x020,
    HPET_MAIN_CNT = 0x0f0,
    HPET_TIMER = 0x100,
    HPET_TIMER_STEP = 0x20,
    HPET_TIMER_CMP = 0x08,
    HPET_TIMER_FSB = 0x10,
};
#define HPET_ENABLE_CNF UINT64_C(1)
#define HPET_COUNT_SIZE_CAP UINT64_C(0x2000)
#define HPET_TN_INT_TYPE_LEVEL UINT64_C(0x2)
#define HPET_TN_INT_ENB UINT64_C(0x4)
#define HPET_TN_ROUTE_SHIFT 9
#define HPET_TN_FSB_EN UINT64_C(0x4000)
#define HPET_TN_FSB_CAP UINT64_C(0x8000)

/*
 * Vectors. Each level pin has one of its own, since an EOI speaks to the I/O APIC in vectors and
 * would otherwise end the interrupts of other pins as well.
 */
enum {
    STORM_VECTOR_MSI = 0x40,
    STORM_VECTOR_EDGE = 0x41,
    STORM_VECTOR_WAKE = 0x42,
    STORM_VECTOR_LEVEL = 0x50, /* + timer */
    STORM_VECTOR_SPURIOUS = 0xff,
};

enum { STORM_RELAX_NS = 100000, STORM_RELAX_MAX_NS = 250000000 }; /* sleeps of a wait double */

struct storm_cpu;

/* Everything that one vCPU or thread does. */
void storm_phases_run(struct storm_cpu *cpu);

/* Waits until every vCPU has come here. */
void storm_barrier(struct storm_cpu *cpu);

/* vCPU 0, before the first barrier: what each timer can do and which pin it gets. */
void storm_timers_prepare(struct storm_cpu *cpu);
/* The timers phase of one vCPU. */
void storm_timers_run(struct storm_cpu *cpu);

#ifdef STORM_ON_HOST
#include "storm_host.h"
#else
#include "guests/storm_guest.h"
#endif

/* How long to sleep next. With many vCPUs, waking must not be all that happens. */
static inline uint64_t storm_relax_longer(const struct storm_control *control, uint64_t pause_ns)
{
    uint64_t most_ns = (uint64_t)control->vcpus * STORM_RELAX_NS * 2;
    if (most_ns > STORM_RELAX_MAX_NS) {
        most_ns = STORM_RELAX_MAX_NS;
    }
    return pause_ns * 2 < most_ns ? pause_ns * 2 : most_ns;
}

#endif
