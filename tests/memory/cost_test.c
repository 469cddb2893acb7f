/* SPDX-License-Identifier: MIT */
/*
 * The cost of a change in a large map: what it copies, which is exact, and how long it takes, by
 * its median, against the goal. A sanitizer's build makes the changes and judges no time.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdlib.h>

#include "fixture.h"

#if BB_TSAN || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

enum { MAPPED = 10000, CHANGES = 2000, GOAL_NS = 20000 };

static struct fixture fixture;
static struct bb_space *space;
static struct bb_region *mapped[MAPPED];
static struct bb_region *changed;

/* This thread's own time: other processes, and waits for grace periods, are no part of what a
 * change costs. */
static uint64_t cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bb_gpa_t mapped_gpa(unsigned i)
{
    return 0x100000000 + (bb_gpa_t)i * 0x3000;
}

static void begin(void)
{
    struct bb_error err = {0};
    struct bb_txn *txn;

    fixture_begin(&fixture);
    space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    changed = fixture_region(&fixture, "changed", 0x1000, 1);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    for (unsigned i = 0; i < MAPPED; i++) {
        mapped[i] = fixture_region(&fixture, "mapped", 0x1000, 2);
        cr_assert_eq(bb_txn_map(txn, space, mapped_gpa(i), mapped[i], &err), BB_OK);
    }
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static void end(void)
{
    cr_assert_eq(bb_regions_retire_(fixture.ctx, mapped, MAPPED, NULL), BB_OK);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    for (unsigned i = 0; i < MAPPED; i++) {
        bb_region_free_(fixture.memory.heap, mapped[i]);
    }
    fixture_remove(&fixture, changed);
    fixture_end(&fixture);
}

TestSuite(cost, .init = begin, .fini = end);

static void change_once(unsigned i)
{
    cr_assert_eq(bb_space_map(fixture.ctx, space, mapped_gpa(i) + 0x1000, changed, NULL), BB_OK);
    cr_assert_eq(bb_space_unmap(fixture.ctx, changed, NULL), BB_OK);
}

static int by_value(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

Test(cost, a_change_in_a_map_of_10000_replaces_one_path)
{
    struct test_random random;
    uint64_t seed = test_random_begin(&random);

    fixture_settled_bytes(&fixture);
    bb_section_enter_(fixture.ctx); /* nothing that is deferred can go */
    for (unsigned i = 0; i < CHANGES; i++) {
        uint64_t before = bb_rcu_stats(fixture.ctx).deferred_bytes;
        unsigned which = test_random_below(&random, MAPPED);
        change_once(which);
        /*
         * Two roots, the leaf, and twice the nodes on the way to it: places of 12 KiB in 120 MiB
         * differ on three levels, in slots of 16 MiB, 256 KiB and 4 KiB.
         */
        uint64_t bound = 2 * (sizeof(struct bb_root_) + sizeof(struct bb_view_)) +
                         sizeof(struct bb_flat_) + 2 * 3 * sizeof(struct bb_node_);
        cr_assert_leq(bb_rcu_stats(fixture.ctx).deferred_bytes - before, bound,
                      "region %u, seed %" PRIu64, which, seed);
    }
    bb_section_leave_(fixture.ctx);
    bb_rcu_throttle_(fixture.ctx);
}

Test(cost, a_region_is_added_to_a_map_of_10000_and_removed_within_20_us)
{
    static uint64_t add_ns[CHANGES], remove_ns[CHANGES];
    struct test_random random;

    test_random_begin(&random);
    for (unsigned i = 0; i < CHANGES; i++) {
        bb_gpa_t gpa = mapped_gpa(test_random_below(&random, MAPPED)) + 0x1000;
        uint64_t begin_ns = test_now_ns();
        int added = bb_space_map(fixture.ctx, space, gpa, changed, NULL);
        uint64_t middle_ns = test_now_ns();
        int removed = bb_space_unmap(fixture.ctx, changed, NULL);
        remove_ns[i] = test_now_ns() - middle_ns;
        add_ns[i] = middle_ns - begin_ns;
        cr_assert(added == BB_OK && removed == BB_OK);
    }
    qsort(add_ns, CHANGES, sizeof(add_ns[0]), by_value);
    qsort(remove_ns, CHANGES, sizeof(remove_ns[0]), by_value);
    cr_log_info("added in %" PRIu64 " ns, removed in %" PRIu64 " ns (medians of %d)",
                add_ns[CHANGES / 2], remove_ns[CHANGES / 2], CHANGES);
    if (!SANITIZED) {
        cr_assert_leq(add_ns[CHANGES / 2], GOAL_NS);
        cr_assert_leq(remove_ns[CHANGES / 2], GOAL_NS);
    }
}

enum { TOP_BRIDGES = 10, UNDER_EACH = 29, BRIDGES = TOP_BRIDGES * (1 + UNDER_EACH), BARS = 2000 };

/*
 * What a guest makes of a large PCI topology: the bus behind each bridge is a container, of which
 * the bus before it shows the bridge's window through an alias; every BAR is a region on one of the
 * lower buses. Each change is a commit of its own, as the guest makes them one by one. It is alone
 * in its space: beside the 10 000 regions of the other a cost that follows the whole space would be
 * much the same for a part of the topology as for all of it.
 */
static struct bb_space *pci;

struct topology {
    struct bb_region *part[2 * BRIDGES + BARS]; /* in the order in which they were made */
    unsigned count;
};

static const uint64_t TOP_BYTES = UINT64_C(1) << 30, WINDOW_BYTES = UINT64_C(1) << 24;
static const bb_gpa_t TOPOLOGY_GPA = UINT64_C(1) << 40;

static struct bb_region *add_bridge(struct topology *topology, struct bb_region *above,
                                    bb_gpa_t base, uint64_t bytes)
{
    struct bb_region *bus, *window;
    struct bb_alias_config config = {.name = "window", .offset = base, .size_bytes = bytes};

    cr_assert_eq(bb_container_create(fixture.ctx, "bus", BB_SIZE_ALL, &bus, NULL), BB_OK);
    config.target = bus;
    cr_assert_eq(bb_alias_create(fixture.ctx, &config, &window, NULL), BB_OK);
    cr_assert_eq(bb_region_place(fixture.ctx, above, base, window, 0, NULL), BB_OK);
    topology->part[topology->count++] = bus;
    topology->part[topology->count++] = window;
    return bus;
}

static uint64_t build(struct topology *topology, unsigned tops, unsigned bars)
{
    static struct bb_region *lower[TOP_BRIDGES * UNDER_EACH];
    unsigned buses = tops * UNDER_EACH;
    uint64_t begin_ns = cpu_ns();

    topology->count = 0;
    for (unsigned i = 0; i < tops; i++) {
        bb_gpa_t base = TOPOLOGY_GPA + i * TOP_BYTES;
        struct bb_region *top = add_bridge(topology, bb_space_root(pci), base, TOP_BYTES);
        for (unsigned j = 0; j < UNDER_EACH; j++) {
            lower[i * UNDER_EACH + j] =
                add_bridge(topology, top, base + j * WINDOW_BYTES, WINDOW_BYTES);
        }
    }
    for (unsigned i = 0; i < bars; i++) {
        unsigned bus = i % buses;
        bb_gpa_t gpa = TOPOLOGY_GPA + bus / UNDER_EACH * TOP_BYTES +
                       bus % UNDER_EACH * WINDOW_BYTES + i / buses * UINT64_C(0x2000);
        struct bb_region *bar = fixture_region(&fixture, "bar", 0x1000, 3);
        topology->part[topology->count++] = bar;
        cr_assert_eq(bb_region_place(fixture.ctx, lower[bus], gpa, bar, 0, NULL), BB_OK);
    }
    return cpu_ns() - begin_ns;
}

static void demolish(struct topology *topology)
{
    cr_assert_eq(bb_regions_retire_(fixture.ctx, topology->part, topology->count, NULL), BB_OK);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    while (topology->count > 0) {
        bb_region_free_(fixture.memory.heap, topology->part[--topology->count]);
    }
}

Test(cost, a_topology_of_300_bridges_and_2000_bars_costs_nearly_as_its_size)
{
    enum { FRACTION = 5 };
    static struct topology topology;
    uint64_t small_ns = UINT64_MAX, large_ns = UINT64_MAX;

    pci = fixture_space(&fixture, "pci", BB_SPACE_MMIO, 0);
    for (int i = 0; i < 3; i++) {
        uint64_t ns = build(&topology, TOP_BRIDGES / FRACTION, BARS / FRACTION);
        small_ns = ns < small_ns ? ns : small_ns;
        demolish(&topology);
        ns = build(&topology, TOP_BRIDGES, BARS);
        large_ns = ns < large_ns ? ns : large_ns;
        cr_assert_not_null(fixture_find(&fixture, pci, TOPOLOGY_GPA + WINDOW_BYTES));
        demolish(&topology);
    }
    cr_log_info("60 bridges and 400 BARs in %" PRIu64 " us, 300 and 2000 in %" PRIu64 " us",
                small_ns / 1000, large_ns / 1000);
    if (!SANITIZED) {
        cr_assert_leq(large_ns, 2 * FRACTION * small_ns,
                      "5 times as many in at most 10 times as long");
    }
}
