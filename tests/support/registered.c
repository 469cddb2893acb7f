/* SPDX-License-Identifier: MIT */
/*
 * Linked into every Criterion suite: `SUITE --registered` prints how many tests the suite holds,
 * counted from the section into which Criterion's macros put them. Criterion's own --list is no
 * help there: it finds that section through /proc, and where /proc is missing it lists nothing,
 * runs nothing and exits 0.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Named by the linker; weak, because a suite might be empty. */
extern void *__start_cr_tst[] __attribute__((weak));
extern void *__stop_cr_tst[] __attribute__((weak));

/*
 * AddressSanitizer asks for this. A test that asks for too much memory must get NULL; and without
 * alternate signal stacks, since giving one back at a thread's end is now and then taken for an
 * overflow of that thread's stack (gcc 12's sanitizer).
 */
const char *__asan_default_options(void);
__attribute__((visibility("default"))) const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1:use_sigaltstack=0";
}

__attribute__((constructor)) static void print_registered(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--registered") == 0) {
        printf("%td\n", __stop_cr_tst - __start_cr_tst);
        fflush(stdout);
        _exit(0);
    }
}
