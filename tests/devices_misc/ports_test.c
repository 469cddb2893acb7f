/* SPDX-License-Identifier: MIT */
/* Debug exit, fw_cfg, i8042 and PCI configuration: the sequences by which guests probe them. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

Test(debug_exit, each_write_calls_once_with_its_width_of_code)
{
    struct rig *rig = set_up();

    out_sized(rig, 0xf4, 4, 0x12345678);
    cr_assert_eq(rig->exits, 1);
    cr_assert_eq(rig->exit_code, 0x12345678);
    out_sized(rig, 0xf4, 2, 0xabcd);
    cr_assert_eq(rig->exit_code, 0xabcd);
    outb(rig, 0xf4, 0x31);
    cr_assert_eq(rig->exit_code, 0x31);
    cr_assert_eq(rig->exits, 3);
    cr_assert_eq(in_sized(rig, 0xf4, 4), 0);
    cr_assert_eq(rig->exits, 3, "reading is no exit");
    tear_down(rig);
}

Test(debug_exit, needs_somebody_to_tell)
{
    struct rig *rig = set_up();
    struct bb_debug_exit *dev = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_debug_exit_create(rig->ctx, NULL, &dev, &err), BB_E_INVAL);
    cr_assert_eq(bb_debug_exit_create(rig->ctx, &(struct bb_debug_exit_config){0}, &dev, &err),
                 BB_E_INVAL);
    cr_assert_null(dev);
    tear_down(rig);
}

static uint64_t fw_cfg_item(struct rig *rig, uint16_t key, unsigned bytes)
{
    uint64_t value = 0;

    out_sized(rig, 0x510, 2, key);
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)inb(rig, 0x511) << 8 * i;
    }
    return value;
}

Test(fw_cfg, a_guest_finds_signature_interface_cpus_and_memory)
{
    struct rig *rig = set_up();
    const uint8_t words[] = {1, 2, 3};
    struct bb_error err = {0};

    cr_assert_eq(bb_fw_cfg_add(rig->ctx, rig->fw_cfg, 0x8003, words, 3, &err), BB_OK, "%s",
                 err.text);
    map_fw_cfg(rig);
    cr_assert_eq(fw_cfg_item(rig, 0, 4), 0x554d4551, "QEMU");
    cr_assert_eq(fw_cfg_item(rig, 1, 4), 1, "no DMA");
    cr_assert_eq(fw_cfg_item(rig, 5, 2), CPUS);
    cr_assert_eq(fw_cfg_item(rig, 3, 8), RAM_BYTES);
    cr_assert_eq(fw_cfg_item(rig, 0x19, 4), 0, "no files");
    cr_assert_eq(fw_cfg_item(rig, 0x8003, 8), 0x030201, "zeros past the end");
    cr_assert_eq(fw_cfg_item(rig, 0x77, 8), 0, "not there");
    tear_down(rig);
}

Test(fw_cfg, reading_goes_on_where_it_was_and_selecting_starts_again)
{
    struct rig *rig = set_up();

    map_fw_cfg(rig);
    out_sized(rig, 0x510, 2, 0);
    cr_assert_eq(inb(rig, 0x511), 'Q');
    cr_assert_eq(inb(rig, 0x511), 'E');
    outb(rig, 0x510, 5);
    outb(rig, 0x511, 5);
    cr_assert_eq(inb(rig, 0x511), 'M', "byte writes select nothing");
    out_sized(rig, 0x510, 2, 0);
    cr_assert_eq(inb(rig, 0x511), 'Q');
    tear_down(rig);
}

Test(fw_cfg, items_that_cannot_be_are_refused)
{
    struct rig *rig = set_up();
    struct bb_error err = {0};

    cr_assert_eq(bb_fw_cfg_add(rig->ctx, rig->fw_cfg, 0, "x", 1, &err), BB_E_EXIST);
    cr_assert_eq(bb_fw_cfg_add(rig->ctx, rig->fw_cfg, 0x4100, "x", 1, &err), BB_E_RANGE);
    cr_assert_eq(
        bb_fw_cfg_add(rig->ctx, rig->fw_cfg, 0x100, "x", BB_FW_CFG_ITEM_BYTES_MAX + 1, &err),
        BB_E_RANGE);
    int result = BB_OK;
    for (uint16_t key = 0x100; result == BB_OK && key < 0x200; key++) {
        result = bb_fw_cfg_add(rig->ctx, rig->fw_cfg, key, NULL, 0, &err);
    }
    cr_assert_eq(result, BB_E_LIMIT);
    map_fw_cfg(rig);
    cr_assert_eq(fw_cfg_item(rig, 0x100, 4), 0, "an empty item");
    tear_down(rig);
}

struct reader {
    struct rig *rig;
    uint64_t until_ns;
    uint32_t *counts; /* (a) by byte */
};

