/* SPDX-License-Identifier: MIT */
/* What the suites of coalesced writes stand on; see target.h. */
#include "target.h"

#include "../../memory/doorbell.h"

struct machine machine;
struct target target;
struct probe other;

struct made made[MADE_LOG];
unsigned made_count;

int note(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size, uint64_t value)
{
    (void)ctx;
    if (made_count < MADE_LOG) {
        made[made_count].probe = probe;
        made[made_count].offset = offset;
        made[made_count].size = size;
        made[made_count].value = value;
    }
    made_count++;
    return BB_OK;
}

static int status_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct target *t = opaque;

    (void)ctx;
    (void)offset;
    (void)size;
    *value = bb_load_relaxed(&t->probe.writes);
    return BB_OK;
}

static int status_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct target *t = opaque;

    return note(ctx, &t->probe, 0x1000 + offset, size, value);
}

int try_range(struct bb_region *region, uint64_t offset, uint64_t length, bool add,
              struct bb_error *err)
{
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
    int result = add ? bb_txn_coalesce(txn, region, offset, length, err)
                     : bb_txn_uncoalesce(txn, region, offset, length, err);
    if (result != BB_OK) {
        bb_txn_abort(txn);
        return result;
    }
    return bb_txn_commit(txn, err);
}

void change_range(struct bb_region *region, uint64_t offset, uint64_t length, bool add)
{
    struct bb_error err = {0};

    cr_assert_eq(try_range(region, offset, length, add, &err), BB_OK, "%s", err.text);
}

void target_make(struct target *t, const char *name, unsigned n, enum bb_class klass)
{
    static const struct bb_region_ops ops = {.read = status_read, .write = status_write};
    struct bb_region_config range_config = {.klass = klass, .rules = {.unaligned = true}};
    struct bb_region_config config = {
        .name = "status", .size_bytes = 0x10, .ops = &ops, .opaque = t};

    probe_make_config(&machine, &t->probe, name, n, &range_config);
    cr_assert_eq(bb_device_region_create(machine.ctx, t->probe.device, &config, &t->status, NULL),
                 BB_OK);
    t->status_gpa = t->probe.gpa + 0x800;
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, t->status_gpa, t->status, NULL), BB_OK);
    change_range(t->probe.region, 0, RANGE, true);
}

void world_make(enum bb_lock_mode mode, enum bb_class klass)
{
    struct bb_engine_config config = {
        .lock_mode = mode,
        .clock_mode = BB_CLOCK_MANUAL,
        .external_lock = outer_hooks,
    };

    made_count = 0;
    machine_make(&machine, &config);
    target = (struct target){.probe = {.write = note}};
    other = (struct probe){.write = note};
    target_make(&target, "target", 0, klass);
    probe_make(&machine, &other, "other", 1, BB_CLASS_LOCKFREE);
}

void world_setup(void)
{
    world_make(BB_LOCK_FREE, BB_CLASS_DEVICE_LOCK);
}

void world_drop(void)
{
    probe_drop(&target.probe);
    probe_drop(&other);
    machine_drop(&machine);
}

void leave(uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t before = bb_engine_stats(machine.ctx).coalesced;

    mmio_write(&machine, target.probe.gpa + offset, size, value);
    cr_assert_eq(bb_engine_stats(machine.ctx).coalesced, before + 1);
}

void assert_made(unsigned i, const struct probe *probe, uint64_t offset, unsigned size,
                 uint64_t value)
{
    cr_assert_lt(i, made_count);
    cr_assert_eq((const void *)made[i].probe, (const void *)probe, "write %u", i);
    cr_assert_eq(made[i].offset, offset, "write %u: offset %#llx", i,
                 (unsigned long long)made[i].offset);
    cr_assert_eq(made[i].size, size, "write %u: size %u", i, made[i].size);
    cr_assert_eq(made[i].value, value, "write %u: value %#llx", i,
                 (unsigned long long)made[i].value);
}

int note_and_post(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t value)
{
    const struct probe *next = probe->arg;

    (void)note(ctx, probe, offset, size, value);
    return next == NULL ? BB_OK : bb_mmio_write(ctx, machine.mmio, next->gpa, 4, value);
}

void write_one(struct bb_ctx *ctx, void *arg)
{
    const uint64_t *value = arg;

    if (bb_mmio_write(ctx, machine.mmio, target.probe.gpa, 4, *value) != BB_OK) {
        abort();
    }
}
