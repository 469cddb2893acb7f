/* SPDX-License-Identifier: MIT */
/*
 * Guest RAM as the loaders see it, and the one way from a guest address to a host pointer.
 *
 * RAM lies below 3 GiB and, what is more than that, from 4 GiB up; the gap is the devices'. On the
 * host both parts are one mapping without swap reservation. All functions but create and destroy
 * are pure lookups; they may run on any thread. Writing through what they return is for the time
 * before the first vCPU runs.
 */
#ifndef BUSBAR_VMM_GUEST_MEMORY_H
#define BUSBAR_VMM_GUEST_MEMORY_H

#include "../base/result.h"

#define BB_RAM_LOW_END UINT64_C(0xc0000000)
#define BB_RAM_HIGH_START UINT64_C(0x100000000)
#define BB_RAM_BYTES_MIN (UINT64_C(2) << 20)
#define BB_RAM_BYTES_MAX (UINT64_C(1) << 40)

/* The PC's holes below 1 MiB: the extended BIOS area, video memory and ROMs. */
#define BB_EBDA_START UINT64_C(0x9fc00)
#define BB_HIGH_MEMORY_START UINT64_C(0x100000)

struct bb_gmem {
    uint8_t *host; /* immutable after create, like the rest */
    uint64_t bytes;
    uint64_t low_bytes;  /* from guest-physical 0 */
    uint64_t high_bytes; /* from 4 GiB; host + low_bytes on */
};

/*
 * Maps `bytes` of zeroed RAM, a multiple of 4 KiB from BB_RAM_BYTES_MIN to BB_RAM_BYTES_MAX.
 * Returns BB_OK; BB_E_RANGE; BB_E_NOMEM where the host gives no such mapping.
 */
int bb_gmem_create(uint64_t bytes, struct bb_gmem *mem, struct bb_error *err);
void bb_gmem_destroy(struct bb_gmem *mem);

/*
 * The host address of guest bytes [gpa, gpa + bytes), or NULL where they are not wholly inside one
 * part of RAM, or the range wraps. `bytes` of 0 gives NULL.
 */
void *bb_gmem_at(const struct bb_gmem *mem, bb_gpa_t gpa, uint64_t bytes);

/* Copies into guest RAM; BB_E_RANGE, with nothing copied, where bb_gmem_at() gives NULL. */
int bb_gmem_put(const struct bb_gmem *mem, bb_gpa_t gpa, const void *from, uint64_t bytes);

/* One row of the memory map that firmware would report. */
struct bb_e820 {
    uint64_t first;
    uint64_t bytes;
    uint32_t type; /* BB_E820_RAM or BB_E820_RESERVED */
};
enum { BB_E820_RAM = 1, BB_E820_RESERVED = 2, BB_E820_MAX = 4 };

/* Fills `map` (BB_E820_MAX rows), in rising order; returns how many rows it has. */
unsigned bb_gmem_e820(const struct bb_gmem *mem, struct bb_e820 *map);

#endif
