/* SPDX-License-Identifier: MIT */
/*
 * An engine with one I/O APIC, a line with two sources to each of its first 24 pins, and a sink
 * that records messages by vector.
 */
#ifndef BUSBAR_TESTS_DEVICES_INTC_FIXTURE_H
#define BUSBAR_TESTS_DEVICES_INTC_FIXTURE_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../devices/intc/ioapic.h"

#define IOAPIC_BASE UINT64_C(0xfec00000)

/* Offsets, indices and bits as the specification has them, spelled out anew here. */
enum { IOREGSEL = 0x00, IOWIN = 0x10, EOIR = 0x40 };
enum { IOAPICID = 0, IOAPICVER = 1, IOAPICARB = 2 };
enum { PINS = 24, SOURCES = 2 };
#define LEVEL UINT64_C(0x8000)
#define MASKED UINT64_C(0x10000)
#define REMOTE_IRR UINT64_C(0x4000)

struct rig {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* the main thread's */
    struct bb_space *space;
    struct bb_ioapic *ioapic;
    struct bb_device *wires; /* owns the sources */
    struct bb_line *line[PINS];
    struct bb_source *source[PINS][SOURCES];

    /* Written by the sink on whatever thread; relaxed where a test reads them after a join. */
    uint64_t messages;
    uint64_t by_vector[256];
    uint64_t last_address;
    uint32_t last_data;
    uint32_t refuses; /* the sink takes nothing */
    /* Called for each message, if set. */
    void (*delivered)(struct rig *rig, struct bb_ctx *ctx, uint8_t vector);
    void *user;
};

/* `config` may be NULL. Both assert; tear_down() also proves that nothing is left. */
struct rig *set_up(const struct bb_ioapic_config *config);
struct rig *set_up_in_mode(const struct bb_ioapic_config *config, enum bb_lock_mode mode);
void tear_down(struct rig *rig);

/* Accesses on the given context, which assert that they are accepted. */
uint32_t reg_read(struct rig *rig, struct bb_ctx *ctx, unsigned index);
void reg_write(struct rig *rig, struct bb_ctx *ctx, unsigned index, uint32_t value);
uint64_t entry_read(struct rig *rig, struct bb_ctx *ctx, unsigned pin);
/* High half first, as guests do. */
void entry_write(struct rig *rig, struct bb_ctx *ctx, unsigned pin, uint64_t value);
void raise_pin(struct rig *rig, unsigned pin);
void lower_pin(struct rig *rig, unsigned pin);
void pulse_pin(struct rig *rig, unsigned pin);
uint64_t delivered(const struct rig *rig, uint8_t vector);

/* BUSBAR_STRESS_SECONDS in nanoseconds, 1 s where it is not set; and the host's monotonic clock. */
uint64_t stress_ns(void);
uint64_t host_ns(void);
/* BUSBAR_SEED, or `fallback`. */
uint64_t seed(uint64_t fallback);

/* A small generator (splitmix64). */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

#endif
