/* SPDX-License-Identifier: MIT */
/*
 * Accesses and DMA through IOMMUs. What is cached and how it is voided is in tests/memory/; here is
 * what devices and guests see of it.
 */
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "smmu.h"

TestSuite(engine_iommu, .init = smmu_begin, .fini = smmu_end, .timeout = 300);

/* Where accesses go. */

Test(engine_iommu, each_requester_is_led_by_its_own_table)
{
    for (uint32_t id = 1; id <= REQUESTERS; id++) {
        page_set(id, 0, id * PAGE | MAPPED);
    }
    for (unsigned round = 0; round < 2; round++) {
        for (uint32_t id = 1; id <= REQUESTERS; id++) {
            uint64_t value = 0, bytes = 0x1111111111111111 * id + round;

            cr_assert_eq(store(machine.ctx, 8, id, bytes), BB_OK);
            cr_assert_eq(ram_word(id * PAGE + 8), bytes);
            cr_assert_eq(load(machine.ctx, 8, id, &value), BB_OK);
            cr_assert_eq(value, bytes);
            cr_assert_eq(bb_access_read(machine.ctx, bus, 8, &value, 8, master(id)), BB_OK);
            cr_assert_eq(value, bytes);
        }
    }
    cr_assert_eq(smmu.asked, REQUESTERS, "asked %" PRIu64 " times", smmu.asked);
    uint64_t value;
    cr_assert_eq(load(machine.ctx, 8, 0, &value), BB_E_DECODE);
    cr_assert_eq(bb_mmio_read(machine.ctx, bus, 8, 8, &value), BB_E_DECODE); /* nobody's */
    cr_assert_eq(value, 0xdddddddddddddddd);
}

Test(engine_iommu, an_access_over_pages_is_cut_and_a_copy_is_gathered)
{
    static const unsigned order[6] = {5, 2, 4, 1, 6, 3};
    static uint8_t from[6 * PAGE], into[6 * PAGE];
    uint8_t eight[8] = {1, 2, 3, 4, 5, 6, 7, 8}, back[8] = {0};
    size_t done = 0;

    for (unsigned i = 0; i < 6; i++) {
        page_set(1, i * PAGE, order[i] * PAGE | MAPPED);
    }
    for (size_t i = 0; i < sizeof(from); i++) {
        from[i] = (uint8_t)(i * 7 + i / PAGE);
    }
    cr_assert_eq(bb_dma_write(machine.ctx, bus, 0, from, sizeof(from), master(1), &done), BB_OK);
    cr_assert_eq(done, sizeof(from));
    for (unsigned i = 0; i < 6; i++) {
        cr_assert_eq(memcmp(machine.ram_host + order[i] * PAGE, from + i * PAGE, PAGE), 0);
    }
    cr_assert_eq(bb_dma_read(machine.ctx, bus, 3, into, sizeof(into) - 6, master(1), &done), BB_OK);
    cr_assert_eq(memcmp(into, from + 3, sizeof(into) - 6), 0);

    cr_assert_eq(bb_access_write(machine.ctx, bus, PAGE - 3, eight, 8, master(1)), BB_OK);
    cr_assert_eq(memcmp(machine.ram_host + 6 * PAGE - 3, eight, 3), 0);
    cr_assert_eq(memcmp(machine.ram_host + 2 * PAGE, eight + 3, 5), 0);
    cr_assert_eq(bb_access_read(machine.ctx, bus, PAGE - 3, back, 8, master(1)), BB_OK);
    cr_assert_eq(memcmp(back, eight, 8), 0);
}

