/* SPDX-License-Identifier: MIT */
/* Registers of the HPET as a guest sees them: reset values, writable bits, halves, refusals. */
#include "fixture.h"

#include <criterion/criterion.h>

enum { ROUTES = 0xff0104, TIMER_CAPS = 0x8030 /* FSB, 64 bits, periodic */ };

Test(hpet_registers, capabilities_tell_what_was_configured)
{
    struct machine *m = set_up(NULL);

    cr_assert_eq(get(m, GCAP_ID), UINT64_C(0x009896808086a201));
    cr_assert_eq(get32(m, GCAP_ID), 0x8086a201);
    cr_assert_eq(get32(m, GCAP_ID + 4), 10000000);
    cr_assert_eq(bb_hpet_block_id(m->hpet), 0x8086a201);
    put(m, GCAP_ID, UINT64_MAX);
    cr_assert_eq(get(m, GCAP_ID), UINT64_C(0x009896808086a201));
    tear_down(m);
}

Test(hpet_registers, capabilities_follow_the_configuration)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL,
                                      .timers = 32,
                                      .tick_ns = 100,
                                      .no_legacy = true,
                                      .no_msi = true,
                                      .route_cap = 0x10};
    struct machine *m = set_up(&options);

    cr_assert_eq(get(m, GCAP_ID), UINT64_C(0x05f5e10080863f01));
    cr_assert_eq(get(m, conf_of(31)), UINT64_C(0x0000001000000030));
    put(m, GEN_CONF, LEGACY);
    cr_assert_eq(get(m, GEN_CONF), 0);
    put(m, conf_of(31), FSB_EN);
    cr_assert_eq(get32(m, conf_of(31)), 0x30);
    tear_down(m);
}

Test(hpet_registers, hold_their_reset_values)
{
    struct machine *m = set_up(NULL);
    unsigned i;

    cr_assert_eq(get(m, GEN_CONF), 0);
    cr_assert_eq(get(m, GINTR_STA), 0);
    cr_assert_eq(get(m, MAIN_CNT), 0);
    for (i = 0; i < 3; i++) {
        cr_assert_eq(get(m, conf_of(i)), (uint64_t)ROUTES << 32 | TIMER_CAPS);
        cr_assert_eq(get(m, comp_of(i)), UINT64_MAX);
        cr_assert_eq(get(m, fsb_of(i)), 0);
    }
    step(m, 1000);
    cr_assert_eq(get(m, MAIN_CNT), 0, "the counter is halted at reset");
    tear_down(m);
}

Test(hpet_registers, every_offset_that_is_no_register_reads_zero_and_ignores_writes)
{
    struct machine *m = set_up(NULL);
    uint64_t offset;

    for (offset = 0; offset < BB_HPET_REGION_BYTES; offset += 8) {
        bool used = offset == GCAP_ID || offset == GEN_CONF || offset == GINTR_STA ||
                    offset == MAIN_CNT ||
                    (offset >= 0x100 && offset < 0x160 && offset % 0x20 != 0x18);

        if (!used) {
            put(m, offset, UINT64_MAX);
            cr_assert_eq(get(m, offset), 0, "offset %#lx", (unsigned long)offset);
        }
    }
    tear_down(m);
}

Test(hpet_registers, writable_bits_are_those_of_the_specification)
{
    struct machine *m = set_up(NULL);

    put(m, GEN_CONF, UINT64_MAX & ~(uint64_t)ENABLE);
    cr_assert_eq(get(m, GEN_CONF), LEGACY);
    put(m, GEN_CONF, 0);
    put(m, MAIN_CNT, UINT64_C(0x123456789abcdef0));
    cr_assert_eq(get(m, MAIN_CNT), UINT64_C(0x123456789abcdef0));

    /* All but the route (all ones is pin 31, which is not supported), first periodic. */
    put(m, conf_of(1), UINT64_MAX);
    cr_assert_eq(get(m, conf_of(1)), (uint64_t)ROUTES << 32 | TIMER_CAPS | INT_LEVEL | INT_ENB |
                                         PERIODIC | VAL_SET | MODE32 | FSB_EN);
    put(m, conf_of(1), UINT64_MAX & ~(uint64_t)PERIODIC);
    cr_assert_eq(get(m, conf_of(1)),
                 (uint64_t)ROUTES << 32 | TIMER_CAPS | INT_LEVEL | INT_ENB | MODE32 | FSB_EN,
                 "VAL_SET is for periodic timers");
    put(m, fsb_of(2), UINT64_C(0xfee00000000040a1));
    cr_assert_eq(get(m, fsb_of(2)), UINT64_C(0xfee00000000040a1));
    put(m, GINTR_STA, UINT64_MAX);
    cr_assert_eq(get(m, GINTR_STA), 0);
    tear_down(m);
}

Test(hpet_registers, a_route_that_is_not_supported_reads_back_as_it_was)
{
    struct machine *m = set_up(NULL);
    unsigned pin;

    for (pin = 0; pin < 32; pin++) {
        put(m, conf_of(0), route_to(23));
        put(m, conf_of(0), route_to(pin) | INT_ENB);
        cr_assert_eq(get(m, conf_of(0)) & 0x3e00,
                     (ROUTES >> pin & 1) != 0 ? route_to(pin) : route_to(23), "pin %u", pin);
        cr_assert_neq(get(m, conf_of(0)) & INT_ENB, 0, "the other bits are taken");
    }
    tear_down(m);
}

