/* SPDX-License-Identifier: MIT */
/*
 * Between the files of the boot check: its report on the serial port, and access to what the loader
 * left in memory, which may lie at any address and alignment.
 *
 * The payload has no zeroed data to rely on: a loader owes it none beyond the image.
 */
#ifndef BUSBAR_VMM_GUESTS_BOOT_CHECK_H
#define BUSBAR_VMM_GUESTS_BOOT_CHECK_H

#include "cpu.h"

struct boot_state {
    uint64_t params;     /* boot_params */
    const char *cmdline; /* "" where there is none */
    unsigned failures;
};

void say(const char *text);
void say_hex(uint64_t value);
void say_number(uint64_t value);

/* One line, "boot: <claim>: ok" or "FAILED"; counts failures. */
void check(struct boot_state *state, const char *claim, bool holds);

/*
 * The value of `name=VALUE` among the words of the command line, decimal or 0x hexadecimal.
 * Returns false where there is no such word.
 */
bool option(const struct boot_state *state, const char *name, uint64_t *value);
bool option_set(const struct boot_state *state, const char *word);

/* True where [first, first + bytes) lies in one entry of that e820 type. */
bool e820_inside(const struct boot_state *state, uint64_t first, uint64_t bytes, uint32_t type);
bool e820_touches(const struct boot_state *state, uint64_t first, uint64_t bytes, uint32_t type);
enum { E820_RAM = 1 };

void boot_check_acpi(struct boot_state *state);

static inline uint8_t peek8(uint64_t address)
{
    return *(const volatile uint8_t *)(uintptr_t)address;
}

static inline uint64_t peek(uint64_t address, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;) {
        value = value << 8 | peek8(address + i);
    }
    return value;
}

#endif
