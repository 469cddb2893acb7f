/* SPDX-License-Identifier: MIT */
/*
 * No write is lost: threads write to pages while clients take their bits and copy what they took.
 *
 * Each writer has a word of its own in each page, and writes rising numbers. When a write and its
 * mark are over it says so in a table beside the memory. Whoever reads that table, then syncs, then
 * copies the pages that he took, must have numbers at least as high as the table's: the bit of
 * each of these writes was taken now, or earlier by a sync whose copy came after the write. So a
 * lost page is found by the next sync, unless it is written to again before that. Therefore a
 * writer stays at a page for a few writes, which meet their bit set, and then does not come back
 * soon.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "fixture.h"

enum {
    PAGE = BB_DIRTY_PAGE_BYTES,
    PAGES = 64,
    STAY = 3, /* writes to a page before the next is chosen, on average */
    WORD_STRIDE = 64,
    WRITERS_MAX = PAGE / WORD_STRIDE,
    CLIENTS = 2,
};

static struct fixture fixture;
static struct bb_region *ram;
static uint64_t seed;
static unsigned writers;
static unsigned stop;
static unsigned failed; /* threads that could not work */
static pthread_t thread[WRITERS_MAX];
static uint64_t over[PAGES][WRITERS_MAX]; /* the last number that is written and marked */

static unsigned threads_wanted(void)
{
    const char *given = getenv("BUSBAR_STRESS_THREADS");
    unsigned count = given != NULL ? (unsigned)strtoul(given, NULL, 10) : 2;

    return count < 1 ? 1 : count > WRITERS_MAX ? WRITERS_MAX : count;
}

static uint64_t *word_of(unsigned page, unsigned writer)
{
    return (uint64_t *)((char *)bb_region_host(ram) + page * PAGE + writer * WORD_STRIDE);
}

/* As the engine's accesses do it, or as its bulk copies do. */
static bool write_once(struct bb_ctx *ctx, unsigned page, unsigned writer, uint64_t number,
                       bool access)
{
    uint64_t offset = page * PAGE + writer * WORD_STRIDE;

    if (access) {
        return fixture_write(ctx, ram, offset, 8, number) == BB_OK;
    }
    bb_section_enter_(ctx);
    bb_store_relaxed(word_of(page, writer), number); /* guest memory */
    bb_dirty_wrote_(ram, offset, 8);
    bb_section_leave_(ctx);
    return true;
}

static void *write_on(void *arg)
{
    unsigned writer = (unsigned)(uintptr_t)arg;
    struct bb_ctx *ctx = fixture_attach(&fixture, "writer");
    struct test_random random = {.state = seed + writer + 1};
    uint64_t number = 0;
    unsigned page = 0;
    bool fine = ctx != NULL;

    /* Relaxed: a late look does no harm. */
    while (fine && !bb_load_relaxed(&stop)) {
        if (test_random_below(&random, STAY) == 0) {
            page = test_random_below(&random, PAGES);
        }
        number++;
        fine = write_once(ctx, page, writer, number, number % 2 == 0);
        /* Release, pairs with look(): the write and its mark. */
        bb_store_release(&over[page][writer], number);
    }
    if (!fine) {
        bb_store_relaxed(&failed, 1u); /* looked at after joining */
    }
    if (ctx != NULL) {
        (void)bb_ctx_detach_(ctx, NULL);
    }
    return NULL;
}

/* A client with its copy of the memory. */
struct copier {
    struct bb_dirty_client *client;
    uint64_t wanted[PAGES][WRITERS_MAX];
    uint64_t copy[PAGES][WRITERS_MAX];
    uint64_t pages; /* copied */
    uint64_t syncs;
};

static void look(struct copier *copier)
{
    for (unsigned page = 0; page < PAGES; page++) {
        for (unsigned writer = 0; writer < writers; writer++) {
            /* Acquire, pairs with write_on(). */
            copier->wanted[page][writer] = bb_load_acquire(&over[page][writer]);
        }
    }
}

static void copy_page(struct copier *copier, unsigned page)
{
    for (unsigned writer = 0; writer < writers; writer++) {
        /* Relaxed: the sync that took the page's bit orders it. */
        copier->copy[page][writer] = bb_load_relaxed(word_of(page, writer));
    }
    copier->pages++;
}

