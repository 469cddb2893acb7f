/* SPDX-License-Identifier: MIT */
/*
 * Spaces and transactions through their public interface: table cases at the edges, what each
 * refusal says, what a refused transaction leaves (nothing), and lookups after changes.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static struct fixture fixture;

static void begin(void)
{
    fixture_begin(&fixture);
}

static void end(void)
{
    fixture_end(&fixture);
}

TestSuite(txn, .init = begin, .fini = end);

struct placement {
    enum bb_space_kind kind;
    unsigned bits;
    uint64_t size;
    bb_gpa_t gpa;
    int code;
    const char *text; /* NULL: it fits, and both its ends answer, and their neighbours don't */
};

static const struct placement placements[] = {
    {BB_SPACE_MMIO, 0, 1, 0, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, 1, UINT64_MAX, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, 2, UINT64_MAX, BB_E_RANGE, "the highest place for it is 0xfffffffffffffffe"},
    {BB_SPACE_MMIO, 0, 2, UINT64_MAX - 1, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, 0x1000, UINT64_MAX - 0xfff, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, 0x1000, UINT64_MAX - 0xffe, BB_E_RANGE, "goes past the end"},
    {BB_SPACE_MMIO, 0, BB_BIT64(63), 0, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, BB_BIT64(63), BB_BIT64(63), BB_OK, NULL},
    {BB_SPACE_MMIO, 0, BB_BIT64(63), BB_BIT64(63) + 1, BB_E_RANGE, "goes past the end"},
    {BB_SPACE_MMIO, 0, BB_BIT64(63) - 1, BB_BIT64(63) + 1, BB_OK, NULL},
    {BB_SPACE_MMIO, 0, BB_BIT64(63), 12345, BB_OK, NULL},
    {BB_SPACE_MMIO, 36, 0x1000, 0xffffff000, BB_OK, NULL},
    {BB_SPACE_MMIO, 36, 0x1001, 0xffffff000, BB_E_RANGE, "which ends at 0xfffffffff"},
    {BB_SPACE_MMIO, 36, 1, 0x1000000000, BB_E_RANGE, "exceeds space 's'"},
    {BB_SPACE_MMIO, 64, 1, UINT64_MAX, BB_OK, NULL},
    {BB_SPACE_MMIO, 1, 2, 0, BB_OK, NULL},
    {BB_SPACE_MMIO, 1, 3, 0, BB_E_RANGE, "which ends at 0x1"},
    {BB_SPACE_PIO, 0, 1, 0xffff, BB_OK, NULL},
    {BB_SPACE_PIO, 0, 1, 0x10000, BB_E_RANGE, "which ends at 0xffff"},
    {BB_SPACE_PIO, 0, 0x10000, 0, BB_OK, NULL},
    {BB_SPACE_PIO, 0, 0x10001, 0, BB_E_RANGE, "which ends at 0xffff"},
    {BB_SPACE_PIO, 0, 3, 0x3f9, BB_OK, NULL},
};

Test(txn, a_region_fits_to_the_last_byte_of_a_space_and_no_further)
{
    for (size_t i = 0; i < BB_ARRAY_LEN(placements); i++) {
        const struct placement *place = &placements[i];
        struct bb_space *space = fixture_space(&fixture, "s", place->kind, place->bits);
        struct bb_region *region = fixture_region(&fixture, "r", place->size, i);
        struct bb_error err = {0};
        int code = bb_space_map(fixture.ctx, space, place->gpa, region, &err);

        cr_assert_eq(code, place->code, "case %zu: %s", i, err.text);
        if (place->text != NULL) {
            cr_assert_not_null(strstr(err.text, place->text), "case %zu says: %s", i, err.text);
            cr_assert_null(fixture_find(&fixture, space, place->gpa));
        } else {
            bb_gpa_t last = place->gpa + (place->size - 1);
            cr_assert_eq(fixture_find(&fixture, space, place->gpa), region, "case %zu", i);
            cr_assert_eq(fixture_find(&fixture, space, last), region, "case %zu", i);
            if (place->gpa != 0) {
                cr_assert_null(fixture_find(&fixture, space, place->gpa - 1), "case %zu", i);
            }
            if (last != UINT64_MAX) {
                cr_assert_null(fixture_find(&fixture, space, last + 1), "case %zu", i);
            }
        }
        fixture_remove(&fixture, region);
    }
}

