/* SPDX-License-Identifier: MIT */
/* `busbar run`; see run.h. */
#include "run.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "acpi.h"
#include "machine.h"

enum { STATUS_TIME = 124, STATUS_SIGNAL_BASE = 128 };

int bb_signals_open(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) {
        return -1;
    }
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void bb_stop_await(struct bb_stop *stop, int signal_fd, unsigned seconds)
{
    int64_t end = now_ms() + (int64_t)seconds * 1000;

    while (bb_stop_reason(stop, NULL) == BB_STOP_NONE) {
        struct pollfd polled[2] = {
            {.fd = stop->event_fd, .events = POLLIN},
            {.fd = signal_fd, .events = POLLIN},
        };
        int64_t left = end - now_ms();
        if (seconds != 0 && left <= 0) {
            bb_stop_request(stop, BB_STOP_TIME, STATUS_TIME);
            return;
        }
        int timeout = seconds == 0 ? -1 : (int)(left < 1000 ? left : 1000);
        if (poll(polled, 2, timeout) <= 0) {
            continue;
        }
        struct signalfd_siginfo info;
        if (polled[1].revents != 0 && read(signal_fd, &info, sizeof(info)) == sizeof(info)) {
            bb_stop_request(stop, BB_STOP_SIGNAL, STATUS_SIGNAL_BASE + info.ssi_signo);
        }
    }
}

static int fail(const struct bb_error *err)
{
    fprintf(stderr, "busbar: %s\n", err->text);
    return BB_EXIT_USAGE;
}

/* A kernel's run: what was made, so that it can be unmade from wherever it stopped. */
struct kernel_run {
    const struct bb_options *options;
    struct bb_stop stop;
    struct bb_kvm *kvm;
    struct bb_machine *machine;
    struct bb_serial *serial;
    struct bb_counts counts; /* where they are asked for */
    struct bb_run_outcome outcome;
    uint64_t serial_dropped;
};

static int load_kernel(struct kernel_run *r, struct bb_error *err)
{
    const struct bb_options *options = r->options;
    struct bb_boot_config config = {
        .mem = &r->machine->mem,
        .kernel_path = options->kernel,
        .initrd_path = options->initrd,
        .append = options->append,
    };
    struct bb_acpi_config acpi = {
        .vcpus = options->vcpus,
        .hpet_block_id = r->machine->hpet_block_id,
    };
    struct bb_boot boot;
    int rc = bb_acpi_build(&r->machine->mem, &acpi, &config.rsdp, err);
    if (rc == BB_OK) {
        rc = bb_boot_load(&config, &boot, err);
    }
    if (rc == BB_OK) {
        rc = bb_kvm_enter_kernel(r->kvm, &boot, err);
    }
    return rc;
}

/* Everything before the first instruction. On failure the caller takes apart what there is. */
static int prepare(struct kernel_run *r, struct bb_error *err)
{
    const struct bb_options *options = r->options;
    int rc = bb_kvm_open(options->vcpus, &r->kvm, err);
    if (rc != BB_OK) {
        return rc;
    }
    struct bb_machine_config config = {
        .vcpus = options->vcpus,
        .memory_bytes = options->memory_bytes,
        .lock_mode = options->lock_mode,
        .count_accesses = options->count_accesses,
        .msi_sink = bb_kvm_msi_sink(r->kvm),
        .routes = bb_kvm_ioapic_routes(r->kvm),
        .stop = &r->stop,
    };
    rc = bb_machine_create(&config, &r->machine, err);
    if (rc == BB_OK) {
        struct bb_kvm_spaces spaces = {
            .ctx = r->machine->ctx,
            .mmio = r->machine->mmio,
            .pio = r->machine->pio,
            .stop = &r->stop,
        };
        rc = bb_kvm_follow(r->kvm, &spaces, err);
    }
    if (rc == BB_OK) {
        rc = bb_kvm_create_vcpus(r->kvm, err);
    }
    if (rc == BB_OK) {
        rc = load_kernel(r, err);
    }
    /* Last, so that a run that can't start doesn't empty the serial port's file. */
    if (rc == BB_OK) {
        rc = bb_serial_open(&options->serial, &r->serial, err);
    }
    if (rc == BB_OK) {
        r->machine->config.serial = r->serial;
    }
    return rc;
}

