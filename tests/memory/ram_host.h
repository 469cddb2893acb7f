/* SPDX-License-Identifier: MIT */
/* What the process holds of its host: for tests that nothing is left over. */
#ifndef BUSBAR_TESTS_MEMORY_RAM_HOST_H
#define BUSBAR_TESTS_MEMORY_RAM_HOST_H

#include <stdbool.h>
#include <stdint.h>

/* Descriptors that are open. */
unsigned ram_host_descriptors(void);

/* Bytes of address space that are mapped, inaccessible ones included. */
uint64_t ram_host_mapped_bytes(void);

/* True where the mapping of `at` has the flag, as /proc/self/smaps names it. */
bool ram_host_flag(const void *at, const char *flag);

#endif
