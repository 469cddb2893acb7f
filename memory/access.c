/* SPDX-License-Identifier: MIT */
/*
 * One access of one region, by its rules.
 *
 * What a callback's value means. A region is an array of bytes. A callback of n bytes at offset o
 * reads or writes bytes o to o + n - 1 of it: in a little-endian region the byte at o is the least
 * significant one of the value, in a big-endian region the most significant one. An access
 * composes the bytes that it covers with the byte at its own offset lowest, as access.h says of
 * bb_mmio_read(). All else follows from these two sentences:
 *  - an access that a big-endian region implements at its size is swapped at that size;
 *  - split, the piece at the lowest offset gives the lowest bytes of an access, whichever the
 *    endianness; as a big-endian number it is the most significant piece;
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

static bool rules_accept(const struct bb_access_rules *rules, uint64_t offset, unsigned size)
{
    return size >= rules->valid_min && size <= rules->valid_max &&
           (rules->unaligned || is_aligned(offset, size));
}

/*
 * RAM is shared with vCPUs that run outside busbar. Relaxed: each piece is one copy of naturally
 * aligned bytes; order between accesses is the guest's own business, and the engine's rule about
 * DMA data and interrupts is kept by line and MSI code.
 */
static uint64_t ram_load(const uint8_t *at, unsigned size)
{
    switch (size) {
    case 1:
        return bb_load_relaxed(at);
    case 2:
        return bb_load_relaxed((const uint16_t *)(const void *)at);
    case 4:
        return bb_load_relaxed((const uint32_t *)(const void *)at);
    default:
        return bb_load_relaxed((const uint64_t *)(const void *)at);
    }
}

/* Relaxed: as for ram_load(). */
static void ram_store(uint8_t *at, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        bb_store_relaxed(at, (uint8_t)value);
        break;
    case 2:
        bb_store_relaxed((uint16_t *)(void *)at, (uint16_t)value);
        break;
    case 4:
        bb_store_relaxed((uint32_t *)(void *)at, (uint32_t)value);
        break;
    default:
        bb_store_relaxed((uint64_t *)(void *)at, value);
        break;
    }
}

static int read_piece(struct bb_ctx *ctx, const struct bb_region *region, uint64_t at,
                      unsigned size, uint64_t *value)
{
    if (region->kind == BB_REGION_RAM_) {
        *value = ram_load(region->host + at, size);
        return BB_OK;
    }
    uint64_t raw = 0;
    if (region->read(ctx, region->opaque, at, size, &raw) != BB_OK) {
        return BB_E_DEVICE;
    }
    *value = raw & bb_mask_bytes(size);
    return BB_OK;
}

static int write_piece(struct bb_ctx *ctx, const struct bb_region *region, uint64_t at,
                       unsigned size, uint64_t value)
{
    if (region->kind == BB_REGION_RAM_) {
        ram_store(region->host + at, size, value);
        return BB_OK;
    }
    return region->write(ctx, region->opaque, at, size, value) == BB_OK ? BB_OK : BB_E_DEVICE;
}

int bb_region_read_(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                    unsigned size, uint64_t *value)
{
    if (BB_LIKELY((region->fast_sizes & size) != 0 && is_aligned(offset, size))) {
        return read_piece(ctx, region, offset, size, value);
    }

    const struct bb_access_rules *rules = &region->rules;
    if (!rules_accept(rules, offset, size) ||
        (region->kind == BB_REGION_IO_ && region->read == NULL)) {
        return BB_E_DEVICE;
    }
    uint64_t composed = 0;
    for (unsigned done = 0; done < size;) {
        struct piece piece = next_piece(rules, offset + done, size - done);
        uint64_t part;
        if (read_piece(ctx, region, piece.at, piece.size, &part) != BB_OK) {
            return BB_E_DEVICE;
        }
        part = region_order(rules, part, piece.size) >> (8 * piece.skip);
        composed |= (part & bb_mask_bytes(piece.bytes)) << (8 * done);
        done += piece.bytes;
    }
    *value = composed;
    return BB_OK;
}

int bb_region_write_(struct bb_ctx *ctx, const struct bb_region *region, uint64_t offset,
                     unsigned size, uint64_t value)
{
    if (BB_LIKELY((region->fast_sizes & size) != 0 && is_aligned(offset, size))) {
        return write_piece(ctx, region, offset, size, value & bb_mask_bytes(size));
    }

    const struct bb_access_rules *rules = &region->rules;
    bool writable = region->kind == BB_REGION_RAM_ ? !region->read_only : region->write != NULL;
    if (!writable || !rules_accept(rules, offset, size)) {
        return BB_E_DEVICE;
    }
    for (unsigned done = 0; done < size;) {
        struct piece piece = next_piece(rules, offset + done, size - done);
        uint64_t part = (value >> (8 * done)) & bb_mask_bytes(piece.bytes);
        part = region_order(rules, part << (8 * piece.skip), piece.size);
        if (write_piece(ctx, region, piece.at, piece.size, part) != BB_OK) {
            return BB_E_DEVICE;
        }
        done += piece.bytes;
    }
    return BB_OK;
}
