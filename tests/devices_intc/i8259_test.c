/* SPDX-License-Identifier: MIT */
/* The 8259 pair: probing, initialisation, priorities, edges and levels, the acknowledge cycle. */
#include "../../devices/intc/i8259.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "fixture.h"

struct pc {
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *ports;
    struct bb_i8259 *pic;
    struct bb_line *intr;
    struct bb_device *wires;
    struct bb_line *line[BB_I8259_PINS];
    struct bb_source *source[BB_I8259_PINS];
};

static struct pc *pc_set_up(void)
{
    static const bb_gpa_t base[BB_I8259_PARTS] = {0x20, 0xa0, 0x4d0};
    struct pc *pc = calloc(1, sizeof(*pc));
    struct bb_engine_config engine = {.clock_mode = BB_CLOCK_MANUAL};
    struct bb_space_config space = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_device_config wires = {.name = "wires"};
    struct bb_error err = {0};

    cr_assert_not_null(pc);
    cr_assert_eq(bb_engine_create(&engine, &pc->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(pc->engine, "main", &pc->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(pc->ctx, &space, &pc->ports, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_line_create(pc->ctx, "intr", NULL, &pc->intr, &err), BB_OK, "%s", err.text);
    cr_assert_eq(
        bb_i8259_create(pc->ctx, &(struct bb_i8259_config){.intr = pc->intr}, &pc->pic, &err),
        BB_OK, "%s", err.text);
    for (unsigned part = 0; part < BB_I8259_PARTS; part++) {
        cr_assert_eq(
            bb_space_map(pc->ctx, pc->ports, base[part], bb_i8259_region(pc->pic, part), &err),
            BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_device_create(pc->ctx, &wires, &pc->wires, &err), BB_OK, "%s", err.text);
    for (unsigned pin = 0; pin < BB_I8259_PINS; pin++) {
        struct bb_line_sink sink = bb_i8259_line_sink(pc->pic, pin);
        cr_assert_eq(bb_line_create(pc->ctx, "irq", &sink, &pc->line[pin], &err), BB_OK);
        cr_assert_eq(bb_i8259_connect(pc->ctx, pc->pic, pin, pc->line[pin]),
                     pin == 2 ? BB_E_RANGE : BB_OK);
        cr_assert_eq(bb_source_create(pc->ctx, pc->wires, pc->line[pin], &pc->source[pin], &err),
                     BB_OK);
    }
    return pc;
}

static void pc_tear_down(struct pc *pc)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(pc->ctx, bb_i8259_device(pc->pic), &err), BB_OK);
    cr_assert_eq(bb_device_remove_wait(pc->ctx, pc->wires, &err), BB_OK);
    for (unsigned pin = 0; pin < BB_I8259_PINS; pin++) {
        cr_assert_eq(bb_line_destroy(pc->ctx, pc->line[pin], &err), BB_OK);
    }
    cr_assert_eq(bb_line_destroy(pc->ctx, pc->intr, &err), BB_OK);
    cr_assert_eq(bb_ctx_detach(pc->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(pc->engine, &err), BB_OK, "%s", err.text);
    free(pc);
}

static void outb(struct pc *pc, unsigned port, uint8_t value)
{
    cr_assert_eq(bb_mmio_write(pc->ctx, pc->ports, port, 1, value), BB_OK);
}

static uint8_t inb(struct pc *pc, unsigned port)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(pc->ctx, pc->ports, port, 1, &value), BB_OK);
    return (uint8_t)value;
}

/* As every PC guest: vectors at 0x20 and 0x28, all inputs open. */
static void initialise(struct pc *pc)
{
    outb(pc, 0x20, 0x11);
    outb(pc, 0xa0, 0x11);
    outb(pc, 0x21, 0x20);
    outb(pc, 0xa1, 0x28);
    outb(pc, 0x21, 0x04);
    outb(pc, 0xa1, 0x02);
    outb(pc, 0x21, 0x01);
    outb(pc, 0xa1, 0x01);
    outb(pc, 0x21, 0x00);
    outb(pc, 0xa1, 0x00);
}

static bool intr(struct pc *pc)
{
    return bb_line_read(pc->intr).level;
}

static void pulse(struct pc *pc, unsigned pin)
{
    bb_source_pulse(pc->ctx, pc->source[pin]);
}

static void level(struct pc *pc, unsigned pin, bool high)
{
    bb_source_set(pc->ctx, pc->source[pin], high);
}

Test(i8259, a_guest_that_probes_finds_mask_registers)
{
    struct pc *pc = pc_set_up();

    outb(pc, 0xa1, 0xff);
    outb(pc, 0x21, 0xfb);
    cr_assert_eq(inb(pc, 0x21), 0xfb, "what Linux writes to see whether a PIC is there");
    cr_assert_eq(inb(pc, 0xa1), 0xff);
    initialise(pc);
    cr_assert_eq(inb(pc, 0x21), 0x00);
    cr_assert_eq(inb(pc, 0x20), 0x00, "IRR");
    pc_tear_down(pc);
}

Test(i8259, elcr_keeps_its_writable_bits)
{
    struct pc *pc = pc_set_up();

    cr_assert_eq(inb(pc, 0x4d0), 0);
    outb(pc, 0x4d0, 0xff);
    outb(pc, 0x4d1, 0xff);
    cr_assert_eq(inb(pc, 0x4d0), 0xf8);
    cr_assert_eq(inb(pc, 0x4d1), 0xde);
    pc_tear_down(pc);
}

Test(i8259, an_edge_is_latched_acknowledged_once_and_ended)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    pulse(pc, 4);
    cr_assert(intr(pc));
    cr_assert_eq(inb(pc, 0x20), 0x10, "IRR");
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x24);
    cr_assert(!intr(pc));
    outb(pc, 0x20, 0x0b);
    cr_assert_eq(inb(pc, 0x20), 0x10, "ISR");
    outb(pc, 0x20, 0x0a);
    cr_assert_eq(inb(pc, 0x20), 0x00, "IRR");
    pulse(pc, 4);
    cr_assert(!intr(pc), "itself in service");
    outb(pc, 0x20, 0x20);
    cr_assert(intr(pc));
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x24);
    outb(pc, 0x20, 0x64);
    cr_assert(!intr(pc));
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x27, "spurious");
    pc_tear_down(pc);
}

