/* SPDX-License-Identifier: MIT */
/*
 * The boot check's ACPI part: RSDP, XSDT or RSDT, MADT, FADT with its DSDT, HPET (ACPI 6.3,
 * section 5.2; IA-PC HPET 1.0a, section 3.2.4), and whether the HPET and the PM timer that they
 * describe are there.
 */
#include "boot_check.h"

enum { BP_ACPI_RSDP = 0x070 };
enum { HEADER_BYTES = 36, TABLE_BYTES_MAX = 0x100000 };
enum { MADT_LOCAL_APIC = 0, MADT_IO_APIC = 1, MADT_OVERRIDE = 2, MADT_LOCAL_X2APIC = 9 };

static bool sum_is_zero(uint64_t at, uint64_t bytes)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++) {
        sum = (uint8_t)(sum + peek8(at + i));
    }
    return sum == 0;
}

static bool has_text(uint64_t at, const char *text)
{
    for (; *text; text++, at++) {
        if (peek8(at) != (uint8_t)*text) {
            return false;
        }
    }
    return true;
}

static bool table_valid(uint64_t at, const char *signature)
{
    uint64_t bytes = peek(at + 4, 4);
    return has_text(at, signature) && bytes >= HEADER_BYTES && bytes <= TABLE_BYTES_MAX &&
           sum_is_zero(at, bytes);
}

static bool rsdp_valid(uint64_t at)
{
    if (!has_text(at, "RSD PTR ") || !sum_is_zero(at, 20)) {
        return false;
    }
    return peek8(at + 15) < 2 || (peek(at + 20, 4) >= 36 && sum_is_zero(at, peek(at + 20, 4)));
}

static uint64_t rsdp_find(void)
{
    for (uint64_t at = 0xe0000; at < 0x100000; at += 16) {
        if (has_text(at, "RSD PTR ") && rsdp_valid(at)) {
            return at;
        }
    }
    return 0;
}

/* The root table, and how wide its entries are. */
struct root {
    uint64_t at;
    unsigned width;
};

static unsigned root_count(struct root root)
{
    return (unsigned)((peek(root.at + 4, 4) - HEADER_BYTES) / root.width);
}

static uint64_t root_entry(struct root root, unsigned i)
{
    return peek(root.at + HEADER_BYTES + (uint64_t)i * root.width, root.width);
}

static uint64_t root_find(struct root root, const char *signature)
{
    for (unsigned i = 0; i < root_count(root); i++) {
        if (table_valid(root_entry(root, i), signature)) {
            return root_entry(root, i);
        }
    }
    return 0;
}

static void check_madt(struct boot_state *state, uint64_t madt)
{
    uint64_t end = madt + peek(madt + 4, 4), expected;
    unsigned processors = 0, io_apics = 0, overrides = 0;
    bool well_formed = true;
    for (uint64_t at = madt + 44; at < end; at += peek8(at + 1)) {
        uint8_t type = peek8(at), bytes = peek8(at + 1);
        if (bytes < 2 || at + bytes > end) {
            well_formed = false;
            break;
        }
        processors += type == MADT_LOCAL_APIC && (peek(at + 4, 4) & 1);
        processors += type == MADT_LOCAL_X2APIC && (peek(at + 8, 4) & 1);
        io_apics += type == MADT_IO_APIC && peek(at + 4, 4) == 0xfec00000 && peek(at + 8, 4) == 0;
        overrides += type == MADT_OVERRIDE;
    }
    say("boot: MADT: ");
    say_number(processors);
    say(" processors, ");
    say_number(overrides);
    say(" overrides\n");
    check(state, "the MADT is well formed", well_formed);
    check(state, "the MADT has the local APIC's address", peek(madt + 36, 4) == 0xfee00000);
    check(state, "the MADT has an I/O APIC at 0xfec00000 from interrupt 0", io_apics == 1);
    check(state, "the MADT has a processor", processors >= 1);
    if (option(state, "vcpus", &expected)) {
        check(state, "the MADT has as many processors as there are", processors == expected);
    }
}

