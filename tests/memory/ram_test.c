/* SPDX-License-Identifier: MIT */
/*
 * RAM: what careless configurations meet, anonymous memory, the embedder's, guards, alignment,
 * resizing. Memory with a descriptor is ram_file_test.c's; huge pages, nodes and prefaulting are
 * ram_pages_test.c's; hosts that refuse are ram_host_test.c's.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ram_fixture.h"

static const uint64_t SIZE_MAX_BYTES = UINT64_C(1) << 46;

TestSuite(ram, .init = ram_begin, .fini = ram_end);

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
            ram_refused(&config, BB_E_INVAL, "host is set");
        }
        if (!file) {
            config = base;
            config.path = "/proc/self/exe";
            ram_refused(&config, BB_E_INVAL, "path is set");
            config = base;
            config.fd = 3;
            ram_refused(&config, BB_E_INVAL, "fd is set");
            config = base;
            config.fd_offset = ram_page();
            ram_refused(&config, BB_E_INVAL, "fd_offset is set");
            config = base;
            config.private_file = true;
            ram_refused(&config, BB_E_INVAL, "private_file is set");
        }
        if (embedder) {
            config = base;
            config.page_bytes = ram_page();
            ram_refused(&config, BB_E_INVAL, "page_bytes is set");
            config = base;
            config.numa = true;
            config.numa_nodes = 1;
            ram_refused(&config, BB_E_INVAL, "numa is set");
            config = base;
            config.prefault = true;
            ram_refused(&config, BB_E_INVAL, "prefault is set");
        }
    }
}

Test(ram, fields_that_contradict_each_other_are_refused)
{
    struct bb_ram_config base = {.name = "ram", .size_bytes = 64};
    struct bb_ram_config config = base;

    config.numa = true;
    ram_refused(&config, BB_E_INVAL, "numa_nodes 0x0");
    config = base;
    config.numa_nodes = 1;
    ram_refused(&config, BB_E_INVAL, "numa is false");
    config = base;
    config.prefault_threads = 1;
    ram_refused(&config, BB_E_INVAL, "prefault_threads is 1");
    config.prefault = true;
    config.prefault_threads = 65;
    ram_refused(&config, BB_E_INVAL, "prefault_threads is 65");
    config = base;
    config.backing = BB_RAM_FILE;
    config.path = "/proc/self/exe";
    config.fd = 1;
    ram_refused(&config, BB_E_INVAL, "path and fd");
    config = base;
    config.backing = (enum bb_ram_backing)5;
    ram_refused(&config, BB_E_INVAL, "backing 5");
    config.backing = (enum bb_ram_backing) - 1;
    ram_refused(&config, BB_E_INVAL, "backing -1");
    config = base;
    config.backing = BB_RAM_EMBEDDER;
    ram_refused(&config, BB_E_INVAL, "host is NULL");
    config = base;
    config.name = "";
    ram_refused(&config, BB_E_INVAL, "name");
    config.name = NULL;
    ram_refused(&config, BB_E_INVAL, "name");
    ram_refused(NULL, BB_E_INVAL, "configuration");
    cr_assert_eq(bb_ram_create(ram_fixture.ctx, &base, NULL, NULL), BB_E_INVAL);
}

Test(ram, sizes_end_where_the_header_says)
{
    struct bb_ram_config config = {.name = "ram"};

    ram_refused(&config, BB_E_RANGE, "size_bytes is 0x0");
    config.size_bytes = SIZE_MAX_BYTES + 1;
    ram_refused(&config, BB_E_RANGE, "size_bytes is 0x400000000001");
    config.size_bytes = UINT64_MAX;
    ram_refused(&config, BB_E_RANGE, "size_bytes is 0xffffffffffffffff");
    config.size_bytes = 2;
    config.size_bytes_max = 1;
    ram_refused(&config, BB_E_RANGE, "size_bytes_max is 0x1");
    config.size_bytes_max = SIZE_MAX_BYTES + 1;
    ram_refused(&config, BB_E_RANGE, "size_bytes_max is 0x400000000001");

    const uint64_t pages[] = {1,
                              ram_page() / 2,
                              ram_page() - 1,
                              ram_page() + 1,
                              3 * ram_page(),
                              UINT64_C(1) << 41,
                              UINT64_C(1) << 63,
                              UINT64_MAX};
    config = (struct bb_ram_config){.name = "ram", .size_bytes = 1};
    for (size_t i = 0; i < BB_ARRAY_LEN(pages); i++) {
        config.page_bytes = pages[i];
        config.backing = BB_RAM_ANONYMOUS;
        ram_refused(&config, BB_E_INVAL, "page_bytes");
        config.backing = BB_RAM_HUGETLB;
        ram_refused(&config, BB_E_INVAL, "page_bytes");
    }
}

Test(ram, the_largest_size_is_given_or_refused_by_the_host)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = SIZE_MAX_BYTES};
    struct bb_region *region = NULL;
    struct bb_error err = {0};

    /* A sanitizer leaves no such room, nor does every host. */
    int result = bb_ram_create(ram_fixture.ctx, &config, &region, &err);
    if (result != BB_OK) {
        cr_assert_eq(result, BB_E_SYSTEM, "%s", err.text);
        return;
    }
    cr_assert_eq(bb_region_size(region), SIZE_MAX_BYTES);
    uint8_t *host = bb_region_host(region);
    host[SIZE_MAX_BYTES - 1] = 1;
    fixture_remove(&ram_fixture, region);
}