struct overlap {
    bb_gpa_t gpa;
    uint64_t size;
    const char *text; /* NULL: it fits beside 0x1000-0x1fff */
};

static const struct overlap overlaps[] = {
    {0x0fff, 1, NULL},
    {0x0fff, 2, "in 0x1000-0x1000"},
    {0x0000, 0x1000, NULL},
    {0x0000, 0x1001, "in 0x1000-0x1000"},
    {0x1000, 1, "in 0x1000-0x1000"},
    {0x1000, 0x1000, "in 0x1000-0x1fff"},
    {0x1800, 0x10, "in 0x1800-0x180f"},
    {0x0800, 0x2000, "in 0x1000-0x1fff"},
    {0x1fff, 1, "in 0x1fff-0x1fff"},
    {0x1fff, 0x1000, "in 0x1fff-0x1fff"},
    {0x2000, 1, NULL},
    {0x2000, BB_BIT64(63), NULL},
};

Test(txn, an_overlap_is_refused_naming_both_regions_and_the_bytes_they_share)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_region *there = fixture_region(&fixture, "there", 0x1000, 1);

    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x1000, there, NULL), BB_OK);
    for (size_t i = 0; i < BB_ARRAY_LEN(overlaps); i++) {
        const struct overlap *overlap = &overlaps[i];
        struct bb_region *region = fixture_region(&fixture, "new", overlap->size, 2);
        struct bb_error err = {0};
        int code = bb_space_map(fixture.ctx, space, overlap->gpa, region, &err);
        if (overlap->text == NULL) {
            cr_assert_eq(code, BB_OK, "case %zu: %s", i, err.text);
        } else {
            char whole[160];
            snprintf(whole, sizeof(whole),
                     "region 'new' at 0x%" PRIx64 "-0x%" PRIx64 " of space 'mem' overlaps region "
                     "'there' at 0x1000-0x1fff %s, with the same priority 0",
                     overlap->gpa, overlap->gpa + overlap->size - 1, overlap->text);
            cr_assert_eq(code, BB_E_EXIST, "case %zu", i);
            cr_assert_str_eq(err.text, whole);
            cr_assert_eq(fixture_find(&fixture, space, 0x1800), there);
        }
        fixture_remove(&fixture, region);
    }
    fixture_remove(&fixture, there);
}

Test(txn, a_region_is_mapped_once_and_unmapped_once)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_space *other = fixture_space(&fixture, "io", BB_SPACE_PIO, 0);
    struct bb_region *region = fixture_region(&fixture, "r", 16, 1);
    struct bb_error err = {0};

    cr_assert_eq(bb_space_unmap(fixture.ctx, region, &err), BB_E_NOENT);
    cr_assert_str_eq(err.text, "region 'r' is not mapped");
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x100, region, &err), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, other, 0x200, region, &err), BB_E_EXIST);
    cr_assert_str_eq(err.text, "region 'r' is mapped already, at 0x100 of space 'mem'; unmap it "
                               "first, or make an alias of it");
    cr_assert_eq(bb_space_unmap(fixture.ctx, region, &err), BB_OK);
    cr_assert_eq(bb_space_unmap(fixture.ctx, region, &err), BB_E_NOENT);
    cr_assert_eq(bb_space_map(fixture.ctx, other, 0x200, region, &err), BB_OK);
    cr_assert_eq(fixture_find(&fixture, other, 0x20f), region);
    cr_assert_null(fixture_find(&fixture, space, 0x100));
    fixture_remove(&fixture, region);
}

