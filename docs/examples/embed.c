/* SPDX-License-Identifier: MIT */
/* The smallest embedder: an engine, a device with one register, and a vCPU's access to it. */
#include <busbar/engine/device.h>
#include <stdio.h>
#include <stdlib.h>

static struct bb_error err;

static void must(int result)
{
    if (result != BB_OK) {
        fprintf(stderr, "%s: %s\n", bb_result_name(result), err.text);
        exit(1);
    }
}

static int answer(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t *value)
{
    (void)ctx, (void)offset, (void)size;
    *value = *(const uint64_t *)opaque;
    return BB_OK;
}

int main(void)
{
    uint64_t state = 42, value = 0;
    const struct bb_region_ops ops = {.read = answer};
    const struct bb_space_config memory = {.name = "memory"};
    const struct bb_device_config oracle = {.name = "oracle"};
    const struct bb_region_config registers = {.name = "registers",
                                               .size_bytes = 4096,
                                               .ops = &ops,
                                               .opaque = &state,
                                               .klass = BB_CLASS_LOCKFREE};
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *space;
    struct bb_device *device;
    struct bb_region *region;

    must(bb_engine_create(NULL, &engine, &err));
    must(bb_ctx_attach(engine, "vcpu 0", &ctx, &err)); /* once for each thread */
    must(bb_space_create(ctx, &memory, &space, &err));
    must(bb_device_create(ctx, &oracle, &device, &err));
    must(bb_device_region_create(ctx, device, &registers, &region, &err));
    must(bb_space_map(ctx, space, 0xfed00000, region, &err));

    must(bb_mmio_read(ctx, space, 0xfed00008, 8, &value)); /* for each exit */
    printf("the device says %llu\n", (unsigned long long)value);

    must(bb_device_remove_wait(ctx, device, &err));
    must(bb_ctx_detach(ctx, &err));
    must(bb_engine_destroy(engine, &err)); /* fails if anything leaked */
    return 0;
}
