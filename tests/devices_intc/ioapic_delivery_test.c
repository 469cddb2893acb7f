/* SPDX-License-Identifier: MIT */
/* What an entry makes of its line, one thread at a time. */
#include "fixture.h"

#include <criterion/criterion.h>

Test(ioapic_delivery, messages_are_composed_from_the_entry)
{
    static const struct {
        uint64_t entry;
        uint64_t address;
        uint32_t data;
    } rows[] = {
        /* fixed, physical, edge */
        {UINT64_C(0x0000000000000031), 0xfee00000, 0x0031},
        {UINT64_C(0xff000000000000fe), 0xfeeff000, 0x00fe},
        /* logical */
        {UINT64_C(0x0300000000000840), 0xfee03004, 0x0040},
        /* lowest priority, logical */
        {UINT64_C(0x0f00000000000941), 0xfee0f00c, 0x0141},
        /* level, fixed and lowest */
        {UINT64_C(0x0100000000008050), 0xfee01000, 0xc050},
        {UINT64_C(0x0200000000008151), 0xfee02008, 0xc151},
        /* SMI, NMI, INIT, ExtINT */
        {UINT64_C(0x0000000000000200), 0xfee00000, 0x0200},
        {UINT64_C(0x0400000000000400), 0xfee04000, 0x0400},
        {UINT64_C(0x0400000000000500), 0xfee04000, 0x0500},
        {UINT64_C(0x0000000000000700), 0xfee00000, 0x0700},
        /* NMI that says level: an edge */
        {UINT64_C(0x0400000000008402), 0xfee04000, 0x0402},
        /* polarity changes nothing */
        {UINT64_C(0x0000000000002033), 0xfee00000, 0x0033},
    };
    struct rig *rig = set_up(NULL);

    for (size_t i = 0; i < BB_ARRAY_LEN(rows); i++) {
        unsigned pin = (unsigned)i;
        entry_write(rig, rig->ctx, pin, rows[i].entry);
        raise_pin(rig, pin);
        cr_assert_eq(rig->messages, i + 1, "row %zu", i);
        cr_assert_eq(rig->last_address, rows[i].address, "row %zu: %#llx", i,
                     (unsigned long long)rig->last_address);
        cr_assert_eq(rig->last_data, rows[i].data, "row %zu: %#x", i, rig->last_data);
    }
    tear_down(rig);
}

Test(ioapic_delivery, each_rise_of_an_edge_pin_is_one_message)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 1, 0x31);
    raise_pin(rig, 1);
    cr_assert_eq(delivered(rig, 0x31), 1);
    bb_source_set(rig->ctx, rig->source[1][1], true);
    cr_assert_eq(delivered(rig, 0x31), 1, "the OR did not rise");
    lower_pin(rig, 1);
    bb_source_set(rig->ctx, rig->source[1][1], false);
    cr_assert_eq(delivered(rig, 0x31), 1, "a fall is no edge");
    for (unsigned i = 0; i < 100; i++) {
        pulse_pin(rig, 1);
    }
    cr_assert_eq(delivered(rig, 0x31), 101);
    cr_assert_eq(entry_read(rig, rig->ctx, 1), 0x31, "Remote IRR is for levels");
    tear_down(rig);
}

Test(ioapic_delivery, edges_on_a_masked_pin_are_dropped)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 1, MASKED | 0x31);
    pulse_pin(rig, 1);
    raise_pin(rig, 1);
    entry_write(rig, rig->ctx, 1, 0x31);
    cr_assert_eq(delivered(rig, 0x31), 0, "neither the pulse nor the standing level");
    lower_pin(rig, 1);
    raise_pin(rig, 1);
    cr_assert_eq(delivered(rig, 0x31), 1, "the next rise counts");
    tear_down(rig);
}

Test(ioapic_delivery, edges_while_a_pin_was_level_triggered_are_not_delivered_later)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 1, LEVEL | MASKED | 0x31);
    pulse_pin(rig, 1);
    pulse_pin(rig, 1);
    entry_write(rig, rig->ctx, 1, 0x31);
    cr_assert_eq(delivered(rig, 0x31), 0);
    tear_down(rig);
}

Test(ioapic_delivery, a_level_is_delivered_once_until_its_end_of_interrupt)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    cr_assert_eq(delivered(rig, 0x39), 1);
    lower_pin(rig, 9);
    raise_pin(rig, 9);
    cr_assert_eq(delivered(rig, 0x39), 1, "Remote IRR holds it back");
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x3a);
    cr_assert_eq(delivered(rig, 0x39), 1, "another vector's EOI");
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(delivered(rig, 0x39), 2, "still asserted");
    cr_assert(entry_read(rig, rig->ctx, 9) & REMOTE_IRR);
    lower_pin(rig, 9);
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(delivered(rig, 0x39), 2, "no longer asserted");
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39);
    tear_down(rig);
}

Test(ioapic_delivery, the_eoi_register_does_what_the_function_does)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + EOIR, 4, 0x39), BB_OK);
    cr_assert_eq(delivered(rig, 0x39), 2);
    lower_pin(rig, 9);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + EOIR, 4, 0x39), BB_OK);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39);
    tear_down(rig);
}

