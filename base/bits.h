/* SPDX-License-Identifier: MIT */
/*
 * Bit fields and small integer helpers, all pure. Public, so that device models outside the tree
 * can use them; every function is wait-free and callable anywhere.
 */
#ifndef BUSBAR_BASE_BITS_H
#define BUSBAR_BASE_BITS_H

#include "api.h"

#define BB_BIT64(n) (UINT64_C(1) << (n))
#define BB_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define BB_CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define BB_CACHE_LINE_BYTES 64
#define BB_LIKELY(x) __builtin_expect(!!(x), 1)
#define BB_UNLIKELY(x) __builtin_expect(!!(x), 0)

BB_BEGIN_DECLS

/* A mask of the low `bits` bits; bits is 0 to 64. */
static inline uint64_t bb_mask_low(unsigned bits)
{
    return bits >= 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

/* A mask of the low `size` bytes; size is 0 to 8. */
static inline uint64_t bb_mask_bytes(unsigned size)
{
    return bb_mask_low(size * 8);
}

/* The field of `width` bits that starts at bit `low`. */
static inline uint64_t bb_field_get(uint64_t word, unsigned low, unsigned width)
{
    return (word >> low) & bb_mask_low(width);
}

/* `word` with that field replaced by the low bits of `value`. */
static inline uint64_t bb_field_set(uint64_t word, unsigned low, unsigned width, uint64_t value)
{
    uint64_t mask = bb_mask_low(width) << low;
    return (word & ~mask) | ((value << low) & mask);
}

/* `old` with the bits of `mask` taken from `value`: how a partial write meets a writable mask. */
static inline uint64_t bb_merge(uint64_t old, uint64_t value, uint64_t mask)
{
    return (old & ~mask) | (value & mask);
}

/* True where `n` is a power of two; 0 is not one. */
static inline bool bb_is_pow2(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

/*
 * The last address of [first, first + size), refusing an empty or wrapping range.
 * Returns true and stores the last address, or false with `*last` untouched.
 */
static inline bool bb_range_last(uint64_t first, uint64_t size, uint64_t *last)
{
    if (size == 0 || size - 1 > UINT64_MAX - first) {
        return false;
    }
    *last = first + (size - 1);
    return true;
}

BB_END_DECLS

#endif
