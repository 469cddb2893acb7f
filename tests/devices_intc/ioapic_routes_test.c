/* SPDX-License-Identifier: MIT */
/* Entries that take effect once their route is installed, and what happens on the way. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

/* An in-kernel interrupt controller's table, and what is to happen while it is being changed. */
struct kernel {
    struct rig *rig;
    struct bb_ioapic_route table[PINS];
    unsigned installs;
    unsigned failures_reported;
    int result;          /* of the next installs */
    uint32_t inside;     /* (a) installs that run now: never two */
    uint32_t overlapped; /* (a) it was two */
    /* Runs on another thread, with a context of its own, during the next install. */
    void (*meanwhile)(struct kernel *kernel, struct bb_ctx *ctx);
    uint64_t seen; /* what that found */
};

static void *run_meanwhile(void *opaque)
{
    struct kernel *kernel = opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(kernel->rig->engine, "meanwhile", &ctx, NULL) == BB_OK) {
        kernel->meanwhile(kernel, ctx);
        (void)bb_ctx_detach(ctx, NULL);
    }
    return NULL;
}

static int install(struct bb_ctx *ctx, void *opaque, const struct bb_ioapic_route *table,
                   unsigned pins)
{
    struct kernel *kernel = opaque;
    pthread_t thread;

    (void)ctx;
    if (bb_fetch_add_acq_rel(&kernel->inside, 1) != 0) {
        bb_store_relaxed(&kernel->overlapped, 1);
    }
    kernel->installs++;
    if (kernel->meanwhile != NULL) {
        (void)pthread_create(&thread, NULL, run_meanwhile, kernel);
        (void)pthread_join(thread, NULL);
        kernel->meanwhile = NULL;
    }
    if (kernel->result == BB_OK) {
        memcpy(kernel->table, table, pins * sizeof(*table));
    }
    (void)bb_fetch_sub_acq_rel(&kernel->inside, 1);
    return kernel->result;
}

static void failed(void *opaque, int result)
{
    struct kernel *kernel = opaque;

    (void)result;
    kernel->failures_reported++;
}

static struct rig *set_up_kernel_in_mode(struct kernel *kernel, enum bb_lock_mode mode)
{
    struct bb_ioapic_config config = {
        .routes = {.install = install, .failed = failed, .opaque = kernel}};
    struct rig *rig = set_up_in_mode(&config, mode);

    kernel->rig = rig;
    return rig;
}

static struct rig *set_up_kernel(struct kernel *kernel)
{
    return set_up_kernel_in_mode(kernel, BB_LOCK_FREE);
}

static void read_entry_9(struct kernel *kernel, struct bb_ctx *ctx)
{
    kernel->seen = entry_read(kernel->rig, ctx, 9);
}

Test(ioapic_routes, an_entry_reads_back_as_before_until_its_table_is_installed)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    kernel.meanwhile = read_entry_9;
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x39);
    cr_assert_eq(kernel.installs, 1);
    cr_assert_eq(kernel.seen, MASKED, "seen by another vCPU during the install");
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39, "in force when the write returns");
    cr_assert(kernel.table[9].valid);
    cr_assert_eq(kernel.table[9].address, 0xfee00000);
    cr_assert_eq(kernel.table[9].data, 0xc039);
    for (unsigned pin = 0; pin < PINS; pin++) {
        cr_assert_eq(kernel.table[pin].valid, pin == 9);
    }
    tear_down(rig);
}

static void synchronize(struct kernel *kernel, struct bb_ctx *ctx)
{
    kernel->seen = bb_rcu_synchronize(ctx) == BB_OK ? 1 : 0;
}

Test(ioapic_routes, the_table_is_installed_outside_read_sections, .timeout = 120)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    kernel.meanwhile = synchronize; /* would wait for ever for a section of the installer's */
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x39);
    cr_assert_eq(kernel.seen, 1);
    tear_down(rig);
}

static void pulse_9(struct kernel *kernel, struct bb_ctx *ctx)
{
    bb_source_pulse(ctx, kernel->rig->source[9][0]);
    kernel->seen = bb_load_relaxed(&kernel->rig->messages);
}

