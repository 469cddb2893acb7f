/* SPDX-License-Identifier: MIT */
/* Packed snapshot words: layout, updates, and updates of many threads at once. */
#include "../../rcu/packed.h"
#include "rcu_test.h"

static const struct bb_packed_field ENABLED = {0, 1};
static const struct bb_packed_field COUNT = {1, 31};
static const struct bb_packed_field VERSION = {32, 8};
static const struct bb_packed_field MIRROR = {40, 24};

Test(rcu_packed, fields_keep_to_their_bits)
{
    uint64_t word = UINT64_MAX;

    word = bb_packed_set(word, COUNT, 0);
    cr_assert_eq(word, UINT64_C(0xffffffff00000001));
    word = bb_packed_set(word, COUNT, UINT64_MAX);
    cr_assert_eq(word, UINT64_MAX, "what does not fit is dropped");
    cr_assert_eq(bb_packed_get(word, MIRROR), 0xffffff);
    cr_assert_eq(bb_packed_get(word, ENABLED), 1);
    word = bb_packed_bump(word, VERSION);
    cr_assert_eq(word, UINT64_C(0xffffff00ffffffff), "a version wraps inside its field");
    cr_assert_eq(bb_packed_set(5, (struct bb_packed_field){0, 64}, 77), 77);
}

Test(rcu_packed, layouts_that_overlap_or_leave_the_word_are_told)
{
    static const struct {
        struct bb_packed_field fields[3];
        size_t count;
        bool ok;
    } cases[] = {
        {{{0, 64}}, 1, true},          {{{0, 1}, {1, 63}}, 2, true},
        {{{63, 1}, {0, 63}}, 2, true}, {{{0, 0}}, 1, false},
        {{{64, 1}}, 1, false},         {{{63, 2}}, 1, false},
        {{{0, 65}}, 1, false},         {{{255, 2}}, 1, false},
        {{{0, 2}, {1, 1}}, 2, false},  {{{0, 8}, {16, 8}, {15, 2}}, 3, false},
        {{{0, 64}, {0, 1}}, 2, false},
    };

    for (size_t i = 0; i < BB_ARRAY_LEN(cases); i++) {
        cr_assert_eq(bb_packed_layout_ok(cases[i].fields, cases[i].count), cases[i].ok, "case %zu",
                     i);
    }
}

static bool enable_once(uint64_t *next, void *argument)
{
    (void)argument;
    if (bb_packed_get(*next, ENABLED) != 0) {
        return false;
    }
    *next = bb_packed_bump(bb_packed_set(*next, ENABLED, 1), VERSION);
    return true;
}

Test(rcu_packed, an_update_tells_before_and_after_and_may_leave_the_word_alone)
{
    uint64_t word = bb_packed_set(0, COUNT, 9);
    uint64_t before = 1;
    uint64_t after = 2;

    cr_assert(bb_packed_update(&word, enable_once, NULL, &before, &after));
    cr_assert_eq(bb_packed_get(before, ENABLED), 0);
    cr_assert_eq(bb_packed_get(after, ENABLED), 1);
    cr_assert_eq(bb_packed_get(after, VERSION), 1);
    cr_assert_eq(bb_packed_get(after, COUNT), 9);
    cr_assert_eq(bb_packed_load(&word), after);
    cr_assert_not(bb_packed_update(&word, enable_once, NULL, &before, &after));
    cr_assert_eq(before, word);
    cr_assert_eq(after, word);
    cr_assert_not(bb_packed_update(&word, enable_once, NULL, NULL, NULL));
}

/* A thread that changes the word while another is between its load and its swap. */
struct interloper {
    uint64_t *word;
    unsigned calls;
    unsigned meddles;
};

static bool meddled(uint64_t *next, void *argument)
{
    struct interloper *i = argument;

    if (i->calls++ < i->meddles) {
        bb_store_relaxed(i->word, bb_packed_set(*next, COUNT, 100 + i->calls));
    }
    *next = bb_packed_set(*next, ENABLED, 1);
    return true;
}

