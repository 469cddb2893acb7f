/* SPDX-License-Identifier: MIT */
/* The 8254 and port B: what guests that calibrate, latch and read back find. */
#include "fixture.h"

#include <criterion/criterion.h>

/* A length of time in which exactly `ticks` pass, from the moment of loading. */
static uint64_t ns_of(uint64_t ticks)
{
    return (ticks * UINT64_C(1000000000) + BB_I8254_HZ - 1) / BB_I8254_HZ;
}

static void load(struct rig *rig, unsigned channel, unsigned mode, unsigned count)
{
    outb(rig, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    outb(rig, 0x40 + channel, (uint8_t)count);
    outb(rig, 0x40 + channel, (uint8_t)(count >> 8));
}

static unsigned read_latched(struct rig *rig, unsigned channel)
{
    outb(rig, 0x43, (uint8_t)(channel << 6));
    unsigned low = inb(rig, 0x40 + channel);
    return low | (unsigned)inb(rig, 0x40 + channel) << 8;
}

static bool out2(struct rig *rig)
{
    return (inb(rig, 0x61) & 0x20) != 0;
}

Test(i8254, a_tsc_calibration_sees_channel_2_come_up_after_its_count)
{
    struct rig *rig = set_up();

    /* The sequence of a PC kernel: gate up, speaker off, mode 0, wait for OUT2. */
    outb(rig, 0x61, (inb(rig, 0x61) & ~0x02) | 0x01);
    load(rig, 2, 0, 11931);
    cr_assert(!out2(rig));
    step_ns(rig, ns_of(11931) - 1);
    cr_assert(!out2(rig));
    step_ns(rig, 1);
    cr_assert(out2(rig));
    step_ns(rig, ns_of(70000));
    cr_assert(out2(rig), "mode 0 stays up");
    load(rig, 2, 0, 5);
    cr_assert(!out2(rig), "until it is loaded again");
    tear_down(rig);
}

Test(i8254, the_gate_of_channel_2_holds_its_count)
{
    struct rig *rig = set_up();

    outb(rig, 0x61, 0x00);
    load(rig, 2, 0, 1000);
    step_ns(rig, ns_of(5000));
    cr_assert_eq(read_latched(rig, 2), 1000, "closed: not a tick");
    cr_assert(!out2(rig));
    outb(rig, 0x61, 0x01);
    step_ns(rig, ns_of(400));
    cr_assert_eq(read_latched(rig, 2), 600);
    outb(rig, 0x61, 0x00);
    step_ns(rig, ns_of(5000));
    cr_assert_eq(read_latched(rig, 2), 600);
    outb(rig, 0x61, 0x01);
    step_ns(rig, ns_of(600));
    cr_assert(out2(rig));
    tear_down(rig);
}

Test(i8254, a_latched_count_stands_while_time_goes_on)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 0x1234);
    step_ns(rig, ns_of(0x34));
    outb(rig, 0x43, 0x00);
    step_ns(rig, ns_of(0x500));
    outb(rig, 0x43, 0x00);
    cr_assert_eq(inb(rig, 0x40), 0x00, "a second latch does nothing");
    step_ns(rig, ns_of(0x100));
    cr_assert_eq(inb(rig, 0x40), 0x12);
    cr_assert_eq(read_latched(rig, 0), 0x1200 - 0x600);
    tear_down(rig);
}

Test(i8254, mode_2_reloads_and_mode_3_counts_by_twos)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 100);
    step_ns(rig, ns_of(99));
    cr_assert_eq(read_latched(rig, 0), 1);
    step_ns(rig, ns_of(100) - ns_of(99));
    cr_assert_eq(read_latched(rig, 0), 100);
    outb(rig, 0x61, 0x01);
    load(rig, 2, 3, 100);
    cr_assert(out2(rig));
    step_ns(rig, ns_of(10));
    cr_assert_eq(read_latched(rig, 2), 80);
    step_ns(rig, ns_of(50) - ns_of(10));
    cr_assert(!out2(rig), "half the period low");
    cr_assert_eq(read_latched(rig, 2), 100);
    step_ns(rig, ns_of(100) - ns_of(50));
    cr_assert(out2(rig));
    outb(rig, 0x61, 0x00);
    cr_assert(out2(rig), "a closed gate takes it high");
    tear_down(rig);
}

Test(i8254, a_count_of_zero_is_the_largest)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 0);
    cr_assert_eq(read_latched(rig, 0), 0);
    step_ns(rig, ns_of(1));
    cr_assert_eq(read_latched(rig, 0), 0xffff);
    step_ns(rig, ns_of(65536) - ns_of(1));
    cr_assert_eq(read_latched(rig, 0), 0);
    tear_down(rig);
}

