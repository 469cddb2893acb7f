/* SPDX-License-Identifier: MIT */
/*
 * A signal ends a run at any time: within a bound, with status 128 + signal, the terminal as it
 * was. Tried on a guest that spins, one that sleeps in the kernel, one that exits all the time, one
 * that floods a terminal which nobody reads, and the storm, in a guest and on host threads.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "command.h"
#include "image.h"
#include "payload.h"

enum { PATIENCE_S = 60, END_WITHIN_S = 10 };

static struct command_result result;
static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

static void need_kvm(void)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
}

TestSuite(guest_end, .init = need_kvm, .timeout = 200);

static const char *kernel(const uint8_t *code, size_t count)
{
    static struct image image;
    image_multiboot_elf(&image, code, count);
    return temporary_file("kernel", image.bytes, IMAGE_BYTES);
}

/* The time from the signal to the end is what is bounded: the start may take long on a busy host.
 */
static void end_by(struct command *command, int signal_number)
{
    cr_assert_eq(kill(command->pid, signal_number), 0);
    command_wait(command, END_WITHIN_S);
    cr_assert_eq(result.status, 128 + signal_number, "signal %d: status %d: %s", signal_number,
                 result.status, result.err);
}

/* Until the command has that many threads: its vCPUs or their like run. */
static void await_tasks(const struct command *command, unsigned tasks)
{
    char path[64];
    unsigned count = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)command->pid);
    for (unsigned tries = 0; count < tasks + 2 && tries < PATIENCE_S * 100; tries++) {
        DIR *dir = opendir(path);
        cr_assert_not_null(dir);
        for (count = 0; readdir(dir) != NULL; count++) {
        }
        closedir(dir);
        usleep(10000); /* a poll's interval */
    }
    cr_assert_geq(count, tasks + 2, "%u entries in %s", count, path);
}

/*
 * Until the pipe that is the command's standard output takes no more, since nobody reads it: what
 * it holds stays the same for a while (how much that is depends on the sizes of the writes).
 */
static void await_full_pipe(const struct command *command)
{
    int before = 0;
    unsigned same = 0;
    for (unsigned tries = 0; same < 30 && tries < PATIENCE_S * 100; tries++) {
        int held;
        cr_assert_eq(ioctl(command->out_fd, FIONREAD, &held), 0);
        same = held == before && held != 0 ? same + 1 : 0;
        before = held;
        usleep(10000); /* a poll's interval */
    }
    cr_assert_eq(same, 30u, "%d bytes and still growing", before);
}

static void end_guest(const uint8_t *code, size_t count)
{
    const char *path = kernel(code, count);
    const char *const args[] = {"run", "--kernel", path, "--vcpus", "3", NULL};
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct command_setup setup = {0};
        struct command command;
        cr_assert(command_start(&command, &setup, &result, args));
        cr_assert(command_await_text(&command, "R", PATIENCE_S), "%s", result.err);
        end_by(&command, signals[i]);
    }
}

Test(guest_end, signals_end_a_guest_that_spins)
{
    end_guest(payload_ready_spin, sizeof(payload_ready_spin));
}

/* Else the signals' own descriptor is it, and the serial port's input may take a signal first. */
Test(guest_end, a_closed_standard_input_does_not_become_something_of_the_run)
{
    const char *const args[] = {"run", "--kernel",
                                kernel(payload_ready_spin, sizeof(payload_ready_spin)), NULL};
    struct command_setup setup = {.no_stdin = true};
    struct command command;
    char link[64], target[64] = "";

    cr_assert(command_start(&command, &setup, &result, args));
    cr_assert(command_await_text(&command, "R", PATIENCE_S), "%s", result.err);
    snprintf(link, sizeof(link), "/proc/%d/fd/0", (int)command.pid);
    cr_assert_gt(readlink(link, target, sizeof(target) - 1), 0);
    cr_assert_str_eq(target, "/dev/null");
    end_by(&command, SIGTERM);
}

Test(guest_end, signals_end_a_guest_that_sleeps)
{
    end_guest(payload_ready_halt, sizeof(payload_ready_halt));
}

Test(guest_end, signals_end_a_guest_that_exits_all_the_time)
{
    end_guest(payload_ready_hpet, sizeof(payload_ready_hpet));
}

Test(guest_end, a_signal_during_the_start_is_not_lost)
{
    const char *path = kernel(payload_ready_spin, sizeof(payload_ready_spin));
    const char *const args[] = {"run", "--kernel", path, "--vcpus", "64", NULL};
    for (useconds_t delay = 1; delay < 200000; delay *= 3) {
        struct command_setup setup = {0};
        struct command command;
        cr_assert(command_start(&command, &setup, &result, args));
        usleep(delay);
        kill(command.pid, SIGTERM);
        command_wait(&command, PATIENCE_S);
        /* Before the signals are blocked, it kills the process, which has nothing to undo yet. */
        cr_assert(result.status == 128 + SIGTERM || result.status == -SIGTERM, "%d: %s",
                  result.status, result.err);
    }
}