Test(txn, changes_are_made_in_order_and_overlaps_are_judged_at_the_end)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_region *a = fixture_region(&fixture, "a", 0x100, 1);
    struct bb_region *b = fixture_region(&fixture, "b", 0x100, 2);
    struct bb_txn *txn;
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x1000, a, &err), BB_OK);

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, space, 0x1080, b, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "they share addresses for a moment only");
    cr_assert_eq(fixture_find(&fixture, space, 0x1080), b);

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, space, 0x1000, a, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_E_NOENT, "the second finds it unmapped");

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, b, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, space, 0x1000, a, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    cr_assert_eq(fixture_find(&fixture, space, 0x1080), a);

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, space, 0x1080, b, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, space, 0x1180, a, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    cr_assert_null(fixture_find(&fixture, space, 0x107f));
    cr_assert_eq(fixture_find(&fixture, space, 0x1080), b);
    cr_assert_eq(fixture_find(&fixture, space, 0x117f), b);
    cr_assert_eq(fixture_find(&fixture, space, 0x1180), a);

    /* Out and back in one transaction, and twice over. */
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
        cr_assert_eq(bb_txn_map(txn, space, 0x5000 + (bb_gpa_t)i, a, &err), BB_OK);
    }
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    cr_assert_eq(fixture_find(&fixture, space, 0x5004), a);
    cr_assert_null(fixture_find(&fixture, space, 0x5003));
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
}

Test(txn, a_refused_transaction_changes_nothing_not_even_the_generation)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_space *other = fixture_space(&fixture, "io", BB_SPACE_PIO, 0);
    struct bb_region *a = fixture_region(&fixture, "a", 0x100, 1);
    struct bb_region *b = fixture_region(&fixture, "b", 0x100, 2);
    struct bb_region *c = fixture_region(&fixture, "c", 0x100, 3);
    struct bb_txn *txn;
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x1000, a, NULL), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x2000, b, NULL), BB_OK);
    const struct bb_root_ *root = fixture.map->root;
    uint64_t live = fixture_settled_bytes(&fixture);

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, other, 0x40, a, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, a, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, other, 0x80, c, &err), BB_OK);
    cr_assert_eq(bb_txn_unmap(txn, b, &err), BB_OK);
    cr_assert_eq(bb_txn_map(txn, other, 0x100, b, &err), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_E_EXIST);
    cr_assert_not_null(strstr(err.text, "'c' at 0x80-0x17f of space 'io' overlaps region 'b'"),
                       "%s", err.text);

    cr_assert_eq(fixture.map->root, root);
    cr_assert_eq(fixture_settled_bytes(&fixture), live);
    cr_assert_eq(fixture_find(&fixture, space, 0x1000), a);
    cr_assert_eq(fixture_find(&fixture, space, 0x2000), b);
    cr_assert_null(fixture_find(&fixture, other, 0x80));
    /* The regions know it too. */
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x3000, a, &err), BB_E_EXIST);
    cr_assert_not_null(strstr(err.text, "at 0x1000 of space 'mem'"), "%s", err.text);
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x3000, c, &err), BB_OK);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
    fixture_remove(&fixture, c);
}

Test(txn, an_aborted_or_empty_transaction_publishes_nothing)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_region *a = fixture_region(&fixture, "a", 0x100, 1);
    const struct bb_root_ *root = fixture.map->root;
    struct bb_txn *txn;

    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(bb_txn_map(txn, space, 0x1000, a, NULL), BB_OK);
    }
    bb_txn_abort(txn);
    cr_assert_eq(fixture.map->root, root);
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_map(txn, NULL, 0, a, NULL), BB_E_INVAL);
    cr_assert_eq(bb_txn_map(txn, space, 0, NULL, NULL), BB_E_INVAL);
    cr_assert_eq(bb_txn_unmap(txn, NULL, NULL), BB_E_INVAL);
    bb_txn_abort(txn);
    fixture_remove(&fixture, a);
}

