/* SPDX-License-Identifier: MIT */
/*
 * DMA from several threads at once: data is there when its announcement is, atomics lose nothing,
 * words are whole, and memory stays under a mapping or an access however the map changes.
 */
#include "fixture.h"

#include <sched.h>
#include <string.h>

#include "../../engine/dma.h"

enum { THREADS_MAX = 16, DATA = 0x200, DATA_WORDS = 32 };

static struct machine machine;
static const struct bb_attrs nobody;
static uint32_t stop;
static uint64_t wrong; /* counted by threads, judged by main */

static void setup(void)
{
    bb_store_relaxed(&stop, 0);
    bb_store_relaxed(&wrong, 0);
}

TestSuite(dma_torture, .init = setup, .timeout = 300);

static void note_wrong(bool is)
{
    if (is) {
        (void)bb_fetch_add_relaxed(&wrong, 1); /* main reads it after joining */
    }
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Data before its announcement (chain.c, invariant 7). */

static struct bb_line *line;
static struct bb_source *source;
static struct probe owner;
static uint64_t taken;   /* rounds that the reader is through with */
static uint64_t message; /* what the sink has last delivered */

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    (void)address;
    /* Relaxed on purpose: bb_msi_send() has a fence before it. Pairs with read_messages(). */
    bb_store_relaxed(&message, data);
    return BB_OK;
}

static void announce_make(void)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver}};

    machine_make(&machine, &config);
    owner = (struct probe){0};
    probe_make(&machine, &owner, "owner", 0, BB_CLASS_LOCKFREE);
    cr_assert_eq(bb_line_create(machine.ctx, "line", NULL, &line, NULL), BB_OK);
    cr_assert_eq(bb_source_create(machine.ctx, owner.device, line, &source, NULL), BB_OK);
    bb_store_relaxed(&taken, 0);
    bb_store_relaxed(&message, 0);
}

static void announce_drop(void)
{
    probe_drop(&owner);
    cr_assert_eq(bb_line_destroy(machine.ctx, line, NULL), BB_OK);
    machine_drop(&machine);
}

/*
 * Takes each announcement, then reads RAM by plain loads: nothing but the line orders them, so the
 * thread sanitizer reports a line that does not.
 */
static void read_behind_line(struct bb_ctx *ctx, void *arg)
{
    const uint64_t *words = (const uint64_t *)(const void *)(machine.ram_host + DATA);

    (void)ctx;
    (void)arg;
    for (uint64_t round = 1;; round++) {
        for (;;) {
            struct bb_line_state state = bb_line_read(line);
            if (state.level == (round & 1) && state.rises == (round + 1) / 2) {
                break;
            }
            if (bb_load_relaxed(&stop) != 0) {
                return;
            }
            sched_yield();
        }
        for (unsigned i = 0; i < DATA_WORDS; i++) {
            note_wrong(words[i] != round);
        }
        bb_store_release(&taken, round); /* pairs with the writer's acquire load */
    }
}

Test(dma_torture, data_is_there_when_the_line_that_announces_it_is_set)
{
    struct worker reader;
    uint64_t words[DATA_WORDS];
    uint64_t until = host_ns() + stress_seconds() * UINT64_C(500000000);
    uint64_t round = 0;

    announce_make();
    worker_start(&reader, &machine, "reader", read_behind_line, NULL);
    while (host_ns() < until) {
        round++;
        for (unsigned i = 0; i < DATA_WORDS; i++) {
            words[i] = round;
        }
        cr_assert_eq(
            bb_dma_write(machine.ctx, machine.mmio, DATA, words, sizeof(words), nobody, NULL),
            BB_OK);
        bb_source_set(machine.ctx, source, (round & 1) != 0);
        while (bb_load_acquire(&taken) != round) { /* pairs with the reader's store */
            sched_yield();
        }
    }
    bb_store_relaxed(&stop, 1);
    worker_join(&reader);
    cr_assert_eq(wrong, 0, "%llu words of old data after %llu announcements",
                 (unsigned long long)wrong, (unsigned long long)round);
    cr_assert_gt(round, 0);
    announce_drop();
}

