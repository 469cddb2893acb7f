/* SPDX-License-Identifier: MIT */
/*
 * Kernels: the boot check, in both forms, finds what a Linux kernel would rely on. It is told what
 * to expect on its command line; told wrongly, it must fail, which shows that it looks.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm/command.h"

/* The debug-exit port's code c is status (c << 1) | 1. */
enum { CHECKS_HOLD = 1, CHECKS_FAILED = 3 };
enum { INITRD_BYTES = 100001 };

static struct command_result result;

TestSuite(boot_check, .timeout = 300);

static const char *const forms[] = {BOOT_BZIMAGE, BOOT_ELF};
enum { FORMS = 2 };

static void need_kvm(void)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
}

/* An initrd of bytes that repeat nowhere near, and its FNV-1a hash. */
static const char *make_initrd(uint64_t *hash)
{
    static uint8_t bytes[INITRD_BYTES];
    uint64_t state = 1;
    *hash = UINT64_C(0xcbf29ce484222325);
    for (unsigned i = 0; i < INITRD_BYTES; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        bytes[i] = (uint8_t)(state >> 56);
        *hash = (*hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
    return temporary_file("initrd", bytes, sizeof(bytes));
}

static void boot(const char *kernel, const char *vcpus, const char *memory, const char *initrd,
                 const char *append)
{
    const char *args[] = {"run",      "--kernel", kernel,     "--vcpus", vcpus,
                          "--memory", memory,     "--append", append,    initrd ? "--initrd" : NULL,
                          initrd,     NULL};
    command_run(&result, 100, args);
}

static void assert_status(int status, const char *kernel)
{
    cr_assert_eq(result.status, status, "%s: status %d\n%s%s", kernel, result.status, result.out,
                 result.err);
}

Test(boot_check, both_forms_find_parameters_memory_tables_command_line_and_initrd)
{
    need_kvm();
    uint64_t hash;
    const char *initrd = make_initrd(&hash);
    char append[256];
    cr_assert_not_null(initrd);
    snprintf(append, sizeof(append), "xsdt ram=%u vcpus=3 initrd=%d hash=0x%" PRIx64, 256u << 20,
             INITRD_BYTES, hash);
    for (unsigned i = 0; i < FORMS; i++) {
        boot(forms[i], "3", "256M", initrd, append);
        assert_status(CHECKS_HOLD, forms[i]);
        cr_assert_not_null(strstr(result.out, append), "%s: %s", forms[i], result.out);
        cr_assert_not_null(strstr(result.out, "all is well"), "%s: %s", forms[i], result.out);
        cr_assert_null(strstr(result.out, "FAILED"), "%s: %s", forms[i], result.out);
    }
}

Test(boot_check, memory_on_both_sides_of_the_hole_is_in_the_map)
{
    need_kvm();
    for (unsigned i = 0; i < FORMS; i++) {
        boot(forms[i], "1", "5G", NULL, "xsdt ram=5368709120 vcpus=1");
        assert_status(CHECKS_HOLD, forms[i]);
        cr_assert_not_null(strstr(result.out, "e820 0x100000000 "), "%s", result.out);
    }
}

Test(boot_check, many_processors_are_in_the_madt)
{
    need_kvm();
    boot(BOOT_ELF, "64", "64M", NULL, "xsdt ram=67108864 vcpus=64");
    assert_status(CHECKS_HOLD, BOOT_ELF);
}

Test(boot_check, wrong_expectations_fail)
{
    need_kvm();
    uint64_t hash;
    const char *initrd = make_initrd(&hash);
    char append[256];
    cr_assert_not_null(initrd);
    snprintf(append, sizeof(append), "initrd=%d hash=0x%" PRIx64, INITRD_BYTES, hash ^ 1);
    boot(BOOT_ELF, "1", "64M", initrd, append);
    assert_status(CHECKS_FAILED, "hash");
    cr_assert_not_null(strstr(result.out, "right content: FAILED"), "%s", result.out);
    boot(BOOT_ELF, "2", "64M", NULL, "vcpus=3");
    assert_status(CHECKS_FAILED, "vcpus");
    boot(BOOT_ELF, "1", "64M", NULL, "ram=134217728");
    assert_status(CHECKS_FAILED, "ram");
}
