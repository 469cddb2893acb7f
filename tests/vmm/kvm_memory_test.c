/* SPDX-License-Identifier: MIT */
/*
 * What vCPUs see of a map that changes under them: KVM's slots and its log of writes follow it.
 * Exits are counted: an access that KVM answers itself makes none.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "../../base/atomic.h"
#include "../../memory/dirty.h"
#include "command.h"
#include "kvm_guest.h"

enum { BANK = 0x40000, WORD_A = 0x0a0a0a0a, WORD_B = 0x0b0b0b0b, PAGE = 4096 };

static struct guest guest;

TestSuite(kvm_memory, .timeout = 300);

static void map(bb_gpa_t at, struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_space_map(guest.ctx, guest.mmio, at, region, &err), BB_OK, "%s", err.text);
}

static void drop(struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_remove_wait(guest.ctx, region, &err), BB_OK, "%s", err.text);
}

/* One transaction puts `in` where `out` was. */
static int swap(struct bb_ctx *ctx, struct bb_region *out, struct bb_region *in)
{
    struct bb_txn *txn;
    int rc = bb_txn_begin(ctx, &txn, NULL);

    if (rc == BB_OK) {
        bb_txn_unmap(txn, out, NULL);
        bb_txn_map(txn, guest.mmio, BANK, in, NULL);
        rc = bb_txn_commit(txn, NULL);
    }
    return rc;
}

static uint64_t stress_ns(void)
{
    const char *given = getenv("BUSBAR_STRESS_SECONDS");

    return (uint64_t)((given != NULL ? strtod(given, NULL) : 1.0) * 1e9);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

Test(kvm_memory, a_bank_that_is_swapped_while_vcpus_run_is_never_missing)
{
    NEED_KVM(2);
    struct bb_region *banks[2] = {guest_ram(&guest, "a", PAGE, WORD_A),
                                  guest_ram(&guest, "b", PAGE, WORD_B)};
    unsigned shown = 0;
    uint32_t swaps = 0;

    map(BANK, banks[0]);
    for (unsigned i = 0; i < 2; i++) {
        guest_program(
            &guest, i, code_watch, sizeof(code_watch),
            (struct kvm_regs){
                .rsi = BANK, .rbx = WORD_A, .rdx = WORD_B, .rbp = GUEST_RESULTS + 16 * i});
    }
    guest_start(&guest);
    while (guest_result(&guest, 0) == 0 || guest_result(&guest, 4) == 0) { /* until both read */
    }
    for (uint64_t end = now_ns() + stress_ns(); now_ns() < end || swaps < 100; swaps++) {
        cr_assert_eq(swap(guest.ctx, banks[shown], banks[shown ^ 1]), BB_OK);
        shown ^= 1;
    }
    uint32_t *results = (uint32_t *)(void *)(guest.host + GUEST_RESULTS);
    bb_store_relaxed(&results[2], 1u);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 1) + guest_result(&guest, 5), 0u,
                 "%u and %u reads of neither bank", guest_result(&guest, 1),
                 guest_result(&guest, 5));
    cr_assert_gt(guest_result(&guest, 0), 100u);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 0u, "of %u swaps %llu were seen half done", swaps,
                 (unsigned long long)bb_kvm_stats(guest.kvm).mmio);
    drop(banks[0]);
    drop(banks[1]);
    guest_drop(&guest);
}

static struct bb_region *called_banks[2];
static unsigned called_shown;

static int swap_in_callback(struct bb_ctx *ctx, struct guest *g)
{
    (void)g;
    int rc = swap(ctx, called_banks[called_shown], called_banks[called_shown ^ 1]);

    called_shown ^= 1;
    return rc;
}

