/* SPDX-License-Identifier: MIT */
/*
 * The storm's platform in a guest (storm_phases.h). Everything runs at CPL 0, so that interrupts
 * can be taken. They are enabled only while a vCPU sleeps, so what a handler counts needs no more
 * than volatile.
 */
#ifndef BUSBAR_VMM_GUESTS_STORM_GUEST_H
#define BUSBAR_VMM_GUESTS_STORM_GUEST_H

#include "../storm_phases.h"
#include "cpu.h"

enum { STORM_CHAINED = 0 };

struct storm_cpu {
    struct storm_control *control;
    struct storm_vcpu *self;
    uint32_t index;
};

/* x2APIC: Intel SDM volume 3, table 11-6. */
enum {
    MSR_APIC_BASE = 0x1b,
    MSR_X2APIC_ID = 0x802,
    MSR_X2APIC_TPR = 0x808,
    MSR_X2APIC_EOI = 0x80b,
    MSR_X2APIC_SVR = 0x80f,
    MSR_X2APIC_ISR = 0x810, /* + vector / 32 */
    MSR_X2APIC_LVT_TIMER = 0x832,
    MSR_X2APIC_INITIAL_COUNT = 0x838,
    MSR_X2APIC_DIVIDE = 0x83e,
};

_Noreturn void storm_give_up(uint32_t failure, uint64_t rip, uint64_t detail);

static inline uint64_t storm_read64(const struct storm_cpu *cpu, uint64_t gpa)
{
    (void)cpu;
    return mmio_read64(gpa);
}

static inline void storm_write64(const struct storm_cpu *cpu, uint64_t gpa, uint64_t value)
{
    (void)cpu;
    mmio_write64(gpa, value);
}

static inline void storm_write32(const struct storm_cpu *cpu, uint64_t gpa, uint32_t value)
{
    (void)cpu;
    mmio_write32(gpa, value);
}

/* The exit that an access makes keeps it in its place; nothing else is timed. */
static inline uint64_t storm_ticks(void)
{
    return tsc_read();
}

/* The local APIC's timer, which counts about once a nanosecond, ends the sleep at the latest. */
static inline void storm_relax(const struct storm_cpu *cpu, uint64_t pause_ns)
{
    (void)cpu;
    msr_write(MSR_X2APIC_INITIAL_COUNT, pause_ns);
    cpu_wait_interrupt();
}

static inline uint64_t storm_interrupts(const struct storm_cpu *cpu, enum storm_route route)
{
    return *(const volatile uint64_t *)&cpu->self->interrupts[route];
}

static inline void storm_interrupt_begins(const struct storm_cpu *cpu, uint32_t timer)
{
    *(volatile uint64_t *)&cpu->self->level_timer = timer;
}

static inline bool storm_stopped(const struct storm_cpu *cpu)
{
    (void)cpu;
    return false; /* the monitor stops vCPUs without asking them */
}

static inline void storm_fail(const struct storm_cpu *cpu, uint32_t failure, uint64_t detail)
{
    (void)cpu;
    storm_give_up(failure, 0, detail);
}

#endif
