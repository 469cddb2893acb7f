/* SPDX-License-Identifier: MIT */
/*
 * An engine whose address spaces are built, changed, accessed and taken down by a program of bytes:
 * what a hostile guest and a careless embedder may do together, short of what headers forbid
 * (using what was removed, calling from the wrong thread). One engine serves many programs.
 */
#ifndef BUSBAR_TESTS_FUZZ_TOPOLOGY_H
#define BUSBAR_TESTS_FUZZ_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

/*
 * Runs one program and takes down what it made. Returns NULL, or a sentence about what went wrong:
 * a result that the function can't have, an error text that does not go with it, a range left over.
 * Makes the engine where there is none.
 */
const char *topology_run(const uint8_t *program, size_t bytes);

/* Waits for all removals and destroys the engine, which proves that nothing leaked. */
const char *topology_end(void);

#endif
