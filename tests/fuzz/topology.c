/* SPDX-License-Identifier: MIT */
/*
 * What programs of topology.h make, and how it is taken down. Callbacks run further steps of the
 * program, so that everything is also tried inside callbacks.
 */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "topology_internal.h"

struct world world;

/* So many removals may be under way before a program waits for them, so many programs are run
 * before the engine has to prove that nothing leaked. */
enum { REMOVALS_MAX = 4096, PROGRAMS_AN_ENGINE = 4096 };

static unsigned programs;

void fail(const char *format, ...)
{
    va_list arguments;

    if (world.wrong != NULL) {
        return;
    }
    va_start(arguments, format);
    vsnprintf(world.text, sizeof(world.text), format, arguments);
    va_end(arguments);
    world.wrong = world.text;
}

int check(const char *call, int result)
{
    if (result > BB_OK || result < BB_E_SYSTEM) {
        fail("%.200s returned %d", call, result);
    }
    if (result != BB_OK && (world.err.code != result || world.err.text[0] == 0)) {
        fail("%.200s returned %s and said %s: '%.100s'", call, bb_result_name(result),
             bb_result_name(world.err.code), world.err.text);
    }
    if (result == BB_OK && world.err.code != 0) {
        fail("%.200s succeeded and said '%.200s'", call, world.err.text);
    }
    memset(&world.err, 0, sizeof(world.err));
    return result;
}

int check_access(const char *call, int result)
{
    if (result != BB_OK && result != BB_E_DECODE && result != BB_E_DEVICE && result != BB_E_RANGE &&
        result != BB_E_CONTEXT && result != BB_E_LIMIT) {
        fail("%s returned %s (%d)", call, bb_result_name(result), result);
    }
    return result;
}

/* The program. */

uint64_t take(unsigned count)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < count && world.left > 0; i++) {
        value |= (uint64_t)*world.bytes++ << (8 * i);
        world.left--;
    }
    return value;
}

uint64_t take_number(void)
{
    uint64_t how = take(1);
    uint64_t low = how & 15;

    switch (how >> 4) {
    case 0:
    case 1:
    case 2:
        return low;
    case 3:
    case 4:
        return take(1);
    case 5:
        return take(2);
    case 6:
        return low << 12;
    case 7:
        return take(1) << 12;
    case 8:
        return -low;
    case 9:
        return -(low << 12);
    case 10:
        return BB_BIT64(take(1) & 63) + low - 8;
    case 11:
        return take(1) << (4 * low);
    case 12:
        return take(4);
    default:
        return low << 3;
    }
}

void remember_address(uint64_t address)
{
    world.recent[world.recents++ % BB_ARRAY_LEN(world.recent)] = address;
}

uint64_t take_address(void)
{
    uint64_t how = take(1);

    if (how >= 0xe0) {
        return take_number();
    }
    uint64_t address = world.recent[how & 7];
    return how < 0x40 ? address : how < 0x80 ? address + ((how >> 3) & 7) : address + take(1) - 64;
}

unsigned take_size(void)
{
    uint64_t how = take(1);

    return how < 0xe0 ? 1u << (how & 3) : (unsigned)(how & 15);
}

struct bb_attrs take_attrs(void)
{
    uint64_t byte = take(1);

    return (struct bb_attrs){.requester_id = (uint32_t)(byte & 3),
                             .secure = (byte & 4) != 0,
                             .privileged = (byte & 8) != 0};
}

static struct slot *pick(enum bb_kind kind, bool any)
{
    unsigned from = (unsigned)take(1);

    for (unsigned i = 0; i < REGIONS; i++) {
        struct slot *slot = &world.region[(from + i) % REGIONS];
        if (slot->region != NULL && (any || bb_region_kind(slot->region) == kind)) {
            return slot;
        }
    }
    return NULL;
}

struct slot *take_region(void)
{
    return pick(BB_KIND_IO, true);
}

struct slot *take_region_of(enum bb_kind kind)
{
    return pick(kind, false);
}

struct slot *free_region(void)
{
    for (unsigned i = 0; i < REGIONS; i++) {
        if (world.region[i].region == NULL) {
            return &world.region[i];
        }
    }
    return NULL;
}

/* Callbacks. */

/* A step or two inside a callback. A coalesced write may be made on a thread of the engine's; the
 * program belongs to the main one. */
