/* SPDX-License-Identifier: MIT */
/*
 * ELF executables of either class, reduced to what a boot loader needs: the segments to load and
 * the entry's physical address. The image is hostile: every offset is checked against the file's
 * size before it is used, every address against guest RAM, and the sum of all segments against
 * what RAM there is, so that no table of overlapping segments keeps the loader busy.
 */
#ifndef BUSBAR_VMM_ELF_IMAGE_H
#define BUSBAR_VMM_ELF_IMAGE_H

#include "boot.h"

/* True where the file begins with a little-endian x86 executable's header of `elf_class`. */
bool bb_elf_probe(const struct bb_file *kernel, unsigned char elf_class);

/* What was loaded: the addresses it covers, and where to enter it. */
struct bb_elf_loaded {
    uint64_t entry;
    uint64_t first; /* lowest address of any segment */
    uint64_t end;   /* one past the highest */
};

/*
 * Loads every PT_LOAD segment at its physical address, which must not be below `floor`; the rest
 * of a segment behind its file part is zeroed. An entry that is no physical address inside a
 * segment, but a virtual one, is translated.
 * Returns BB_OK, or BB_E_INVAL or BB_E_RANGE with a sentence that names the segment.
 */
int bb_elf_load(const struct bb_gmem *mem, const struct bb_file *kernel, uint64_t floor,
                struct bb_elf_loaded *loaded, struct bb_error *err);

#endif
