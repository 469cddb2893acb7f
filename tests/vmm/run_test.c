/* SPDX-License-Identifier: MIT */
/* How guests end, and what comes through: debug exit, power-off, reset, triple fault, serial. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "image.h"
#include "payload.h"

enum { PATIENCE_S = 60 };

static struct command_result result;

static void need_kvm(void)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
}

TestSuite(guest_run, .init = need_kvm, .timeout = 200);

static const char *kernel(const uint8_t *code, size_t count)
{
    static struct image image;
    image_multiboot_elf(&image, code, count);
    return temporary_file("kernel", image.bytes, IMAGE_BYTES);
}

static void run(const uint8_t *code, size_t count, const char *vcpus, const char *lock)
{
    const char *const args[] = {
        "run", "--kernel", kernel(code, count), "--vcpus", vcpus, "--memory", "16M", "--lock",
        lock,  NULL};
    command_run(&result, PATIENCE_S, args);
}

Test(guest_run, debug_exit_code_becomes_the_exit_status_in_every_lock_mode)
{
    static const char *const modes[] = {"free", "device", "big"};
    for (unsigned i = 0; i < 3; i++) {
        run(payload_exit5, sizeof(payload_exit5), "1", modes[i]);
        cr_assert_eq(result.status, 5 << 1 | 1, "--lock %s: %d: %s", modes[i], result.status,
                     result.err);
    }
}

Test(guest_run, vcpus_that_nobody_starts_do_not_hold_up_the_end)
{
    run(payload_exit5, sizeof(payload_exit5), "16", "free");
    cr_assert_eq(result.status, 5 << 1 | 1, "%d: %s", result.status, result.err);
}

Test(guest_run, every_byte_of_a_repeated_output_arrives)
{
    run(payload_rep_out, sizeof(payload_rep_out), "1", "free");
    cr_assert_eq(result.status, 1, "%d: %s", result.status, result.err);
    cr_assert_str_eq(result.out, "hello, rep\n");
}

Test(guest_run, acpi_power_off_ends_with_status_0)
{
    run(payload_power_off, sizeof(payload_power_off), "2", "free");
    cr_assert_eq(result.status, 0, "%d: %s", result.status, result.err);
}

Test(guest_run, the_shutdown_text_ends_with_status_0)
{
    run(payload_shutdown_text, sizeof(payload_shutdown_text), "1", "free");
    cr_assert_eq(result.status, 0, "%d: %s", result.status, result.err);
}

Test(guest_run, a_reset_ends_with_status_0_and_a_line)
{
    run(payload_reset, sizeof(payload_reset), "1", "free");
    cr_assert_eq(result.status, 0, "%d: %s", result.status, result.err);
    cr_assert_not_null(strstr(result.err, "reset"), "%s", result.err);
}

Test(guest_run, a_triple_fault_ends_with_status_1_and_a_line_with_the_registers)
{
    run(payload_triple_fault, sizeof(payload_triple_fault), "2", "free");
    cr_assert_eq(result.status, 1, "%d: %s", result.status, result.err);
    cr_assert(is_one_line(result.err), "%s", result.err);
    cr_assert_not_null(strstr(result.err, "triple fault"), "%s", result.err);
    cr_assert_not_null(strstr(result.err, "rip 0x"), "%s", result.err);
}

Test(guest_run, serial_output_goes_to_a_file_or_nowhere_as_asked)
{
    const char *path = kernel(payload_rep_out, sizeof(payload_rep_out));
    const char *file = temporary_file("serial", "old", 3);
    char option[160];
    char text[64] = "";
    snprintf(option, sizeof(option), "file:%s", file);
    const char *const to_file[] = {"run", "--kernel", path, "--serial", option, NULL};
    command_run(&result, PATIENCE_S, to_file);
    cr_assert_eq(result.status, 1);
    cr_assert_str_eq(result.out, "");
    FILE *in = fopen(file, "r");
    cr_assert_not_null(in);
    cr_assert_not_null(fgets(text, sizeof(text), in));
    fclose(in);
    cr_assert_str_eq(text, "hello, rep\n");

    const char *const nowhere[] = {"run", "--kernel", path, "--serial", "none", NULL};
    command_run(&result, PATIENCE_S, nowhere);
    cr_assert_eq(result.status, 1);
    cr_assert_str_eq(result.out, "");
}

Test(guest_run, json_takes_stdout_for_itself)
{
    const char *path = kernel(payload_rep_out, sizeof(payload_rep_out));
    const char *const args[] = {"run", "--kernel", path, "--json", NULL};
    command_run(&result, PATIENCE_S, args);
    cr_assert_eq(result.status, 1);
    cr_assert_eq(result.out[0], '{', "%s", result.out);
    cr_assert_not_null(strstr(result.out, "\"reason\": \"debug exit\""), "%s", result.out);
    cr_assert_not_null(strstr(result.err, "hello, rep"), "%s", result.err);
}

Test(guest_run, a_time_limit_ends_with_status_124_and_a_line)
{
    const char *path = kernel(payload_ready_spin, sizeof(payload_ready_spin));
    const char *const args[] = {"run", "--kernel", path, "--seconds", "1", NULL};
    command_run(&result, PATIENCE_S, args);
    cr_assert_eq(result.status, 124, "%d: %s", result.status, result.err);
    cr_assert(is_one_line(result.err), "%s", result.err);
}

Test(guest_run, the_storm_on_255_vcpus_ends_within_a_bound)
{
    static const char *const args[] = {"run", "--vcpus", "255", "--reads", "10", NULL};
    command_run(&result, 180, args);
    cr_assert_eq(result.status, 0, "%d: %s%s", result.status, result.out, result.err);
}

Test(guest_run, vcpus_up_to_1024_are_created_and_wait_for_their_start)
{
    run(payload_exit5, sizeof(payload_exit5), "1024", "free");
    cr_assert_eq(result.status, 5 << 1 | 1, "%d: %s", result.status, result.err);
}
