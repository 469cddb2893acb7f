/* SPDX-License-Identifier: MIT */
/*
 * See machine.h. A program is a sequence of operations, each a byte and its operands; a program
 * that ends inside an operation has zeros for the rest of it. Addresses are drawn to a few bytes
 * around the devices' windows, so that most accesses reach one, and some miss it or straddle its
 * end. One operation in the set pulls a device out while the guest goes on using its addresses.
 */
#include "machine.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

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

enum {
    PINS = 24,       /* of the I/O APIC */
    PIC_PINS = 16,   /* of the pair of 8259s, ... */
    PIC_CASCADE = 2, /* ... of which this one is the slave's and takes no line */
    DEVICES_MAX = 16,
    WINDOWS_MAX = 32,
    STEP_MAX_NS = 20000, /* a periodic timer of one tick expires 2 000 times in it */
    RAM_BYTES = 0x10000,
};

struct window {
    bool pio;
    bb_gpa_t base;
    uint64_t bytes;
};

struct machine {
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *mmio;
    struct bb_space *pio;
    struct bb_region *ram;
    struct bb_line *pin[PINS];
    struct bb_line *pic_pin[PIC_PINS];
    struct bb_line *intr;
    struct bb_ioapic *ioapic;
    struct bb_i8259 *pic;
    struct bb_uart16550 *uart;
    struct bb_device *wires; /* owns the sources by which the program drives pins itself */
    struct bb_source *source[PINS];
    struct bb_source *pic_source[PIC_PINS];
    struct bb_device *device[DEVICES_MAX]; /* in order of removal; NULL once removed */
    unsigned devices;
    struct window window[WINDOWS_MAX];
    unsigned windows;
    uint64_t messages;
    pthread_mutex_t mutex;
    pthread_cond_t all_removed;
    unsigned removing; /* guarded by mutex: removals whose `removed` has not been called */
    struct bb_error err;
    char text[512];
};

struct program {
    const uint8_t *bytes;
    size_t left;
};

static uint64_t take(struct program *program, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes && program->left > 0; i++) {
        value |= (uint64_t)*program->bytes << (8 * i);
        program->bytes++;
        program->left--;
    }
    return value;
}

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    struct machine *m = opaque;

    (void)ctx;
    m->messages++;
    /* Some messages are nobody's. */
    return ((address ^ data) & 0x80) != 0 ? BB_E_DEVICE : BB_OK;
}

static void drop_byte(void *opaque, uint8_t byte)
{
    (void)opaque;
    (void)byte;
}

static void drop_code(void *opaque, uint32_t code)
{
    (void)opaque;
    (void)code;
}

static void drop_reset(void *opaque)
{
    (void)opaque;
}

/* Evaluates to true where a step of building or taking down failed; notes which. */
#define BAD(m, call) is_bad(m, #call, call)

static bool is_bad(struct machine *m, const char *call, int result)
{
    if (result != BB_OK) {
        snprintf(m->text, sizeof(m->text), "%.200s: %s %.200s", call, bb_result_name(result),
                 m->err.text);
    }
    return result != BB_OK;
}

static bool add_window(struct machine *m, bool pio, bb_gpa_t base, struct bb_region *region)
{
    m->window[m->windows++] =
        (struct window){.pio = pio, .base = base, .bytes = bb_region_size(region)};
    return !BAD(m, bb_space_map(m->ctx, pio ? m->pio : m->mmio, base, region, &m->err));
}

