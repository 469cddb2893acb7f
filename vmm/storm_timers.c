/* SPDX-License-Identifier: MIT */
/*
 * The storm's timers phase: each vCPU again and again borrows an HPET timer, has it interrupt this
 * vCPU once, by a message of its own or through an I/O APIC pin, and counts what arrives.
 *
 * A round counts as programmed when the counter, read after the timer was enabled, is still below
 * the comparator: then the interrupt must come. Where the vCPU was held up for so long that it is
 * not, the match may have passed before the enable; if nothing has come after a wait, the round is
 * counted as missed and begun again with a later comparator.
 */
#include "storm_phases.h"

/* Bits of an I/O APIC redirection entry (82093AA, section 3.2.4). */
enum { IOREDTBL = 0x10, REDIR_LEVEL = 1 << 15, REDIR_MASKED = 1 << 16 };
enum { IOREGSEL = 0x00, IOWIN = 0x10, IOAPIC_PINS_MAX = 24 };

enum { TRIES_MAX = 8 };
enum { WAIT_DUE_SECONDS = 5, WAIT_PASSED_SECONDS = 1 };
#define FEMTOSECONDS UINT64_C(1000000000000000)

static uint64_t timer_gpa(const struct storm_control *control, uint32_t timer)
{
    return control->hpet_gpa + HPET_TIMER + (uint64_t)timer * HPET_TIMER_STEP;
}

void storm_timers_prepare(struct storm_cpu *cpu)
{
    struct storm_control *control = cpu->control;
    uint64_t capabilities = storm_read64(cpu, control->hpet_gpa + HPET_GCAP);
    uint32_t taken = 0;
    control->timers = ((uint32_t)(capabilities >> 8) & 31u) + 1; /* NUM_TIM_CAP is the last one */
    for (uint32_t timer = 0; timer < control->timers; timer++) {
        uint64_t conf = storm_read64(cpu, timer_gpa(control, timer));
        uint32_t routes = (uint32_t)(conf >> 32) & ~taken;
        if (conf & HPET_TN_FSB_CAP) {
            control->timer_has_msi |= 1u << timer;
        }
        /* The highest pin that no other timer has: the low ones belong to old devices. */
        control->timer_pin[timer] = STORM_NO_PIN;
        for (uint32_t pin = IOAPIC_PINS_MAX; pin-- > 0;) {
            if (routes & 1u << pin) {
                control->timer_pin[timer] = (uint8_t)pin;
                taken |= 1u << pin;
                break;
            }
        }
    }
}

static void ioapic_write(struct storm_cpu *cpu, uint32_t index, uint32_t value)
{
    storm_write32(cpu, cpu->control->ioapic_gpa + IOREGSEL, index);
    storm_write32(cpu, cpu->control->ioapic_gpa + IOWIN, value);
}

static void ioapic_route(struct storm_cpu *cpu, uint32_t pin, uint32_t low)
{
    struct storm_control *control = cpu->control;
    uint64_t pause_ns = STORM_RELAX_NS;
    /* Acquire: pairs with the release below. */
    while (bb_xchg_acquire(&control->ioapic_lock, 1)) {
        storm_relax(cpu, pause_ns);
        pause_ns = storm_relax_longer(control, pause_ns);
    }
    /* Masked while it is being changed: the two halves are written one after the other. */
    ioapic_write(cpu, IOREDTBL + 2 * pin, REDIR_MASKED);
    ioapic_write(cpu, IOREDTBL + 2 * pin + 1, cpu->index << 24);
    ioapic_write(cpu, IOREDTBL + 2 * pin, low);
    bb_store_release(&control->ioapic_lock, 0);
}

static bool timer_serves(const struct storm_control *control, uint32_t timer,
                         enum storm_route route)
{
    return route == STORM_MSI ? control->timer_has_msi >> timer & 1
                              : control->timer_pin[timer] != STORM_NO_PIN;
}

/*
 * The timer that this vCPU uses for a route: by its number, so that a wait looks at one word only.
 * Returns false where no timer can do it.
 */
static bool timer_choose(const struct storm_cpu *cpu, enum storm_route route, uint32_t *chosen)
{
    const struct storm_control *control = cpu->control;
    uint32_t serving = 0;
    for (uint32_t timer = 0; timer < control->timers; timer++) {
        serving += timer_serves(control, timer, route);
    }
    if (serving == 0) {
        return false;
    }
    uint32_t skip = cpu->index % serving, timer = 0;
    while (!timer_serves(control, timer, route) || skip-- != 0) {
        timer++;
    }
    *chosen = timer;
    return true;
}

/* Waits until the timer is this vCPU's alone; false where the run is to end instead. */
static bool timer_borrow(struct storm_cpu *cpu, uint32_t timer)
{
    struct storm_control *control = cpu->control;
    uint32_t *owner = &control->timer_owner[timer];
    uint64_t pause_ns = STORM_RELAX_NS;
    while (!storm_stopped(cpu)) {
        uint32_t expected = 0;
        /* Acquire: pairs with timer_return(), so that its last user's writes came before. */
        if (bb_cas_acquire(owner, &expected, cpu->index + 1)) {
            return true;
        }
        storm_relax(cpu, pause_ns);
        pause_ns = storm_relax_longer(control, pause_ns);
    }
    return false;
}

