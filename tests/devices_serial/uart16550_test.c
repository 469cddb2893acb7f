/* SPDX-License-Identifier: MIT */
/* The UART's registers, interrupts and FIFOs, one thread at a time. */
#include "fixture.h"

#include <criterion/criterion.h>

enum verb { OUT, IN, RECEIVE, RAW, IRQ };

struct step {
    enum verb verb;
    unsigned reg;   /* OUT, IN */
    unsigned value; /* written, expected, or the byte received; IRQ: the line */
};

static void run(struct rig *rig, const struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t byte = (uint8_t)steps[i].value;
        switch (steps[i].verb) {
        case OUT:
            out(rig, steps[i].reg, byte);
            break;
        case IN: {
            uint8_t got = in(rig, steps[i].reg);
            cr_assert_eq(got, byte, "step %zu: register %u reads %#x, not %#x", i, steps[i].reg,
                         got, byte);
            break;
        }
        case RECEIVE:
            cr_assert_eq(bb_uart16550_receive(rig->ctx, rig->uart, &byte, 1), 1, "step %zu", i);
            break;
        case RAW:
            bb_uart16550_receive_raw(rig->ctx, rig->uart, &byte, 1);
            break;
        case IRQ:
            cr_assert_eq(irq(rig), steps[i].value != 0, "step %zu: the line", i);
            break;
        }
    }
}

#define RUN(...)                                                                                   \
    do {                                                                                           \
        static const struct step steps[] = {__VA_ARGS__};                                          \
        struct rig *rig = set_up();                                                                \
        run(rig, steps, BB_ARRAY_LEN(steps));                                                      \
        tear_down(rig);                                                                            \
    } while (0)

Test(uart16550, registers_reset_as_in_table_iii)
{
    RUN({IN, IER, 0}, {IN, IIR, 0x01}, {IN, LCR, 0}, {IN, MCR, 0}, {IN, LSR, 0x60}, {IN, MSR, 0xb0},
        {IRQ, 0, 0});
}

Test(uart16550, writable_bits_are_the_data_sheets)
{
    RUN({OUT, IER, 0xff}, {IN, IER, 0x0f}, {OUT, MCR, 0xff}, {IN, MCR, 0x1f}, {OUT, SCR, 0xa5},
        {IN, SCR, 0xa5}, {OUT, LCR, 0x7f}, {IN, LCR, 0x7f}, {OUT, LSR, 0x00}, {IN, LSR, 0x60});
}

Test(uart16550, dlab_reveals_the_divisor_and_hides_data_and_enables)
{
    RUN({OUT, IER, 0x05}, {OUT, LCR, 0x83}, {OUT, DLL, 0x01}, {OUT, DLM, 0x02}, {IN, DLL, 0x01},
        {IN, DLM, 0x02}, {OUT, LCR, 0x03}, {IN, IER, 0x05}, {IN, RBR, 0x00}, {OUT, LCR, 0x80},
        {IN, DLL, 0x01}, {IN, DLM, 0x02});
}

Test(uart16550, a_driver_that_probes_finds_a_16550a)
{
    /* FIFO bits in IIR tell the 16550A; the scratch register tells the 8250; DLAB the rest. */
    RUN({OUT, IER, 0x00}, {IN, IER, 0x00}, {OUT, IER, 0x0f}, {IN, IER, 0x0f}, {OUT, IER, 0x00},
        {OUT, MCR, 0x10 | 0x0a}, {IN, MSR, 0x90 | 0x02}, {OUT, MCR, 0x00}, {OUT, FCR, 0x01},
        {IN, IIR, 0xc1}, {OUT, FCR, 0x00}, {IN, IIR, 0x01});
}

Test(uart16550, transmitted_bytes_go_to_the_backend_in_order)
{
    struct rig *rig = set_up();

    out(rig, THR, 'o');
    out(rig, THR, 'k');
    cr_assert_eq(rig->sent_count, 2);
    cr_assert_eq(rig->sent[0], 'o');
    cr_assert_eq(rig->sent[1], 'k');
    cr_assert_eq(in(rig, LSR), 0x60, "always empty");
    out(rig, LCR, 0x80);
    out(rig, THR, 'x');
    cr_assert_eq(rig->sent_count, 2, "that was the divisor");
    tear_down(rig);
}

Test(uart16550, thr_empty_interrupts_when_enabled_and_after_each_byte)
{
    RUN({OUT, IER, 0x02}, {IRQ, 0, 1}, {IN, IIR, 0x02}, {IRQ, 0, 0}, {IN, IIR, 0x01},
        {OUT, THR, 'a'}, {IRQ, 0, 1}, {IN, IIR, 0x02}, {IRQ, 0, 0},
        /* enabled again: reported again, which drivers test for */
        {OUT, IER, 0x00}, {OUT, IER, 0x02}, {IRQ, 0, 1}, {IN, IIR, 0x02}, {IRQ, 0, 0},
        /* enabled while enabled: nothing new */
        {OUT, IER, 0x02}, {IRQ, 0, 0});
}

