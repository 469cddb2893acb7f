/* SPDX-License-Identifier: MIT */
/* Bit fields at their limits: widths of 0 and 64, ranges that end at the last address. */
#include <criterion/criterion.h>

#include "../../base/bits.h"

Test(bits, mask_low_covers_nothing_at_0_and_all_at_64)
{
    cr_assert_eq(bb_mask_low(0), 0);
    cr_assert_eq(bb_mask_low(1), 1);
    cr_assert_eq(bb_mask_low(63), UINT64_MAX >> 1);
    cr_assert_eq(bb_mask_low(64), UINT64_MAX);
    cr_assert_eq(bb_mask_bytes(0), 0);
    cr_assert_eq(bb_mask_bytes(4), UINT32_MAX);
    cr_assert_eq(bb_mask_bytes(8), UINT64_MAX);
}

Test(bits, field_set_changes_its_field_and_nothing_else)
{
    for (unsigned low = 0; low < 64; low++) {
        for (unsigned width = 1; width <= 64 - low; width++) {
            uint64_t mask = bb_mask_low(width) << low;
            uint64_t word = bb_field_set(UINT64_C(0x5aa5f00f12345678), low, width, UINT64_MAX);
            cr_assert_eq(word, UINT64_C(0x5aa5f00f12345678) | mask);
            cr_assert_eq(bb_field_get(word, low, width), bb_mask_low(width));
            word = bb_field_set(word, low, width, 0);
            cr_assert_eq(word, UINT64_C(0x5aa5f00f12345678) & ~mask);
        }
    }
}

Test(bits, merge_takes_masked_bits_from_the_new_value)
{
    cr_assert_eq(bb_merge(0xff00, 0x00ff, 0x0f0f), 0xf00f);
    cr_assert_eq(bb_merge(0x1234, 0xffff, 0), 0x1234);
    cr_assert_eq(bb_merge(0x1234, 0xffff, UINT64_MAX), 0xffff);
}

Test(bits, zero_is_no_power_of_two)
{
    cr_assert(!bb_is_pow2(0));
    cr_assert(bb_is_pow2(1));
    cr_assert(bb_is_pow2(BB_BIT64(63)));
    cr_assert(!bb_is_pow2(UINT64_MAX));
    cr_assert(!bb_is_pow2(6));
}

Test(bits, range_last_accepts_the_last_address_and_refuses_wrapping_and_empty)
{
    uint64_t last = 42;
    cr_assert(!bb_range_last(0, 0, &last));
    cr_assert(!bb_range_last(2, UINT64_MAX, &last));
    cr_assert(!bb_range_last(UINT64_MAX, 2, &last));
    cr_assert_eq(last, 42);
    cr_assert(bb_range_last(UINT64_MAX, 1, &last));
    cr_assert_eq(last, UINT64_MAX);
    cr_assert(bb_range_last(1, UINT64_MAX, &last));
    cr_assert_eq(last, UINT64_MAX);
    cr_assert(bb_range_last(0, UINT64_MAX, &last));
    cr_assert_eq(last, UINT64_MAX - 1);
    cr_assert(bb_range_last(0x1000, 0x1000, &last));
    cr_assert_eq(last, 0x1fff);
}
