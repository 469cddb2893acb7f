/* SPDX-License-Identifier: MIT */
/* Threads on processors of their own, so that a measurement is of the engine, not of who shares. */
#ifndef BUSBAR_VMM_PIN_H
#define BUSBAR_VMM_PIN_H

#include <pthread.h>
#include <stdbool.h>

/* Processors that this process may use; at least 1. */
unsigned bb_pin_processors(void);

/*
 * Has a thread made with `attributes` run on the n-th of them, counted round.
 * Returns false where the system refuses; then the thread runs anywhere.
 */
bool bb_pin(pthread_attr_t *attributes, unsigned n);

#endif
