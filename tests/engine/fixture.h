/* SPDX-License-Identifier: MIT */
/*
 * What the engine's suites stand on: an engine with an MMIO and a port space, RAM at 0, and devices
 * whose callbacks are given by the test.
 */
#ifndef BUSBAR_TESTS_ENGINE_FIXTURE_H
#define BUSBAR_TESTS_ENGINE_FIXTURE_H

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../engine/device.h"
#include "../../memory/ram.h"

enum { RAM_BYTES = 0x10000, DEVICE_BYTES = 0x100 };
#define DEVICE_GPA(n) (UINT64_C(0xfe000000) + (uint64_t)(n)*0x1000)

struct machine {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* the main thread's */
    struct bb_space *mmio;
    struct bb_space *pio;
    struct bb_region *ram;
    uint8_t *ram_host;
};

/* A device of one region whose callbacks are the test's. */
struct probe {
    struct machine *machine;
    struct bb_device *device;
    struct bb_region *region;
    int (*read)(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                uint64_t *value);
    int (*write)(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                 uint64_t value);
    void (*cancel)(struct probe *probe);
    void *arg;
    bb_gpa_t gpa;
    uint64_t reads;
    uint64_t writes;
    uint64_t last_value;
    unsigned destroyed; /* read by other threads: atomically */
    unsigned cancelled;
};

void machine_make(struct machine *machine, const struct bb_engine_config *config);
/* Removes RAM, detaches, destroys; asserts that all of it succeeds, the leak check included. */
void machine_drop(struct machine *machine);

/* A lock of the embedder's, for the configuration of engines with EXTERNAL_LOCK regions. */
void outer_lock(void *opaque);
void outer_unlock(void *opaque);
bool outer_is_held(void *opaque);
extern const struct bb_external_lock outer_hooks;

/* Makes a probe of `klass`, mapped at DEVICE_GPA(n). NULL callbacks record and return zero. */
void probe_make(struct machine *machine, struct probe *probe, const char *name, unsigned n,
                enum bb_class klass);
void probe_make_config(struct machine *machine, struct probe *probe, const char *name, unsigned n,
                       const struct bb_region_config *config);
void probe_drop(struct probe *probe);

/* Asserting accesses to the MMIO space. */
uint64_t mmio_read(struct machine *machine, bb_gpa_t gpa, unsigned size);
void mmio_write(struct machine *machine, bb_gpa_t gpa, unsigned size, uint64_t value);

/* A thread with a context of the machine. */
struct worker {
    struct machine *machine;
    const char *name;
    void (*fn)(struct bb_ctx *ctx, void *arg);
    void *arg;
    pthread_t thread;
};
void worker_start(struct worker *worker, struct machine *machine, const char *name,
                  void (*fn)(struct bb_ctx *ctx, void *arg), void *arg);
void worker_join(struct worker *worker);

/* A door that a thread waits at until another opens it. */
struct door {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool open;
};
#define DOOR_INIT                                                                                  \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false                                 \
    }
void door_open(struct door *door);
void door_wait(struct door *door);

/* Seconds for a torture: BUSBAR_STRESS_SECONDS, 1 by default. Threads: BUSBAR_STRESS_THREADS. */
unsigned stress_seconds(void);
unsigned stress_threads(unsigned otherwise);
uint64_t host_ns(void);

#endif
