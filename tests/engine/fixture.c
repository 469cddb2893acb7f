/* SPDX-License-Identifier: MIT */
/* The engine suites' fixture; see fixture.h. */
#include "fixture.h"

#include <string.h>
#include <time.h>

void machine_make(struct machine *machine, const struct bb_engine_config *config)
{
    struct bb_error err = {0};
    struct bb_space_config mmio = {.name = "mmio"};
    struct bb_space_config pio = {.name = "pio", .kind = BB_SPACE_PIO};
    struct bb_ram_config ram = {.name = "ram", .size_bytes = RAM_BYTES};

    memset(machine, 0, sizeof(*machine));
    cr_assert_eq(bb_engine_create(config, &machine->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine->engine, "main", &machine->ctx, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_space_create(machine->ctx, &mmio, &machine->mmio, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(machine->ctx, &pio, &machine->pio, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ram_create(machine->ctx, &ram, &machine->ram, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine->ctx, machine->mmio, 0, machine->ram, &err), BB_OK, "%s",
                 err.text);
    machine->ram_host = bb_region_host(machine->ram);
}

void machine_drop(struct machine *machine)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_remove_wait(machine->ctx, machine->ram, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(machine->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(machine->engine, &err), BB_OK, "%s", err.text);
}

static pthread_mutex_t outer = PTHREAD_MUTEX_INITIALIZER;
static __thread bool outer_held;

void outer_lock(void *opaque)
{
    (void)opaque;
    pthread_mutex_lock(&outer);
    outer_held = true;
}

void outer_unlock(void *opaque)
{
    (void)opaque;
    outer_held = false;
    pthread_mutex_unlock(&outer);
}

bool outer_is_held(void *opaque)
{
    (void)opaque;
    return outer_held;
}

const struct bb_external_lock outer_hooks = {
    .lock = outer_lock, .unlock = outer_unlock, .held = outer_is_held};

static int probe_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    struct probe *probe = opaque;

    (void)bb_fetch_add_relaxed(&probe->reads, 1); /* a counter */
    *value = 0;
    return probe->read == NULL ? BB_OK : probe->read(ctx, probe, offset, size, value);
}

static int probe_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    struct probe *probe = opaque;

    (void)bb_fetch_add_relaxed(&probe->writes, 1); /* a counter */
    bb_store_relaxed(&probe->last_value, value);
    return probe->write == NULL ? BB_OK : probe->write(ctx, probe, offset, size, value);
}

static const struct bb_region_ops probe_region_ops = {.read = probe_read, .write = probe_write};

static void probe_cancel(struct bb_ctx *ctx, void *opaque)
{
    struct probe *probe = opaque;

    (void)ctx;
    (void)bb_fetch_add_acq_rel(&probe->cancelled, 1); /* pairs with the tests' acquire loads */
    if (probe->cancel != NULL) {
        probe->cancel(probe);
    }
}

static void probe_destroy(void *opaque)
{
    struct probe *probe = opaque;

    (void)bb_fetch_add_acq_rel(&probe->destroyed, 1); /* pairs with the tests' acquire loads */
}

static const struct bb_device_ops probe_device_ops = {.cancel = probe_cancel,
                                                      .destroy = probe_destroy};

void probe_make_config(struct machine *machine, struct probe *probe, const char *name, unsigned n,
                       const struct bb_region_config *config)
{
    struct bb_error err = {0};
    struct bb_device_config device = {.name = name, .ops = &probe_device_ops, .opaque = probe};
    struct bb_region_config region = *config;

    probe->machine = machine;
    probe->gpa = DEVICE_GPA(n);
    region.name = name;
    region.ops = &probe_region_ops;
    region.opaque = probe;
    if (region.size_bytes == 0) {
        region.size_bytes = DEVICE_BYTES;
    }
    cr_assert_eq(bb_device_create(machine->ctx, &device, &probe->device, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(
        bb_device_region_create(machine->ctx, probe->device, &region, &probe->region, &err), BB_OK,
        "%s", err.text);
    cr_assert_eq(bb_space_map(machine->ctx, machine->mmio, probe->gpa, probe->region, &err), BB_OK,
                 "%s", err.text);
}

void probe_make(struct machine *machine, struct probe *probe, const char *name, unsigned n,
                enum bb_class klass)
{
    struct bb_region_config config = {.klass = klass};

    probe_make_config(machine, probe, name, n, &config);
}

void probe_drop(struct probe *probe)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(probe->machine->ctx, probe->device, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_load_acquire(&probe->destroyed), 1);
}

uint64_t mmio_read(struct machine *machine, bb_gpa_t gpa, unsigned size)
{
    uint64_t value = 0;

    cr_assert_eq(bb_mmio_read(machine->ctx, machine->mmio, gpa, size, &value), BB_OK);
    return value;
}

void mmio_write(struct machine *machine, bb_gpa_t gpa, unsigned size, uint64_t value)
{
    cr_assert_eq(bb_mmio_write(machine->ctx, machine->mmio, gpa, size, value), BB_OK);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(worker->machine->engine, worker->name, &ctx, NULL) != BB_OK) {
        abort();
    }
    worker->fn(ctx, worker->arg);
    if (bb_ctx_detach(ctx, NULL) != BB_OK) {
        abort();
    }
    return NULL;
}

void worker_start(struct worker *worker, struct machine *machine, const char *name,
                  void (*fn)(struct bb_ctx *ctx, void *arg), void *arg)
{
    *worker = (struct worker){.machine = machine, .name = name, .fn = fn, .arg = arg};
    cr_assert_eq(pthread_create(&worker->thread, NULL, worker_main, worker), 0);
}

void worker_join(struct worker *worker)
{
    pthread_join(worker->thread, NULL);
}

void door_open(struct door *door)
{
    pthread_mutex_lock(&door->mutex);
    door->open = true;
    pthread_cond_broadcast(&door->cond);
    pthread_mutex_unlock(&door->mutex);
}

void door_wait(struct door *door)
{
    pthread_mutex_lock(&door->mutex);
    while (!door->open) {
        pthread_cond_wait(&door->cond, &door->mutex);
    }
    pthread_mutex_unlock(&door->mutex);
}

unsigned stress_seconds(void)
{
    const char *text = getenv("BUSBAR_STRESS_SECONDS");

    return text == NULL ? 1 : (unsigned)atoi(text);
}

unsigned stress_threads(unsigned otherwise)
{
    const char *text = getenv("BUSBAR_STRESS_THREADS");

    return text == NULL ? otherwise : (unsigned)atoi(text);
}

uint64_t host_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