static bool build_lines(struct machine *m)
{
    struct bb_device_config wires = {.name = "wires"};

    if (BAD(m, bb_device_create(m->ctx, &wires, &m->wires, &m->err))) {
        return false;
    }
    m->device[m->devices++] = m->wires;
    for (unsigned i = 0; i < PINS; i++) {
        struct bb_line_sink sink = bb_ioapic_line_sink(m->ioapic, i);
        if (BAD(m, bb_line_create(m->ctx, "pin", &sink, &m->pin[i], &m->err)) ||
            BAD(m, bb_ioapic_connect(m->ctx, m->ioapic, i, m->pin[i])) ||
            BAD(m, bb_source_create(m->ctx, m->wires, m->pin[i], &m->source[i], &m->err))) {
            return false;
        }
    }
    for (unsigned i = 0; i < PIC_PINS; i++) {
        struct bb_line_sink sink = bb_i8259_line_sink(m->pic, i);
        if (BAD(m, bb_line_create(m->ctx, "irq", &sink, &m->pic_pin[i], &m->err)) ||
            (i != PIC_CASCADE && BAD(m, bb_i8259_connect(m->ctx, m->pic, i, m->pic_pin[i]))) ||
            BAD(m, bb_source_create(m->ctx, m->wires, m->pic_pin[i], &m->pic_source[i], &m->err))) {
            return false;
        }
    }
    return true;
}

