/* SPDX-License-Identifier: MIT */
/*
 * Where the memory of RAM and ROM comes from: anonymous memory, a memfd, a file, huge pages; bound
 * to NUMA nodes, aligned, prefaulted, between guard pages.
 *
 * A block is one mapping of size_bytes_max, made at creation and never moved or grown: resizing
 * changes what views show of it and nothing here. Where a step fails, all before it is undone.
 *
 * busbar is a guest in the process. So no error path unmaps an address that another thread may have
 * been given meanwhile: memory gets its place by a reservation, which turns into anonymous memory
 * by mprotect(), and into a file's by MAP_FIXED only after a mapping elsewhere has shown that the
 * file can be mapped. (A MAP_FIXED that fails may leave a hole.)
 *
 * Left out: files that are not regular ones, since their length can't be checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "memory_internal.h"

enum {
    NODE_WORDS = 16, /* the kernel refuses fewer bits than it has possible nodes: 1 024 at most */
};

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u /* Linux 6.3 */
#endif
#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif

static uint64_t host_page_bytes(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t round_up(uint64_t number, uint64_t pow2)
{
    return (number + pow2 - 1) & ~(pow2 - 1);
}

uint64_t bb_ram_bytes_max_(const struct bb_ram_config *config)
{
    return config->size_bytes_max != 0 ? config->size_bytes_max : config->size_bytes;
}

static int system_error(struct bb_error *err, const struct bb_ram_config *config, const char *what,
                        int code)
{
    return bb_error_set(err, BB_E_SYSTEM, "RAM '%.31s': %s: %s", config->name, what,
                        strerror(code));
}

/*
 * Descriptors: each opens, checks and fills in what the block says about its pages.
 */

static int make_memfd(const char *name, unsigned flags)
{
    /* Where executable memfds are forbidden, the flag is needed; before 6.3 it is unknown. */
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);

    return fd < 0 && errno == EINVAL ? memfd_create(name, flags) : fd;
}

/* Gives a memfd its length, for good: nobody who was handed it can make accesses of it fail. */
static int size_memfd(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                      struct bb_error *err)
{
    if (ftruncate(block->fd, (off_t)round_up(bb_ram_bytes_max_(config), block->page_bytes)) != 0) {
        return system_error(err, config, "the memfd can't be given its size", errno);
    }
    if (fcntl(block->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return system_error(err, config, "the memfd can't be sealed", errno);
    }
    block->shared = true;
    return BB_OK;
}

static int open_memfd(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                      struct bb_error *err)
{
    block->fd = make_memfd(config->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (block->fd < 0) {
        return system_error(err, config, "no memfd", errno);
    }
    return size_memfd(block, config, err);
}

static int no_huge_pages(struct bb_error *err, const struct bb_ram_config *config, uint64_t page)
{
    uint64_t pages = round_up(bb_ram_bytes_max_(config), page) / page;

    return bb_error_set(err, BB_E_UNSUPPORTED,
                        "RAM '%.31s': the host can't give %" PRIu64 " huge pages of %" PRIu64
                        " KiB; reserve them: add as many to "
                        "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/nr_hugepages",
                        config->name, pages, page >> 10, page >> 10);
}

static int open_hugetlb(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                        struct bb_error *err)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB;
    struct stat status;

    if (config->page_bytes != 0) {
        flags |= (unsigned)__builtin_ctzll(config->page_bytes) << MFD_HUGE_SHIFT;
    }
    block->fd = make_memfd(config->name, flags);
    if (block->fd < 0 && (errno == ENODEV || errno == EINVAL)) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "RAM '%.31s': page_bytes is 0x%" PRIx64
                            "; the host has no such huge pages; it has those in "
                            "/sys/kernel/mm/hugepages",
                            config->name, config->page_bytes);
    }
    if (block->fd < 0) {
        return system_error(err, config, "no memfd of huge pages", errno);
    }
    if (fstat(block->fd, &status) != 0) {
        return system_error(err, config, "the memfd can't be asked for its pages", errno);
    }
    block->page_bytes = (uint64_t)status.st_blksize;
    return size_memfd(block, config, err);
}

static int open_path(const struct bb_ram_config *config, struct bb_error *err)
{
    bool writes = !config->private_file && !config->read_only;
    /* NONBLOCK: opening a pipe by mistake must not wait for its other end. */
    int fd = open(config->path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0) {
        int code = errno;
        return bb_error_set(err, BB_E_SYSTEM,
                            "RAM '%.31s': path '%.128s' can't be opened for %s: "
                            "%s",
                            config->name, config->path, writes ? "writing" : "reading",
                            strerror(code));
    }
    return fd;
}

