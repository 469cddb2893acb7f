/* SPDX-License-Identifier: MIT */
/*
 * RAM and ROM: regions that are memory, and where that memory comes from.
 *
 * Accesses run at once wherever they are made, as relaxed-atomic loads and stores of up to 8 bytes.
 * RAM can be added and removed while guests run: removal takes it out of the map at once and
 * completes when no access and no mapping (bb_dma_map(), engine/dma.h) of it is left; only then is
 * the memory given back.
 *
 * All of size_bytes_max is mapped at creation and stays where it is; resizing (bb_txn_resize(),
 * memory/space.h) changes what guests see of it, and what is hidden keeps its contents.
 *
 * Signals. Memory of a file that someone makes shorter, or whose device fails, and huge pages or
 * NUMA nodes that run out, are told by the kernel with SIGBUS to the thread that touches them. So
 * is an access of a guard page with SIGSEGV, which no guest can cause. The engine installs no
 * handler: these are the embedder's. A memfd made here can't be made shorter; `prefault` finds what
 * is lacking at creation.
 */
#ifndef BUSBAR_MEMORY_RAM_H
#define BUSBAR_MEMORY_RAM_H

#include "region.h"

BB_BEGIN_DECLS

enum bb_ram_backing {
    BB_RAM_ANONYMOUS, /* private anonymous memory */
    BB_RAM_EMBEDDER,  /* `host`, which must outlive the region; never touched but by accesses. Also
                         meant by BB_RAM_ANONYMOUS with `host` set */
    BB_RAM_MEMFD,     /* shared memory with a descriptor, see bb_ram_fd() */
    BB_RAM_FILE,      /* a file of the embedder's: `path` or `fd` */
    BB_RAM_HUGETLB,   /* a memfd of huge pages of `page_bytes` */
};

/*
 * What is to be made. A field that does not go with the backing must be 0 (`fd` may be -1 as well).
 */
struct bb_ram_config {
    const char *name;        /* copied, at most 31 bytes */
    uint64_t size_bytes;     /* 1 to 2^46 */
    uint64_t size_bytes_max; /* up to which a transaction may resize it, 2^46 at most; 0:
                                size_bytes. The address range is reserved from the start, and huge
                                pages are */
    enum bb_ram_backing backing;
    void *host;         /* BB_RAM_EMBEDDER: size_bytes_max bytes, 8-byte aligned */
    const char *path;   /* BB_RAM_FILE: a regular file, opened for reading, and writing unless
                           private or read-only; never created, never made longer. NULL: `fd` is
                           meant */
    int fd;             /* BB_RAM_FILE without path: duplicated, the caller keeps its own */
    uint64_t fd_offset; /* BB_RAM_FILE: where in the file, a multiple of the file's page size */
    bool private_file;  /* BB_RAM_FILE: writes stay in this process. Those of a read-only file do as
                           well, should a transaction allow them later */
    uint64_t page_bytes; /* BB_RAM_HUGETLB: 2 MiB or 1 GiB or what the host has; 0: its default.
                            Others: a power of two from the host's page to 2^40 to align the memory
                            to; 0: no matter. Above the host's page anonymous memory is offered
                            transparent huge pages */
    bool numa;           /* bind to `numa_nodes`; refused where the host can't, and for files on
                            other than tmpfs and hugetlbfs */
    uint64_t numa_nodes; /* a bit for each node, 0 to 63 */
    bool prefault;       /* every page of size_bytes is there when creation returns */
    unsigned prefault_threads; /* 1 to 64; 0: one */
    bool no_guard;  /* leave out the inaccessible page before and behind memory that is mapped
                       here */
    bool read_only; /* ROM: guest writes are device errors */
};

/*
 * Makes a RAM region.
 * Returns BB_OK; BB_E_INVAL for an unaligned host address, no name, or fields that don't go with
 * the backing, naming the field; also for a descriptor that is not open for what is asked, and a
 * file that is not a regular one; BB_E_RANGE for a size of 0 or too large, a maximum below the
 * size, a file too short for it; BB_E_NOMEM; BB_E_UNSUPPORTED where the host has no such pages or
 * nodes; BB_E_SYSTEM where the operating system refused, with its reason.
 * Threads: the context's own; allocates, may block in the operating system (prefaulting: long).
 * Lifetime: until bb_region_remove().
 */
BB_API int bb_ram_create(struct bb_ctx *ctx, const struct bb_ram_config *config,
                         struct bb_region **region, struct bb_error *err);

/*
 * The descriptor behind MEMFD, HUGETLB and FILE memory and the offset of the region's first byte in
 * it (may be NULL), for other processes that map it too; -1 for other regions and private files,
 * *offset untouched.
 * Threads: any; wait-free.
 * Lifetime: the region's own; duplicate it to keep it.
 */
BB_API int bb_ram_fd(const struct bb_region *region, uint64_t *offset);

/* Bytes of the pages behind it: the host's, or the huge ones. Threads: any; wait-free. */
BB_API uint64_t bb_ram_page_bytes(const struct bb_region *region);

BB_END_DECLS

#endif