Test(ioapic_delivery, one_eoi_ends_every_level_pin_of_that_vector)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 5, LEVEL | 0x50);
    entry_write(rig, rig->ctx, 6, LEVEL | 0x50);
    entry_write(rig, rig->ctx, 7, 0x50);
    raise_pin(rig, 5);
    raise_pin(rig, 6);
    cr_assert_eq(delivered(rig, 0x50), 2);
    lower_pin(rig, 5);
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x50);
    cr_assert_eq(delivered(rig, 0x50), 3, "pin 6 again, pin 5 not");
    cr_assert_eq(entry_read(rig, rig->ctx, 5), LEVEL | 0x50);
    cr_assert_eq(entry_read(rig, rig->ctx, 6), LEVEL | REMOTE_IRR | 0x50);
    tear_down(rig);
}

Test(ioapic_delivery, unmasking_delivers_a_pending_level)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 9, LEVEL | MASKED | 0x39);
    raise_pin(rig, 9);
    cr_assert_eq(rig->messages, 0);
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    cr_assert_eq(delivered(rig, 0x39), 1);
    tear_down(rig);
}

Test(ioapic_delivery, masking_while_in_service_holds_redelivery_back_until_unmasked)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    entry_write(rig, rig->ctx, 9, LEVEL | MASKED | 0x39);
    cr_assert(entry_read(rig, rig->ctx, 9) & REMOTE_IRR, "masking is no end of interrupt");
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | MASKED | 0x39, "a masked pin's EOI counts");
    cr_assert_eq(delivered(rig, 0x39), 1);
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    cr_assert_eq(delivered(rig, 0x39), 2);
    tear_down(rig);
}

Test(ioapic_delivery, switching_to_edge_clears_remote_irr)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    entry_write(rig, rig->ctx, 9, MASKED | 0x39);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), MASKED | 0x39);
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    cr_assert_eq(delivered(rig, 0x39), 2, "asserted, unmasked and not in service: delivered");
    tear_down(rig);
}

struct resampled {
    struct rig *rig;
    unsigned calls;
    unsigned last_pin;
    bool raise;
};

static void resample(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct resampled *resampled = opaque;

    resampled->calls++;
    resampled->last_pin = pin;
    bb_source_set(ctx, resampled->rig->source[pin][0], resampled->raise);
}

Test(ioapic_delivery, resampling_comes_before_the_line_is_looked_at_again)
{
    struct resampled resampled = {.raise = false};
    struct rig *rig =
        set_up(&(struct bb_ioapic_config){.resample = resample, .resample_opaque = &resampled});

    resampled.rig = rig;
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    entry_write(rig, rig->ctx, 8, 0x39);
    pulse_pin(rig, 8);
    raise_pin(rig, 9);
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(resampled.calls, 1, "for the level pin alone");
    cr_assert_eq(resampled.last_pin, 9);
    cr_assert_eq(delivered(rig, 0x39), 2, "withdrawn by the resampling: no third");
    raise_pin(rig, 9);
    resampled.raise = true;
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(delivered(rig, 0x39), 4, "asserted by the resampling");
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x77);
    cr_assert_eq(resampled.calls, 2);
    tear_down(rig);
}

Test(ioapic_delivery, a_level_that_nobody_takes_is_not_left_in_service)
{
    struct rig *rig = set_up(NULL);

    bb_store_relaxed(&rig->refuses, 1);
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39);
    cr_assert_eq(bb_ioapic_stats(rig->ioapic).sends_refused, 1);
    bb_store_relaxed(&rig->refuses, 0);
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    cr_assert_gt(delivered(rig, 0x39), 0);
    cr_assert(entry_read(rig, rig->ctx, 9) & REMOTE_IRR);
    tear_down(rig);
}

Test(ioapic_delivery, a_disconnected_pin_is_silent_and_forgets_earlier_rises)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 1, 0x31);
    cr_assert_eq(bb_ioapic_connect(rig->ctx, rig->ioapic, 1, NULL), BB_OK);
    pulse_pin(rig, 1);
    cr_assert_eq(bb_ioapic_connect(rig->ctx, rig->ioapic, 1, rig->line[1]), BB_OK);
    cr_assert_eq(delivered(rig, 0x31), 0);
    pulse_pin(rig, 1);
    cr_assert_eq(delivered(rig, 0x31), 1);
    tear_down(rig);
}

/* A local APIC in user space: ends the interrupt in the callback that delivers it. */
static void ends_at_once(struct rig *rig, struct bb_ctx *ctx, uint8_t vector)
{
    unsigned *left = rig->user;

    if (*left > 0 && --*left == 0) {
        bb_source_set(ctx, rig->source[9][0], false);
    }
    bb_ioapic_eoi(ctx, rig->ioapic, vector);
}

Test(ioapic_delivery, an_end_of_interrupt_inside_the_delivery_is_legal)
{
    unsigned left = 20;
    struct rig *rig = set_up(NULL);

    rig->user = &left;
    rig->delivered = ends_at_once;
    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    cr_assert_eq(delivered(rig, 0x39), 20);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39);
    tear_down(rig);
}
