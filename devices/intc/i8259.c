/* SPDX-License-Identifier: MIT */
/*
 * Two 8259A programmable interrupt controllers (Intel 8259A data sheet, order number 231468) wired
 * as a PC's: the slave's INT on the master's IR2; and the edge/level control registers of EISA
 * chip sets (Intel 82371SB, 2.5.4).
 *
 * All state is guarded by the device's lock. Inputs pull their lines: a line's setter leaves the
 * pin's bit in the device's inbox, whoever holds the lock pulls the line (pull_locked()), and every
 * register access and acknowledge cycle finds the inbox drained. A pin remembers how many of its
 * line's rises it has consumed, so an edge is latched once.
 *
 * Deviations: an edge stays latched when its line falls before it is acknowledged, as pulses need;
 * the part would answer with a spurious interrupt 7. IR2 of the master follows the slave's INT.
 * Left out: the 8080 mode, buffered mode, cascades other than the PC's, saved state.
 */
#include "i8259.h"

#include "../../base/bits.h"

/* Bits of the command words, by the data sheet's names. */
enum { ICW1 = 0x10, ICW1_IC4 = 0x01, ICW1_SNGL = 0x02, ICW1_LTIM = 0x08 };
enum { ICW4_AEOI = 0x02, ICW4_SFNM = 0x10 };
enum { OCW3 = 0x08, OCW3_RIS = 0x01, OCW3_RR = 0x02, OCW3_P = 0x04, OCW3_SMM = 0x20 };
enum { OCW3_ESMM = 0x40 };
/* OCW2's R, SL and EOI, bits 7 to 5. */
enum { OCW2_ROTATE_AEOI_CLEAR = 0, OCW2_EOI = 1, OCW2_SPECIFIC_EOI = 3, OCW2_ROTATE_AEOI_SET = 4 };
enum { OCW2_ROTATE_EOI = 5, OCW2_SET_PRIORITY = 6, OCW2_ROTATE_SPECIFIC_EOI = 7 };

enum { CASCADE = 2, NONE = 8, SPURIOUS = 7 };

/* Which word the data port expects. */
enum expects { EXPECTS_OCW1, EXPECTS_ICW2, EXPECTS_ICW3, EXPECTS_ICW4 };

struct chip {
    struct bb_i8259 *pic; /* immutable */
    bool master;          /* immutable */

    /* Guarded by the device's lock. */
    uint8_t irr;
    uint8_t isr;
    uint8_t imr;
    uint8_t elcr;
    uint8_t vector_base;
    uint8_t lowest; /* the input of lowest priority; 7 unless rotated */
    uint8_t icw1;
    uint8_t icw4;
    enum expects expects;
    bool reads_isr;
    bool polled;
    bool special_mask;
    bool rotates_on_aeoi;
};

struct bb_i8259 {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region[BB_I8259_PARTS];
    struct bb_source *intr;

    /* Guarded by the device's lock. */
    struct chip chip[2];
    struct bb_line *line[BB_I8259_PINS];
    uint32_t consumed[BB_I8259_PINS]; /* rises of the line that the pin has taken note of */
};

/* The inputs that are level-triggered: LTIM makes all of them so. */
static uint8_t chip_levels(const struct chip *chip)
{
    return (chip->icw1 & ICW1_LTIM) != 0 ? 0xff : chip->elcr;
}

/* The first set input in order of priority, or NONE; `*rank` is its distance from the highest. */
static unsigned first_by_priority(const struct chip *chip, uint8_t inputs, unsigned *rank)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned n = (chip->lowest + 1u + i) % 8;
        if ((inputs & 1u << n) != 0) {
            *rank = i;
            return n;
        }
    }
    *rank = 8;
    return NONE;
}

/* The input whose request goes to the processor now, or NONE. */
static unsigned chip_request(const struct chip *chip)
{
    uint8_t in_service = chip->isr;
    if (chip->special_mask) {
        in_service &= (uint8_t)~chip->imr;
    }
    if (chip->master && (chip->icw4 & ICW4_SFNM) != 0) {
        in_service &= (uint8_t) ~(1u << CASCADE); /* the slave sorts out its own priorities */
    }
    unsigned rank, service_rank;
    unsigned n = first_by_priority(chip, chip->irr & (uint8_t)~chip->imr, &rank);
    (void)first_by_priority(chip, in_service, &service_rank);
    return rank < service_rank ? n : NONE;
}

