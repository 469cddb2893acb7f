/* SPDX-License-Identifier: MIT */
/*
 * ACPI power management timer (ACPI 6.5, section 4.8.2.1): PM_TMR, read-only, 24 or 32 bits at
 * 3.579545 MHz.
 *
 * The count is derived from the virtual clock at each read, by exact arithmetic on 128 bits, so it
 * neither drifts nor keeps state: reads are as lock-free and as monotonic as the clock. Left out:
 * TMR_STS and its interrupt, which are in the PM1 event block.
 *
 * Accesses: 1, 2 or 4 aligned bytes, of which the register yields its part; writes are ignored.
 */
#include "pmtimer.h"

#include "../../base/bits.h"

struct bb_pmtimer {
    /* Immutable after creation. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    struct bb_clock *clock;
    uint64_t mask; /* TMR_VAL, with E_TMR_VAL where the timer has 32 bits */
};

static const struct bb_path_row paths[] = {
    {"PM_TMR", 0, BB_PMTIMER_REGION_BYTES - 1, BB_PATH_LOCK_FREE, BB_PATH_WAIT_FREE, NULL},
};

uint64_t bb_pmtimer_count(bb_ns_t now_ns)
{
    return (uint64_t)((unsigned __int128)now_ns * BB_PMTIMER_HZ / 1000000000);
}

static int pmtimer_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t *value)
{
    const struct bb_pmtimer *timer = opaque;
    uint64_t count = bb_pmtimer_count(bb_clock_now_ns(timer->clock)) & timer->mask;

    (void)ctx;
    *value = count >> offset * 8 & bb_mask_bytes(size);
    return BB_OK;
}

static int pmtimer_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    (void)value;
    return BB_OK; /* the register is read-only */
}

static const struct bb_region_ops region_ops = {.read = pmtimer_read, .write = pmtimer_write};

static void pmtimer_destroy(void *opaque)
{
    struct bb_pmtimer *timer = opaque;

    bb_device_free(timer->engine, timer, sizeof(*timer));
}

static const struct bb_device_ops device_ops = {.destroy = pmtimer_destroy};

int bb_pmtimer_create(struct bb_ctx *ctx, const struct bb_pmtimer_config *config,
                      struct bb_pmtimer **timer, struct bb_error *err)
{
    const char *name = config->name != NULL ? config->name : "pm-timer";
    unsigned bits = config->bits != 0 ? config->bits : 24;
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_device_config device = {.name = name, .ops = &device_ops};
    struct bb_region_config region = {
        .name = name,
        .size_bytes = BB_PMTIMER_REGION_BYTES,
        .ops = &region_ops,
        .klass = BB_CLASS_LOCKFREE,
        .rules = {.valid_min = 1, .valid_max = 4, .impl_min = 1, .impl_max = 4},
        .paths = paths,
        .path_count = BB_ARRAY_LEN(paths),
    };
    struct bb_pmtimer *made;
    int result;

    if (config->clock == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a PM timer needs a clock: the engine's");
    }
    if (bits != 24 && bits != 32) {
        return bb_error_set(err, BB_E_RANGE, "a PM timer has 24 or 32 bits, not %u", bits);
    }
    made = bb_device_alloc(engine, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a PM timer");
    }
    made->engine = engine;
    made->clock = config->clock;
    made->mask = bb_mask_low(bits);
    device.opaque = made;
    region.opaque = made;
    result = bb_device_create(ctx, &device, &made->device, err);
    if (result != BB_OK) {
        pmtimer_destroy(made);
        return result;
    }
    result = bb_device_region_create(ctx, made->device, &region, &made->region, err);
    if (result != BB_OK) {
        (void)bb_device_remove(ctx, made->device, NULL, NULL, NULL); /* frees `made` by its hook */
        return result;
    }
    *timer = made;
    return BB_OK;
}

struct bb_device *bb_pmtimer_device(const struct bb_pmtimer *timer)
{
    return timer->device;
}

struct bb_region *bb_pmtimer_region(const struct bb_pmtimer *timer)
{
    return timer->region;
}
