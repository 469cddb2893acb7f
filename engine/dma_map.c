/* SPDX-License-Identifier: MIT */
/*
 * Mappings of guest memory; see dma.h.
 *
 * A mapping of RAM is a pin and an address. The pin is taken in the section in which the RAM was
 * found, so whoever takes the region out of the map and then drains its pins waits for it; from
 * then on the map may change as it likes. A bounce buffer is private memory, filled and written
 * back by the DMA functions; it pins nothing, and leads wherever its address leads at each end.
 *
 * In a callback that has posted a write RAM gets a bounce buffer too: read through the queue when
 * it is filled, and written back behind what was posted. Touched directly it would show the guest
 * what is to come after that write before it.
 *
 * A mapping is its holder's, one thread at a time; only the engine's two counts are shared. They
 * are changed by read-modify-writes alone and publish nothing, so they are relaxed: one bounds the
 * bytes of bounce buffers, the other tells an engine's destruction, which has no other thread
 * beside it, whether mappings are left.
 */
#include <inttypes.h>

#include "dma_internal.h"

#define MAP_BYTES_MAX (UINT64_C(1) << 32)

struct bb_bounces_ {
    uint64_t bytes;    /* (a) of all bounce buffers; at most BB_BOUNCE_TOTAL */
    uint64_t mappings; /* (a) not yet undone, of either kind */
};

struct bb_dma_mapping {
    struct bb_engine *engine; /* immutable, all of it */
    uint8_t *host;
    uint64_t length;
    /* RAM: where it is, and what keeps it there. */
    struct bb_region *region; /* NULL: a bounce buffer */
    uint64_t offset;
    unsigned side;
    /* A bounce buffer: what it stands for. */
    struct bb_space *space;
    bb_gpa_t gpa;
    struct bb_attrs attrs;
    enum bb_dma_direction direction;
    uint64_t buffer_bytes;
};

int bb_bounces_create_(struct bb_engine *engine)
{
    engine->bounces =
        bb_heap_alloc_aligned(engine->heap, sizeof(*engine->bounces), BB_CACHE_LINE_BYTES);
    return engine->bounces == NULL ? BB_E_NOMEM : BB_OK;
}

void bb_bounces_destroy_(struct bb_engine *engine)
{
    bb_heap_free(engine->heap, engine->bounces, sizeof(*engine->bounces));
    engine->bounces = NULL;
}

size_t bb_mappings_left_(const struct bb_engine *engine)
{
    return bb_load_relaxed(&engine->bounces->mappings);
}

/* Takes `bytes` of what bounce buffers may hold together. Lock-free. */
static bool bounce_reserve(struct bb_engine *engine, uint64_t bytes)
{
    uint64_t held = bb_load_relaxed(&engine->bounces->bytes);

    do {
        if (bytes > BB_BOUNCE_TOTAL - held) {
            return false;
        }
    } while (!bb_cas_relaxed(&engine->bounces->bytes, &held, held + bytes));
    return true;
}

static void bounce_release(struct bb_engine *engine, uint64_t bytes)
{
    (void)bb_fetch_add_relaxed(&engine->bounces->bytes, UINT64_C(0) - bytes);
}

/*
 * Looks at what lies at the mapping's address, `length` bytes of it. Memory that may be touched
 * directly is pinned and put into the mapping; then, or where a bounce buffer is needed, returns
 * BB_OK with the length that one piece has. In no section of ours.
 */
