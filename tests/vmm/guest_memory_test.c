/* SPDX-License-Identifier: MIT */
/* The way from a guest address to a host pointer: last valid, first invalid, size plus and minus 1.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "../../vmm/guest_memory.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

struct probe {
    uint64_t gpa, bytes;
    int64_t host_offset; /* -1: refused */
};

static void check(uint64_t ram_bytes, const struct probe *probes, size_t count)
{
    struct bb_gmem mem;
    struct bb_error err;
    cr_assert_eq(bb_gmem_create(ram_bytes, &mem, &err), BB_OK);
    for (size_t i = 0; i < count; i++) {
        uint8_t *at = bb_gmem_at(&mem, probes[i].gpa, probes[i].bytes);
        int64_t offset = at == NULL ? -1 : at - mem.host;
        cr_assert_eq(offset, probes[i].host_offset, "gpa %#llx + %#llx: got offset %lld",
                     (unsigned long long)probes[i].gpa, (unsigned long long)probes[i].bytes,
                     (long long)offset);
    }
    bb_gmem_destroy(&mem);
}

Test(guest_memory, ranges_that_leave_small_ram_are_refused)
{
    static const struct probe probes[] = {
        {0, 1, 0},
        {0, 0, -1},
        {0, 2 * MIB, 0},
        {0, 2 * MIB + 1, -1},
        {1, 2 * MIB, -1},
        {2 * MIB - 1, 1, 2 * MIB - 1},
        {2 * MIB - 1, 2, -1},
        {2 * MIB, 1, -1},
        {4 * GIB, 1, -1},
        {UINT64_MAX, 1, -1},
        {UINT64_MAX, 2, -1},
        {1, UINT64_MAX, -1},
        {2, UINT64_MAX, -1},
        {UINT64_MAX - 1, UINT64_MAX, -1},
    };
    check(2 * MIB, probes, sizeof(probes) / sizeof(probes[0]));
}

Test(guest_memory, ranges_that_leave_either_part_of_large_ram_are_refused)
{
    static const struct probe probes[] = {
        {3 * GIB - 1, 1, 3 * GIB - 1},
        {3 * GIB - 1, 2, -1},
        {3 * GIB, 1, -1},
        {4 * GIB - 1, 1, -1},
        {4 * GIB - 1, 2, -1},
        {4 * GIB, 1, 3 * GIB},
        {4 * GIB, GIB, 3 * GIB},
        {4 * GIB, GIB + 1, -1},
        {5 * GIB - 1, 1, 4 * GIB - 1},
        {5 * GIB, 1, -1},
        {0, 5 * GIB, -1},
        {3 * GIB - 8, GIB + 16, -1},
    };
    check(4 * GIB, probes, sizeof(probes) / sizeof(probes[0]));
}

Test(guest_memory, put_copies_all_or_nothing)
{
    struct bb_gmem mem;
    cr_assert_eq(bb_gmem_create(2 * MIB, &mem, NULL), BB_OK);
    cr_assert_eq(bb_gmem_put(&mem, 2 * MIB - 4, "abcd", 4), BB_OK);
    cr_assert_eq(memcmp(mem.host + 2 * MIB - 4, "abcd", 4), 0);
    cr_assert_eq(bb_gmem_put(&mem, 2 * MIB - 3, "wxyz", 4), BB_E_RANGE);
    cr_assert_eq(memcmp(mem.host + 2 * MIB - 4, "abcd", 4), 0);
    bb_gmem_destroy(&mem);
}

Test(guest_memory, sizes_outside_the_documented_range_are_refused)
{
    static const uint64_t bad[] = {
        0, 1, 4096, 2 * MIB - 4096, 2 * MIB + 1, 1024 * GIB + 4096, UINT64_MAX};
    struct bb_gmem mem;
    struct bb_error err;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(bb_gmem_create(bad[i], &mem, &err), BB_E_RANGE, "%llu",
                     (unsigned long long)bad[i]);
    }
}

Test(guest_memory, the_memory_map_covers_ram_and_nothing_twice)
{
    static const uint64_t sizes[] = {2 * MIB, 3 * GIB, 3 * GIB + 4096, 64 * GIB};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        struct bb_gmem mem;
        struct bb_e820 map[BB_E820_MAX];
        uint64_t covered = 0;
        uint64_t end = 0;
        cr_assert_eq(bb_gmem_create(sizes[s], &mem, NULL), BB_OK);
        unsigned rows = bb_gmem_e820(&mem, map);
        for (unsigned i = 0; i < rows; i++) {
            cr_assert_geq(map[i].first, end);
            cr_assert_not_null(bb_gmem_at(&mem, map[i].first, map[i].bytes));
            end = map[i].first + map[i].bytes;
            covered += map[i].bytes;
        }
        cr_assert_eq(covered, sizes[s]);
        bb_gmem_destroy(&mem);
    }
}
