/* SPDX-License-Identifier: MIT */
/*
 * Dirty logs: which bits are set and taken, by whom; what is refused; what accelerators are told.
 * That no write is lost is dirty_torture_test.c's.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "fixture.h"

enum { PAGE = BB_DIRTY_PAGE_BYTES, PAGES = 200, WORDS = 4 };

static struct fixture fixture;
static struct bb_region *ram; /* PAGES long, and may grow to twice that */

static struct bb_region *make_ram(uint64_t pages)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = pages * PAGE, .size_bytes_max = 2 * pages * PAGE};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

static void begin(void)
{
    fixture_begin(&fixture);
    ram = make_ram(PAGES);
}

static void end(void)
{
    if (ram != NULL) {
        fixture_remove(&fixture, ram);
    }
    fixture_end(&fixture);
}

TestSuite(dirty, .init = begin, .fini = end);

static struct bb_dirty_client *make_client(const char *name)
{
    struct bb_dirty_client *client = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_client_create(fixture.ctx, name, &client, &err), BB_OK, "%s", err.text);
    return client;
}

static void destroy(struct bb_dirty_client *client)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_client_destroy(fixture.ctx, client, &err), BB_OK, "%s", err.text);
}

static void start(struct bb_dirty_client *client, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_start(fixture.ctx, client, region, &err), BB_OK, "%s", err.text);
}

static void stop(struct bb_dirty_client *client, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_stop(fixture.ctx, client, region, &err), BB_OK, "%s", err.text);
}

static void write_at(uint64_t offset, unsigned size)
{
    cr_assert_eq(fixture_write(fixture.ctx, ram, offset, size, 1), BB_OK);
}

static uint64_t sync_range(struct bb_dirty_client *client, uint64_t offset, uint64_t length,
                           uint64_t *bitmap)
{
    struct bb_error err = {0};
    uint64_t pages = UINT64_MAX;

    cr_assert_eq(
        bb_dirty_sync_and_clear(fixture.ctx, client, ram, offset, length, bitmap, &pages, &err),
        BB_OK, "%s", err.text);
    return pages;
}

static uint64_t sync_all(struct bb_dirty_client *client, uint64_t bitmap[WORDS])
{
    memset(bitmap, 0, WORDS * sizeof(bitmap[0]));
    return sync_range(client, 0, (uint64_t)PAGES * PAGE, bitmap);
}

/* Exactly these pages, up to the first negative one, were taken. */
static void taken_are(struct bb_dirty_client *client, const int *pages)
{
    uint64_t bitmap[WORDS], wanted[WORDS] = {0}, count = 0;

    for (; pages[count] >= 0; count++) {
        wanted[pages[count] / 64] |= BB_BIT64(pages[count] % 64);
    }
    cr_assert_eq(sync_all(client, bitmap), count);
    cr_assert_eq(memcmp(bitmap, wanted, sizeof(wanted)), 0);
}

#define TAKEN_ARE(client, ...) taken_are(client, (const int[]){__VA_ARGS__})

Test(dirty, a_write_marks_its_pages_and_a_sync_takes_them_once)
{
    struct bb_dirty_client *client = make_client("one");

    write_at(0, 8);
    start(client, ram);
    TAKEN_ARE(client, -1);
    write_at(5 * PAGE + 100, 1);
    write_at(63 * PAGE, 8);
    write_at(64 * PAGE, 8);
    write_at((PAGES - 1) * PAGE + PAGE - 1, 1);
    TAKEN_ARE(client, 5, 63, 64, PAGES - 1, -1);
    TAKEN_ARE(client, -1);
    write_at(5 * PAGE, 2);
    TAKEN_ARE(client, 5, -1);
    stop(client, ram);
    write_at(6 * PAGE, 2);
    start(client, ram);
    TAKEN_ARE(client, -1);
    destroy(client);
}

