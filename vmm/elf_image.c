/* SPDX-License-Identifier: MIT */
/* Loading ELF segments into guest RAM; see elf_image.h. Source: System V ABI, chapter 5. */
#include "elf_image.h"

#include <elf.h>
#include <string.h>

#include "../base/bits.h"
#include "acpi.h"

/* A program header of either class. */
struct segment {
    uint64_t offset, file_bytes, mem_bytes, paddr, vaddr;
};

/* The fields of either class's file header that matter here. */
struct header {
    uint64_t entry, table_offset;
    unsigned row_bytes, rows;
    bool is64;
};

bool bb_elf_probe(const struct bb_file *kernel, unsigned char elf_class)
{
    const uint8_t *ident = kernel->data;
    uint64_t need = elf_class == ELFCLASS64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr);
    return kernel->bytes >= need && memcmp(ident, ELFMAG, SELFMAG) == 0 &&
           ident[EI_CLASS] == elf_class && ident[EI_DATA] == ELFDATA2LSB;
}

static struct header read_header(const struct bb_file *kernel, uint16_t *machine)
{
    struct header h = {.is64 = kernel->data[EI_CLASS] == ELFCLASS64};
    if (h.is64) {
        Elf64_Ehdr e;
        memcpy(&e, kernel->data, sizeof(e));
        h.entry = e.e_entry;
        h.table_offset = e.e_phoff;
        h.row_bytes = e.e_phentsize;
        h.rows = e.e_phnum;
        *machine = e.e_machine;
    } else {
        Elf32_Ehdr e;
        memcpy(&e, kernel->data, sizeof(e));
        h.entry = e.e_entry;
        h.table_offset = e.e_phoff;
        h.row_bytes = e.e_phentsize;
        h.rows = e.e_phnum;
        *machine = e.e_machine;
    }
    return h;
}

/* Row `i` of the program header table, which lies in the file. False where it is not PT_LOAD. */
static bool read_segment(const struct bb_file *kernel, const struct header *h, unsigned i,
                         struct segment *s)
{
    const uint8_t *row = kernel->data + h->table_offset + (uint64_t)i * h->row_bytes;
    if (h->is64) {
        Elf64_Phdr p;
        memcpy(&p, row, sizeof(p));
        *s = (struct segment){p.p_offset, p.p_filesz, p.p_memsz, p.p_paddr, p.p_vaddr};
        return p.p_type == PT_LOAD && p.p_memsz != 0;
    }
    Elf32_Phdr p;
    memcpy(&p, row, sizeof(p));
    *s = (struct segment){p.p_offset, p.p_filesz, p.p_memsz, p.p_paddr, p.p_vaddr};
    return p.p_type == PT_LOAD && p.p_memsz != 0;
}

static int check_header(const struct bb_file *kernel, const struct header *h, uint16_t machine,
                        struct bb_error *err)
{
    uint16_t want = h->is64 ? EM_X86_64 : EM_386;
    unsigned row_min = h->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);

    if (machine != want) {
        return bb_error_set(err, BB_E_INVAL, "kernel '%s' is for ELF machine %u, not for x86",
                            kernel->path, machine);
    }
    if (h->rows == 0 || h->row_bytes < row_min) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' has no usable program headers: %u of %u bytes each",
                            kernel->path, h->rows, h->row_bytes);
    }
    uint64_t table_bytes = (uint64_t)h->rows * h->row_bytes;
    if (h->table_offset > kernel->bytes || table_bytes > kernel->bytes - h->table_offset) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' is truncated: its program headers at %#llx lie behind its "
                            "end at %#llx",
                            kernel->path, (unsigned long long)h->table_offset,
                            (unsigned long long)kernel->bytes);
    }
    return BB_OK;
}

