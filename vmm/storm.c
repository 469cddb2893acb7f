/* SPDX-License-Identifier: MIT */
/*
 * The storm's host side: what it takes to start the payload in a guest, and what its results say.
 */
#include "storm.h"
#include "../base/bits.h"
#include "hist.h"
#include "storm_run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* embed.S */
extern const uint8_t bb_guest_storm_image[], bb_guest_storm_image_end[];

/* Bits of the long-mode page tables and of the GDT (Intel SDM volume 3, 4.5 and 3.4.5). */
#define PAGE_PRESENT_WRITE UINT64_C(0x3)
#define PAGE_LARGE UINT64_C(0x80)
#define GDT_CODE64 UINT64_C(0x00af9b000000ffff)
#define GDT_DATA UINT64_C(0x00cf93000000ffff)
enum { PAGE_BYTES = 0x1000, PAGE_ENTRIES = 512, MAPPED_GIB = 4 };
enum { GDT_ENTRIES = 3 };

#define CR0_PE_NE_WP_PG UINT64_C(0x80010021)
#define CR4_PAE UINT64_C(0x20)
#define EFER_LME_LMA UINT64_C(0x500)

static uint64_t share(uint64_t total, unsigned vcpus, uint64_t least)
{
    return total / vcpus > least ? total / vcpus : least;
}

struct bb_storm_params bb_storm_defaults(unsigned vcpus, bool threads)
{
    unsigned n = vcpus ? vcpus : 1, readers = n > 1 ? n - 1 : 1;
    struct bb_storm_params params = {
        .vcpus = vcpus,
        .phases = (1u << STORM_PHASES) - 1,
        .reads = threads ? share(4000000, n, 2000) : share(40000, n, 50),
        .torture_reads = threads ? share(2000000, readers, 1000) : share(20000, readers, 30),
        .noisy_reads = threads ? share(20000, readers, 50) : share(10000, readers, 20),
        .hold_ns = 50000,
        .rest_ns = threads ? 10000 : 0, /* in a guest the exits are rest enough */
        .think_ns = threads ? 8000 : 0,
        .timer_rounds = share(96, n, 3),
        .publish_every = threads ? 32 : 1,
    };
    return params;
}

uint64_t bb_storm_ram_bytes(unsigned vcpus)
{
    return STORM_VCPU_GPA + (uint64_t)vcpus * STORM_VCPU_BYTES;
}

int storm_params_check(const struct bb_storm_params *params, struct bb_error *err)
{
    if (params->vcpus < 1 || params->vcpus > STORM_VCPUS_MAX) {
        return bb_error_set(err, BB_E_RANGE, "%u vCPUs: the storm takes 1 to %d", params->vcpus,
                            STORM_VCPUS_MAX);
    }
    return BB_OK;
}

void storm_control_init(struct storm_control *control, const struct bb_storm_params *params,
                        uint64_t tsc_khz)
{
    *control = (struct storm_control){
        .magic = STORM_MAGIC,
        .vcpus = params->vcpus,
        .phases = params->phases,
        .reads = params->reads,
        .torture_reads = params->torture_reads,
        .noisy_reads = params->noisy_reads,
        .hold_ns = params->hold_ns,
        .rest_ns = params->rest_ns,
        .think_ns = params->think_ns,
        .publish_every = params->publish_every,
        .timer_rounds = params->timer_rounds,
        .hpet_gpa = STORM_HPET_GPA,
        .ioapic_gpa = STORM_IOAPIC_GPA,
        .device_gpa = STORM_DEVICE_GPA,
        .tsc_khz = tsc_khz,
    };
}

/* One PML4 and one PDPT entry a GiB, and 2 MiB pages: guest-physical addresses as they are. */
static void write_page_tables(uint8_t *ram)
{
    uint64_t *pml4 = (uint64_t *)(ram + STORM_TABLES_GPA);
    uint64_t *pdpt = pml4 + PAGE_ENTRIES;
    uint64_t *directory = pdpt + PAGE_ENTRIES;
    pml4[0] = (STORM_TABLES_GPA + PAGE_BYTES) | PAGE_PRESENT_WRITE;
    for (unsigned gib = 0; gib < MAPPED_GIB; gib++) {
        pdpt[gib] = (STORM_TABLES_GPA + (2 + gib) * PAGE_BYTES) | PAGE_PRESENT_WRITE;
    }
    for (uint64_t i = 0; i < MAPPED_GIB * PAGE_ENTRIES; i++) {
        directory[i] = i << 21 | PAGE_LARGE | PAGE_PRESENT_WRITE;
    }
}

