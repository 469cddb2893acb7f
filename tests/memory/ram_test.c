/* SPDX-License-Identifier: MIT */
/*
 * RAM: where its memory comes from, and what careless configurations meet. What of a host's
 * can't be counted on (huge pages, NUMA, a kernel's age) is tested both ways: with what the host
 * gives, and with system calls that are made to fail (ram_host_test.c).
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "ram_host.h"

enum { HUGE = 2 << 20 };

static const uint64_t SIZE_MAX_BYTES = UINT64_C(1) << 46;

static struct fixture fixture;

static void begin(void)
{
    fixture_begin(&fixture);
}

static void end(void)
{
    fixture_end(&fixture);
}

TestSuite(ram, .init = begin, .fini = end);

static uint64_t page(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static struct bb_region *make(const struct bb_ram_config *config)
{
    struct bb_region *region = NULL;
    struct bb_error err = {0};
    int result = bb_ram_create(fixture.ctx, config, &region, &err);

    cr_assert_eq(result, BB_OK, "%s", err.text);
    cr_assert_not_null(region);
    return region;
}

/* Creation fails with `code` and a text that has `word` in it, and leaves nothing. */
static void refused(const struct bb_ram_config *config, int code, const char *word)
{
    struct bb_region *const before = (void *)&fixture;
    struct bb_region *region = before;
    struct bb_error err = {0};
    unsigned open_before = ram_host_descriptors();
    uint64_t mapped_before = ram_host_mapped_bytes();
    uint64_t heap_before = bb_heap_usage(fixture.memory.heap).live_bytes;
    int result = bb_ram_create(fixture.ctx, config, &region, &err);

    cr_assert_eq(result, code, "%s instead of %s for '%s': %s", bb_result_name(result),
                 bb_result_name(code), word, result != BB_OK ? err.text : "");
    cr_assert_eq(err.code, code);
    cr_assert_not_null(strstr(err.text, word), "'%s' does not say '%s'", err.text, word);
    cr_assert_eq(region, before, "the place was written to");
    cr_assert_eq(ram_host_descriptors(), open_before, "a descriptor is left open");
    cr_assert_leq(ram_host_mapped_bytes(), mapped_before + (UINT64_C(1) << 30), "still mapped");
    cr_assert_eq(bb_heap_usage(fixture.memory.heap).live_bytes, heap_before);
}

/* How the process ends that writes a byte there: 0, or the signal that killed it. */
static int signal_of_touching(volatile uint8_t *byte)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        *byte = 1;
        _exit(0);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static bool is_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

/* A file of `bytes` bytes, each page of which holds its number; open for both. */
static int numbered_file(uint64_t bytes)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    for (uint64_t i = 0; i * page() < bytes; i++) {
        cr_assert_eq(pwrite(fd, &i, 1, (off_t)(i * page())), 1);
    }
    return fd;
}

static uint8_t byte_of(int fd, uint64_t at)
{
    uint8_t byte = 0xee;

    cr_assert_eq(pread(fd, &byte, 1, (off_t)at), 1);
    return byte;
}

/*
 * What is refused.
 */

Test(ram, a_field_that_does_not_go_with_the_backing_is_refused_by_name)
{
    static uint64_t memory[512];
    const enum bb_ram_backing all[] = {BB_RAM_ANONYMOUS, BB_RAM_EMBEDDER, BB_RAM_MEMFD, BB_RAM_FILE,
                                       BB_RAM_HUGETLB};

    for (size_t i = 0; i < BB_ARRAY_LEN(all); i++) {
        struct bb_ram_config base = {.name = "ram", .size_bytes = 64, .backing = all[i]};
        struct bb_ram_config config;
        bool file = all[i] == BB_RAM_FILE, embedder = all[i] == BB_RAM_EMBEDDER;

        base.path = file ? "/proc/self/exe" : NULL;
        base.host = embedder ? memory : NULL;
        if (all[i] != BB_RAM_ANONYMOUS && !embedder) {
            config = base;
            config.host = memory;
            refused(&config, BB_E_INVAL, "host is set");
        }
        if (!file) {
            config = base;
            config.path = "/proc/self/exe";
            refused(&config, BB_E_INVAL, "path is set");
            config = base;
            config.fd = 3;
            refused(&config, BB_E_INVAL, "fd is set");
            config = base;
            config.fd_offset = page();
            refused(&config, BB_E_INVAL, "fd_offset is set");
            config = base;
            config.private_file = true;
            refused(&config, BB_E_INVAL, "private_file is set");
        }
        if (embedder) {
            config = base;
            config.page_bytes = page();
            refused(&config, BB_E_INVAL, "page_bytes is set");
            config = base;
            config.numa = true;
            config.numa_nodes = 1;
            refused(&config, BB_E_INVAL, "numa is set");
            config = base;
            config.prefault = true;
            refused(&config, BB_E_INVAL, "prefault is set");
        }
    }
}

