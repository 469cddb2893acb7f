/* SPDX-License-Identifier: MIT */
/*
 * What the boot loaders hand to the vCPU set-up: in which state vCPU 0 starts. The loaders write
 * guest RAM and nothing else; on an error nothing runs.
 *
 * Every offset and length in an image is hostile until it is checked: against the file's size where
 * it is read, through bb_gmem_at() where it is written.
 */
#ifndef BUSBAR_VMM_BOOT_H
#define BUSBAR_VMM_BOOT_H

#include "guest_memory.h"

enum bb_boot_mode {
    BB_BOOT_FLAT32, /* multiboot: protected mode, flat segments, paging off */
    BB_BOOT_LONG64, /* Linux 64-bit boot protocol: paging on, identity map of the low 4 GiB */
};

/* The start of vCPU 0. Other vCPUs wait for INIT and SIPI. */
struct bb_boot {
    enum bb_boot_mode mode;
    uint64_t ip;
    uint64_t ax, bx, si; /* general registers; all others are 0 */
    uint64_t cr3;        /* LONG64: the page tables */
    uint64_t gdt_base;   /* LONG64: a GDT with the flat segments 0x10 (code) and 0x18 (data) */
    uint16_t gdt_limit;
};

enum { BB_BOOT_CS = 0x10, BB_BOOT_DS = 0x18 };

/* A whole file in memory. */
struct bb_file {
    const char *path; /* the caller's */
    uint8_t *data;
    uint64_t bytes;
};

/*
 * Reads a regular file whole; `what` names it in errors ("kernel", "initrd").
 * Returns BB_OK; BB_E_SYSTEM where it can't be read; BB_E_INVAL where it is no regular file or is
 * empty; BB_E_RANGE where it is larger than `max_bytes` of guest memory; BB_E_NOMEM.
 */
int bb_file_read(const char *path, const char *what, uint64_t max_bytes, struct bb_file *file,
                 struct bb_error *err);
void bb_file_free(struct bb_file *file);

/* What a kernel is booted with. */
struct bb_boot_config {
    const struct bb_gmem *mem;
    const char *kernel_path;
    const char *initrd_path; /* NULL: none. For a multiboot kernel, its one module */
    const char *append;      /* NULL: an empty command line */
    bb_gpa_t rsdp;           /* where bb_acpi_build() put the RSDP */
};

/*
 * Finds out what the file is (bzImage, 64-bit ELF, multiboot 1) and loads it.
 * Returns BB_OK, or a negative code with one sentence that names the file and what is wrong; guest
 * RAM may have been written by then.
 */
int bb_boot_load(const struct bb_boot_config *config, struct bb_boot *boot, struct bb_error *err);

/* The parts of it, one to a file; `kernel` and `initrd` (data NULL: none) are whole files. */
bool bb_multiboot_probe(const struct bb_file *kernel);
int bb_multiboot_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                      const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err);
bool bb_bzimage_probe(const struct bb_file *kernel);
int bb_bzimage_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                    const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err);
bool bb_elf64_probe(const struct bb_file *kernel);
int bb_elf64_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                  const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err);

#endif
