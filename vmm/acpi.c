/* SPDX-License-Identifier: MIT */
/*
 * ACPI tables, built byte by byte: fields are appended in the specification's order, so that no
 * packed structure and no byte order of the host's is relied on.
 */
#include "acpi.h"

#include <string.h>

#include "board.h"

enum {
    HEADER_BYTES = 36,
    FADT_BYTES = 244, /* revision 3 */
    FACS_BYTES = 64,
    RSDP_BYTES = 36,
    TABLES_MAX = 4,
    VCPUS_MAX = 1024,
    XAPIC_ID_END = 255, /* ids from here on need an x2APIC entry */

    /* Generic Address Structure. */
    GAS_MEMORY = 0,
    GAS_IO = 1,

    /* FADT. */
    FADT_BOOT_ARCH_8042 = 1 << 1,
    FADT_BOOT_ARCH_LEGACY_DEVICES = 1 << 0,
    FADT_WBINVD = 1 << 0,
    FADT_PROC_C1 = 1 << 2,
    FADT_PWR_BUTTON = 1 << 4, /* no fixed power button */
    FADT_SLP_BUTTON = 1 << 5, /* no fixed sleep button */
    FADT_FIX_RTC = 1 << 6,    /* no RTC wake status in the fixed registers */
    FADT_TMR_VAL_EXT = 1 << 8,

    /* MADT. */
    MADT_PCAT_COMPAT = 1,
    MADT_LOCAL_APIC = 0,
    MADT_IOAPIC = 1,
    MADT_OVERRIDE = 2,
    MADT_LOCAL_APIC_NMI = 4,
    MADT_X2APIC = 9,
    MADT_X2APIC_NMI = 10,
    MADT_ENABLED = 1,
    MPS_LEVEL_HIGH = 0xd, /* active high, level triggered */
};

/* Appends to guest memory from BB_ACPI_START on; the tables of 1024 vCPUs take 15 KiB of 64. */
struct writer {
    uint8_t *base;
    size_t used;
};

static void put_uint(struct writer *w, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        w->base[w->used++] = (uint8_t)(value >> (8 * i));
    }
}

static void put_bytes(struct writer *w, const void *bytes, size_t count)
{
    memcpy(w->base + w->used, bytes, count);
    w->used += count;
}

static void put_zeroes(struct writer *w, size_t count)
{
    memset(w->base + w->used, 0, count);
    w->used += count;
}

static void align_to(struct writer *w, size_t alignment)
{
    put_zeroes(w, (alignment - w->used % alignment) % alignment);
}

static uint32_t address_of(size_t offset)
{
    return (uint32_t)(BB_ACPI_START + offset);
}

static uint8_t checksum(const uint8_t *bytes, size_t count)
{
    unsigned sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += bytes[i];
    }
    return (uint8_t)-sum;
}

/* Begins a table; its length and checksum are filled in by end_table(). Returns its offset. */
static size_t begin_table(struct writer *w, const char *signature, unsigned revision)
{
    align_to(w, 16);
    size_t start = w->used;
    put_bytes(w, signature, 4);
    put_uint(w, 0, 4);
    put_uint(w, revision, 1);
    put_uint(w, 0, 1);
    put_bytes(w, "BUSBAR", 6);
    put_bytes(w, "BUSBARPC", 8);
    put_uint(w, 1, 4);
    put_bytes(w, "BBAR", 4);
    put_uint(w, 1, 4);
    return start;
}

static void end_table(struct writer *w, size_t start)
{
    size_t bytes = w->used - start;
    for (unsigned i = 0; i < 4; i++) {
        w->base[start + 4 + i] = (uint8_t)(bytes >> (8 * i));
    }
    w->base[start + 9] = checksum(w->base + start, bytes);
}

static void put_gas(struct writer *w, unsigned space, unsigned bits, unsigned access,
                    uint64_t address)
{
    put_uint(w, space, 1);
    put_uint(w, bits, 1);
    put_uint(w, 0, 1);
    put_uint(w, access, 1);
    put_uint(w, address, 8);
}

/* Name (_S5, Package (4) {5, 5, 0, 0}), in AML (chapter 20). */
static size_t put_dsdt(struct writer *w)
{
    static const uint8_t s5[] = {
        0x08, '_',
        'S',  '5',
        '_', /* NameOp */
        0x12, 0x08,
        0x04, /* PackageOp, length, elements */
        0x0a, BB_ACPI_S5_TYPE,
        0x0a, BB_ACPI_S5_TYPE,
        0x00, 0x00,
    };
    size_t start = begin_table(w, "DSDT", 2);
    put_bytes(w, s5, sizeof(s5));
    end_table(w, start);
    return start;
}