Test(ram, fields_that_contradict_each_other_are_refused)
{
    struct bb_ram_config base = {.name = "ram", .size_bytes = 64};
    struct bb_ram_config config = base;

    config.numa = true;
    refused(&config, BB_E_INVAL, "numa_nodes 0x0");
    config = base;
    config.numa_nodes = 1;
    refused(&config, BB_E_INVAL, "numa is false");
    config = base;
    config.prefault_threads = 1;
    refused(&config, BB_E_INVAL, "prefault_threads is 1");
    config.prefault = true;
    config.prefault_threads = 65;
    refused(&config, BB_E_INVAL, "prefault_threads is 65");
    config = base;
    config.backing = BB_RAM_FILE;
    config.path = "/proc/self/exe";
    config.fd = 1;
    refused(&config, BB_E_INVAL, "path and fd");
    config = base;
    config.backing = (enum bb_ram_backing)5;
    refused(&config, BB_E_INVAL, "backing 5");
    config.backing = (enum bb_ram_backing) - 1;
    refused(&config, BB_E_INVAL, "backing -1");
    config = base;
    config.backing = BB_RAM_EMBEDDER;
    refused(&config, BB_E_INVAL, "host is NULL");
    config = base;
    config.name = "";
    refused(&config, BB_E_INVAL, "name");
    config.name = NULL;
    refused(&config, BB_E_INVAL, "name");
    refused(NULL, BB_E_INVAL, "configuration");
    cr_assert_eq(bb_ram_create(fixture.ctx, &base, NULL, NULL), BB_E_INVAL);
}

Test(ram, sizes_end_where_the_header_says)
{
    struct bb_ram_config config = {.name = "ram"};

    refused(&config, BB_E_RANGE, "size_bytes is 0x0");
    config.size_bytes = SIZE_MAX_BYTES + 1;
    refused(&config, BB_E_RANGE, "size_bytes is 0x400000000001");
    config.size_bytes = UINT64_MAX;
    refused(&config, BB_E_RANGE, "size_bytes is 0xffffffffffffffff");
    config.size_bytes = 2;
    config.size_bytes_max = 1;
    refused(&config, BB_E_RANGE, "size_bytes_max is 0x1");
    config.size_bytes_max = SIZE_MAX_BYTES + 1;
    refused(&config, BB_E_RANGE, "size_bytes_max is 0x400000000001");

    const uint64_t pages[] = {1,          page() / 2,        page() - 1,        page() + 1,
                              3 * page(), UINT64_C(1) << 41, UINT64_C(1) << 63, UINT64_MAX};
    config = (struct bb_ram_config){.name = "ram", .size_bytes = 1};
    for (size_t i = 0; i < BB_ARRAY_LEN(pages); i++) {
        config.page_bytes = pages[i];
        config.backing = BB_RAM_ANONYMOUS;
        refused(&config, BB_E_INVAL, "page_bytes");
        config.backing = BB_RAM_HUGETLB;
        refused(&config, BB_E_INVAL, "page_bytes");
    }
}

Test(ram, the_largest_size_is_given_or_refused_by_the_host)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = SIZE_MAX_BYTES};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    /* A sanitizer leaves no such room, nor does every host. */
    int result = bb_ram_create(fixture.ctx, &config, &region, &err);
    if (result != BB_OK) {
        cr_assert_eq(result, BB_E_SYSTEM, "%s", err.text);
        return;
    }
    cr_assert_eq(bb_region_size(region), SIZE_MAX_BYTES);
    uint8_t *host = bb_region_host(region);
    host[SIZE_MAX_BYTES - 1] = 1;
    fixture_remove(&fixture, region);
}

