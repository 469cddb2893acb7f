/* SPDX-License-Identifier: MIT */
/*
 * Commits made in callbacks and effects: listeners know of them before the outermost access
 * returns, and not while anything is held (chain.c, invariant 8).
 */
#include "fixture.h"

#include "../../engine/dma.h"
#include "../../memory/listener.h"

static struct machine machine;
static struct bb_listener *listener;
static struct probe mover, moved;
static unsigned told;        /* commits that the listener was told of */
static unsigned told_inside; /* what it was when the callback ended */
static bb_gpa_t told_at;     /* where it last heard that `moved` is */
static unsigned moves;

static void added(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    if (range->region == moved.region) {
        told_at = range->first;
    }
}

static void committed(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_relaxed(&told, 1); /* threads are joined before it is judged */
}

static const struct bb_listener_ops listener_ops = {.added = added, .commit = committed};

static void setup(void)
{
    struct bb_listener_config config = {.name = "listener", .ops = &listener_ops};
    struct bb_engine_config engine = {.external_lock = outer_hooks};

    machine_make(&machine, &engine);
    moved = (struct probe){0};
    probe_make(&machine, &moved, "moved", 1, BB_CLASS_LOCKFREE);
    config.space = machine.mmio;
    cr_assert_eq(bb_listener_add(machine.ctx, &config, &listener, NULL), BB_OK);
    moves = 0;
    bb_store_relaxed(&told, 0);
}

static void teardown(void)
{
    cr_assert_eq(bb_listener_remove(machine.ctx, listener, NULL), BB_OK);
    probe_drop(&moved);
    machine_drop(&machine);
}

TestSuite(told, .init = setup, .fini = teardown, .timeout = 60);

static int move_it(struct bb_ctx *ctx)
{
    moves++;
    int result = bb_region_move(ctx, moved.region, DEVICE_GPA(0x100 + moves), NULL);

    told_inside = bb_load_relaxed(&told);
    return result;
}

static int move_on_write(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    return move_it(ctx);
}

Test(told, a_commit_in_a_callback_of_any_class_is_told_when_the_access_returns)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        mover = (struct probe){.write = move_on_write};
        probe_make(&machine, &mover, "mover", 0, (enum bb_class)klass);
        unsigned before = told;
        mmio_write(&machine, mover.gpa, 4, 1);
        cr_assert_eq(told_inside, before, "told inside the callback");
        cr_assert_eq(told, before + 1);
        cr_assert_eq(told_at, DEVICE_GPA(0x100 + moves));
        probe_drop(&mover);
    }
}

Test(told, a_copy_whose_accesses_commit_has_told_of_each_before_the_next)
{
    mover = (struct probe){.write = move_on_write};
    probe_make(&machine, &mover, "mover", 0, BB_CLASS_LOCKFREE);
    unsigned before = told;
    cr_assert_eq(
        bb_dma_fill(machine.ctx, machine.mmio, mover.gpa, 0, 32, (struct bb_attrs){0}, NULL),
        BB_OK);
    cr_assert_eq(told_inside, before + 3);
    cr_assert_eq(told, before + 4);
    probe_drop(&mover);
}

/* Effects that commit, one of them while later ones are still queued. */
static unsigned called;

static void move_and_go_on(struct bb_ctx *ctx, void *opaque, uint64_t left)
{
    struct probe *probe = opaque;

    called++;
    if (move_it(ctx) != BB_OK) {
        abort();
    }
    if (left > 0 && bb_post(ctx, probe->device, move_and_go_on, probe, left - 1) != BB_OK) {
        abort();
    }
}

static int post_moves(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)offset;
    (void)size;
    (void)value;
    return bb_post(ctx, probe->device, move_and_go_on, probe, 3);
}

Test(told, commits_of_effects_are_told_before_the_access_returns_that_caused_them)
{
    called = 0;
    mover = (struct probe){.write = post_moves};
    probe_make(&machine, &mover, "mover", 0, BB_CLASS_DEVICE_LOCK);
    unsigned before = told;
    mmio_write(&machine, mover.gpa, 4, 1);
    cr_assert_eq(called, 4);
    cr_assert_eq(told_inside, before, "effects run first");
    cr_assert_eq(told, before + 4);
    cr_assert_eq(told_at, DEVICE_GPA(0x104));
    probe_drop(&mover);
}

/* Work found in an inbox: its frame gives the chain back as it was, but for this. */
static void notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    (void)opaque;
    (void)pins;
    if (move_it(ctx) != BB_OK) {
        abort();
    }
}

Test(told, a_commit_in_an_inbox_is_told_when_its_notifier_returns)
{
    static const struct bb_device_ops ops = {.notified = notified};
    struct bb_device_config config = {.name = "inbox", .ops = &ops};
    struct bb_device *device;

    cr_assert_eq(bb_device_create(machine.ctx, &config, &device, NULL), BB_OK);
    unsigned before = told;
    bb_device_notify(machine.ctx, device, 0);
    cr_assert_eq(moves, 1);
    cr_assert_eq(told_inside, before);
    cr_assert_eq(told, before + 1);

    /* Also where the lock was taken by the embedder, and is what keeps it from being told. */
    bb_device_lock(machine.ctx, device);
    bb_device_notify(machine.ctx, device, 0);
    cr_assert_eq(moves, 1, "left in the inbox");
    bb_device_unlock(machine.ctx, device);
    cr_assert_eq(moves, 2);
    cr_assert_eq(told, before + 2);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, device, NULL), BB_OK);
}

