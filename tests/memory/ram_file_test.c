/* SPDX-License-Identifier: MIT */
/* RAM with a descriptor: memfds, and files of the embedder's. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ram_fixture.h"

TestSuite(ram_file, .init = ram_begin, .fini = ram_end);

static uint8_t byte_of(int fd, uint64_t at)
{
    uint8_t byte = 0xee;

    cr_assert_eq(pread(fd, &byte, 1, (off_t)at), 1);
    return byte;
}

Test(ram_file, a_memfd_is_the_same_memory_wherever_it_is_mapped)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = ram_page() + 8,
                                   .size_bytes_max = 5 * ram_page(),
                                   .backing = BB_RAM_MEMFD};
    unsigned open_before = ram_descriptors();
    struct bb_region *region = ram_make(&config);
    uint64_t offset = 1;
    int fd = bb_ram_fd(region, &offset);
    struct stat status;

    cr_assert_geq(fd, 0);
    cr_assert_eq(offset, 0);
    cr_assert_eq(bb_ram_fd(region, NULL), fd);
    cr_assert_eq(fstat(fd, &status), 0);
    cr_assert_eq((uint64_t)status.st_size, 5 * ram_page());
    cr_assert((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    cr_assert_eq(fixture_write(ram_fixture.ctx, region, ram_page(), 8, 0x1122334455667788), BB_OK);
    uint64_t *other = mmap(NULL, 2 * ram_page(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(other, MAP_FAILED);
    cr_assert_eq(other[ram_page() / 8], 0x1122334455667788);
    other[0] = 42;
    cr_assert_eq(*(uint64_t *)bb_region_host(region), 42);
    munmap(other, 2 * ram_page());

    cr_assert_eq(ftruncate(fd, 0), -1, "someone can make it shorter");
    cr_assert_eq(ftruncate(fd, (off_t)(6 * ram_page())), -1, "someone can make it longer");
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
    fixture_remove(&ram_fixture, region);
    cr_assert_eq(ram_descriptors(), open_before);
}

Test(ram_file, a_file_is_mapped_from_its_offset_on)
{
    int fd = ram_numbered_file(4 * ram_page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    for (int by_path = 0; by_path < 2; by_path++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = 2 * ram_page(),
                                       .backing = BB_RAM_FILE,
                                       .path = by_path != 0 ? path : NULL,
                                       .fd = by_path != 0 ? -1 : fd,
                                       .fd_offset = ram_page()};
        struct bb_region *region = ram_make(&config);
        uint8_t *host = bb_region_host(region);
        uint64_t offset = 0;

        cr_assert_eq(host[0], 1);
        cr_assert_eq(host[ram_page()], 2);
        cr_assert_eq(fixture_write(ram_fixture.ctx, region, 5, 1, 0x99), BB_OK);
        cr_assert_eq(byte_of(fd, ram_page() + 5), 0x99);
        int own = bb_ram_fd(region, &offset);
        cr_assert_neq(own, fd);
        cr_assert_eq(offset, ram_page());
        cr_assert((fcntl(own, F_GETFD) & FD_CLOEXEC) != 0);
        cr_assert_eq(byte_of(own, offset), 1);
        fixture_remove(&ram_fixture, region);
        cr_assert_eq(byte_of(fd, 0), 0, "the caller's own descriptor was closed");
    }
    close(fd);
}

Test(ram_file, the_callers_descriptor_may_be_closed_after_creation)
{
    int fd = ram_numbered_file(ram_page());
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = ram_page(), .backing = BB_RAM_FILE, .fd = fd};
    struct bb_region *region = ram_make(&config);

    close(fd);
    cr_assert_eq(fixture_write(ram_fixture.ctx, region, 7, 1, 0x99), BB_OK);
    cr_assert_eq(byte_of(bb_ram_fd(region, NULL), 7), 0x99);
    fixture_remove(&ram_fixture, region);
}

Test(ram_file, writes_to_a_private_file_stay_here)
{
    int fd = ram_numbered_file(ram_page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reads_only = open(path, O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        struct bb_ram_config config = {.name = "ram",
                                       .size_bytes = ram_page(),
                                       .backing = BB_RAM_FILE,
                                       .fd = i != 0 ? fd : reads_only,
                                       .private_file = true};
        struct bb_region *region = ram_make(&config);
        uint64_t offset = 7;

        cr_assert_eq(fixture_write(ram_fixture.ctx, region, 0, 1, 0x99), BB_OK);
        cr_assert_eq(*(uint8_t *)bb_region_host(region), 0x99);
        cr_assert_eq(byte_of(fd, 0), 0);
        cr_assert_eq(bb_ram_fd(region, &offset), -1, "it is not that memory any more");
        cr_assert_eq(offset, 7);
        fixture_remove(&ram_fixture, region);
    }
    close(reads_only);
    close(fd);
}

Test(ram_file, a_read_only_file_needs_no_right_to_write_and_survives_a_guest_that_gets_it)
{
    int fd = ram_numbered_file(ram_page());
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reads_only = open(path, O_RDONLY | O_CLOEXEC);
    struct bb_ram_config config = {.name = "rom",
                                   .size_bytes = ram_page(),
                                   .backing = BB_RAM_FILE,
                                   .fd = reads_only,
                                   .read_only = true,
                                   .prefault = true};
    struct bb_region *region = ram_make(&config);
    struct bb_txn *txn;

    cr_assert_geq(bb_ram_fd(region, NULL), 0);
    cr_assert_eq(fixture_write(ram_fixture.ctx, region, 0, 1, 0x99), BB_E_DEVICE);
    cr_assert_eq(pwrite(fd, "A", 1, 1), 1);
    cr_assert_eq(((uint8_t *)bb_region_host(region))[1], 'A', "pages are the file's until written");
    cr_assert_eq(bb_txn_begin(ram_fixture.ctx, &txn, NULL), BB_OK);
    cr_assert_eq(bb_txn_read_only(txn, region, false, NULL), BB_OK);
    cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
    cr_assert_eq(fixture_write(ram_fixture.ctx, region, 0, 1, 0x99), BB_OK);
    cr_assert_eq(*(uint8_t *)bb_region_host(region), 0x99);
    cr_assert_eq(byte_of(fd, 0), 0);
    fixture_remove(&ram_fixture, region);
    close(reads_only);
    close(fd);
}

Test(ram_file, a_file_must_be_long_enough_and_its_offset_a_page)
{
    int fd = ram_numbered_file(2 * ram_page() + 10);
    struct bb_ram_config base = {
        .name = "ram", .size_bytes = ram_page() + 10, .backing = BB_RAM_FILE, .fd = fd};
    struct bb_ram_config config = base;

    config.fd_offset = ram_page();
    fixture_remove(&ram_fixture, ram_make(&config));
    config.size_bytes++;
    ram_refused(&config, BB_E_RANGE, "needed");
    config = base;
    config.size_bytes_max = 2 * ram_page() + 11;
    ram_refused(&config, BB_E_RANGE, "needed");
    config = base;
    config.fd_offset = 3 * ram_page();
    ram_refused(&config, BB_E_RANGE, "needed");
    config.fd_offset = 0 - ram_page();
    ram_refused(&config, BB_E_RANGE, "needed");
    config.fd_offset = ram_page() / 2;
    ram_refused(&config, BB_E_INVAL, "fd_offset");
    config.fd_offset = 1;
    ram_refused(&config, BB_E_INVAL, "fd_offset");
    cr_assert_eq(ftruncate(fd, 0), 0);
    ram_refused(&base, BB_E_RANGE, "0x0 bytes");
    close(fd);
}

Test(ram_file, what_is_no_file_for_it_is_refused)
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
    ram_refused(&by_path, BB_E_SYSTEM, "opened");
    by_path.path = "/nowhere/at/all";
    ram_refused(&by_path, BB_E_SYSTEM, "/nowhere/at/all");
    by_path.path = folder;
    ram_refused(&by_path, BB_E_SYSTEM, "writing");
    by_path.path = fifo;
    ram_refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.path = "/dev/zero";
    ram_refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.read_only = true;
    by_path.path = folder;
    ram_refused(&by_path, BB_E_INVAL, "no regular file");
    by_path.path = fifo; /* nobody writes to it: opening it must not wait */
    ram_refused(&by_path, BB_E_INVAL, "no regular file");

    by_fd.fd = -1;
    ram_refused(&by_fd, BB_E_INVAL, "fd -1 is no open descriptor");
    by_fd.fd = 1000000;
    ram_refused(&by_fd, BB_E_INVAL, "no open descriptor");
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
    by_fd.fd = ends[1];
    ram_refused(&by_fd, BB_E_INVAL, "not open for reading");
    by_fd.fd = ends[0];
    ram_refused(&by_fd, BB_E_INVAL, "reading only");
    by_fd.read_only = true;
    ram_refused(&by_fd, BB_E_INVAL, "no regular file");
    by_fd.fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    ram_refused(&by_fd, BB_E_INVAL, "not open for reading");
    close(by_fd.fd);
    close(ends[0]);
    close(ends[1]);
    unlink(fifo);
    rmdir(folder);
}
