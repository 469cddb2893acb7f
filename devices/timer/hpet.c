/* SPDX-License-Identifier: MIT */
/*
 * High Precision Event Timers: registers and creation. IA-PC HPET specification 1.0a.
 *
 * Modelled: a 64-bit main counter, 3 to 32 timers, each 64-bit with a 32-bit mode, one-shot and
 * periodic with value-set, edge- and level-triggered, routed to I/O APIC pins, sent as messages
 * (FSB) or by the legacy replacement mapping. Left out: 32-bit main counters.
 *
 * Where it departs from the specification, and why:
 *  - A comparator written while the counter runs, up to HPET_LATE_NS behind it, matches at once.
 *    The specification matches on equality alone; hardware guests rely on their read, add and
 *    write taking nanoseconds, which here may take as long as the host likes. Further behind, and
 *    in every case while halted, the match is one wrap ahead, as specified.
 *  - Matches of a periodic timer that come too fast for the host, or closer than
 *    HPET_PERIOD_MIN_NS, are merged: one interrupt for several. The comparator reads as if each had
 *    happened.
 *  - Status bits and interrupts come when the expiry is served, which may be after the counter has
 *    been read beyond the match.
 *  - A timer that sends messages is edge-triggered whatever its type says; messages take precedence
 *    over the legacy mapping.
 *  - While ENABLE_CNF is 0 level interrupts are withdrawn; status bits stay (section 2.3.5), and
 *    they interrupt again when it is set.
 *  - Where the specification is silent: in 32-bit mode Tn_COMP has no high half (it reads 0, writes
 *    to it change nothing); VAL_SET is kept in periodic mode only; a write of 64 bits is one write,
 *    also to a comparator with VAL_SET.
 *  - With more than 24 timers the region is longer than the specification's 1 024 bytes, which
 *    could not hold them.
 *  - Accesses other than of 4 and 8 aligned bytes are device errors; reserved registers read 0.
 *
 * Reads take no lock, whatever a writer does or wherever it was stopped; see hpet_internal.h.
 * GEN_CONF and the main counter change at one moment: while ENABLE_CNF changes, the word says so
 * and holds both values, and the counter's own state says which of them is in force.
 */
#include "hpet_internal.h"

_Static_assert(HPET_TIMERS + 24 * HPET_TIMER_STRIDE == BB_HPET_REGION_BYTES,
               "24 timers fill the specified region");

/* The timer that a register at `offset` belongs to; NULL: none. */
static struct bb_hpet_timer_ *timer_at(struct bb_hpet *hpet, uint64_t offset)
{
    uint64_t index = (offset - HPET_TIMERS) / HPET_TIMER_STRIDE;

    return offset >= HPET_TIMERS && index < hpet->timer_count ? &hpet->timer[index] : NULL;
}

static uint64_t read_general(struct bb_hpet *hpet)
{
    for (;;) {
        /* Pairs with write_general(): a counter read after this one is at least as new. */
        uint64_t word = bb_load_acquire(&hpet->general);
        bool running;

        if ((word & HPET_GENERAL_CHANGING) == 0) {
            return word & HPET_GENERAL_BITS;
        }
        (void)bb_counter_read_state(&hpet->counter, &running, NULL);
        /* Relaxed: behind the counter's acquire loads. The number keeps an equal word from being
         * one of a later change. */
        if (bb_load_relaxed(&hpet->general) == word) {
            bool enables = (word & HPET_ENABLE_CNF) != 0;

            return (running == enables ? word : word >> HPET_GENERAL_BEFORE_SHIFT) &
                   HPET_GENERAL_BITS;
        }
    }
}

static uint64_t read_register(struct bb_hpet *hpet, uint64_t offset)
{
    struct bb_hpet_timer_ *timer;

    switch (offset) {
    case HPET_MAIN_CNT:
        return bb_counter_read(&hpet->counter);
    case HPET_GCAP_ID:
        return hpet->capability;
    case HPET_GEN_CONF:
        return read_general(hpet);
    case HPET_GINTR_STA:
        /* Pairs with the stores in fire() and write_status(). */
        return bb_load_acquire(&hpet->status);
    default:
        timer = timer_at(hpet, offset);
        return timer == NULL ? 0 : bb_hpet_timer_read_(timer, (unsigned)offset % HPET_TIMER_STRIDE);
    }
}

