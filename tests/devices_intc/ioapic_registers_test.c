/* SPDX-License-Identifier: MIT */
/* The I/O APIC's registers: values, writable bits, halves, sizes, and what isn't there. */
#include "fixture.h"

#include <criterion/criterion.h>

Test(ioapic_registers, id_version_and_arbitration_read_as_specified)
{
    struct rig *rig = set_up(&(struct bb_ioapic_config){.id = 5});

    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICID), 0x05000000);
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICVER), 0x00170020);
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICARB), 0x05000000);
    reg_write(rig, rig->ctx, IOAPICID, 0xffffffff);
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICID), 0x0f000000);
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICARB), 0x0f000000, "loaded when the ID is written");
    reg_write(rig, rig->ctx, IOAPICARB, 0);
    reg_write(rig, rig->ctx, IOAPICVER, 0);
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICARB), 0x0f000000, "read-only");
    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICVER), 0x00170020, "read-only");
    tear_down(rig);
}

Test(ioapic_registers, entries_reset_masked_and_keep_only_writable_bits)
{
    struct rig *rig = set_up(NULL);

    for (unsigned pin = 0; pin < PINS; pin++) {
        cr_assert_eq(entry_read(rig, rig->ctx, pin), MASKED);
    }
    for (unsigned pin = 0; pin < PINS; pin++) {
        entry_write(rig, rig->ctx, pin, UINT64_MAX);
        cr_assert_eq(entry_read(rig, rig->ctx, pin), UINT64_C(0xff0000000001afff));
        entry_write(rig, rig->ctx, pin, MASKED | pin);
        cr_assert_eq(entry_read(rig, rig->ctx, pin), MASKED | pin);
    }
    for (unsigned pin = 0; pin < PINS; pin++) {
        cr_assert_eq(entry_read(rig, rig->ctx, pin), MASKED | pin, "pins don't share an entry");
    }
    tear_down(rig);
}

Test(ioapic_registers, writing_one_half_leaves_the_other)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 3, UINT64_C(0x5a00000000010123));
    reg_write(rig, rig->ctx, 0x10 + 6, 0x10044);
    cr_assert_eq(entry_read(rig, rig->ctx, 3), UINT64_C(0x5a00000000010044));
    reg_write(rig, rig->ctx, 0x11 + 6, 0xa5000000);
    cr_assert_eq(entry_read(rig, rig->ctx, 3), UINT64_C(0xa500000000010044));
    tear_down(rig);
}

Test(ioapic_registers, guests_cannot_write_remote_irr_or_delivery_status)
{
    struct rig *rig = set_up(NULL);

    entry_write(rig, rig->ctx, 4, LEVEL | MASKED | REMOTE_IRR | 0x1000 | 0x30);
    cr_assert_eq(entry_read(rig, rig->ctx, 4), LEVEL | MASKED | 0x30);
    entry_write(rig, rig->ctx, 4, LEVEL | 0x30);
    raise_pin(rig, 4);
    cr_assert_eq(entry_read(rig, rig->ctx, 4), LEVEL | REMOTE_IRR | 0x30);
    entry_write(rig, rig->ctx, 4, LEVEL | 0x30);
    cr_assert_eq(entry_read(rig, rig->ctx, 4), LEVEL | REMOTE_IRR | 0x30, "a write of 0 keeps it");
    cr_assert_eq(delivered(rig, 0x30), 1);
    tear_down(rig);
}

Test(ioapic_registers, what_is_not_there_reads_zero_and_ignores_writes)
{
    struct rig *rig = set_up(NULL);
    const unsigned indices[] = {3, 0x0f, 0x10 + 2 * PINS, 0x11 + 2 * PINS, 0xff};
    uint64_t value;

    for (size_t i = 0; i < BB_ARRAY_LEN(indices); i++) {
        reg_write(rig, rig->ctx, indices[i], 0xffffffff);
        cr_assert_eq(reg_read(rig, rig->ctx, indices[i]), 0);
    }
    const unsigned offsets[] = {0x04, 0x0c, 0x14, 0x20, 0x44, 0xffc};
    for (size_t i = 0; i < BB_ARRAY_LEN(offsets); i++) {
        cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + offsets[i], 4, 1), BB_OK);
        cr_assert_eq(bb_mmio_read(rig->ctx, rig->space, IOAPIC_BASE + offsets[i], 4, &value),
                     BB_OK);
        cr_assert_eq(value, 0);
    }
    tear_down(rig);
}

