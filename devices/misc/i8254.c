/* SPDX-License-Identifier: MIT */
/*
 * Intel 8254 programmable interval timer (order number 231164) and the PC/AT's system control port
 * B. A counter is derived: ticks elapsed since it was loaded (or triggered), in the engine's time.
 *
 * All state is guarded by the device's lock. Channels 0 and 1 have their gates tied high, channel
 * 2's is bit 0 of port B. Channel 0's interrupt: in mode 0 its line is the output's level; in the
 * periodic modes and mode 4, each rise of the output is a pulse.
 *
 * Deviations: a count takes effect with its last byte, not a clock later, and in modes 2 and 3 at
 * once, not at the end of the period. Interrupts that fall due while one is late are merged with
 * it, and come no oftener than every 25 microseconds, whatever the count.
 * Left out: the speaker, saved state.
 */
#include "i8254.h"

#include "../../base/bits.h"

enum { CHANNELS = 3, CONTROL = 3 };

/* Control word. */
enum { CW_SC_LOW = 6, CW_RW_LOW = 4, CW_MODE_LOW = 1, CW_BCD = 0x01, CW_READ_BACK = 3 };
enum { RW_LATCH = 0, RW_LOW = 1, RW_HIGH = 2, RW_BOTH = 3 };
/* Read-back command: bits that are 0 ask for it. */
enum { RB_NO_COUNT = 0x20, RB_NO_STATUS = 0x10 };
/* Status byte. */
enum { STATUS_OUT = 0x80, STATUS_NULL = 0x40 };
/* Port B. */
enum { PB_GATE2 = 0x01, PB_WRITABLE = 0x0f, PB_REFRESH = 0x10, PB_OUT2 = 0x20 };

enum { REFRESH_NS = 15085, IRQ_PERIOD_MIN_NS = 25000 };

#define NS_PER_S UINT64_C(1000000000)

struct channel {
    uint8_t mode;   /* 0 to 5 */
    uint8_t access; /* RW_* */
    bool bcd;
    bool gate;
    bool loaded;     /* the counting element has its count */
    bool counts;     /* it is counting: since start_ns, on top of `before` */
    bool null_count; /* a count is awaited, or awaits its trigger */
    uint32_t reload; /* as written; 0: none yet */
    uint32_t count;  /* that the counting element began with, 1 to 65 536 */
    bb_ns_t start_ns;
    uint64_t before; /* ticks counted before start_ns */

    uint8_t low_written;
    bool high_write_next;
    bool high_read_next;
    uint16_t latch;
    uint8_t latch_bytes; /* of the latch yet to be read */
    bool latch_high_next;
    bool status_latched;
    uint8_t status;
};

struct bb_i8254 {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region[BB_I8254_PARTS];
    struct bb_source *irq;
    struct bb_device_timer *timer;
    struct bb_clock *clock;

    /* Guarded by the device's lock. */
    struct channel channel[CHANNELS];
    uint8_t port_b;
    uint64_t rise_tick; /* of channel 0's next interrupt; UINT64_MAX: none */
};

static uint64_t ticks_of_ns(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * BB_I8254_HZ / NS_PER_S);
}

/* The first nanosecond at which that many ticks have passed. */
static uint64_t ns_of_ticks(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_S + BB_I8254_HZ - 1) / BB_I8254_HZ);
}

static uint64_t elapsed(const struct channel *ch, bb_ns_t now_ns)
{
    return ch->before + (ch->counts ? ticks_of_ns(now_ns - ch->start_ns) : 0);
}

static bool output(const struct channel *ch, bb_ns_t now_ns)
{
    uint64_t t = elapsed(ch, now_ns);
    switch (ch->mode) {
    case 0:
        return ch->loaded && t >= ch->count;
    case 1:
        return !ch->loaded || t >= ch->count;
    case 2:
        return !ch->counts || t % ch->count != ch->count - 1;
    case 3:
        return !ch->counts || t % ch->count < (ch->count + 1) / 2;
    default:
        return !ch->loaded || t != ch->count;
    }
}

static uint16_t to_bcd(uint32_t value)
{
    return (uint16_t)(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 |
                      value / 1000 % 10 << 12);
}