/* Out of line, so that a read of the main counter doesn't save registers for this. */
static __attribute__((noinline)) int read_part(struct bb_hpet *hpet, uint64_t offset,
                                               uint64_t *value)
{
    *value = read_register(hpet, offset & ~UINT64_C(7)) >> (offset & 4) * 8;
    return BB_OK;
}

static int hpet_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_hpet *hpet = opaque;

    (void)ctx;
    (void)size; /* only so many low bytes of the value count */
    if (BB_UNLIKELY(offset != HPET_MAIN_CNT)) {
        return read_part(hpet, offset, value);
    }
    *value = bb_counter_read(&hpet->counter);
    return BB_OK;
}

/* Settles and arms every timer as of `now`. */
static int rearm_all(struct bb_ctx *ctx, struct bb_hpet *hpet, const struct bb_hpet_moment_ *now)
{
    int result = BB_OK;
    unsigned i;

    for (i = 0; i < hpet->timer_count; i++) {
        if (now->running) {
            bb_hpet_settle_(ctx, &hpet->timer[i], now->count);
        }
        if (bb_hpet_arm_(ctx, &hpet->timer[i], now) != BB_OK) {
            result = BB_E_DEVICE;
        }
    }
    return result;
}

static void settle_all(struct bb_ctx *ctx, struct bb_hpet *hpet, uint64_t count)
{
    unsigned i;

    for (i = 0; i < hpet->timer_count; i++) {
        bb_hpet_settle_(ctx, &hpet->timer[i], count);
    }
}

static int write_general(struct bb_ctx *ctx, struct bb_hpet *hpet, uint64_t value, uint64_t mask)
{
    uint64_t writable =
        HPET_ENABLE_CNF | ((hpet->capability & HPET_LEG_RT_CAP) != 0 ? HPET_LEG_RT_CNF : 0);
    uint64_t before = hpet->general_now;
    uint64_t after = bb_merge(before, value, mask & writable);
    /* Relaxed: the lock orders writers. */
    uint64_t number = (bb_load_relaxed(&hpet->general) >> HPET_GENERAL_NUMBER_SHIFT) + 1;
    uint64_t word =
        number << HPET_GENERAL_NUMBER_SHIFT | before << HPET_GENERAL_BEFORE_SHIFT | after;
    struct bb_hpet_moment_ now;
    unsigned i;

    if (after == before) {
        return BB_OK;
    }
    if (((after ^ before) & HPET_ENABLE_CNF) == 0) {
        bb_store_release(&hpet->general, word); /* pairs with read_general() */
    } else {
        /* Both stores pair with read_general(): the counter's change lies between them, and is the
         * moment at which the register changes. The counter publishes it by a release. */
        bb_store_release(&hpet->general, word | HPET_GENERAL_CHANGING);
        if ((after & HPET_ENABLE_CNF) != 0) {
            bb_counter_run(&hpet->counter);
            bb_store_release(&hpet->general, word);
        } else {
            uint64_t count = bb_counter_halt(&hpet->counter);

            bb_store_release(&hpet->general, word);
            settle_all(ctx, hpet, count); /* what was met before, with interrupts still enabled */
        }
    }
    hpet->general_now = after;
    for (i = 0; i < hpet->timer_count; i++) {
        bb_hpet_relevel_(ctx, &hpet->timer[i]);
    }
    now = bb_hpet_now_(hpet);
    return rearm_all(ctx, hpet, &now);
}