/* 5.2.10: aligned to 64, and without a checksum. */
static size_t put_facs(struct writer *w)
{
    align_to(w, 64);
    size_t start = w->used;
    put_bytes(w, "FACS", 4);
    put_uint(w, FACS_BYTES, 4);
    put_zeroes(w, FACS_BYTES - 8);
    w->base[start + 32] = 1; /* version */
    return start;
}

static size_t put_fadt(struct writer *w, size_t facs, size_t dsdt)
{
    size_t start = begin_table(w, "FACP", 3);
    put_uint(w, address_of(facs), 4);
    put_uint(w, address_of(dsdt), 4);
    put_uint(w, 0, 1);                   /* reserved */
    put_uint(w, 0, 1);                   /* Preferred_PM_Profile: unspecified */
    put_uint(w, BB_BOARD_GSI_SCI, 2);    /* SCI_INT */
    put_uint(w, 0, 4);                   /* SMI_CMD: always in ACPI mode */
    put_uint(w, 0, 4);                   /* ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT */
    put_uint(w, BB_BOARD_PM1A_EVENT, 4); /* PM1a_EVT_BLK */
    put_uint(w, 0, 4);                   /* PM1b_EVT_BLK */
    put_uint(w, BB_BOARD_PM1A_CONTROL, 4);
    put_uint(w, 0, 4); /* PM1b_CNT_BLK */
    put_uint(w, 0, 4); /* PM2_CNT_BLK */
    put_uint(w, BB_BOARD_PM_TIMER, 4);
    put_uint(w, 0, 8);      /* GPE0_BLK, GPE1_BLK */
    put_uint(w, 4, 1);      /* PM1_EVT_LEN */
    put_uint(w, 2, 1);      /* PM1_CNT_LEN */
    put_uint(w, 0, 1);      /* PM2_CNT_LEN */
    put_uint(w, 4, 1);      /* PM_TMR_LEN */
    put_uint(w, 0, 4);      /* GPE0_BLK_LEN, GPE1_BLK_LEN, GPE1_BASE, CST_CNT */
    put_uint(w, 0xfff, 2);  /* P_LVL2_LAT: no C2 */
    put_uint(w, 0xffff, 2); /* P_LVL3_LAT: no C3 */
    put_uint(w, 0, 4);      /* FLUSH_SIZE, FLUSH_STRIDE */
    put_uint(w, 0, 5);      /* DUTY_OFFSET, DUTY_WIDTH, DAY_ALRM, MON_ALRM, CENTURY */
    put_uint(w, FADT_BOOT_ARCH_LEGACY_DEVICES | FADT_BOOT_ARCH_8042, 2);
    put_uint(w, 0, 1);
    put_uint(w,
             FADT_WBINVD | FADT_PROC_C1 | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_FIX_RTC |
                 FADT_TMR_VAL_EXT,
             4);
    put_zeroes(w, 12 + 1); /* RESET_REG, RESET_VALUE: not supported */
    put_zeroes(w, 3);
    put_uint(w, 0, 8); /* X_FIRMWARE_CTRL: the 32-bit field holds it */
    put_uint(w, address_of(dsdt), 8);
    put_gas(w, GAS_IO, 32, 2, BB_BOARD_PM1A_EVENT);
    put_zeroes(w, 12);
    put_gas(w, GAS_IO, 16, 2, BB_BOARD_PM1A_CONTROL);
    put_zeroes(w, 12 + 12); /* X_PM1b_CNT_BLK, X_PM2_CNT_BLK */
    put_gas(w, GAS_IO, 32, 3, BB_BOARD_PM_TIMER);
    put_zeroes(w, 12 + 12); /* X_GPE0_BLK, X_GPE1_BLK */
    end_table(w, start);
    return start;
}

static void put_override(struct writer *w, unsigned isa, unsigned gsi, unsigned flags)
{
    put_uint(w, MADT_OVERRIDE, 1);
    put_uint(w, 10, 1);
    put_uint(w, 0, 1); /* bus: ISA */
    put_uint(w, isa, 1);
    put_uint(w, gsi, 4);
    put_uint(w, flags, 2);
}

