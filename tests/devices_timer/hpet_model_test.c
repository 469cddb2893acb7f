/* SPDX-License-Identifier: MIT */
/*
 * The HPET against a model of it that is really ticked: a main counter that is incremented, and
 * comparators that are compared after each increment, as the specification words it. Random
 * register writes (biased towards what does something) and random steps of the clock; after each,
 * every register, line and message count must agree.
 *
 * Left to other suites: periods below 100 us, whose matches the device merges.
 */
#include "fixture.h"

#include <criterion/criterion.h>
#include <string.h>

enum {
    SEED = 20261122,
    TIMERS = 3,
    OUT_IRQ0 = 32,
    OUT_IRQ8,
    OUTS,
    PERIOD_MIN = 10000,
    LATE_TICKS = 100000000,
    ROUTES = 0xff0104,
    CONF_BITS = INT_LEVEL | INT_ENB | PERIODIC | VAL_SET | MODE32 | FSB_EN,
};

struct model_timer {
    uint64_t conf;
    uint64_t comparator;
    uint64_t period;
    uint64_t fsb;
    bool met_here; /* aimed at the count at which the counter stands */
};

struct model {
    uint64_t count;
    uint64_t gen_conf;
    uint64_t status;
    unsigned fraction_ns;
    struct model_timer timer[TIMERS];
    bool level[OUTS];
    uint32_t rises[OUTS];
    uint64_t messages;
};

static uint64_t mask_of(const struct model_timer *t)
{
    return (t->conf & MODE32) != 0 ? UINT32_MAX : UINT64_MAX;
}

static bool sets_status(const struct model_timer *t)
{
    return (t->conf & INT_LEVEL) != 0 && (t->conf & FSB_EN) == 0;
}

static int out_of(const struct model *model, unsigned i)
{
    unsigned pin = model->timer[i].conf >> 9 & 31;

    if ((model->gen_conf & LEGACY) != 0 && i < 2) {
        return i == 0 ? OUT_IRQ0 : OUT_IRQ8;
    }
    return (ROUTES >> pin & 1) != 0 ? (int)pin : -1;
}

/* Drives every output anew. */
static void drive(struct model *model)
{
    bool level[OUTS] = {false};
    unsigned i;

    for (i = 0; i < TIMERS; i++) {
        const struct model_timer *t = &model->timer[i];

        if ((model->status >> i & 1) != 0 && sets_status(t) && (t->conf & INT_ENB) != 0 &&
            (model->gen_conf & ENABLE) != 0 && out_of(model, i) >= 0) {
            level[out_of(model, i)] = true;
        }
    }
    for (i = 0; i < OUTS; i++) {
        model->rises[i] += level[i] && !model->level[i];
        model->level[i] = level[i];
    }
}

static void met(struct model *model, unsigned i)
{
    struct model_timer *t = &model->timer[i];

    t->met_here = false;
    if (sets_status(t)) {
        model->status |= BB_BIT64(i);
        drive(model);
    } else if ((t->conf & INT_ENB) != 0) {
        int out = out_of(model, i);

        if ((t->conf & FSB_EN) != 0) {
            model->messages++;
        } else if (out >= 0 && !model->level[out]) {
            model->rises[out]++;
        }
    }
    if ((t->conf & PERIODIC) != 0) {
        t->comparator = (t->comparator + t->period) & mask_of(t);
    }
}

static void advance(struct model *model, uint64_t ns)
{
    unsigned i;

    if ((model->gen_conf & ENABLE) == 0) {
        return;
    }
    ns += model->fraction_ns;
    model->fraction_ns = (unsigned)(ns % TICK_NS);
    for (ns /= TICK_NS; ns > 0; ns--) {
        model->count++;
        for (i = 0; i < TIMERS; i++) {
            struct model_timer *t = &model->timer[i];

            if ((model->count & mask_of(t)) == t->comparator) {
                met(model, i);
            }
        }
    }
}

static void write_gen_conf(struct model *model, uint64_t value)
{
    bool starts = (value & ~model->gen_conf & ENABLE) != 0;
    unsigned i;

    if (((value ^ model->gen_conf) & ENABLE) != 0) {
        model->fraction_ns = 0;
    }
    model->gen_conf = value & (ENABLE | LEGACY);
    drive(model);
    for (i = 0; i < TIMERS && starts; i++) {
        if (model->timer[i].met_here) {
            met(model, i);
        }
    }
}

static void write_counter(struct model *model, uint64_t value)
{
    unsigned i;

    model->count = value;
    model->fraction_ns = 0;
    for (i = 0; i < TIMERS; i++) {
        struct model_timer *t = &model->timer[i];

        t->met_here = (value & mask_of(t)) == t->comparator;
        if (t->met_here && (model->gen_conf & ENABLE) != 0) {
            met(model, i);
        }
    }
}

static void write_conf(struct model *model, unsigned i, uint64_t value)
{
    struct model_timer *t = &model->timer[i];
    uint64_t before = t->conf;
    uint64_t route = value & 0x3e00;

    if ((ROUTES >> (route >> 9) & 1) == 0) {
        route = before & 0x3e00;
    }
    t->conf = (value & CONF_BITS) | route;
    if ((t->conf & PERIODIC) == 0) {
        t->conf &= ~(uint64_t)VAL_SET;
    }
    t->comparator &= mask_of(t);
    t->period &= mask_of(t);
    if (((before ^ t->conf) & (PERIODIC | MODE32)) != 0) {
        t->met_here = false;
    }
    if (!sets_status(t)) {
        model->status &= ~BB_BIT64(i);
    }
    drive(model);
}

