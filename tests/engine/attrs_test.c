/* SPDX-License-Identifier: MIT */
/* Attributes of accesses: who sees which, nested, posted, on every path. */
#include "recorder.h"

static struct machine machine;

static void setup(void)
{
    struct bb_engine_config config = {.external_lock = outer_hooks};

    machine_make(&machine, &config);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(attrs, .init = setup, .fini = teardown, .timeout = 30);

static const struct bb_attrs nobody;
static const struct bb_attrs somebody = {.requester_id = 0xabcd, .secure = true};
static const struct bb_attrs other = {.requester_id = 0x17, .privileged = true};

static bool same(struct bb_attrs a, struct bb_attrs b)
{
    return a.requester_id == b.requester_id && a.secure == b.secure && a.privileged == b.privileged;
}

static int read4(struct bb_ctx *ctx, bb_gpa_t gpa, struct bb_attrs attrs)
{
    uint8_t bytes[4];

    return bb_access_read(ctx, machine.mmio, gpa, bytes, sizeof(bytes), attrs);
}

static int write4(struct bb_ctx *ctx, bb_gpa_t gpa, struct bb_attrs attrs)
{
    const uint8_t bytes[4] = {1, 2, 3, 4};

    return bb_access_write(ctx, machine.mmio, gpa, bytes, sizeof(bytes), attrs);
}

Test(attrs, a_callback_of_every_class_sees_those_of_its_access)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct bb_region_config config = {.klass = (enum bb_class)klass};
        struct recorder device = {0};
        uint64_t value;

        recorder_make(&machine, &device, "device", klass, &config);
        cr_assert_eq(read4(machine.ctx, device.gpa, somebody), BB_OK);
        cr_assert_eq(write4(machine.ctx, device.gpa, other), BB_OK);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, device.gpa, 4, &value), BB_OK);
        cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, device.gpa, 4, 1), BB_OK);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, device.gpa, 3, &value), BB_OK);
        cr_assert_eq(device.count, 6);
        cr_assert(same(device.record[0].attrs, somebody));
        cr_assert(same(device.record[1].attrs, other));
        for (unsigned i = 2; i < 6; i++) {
            cr_assert(same(device.record[i].attrs, nobody), "call %u", i);
        }
        cr_assert(same(bb_access_attrs(machine.ctx), nobody), "outside callbacks there are none");
        recorder_drop(&device);
    }
}

/* Reads its neighbour without attributes and with others, and looks at its own in between. */
static void nest(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct recorder *inner = recorder->arg;
    uint64_t value;

    cr_assert_eq(bb_mmio_read(ctx, machine.mmio, inner->gpa, 4, &value), BB_OK);
    cr_assert(same(bb_access_attrs(ctx), record->attrs));
    cr_assert_eq(read4(ctx, inner->gpa, other), BB_OK);
    cr_assert(same(bb_access_attrs(ctx), record->attrs));
    cr_assert_eq(read4(ctx, 0x100, other), BB_OK, "RAM has no callback to see them");
    cr_assert_eq(read4(ctx, UINT64_C(0xdead0000), other), BB_E_DECODE);
    cr_assert(same(bb_access_attrs(ctx), record->attrs));
}

Test(attrs, a_nested_access_has_its_own_and_the_outer_ones_come_back)
{
    struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE};
    struct recorder outer = {.also = nest};
    struct recorder inner = {0};
    uint64_t value;

    recorder_make(&machine, &outer, "outer", 0, &config);
    recorder_make(&machine, &inner, "inner", 1, &config);
    outer.arg = &inner;
    cr_assert_eq(read4(machine.ctx, outer.gpa, somebody), BB_OK);
    cr_assert_eq(inner.count, 2);
    cr_assert(same(inner.record[0].attrs, nobody));
    cr_assert(same(inner.record[1].attrs, other));
    /* From the fast path too. */
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, outer.gpa, 4, &value), BB_OK);
    cr_assert(outer.record[1].fast);
    cr_assert_eq(inner.count, 4);
    cr_assert(same(inner.record[2].attrs, nobody));
    cr_assert(same(inner.record[3].attrs, other));
    recorder_drop(&outer);
    recorder_drop(&inner);
}

