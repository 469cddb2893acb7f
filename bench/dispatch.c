/* SPDX-License-Identifier: MIT */
/*
 * What an access costs above the direct call of its callback, on one thread; how it scales to more
 * threads, each on its own core; and what it costs on designs with locks.
 */
#include "bench.h"

enum { ORDER = 2048, TURNS = 3, SLICE_MS = 25, MUTEX_BATCH = 1000 };

static struct bench_access hot_access(const struct bench_machine *machine)
{
    return (struct bench_access){
        .space = machine->mmio,
        .gpa = BENCH_HOT_GPA,
        .read = bench_target_read,
        .opaque = &machine->targets[BENCH_HOT],
        .size = 4,
    };
}

/* Each batch minus the batch of the control next to it. */
static void differ(enum bench_goal kind, double goal, const char *name,
                   const struct bench_samples *with, const struct bench_samples *control)
{
    struct bench_samples difference = {0};

    for (size_t i = 0; i < with->count && i < control->count; i++) {
        bench_add(&difference, with->value[i] - control->value[i]);
    }
    bench_report(kind, goal, bench_median(&difference), "ns", name,
                 "%.2f - %.2f; least-disturbed tenth %.2f - %.2f; %zu batches", bench_median(with),
                 bench_median(control), bench_quantile(with, 0.1), bench_quantile(control, 0.1),
                 with->count);
    bench_free(&difference);
}

static double per_access(uint64_t ns)
{
    return (double)ns / BENCH_BATCH;
}

void bench_dispatch(const struct bench_options *options)
{
    struct bench_machine machine;
    struct bench_samples direct = {0}, hot = {0}, direct_turns = {0}, turns = {0};
    struct bench_samples direct_field = {0}, field = {0};
    static uint16_t order[ORDER];
    uint64_t seed = 88172645463325252u;
    uint64_t begin_ns, until_ns;

    bench_group_begin("dispatch", "an access above the direct call of its callback, one thread");
    bench_pin(0);
    bench_machine_create(&machine, BB_LOCK_FREE, BENCH_STAND_INS);
    struct bench_access one = hot_access(&machine);
    struct bench_access some[TURNS] = {
        {machine.mmio, BENCH_HPET_COUNTER, bench_target_read, &machine.targets[BENCH_STAND_IN_HPET],
         0xf0, 8},
        {machine.pio, BENCH_PORT, bench_target_read, &machine.targets[BENCH_STAND_IN_PORT], 0, 4},
        {machine.mmio, BENCH_IOAPIC_WINDOW, bench_target_read,
         &machine.targets[BENCH_STAND_IN_IOAPIC], 0x10, 4},
    };
    for (unsigned i = 0; i < ORDER; i++) {
        order[i] = (uint16_t)(bench_random(&seed) % BENCH_FIELD);
    }
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        struct bb_ctx *ctx = machine.ctx;

        bench_add(&direct, per_access(bench_loop_direct(ctx, &one, BENCH_BATCH)));
        bench_add(&hot, per_access(bench_loop_engine(ctx, &one, BENCH_BATCH)));
        bench_add(&direct_turns,
                  per_access(bench_loop_direct_turns(ctx, some, TURNS, BENCH_BATCH)));
        bench_add(&turns, per_access(bench_loop_engine_turns(ctx, some, TURNS, BENCH_BATCH)));
        bench_add(&direct_field,
                  per_access(bench_loop_direct_field(ctx, &machine, order, ORDER, BENCH_BATCH)));
        bench_add(&field,
                  per_access(bench_loop_engine_field(ctx, &machine, order, ORDER, BENCH_BATCH)));
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);

    bench_report(BENCH_SHOWN, 0, bench_median(&direct), "ns", "direct call (the limit)",
                 "least-disturbed tenth %.2f", bench_quantile(&direct, 0.1));
    differ(BENCH_AT_MOST, 5, "hot register - direct call", &hot, &direct);
    differ(BENCH_AT_MOST, 5, "HPET, port, I/O APIC in turn - direct calls in turn", &turns,
           &direct_turns);
    differ(BENCH_AT_MOST, 8, "random one of 1000 regions - direct calls", &field, &direct_field);

    bench_free(&direct);
    bench_free(&hot);
    bench_free(&direct_turns);
    bench_free(&turns);
    bench_free(&direct_field);
    bench_free(&field);
    bench_machine_destroy(&machine);
}

