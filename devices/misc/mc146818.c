/* SPDX-License-Identifier: MIT */
/*
 * MC146818 real-time clock (Motorola ADI-1017): time of day, registers A to D, non-volatile bytes;
 * with the PC's century byte at 0x32. Time is derived: an offset added to the engine's clock.
 * While SET (register B) stops updates, the time bytes are plain storage; when it falls, they
 * become the time.
 *
 * All state is guarded by the device's lock.
 *
 * Deviations: an update takes no time; "update in progress" shows for the 244 microseconds before
 * each, as the part promises as warning. Bytes that are no valid date are taken as the nearest
 * one. The time byte written while updates run counts at once. Every fourth year is a leap year,
 * which holds until 2099. The divider bits of register A are kept, and don't stop the clock.
 * Left out: alarm, periodic and update-ended interrupts and their flags (register C reads 0),
 * daylight saving, saved state.
 */
#include "mc146818.h"

#include "../../base/bits.h"

enum { INDEX = 0, DATA = 1, PORTS = 2 };
/* Addresses of bytes. */
enum { SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, DAY = 7, MONTH = 8, YEAR = 9 };
enum { REG_A = 10, REG_B = 11, REG_C = 12, REG_D = 13, FIRST_FREE = 14, CENTURY = 0x32 };
enum { A_UIP = 0x80, A_WRITABLE = 0x7f, A_RESET = 0x26 };
enum { B_SET = 0x80, B_BINARY = 0x04, B_24_HOURS = 0x02, HOURS_PM = 0x80 };
enum { D_VRT = 0x80 };

enum { UIP_NS = 244000, DAY_S = 86400 };
enum { FIRST_YEAR = 1970, LAST_YEAR = 2099 };

#define NS_PER_S INT64_C(1000000000)
#define LAST_UNIX_S INT64_C(4102444799) /* 2099-12-31 23:59:59 */

struct bb_mc146818 {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    struct bb_clock *clock;

    /* Guarded by the device's lock. */
    int64_t offset_ns; /* time since 1970 less virtual time */
    uint8_t index;
    uint8_t bytes[BB_MC146818_BYTES]; /* time bytes count only while SET */
};

struct civil {
    unsigned year, month, day; /* from 1970, 1, 1 */
    unsigned hour, minute, second;
    unsigned weekday; /* 1 is Sunday */
};

static unsigned month_days(unsigned year, unsigned month)
{
    static const uint8_t days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return month == 2 && year % 4 == 0 ? 29 : days[month - 1];
}

static unsigned year_days(unsigned year)
{
    return year % 4 == 0 ? 366 : 365;
}

static struct civil civil_of(int64_t unix_s)
{
    uint64_t s = unix_s > 0 ? (uint64_t)unix_s : 0;
    /* Whole cycles of four years first, so that the rest is a handful of steps. */
    uint64_t days = s / DAY_S;
    struct civil c = {.weekday = (unsigned)((days + 4) % 7) + 1}; /* 1970-01-01: Thursday */
    c.year = FIRST_YEAR + (unsigned)(days / 1461) * 4;
    days %= 1461;
    for (; days >= year_days(c.year); c.year++) {
        days -= year_days(c.year);
    }
    for (c.month = 1; days >= month_days(c.year, c.month); c.month++) {
        days -= month_days(c.year, c.month);
    }
    c.day = (unsigned)days + 1;
    c.hour = (unsigned)(s % DAY_S / 3600);
    c.minute = (unsigned)(s % 3600 / 60);
    c.second = (unsigned)(s % 60);
    return c;
}

static int64_t unix_of(const struct civil *c)
{
    int64_t days = 0;
    for (unsigned year = FIRST_YEAR; year < c->year; year++) {
        days += year_days(year);
    }
    for (unsigned month = 1; month < c->month; month++) {
        days += month_days(c->year, month);
    }
    days += c->day - 1;
    return days * DAY_S + c->hour * 3600 + c->minute * 60 + c->second;
}

static unsigned clamp(unsigned value, unsigned low, unsigned high)
{
    return value < low ? low : value > high ? high : value;
}

