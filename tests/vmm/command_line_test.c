/* SPDX-License-Identifier: MIT */
/*
 * The command line: what is wrong is said in one line on stderr that says what would be right,
 * nothing goes to stdout, and the status is 2.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "image.h"

enum { NOBODY = 65534 };

struct wrong {
    const char *args[10];
    const char *said; /* part of the line */
};

static struct command_result result;

static void check_wrong(const struct wrong *row)
{
    char shown[256] = "";
    for (unsigned i = 0; i < 10 && row->args[i] != NULL; i++) {
        strncat(shown, " ", sizeof(shown) - strlen(shown) - 1);
        strncat(shown, row->args[i], sizeof(shown) - strlen(shown) - 1);
    }
    command_run(&result, 20, row->args);
    cr_assert_eq(result.status, 2, "busbar%s: status %d: %s", shown, result.status, result.err);
    cr_assert(is_one_line(result.err), "busbar%s: not one line: %s", shown, result.err);
    cr_assert(strncmp(result.err, "busbar: ", 8) == 0, "busbar%s: %s", shown, result.err);
    cr_assert_str_eq(result.out, "", "busbar%s: stdout", shown);
    cr_assert_not_null(strstr(result.err, row->said), "busbar%s: '%s' without '%s'", shown,
                       result.err, row->said);
}

Test(command_line, wrong_arguments_are_one_line_and_status_2, .timeout = 120)
{
    static const struct wrong rows[] = {
        {{NULL}, "busbar run"},
        {{"demo", "--cpu"}, "--cpu KIND"},
        {{"demo", "--bogus"}, "busbar demo --help"},
        {{"demo", "x"}, "busbar demo --help"},
        {{"map", "--bogus"}, "busbar map --help"},
        {{"map", "x"}, "busbar map --help"},
        {{"map", "--kernel", "x"}, "unknown option '--kernel'"},
        {{"map", "--memory", "1M"}, "2M to 1T"},
        {{"map", "--json=yes"}, "takes no value"},
        {{"boot"}, "unknown command 'boot'"},
        {{"run", "--vcpus"}, "--vcpus N"},
        {{"run", "--vcpus="}, "1 to 1024"},
        {{"run", "--vcpus", "0"}, "1 to 1024"},
        {{"run", "--vcpus", "1025"}, "1 to 1024"},
        {{"run", "--vcpus", "-1"}, "1 to 1024"},
        {{"run", "--vcpus", "2x"}, "1 to 1024"},
        {{"run", "--vcpus", " 2"}, "1 to 1024"},
        {{"run", "--vcpus", "99999999999999999999"}, "1 to 1024"},
        {{"run", "--memory", "1M"}, "2M to 1T"},
        {{"run", "--memory", "2097153"}, "2M to 1T"},
        {{"run", "--memory", "2Q"}, "2M to 1T"},
        {{"run", "--memory", "2MB"}, "2M to 1T"},
        {{"run", "--memory", "1025G"}, "2M to 1T"},
        {{"run", "--memory", "16777216T"}, "2M to 1T"},
        {{"run", "--memory", "99999999999999999999"}, "2M to 1T"},
        {{"run", "--lock", "none"}, "free, device or big"},
        {{"run", "--cpu", "tcg"}, "kvm or threads"},
        {{"run", "--serial", "tty"}, "stdio, none or file:PATH"},
        {{"run", "--serial", "file:"}, "stdio, none or file:PATH"},
        {{"run", "--guest", "linux"}, "storm"},
        {{"run", "--reads", "0"}, "from 1"},
        {{"run", "--seconds", "0"}, "from 1"},
        {{"run", "--json=yes"}, "takes no value"},
        {{"run", "--bogus"}, "unknown option '--bogus'"},
        {{"run", "-v"}, "unknown option '-v'"},
        {{"run", "kernel.elf"}, "--kernel kernel.elf"},
        {{"run", "--initrd", "x"}, "--kernel"},
        {{"run", "--append", "x"}, "--kernel"},
        {{"run", "--kernel", "x", "--cpu", "threads"}, "needs KVM"},
        {{"run", "--kernel", "x", "--reads", "5"}, "--reads"},
        {{"run", "--cpu", "threads", "--vcpus", "64", "--memory", "2M", "--reads", "x"}, "number"},
        {{"run", "--cpu", "threads", "--serial", "file:/nonexistent/x"}, "/nonexistent/x"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_wrong(&rows[i]);
    }
}

Test(command_line, kernels_that_cannot_be_read_are_one_line_and_status_2, .timeout = 60)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    static struct image image;
    static uint8_t zeroes[3 << 20];
    static const uint8_t code[] = {0xf4};
    image_elf64(&image, code, sizeof(code));
    const char *empty = temporary_file("empty", NULL, 0);
    const char *cut = temporary_file("cut", image.bytes, IMAGE_CODE_OFFSET + 1);
    const char *text = temporary_file("text", "#!/bin/sh\n", 10);
    const char *large = temporary_file("large", zeroes, sizeof(zeroes));
    const char *good = temporary_file("good", image.bytes, IMAGE_BYTES);
    const struct wrong rows[] = {
        {{"run", "--kernel", "/nonexistent"}, "No such file"},
        {{"run", "--kernel", "/tmp"}, "not a regular file"},
        {{"run", "--kernel", "/dev/zero"}, "not a regular file"},
        {{"run", "--kernel", empty}, "empty"},
        {{"run", "--kernel", text}, "neither a bzImage"},
        {{"run", "--kernel", cut, "--memory", "16M"}, "truncated"},
        {{"run", "--kernel", large, "--memory", "2M"}, "larger than guest memory"},
        {{"run", "--kernel", good, "--memory", "2M"}, "more --memory"},
        {{"run", "--kernel", good, "--memory", "4M", "--initrd", "/nonexistent"}, "initrd"},
        {{"run", "--kernel", good, "--memory", "4M", "--initrd", large}, "more --memory"},
        {{"run", "--kernel", good, "--serial", "file:/nonexistent/x"}, "/nonexistent/x"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_wrong(&rows[i]);
    }
}

Test(command_line, a_kernel_that_cannot_start_leaves_the_serial_file_alone)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    const char *file = temporary_file("serial", "kept", 4);
    char option[160];
    snprintf(option, sizeof(option), "file:%s", file);
    const struct wrong row = {{"run", "--kernel", "/nonexistent", "--serial", option}, "No such"};
    check_wrong(&row);
    char text[8] = "";
    FILE *in = fopen(file, "r");
    cr_assert_not_null(in);
    cr_assert_eq(fread(text, 1, sizeof(text), in), 4u);
    fclose(in);
    cr_assert_str_eq(text, "kept");
}

