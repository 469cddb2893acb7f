/* SPDX-License-Identifier: MIT */
/*
 * Small kernel images, made in memory: a good multiboot ELF32, ELF64 and bzImage, whose fields a
 * test then spoils one by one, and machine code to put into them.
 */
#ifndef BUSBAR_TESTS_VMM_IMAGE_H
#define BUSBAR_TESTS_VMM_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "../../vmm/boot.h"

enum {
    IMAGE_BYTES = 16384,
    IMAGE_LOAD_AT = 0x200000,
    IMAGE_CODE_OFFSET = 0x1000, /* in ELF files */
    IMAGE_MULTIBOOT_OFFSET = 0x200,
    IMAGE_SETUP_SECTORS = 4,
};

struct image {
    uint8_t bytes[IMAGE_BYTES];
    struct bb_file file; /* over `bytes` */
};

/* Each fills `image` with a good one that holds `code` at its entry. */
void image_multiboot_elf(struct image *image, const uint8_t *code, size_t count);
void image_multiboot_addresses(struct image *image, const uint8_t *code, size_t count);
void image_elf64(struct image *image, const uint8_t *code, size_t count);
void image_bzimage(struct image *image, const uint8_t *code, size_t count);

/* Little-endian fields, by offset in the file. */
void image_set(struct image *image, size_t offset, uint64_t value, unsigned bytes);
uint64_t image_get(const struct image *image, size_t offset, unsigned bytes);

#endif
