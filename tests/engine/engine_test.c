/* SPDX-License-Identifier: MIT */
/* The engine object: configuration, destruction that names what is left, contexts, lock modes. */
#include "fixture.h"

#include <string.h>

#include "../../engine/dma.h"
#include "../../memory/dirty.h"
#include "../../memory/listener.h"

TestSuite(engine, .timeout = 60);

Test(engine, defaults_make_an_engine_that_gives_everything_back)
{
    for (unsigned i = 0; i < 20; i++) {
        struct machine machine;
        machine_make(&machine, NULL);
        machine_drop(&machine);
    }
}

Test(engine, bad_configurations_are_refused_with_the_value_named)
{
    struct bb_engine *engine;
    struct bb_error err = {0};
    struct bb_engine_config config = {.chain_effects_max = 5000};

    cr_assert_eq(bb_engine_create(&config, &engine, &err), BB_E_RANGE);
    cr_assert_not_null(strstr(err.text, "5000"), "%s", err.text);
    config = (struct bb_engine_config){.lock_mode = (enum bb_lock_mode)9};
    cr_assert_eq(bb_engine_create(&config, &engine, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "9"), "%s", err.text);
    config = (struct bb_engine_config){.clock_mode = (enum bb_clock_mode)7};
    cr_assert_eq(bb_engine_create(&config, &engine, &err), BB_E_INVAL);
    cr_assert_eq(bb_engine_create(NULL, NULL, &err), BB_E_INVAL);
}

Test(engine, an_external_lock_with_a_missing_hook_is_refused)
{
    struct bb_engine *engine;
    struct bb_error err = {0};
    struct bb_engine_config config = {0};

    config.external_lock.lock = (void (*)(void *))(uintptr_t)1;
    cr_assert_eq(bb_engine_create(&config, &engine, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "unlock"), "%s", err.text);
}

Test(engine, external_lock_regions_need_hooks)
{
    struct machine machine;
    struct bb_device *device;
    struct bb_region *region;
    struct bb_error err = {0};
    struct bb_device_config config = {.name = "old"};
    struct bb_region_ops ops = {0};
    struct bb_region_config old = {
        .name = "r", .size_bytes = 4, .ops = &ops, .klass = BB_CLASS_EXTERNAL_LOCK};

    machine_make(&machine, NULL);
    cr_assert_eq(bb_device_create(machine.ctx, &config, &device, NULL), BB_OK);
    cr_assert_eq(bb_device_region_create(machine.ctx, device, &old, &region, &err),
                 BB_E_UNSUPPORTED);
    cr_assert_not_null(strstr(err.text, "external_lock"), "%s", err.text);
    cr_assert_eq(bb_device_remove_wait(machine.ctx, device, NULL), BB_OK);
    machine_drop(&machine);
}