static unsigned run_direct(struct bench_thread *thread, void *argument)
{
    struct bench_target own = {0};
    struct bench_access access = *(const struct bench_access *)argument;

    access.opaque = &own;
    (void)bench_loop_direct(thread->ctx[0], &access, BENCH_BATCH);
    return BENCH_BATCH;
}

static unsigned run_engine(struct bench_thread *thread, void *argument)
{
    (void)bench_loop_engine(thread->ctx[0], argument, BENCH_BATCH);
    return BENCH_BATCH;
}

struct pair {
    struct bench_access access[2];
};

/* Each of two threads in an engine of its own. */
static unsigned run_apart(struct bench_thread *thread, void *argument)
{
    struct pair *pair = argument;
    unsigned own = thread->index % 2;

    (void)bench_loop_engine(thread->ctx[own], &pair->access[own], BENCH_BATCH);
    return BENCH_BATCH;
}

enum { DIRECT_1, DIRECT_N, ENGINE_1, ENGINE_N, APART_2, SCALES };

static void scale_to(const struct bench_options *options, struct bench_team *team,
                     struct pair *pair, unsigned threads)
{
    struct bench_samples times[SCALES] = {0};
    double control, engine;
    char name[80];
    size_t batches = 0;
    uint64_t begin_ns = bench_now_ns();
    uint64_t until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);

    do {
        for (unsigned what = 0; what < SCALES; what++) {
            unsigned running = what == DIRECT_1 || what == ENGINE_1 ? 1 : threads;
            unsigned (*run)(struct bench_thread *, void *) =
                what <= DIRECT_N ? run_direct : (what <= ENGINE_N ? run_engine : run_apart);

            if (what == APART_2 && threads != 2) {
                continue;
            }
            bench_team_slice(team, running, SLICE_MS, run,
                             what == APART_2 ? (void *)pair : &pair->access[0]);
            batches += bench_team_collect(team, running, BENCH_BATCH, &times[what]);
        }
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    /* Accesses a second by `threads`, over `threads` times those by one. */
    control = bench_median(&times[DIRECT_1]) / bench_median(&times[DIRECT_N]);
    engine = bench_median(&times[ENGINE_1]) / bench_median(&times[ENGINE_N]);
    (void)snprintf(name, sizeof(name), "1 to %u threads, scaling / the control's", threads);
    bench_report(BENCH_AT_LEAST, 0.95, engine / control, "", name,
                 "engine %.3f (%.2f to %.2f ns), direct call %.3f (%.2f to %.2f ns); "
                 "%zu of %zu batches together",
                 engine, bench_median(&times[ENGINE_1]), bench_median(&times[ENGINE_N]), control,
                 bench_median(&times[DIRECT_1]), bench_median(&times[DIRECT_N]),
                 times[DIRECT_1].count + times[DIRECT_N].count + times[ENGINE_1].count +
                     times[ENGINE_N].count + times[APART_2].count,
                 batches);
    if (threads == 2) {
        bench_report(BENCH_AT_LEAST, 0.95,
                     bench_median(&times[APART_2]) / bench_median(&times[ENGINE_N]), "",
                     "2 threads: in an engine each / in one engine",
                     "%.2f / %.2f ns: the same code with nothing shared",
                     bench_median(&times[APART_2]), bench_median(&times[ENGINE_N]));
    }
    for (unsigned what = 0; what < SCALES; what++) {
        bench_free(&times[what]);
    }
}

void bench_scaling(const struct bench_options *options)
{
    struct bench_machine machine[2], *machines[] = {&machine[0], &machine[1]};
    static struct bench_team team;
    unsigned cores = bench_cores() < 16 ? bench_cores() : 16;
    struct pair pair;

    bench_group_begin("scaling", "one register, all threads; each thread has a core");
    if (cores < 2) {
        bench_report(BENCH_SHOWN, 0, 1, "core", "needs two", "nothing measured");
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        bench_machine_create(&machine[i], BB_LOCK_FREE, BENCH_STAND_INS);
        pair.access[i] = hot_access(&machine[i]);
    }
    bench_team_create(&team, cores, machines, 2);
    for (unsigned threads = 2; threads <= cores; threads *= 2) {
        scale_to(options, &team, &pair, threads);
    }
    bench_team_destroy(&team);
    bench_machine_destroy(&machine[0]);
    bench_machine_destroy(&machine[1]);
}

