/* SPDX-License-Identifier: MIT */
/* Running the busbar command; see command.h. */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* In the child: becomes the command, or ends with a status of its own. */
static void become(const struct command_setup *setup, int out_fd, int err_fd,
                   const char *const *args)
{
    char *argv[COMMAND_ARGS_MAX + 2] = {(char *)"busbar"};
    int stdin_fd = setup->stdin_fd != 0 ? setup->stdin_fd : open("/dev/null", O_RDONLY);
    sigset_t none;

    for (unsigned i = 0; i < COMMAND_ARGS_MAX && args[i] != NULL; i++) {
        argv[i + 1] = (char *)args[i];
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(stdin_fd, STDIN_FILENO);
    dup2(out_fd, STDOUT_FILENO);
    dup2(err_fd, STDERR_FILENO);
    if (setup->stdin_fd != 0) {
        setsid(); /* and the terminal becomes its own */
        int terminal = open(ttyname(STDIN_FILENO), O_RDWR);
        close(terminal);
    }
    close_range(STDERR_FILENO + 1, ~0u, 0); /* the test runner's own */
    if (setup->no_stdin) {
        close(STDIN_FILENO);
    }
    if (setup->fds_max != 0) {
        struct rlimit limit = {.rlim_cur = setup->fds_max, .rlim_max = setup->fds_max};
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (setup->uid != 0 && (setgid(setup->uid) != 0 || setuid(setup->uid) != 0)) {
        _exit(120);
    }
    /* A guest runs for ever: not past the test, should the test be killed. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(BUSBAR_COMMAND, argv);
    _exit(COMMAND_STATUS_NO_EXEC);
}

bool command_start(struct command *command, const struct command_setup *setup,
                   struct command_result *result, const char *const *args)
{
    int out[2];
    int err[2];
    *command = (struct command){.began = now_seconds(), .result = result};
    result->out[0] = result->err[0] = '\0';
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
        return false;
    }
    command->pid = fork();
    if (command->pid == 0) {
        become(setup, out[1], err[1], args);
    }
    close(out[1]);
    close(err[1]);
    command->out_fd = out[0];
    command->err_fd = err[0];
    return command->pid > 0;
}

/* One read into `text`; false at the end of the stream. What does not fit is read and dropped. */
static bool collect(int fd, char *text, size_t *used)
{
    char spill[4096];
    size_t room = COMMAND_TEXT_BYTES - 1 - *used;
    ssize_t got = read(fd, room != 0 ? text + *used : spill, room != 0 ? room : sizeof(spill));
    if (got <= 0) {
        return false;
    }
    if (room != 0) {
        *used += (size_t)got;
        text[*used] = '\0';
    }
    return true;
}

/* Reads for at most `seconds`; returns false once both streams are at their end. */
static bool pump(struct command *command, double seconds)
{
    struct pollfd polled[2] = {
        {.fd = command->out_fd, .events = POLLIN},
        {.fd = command->err_fd, .events = POLLIN},
    };
    if (command->out_fd < 0 && command->err_fd < 0) {
        return false;
    }
    poll(polled, 2, (int)(seconds * 1000) + 1);
    if (polled[0].revents != 0 &&
        !collect(command->out_fd, command->result->out, &command->out_used)) {
        close(command->out_fd);
        command->out_fd = -1;
    }
    if (polled[1].revents != 0 &&
        !collect(command->err_fd, command->result->err, &command->err_used)) {
        close(command->err_fd);
        command->err_fd = -1;
    }
    return true;
}

bool command_await_text(struct command *command, const char *text, double seconds)
{
    double end = now_seconds() + seconds;
    while (strstr(command->result->out, text) == NULL) {
        double left = end - now_seconds();
        if (left <= 0 || !pump(command, left)) {
            return false;
        }
    }
    return true;
}

void command_wait(struct command *command, double seconds)
{
    double end = now_seconds() + seconds;
    double left = seconds;
    int status = 0;
    bool killed = false;

    while (left > 0 && pump(command, left)) {
        left = end - now_seconds();
    }
    if (left <= 0) {
        kill(command->pid, SIGKILL);
        killed = true;
        while (pump(command, 1)) {
        }
    }
    while (waitpid(command->pid, &status, 0) < 0 && errno == EINTR) {
    }
    command->result->seconds = now_seconds() - command->began;
    if (killed) {
        command->result->status = COMMAND_STATUS_TIMEOUT;
    } else {
        command->result->status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
}

void command_run(struct command_result *result, double seconds, const char *const *args)
{
    static const struct command_setup plain;
    struct command command;
    if (!command_start(&command, &plain, result, args)) {
        result->status = COMMAND_STATUS_TIMEOUT;
        return;
    }
    command_wait(&command, seconds);
}

bool is_one_line(const char *text)
{
    const char *end = strchr(text, '\n');
    return end != NULL && end != text && end[1] == '\0';
}

bool have_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

/* One directory a process, removed with its files when the process ends. */
static char directory[64];
static char paths[16][128];
static unsigned path_count;
static pid_t owner;

static void remove_directory(void)
{
    if (getpid() != owner) {
        return;
    }
    for (unsigned i = 0; i < path_count; i++) {
        unlink(paths[i]);
    }
    rmdir(directory);
}

const char *temporary_file(const char *name, const void *bytes, size_t count)
{
    if (path_count == sizeof(paths) / sizeof(paths[0])) {
        return NULL;
    }
    if (owner != getpid()) {
        strcpy(directory, "/tmp/busbar-test-XXXXXX");
        if (mkdtemp(directory) == NULL || chmod(directory, 0755) != 0) {
            return NULL;
        }
        owner = getpid();
        path_count = 0;
        atexit(remove_directory);
    }
    char *path = paths[path_count++];
    snprintf(path, sizeof(paths[0]), "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        return NULL;
    }
    bool written = count == 0 || write(fd, bytes, count) == (ssize_t)count;
    close(fd);
    return written ? path : NULL;
}
