/* SPDX-License-Identifier: MIT */
/*
 * i8042 keyboard controller of a PC/AT (IBM PC/AT Technical Reference, 1-38 on; and the commands
 * for the auxiliary port that PS/2 added), without devices. A byte for the keyboard or the
 * auxiliary device is answered at once with "resend" and the time-out flag, which is what a
 * controller reports whose device doesn't answer.
 *
 * All state is one atomic word; an access is one compare-and-swap of it by a pure function, so
 * every register is lock-free.
 * Left out: interrupts 1 and 12 (there is nobody to type), the A20 gate's effect (its bit is
 * kept), the controller's RAM other than its command byte, saved state.
 */
#include "i8042.h"

#include "../../base/atomic.h"
#include "../../base/bits.h"

/* Status register. */
enum { STR_OBF = 0x01, STR_SYS = 0x04, STR_CMD = 0x08, STR_INH = 0x10, STR_AUX_OBF = 0x20 };
enum { STR_TIMEOUT = 0x40 };
/* Command byte. */
enum { CTR_SYS = 0x04, CTR_KBD_OFF = 0x10, CTR_AUX_OFF = 0x20 };
/* Commands. */
enum { CMD_READ_CTR = 0x20, CMD_WRITE_CTR = 0x60, CMD_AUX_OFF = 0xa7, CMD_AUX_ON = 0xa8 };
enum { CMD_AUX_TEST = 0xa9, CMD_SELF_TEST = 0xaa, CMD_KBD_TEST = 0xab, CMD_KBD_OFF = 0xad };
enum { CMD_KBD_ON = 0xae, CMD_READ_IN = 0xc0, CMD_READ_OUT = 0xd0, CMD_WRITE_OUT = 0xd1 };
enum { CMD_KBD_ECHO = 0xd2, CMD_AUX_ECHO = 0xd3, CMD_WRITE_AUX = 0xd4, CMD_PULSE = 0xf0 };
enum { SELF_TEST_PASSED = 0x55, PORT_TEST_PASSED = 0x00, INPUT_PORT = 0x80, RESEND = 0xfe };
/* Output port: bit 0 low resets the machine, bit 1 is A20. */
enum { OUT_NO_RESET = 0x01, OUT_A20 = 0x02 };

/* The word: output buffer, command byte, the command that waits for its data, status. */
enum { W_DATA = 0, W_CTR = 8, W_PENDING = 16, W_STATUS = 24, W_WIDTH = 8 };
#define W_A20 BB_BIT64(32)
#define W_RESETS BB_BIT64(33) /* never stored: the access asks for a reset */

struct bb_i8042 {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region[BB_I8042_PARTS];
    void (*reset)(void *opaque);
    void *opaque;

    uint64_t word; /* (a) vCPUs, by compare-and-swap */
};

static unsigned w_get(uint64_t word, unsigned low)
{
    return (unsigned)bb_field_get(word, low, W_WIDTH);
}

static uint64_t w_set(uint64_t word, unsigned low, unsigned value)
{
    return bb_field_set(word, low, W_WIDTH, value);
}

/* The controller answers with a byte; `flags` are the status bits that go with it. */
static uint64_t w_answer(uint64_t word, unsigned byte, unsigned flags)
{
    unsigned status = w_get(word, W_STATUS) & ~(unsigned)(STR_AUX_OBF | STR_TIMEOUT);
    return w_set(w_set(word, W_DATA, byte), W_STATUS, status | STR_OBF | flags);
}

static uint64_t w_with_ctr(uint64_t word, unsigned set, unsigned clear)
{
    return w_set(word, W_CTR, (w_get(word, W_CTR) & ~clear) | set);
}

static uint64_t w_with_output_port(uint64_t word, unsigned value)
{
    word = (value & OUT_A20) != 0 ? word | W_A20 : word & ~W_A20;
    return (value & OUT_NO_RESET) == 0 ? word | W_RESETS : word;
}

/* A command arrives at port 0x64. */
static uint64_t w_command(uint64_t word, unsigned command)
{
    word = w_set(word, W_STATUS, w_get(word, W_STATUS) | STR_CMD);
    word = w_set(word, W_PENDING, 0);
    switch (command) {
    case CMD_READ_CTR:
        return w_answer(word, w_get(word, W_CTR), 0);
    case CMD_WRITE_CTR:
    case CMD_WRITE_OUT:
    case CMD_KBD_ECHO:
    case CMD_AUX_ECHO:
    case CMD_WRITE_AUX:
        return w_set(word, W_PENDING, command);
    case CMD_AUX_OFF:
        return w_with_ctr(word, CTR_AUX_OFF, 0);
    case CMD_AUX_ON:
        return w_with_ctr(word, 0, CTR_AUX_OFF);
    case CMD_KBD_OFF:
        return w_with_ctr(word, CTR_KBD_OFF, 0);
    case CMD_KBD_ON:
        return w_with_ctr(word, 0, CTR_KBD_OFF);
    case CMD_SELF_TEST:
        return w_answer(w_with_ctr(word, CTR_SYS, 0), SELF_TEST_PASSED, 0);
    case CMD_AUX_TEST:
    case CMD_KBD_TEST:
        return w_answer(word, PORT_TEST_PASSED, 0);
    case CMD_READ_IN:
        return w_answer(word, INPUT_PORT, 0);
    case CMD_READ_OUT:
        return w_answer(word, OUT_NO_RESET | ((word & W_A20) != 0 ? OUT_A20 : 0u), 0);
    default:
        /* 0xf0 to 0xff pulse the output port's low bits that are 0. */
        return command >= CMD_PULSE && (command & OUT_NO_RESET) == 0 ? word | W_RESETS : word;
    }
}