Test(engine, destruction_names_what_is_still_there_and_does_nothing)
{
    struct machine machine;
    struct probe probe = {0};
    struct bb_error err = {0};
    struct bb_line *line;
    struct bb_ctx *again;

    machine_make(&machine, NULL);
    cr_assert_eq(bb_engine_destroy(machine.engine, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "main"), "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine.engine, "again", &again, &err), BB_E_EXIST);
    probe_make(&machine, &probe, "left-over", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_line_create(machine.ctx, "left-line", NULL, &line, NULL), BB_OK);
    cr_assert_eq(bb_ctx_detach(machine.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine.engine, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "left-over"), "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine.engine, "main", &machine.ctx, &err), BB_OK);
    (void)mmio_read(&machine, probe.gpa, 4); /* it still works */
    probe_drop(&probe);
    cr_assert_eq(bb_ctx_detach(machine.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine.engine, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "left-line"), "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine.engine, "main", &machine.ctx, &err), BB_OK);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
    cr_assert_eq(bb_ctx_detach(machine.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine.engine, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "ram"), "%s", err.text);
    cr_assert_eq(bb_ctx_attach(machine.engine, "main", &machine.ctx, &err), BB_OK);
    machine_drop(&machine);
}

/* Destruction, refused with `word` in its text; the context is attached again after it. */
static void check_left(struct machine *machine, const char *word)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_ctx_detach(machine->ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine->engine, &err), BB_E_STATE, "nothing of %s", word);
    cr_assert_not_null(strstr(err.text, word), "'%s' is not in '%s'", word, err.text);
    cr_assert_eq(bb_ctx_attach(machine->engine, "main", &machine->ctx, &err), BB_OK);
}

Test(engine, destruction_names_regions_of_every_kind_and_mappings)
{
    struct machine machine;
    struct bb_region *region;
    struct bb_dma_mapping *mapping;
    uint64_t length = 64;

    machine_make(&machine, NULL);
    cr_assert_eq(bb_container_create(machine.ctx, "left-box", 1, &region, NULL), BB_OK);
    check_left(&machine, "left-box");
    cr_assert_eq(bb_region_remove_wait(machine.ctx, region, NULL), BB_OK);
    struct bb_alias_config alias = {.name = "left-alias", .target = machine.ram, .size_bytes = 1};
    cr_assert_eq(bb_alias_create(machine.ctx, &alias, &region, NULL), BB_OK);
    check_left(&machine, "left-alias");
    cr_assert_eq(bb_region_remove_wait(machine.ctx, region, NULL), BB_OK);
    cr_assert_eq(bb_reserved_create(machine.ctx, "left-hole", 1, &region, NULL), BB_OK);
    check_left(&machine, "left-hole");
    cr_assert_eq(bb_region_remove_wait(machine.ctx, region, NULL), BB_OK);

    cr_assert_eq(bb_dma_map(machine.ctx, machine.mmio, 0, &length, BB_DMA_BOTH,
                            (struct bb_attrs){0}, &mapping, NULL),
                 BB_OK);
    check_left(&machine, "mappings of guest memory are still there: 1");
    cr_assert_eq(bb_region_remove(machine.ctx, machine.ram, NULL, NULL, NULL), BB_OK);
    check_left(
        &machine,
        "mappings of guest memory are still there: 1"); /* would wait for ever for its removal */
    cr_assert_eq(bb_dma_unmap(machine.ctx, mapping, 0), BB_OK);
    cr_assert_eq(bb_ctx_detach(machine.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine.engine, NULL), BB_OK);
}

Test(engine, destruction_names_listeners_and_clients_of_dirty_logs)
{
    static const struct bb_listener_ops ops = {0};
    struct bb_listener_config config = {.name = "left-ear", .ops = &ops};
    struct machine machine;
    struct bb_listener *listener;
    struct bb_dirty_client *client;

    machine_make(&machine, NULL);
    config.space = machine.mmio;
    cr_assert_eq(bb_listener_add(machine.ctx, &config, &listener, NULL), BB_OK);
    cr_assert_eq(bb_dirty_client_create(machine.ctx, "left-log", &client, NULL), BB_OK);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, machine.ram, NULL), BB_OK);
    check_left(&machine, "left-ear");
    cr_assert_eq(bb_listener_remove(machine.ctx, listener, NULL), BB_OK);
    check_left(&machine, "left-log");
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client, NULL), BB_OK);
    cr_assert_eq(bb_ctx_detach(machine.ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(machine.engine, NULL), BB_OK);
}

Test(engine, contexts_of_two_engines_on_one_thread_keep_apart)
{
    struct machine one, two;
    struct probe probe = {0};
    uint64_t value;

    machine_make(&one, NULL);
    machine_make(&two, NULL);
    probe_make(&one, &probe, "only-in-one", 0, BB_CLASS_LOCKFREE);
    (void)mmio_read(&one, probe.gpa, 4);
    cr_assert_eq(bb_mmio_read(two.ctx, two.mmio, probe.gpa, 4, &value), BB_E_DECODE);
    cr_assert_eq(bb_engine_stats(one.ctx).unassigned_reads, 0);
    cr_assert_eq(bb_engine_stats(two.ctx).unassigned_reads, 1);
    probe_drop(&probe);
    machine_drop(&two);
    machine_drop(&one);
}

static void one_unassigned(struct bb_ctx *ctx, void *arg)
{
    struct machine *machine = arg;
    uint64_t value;

    (void)bb_mmio_read(ctx, machine->mmio, 0xf0000000, 4, &value);
}

Test(engine, counts_of_threads_that_are_gone_stay_in_the_sum)
{
    struct machine machine;
    struct worker worker;

    machine_make(&machine, NULL);
    for (unsigned i = 1; i <= 5; i++) {
        worker_start(&worker, &machine, "passing", one_unassigned, &machine);
        worker_join(&worker);
        cr_assert_eq(bb_engine_stats(machine.ctx).unassigned_reads, i);
    }
    machine_drop(&machine);
}

static int check_alone(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    unsigned *inside = probe->arg;

    (void)ctx;
    (void)offset;
    (void)size;
    (void)value;
    if (bb_fetch_add_relaxed(inside, 1) != 0) {
        probe->destroyed = 99;
    }
    (void)bb_fetch_add_relaxed(inside, -1);
    return BB_OK;
}

static void write_probe(struct bb_ctx *ctx, void *arg)
{
    struct probe *probe = arg;

    for (unsigned i = 0; i < 20000; i++) {
        if (bb_mmio_write(ctx, probe->machine->mmio, probe->gpa, 4, i) != BB_OK) {
            abort();
        }
    }
}

