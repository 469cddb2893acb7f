/* SPDX-License-Identifier: MIT */
/*
 * Multiboot 1 images: ELF32, or any file with the header's own load addresses (the a.out kludge).
 * Source: Multiboot Specification 0.6.96, sections 3.1 to 3.3.
 *
 * The kernel lands where it says; behind it, page-aligned, the module (the initrd), and behind
 * that one block with the information structure, module list, memory map and command line. Not
 * modelled: video modes (a kernel that demands one is refused), symbols, drives, APM.
 */
#include <elf.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "../base/bits.h"
#include "acpi.h"
#include "boot.h"
#include "elf_image.h"

enum {
    SEARCH_BYTES = 8192, /* the header lies wholly in here, 4-byte aligned */
    HEADER_MAGIC = 0x1BADB002,
    LOADER_MAGIC = 0x2BADB002,

    HEADER_PAGE_ALIGN = 1 << 0,
    HEADER_MEMORY_INFO = 1 << 1,
    HEADER_MUST_KNOW = 0xffff, /* bits that a loader must understand or refuse */
    HEADER_ADDRESSES = 1 << 16,

    INFO_MEMORY = 1 << 0,
    INFO_CMDLINE = 1 << 2,
    INFO_MODULES = 1 << 3,
    INFO_MMAP = 1 << 6,
    INFO_LOADER_NAME = 1 << 9,

    PAGE = 4096,
    CMDLINE_BYTES_MAX = 65536,
};

struct header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

/* 3.3, up to boot_loader_name. */
struct info {
    uint32_t flags;
    uint32_t mem_lower, mem_upper;
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
    uint32_t reserved[13]; /* APM, VBE, framebuffer */
};

struct module {
    uint32_t mod_start, mod_end, string, reserved;
};

struct mmap_row {
    uint32_t size; /* of what follows */
    uint32_t base_low, base_high, length_low, length_high;
    uint32_t type;
};

/* The block behind kernel and module; the command line follows it. */
struct block {
    struct info info;
    struct module module;
    struct mmap_row rows[BB_E820_MAX];
    char loader_name[8];
};

/* Finds the header; returns its offset, or -1. Fields that don't fit into the file stay 0. */
static int64_t find_header(const struct bb_file *kernel, struct header *header)
{
    uint64_t limit = kernel->bytes < SEARCH_BYTES ? kernel->bytes : SEARCH_BYTES;
    for (uint64_t at = 0; at + 12 <= limit; at += 4) {
        struct header h = {0};
        memcpy(&h, kernel->data + at, 12);
        if (h.magic != HEADER_MAGIC || h.magic + h.flags + h.checksum != 0) {
            continue;
        }
        uint64_t whole = kernel->bytes - at < sizeof(h) ? kernel->bytes - at : sizeof(h);
        memcpy(&h, kernel->data + at, whole);
        *header = h;
        return (int64_t)at;
    }
    return -1;
}

bool bb_multiboot_probe(const struct bb_file *kernel)
{
    struct header header = {0};
    return find_header(kernel, &header) >= 0;
}

/* Loads by the header's own addresses (3.1.3). */
static int load_by_addresses(const struct bb_gmem *mem, const struct bb_file *kernel,
                             const struct header *h, uint64_t header_offset,
                             struct bb_elf_loaded *loaded, struct bb_error *err)
{
    uint64_t before = (uint64_t)h->header_addr - h->load_addr;
    if (h->header_addr < h->load_addr || before > header_offset) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s': multiboot header at file offset %#llx can't be at %#x of "
                            "an image loaded at %#x",
                            kernel->path, (unsigned long long)header_offset, h->header_addr,
                            h->load_addr);
    }
    uint64_t offset = header_offset - before;
    uint64_t file_bytes = kernel->bytes - offset;
    if (h->load_end_addr != 0) {
        uint64_t wanted = (uint64_t)h->load_end_addr - h->load_addr;
        if (h->load_end_addr < h->load_addr || wanted > file_bytes) {
            return bb_error_set(err, BB_E_INVAL,
                                "kernel '%s' is truncated: its multiboot header asks for %#llx "
                                "bytes from %#llx, the file ends at %#llx",
                                kernel->path, (unsigned long long)wanted,
                                (unsigned long long)offset, (unsigned long long)kernel->bytes);
        }
        file_bytes = wanted;
    }
    uint64_t end = (uint64_t)h->load_addr + file_bytes;
    if (h->bss_end_addr > end) {
        end = h->bss_end_addr;
    }
    uint8_t *to = bb_gmem_at(mem, h->load_addr, end - h->load_addr);
    if (to == NULL || (h->load_addr < BB_ACPI_END && end > BB_ACPI_START)) {
        return bb_error_set(err, BB_E_RANGE,
                            "kernel '%s' does not fit: it wants %#x to %#llx of %llu MiB of guest "
                            "memory",
                            kernel->path, h->load_addr, (unsigned long long)end,
                            (unsigned long long)(mem->bytes >> 20));
    }
    if (h->entry_addr < h->load_addr || h->entry_addr >= end) {
        return bb_error_set(err, BB_E_INVAL, "kernel '%s': entry %#x lies outside of it",
                            kernel->path, h->entry_addr);
    }
    memcpy(to, kernel->data + offset, file_bytes);
    *loaded = (struct bb_elf_loaded){.entry = h->entry_addr, .first = h->load_addr, .end = end};
    return BB_OK;
}

