/* SPDX-License-Identifier: MIT */
/* Counts of accesses by region and context. */
#include "fixture.h"

#include <string.h>

#include "../../engine/dma.h"

static struct machine machine;
static struct probe a, b;

static int refuse_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    (void)ctx, (void)probe, (void)size, (void)value;
    return offset == 8 ? BB_E_DEVICE : BB_OK;
}

static void setup(void)
{
    struct bb_engine_config config = {.clock_mode = BB_CLOCK_MANUAL, .count_accesses = true};

    machine_make(&machine, &config);
    a = (struct probe){.read = refuse_read};
    b = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_MAY_SLEEP);
}

static void teardown(void)
{
    probe_drop(&a);
    probe_drop(&b);
    machine_drop(&machine);
}

TestSuite(counters, .init = setup, .fini = teardown, .timeout = 60);
TestSuite(counters_alone, .timeout = 60);

/* What was counted for a region, by context. */
enum { NAMES = 8 };
struct counted {
    unsigned contexts; /* attached ones that had counted */
    char name[NAMES][32];
    struct bb_region_counts by[NAMES];
    unsigned gone_visits;
    struct bb_region_counts gone;
    struct bb_region_counts sum;
};

static void note(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    struct counted *counted = opaque;

    if (name == NULL) {
        counted->gone_visits++;
        counted->gone = *counts;
    } else if (counted->contexts < NAMES) {
        (void)snprintf(counted->name[counted->contexts], 32, "%s", name);
        counted->by[counted->contexts++] = *counts;
    }
    counted->sum.reads += counts->reads;
    counted->sum.writes += counts->writes;
    counted->sum.refused += counts->refused;
}

static struct counted count(struct machine *of, const struct bb_region *region)
{
    struct counted counted = {0};

    bb_region_counts_each(of->ctx, region, note, &counted);
    return counted;
}

static bool equal(struct bb_region_counts counts, uint64_t reads, uint64_t writes, uint64_t refused)
{
    return counts.reads == reads && counts.writes == writes && counts.refused == refused;
}

Test(counters, tell_reads_writes_and_refusals_of_each_region_apart)
{
    uint64_t value;

    cr_assert_eq(count(&machine, a.region).contexts, 0, "counted before it was accessed");
    for (unsigned i = 0; i < 3; i++) {
        (void)mmio_read(&machine, a.gpa, 4);
        mmio_write(&machine, b.gpa, 4, 0);
    }
    mmio_write(&machine, a.gpa, 2, 0);
    (void)mmio_read(&machine, b.gpa, 8);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, a.gpa + 8, 4, &value), BB_E_DEVICE);
    /* By the rules, which know no unaligned access. */
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, b.gpa + 1, 4, 0), BB_E_DEVICE);

    struct counted of_a = count(&machine, a.region), of_b = count(&machine, b.region);
    cr_assert_eq(of_a.contexts, 1);
    cr_assert_str_eq(of_a.name[0], "main");
    cr_assert(equal(of_a.by[0], 4, 1, 1), "%llu %llu %llu", (unsigned long long)of_a.by[0].reads,
              (unsigned long long)of_a.by[0].writes, (unsigned long long)of_a.by[0].refused);
    cr_assert(equal(of_b.by[0], 1, 4, 1), "%llu %llu %llu", (unsigned long long)of_b.by[0].reads,
              (unsigned long long)of_b.by[0].writes, (unsigned long long)of_b.by[0].refused);
    cr_assert_eq(of_a.gone_visits, 0);
}

Test(counters, count_memory_too)
{
    (void)mmio_read(&machine, 0x100, 8);
    mmio_write(&machine, 0x100, 8, 1);
    mmio_write(&machine, 0x108, 1, 1);
    cr_assert(equal(count(&machine, machine.ram).sum, 1, 2, 0));
}

Test(counters, count_a_split_access_once)
{
    struct probe narrow = {0};
    struct bb_region_config config = {.rules = {.impl_max = 2}};
    uint64_t value;

    probe_make_config(&machine, &narrow, "narrow", 2, &config);
    (void)mmio_read(&machine, narrow.gpa, 8);
    cr_assert_eq(narrow.reads, 4);
    cr_assert(equal(count(&machine, narrow.region).sum, 1, 0, 0));
    /* One that meets a region and, behind it, nothing. */
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, narrow.gpa + DEVICE_BYTES - 2, 4, &value),
                 BB_E_DECODE);
    cr_assert(equal(count(&machine, narrow.region).sum, 2, 0, 0));
    probe_drop(&narrow);
}

static void ten_of_each(struct bb_ctx *ctx, void *arg)
{
    uint64_t value;

    (void)arg;
    for (unsigned i = 0; i < 10; i++) {
        (void)bb_mmio_read(ctx, machine.mmio, a.gpa, 4, &value);
        (void)bb_mmio_write(ctx, machine.mmio, a.gpa, 4, i);
        (void)bb_mmio_read(ctx, machine.mmio, a.gpa + 8, 4, &value);
    }
}