/* Drives the cascade and the output; after every change of state. */
static void update_locked(struct bb_ctx *ctx, struct bb_i8259 *pic)
{
    uint8_t bit = 1u << CASCADE;
    bool slave = chip_request(&pic->chip[1]) != NONE;
    pic->chip[0].irr = (uint8_t)((pic->chip[0].irr & ~bit) | (slave ? bit : 0));
    bb_source_set(ctx, pic->intr, chip_request(&pic->chip[0]) != NONE);
}

/* Looks at a pin's line. */
static void pull_locked(struct bb_i8259 *pic, unsigned pin)
{
    struct chip *chip = &pic->chip[pin / 8];
    uint8_t bit = (uint8_t)(1u << pin % 8);
    struct bb_line *line = pic->line[pin];
    if (line == NULL) {
        return;
    }
    struct bb_line_state state = bb_line_read(line);
    if ((chip_levels(chip) & bit) != 0) {
        chip->irr = (uint8_t)((chip->irr & ~bit) | (state.level ? bit : 0));
    } else if (state.rises != pic->consumed[pin]) {
        chip->irr |= bit;
    }
    pic->consumed[pin] = state.rises;
}

static void notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    struct bb_i8259 *pic = opaque;
    for (unsigned pin = 0; pin < BB_I8259_PINS; pin++) {
        if ((pins & BB_BIT64(pin)) != 0) {
            pull_locked(pic, pin);
        }
    }
    update_locked(ctx, pic);
}

/* Pulls all pins of a chip anew: its inputs' trigger modes may have changed. */
static void repull_locked(struct bb_i8259 *pic, const struct chip *chip)
{
    for (unsigned n = 0; n < 8; n++) {
        pull_locked(pic, (unsigned)(chip - pic->chip) * 8 + n);
    }
}

static void end_locked(struct chip *chip, unsigned n, bool rotate)
{
    chip->isr &= (uint8_t) ~(1u << n);
    if (rotate) {
        chip->lowest = (uint8_t)n;
    }
}

/* The part's answer to an acknowledge cycle for its input `n`. */
static void take_locked(struct chip *chip, unsigned n)
{
    uint8_t bit = (uint8_t)(1u << n);
    bool cascade = chip->master && n == CASCADE;
    if ((chip_levels(chip) & bit) == 0 && !cascade) {
        chip->irr &= (uint8_t)~bit;
    }
    chip->isr |= bit;
    if ((chip->icw4 & ICW4_AEOI) != 0) {
        end_locked(chip, n, chip->rotates_on_aeoi);
    }
}

static uint8_t acknowledge_locked(struct bb_ctx *ctx, struct bb_i8259 *pic)
{
    struct chip *chip = &pic->chip[0];
    unsigned n = chip_request(chip);
    if (n == NONE) {
        return chip->vector_base + SPURIOUS;
    }
    take_locked(chip, n);
    if (n == CASCADE) {
        chip = &pic->chip[1];
        n = chip_request(chip);
        if (n == NONE) {
            n = SPURIOUS;
        } else {
            take_locked(chip, n);
        }
    }
    update_locked(ctx, pic);
    return (uint8_t)(chip->vector_base + n);
}

static void initialise_locked(struct bb_i8259 *pic, struct chip *chip, uint8_t icw1)
{
    chip->icw1 = icw1;
    chip->icw4 = 0;
    chip->irr = 0; /* the edge sense circuit is reset: an input must rise anew */
    chip->isr = 0;
    chip->imr = 0;
    chip->lowest = 7;
    chip->reads_isr = false;
    chip->polled = false;
    chip->special_mask = false;
    chip->rotates_on_aeoi = false;
    chip->expects = EXPECTS_ICW2;
    repull_locked(pic, chip);
}

