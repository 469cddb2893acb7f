/* SPDX-License-Identifier: MIT */
/* Dirty logs: scripted crossings of writers with starts, stops and syncs; and accelerators. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>

#include "dirty_fixture.h"

enum { PAGE = BB_DIRTY_PAGE_BYTES };

TestSuite(dirty_order, .init = dirty_begin, .fini = dirty_end);

/*
 * A writer that looked for clients, and a start or a stop.
 */

static unsigned stage; /* 1: the writer looked, 2: it may go on */
static uint32_t seen;  /* by the writer, before `stage` 1 */
static unsigned wrote; /* set at the end of its section */

static void *write_late(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&dirty_fixture, "writer");

    (void)arg;
    bb_section_enter_(ctx);
    seen = bb_load_relaxed(&dirty_ram->dirty_clients);
    /* Release, pairs with the acquire in the test: `seen`. */
    bb_store_release(&stage, 1u);
    while (bb_load_acquire(&stage) != 2) { /* of the test's own steps */
        sched_yield();
    }
    for (int i = 0; i < 1000; i++) {
        sched_yield();
    }
    bb_ram_store_(bb_region_host(dirty_ram), 8, 0x1234);
    if (seen != 0) {
        bb_dirty_mark_(dirty_ram, 0, 8);
    }
    bb_store_relaxed(&wrote, 1u); /* the grace period orders it */
    bb_section_leave_(ctx);
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

static pthread_t begin_late_write(void)
{
    pthread_t thread;

    cr_assert_eq(pthread_create(&thread, NULL, write_late, NULL), 0);
    while (bb_load_acquire(&stage) != 1) { /* pairs with write_late() */
        sched_yield();
    }
    bb_store_release(&stage, 2u); /* as above */
    return thread;
}

Test(dirty_order, a_stop_waits_for_writers_that_saw_the_client)
{
    struct bb_dirty_client *client = dirty_make_client("one");

    dirty_start(client, dirty_ram);
    pthread_t thread = begin_late_write();
    dirty_stop(client, dirty_ram);
    cr_assert_eq(seen, 1);
    cr_assert_eq(bb_load_relaxed(&wrote), 1, "stop did not wait, and has freed the log");
    pthread_join(thread, NULL);
    dirty_destroy(client);
}

Test(dirty_order, a_start_waits_for_the_data_of_writers_that_saw_no_client)
{
    struct bb_dirty_client *client = dirty_make_client("one");

    pthread_t thread = begin_late_write();
    dirty_start(client, dirty_ram);
    cr_assert_eq(seen, 0);
    cr_assert_eq(bb_load_relaxed(&wrote), 1, "start did not wait");
    cr_assert_eq(bb_ram_load_(bb_region_host(dirty_ram), 8), 0x1234);
    DIRTY_TAKEN(client, -1);
    pthread_join(thread, NULL);
    dirty_destroy(client);
}

/*
 * A sync between a write's data and its mark. The write's store is stopped by making its
 * page read-only.
 */

static uint8_t *trapped;

static void hold_store(int number, siginfo_t *info, void *context)
{
    (void)context;
    if ((uint8_t *)info->si_addr < trapped || (uint8_t *)info->si_addr >= trapped + PAGE) {
        signal(number, SIG_DFL); /* not ours: let it be what it is */
        return;
    }
    bb_store_release(&stage, 1u);          /* as in write_late() */
    while (bb_load_acquire(&stage) != 2) { /* likewise */
        sched_yield();
    }
    (void)mprotect(trapped, PAGE, PROT_READ | PROT_WRITE);
}