/* Nobody waits for anybody: what is read is never older than what was announced. */
static void read_messages(struct bb_ctx *ctx, void *arg)
{
    uint64_t value = 0;

    (void)arg;
    while (bb_load_relaxed(&stop) == 0) {
        uint64_t seen = bb_load_acquire(&message); /* pairs with the fence in bb_msi_send() */
        struct bb_line_state state = bb_line_read(line);

        note_wrong(bb_dma_load(ctx, machine.mmio, DATA, 8, BB_BIG_ENDIAN, nobody, &value) != BB_OK);
        note_wrong(value < seen || value < state.rises);
    }
}

Test(dma_torture, data_is_never_older_than_a_message_or_a_pulse_that_was_seen)
{
    struct worker readers[2];
    uint64_t until = host_ns() + stress_seconds() * UINT64_C(500000000);
    uint64_t round = 0;

    announce_make();
    for (unsigned i = 0; i < 2; i++) {
        worker_start(&readers[i], &machine, "reader", read_messages, NULL);
    }
    while (host_ns() < until && round < UINT32_MAX) {
        round++;
        cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, DATA, 8, BB_BIG_ENDIAN, nobody, round),
                     BB_OK);
        cr_assert_eq(bb_msi_send(machine.ctx, 0, (uint32_t)round), BB_OK);
        bb_source_pulse(machine.ctx, source);
    }
    bb_store_relaxed(&stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        worker_join(&readers[i]);
    }
    cr_assert_eq(wrong, 0);
    announce_drop();
}

/* Atomics. */

enum {
    ATOMIC_ROUNDS = 20000,
    ADD_8_LE = 0,
    ADD_8_BE = 8,
    ADD_4_LE = 16,
    ADD_4_BE = 20,
    TOGGLE = 24,
    COUNT_CAS = 32,
    BITS = 40
};

static void change(struct bb_ctx *ctx, bb_gpa_t at, unsigned size, enum bb_endian endian,
                   enum bb_atomic_op op, uint64_t operand)
{
    uint64_t old;

    note_wrong(bb_dma_atomic(ctx, machine.mmio, at, size, endian, nobody, op, 0, operand, &old) !=
               BB_OK);
}

static void change_all(struct bb_ctx *ctx, void *arg)
{
    unsigned n = (unsigned)(uintptr_t)arg;

    for (unsigned i = 0; i < ATOMIC_ROUNDS; i++) {
        uint64_t expected = 0, old;

        change(ctx, ADD_8_LE, 8, BB_LITTLE_ENDIAN, BB_ATOMIC_ADD, 0x100000001);
        change(ctx, ADD_8_BE, 8, BB_BIG_ENDIAN, BB_ATOMIC_ADD, 0x100000001);
        change(ctx, ADD_4_LE, 4, BB_LITTLE_ENDIAN, BB_ATOMIC_ADD, 3);
        change(ctx, ADD_4_BE, 4, BB_BIG_ENDIAN, BB_ATOMIC_ADD, 3);
        change(ctx, TOGGLE, 8, BB_BIG_ENDIAN, BB_ATOMIC_XOR, BB_BIT64(n));
        change(ctx, BITS, 4, BB_BIG_ENDIAN, (i & 1) == 0 ? BB_ATOMIC_OR : BB_ATOMIC_AND,
               (i & 1) == 0 ? BB_BIT64(n) : ~BB_BIT64(n));
        for (;;) {
            note_wrong(bb_dma_atomic(ctx, machine.mmio, COUNT_CAS, 4, BB_BIG_ENDIAN, nobody,
                                     BB_ATOMIC_COMPARE_EXCHANGE, expected, expected + 1,
                                     &old) != BB_OK);
            if (old == expected) {
                break;
            }
            expected = old;
        }
    }
}

static uint64_t value_at(bb_gpa_t at, unsigned size, enum bb_endian endian)
{
    uint64_t value = 0;

    cr_assert_eq(bb_dma_load(machine.ctx, machine.mmio, at, size, endian, nobody, &value), BB_OK);
    return value;
}