static int find(struct bb_ectx_ *e, struct bb_dma_mapping *mapping, uint64_t *length)
{
    struct bb_ctx *ctx = &e->mem.base;
    bool write = (mapping->direction & BB_DMA_TO_GUEST) != 0;
    bool read = (mapping->direction & BB_DMA_FROM_GUEST) != 0;
    bool direct = ctx->callback_depth == 0 || e->chain.ordered == 0;
    struct bb_found_ found;
    int result;

    bb_section_enter_(ctx);
    result = bb_map_resolve_(&e->mem, mapping->space, mapping->gpa, *length,
                             write ? BB_IOMMU_WRITE : BB_IOMMU_READ, mapping->attrs, &found);
    /* Where it was translated: what may be written need not be readable. */
    if (result == BB_OK && write && read &&
        (found.space != mapping->space || found.gpa != mapping->gpa)) {
        struct bb_found_ readable;
        result = bb_map_resolve_(&e->mem, mapping->space, mapping->gpa, found.length, BB_IOMMU_READ,
                                 mapping->attrs, &readable);
        if (result == BB_OK) {
            found.length = found.length < readable.length ? found.length : readable.length;
            /* Where reads lead somewhere else no address serves both: a bounce buffer does. */
            direct = direct && readable.leaf == found.leaf && readable.offset == found.offset;
        }
    }
    if (result == BB_OK && (found.leaf == NULL || found.leaf->kind == BB_KIND_RESERVED)) {
        result = BB_E_DECODE;
    }
    if (result == BB_OK) {
        const struct bb_flat_ *leaf = found.leaf;

        *length = found.length;
        if (direct && (write ? bb_leaf_writable_(leaf) : leaf->memory)) {
            mapping->region = leaf->region;
            mapping->offset = found.offset;
            mapping->host = bb_found_host_(&found);
            mapping->side = bb_pins_get_(leaf->region->pins);
        }
    } else {
        bb_dma_failed_(e, !read, result);
    }
    bb_section_leave_(ctx);
    return result;
}

/* The same as an access of its own: a translation may run callbacks. */
static int find_outermost(struct bb_ectx_ *e, struct bb_dma_mapping *mapping, uint64_t *length)
{
    int result;

    if (!bb_gate_enter_(e)) {
        return BB_E_CONTEXT;
    }
    result = find(e, mapping, length);
    bb_chain_finish_(e);
    bb_gate_leave_(e);
    return result;
}

/* Gives the mapping a bounce buffer for `length` bytes, filled where the host will read it. */
static int bounce(struct bb_ctx *ctx, struct bb_dma_mapping *mapping, uint64_t length,
                  struct bb_error *err)
{
    struct bb_engine *engine = mapping->engine;
    size_t done = 0;
    int result;

    if (length > BB_BOUNCE_MAX) {
        length = BB_BOUNCE_MAX;
    }
    if (!bounce_reserve(engine, length)) {
        return bb_error_set(err, BB_E_LIMIT,
                            "no bounce buffer of %" PRIu64 " bytes for 0x%" PRIx64
                            ": those in use may hold %d bytes; unmap some first",
                            length, mapping->gpa, (int)BB_BOUNCE_TOTAL);
    }
    uint8_t *buffer = bb_heap_alloc_aligned(engine->heap, length, BB_CACHE_LINE_BYTES);
    if (buffer == NULL) {
        bounce_release(engine, length);
        return bb_error_set(err, BB_E_NOMEM, "no memory for a bounce buffer of %" PRIu64 " bytes",
                            length);
    }
    mapping->host = buffer;
    mapping->buffer_bytes = length;
    mapping->length = length;
    if ((mapping->direction & BB_DMA_FROM_GUEST) == 0) {
        return BB_OK;
    }
    result = bb_dma_read(ctx, mapping->space, mapping->gpa, buffer, length, mapping->attrs, &done);
    if (result == BB_OK || (done > 0 && (result == BB_E_DECODE || result == BB_E_DEVICE))) {
        mapping->length = done;
        return BB_OK;
    }
    bb_heap_free(engine->heap, buffer, length);
    bounce_release(engine, length);
    return bb_error_set(err, result, "0x%" PRIx64 " can't be read into a bounce buffer: %s",
                        mapping->gpa, bb_result_text(result));
}

static int check(const struct bb_ctx *ctx, const struct bb_space *space, bb_gpa_t gpa,
                 const uint64_t *length, enum bb_dma_direction direction,
                 struct bb_dma_mapping *const *mapping, struct bb_error *err)
{
    uint64_t last;

