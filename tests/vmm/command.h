/* SPDX-License-Identifier: MIT */
/*
 * Running the busbar command as a user does: a child process, what it prints, how it ends. The
 * tests of the command line and those with guests share it.
 *
 * A child gets its own pipes and, where asked, its own terminal; its time is bounded. Threads: one.
 */
#ifndef BUSBAR_TESTS_VMM_COMMAND_H
#define BUSBAR_TESTS_VMM_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    COMMAND_TEXT_BYTES = 65536,
    COMMAND_ARGS_MAX = 32,
    COMMAND_STATUS_TIMEOUT = -1000,
    COMMAND_STATUS_NO_EXEC = 121, /* the command itself could not be started */
};

struct command_result {
    int status; /* exit status; minus the signal that killed it; COMMAND_STATUS_TIMEOUT */
    double seconds;
    char out[COMMAND_TEXT_BYTES]; /* what fits, terminated */
    char err[COMMAND_TEXT_BYTES];
};

/* A child that is running. */
struct command {
    pid_t pid;
    int out_fd, err_fd;
    size_t out_used, err_used;
    double began;
    struct command_result *result;
};

/* How to start one; all zero is fine. */
struct command_setup {
    int stdin_fd;     /* 0: /dev/null; else what becomes its standard input */
    bool no_stdin;    /* started with standard input closed */
    uid_t uid;        /* 0: unchanged; else the user that it runs as */
    unsigned fds_max; /* 0: unchanged; else its hard limit of descriptors */
};

/*
 * Starts the busbar command with arguments up to the first NULL. Returns false where it can't.
 * `result` must live until command_wait().
 */
bool command_start(struct command *command, const struct command_setup *setup,
                   struct command_result *result, const char *const *args);

/* Collects output until `text` was seen on stdout, or time is over. */
bool command_await_text(struct command *command, const char *text, double seconds);

/* Waits for its end, at most `seconds`, then kills it. */
void command_wait(struct command *command, double seconds);

/* Both, for commands that end by themselves. */
void command_run(struct command_result *result, double seconds, const char *const *args);

/* True where `text` is one line, with its line feed. */
bool is_one_line(const char *text);

/* True where /dev/kvm can be opened here. */
bool have_kvm(void);

/* Writes a file into a fresh temporary directory of the test; its path is returned, or NULL. */
const char *temporary_file(const char *name, const void *bytes, size_t count);

#endif