Test(kvm_memory, a_vcpu_that_swaps_a_bank_by_a_port_finds_the_other_one_at_its_next_access)
{
    enum { SWAPS = 300 };

    NEED_KVM(2);
    called_banks[0] = guest_ram(&guest, "a", PAGE, WORD_A);
    called_banks[1] = guest_ram(&guest, "b", PAGE, WORD_B);
    called_shown = 0;
    guest.called = swap_in_callback;
    map(BANK, called_banks[0]);
    guest_program(&guest, 0, code_swap, sizeof(code_swap),
                  (struct kvm_regs){.rcx = SWAPS,
                                    .rdx = GUEST_CALL_PORT,
                                    .rsi = BANK,
                                    .rdi = WORD_B,
                                    .rbx = WORD_A,
                                    .rbp = GUEST_RESULTS});
    guest_program(
        &guest, 1, code_watch, sizeof(code_watch),
        (struct kvm_regs){.rsi = BANK, .rbx = WORD_A, .rdx = WORD_B, .rbp = GUEST_RESULTS + 16});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 0), (uint32_t)SWAPS);
    cr_assert_eq(guest_result(&guest, 1), 0u, "%u reads of the bank before",
                 guest_result(&guest, 1));
    cr_assert_eq(guest_result(&guest, 5), 0u, "%u reads of neither", guest_result(&guest, 5));
    drop(called_banks[0]);
    drop(called_banks[1]);
    guest_drop(&guest);
}

Test(kvm_memory, whole_pages_are_slots_and_the_rest_of_a_range_is_emulated)
{
    NEED_KVM(1);
    struct bb_ram_config config = {
        .name = "odd", .size_bytes = 0x2f00, .host = aligned_alloc(PAGE, 4 * PAGE)};
    struct bb_region *odd = NULL;

    memset(config.host, 0, 4 * PAGE);
    void *pages = config.host;
    config.host = (uint8_t *)pages + 0x100;
    cr_assert_eq(bb_ram_create(guest.ctx, &config, &odd, NULL), BB_OK);
    map(0x20100, odd);
    guest_program(
        &guest, 0, code_poke, sizeof(code_poke),
        (struct kvm_regs){.rax = 0x1234, .rdi = 0x20200, .rsi = 0x21200, .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 0), 0x1234u);
    cr_assert_eq(guest_result(&guest, 1), 0x1234u);
    cr_assert_eq(*(uint16_t *)(void *)((uint8_t *)pages + 0x200), 0x1234);
    cr_assert_eq(*(uint16_t *)(void *)((uint8_t *)pages + 0x1200), 0x1234);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 2u, "the page that is whole makes no exit");
    drop(odd);
    free(pages);
    guest_drop(&guest);
}

Test(kvm_memory, memory_that_a_page_of_kvm_does_not_fit_is_emulated_throughout)
{
    NEED_KVM(1);
    uint8_t *pages = aligned_alloc(PAGE, 4 * PAGE);
    struct bb_ram_config config = {.name = "askew", .size_bytes = 0x2000, .host = pages + 8};
    struct bb_region *askew = NULL;

    memset(pages, 0, 4 * PAGE);
    cr_assert_eq(bb_ram_create(guest.ctx, &config, &askew, NULL), BB_OK);
    map(0x20000, askew);
    guest_program(
        &guest, 0, code_poke, sizeof(code_poke),
        (struct kvm_regs){.rax = 0x77, .rdi = 0x20000, .rsi = 0x21000, .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 0), 0x77u);
    cr_assert_eq(guest_result(&guest, 1), 0x77u);
    cr_assert_eq(pages[8], 0x77);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 4u);
    drop(askew);
    free(pages);
    guest_drop(&guest);
}

Test(kvm_memory, rom_keeps_its_bytes_and_is_read_without_an_exit)
{
    NEED_KVM(1);
    struct bb_region *bank = guest_ram(&guest, "bank", PAGE, WORD_A);
    struct bb_alias_config alias = {
        .name = "rom", .target = bank, .size_bytes = PAGE, .read_only = true};
    struct bb_region *rom = NULL;

    cr_assert_eq(bb_alias_create(guest.ctx, &alias, &rom, NULL), BB_OK);
    map(0x20000, rom);
    map(0x30000, bank);
    guest_program(
        &guest, 0, code_poke, sizeof(code_poke),
        (struct kvm_regs){.rax = WORD_B, .rdi = 0x20000, .rsi = 0x30000, .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(guest_result(&guest, 0), (uint32_t)WORD_A, "the write through the alias is lost");
    cr_assert_eq(guest_result(&guest, 1), (uint32_t)WORD_B, "the other place is writable");
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 1u, "the refused write alone exits");
    cr_assert_eq(bb_engine_stats(guest.ctx).refused, 1u);
    drop(rom);
    drop(bank);
    guest_drop(&guest);
}

/* A flash chip: any write turns its other side up. */
static struct bb_region *flash;
static bool flash_is_memory;
static uint32_t flash_writes;

static int flash_turn(struct bb_ctx *ctx, bool memory)
{
    struct bb_txn *txn;
    int rc = bb_txn_begin(ctx, &txn, NULL);

    if (rc == BB_OK) {
        bb_txn_rom_mode(txn, flash, memory, NULL);
        rc = bb_txn_commit(txn, NULL);
    }
    flash_is_memory = memory;
    return rc;
}

static int flash_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t *value)
{
    (void)ctx, (void)opaque, (void)offset, (void)size;
    *value = WORD_B;
    return BB_OK;
}

