/* SPDX-License-Identifier: MIT */
/* The stall test's machine; see machine.h. */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>

#include "../../base/bits.h"
#include "../../devices/intc/i8259.h"
#include "../../devices/intc/ioapic.h"
#include "../../devices/misc/debug_exit.h"
#include "../../devices/misc/fw_cfg.h"
#include "../../devices/misc/i8042.h"
#include "../../devices/misc/i8254.h"
#include "../../devices/misc/mc146818.h"
#include "../../devices/misc/pci_config.h"
#include "../../devices/serial/uart16550.h"
#include "../../devices/timer/hpet.h"
#include "../../devices/timer/pmtimer.h"
#include "../../memory/ram.h"

static struct bb_error err;

static void check(int result, const char *what)
{
    if (result != BB_OK) {
        (void)fprintf(stderr, "stall machine: %s: %s: %s\n", what, bb_result_name(result),
                      err.text);
        abort();
    }
}

static void map(struct machine *machine, struct bb_space *space, bb_gpa_t gpa,
                struct bb_region *region)
{
    check(bb_space_map(machine->ctx, space, gpa, region, &err), bb_region_name(region));
    machine->mapped[machine->mapped_count++] = (struct mapped){region, space, gpa};
}

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    (void)address;
    (void)data;
    return BB_OK;
}

static void ignore_exit(void *opaque, uint32_t code)
{
    (void)opaque;
    (void)code;
}

static int plain_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    (void)ctx;
    (void)opaque;
    (void)size;
    *value = offset;
    return BB_OK;
}

static int plain_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    (void)value;
    return BB_OK;
}

static void build_interrupts(struct machine *machine)
{
    struct bb_ioapic_config config = {0};
    struct bb_device_config board = {.name = "board"};
    char name[16];

    check(bb_device_create(machine->ctx, &board, &machine->board, &err), "board");
    check(bb_ioapic_create(machine->ctx, &config, &machine->ioapic, &err), "ioapic");
    for (unsigned pin = 0; pin < MACHINE_PINS; pin++) {
        struct bb_line_sink sink = bb_ioapic_line_sink(machine->ioapic, pin);

        (void)snprintf(name, sizeof(name), "gsi%u", pin);
        check(bb_line_create(machine->ctx, name, &sink, &machine->lines[pin], &err), name);
        check(bb_ioapic_connect(machine->ctx, machine->ioapic, pin, machine->lines[pin]), name);
    }
    check(bb_source_create(machine->ctx, machine->board, machine->lines[3], &machine->edge, &err),
          "source");
    check(bb_source_create(machine->ctx, machine->board, machine->lines[4], &machine->level, &err),
          "source");
    check(bb_source_create(machine->ctx, machine->board, machine->lines[4], &machine->other, &err),
          "source");
    map(machine, machine->mmio, 0xfec00000, bb_ioapic_region(machine->ioapic));
    /* Pin 3: edge, vector 0x33; pin 4: level, vector 0x44; both unmasked. */
    static const uint32_t entries[][2] = {{0x16, 0x33}, {0x17, 0}, {0x18, 0x8044}, {0x19, 0}};
    for (unsigned i = 0; i < BB_ARRAY_LEN(entries); i++) {
        (void)bb_mmio_write(machine->ctx, machine->mmio, 0xfec00000, 4, entries[i][0]);
        (void)bb_mmio_write(machine->ctx, machine->mmio, 0xfec00010, 4, entries[i][1]);
    }
}

static void build_timers(struct machine *machine)
{
    struct bb_hpet_config hpet_config = {
        .clock = bb_engine_clock(machine->engine), .msi_capable = true, .legacy_capable = true};
    struct bb_pmtimer_config pm_config = {.clock = bb_engine_clock(machine->engine)};
    struct bb_hpet *hpet;
    struct bb_pmtimer *pm;

    for (unsigned pin = 0; pin < MACHINE_PINS; pin++) {
        hpet_config.lines[pin] = machine->lines[pin];
    }
    for (unsigned timer = 0; timer < 3; timer++) {
        hpet_config.route_cap[timer] = 0x00f00000;
    }
    hpet_config.legacy_irq0 = machine->lines[2];
    hpet_config.legacy_irq8 = machine->lines[8];
    check(bb_hpet_create(machine->ctx, &hpet_config, &hpet, &err), "hpet");
    map(machine, machine->mmio, 0xfed00000, bb_hpet_region(hpet));
    check(bb_pmtimer_create(machine->ctx, &pm_config, &pm, &err), "pm timer");
    map(machine, machine->pio, 0x608, bb_pmtimer_region(pm));
}