static uint8_t to_bcd(unsigned value)
{
    return (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

static unsigned from_bcd(unsigned value)
{
    return (value >> 4) * 10 + (value & 15);
}

static uint8_t encode(const struct bb_mc146818 *dev, unsigned value)
{
    return (dev->bytes[REG_B] & B_BINARY) != 0 ? (uint8_t)value : to_bcd(value);
}

static unsigned decode(const struct bb_mc146818 *dev, unsigned value)
{
    return (dev->bytes[REG_B] & B_BINARY) != 0 ? value : from_bcd(value);
}

static int64_t time_ns(const struct bb_mc146818 *dev)
{
    return (int64_t)bb_clock_now_ns(dev->clock) + dev->offset_ns;
}

/* Writes the time of day into the time bytes, in the format that register B asks for. */
static void show_locked(struct bb_mc146818 *dev)
{
    struct civil c = civil_of(time_ns(dev) / NS_PER_S);
    dev->bytes[SECONDS] = encode(dev, c.second);
    dev->bytes[MINUTES] = encode(dev, c.minute);
    if ((dev->bytes[REG_B] & B_24_HOURS) != 0) {
        dev->bytes[HOURS] = encode(dev, c.hour);
    } else {
        unsigned hour = c.hour % 12 == 0 ? 12 : c.hour % 12;
        dev->bytes[HOURS] = (uint8_t)(encode(dev, hour) | (c.hour >= 12 ? HOURS_PM : 0));
    }
    dev->bytes[WEEKDAY] = encode(dev, c.weekday);
    dev->bytes[DAY] = encode(dev, c.day);
    dev->bytes[MONTH] = encode(dev, c.month);
    dev->bytes[YEAR] = encode(dev, c.year % 100);
    dev->bytes[CENTURY] = to_bcd(c.year / 100);
}

/* Makes the time bytes the time of day; the fraction of a second goes on. */
static void adopt_locked(struct bb_mc146818 *dev)
{
    struct civil c;
    unsigned hours = dev->bytes[HOURS];
    if ((dev->bytes[REG_B] & B_24_HOURS) != 0) {
        c.hour = clamp(decode(dev, hours), 0, 23);
    } else {
        c.hour = clamp(decode(dev, hours & ~(unsigned)HOURS_PM), 1, 12) % 12;
        c.hour += (hours & HOURS_PM) != 0 ? 12 : 0;
    }
    c.second = clamp(decode(dev, dev->bytes[SECONDS]), 0, 59);
    c.minute = clamp(decode(dev, dev->bytes[MINUTES]), 0, 59);
    c.year = from_bcd(dev->bytes[CENTURY]) * 100 + clamp(decode(dev, dev->bytes[YEAR]), 0, 99);
    c.year = clamp(c.year, FIRST_YEAR, LAST_YEAR);
    c.month = clamp(decode(dev, dev->bytes[MONTH]), 1, 12);
    c.day = clamp(decode(dev, dev->bytes[DAY]), 1, month_days(c.year, c.month));
    c.weekday = 0; /* derived */
    int64_t now_ns = time_ns(dev);
    dev->offset_ns += unix_of(&c) * NS_PER_S - now_ns / NS_PER_S * NS_PER_S;
}

static bool is_time(unsigned index)
{
    /* Seconds to year, but the alarms at the odd addresses between. */
    return index == SECONDS || index == MINUTES || index == HOURS ||
           (index >= WEEKDAY && index <= YEAR) || index == CENTURY;
}

static uint8_t byte_read(struct bb_mc146818 *dev, unsigned index)
{
    bool stopped = (dev->bytes[REG_B] & B_SET) != 0;
    if (is_time(index) && !stopped) {
        show_locked(dev);
    }
    if (index == REG_A && !stopped && time_ns(dev) % NS_PER_S >= NS_PER_S - UIP_NS) {
        return dev->bytes[REG_A] | A_UIP;
    }
    return dev->bytes[index];
}

static void byte_write(struct bb_mc146818 *dev, unsigned index, uint8_t value)
{
    bool stopped = (dev->bytes[REG_B] & B_SET) != 0;
    switch (index) {
    case REG_A:
        dev->bytes[REG_A] = value & A_WRITABLE;
        break;
    case REG_B:
        if (!stopped) {
            show_locked(dev); /* the bytes as they stand, in the old format */
        }
        dev->bytes[REG_B] = value;
        if (stopped && (value & B_SET) == 0) {
            adopt_locked(dev);
        }
        break;
    case REG_C:
    case REG_D:
        break; /* read-only */
    default:
        if (is_time(index) && !stopped) {
            show_locked(dev);
            dev->bytes[index] = value;
            adopt_locked(dev);
        } else {
            dev->bytes[index] = value;
        }
        break;
    }
}

static int port_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_mc146818 *dev = opaque;
    (void)ctx;
    (void)size;
    *value = offset == DATA ? byte_read(dev, dev->index) : 0xff; /* the index is write-only */
    return BB_OK;
}

static int port_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_mc146818 *dev = opaque;
    (void)ctx;
    (void)size;
    if (offset == INDEX) {
        dev->index = (uint8_t)value % BB_MC146818_BYTES; /* bit 7 masks NMI, elsewhere */
    } else {
        byte_write(dev, dev->index, (uint8_t)value);
    }
    return BB_OK;
}

