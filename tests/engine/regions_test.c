/* SPDX-License-Identifier: MIT */
/* Removal and adoption of regions of every kind, and what their removal waits for. */
#include "fixture.h"

#include <string.h>

#include "../../engine/dma.h"
#include "../../memory/listener.h"
#include "../../memory/ram.h"

static struct machine machine;
static struct probe a;
static unsigned done_calls;

static void setup(void)
{
    struct bb_engine_config config = {.clock_mode = BB_CLOCK_MANUAL, .external_lock = outer_hooks};

    machine_make(&machine, &config);
    a = (struct probe){0};
    bb_store_relaxed(&done_calls, 0);
}

static void teardown(void)
{
    machine_drop(&machine);
}

TestSuite(regions, .init = setup, .fini = teardown, .timeout = 60);
TestSuite(regions_alone, .timeout = 60);

static void count_done(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_acq_rel(&done_calls, 1); /* pairs with wait_done() */
}

static void wait_done(unsigned calls)
{
    while (bb_load_acquire(&done_calls) < calls) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

static void wait_destroyed(struct probe *probe)
{
    while (bb_load_acquire(&probe->destroyed) == 0) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

/* Lets removals go as far as they can. Too little makes a test easier, never wrong. */
static void let_go_on(void)
{
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(bb_rcu_synchronize(machine.ctx), BB_OK);
    }
}

#define MADE(call)                                                                                 \
    do {                                                                                           \
        struct bb_error err = {0};                                                                 \
        cr_assert_eq(call, BB_OK, "%s: %s", #call, err.text);                                      \
    } while (0)

#define REFUSED(call, code, word)                                                                  \
    do {                                                                                           \
        struct bb_error err = {0};                                                                 \
        cr_assert_eq(call, code, "%s", #call);                                                     \
        cr_assert_not_null(strstr(err.text, word), "%s: %s", #call, err.text);                     \
    } while (0)

static struct bb_region *make_container(uint64_t bytes)
{
    struct bb_region *region;

    MADE(bb_container_create(machine.ctx, "box", bytes, &region, &err));
    return region;
}

static struct bb_region *make_ram(uint64_t bytes)
{
    struct bb_ram_config config = {.name = "dimm", .size_bytes = bytes};
    struct bb_region *region;

    MADE(bb_ram_create(machine.ctx, &config, &region, &err));
    return region;
}

static struct bb_region *make_alias(struct bb_region *target, uint64_t bytes)
{
    struct bb_alias_config config = {.name = "mirror", .target = target, .size_bytes = bytes};
    struct bb_region *region;

    MADE(bb_alias_create(machine.ctx, &config, &region, &err));
    return region;
}

static int read_at(bb_gpa_t gpa)
{
    uint64_t value;

    return bb_mmio_read(machine.ctx, machine.mmio, gpa, 4, &value);
}

#define BOX_GPA UINT64_C(0x90000000)
#define OTHER_GPA UINT64_C(0xa0000000)

/* Kinds. */

Test(regions, in_a_removed_container_are_in_no_place_and_can_be_put_into_another)
{
    struct bb_region *box = make_container(0x4000), *ram = make_ram(0x1000);

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    MADE(bb_space_unmap(machine.ctx, a.region, &err));
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, box, &err));
    MADE(bb_region_place(machine.ctx, box, 0, a.region, 0, &err));
    MADE(bb_region_place(machine.ctx, box, 0x2000, ram, 0, &err));
    cr_assert_eq(read_at(BOX_GPA), BB_OK);
    MADE(bb_region_remove_wait(machine.ctx, box, &err));
    cr_assert_eq(read_at(BOX_GPA), BB_E_DECODE);
    cr_assert_eq(read_at(BOX_GPA + 0x2000), BB_E_DECODE);
    box = make_container(0x4000);
    MADE(bb_region_place(machine.ctx, box, 0x1000, a.region, 0, &err));
    MADE(bb_region_place(machine.ctx, box, 0, ram, 0, &err));
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, box, &err));
    cr_assert_eq(read_at(BOX_GPA + 0x1000), BB_OK);
    cr_assert_eq(read_at(BOX_GPA), BB_OK);
    MADE(bb_region_remove_wait(machine.ctx, ram, &err));
    cr_assert_eq(read_at(BOX_GPA), BB_E_DECODE);
    probe_drop(&a);
    MADE(bb_region_remove_wait(machine.ctx, box, &err));
}

