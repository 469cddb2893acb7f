/* SPDX-License-Identifier: MIT */
/*
 * The storm: threads make, change and remove everything that a map is made of while others access
 * it.
 *
 * What would show a mistake. Every piece of the engine's memory, every device's state and all RAM
 * is filled with poison when it is given back, and kept for a while before it is used again, so
 * that who uses it too late finds poison, and who writes to it spoils it and is found out by that.
 * A callback looks whether its device lives, before and after; a device's end looks whether a
 * callback runs. A value says which window of the map it belongs to and at which offset of a page,
 * so that a reader knows what a right one looks like wherever things are moved. Sanitizers see the
 * same in their own way.
 */
#include "storm.h"

#include <sched.h>
#include <string.h>

#include "../../engine/dma.h"
#include "../../memory/listener.h"
#include "poison.h"

TestSuite(storm, .timeout = 300);

/* Readers. */

/* Maps what is there for a while: memory that is mapped stays what it was, wherever it is by now.
 */
static void map_for_a_while(struct storm *storm, struct bb_ctx *ctx, bb_gpa_t gpa)
{
    struct bb_dma_mapping *mapping;
    uint64_t length = 8;
    int result = bb_dma_map(ctx, storm->machine.mmio, gpa, &length, BB_DMA_FROM_GUEST,
                            (struct bb_attrs){0}, &mapping, NULL);

    if (result == BB_OK) {
        uint64_t *host = bb_dma_host(mapping);

        /* For longer than a grace period, which a removal waits for in any case. */
        for (unsigned i = 0; i < 40; i++) {
            uint64_t value = bb_load_relaxed(host);
            if (!is_value_at(value, gpa)) {
                storm_fail(storm, "a mapping", gpa, value,
                           bb_dma_bounced(mapping) ? "bounced" : "");
            }
            (void)sched_yield();
        }
        result = bb_dma_unmap(ctx, mapping, 0);
    }
    if (result != BB_OK && result != BB_E_DECODE) {
        storm_fail(storm, "a mapping's making or end", gpa, 0, bb_result_name(result));
    }
}

static void read_storm(struct bb_ctx *ctx, void *arg)
{
    struct storm_thread *thread = arg;
    struct storm *storm = thread->storm;
    uint64_t reads = 0;

    while (storm_goes_on(storm)) {
        bb_gpa_t gpa = WINDOWS_GPA + storm_random(thread) % (WINDOWS * WINDOW_BYTES / 8) * 8;
        uint64_t value = 0;
        int result = bb_mmio_read(ctx, storm->machine.mmio, gpa, 8, &value);

        reads++;
        if (result == BB_OK ? !is_value_at(value, gpa)
                            : result != BB_E_DECODE || value != UINT64_MAX) {
            storm_fail(storm, "a read", gpa, value, bb_result_name(result));
        }
        /* What was read is right there whatever is there by now. */
        if (result == BB_OK && reads % 4 == 0) {
            result = bb_mmio_write(ctx, storm->machine.mmio, gpa, 8, value);
            if (result != BB_OK && result != BB_E_DECODE) {
                storm_fail(storm, "a write", gpa, value, bb_result_name(result));
            }
        }
        if (reads % 32 == 0) {
            map_for_a_while(storm, ctx, gpa);
        }
    }
    (void)bb_fetch_add_relaxed(&storm->reads, reads);
}

/* A listener. */

/* What it is told of exists: a name that has been freed is poison. */
static void look_at_range(void *opaque, const struct bb_range *range)
{
    struct storm *storm = opaque;
    const char *name = bb_region_name(range->region);

    if (strncmp(name, "storm-", 6) != 0 && strcmp(name, "ram") != 0) {
        storm_fail(storm, "told of a region that is gone", range->first, (unsigned char)name[0],
                   "");
    }
    (void)bb_fetch_add_relaxed(&storm->told, 1);
}

static const struct bb_listener_ops storm_listener_ops = {.removed = look_at_range,
                                                          .added = look_at_range};

Test(storm, of_regions_made_changed_and_removed_meets_no_reader_with_what_is_gone)
{
    static struct storm storm;
    static struct storm_thread threads[WRITERS + 64];
    static struct worker workers[WRITERS + 64];
    struct bb_engine_config config = {.allocator = &poison_allocator};
    struct bb_listener_config ear = {.name = "ear", .ops = &storm_listener_ops, .opaque = &storm};
    struct bb_listener *listener;
    struct bb_error err = {0};
    unsigned readers = stress_threads(READERS);

    memset(&storm, 0, sizeof(storm));
    pthread_mutex_init(&storm.mutex, NULL);
    storm.seed = host_ns();
    readers = readers > 64 ? 64 : readers;
    machine_make(&storm.machine, &config);
    for (unsigned w = 0; w < WINDOWS; w++) {
        cr_assert_eq(
            bb_container_create(storm.machine.ctx, "window", WINDOW_BYTES, &storm.window[w], &err),
            BB_OK, "%s", err.text);
        cr_assert_eq(bb_space_map(storm.machine.ctx, storm.machine.mmio,
                                  WINDOWS_GPA + (uint64_t)w * WINDOW_BYTES, storm.window[w], &err),
                     BB_OK, "%s", err.text);
    }
    ear.space = storm.machine.mmio;
    cr_assert_eq(bb_listener_add(storm.machine.ctx, &ear, &listener, &err), BB_OK, "%s", err.text);
    for (unsigned i = 0; i < WRITERS + readers; i++) {
        threads[i] =
            (struct storm_thread){.storm = &storm,
                                  .number = i,
                                  .random = (storm.seed + i) * UINT64_C(0x9e3779b97f4a7c15)};
        worker_start(&workers[i], &storm.machine, i < WRITERS ? "writer" : "reader",
                     i < WRITERS ? storm_write : read_storm, &threads[i]);
    }
    uint64_t end = host_ns() + stress_seconds() * UINT64_C(1000000000);
    while (host_ns() < end && bb_load_relaxed(&storm.failed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(storm.machine.ctx), BB_OK);
        bb_engine_count_accesses(storm.machine.ctx, host_ns() / 1000000 % 4 == 0);
    }
    bb_store_relaxed(&storm.stop, 1);
    for (unsigned i = 0; i < WRITERS + readers; i++) {
        worker_join(&workers[i]);
    }
    cr_assert_eq(bb_load_relaxed(&storm.failed), 0, "seed %llu: %s", (unsigned long long)storm.seed,
                 storm.why);
    while (bb_load_acquire(&storm.outstanding) != 0) { /* pairs with thing_end() */
        cr_assert_eq(bb_rcu_synchronize(storm.machine.ctx), BB_OK);
    }
    for (unsigned w = 0; w < WINDOWS; w++) {
        cr_assert_eq(bb_region_remove_wait(storm.machine.ctx, storm.window[w], &err), BB_OK, "%s",
                     err.text);
    }
    cr_assert_eq(bb_listener_remove(storm.machine.ctx, listener, &err), BB_OK, "%s", err.text);
    cr_assert_eq(storm.made, storm.removed);
    cr_assert_gt(storm.told, 20);
    cr_assert_gt(storm.removed, 20);
    cr_assert_gt(storm.changes, 20);
    cr_assert_gt(storm.callbacks, 100);
    cr_assert_gt(storm.reads, 1000);
    machine_drop(&storm.machine); /* every byte came back */
    cr_assert_eq(poison_spoiled(), 0, "seed %llu: bytes written to memory that had been freed",
                 (unsigned long long)storm.seed);
    pthread_mutex_destroy(&storm.mutex);
}