/* The embedder keeps its descriptor, and may close it. Not 0 to 2: those have a meaning. */
static int open_fd(const struct bb_ram_config *config, struct bb_error *err)
{
    int mode = fcntl(config->fd, F_GETFL);

    if (mode < 0) {
        return bb_error_set(err, BB_E_INVAL, "RAM '%.31s': fd %d is no open descriptor",
                            config->name, config->fd);
    }
    if ((mode & O_ACCMODE) == O_WRONLY || (mode & O_PATH) != 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': fd %d is not open for reading; it must be", config->name,
                            config->fd);
    }
    if ((mode & O_ACCMODE) == O_RDONLY && !config->private_file && !config->read_only) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': fd %d is open for reading only; open it for writing, or "
                            "set private_file or read_only",
                            config->name, config->fd);
    }
    int fd = fcntl(config->fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    return fd >= 0 ? fd : system_error(err, config, "fd can't be duplicated", errno);
}

static int check_file(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                      struct bb_error *err)
{
    const char *field = config->path != NULL ? "path" : "fd";
    struct stat status;
    struct statfs volume;

    if (fstat(block->fd, &status) != 0 || fstatfs(block->fd, &volume) != 0) {
        return system_error(err, config, "the file can't be asked for its length", errno);
    }
    if (!S_ISREG(status.st_mode)) {
        return bb_error_set(err, BB_E_INVAL, "RAM '%.31s': %s is no regular file", config->name,
                            field);
    }
    bool huge = (uint64_t)volume.f_type == HUGETLBFS_MAGIC;
    if (huge) {
        block->page_bytes = (uint64_t)volume.f_bsize;
    }
    if (config->numa && !huge && volume.f_type != TMPFS_MAGIC) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "RAM '%.31s': numa is set, but the host places the pages of this file "
                            "system itself; files on tmpfs and hugetlbfs can be bound",
                            config->name);
    }
    if (config->fd_offset % block->page_bytes != 0) {
        return bb_error_set(err, BB_E_INVAL,
                            "RAM '%.31s': fd_offset is 0x%" PRIx64
                            "; it must be a multiple of 0x%" PRIx64,
                            config->name, config->fd_offset, block->page_bytes);
    }
    uint64_t length = (uint64_t)status.st_size;
    if (config->fd_offset > length || length - config->fd_offset < bb_ram_bytes_max_(config)) {
        return bb_error_set(err, BB_E_RANGE,
                            "RAM '%.31s': the file has 0x%" PRIx64 " bytes; 0x%" PRIx64
                            " from fd_offset 0x%" PRIx64 " on are needed",
                            config->name, length, bb_ram_bytes_max_(config), config->fd_offset);
    }
    return BB_OK;
}

static int open_file(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                     struct bb_error *err)
{
    int fd = config->path != NULL ? open_path(config, err) : open_fd(config, err);

    if (fd < 0) {
        return fd;
    }
    block->fd = fd;
    block->fd_offset = config->fd_offset;
    block->shared = !config->private_file;
    return check_file(block, config, err);
}

/*
 * Mapping.
 */

/*
 * Finds a place for `length` bytes aligned to `align`, between guards of `guard` bytes, where
 * nothing can be accessed yet. Returns its first byte, or NULL with errno.
 */
static uint8_t *reserve(struct bb_ram_block_ *block, size_t length, size_t align, size_t guard)
{
    size_t need = length + 2 * guard;
    size_t slack = align > host_page_bytes() ? align : 0;
    uint8_t *base =
        mmap(NULL, need + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED) {
        return NULL;
    }
    size_t skip = round_up((uintptr_t)base + guard, align) - guard - (uintptr_t)base;
    if (skip != 0) {
        munmap(base, skip);
    }
    if (slack != skip) {
        munmap(base + skip + need, slack - skip);
    }
    block->mapping = base + skip;
    block->mapping_bytes = need;
    return base + skip + guard;
}

/*
 * A read-only file is mapped as a private one, which needs no right to write: a transaction may let
 * guests write to it later, and that must not kill the process.
 * NORESERVE: guests rarely touch all their memory, and hosts are overcommitted. Huge pages are
 * reserved, because who lacks one at an access is killed.
 */