static void *read_bytes(void *opaque)
{
    struct reader *reader = opaque;
    struct bb_ctx *ctx;
    uint64_t value;

    if (bb_ctx_attach(reader->rig->engine, "reader", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    do {
        (void)bb_mmio_read(ctx, reader->rig->ports, 0x511, 1, &value);
        (void)bb_fetch_add_relaxed(&reader->counts[value & 0xff], 1);
    } while (value != 0);
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(fw_cfg, concurrent_readers_share_an_item_byte_for_byte)
{
    static uint8_t item[255 * 100];
    static uint32_t counts[256];
    struct rig *rig = set_up();
    struct reader readers[3];
    pthread_t threads[3];

    for (size_t i = 0; i < sizeof(item); i++) {
        item[i] = (uint8_t)(i % 255 + 1);
    }
    cr_assert_eq(bb_fw_cfg_add(rig->ctx, rig->fw_cfg, 0x200, item, sizeof(item), NULL), BB_OK);
    map_fw_cfg(rig);
    out_sized(rig, 0x510, 2, 0x200);
    for (unsigned i = 0; i < 3; i++) {
        readers[i] = (struct reader){.rig = rig, .counts = counts};
        cr_assert_eq(pthread_create(&threads[i], NULL, read_bytes, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    for (unsigned byte = 1; byte < 256; byte++) {
        cr_assert_eq(counts[byte], 100, "byte %u came %u times", byte, counts[byte]);
    }
    tear_down(rig);
}

Test(i8042, a_driver_finds_a_controller_without_devices)
{
    struct rig *rig = set_up();

    cr_assert_eq(inb(rig, 0x64), 0x10, "empty, keylock open");
    outb(rig, 0x64, 0xad);
    outb(rig, 0x64, 0xa7);
    (void)inb(rig, 0x60);
    outb(rig, 0x64, 0x20);
    cr_assert_eq(inb(rig, 0x64) & 0x01, 0x01);
    uint8_t ctr = inb(rig, 0x60);
    cr_assert_eq(ctr & 0x30, 0x30, "both ports off");
    cr_assert_eq(inb(rig, 0x64) & 0x01, 0x00, "taken");
    outb(rig, 0x64, 0x60);
    outb(rig, 0x60, 0x44);
    outb(rig, 0x64, 0x20);
    cr_assert_eq(inb(rig, 0x60), 0x44);
    outb(rig, 0x64, 0xaa);
    cr_assert_eq(inb(rig, 0x60), 0x55, "self test");
    cr_assert_eq(inb(rig, 0x64) & 0x04, 0x04, "system flag");
    outb(rig, 0x64, 0xab);
    cr_assert_eq(inb(rig, 0x60), 0x00, "keyboard port test");
    outb(rig, 0x64, 0xd3);
    outb(rig, 0x60, 0x5a);
    cr_assert_eq(inb(rig, 0x64) & 0x21, 0x21, "loop of the auxiliary port");
    cr_assert_eq(inb(rig, 0x60), 0x5a);
    outb(rig, 0x60, 0xff);
    cr_assert_eq(inb(rig, 0x64) & 0x41, 0x41, "the keyboard doesn't answer");
    cr_assert_eq(inb(rig, 0x60), 0xfe);
    outb(rig, 0x64, 0xd4);
    outb(rig, 0x60, 0xf2);
    cr_assert_eq(inb(rig, 0x64) & 0x61, 0x61, "nor the auxiliary device");
    cr_assert_eq(inb(rig, 0x60), 0xfe);
    cr_assert_eq(rig->resets, 0);
    tear_down(rig);
}

Test(i8042, reset_is_asked_for_in_both_ways)
{
    struct rig *rig = set_up();

    outb(rig, 0x64, 0xfe);
    cr_assert_eq(rig->resets, 1);
    outb(rig, 0x64, 0xff);
    cr_assert_eq(rig->resets, 1, "pulses nothing");
    outb(rig, 0x64, 0xd1);
    outb(rig, 0x60, 0xdf);
    cr_assert_eq(rig->resets, 1, "A20 on");
    outb(rig, 0x64, 0xd0);
    cr_assert_eq(inb(rig, 0x60) & 0x03, 0x03);
    outb(rig, 0x64, 0xd1);
    outb(rig, 0x60, 0xfe);
    cr_assert_eq(rig->resets, 2);
    tear_down(rig);
}

static uint32_t pci_read(struct rig *rig, unsigned bus, unsigned device, unsigned function,
                         unsigned reg, unsigned size)
{
    out_sized(rig, 0xcf8, 4, 0x80000000 | bus << 16 | device << 11 | function << 8 | (reg & 0xfc));
    return in_sized(rig, 0xcfc + (reg & 3), size);
}

Test(pci_config, a_scan_finds_one_host_bridge)
{
    struct rig *rig = set_up();
    unsigned found = 0;

    out_sized(rig, 0xcf8, 4, 0x80000000);
    cr_assert_eq(in_sized(rig, 0xcf8, 4), 0x80000000, "how Linux tells mechanism #1");
    for (unsigned bus = 0; bus < 256; bus++) {
        for (unsigned device = 0; device < 32; device++) {
            found += pci_read(rig, bus, device, 0, 0, 4) != 0xffffffff;
        }
    }
    cr_assert_eq(found, 1);
    cr_assert_eq(pci_read(rig, 0, 0, 0, 0x00, 4), 0x12378086);
    cr_assert_eq(pci_read(rig, 0, 0, 0, 0x0a, 2), 0x0600, "a host bridge");
    cr_assert_eq(pci_read(rig, 0, 0, 0, 0x0e, 1), 0x00, "one function");
    cr_assert_eq(pci_read(rig, 0, 0, 1, 0x00, 4), 0xffffffff);
    cr_assert_eq(pci_read(rig, 0, 0, 0, 0xfc, 4), 0x00000000, "the last register");
    tear_down(rig);
}

Test(pci_config, nothing_is_reached_while_disabled_or_by_narrow_addresses)
{
    struct rig *rig = set_up();

    out_sized(rig, 0xcf8, 4, 0x00000000);
    cr_assert_eq(in_sized(rig, 0xcfc, 4), 0xffffffff);
    outb(rig, 0xcfb, 0x80);
    cr_assert_eq(in_sized(rig, 0xcf8, 4), 0x00000000);
    cr_assert_eq(inb(rig, 0xcf9), 0xff);
    out_sized(rig, 0xcf8, 4, 0xffffffff);
    cr_assert_eq(in_sized(rig, 0xcf8, 4), 0x80fffffc, "reserved bits read zero");
    out_sized(rig, 0xcf8, 4, 0x80000000);
    out_sized(rig, 0xcfc, 4, 0);
    cr_assert_eq(in_sized(rig, 0xcfc, 4), 0x12378086, "the header is read-only");
    tear_down(rig);
}