Test(counters, of_a_context_that_is_gone_stay)
{
    struct worker worker;

    (void)mmio_read(&machine, a.gpa, 4);
    for (unsigned i = 1; i <= 3; i++) {
        worker_start(&worker, &machine, "passing", ten_of_each, NULL);
        worker_join(&worker);
        struct counted counted = count(&machine, a.region);
        cr_assert_eq(counted.contexts, 1);
        cr_assert(equal(counted.by[0], 1, 0, 0));
        cr_assert_eq(counted.gone_visits, 1);
        cr_assert(equal(counted.gone, i * 20, i * 10, i * 10));
    }
}

Test(counters, are_kept_only_while_counting_is_on)
{
    bb_engine_count_accesses(machine.ctx, false);
    (void)mmio_read(&machine, a.gpa, 4);
    cr_assert_eq(count(&machine, a.region).contexts, 0);
    bb_engine_count_accesses(machine.ctx, true);
    (void)mmio_read(&machine, a.gpa, 4);
    cr_assert(equal(count(&machine, a.region).sum, 1, 0, 0));
    bb_engine_count_accesses(machine.ctx, false);
    (void)mmio_read(&machine, a.gpa, 4);
    cr_assert(equal(count(&machine, a.region).sum, 1, 0, 0), "what was counted stays");
}

Test(counters_alone, are_off_by_default)
{
    struct probe probe = {0};

    machine_make(&machine, NULL);
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    (void)mmio_read(&machine, probe.gpa, 4);
    cr_assert_eq(count(&machine, probe.region).contexts, 0);
    probe_drop(&probe);
    machine_drop(&machine);
}

Test(counters, survive_a_pause_and_pause_survives_them)
{
    cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
    bb_engine_count_accesses(machine.ctx, false);
    bb_engine_count_accesses(machine.ctx, true);
    cr_assert(bb_engine_paused(machine.engine));
    cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    (void)mmio_read(&machine, a.gpa, 4);
    cr_assert(equal(count(&machine, a.region).sum, 1, 0, 0));
}

Test(counters, begin_anew_for_a_region_that_comes_after_another)
{
    for (unsigned i = 0; i < 200; i++) {
        struct probe probe = {0};

        probe_make(&machine, &probe, "next", 2, BB_CLASS_LOCKFREE);
        cr_assert_eq(count(&machine, probe.region).contexts, 0, "round %u: counted before", i);
        (void)mmio_read(&machine, probe.gpa, 4);
        (void)mmio_read(&machine, probe.gpa, 4);
        mmio_write(&machine, probe.gpa, 4, 0);
        cr_assert(equal(count(&machine, probe.region).sum, 2, 1, 0), "round %u", i);
        probe_drop(&probe);
    }
}

Test(counters, of_a_context_that_is_gone_end_with_their_region)
{
    struct worker worker;

    for (unsigned i = 0; i < 20; i++) {
        worker_start(&worker, &machine, "passing", ten_of_each, NULL);
        worker_join(&worker);
        cr_assert(equal(count(&machine, a.region).gone, 20, 10, 10), "round %u", i);
        probe_drop(&a);
        a = (struct probe){.read = refuse_read};
        probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
        cr_assert_eq(count(&machine, a.region).gone_visits, 0);
    }
}

/* Slots of many chunks, on several levels. */
enum { MANY = 1000 };
#define MANY_GPA UINT64_C(0x80000000)

static void read_many(struct bb_ctx *ctx, void *arg)
{
    uint64_t value;

    (void)arg;
    for (unsigned i = 0; i < MANY; i++) {
        for (unsigned times = 0; times <= i % 5; times++) {
            (void)bb_mmio_read(ctx, machine.mmio, MANY_GPA + i * 0x100, 4, &value);
        }
    }
}

Test(counters, keep_a_thousand_regions_apart)
{
    static struct bb_region *region[MANY];
    static const struct bb_region_ops ops = {0};
    struct worker worker[2];

    for (unsigned i = 0; i < MANY; i++) {
        struct bb_region_config config = {.name = "one", .size_bytes = 16, .ops = &ops};
        cr_assert_eq(bb_device_region_create(machine.ctx, a.device, &config, &region[i], NULL),
                     BB_OK);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, MANY_GPA + i * 0x100, region[i], NULL),
                     BB_OK);
    }
    for (unsigned i = 0; i < 2; i++) {
        worker_start(&worker[i], &machine, "reader", read_many, NULL);
    }
    read_many(machine.ctx, NULL);
    for (unsigned i = 0; i < 2; i++) {
        worker_join(&worker[i]);
    }
    for (unsigned i = 0; i < MANY; i++) {
        struct counted counted = count(&machine, region[i]);
        uint64_t once = i % 5 + 1;

        /* They have no callbacks: each is refused. */
        cr_assert(equal(counted.by[0], once, 0, once), "region %u", i);
        cr_assert(equal(counted.gone, 2 * once, 0, 2 * once), "region %u", i);
    }
}

static unsigned refuse_allocations;

