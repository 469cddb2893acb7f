/* SPDX-License-Identifier: MIT */
/*
 * Why and how a run ends: one word that the first thread to ask wins, and an eventfd that wakes
 * the main thread, which then stops everything else.
 *
 * Threads: bb_stop_request from any thread, also inside device callbacks (it never blocks: the
 * eventfd is non-blocking); the rest as stated.
 */
#ifndef BUSBAR_VMM_STOP_H
#define BUSBAR_VMM_STOP_H

#include "../base/result.h"

enum bb_stop_reason {
    BB_STOP_NONE,
    BB_STOP_POWER_OFF,    /* ACPI S5, or "Shutdown" on port 0x8900 */
    BB_STOP_DEBUG_EXIT,   /* status is (code << 1) | 1 */
    BB_STOP_RESET,        /* the guest asked for a reset; the monitor has none, so it ends */
    BB_STOP_TRIPLE_FAULT, /* a vCPU shut down */
    BB_STOP_FINISHED,     /* the storm on host threads is over */
    BB_STOP_SIGNAL,       /* status is 128 + the signal's number */
    BB_STOP_TIME,         /* --seconds were over; status 124, as of timeout(1) */
    BB_STOP_ERROR,        /* KVM gave up; one line on stderr said how */
};

struct bb_stop {
    uint64_t word; /* (a) reason << 32 | status; written once, by the first who asks */
    int event_fd;  /* immutable: readable once the word is set */
};

/* Returns BB_OK, or BB_E_SYSTEM where no eventfd can be made. */
int bb_stop_init(struct bb_stop *stop, struct bb_error *err);
void bb_stop_fini(struct bb_stop *stop);

/* Asks for the end. Returns true for the one call that decided reason and status. */
bool bb_stop_request(struct bb_stop *stop, enum bb_stop_reason reason, unsigned status);

/* BB_STOP_NONE while nobody has asked. Wait-free. */
enum bb_stop_reason bb_stop_reason(const struct bb_stop *stop, unsigned *status);
const char *bb_stop_reason_name(enum bb_stop_reason reason);

#endif