static int map_flags(const struct bb_ram_block_ *block, const struct bb_ram_config *config)
{
    bool copies = config->backing == BB_RAM_FILE && (config->private_file || config->read_only);

    return (copies ? MAP_PRIVATE : MAP_SHARED) |
           (block->page_bytes > host_page_bytes() ? 0 : MAP_NORESERVE);
}

/* Maps the descriptor at `at`, over what is there, or anywhere. NULL with errno. */
static void *map_fd(const struct bb_ram_block_ *block, void *at, size_t length, int flags)
{
    void *mapped = mmap(at, length, PROT_READ | PROT_WRITE, at != NULL ? flags | MAP_FIXED : flags,
                        block->fd, (off_t)block->fd_offset);

    return mapped != MAP_FAILED ? mapped : NULL;
}

static int cannot_map(const struct bb_ram_block_ *block, const struct bb_ram_config *config,
                      int code, struct bb_error *err)
{
    if (code == ENOMEM && block->page_bytes > host_page_bytes()) {
        return no_huge_pages(err, config, block->page_bytes);
    }
    return system_error(err, config, "its memory can't be mapped", code);
}

/*
 * Maps the block's descriptor, or anonymous memory where it has none. *host receives the first
 * byte.
 */
static int map_block(struct bb_ram_block_ *block, const struct bb_ram_config *config, void **host,
                     struct bb_error *err)
{
    size_t length = round_up(bb_ram_bytes_max_(config), block->page_bytes);
    size_t align = config->page_bytes > block->page_bytes ? config->page_bytes : block->page_bytes;
    size_t guard = config->no_guard ? 0 : host_page_bytes();
    int flags = map_flags(block, config);

    if (block->fd >= 0) {
        /* Huge pages that this reserves stay reserved for a file that is shared. */
        void *elsewhere = map_fd(block, NULL, length, flags);
        if (elsewhere == NULL) {
            return cannot_map(block, config, errno, err);
        }
        munmap(elsewhere, length);
    }
    uint8_t *at = reserve(block, length, align, guard);
    if (at == NULL) {
        return system_error(err, config, "its address range can't be reserved", errno);
    }
    if (block->fd >= 0 && map_fd(block, at, length, flags) == NULL) {
        int code = errno;
        /* There may be a hole now, and in it what another thread has just mapped: only the guards
         * are surely ours. */
        if (guard != 0) {
            munmap(block->mapping, guard);
            munmap(at + length, guard);
        }
        block->mapping = NULL;
        return cannot_map(block, config, code, err);
    }
    if (block->fd < 0 && mprotect(at, length, PROT_READ | PROT_WRITE) != 0) {
        return cannot_map(block, config, errno, err);
    }
    if (block->fd < 0 && align > host_page_bytes()) {
        /* An offer: a kernel without huge pages refuses, and small ones do as well. */
        (void)madvise(at, length, MADV_HUGEPAGE);
    }
    *host = at;
    return BB_OK;
}

/*
 * NUMA. The kernel drops nodes that it doesn't have from a set without a word, so they are compared
 * with those that the process may use first.
 */
static int bind_nodes(const struct bb_ram_block_ *block, const struct bb_ram_config *config,
                      void *host, struct bb_error *err)
{
    unsigned long allowed[NODE_WORDS] = {0};
    unsigned long wanted[NODE_WORDS] = {config->numa_nodes};
    unsigned long bits = sizeof(allowed) * 8;

    if (syscall(SYS_get_mempolicy, NULL, allowed, bits, NULL, MPOL_F_MEMS_ALLOWED) != 0) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "RAM '%.31s': numa is set, and the host does not tell its nodes: %s",
                            config->name, strerror(errno));
    }
    if ((config->numa_nodes & ~(uint64_t)allowed[0]) != 0) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "RAM '%.31s': numa_nodes is 0x%" PRIx64
                            "; the nodes that this process may use are 0x%" PRIx64,
                            config->name, config->numa_nodes, (uint64_t)allowed[0]);
    }
    size_t length = round_up(bb_ram_bytes_max_(config), block->page_bytes);
    if (syscall(SYS_mbind, host, length, MPOL_BIND, wanted, bits, 0u) != 0) {
        return bb_error_set(err, BB_E_UNSUPPORTED,
                            "RAM '%.31s': the host does not bind it to numa_nodes 0x%" PRIx64
                            ": %s",
                            config->name, config->numa_nodes, strerror(errno));
    }
    return BB_OK;
}
_Static_assert(sizeof(unsigned long) == sizeof(uint64_t), "a word holds numa_nodes");