Test(txn, a_region_being_removed_is_unmapped_and_refused_from_then_on)
{
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_region *region[3];
    struct bb_error err = {0};

    for (int i = 0; i < 3; i++) {
        region[i] = fixture_region(&fixture, &"abc"[i], 0x100, 1);
    }
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x1000, region[0], NULL), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x2000, region[1], NULL), BB_OK);
    cr_assert_eq(bb_regions_retire_(fixture.ctx, &region[1], 2, &err), BB_OK, "%s", err.text);
    cr_assert_null(fixture_find(&fixture, space, 0x2000));
    cr_assert_eq(bb_space_map(fixture.ctx, space, 0x3000, region[1], &err), BB_E_STATE);
    cr_assert_str_eq(err.text, "region 'bc' is being removed and can't be mapped or changed");
    cr_assert_eq(bb_space_unmap(fixture.ctx, region[2], &err), BB_E_STATE);

    cr_assert_eq(bb_regions_retire_(fixture.ctx, NULL, 0, &err), BB_OK);

    /* One of them being removed refuses all, and leaves the other mapped. */
    cr_assert_eq(bb_regions_retire_(fixture.ctx, region, 2, &err), BB_E_STATE);
    cr_assert_str_eq(err.text, "region 'bc' is being removed already");
    cr_assert_eq(fixture_find(&fixture, space, 0x1000), region[0]);
    cr_assert_eq(bb_space_unmap(fixture.ctx, region[0], &err), BB_OK);
    for (int i = 0; i < 3; i++) {
        fixture_remove(&fixture, region[i]);
    }
}

Test(txn, a_space_is_refused_for_a_bad_configuration_and_past_the_limit)
{
    static const struct {
        struct bb_space_config config;
        int code;
        const char *text;
    } bad[] = {
        {{.kind = BB_SPACE_MMIO}, BB_E_INVAL, "with a name"},
        {{.name = "", .kind = BB_SPACE_MMIO}, BB_E_INVAL, "with a name"},
        {{.name = "s", .kind = (enum bb_space_kind)2}, BB_E_INVAL, "kind 2 is neither"},
        {{.name = "s", .bits = 65}, BB_E_RANGE, "65 address bits; 1 to 64 are possible"},
    };
    struct bb_space *space = NULL;
    struct bb_error err = {0};

    for (size_t i = 0; i < BB_ARRAY_LEN(bad); i++) {
        cr_assert_eq(bb_space_create(fixture.ctx, &bad[i].config, &space, &err), bad[i].code);
        cr_assert_not_null(strstr(err.text, bad[i].text), "case %zu says: %s", i, err.text);
        cr_assert_null(space);
    }
    for (int i = 0; i < BB_SPACES_MAX; i++) {
        cr_assert_str_eq(bb_space_name(fixture_space(&fixture, "s", BB_SPACE_MMIO, 0)), "s");
    }
    struct bb_space_config config = {.name = "one too many"};
    cr_assert_eq(bb_space_create(fixture.ctx, &config, &space, &err), BB_E_LIMIT);
    cr_assert_not_null(strstr(err.text, "at most 64 spaces"), "%s", err.text);
    cr_assert_null(space);
}

struct visits {
    unsigned count;
    unsigned stop_after;
    bb_gpa_t first[8];
    bb_gpa_t last[8];
    const struct bb_region *region[8];
};

static bool visit(void *opaque, bb_gpa_t first, bb_gpa_t last, const struct bb_region *region)
{
    struct visits *visits = opaque;

    visits->first[visits->count] = first;
    visits->last[visits->count] = last;
    visits->region[visits->count] = region;
    return ++visits->count < visits->stop_after;
}

Test(txn, a_visit_meets_each_region_once_in_rising_order_and_stops_when_told)
{
    static const bb_gpa_t at[] = {UINT64_MAX - 0xf, 0x30, 0, 0x100000000};
    static const unsigned rising[] = {2, 1, 3, 0};
    struct bb_space *space = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_region *region[4];
    struct visits visits = {.stop_after = 8};

    bb_space_each(fixture.ctx, space, visit, &visits);
    cr_assert_eq(visits.count, 0);
    for (int i = 0; i < 4; i++) {
        region[i] = fixture_region(&fixture, "r", 16, 1);
        cr_assert_eq(bb_space_map(fixture.ctx, space, at[i], region[i], NULL), BB_OK);
    }
    bb_space_each(fixture.ctx, space, visit, &visits);
    cr_assert_eq(visits.count, 4);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(visits.region[i], region[rising[i]]);
        cr_assert_eq(visits.first[i], at[rising[i]]);
        cr_assert_eq(visits.last[i], at[rising[i]] + 15);
    }
    visits = (struct visits){.stop_after = 2};
    bb_space_each(fixture.ctx, space, visit, &visits);
    cr_assert_eq(visits.count, 2);
    for (int i = 0; i < 4; i++) {
        fixture_remove(&fixture, region[i]);
    }
}

