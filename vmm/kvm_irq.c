/* SPDX-License-Identifier: MIT */
/*
 * Interrupts into KVM's local APICs.
 *
 * Messages go by KVM_SIGNAL_MSI, which needs no route. The routing table exists for one purpose:
 * a level interrupt's end makes KVM_EXIT_IOAPIC_EOI only where a row for its vector is in it. The
 * I/O APIC calls `install` with the whole table, one call at a time, and lets an entry take effect
 * only after that; so there is one updater, and the table in KVM is never older than the entries.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/atomic.h"
#include "kvm_internal.h"

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    struct bb_kvm *kvm = opaque;
    struct kvm_msi msi = {
        .address_lo = (uint32_t)address,
        .address_hi = (uint32_t)(address >> 32),
        .data = data,
    };
    (void)ctx;
    /* 0 means that the guest's APICs took none of it; negative that KVM refused it. */
    return ioctl(kvm->vm_fd, KVM_SIGNAL_MSI, &msi) > 0 ? BB_OK : BB_E_DEVICE;
}

struct bb_msi_sink bb_kvm_msi_sink(struct bb_kvm *kvm)
{
    return (struct bb_msi_sink){.deliver = deliver, .opaque = kvm};
}

static int install(struct bb_ctx *ctx, void *opaque, const struct bb_ioapic_route *table,
                   unsigned pins)
{
    struct bb_kvm *kvm = opaque;
    union {
        char room[sizeof(struct kvm_irq_routing) +
                  BB_IOAPIC_PINS_MAX * sizeof(struct kvm_irq_routing_entry)];
        struct kvm_irq_routing head; /* its entries have the rest of the room */
    } routing = {0};
    (void)ctx;

    for (unsigned pin = 0; pin < pins && pin < BB_IOAPIC_PINS_MAX; pin++) {
        if (!table[pin].valid) {
            continue;
        }
        routing.head.entries[routing.head.nr++] = (struct kvm_irq_routing_entry){
            .gsi = pin,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi =
                {
                    .address_lo = (uint32_t)table[pin].address,
                    .address_hi = (uint32_t)(table[pin].address >> 32),
                    .data = table[pin].data,
                },
        };
    }
    return ioctl(kvm->vm_fd, KVM_SET_GSI_ROUTING, &routing) == 0 ? BB_OK : BB_E_SYSTEM;
}

static void install_failed(void *opaque, int result)
{
    (void)opaque;
    fprintf(stderr, "busbar: KVM refused the I/O APIC's routes (%s: %s); its pins stay masked\n",
            bb_result_name(result), strerror(errno));
}

struct bb_ioapic_routes bb_kvm_ioapic_routes(struct bb_kvm *kvm)
{
    return (struct bb_ioapic_routes){.install = install, .failed = install_failed, .opaque = kvm};
}
