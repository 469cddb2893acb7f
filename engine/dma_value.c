/* SPDX-License-Identifier: MIT */
/*
 * DMA of one value: loads, stores and atomic changes; see dma.h.
 *
 * An aligned value in RAM, outermost, takes the shortest way: in one section it asks for the gate,
 * as the fast path of dispatch.c does and for the same reason, looks up and makes one access. No
 * callback can run, so there is no chain and no epilogue. Any other value is a transfer of a few
 * bytes (dma.c). An atomic is neither: it is made where one lookup finds RAM, or not at all.
 */
#include "dma_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are copied as bytes");

enum { VALUE_BYTES = 8 };

/* Values. */

/* A number of `size` bytes, as it lies in memory, to what it is, or back. */
static uint64_t reorder(uint64_t value, unsigned size, enum bb_endian endian)
{
    return endian == BB_BIG_ENDIAN ? __builtin_bswap64(value) >> (64 - size * 8)
                                   : value & bb_mask_bytes(size);
}

static int check_value(const struct bb_ctx *ctx, const struct bb_space *space, bb_gpa_t gpa,
                       unsigned size, enum bb_endian endian)
{
    uint64_t last;

    if (ctx == NULL || space == NULL || (endian != BB_LITTLE_ENDIAN && endian != BB_BIG_ENDIAN)) {
        return BB_E_INVAL;
    }
    if (!bb_is_pow2(size) || size > VALUE_BYTES || !bb_range_last(gpa, size, &last)) {
        return BB_E_RANGE;
    }
    return BB_OK;
}

/*
 * The shortest way of an outermost value: where it lies, aligned, in memory that is mapped without
 * a translation; or NULL, and the longer ways find out why. In a section that has just begun.
 */
static inline const struct bb_flat_ *value_find(struct bb_ectx_ *e, const struct bb_space *space,
                                                bb_gpa_t gpa, unsigned size, uint64_t *inside)
{
    const struct bb_flat_ *leaf;

    if (BB_UNLIKELY(bb_load_acquire(&e->mem.map->gate) != 0)) { /* as in move_fast() (dma.c) */
        return NULL;
    }
    leaf = bb_map_find_inside_(&e->mem, space, gpa, inside);
    if (BB_UNLIKELY(leaf == NULL || !leaf->memory || leaf->last_offset - *inside < size - 1 ||
                    (((uintptr_t)leaf->host + *inside) & (size - 1)) != 0)) {
        return NULL;
    }
    return leaf;
}

static inline bool may_be_fast(const struct bb_ctx *ctx)
{
    /* What an earlier chain has left to be done is done on the longer way. */
    return BB_LIKELY(ctx->callback_depth == 0 && ctx->epilogue == 0 && !bb_section_active_(ctx));
}

int bb_dma_load(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                enum bb_endian endian, struct bb_attrs attrs, uint64_t *value)
{
    uint64_t word = 0;
    struct bb_transfer_ t = {
        .space = space, .gpa = gpa, .to = (uint8_t *)&word, .attrs = attrs, .length = size};
    int result = check_value(ctx, space, gpa, size, endian);

    if (result == BB_OK && value == NULL) {
        result = BB_E_INVAL;
    }
    if (result == BB_OK && may_be_fast(ctx)) {
        uint64_t inside;

        bb_section_enter_outermost_(ctx);
        const struct bb_flat_ *leaf = value_find(bb_ectx_(ctx), space, gpa, size, &inside);
        if (BB_LIKELY(leaf != NULL)) {
            *value = reorder(bb_ram_load_(leaf->host + inside, size), size, endian);
            bb_section_leave_outermost_(ctx);
            return BB_OK;
        }
        bb_section_leave_outermost_(ctx);
    }
    if (result == BB_OK) {
        result = bb_dma_move_(ctx, &t);
    }
    if (result == BB_OK) {
        *value = reorder(word, size, endian);
    }
    return result;
}

int bb_dma_store(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                 enum bb_endian endian, struct bb_attrs attrs, uint64_t value)
{
    int result = check_value(ctx, space, gpa, size, endian);

    if (result != BB_OK) {
        return result;
    }
    uint64_t word = reorder(value, size, endian);
    struct bb_transfer_ t = {
        .space = space, .gpa = gpa, .from = (uint8_t *)&word, .attrs = attrs, .length = size};
    if (may_be_fast(ctx)) {
        uint64_t inside;

        bb_section_enter_outermost_(ctx);
        const struct bb_flat_ *leaf = value_find(bb_ectx_(ctx), space, gpa, size, &inside);
        if (BB_LIKELY(leaf != NULL && bb_leaf_writable_(leaf))) {
            bb_ram_store_(leaf->host + inside, size, word);
            bb_dirty_wrote_(leaf->region, leaf->region_offset + inside, size);
            bb_section_leave_outermost_(ctx);
            return BB_OK;
        }
        bb_section_leave_outermost_(ctx);
    }
    return bb_dma_move_(ctx, &t);
}

/* Atomics. */

struct atomic {
    struct bb_space *space;
    bb_gpa_t gpa;
    unsigned size;
    enum bb_endian endian;
    struct bb_attrs attrs;
    enum bb_atomic_op op;
    uint64_t expected;
    uint64_t operand;
};

/* What the operation makes of a number; both in host order. */
static uint64_t apply(const struct atomic *a, uint64_t before)
{
    switch (a->op) {
    case BB_ATOMIC_EXCHANGE:
        return a->operand;
    case BB_ATOMIC_ADD:
        return before + a->operand;
    case BB_ATOMIC_AND:
        return before & a->operand;
    case BB_ATOMIC_OR:
        return before | a->operand;
    case BB_ATOMIC_XOR:
        return before ^ a->operand;
    case BB_ATOMIC_COMPARE_EXCHANGE:
        return a->operand;
    }
    return before;
}

