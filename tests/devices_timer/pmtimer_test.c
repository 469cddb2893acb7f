/* SPDX-License-Identifier: MIT */
/* The ACPI PM timer: exact to the nanosecond, wrapping at its width, parts, refusals. */
#include "fixture.h"

#include <criterion/criterion.h>

enum { PORT = 0x608 };

static struct bb_space *ports;

static struct bb_pmtimer *make(struct machine *m, unsigned bits)
{
    struct bb_space_config space = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_pmtimer_config config = {.clock = m->clock, .bits = bits};
    struct bb_pmtimer *timer = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_space_create(m->ctx, &space, &ports, &err), BB_OK);
    cr_assert_eq(bb_pmtimer_create(m->ctx, &config, &timer, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(m->ctx, ports, PORT, bb_pmtimer_region(timer), &err), BB_OK, "%s",
                 err.text);
    return timer;
}

static void finish(struct machine *m, struct bb_pmtimer *timer)
{
    cr_assert_eq(bb_device_remove_wait(m->ctx, bb_pmtimer_device(timer), NULL), BB_OK);
    tear_down(m);
}

static uint64_t in(struct machine *m, unsigned port, unsigned size)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(m->ctx, ports, port, size, &value), BB_OK);
    return value;
}

Test(pmtimer, changes_at_the_very_nanosecond)
{
    struct machine *m = set_up(NULL);
    struct bb_pmtimer *timer = make(m, 24);
    uint64_t at = 0;
    uint64_t count;

    /* Count n begins at the first nanosecond t with t * 3579545 >= n * 10^9. */
    for (count = 1; count < 200; count++) {
        uint64_t begins = (count * 1000000000 + BB_PMTIMER_HZ - 1) / BB_PMTIMER_HZ;

        step_ns(m, begins - 1 - at);
        cr_assert_eq(in(m, PORT, 4), count - 1);
        step_ns(m, 1);
        at = begins;
        cr_assert_eq(in(m, PORT, 4), count);
    }
    finish(m, timer);
}

Test(pmtimer, does_not_drift_in_centuries)
{
    /* Whole seconds give whole multiples of the frequency, up to the end of time. */
    static const uint64_t seconds[] = {1, 3600, 31536000, UINT64_C(9223372036)};
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(seconds); i++) {
        cr_assert_eq(bb_pmtimer_count(seconds[i] * 1000000000), seconds[i] * 3579545);
    }
    cr_assert_eq(bb_pmtimer_count(UINT64_MAX), UINT64_C(66030950515326656));
}

Test(pmtimer, wraps_at_24_or_32_bits)
{
    static const unsigned widths[] = {24, 32};
    unsigned i;

    for (i = 0; i < BB_ARRAY_LEN(widths); i++) {
        struct machine *m = set_up(NULL);
        struct bb_pmtimer *timer = make(m, widths[i]);
        uint64_t wrap = UINT64_C(1) << widths[i];
        uint64_t begins =
            (uint64_t)(((unsigned __int128)wrap * 1000000000 + BB_PMTIMER_HZ - 1) / BB_PMTIMER_HZ);

        step_ns(m, begins - 1);
        cr_assert_eq(in(m, PORT, 4), wrap - 1);
        step_ns(m, 1);
        cr_assert_eq(in(m, PORT, 4), 0);
        finish(m, timer);
    }
}

Test(pmtimer, parts_are_bytes_of_the_whole)
{
    struct machine *m = set_up(NULL);
    struct bb_pmtimer *timer = make(m, 32);
    uint64_t whole;

    step_ns(m, UINT64_C(900000000000));
    whole = in(m, PORT, 4);
    cr_assert_eq(whole, UINT64_C(3221590500) & UINT32_MAX);
    cr_assert_eq(in(m, PORT, 1), whole & 0xff);
    cr_assert_eq(in(m, PORT + 3, 1), whole >> 24);
    cr_assert_eq(in(m, PORT + 2, 2), whole >> 16);
    finish(m, timer);
}

Test(pmtimer, ignores_writes)
{
    struct machine *m = set_up(NULL);
    struct bb_pmtimer *timer = make(m, 24);

    step_ns(m, 1000000);
    cr_assert_eq(bb_mmio_write(m->ctx, ports, PORT, 4, 0), BB_OK);
    cr_assert_eq(in(m, PORT, 4), 3579);
    finish(m, timer);
}

Test(pmtimer, refuses_a_bad_configuration)
{
    struct machine *m = set_up(NULL);
    struct bb_pmtimer_config config = {.clock = m->clock, .bits = 16};
    struct bb_pmtimer *none = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_pmtimer_create(m->ctx, &config, &none, &err), BB_E_RANGE);
    config.bits = 32;
    config.clock = NULL;
    cr_assert_eq(bb_pmtimer_create(m->ctx, &config, &none, &err), BB_E_INVAL);
    cr_assert_null(none);
    tear_down(m);
}
