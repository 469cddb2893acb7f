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

#include <stdbool.h>

/*
 * Runs it: the table to stdout, progress to stderr. `kvm` false leaves guests out. A signal from
 * `signal_fd` (bb_signals_open()) ends it early, with a line that says so.
 * Returns the exit status: 0; 1 where a run failed its checks or could not be made; 128 + the
 * signal's number. Threads: the process's main thread; blocks.
 */
int bb_demo(bool kvm, int signal_fd);

#endif
