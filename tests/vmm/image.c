/* SPDX-License-Identifier: MIT */
/* Kernel images made in memory; see image.h. */
#include "image.h"

#include <elf.h>
#include <string.h>

enum { MULTIBOOT_MAGIC = 0x1BADB002, MULTIBOOT_ADDRESSES = 1 << 16 };

void image_set(struct image *image, size_t offset, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        image->bytes[offset + i] = (uint8_t)(value >> (8 * i));
    }
}

uint64_t image_get(const struct image *image, size_t offset, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;) {
        value = value << 8 | image->bytes[offset + i];
    }
    return value;
}

static void begin(struct image *image)
{
    memset(image->bytes, 0, sizeof(image->bytes));
    image->file = (struct bb_file){.path = "image", .data = image->bytes, .bytes = IMAGE_BYTES};
}

static void put_multiboot(struct image *image, size_t offset, uint32_t flags)
{
    uint32_t checksum = 0 - (MULTIBOOT_MAGIC + flags);

    image_set(image, offset, MULTIBOOT_MAGIC, 4);
    image_set(image, offset + 4, flags, 4);
    image_set(image, offset + 8, checksum, 4);
}

void image_multiboot_elf(struct image *image, const uint8_t *code, size_t count)
{
    begin(image);
    Elf32_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_386,
        .e_version = EV_CURRENT,
        .e_entry = IMAGE_LOAD_AT,
        .e_phoff = sizeof(header),
        .e_ehsize = sizeof(header),
        .e_phentsize = sizeof(Elf32_Phdr),
        .e_phnum = 1,
    };
    Elf32_Phdr segment = {
        .p_type = PT_LOAD,
        .p_offset = IMAGE_CODE_OFFSET,
        .p_vaddr = IMAGE_LOAD_AT,
        .p_paddr = IMAGE_LOAD_AT,
        .p_filesz = IMAGE_BYTES - IMAGE_CODE_OFFSET,
        .p_memsz = IMAGE_BYTES,
    };
    memcpy(image->bytes, &header, sizeof(header));
    memcpy(image->bytes + sizeof(header), &segment, sizeof(segment));
    put_multiboot(image, IMAGE_MULTIBOOT_OFFSET, 0);
    memcpy(image->bytes + IMAGE_CODE_OFFSET, code, count);
}

void image_multiboot_addresses(struct image *image, const uint8_t *code, size_t count)
{
    const size_t at = IMAGE_MULTIBOOT_OFFSET;
    begin(image);
    put_multiboot(image, at, MULTIBOOT_ADDRESSES);
    image_set(image, at + 12, IMAGE_LOAD_AT + IMAGE_MULTIBOOT_OFFSET, 4); /* header_addr */
    image_set(image, at + 16, IMAGE_LOAD_AT, 4);                          /* load_addr */
    image_set(image, at + 20, IMAGE_LOAD_AT + IMAGE_BYTES, 4);            /* load_end_addr */
    image_set(image, at + 24, IMAGE_LOAD_AT + 2 * IMAGE_BYTES, 4);        /* bss_end_addr */
    image_set(image, at + 28, IMAGE_LOAD_AT + IMAGE_CODE_OFFSET, 4);      /* entry_addr */
    memcpy(image->bytes + IMAGE_CODE_OFFSET, code, count);
}

void image_elf64(struct image *image, const uint8_t *code, size_t count)
{
    begin(image);
    Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = IMAGE_LOAD_AT,
        .e_phoff = sizeof(header),
        .e_ehsize = sizeof(header),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 1,
    };
    Elf64_Phdr segment = {
        .p_type = PT_LOAD,
        .p_offset = IMAGE_CODE_OFFSET,
        .p_vaddr = UINT64_C(0xffffffff80000000) + IMAGE_LOAD_AT,
        .p_paddr = IMAGE_LOAD_AT,
        .p_filesz = IMAGE_BYTES - IMAGE_CODE_OFFSET,
        .p_memsz = IMAGE_BYTES,
    };
    memcpy(image->bytes, &header, sizeof(header));
    memcpy(image->bytes + sizeof(header), &segment, sizeof(segment));
    memcpy(image->bytes + IMAGE_CODE_OFFSET, code, count);
}

void image_bzimage(struct image *image, const uint8_t *code, size_t count)
{
    begin(image);
    image_set(image, 0x1f1, IMAGE_SETUP_SECTORS, 1);
    image_set(image, 0x1fe, 0xaa55, 2);
    image_set(image, 0x200, 0x6aeb, 2); /* the header ends at 0x202 + 0x6a */
    memcpy(image->bytes + 0x202, "HdrS", 4);
    image_set(image, 0x206, 0x020f, 2);
    image_set(image, 0x211, 1, 1);             /* loadflags: LOADED_HIGH */
    image_set(image, 0x22c, 0x7fffffff, 4);    /* initrd_addr_max */
    image_set(image, 0x230, 0x200000, 4);      /* kernel_alignment */
    image_set(image, 0x234, 1, 1);             /* relocatable */
    image_set(image, 0x236, 1, 2);             /* xloadflags: XLF_KERNEL_64 */
    image_set(image, 0x238, 255, 4);           /* cmdline_size */
    image_set(image, 0x258, IMAGE_LOAD_AT, 8); /* pref_address */
    image_set(image, 0x260, 0x10000, 4);       /* init_size */
    memcpy(image->bytes + (IMAGE_SETUP_SECTORS + 1) * 512 + 0x200, code, count);
}