/*
 * The read-modify-write. Acquire and release: partners are the guest's own atomics, and other
 * devices' through here. Returns false where a comparison failed and nothing was written.
 *
 * What can be done by one instruction is; the others, and additions to a number in foreign order,
 * swap in what they made of the number they saw until nobody came in between. The first load is
 * relaxed: the swap checks it.
 */
static bool modify(const struct atomic *a, void *at, uint64_t *old)
{
    uint64_t wanted = reorder(a->expected, a->size, a->endian);
    uint64_t raw;
    bool native = a->endian == BB_LITTLE_ENDIAN;
    bool wide = a->size == 8;
    bool swapped;

    if (a->op == BB_ATOMIC_EXCHANGE) {
        uint64_t put = reorder(a->operand, a->size, a->endian);
        raw = wide ? bb_xchg_acq_rel((uint64_t *)at, put)
                   : bb_xchg_acq_rel((uint32_t *)at, (uint32_t)put);
    } else if (a->op == BB_ATOMIC_ADD && native) {
        raw = wide ? bb_fetch_add_acq_rel((uint64_t *)at, a->operand)
                   : bb_fetch_add_acq_rel((uint32_t *)at, (uint32_t)a->operand);
    } else {
        raw = bb_ram_load_(at, a->size);
        do {
            if (a->op == BB_ATOMIC_COMPARE_EXCHANGE) {
                raw = wanted;
            }
            uint64_t put = reorder(apply(a, reorder(raw, a->size, a->endian)), a->size, a->endian);
            if (wide) {
                swapped = bb_cas_acq_rel((uint64_t *)at, &raw, put);
            } else {
                uint32_t seen = (uint32_t)raw;
                swapped = bb_cas_acq_rel((uint32_t *)at, &seen, (uint32_t)put);
                raw = seen;
            }
        } while (!swapped && a->op != BB_ATOMIC_COMPARE_EXCHANGE);
        *old = reorder(raw, a->size, a->endian);
        return swapped;
    }
    *old = reorder(raw, a->size, a->endian);
    return true;
}

/* In a section. */
static int atomic_here(struct bb_ectx_ *e, const struct atomic *a, uint64_t *old)
{
    struct bb_found_ found;
    int result =
        bb_map_resolve_(&e->mem, a->space, a->gpa, a->size, BB_IOMMU_WRITE, a->attrs, &found);

    /* Where it was translated: it may be permitted to write and not to read. */
    if (result == BB_OK && (found.space != a->space || found.gpa != a->gpa)) {
        struct bb_found_ readable;
        result =
            bb_map_resolve_(&e->mem, a->space, a->gpa, a->size, BB_IOMMU_READ, a->attrs, &readable);
    }
    if (result == BB_OK) {
        const struct bb_flat_ *leaf = found.leaf;

        if (leaf == NULL || leaf->kind == BB_KIND_RESERVED) {
            result = BB_E_DECODE;
        } else if (!bb_leaf_writable_(leaf) || found.length < a->size ||
                   ((uintptr_t)bb_found_host_(&found) & (a->size - 1)) != 0) {
            result = BB_E_DEVICE;
        } else if (modify(a, bb_found_host_(&found), old)) {
            bb_dirty_wrote_(leaf->region, found.offset, a->size);
        }
        if (leaf != NULL && (bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_COUNT_) != 0) {
            bb_tally_(e, bb_counted_of_(leaf->region), true,
                      result); /* relaxed: as in ram_part() (dma.c) */
        }
    }
    if (result != BB_OK) {
        bb_dma_failed_(e, true, result);
    }
    return result;
}

int bb_dma_atomic(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                  enum bb_endian endian, struct bb_attrs attrs, enum bb_atomic_op op,
                  uint64_t expected, uint64_t operand, uint64_t *old)
{
    struct atomic a = {space, gpa, size, endian, attrs, op, expected, operand};
    int result = check_value(ctx, space, gpa, size, endian);

    if (result == BB_OK && (size < 4 || (gpa & (size - 1)) != 0)) {
        result = BB_E_RANGE;
    }
    if (result == BB_OK && (old == NULL || (unsigned)op > BB_ATOMIC_COMPARE_EXCHANGE)) {
        result = BB_E_INVAL;
    }
    if (result != BB_OK) {
        return result;
    }
    struct bb_ectx_ *e = bb_ectx_(ctx);
    if (ctx->callback_depth > 0) {
        if (e->chain.ordered > 0) {
            bb_count_(e, nested_refused);
            return BB_E_DEVICE;
        }
        bb_section_enter_(ctx);
        result = atomic_here(e, &a, old);
        bb_section_leave_(ctx);
        return result;
    }
    if (!bb_section_active_(ctx)) {
        bool open;

        bb_section_enter_outermost_(ctx);
        open = bb_load_acquire(&e->mem.map->gate) == 0; /* as in move_fast() */
        if (BB_LIKELY(open)) {
            result = atomic_here(e, &a, old);
        }
        bb_section_leave_outermost_(ctx);
        if (BB_LIKELY(open)) {
            if (BB_UNLIKELY(ctx->epilogue != 0)) {
                bb_chain_finish_(e);
            }
            return result;
        }
    }
    if (!bb_gate_enter_(e)) {
        return BB_E_CONTEXT;
    }
    bb_section_enter_(ctx);
    result = atomic_here(e, &a, old);
    bb_section_leave_(ctx);
    bb_chain_finish_(e);
    bb_gate_leave_(e);
    return result;
}
