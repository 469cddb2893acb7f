/* SPDX-License-Identifier: MIT */
/*
 * The storm on host threads: the same phases, each thread with a context, and an inbox in place of
 * local APICs.
 *
 * A thread polls its own counters where a vCPU would take an interrupt. A level interrupt that it
 * finds there is ended as a vCPU's handler would: the HPET's status first, then the I/O APIC's EOI
 * register (version 0x20), which names the pin by its vector.
 */
#include "../base/bits.h"
#include "pin.h"
#include "storm.h"
#include "storm_phases.h"
#include "storm_run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { DESTINATIONS = 256 };
enum { IOAPIC_EOI = 0x40 };

struct inbox_row {
    /* Added to by whoever delivers a message, read by the thread it is for. */
    _Alignas(BB_CACHE_LINE_BYTES) uint64_t count[STORM_ROUTES];
};

struct bb_storm_inbox {
    struct inbox_row rows[DESTINATIONS];
    uint64_t unknown; /* messages with a vector that nobody uses */
};

struct bb_storm_inbox *bb_storm_inbox_create(void)
{
    struct bb_storm_inbox *inbox = aligned_alloc(BB_CACHE_LINE_BYTES, sizeof(*inbox));
    if (inbox) {
        memset(inbox, 0, sizeof(*inbox));
    }
    return inbox;
}

void bb_storm_inbox_free(struct bb_storm_inbox *inbox)
{
    free(inbox);
}

static int inbox_deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    struct bb_storm_inbox *inbox = opaque;
    struct inbox_row *row = &inbox->rows[(address >> 12) & 0xff];
    unsigned vector = data & 0xff;
    (void)ctx;
    /* Release: pairs with storm_interrupts(), so that what the device did before is seen. */
    if (vector == STORM_VECTOR_MSI || vector == STORM_VECTOR_EDGE) {
        bb_fetch_add_acq_rel(&row->count[vector - STORM_VECTOR_MSI], 1);
    } else if (vector >= STORM_VECTOR_LEVEL && vector < STORM_VECTOR_LEVEL + STORM_TIMERS_MAX) {
        bb_fetch_add_acq_rel(&row->count[STORM_LEVEL], 1);
    } else {
        bb_fetch_add_relaxed(&inbox->unknown, 1); /* a count on its own */
        return BB_E_DEVICE;
    }
    return BB_OK;
}

struct bb_msi_sink bb_storm_inbox_sink(struct bb_storm_inbox *inbox)
{
    return (struct bb_msi_sink){.deliver = inbox_deliver, .opaque = inbox};
}

static uint64_t inbox_count(const struct storm_cpu *cpu, enum storm_route route)
{
    return bb_load_acquire(&cpu->inbox->rows[cpu->index % DESTINATIONS].count[route]) -
           cpu->inbox_base[route];
}

uint64_t storm_interrupts(struct storm_cpu *cpu, enum storm_route route)
{
    uint64_t count = inbox_count(cpu, route);
    if (route == STORM_LEVEL && count != cpu->self->interrupts[STORM_LEVEL]) {
        uint32_t timer = (uint32_t)cpu->self->level_timer;
        cpu->self->interrupts[STORM_LEVEL] = count;
        storm_write64(cpu, cpu->control->hpet_gpa + HPET_GINTR_STS, UINT64_C(1) << timer);
        storm_write32(cpu, cpu->control->ioapic_gpa + IOAPIC_EOI, STORM_VECTOR_LEVEL + timer);
    }
    return count;
}

void storm_interrupt_begins(struct storm_cpu *cpu, uint32_t timer)
{
    cpu->self->level_timer = timer;
}

/* Ends the run for everyone: the barriers look at `failed` too. */
void storm_fail(struct storm_cpu *cpu, uint32_t failure, uint64_t detail)
{
    struct storm_control *control = cpu->control;
    uint32_t expected = 0;
    /* `failed` is set last, in effect: only the thread that claims the failure writes the rest,
       and it is read once all threads are joined. Relaxed for the same reason. */
    if (bb_cas_relaxed(&control->failed, &expected, 1)) {
        control->failure = failure;
        control->failure_vcpu = cpu->index;
        control->failure_detail = detail;
    }
}

struct thread {
    struct storm_cpu cpu;
    struct bb_engine *engine;
    struct bb_counts *counts;
    pthread_t thread;
};