/*
 * Prefaulting: each thread takes a run of pages.
 */
struct prefault {
    pthread_t thread;
    uint8_t *first;
    size_t bytes;
    bool writes; /* pages of the memory's own, and not only the file's */
    int code;    /* errno */
};

/* For kernels before 5.14. A swap of what is there for itself is a write that changes nothing,
 * whoever else writes meanwhile. */
static void touch(const struct prefault *part)
{
    size_t page = host_page_bytes();

    for (size_t at = 0; at < part->bytes; at += page) {
        uint8_t *byte = part->first + at;
        /* Relaxed: nothing is to be ordered by it. */
        uint8_t there = bb_load_relaxed(byte);
        while (part->writes && !bb_cas_relaxed(byte, &there, there)) {
        }
    }
}

static void *prefault_part(void *arg)
{
    struct prefault *part = arg;

    if (madvise(part->first, part->bytes,
                part->writes ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0) {
        return NULL;
    }
    part->code = errno;
    if (part->code == EINVAL) {
        part->code = 0;
        touch(part);
    }
    return NULL;
}

static int prefault(const struct bb_ram_block_ *block, const struct bb_ram_config *config,
                    uint8_t *host, struct bb_error *err)
{
    struct prefault part[BB_PREFAULT_THREADS_MAX_];
    uint64_t pages = round_up(config->size_bytes, block->page_bytes) / block->page_bytes;
    uint64_t wanted = config->prefault_threads != 0 ? config->prefault_threads : 1;
    unsigned count = (unsigned)(wanted < pages ? wanted : pages);
    unsigned started = 0;
    sigset_t all, before;

    for (unsigned i = 0; i < count; i++) {
        uint64_t first = pages * i / count;
        uint64_t end = pages * (i + 1) / count;
        part[i] = (struct prefault){.first = host + first * block->page_bytes,
                                    .bytes = (end - first) * block->page_bytes,
                                    .writes = config->backing != BB_RAM_FILE || !config->read_only};
    }
    /* The embedder's signals are not for these threads. */
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started + 1 < count &&
           pthread_create(&part[started].thread, NULL, prefault_part, &part[started]) == 0) {
        started++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    /* What no thread could be had for is done here. */
    for (unsigned i = started; i < count; i++) {
        prefault_part(&part[i]);
    }
    int code = 0;
    for (unsigned i = 0; i < count; i++) {
        if (i < started) {
            (void)pthread_join(part[i].thread, NULL);
        }
        code = part[i].code != 0 ? part[i].code : code;
    }
    return code == 0 ? BB_OK : system_error(err, config, "its pages can't be had now", code);
}

/*
 * Blocks.
 */

void bb_ram_block_free_(struct bb_heap *heap, struct bb_ram_block_ *block)
{
    if (block == NULL) {
        return;
    }
    if (block->mapping != NULL) {
        munmap(block->mapping, block->mapping_bytes);
    }
    if (block->fd >= 0) {
        close(block->fd);
    }
    bb_heap_free(heap, block, sizeof(*block));
}

static int open_backing(struct bb_ram_block_ *block, const struct bb_ram_config *config,
                        struct bb_error *err)
{
    switch (config->backing) {
    case BB_RAM_MEMFD:
        return open_memfd(block, config, err);
    case BB_RAM_FILE:
        return open_file(block, config, err);
    case BB_RAM_HUGETLB:
        return open_hugetlb(block, config, err);
    default:
        return BB_OK;
    }
}

int bb_ram_block_make_(struct bb_heap *heap, const struct bb_ram_config *config,
                       struct bb_ram_block_ **block, void **host, struct bb_error *err)
{
    struct bb_ram_block_ *made = bb_heap_alloc(heap, sizeof(*made));

    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for RAM '%.31s'", config->name);
    }
    made->fd = -1;
    made->page_bytes = host_page_bytes();
    int result = open_backing(made, config, err);
    if (result == BB_OK) {
        result = map_block(made, config, host, err);
    }
    if (result == BB_OK && config->numa) {
        result = bind_nodes(made, config, *host, err);
    }
    if (result == BB_OK && config->prefault) {
        result = prefault(made, config, *host, err);
    }
    if (result != BB_OK) {
        bb_ram_block_free_(heap, made);
        return result;
    }
    *block = made;
    return BB_OK;
}
