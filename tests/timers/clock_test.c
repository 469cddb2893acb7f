/* SPDX-License-Identifier: MIT */
/* The virtual clock: both modes, stopping and starting, stepping and what refuses it. */
#include <pthread.h>
#include <string.h>

#include "queue_fixture.h"
#include "test_seed.h"

static struct queue_fixture fixture;

static void make_host(void)
{
    fixture_make_clock(&fixture, BB_CLOCK_HOST);
}

static void make_manual(void)
{
    fixture_make_clock(&fixture, BB_CLOCK_MANUAL);
}

static void drop(void)
{
    fixture_drop_clock(&fixture);
}

TestSuite(host_clock, .init = make_host, .fini = drop);
TestSuite(manual_clock, .init = make_manual, .fini = drop);

Test(host_clock, begins_stopped_at_zero)
{
    struct bb_clock *clock;

    cr_assert_eq(bb_clock_create_(fixture.heap, BB_CLOCK_HOST, &clock, NULL), BB_OK);
    cr_assert_not(bb_clock_running(clock));
    cr_assert_eq(bb_clock_now_ns(clock), 0);
    cr_assert_eq(bb_clock_mode(clock), BB_CLOCK_HOST);
    bb_clock_destroy_(clock);
}

Test(host_clock, follows_host_time_while_it_runs)
{
    uint64_t host_before = test_host_ns();
    bb_ns_t before = bb_clock_now_ns(fixture.clock), after;
    uint64_t host_middle = test_host_ns(), host_after;

    while (test_host_ns() < host_middle + 1000000) {
    }
    host_middle = test_host_ns() - host_middle;
    after = bb_clock_now_ns(fixture.clock);
    host_after = test_host_ns();
    cr_assert_geq(after - before, host_middle);
    cr_assert_leq(after - before, host_after - host_before);
}

Test(host_clock, stands_while_stopped_and_loses_that_time)
{
    uint64_t host_ns;
    bb_ns_t stopped;

    bb_clock_stop(fixture.clock);
    bb_clock_stop(fixture.clock);
    cr_assert_not(bb_clock_running(fixture.clock));
    stopped = bb_clock_now_ns(fixture.clock);
    host_ns = test_host_ns();
    while (test_host_ns() < host_ns + 20000000) {
        cr_assert_eq(bb_clock_now_ns(fixture.clock), stopped);
    }
    host_ns = test_host_ns();
    bb_clock_start(fixture.clock);
    bb_clock_start(fixture.clock);
    cr_assert(bb_clock_running(fixture.clock));
    cr_assert_geq(bb_clock_now_ns(fixture.clock), stopped);
    cr_assert_leq(bb_clock_now_ns(fixture.clock) - stopped, test_host_ns() - host_ns);
}

Test(host_clock, can_not_be_stepped)
{
    struct bb_error err = {.code = 0};

    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 1, &err), BB_E_STATE);
    cr_assert_eq(err.code, BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "manual"));
}

Test(host_clock, is_the_source_of_counters)
{
    struct bb_time_source source = bb_clock_source(fixture.clock);
    bb_ns_t before = bb_clock_now_ns(fixture.clock);
    bb_ns_t now = source.now_ns(source.opaque);

    cr_assert_geq(now, before);
    cr_assert_leq(now, bb_clock_now_ns(fixture.clock));
}

/* One thread hands times to the other through `latest` while a third stops and starts. */
static bb_ns_t latest;
static uint32_t backwards, stop;

static void *clock_reader(void *opaque)
{
    struct bb_clock *clock = opaque;

    while (bb_load_relaxed(&stop) == 0) {         /* relaxed: only ends the loop */
        bb_ns_t floor = bb_load_acquire(&latest); /* pairs with the CAS below */
        bb_ns_t now = bb_clock_now_ns(clock);

        if (now < floor) {
            (void)bb_fetch_add_relaxed(&backwards, 1u); /* relaxed: read after joining */
        }
        while (floor < now && !bb_cas_acq_rel(&latest, &floor, now)) {
        }
    }
    return NULL;
}

Test(host_clock, never_goes_backwards_across_threads_while_it_is_stopped_and_started)
{
    uint64_t end_ns = test_host_ns() + UINT64_C(300000000) * test_stress_seconds();
    pthread_t readers[2];
    unsigned stops = 0;

    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(pthread_create(&readers[i], NULL, clock_reader, fixture.clock), 0);
    }
    while (test_host_ns() < end_ns) {
        bb_clock_stop(fixture.clock);
        bb_clock_start(fixture.clock);
        stops++;
    }
    bb_store_relaxed(&stop, 1u); /* relaxed: only ends the loops */
    for (unsigned i = 0; i < 2; i++) {
        (void)pthread_join(readers[i], NULL);
    }
    cr_assert_gt(stops, 100);
    cr_assert_eq(backwards, 0);
}

Test(manual_clock, moves_by_steps_only)
{
    cr_assert_eq(bb_clock_mode(fixture.clock), BB_CLOCK_MANUAL);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 0);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 0, NULL), BB_OK);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 0);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 1234, NULL), BB_OK);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 1234);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 1, NULL), BB_OK);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 1235);
}

Test(manual_clock, is_the_source_of_counters)
{
    struct bb_time_source source = bb_clock_source(fixture.clock);
    struct bb_counter counter;

    bb_counter_init(&counter, &source, 10);
    bb_counter_run(&counter);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 99, NULL), BB_OK);
    cr_assert_eq(bb_counter_read(&counter), 9);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 1, NULL), BB_OK);
    cr_assert_eq(bb_counter_read(&counter), 10);
}

Test(manual_clock, stops_at_the_end_of_time)
{
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, UINT64_MAX, NULL), BB_OK);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), BB_TIME_LIMIT_ - 1);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, UINT64_MAX, NULL), BB_OK);
    cr_assert_eq(bb_clock_now_ns(fixture.clock), BB_TIME_LIMIT_ - 1);
}

Test(manual_clock, can_not_be_stepped_while_it_is_stopped)
{
    struct bb_error err = {.code = 0};

    bb_clock_stop(fixture.clock);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 5, &err), BB_E_STATE);
    cr_assert_eq(err.code, BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "stopped"));
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 0);
    bb_clock_start(fixture.clock);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 5, &err), BB_OK);
}

Test(manual_clock, can_not_be_stepped_where_the_thread_may_not_block)
{
    struct bb_error err = {.code = 0};

    bb_rcu_read_lock(fixture.ctx);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 5, &err), BB_E_CONTEXT);
    cr_assert_eq(err.code, BB_E_CONTEXT);
    bb_rcu_read_unlock(fixture.ctx);
    fixture.ctx->callback_depth++;
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 5, NULL), BB_E_CONTEXT);
    fixture.ctx->callback_depth--;
    cr_assert_eq(bb_clock_now_ns(fixture.clock), 0);
    cr_assert_eq(bb_clock_step(fixture.ctx, fixture.clock, 5, NULL), BB_OK);
}

Test(manual_clock, refuses_a_mode_that_is_none)
{
    struct bb_clock *clock = NULL;
    struct bb_error err = {.code = 0};

    cr_assert_eq(bb_clock_create_(fixture.heap, (enum bb_clock_mode)7, &clock, &err), BB_E_INVAL);
    cr_assert_null(clock);
    cr_assert_not_null(strstr(err.text, "7"));
    fixture.alloc_left = 0;
    cr_assert_eq(bb_clock_create_(fixture.heap, BB_CLOCK_HOST, &clock, &err), BB_E_NOMEM);
    cr_assert_null(clock);
    fixture.alloc_left = -1;
}