Test(i8254, bcd_counts_in_decimal)
{
    struct rig *rig = set_up();

    outb(rig, 0x43, 0x35);
    outb(rig, 0x40, 0x00);
    outb(rig, 0x40, 0x10);
    cr_assert_eq(read_latched(rig, 0), 0x1000);
    step_ns(rig, ns_of(1));
    cr_assert_eq(read_latched(rig, 0), 0x0999);
    tear_down(rig);
}

Test(i8254, single_byte_accesses_use_their_half)
{
    struct rig *rig = set_up();

    outb(rig, 0x43, 0x14); /* low byte only, mode 2 */
    outb(rig, 0x40, 200);
    step_ns(rig, ns_of(50));
    cr_assert_eq(inb(rig, 0x40), 150);
    cr_assert_eq(inb(rig, 0x40), 150);
    outb(rig, 0x43, 0x24); /* high byte only */
    outb(rig, 0x40, 2);
    cr_assert_eq(inb(rig, 0x40), 2);
    step_ns(rig, ns_of(1));
    cr_assert_eq(inb(rig, 0x40), 1);
    tear_down(rig);
}

Test(i8254, read_back_latches_status_and_count_of_several_channels)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 500);
    outb(rig, 0x43, 0xb0); /* channel 2: mode 0, count awaited */
    step_ns(rig, ns_of(20));
    outb(rig, 0x43, 0xc0 | 0x02 | 0x08);
    cr_assert_eq(inb(rig, 0x40), 0x80 | 0x34, "OUT high, loaded, word access, mode 2");
    cr_assert_eq(inb(rig, 0x40), 480 & 0xff);
    cr_assert_eq(inb(rig, 0x40), 480 >> 8);
    cr_assert_eq(inb(rig, 0x42), 0x40 | 0x30, "OUT low, null count, mode 0");
    tear_down(rig);
}

Test(i8254, port_b_toggles_refresh_and_keeps_its_low_bits)
{
    struct rig *rig = set_up();
    unsigned toggles = 0;

    outb(rig, 0x61, 0xff);
    cr_assert_eq(inb(rig, 0x61) & 0xcf, 0x0f);
    bool last = (inb(rig, 0x61) & 0x10) != 0;
    for (unsigned i = 0; i < 1000; i++) {
        step_ns(rig, 1000);
        bool now = (inb(rig, 0x61) & 0x10) != 0;
        toggles += now != last;
        last = now;
    }
    cr_assert_eq(toggles, 1000000 / 15085);
    tear_down(rig);
}

Test(i8254, channel_0_pulses_its_line_once_a_period)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 11932);
    for (unsigned i = 1; i <= 50; i++) {
        step_ns(rig, ns_of(11932 * i) - ns_of(11932 * (i - 1)));
        cr_assert_eq(bb_line_read(rig->irq0).rises, i);
    }
    outb(rig, 0x43, 0x34); /* stops until it is loaded */
    step_ns(rig, ns_of(11932 * 10));
    cr_assert_eq(bb_line_read(rig->irq0).rises, 50);
    load(rig, 0, 3, 11932);
    step_ns(rig, ns_of(11932));
    cr_assert_eq(bb_line_read(rig->irq0).rises, 51);
    tear_down(rig);
}

Test(i8254, channel_0_in_mode_0_raises_its_line_until_it_is_loaded_again)
{
    struct rig *rig = set_up();

    load(rig, 0, 0, 1000);
    step_ns(rig, ns_of(1000) - 1);
    cr_assert(!bb_line_read(rig->irq0).level);
    step_ns(rig, 1);
    cr_assert(bb_line_read(rig->irq0).level);
    step_ns(rig, ns_of(100000));
    cr_assert_eq(bb_line_read(rig->irq0).rises, 1);
    load(rig, 0, 0, 1000);
    cr_assert(!bb_line_read(rig->irq0).level);
    step_ns(rig, ns_of(1000));
    cr_assert_eq(bb_line_read(rig->irq0).rises, 2);
    tear_down(rig);
}

Test(i8254, a_tiny_period_cannot_flood_the_host)
{
    struct rig *rig = set_up();

    load(rig, 0, 2, 2);
    step_ns(rig, 1000000);
    cr_assert_leq(bb_line_read(rig->irq0).rises, 1000000 / 25000 + 1);
    cr_assert_gt(bb_line_read(rig->irq0).rises, 0);
    tear_down(rig);
}
