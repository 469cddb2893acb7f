/* SPDX-License-Identifier: MIT */
/*
 * Building the PC; see machine.h.
 *
 * One line for each global system interrupt. Its sink passes the notification on to the I/O APIC's
 * pin and, for the ISA interrupts, to the 8259's input, which both pull the line by themselves.
 * The 8259's output goes nowhere: with a split interrupt controller, guests take interrupts
 * through the I/O APIC, and find an 8259 only to mask it.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../base/bits.h"
#include "../devices/intc/i8259.h"
#include "../devices/misc/debug_exit.h"
#include "../devices/misc/fw_cfg.h"
#include "../devices/misc/i8042.h"
#include "../devices/misc/i8254.h"
#include "../devices/misc/mc146818.h"
#include "../devices/misc/pci_config.h"
#include "../devices/timer/hpet.h"
#include "../devices/timer/pmtimer.h"
#include "../memory/ram.h"
#include "board_ports.h"

/* Pins 16 to 23 carry no ISA interrupt: HPET timers may be routed there. */
#define HPET_ROUTES UINT32_C(0x00ff0000)

/* A serial input thread of a machine's, and its context. */
static __thread struct bb_ctx *input_ctx;

static void serial_tx(void *opaque, uint8_t byte)
{
    struct bb_machine *m = opaque;
    if (m->config.serial != NULL) {
        bb_serial_put(m->config.serial, byte);
    }
}

static void serial_room(void *opaque)
{
    struct bb_machine *m = opaque;
    if (m->config.serial != NULL) {
        bb_serial_room(m->config.serial);
    }
}

static void serial_attach(void *opaque)
{
    struct bb_machine *m = opaque;
    if (bb_ctx_attach(m->engine, "serial input", &input_ctx, NULL) != BB_OK) {
        input_ctx = NULL;
    }
}

/* Without a context, which only lack of memory explains, input is taken and lost. */
static size_t serial_input(void *opaque, const uint8_t *bytes, size_t count)
{
    struct bb_machine *m = opaque;
    return input_ctx != NULL ? bb_uart16550_receive(input_ctx, m->uart, bytes, count) : count;
}

static void serial_detach(void *opaque)
{
    (void)opaque;
    if (input_ctx != NULL) {
        bb_ctx_detach(input_ctx, NULL);
        input_ctx = NULL;
    }
}

struct bb_serial_hooks bb_machine_serial_hooks(struct bb_machine *m)
{
    return (struct bb_serial_hooks){
        .attach = serial_attach,
        .input = serial_input,
        .detach = serial_detach,
        .opaque = m,
    };
}

static void debug_exit(void *opaque, uint32_t code)
{
    struct bb_machine *m = opaque;
    bb_stop_request(m->config.stop, BB_STOP_DEBUG_EXIT, (code << 1 | 1) & 0xff);
}

static void reset_requested(void *opaque)
{
    struct bb_machine *m = opaque;
    bb_stop_request(m->config.stop, BB_STOP_RESET, 0);
}

/* Both sinks of a line; see the head of this file. */
static void line_notify(struct bb_ctx *ctx, void *opaque, unsigned gsi)
{
    const struct bb_machine *m = opaque;
    const struct bb_line_sink *ioapic = &m->ioapic_sinks[gsi];
    const struct bb_line_sink *pic = &m->pic_sinks[gsi];
    ioapic->notify(ctx, ioapic->opaque, ioapic->pin);
    if (pic->notify != NULL) {
        pic->notify(ctx, pic->opaque, pic->pin);
    }
}

/* The 8259 input of an I/O APIC pin; -1 where it has none. */
static int pic_input(unsigned gsi)
{
    if (gsi == BB_BOARD_GSI_TIMER) {
        return 0;
    }
    return gsi == 0 || gsi >= BB_I8259_PINS ? -1 : (int)gsi;
}

/* A device that was just created: remembers it for removal and maps one of its regions. */
static int place(struct bb_machine *m, struct bb_device *device, struct bb_region *region,
                 struct bb_space *space, bb_gpa_t at, struct bb_error *err)
{
    if (m->device_count == 0 || m->devices[m->device_count - 1] != device) {
        bb_machine_adopt(m, device);
    }
    return bb_space_map(m->ctx, space, at, region, err);
}