static void build_ports(struct machine *machine)
{
    struct bb_ctx *ctx = machine->ctx;
    struct bb_uart16550_config uart_config = {.irq = machine->lines[4]};
    struct bb_uart16550 *uart;
    struct bb_debug_exit_config exit_config = {.exit = ignore_exit};
    struct bb_debug_exit *debug_exit;
    struct bb_fw_cfg_config fw_config = {.cpus = 2, .ram_bytes = 1 << 20};
    struct bb_fw_cfg *fw_cfg;
    struct bb_i8042_config i8042_config = {0};
    struct bb_i8042 *i8042;
    struct bb_i8254_config i8254_config = {0};
    struct bb_i8254 *i8254;
    struct bb_mc146818_config rtc_config = {0};
    struct bb_mc146818 *rtc;
    struct bb_pci_config_config pci_config = {0};
    struct bb_pci_config *pci;
    struct bb_i8259_config i8259_config = {0};
    struct bb_i8259 *i8259;

    check(bb_uart16550_create(ctx, &uart_config, &uart, &err), "uart");
    map(machine, machine->pio, 0x3f8, bb_uart16550_region(uart));
    check(bb_debug_exit_create(ctx, &exit_config, &debug_exit, &err), "debug exit");
    map(machine, machine->pio, 0xf4, bb_debug_exit_region(debug_exit));
    check(bb_fw_cfg_create(ctx, &fw_config, &fw_cfg, &err), "fw_cfg");
    map(machine, machine->pio, 0x510, bb_fw_cfg_region(fw_cfg));
    check(bb_i8042_create(ctx, &i8042_config, &i8042, &err), "i8042");
    map(machine, machine->pio, 0x60, bb_i8042_region(i8042, 0));
    map(machine, machine->pio, 0x64, bb_i8042_region(i8042, 1));
    check(bb_i8254_create(ctx, &i8254_config, &i8254, &err), "i8254");
    map(machine, machine->pio, 0x40, bb_i8254_region(i8254, 0));
    map(machine, machine->pio, 0x61, bb_i8254_region(i8254, 1));
    check(bb_mc146818_create(ctx, &rtc_config, &rtc, &err), "rtc");
    map(machine, machine->pio, 0x70, bb_mc146818_region(rtc));
    check(bb_pci_config_create(ctx, &pci_config, &pci, &err), "pci");
    map(machine, machine->pio, 0xcf8, bb_pci_config_region(pci));
    check(bb_i8259_create(ctx, &i8259_config, &i8259, &err), "i8259");
    map(machine, machine->pio, 0x20, bb_i8259_region(i8259, 0));
    map(machine, machine->pio, 0xa0, bb_i8259_region(i8259, 1));
    map(machine, machine->pio, 0x4d0, bb_i8259_region(i8259, 2));
}

static void build_plain(struct machine *machine)
{
    static const struct bb_region_ops ops = {.read = plain_read, .write = plain_write};
    struct bb_device_config device_config = {.name = "plain"};
    struct bb_region_config spare = {.name = "spare", .size_bytes = 0x1000, .ops = &ops};
    struct bb_region_config locked = {
        .name = "locked", .size_bytes = 0x1000, .ops = &ops, .klass = BB_CLASS_DEVICE_LOCK};
    struct bb_ram_config ram_config = {.name = "ram", .size_bytes = 0x10000};
    struct bb_device *device;
    struct bb_region *ram;

    check(bb_device_create(machine->ctx, &device_config, &device, &err), "plain");
    check(bb_device_region_create(machine->ctx, device, &spare, &machine->spare, &err), "spare");
    check(bb_device_region_create(machine->ctx, device, &locked, &machine->locked, &err), "locked");
    map(machine, machine->mmio, 0xfd000000, machine->locked);
    check(bb_ram_create(machine->ctx, &ram_config, &ram, &err), "ram");
    check(bb_space_map(machine->ctx, machine->mmio, 0, ram, &err), "ram");
}

void machine_build(struct machine *machine)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver},
                                      /* A stopped reader is the point: don't report it. */
                                      .stall_report_ns = UINT64_C(3600000000000)};
    struct bb_space_config mmio = {.name = "mmio"};
    struct bb_space_config pio = {.name = "pio", .kind = BB_SPACE_PIO};

    check(bb_engine_create(&config, &machine->engine, &err), "engine");
    check(bb_ctx_attach(machine->engine, "builder", &machine->ctx, &err), "ctx");
    check(bb_space_create(machine->ctx, &mmio, &machine->mmio, &err), "mmio");
    check(bb_space_create(machine->ctx, &pio, &machine->pio, &err), "pio");
    build_interrupts(machine);
    build_timers(machine);
    build_ports(machine);
    build_plain(machine);
}
