/* SPDX-License-Identifier: MIT */
/* The latch: readers see whole values, also between any two steps of a write. */
struct bb_latch;
static void look_between_steps(const struct bb_latch *latch);
#define BB_LATCH_STEP_(latch) look_between_steps(latch)
#include "../../rcu/latch.h"
#include "rcu_test.h"

enum { WORDS = BB_LATCH_WORDS_MAX };

static bool looking; /* the scripted test is running */
static uint64_t old_value;
static uint64_t new_value;
static unsigned steps;
static unsigned torn;
static unsigned saw_new;

static void fill(uint64_t *value, uint64_t n)
{
    for (unsigned i = 0; i < WORDS; i++) {
        value[i] = n * 1000 + i;
    }
}

static bool whole(const uint64_t *value, uint64_t n)
{
    for (unsigned i = 0; i < WORDS; i++) {
        if (value[i] != n * 1000 + i) {
            return false;
        }
    }
    return true;
}

/* Stands in for a reader that runs while the writer is stopped here. */
static void look_between_steps(const struct bb_latch *latch)
{
    uint64_t value[WORDS];
    uint64_t number;

    if (!looking) {
        return;
    }
    steps++;
    number = bb_latch_read(latch, value, WORDS);
    if (whole(value, new_value)) {
        saw_new++;
    } else if (!whole(value, old_value) || saw_new != 0) {
        torn++;
    }
    if (bb_latch_changed(latch, number)) {
        torn++;
    }
}

Test(rcu_latch, a_reader_sees_a_whole_value_wherever_the_writer_is_stopped)
{
    struct bb_latch latch;
    uint64_t value[WORDS];

    looking = true;
    fill(value, 1);
    bb_latch_init(&latch, value, WORDS);
    for (uint64_t n = 2; n < 6; n++) {
        old_value = n - 1;
        new_value = n;
        steps = 0;
        saw_new = 0;
        fill(value, n);
        bb_latch_write(&latch, value, WORDS);
        cr_assert_eq(steps, 2 * (WORDS + 1));
        cr_assert_eq(torn, 0);
        cr_assert_eq(saw_new, WORDS + 1, "the new value appears when the first copy is whole");
        cr_assert_eq(bb_latch_read(&latch, value, WORDS), n - 1);
        cr_assert(whole(value, n));
    }
}

Test(rcu_latch, a_change_is_noticed_by_number)
{
    struct bb_latch latch;
    uint64_t value = 5;
    uint64_t number;

    bb_latch_init(&latch, &value, 1);
    number = bb_latch_read(&latch, &value, 1);
    cr_assert_not(bb_latch_changed(&latch, number));
    value = 6;
    bb_latch_write(&latch, &value, 1);
    cr_assert(bb_latch_changed(&latch, number));
    cr_assert_eq(bb_latch_read(&latch, &value, 1), number + 1);
    cr_assert_eq(value, 6);
}

struct torture {
    struct bb_latch latch;
    uint32_t stop;   /* (a) */
    uint32_t errors; /* (a) */
};

static void *reader_main(void *arg)
{
    struct torture *t = arg;
    uint64_t last = 0;

    while (bb_load_relaxed(&t->stop) == 0) {
        uint64_t value[WORDS];
        uint64_t number = bb_latch_read(&t->latch, value, WORDS);

        /* Value n is the n-th write: torn words and numbers that run backwards both show. */
        if (!whole(value, number) || number < last) {
            (void)bb_fetch_add_relaxed(&t->errors, 1);
        }
        last = number;
    }
    return NULL;
}

Test(rcu_latch, torture_no_reader_sees_a_torn_or_older_value, .timeout = 200)
{
    enum { READERS = 2 };
    static struct torture t;
    uint64_t value[WORDS];
    pthread_t readers[READERS];
    bb_ns_t end_ns = bb_host_now_ns_() + stress_ns();
    uint64_t n = 0;

    fill(value, 0);
    bb_latch_init(&t.latch, value, WORDS);
    for (int i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_create(&readers[i], NULL, reader_main, &t), 0);
    }
    while ((n & 0xff) != 0 || bb_host_now_ns_() < end_ns) {
        fill(value, ++n);
        bb_latch_write(&t.latch, value, WORDS);
    }
    bb_store_relaxed(&t.stop, 1u);
    for (int i = 0; i < READERS; i++) {
        (void)pthread_join(readers[i], NULL);
    }
    cr_assert_eq(t.errors, 0, "%llu writes", (unsigned long long)n);
}
