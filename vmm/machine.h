/* SPDX-License-Identifier: MIT */
/*
 * The PC that `busbar` emulates, built on the library: an engine with a memory and a port space,
 * RAM, HPET, I/O APIC, UART, PM timer, fw_cfg and what else a PC's guests look for. board.h says
 * where each thing is.
 *
 * Ownership: bb_machine_create() to bb_machine_destroy(), on the same thread, which is attached to
 * the engine in between. Other threads attach themselves with bb_ctx_attach() and must have
 * detached by the time of the destruction.
 */
#ifndef BUSBAR_VMM_MACHINE_H
#define BUSBAR_VMM_MACHINE_H

#include "../devices/intc/ioapic.h"
#include "../devices/serial/uart16550.h"
#include "board.h"
#include "guest_memory.h"
#include "serial_io.h"
#include "stop.h"

struct bb_machine_config {
    unsigned vcpus;
    uint64_t memory_bytes;
    enum bb_lock_mode lock_mode;
    bool count_accesses; /* by region: bb_engine_count_accesses() */
    struct bb_msi_sink msi_sink;
    struct bb_ioapic_routes routes; /* install NULL: entries take effect at once */
    struct bb_stop *stop;           /* where power-off, reset and debug exit go */
    struct bb_serial *serial;       /* what the UART sends to; NULL: nothing */
};

enum { BB_MACHINE_DEVICES_MAX = 16 };

/* All fields are immutable between create and destroy. */
struct bb_machine {
    struct bb_machine_config config;
    struct bb_gmem mem;
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* of the thread that created it */
    struct bb_space *mmio, *pio;
    struct bb_ioapic *ioapic;
    struct bb_uart16550 *uart;
    uint32_t hpet_block_id;
    /* The rest is machine.c's own. */
    struct bb_region *ram[2];
    struct bb_line *lines[BB_BOARD_GSIS];
    struct bb_i8259 *pic;
    struct bb_line_sink ioapic_sinks[BB_BOARD_GSIS], pic_sinks[BB_BOARD_GSIS];
    struct bb_device *devices[BB_MACHINE_DEVICES_MAX];
    unsigned device_count;
};

/*
 * Builds a machine. Returns BB_OK, or the code of what failed with its text, and then nothing is
 * left of it.
 */
int bb_machine_create(const struct bb_machine_config *config, struct bb_machine **machine,
                      struct bb_error *err);

/*
 * Takes it apart, which proves that no memory leaked. Returns BB_OK, or what bb_engine_destroy()
 * says is still there; the machine is gone all the same.
 */
int bb_machine_destroy(struct bb_machine *machine, struct bb_error *err);

/* Takes over a device that was added from outside; it is removed with the machine, before others.
 */
void bb_machine_adopt(struct bb_machine *machine, struct bb_device *device);

/* Hooks for bb_serial_start(): input goes to the UART. */
struct bb_serial_hooks bb_machine_serial_hooks(struct bb_machine *machine);

#endif