Test(ram, the_embedders_memory_is_checked_for_where_it_lies)
{
    static uint64_t memory[512];
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = 64, .backing = BB_RAM_EMBEDDER, .host = (char *)memory + 4};

    ram_refused(&config, BB_E_INVAL, "multiple of 8");
    config.host = (void *)(UINTPTR_MAX - 63 - 8);
    config.size_bytes = 80;
    ram_refused(&config, BB_E_RANGE, "wrap");
    config.size_bytes = 8;
    config.size_bytes_max = 80;
    ram_refused(&config, BB_E_RANGE, "wrap");
}

/*
 * Anonymous memory and the embedder's.
 */

Test(ram, memory_is_zeroed_writable_and_exactly_as_long_as_asked)
{
    const uint64_t sizes[] = {
        1, 7, 64, ram_page() - 1, ram_page(), ram_page() + 1, 3 * ram_page() + 5};
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < BB_ARRAY_LEN(sizes); i++) {
            struct bb_ram_config config = {
                .name = "ram", .size_bytes = sizes[i], .backing = kinds[k]};
            struct bb_region *region = ram_make(&config);
            uint8_t *host = bb_region_host(region);

            cr_assert_eq(bb_region_kind(region), BB_KIND_RAM);
            cr_assert_eq(bb_region_class(region), BB_CLASS_LOCKFREE);
            cr_assert_eq(bb_region_size(region), sizes[i]);
            cr_assert_eq(bb_ram_page_bytes(region), ram_page());
            cr_assert(ram_is_zero(host, sizes[i]));
            memset(host, 0x5a, sizes[i]);

            struct bb_space *space = fixture_space(&ram_fixture, "space", BB_SPACE_MMIO, 0);
            cr_assert_eq(bb_space_map(ram_fixture.ctx, space, 0x1000, region, NULL), BB_OK);
            cr_assert_eq(fixture_find(&ram_fixture, space, 0x1000 + sizes[i] - 1), region);
            cr_assert_null(fixture_find(&ram_fixture, space, 0x1000 + sizes[i]));
            fixture_remove(&ram_fixture, region);
        }
    }
}

Test(ram, a_write_and_a_read_of_every_size_reach_the_memory)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 16};
    struct bb_region *region = ram_make(&config);
    uint8_t *host = bb_region_host(region);

    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned offset = 0; offset + size <= 16; offset++) {
            uint64_t value = UINT64_C(0x1122334455667788) * (offset + 1);
            uint64_t read = 0, there = 0;

            cr_assert_eq(fixture_write(ram_fixture.ctx, region, offset, size, value), BB_OK);
            memcpy(&there, host + offset, size);
            cr_assert_eq(there, value & bb_mask_bytes(size));
            cr_assert_eq(fixture_read(ram_fixture.ctx, region, offset, size, &read), BB_OK);
            cr_assert_eq(read, there);
        }
    }
    fixture_remove(&ram_fixture, region);
}

Test(ram, rom_refuses_a_guests_write_and_takes_the_embedders)
{
    struct bb_ram_config config = {.name = "rom", .size_bytes = 16, .read_only = true};
    struct bb_region *region = ram_make(&config);
    uint64_t value = 0;

    *(uint8_t *)bb_region_host(region) = 0x42;
    cr_assert_eq(fixture_write(ram_fixture.ctx, region, 0, 1, 1), BB_E_DEVICE);
    cr_assert_eq(fixture_read(ram_fixture.ctx, region, 0, 1, &value), BB_OK);
    cr_assert_eq(value, 0x42);
    fixture_remove(&ram_fixture, region);
}

