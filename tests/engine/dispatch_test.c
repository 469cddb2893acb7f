/* SPDX-License-Identifier: MIT */
/* Accesses: decoding, sizes, straddling, results and what they read, kinds of regions, counters,
 * and where each class runs. */
#include "fixture.h"

#include <string.h>

#include "../../engine/engine_internal.h"

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
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
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
    bool outer;
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
    seen->outer = outer_is_held(NULL);
    seen->depth = ctx->callback_depth;
    return BB_OK;
}

Test(dispatch, each_class_runs_its_callback_where_it_says)
{
    static const struct seen wanted[] = {
        [BB_CLASS_LOCKFREE] = {.section = true, .depth = 1},
        [BB_CLASS_DEVICE_LOCK] = {.section = true, .lock = true, .depth = 1},
        [BB_CLASS_MAY_SLEEP] = {.pin = true, .depth = 1},
        [BB_CLASS_EXTERNAL_LOCK] = {.pin = true, .outer = true, .depth = 1},
    };

    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct seen seen = {0};
        struct probe probe = {.read = note_state, .arg = &seen};

        probe_make(&machine, &probe, "state", klass, (enum bb_class)klass);
        (void)mmio_read(&machine, probe.gpa, 4);
        cr_assert_eq(seen.section, wanted[klass].section, "class %u", klass);
        cr_assert_eq(seen.lock, wanted[klass].lock, "class %u", klass);
        cr_assert_eq(seen.pin, wanted[klass].pin, "class %u", klass);
        cr_assert_eq(seen.outer, wanted[klass].outer, "class %u", klass);
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

/* What failed accesses read. */

struct fill_case {
    struct bb_fill fill;
    uint64_t reads; /* 8 bytes */
};

static const struct fill_case fills[] = {
    {{.kind = BB_FILL_ONES, .pattern = 1}, UINT64_MAX},
    {{.kind = BB_FILL_ZEROS, .pattern = 1}, 0},
    {{.kind = BB_FILL_PATTERN, .pattern = UINT64_C(0x8877665544332211)},
     UINT64_C(0x8877665544332211)},
};

Test(dispatch, what_failed_accesses_read_is_each_spaces_own)
{
    struct probe probe = {.read = refuse_read};

    probe_make(&machine, &probe, "refuses", 0, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < 9; i++) {
        const struct fill_case *decode = &fills[i / 3], *device = &fills[i % 3];
        struct bb_space_config config = {
            .name = "space", .decode_error = decode->fill, .device_error = device->fill};
        struct bb_space *space;
        struct bb_error err;

        cr_assert_eq(bb_space_create(machine.ctx, &config, &space, &err), BB_OK);
        cr_assert_eq(bb_space_unmap(machine.ctx, probe.region, &err), BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, space, 0x1000, probe.region, &err), BB_OK);
        for (unsigned size = 1; size <= 8; size++) {
            uint64_t mask = bb_mask_bytes(size);
            uint64_t value = ~decode->reads;

            cr_assert_eq(bb_mmio_read(machine.ctx, space, 0x2000, size, &value), BB_E_DECODE);
            cr_assert_eq(value, decode->reads & mask, "size %u: %lx", size, (unsigned long)value);
            value = ~device->reads;
            cr_assert_eq(bb_mmio_read(machine.ctx, space, 0x1000, size, &value), BB_E_DEVICE);
            cr_assert_eq(value, device->reads & mask, "size %u: %lx", size, (unsigned long)value);
            /* Unaligned: refused by the rules. */
            cr_assert_eq(bb_mmio_read(machine.ctx, space, 0x1001, 4, &value), BB_E_DEVICE);
            cr_assert_eq(value, device->reads & UINT32_MAX);
            /* The half that lies outside, at its own place. */
            cr_assert_eq(bb_mmio_read(machine.ctx, space, 0xffc, 8, &value), BB_E_DEVICE);
            cr_assert_eq(value,
                         (decode->reads & UINT32_MAX) | (device->reads & ~(uint64_t)UINT32_MAX));
        }
    }
    probe_drop(&probe);
}

/* Kinds of regions. */

