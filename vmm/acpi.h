/* SPDX-License-Identifier: MIT */
/*
 * The firmware tables of the machine: RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET, DSDT with _S5.
 * Written once, before vCPUs run, into the reserved range that firmware's ROM would have.
 *
 * Source: ACPI specification 6.4, chapter 5 and 7.4.2; IA-PC HPET 1.0a, section 3.2.4.
 */
#ifndef BUSBAR_VMM_ACPI_H
#define BUSBAR_VMM_ACPI_H

#include "guest_memory.h"

/* Tables from BB_ACPI_START; the RSDP where old searches begin, at 0xf0000. */
#define BB_ACPI_START UINT64_C(0xe0000)
#define BB_ACPI_RSDP UINT64_C(0xf0000)
#define BB_ACPI_END UINT64_C(0x100000)

/* SLP_TYP of _S5, written with SLP_EN to PM1a_CNT to power off. */
enum { BB_ACPI_S5_TYPE = 5 };

struct bb_acpi_config {
    unsigned vcpus;         /* 1 to 1024; their APIC ids are their numbers */
    uint32_t hpet_block_id; /* bb_hpet_block_id() */
};

/*
 * Writes the tables; `*rsdp` receives BB_ACPI_RSDP.
 * Returns BB_OK, or BB_E_RANGE for another count of vCPUs.
 */
int bb_acpi_build(const struct bb_gmem *mem, const struct bb_acpi_config *config, bb_gpa_t *rsdp,
                  struct bb_error *err);

#endif
