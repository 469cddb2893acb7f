/* SPDX-License-Identifier: MIT */
/*
 * An engine with one HPET (and, for its suite, a PM timer), lines that record what they saw, and a
 * sink that records messages. The clock is moved by hand unless a test asks for the host's.
 */
#ifndef BUSBAR_TESTS_DEVICES_TIMER_FIXTURE_H
#define BUSBAR_TESTS_DEVICES_TIMER_FIXTURE_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../devices/timer/hpet.h"
#include "../../devices/timer/pmtimer.h"

#define HPET_BASE UINT64_C(0xfed00000)
enum { TICK_NS = 10 };

/* The registers' offsets and bits under the specification's names, spelled out anew here. */
enum {
    GCAP_ID = 0x000,
    GEN_CONF = 0x010,
    GINTR_STA = 0x020,
    MAIN_CNT = 0x0f0,
    ENABLE = 1,
    LEGACY = 2,
    INT_LEVEL = 1 << 1,
    INT_ENB = 1 << 2,
    PERIODIC = 1 << 3,
    VAL_SET = 1 << 6,
    MODE32 = 1 << 8,
    FSB_EN = 1 << 14,
};

static inline uint64_t conf_of(unsigned timer)
{
    return 0x100 + 0x20 * (uint64_t)timer;
}

static inline uint64_t comp_of(unsigned timer)
{
    return 0x108 + 0x20 * (uint64_t)timer;
}

static inline uint64_t fsb_of(unsigned timer)
{
    return 0x110 + 0x20 * (uint64_t)timer;
}

static inline uint64_t route_to(unsigned pin)
{
    return (uint64_t)pin << 9;
}

struct recorded_line {
    struct bb_line *line;
    uint32_t notified; /* (a) calls of the sink; relaxed, a statistic */
};

struct machine {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* the main thread's */
    struct bb_space *space;
    struct bb_clock *clock;
    struct bb_hpet *hpet;
    struct recorded_line pin[BB_HPET_PINS];
    struct recorded_line irq0;
    struct recorded_line irq8;
    uint64_t messages;     /* (a) how many; relaxed, a statistic */
    uint64_t last_address; /* of the last message, where one thread sends them */
    uint32_t last_data;
};

/* What a test varies; all zero: a manual clock and 3 timers. */
struct machine_options {
    enum bb_clock_mode clock_mode;
    enum bb_lock_mode lock_mode;
    unsigned timers;
    uint64_t tick_ns;
    bool no_legacy;
    bool no_msi;
    uint32_t route_cap; /* 0: pins 2, 8, 16 to 23 */
};

/* Builds and tears down; both assert. tear_down() also proves that nothing is left of the HPET. */
struct machine *set_up(const struct machine_options *options);
void tear_down(struct machine *machine);

uint64_t get(struct machine *machine, uint64_t offset);
uint32_t get32(struct machine *machine, uint64_t offset);
void put(struct machine *machine, uint64_t offset, uint64_t value);
void put32(struct machine *machine, uint64_t offset, uint32_t value);

void step_ns(struct machine *machine, uint64_t ns);
/* Moves the clock by main counter ticks of the default 10 ns. */
void step(struct machine *machine, uint64_t ticks);

bool pin_level(struct machine *machine, unsigned pin);
uint32_t pin_rises(struct machine *machine, unsigned pin);

/* BUSBAR_STRESS_SECONDS in nanoseconds, 1 s where it is not set; and the host's monotonic clock. */
uint64_t stress_ns(void);
uint64_t host_ns(void);

/* A small generator (splitmix64). */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* BUSBAR_SEED, or `fallback`. */
uint64_t seed(uint64_t fallback);

#endif