Test(rcu_packed, an_attempt_fails_only_where_another_change_came_between_and_loses_none)
{
    uint64_t word = 0;

    for (unsigned meddles = 0; meddles < 4; meddles++) {
        struct interloper i = {.word = &word, .meddles = meddles};

        word = 0;
        cr_assert(bb_packed_update(&word, meddled, &i, NULL, NULL));
        cr_assert_eq(i.calls, meddles + 1);
        cr_assert_eq(bb_packed_get(word, ENABLED), 1);
        cr_assert_eq(bb_packed_get(word, COUNT), meddles == 0 ? 0 : 100 + meddles);
    }
}

enum { CHANGERS = 2, READERS = 1, CHANGES = 200000 };

struct torture {
    uint64_t word;    /* (a) */
    uint64_t guarded; /* written by the changer that ENABLED shuts the others out for */
    uint32_t stop;    /* (a) */
    uint32_t errors;  /* (a) */
};

/* COUNT and MIRROR always change together. */
static bool count_up(uint64_t *next, void *argument)
{
    uint64_t count = bb_packed_get(*next, COUNT) + 1;

    (void)argument;
    *next =
        bb_packed_bump(bb_packed_set(bb_packed_set(*next, COUNT, count), MIRROR, count), VERSION);
    return true;
}

static bool take(uint64_t *next, void *argument)
{
    (void)argument;
    if (bb_packed_get(*next, ENABLED) != 0) {
        return false;
    }
    *next = bb_packed_set(*next, ENABLED, 1);
    return true;
}

static bool give(uint64_t *next, void *argument)
{
    (void)argument;
    *next = bb_packed_set(*next, ENABLED, 0);
    return true;
}

static void *changer_main(void *arg)
{
    struct torture *t = arg;

    for (int i = 0; i < CHANGES; i++) {
        (void)bb_packed_update(&t->word, count_up, NULL, NULL, NULL);
        /* Acquire and release of the changes order the plain word: ThreadSanitizer checks it. */
        if (bb_packed_update(&t->word, take, NULL, NULL, NULL)) {
            t->guarded++;
            (void)bb_packed_update(&t->word, give, NULL, NULL, NULL);
        }
    }
    return NULL;
}

static void *reader_main(void *arg)
{
    struct torture *t = arg;
    uint64_t last = 0;

    while (bb_load_relaxed(&t->stop) == 0) {
        uint64_t word = bb_packed_load(&t->word);
        uint64_t count = bb_packed_get(word, COUNT);

        if ((count & 0xffffff) != bb_packed_get(word, MIRROR) ||
            (count & 0xff) != bb_packed_get(word, VERSION) || count < last) {
            (void)bb_fetch_add_relaxed(&t->errors, 1);
        }
        last = count;
    }
    return NULL;
}

Test(rcu_packed, torture_no_change_is_lost_and_no_snapshot_is_mixed)
{
    static struct torture t;
    pthread_t changers[CHANGERS];
    pthread_t reader;

    cr_assert_eq(pthread_create(&reader, NULL, reader_main, &t), 0);
    for (int i = 0; i < CHANGERS; i++) {
        cr_assert_eq(pthread_create(&changers[i], NULL, changer_main, &t), 0);
    }
    for (int i = 0; i < CHANGERS; i++) {
        (void)pthread_join(changers[i], NULL);
    }
    bb_store_relaxed(&t.stop, 1u);
    (void)pthread_join(reader, NULL);
    cr_assert_eq(t.errors, 0);
    cr_assert_eq(bb_packed_get(t.word, COUNT), CHANGERS * CHANGES);
    cr_assert_eq(bb_packed_get(t.word, ENABLED), 0);
    cr_assert_gt(t.guarded, 0);
}