Test(ram, the_embedders_memory_is_checked_for_where_it_lies)
{
    static uint64_t memory[512];
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = 64, .backing = BB_RAM_EMBEDDER, .host = (char *)memory + 4};

    refused(&config, BB_E_INVAL, "multiple of 8");
    config.host = (void *)(UINTPTR_MAX - 63 - 8);
    config.size_bytes = 80;
    refused(&config, BB_E_RANGE, "wrap");
    config.size_bytes = 8;
    config.size_bytes_max = 80;
    refused(&config, BB_E_RANGE, "wrap");
}

/*
 * Anonymous memory and the embedder's.
 */

Test(ram, memory_is_zeroed_writable_and_exactly_as_long_as_asked)
{
    const uint64_t sizes[] = {1, 7, 64, page() - 1, page(), page() + 1, 3 * page() + 5};
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < BB_ARRAY_LEN(sizes); i++) {
            struct bb_ram_config config = {
                .name = "ram", .size_bytes = sizes[i], .backing = kinds[k]};
            struct bb_region *region = make(&config);
            uint8_t *host = bb_region_host(region);

            cr_assert_eq(bb_region_kind(region), BB_KIND_RAM);
            cr_assert_eq(bb_region_class(region), BB_CLASS_LOCKFREE);
            cr_assert_eq(bb_region_size(region), sizes[i]);
            cr_assert_eq(bb_ram_page_bytes(region), page());
            cr_assert(is_zero(host, sizes[i]));
            memset(host, 0x5a, sizes[i]);

            struct bb_space *space = fixture_space(&fixture, "space", BB_SPACE_MMIO, 0);
            cr_assert_eq(bb_space_map(fixture.ctx, space, 0x1000, region, NULL), BB_OK);
            cr_assert_eq(fixture_find(&fixture, space, 0x1000 + sizes[i] - 1), region);
            cr_assert_null(fixture_find(&fixture, space, 0x1000 + sizes[i]));
            fixture_remove(&fixture, region);
        }
    }
}

Test(ram, a_write_and_a_read_of_every_size_reach_the_memory)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 16};
    struct bb_region *region = make(&config);
    uint8_t *host = bb_region_host(region);

    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned offset = 0; offset + size <= 16; offset++) {
            uint64_t value = UINT64_C(0x1122334455667788) * (offset + 1);
            uint64_t read = 0, there = 0;

            cr_assert_eq(fixture_write(fixture.ctx, region, offset, size, value), BB_OK);
            memcpy(&there, host + offset, size);
            cr_assert_eq(there, value & bb_mask_bytes(size));
            cr_assert_eq(fixture_read(fixture.ctx, region, offset, size, &read), BB_OK);
            cr_assert_eq(read, there);
        }
    }
    fixture_remove(&fixture, region);
}

Test(ram, rom_refuses_a_guests_write_and_takes_the_embedders)
{
    struct bb_ram_config config = {.name = "rom", .size_bytes = 16, .read_only = true};
    struct bb_region *region = make(&config);
    uint64_t value = 0;

    *(uint8_t *)bb_region_host(region) = 0x42;
    cr_assert_eq(fixture_write(fixture.ctx, region, 0, 1, 1), BB_E_DEVICE);
    cr_assert_eq(fixture_read(fixture.ctx, region, 0, 1, &value), BB_OK);
    cr_assert_eq(value, 0x42);
    fixture_remove(&fixture, region);
}

Test(ram, the_embedders_memory_is_neither_touched_nor_freed)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_EMBEDDER, BB_RAM_ANONYMOUS};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        uint8_t *memory = mmap(NULL, page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 64,
                                       .size_bytes_max = page(),
                                       .backing = kinds[k],
                                       .host = memory};
        cr_assert_neq(memory, MAP_FAILED);
        struct bb_region *region = make(&config);
        cr_assert_eq(bb_region_host(region), memory);
        cr_assert_eq(bb_ram_fd(region, NULL), -1);
        cr_assert_eq(bb_ram_page_bytes(region), page());
        fixture_remove(&fixture, region);
        cr_assert_eq(mprotect(memory, page(), PROT_READ | PROT_WRITE), 0, "it was unmapped");
        cr_assert(is_zero(memory, page()));
        munmap(memory, page());
    }
}

