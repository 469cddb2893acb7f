/* SPDX-License-Identifier: MIT */
/*
 * An engine with what the benchmarks access: HPET, I/O APIC and PM timer at a PC's addresses (or
 * registers of our own in their places, where the dispatch alone is measured), one hot register, a
 * device that holds its lock, and a field of regions.
 */
#include <stdlib.h>

#include "bench.h"

static const struct bb_region_ops target_ops = {.read = bench_target_read,
                                                .write = bench_target_write};
static const struct bb_region_ops holder_ops = {.read = bench_target_read,
                                                .write = bench_holder_write};

static struct bb_region *add(struct bench_machine *machine, struct bb_space *space, bb_gpa_t gpa,
                             uint64_t size_bytes, unsigned target)
{
    struct bb_region_config config = {
        .name = "target",
        .size_bytes = size_bytes,
        .ops = &target_ops,
        .opaque = &machine->targets[target],
        .klass = BB_CLASS_LOCKFREE,
    };
    struct bb_region *region;
    struct bb_error err;

    if (gpa == BENCH_HOLDER_GPA) {
        config.ops = &holder_ops;
        config.klass = BB_CLASS_DEVICE_LOCK;
    }
    if (bb_device_region_create(machine->ctx, machine->device, &config, &region, &err) != BB_OK ||
        bb_space_map(machine->ctx, space, gpa, region, &err) != BB_OK) {
        bench_die(&err, "making a region");
    }
    return region;
}

static void add_field(struct bench_machine *machine)
{
    struct bb_txn *txn;
    struct bb_error err;

    if (bb_txn_begin(machine->ctx, &txn, &err) != BB_OK) {
        bench_die(&err, "beginning a transaction");
    }
    for (unsigned i = 0; i < BENCH_FIELD; i++) {
        struct bb_region_config config = {
            .name = "field",
            .size_bytes = 0x1000,
            .ops = &target_ops,
            .opaque = &machine->targets[BENCH_FIELD_0 + i],
            .klass = BB_CLASS_LOCKFREE,
        };

        if (bb_device_region_create(machine->ctx, machine->device, &config, &machine->field[i],
                                    &err) != BB_OK ||
            bb_txn_map(txn, machine->mmio, BENCH_FIELD_GPA + i * BENCH_FIELD_STRIDE,
                       machine->field[i], &err) != BB_OK) {
            bench_die(&err, "making the field");
        }
    }
    if (bb_txn_commit(txn, &err) != BB_OK) {
        bench_die(&err, "mapping the field");
    }
}

static void add_real(struct bench_machine *machine)
{
    struct bb_clock *clock = bb_engine_clock(machine->engine);
    struct bb_hpet_config hpet = {.clock = clock};
    struct bb_pmtimer_config pmtimer = {.clock = clock};
    struct bb_ctx *ctx = machine->ctx;
    struct bb_error err;

    if (bb_hpet_create(ctx, &hpet, &machine->hpet, &err) != BB_OK ||
        bb_ioapic_create(ctx, NULL, &machine->ioapic, &err) != BB_OK ||
        bb_pmtimer_create(ctx, &pmtimer, &machine->pmtimer, &err) != BB_OK ||
        bb_space_map(ctx, machine->mmio, BENCH_HPET_GPA, bb_hpet_region(machine->hpet), &err) !=
            BB_OK ||
        bb_space_map(ctx, machine->mmio, BENCH_IOAPIC_GPA, bb_ioapic_region(machine->ioapic),
                     &err) != BB_OK ||
        bb_space_map(ctx, machine->pio, BENCH_PORT, bb_pmtimer_region(machine->pmtimer), &err) !=
            BB_OK) {
        bench_die(&err, "making the devices");
    }
    /* ENABLE_CNF: the main counter runs. */
    if (bb_mmio_write(ctx, machine->mmio, BENCH_HPET_GPA + 0x10, 8, 1) != BB_OK) {
        bench_die(NULL, "the HPET can't be enabled");
    }
}

void bench_machine_create(struct bench_machine *machine, enum bb_lock_mode mode,
                          enum bench_devices devices)
{
    struct bb_engine_config engine = {.name = "bench", .lock_mode = mode};
    struct bb_space_config mmio = {.name = "mmio", .kind = BB_SPACE_MMIO};
    struct bb_space_config pio = {.name = "pio", .kind = BB_SPACE_PIO};
    struct bb_device_config device = {.name = "targets"};
    struct bb_error err;

    *machine = (struct bench_machine){0};
    machine->targets = aligned_alloc(64, sizeof(*machine->targets) * (BENCH_FIELD_0 + BENCH_FIELD));
    if (machine->targets == NULL) {
        bench_die(NULL, "no memory for targets");
    }
    for (unsigned i = 0; i < BENCH_FIELD_0 + BENCH_FIELD; i++) {
        machine->targets[i] = (struct bench_target){.word = i};
    }
    if (bb_engine_create(&engine, &machine->engine, &err) != BB_OK ||
        bb_ctx_attach(machine->engine, "bench", &machine->ctx, &err) != BB_OK ||
        bb_space_create(machine->ctx, &mmio, &machine->mmio, &err) != BB_OK ||
        bb_space_create(machine->ctx, &pio, &machine->pio, &err) != BB_OK ||
        bb_device_create(machine->ctx, &device, &machine->device, &err) != BB_OK) {
        bench_die(&err, "making an engine");
    }
    add(machine, machine->mmio, BENCH_HOT_GPA, 0x1000, BENCH_HOT);
    add(machine, machine->mmio, BENCH_HOLDER_GPA, 0x1000, BENCH_HOT);
    add_field(machine);
    if (devices == BENCH_REAL) {
        add_real(machine);
    } else {
        add(machine, machine->mmio, BENCH_HPET_GPA, 0x400, BENCH_STAND_IN_HPET);
        add(machine, machine->pio, BENCH_PORT, 4, BENCH_STAND_IN_PORT);
        add(machine, machine->mmio, BENCH_IOAPIC_GPA, 0x1000, BENCH_STAND_IN_IOAPIC);
    }
}

void bench_machine_destroy(struct bench_machine *machine)
{
    struct bb_ctx *ctx = machine->ctx;
    struct bb_error err;

    if (bb_device_remove_wait(ctx, machine->device, &err) != BB_OK ||
        (machine->hpet != NULL &&
         (bb_device_remove_wait(ctx, bb_hpet_device(machine->hpet), &err) != BB_OK ||
          bb_device_remove_wait(ctx, bb_ioapic_device(machine->ioapic), &err) != BB_OK ||
          bb_device_remove_wait(ctx, bb_pmtimer_device(machine->pmtimer), &err) != BB_OK)) ||
        bb_ctx_detach(ctx, &err) != BB_OK || bb_engine_destroy(machine->engine, &err) != BB_OK) {
        bench_die(&err, "taking the machine down");
    }
    free(machine->targets);
}
