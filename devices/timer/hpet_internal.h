/* SPDX-License-Identifier: MIT */
/*
 * The HPET's own structures, shared by its files.
 *
 * hpet_match.c holds the arithmetic of one comparator, pure and without time; hpet_timer.c what a
 * timer does with it (publish, fire, arm, expire); hpet.c the registers and creation.
 *
 * Writers (register writes and expiries) are serialised by the device's lock. Readers take none:
 * they read three kinds of atomic state, each linearizable by itself:
 *   - the main counter (timers/counter.h);
 *   - GEN_CONF and GINTR_STA, one word each;
 *   - a timer's published state, a latch of all its words, so that every register of a timer
 *     changes at one moment. The comparator of a periodic timer is derived from it and the counter.
 */
#ifndef BUSBAR_DEVICES_TIMER_HPET_INTERNAL_H
#define BUSBAR_DEVICES_TIMER_HPET_INTERNAL_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../rcu/latch.h"
#include "hpet.h"

/* Offsets (section 2.3.2). */
enum {
    HPET_GCAP_ID = 0x000,
    HPET_GEN_CONF = 0x010,
    HPET_GINTR_STA = 0x020,
    HPET_MAIN_CNT = 0x0f0,
    HPET_TIMERS = 0x100,
    HPET_TIMER_STRIDE = 0x20,
    HPET_TN_CONF = 0x00,
    HPET_TN_COMP = 0x08,
    HPET_TN_FSB = 0x10,
};

/* GCAP_ID (2.3.4). */
#define HPET_COUNT_SIZE_CAP BB_BIT64(13)
#define HPET_LEG_RT_CAP BB_BIT64(15)
enum { HPET_NUM_TIM_CAP_SHIFT = 8, HPET_VENDOR_ID_SHIFT = 16, HPET_CLK_PERIOD_SHIFT = 32 };

/* GEN_CONF (2.3.5). */
#define HPET_ENABLE_CNF BB_BIT64(0)
#define HPET_LEG_RT_CNF BB_BIT64(1)

/*
 * GEN_CONF's atomic word: its value; while ENABLE_CNF changes also the value before, and a mark
 * that says so; and the change's number, so that no two words are equal.
 */
enum { HPET_GENERAL_BEFORE_SHIFT = 8, HPET_GENERAL_NUMBER_SHIFT = 32 };
#define HPET_GENERAL_BITS (HPET_ENABLE_CNF | HPET_LEG_RT_CNF)
#define HPET_GENERAL_CHANGING BB_BIT64(16)

/* Tn_CONF (2.3.8). */
#define HPET_TN_INT_TYPE BB_BIT64(1) /* 1: level */
#define HPET_TN_INT_ENB BB_BIT64(2)
#define HPET_TN_TYPE BB_BIT64(3) /* 1: periodic */
#define HPET_TN_PER_INT_CAP BB_BIT64(4)
#define HPET_TN_SIZE_CAP BB_BIT64(5)
#define HPET_TN_VAL_SET BB_BIT64(6)
#define HPET_TN_32MODE BB_BIT64(8)
#define HPET_TN_FSB_EN BB_BIT64(14)
#define HPET_TN_FSB_CAP BB_BIT64(15)
enum { HPET_TN_ROUTE_SHIFT = 9, HPET_TN_ROUTE_BITS = 5, HPET_TN_ROUTE_CAP_SHIFT = 32 };
#define HPET_TN_ROUTE (bb_mask_low(HPET_TN_ROUTE_BITS) << HPET_TN_ROUTE_SHIFT)
#define HPET_TN_WRITABLE                                                                           \
    (HPET_TN_INT_TYPE | HPET_TN_INT_ENB | HPET_TN_TYPE | HPET_TN_VAL_SET | HPET_TN_32MODE |        \
     HPET_TN_ROUTE)

/*
 * A comparator written while the counter runs, up to this long behind it, counts as met: the time
 * between the guest's reading the counter and its write arriving here is the host's making.
 */
#define HPET_LATE_NS UINT64_C(1000000000)

/* A periodic timer interrupts at most this often; matches in between are merged into the next. */
#define HPET_PERIOD_MIN_NS UINT64_C(100000)

/* A distance to the next match that is not reached. */
#define HPET_NEVER UINT64_MAX

/* A timer's state, as of the count `anchor`. */
struct bb_hpet_state_ {
    uint64_t config;     /* Tn_CONF's writable bits */
    uint64_t comparator; /* Tn_COMP at `anchor` */
    uint64_t period;     /* the value last written to Tn_COMP: what a match adds in periodic mode */
    uint64_t anchor;     /* main counter's value */
    uint64_t distance;   /* ticks from there to the next match; 0: it matches at `anchor` itself */
    uint64_t fsb;        /* Tn_FSB_INT_ROUTE */
};

/* Rows of the table of paths: five registers, the gaps between, four rows a timer, the rest. */
enum { BB_HPET_PATHS_ = 9 + 4 * BB_HPET_TIMERS_MAX };

