/* SPDX-License-Identifier: MIT */
/*
 * Public multiboot test images for x86 hypervisors, unmodified: BUSBAR_TEST_IMAGES names a folder
 * with hpet_read_test, smptest, ioapic, apic and vmexit, each as .flat or .elf. They report on the
 * serial port, a line "PASS: ..." or "FAIL: ..." a test, and end by the debug-exit port.
 *
 * The last three also try what a KVM itself may be unable to do. For them the claim is the lines
 * that the same image reaches in another monitor on the slowest KVM that was measured; what comes
 * after those is not asked for.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../vmm/command.h"

enum { EXIT_OF_CODE_0 = 1 };

static struct command_result result;

TestSuite(test_images, .timeout = 1800);

/* The image's path; skips the test where there is none, or no KVM. */
static const char *image(const char *name)
{
    static char path[4096];
    static const char *const endings[] = {"flat", "elf"};
    const char *folder = getenv("BUSBAR_TEST_IMAGES");
    if (!folder || !*folder) {
        cr_skip_test("BUSBAR_TEST_IMAGES names no folder of test images");
    }
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s.%s", folder, name, endings[i]);
        if (access(path, R_OK) == 0) {
            return path;
        }
    }
    cr_assert_fail("no %s.flat or %s.elf in %s", name, name, folder);
    return NULL;
}

static void run_image(const char *name, const char *vcpus, const char *append, double seconds)
{
    const char *args[] = {
        "run", "--kernel", image(name), "--vcpus", vcpus, append ? "--append" : NULL, append, NULL};
    command_run(&result, seconds, args);
}

static void assert_passed(const char *what)
{
    cr_assert_eq(result.status, EXIT_OF_CODE_0, "%s: status %d\n%s%s", what, result.status,
                 result.out, result.err);
    cr_assert_null(strstr(result.out, "FAIL"), "%s: %s", what, result.out);
}

static void assert_line(const char *line)
{
    cr_assert_not_null(strstr(result.out, line), "'%s' is not in\n%s%s", line, result.out,
                       result.err);
}

/* Its time follows the number of vCPUs, to minutes: more than 8 in a long run only. */
Test(test_images, hpet_read_test_passes_with_2_to_64_vcpus)
{
    static const char *const counts[] = {"2", "8", "32", "64"};
    const char *seconds = getenv("BUSBAR_STRESS_SECONDS");
    unsigned run = seconds && atoi(seconds) >= 60 ? 4 : 2;
    for (unsigned i = 0; i < run; i++) {
        run_image("hpet_read_test", counts[i], NULL, 600);
        assert_passed(counts[i]);
        assert_line("PASS: read test");
        if (i > 0) { /* the image wants more than 2 for it */
            assert_line("PASS: torture test, fails: 0");
        }
    }
}

Test(test_images, smp_test_passes_with_2_to_64_vcpus)
{
    static const char *const counts[] = {"2", "3", "16", "64"};
    for (unsigned i = 0; i < 4; i++) {
        run_image("smptest", counts[i], NULL, 300);
        assert_passed(counts[i]);
        assert_line("PASS: IPI to each CPU");
    }
}

Test(test_images, ioapic_test_goes_as_far_as_elsewhere)
{
    run_image("ioapic", "2", NULL, 30);
    assert_line("PASS: version register read only test");
    assert_line("PASS: id register only bits [24:27] writable");
    assert_line("PASS: arbitration register set by id");
    assert_line("PASS: edge triggered intr");
    assert_line("PASS: level triggered intr");
    assert_line("PASS: coalesce simultaneous level interrupts");
    assert_line("PASS: sequential level interrupts");
}

Test(test_images, apic_test_goes_as_far_as_elsewhere)
{
    run_image("apic", "2", NULL, 30);
    /* Not the self IPIs: the image waits for them by the time stamp counter, and not for long. */
    assert_line("PASS: apic_disable: Local apic enabled in x2APIC mode");
    assert_line("PASS: apic enabled to invalid state");
    assert_line("PASS: APIC physical broadcast address");
    assert_line("PASS: APIC physical broadcast shorthand");
}

Test(test_images, exit_latency_test_measures_ports_and_interrupts)
{
    static const char *const measured[] = {"cpuid", "inl_from_pmtimer", "inl_from_kernel",
                                           "outl_to_kernel", "ipi"};
    for (unsigned i = 0; i < 5; i++) {
        run_image("vmexit", "2", measured[i], 120);
        assert_passed(measured[i]);
        assert_line(measured[i]);
    }
}
