/* SPDX-License-Identifier: MIT */
/* Random accesses, time and threads over all the small devices: no harm, and they still work. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

static const struct {
    unsigned first;
    unsigned count;
} ranges[] = {{0x40, 4}, {0x60, 2}, {0x64, 1}, {0x70, 2}, {0xf4, 4}, {0x510, 2}, {0xcf8, 8}};

static void access_one(struct rig *rig, struct bb_ctx *ctx, uint64_t r)
{
    size_t range = (r >> 8) % BB_ARRAY_LEN(ranges);
    unsigned port = ranges[range].first + (unsigned)((r >> 16) % ranges[range].count);
    unsigned size = 1u << (r >> 24 & 3);
    uint64_t value;

    if (r & 1) {
        (void)bb_mmio_read(ctx, rig->ports, port, size, &value);
    } else {
        (void)bb_mmio_write(ctx, rig->ports, port, size, r >> 32);
    }
}

static void expect_alive(struct rig *rig, uint64_t began)
{
    uint32_t exits = rig->exits;

    outb(rig, 0xf4, 7);
    cr_assert_eq(rig->exits, exits + 1, "seed %llu", (unsigned long long)began);
    out_sized(rig, 0x510, 2, 5);
    cr_assert_eq(inb(rig, 0x511), CPUS);
    out_sized(rig, 0xcf8, 4, 0x80000000);
    cr_assert_eq(in_sized(rig, 0xcfc, 4), 0x12378086);
    outb(rig, 0x64, 0xaa);
    cr_assert_eq(inb(rig, 0x60), 0x55);
    outb(rig, 0x70, 0x0d);
    cr_assert_eq(inb(rig, 0x71), 0x80);
    outb(rig, 0x61, 0x01);
    outb(rig, 0x43, 0xb0);
    outb(rig, 0x42, 0x10);
    outb(rig, 0x42, 0x00);
    cr_assert_eq(inb(rig, 0x61) & 0x20, 0x00, "seed %llu", (unsigned long long)began);
    step_ns(rig, 1000000);
    cr_assert_eq(inb(rig, 0x61) & 0x20, 0x20);
}

Test(misc_fuzz, half_a_million_random_accesses_do_no_harm, .timeout = 120)
{
    struct rig *rig = set_up();
    uint64_t state = seed(10);
    uint64_t began = state;

    map_fw_cfg(rig);
    for (unsigned i = 0; i < 500000; i++) {
        access_one(rig, rig->ctx, next_random(&state));
        if (i % 64 == 0) {
            step_ns(rig, next_random(&state) % 1000000);
        }
    }
    expect_alive(rig, began);
    tear_down(rig);
}

struct fuzzer {
    struct rig *rig;
    uint64_t seed;
    uint64_t until_ns;
};

static void *fuzz(void *opaque)
{
    struct fuzzer *fuzzer = opaque;
    uint64_t state = fuzzer->seed;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(fuzzer->rig->engine, "fuzzer", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    do {
        for (unsigned i = 0; i < 64; i++) {
            access_one(fuzzer->rig, ctx, next_random(&state));
        }
    } while (host_ns() < fuzzer->until_ns);
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(misc_fuzz, three_threads_of_random_accesses_do_no_harm, .timeout = 120)
{
    struct rig *rig = set_up();
    struct fuzzer fuzzers[3];
    pthread_t threads[3];

    map_fw_cfg(rig);
    for (unsigned i = 0; i < 3; i++) {
        fuzzers[i] = (struct fuzzer){rig, seed(11) + i, host_ns() + stress_ns()};
        cr_assert_eq(pthread_create(&threads[i], NULL, fuzz, &fuzzers[i]), 0);
    }
    while (host_ns() < fuzzers[0].until_ns) {
        step_ns(rig, 12345);
    }
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    expect_alive(rig, seed(11));
    tear_down(rig);
}