static int load_segment(const struct bb_gmem *mem, const struct bb_file *kernel, uint64_t floor,
                        unsigned i, const struct segment *s, struct bb_error *err)
{
    if (s->offset > kernel->bytes || s->file_bytes > kernel->bytes - s->offset) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s' is truncated: segment %u needs %#llx bytes at %#llx, the "
                            "file ends at %#llx",
                            kernel->path, i, (unsigned long long)s->file_bytes,
                            (unsigned long long)s->offset, (unsigned long long)kernel->bytes);
    }
    if (s->file_bytes > s->mem_bytes) {
        return bb_error_set(err, BB_E_INVAL,
                            "kernel '%s': segment %u has %#llx bytes in the file for %#llx in "
                            "memory",
                            kernel->path, i, (unsigned long long)s->file_bytes,
                            (unsigned long long)s->mem_bytes);
    }
    uint8_t *to = bb_gmem_at(mem, s->paddr, s->mem_bytes);
    if (to == NULL) {
        return bb_error_set(err, BB_E_RANGE,
                            "kernel '%s': segment %u (%#llx bytes at %#llx) does not fit into the "
                            "%llu MiB of guest memory: give more --memory",
                            kernel->path, i, (unsigned long long)s->mem_bytes,
                            (unsigned long long)s->paddr, (unsigned long long)(mem->bytes >> 20));
    }
    if (s->paddr < floor || (s->paddr < BB_ACPI_END && s->paddr + s->mem_bytes > BB_ACPI_START)) {
        return bb_error_set(err, BB_E_RANGE,
                            "kernel '%s': segment %u at %#llx lies where the monitor puts its "
                            "tables: load it at 1 MiB or above",
                            kernel->path, i, (unsigned long long)s->paddr);
    }
    memcpy(to, kernel->data + s->offset, s->file_bytes);
    memset(to + s->file_bytes, 0, s->mem_bytes - s->file_bytes);
    return BB_OK;
}

int bb_elf_load(const struct bb_gmem *mem, const struct bb_file *kernel, uint64_t floor,
                struct bb_elf_loaded *loaded, struct bb_error *err)
{
    uint16_t machine;
    struct header h = read_header(kernel, &machine);
    struct segment s;
    uint64_t total = 0;
    uint64_t virtual_entry = 0;
    bool entry_is_physical = false;
    bool entry_is_virtual = false;
    struct bb_elf_loaded out = {.entry = h.entry, .first = UINT64_MAX};

    int rc = check_header(kernel, &h, machine, err);
    if (rc != BB_OK) {
        return rc;
    }
    for (unsigned i = 0; i < h.rows; i++) {
        if (!read_segment(kernel, &h, i, &s)) {
            continue;
        }
        if (s.mem_bytes > mem->bytes - total) {
            return bb_error_set(err, BB_E_RANGE,
                                "kernel '%s': its segments need more than the %llu MiB of guest "
                                "memory: give more --memory",
                                kernel->path, (unsigned long long)(mem->bytes >> 20));
        }
        total += s.mem_bytes;
        rc = load_segment(mem, kernel, floor, i, &s, err);
        if (rc != BB_OK) {
            return rc;
        }
        out.first = s.paddr < out.first ? s.paddr : out.first;
        out.end = s.paddr + s.mem_bytes > out.end ? s.paddr + s.mem_bytes : out.end;
        if (h.entry - s.paddr < s.mem_bytes) {
            entry_is_physical = true;
        } else if (h.entry - s.vaddr < s.mem_bytes) {
            entry_is_virtual = true;
            virtual_entry = s.paddr + (h.entry - s.vaddr);
        }
    }
    if (total == 0 || (!entry_is_physical && !entry_is_virtual)) {
        return bb_error_set(err, BB_E_INVAL, "kernel '%s': entry %#llx lies in no segment",
                            kernel->path, (unsigned long long)h.entry);
    }
    if (!entry_is_physical) {
        out.entry = virtual_entry;
    }
    *loaded = out;
    return BB_OK;
}
