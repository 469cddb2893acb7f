/* SPDX-License-Identifier: MIT */
/*
 * A writer stopped in the middle of a write to GEN_CONF or to the main counter, inside its sampling
 * of the clock, where the counter's change is begun and not done. Meanwhile another thread reads
 * every register, to the end, and what it reads must be all of before or all of after.
 */
#include "../../devices/timer/hpet_internal.h"
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

enum { PERIOD = 20000 };

struct seen {
    uint64_t gen_conf;
    uint64_t first; /* MAIN_CNT, twice */
    uint64_t second;
    uint64_t comparator;
    uint64_t status;
    uint64_t gen_conf_again;
    bool whole; /* every access was done, and gave a value */
};

/* A source that stops its first `stops` samples by one thread until an observer has read. */
struct stall {
    struct bb_time_source inner;
    struct machine *machine;
    pthread_t writer;
    unsigned stops; /* written by the writer's thread alone, like the rest */
    unsigned stopped;
    struct seen seen[4];
};

static void *observe(void *opaque)
{
    struct stall *stall = opaque;
    struct seen *seen = &stall->seen[stall->stopped];
    const struct {
        uint64_t offset;
        uint64_t *value;
    } reads[] = {{GEN_CONF, &seen->gen_conf}, {MAIN_CNT, &seen->first},
                 {MAIN_CNT, &seen->second},   {0x108, &seen->comparator},
                 {GINTR_STA, &seen->status},  {GEN_CONF, &seen->gen_conf_again}};
    struct bb_ctx *ctx;
    unsigned i;

    if (bb_ctx_attach(stall->machine->engine, "observer", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    seen->whole = true;
    for (i = 0; i < BB_ARRAY_LEN(reads); i++) {
        seen->whole &= bb_mmio_read(ctx, stall->machine->space, HPET_BASE + reads[i].offset, 8,
                                    reads[i].value) == BB_OK;
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

static bb_ns_t stalling_now_ns(void *opaque)
{
    struct stall *stall = opaque;
    pthread_t observer;

    if (pthread_equal(pthread_self(), stall->writer) && stall->stops > 0) {
        stall->stops--;
        if (pthread_create(&observer, NULL, observe, stall) == 0) {
            pthread_join(observer, NULL);
            stall->stopped++;
        }
    }
    return stall->inner.now_ns(stall->inner.opaque);
}

/* A running machine with a periodic timer, some periods on, whose counter samples through us. */
static struct machine *running(struct stall *stall, bool enabled)
{
    struct machine *m = set_up(NULL);

    put(m, conf_of(0), route_to(16) | INT_ENB | PERIODIC | VAL_SET);
    put(m, comp_of(0), PERIOD);
    put(m, GEN_CONF, ENABLE);
    step(m, 50000);
    if (!enabled) {
        put(m, GEN_CONF, 0);
    }
    *stall =
        (struct stall){.inner = m->hpet->counter.source, .machine = m, .writer = pthread_self()};
    m->hpet->counter.source.now_ns = stalling_now_ns;
    m->hpet->counter.source.opaque = stall;
    return m;
}

static void expect_whole(const struct seen *seen)
{
    cr_assert(seen->whole, "every read ends, with a value");
    cr_assert_eq(seen->first, seen->second);
    cr_assert_eq(seen->gen_conf, seen->gen_conf_again);
    cr_assert_eq(seen->comparator, 60000);
    cr_assert_eq(seen->status, 0);
}

Test(hpet_stall, reads_end_while_a_writer_is_stopped_half_way_through_enabling)
{
    struct stall stall;
    struct machine *m = running(&stall, false);

    stall.stops = 1;
    put(m, GEN_CONF, ENABLE);
    cr_assert_eq(stall.stopped, 1);
    expect_whole(&stall.seen[0]);
    cr_assert_eq(stall.seen[0].gen_conf, 0, "the counter does not run yet");
    cr_assert_eq(stall.seen[0].first, 50000);
    step(m, 10);
    cr_assert_eq(get(m, MAIN_CNT), 50010);
    tear_down(m);
}

Test(hpet_stall, reads_end_while_a_writer_is_stopped_half_way_through_disabling)
{
    struct stall stall;
    struct machine *m = running(&stall, true);

    stall.stops = 1;
    put(m, GEN_CONF, LEGACY);
    cr_assert_eq(stall.stopped, 1);
    expect_whole(&stall.seen[0]);
    cr_assert_eq(stall.seen[0].gen_conf, LEGACY, "the counter is halted already");
    cr_assert_eq(stall.seen[0].first, 50000);
    cr_assert_eq(get(m, MAIN_CNT), 50000, "where the reader saw it");
    tear_down(m);
}

Test(hpet_stall, reads_end_while_a_writer_is_stopped_anywhere_in_setting_the_counter)
{
    struct stall stall;
    struct machine *m = running(&stall, true);
    unsigned i;

    stall.stops = 4;
    put(m, MAIN_CNT, 1000000);
    cr_assert_geq(stall.stopped, 3, "halt, set, run");
    for (i = 0; i < stall.stopped; i++) {
        expect_whole(&stall.seen[i]);
        cr_assert_eq(stall.seen[i].gen_conf, ENABLE, "stop %u", i);
        cr_assert_eq(stall.seen[i].first, i < 2 ? 50000 : 1000000, "stop %u", i);
    }
    tear_down(m);
}
