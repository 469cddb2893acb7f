/* SPDX-License-Identifier: MIT */
/*
 * Whole guests: the boot check in both forms of a Linux kernel, and public multiboot test images
 * for x86 hypervisors, unmodified, from the folder that BUSBAR_TEST_IMAGES names.
 */
#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../vmm/command.h"

enum { PATIENCE_S = 150, INITRD_BYTES = 100001, PASSED = 1 /* (0 << 1) | 1 */ };

static struct command_result result;

static void need_kvm(void)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
}

TestSuite(guest_images, .init = need_kvm, .timeout = 600);

static uint64_t fnv1a(const uint8_t *bytes, size_t count)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static void boot_check(const char *kernel, const char *vcpus, const char *memory, uint64_t ram)
{
    static uint8_t initrd[INITRD_BYTES];
    char append[256];
    for (size_t i = 0; i < sizeof(initrd); i++) {
        initrd[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    const char *path = temporary_file("initrd", initrd, sizeof(initrd));
    snprintf(append, sizeof(append), "ram=%llu vcpus=%s initrd=%d hash=%#llx xsdt",
             (unsigned long long)ram, vcpus, INITRD_BYTES,
             (unsigned long long)fnv1a(initrd, sizeof(initrd)));
    const char *const args[] = {"run",  "--kernel", kernel, "--vcpus",  vcpus,  "--memory",
                                memory, "--initrd", path,   "--append", append, NULL};
    command_run(&result, PATIENCE_S, args);
    cr_assert_eq(result.status, PASSED, "%s, %s vCPUs: %d: %s%s", kernel, vcpus, result.status,
                 result.out, result.err);
    cr_assert_not_null(strstr(result.out, "boot: 0 failures"), "%s", result.out);
}

Test(guest_images, a_linux_elf_kernel_gets_what_the_boot_protocol_promises)
{
    boot_check(BOOT_CHECK_ELF, "2", "64M", UINT64_C(64) << 20);
    boot_check(BOOT_CHECK_ELF, "1", "5G", UINT64_C(5) << 30);
}

Test(guest_images, a_bzimage_kernel_gets_what_the_boot_protocol_promises)
{
    boot_check(BOOT_CHECK_BZIMAGE, "1", "64M", UINT64_C(64) << 20);
    boot_check(BOOT_CHECK_BZIMAGE, "300", "5G", UINT64_C(5) << 30);
}

/* Runs a public image; skips where there is none. Returns its path. */
static void run_public(const char *name, const char *vcpus, const char *seconds)
{
    const char *folder = getenv("BUSBAR_TEST_IMAGES");
    char path[512];
    if (folder == NULL) {
        cr_skip_test("BUSBAR_TEST_IMAGES names no folder of multiboot test images");
    }
    snprintf(path, sizeof(path), "%s/%s.flat", folder, name);
    if (access(path, R_OK) != 0) {
        cr_skip_test("BUSBAR_TEST_IMAGES has no %s.flat", name);
    }
    const char *const args[] = {"run",      "--kernel", path,        "--vcpus", vcpus,
                                "--memory", "512M",     "--seconds", seconds,   NULL};
    command_run(&result, PATIENCE_S, args);
}

Test(guest_images, public_smp_image_passes)
{
    static const char *const counts[] = {"2", "8", "64"};
    for (unsigned i = 0; i < 3; i++) {
        run_public("smptest", counts[i], "120");
        cr_assert_eq(result.status, PASSED, "%s vCPUs: %d: %s", counts[i], result.status,
                     result.out);
        cr_assert_null(strstr(result.out, "FAIL"), "%s", result.out);
    }
}

Test(guest_images, public_hpet_read_image_passes)
{
    static const char *const counts[] = {"2", "4"};
    for (unsigned i = 0; i < 2; i++) {
        run_public("hpet_read_test", counts[i], "120");
        cr_assert_eq(result.status, PASSED, "%s vCPUs: %d: %s", counts[i], result.status,
                     result.out);
        cr_assert_null(strstr(result.out, "FAIL"), "%s", result.out);
        cr_assert_not_null(strstr(result.out, "PASS: read test"), "%s", result.out);
    }
}

/*
 * As far as with other monitors on the same KVM: what stands before the first thing that KVM itself
 * does wrong on some hosts ("simultaneous edge").
 */
Test(guest_images, public_ioapic_image_gets_as_far_as_kvm_lets_it)
{
    static const char *const wanted[] = {
        "PASS: version register read only test",
        "PASS: id register only bits [24:27] writable",
        "PASS: arbitration register set by id",
        "PASS: arbtration register read only",
        "PASS: edge triggered intr",
        "PASS: level triggered intr",
        "PASS: coalesce simultaneous level interrupts",
        "PASS: sequential level interrupts",
    };
    run_public("ioapic", "4", "20");
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        cr_assert_not_null(strstr(result.out, wanted[i]), "no '%s' in: %s", wanted[i], result.out);
    }
}

Test(guest_images, public_local_apic_image_gets_as_far_as_kvm_lets_it)
{
    run_public("apic", "2", "20");
    cr_assert_not_null(strstr(result.out, "PASS: APIC physical broadcast shorthand"), "%s",
                       result.out);
    cr_assert_null(strstr(result.out, "FAIL"), "%s", result.out);
}