static int write_status(struct bb_ctx *ctx, struct bb_hpet *hpet, uint64_t value, uint64_t mask)
{
    /* Relaxed: the lock orders writers. */
    uint64_t before = bb_load_relaxed(&hpet->status);
    uint64_t cleared = before & value & mask;
    unsigned i;

    bb_store_release(&hpet->status, before & ~cleared); /* pairs with the read in read_register() */
    for (i = 0; i < hpet->timer_count; i++) {
        if ((cleared & BB_BIT64(i)) != 0) {
            bb_hpet_relevel_(ctx, &hpet->timer[i]);
        }
    }
    return BB_OK;
}

/*
 * Sets the main counter, halted or running. While it runs it is halted first, so that matches up to
 * the very last value are met. Comparators are frozen in between: invariant 3 of hpet_timer.c.
 */
static int write_counter(struct bb_ctx *ctx, struct bb_hpet *hpet, uint64_t value, uint64_t mask)
{
    bool running = (hpet->general_now & HPET_ENABLE_CNF) != 0;
    uint64_t count = bb_counter_halt(&hpet->counter);
    struct bb_hpet_moment_ now;
    unsigned i;

    value = bb_merge(count, value, mask);
    for (i = 0; i < hpet->timer_count; i++) {
        struct bb_hpet_timer_ *timer = &hpet->timer[i];

        if (running) {
            bb_hpet_settle_(ctx, timer, count);
        }
        bb_hpet_publish_(timer, true);
    }
    bb_counter_set(&hpet->counter, value);
    for (i = 0; i < hpet->timer_count; i++) {
        struct bb_hpet_timer_ *timer = &hpet->timer[i];

        bb_hpet_aim_(&timer->state, value, BB_HPET_AIM_EQUAL_, 0);
        timer->held = false;
        bb_hpet_publish_(timer, false);
    }
    if (running) {
        bb_counter_run(&hpet->counter);
    }
    now = bb_hpet_now_(hpet);
    return rearm_all(ctx, hpet, &now);
}

/* Brings a timer up to date before it is changed. */
static struct bb_hpet_moment_ catch_up(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer)
{
    struct bb_hpet_moment_ now = bb_hpet_now_(timer->hpet);

    if (now.running) {
        bb_hpet_settle_(ctx, timer, now.count);
    }
    return now;
}

static int write_timer_config(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer, uint64_t value,
                              uint64_t mask)
{
    struct bb_hpet *hpet = timer->hpet;
    struct bb_hpet_moment_ now = catch_up(ctx, timer);
    struct bb_hpet_state_ *state = &timer->state;
    uint64_t before = state->config;
    uint64_t writable = HPET_TN_WRITABLE | (hpet->msi_capable ? HPET_TN_FSB_EN : 0);
    uint64_t after = bb_merge(before, value, mask & writable);
    uint64_t route = bb_field_get(after, HPET_TN_ROUTE_SHIFT, HPET_TN_ROUTE_BITS);

    if ((timer->route_cap >> route & 1) == 0) {
        after = bb_merge(after, before, HPET_TN_ROUTE); /* not supported: reads back as it was */
    }
    if ((after & HPET_TN_TYPE) == 0) {
        after &= ~HPET_TN_VAL_SET; /* means nothing to a one-shot timer */
    }
    state->config = after;
    if ((after & ~before & HPET_TN_32MODE) != 0) {
        state->comparator &= UINT32_MAX;
        state->period &= UINT32_MAX;
    }
    if (((after ^ before) & (HPET_TN_TYPE | HPET_TN_32MODE)) != 0) {
        bb_hpet_aim_(state, now.count, BB_HPET_AIM_NEXT_, 0);
    }
    bb_hpet_publish_(timer, false);
    if (!bb_hpet_is_level_(timer)) {
        /* Relaxed: the lock orders writers. The store pairs with the read in read_register(). */
        uint64_t status = bb_load_relaxed(&hpet->status);

        bb_store_release(&hpet->status, status & ~BB_BIT64(timer->index));
    }
    bb_hpet_relevel_(ctx, timer);
    return bb_hpet_arm_(ctx, timer, &now);
}

