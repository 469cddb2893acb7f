/* SPDX-License-Identifier: MIT */
/*
 * The noisy neighbour: a device that keeps its own lock for as long as it is told, as a device
 * model that does its work under its lock does. No specification: two registers, storm_abi.h.
 *
 * Also the answers of the bare comparison, since they imitate the same two devices.
 */
#include "storm.h"

#include <stdlib.h>
#include <time.h>

enum { HOLD_NS_MAX = 10000000 }; /* of one write: a guest must not stop its vCPU for long */

struct storm_device {
    /* Guarded by the device's lock. */
    uint64_t holds;
};

static uint64_t host_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void busy_wait_ns(uint64_t ns)
{
    uint64_t until = host_now_ns() + (ns < HOLD_NS_MAX ? ns : HOLD_NS_MAX);
    while (host_now_ns() < until) {
    }
}

static int storm_device_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                             uint64_t *value)
{
    const struct storm_device *device = opaque;
    (void)ctx;
    (void)size;
    *value = offset == STORM_DEVICE_COUNT ? device->holds : 0;
    return BB_OK;
}

static int storm_device_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                              uint64_t value)
{
    struct storm_device *device = opaque;
    (void)ctx;
    (void)size;
    if (offset == STORM_DEVICE_HOLD_NS) {
        device->holds++;
        busy_wait_ns(value);
    }
    return BB_OK;
}

static void storm_device_destroy(void *opaque)
{
    free(opaque);
}

static const struct bb_region_ops storm_device_region_ops = {.read = storm_device_read,
                                                             .write = storm_device_write};
static const struct bb_device_ops storm_device_ops = {.destroy = storm_device_destroy};

int bb_storm_device_create(struct bb_ctx *ctx, struct bb_space *mmio, struct bb_device **device,
                           struct bb_error *err)
{
    struct storm_device *state = calloc(1, sizeof(*state));
    if (!state) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for the storm device");
    }
    struct bb_device_config config = {.name = "storm", .ops = &storm_device_ops, .opaque = state};
    struct bb_device *created;
    int result = bb_device_create(ctx, &config, &created, err);
    if (result != BB_OK) {
        free(state);
        return result;
    }
    struct bb_region_config region_config = {
        .name = "storm",
        .size_bytes = STORM_DEVICE_BYTES,
        .ops = &storm_device_region_ops,
        .opaque = state,
        .klass = BB_CLASS_DEVICE_LOCK,
        .rules = {.valid_min = 8, .valid_max = 8, .impl_min = 8, .impl_max = 8},
    };
    struct bb_region *region;
    result = bb_device_region_create(ctx, created, &region_config, &region, err);
    if (result == BB_OK) {
        result = bb_space_map(ctx, mmio, STORM_DEVICE_GPA, region, err);
    }
    if (result != BB_OK) {
        bb_device_remove_wait(ctx, created, NULL); /* frees the state */
        return result;
    }
    *device = created;
    return BB_OK;
}

enum { BARE_PERIOD_NS = 10 };

void bb_storm_bare_mmio(bb_gpa_t gpa, unsigned size, bool is_write, uint64_t *value)
{
    (void)size;
    if (is_write) {
        if (gpa == STORM_DEVICE_GPA + STORM_DEVICE_HOLD_NS) {
            busy_wait_ns(*value);
        }
        return;
    }
    if (gpa == STORM_HPET_GPA + 0xf0) { /* main counter */
        *value = host_now_ns() / BARE_PERIOD_NS;
    } else if (gpa == STORM_HPET_GPA) { /* capabilities: 10 ns in fs, 64 bits, one timer */
        *value = (uint64_t)BARE_PERIOD_NS * 1000000 << 32 | 0x2000;
    } else {
        *value = 0;
    }
}
