/* SPDX-License-Identifier: MIT */
/*
 * `busbar demo`: the storm lock-free and under one big lock, at 2, 8 and 32 vCPUs, in guests where
 * there is KVM and on host threads, in one run of less than two minutes, with the limits beside
 * them, and what to make of the figures.
 *
 * Free, big and bare runs alternate and medians are shown, so that a machine that gets slower or
 * faster meanwhile decides nothing.
 */
#ifndef BUSBAR_VMM_DEMO_H
#define BUSBAR_VMM_DEMO_H

#include "stop.h"

#include <stdbool.h>

/*
 * Runs it: the table to stdout, progress to stderr. `kvm` false leaves guests out. Ends early, with
 * a line that says so, once `stop` has been asked (by a signal: see stop.h).
 * Returns the exit status: 0; 1 where a run failed its checks or could not be made; the status that
 * `stop` was asked with. Threads: one; blocks.
 */
int bb_demo(bool kvm, struct bb_stop *stop);

#endif
