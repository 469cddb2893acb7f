/* SPDX-License-Identifier: MIT */
/*
 * The virtual machine on /dev/kvm: one thread a vCPU, whose exits go straight into the engine.
 *
 * Order of use: bb_kvm_open; the sinks below into the machine's configuration; bb_kvm_follow;
 * bb_kvm_create_vcpus; one of the start states; bb_kvm_start; when the stop's event comes,
 * bb_kvm_stop; bb_kvm_unfollow; bb_kvm_close. The machine outlives bb_kvm_unfollow.
 *
 * Threads: all of it from one control thread, except for the sinks. A thread is taken out of
 * KVM_RUN by a signal (SIGRTMIN) whose handler is installed from bb_kvm_start to bb_kvm_stop, so
 * one VM of a process runs at a time.
 */
#ifndef BUSBAR_VMM_KVM_H
#define BUSBAR_VMM_KVM_H

#include "../devices/intc/ioapic.h"
#include "boot.h"
#include "counts.h"
#include "stop.h"
#include "storm.h"

struct bb_kvm;

/*
 * Opens /dev/kvm and creates a VM with room for `vcpus`.
 * Returns BB_OK; BB_E_NOENT where there is no /dev/kvm; BB_E_RANGE for more vCPUs than it takes;
 * BB_E_UNSUPPORTED naming the capability that it lacks; BB_E_SYSTEM where the operating system
 * refused, permissions included.
 */
int bb_kvm_open(unsigned vcpus, struct bb_kvm **kvm, struct bb_error *err);

/* Where the engine's messages go: KVM_SIGNAL_MSI. Lock-free here; in the kernel it is KVM's. */
struct bb_msi_sink bb_kvm_msi_sink(struct bb_kvm *kvm);

/*
 * How the I/O APIC tells KVM its routes, so that ends of level interrupts exit: one whole table at
 * a time by KVM_SET_GSI_ROUTING. A failure is reported on stderr once.
 */
struct bb_ioapic_routes bb_kvm_ioapic_routes(struct bb_kvm *kvm);

/* What KVM mirrors. */
struct bb_kvm_spaces {
    struct bb_ctx *ctx; /* the control thread's */
    struct bb_space *mmio, *pio;
    struct bb_stop *stop; /* whom errors end, once this has returned */
};

/*
 * Keeps KVM's memory slots, ioeventfds and coalesced ranges as the two spaces have them, from now
 * on. What KVM refuses later ends the run, with a line on stderr.
 * Nobody changes the map until it returns.
 * Returns BB_OK; BB_E_NOMEM; BB_E_SYSTEM saying what KVM refused.
 */
int bb_kvm_follow(struct bb_kvm *kvm, const struct bb_kvm_spaces *spaces, struct bb_error *err);

/* Ends that, and takes all of it out of KVM. No vCPU runs. Idempotent. */
void bb_kvm_unfollow(struct bb_kvm *kvm);

/* Creates the interrupt controllers' kernel half and all vCPUs, not yet running. */
int bb_kvm_create_vcpus(struct bb_kvm *kvm, struct bb_error *err);

/* The state in which vCPUs start: vCPU 0 alone at a kernel's entry, or all at the storm's. */
int bb_kvm_enter_kernel(struct bb_kvm *kvm, const struct bb_boot *boot, struct bb_error *err);
int bb_kvm_enter_storm(struct bb_kvm *kvm, const struct bb_storm_entry *entry,
                       struct bb_error *err);

/* The rate of the guest's time stamp counter; 0 where KVM doesn't say. */
uint64_t bb_kvm_tsc_khz(const struct bb_kvm *kvm);

/* What the vCPUs' exits go to. Everything outlives bb_kvm_stop(). */
struct bb_kvm_target {
    struct bb_engine *engine;
    struct bb_space *mmio, *pio;
    struct bb_ioapic *ioapic;
    struct bb_stop *stop;     /* how a vCPU asks for the end */
    struct bb_counts *counts; /* where vCPUs leave their counts at the end; NULL: nowhere */
    bool pin;                 /* each vCPU's thread on a processor of its own, counted round */
    bool bare;                /* MMIO is answered by bb_storm_bare_mmio() and not by the engine */
};

/*
 * Starts a thread for each vCPU; the guest begins to run once all are there.
 * Returns BB_OK; or, with no thread left, BB_E_SYSTEM, or what bb_ctx_attach() returned.
 */
int bb_kvm_start(struct bb_kvm *kvm, const struct bb_kvm_target *target, struct bb_error *err);

/* Takes every vCPU out of the guest and joins its thread. Idempotent. */
void bb_kvm_stop(struct bb_kvm *kvm);

/* What the vCPUs did, once stopped. */
struct bb_kvm_stats {
    uint64_t exits, mmio, pio, eoi;
};
struct bb_kvm_stats bb_kvm_stats(const struct bb_kvm *kvm);

/* Stops, and frees everything. */
void bb_kvm_close(struct bb_kvm *kvm);

#endif
