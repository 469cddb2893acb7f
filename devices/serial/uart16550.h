/* SPDX-License-Identifier: MIT */
/*
 * 16550A UART (National Semiconductor PC16550D): eight byte-wide registers, two FIFOs of 16 bytes.
 *
 * Transmitted bytes go to a function of the embedder's; received ones come in by
 * bb_uart16550_receive(). Neither is paced: a byte takes no time on the wire.
 *
 * Ownership: bb_uart16550_create() to bb_device_remove() on bb_uart16550_device(), which frees it;
 * receive no more by then. Threads: bb_uart16550_receive() from any thread; the rest control.
 */
#ifndef BUSBAR_DEVICES_SERIAL_UART16550_H
#define BUSBAR_DEVICES_SERIAL_UART16550_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_uart16550;

enum { BB_UART16550_SIZE_BYTES = 8, BB_UART16550_FIFO_BYTES = 16 };

struct bb_uart16550_config {
    const char *name;    /* NULL: "uart16550" */
    struct bb_line *irq; /* its INTR output; NULL: not connected */
    /*
     * Takes one transmitted byte. Runs in a read section and possibly on several threads at once;
     * must not block: put it in a queue. NULL: bytes are dropped.
     */
    void (*tx)(void *opaque, uint8_t byte);
    /*
     * There is room for received bytes again, after bb_uart16550_receive() took fewer than it was
     * offered. As `tx`: wake somebody, don't call back. NULL: not told.
     */
    void (*rx_room)(void *opaque);
    void *opaque;
};

/*
 * Creates a UART in its reset state. `config` NULL means all defaults.
 * Returns BB_OK, BB_E_NOMEM, or whatever bb_device_create() returns. Threads: control; allocates.
 */
BB_API int bb_uart16550_create(struct bb_ctx *ctx, const struct bb_uart16550_config *config,
                               struct bb_uart16550 **uart, struct bb_error *err);

/* The device, for removal; and its region: 8 ports, usually at 0x3f8. Threads: any; wait-free. */
BB_API struct bb_device *bb_uart16550_device(const struct bb_uart16550 *uart);
BB_API struct bb_region *bb_uart16550_region(const struct bb_uart16550 *uart);

/*
 * Puts up to `n` bytes into the receiver. It takes what there is room for (one byte in the
 * character mode, 16 in FIFO mode; none in loop-back), so that a backend with flow control loses
 * nothing. Returns how many it took.
 * Threads: any with a context, outside callbacks; lock-free.
 */
BB_API size_t bb_uart16550_receive(struct bb_ctx *ctx, struct bb_uart16550 *uart,
                                   const uint8_t *bytes, size_t n);

/*
 * The same without flow control, as a wire is: bytes that find no room are lost and set the
 * overrun error. Threads: as for bb_uart16550_receive().
 */
BB_API void bb_uart16550_receive_raw(struct bb_ctx *ctx, struct bb_uart16550 *uart,
                                     const uint8_t *bytes, size_t n);

BB_END_DECLS

#endif
