/* SPDX-License-Identifier: MIT */
/*
 * Counters that are halted, restarted and set while others read them; counter.h states the
 * problem. This is the argument.
 *
 * An era is a stretch of the counter's life in which its value is one function of source time.
 * Eras are numbered; era n is described by slot n mod BB_COUNTER_ERAS, and the era word names the
 * newest era and its phase: RUNNING, then perhaps STOPPING and HALTED, or HALTED from the start.
 * Era words only ever grow, so equal words mean that nothing happened in between.
 *
 * Writers (excluded from each other by the caller) change it so:
 *   publish:  slot.number, then the slot's other fields, then the era word. Each store after the
 *             first is a release.
 *   halt:     RUNNING -> STOPPING by a read-modify-write, full fence; then as any helper.
 *   help:     (anyone who sees STOPPING) sample the source, CAS it into slot.halt_ns, CAS
 *             STOPPING -> HALTED.
 *
 * A read that sees the same RUNNING word before and after its sample returns the value at the
 * sample. Any other read returns the value of a transition that it overlapped: that of the halt
 * where the newest era is stopped, the value with which it began where it runs.
 *
 * Why invariant A of counter.h holds:
 *  1. An undecided halt_ns carries its era's number, so a helper that was stalled while its slot
 *     went to another era fails its CAS; likewise the era words of its second CAS are unique.
 *     Hence a halt's time is decided once, for its own era, and never changes.
 *  2. A validated read's sample precedes its second load of RUNNING(n), which precedes STOPPING(n)
 *     becoming visible (one word, one order), which precedes every helper's load of it, which
 *     precedes that helper's sample. The source is monotonic, so decided time >= sample: no value
 *     of era n is above the value at which era n halts. The sample stays behind the first load by
 *     the source's own order, or a fence; the second load behind the sample because its address
 *     depends on it (bb_zero_after_()); the writer's sample behind its own STOPPING by the full
 *     fence and the source's order. In a counter over a counter the outer validation is a load
 *     behind the inner one, an acquire, so one fence before the innermost sample serves all
 *     levels; an inner value that comes from memory alone is ordered by acquire loads.
 *  3. An era that follows a halt by bb_counter_run() begins with the value of the halt, and a
 *     value of it is its start value plus something that is not negative.
 *  4. Returning the start value of a running era m that was not current when the read began is
 *     right because m was published during the read: the read takes effect at that moment, before
 *     every validated read of era m. The same holds for a halt that a read ran into.
 *  5. Fields are of the era whose number the read believes them to be: a field of a later era was
 *     stored by a release after slot.number, so whoever loads it (acquire) and then loads number
 *     finds another one, and starts again. The validated path needs no such check: a slot is
 *     given away only after the era word has changed.
 *
 * Why invariant B holds: nothing here waits. A read repeats only when its slot was given away,
 * which takes BB_COUNTER_ERAS more eras; a STOPPING left by a stalled writer is finished by the
 * reader. A helper's CAS that fails has been done by another.
 *
 * The argument about samples uses real time, which loads of the processor respect (x86 TSO, Armv8
 * with acquire loads: a store becomes visible to all other threads at once). It is not derivable
 * from C11's happens-before alone, since validation is a load that reads an older value.
 */
#include "counter.h"

#include <assert.h>

#include "timers_internal.h"

static uint64_t era_word(uint64_t number, enum bb_era_phase_ phase)
{
    return number << BB_ERA_SHIFT_ | phase;
}

static uint64_t undecided(uint64_t number)
{
    return BB_TIME_LIMIT_ | number;
}

/* The source, sampled after every earlier load; stores that follow can't be seen before it. */
static bb_ns_t sample(const struct bb_counter *counter)
{
    bb_ns_t now_ns;

    if (counter->source.ordered) {
        return counter->source.now_ns(counter->source.opaque);
    }
    bb_load_fence_serializing();
    now_ns = counter->source.now_ns(counter->source.opaque);
    bb_load_fence_serializing();
    return now_ns;
}

