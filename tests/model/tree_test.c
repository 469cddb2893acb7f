/* SPDX-License-Identifier: MIT */
/*
 * Random trees of regions against the model, at every boundary byte, after every transaction. A
 * failure is shrunk and printed with its seed. tests/README.md says how to run more of them, and
 * one again.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/bits.h"
#include "budget.h"
#include "stage.h"

/* So many programs run on one engine, which is destroyed then and proves that nothing leaked. */
enum { PROGRAMS_AN_ENGINE = 500 };

static struct stage stage;
static struct topology topology;

struct tally {
    uint64_t commits, refusals, compared, shown;
    uint32_t codes;
};

static void add_up(struct tally *tally)
{
    tally->commits += stage.commits;
    tally->refusals += stage.refusals;
    tally->compared += stage.compared;
    tally->shown += stage.shown;
    tally->codes |= stage.codes;
}

/* Runs a program and takes down what it made. */
static const char *run(const struct topology *program)
{
    static char text[STAGE_TEXT_BYTES];
    const char *wrong = stage_run(&stage, program);

    if (wrong != NULL) {
        snprintf(text, sizeof(text), "%s", wrong);
    }
    const char *left = stage_clear(&stage);
    return wrong != NULL ? text : left;
}

static bool is_wrong(void *opaque, const struct topology *program)
{
    (void)opaque;
    return run(program) != NULL;
}

/* Shrinks and prints a program that failed. */
static void report(struct topology *program, FILE *out)
{
    unsigned steps = program->count;
    unsigned asked = topology_shrink(program, is_wrong, NULL);

    fprintf(out, "BUSBAR_SEED=%" PRIu64 ": %s\n  %u of %u steps do it (%u runs):\n", program->seed,
            run(program), program->count, steps, asked);
    topology_print(out, program);
}

static void begin(void)
{
    const char *wrong = stage_begin(&stage);

    cr_assert_null(wrong, "%s", wrong);
}

static void end(void)
{
    const char *wrong = stage_end(&stage);

    cr_assert_null(wrong, "%s", wrong);
}

TestSuite(tree, .init = begin, .fini = end);

Test(tree, engine_and_model_agree_at_every_boundary_of_random_trees, .timeout = 7200)
{
    struct budget budget = budget_begin();
    uint64_t done = 0;
    struct tally tally = {0};

    static const int codes[] = {BB_OK,      BB_E_EXIST, BB_E_NOENT,
                                BB_E_INVAL, BB_E_RANGE, BB_E_UNSUPPORTED};

    while (budget_allows(&budget, done)) {
        topology_make(&topology, budget.seed + done, TOPOLOGY_BYTES);
        if (run(&topology) != NULL) {
            report(&topology, stderr);
            cr_assert_fail("engine and model differ: see above");
        }
        done++;
        if (done % PROGRAMS_AN_ENGINE == 0) {
            add_up(&tally);
            end();
            begin();
        }
    }
    add_up(&tally);
    fprintf(stderr,
            "%" PRIu64 " trees, %" PRIu64 " transactions made and %" PRIu64 " refused, %" PRIu64
            " bytes compared, %" PRIu64 " of them in a region, %.1f s\n",
            done, tally.commits, tally.refusals, tally.compared, tally.shown,
            budget_spent_s(&budget));
    /* Programs that are all refused, or show nothing, would prove nothing. */
    if (done >= 20) {
        cr_assert_gt(tally.commits, tally.refusals);
        cr_assert_gt(tally.refusals, done / 20);
        cr_assert_gt(tally.shown, tally.compared / 8);
    }
    for (unsigned i = 0; i < BB_ARRAY_LEN(codes) && done >= 200; i++) {
        cr_assert((tally.codes & 1u << -codes[i]) != 0, "no program met %s",
                  bb_result_name(codes[i]));
    }
}

/* The rest is about the test itself. */

Test(tree, a_model_that_errs_is_found_and_its_program_shrinks_to_what_is_needed)
{
    uint64_t seed = 1;

    model_broken = true;
    do {
        topology_make(&topology, seed++, TOPOLOGY_BYTES);
    } while (run(&topology) == NULL && seed < 1000);
    cr_assert_lt(seed, 1000, "a thousand programs did not tell a broken model from a sound one");
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    cr_assert_not_null(out);
    report(&topology, out);
    fclose(out);
    cr_assert_not_null(strstr(text, "BUSBAR_SEED="));
    cr_assert_not_null(strstr(text, "the model #"), "%s", text);
    cr_assert_not_null(strstr(text, "\n  make #"), "%s", text);
    free(text);
    /* Two regions that overlap, made and placed; and what shows them. */
    cr_assert_leq(topology.count, 12, "%u steps are left", topology.count);
    cr_assert_not_null(run(&topology));
    model_broken = false;
    cr_assert_null(run(&topology), "the engine errs in it as well");
}

Test(tree, programs_are_functions_of_their_seeds)
{
    static struct topology again;

    for (uint64_t seed = 0; seed < 50; seed++) {
        topology_make(&topology, seed, TOPOLOGY_BYTES);
        topology_make(&again, seed, TOPOLOGY_BYTES);
        cr_assert_eq(topology.count, again.count);
        for (unsigned i = 0; i < topology.count; i++) {
            cr_assert_eq(topology.step[i].kind, again.step[i].kind);
            cr_assert_eq(topology.step[i].change.number, again.step[i].change.number);
        }
    }
}