Test(ioapic_routes, an_edge_during_the_install_is_delivered_by_the_new_entry)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, 0x39);
    kernel.meanwhile = pulse_9;
    reg_write(rig, rig->ctx, 0x10 + 18, 0x3a);
    cr_assert_eq(kernel.seen, 0, "not before its route is there");
    cr_assert_eq(delivered(rig, 0x39), 0);
    cr_assert_eq(delivered(rig, 0x3a), 1, "and not lost");
    tear_down(rig);
}

static void pulse_8(struct kernel *kernel, struct bb_ctx *ctx)
{
    bb_source_pulse(ctx, kernel->rig->source[8][0]);
    kernel->seen = bb_load_relaxed(&kernel->rig->messages);
}

Test(ioapic_routes, other_pins_deliver_during_an_install)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 8, 0x38);
    kernel.meanwhile = pulse_8;
    reg_write(rig, rig->ctx, 0x10 + 18, 0x3a);
    cr_assert_eq(kernel.seen, 1);
    tear_down(rig);
}

static void raise_9(struct kernel *kernel, struct bb_ctx *ctx)
{
    bb_source_set(ctx, kernel->rig->source[9][0], true);
    kernel->seen = bb_load_relaxed(&kernel->rig->messages);
}

Test(ioapic_routes, no_level_is_delivered_whose_end_the_new_table_would_not_report)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    kernel.meanwhile = raise_9;
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | MASKED | 0x39);
    cr_assert(!kernel.table[9].valid);
    cr_assert_eq(kernel.seen, 0);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | MASKED | 0x39, "not in service");
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x39);
    cr_assert_eq(delivered(rig, 0x39), 1);
    tear_down(rig);
}

Test(ioapic_routes, a_masked_pin_in_service_keeps_its_route)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | MASKED | 0x39);
    cr_assert(kernel.table[9].valid, "its end of interrupt is awaited");
    lower_pin(rig, 9);
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | MASKED | 0x39);
    reg_write(rig, rig->ctx, 0x11 + 18, 0x01000000);
    cr_assert(!kernel.table[9].valid);
    tear_down(rig);
}

Test(ioapic_routes, switching_to_edge_clears_remote_irr_with_the_table)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    raise_pin(rig, 9);
    reg_write(rig, rig->ctx, 0x10 + 18, MASKED | 0x39);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), MASKED | 0x39);
    cr_assert(!kernel.table[9].valid);
    tear_down(rig);
}

/* Two vCPUs write pin 9 while an update of another pin is under way: an edge, then a level. Neither
 * write can return before, so that most often one update grants both. */
struct blocked_writer {
    struct kernel *kernel;
    pthread_t thread;
    uint32_t value;
};

static struct blocked_writer blocked[2];

static void *write_blocked(void *opaque)
{
    struct blocked_writer *writer = opaque;
    struct rig *rig = writer->kernel->rig;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "writer", &ctx, NULL) == BB_OK) {
        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, writer->value);
        (void)bb_ctx_detach(ctx, NULL);
    }
    return NULL;
}

static void edge_then_level(struct kernel *kernel, struct bb_ctx *ctx)
{
    static const uint32_t values[2] = {MASKED | 0x39, MASKED | LEVEL | 0x39};

    (void)bb_mmio_write(ctx, kernel->rig->space, IOAPIC_BASE + IOREGSEL, 4, 0x10 + 18);
    for (unsigned i = 0; i < 2; i++) {
        blocked[i].kernel = kernel;
        blocked[i].value = values[i];
        (void)pthread_create(&blocked[i].thread, NULL, write_blocked, &blocked[i]);
        for (unsigned spins = 0; spins < 2000; spins++) {
            (void)sched_yield(); /* a chance to get as far as it can */
        }
    }
}

Test(ioapic_routes, an_edge_form_that_was_overwritten_still_clears_remote_irr, .timeout = 120)
{
    for (unsigned round = 0; round < 20; round++) {
        struct kernel kernel = {0};
        struct rig *rig = set_up_kernel(&kernel);

        entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
        raise_pin(rig, 9);
        lower_pin(rig, 9);
        cr_assert(entry_read(rig, rig->ctx, 9) & REMOTE_IRR);
        kernel.meanwhile = edge_then_level;
        reg_write(rig, rig->ctx, 0x10 + 16, 0x38);
        for (unsigned i = 0; i < 2; i++) {
            cr_assert_eq(pthread_join(blocked[i].thread, NULL), 0);
        }
        cr_assert_eq(entry_read(rig, rig->ctx, 9) & REMOTE_IRR, 0);
        tear_down(rig);
    }
}