Test(hpet_registers, halves_are_read_and_merged)
{
    static const uint64_t offsets[] = {MAIN_CNT, 0x108, 0x110};
    struct machine *m = set_up(NULL);
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(offsets); i++) {
        put(m, offsets[i], UINT64_C(0x1111111122222222));
        put32(m, offsets[i], 0x33333333);
        cr_assert_eq(get(m, offsets[i]), UINT64_C(0x1111111133333333));
        put32(m, offsets[i] + 4, 0x44444444);
        cr_assert_eq(get(m, offsets[i]), UINT64_C(0x4444444433333333));
        cr_assert_eq(get32(m, offsets[i]), 0x33333333);
        cr_assert_eq(get32(m, offsets[i] + 4), 0x44444444);
    }
    put32(m, GEN_CONF + 4, UINT32_MAX);
    cr_assert_eq(get(m, GEN_CONF), 0);
    put32(m, conf_of(0) + 4, UINT32_MAX);
    cr_assert_eq(get(m, conf_of(0)), (uint64_t)ROUTES << 32 | TIMER_CAPS);
    tear_down(m);
}

Test(hpet_registers, other_sizes_and_misaligned_accesses_are_device_errors)
{
    struct machine *m = set_up(NULL);
    static const struct {
        uint64_t offset;
        unsigned size;
    } refused[] = {{0, 1}, {0, 2}, {3, 1}, {0xf0, 2}, {0xf2, 4}, {0xf4, 8}, {0xf1, 8}, {0x10, 1}};
    uint64_t value;
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(refused); i++) {
        bb_gpa_t gpa = HPET_BASE + refused[i].offset;

        cr_assert_eq(bb_mmio_read(m->ctx, m->space, gpa, refused[i].size, &value), BB_E_DEVICE,
                     "%u", i);
        cr_assert_eq(value, bb_mask_bytes(refused[i].size));
        cr_assert_eq(bb_mmio_write(m->ctx, m->space, gpa, refused[i].size, UINT64_MAX),
                     BB_E_DEVICE);
    }
    cr_assert_eq(get(m, GEN_CONF), 0);
    cr_assert_eq(get(m, MAIN_CNT), 0);
    tear_down(m);
}

Test(hpet_registers, the_region_holds_all_timers)
{
    static const struct {
        unsigned timers;
        uint64_t bytes;
    } sizes[] = {{3, 1024}, {24, 1024}, {25, 1056}, {32, 1280}};
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(sizes); i++) {
        struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = sizes[i].timers};
        struct machine *m = set_up(&options);

        cr_assert_eq(bb_region_size(bb_hpet_region(m->hpet)), sizes[i].bytes);
        cr_assert_eq(get(m, comp_of(sizes[i].timers - 1)), UINT64_MAX);
        tear_down(m);
    }
}

Test(hpet_registers, the_table_of_paths_covers_every_offset_once)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = 32};
    struct machine *m = set_up(&options);
    const struct bb_path_row *row;
    uint64_t next = 0;
    size_t count, i;

    row = bb_region_paths(bb_hpet_region(m->hpet), &count);
    for (i = 0; i < count; i++) {
        cr_assert_eq(row[i].first, next);
        cr_assert_geq(row[i].last, row[i].first);
        cr_assert_leq(row[i].read, BB_PATH_LOCK_FREE, "no read waits");
        next = row[i].last + 1;
    }
    cr_assert_eq(next, bb_region_size(bb_hpet_region(m->hpet)));
    tear_down(m);
}

Test(hpet_registers, a_bad_configuration_is_refused_with_a_reason)
{
    struct machine *m = set_up(NULL);
    struct bb_hpet *none = NULL;
    struct bb_hpet_config config = {.clock = m->clock, .timers = 2};
    struct bb_error err = {0};

    cr_assert_eq(bb_hpet_create(m->ctx, &config, &none, &err), BB_E_RANGE);
    cr_assert(err.text[0] != '\0');
    config.timers = 33;
    cr_assert_eq(bb_hpet_create(m->ctx, &config, &none, &err), BB_E_RANGE);
    config.timers = 3;
    config.tick_ns = 101;
    cr_assert_eq(bb_hpet_create(m->ctx, &config, &none, &err), BB_E_RANGE);
    config.tick_ns = 10;
    config.clock = NULL;
    cr_assert_eq(bb_hpet_create(m->ctx, &config, &none, &err), BB_E_INVAL);
    cr_assert_null(none);
    tear_down(m);
}

Test(hpet_registers, a_line_without_room_fails_creation_and_leaves_nothing)
{
    struct machine *m = set_up(NULL);
    struct bb_hpet_config config = {
        .clock = m->clock, .route_cap = {0x10000}, .lines = {[16] = m->pin[16].line}};
    struct bb_hpet *made[BB_LINE_SOURCES_MAX] = {NULL};
    struct bb_error err = {0};
    unsigned count = 0;

    while (count < BB_LINE_SOURCES_MAX &&
           bb_hpet_create(m->ctx, &config, &made[count], &err) == BB_OK) {
        count++;
    }
    cr_assert_eq(count, BB_LINE_SOURCES_MAX - 1, "the machine's own HPET has one");
    cr_assert_eq(err.code, BB_E_LIMIT);
    while (count-- > 0) {
        cr_assert_eq(bb_device_remove_wait(m->ctx, bb_hpet_device(made[count]), NULL), BB_OK);
    }
    tear_down(m);
}
