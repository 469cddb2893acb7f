/* SPDX-License-Identifier: MIT */
/* What a careless embedder does: missing arguments, and hooks that pull away what they run on. */
#include "fixture.h"

#include <string.h>

TestSuite(misuse, .timeout = 60);

/* What a hook tried, and what came of it. */
struct attempt {
    struct bb_engine *engine;
    struct bb_error err;
    int result;
    struct door tried;
};

static void destroy_engine(void *opaque)
{
    struct attempt *attempt = opaque;

    attempt->result = bb_engine_destroy(attempt->engine, &attempt->err);
    door_open(&attempt->tried);
}

Test(misuse, an_engine_is_not_destroyed_on_its_own_thread)
{
    struct machine machine;
    struct probe probe = {0};
    struct attempt attempt = {.result = BB_OK, .tried = DOOR_INIT};

    machine_make(&machine, NULL);
    attempt.engine = machine.engine;
    probe_make(&machine, &probe, "last", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_device_remove(machine.ctx, probe.device, destroy_engine, &attempt, NULL),
                 BB_OK);
    door_wait(&attempt.tried);
    cr_assert_eq(attempt.result, BB_E_CONTEXT);
    cr_assert_not_null(strstr(attempt.err.text, "bb-complete"), "%s", attempt.err.text);
    machine_drop(&machine);
}

static void detach_context(struct bb_ctx *ctx, void *opaque, int result, const struct bb_error *err)
{
    struct attempt *attempt = opaque;

    (void)result, (void)err;
    attempt->result = bb_ctx_detach(ctx, &attempt->err);
    door_open(&attempt->tried);
}

Test(misuse, a_hook_does_not_detach_the_context_that_it_is_given)
{
    struct machine machine;
    struct attempt attempt = {.result = BB_OK, .tried = DOOR_INIT};

    machine_make(&machine, NULL);
    cr_assert_eq(bb_engine_pause_async(machine.ctx, 0, detach_context, &attempt, NULL), BB_OK);
    door_wait(&attempt.tried);
    cr_assert_eq(attempt.result, BB_E_CONTEXT);
    cr_assert_not_null(strstr(attempt.err.text, "engine's own"), "%s", attempt.err.text);
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    machine_drop(&machine);
}

static void no_expiry(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    (void)ctx, (void)opaque, (void)deadline_ns;
}

/* Refused with a text, which is taken away again for the next one. */
#define REFUSED(call)                                                                              \
    do {                                                                                           \
        cr_assert_eq(call, BB_E_INVAL, #call);                                                     \
        cr_assert(err.text[0] != '\0', #call);                                                     \
        memset(&err, 0, sizeof(err));                                                              \
    } while (0)

Test(misuse, missing_arguments_are_refused_with_a_text)
{
    struct machine machine;
    struct probe probe = {0};
    struct bb_error err = {0};
    struct bb_region_ops ops = {0};
    struct bb_region_config region = {.name = "r", .size_bytes = 4, .ops = &ops};
    struct bb_device_config device = {.name = "d"};
    struct bb_device_timer_config timer_config = {.expired = no_expiry};
    struct bb_space_config space = {.name = "s"};
    struct bb_region *made;
    struct bb_source *source;
    struct bb_device_timer *timer;
    struct bb_txn *txn;

    machine_make(&machine, NULL);
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    REFUSED(bb_engine_destroy(NULL, &err));
    REFUSED(bb_ctx_detach(NULL, &err));
    REFUSED(bb_space_create(machine.ctx, &space, NULL, &err));
    REFUSED(bb_device_create(machine.ctx, &device, NULL, &err));
    REFUSED(bb_device_region_create(machine.ctx, NULL, &region, &made, &err));
    REFUSED(bb_device_region_create(machine.ctx, probe.device, &region, NULL, &err));
    REFUSED(bb_device_timer_create(machine.ctx, NULL, &timer_config, &timer, &err));
    REFUSED(bb_device_timer_create(machine.ctx, probe.device, &timer_config, NULL, &err));
    REFUSED(bb_line_create(machine.ctx, "line", NULL, NULL, &err));
    REFUSED(bb_line_destroy(machine.ctx, NULL, &err));
    REFUSED(bb_source_create(machine.ctx, NULL, NULL, &source, &err));
    REFUSED(bb_source_create(machine.ctx, probe.device, NULL, NULL, &err));
    REFUSED(bb_txn_begin(machine.ctx, NULL, &err));
    REFUSED(bb_txn_map(NULL, machine.mmio, 0, probe.region, &err));
    REFUSED(bb_txn_unmap(NULL, probe.region, &err));
    REFUSED(bb_txn_commit(NULL, &err));
    bb_txn_abort(NULL);
    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, &err), BB_OK);
    REFUSED(bb_txn_map(txn, NULL, 0, probe.region, &err));
    bb_txn_abort(txn);
    cr_assert_eq(bb_post(machine.ctx, probe.device, NULL, NULL, 0), BB_E_INVAL);
    probe_drop(&probe);
    machine_drop(&machine);
}
