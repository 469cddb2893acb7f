/* SPDX-License-Identifier: MIT */
/*
 * The firmware tables, read back as a guest reads them: by searching the RSDP, checking every
 * checksum and following every pointer.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "../../vmm/acpi.h"
#include "../../vmm/board.h"

enum { RAM_BYTES = 4 << 20, HEADER_BYTES = 36, BLOCK_ID = 0x1234b701 };

static struct bb_gmem mem;

static uint64_t get(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;) {
        value = value << 8 | at[i];
    }
    return value;
}

static bool sums_to_zero(const uint8_t *at, uint64_t bytes)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++) {
        sum = (uint8_t)(sum + at[i]);
    }
    return sum == 0;
}

static const uint8_t *build(unsigned vcpus)
{
    struct bb_acpi_config config = {.vcpus = vcpus, .hpet_block_id = BLOCK_ID};
    bb_gpa_t rsdp;
    cr_assert_eq(bb_gmem_create(RAM_BYTES, &mem, NULL), BB_OK);
    cr_assert_eq(bb_acpi_build(&mem, &config, &rsdp, NULL), BB_OK);
    return bb_gmem_at(&mem, rsdp, 36);
}

/* A table by address: inside the reserved range, with a right checksum. */
static const uint8_t *table_at(uint64_t gpa)
{
    cr_assert(gpa >= BB_ACPI_START && gpa + HEADER_BYTES <= BB_ACPI_END, "%#llx",
              (unsigned long long)gpa);
    const uint8_t *table = bb_gmem_at(&mem, gpa, HEADER_BYTES);
    uint64_t bytes = get(table + 4, 4);
    cr_assert(bytes >= HEADER_BYTES && gpa + bytes <= BB_ACPI_END, "length %llu",
              (unsigned long long)bytes);
    cr_assert(sums_to_zero(table, bytes), "checksum of %.4s", (const char *)table);
    return table;
}

/* The table with a signature, by the XSDT. */
static const uint8_t *find(const uint8_t *rsdp, const char *signature)
{
    const uint8_t *xsdt = table_at(get(rsdp + 24, 8));
    for (uint64_t at = HEADER_BYTES; at + 8 <= get(xsdt + 4, 4); at += 8) {
        const uint8_t *table = table_at(get(xsdt + at, 8));
        if (memcmp(table, signature, 4) == 0) {
            return table;
        }
    }
    cr_assert_fail("no %s", signature);
    return NULL;
}

static void check_all(unsigned vcpus)
{
    const uint8_t *rsdp = build(vcpus);
    cr_assert_eq(memcmp(rsdp, "RSD PTR ", 8), 0);
    cr_assert(sums_to_zero(rsdp, 20));
    cr_assert(sums_to_zero(rsdp, 36));
    const uint8_t *rsdt = table_at(get(rsdp + 16, 4));
    const uint8_t *xsdt = table_at(get(rsdp + 24, 8));
    uint64_t rows = (get(rsdt + 4, 4) - HEADER_BYTES) / 4;
    cr_assert_eq((get(xsdt + 4, 4) - HEADER_BYTES) / 8, rows);
    cr_assert_eq(rows, 3u);
    for (uint64_t i = 0; i < rows; i++) {
        cr_assert_eq(get(rsdt + HEADER_BYTES + 4 * i, 4), get(xsdt + HEADER_BYTES + 8 * i, 8));
        table_at(get(xsdt + HEADER_BYTES + 8 * i, 8));
    }
    const uint8_t *fadt = find(rsdp, "FACP");
    cr_assert_eq(get(fadt + 4, 4), 244u);
    table_at(get(fadt + 40, 4));
    cr_assert_eq(get(fadt + 40, 4), get(fadt + 140, 8));
    cr_assert_eq(get(fadt + 36, 4) % 64, 0u);
    bb_gmem_destroy(&mem);
}

/* Counts a MADT's processors and checks that each has its own id, in order. */
static unsigned processors(const uint8_t *madt)
{
    unsigned count = 0;
    uint64_t bytes = get(madt + 4, 4);
    for (uint64_t at = 44; at < bytes; at += madt[at + 1]) {
        const uint8_t *entry = madt + at;
        cr_assert(entry[1] >= 2 && at + entry[1] <= bytes);
        if (entry[0] == 0) {
            cr_assert_eq(entry[3], count);
            cr_assert_lt(count, 255u, "xAPIC id 255 means all of them");
            count++;
        } else if (entry[0] == 9) {
            cr_assert_eq(get(entry + 4, 4), count);
            cr_assert_geq(count, 255u);
            count++;
        }
    }
    return count;
}

Test(acpi, every_checksum_and_pointer_is_right_for_any_count_of_vcpus)
{
    static const unsigned counts[] = {1, 2, 254, 255, 256, 257, 1023, 1024};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        check_all(counts[i]);
    }
}

Test(acpi, the_madt_lists_each_processor_once)
{
    static const unsigned counts[] = {1, 255, 256, 1024};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        cr_assert_eq(processors(find(build(counts[i]), "APIC")), counts[i]);
        bb_gmem_destroy(&mem);
    }
}

Test(acpi, the_hpet_table_carries_the_device_s_own_block_id)
{
    const uint8_t *hpet = find(build(2), "HPET");
    cr_assert_eq(get(hpet + 36, 4), (uint64_t)BLOCK_ID);
    cr_assert_eq(get(hpet + 44, 8), (uint64_t)BB_BOARD_HPET);
    bb_gmem_destroy(&mem);
}

Test(acpi, the_fadt_names_the_ports_that_the_board_has)
{
    const uint8_t *fadt = find(build(2), "FACP");
    cr_assert_eq(get(fadt + 46, 2), (uint64_t)BB_BOARD_GSI_SCI);
    cr_assert_eq(get(fadt + 56, 4), (uint64_t)BB_BOARD_PM1A_EVENT);
    cr_assert_eq(get(fadt + 64, 4), (uint64_t)BB_BOARD_PM1A_CONTROL);
    cr_assert_eq(get(fadt + 76, 4), (uint64_t)BB_BOARD_PM_TIMER);
    cr_assert_eq(get(fadt + 152, 8), (uint64_t)BB_BOARD_PM1A_EVENT);
    cr_assert_eq(get(fadt + 176, 8), (uint64_t)BB_BOARD_PM1A_CONTROL);
    cr_assert_eq(get(fadt + 212, 8), (uint64_t)BB_BOARD_PM_TIMER);
    bb_gmem_destroy(&mem);
}

Test(acpi, the_dsdt_has_s5)
{
    const uint8_t *fadt = find(build(2), "FACP");
    const uint8_t *dsdt = table_at(get(fadt + 40, 4));
    cr_assert_eq(memcmp(dsdt + HEADER_BYTES, "\x08_S5_\x12", 6), 0);
    bb_gmem_destroy(&mem);
}

Test(acpi, other_counts_of_vcpus_are_refused)
{
    struct bb_acpi_config config = {.vcpus = 0};
    bb_gpa_t rsdp = 7;
    struct bb_error err;
    cr_assert_eq(bb_gmem_create(RAM_BYTES, &mem, NULL), BB_OK);
    cr_assert_eq(bb_acpi_build(&mem, &config, &rsdp, &err), BB_E_RANGE);
    config.vcpus = 1025;
    cr_assert_eq(bb_acpi_build(&mem, &config, &rsdp, &err), BB_E_RANGE);
    cr_assert_eq(rsdp, 7u);
    bb_gmem_destroy(&mem);
}