static void *write_trapped(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&dirty_fixture, "writer");

    if (fixture_write(ctx, arg, 0, 8, 0x1234) == BB_OK) {
        bb_store_relaxed(&wrote, 1u); /* looked at after joining */
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(dirty_order, a_bit_is_set_after_the_data_and_not_before)
{
    struct bb_dirty_client *client = dirty_make_client("one");
    struct sigaction action = {.sa_sigaction = hold_store, .sa_flags = SA_SIGINFO};
    struct bb_region *region = NULL;
    uint64_t pages = 7;
    pthread_t thread;

    trapped = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(trapped, MAP_FAILED);
    struct bb_ram_config config = {
        .name = "trap", .size_bytes = PAGE, .backing = BB_RAM_EMBEDDER, .host = trapped};
    cr_assert_eq(bb_ram_create(dirty_fixture.ctx, &config, &region, NULL), BB_OK);
    dirty_start(client, region);
    cr_assert_eq(sigaction(SIGSEGV, &action, NULL), 0);
    cr_assert_eq(pthread_create(&thread, NULL, write_trapped, region), 0);
    while (bb_load_acquire(&stage) != 1) { /* pairs with hold_store() */
        sched_yield();
    }
    int first =
        bb_dirty_sync_and_clear(dirty_fixture.ctx, client, region, 0, PAGE, NULL, &pages, NULL);
    bb_store_release(&stage, 2u); /* pairs with hold_store() */
    pthread_join(thread, NULL);
    cr_assert_eq(first, BB_OK);
    cr_assert_eq(pages, 0, "the bit was there before the data");
    cr_assert_eq(bb_load_relaxed(&wrote), 1); /* joined */
    cr_assert_eq(
        bb_dirty_sync_and_clear(dirty_fixture.ctx, client, region, 0, PAGE, NULL, &pages, NULL),
        BB_OK);
    cr_assert_eq(pages, 1);
    dirty_destroy(client);
    fixture_remove(&dirty_fixture, region);
    munmap(trapped, PAGE);
}

/*
 * Accelerators.
 */

struct accelerator {
    unsigned starts, stops, syncs;
    uint32_t clients_at_start;
    uint32_t pins_at_sync;
    uint64_t log; /* a bit for each of its first 64 pages */
    bb_gpa_t first;
    uint64_t offset;
};

static void log_start(void *opaque, const struct bb_range *range)
{
    struct accelerator *a = opaque;

    a->starts++;
    a->first = range->first;
    a->offset = range->offset;
    a->clients_at_start = bb_dirty_clients(range->region);
}

static void log_stop(void *opaque, const struct bb_range *range)
{
    struct accelerator *a = opaque;

    (void)range;
    a->stops++;
}

static void log_sync(struct bb_ctx *ctx, void *opaque, const struct bb_range *range)
{
    struct accelerator *a = opaque;

    a->syncs++;
    a->pins_at_sync = bb_pins_held_(range->region->pins);
    bb_dirty_merge(ctx, range->region, range->offset, &a->log, 64);
    a->log = 0;
}

Test(dirty_order, an_accelerators_log_is_started_merged_and_stopped)
{
    struct bb_dirty_client *one = dirty_make_client("one"), *two = dirty_make_client("two");
    struct bb_space *space = fixture_space(&dirty_fixture, "space", BB_SPACE_MMIO, 0);
    struct bb_listener_ops ops = {
        .log_start = log_start, .log_stop = log_stop, .log_sync = log_sync};
    struct accelerator a = {0};
    struct bb_listener_config config = {
        .name = "accelerator", .space = space, .ops = &ops, .opaque = &a};
    struct bb_listener *listener = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_listener_add(dirty_fixture.ctx, &config, &listener, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_space_map(dirty_fixture.ctx, space, 0x10000, dirty_ram, NULL), BB_OK);
    dirty_start(one, dirty_ram);
    cr_assert_eq(a.starts, 1);
    cr_assert_eq(a.first, 0x10000);
    cr_assert_eq(a.clients_at_start, 1, "the log is open before the accelerator is told");
    dirty_start(two, dirty_ram);
    cr_assert_eq(a.starts, 1);
    a.log = BB_BIT64(0) | BB_BIT64(63);
    dirty_write_at(70 * PAGE, 1);
    DIRTY_TAKEN(one, 0, 63, 70, -1);
    cr_assert_eq(a.syncs, 1);
    cr_assert_eq(a.pins_at_sync, 1, "a removal would not wait for the sync");
    cr_assert_eq(bb_pins_held_(dirty_ram->pins), 0);
    a.log = BB_BIT64(5);
    DIRTY_TAKEN(two, 0, 5, 63, 70, -1);
    DIRTY_TAKEN(one, 5, -1);
    dirty_stop(one, dirty_ram);
    cr_assert_eq(a.stops, 0);
    dirty_destroy(two);
    cr_assert_eq(a.stops, 1);
    cr_assert_eq(a.starts, 1);
    dirty_start(one, dirty_ram);
    dirty_destroy(one);
    cr_assert_eq(a.starts, 2);
    cr_assert_eq(a.stops, 2);
    cr_assert_eq(bb_listener_remove(dirty_fixture.ctx, listener, &err), BB_OK, "%s", err.text);
}