static void operate_locked(struct chip *chip, uint8_t ocw2)
{
    unsigned level = ocw2 & 7;
    unsigned rank;
    unsigned command = ocw2 >> 5;
    switch (command) {
    case OCW2_ROTATE_AEOI_CLEAR:
    case OCW2_ROTATE_AEOI_SET:
        chip->rotates_on_aeoi = command == OCW2_ROTATE_AEOI_SET;
        break;
    case OCW2_EOI:
    case OCW2_ROTATE_EOI: {
        uint8_t candidates = chip->isr;
        if (chip->special_mask) {
            candidates &= (uint8_t)~chip->imr; /* a masked one needs a specific EOI */
        }
        unsigned n = first_by_priority(chip, candidates, &rank);
        if (n != NONE) {
            end_locked(chip, n, command == OCW2_ROTATE_EOI);
        }
        break;
    }
    case OCW2_SPECIFIC_EOI:
    case OCW2_ROTATE_SPECIFIC_EOI:
        end_locked(chip, level, command == OCW2_ROTATE_SPECIFIC_EOI);
        break;
    case OCW2_SET_PRIORITY:
        chip->lowest = (uint8_t)level;
        break;
    default:
        break; /* no operation */
    }
}

static void data_locked(struct chip *chip, uint8_t value)
{
    switch (chip->expects) {
    case EXPECTS_ICW2:
        chip->vector_base = value & 0xf8;
        if ((chip->icw1 & ICW1_SNGL) == 0) {
            chip->expects = EXPECTS_ICW3;
        } else {
            chip->expects = (chip->icw1 & ICW1_IC4) != 0 ? EXPECTS_ICW4 : EXPECTS_OCW1;
        }
        break;
    case EXPECTS_ICW3: /* the cascade is wired */
        chip->expects = (chip->icw1 & ICW1_IC4) != 0 ? EXPECTS_ICW4 : EXPECTS_OCW1;
        break;
    case EXPECTS_ICW4:
        chip->icw4 = value & 0x1f;
        chip->expects = EXPECTS_OCW1;
        break;
    default:
        chip->imr = value;
        break;
    }
}

static int chip_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct chip *chip = opaque;
    (void)size;
    if (chip->polled) {
        chip->polled = false;
        unsigned n = chip_request(chip);
        *value = n == NONE ? 0 : 0x80 | n;
        if (n != NONE) {
            take_locked(chip, n);
            update_locked(ctx, chip->pic);
        }
    } else if (offset == 0) {
        *value = chip->reads_isr ? chip->isr : chip->irr;
    } else {
        *value = chip->imr;
    }
    return BB_OK;
}

static int chip_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct chip *chip = opaque;
    uint8_t byte = (uint8_t)value;
    (void)size;
    if (offset != 0) {
        data_locked(chip, byte);
    } else if ((byte & ICW1) != 0) {
        initialise_locked(chip->pic, chip, byte);
    } else if ((byte & OCW3) != 0) {
        if ((byte & OCW3_P) != 0) {
            chip->polled = true;
        }
        if ((byte & OCW3_RR) != 0) {
            chip->reads_isr = (byte & OCW3_RIS) != 0;
        }
        if ((byte & OCW3_ESMM) != 0) {
            chip->special_mask = (byte & OCW3_SMM) != 0;
        }
    } else {
        operate_locked(chip, byte);
    }
    update_locked(ctx, chip->pic);
    return BB_OK;
}

static int elcr_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_i8259 *pic = opaque;
    (void)ctx;
    (void)size;
    *value = pic->chip[offset].elcr;
    return BB_OK;
}

static int elcr_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    /* Timer, keyboard and cascade, real-time clock and FPU are always edges. */
    static const uint8_t writable[2] = {0xf8, 0xde};
    struct bb_i8259 *pic = opaque;
    struct chip *chip = &pic->chip[offset];
    (void)size;
    chip->elcr = (uint8_t)value & writable[offset];
    repull_locked(pic, chip);
    update_locked(ctx, pic);
    return BB_OK;
}

static const struct bb_region_ops chip_ops = {.read = chip_read, .write = chip_write};
static const struct bb_region_ops elcr_ops = {.read = elcr_read, .write = elcr_write};

static void line_changed(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    struct bb_i8259 *pic = opaque;
    bb_device_notify(ctx, pic->device, pin);
}

static void no_pin(struct bb_ctx *ctx, void *opaque, unsigned pin)
{
    (void)ctx;
    (void)opaque;
    (void)pin;
}