static void check_fadt(struct boot_state *state, uint64_t fadt)
{
    uint64_t bytes = peek(fadt + 4, 4);
    uint64_t dsdt = peek(fadt + 40, 4);
    uint16_t timer_port = (uint16_t)peek(fadt + 76, 4);
    if (bytes >= 148 && peek(fadt + 140, 8) != 0) {
        dsdt = peek(fadt + 140, 8); /* X_DSDT */
    }
    bool valid = table_valid(dsdt, "DSDT"), sleeps = false;
    check(state, "the DSDT's signature, length and checksum are right", valid);
    if (valid) {
        uint64_t end = dsdt + peek(dsdt + 4, 4);
        for (uint64_t at = dsdt + HEADER_BYTES; at + 4 <= end && !sleeps; at++) {
            sleeps = has_text(at, "_S5_");
        }
    }
    check(state, "the DSDT has _S5", sleeps);
    check(state, "the FADT has a PM timer", timer_port != 0 && peek8(fadt + 91) == 4);
    if (timer_port != 0) {
        uint32_t first, later = 0;
        __asm__ volatile("inl %1, %0" : "=a"(first) : "d"(timer_port));
        for (unsigned i = 0; i < 1000 && (i == 0 || later == first); i++) {
            __asm__ volatile("inl %1, %0" : "=a"(later) : "d"(timer_port));
        }
        check(state, "the PM timer counts", later != first && first != UINT32_MAX);
    }
}

static void check_hpet(struct boot_state *state, uint64_t hpet)
{
    uint64_t base = peek(hpet + 44, 8);
    check(state, "the HPET is in memory at 0xfed00000",
          peek8(hpet + 40) == 0 && base == 0xfed00000);
    if (base != 0xfed00000) {
        return;
    }
    uint32_t id = mmio_read32(base);
    say("boot: HPET block id ");
    say_hex(id);
    say("\n");
    /* Revision (bits 0 to 7) is not compared: not every firmware fills it in. */
    check(state, "the HPET's vendor is the one in its table",
          id != UINT32_MAX && id >> 16 == peek(hpet + 36, 4) >> 16);
    check(state, "the HPET has a period of at most 100 ns",
          mmio_read32(base + 4) != 0 && mmio_read32(base + 4) <= 100000000);
}

static struct root find_root(struct boot_state *state, uint64_t rsdp)
{
    struct root xsdt = {peek(rsdp + 24, 8), 8}, rsdt = {peek(rsdp + 16, 4), 4};
    bool has_xsdt = peek8(rsdp + 15) >= 2 && xsdt.at != 0;
    if (rsdt.at != 0) {
        check(state, "the RSDT is valid", table_valid(rsdt.at, "RSDT"));
    }
    if (has_xsdt) {
        check(state, "the XSDT is valid", table_valid(xsdt.at, "XSDT"));
        return xsdt;
    }
    check(state, "there is an XSDT, or none is asked for", !option_set(state, "xsdt"));
    return rsdt;
}

void boot_check_acpi(struct boot_state *state)
{
    uint64_t given = peek(state->params + BP_ACPI_RSDP, 8), found = rsdp_find();
    uint64_t rsdp = given ? given : found;
    check(state, "an RSDP lies between 0xe0000 and 0xfffff", found != 0);
    if (given) {
        check(state, "boot_params has a valid RSDP", rsdp_valid(given));
    }
    if (rsdp == 0 || !rsdp_valid(rsdp)) {
        return;
    }
    struct root root = find_root(state, rsdp);
    if (!table_valid(root.at, root.width == 8 ? "XSDT" : "RSDT")) {
        return;
    }
    bool all_valid = true;
    for (unsigned i = 0; i < root_count(root); i++) {
        uint64_t at = root_entry(root, i), bytes = peek(at + 4, 4);
        all_valid = all_valid && bytes >= HEADER_BYTES && bytes <= TABLE_BYTES_MAX &&
                    sum_is_zero(at, bytes);
        all_valid = all_valid && !e820_touches(state, at, bytes, E820_RAM);
    }
    check(state, "every table's checksum is right, and none lies in free RAM", all_valid);
    uint64_t madt = root_find(root, "APIC"), fadt = root_find(root, "FACP"),
             hpet = root_find(root, "HPET");
    check(state, "there are MADT, FADT and HPET tables", madt && fadt && hpet);
    if (madt) {
        check_madt(state, madt);
    }
    if (fadt) {
        check_fadt(state, fadt);
    }
    if (hpet) {
        check_hpet(state, hpet);
    }
}
