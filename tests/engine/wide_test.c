/* SPDX-License-Identifier: MIT */
/*
 * Accesses of up to 64 bytes: whole, cut at the borders of regions and pages, refused, nested and
 * posted; what failed parts read; and how they are counted.
 */
#include <string.h>

#include "recorder.h"

static struct machine machine;

#define PATTERN_DECODE UINT64_C(0xd7d6d5d4d3d2d1d0)
#define PATTERN_DEVICE UINT64_C(0xe7e6e5e4e3e2e1e0)

static struct bb_space *patterned; /* failed reads yield these; shows all of the MMIO space */
static struct bb_region *all;

static void setup(void)
{
    struct bb_space_config config = {
        .name = "patterned",
        .decode_error = {.kind = BB_FILL_PATTERN, .pattern = PATTERN_DECODE},
        .device_error = {.kind = BB_FILL_PATTERN, .pattern = PATTERN_DEVICE}};
    struct bb_alias_config alias = {.name = "all", .size_bytes = BB_SIZE_ALL};
    struct bb_engine_config engine = {.external_lock = outer_hooks};
    struct bb_error err = {0};

    machine_make(&machine, &engine);
    alias.target = bb_space_root(machine.mmio);
    cr_assert_eq(bb_space_create(machine.ctx, &config, &patterned, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_alias_create(machine.ctx, &alias, &all, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine.ctx, patterned, 0, all, &err), BB_OK, "%s", err.text);
}

static void teardown(void)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_region_remove_wait(machine.ctx, all, &err), BB_OK, "%s", err.text);
    machine_drop(&machine);
}

TestSuite(wide, .init = setup, .fini = teardown, .timeout = 30);

static const struct bb_attrs nobody;

static int read_bytes(bb_gpa_t gpa, uint8_t *bytes, unsigned size)
{
    memset(bytes, 0xaa, 64);
    return bb_access_read(machine.ctx, patterned, gpa, bytes, size, nobody);
}

static int write_bytes(bb_gpa_t gpa, const uint8_t *bytes, unsigned size)
{
    return bb_access_write(machine.ctx, patterned, gpa, bytes, size, nobody);
}

static void count_up(uint8_t *bytes, uint8_t from)
{
    for (unsigned i = 0; i < 64; i++) {
        bytes[i] = (uint8_t)(from + i);
    }
}

/* Asserts that bytes [first, first + count) of an access are those of a failed one's. */
static void expect_fill(const uint8_t *bytes, unsigned first, unsigned count, uint64_t pattern)
{
    for (unsigned i = first; i < first + count; i++) {
        cr_assert_eq(bytes[i], (pattern >> (8 * (i % 8))) & 0xff, "byte %u is 0x%02x", i, bytes[i]);
    }
}

static struct bb_region_config config_of(uint8_t valid_max)
{
    return (struct bb_region_config){.klass = BB_CLASS_LOCKFREE, .rules.valid_max = valid_max};
}

Test(wide, every_class_and_endianness_sees_pieces_of_the_whole_in_rising_order)
{
    for (unsigned variant = 0; variant < 8; variant++) {
        struct bb_region_config config = {
            .klass = (enum bb_class)(variant / 2),
            .rules = {.valid_max = 64, .impl_max = 4, .endian = (enum bb_endian)(variant % 2)}};
        struct recorder device = {0};
        uint8_t bytes[64], found[64];

        recorder_make(&machine, &device, "device", variant, &config);
        for (unsigned size = 16; size <= 64; size *= 2) {
            count_up(bytes, 0x41);
            cr_assert_eq(write_bytes(device.gpa + 64, bytes, size), BB_OK);
            cr_assert_eq(device.count, size / 4);
            cr_assert_eq(memcmp(&device.bytes[64], bytes, size), 0);
            for (unsigned i = 0; i < size / 4; i++) {
                recorder_expect(&device, i, true, 64 + 4 * i, 4);
            }
            cr_assert_eq(device.record[0].value, variant % 2 != 0 ? 0x41424344 : 0x44434241);
            recorder_reset(&device);
            cr_assert_eq(read_bytes(device.gpa + 64, found, size), BB_OK);
            cr_assert_eq(memcmp(found, bytes, size), 0);
            for (unsigned i = 0; i < size / 4; i++) {
                recorder_expect(&device, i, false, 64 + 4 * i, 4);
            }
            recorder_reset(&device);
        }
        recorder_drop(&device);
    }
}

