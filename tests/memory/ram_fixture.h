/* SPDX-License-Identifier: MIT */
/*
 * RAM's tests: a map, RAM made in it or refused, and what the process holds of its host, so that
 * nothing is left over.
 */
#ifndef BUSBAR_TESTS_MEMORY_RAM_FIXTURE_H
#define BUSBAR_TESTS_MEMORY_RAM_FIXTURE_H

#include "fixture.h"

enum { RAM_HUGE_BYTES = 2 << 20 };

extern struct fixture ram_fixture;

void ram_begin(void);
void ram_end(void);

/* Descriptors that are open. */
unsigned ram_descriptors(void);

/* Bytes of address space that are mapped, inaccessible ones included. */
uint64_t ram_mapped_bytes(void);

/* True where the mapping of `at` has the flag, as /proc/self/smaps names it. */
bool ram_flag(const void *at, const char *flag);

/* Bytes of the host's page. */
uint64_t ram_page(void);

struct bb_region *ram_make(const struct bb_ram_config *config);

/* Creation fails with `code` and a text that has `word` in it, and leaves nothing. */
void ram_refused(const struct bb_ram_config *config, int code, const char *word);

/* How a process ends that writes a byte there: 0, or the signal that kills it. */
int ram_signal_of_touching(volatile uint8_t *byte);

bool ram_is_zero(const uint8_t *bytes, size_t count);

/* A file of `bytes` bytes, each page of which begins with its number; open for both. */
int ram_numbered_file(uint64_t bytes);

#endif
