/* SPDX-License-Identifier: MIT */
/* What the KVM files share: the VM, and one record a vCPU. */
#ifndef BUSBAR_VMM_KVM_INTERNAL_H
#define BUSBAR_VMM_KVM_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>

#include "kvm.h"

struct bb_vcpu {
    struct bb_kvm *kvm;
    unsigned index; /* number, KVM's vcpu id and APIC id */
    int fd;
    struct kvm_run *run; /* shared with the kernel; `immediate_exit` is also written by stop */
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

    uint32_t quit; /* (a) control thread -> vCPU threads: leave the loop */

    pthread_mutex_t gate_lock; /* guards the next four */
    pthread_cond_t gate_changed;
    enum bb_kvm_gate gate;
    unsigned gate_arrived;
    struct bb_error gate_error; /* of the first thread that could not attach; code 0: none */
};

/* Fills `cpuid` for one vCPU from what KVM supports: topology and APIC id. */
struct kvm_cpuid2 *bb_kvm_cpuid_supported_(int dev_fd, struct bb_error *err);
struct kvm_cpuid2 *bb_kvm_cpuid_for_(const struct kvm_cpuid2 *supported, unsigned index,
                                     unsigned vcpus);

/* The one line that says why a vCPU can't go on. */
void bb_kvm_dump_(struct bb_vcpu *vcpu, const char *what);

#endif