/* A byte arrives at port 0x60. */
static uint64_t w_data(uint64_t word, unsigned byte)
{
    unsigned pending = w_get(word, W_PENDING);
    word = w_set(word, W_STATUS, w_get(word, W_STATUS) & ~(unsigned)STR_CMD);
    word = w_set(word, W_PENDING, 0);
    switch (pending) {
    case CMD_WRITE_CTR:
        return w_set(word, W_CTR, byte);
    case CMD_WRITE_OUT:
        return w_with_output_port(word, byte);
    case CMD_KBD_ECHO:
        return w_answer(word, byte, 0);
    case CMD_AUX_ECHO:
        return w_answer(word, byte, STR_AUX_OBF);
    case CMD_WRITE_AUX:
        return w_answer(word, RESEND, STR_AUX_OBF | STR_TIMEOUT);
    default: /* for the keyboard, which a byte also switches on */
        return w_answer(w_with_ctr(word, 0, CTR_KBD_OFF), RESEND, STR_TIMEOUT);
    }
}

static int change(struct bb_i8042 *dev, uint64_t (*step)(uint64_t word, unsigned byte),
                  unsigned byte)
{
    /* Relaxed throughout: the word is all the state there is, and refers to nothing else. */
    uint64_t word = bb_load_relaxed(&dev->word);
    uint64_t next;
    do {
        next = step(word, byte);
    } while (!bb_cas_relaxed(&dev->word, &word, next & ~W_RESETS));
    if ((next & W_RESETS) != 0 && dev->reset != NULL) {
        dev->reset(dev->opaque);
    }
    return BB_OK;
}

static int data_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_i8042 *dev = opaque;
    (void)ctx;
    (void)offset;
    (void)size;
    uint64_t word = bb_load_relaxed(&dev->word); /* as in change() */
    const uint64_t taken = (uint64_t)(STR_OBF | STR_AUX_OBF | STR_TIMEOUT) << W_STATUS;
    while ((word & taken) != 0 && !bb_cas_relaxed(&dev->word, &word, word & ~taken)) {
    }
    *value = w_get(word, W_DATA);
    return BB_OK;
}

static int data_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    return change(opaque, w_data, (uint8_t)value);
}

static int status_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct bb_i8042 *dev = opaque;
    (void)ctx;
    (void)offset;
    (void)size;
    uint64_t word = bb_load_relaxed(&dev->word); /* as in change() */
    *value = w_get(word, W_STATUS) | STR_INH | (w_get(word, W_CTR) & CTR_SYS);
    return BB_OK;
}

static int command_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                         uint64_t value)
{
    (void)ctx;
    (void)offset;
    (void)size;
    return change(opaque, w_command, (uint8_t)value);
}

_Static_assert((int)STR_SYS == (int)CTR_SYS, "the status shows the command byte's system flag");

static void dev_destroy(void *opaque)
{
    struct bb_i8042 *dev = opaque;
    bb_device_free(dev->engine, dev, sizeof *dev);
}

static const struct bb_region_ops data_ops = {.read = data_read, .write = data_write};
static const struct bb_region_ops command_ops = {.read = status_read, .write = command_write};
static const struct bb_device_ops device_ops = {.destroy = dev_destroy};

struct bb_device *bb_i8042_device(const struct bb_i8042 *dev)
{
    return dev->device;
}

struct bb_region *bb_i8042_region(const struct bb_i8042 *dev, enum bb_i8042_part part)
{
    return dev->region[part];
}

int bb_i8042_create(struct bb_ctx *ctx, const struct bb_i8042_config *config, struct bb_i8042 **out,
                    struct bb_error *err)
{
    static const struct bb_i8042_config defaults;
    static const struct bb_path_row data_paths[] = {
        {"data", 0, 0, BB_PATH_LOCK_FREE, BB_PATH_LOCK_FREE, NULL},
    };
    static const struct bb_path_row command_paths[] = {
        {"status/command", 0, 0, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    };
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "i8042";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_i8042 *dev = bb_device_alloc(engine, sizeof *dev);
    if (dev == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for keyboard controller %s", name);
    }
    dev->engine = engine;
    dev->reset = config->reset;
    dev->opaque = config->opaque;
    dev->word = w_set(W_A20, W_CTR, CTR_KBD_OFF | CTR_AUX_OFF);

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = dev};
    int result = bb_device_create(ctx, &device, &dev->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, dev, sizeof *dev);
        return result;
    }
    for (unsigned part = 0; result == BB_OK && part < BB_I8042_PARTS; part++) {
        bool data = part == BB_I8042_DATA;
        const struct bb_region_config region = {
            .name = data ? "i8042 data" : "i8042 command",
            .size_bytes = 1,
            .ops = data ? &data_ops : &command_ops,
            .opaque = dev,
            .klass = BB_CLASS_LOCKFREE,
            .rules = {.valid_min = 1, .valid_max = 1, .impl_min = 1, .impl_max = 1},
            .paths = data ? data_paths : command_paths,
            .path_count = 1,
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
