/* SPDX-License-Identifier: MIT */
/* Where HPET interrupts go: pins by level and edge, status, messages, the legacy mapping. */
#include "fixture.h"

#include <criterion/criterion.h>

/* A running machine with timer 0 level-triggered on pin 16 and met. */
static struct machine *asserted(void)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL);
    put(m, comp_of(0), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 999);
    cr_assert(!pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 0);
    step(m, 1);
    cr_assert(pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 1);
    return m;
}

Test(hpet_routing, a_level_holds_until_its_status_bit_is_written_one)
{
    struct machine *m = asserted();

    put(m, GINTR_STA, 0);
    put(m, GINTR_STA, 0xfffffffe);
    cr_assert(pin_level(m, 16));
    put32(m, GINTR_STA + 4, 1);
    cr_assert(pin_level(m, 16), "the other half");
    put32(m, GINTR_STA, 1);
    cr_assert(!pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 0);
    cr_assert_eq(pin_rises(m, 16), 1);
    tear_down(m);
}

Test(hpet_routing, a_level_met_again_before_it_is_cleared_just_stays)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL | PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, GEN_CONF, ENABLE);
    step(m, 70000);
    cr_assert(pin_level(m, 16));
    cr_assert_eq(pin_rises(m, 16), 1);
    put(m, GINTR_STA, 1);
    cr_assert(!pin_level(m, 16));
    step(m, 10000);
    cr_assert(pin_level(m, 16), "the next match asserts it again");
    cr_assert_eq(pin_rises(m, 16), 2);
    tear_down(m);
}

Test(hpet_routing, status_is_set_without_the_interrupt_and_enabling_raises_it)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(1), route_to(17) | INT_LEVEL);
    put(m, comp_of(1), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 1000);
    cr_assert_eq(get(m, GINTR_STA), 2);
    cr_assert(!pin_level(m, 17));
    put(m, conf_of(1), route_to(17) | INT_LEVEL | INT_ENB);
    cr_assert(pin_level(m, 17));
    put(m, conf_of(1), route_to(17) | INT_LEVEL);
    cr_assert(!pin_level(m, 17));
    cr_assert_eq(get(m, GINTR_STA), 2);
    tear_down(m);
}

Test(hpet_routing, a_route_change_moves_the_assertion)
{
    struct machine *m = asserted();

    put(m, conf_of(0), route_to(20) | INT_ENB | INT_LEVEL);
    cr_assert(!pin_level(m, 16));
    cr_assert(pin_level(m, 20));
    cr_assert_eq(pin_rises(m, 20), 1);
    put(m, GINTR_STA, 1);
    cr_assert(!pin_level(m, 20));
    tear_down(m);
}

Test(hpet_routing, timers_on_one_pin_are_one_wired_or)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL);
    put(m, conf_of(1), route_to(16) | INT_ENB | INT_LEVEL);
    put(m, conf_of(2), route_to(16) | INT_ENB);
    put(m, comp_of(0), 1000);
    put(m, comp_of(1), 2000);
    put(m, comp_of(2), 3000);
    put(m, GEN_CONF, ENABLE);
    step(m, 2000);
    cr_assert_eq(get(m, GINTR_STA), 3);
    put(m, GINTR_STA, 1);
    cr_assert(pin_level(m, 16), "timer 1 still holds it");
    cr_assert_eq(pin_rises(m, 16), 1);
    step(m, 1000);
    cr_assert_eq(pin_rises(m, 16), 1, "a pulse on a line that is high is no edge");
    put(m, GINTR_STA, 2);
    cr_assert(!pin_level(m, 16));
    tear_down(m);
}

Test(hpet_routing, turning_a_level_timer_to_edge_clears_status_and_line)
{
    struct machine *m = asserted();

    put(m, conf_of(0), route_to(16) | INT_ENB);
    cr_assert(!pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 0, "edge-triggered timers have no status");
    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL);
    cr_assert(!pin_level(m, 16));
    tear_down(m);
}

Test(hpet_routing, a_halt_withdraws_levels_and_keeps_status)
{
    struct machine *m = asserted();

    put(m, GEN_CONF, 0);
    cr_assert(!pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 1);
    put(m, GEN_CONF, ENABLE);
    cr_assert(pin_level(m, 16));
    put(m, GEN_CONF, 0);
    put(m, GINTR_STA, 1);
    put(m, GEN_CONF, ENABLE);
    cr_assert(!pin_level(m, 16));
    tear_down(m);
}

Test(hpet_routing, a_message_carries_address_and_data)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(2), route_to(16) | INT_ENB | FSB_EN);
    put(m, fsb_of(2), UINT64_C(0xfee0100c000040a1));
    put(m, comp_of(2), 1000);
    put(m, GEN_CONF, ENABLE);
    step(m, 999);
    cr_assert_eq(m->messages, 0);
    step(m, 1);
    cr_assert_eq(m->messages, 1);
    cr_assert_eq(m->last_address, 0xfee0100c);
    cr_assert_eq(m->last_data, 0x40a1);
    cr_assert_eq(pin_rises(m, 16), 0, "the message is instead of the pin");
    tear_down(m);
}