static void dev_destroy(void *opaque)
{
    struct bb_mc146818 *dev = opaque;
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops port_ops = {.read = port_read, .write = port_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_mc146818_device(const struct bb_mc146818 *dev)
{
    return dev->device;
}

struct bb_region *bb_mc146818_region(const struct bb_mc146818 *dev)
{
    return dev->region;
}

int bb_mc146818_set_byte(struct bb_ctx *ctx, struct bb_mc146818 *dev, uint8_t index, uint8_t value)
{
    if (index < FIRST_FREE || index >= BB_MC146818_BYTES || index == CENTURY) {
        return BB_E_RANGE;
    }
    bb_device_lock(ctx, dev->device);
    dev->bytes[index] = value;
    bb_device_unlock(ctx, dev->device);
    return BB_OK;
}

int bb_mc146818_create(struct bb_ctx *ctx, const struct bb_mc146818_config *config,
                       struct bb_mc146818 **out, struct bb_error *err)
{
    static const struct bb_mc146818_config defaults = {.base_unix_s = 946684800};
    static const struct bb_path_row paths[] = {
        {"index", INDEX, INDEX, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the RTC's lock"},
        {"data", DATA, DATA, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the RTC's lock"},
    };
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "mc146818";
    if (config->base_unix_s < 0 || config->base_unix_s > LAST_UNIX_S) {
        return bb_error_set(err, BB_E_RANGE,
                            "real-time clock %s: %lld s since 1970; it shows the years %d to %d",
                            name, (long long)config->base_unix_s, FIRST_YEAR, LAST_YEAR);
    }
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_mc146818 *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for real-time clock %s", name);
    }
    dev->engine = engine;
    dev->clock = bb_engine_clock(engine);
    dev->offset_ns = config->base_unix_s * NS_PER_S;
    dev->bytes[REG_A] = A_RESET;
    dev->bytes[REG_B] = B_24_HOURS;
    dev->bytes[REG_D] = D_VRT;

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = dev};
    int result = bb_device_create(ctx, &device, &dev->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, dev, sizeof *dev);
        return result;
    }
    const struct bb_region_config region = {
        .name = name,
        .size_bytes = PORTS,
        .ops = &port_ops,
        .opaque = dev,
        .klass = BB_CLASS_DEVICE_LOCK,
        .rules = {.valid_min = 1, .valid_max = 2, .impl_min = 1, .impl_max = 1},
        .paths = paths,
        .path_count = BB_ARRAY_LEN(paths),
    };
    result = bb_device_region_create(ctx, dev->device, &region, &dev->region, err);
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `dev`. */
        (void)bb_device_remove(ctx, dev->device, NULL, NULL, NULL);
        return result;
    }
    *out = dev;
    return BB_OK;
}
