/* SPDX-License-Identifier: MIT */
/* What the KVM files share: the VM, and one record a vCPU. */
#ifndef BUSBAR_VMM_KVM_INTERNAL_H
#define BUSBAR_VMM_KVM_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>

#include "kvm.h"

struct bb_kvm_memory;

struct bb_vcpu {
    struct bb_kvm *kvm;
    unsigned index; /* number, KVM's vcpu id and APIC id */
    int fd;
    struct kvm_run *run; /* shared with the kernel; `immediate_exit` is also written by who kicks */
    uint32_t inside;     /* (a) vCPU thread -> who halts: in KVM_RUN, or about to be */
    bool started;        /* control thread: `thread` is to be joined */
    pthread_t thread;
    struct bb_ctx *ctx;        /* the vCPU thread's own */
    struct bb_kvm_stats stats; /* written by the vCPU thread; read once it is joined */
} __attribute__((aligned(128)));

/* The gate that holds vCPU threads until all of them are there. */
enum bb_kvm_gate { BB_GATE_CLOSED, BB_GATE_OPEN, BB_GATE_ABANDONED };

struct bb_kvm {
    int dev_fd, vm_fd;
    unsigned vcpu_count;
    size_t run_bytes; /* of the mapping of struct kvm_run */
    struct bb_vcpu *vcpus;
    struct bb_kvm_target target;
    bool signal_installed;
    struct sigaction signal_before;

    uint32_t doors;            /* (a) BB_DOOR_*: changed under door_lock, read by vCPU threads */
    bool door_fences;          /* immutable: this host has no membarrier */
    pthread_mutex_t door_lock; /* see kvm_door.c */
    pthread_cond_t door_changed;

    /* The control thread's: what follows the map, NULL while nothing does; and its context. */
    struct bb_kvm_memory *memory;
    struct bb_ctx *control_ctx;
    struct kvm_coalesced_mmio_ring *ring; /* immutable once vCPUs run; NULL: this KVM has none */
    pthread_mutex_t ring_lock;            /* whose holder empties it */

    pthread_mutex_t gate_lock; /* guards the next four */
    pthread_cond_t gate_changed;
    enum bb_kvm_gate gate;
    unsigned gate_arrived;
    struct bb_error gate_error; /* of the first thread that could not attach; code 0: none */
};

/* Bits of bb_kvm.doors. */
enum { BB_DOOR_HALT = 1, BB_DOOR_QUIT = 2 };

/* kvm_door.c. Of a vCPU's own thread: enter returns false where it is to end. */
bool bb_kvm_enter_(struct bb_vcpu *vcpu);
void bb_kvm_leave_(struct bb_vcpu *vcpu);
/* Takes every vCPU out of KVM_RUN and keeps it out until unhalt; one at a time, on any thread.
 * Waits for no access. */
void bb_kvm_halt_(struct bb_kvm *kvm);
void bb_kvm_unhalt_(struct bb_kvm *kvm);
/* Has every vCPU's thread end once it is out of its access. */
void bb_kvm_quit_(struct bb_kvm *kvm);
void bb_kvm_doors_init_(struct bb_kvm *kvm);
void bb_kvm_doors_fini_(struct bb_kvm *kvm);

/* kvm_ring.c. Makes the writes that KVM has coalesced, or waits for who does. With nothing held. */
void bb_kvm_drain_(struct bb_kvm *kvm, struct bb_ctx *ctx);

/* Fills `cpuid` for one vCPU from what KVM supports: topology and APIC id. */
struct kvm_cpuid2 *bb_kvm_cpuid_supported_(int dev_fd, struct bb_error *err);
struct kvm_cpuid2 *bb_kvm_cpuid_for_(const struct kvm_cpuid2 *supported, unsigned index,
                                     unsigned vcpus);

/* The one line that says why a vCPU can't go on. */
void bb_kvm_dump_(struct bb_vcpu *vcpu, const char *what);

#endif