int bb_storm_load(void *ram, uint64_t ram_bytes, const struct bb_storm_params *params,
                  struct bb_storm_entry *entry, struct bb_error *err)
{
    size_t image_bytes = (size_t)(bb_guest_storm_image_end - bb_guest_storm_image);
    int result = storm_params_check(params, err);
    if (result != BB_OK) {
        return result;
    }
    uint64_t needed = bb_storm_ram_bytes(params->vcpus);
    if (ram_bytes < needed) {
        return bb_error_set(
            err, BB_E_RANGE, "the storm needs %llu KiB of memory for %u vCPUs, and there are %llu",
            (unsigned long long)needed / 1024, params->vcpus, (unsigned long long)ram_bytes / 1024);
    }
    uint8_t *base = ram;
    memset(base + STORM_PAYLOAD_GPA, 0, needed - STORM_PAYLOAD_GPA);
    memcpy(base + STORM_PAYLOAD_GPA, bb_guest_storm_image, image_bytes);
    write_page_tables(base);
    static const uint64_t gdt[GDT_ENTRIES] = {0, GDT_CODE64, GDT_DATA};
    memcpy(base + STORM_GDT_GPA, gdt, sizeof(gdt));
    struct storm_control control;
    storm_control_init(&control, params, params->tsc_khz ? params->tsc_khz : storm_host_tsc_khz());
    memcpy(base + STORM_CONTROL_GPA, &control, sizeof(control));
    *entry = (struct bb_storm_entry){
        .cr0 = CR0_PE_NE_WP_PG,
        .cr3 = STORM_TABLES_GPA,
        .cr4 = CR4_PAE,
        .efer = EFER_LME_LMA,
        .gdt_base = STORM_GDT_GPA,
        .gdt_limit = sizeof(gdt) - 1,
        .code_selector = STORM_CS,
        .data_selector = STORM_DS,
        .rip = STORM_PAYLOAD_GPA,
        .rflags = 2,
        .rsp_first = STORM_VCPU_GPA + STORM_VCPU_BYTES,
        .rsp_step = STORM_VCPU_BYTES,
    };
    return BB_OK;
}

void storm_sum_begin(struct storm_sum *sum, struct bb_storm_results *results,
                     const struct bb_storm_params *params, uint64_t tsc_khz)
{
    memset(sum, 0, sizeof(*sum));
    memset(results, 0, sizeof(*results));
    sum->results = results;
    sum->ns_per_tick = 1e6 / (double)tsc_khz;
    results->vcpus = params->vcpus;
    results->phases = params->phases;
}

void storm_sum_add(struct storm_sum *sum, const struct storm_vcpu *vcpu)
{
    struct bb_storm_results *results = sum->results;
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        const struct storm_reading *reading = &vcpu->reading[phase];
        struct bb_storm_latency *latency = &results->reading[phase];
        latency->reads += reading->reads;
        latency->backward_self += reading->backward_self;
        latency->backward_cross += reading->backward_cross;
        /* One that has not read (whoever holds a lock in the noisy phase) has no times. */
        if (reading->reads && (sum->end[phase] == 0 || reading->begin < sum->begin[phase])) {
            sum->begin[phase] = reading->begin;
        }
        if (reading->reads && reading->end > sum->end[phase]) {
            sum->end[phase] = reading->end;
        }
        sum->latency_sum[phase] += (double)reading->latency_sum;
        if (reading->latency_max > sum->latency_max[phase]) {
            sum->latency_max[phase] = reading->latency_max;
        }
        bb_hist_add(sum->hist[phase], reading->hist);
    }
    results->toggles += vcpu->toggles;
    results->halted_moved += vcpu->halted_moved;
    results->holds += vcpu->holds;
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        results->programmed[route] += vcpu->timers.programmed[route];
        results->arrived[route] += vcpu->timers.arrived[route];
        results->spurious[route] += vcpu->timers.spurious[route];
    }
    results->missed += vcpu->timers.missed;
    results->ended_early += vcpu->timers.ended_early;
}

