/* SPDX-License-Identifier: MIT */
/*
 * What an HPET timer does with its comparator: shows it to readers, interrupts, arms the engine's
 * timer for the next match, and takes its expiries.
 *
 * A match is never counted down: it is a distance from an anchor, and whoever holds the lock and
 * has read the counter settles what has been met since. Expiries and register writes both settle,
 * so a write sees everything that came before it, and an expiry that is late, or was meant for a
 * state that is gone, finds nothing to do.
 *
 * Invariants:
 *  1. While the counter runs, a timer whose next match would have an effect is armed for it, or,
 *     if it is periodic and interrupted less than HPET_PERIOD_MIN_NS ago, for a later match.
 *  2. out[n].asserting has a timer's bit exactly where timer.out is n, and the source of an output
 *     is high exactly while that set is not empty.
 *  3. A published state yields the same comparator as the private one at every count that the
 *     counter can return while it is published.
 */
#include "hpet_internal.h"

struct bb_hpet_moment_ bb_hpet_now_(struct bb_hpet *hpet)
{
    struct bb_hpet_moment_ now;

    now.count = bb_counter_read_state(&hpet->counter, &now.running, &now.ns);
    return now;
}

static void pack(const struct bb_hpet_state_ *state, uint64_t words[BB_HPET_STATE_WORDS_])
{
    words[0] = state->config;
    words[1] = state->comparator;
    words[2] = state->period;
    words[3] = state->anchor;
    words[4] = state->distance;
    words[5] = state->fsb;
}

/* The state last published; returns its number. Lock-free: repeats only where one was published. */
static uint64_t snapshot(const struct bb_hpet_timer_ *timer, struct bb_hpet_state_ *state)
{
    uint64_t words[BB_HPET_STATE_WORDS_];
    uint64_t number = bb_latch_read(&timer->published, words, BB_HPET_STATE_WORDS_);

    *state = (struct bb_hpet_state_){
        .config = words[0],
        .comparator = words[1],
        .period = words[2],
        .anchor = words[3],
        .distance = words[4],
        .fsb = words[5],
    };
    return number;
}

void bb_hpet_init_published_(struct bb_hpet_timer_ *timer)
{
    uint64_t words[BB_HPET_STATE_WORDS_];

    pack(&timer->state, words);
    bb_latch_init(&timer->published, words, BB_HPET_STATE_WORDS_);
}

void bb_hpet_publish_(struct bb_hpet_timer_ *timer, bool frozen)
{
    struct bb_hpet_state_ shown = timer->state;
    uint64_t words[BB_HPET_STATE_WORDS_];

    if (frozen) {
        shown.distance = HPET_NEVER;
    }
    pack(&shown, words);
    bb_latch_write(&timer->published, words, BB_HPET_STATE_WORDS_);
}

/*
 * The comparator, which in a periodic timer moves with the counter. State and counter are of one
 * moment: the counter was read while the state was the newest one, since a write to the counter
 * freezes the state before and publishes another one after. So the read takes effect where it
 * reads the counter.
 */
static uint64_t read_comparator(struct bb_hpet_timer_ *timer)
{
    struct bb_hpet_state_ state;

    for (;;) {
        uint64_t number = snapshot(timer, &state);
        uint64_t count;
        bool running;

        if ((state.config & HPET_TN_TYPE) == 0 || state.distance == HPET_NEVER) {
            return state.comparator;
        }
        count = bb_counter_read_state(&timer->hpet->counter, &running, NULL);
        /* The counter's loads are acquires, so who has read a counter that was set finds that the
         * state was frozen before; and its sample lies before its own last load. */
        if (!bb_latch_changed(&timer->published, number)) {
            /* A comparator aimed at the very count at which the counter stands is met by running.
             */
            if (running || count != state.anchor) {
                bb_hpet_advance_(&state, count);
            }
            return state.comparator;
        }
    }
}

uint64_t bb_hpet_timer_read_(struct bb_hpet_timer_ *timer, unsigned reg)
{
    struct bb_hpet_state_ state;

    switch (reg) {
    case HPET_TN_CONF:
        (void)snapshot(timer, &state);
        return (uint64_t)timer->route_cap << HPET_TN_ROUTE_CAP_SHIFT | HPET_TN_PER_INT_CAP |
               HPET_TN_SIZE_CAP | (timer->hpet->msi_capable ? HPET_TN_FSB_CAP : 0) | state.config;
    case HPET_TN_COMP:
        return read_comparator(timer);
    case HPET_TN_FSB:
        (void)snapshot(timer, &state);
        return state.fsb;
    default:
        return 0;
    }
}

bool bb_hpet_is_level_(const struct bb_hpet_timer_ *timer)
{
    return (timer->state.config & (HPET_TN_INT_TYPE | HPET_TN_FSB_EN)) == HPET_TN_INT_TYPE;
}

/* Where the timer's interrupt goes, unless it is a message. */
static unsigned route(const struct bb_hpet_timer_ *timer)
{
    unsigned pin;

    /* Section 2.3.5, table 3: this mapping takes the place of the timers' own routes. */
    if ((timer->hpet->general_now & HPET_LEG_RT_CNF) != 0 && timer->index < 2) {
        return timer->index == 0 ? BB_HPET_OUT_IRQ0_ : BB_HPET_OUT_IRQ8_;
    }
    pin = (unsigned)bb_field_get(timer->state.config, HPET_TN_ROUTE_SHIFT, HPET_TN_ROUTE_BITS);
    return (timer->route_cap >> pin & 1) != 0 ? pin : BB_HPET_OUT_NONE_;
}

