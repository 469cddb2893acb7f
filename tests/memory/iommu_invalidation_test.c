/* SPDX-License-Identifier: MIT */
/* Translations that end: invalidation, what waits for it, and who is told. */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "iommu_fixture.h"

TestSuite(memory_iommu, .init = iommu_begin, .fini = iommu_end);

/* Invalidation. */

Test(memory_iommu, an_invalidation_voids_what_was_kept)
{
    struct page *page = page_add(&unit, 0x1000, 12, memory, 0x42000);
    struct bb_error err = {0};

    leads_to(0x1000, memory, 0x42000, 4);
    page->entry.target = other;
    page->entry.translated = 0x8000;
    leads_to(0x1000, memory, 0x42000, 4); /* nobody said so */
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0x1000, 0x1fff, NULL, NULL, &err),
                 BB_OK, "%s", err.text);
    leads_to(0x1000, other, 0x8000, 4);
    page->entry.translated = 0x9000;
    cr_assert_eq(bb_iommu_invalidate_wait(fixture.ctx, unit.region, 0x1000, 0x1fff, &err), BB_OK,
                 "%s", err.text);
    leads_to(0x1000, other, 0x9000, 4);
}

/* The table changes, and is said to have, after the callback has read it. */
static void change_meanwhile(struct bb_ctx *ctx, struct unit *of, bb_gpa_t iova)
{
    of->during = NULL;
    of->page[0].entry.translated = 0x9000;
    cr_assert_eq(bb_iommu_invalidate(ctx, of->region, iova, iova, NULL, NULL, NULL), BB_OK);
}

Test(memory_iommu, an_answer_that_was_overtaken_by_an_invalidation_is_not_kept)
{
    page_add(&unit, 0x1000, 12, memory, 0x8000);
    unit.during = change_meanwhile;
    leads_to(0x1000, memory, 0x8000, 4); /* it began before */
    leads_to(0x1000, memory, 0x9000, 4);
    leads_to(0x1000, memory, 0x9000, 4);
    cr_assert_eq(unit.asked, 2);
}

Test(memory_iommu, an_invalidation_of_one_region_leaves_others_alone)
{
    struct unit second;

    unit_make(&second, "second", 0x10000);
    map(bus, BUS_BYTES, second.region);
    page_add(&unit, 0x1000, 12, memory, 0x8000);
    page_add(&second, 0x1000, 12, memory, 0x9000);
    leads_to(0x1000, memory, 0x8000, 4);
    leads_to(BUS_BYTES + 0x1000, memory, 0x9000, 4);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, second.region, 0, 0, NULL, NULL, NULL), BB_OK);
    leads_to(0x1000, memory, 0x8000, 4);
    leads_to(BUS_BYTES + 0x1000, memory, 0x9000, 4);
    cr_assert_eq(unit.asked, 1);
    cr_assert_eq(second.asked, 2);
    fixture_remove(&fixture, second.region);
}

Test(memory_iommu, a_regions_translations_are_never_anothers)
{
    struct bb_error err = {0};

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    for (unsigned i = 0; i < 20; i++) {
        unit.page[0].entry.translated = (bb_gpa_t)i << 12;
        leads_to(0x1000, memory, (bb_gpa_t)i << 12, 4);
        /* The next one may well lie at the same place in the heap. */
        fixture_remove(&fixture, unit.region);
        struct page page = unit.page[0];
        unit_make(&unit, "next", BUS_BYTES);
        unit.page[unit.count++] = page;
        cr_assert_eq(bb_space_map(fixture.ctx, bus, 0, unit.region, &err), BB_OK, "%s", err.text);
    }
}

static void set_flag(void *opaque)
{
    bb_store_release((unsigned *)opaque, 1); /* pairs with flag_wait() */
}

static void flag_wait(unsigned *flag)
{
    while (bb_load_acquire(flag) == 0) { /* pairs with set_flag() */
        sched_yield();
    }
}

Test(memory_iommu, an_invalidation_completes_after_the_sections_that_began_before)
{
    unsigned done = 0;

    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0, 9, set_flag, &done, NULL), BB_OK);
    uint64_t periods = bb_rcu_stats(fixture.ctx).grace_periods;
    for (unsigned i = 0; i < 1000; i++) {
        sched_yield();
    }
    cr_assert_eq(bb_load_acquire(&done), 0); /* pairs with set_flag() */
    cr_assert_eq(bb_rcu_stats(fixture.ctx).grace_periods, periods);
    bb_section_leave_(fixture.ctx);
    flag_wait(&done);
}

