/* SPDX-License-Identifier: MIT */
/*
 * The same accesses on maps of 8 to 10 000 regions, by 1, 2 and 4 threads, under five designs: the
 * direct call, which is the limit; the engine; the engine with a mutex for each device, and with
 * one big mutex; and what other monitors have, a reader-writer lock round a table that is searched
 * by halves. Each region is a device of its own. Two patterns: one hot register, the same for all
 * threads, and random ones, of which each thread has a sequence of its own.
 *
 * Designs take turns in slices of a few milliseconds. With more threads than cores no batch runs
 * beside all others; the figure is then the time of all cores by the accesses of all threads, and
 * is shown only: it is as much the scheduler's.
 */
#include <stdlib.h>

#include "bench.h"

enum {
    FIELD_ORDER = 4096, /* a power of two */
    FIELD_BATCH = FIELD_ORDER,
    FIELD_SLICE_MS = 8,
    FIELD_MAX = 10000,
};

enum design { DIRECT, ENGINE, DEVICE_MUTEX, BIG_MUTEX, RWLOCK, DESIGNS };
enum { ENGINES = 3 };

struct field {
    struct bench_machine machine[ENGINES]; /* ENGINE, DEVICE_MUTEX, BIG_MUTEX */
    struct bench_machine *machines[ENGINES];
    struct bb_device **device; /* `count` for each machine */
    unsigned count;
    struct bench_target *target;
    bb_gpa_t *base; /* the table of the bus under a reader-writer lock */
    pthread_rwlock_t bus;
    uint16_t order[BENCH_THREADS_MAX][FIELD_ORDER];
    bool random;
    enum design design;
};

static const struct bb_region_ops field_ops = {.read = bench_target_read,
                                               .write = bench_target_write};

static bb_gpa_t field_gpa(unsigned i)
{
    return BENCH_FIELD_GPA + i * BENCH_FIELD_STRIDE;
}

static void add_devices(struct field *field, unsigned which)
{
    struct bench_machine *machine = &field->machine[which];
    struct bb_device_config device = {.name = "target"};
    struct bb_txn *txn;
    struct bb_error err;

    if (bb_txn_begin(machine->ctx, &txn, &err) != BB_OK) {
        bench_die(&err, "beginning a transaction");
    }
    for (unsigned i = 0; i < field->count; i++) {
        struct bb_region_config config = {
            .name = "target",
            .size_bytes = 0x1000,
            .ops = &field_ops,
            .opaque = &field->target[i],
            .klass = BB_CLASS_LOCKFREE,
        };
        struct bb_device **slot = &field->device[which * field->count + i];
        struct bb_region *region;

        if (bb_device_create(machine->ctx, &device, slot, &err) != BB_OK ||
            bb_device_region_create(machine->ctx, *slot, &config, &region, &err) != BB_OK ||
            bb_txn_map(txn, machine->mmio, field_gpa(i), region, &err) != BB_OK) {
            bench_die(&err, "making the field");
        }
    }
    if (bb_txn_commit(txn, &err) != BB_OK) {
        bench_die(&err, "mapping the field");
    }
}

static void field_create(struct field *field, unsigned count)
{
    static const enum bb_lock_mode mode[ENGINES] = {BB_LOCK_FREE, BB_LOCK_DEVICE, BB_LOCK_BIG};
    uint64_t seed = 2463534242u;
    struct bb_error err;

    field->count = count;
    field->target = aligned_alloc(64, sizeof(*field->target) * count);
    field->base = malloc(sizeof(*field->base) * count);
    field->device = malloc(sizeof(struct bb_device *) * count * ENGINES);
    if (field->target == NULL || field->base == NULL || field->device == NULL ||
        pthread_rwlock_init(&field->bus, NULL) != 0) {
        bench_die(NULL, "no memory for the field");
    }
    for (unsigned i = 0; i < count; i++) {
        field->target[i] = (struct bench_target){.word = i};
        field->base[i] = field_gpa(i);
    }
    for (unsigned which = 0; which < ENGINES; which++) {
        struct bb_engine_config engine = {.name = "bench", .lock_mode = mode[which]};
        struct bb_space_config mmio = {.name = "mmio", .kind = BB_SPACE_MMIO};
        struct bench_machine *machine = &field->machine[which];

        *machine = (struct bench_machine){0};
        field->machines[which] = machine;
        if (bb_engine_create(&engine, &machine->engine, &err) != BB_OK ||
            bb_ctx_attach(machine->engine, "bench", &machine->ctx, &err) != BB_OK ||
            bb_space_create(machine->ctx, &mmio, &machine->mmio, &err) != BB_OK) {
            bench_die(&err, "making an engine");
        }
        add_devices(field, which);
    }
    for (unsigned t = 0; t < BENCH_THREADS_MAX; t++) {
        for (unsigned i = 0; i < FIELD_ORDER; i++) {
            field->order[t][i] = (uint16_t)(bench_random(&seed) % count);
        }
    }
}

static void field_destroy(struct field *field)
{
    struct bb_error err;

    for (unsigned which = 0; which < ENGINES; which++) {
        struct bench_machine *machine = &field->machine[which];
        for (unsigned i = 0; i < field->count; i++) {
            if (bb_device_remove(machine->ctx, field->device[which * field->count + i], NULL, NULL,
                                 &err) != BB_OK) {
                bench_die(&err, "removing a device");
            }
        }
        if (bb_ctx_detach(machine->ctx, &err) != BB_OK) {
            bench_die(&err, "taking an engine down");
        }
        /* Devices are gone once their removal has completed: until then the engine says that they
         * are there. */
        while (bb_engine_destroy(machine->engine, &err) == BB_E_STATE) {
            bench_spin_ns(1000000);
        }
    }
    pthread_rwlock_destroy(&field->bus);
    free(field->device);
    free(field->base);
    free(field->target);
}

