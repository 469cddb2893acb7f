/* SPDX-License-Identifier: MIT */
/* Accesses: decoding, sizes, straddling, results, counters, and where each class runs. */
#include "fixture.h"

#include <string.h>

#include "../../engine/engine_internal.h"

static struct machine machine;

static void setup(void)
{
    machine_make(&machine, NULL);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(dispatch, .init = setup, .fini = teardown, .timeout = 30);

static int read_offset(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    (void)ctx;
    (void)probe;
    (void)size;
    /* Each byte names its own offset. */
    for (unsigned i = 0; i < size; i++) {
        *value |= ((offset + i) & 0xff) << (8 * i);
    }
    return BB_OK;
}

Test(dispatch, a_read_of_nothing_yields_all_ones_and_is_counted)
{
    uint64_t value = 0;
    static const uint64_t ones[] = {[1] = 0xff, [2] = 0xffff, [4] = 0xffffffff, [8] = UINT64_MAX};

    for (unsigned size = 1; size <= 8; size *= 2) {
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0xfee00000, size, &value),
                     BB_E_DECODE);
        cr_assert_eq(value, ones[size]);
    }
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.pio, 0x80, 1, 0), BB_E_DECODE);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_reads, 4);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_writes, 1);
}

Test(dispatch, sizes_outside_one_to_eight_and_wrapping_ranges_are_refused)
{
    uint64_t value = 7;

    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0, 0, &value), BB_E_RANGE);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0, 9, &value), BB_E_RANGE);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, UINT64_MAX, 2, &value), BB_E_RANGE);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, UINT64_MAX - 6, 8, 0), BB_E_RANGE);
    cr_assert_eq(value, 7);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, UINT64_MAX, 1, &value), BB_E_DECODE);
}

Test(dispatch, every_size_at_every_place_reads_the_bytes_that_are_there)
{
    struct probe probe = {.read = read_offset};
    struct bb_region_config config = {.rules = {.unaligned = true}};

    probe_make_config(&machine, &probe, "bytes", 0, &config);
    for (unsigned size = 1; size <= 8; size++) {
        for (uint64_t at = 0; at + size <= DEVICE_BYTES; at++) {
            uint64_t value = 0;
            cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa + at, size, &value),
                         BB_OK);
            for (unsigned i = 0; i < 8; i++) {
                uint64_t byte = i < size ? ((at + i) & 0xff) : 0;
                cr_assert_eq((value >> (8 * i)) & 0xff, byte, "size %u at %lu: %lx", size,
                             (unsigned long)at, (unsigned long)value);
            }
        }
    }
    probe_drop(&probe);
}

Test(dispatch, an_access_over_the_end_of_a_region_is_cut_in_two)
{
    struct probe probe = {.read = read_offset};
    uint64_t value = 0;

    probe_make(&machine, &probe, "end", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa + 0xfc, 8, &value), BB_E_DECODE);
    cr_assert_eq(value, UINT64_C(0xfffffffffffefdfc), "%lx", (unsigned long)value);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa - 4, 8, &value), BB_E_DECODE);
    cr_assert_eq(value, UINT64_C(0x03020100ffffffff), "%lx", (unsigned long)value);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_reads, 2);
    /* From RAM into nothing. */
    machine.ram_host[RAM_BYTES - 1] = 0x5a;
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, RAM_BYTES - 1, 2, &value), BB_E_DECODE);
    cr_assert_eq(value, 0xff5a);
    probe_drop(&probe);
}

static int refuse_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    *value = 0x1234;
    return BB_E_DEVICE;
}

static int refuse_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)ctx;
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    return BB_E_DEVICE;
}

Test(dispatch, a_refusing_device_is_a_device_error_that_reads_ones)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_MAY_SLEEP; klass++) {
        struct probe probe = {.read = refuse_read, .write = refuse_write};
        uint64_t value = 0;
        uint64_t before = bb_engine_stats(machine.ctx).refused;

        probe_make(&machine, &probe, "refuses", klass, (enum bb_class)klass);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa, 4, &value), BB_E_DEVICE);
        cr_assert_eq(value, 0xffffffff);
        cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, probe.gpa, 4, 1), BB_E_DEVICE);
        cr_assert_eq(bb_engine_stats(machine.ctx).refused, before + 2);
        probe_drop(&probe);
    }
}

