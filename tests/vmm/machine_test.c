/* SPDX-License-Identifier: MIT */
/* The PC as a guest's accesses find it, without KVM: what is where, and the board's own ports. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#include "../../base/atomic.h"
#include "../../engine/access.h"
#include "../../vmm/machine.h"

enum { RAM_BYTES = 4 << 20, MESSAGES_MAX = 16 };

static struct {
    struct bb_stop stop;
    struct bb_machine *machine;
    struct bb_ctx *ctx;
    unsigned messages;
    uint32_t data[MESSAGES_MAX];
    uint32_t page_done; /* (a) the test -> its writer */
} f;

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    (void)address;
    if (f.messages < MESSAGES_MAX) {
        f.data[f.messages] = data;
    }
    f.messages++;
    return BB_OK;
}

static void set_up_with(enum bb_lock_mode mode)
{
    struct bb_error err = {0};
    memset(&f, 0, sizeof(f));
    cr_assert_eq(bb_stop_init(&f.stop, &err), BB_OK);
    struct bb_machine_config config = {
        .vcpus = 3,
        .memory_bytes = RAM_BYTES,
        .lock_mode = mode,
        .msi_sink = {.deliver = deliver},
        .stop = &f.stop,
    };
    cr_assert_eq(bb_machine_create(&config, &f.machine, &err), BB_OK, "%s", err.text);
    f.ctx = f.machine->ctx;
}

static void set_up(void)
{
    set_up_with(BB_LOCK_FREE);
}

static void tear_down(void)
{
    struct bb_error err = {0};
    cr_assert_eq(bb_machine_destroy(f.machine, &err), BB_OK, "%s", err.text);
    bb_stop_fini(&f.stop);
}

TestSuite(machine, .init = set_up, .fini = tear_down);

static uint64_t in(uint16_t port, unsigned size)
{
    uint64_t value = 0;
    bb_mmio_read(f.ctx, f.machine->pio, port, size, &value);
    return value;
}

static void out(uint16_t port, unsigned size, uint64_t value)
{
    bb_mmio_write(f.ctx, f.machine->pio, port, size, value);
}

static uint64_t read_mmio(uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    bb_mmio_read(f.ctx, f.machine->mmio, gpa, size, &value);
    return value;
}

static void write_mmio(uint64_t gpa, unsigned size, uint64_t value)
{
    bb_mmio_write(f.ctx, f.machine->mmio, gpa, size, value);
}

static uint64_t ioapic_read(unsigned reg)
{
    write_mmio(BB_BOARD_IOAPIC, 4, reg);
    return read_mmio(BB_BOARD_IOAPIC + 0x10, 4);
}

static void ioapic_write(unsigned reg, uint32_t value)
{
    write_mmio(BB_BOARD_IOAPIC, 4, reg);
    write_mmio(BB_BOARD_IOAPIC + 0x10, 4, value);
}

static enum bb_stop_reason reason(unsigned *status)
{
    return bb_stop_reason(&f.stop, status);
}

Test(machine, each_device_answers_where_the_board_says)
{
    cr_assert_eq(read_mmio(BB_BOARD_HPET, 8) & 0xffffffff, f.machine->hpet_block_id);
    cr_assert_eq(ioapic_read(1), 0x170020u);
    cr_assert_eq(in(BB_BOARD_UART + 5, 1) & 0x60, 0x60u);
    out(BB_BOARD_PIC_MASTER + 1, 1, 0xa5);
    cr_assert_eq(in(BB_BOARD_PIC_MASTER + 1, 1), 0xa5u);
    out(BB_BOARD_PIC_SLAVE + 1, 1, 0x5a);
    cr_assert_eq(in(BB_BOARD_PIC_SLAVE + 1, 1), 0x5au);
    cr_assert_neq(in(BB_BOARD_I8042_COMMAND, 1), 0xffu);
    out(BB_BOARD_RTC, 1, 0x0d);
    cr_assert_eq(in(BB_BOARD_RTC + 1, 1) & 0x80, 0x80u);
    out(BB_BOARD_PCI_CONFIG, 4, 0x80000000);
    cr_assert_neq(in(BB_BOARD_PCI_CONFIG + 4, 4), 0xffffffffu);
    out(BB_BOARD_FW_CFG, 2, 5);
    cr_assert_eq(in(BB_BOARD_FW_CFG + 1, 1), 3u);
    out(BB_BOARD_FW_CFG, 2, 3);
    uint64_t ram = 0;
    for (unsigned i = 0; i < 8; i++) {
        ram |= in(BB_BOARD_FW_CFG + 1, 1) << (8 * i);
    }
    cr_assert_eq(ram, (uint64_t)RAM_BYTES);
    cr_assert_eq(in(0x1234, 4), 0xffffffffu);
}

