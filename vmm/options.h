/* SPDX-License-Identifier: MIT */
/* What the command line of `busbar run` and `busbar demo` says; filled and checked by main.c. */
#ifndef BUSBAR_VMM_OPTIONS_H
#define BUSBAR_VMM_OPTIONS_H

#include "../engine/engine.h"
#include "serial_io.h"

/* Exit statuses of the command itself; a guest's debug-exit status and 128 + signal come besides.
 */
enum { BB_EXIT_OK = 0, BB_EXIT_FAILED = 1, BB_EXIT_USAGE = 2 };

enum bb_cpu_kind {
    BB_CPU_AUTO, /* KVM where /dev/kvm exists, else host threads, which one line says */
    BB_CPU_KVM,
    BB_CPU_THREADS,
};

enum { BB_VCPUS_MAX = 1024 };

struct bb_options {
    const char *kernel; /* NULL: the storm */
    const char *initrd;
    const char *append;
    unsigned vcpus;
    uint64_t memory_bytes;
    enum bb_lock_mode lock_mode;
    struct bb_serial_config serial;
    enum bb_cpu_kind cpu;
    bool json;
    bool count_accesses; /* report accesses by region and vCPU */
    uint64_t reads;      /* of the storm, per vCPU and phase; 0: its default */
    unsigned seconds;    /* 0: no limit; else the run is ended after that */
};

#endif