Test(memory_iommu, a_waiting_invalidation_is_refused_where_it_would_wait_for_itself)
{
    struct bb_error err = {0};

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    leads_to(0x1000, memory, 0x8000, 4);
    bb_section_enter_(fixture.ctx);
    cr_assert_eq(bb_iommu_invalidate_wait(fixture.ctx, unit.region, 0, 9, &err), BB_E_CONTEXT);
    bb_section_leave_(fixture.ctx);
    cr_assert_not_null(strstr(err.text, "bb_iommu_invalidate()"));
    leads_to(0x1000, memory, 0x8000, 4);
    cr_assert_eq(unit.asked, 1, "a refused invalidation has voided something");
}

Test(memory_iommu, an_invalidation_without_memory_to_tell_of_its_end_is_made_all_the_same)
{
    struct bb_error err = {0};
    unsigned done = 0;

    page_add(&unit, 0x1000, 12, memory, 0x8000);
    leads_to(0x1000, memory, 0x8000, 4);
    unit.page[0].entry.translated = 0x9000;
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, 0, 9, set_flag, &done, &err),
                 BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_not_null(strstr(err.text, "'iommu', which is made"));
    leads_to(0x1000, memory, 0x9000, 4);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    cr_assert_eq(bb_load_acquire(&done), 0); /* pairs with set_flag() */
}

/*
 * Random tables that change, with and without saying so: what is found is always what the table
 * says now, or has said since the last invalidation.
 */
Test(memory_iommu, what_is_found_was_in_the_table_since_the_last_invalidation)
{
    enum { PAGES = 600, STEPS = 60000 };
    struct test_random random;
    uint64_t seed = test_random_begin(&random);
    static bb_gpa_t said[PAGES][64]; /* what page i has led to since then */
    static unsigned says[PAGES];

    for (unsigned i = 0; i < PAGES; i++) {
        page_add(&unit, (bb_gpa_t)i << 12, 12, memory, (bb_gpa_t)i << 20);
        said[i][0] = (bb_gpa_t)i << 20;
        says[i] = 1;
    }
    for (unsigned step = 0; step < STEPS; step++) {
        unsigned i = test_random_below(&random, PAGES);
        unsigned what = test_random_below(&random, 400);

        if (what == 0) {
            for (unsigned j = 0; j < PAGES; j++) {
                said[j][0] = unit.page[j].entry.translated;
                says[j] = 1;
            }
            cr_assert_eq(
                bb_iommu_invalidate(fixture.ctx, unit.region, 0, UINT64_MAX, NULL, NULL, NULL),
                BB_OK);
        } else if (what < 20 && says[i] < 64) {
            unit.page[i].entry.translated = (test_random_next(&random) >> 20) << 12;
            said[i][says[i]++] = unit.page[i].entry.translated;
        } else {
            struct bb_found_ found;
            bool ok = false;

            cr_assert_eq(resolve((bb_gpa_t)i << 12, 8, &found), BB_OK);
            for (unsigned j = 0; j < says[i]; j++) {
                ok |= said[i][j] == found.gpa;
            }
            cr_assert(ok, "step %u, page %u leads to 0x%" PRIx64 " (seed %" PRIu64 ")", step, i,
                      found.gpa, seed);
        }
    }
    struct bb_iommu_stats stats = bb_iommu_stats(fixture.ctx);
    cr_assert(stats.hits > STEPS / 10 && stats.misses > 600, "%" PRIu64 " hits", stats.hits);
}

/* Notifiers. */

struct heard {
    unsigned unmapped, mapped;
    bb_gpa_t first, last;
    struct bb_iommu_entry entry;
};

static void hear_unmapped(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    struct heard *heard = opaque;

    cr_assert(bb_section_active_(ctx));
    heard->unmapped++;
    heard->first = first;
    heard->last = last;
}

static void hear_mapped(struct bb_ctx *ctx, void *opaque, const struct bb_iommu_entry *entry)
{
    struct heard *heard = opaque;

    cr_assert(bb_section_active_(ctx));
    heard->mapped++;
    heard->entry = *entry;
}

static struct bb_iommu_notifier *notify(struct heard *heard, bb_gpa_t first, bb_gpa_t last)
{
    struct bb_iommu_notifier_config config = {first, last, hear_unmapped, hear_mapped, heard};
    struct bb_iommu_notifier *notifier = NULL;
    struct bb_error err = {0};

    memset(heard, 0, sizeof(*heard));
    cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &notifier, &err), BB_OK,
                 "%s", err.text);
    return notifier;
}

