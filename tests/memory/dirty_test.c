/* SPDX-License-Identifier: MIT */
/*
 * Dirty logs: which bits are set and taken, by whom, and what is refused. What crosses, and what
 * accelerators are told, is dirty_order_test.c's; that no write is lost is dirty_torture_test.c's.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "dirty_fixture.h"

enum { PAGE = BB_DIRTY_PAGE_BYTES };

TestSuite(dirty, .init = dirty_begin, .fini = dirty_end);

Test(dirty, a_write_marks_its_pages_and_a_sync_takes_them_once)
{
    struct bb_dirty_client *client = dirty_make_client("one");

    dirty_write_at(0, 8);
    dirty_start(client, dirty_ram);
    DIRTY_TAKEN(client, -1);
    dirty_write_at(5 * PAGE + 100, 1);
    dirty_write_at(63 * PAGE, 8);
    dirty_write_at(64 * PAGE, 8);
    dirty_write_at((DIRTY_PAGES - 1) * PAGE + PAGE - 1, 1);
    DIRTY_TAKEN(client, 5, 63, 64, DIRTY_PAGES - 1, -1);
    DIRTY_TAKEN(client, -1);
    dirty_write_at(5 * PAGE, 2);
    DIRTY_TAKEN(client, 5, -1);
    dirty_stop(client, dirty_ram);
    dirty_write_at(6 * PAGE, 2);
    dirty_start(client, dirty_ram);
    DIRTY_TAKEN(client, -1);
    dirty_destroy(client);
}

Test(dirty, an_access_that_crosses_a_page_marks_both)
{
    struct bb_dirty_client *client = dirty_make_client("one");

    dirty_start(client, dirty_ram);
    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned before = 0; before <= size; before++) {
            dirty_write_at(64 * PAGE - before, size);
            if (before == 0) {
                DIRTY_TAKEN(client, 64, -1);
            } else if (before == size) {
                DIRTY_TAKEN(client, 63, -1);
            } else {
                DIRTY_TAKEN(client, 63, 64, -1);
            }
        }
    }
    dirty_destroy(client);
}

Test(dirty, a_write_that_is_refused_marks_nothing)
{
    struct bb_ram_config config = {.name = "rom", .size_bytes = PAGE, .read_only = true};
    struct bb_dirty_client *client = dirty_make_client("one");
    struct bb_region *rom = NULL;
    uint64_t pages = 1, value = 0;

    cr_assert_eq(bb_ram_create(dirty_fixture.ctx, &config, &rom, NULL), BB_OK);
    dirty_start(client, rom);
    cr_assert_eq(fixture_write(dirty_fixture.ctx, rom, 0, 4, 1), BB_E_DEVICE);
    cr_assert_eq(fixture_read(dirty_fixture.ctx, rom, 0, 4, &value), BB_OK);
    cr_assert_eq(
        bb_dirty_sync_and_clear(dirty_fixture.ctx, client, rom, 0, PAGE, NULL, &pages, NULL),
        BB_OK);
    cr_assert_eq(pages, 0);
    dirty_destroy(client);
    fixture_remove(&dirty_fixture, rom);
}

Test(dirty, each_client_has_bits_of_its_own)
{
    struct bb_dirty_client *one = dirty_make_client("one"), *two = dirty_make_client("two");

    cr_assert_eq(bb_dirty_clients(dirty_ram), 0);
    dirty_start(one, dirty_ram);
    dirty_write_at(1 * PAGE, 1);
    dirty_start(two, dirty_ram);
    cr_assert_eq(__builtin_popcount(bb_dirty_clients(dirty_ram)), 2);
    dirty_write_at(2 * PAGE, 1);
    DIRTY_TAKEN(one, 1, 2, -1);
    DIRTY_TAKEN(two, 2, -1);
    dirty_write_at(3 * PAGE, 1);
    DIRTY_TAKEN(two, 3, -1);
    dirty_stop(two, dirty_ram);
    dirty_write_at(4 * PAGE, 1);
    DIRTY_TAKEN(one, 3, 4, -1);
    cr_assert_eq(__builtin_popcount(bb_dirty_clients(dirty_ram)), 1);
    dirty_destroy(one);
    cr_assert_eq(bb_dirty_clients(dirty_ram), 0);
    dirty_destroy(two);
}

Test(dirty, a_mark_is_cut_at_the_regions_end)
{
    struct bb_dirty_client *client = dirty_make_client("one");
    const uint64_t last = (uint64_t)DIRTY_PAGES * PAGE - 1;

    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, 0, PAGE); /* nobody logs it */
    dirty_start(client, dirty_ram);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, last, 1);
    DIRTY_TAKEN(client, DIRTY_PAGES - 1, -1);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, last - PAGE, UINT64_MAX);
    DIRTY_TAKEN(client, DIRTY_PAGES - 2, DIRTY_PAGES - 1, -1);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, last + 1, 1);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, UINT64_MAX, UINT64_MAX);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, 0, 0);
    bb_dirty_mark(dirty_fixture.ctx, NULL, 0, 1);
    DIRTY_TAKEN(client, -1);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, 0, UINT64_MAX);
    uint64_t bitmap[DIRTY_WORDS];
    cr_assert_eq(dirty_sync_all(client, bitmap), DIRTY_PAGES);
    cr_assert_eq(bitmap[0], UINT64_MAX);
    cr_assert_eq(bitmap[DIRTY_WORDS - 1], bb_mask_low(DIRTY_PAGES % 64));
    dirty_destroy(client);
}