Test(machine, ram_is_the_memory_that_loaders_write)
{
    memcpy(bb_gmem_at(&f.machine->mem, 0x1234, 4), "\x78\x56\x34\x12", 4);
    cr_assert_eq(read_mmio(0x1234, 4), 0x12345678u);
    write_mmio(RAM_BYTES - 1, 1, 0x7e);
    cr_assert_eq(*(uint8_t *)bb_gmem_at(&f.machine->mem, RAM_BYTES - 1, 1), 0x7e);
    cr_assert_eq(read_mmio(RAM_BYTES, 1), 0xffu);
}

Test(machine, debug_exit_stops_with_code_and_only_the_first_counts)
{
    unsigned status;
    out(BB_BOARD_DEBUG_EXIT, 4, 5);
    out(BB_BOARD_DEBUG_EXIT, 4, 7);
    cr_assert_eq(reason(&status), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(status, 11u);
}

Test(machine, s5_powers_off_and_other_sleep_types_do_not)
{
    for (unsigned type = 0; type < 8; type++) {
        out(BB_BOARD_PM1A_CONTROL, 2, (uint64_t)type << 10);
        cr_assert_eq(reason(NULL), BB_STOP_NONE, "type %u without SLP_EN", type);
        if (type != 5) {
            out(BB_BOARD_PM1A_CONTROL, 2, 1u << 13 | (uint64_t)type << 10);
            cr_assert_eq(reason(NULL), BB_STOP_NONE, "type %u", type);
        }
    }
    cr_assert_eq(in(BB_BOARD_PM1A_CONTROL, 2) & 1, 1u);
    out(BB_BOARD_PM1A_CONTROL, 2, 1u << 13 | 5u << 10);
    cr_assert_eq(reason(NULL), BB_STOP_POWER_OFF);
    cr_assert_eq(in(BB_BOARD_PM1A_CONTROL, 2) & (1u << 13), 0u, "SLP_EN is write-only");
}

Test(machine, pm1a_enable_is_kept_and_status_stays_clear)
{
    out(BB_BOARD_PM1A_EVENT, 2, 0xffff);
    cr_assert_eq(in(BB_BOARD_PM1A_EVENT, 2), 0u);
    out(BB_BOARD_PM1A_EVENT + 2, 2, 0x0121);
    cr_assert_eq(in(BB_BOARD_PM1A_EVENT + 2, 2), 0x0121u);
    cr_assert_eq(in(BB_BOARD_PM1A_EVENT, 4), 0x01210000u);
}

static void say(const char *text)
{
    for (; *text != '\0'; text++) {
        out(BB_BOARD_SHUTDOWN, 1, (uint8_t)*text);
    }
}

Test(machine, shutdown_text_powers_off_whatever_came_before)
{
    say("shutdown");
    say("Shutdow");
    cr_assert_eq(reason(NULL), BB_STOP_NONE);
    say("ShutdShutdown");
    cr_assert_eq(reason(NULL), BB_STOP_POWER_OFF);
}

Test(machine, keyboard_controller_reset_asks_for_the_end)
{
    out(BB_BOARD_I8042_COMMAND, 1, 0xfe);
    cr_assert_eq(reason(NULL), BB_STOP_RESET);
}

Test(machine, interrupt_ports_raise_their_pin_once_an_edge)
{
    const uint16_t pin = 17;
    ioapic_write(0x10u + 2u * pin + 1, 0);
    ioapic_write(0x10u + 2u * pin, 0x41);
    out((uint16_t)(BB_BOARD_IRQ_PORT + pin), 1, 1);
    out((uint16_t)(BB_BOARD_IRQ_PORT + pin), 1, 1);
    cr_assert_eq(f.messages, 1u);
    out((uint16_t)(BB_BOARD_IRQ_PORT + pin), 1, 0);
    out((uint16_t)(BB_BOARD_IRQ_PORT + pin), 1, 1);
    cr_assert_eq(f.messages, 2u);
    cr_assert_eq(f.data[1] & 0xff, 0x41u);
    out((uint16_t)(BB_BOARD_IRQ_PORT + pin + 1), 1, 1);
    cr_assert_eq(f.messages, 2u);
}

Test(machine, page_port_keeps_the_page_and_ignores_what_is_no_ram)
{
    uint8_t *page = bb_gmem_at(&f.machine->mem, 0x5000, 4096);
    memset(page, 0x5a, 4096);
    out(BB_BOARD_ZAP_PAGE, 4, 0x5123);
    cr_assert_eq(page[0], 0x5a);
    cr_assert_eq(page[4095], 0x5a);
    page[1] = 1; /* still writable */
    out(BB_BOARD_ZAP_PAGE, 4, RAM_BYTES);
    out(BB_BOARD_ZAP_PAGE, 4, 0xfed00000);
    out(BB_BOARD_ZAP_PAGE, 4, 0xffffffff);
}

static void *write_page(void *arg)
{
    uint64_t *wrong = arg;
    struct bb_ctx *ctx;
    if (bb_ctx_attach(f.machine->engine, "writer", &ctx, NULL) != BB_OK) {
        *wrong = 1;
        return NULL;
    }
    for (uint64_t i = 0; bb_load_relaxed(&f.page_done) == 0; i++) { /* a flag, nothing behind it */
        uint64_t value = 0;
        bb_mmio_write(ctx, f.machine->mmio, 0x9000, 8, i);
        bb_mmio_read(ctx, f.machine->mmio, 0x9000, 8, &value);
        *wrong += value != i;
    }
    bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(machine, page_port_takes_no_write_away_from_other_vcpus)
{
    uint64_t wrong = 0;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, write_page, &wrong), 0);
    for (unsigned i = 0; i < 20000; i++) {
        out(BB_BOARD_ZAP_PAGE, 4, 0x9000);
    }
    bb_store_relaxed(&f.page_done, 1u);
    pthread_join(thread, NULL);
    cr_assert_eq(wrong, 0, "%llu writes were lost", (unsigned long long)wrong);
}

Test(machine, machines_of_each_lock_mode_come_and_go_and_two_live_side_by_side)
{
    for (unsigned mode = BB_LOCK_FREE; mode <= BB_LOCK_BIG; mode++) {
        struct bb_machine *first = f.machine;
        struct bb_ctx *first_ctx = f.ctx;
        struct bb_stop first_stop = f.stop;
        set_up_with(mode);
        out(BB_BOARD_DEBUG_EXIT, 1, 1);
        cr_assert_neq(reason(NULL), BB_STOP_NONE);
        tear_down();
        f.machine = first;
        f.ctx = first_ctx;
        f.stop = first_stop;
        cr_assert_eq(ioapic_read(1), 0x170020u);
    }
}

Test(machine, memory_outside_of_the_range_is_refused_and_nothing_stays)
{
    struct bb_machine_config config = {.vcpus = 1, .memory_bytes = 4096, .stop = &f.stop};
    struct bb_machine *machine = NULL;
    struct bb_error err = {0};
    cr_assert_eq(bb_machine_create(&config, &machine, &err), BB_E_RANGE);
    cr_assert_null(machine);
    cr_assert_neq(err.text[0], '\0');
}
