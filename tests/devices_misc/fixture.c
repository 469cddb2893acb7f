/* SPDX-License-Identifier: MIT */
/* See fixture.h. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <time.h>

static void exited(void *opaque, uint32_t code)
{
    struct rig *rig = opaque;

    bb_store_relaxed(&rig->exit_code, code);
    (void)bb_fetch_add_relaxed(&rig->exits, 1);
}

static void was_reset(void *opaque)
{
    struct rig *rig = opaque;

    (void)bb_fetch_add_relaxed(&rig->resets, 1);
}

static void map(struct rig *rig, bb_gpa_t port, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(rig->ctx, rig->ports, port, region, &err), BB_OK, "%s", err.text);
}

void map_fw_cfg(struct rig *rig)
{
    map(rig, 0x510, bb_fw_cfg_region(rig->fw_cfg));
}

static void make_devices(struct rig *rig)
{
    struct bb_ctx *ctx = rig->ctx;
    struct bb_debug_exit_config debug_exit = {.exit = exited, .opaque = rig};
    struct bb_fw_cfg_config fw_cfg = {.cpus = CPUS, .ram_bytes = RAM_BYTES};
    struct bb_i8042_config i8042 = {.reset = was_reset, .opaque = rig};
    struct bb_i8254_config i8254 = {.irq = rig->irq0};
    struct bb_mc146818_config rtc = {.base_unix_s = BASE_UNIX_S};
    struct bb_error err = {0};

    cr_assert_eq(bb_debug_exit_create(ctx, &debug_exit, &rig->debug_exit, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_fw_cfg_create(ctx, &fw_cfg, &rig->fw_cfg, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_i8042_create(ctx, &i8042, &rig->i8042, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_i8254_create(ctx, &i8254, &rig->i8254, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_mc146818_create(ctx, &rtc, &rig->rtc, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_pci_config_create(ctx, NULL, &rig->pci, &err), BB_OK, "%s", err.text);
    map(rig, 0xf4, bb_debug_exit_region(rig->debug_exit));
    map(rig, 0x60, bb_i8042_region(rig->i8042, BB_I8042_DATA));
    map(rig, 0x64, bb_i8042_region(rig->i8042, BB_I8042_COMMAND));
    map(rig, 0x40, bb_i8254_region(rig->i8254, BB_I8254_COUNTERS));
    map(rig, 0x61, bb_i8254_region(rig->i8254, BB_I8254_PORT_B));
    map(rig, 0x70, bb_mc146818_region(rig->rtc));
    map(rig, 0xcf8, bb_pci_config_region(rig->pci));
}

struct rig *set_up(void)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct bb_engine_config engine = {.clock_mode = BB_CLOCK_MANUAL};
    struct bb_space_config space = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_error err = {0};

    cr_assert_not_null(rig);
    cr_assert_eq(bb_engine_create(&engine, &rig->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(rig->engine, "main", &rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(rig->ctx, &space, &rig->ports, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_line_create(rig->ctx, "irq0", NULL, &rig->irq0, &err), BB_OK, "%s", err.text);
    make_devices(rig);
    return rig;
}

void tear_down(struct rig *rig)
{
    struct bb_device *devices[] = {
        bb_debug_exit_device(rig->debug_exit), bb_fw_cfg_device(rig->fw_cfg),
        bb_i8042_device(rig->i8042),           bb_i8254_device(rig->i8254),
        bb_mc146818_device(rig->rtc),          bb_pci_config_device(rig->pci),
    };
    struct bb_error err = {0};

    for (size_t i = 0; i < BB_ARRAY_LEN(devices); i++) {
        cr_assert_eq(bb_device_remove_wait(rig->ctx, devices[i], &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_line_destroy(rig->ctx, rig->irq0, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(rig->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(rig->engine, &err), BB_OK, "%s", err.text);
    free(rig);
}

void out_sized(struct rig *rig, unsigned port, unsigned size, uint32_t value)
{
    cr_assert_eq(bb_mmio_write(rig->ctx, rig->ports, port, size, value), BB_OK);
}

uint32_t in_sized(struct rig *rig, unsigned port, unsigned size)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(rig->ctx, rig->ports, port, size, &value), BB_OK);
    return (uint32_t)value;
}

void outb(struct rig *rig, unsigned port, uint8_t value)
{
    out_sized(rig, port, 1, value);
}

uint8_t inb(struct rig *rig, unsigned port)
{
    return (uint8_t)in_sized(rig, port, 1);
}

void step_ns(struct rig *rig, uint64_t ns)
{
    cr_assert_eq(bb_clock_step(rig->ctx, bb_engine_clock(rig->engine), ns, NULL), BB_OK);
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