Test(dirty, an_access_that_crosses_a_page_marks_both)
{
    struct bb_dirty_client *client = make_client("one");

    start(client, ram);
    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned before = 0; before <= size; before++) {
            write_at(64 * PAGE - before, size);
            if (before == 0) {
                TAKEN_ARE(client, 64, -1);
            } else if (before == size) {
                TAKEN_ARE(client, 63, -1);
            } else {
                TAKEN_ARE(client, 63, 64, -1);
            }
        }
    }
    destroy(client);
}

Test(dirty, a_write_that_is_refused_marks_nothing)
{
    struct bb_ram_config config = {.name = "rom", .size_bytes = PAGE, .read_only = true};
    struct bb_dirty_client *client = make_client("one");
    struct bb_region *rom = NULL;
    uint64_t pages = 1, value = 0;

    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &rom, NULL), BB_OK);
    start(client, rom);
    cr_assert_eq(fixture_write(fixture.ctx, rom, 0, 4, 1), BB_E_DEVICE);
    cr_assert_eq(fixture_read(fixture.ctx, rom, 0, 4, &value), BB_OK);
    cr_assert_eq(bb_dirty_sync_and_clear(fixture.ctx, client, rom, 0, PAGE, NULL, &pages, NULL),
                 BB_OK);
    cr_assert_eq(pages, 0);
    destroy(client);
    fixture_remove(&fixture, rom);
}

Test(dirty, each_client_has_bits_of_its_own)
{
    struct bb_dirty_client *one = make_client("one"), *two = make_client("two");

    cr_assert_eq(bb_dirty_clients(ram), 0);
    start(one, ram);
    write_at(1 * PAGE, 1);
    start(two, ram);
    cr_assert_eq(__builtin_popcount(bb_dirty_clients(ram)), 2);
    write_at(2 * PAGE, 1);
    TAKEN_ARE(one, 1, 2, -1);
    TAKEN_ARE(two, 2, -1);
    write_at(3 * PAGE, 1);
    TAKEN_ARE(two, 3, -1);
    stop(two, ram);
    write_at(4 * PAGE, 1);
    TAKEN_ARE(one, 3, 4, -1);
    cr_assert_eq(__builtin_popcount(bb_dirty_clients(ram)), 1);
    destroy(one);
    cr_assert_eq(bb_dirty_clients(ram), 0);
    destroy(two);
}

Test(dirty, a_mark_is_cut_at_the_regions_end)
{
    struct bb_dirty_client *client = make_client("one");
    const uint64_t last = (uint64_t)PAGES * PAGE - 1;

    bb_dirty_mark(fixture.ctx, ram, 0, PAGE); /* nobody logs it */
    start(client, ram);
    bb_dirty_mark(fixture.ctx, ram, last, 1);
    TAKEN_ARE(client, PAGES - 1, -1);
    bb_dirty_mark(fixture.ctx, ram, last - PAGE, UINT64_MAX);
    TAKEN_ARE(client, PAGES - 2, PAGES - 1, -1);
    bb_dirty_mark(fixture.ctx, ram, last + 1, 1);
    bb_dirty_mark(fixture.ctx, ram, UINT64_MAX, UINT64_MAX);
    bb_dirty_mark(fixture.ctx, ram, 0, 0);
    bb_dirty_mark(fixture.ctx, NULL, 0, 1);
    TAKEN_ARE(client, -1);
    bb_dirty_mark(fixture.ctx, ram, 0, UINT64_MAX);
    uint64_t bitmap[WORDS];
    cr_assert_eq(sync_all(client, bitmap), PAGES);
    cr_assert_eq(bitmap[0], UINT64_MAX);
    cr_assert_eq(bitmap[WORDS - 1], bb_mask_low(PAGES % 64));
    destroy(client);
}

