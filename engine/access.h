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
 * `*value` is always written but on BB_E_RANGE. The bytes of a piece that failed are those that
 * the space says failed reads yield (struct bb_space_config; all ones by default): decode_error's
 * where it met nothing, device_error's where it was refused. Byte i of the access is byte i mod 8
 * of that pattern, also where a translation led to another space.
 * Returns BB_OK; BB_E_DECODE where no region is, or one that says so (counted); BB_E_DEVICE where
 * the access was refused (counted); BB_E_RANGE for a size of 0 or over 8, or an address range that
 * wraps; BB_E_CONTEXT where an access that began while the thread held a section, a ranked lock or
 * the external lock would have to wait for a lock below it, for coalesced writes to be made, or at
 * the gate of a paused engine.
 * Threads: the context's own. Waits only for what the register's path says, at a closed gate,
 * and, where the device has coalesced ranges, for who makes the writes that were left.
 */
BB_API int bb_mmio_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                        uint64_t *value);

/* Writes the low `size` bytes of `value`. Results and threads as for bb_mmio_read(). */
BB_API int bb_mmio_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                         uint64_t value);

/*
 * The same for 1 to 64 bytes, in order of address, by and with the attributes of `attrs`. A region
 * takes an access of more than 8 bytes where its valid_max allows it, and its callbacks see pieces.
 * `bytes` is filled in as *value is above. Where an access does not lie in one region, or its size
 * is no power of two, each region sees the largest powers of two of bytes of it, in rising order.
 */
BB_API int bb_access_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                          unsigned size, struct bb_attrs attrs);
BB_API int bb_access_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa,
                           const void *bytes, unsigned size, struct bb_attrs attrs);

/*
 * Inside a callback: the attributes of the access that it serves; all zero elsewhere, and for
 * accesses made without. Threads: the context's own; wait-free.
 */
BB_API struct bb_attrs bb_access_attrs(const struct bb_ctx *ctx);

/*
 * Makes every coalesced write (memory/doorbell.h) that any vCPU has left, in order.
 * Returns BB_OK, or BB_E_CONTEXT inside any callback, section, pin or lock.
 * Threads: the context's own; waits for who makes them already.
 */
BB_API int bb_coalesced_flush(struct bb_ctx *ctx);

/*
 * Sends a message-signalled interrupt: to the engine's MSI sink, at once, or, behind a posted
 * write, in its turn. Returns BB_OK (also when posted), BB_E_DEVICE where the sink refused it,
 * BB_E_LIMIT where it could not be posted; both counted.
 * Threads: the context's own, also in callbacks and under device locks; never blocks.
 */
BB_API int bb_msi_send(struct bb_ctx *ctx, uint64_t address, uint32_t data);

BB_END_DECLS

#endif