Test(ram, the_embedders_memory_is_neither_touched_nor_freed)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_EMBEDDER, BB_RAM_ANONYMOUS};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        uint8_t *memory = mmap(NULL, ram_page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 64,
                                       .size_bytes_max = ram_page(),
                                       .backing = kinds[k],
                                       .host = memory};
        cr_assert_neq(memory, MAP_FAILED);
        struct bb_region *region = ram_make(&config);
        cr_assert_eq(bb_region_host(region), memory);
        cr_assert_eq(bb_ram_fd(region, NULL), -1);
        cr_assert_eq(bb_ram_page_bytes(region), ram_page());
        fixture_remove(&ram_fixture, region);
        cr_assert_eq(mprotect(memory, ram_page(), PROT_READ | PROT_WRITE), 0, "it was unmapped");
        cr_assert(ram_is_zero(memory, ram_page()));
        munmap(memory, ram_page());
    }
}

Test(ram, the_pages_before_and_behind_kill_who_touches_them)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};
    const uint64_t alignments[] = {0, RAM_HUGE_BYTES};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < BB_ARRAY_LEN(alignments); i++) {
            struct bb_ram_config config = {.name = "ram",
                                           .size_bytes = ram_page() + 1,
                                           .backing = kinds[k],
                                           .page_bytes = alignments[i]};
            struct bb_region *region = ram_make(&config);
            uint8_t *host = bb_region_host(region);

            cr_assert_eq(ram_signal_of_touching(host), 0);
            cr_assert_eq(ram_signal_of_touching(host + 2 * ram_page() - 1), 0);
            cr_assert_eq(ram_signal_of_touching(host - 1), SIGSEGV);
            cr_assert_eq(ram_signal_of_touching(host - ram_page()), SIGSEGV);
            cr_assert_eq(ram_signal_of_touching(host + 2 * ram_page()), SIGSEGV);
            cr_assert_eq(ram_signal_of_touching(host + 3 * ram_page() - 1), SIGSEGV);
            fixture_remove(&ram_fixture, region);
        }
    }
}

Test(ram, guards_are_left_out_where_the_embedder_says_so)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = UINT64_C(1) << 32};

    for (int guarded = 0; guarded < 2; guarded++) {
        config.no_guard = guarded == 0;
        uint64_t before = ram_mapped_bytes();
        struct bb_region *region = ram_make(&config);
        cr_assert_eq(ram_mapped_bytes() - before,
                     config.size_bytes + (guarded != 0 ? 2 * ram_page() : 0));
        cr_assert_eq(ram_signal_of_touching(bb_region_host(region)), 0);
        fixture_remove(&ram_fixture, region);
        cr_assert_eq(ram_mapped_bytes(), before);
    }
}

Test(ram, memory_is_aligned_to_the_pages_asked_for)
{
    const uint64_t alignments[] = {ram_page(), 2 * ram_page(), RAM_HUGE_BYTES, UINT64_C(1) << 30};
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD, BB_RAM_FILE};
    int fd = ram_numbered_file(3 * ram_page());

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < 2 * BB_ARRAY_LEN(alignments); i++) {
            struct bb_ram_config config = {.name = "ram",
                                           .size_bytes = 2 * ram_page() + 1,
                                           .backing = kinds[k],
                                           .fd = kinds[k] == BB_RAM_FILE ? fd : 0,
                                           .page_bytes = alignments[i / 2],
                                           .no_guard = i % 2 != 0};
            uint64_t before = ram_mapped_bytes();
            struct bb_region *region = ram_make(&config);
            uint64_t guards = config.no_guard ? 0 : 2 * ram_page();

            cr_assert_eq((uintptr_t)bb_region_host(region) % config.page_bytes, 0);
            cr_assert_eq(ram_mapped_bytes() - before, 3 * ram_page() + guards,
                         "the room for aligning is given back");
            memset(bb_region_host(region), 0, 2 * ram_page() + 1);
            fixture_remove(&ram_fixture, region);
            cr_assert_eq(ram_mapped_bytes(), before);
        }
    }
    close(fd);
}