static void *thread_main(void *opaque)
{
    struct thread *thread = opaque;
    struct storm_cpu *cpu = &thread->cpu;
    char name[32];
    snprintf(name, sizeof(name), "storm-%u", cpu->index);
    struct bb_error err;
    if (bb_ctx_attach(thread->engine, name, &cpu->ctx, &err) != BB_OK) {
        storm_fail(cpu, STORM_FAIL_CONTEXT, 0);
        return NULL;
    }
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        cpu->inbox_base[route] = inbox_count(cpu, (enum storm_route)route);
    }
    storm_phases_run(cpu);
    bb_counts_take(thread->counts, cpu->ctx, cpu->index, name);
    bb_ctx_detach(cpu->ctx, NULL);
    return NULL;
}

struct run {
    struct storm_control *control;
    struct storm_vcpu *vcpus;
    struct thread *threads;
    struct storm_sum *sum;
};

static void *alloc_zeroed(size_t count, size_t bytes)
{
    size_t total = (count * bytes + BB_CACHE_LINE_BYTES - 1) & ~(size_t)(BB_CACHE_LINE_BYTES - 1);
    void *memory = aligned_alloc(BB_CACHE_LINE_BYTES, total);
    return memory ? memset(memory, 0, total) : NULL;
}

static bool run_alloc(struct run *run, unsigned count)
{
    run->control = alloc_zeroed(1, sizeof(*run->control));
    run->vcpus = alloc_zeroed(count, sizeof(*run->vcpus));
    run->threads = alloc_zeroed(count, sizeof(*run->threads));
    run->sum = alloc_zeroed(1, sizeof(*run->sum));
    return run->control && run->vcpus && run->threads && run->sum;
}

static void run_free(struct run *run)
{
    free(run->control);
    free(run->vcpus);
    free(run->threads);
    free(run->sum);
}

/* Starts all threads and joins them. Returns 0 or pthread_create's error. */
static int run_threads(struct run *run, unsigned count, bool pin)
{
    int failed = 0;
    unsigned started = 0;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    while (started < count && failed == 0) {
        struct thread *thread = &run->threads[started];
        if (pin) {
            (void)bb_pin(&attr, started);
        }
        failed = pthread_create(&thread->thread, &attr, thread_main, thread);
        started += failed == 0;
    }
    pthread_attr_destroy(&attr);
    if (failed) {
        storm_fail(&run->threads[0].cpu, STORM_FAIL_CONTEXT, 0); /* lets the others out */
    }
    for (unsigned i = 0; i < started; i++) {
        pthread_join(run->threads[i].thread, NULL);
    }
    return failed;
}

int bb_storm_run_threads(struct bb_engine *engine, struct bb_space *mmio,
                         struct bb_storm_inbox *inbox, const struct bb_storm_params *params,
                         const int *stop, struct bb_storm_results *results, struct bb_error *err)
{
    struct run run = {0};
    int result = storm_params_check(params, err);
    if (result != BB_OK) {
        return result;
    }
    if (!run_alloc(&run, params->vcpus)) {
        run_free(&run);
        return bb_error_set(err, BB_E_NOMEM, "no memory for a storm of %u threads", params->vcpus);
    }
    uint64_t tsc_khz = storm_host_tsc_khz(); /* the parameter is the guest's */
    storm_control_init(run.control, params, tsc_khz);
    for (unsigned i = 0; i < params->vcpus; i++) {
        run.threads[i].engine = engine;
        run.threads[i].counts = params->counts;
        run.threads[i].cpu = (struct storm_cpu){.control = run.control,
                                                .self = &run.vcpus[i],
                                                .index = i,
                                                .mmio = mmio,
                                                .inbox = inbox,
                                                .stop = stop};
    }
    int failed =
        run_threads(&run, params->vcpus, params->pin && params->vcpus <= bb_pin_processors());
    if (failed) {
        result = bb_error_set(err, BB_E_SYSTEM, "can't start %u threads: %s", params->vcpus,
                              strerror(failed));
    } else {
        storm_sum_begin(run.sum, results, params, tsc_khz);
        results->threads = true;
        results->lock_mode = bb_engine_lock_mode(engine);
        results->finished = !storm_stopped(&run.threads[0].cpu);
        for (unsigned i = 0; i < params->vcpus; i++) {
            storm_sum_add(run.sum, &run.vcpus[i]);
        }
        storm_sum_end(run.sum);
        if (run.control->failed) {
            storm_describe_failure(results, run.control);
        }
    }
    run_free(&run);
    return result;
}

uint64_t storm_host_tsc_khz(void)
{
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    uint64_t first = storm_ticks(), ns;
    do {
        clock_gettime(CLOCK_MONOTONIC, &to);
        ns = (uint64_t)(to.tv_sec - from.tv_sec) * 1000000000u + (uint64_t)to.tv_nsec -
             (uint64_t)from.tv_nsec;
    } while (ns < 10000000);
    return (storm_ticks() - first) * 1000000 / ns;
}
