/* SPDX-License-Identifier: MIT */
/*
 * Chains that come back to where they have been: by aliases, from another space, through an IOMMU.
 * Refused, or declared and bounded; each refusal counted; and no vCPU for what another one does.
 */
#include <string.h>

#include "../../engine/engine_internal.h"
#include "recorder.h"

static struct machine machine;
static struct bb_space *bus; /* shows the MMIO space through an IOMMU */
static struct recorder translator;
static bool asks_itself; /* the translation is looked up through the IOMMU itself */
static unsigned translations;

static const struct bb_attrs nobody;

static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    uint8_t table[8];
    int result = BB_OK;

    (void)opaque;
    (void)access;
    (void)attrs;
    translations++;
    if (asks_itself) {
        result = bb_access_read(ctx, bus, iova + 0x1000, table, sizeof(table), nobody);
    }
    *entry = (struct bb_iommu_entry){.target = machine.mmio,
                                     .iova = iova & ~UINT64_C(0xfff),
                                     .translated = iova & ~UINT64_C(0xfff),
                                     .page_bits = 12,
                                     .access = BB_IOMMU_READ | BB_IOMMU_WRITE};
    return result;
}

static const struct bb_iommu_ops iommu_ops = {.translate = translate};

static void setup(void)
{
    struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE};
    struct bb_iommu_config translated = {
        .name = "iommu", .size_bytes = BB_SIZE_ALL, .ops = &iommu_ops};
    struct bb_space_config space = {.name = "bus"};
    struct bb_region *iommu;
    struct bb_error err = {0};

    machine_make(&machine, NULL);
    recorder_make(&machine, &translator, "translator", 63, &config);
    cr_assert_eq(bb_device_iommu_create(machine.ctx, translator.device, &translated, &iommu, &err),
                 BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(machine.ctx, &space, &bus, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine.ctx, bus, 0, iommu, &err), BB_OK, "%s", err.text);
}

static void teardown(void)
{
    recorder_drop(&translator);
    machine_drop(&machine);
}

TestSuite(reentry, .init = setup, .fini = teardown, .timeout = 30);

/* A device whose reads read somewhere else. */
struct hop {
    struct recorder device;
    struct bb_space *space;
    bb_gpa_t gpa;
    int result; /* of the first read that came back */
    unsigned depth, deepest;
    unsigned failed;
};

static void go_on(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct hop *hop = recorder->arg;
    uint8_t byte;
    int result;

    (void)record;
    if (++hop->depth > hop->deepest) {
        hop->deepest = hop->depth;
    }
    result = bb_access_read(ctx, hop->space, hop->gpa, &byte, 1, nobody);
    hop->failed += result != BB_OK;
    if (hop->depth == hop->deepest) {
        hop->result = result;
    }
    hop->depth--;
}

static void hop_make(struct hop *hop, unsigned n, bool reentrant)
{
    struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE, .reentrant = reentrant};

    memset(hop, 0, sizeof(*hop));
    hop->device.also = go_on;
    hop->device.arg = hop;
    recorder_make(&machine, &hop->device, "hop", n, &config);
    hop->space = machine.mmio;
    hop->gpa = hop->device.gpa;
}

enum { ALIAS_AT = 0x40000000 };

/* By which ways a device comes back to itself. */
static struct bb_region *way(struct hop *hop, unsigned number)
{
    struct bb_alias_config config = {
        .name = "alias", .target = hop->device.region, .size_bytes = DEVICE_BYTES};
    struct bb_region *alias = NULL;
    struct bb_error err = {0};

    switch (number) {
    case 0: /* where it is */
        break;
    case 1: /* an alias of it */
        cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, &err), BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, ALIAS_AT, alias, &err), BB_OK);
        hop->gpa = ALIAS_AT;
        break;
    case 2: /* an alias in another space */
        cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, &err), BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, machine.pio, 0x100, alias, &err), BB_OK);
        hop->space = machine.pio;
        hop->gpa = 0x100;
        break;
    default: /* a translation */
        hop->space = bus;
        break;
    }
    return alias;
}

enum { WAYS = 4 };

Test(reentry, a_device_is_refused_itself_by_whichever_way_and_that_is_counted)
{
    for (unsigned number = 0; number < WAYS; number++) {
        struct bb_engine_stats before = bb_engine_stats(machine.ctx), after;
        struct bb_error err;
        struct hop hop;

        hop_make(&hop, 0, false);
        struct bb_region *alias = way(&hop, number);
        (void)mmio_read(&machine, hop.device.gpa, 1);
        after = bb_engine_stats(machine.ctx);
        cr_assert_eq(hop.result, BB_E_DEVICE, "way %u", number);
        cr_assert_eq(hop.deepest, 1, "way %u", number);
        cr_assert_eq(after.reentrant - before.reentrant, 1, "way %u", number);
        cr_assert_eq(after.refused - before.refused, 1, "way %u", number);
        if (alias != NULL) {
            cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, &err), BB_OK);
        }
        recorder_drop(&hop.device);
    }
}