static uint32_t from_bcd(uint32_t value)
{
    return (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 +
           (value >> 12 & 15) * 1000;
}

/* What the counting element holds. */
static uint16_t count_now(const struct channel *ch, bb_ns_t now_ns)
{
    uint32_t modulus = ch->bcd ? 10000 : 65536;
    uint64_t t = elapsed(ch, now_ns);
    uint32_t value = ch->count;
    if (ch->loaded && ch->mode == 2) {
        value -= (uint32_t)(t % ch->count);
    } else if (ch->loaded && ch->mode == 3) {
        value = (value - (uint32_t)(2 * t % ch->count)) & ~1u;
    } else if (ch->loaded) {
        value += modulus - (uint32_t)(t % modulus);
    }
    value %= modulus;
    return ch->bcd ? to_bcd(value) : (uint16_t)value;
}

static void start(struct channel *ch, bb_ns_t now_ns)
{
    ch->count = ch->reload;
    ch->start_ns = now_ns;
    ch->before = 0;
    ch->loaded = true;
    ch->null_count = false;
}

static void load(struct channel *ch, uint16_t written, bb_ns_t now_ns)
{
    uint32_t value = ch->bcd ? from_bcd(written) : written;
    ch->reload = value != 0 ? value : ch->bcd ? 10000 : 65536;
    ch->null_count = true;
    if (ch->mode == 1 || ch->mode == 5) {
        return; /* their gate starts them */
    }
    start(ch, now_ns);
    ch->counts = ch->gate;
}

static void set_gate(struct channel *ch, bool gate, bb_ns_t now_ns)
{
    if (gate == ch->gate) {
        return;
    }
    ch->gate = gate;
    switch (ch->mode) {
    case 0:
    case 4: /* counts while high */
        if (!gate) {
            ch->before = elapsed(ch, now_ns);
        }
        ch->start_ns = now_ns;
        ch->counts = gate && ch->loaded;
        break;
    case 2:
    case 3: /* counts while high, anew after each rise */
        if (gate && ch->loaded) {
            start(ch, now_ns);
        }
        ch->before = 0;
        ch->counts = gate && ch->loaded;
        break;
    default: /* a rise triggers */
        if (gate && ch->reload != 0) {
            start(ch, now_ns);
            ch->counts = true;
        }
        break;
    }
}

/* Works out channel 0's next rise, and arms the timer for it. */
static void plan_irq_locked(struct bb_ctx *ctx, struct bb_i8254 *dev, bb_ns_t now_ns,
                            bb_ns_t earliest_ns)
{
    const struct channel *ch = &dev->channel[0];
    uint64_t t = elapsed(ch, now_ns);
    dev->rise_tick = UINT64_MAX;
    if (ch->counts) {
        switch (ch->mode) {
        case 0:
            dev->rise_tick = t < ch->count ? ch->count : UINT64_MAX;
            break;
        case 2:
        case 3:
            dev->rise_tick = (t / ch->count + 1) * ch->count;
            break;
        case 4:
            dev->rise_tick = t <= ch->count ? ch->count + 1u : UINT64_MAX;
            break;
        default:
            break;
        }
    }
    bb_source_set(ctx, dev->irq, ch->mode == 0 && output(ch, now_ns));
    if (dev->rise_tick == UINT64_MAX) {
        bb_device_timer_disarm(ctx, dev->timer);
        return;
    }
    bb_ns_t due_ns = ch->start_ns + ns_of_ticks(dev->rise_tick - ch->before);
    /* Where memory is short the interrupt is lost: the guest's next write plans anew. */
    (void)bb_device_timer_arm(ctx, dev->timer, due_ns > earliest_ns ? due_ns : earliest_ns);
}

static void expired(struct bb_ctx *ctx, void *opaque, bb_ns_t deadline_ns)
{
    struct bb_i8254 *dev = opaque;
    (void)deadline_ns;
    bb_ns_t now_ns = bb_clock_now_ns(dev->clock);
    if (dev->rise_tick == UINT64_MAX) {
        return; /* disarmed too late for this expiry */
    }
    if (elapsed(&dev->channel[0], now_ns) < dev->rise_tick) {
        plan_irq_locked(ctx, dev, now_ns, now_ns); /* reprogrammed meanwhile */
        return;
    }
    if (dev->channel[0].mode != 0) {
        bb_source_pulse(ctx, dev->irq);
    }
    plan_irq_locked(ctx, dev, now_ns, now_ns + IRQ_PERIOD_MIN_NS);
}

static void latch_count(struct channel *ch, bb_ns_t now_ns)
{
    if (ch->latch_bytes == 0) { /* a second latch before the first is read does nothing */
        ch->latch = count_now(ch, now_ns);
        ch->latch_bytes = ch->access == RW_BOTH ? 2 : 1;
        ch->latch_high_next = ch->access == RW_HIGH;
    }
}

static void latch_status(struct channel *ch, bb_ns_t now_ns)
{
    if (!ch->status_latched) {
        ch->status =
            (uint8_t)((output(ch, now_ns) ? STATUS_OUT : 0) | (ch->null_count ? STATUS_NULL : 0) |
                      ch->access << CW_RW_LOW | ch->mode << CW_MODE_LOW | (ch->bcd ? CW_BCD : 0));
        ch->status_latched = true;
    }
}

static void control_locked(struct bb_ctx *ctx, struct bb_i8254 *dev, uint8_t word, bb_ns_t now_ns)
{
    unsigned n = word >> CW_SC_LOW;
    if (n == CW_READ_BACK) {
        for (unsigned i = 0; i < CHANNELS; i++) {
            if ((word & 2u << i) == 0) {
                continue;
            }
            if ((word & RB_NO_COUNT) == 0) {
                latch_count(&dev->channel[i], now_ns);
            }
            if ((word & RB_NO_STATUS) == 0) {
                latch_status(&dev->channel[i], now_ns);
            }
        }
        return;
    }
    struct channel *ch = &dev->channel[n];
    uint8_t access = word >> CW_RW_LOW & 3;
    if (access == RW_LATCH) {
        latch_count(ch, now_ns);
        return;
    }
    uint8_t mode = word >> CW_MODE_LOW & 7;
    *ch = (struct channel){
        .mode = mode > 5 ? mode - 4 : mode,
        .access = access,
        .bcd = (word & CW_BCD) != 0,
        .gate = ch->gate,
        .null_count = true,
        .count = ch->count,
    };
    if (n == 0) {
        plan_irq_locked(ctx, dev, now_ns, now_ns);
    }
}

static void count_written_locked(struct bb_ctx *ctx, struct bb_i8254 *dev, unsigned n, uint8_t byte,
                                 bb_ns_t now_ns)
{
    struct channel *ch = &dev->channel[n];
    if (ch->access == RW_LOW) {
        load(ch, byte, now_ns);
    } else if (ch->access == RW_HIGH) {
        load(ch, (uint16_t)(byte << 8), now_ns);
    } else if (!ch->high_write_next) {
        ch->low_written = byte;
        ch->high_write_next = true;
        ch->null_count = true;
        if (ch->mode == 0) {
            /* The first byte stops the count and takes the output low. */
            ch->loaded = false;
            ch->counts = false;
            ch->before = 0;
        }
    } else {
        ch->high_write_next = false;
        load(ch, (uint16_t)(byte << 8 | ch->low_written), now_ns);
    }
    if (n == 0) {
        plan_irq_locked(ctx, dev, now_ns, now_ns);
    }
}

static uint8_t count_read(struct channel *ch, bb_ns_t now_ns)
{
    if (ch->status_latched) {
        ch->status_latched = false;
        return ch->status;
    }
    if (ch->latch_bytes != 0) {
        bool high = ch->latch_high_next;
        ch->latch_bytes--;
        ch->latch_high_next = true;
        return (uint8_t)(high ? ch->latch >> 8 : ch->latch);
    }
    uint16_t count = count_now(ch, now_ns);
    bool high = ch->access == RW_HIGH || (ch->access == RW_BOTH && ch->high_read_next);
    ch->high_read_next = !ch->high_read_next;
    return (uint8_t)(high ? count >> 8 : count);
}

static int counters_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                         uint64_t *value)
{
    struct bb_i8254 *dev = opaque;
    (void)ctx;
    (void)size;
    if (offset == CONTROL) {
        *value = 0xff; /* write-only */
    } else {
        *value = count_read(&dev->channel[offset], bb_clock_now_ns(dev->clock));
    }
    return BB_OK;
}

