/* SPDX-License-Identifier: MIT */
/*
 * One access of one region, by its rules.
 *
 * In this order: a reserved range is a decode error; memory (RAM, and a ROM device's to be read) is
 * touched, whatever the size and alignment, but for what is read-only; else the size and alignment
 * must be valid, then the accept hook be content, then there must be a callback.
 *
 * What a callback's value means. A region is an array of bytes. A callback of n bytes at offset o
 * reads or writes bytes o to o + n - 1 of it: in a little-endian region the byte at o is the least
 * significant one of the value, in a big-endian region the most significant one. An access
 * is the bytes that it covers, in order of offset; as a number (bb_mmio_read()) the byte at its own
 * offset is the lowest. All else follows from these two sentences:
 *  - an access that a big-endian region implements at its size is swapped at that size;
 *  - split, the piece at the lowest offset gives the first bytes of an access, whichever the
 *    endianness; as a big-endian number it is the most significant piece. That is how accesses of
 *    16, 32 and 64 bytes reach callbacks of up to 8;
 *  - widened, an access takes the bytes of its own offsets from the aligned wider one around it.
 *    The wider write has zeros in the other bytes: nothing is read to fill them;
 *  - unaligned, an access is the naturally aligned pieces that it is made of, largest first fit,
 *    each widened or not.
 * This is the documented behaviour of QEMU's memory API for a little-endian target, except that
 * widened accesses are aligned down to the wider size.
 *
 * Pieces are made in rising order of offset; the first that is refused ends the access, and those
 * behind it are not made.
 */
#include <string.h>

#include "memory_internal.h"

/* Callbacks take values in host order, and RAM is the guest's bytes: one and the same here. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "busbar needs a little-endian host");

/* The part of an access that one callback serves. */
struct piece {
    uint64_t at; /* offset and size of the callback: aligned, implemented */
    unsigned size;
    unsigned skip;  /* its bytes before the access's part */
    unsigned bytes; /* the access's part */
};

/* The piece for the access's bytes from `offset`, with `left` bytes to go. */
static inline struct piece next_piece(const struct bb_access_rules *rules, uint64_t offset,
                                      unsigned left)
{
    unsigned size = rules->impl_max;

    while (size > 1 && ((offset & (size - 1)) != 0 || size > left)) {
        size /= 2;
    }
    if (size < rules->impl_min) {
        size = rules->impl_min;
    }
    uint64_t at = offset & ~(uint64_t)(size - 1);
    unsigned skip = (unsigned)(offset - at);
    unsigned bytes = size - skip < left ? size - skip : left;
    return (struct piece){.at = at, .size = size, .skip = skip, .bytes = bytes};
}

/* Between a region's own order and little-endian: its own inverse. */
static inline uint64_t region_order(const struct bb_access_rules *rules, uint64_t value,
                                    unsigned size)
{
    if (rules->endian == BB_LITTLE_ENDIAN) {
        return value;
    }
    return __builtin_bswap64(value) >> (64 - 8 * size);
}

static inline bool is_aligned(uint64_t offset, unsigned size)
{
    return (offset & (size - 1)) == 0;
}

/* Whether an access is of one of `sizes`, of which all are powers of two, and aligned. */
static inline bool is_natural(unsigned sizes, uint64_t offset, unsigned size)
{
    return (sizes & size) != 0 && is_aligned(offset | size, size);
}

static bool is_valid(const struct bb_access_rules *rules, uint64_t offset, unsigned size)
{
    return bb_is_pow2(size) && size >= rules->valid_min && size <= rules->valid_max &&
           (rules->unaligned || is_aligned(offset, size));
}

static uint64_t load_bytes(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, bytes, size);
    return value;
}

static void store_bytes(uint8_t *bytes, unsigned size, uint64_t value)
{
    memcpy(bytes, &value, size);
}

/* Bytes to touch at once: as many as are aligned and left, at most 8. */
static unsigned memory_step(const uint8_t *host, unsigned left)
{
    unsigned step = 8;

    while (step > left || !is_aligned((uintptr_t)host, step)) {
        step /= 2;
    }
    return step;
}

static void memory_read(const uint8_t *host, uint8_t *bytes, unsigned size)
{
    while (size > 0) {
        unsigned step = memory_step(host, size);

        store_bytes(bytes, step, bb_ram_load_(host, step));
        host += step;
        bytes += step;
        size -= step;
    }
}