Test(wide, what_a_region_does_not_take_is_a_device_error_of_the_whole)
{
    uint8_t bytes[64];

    for (unsigned valid_max = 1; valid_max <= 64; valid_max *= 2) {
        struct bb_region_config config = config_of((uint8_t)valid_max);
        struct recorder device = {0};

        recorder_make(&machine, &device, "device", valid_max, &config);
        for (unsigned size = 1; size <= 64; size *= 2) {
            int wanted = size <= valid_max ? BB_OK : BB_E_DEVICE;

            recorder_reset(&device);
            cr_assert_eq(read_bytes(device.gpa, bytes, size), wanted, "%u of %u", size, valid_max);
            cr_assert_eq(device.count != 0, wanted == BB_OK);
            if (wanted != BB_OK) {
                expect_fill(bytes, 0, size, PATTERN_DEVICE);
            }
            recorder_reset(&device);
            cr_assert_eq(write_bytes(device.gpa, bytes, size), wanted);
            cr_assert_eq(device.count != 0, wanted == BB_OK);
        }
        /* Unaligned is not valid either. */
        if (valid_max > 1) {
            cr_assert_eq(read_bytes(device.gpa + 1, bytes, valid_max), BB_E_DEVICE);
        }
        recorder_drop(&device);
    }
}

Test(wide, sizes_that_are_no_power_of_two_are_cut_into_those_that_are)
{
    struct bb_region_config config = config_of(64);
    struct recorder device = {0};
    uint8_t bytes[64];

    config.ops = &recorder_ask_ops;
    config.rules.unaligned = true;
    recorder_make(&machine, &device, "device", 0, &config);
    cr_assert_eq(read_bytes(device.gpa, bytes, 61), BB_OK);
    cr_assert_eq(memcmp(bytes, device.bytes, 61), 0);
    cr_assert_eq(device.asked_count, 5);
    for (unsigned i = 0, at = 0; i < 5; i++) {
        static const unsigned pieces[] = {32, 16, 8, 4, 1};
        cr_assert_eq(device.asked[i].offset, at);
        cr_assert_eq(device.asked[i].size, pieces[i]);
        at += pieces[i];
    }
    recorder_drop(&device);
}

Test(wide, ram_takes_any_size_at_any_place)
{
    uint8_t bytes[64], found[64], model[256];

    for (unsigned size = 1; size <= 64; size++) {
        for (unsigned at = 0; at < 17; at++) {
            count_up(bytes, (uint8_t)(size + at));
            memset(machine.ram_host, 0, sizeof(model));
            memset(model, 0, sizeof(model));
            memcpy(&model[at], bytes, size);
            cr_assert_eq(write_bytes(at, bytes, size), BB_OK);
            cr_assert_eq(memcmp(machine.ram_host, model, sizeof(model)), 0);
            cr_assert_eq(read_bytes(at, found, size), BB_OK);
            cr_assert_eq(memcmp(found, bytes, size), 0);
            cr_assert(size == 64 || found[size] == 0xaa, "nothing behind it is written");
        }
    }
}

