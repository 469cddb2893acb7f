/* SPDX-License-Identifier: MIT */
/*
 * The door of the guest: how a vCPU's thread enters and leaves KVM_RUN, and how all are kept out of
 * it, for a change of the map or for good.
 *
 * `doors` is 0 while vCPUs may run. A thread says that it is inside, then looks at `doors`, then
 * enters; back from KVM_RUN it says that it is out, then looks again, to wake who waits for it.
 * Who closes sets its bit in `doors`, then looks who is inside. Each side stores and then loads
 * what the other stores, so the store must come first on both: a vCPU pays nothing for that,
 * because who closes runs membarrier between its two steps, which makes every thread of the process
 * as good as fenced at some point between. Either that point comes before the vCPU's load: then it
 * sees the bit. Or after: then its store came before, too, and who closes sees what it said. (Where
 * the host has no membarrier, both sides fence.)
 *
 * So when bb_kvm_halt_() looks, a vCPU is out and will find the bit before it enters, or it is
 * inside, or about to be, having seen no bit. The latter it kicks: immediate_exit, then the signal.
 *  1. The thread is in user mode, before KVM_RUN: the signal is handled there, later than
 *     immediate_exit was set, so KVM_RUN finds that set and comes straight back.
 *  2. It is in KVM_RUN: the signal is pending, and KVM comes back for that.
 *  3. It is out again by itself: then it found the bit when it came out, and waits before it enters
 *     again, whatever the signal interrupts.
 * In each case it says that it is out, sees the bit, and wakes who waits: no kick is lost. The
 * latter holds door_lock from setting the bit until it sleeps, so no wake-up is lost either.
 *
 * immediate_exit is cleared by its vCPU, before it says that it is inside. That can't undo a kick
 * that counts: who kicks has seen it inside, so the clearing came before; and before the vCPU comes
 * to the next clearing it waits at the door until who kicked has opened it.
 *
 * Nobody waits for an access here: a vCPU is out as soon as KVM_RUN has returned, whatever it does
 * then, and also when it is the one that commits.
 */
#include <linux/membarrier.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/atomic.h"
#include "../base/bits.h"
#include "kvm_internal.h"

static long membarrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

void bb_kvm_doors_init_(struct bb_kvm *kvm)
{
    pthread_mutex_init(&kvm->door_lock, NULL);
    pthread_cond_init(&kvm->door_changed, NULL);
    kvm->door_fences = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0;
}

void bb_kvm_doors_fini_(struct bb_kvm *kvm)
{
    pthread_cond_destroy(&kvm->door_changed);
    pthread_mutex_destroy(&kvm->door_lock);
}

/* Between a vCPU's store of `inside` and its load of `doors`; partner: close_door(). */
static inline void vcpu_fence(const struct bb_kvm *kvm)
{
    bb_compiler_barrier();
    if (BB_UNLIKELY(kvm->door_fences)) {
        bb_fence_full();
    }
}

void bb_kvm_leave_(struct bb_vcpu *vcpu)
{
    struct bb_kvm *kvm = vcpu->kvm;

    bb_store_release(&vcpu->inside, 0u); /* pairs with bb_kvm_halt_() */
    vcpu_fence(kvm);
    /* Relaxed: the lock orders what follows. */
    if (BB_UNLIKELY((bb_load_relaxed(&kvm->doors) & BB_DOOR_HALT) != 0)) {
        pthread_mutex_lock(&kvm->door_lock);
        pthread_cond_broadcast(&kvm->door_changed);
        pthread_mutex_unlock(&kvm->door_lock);
    }
}

static void wait_at_door(struct bb_kvm *kvm)
{
    pthread_mutex_lock(&kvm->door_lock);
    /* Relaxed: changed under the lock. */
    while (bb_load_relaxed(&kvm->doors) == BB_DOOR_HALT) {
        pthread_cond_wait(&kvm->door_changed, &kvm->door_lock);
    }
    pthread_mutex_unlock(&kvm->door_lock);
}

bool bb_kvm_enter_(struct bb_vcpu *vcpu)
{
    struct bb_kvm *kvm = vcpu->kvm;

    for (;;) {
        /* Relaxed, both: see the head of this file. */
        if (BB_UNLIKELY(bb_load_relaxed(&vcpu->run->immediate_exit) != 0)) {
            bb_store_relaxed(&vcpu->run->immediate_exit, (uint8_t)0);
        }
        bb_store_release(&vcpu->inside, 1u); /* pairs with bb_kvm_halt_(): the clearing */
        vcpu_fence(kvm);
        /* Acquire; pairs with bb_kvm_unhalt_(): the slots are as they are to be. */
        uint32_t doors = bb_load_acquire(&kvm->doors);
        if (BB_LIKELY(doors == 0)) {
            return true;
        }
        bb_kvm_leave_(vcpu);
        if ((doors & BB_DOOR_QUIT) != 0) {
            return false;
        }
        wait_at_door(kvm);
    }
}

/* Sets a bit of `doors`; whoever is not seen inside afterwards has seen it, or will. */
static void close_door(struct bb_kvm *kvm, uint32_t bit)
{
    (void)bb_fetch_or_acq_rel(&kvm->doors, bit); /* pairs with bb_kvm_enter_() */
    if (kvm->door_fences) {
        bb_fence_full(); /* partner: vcpu_fence() */
    } else {
        (void)membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    }
}

static void kick(struct bb_vcpu *vcpu)
{
    /* Relaxed: read by the kernel, which the signal reaches later. */
    bb_store_relaxed(&vcpu->run->immediate_exit, (uint8_t)1);
    pthread_kill(vcpu->thread, SIGRTMIN);
}

void bb_kvm_halt_(struct bb_kvm *kvm)
{
    pthread_mutex_lock(&kvm->door_lock);
    close_door(kvm, BB_DOOR_HALT);
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        /* Acquire, both times; pairs with bb_kvm_enter_() and bb_kvm_leave_(). */
        if (bb_load_acquire(&kvm->vcpus[i].inside) != 0) {
            kick(&kvm->vcpus[i]);
        }
    }
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        while (bb_load_acquire(&kvm->vcpus[i].inside) != 0) {
            pthread_cond_wait(&kvm->door_changed, &kvm->door_lock);
        }
    }
    pthread_mutex_unlock(&kvm->door_lock);
}

void bb_kvm_unhalt_(struct bb_kvm *kvm)
{
    pthread_mutex_lock(&kvm->door_lock);
    (void)bb_fetch_and_acq_rel(&kvm->doors,
                               ~(uint32_t)BB_DOOR_HALT); /* pairs with bb_kvm_enter_() */
    pthread_cond_broadcast(&kvm->door_changed);
    pthread_mutex_unlock(&kvm->door_lock);
}

void bb_kvm_quit_(struct bb_kvm *kvm)
{
    pthread_mutex_lock(&kvm->door_lock);
    close_door(kvm, BB_DOOR_QUIT);
    pthread_cond_broadcast(&kvm->door_changed);
    pthread_mutex_unlock(&kvm->door_lock);
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        if (kvm->vcpus[i].started) {
            kick(&kvm->vcpus[i]);
        }
    }
}