Test(dirty, what_a_merge_brings_beyond_the_end_is_dropped)
{
    struct bb_dirty_client *client = make_client("one");
    uint64_t all[2 * WORDS + 1];
    uint64_t bitmap[WORDS];

    memset(all, 0xff, sizeof(all));
    start(client, ram);
    bb_dirty_merge(fixture.ctx, ram, (PAGES - 3) * PAGE + 5, all, sizeof(all) * 8);
    TAKEN_ARE(client, PAGES - 3, PAGES - 2, PAGES - 1, -1);
    bb_dirty_merge(fixture.ctx, ram, (uint64_t)PAGES * 2 * PAGE, all, 64);
    bb_dirty_merge(fixture.ctx, ram, UINT64_MAX, all, 64);
    bb_dirty_merge(fixture.ctx, ram, 0, all, 0);
    bb_dirty_merge(fixture.ctx, ram, 0, NULL, 64);
    bb_dirty_merge(fixture.ctx, NULL, 0, all, 64);
    TAKEN_ARE(client, -1);
    bb_dirty_merge(fixture.ctx, ram, 0, all, PAGES);
    cr_assert_eq(sync_all(client, bitmap), PAGES);
    destroy(client);
}

/*
 * Random ranges against a flag for each page.
 */

static void random_marks(struct test_random *random, bool model[PAGES])
{
    uint64_t bits[WORDS + 1];
    unsigned first = test_random_below(random, PAGES);
    unsigned count = 1 + test_random_below(random, PAGES - first);
    unsigned inside = test_random_below(random, PAGE);

    switch (test_random_below(random, 3)) {
    case 0:
        bb_dirty_mark(fixture.ctx, ram, (uint64_t)first * PAGE + inside,
                      (uint64_t)count * PAGE - inside);
        for (unsigned i = first; i < first + count; i++) {
            model[i] = true;
        }
        break;
    case 1:
        write_at((uint64_t)first * PAGE + (inside & ~7u), 8);
        model[first] = true;
        break;
    default:
        for (unsigned i = 0; i < BB_ARRAY_LEN(bits); i++) {
            bits[i] = test_random_next(random) & test_random_next(random);
        }
        bb_dirty_merge(fixture.ctx, ram, (uint64_t)first * PAGE + inside, bits, count);
        for (unsigned i = 0; i < count; i++) {
            model[first + i] |= (bits[i / 64] >> i % 64 & 1) != 0;
        }
    }
}

Test(dirty, any_range_takes_its_bits_and_leaves_the_others)
{
    enum { CANARY = 2 };
    struct bb_dirty_client *client = make_client("one");
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    bool model[PAGES] = {false};

    start(client, ram);
    for (unsigned step = 0; step < 20000; step++) {
        random_marks(&random, model);
        unsigned first = test_random_below(&random, PAGES);
        unsigned count = 1 + test_random_below(&random, PAGES - first);
        unsigned inside = test_random_below(&random, PAGE);
        uint64_t before = test_random_next(&random) & test_random_next(&random);
        uint64_t bitmap[WORDS + CANARY], pages = 0;
        unsigned words = (count + 63) / 64;

        for (unsigned i = 0; i < BB_ARRAY_LEN(bitmap); i++) {
            bitmap[i] = before;
        }
        uint64_t taken = sync_range(client, (uint64_t)first * PAGE + inside,
                                    (uint64_t)(count - 1) * PAGE + 1, bitmap);
        for (unsigned i = 0; i < words * 64; i++) {
            bool there = (bitmap[i / 64] >> i % 64 & 1) != 0;
            bool was = (before >> i % 64 & 1) != 0;
            bool dirty = i < count && model[first + i];
            cr_assert_eq(there, was || dirty, "page %u of %u from %u on, step %u, seed %" PRIu64, i,
                         count, first, step, seed);
            pages += dirty ? 1 : 0;
        }
        cr_assert_eq(bitmap[words], before, "written behind its end, seed %" PRIu64, seed);
        cr_assert_eq(taken, pages, "step %u, seed %" PRIu64, step, seed);
        memset(model + first, 0, count * sizeof(model[0]));
    }
    destroy(client);
}

/*
 * What is refused.
 */

