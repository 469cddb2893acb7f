/* SPDX-License-Identifier: MIT */
/* An engine with a manual clock and every small PC device at its usual ports. */
#ifndef BUSBAR_TESTS_DEVICES_MISC_FIXTURE_H
#define BUSBAR_TESTS_DEVICES_MISC_FIXTURE_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../devices/misc/debug_exit.h"
#include "../../devices/misc/fw_cfg.h"
#include "../../devices/misc/i8042.h"
#include "../../devices/misc/i8254.h"
#include "../../devices/misc/mc146818.h"
#include "../../devices/misc/pci_config.h"

enum { CPUS = 6 };
#define RAM_BYTES UINT64_C(0x123456789000)
#define BASE_UNIX_S INT64_C(1709164799) /* 2024-02-28 23:59:59 */

struct rig {
    struct bb_engine *engine;
    struct bb_ctx *ctx; /* the main thread's */
    struct bb_space *ports;
    struct bb_line *irq0;
    uint32_t exits; /* (a) */
    uint32_t exit_code;
    uint32_t resets; /* (a) */
    struct bb_debug_exit *debug_exit;
    struct bb_fw_cfg *fw_cfg;
    struct bb_i8042 *i8042;
    struct bb_i8254 *i8254;
    struct bb_mc146818 *rtc;
    struct bb_pci_config *pci;
};

/* Both assert; tear_down() also proves that nothing is left. */
struct rig *set_up(void);
void tear_down(struct rig *rig);

/* fw_cfg is mapped by the tests that use it, after they have added their items. */
void map_fw_cfg(struct rig *rig);

void outb(struct rig *rig, unsigned port, uint8_t value);
uint8_t inb(struct rig *rig, unsigned port);
void out_sized(struct rig *rig, unsigned port, unsigned size, uint32_t value);
uint32_t in_sized(struct rig *rig, unsigned port, unsigned size);
void step_ns(struct rig *rig, uint64_t ns);

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