static int add_ram(struct bb_machine *m, struct bb_error *err)
{
    const struct {
        const char *name;
        bb_gpa_t at;
        void *host;
        uint64_t bytes;
    } parts[2] = {
        {"ram", 0, m->mem.host, m->mem.low_bytes},
        {"ram above 4 GiB", BB_RAM_HIGH_START, m->mem.host + m->mem.low_bytes, m->mem.high_bytes},
    };
    for (unsigned i = 0; i < 2 && parts[i].bytes != 0; i++) {
        struct bb_ram_config config = {
            .name = parts[i].name, .size_bytes = parts[i].bytes, .host = parts[i].host};
        int rc = bb_ram_create(m->ctx, &config, &m->ram[i], err);
        if (rc == BB_OK) {
            rc = bb_space_map(m->ctx, m->mmio, parts[i].at, m->ram[i], err);
        }
        if (rc != BB_OK) {
            return rc;
        }
    }
    return BB_OK;
}

static int add_interrupt_controllers(struct bb_machine *m, struct bb_error *err)
{
    struct bb_ioapic_config ioapic_config = {.pins = BB_BOARD_GSIS, .routes = m->config.routes};
    int rc = bb_ioapic_create(m->ctx, &ioapic_config, &m->ioapic, err);
    if (rc == BB_OK) {
        rc = place(m, bb_ioapic_device(m->ioapic), bb_ioapic_region(m->ioapic), m->mmio,
                   BB_BOARD_IOAPIC, err);
    }
    if (rc == BB_OK) {
        rc = bb_i8259_create(m->ctx, NULL, &m->pic, err);
    }
    if (rc != BB_OK) {
        return rc;
    }
    static const uint16_t ports[BB_I8259_PARTS] = {
        [BB_I8259_MASTER] = BB_BOARD_PIC_MASTER,
        [BB_I8259_SLAVE] = BB_BOARD_PIC_SLAVE,
        [BB_I8259_ELCR] = BB_BOARD_ELCR,
    };
    for (unsigned part = 0; part < BB_I8259_PARTS && rc == BB_OK; part++) {
        rc = place(m, bb_i8259_device(m->pic), bb_i8259_region(m->pic, part), m->pio, ports[part],
                   err);
    }
    return rc;
}

static int add_lines(struct bb_machine *m, struct bb_error *err)
{
    for (unsigned gsi = 0; gsi < BB_BOARD_GSIS; gsi++) {
        struct bb_line_sink sink = {.notify = line_notify, .opaque = m, .pin = gsi};
        int input = pic_input(gsi);
        char name[16];
        snprintf(name, sizeof(name), "gsi %u", gsi);
        m->ioapic_sinks[gsi] = bb_ioapic_line_sink(m->ioapic, gsi);
        if (input >= 0) {
            m->pic_sinks[gsi] = bb_i8259_line_sink(m->pic, (unsigned)input);
        }
        int rc = bb_line_create(m->ctx, name, &sink, &m->lines[gsi], err);
        if (rc == BB_OK) {
            rc = bb_ioapic_connect(m->ctx, m->ioapic, gsi, m->lines[gsi]);
        }
        if (rc == BB_OK && input >= 0) {
            rc = bb_i8259_connect(m->ctx, m->pic, (unsigned)input, m->lines[gsi]);
        }
        if (rc != BB_OK) {
            return rc;
        }
    }
    return BB_OK;
}

static int add_timers(struct bb_machine *m, struct bb_error *err)
{
    struct bb_clock *clock = bb_engine_clock(m->engine);
    struct bb_hpet_config hpet_config = {
        .clock = clock,
        .timers = BB_BOARD_HPET_TIMERS,
        .legacy_irq0 = m->lines[BB_BOARD_GSI_TIMER],
        .legacy_irq8 = m->lines[BB_BOARD_GSI_RTC],
        .msi_capable = true,
        .legacy_capable = true,
    };
    struct bb_pmtimer_config pm_config = {.clock = clock, .bits = 32};
    struct bb_i8254_config pit_config = {.irq = m->lines[BB_BOARD_GSI_TIMER]};
    struct bb_hpet *hpet;
    struct bb_pmtimer *pm;
    struct bb_i8254 *pit;

    for (unsigned i = 0; i < BB_BOARD_HPET_TIMERS; i++) {
        hpet_config.route_cap[i] = HPET_ROUTES;
    }
    for (unsigned gsi = 0; gsi < BB_BOARD_GSIS; gsi++) {
        hpet_config.lines[gsi] = m->lines[gsi];
    }
    int rc = bb_hpet_create(m->ctx, &hpet_config, &hpet, err);
    if (rc == BB_OK) {
        m->hpet_block_id = bb_hpet_block_id(hpet);
        rc = place(m, bb_hpet_device(hpet), bb_hpet_region(hpet), m->mmio, BB_BOARD_HPET, err);
    }
    if (rc == BB_OK) {
        rc = bb_pmtimer_create(m->ctx, &pm_config, &pm, err);
    }
    if (rc == BB_OK) {
        rc = place(m, bb_pmtimer_device(pm), bb_pmtimer_region(pm), m->pio, BB_BOARD_PM_TIMER, err);
    }
    if (rc == BB_OK) {
        rc = bb_i8254_create(m->ctx, &pit_config, &pit, err);
    }
    if (rc == BB_OK) {
        rc = place(m, bb_i8254_device(pit), bb_i8254_region(pit, BB_I8254_COUNTERS), m->pio,
                   BB_BOARD_PIT, err);
    }
    if (rc == BB_OK) {
        rc = place(m, bb_i8254_device(pit), bb_i8254_region(pit, BB_I8254_PORT_B), m->pio,
                   BB_BOARD_PORT_B, err);
    }
    return rc;
}