Test(dma_torture, atomics_of_many_threads_lose_nothing_in_either_order)
{
    struct worker workers[THREADS_MAX];
    unsigned threads = stress_threads(4);

    threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    machine_make(&machine, NULL);
    for (unsigned i = 0; i < threads; i++) {
        worker_start(&workers[i], &machine, "adder", change_all, (void *)(uintptr_t)i);
    }
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&workers[i]);
    }
    uint64_t sum = (uint64_t)threads * ATOMIC_ROUNDS;
    cr_assert_eq(wrong, 0);
    cr_assert_eq(value_at(ADD_8_LE, 8, BB_LITTLE_ENDIAN), sum * 0x100000001);
    cr_assert_eq(value_at(ADD_8_BE, 8, BB_BIG_ENDIAN), sum * 0x100000001);
    cr_assert_eq(value_at(ADD_4_LE, 4, BB_LITTLE_ENDIAN), sum * 3);
    cr_assert_eq(value_at(ADD_4_BE, 4, BB_BIG_ENDIAN), sum * 3);
    cr_assert_eq(value_at(COUNT_CAS, 4, BB_BIG_ENDIAN), sum);
    cr_assert_eq(value_at(TOGGLE, 8, BB_BIG_ENDIAN), 0, "toggled an even number of times");
    cr_assert_eq(value_at(BITS, 4, BB_BIG_ENDIAN), 0);
    machine_drop(&machine);
}

/* Memory that comes and goes. */

enum { SLOTS = 6, SLOT_BYTES = 0x4000, SLOT_WORDS = SLOT_BYTES / 8, HELD = 4 };
#define SLOT_GPA UINT64_C(0x10000000)
#define MAGIC UINT64_C(0x5eed000000000000)
#define POISON UINT64_C(0xdddddddddddddddd)

static struct slot {
    uint64_t words[SLOT_WORDS];
    struct bb_region *region; /* main's */
    uint32_t busy;            /* until its removal is complete */
} slots[SLOTS];

/* Whoever still touched it would race with this, and read what is no word of ours. */
static void slot_gone(void *opaque)
{
    struct slot *slot = opaque;

    for (unsigned i = 0; i < SLOT_WORDS; i++) {
        slot->words[i] = POISON;
    }
    bb_store_release(&slot->busy, 0); /* pairs with slot_fresh() */
}

static struct slot *slot_fresh(void)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &slots[i];

        if (bb_load_acquire(&slot->busy) == 0) { /* pairs with slot_gone() */
            struct bb_ram_config config = {
                .name = "slot", .size_bytes = SLOT_BYTES, .host = slot->words};
            for (unsigned j = 0; j < SLOT_WORDS; j++) {
                slot->words[j] = MAGIC | j;
            }
            if (bb_ram_create(machine.ctx, &config, &slot->region, NULL) != BB_OK) {
                return NULL;
            }
            bb_store_relaxed(&slot->busy, 1);
            return slot;
        }
    }
    return NULL;
}

static bool is_ours(uint64_t word)
{
    return (word & UINT64_C(0xffff000000000000)) == MAGIC;
}

struct mapped {
    struct bb_dma_mapping *mapping;
    uint64_t length;
};

static void hold(struct bb_ctx *ctx, struct mapped *held, uint64_t r)
{
    if (held->mapping != NULL) {
        uint64_t *words = bb_dma_host(held->mapping);

        for (uint64_t i = 0; i < held->length / 8; i++) {
            note_wrong(!is_ours(bb_load_relaxed(&words[i])));
            bb_store_relaxed(&words[i], MAGIC | (r & 0xffff));
        }
        note_wrong(bb_dma_unmap(ctx, held->mapping, held->length) != BB_OK);
        held->mapping = NULL;
        return;
    }
    held->length = 8 + (r >> 8) % 64 * 8;
    int result = bb_dma_map(ctx, machine.mmio, SLOT_GPA + (r >> 20) % (SLOT_WORDS - 64) * 8,
                            &held->length, BB_DMA_BOTH, nobody, &held->mapping, NULL);
    note_wrong(result != BB_OK && result != BB_E_DECODE);
    if (result != BB_OK) {
        held->mapping = NULL;
    }
}

