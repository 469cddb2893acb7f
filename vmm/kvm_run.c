/* SPDX-License-Identifier: MIT */
/*
 * The vCPU threads: KVM_RUN, and each exit straight into the engine, with no lock between.
 *
 * An exit makes first what KVM has coalesced, then its own access. kvm_door.c says how threads are
 * kept out of KVM_RUN and made to end; one that is in a device callback finishes it first.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/atomic.h"
#include "kvm_internal.h"
#include "options.h"
#include "pin.h"

enum { STACK_BYTES = 256 << 10 };

static void kicked(int signal_number)
{
    (void)signal_number; /* the interrupted system call is all that is wanted */
}

/* Ends the run with an error; the vCPU that is first also says why. */
static void give_up(struct bb_vcpu *vcpu, enum bb_stop_reason reason, const char *what)
{
    if (bb_stop_request(vcpu->kvm->target.stop, reason, BB_EXIT_FAILED)) {
        bb_kvm_dump_(vcpu, what);
    }
}

static void exit_mmio(struct bb_vcpu *vcpu)
{
    const struct bb_kvm_target *target = &vcpu->kvm->target;
    struct kvm_run *run = vcpu->run;
    uint64_t value = 0;

    vcpu->stats.mmio++;
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, sizeof(value));
    }
    if (target->bare) {
        bb_storm_bare_mmio(run->mmio.phys_addr, run->mmio.len, run->mmio.is_write, &value);
    } else if (run->mmio.is_write) {
        bb_mmio_write(vcpu->ctx, target->mmio, run->mmio.phys_addr, run->mmio.len, value);
    } else {
        bb_mmio_read(vcpu->ctx, target->mmio, run->mmio.phys_addr, run->mmio.len, &value);
    }
    if (!run->mmio.is_write) {
        memcpy(run->mmio.data, &value, sizeof(value));
    }
}

/* `count` accesses of one port: string instructions come as one exit. */
static void exit_io(struct bb_vcpu *vcpu)
{
    const struct bb_kvm_target *target = &vcpu->kvm->target;
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    unsigned size = run->io.size;

    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        vcpu->stats.pio++;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, size);
            bb_mmio_write(vcpu->ctx, target->pio, run->io.port, size, value);
        } else {
            bb_mmio_read(vcpu->ctx, target->pio, run->io.port, size, &value);
            memcpy(data, &value, size);
        }
    }
}

static void exit_system_event(struct bb_vcpu *vcpu)
{
    struct bb_stop *stop = vcpu->kvm->target.stop;
    switch (vcpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        bb_stop_request(stop, BB_STOP_POWER_OFF, BB_EXIT_OK);
        break;
    case KVM_SYSTEM_EVENT_RESET:
        bb_stop_request(stop, BB_STOP_RESET, BB_EXIT_OK);
        break;
    default:
        give_up(vcpu, BB_STOP_ERROR, "the guest reports a crash");
        break;
    }
}

static const char *internal_error_name(uint32_t suberror)
{
    switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
        return "KVM can't emulate an instruction";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
        return "KVM met an exception while delivering another";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
        return "KVM met an exit while delivering an event";
    default:
        return "KVM internal error";
    }
}

static void exit_other(struct bb_vcpu *vcpu)
{
    char text[64];
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_SYSTEM_EVENT:
        exit_system_event(vcpu);
        break;
    case KVM_EXIT_SHUTDOWN:
        give_up(vcpu, BB_STOP_TRIPLE_FAULT, "triple fault");
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        give_up(vcpu, BB_STOP_ERROR, internal_error_name(vcpu->run->internal.suberror));
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(text, sizeof(text), "the processor refused to enter the guest (%#llx)",
                 vcpu->run->fail_entry.hardware_entry_failure_reason);
        give_up(vcpu, BB_STOP_ERROR, text);
        break;
    default:
        snprintf(text, sizeof(text), "unexpected KVM exit %u", vcpu->run->exit_reason);
        give_up(vcpu, BB_STOP_ERROR, text);
        break;
    }
}

/* False where the vCPU can't go on. */
static bool run_exit(struct bb_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    vcpu->stats.exits++;
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        exit_mmio(vcpu);
        break;
    case KVM_EXIT_IO:
        exit_io(vcpu);
        break;
    case KVM_EXIT_IOAPIC_EOI:
        vcpu->stats.eoi++;
        bb_ioapic_eoi(vcpu->ctx, vcpu->kvm->target.ioapic, run->eoi.vector);
        break;
    case KVM_EXIT_INTR:
        break;
    default:
        exit_other(vcpu);
        return bb_stop_reason(vcpu->kvm->target.stop, NULL) == BB_STOP_NONE;
    }
    return true;
}

static void run_loop(struct bb_vcpu *vcpu)
{
    struct bb_kvm *kvm = vcpu->kvm;

    while (bb_kvm_enter_(vcpu)) {
        int failed = ioctl(vcpu->fd, KVM_RUN, 0) != 0 ? errno : 0;

        bb_kvm_leave_(vcpu);
        bb_kvm_drain_(kvm, vcpu->ctx);
        if (failed == 0) {
            if (!run_exit(vcpu)) {
                return;
            }
        } else if (failed != EINTR && failed != EAGAIN) {
            /* EINTR: a kick. EAGAIN: a vCPU that waits for INIT and SIPI was woken. */
            char text[64];
            snprintf(text, sizeof(text), "KVM_RUN: %s", strerror(failed));
            give_up(vcpu, BB_STOP_ERROR, text);
            return;
        }
    }
}

