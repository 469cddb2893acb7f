/* SPDX-License-Identifier: MIT */
/*
 * Boot images: good ones land where they say; hostile ones are refused with a sentence, and never
 * touch memory outside of guest RAM or the file (which the sanitizer builds see: the file's bytes
 * are copied to a block of exactly its size).
 */
#include <criterion/criterion.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include "../../vmm/acpi.h"
#include "image.h"

enum { RAM_BYTES = 8 << 20, ROUNDS = 2000 };

static const uint8_t code[] = {0xf4, 0xeb, 0xfd}; /* hlt; jmp to it */

typedef int (*loader)(const struct bb_boot_config *config, const struct bb_file *kernel,
                      const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err);

/* Loads an image, with RAM and file of exactly the sizes given. */
static int load(loader loader, const struct image *image, uint64_t file_bytes,
                uint64_t initrd_bytes, const char *append, struct bb_boot *boot,
                struct bb_error *err)
{
    struct bb_gmem mem;
    cr_assert_eq(bb_gmem_create(RAM_BYTES, &mem, NULL), BB_OK);
    struct bb_file kernel = {.path = "image", .data = malloc(file_bytes), .bytes = file_bytes};
    struct bb_file initrd = {.path = "initrd", .bytes = initrd_bytes};
    if (initrd_bytes != 0) {
        initrd.data = calloc(1, initrd_bytes);
    }
    memcpy(kernel.data, image->bytes, file_bytes);
    struct bb_boot_config config = {.mem = &mem, .append = append, .rsdp = BB_ACPI_RSDP};
    *err = (struct bb_error){0};
    int rc = loader(&config, &kernel, &initrd, boot, err);
    if (rc == BB_OK && initrd_bytes == 0) {
        const uint8_t *entry = bb_gmem_at(&mem, boot->ip, 1);
        cr_assert_not_null(entry, "entry %#llx outside of RAM", (unsigned long long)boot->ip);
    }
    cr_assert(rc == BB_OK || err->text[0] != '\0', "refused without a word");
    bb_gmem_destroy(&mem);
    free(initrd.data);
    free(kernel.data);
    return rc;
}

struct spoiling {
    const char *what;
    size_t offset;
    uint64_t value;
    unsigned bytes;
    const char *said; /* part of the message; NULL: must still load */
};

static void spoil(loader loader, void (*make)(struct image *, const uint8_t *, size_t),
                  const struct spoiling *rows, size_t count)
{
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    for (size_t i = 0; i < count; i++) {
        make(&image, code, sizeof(code));
        image_set(&image, rows[i].offset, rows[i].value, rows[i].bytes);
        int rc = load(loader, &image, IMAGE_BYTES, 0, NULL, &boot, &err);
        if (rows[i].said == NULL) {
            cr_assert_eq(rc, BB_OK, "%s: %s", rows[i].what, err.text);
        } else {
            cr_assert_neq(rc, BB_OK, "%s was accepted", rows[i].what);
            cr_assert_not_null(strstr(err.text, rows[i].said), "%s: '%s' without '%s'",
                               rows[i].what, err.text, rows[i].said);
        }
    }
}
#define SPOIL(loader, make, rows) spoil(loader, make, rows, sizeof(rows) / sizeof((rows)[0]))

#define PH32(field) (sizeof(Elf32_Ehdr) + offsetof(Elf32_Phdr, field))
#define PH64(field) (sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, field))

Test(images, good_ones_of_each_kind_are_recognised)
{
    static struct image image;
    image_multiboot_elf(&image, code, sizeof(code));
    cr_assert(bb_multiboot_probe(&image.file) && !bb_bzimage_probe(&image.file) &&
              !bb_elf64_probe(&image.file));
    image_multiboot_addresses(&image, code, sizeof(code));
    cr_assert(bb_multiboot_probe(&image.file) && !bb_elf64_probe(&image.file));
    image_elf64(&image, code, sizeof(code));
    cr_assert(bb_elf64_probe(&image.file) && !bb_bzimage_probe(&image.file));
    image_bzimage(&image, code, sizeof(code));
    cr_assert(bb_bzimage_probe(&image.file) && !bb_elf64_probe(&image.file));
}