static void memory_write(uint8_t *host, const uint8_t *bytes, unsigned size)
{
    while (size > 0) {
        unsigned step = memory_step(host, size);

        bb_ram_store_(host, step, load_bytes(bytes, step));
        host += step;
        bytes += step;
        size -= step;
    }
}

static uint8_t *host_at(const struct bb_flat_ *leaf, uint64_t offset)
{
    return leaf->host + (offset - leaf->region_offset);
}

/* What the accept hook's answer means to the access. */
static int accepted(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                    unsigned size, bool write, struct bb_attrs attrs)
{
    if (region->accept == NULL) {
        return BB_OK;
    }
    int result = region->accept(ctx, region->opaque, offset, size, write, attrs);

    return result == BB_OK || result == BB_E_DECODE ? result : BB_E_DEVICE;
}

/* By pieces. Whatever they read goes to `bytes` when all of them have succeeded. */
static int split_read(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                      uint8_t *bytes, unsigned size)
{
    const struct bb_access_rules *rules = &region->rules;
    uint8_t composed[BB_ACCESS_BYTES_MAX_];

    for (unsigned done = 0; done < size;) {
        struct piece piece = next_piece(rules, offset + done, size - done);
        uint64_t value = 0;

        if (region->read(ctx, region->opaque, piece.at, piece.size, &value) != BB_OK) {
            return BB_E_DEVICE;
        }
        value = region_order(rules, value & bb_mask_bytes(piece.size), piece.size);
        store_bytes(&composed[done], piece.bytes, value >> (8 * piece.skip));
        done += piece.bytes;
    }
    memcpy(bytes, composed, size);
    return BB_OK;
}

static int split_write(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                       const uint8_t *bytes, unsigned size)
{
    const struct bb_access_rules *rules = &region->rules;

    for (unsigned done = 0; done < size;) {
        struct piece piece = next_piece(rules, offset + done, size - done);
        uint64_t value = load_bytes(&bytes[done], piece.bytes) << (8 * piece.skip);

        value = region_order(rules, value, piece.size);
        if (region->write(ctx, region->opaque, piece.at, piece.size, value) != BB_OK) {
            return BB_E_DEVICE;
        }
        done += piece.bytes;
    }
    return BB_OK;
}

int bb_leaf_read_(struct bb_ctx *ctx, const struct bb_flat_ *leaf, uint64_t offset, void *bytes,
                  unsigned size, struct bb_attrs attrs)
{
    const struct bb_region *region = leaf->region;

    if (leaf->memory) {
        memory_read(host_at(leaf, offset), bytes, size);
        return BB_OK;
    }
    if (leaf->kind == BB_KIND_RESERVED) {
        return BB_E_DECODE;
    }
    if (BB_LIKELY(is_natural(region->read_sizes, offset, size))) {
        uint64_t value = 0;

        if (region->read(ctx, region->opaque, offset, size, &value) != BB_OK) {
            return BB_E_DEVICE;
        }
        store_bytes(bytes, size, value);
        return BB_OK;
    }
    if (!is_valid(&region->rules, offset, size)) {
        return BB_E_DEVICE;
    }
    int result = accepted(ctx, region, offset, size, false, attrs);
    if (result != BB_OK) {
        return result;
    }
    return region->read == NULL ? BB_E_DEVICE : split_read(ctx, region, offset, bytes, size);
}

int bb_leaf_write_(struct bb_ctx *ctx, const struct bb_flat_ *leaf, uint64_t offset,
                   const void *bytes, unsigned size, struct bb_attrs attrs)
{
    const struct bb_region *region = leaf->region;

    if (leaf->kind == BB_KIND_RAM) {
        if (leaf->read_only) {
            return BB_E_DEVICE;
        }
        memory_write(host_at(leaf, offset), bytes, size);
        bb_dirty_wrote_(leaf->region, offset, size);
        return BB_OK;
    }
    if (leaf->kind == BB_KIND_RESERVED) {
        return BB_E_DECODE;
    }
    if (BB_LIKELY(is_natural(region->write_sizes, offset, size))) {
        int refused = region->write(ctx, region->opaque, offset, size, load_bytes(bytes, size));

        return refused == BB_OK ? BB_OK : BB_E_DEVICE;
    }
    if (!is_valid(&region->rules, offset, size)) {
        return BB_E_DEVICE;
    }
    int result = accepted(ctx, region, offset, size, true, attrs);
    if (result != BB_OK) {
        return result;
    }
    return region->write == NULL ? BB_E_DEVICE : split_write(ctx, region, offset, bytes, size);
}
