/* SPDX-License-Identifier: MIT */
/* Callbacks of the benchmark's own registers; in a file of their own, so that no loop inlines them.
 */
#include "../base/atomic.h"
#include "bench.h"

int bench_target_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct bench_target *target = opaque;

    (void)ctx;
    (void)offset;
    (void)size;
    *value = bb_load_relaxed(&target->word); /* no order: a number */
    return BB_OK;
}

int bench_target_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    struct bench_target *target = opaque;

    (void)ctx;
    (void)offset;
    (void)size;
    bb_store_relaxed(&target->word, value); /* no order: a number */
    return BB_OK;
}

int bench_holder_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    bench_spin_ns(value);
    return BB_OK;
}