/* Reports that this thread is there, and waits for the others. Returns true where it is to run. */
static bool pass_gate(struct bb_kvm *kvm, const struct bb_error *failed)
{
    pthread_mutex_lock(&kvm->gate_lock);
    kvm->gate_arrived++;
    if (failed->code != 0 && kvm->gate_error.code == 0) {
        kvm->gate_error = *failed;
    }
    pthread_cond_broadcast(&kvm->gate_changed);
    while (kvm->gate == BB_GATE_CLOSED) {
        pthread_cond_wait(&kvm->gate_changed, &kvm->gate_lock);
    }
    bool open = kvm->gate == BB_GATE_OPEN;
    pthread_mutex_unlock(&kvm->gate_lock);
    return open;
}

static void *vcpu_thread(void *arg)
{
    struct bb_vcpu *vcpu = arg;
    struct bb_error err = {0};
    char name[16];
    sigset_t kick;

    sigemptyset(&kick);
    sigaddset(&kick, SIGRTMIN);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    snprintf(name, sizeof(name), "vcpu %u", vcpu->index);
    pthread_setname_np(pthread_self(), name);
    int rc = bb_ctx_attach(vcpu->kvm->target.engine, name, &vcpu->ctx, &err);
    err.code = rc;
    if (pass_gate(vcpu->kvm, &err)) {
        run_loop(vcpu);
        bb_counts_take(vcpu->kvm->target.counts, vcpu->ctx, vcpu->index, name);
    }
    if (rc == BB_OK) {
        bb_ctx_detach(vcpu->ctx, NULL);
    }
    return NULL;
}

static void move_gate(struct bb_kvm *kvm, enum bb_kvm_gate to)
{
    pthread_mutex_lock(&kvm->gate_lock);
    if (kvm->gate == BB_GATE_CLOSED) {
        kvm->gate = to;
    }
    pthread_cond_broadcast(&kvm->gate_changed);
    pthread_mutex_unlock(&kvm->gate_lock);
}

/* Waits until `threads` have attached; returns what went wrong in one of them, or BB_OK. */
static int await_arrival(struct bb_kvm *kvm, unsigned threads, struct bb_error *err)
{
    pthread_mutex_lock(&kvm->gate_lock);
    while (kvm->gate_arrived < threads) {
        pthread_cond_wait(&kvm->gate_changed, &kvm->gate_lock);
    }
    int rc = kvm->gate_error.code;
    if (rc != BB_OK) {
        bb_error_set(err, rc, "%s", kvm->gate_error.text);
    }
    pthread_mutex_unlock(&kvm->gate_lock);
    return rc;
}

int bb_kvm_start(struct bb_kvm *kvm, const struct bb_kvm_target *target, struct bb_error *err)
{
    struct sigaction action = {.sa_handler = kicked};
    pthread_attr_t attributes;
    unsigned started = 0;
    int failed = 0;

    kvm->target = *target;
    kvm->doors = 0;
    kvm->gate = BB_GATE_CLOSED;
    kvm->gate_arrived = 0;
    kvm->gate_error = (struct bb_error){0};
    sigaction(SIGRTMIN, &action, &kvm->signal_before);
    kvm->signal_installed = true;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (started < kvm->vcpu_count && failed == 0) {
        struct bb_vcpu *vcpu = &kvm->vcpus[started];
        if (target->pin) {
            (void)bb_pin(&attributes, started);
        }
        failed = pthread_create(&vcpu->thread, &attributes, vcpu_thread, vcpu);
        vcpu->started = failed == 0;
        started += failed == 0 ? 1 : 0;
    }
    pthread_attr_destroy(&attributes);
    int rc = await_arrival(kvm, started, err);
    if (failed != 0) {
        rc = bb_error_set(err, BB_E_SYSTEM,
                          "can't make a thread for vCPU %u of %u: %s: give fewer --vcpus or raise "
                          "ulimit -u",
                          started, kvm->vcpu_count, strerror(failed));
    }
    if (rc != BB_OK) {
        bb_kvm_stop(kvm);
        return rc;
    }
    move_gate(kvm, BB_GATE_OPEN);
    return BB_OK;
}

void bb_kvm_stop(struct bb_kvm *kvm)
{
    if (!kvm->signal_installed) {
        return;
    }
    move_gate(kvm, BB_GATE_ABANDONED);
    bb_kvm_quit_(kvm);
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        if (kvm->vcpus[i].started) {
            pthread_join(kvm->vcpus[i].thread, NULL);
            kvm->vcpus[i].started = false;
        }
    }
    sigaction(SIGRTMIN, &kvm->signal_before, NULL);
    kvm->signal_installed = false;
    if (kvm->memory != NULL) {
        bb_kvm_drain_(kvm, kvm->control_ctx);
    }
}