static void pic_destroy(void *opaque)
{
    struct bb_i8259 *pic = opaque;
    bb_device_free(pic->engine, pic, sizeof *pic);
}

static const struct bb_device_ops device_ops = {.notified = notified, .destroy = pic_destroy};

struct bb_device *bb_i8259_device(const struct bb_i8259 *pic)
{
    return pic->device;
}

struct bb_region *bb_i8259_region(const struct bb_i8259 *pic, enum bb_i8259_part part)
{
    return pic->region[part];
}

struct bb_line_sink bb_i8259_line_sink(struct bb_i8259 *pic, unsigned pin)
{
    struct bb_line_sink sink = {
        .notify = line_changed, .opaque = pic, .pin = pin, .device = pic->device};
    if (pin >= BB_I8259_PINS || pin == CASCADE) {
        sink.notify = no_pin;
    }
    return sink;
}

int bb_i8259_connect(struct bb_ctx *ctx, struct bb_i8259 *pic, unsigned pin, struct bb_line *line)
{
    if (pin >= BB_I8259_PINS || pin == CASCADE) {
        return BB_E_RANGE;
    }
    int result = BB_OK;
    bb_device_lock(ctx, pic->device);
    if (line != NULL && pic->line[pin] != NULL) {
        result = BB_E_EXIST;
    } else {
        pic->line[pin] = line;
        if (line != NULL) {
            pic->consumed[pin] = bb_line_read(line).rises; /* earlier ones are nobody's */
            pull_locked(pic, pin);
            update_locked(ctx, pic);
        }
    }
    bb_device_unlock(ctx, pic->device);
    return result;
}

uint8_t bb_i8259_acknowledge(struct bb_ctx *ctx, struct bb_i8259 *pic)
{
    bb_device_lock(ctx, pic->device);
    uint8_t vector = acknowledge_locked(ctx, pic);
    bb_device_unlock(ctx, pic->device);
    return vector;
}

int bb_i8259_create(struct bb_ctx *ctx, const struct bb_i8259_config *config, struct bb_i8259 **out,
                    struct bb_error *err)
{
    static const struct bb_i8259_config defaults;
    static const struct bb_path_row chip_paths[] = {
        {"command", 0, 0, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8259 pair's lock"},
        {"data", 1, 1, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8259 pair's lock"},
    };
    static const struct bb_path_row elcr_paths[] = {
        {"ELCR", 0, 1, BB_PATH_NARROW_LOCK, BB_PATH_NARROW_LOCK, "the 8259 pair's lock"},
    };
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "i8259";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_i8259 *pic = bb_device_alloc(engine, sizeof *pic);
    if (pic == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for 8259 pair %s", name);
    }
    pic->engine = engine;
    for (unsigned i = 0; i < 2; i++) {
        pic->chip[i] = (struct chip){.pic = pic, .master = i == 0, .imr = 0xff, .lowest = 7};
    }

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = pic};
    int result = bb_device_create(ctx, &device, &pic->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, pic, sizeof *pic);
        return result;
    }
    result = bb_source_create(ctx, pic->device, config->intr, &pic->intr, err);
    for (unsigned part = 0; result == BB_OK && part < BB_I8259_PARTS; part++) {
        bool elcr = part == BB_I8259_ELCR;
        const struct bb_region_config region = {
            .name = elcr                      ? "i8259 ELCR"
                    : part == BB_I8259_MASTER ? "i8259 master"
                                              : "i8259 slave",
            .size_bytes = 2,
            .ops = elcr ? &elcr_ops : &chip_ops,
            .opaque = elcr ? (void *)pic : (void *)&pic->chip[part],
            .klass = BB_CLASS_DEVICE_LOCK,
            .rules = {.valid_min = 1, .valid_max = 2, .impl_min = 1, .impl_max = 1},
            .paths = elcr ? elcr_paths : chip_paths,
            .path_count = elcr ? BB_ARRAY_LEN(elcr_paths) : BB_ARRAY_LEN(chip_paths),
        };
        result = bb_device_region_create(ctx, pic->device, &region, &pic->region[part], err);
    }
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `pic`. */
        (void)bb_device_remove(ctx, pic->device, NULL, NULL, NULL);
        return result;
    }
    *out = pic;
    return BB_OK;
}