Test(memory_iommu, a_notifier_hears_of_the_part_that_it_shares)
{
    static const struct {
        bb_gpa_t first, last;
        bool heard;
        bb_gpa_t from, to;
    } row[] = {
        {0, 0xfff, false, 0, 0},
        {0, 0x1000, true, 0x1000, 0x1000},
        {0x1200, 0x12ff, true, 0x1200, 0x12ff},
        {0x1fff, 0x5000, true, 0x1fff, 0x1fff},
        {0x2000, UINT64_MAX, false, 0, 0},
        {0, UINT64_MAX, true, 0x1000, 0x1fff},
    };
    struct heard heard, all;

    notify(&heard, 0x1000, 0x1fff); /* left to the region to free */
    notify(&all, 0, UINT64_MAX);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        heard.unmapped = all.unmapped = 0;
        cr_assert_eq(bb_iommu_invalidate(fixture.ctx, unit.region, row[i].first, row[i].last, NULL,
                                         NULL, NULL),
                     BB_OK);
        cr_assert_eq(heard.unmapped, row[i].heard ? 1 : 0, "row %zu", i);
        cr_assert(!row[i].heard || (heard.first == row[i].from && heard.last == row[i].to),
                  "row %zu", i);
        cr_assert(all.unmapped == 1 && all.first == row[i].first && all.last == row[i].last);
    }
    cr_assert_eq(heard.mapped + all.mapped, 0);
}

Test(memory_iommu, a_notifier_hears_of_pages_that_meet_its_range)
{
    const struct {
        struct bb_iommu_entry entry;
        bool heard;
    } row[] = {
        {{memory, 0x1000, 0, 12, RW}, true},  {{memory, 0, 0, 12, RW}, false},
        {{memory, 0x2000, 0, 12, RW}, false}, {{memory, 0, 0, 21, BB_IOMMU_READ}, true},
        {{memory, 0x1fff, 5, 0, RW}, true},   {{other, 0, 0, 63, 0}, true},
    };
    struct heard heard;

    notify(&heard, 0x1000, 0x1fff);
    for (size_t i = 0; i < BB_ARRAY_LEN(row); i++) {
        struct bb_error err = {0};

        heard.mapped = 0;
        cr_assert_eq(bb_iommu_announce(fixture.ctx, unit.region, &row[i].entry, &err), BB_OK, "%s",
                     err.text);
        cr_assert_eq(heard.mapped, row[i].heard ? 1 : 0, "row %zu", i);
        cr_assert(!row[i].heard || heard.entry.iova == row[i].entry.iova, "row %zu", i);
    }
    cr_assert_eq(heard.unmapped, 0);
}

Test(memory_iommu, a_removed_notifier_is_not_called_and_says_when_it_is_gone)
{
    struct heard heard[3];
    struct bb_iommu_notifier *notifier[3];
    unsigned done = 0;

    for (unsigned i = 0; i < 3; i++) {
        notifier[i] = notify(&heard[i], 0, 0xfff);
    }
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[1], set_flag, &done, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    flag_wait(&done);
    cr_assert(heard[0].unmapped == 1 && heard[1].unmapped == 0 && heard[2].unmapped == 1);
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[2], NULL, NULL, NULL), BB_OK);
    cr_assert_eq(bb_iommu_notifier_remove(fixture.ctx, notifier[0], NULL, NULL, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    cr_assert(heard[0].unmapped == 1 && heard[1].unmapped == 0 && heard[2].unmapped == 1);
}

static struct bb_iommu_notifier *own;

static void remove_own(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)first;
    (void)last;
    cr_assert_eq(bb_iommu_notifier_remove(ctx, own, set_flag, opaque, NULL), BB_OK);
}

Test(memory_iommu, a_notifier_may_remove_itself)
{
    unsigned done = 0;
    struct bb_iommu_notifier_config config = {0, 9, remove_own, NULL, &done};

    cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &own, NULL), BB_OK);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    bb_iommu_invalidate(fixture.ctx, unit.region, 0, 0, NULL, NULL, NULL);
    flag_wait(&done);
}

enum { TELLERS = 2, HEARERS = 6, HEARER_ALIVE = 0x600d };

/* A notifier's owner: gone as soon as its removal has said so. */
struct hearer {
    struct bb_iommu_notifier *notifier;
    uint32_t alive; /* (a) */
    uint32_t gone;  /* (a) */
    uint32_t heard; /* (a) */
};

static uint32_t tellers_stop; /* (a) */
static uint32_t heard_late;   /* (a) */

static void hear(struct hearer *hearer)
{
    if (bb_load_relaxed(&hearer->alive) != HEARER_ALIVE) { /* written when no call can run */
        bb_store_relaxed(&heard_late, 1);                  /* looked at in the end */
    }
    (void)bb_fetch_add_relaxed(&hearer->heard, 1); /* a counter */
}

static void hearer_unmapped(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    (void)ctx, (void)first, (void)last;
    hear(opaque);
}

static void hearer_mapped(struct bb_ctx *ctx, void *opaque, const struct bb_iommu_entry *entry)
{
    (void)ctx, (void)entry;
    hear(opaque);
}

