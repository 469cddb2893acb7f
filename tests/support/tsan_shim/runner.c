/* SPDX-License-Identifier: MIT */
/*
 * Runs the tests that criterion/criterion.h registered: each in a process of its own, forked while
 * this one has a single thread. Understands --list, --registered and --filter PATTERN (of
 * "suite/name", with wildcards); ignores Criterion's other options. The closing line has the form
 * of Criterion's, so that run-suite reads both alike.
 */
#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "criterion/criterion.h"

/* Statuses by which a test's process says more than pass or fail. */
enum { STATUS_FAILED = 101, STATUS_SKIPPED = 102 };

static struct shim_test *tests;
static struct shim_suite *suites;
static const struct shim_test *running;
static bool failed_softly;

/* A test that expects a signal must get the signal, not the sanitizer's report of it, and one that
 * asks for too much memory must get NULL. */
const char *__tsan_default_options(void);
__attribute__((visibility("default"))) const char *__tsan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:handle_abort=0:"
           "second_deadlock_stack=1:history_size=4:allocator_may_return_null=1";
}

void shim_add_test(struct shim_test *test)
{
    struct shim_test **end = &tests;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = test;
}

void shim_add_suite(struct shim_suite *suite)
{
    suite->next = suites;
    suites = suite;
}

void shim_check(bool holds, bool fatal, const char *file, int line, const char *expression,
                const char *format, ...)
{
    va_list args;

    if (holds) {
        return;
    }
    fprintf(stderr, "[----] %s:%d: Assertion failed: %s:", file, line, expression);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    if (fatal) {
        _exit(STATUS_FAILED);
    }
    failed_softly = true;
}

void shim_skip(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "[SKIP] %s::%s:", running->suite, running->name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    _exit(STATUS_SKIPPED);
}

void shim_log(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

static const struct shim_options *suite_options(const char *name)
{
    static const struct shim_options none;
    for (const struct shim_suite *suite = suites; suite != NULL; suite = suite->next) {
        if (strcmp(suite->name, name) == 0) {
            return &suite->options;
        }
    }
    return &none;
}

static void run_in_child(const struct shim_test *test, void *param)
{
    const struct shim_options *suite = suite_options(test->suite);

    running = test;
    if (suite->init != NULL) {
        suite->init();
    }
    if (test->options.init != NULL) {
        test->options.init();
    }
    if (test->plain != NULL) {
        test->plain();
    } else {
        test->with_param(param);
    }
    if (test->options.fini != NULL) {
        test->options.fini();
    }
    if (suite->fini != NULL) {
        suite->fini();
    }
    /* exit(), not _exit(): the sanitizer turns the status into its own if it reported a race. */
    exit(failed_softly ? STATUS_FAILED : 0);
}

/* Waits for the child, killing it at the deadline. SIGCHLD is blocked, so it can be waited for. */
static int wait_for(pid_t child, double seconds, bool *timed_out)
{
    sigset_t chld;
    struct timespec limit = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    int status = 0;

    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    *timed_out = false;
    while (waitpid(child, &status, seconds > 0 ? WNOHANG : 0) == 0) {
        if (sigtimedwait(&chld, NULL, &limit) < 0 && errno == EAGAIN) {
            *timed_out = true;
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            break;
        }
    }
    return status;
}

enum outcome { PASSED, FAILED, CRASHED, SKIPPED };

static enum outcome run_one(const struct shim_test *test, void *param)
{
    const struct shim_options *suite = suite_options(test->suite);
    double seconds = test->options.timeout > 0 ? test->options.timeout : suite->timeout;
    int want_signal = test->options.signal != 0 ? test->options.signal : suite->signal;
    int want_status = test->options.exit_code != 0 ? test->options.exit_code : suite->exit_code;
    bool timed_out;

    fprintf(stderr, "[RUN ] %s::%s\n", test->suite, test->name);
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return CRASHED;
    }
    if (child == 0) {
        sigset_t chld;
        sigemptyset(&chld);
        sigaddset(&chld, SIGCHLD);
        sigprocmask(SIG_UNBLOCK, &chld, NULL);
        run_in_child(test, param);
    }
    int status = wait_for(child, seconds, &timed_out);
    if (timed_out) {
        fprintf(stderr, "[FAIL] %s::%s: timed out after %g s\n", test->suite, test->name, seconds);
        return FAILED;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == STATUS_SKIPPED) {
        return SKIPPED;
    }
    if (WIFSIGNALED(status) ? WTERMSIG(status) == want_signal
                            : want_signal == 0 && WEXITSTATUS(status) == want_status) {
        fprintf(stderr, "[PASS] %s::%s\n", test->suite, test->name);
        return PASSED;
    }
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "[FAIL] %s::%s: killed by signal %d\n", test->suite, test->name,
                WTERMSIG(status));
        return CRASHED;
    }
    fprintf(stderr, "[FAIL] %s::%s: exit status %d%s\n", test->suite, test->name,
            WEXITSTATUS(status), WEXITSTATUS(status) == 66 ? " (the sanitizer's)" : "");
    return FAILED;
}

static bool selected(const struct shim_test *test, const char *pattern)
{
    char name[256];

    if (pattern == NULL) {
        return true;
    }
    snprintf(name, sizeof(name), "%s/%s", test->suite, test->name);
    return fnmatch(pattern, name, 0) == 0;
}

int main(int argc, char **argv)
{
    unsigned count[4] = {0};
    unsigned registered = 0;
    const char *pattern = NULL;
    bool list = false;
    sigset_t chld;

    for (const struct shim_test *test = tests; test != NULL; test = test->next) {
        registered++;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--registered") == 0) {
            printf("%u\n", registered);
            return 0;
        }
        list = list || strcmp(argv[i], "--list") == 0;
        if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc) {
            pattern = argv[++i];
        } else if (strncmp(argv[i], "--filter=", 9) == 0) {
            pattern = argv[i] + 9;
        }
    }
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    for (const struct shim_test *test = tests; test != NULL; test = test->next) {
        if (!selected(test, pattern)) {
            continue;
        }
        if (list) {
            printf("%s::%s\n", test->suite, test->name);
        } else if (test->plain != NULL) {
            count[run_one(test, NULL)]++;
        } else {
            struct shim_params params = test->params();
            for (size_t i = 0; i < params.length; i++) {
                count[run_one(test, params.items + i * params.size)]++;
            }
        }
    }
    if (list) {
        return 0;
    }
    fprintf(stderr, "[====] Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: %u \n",
            count[PASSED] + count[FAILED] + count[CRASHED], count[PASSED],
            count[FAILED] + count[CRASHED], count[CRASHED]);
    return count[FAILED] + count[CRASHED] != 0;
}
