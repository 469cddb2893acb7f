/* SPDX-License-Identifier: MIT */
/* Senders, readers, pollers and mode changes at once: bytes arrive whole, once and in order, and
 * the interrupt line ends as the registers say. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <pthread.h>

enum { READERS = 2 };

struct shared {
    struct rig *rig;
    uint64_t until_ns;
    uint32_t stop;         /* (a) */
    uint64_t accepted[2];  /* by sender */
    uint64_t by_byte[256]; /* (a) read, by value */
    uint64_t read_count;   /* (a) */
    const char *wrong;     /* (a) */
};

static bool stopped(struct shared *shared)
{
    return bb_load_acquire(&shared->stop) != 0 || host_ns() >= shared->until_ns;
}

struct sender {
    struct shared *shared;
    unsigned self; /* bit 7 of what it sends; bits 0 to 6 count */
};

static void *send(void *opaque)
{
    struct sender *sender = opaque;
    struct shared *shared = sender->shared;
    uint64_t n = 0;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(shared->rig->engine, "sender", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        uint8_t bytes[5];
        for (unsigned i = 0; i < sizeof(bytes); i++) {
            bytes[i] = (uint8_t)(sender->self << 7 | ((n + i) & 0x7f));
        }
        n += bb_uart16550_receive(ctx, shared->rig->uart, bytes, sizeof(bytes));
    }
    shared->accepted[sender->self] = n;
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* The only reader: each sender's bytes must come in their order. */
static void *read_in_order(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    uint8_t expected[2] = {0, 0};
    uint64_t lsr, byte;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "reader", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    for (;;) {
        bool last = bb_load_acquire(&shared->stop) == 2;
        (void)bb_mmio_read(ctx, rig->ports, PORT + LSR, 1, &lsr);
        if ((lsr & 1) == 0) {
            if (last) {
                break;
            }
            continue;
        }
        (void)bb_mmio_read(ctx, rig->ports, PORT + RBR, 1, &byte);
        if ((byte & 0x7f) != expected[byte >> 7]) {
            bb_store_relaxed(&shared->wrong, "a sender's bytes came out of order, or not at all");
        }
        expected[byte >> 7] = (uint8_t)((byte + 1) & 0x7f);
        (void)bb_fetch_add_relaxed(&shared->read_count, 1);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

/* Polls and writes what must not disturb reception. */
static void *poll(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    uint64_t state = seed(8);
    uint64_t value;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "poller", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        uint64_t r = next_random(&state);
        (void)bb_mmio_read(ctx, rig->ports, PORT + IIR, 1, &value);
        (void)bb_mmio_read(ctx, rig->ports, PORT + MSR, 1, &value);
        (void)bb_mmio_write(ctx, rig->ports, PORT + IER, 1, r & 15);
        (void)bb_mmio_write(ctx, rig->ports, PORT + THR, 1, 'x');
        (void)bb_mmio_write(ctx, rig->ports, PORT + FCR, 1, (r >> 8 & 0xc0) | 1);
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

static void expect_line_matches(struct rig *rig)
{
    for (unsigned ier = 0; ier < 16; ier++) {
        cr_assert_eq(irq(rig), (in(rig, IIR) & 1) == 0, "IIR and the line agree");
        out(rig, IER, (uint8_t)ier);
    }
}

Test(uart16550_torture, received_bytes_come_once_and_in_each_senders_order, .timeout = 120)
{
    struct rig *rig = set_up();
    struct shared shared = {.rig = rig, .until_ns = host_ns() + stress_ns()};
    struct sender senders[2] = {{&shared, 0}, {&shared, 1}};
    pthread_t threads[4];

    out(rig, FCR, 0x01);
    cr_assert_eq(pthread_create(&threads[0], NULL, send, &senders[0]), 0);
    cr_assert_eq(pthread_create(&threads[1], NULL, send, &senders[1]), 0);
    cr_assert_eq(pthread_create(&threads[2], NULL, poll, &shared), 0);
    cr_assert_eq(pthread_create(&threads[3], NULL, read_in_order, &shared), 0);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    bb_store_release(&shared.stop, 2);
    cr_assert_eq(pthread_join(threads[3], NULL), 0);
    cr_assert_null(shared.wrong, "%s", shared.wrong);
    cr_assert_eq(shared.read_count, shared.accepted[0] + shared.accepted[1]);
    cr_assert_gt(shared.read_count, 0);
    expect_line_matches(rig);
    tear_down(rig);
}

/* Several readers, none of which may get a byte that another got. */
static void *read_any(void *opaque)
{
    struct shared *shared = opaque;
    struct rig *rig = shared->rig;
    uint64_t byte;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "reader", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    for (;;) {
        bool last = bb_load_acquire(&shared->stop) == 2;
        (void)bb_mmio_read(ctx, rig->ports, PORT + RBR, 1, &byte);
        if (byte != 0) { /* nothing there; senders below never send 0 */
            (void)bb_fetch_add_relaxed(&shared->by_byte[byte], 1);
        } else if (last) {
            break;
        }
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

static void *send_counted(void *opaque)
{
    struct sender *sender = opaque;
    struct shared *shared = sender->shared;
    uint64_t n = 0;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(shared->rig->engine, "sender", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        uint8_t byte = (uint8_t)(n % 255 + 1);
        n += bb_uart16550_receive(ctx, shared->rig->uart, &byte, 1);
    }
    shared->accepted[sender->self] = n;
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(uart16550_torture, two_readers_never_get_the_same_byte, .timeout = 120)
{
    struct rig *rig = set_up();
    struct shared shared = {.rig = rig, .until_ns = host_ns() + stress_ns()};
    struct sender sender = {&shared, 0};
    pthread_t threads[READERS + 1];

    out(rig, FCR, 0x01);
    cr_assert_eq(pthread_create(&threads[READERS], NULL, send_counted, &sender), 0);
    for (unsigned i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, read_any, &shared), 0);
    }
    cr_assert_eq(pthread_join(threads[READERS], NULL), 0);
    bb_store_release(&shared.stop, 2);
    for (unsigned i = 0; i < READERS; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    uint64_t n = shared.accepted[0];
    for (unsigned byte = 1; byte < 256; byte++) {
        uint64_t sent = n / 255 + (byte - 1 < n % 255 ? 1 : 0);
        cr_assert_eq(shared.by_byte[byte], sent, "byte %u: %llu sent, %llu read", byte,
                     (unsigned long long)sent, (unsigned long long)shared.by_byte[byte]);
    }
    tear_down(rig);
}

/* Everything at once, mode changes, loop-back and overruns too: only the end is judged. */
static void *abuse(void *opaque)
{
    struct sender *sender = opaque;
    struct shared *shared = sender->shared;
    struct rig *rig = shared->rig;
    uint64_t state = seed(9) + sender->self;
    uint64_t value;
    struct bb_ctx *ctx;

    if (bb_ctx_attach(rig->engine, "abuser", &ctx, NULL) != BB_OK) {
        return NULL;
    }
    while (!stopped(shared)) {
        uint64_t r = next_random(&state);
        uint8_t bytes[4] = {1, 2, 3, 4};
        switch (r & 7) {
        case 0:
            bb_uart16550_receive_raw(ctx, rig->uart, bytes, sizeof(bytes));
            break;
        case 1:
            (void)bb_uart16550_receive(ctx, rig->uart, bytes, sizeof(bytes));
            break;
        case 2:
            (void)bb_mmio_write(ctx, rig->ports, PORT + FCR, 1, r >> 16);
            break;
        case 3:
            (void)bb_mmio_write(ctx, rig->ports, PORT + MCR, 1, r >> 16 & 0x1f);
            break;
        case 4:
            (void)bb_mmio_write(ctx, rig->ports, PORT + THR, 1, r >> 16);
            break;
        case 5:
            (void)bb_mmio_write(ctx, rig->ports, PORT + IER, 1, r >> 16);
            break;
        default:
            (void)bb_mmio_read(ctx, rig->ports, PORT + (r >> 16 & 7), 1, &value);
            break;
        }
    }
    (void)bb_ctx_detach(ctx, NULL);
    return NULL;
}

Test(uart16550_torture, after_any_abuse_line_and_registers_agree_and_it_still_works, .timeout = 120)
{
    struct rig *rig = set_up();
    uint64_t until_ns = host_ns() + stress_ns();

    do {
        struct shared shared = {.rig = rig, .until_ns = host_ns() + 5000000};
        struct sender abusers[3] = {{&shared, 0}, {&shared, 1}, {&shared, 2}};
        pthread_t threads[3];

        for (unsigned i = 0; i < 3; i++) {
            cr_assert_eq(pthread_create(&threads[i], NULL, abuse, &abusers[i]), 0);
        }
        for (unsigned i = 0; i < 3; i++) {
            cr_assert_eq(pthread_join(threads[i], NULL), 0);
        }
        cr_assert_eq(irq(rig), (in(rig, IIR) & 1) == 0, "the line was left behind");
        expect_line_matches(rig);
        out(rig, MCR, 0x00);
        out(rig, FCR, 0x01);
        out(rig, FCR, 0x03);
        cr_assert_eq(receive(rig, "0123456789abcdefg"), 16);
        for (const char *c = "0123456789abcdef"; *c != '\0'; c++) {
            cr_assert_eq(in(rig, RBR), *c);
        }
    } while (host_ns() < until_ns);
    tear_down(rig);
}