Test(ram, the_pages_before_and_behind_kill_who_touches_them)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};
    const uint64_t alignments[] = {0, HUGE};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < BB_ARRAY_LEN(alignments); i++) {
            struct bb_ram_config config = {.name = "ram",
                                           .size_bytes = page() + 1,
                                           .backing = kinds[k],
                                           .page_bytes = alignments[i]};
            struct bb_region *region = make(&config);
            uint8_t *host = bb_region_host(region);

            cr_assert_eq(signal_of_touching(host), 0);
            cr_assert_eq(signal_of_touching(host + 2 * page() - 1), 0);
            cr_assert_eq(signal_of_touching(host - 1), SIGSEGV);
            cr_assert_eq(signal_of_touching(host - page()), SIGSEGV);
            cr_assert_eq(signal_of_touching(host + 2 * page()), SIGSEGV);
            cr_assert_eq(signal_of_touching(host + 3 * page() - 1), SIGSEGV);
            fixture_remove(&fixture, region);
        }
    }
}

Test(ram, guards_are_left_out_where_the_embedder_says_so)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = UINT64_C(1) << 32};

    for (int guarded = 0; guarded < 2; guarded++) {
        config.no_guard = guarded == 0;
        uint64_t before = ram_host_mapped_bytes();
        struct bb_region *region = make(&config);
        cr_assert_eq(ram_host_mapped_bytes() - before,
                     config.size_bytes + (guarded != 0 ? 2 * page() : 0));
        cr_assert_eq(signal_of_touching(bb_region_host(region)), 0);
        fixture_remove(&fixture, region);
        cr_assert_eq(ram_host_mapped_bytes(), before);
    }
}

Test(ram, memory_is_aligned_to_the_pages_asked_for)
{
    const uint64_t alignments[] = {page(), 2 * page(), HUGE, UINT64_C(1) << 30};
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD, BB_RAM_FILE};
    int fd = numbered_file(3 * page());

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < 2 * BB_ARRAY_LEN(alignments); i++) {
            struct bb_ram_config config = {.name = "ram",
                                           .size_bytes = 2 * page() + 1,
                                           .backing = kinds[k],
                                           .fd = kinds[k] == BB_RAM_FILE ? fd : 0,
                                           .page_bytes = alignments[i / 2],
                                           .no_guard = i % 2 != 0};
            uint64_t before = ram_host_mapped_bytes();
            struct bb_region *region = make(&config);
            uint64_t guards = config.no_guard ? 0 : 2 * page();

            cr_assert_eq((uintptr_t)bb_region_host(region) % config.page_bytes, 0);
            cr_assert_eq(ram_host_mapped_bytes() - before, 3 * page() + guards,
                         "the room for aligning is given back");
            memset(bb_region_host(region), 0, 2 * page() + 1);
            fixture_remove(&fixture, region);
            cr_assert_eq(ram_host_mapped_bytes(), before);
        }
    }
    close(fd);
}

Test(ram, anonymous_memory_of_larger_pages_is_offered_huge_ones)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = HUGE, .page_bytes = HUGE};
    struct bb_region *region = make(&config);
    struct bb_region *plain = make(&(struct bb_ram_config){.name = "plain", .size_bytes = HUGE});
    bool host_has = access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0;

    cr_assert_eq(ram_host_flag(bb_region_host(region), "hg"), host_has);
    cr_assert_not(ram_host_flag(bb_region_host(plain), "hg"));
    fixture_remove(&fixture, region);
    fixture_remove(&fixture, plain);
}

Test(ram, resizing_shows_and_hides_what_was_mapped_from_the_start)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 100,
                                       .size_bytes_max = UINT64_C(1) << 30,
                                       .backing = kinds[k]};
        struct bb_space *space = fixture_space(&fixture, "space", BB_SPACE_MMIO, 0);
        struct bb_region *region = make(&config);
        uint8_t *host = bb_region_host(region);
        const uint64_t sizes[] = {200, page(), config.size_bytes_max, 1, 200};

        host[150] = 0x77;
        cr_assert_eq(bb_space_map(fixture.ctx, space, 0, region, NULL), BB_OK);
        cr_assert_null(fixture_find(&fixture, space, 100));
        for (size_t i = 0; i < BB_ARRAY_LEN(sizes); i++) {
            struct bb_txn *txn;
            struct bb_error err = {0};

            cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
            cr_assert_eq(bb_txn_resize(txn, region, sizes[i], &err), BB_OK, "%s", err.text);
            cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
            cr_assert_eq(bb_region_size(region), sizes[i]);
            cr_assert_eq(fixture_find(&fixture, space, sizes[i] - 1), region);
            cr_assert_null(fixture_find(&fixture, space, sizes[i]));
            cr_assert_eq(bb_region_host(region), host);
            cr_assert_eq(signal_of_touching(host + sizes[i] - 1), 0);
        }
        cr_assert_eq(host[150], 0x77);
        fixture_remove(&fixture, region);
    }
}

