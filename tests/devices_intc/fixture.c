/* SPDX-License-Identifier: MIT */
/* See fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <time.h>

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    struct rig *rig = opaque;

    if (bb_load_relaxed(&rig->refuses) != 0) {
        return BB_E_DEVICE;
    }
    bb_store_relaxed(&rig->last_address, address);
    bb_store_relaxed(&rig->last_data, data);
    (void)bb_fetch_add_relaxed(&rig->messages, 1);
    (void)bb_fetch_add_relaxed(&rig->by_vector[data & 0xff], 1);
    if (rig->delivered != NULL) {
        rig->delivered(rig, ctx, (uint8_t)data);
    }
    return BB_OK;
}

struct rig *set_up(const struct bb_ioapic_config *config)
{
    return set_up_in_mode(config, BB_LOCK_FREE);
}

struct rig *set_up_in_mode(const struct bb_ioapic_config *config, enum bb_lock_mode mode)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct bb_engine_config engine = {.clock_mode = BB_CLOCK_MANUAL,
                                      .lock_mode = mode,
                                      .msi_sink = {.deliver = deliver, .opaque = rig}};
    struct bb_space_config space = {.name = "memory", .kind = BB_SPACE_MMIO};
    struct bb_device_config wires = {.name = "wires"};
    struct bb_error err = {0};

    cr_assert_not_null(rig);
    cr_assert_eq(bb_engine_create(&engine, &rig->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(rig->engine, "main", &rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(rig->ctx, &space, &rig->space, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ioapic_create(rig->ctx, config, &rig->ioapic, &err), BB_OK, "%s", err.text);
    cr_assert_eq(
        bb_space_map(rig->ctx, rig->space, IOAPIC_BASE, bb_ioapic_region(rig->ioapic), &err), BB_OK,
        "%s", err.text);
    cr_assert_eq(bb_device_create(rig->ctx, &wires, &rig->wires, &err), BB_OK, "%s", err.text);
    for (unsigned pin = 0; pin < PINS; pin++) {
        struct bb_line_sink sink = bb_ioapic_line_sink(rig->ioapic, pin);
        cr_assert_eq(bb_line_create(rig->ctx, "pin", &sink, &rig->line[pin], &err), BB_OK, "%s",
                     err.text);
        cr_assert_eq(bb_ioapic_connect(rig->ctx, rig->ioapic, pin, rig->line[pin]), BB_OK);
        for (unsigned i = 0; i < SOURCES; i++) {
            cr_assert_eq(
                bb_source_create(rig->ctx, rig->wires, rig->line[pin], &rig->source[pin][i], &err),
                BB_OK, "%s", err.text);
        }
    }
    return rig;
}

void tear_down(struct rig *rig)
{
    struct bb_error err = {0};

    if (rig->ioapic != NULL) {
        cr_assert_eq(bb_device_remove_wait(rig->ctx, bb_ioapic_device(rig->ioapic), &err), BB_OK,
                     "%s", err.text);
    }
    cr_assert_eq(bb_device_remove_wait(rig->ctx, rig->wires, &err), BB_OK, "%s", err.text);
    for (unsigned pin = 0; pin < PINS; pin++) {
        cr_assert_eq(bb_line_destroy(rig->ctx, rig->line[pin], &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_ctx_detach(rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(rig->engine, &err), BB_OK, "%s", err.text);
    free(rig);
}

uint32_t reg_read(struct rig *rig, struct bb_ctx *ctx, unsigned index)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, index), BB_OK);
    cr_assert_eq(bb_mmio_read(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, &value), BB_OK);
    return (uint32_t)value;
}

void reg_write(struct rig *rig, struct bb_ctx *ctx, unsigned index, uint32_t value)
{
    cr_assert_eq(bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOREGSEL, 4, index), BB_OK);
    cr_assert_eq(bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, value), BB_OK);
}

uint64_t entry_read(struct rig *rig, struct bb_ctx *ctx, unsigned pin)
{
    uint64_t low = reg_read(rig, ctx, 0x10 + 2 * pin);

    return low | (uint64_t)reg_read(rig, ctx, 0x11 + 2 * pin) << 32;
}

void entry_write(struct rig *rig, struct bb_ctx *ctx, unsigned pin, uint64_t value)
{
    reg_write(rig, ctx, 0x11 + 2 * pin, (uint32_t)(value >> 32));
    reg_write(rig, ctx, 0x10 + 2 * pin, (uint32_t)value);
}

void raise_pin(struct rig *rig, unsigned pin)
{
    bb_source_set(rig->ctx, rig->source[pin][0], true);
}

void lower_pin(struct rig *rig, unsigned pin)
{
    bb_source_set(rig->ctx, rig->source[pin][0], false);
}

void pulse_pin(struct rig *rig, unsigned pin)
{
    bb_source_pulse(rig->ctx, rig->source[pin][0]);
}

uint64_t delivered(const struct rig *rig, uint8_t vector)
{
    return bb_load_relaxed(&rig->by_vector[vector]);
}

uint64_t stress_ns(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");
    double seconds = text != NULL ? strtod(text, NULL) : 1.0;

    return (uint64_t)(seconds * 1e9);
}

uint64_t host_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t seed(uint64_t fallback)
{
    const char *text = getenv("BUSBAR_SEED");

    return text != NULL ? strtoull(text, NULL, 0) : fallback;
}