Test(regions, shown_by_aliases_leave_these_empty_when_they_are_removed)
{
    struct bb_region *ram = make_ram(0x1000);
    struct bb_region *alias = make_alias(ram, 0x1000), *second = make_alias(alias, 0x1000);

    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, alias, &err));
    MADE(bb_space_map(machine.ctx, machine.mmio, OTHER_GPA, second, &err));
    cr_assert_eq(read_at(OTHER_GPA), BB_OK);
    MADE(bb_region_remove_wait(machine.ctx, ram, &err));
    cr_assert_eq(read_at(BOX_GPA), BB_E_DECODE);
    cr_assert_eq(read_at(OTHER_GPA), BB_E_DECODE);
    MADE(bb_region_remove_wait(machine.ctx, alias, &err));
    MADE(bb_region_remove_wait(machine.ctx, second, &err));
}

Test(regions, of_no_device_are_removed_once)
{
    struct bb_region *box = make_container(0x1000);

    bb_rcu_read_lock(machine.ctx);
    MADE(bb_region_remove(machine.ctx, box, count_done, NULL, &err));
    REFUSED(bb_region_remove(machine.ctx, box, count_done, NULL, &err), BB_E_STATE, "box");
    bb_rcu_read_unlock(machine.ctx);
    wait_done(1);
    cr_assert_eq(bb_load_acquire(&done_calls), 1);
}

Test(regions, that_are_roots_are_neither_removed_nor_adopted)
{
    struct bb_region *root = bb_space_root(machine.mmio);

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    REFUSED(bb_region_remove(machine.ctx, root, NULL, NULL, &err), BB_E_INVAL, "mmio");
    REFUSED(bb_region_remove(machine.ctx, root, NULL, NULL, &err), BB_E_INVAL, "mmio");
    REFUSED(bb_device_adopt(machine.ctx, a.device, root, &err), BB_E_INVAL, "root");
    cr_assert_eq(read_at(a.gpa), BB_OK);
    probe_drop(&a);
}

/* Adoption. */

static void count_region(void *opaque, const struct bb_region *region)
{
    (void)region;
    ++*(unsigned *)opaque;
}

Test(regions, that_a_device_has_adopted_go_with_it)
{
    struct bb_region *box = make_container(0x4000), *ram = make_ram(0x1000), *reserved;
    struct bb_region *alias = make_alias(ram, 0x1000);
    unsigned regions = 0;

    MADE(bb_reserved_create(machine.ctx, "hole", 0x1000, &reserved, &err));
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, box, &err));
    MADE(bb_region_place(machine.ctx, box, 0, ram, 0, &err));
    MADE(bb_region_place(machine.ctx, box, 0x1000, alias, 0, &err));
    MADE(bb_region_place(machine.ctx, box, 0x2000, reserved, 0, &err));
    cr_assert_null(bb_region_device(ram));
    MADE(bb_device_adopt(machine.ctx, a.device, box, &err));
    MADE(bb_device_adopt(machine.ctx, a.device, ram, &err));
    MADE(bb_device_adopt(machine.ctx, a.device, alias, &err));
    MADE(bb_device_adopt(machine.ctx, a.device, reserved, &err));
    cr_assert_eq(bb_region_device(ram), a.device);
    bb_device_each_region(machine.ctx, a.device, count_region, &regions);
    cr_assert_eq(regions, 5);
    cr_assert_eq(read_at(BOX_GPA + 0x1000), BB_OK, "it is as it was");
    probe_drop(&a); /* and machine_drop() finds nothing left */
    cr_assert_eq(read_at(BOX_GPA), BB_E_DECODE);
}

static struct bb_region *leaving_ram;
static int adopted_meanwhile;

/* A cancel hook: the device's removal has begun. */
static void adopt_meanwhile(struct probe *probe)
{
    adopted_meanwhile = bb_device_adopt(machine.ctx, probe->device, leaving_ram, NULL);
}

