/* SPDX-License-Identifier: MIT */
/*
 * The arithmetic of one HPET comparator: when it meets the main counter, and what it holds then.
 * Pure functions over a state and a count; who holds which lock, and time, are not their concern.
 *
 * Counts are 64-bit and wrap; differences of them are distances forward. A timer in 32-bit mode
 * compares the low halves, so it matches every 2^32 ticks (section 2.3.9.2.1); in 64-bit mode a
 * second match is 2^64 ticks away, which is never. A periodic timer's comparator grows by the
 * period at each match (2.3.9.2.2), wrapping at its width.
 *
 * Invariants: between operations, distance is HPET_NEVER or the ticks from anchor to the next
 * match, and the comparator's value modulo its width is that of anchor + distance, except where it
 * was aimed late (then it is behind, by less than the late window, until it is advanced).
 */
#include "hpet_internal.h"

static uint64_t width_mask(const struct bb_hpet_state_ *state)
{
    return (state->config & HPET_TN_32MODE) != 0 ? UINT32_MAX : UINT64_MAX;
}

static bool is_periodic(const struct bb_hpet_state_ *state)
{
    return (state->config & HPET_TN_TYPE) != 0 && state->period != 0;
}

uint64_t bb_hpet_stride_(const struct bb_hpet_state_ *state)
{
    if (is_periodic(state)) {
        return state->period;
    }
    return (state->config & HPET_TN_32MODE) != 0 ? BB_BIT64(32) : 0;
}

bool bb_hpet_matched_(const struct bb_hpet_state_ *state, uint64_t count)
{
    return state->distance != HPET_NEVER && count - state->anchor >= state->distance;
}

void bb_hpet_advance_(struct bb_hpet_state_ *state, uint64_t count)
{
    uint64_t elapsed = count - state->anchor;

    if (bb_hpet_matched_(state, count)) {
        uint64_t stride = bb_hpet_stride_(state);

        if (stride == 0) {
            state->distance = HPET_NEVER;
        } else {
            uint64_t past = elapsed - state->distance;

            if (is_periodic(state)) {
                state->comparator += (past / stride + 1) * stride;
                state->comparator &= width_mask(state);
            }
            state->distance = stride - past % stride;
        }
    } else if (state->distance != HPET_NEVER) {
        state->distance -= elapsed;
    }
    state->anchor = count;
}

void bb_hpet_aim_(struct bb_hpet_state_ *state, uint64_t count, enum bb_hpet_aim_ aim,
                  uint64_t late_ticks)
{
    uint64_t mask = width_mask(state);
    uint64_t ahead = (state->comparator - count) & mask;
    uint64_t behind = (count - state->comparator) & mask;

    state->anchor = count;
    if (aim == BB_HPET_AIM_LATE_ && behind != 0 && behind <= late_ticks) {
        /* As if the write had come in time: advancing from there skips what was missed. */
        state->anchor = count - behind;
        state->distance = 0;
    } else if (ahead == 0 && aim == BB_HPET_AIM_NEXT_) {
        state->distance = mask == UINT64_MAX ? HPET_NEVER : mask + 1;
    } else {
        state->distance = ahead;
    }
}
