/* SPDX-License-Identifier: MIT */
/*
 * Linux by the 64-bit boot protocol: bzImage (entered 0x200 behind its protected-mode part) and
 * vmlinux (an ELF64, entered at its entry). The kernel finds long mode with an identity map of the
 * low 4 GiB, and in rsi the address of boot_params.
 * Source: the kernel's Documentation/arch/x86/boot.rst and zero-page.rst, protocol 2.12 and later.
 *
 * Guest memory below 1 MiB, in RAM that e820 gives to the kernel:
 *   0x01000  GDT        0x02000  boot_params    0x03000  page tables (6 pages)
 *   0x10000  command line, 64 KiB at most
 * The kernel lies at its preferred address, the initrd as high in low RAM as the kernel allows.
 */
#include <elf.h>
#include <string.h>

#include "acpi.h"
#include "boot.h"
#include "elf_image.h"

enum {
    GDT_AT = 0x1000,
    BOOT_PARAMS_AT = 0x2000,
    TABLES_AT = 0x3000,
    CMDLINE_AT = 0x10000,
    CMDLINE_BYTES_MAX = 0x10000,
    BOOT_PARAMS_BYTES = 4096,
    PAGE = 4096,

    /* boot_params (zero-page.rst). */
    BP_ACPI_RSDP = 0x070,
    BP_E820_ENTRIES = 0x1e8,
    BP_E820_TABLE = 0x2d0,
    BP_E820_ROW = 20,

    /* The setup header, at the same offset in the file and in boot_params (boot.rst). */
    SH_START = 0x1f1, /* setup_sects: sectors behind the first; 0 means 4 */
    SH_BOOT_FLAG = 0x1fe,
    SH_JUMP_OFFSET = 0x201, /* the header ends this far behind 0x202 */
    SH_MAGIC = 0x202,
    SH_VERSION = 0x206,
    SH_TYPE_OF_LOADER = 0x210,
    SH_LOADFLAGS = 0x211,
    SH_CODE32_START = 0x214,
    SH_RAMDISK_IMAGE = 0x218,
    SH_RAMDISK_SIZE = 0x21c,
    SH_CMD_LINE_PTR = 0x228,
    SH_INITRD_ADDR_MAX = 0x22c,
    SH_KERNEL_ALIGNMENT = 0x230,
    SH_RELOCATABLE = 0x234,
    SH_XLOADFLAGS = 0x236,
    SH_CMDLINE_SIZE = 0x238,
    SH_PREF_ADDRESS = 0x258,
    SH_INIT_SIZE = 0x260,
    SH_END_MIN = 0x264, /* of a header that has all of the above */
    SH_END_MAX = 0x290, /* boot_params has other things from here on */

    LOADED_HIGH = 1 << 0,
    XLF_KERNEL_64 = 1 << 0,
    LOADER_UNDEFINED = 0xff,
    ENTRY_64 = 0x200,
    SECTOR = 512,
    VERSION_MIN = 0x020c,
};

#define INITRD_ADDR_MAX_DEFAULT UINT64_C(0x7fffffff)

static uint64_t get_uint(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)at[i] << (8 * i);
    }
    return value;
}