static void timer_return(struct storm_cpu *cpu, uint32_t timer)
{
    bb_store_release(&cpu->control->timer_owner[timer], 0); /* pairs with timer_borrow() */
}

struct round {
    struct storm_cpu *cpu;
    uint32_t timer;
    enum storm_route route;
    uint64_t ahead_ticks; /* from now to the comparator */
    uint64_t second_ticks;
};

/* Programs the timer for one interrupt. Returns the comparator. */
static uint64_t round_program(const struct round *r)
{
    struct storm_cpu *cpu = r->cpu;
    struct storm_control *control = cpu->control;
    uint64_t gpa = timer_gpa(control, r->timer);
    uint64_t conf = HPET_TN_INT_ENB;
    uint32_t pin = control->timer_pin[r->timer];
    storm_write64(cpu, gpa, 0);
    storm_write64(cpu, control->hpet_gpa + HPET_GINTR_STS, UINT64_C(1) << r->timer);
    if (r->route == STORM_MSI) {
        uint64_t address = UINT64_C(0xfee00000) | (uint64_t)cpu->index << 12;
        storm_write64(cpu, gpa + HPET_TIMER_FSB, address << 32 | STORM_VECTOR_MSI);
        conf |= HPET_TN_FSB_EN;
    } else if (r->route == STORM_EDGE) {
        conf |= (uint64_t)pin << HPET_TN_ROUTE_SHIFT;
        ioapic_route(cpu, pin, STORM_VECTOR_EDGE);
    } else {
        conf |= (uint64_t)pin << HPET_TN_ROUTE_SHIFT | HPET_TN_INT_TYPE_LEVEL;
        storm_interrupt_begins(cpu, r->timer);
        ioapic_route(cpu, pin, (STORM_VECTOR_LEVEL + r->timer) | REDIR_LEVEL);
    }
    uint64_t now = storm_read64(cpu, control->hpet_gpa + HPET_MAIN_CNT);
    storm_write64(cpu, gpa + HPET_TIMER_CMP, now + r->ahead_ticks);
    storm_write64(cpu, gpa, conf);
    return now + r->ahead_ticks;
}

static void round_disarm(const struct round *r)
{
    storm_write64(r->cpu, timer_gpa(r->cpu->control, r->timer), 0);
    if (r->route != STORM_MSI) {
        ioapic_route(r->cpu, r->cpu->control->timer_pin[r->timer], REDIR_MASKED);
    }
}

/* Programs one interrupt and waits for it. Returns false where the round must be begun again. */
static bool round_run(const struct round *r)
{
    struct storm_cpu *cpu = r->cpu;
    struct storm_timers *timers = &cpu->self->timers;
    uint64_t counter_gpa = cpu->control->hpet_gpa + HPET_MAIN_CNT;
    uint64_t before = storm_interrupts(cpu, r->route);
    uint64_t comparator = round_program(r);
    bool due = storm_read64(cpu, counter_gpa) < comparator;
    uint64_t wait_until =
        comparator + r->second_ticks * (due ? WAIT_DUE_SECONDS : WAIT_PASSED_SECONDS);
    uint64_t pause_ns = STORM_RELAX_NS, now;
    do {
        now = storm_read64(cpu, counter_gpa);
        storm_relax(cpu, pause_ns); /* what is pending is taken here, before it is counted */
        pause_ns = storm_relax_longer(cpu->control, pause_ns);
    } while (storm_interrupts(cpu, r->route) == before && now < wait_until && !storm_stopped(cpu));
    round_disarm(r);
    bool came = storm_interrupts(cpu, r->route) != before;
    if (!came && !due) {
        timers->missed++;
        return false;
    }
    timers->programmed[r->route]++;
    timers->arrived[r->route] += came;
    return true;
}

void storm_timers_run(struct storm_cpu *cpu)
{
    struct storm_control *control = cpu->control;
    struct storm_timers *timers = &cpu->self->timers;
    uint64_t period_fs = storm_read64(cpu, control->hpet_gpa + HPET_GCAP) >> 32;
    uint64_t second_ticks = FEMTOSECONDS / period_fs;
    if (cpu->index >= 255) { /* 255 is broadcast; ids beyond don't fit in a destination */
        return;
    }
    for (uint64_t i = 0; i < control->timer_rounds && !storm_stopped(cpu); i++) {
        struct round round = {.cpu = cpu,
                              .route = (enum storm_route)((cpu->index + i) % STORM_ROUTES),
                              .ahead_ticks = second_ticks / 500,
                              .second_ticks = second_ticks};
        if (!timer_choose(cpu, round.route, &round.timer)) {
            continue; /* the results show none programmed */
        }
        if (!timer_borrow(cpu, round.timer)) {
            break;
        }
        for (unsigned tries = 1; !round_run(&round) && tries < TRIES_MAX; tries++) {
            round.ahead_ticks *= 2;
        }
        timer_return(cpu, round.timer);
    }
    /* Whatever is still on its way was asked for by nobody. */
    storm_relax(cpu, STORM_RELAX_NS * 10);
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        timers->spurious[route] =
            storm_interrupts(cpu, (enum storm_route)route) - timers->arrived[route];
    }
}