static struct bb_region *freed_elsewhere;

static void *free_elsewhere(void *arg)
{
    (void)arg;
    bb_region_free_(fixture.memory.heap, freed_elsewhere);
    return NULL;
}

Test(ram, memory_is_given_back_by_a_thread_without_a_context)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = UINT64_C(1) << 36, .backing = BB_RAM_MEMFD};
    unsigned open_before = ram_host_descriptors();
    pthread_t thread;

    freed_elsewhere = make(&config);
    cr_assert_eq(bb_regions_retire_(fixture.ctx, &freed_elsewhere, 1, NULL), BB_OK);
    cr_assert_eq(bb_rcu_synchronize(fixture.ctx), BB_OK);
    uint64_t before = ram_host_mapped_bytes();
    cr_assert_eq(pthread_create(&thread, NULL, free_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_leq(ram_host_mapped_bytes() + (config.size_bytes >> 1), before);
    cr_assert_eq(ram_host_descriptors(), open_before);
}

Test(ram, where_the_heap_has_nothing_creation_leaves_nothing)
{
    static const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {
            .name = "ram", .size_bytes = UINT64_C(1) << 36, .backing = kinds[k]};
        struct bb_region *region = NULL;
        unsigned open_before = ram_host_descriptors();
        uint64_t mapped_before = ram_host_mapped_bytes();
        int result = BB_E_NOMEM;
        long failures = 0;

        while (result != BB_OK) {
            test_memory_fail_after(&fixture.memory, failures);
            result = bb_ram_create(fixture.ctx, &config, &region, NULL);
            test_memory_fail_after(&fixture.memory, -1);
            if (result != BB_OK) {
                cr_assert_eq(result, BB_E_NOMEM);
                cr_assert_eq(ram_host_descriptors(), open_before);
                cr_assert_lt(ram_host_mapped_bytes(), mapped_before + config.size_bytes);
                failures++;
            }
        }
        cr_assert_geq(failures, 2, "the block and the region, at least");
        fixture_remove(&fixture, region);
    }
}

/*
 * Memory with a descriptor.
 */

