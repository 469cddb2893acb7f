/* SPDX-License-Identifier: MIT */
/*
 * DMA: how devices and embedders reach guest memory.
 *
 * All of it obeys the chain rules as bb_mmio_read() does (access.h): inside a callback RAM is
 * reached at once, a write elsewhere is posted, a read elsewhere runs at once only where the rules
 * allow it and is BB_E_DEVICE otherwise; behind a posted write later writes queue. IOMMU regions
 * are translated for attrs.requester_id.
 *
 * RAM is shared with vCPUs that run meanwhile. It is copied by relaxed-atomic loads and stores,
 * each byte of it read once: what a device checks in its copy stays so. Aligned pieces of 8 bytes
 * are copied whole wherever both sides allow it; more is not atomic. What was written before a line
 * is set or a message sent is seen by whoever takes that interrupt.
 *
 * A length that a guest gave is the device's to bound: translations and aliases can lead any length
 * to RAM, and a callback's copy or fill is one read section, which all grace periods wait for.
 */
#ifndef BUSBAR_ENGINE_DMA_H
#define BUSBAR_ENGINE_DMA_H

#include "access.h"

BB_BEGIN_DECLS

/*
 * Copies `length` bytes from or to guest memory, or fills it with `byte`. Parts that are no RAM are
 * made as accesses of up to 8 bytes, aligned, in rising order. The first part that fails ends it.
 * *done (may be NULL) receives how many bytes were copied, on errors too; a read leaves the rest of
 * `bytes` as it was.
 * Returns BB_OK, also for a length of 0 (`bytes` may be NULL then); BB_E_DECODE, BB_E_DEVICE as an
 * access; BB_E_RANGE where the range wraps; BB_E_INVAL without a context, a space or bytes;
 * BB_E_LIMIT where it would have to be posted and the chain would then have more than
 * BB_DMA_POSTED_MAX bytes waiting, or its queue is full or its budget spent; BB_E_NOMEM where there
 * is no memory for what is posted; BB_E_CONTEXT as an access.
 * Threads: the context's own; outside callbacks a long copy leaves its read section every 64 KiB,
 * so that a map change between two parts may be seen, and a pause waits for the whole of it.
 */
enum { BB_DMA_POSTED_MAX = 1 << 20 };
BB_API int bb_dma_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                       size_t length, struct bb_attrs attrs, size_t *done);
BB_API int bb_dma_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, const void *bytes,
                        size_t length, struct bb_attrs attrs, size_t *done);
BB_API int bb_dma_fill(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, uint8_t byte,
                       size_t length, struct bb_attrs attrs, size_t *done);

/*
 * Loads or stores a value of 1, 2, 4 or 8 bytes, which lies in memory in the order `endian`. Where
 * it is aligned and in RAM it is one relaxed-atomic access. *value is written on BB_OK alone.
 * Returns BB_OK; BB_E_DECODE, BB_E_DEVICE, BB_E_CONTEXT, BB_E_LIMIT as above; BB_E_RANGE for
 * another size or where it wraps; BB_E_INVAL for another order, without a context, a space or a
 * place for the value.
 * Threads: the context's own.
 */
BB_API int bb_dma_load(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                       enum bb_endian endian, struct bb_attrs attrs, uint64_t *value);
BB_API int bb_dma_store(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                        enum bb_endian endian, struct bb_attrs attrs, uint64_t value);

/* What bb_dma_atomic() makes of the old value and the operand. */
enum bb_atomic_op {
    BB_ATOMIC_EXCHANGE, /* operand */
    BB_ATOMIC_ADD,
    BB_ATOMIC_AND,
    BB_ATOMIC_OR,
    BB_ATOMIC_XOR,
    BB_ATOMIC_COMPARE_EXCHANGE, /* operand, where the old value equals `expected`; else as it was */
};

/*
 * Changes an aligned value of 4 or 8 bytes of RAM by one atomic read-modify-write, against vCPUs
 * and other threads alike. Values are numbers in the order `endian`. *old receives what was there.
 * Ordering: acquire and release.
 * Returns BB_OK (a comparison that failed too: look at *old); BB_E_DECODE; BB_E_DEVICE where it is
 * no RAM, is read-only, or would have to queue behind a posted write; BB_E_RANGE for another size
 * or an unaligned address; BB_E_INVAL as bb_dma_load() and for another operation; BB_E_CONTEXT.
 * Threads: the context's own.
 */
BB_API int bb_dma_atomic(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                         enum bb_endian endian, struct bb_attrs attrs, enum bb_atomic_op op,
                         uint64_t expected, uint64_t operand, uint64_t *old);

enum bb_dma_direction {
    BB_DMA_FROM_GUEST = 1, /* the host reads what the guest wrote */
    BB_DMA_TO_GUEST = 2,   /* the host writes */
    BB_DMA_BOTH = 3,
};

struct bb_dma_mapping;

/*
 * Maps guest memory for the host to touch directly. What lies in one piece of RAM is mapped as it
 * is; else (no RAM, read-only memory to be written, or in a callback that has posted a write, which
 * this must not overtake) a bounce buffer takes its place, filled by a read now where the direction
 * has FROM_GUEST, and written back at unmapping where it has TO_GUEST. On entry *length is what is
 * wanted, 1 to 2^32 bytes; on return what is mapped: all of it up to the end of the piece (of the
 * region, or of the page of a translation), at most BB_BOUNCE_MAX in a bounce buffer, and no more
 * than could be read into it. A mapping stays valid through any change of the map until it is
 * unmapped: the memory behind it is pinned, and the removal of its region waits. It belongs to the
 * engine, not to the thread, and outlives the context it was made with. Bounce buffers of an engine
 * together hold at most BB_BOUNCE_TOTAL bytes.
 * Returns BB_OK; BB_E_RANGE for a length or a wrap; BB_E_INVAL for a direction, without a context,
 * a space, a length or a place; BB_E_DECODE, BB_E_DEVICE where the first byte can't be had;
 * BB_E_LIMIT where the bounce buffers are used up (try again after an unmapping); BB_E_NOMEM;
 * BB_E_CONTEXT.
 * Threads: the context's own, also in callbacks.
 */
enum { BB_BOUNCE_MAX = 64 << 10, BB_BOUNCE_TOTAL = 16 << 20 };
BB_API int bb_dma_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, uint64_t *length,
                      enum bb_dma_direction direction, struct bb_attrs attrs,
                      struct bb_dma_mapping **mapping, struct bb_error *err);

/* The first mapped byte; whether it is a bounce buffer. Threads: any; wait-free. */
BB_API void *bb_dma_host(const struct bb_dma_mapping *mapping);
BB_API bool bb_dma_bounced(const struct bb_dma_mapping *mapping);

/*
 * Ends a mapping; `written` bytes from its beginning were written by the host (0 where it only
 * read; more than was mapped means all): they are marked dirty, or written back from the bounce
 * buffer, where the direction has TO_GUEST, to where the address leads now.
 * Returns BB_OK, or what writing back returned, and the mapping is gone either way; BB_E_INVAL,
 * with nothing done, without a context of its engine or a mapping.
 * Threads: any with a context, also in callbacks.
 */
BB_API int bb_dma_unmap(struct bb_ctx *ctx, struct bb_dma_mapping *mapping, uint64_t written);

BB_END_DECLS

#endif
