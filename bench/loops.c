/* SPDX-License-Identifier: MIT */
/*
 * The measured loops. Each is one batch; a loop and its control differ in the call alone. The
 * callback's address comes from memory that the compiler knows nothing about.
 */
#include <time.h>

#include "bench.h"

/* Makes a value count as used. */
static inline void use(uint64_t value)
{
    __asm__ __volatile__("" : : "r"(value));
}

uint64_t bench_loop_direct(struct bb_ctx *ctx, const struct bench_access *access, unsigned count)
{
    bench_read_fn *read = access->read;
    void *opaque = access->opaque;
    uint64_t offset = access->offset, value = 0;
    unsigned size = access->size;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        (void)read(ctx, opaque, offset, size, &value);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_engine(struct bb_ctx *ctx, const struct bench_access *access, unsigned count)
{
    struct bb_space *space = access->space;
    bb_gpa_t gpa = access->gpa;
    uint64_t value = 0;
    unsigned size = access->size;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        (void)bb_mmio_read(ctx, space, gpa, size, &value);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_direct_turns(struct bb_ctx *ctx, const struct bench_access *access,
                                 unsigned turns, unsigned count)
{
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0, turn = 0; i < count; i++) {
        const struct bench_access *one = &access[turn];

        (void)one->read(ctx, one->opaque, one->offset, one->size, &value);
        use(value);
        turn = turn + 1 == turns ? 0 : turn + 1;
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_engine_turns(struct bb_ctx *ctx, const struct bench_access *access,
                                 unsigned turns, unsigned count)
{
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0, turn = 0; i < count; i++) {
        const struct bench_access *one = &access[turn];

        (void)bb_mmio_read(ctx, one->space, one->gpa, one->size, &value);
        use(value);
        turn = turn + 1 == turns ? 0 : turn + 1;
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_direct_field(struct bb_ctx *ctx, const struct bench_machine *machine,
                                 const uint16_t *order, unsigned length, unsigned count)
{
    bench_read_fn *volatile opaque_read = bench_target_read;
    bench_read_fn *read = opaque_read;
    struct bench_target *field = &machine->targets[BENCH_FIELD_0];
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        (void)read(ctx, &field[order[i & (length - 1)]], 0, 4, &value);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_engine_field(struct bb_ctx *ctx, const struct bench_machine *machine,
                                 const uint16_t *order, unsigned length, unsigned count)
{
    struct bb_space *space = machine->mmio;
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        (void)bb_mmio_read(
            ctx, space, BENCH_FIELD_GPA + order[i & (length - 1)] * BENCH_FIELD_STRIDE, 4, &value);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

static __attribute__((noinline)) int clock_read(struct bb_ctx *ctx, void *opaque, uint64_t offset,
                                                unsigned size, uint64_t *value)
{
    struct timespec now;

    (void)ctx;
    (void)opaque;
    (void)offset;
    (void)size;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    *value = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return BB_OK;
}

uint64_t bench_loop_clock(struct bb_ctx *ctx, unsigned count)
{
    bench_read_fn *volatile opaque_read = clock_read;
    bench_read_fn *read = opaque_read;
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        (void)read(ctx, NULL, 0, 8, &value);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_mutex_direct(pthread_mutex_t *mutex, struct bb_ctx *ctx,
                                 const struct bench_access *access, unsigned count)
{
    bench_read_fn *read = access->read;
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        pthread_mutex_lock(mutex);
        (void)read(ctx, access->opaque, access->offset, access->size, &value);
        pthread_mutex_unlock(mutex);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

uint64_t bench_loop_mutex_clock(pthread_mutex_t *mutex, struct bb_ctx *ctx, unsigned count)
{
    bench_read_fn *volatile opaque_read = clock_read;
    bench_read_fn *read = opaque_read;
    uint64_t value = 0;
    uint64_t begin_ns = bench_now_ns();

    for (unsigned i = 0; i < count; i++) {
        pthread_mutex_lock(mutex);
        (void)read(ctx, NULL, 0, 8, &value);
        pthread_mutex_unlock(mutex);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}

/* A bus of eight devices, as of a small monitor. */
enum { BUS_DEVICES = 8 };

static unsigned bus_find(const bb_gpa_t *base, bb_gpa_t gpa)
{
    unsigned low = 0, high = BUS_DEVICES;

    while (high - low > 1) {
        unsigned middle = (low + high) / 2;

        if (gpa < base[middle]) {
            high = middle;
        } else {
            low = middle;
        }
    }
    return low;
}

uint64_t bench_loop_rwlock(pthread_rwlock_t *lock, struct bb_ctx *ctx,
                           const struct bench_access *access, unsigned count)
{
    static const bb_gpa_t base[BUS_DEVICES] = {0x20,       0x60,       0xa0,       0x3f8,
                                               0xe0000000, 0xfec00000, 0xfed00000, 0xfee00000};
    bench_read_fn *read[BUS_DEVICES];
    bb_gpa_t gpa = access->gpa;
    uint64_t value = 0;
    uint64_t begin_ns;

    for (unsigned i = 0; i < BUS_DEVICES; i++) {
        read[i] = access->read;
    }
    begin_ns = bench_now_ns();
    for (unsigned i = 0; i < count; i++) {
        pthread_rwlock_rdlock(lock);
        __asm__ __volatile__("" : "+r"(gpa)); /* looked up anew each time */
        (void)read[bus_find(base, gpa)](ctx, access->opaque, access->offset, access->size, &value);
        pthread_rwlock_unlock(lock);
        use(value);
    }
    return bench_now_ns() - begin_ns;
}