Test(ram, anonymous_memory_of_larger_pages_is_offered_huge_ones)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = RAM_HUGE_BYTES, .page_bytes = RAM_HUGE_BYTES};
    struct bb_region *region = ram_make(&config);
    struct bb_region *plain =
        ram_make(&(struct bb_ram_config){.name = "plain", .size_bytes = RAM_HUGE_BYTES});
    bool host_has = access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0;

    cr_assert_eq(ram_flag(bb_region_host(region), "hg"), host_has);
    cr_assert_not(ram_flag(bb_region_host(plain), "hg"));
    fixture_remove(&ram_fixture, region);
    fixture_remove(&ram_fixture, plain);
}

Test(ram, resizing_shows_and_hides_what_was_mapped_from_the_start)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 100,
                                       .size_bytes_max = UINT64_C(1) << 30,
                                       .backing = kinds[k]};
        struct bb_space *space = fixture_space(&ram_fixture, "space", BB_SPACE_MMIO, 0);
        struct bb_region *region = ram_make(&config);
        uint8_t *host = bb_region_host(region);
        const uint64_t sizes[] = {200, ram_page(), config.size_bytes_max, 1, 200};

        host[150] = 0x77;
        cr_assert_eq(bb_space_map(ram_fixture.ctx, space, 0, region, NULL), BB_OK);
        cr_assert_null(fixture_find(&ram_fixture, space, 100));
        for (size_t i = 0; i < BB_ARRAY_LEN(sizes); i++) {
            struct bb_txn *txn;
            struct bb_error err = {0};

            cr_assert_eq(bb_txn_begin(ram_fixture.ctx, &txn, NULL), BB_OK);
            cr_assert_eq(bb_txn_resize(txn, region, sizes[i], &err), BB_OK, "%s", err.text);
            cr_assert_eq(bb_txn_commit(txn, &err), BB_OK, "%s", err.text);
            cr_assert_eq(bb_region_size(region), sizes[i]);
            cr_assert_eq(fixture_find(&ram_fixture, space, sizes[i] - 1), region);
            cr_assert_null(fixture_find(&ram_fixture, space, sizes[i]));
            cr_assert_eq(bb_region_host(region), host);
            cr_assert_eq(ram_signal_of_touching(host + sizes[i] - 1), 0);
        }
        cr_assert_eq(host[150], 0x77);
        fixture_remove(&ram_fixture, region);
    }
}

static struct bb_region *freed_elsewhere;

static void *free_elsewhere(void *arg)
{
    (void)arg;
    bb_region_free_(ram_fixture.memory.heap, freed_elsewhere);
    return NULL;
}

Test(ram, memory_is_given_back_by_a_thread_without_a_context)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = UINT64_C(1) << 36, .backing = BB_RAM_MEMFD};
    unsigned open_before = ram_descriptors();
    pthread_t thread;

    freed_elsewhere = ram_make(&config);
    cr_assert_eq(bb_regions_retire_(ram_fixture.ctx, &freed_elsewhere, 1, NULL), BB_OK);
    cr_assert_eq(bb_rcu_synchronize(ram_fixture.ctx), BB_OK);
    uint64_t before = ram_mapped_bytes();
    cr_assert_eq(pthread_create(&thread, NULL, free_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_leq(ram_mapped_bytes() + (config.size_bytes >> 1), before);
    cr_assert_eq(ram_descriptors(), open_before);
}

Test(ram, where_the_heap_has_nothing_creation_leaves_nothing)
{
    static const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD};

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {
            .name = "ram", .size_bytes = UINT64_C(1) << 36, .backing = kinds[k]};
        struct bb_region *region = NULL;
        unsigned open_before = ram_descriptors();
        uint64_t mapped_before = ram_mapped_bytes();
        int result = BB_E_NOMEM;
        long failures = 0;

        while (result != BB_OK) {
            test_memory_fail_after(&ram_fixture.memory, failures);
            result = bb_ram_create(ram_fixture.ctx, &config, &region, NULL);
            test_memory_fail_after(&ram_fixture.memory, -1);
            if (result != BB_OK) {
                cr_assert_eq(result, BB_E_NOMEM);
                cr_assert_eq(ram_descriptors(), open_before);
                cr_assert_lt(ram_mapped_bytes(), mapped_before + config.size_bytes);
                failures++;
            }
        }
        cr_assert_geq(failures, 2, "the block and the region, at least");
        fixture_remove(&ram_fixture, region);
    }
}