Test(ioapic_registers, select_takes_any_size_and_the_window_doublewords_alone)
{
    struct rig *rig = set_up(NULL);
    uint64_t value;

    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, 0xabcd01), BB_OK);
    cr_assert_eq(bb_mmio_read(rig->ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, &value), BB_OK);
    cr_assert_eq(value, 1, "the index has eight bits");
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + IOREGSEL, 1, 0x10), BB_OK);
    cr_assert_eq(bb_mmio_read(rig->ctx, rig->space, IOAPIC_BASE + IOREGSEL, 1, &value), BB_OK);
    cr_assert_eq(value, 0x10);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + IOWIN, 1, 0), BB_E_DEVICE);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + IOWIN, 2, 0), BB_E_DEVICE);
    cr_assert_eq(bb_mmio_read(rig->ctx, rig->space, IOAPIC_BASE + IOWIN, 2, &value), BB_E_DEVICE);
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + IOWIN, 8, 0), BB_E_DEVICE);
    cr_assert_eq(entry_read(rig, rig->ctx, 0), MASKED, "none of these got through");
    tear_down(rig);
}

Test(ioapic_registers, as_many_pins_as_were_asked_for)
{
    struct rig *rig = set_up(&(struct bb_ioapic_config){.pins = BB_IOAPIC_PINS_MAX});

    cr_assert_eq(reg_read(rig, rig->ctx, IOAPICVER), (BB_IOAPIC_PINS_MAX - 1) << 16 | 0x20);
    entry_write(rig, rig->ctx, BB_IOAPIC_PINS_MAX - 1, MASKED | 0x77);
    cr_assert_eq(entry_read(rig, rig->ctx, BB_IOAPIC_PINS_MAX - 1), MASKED | 0x77);
    cr_assert_eq(reg_read(rig, rig->ctx, 0xfe), MASKED | 0x77, "the last index but one");
    tear_down(rig);
}

Test(ioapic_registers, bad_configurations_are_refused_whole)
{
    struct rig *rig = set_up(NULL);
    struct bb_ioapic *ioapic = NULL;
    struct bb_error err = {0};
    const struct bb_ioapic_config bad[] = {{.pins = 23}, {.pins = 121}, {.id = 16}};

    for (size_t i = 0; i < BB_ARRAY_LEN(bad); i++) {
        cr_assert_eq(bb_ioapic_create(rig->ctx, &bad[i], &ioapic, &err), BB_E_RANGE);
        cr_assert_null(ioapic);
        cr_assert_eq(err.code, BB_E_RANGE);
    }
    cr_assert_eq(bb_ioapic_connect(rig->ctx, rig->ioapic, PINS, rig->line[0]), BB_E_RANGE);
    cr_assert_eq(bb_ioapic_connect(rig->ctx, rig->ioapic, 0, rig->line[1]), BB_E_EXIST);
    tear_down(rig);
}

/* Any sequence of accesses and line changes leaves the registers within their masks, and an EOI
 * of every vector leaves Remote IRR exactly on the asserted, unmasked level pins. */
Test(ioapic_registers, a_hundred_thousand_random_accesses_stay_within_bounds, .timeout = 120)
{
    uint64_t state = seed(1);
    uint64_t began = state;
    struct rig *rig = set_up(NULL);

    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = next_random(&state);
        unsigned size = 1u << (r >> 8 & 3);
        uint64_t offset = (r >> 16 & 3) == 0 ? r >> 20 & 0xfff : (r >> 20 & 7) * 0x10;
        uint64_t value = next_random(&state);
        switch (r & 7) {
        case 0:
            bb_source_set(rig->ctx, rig->source[value % PINS][value >> 8 & 1], value >> 9 & 1);
            break;
        case 1:
            bb_source_pulse(rig->ctx, rig->source[value % PINS][value >> 8 & 1]);
            break;
        case 2:
            reg_write(rig, rig->ctx, (unsigned)(value >> 32 & 0x3f), (uint32_t)value);
            break;
        case 3:
            (void)bb_mmio_read(rig->ctx, rig->space, IOAPIC_BASE + offset, size, &value);
            break;
        default:
            (void)bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + offset, size, value);
            break;
        }
    }
    for (unsigned vector = 0; vector < 256; vector++) {
        bb_ioapic_eoi(rig->ctx, rig->ioapic, (uint8_t)vector);
    }
    for (unsigned pin = 0; pin < PINS; pin++) {
        uint64_t entry = entry_read(rig, rig->ctx, pin);
        cr_assert_eq(entry & ~UINT64_C(0xff0000000001efff), 0, "seed %#llx pin %u: %#llx",
                     (unsigned long long)began, pin, (unsigned long long)entry);
        bool active = (entry & LEVEL) != 0 && (entry & MASKED) == 0 && (entry >> 8 & 7) <= 1 &&
                      bb_line_read(rig->line[pin]).level;
        cr_assert_eq((entry & REMOTE_IRR) != 0, active, "seed %#llx pin %u: %#llx",
                     (unsigned long long)began, pin, (unsigned long long)entry);
    }
    tear_down(rig);
}