static bool build_timers(struct machine *m)
{
    struct bb_clock *clock = bb_engine_clock(m->engine);
    struct bb_hpet_config hpet_config = {
        .clock = clock,
        .timers = 3,
        .msi_capable = true,
        .legacy_capable = true,
        .legacy_irq0 = m->pin[2],
        .legacy_irq8 = m->pin[8],
    };
    struct bb_pmtimer_config pm_config = {.clock = clock, .bits = 32};
    struct bb_i8254_config pit_config = {.irq = m->pic_pin[0]};
    struct bb_mc146818_config rtc_config = {.base_unix_s = 1700000000};
    struct bb_hpet *hpet;
    struct bb_pmtimer *pm;
    struct bb_i8254 *pit;
    struct bb_mc146818 *rtc;

    for (unsigned i = 0; i < PINS; i++) {
        hpet_config.lines[i] = m->pin[i];
    }
    for (unsigned i = 0; i < 3; i++) {
        hpet_config.route_cap[i] = 0x00ff0104;
    }
    if (BAD(m, bb_hpet_create(m->ctx, &hpet_config, &hpet, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_hpet_device(hpet);
    if (BAD(m, bb_pmtimer_create(m->ctx, &pm_config, &pm, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_pmtimer_device(pm);
    if (BAD(m, bb_i8254_create(m->ctx, &pit_config, &pit, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_i8254_device(pit);
    if (BAD(m, bb_mc146818_create(m->ctx, &rtc_config, &rtc, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_mc146818_device(rtc);
    return add_window(m, false, 0xfed00000, bb_hpet_region(hpet)) &&
           add_window(m, true, 0x608, bb_pmtimer_region(pm)) &&
           add_window(m, true, 0x40, bb_i8254_region(pit, BB_I8254_COUNTERS)) &&
           add_window(m, true, 0x61, bb_i8254_region(pit, BB_I8254_PORT_B)) &&
           add_window(m, true, 0x70, bb_mc146818_region(rtc));
}

static bool build_ports(struct machine *m)
{
    struct bb_uart16550_config uart_config = {.irq = m->pin[4], .tx = drop_byte};
    struct bb_debug_exit_config exit_config = {.exit = drop_code};
    struct bb_fw_cfg_config fw_config = {.cpus = 4, .ram_bytes = RAM_BYTES};
    struct bb_i8042_config kbd_config = {.reset = drop_reset};
    struct bb_debug_exit *debug_exit;
    struct bb_fw_cfg *fw_cfg;
    struct bb_i8042 *kbd;
    struct bb_pci_config *pci;

    if (BAD(m, bb_uart16550_create(m->ctx, &uart_config, &m->uart, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_uart16550_device(m->uart);
    if (BAD(m, bb_debug_exit_create(m->ctx, &exit_config, &debug_exit, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_debug_exit_device(debug_exit);
    if (BAD(m, bb_fw_cfg_create(m->ctx, &fw_config, &fw_cfg, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_fw_cfg_device(fw_cfg);
    if (BAD(m, bb_i8042_create(m->ctx, &kbd_config, &kbd, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_i8042_device(kbd);
    if (BAD(m, bb_pci_config_create(m->ctx, NULL, &pci, &m->err))) {
        return false;
    }
    m->device[m->devices++] = bb_pci_config_device(pci);
    return add_window(m, true, 0x3f8, bb_uart16550_region(m->uart)) &&
           add_window(m, true, 0xf4, bb_debug_exit_region(debug_exit)) &&
           add_window(m, true, 0x510, bb_fw_cfg_region(fw_cfg)) &&
           add_window(m, true, 0x60, bb_i8042_region(kbd, BB_I8042_DATA)) &&
           add_window(m, true, 0x64, bb_i8042_region(kbd, BB_I8042_COMMAND)) &&
           add_window(m, true, 0xcf8, bb_pci_config_region(pci));
}

static bool build(struct machine *m)
{
    struct bb_engine_config config = {
        .name = "fuzz",
        .clock_mode = BB_CLOCK_MANUAL,
        .msi_sink = {.deliver = deliver, .opaque = m},
    };
    struct bb_space_config mmio = {.name = "memory", .kind = BB_SPACE_MMIO};
    struct bb_space_config pio = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_ram_config ram = {.name = "ram", .size_bytes = RAM_BYTES};
    struct bb_i8259_config pic_config = {0};

    if (BAD(m, bb_engine_create(&config, &m->engine, &m->err)) ||
        BAD(m, bb_ctx_attach(m->engine, "guest", &m->ctx, &m->err)) ||
        BAD(m, bb_space_create(m->ctx, &mmio, &m->mmio, &m->err)) ||
        BAD(m, bb_space_create(m->ctx, &pio, &m->pio, &m->err)) ||
        BAD(m, bb_ram_create(m->ctx, &ram, &m->ram, &m->err)) ||
        BAD(m, bb_line_create(m->ctx, "intr", NULL, &m->intr, &m->err)) ||
        BAD(m, bb_ioapic_create(m->ctx, NULL, &m->ioapic, &m->err))) {
        return false;
    }
    pic_config.intr = m->intr;
    if (BAD(m, bb_i8259_create(m->ctx, &pic_config, &m->pic, &m->err))) {
        return false;
    }
    return build_lines(m) && build_timers(m) && build_ports(m) && add_window(m, false, 0, m->ram) &&
           add_window(m, false, 0xfec00000, bb_ioapic_region(m->ioapic)) &&
           add_window(m, true, 0x20, bb_i8259_region(m->pic, BB_I8259_MASTER)) &&
           add_window(m, true, 0xa0, bb_i8259_region(m->pic, BB_I8259_SLAVE)) &&
           add_window(m, true, 0x4d0, bb_i8259_region(m->pic, BB_I8259_ELCR));
}

/* Sources first, sinks last, as their headers ask. */
static bool take_down(struct machine *m)
{
    for (unsigned i = 0; i < m->devices; i++) {
        if (m->device[i] != NULL && BAD(m, bb_device_remove_wait(m->ctx, m->device[i], &m->err))) {
            return false;
        }
    }
    for (unsigned i = 0; i < PINS; i++) {
        if (bb_line_read(m->pin[i]).level) {
            snprintf(m->text, sizeof(m->text), "pin %u is asserted by nobody", i);
            return false;
        }
        bb_ioapic_connect(m->ctx, m->ioapic, i, NULL);
        if (BAD(m, bb_line_destroy(m->ctx, m->pin[i], &m->err))) {
            return false;
        }
    }
    for (unsigned i = 0; i < PIC_PINS; i++) {
        bb_i8259_connect(m->ctx, m->pic, i, NULL);
        if (BAD(m, bb_line_destroy(m->ctx, m->pic_pin[i], &m->err))) {
            return false;
        }
    }
    return !BAD(m, bb_device_remove_wait(m->ctx, bb_ioapic_device(m->ioapic), &m->err)) &&
           !BAD(m, bb_device_remove_wait(m->ctx, bb_i8259_device(m->pic), &m->err)) &&
           !BAD(m, bb_line_destroy(m->ctx, m->intr, &m->err)) &&
           !BAD(m, bb_region_remove_wait(m->ctx, m->ram, &m->err)) &&
           !BAD(m, bb_ctx_detach(m->ctx, &m->err)) &&
           !BAD(m, bb_engine_destroy(m->engine, &m->err));
}

static bool known_result(int result)
{
    return result == BB_OK || result == BB_E_DECODE || result == BB_E_DEVICE ||
           result == BB_E_RANGE;
}

static bool run_access(struct machine *m, struct program *program, bool write)
{
    const struct window *window = &m->window[take(program, 1) % m->windows];
    /* From 8 bytes before the window to 8 behind it. */
    bb_gpa_t gpa = window->base + take(program, 2) % (window->bytes + 16) - 8;
    unsigned size = (unsigned)take(program, 1) % 10;
    struct bb_space *space = window->pio ? m->pio : m->mmio;
    uint64_t value = 0;
    int result;

    if (write) {
        result = bb_mmio_write(m->ctx, space, gpa, size, take(program, size < 8 ? size : 8));
    } else {
        result = bb_mmio_read(m->ctx, space, gpa, size, &value);
    }
    if (!known_result(result)) {
        snprintf(m->text, sizeof(m->text), "a %s of %u bytes at %#llx returned %s",
                 write ? "write" : "read", size, (unsigned long long)gpa, bb_result_name(result));
        return false;
    }
    if (size >= 1 && size < 8 && (value >> (8 * size)) != 0) {
        snprintf(m->text, sizeof(m->text), "a read of %u bytes at %#llx gave %#llx", size,
                 (unsigned long long)gpa, (unsigned long long)value);
        return false;
    }
    return true;
}

static bool run_operation(struct machine *m, struct program *program)
{
    uint8_t byte;
    unsigned pin;

    switch (take(program, 1) % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
        return run_access(m, program, false);
    case 4:
    case 5:
    case 6:
    case 7:
    case 8:
        return run_access(m, program, true);
    case 9:
        return !BAD(m, bb_clock_step(m->ctx, bb_engine_clock(m->engine),
                                     take(program, 2) % STEP_MAX_NS, &m->err));
    case 10:
        pin = (unsigned)take(program, 1);
        if (m->device[0] != NULL) {
            bb_source_set(m->ctx, m->source[pin % PINS], (pin & 0x80) != 0);
            bb_source_set(m->ctx, m->pic_source[pin % PIC_PINS], (pin & 0x80) != 0);
        }
        return true;
    case 11:
        pin = (unsigned)take(program, 1);
        if (m->device[0] != NULL) {
            bb_source_pulse(m->ctx, m->source[pin % PINS]);
            bb_source_pulse(m->ctx, m->pic_source[pin % PIC_PINS]);
        }
        return true;
    case 12:
        bb_ioapic_eoi(m->ctx, m->ioapic, (uint8_t)take(program, 1));
        return true;
    case 13:
        byte = (uint8_t)take(program, 1);
        if (byte < 248) {
            (void)bb_i8259_acknowledge(m->ctx, m->pic);
            return true;
        }
        /* Rarely: it waits for a grace period. */
        return !BAD(m, bb_engine_pause(m->ctx, 0, &m->err)) &&
               !BAD(m, bb_engine_resume(m->ctx, &m->err));
    case 14:
        byte = (uint8_t)take(program, 1);
        if (m->uart != NULL) {
            (void)bb_uart16550_receive(m->ctx, m->uart, &byte, 1);
        }
        return true;
    default:
        pin = (unsigned)take(program, 1);
        if (pin >= m->devices || m->device[pin] == NULL) {
            return true;
        }
        struct bb_device *gone = m->device[pin];
        m->device[pin] = NULL;
        if (m->uart != NULL && gone == bb_uart16550_device(m->uart)) {
            m->uart = NULL;
        }
        return !BAD(m, bb_device_remove_wait(m->ctx, gone, &m->err));
    }
}

const char *machine_run_program(const uint8_t *bytes, size_t n)
{
    static char text[512];
    struct machine m = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                        .all_removed = PTHREAD_COND_INITIALIZER};
    struct program program = {.bytes = bytes, .left = n};
    bool good = build(&m);

    while (good && program.left > 0) {
        good = run_operation(&m, &program);
    }
    if (good && take_down(&m)) {
        return NULL;
    }
    memcpy(text, m.text, sizeof(text));
    return text;
}