Test(images, good_ones_start_where_they_say)
{
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    image_multiboot_elf(&image, code, sizeof(code));
    cr_assert_eq(load(bb_multiboot_load, &image, IMAGE_BYTES, 0, "x", &boot, &err), BB_OK);
    cr_assert(boot.mode == BB_BOOT_FLAT32 && boot.ip == IMAGE_LOAD_AT && boot.ax == 0x2BADB002);
    image_multiboot_addresses(&image, code, sizeof(code));
    cr_assert_eq(load(bb_multiboot_load, &image, IMAGE_BYTES, 0, "x", &boot, &err), BB_OK);
    cr_assert_eq(boot.ip, (uint64_t)IMAGE_LOAD_AT + IMAGE_CODE_OFFSET);
    image_elf64(&image, code, sizeof(code));
    cr_assert_eq(load(bb_elf64_load, &image, IMAGE_BYTES, 0, "x", &boot, &err), BB_OK);
    cr_assert(boot.mode == BB_BOOT_LONG64 && boot.ip == IMAGE_LOAD_AT && boot.si != 0);
    image_bzimage(&image, code, sizeof(code));
    cr_assert_eq(load(bb_bzimage_load, &image, IMAGE_BYTES, 0, "x", &boot, &err), BB_OK);
    cr_assert(boot.mode == BB_BOOT_LONG64 && boot.ip == IMAGE_LOAD_AT + 0x200);
}

Test(images, wild_elf32_headers_are_refused)
{
    static const struct spoiling rows[] = {
        {"other machine", offsetof(Elf32_Ehdr, e_machine), EM_ARM, 2, "not for x86"},
        {"no program headers", offsetof(Elf32_Ehdr, e_phnum), 0, 2, "no usable program headers"},
        {"short rows", offsetof(Elf32_Ehdr, e_phentsize), 31, 2, "no usable program headers"},
        {"table behind the end", offsetof(Elf32_Ehdr, e_phoff), IMAGE_BYTES, 4, "truncated"},
        {"table at the last byte", offsetof(Elf32_Ehdr, e_phoff), IMAGE_BYTES - 31, 4, "truncated"},
        {"table far away", offsetof(Elf32_Ehdr, e_phoff), 0xffffffff, 4, "truncated"},
        {"65535 rows", offsetof(Elf32_Ehdr, e_phnum), 0xffff, 2, "truncated"},
        {"segment behind the end", PH32(p_offset), IMAGE_BYTES + 1, 4, "truncated"},
        {"segment far away", PH32(p_offset), 0xffffffff, 4, "truncated"},
        {"segment one byte too long", PH32(p_filesz), IMAGE_BYTES - IMAGE_CODE_OFFSET + 1, 4,
         "truncated"},
        {"more in the file than in memory", PH32(p_memsz), 0x10, 4, "in the file"},
        {"above memory", PH32(p_paddr), RAM_BYTES, 4, "guest memory"},
        {"one byte over the end of memory", PH32(p_paddr), RAM_BYTES - IMAGE_BYTES + 1, 4,
         "guest memory"},
        {"wrapping", PH32(p_paddr), 0xfffff000, 4, "guest memory"},
        {"huge", PH32(p_memsz), 0xffffffff, 4, "guest memory"},
        {"over the firmware tables", PH32(p_paddr), 0xe0000, 4, "tables"},
        {"into the firmware tables", PH32(p_paddr), 0xe0000 - IMAGE_BYTES + 1, 4, "tables"},
        {"entry outside", offsetof(Elf32_Ehdr, e_entry), 0x100, 4, "in no segment"},
        {"entry one behind", offsetof(Elf32_Ehdr, e_entry), IMAGE_LOAD_AT + IMAGE_BYTES, 4,
         "in no segment"},
        {"last byte as entry", offsetof(Elf32_Ehdr, e_entry), IMAGE_LOAD_AT + IMAGE_BYTES - 1, 4,
         NULL},
        {"no segment to load", PH32(p_type), PT_NOTE, 4, "in no segment"},
    };
    SPOIL(bb_multiboot_load, image_multiboot_elf, rows);
}

Test(images, wild_multiboot_addresses_are_refused)
{
    const size_t at = IMAGE_MULTIBOOT_OFFSET;
    const struct spoiling rows[] = {
        {"header below the load address", at + 12, IMAGE_LOAD_AT - 4, 4, "multiboot header"},
        {"header too far up", at + 12, IMAGE_LOAD_AT + IMAGE_BYTES, 4, "multiboot header"},
        {"load address above the header", at + 16, 0xfffffff0, 4, "multiboot header"},
        {"end before the start", at + 20, IMAGE_LOAD_AT - 1, 4, "truncated"},
        {"end behind the file", at + 20, IMAGE_LOAD_AT + IMAGE_BYTES + 1, 4, "truncated"},
        {"bss outside of memory", at + 24, 0xffffffff, 4, "does not fit"},
        {"bss to the end of memory", at + 24, RAM_BYTES - 8192, 4, NULL},
        {"bss that leaves no room", at + 24, RAM_BYTES, 4, "no room"},
        {"entry below", at + 28, IMAGE_LOAD_AT - 1, 4, "entry"},
        {"entry above", at + 28, 0xffffffff, 4, "entry"},
    };
    SPOIL(bb_multiboot_load, image_multiboot_addresses, rows);
}