Test(txn, a_remembered_hit_is_not_used_after_a_change)
{
    /* Spaces 0 and 8 share the entries in which hits are remembered. */
    struct bb_space *space[BB_HIT_SPACES_ + 1];
    struct bb_region *a = fixture_region(&fixture, "a", 0x1000, 1);
    struct bb_region *b = fixture_region(&fixture, "b", 0x1000, 2);
    struct bb_region *c = fixture_region(&fixture, "c", 0x800, 3);

    for (int i = 0; i <= BB_HIT_SPACES_; i++) {
        space[i] = fixture_space(&fixture, "s", BB_SPACE_MMIO, 0);
    }
    struct bb_space *first = space[0], *sharing = space[BB_HIT_SPACES_];
    cr_assert_eq(bb_space_map(fixture.ctx, first, 0x4000, a, NULL), BB_OK);
    cr_assert_eq(fixture_find(&fixture, first, 0x4800), a);
    cr_assert_null(fixture_find(&fixture, sharing, 0x4800), "the other space's hit was used");
    cr_assert_eq(bb_space_map(fixture.ctx, sharing, 0x4000, b, NULL), BB_OK);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(fixture_find(&fixture, first, 0x4800), a);
        cr_assert_eq(fixture_find(&fixture, sharing, 0x4800), b);
    }

    cr_assert_eq(fixture_find(&fixture, first, 0x4800), a);
    cr_assert_eq(bb_space_unmap(fixture.ctx, a, NULL), BB_OK);
    cr_assert_null(fixture_find(&fixture, first, 0x4800), "a hit outlived its region");
    cr_assert_eq(bb_space_map(fixture.ctx, first, 0x4000, c, NULL), BB_OK);
    cr_assert_eq(fixture_find(&fixture, first, 0x47ff), c);
    cr_assert_null(fixture_find(&fixture, first, 0x4800));
    /* The very same tree again, another view: A is back, freed and made in between or not. */
    cr_assert_eq(bb_space_unmap(fixture.ctx, c, NULL), BB_OK);
    cr_assert_eq(bb_space_map(fixture.ctx, first, 0x4000, a, NULL), BB_OK);
    cr_assert_eq(fixture_find(&fixture, first, 0x4800), a);
    fixture_remove(&fixture, a);
    fixture_remove(&fixture, b);
    fixture_remove(&fixture, c);
}

Test(txn, a_change_of_one_space_leaves_hits_of_the_others_valid)
{
    struct bb_space *mem = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_space *io = fixture_space(&fixture, "io", BB_SPACE_PIO, 0);
    struct bb_region *a = fixture_region(&fixture, "a", 0x10, 1);

    uint64_t mem_before = fixture.map->root->view[mem->index].generation;
    uint64_t io_before = fixture.map->root->view[io->index].generation;
    cr_assert_neq(mem_before, 0);
    cr_assert_neq(mem_before, io_before);
    cr_assert_eq(bb_space_map(fixture.ctx, io, 0x60, a, NULL), BB_OK);
    cr_assert_eq(fixture.map->root->view[mem->index].generation, mem_before);
    cr_assert_gt(fixture.map->root->view[io->index].generation, io_before);
    fixture_remove(&fixture, a);
}

/* Swaps, moves and removals that need every kind of allocation a commit makes. */
static int storm(struct bb_space *mem, struct bb_space *io, struct bb_region **region,
                 unsigned count, struct bb_error *err)
{
    struct bb_txn *txn;
    int result = bb_txn_begin(fixture.ctx, &txn, err);

    if (result != BB_OK) {
        return result;
    }
    for (unsigned i = 0; i < count && result == BB_OK; i++) {
        result = bb_txn_unmap(txn, region[i], err);
        if (result == BB_OK) {
            result =
                bb_txn_map(txn, i % 2 != 0 ? io : mem, 0x800 + 0x90 * (bb_gpa_t)i, region[i], err);
        }
    }
    if (result != BB_OK) {
        bb_txn_abort(txn);
        return result;
    }
    return bb_txn_commit(txn, err);
}