static int flash_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
    flash_writes++;
    return flash_turn(ctx, !flash_is_memory);
}

Test(kvm_memory, a_rom_device_is_read_without_an_exit_in_rom_mode_and_by_its_callback_else)
{
    static const struct bb_region_ops ops = {.read = flash_read, .write = flash_write};
    struct bb_region_config config = {
        .name = "flash", .size_bytes = PAGE, .ops = &ops, .rom_device = true};
    struct bb_error err = {0};

    NEED_KVM(1);
    cr_assert_eq(bb_device_region_create(guest.ctx, guest.device, &config, &flash, &err), BB_OK,
                 "%s", err.text);
    uint32_t *words = bb_region_host(flash);
    words[0] = words[1] = WORD_A;
    flash_is_memory = true;
    flash_writes = 0;
    map(0x20000, flash);
    /* A write turns it over, its read exits; the next turns it back, and its read does not. */
    guest_program(
        &guest, 0, code_poke, sizeof(code_poke),
        (struct kvm_regs){.rax = 1, .rdi = 0x20000, .rsi = 0x20004, .rbp = GUEST_RESULTS});
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(flash_writes, 2u);
    cr_assert_eq(guest_result(&guest, 0), (uint32_t)WORD_B);
    cr_assert_eq(guest_result(&guest, 1), (uint32_t)WORD_A);
    cr_assert_eq(bb_kvm_stats(guest.kvm).mmio, 3u, "two writes and one read");
    cr_assert_eq(words[0], (uint32_t)WORD_A, "writes are the callback's");
    guest_drop(&guest);
}

Test(kvm_memory, pages_that_vcpus_write_are_dirty_and_others_are_not)
{
    enum { PAGES = 40, STRIDE = 3 };
    uint64_t bitmap = 0;
    uint64_t expected = 0;
    uint64_t pages = 0;

    NEED_KVM(1);
    struct bb_region *ram = guest_ram(&guest, "logged", PAGES * PAGE, 0);
    struct bb_dirty_client *client = NULL;
    struct bb_error err = {0};
    cr_assert_eq(bb_dirty_client_create(guest.ctx, "migration", &client, &err), BB_OK);
    map(0x100000, ram);
    cr_assert_eq(bb_dirty_start(guest.ctx, client, ram, &err), BB_OK, "%s", err.text);
    guest_program(&guest, 0, code_store, sizeof(code_store),
                  (struct kvm_regs){.rcx = 10,
                                    .rbx = STRIDE * PAGE,
                                    .rdi = 0x100000 + 2 * PAGE,
                                    .rsi = 0x100000,
                                    .rbp = GUEST_RESULTS});
    for (unsigned i = 0; i < 10; i++) {
        expected |= UINT64_C(1) << (2 + STRIDE * i);
    }
    guest_start(&guest);
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(
        bb_dirty_sync_and_clear(guest.ctx, client, ram, 0, PAGES * PAGE, &bitmap, &pages, &err),
        BB_OK, "%s", err.text);
    cr_assert_eq(bitmap, expected, "%#llx", (unsigned long long)bitmap);
    cr_assert_eq(pages, 10u);
    cr_assert_eq(
        bb_dirty_sync_and_clear(guest.ctx, client, ram, 0, PAGES * PAGE, NULL, &pages, &err),
        BB_OK);
    cr_assert_eq(pages, 0u);
    cr_assert_eq(bb_dirty_client_destroy(guest.ctx, client, &err), BB_OK, "%s", err.text);
    drop(ram);
    guest_drop(&guest);
}