Test(ioapic_routes, deliveries_and_updates_go_on_in_every_lock_mode, .timeout = 120)
{
    for (enum bb_lock_mode mode = BB_LOCK_FREE; mode <= BB_LOCK_BIG; mode++) {
        struct kernel kernel = {0};
        struct rig *rig = set_up_kernel_in_mode(&kernel, mode);

        entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
        raise_pin(rig, 9);
        cr_assert_eq(bb_mmio_write(rig->ctx, rig->space, IOAPIC_BASE + EOIR, 4, 0x39), BB_OK);
        cr_assert_eq(delivered(rig, 0x39), 2, "mode %d", (int)mode);
        entry_write(rig, rig->ctx, 8, 0x38);
        pulse_pin(rig, 8);
        cr_assert_eq(delivered(rig, 0x38), 1, "mode %d", (int)mode);
        tear_down(rig);
    }
}

Test(ioapic_routes, an_unchanged_entry_is_not_installed_again)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    unsigned installs = kernel.installs;
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x39);
    cr_assert_eq(kernel.installs, installs);
    tear_down(rig);
}

Test(ioapic_routes, a_failed_install_leaves_the_pin_masked_and_is_reported_once)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);

    entry_write(rig, rig->ctx, 9, LEVEL | 0x39);
    entry_write(rig, rig->ctx, 8, 0x38);
    raise_pin(rig, 9);
    kernel.result = BB_E_SYSTEM;
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x3a);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | MASKED | REMOTE_IRR | 0x39,
                 "as the table in force has it, but masked");
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x3b);
    cr_assert_eq(kernel.failures_reported, 1);
    cr_assert_eq(bb_ioapic_stats(rig->ioapic).routes_failed, 2);
    pulse_pin(rig, 8);
    cr_assert_eq(delivered(rig, 0x38), 1, "a pin that should not have changed goes on");
    bb_ioapic_eoi(rig->ctx, rig->ioapic, 0x39);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | MASKED | 0x39, "its EOI is still reported");

    kernel.result = BB_OK;
    reg_write(rig, rig->ctx, 0x10, MASKED | 0x10);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | REMOTE_IRR | 0x3b,
                 "the next update makes good for it");
    cr_assert_eq(delivered(rig, 0x3b), 1);
    tear_down(rig);
}

/* Two vCPUs write one entry: bit 7 says who, bits 0 to 6 count. */
struct writer {
    struct rig *rig;
    uint32_t *completed; /* (a) of both: their writes that have returned */
    unsigned self;
    uint64_t until_ns;
    const char *wrong; /* the claim that was broken */
};

