/* SPDX-License-Identifier: MIT */
/*
 * Doorbells and coalesced ranges of a guest on KVM: they follow the map, and a write that KVM takes
 * makes no exit. Exits are counted.
 */
#include <criterion/criterion.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../base/atomic.h"
#include "command.h"
#include "kvm_guest.h"

static struct guest guest;

TestSuite(kvm_bells, .timeout = 300);

/* ecx times: out dx, al */
static const uint8_t code_out_byte[] = {0xee, 0x49, 0x75, 0xfc, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

static void change_bell(struct bb_region *region, struct bb_doorbell doorbell, bool add)
{
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    cr_assert_eq(bb_txn_begin(guest.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(add ? bb_txn_doorbell_add(txn, region, &doorbell, &err)
                     : bb_txn_doorbell_remove(txn, region, &doorbell, &err),
                 BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static void add_bell(struct bb_region *region, struct bb_doorbell doorbell)
{
    change_bell(region, doorbell, true);
}

static uint64_t rung(int fd)
{
    uint64_t count = 0;

    return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

Test(kvm_bells, a_doorbell_rings_without_an_exit_for_its_value_alone)
{
    enum { WRITES = 1000 };

    NEED_KVM(2);
    int port = eventfd(0, EFD_NONBLOCK);
    int memory = eventfd(0, EFD_NONBLOCK);

    add_bell(guest.call_port, (struct bb_doorbell){.size = 0, .fd = port});
    add_bell(guest.registers,
             (struct bb_doorbell){.size = 4, .match_value = true, .value = 7, .fd = memory});
    guest_program(&guest, 0, code_out, sizeof(code_out),
                  (struct kvm_regs){.rcx = WRITES, .rdx = GUEST_CALL_PORT, .rax = 1});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(rung(port), (uint64_t)WRITES);
    cr_assert_eq(bb_kvm_stats(guest.kvm).pio, 1u, "but for the exit port's");
    cr_assert_eq(rung(memory), 0u);
    guest_drop(&guest);

    guest_make(&guest, 1);
    add_bell(guest.registers,
             (struct bb_doorbell){.size = 4, .match_value = true, .value = 7, .fd = memory});
    guest_program(&guest, 0, code_store, sizeof(code_store),
                  (struct kvm_regs){.rcx = 10,
                                    .rdi = GUEST_DEVICE,
                                    .rsi = GUEST_DEVICE + GUEST_DEVICE_LAST,
                                    .rbp = GUEST_RESULTS}); /* 0 to 9 to register 0 */
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(rung(memory), 1u);
    cr_assert_eq(guest.writes, 9u, "7 alone reaches no callback");
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 10u, "nine writes and the read");
    guest_drop(&guest);
    close(port);
    close(memory);
}

static uint32_t calls; /* of the call port; the vCPU's */

static int count_call(struct bb_ctx *ctx, struct guest *of)
{
    (void)ctx, (void)of;
    calls++;
    return BB_OK;
}

/* `count` values to register 0, counted from `first`, then a read. */
static struct kvm_regs stores(uint32_t first, uint32_t count)
{
    return (struct kvm_regs){.rax = first,
                             .rcx = count,
                             .rdi = GUEST_DEVICE,
                             .rsi = GUEST_DEVICE + GUEST_DEVICE_LAST,
                             .rbp = GUEST_RESULTS};
}

Test(kvm_bells, doorbells_that_are_taken_off_leave_writes_to_the_callbacks)
{
    enum { WRITES = 20 };

    NEED_KVM(1);
    int fd = eventfd(0, EFD_NONBLOCK);
    struct bb_doorbell any = {.size = 0, .fd = fd};
    struct bb_doorbell one = {.size = 4, .match_value = true, .value = 7, .fd = fd};

    calls = 0;
    guest.called = count_call;
    add_bell(guest.call_port, any);
    change_bell(guest.call_port, any, false);
    guest_program(&guest, 0, code_out, sizeof(code_out),
                  (struct kvm_regs){.rcx = WRITES, .rdx = GUEST_CALL_PORT, .rax = 1});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(calls, (uint32_t)WRITES);
    guest_drop(&guest);

    guest_make(&guest, 1);
    add_bell(guest.registers, one);
    change_bell(guest.registers, one, false);
    guest_program(&guest, 0, code_store, sizeof(code_store), stores(1, WRITES));
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest.writes, (uint32_t)WRITES);
    cr_assert_eq(rung(fd), 0u);
    guest_drop(&guest);
    close(fd);
}

Test(kvm_bells, ranges_that_kvm_has_no_room_for_are_coalesced_by_the_engine)
{
    enum { RANGES = 1024, STRIDE = 8, FROM = 0x20 }; /* KVM has 1000 at most */

    NEED_KVM(1);
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    cr_assert_eq(bb_txn_begin(guest.ctx, &txn, NULL), BB_OK);
    for (uint64_t i = 0; i < RANGES; i++) {
        cr_assert_eq(bb_txn_coalesce(txn, guest.registers, FROM + i * STRIDE, 4, &err), BB_OK);
    }
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
    guest_program(&guest, 0, code_store, sizeof(code_store),
                  (struct kvm_regs){.rcx = RANGES,
                                    .rbx = STRIDE,
                                    .rdi = GUEST_DEVICE + FROM,
                                    .rsi = GUEST_DEVICE + GUEST_DEVICE_LAST,
                                    .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest.writes, (uint32_t)RANGES);
    uint64_t exits = bb_kvm_stats(guest.kvm).mmio;
    cr_assert(exits > 10 && exits < 300, "%llu exits", (unsigned long long)exits);
    guest_drop(&guest);
}

static void change_range(struct bb_region *region, uint64_t length, bool add)
{
    struct bb_error err = {0};
    struct bb_txn *txn = NULL;

    cr_assert_eq(bb_txn_begin(guest.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(add ? bb_txn_coalesce(txn, region, 0, length, &err)
                     : bb_txn_uncoalesce(txn, region, 0, length, &err),
                 BB_OK, "%s", err.text);
    cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
}

static void coalesce(void)
{
    change_range(guest.registers, 4, true);
}

Test(kvm_bells, coalesced_writes_are_made_in_order_before_the_next_access)
{
    enum { WRITES = 1000 };

    NEED_KVM(1);
    coalesce();
    guest_program(&guest, 0, code_store, sizeof(code_store),
                  (struct kvm_regs){.rax = 1,
                                    .rcx = WRITES,
                                    .rdi = GUEST_DEVICE,
                                    .rsi = GUEST_DEVICE + GUEST_DEVICE_LAST,
                                    .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 0), (uint32_t)WRITES, "the read sees all of them");
    cr_assert_eq(guest.writes, (uint32_t)WRITES);
    cr_assert_eq(guest.out_of_order, 0u);
    cr_assert_lt(bb_kvm_stats(guest.kvm).mmio, (uint64_t)WRITES / 10, "a full ring exits");
    guest_drop(&guest);
}

Test(kvm_bells, writes_to_ports_are_coalesced_too)
{
    enum { WRITES = 1000 };

    NEED_KVM(1);
    calls = 0;
    guest.called = count_call;
    change_range(guest.call_port, 1, true);
    bool by_kvm = ioctl(guest.kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_PIO) > 0;
    guest_program(&guest, 0, code_out_byte, sizeof(code_out_byte),
                  (struct kvm_regs){.rcx = WRITES, .rdx = GUEST_CALL_PORT, .rax = 1});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(calls, (uint32_t)WRITES, "before the access of the exit port, or at the stop");
    if (by_kvm) {
        cr_assert_lt(bb_kvm_stats(guest.kvm).pio, (uint64_t)WRITES / 10, "a full ring exits");
    }
    guest_drop(&guest);
}

Test(kvm_bells, ranges_that_are_taken_off_are_coalesced_no_more)
{
    enum { WRITES = 20 };

    NEED_KVM(1);
    calls = 0;
    guest.called = count_call;
    coalesce();
    change_range(guest.call_port, 1, true);
    change_range(guest.registers, 4, false);
    change_range(guest.call_port, 1, false);
    guest_program(&guest, 0, code_store, sizeof(code_store), stores(1, WRITES));
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, WRITES + 1u, "each write, and the read");
    guest_drop(&guest);

    guest_make(&guest, 1);
    guest.called = count_call;
    change_range(guest.call_port, 1, true);
    change_range(guest.call_port, 1, false);
    guest_program(&guest, 0, code_out_byte, sizeof(code_out_byte),
                  (struct kvm_regs){.rcx = WRITES, .rdx = GUEST_CALL_PORT, .rax = 1});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(bb_kvm_stats(guest.kvm).pio, WRITES + 1u, "and the exit port's");
    cr_assert_eq(calls, (uint32_t)WRITES);
    guest_drop(&guest);
}

Test(kvm_bells, what_one_vcpu_coalesced_is_made_before_another_that_knows_of_it_reads)
{
    enum { ROUNDS = 500 };

    NEED_KVM(2);
    coalesce();
    guest_program(&guest, 0, code_ping, sizeof(code_ping),
                  (struct kvm_regs){.rcx = ROUNDS, .rdi = GUEST_DEVICE, .rbp = GUEST_RESULTS});
    guest_program(&guest, 1, code_pong, sizeof(code_pong),
                  (struct kvm_regs){.rcx = ROUNDS,
                                    .rsi = GUEST_DEVICE + GUEST_DEVICE_LAST,
                                    .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 1), (uint32_t)ROUNDS);
    cr_assert_eq(guest_result(&guest, 2), 0u, "%u reads missed the write", guest_result(&guest, 2));
    cr_assert_eq(guest.out_of_order, 0u);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, (uint64_t)ROUNDS, "the reads alone exit");
    guest_drop(&guest);
}

Test(kvm_bells, what_is_left_in_the_ring_is_made_at_the_stop)
{
    NEED_KVM(1);
    coalesce();
    guest_program(&guest, 0, code_count, sizeof(code_count),
                  (struct kvm_regs){.rdi = GUEST_DEVICE});
    guest_start(&guest);
    while (bb_load_relaxed(&guest.writes) == 0) { /* the ring has been full once */
    }
    guest_stop(&guest);
    struct kvm_coalesced_mmio_ring *ring = guest.kvm->ring;
    cr_assert_not_null(ring);
    cr_assert_eq(ring->first, ring->last);
    cr_assert_eq(guest.out_of_order, 0u);
    cr_assert_eq(guest.writes, guest.last);
    guest_drop(&guest);
}
