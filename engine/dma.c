/* SPDX-License-Identifier: MIT */
/*
 * DMA: bulk copies; see dma.h. Values and atomics are in dma_value.c.
 *
 * A transfer goes on part by part. A part is as much of it as one lookup finds: memory is touched
 * here, by relaxed-atomic accesses of the largest naturally aligned size; all else becomes accesses
 * of up to 8 bytes that piece.c makes by its rules.
 *
 * Outermost, a transfer is one chain: it passes the gate, is busy until its end, and has its
 * epilogue. What a part's callbacks post is made before the next part, as if each part were an
 * access. A transfer that meets memory alone and fits in one section does without: it asks for the
 * gate in its section, as the fast path of dispatch.c does and for the same reason, and writes no
 * line that others write.
 *
 * Invariants:
 *  1. `done` bytes have been copied, or are in the chain's queue, and none behind them. So no byte
 *     of guest memory is read twice, also where a transfer leaves the short way for the long one.
 *  2. A page is marked dirty after it was written, in the section in which it was found.
 *  3. In a callback, what may not be written at once is posted whole, as one effect with its own
 *     copy of the bytes; from then on the chain's `ordered` keeps what comes later behind it.
 *  4. Posted bytes of a chain are at most BB_DMA_POSTED_MAX; whoever takes an effect off the queue
 *     gives them back (let_go() in chain.c).
 */
#include "dma.h"

#include <string.h>

#include "dma_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are copied as bytes");

enum { SECTION_BYTES = 64 << 10, WORD_BYTES = 8 };

/* Memory. */

/* The largest access of at most 8 bytes that is aligned at `at` and no longer than `length`. */
static inline unsigned aligned_size(uint64_t at, uint64_t length)
{
    unsigned size = WORD_BYTES;

    while (size > length || (at & (size - 1)) != 0) {
        size /= 2;
    }
    return size;
}

static void ram_read(uint8_t *to, const uint8_t *ram, uint64_t length)
{
    while (length > 0) {
        unsigned size = aligned_size((uintptr_t)ram, length);
        uint64_t word = bb_ram_load_(ram, size);

        memcpy(to, &word, size);
        to += size;
        ram += size;
        length -= size;
        for (; size == WORD_BYTES && length >= WORD_BYTES; length -= WORD_BYTES) {
            word = bb_ram_load_(ram, WORD_BYTES);
            memcpy(to, &word, WORD_BYTES);
            to += WORD_BYTES;
            ram += WORD_BYTES;
        }
    }
}

static void ram_write(uint8_t *ram, const uint8_t *from, uint64_t length)
{
    while (length > 0) {
        unsigned size = aligned_size((uintptr_t)ram, length);
        uint64_t word = 0;

        memcpy(&word, from, size);
        bb_ram_store_(ram, size, word);
        from += size;
        ram += size;
        length -= size;
        for (; size == WORD_BYTES && length >= WORD_BYTES; length -= WORD_BYTES) {
            memcpy(&word, from, WORD_BYTES);
            bb_ram_store_(ram, WORD_BYTES, word);
            from += WORD_BYTES;
            ram += WORD_BYTES;
        }
    }
}

static void ram_fill(uint8_t *ram, uint8_t byte, uint64_t length)
{
    uint64_t word = byte * UINT64_C(0x0101010101010101);

    while (length > 0) {
        unsigned size = aligned_size((uintptr_t)ram, length);

        bb_ram_store_(ram, size, word);
        ram += size;
        length -= size;
    }
}

void bb_dma_failed_(struct bb_ectx_ *e, bool write, int result)
{
    if (result != BB_E_DECODE) {
        bb_count_(e, refused);
    } else if (write) {
        bb_count_(e, unassigned_writes);
    } else {
        bb_count_(e, unassigned_reads);
    }
}

/* Reads of RAM in a callback see what the chain has posted. */
static void forward(const struct bb_ectx_ *e, const struct bb_transfer_ *t,
                    const struct bb_found_ *found, uint64_t length)
{
    bb_gpa_t gpa = t->gpa + t->done;
    bool translated = found->space != t->space || found->gpa != gpa;

    bb_chain_forward_bytes_(e, t->space, gpa, translated ? &t->attrs : NULL, t->to + t->done,
                            length);
}

/*
 * The part at `done`, looked up. In a section. Memory: copies at most `most` bytes of it and
 * returns 1. Something else: returns 0 with *size the bytes to be accessed and *found what is
 * there. Else the result that ends the transfer, counted.
 */
static int ram_part(struct bb_ectx_ *e, struct bb_transfer_ *t, uint64_t most,
                    struct bb_found_ *found, unsigned *size)
{
    bool write = t->to == NULL;
    bb_gpa_t gpa = t->gpa + t->done;
    int result = bb_map_resolve_(&e->mem, t->space, gpa, t->length - t->done,
                                 write ? BB_IOMMU_WRITE : BB_IOMMU_READ, t->attrs, found);