Test(txn, no_memory_at_any_allocation_leaves_the_old_view)
{
    enum { COUNT = 12 };
    struct bb_space *mem = fixture_space(&fixture, "mem", BB_SPACE_MMIO, 0);
    struct bb_space *io = fixture_space(&fixture, "io", BB_SPACE_PIO, 0);
    struct bb_region *region[COUNT];
    struct bb_error err = {0};
    int result;
    long failures = 0;

    for (unsigned i = 0; i < COUNT; i++) {
        region[i] = fixture_region(&fixture, "r", 0x70, i);
        cr_assert_eq(bb_space_map(fixture.ctx, mem, 0x1000 * (bb_gpa_t)(i + 1), region[i], NULL),
                     BB_OK);
    }
    bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
    const struct bb_root_ *root = fixture.map->root;
    uint64_t live = fixture_settled_bytes(&fixture);
    for (;;) {
        test_memory_fail_after(&fixture.memory, failures);
        result = storm(mem, io, region, COUNT, &err);
        test_memory_fail_after(&fixture.memory, -1);
        if (result == BB_OK) {
            break;
        }
        failures++;
        cr_assert_eq(result, BB_E_NOMEM);
        cr_assert_eq(err.code, BB_E_NOMEM);
        cr_assert_not_null(strstr(err.text, "no memory"), "%s", err.text);
        cr_assert_eq(fixture.map->root, root);
        for (unsigned i = 0; i < COUNT; i++) {
            cr_assert_eq(fixture_find(&fixture, mem, 0x1000 * (bb_gpa_t)(i + 1) + 0x6f), region[i]);
            cr_assert(region[i]->parent == bb_space_root(mem) &&
                      region[i]->at == 0x1000 * (bb_gpa_t)(i + 1));
        }
        bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
        cr_assert_eq(fixture_settled_bytes(&fixture), live, "failure %ld leaks", failures);
    }
    cr_assert_gt(failures, 25);
    for (unsigned i = 0; i < COUNT; i++) {
        struct bb_space *space = i % 2 != 0 ? io : mem;
        cr_assert_eq(fixture_find(&fixture, space, 0x800 + 0x90 * (bb_gpa_t)i), region[i]);
    }

    /* Removal likewise: none is half removed. */
    bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
    for (failures = 0;; failures++) {
        test_memory_fail_after(&fixture.memory, failures);
        result = bb_regions_retire_(fixture.ctx, region, COUNT, &err);
        test_memory_fail_after(&fixture.memory, -1);
        if (result == BB_OK) {
            break;
        }
        cr_assert_eq(result, BB_E_NOMEM);
        for (unsigned i = 0; i < COUNT; i++) {
            cr_assert(!region[i]->removing && region[i]->parent != NULL);
        }
        bb_pool_empty_(&fixture.map->pool, fixture.memory.heap);
    }
    cr_assert_gt(failures, 0);
    for (unsigned i = 0; i < COUNT; i++) {
        fixture_remove(&fixture, region[i]);
    }
}

Test(txn, no_memory_makes_no_space_and_no_map)
{
    struct bb_space_config config = {.name = "s"};
    struct bb_space *space = NULL;
    struct bb_map *map = NULL;
    struct bb_error err = {0};

    for (long n = 0; n < 2; n++) {
        uint64_t live = fixture_settled_bytes(&fixture);
        test_memory_fail_after(&fixture.memory, n);
        cr_assert_eq(bb_space_create(fixture.ctx, &config, &space, &err), BB_E_NOMEM);
        test_memory_fail_after(&fixture.memory, n);
        cr_assert_eq(bb_map_create_(fixture.rcu, fixture.memory.heap, &map, &err), BB_E_NOMEM);
        test_memory_fail_after(&fixture.memory, -1);
        cr_assert_eq(fixture_settled_bytes(&fixture), live);
    }
    cr_assert_null(space);
    cr_assert_null(map);
    space = fixture_space(&fixture, "s", BB_SPACE_MMIO, 0);
    cr_assert_null(fixture_find(&fixture, space, 0));
}