static void compare(const struct copier *copier, const char *who)
{
    for (unsigned page = 0; page < PAGES; page++) {
        for (unsigned writer = 0; writer < writers; writer++) {
            cr_assert_geq(copier->copy[page][writer], copier->wanted[page][writer],
                          "%s: page %u, writer %u: %" PRIu64 " was written and marked before sync "
                          "%" PRIu64 ", and %" PRIu64 " is what was copied; seed %" PRIu64,
                          who, page, writer, copier->wanted[page][writer], copier->syncs,
                          copier->copy[page][writer], seed);
        }
    }
}

static void sync_copy(struct copier *copier, const char *who)
{
    uint64_t bitmap[PAGES / 64] = {0};

    look(copier);
    cr_assert_eq(bb_dirty_sync_and_clear(fixture.ctx, copier->client, ram, 0,
                                         (uint64_t)PAGES * PAGE, bitmap, NULL, NULL),
                 BB_OK);
    copier->syncs++;
    for (unsigned page = 0; page < PAGES; page++) {
        if ((bitmap[page / 64] >> page % 64 & 1) != 0) {
            copy_page(copier, page);
        }
    }
    compare(copier, who);
}

static void open_copier(struct copier *copier, const char *name)
{
    struct bb_error err = {0};

    memset(copier, 0, sizeof(*copier));
    cr_assert_eq(bb_dirty_client_create(fixture.ctx, name, &copier->client, &err), BB_OK, "%s",
                 err.text);
}

/* As a migration begins: log first, copy all then. */
static void start_copier(struct copier *copier, const char *who)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_start(fixture.ctx, copier->client, ram, &err), BB_OK, "%s", err.text);
    look(copier);
    for (unsigned page = 0; page < PAGES; page++) {
        copy_page(copier, page);
    }
    compare(copier, who);
}

static void begin(void)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = PAGES * PAGE};
    struct test_random random;
    struct bb_error err = {0};

    fixture_begin(&fixture);
    seed = test_random_begin(&random);
    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &ram, &err), BB_OK, "%s", err.text);
    writers = threads_wanted();
    for (unsigned i = 0; i < writers; i++) {
        cr_assert_eq(pthread_create(&thread[i], NULL, write_on, (void *)(uintptr_t)i), 0);
    }
}

static void join_writers(void)
{
    bb_store_relaxed(&stop, 1u); /* joining orders the rest */
    for (unsigned i = 0; i < writers; i++) {
        pthread_join(thread[i], NULL);
    }
    cr_assert_eq(bb_load_relaxed(&failed), 0, "a thread could not work"); /* joined */
}

static void end(void)
{
    fixture_remove(&fixture, ram);
    fixture_end(&fixture);
}

TestSuite(dirty_torture, .init = begin, .fini = end, .timeout = 600);

/* With the writers gone: the copy is the memory. */
static void finish(struct copier *copier, const char *who)
{
    sync_copy(copier, who);
    for (unsigned page = 0; page < PAGES; page++) {
        for (unsigned writer = 0; writer < writers; writer++) {
            cr_assert_eq(copier->copy[page][writer], bb_load_relaxed(word_of(page, writer)),
                         "%s: page %u, writer %u, seed %" PRIu64, who, page, writer, seed);
        }
    }
    cr_assert_gt(copier->pages, 0);
    cr_assert_eq(bb_dirty_client_destroy(fixture.ctx, copier->client, NULL), BB_OK);
}

Test(dirty_torture, every_write_is_in_each_clients_copy)
{
    static const char *const name[CLIENTS] = {"first client", "second client"};
    static struct copier copier[CLIENTS];
    uint64_t end_ns = test_now_ns() + test_stress_ns();

    for (unsigned i = 0; i < CLIENTS; i++) {
        open_copier(&copier[i], name[i]);
        start_copier(&copier[i], name[i]);
    }
    while (test_now_ns() < end_ns) {
        for (unsigned i = 0; i < CLIENTS; i++) {
            sync_copy(&copier[i], name[i]);
        }
    }
    join_writers();
    for (unsigned i = 0; i < CLIENTS; i++) {
        finish(&copier[i], name[i]);
    }
}