Test(engine_iommu, a_second_stage_translates_what_the_first_one_yields)
{
    struct bb_space *middle = space_make("middle");
    struct smmu second;
    uint64_t value = 0;

    /* The masters' tables lead into `middle`, where the second unit has them all under one. */
    smmu_make(&second, "stage 2", middle, machine.mmio);
    smmu.target = middle;
    page_set(1, 0, 2 * PAGE | MAPPED);
    page_set(2, 0, 3 * PAGE | MAPPED);
    page_set(1, 2 * PAGE, 5 * PAGE | MAPPED);
    page_set(2, 3 * PAGE, 6 * PAGE | BB_IOMMU_READ);
    cr_assert_eq(store(machine.ctx, 16, 1, 0xabc), BB_OK);
    cr_assert_eq(ram_word(5 * PAGE + 16), 0xabc);
    cr_assert_eq(load(machine.ctx, 16, 2, &value), BB_OK);
    cr_assert_eq(value, ram_word(6 * PAGE + 16));
    cr_assert_eq(store(machine.ctx, 16, 2, 1), BB_E_DEVICE, "the second stage permits reads only");

    /* Either stage alone is voided. */
    page_set(1, 2 * PAGE, 7 * PAGE | MAPPED);
    void_all(second.region);
    cr_assert_eq(store(machine.ctx, 16, 1, 0xdef), BB_OK);
    cr_assert_eq(ram_word(7 * PAGE + 16), 0xdef);
    page_set(1, 0, PAGE | MAPPED);
    page_set(1, PAGE, 4 * PAGE | MAPPED);
    void_all(smmu.region);
    cr_assert_eq(store(machine.ctx, 16, 1, 0x123), BB_OK);
    cr_assert_eq(ram_word(4 * PAGE + 16), 0x123);
    smmu_drop(&second);
}

Test(engine_iommu, devices_are_reached_through_it_with_the_masters_attributes)
{
    static struct probe probe;
    uint64_t value = 0;

    memset(&probe, 0, sizeof(probe));
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_DEVICE_LOCK);
    page_set(3, 2 * PAGE, DEVICE_GPA(0) | MAPPED);
    cr_assert_eq(store(machine.ctx, 2 * PAGE + 0x20, 3, 77), BB_OK);
    cr_assert_eq(load(machine.ctx, 2 * PAGE + 0x20, 3, &value), BB_OK);
    cr_assert(probe.writes == 1 && probe.reads == 1 && probe.last_value == 77);
    cr_assert_eq(store(machine.ctx, 2 * PAGE + DEVICE_BYTES, 3, 77), BB_E_DECODE);
    probe_drop(&probe);
}

/* Faults. */

Test(engine_iommu, a_fault_is_what_the_access_comes_to)
{
    uint8_t bytes[16] = {0};
    uint64_t value = 0, old;
    size_t done = 99;

    page_set(1, 0, 2 * PAGE | MAPPED);
    page_set(1, PAGE, 3 * PAGE | BB_IOMMU_READ);
    page_set(1, 2 * PAGE, 4 * PAGE | BB_IOMMU_WRITE);
    memset(machine.ram_host + 2 * PAGE, 0x22, 3 * PAGE);
    struct bb_engine_stats before = bb_engine_stats(machine.ctx);

    /* Read-only. */
    cr_assert_eq(store(machine.ctx, PAGE, 1, 5), BB_E_DEVICE);
    cr_assert_eq(bb_dma_atomic(machine.ctx, bus, PAGE, 8, BB_LITTLE_ENDIAN, master(1),
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DEVICE);
    cr_assert_eq(load(machine.ctx, PAGE, 1, &value), BB_OK);
    cr_assert_eq(value, 0x2222222222222222);
    /* Write-only. */
    cr_assert_eq(load(machine.ctx, 2 * PAGE, 1, &value), BB_E_DEVICE);
    cr_assert_eq(bb_dma_atomic(machine.ctx, bus, 2 * PAGE, 8, BB_LITTLE_ENDIAN, master(1),
                               BB_ATOMIC_ADD, 0, 1, &old),
                 BB_E_DEVICE);
    cr_assert_eq(bb_access_read(machine.ctx, bus, 2 * PAGE, bytes, 8, master(1)), BB_E_DEVICE);
    cr_assert_eq(bytes[0], 0xee);
    /* Both. */
    cr_assert_eq(bb_dma_atomic(machine.ctx, bus, 0, 8, BB_LITTLE_ENDIAN, master(1), BB_ATOMIC_ADD,
                               0, 1, &old),
                 BB_OK);
    cr_assert_eq(old, 0x2222222222222222);
    cr_assert_eq(ram_word(2 * PAGE), 0x2222222222222223);
    /* Nothing there. */
    cr_assert_eq(load(machine.ctx, 3 * PAGE, 1, &value), BB_E_DECODE);
    cr_assert_eq(bb_access_read(machine.ctx, bus, 3 * PAGE, bytes, 8, master(1)), BB_E_DECODE);
    cr_assert_eq(bytes[0], 0xdd);
    /* A copy ends where it faults. */
    memset(bytes, 0x77, sizeof(bytes));
    cr_assert_eq(bb_dma_write(machine.ctx, bus, PAGE - 9, bytes, 16, master(1), &done),
                 BB_E_DEVICE);
    cr_assert_eq(done, 9);
    cr_assert_eq(machine.ram_host[3 * PAGE - 1], 0x77);
    cr_assert_eq(machine.ram_host[3 * PAGE], 0x22);
    /* An access goes on behind what faulted. */
    memset(bytes, 0, sizeof(bytes));
    cr_assert_eq(bb_access_read(machine.ctx, bus, 3 * PAGE - 8, bytes, 16, master(1)), BB_E_DEVICE);
    cr_assert(bytes[7] == 0xee && bytes[8] == 0xdd);
    cr_assert_eq(bb_access_write(machine.ctx, bus, 2 * PAGE - 4, "abcdefgh", 8, master(1)),
                 BB_E_DEVICE);
    cr_assert_eq(memcmp(machine.ram_host + 4 * PAGE, "efgh", 4), 0);

    struct bb_engine_stats after = bb_engine_stats(machine.ctx);
    cr_assert_geq(after.refused, before.refused + 8);
    cr_assert_geq(after.unassigned_reads, before.unassigned_reads + 2);
    cr_assert_geq(bb_iommu_stats(machine.ctx).faults, 10);
}

static int forward_read(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t *value)
{
    (void)size;
    int result = load(ctx, offset, (uint32_t)(uintptr_t)probe->arg, value);
    return result == BB_OK ? BB_OK : BB_E_DEVICE;
}

Test(engine_iommu, a_fault_is_told_by_a_message_at_once)
{
    static struct probe probe;
    uint64_t value = 0;

    smmu.tells = true;
    page_set(2, 0, 2 * PAGE | BB_IOMMU_READ);
    for (unsigned i = 1; i <= 3; i++) {
        cr_assert_eq(store(machine.ctx, 0, 2, 1), BB_E_DEVICE);
        cr_assert(messages == i && last_message == 2);
    }
    /* From inside another device, under its lock. */
    memset(&probe, 0, sizeof(probe));
    probe.read = forward_read;
    probe.arg = (void *)4;
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_DEVICE_LOCK);
    cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, DEVICE_GPA(0), 8, &value), BB_E_DEVICE);
    cr_assert(messages == 4 && last_message == 4);
    probe_drop(&probe);
}

