/* SPDX-License-Identifier: MIT */
/*
 * One run of a guest from beginning to end: build the machine, load, start, wait, stop, take apart.
 *
 * Whatever ends a run, everything it made is gone when the function returns: threads, descriptors,
 * memory, terminal mode. Threads: the process's main thread, which has blocked the signals in
 * bb_signals_open(); they are taken from its descriptor and from nowhere else.
 */
#ifndef BUSBAR_VMM_RUN_H
#define BUSBAR_VMM_RUN_H

#include "kvm.h"
#include "options.h"

/*
 * Blocks SIGINT, SIGTERM, SIGHUP and SIGQUIT in this thread, and thereby in all it makes later;
 * returns a descriptor that they are read from, or -1. Once a process, before any thread.
 */
int bb_signals_open(void);

/*
 * Waits until somebody asks `stop` for the end, a signal comes (which asks it), or `seconds` (0:
 * no limit) are over (which asks it too).
 */
void bb_stop_await(struct bb_stop *stop, int signal_fd, unsigned seconds);

/* The storm, once. */
struct bb_storm_run {
    struct bb_storm_params params; /* tsc_khz is filled in by the run */
    uint64_t memory_bytes;         /* 0: what the storm needs */
    enum bb_lock_mode lock_mode;
    struct bb_counts *counts; /* to be filled; NULL: accesses are not counted */
    bool threads;             /* on host threads, without KVM */
    bool bare;                /* in a guest whose MMIO is answered without the engine: the limit */
    unsigned seconds;         /* 0: no limit */
    const struct bb_serial_config *serial; /* its file is made, though the storm prints nothing */
};

struct bb_run_outcome {
    enum bb_stop_reason reason;
    unsigned status; /* that of the reason; the storm's verdict is bb_storm_ok() */
    double seconds;  /* from the vCPUs' start to their end */
    struct bb_kvm_stats kvm;
    struct bb_engine_stats engine;
};

/*
 * Runs it and collects its results, finished or not.
 * Returns BB_OK, also where the storm found something wrong or was ended early; or the code of
 * what could not be set up, with its text, and then nothing ran.
 */
int bb_storm_run(const struct bb_storm_run *run, int signal_fd, struct bb_storm_results *results,
                 struct bb_run_outcome *outcome, struct bb_error *err);

/* `busbar run`: storm or kernel, its report, and the exit status. */
int bb_run(const struct bb_options *options, int signal_fd);

#endif
