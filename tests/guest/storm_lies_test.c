/* SPDX-License-Identifier: MIT */
/*
 * The storm's own checks, on a counter that lies: what an HPET must never do is done on purpose,
 * and the storm has to notice. On host threads, whose phases are the guest's, compiled once more.
 */
#include <criterion/criterion.h>
#include <sched.h>

#include "../../base/atomic.h"
#include "../../engine/device.h"
#include "../../vmm/storm.h"

enum { GCAP = 0x000, GEN_CONF = 0x010, MAIN_CNT = 0x0f0, HPET_BYTES = 0x1000 };
#define CAPABILITIES (UINT64_C(10000000) << 32 | 0x2000) /* 10 ns, 64 bits, one timer */
#define AHEAD UINT64_C(1000000000)

enum lie {
    NO_LIE,
    STEPS_BACK,         /* every hundredth value is older than the one before */
    BEHIND_THE_OTHER,   /* each thread's own values rise, but one's are below all of the other's */
    MOVES_WHILE_HALTED, /* enabling and disabling change nothing */
};

/* What stands where the HPET would; every field is changed atomically by the readers. */
struct liar {
    enum lie lie;
    uint64_t state; /* the count, and in bit 0 whether it stands still: both change as one */
    const struct bb_ctx *first; /* who read the counter first */
    uint64_t first_reads, second_reads;
};

/* Acquire and release throughout: a true counter's values are ordered for who hands them on. */
static uint64_t two_counts(struct liar *liar, const struct bb_ctx *ctx)
{
    const struct bb_ctx *first = NULL;
    if (bb_cas_acq_rel(&liar->first, &first, ctx) || first == ctx) {
        return AHEAD + bb_fetch_add_acq_rel(&liar->first_reads, 1);
    }
    /* By its second read the first one has published what its first one was. */
    while (bb_load_acquire(&liar->first_reads) < 2) {
        sched_yield();
    }
    return bb_fetch_add_acq_rel(&liar->second_reads, 1) + 1;
}

static uint64_t counter_value(struct liar *liar, const struct bb_ctx *ctx)
{
    if (liar->lie == BEHIND_THE_OTHER) {
        return two_counts(liar, ctx);
    }
    uint64_t state = bb_load_acquire(&liar->state);
    while (!(state & 1) && !bb_cas_acq_rel(&liar->state, &state, state + 2)) {
    }
    uint64_t value = (state >> 1) + 1001;
    return liar->lie == STEPS_BACK && value % 100 == 0 ? value - 500 : value;
}

static int liar_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    (void)size;
    *value = offset == GCAP ? CAPABILITIES : offset == MAIN_CNT ? counter_value(opaque, ctx) : 0;
    return BB_OK;
}

static int liar_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct liar *liar = opaque;
    (void)ctx;
    (void)size;
    if (offset == GEN_CONF && liar->lie != MOVES_WHILE_HALTED) {
        uint64_t state = bb_load_acquire(&liar->state), halted = ~value & 1;
        while (!bb_cas_acq_rel(&liar->state, &state, (state & ~UINT64_C(1)) | halted)) {
        }
    }
    return BB_OK;
}

static struct bb_storm_results storm_on(enum lie lie, unsigned threads, unsigned phases)
{
    static const struct bb_region_ops ops = {.read = liar_read, .write = liar_write};
    struct liar liar = {.lie = lie};
    struct bb_space_config space_config = {.name = "memory"};
    struct bb_device_config device_config = {.name = "liar"};
    struct bb_region_config region_config = {.name = "liar",
                                             .size_bytes = HPET_BYTES,
                                             .ops = &ops,
                                             .opaque = &liar,
                                             .klass = BB_CLASS_LOCKFREE};
    struct bb_storm_params params = bb_storm_defaults(threads, true);
    struct bb_storm_inbox *inbox = bb_storm_inbox_create();
    struct bb_storm_results results;
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *mmio;
    struct bb_device *device;
    struct bb_region *region;

    params.phases = phases;
    params.reads = params.torture_reads = 2000;
    params.publish_every = 1;
    cr_assert_not_null(inbox);
    cr_assert_eq(bb_engine_create(NULL, &engine, NULL), BB_OK);
    cr_assert_eq(bb_ctx_attach(engine, "test", &ctx, NULL), BB_OK);
    cr_assert_eq(bb_space_create(ctx, &space_config, &mmio, NULL), BB_OK);
    cr_assert_eq(bb_device_create(ctx, &device_config, &device, NULL), BB_OK);
    cr_assert_eq(bb_device_region_create(ctx, device, &region_config, &region, NULL), BB_OK);
    cr_assert_eq(bb_space_map(ctx, mmio, STORM_HPET_GPA, region, NULL), BB_OK);
    cr_assert_eq(bb_storm_run_threads(engine, mmio, inbox, &params, NULL, &results, NULL), BB_OK);
    cr_assert_eq(bb_device_remove_wait(ctx, device, NULL), BB_OK);
    cr_assert_eq(bb_ctx_detach(ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(engine, NULL), BB_OK);
    bb_storm_inbox_free(inbox);
    cr_assert(results.finished);
    return results;
}

Test(storm_checks, a_counter_that_tells_the_truth_passes)
{
    struct bb_storm_results results = storm_on(NO_LIE, 2, 1u << STORM_READ | 1u << STORM_TORTURE);
    cr_assert(bb_storm_ok(&results));
}

Test(storm_checks, a_step_back_is_noticed_by_the_reader_itself)
{
    struct bb_storm_results results = storm_on(STEPS_BACK, 1, 1u << STORM_READ);
    cr_assert_eq(results.reading[STORM_READ].backward_self, 20);
    cr_assert_not(bb_storm_ok(&results));
}

Test(storm_checks, a_value_below_one_that_another_published_is_noticed)
{
    struct bb_storm_results results = storm_on(BEHIND_THE_OTHER, 2, 1u << STORM_READ);
    cr_assert_eq(results.reading[STORM_READ].backward_self, 0);
    cr_assert_gt(results.reading[STORM_READ].backward_cross, 0);
    cr_assert_not(bb_storm_ok(&results));
}

Test(storm_checks, a_counter_that_moves_while_it_is_halted_is_noticed)
{
    struct bb_storm_results results = storm_on(MOVES_WHILE_HALTED, 1, 1u << STORM_TORTURE);
    cr_assert_gt(results.halted_moved, 0);
    cr_assert_eq(results.halted_moved, results.toggles);
    cr_assert_not(bb_storm_ok(&results));
}