Test(regions, are_adopted_by_one_device_and_only_while_neither_is_going)
{
    struct machine other;
    struct probe b = {0};
    struct bb_region *theirs;
    struct bb_ram_config config = {.name = "theirs", .size_bytes = 0x1000};

    leaving_ram = make_ram(0x1000);
    a.cancel = adopt_meanwhile;
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
    REFUSED(bb_device_adopt(machine.ctx, b.device, a.region, &err), BB_E_EXIST, "device a");
    REFUSED(bb_device_adopt(machine.ctx, a.device, a.region, &err), BB_E_EXIST, "device a");
    REFUSED(bb_device_adopt(machine.ctx, NULL, leaving_ram, &err), BB_E_INVAL, "device");
    REFUSED(bb_device_adopt(machine.ctx, a.device, NULL, &err), BB_E_INVAL, "region");
    machine_make(&other, NULL);
    MADE(bb_ram_create(other.ctx, &config, &theirs, &err));
    REFUSED(bb_device_adopt(machine.ctx, a.device, theirs, &err), BB_E_INVAL, "theirs");
    REFUSED(bb_region_remove(machine.ctx, theirs, NULL, NULL, &err), BB_E_INVAL, "theirs");
    MADE(bb_region_remove_wait(other.ctx, theirs, &err));
    machine_drop(&other);

    probe_drop(&a);
    cr_assert_eq(adopted_meanwhile, BB_E_STATE);
    bb_rcu_read_lock(machine.ctx);
    MADE(bb_region_remove(machine.ctx, leaving_ram, count_done, NULL, &err));
    REFUSED(bb_device_adopt(machine.ctx, b.device, leaving_ram, &err), BB_E_STATE, "dimm");
    bb_rcu_read_unlock(machine.ctx);
    wait_done(1);
    probe_drop(&b);
}

Test(regions, that_were_adopted_can_be_removed_by_themselves)
{
    struct bb_region *box = make_container(0x1000), *ram = make_ram(0x1000);
    unsigned regions = 0;

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    MADE(bb_device_adopt(machine.ctx, a.device, box, &err));
    MADE(bb_device_adopt(machine.ctx, a.device, ram, &err));
    MADE(bb_region_remove_wait(machine.ctx, box, &err));
    bb_device_each_region(machine.ctx, a.device, count_region, &regions);
    cr_assert_eq(regions, 2);
    bb_rcu_read_lock(machine.ctx);
    MADE(bb_region_remove(machine.ctx, ram, count_done, NULL, &err));
    REFUSED(bb_region_remove(machine.ctx, ram, NULL, NULL, &err), BB_E_STATE, "dimm");
    bb_rcu_read_unlock(machine.ctx);
    probe_drop(&a);
    wait_done(1);
}

/* What removal waits for. */

static struct bb_dma_mapping *map_at(bb_gpa_t gpa)
{
    struct bb_dma_mapping *mapping;
    uint64_t length = 64;

    MADE(bb_dma_map(machine.ctx, machine.mmio, gpa, &length, BB_DMA_BOTH, (struct bb_attrs){0},
                    &mapping, &err));
    cr_assert_eq(length, 64);
    cr_assert(!bb_dma_bounced(mapping));
    return mapping;
}

/* Writes and reads what is mapped: a sanitizer, or the processor, minds if it is gone. */
static void use_mapping(struct bb_dma_mapping *mapping)
{
    memset(bb_dma_host(mapping), 0x5a, 64);
    cr_assert_eq(((uint8_t *)bb_dma_host(mapping))[63], 0x5a);
}

Test(regions, of_memory_stay_until_it_is_no_longer_mapped)
{
    struct bb_region *ram = make_ram(0x1000);

    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, ram, &err));
    struct bb_dma_mapping *mapping = map_at(BOX_GPA);
    MADE(bb_region_remove(machine.ctx, ram, count_done, NULL, &err));
    cr_assert_eq(read_at(BOX_GPA), BB_E_DECODE);
    let_go_on();
    cr_assert_eq(bb_load_acquire(&done_calls), 0, "complete, but mapped");
    use_mapping(mapping);
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 64), BB_OK);
    wait_done(1);
}

Test(regions, of_memory_keep_the_device_that_adopted_them_until_they_are_no_longer_mapped)
{
    for (unsigned mapped_first = 0; mapped_first < 2; mapped_first++) {
        struct bb_region *ram = make_ram(0x1000);
        struct bb_dma_mapping *mapping;

        a = (struct probe){0};
        probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
        MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, ram, &err));
        if (mapped_first == 1) {
            mapping = map_at(BOX_GPA);
            MADE(bb_device_adopt(machine.ctx, a.device, ram, &err));
        } else {
            MADE(bb_device_adopt(machine.ctx, a.device, ram, &err));
            mapping = map_at(BOX_GPA);
        }
        MADE(bb_device_remove(machine.ctx, a.device, NULL, NULL, &err));
        let_go_on();
        cr_assert_eq(bb_load_acquire(&a.destroyed), 0, "destroyed, but its memory is mapped");
        use_mapping(mapping);
        cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 64), BB_OK);
        wait_destroyed(&a);
    }
}