static void in_txn(int (*change)(struct bb_txn *txn, struct bb_region *region, bool flag,
                                 struct bb_error *err),
                   struct bb_region *region, bool flag)
{
    struct bb_error err = {0};
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(machine.ctx, &txn, &err), BB_OK, "%s", err.text);
    cr_assert_eq(change(txn, region, flag, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static int note_written(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct seen *seen = probe->arg;

    (void)offset;
    (void)size;
    (void)value;
    seen->lock = ctx->lock_depth != 0;
    seen->pin = ctx->pin_depth != 0;
    seen->outer = outer_is_held(NULL);
    seen->depth = ctx->callback_depth;
    return BB_OK;
}

Test(dispatch, a_rom_device_is_read_as_memory_in_its_mode_and_written_to_its_callback_always)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        struct bb_region_config config = {.klass = (enum bb_class)klass, .rom_device = true};
        struct seen seen = {0};
        struct probe probe = {.read = read_offset, .write = note_written, .arg = &seen};
        uint64_t value;
        uint8_t *host;

        probe_make_config(&machine, &probe, "flash", klass, &config);
        host = bb_region_host(probe.region);
        for (unsigned i = 0; i < DEVICE_BYTES; i++) {
            host[i] = (uint8_t)(0x80 + i);
        }
        cr_assert_eq(mmio_read(&machine, probe.gpa + 3, 4), 0x86858483, "any alignment");
        cr_assert_eq(probe.reads, 0);
        mmio_write(&machine, probe.gpa + 8, 4, 0x1234);
        cr_assert_eq(probe.writes, 1);
        cr_assert_eq(probe.last_value, 0x1234);
        cr_assert_eq(host[8], 0x88);
        cr_assert_eq(seen.depth, 1);
        cr_assert_eq(seen.lock, klass == BB_CLASS_DEVICE_LOCK);
        cr_assert_eq(seen.pin, klass >= BB_CLASS_MAY_SLEEP);
        cr_assert_eq(seen.outer, klass == BB_CLASS_EXTERNAL_LOCK);
        cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, probe.gpa + 3, 4, 0), BB_E_DEVICE);

        in_txn(bb_txn_rom_mode, probe.region, false);
        cr_assert_eq(mmio_read(&machine, probe.gpa + 4, 4), 0x07060504);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, probe.gpa + 3, 4, &value),
                     BB_E_DEVICE);
        mmio_write(&machine, probe.gpa + 8, 4, 1);
        cr_assert_eq(probe.reads, 1);
        cr_assert_eq(probe.writes, 2);

        in_txn(bb_txn_rom_mode, probe.region, true);
        cr_assert_eq(mmio_read(&machine, probe.gpa + 3, 4), 0x86858483);
        cr_assert_eq(probe.reads, 1);
        probe_drop(&probe);
    }
}

Test(dispatch, a_reserved_region_hides_what_is_under_it_and_is_a_decode_error)
{
    struct bb_region *reserved;
    struct bb_error err = {0};
    uint64_t value = 0;

    machine.ram_host[0x0ffe] = 0x12;
    machine.ram_host[0x0fff] = 0x34;
    machine.ram_host[0x1000] = 0x77;
    cr_assert_eq(bb_reserved_create(machine.ctx, "reserved", 0x1000, &reserved, &err), BB_OK);
    cr_assert_eq(
        bb_region_place(machine.ctx, bb_space_root(machine.mmio), 0x1000, reserved, 1, &err), BB_OK,
        "%s", err.text);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0x1000, 4, &value), BB_E_DECODE);
    cr_assert_eq(value, UINT32_MAX);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x1000, 1, 0), BB_E_DECODE);
    cr_assert_eq(machine.ram_host[0x1000], 0x77);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0x0ffe, 4, &value), BB_E_DECODE);
    cr_assert_eq(value, 0xffff3412);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_reads, 2);
    cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_writes, 1);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, reserved, &err), BB_OK);
    cr_assert_eq(mmio_read(&machine, 0x1000, 1), 0x77);
}

