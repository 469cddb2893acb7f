/* SPDX-License-Identifier: MIT */
/*
 * 16550A UART (National Semiconductor PC16550D, June 1995; section numbers are its).
 *
 * Lock-free throughout. Everything that interrupts depend on is one atomic word (below): each
 * register access is one compare-and-swap of it, or none where it only polls. The receiver is a
 * ring of 16 slots, each of them a word with a byte and the ticket that it was put in with:
 *  1. The word's `tail` is the next ticket; slot `tail % 16` holds ticket tail - 16 (free) or tail
 *     (filled, and not yet counted). Tickets are never taken back: clearing the FIFO sets `count`
 *     to 0 and leaves `tail` alone.
 *  2. A byte is put in by swapping a free slot, then counted by swapping the word; whoever finds
 *     a filled slot at `tail` counts it first, so a stopped sender stops nobody.
 *  3. `count` bytes end at `tail`. Taking one reads its slot and then swaps the word that said it
 *     was there; an unchanged word means that the slot was not reused.
 *  4. `count` grows only with `tail`, and each change of mode empties the ring, so a byte that
 *     found room still has room when it is counted.
 *
 * The interrupt output is a function of the word. Whoever changed the word sets the source and
 * looks again (update_line()), so the last one to set it has seen the last change. A level that is
 * late may show as a short pulse: an interrupt whose identification then reads "none".
 *
 * Deviations: characters take no time. So the transmitter is always empty; and the character
 * time-out (3 of 8.6.2), four character times without a new one, counts as passed at once: bytes
 * below the trigger level are announced by the time-out interrupt as soon as they are there.
 * Left out: baud rate (the divisor is kept), parity, framing and break errors, DMA signalling,
 * gating of INTR by OUT2 (a matter of the PC's board), saved state.
 */
#include "uart16550.h"

#include "../../base/atomic.h"
#include "../../base/bits.h"

/* Register offsets (8.0, table II). */
enum { RBR_THR = 0, IER = 1, IIR_FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

enum { IER_ERBFI = 0x1, IER_ETBEI = 0x2, IER_ELSI = 0x4, IER_EDSSI = 0x8, IER_BITS = 0xf };
enum { FCR_ENABLE = 0x01, FCR_RX_RESET = 0x02, FCR_TRIGGER_LOW = 6 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10 };
enum { MCR_BITS = 0x1f };
enum { LSR_DR = 0x01, LSR_OE = 0x02, LSR_THRE = 0x20, LSR_TEMT = 0x40 };
enum { MSR_DCTS = 0x1, MSR_DDSR = 0x2, MSR_TERI = 0x4, MSR_DDCD = 0x8 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };
/* Interrupt identification, in order of priority (table IV). */
enum { IIR_NONE = 0x1, IIR_RLS = 0x6, IIR_RDA = 0x4, IIR_TIMEOUT = 0xc, IIR_THRE = 0x2 };
enum { IIR_MODEM = 0x0, IIR_FIFOS = 0xc0 };

/* The word. */
enum { W_LCR = 0, W_LCR_BITS = 8, W_IER = 8, W_IER_BITS = 4, W_MCR = 12, W_MCR_BITS = 5 };
enum { W_TRIGGER = 18, W_TRIGGER_BITS = 2, W_DELTA = 22, W_DELTA_BITS = 4 };
enum { W_COUNT = 26, W_COUNT_BITS = 5, W_TAIL = 31, W_TAIL_BITS = 32 };
#define W_FIFO BB_BIT64(17)    /* FIFO mode */
#define W_THRE BB_BIT64(20)    /* THR empty, not yet reported */
#define W_OVERRUN BB_BIT64(21) /* LSR's OE */
#define W_STARVED BB_BIT64(63) /* a receive was cut short: rx_room() is owed */
_Static_assert(W_COUNT + W_COUNT_BITS == W_TAIL && W_TAIL + W_TAIL_BITS == 63, "all bits used");

enum { RING = BB_UART16550_FIFO_BYTES };

struct bb_uart16550 {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_device *device;
    struct bb_region *region;
    struct bb_source *irq;
    void (*tx)(void *opaque, uint8_t byte);
    void (*rx_room)(void *opaque);
    void *opaque;