    if (result != BB_OK) {
        bb_dma_failed_(e, write, result);
        return result;
    }
    const struct bb_flat_ *leaf = found->leaf;
    if (leaf == NULL || !leaf->memory || (write && leaf->kind != BB_KIND_RAM)) {
        uint64_t longest = found->length;

        /* As wide as the region takes it: to a region of 4-byte registers a copy is of these. */
        if (leaf != NULL && (leaf->kind == BB_KIND_IO || leaf->kind == BB_KIND_ROM_DEVICE) &&
            leaf->region->rules.valid_max < longest) {
            longest = leaf->region->rules.valid_max;
        }
        *size = aligned_size(gpa, longest);
        return 0;
    }
    uint64_t length = found->length < most ? found->length : most;
    if (write && leaf->read_only) {
        bb_dma_failed_(e, write, BB_E_DEVICE);
        result = BB_E_DEVICE;
    } else if (!write) {
        ram_read(t->to + t->done, bb_found_host_(found), length);
        if (e->mem.base.callback_depth > 0 && bb_leaf_writable_(leaf)) {
            forward(e, t, found, length);
        }
    } else {
        if (t->from != NULL) {
            ram_write(bb_found_host_(found), t->from + t->done, length);
        } else {
            ram_fill(bb_found_host_(found), t->fill, length);
        }
        bb_dirty_wrote_(leaf->region, found->offset, length);
    }
    /* Once for a region, however many parts it has. Relaxed: counting may begin an access late. */
    if (BB_UNLIKELY((bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_COUNT_) != 0) &&
        (t->counted != leaf->region->serial || result != BB_OK)) {
        t->counted = leaf->region->serial;
        bb_tally_(e, bb_counted_of_(leaf->region), write, result);
    }
    if (result != BB_OK) {
        return result;
    }
    t->done += length;
    return 1;
}

/* The rest. */

/* Copies `length` bytes of a write from `done` on into private memory. */
static void take_bytes(uint8_t *into, const struct bb_transfer_ *t, uint64_t length)
{
    if (t->from != NULL) {
        memcpy(into, t->from + t->done, length);
    } else {
        memset(into, t->fill, length);
    }
}

/* The part at `done` as an access of `size` bytes. In no section of ours. */
static int access_part(struct bb_ectx_ *e, struct bb_transfer_ *t, unsigned size)
{
    bool write = t->to == NULL;
    uint8_t bytes[WORD_BYTES];
    int result;

    if (write) {
        take_bytes(bytes, t, size);
    }
    result = bb_access_pieces_(e, t->space, t->gpa + t->done, bytes, size, write, t->attrs);
    if (result != BB_OK) {
        return result;
    }
    if (!write) {
        memcpy(t->to + t->done, bytes, size);
    }
    t->done += size;
    return BB_OK;
}

/* In a chain that has begun, or for an effect of one; nothing is held. */
static int move_outer(struct bb_ectx_ *e, struct bb_transfer_ *t)
{
    struct bb_ctx *ctx = &e->mem.base;

    while (t->done < t->length) {
        uint64_t left = t->length - t->done;
        uint64_t end = t->done + (left < SECTION_BYTES ? left : SECTION_BYTES);
        struct bb_found_ found;
        unsigned size = 0;
        int result = 1;

        bb_section_enter_(ctx);
        while (result > 0 && t->done < end) {
            result = ram_part(e, t, end - t->done, &found, &size);
        }
        bb_section_leave_(ctx);
        if (result == 0) {
            uint16_t records = e->chain.record_count;
            uint32_t spent = e->chain.spent;

            result = access_part(e, t, size);
            if (e->chain.spent == spent) {
                e->chain.record_count = records; /* nothing refers to them */
            }
        }
        if (!e->chain.epilogue) {
            bb_chain_step_(e);
        }
        if (result < 0) {
            return result;
        }
    }
    return BB_OK;
}

/* Posts what is left of a write. */
static int post_rest(struct bb_ectx_ *e, struct bb_transfer_ *t)
{
    struct bb_chain_ *chain = &e->chain;
    struct bb_heap *heap = e->engine->heap;
    uint64_t length = t->length - t->done;
    uint8_t *bytes = NULL;

    if (length > BB_DMA_POSTED_MAX - chain->bulk_bytes) {
        bb_count_(e, effects_refused);
        return BB_E_LIMIT;
    }
    if (length > BB_BULK_FEW_) {
        bytes = bb_heap_alloc(heap, length);
        if (bytes == NULL) {
            bb_count_(e, effects_refused);
            return BB_E_NOMEM;
        }
    }
    struct bb_effect_ *effect = bb_chain_post_(e, NULL, true, BB_EFFECT_BULK_);
    if (effect == NULL) {
        bb_heap_free(heap, bytes, length);
        return BB_E_LIMIT; /* counted */
    }
    effect->bulk.space = t->space;
    effect->bulk.gpa = t->gpa + t->done;
    effect->bulk.bytes = bytes;
    effect->bulk.length = (uint32_t)length;
    effect->bulk.attrs = t->attrs;
    take_bytes(bytes != NULL ? bytes : effect->bulk.few, t, length);
    chain->bulk_bytes += (uint32_t)length;
    t->done = t->length;
    return BB_OK;
}

