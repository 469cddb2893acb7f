/* SPDX-License-Identifier: MIT */
/* See fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void transmitted(void *opaque, uint8_t byte)
{
    struct rig *rig = opaque;
    uint64_t n = bb_fetch_add_relaxed(&rig->sent_count, 1);

    if (n < sizeof(rig->sent)) {
        bb_store_relaxed(&rig->sent[n], byte);
    }
}

static void room(void *opaque)
{
    struct rig *rig = opaque;

    (void)bb_fetch_add_relaxed(&rig->room_calls, 1);
}

struct rig *set_up(void)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct bb_engine_config engine = {.clock_mode = BB_CLOCK_MANUAL};
    struct bb_space_config space = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_uart16550_config config = {.tx = transmitted, .rx_room = room, .opaque = rig};
    struct bb_error err = {0};

    cr_assert_not_null(rig);
    cr_assert_eq(bb_engine_create(&engine, &rig->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(rig->engine, "main", &rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(rig->ctx, &space, &rig->ports, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_line_create(rig->ctx, "irq4", NULL, &rig->irq, &err), BB_OK, "%s", err.text);
    config.irq = rig->irq;
    cr_assert_eq(bb_uart16550_create(rig->ctx, &config, &rig->uart, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(rig->ctx, rig->ports, PORT, bb_uart16550_region(rig->uart), &err),
                 BB_OK, "%s", err.text);
    return rig;
}

void tear_down(struct rig *rig)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(rig->ctx, bb_uart16550_device(rig->uart), &err), BB_OK, "%s",
                 err.text);
    cr_assert(!irq(rig), "removal withdraws the line");
    cr_assert_eq(bb_line_destroy(rig->ctx, rig->irq, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(rig->engine, &err), BB_OK, "%s", err.text);
    free(rig);
}

void out(struct rig *rig, unsigned reg, uint8_t value)
{
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->ports, PORT + reg, 1, value), BB_OK);
}

uint8_t in(struct rig *rig, unsigned reg)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(rig->ctx, rig->ports, PORT + reg, 1, &value), BB_OK);
    return (uint8_t)value;
}

bool irq(struct rig *rig)
{
    return bb_line_read(rig->irq).level;
}

size_t receive(struct rig *rig, const char *text)
{
    return bb_uart16550_receive(rig->ctx, rig->uart, (const uint8_t *)text, strlen(text));
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