int callback(struct bb_ctx *ctx)
{
    if (ctx != world.ctx) {
        return BB_OK;
    }
    uint64_t what = world.left > 0 ? take(1) : 0;
    if (world.depth < CALLBACK_DEPTH_MAX) {
        world.depth++;
        for (uint64_t steps = what >> 6; steps > 1 && world.left > 0; steps--) {
            step();
        }
        world.depth--;
    }
    return (what & 15) == 15 ? BB_E_DEVICE : (what & 15) == 14 ? BB_E_INVAL : BB_OK;
}

static void notified(struct bb_ctx *ctx, void *opaque, uint64_t pins)
{
    (void)opaque;
    if (pins == 0) {
        fail("a device is notified of nothing");
    }
    (void)callback(ctx);
}

static void cancelled(struct bb_ctx *ctx, void *opaque)
{
    (void)ctx;
    (void)opaque;
}

const struct bb_device_ops device_ops = {.cancel = cancelled, .notified = notified};

static int io_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                   uint64_t *value)
{
    (void)opaque;
    if (size != 1 && size != 2 && size != 4 && size != 8) {
        fail("a read callback of %u bytes", size);
    }
    *value = offset * UINT64_C(0x0101010101010101);
    return callback(ctx);
}

static int io_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                    uint64_t value)
{
    (void)opaque;
    (void)offset;
    if ((size != 1 && size != 2 && size != 4 && size != 8) || (value & ~bb_mask_bytes(size)) != 0) {
        fail("a write callback of %u bytes and value 0x%llx", size, (unsigned long long)value);
    }
    return callback(ctx);
}

static int io_accept(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, bool write,
                     struct bb_attrs attrs)
{
    (void)opaque;
    (void)offset;
    (void)write;
    (void)attrs;
    if (size == 0 || size > 64) {
        fail("an access of %u bytes to accept", size);
    }
    int result = callback(ctx);
    return result == BB_E_INVAL ? BB_E_DECODE : result;
}

const struct bb_region_ops io_ops = {.read = io_read, .write = io_write};
const struct bb_region_ops hooked_ops = {.read = io_read, .write = io_write, .accept = io_accept};
const struct bb_region_ops silent_ops = {.write = NULL};

/* Garbage, as the program has it. May load RAM and send messages, and nothing else. */
static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    uint64_t how = ctx == world.ctx ? take(1) : 0;

    (void)opaque;
    if ((how & 0xe0) == 0xe0) {
        return (how & 1) != 0 ? BB_E_DECODE : BB_E_DEVICE;
    }
    if ((how & 0x30) == 0x30) {
        uint64_t loaded;
        (void)bb_dma_load(ctx, world.space[how & 1], iova & 0xffff, 8, BB_LITTLE_ENDIAN, attrs,
                          &loaded);
        (void)bb_msi_send(ctx, 0xfee00000, (uint32_t)how);
    }
    uint64_t target = how & 3;
    *entry = (struct bb_iommu_entry){.target = target < SPACES ? world.space[target] : NULL,
                                     .iova = iova & ~bb_mask_low(12),
                                     .translated = iova & ~bb_mask_low(12),
                                     .page_bits = 12,
                                     .access = BB_IOMMU_READ | BB_IOMMU_WRITE};
    if ((how & 4) != 0 && ctx == world.ctx) {
        entry->iova = (how & 8) != 0 ? iova : take_number();
        entry->translated = take_number();
        entry->page_bits = (unsigned)take(1);
        entry->access = (unsigned)access & (unsigned)take(1);
    }
    return BB_OK;
}

const struct bb_iommu_ops iommu_ops = {.translate = translate};

static void told_begin(void *opaque, const struct bb_change *change)
{
    (void)opaque;
    world.told += change->removed + change->added + 1;
}

static void told_range(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    if (range->first > range->last || range->region == NULL) {
        fail("a listener is told of a range from 0x%llx to 0x%llx",
             (unsigned long long)range->first, (unsigned long long)range->last);
    }
    world.told++;
}

static void told_doorbell(void *opaque, struct bb_space *space, bb_gpa_t at,
                          const struct bb_doorbell *doorbell)
{
    (void)opaque;
    (void)at;
    world.told += space != NULL && doorbell->fd >= 0;
}