Test(i8259, higher_priorities_nest_and_masks_hold_back)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    pulse(pc, 5);
    pulse(pc, 3);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x23);
    cr_assert(!intr(pc), "5 waits for 3");
    pulse(pc, 1);
    cr_assert(intr(pc), "1 does not");
    outb(pc, 0x21, 0x02);
    cr_assert(!intr(pc));
    outb(pc, 0x20, 0x20);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x25);
    outb(pc, 0x20, 0x20);
    outb(pc, 0x21, 0x00);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x21, "kept while masked");
    pc_tear_down(pc);
}

Test(i8259, the_slave_comes_through_the_cascade)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    pulse(pc, 12);
    cr_assert(intr(pc));
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x2c);
    outb(pc, 0x20, 0x0b);
    outb(pc, 0xa0, 0x0b);
    cr_assert_eq(inb(pc, 0x20), 0x04);
    cr_assert_eq(inb(pc, 0xa0), 0x10);
    outb(pc, 0xa0, 0x20);
    outb(pc, 0x20, 0x20);
    cr_assert_eq(inb(pc, 0x20), 0x00);
    cr_assert_eq(inb(pc, 0xa0), 0x00);
    cr_assert(!intr(pc));
    pc_tear_down(pc);
}

Test(i8259, a_level_stays_requested_while_asserted)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    outb(pc, 0x4d1, 0x02);
    level(pc, 9, true);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x29);
    outb(pc, 0xa0, 0x61);
    outb(pc, 0x20, 0x62);
    cr_assert(intr(pc), "still asserted");
    level(pc, 9, false);
    cr_assert(!intr(pc));
    pc_tear_down(pc);
}

Test(i8259, initialisation_forgets_edges_and_reads_levels_anew)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    outb(pc, 0x4d0, 0x20);
    pulse(pc, 4);
    level(pc, 5, true);
    initialise(pc);
    cr_assert_eq(inb(pc, 0x20), 0x20);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x25);
    pc_tear_down(pc);
}