Test(wide, a_straddling_access_reaches_each_region_in_the_largest_pieces_that_fit)
{
    struct bb_region_config config = config_of(64);
    struct recorder low = {0}, high = {0};
    uint8_t bytes[64];
    struct bb_error err;

    config.ops = &recorder_ask_ops;
    config.rules.unaligned = true;
    recorder_make(&machine, &low, "low", 0, &config);
    recorder_make(&machine, &high, "high", 1, &config);
    cr_assert_eq(bb_region_move(machine.ctx, high.region, low.gpa + DEVICE_BYTES, &err), BB_OK);
    /* 24 bytes in one, 40 in the other. */
    cr_assert_eq(read_bytes(low.gpa + DEVICE_BYTES - 24, bytes, 64), BB_OK);
    cr_assert_eq(memcmp(bytes, &low.bytes[DEVICE_BYTES - 24], 24), 0);
    cr_assert_eq(memcmp(&bytes[24], high.bytes, 40), 0);
    cr_assert_eq(low.asked_count, 2);
    cr_assert_eq(low.asked[0].size, 16);
    cr_assert_eq(low.asked[1].size, 8);
    cr_assert_eq(high.asked_count, 2);
    cr_assert_eq(high.asked[0].size, 32);
    cr_assert_eq(high.asked[1].size, 8);

    count_up(bytes, 0x90);
    cr_assert_eq(write_bytes(low.gpa + DEVICE_BYTES - 3, bytes, 8), BB_OK);
    cr_assert_eq(memcmp(&low.bytes[DEVICE_BYTES - 3], bytes, 3), 0);
    cr_assert_eq(memcmp(high.bytes, &bytes[3], 5), 0);
    recorder_drop(&low);
    recorder_drop(&high);
}

Test(wide, from_ram_into_a_device_and_from_that_into_nothing)
{
    struct bb_region_config config = config_of(64);
    struct recorder device = {0};
    uint8_t bytes[64], ram[64];
    struct bb_error err;

    recorder_make(&machine, &device, "device", 0, &config);
    cr_assert_eq(bb_region_move(machine.ctx, device.region, RAM_BYTES, &err), BB_OK);
    count_up(ram, 0xc0);
    memcpy(&machine.ram_host[RAM_BYTES - 32], ram, 32);
    cr_assert_eq(read_bytes(RAM_BYTES - 32, bytes, 64), BB_OK);
    cr_assert_eq(memcmp(bytes, ram, 32), 0);
    cr_assert_eq(memcmp(&bytes[32], device.bytes, 32), 0);
    count_up(bytes, 0x10);
    cr_assert_eq(write_bytes(RAM_BYTES - 32, bytes, 64), BB_OK);
    cr_assert_eq(memcmp(&machine.ram_host[RAM_BYTES - 32], bytes, 32), 0);
    cr_assert_eq(memcmp(device.bytes, &bytes[32], 32), 0);

    /* Over the device's end: the rest is nothing, and reads the pattern at its own places. */
    cr_assert_eq(read_bytes(RAM_BYTES + DEVICE_BYTES - 32, bytes, 64), BB_E_DECODE);
    cr_assert_eq(memcmp(bytes, &device.bytes[DEVICE_BYTES - 32], 32), 0);
    expect_fill(bytes, 32, 32, PATTERN_DECODE);
    cr_assert_eq(read_bytes(RAM_BYTES + DEVICE_BYTES - 4, bytes, 7), BB_E_DECODE);
    expect_fill(bytes, 4, 3, PATTERN_DECODE);
    /* Both kinds of error: each part reads its own, and the whole is a device error. */
    device.result = BB_E_DEVICE;
    cr_assert_eq(read_bytes(RAM_BYTES + DEVICE_BYTES - 32, bytes, 64), BB_E_DEVICE);
    expect_fill(bytes, 0, 32, PATTERN_DEVICE);
    expect_fill(bytes, 32, 32, PATTERN_DECODE);
    recorder_drop(&device);
}