Test(dispatch, memory_behind_a_read_only_alias_refuses_writes_there_alone)
{
    struct bb_alias_config config = {.name = "shadow",
                                     .target = machine.ram,
                                     .offset = 0x100,
                                     .size_bytes = 0x100,
                                     .read_only = true};
    struct bb_region *alias;
    struct bb_error err = {0};
    uint64_t value;

    cr_assert_eq(bb_alias_create(machine.ctx, &config, &alias, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, 0x100000, alias, &err), BB_OK);
    mmio_write(&machine, 0x110, 4, 0xfeedface);
    cr_assert_eq(mmio_read(&machine, 0x100010, 4), 0xfeedface);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x100010, 4, 0), BB_E_DEVICE);
    cr_assert_eq(mmio_read(&machine, 0x110, 4), 0xfeedface);
    cr_assert_eq(bb_engine_stats(machine.ctx).refused, 1);
    in_txn(bb_txn_read_only, alias, false);
    mmio_write(&machine, 0x100010, 4, 5);
    cr_assert_eq(mmio_read(&machine, 0x110, 4), 5);
    in_txn(bb_txn_read_only, machine.ram, true);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x110, 4, 0), BB_E_DEVICE);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x100010, 4, 0), BB_E_DEVICE);
    in_txn(bb_txn_read_only, machine.ram, false);
    mmio_write(&machine, 0x110, 4, 6);
    /* Over the end of the alias. */
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, 0x1000fc, 8, &value), BB_E_DECODE);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, alias, &err), BB_OK);
}

Test(dispatch, one_region_after_another_is_one_access_to_the_guest)
{
    struct probe low = {.read = read_offset};
    struct probe high = {.read = read_offset};
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK, .rules.unaligned = true};
    struct bb_error err;

    probe_make_config(&machine, &low, "low", 0, &config);
    probe_make_config(&machine, &high, "high", 1, &config);
    cr_assert_eq(bb_region_move(machine.ctx, high.region, low.gpa + DEVICE_BYTES, &err), BB_OK);
    cr_assert_eq(mmio_read(&machine, low.gpa + 0xfd, 8), UINT64_C(0x0403020100fffefd));
    cr_assert_eq(low.reads, 3);  /* 2, which is unaligned, and 1 */
    cr_assert_eq(high.reads, 2); /* 4 and 1 */
    probe_drop(&low);
    probe_drop(&high);
}

static int answer_5(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                    uint64_t *value)
{
    unsigned *fast = opaque;

    (void)offset;
    (void)size;
    *fast += bb_load_relaxed(&bb_ectx_(ctx)->busy) == 0; /* the slow way begins a chain */
    *value = 5;
    return BB_OK;
}

static int take(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t read;

    (void)value;
    return answer_5(ctx, opaque, offset, size, &read);
}

Test(dispatch, a_region_with_one_callback_is_fast_in_that_direction_and_refuses_the_other)
{
    static const struct bb_region_ops ops[2] = {{.read = answer_5}, {.write = take}};

    for (unsigned writes = 0; writes < 2; writes++) {
        struct bb_device_config device_config = {.name = "half"};
        struct bb_region_config config = {
            .name = "half", .size_bytes = 8, .ops = &ops[writes], .klass = BB_CLASS_LOCKFREE};
        struct bb_device *device;
        struct bb_region *region;
        struct bb_error err = {0};
        unsigned fast = 0;
        uint64_t value = 0;

        config.opaque = &fast;
        cr_assert_eq(bb_device_create(machine.ctx, &device_config, &device, &err), BB_OK);
        cr_assert_eq(bb_device_region_create(machine.ctx, device, &config, &region, &err), BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, DEVICE_GPA(0), region, &err), BB_OK);
        for (unsigned i = 0; i < 3; i++) {
            int read = bb_mmio_read(machine.ctx, machine.mmio, DEVICE_GPA(0), 4, &value);
            int write = bb_mmio_write(machine.ctx, machine.mmio, DEVICE_GPA(0), 4, 1);

            cr_assert_eq(read, writes != 0 ? BB_E_DEVICE : BB_OK);
            cr_assert_eq(value, writes != 0 ? UINT32_MAX : 5);
            cr_assert_eq(write, writes != 0 ? BB_OK : BB_E_DEVICE);
        }
        cr_assert_eq(fast, 3);
        cr_assert_eq(bb_engine_stats(machine.ctx).refused, 3 * (writes + 1));
        cr_assert_eq(bb_device_remove_wait(machine.ctx, device, &err), BB_OK);
    }
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