Test(regions, of_memory_that_are_going_by_themselves_keep_the_device_that_adopted_them)
{
    struct bb_region *ram = make_ram(0x1000);

    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, ram, &err));
    MADE(bb_device_adopt(machine.ctx, a.device, ram, &err));
    struct bb_dma_mapping *mapping = map_at(BOX_GPA);
    MADE(bb_region_remove(machine.ctx, ram, count_done, NULL, &err));
    MADE(bb_device_remove(machine.ctx, a.device, NULL, NULL, &err));
    let_go_on();
    cr_assert_eq(bb_load_acquire(&done_calls), 0);
    cr_assert_eq(bb_load_acquire(&a.destroyed), 0);
    use_mapping(mapping);
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 64), BB_OK);
    wait_done(1);
    wait_destroyed(&a);
}

Test(regions, of_rom_devices_stay_until_their_memory_is_no_longer_mapped)
{
    struct bb_region_config config = {.rom_device = true, .size_bytes = 0x1000};
    struct bb_dma_mapping *mapping;
    uint64_t length = 64;

    probe_make_config(&machine, &a, "flash", 0, &config);
    MADE(bb_dma_map(machine.ctx, machine.mmio, a.gpa, &length, BB_DMA_FROM_GUEST,
                    (struct bb_attrs){0}, &mapping, &err));
    cr_assert(!bb_dma_bounced(mapping));
    MADE(bb_region_remove(machine.ctx, a.region, count_done, NULL, &err));
    let_go_on();
    cr_assert_eq(bb_load_acquire(&done_calls), 0);
    cr_assert_eq(*(uint8_t *)bb_dma_host(mapping), 0);
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 0), BB_OK);
    wait_done(1);
    probe_drop(&a);
}

/* A callback that sleeps until it is told to go on. */
static struct door inside, leave;

static int sleep_inside(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                        uint64_t value)
{
    (void)ctx, (void)probe, (void)offset, (void)size, (void)value;
    door_open(&inside);
    door_wait(&leave);
    return BB_OK;
}

static void write_a(struct bb_ctx *ctx, void *arg)
{
    (void)arg;
    if (bb_mmio_write(ctx, machine.mmio, a.gpa, 4, 0) != BB_OK) {
        abort();
    }
}

Test(regions, and_devices_stay_while_a_callback_of_theirs_sleeps)
{
    for (unsigned device = 0; device < 2; device++) {
        struct worker worker;

        inside = (struct door)DOOR_INIT;
        leave = (struct door)DOOR_INIT;
        bb_store_relaxed(&done_calls, 0);
        a = (struct probe){.write = sleep_inside};
        probe_make(&machine, &a, "a", 0, BB_CLASS_MAY_SLEEP);
        worker_start(&worker, &machine, "sleeper", write_a, NULL);
        door_wait(&inside);
        if (device == 1) {
            MADE(bb_device_remove(machine.ctx, a.device, count_done, NULL, &err));
        } else {
            MADE(bb_region_remove(machine.ctx, a.region, count_done, NULL, &err));
        }
        cr_assert_eq(read_at(a.gpa), BB_E_DECODE);
        let_go_on();
        cr_assert_eq(bb_load_acquire(&done_calls), 0);
        cr_assert_eq(bb_load_acquire(&a.destroyed), 0);
        door_open(&leave);
        wait_done(1);
        worker_join(&worker);
        if (device == 0) {
            probe_drop(&a);
        }
    }
}

static unsigned told; /* (a) ranges taken away */

static void count_told(void *opaque, const struct bb_range *range)
{
    (void)opaque, (void)range;
    (void)bb_fetch_add_relaxed(&told, 1); /* a counter */
}

static struct bb_listener *listen(void)
{
    static const struct bb_listener_ops ops = {.removed = count_told};
    struct bb_listener_config config = {.name = "ear", .space = machine.mmio, .ops = &ops};
    struct bb_listener *listener;

    bb_store_relaxed(&told, 0);
    MADE(bb_listener_add(machine.ctx, &config, &listener, &err));
    return listener;
}

/* Waits without calling the engine, as a thread does that leaves it to others to go on. */
static bool done_comes(void)
{
    uint64_t end = host_ns() + UINT64_C(20000000000);

    while (bb_load_acquire(&done_calls) == 0 && host_ns() < end) {
    }
    return bb_load_acquire(&done_calls) == 1;
}