/* 5.2.12. Processor UIDs are the APIC ids. */
static size_t put_madt(struct writer *w, unsigned vcpus)
{
    size_t start = begin_table(w, "APIC", 4);
    put_uint(w, BB_BOARD_LOCAL_APIC, 4);
    put_uint(w, MADT_PCAT_COMPAT, 4);
    for (unsigned i = 0; i < vcpus && i < XAPIC_ID_END; i++) {
        put_uint(w, MADT_LOCAL_APIC, 1);
        put_uint(w, 8, 1);
        put_uint(w, i, 1);
        put_uint(w, i, 1);
        put_uint(w, MADT_ENABLED, 4);
    }
    for (unsigned i = XAPIC_ID_END; i < vcpus; i++) {
        put_uint(w, MADT_X2APIC, 1);
        put_uint(w, 16, 1);
        put_uint(w, 0, 2);
        put_uint(w, i, 4);
        put_uint(w, MADT_ENABLED, 4);
        put_uint(w, i, 4);
    }
    put_uint(w, MADT_IOAPIC, 1);
    put_uint(w, 12, 1);
    put_uint(w, 0, 2); /* its id, reserved */
    put_uint(w, BB_BOARD_IOAPIC, 4);
    put_uint(w, 0, 4); /* first interrupt */
    put_override(w, 0, BB_BOARD_GSI_TIMER, 0);
    put_override(w, BB_BOARD_GSI_SCI, BB_BOARD_GSI_SCI, MPS_LEVEL_HIGH);
    put_uint(w, MADT_LOCAL_APIC_NMI, 1);
    put_uint(w, 6, 1);
    put_uint(w, 0xff, 1); /* all processors */
    put_uint(w, 0, 2);
    put_uint(w, 1, 1); /* LINT1 */
    if (vcpus > XAPIC_ID_END) {
        put_uint(w, MADT_X2APIC_NMI, 1);
        put_uint(w, 12, 1);
        put_uint(w, 0, 2);
        put_uint(w, 0xffffffff, 4);
        put_uint(w, 1, 1);
        put_uint(w, 0, 3);
    }
    end_table(w, start);
    return start;
}

static size_t put_hpet(struct writer *w, uint32_t block_id)
{
    size_t start = begin_table(w, "HPET", 1);
    put_uint(w, block_id, 4);
    put_gas(w, GAS_MEMORY, 64, 0, BB_BOARD_HPET);
    put_uint(w, 0, 1);   /* sequence number */
    put_uint(w, 128, 2); /* fewest ticks of a periodic timer without loss */
    put_uint(w, 0, 1);   /* no page protection */
    end_table(w, start);
    return start;
}

static size_t put_root(struct writer *w, const char *signature, unsigned entry_bytes,
                       const size_t *tables, unsigned count)
{
    size_t start = begin_table(w, signature, 1);
    for (unsigned i = 0; i < count; i++) {
        put_uint(w, address_of(tables[i]), entry_bytes);
    }
    end_table(w, start);
    return start;
}

/* 5.2.5.3. The first checksum covers the 20 bytes of ACPI 1.0, the second all. */
static void put_rsdp(uint8_t *at, uint32_t rsdt, uint64_t xsdt)
{
    struct writer w = {.base = at};
    put_bytes(&w, "RSD PTR ", 8);
    put_uint(&w, 0, 1);
    put_bytes(&w, "BUSBAR", 6);
    put_uint(&w, 2, 1);
    put_uint(&w, rsdt, 4);
    put_uint(&w, RSDP_BYTES, 4);
    put_uint(&w, xsdt, 8);
    put_uint(&w, 0, 4);
    at[8] = checksum(at, 20);
    at[32] = checksum(at, RSDP_BYTES);
}

int bb_acpi_build(const struct bb_gmem *mem, const struct bb_acpi_config *config, bb_gpa_t *rsdp,
                  struct bb_error *err)
{
    struct writer w = {.base = bb_gmem_at(mem, BB_ACPI_START, BB_ACPI_END - BB_ACPI_START)};
    size_t tables[TABLES_MAX];
    unsigned count = 0;

    if (w.base == NULL || config->vcpus == 0 || config->vcpus > VCPUS_MAX) {
        return bb_error_set(err, BB_E_RANGE, "ACPI tables for %u vCPUs: 1 to %d", config->vcpus,
                            VCPUS_MAX);
    }
    size_t dsdt = put_dsdt(&w);
    size_t facs = put_facs(&w);
    tables[count++] = put_fadt(&w, facs, dsdt);
    tables[count++] = put_madt(&w, config->vcpus);
    tables[count++] = put_hpet(&w, config->hpet_block_id);
    size_t rsdt = put_root(&w, "RSDT", 4, tables, count);
    size_t xsdt = put_root(&w, "XSDT", 8, tables, count);
    put_rsdp(w.base + (BB_ACPI_RSDP - BB_ACPI_START), address_of(rsdt), address_of(xsdt));
    *rsdp = BB_ACPI_RSDP;
    return BB_OK;
}
