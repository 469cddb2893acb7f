/* SPDX-License-Identifier: MIT */
/* Dirty logs under an engine: guests' writes, and RAM that is removed while it is logged. */
#include "../../memory/dirty.h"

#include "fixture.h"

TestSuite(engine_dirty);

static uint64_t taken(struct machine *machine, struct bb_dirty_client *client,
                      struct bb_region *region)
{
    uint64_t bitmap = 0;
    struct bb_error err = {0};

    cr_assert_eq(bb_dirty_sync_and_clear(machine->ctx, client, region, 0, bb_region_size(region),
                                         &bitmap, NULL, &err),
                 BB_OK, "%s", err.text);
    return bitmap;
}

Test(engine_dirty, a_guests_writes_of_every_size_are_logged)
{
    struct machine machine;
    struct bb_dirty_client *client;

    machine_make(&machine, NULL);
    cr_assert_eq(bb_dirty_client_create(machine.ctx, "client", &client, NULL), BB_OK);
    cr_assert_eq(bb_dirty_start(machine.ctx, client, machine.ram, NULL), BB_OK);
    for (unsigned size = 1; size <= 8; size *= 2) {
        mmio_write(&machine, BB_DIRTY_PAGE_BYTES * size, size, 1);
        cr_assert_eq(taken(&machine, client, machine.ram), BB_BIT64(size));
        (void)mmio_read(&machine, BB_DIRTY_PAGE_BYTES * size, size);
        cr_assert_eq(taken(&machine, client, machine.ram), 0);
    }
    mmio_write(&machine, 2 * BB_DIRTY_PAGE_BYTES - 3, 8, 1);
    cr_assert_eq(taken(&machine, client, machine.ram), 6);
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client, NULL), BB_OK);
    machine_drop(&machine);
}

Test(engine_dirty, ram_is_added_logged_and_removed_again_and_again)
{
    enum { TIMES = 20 };
    struct machine machine;
    struct bb_dirty_client *client[2];
    struct bb_ram_config config = {
        .name = "module", .size_bytes = 1 << 16, .backing = BB_RAM_MEMFD};
    const bb_gpa_t gpa = UINT64_C(1) << 32;

    machine_make(&machine, NULL);
    cr_assert_eq(bb_dirty_client_create(machine.ctx, "one", &client[0], NULL), BB_OK);
    cr_assert_eq(bb_dirty_client_create(machine.ctx, "two", &client[1], NULL), BB_OK);
    for (unsigned i = 0; i < TIMES; i++) {
        struct bb_region *module = NULL;
        struct bb_error err = {0};

        cr_assert_eq(bb_ram_create(machine.ctx, &config, &module, &err), BB_OK, "%s", err.text);
        cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, gpa, module, &err), BB_OK);
        for (unsigned c = 0; c < 1 + i % 2; c++) {
            cr_assert_eq(bb_dirty_start(machine.ctx, client[c], module, &err), BB_OK);
        }
        mmio_write(&machine, gpa + 3 * BB_DIRTY_PAGE_BYTES, 4, i);
        cr_assert_eq(taken(&machine, client[i % 2], module), BB_BIT64(3));
        cr_assert_eq(bb_region_remove_wait(machine.ctx, module, &err), BB_OK, "%s", err.text);
    }
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client[0], NULL), BB_OK);
    cr_assert_eq(bb_dirty_client_destroy(machine.ctx, client[1], NULL), BB_OK);
    machine_drop(&machine);
}
