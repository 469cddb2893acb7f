/* SPDX-License-Identifier: MIT */
/*
 * The storm: many vCPUs, or host threads, that hammer the HPET and check what they see.
 *
 * Four phases (storm_abi.h): reading; torture, with ENABLE_CNF really toggling; a noisy neighbour
 * that keeps a device's lock 50 us at a time; timers whose interrupts are counted. As a guest it is
 * a freestanding payload embedded in the binary; on host threads the same accesses go through
 * bb_mmio_read() and bb_mmio_write(). Both leave the same results.
 *
 * As a guest, in order: bb_storm_load() into RAM that starts at guest-physical 0; start every vCPU
 * as bb_storm_entry says; wait for a write to the debug-exit port 0xf4 (the value does not matter
 * here); stop every vCPU; bb_storm_collect(). The verdict, and `busbar run`'s exit status, is
 * bb_storm_ok(): 0 where it is true, else 1; not the debug-exit status.
 *
 * What the machine must have: HPET, I/O APIC and storm device at the addresses in storm_abi.h,
 * port 0xf4, an in-kernel local APIC per vCPU whose id is the vCPU's number, CPUID with x2APIC, the
 * 32-bit ids of KVM_CAP_X2APIC_API for more than 255 vCPUs. vCPUs whose id does not fit in the
 * 8 bits of a message's destination take no part in the timers phase.
 */
#ifndef BUSBAR_VMM_STORM_H
#define BUSBAR_VMM_STORM_H

#include "../engine/device.h"
#include "counts.h"
#include "storm_abi.h"

#include <stdio.h>

struct bb_storm_params {
    unsigned vcpus;         /* 1 to STORM_VCPUS_MAX */
    unsigned phases;        /* bit mask of 1 << enum storm_phase */
    uint64_t reads;         /* per vCPU */
    uint64_t torture_reads; /* per vCPU */
    uint64_t noisy_reads;   /* per vCPU */
    uint64_t hold_ns;       /* of the storm device's lock, at a time */
    uint64_t rest_ns;       /* between two holds */
    uint64_t think_ns;      /* of a reader in the noisy phase, before each read */
    uint64_t publish_every; /* a reader offers its value to the others every so many reads */
    uint64_t timer_rounds;  /* per vCPU */
    bool pin;               /* each vCPU's thread on a processor of its own, if there are enough */
    struct bb_counts *counts; /* host threads leave their counts there at the end; NULL: nowhere */
    uint64_t tsc_khz; /* of the guest's TSC, from KVM_GET_TSC_KHZ; 0: the host's, measured */
};

/*
 * Parameters under which a run takes a few seconds: totals are divided among the vCPUs. In a guest
 * each read costs an exit; on host threads (`threads`) only a call, so there are many more of them.
 */
struct bb_storm_params bb_storm_defaults(unsigned vcpus, bool threads);

/* Bytes of RAM from guest-physical 0 that the payload needs for this many vCPUs. */
uint64_t bb_storm_ram_bytes(unsigned vcpus);

/*
 * The state in which every vCPU starts, BSP and others alike: 64-bit mode, CPL 0, interrupts off.
 * For vCPU i, by KVM_GET_SREGS, change, KVM_SET_SREGS; KVM_SET_REGS; and KVM_SET_MP_STATE with
 * KVM_MP_STATE_RUNNABLE (else all but the BSP would wait for INIT and SIPI):
 *   sregs  cr0, cr3, cr4, efer, gdt.base, gdt.limit as given; idt.base 0, idt.limit 0;
 *          cs: selector, base 0, limit 0xffffffff, type 11, present 1, s 1, l 1, db 0, dpl 0, g 1;
 *          ds, es, fs, gs, ss: data_selector, base 0, limit 0xffffffff, type 3, present 1, s 1,
 *          l 0, db 1, dpl 0, g 1; tr: selector 0, base 0, limit 0xffff, type 11, present 1, s 0;
 *          ldt: unusable 1; apic_base as KVM gave it (the payload turns x2APIC mode on itself)
 *   regs   rip and rflags as given; rdi = i; rsp = rsp_first + i * rsp_step; all others 0
 */
struct bb_storm_entry {
    uint64_t cr0, cr3, cr4, efer;
    uint64_t gdt_base;
    uint16_t gdt_limit;
    uint16_t code_selector, data_selector;
    uint64_t rip, rflags;
    uint64_t rsp_first, rsp_step;
};

