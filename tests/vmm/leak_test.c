/* SPDX-License-Identifier: MIT */
/*
 * Runs in this very process: as many descriptors and threads after as before, and the signal's
 * handler as it was, whether the run ends well, is broken off, or can't start.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "../../vmm/run.h"
#include "command.h"
#include "image.h"
#include "payload.h"

enum { ROUNDS = 5 };

struct census {
    unsigned fds, tasks;
    void (*handler)(int);
};

static unsigned entries(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);
    cr_assert_not_null(dir);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static struct census take_census(void)
{
    struct sigaction action;
    sigaction(SIGRTMIN, NULL, &action);
    return (struct census){entries("/proc/self/fd"), entries("/proc/self/task"), action.sa_handler};
}

/* A joined thread may stay in /proc for a moment longer than its join takes. */
static void check_census(const struct census *before, const char *what)
{
    struct census now = take_census();
    for (unsigned i = 0; i < 200 && now.tasks != before->tasks; i++) {
        usleep(10000);
        now = take_census();
    }
    cr_assert_eq(now.fds, before->fds, "%s: %u descriptors, %u before", what, now.fds, before->fds);
    cr_assert_eq(now.tasks, before->tasks, "%s: %u threads, %u before", what, now.tasks,
                 before->tasks);
    cr_assert(now.handler == before->handler, "%s: the handler stayed", what);
}

static void run_kernel(const uint8_t *code, size_t count, int signal_fd, unsigned seconds,
                       int status)
{
    static struct image image;
    image_multiboot_elf(&image, code, count);
    struct bb_options options = {
        .kernel = temporary_file("kernel", image.bytes, IMAGE_BYTES),
        .vcpus = 4,
        .memory_bytes = 16 << 20,
        .serial.kind = BB_SERIAL_NONE,
        .seconds = seconds,
    };
    int got = bb_run(&options, signal_fd);
    cr_assert_eq(got, status, "status %d", got);
    unlink(options.kernel);
}

Test(guest_leak, runs_that_end_leave_no_descriptor_and_no_thread, .timeout = 120)
{
    if (!have_kvm()) {
        cr_skip_test("no usable /dev/kvm");
    }
    int signal_fd = bb_signals_open();
    run_kernel(payload_exit5, sizeof(payload_exit5), signal_fd, 0, 11); /* warms up */
    struct census before = take_census();
    for (unsigned i = 0; i < ROUNDS; i++) {
        run_kernel(payload_exit5, sizeof(payload_exit5), signal_fd, 0, 11);
        check_census(&before, "debug exit");
    }
    run_kernel(payload_ready_spin, sizeof(payload_ready_spin), signal_fd, 1, 124);
    check_census(&before, "time limit");
    run_kernel(payload_triple_fault, sizeof(payload_triple_fault), signal_fd, 0, 1);
    check_census(&before, "triple fault");
    struct bb_options missing = {.kernel = "/nonexistent", .vcpus = 4, .memory_bytes = 16 << 20};
    cr_assert_eq(bb_run(&missing, signal_fd), 2);
    check_census(&before, "missing kernel");
    close(signal_fd);
}

Test(guest_leak, the_storm_leaves_no_descriptor_and_no_thread, .timeout = 120)
{
    int signal_fd = bb_signals_open();
    struct bb_storm_results results;
    struct bb_run_outcome outcome;
    struct bb_error err = {0};
    struct census before = {0};
    for (unsigned i = 0; i < 3; i++) {
        bool threads = !have_kvm() || i % 2 == 0;
        struct bb_storm_run run = {.params = bb_storm_defaults(2, threads), .threads = threads};
        run.params.reads = run.params.torture_reads = run.params.noisy_reads = 100;
        cr_assert_eq(bb_storm_run(&run, signal_fd, &results, &outcome, &err), BB_OK, "%s",
                     err.text);
        if (i == 0) {
            before = take_census();
        } else {
            check_census(&before, threads ? "on host threads" : "in a guest");
        }
    }
    close(signal_fd);
}