Test(uart16550, received_data_interrupts_until_read)
{
    RUN({OUT, IER, 0x01}, {RECEIVE, 0, 'a'}, {IRQ, 0, 1}, {IN, IIR, 0x04}, {IN, IIR, 0x04},
        {IN, LSR, 0x61}, {IN, RBR, 'a'}, {IRQ, 0, 0}, {IN, IIR, 0x01}, {IN, LSR, 0x60});
}

Test(uart16550, interrupts_are_identified_by_priority)
{
    RUN({OUT, IER, 0x0f}, {OUT, FCR, 0x01}, {IN, IIR, 0xc2}, /* THR empty, taken */
        {OUT, MCR, 0x12}, {OUT, MCR, 0x00},                  /* the modem lines change */
        {OUT, THR, 'x'}, {RECEIVE, 0, 'a'}, {RAW, 0, 1}, {RAW, 0, 2}, {RAW, 0, 3}, {RAW, 0, 4},
        {RAW, 0, 5}, {RAW, 0, 6}, {RAW, 0, 7}, {RAW, 0, 8}, {RAW, 0, 9}, {RAW, 0, 10}, {RAW, 0, 11},
        {RAW, 0, 12}, {RAW, 0, 13}, {RAW, 0, 14}, {RAW, 0, 15}, {RAW, 0, 16}, {IN, IIR, 0xc6},
        {IN, LSR, 0x63},                   /* line status: the overrun, cleared by LSR */
        {IN, IIR, 0xc4}, {OUT, FCR, 0x03}, /* data, gone with the FIFO */
        {IN, IIR, 0xc2}, {IN, IIR, 0xc0},  /* THR empty, then modem status */
        {IN, MSR, 0xba}, {IN, IIR, 0xc1}, {IRQ, 0, 0});
}

Test(uart16550, the_trigger_level_tells_data_from_time_out)
{
    static const struct {
        uint8_t fcr;
        unsigned level;
    } rows[] = {{0x01, 1}, {0x41, 4}, {0x81, 8}, {0xc1, 14}};

    for (size_t i = 0; i < BB_ARRAY_LEN(rows); i++) {
        struct rig *rig = set_up();
        out(rig, IER, 0x01);
        out(rig, FCR, rows[i].fcr);
        for (unsigned n = 1; n <= BB_UART16550_FIFO_BYTES; n++) {
            cr_assert_eq(receive(rig, "x"), 1);
            cr_assert_eq(in(rig, IIR), n >= rows[i].level ? 0xc4 : 0xcc, "level %u, %u bytes",
                         rows[i].level, n);
            cr_assert(irq(rig));
        }
        for (unsigned n = BB_UART16550_FIFO_BYTES; n > 0; n--) {
            cr_assert_eq(in(rig, IIR), n >= rows[i].level ? 0xc4 : 0xcc);
            (void)in(rig, RBR);
        }
        cr_assert_eq(in(rig, IIR), 0xc1);
        tear_down(rig);
    }
}

Test(uart16550, the_fifo_holds_16_in_order_and_a_backend_is_told_of_room)
{
    struct rig *rig = set_up();

    out(rig, FCR, 0x01);
    cr_assert_eq(receive(rig, "0123456789abcdefgh"), 16);
    cr_assert_eq(receive(rig, "g"), 0);
    cr_assert_eq(in(rig, LSR), 0x61, "flow control: no overrun");
    cr_assert_eq(rig->room_calls, 0);
    cr_assert_eq(in(rig, RBR), '0');
    cr_assert_eq(rig->room_calls, 1);
    cr_assert_eq(in(rig, RBR), '1');
    cr_assert_eq(rig->room_calls, 1, "once until it is turned away again");
    cr_assert_eq(receive(rig, "gh"), 2);
    for (const char *c = "23456789abcdefgh"; *c != '\0'; c++) {
        cr_assert_eq(in(rig, RBR), *c);
    }
    cr_assert_eq(in(rig, LSR), 0x60);
    tear_down(rig);
}

Test(uart16550, an_overrun_loses_the_newest_in_fifo_mode)
{
    struct rig *rig = set_up();

    out(rig, FCR, 0x01);
    out(rig, IER, 0x04);
    bb_uart16550_receive_raw(rig->ctx, rig->uart, (const uint8_t *)"0123456789abcdefX", 17);
    cr_assert(irq(rig));
    cr_assert_eq(in(rig, IIR), 0xc6);
    cr_assert_eq(in(rig, LSR), 0x63);
    cr_assert(!irq(rig));
    cr_assert_eq(in(rig, LSR), 0x61, "cleared by its reading");
    for (const char *c = "0123456789abcdef"; *c != '\0'; c++) {
        cr_assert_eq(in(rig, RBR), *c);
    }
    tear_down(rig);
}