static void told_coalesced(void *opaque, struct bb_space *space, bb_gpa_t first, bb_gpa_t last)
{
    (void)opaque;
    if (first > last || space == NULL) {
        fail("a listener is told of a coalesced range that ends before it begins");
    }
    world.told++;
}

static void told_commit(void *opaque)
{
    (void)opaque;
    world.told++;
}

static void asked_for_log(struct bb_ctx *ctx, void *opaque, const struct bb_range *range)
{
    static const uint64_t bitmap[2] = {0x5, 0x1};

    (void)opaque;
    bb_dirty_merge(ctx, range->region, range->offset, bitmap, 65);
}

const struct bb_listener_ops listener_ops = {
    .begin = told_begin, .removed = told_range, .added = told_range, .commit = told_commit};
const struct bb_listener_ops full_listener_ops = {.begin = told_begin,
                                                  .removed = told_range,
                                                  .added = told_range,
                                                  .unchanged = told_range,
                                                  .doorbell_removed = told_doorbell,
                                                  .doorbell_added = told_doorbell,
                                                  .coalesced_removed = told_coalesced,
                                                  .coalesced_added = told_coalesced,
                                                  .commit = told_commit,
                                                  .log_start = told_range,
                                                  .log_stop = told_range,
                                                  .log_sync = asked_for_log};

static int deliver(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    return ((address ^ data) & 1) != 0 ? BB_E_DEVICE : BB_OK;
}

/* Taking down. */

static void count_removal(void *opaque)
{
    (void)opaque;
    (void)bb_fetch_add_acq_rel(&world.completed, 1); /* pairs with settle() */
}

/* Changes of what is removed must not be committed any more. */
void abort_txns(void)
{
    while (world.txns > 0) {
        bb_txn_abort(world.txn[--world.txns]);
    }
}

void unmap(int number, uint64_t written)
{
    struct bb_dma_mapping *mapping = world.mapping[number];

    if (mapping != NULL) {
        uint64_t most = world.mapping_written[number] ? world.mapping_bytes[number] : 0;
        world.mapping[number] = NULL; /* first: what it writes back may have callbacks */
        check_access("bb_dma_unmap",
                     bb_dma_unmap(world.ctx, mapping, written < most ? written : most));
    }
}

void remove_notifier(int number)
{
    struct bb_iommu_notifier *notifier = world.notifier[number];

    if (notifier != NULL) {
        world.notifier[number] = NULL;
        CHECK(bb_iommu_notifier_remove(world.ctx, notifier, NULL, NULL, &world.err));
    }
}

void remove_listener(int number)
{
    if (world.listener[number] != NULL &&
        CHECK(bb_listener_remove(world.ctx, world.listener[number], &world.err)) == BB_OK) {
        world.listener[number] = NULL;
    }
}

void remove_client(int number)
{
    if (world.client[number] != NULL &&
        CHECK(bb_dirty_client_destroy(world.ctx, world.client[number], &world.err)) == BB_OK) {
        world.client[number] = NULL;
    }
}

static void forget(struct slot *slot)
{
    for (int i = 0; i < NOTIFIERS; i++) {
        if (world.notifier_of[i] == (int)slot->number) {
            remove_notifier(i);
        }
    }
    slot->region = NULL;
    slot->device = -1;
}

void remove_region(struct slot *slot, bool wait)
{
    struct bb_region *region = slot->region;
    int device = slot->device;

    abort_txns();
    forget(slot);
    if (wait) {
        /* A mapping that is never undone would be waited for in vain. */
        for (int i = 0; i < MAPPINGS && world.depth == 0; i++) {
            unmap(i, 0);
        }
        if (CHECK(bb_region_remove_wait(world.ctx, region, &world.err)) == BB_OK) {
            return;
        }
    }
    if (CHECK(bb_region_remove(world.ctx, region, count_removal, NULL, &world.err)) == BB_OK) {
        world.removals++;
    } else {
        slot->region = region;
        slot->device = device;
    }
}

void remove_device(int number, bool wait)
{
    struct bb_device *device = world.device[number];

    if (device == NULL || number == world.locked) {
        return;
    }
    abort_txns();
    for (unsigned i = 0; i < REGIONS; i++) {
        if (world.region[i].region != NULL && world.region[i].device == number) {
            forget(&world.region[i]);
        }
    }
    world.device[number] = NULL;
    if (wait) {
        for (int i = 0; i < MAPPINGS && world.depth == 0; i++) {
            unmap(i, 0);
        }
        if (CHECK(bb_device_remove_wait(world.ctx, device, &world.err)) == BB_OK) {
            return;
        }
    }
    world.removals++;
    if (CHECK(bb_device_remove(world.ctx, device, count_removal, NULL, &world.err)) != BB_OK) {
        fail("a device can't be removed");
    }
}

