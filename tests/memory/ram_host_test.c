/* SPDX-License-Identifier: MIT */
/*
 * RAM on hosts that refuse: each system call that creation makes is made to fail in turn, by a
 * filter of the kernel's, and nothing may be left. Each case is a process of its own.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ram_fixture.h"

enum { RAM_PAGES = 16 };

TestSuite(ram_host, .init = ram_begin);

/* A system call whose argument number `arg` has, under `mask`, the value `value`. */
struct failure {
    long call;
    unsigned arg;
    uint32_t mask;
    uint32_t value;
    int code; /* errno */
};

/* From here on it fails, in this process, for good. */
static void make_fail(const struct failure *failure)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)failure->call, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 (uint32_t)offsetof(struct seccomp_data, args) + 8 * failure->arg),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, failure->mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, failure->value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)failure->code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = BB_ARRAY_LEN(code), .filter = code};

    cr_assert_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    cr_assert_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

/* What fails, for which backing, and what comes of it. */
struct refusal {
    struct failure failure;
    enum bb_ram_backing backing;
    bool numa;
    bool prefault;
    int code;
    char word[48];
};

#define SHARED_NEW (uint32_t)(MAP_SHARED | MAP_FIXED), (uint32_t)MAP_SHARED
#define SHARED_AT (uint32_t)(MAP_SHARED | MAP_FIXED), (uint32_t)(MAP_SHARED | MAP_FIXED)
#define ANY 0, 0

static struct refusal refusals[] = {
    {{SYS_memfd_create, 0, ANY, EMFILE}, BB_RAM_MEMFD, false, false, BB_E_SYSTEM, "no memfd"},
    {{SYS_ftruncate, 0, ANY, EFBIG}, BB_RAM_MEMFD, false, false, BB_E_SYSTEM, "size"},
    {{SYS_fcntl, 1, UINT32_MAX, F_ADD_SEALS, EINVAL},
     BB_RAM_MEMFD,
     false,
     false,
     BB_E_SYSTEM,
     "sealed"},
    {{SYS_mmap, 3, SHARED_NEW, ENODEV}, BB_RAM_MEMFD, false, false, BB_E_SYSTEM, "mapped"},
    {{SYS_mmap, 3, SHARED_NEW, ENOMEM}, BB_RAM_MEMFD, false, false, BB_E_SYSTEM, "mapped"},
    {{SYS_mmap, 2, UINT32_MAX, PROT_NONE, ENOMEM},
     BB_RAM_MEMFD,
     false,
     false,
     BB_E_SYSTEM,
     "reserved"},
    {{SYS_mmap, 2, UINT32_MAX, PROT_NONE, ENOMEM},
     BB_RAM_ANONYMOUS,
     false,
     false,
     BB_E_SYSTEM,
     "reserved"},
    {{SYS_mprotect, 2, UINT32_MAX, PROT_READ | PROT_WRITE, ENOMEM},
     BB_RAM_ANONYMOUS,
     false,
     false,
     BB_E_SYSTEM,
     "mapped"},
    {{SYS_get_mempolicy, 0, ANY, ENOSYS}, BB_RAM_ANONYMOUS, true, false, BB_E_UNSUPPORTED, "numa"},
    {{SYS_mbind, 0, ANY, EPERM}, BB_RAM_MEMFD, true, false, BB_E_UNSUPPORTED, "numa"},
    {{SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_WRITE, EFAULT},
     BB_RAM_MEMFD,
     false,
     true,
     BB_E_SYSTEM,
     "pages"},
    {{SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_WRITE, ENOMEM},
     BB_RAM_ANONYMOUS,
     false,
     true,
     BB_E_SYSTEM,
     "pages"},
    {{SYS_memfd_create, 0, ANY, ENODEV},
     BB_RAM_HUGETLB,
     false,
     false,
     BB_E_UNSUPPORTED,
     "huge pages"},
    {{SYS_memfd_create, 0, ANY, EPERM}, BB_RAM_HUGETLB, false, false, BB_E_SYSTEM, "huge pages"},
};

ParameterizedTestParameters(ram_host, what_the_host_refuses_leaves_nothing)
{
    return cr_make_param_array(struct refusal, refusals, BB_ARRAY_LEN(refusals));
}

ParameterizedTest(struct refusal *refusal, ram_host, what_the_host_refuses_leaves_nothing)
{
    struct bb_ram_config config = {.name = "ram",
                                   .size_bytes = UINT64_C(1) << 36,
                                   .backing = refusal->backing,
                                   .numa = refusal->numa,
                                   .numa_nodes = refusal->numa ? 1 : 0,
                                   .prefault = refusal->prefault};

    make_fail(&refusal->failure);
    ram_refused(&config, refusal->code, refusal->word);
    ram_end();
}

