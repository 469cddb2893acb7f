/* SPDX-License-Identifier: MIT */
/*
 * The door of the guest without a guest: threads that are vCPUs but for KVM_RUN, which is a
 * function that does what KVM does with immediate_exit and signals: it comes straight back where
 * immediate_exit is set, else runs for a moment or sleeps until a signal comes. One that is missed
 * sleeps on, and the test does not end.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "../../base/atomic.h"
#include "../../vmm/kvm_internal.h"

enum { VCPUS = 4, HALTS_MIN = 200, SLEEP_S = 3600 };

static struct bb_kvm kvm;
static struct bb_vcpu vcpus[VCPUS];
static struct kvm_run runs[VCPUS];
static uint32_t in_guest[VCPUS]; /* (a) vCPU thread: in what stands for KVM_RUN */
static uint32_t out_of_guest;    /* (a) times that any thread came out */
static pthread_mutex_t committing = PTHREAD_MUTEX_INITIALIZER;
static bool vcpus_commit; /* written before they start */

/* Written while all are halted, read by guests: not atomic, so that a checker of races sees it. */
static uint64_t slots[2];
static uint32_t torn; /* (a) times that a guest saw half of a change */

static void kicked(int number)
{
    (void)number;
}

/* KVM_RUN. Signals are held back inside, as in a kernel, so that none falls between two steps. */
static int run_guest(unsigned index, unsigned turn)
{
    struct timespec forever = {.tv_sec = SLEEP_S};
    sigset_t held, before;
    int rc = -1;

    sigemptyset(&held);
    sigaddset(&held, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &held, &before);
    if (bb_load_relaxed(&runs[index].immediate_exit) != 0) {
        errno = EINTR;
    } else {
        bb_store_release(&in_guest[index], 1u);
        (void)bb_fetch_add_relaxed(&torn, slots[0] != slots[1] ? 1u : 0u);
        rc = turn % 4 == 0 ? ppoll(NULL, 0, &forever, &before) : 0;
        bb_store_release(&in_guest[index], 0u);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void change_slots(void)
{
    pthread_mutex_lock(&committing);
    bb_kvm_halt_(&kvm);
    for (unsigned i = 0; i < VCPUS; i++) {
        /* Acquire: pairs with run_guest(). */
        (void)bb_fetch_add_relaxed(&torn, bb_load_acquire(&in_guest[i]));
    }
    slots[0]++;
    for (volatile unsigned pause = 0; pause < 100; pause++) {
    }
    slots[1]++;
    bb_kvm_unhalt_(&kvm);
    pthread_mutex_unlock(&committing);
}

static void *vcpu_thread(void *arg)
{
    struct bb_vcpu *vcpu = arg;

    for (unsigned turn = vcpu->index; bb_kvm_enter_(vcpu); turn++) {
        if (turn % 8 == 0) {
            sched_yield(); /* where a kick is handled before KVM_RUN */
        }
        (void)run_guest(vcpu->index, turn);
        bb_kvm_leave_(vcpu);
        (void)bb_fetch_add_relaxed(&out_of_guest, 1u);
        if (vcpus_commit && turn % 64 == 0) {
            change_slots(); /* as in the epilogue of an access */
        }
    }
    return NULL;
}

static void start(bool fences)
{
    struct sigaction action = {.sa_handler = kicked};

    sigaction(SIGRTMIN, &action, NULL);
    kvm.vcpu_count = VCPUS;
    kvm.vcpus = vcpus;
    bb_kvm_doors_init_(&kvm);
    kvm.door_fences = kvm.door_fences || fences;
    pthread_mutex_lock(&committing); /* vcpus[].thread is written before anyone kicks it */
    for (unsigned i = 0; i < VCPUS; i++) {
        vcpus[i] = (struct bb_vcpu){.kvm = &kvm, .index = i, .run = &runs[i], .started = true};
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        cr_assert_eq(pthread_create(&vcpus[i].thread, NULL, vcpu_thread, &vcpus[i]), 0);
    }
    pthread_mutex_unlock(&committing);
}

static void finish(void)
{
    bb_kvm_quit_(&kvm);
    for (unsigned i = 0; i < VCPUS; i++) {
        pthread_join(vcpus[i].thread, NULL);
    }
    bb_kvm_doors_fini_(&kvm);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static unsigned storm(void)
{
    const char *given = getenv("BUSBAR_STRESS_SECONDS");
    uint64_t end = now_ns() + (uint64_t)((given != NULL ? strtod(given, NULL) : 1.0) * 1e9);
    unsigned halts = 0;

    for (; now_ns() < end || halts < HALTS_MIN; halts++) {
        change_slots();
    }
    return halts;
}

TestSuite(door, .timeout = 300);

Test(door, halted_vcpus_are_out_and_no_kick_is_lost)
{
    start(false);
    storm();
    finish();
    cr_assert_eq(torn, 0u, "%u times a vCPU was in the guest meanwhile", torn);
    cr_assert_gt(out_of_guest, (uint32_t)HALTS_MIN);
}

Test(door, a_vcpu_that_halts_the_others_counts_as_out_itself)
{
    vcpus_commit = true;
    start(false);
    storm();
    finish();
    cr_assert_eq(torn, 0u);
    cr_assert_gt(slots[0], (uint64_t)HALTS_MIN);
}

Test(door, fences_do_where_the_host_has_no_membarrier)
{
    vcpus_commit = true;
    start(true);
    storm();
    finish();
    cr_assert_eq(torn, 0u);
}

Test(door, threads_that_sleep_in_the_guest_or_wait_at_the_door_end_when_told)
{
    start(false);
    pthread_mutex_lock(&committing);
    bb_kvm_halt_(&kvm);
    finish(); /* while they are kept out */
    pthread_mutex_unlock(&committing);
    for (unsigned i = 0; i < VCPUS; i++) {
        cr_assert_eq(vcpus[i].inside, 0u);
    }
}