static unsigned bus_find(const bb_gpa_t *base, unsigned count, bb_gpa_t gpa)
{
    unsigned low = 0, high = count;

    while (high - low > 1) {
        unsigned middle = (low + high) / 2;

        if (gpa < base[middle]) {
            high = middle;
        } else {
            low = middle;
        }
    }
    return low;
}

static inline void use(uint64_t value)
{
    __asm__ __volatile__("" : : "r"(value));
}

static unsigned run_field(struct bench_thread *thread, void *argument)
{
    struct field *field = argument;
    bench_read_fn *volatile opaque_read = bench_target_read;
    bench_read_fn *read = opaque_read;
    const uint16_t *order = field->order[field->random ? thread->index : 0];
    unsigned mask = field->random ? FIELD_ORDER - 1 : 0; /* hot: always the first */
    uint64_t value = 0;

    switch (field->design) {
    case DIRECT:
        for (unsigned i = 0; i < FIELD_BATCH; i++) {
            (void)read(thread->ctx[0], &field->target[order[i & mask]], 0, 4, &value);
            use(value);
        }
        break;
    case RWLOCK:
        for (unsigned i = 0; i < FIELD_BATCH; i++) {
            bb_gpa_t gpa = field_gpa(order[i & mask]);
            pthread_rwlock_rdlock(&field->bus);
            unsigned found = bus_find(field->base, field->count, gpa);
            (void)read(thread->ctx[0], &field->target[found], gpa - field->base[found], 4, &value);
            pthread_rwlock_unlock(&field->bus);
            use(value);
        }
        break;
    default: {
        unsigned which = (unsigned)field->design - ENGINE;
        struct bb_space *space = field->machine[which].mmio;
        for (unsigned i = 0; i < FIELD_BATCH; i++) {
            (void)bb_mmio_read(thread->ctx[which], space, field_gpa(order[i & mask]), 4, &value);
            use(value);
        }
        break;
    }
    }
    return FIELD_BATCH;
}

/* One slice of the design: the time of an access; 0 where no batch counts. */
static double slice(struct field *field, struct bench_team *team, unsigned threads)
{
    struct bench_samples samples = {0};
    uint64_t begin_ns = bench_now_ns(), accesses = 0;
    double ns;

    bench_team_slice(team, threads, FIELD_SLICE_MS, run_field, field);
    uint64_t took_ns = bench_now_ns() - begin_ns;
    if (threads > bench_cores()) {
        for (unsigned t = 0; t < threads; t++) {
            accesses += team->thread[t].accesses;
        }
        return accesses == 0 ? 0 : (double)took_ns * bench_cores() / (double)accesses;
    }
    (void)bench_team_collect(team, threads, FIELD_BATCH, &samples);
    /* Who waits for a lock makes few batches, and long ones: there the mean. */
    ns = field->design >= DEVICE_MUTEX && threads > 1 ? bench_mean(&samples)
                                                      : bench_median(&samples);
    bench_free(&samples);
    return ns;
}

static void measure(struct field *field, struct bench_team *team, unsigned threads, double seconds)
{
    struct bench_samples samples[DESIGNS] = {0}, above = {0};
    uint64_t until_ns = bench_now_ns() + (uint64_t)(seconds * 1e9);
    char name[64];

    do {
        double ns[DESIGNS];
        for (unsigned design = 0; design < DESIGNS; design++) {
            field->design = (enum design)design;
            ns[design] = slice(field, team, threads);
            if (ns[design] > 0) {
                bench_add(&samples[design], ns[design]);
            }
        }
        if (ns[DIRECT] > 0 && ns[ENGINE] > 0) {
            bench_add(&above, ns[ENGINE] - ns[DIRECT]);
        }
    } while (bench_now_ns() < until_ns);

    (void)snprintf(name, sizeof(name), "%s of %u regions, %u thread%s, engine - direct",
                   field->random ? "random" : "hot", field->count, threads, threads > 1 ? "s" : "");
    bool judged = threads == 1 && !field->random; /* random ones: group dispatch */
    bench_report(judged ? BENCH_AT_MOST : BENCH_SHOWN, 5, bench_median(&above), "ns", name,
                 "direct %.1f, engine %.1f, mutex a device %.1f, big mutex %.1f, rwlock bus %.1f",
                 bench_median(&samples[DIRECT]), bench_median(&samples[ENGINE]),
                 bench_median(&samples[DEVICE_MUTEX]), bench_median(&samples[BIG_MUTEX]),
                 bench_median(&samples[RWLOCK]));
    for (unsigned design = 0; design < DESIGNS; design++) {
        bench_free(&samples[design]);
    }
    bench_free(&above);
}

void bench_field(const struct bench_options *options)
{
    static const unsigned counts[] = {8, 100, 1000, FIELD_MAX};
    static const unsigned threads[] = {1, 2, 4};
    enum { CELLS = 4 * 3 * 2 };
    static struct field field;
    static struct bench_team team;
    unsigned cell = 0;

    bench_group_begin("field", "maps of 8 to 10 000 regions, 1 to 4 threads, five designs");
    for (unsigned c = 0; c < 4; c++) {
        field_create(&field, counts[c]);
        bench_team_create(&team, 4, field.machines, ENGINES);
        for (unsigned pattern = 0; pattern < 2; pattern++) {
            field.random = pattern == 1;
            for (unsigned t = 0; t < 3; t++) {
                measure(&field, &team, threads[t], options->seconds / 3);
                bench_progress((double)++cell / CELLS);
            }
        }
        bench_team_destroy(&team);
        field_destroy(&field);
    }
}
