/* SPDX-License-Identifier: MIT */
/*
 * The bits of the gate beside one another: lock modes, counting, pause. Each access of each size
 * runs under what its mode says, is counted where counting is on, and waits where the gate is shut.
 */
#include <sched.h>

#include "../../engine/engine_internal.h"
#include "recorder.h"

static struct machine machine;
static const struct bb_attrs nobody;

static const enum bb_lock_mode modes[] = {BB_LOCK_FREE, BB_LOCK_DEVICE, BB_LOCK_BIG};

struct seen {
    bool big;
    uint32_t locks;
};

static void look(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct seen *seen = recorder->arg;

    (void)record;
    seen->big = bb_ectx_(ctx)->big;
    seen->locks = ctx->lock_depth;
}

static void add_counts(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    (void)name;
    *(uint64_t *)opaque += counts->reads + counts->writes;
}

static uint64_t counted(const struct recorder *device)
{
    uint64_t sum = 0;

    bb_region_counts_each(machine.ctx, device->region, add_counts, &sum);
    return sum;
}

static void access_once(const struct recorder *device, unsigned size)
{
    uint8_t bytes[64] = {0};

    cr_assert_eq(bb_access_write(machine.ctx, machine.mmio, device->gpa, bytes, size, nobody),
                 BB_OK);
    cr_assert_eq(bb_access_read(machine.ctx, machine.mmio, device->gpa, bytes, size, nobody),
                 BB_OK);
    if (size <= 8) {
        (void)mmio_read(&machine, device->gpa, size);
        mmio_write(&machine, device->gpa, size, 1);
    }
}

Test(modes, locks_are_those_of_the_mode_whether_accesses_are_counted_or_not, .timeout = 30)
{
    for (size_t i = 0; i < BB_ARRAY_LEN(modes); i++) {
        struct bb_engine_config engine = {.lock_mode = modes[i]};
        struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE, .rules.valid_max = 64};
        struct seen seen = {0};
        struct recorder device = {.also = look, .arg = &seen};

        machine_make(&machine, &engine);
        recorder_make(&machine, &device, "device", 0, &config);
        for (unsigned counting = 0; counting < 2; counting++) {
            bb_engine_count_accesses(machine.ctx, counting != 0);
            for (unsigned size = 1; size <= 64; size *= 2) {
                access_once(&device, size);
                cr_assert_eq(seen.big, modes[i] == BB_LOCK_BIG);
                cr_assert_eq(seen.locks, modes[i] == BB_LOCK_DEVICE ? 1 : 0);
                cr_assert_eq(machine.ctx->lock_depth, 0);
                cr_assert_not(bb_ectx_(machine.ctx)->big);
            }
            cr_assert_eq(counted(&device), counting != 0 ? 4 * 4 + 3 * 2 : 0);
        }
        /* Off again: what can be fast is. */
        bb_engine_count_accesses(machine.ctx, false);
        recorder_reset(&device);
        (void)mmio_read(&machine, device.gpa, 4);
        cr_assert(device.record[0].fast);
        recorder_drop(&device);
        machine_drop(&machine);
    }
}

struct waiting {
    struct recorder *device;
    unsigned done; /* atomic */
};

static void access_wide(struct bb_ctx *ctx, void *arg)
{
    struct waiting *waiting = arg;
    uint8_t bytes[64] = {0};

    (void)bb_access_read(ctx, machine.mmio, waiting->device->gpa, bytes, 64, nobody);
    bb_store_release(&waiting->done, 1); /* pairs with the test's load */
}

Test(modes, a_pause_holds_up_wide_accesses_and_counting_goes_on_after_it, .timeout = 30)
{
    for (size_t i = 0; i < 2 * BB_ARRAY_LEN(modes); i++) {
        enum bb_lock_mode mode = modes[i / 2];
        struct bb_engine_config engine = {.lock_mode = mode, .count_accesses = true};
        struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE, .rules.valid_max = 64};
        struct seen seen = {0};
        struct recorder device = {.also = look, .arg = &seen};
        struct waiting waiting = {.device = &device};
        struct bb_error err = {0};
        struct worker worker;

        machine_make(&machine, &engine);
        recorder_make(&machine, &device, "device", 0, &config);
        cr_assert_eq(bb_engine_pause(machine.ctx, 0, &err), BB_OK, "%s", err.text);
        worker_start(&worker, &machine, "wide", access_wide, &waiting);
        while (bb_engine_stats(machine.ctx).gate_waits == 0) {
            sched_yield();
        }
        if (i % 2 != 0) { /* bits are changed beside a shut gate, and it stays shut */
            bb_engine_count_accesses(machine.ctx, false);
            bb_engine_count_accesses(machine.ctx, true);
        }
        cr_assert_eq(bb_load_acquire(&waiting.done), 0);
        cr_assert_eq(device.count, 0);
        cr_assert(bb_engine_paused(machine.engine));
        cr_assert_eq(bb_engine_resume(machine.ctx, &err), BB_OK);
        worker_join(&worker);
        cr_assert_eq(device.count, 8);
        cr_assert_eq(counted(&device), 1);
        cr_assert_eq(seen.big, mode == BB_LOCK_BIG);
        cr_assert_eq(seen.locks, mode == BB_LOCK_DEVICE ? 1 : 0);
        recorder_drop(&device);
        machine_drop(&machine);
    }
}