static int counters_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t value)
{
    struct bb_i8254 *dev = opaque;
    bb_ns_t now_ns = bb_clock_now_ns(dev->clock);
    (void)size;
    if (offset == CONTROL) {
        control_locked(ctx, dev, (uint8_t)value, now_ns);
    } else {
        count_written_locked(ctx, dev, (unsigned)offset, (uint8_t)value, now_ns);
    }
    return BB_OK;
}

static int port_b_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct bb_i8254 *dev = opaque;
    bb_ns_t now_ns = bb_clock_now_ns(dev->clock);
    (void)ctx;
    (void)offset;
    (void)size;
    *value = dev->port_b | (now_ns / REFRESH_NS % 2 != 0 ? PB_REFRESH : 0u) |
             (output(&dev->channel[2], now_ns) ? PB_OUT2 : 0u);
    return BB_OK;
}

static int port_b_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct bb_i8254 *dev = opaque;
    (void)ctx;
    (void)offset;
    (void)size;
    dev->port_b = (uint8_t)value & PB_WRITABLE;
    set_gate(&dev->channel[2], (value & PB_GATE2) != 0, bb_clock_now_ns(dev->clock));
    return BB_OK;
}

static void dev_destroy(void *opaque)
{
    struct bb_i8254 *dev = opaque;
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops counters_ops = {.read = counters_read, .write = counters_write};
static const struct bb_region_ops port_b_ops = {.read = port_b_read, .write = port_b_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_i8254_device(const struct bb_i8254 *dev)
{
    return dev->device;
}

struct bb_region *bb_i8254_region(const struct bb_i8254 *dev, enum bb_i8254_part part)
{
    return dev->region[part];
}

int bb_i8254_create(struct bb_ctx *ctx, const struct bb_i8254_config *config, struct bb_i8254 **out,
                    struct bb_error *err)
{
    static const struct bb_i8254_config defaults;
    static const struct bb_path_row counters_paths[] = {
        {"counters", 0, 2, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8254's lock"},
        {"control word", 3, 3, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8254's lock"},
    };
    static const struct bb_path_row port_b_paths[] = {
        {"port B", 0, 0, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8254's lock"},
    };
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "i8254";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_i8254 *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for timer %s", name);
    }
    dev->engine = engine;
    dev->clock = bb_engine_clock(engine);
    dev->rise_tick = UINT64_MAX;
    for (unsigned n = 0; n < CHANNELS; n++) {
        /* The part's state at power-on is undefined; this is as if mode 3 awaited its count. */
        dev->channel[n] = (struct channel){
            .mode = 3, .access = RW_BOTH, .gate = n != 2, .null_count = true, .count = 65536};
    }

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = dev};
    int result = bb_device_create(ctx, &device, &dev->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, dev, sizeof *dev);
        return result;
    }
    const struct bb_device_timer_config timer = {.expired = expired, .opaque = dev, .locked = true};
    result = bb_source_create(ctx, dev->device, config->irq, &dev->irq, err);
    if (result == BB_OK) {
        result = bb_device_timer_create(ctx, dev->device, &timer, &dev->timer, err);
    }
    for (unsigned part = 0; result == BB_OK && part < BB_I8254_PARTS; part++) {
        bool counters = part == BB_I8254_COUNTERS;
        const struct bb_region_config region = {
            .name = counters ? "i8254 counters" : "i8254 port B",
            .size_bytes = counters ? 4 : 1,
            .ops = counters ? &counters_ops : &port_b_ops,
            .opaque = dev,
            .klass = BB_CLASS_DEVICE_LOCK,
            .rules = {.valid_min = 1, .valid_max = counters ? 2 : 1, .impl_min = 1, .impl_max = 1},
            .paths = counters ? counters_paths : port_b_paths,
            .path_count = counters ? BB_ARRAY_LEN(counters_paths) : BB_ARRAY_LEN(port_b_paths),
        };
        result = bb_device_region_create(ctx, dev->device, &region, &dev->region[part], err);
    }
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `dev`. */
        (void)bb_device_remove(ctx, dev->device, NULL, NULL, NULL);
        return result;
    }
    *out = dev;
    return BB_OK;
}
