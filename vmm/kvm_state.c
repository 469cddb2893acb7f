/* SPDX-License-Identifier: MIT */
/* The register state in which vCPUs start, and the line that shows it when one can't go on. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvm_internal.h"

enum {
    CR0_PE = 1 << 0,
    CR0_ET = 1 << 4,
    CR4_PAE = 1 << 5,
    EFER_LME = 1 << 8,
    EFER_LMA = 1 << 10,
    RFLAGS_FIXED = 1 << 1,
    SEGMENT_CODE = 11, /* execute, read, accessed */
    SEGMENT_DATA = 3,  /* read, write, accessed */
    SEGMENT_TSS_BUSY = 11,
    STOP_INSN_BYTES = 15,
};
#define CR0_PG UINT64_C(0x80000000)

static struct kvm_segment flat(uint16_t selector, uint8_t type, bool is64)
{
    return (struct kvm_segment){
        .limit = 0xffffffff,
        .selector = selector,
        .type = type,
        .present = 1,
        .db = is64 ? 0 : 1,
        .s = 1,
        .l = is64 ? 1 : 0,
        .g = 1,
    };
}

static void set_segments(struct kvm_sregs *sregs, uint16_t code, uint16_t data, bool is64)
{
    sregs->cs = flat(code, SEGMENT_CODE, is64);
    sregs->ds = flat(data, SEGMENT_DATA, false);
    sregs->es = sregs->fs = sregs->gs = sregs->ss = sregs->ds;
    sregs->tr = (struct kvm_segment){.limit = 0xffff, .type = SEGMENT_TSS_BUSY, .present = 1};
    sregs->ldt = (struct kvm_segment){.unusable = 1};
    sregs->idt = (struct kvm_dtable){0};
}

static int set_state(struct bb_vcpu *vcpu, struct kvm_sregs *sregs, struct kvm_regs *regs,
                     struct bb_error *err)
{
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};
    if (ioctl(vcpu->fd, KVM_SET_SREGS, sregs) != 0 || ioctl(vcpu->fd, KVM_SET_REGS, regs) != 0 ||
        ioctl(vcpu->fd, KVM_SET_MP_STATE, &state) != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "KVM refused the start state of vCPU %u: %s",
                            vcpu->index, strerror(errno));
    }
    return BB_OK;
}

static int get_sregs(struct bb_vcpu *vcpu, struct kvm_sregs *sregs, struct bb_error *err)
{
    if (ioctl(vcpu->fd, KVM_GET_SREGS, sregs) != 0) {
        return bb_error_set(err, BB_E_SYSTEM, "KVM doesn't show the state of vCPU %u: %s",
                            vcpu->index, strerror(errno));
    }
    return BB_OK;
}

int bb_kvm_enter_kernel(struct bb_kvm *kvm, const struct bb_boot *boot, struct bb_error *err)
{
    struct bb_vcpu *vcpu = &kvm->vcpus[0];
    bool is64 = boot->mode == BB_BOOT_LONG64;
    struct kvm_sregs sregs;
    struct kvm_regs regs = {
        .rip = boot->ip,
        .rax = boot->ax,
        .rbx = boot->bx,
        .rsi = boot->si,
        .rflags = RFLAGS_FIXED,
    };
    int rc = get_sregs(vcpu, &sregs, err);
    if (rc != BB_OK) {
        return rc;
    }
    set_segments(&sregs, BB_BOOT_CS, BB_BOOT_DS, is64);
    sregs.gdt = (struct kvm_dtable){.base = boot->gdt_base, .limit = boot->gdt_limit};
    sregs.cr0 = CR0_PE | CR0_ET | (is64 ? CR0_PG : 0);
    sregs.cr3 = boot->cr3;
    sregs.cr4 = is64 ? CR4_PAE : 0;
    sregs.efer = is64 ? EFER_LME | EFER_LMA : 0;
    return set_state(vcpu, &sregs, &regs, err);
}

int bb_kvm_enter_storm(struct bb_kvm *kvm, const struct bb_storm_entry *entry, struct bb_error *err)
{
    for (unsigned i = 0; i < kvm->vcpu_count; i++) {
        struct kvm_sregs sregs;
        struct kvm_regs regs = {
            .rip = entry->rip,
            .rdi = i,
            .rsp = entry->rsp_first + i * entry->rsp_step,
            .rflags = entry->rflags,
        };
        int rc = get_sregs(&kvm->vcpus[i], &sregs, err);
        if (rc != BB_OK) {
            return rc;
        }
        set_segments(&sregs, entry->code_selector, entry->data_selector, true);
        sregs.gdt = (struct kvm_dtable){.base = entry->gdt_base, .limit = entry->gdt_limit};
        sregs.cr0 = entry->cr0;
        sregs.cr3 = entry->cr3;
        sregs.cr4 = entry->cr4;
        sregs.efer = entry->efer;
        rc = set_state(&kvm->vcpus[i], &sregs, &regs, err);
        if (rc != BB_OK) {
            return rc;
        }
    }
    return BB_OK;
}

/* The instruction's bytes, where an emulation failure carries them. */
static void format_insn(const struct kvm_run *run, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    if (run->exit_reason != KVM_EXIT_INTERNAL_ERROR ||
        run->emulation_failure.suberror != KVM_INTERNAL_ERROR_EMULATION ||
        run->emulation_failure.ndata < 1 ||
        (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0) {
        return;
    }
    unsigned count = run->emulation_failure.insn_size;
    count = count < STOP_INSN_BYTES ? count : STOP_INSN_BYTES;
    used += (size_t)snprintf(text, bytes, ", instruction");
    for (unsigned i = 0; i < count && used < bytes; i++) {
        used += (size_t)snprintf(text + used, bytes - used, " %02x",
                                 run->emulation_failure.insn_bytes[i]);
    }
}

void bb_kvm_dump_(struct bb_vcpu *vcpu, const char *what)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    char insn[80];

    ioctl(vcpu->fd, KVM_GET_REGS, &regs);
    ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
    format_insn(vcpu->run, insn, sizeof(insn));
    fprintf(stderr,
            "busbar: vCPU %u: %s; rip %#llx cs %#x cpl %u cr0 %#llx cr2 %#llx cr3 %#llx cr4 %#llx "
            "efer %#llx rflags %#llx rax %#llx rcx %#llx rdx %#llx rsp %#llx%s\n",
            vcpu->index, what, regs.rip, sregs.cs.selector, sregs.ss.dpl, sregs.cr0, sregs.cr2,
            sregs.cr3, sregs.cr4, sregs.efer, regs.rflags, regs.rax, regs.rcx, regs.rdx, regs.rsp,
            insn);
}
