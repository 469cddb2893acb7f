/* SPDX-License-Identifier: MIT */
/*
 * RAM's pages: prefaulted, huge, bound to nodes. Of what can't be counted on (huge pages, NUMA)
 * either what the host gives is tested or how it is refused.
 */
#include <criterion/criterion.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ram_fixture.h"

TestSuite(ram_pages, .init = ram_begin, .fini = ram_end);

/*
 * Prefaulting.
 */

static uint64_t resident(void *host, uint64_t bytes)
{
    static unsigned char there[4096];
    uint64_t pages = (bytes + ram_page() - 1) / ram_page(), count = 0;

    cr_assert_leq(pages, BB_ARRAY_LEN(there));
    cr_assert_eq(mincore(host, pages * ram_page(), there), 0);
    for (uint64_t i = 0; i < pages; i++) {
        count += there[i] & 1;
    }
    return count;
}

Test(ram_pages, prefaulting_has_every_page_there_and_changes_none)
{
    const struct {
        uint64_t pages;
        unsigned threads;
    } cases[] = {{1, 0}, {1, 64}, {3, 2}, {64, 64}, {1000, 7}, {2048, 1}};

    for (size_t i = 0; i < BB_ARRAY_LEN(cases); i++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = cases[i].pages * ram_page() - 1,
                                       .size_bytes_max = 4096 * ram_page(),
                                       .prefault = true,
                                       .prefault_threads = cases[i].threads};
        for (int k = 0; k < 3; k++) {
            int fd = k == 2 ? ram_numbered_file(4096 * ram_page()) : 0;
            config.backing = k == 0 ? BB_RAM_ANONYMOUS : k == 1 ? BB_RAM_MEMFD : BB_RAM_FILE;
            config.fd = fd;
            struct bb_region *region = ram_make(&config);
            uint8_t *host = bb_region_host(region);
            cr_assert_eq(resident(host, config.size_bytes), cases[i].pages);
            if (k != 2) {
                cr_assert_eq(resident(host, config.size_bytes_max), cases[i].pages,
                             "more is there than asked for");
                cr_assert(ram_is_zero(host, config.size_bytes));
            } else {
                cr_assert_eq(host[(cases[i].pages - 1) * ram_page()],
                             (uint8_t)(cases[i].pages - 1));
                close(fd);
            }
            fixture_remove(&ram_fixture, region);
        }
    }
}

Test(ram_pages, without_prefaulting_no_page_is_there)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 512 * ram_page()};
    struct bb_region *region = ram_make(&config);

    cr_assert_eq(resident(bb_region_host(region), config.size_bytes), 0);
    fixture_remove(&ram_fixture, region);
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

Test(ram_pages, memory_is_bound_to_the_nodes_asked_for_or_refused)
{
    const enum bb_ram_backing kinds[] = {BB_RAM_ANONYMOUS, BB_RAM_MEMFD, BB_RAM_FILE};
    int fd = ram_numbered_file(ram_page());

    for (size_t k = 0; k < BB_ARRAY_LEN(kinds); k++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = ram_page(),
                                       .backing = kinds[k],
                                       .fd = kinds[k] == BB_RAM_FILE ? fd : 0,
                                       .numa = true,
                                       .numa_nodes = 1};
        unsigned long nodes[16] = {0};
        int mode = -1;

        if (!host_has_numa()) {
            ram_refused(&config, BB_E_UNSUPPORTED, "numa");
            continue;
        }
        struct bb_region *region = ram_make(&config);
        cr_assert_eq(syscall(SYS_get_mempolicy, &mode, nodes, sizeof(nodes) * 8,
                             bb_region_host(region), MPOL_F_ADDR),
                     0);
        cr_assert_eq(mode, MPOL_BIND);
        cr_assert_eq(nodes[0], 1);
        fixture_remove(&ram_fixture, region);
        config.numa_nodes = UINT64_C(1) << 63 | 1;
        ram_refused(&config, BB_E_UNSUPPORTED, "numa_nodes is 0x8000000000000001");
    }
    close(fd);
}

Test(ram_pages, a_file_system_that_places_pages_itself_is_not_bound)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = 64,
                                   .backing = BB_RAM_FILE,
                                   .path = "/proc/self/exe",
                                   .read_only = true,
                                   .numa = true,
                                   .numa_nodes = 1};

    ram_refused(&config, BB_E_UNSUPPORTED, "tmpfs");
}

Test(ram_pages, huge_pages_are_given_or_the_text_says_how_to_reserve_them)
{
    const uint64_t wishes[] = {0, RAM_HUGE_BYTES};

    for (size_t i = 0; i < BB_ARRAY_LEN(wishes); i++) {
        struct bb_ram_config config = {
            .name = "ram", .size_bytes = 100, .backing = BB_RAM_HUGETLB, .page_bytes = wishes[i]};
        struct bb_region *region = NULL;
        struct bb_error err = {0};

        int result = bb_ram_create(ram_fixture.ctx, &config, &region, &err);
        if (result != BB_OK) {
            cr_assert_eq(result, BB_E_UNSUPPORTED, "%s", err.text);
            cr_assert_not_null(strstr(err.text, "/sys/kernel/mm/hugepages"), "%s", err.text);
            ram_refused(&config, BB_E_UNSUPPORTED, "huge pages");
            continue;
        }
        uint64_t bytes = bb_ram_page_bytes(region);
        uint8_t *host = bb_region_host(region);
        cr_assert_gt(bytes, ram_page());
        cr_assert_eq((uintptr_t)host % bytes, 0);
        cr_assert(ram_is_zero(host, bytes));
        cr_assert_eq(ram_signal_of_touching(host - 1), SIGSEGV);
        cr_assert_eq(ram_signal_of_touching(host + bytes), SIGSEGV);
        cr_assert_eq(ftruncate(bb_ram_fd(region, NULL), 0), -1);

        struct bb_ram_config again = {.name = "again",
                                      .size_bytes = bytes,
                                      .backing = BB_RAM_FILE,
                                      .fd = bb_ram_fd(region, NULL),
                                      .prefault = true,
                                      .prefault_threads = 3};
        struct bb_region *same = ram_make(&again);
        host[99] = 0x5a;
        cr_assert_eq(bb_ram_page_bytes(same), bytes);
        cr_assert_eq(((uint8_t *)bb_region_host(same))[99], 0x5a);
        again.fd_offset = ram_page();
        ram_refused(&again, BB_E_INVAL, "fd_offset");
        fixture_remove(&ram_fixture, same);
        fixture_remove(&ram_fixture, region);
    }
}

Test(ram_pages, huge_pages_that_no_host_has_are_refused)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = 100, .backing = BB_RAM_HUGETLB, .page_bytes = 1 << 22};

    /* 4 MiB: neither x86-64 nor Armv8 has them. */
    ram_refused(&config, BB_E_UNSUPPORTED, "page_bytes is 0x400000");
    config.page_bytes = RAM_HUGE_BYTES;
    config.size_bytes = UINT64_C(1) << 45;
    ram_refused(&config, BB_E_UNSUPPORTED, "/sys/kernel/mm/hugepages");
}
