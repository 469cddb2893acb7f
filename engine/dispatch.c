/* SPDX-License-Identifier: MIT */
/*
 * The way of an access.
 *
 *   bb_mmio_read/write -> read section -> last-hit entry or tree -> rules -> class -> callback
 *                      -> epilogue -> result
 *
 * The fast path is an outermost access of an implemented size, aligned, inside one LOCKFREE region,
 * with the gate open and no baseline lock asked for. It writes only lines of its own context: no
 * read-modify-write, no fence instruction, no allocation, no thread-local storage. Everything else
 * goes to access_slow(), and so to piece.c, which cuts the access into pieces that lie in one
 * region each. What makes a leaf fast, and in which direction, is decided when it is made:
 * read_sizes and write_sizes.
 *
 * Why the gate is seen: the load of the gate comes after the section began. A pause sets it, then
 * waits for a grace period. Either that grace period waits for this section, or its membarrier
 * comes before this section's beginning, and then this load sees the gate closed.
 */
#include <string.h>

#include "engine_internal.h"

/* True where the fast path may begin its section. */
static inline __attribute__((always_inline)) bool fast_possible(const struct bb_ectx_ *e)
{
    return BB_LIKELY(e->mem.base.callback_depth == 0 && !bb_section_active_(&e->mem.base));
}

/* The leaf for the fast path, its frame set; NULL where the access has to go the slow way, or the
 * gate is not as expected. In a section that has just begun. */
static inline __attribute__((always_inline)) const struct bb_flat_ *
fast_find(struct bb_ectx_ *e, const struct bb_space *space, bb_gpa_t gpa, uint64_t size, bool write,
          uint32_t gate, uint64_t *offset)
{
    const struct bb_flat_ *leaf;
    uint64_t inside;
    uint32_t sizes;

    /* Ordered by the section against the pause that closed it (head comment). Acquire: pairs with
     * set_gate() where it opened: what was changed during the pause is seen. Where sections need
     * fences a bit that never changes is set, and this one is left for one with them. */
    if (BB_UNLIKELY(bb_load_acquire(&e->mem.map->gate) != gate)) {
        return NULL;
    }
    leaf = bb_map_find_inside_(&e->mem, space, gpa, &inside);
    if (BB_UNLIKELY(leaf == NULL)) {
        return NULL;
    }
    *offset = inside + leaf->region_offset;
    sizes = write ? leaf->write_sizes : leaf->read_sizes;
    /* A power of two, aligned; `sizes` has the rest. */
    if (BB_UNLIKELY((sizes & size) == 0 || ((*offset | size) & (size - 1)) != 0)) {
        return NULL;
    }
    e->chain.device = leaf->owner;
    /* callback_depth 1 and the device's id. Relaxed: others read it for reports. */
    bb_store_relaxed(&e->mem.base.frame, leaf->frame);
    return leaf;
}

static inline __attribute__((always_inline)) void fast_end(struct bb_ectx_ *e)
{
    bb_store_relaxed(&e->mem.base.frame, 0); /* as in fast_find() */
    bb_section_leave_outermost_(&e->mem.base);
    if (BB_UNLIKELY(e->mem.base.epilogue != 0)) {
        bb_chain_finish_(e);
    }
}

/*
 * The fast path of the baselines: what the lock-free one does, under one big lock or under the
 * device's own, so that what they cost beside it is the lock and nothing else. Returns 1 where the
 * access has to go the slow way; nothing has been done then.
 */
static int access_baseline(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                           uint64_t *value, bool write)
{
    struct bb_ctx *ctx = &e->mem.base;
    uint32_t gate = bb_load_relaxed(&e->mem.map->gate); /* looked at again in fast_find() */
    bool big = gate == BB_SLOW_LOCK_BIG_;
    const struct bb_flat_ *leaf;
    uint64_t offset;
    int result = 1;

    if ((!big && gate != BB_SLOW_LOCK_DEVICE_) || ctx->lock_depth > 0 || !fast_possible(e)) {
        return 1;
    }
    if (big) {
        bb_big_lock_(e);
    }
    bb_section_enter_outermost_(ctx);
    leaf = fast_find(e, space, gpa, size, write, gate, &offset);
    if (leaf == NULL) {
        bb_section_leave_outermost_(ctx);
    } else {
        uint64_t mask = bb_mask_bytes(size);
        uint64_t data = write ? *value & mask : 0;

        if (!big) {
            bb_lock_acquire(ctx, &leaf->owner->baseline);
        }
        result = write ? leaf->write(ctx, leaf->opaque, offset, size, data)
                       : leaf->read(ctx, leaf->opaque, offset, size, &data);
        if (!big) {
            bb_lock_release(ctx, &leaf->owner->baseline);
        }
        if (result != BB_OK) {
            bb_count_(e, refused);
            data = space->device_fill;
            result = BB_E_DEVICE;
        }
        if (!write) {
            *value = data & mask;
        }
        fast_end(e);
    }
    if (big) {
        bb_big_unlock_(e);
    }
    return result;
}

static const struct bb_attrs no_attrs;

/* An access of 1 to 64 bytes that does not wrap. Where the gate refuses it, a read yields what
 * refused reads do. */
