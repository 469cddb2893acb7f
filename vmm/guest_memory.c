/* SPDX-License-Identifier: MIT */
/* Guest RAM; see guest_memory.h. */
#include "guest_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../base/bits.h"

int bb_gmem_create(uint64_t bytes, struct bb_gmem *mem, struct bb_error *err)
{
    if (bytes < BB_RAM_BYTES_MIN || bytes > BB_RAM_BYTES_MAX || bytes % 4096 != 0) {
        return bb_error_set(err, BB_E_RANGE,
                            "guest memory of %llu bytes: give a multiple of 4K from 2M to 1T",
                            (unsigned long long)bytes);
    }
    void *host = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (host == MAP_FAILED) {
        return bb_error_set(err, BB_E_NOMEM, "the host can't map %llu MiB of guest memory: %s",
                            (unsigned long long)(bytes >> 20), strerror(errno));
    }
    *mem = (struct bb_gmem){
        .host = host,
        .bytes = bytes,
        .low_bytes = bytes < BB_RAM_LOW_END ? bytes : BB_RAM_LOW_END,
    };
    mem->high_bytes = bytes - mem->low_bytes;
    return BB_OK;
}

void bb_gmem_destroy(struct bb_gmem *mem)
{
    if (mem->host != NULL) {
        munmap(mem->host, mem->bytes);
    }
    *mem = (struct bb_gmem){0};
}

void *bb_gmem_at(const struct bb_gmem *mem, bb_gpa_t gpa, uint64_t bytes)
{
    uint64_t last;
    if (!bb_range_last(gpa, bytes, &last)) {
        return NULL;
    }
    if (last < mem->low_bytes) {
        return mem->host + gpa;
    }
    if (gpa >= BB_RAM_HIGH_START && last - BB_RAM_HIGH_START < mem->high_bytes) {
        return mem->host + mem->low_bytes + (gpa - BB_RAM_HIGH_START);
    }
    return NULL;
}

int bb_gmem_put(const struct bb_gmem *mem, bb_gpa_t gpa, const void *from, uint64_t bytes)
{
    void *to = bb_gmem_at(mem, gpa, bytes);
    if (to == NULL) {
        return BB_E_RANGE;
    }
    memcpy(to, from, bytes);
    return BB_OK;
}

unsigned bb_gmem_e820(const struct bb_gmem *mem, struct bb_e820 *map)
{
    unsigned rows = 0;
    map[rows++] = (struct bb_e820){0, BB_EBDA_START, BB_E820_RAM};
    map[rows++] =
        (struct bb_e820){BB_EBDA_START, BB_HIGH_MEMORY_START - BB_EBDA_START, BB_E820_RESERVED};
    map[rows++] =
        (struct bb_e820){BB_HIGH_MEMORY_START, mem->low_bytes - BB_HIGH_MEMORY_START, BB_E820_RAM};
    if (mem->high_bytes != 0) {
        map[rows++] = (struct bb_e820){BB_RAM_HIGH_START, mem->high_bytes, BB_E820_RAM};
    }
    return rows;
}