/* Where there is no permission to give up (not root, or everybody may), nothing can be shown. */
Test(command_line, no_permission_on_kvm_is_one_line_and_status_2)
{
    static const char *const args[][4] = {{"run", "--vcpus", "1"}, {"demo", "--cpu", "kvm"}};
    struct command_setup setup = {.uid = NOBODY};
    struct command command;
    struct stat st;
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    if (getuid() != 0 || stat("/dev/kvm", &st) != 0 || (st.st_mode & 06) == 06) {
        return;
    }
    for (size_t i = 0; i < sizeof(args) / sizeof(args[0]); i++) {
        cr_assert(command_start(&command, &setup, &result, args[i]));
        command_wait(&command, 60);
        if (result.status == COMMAND_STATUS_NO_EXEC) {
            return; /* others can't read this build */
        }
        cr_assert_eq(result.status, 2, "%s: %d: %s", args[i][0], result.status, result.err);
        cr_assert(is_one_line(result.err), "%s", result.err);
        cr_assert_not_null(strstr(result.err, "no permission on /dev/kvm"), "%s", result.err);
        cr_assert_str_eq(result.out, "");
    }
}

Test(command_line, too_few_descriptors_are_one_line_and_status_2)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    static const char *const args[] = {"run", "--vcpus", "500", NULL};
    struct command_setup setup = {.fds_max = 256};
    struct command command;
    cr_assert(command_start(&command, &setup, &result, args));
    command_wait(&command, 60);
    cr_assert_eq(result.status, 2, "%d: %s", result.status, result.err);
    cr_assert(is_one_line(result.err), "%s", result.err);
    cr_assert_not_null(strstr(result.err, "ulimit -n"), "%s", result.err);
}

Test(command_line, help_has_examples_and_every_option)
{
    static const char *const help[] = {"help", NULL};
    static const char *const run_help[] = {"run", "--help", NULL};
    static const char *const wanted[] = {"--kernel", "--initrd", "--append",    "--vcpus",
                                         "--memory", "--lock",   "--serial",    "--cpu",
                                         "--json",   "Examples", "Exit status", "--count-accesses"};
    command_run(&result, 20, help);
    cr_assert_eq(result.status, 0);
    cr_assert_not_null(strstr(result.out, "Examples"));
    command_run(&result, 20, run_help);
    cr_assert_eq(result.status, 0);
    cr_assert_str_eq(result.err, "");
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        cr_assert_not_null(strstr(result.out, wanted[i]), "%s", wanted[i]);
    }
    static const char *const map_help[] = {"map", "--help", NULL};
    command_run(&result, 20, map_help);
    cr_assert_eq(result.status, 0);
    cr_assert_not_null(strstr(result.out, "--memory"));
    cr_assert_not_null(strstr(result.out, "--json"));
    cr_assert_not_null(strstr(result.out, "Examples"));
}
