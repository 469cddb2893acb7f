/* SPDX-License-Identifier: MIT */
/*
 * One thread gives the page behind an address to others and takes it back: it changes the table,
 * invalidates, waits, and poisons the old page. Others read and write at that address all the time,
 * from threads of their own and from inside a device. Nobody may read poison, and nobody may write
 * into a page that was taken back.
 */
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "smmu.h"

TestSuite(engine_iommu, .init = smmu_begin, .fini = smmu_end, .timeout = 300);

enum {
    POOL_FIRST = 1,
    POOL_PAGES = 6,
    PAGE_WORDS = PAGE / 8,
    THREADS_MAX = 16,
    BURST = 8,
    ROUNDS_MIN = 20
};

#define POISON UINT64_C(0xdeaddeaddeaddead)

static struct torture {
    uint32_t stop; /* (a) */
    uint64_t bad;  /* (a) what was read, or found written; 0: nothing */
    uint64_t reads, writes, errors;
    unsigned done; /* (a) of an invalidation */
} torture;

static int burst(struct bb_ctx *ctx, unsigned at, bool write)
{
    uint64_t word[BURST];
    bb_gpa_t gpa = at % (PAGE_WORDS - BURST) * 8;

    if (write) {
        for (unsigned i = 0; i < BURST; i++) {
            word[i] = at;
        }
        return bb_dma_write(ctx, bus, gpa, word, sizeof(word), master(1), NULL);
    }
    int result = at % 3 == 0 ? bb_access_read(ctx, bus, gpa, word, sizeof(word), master(1))
                             : bb_dma_read(ctx, bus, gpa, word, sizeof(word), master(1), NULL);
    for (unsigned i = 0; i < BURST && result == BB_OK; i++) {
        if (word[i] == POISON) {
            bb_store_relaxed(&torture.bad, POISON); /* looked at when all have ended */
        }
    }
    return result;
}

static int burst_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    (void)probe, (void)offset, (void)size;
    *value = 0;
    return burst(ctx, 3 * (unsigned)(offset + 1), false);
}

static int burst_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)probe, (void)offset, (void)size;
    return burst(ctx, (unsigned)value, true);
}

static void masters(struct bb_ctx *ctx, void *arg)
{
    unsigned at = (unsigned)(uintptr_t)arg;
    uint64_t reads = 0, writes = 0, errors = 0, value;

    while (bb_load_acquire(&torture.stop) == 0) { /* pairs with the test's store */
        int result;

        at = at * 1103515245 + 12345;
        switch (at >> 16 & 3) {
        case 0:
            result = burst(ctx, at >> 8, true);
            writes++;
            break;
        case 1:
            result = bb_mmio_write(ctx, machine.mmio, DEVICE_GPA(0), 4, at >> 8);
            writes++;
            break;
        case 2:
            result = bb_mmio_read(ctx, machine.mmio, DEVICE_GPA(0) + (at >> 8 & 0x3c), 4, &value);
            reads++;
            break;
        default:
            result = burst(ctx, at >> 8, false);
            reads++;
            break;
        }
        errors += result != BB_OK;
    }
    (void)bb_fetch_add_relaxed(&torture.reads, reads); /* counters, read after joining */
    (void)bb_fetch_add_relaxed(&torture.writes, writes);
    (void)bb_fetch_add_relaxed(&torture.errors, errors);
}

static void invalidated(void *opaque)
{
    (void)opaque;
    bb_store_release(&torture.done, 1); /* pairs with take_back() */
}

/* Every word of the page is still poison, and is now `value`. */
static void page_give(bb_gpa_t page, uint64_t value)
{
    static uint64_t word[PAGE_WORDS];

    cr_assert_eq(bb_dma_read(machine.ctx, machine.mmio, page, word, PAGE, nobody, NULL), BB_OK);
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        if (word[i] != POISON) {
            bb_store_relaxed(&torture.bad, word[i]);
        }
        word[i] = value;
    }
    cr_assert_eq(bb_dma_write(machine.ctx, machine.mmio, page, word, PAGE, nobody, NULL), BB_OK);
}

static void page_poison(bb_gpa_t page)
{
    static uint64_t word[PAGE_WORDS];

    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        word[i] = POISON;
    }
    cr_assert_eq(bb_dma_write(machine.ctx, machine.mmio, page, word, PAGE, nobody, NULL), BB_OK);
}

/* Until no access uses what the table said before. */
static void take_back(bool wait)
{
    struct bb_error err = {0};

    if (wait) {
        cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, smmu.region, 0, PAGE - 1, &err), BB_OK,
                     "%s", err.text);
        return;
    }
    bb_store_relaxed(&torture.done, 0); /* nobody writes it now */
    cr_assert_eq(
        bb_iommu_invalidate(machine.ctx, smmu.region, 0, PAGE - 1, invalidated, NULL, &err), BB_OK,
        "%s", err.text);
    while (bb_load_acquire(&torture.done) == 0) { /* pairs with invalidated() */
        sched_yield();
    }
}

Test(engine_iommu, a_page_that_was_taken_back_is_neither_read_nor_written)
{
    static struct worker worker[THREADS_MAX];
    static struct probe probe;
    unsigned threads = stress_threads(3);
    uint64_t rounds = 0;

    threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    memset(&torture, 0, sizeof(torture));
    memset(&probe, 0, sizeof(probe));
    probe.read = burst_read;
    probe.write = burst_write;
    probe_make(&machine, &probe, "master", 0, BB_CLASS_LOCKFREE);
    for (unsigned i = 0; i < POOL_PAGES; i++) {
        page_poison((POOL_FIRST + i) * PAGE);
    }
    page_give(POOL_FIRST * PAGE, 1);
    page_set(1, 0, POOL_FIRST * PAGE | MAPPED);
    for (unsigned i = 0; i < threads; i++) {
        worker_start(&worker[i], &machine, "master", masters, (void *)(uintptr_t)(i + 1));
    }
    for (uint64_t until = host_ns() + stress_seconds() * UINT64_C(1000000000);
         (host_ns() < until || rounds < ROUNDS_MIN) && bb_load_relaxed(&torture.bad) == 0;
         rounds++) {
        bb_gpa_t old = (POOL_FIRST + rounds % POOL_PAGES) * PAGE;
        bb_gpa_t fresh = (POOL_FIRST + (rounds + 1) % POOL_PAGES) * PAGE;

        page_give(fresh, rounds + 2);
        page_set(1, 0, fresh | MAPPED);
        take_back(rounds % 2 == 0);
        page_poison(old);
    }
    bb_store_release(&torture.stop, 1); /* pairs with masters() */
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&worker[i]);
    }
    cr_assert_eq(torture.bad, 0, "after %" PRIu64 " rounds: 0x%" PRIx64, rounds, torture.bad);
    cr_assert_eq(torture.errors, 0, "%" PRIu64 " of %" PRIu64 " accesses failed", torture.errors,
                 torture.reads + torture.writes);
    cr_assert(torture.reads > 100 && torture.writes > 100,
              "%" PRIu64 " rounds, %" PRIu64 " reads, %" PRIu64 " writes", rounds, torture.reads,
              torture.writes);
    probe_drop(&probe);
}