Test(dispatch, high_bits_that_a_device_returns_are_cut_off)
{
    struct probe probe = {.read = read_offset};

    probe_make(&machine, &probe, "wide", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(mmio_read(&machine, probe.gpa + 0x81, 1), 0x81);
    mmio_write(&machine, probe.gpa, 2, UINT64_MAX);
    cr_assert_eq(probe.last_value, 0xffff);
    probe_drop(&probe);
}

struct seen {
    bool section;
    bool lock;
    bool pin;
    unsigned depth;
};

static int note_state(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct seen *seen = probe->arg;

    (void)offset;
    (void)size;
    (void)value;
    seen->section = bb_section_active_(ctx);
    seen->lock = ctx->lock_depth != 0;
    seen->pin = ctx->pin_depth != 0;
    seen->depth = ctx->callback_depth;
    return BB_OK;
}

Test(dispatch, each_class_runs_its_callback_where_it_says)
{
    static const struct seen wanted[] = {
        [BB_CLASS_LOCKFREE] = {.section = true, .depth = 1},
        [BB_CLASS_DEVICE_LOCK] = {.section = true, .lock = true, .depth = 1},
        [BB_CLASS_MAY_SLEEP] = {.pin = true, .depth = 1},
    };

    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_MAY_SLEEP; klass++) {
        struct seen seen = {0};
        struct probe probe = {.read = note_state, .arg = &seen};

        probe_make(&machine, &probe, "state", klass, (enum bb_class)klass);
        (void)mmio_read(&machine, probe.gpa, 4);
        cr_assert_eq(seen.section, wanted[klass].section, "class %u", klass);
        cr_assert_eq(seen.lock, wanted[klass].lock, "class %u", klass);
        cr_assert_eq(seen.pin, wanted[klass].pin, "class %u", klass);
        cr_assert_eq(seen.depth, 1);
        cr_assert_eq(machine.ctx->callback_depth, 0);
        cr_assert_eq(machine.ctx->lock_depth, 0);
        cr_assert_eq(machine.ctx->pin_depth, 0);
        cr_assert_not(bb_section_active_(machine.ctx));
        probe_drop(&probe);
    }
}

Test(dispatch, an_access_in_the_embedders_section_works_and_leaves_it_on)
{
    struct probe fast = {0};
    struct probe sleeper = {0};
    uint64_t value;

    probe_make(&machine, &fast, "fast", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &sleeper, "sleeper", 1, BB_CLASS_MAY_SLEEP);
    bb_rcu_read_lock(machine.ctx);
    (void)mmio_read(&machine, fast.gpa, 8);
    cr_assert(bb_section_active_(machine.ctx));
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, sleeper.gpa, 4, &value), BB_E_CONTEXT,
                 "a callback that may sleep can't run inside a section");
    cr_assert_eq(sleeper.reads, 0);
    bb_rcu_read_unlock(machine.ctx);
    cr_assert_not(bb_section_active_(machine.ctx));
    probe_drop(&fast);
    probe_drop(&sleeper);
}

Test(dispatch, a_last_hit_does_not_outlive_the_map_that_it_came_from)
{
    struct probe probe = {.read = read_offset};
    uint64_t value;

    probe_make(&machine, &probe, "gone", 0, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < 100; i++) {
        cr_assert_eq(mmio_read(&machine, probe.gpa + 8, 1), 8);
        cr_assert_eq(bb_space_unmap(machine.ctx, probe.region, NULL), BB_OK);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa + 8, 1, &value),
                     BB_E_DECODE);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, probe.gpa, probe.region, NULL), BB_OK);
    }
    probe_drop(&probe);
}

Test(dispatch, ports_and_memory_are_apart)
{
    struct probe probe = {.read = read_offset};
    struct bb_error err;
    uint64_t value;

    probe_make(&machine, &probe, "port", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_space_unmap(machine.ctx, probe.region, &err), BB_OK);
    cr_assert_eq(bb_space_map(machine.ctx, machine.pio, 0x3f8, probe.region, &err), BB_OK);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.pio, 0x3f9, 1, &value), BB_OK);
    cr_assert_eq(value, 1);
    cr_assert_eq(mmio_read(&machine, 0x3f8, 1), machine.ram_host[0x3f8]);
    probe_drop(&probe);
}

static int write_random(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    uint8_t *shadow = probe->arg;

    (void)ctx;
    for (unsigned i = 0; i < size; i++) {
        shadow[offset + i] = (uint8_t)(value >> (8 * i));
    }
    return BB_OK;
}

Test(dispatch, writes_of_every_size_reach_the_bytes_they_name)
{
    uint8_t shadow[DEVICE_BYTES] = {0};
    uint8_t model[DEVICE_BYTES] = {0};
    struct probe probe = {.write = write_random, .arg = shadow};
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK, .rules = {.unaligned = true}};
    unsigned seed = 42;

    probe_make_config(&machine, &probe, "shadow", 0, &config);
    for (unsigned i = 0; i < 20000; i++) {
        unsigned size = 1 + (unsigned)rand_r(&seed) % 8;
        uint64_t at = (uint64_t)rand_r(&seed) % (DEVICE_BYTES - size + 1);
        uint64_t value = ((uint64_t)rand_r(&seed) << 32) ^ (uint64_t)rand_r(&seed);

        mmio_write(&machine, probe.gpa + at, size, value);
        for (unsigned b = 0; b < size; b++) {
            model[at + b] = (uint8_t)(value >> (8 * b));
        }
    }
    cr_assert_eq(memcmp(shadow, model, sizeof(model)), 0);
    probe_drop(&probe);
}
