/* SPDX-License-Identifier: MIT */
/* Tiny guests on KVM; see kvm_guest.h. */
#include "kvm_guest.h"

#include <criterion/criterion.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../../base/atomic.h"

enum { AWAIT_MS = 60000, DEVICE_BYTES = 0x4000 };

static int device_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct guest *guest = opaque;

    (void)ctx;
    (void)size;
    *value = offset == GUEST_DEVICE_LAST ? bb_load_acquire(&guest->last) : 0;
    return BB_OK;
}

static int device_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct guest *guest = opaque;

    (void)ctx;
    (void)size;
    (void)bb_fetch_add_relaxed(&guest->writes, 1u); /* a counter */
    if (offset == 0) {
        uint32_t before = bb_xchg_acq_rel(&guest->last, (uint32_t)value);
        (void)bb_fetch_add_relaxed(&guest->out_of_order, before + 1 != (uint32_t)value ? 1u : 0u);
    }
    return BB_OK;
}

static int exit_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct guest *guest = opaque;

    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    bb_stop_request(&guest->stop, BB_STOP_DEBUG_EXIT, 0);
    return BB_OK;
}

static int call_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct guest *guest = opaque;

    (void)offset;
    (void)size;
    (void)value;
    return guest->called == NULL ? BB_OK : guest->called(ctx, guest);
}

static const struct bb_region_ops device_ops = {.read = device_read, .write = device_write};
static const struct bb_region_ops exit_ops = {.write = exit_write};
static const struct bb_region_ops call_ops = {.write = call_write};

static struct bb_region *make_region(struct guest *guest, const char *name, uint64_t bytes,
                                     const struct bb_region_ops *ops, enum bb_class klass,
                                     struct bb_space *space, bb_gpa_t at)
{
    struct bb_region_config config = {
        .name = name, .size_bytes = bytes, .ops = ops, .opaque = guest, .klass = klass};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_device_region_create(guest->ctx, guest->device, &config, &region, &err), BB_OK,
                 "%s", err.text);
    cr_assert_eq(bb_space_map(guest->ctx, space, at, region, &err), BB_OK, "%s", err.text);
    return region;
}

struct bb_region *guest_ram(struct guest *guest, const char *name, uint64_t bytes,
                            uint32_t first_word)
{
    struct bb_ram_config config = {.name = name, .size_bytes = bytes};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_ram_create(guest->ctx, &config, &region, &err), BB_OK, "%s", err.text);
    memcpy(bb_region_host(region), &first_word, sizeof(first_word));
    return region;
}

void guest_make(struct guest *guest, unsigned vcpus)
{
    struct bb_error err = {0};
    struct bb_space_config mmio = {.name = "memory", .kind = BB_SPACE_MMIO};
    struct bb_space_config pio = {.name = "ports", .kind = BB_SPACE_PIO};
    struct bb_device_config device = {.name = "device", .opaque = guest};

    memset(guest, 0, sizeof(*guest));
    cr_assert_eq(bb_stop_init(&guest->stop, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_create(NULL, &guest->engine, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_attach(guest->engine, "control", &guest->ctx, &err), BB_OK);
    cr_assert_eq(bb_space_create(guest->ctx, &mmio, &guest->mmio, &err), BB_OK);
    cr_assert_eq(bb_space_create(guest->ctx, &pio, &guest->pio, &err), BB_OK);
    guest->ram = guest_ram(guest, "ram", GUEST_RAM_BYTES, 0);
    guest->host = bb_region_host(guest->ram);
    cr_assert_eq(bb_space_map(guest->ctx, guest->mmio, 0, guest->ram, &err), BB_OK);
    cr_assert_eq(bb_device_create(guest->ctx, &device, &guest->device, &err), BB_OK);
    guest->registers = make_region(guest, "registers", DEVICE_BYTES, &device_ops, BB_CLASS_LOCKFREE,
                                   guest->mmio, GUEST_DEVICE);
    guest->exit_port =
        make_region(guest, "exit", 4, &exit_ops, BB_CLASS_LOCKFREE, guest->pio, GUEST_EXIT_PORT);
    guest->call_port =
        make_region(guest, "call", 1, &call_ops, BB_CLASS_DEVICE_LOCK, guest->pio, GUEST_CALL_PORT);

    cr_assert_eq(bb_kvm_open(vcpus, &guest->kvm, &err), BB_OK, "%s", err.text);
    struct bb_kvm_spaces spaces = {
        .ctx = guest->ctx, .mmio = guest->mmio, .pio = guest->pio, .stop = &guest->stop};
    cr_assert_eq(bb_kvm_follow(guest->kvm, &spaces, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_kvm_create_vcpus(guest->kvm, &err), BB_OK, "%s", err.text);
}

void guest_program(struct guest *guest, unsigned vcpu, const void *code, size_t bytes,
                   struct kvm_regs regs)
{
    struct kvm_segment flat = {
        .limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};
    int fd = guest->kvm->vcpus[vcpu].fd;
    struct kvm_sregs sregs;

    regs.rip = GUEST_CODE * (1 + vcpu);
    regs.rflags = 2;
    memcpy(guest->host + regs.rip, code, bytes);
    cr_assert_eq(ioctl(fd, KVM_GET_SREGS, &sregs), 0);
    sregs.cs = flat;
    flat.type = 3;
    flat.selector = 0x18;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
    sregs.cr0 = 0x11; /* PE, ET */
    cr_assert_eq(ioctl(fd, KVM_SET_SREGS, &sregs), 0);
    cr_assert_eq(ioctl(fd, KVM_SET_REGS, &regs), 0);
    cr_assert_eq(ioctl(fd, KVM_SET_MP_STATE, &state), 0);
}

void guest_start(struct guest *guest)
{
    struct bb_kvm_target target = {
        .engine = guest->engine, .mmio = guest->mmio, .pio = guest->pio, .stop = &guest->stop};
    struct bb_error err = {0};

    cr_assert_eq(bb_kvm_start(guest->kvm, &target, &err), BB_OK, "%s", err.text);
}

enum bb_stop_reason guest_await(struct guest *guest)
{
    struct pollfd polled = {.fd = guest->stop.event_fd, .events = POLLIN};

    cr_assert_eq(poll(&polled, 1, AWAIT_MS), 1, "the guest does not come to its end");
    bb_kvm_stop(guest->kvm);
    return bb_stop_reason(&guest->stop, NULL);
}

void guest_stop(struct guest *guest)
{
    bb_kvm_stop(guest->kvm);
}

void guest_drop(struct guest *guest)
{
    struct bb_error err = {0};

    bb_kvm_stop(guest->kvm);
    bb_kvm_unfollow(guest->kvm);
    cr_assert_eq(bb_device_remove_wait(guest->ctx, guest->device, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_region_remove_wait(guest->ctx, guest->ram, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_ctx_detach(guest->ctx, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_engine_destroy(guest->engine, &err), BB_OK, "%s", err.text);
    bb_kvm_close(guest->kvm);
    bb_stop_fini(&guest->stop);
}

uint32_t guest_result(const struct guest *guest, unsigned index)
{
    /* Relaxed: vCPUs write it meanwhile, or have stopped. */
    return bb_load_relaxed((const uint32_t *)(const void *)(guest->host + GUEST_RESULTS) + index);
}