Test(dirty, what_a_merge_brings_beyond_the_end_is_dropped)
{
    struct bb_dirty_client *client = dirty_make_client("one");
    uint64_t all[2 * DIRTY_WORDS + 1];
    uint64_t bitmap[DIRTY_WORDS];

    memset(all, 0xff, sizeof(all));
    dirty_start(client, dirty_ram);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, (DIRTY_PAGES - 3) * PAGE + 5, all,
                   sizeof(all) * 8);
    DIRTY_TAKEN(client, DIRTY_PAGES - 3, DIRTY_PAGES - 2, DIRTY_PAGES - 1, -1);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, (uint64_t)DIRTY_PAGES * 2 * PAGE, all, 64);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, UINT64_MAX, all, 64);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, 0, all, 0);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, 0, NULL, 64);
    bb_dirty_merge(dirty_fixture.ctx, NULL, 0, all, 64);
    DIRTY_TAKEN(client, -1);
    bb_dirty_merge(dirty_fixture.ctx, dirty_ram, 0, all, DIRTY_PAGES);
    cr_assert_eq(dirty_sync_all(client, bitmap), DIRTY_PAGES);
    dirty_destroy(client);
}

/*
 * Random ranges against a flag for each page.
 */

static void random_marks(struct test_random *random, bool model[DIRTY_PAGES])
{
    uint64_t bits[DIRTY_WORDS + 1];
    unsigned first = test_random_below(random, DIRTY_PAGES);
    unsigned count = 1 + test_random_below(random, DIRTY_PAGES - first);
    unsigned inside = test_random_below(random, PAGE);

    switch (test_random_below(random, 3)) {
    case 0:
        bb_dirty_mark(dirty_fixture.ctx, dirty_ram, (uint64_t)first * PAGE + inside,
                      (uint64_t)count * PAGE - inside);
        for (unsigned i = first; i < first + count; i++) {
            model[i] = true;
        }
        break;
    case 1:
        dirty_write_at((uint64_t)first * PAGE + (inside & ~7u), 8);
        model[first] = true;
        break;
    default:
        for (unsigned i = 0; i < BB_ARRAY_LEN(bits); i++) {
            bits[i] = test_random_next(random) & test_random_next(random);
        }
        bb_dirty_merge(dirty_fixture.ctx, dirty_ram, (uint64_t)first * PAGE + inside, bits, count);
        for (unsigned i = 0; i < count; i++) {
            model[first + i] |= (bits[i / 64] >> i % 64 & 1) != 0;
        }
    }
}

