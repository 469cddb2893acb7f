/* SPDX-License-Identifier: MIT */
/*
 * Random access programs on random trees: the engine's callbacks (order, sizes, offsets, values,
 * attributes), results and values are the model's. A failure is shrunk and printed with its seed.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "program.h"

enum { PROGRAMS_AN_ENGINE = 500 };

static struct stage stage;
static struct program program;
static char text[STAGE_TEXT_BYTES];
/* What happened, to tell whether programs are worth anything. */
static uint64_t accesses, calls, refused, split;

static const char *wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

static const char *wrong(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return text;
}

static const char *describe(const struct stage_call *call)
{
    static char out[2][160];
    static unsigned turn;
    char *into = out[turn ^= 1];

    snprintf(into, sizeof(out[0]),
             "%s of %s %u at #%d+0x%" PRIx64 ", value 0x%" PRIx64 ", requester 0x%" PRIx32,
             call->accept ? "question" : "callback", call->write ? "write" : "read", call->size,
             call->region, call->offset, call->value, call->attrs.requester_id);
    return into;
}

static bool same_call(const struct stage_call *a, const struct stage_call *b)
{
    return a->region == b->region && a->accept == b->accept && a->write == b->write &&
           a->offset == b->offset && a->size == b->size && a->value == b->value &&
           a->attrs.requester_id == b->attrs.requester_id && a->attrs.secure == b->attrs.secure &&
           a->attrs.privileged == b->attrs.privileged;
}

static const char *compare(const struct program_outcome *engine,
                           const struct program_outcome *model)
{
    unsigned both = engine->call_count < model->call_count ? engine->call_count : model->call_count;

    for (unsigned i = 0; i < both; i++) {
        if (!same_call(&engine->call[i], &model->call[i])) {
            return wrong("call %u is a %s; by the model a %s", i, describe(&engine->call[i]),
                         describe(&model->call[i]));
        }
    }
    if (engine->call_count != model->call_count) {
        return wrong(
            "%u calls, by the model %u; the first that is over is a %s", engine->call_count,
            model->call_count,
            describe(engine->call_count > both ? &engine->call[both] : &model->call[both]));
    }
    if (engine->result != model->result) {
        return wrong("the result is %s, by the model %s", bb_result_name(engine->result),
                     bb_result_name(model->result));
    }
    for (unsigned i = 0; i < PROGRAM_BYTES_MAX; i++) {
        if (engine->bytes[i] != model->bytes[i]) {
            return wrong("byte %u read is 0x%02x, by the model 0x%02x", i, engine->bytes[i],
                         model->bytes[i]);
        }
    }
    return NULL;
}

/* Runs the accesses. Returns how many were as they should be. */
static unsigned run_accesses(const struct program *which, const char **what)
{
    static struct program_outcome engine, model;
    static uint8_t arena[TOPOLOGY_ARENA_BYTES];

    memcpy(arena, stage.arena, sizeof(arena));
    stage.refuses = true;
    unsigned i;
    *what = NULL;
    for (i = 0; i < which->count && *what == NULL; i++) {
        program_engine(&stage, &which->access[i], &engine);
        program_model(&stage, arena, &which->access[i], &model);
        *what = compare(&engine, &model);
        accesses++;
        calls += engine.call_count;
        split += engine.call_count > 1;
        refused += engine.result == BB_E_DEVICE;
    }
    stage.refuses = false;
    if (*what == NULL && memcmp(arena, stage.arena, sizeof(arena)) != 0) {
        *what = wrong("memory is not what the model has");
    }
    return i;
}

/* `make`: the accesses are to be made, for what the tree is. */
static const char *run(struct program *which, bool make)
{
    const char *what = stage_run(&stage, &which->topology);

    if (what != NULL) {
        what = wrong("%s", what);
    } else {
        if (make) {
            program_make_accesses(which, &stage.model);
        }
        unsigned done = run_accesses(which, &what);
        if (what != NULL) {
            which->count = done;
        }
    }
    const char *left = stage_clear(&stage);
    return what != NULL ? what : left;
}

static bool is_wrong(void *opaque, const struct topology *topology)
{
    static struct program tried;

    (void)opaque;
    tried = program;
    tried.topology = *topology;
    return run(&tried, false) != NULL;
}

static void report(FILE *out)
{
    static struct program tried;

    for (unsigned i = program.count; i-- > 0;) {
        tried = program;
        memmove(&tried.access[i], &tried.access[i + 1],
                (tried.count - i - 1) * sizeof(tried.access[0]));
        tried.count--;
        if (run(&tried, false) != NULL) {
            program = tried;
        }
    }
    topology_shrink(&program.topology, is_wrong, NULL);
    fprintf(out, "BUSBAR_SEED=%" PRIu64 ": %s\n", program.topology.seed, run(&program, false));
    topology_print(out, &program.topology);
    for (unsigned i = 0; i < program.count; i++) {
        program_print_access(out, &program.access[i]);
    }
}

static void begin(void)
{
    const char *what = stage_begin(&stage);

    cr_assert_null(what, "%s", what);
    stage.views_only = true;
}

static void end(void)
{
    const char *what = stage_end(&stage);

    cr_assert_null(what, "%s", what);
}

TestSuite(program, .init = begin, .fini = end);

Test(program, callbacks_values_and_results_are_the_models, .timeout = 7200)
{
    struct budget budget = budget_begin();
    uint64_t done = 0;

    while (budget_allows(&budget, done)) {
        topology_make(&program.topology, budget.seed + done, TOPOLOGY_ANY_RULES);
        if (run(&program, true) != NULL) {
            report(stderr);
            cr_assert_fail("engine and model differ: see above");
        }
        done++;
        if (done % PROGRAMS_AN_ENGINE == 0) {
            end();
            begin();
        }
    }
    fprintf(stderr,
            "%" PRIu64 " programs, %" PRIu64 " accesses, %" PRIu64 " calls; %" PRIu64
            " accesses made several, %" PRIu64 " were refused; %.1f s\n",
            done, accesses, calls, split, refused, budget_spent_s(&budget));
    if (done >= 20) {
        cr_assert_gt(calls, accesses / 10);
        cr_assert_gt(split, accesses / 50);
        cr_assert_gt(refused, accesses / 50);
    }
}