static void *refusing_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    return bb_load_relaxed(&refuse_allocations) != 0
               ? NULL
               : aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void plain_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque, (void)bytes;
    free(memory);
}

Test(counters_alone, miss_what_there_is_no_memory_to_count_and_nothing_else_does)
{
    struct bb_allocator allocator = {refusing_alloc, plain_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator, .count_accesses = true};
    struct probe probe = {0};

    machine_make(&machine, &config);
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    bb_store_relaxed(&refuse_allocations, 1);
    (void)mmio_read(&machine, probe.gpa, 4);
    mmio_write(&machine, probe.gpa, 4, 1);
    cr_assert_eq(probe.reads + probe.writes, 2);
    cr_assert_eq(count(&machine, probe.region).contexts, 0);
    bb_store_relaxed(&refuse_allocations, 0);
    (void)mmio_read(&machine, probe.gpa, 4);
    cr_assert(equal(count(&machine, probe.region).sum, 1, 0, 0));
    probe_drop(&probe);
    machine_drop(&machine);
}

/* Contexts that come, count and go, regions that come and go, and one who looks at all of them. */
struct passing {
    unsigned stop;
    uint64_t made; /* accesses of `a` */
};

static void pass_through(struct bb_ctx *ctx, void *arg)
{
    struct passing *passing = arg;
    uint64_t value;

    while (bb_load_relaxed(&passing->stop) == 0) {
        if (bb_mmio_read(ctx, machine.mmio, a.gpa, 4, &value) != BB_OK) {
            abort();
        }
        (void)bb_fetch_add_relaxed(&passing->made, 1);
    }
}

static void *come_and_go(void *arg)
{
    struct passing *passing = arg;

    while (bb_load_relaxed(&passing->stop) == 0) {
        struct bb_ctx *ctx;
        uint64_t value;

        if (bb_ctx_attach(machine.engine, "passing", &ctx, NULL) != BB_OK) {
            abort();
        }
        for (unsigned i = 0; i < 100; i++) {
            if (bb_mmio_read(ctx, machine.mmio, a.gpa, 4, &value) != BB_OK) {
                abort();
            }
        }
        (void)bb_fetch_add_relaxed(&passing->made, 100);
        if (bb_ctx_detach(ctx, NULL) != BB_OK) {
            abort();
        }
    }
    return NULL;
}

Test(counters, lose_nothing_while_contexts_and_regions_come_and_go)
{
    struct passing passing = {0};
    struct worker worker;
    pthread_t threads[2];
    uint64_t last = 0;

    worker_start(&worker, &machine, "stays", pass_through, &passing);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, come_and_go, &passing), 0);
    }
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(500000000);
    while (host_ns() < end) {
        struct probe probe = {0};
        uint64_t now = count(&machine, a.region).sum.reads;

        cr_assert_geq(now, last, "a count fell");
        last = now;
        probe_make(&machine, &probe, "next", 2, BB_CLASS_LOCKFREE);
        (void)mmio_read(&machine, probe.gpa, 4);
        cr_assert(equal(count(&machine, probe.region).sum, 1, 0, 0));
        probe_drop(&probe);
    }
    bb_store_relaxed(&passing.stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    worker_join(&worker);
    cr_assert_eq(count(&machine, a.region).sum.reads, passing.made);
}

/*
 * A region that is removed in its own callback, by an access that goes on behind it: it is gone
 * before the access counts for it.
 */
static unsigned region_gone;

static void gone(void *opaque)
{
    (void)opaque;
    bb_store_release(&region_gone, 1); /* pairs with wait_until_gone() */
}

static int remove_myself(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)offset, (void)size, (void)value;
    int result = bb_region_remove(ctx, probe->region, gone, NULL, NULL);
    /* Until newcomers are told from who was there before: the removal is at its last wait. */
    for (uint64_t end = host_ns() + 20000000; host_ns() < end;) {
    }
    return result;
}

static int wait_until_gone(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                           uint64_t value)
{
    (void)ctx, (void)probe, (void)offset, (void)size, (void)value;
    uint64_t end = host_ns() + UINT64_C(20000000000);
    while (bb_load_acquire(&region_gone) == 0 && host_ns() < end) { /* pairs with gone() */
    }
    return bb_load_acquire(&region_gone) == 1 ? BB_OK : BB_E_DEVICE;
}

Test(counters, of_an_access_do_not_keep_a_region_that_it_has_left)
{
    struct bb_region_config config = {.klass = BB_CLASS_MAY_SLEEP, .size_bytes = 0x1000};
    struct probe first = {.write = remove_myself}, behind = {.write = wait_until_gone};

    region_gone = 0;
    probe_make_config(&machine, &first, "first", 2, &config);
    probe_make_config(&machine, &behind, "behind", 3, &config);
    mmio_write(&machine, first.gpa + 0xffc, 8, 1);
    cr_assert_eq(behind.writes, 1);
    cr_assert(equal(count(&machine, behind.region).sum, 0, 1, 0));
    probe_drop(&first);
    probe_drop(&behind);
}
