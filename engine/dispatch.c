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
 * goes to access_slow(), which cuts the access into pieces that lie in one region each.
 *
 * Why the gate is seen: the load of `slow` comes after the section began. A pause sets it, then
 * waits for a grace period. Either that grace period waits for this section, or its membarrier
 * comes before this section's beginning, and then this load sees the gate closed.
 */
#include "engine_internal.h"

/* Runs the callbacks of one piece in the frame of `record`. */
static int call_region(struct bb_ectx_ *e, const struct bb_region *region, uint64_t offset,
                       unsigned size, uint64_t *value, bool write, uint16_t record)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_frame_ frame = bb_frame_enter_(e, region->owner, region->owner_id, record);
    int result = write ? bb_region_write_(ctx, region, offset, size, *value)
                       : bb_region_read_(ctx, region, offset, size, value);

    bb_frame_leave_(e, frame);
    return result;
}

/*
 * A callback outside any section, with a pin on the device in its place. Called in the section in
 * which the region was found; leaves it for the time of the callback.
 */
static int call_pinned(struct bb_ectx_ *e, const struct bb_region *region, uint64_t offset,
                       unsigned size, uint64_t *value, bool write, uint16_t record)
{
    struct bb_ctx *ctx = &e->mem.base;
    const struct bb_external_lock *external = &e->engine->external;
    struct bb_device *device = region->owner;
    unsigned side = bb_pins_get_(&device->pins);
    bool lock = false;
    int result;

    bb_section_leave_(ctx);
    if (region->klass == BB_CLASS_EXTERNAL_LOCK) {
        lock = external->held == NULL || !external->held(external->opaque);
        if (lock) {
            /* The baseline's big lock comes after it in rank, and gives way. */
            bool big = e->big;
            if (big) {
                bb_big_unlock_(e);
            }
            external->lock(external->opaque);
            if (big) {
                bb_big_lock_(e);
            }
        }
    }
    ctx->pin_depth++;
    result = call_region(e, region, offset, size, value, write, record);
    ctx->pin_depth--;
    if (lock) {
        external->unlock(external->opaque);
    }
    bb_section_enter_(ctx);
    bb_pins_put_(e->engine->rcu, &device->pins, side);
    return result;
}

/* One piece of an outermost access or of a posted write. In a section; nothing else is held. */
static int outer_piece(struct bb_ectx_ *e, const struct bb_region *region, uint64_t offset,
                       unsigned size, uint64_t *value, bool write, bool in_users_section)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_chain_ *chain = &e->chain;
    uint16_t record = 0;
    int result;

    if (region->kind == BB_REGION_RAM_) {
        return write ? bb_region_write_(ctx, region, offset, size, *value)
                     : bb_region_read_(ctx, region, offset, size, value);
    }
    if (chain->epilogue) {
        if (!region->reentrant && bb_chain_has_(chain, chain->record, region->owner_id)) {
            bb_count_(e, reentrant);
            return BB_E_DEVICE;
        }
        record = bb_chain_record_(e, region->owner_id, chain->record);
        if (record == BB_CHAIN_NO_RECORD_) {
            bb_count_(e, effects_refused);
            return BB_E_DEVICE;
        }
    } else {
        chain->records[0].device_id = region->owner_id;
    }
    switch ((enum bb_class)region->klass) {
    case BB_CLASS_LOCKFREE:
        if ((bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_LOCK_DEVICE_) != 0) {
            if (ctx->lock_depth > 0) {
                return BB_E_CONTEXT; /* as for DEVICE_LOCK below */
            }
            bb_lock_acquire(ctx, &region->owner->baseline);
            result = call_region(e, region, offset, size, value, write, record);
            bb_lock_release(ctx, &region->owner->baseline);
            return result;
        }
        return call_region(e, region, offset, size, value, write, record);
    case BB_CLASS_DEVICE_LOCK:
        if (ctx->lock_depth > 0) {
            return BB_E_CONTEXT; /* the embedder holds a ranked lock around its access */
        }
        bb_device_lock(ctx, region->owner);
        result = call_region(e, region, offset, size, value, write, record);
        bb_device_unlock(ctx, region->owner);
        return result;
    case BB_CLASS_MAY_SLEEP:
    case BB_CLASS_EXTERNAL_LOCK:
        if (ctx->lock_depth > 0 || in_users_section) {
            return BB_E_CONTEXT;
        }
        return call_pinned(e, region, offset, size, value, write, record);
    }
    return BB_E_DEVICE;
}

