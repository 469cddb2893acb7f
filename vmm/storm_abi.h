/* SPDX-License-Identifier: MIT */
/*
 * What the storm's host side and its guest payload agree on: addresses in guest memory, the control
 * block, each vCPU's results, the histogram's buckets, the storm device's registers. Included by
 * freestanding guest code, so it needs nothing but <stdint.h>.
 *
 * Guest memory, from guest-physical 0:
 *   0x100000  the payload, flat, entered at its first byte
 *   0x200000  page tables: 4 GiB mapped one to one
 *   0x207000  GDT
 *   0x208000  struct storm_control
 *   0x400000  struct storm_vcpu of vCPU 0, then one every STORM_VCPU_BYTES; its stack lies behind
 *
 * Who writes: the host everything, before the vCPUs start; then each vCPU its own storm_vcpu, and
 * every vCPU the fields of storm_control that are marked shared, atomically. The host reads again
 * once every vCPU has stopped.
 */
#ifndef BUSBAR_VMM_STORM_ABI_H
#define BUSBAR_VMM_STORM_ABI_H

#include <stdint.h>

#define STORM_MAGIC UINT64_C(0x314d524f54534242) /* "BBSTORM1" */

enum {
    STORM_VCPUS_MAX = 1024,
    STORM_PAYLOAD_GPA = 0x100000,
    STORM_PAYLOAD_BYTES_MAX = 0x100000,
    STORM_TABLES_GPA = 0x200000,
    STORM_GDT_GPA = 0x207000,
    STORM_CONTROL_GPA = 0x208000,
    STORM_VCPU_GPA = 0x400000,
    STORM_VCPU_BYTES = 0x4000,
    STORM_TIMERS_MAX = 32,
};

/* GDT selectors. */
enum { STORM_CS = 0x08, STORM_DS = 0x10 };

/* Where the machine's devices are; the payload takes them from storm_control. */
#define STORM_HPET_GPA UINT64_C(0xfed00000)
#define STORM_IOAPIC_GPA UINT64_C(0xfec00000)
#define STORM_DEVICE_GPA UINT64_C(0xfeb00000)
#define STORM_EXIT_PORT 0xf4

/* The storm device: 4 KiB of registers, 8 bytes wide, under the device's lock. */
enum {
    STORM_DEVICE_HOLD_NS = 0x0, /* write n: keeps the device's lock busy for n ns of host time */
    STORM_DEVICE_COUNT = 0x8,   /* read: how many holds there were */
    STORM_DEVICE_BYTES = 0x1000,
};

/* The phases, in the order in which they run; bits of storm_control.phases. */
enum storm_phase {
    STORM_READ,    /* every vCPU reads the HPET's counter */
    STORM_TORTURE, /* vCPU 0 toggles ENABLE_CNF, the others read */
    STORM_NOISY,   /* vCPU 0 keeps the storm device busy, the others read */
    STORM_TIMERS,  /* every vCPU programs HPET timers and counts what arrives */
    STORM_PHASES,
};
enum { STORM_READING_PHASES = 3 };

/* A latency histogram: exact below 16, then 16 buckets for each power of two, to 2^44. */
enum { STORM_HIST_SUB_BITS = 4, STORM_HIST_TOP_BIT = 43, STORM_HIST_BUCKETS = 656 };

static inline unsigned storm_hist_bucket(uint64_t value)
{
    if (value < (1u << STORM_HIST_SUB_BITS)) {
        return (unsigned)value;
    }
    unsigned top = 63u - (unsigned)__builtin_clzll(value);
    if (top > STORM_HIST_TOP_BIT) {
        return STORM_HIST_BUCKETS - 1;
    }
    unsigned sub = (unsigned)(value >> (top - STORM_HIST_SUB_BITS)) & 15u;
    return (top - STORM_HIST_SUB_BITS + 1) * 16 + sub;
}

/* How an interrupt of the timers phase travels. */
enum storm_route { STORM_MSI, STORM_EDGE, STORM_LEVEL, STORM_ROUTES };

/* An I/O APIC pin that is none: the timer is used for messages only. */
enum { STORM_NO_PIN = 0xff };

/* Why a payload gave up: below 32 an exception, with its error code as detail. */
enum storm_failure {
    STORM_FAIL_APIC_ID = 32, /* a local APIC id was not the vCPU's number; detail: the id */
    STORM_FAIL_HPET,         /* no usable HPET; detail: its capabilities */
    STORM_FAIL_CONTEXT,      /* a host thread could not be attached to the engine */
};