enum { BB_HPET_STATE_WORDS_ = sizeof(struct bb_hpet_state_) / sizeof(uint64_t) };

/* What a comparator equal to the count, or just behind it, means when it is aimed anew. */
enum bb_hpet_aim_ {
    BB_HPET_AIM_NEXT_,  /* equal: that match is over; the next is one wrap away */
    BB_HPET_AIM_EQUAL_, /* equal: matches now */
    BB_HPET_AIM_LATE_,  /* equal, or behind by at most late_ticks: matches now */
};

/* Ticks between two matches of this state; 0 where there is no second one (below 2^64 ticks). */
uint64_t bb_hpet_stride_(const struct bb_hpet_state_ *state);
/* True where the counter has met the comparator since the anchor. */
bool bb_hpet_matched_(const struct bb_hpet_state_ *state, uint64_t count);
/* Moves the anchor to `count`, past any number of matches, in constant time. */
void bb_hpet_advance_(struct bb_hpet_state_ *state, uint64_t count);
/* Recomputes the distance after the comparator, the mode or the counter changed. */
void bb_hpet_aim_(struct bb_hpet_state_ *state, uint64_t count, enum bb_hpet_aim_ aim,
                  uint64_t late_ticks);

/* Where a timer's interrupt goes: an I/O APIC pin, or one of these. */
enum {
    BB_HPET_OUT_IRQ0_ = BB_HPET_PINS,
    BB_HPET_OUT_IRQ8_,
    BB_HPET_OUTS_,
    BB_HPET_OUT_NONE_ = BB_HPET_OUTS_,
};

/* One source a pin, not one a timer and pin: a line has room for 32 sources of all devices. */
struct bb_hpet_out_ {
    struct bb_source *source; /* immutable; NULL: nothing is connected */
    uint32_t asserting;       /* guarded: timers that hold it */
};

struct bb_hpet;

struct bb_hpet_timer_ {
    struct bb_hpet *hpet;           /* immutable, like the next three */
    struct bb_device_timer *expiry; /* created `locked` */
    unsigned index;
    uint32_t route_cap;
    struct bb_latch published; /* state's words; written under the device's lock, read without */
    /* Guarded by the device's lock. */
    struct bb_hpet_state_ state;
    uint64_t hold; /* count before which a periodic timer is not fired again */
    bool held;     /* `hold` counts */
    unsigned out;  /* the output that it asserts; BB_HPET_OUT_NONE_: none */
};

struct bb_hpet {
    /* Immutable after creation. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    uint64_t capability; /* GCAP_ID */
    uint64_t tick_ns;
    uint64_t late_ticks; /* HPET_LATE_NS */
    uint64_t hold_ticks; /* HPET_PERIOD_MIN_NS */
    unsigned timer_count;
    bool msi_capable;

    /* Atomic: written under the device's lock, read without. */
    struct bb_counter counter; /* the main counter */
    uint64_t general;          /* GEN_CONF's word */
    uint64_t status;           /* GINTR_STA */

    /* Guarded by the device's lock. */
    uint64_t general_now; /* GEN_CONF as the interrupt logic sees it */
    struct bb_hpet_out_ out[BB_HPET_OUTS_];
    struct bb_hpet_timer_ timer[BB_HPET_TIMERS_MAX];

    size_t path_count; /* immutable, with the table */
    struct bb_path_row path[BB_HPET_PATHS_];
};

/* The main counter at one moment. */
struct bb_hpet_moment_ {
    uint64_t count;
    bb_ns_t ns; /* of the clock */
    bool running;
};

/* Everything from here on that takes a context needs the device's lock; reads don't. */

struct bb_hpet_moment_ bb_hpet_now_(struct bb_hpet *hpet);

/* Gives readers the first state; before the device has a region. */
void bb_hpet_init_published_(struct bb_hpet_timer_ *timer);

/*
 * Makes a timer's state visible to readers. `frozen`: its comparator stands still until the next
 * publication, which is how a change of the main counter is kept from being seen half done.
 */
void bb_hpet_publish_(struct bb_hpet_timer_ *timer, bool frozen);

/* Applies the matches up to `count`: at most one interrupt, however many there were. */
void bb_hpet_settle_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer, uint64_t count);

/*
 * Arms or disarms a settled timer for its next match that does anything.
 * Returns BB_OK, or BB_E_DEVICE where there was no memory to arm it.
 */
int bb_hpet_arm_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer,
                 const struct bb_hpet_moment_ *now);

/* Recomputes which output a timer asserts from status, configuration and GEN_CONF. */
void bb_hpet_relevel_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer);

/* The engine timer's callback. */
void bb_hpet_expired_(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns);

/* True where matches set the timer's status bit: level-triggered, and not by message. */
bool bb_hpet_is_level_(const struct bb_hpet_timer_ *timer);

/* A register of a timer, by its offset from the timer's first; lock-free, needs no lock. */
uint64_t bb_hpet_timer_read_(struct bb_hpet_timer_ *timer, unsigned reg);

#endif