/* Makes a new era, RUNNING or HALTED, that begins now with `value`. Writers only. */
static void publish(struct bb_counter *counter, enum bb_era_phase_ phase, uint64_t value)
{
    /* Relaxed: only writers change the number, and they exclude each other. */
    uint64_t number = (bb_load_relaxed(&counter->era) >> BB_ERA_SHIFT_) + 1;
    unsigned i = (unsigned)number % BB_COUNTER_ERAS;
    bb_ns_t now_ns = sample(counter);

    /* Relaxed: ordered by the releases below, for bb_counter_transition_(). */
    bb_store_relaxed(&counter->slot[i].number, number);
    /* Pair with the loads of the same fields in bb_counter_sample_() and _transition_(). */
    bb_store_release(&counter->slot[i].start_ns, now_ns);
    bb_store_release(&counter->slot[i].start_value, value);
    bb_store_release(&counter->slot[i].halt_ns,
                     phase == BB_ERA_RUNNING_ ? undecided(number) : now_ns);
    /* Pairs with the first load of the era word in bb_counter_sample_(). */
    bb_store_release(&counter->era, era_word(number, phase));
}

/* Decides the halt of era `number`, unless that is done or the era is long gone. Anyone. */
static void help_halt(struct bb_counter *counter, uint64_t number)
{
    unsigned i = (unsigned)number % BB_COUNTER_ERAS;
    uint64_t expected = undecided(number);

    /* Relaxed: an undecided value only saves no work; the CAS judges. */
    if (bb_load_relaxed(&counter->slot[i].halt_ns) == expected) {
        /* Pairs with publish(); of another era only where the CAS below fails. */
        bb_ns_t start_ns = bb_load_acquire(&counter->slot[i].start_ns);
        bb_ns_t now_ns = sample(counter);

        assert(now_ns < BB_TIME_LIMIT_);
        /* Pairs with the load of halt_ns in bb_counter_transition_(), on other threads. */
        (void)bb_cas_acq_rel(&counter->slot[i].halt_ns, &expected,
                             now_ns > start_ns ? now_ns : start_ns);
    }
    expected = era_word(number, BB_ERA_STOPPING_);
    /* Pairs with the first load in bb_counter_sample_(): HALTED is seen with its time decided. */
    (void)bb_cas_acq_rel(&counter->era, &expected, era_word(number, BB_ERA_HALTED_));
}

struct bb_counter_state_ bb_counter_transition_(struct bb_counter *counter, uint64_t first)
{
    uint64_t era = first;