static int add_uart(struct bb_machine *m, struct bb_error *err)
{
    struct bb_uart16550_config config = {
        .irq = m->lines[BB_BOARD_GSI_UART],
        .tx = serial_tx,
        .rx_room = serial_room,
        .opaque = m,
    };
    int rc = bb_uart16550_create(m->ctx, &config, &m->uart, err);
    if (rc == BB_OK) {
        rc = place(m, bb_uart16550_device(m->uart), bb_uart16550_region(m->uart), m->pio,
                   BB_BOARD_UART, err);
    }
    return rc;
}

static int add_fw_cfg(struct bb_machine *m, struct bb_error *err)
{
    struct bb_fw_cfg_config config = {
        .cpus = (uint16_t)m->config.vcpus,
        .ram_bytes = m->mem.bytes,
    };
    struct bb_fw_cfg *dev;
    int rc = bb_fw_cfg_create(m->ctx, &config, &dev, err);
    if (rc == BB_OK) {
        rc = place(m, bb_fw_cfg_device(dev), bb_fw_cfg_region(dev), m->pio, BB_BOARD_FW_CFG, err);
    }
    return rc;
}

static int add_debug_exit(struct bb_machine *m, struct bb_error *err)
{
    struct bb_debug_exit_config config = {.exit = debug_exit, .opaque = m};
    struct bb_debug_exit *dev;
    int rc = bb_debug_exit_create(m->ctx, &config, &dev, err);
    if (rc == BB_OK) {
        rc = place(m, bb_debug_exit_device(dev), bb_debug_exit_region(dev), m->pio,
                   BB_BOARD_DEBUG_EXIT, err);
    }
    return rc;
}

static int add_i8042(struct bb_machine *m, struct bb_error *err)
{
    struct bb_i8042_config config = {.reset = reset_requested, .opaque = m};
    struct bb_i8042 *dev;
    int rc = bb_i8042_create(m->ctx, &config, &dev, err);
    if (rc == BB_OK) {
        rc = place(m, bb_i8042_device(dev), bb_i8042_region(dev, BB_I8042_DATA), m->pio,
                   BB_BOARD_I8042_DATA, err);
    }
    if (rc == BB_OK) {
        rc = place(m, bb_i8042_device(dev), bb_i8042_region(dev, BB_I8042_COMMAND), m->pio,
                   BB_BOARD_I8042_COMMAND, err);
    }
    return rc;
}

static int add_rtc_and_pci(struct bb_machine *m, struct bb_error *err)
{
    struct bb_mc146818_config rtc_config = {.base_unix_s = (int64_t)time(NULL)};
    struct bb_mc146818 *rtc;
    struct bb_pci_config *pci;
    int rc = bb_mc146818_create(m->ctx, &rtc_config, &rtc, err);
    if (rc == BB_OK) {
        rc = place(m, bb_mc146818_device(rtc), bb_mc146818_region(rtc), m->pio, BB_BOARD_RTC, err);
    }
    if (rc == BB_OK) {
        rc = bb_pci_config_create(m->ctx, NULL, &pci, err);
    }
    if (rc == BB_OK) {
        rc = place(m, bb_pci_config_device(pci), bb_pci_config_region(pci), m->pio,
                   BB_BOARD_PCI_CONFIG, err);
    }
    return rc;
}