/* Translations and chains. */

Test(engine_iommu, a_device_is_translated_inside_its_callback_and_under_its_lock)
{
    static const enum bb_class klass[] = {BB_CLASS_LOCKFREE, BB_CLASS_DEVICE_LOCK,
                                          BB_CLASS_MAY_SLEEP};
    uint64_t value;

    page_set(1, 0, 3 * PAGE | MAPPED);
    for (unsigned i = 0; i < BB_ARRAY_LEN(klass); i++) {
        static struct probe probe;

        memset(&probe, 0, sizeof(probe));
        probe.read = forward_read;
        probe.arg = (void *)1;
        probe_make(&machine, &probe, "probe", 0, klass[i]);
        void_all(smmu.region);
        memset(machine.ram_host + 3 * PAGE, (int)i + 1, 64);
        cr_assert_eq(bb_mmio_read(machine.ctx, machine.mmio, DEVICE_GPA(0), 8, &value), BB_OK);
        cr_assert_eq(value, 0x0101010101010101 * (i + 1));
        probe_drop(&probe);
    }
    cr_assert_eq(smmu.asked, BB_ARRAY_LEN(klass));
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_posted, 0);
}

/* Posts a write through the IOMMU, then changes where it leads to. */
static int post_and_remap(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                          uint64_t value)
{
    (void)probe, (void)offset, (void)size;
    int result = store(ctx, PAGE, 1, value);

    machine.ram_host[TABLE + 8 + 1] = 0x20; /* DEVICE_GPA(1) becomes DEVICE_GPA(2) */
    return result == BB_OK
               ? bb_iommu_invalidate(ctx, smmu.region, PAGE, 2 * PAGE - 1, NULL, NULL, NULL)
               : result;
}

Test(engine_iommu, a_posted_write_is_translated_when_it_is_made)
{
    static struct probe probe[3];

    memset(probe, 0, sizeof(probe));
    probe[0].write = post_and_remap;
    for (unsigned i = 0; i < 3; i++) {
        probe_make(&machine, &probe[i], "probe", i, BB_CLASS_DEVICE_LOCK);
    }
    page_set(1, PAGE, DEVICE_GPA(1) | MAPPED);
    mmio_write(&machine, DEVICE_GPA(0), 4, 0x99);
    cr_assert_eq(probe[1].writes, 0, "it went where the page led when it was posted");
    cr_assert(probe[2].writes == 1 && probe[2].last_value == 0x99);
    for (unsigned i = 0; i < 3; i++) {
        probe_drop(&probe[i]);
    }
}