/*
 * Writes payload, page tables, GDT and control block into guest RAM.
 * Returns BB_OK; BB_E_RANGE for a count of vCPUs outside 1 to 1024, or RAM that is too small (the
 * text says how much is needed). Threads: any, before vCPUs run.
 */
int bb_storm_load(void *ram, uint64_t ram_bytes, const struct bb_storm_params *params,
                  struct bb_storm_entry *entry, struct bb_error *err);

/* What a run found, over all vCPUs. Latencies are in ns. */
struct bb_storm_latency {
    uint64_t reads;
    double per_second; /* all vCPUs' reads, from the first one's begin to the last one's end */
    double avg_ns, p50_ns, p99_ns, p999_ns, max_ns;
    uint64_t backward_self, backward_cross;
};

struct bb_storm_results {
    unsigned vcpus;
    unsigned phases;
    bool finished; /* every phase ran to its end */
    bool threads;  /* on host threads, not in a guest */
    enum bb_lock_mode lock_mode;
    struct bb_storm_latency reading[STORM_READING_PHASES];
    uint64_t toggles, halted_moved, holds;
    uint64_t programmed[STORM_ROUTES], arrived[STORM_ROUTES];
    uint64_t missed; /* rounds that were begun again: the comparator had passed too early */
    uint64_t spurious[STORM_ROUTES]; /* interrupts that nobody had asked for */
    uint64_t ended_early;            /* level ones that KVM ended on its own: each may come twice */
    char failure[128];               /* what went wrong in a guest that did not finish; else "" */
};

/*
 * Sums up what the payload left in guest RAM, once every vCPU has stopped. Guest memory is read
 * once and judged, not trusted.
 * Returns BB_OK (also where the run failed: see bb_storm_ok()), or BB_E_STATE where there is no
 * control block in that RAM.
 */
int bb_storm_collect(const void *ram, uint64_t ram_bytes, const struct bb_storm_params *params,
                     enum bb_lock_mode lock_mode, struct bb_storm_results *results,
                     struct bb_error *err);

/*
 * True where it finished, the counter was toggled and the neighbour was noisy in their phases,
 * nothing went backwards and no interrupt was lost or came unasked, apart from level interrupts
 * that came again because KVM had ended them early.
 */
bool bb_storm_ok(const struct bb_storm_results *results);

/* A table for people, and one JSON object, on one stream each. */
void bb_storm_print_table(FILE *out, const struct bb_storm_results *results);
void bb_storm_print_json(FILE *out, const struct bb_storm_results *results);

/*
 * The noisy neighbour: a device of class DEVICE_LOCK, mapped at STORM_DEVICE_GPA. Remove it with
 * bb_device_remove_wait() like any other. Results as bb_device_create() and bb_space_map().
 */
int bb_storm_device_create(struct bb_ctx *ctx, struct bb_space *mmio, struct bb_device **device,
                           struct bb_error *err);

/*
 * Messages on host threads: a sink that counts them by destination and vector, instead of local
 * APICs. Create it before the engine, give its sink to bb_engine_config.msi_sink, free it after
 * the engine is destroyed. bb_storm_inbox_create returns NULL without memory.
 */
struct bb_storm_inbox;
struct bb_storm_inbox *bb_storm_inbox_create(void);
struct bb_msi_sink bb_storm_inbox_sink(struct bb_storm_inbox *inbox);
void bb_storm_inbox_free(struct bb_storm_inbox *inbox);

/*
 * Runs the storm on host threads, one per vCPU, each with a context of its own. `stop` (may be
 * NULL) is read with acquire now and then: once it is not 0, the run ends early, unfinished.
 * Returns BB_OK (also where the run failed), BB_E_RANGE for a bad count, BB_E_NOMEM, or BB_E_SYSTEM
 * where threads can't be made; nothing runs on return. Threads: any; blocks.
 */
int bb_storm_run_threads(struct bb_engine *engine, struct bb_space *mmio,
                         struct bb_storm_inbox *inbox, const struct bb_storm_params *params,
                         const int *stop, struct bb_storm_results *results, struct bb_error *err);

/*
 * The bare comparison: answers what the payload asks of HPET and storm device straight away, from
 * clock_gettime and without an engine, in a vCPU's KVM_RUN loop. `*value` is read or written by
 * the direction. Only the phases STORM_READ and STORM_NOISY make sense. Threads: any; no state.
 */
void bb_storm_bare_mmio(bb_gpa_t gpa, unsigned size, bool is_write, uint64_t *value);

#endif