Test(wide, up_to_the_end_of_everything_and_never_around_it)
{
    uint8_t bytes[64];

    cr_assert_eq(read_bytes(UINT64_MAX - 63, bytes, 64), BB_E_DECODE);
    expect_fill(bytes, 0, 64, PATTERN_DECODE);
    memset(bytes, 0xaa, sizeof(bytes));
    cr_assert_eq(read_bytes(UINT64_MAX - 62, bytes, 64), BB_E_RANGE);
    cr_assert_eq(write_bytes(UINT64_MAX, bytes, 2), BB_E_RANGE);
    cr_assert_eq(read_bytes(0, bytes, 0), BB_E_RANGE);
    cr_assert_eq(read_bytes(0, bytes, 65), BB_E_RANGE);
    cr_assert_eq(write_bytes(0, bytes, 0), BB_E_RANGE);
    cr_assert_eq(write_bytes(0, bytes, 65), BB_E_RANGE);
    for (unsigned i = 0; i < 64; i++) {
        cr_assert_eq(bytes[i], 0xaa);
    }
    cr_assert_eq(bb_access_read(machine.ctx, machine.pio, 0xfff0, bytes, 32, nobody), BB_E_DECODE);
    expect_fill(bytes, 0, 32, UINT64_MAX);
}

Test(wide, the_accept_hook_decides_with_the_size_and_the_attributes_of_the_access)
{
    static const struct {
        int verdict, result;
    } cases[] = {{BB_OK, BB_OK}, {BB_E_DECODE, BB_E_DECODE}, {BB_E_DEVICE, BB_E_DEVICE}};
    struct bb_attrs attrs = {.requester_id = 99, .privileged = true};
    struct bb_region_config config = config_of(64);
    struct recorder device = {0};
    uint8_t bytes[64];

    config.ops = &recorder_ask_ops;
    recorder_make(&machine, &device, "device", 0, &config);
    for (size_t i = 0; i < BB_ARRAY_LEN(cases); i++) {
        struct bb_engine_stats before = bb_engine_stats(machine.ctx), after;

        device.verdict = cases[i].verdict;
        for (unsigned size = 1; size <= 64; size *= 2) {
            recorder_reset(&device);
            cr_assert_eq(
                bb_access_read(machine.ctx, patterned, device.gpa + 64, bytes, size, attrs),
                cases[i].result);
            cr_assert_eq(device.asked_count, 1);
            cr_assert_eq(device.asked[0].size, size);
            cr_assert_eq(device.asked[0].offset, 64);
            cr_assert_eq(device.asked[0].attrs.requester_id, 99);
            cr_assert(device.asked[0].attrs.privileged && !device.asked[0].attrs.secure);
            cr_assert_eq(device.count != 0, cases[i].result == BB_OK);
            if (cases[i].result != BB_OK) {
                expect_fill(bytes, 0, size,
                            cases[i].result == BB_E_DECODE ? PATTERN_DECODE : PATTERN_DEVICE);
            }
        }
        after = bb_engine_stats(machine.ctx);
        cr_assert_eq(after.unassigned_reads - before.unassigned_reads,
                     cases[i].result == BB_E_DECODE ? 7 : 0);
        cr_assert_eq(after.refused - before.refused, cases[i].result == BB_E_DEVICE ? 7 : 0);
    }
    recorder_drop(&device);
}

/* Nested. */

static void write_64(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct recorder *other = recorder->arg;
    uint8_t bytes[64], found[64];

    (void)record;
    count_up(bytes, 0x30);
    cr_assert_eq(bb_access_write(ctx, machine.mmio, other->gpa + 64, bytes, 64, nobody), BB_OK);
    cr_assert_eq(other->count, 0, "posted");
    /* RAM behind it is posted too, and read back as if it were not. */
    cr_assert_eq(bb_access_write(ctx, machine.mmio, 0x203, bytes, 61, nobody), BB_OK);
    cr_assert_eq(machine.ram_host[0x203], 0);
    cr_assert_eq(bb_access_read(ctx, machine.mmio, 0x200, found, 64, nobody), BB_OK);
    cr_assert_eq(found[2], 0);
    cr_assert_eq(memcmp(&found[3], bytes, 61), 0);
}