Test(kvm_memory, no_write_is_lost_to_the_log_when_memory_goes_while_vcpus_write_it)
{
    uint32_t rounds = 0;
    uint32_t changed = 0;
    uint32_t lost = 0;

    NEED_KVM(1);
    struct bb_region *bank = guest_ram(&guest, "bank", PAGE, 0);
    struct bb_dirty_client *client = NULL;
    struct bb_error err = {0};
    const uint32_t *word = bb_region_host(bank);
    cr_assert_eq(bb_dirty_client_create(guest.ctx, "migration", &client, &err), BB_OK);
    cr_assert_eq(bb_dirty_start(guest.ctx, client, bank, &err), BB_OK, "%s", err.text);
    guest_program(&guest, 0, code_count, sizeof(code_count), (struct kvm_regs){.rdi = BANK});
    guest_start(&guest);
    /* On a busy machine the guest seldom gets to write in a round. */
    for (uint64_t end = now_ns() + stress_ns(); now_ns() < end || changed < 5; rounds++) {
        uint64_t pages = 0;
        map(BANK, bank);
        while (bb_load_relaxed(word) == 0) { /* the first time: until the guest is there */
        }
        bb_dirty_sync_and_clear(guest.ctx, client, bank, 0, PAGE, NULL, NULL, &err);
        uint32_t before = bb_load_relaxed(word);
        cr_assert_eq(bb_space_unmap(guest.ctx, bank, &err), BB_OK, "%s", err.text);
        /* A write that exited while the slot was not yet there is an access of the engine's: it may
         * have found the bank before it went, and be between its data and its bit. */
        cr_assert_eq(bb_rcu_synchronize(guest.ctx), BB_OK);
        uint32_t after = bb_load_relaxed(word);
        bb_dirty_sync_and_clear(guest.ctx, client, bank, 0, PAGE, NULL, &pages, &err);
        changed += before != after ? 1 : 0;
        lost += before != after && pages == 0 ? 1 : 0;
    }
    guest_stop(&guest);
    cr_assert_eq(lost, 0u, "%u of %u, in %u rounds", lost, changed, rounds);
    cr_assert_eq(bb_dirty_client_destroy(guest.ctx, client, &err), BB_OK, "%s", err.text);
    drop(bank);
    guest_drop(&guest);
}

