/* SPDX-License-Identifier: MIT */
/* The libFuzzer target over topology.h. */
#include <stdio.h>
#include <stdlib.h>

#include "topology.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* Memory is given back after the input that let go of it, which would have the sanitizer look for
 * leaks after every one. The engine itself proves that there are none when it is destroyed. */
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

/* What is still under way when the fuzzer ends is seen as well. */
static void end(void)
{
    const char *wrong = topology_end();

    if (wrong != NULL) {
        fprintf(stderr, "%s\n", wrong);
        _Exit(1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int begun;

    if (!begun) {
        begun = 1;
        atexit(end);
    }
    const char *wrong = topology_run(data, size);
    if (wrong != NULL) {
        fprintf(stderr, "%s\n", wrong);
        abort();
    }
    return 0;
}