static int post_write(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                      uint64_t value)
{
    struct bb_effect_ *effect = bb_chain_post_(e, NULL, true, BB_EFFECT_WRITE_);

    if (effect == NULL) {
        return BB_E_DEVICE;
    }
    effect->size = (uint8_t)size;
    effect->write.space = space;
    effect->write.gpa = gpa;
    effect->write.value = value;
    return BB_OK;
}

/* One piece of a nested access, by rule 1 of the chains. In a section. */
static int nested_piece(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa,
                        const struct bb_region *region, uint64_t offset, unsigned size,
                        uint64_t *value, bool write)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_chain_ *chain = &e->chain;
    bool must_queue = write && chain->ordered > 0;
    int result;

    if (region->kind == BB_REGION_RAM_) {
        if (must_queue) {
            return post_write(e, space, gpa, size, *value);
        }
        if (write) {
            return bb_region_write_(ctx, region, offset, size, *value);
        }
        result = bb_region_read_(ctx, region, offset, size, value);
        if (result == BB_OK) {
            bb_chain_forward_(e, space, gpa, size, value);
        }
        return result;
    }
    bb_chain_root_(e);
    if (!region->reentrant && bb_chain_has_(chain, chain->record, region->owner_id)) {
        bb_count_(e, reentrant);
        return BB_E_DEVICE;
    }
    if (region->klass != BB_CLASS_LOCKFREE || ctx->lock_depth > 0 || ctx->pin_depth > 0 ||
        must_queue || (bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_LOCK_DEVICE_) != 0) {
        if (write) {
            return post_write(e, space, gpa, size, *value);
        }
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    if (ctx->callback_depth >= BB_NEST_MAX_) {
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    uint16_t records_before = chain->record_count;
    uint32_t spent_before = chain->spent;
    uint16_t record = bb_chain_record_(e, region->owner_id, chain->record);
    if (record == BB_CHAIN_NO_RECORD_) {
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    result = call_region(e, region, offset, size, value, write, record);
    if (chain->spent == spent_before) {
        chain->record_count = records_before; /* nothing refers to it */
    }
    return result;
}

/* The piece at `gpa`: at most *size bytes, cut down to what lies in one region or in none. */
static int access_piece(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, unsigned *size,
                        uint64_t *value, bool write)
{
    struct bb_ctx *ctx = &e->mem.base;
    bool in_users_section = ctx->callback_depth == 0 && bb_section_active_(ctx);
    int result;

    bb_section_enter_(ctx);
    const struct bb_flat_ *leaf = bb_map_find_(&e->mem, space, gpa);
    if (leaf == NULL) {
        for (unsigned byte = 1; byte < *size; byte++) {
            if (bb_map_find_(&e->mem, space, gpa + byte) != NULL) {
                *size /= 2;
                byte = 0;
            }
        }
        result = BB_E_DECODE;
    } else {
        const struct bb_region *region = leaf->region;
        uint64_t offset = gpa - leaf->first;

        while (offset + *size - 1 > leaf->last_offset) {
            *size /= 2;
        }
        offset += leaf->region_offset;
        result = ctx->callback_depth > 0
                     ? nested_piece(e, space, gpa, region, offset, *size, value, write)
                     : outer_piece(e, region, offset, *size, value, write, in_users_section);
    }
    bb_section_leave_(ctx);
    return result;
}

/* An access of any size from 1 to 8, as pieces in rising order of address. */
static int access_pieces(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, unsigned size,
                         uint64_t *value, bool write)
{
    uint64_t whole = 0;
    bool unassigned = false;
    bool refused = false;
    int context = BB_OK;

    for (unsigned done = 0; done < size;) {
        unsigned step = 8;
        while (step > size - done) {
            step /= 2;
        }
        uint64_t piece = write ? *value >> (done * 8) : 0;
        int result = access_piece(e, space, gpa + done, &step, &piece, write);

        if (result != BB_OK) {
            piece = space->unassigned;
            unassigned |= result == BB_E_DECODE;
            refused |= result != BB_E_DECODE;
            context = result == BB_E_CONTEXT ? result : context;
        }
        whole |= (piece & bb_mask_bytes(step)) << (done * 8);
        done += step;
    }
    if (!write) {
        *value = whole;
    }
    if (unassigned) {
        if (write) {
            bb_count_(e, unassigned_writes);
        } else {
            bb_count_(e, unassigned_reads);
        }
    }
    if (refused) {
        bb_count_(e, refused);
        return context != BB_OK ? context : BB_E_DEVICE;
    }
    return unassigned ? BB_E_DECODE : BB_OK;
}

int bb_access_effect_(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    uint64_t value = effect->write.value;

    return access_pieces(e, effect->write.space, effect->write.gpa, effect->size, &value, true);
}

/* True where the fast path may begin its section. */
static inline __attribute__((always_inline)) bool fast_possible(const struct bb_ectx_ *e)
{
    return BB_LIKELY(e->mem.base.callback_depth == 0 && !bb_section_active_(&e->mem.base));
}

/* The leaf for the fast path, its frame set; NULL where the access has to go the slow way, or the
 * gate is not as expected. In a section that has just begun. */
static inline __attribute__((always_inline)) const struct bb_flat_ *
fast_find(struct bb_ectx_ *e, const struct bb_space *space, bb_gpa_t gpa, uint64_t size,
          uint32_t gate, uint64_t *offset)
{
    const struct bb_flat_ *leaf;
    uint64_t inside;

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
    /* A power of two, aligned; fast_sizes has the rest. */
    if (BB_UNLIKELY((leaf->fast_sizes & size) == 0 || ((*offset | size) & (size - 1)) != 0)) {
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
    leaf = fast_find(e, space, gpa, size, gate, &offset);
    if (leaf == NULL) {
        bb_section_leave_outermost_(ctx);
    } else {
        uint64_t mask = bb_mask_bytes(size);
        uint64_t data = write ? *value & mask : 0;

        if (!big) {
            bb_lock_acquire(ctx, &leaf->owner->baseline);
        }
        result = write ? leaf->region->write(ctx, leaf->opaque, offset, size, data)
                       : leaf->read(ctx, leaf->opaque, offset, size, &data);
        if (!big) {
            bb_lock_release(ctx, &leaf->owner->baseline);
        }
        if (result != BB_OK) {
            bb_count_(e, refused);
            data = space->unassigned;
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

static __attribute__((noinline)) int access_slow(struct bb_ectx_ *e, struct bb_space *space,
                                                 bb_gpa_t gpa, unsigned size, uint64_t *value,
                                                 bool write)
{
    uint64_t last;
    int result;

    if (size == 0 || size > 8 || !bb_range_last(gpa, size, &last)) {
        return BB_E_RANGE;
    }
    if (e->mem.base.callback_depth > 0) {
        return access_pieces(e, space, gpa, size, value, write);
    }
    result = access_baseline(e, space, gpa, size, value, write);
    if (result <= 0) {
        return result;
    }
    if (!bb_gate_enter_(e)) {
        if (!write) {
            *value = space->unassigned & bb_mask_bytes(size);
        }
        return BB_E_CONTEXT;
    }
    result = access_pieces(e, space, gpa, size, value, write);
    bb_chain_finish_(e);
    bb_gate_leave_(e);
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
    *value = e->fast_space->unassigned & bb_mask_bytes((unsigned)size);
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
    leaf = fast_find(e, space, gpa, bytes, 0, &offset);
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
    leaf = fast_find(e, space, gpa, size, 0, &offset);
    if (BB_UNLIKELY(leaf == NULL)) {
        return access_slow_after_all(e, space, gpa, size, &value, true);
    }
    if (size < 8) {
        value &= size_mask[size];
    }
    if (BB_UNLIKELY(leaf->region->write(ctx, leaf->opaque, offset, size, value) != BB_OK)) {
        return fast_write_refused(e);
    }
    fast_end(e);
    return BB_OK;
}