/*
 * Section 2.3.9.2.2: in periodic mode a write is the period, and with VAL_SET, which it uses up,
 * the comparator too. In 32-bit mode the high half is not there.
 */
static int write_comparator(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer, uint64_t value,
                            uint64_t mask)
{
    struct bb_hpet_state_ *state = &timer->state;
    struct bb_hpet_moment_ now;

    if ((state->config & HPET_TN_32MODE) != 0) {
        mask &= UINT32_MAX;
    }
    if (mask == 0) {
        return BB_OK;
    }
    now = catch_up(ctx, timer);
    state->period = bb_merge(state->period, value, mask);
    if ((state->config & (HPET_TN_TYPE | HPET_TN_VAL_SET)) != HPET_TN_TYPE) {
        state->comparator = bb_merge(state->comparator, value, mask);
        state->config &= ~HPET_TN_VAL_SET;
        bb_hpet_aim_(state, now.count, now.running ? BB_HPET_AIM_LATE_ : BB_HPET_AIM_EQUAL_,
                     timer->hpet->late_ticks);
    }
    timer->held = false;
    bb_hpet_publish_(timer, false);
    if (now.running) {
        bb_hpet_settle_(ctx, timer, now.count); /* a match at once, or a late one */
    }
    return bb_hpet_arm_(ctx, timer, &now);
}

static int write_fsb(struct bb_ctx *ctx, struct bb_hpet_timer_ *timer, uint64_t value,
                     uint64_t mask)
{
    struct bb_hpet_moment_ now = catch_up(ctx, timer);

    timer->state.fsb = bb_merge(timer->state.fsb, value, mask);
    bb_hpet_publish_(timer, false);
    return bb_hpet_arm_(ctx, timer, &now);
}

static int write_locked(struct bb_ctx *ctx, struct bb_hpet *hpet, uint64_t offset, uint64_t value,
                        uint64_t mask)
{
    struct bb_hpet_timer_ *timer = timer_at(hpet, offset);

    switch (offset) {
    case HPET_GEN_CONF:
        return write_general(ctx, hpet, value, mask);
    case HPET_GINTR_STA:
        return write_status(ctx, hpet, value, mask);
    case HPET_MAIN_CNT:
        return write_counter(ctx, hpet, value, mask);
    }
    if (timer != NULL) {
        switch (offset % HPET_TIMER_STRIDE) {
        case HPET_TN_CONF:
            return write_timer_config(ctx, timer, value, mask);
        case HPET_TN_COMP:
            return write_comparator(ctx, timer, value, mask);
        case HPET_TN_FSB:
            return write_fsb(ctx, timer, value, mask);
        }
    }
    return BB_OK; /* read-only or reserved */
}

static int hpet_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_hpet *hpet = opaque;
    unsigned shift = (unsigned)(offset & 4) * 8;
    int result;

    bb_device_lock(ctx, hpet->device);
    result = write_locked(ctx, hpet, offset & ~UINT64_C(7), value << shift,
                          bb_mask_bytes(size) << shift);
    bb_device_unlock(ctx, hpet->device);
    return result;
}

static const struct bb_region_ops region_ops = {.read = hpet_read, .write = hpet_write};

static void add_path(struct bb_hpet *hpet, const char *name, uint64_t first, uint64_t last,
                     enum bb_path read, enum bb_path write)
{
    hpet->path[hpet->path_count++] = (struct bb_path_row){
        .name = name,
        .first = first,
        .last = last,
        .read = read,
        .write = write,
        .waits_for = write == BB_PATH_NARROW_LOCK ? "the HPET's device lock" : NULL,
    };
}