Test(ram, a_memfd_is_the_same_memory_wherever_it_is_mapped)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = page() + 8,
                                   .size_bytes_max = 5 * page(),
                                   .backing = BB_RAM_MEMFD};
    unsigned open_before = ram_host_descriptors();
    struct bb_region *region = make(&config);
    uint64_t offset = 1;
    int fd = bb_ram_fd(region, &offset);
    struct stat status;

    cr_assert_geq(fd, 0);
    cr_assert_eq(offset, 0);
    cr_assert_eq(bb_ram_fd(region, NULL), fd);
    cr_assert_eq(fstat(fd, &status), 0);
    cr_assert_eq((uint64_t)status.st_size, 5 * page());
    cr_assert((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    cr_assert_eq(fixture_write(fixture.ctx, region, page(), 8, 0x1122334455667788), BB_OK);
    uint64_t *other = mmap(NULL, 2 * page(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(other, MAP_FAILED);
    cr_assert_eq(other[page() / 8], 0x1122334455667788);
    other[0] = 42;
    cr_assert_eq(*(uint64_t *)bb_region_host(region), 42);
    munmap(other, 2 * page());

    cr_assert_eq(ftruncate(fd, 0), -1, "someone can make it shorter");
    cr_assert_eq(ftruncate(fd, (off_t)(6 * page())), -1, "someone can make it longer");
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
    fixture_remove(&fixture, region);
    cr_assert_eq(ram_host_descriptors(), open_before);
}

Test(ram, a_file_is_mapped_from_its_offset_on)
{
    int fd = numbered_file(4 * page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    for (int by_path = 0; by_path < 2; by_path++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 2 * page(),
                                       .backing = BB_RAM_FILE,
                                       .path = by_path != 0 ? path : NULL,
                                       .fd = by_path != 0 ? -1 : fd,
                                       .fd_offset = page()};
        struct bb_region *region = make(&config);
        uint8_t *host = bb_region_host(region);
        uint64_t offset = 0;

        cr_assert_eq(host[0], 1);
        cr_assert_eq(host[page()], 2);
        cr_assert_eq(fixture_write(fixture.ctx, region, 5, 1, 0x99), BB_OK);
        cr_assert_eq(byte_of(fd, page() + 5), 0x99);
        int own = bb_ram_fd(region, &offset);
        cr_assert_neq(own, fd);
        cr_assert_eq(offset, page());
        cr_assert((fcntl(own, F_GETFD) & FD_CLOEXEC) != 0);
        cr_assert_eq(byte_of(own, offset), 1);
        fixture_remove(&fixture, region);
        cr_assert_eq(byte_of(fd, 0), 0, "the caller's own descriptor was closed");
    }
    close(fd);
}

Test(ram, the_callers_descriptor_may_be_closed_after_creation)
{
    int fd = numbered_file(page());
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = page(), .backing = BB_RAM_FILE, .fd = fd};
    struct bb_region *region = make(&config);

    close(fd);
    cr_assert_eq(fixture_write(fixture.ctx, region, 7, 1, 0x99), BB_OK);
    cr_assert_eq(byte_of(bb_ram_fd(region, NULL), 7), 0x99);
    fixture_remove(&fixture, region);
}

Test(ram, writes_to_a_private_file_stay_here)
{
    int fd = numbered_file(page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reads_only = open(path, O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = page(),
                                       .backing = BB_RAM_FILE,
                                       .fd = i != 0 ? fd : reads_only,
                                       .private_file = true};
        struct bb_region *region = make(&config);
        uint64_t offset = 7;

        cr_assert_eq(fixture_write(fixture.ctx, region, 0, 1, 0x99), BB_OK);
        cr_assert_eq(*(uint8_t *)bb_region_host(region), 0x99);
        cr_assert_eq(byte_of(fd, 0), 0);
        cr_assert_eq(bb_ram_fd(region, &offset), -1, "it is not that memory any more");
        cr_assert_eq(offset, 7);
        fixture_remove(&fixture, region);
    }
    close(reads_only);
    close(fd);
}

Test(ram, a_read_only_file_needs_no_right_to_write_and_survives_a_guest_that_gets_it)
{
    int fd = numbered_file(page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reads_only = open(path, O_RDONLY | O_CLOEXEC);
    struct bb_ram_config config = {.name = "rom",
                                   .size_bytes = page(),
                                   .backing = BB_RAM_FILE,
                                   .fd = reads_only,
                                   .read_only = true,
                                   .prefault = true};
    struct bb_region *region = make(&config);
    struct bb_txn *txn;

    cr_assert_geq(bb_ram_fd(region, NULL), 0);
    cr_assert_eq(fixture_write(fixture.ctx, region, 0, 1, 0x99), BB_E_DEVICE);
    cr_assert_eq(pwrite(fd, "A", 1, 1), 1);
    cr_assert_eq(((uint8_t *)bb_region_host(region))[1], 'A', "pages are the file's until written");
    cr_assert_eq(bb_txn_begin(fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_read_only(txn, region, false, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    cr_assert_eq(fixture_write(fixture.ctx, region, 0, 1, 0x99), BB_OK);
    cr_assert_eq(*(uint8_t *)bb_region_host(region), 0x99);
    cr_assert_eq(byte_of(fd, 0), 0);
    fixture_remove(&fixture, region);
    close(reads_only);
    close(fd);
}

Test(ram, a_file_must_be_long_enough_and_its_offset_a_page)
{
    int fd = numbered_file(2 * page() + 10);
    struct bb_ram_config base = {
        .name = "ram", .size_bytes = page() + 10, .backing = BB_RAM_FILE, .fd = fd};
    struct bb_ram_config config = base;

    config.fd_offset = page();
    fixture_remove(&fixture, make(&config));
    config.size_bytes++;
    refused(&config, BB_E_RANGE, "needed");
    config = base;
    config.size_bytes_max = 2 * page() + 11;
    refused(&config, BB_E_RANGE, "needed");
    config = base;
    config.fd_offset = 3 * page();
    refused(&config, BB_E_RANGE, "needed");
    config.fd_offset = 0 - page();
    refused(&config, BB_E_RANGE, "needed");
    config.fd_offset = page() / 2;
    refused(&config, BB_E_INVAL, "fd_offset");
    config.fd_offset = 1;
    refused(&config, BB_E_INVAL, "fd_offset");
    cr_assert_eq(ftruncate(fd, 0), 0);
    refused(&base, BB_E_RANGE, "0x0 bytes");
    close(fd);
}

Test(ram, what_is_no_file_for_it_is_refused)
{
    struct bb_ram_config by_path = {.name = "ram", .size_bytes = 64, .backing = BB_RAM_FILE};
    struct bb_ram_config by_fd = by_path;
    char folder[] = "/tmp/busbar-ram-XXXXXX";
    char fifo[64];
    int ends[2];

    cr_assert_not_null(mkdtemp(folder));
    snprintf(fifo, sizeof(fifo), "%s/fifo", folder);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    by_path.path = "";
    refused(&by_path, BB_E_SYSTEM, "opened");
    by_path.path = "/nowhere/at/all";
    refused(&by_path, BB_E_SYSTEM, "/nowhere/at/all");
    by_path.path = folder;
    refused(&by_path, BB_E_SYSTEM, "writing");
    by_path.path = fifo;
    refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.path = "/dev/zero";
    refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.read_only = true;
    by_path.path = folder;
    refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.path = fifo; /* nobody writes to it: opening it must not wait */
    refused(&by_path, BB_E_INVAL, "no regular file");

    by_fd.fd = -1;
    refused(&by_fd, BB_E_INVAL, "fd -1 is no open descriptor");
    by_fd.fd = 1000000;
    refused(&by_fd, BB_E_INVAL, "no open descriptor");
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
    by_fd.fd = ends[1];
    refused(&by_fd, BB_E_INVAL, "not open for reading");
    by_fd.fd = ends[0];
    refused(&by_fd, BB_E_INVAL, "reading only");
    by_fd.read_only = true;
    refused(&by_fd, BB_E_INVAL, "no regular file");
    by_fd.fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    refused(&by_fd, BB_E_INVAL, "not open for reading");
    close(by_fd.fd);
    close(ends[0]);
    close(ends[1]);
    unlink(fifo);
    rmdir(folder);
}

/*
 * Prefaulting.
 */

static uint64_t resident(void *host, uint64_t bytes)
{
    static unsigned char there[4096];
    uint64_t pages = (bytes + page() - 1) / page(), count = 0;

    cr_assert_leq(pages, BB_ARRAY_LEN(there));
    cr_assert_eq(mincore(host, pages * page(), there), 0);
    for (uint64_t i = 0; i < pages; i++) {
        count += there[i] & 1;
    }
    return count;
}

Test(ram, prefaulting_has_every_page_there_and_changes_none)
{
    const struct {
        uint64_t pages;
        unsigned threads;
    } cases[] = {{1, 0}, {1, 64}, {3, 2}, {64, 64}, {1000, 7}, {2048, 1}};

    for (size_t i = 0; i < BB_ARRAY_LEN(cases); i++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = cases[i].pages * page() - 1,
                                       .size_bytes_max = 4096 * page(),
                                       .prefault = true,
                                       .prefault_threads = cases[i].threads};
        for (int k = 0; k < 3; k++) {
            int fd = k == 2 ? numbered_file(4096 * page()) : 0;
            config.backing = k == 0 ? BB_RAM_ANONYMOUS : k == 1 ? BB_RAM_MEMFD : BB_RAM_FILE;
            config.fd = fd;
            struct bb_region *region = make(&config);
            uint8_t *host = bb_region_host(region);
            cr_assert_eq(resident(host, config.size_bytes), cases[i].pages);
            if (k != 2) {
                cr_assert_eq(resident(host, config.size_bytes_max), cases[i].pages,
                             "more is there than asked for");
                cr_assert(is_zero(host, config.size_bytes));
            } else {
                cr_assert_eq(host[(cases[i].pages - 1) * page()], (uint8_t)(cases[i].pages - 1));
                close(fd);
            }
            fixture_remove(&fixture, region);
        }
    }
}

Test(ram, without_prefaulting_no_page_is_there)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 512 * page()};
    struct bb_region *region = make(&config);

    cr_assert_eq(resident(bb_region_host(region), config.size_bytes), 0);
    fixture_remove(&fixture, region);
}

/*
 * NUMA and huge pages, as far as the host has them.
 */

static bool host_has_numa(void)
{
    unsigned long nodes[16] = {0};

    return syscall(SYS_get_mempolicy, NULL, nodes, sizeof(nodes) * 8, NULL, MPOL_F_MEMS_ALLOWED) ==
           0;
}

Test(ram, memory_is_bound_to_the_nodes_asked_for_or_refused)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD, BB_RAM_FILE};
    int fd = numbered_file(page());

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = page(),
                                       .backing = kinds[k],
                                       .fd = kinds[k] == BB_RAM_FILE ? fd : 0,
                                       .numa = true,
                                       .numa_nodes = 1};
        unsigned long nodes[16] = {0};
        int mode = -1;

        if (!host_has_numa()) {
            refused(&config, BB_E_UNSUPPORTED, "numa");
            continue;
        }
        struct bb_region *region = make(&config);
        cr_assert_eq(syscall(SYS_get_mempolicy, &mode, nodes, sizeof(nodes) * 8,
                             bb_region_host(region), MPOL_F_ADDR),
                     0);
        cr_assert_eq(mode, MPOL_BIND);
        cr_assert_eq(nodes[0], 1);
        fixture_remove(&fixture, region);
        config.numa_nodes = UINT64_C(1) << 63 | 1;
        refused(&config, BB_E_UNSUPPORTED, "numa_nodes is 0x8000000000000001");
    }
    close(fd);
}