static int execute(struct kernel_run *r, int signal_fd, struct bb_error *err)
{
    struct bb_serial_hooks hooks = bb_machine_serial_hooks(r->machine);
    struct bb_kvm_target target = {
        .engine = r->machine->engine,
        .mmio = r->machine->mmio,
        .pio = r->machine->pio,
        .ioapic = r->machine->ioapic,
        .stop = &r->stop,
        .counts = r->options->count_accesses ? &r->counts : NULL,
    };
    r->counts.spaces[0] = r->machine->mmio;
    r->counts.spaces[1] = r->machine->pio;
    int rc = bb_serial_start(r->serial, &hooks, err);
    if (rc != BB_OK) {
        return rc;
    }
    int64_t began = now_ms();
    rc = bb_kvm_start(r->kvm, &target, err);
    if (rc == BB_OK) {
        bb_stop_await(&r->stop, signal_fd, r->options->seconds);
        bb_kvm_stop(r->kvm);
        r->outcome.seconds = (double)(now_ms() - began) / 1000;
        r->outcome.kvm = bb_kvm_stats(r->kvm);
        r->outcome.engine = bb_engine_stats(r->machine->ctx);
        r->outcome.reason = bb_stop_reason(&r->stop, &r->outcome.status);
    }
    bb_serial_stop(r->serial);
    r->serial_dropped = bb_serial_dropped(r->serial);
    return rc;
}

/* Engine threads may still send bytes and messages while the machine is there: it goes first. */
static int take_apart(struct kernel_run *r, struct bb_error *err)
{
    int rc = BB_OK;
    if (r->kvm != NULL) {
        bb_kvm_unfollow(r->kvm);
    }
    if (r->machine != NULL) {
        rc = bb_machine_destroy(r->machine, err);
    }
    if (r->serial != NULL) {
        bb_serial_close(r->serial);
    }
    if (r->kvm != NULL) {
        bb_kvm_close(r->kvm);
    }
    return rc;
}

static const char *lock_name(enum bb_lock_mode mode)
{
    static const char *const names[] = {
        [BB_LOCK_FREE] = "free", [BB_LOCK_DEVICE] = "device", [BB_LOCK_BIG] = "big"};
    return names[mode];
}

/* NULL without memory. */
static json_t *counts_json(const struct bb_counts *counts)
{
    json_t *regions = json_array();

    for (size_t i = 0; i < counts->count; i++) {
        const struct bb_counts_row *row = &counts->row[i];
        json_t *vcpus = json_array();

        for (unsigned n = 0; n < counts->vcpus; n++) {
            const struct bb_region_counts *c = &row->vcpu[n];
            if (c->reads + c->writes + c->refused != 0) {
                json_array_append_new(vcpus, json_pack("{s:i, s:I, s:I, s:I}", "vcpu", (int)n,
                                                       "reads", (json_int_t)c->reads, "writes",
                                                       (json_int_t)c->writes, "refused",
                                                       (json_int_t)c->refused));
            }
        }
        json_array_append_new(regions, json_pack("{s:s, s:s, s:o}", "region", row->region, "device",
                                                 row->device, "vcpus", vcpus));
    }
    return regions;
}

static void print_json(const struct kernel_run *r)
{
    const struct bb_run_outcome *o = &r->outcome;
    json_t *report = json_pack(
        "{s:s, s:s, s:i, s:i, s:s, s:f, s:{s:I, s:I, s:I, s:I}, s:{s:I, s:I, s:I, s:I, s:I}, s:I}",
        "guest", r->options->kernel, "reason", bb_stop_reason_name(o->reason), "status",
        (int)o->status, "vcpus", (int)r->options->vcpus, "lock", lock_name(r->options->lock_mode),
        "seconds", o->seconds, "exits", "all", (json_int_t)o->kvm.exits, "mmio",
        (json_int_t)o->kvm.mmio, "pio", (json_int_t)o->kvm.pio, "eoi", (json_int_t)o->kvm.eoi,
        "engine", "unassigned_reads", (json_int_t)o->engine.unassigned_reads, "unassigned_writes",
        (json_int_t)o->engine.unassigned_writes, "refused", (json_int_t)o->engine.refused,
        "msi_sent", (json_int_t)o->engine.msi_sent, "msi_dropped",
        (json_int_t)o->engine.msi_dropped, "serial_dropped", (json_int_t)r->serial_dropped);
    if (report == NULL) {
        fprintf(stderr, "busbar: no JSON: the kernel's name is no UTF-8\n");
        return;
    }
    if (r->options->count_accesses) {
        json_object_set_new(report, "accesses", counts_json(&r->counts));
    }
    json_dumpf(report, stdout, JSON_INDENT(2));
    fputc('\n', stdout);
    json_decref(report);
}

/* One line for the ends that a guest's own output doesn't explain. */
static void say_reason(const struct kernel_run *r)
{
    if (r->outcome.reason == BB_STOP_TIME) {
        fprintf(stderr, "busbar: stopped after %u s (--seconds)\n", r->options->seconds);
    } else if (r->outcome.reason == BB_STOP_RESET) {
        fprintf(stderr, "busbar: the guest asked for a reset, which ends the run\n");
    }
    if (r->serial_dropped != 0) {
        fprintf(stderr, "busbar: %llu bytes of serial output were dropped: nobody read them\n",
                (unsigned long long)r->serial_dropped);
    }
}