Test(regions, removed_in_a_section_are_told_of_and_gone_though_the_thread_does_nothing_more)
{
    struct bb_region *ram = make_ram(0x1000);
    struct bb_listener *listener = listen();

    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, ram, &err));
    bb_rcu_read_lock(machine.ctx);
    MADE(bb_region_remove(machine.ctx, ram, count_done, NULL, &err));
    bb_rcu_read_unlock(machine.ctx);
    cr_assert(done_comes());
    cr_assert_eq(bb_load_relaxed(&told), 1);
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    bb_store_relaxed(&done_calls, 0);
    bb_rcu_read_lock(machine.ctx);
    MADE(bb_device_remove(machine.ctx, a.device, count_done, NULL, &err));
    bb_rcu_read_unlock(machine.ctx);
    cr_assert(done_comes());
    cr_assert_eq(bb_load_relaxed(&told), 2);
    MADE(bb_listener_remove(machine.ctx, listener, &err));
}

static int wait_for_removal_inside(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                   unsigned size, uint64_t value)
{
    (void)offset, (void)size, (void)value;
    return bb_region_remove(ctx, probe->arg, count_done, NULL, NULL) == BB_OK && done_comes()
               ? BB_OK
               : BB_E_DEVICE;
}

Test(regions, of_others_are_gone_while_the_callback_that_removed_them_sleeps)
{
    struct bb_listener *listener = listen();

    a = (struct probe){.write = wait_for_removal_inside, .arg = make_ram(0x1000)};
    probe_make(&machine, &a, "a", 0, BB_CLASS_MAY_SLEEP);
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, a.arg, &err));
    mmio_write(&machine, a.gpa, 4, 0);
    probe_drop(&a);
    MADE(bb_listener_remove(machine.ctx, listener, &err));
}

static int unmap_and_sleep(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                           uint64_t value)
{
    (void)offset, (void)size, (void)value;
    if (bb_space_unmap(ctx, probe->arg, NULL) != BB_OK) {
        abort();
    }
    door_open(&inside);
    door_wait(&leave);
    return BB_OK;
}

Test(regions, removed_in_a_section_do_not_wait_for_a_callback_that_has_unmapped_them_before)
{
    struct bb_region *ram = make_ram(0x1000);
    struct bb_listener *listener = listen();
    struct worker worker;

    inside = (struct door)DOOR_INIT;
    leave = (struct door)DOOR_INIT;
    a = (struct probe){.write = unmap_and_sleep, .arg = ram};
    probe_make(&machine, &a, "a", 0, BB_CLASS_MAY_SLEEP);
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, ram, &err));
    worker_start(&worker, &machine, "sleeper", write_a, NULL);
    door_wait(&inside); /* what it has done is still to be told, and pins the region */
    bb_rcu_read_lock(machine.ctx);
    MADE(bb_region_remove(machine.ctx, ram, count_done, NULL, &err));
    bb_rcu_read_unlock(machine.ctx);
    bool done = done_comes();
    door_open(&leave);
    worker_join(&worker);
    wait_done(1);
    cr_assert(done, "it waited for another thread's access to return");
    cr_assert_eq(bb_load_relaxed(&told), 1);
    probe_drop(&a);
    MADE(bb_listener_remove(machine.ctx, listener, &err));
}

static void read_wide(struct bb_ctx *ctx, void *arg)
{
    uint8_t bytes[16];

    while (bb_load_relaxed((unsigned *)arg) == 0) { /* a flag that ends it */
        if (bb_access_read(ctx, machine.mmio, 0, bytes, sizeof(bytes), (struct bb_attrs){0}) !=
            BB_OK) {
            abort();
        }
    }
}

Test(regions, of_memory_are_adopted_while_they_are_accessed)
{
    struct bb_device_config config = {.name = "owner"};
    struct bb_device *device;
    struct worker worker;
    unsigned stop = 0;

    worker_start(&worker, &machine, "reader", read_wide, &stop);
    for (unsigned i = 0; i < 20; i++) {
        struct bb_region *ram = make_ram(0x1000);
        MADE(bb_device_create(machine.ctx, &config, &device, &err));
        MADE(bb_region_place(machine.ctx, bb_space_root(machine.mmio), 0, ram, 1, &err));
        let_go_on();
        MADE(bb_device_adopt(machine.ctx, device, ram, &err));
        let_go_on();
        MADE(bb_device_remove_wait(machine.ctx, device, &err));
    }
    bb_store_relaxed(&stop, 1);
    worker_join(&worker);
}