Test(engine, lock_modes_really_lock)
{
    for (unsigned mode = BB_LOCK_DEVICE; mode <= BB_LOCK_BIG; mode++) {
        struct machine machine;
        struct bb_engine_config config = {.lock_mode = (enum bb_lock_mode)mode};
        unsigned inside = 0;
        struct probe a = {.write = check_alone, .arg = &inside};
        struct probe b = {.write = check_alone, .arg = &inside};
        struct worker one, two;

        machine_make(&machine, &config);
        probe_make(&machine, &a, "a", 0, BB_CLASS_LOCKFREE);
        probe_make(&machine, &b, "b", 1, BB_CLASS_LOCKFREE);
        worker_start(&one, &machine, "one", write_probe, &a);
        /* One device under a lock of its own; any two under the big one. */
        worker_start(&two, &machine, "two", write_probe, mode == BB_LOCK_BIG ? &b : &a);
        worker_join(&one);
        worker_join(&two);
        cr_assert_neq(a.destroyed, 99);
        cr_assert_neq(b.destroyed, 99);
        probe_drop(&a);
        probe_drop(&b);
        machine_drop(&machine);
    }
}

Test(engine, a_thread_that_ends_without_detaching_is_detached)
{
    struct machine machine;
    struct worker worker;

    machine_make(&machine, NULL);
    worker_start(&worker, &machine, "ends", one_unassigned, &machine);
    worker_join(&worker);
    machine_drop(&machine); /* would name the thread */
}

static unsigned external_allocs;

static void *counted_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    (void)bb_fetch_add_relaxed(&external_allocs, 1);
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void counted_free(void *opaque, void *memory, size_t bytes)
{
    (void)opaque;
    (void)bytes;
    (void)bb_fetch_sub_release(&external_allocs, 1);
    free(memory);
}

Test(engine, an_embedders_allocator_is_used_and_gets_everything_back)
{
    struct bb_allocator allocator = {counted_alloc, counted_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};
    struct machine machine;

    machine_make(&machine, &config);
    /* Relaxed: bb-reclaim frees meanwhile; any count will do. */
    cr_assert_gt(bb_load_relaxed(&external_allocs), 0);
    machine_drop(&machine);
    cr_assert_eq(external_allocs, 0);
}

static unsigned allocs_left;

static void *failing_alloc(void *opaque, size_t bytes, size_t align)
{
    (void)opaque;
    /* Relaxed: a countdown; who takes the last one does not matter. */
    unsigned left = bb_load_relaxed(&allocs_left);
    do {
        if (left == 0) {
            return NULL;
        }
    } while (!bb_cas_relaxed(&allocs_left, &left, left - 1));
    return counted_alloc(NULL, bytes, align);
}

Test(engine, running_out_of_memory_at_any_allocation_of_creation_leaves_nothing_behind)
{
    struct bb_allocator allocator = {failing_alloc, counted_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};
    bool made = false;

    for (unsigned n = 0; !made && n < 200; n++) {
        struct bb_engine *engine;
        struct bb_error err = {0};

        bb_store_relaxed(&allocs_left, n);
        int result = bb_engine_create(&config, &engine, &err);
        if (result == BB_OK) {
            made = true;
            cr_assert_eq(bb_engine_destroy(engine, &err), BB_OK, "%s", err.text);
        } else {
            cr_assert_eq(result, BB_E_NOMEM, "n %u: %d %s", n, result, err.text);
        }
        cr_assert_eq(external_allocs, 0, "%u allocations: %u left behind", n, external_allocs);
    }
    cr_assert(made);
}

Test(engine, and_its_contexts_are_made_whole_or_not_at_all)
{
    struct bb_allocator allocator = {failing_alloc, counted_free, NULL};
    struct bb_engine_config config = {.allocator = &allocator};
    struct bb_engine *engine;
    struct bb_ctx *ctx = NULL;
    int result = BB_E_NOMEM;

    bb_store_relaxed(&allocs_left, 1000000);
    cr_assert_eq(bb_engine_create(&config, &engine, NULL), BB_OK);
    for (unsigned n = 0; result != BB_OK && n < 20; n++) {
        struct bb_error err = {0};

        bb_store_relaxed(&allocs_left, n);
        result = bb_ctx_attach(engine, "main", &ctx, &err);
        cr_assert(result == BB_OK || (result == BB_E_NOMEM && err.text[0] != '\0'), "n %u: %d", n,
                  result);
    }
    cr_assert_eq(result, BB_OK);
    cr_assert_eq(bb_ctx_detach(ctx, NULL), BB_OK);
    cr_assert_eq(bb_engine_destroy(engine, NULL), BB_OK);
    cr_assert_eq(external_allocs, 0);
}