static void refused(int result, const struct bb_error *err, int code, const char *word)
{
    cr_assert_eq(result, code, "%s instead of %s: %s", bb_result_name(result), bb_result_name(code),
                 err->text);
    cr_assert_eq(err->code, code);
    cr_assert_not_null(strstr(err->text, word), "'%s' does not say '%s'", err->text, word);
}

Test(dirty, clients_have_a_limit_and_their_numbers_are_given_again)
{
    struct bb_dirty_client *client[BB_DIRTY_CLIENTS_MAX], *more = NULL;
    struct bb_error err = {0};
    struct bb_ctx *ctx = fixture.ctx;

    refused(bb_dirty_client_create(ctx, NULL, &more, &err), &err, BB_E_INVAL, "name");
    refused(bb_dirty_client_create(ctx, "", &more, &err), &err, BB_E_INVAL, "name");
    refused(bb_dirty_client_create(ctx, "one", NULL, &err), &err, BB_E_INVAL, "place");
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        client[i] = make_client("client");
        start(client[i], ram);
    }
    cr_assert_eq(bb_dirty_clients(ram), bb_mask_low(BB_DIRTY_CLIENTS_MAX));
    refused(bb_dirty_client_create(ctx, "more", &more, &err), &err, BB_E_LIMIT, "at most 8");
    cr_assert_null(more);
    write_at(3 * PAGE, 1);
    destroy(client[4]);
    cr_assert_eq(bb_dirty_clients(ram), bb_mask_low(BB_DIRTY_CLIENTS_MAX) & ~BB_BIT64(4));
    client[4] = make_client("again");
    start(client[4], ram);
    TAKEN_ARE(client[4], -1);
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        if (i != 4) {
            TAKEN_ARE(client[i], 3, -1);
        }
        destroy(client[i]);
    }
    test_memory_fail_after(&fixture.memory, 0);
    refused(bb_dirty_client_create(ctx, "more", &more, &err), &err, BB_E_NOMEM, "more");
    test_memory_fail_after(&fixture.memory, -1);
}