static int run_kernel(const struct bb_options *options, int signal_fd)
{
    struct kernel_run r = {.options = options};
    struct bb_error err = {0};
    int rc = bb_stop_init(&r.stop, &err);
    if (rc != BB_OK) {
        return fail(&err);
    }
    bb_counts_init(&r.counts, options->vcpus);
    rc = prepare(&r, &err);
    if (rc == BB_OK) {
        rc = execute(&r, signal_fd, &err);
    }
    int apart = take_apart(&r, rc == BB_OK ? &err : NULL);
    bb_stop_fini(&r.stop);
    if (rc != BB_OK || apart != BB_OK) {
        bb_counts_fini(&r.counts);
        fprintf(stderr, "busbar: %s\n", err.text);
        return rc != BB_OK ? BB_EXIT_USAGE : BB_EXIT_FAILED;
    }
    say_reason(&r);
    if (options->json) {
        print_json(&r);
    } else if (options->count_accesses) {
        bb_counts_print(stdout, &r.counts);
    }
    bb_counts_fini(&r.counts);
    return (int)r.outcome.status;
}

/* True where the storm runs on host threads; says so where nobody asked for it. */
static bool choose_threads(const struct bb_options *options)
{
    if (options->cpu != BB_CPU_AUTO) {
        return options->cpu == BB_CPU_THREADS;
    }
    if (access("/dev/kvm", F_OK) == 0 || errno != ENOENT) {
        return false;
    }
    fprintf(stderr, "busbar: there is no /dev/kvm on this machine: running on host threads, as "
                    "with --cpu threads\n");
    return true;
}

/* The storm's own object, and what was counted in it. */
static void print_storm_json(const struct bb_storm_results *results, const struct bb_counts *counts)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);

    if (stream == NULL) {
        fprintf(stderr, "busbar: no memory for the report\n");
        return;
    }
    bb_storm_print_json(stream, results);
    fclose(stream);
    json_t *report = json_loads(text, 0, NULL);
    json_object_set_new(report, "accesses", counts_json(counts));
    json_dumpf(report, stdout, JSON_COMPACT);
    fputc('\n', stdout);
    json_decref(report);
    free(text);
}

static void print_storm(const struct bb_options *options, const struct bb_storm_results *results,
                        const struct bb_counts *counts)
{
    if (options->json && options->count_accesses) {
        print_storm_json(results, counts);
    } else if (options->json) {
        bb_storm_print_json(stdout, results);
    } else {
        bb_storm_print_table(stdout, results);
        if (options->count_accesses) {
            bb_counts_print(stdout, counts);
        }
    }
}

static int run_storm(const struct bb_options *options, int signal_fd)
{
    bool threads = choose_threads(options);
    struct bb_storm_run run = {
        .params = bb_storm_defaults(options->vcpus, threads),
        .memory_bytes = options->memory_bytes,
        .lock_mode = options->lock_mode,
        .threads = threads,
        .seconds = options->seconds,
        .serial = &options->serial,
    };
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_counts counts;
    struct bb_error err = {0};

    bb_counts_init(&counts, options->vcpus);
    run.counts = run.params.counts = options->count_accesses ? &counts : NULL;
    if (options->reads != 0) {
        run.params.reads = run.params.torture_reads = run.params.noisy_reads = options->reads;
    }
    int rc = bb_storm_run(&run, signal_fd, &results, &outcome, &err);
    if (rc == BB_OK) {
        print_storm(options, &results, &counts);
    }
    bb_counts_fini(&counts);
    if (rc != BB_OK) {
        return fail(&err);
    }
    switch (outcome.reason) {
    case BB_STOP_SIGNAL:
        return (int)outcome.status;
    case BB_STOP_TIME:
        fprintf(stderr, "busbar: stopped after %u s (--seconds)\n", options->seconds);
        return (int)outcome.status;
    case BB_STOP_DEBUG_EXIT:
    case BB_STOP_FINISHED:
        return bb_storm_ok(&results) ? BB_EXIT_OK : BB_EXIT_FAILED;
    default:
        return BB_EXIT_FAILED;
    }
}

int bb_run(const struct bb_options *options, int signal_fd)
{
    int status =
        options->kernel != NULL ? run_kernel(options, signal_fd) : run_storm(options, signal_fd);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "busbar: can't write the report: %s\n", strerror(errno));
        return status == BB_EXIT_OK ? BB_EXIT_FAILED : status;
    }
    return status;
}