static void post(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct recorder *inner = recorder->arg;

    (void)record;
    cr_assert_eq(write4(ctx, inner->gpa, other), BB_OK);
    cr_assert_eq(bb_mmio_write(ctx, machine.mmio, inner->gpa, 4, 1), BB_OK);
    cr_assert_eq(inner->count, 0, "under a lock writes are posted");
}

Test(attrs, a_posted_write_is_made_with_those_that_it_was_posted_with)
{
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK};
    struct recorder outer = {.also = post};
    struct recorder inner = {0};

    recorder_make(&machine, &outer, "outer", 0, &config);
    recorder_make(&machine, &inner, "inner", 1, &config);
    outer.arg = &inner;
    cr_assert_eq(read4(machine.ctx, outer.gpa, somebody), BB_OK);
    cr_assert_eq(inner.count, 2);
    cr_assert(same(inner.record[0].attrs, other));
    cr_assert(same(inner.record[1].attrs, nobody));
    cr_assert(same(bb_access_attrs(machine.ctx), nobody));
    recorder_drop(&outer);
    recorder_drop(&inner);
}

/* Callbacks that serve no access, in the middle of one. */

static unsigned looks;
static bool saw_some;

static void look(struct bb_ctx *ctx)
{
    looks++;
    saw_some |= !same(bb_access_attrs(ctx), nobody);
}

static void pin_changed(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    (void)opaque;
    (void)pin;
    look(ctx);
}

static int message(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    (void)address;
    (void)data;
    look(ctx);
    return BB_OK;
}

static void called(struct bb_ctx *ctx, void *opaque, uint64_t argument)
{
    (void)opaque;
    (void)argument;
    look(ctx);
}

static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    (void)opaque;
    (void)access;
    cr_assert(same(attrs, other), "it is told them");
    look(ctx);
    *entry = (struct bb_iommu_entry){.target = machine.mmio,
                                     .iova = iova & ~UINT64_C(0xfff),
                                     .page_bits = 12,
                                     .access = BB_IOMMU_READ | BB_IOMMU_WRITE};
    return BB_OK;
}

static const struct bb_iommu_ops iommu_ops = {.translate = translate};
static struct bb_space *bus;

static void set_off(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    uint8_t byte;

    cr_assert_eq(bb_msi_send(ctx, 0xfee00000, 1), BB_OK);
    bb_source_set(ctx, recorder->arg, true);
    cr_assert_eq(bb_access_read(ctx, bus, 0x20, &byte, 1, other), BB_OK);
    cr_assert_eq(bb_post(ctx, recorder->device, called, NULL, 0), BB_OK);
    cr_assert(same(bb_access_attrs(ctx), record->attrs));
    cr_assert(same(record->attrs, somebody));
}

Test(attrs_beside, what_serves_no_access_sees_none, .timeout = 30)
{
    struct bb_engine_config engine = {.msi_sink = {.deliver = message}};
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK};
    struct bb_iommu_config translated = {.name = "iommu", .size_bytes = 0x1000, .ops = &iommu_ops};
    struct bb_line_sink sink = {.notify = pin_changed};
    struct recorder device = {.also = set_off};
    struct recorder translator = {0};
    struct bb_region *iommu;
    struct bb_source *source;
    struct bb_line *line;
    struct bb_error err = {0};

    machine_make(&machine, &engine);
    recorder_make(&machine, &device, "device", 0, &config);
    recorder_make(&machine, &translator, "translator", 1, &config);
    cr_assert_eq(bb_space_create(machine.ctx, &(struct bb_space_config){.name = "bus"}, &bus, &err),
                 BB_OK);
    cr_assert_eq(bb_device_iommu_create(machine.ctx, translator.device, &translated, &iommu, &err),
                 BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine.ctx, bus, 0, iommu, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_line_create(machine.ctx, "line", &sink, &line, &err), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, device.device, line, &source, &err), BB_OK);
    device.arg = source;

    cr_assert_eq(read4(machine.ctx, device.gpa, somebody), BB_OK);
    /* A message, a line, a translation and a posted call; then the level's withdrawal, below. */
    cr_assert_eq(looks, 4);
    cr_assert_not(saw_some);
    recorder_drop(&device);
    recorder_drop(&translator);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, &err), BB_OK);
    cr_assert_not(saw_some);
    machine_drop(&machine);
}
