/* SPDX-License-Identifier: MIT */
/*
 * A guest of a few instructions on KVM: an engine, 64 KiB of RAM at 0, a device that counts, a port
 * that ends the run, and vCPUs in 32-bit flat mode whose registers are the test's.
 */
#ifndef BUSBAR_TESTS_VMM_KVM_GUEST_H
#define BUSBAR_TESTS_VMM_KVM_GUEST_H

#include <linux/kvm.h>

#include "../../engine/device.h"
#include "../../memory/doorbell.h"
#include "../../memory/ram.h"
#include "../../vmm/kvm_internal.h"

enum {
    GUEST_VCPUS = 2,
    GUEST_RAM_BYTES = 0x10000,
    GUEST_CODE = 0x1000,    /* of vCPU 0; the next one's 0x1000 behind */
    GUEST_RESULTS = 0x8000, /* what programs use by ebp */
    GUEST_EXIT_PORT = 0xf4,
    GUEST_CALL_PORT = 0x511, /* a write calls guest.called */
    GUEST_DEVICE = 0xd0000000,
    GUEST_DEVICE_LAST = 0x10, /* a read: the value that was written to 0 last */
};

/* The device's and the ports' callbacks write; the test reads once the guest has stopped. */
struct guest {
    struct bb_stop stop;
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *mmio, *pio;
    struct bb_region *ram;
    uint8_t *host; /* of RAM */
    struct bb_device *device;
    struct bb_region *registers, *exit_port, *call_port;
    struct bb_kvm *kvm;
    uint32_t writes;       /* (a) of registers */
    uint32_t last;         /* (a) value at offset 0 */
    uint32_t out_of_order; /* (a) writes there of another value than the last one's successor */
    int (*called)(struct bb_ctx *ctx, struct guest *guest);
};

/* All of it, with `vcpus` not yet running. */
void guest_make(struct guest *guest, unsigned vcpus);
/* Before guest_start(): code and registers of one vCPU; rip is set. */
void guest_program(struct guest *guest, unsigned vcpu, const void *code, size_t bytes,
                   struct kvm_regs regs);
void guest_start(struct guest *guest);
/* Waits for the end that the guest asks for; returns its reason. */
enum bb_stop_reason guest_await(struct guest *guest);
void guest_stop(struct guest *guest);
void guest_drop(struct guest *guest);

/* Word `index` of what programs left at GUEST_RESULTS. */
uint32_t guest_result(const struct guest *guest, unsigned index);

/* Makes the suite's `guest`, or skips the test where there is no KVM; with command.h. */
#define NEED_KVM(vcpus)                                                                            \
    do {                                                                                           \
        if (!have_kvm()) {                                                                         \
            cr_skip_test("/dev/kvm can't be opened here");                                         \
        }                                                                                          \
        guest_make(&guest, vcpus);                                                                 \
    } while (0)

struct bb_region *guest_ram(struct guest *guest, const char *name, uint64_t bytes,
                            uint32_t first_word);

/* ecx times: out dx, eax */
static const uint8_t code_out[] = {0xef, 0x49, 0x75, 0xfc, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* ecx times: [edi] = eax, eax++, edi += ebx; then [ebp] = [esi] */
static const uint8_t code_store[] = {0x89, 0x07, 0x40, 0x01, 0xdf, 0x49, 0x75, 0xf8, 0x8b,
                                     0x06, 0x89, 0x45, 0x00, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* [edi] = eax; [ebp] = [edi]; [esi] = eax; [ebp + 4] = [esi] */
static const uint8_t code_poke[] = {0x89, 0x07, 0x8b, 0x0f, 0x89, 0x4d, 0x00, 0x89, 0x06, 0x8b,
                                    0x0e, 0x89, 0x4d, 0x04, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* Until [ebp + 8]: [ebp]++; where [esi] is neither ebx nor edx, [ebp + 4]++ */
static const uint8_t code_watch[] = {0x8b, 0x06, 0x39, 0xd8, 0x74, 0x07, 0x39, 0xd0, 0x74,
                                     0x03, 0xff, 0x45, 0x04, 0xff, 0x45, 0x00, 0x83, 0x7d,
                                     0x08, 0x00, 0x74, 0xea, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* ecx times: out dx, al; where [esi] isn't edi, [ebp + 4]++; edi and ebx change places */
static const uint8_t code_swap[] = {0xee, 0x8b, 0x06, 0x39, 0xf8, 0x74, 0x03, 0xff,
                                    0x45, 0x04, 0x87, 0xfb, 0xff, 0x45, 0x00, 0x49,
                                    0x75, 0xee, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* For eax from 1 to ecx: [edi] = eax; [ebp] = eax; waits until [ebp + 4] is eax */
static const uint8_t code_ping[] = {0x31, 0xc0, 0x40, 0x89, 0x07, 0x89, 0x45, 0x00,
                                    0x39, 0x45, 0x04, 0x75, 0xfb, 0x39, 0xc8, 0x75,
                                    0xf1, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* For eax from 1 to ecx: waits until [ebp] is eax; where [esi] isn't, [ebp + 8]++; [ebp + 4] = eax
 */
static const uint8_t code_pong[] = {0x31, 0xc0, 0x40, 0x39, 0x45, 0x00, 0x75, 0xfb, 0x8b,
                                    0x1e, 0x39, 0xc3, 0x74, 0x03, 0xff, 0x45, 0x08, 0x89,
                                    0x45, 0x04, 0x39, 0xc8, 0x75, 0xea, 0xf4, 0xeb, 0xfd};

/* For ever: [edi] = ++eax */
static const uint8_t code_count[] = {0x40, 0x89, 0x07, 0xeb, 0xfb};

#endif