Test(dirty_torture, a_client_may_start_and_stop_while_others_write)
{
    static struct copier steady, guest;
    uint64_t end_ns = test_now_ns() + test_stress_ns();

    open_copier(&steady, "steady");
    open_copier(&guest, "guest");
    start_copier(&steady, "steady");
    for (unsigned round = 0; test_now_ns() < end_ns; round++) {
        if (round % 8 == 0) {
            /* Then the guest's start is the first, and writers begin to see a log at all. */
            cr_assert_eq(bb_dirty_stop(fixture.ctx, steady.client, ram, NULL), BB_OK);
        }
        start_copier(&guest, "guest");
        for (unsigned i = 0; i < 3; i++) {
            sync_copy(&guest, "guest");
        }
        if (round % 8 == 0) {
            start_copier(&steady, "steady");
        }
        sync_copy(&steady, "steady");
        cr_assert_eq(bb_dirty_stop(fixture.ctx, guest.client, ram, NULL), BB_OK);
        sync_copy(&steady, "steady");
    }
    start_copier(&guest, "guest");
    join_writers();
    finish(&steady, "steady");
    finish(&guest, "guest");
}

/*
 * Two threads that sync for one client.
 */

enum { MANY_PAGES = 1 << 14 };

static struct bb_region *many;
static struct bb_dirty_client *shared;
static unsigned ended;

struct taker {
    uint64_t bitmap[MANY_PAGES / 64];
    uint64_t pages;
};

static void take_all(struct bb_ctx *ctx, struct taker *taker)
{
    uint64_t pages = 0;

    if (bb_dirty_sync_and_clear(ctx, shared, many, 0, (uint64_t)MANY_PAGES * PAGE, taker->bitmap,
                                &pages, NULL) != BB_OK) {
        bb_store_relaxed(&failed, 1u); /* looked at after joining */
    }
    taker->pages += pages;
}

static void *take_on(void *arg)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "taker");

    if (ctx == NULL) {
        bb_store_relaxed(&failed, 1u); /* as above */
        return NULL;
    }
    while (!bb_load_acquire(&ended)) { /* pairs with the test's release: all marks are made */
        take_all(ctx, arg);
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(dirty_torture, of_two_syncs_at_once_each_bit_goes_to_one)
{
    static struct taker taker[2];
    struct bb_ram_config config = {.name = "many", .size_bytes = (uint64_t)MANY_PAGES * PAGE};
    uint64_t end_ns = test_now_ns() + test_stress_ns();
    pthread_t other;

    join_writers();
    cr_assert_eq(bb_ram_create(fixture.ctx, &config, &many, NULL), BB_OK);
    cr_assert_eq(bb_dirty_client_create(fixture.ctx, "shared", &shared, NULL), BB_OK);
    cr_assert_eq(bb_dirty_start(fixture.ctx, shared, many, NULL), BB_OK);
    while (test_now_ns() < end_ns) {
        memset(taker, 0, sizeof(taker));
        ended = 0;
        cr_assert_eq(pthread_create(&other, NULL, take_on, &taker[1]), 0);
        for (uint64_t page = 0; page < MANY_PAGES; page++) {
            /* 37 is odd: every page once, and neighbours far apart in time. */
            bb_dirty_mark(fixture.ctx, many, page * 37 % MANY_PAGES * PAGE, 1);
            if (page % 64 == 0) {
                take_all(fixture.ctx, &taker[0]);
            }
        }
        bb_store_release(&ended, 1u); /* pairs with take_on() */
        pthread_join(other, NULL);
        take_all(fixture.ctx, &taker[0]);
        cr_assert_eq(taker[0].pages + taker[1].pages, MANY_PAGES, "%" PRIu64 " + %" PRIu64,
                     taker[0].pages, taker[1].pages);
        for (unsigned i = 0; i < MANY_PAGES / 64; i++) {
            cr_assert_eq(taker[0].bitmap[i] ^ taker[1].bitmap[i], UINT64_MAX);
        }
    }
    cr_assert_eq(bb_load_relaxed(&failed), 0); /* joined */
    cr_assert_eq(bb_dirty_client_destroy(fixture.ctx, shared, NULL), BB_OK);
    fixture_remove(&fixture, many);
}