Test(ram, a_file_system_that_places_pages_itself_is_not_bound)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = 64,
                                   .backing = BB_RAM_FILE,
                                   .path = "/proc/self/exe",
                                   .read_only = true,
                                   .numa = true,
                                   .numa_nodes = 1};

    refused(&config, BB_E_UNSUPPORTED, "tmpfs");
}

Test(ram, huge_pages_are_given_or_the_text_says_how_to_reserve_them)
{
    const uint64_t wishes[] = {0, HUGE};

    for (size_t i = 0; i < BB_ARRAY_LEN(wishes); i++) {
        struct bb_ram_config config = {
            .name = "ram", .size_bytes = 100, .backing = BB_RAM_HUGETLB, .page_bytes = wishes[i]};
        struct bb_region *region = NULL;
        struct bb_error err = {0};

        int result = bb_ram_create(fixture.ctx, &config, &region, &err);
        if (result != BB_OK) {
            cr_assert_eq(result, BB_E_UNSUPPORTED, "%s", err.text);
            cr_assert_not_null(strstr(err.text, "/sys/kernel/mm/hugepages"), "%s", err.text);
            refused(&config, BB_E_UNSUPPORTED, "huge pages");
            continue;
        }
        uint64_t bytes = bb_ram_page_bytes(region);
        uint8_t *host = bb_region_host(region);
        cr_assert_gt(bytes, page());
        cr_assert_eq((uintptr_t)host % bytes, 0);
        cr_assert(is_zero(host, bytes));
        cr_assert_eq(signal_of_touching(host - 1), SIGSEGV);
        cr_assert_eq(signal_of_touching(host + bytes), SIGSEGV);
        cr_assert_eq(ftruncate(bb_ram_fd(region, NULL), 0), -1);

        struct bb_ram_config again = {.name = "again",
                                      .size_bytes = bytes,
                                      .backing = BB_RAM_FILE,
                                      .fd = bb_ram_fd(region, NULL),
                                      .prefault = true,
                                      .prefault_threads = 3};
        struct bb_region *same = make(&again);
        host[99] = 0x5a;
        cr_assert_eq(bb_ram_page_bytes(same), bytes);
        cr_assert_eq(((uint8_t *)bb_region_host(same))[99], 0x5a);
        again.fd_offset = page();
        refused(&again, BB_E_INVAL, "fd_offset");
        fixture_remove(&fixture, same);
        fixture_remove(&fixture, region);
    }
}

Test(ram, huge_pages_that_no_host_has_are_refused)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = 100, .backing = BB_RAM_HUGETLB, .page_bytes = 1 << 22};

    /* 4 MiB: neither x86-64 nor Armv8 has them. */
    refused(&config, BB_E_UNSUPPORTED, "page_bytes is 0x400000");
    config.page_bytes = HUGE;
    config.size_bytes = UINT64_C(1) << 45;
    refused(&config, BB_E_UNSUPPORTED, "/sys/kernel/mm/hugepages");
}