Test(reentry, a_declared_loop_ends_at_a_bound_by_whichever_way_and_that_is_counted)
{
    for (unsigned number = 0; number < WAYS; number++) {
        struct bb_engine_stats before = bb_engine_stats(machine.ctx), after;
        struct bb_error err;
        struct hop hop;

        hop_make(&hop, 0, true);
        struct bb_region *alias = way(&hop, number);
        (void)mmio_read(&machine, hop.device.gpa, 1);
        after = bb_engine_stats(machine.ctx);
        cr_assert_eq(hop.deepest, BB_NEST_MAX_, "way %u: %u deep", number, hop.deepest);
        cr_assert_eq(hop.result, BB_E_DEVICE);
        cr_assert_eq(hop.failed, 1, "those above it go on");
        cr_assert_eq(after.reentrant, before.reentrant);
        cr_assert_eq(after.nested_refused - before.nested_refused, 1);
        cr_assert_eq(after.refused - before.refused, 1);
        if (alias != NULL) {
            cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, &err), BB_OK);
        }
        recorder_drop(&hop.device);
    }
}

Test(reentry, a_chain_of_devices_ends_at_the_same_bound)
{
    static struct hop hops[BB_NEST_MAX_ + 4];
    struct bb_engine_stats stats;

    for (unsigned i = 0; i < BB_ARRAY_LEN(hops); i++) {
        hop_make(&hops[i], i, false);
        hops[i].gpa = DEVICE_GPA(i + 1);
    }
    hops[BB_ARRAY_LEN(hops) - 1].gpa = 0;
    (void)mmio_read(&machine, hops[0].device.gpa, 1);
    for (unsigned i = 0; i < BB_ARRAY_LEN(hops); i++) {
        cr_assert_eq(hops[i].device.count, i < BB_NEST_MAX_ ? 1 : 0, "device %u", i);
        cr_assert_eq(hops[i].failed, i == BB_NEST_MAX_ - 1 ? 1 : 0, "device %u", i);
    }
    stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(stats.nested_refused, 1);
    cr_assert_eq(stats.refused, 1);
    for (unsigned i = 0; i < BB_ARRAY_LEN(hops); i++) {
        recorder_drop(&hops[i].device);
    }
}

Test(reentry, a_table_that_leads_through_itself_is_a_fault_and_ends)
{
    uint8_t byte;

    asks_itself = true;
    cr_assert_eq(bb_access_read(machine.ctx, bus, 0, &byte, 1, nobody), BB_E_DECODE);
    cr_assert_leq(translations, BB_IOMMU_NEST_MAX);
    cr_assert_gt(translations, 1);
    cr_assert_gt(bb_iommu_stats(machine.ctx).faults, 0);
    cr_assert_eq(machine.ctx->callback_depth, 0);
    asks_itself = false;
    cr_assert_eq(bb_access_read(machine.ctx, bus, 0, &byte, 1, nobody), BB_OK);
}

/* By several vCPUs. */

static int read_next(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    return bb_mmio_read(ctx, machine.mmio, probe->gpa + 0x1000 + offset, size, value);
}

enum { VCPUS = 3, ROUNDS = 20000 };

struct vcpu {
    struct worker worker;
    unsigned failed;
};

static void read_often(struct bb_ctx *ctx, void *arg)
{
    struct vcpu *vcpu = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t value;
        vcpu->failed += bb_mmio_read(ctx, machine.mmio, DEVICE_GPA(0), 4, &value) != BB_OK;
    }
}

Test(reentry, vcpus_in_one_device_at_once_are_no_loop)
{
    struct probe first = {.read = read_next}, second = {.read = NULL};
    struct vcpu vcpu[VCPUS] = {0};

    probe_make(&machine, &first, "first", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &second, "second", 1, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < VCPUS; i++) {
        worker_start(&vcpu[i].worker, &machine, "vcpu", read_often, &vcpu[i]);
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        worker_join(&vcpu[i].worker);
        cr_assert_eq(vcpu[i].failed, 0);
    }
    cr_assert_eq(bb_load_relaxed(&second.reads), VCPUS * ROUNDS);
    cr_assert_eq(bb_engine_stats(machine.ctx).reentrant, 0);
    probe_drop(&first);
    probe_drop(&second);
}
