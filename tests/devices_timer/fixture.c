/* SPDX-License-Identifier: MIT */
/* See fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <time.h>

enum { DEFAULT_ROUTES = 0xff0104 };

static void notified(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct recorded_line *recorded = opaque;

    (void)ctx;
    (void)pin;
    (void)bb_fetch_add_relaxed(&recorded->notified, 1);
}

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    struct machine *machine = opaque;

    (void)ctx;
    bb_store_relaxed(&machine->last_address, address);
    bb_store_relaxed(&machine->last_data, data);
    (void)bb_fetch_add_relaxed(&machine->messages, 1);
    return BB_OK;
}

static void make_line(struct machine *machine, const char *name, struct recorded_line *recorded)
{
    struct bb_line_sink sink = {.notify = notified, .opaque = recorded};

    cr_assert_eq(bb_line_create(machine->ctx, name, &sink, &recorded->line, NULL), BB_OK);
}

static void make_hpet(struct machine *machine, const struct machine_options *options)
{
    struct bb_hpet_config config = {
        .clock = machine->clock,
        .timers = options->timers,
        .tick_ns = options->tick_ns,
        .legacy_irq0 = machine->irq0.line,
        .legacy_irq8 = machine->irq8.line,
        .msi_capable = !options->no_msi,
        .legacy_capable = !options->no_legacy,
    };
    struct bb_error err = {0};
    unsigned i;

    for (i = 0; i < BB_HPET_PINS; i++) {
        config.lines[i] = machine->pin[i].line;
    }
    for (i = 0; i < BB_HPET_TIMERS_MAX; i++) {
        config.route_cap[i] = options->route_cap != 0 ? options->route_cap : DEFAULT_ROUTES;
    }
    cr_assert_eq(bb_hpet_create(machine->ctx, &config, &machine->hpet, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(
        bb_space_map(machine->ctx, machine->space, HPET_BASE, bb_hpet_region(machine->hpet), &err),
        BB_OK, "%s", err.text);
}

struct machine *set_up(const struct machine_options *options)
{
    struct machine *machine = calloc(1, sizeof(*machine));
    static const struct machine_options defaults = {.clock_mode = BB_CLOCK_MANUAL};
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver, .opaque = machine}};
    struct bb_space_config space = {.name = "memory", .kind = BB_SPACE_MMIO};
    struct bb_error err = {0};
    unsigned i;

    cr_assert_not_null(machine);
    if (options == NULL) {
        options = &defaults;
    }
    config.clock_mode = options->clock_mode;
    config.lock_mode = options->lock_mode;
    cr_assert_eq(bb_engine_create(&config, &machine->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine->engine, "main", &machine->ctx, &err), BB_OK, "%s",
                 err.text);
    machine->clock = bb_engine_clock(machine->engine);
    cr_assert_eq(bb_space_create(machine->ctx, &space, &machine->space, &err), BB_OK);
    for (i = 0; i < BB_HPET_PINS; i++) {
        make_line(machine, "pin", &machine->pin[i]);
    }
    make_line(machine, "irq0", &machine->irq0);
    make_line(machine, "irq8", &machine->irq8);
    make_hpet(machine, options);
    return machine;
}

void tear_down(struct machine *machine)
{
    struct bb_error err = {0};
    unsigned i;

    if (machine->hpet != NULL) {
        cr_assert_eq(bb_device_remove_wait(machine->ctx, bb_hpet_device(machine->hpet), &err),
                     BB_OK, "%s", err.text);
    }
    for (i = 0; i < BB_HPET_PINS; i++) {
        cr_assert(!bb_line_read(machine->pin[i].line).level, "pin %u is left asserted", i);
        cr_assert_eq(bb_line_destroy(machine->ctx, machine->pin[i].line, &err), BB_OK, "%s",
                     err.text);
    }
    cr_assert_eq(bb_line_destroy(machine->ctx, machine->irq0.line, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_line_destroy(machine->ctx, machine->irq8.line, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(machine->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(machine->engine, &err), BB_OK, "%s", err.text);
    free(machine);
}

uint64_t get(struct machine *machine, uint64_t offset)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(machine->ctx, machine->space, HPET_BASE + offset, 8, &value), BB_OK);
    return value;
}

uint32_t get32(struct machine *machine, uint64_t offset)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(machine->ctx, machine->space, HPET_BASE + offset, 4, &value), BB_OK);
    cr_assert_eq(value >> 32, 0);
    return (uint32_t)value;
}

void put(struct machine *machine, uint64_t offset, uint64_t value)
{
    cr_assert_eq(bb_mmio_write(machine->ctx, machine->space, HPET_BASE + offset, 8, value), BB_OK);
}

void put32(struct machine *machine, uint64_t offset, uint32_t value)
{
    cr_assert_eq(bb_mmio_write(machine->ctx, machine->space, HPET_BASE + offset, 4, value), BB_OK);
}

void step_ns(struct machine *machine, uint64_t ns)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_clock_step(machine->ctx, machine->clock, ns, &err), BB_OK, "%s", err.text);
}

void step(struct machine *machine, uint64_t ticks)
{
    step_ns(machine, ticks * TICK_NS);
}

bool pin_level(struct machine *machine, unsigned pin)
{
    return bb_line_read(machine->pin[pin].line).level;
}

uint32_t pin_rises(struct machine *machine, unsigned pin)
{
    return bb_line_read(machine->pin[pin].line).rises;
}

uint64_t host_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t stress_ns(void)
{
    const char *given = getenv("BUSBAR_STRESS_SECONDS");
    double seconds = given != NULL ? strtod(given, NULL) : 1;

    return (uint64_t)(seconds * 1e9);
}

uint64_t seed(uint64_t fallback)
{
    const char *given = getenv("BUSBAR_SEED");

    return given != NULL ? strtoull(given, NULL, 0) : fallback;
}
