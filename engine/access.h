/* SPDX-License-Identifier: MIT */
/*
 * Accesses: what a vCPU thread calls for every trapped MMIO or port access, and what a device
 * callback calls to reach memory or another device.
 *
 * An outermost access finds its region in the published view, runs its callback as its class says,
 * then runs the effects that callbacks posted, and returns. Nothing here waits for another access:
 * what a register may wait for is in its device's table of paths.
 *
 * Made inside a callback, the same calls are nested accesses and follow the chain rules
 * (docs/architecture.md, "Chains"): while the chain holds a lock or a pin they run at once on RAM
 * only; while it holds a read section alone, on LOCKFREE regions too. A write that may not run at
 * once is posted and runs before the outermost access returns; a read that may not is
 * BB_E_DEVICE, counted. After a posted write, later RAM writes of the chain are posted too, so
 * that they are seen in order.
 */
#ifndef BUSBAR_ENGINE_ACCESS_H
#define BUSBAR_ENGINE_ACCESS_H

#include "engine.h"

BB_BEGIN_DECLS

/*
 * Reads `size` bytes (1 to 8; sizes that are no power of two are split) at `gpa`. The value is
 * zero-extended, little-endian in the guest's sense: byte 0 is the byte at `gpa`.
 * `*value` is always written on BB_OK, BB_E_DECODE and BB_E_DEVICE: in the latter two with what
 * the space says a read of nothing yields (all ones on x86), per piece where only a piece failed.
 * Returns BB_OK; BB_E_DECODE where no region is (counted); BB_E_DEVICE where the access was
 * refused (counted); BB_E_RANGE for a size of 0 or over 8, or an address range that wraps;
 * BB_E_CONTEXT where an access that began while the thread held a section, a ranked lock or the
 * external lock would have to wait for a lock below it, or at the gate of a paused engine (then
 * also with the value of a read of nothing).
 * Threads: the context's own. Waits only for what the register's path says, and at a closed gate.
 */
BB_API int bb_mmio_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                        uint64_t *value);

/* Writes the low `size` bytes of `value`. Results and threads as for bb_mmio_read(). */
BB_API int bb_mmio_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                         uint64_t value);

/*
 * Sends a message-signalled interrupt: to the engine's MSI sink, at once, or, behind a posted
 * write, in its turn. Returns BB_OK (also when posted), BB_E_DEVICE where the sink refused it,
 * BB_E_LIMIT where it could not be posted; both counted.
 * Threads: the context's own, also in callbacks and under device locks; never blocks.
 */
BB_API int bb_msi_send(struct bb_ctx *ctx, uint64_t address, uint32_t data);

BB_END_DECLS

#endif
