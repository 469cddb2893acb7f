/* SPDX-License-Identifier: MIT */
/*
 * A hostile guest: any access of any size at any offset with any value, while time passes. Nothing
 * may crash, take unbounded host time, or leave a register in a state that the specification does
 * not know. The seed is printed by a failure; BUSBAR_SEED replays it.
 */
#include "fixture.h"

#include <criterion/criterion.h>

enum { SEED = 20261123, ACCESSES = 100000, TIMERS = 32, ROUTES = 0xff0104 };

static void check(struct machine *m, uint64_t start, unsigned round)
{
    uint64_t levels = 0;
    uint64_t pins = 0;
    uint64_t status, first, second;
    unsigned i;

    for (i = 0; i < TIMERS; i++) {
        uint64_t conf = get(m, conf_of(i));
        unsigned pin = conf >> 9 & 31;
        bool level = (conf & (INT_LEVEL | FSB_EN)) == INT_LEVEL;

        cr_assert_eq(conf >> 32, ROUTES, "seed %#lx round %u", (unsigned long)start, round);
        cr_assert_eq(conf & 0xffff8081 & ~(uint64_t)0x8000, 0);
        cr_assert(pin == 0 || (ROUTES >> pin & 1) != 0, "seed %#lx round %u: route %u",
                  (unsigned long)start, round, pin);
        cr_assert((conf & VAL_SET) == 0 || (conf & PERIODIC) != 0);
        cr_assert((conf & MODE32) == 0 || get(m, comp_of(i)) <= UINT32_MAX);
        levels |= level ? BB_BIT64(i) : 0;
        if ((get(m, GINTR_STA) >> i & 1) != 0 && (conf & INT_ENB) != 0 &&
            (get(m, GEN_CONF) & ENABLE) != 0 && (i >= 2 || (get(m, GEN_CONF) & LEGACY) == 0)) {
            pins |= BB_BIT64(pin);
        }
    }
    status = get(m, GINTR_STA);
    cr_assert_eq(status & ~levels, 0, "seed %#lx round %u: status %#lx, level-triggered %#lx",
                 (unsigned long)start, round, (unsigned long)status, (unsigned long)levels);
    for (i = 0; i < BB_HPET_PINS; i++) {
        cr_assert_eq(pin_level(m, i), (ROUTES & pins) >> i & 1, "seed %#lx round %u: pin %u",
                     (unsigned long)start, round, i);
    }
    cr_assert_eq(get(m, GEN_CONF) & ~(uint64_t)(ENABLE | LEGACY), 0);
    first = get(m, MAIN_CNT);
    step(m, 3);
    second = get(m, MAIN_CNT);
    cr_assert_eq(second - first, (get(m, GEN_CONF) & ENABLE) != 0 ? 3 : 0, "seed %#lx round %u",
                 (unsigned long)start, round);
}

/* An offset: any, or that of a register; a value: any, or one that does something. */
static uint64_t some_offset(struct machine *m, uint64_t *random)
{
    switch (next_random(random) % 4) {
    case 0:
        return next_random(random) % (bb_region_size(bb_hpet_region(m->hpet)) + 8);
    case 1:
        return 0x10 * (next_random(random) % 16);
    default:
        return 0x100 + 8 * (next_random(random) % (TIMERS * 4));
    }
}

static uint64_t some_value(struct machine *m, uint64_t *random)
{
    switch (next_random(random) % 5) {
    case 0:
        return next_random(random);
    case 1:
        return next_random(random) >> (next_random(random) % 64);
    case 2:
        return get(m, MAIN_CNT) + next_random(random) % 1000 - 200;
    case 3:
        return UINT64_MAX - next_random(random) % 3;
    default:
        return (next_random(random) & 0xc14e) | route_to((unsigned)(next_random(random) % 32)) | 1;
    }
}

Test(hpet_fuzz, survives_any_access_with_its_invariants_intact)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = TIMERS};
    struct machine *m = set_up(&options);
    uint64_t start = seed(SEED);
    uint64_t random = start;
    uint64_t began = host_ns();
    unsigned round;

    for (round = 0; round < ACCESSES; round++) {
        unsigned size = 1u << next_random(&random) % 4;
        bb_gpa_t gpa = HPET_BASE + some_offset(m, &random);
        uint64_t value = some_value(m, &random);

        if (next_random(&random) % 16 == 0) {
            size = 1 + (unsigned)(next_random(&random) % 8);
        }
        if (next_random(&random) % 4 == 0) {
            (void)bb_mmio_read(m->ctx, m->space, gpa, size, &value);
        } else {
            (void)bb_mmio_write(m->ctx, m->space, gpa, size, value);
        }
        if (next_random(&random) % 8 == 0) {
            step_ns(m, next_random(&random) % 100000);
        }
        if (round % 256 == 0) {
            check(m, start, round);
        }
    }
    cr_assert_lt(host_ns() - began, UINT64_C(100000000000), "bounded host time");
    tear_down(m);
}

Test(hpet_fuzz, the_fastest_periods_on_all_timers_cost_bounded_host_time)
{
    struct machine_options options = {.clock_mode = BB_CLOCK_MANUAL, .timers = TIMERS};
    struct machine *m = set_up(&options);
    uint64_t before, expiries;
    unsigned i;

    for (i = 0; i < TIMERS; i++) {
        put(m, conf_of(i), route_to(16) | INT_ENB | PERIODIC | VAL_SET);
        put(m, comp_of(i), 1);
    }
    put(m, GEN_CONF, ENABLE);
    before = bb_engine_stats(m->ctx).expiries;
    step_ns(m, 100000000);
    expiries = bb_engine_stats(m->ctx).expiries - before;
    cr_assert_leq(expiries, TIMERS * 1001, "%lu expiries in 100 ms", (unsigned long)expiries);
    tear_down(m);
}