static bool any_range(void *opaque, const struct bb_range *range)
{
    (void)opaque;
    fail("a space still shows [0x%llx, 0x%llx]", (unsigned long long)range->first,
         (unsigned long long)range->last);
    return false;
}

static void clean(void)
{
    abort_txns();
    for (int i = 0; i < MAPPINGS; i++) {
        unmap(i, 0);
    }
    for (int i = 0; i < LISTENERS; i++) {
        remove_listener(i);
    }
    for (int i = 0; i < CLIENTS; i++) {
        remove_client(i);
    }
    for (unsigned i = 0; i < REGIONS; i++) {
        if (world.region[i].region != NULL && world.region[i].device < 0) {
            remove_region(&world.region[i], false);
        }
    }
    for (int i = 0; i < DEVICES; i++) {
        remove_device(i, false);
    }
    for (int i = 0; i < SPACES; i++) {
        bb_flat_each(world.ctx, world.space[i], any_range, NULL);
    }
}

static void settle(void)
{
    while (bb_load_acquire(&world.completed) != world.removals) { /* pairs with count_removal() */
        sched_yield();
    }
}

/* The engine. */

static const char *world_begin(void)
{
    static const struct bb_space_config spaces[SPACES] = {
        {.name = "wide"},
        {.name = "mmio", .bits = 32, .decode_error = {BB_FILL_PATTERN, 0x1122334455667788}},
        {.name = "ports", .kind = BB_SPACE_PIO, .device_error = {BB_FILL_ZEROS, 0}},
    };
    struct bb_engine_config config = {
        .name = "fuzz", .clock_mode = BB_CLOCK_MANUAL, .msi_sink = {deliver, NULL}};
    bool made;

    memset(&world, 0, sizeof(world));
    world.locked = -1;
    world.arena = aligned_alloc(4096, ARENA_BYTES);
    world.buffer = malloc(BUFFER_BYTES);
    world.bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    made = world.arena != NULL && world.buffer != NULL && world.bell >= 0 &&
           CHECK(bb_engine_create(&config, &world.engine, &world.err)) == BB_OK &&
           CHECK(bb_ctx_attach(world.engine, "fuzz", &world.ctx, &world.err)) == BB_OK;
    for (int i = 0; i < SPACES && made; i++) {
        made = CHECK(bb_space_create(world.ctx, &spaces[i], &world.space[i], &world.err)) == BB_OK;
    }
    for (unsigned i = 0; i < REGIONS; i++) {
        world.region[i] = (struct slot){.number = i, .device = -1};
    }
    return made ? NULL : "the engine can't be made";
}

const char *topology_end(void)
{
    if (world.engine == NULL) {
        return NULL;
    }
    settle();
    CHECK(bb_ctx_detach(world.ctx, &world.err));
    if (bb_engine_destroy(world.engine, &world.err) != BB_OK) {
        fail("%s", world.err.text);
    }
    world.engine = NULL;
    free(world.arena);
    free(world.buffer);
    close(world.bell);
    return world.wrong;
}

const char *topology_run(const uint8_t *program, size_t bytes)
{
    const char *wrong = world.engine == NULL ? world_begin() : NULL;

    if (wrong != NULL) {
        return wrong;
    }
    world.bytes = program;
    world.left = bytes;
    world.copied = 0;
    world.recents = 0;
    memset(world.recent, 0, sizeof(world.recent));
    world.wrong = NULL;
    memset(world.arena, 0x11, ARENA_BYTES);
    memset(world.buffer, 0x22, BUFFER_BYTES);
    while (world.left > 0 && world.wrong == NULL) {
        step();
    }
    world.left = 0;
    clean();
    if (world.removals - bb_load_acquire(&world.completed) > REMOVALS_MAX) { /* as in settle() */
        settle();
    }
    wrong = world.wrong;
    if (++programs % PROGRAMS_AN_ENGINE == 0) {
        const char *left = topology_end();
        wrong = wrong != NULL ? wrong : left;
    }
    return wrong;
}