Test(wide, a_posted_write_arrives_as_the_one_access_that_it_was)
{
    struct bb_region_config locked = {.klass = BB_CLASS_DEVICE_LOCK};
    struct bb_region_config config = {
        .klass = BB_CLASS_DEVICE_LOCK, .ops = &recorder_ask_ops, .rules.valid_max = 64};
    struct recorder poster = {.also = write_64};
    struct recorder other = {0};
    uint8_t bytes[64];

    recorder_make(&machine, &poster, "poster", 0, &locked);
    recorder_make(&machine, &other, "other", 1, &config);
    poster.arg = &other;
    (void)mmio_read(&machine, poster.gpa, 4);
    count_up(bytes, 0x30);
    cr_assert_eq(other.asked_count, 1);
    cr_assert_eq(other.asked[0].size, 64);
    cr_assert_eq(other.count, 8);
    cr_assert_eq(memcmp(&other.bytes[64], bytes, 64), 0);
    cr_assert_eq(memcmp(&machine.ram_host[0x203], bytes, 61), 0);
    recorder_drop(&poster);
    recorder_drop(&other);
}

/* Behind an IOMMU. */

static struct iommu {
    struct recorder owner;
    struct bb_region *region;
    struct bb_space *bus;  /* what a DMA master sees */
    bb_gpa_t page[4];      /* where each leads */
    int fault[4];          /* or what it results in */
    unsigned permitted[4]; /* 0: both */
    unsigned asked;
} iommu;

static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    unsigned page = (unsigned)(iova >> 12) % 4;

    (void)ctx;
    (void)opaque;
    (void)access;
    (void)attrs;
    iommu.asked++;
    *entry = (struct bb_iommu_entry){.target = machine.mmio,
                                     .iova = iova & ~UINT64_C(0xfff),
                                     .translated = iommu.page[page],
                                     .page_bits = 12,
                                     .access = iommu.permitted[page] != 0
                                                   ? iommu.permitted[page]
                                                   : BB_IOMMU_READ | BB_IOMMU_WRITE};
    return iommu.fault[page];
}

static const struct bb_iommu_ops iommu_ops = {.translate = translate};

static void iommu_make(void)
{
    struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE};
    struct bb_iommu_config translated = {.name = "iommu", .size_bytes = 0x4000, .ops = &iommu_ops};
    struct bb_space_config bus = {
        .name = "bus",
        .decode_error = {.kind = BB_FILL_PATTERN, .pattern = PATTERN_DECODE},
        .device_error = {.kind = BB_FILL_PATTERN, .pattern = PATTERN_DEVICE}};
    struct bb_error err = {0};

    memset(&iommu, 0, sizeof(iommu));
    recorder_make(&machine, &iommu.owner, "owner", 15, &config);
    cr_assert_eq(
        bb_device_iommu_create(machine.ctx, iommu.owner.device, &translated, &iommu.region, &err),
        BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_create(machine.ctx, &bus, &iommu.bus, &err), BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine.ctx, iommu.bus, 0, iommu.region, &err), BB_OK, "%s",
                 err.text);
}

Test(wide, an_access_over_two_pages_goes_where_each_leads)
{
    uint8_t bytes[64], found[64];

    iommu_make();
    iommu.page[0] = 0x5000;
    iommu.page[1] = 0x2000;
    count_up(bytes, 7);
    cr_assert_eq(bb_access_write(machine.ctx, iommu.bus, 0xfe0, bytes, 64, nobody), BB_OK);
    cr_assert_eq(memcmp(&machine.ram_host[0x5fe0], bytes, 32), 0);
    cr_assert_eq(memcmp(&machine.ram_host[0x2000], &bytes[32], 32), 0);
    cr_assert_eq(bb_access_read(machine.ctx, iommu.bus, 0xfe0, found, 64, nobody), BB_OK);
    cr_assert_eq(memcmp(found, bytes, 64), 0);
    cr_assert_eq(iommu.asked, 2);
    recorder_drop(&iommu.owner);
}

