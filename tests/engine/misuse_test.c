/* SPDX-License-Identifier: MIT */
/* What a careless embedder does: missing arguments, and hooks that pull away what they run on. */
#include "fixture.h"

#include <string.h>

#include "../../memory/listener.h"

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
    struct bb_iommu_ops iommu_ops = {0};
    struct bb_iommu_config iommu = {.name = "i", .size_bytes = 0x1000, .ops = &iommu_ops};
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
    REFUSED(bb_device_iommu_create(machine.ctx, NULL, &iommu, &made, &err));
    REFUSED(bb_device_iommu_create(machine.ctx, probe.device, &iommu, NULL, &err));
    REFUSED(bb_device_iommu_create(machine.ctx, probe.device, NULL, &made, &err));
    REFUSED(bb_device_adopt(machine.ctx, NULL, machine.ram, &err));
    REFUSED(bb_device_adopt(machine.ctx, probe.device, NULL, &err));
    REFUSED(bb_region_remove(machine.ctx, NULL, NULL, NULL, &err));
    REFUSED(bb_region_remove_wait(machine.ctx, NULL, &err));
    REFUSED(bb_device_remove(machine.ctx, NULL, NULL, NULL, &err));
    REFUSED(bb_device_remove_wait(machine.ctx, NULL, &err));
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

static int fault(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                 struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    (void)ctx, (void)opaque, (void)iova, (void)access, (void)attrs, (void)entry;
    return BB_E_DECODE;
}

static void never(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)ctx, (void)opaque, (void)first, (void)last;
    abort();
}

Test(misuse, listeners_and_notifiers_of_another_engine_are_refused)
{
    struct machine here, there;
    struct probe probe = {0};
    struct bb_error err = {0};
    struct bb_space *far = NULL; /* a number that no space here has */
    struct bb_iommu_ops iommu_ops = {.translate = fault};
    struct bb_iommu_config iommu_config = {.name = "i", .size_bytes = 0x1000, .ops = &iommu_ops};
    struct bb_iommu_notifier_config notifier_config = {.last = 0xfff, .unmapped = never};
    struct bb_listener_ops hooks = {0};
    struct bb_listener_config listener_config = {.name = "l", .ops = &hooks};
    struct bb_region *iommu;
    struct bb_iommu_notifier *notifier;
    struct bb_listener *listener;

    machine_make(&here, NULL);
    machine_make(&there, NULL);
    probe_make(&there, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(
            bb_space_create(there.ctx, &(struct bb_space_config){.name = "far"}, &far, NULL),
            BB_OK);
    }
    cr_assert_eq(bb_device_iommu_create(there.ctx, probe.device, &iommu_config, &iommu, NULL),
                 BB_OK);
    REFUSED(bb_iommu_invalidate(here.ctx, iommu, 0, 1, NULL, NULL, &err));
    REFUSED(bb_iommu_invalidate_wait(here.ctx, iommu, 0, 1, &err));
    REFUSED(bb_iommu_notifier_add(here.ctx, iommu, &notifier_config, &notifier, &err));
    cr_assert_eq(bb_iommu_notifier_add(there.ctx, iommu, &notifier_config, &notifier, NULL), BB_OK);
    REFUSED(bb_iommu_notifier_remove(here.ctx, notifier, NULL, NULL, &err));
    cr_assert_eq(bb_iommu_notifier_remove(there.ctx, notifier, NULL, NULL, NULL), BB_OK);
    listener_config.space = far;
    REFUSED(bb_listener_add(here.ctx, &listener_config, &listener, &err));
    cr_assert_eq(bb_listener_add(there.ctx, &listener_config, &listener, NULL), BB_OK);
    REFUSED(bb_listener_remove(here.ctx, listener, &err));
    cr_assert_eq(bb_listener_remove(there.ctx, listener, NULL), BB_OK);
    probe_drop(&probe);
    machine_drop(&there);
    machine_drop(&here);
}

/* Forms that block, where they must not. */

static struct machine blocked;
static struct probe victim;
static unsigned refused;

static void try_to_block(struct bb_ctx *ctx)
{
    struct bb_error err = {0};

    refused += bb_region_remove_wait(ctx, victim.region, &err) == BB_E_CONTEXT &&
               strstr(err.text, "bb_region_remove_wait") != NULL;
    refused += bb_device_remove_wait(ctx, victim.device, &err) == BB_E_CONTEXT &&
               strstr(err.text, "bb_device_remove_wait") != NULL;
}

/* Both were refused, and nothing was done. */
static void check_refused(const char *where)
{
    cr_assert_eq(refused, 2, "%s: %u of 2 refused", where, refused);
    refused = 0;
    (void)mmio_read(&blocked, victim.gpa, 4);
}

static int block_in_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                          uint64_t value)
{
    (void)probe, (void)offset, (void)size, (void)value;
    try_to_block(ctx);
    return BB_OK;
}

static void block_in_effect(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)opaque, (void)argument;
    try_to_block(ctx);
}

static bool external_is_held;

static void external_lock(void *opaque)
{
    (void)opaque;
    external_is_held = true;
}

static void external_unlock(void *opaque)
{
    (void)opaque;
    external_is_held = false;
}

static bool external_held(void *opaque)
{
    (void)opaque;
    return external_is_held;
}

Test(misuse, blocking_removal_is_refused_in_callbacks_sections_pins_locks_and_effects)
{
    static const char *const name[] = {"LOCKFREE", "DEVICE_LOCK", "MAY_SLEEP", "EXTERNAL_LOCK"};
    struct bb_engine_config config = {
        .external_lock = {external_lock, external_unlock, external_held, NULL}};
    struct bb_lock *lock;

    machine_make(&blocked, &config);
    victim = (struct probe){0};
    refused = 0;
    probe_make(&blocked, &victim, "victim", 0, BB_CLASS_LOCKFREE);
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct probe caller = {.write = block_in_write};

        probe_make(&blocked, &caller, "caller", 1, (enum bb_class)klass);
        mmio_write(&blocked, caller.gpa, 4, 0);
        check_refused(name[klass]);
        probe_drop(&caller);
    }
    cr_assert_eq(bb_post(blocked.ctx, victim.device, block_in_effect, NULL, 0), BB_OK);
    check_refused("a posted effect");
    bb_rcu_read_lock(blocked.ctx);
    try_to_block(blocked.ctx);
    bb_rcu_read_unlock(blocked.ctx);
    check_refused("a read section");
    cr_assert_eq(bb_lock_create(blocked.ctx, "mine", BB_RANK_NARROW, &lock, NULL), BB_OK);
    bb_lock_acquire(blocked.ctx, lock);
    try_to_block(blocked.ctx);
    bb_lock_release(blocked.ctx, lock);
    check_refused("a ranked lock");
    bb_lock_destroy(blocked.ctx, lock);
    bb_device_lock(blocked.ctx, victim.device);
    try_to_block(blocked.ctx);
    bb_device_unlock(blocked.ctx, victim.device);
    check_refused("the device's lock");
    external_lock(NULL);
    try_to_block(blocked.ctx);
    external_unlock(NULL);
    check_refused("the external lock");
    probe_drop(&victim);
    machine_drop(&blocked);
}