Test(uart16550, an_overrun_loses_the_oldest_in_character_mode)
{
    RUN({RAW, 0, 'a'}, {RAW, 0, 'b'}, {IN, LSR, 0x63}, {IN, RBR, 'b'}, {IN, LSR, 0x60});
}

Test(uart16550, changing_the_mode_or_resetting_empties_the_receiver)
{
    RUN({RECEIVE, 0, 'a'}, {OUT, FCR, 0x01}, {IN, LSR, 0x60}, {RECEIVE, 0, 'b'}, {OUT, FCR, 0x01},
        {IN, LSR, 0x61}, {OUT, FCR, 0x03}, {IN, LSR, 0x60}, {RECEIVE, 0, 'c'}, {OUT, FCR, 0x00},
        {IN, LSR, 0x60}, {RECEIVE, 0, 'd'}, {IN, RBR, 'd'});
}

Test(uart16550, loop_back_returns_data_and_modem_lines)
{
    struct rig *rig = set_up();

    out(rig, FCR, 0x01);
    out(rig, MCR, 0x10);
    cr_assert_eq(in(rig, MSR), 0x0b, "CTS, DSR and DCD fell");
    out(rig, THR, 'L');
    cr_assert_eq(rig->sent_count, 0, "nothing leaves");
    cr_assert_eq(in(rig, RBR), 'L');
    cr_assert_eq(receive(rig, "outside"), 0, "nothing enters");
    static const struct {
        uint8_t mcr;
        uint8_t msr;
    } rows[] = {
        {0x11, 0x22}, /* DTR: DSR */
        {0x12, 0x13}, /* RTS: CTS; DSR fell */
        {0x14, 0x41}, /* OUT1: RI, whose rise sets nothing; CTS fell */
        {0x18, 0x8c}, /* OUT2: DCD; RI's trailing edge */
        {0x1f, 0xf3},
    };
    for (size_t i = 0; i < BB_ARRAY_LEN(rows); i++) {
        out(rig, MCR, rows[i].mcr);
        uint8_t msr = in(rig, MSR);
        if (i == 1) {
            cr_assert_eq(msr, 0x13);
        } else {
            cr_assert_eq(msr, rows[i].msr, "row %zu: %#x", i, msr);
        }
        cr_assert_eq(in(rig, MSR), rows[i].msr & 0xf0, "deltas are cleared by reading");
    }
    uint64_t calls = rig->room_calls;
    out(rig, MCR, 0x00);
    cr_assert_eq(rig->room_calls, calls + 1, "the wire is back");
    cr_assert_eq(receive(rig, "in"), 2);
    tear_down(rig);
}

Test(uart16550, wide_accesses_are_split_into_bytes)
{
    struct rig *rig = set_up();
    uint64_t value;

    out(rig, SCR, 0x5a);
    out(rig, LCR, 0x03);
    cr_assert_eq(bb_mmio_read(rig->ctx, rig->ports, PORT + MSR, 2, &value), BB_OK);
    cr_assert_eq(value, 0x5ab0);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->ports, PORT + FCR, 2, 0x1b01), BB_OK);
    cr_assert_eq(in(rig, LCR), 0x1b);
    cr_assert_eq(in(rig, IIR), 0xc1);
    tear_down(rig);
}

Test(uart16550, a_hundred_thousand_random_accesses_do_no_harm, .timeout = 120)
{
    struct rig *rig = set_up();
    uint64_t state = seed(4);
    uint64_t began = state;
    uint64_t value;

    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = next_random(&state);
        unsigned size = 1u << (r >> 8 & 3);
        switch (r & 7) {
        case 0: {
            uint8_t bytes[20] = {(uint8_t)(r >> 16)};
            (void)bb_uart16550_receive(rig->ctx, rig->uart, bytes, (r >> 24) % 20);
            break;
        }
        case 1: {
            uint8_t bytes[20] = {(uint8_t)(r >> 16)};
            bb_uart16550_receive_raw(rig->ctx, rig->uart, bytes, (r >> 24) % 20);
            break;
        }
        case 2:
        case 3:
        case 4:
            (void)bb_mmio_read(rig->ctx, rig->ports, PORT + (r >> 16 & 7), size, &value);
            break;
        default:
            (void)bb_mmio_write(rig->ctx, rig->ports, PORT + (r >> 16 & 7), size, r >> 32);
            break;
        }
    }
    /* Whatever it went through, a driver can bring it up. */
    out(rig, LCR, 0x03);
    out(rig, MCR, 0x00);
    out(rig, IER, 0x00);
    out(rig, FCR, 0x00);
    (void)in(rig, LSR);
    (void)in(rig, MSR);
    cr_assert(!irq(rig), "seed %llu", (unsigned long long)began);
    cr_assert_eq(in(rig, LSR), 0x60, "seed %llu", (unsigned long long)began);
    out(rig, IER, 0x01);
    cr_assert_eq(receive(rig, "z"), 1);
    cr_assert(irq(rig));
    cr_assert_eq(in(rig, RBR), 'z');
    tear_down(rig);
}