static int access_bytes(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                        unsigned size, bool write, struct bb_attrs attrs)
{
    int result;

    if (e->mem.base.callback_depth > 0) {
        return bb_access_pieces_(e, space, gpa, bytes, size, write, attrs);
    }
    if (!bb_gate_enter_(e)) {
        for (unsigned i = 0; i < size && !write; i++) {
            ((uint8_t *)bytes)[i] = (uint8_t)(space->device_fill >> (8 * (i % 8)));
        }
        return BB_E_CONTEXT;
    }
    result = bb_access_pieces_(e, space, gpa, bytes, size, write, attrs);
    bb_chain_finish_(e);
    bb_gate_leave_(e);
    return result;
}

static __attribute__((noinline)) int access_slow(struct bb_ectx_ *e, struct bb_space *space,
                                                 bb_gpa_t gpa, unsigned size, uint64_t *value,
                                                 bool write)
{
    uint64_t last, data;
    int result;

    if (size == 0 || size > 8 || !bb_range_last(gpa, size, &last)) {
        return BB_E_RANGE;
    }
    if (e->mem.base.callback_depth == 0) {
        result = access_baseline(e, space, gpa, size, value, write);
        if (result <= 0) {
            return result;
        }
    }
    data = write ? *value : 0; /* its bytes are in order of address: access.c */
    result = access_bytes(e, space, gpa, &data, size, write, no_attrs);
    if (!write) {
        *value = data;
    }
    return result;
}

/* The slow way out of a section that the fast path began in vain. */
static __attribute__((noinline)) int access_slow_after_all(struct bb_ectx_ *e,
                                                           struct bb_space *space, bb_gpa_t gpa,
                                                           unsigned size, uint64_t *value,
                                                           bool write)
{
    bb_section_leave_outermost_(&e->mem.base);
    return access_slow(e, space, gpa, size, value, write);
}

/*
 * The fast path is written for its registers: what lives across the callback is the context and,
 * for a read, where the value goes and its size. Hence calls but the callback's are the last thing
 * in their branch.
 */

/* Begins on a cache line: how its instructions fall on lines is worth 0.5 ns an access. */
#define FAST_FUNCTION __attribute__((aligned(BB_CACHE_LINE_BYTES)))

static const uint64_t size_mask[8] = {[1] = UINT8_MAX, [2] = UINT16_MAX, [4] = UINT32_MAX};

static __attribute__((noinline)) int fast_read_refused(struct bb_ectx_ *e, uint64_t *value,
                                                       uint64_t size)
{
    *value = e->fast_space->device_fill & bb_mask_bytes((unsigned)size);
    bb_count_(e, refused);
    fast_end(e);
    return BB_E_DEVICE;
}

static __attribute__((noinline)) int fast_write_refused(struct bb_ectx_ *e)
{
    bb_count_(e, refused);
    fast_end(e);
    return BB_E_DEVICE;
}

/* The callback writes to the caller's variable: a value that went through one of ours would be
 * stored and loaded once more. */
FAST_FUNCTION int bb_mmio_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa,
                               unsigned size, uint64_t *value)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    const struct bb_flat_ *leaf;
    uint64_t offset, bytes = size;

    if (!fast_possible(e)) {
        return access_slow(e, space, gpa, size, value, false);
    }
    bb_section_enter_outermost_(ctx);
    leaf = fast_find(e, space, gpa, bytes, false, 0, &offset);
    if (BB_UNLIKELY(leaf == NULL)) {
        return access_slow_after_all(e, space, gpa, size, value, false);
    }
    e->fast_space = space;
    *value = 0;
    if (BB_UNLIKELY(leaf->read(ctx, leaf->opaque, offset, (unsigned)bytes, value) != BB_OK)) {
        return fast_read_refused(e, value, bytes);
    }
    fast_end(e);
    if (bytes < 8) {
        *value &= size_mask[bytes];
    }
    return BB_OK;
}

FAST_FUNCTION int bb_mmio_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa,
                                unsigned size, uint64_t value)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    const struct bb_flat_ *leaf;
    uint64_t offset;

    if (!fast_possible(e)) {
        return access_slow(e, space, gpa, size, &value, true);
    }
    bb_section_enter_outermost_(ctx);
    leaf = fast_find(e, space, gpa, size, true, 0, &offset);
    if (BB_UNLIKELY(leaf == NULL)) {
        return access_slow_after_all(e, space, gpa, size, &value, true);
    }
    if (size < 8) {
        value &= size_mask[size];
    }
    if (BB_UNLIKELY(leaf->write(ctx, leaf->opaque, offset, size, value) != BB_OK)) {
        return fast_write_refused(e);
    }
    fast_end(e);
    return BB_OK;
}

int bb_access_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                   unsigned size, struct bb_attrs attrs)
{
    uint64_t last;

    if (size == 0 || size > BB_ACCESS_BYTES_MAX_ || !bb_range_last(gpa, size, &last)) {
        return BB_E_RANGE;
    }
    return access_bytes(bb_ectx_(ctx), space, gpa, bytes, size, false, attrs);
}

int bb_access_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, const void *bytes,
                    unsigned size, struct bb_attrs attrs)
{
    uint8_t copy[BB_ACCESS_BYTES_MAX_];
    uint64_t last;

    if (size == 0 || size > BB_ACCESS_BYTES_MAX_ || !bb_range_last(gpa, size, &last)) {
        return BB_E_RANGE;
    }
    memcpy(copy, bytes, size);
    return access_bytes(bb_ectx_(ctx), space, gpa, copy, size, true, attrs);
}

struct bb_attrs bb_access_attrs(const struct bb_ctx *ctx)
{
    return ((const struct bb_ectx_ *)(const void *)ctx)->attrs;
}
