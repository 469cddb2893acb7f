/* SPDX-License-Identifier: MIT */
/*
 * What the benchmark's files share. The program measures the engine as an embedder meets it:
 * through the shared library and public headers, with callbacks that the compiler can't see into.
 *
 * Method, for machines that are not ours alone: everything is measured in short batches, and what
 * is compared alternates batch by batch (on one thread) or slice by slice (on several) inside one
 * run. Figures are medians of batches; where a difference is judged it is the median of the
 * differences between neighbours. No batch is left out, but for one rule, which is counted and
 * shown: on several threads a batch counts where the others' batches show that they ran all the
 * while.
 */
#ifndef BUSBAR_BENCH_BENCH_H
#define BUSBAR_BENCH_BENCH_H

#include <pthread.h>
#include <stdio.h>

#include "../devices/intc/ioapic.h"
#include "../devices/timer/hpet.h"
#include "../devices/timer/pmtimer.h"

/* Samples. */

struct bench_samples {
    double *value;
    size_t count;
    size_t room;
};

void bench_add(struct bench_samples *samples, double value);
/* The value that a share `q` of the samples is not above; 0 where there are none. */
double bench_quantile(const struct bench_samples *samples, double q);
double bench_median(const struct bench_samples *samples);
double bench_mean(const struct bench_samples *samples);
void bench_free(struct bench_samples *samples);

uint64_t bench_now_ns(void);
/* CPU time of the process, its service threads included. */
uint64_t bench_cpu_ns(void);
void bench_spin_ns(uint64_t ns);
/* A sequence that looks random and is the same in every run. */
uint64_t bench_random(uint64_t *state);

/* Reports. */

enum bench_goal { BENCH_SHOWN, BENCH_AT_MOST, BENCH_AT_LEAST };

struct bench_options {
    double seconds; /* for each group */
    FILE *json;     /* NULL: none */
};

void bench_group_begin(const char *name, const char *what);
/* One line of the table: a figure, and how it came about. */
void bench_report(enum bench_goal kind, double goal, double figure, const char *unit,
                  const char *name, const char *detail, ...) __attribute__((format(printf, 6, 7)));
/* How far a group is, on a terminal. */
void bench_progress(double done);
void bench_json_begin(FILE *json, const struct bench_options *options);
void bench_json_end(FILE *json);
/* The goals met and missed so far. */
void bench_verdict(unsigned *met, unsigned *missed);
void bench_die(const struct bb_error *err, const char *what) __attribute__((noreturn));

/* The machine under test. */

enum {
    BENCH_FIELD = 1000, /* regions of the random lookup */
    BENCH_BATCH = 4000, /* accesses */
};
#define BENCH_HPET_GPA UINT64_C(0xfed00000)
#define BENCH_HPET_COUNTER (BENCH_HPET_GPA + 0xf0)
#define BENCH_IOAPIC_GPA UINT64_C(0xfec00000)
#define BENCH_IOAPIC_WINDOW (BENCH_IOAPIC_GPA + 0x10)
#define BENCH_PORT UINT64_C(0x608)
#define BENCH_HOT_GPA UINT64_C(0xe0000000)
#define BENCH_HOLDER_GPA UINT64_C(0xe0001000)
#define BENCH_FIELD_GPA UINT64_C(0x100000000)
#define BENCH_FIELD_STRIDE UINT64_C(0x4000)

/* A register whose callback does next to nothing. */
struct bench_target {
    uint64_t word;
    uint64_t padding[7];
};

int bench_target_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value);
int bench_target_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value);
/* Keeps the caller, and the lock it holds, busy for `value` nanoseconds. */
int bench_holder_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value);

struct bench_machine {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* of the thread that made it */
    struct bb_space *mmio;
    struct bb_space *pio;
    struct bb_device *device;
    struct bb_hpet *hpet; /* NULL: a target in its place, like the next two */
    struct bb_ioapic *ioapic;
    struct bb_pmtimer *pmtimer;
    struct bb_region *field[BENCH_FIELD];
    struct bench_target *targets; /* hot, three stand-ins, the field */
};

enum {
    BENCH_HOT = 0,
    BENCH_STAND_IN_HPET,
    BENCH_STAND_IN_PORT,
    BENCH_STAND_IN_IOAPIC,
    BENCH_FIELD_0
};

enum bench_devices { BENCH_REAL, BENCH_STAND_INS };

void bench_machine_create(struct bench_machine *machine, enum bb_lock_mode mode,
                          enum bench_devices devices);
void bench_machine_destroy(struct bench_machine *machine);

