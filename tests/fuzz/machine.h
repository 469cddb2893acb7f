/* SPDX-License-Identifier: MIT */
/*
 * A whole PC's worth of devices on a manual clock, driven by a program of bytes: what a hostile
 * guest may do, as a function of its input alone. The fuzz target and the seeded suite share it.
 */
#ifndef BUSBAR_TESTS_FUZZ_MACHINE_H
#define BUSBAR_TESTS_FUZZ_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Builds the machine, runs the program, takes everything down again. Returns NULL, or a sentence
 * about what went wrong, for example that the engine's heap was not empty in the end.
 */
const char *machine_run_program(const uint8_t *program, size_t bytes);

#endif
