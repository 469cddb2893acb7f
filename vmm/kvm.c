/* SPDX-License-Identifier: MIT */
/*
 * Setting up a VM and its vCPUs; see kvm.h. The order is one that KVM accepts everywhere: TSS
 * address, memory, split interrupt controller and x2APIC ids before the first vCPU; CPUID before
 * the vCPU's other state.
 */
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "board.h"
#include "kvm_internal.h"

enum {
    API_VERSION = 12,
    PAGE = 4096,
    TSS_ADDRESS = 0xfffbd000u, /* three pages in the hole below 4 GiB */
    FDS_BESIDES_VCPUS = 64,

    LAPIC_LVT_LINT0 = 0x350,
    LAPIC_LVT_LINT1 = 0x360,
    LVT_EXTINT = 7 << 8,
    LVT_NMI = 4 << 8,
};

struct capability {
    unsigned number;
    const char *name;
};

static const struct capability needed[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
};

static int check_kvm(struct bb_kvm *kvm, struct bb_error *err)
{
    int version = ioctl(kvm->dev_fd, KVM_GET_API_VERSION, 0);
    if (version != API_VERSION) {
        return bb_error_set(err, BB_E_UNSUPPORTED, "/dev/kvm has API version %d, not %d", version,
                            API_VERSION);
    }
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (ioctl(kvm->dev_fd, KVM_CHECK_EXTENSION, needed[i].number) <= 0) {
            return bb_error_set(err, BB_E_UNSUPPORTED, "/dev/kvm lacks %s", needed[i].name);
        }
    }
    int max = ioctl(kvm->dev_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
    if (max > 0 && kvm->vcpu_count > (unsigned)max) {
        return bb_error_set(err, BB_E_RANGE, "--vcpus %u: this KVM takes at most %d",
                            kvm->vcpu_count, max);
    }
    return BB_OK;
}

/* Each vCPU is a descriptor; raises the soft limit as far as needed, if the hard one allows. */
static int reserve_descriptors(unsigned vcpus, struct bb_error *err)
{
    struct rlimit limit;
    rlim_t want = vcpus + FDS_BESIDES_VCPUS;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= want) {
        return BB_OK;
    }
    rlim_t hard = limit.rlim_max;
    limit.rlim_cur = want;
    if (hard < want || setrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return bb_error_set(err, BB_E_SYSTEM,
                            "--vcpus %u needs %llu file descriptors, the limit is %llu: raise it "
                            "with ulimit -n",
                            vcpus, (unsigned long long)want, (unsigned long long)hard);
    }
    return BB_OK;
}

static int open_device(struct bb_kvm *kvm, struct bb_error *err)
{
    kvm->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm->dev_fd >= 0) {
        return BB_OK;
    }
    if (errno == ENOENT || errno == ENODEV || errno == ENXIO) {
        return bb_error_set(
            err, BB_E_NOENT,
            "there is no /dev/kvm on this machine: load KVM's module, or run the storm with "
            "--cpu threads");
    }
    if (errno == EACCES || errno == EPERM) {
        return bb_error_set(err, BB_E_SYSTEM,
                            "no permission on /dev/kvm: join its group (usually kvm), or use --cpu "
                            "threads");
    }
    return bb_error_set(err, BB_E_SYSTEM, "can't open /dev/kvm: %s", strerror(errno));
}

int bb_kvm_open(unsigned vcpus, struct bb_kvm **out, struct bb_error *err)
{
    struct bb_kvm *kvm = calloc(1, sizeof(*kvm));
    int rc;
    if (kvm == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for a VM");
    }
    kvm->vcpu_count = vcpus;
    kvm->dev_fd = -1;
    kvm->vm_fd = -1;
    bb_kvm_doors_init_(kvm);
    pthread_mutex_init(&kvm->ring_lock, NULL);
    pthread_mutex_init(&kvm->gate_lock, NULL);
    pthread_cond_init(&kvm->gate_changed, NULL);
    size_t bytes = vcpus * sizeof(kvm->vcpus[0]);
    kvm->vcpus = aligned_alloc(_Alignof(struct bb_vcpu), bytes);
    if (kvm->vcpus == NULL) {
        rc = bb_error_set(err, BB_E_NOMEM, "no memory for %u vCPUs", vcpus);
        goto fail;
    }
    memset(kvm->vcpus, 0, bytes);
    for (unsigned i = 0; i < vcpus; i++) {
        kvm->vcpus[i].kvm = kvm;
        kvm->vcpus[i].index = i;
        kvm->vcpus[i].fd = -1;
    }
    rc = open_device(kvm, err);
    if (rc == BB_OK) {
        rc = check_kvm(kvm, err);
    }
    if (rc == BB_OK) {
        rc = reserve_descriptors(vcpus, err);
    }
    if (rc != BB_OK) {
        goto fail;
    }
    kvm->vm_fd = ioctl(kvm->dev_fd, KVM_CREATE_VM, 0);
    int run_bytes = ioctl(kvm->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (kvm->vm_fd < 0 || run_bytes < (int)sizeof(struct kvm_run)) {
        rc = bb_error_set(err, BB_E_SYSTEM, "KVM can't make a VM: %s", strerror(errno));
        goto fail;
    }
    kvm->run_bytes = (size_t)run_bytes;
    /* Needed by Intel's without unrestricted guest; elsewhere it does nothing. */
    ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_ADDRESS);
    *out = kvm;
    return BB_OK;
fail:
    bb_kvm_close(kvm);
    return rc;
}