/* Loops: `count` accesses; each returns the nanoseconds that they took. */

typedef int bench_read_fn(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t *value);

struct bench_access {
    struct bb_space *space;
    bb_gpa_t gpa;
    bench_read_fn *read; /* what it comes to, for the direct call */
    void *opaque;
    uint64_t offset;
    unsigned size;
};

uint64_t bench_loop_direct(struct bb_ctx *ctx, const struct bench_access *access, unsigned count);
uint64_t bench_loop_engine(struct bb_ctx *ctx, const struct bench_access *access, unsigned count);
/* The same, taking turns among `turns` accesses. */
uint64_t bench_loop_direct_turns(struct bb_ctx *ctx, const struct bench_access *access,
                                 unsigned turns, unsigned count);
uint64_t bench_loop_engine_turns(struct bb_ctx *ctx, const struct bench_access *access,
                                 unsigned turns, unsigned count);
/* Regions of the field in the order of `order`, whose length is a power of two. */
uint64_t bench_loop_direct_field(struct bb_ctx *ctx, const struct bench_machine *machine,
                                 const uint16_t *order, unsigned length, unsigned count);
uint64_t bench_loop_engine_field(struct bb_ctx *ctx, const struct bench_machine *machine,
                                 const uint16_t *order, unsigned length, unsigned count);
/* A direct call of a callback that reads the clock that the engine's clock reads. */
uint64_t bench_loop_clock(struct bb_ctx *ctx, unsigned count);
uint64_t bench_loop_mutex_direct(pthread_mutex_t *mutex, struct bb_ctx *ctx,
                                 const struct bench_access *access, unsigned count);
uint64_t bench_loop_mutex_clock(pthread_mutex_t *mutex, struct bb_ctx *ctx, unsigned count);
/* What other monitors have: a reader-writer lock round a sorted table, then the call. */
uint64_t bench_loop_rwlock(pthread_rwlock_t *lock, struct bb_ctx *ctx,
                           const struct bench_access *access, unsigned count);

/* Teams: threads that run slices of batches together. */

enum { BENCH_THREADS_MAX = 64, BENCH_MODES = 3 };

struct bench_batch {
    uint64_t begin_ns;
    uint64_t end_ns;
    uint64_t run_ns; /* of the accesses alone */
    bool disturbed;  /* the thread lost its core meanwhile, other than by waiting */
};

struct bench_team;

struct bench_thread {
    struct bench_team *team;
    unsigned index;
    pthread_t thread;
    struct bb_ctx *ctx[BENCH_MODES]; /* of the team's machines */
    struct bench_batch *batch;
    size_t batches;
    uint64_t accesses;
};

struct bench_team {
    struct bench_machine *machine[BENCH_MODES];
    unsigned machines;
    unsigned threads;
    struct bench_thread thread[BENCH_THREADS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Guarded by `lock`; threads of a slice read `batch` and `argument` after they saw it begin. */
    uint64_t slice;
    unsigned wanted; /* threads in the slice */
    unsigned running;
    unsigned (*run)(struct bench_thread *thread, void *argument);
    void *argument;
    bool quit;
    bool stop; /* (a) the slice is over */
};

unsigned bench_cores(void);
/* Threads are pinned to one core each, in turn. */
void bench_pin(unsigned core);
void bench_team_create(struct bench_team *team, unsigned threads, struct bench_machine **machine,
                       unsigned machines);
void bench_team_destroy(struct bench_team *team);
/*
 * Lets the first `threads` threads call `run` (one batch; returns how many accesses it made) over
 * and over for `ms`. Their batches are then in thread[].batch.
 */
void bench_team_slice(struct bench_team *team, unsigned threads, unsigned ms,
                      unsigned (*run)(struct bench_thread *thread, void *argument), void *argument);
/*
 * Adds the time of one access, from each batch of the slice during which every other thread of it
 * was running. Returns how many batches there were.
 */
size_t bench_team_collect(const struct bench_team *team, unsigned threads, unsigned accesses,
                          struct bench_samples *samples);

/* Groups. */

void bench_dispatch(const struct bench_options *options);
void bench_field(const struct bench_options *options);
void bench_scaling(const struct bench_options *options);
void bench_baselines(const struct bench_options *options);
void bench_hpet(const struct bench_options *options);
void bench_contended(const struct bench_options *options);
void bench_holder(const struct bench_options *options);
void bench_grace(const struct bench_options *options);
void bench_map(const struct bench_options *options);
void bench_timers(const struct bench_options *options);

#endif