void bb_hpet_relevel_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer)
{
    struct bb_hpet *hpet = timer->hpet;
    uint32_t bit = UINT32_C(1) << timer->index;
    unsigned from = timer->out;
    unsigned to = BB_HPET_OUT_NONE_;

    /* Relaxed: written under the lock alone. */
    if ((bb_load_relaxed(&hpet->status) & bit) != 0 && bb_hpet_is_level_(timer) &&
        (timer->state.config & HPET_TN_INT_ENB) != 0 &&
        (hpet->general_now & HPET_ENABLE_CNF) != 0) {
        to = route(timer);
    }
    if (to == from) {
        return;
    }
    timer->out = to;
    /* The new one first: two outputs may drive one line, which then shall not see a gap. */
    if (to != BB_HPET_OUT_NONE_) {
        hpet->out[to].asserting |= bit;
        if (hpet->out[to].source != NULL) {
            bb_source_set(ctx, hpet->out[to].source, true);
        }
    }
    if (from != BB_HPET_OUT_NONE_) {
        hpet->out[from].asserting &= ~bit;
        if (hpet->out[from].source != NULL) {
            bb_source_set(ctx, hpet->out[from].source, hpet->out[from].asserting != 0);
        }
    }
}

/* Status bits are set without an interrupt too; the rest of a match needs the interrupt enabled. */
static bool has_effect(const struct bb_hpet_timer_ *timer)
{
    return (timer->state.config & HPET_TN_INT_ENB) != 0 || bb_hpet_is_level_(timer);
}

static void fire(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer)
{
    struct bb_hpet *hpet = timer->hpet;
    unsigned out;

    if (bb_hpet_is_level_(timer)) {
        /* Relaxed load: the lock orders writers. The store pairs with the read of GINTR_STA: who
         * was interrupted sees the bit. */
        uint64_t status = bb_load_relaxed(&hpet->status);

        bb_store_release(&hpet->status, status | BB_BIT64(timer->index));
        bb_hpet_relevel_(ctx, timer);
        return;
    }
    if ((timer->state.config & HPET_TN_INT_ENB) == 0) {
        return;
    }
    if ((timer->state.config & HPET_TN_FSB_EN) != 0) {
        /* A message that nobody takes is counted by the engine; the device has nothing to add. */
        (void)bb_msi_send(ctx, timer->state.fsb >> 32, (uint32_t)timer->state.fsb);
        return;
    }
    out = route(timer);
    if (out != BB_HPET_OUT_NONE_ && hpet->out[out].source != NULL) {
        bb_source_pulse(ctx, hpet->out[out].source);
    }
}

void bb_hpet_settle_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer, uint64_t count)
{
    bool matched = bb_hpet_matched_(&timer->state, count);
    bool at_anchor = matched && timer->state.distance == 0;

    bb_hpet_advance_(&timer->state, count);
    if (at_anchor) {
        bb_hpet_publish_(timer, false); /* or a halt at this count would take the match back */
    }
    if (matched && has_effect(timer)) {
        timer->hold = count + timer->hpet->hold_ticks;
        timer->held = true;
        fire(ctx, timer);
    }
}

int bb_hpet_arm_(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer,
                 const struct bb_hpet_moment_ *now)
{
    struct bb_hpet *hpet = timer->hpet;
    uint64_t distance = timer->state.distance;
    uint64_t tick_start_ns, wait_ns;
    bb_ns_t deadline_ns;

    if (!now->running || !has_effect(timer) || distance == HPET_NEVER) {
        goto never;
    }
    if (timer->held) {
        uint64_t hold = timer->hold - now->count;
        uint64_t stride = bb_hpet_stride_(&timer->state);

        if (hold > hpet->hold_ticks) {
            timer->held = false; /* over: the count has passed it */
        } else if (hold > distance && stride != 0 && stride < hpet->hold_ticks) {
            /* To the first match that is not held; the ones before it merge into it. */
            distance += (hold - distance + stride - 1) / stride * stride;
        }
    }
    /*
     * When this tick began: exact where the counter says so, else (it has wrapped since it was
     * started or set) taken to be now, which makes the expiry late by less than a tick.
     */
    tick_start_ns = bb_counter_time_of(&hpet->counter, now->count);
    if (tick_start_ns > now->ns || now->ns - tick_start_ns >= hpet->tick_ns) {
        tick_start_ns = now->ns;
    }
    if (__builtin_mul_overflow(distance, hpet->tick_ns, &wait_ns) ||
        __builtin_add_overflow(tick_start_ns, wait_ns, &deadline_ns) ||
        deadline_ns > (bb_ns_t)INT64_MAX) {
        goto never; /* beyond the range of time */
    }
    return bb_device_timer_arm(ctx, timer->expiry, deadline_ns) == BB_E_NOMEM ? BB_E_DEVICE : BB_OK;

never:
    bb_device_timer_disarm(ctx, timer->expiry);
    return BB_OK;
}

void bb_hpet_expired_(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct bb_hpet_timer_ *timer = opaque;
    struct bb_hpet_moment_ now = bb_hpet_now_(timer->hpet);

    (void)deadline_ns; /* what is due now decides, not what was due when it was armed */
    if (!now.running) {
        return; /* the write that halted the counter settled everything */
    }
    bb_hpet_settle_(ctx, timer, now.count);
    /* Where there is no memory the timer rests until a write arms it; its own place in the queue
     * was freed just now. */
    (void)bb_hpet_arm_(ctx, timer, &now);
}