static void write_comp(struct model *model, unsigned i, uint64_t value, uint64_t mask)
{
    struct model_timer *t = &model->timer[i];
    bool running = (model->gen_conf & ENABLE) != 0;
    uint64_t behind;

    mask &= mask_of(t);
    if (mask == 0) {
        return;
    }
    t->period = bb_merge(t->period, value, mask);
    if ((t->conf & PERIODIC) != 0 && (t->conf & VAL_SET) == 0) {
        return;
    }
    t->conf &= ~(uint64_t)VAL_SET;
    t->comparator = bb_merge(t->comparator, value, mask);
    behind = (model->count - t->comparator) & mask_of(t);
    t->met_here = behind == 0;
    if (running && behind <= LATE_TICKS) {
        met(model, i);
        if ((t->conf & PERIODIC) != 0 && t->period != 0) {
            /* Past all the periods that went by. */
            t->comparator = (t->comparator + behind / t->period * t->period) & mask_of(t);
        }
    }
}

static void agree(struct machine *m, const struct model *model, uint64_t start, unsigned round)
{
    unsigned i;

#define AGREE(ours, theirs)                                                                        \
    cr_assert_eq((ours), (theirs), "seed %#lx round %u: %s is %#lx, the model's %#lx",             \
                 (unsigned long)start, round, #ours, (unsigned long)(ours),                        \
                 (unsigned long)(theirs))
    AGREE(get(m, MAIN_CNT), model->count);
    AGREE(get(m, GEN_CONF), model->gen_conf);
    AGREE(get(m, GINTR_STA), model->status);
    for (i = 0; i < TIMERS; i++) {
        AGREE(get32(m, conf_of(i)), (model->timer[i].conf | 0x8030));
        AGREE(get(m, comp_of(i)), model->timer[i].comparator);
        AGREE(get(m, fsb_of(i)), model->timer[i].fsb);
    }
    for (i = 0; i < OUTS; i++) {
        const struct recorded_line *line = i == OUT_IRQ0   ? &m->irq0
                                           : i == OUT_IRQ8 ? &m->irq8
                                                           : &m->pin[i];

        AGREE(bb_line_read(line->line).level, model->level[i]);
        AGREE(bb_line_read(line->line).rises, model->rises[i]);
    }
    AGREE(m->messages, model->messages);
#undef AGREE
}

/* A comparator or period near the count; its low half is 0 or at least PERIOD_MIN. */
static uint64_t near(const struct model *model, uint64_t *random)
{
    uint64_t value;

    switch (next_random(random) % 4) {
    case 0:
        value = PERIOD_MIN + next_random(random) % 30000;
        break;
    case 1:
        value = model->count - next_random(random) % 40000;
        break;
    case 2:
        value = model->count;
        break;
    default:
        value = model->count + next_random(random) % 40000;
        break;
    }
    return (value & UINT32_MAX) < PERIOD_MIN ? value + PERIOD_MIN : value;
}

static void one_write(struct machine *m, struct model *model, uint64_t *random)
{
    unsigned i = (unsigned)(next_random(random) % TIMERS);
    uint64_t value = next_random(random);

    switch (next_random(random) % 10) {
    case 0:
        value = next_random(random) % 8 == 0 ? value % 4 : (value & LEGACY) | ENABLE;
        put(m, GEN_CONF, value);
        write_gen_conf(model, value);
        break;
    case 1:
        put(m, GINTR_STA, value);
        model->status &= ~value;
        drive(model);
        break;
    case 2:
        if (next_random(random) % 4 == 0) {
            value = near(model, random) + (next_random(random) % 3 << 32);
            put(m, MAIN_CNT, value);
            write_counter(model, value);
        }
        break;
    case 3:
        put(m, fsb_of(i), value);
        model->timer[i].fsb = value;
        break;
    case 4:
        if (next_random(random) % 2 == 0) {
            value = near(model, random) & UINT32_MAX;
            put32(m, comp_of(i), (uint32_t)value);
            write_comp(model, i, value, UINT32_MAX);
        } else {
            value = next_random(random) % 3;
            put32(m, comp_of(i) + 4, (uint32_t)value);
            write_comp(model, i, value << 32, ~(uint64_t)UINT32_MAX);
        }
        break;
    case 5:
    case 6:
        value = near(model, random);
        put(m, comp_of(i), value);
        write_comp(model, i, value, UINT64_MAX);
        break;
    default:
        value = (value & ~(uint64_t)0x3e00) | route_to((unsigned)(16 + (value >> 40) % 9));
        put(m, conf_of(i), value);
        write_conf(model, i, value);
        break;
    }
}

Test(hpet_model, agrees_with_a_ticked_hpet_whatever_is_written)
{
    uint64_t start = seed(SEED);
    uint64_t random = start;
    uint64_t until = host_ns() + stress_ns();
    unsigned round;

    do {
        struct machine *m = set_up(NULL);
        struct model model;

        memset(&model, 0, sizeof(model));
        start = random;
        for (round = 0; round < TIMERS; round++) {
            model.timer[round].comparator = UINT64_MAX;
        }
        for (round = 0; round < 400; round++) {
            uint64_t ns = next_random(&random) % 200000;

            one_write(m, &model, &random);
            agree(m, &model, start, round);
            if (round % 2 != 0) {
                step_ns(m, ns);
                advance(&model, ns);
                agree(m, &model, start, round);
            }
        }
        tear_down(m);
    } while (host_ns() < until);
}