/* True where a write in a callback has to wait for the epilogue. One into a device that the chain
 * is in is not posted: it is refused, by who makes the access. */
static bool must_wait(struct bb_ectx_ *e, const struct bb_flat_ *leaf)
{
    const struct bb_region *region;

    if (leaf == NULL || (leaf->kind != BB_KIND_IO && leaf->kind != BB_KIND_ROM_DEVICE)) {
        return false;
    }
    if (leaf->bells != NULL) {
        return false; /* it may ring a doorbell, at once: who makes the access knows */
    }
    region = leaf->region;
    bb_chain_root_(e);
    if (!region->reentrant && bb_chain_has_(&e->chain, e->chain.record, region->owner_id)) {
        return false;
    }
    return !bb_chain_at_once_(e, region);
}

/* In a callback. */
static int move_nested(struct bb_ectx_ *e, struct bb_transfer_ *t)
{
    struct bb_ctx *ctx = &e->mem.base;
    bool write = t->to == NULL;

    while (t->done < t->length) {
        struct bb_found_ found;
        unsigned size = 0;
        bool wait = write && e->chain.ordered > 0;
        int result = 0;

        if (!wait) {
            bb_section_enter_(ctx);
            result = ram_part(e, t, t->length - t->done, &found, &size);
            wait = result == 0 && write && must_wait(e, found.leaf);
            bb_section_leave_(ctx);
        }
        if (wait) {
            return post_rest(e, t);
        }
        if (result == 0) {
            result = access_part(e, t, size);
        }
        if (result < 0) {
            return result;
        }
    }
    return BB_OK;
}

/*
 * The short way of an outermost transfer: as far as memory goes, in one section. Returns 1 where
 * the rest has to go the long way.
 */
static int move_fast(struct bb_ectx_ *e, struct bb_transfer_ *t)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_found_ found;
    unsigned size;
    int result = 1;

    bb_section_enter_outermost_(ctx);
    /* As in fast_find() (dispatch.c): pairs with set_gate(), ordered by the section. */
    if (BB_LIKELY(bb_load_acquire(&e->mem.map->gate) == 0)) {
        while (result > 0 && t->done < t->length) {
            result = ram_part(e, t, t->length - t->done, &found, &size);
        }
        result = result == 0 ? 1 : (result > 0 ? BB_OK : result);
    }
    bb_section_leave_outermost_(ctx);
    if (BB_UNLIKELY(ctx->epilogue != 0) && result <= 0) {
        bb_chain_finish_(e); /* what a translation posted */
    }
    return result;
}

int bb_dma_move_(struct bb_ctx *ctx, struct bb_transfer_ *t)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    int result;

    if (ctx->callback_depth > 0) {
        return move_nested(e, t);
    }
    if (t->length <= SECTION_BYTES && !bb_section_active_(ctx)) {
        result = move_fast(e, t);
        if (BB_LIKELY(result <= 0)) {
            return result;
        }
    }
    if (!bb_gate_enter_(e)) {
        return BB_E_CONTEXT;
    }
    result = move_outer(e, t);
    bb_chain_finish_(e);
    bb_gate_leave_(e);
    return result;
}

void bb_dma_effect_(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    struct bb_transfer_ t = {
        .space = effect->bulk.space,
        .gpa = effect->bulk.gpa,
        .from = bb_bulk_bytes_(effect),
        .attrs = effect->bulk.attrs,
        .length = effect->bulk.length,
    };

    (void)move_outer(e, &t); /* a posted write's error is counted, as on a bus */
}

static int bulk(struct bb_ctx *ctx, struct bb_transfer_ *t, size_t *done)
{
    uint64_t last;
    int result = BB_OK;

    if (done != NULL) {
        *done = 0;
    }
    if (ctx == NULL || t->space == NULL) {
        return BB_E_INVAL;
    }
    if (t->length == 0) {
        return BB_OK;
    }
    if (!bb_range_last(t->gpa, t->length, &last)) {
        return BB_E_RANGE;
    }
    result = bb_dma_move_(ctx, t);
    if (done != NULL) {
        *done = t->done;
    }
    return result;
}

int bb_dma_read(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                size_t length, struct bb_attrs attrs, size_t *done)
{
    struct bb_transfer_ t = {
        .space = space, .gpa = gpa, .to = bytes, .attrs = attrs, .length = length};

    if (bytes == NULL && length != 0) {
        t.space = NULL; /* refused */
    }
    return bulk(ctx, &t, done);
}

int bb_dma_write(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, const void *bytes,
                 size_t length, struct bb_attrs attrs, size_t *done)
{
    struct bb_transfer_ t = {
        .space = space, .gpa = gpa, .from = bytes, .attrs = attrs, .length = length};

    if (bytes == NULL && length != 0) {
        t.space = NULL; /* refused */
    }
    return bulk(ctx, &t, done);
}

int bb_dma_fill(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, uint8_t byte,
                size_t length, struct bb_attrs attrs, size_t *done)
{
    struct bb_transfer_ t = {
        .space = space, .gpa = gpa, .fill = byte, .attrs = attrs, .length = length};

    return bulk(ctx, &t, done);
}