/* Others read until vCPU 0 has toggled or held so often, however fast they are: overlap is real. */
enum { STORM_TURNS_MIN = 4 };

struct storm_control {
    /* Written by the host before the start, then constant. */
    uint64_t magic;
    uint32_t vcpus;
    uint32_t phases;        /* bit mask of enum storm_phase */
    uint64_t reads;         /* per vCPU, STORM_READ */
    uint64_t torture_reads; /* per vCPU */
    uint64_t noisy_reads;   /* per vCPU */
    uint64_t hold_ns;       /* of the storm device, per write */
    uint64_t rest_ns;       /* between two holds */
    uint64_t think_ns;      /* of a reader in the noisy phase, before each read */
    uint64_t publish_every; /* a reader offers counter_max every so many reads, at least 1 */
    uint64_t timer_rounds;  /* interrupts that each vCPU asks for */
    uint64_t hpet_gpa;
    uint64_t ioapic_gpa;
    uint64_t device_gpa;
    uint64_t tsc_khz;

    /* Written by vCPU 0 before the first barrier: the I/O APIC pin of each HPET timer. */
    uint32_t timers;
    uint32_t timer_has_msi; /* bit mask */
    uint8_t timer_pin[STORM_TIMERS_MAX];

    /* Shared: written by any vCPU, by atomic read-modify-write. */
    _Alignas(64) uint32_t barrier_arrived;
    uint32_t barrier_turn;
    _Alignas(64) uint64_t counter_max; /* the largest counter value that anyone has read */
    _Alignas(64) uint64_t turns;       /* toggles or holds of vCPU 0 in the phase that runs */
    _Alignas(64) uint32_t readers_left;
    uint32_t ready;                         /* vCPU 0 has made the IDT */
    _Alignas(64) uint32_t ioapic_lock;      /* guards IOREGSEL and IOWIN */
    uint32_t timer_owner[STORM_TIMERS_MAX]; /* 1 + the vCPU that uses this timer; 0: free */
    _Alignas(64) uint32_t finished;         /* set by vCPU 0 as its last store */
    uint32_t failed;                        /* set by the first vCPU that could not go on, which */
    uint32_t failure;                       /* alone writes these four: enum storm_failure */
    uint32_t failure_vcpu;
    uint64_t failure_rip, failure_detail;
};

/* One vCPU's results. Times are TSC ticks. */
struct storm_reading {
    uint64_t reads;
    uint64_t begin, end; /* TSC before its first read and after its last */
    uint64_t latency_sum;
    uint64_t latency_max;
    uint64_t backward_self;  /* the counter was below what this vCPU had read before */
    uint64_t backward_cross; /* below what another vCPU had published before this read */
    uint32_t hist[STORM_HIST_BUCKETS];
};

struct storm_timers {
    uint64_t programmed[STORM_ROUTES];
    uint64_t arrived[STORM_ROUTES];
    uint64_t missed; /* the comparator had passed before the timer was enabled; none came */
    /*
     * Level interrupts that the local APIC did not have in service while their handler ran: there
     * are hypervisors that end an interrupt when they inject it. The I/O APIC, told of the end
     * while the line is still high, rightly sends such a one again.
     */
    uint64_t ended_early;
    uint64_t spurious[STORM_ROUTES]; /* an interrupt that nobody had asked for */
};

struct storm_vcpu {
    uint64_t apic_id;
    uint64_t toggles;      /* times that vCPU 0 disabled the counter and enabled it again */
    uint64_t halted_moved; /* times that it saw the counter move while it was disabled */
    uint64_t holds;        /* writes to the storm device, vCPU 0 */
    struct storm_reading reading[STORM_READING_PHASES];
    struct storm_timers timers;
    /* This vCPU's interrupt handlers and its own code. */
    uint64_t interrupts[STORM_ROUTES]; /* taken so far */
    uint64_t level_timer;              /* the HPET timer whose status the level handler clears */
};

_Static_assert(sizeof(struct storm_vcpu) <= STORM_VCPU_BYTES - 0x1000, "room for a 4 KiB stack");
_Static_assert(STORM_CONTROL_GPA + sizeof(struct storm_control) <= STORM_VCPU_GPA, "overlap");

#endif
