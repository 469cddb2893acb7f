/* SPDX-License-Identifier: MIT */
/*
 * The instructions that guest payloads need, one function each. Some hypervisors run CPL 0 code in
 * an instruction emulator, so only the plainest forms are used: one mov for a device access, and
 * no fence instructions, whose work the exit of a device access does anyway.
 */
#ifndef BUSBAR_VMM_GUESTS_CPU_H
#define BUSBAR_VMM_GUESTS_CPU_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t mmio_read64(uint64_t gpa)
{
    uint64_t value;
    __asm__ volatile("movq (%1), %0" : "=a"(value) : "d"(gpa) : "memory");
    return value;
}

static inline void mmio_write64(uint64_t gpa, uint64_t value)
{
    __asm__ volatile("movq %0, (%1)" : : "a"(value), "d"(gpa) : "memory");
}

static inline uint32_t mmio_read32(uint64_t gpa)
{
    uint32_t value;
    __asm__ volatile("movl (%1), %0" : "=a"(value) : "d"(gpa) : "memory");
    return value;
}

static inline void mmio_write32(uint64_t gpa, uint32_t value)
{
    __asm__ volatile("movl %0, (%1)" : : "a"(value), "d"(gpa) : "memory");
}

static inline void port_write8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void port_write32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t port_read8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint64_t msr_read(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void msr_write(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr"
                     :
                     : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(msr)
                     : "memory");
}

static inline uint64_t tsc_read(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void cpu_pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* Sleeps until an interrupt has been taken; one that is pending already counts. */
static inline void cpu_wait_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static inline _Noreturn void cpu_stop(void)
{
    for (;;) {
        __asm__ volatile("cli; hlt" : : : "memory");
    }
}

#endif
