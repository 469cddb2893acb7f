/* SPDX-License-Identifier: MIT */
/* The storm in a guest and on host threads; see run.h and storm.h. */
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "../base/atomic.h"
#include "machine.h"
#include "pin.h"
#include "run.h"

enum { PAGE = 4096 };

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static uint64_t memory_bytes(const struct bb_storm_run *run)
{
    uint64_t needed = (bb_storm_ram_bytes(run->params.vcpus) + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    if (run->memory_bytes != 0) {
        return run->memory_bytes;
    }
    return needed > BB_RAM_BYTES_MIN ? needed : BB_RAM_BYTES_MIN;
}

/* The machine and the device that only the storm has. */
static int create_machine(const struct bb_storm_run *run, struct bb_machine_config *config,
                          struct bb_machine **machine, struct bb_error *err)
{
    struct bb_device *device;
    config->vcpus = run->params.vcpus;
    config->memory_bytes = memory_bytes(run);
    config->lock_mode = run->lock_mode;
    config->count_accesses = run->counts != NULL;
    int rc = bb_machine_create(config, machine, err);
    if (rc != BB_OK) {
        return rc;
    }
    rc = bb_storm_device_create((*machine)->ctx, (*machine)->mmio, &device, err);
    if (rc != BB_OK) {
        bb_machine_destroy(*machine, NULL);
        return rc;
    }
    bb_machine_adopt(*machine, device);
    if (run->counts != NULL) {
        run->counts->spaces[0] = (*machine)->mmio;
        run->counts->spaces[1] = (*machine)->pio;
    }
    return BB_OK;
}

/* Last before the start, so that a run that can't start leaves the file as it was. */
static int make_serial_file(const struct bb_storm_run *run, struct bb_error *err)
{
    struct bb_serial *serial;
    if (run->serial == NULL || run->serial->kind != BB_SERIAL_FILE) {
        return BB_OK;
    }
    int rc = bb_serial_open(run->serial, &serial, err);
    if (rc == BB_OK) {
        bb_serial_close(serial);
    }
    return rc;
}

/* Everything up to the first instruction. */
static int prepare_guest(struct bb_kvm *kvm, struct bb_machine *machine, struct bb_stop *stop,
                         struct bb_storm_params *params, struct bb_error *err)
{
    struct bb_kvm_spaces spaces = {
        .ctx = machine->ctx, .mmio = machine->mmio, .pio = machine->pio, .stop = stop};
    struct bb_storm_entry entry;
    int rc = bb_kvm_follow(kvm, &spaces, err);
    if (rc == BB_OK) {
        rc = bb_kvm_create_vcpus(kvm, err);
    }
    if (rc == BB_OK) {
        params->tsc_khz = bb_kvm_tsc_khz(kvm);
        rc = bb_storm_load(machine->mem.host, machine->mem.low_bytes, params, &entry, err);
    }
    if (rc == BB_OK) {
        rc = bb_kvm_enter_storm(kvm, &entry, err);
    }
    return rc;
}

static int run_guest(const struct bb_storm_run *run, struct bb_stop *stop, int signal_fd,
                     struct bb_storm_results *results, struct bb_run_outcome *outcome,
                     struct bb_error *err)
{
    struct bb_storm_params params = run->params;
    struct bb_machine *machine;
    struct bb_kvm *kvm;
    int rc = bb_kvm_open(params.vcpus, &kvm, err);
    if (rc != BB_OK) {
        return rc;
    }
    struct bb_machine_config config = {
        .msi_sink = bb_kvm_msi_sink(kvm),
        .routes = bb_kvm_ioapic_routes(kvm),
        .stop = stop,
    };
    rc = create_machine(run, &config, &machine, err);
    if (rc != BB_OK) {
        goto close_kvm;
    }
    rc = prepare_guest(kvm, machine, stop, &params, err);
    if (rc == BB_OK) {
        rc = make_serial_file(run, err);
    }
    if (rc == BB_OK) {
        struct bb_kvm_target target = {
            .engine = machine->engine,
            .mmio = machine->mmio,
            .pio = machine->pio,
            .ioapic = machine->ioapic,
            .stop = stop,
            .counts = run->counts,
            .pin = params.pin && params.vcpus <= bb_pin_processors(),
            .bare = run->bare,
        };
        rc = bb_kvm_start(kvm, &target, err);
    }
    if (rc == BB_OK) {
        double began = now_seconds();
        bb_stop_await(stop, signal_fd, run->seconds);
        bb_kvm_stop(kvm);
        outcome->seconds = now_seconds() - began;
        outcome->kvm = bb_kvm_stats(kvm);
        outcome->engine = bb_engine_stats(machine->ctx);
        rc = bb_storm_collect(machine->mem.host, machine->mem.low_bytes, &params, run->lock_mode,
                              results, err);
    }
    bb_kvm_unfollow(kvm);
    /* Devices may send messages until the machine is gone: the VM outlives it. */
    int destroyed = bb_machine_destroy(machine, rc == BB_OK ? err : NULL);
    rc = rc == BB_OK ? destroyed : rc;
close_kvm:
    bb_kvm_close(kvm);
    return rc;
}

/* The storm on host threads blocks, so it has a thread of its own beside the waiting main one. */
struct worker {
    const struct bb_storm_run *run;
    struct bb_machine *machine;
    struct bb_storm_inbox *inbox;
    struct bb_stop *stop;
    struct bb_storm_results *results;
    struct bb_error *err;
    int abort; /* (a) main thread -> storm: end early */
    int rc;    /* written by the worker, read once it is joined */
};

static void *work(void *arg)
{
    struct worker *w = arg;
    w->rc = bb_storm_run_threads(w->machine->engine, w->machine->mmio, w->inbox, &w->run->params,
                                 &w->abort, w->results, w->err);
    bb_stop_request(w->stop, BB_STOP_FINISHED, 0);
    return NULL;
}

static int run_threads(const struct bb_storm_run *run, struct bb_stop *stop, int signal_fd,
                       struct bb_storm_results *results, struct bb_run_outcome *outcome,
                       struct bb_error *err)
{
    struct bb_machine *machine;
    pthread_t thread;
    struct bb_storm_inbox *inbox = bb_storm_inbox_create();
    if (inbox == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for the storm's messages");
    }
    struct bb_machine_config config = {.msi_sink = bb_storm_inbox_sink(inbox), .stop = stop};
    int rc = create_machine(run, &config, &machine, err);
    if (rc != BB_OK) {
        bb_storm_inbox_free(inbox);
        return rc;
    }
    struct worker worker = {
        .run = run,
        .machine = machine,
        .inbox = inbox,
        .stop = stop,
        .results = results,
        .err = err,
    };
    rc = make_serial_file(run, err);
    if (rc != BB_OK) {
        goto destroy;
    }
    double began = now_seconds();
    int failed = pthread_create(&thread, NULL, work, &worker);
    if (failed != 0) {
        rc = bb_error_set(err, BB_E_SYSTEM, "can't make a thread: %s", strerror(failed));
    } else {
        bb_stop_await(stop, signal_fd, run->seconds);
        bb_store_release(&worker.abort, 1); /* pairs with bb_storm_run_threads() */
        pthread_join(thread, NULL);
        outcome->seconds = now_seconds() - began;
        outcome->engine = bb_engine_stats(machine->ctx);
        rc = worker.rc;
    }
destroy:;
    int destroyed = bb_machine_destroy(machine, rc == BB_OK ? err : NULL);
    bb_storm_inbox_free(inbox);
    return rc == BB_OK ? destroyed : rc;
}

int bb_storm_run(const struct bb_storm_run *run, int signal_fd, struct bb_storm_results *results,
                 struct bb_run_outcome *outcome, struct bb_error *err)
{
    struct bb_stop stop;
    int rc = bb_stop_init(&stop, err);
    if (rc != BB_OK) {
        return rc;
    }
    *outcome = (struct bb_run_outcome){0};
    *results = (struct bb_storm_results){0};
    rc = run->threads ? run_threads(run, &stop, signal_fd, results, outcome, err)
                      : run_guest(run, &stop, signal_fd, results, outcome, err);
    outcome->reason = bb_stop_reason(&stop, &outcome->status);
    bb_stop_fini(&stop);
    return rc;
}