Test(guest_end, signals_end_the_storm)
{
    static const char *const in_guest[] = {"run", "--vcpus", "4", "--reads", "1000000000", NULL};
    static const char *const on_threads[] = {"run",     "--vcpus", "4",          "--cpu",
                                             "threads", "--reads", "1000000000", NULL};
    static const char *const *const kinds[] = {in_guest, on_threads};
    for (unsigned k = 0; k < 2; k++) {
        struct command_setup setup = {0};
        struct command command;
        cr_assert(command_start(&command, &setup, &result, kinds[k]));
        await_tasks(&command, 1 + 4);
        end_by(&command, SIGINT);
    }
}

/* A terminal pair; returns the side that the command gets, with `*ours` the other. */
static int open_terminal(int *ours)
{
    int theirs;
    cr_assert_eq(openpty(ours, &theirs, NULL, NULL, NULL), 0);
    fcntl(*ours, F_SETFD, FD_CLOEXEC);
    return theirs;
}

static bool same_mode(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
           a->c_lflag == b->c_lflag && memcmp(a->c_cc, b->c_cc, sizeof(a->c_cc)) == 0;
}

/* Starts a guest on a terminal, sees it go raw, ends it, and compares the terminal's mode. */
static void check_terminal(const uint8_t *code, size_t count, const char *ctrl_c, int signal_number,
                           int status)
{
    const char *path = kernel(code, count);
    const char *const args[] = {"run", "--kernel", path, NULL};
    struct termios before, during, after;
    struct command command;
    int ours;
    int theirs = open_terminal(&ours);
    struct command_setup setup = {.stdin_fd = theirs};

    cr_assert_eq(tcgetattr(theirs, &before), 0);
    cr_assert(command_start(&command, &setup, &result, args));
    cr_assert(command_await_text(&command, "R", PATIENCE_S), "%s", result.err);
    cr_assert_eq(tcgetattr(theirs, &during), 0);
    cr_assert_eq(during.c_lflag & (ICANON | ECHO), 0u, "the terminal is not in raw mode");
    if (ctrl_c != NULL) {
        cr_assert_eq(write(ours, ctrl_c, strlen(ctrl_c)), (ssize_t)strlen(ctrl_c));
    } else {
        kill(command.pid, signal_number);
    }
    command_wait(&command, END_WITHIN_S);
    cr_assert_eq(result.status, status, "status %d: %s", result.status, result.err);
    cr_assert_eq(tcgetattr(theirs, &after), 0);
    cr_assert(same_mode(&before, &after), "the terminal's mode was not restored");
    close(theirs);
    close(ours);
}

Test(guest_end, signals_leave_the_terminal_as_it_was)
{
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        check_terminal(payload_ready_spin, sizeof(payload_ready_spin), NULL, signals[i],
                       128 + signals[i]);
    }
    check_terminal(payload_ready_spin, sizeof(payload_ready_spin), NULL, SIGQUIT, 128 + SIGQUIT);
}

Test(guest_end, ctrl_c_on_the_terminal_ends_the_run_and_restores_it)
{
    check_terminal(payload_ready_spin, sizeof(payload_ready_spin), "\x03", 0, 128 + SIGINT);
}

Test(guest_end, a_fatal_signal_restores_the_terminal_before_it_kills)
{
    check_terminal(payload_ready_spin, sizeof(payload_ready_spin), NULL, SIGABRT, -SIGABRT);
}

Test(guest_end, output_that_nobody_reads_does_not_hold_up_the_end)
{
    const char *path = kernel(payload_flood, sizeof(payload_flood));
    const char *const args[] = {"run", "--kernel", path, NULL};
    struct command_setup setup = {0};
    struct command command;
    cr_assert(command_start(&command, &setup, &result, args));
    cr_assert(command_await_text(&command, "x", PATIENCE_S), "%s", result.err);
    await_full_pipe(&command);
    end_by(&command, SIGTERM);
}

Test(guest_end, sigkill_leaves_no_file_and_no_process)
{
    const char *path = kernel(payload_ready_spin, sizeof(payload_ready_spin));
    const char *const args[] = {"run", "--kernel", path, "--vcpus", "4", NULL};
    struct command_setup setup = {0};
    struct command command;
    cr_assert(command_start(&command, &setup, &result, args));
    cr_assert(command_await_text(&command, "R", PATIENCE_S), "%s", result.err);

    /* All it holds open is devices, anonymous descriptors, pipes: nothing that outlives it. */
    char directory[64];
    snprintf(directory, sizeof(directory), "ls -l /proc/%d/fd", (int)command.pid);
    FILE *list = popen(directory, "r");
    char line[512];
    cr_assert_not_null(list);
    while (fgets(line, sizeof(line), list) != NULL) {
        const char *target = strstr(line, "-> ");
        if (target != NULL) {
            cr_assert(strncmp(target + 3, "/dev/", 5) == 0 ? strstr(target, "/dev/shm") == NULL
                                                           : target[3] != '/',
                      "open: %s", line);
        }
    }
    pclose(list);
    kill(command.pid, SIGKILL);
    command_wait(&command, END_WITHIN_S);
    cr_assert_eq(result.status, -SIGKILL);
}