Test(dirty, calls_that_do_not_fit_the_state_are_refused)
{
    struct bb_dirty_client *client = make_client("one");
    struct bb_region *io = fixture_region(&fixture, "io", PAGE, 1);
    struct bb_ctx *ctx = fixture.ctx;
    struct bb_error err = {0};
    uint64_t bitmap = 7, pages = 7;

    refused(bb_dirty_start(ctx, NULL, ram, &err), &err, BB_E_INVAL, "client");
    refused(bb_dirty_start(ctx, client, NULL, &err), &err, BB_E_INVAL, "region");
    refused(bb_dirty_start(ctx, client, io, &err), &err, BB_E_INVAL, "no memory");
    refused(bb_dirty_stop(ctx, client, ram, &err), &err, BB_E_NOENT, "does not log");
    refused(bb_dirty_sync_and_clear(ctx, client, ram, 0, 1, &bitmap, &pages, &err), &err,
            BB_E_NOENT, "does not log");
    test_memory_fail_after(&fixture.memory, 0);
    refused(bb_dirty_start(ctx, client, ram, &err), &err, BB_E_NOMEM, "ram");
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_eq(bb_dirty_clients(ram), 0);

    start(client, ram);
    write_at(0, 1);
    refused(bb_dirty_start(ctx, client, ram, &err), &err, BB_E_EXIST, "already");
    const uint64_t size = (uint64_t)PAGES * PAGE;
    const uint64_t ranges[][2] = {
        {0, 0},          {0, size + 1},           {size, 1}, {size - 1, 2}, {UINT64_MAX, 1},
        {1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
    for (size_t i = 0; i < BB_ARRAY_LEN(ranges); i++) {
        refused(bb_dirty_sync_and_clear(ctx, client, ram, ranges[i][0], ranges[i][1], &bitmap,
                                        &pages, &err),
                &err, BB_E_RANGE, "no range");
    }
    cr_assert_eq(bitmap, 7);
    cr_assert_eq(pages, 7);
    cr_assert_eq(bb_dirty_sync_and_clear(ctx, client, ram, size - 1, 1, NULL, NULL, NULL), BB_OK);
    TAKEN_ARE(client, 0, -1);
    refused(bb_dirty_client_destroy(ctx, NULL, &err), &err, BB_E_INVAL, "NULL");
    destroy(client);
    fixture_remove(&fixture, io);
}

Test(dirty, another_engines_client_or_region_is_refused)
{
    static struct fixture other;
    struct bb_dirty_client *client = make_client("here"), *there = NULL;
    struct bb_error err = {0};

    fixture_begin(&other);
    cr_assert_eq(bb_dirty_client_create(other.ctx, "there", &there, NULL), BB_OK);
    refused(bb_dirty_start(fixture.ctx, there, ram, &err), &err, BB_E_INVAL, "engine");
    refused(bb_dirty_start(other.ctx, there, ram, &err), &err, BB_E_INVAL, "engine");
    refused(bb_dirty_client_destroy(fixture.ctx, there, &err), &err, BB_E_INVAL, "engine");
    destroy(client);
    cr_assert_eq(bb_dirty_client_destroy(other.ctx, there, NULL), BB_OK);
    fixture_end(&other);
}

Test(dirty, what_waits_is_refused_inside_a_section_and_marking_is_not)
{
    struct bb_dirty_client *client = make_client("one"), *two = make_client("two");
    struct bb_ctx *ctx = fixture.ctx;
    struct bb_error err = {0};

    start(client, ram);
    bb_rcu_read_lock(ctx);
    refused(bb_dirty_start(ctx, two, ram, &err), &err, BB_E_CONTEXT, "section");
    refused(bb_dirty_stop(ctx, client, ram, &err), &err, BB_E_CONTEXT, "section");
    refused(bb_dirty_sync_and_clear(ctx, client, ram, 0, 1, NULL, NULL, &err), &err, BB_E_CONTEXT,
            "section");
    refused(bb_dirty_client_destroy(ctx, client, &err), &err, BB_E_CONTEXT, "section");
    bb_dirty_mark(ctx, ram, 9 * PAGE, 1);
    bb_rcu_read_unlock(ctx);

    struct bb_lock *lock;
    cr_assert_eq(bb_lock_create(ctx, "narrow", BB_RANK_NARROW, &lock, NULL), BB_OK);
    bb_lock_acquire(ctx, lock);
    refused(bb_dirty_start(ctx, two, ram, &err), &err, BB_E_CONTEXT, "lock");
    bb_dirty_mark(ctx, ram, 10 * PAGE, 1);
    bb_lock_release(ctx, lock);
    bb_lock_destroy(ctx, lock);
    TAKEN_ARE(client, 9, 10, -1);
    destroy(client);
    destroy(two);
}

/*
 * Regions that change while they are logged.
 */

Test(dirty, a_region_that_grows_stays_logged_to_its_end)
{
    struct bb_dirty_client *client = make_client("one");
    const uint64_t last = (uint64_t)2 * PAGES * PAGE - 1;
    uint64_t bitmap[2 * WORDS] = {0};
    struct bb_error err = {0};
    struct bb_txn *txn;

    start(client, ram);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, ram, last + 1, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    write_at(last, 1);
    bb_dirty_mark(fixture.ctx, ram, last - PAGE, 1);
    cr_assert_eq(sync_range(client, 0, last + 1, bitmap), 2);
    cr_assert_eq(bitmap[2 * PAGES / 64], UINT64_C(3) << (2 * PAGES - 2) % 64);
    destroy(client);
}

Test(dirty, the_logs_of_a_removed_region_end_with_it)
{
    struct bb_dirty_client *client = make_client("one"), *next;
    struct bb_error err = {0};
    struct bb_region *region = ram;

    start(client, ram);
    cr_assert_eq(bb_regions_retire_(fixture.ctx, &region, 1, NULL), BB_OK);
    refused(bb_dirty_stop(fixture.ctx, client, ram, &err), &err, BB_E_STATE, "being removed");
    refused(bb_dirty_sync_and_clear(fixture.ctx, client, ram, 0, 1, NULL, NULL, &err), &err,
            BB_E_STATE, "being removed");
    destroy(client);
    next = make_client("next");
    refused(bb_dirty_start(fixture.ctx, next, ram, &err), &err, BB_E_STATE, "being removed");
    bb_dirty_mark(fixture.ctx, ram, 0, PAGE);
    fixture_remove(&fixture, ram);
    ram = NULL;
    destroy(next);
}

Test(dirty, destroying_a_client_stops_all_its_logs_and_no_other)
{
    enum { REGIONS = 20 };
    struct bb_dirty_client *one = make_client("one"), *two = make_client("two");
    struct bb_region *region[REGIONS];

    for (unsigned i = 0; i < REGIONS; i++) {
        region[i] = make_ram(1);
        if (i % 3 != 0) {
            start(one, region[i]);
        }
        if (i % 2 != 0) {
            start(two, region[i]);
        }
    }
    uint64_t periods = bb_rcu_stats(fixture.ctx).grace_periods;
    destroy(one);
    cr_assert_leq(bb_rcu_stats(fixture.ctx).grace_periods, periods + 3, "one for each log");
    for (unsigned i = 0; i < REGIONS; i++) {
        cr_assert_eq(bb_dirty_clients(region[i]), i % 2 != 0 ? 2 : 0);
    }
    destroy(two);
    for (unsigned i = 0; i < REGIONS; i++) {
        cr_assert_eq(bb_dirty_clients(region[i]), 0);
        fixture_remove(&fixture, region[i]);
    }
}

Test(dirty, clients_that_are_left_end_with_the_map)
{
    struct bb_dirty_client *client = make_client("one");

    start(client, ram);
    (void)make_client("two");
    /* The suite's end finds that all memory has come back. */
}

/*
 * A scripted crossing: a writer that saw no client, and a start.
 */

static unsigned stage; /* 1: the writer looked, 2: it may go on */
static uint32_t seen;  /* by the writer, before `stage` 1 */
static unsigned wrote; /* set at the end of its section */

static void *write_late(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "writer");

    (void)arg;
    bb_section_enter_(ctx);
    seen = bb_load_relaxed(&ram->dirty_clients);
    /* Release, pairs with the acquire in the test: `seen`. */
    bb_store_release(&stage, 1u);
    while (bb_load_acquire(&stage) != 2) { /* of the test's own steps */
        sched_yield();
    }
    for (int i = 0; i < 1000; i++) {
        sched_yield();
    }
    bb_ram_store_(bb_region_host(ram), 8, 0x1234);
    if (seen != 0) {
        bb_dirty_mark_(ram, 0, 8);
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

Test(dirty, a_stop_waits_for_writers_that_saw_the_client)
{
    struct bb_dirty_client *client = make_client("one");

    start(client, ram);
    pthread_t thread = begin_late_write();
    stop(client, ram);
    cr_assert_eq(seen, 1);
    cr_assert_eq(bb_load_relaxed(&wrote), 1, "stop did not wait, and has freed the log");
    pthread_join(thread, NULL);
    destroy(client);
}

Test(dirty, a_start_waits_for_the_data_of_writers_that_saw_no_client)
{
    struct bb_dirty_client *client = make_client("one");

    pthread_t thread = begin_late_write();
    start(client, ram);
    cr_assert_eq(seen, 0);
    cr_assert_eq(bb_load_relaxed(&wrote), 1, "start did not wait");
    cr_assert_eq(bb_ram_load_(bb_region_host(ram), 8), 0x1234);
    TAKEN_ARE(client, -1);
    pthread_join(thread, NULL);
    destroy(client);
}

/*
 * Another: a sync between a write's data and its mark. The write's store is stopped by making its
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
    struct bb_ctx *ctx = fixture_attach(&fixture, "writer");

    if (fixture_write(ctx, arg, 0, 8, 0x1234) == BB_OK) {
        bb_store_relaxed(&wrote, 1u); /* looked at after joining */
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(dirty, a_bit_is_set_after_the_data_and_not_before)
{
    struct bb_dirty_client *client = make_client("one");
    struct sigaction action = {.sa_sigaction = hold_store, .sa_flags = SA_SIGINFO};
    struct bb_region *region = NULL;
    uint64_t pages = 7;
    pthread_t thread;

    trapped = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(trapped, MAP_FAILED);
    struct bb_ram_config config = {
        .name = "trap", .size_bytes = PAGE, .backing = BB_RAM_EMBEDDER, .host = trapped};
    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &region, NULL), BB_OK);
    start(client, region);
    cr_assert_eq(sigaction(SIGSEGV, &action, NULL), 0);
    cr_assert_eq(pthread_create(&thread, NULL, write_trapped, region), 0);
    while (bb_load_acquire(&stage) != 1) { /* pairs with hold_store() */
        sched_yield();
    }
    int first = bb_dirty_sync_and_clear(fixture.ctx, client, region, 0, PAGE, NULL, &pages, NULL);
    bb_store_release(&stage, 2u); /* pairs with hold_store() */
    pthread_join(thread, NULL);
    cr_assert_eq(first, BB_OK);
    cr_assert_eq(pages, 0, "the bit was there before the data");
    cr_assert_eq(bb_load_relaxed(&wrote), 1); /* joined */
    cr_assert_eq(bb_dirty_sync_and_clear(fixture.ctx, client, region, 0, PAGE, NULL, &pages, NULL),
                 BB_OK);
    cr_assert_eq(pages, 1);
    destroy(client);
    fixture_remove(&fixture, region);
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

Test(dirty, an_accelerators_log_is_started_merged_and_stopped)
{
    struct bb_dirty_client *one = make_client("one"), *two = make_client("two");
    struct bb_space *space = fixture_space(&fixture, "space", BB_SPACE_MMIO, 0);
    struct bb_listener_ops ops = {
        .log_start = log_start, .log_stop = log_stop, .log_sync = log_sync};
    struct accelerator a = {0};
    struct bb_listener_config config = {
        .name = "accelerator", .space = space, .ops = &ops, .opaque = &a};
    struct bb_listener *listener = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_listener_add(fixture.ctx, &config, &listener, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x10000, ram, NULL), BB_OK);
    start(one, ram);
    cr_assert_eq(a.starts, 1);
    cr_assert_eq(a.first, 0x10000);
    cr_assert_eq(a.clients_at_start, 1, "the log is open before the accelerator is told");
    start(two, ram);
    cr_assert_eq(a.starts, 1);
    a.log = BB_BIT64(0) | BB_BIT64(63);
    write_at(70 * PAGE, 1);
    TAKEN_ARE(one, 0, 63, 70, -1);
    cr_assert_eq(a.syncs, 1);
    cr_assert_eq(a.pins_at_sync, 1, "a removal would not wait for the sync");
    cr_assert_eq(bb_pins_held_(ram->pins), 0);
    a.log = BB_BIT64(5);
    TAKEN_ARE(two, 0, 5, 63, 70, -1);
    TAKEN_ARE(one, 5, -1);
    stop(one, ram);
    cr_assert_eq(a.stops, 0);
    destroy(two);
    cr_assert_eq(a.stops, 1);
    cr_assert_eq(a.starts, 1);
    start(one, ram);
    destroy(one);
    cr_assert_eq(a.starts, 2);
    cr_assert_eq(a.stops, 2);
    cr_assert_eq(bb_listener_remove(fixture.ctx, listener, &err), BB_OK, "%s", err.text);
}
