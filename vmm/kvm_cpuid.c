/* SPDX-License-Identifier: MIT */
/*
 * CPUID for each vCPU: what KVM supports, with this VM's topology and APIC ids in the leaves that
 * carry them. One package, one thread a core.
 * Source: Intel SDM volume 2A, CPUID leaves 1, 4, 0xb, 0x1f; AMD APM volume 3, 8000_0008h and
 * 8000_001eh.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvm_internal.h"

enum {
    ENTRIES_FIRST = 100,
    ENTRIES_MAX = 10000,
    TOPOLOGY_ENTRIES = 4, /* two levels of 0xb and of 0x1f */

    LEAF1_HTT = 1 << 28, /* edx */
};

static struct kvm_cpuid2 *allocate(unsigned entries)
{
    return calloc(1, sizeof(struct kvm_cpuid2) + entries * sizeof(struct kvm_cpuid_entry2));
}

struct kvm_cpuid2 *bb_kvm_cpuid_supported_(int dev_fd, struct bb_error *err)
{
    for (unsigned entries = ENTRIES_FIRST; entries <= ENTRIES_MAX; entries *= 2) {
        struct kvm_cpuid2 *cpuid = allocate(entries);
        if (cpuid == NULL) {
            bb_error_set(err, BB_E_NOMEM, "no memory for CPUID");
            return NULL;
        }
        cpuid->nent = entries;
        if (ioctl(dev_fd, KVM_GET_SUPPORTED_CPUID, cpuid) == 0) {
            return cpuid;
        }
        free(cpuid);
        if (errno != E2BIG) {
            break;
        }
    }
    bb_error_set(err, BB_E_SYSTEM, "KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
    return NULL;
}

/* Bits of an APIC id that number the cores: the smallest n with 2^n >= vcpus. */
static unsigned id_bits(unsigned vcpus)
{
    unsigned bits = 0;
    while ((1u << bits) < vcpus) {
        bits++;
    }
    return bits;
}

static unsigned at_most(unsigned value, unsigned limit)
{
    return value < limit ? value : limit;
}

static void append_topology(struct kvm_cpuid2 *cpuid, uint32_t leaf, unsigned index, unsigned vcpus)
{
    struct kvm_cpuid_entry2 *rows = &cpuid->entries[cpuid->nent];
    rows[0] = (struct kvm_cpuid_entry2){
        .function = leaf,
        .index = 0,
        .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        .eax = 0, /* a thread's number takes no bits */
        .ebx = 1,
        .ecx = 1 << 8 | 0, /* level type: SMT */
        .edx = index,
    };
    rows[1] = (struct kvm_cpuid_entry2){
        .function = leaf,
        .index = 1,
        .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        .eax = id_bits(vcpus),
        .ebx = vcpus,
        .ecx = 2 << 8 | 1, /* level type: core */
        .edx = index,
    };
    cpuid->nent += 2;
}

struct kvm_cpuid2 *bb_kvm_cpuid_for_(const struct kvm_cpuid2 *supported, unsigned index,
                                     unsigned vcpus)
{
    struct kvm_cpuid2 *cpuid = allocate(supported->nent + TOPOLOGY_ENTRIES);
    bool has_b = false;
    bool has_1f = false;
    if (cpuid == NULL) {
        return NULL;
    }
    for (unsigned i = 0; i < supported->nent; i++) {
        struct kvm_cpuid_entry2 row = supported->entries[i];
        switch (row.function) {
        case 1:
            row.ebx = (row.ebx & 0xffff) | at_most(vcpus, 255) << 16 | (index & 0xff) << 24;
            row.edx = vcpus > 1 ? row.edx | LEAF1_HTT : row.edx & ~(uint32_t)LEAF1_HTT;
            break;
        case 4: /* caches: cores in the package, one thread to each cache */
            row.eax = (row.eax & 0x3fff) | (at_most(vcpus, 64) - 1) << 26;
            break;
        case 0xb:
            has_b = true;
            continue;
        case 0x1f:
            has_1f = true;
            continue;
        case 0x80000008:
            row.ecx = id_bits(vcpus) << 12 | (at_most(vcpus, 256) - 1);
            break;
        case 0x8000001e:
            row.eax = index;
            row.ebx = index & 0xff;
            row.ecx = 0;
            break;
        default:
            break;
        }
        cpuid->entries[cpuid->nent++] = row;
    }
    if (has_b) {
        append_topology(cpuid, 0xb, index, vcpus);
    }
    if (has_1f) {
        append_topology(cpuid, 0x1f, index, vcpus);
    }
    return cpuid;
}