static int result_inside;
static unsigned done_inside;

static int remove_region_inside(struct bb_ctx *ctx, struct probe *probe, uint64_t offset,
                                unsigned size, uint64_t value)
{
    (void)offset, (void)size, (void)value;
    result_inside = bb_region_remove(ctx, probe->region, count_done, NULL, NULL);
    uint64_t end = host_ns() + 5000000;
    while (host_ns() < end) { /* enough for a grace period that does not wait for us */
    }
    done_inside = bb_load_acquire(&done_calls);
    return BB_OK;
}

Test(regions, removed_in_their_own_callback_are_gone_after_it)
{
    for (unsigned klass = BB_CLASS_LOCKFREE; klass <= BB_CLASS_EXTERNAL_LOCK; klass++) {
        bb_store_relaxed(&done_calls, 0);
        a = (struct probe){.write = remove_region_inside};
        probe_make(&machine, &a, "a", 0, (enum bb_class)klass);
        mmio_write(&machine, a.gpa, 4, 0);
        cr_assert_eq(result_inside, BB_OK);
        cr_assert_eq(done_inside, 0, "class %u: complete in its own callback", klass);
        cr_assert_eq(read_at(a.gpa), BB_E_DECODE);
        wait_done(1);
        probe_drop(&a);
    }
}

/* No memory. */

static unsigned allocs_left = UINT32_MAX;

static void *failing_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    /* Relaxed: a countdown; who takes the last one does not matter. */
    unsigned left = bb_load_relaxed(&allocs_left);
    do {
        if (left == 0) {
            return NULL;
        }
    } while (left != UINT32_MAX && !bb_cas_relaxed(&allocs_left, &left, left - 1));
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void plain_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque, (void)bytes;
    free(memory);
}

Test(regions_alone, whose_removal_or_adoption_fails_for_want_of_memory_are_as_they_were)
{
    struct bb_allocator allocator = {failing_alloc, plain_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator, .clock_mode = BB_CLOCK_MANUAL};
    int device = BB_E_NOMEM, region = BB_E_NOMEM, adopted = BB_E_NOMEM;

    machine_make(&machine, &config);
    a = (struct probe){0};
    probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
    struct bb_region *box = make_container(0x4000), *ram = make_ram(0x1000);
    MADE(bb_space_map(machine.ctx, machine.mmio, BOX_GPA, box, &err));
    MADE(bb_region_place(machine.ctx, box, 0x1000, ram, 0, &err));
    for (unsigned n = 0; adopted != BB_OK; n++) {
        bb_store_relaxed(&allocs_left, n);
        adopted = bb_device_adopt(machine.ctx, a.device, box, NULL);
        bb_store_relaxed(&allocs_left, UINT32_MAX);
        cr_assert(adopted == BB_OK || adopted == BB_E_NOMEM, "%d", adopted);
    }
    for (unsigned n = 0; region != BB_OK; n++) {
        cr_assert_eq(read_at(BOX_GPA + 0x1000), BB_OK, "n %u", n);
        bb_store_relaxed(&allocs_left, n);
        region = bb_region_remove_wait(machine.ctx, ram, NULL);
        bb_store_relaxed(&allocs_left, UINT32_MAX);
        cr_assert(region == BB_OK || region == BB_E_NOMEM, "%d", region);
    }
    cr_assert_eq(read_at(BOX_GPA + 0x1000), BB_E_DECODE);
    ram = make_ram(0x1000);
    MADE(bb_region_place(machine.ctx, box, 0x2000, ram, 0, &err));
    for (unsigned n = 0; device != BB_OK; n++) {
        cr_assert_eq(read_at(a.gpa), BB_OK, "n %u", n);
        cr_assert_eq(read_at(BOX_GPA + 0x2000), BB_OK, "n %u", n);
        bb_store_relaxed(&allocs_left, n);
        device = bb_device_remove_wait(machine.ctx, a.device, NULL);
        bb_store_relaxed(&allocs_left, UINT32_MAX);
        cr_assert(device == BB_OK || device == BB_E_NOMEM, "%d", device);
    }
    cr_assert_eq(bb_load_acquire(&a.destroyed), 1);
    cr_assert_eq(read_at(a.gpa), BB_E_DECODE);
    MADE(bb_region_remove_wait(machine.ctx, ram, &err));
    machine_drop(&machine);
}
