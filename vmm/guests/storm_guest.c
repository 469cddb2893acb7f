/* SPDX-License-Identifier: MIT */
/*
 * The storm's payload: how a vCPU starts, takes interrupts and gives up. The phases are in
 * storm_phases.c and storm_timers.c, which host threads run too.
 *
 * A vCPU finds its own storm_vcpu by its stack pointer, since the stack lies in the same aligned
 * block (storm_abi.h): handlers need no other register for it.
 */
#include "../storm_phases.h"

/* The stubs of storm_entry.S, STUB_BYTES apart. */
extern const uint8_t storm_fault_stubs[], storm_interrupt_stubs[];
enum { STUB_BYTES = 16, FAULTS = 32 };
/* storm_interrupt_stubs in order: one for each route, then these. */
enum { STUB_WAKE = STORM_ROUTES, STUB_SPURIOUS };

struct idt_entry {
    uint16_t offset_low, selector;
    uint8_t stack, type;
    uint16_t offset_mid;
    uint32_t offset_high, zero;
};
static struct idt_entry idt[256];

_Noreturn void storm_main(uint64_t number);
_Noreturn void storm_fault(uint64_t vector, uint64_t rip, uint64_t code);
void storm_interrupt(uint32_t stub);

static struct storm_control *control_block(void)
{
    return (struct storm_control *)(uintptr_t)STORM_CONTROL_GPA;
}

static struct storm_vcpu *own_block(void)
{
    uintptr_t sp;
    __asm__ volatile("movq %%rsp, %0" : "=r"(sp));
    return (struct storm_vcpu *)(sp & ~(uintptr_t)(STORM_VCPU_BYTES - 1));
}

static void idt_set(unsigned vector, const uint8_t *code)
{
    uint64_t at = (uintptr_t)code;
    idt[vector] = (struct idt_entry){
        .offset_low = (uint16_t)at,
        .selector = STORM_CS,
        .type = 0x8e, /* present, interrupt gate: IF is off inside */
        .offset_mid = (uint16_t)(at >> 16),
        .offset_high = (uint32_t)(at >> 32),
    };
}

static const uint8_t *interrupt_stub(unsigned stub)
{
    return storm_interrupt_stubs + stub * STUB_BYTES;
}

static void idt_prepare(void)
{
    for (unsigned i = 0; i < FAULTS; i++) {
        idt_set(i, storm_fault_stubs + i * STUB_BYTES);
    }
    idt_set(STORM_VECTOR_MSI, interrupt_stub(STORM_MSI));
    idt_set(STORM_VECTOR_EDGE, interrupt_stub(STORM_EDGE));
    for (unsigned timer = 0; timer < STORM_TIMERS_MAX; timer++) {
        idt_set(STORM_VECTOR_LEVEL + timer, interrupt_stub(STORM_LEVEL));
    }
    idt_set(STORM_VECTOR_WAKE, interrupt_stub(STUB_WAKE));
    idt_set(STORM_VECTOR_SPURIOUS, interrupt_stub(STUB_SPURIOUS));
}

static void idt_load(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } pointer = {sizeof(idt) - 1, (uintptr_t)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

_Noreturn void storm_give_up(uint32_t failure, uint64_t rip, uint64_t detail)
{
    struct storm_control *control = control_block();
    uint32_t expected = 0;
    /* Relaxed: the host looks once every vCPU has stopped. */
    if (bb_cas_relaxed(&control->failed, &expected, 1)) {
        control->failure = failure;
        control->failure_vcpu =
            (uint32_t)(((uintptr_t)own_block() - STORM_VCPU_GPA) / STORM_VCPU_BYTES);
        control->failure_rip = rip;
        control->failure_detail = detail;
        port_write8(STORM_EXIT_PORT, 1);
    }
    cpu_stop();
}

_Noreturn void storm_fault(uint64_t vector, uint64_t rip, uint64_t code)
{
    storm_give_up((uint32_t)vector, rip, code);
}

void storm_interrupt(uint32_t stub)
{
    struct storm_vcpu *self = own_block();
    if (stub == STUB_SPURIOUS) {
        return; /* a spurious interrupt takes no EOI */
    }
    if (stub < STORM_ROUTES) {
        volatile uint64_t *count = &self->interrupts[stub];
        *count = *count + 1;
    }
    if (stub == STORM_LEVEL) {
        uint32_t vector = STORM_VECTOR_LEVEL + (uint32_t) * (volatile uint64_t *)&self->level_timer;
        uint64_t in_service = msr_read(MSR_X2APIC_ISR + vector / 32);
        self->timers.ended_early += !(in_service >> vector % 32 & 1);
        /* Before the EOI: else the line is still high then, and the pin fires again. */
        mmio_write64(control_block()->hpet_gpa + HPET_GINTR_STS,
                     UINT64_C(1) << (vector - STORM_VECTOR_LEVEL));
    }
    msr_write(MSR_X2APIC_EOI, 0);
}

static void apic_start(void)
{
    msr_write(MSR_APIC_BASE, msr_read(MSR_APIC_BASE) | 0xc00); /* global enable, x2APIC mode */
    msr_write(MSR_X2APIC_SVR, 0x100 | STORM_VECTOR_SPURIOUS);
    msr_write(MSR_X2APIC_TPR, 0);
    msr_write(MSR_X2APIC_DIVIDE, 0xb); /* by 1 */
    msr_write(MSR_X2APIC_LVT_TIMER, STORM_VECTOR_WAKE);
}

_Noreturn void storm_main(uint64_t number)
{
    struct storm_cpu cpu = {control_block(), own_block(), (uint32_t)number};
    struct storm_control *control = cpu.control;
    if (cpu.index == 0) {
        idt_prepare();
        bb_store_release(&control->ready, 1); /* the table, for the others' loads below */
    }
    while (!bb_load_acquire(&control->ready)) {
        cpu_pause();
    }
    idt_load();
    apic_start();
    cpu.self->apic_id = msr_read(MSR_X2APIC_ID);
    if (cpu.self->apic_id != cpu.index) {
        storm_give_up(STORM_FAIL_APIC_ID, 0, cpu.self->apic_id);
    }
    storm_phases_run(&cpu);
    if (cpu.index == 0) {
        bb_store_release(&control->finished, 1);
        port_write8(STORM_EXIT_PORT, 0);
    }
    cpu_stop();
}