/* What a callback may not do at once: reach a device. */
static void reach_device(struct bb_ctx *ctx, struct smmu *of, struct bb_attrs attrs)
{
    struct probe *probe = of->arg;
    uint64_t value = 0;

    (void)attrs;
    cr_assert_eq(bb_dma_load(ctx, machine.mmio, probe->gpa, 4, BB_LITTLE_ENDIAN, nobody, &value),
                 BB_E_DEVICE);
    uint64_t before = probe->writes;
    cr_assert_eq(bb_dma_store(ctx, machine.mmio, probe->gpa, 4, BB_LITTLE_ENDIAN, nobody, 5),
                 BB_OK);
    cr_assert_eq(probe->writes, before, "a device was reached at once");
}

Test(engine_iommu, what_a_callback_writes_to_a_device_is_made_after_the_access)
{
    static struct probe probe, master_probe;
    uint64_t value = 0;

    memset(&probe, 0, sizeof(probe));
    memset(&master_probe, 0, sizeof(master_probe));
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_LOCKFREE);
    master_probe.read = forward_read;
    master_probe.arg = (void *)1;
    probe_make(&machine, &master_probe, "master", 1, BB_CLASS_LOCKFREE);
    smmu.besides = reach_device;
    smmu.arg = &probe;
    page_set(1, 0, 3 * PAGE | MAPPED);
    cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_OK);
    cr_assert_eq(probe.writes, 1);
    void_all(smmu.region);
    cr_assert_eq(bb_access_read(machine.ctx, bus, 0, &value, 8, master(1)), BB_OK);
    cr_assert_eq(probe.writes, 2);
    void_all(smmu.region);
    cr_assert_eq(mmio_read(&machine, DEVICE_GPA(1), 8), ram_word(3 * PAGE));
    cr_assert_eq(probe.writes, 3);
    cr_assert_eq(probe.reads, 0);
    probe_drop(&probe);
    probe_drop(&master_probe);
}

static struct door entered, leave;

static int wait_at_door(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)ctx, (void)probe, (void)offset, (void)size, (void)value;
    door_open(&entered);
    door_wait(&leave);
    return BB_OK;
}

static void load_once(struct bb_ctx *ctx, void *arg)
{
    uint64_t value;

    bb_store_relaxed((int *)arg, load(ctx, 0, 1, &value)); /* read after joining */
}

static void removed(void *opaque)
{
    bb_store_release((unsigned *)opaque, 1); /* pairs with the test's loads */
}

Test(engine_iommu, its_device_is_not_removed_before_what_a_callback_has_posted_is_made)
{
    static struct probe probe;
    struct worker worker;
    unsigned done = 0;
    int result = 1;

    entered = leave = (struct door)DOOR_INIT;
    memset(&probe, 0, sizeof(probe));
    probe.write = wait_at_door;
    probe_make(&machine, &probe, "probe", 0, BB_CLASS_MAY_SLEEP);
    smmu.besides = reach_device;
    smmu.arg = &probe;
    page_set(1, 0, 3 * PAGE | MAPPED);
    worker_start(&worker, &machine, "master", load_once, &result);
    door_wait(&entered);
    cr_assert_eq(bb_device_remove(machine.ctx, smmu.device, removed, &done, NULL), BB_OK);
    smmu.device = NULL;
    for (unsigned i = 0; i < 2000; i++) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
        cr_assert_eq(bb_load_acquire(&done), 0, "removed with an effect outstanding");
    }
    door_open(&leave);
    worker_join(&worker);
    cr_assert_eq(result, BB_OK);
    while (bb_load_acquire(&done) == 0) { /* pairs with removed() */
        sched_yield();
    }
    probe_drop(&probe);
}