static int add_board_ports(struct bb_machine *m, struct bb_error *err)
{
    struct bb_board_ports_config config = {.stop = m->config.stop, .mem = &m->mem};
    struct bb_device *device;
    for (unsigned gsi = 0; gsi < BB_BOARD_GSIS; gsi++) {
        config.lines[gsi] = m->lines[gsi];
    }
    int rc = bb_board_ports_create(m->ctx, m->pio, &config, &device, err);
    if (rc == BB_OK) {
        bb_machine_adopt(m, device);
    }
    return rc;
}

static int add_engine(struct bb_machine *m, struct bb_error *err)
{
    struct bb_engine_config engine_config = {
        .name = "busbar",
        .lock_mode = m->config.lock_mode,
        .clock_mode = BB_CLOCK_HOST,
        .msi_sink = m->config.msi_sink,
        .count_accesses = m->config.count_accesses,
    };
    struct bb_space_config mmio = {.name = "memory", .kind = BB_SPACE_MMIO};
    struct bb_space_config pio = {.name = "ports", .kind = BB_SPACE_PIO};
    int rc = bb_engine_create(&engine_config, &m->engine, err);
    if (rc == BB_OK) {
        rc = bb_ctx_attach(m->engine, "control", &m->ctx, err);
    }
    if (rc == BB_OK) {
        rc = bb_space_create(m->ctx, &mmio, &m->mmio, err);
    }
    if (rc == BB_OK) {
        rc = bb_space_create(m->ctx, &pio, &m->pio, err);
    }
    return rc;
}

/* In this order: lines need the controllers, devices the lines. */
static int (*const steps[])(struct bb_machine *m, struct bb_error *err) = {
    add_engine,      add_ram,         add_interrupt_controllers,
    add_lines,       add_timers,      add_uart,
    add_fw_cfg,      add_debug_exit,  add_i8042,
    add_rtc_and_pci, add_board_ports,
};

int bb_machine_create(const struct bb_machine_config *config, struct bb_machine **out,
                      struct bb_error *err)
{
    struct bb_machine *m = calloc(1, sizeof(*m));
    if (m == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a machine");
    }
    m->config = *config;
    int rc = bb_gmem_create(config->memory_bytes, &m->mem, err);
    for (size_t i = 0; i < BB_ARRAY_LEN(steps) && rc == BB_OK; i++) {
        rc = steps[i](m, err);
    }
    if (rc != BB_OK) {
        bb_machine_destroy(m, NULL);
        return rc;
    }
    *out = m;
    return BB_OK;
}

void bb_machine_adopt(struct bb_machine *m, struct bb_device *device)
{
    m->devices[m->device_count++] = device;
}

/* In reverse order of creation, so that who drives a line goes before who pulls it. */
static void remove_devices(struct bb_machine *m)
{
    while (m->device_count > 0) {
        struct bb_device *device = m->devices[--m->device_count];
        bool pulls_lines = (m->ioapic != NULL && device == bb_ioapic_device(m->ioapic)) ||
                           (m->pic != NULL && device == bb_i8259_device(m->pic));
        if (!pulls_lines) {
            bb_device_remove_wait(m->ctx, device, NULL);
            m->devices[m->device_count] = NULL;
        }
    }
    for (unsigned gsi = 0; gsi < BB_BOARD_GSIS; gsi++) {
        if (m->lines[gsi] == NULL) {
            continue;
        }
        bb_ioapic_connect(m->ctx, m->ioapic, gsi, NULL);
        if (pic_input(gsi) >= 0) {
            bb_i8259_connect(m->ctx, m->pic, (unsigned)pic_input(gsi), NULL);
        }
        bb_line_destroy(m->ctx, m->lines[gsi], NULL);
    }
    if (m->pic != NULL) {
        bb_device_remove_wait(m->ctx, bb_i8259_device(m->pic), NULL);
    }
    if (m->ioapic != NULL) {
        bb_device_remove_wait(m->ctx, bb_ioapic_device(m->ioapic), NULL);
    }
}

int bb_machine_destroy(struct bb_machine *m, struct bb_error *err)
{
    int rc = BB_OK;
    if (m->ctx != NULL) {
        remove_devices(m);
        for (unsigned i = 0; i < 2; i++) {
            if (m->ram[i] != NULL) {
                bb_region_remove_wait(m->ctx, m->ram[i], NULL);
            }
        }
        bb_ctx_detach(m->ctx, NULL);
    }
    if (m->engine != NULL) {
        rc = bb_engine_destroy(m->engine, err);
    }
    bb_gmem_destroy(&m->mem);
    free(m);
    return rc;
}