/* The table of paths: all registers of `size_bytes`, in order and without gaps. */
static void fill_paths(struct bb_hpet *hpet, uint64_t size_bytes)
{
    const enum bb_path wait_free = BB_PATH_WAIT_FREE;
    const enum bb_path lock_free = BB_PATH_LOCK_FREE;
    const enum bb_path locked = BB_PATH_NARROW_LOCK;
    uint64_t first = HPET_TIMERS;
    unsigned i;

    add_path(hpet, "GCAP_ID", HPET_GCAP_ID, 0x007, wait_free, locked);
    add_path(hpet, "reserved", 0x008, 0x00f, wait_free, locked);
    add_path(hpet, "GEN_CONF", HPET_GEN_CONF, 0x017, lock_free, locked);
    add_path(hpet, "reserved", 0x018, 0x01f, wait_free, locked);
    add_path(hpet, "GINTR_STA", HPET_GINTR_STA, 0x027, wait_free, locked);
    add_path(hpet, "reserved", 0x028, 0x0ef, wait_free, locked);
    add_path(hpet, "MAIN_CNT", HPET_MAIN_CNT, 0x0f7, lock_free, locked);
    add_path(hpet, "reserved", 0x0f8, 0x0ff, wait_free, locked);
    for (i = 0; i < hpet->timer_count; i++, first += HPET_TIMER_STRIDE) {
        add_path(hpet, "Tn_CONF", first, first + 0x07, lock_free, locked);
        add_path(hpet, "Tn_COMP", first + 0x08, first + 0x0f, lock_free, locked);
        add_path(hpet, "Tn_FSB_INT_ROUTE", first + 0x10, first + 0x17, lock_free, locked);
        add_path(hpet, "reserved", first + 0x18, first + 0x1f, wait_free, locked);
    }
    if (first < size_bytes) {
        add_path(hpet, "reserved", first, size_bytes - 1, wait_free, locked);
    }
}

/* Removal is complete: sources, timers, regions are gone already. */
static void hpet_destroy(void *opaque)
{
    struct bb_hpet *hpet = opaque;

    bb_device_free(hpet->engine, hpet, sizeof(*hpet));
}

static const struct bb_device_ops device_ops = {.destroy = hpet_destroy};

static int connect(struct bb_ctx *ctx, struct bb_hpet *hpet, unsigned out, struct bb_line *line,
                   struct bb_error *err)
{
    if (line == NULL) {
        return BB_OK;
    }
    return bb_source_create(ctx, hpet->device, line, &hpet->out[out].source, err);
}

static int make_timer(struct bb_ctx *ctx, struct bb_hpet *hpet, unsigned index, uint32_t route_cap,
                      struct bb_error *err)
{
    struct bb_hpet_timer_ *timer = &hpet->timer[index];
    const struct bb_device_timer_config expiry = {
        .expired = bb_hpet_expired_, .opaque = timer, .locked = true};

    timer->hpet = hpet;
    timer->index = index;
    timer->route_cap = route_cap;
    timer->out = BB_HPET_OUT_NONE_;
    timer->state.comparator = UINT64_MAX; /* its reset value (section 2.3.9.1) */
    bb_hpet_aim_(&timer->state, 0, BB_HPET_AIM_EQUAL_, 0);
    bb_hpet_init_published_(timer);
    return bb_device_timer_create(ctx, hpet->device, &expiry, &timer->expiry, err);
}

/* Everything that belongs to the device and goes with it. */
static int make_parts(struct bb_ctx *ctx, struct bb_hpet *hpet, const struct bb_hpet_config *config,
                      struct bb_error *err)
{
    uint64_t needed = HPET_TIMERS + (uint64_t)hpet->timer_count * HPET_TIMER_STRIDE;
    struct bb_region_config region = {
        .name = config->name != NULL ? config->name : "hpet",
        .size_bytes = needed > BB_HPET_REGION_BYTES ? needed : BB_HPET_REGION_BYTES,
        .ops = &region_ops,
        .opaque = hpet,
        .klass = BB_CLASS_LOCKFREE,
        .rules = {.valid_min = 4, .valid_max = 8, .impl_min = 4, .impl_max = 8},
        .paths = hpet->path,
    };
    uint32_t routes = 0;
    int result = BB_OK;
    unsigned i;

