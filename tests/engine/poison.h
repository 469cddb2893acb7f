/* SPDX-License-Identifier: MIT */
/*
 * Memory that shows when it is used too late: filled with poison when it is given back, and kept
 * for a while before it is used again. Who reads it finds poison; who writes it spoils that, which
 * is seen when it is given up in the end.
 */
#ifndef BUSBAR_TESTS_ENGINE_POISON_H
#define BUSBAR_TESTS_ENGINE_POISON_H

#include "../../base/heap.h"

/* For an engine's configuration. */
extern const struct bb_allocator poison_allocator;

/* Poisons and keeps memory that malloc() and the like gave. Threads: any. */
void poison_bury(void *memory, size_t bytes);

/* Gives up all that is kept. Returns how many bytes were spoiled since the program began. Threads:
 * one, while no other buries. */
unsigned poison_spoiled(void);

#endif