Test(wide, a_fault_is_the_result_and_reads_what_the_space_of_the_access_says)
{
    uint8_t bytes[64];
    struct bb_engine_stats stats;

    iommu_make();
    iommu.fault[1] = BB_E_DECODE;
    iommu.fault[2] = BB_E_DEVICE;
    iommu.permitted[3] = BB_IOMMU_WRITE;
    memset(machine.ram_host, 0x11, 0x1000);
    cr_assert_eq(bb_access_read(machine.ctx, iommu.bus, 0xff0, bytes, 32, nobody), BB_E_DECODE);
    cr_assert_eq(bytes[15], 0x11);
    expect_fill(bytes, 16, 16, PATTERN_DECODE);
    cr_assert_eq(bb_access_read(machine.ctx, iommu.bus, 0x1ff8, bytes, 16, nobody), BB_E_DEVICE);
    expect_fill(bytes, 0, 8, PATTERN_DECODE);
    expect_fill(bytes, 8, 8, PATTERN_DEVICE);
    cr_assert_eq(bb_access_read(machine.ctx, iommu.bus, 0x3000, bytes, 8, nobody), BB_E_DEVICE);
    expect_fill(bytes, 0, 8, PATTERN_DEVICE);
    cr_assert_eq(bb_access_write(machine.ctx, iommu.bus, 0x3000, bytes, 8, nobody), BB_OK);
    stats = bb_engine_stats(machine.ctx);
    cr_assert_eq(stats.unassigned_reads, 2);
    cr_assert_eq(stats.refused, 2);
    /* A hole behind the translation: the fill of the space in which the access was made. */
    iommu.fault[1] = BB_OK;
    iommu.page[1] = 0xdead0000;
    cr_assert_eq(bb_access_read(machine.ctx, iommu.bus, 0x1000, bytes, 16, nobody), BB_E_DECODE);
    expect_fill(bytes, 0, 16, PATTERN_DECODE);
    recorder_drop(&iommu.owner);
}

static void post_translated(struct bb_ctx *ctx, struct recorder *recorder,
                            const struct record *record)
{
    struct recorder *other = recorder->arg;
    uint8_t bytes[16], found[16];
    struct bb_error err;

    (void)record;
    memset(bytes, 0x66, sizeof(bytes));
    /* A write to a device goes first, so that the one to memory has to queue. */
    cr_assert_eq(bb_mmio_write(ctx, machine.mmio, other->gpa, 4, 1), BB_OK);
    cr_assert_eq(bb_access_write(ctx, iommu.bus, 0x10, bytes, 16, nobody), BB_OK);
    cr_assert_eq(bb_access_read(ctx, iommu.bus, 0x10, found, 16, nobody), BB_OK);
    cr_assert_eq(memcmp(found, bytes, 16), 0, "the chain sees its own write");
    /* Before that is made the page is taken back. */
    iommu.page[0] = 0x7000;
    cr_assert_eq(bb_iommu_invalidate(ctx, iommu.region, 0, 0xfff, NULL, NULL, &err), BB_OK);
}

Test(wide, a_posted_write_is_translated_when_it_is_made)
{
    struct bb_region_config config = {.klass = BB_CLASS_DEVICE_LOCK};
    struct recorder poster = {.also = post_translated};
    struct recorder other = {0};

    iommu_make();
    iommu.page[0] = 0x6000;
    recorder_make(&machine, &poster, "poster", 0, &config);
    recorder_make(&machine, &other, "other", 1, &config);
    poster.arg = &other;
    (void)mmio_read(&machine, poster.gpa, 4);
    cr_assert_eq(machine.ram_host[0x6010], 0, "a page that was taken back is not written");
    cr_assert_eq(machine.ram_host[0x7010], 0x66);
    cr_assert_eq(machine.ram_host[0x701f], 0x66);
    recorder_drop(&poster);
    recorder_drop(&other);
    recorder_drop(&iommu.owner);
}