    for (i = 0; i < hpet->timer_count && result == BB_OK; i++) {
        result = make_timer(ctx, hpet, i, config->route_cap[i], err);
        routes |= config->route_cap[i];
    }
    for (i = 0; i < BB_HPET_PINS && result == BB_OK; i++) {
        if ((routes >> i & 1) != 0) {
            result = connect(ctx, hpet, i, config->lines[i], err);
        }
    }
    if (result == BB_OK && config->legacy_capable) {
        result = connect(ctx, hpet, BB_HPET_OUT_IRQ0_, config->legacy_irq0, err);
    }
    if (result == BB_OK && config->legacy_capable) {
        result = connect(ctx, hpet, BB_HPET_OUT_IRQ8_, config->legacy_irq8, err);
    }
    if (result != BB_OK) {
        return result;
    }
    fill_paths(hpet, region.size_bytes);
    region.path_count = hpet->path_count;
    return bb_device_region_create(ctx, hpet->device, &region, &hpet->region, err);
}

int bb_hpet_create(struct bb_ctx *ctx, const struct bb_hpet_config *config, struct bb_hpet **hpet,
                   struct bb_error *err)
{
    unsigned timers = config->timers != 0 ? config->timers : BB_HPET_TIMERS_MIN;
    uint64_t tick_ns = config->tick_ns != 0 ? config->tick_ns : 10;
    uint64_t revision = config->revision_id != 0 ? config->revision_id : 1;
    uint64_t vendor = config->vendor_id != 0 ? config->vendor_id : 0x8086;
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_device_config device = {.name = config->name != NULL ? config->name : "hpet",
                                      .ops = &device_ops};
    struct bb_time_source source;
    struct bb_hpet *made;
    int result;

    if (config->clock == NULL) {
        return bb_error_set(err, BB_E_INVAL, "an HPET needs a clock: the engine's");
    }
    if (timers < BB_HPET_TIMERS_MIN || timers > BB_HPET_TIMERS_MAX) {
        return bb_error_set(err, BB_E_RANGE, "an HPET has 3 to 32 timers, not %u", timers);
    }
    if (tick_ns > 100) {
        return bb_error_set(err, BB_E_RANGE, "an HPET's tick is 1 to 100 ns, not %llu",
                            (unsigned long long)tick_ns);
    }
    made = bb_device_alloc(engine, sizeof(*made));
    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for an HPET");
    }
    made->engine = engine;
    made->timer_count = timers;
    made->tick_ns = tick_ns;
    made->late_ticks = HPET_LATE_NS / tick_ns;
    made->hold_ticks = HPET_PERIOD_MIN_NS / tick_ns;
    made->msi_capable = config->msi_capable;
    made->capability = revision | (uint64_t)(timers - 1) << HPET_NUM_TIM_CAP_SHIFT |
                       HPET_COUNT_SIZE_CAP | (config->legacy_capable ? HPET_LEG_RT_CAP : 0) |
                       vendor << HPET_VENDOR_ID_SHIFT | tick_ns * 1000000 << HPET_CLK_PERIOD_SHIFT;
    source = bb_clock_source(config->clock);
    bb_counter_init(&made->counter, &source, tick_ns);
    device.opaque = made;
    result = bb_device_create(ctx, &device, &made->device, err);
    if (result != BB_OK) {
        hpet_destroy(made);
        return result;
    }
    result = make_parts(ctx, made, config, err);
    if (result != BB_OK) {
        /* Takes all parts with it, and `made` by its hook; where it may, before this returns, so
         * that the caller can destroy the lines. */
        if (bb_device_remove_wait(ctx, made->device, NULL) != BB_OK) {
            (void)bb_device_remove(ctx, made->device, NULL, NULL, NULL);
        }
        return result;
    }
    *hpet = made;
    return BB_OK;
}

struct bb_device *bb_hpet_device(const struct bb_hpet *hpet)
{
    return hpet->device;
}

struct bb_region *bb_hpet_region(const struct bb_hpet *hpet)
{
    return hpet->region;
}

uint32_t bb_hpet_block_id(const struct bb_hpet *hpet)
{
    return (uint32_t)hpet->capability;
}
