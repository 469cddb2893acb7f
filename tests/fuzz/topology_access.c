/* SPDX-License-Identifier: MIT */
/* Steps of topology.h's programs that access, copy and map. */
#include "topology_internal.h"

/* Accesses and DMA. */

void access_step(void)
{
    uint64_t how = take(1), value = how;
    bb_gpa_t gpa = take_address();
    struct bb_space *space = take_space(how);

    switch (how & 3) {
    case 0:
        check_access("bb_mmio_read", bb_mmio_read(world.ctx, space, gpa, take_size(), &value));
        break;
    case 1:
        check_access("bb_mmio_write", bb_mmio_write(world.ctx, space, gpa, take_size(), value));
        break;
    case 2: {
        struct bb_attrs attrs = take_attrs();
        check_access("bb_access_read", bb_access_read(world.ctx, space, gpa, world.buffer,
                                                      (unsigned)take(1) % 70, attrs));
        break;
    }
    default: {
        struct bb_attrs attrs = take_attrs();
        check_access("bb_access_write", bb_access_write(world.ctx, space, gpa, world.buffer,
                                                        (unsigned)take(1) % 70, attrs));
        break;
    }
    }
}

static size_t take_length(void)
{
    uint64_t length = take_number();

    length = length > BUFFER_BYTES ? length % 300 : length;
    length = world.copied + length > COPY_BUDGET ? 1 : length;
    world.copied += length;
    return (size_t)length;
}

void dma_step(void)
{
    uint64_t how = take(1);
    bb_gpa_t gpa = take_address();
    struct bb_space *space = take_space(how);
    size_t length = take_length(), done = SIZE_MAX;
    struct bb_attrs attrs = take_attrs();
    int result;

    switch (how & 3) {
    case 0:
        result = bb_dma_read(world.ctx, space, gpa, world.buffer, length, attrs, &done);
        break;
    case 1:
        result = bb_dma_write(world.ctx, space, gpa, world.buffer, length, attrs, &done);
        break;
    default:
        result = bb_dma_fill(world.ctx, space, gpa, (uint8_t)how, length, attrs, &done);
        break;
    }
    if (result != BB_E_NOMEM) {
        check_access("bulk DMA", result);
    }
    if ((result == BB_OK && done != length) || (done > length && done != SIZE_MAX)) {
        fail("DMA of %zu bytes returned %s with %zu done", length, bb_result_name(result), done);
    }
}

void typed_step(void)
{
    uint64_t how = take(1), value = how;
    bb_gpa_t gpa = take_address();
    struct bb_space *space = take_space(how);
    unsigned size = take_size();
    enum bb_endian endian = (how & 4) != 0 ? BB_BIG_ENDIAN : BB_LITTLE_ENDIAN;
    struct bb_attrs attrs = take_attrs();

    switch (how & 3) {
    case 0:
        check_access("bb_dma_load",
                     bb_dma_load(world.ctx, space, gpa, size, endian, attrs, &value));
        break;
    case 1:
        check_access("bb_dma_store",
                     bb_dma_store(world.ctx, space, gpa, size, endian, attrs, value));
        break;
    default:
        check_access("bb_dma_atomic",
                     bb_dma_atomic(world.ctx, space, gpa, size, endian, attrs,
                                   (enum bb_atomic_op)((how >> 3) % 6), value, how, &value));
        break;
    }
}

void map_step(void)
{
    uint64_t how = take(1);
    int number = (int)(how % MAPPINGS);

    if (world.mapping[number] != NULL) {
        unmap(number, take_number());
        return;
    }
    bb_gpa_t gpa = take_address();
    uint64_t wanted = take_number(), length = wanted;
    enum bb_dma_direction direction = (enum bb_dma_direction)((how >> 2) & 3);
    struct bb_dma_mapping *mapping = NULL;
    struct bb_attrs attrs = take_attrs();

    if (CHECK(bb_dma_map(world.ctx, take_space(how), gpa, &length, direction, attrs, &mapping,
                         &world.err)) != BB_OK) {
        return;
    }
    if (length == 0 || length > wanted || bb_dma_host(mapping) == NULL) {
        fail("a mapping of %llu bytes, where %llu were wanted", (unsigned long long)length,
             (unsigned long long)wanted);
        length = 0;
    }
    if (world.mapping[number] != NULL) {
        /* A callback of the bounce buffer's read has taken the place meanwhile. */
        check_access("bb_dma_unmap", bb_dma_unmap(world.ctx, mapping, 0));
        return;
    }
    world.mapping[number] = mapping;
    world.mapping_bytes[number] = length;
    world.mapping_written[number] = (direction & BB_DMA_TO_GUEST) != 0;
    uint8_t *host = bb_dma_host(mapping);
    for (uint64_t at = 0; at < length && at < 256; at += 64) {
        if (world.mapping_written[number]) {
            host[at] = (uint8_t)at;
        } else {
            world.buffer[0] ^= host[at];
        }
    }
}