    /* Atomic, written by vCPUs and receivers. */
    uint64_t word;
    uint64_t slot[RING]; /* ticket << 8 | byte */
    uint8_t divisor_low; /* DLL, DLM and SCR: bytes that nothing depends on */
    uint8_t divisor_high;
    uint8_t scratch;
};

static unsigned w_get(uint64_t word, unsigned low, unsigned width)
{
    return (unsigned)bb_field_get(word, low, width);
}

static unsigned w_count(uint64_t word)
{
    return w_get(word, W_COUNT, W_COUNT_BITS);
}

static uint32_t w_tail(uint64_t word)
{
    return w_get(word, W_TAIL, W_TAIL_BITS);
}

static unsigned w_capacity(uint64_t word)
{
    return (word & W_FIFO) != 0 ? RING : 1;
}

static bool w_loops(uint64_t word)
{
    return (w_get(word, W_MCR, W_MCR_BITS) & MCR_LOOP) != 0;
}

static unsigned w_trigger(uint64_t word)
{
    static const uint8_t levels[] = {1, 4, 8, 14};
    return (word & W_FIFO) != 0 ? levels[w_get(word, W_TRIGGER, W_TRIGGER_BITS)] : 1;
}

/* Modem status lines: all asserted but RI, or in loop-back the four outputs (8.6.5). */
static unsigned w_modem(uint64_t word)
{
    unsigned mcr = w_get(word, W_MCR, W_MCR_BITS);
    if (!w_loops(word)) {
        return MSR_CTS | MSR_DSR | MSR_DCD;
    }
    return (mcr & MCR_RTS ? MSR_CTS : 0u) | (mcr & MCR_DTR ? MSR_DSR : 0u) |
           (mcr & MCR_OUT1 ? MSR_RI : 0u) | (mcr & MCR_OUT2 ? MSR_DCD : 0u);
}

/* The highest interrupt pending. */
static unsigned w_interrupt(uint64_t word)
{
    unsigned ier = w_get(word, W_IER, W_IER_BITS);
    if ((ier & IER_ELSI) != 0 && (word & W_OVERRUN) != 0) {
        return IIR_RLS;
    }
    if ((ier & IER_ERBFI) != 0 && w_count(word) != 0) {
        return w_count(word) >= w_trigger(word) ? IIR_RDA : IIR_TIMEOUT;
    }
    if ((ier & IER_ETBEI) != 0 && (word & W_THRE) != 0) {
        return IIR_THRE;
    }
    if ((ier & IER_EDSSI) != 0 && w_get(word, W_DELTA, W_DELTA_BITS) != 0) {
        return IIR_MODEM;
    }
    return IIR_NONE;
}

static uint64_t w_with_mcr(uint64_t word, unsigned mcr)
{
    unsigned before = w_modem(word);
    word = bb_field_set(word, W_MCR, W_MCR_BITS, mcr);
    unsigned after = w_modem(word);
    unsigned delta = ((before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4;
    delta |= (before & ~after & MSR_RI) >> 4; /* RI by its trailing edge only */
    return word | (uint64_t)delta << W_DELTA;
}

static uint64_t w_with_ier(uint64_t word, unsigned ier)
{
    if ((ier & ~w_get(word, W_IER, W_IER_BITS) & IER_ETBEI) != 0) {
        word |= W_THRE; /* enabled while empty: reported at once */
    }
    return bb_field_set(word, W_IER, W_IER_BITS, ier);
}

static uint64_t w_with_fcr(uint64_t word, unsigned fcr)
{
    bool enable = (fcr & FCR_ENABLE) != 0;
    if (enable != ((word & W_FIFO) != 0)) {
        /* Either change of mode clears the FIFOs. */
        word = bb_field_set(word ^ W_FIFO, W_COUNT, W_COUNT_BITS, 0);
    }
    if (!enable) {
        return word; /* the other bits can't be written then */
    }
    if ((fcr & FCR_RX_RESET) != 0) {
        word = bb_field_set(word, W_COUNT, W_COUNT_BITS, 0);
    }
    return bb_field_set(word, W_TRIGGER, W_TRIGGER_BITS, fcr >> FCR_TRIGGER_LOW);
}

/* Drives the interrupt output as the word says; called after each change of it. */
static void update_line(struct bb_ctx *ctx, struct bb_uart16550 *uart)
{
    bool level, again;
    do {
        /* Acquire: pairs with the swaps of `word`. */
        level = w_interrupt(bb_load_acquire(&uart->word)) != IIR_NONE;
        bb_source_set(ctx, uart->irq, level);
        /* Keeps the source's change before the load below. Without it two threads could each miss
         * the other's change, and leave the older level. Pairs with itself. */
        bb_fence_full();
        again = (w_interrupt(bb_load_acquire(&uart->word)) != IIR_NONE) != level;
    } while (again);
}

/* What follows a swap that may have made room for a sender that was turned away. */
static void tell_room(struct bb_uart16550 *uart, uint64_t before, uint64_t after)
{
    if ((before & ~after & W_STARVED) != 0 && uart->rx_room != NULL) {
        uart->rx_room(uart->opaque);
    }
}

/* Clears W_STARVED where there is room. */
static uint64_t w_feed(uint64_t word)
{
    bool room = w_count(word) < w_capacity(word) && !w_loops(word);
    return room ? word & ~W_STARVED : word;
}

/* Changes the word by `change` and does what follows from it. */
static void change_word(struct bb_ctx *ctx, struct bb_uart16550 *uart,
                        uint64_t (*change)(uint64_t word, unsigned value), unsigned value)
{
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    uint64_t next;
    do {
        next = w_feed(change(word, value));
    } while (!bb_cas_acq_rel(&uart->word, &word, next)); /* update_line(), and its like */
    tell_room(uart, word, next);
    update_line(ctx, uart);
}

/*
 * Invariant 2: puts one byte in. `word` is what the caller has judged there to be room by; it is
 * loaded anew for the caller. Returns false where something else happened first: judge again.
 */
static bool put(struct bb_uart16550 *uart, uint64_t *word, uint8_t byte)
{
    uint32_t ticket = w_tail(*word);
    uint64_t *slot = &uart->slot[ticket % RING];
    /* Acquire: pairs with the swap below, of another sender. */
    uint64_t found = bb_load_acquire(slot);
    bool mine = (uint32_t)(found >> 8) == ticket - RING &&
                /* Release: the byte is there for who counts it; take() reads it. */
                bb_cas_acq_rel(slot, &found, (uint64_t)ticket << 8 | byte);
    uint64_t seen = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    if (mine || (uint32_t)(found >> 8) == ticket) {
        while (w_tail(seen) == ticket &&
               /* Release: pairs with take(). */
               !bb_cas_acq_rel(
                   &uart->word, &seen,
                   bb_field_set(seen + BB_BIT64(W_COUNT), W_TAIL, W_TAIL_BITS, ticket + 1u))) {
        }
        seen = bb_load_acquire(&uart->word); /* likewise */
    }
    *word = seen;
    return mine;
}

/* Invariant 3: takes the oldest byte out; 0 where there is none. */
static uint8_t take(struct bb_ctx *ctx, struct bb_uart16550 *uart)
{
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with put() */
    while (w_count(word) != 0) {
        uint32_t ticket = w_tail(word) - w_count(word);
        uint8_t byte = (uint8_t)bb_load_acquire(&uart->slot[ticket % RING]); /* pairs with put() */
        uint64_t next = w_feed(word - BB_BIT64(W_COUNT));
        /* Release: the slot has been read before a sender sees it free. Pairs with put(). */
        if (bb_cas_acq_rel(&uart->word, &word, next)) {
            tell_room(uart, word, next);
            update_line(ctx, uart);
            return byte;
        }
    }
    return 0;
}

/* One byte from the wire, or round the loop, with no regard to room: table of 8.6.3, OE. */
static void put_raw(struct bb_uart16550 *uart, uint8_t byte, bool looped)
{
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    for (;;) {
        if (w_loops(word) != looped) {
            return; /* the receiver is connected to the other one by now */
        }
        if (w_count(word) < w_capacity(word)) {
            if (put(uart, &word, byte)) {
                return;
            }
            continue;
        }
        bool fifo = (word & W_FIFO) != 0;
        uint64_t next = word | W_OVERRUN;
        if (!fifo) {
            next -= BB_BIT64(W_COUNT); /* the old character is destroyed, then replaced */
        }
        if (next == word) {
            return; /* the new character is lost, and that is known already */
        }
        /* Release: pairs with update_line(). */
        if (bb_cas_acq_rel(&uart->word, &word, next)) {
            if (fifo) {
                return;
            }
            word = next;
        }
    }
}

size_t bb_uart16550_receive(struct bb_ctx *ctx, struct bb_uart16550 *uart, const uint8_t *bytes,
                            size_t n)
{
    size_t taken = 0;
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    while (taken < n) {
        if (w_count(word) < w_capacity(word) && !w_loops(word)) {
            taken += put(uart, &word, bytes[taken]) ? 1 : 0;
        } else if (bb_cas_acq_rel(&uart->word, &word, word | W_STARVED)) {
            break; /* still full at that swap: who makes room sees it. Pairs with take(). */
        }
    }
    if (taken != 0) {
        update_line(ctx, uart);
    }
    return taken;
}

void bb_uart16550_receive_raw(struct bb_ctx *ctx, struct bb_uart16550 *uart, const uint8_t *bytes,
                              size_t n)
{
    for (size_t i = 0; i < n; i++) {
        put_raw(uart, bytes[i], false);
    }
    update_line(ctx, uart);
}

static uint64_t w_transmitted(uint64_t word, unsigned unused)
{
    (void)unused;
    return word | W_THRE;
}

static void transmit(struct bb_ctx *ctx, struct bb_uart16550 *uart, uint64_t word, uint8_t byte)
{
    if (w_loops(word)) {
        put_raw(uart, byte, true);
    } else if (uart->tx != NULL) {
        uart->tx(uart->opaque, byte);
    }
    change_word(ctx, uart, w_transmitted, 0);
}

/* Reads the identification; reading "THR empty" is what resets it. */
static unsigned identify(struct bb_ctx *ctx, struct bb_uart16550 *uart)
{
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    unsigned iir = w_interrupt(word);
    while (iir == IIR_THRE) {
        /* Release: pairs with update_line(). */
        if (bb_cas_acq_rel(&uart->word, &word, word & ~W_THRE)) {
            update_line(ctx, uart);
            break;
        }
        iir = w_interrupt(word);
    }
    return iir | ((word & W_FIFO) != 0 ? IIR_FIFOS : 0u);
}

/* Clears the given bits, as a read of LSR or MSR does, and returns the word as it was. */
static uint64_t read_and_clear(struct bb_ctx *ctx, struct bb_uart16550 *uart, uint64_t bits)
{
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with the swaps of `word` */
    while ((word & bits) != 0) {
        /* Release: pairs with update_line(). */
        if (bb_cas_acq_rel(&uart->word, &word, word & ~bits)) {
            update_line(ctx, uart);
            break;
        }
    }
    return word;
}

static int uart_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t *value)
{
    struct bb_uart16550 *uart = opaque;
    (void)size;
    /* Acquire: a poll that sees a byte counted finds it. Pairs with put(). */
    uint64_t word = bb_load_acquire(&uart->word);
    bool dlab = (w_get(word, W_LCR, W_LCR_BITS) & LCR_DLAB) != 0;
    switch (offset) {
    case RBR_THR:
        /* Relaxed, here and below: bytes that nothing depends on. */
        *value = dlab ? bb_load_relaxed(&uart->divisor_low) : take(ctx, uart);
        break;
    case IER:
        *value = dlab ? bb_load_relaxed(&uart->divisor_high) : w_get(word, W_IER, W_IER_BITS);
        break;
    case IIR_FCR:
        *value = identify(ctx, uart);
        break;
    case LCR:
        *value = w_get(word, W_LCR, W_LCR_BITS);
        break;
    case MCR:
        *value = w_get(word, W_MCR, W_MCR_BITS);
        break;
    case LSR:
        word = read_and_clear(ctx, uart, W_OVERRUN);
        *value = LSR_THRE | LSR_TEMT | (w_count(word) != 0 ? LSR_DR : 0u) |
                 ((word & W_OVERRUN) != 0 ? LSR_OE : 0u);
        break;
    case MSR:
        word = read_and_clear(ctx, uart, bb_mask_low(W_DELTA_BITS) << W_DELTA);
        *value = w_modem(word) | w_get(word, W_DELTA, W_DELTA_BITS);
        break;
    default:
        *value = bb_load_relaxed(&uart->scratch);
        break;
    }
    return BB_OK;
}

static uint64_t w_with_lcr(uint64_t word, unsigned lcr)
{
    return bb_field_set(word, W_LCR, W_LCR_BITS, lcr);
}

static int uart_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                      uint64_t value)
{
    struct bb_uart16550 *uart = opaque;
    uint8_t byte = (uint8_t)value;
    (void)size;
    uint64_t word = bb_load_acquire(&uart->word); /* pairs with change_word() */
    bool dlab = (w_get(word, W_LCR, W_LCR_BITS) & LCR_DLAB) != 0;
    switch (offset) {
    case RBR_THR:
        if (dlab) {
            bb_store_relaxed(&uart->divisor_low, byte); /* as in uart_read() */
        } else {
            transmit(ctx, uart, word, byte);
        }
        break;
    case IER:
        if (dlab) {
            bb_store_relaxed(&uart->divisor_high, byte); /* likewise */
        } else {
            change_word(ctx, uart, w_with_ier, byte & IER_BITS);
        }
        break;
    case IIR_FCR:
        change_word(ctx, uart, w_with_fcr, byte);
        break;
    case LCR:
        change_word(ctx, uart, w_with_lcr, byte);
        break;
    case MCR:
        change_word(ctx, uart, w_with_mcr, byte & MCR_BITS);
        break;
    case SCR:
        bb_store_relaxed(&uart->scratch, byte); /* likewise */
        break;
    default:
        break; /* LSR and MSR are for the factory's tests alone */
    }
    return BB_OK;
}

static const struct bb_region_ops uart_ops = {.read = uart_read, .write = uart_write};

static const struct bb_path_row uart_paths[] = {
    {"RBR/THR/DLL", RBR_THR, RBR_THR, BB_PATH_LOCK_FREE, BB_PATH_LOCK_FREE, NULL},
    {"IER/DLM", IER, IER, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    {"IIR/FCR", IIR_FCR, IIR_FCR, BB_PATH_LOCK_FREE, BB_PATH_LOCK_FREE, NULL},
    {"LCR", LCR, LCR, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    {"MCR", MCR, MCR, BB_PATH_WAIT_FREE, BB_PATH_LOCK_FREE, NULL},
    {"LSR", LSR, LSR, BB_PATH_LOCK_FREE, BB_PATH_WAIT_FREE, NULL},
    {"MSR", MSR, MSR, BB_PATH_LOCK_FREE, BB_PATH_WAIT_FREE, NULL},
    {"SCR", SCR, SCR, BB_PATH_WAIT_FREE, BB_PATH_WAIT_FREE, NULL},
};

static void relevel(struct bb_ctx *ctx, void *opaque)
{
    update_line(ctx, opaque);
}

static void uart_destroy(void *opaque)
{
    struct bb_uart16550 *uart = opaque;
    bb_device_free(uart->engine, uart, sizeof *uart);
}

static const struct bb_device_ops device_ops = {.relevel = relevel, .destroy = uart_destroy};

struct bb_device *bb_uart16550_device(const struct bb_uart16550 *uart)
{
    return uart->device;
}

struct bb_region *bb_uart16550_region(const struct bb_uart16550 *uart)
{
    return uart->region;
}

int bb_uart16550_create(struct bb_ctx *ctx, const struct bb_uart16550_config *config,
                        struct bb_uart16550 **out, struct bb_error *err)
{
    static const struct bb_uart16550_config defaults;
    if (config == NULL) {
        config = &defaults;
    }
    const char *name = config->name != NULL ? config->name : "uart16550";
    struct bb_engine *engine = bb_ctx_engine(ctx);
    struct bb_uart16550 *uart = bb_device_alloc(engine, sizeof *uart);
    if (uart == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for UART %s", name);
    }
    uart->engine = engine;
    uart->tx = config->tx;
    uart->rx_room = config->rx_room;
    uart->opaque = config->opaque;
    uart->word = W_THRE; /* master reset (table III): all zero, and the transmitter empty */
    for (uint32_t i = 0; i < RING; i++) {
        uart->slot[i] = (uint64_t)(uint32_t)(i - RING) << 8;
    }

    const struct bb_device_config device = {.name = name, .ops = &device_ops, .opaque = uart};
    int result = bb_device_create(ctx, &device, &uart->device, err);
    if (result != BB_OK) {
        bb_device_free(engine, uart, sizeof *uart);
        return result;
    }
    const struct bb_region_config region = {
        .name = name,
        .size_bytes = BB_UART16550_SIZE_BYTES,
        .ops = &uart_ops,
        .opaque = uart,
        .klass = BB_CLASS_LOCKFREE,
        .rules = {.valid_min = 1, .valid_max = 4, .impl_min = 1, .impl_max = 1},
        .paths = uart_paths,
        .path_count = BB_ARRAY_LEN(uart_paths),
    };
    result = bb_source_create(ctx, uart->device, config->irq, &uart->irq, err);
    if (result == BB_OK) {
        result = bb_device_region_create(ctx, uart->device, &region, &uart->region, err);
    }
    if (result != BB_OK) {
        /* Nothing of it is in use; removal frees `uart`. */
        (void)bb_device_remove(ctx, uart->device, NULL, NULL, NULL);
        return result;
    }
    *out = uart;
    return BB_OK;
}