/* Counting. */

static void add_counts(void *opaque, const char *name, const struct bb_region_counts *counts)
{
    struct bb_region_counts *sum = opaque;

    (void)name;
    sum->reads += counts->reads;
    sum->writes += counts->writes;
    sum->refused += counts->refused;
}

static void expect_counts(const struct bb_region *region, uint64_t reads, uint64_t writes,
                          uint64_t refused)
{
    struct bb_region_counts sum = {0};

    bb_region_counts_each(machine.ctx, region, add_counts, &sum);
    cr_assert(sum.reads == reads && sum.writes == writes && sum.refused == refused,
              "%s: %lu read, %lu written, %lu refused", bb_region_name(region),
              (unsigned long)sum.reads, (unsigned long)sum.writes, (unsigned long)sum.refused);
}

static void post_one(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record)
{
    struct recorder *other = recorder->arg;

    if (record->write) {
        cr_assert_eq(bb_mmio_write(ctx, machine.mmio, other->gpa, 4, 1), BB_OK);
    }
}

Test(wide, an_access_counts_once_for_each_region_that_it_meets)
{
    struct bb_region_config config = {.klass = BB_CLASS_LOCKFREE,
                                      .rules = {.impl_max = 2, .unaligned = true}};
    struct bb_region_config locked = {.klass = BB_CLASS_DEVICE_LOCK};
    struct bb_region_config sleeps = {.klass = BB_CLASS_MAY_SLEEP};
    struct recorder low = {.also = NULL}, high = {.also = post_one}, last = {0};
    uint8_t bytes[64] = {0};
    struct bb_error err;

    recorder_make(&machine, &low, "low", 0, &config);
    recorder_make(&machine, &high, "high", 1, &locked);
    recorder_make(&machine, &last, "last", 2, &sleeps);
    cr_assert_eq(bb_region_move(machine.ctx, high.region, low.gpa + DEVICE_BYTES, &err), BB_OK);
    high.arg = &last;

    cr_assert_eq(read_bytes(low.gpa, bytes, 8), BB_OK);
    expect_counts(low.region, 0, 0, 0);
    bb_engine_count_accesses(machine.ctx, true);
    cr_assert_eq(read_bytes(low.gpa, bytes, 8), BB_OK); /* four callbacks */
    expect_counts(low.region, 1, 0, 0);
    cr_assert_eq(read_bytes(low.gpa, bytes, 7), BB_OK); /* three pieces */
    expect_counts(low.region, 2, 0, 0);
    cr_assert_eq(write_bytes(low.gpa + DEVICE_BYTES - 4, bytes, 8), BB_OK);
    expect_counts(low.region, 2, 1, 0);
    expect_counts(high.region, 0, 1, 0);
    expect_counts(last.region, 0, 1, 0); /* posted by that, counted when made */
    cr_assert_eq(last.count, 1);
    /* One piece of three refused: the access is. */
    low.result = BB_E_DEVICE;
    cr_assert_eq(read_bytes(low.gpa, bytes, 7), BB_E_DEVICE);
    expect_counts(low.region, 3, 1, 1);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x800, 8, 5), BB_OK);
    expect_counts(machine.ram, 0, 1, 0);
    last.result = BB_E_DEVICE;
    cr_assert_eq(read_bytes(last.gpa, bytes, 4), BB_E_DEVICE);
    expect_counts(last.region, 1, 1, 1);
    bb_engine_count_accesses(machine.ctx, false);
    cr_assert_eq(bb_mmio_write(machine.ctx, machine.mmio, 0x800, 8, 5), BB_OK);
    expect_counts(machine.ram, 0, 1, 0);
    recorder_drop(&low);
    recorder_drop(&high);
    recorder_drop(&last);
}