static void use_slots(struct bb_ctx *ctx, void *arg)
{
    uint64_t state = (uintptr_t)arg * UINT64_C(0x9e3779b97f4a7c15) + 1;
    struct mapped held[HELD] = {0};
    uint64_t words[512];

    while (bb_load_relaxed(&stop) == 0) {
        uint64_t r = random_next(&state);
        uint64_t count = 1 + (r >> 40) % BB_ARRAY_LEN(words);
        bb_gpa_t at = SLOT_GPA + (r >> 20) % (SLOT_WORDS - BB_ARRAY_LEN(words)) * 8;
        size_t done = 0;
        int result;

        switch (r & 7) {
        case 0:
        case 1:
            result = bb_dma_read(ctx, machine.mmio, at, words, count * 8, nobody, &done);
            note_wrong(result != BB_OK && result != BB_E_DECODE);
            note_wrong(done % 8 != 0);
            for (size_t i = 0; i < done / 8; i++) {
                note_wrong(!is_ours(words[i]));
            }
            break;
        case 2:
            for (uint64_t i = 0; i < count; i++) {
                words[i] = MAGIC | (r & 0xffffff);
            }
            result = bb_dma_write(ctx, machine.mmio, at, words, count * 8, nobody, &done);
            note_wrong(result != BB_OK && result != BB_E_DECODE);
            break;
        case 3:
            result = bb_dma_store(ctx, machine.mmio, at, 8, BB_LITTLE_ENDIAN, nobody, MAGIC | 1);
            note_wrong(result != BB_OK && result != BB_E_DECODE);
            break;
        case 4:
            result = bb_dma_load(ctx, machine.mmio, at, 8, BB_LITTLE_ENDIAN, nobody, &words[0]);
            note_wrong(result != BB_OK && result != BB_E_DECODE);
            note_wrong(result == BB_OK && !is_ours(words[0]));
            break;
        case 5:
            result = bb_dma_atomic(ctx, machine.mmio, at, 8, BB_LITTLE_ENDIAN, nobody,
                                   BB_ATOMIC_EXCHANGE, 0, MAGIC | 2, &words[0]);
            note_wrong(result != BB_OK && result != BB_E_DECODE);
            note_wrong(result == BB_OK && !is_ours(words[0]));
            break;
        default:
            hold(ctx, &held[(r >> 50) % HELD], r);
        }
    }
    for (unsigned i = 0; i < HELD; i++) {
        if (held[i].mapping != NULL) {
            note_wrong(bb_dma_unmap(ctx, held[i].mapping, 8) != BB_OK);
        }
    }
}

Test(dma_torture, memory_stays_under_copies_and_mappings_while_it_is_moved_and_removed)
{
    struct worker workers[THREADS_MAX];
    unsigned threads = stress_threads(3), changes = 0;
    uint64_t until = host_ns() + stress_seconds() * UINT64_C(1000000000);

    threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    machine_make(&machine, NULL);
    memset(slots, 0, sizeof(slots));
    struct slot *slot = slot_fresh();
    cr_assert_not_null(slot);
    cr_assert_eq(bb_space_map(machine.ctx, machine.mmio, SLOT_GPA, slot->region, NULL), BB_OK);
    for (unsigned i = 0; i < threads; i++) {
        worker_start(&workers[i], &machine, "user", use_slots, (void *)(uintptr_t)(i + 1));
    }
    while (host_ns() < until) {
        struct slot *next = slot_fresh();

        cr_assert_eq(
            bb_region_move(machine.ctx, slot->region, SLOT_GPA + (changes & 1) * 0x1000, NULL),
            BB_OK);
        cr_assert_eq(bb_region_move(machine.ctx, slot->region, SLOT_GPA, NULL), BB_OK);
        if (next == NULL) {
            sched_yield();
            continue;
        }
        /* One takes the other's place at once; the old one goes when nobody holds it. */
        struct bb_txn *txn;
        cr_assert_eq(bb_txn_begin(machine.ctx, &txn, NULL), BB_OK);
        cr_assert_eq(bb_txn_unmap(txn, slot->region, NULL), BB_OK);
        cr_assert_eq(bb_txn_map(txn, machine.mmio, SLOT_GPA, next->region, NULL), BB_OK);
        cr_assert_eq(bb_txn_commit(txn, NULL), BB_OK);
        cr_assert_eq(bb_region_remove(machine.ctx, slot->region, slot_gone, slot, NULL), BB_OK);
        slot = next;
        changes++;
    }
    bb_store_relaxed(&stop, 1);
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&workers[i]);
    }
    cr_assert_eq(wrong, 0, "%llu wrong words or results", (unsigned long long)wrong);
    cr_assert_gt(changes, 0);
    cr_assert_eq(bb_region_remove_wait(machine.ctx, slot->region, NULL), BB_OK);
    for (unsigned i = 0; i < SLOTS; i++) {
        while (&slots[i] != slot && bb_load_acquire(&slots[i].busy) != 0) { /* as above */
            sched_yield();
        }
    }
    machine_drop(&machine);
}