Test(images, wild_elf64_headers_are_refused)
{
    static const struct spoiling rows[] = {
        {"other machine", offsetof(Elf64_Ehdr, e_machine), EM_AARCH64, 2, "not for x86"},
        {"table far away", offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX, 8, "truncated"},
        {"table whose end wraps", offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX - 16, 8, "truncated"},
        {"segment far away", PH64(p_offset), UINT64_MAX, 8, "truncated"},
        {"segment whose end wraps", PH64(p_filesz), UINT64_MAX - 100, 8, "truncated"},
        {"memory size wraps", PH64(p_memsz), UINT64_MAX, 8, "guest memory"},
        {"address wraps", PH64(p_paddr), UINT64_MAX - 100, 8, "guest memory"},
        {"in the devices' hole", PH64(p_paddr), 0xfed00000, 8, "guest memory"},
        {"over the boot parameters", PH64(p_paddr), 0x2000, 8, "1 MiB"},
        {"entry outside", offsetof(Elf64_Ehdr, e_entry), UINT64_MAX, 8, "in no segment"},
        {"virtual entry", offsetof(Elf64_Ehdr, e_entry),
         UINT64_C(0xffffffff80000000) + IMAGE_LOAD_AT + 4, 8, NULL},
    };
    SPOIL(bb_elf64_load, image_elf64, rows);
}

Test(images, wild_bzimage_headers_are_refused)
{
    static const struct spoiling rows[] = {
        {"old protocol", 0x206, 0x020b, 2, "2.12"},
        {"setup sectors behind the end", 0x1f1, 255, 1, "truncated"},
        {"setup sectors to the last byte", 0x1f1, IMAGE_BYTES / 512 - 1, 1, "truncated"},
        {"setup sectors that leave an entry", 0x1f1, IMAGE_BYTES / 512 - 3, 1, NULL},
        {"default count of setup sectors", 0x1f1, 0, 1, NULL},
        {"short header", 0x201, 0x10, 1, "truncated"},
        {"header to its limit", 0x201, 0xff, 1, NULL},
        {"no 64-bit entry", 0x236, 0, 2, "64-bit"},
        {"loaded low", 0x211, 0, 1, "64-bit"},
        {"init_size over memory", 0x260, 0xffffffff, 4, "guest memory"},
        {"preferred address outside: moved", 0x258, UINT64_MAX, 8, NULL},
        {"preferred address at the end: moved", 0x258, RAM_BYTES - 0x1000, 8, NULL},
        {"preferred address in low memory: moved", 0x258, 0x1000, 8, NULL},
        {"alignment of 0", 0x230, 0, 4, NULL},
        {"huge alignment", 0x230, 0xffffffff, 4, NULL},
    };
    SPOIL(bb_bzimage_load, image_bzimage, rows);
}

Test(images, a_fixed_kernel_outside_of_memory_is_refused)
{
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    image_bzimage(&image, code, sizeof(code));
    image_set(&image, 0x234, 0, 1);
    image_set(&image, 0x258, RAM_BYTES, 8);
    cr_assert_eq(load(bb_bzimage_load, &image, IMAGE_BYTES, 0, NULL, &boot, &err), BB_E_RANGE);
}

Test(images, initrds_of_any_size_fit_or_are_refused)
{
    static const struct {
        loader loader;
        void (*make)(struct image *, const uint8_t *, size_t);
    } kinds[] = {
        {bb_multiboot_load, image_multiboot_elf},
        {bb_elf64_load, image_elf64},
        {bb_bzimage_load, image_bzimage},
    };
    static const uint64_t fits[] = {1, 4095, 4096, 4097, 4 << 20};
    static const uint64_t too_large[] = {RAM_BYTES - 0x200000, RAM_BYTES - 1, RAM_BYTES,
                                         RAM_BYTES + 1};
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        kinds[k].make(&image, code, sizeof(code));
        for (size_t i = 0; i < sizeof(fits) / sizeof(fits[0]); i++) {
            int rc = load(kinds[k].loader, &image, IMAGE_BYTES, fits[i], NULL, &boot, &err);
            cr_assert_eq(rc, BB_OK, "kind %zu, %llu bytes: %s", k, (unsigned long long)fits[i],
                         err.text);
        }
        for (size_t i = 0; i < sizeof(too_large) / sizeof(too_large[0]); i++) {
            int rc = load(kinds[k].loader, &image, IMAGE_BYTES, too_large[i], NULL, &boot, &err);
            cr_assert_eq(rc, BB_E_RANGE, "kind %zu, %llu bytes", k,
                         (unsigned long long)too_large[i]);
        }
    }
}