Test(told, in_an_embedders_section_a_commit_waits_for_the_next_access_outside_it)
{
    mover = (struct probe){.write = move_on_write};
    probe_make(&machine, &mover, "mover", 0, BB_CLASS_LOCKFREE);
    unsigned before = told;
    bb_rcu_read_lock(machine.ctx);
    mmio_write(&machine, mover.gpa, 4, 1);
    mmio_write(&machine, mover.gpa, 4, 1);
    cr_assert_eq(told, before);
    cr_assert_eq(moves, 2);
    bb_rcu_read_unlock(machine.ctx);
    (void)mmio_read(&machine, mover.gpa, 4);
    cr_assert_eq(told, before + 2);
    probe_drop(&mover);
}

static int move_and_end(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)probe;
    (void)offset;
    (void)size;
    (void)value;
    (void)move_it(ctx);
    pthread_exit(NULL);
}

static void *ending_thread(void *arg)
{
    struct bb_ctx *ctx;

    (void)arg;
    if (bb_ctx_attach(machine.engine, "ends", &ctx, NULL) != BB_OK) {
        abort();
    }
    (void)bb_mmio_write(ctx, machine.mmio, mover.gpa, 4, 1);
    return NULL;
}

Test(told, a_commit_of_a_thread_that_ends_in_its_callback_is_told_as_it_ends)
{
    pthread_t thread;

    mover = (struct probe){.write = move_and_end};
    probe_make(&machine, &mover, "mover", 0, BB_CLASS_LOCKFREE);
    unsigned before = told;
    cr_assert_eq(pthread_create(&thread, NULL, ending_thread, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_eq(moves, 1);
    cr_assert_eq(told, before + 1);
    probe_drop(&mover);
}

/* Many threads, each of whose accesses commits: each finds its own commit told on return. */
static struct probe tellers[4];
static struct bb_region *flags[4];
static unsigned flag_told[4]; /* (a) */
static uint64_t wrong;

static void flag_added(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    for (unsigned i = 0; i < 4; i++) {
        if (range->region == flags[i]) {
            bb_store_relaxed(&flag_told[i], (unsigned)((range->first >> 12) & 1) + 1);
        }
    }
}

static int move_flag(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                     uint64_t value)
{
    unsigned n = (unsigned)(probe - tellers);

    (void)offset;
    (void)size;
    return bb_region_move(ctx, flags[n], 0x70000000 + n * 0x10000 + (value & 1) * 0x1000, NULL);
}

static void tell_and_look(struct bb_ctx *ctx, void *arg)
{
    unsigned n = (unsigned)(uintptr_t)arg;

    for (unsigned i = 0; i < 2000; i++) {
        int result = bb_mmio_write(ctx, machine.mmio, tellers[n].gpa, 4, i);
        if (result != BB_OK || bb_load_relaxed(&flag_told[n]) != (i & 1) + 1) {
            (void)bb_fetch_add_relaxed(&wrong, 1); /* main reads it after joining */
        }
    }
}

Test(told, each_of_many_threads_finds_its_commits_told_when_its_access_returns)
{
    static const struct bb_listener_ops ops = {.added = flag_added};
    struct bb_listener_config config = {.name = "flags", .space = machine.mmio, .ops = &ops};
    struct bb_listener *flag_listener;
    struct worker workers[4];

    wrong = 0;
    cr_assert_eq(bb_listener_add(machine.ctx, &config, &flag_listener, NULL), BB_OK);
    for (unsigned n = 0; n < 4; n++) {
        tellers[n] = (struct probe){.write = move_flag};
        probe_make(&machine, &tellers[n], "teller", 8 + n,
                   n % 2 == 0 ? BB_CLASS_LOCKFREE : BB_CLASS_DEVICE_LOCK);
        cr_assert_eq(bb_reserved_create(machine.ctx, "flag", 0x1000, &flags[n], NULL), BB_OK);
        cr_assert_eq(
            bb_space_map(machine.ctx, machine.mmio, 0x70000000 + n * 0x10000, flags[n], NULL),
            BB_OK);
    }
    for (unsigned n = 0; n < 4; n++) {
        worker_start(&workers[n], &machine, "teller", tell_and_look, (void *)(uintptr_t)n);
    }
    for (unsigned n = 0; n < 4; n++) {
        worker_join(&workers[n]);
    }
    cr_assert_eq(wrong, 0);
    for (unsigned n = 0; n < 4; n++) {
        probe_drop(&tellers[n]);
        cr_assert_eq(bb_region_remove_wait(machine.ctx, flags[n], NULL), BB_OK);
    }
    cr_assert_eq(bb_listener_remove(machine.ctx, flag_listener, NULL), BB_OK);
}