Test(hpet_routing, a_timer_with_messages_is_edge_triggered_whatever_its_type)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL | FSB_EN | PERIODIC | VAL_SET);
    put(m, comp_of(0), 20000);
    put(m, GEN_CONF, ENABLE);
    step(m, 60000);
    cr_assert_eq(m->messages, 3);
    cr_assert_eq(get(m, GINTR_STA), 0);
    cr_assert(!pin_level(m, 16));
    put(m, conf_of(0), route_to(16) | INT_LEVEL | FSB_EN | PERIODIC);
    step(m, 60000);
    cr_assert_eq(m->messages, 3, "disabled");
    tear_down(m);
}

Test(hpet_routing, turning_messages_on_withdraws_a_level)
{
    struct machine *m = asserted();

    put(m, conf_of(0), route_to(16) | INT_ENB | INT_LEVEL | FSB_EN);
    cr_assert(!pin_level(m, 16));
    cr_assert_eq(get(m, GINTR_STA), 0);
    tear_down(m);
}

Test(hpet_routing, the_legacy_mapping_takes_timers_0_and_1)
{
    struct machine *m = set_up(NULL);
    unsigned i;

    for (i = 0; i < 3; i++) {
        put(m, conf_of(i), route_to(16 + i) | INT_ENB);
        put(m, comp_of(i), 1000);
    }
    put(m, GEN_CONF, ENABLE | LEGACY);
    step(m, 1000);
    cr_assert_eq(bb_line_read(m->irq0.line).rises, 1);
    cr_assert_eq(bb_line_read(m->irq8.line).rises, 1);
    cr_assert_eq(pin_rises(m, 16) + pin_rises(m, 17), 0);
    cr_assert_eq(pin_rises(m, 18), 1);
    tear_down(m);
}

Test(hpet_routing, switching_the_legacy_mapping_moves_the_assertion)
{
    struct machine *m = asserted();

    put(m, GEN_CONF, ENABLE | LEGACY);
    cr_assert(!pin_level(m, 16));
    cr_assert(bb_line_read(m->irq0.line).level);
    put(m, GEN_CONF, LEGACY);
    cr_assert(!bb_line_read(m->irq0.line).level);
    put(m, GEN_CONF, ENABLE);
    cr_assert(pin_level(m, 16));
    cr_assert_eq(bb_line_read(m->irq0.line).rises, 1);
    tear_down(m);
}

Test(hpet_routing, the_sink_sees_the_line_before_the_step_returns)
{
    struct machine *m = asserted();

    cr_assert_eq(bb_load_relaxed(&m->pin[16].notified), 1);
    put(m, GINTR_STA, 1);
    cr_assert_eq(bb_load_relaxed(&m->pin[16].notified), 2);
    tear_down(m);
}

Test(hpet_routing, an_interrupt_to_a_pin_without_a_line_goes_nowhere)
{
    struct machine *m = set_up(NULL);
    struct bb_hpet_config config = {.clock = m->clock, .route_cap = {0x10, 0x10, 0x10}};
    struct bb_hpet *bare = NULL;
    const bb_gpa_t base = HPET_BASE + 0x10000;

    cr_assert_eq(bb_hpet_create(m->ctx, &config, &bare, NULL), BB_OK);
    cr_assert_eq(bb_space_map(m->ctx, m->space, base, bb_hpet_region(bare), NULL), BB_OK);
    put(m, 0x10000 + conf_of(0), route_to(4) | INT_ENB);
    put(m, 0x10000 + conf_of(1), INT_ENB | INT_LEVEL); /* route 0: not supported */
    put(m, 0x10000 + comp_of(0), 1000);
    put(m, 0x10000 + comp_of(1), 1000);
    put(m, 0x10000 + GEN_CONF, ENABLE);
    step(m, 2000);
    cr_assert_eq(get(m, 0x10000 + GINTR_STA), 2);
    cr_assert_eq(bb_device_remove_wait(m->ctx, bb_hpet_device(bare), NULL), BB_OK);
    tear_down(m);
}

Test(hpet_routing, outputs_that_share_a_line_hand_it_over_without_a_gap)
{
    struct machine *m = set_up(NULL);
    struct bb_hpet_config config = {.clock = m->clock,
                                    .route_cap = {1u << 2},
                                    .lines = {[2] = m->irq0.line},
                                    .legacy_irq0 = m->irq0.line,
                                    .legacy_capable = true};
    struct bb_hpet *pc = NULL; /* as in a PC, where IRQ 0 is pin 2 */
    const uint64_t at = 0x10000;

    cr_assert_eq(bb_hpet_create(m->ctx, &config, &pc, NULL), BB_OK);
    cr_assert_eq(bb_space_map(m->ctx, m->space, HPET_BASE + at, bb_hpet_region(pc), NULL), BB_OK);
    put(m, at + conf_of(0), route_to(2) | INT_ENB | INT_LEVEL);
    put(m, at + comp_of(0), 1000);
    put(m, at + GEN_CONF, ENABLE);
    step(m, 1000);
    put(m, at + GEN_CONF, ENABLE | LEGACY);
    put(m, at + GEN_CONF, ENABLE);
    cr_assert(bb_line_read(m->irq0.line).level);
    cr_assert_eq(bb_line_read(m->irq0.line).rises, 1);
    cr_assert_eq(bb_device_remove_wait(m->ctx, bb_hpet_device(pc), NULL), BB_OK);
    cr_assert(!bb_line_read(m->irq0.line).level);
    tear_down(m);
}