Test(images, a_command_line_of_the_kernel_s_limit_fits_and_one_more_byte_does_not)
{
    static struct image image;
    static char text[70000];
    struct bb_boot boot;
    struct bb_error err;
    image_bzimage(&image, code, sizeof(code));
    memset(text, 'a', 255);
    cr_assert_eq(load(bb_bzimage_load, &image, IMAGE_BYTES, 0, text, &boot, &err), BB_OK);
    text[255] = 'a';
    cr_assert_eq(load(bb_bzimage_load, &image, IMAGE_BYTES, 0, text, &boot, &err), BB_E_RANGE);
    /* Of a multiboot kernel that is --append's; its own name goes before it, and is not counted. */
    image_multiboot_elf(&image, code, sizeof(code));
    memset(text, 'a', 65535);
    cr_assert_eq(load(bb_multiboot_load, &image, IMAGE_BYTES, 0, text, &boot, &err), BB_OK);
    text[65535] = 'a';
    cr_assert_eq(load(bb_multiboot_load, &image, IMAGE_BYTES, 0, text, &boot, &err), BB_E_RANGE);
}

static const struct kind {
    bool (*probe)(const struct bb_file *kernel);
    loader loader;
    void (*make)(struct image *image, const uint8_t *code, size_t count);
} kinds[] = {
    {bb_multiboot_probe, bb_multiboot_load, image_multiboot_elf},
    {bb_multiboot_probe, bb_multiboot_load, image_multiboot_addresses},
    {bb_elf64_probe, bb_elf64_load, image_elf64},
    {bb_bzimage_probe, bb_bzimage_load, image_bzimage},
};

Test(images, a_file_cut_off_anywhere_is_refused_or_loads)
{
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        kinds[k].make(&image, code, sizeof(code));
        for (uint64_t bytes = 1; bytes < IMAGE_BYTES; bytes += bytes < 2048 ? 1 : 509) {
            uint8_t *exact = malloc(bytes);
            memcpy(exact, image.bytes, bytes);
            struct bb_file file = {.path = "image", .data = exact, .bytes = bytes};
            bool probed = kinds[k].probe(&file);
            free(exact);
            if (probed) {
                load(kinds[k].loader, &image, bytes, 0, NULL, &boot, &err);
            }
        }
    }
}

/* xorshift64: seeded, and the seed is printed with every failure. */
static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

Test(images, no_random_damage_of_headers_harms_the_loader, .timeout = 60)
{
    static const uint64_t extremes[] = {0,          1,          0x7fffffff, 0x80000000,
                                        0xffffffff, UINT64_MAX, RAM_BYTES,  IMAGE_BYTES};
    const uint64_t seed = 0x9e3779b97f4a7c15;
    uint64_t random = seed;
    static struct image image;
    struct bb_boot boot;
    struct bb_error err;
    unsigned accepted = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        const struct kind *kind = &kinds[round % (sizeof(kinds) / sizeof(kinds[0]))];
        kind->make(&image, code, sizeof(code));
        unsigned changes = 1 + (unsigned)(next(&random) % 4);
        for (unsigned i = 0; i < changes; i++) {
            static const size_t windows[][2] = {{0, 0x74}, {0x1f1, 0x74}, {0x200, 0x20}};
            const size_t *window = windows[next(&random) % 3];
            size_t offset = window[0] + next(&random) % window[1];
            uint64_t value = next(&random) % 2 != 0 ? next(&random) : extremes[next(&random) % 8];
            image_set(&image, offset, value, 1u << (next(&random) % 4));
        }
        image.file.bytes = IMAGE_BYTES;
        if (kind->probe(&image.file)) {
            accepted += load(kind->loader, &image, IMAGE_BYTES, 0, NULL, &boot, &err) == BB_OK;
        }
    }
    cr_assert_gt(accepted, 0u, "seed %#llx", (unsigned long long)seed);
}