static void hearer_gone(void *opaque)
{
    struct hearer *hearer = opaque;

    bb_store_relaxed(&hearer->alive, 0);
    bb_store_release(&hearer->gone, 1); /* pairs with the test's load */
}

static void *tell(void *opaque)
{
    struct bb_ctx *ctx = fixture_attach(&fixture, "teller");
    struct bb_iommu_entry entry = {memory, 0x1000, 0, 12, RW};
    bool ok = ctx != NULL;

    (void)opaque;
    while (ok && bb_load_acquire(&tellers_stop) == 0) { /* pairs with the test's store */
        ok = bb_iommu_invalidate(ctx, unit.region, 0, 0x1fff, NULL, NULL, NULL) == BB_OK &&
             bb_iommu_announce(ctx, unit.region, &entry, NULL) == BB_OK;
    }
    if (ctx != NULL) {
        ok &= bb_ctx_detach_(ctx, NULL) == BB_OK;
    }
    return ok ? NULL : &heard_late;
}

Test(memory_iommu, notifiers_come_and_go_while_they_are_called, .timeout = 300)
{
    static struct hearer hearer[HEARERS];
    pthread_t thread[TELLERS];
    uint64_t heard = 0, rounds = 0;
    bool failed = false;

    for (unsigned i = 0; i < TELLERS; i++) {
        cr_assert_eq(pthread_create(&thread[i], NULL, tell, NULL), 0);
    }
    for (unsigned i = 0; i < HEARERS; i++) {
        hearer[i].gone = 1;
    }
    for (uint64_t until = test_now_ns() + test_stress_ns(); test_now_ns() < until || rounds < 200;
         rounds++) {
        struct hearer *one = &hearer[rounds % HEARERS];
        struct bb_iommu_notifier_config config = {0x800, 0x17ff, hearer_unmapped, hearer_mapped,
                                                  one};

        if (one->notifier != NULL) {
            cr_assert_eq(
                bb_iommu_notifier_remove(fixture.ctx, one->notifier, hearer_gone, one, NULL),
                BB_OK);
            one->notifier = NULL;
            continue;
        }
        flag_wait(&one->gone); /* pairs with hearer_gone() */
        heard += one->heard;
        *one = (struct hearer){.alive = HEARER_ALIVE};
        cr_assert_eq(bb_iommu_notifier_add(fixture.ctx, unit.region, &config, &one->notifier, NULL),
                     BB_OK);
    }
    bb_store_release(&tellers_stop, 1); /* pairs with tell() */
    for (unsigned i = 0; i < TELLERS; i++) {
        void *result;

        pthread_join(thread[i], &result);
        failed |= result != NULL;
    }
    cr_assert(!failed);
    cr_assert_eq(heard_late, 0, "a notifier was called after it was gone");
    cr_assert_gt(heard, 0, "in %" PRIu64 " rounds", rounds);
}

Test(memory_iommu, what_makes_no_sense_is_refused_with_a_reason)
{
    struct bb_region *region = fixture_region(&fixture, "io", 16, 1);
    struct bb_iommu_notifier_config empty = {0, 9, NULL, NULL, NULL};
    struct bb_iommu_notifier_config turned = {9, 8, hear_unmapped, NULL, NULL};
    struct bb_iommu_notifier_config good = {8, 9, hear_unmapped, NULL, NULL};
    struct bb_iommu_entry entry = {memory, 0x1000, 0x1001, 12, RW};
    struct bb_iommu_notifier *notifier = NULL;
    struct bb_ctx *ctx = fixture.ctx;
    struct bb_error err = {0};

    cr_assert_eq(bb_iommu_invalidate(ctx, region, 0, 9, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "io is no IOMMU region"), "%s", err.text);
    cr_assert_eq(bb_iommu_invalidate(ctx, NULL, 0, 9, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_invalidate_wait(ctx, region, 0, 9, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_invalidate(ctx, unit.region, 9, 8, NULL, NULL, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "first 0x9 is behind last 0x8"), "%s", err.text);
    cr_assert_eq(bb_iommu_notifier_add(ctx, region, &good, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, NULL, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &good, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &empty, &notifier, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &turned, &notifier, &err), BB_E_RANGE);
    test_memory_fail_after(&fixture.memory, 0);
    cr_assert_eq(bb_iommu_notifier_add(ctx, unit.region, &good, &notifier, &err), BB_E_NOMEM);
    test_memory_fail_after(&fixture.memory, -1);
    cr_assert_null(notifier);
    cr_assert_eq(bb_iommu_notifier_remove(ctx, NULL, NULL, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, region, &entry, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, unit.region, NULL, &err), BB_E_INVAL);
    cr_assert_eq(bb_iommu_announce(ctx, unit.region, &entry, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "aligned to the page"), "%s", err.text);
    fixture_remove(&fixture, region);
}