Test(engine_iommu, tables_may_be_translated_themselves_but_not_for_ever)
{
    struct bb_space *middle = space_make("middle");
    struct smmu second;
    uint64_t value = 0;

    /* The first unit's tables lie in what the second one shows, one page up. */
    smmu_make(&second, "stage 2", middle, machine.mmio);
    smmu.tables = middle;
    page_set(1, 8 * PAGE, 9 * PAGE | MAPPED);
    uint64_t word = 3 * PAGE | MAPPED;
    memcpy(machine.ram_host + TABLE + PAGE, &word, sizeof(word));
    memset(machine.ram_host + 3 * PAGE, 0x33, 64);
    cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_OK);
    cr_assert_eq(value, 0x3333333333333333);
    cr_assert(smmu.asked == 1 && second.asked == 1);

    /* And tables that lie in what the unit itself shows. */
    void_all(smmu.region);
    smmu.tables = bus;
    cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_E_DECODE);
    cr_assert_eq(smmu.asked, 1 + BB_IOMMU_NEST_MAX);
    smmu.tables = machine.mmio;
    cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_E_DECODE); /* the table below is empty */
    smmu_drop(&second);
}

Test(engine_iommu, a_table_that_leads_back_to_the_bus_ends_in_a_decode_error)
{
    uint64_t value = 0;

    smmu.target = bus;
    page_set(1, 0, PAGE | MAPPED);
    page_set(1, PAGE, 0 | MAPPED);
    cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_E_DECODE);
    cr_assert_eq(store(machine.ctx, PAGE + 8, 1, 1), BB_E_DECODE);
    cr_assert_eq(bb_access_read(machine.ctx, bus, PAGE - 4, &value, 8, master(1)), BB_E_DECODE);
}

/* Mappings, removal. */

struct kept {
    struct bb_dma_mapping *mapping;
    unsigned unmapped;
};

static void let_go(struct bb_ctx *ctx, void *opaque, bb_gpa_t first, bb_gpa_t last)
{
    struct kept *kept = opaque;

    (void)first;
    (void)last;
    if (kept->mapping != NULL) {
        kept->unmapped++;
        (void)bb_dma_unmap(ctx, kept->mapping, 0);
        kept->mapping = NULL;
    }
}

Test(engine_iommu, a_mapping_is_of_a_page_and_its_owner_hears_when_that_is_taken_back)
{
    struct kept kept = {0};
    struct bb_iommu_notifier_config config = {0, PAGE - 1, let_go, NULL, &kept};
    struct bb_iommu_notifier *notifier = NULL;
    struct bb_error err = {0};
    uint64_t length = 3 * PAGE;

    page_set(1, 0, 5 * PAGE | MAPPED);
    page_set(1, PAGE, 2 * PAGE | MAPPED);
    cr_assert_eq(bb_iommu_notifier_add(machine.ctx, smmu.region, &config, &notifier, &err), BB_OK,
                 "%s", err.text);
    cr_assert_eq(
        bb_dma_map(machine.ctx, bus, 0x10, &length, BB_DMA_BOTH, master(1), &kept.mapping, &err),
        BB_OK, "%s", err.text);
    cr_assert(!bb_dma_bounced(kept.mapping));
    cr_assert_eq(bb_dma_host(kept.mapping), machine.ram_host + 5 * PAGE + 0x10);
    cr_assert_eq(length, PAGE - 0x10);
    cr_assert_eq(bb_iommu_invalidate(machine.ctx, smmu.region, PAGE, UINT64_MAX, NULL, NULL, NULL),
                 BB_OK);
    cr_assert_eq(kept.unmapped, 0);
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, smmu.region, 0, 0, &err), BB_OK);
    cr_assert_eq(kept.unmapped, 1);
    cr_assert_eq(bb_iommu_notifier_remove(machine.ctx, notifier, NULL, NULL, &err), BB_OK);
}

Test(engine_iommu, a_removed_iommu_leaves_nothing_behind)
{
    uint64_t value = 0;

    page_set(1, 0, 3 * PAGE | MAPPED);
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(store(machine.ctx, 0, 1, i), BB_OK);
        cr_assert_eq(ram_word((3 + i % 2) * PAGE), i);
        smmu_drop(&smmu);
        smmu.device = NULL;
        cr_assert_eq(load(machine.ctx, 0, 1, &value), BB_E_DECODE);
        page_set(1, 0, (4 - i % 2) * PAGE | MAPPED);
        smmu_make(&smmu, "smmu", bus, machine.mmio);
    }
}

Test(engine_iommu, an_invalidation_is_refused_where_it_would_have_to_wait)
{
    struct bb_error err = {0};

    bb_rcu_read_lock(machine.ctx);
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, smmu.region, 0, 0, &err), BB_E_CONTEXT);
    bb_rcu_read_unlock(machine.ctx);
    cr_assert_eq(bb_iommu_invalidate_wait(machine.ctx, smmu.region, 0, 0, &err), BB_OK);
}