Test(ram_host, a_place_that_can_not_be_mapped_into_is_not_unmapped_either)
{
    struct bb_ram_config config = {
        .name = "ram", .size_bytes = UINT64_C(1) << 36, .backing = BB_RAM_MEMFD};
    struct bb_region *region = NULL;
    struct bb_error err = {0};
    unsigned open_before = ram_descriptors();

    /* The kernel may have made a hole there, and another thread may use it by now. */
    make_fail(&(struct failure){SYS_mmap, 3, SHARED_AT, ENOMEM});
    uint64_t mapped_before = ram_mapped_bytes();
    cr_assert_eq(bb_ram_create(ram_fixture.ctx, &config, &region, &err), BB_E_SYSTEM);
    cr_assert_geq(ram_mapped_bytes(), mapped_before + config.size_bytes);
    cr_assert_eq(ram_descriptors(), open_before);
    ram_end();
}

static void all_there(struct bb_region *region)
{
    unsigned char there[RAM_PAGES] = {0};

    cr_assert_eq(mincore(bb_region_host(region), bb_region_size(region), there), 0);
    for (unsigned i = 0; i < RAM_PAGES; i++) {
        cr_assert((there[i] & 1) != 0, "page %u is not there", i);
    }
}

static struct bb_ram_config prefaulted(enum bb_ram_backing backing)
{
    return (struct bb_ram_config){.name = "ram",
                                  .size_bytes = RAM_PAGES * (uint64_t)sysconf(_SC_PAGESIZE),
                                  .backing = backing,
                                  .prefault = true,
                                  .prefault_threads = 3};
}

/* A file of RAM_PAGES pages, in the first byte of each of which is its number, from 1 on. */
static int file_of_pages(void)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int fd = memfd_create("file", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, (off_t)(RAM_PAGES * page)), 0);
    for (uint64_t i = 0; i < RAM_PAGES; i++) {
        uint8_t byte = (uint8_t)(i + 1);
        cr_assert_eq(pwrite(fd, &byte, 1, (off_t)(i * page)), 1);
    }
    return fd;
}

Test(ram_host, kernels_that_can_not_populate_have_their_pages_touched)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct bb_ram_config config = prefaulted(BB_RAM_ANONYMOUS);

    make_fail(&(struct failure){SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_WRITE, EINVAL});
    make_fail(&(struct failure){SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_READ, EINVAL});
    struct bb_region *region = ram_make(&config);
    all_there(region);
    fixture_remove(&ram_fixture, region);
    for (int i = 0; i < 3; i++) {
        config = prefaulted(BB_RAM_FILE);
        config.fd = file_of_pages();
        config.private_file = i == 1;
        config.read_only = i == 2;
        region = ram_make(&config);
        all_there(region);
        for (uint64_t at = 0; at < RAM_PAGES; at++) {
            cr_assert_eq(((uint8_t *)bb_region_host(region))[at * page], at + 1);
        }
        fixture_remove(&ram_fixture, region);
        close(config.fd);
    }
    ram_end();
}

Test(ram_host, where_no_thread_can_be_had_the_caller_prefaults_alone)
{
    struct bb_ram_config config = prefaulted(BB_RAM_MEMFD);

    make_fail(&(struct failure){SYS_clone3, 0, ANY, ENOSYS});
    make_fail(&(struct failure){SYS_clone, 0, CLONE_THREAD, CLONE_THREAD, EAGAIN});
    struct bb_region *region = ram_make(&config);
    all_there(region);
    fixture_remove(&ram_fixture, region);
    ram_end();
}

Test(ram_host, kernels_that_do_not_know_of_executable_memfds_give_one)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 64, .backing = BB_RAM_MEMFD};

    make_fail(&(struct failure){SYS_memfd_create, 1, 8, 8, EINVAL});
    struct bb_region *region = ram_make(&config);
    cr_assert_geq(bb_ram_fd(region, NULL), 0);
    fixture_remove(&ram_fixture, region);
    ram_end();
}

Test(ram_host, kernels_without_huge_pages_align_all_the_same)
{
    struct bb_ram_config config = {.name = "ram", .size_bytes = 64, .page_bytes = 2 << 20};

    make_fail(&(struct failure){SYS_madvise, 2, UINT32_MAX, MADV_HUGEPAGE, EINVAL});
    struct bb_region *region = ram_make(&config);
    cr_assert_eq((uintptr_t)bb_region_host(region) % config.page_bytes, 0);
    fixture_remove(&ram_fixture, region);
    ram_end();
}