Test(kvm_memory, no_write_is_lost_to_the_log_when_memory_comes_while_vcpus_write_it)
{
    enum { PAGES = 0x4000, WORDS = PAGES / 64 };
    static uint64_t bitmap[WORDS];
    uint32_t rounds = 0;
    uint32_t written = 0;
    uint32_t lost = 0;

    NEED_KVM(1);
    struct bb_region *bank = guest_ram(&guest, "bank", PAGES * PAGE, 0);
    struct bb_dirty_client *client = NULL;
    struct bb_error err = {0};
    const uint8_t *host = bb_region_host(bank);
    memset(bitmap, 0, sizeof(bitmap));
    cr_assert_eq(bb_dirty_client_create(guest.ctx, "migration", &client, &err), BB_OK);
    cr_assert_eq(bb_dirty_start(guest.ctx, client, bank, &err), BB_OK, "%s", err.text);
    /* Each page once: what is missed then is missed for good. */
    guest_program(&guest, 0, code_store, sizeof(code_store),
                  (struct kvm_regs){.rax = 1,
                                    .rcx = PAGES,
                                    .rbx = PAGE,
                                    .rdi = 0x10000000,
                                    .rsi = GUEST_RESULTS,
                                    .rbp = GUEST_RESULTS});
    guest_start(&guest);
    for (; bb_stop_reason(&guest.stop, NULL) == BB_STOP_NONE; rounds++) {
        map(0x10000000, bank);
        cr_assert_eq(bb_space_unmap(guest.ctx, bank, &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(guest_await(&guest), BB_STOP_DEBUG_EXIT);
    cr_assert_eq(
        bb_dirty_sync_and_clear(guest.ctx, client, bank, 0, PAGES * PAGE, bitmap, NULL, &err),
        BB_OK, "%s", err.text);
    for (unsigned i = 0; i < PAGES; i++) {
        bool is = *(const uint32_t *)(const void *)(host + (size_t)i * PAGE) != 0;
        written += is ? 1 : 0;
        lost += is && (bitmap[i / 64] >> i % 64 & 1) == 0 ? 1 : 0;
    }
    cr_assert_eq(lost, 0u, "%u of %u pages, in %u rounds", lost, written, rounds);
    cr_assert_gt(written, 0u);
    cr_assert_eq(bb_dirty_client_destroy(guest.ctx, client, &err), BB_OK, "%s", err.text);
    drop(bank);
    guest_drop(&guest);
}

Test(kvm_memory, memory_is_added_and_removed_under_a_vcpu_that_writes_it)
{
    enum { ROUNDS = 50 };

    NEED_KVM(1);
    guest_program(&guest, 0, code_count, sizeof(code_count), (struct kvm_regs){.rdi = BANK});
    guest_start(&guest);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct bb_region *ram = guest_ram(&guest, "ram", PAGE, 0);
        const uint32_t *word = bb_region_host(ram);
        map(BANK, ram);
        while (bb_load_relaxed(word) == 0) { /* until the guest has written there */
        }
        drop(ram); /* and what it was is unmapped from this process */
    }
    guest_stop(&guest);
    cr_assert_eq(bb_stop_reason(&guest.stop, NULL), BB_STOP_NONE);
    cr_assert_gt(bb_engine_stats(guest.ctx).unassigned_writes, 0u);
    guest_drop(&guest);
}

Test(kvm_memory, slot_numbers_are_used_again)
{
    NEED_KVM(1);
    struct bb_region *ram = guest_ram(&guest, "ram", PAGE, 0);
    int slots = ioctl(guest.kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);

    for (int i = 0; i <= slots; i++) {
        map(BANK, ram);
        cr_assert_eq(bb_space_unmap(guest.ctx, ram, NULL), BB_OK);
    }
    cr_assert_eq(bb_stop_reason(&guest.stop, NULL), BB_STOP_NONE, "after %d slots", slots);
    drop(ram);
    guest_drop(&guest);
}

/* Memory at an address that no process has: KVM refuses it. */
static struct bb_region *impossible(void)
{
    struct bb_ram_config config = {.name = "impossible",
                                   .size_bytes = PAGE,
                                   .backing = BB_RAM_EMBEDDER,
                                   .host = (void *)UINTPTR_MAX};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    config.host = (void *)((uintptr_t)config.host - (16 * PAGE - 1)); /* a page's first byte */
    cr_assert_eq(bb_ram_create(guest.ctx, &config, &region, &err), BB_OK, "%s", err.text);
    return region;
}

Test(kvm_memory, memory_that_kvm_refuses_ends_the_run)
{
    unsigned status;

    NEED_KVM(1);
    struct bb_region *region = impossible();
    guest_program(&guest, 0, code_count, sizeof(code_count), (struct kvm_regs){.rdi = 0x9000});
    guest_start(&guest);
    map(BANK, region);
    cr_assert_eq(guest_await(&guest), BB_STOP_ERROR);
    bb_stop_reason(&guest.stop, &status);
    cr_assert_eq(status, 1u);
    drop(region);
    guest_drop(&guest);
}

Test(kvm_memory, memory_that_kvm_refuses_is_named_when_the_map_is_first_looked_at)
{
    struct bb_error err = {0};

    NEED_KVM(1);
    bb_kvm_unfollow(guest.kvm);
    struct bb_region *region = impossible();
    map(BANK, region);
    struct bb_kvm_spaces spaces = {
        .ctx = guest.ctx, .mmio = guest.mmio, .pio = guest.pio, .stop = &guest.stop};
    cr_assert_eq(bb_kvm_follow(guest.kvm, &spaces, &err), BB_E_SYSTEM);
    cr_assert_not_null(strstr(err.text, "0x40000-0x40fff ('impossible')"), "%s", err.text);
    cr_assert_eq(bb_stop_reason(&guest.stop, NULL), BB_STOP_NONE);
    drop(region);
    guest_drop(&guest);
}