static void set_uint(uint8_t *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Where the kernel lies, and the bounds that it sets for what is loaded besides. */
struct placed {
    uint64_t first, end; /* of all memory it uses before it looks at e820 */
    uint64_t entry;
    uint64_t initrd_addr_max; /* highest address of the initrd's last byte */
    uint64_t cmdline_max;     /* bytes, without the final 0 */
};

/* GDT and page tables: selectors 0x10 and 0x18, and 4 GiB mapped one to one by 2 MiB pages. */
static int write_tables(const struct bb_gmem *mem, struct bb_error *err)
{
    static const uint64_t gdt[4] = {
        [BB_BOOT_CS / 8] = UINT64_C(0x00af9b000000ffff), /* code: 64-bit, present, DPL 0 */
        [BB_BOOT_DS / 8] = UINT64_C(0x00cf93000000ffff), /* data: 4 GiB, writable */
    };
    const uint64_t present_writable = 3;
    const uint64_t large = 1 << 7;
    uint64_t *tables = bb_gmem_at(mem, TABLES_AT, 6 * PAGE);

    if (tables == NULL || bb_gmem_put(mem, GDT_AT, gdt, sizeof(gdt)) != BB_OK) {
        return bb_error_set(err, BB_E_RANGE, "guest memory is too small: give more --memory");
    }
    memset(tables, 0, 6 * PAGE);
    tables[0] = (TABLES_AT + PAGE) | present_writable;
    for (uint64_t gib = 0; gib < 4; gib++) {
        tables[512 + gib] = (TABLES_AT + (2 + gib) * PAGE) | present_writable;
    }
    for (uint64_t i = 0; i < 4 * 512; i++) {
        tables[2 * 512 + i] = (i << 21) | present_writable | large;
    }
    return BB_OK;
}

static int place_cmdline(const struct bb_boot_config *config, const struct placed *placed,
                         uint8_t *params, struct bb_error *err)
{
    const char *cmdline = config->append != NULL ? config->append : "";
    uint64_t bytes = strlen(cmdline);
    uint64_t max =
        placed->cmdline_max < CMDLINE_BYTES_MAX - 1 ? placed->cmdline_max : CMDLINE_BYTES_MAX - 1;
    if (bytes > max || bb_gmem_put(config->mem, CMDLINE_AT, cmdline, bytes + 1) != BB_OK) {
        return bb_error_set(err, BB_E_RANGE,
                            "--append is %llu bytes long: this kernel takes at most %llu",
                            (unsigned long long)bytes, (unsigned long long)max);
    }
    set_uint(params + SH_CMD_LINE_PTR, CMDLINE_AT, 4);
    return BB_OK;
}

/* As high in low RAM as the kernel allows, page-aligned, and not into the kernel. */
static int place_initrd(const struct bb_gmem *mem, const struct bb_file *initrd,
                        const struct placed *placed, uint8_t *params, struct bb_error *err)
{
    if (initrd->bytes == 0) {
        return BB_OK;
    }
    uint64_t end = mem->low_bytes;
    if (placed->initrd_addr_max < end - 1) {
        end = placed->initrd_addr_max + 1;
    }
    uint64_t at = initrd->bytes < end ? (end - initrd->bytes) & ~(uint64_t)(PAGE - 1) : 0;
    if (at < BB_HIGH_MEMORY_START || (at < placed->end && placed->first < end) ||
        bb_gmem_put(mem, at, initrd->data, initrd->bytes) != BB_OK) {
        return bb_error_set(err, BB_E_RANGE,
                            "initrd '%s' (%llu KiB) does not fit beside the kernel into the %llu "
                            "MiB of guest memory: give more --memory",
                            initrd->path, (unsigned long long)((initrd->bytes + 1023) >> 10),
                            (unsigned long long)(mem->bytes >> 20));
    }
    set_uint(params + SH_RAMDISK_IMAGE, at, 4);
    set_uint(params + SH_RAMDISK_SIZE, initrd->bytes, 4);
    return BB_OK;
}

/* What both forms have in common: fills in boot_params, which holds the kernel's setup header. */
static int finish(const struct bb_boot_config *config, const struct bb_file *initrd,
                  const struct placed *placed, uint8_t *params, struct bb_boot *boot,
                  struct bb_error *err)
{
    struct bb_e820 map[BB_E820_MAX];
    unsigned rows = bb_gmem_e820(config->mem, map);

    params[SH_TYPE_OF_LOADER] = LOADER_UNDEFINED;
    set_uint(params + BP_ACPI_RSDP, config->rsdp, 8);
    params[BP_E820_ENTRIES] = (uint8_t)rows;
    for (unsigned i = 0; i < rows; i++) {
        uint8_t *row = params + BP_E820_TABLE + i * BP_E820_ROW;
        set_uint(row, map[i].first, 8);
        set_uint(row + 8, map[i].bytes, 8);
        set_uint(row + 16, map[i].type, 4);
    }
    int rc = place_cmdline(config, placed, params, err);
    if (rc == BB_OK) {
        rc = place_initrd(config->mem, initrd, placed, params, err);
    }
    if (rc == BB_OK) {
        rc = write_tables(config->mem, err);
    }
    if (rc != BB_OK) {
        return rc;
    }
    bb_gmem_put(config->mem, BOOT_PARAMS_AT, params, BOOT_PARAMS_BYTES);
    *boot = (struct bb_boot){
        .mode = BB_BOOT_LONG64,
        .ip = placed->entry,
        .si = BOOT_PARAMS_AT,
        .cr3 = TABLES_AT,
        .gdt_base = GDT_AT,
        .gdt_limit = 4 * 8 - 1,
    };
    return BB_OK;
}

bool bb_bzimage_probe(const struct bb_file *kernel)
{
    return kernel->bytes >= SH_VERSION + 2 && memcmp(kernel->data + SH_MAGIC, "HdrS", 4) == 0 &&
           get_uint(kernel->data + SH_BOOT_FLAG, 2) == 0xaa55;
}

/* Checks what the header says of itself. */
static int check_header(const struct bb_file *kernel, struct bb_error *err)
{
    unsigned version = (unsigned)get_uint(kernel->data + SH_VERSION, 2);

    if (version < VERSION_MIN) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "kernel '%s' has boot protocol %u.%02u: 2.12 or later is needed",
                            kernel->path, version >> 8, version & 0xff);
    }
    if (kernel->bytes < SH_END_MIN ||
        SH_MAGIC + (uint64_t)kernel->data[SH_JUMP_OFFSET] < SH_END_MIN) {
        return bb_error_set(err, BB_E_INVAL, "kernel '%s' is truncated in its setup header",
                            kernel->path);
    }
    if ((kernel->data[SH_LOADFLAGS] & LOADED_HIGH) == 0 ||
        (get_uint(kernel->data + SH_XLOADFLAGS, 2) & XLF_KERNEL_64) == 0) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "kernel '%s' has no 64-bit entry: a 64-bit bzImage is needed",
                            kernel->path);
    }
    return BB_OK;
}

