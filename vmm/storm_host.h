/* SPDX-License-Identifier: MIT */
/*
 * The storm's platform on host threads (storm_phases.h): an access is a call into the engine, an
 * interrupt is a message that the inbox counted.
 */
#ifndef BUSBAR_VMM_STORM_HOST_H
#define BUSBAR_VMM_STORM_HOST_H

#include "../engine/access.h"
#include "storm_phases.h"

#include <time.h>

/* One time stamp a read: two would cost as much as the read itself. */
enum { STORM_CHAINED = 1 };

struct storm_cpu {
    struct storm_control *control;
    struct storm_vcpu *self;
    uint32_t index;
    struct bb_ctx *ctx;
    struct bb_space *mmio;
    struct bb_storm_inbox *inbox;
    const int *stop;                   /* the caller's; may be NULL */
    uint64_t inbox_base[STORM_ROUTES]; /* what was in the inbox before the run */
};

/* Messages that came for a destination by a route; for level ones, also ends those that are new. */
uint64_t storm_interrupts(struct storm_cpu *cpu, enum storm_route route);
void storm_interrupt_begins(struct storm_cpu *cpu, uint32_t timer);
void storm_fail(struct storm_cpu *cpu, uint32_t failure, uint64_t detail);

static inline uint64_t storm_read64(const struct storm_cpu *cpu, uint64_t gpa)
{
    uint64_t value = UINT64_MAX;
    (void)bb_mmio_read(cpu->ctx, cpu->mmio, gpa, 8, &value);
    return value;
}

static inline void storm_write64(const struct storm_cpu *cpu, uint64_t gpa, uint64_t value)
{
    (void)bb_mmio_write(cpu->ctx, cpu->mmio, gpa, 8, value);
}

static inline void storm_write32(const struct storm_cpu *cpu, uint64_t gpa, uint32_t value)
{
    (void)bb_mmio_write(cpu->ctx, cpu->mmio, gpa, 4, value);
}

static inline uint64_t storm_ticks(void)
{
#if defined(__x86_64__)
    uint32_t low, high;
    /* lfence: the access before has completed. What follows starts with work of its own. */
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

static inline void storm_relax(const struct storm_cpu *cpu, uint64_t pause_ns)
{
    (void)cpu;
    struct timespec pause = {(time_t)(pause_ns / 1000000000u), (long)(pause_ns % 1000000000u)};
    nanosleep(&pause, NULL);
}

static inline bool storm_stopped(const struct storm_cpu *cpu)
{
    /* Relaxed: what is behind `failed` is read after the threads' join. Acquire: pairs with the
     * caller that wants the run ended. */
    return bb_load_relaxed(&cpu->control->failed) || (cpu->stop && bb_load_acquire(cpu->stop));
}

#endif