    if (ctx == NULL || space == NULL || length == NULL || mapping == NULL) {
        return bb_error_set(err, BB_E_INVAL,
                            "a mapping needs a context, a space, a length and a place");
    }
    if (direction != BB_DMA_FROM_GUEST && direction != BB_DMA_TO_GUEST &&
        direction != BB_DMA_BOTH) {
        return bb_error_set(err, BB_E_INVAL,
                            "direction %d is none of BB_DMA_FROM_GUEST, _TO_GUEST, _BOTH",
                            (int)direction);
    }
    if (*length == 0 || *length > MAP_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE, "a length of %" PRIu64 " is not 1 to 2^32", *length);
    }
    if (!bb_range_last(gpa, *length, &last)) {
        return bb_error_set(err, BB_E_RANGE, "%" PRIu64 " bytes at 0x%" PRIx64 " wrap at 2^64",
                            *length, gpa);
    }
    return BB_OK;
}

int bb_dma_map(struct bb_ctx *ctx, struct bb_space *space, bb_gpa_t gpa, uint64_t *length,
               enum bb_dma_direction direction, struct bb_attrs attrs,
               struct bb_dma_mapping **mapping, struct bb_error *err)
{
    int result = check(ctx, space, gpa, length, direction, mapping, err);

    if (result != BB_OK) {
        return result;
    }
    struct bb_ectx_ *e = bb_ectx_(ctx);
    struct bb_engine *engine = e->engine;
    uint64_t found = *length;
    struct bb_dma_mapping *made = bb_heap_alloc(engine->heap, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a mapping of 0x%" PRIx64, gpa);
    }
    *made = (struct bb_dma_mapping){
        .engine = engine, .space = space, .gpa = gpa, .attrs = attrs, .direction = direction};
    result = ctx->callback_depth > 0 ? find(e, made, &found) : find_outermost(e, made, &found);
    if (result != BB_OK) {
        bb_error_set(err, result, "0x%" PRIx64 " of space %s can't be mapped: %s", gpa,
                     bb_space_name(space), bb_result_text(result));
    } else if (made->region != NULL) {
        made->length = found;
    } else {
        result = bounce(ctx, made, found, err);
    }
    if (result != BB_OK) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return result;
    }
    (void)bb_fetch_add_relaxed(&engine->bounces->mappings, 1);
    *length = made->length;
    *mapping = made;
    return BB_OK;
}

void *bb_dma_host(const struct bb_dma_mapping *mapping)
{
    return mapping->host;
}

bool bb_dma_bounced(const struct bb_dma_mapping *mapping)
{
    return mapping->region == NULL;
}

int bb_dma_unmap(struct bb_ctx *ctx, struct bb_dma_mapping *mapping, uint64_t written)
{
    if (ctx == NULL || mapping == NULL || bb_ectx_(ctx)->engine != mapping->engine) {
        return BB_E_INVAL;
    }
    struct bb_engine *engine = mapping->engine;
    int result = BB_OK;

    if (written > mapping->length) {
        written = mapping->length;
    }
    if (mapping->region != NULL) {
        if (written > 0) {
            /* The pin keeps the region; the section keeps its dirty logs. */
            bb_section_enter_(ctx);
            bb_dirty_wrote_(mapping->region, mapping->offset, written);
            bb_section_leave_(ctx);
        }
        bb_pins_put_(engine->rcu, mapping->region->pins, mapping->side);
    } else {
        if (written > 0 && (mapping->direction & BB_DMA_TO_GUEST) != 0) {
            result = bb_dma_write(ctx, mapping->space, mapping->gpa, mapping->host, written,
                                  mapping->attrs, NULL);
        }
        bb_heap_free(engine->heap, mapping->host, mapping->buffer_bytes);
        bounce_release(engine, mapping->buffer_bytes);
    }
    bb_heap_free(engine->heap, mapping, sizeof(*mapping));
    (void)bb_fetch_add_relaxed(&engine->bounces->mappings, UINT64_MAX);
    return result;
}