/*
 * Chooses the load address: the preferred one, or, where that is outside RAM and the kernel can be
 * moved, the lowest that its alignment allows from 1 MiB up. `need` is what it uses from there.
 */
static int choose_address(const struct bb_gmem *mem, const struct bb_file *kernel, uint64_t need,
                          uint64_t *at, struct bb_error *err)
{
    uint64_t preferred = get_uint(kernel->data + SH_PREF_ADDRESS, 8);
    uint64_t alignment = get_uint(kernel->data + SH_KERNEL_ALIGNMENT, 4);

    if (preferred >= BB_HIGH_MEMORY_START && preferred < BB_RAM_LOW_END &&
        bb_gmem_at(mem, preferred, need) != NULL) {
        *at = preferred;
        return BB_OK;
    }
    if (kernel->data[SH_RELOCATABLE] != 0 && alignment != 0) {
        uint64_t moved = (BB_HIGH_MEMORY_START + alignment - 1) / alignment * alignment;
        if (bb_gmem_at(mem, moved, need) != NULL) {
            *at = moved;
            return BB_OK;
        }
    }
    return bb_error_set(err, BB_E_RANGE,
                        "kernel '%s' needs %llu KiB at %#llx, which %llu MiB of guest memory "
                        "don't have: give more --memory",
                        kernel->path, (unsigned long long)((need + 1023) >> 10),
                        (unsigned long long)preferred, (unsigned long long)(mem->bytes >> 20));
}

int bb_bzimage_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                    const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err)
{
    uint8_t params[BOOT_PARAMS_BYTES] = {0};
    int rc = check_header(kernel, err);
    if (rc != BB_OK) {
        return rc;
    }
    uint64_t setup_sectors = kernel->data[SH_START] != 0 ? kernel->data[SH_START] : 4;
    uint64_t payload_at = (setup_sectors + 1) * SECTOR;
    if (payload_at + ENTRY_64 >= kernel->bytes) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' is truncated: its %llu setup sectors end at %#llx, the "
                            "file at %#llx",
                            kernel->path, (unsigned long long)setup_sectors,
                            (unsigned long long)payload_at, (unsigned long long)kernel->bytes);
    }
    uint64_t payload_bytes = kernel->bytes - payload_at;
    uint64_t init_size = get_uint(kernel->data + SH_INIT_SIZE, 4);
    uint64_t need = init_size > payload_bytes ? init_size : payload_bytes;
    uint64_t at = 0;
    rc = choose_address(config->mem, kernel, need, &at, err);
    if (rc != BB_OK) {
        return rc;
    }
    bb_gmem_put(config->mem, at, kernel->data + payload_at, payload_bytes);

    uint64_t header_end = SH_MAGIC + (uint64_t)kernel->data[SH_JUMP_OFFSET];
    header_end = header_end < SH_END_MAX ? header_end : SH_END_MAX;
    header_end = header_end < kernel->bytes ? header_end : kernel->bytes;
    memcpy(params + SH_START, kernel->data + SH_START, header_end - SH_START);
    set_uint(params + SH_CODE32_START, at, 4);

    struct placed placed = {
        .first = at,
        .end = at + need,
        .entry = at + ENTRY_64,
        .initrd_addr_max = get_uint(kernel->data + SH_INITRD_ADDR_MAX, 4),
        .cmdline_max = get_uint(kernel->data + SH_CMDLINE_SIZE, 4),
    };
    return finish(config, initrd, &placed, params, boot, err);
}

bool bb_elf64_probe(const struct bb_file *kernel)
{
    return bb_elf_probe(kernel, ELFCLASS64);
}

/* A vmlinux has no setup header; boot_params gets one that says what a loader filled in. */
int bb_elf64_load(const struct bb_boot_config *config, const struct bb_file *kernel,
                  const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err)
{
    uint8_t params[BOOT_PARAMS_BYTES] = {0};
    struct bb_elf_loaded loaded;
    int rc = bb_elf_load(config->mem, kernel, BB_HIGH_MEMORY_START, &loaded, err);
    if (rc != BB_OK) {
        return rc;
    }
    if (loaded.end > BB_RAM_LOW_END) {
        return bb_error_set(err, BB_E_RANGE, "kernel '%s' lies above the low 3 GiB", kernel->path);
    }
    set_uint(params + SH_BOOT_FLAG, 0xaa55, 2);
    memcpy(params + SH_MAGIC, "HdrS", 4);
    set_uint(params + SH_VERSION, 0x020f, 2);
    params[SH_LOADFLAGS] = LOADED_HIGH;
    struct placed placed = {
        .first = loaded.first,
        .end = loaded.end,
        .entry = loaded.entry,
        .initrd_addr_max = INITRD_ADDR_MAX_DEFAULT,
        .cmdline_max = CMDLINE_BYTES_MAX - 1,
    };
    return finish(config, initrd, &placed, params, boot, err);
}