Test(i8259, rotation_moves_the_lowest_priority)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    pulse(pc, 3);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x23);
    outb(pc, 0x20, 0xa0);
    pulse(pc, 3);
    pulse(pc, 4);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x24, "3 is lowest now");
    outb(pc, 0x20, 0x20);
    outb(pc, 0x20, 0xc7);
    pulse(pc, 4);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x23);
    pc_tear_down(pc);
}

Test(i8259, poll_takes_the_request_into_service)
{
    struct pc *pc = pc_set_up();

    initialise(pc);
    outb(pc, 0x20, 0x0c);
    cr_assert_eq(inb(pc, 0x20), 0x00);
    pulse(pc, 6);
    outb(pc, 0x20, 0x0c);
    cr_assert_eq(inb(pc, 0x20), 0x86);
    outb(pc, 0x20, 0x0b);
    cr_assert_eq(inb(pc, 0x20), 0x40);
    pc_tear_down(pc);
}

Test(i8259, automatic_end_of_interrupt_leaves_nothing_in_service)
{
    struct pc *pc = pc_set_up();

    outb(pc, 0x20, 0x13);
    outb(pc, 0x21, 0x40);
    outb(pc, 0x21, 0x03);
    pulse(pc, 0);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x40);
    outb(pc, 0x20, 0x0b);
    cr_assert_eq(inb(pc, 0x20), 0x00);
    pc_tear_down(pc);
}

struct pulser {
    struct pc *pc;
    unsigned pin;
    uint32_t *stop;
};

static void *pulse_on(void *opaque)
{
    struct pulser *pulser = opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(pulser->pc->engine, "pulser", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (bb_load_relaxed(pulser->stop) == 0) {
        bb_source_pulse(ctx, pulser->pc->source[pulser->pin]);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(i8259, no_edge_is_left_in_the_inbox, .timeout = 120)
{
    struct pc *pc = pc_set_up();
    uint32_t stop = 0;
    struct pulser pulsers[2] = {{pc, 3, &stop}, {pc, 12, &stop}};
    pthread_t threads[2];
    uint64_t until_ns = host_ns() + stress_ns();

    initialise(pc);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, pulse_on, &pulsers[i]), 0);
    }
    while (host_ns() < until_ns) {
        uint8_t vector = bb_i8259_acknowledge(pc->ctx, pc->pic);
        cr_assert(vector == 0x23 || vector == 0x2c || vector == 0x27, "%#x", vector);
        outb(pc, 0xa0, 0x20);
        outb(pc, 0x20, 0x20);
    }
    bb_store_relaxed(&stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        (void)bb_i8259_acknowledge(pc->ctx, pc->pic);
        outb(pc, 0xa0, 0x20);
        outb(pc, 0x20, 0x20);
    }
    cr_assert(!intr(pc));
    pulse(pc, 3);
    cr_assert(intr(pc));
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x23);
    pc_tear_down(pc);
}

Test(i8259, a_hundred_thousand_random_accesses_do_no_harm, .timeout = 120)
{
    static const unsigned ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    struct pc *pc = pc_set_up();
    uint64_t state = seed(2);
    uint64_t began = state;
    uint64_t value;

    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = next_random(&state);
        unsigned port = ports[(r >> 8) % BB_ARRAY_LEN(ports)];
        unsigned size = 1u << (r >> 16 & 3);
        switch (r & 7) {
        case 0:
            pulse(pc, r >> 32 & 15);
            break;
        case 1:
            level(pc, r >> 32 & 15, r >> 36 & 1);
            break;
        case 2:
            (void)bb_i8259_acknowledge(pc->ctx, pc->pic);
            break;
        case 3:
        case 4:
            (void)bb_mmio_read(pc->ctx, pc->ports, port, size, &value);
            break;
        default:
            (void)bb_mmio_write(pc->ctx, pc->ports, port, size, r >> 40);
            break;
        }
    }
    initialise(pc);
    outb(pc, 0x4d0, 0);
    outb(pc, 0x4d1, 0);
    initialise(pc);
    cr_assert(!intr(pc), "seed %llu", (unsigned long long)began);
    pulse(pc, 7);
    cr_assert_eq(bb_i8259_acknowledge(pc->ctx, pc->pic), 0x27, "seed %llu",
                 (unsigned long long)began);
    pc_tear_down(pc);
}