/* Devices that copy to one another. */

enum { RING = 3, PACKET = 512 };

static struct probe ring[RING];
static uint64_t packets[RING]; /* guarded by the device's lock */

/* A write to a device's first word has it send a packet to the next one, to memory, and say so. */
static int send_packet(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                       uint64_t value)
{
    unsigned n = (unsigned)(probe - ring);
    struct bb_dma_mapping *mapping = NULL;
    uint8_t packet[PACKET];
    uint64_t length = PACKET;

    (void)size;
    if (offset != 0) {
        note_wrong(value != UINT64_C(0x0101010101010101) * (n == 0 ? RING : n));
        packets[n]++;
        return BB_OK;
    }
    memset(packet, (int)(n + 1), sizeof(packet));
    note_wrong(bb_dma_write(ctx, machine.mmio, ring[(n + 1) % RING].gpa + 8, packet, PACKET, nobody,
                            NULL) != BB_OK);
    note_wrong(bb_dma_fill(ctx, machine.mmio, n * 0x1000, (uint8_t)value, PACKET, nobody, NULL) !=
               BB_OK);
    int result =
        bb_dma_map(ctx, machine.mmio, n * 0x1000 + 8, &length, BB_DMA_BOTH, nobody, &mapping, NULL);
    note_wrong(result != BB_OK);
    if (result == BB_OK) {
        const uint8_t *bytes = bb_dma_host(mapping);
        note_wrong(!bb_dma_bounced(mapping) || bytes[0] != (uint8_t)value);
        note_wrong(bb_dma_unmap(ctx, mapping, 0) != BB_OK);
    }
    return bb_msi_send(ctx, 0, 1);
}

static void start_packets(struct bb_ctx *ctx, void *arg)
{
    unsigned n = (unsigned)(uintptr_t)arg;

    for (uint64_t i = 0; bb_load_relaxed(&stop) == 0; i++) {
        note_wrong(bb_mmio_write(ctx, machine.mmio, ring[(n + i) % RING].gpa, 4, i) != BB_OK);
    }
}

Test(dma_torture, devices_that_copy_to_one_another_under_their_locks_neither_wait_nor_lose)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = deliver}};
    struct bb_region_config region = {.klass = BB_CLASS_DEVICE_LOCK, .size_bytes = 0x1000};
    struct worker workers[THREADS_MAX];
    unsigned threads = stress_threads(3);
    uint64_t until = host_ns() + stress_seconds() * UINT64_C(500000000);
    uint64_t sent = 0, arrived = 0;

    threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    machine_make(&machine, &config);
    for (unsigned n = 0; n < RING; n++) {
        ring[n] = (struct probe){.write = send_packet};
        packets[n] = 0;
        probe_make_config(&machine, &ring[n], "ring", n, &region);
    }
    for (unsigned i = 0; i < threads; i++) {
        worker_start(&workers[i], &machine, "sender", start_packets, (void *)(uintptr_t)i);
    }
    while (host_ns() < until) {
        /* Whole packets at every pause: nothing of a chain is left out or behind. */
        cr_assert_eq(bb_engine_pause(machine.ctx, 0, NULL), BB_OK);
        uint64_t writes = 0, words = 0;
        for (unsigned n = 0; n < RING; n++) {
            writes += bb_load_relaxed(&ring[n].writes);
            words += packets[n];
        }
        cr_assert_eq(words % (PACKET / 8), 0);
        cr_assert_eq(writes, words + words / (PACKET / 8));
        cr_assert_eq(bb_engine_resume(machine.ctx, NULL), BB_OK);
    }
    bb_store_relaxed(&stop, 1);
    for (unsigned i = 0; i < threads; i++) {
        worker_join(&workers[i]);
    }
    for (unsigned n = 0; n < RING; n++) {
        arrived += packets[n];
        sent += ring[n].writes;
    }
    sent -= arrived;
    cr_assert_eq(wrong, 0);
    cr_assert_eq(arrived, sent * (PACKET / 8));
    cr_assert_eq(bb_engine_stats(machine.ctx).msi_sent, sent);
    cr_assert_eq(bb_engine_stats(machine.ctx).effects_refused, 0);
    for (unsigned n = 0; n < RING; n++) {
        probe_drop(&ring[n]);
    }
    machine_drop(&machine);
}