Test(dirty, any_range_takes_its_bits_and_leaves_the_others)
{
    enum { CANARY = 2 };
    struct bb_dirty_client *client = dirty_make_client("one");
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    bool model[DIRTY_PAGES] = {false};

    dirty_start(client, dirty_ram);
    for (unsigned step = 0; step < 20000; step++) {
        random_marks(&random, model);
        unsigned first = test_random_below(&random, DIRTY_PAGES);
        unsigned count = 1 + test_random_below(&random, DIRTY_PAGES - first);
        unsigned inside = test_random_below(&random, PAGE);
        uint64_t before = test_random_next(&random) & test_random_next(&random);
        uint64_t bitmap[DIRTY_WORDS + CANARY], pages = 0;
        unsigned words = (count + 63) / 64;

        for (unsigned i = 0; i < BB_ARRAY_LEN(bitmap); i++) {
            bitmap[i] = before;
        }
        uint64_t taken = dirty_sync_range(client, (uint64_t)first * PAGE + inside,
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
    dirty_destroy(client);
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
    struct bb_ctx *ctx = dirty_fixture.ctx;

    refused(bb_dirty_client_create(ctx, NULL, &more, &err), &err, BB_E_INVAL, "name");
    refused(bb_dirty_client_create(ctx, "", &more, &err), &err, BB_E_INVAL, "name");
    refused(bb_dirty_client_create(ctx, "one", NULL, &err), &err, BB_E_INVAL, "place");
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        client[i] = dirty_make_client("client");
        dirty_start(client[i], dirty_ram);
    }
    cr_assert_eq(bb_dirty_clients(dirty_ram), bb_mask_low(BB_DIRTY_CLIENTS_MAX));
    refused(bb_dirty_client_create(ctx, "more", &more, &err), &err, BB_E_LIMIT, "at most 8");
    cr_assert_null(more);
    dirty_write_at(3 * PAGE, 1);
    dirty_destroy(client[4]);
    cr_assert_eq(bb_dirty_clients(dirty_ram), bb_mask_low(BB_DIRTY_CLIENTS_MAX) & ~BB_BIT64(4));
    client[4] = dirty_make_client("again");
    dirty_start(client[4], dirty_ram);
    DIRTY_TAKEN(client[4], -1);
    for (unsigned i = 0; i < BB_DIRTY_CLIENTS_MAX; i++) {
        if (i != 4) {
            DIRTY_TAKEN(client[i], 3, -1);
        }
        dirty_destroy(client[i]);
    }
    test_memory_fail_after(&dirty_fixture.memory, 0);
    refused(bb_dirty_client_create(ctx, "more", &more, &err), &err, BB_E_NOMEM, "more");
    test_memory_fail_after(&dirty_fixture.memory, -1);
}

Test(dirty, calls_that_do_not_fit_the_state_are_refused)
{
    struct bb_dirty_client *client = dirty_make_client("one");
    struct bb_region *io = fixture_region(&dirty_fixture, "io", PAGE, 1);
    struct bb_ctx *ctx = dirty_fixture.ctx;
    struct bb_error err = {0};
    uint64_t bitmap = 7, pages = 7;

    refused(bb_dirty_start(ctx, NULL, dirty_ram, &err), &err, BB_E_INVAL, "client");
    refused(bb_dirty_start(ctx, client, NULL, &err), &err, BB_E_INVAL, "region");
    refused(bb_dirty_start(ctx, client, io, &err), &err, BB_E_INVAL, "no memory");
    refused(bb_dirty_stop(ctx, client, dirty_ram, &err), &err, BB_E_NOENT, "does not log");
    refused(bb_dirty_sync_and_clear(ctx, client, dirty_ram, 0, 1, &bitmap, &pages, &err), &err,
            BB_E_NOENT, "does not log");
    test_memory_fail_after(&dirty_fixture.memory, 0);
    refused(bb_dirty_start(ctx, client, dirty_ram, &err), &err, BB_E_NOMEM, "ram");
    test_memory_fail_after(&dirty_fixture.memory, -1);
    cr_assert_eq(bb_dirty_clients(dirty_ram), 0);

    dirty_start(client, dirty_ram);
    dirty_write_at(0, 1);
    refused(bb_dirty_start(ctx, client, dirty_ram, &err), &err, BB_E_EXIST, "already");
    const uint64_t size = (uint64_t)DIRTY_PAGES * PAGE;
    const uint64_t ranges[][2] = {
        {0, 0},          {0, size + 1},           {size, 1}, {size - 1, 2}, {UINT64_MAX, 1},
        {1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
    for (size_t i = 0; i < BB_ARRAY_LEN(ranges); i++) {
        refused(bb_dirty_sync_and_clear(ctx, client, dirty_ram, ranges[i][0], ranges[i][1], &bitmap,
                                        &pages, &err),
                &err, BB_E_RANGE, "no range");
    }
    cr_assert_eq(bitmap, 7);
    cr_assert_eq(pages, 7);
    cr_assert_eq(bb_dirty_sync_and_clear(ctx, client, dirty_ram, size - 1, 1, NULL, NULL, NULL),
                 BB_OK);
    DIRTY_TAKEN(client, 0, -1);
    refused(bb_dirty_client_destroy(ctx, NULL, &err), &err, BB_E_INVAL, "NULL");
    dirty_destroy(client);
    fixture_remove(&dirty_fixture, io);
}

Test(dirty, another_engines_client_or_region_is_refused)
{
    static struct fixture other;
    struct bb_dirty_client *client = dirty_make_client("here"), *there = NULL;
    struct bb_error err = {0};

    fixture_begin(&other);
    cr_assert_eq(bb_dirty_client_create(other.ctx, "there", &there, NULL), BB_OK);
    refused(bb_dirty_start(dirty_fixture.ctx, there, dirty_ram, &err), &err, BB_E_INVAL, "engine");
    refused(bb_dirty_start(other.ctx, there, dirty_ram, &err), &err, BB_E_INVAL, "engine");
    refused(bb_dirty_client_destroy(dirty_fixture.ctx, there, &err), &err, BB_E_INVAL, "engine");
    dirty_destroy(client);
    cr_assert_eq(bb_dirty_client_destroy(other.ctx, there, NULL), BB_OK);
    fixture_end(&other);
}

Test(dirty, what_waits_is_refused_inside_a_section_and_marking_is_not)
{
    struct bb_dirty_client *client = dirty_make_client("one"), *two = dirty_make_client("two");
    struct bb_ctx *ctx = dirty_fixture.ctx;
    struct bb_error err = {0};

    dirty_start(client, dirty_ram);
    bb_rcu_read_lock(ctx);
    refused(bb_dirty_start(ctx, two, dirty_ram, &err), &err, BB_E_CONTEXT, "section");
    refused(bb_dirty_stop(ctx, client, dirty_ram, &err), &err, BB_E_CONTEXT, "section");
    refused(bb_dirty_sync_and_clear(ctx, client, dirty_ram, 0, 1, NULL, NULL, &err), &err,
            BB_E_CONTEXT, "section");
    refused(bb_dirty_client_destroy(ctx, client, &err), &err, BB_E_CONTEXT, "section");
    bb_dirty_mark(ctx, dirty_ram, 9 * PAGE, 1);
    bb_rcu_read_unlock(ctx);

    struct bb_lock *lock;
    cr_assert_eq(bb_lock_create(ctx, "narrow", BB_RANK_NARROW, &lock, NULL), BB_OK);
    bb_lock_acquire(ctx, lock);
    refused(bb_dirty_start(ctx, two, dirty_ram, &err), &err, BB_E_CONTEXT, "lock");
    bb_dirty_mark(ctx, dirty_ram, 10 * PAGE, 1);
    bb_lock_release(ctx, lock);
    bb_lock_destroy(ctx, lock);
    DIRTY_TAKEN(client, 9, 10, -1);
    dirty_destroy(client);
    dirty_destroy(two);
}

/*
 * Regions that change while they are logged.
 */

Test(dirty, a_region_that_grows_stays_logged_to_its_end)
{
    struct bb_dirty_client *client = dirty_make_client("one");
    const uint64_t last = (uint64_t)2 * DIRTY_PAGES * PAGE - 1;
    uint64_t bitmap[2 * DIRTY_WORDS] = {0};
    struct bb_error err = {0};
    struct bb_txn *txn;

    dirty_start(client, dirty_ram);
    cr_assert_eq(bb_txn_begin(dirty_fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_resize(txn, dirty_ram, last + 1, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    dirty_write_at(last, 1);
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, last - PAGE, 1);
    cr_assert_eq(dirty_sync_range(client, 0, last + 1, bitmap), 2);
    cr_assert_eq(bitmap[2 * DIRTY_PAGES / 64], UINT64_C(3) << (2 * DIRTY_PAGES - 2) % 64);
    dirty_destroy(client);
}

Test(dirty, the_logs_of_a_removed_region_end_with_it)
{
    struct bb_dirty_client *client = dirty_make_client("one"), *next;
    struct bb_error err = {0};
    struct bb_region *region = dirty_ram;

    dirty_start(client, dirty_ram);
    cr_assert_eq(bb_regions_retire_(dirty_fixture.ctx, &region, 1, NULL), BB_OK);
    refused(bb_dirty_stop(dirty_fixture.ctx, client, dirty_ram, &err), &err, BB_E_STATE,
            "being removed");
    refused(bb_dirty_sync_and_clear(dirty_fixture.ctx, client, dirty_ram, 0, 1, NULL, NULL, &err),
            &err, BB_E_STATE, "being removed");
    dirty_destroy(client);
    next = dirty_make_client("next");
    refused(bb_dirty_start(dirty_fixture.ctx, next, dirty_ram, &err), &err, BB_E_STATE,
            "being removed");
    bb_dirty_mark(dirty_fixture.ctx, dirty_ram, 0, PAGE);
    fixture_remove(&dirty_fixture, dirty_ram);
    dirty_ram = NULL;
    dirty_destroy(next);
}

Test(dirty, destroying_a_client_stops_all_its_logs_and_no_other)
{
    enum { REGIONS = 20 };
    struct bb_dirty_client *one = dirty_make_client("one"), *two = dirty_make_client("two");
    struct bb_region *region[REGIONS];

    for (unsigned i = 0; i < REGIONS; i++) {
        region[i] = dirty_make_ram(1);
        if (i % 3 != 0) {
            dirty_start(one, region[i]);
        }
        if (i % 2 != 0) {
            dirty_start(two, region[i]);
        }
    }
    uint64_t periods = bb_rcu_stats(dirty_fixture.ctx).grace_periods;
    dirty_destroy(one);
    cr_assert_leq(bb_rcu_stats(dirty_fixture.ctx).grace_periods, periods + 3, "one for each log");
    for (unsigned i = 0; i < REGIONS; i++) {
        cr_assert_eq(bb_dirty_clients(region[i]), i % 2 != 0 ? 2 : 0);
    }
    dirty_destroy(two);
    for (unsigned i = 0; i < REGIONS; i++) {
        cr_assert_eq(bb_dirty_clients(region[i]), 0);
        fixture_remove(&dirty_fixture, region[i]);
    }
}

Test(dirty, clients_that_are_left_end_with_the_map)
{
    struct bb_dirty_client *client = dirty_make_client("one");

    dirty_start(client, dirty_ram);
    (void)dirty_make_client("two");
    /* The suite's end finds that all memory has come back. */
}