static int load_kernel(const struct bb_gmem *mem, const struct bb_file *kernel,
                       struct bb_elf_loaded *loaded, struct bb_error *err)
{
    struct header header = {0};
    int64_t offset = find_header(kernel, &header);
    uint32_t unknown = header.flags & HEADER_MUST_KNOW & ~(HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO);

    if (unknown != 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' demands multiboot features that the monitor doesn't have "
                            "(flags %#x)",
                            kernel->path, unknown);
    }
    if ((header.flags & HEADER_ADDRESSES) != 0) {
        return load_by_addresses(mem, kernel, &header, (uint64_t)offset, loaded, err);
    }
    if (!bb_elf_probe(kernel, ELFCLASS32)) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' has a multiboot header without load addresses, and is no "
                            "32-bit ELF",
                            kernel->path);
    }
    return bb_elf_load(mem, kernel, 0, loaded, err);
}

static uint64_t page_up(uint64_t address)
{
    return (address + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

static void fill_block(struct block *block, const struct bb_gmem *mem, uint32_t at,
                       uint64_t module_at, uint64_t module_bytes)
{
    struct bb_e820 map[BB_E820_MAX];
    unsigned rows = bb_gmem_e820(mem, map);

    for (unsigned i = 0; i < rows; i++) {
        block->rows[i] = (struct mmap_row){
            .size = sizeof(struct mmap_row) - sizeof(uint32_t),
            .base_low = (uint32_t)map[i].first,
            .base_high = (uint32_t)(map[i].first >> 32),
            .length_low = (uint32_t)map[i].bytes,
            .length_high = (uint32_t)(map[i].bytes >> 32),
            .type = map[i].type,
        };
    }
    block->info = (struct info){
        .flags = INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER_NAME,
        .mem_lower = (uint32_t)(BB_EBDA_START >> 10),
        .mem_upper = (uint32_t)((mem->low_bytes - BB_HIGH_MEMORY_START) >> 10),
        .cmdline = at + (uint32_t)sizeof(*block),
        .mmap_length = rows * (uint32_t)sizeof(struct mmap_row),
        .mmap_addr = at + (uint32_t)offsetof(struct block, rows),
        .boot_loader_name = at + (uint32_t)offsetof(struct block, loader_name),
    };
    if (module_bytes != 0) {
        block->info.flags |= INFO_MODULES;
        block->info.mods_count = 1;
        block->info.mods_addr = at + (uint32_t)offsetof(struct block, module);
        block->module = (struct module){
            .mod_start = (uint32_t)module_at,
            .mod_end = (uint32_t)(module_at + module_bytes),
            .string = block->info.cmdline,
        };
    }
    memcpy(block->loader_name, "busbar", sizeof("busbar"));
}

int bb_multiboot_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                      const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err)
{
    const struct bb_gmem *mem = config->mem;
    const char *append = config->append != NULL ? config->append : "";
    const char *slash = strrchr(kernel->path, '/');
    char cmdline[NAME_MAX + 1 + CMDLINE_BYTES_MAX];
    /* As boot loaders have it: the first word is the kernel's own name, as in a program's argv. */
    (void)snprintf(cmdline, sizeof(cmdline), "%.*s%s%s", NAME_MAX, slash ? slash + 1 : kernel->path,
                   *append ? " " : "", append);
    uint64_t append_bytes = strlen(append) + 1, cmdline_bytes = strlen(cmdline) + 1;
    struct bb_elf_loaded loaded;

    int rc = load_kernel(mem, kernel, &loaded, err);
    if (rc != BB_OK) {
        return rc;
    }
    if (loaded.end > mem->low_bytes) {
        return bb_error_set(err, BB_E_RANGE,
                            "kernel '%s' lies above 4 GiB, where a 32-bit kernel can't start",
                            kernel->path);
    }
    if (append_bytes > CMDLINE_BYTES_MAX) {
        return bb_error_set(err, BB_E_RANGE, "--append is %llu bytes long: at most %d",
                            (unsigned long long)append_bytes - 1, CMDLINE_BYTES_MAX - 1);
    }
    /* At 1 MiB or above, so that a kernel in low memory doesn't push them into the ROMs. */
    uint64_t module_at =
        page_up(loaded.end > BB_HIGH_MEMORY_START ? loaded.end : BB_HIGH_MEMORY_START);
    if (initrd->bytes != 0 && bb_gmem_put(mem, module_at, initrd->data, initrd->bytes) != BB_OK) {
        return bb_error_set(err, BB_E_RANGE,
                            "initrd '%s' (%llu KiB) does not fit behind the kernel into the %llu "
                            "MiB of guest memory: give more --memory",
                            initrd->path, (unsigned long long)(initrd->bytes >> 10),
                            (unsigned long long)(mem->bytes >> 20));
    }
    uint64_t block_at = page_up(module_at + initrd->bytes);
    struct block block = {0};
    fill_block(&block, mem, (uint32_t)block_at, module_at, initrd->bytes);
    if (bb_gmem_put(mem, block_at, &block, sizeof(block)) != BB_OK ||
        bb_gmem_put(mem, block_at + sizeof(block), cmdline, cmdline_bytes) != BB_OK) {
        return bb_error_set(err, BB_E_RANGE,
                            "kernel '%s' leaves no room for boot information in the %llu MiB of "
                            "guest memory: give more --memory",
                            kernel->path, (unsigned long long)(mem->bytes >> 20));
    }
    *boot = (struct bb_boot){
        .mode = BB_BOOT_FLAT32,
        .ip = loaded.entry,
        .ax = LOADER_MAGIC,
        .bx = block_at,
    };
    return BB_OK;
}