    if ((era & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_) {
        era = bb_load_acquire(&counter->era); /* pairs with publish() and help_halt() */
    }
    for (;;) {
        uint64_t number = era >> BB_ERA_SHIFT_;
        unsigned i = (unsigned)number % BB_COUNTER_ERAS;
        bool running = (era & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_;
        bb_ns_t start_ns, end_ns;
        uint64_t start_value;

        if ((era & BB_ERA_PHASE_MASK_) == BB_ERA_STOPPING_) {
            help_halt(counter, number);
        }
        /* Pair with publish() (all three) and help_halt() (halt_ns). */
        start_ns = bb_load_acquire(&counter->slot[i].start_ns);
        start_value = bb_load_acquire(&counter->slot[i].start_value);
        end_ns = running ? start_ns : bb_load_acquire(&counter->slot[i].halt_ns);
        /* Relaxed: kept behind the loads above by their acquires; point 5 of the argument. */
        if (bb_load_relaxed(&counter->slot[i].number) == number) {
            return (struct bb_counter_state_){
                .value = start_value + bb_counter_ticks_(counter, end_ns - start_ns),
                .source_ns = end_ns,
                .running = running,
            };
        }
        era = bb_load_acquire(&counter->era); /* pairs with publish() and help_halt() */
    }
}

static struct bb_counter_state_ read_state(struct bb_counter *counter)
{
    return bb_counter_sample_(counter, counter->source.now_ns, counter->source.opaque,
                              counter->source.ordered, false);
}

void bb_counter_halt_begin_(struct bb_counter *counter)
{
    /* Pairs with the loads of the era word in bb_counter_sample_(). */
    uint64_t era = bb_fetch_add_acq_rel(&counter->era, BB_ERA_STOPPING_ - BB_ERA_RUNNING_);

    assert((era & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_);
    (void)era;
    /*
     * STOPPING before this thread's sample in help_halt(). Otherwise a reader could validate a
     * sample taken after ours and return a value above the one at which the counter halts.
     */
    bb_fence_full();
}

void bb_counter_halt_finish_(struct bb_counter *counter)
{
    /* Relaxed: the number is this writer's own doing; only the phase may have been helped on. */
    uint64_t era = bb_load_relaxed(&counter->era);

    if ((era & BB_ERA_PHASE_MASK_) == BB_ERA_STOPPING_) {
        help_halt(counter, era >> BB_ERA_SHIFT_);
    }
}

static bool is_running(struct bb_counter *counter)
{
    /* A halt left half done by a writer that died is finished first. */
    bb_counter_halt_finish_(counter);
    /* Relaxed: writers only. */
    return (bb_load_relaxed(&counter->era) & BB_ERA_PHASE_MASK_) == BB_ERA_RUNNING_;
}

void bb_counter_init(struct bb_counter *counter, const struct bb_time_source *source,
                     uint64_t tick_ns)
{
    *counter = (struct bb_counter){
        .source = *source,
        .tick_ns = tick_ns == 0 ? 1 : tick_ns,
        .era = era_word(0, BB_ERA_HALTED_),
    };
    if (counter->tick_ns > 1) {
        uint64_t reciprocal = UINT64_MAX / counter->tick_ns + 1;
        uint64_t excess = reciprocal * counter->tick_ns; /* e of bb_counter_ticks_(), mod 2^64 */

        counter->tick_reciprocal = reciprocal;
        counter->reciprocal_below = excess == 0 ? UINT64_MAX : UINT64_MAX / excess;
    }
}

uint64_t bb_counter_read(struct bb_counter *counter)
{
    /* A device's counter over its engine's clock: both levels in one piece, with no call between.
     */
    if (BB_LIKELY(counter->source.now_ns == bb_clock_virtual_now_)) {
        return bb_counter_sample_(counter, bb_virtual_now_, counter->source.opaque, true, false)
            .value;
    }
    return read_state(counter).value;
}

uint64_t bb_counter_read_state(struct bb_counter *counter, bool *running, bb_ns_t *source_ns)
{
    struct bb_counter_state_ state = read_state(counter);

    *running = state.running;
    if (source_ns != NULL) {
        *source_ns = state.source_ns;
    }
    return state.value;
}

uint64_t bb_counter_halt(struct bb_counter *counter)
{
    if (is_running(counter)) {
        bb_counter_halt_begin_(counter);
        bb_counter_halt_finish_(counter);
    }
    return read_state(counter).value;
}

void bb_counter_run(struct bb_counter *counter)
{
    if (!is_running(counter)) {
        publish(counter, BB_ERA_RUNNING_, read_state(counter).value);
    }
}

void bb_counter_set(struct bb_counter *counter, uint64_t value)
{
    publish(counter, is_running(counter) ? BB_ERA_RUNNING_ : BB_ERA_HALTED_, value);
}

bb_ns_t bb_counter_time_of(struct bb_counter *counter, uint64_t value)
{
    uint64_t era, ticks, ns, start_value;
    bb_ns_t start_ns, at_ns;
    unsigned i;

    do {
        era = bb_load_acquire(&counter->era); /* pairs with publish() and the halt's two halves */
        if ((era & BB_ERA_PHASE_MASK_) != BB_ERA_RUNNING_) {
            return UINT64_MAX;
        }
        i = (unsigned)(era >> BB_ERA_SHIFT_) % BB_COUNTER_ERAS;
        /* Pair with publish(). */
        start_ns = bb_load_acquire(&counter->slot[i].start_ns);
        start_value = bb_load_acquire(&counter->slot[i].start_value);
        /* Relaxed: point 5 of the argument. */
    } while (bb_load_relaxed(&counter->slot[i].number) != era >> BB_ERA_SHIFT_);
    ticks = value > start_value ? value - start_value : 0;
    if (__builtin_mul_overflow(ticks, counter->tick_ns, &ns) ||
        __builtin_add_overflow(start_ns, ns, &at_ns) || at_ns >= BB_TIME_LIMIT_) {
        return UINT64_MAX;
    }
    return at_ns;
}
