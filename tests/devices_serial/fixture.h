/* SPDX-License-Identifier: MIT */
/* An engine with one UART at port 0x3f8, a line that records, and a queue that it sends into. */
#ifndef BUSBAR_TESTS_DEVICES_SERIAL_FIXTURE_H
#define BUSBAR_TESTS_DEVICES_SERIAL_FIXTURE_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../devices/serial/uart16550.h"

enum { PORT = 0x3f8 };
/* Registers, by the data sheet's names. */
enum { RBR = 0, THR = 0, DLL = 0, IER = 1, DLM = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4 };
enum { LSR = 5, MSR = 6, SCR = 7 };

struct rig {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* the main thread's */
    struct bb_space *ports;
    struct bb_uart16550 *uart;
    struct bb_line *irq;
    uint64_t sent_count; /* (a) */
    uint8_t sent[64];    /* the first ones, where one thread sends */
    uint64_t room_calls; /* (a) */
};

/* Both assert; tear_down() also proves that nothing is left. */
struct rig *set_up(void);
void tear_down(struct rig *rig);

void out(struct rig *rig, unsigned reg, uint8_t value);
uint8_t in(struct rig *rig, unsigned reg);
bool irq(struct rig *rig);
size_t receive(struct rig *rig, const char *text);

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