void bb_kvm_close(struct bb_kvm *kvm)
{
    if (kvm->vcpus != NULL) {
        bb_kvm_stop(kvm);
        bb_kvm_unfollow(kvm);
        for (unsigned i = 0; i < kvm->vcpu_count; i++) {
            struct bb_vcpu *vcpu = &kvm->vcpus[i];
            if (vcpu->run != NULL) {
                munmap(vcpu->run, kvm->run_bytes);
            }
            if (vcpu->fd >= 0) {
                close(vcpu->fd);
            }
        }
    }
    if (kvm->vm_fd >= 0) {
        close(kvm->vm_fd);
    }
    if (kvm->dev_fd >= 0) {
        close(kvm->dev_fd);
    }
    pthread_cond_destroy(&kvm->gate_changed);
    pthread_mutex_destroy(&kvm->gate_lock);
    pthread_mutex_destroy(&kvm->ring_lock);
    bb_kvm_doors_fini_(kvm);
    free(kvm->vcpus);
    free(kvm);
}

static int enable(struct bb_kvm *kvm, uint32_t cap, uint64_t argument, const char *name,
                  struct bb_error *err)
{
    struct kvm_enable_cap enable = {.cap = cap, .args = {argument}};
    if (ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &enable) != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "KVM refused %s: %s", name, strerror(errno));
    }
    return BB_OK;
}

/* LINT0 of the first vCPU takes the 8259's output, LINT1 of all is NMI: as firmware leaves them. */
static int set_local_vectors(struct bb_vcpu *vcpu)
{
    struct kvm_lapic_state lapic;
    const uint32_t lint0 = LVT_EXTINT;
    const uint32_t lint1 = LVT_NMI;
    if (ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic) != 0) {
        return -1;
    }
    if (vcpu->index == 0) {
        memcpy(lapic.regs + LAPIC_LVT_LINT0, &lint0, sizeof(lint0));
    }
    memcpy(lapic.regs + LAPIC_LVT_LINT1, &lint1, sizeof(lint1));
    return ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic);
}

static int create_vcpu(struct bb_vcpu *vcpu, const struct kvm_cpuid2 *supported,
                       struct bb_error *err)
{
    struct bb_kvm *kvm = vcpu->kvm;
    vcpu->fd = ioctl(kvm->vm_fd, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
    if (vcpu->fd < 0) {
        return bb_error_set(err, BB_E_SYSTEM, "KVM can't make vCPU %u of %u: %s", vcpu->index,
                            kvm->vcpu_count, strerror(errno));
    }
    void *run = mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED) {
        return bb_error_set(err, BB_E_SYSTEM, "can't map the state of vCPU %u: %s", vcpu->index,
                            strerror(errno));
    }
    vcpu->run = run;
    struct kvm_cpuid2 *cpuid = bb_kvm_cpuid_for_(supported, vcpu->index, kvm->vcpu_count);
    int failed = cpuid == NULL || ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) != 0;
    free(cpuid);
    if (failed || set_local_vectors(vcpu) != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "KVM refused CPUID or local APIC of vCPU %u: %s",
                            vcpu->index, strerror(errno));
    }
    return BB_OK;
}

/* The VM's ring of coalesced writes is a page of every vCPU's mapping; the first one's serves. */
static void find_ring(struct bb_kvm *kvm)
{
    int page = ioctl(kvm->dev_fd, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);
    if (page > 0 && ((size_t)page + 1) * PAGE <= kvm->run_bytes) {
        kvm->ring = (void *)((char *)kvm->vcpus[0].run + (size_t)page * PAGE);
    }
}

int bb_kvm_create_vcpus(struct bb_kvm *kvm, struct bb_error *err)
{
    int rc = enable(kvm, KVM_CAP_SPLIT_IRQCHIP, BB_BOARD_GSIS, "KVM_CAP_SPLIT_IRQCHIP", err);
    if (rc == BB_OK) {
        rc = enable(kvm, KVM_CAP_X2APIC_API,
                    KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
                    "KVM_CAP_X2APIC_API", err);
    }
    if (rc != BB_OK) {
        return rc;
    }
    struct kvm_cpuid2 *supported = bb_kvm_cpuid_supported_(kvm->dev_fd, err);
    if (supported == NULL) {
        return BB_E_SYSTEM;
    }
    for (unsigned i = 0; i < kvm->vcpu_count && rc == BB_OK; i++) {
        rc = create_vcpu(&kvm->vcpus[i], supported, err);
    }
    free(supported);
    if (rc == BB_OK) {
        find_ring(kvm);
    }
    return rc;
}

uint64_t bb_kvm_tsc_khz(const struct bb_kvm *kvm)
{
    int khz = ioctl(kvm->vcpus[0].fd, KVM_GET_TSC_KHZ, 0);
    return khz > 0 ? (uint64_t)khz : 0;
}

struct bb_kvm_stats bb_kvm_stats(const struct bb_kvm *kvm)
{
    struct bb_kvm_stats sum = {0};
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        sum.exits += kvm->vcpus[i].stats.exits;
        sum.mmio += kvm->vcpus[i].stats.mmio;
        sum.pio += kvm->vcpus[i].stats.pio;
        sum.eoi += kvm->vcpus[i].stats.eoi;
    }
    return sum;
}