static void *write_entry(void *opaque)
{
    struct writer *writer = opaque;
    struct rig *rig = writer->rig;
    uint32_t *theirs = &writer->completed[1 - writer->self];
    struct bb_ctx *ctx;
    uint64_t value;

    if (bb_ctx_attach(rig->engine, "writer", &ctx, NULL) != BB_OK) {
        writer->wrong = "no context";
        return NULL;
    }
    for (uint32_t n = 1; writer->wrong == NULL && host_ns() < writer->until_ns; n++) {
        uint32_t before = bb_load_acquire(theirs);
        uint64_t mine = MASKED | writer->self << 7 | (n & 0x7f);

        (void)bb_mmio_write(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, mine);
        (void)bb_mmio_read(ctx, rig->space, IOAPIC_BASE + IOWIN, 4, &value);
        uint32_t after = bb_load_acquire(theirs);
        if ((value >> 7 & 1) == writer->self) {
            if (value != mine) {
                writer->wrong = "an older write of one's own is in force after a newer returned";
            }
        } else if (after + 1 - before < 0x7f &&
                   ((value - (before + 1)) & 0x7f) > after + 1 - (before + 1)) {
            writer->wrong = "a write that returned before this one began is in force after it";
        }
        bb_store_release(&writer->completed[writer->self], n);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(ioapic_routes, racing_writers_find_their_own_or_a_newer_version_in_force, .timeout = 120)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);
    uint32_t completed[2] = {0, 0};
    struct writer writers[2];
    pthread_t threads[2];

    (void)reg_read(rig, rig->ctx, 0x10 + 18); /* leaves it selected */
    for (unsigned i = 0; i < 2; i++) {
        writers[i] = (struct writer){
            .rig = rig, .completed = completed, .self = i, .until_ns = host_ns() + stress_ns()};
        cr_assert_eq(pthread_create(&threads[i], NULL, write_entry, &writers[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_null(writers[i].wrong, "writer %u: %s", i, writers[i].wrong);
        cr_assert_gt(completed[i], 0);
    }
    cr_assert_eq(kernel.overlapped, 0, "installs follow one another");
    cr_assert_leq(kernel.installs, completed[0] + completed[1]);
    tear_down(rig);
}

/* One vCPU toggles trigger mode and mask, a source toggles, a local APIC ends: nothing may stick.
 * As in the kernel, an EOI is only reported where the table has the vector as a level. */
struct storm {
    struct rig *rig;
    struct kernel *kernel;
    uint64_t until_ns;
    uint64_t seed;
    uint32_t pending; /* (a) messages whose end is due */
    uint32_t stop;    /* (a) */
};

static void storm_delivered(struct rig *rig, struct bb_ctx *ctx, uint8_t vector)
{
    struct storm *storm = rig->user;

    (void)ctx;
    (void)vector;
    (void)bb_fetch_add_acq_rel(&storm->pending, 1);
}

static void *storm_source(void *opaque)
{
    struct storm *storm = opaque;
    struct bb_ctx *ctx;
    uint64_t state = storm->seed;

    if (bb_ctx_attach(storm->rig->engine, "source", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (bb_load_relaxed(&storm->stop) == 0) {
        bb_source_set(ctx, storm->rig->source[9][0], next_random(&state) & 1);
    }
    bb_source_set(ctx, storm->rig->source[9][0], false);
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

static void *storm_local_apic(void *opaque)
{
    struct storm *storm = opaque;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(storm->rig->engine, "apic", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    for (;;) {
        bool stop = bb_load_acquire(&storm->stop) == 2;
        if (bb_load_acquire(&storm->pending) != 0) {
            (void)bb_fetch_sub_acq_rel(&storm->pending, 1);
            bb_ioapic_eoi(ctx, storm->rig->ioapic, 0x39);
        } else if (stop) {
            break;
        }
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(ioapic_routes, masking_and_unmasking_under_a_storm_leaves_nothing_in_service, .timeout = 120)
{
    struct kernel kernel = {0};
    struct rig *rig = set_up_kernel(&kernel);
    struct storm storm = {.rig = rig, .kernel = &kernel, .seed = seed(3)};
    pthread_t source, apic;
    uint64_t until_ns = host_ns() + stress_ns();
    uint64_t state = storm.seed + 1;

    rig->user = &storm;
    rig->delivered = storm_delivered;
    cr_assert_eq(pthread_create(&source, NULL, storm_source, &storm), 0);
    cr_assert_eq(pthread_create(&apic, NULL, storm_local_apic, &storm), 0);
    while (host_ns() < until_ns) {
        uint64_t masked = next_random(&state) & 1 ? MASKED : 0;
        reg_write(rig, rig->ctx, 0x10 + 18, (uint32_t)(LEVEL | masked | 0x39));
    }
    reg_write(rig, rig->ctx, 0x10 + 18, LEVEL | 0x39);
    bb_store_release(&storm.stop, 1);
    cr_assert_eq(pthread_join(source, NULL), 0);
    bb_store_release(&storm.stop, 2);
    cr_assert_eq(pthread_join(apic, NULL), 0);
    cr_assert_eq(entry_read(rig, rig->ctx, 9), LEVEL | 0x39, "seed %llu",
                 (unsigned long long)storm.seed);
    cr_assert_gt(delivered(rig, 0x39), 0);
    tear_down(rig);
}
