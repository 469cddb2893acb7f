/* SPDX-License-Identifier: MIT */
/* The libFuzzer target over machine.h. */
#include <stdio.h>
#include <stdlib.h>

#include "machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *wrong = machine_run_program(data, size);

    if (wrong != NULL) {
        fprintf(stderr, "%s\n", wrong);
        abort();
    }
    return 0;
}
