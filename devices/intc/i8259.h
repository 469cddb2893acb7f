/* SPDX-License-Identifier: MIT */
/*
 * A cascaded pair of 8259A interrupt controllers, as in a PC, with the edge/level registers that
 * EISA chip sets added: enough for guests that probe, mask and initialise them, and to deliver
 * external interrupts where the embedder connects the output.
 *
 * Ownership: bb_i8259_create() to bb_device_remove() on bb_i8259_device(), which frees it.
 * Threads: the line sinks from any thread, under any lock, lock-free (the device's inbox); the
 * acknowledge cycle from any thread outside callbacks; the rest from control threads.
 */
#ifndef BUSBAR_DEVICES_INTC_I8259_H
#define BUSBAR_DEVICES_INTC_I8259_H

#include "../../engine/device.h"

BB_BEGIN_DECLS

struct bb_i8259;

enum { BB_I8259_PINS = 16 };

enum bb_i8259_part {
    BB_I8259_MASTER, /* 2 ports, usually at 0x20 */
    BB_I8259_SLAVE,  /* 2 ports, usually at 0xa0 */
    BB_I8259_ELCR,   /* 2 ports, usually at 0x4d0 */
    BB_I8259_PARTS,
};

struct bb_i8259_config {
    const char *name;     /* NULL: "i8259" */
    struct bb_line *intr; /* the master's INT output; NULL: not connected */
};

/*
 * Creates the pair, uninitialised and with all inputs masked. `config` NULL means all defaults.
 * Returns BB_OK, BB_E_NOMEM, or whatever bb_device_create() returns. Threads: control; allocates.
 */
BB_API int bb_i8259_create(struct bb_ctx *ctx, const struct bb_i8259_config *config,
                           struct bb_i8259 **pic, struct bb_error *err);

/* The device, for removal; and the region of one part. Threads: any; wait-free. */
BB_API struct bb_device *bb_i8259_device(const struct bb_i8259 *pic);
BB_API struct bb_region *bb_i8259_region(const struct bb_i8259 *pic, enum bb_i8259_part part);

/*
 * What bb_line_create() connects a line to an input with (a sink that does nothing for a pin that
 * isn't there), and telling the input which line to pull; NULL disconnects it.
 * bb_i8259_connect() returns BB_OK; BB_E_RANGE for such a pin and for 2, the cascade; BB_E_EXIST
 * where it has a line.
 * Threads: control, while the line's sources are silent. Lifetime: disconnect before the line goes.
 */
BB_API struct bb_line_sink bb_i8259_line_sink(struct bb_i8259 *pic, unsigned pin);
BB_API int bb_i8259_connect(struct bb_ctx *ctx, struct bb_i8259 *pic, unsigned pin,
                            struct bb_line *line);

/*
 * An interrupt acknowledge cycle: takes the highest request into service and returns its vector;
 * the vector of input 7 (a spurious interrupt) where there is none any more.
 * Threads: any with a context, outside callbacks; takes the device's lock.
 */
BB_API uint8_t bb_i8259_acknowledge(struct bb_ctx *ctx, struct bb_i8259 *pic);

BB_END_DECLS

#endif