struct locked {
    struct bench_access access[BENCH_MODES];
    unsigned mode;
    pthread_mutex_t mutex;
    pthread_rwlock_t rwlock;
};

static unsigned run_mode(struct bench_thread *thread, void *argument)
{
    const struct locked *locked = argument;

    (void)bench_loop_engine(thread->ctx[locked->mode], &locked->access[locked->mode], MUTEX_BATCH);
    return MUTEX_BATCH;
}

static unsigned run_mutex(struct bench_thread *thread, void *argument)
{
    struct locked *locked = argument;

    (void)bench_loop_mutex_direct(&locked->mutex, thread->ctx[0], &locked->access[0], MUTEX_BATCH);
    return MUTEX_BATCH;
}

static unsigned run_rwlock(struct bench_thread *thread, void *argument)
{
    struct locked *locked = argument;

    (void)bench_loop_rwlock(&locked->rwlock, thread->ctx[0], &locked->access[0], MUTEX_BATCH);
    return MUTEX_BATCH;
}

enum { DESIGN_FREE, DESIGN_DEVICE, DESIGN_BIG, DESIGN_MUTEX, DESIGN_RWLOCK, DESIGNS };

void bench_baselines(const struct bench_options *options)
{
    static const char *const names[DESIGNS] = {
        [DESIGN_FREE] = "lock-free engine",
        [DESIGN_DEVICE] = "engine, a mutex for each device",
        [DESIGN_BIG] = "engine, one big mutex",
        [DESIGN_MUTEX] = "control: a mutex round the direct call",
        [DESIGN_RWLOCK] = "bus under a reader-writer lock",
    };
    struct bench_machine machine[BENCH_MODES], *machines[BENCH_MODES];
    struct bench_samples alone[DESIGNS] = {0}, contended[DESIGNS] = {0};
    size_t batches[DESIGNS] = {0};
    static struct bench_team team;
    struct locked locked = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                            .rwlock = PTHREAD_RWLOCK_INITIALIZER};
    unsigned threads = bench_cores() < 2 ? 1 : 2;
    uint64_t begin_ns, until_ns;

    bench_group_begin("baselines", "the same register under other designs: alone, and two threads");
    for (unsigned mode = 0; mode < BENCH_MODES; mode++) {
        machines[mode] = &machine[mode];
        bench_machine_create(&machine[mode], (enum bb_lock_mode)mode, BENCH_STAND_INS);
        locked.access[mode] = hot_access(&machine[mode]);
    }
    bench_team_create(&team, threads, machines, BENCH_MODES);
    begin_ns = bench_now_ns();
    until_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    do {
        for (unsigned design = 0; design < DESIGNS; design++) {
            unsigned (*run)(struct bench_thread *, void *) =
                design == DESIGN_MUTEX ? run_mutex
                                       : (design == DESIGN_RWLOCK ? run_rwlock : run_mode);

            locked.mode = design < BENCH_MODES ? design : 0;
            bench_team_slice(&team, 1, SLICE_MS, run, &locked);
            bench_team_collect(&team, 1, MUTEX_BATCH, &alone[design]);
            bench_team_slice(&team, threads, SLICE_MS, run, &locked);
            batches[design] += bench_team_collect(&team, threads, MUTEX_BATCH, &contended[design]);
        }
        bench_progress((double)(bench_now_ns() - begin_ns) / (options->seconds * 1e9));
    } while (bench_now_ns() < until_ns);
    for (unsigned design = 0; design < DESIGNS; design++) {
        bench_report(BENCH_SHOWN, 0, bench_mean(&contended[design]), "ns", names[design],
                     "alone %.1f; contended p50 %.1f, p90 %.1f; %zu of %zu batches together",
                     bench_median(&alone[design]), bench_median(&contended[design]),
                     bench_quantile(&contended[design], 0.9), contended[design].count,
                     batches[design]);
    }
    bench_report(BENCH_AT_MOST, 1.2,
                 bench_mean(&contended[DESIGN_BIG]) / bench_mean(&contended[DESIGN_MUTEX]), "",
                 "big-mutex engine / a bare mutex, contended",
                 "an honest baseline: what it costs is the mutex");
    for (unsigned design = 0; design < DESIGNS; design++) {
        bench_free(&alone[design]);
        bench_free(&contended[design]);
    }
    bench_team_destroy(&team);
    for (unsigned mode = 0; mode < BENCH_MODES; mode++) {
        bench_machine_destroy(&machine[mode]);
    }
}