void storm_sum_end(struct storm_sum *sum)
{
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        struct bb_storm_latency *latency = &sum->results->reading[phase];
        const uint64_t *hist = sum->hist[phase];
        if (sum->end[phase] > sum->begin[phase]) {
            double ns = (double)(sum->end[phase] - sum->begin[phase]) * sum->ns_per_tick;
            latency->per_second = (double)latency->reads * 1e9 / ns;
        }
        if (latency->reads) {
            latency->avg_ns = sum->latency_sum[phase] / (double)latency->reads * sum->ns_per_tick;
        }
        latency->p50_ns = bb_hist_quantile(hist, 0.5) * sum->ns_per_tick;
        latency->p99_ns = bb_hist_quantile(hist, 0.99) * sum->ns_per_tick;
        latency->p999_ns = bb_hist_quantile(hist, 0.999) * sum->ns_per_tick;
        latency->max_ns = (double)sum->latency_max[phase] * sum->ns_per_tick;
    }
}

void storm_describe_failure(struct bb_storm_results *results, const struct storm_control *control)
{
    unsigned long long rip = control->failure_rip, detail = control->failure_detail;
    if (control->failure == STORM_FAIL_APIC_ID) {
        snprintf(results->failure, sizeof(results->failure),
                 "vCPU %u has local APIC id %llu instead", control->failure_vcpu, detail);
    } else if (control->failure == STORM_FAIL_CONTEXT) {
        snprintf(results->failure, sizeof(results->failure), "thread %u has no context",
                 control->failure_vcpu);
    } else if (control->failure == STORM_FAIL_HPET) {
        snprintf(results->failure, sizeof(results->failure),
                 "no 64-bit HPET: its capabilities read 0x%llx", detail);
    } else {
        snprintf(results->failure, sizeof(results->failure),
                 "vCPU %u took exception %u (error code 0x%llx) at 0x%llx", control->failure_vcpu,
                 control->failure, detail, rip);
    }
}

int bb_storm_collect(const void *ram, uint64_t ram_bytes, const struct bb_storm_params *params,
                     enum bb_lock_mode lock_mode, struct bb_storm_results *results,
                     struct bb_error *err)
{
    const uint8_t *base = ram;
    struct storm_control control;
    if (ram_bytes < bb_storm_ram_bytes(params->vcpus)) {
        return bb_error_set(err, BB_E_STATE, "the storm was not loaded into this memory");
    }
    memcpy(&control, base + STORM_CONTROL_GPA, sizeof(control));
    if (control.magic != STORM_MAGIC) {
        return bb_error_set(err, BB_E_STATE, "no storm control block in this memory");
    }
    struct storm_sum *sum = malloc(sizeof(*sum));
    struct storm_vcpu *vcpu = malloc(sizeof(*vcpu));
    if (!sum || !vcpu) {
        free(sum);
        free(vcpu);
        return bb_error_set(err, BB_E_NOMEM, "no memory for the storm's results");
    }
    storm_sum_begin(sum, results, params, params->tsc_khz ? params->tsc_khz : storm_host_tsc_khz());
    results->lock_mode = lock_mode;
    results->finished = control.finished == 1 && control.failed == 0;
    if (control.failed) {
        storm_describe_failure(results, &control);
    }
    for (unsigned i = 0; i < params->vcpus; i++) {
        memcpy(vcpu, base + STORM_VCPU_GPA + (uint64_t)i * STORM_VCPU_BYTES, sizeof(*vcpu));
        storm_sum_add(sum, vcpu);
    }
    storm_sum_end(sum);
    free(vcpu);
    free(sum);
    return BB_OK;
}

bool bb_storm_ok(const struct bb_storm_results *results)
{
    bool ok = results->finished && results->halted_moved == 0;
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        ok = ok && results->reading[phase].backward_self == 0 &&
             results->reading[phase].backward_cross == 0;
        ok = ok && (!(results->phases & 1u << phase) || results->reading[phase].reads != 0);
    }
    ok = ok && (!(results->phases & 1u << STORM_TORTURE) || results->toggles != 0);
    /* A vCPU alone has no neighbour. */
    ok =
        ok && (!(results->phases & 1u << STORM_NOISY) || results->vcpus < 2 || results->holds != 0);
    for (unsigned route = 0; route < STORM_ROUTES; route++) {
        ok = ok && results->arrived[route] == results->programmed[route] &&
             results->spurious[route] <= (route == STORM_LEVEL ? results->ended_early : 0);
    }
    if (results->phases & 1u << STORM_TIMERS) {
        ok = ok && results->programmed[STORM_MSI] + results->programmed[STORM_EDGE] +
                           results->programmed[STORM_LEVEL] !=
                       0;
    }
    return ok;
}
