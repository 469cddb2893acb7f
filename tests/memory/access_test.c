/* SPDX-License-Identifier: MIT */
/*
 * Access rules: literal examples first, then every combination of size, alignment, endianness and
 * sizes valid and implemented against a model that knows bytes only; then memory, accept hooks and
 * what has no callback. The device is an array of bytes; what its callbacks return is composed from
 * it by the definition in region.h.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "../../memory/memory_core.h"

enum { DEVICE_BYTES = 96, CALLS_MAX = 72 };

struct call {
    uint64_t offset;
    unsigned size;
    uint64_t value;
};

struct device {
    uint8_t bytes[DEVICE_BYTES];
    bool big;
    int refuse_call; /* the call of this number is refused; -1: none */
    struct call calls[CALLS_MAX];
    int call_count;
    struct target *target;
};

/* Position of byte `i` of a value of `size` bytes, in bits. */
static unsigned lane(const struct device *device, unsigned i, unsigned size)
{
    return 8 * (device->big ? size - 1 - i : i);
}

static int log_call(struct device *device, uint64_t offset, unsigned size, uint64_t value)
{
    cr_assert_lt(device->call_count, CALLS_MAX);
    cr_assert_leq(offset + size, DEVICE_BYTES);
    device->calls[device->call_count] = (struct call){offset, size, value};
    return device->call_count++ == device->refuse_call ? BB_E_DEVICE : BB_OK;
}

static int device_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                       uint64_t *value)
{
    struct device *device = opaque;
    /* What is above the value counts for nothing, so put something there. */
    uint64_t result = size == 8 ? 0 : UINT64_MAX << (8 * size);

    (void)ctx;
    for (unsigned i = 0; i < size; i++) {
        result |= (uint64_t)device->bytes[offset + i] << lane(device, i, size);
    }
    *value = result;
    return log_call(device, offset, size, result);
}

static int device_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                        uint64_t value)
{
    struct device *device = opaque;

    (void)ctx;
    for (unsigned i = 0; i < size; i++) {
        device->bytes[offset + i] = (uint8_t)(value >> lane(device, i, size));
    }
    return log_call(device, offset, size, value);
}

static void device_reset(struct device *device, bool big)
{
    memset(device, 0, sizeof(*device));
    device->big = big;
    device->refuse_call = -1;
    for (unsigned i = 0; i < DEVICE_BYTES; i++) {
        device->bytes[i] = (uint8_t)(0x11 * (i % 8 + 1) + i / 8);
    }
}

struct question {
    uint64_t offset;
    unsigned size;
    bool write;
    struct bb_attrs attrs;
};

/* A region as bb_region_create_io_() makes it, and a leaf that shows all of it; made here so that
 * no map is needed. */
struct target {
    struct bb_region region;
    struct bb_flat_ leaf;
    int verdict; /* of the accept hook, where it is set */
    int asked;
    struct question question;
};

static void target_make(struct target *target, struct device *device, struct bb_access_rules rules)
{
    uint8_t sizes = 0;

    for (unsigned size = 1; size <= 8 && rules.endian == BB_LITTLE_ENDIAN; size *= 2) {
        if (size >= rules.valid_min && size <= rules.valid_max && size >= rules.impl_min &&
            size <= rules.impl_max) {
            sizes |= (uint8_t)size;
        }
    }
    *target = (struct target){
        .region = {.read = device_read,
                   .write = device_write,
                   .opaque = device,
                   .kind = BB_KIND_IO,
                   .last = DEVICE_BYTES - 1,
                   .read_sizes = sizes,
                   .write_sizes = sizes,
                   .rules = rules},
        .leaf = {.kind = BB_KIND_IO, .last_offset = DEVICE_BYTES - 1, .opaque = device},
    };
    target->leaf.region = &target->region;
}

static const struct bb_attrs nobody;

static int read_bytes(const struct target *target, uint64_t offset, void *bytes, unsigned size)
{
    return bb_leaf_read_(NULL, &target->leaf, offset, bytes, size, nobody);
}

static int write_bytes(const struct target *target, uint64_t offset, const void *bytes,
                       unsigned size)
{
    return bb_leaf_write_(NULL, &target->leaf, offset, bytes, size, nobody);
}

struct example {
    const char *what;
    struct bb_access_rules rules; /* valid_min, valid_max, impl_min, impl_max, unaligned, endian */
    uint64_t offset;
    unsigned size;
    uint64_t value; /* read, or written */
    int calls;
    struct call call[4];
};

/* Bytes 0 to 7 of the device are 11 22 33 44 55 66 77 88. */
static const struct example reads[] = {
    {"little, whole", {1, 8, 1, 8, false, BB_LITTLE_ENDIAN}, 0, 4, 0x44332211, 1, {{0, 4, 0}}},
    {"big, whole", {1, 8, 1, 8, false, BB_BIG_ENDIAN}, 0, 4, 0x44332211, 1, {{0, 4, 0x11223344}}},
    {"little, split",
     {1, 8, 1, 4, false, BB_LITTLE_ENDIAN},
     0,
     8,
     0x8877665544332211,
     2,
     {{0, 4, 0}, {4, 4, 0}}},
    {"big, split: the first piece is the most significant of 0x1122334455667788",
     {1, 8, 1, 4, false, BB_BIG_ENDIAN},
     0,
     8,
     0x8877665544332211,
     2,
     {{0, 4, 0x11223344}, {4, 4, 0x55667788}}},
    {"little, widened", {1, 8, 4, 4, false, BB_LITTLE_ENDIAN}, 6, 2, 0x8877, 1, {{4, 4, 0}}},
    {"big, widened", {1, 8, 4, 4, false, BB_BIG_ENDIAN}, 6, 1, 0x77, 1, {{4, 4, 0x55667788}}},
    {"unaligned: largest aligned pieces",
     {1, 8, 1, 8, true, BB_LITTLE_ENDIAN},
     1,
     4,
     0x55443322,
     3,
     {{1, 1, 0}, {2, 2, 0}, {4, 1, 0}}},
    {"unaligned and widened: both words around it",
     {1, 8, 4, 4, true, BB_BIG_ENDIAN},
     3,
     2,
     0x5544,
     2,
     {{0, 4, 0x11223344}, {4, 4, 0x55667788}}},
};

Test(access, literal_reads_come_out_as_the_documentation_says)
{
    for (size_t i = 0; i < BB_ARRAY_LEN(reads); i++) {
        const struct example *example = &reads[i];
        struct device device;
        device_reset(&device, example->rules.endian == BB_BIG_ENDIAN);
        struct target target;
        target_make(&target, &device, example->rules);
        uint64_t value = 0;

        cr_assert_eq(read_bytes(&target, example->offset, &value, example->size), BB_OK);
        cr_assert_eq(value, example->value, "%s: 0x%" PRIx64, example->what, value);
        cr_assert_eq(device.call_count, example->calls, "%s", example->what);
        for (int call = 0; call < example->calls; call++) {
            cr_assert(device.calls[call].offset == example->call[call].offset &&
                          device.calls[call].size == example->call[call].size,
                      "%s, call %d", example->what, call);
            if (example->call[call].value != 0) {
                uint64_t seen = device.calls[call].value & bb_mask_bytes(device.calls[call].size);
                cr_assert_eq(seen, example->call[call].value, "%s, call %d", example->what, call);
            }
        }
    }
}

static const struct example writes[] = {
    {"little, whole", {1, 8, 1, 8, false, BB_LITTLE_ENDIAN}, 4, 2, 0xabcd, 1, {{4, 2, 0xabcd}}},
    {"big, whole", {1, 8, 1, 8, false, BB_BIG_ENDIAN}, 4, 2, 0xabcd, 1, {{4, 2, 0xcdab}}},
    {"little, split",
     {1, 8, 1, 2, false, BB_LITTLE_ENDIAN},
     0,
     4,
     0x01020304,
     2,
     {{0, 2, 0x0304}, {2, 2, 0x0102}}},
    {"big, split",
     {1, 8, 1, 2, false, BB_BIG_ENDIAN},
     0,
     4,
     0x01020304,
     2,
     {{0, 2, 0x0403}, {2, 2, 0x0201}}},
    {"little, widened: in its lane, zeros beside it",
     {1, 8, 4, 4, false, BB_LITTLE_ENDIAN},
     5,
     1,
     0xee,
     1,
     {{4, 4, 0x0000ee00}}},
    {"big, widened", {1, 8, 4, 4, false, BB_BIG_ENDIAN}, 5, 1, 0xee, 1, {{4, 4, 0x00ee0000}}},
    {"unaligned, widened",
     {1, 8, 4, 4, true, BB_LITTLE_ENDIAN},
     3,
     2,
     0xbbaa,
     2,
     {{0, 4, 0xaa000000}, {4, 4, 0x000000bb}}},
};

Test(access, literal_writes_reach_callbacks_as_the_documentation_says)
{
    for (size_t i = 0; i < BB_ARRAY_LEN(writes); i++) {
        const struct example *example = &writes[i];
        struct device device;
        device_reset(&device, example->rules.endian == BB_BIG_ENDIAN);
        struct target target;
        target_make(&target, &device, example->rules);
        /* Bytes above the size must not leak into the callback. */
        uint64_t value = example->value | UINT64_MAX << (8 * example->size);

        cr_assert_eq(write_bytes(&target, example->offset, &value, example->size), BB_OK);
        cr_assert_eq(device.call_count, example->calls, "%s", example->what);
        for (int call = 0; call < example->calls; call++) {
            cr_assert(device.calls[call].offset == example->call[call].offset &&
                          device.calls[call].size == example->call[call].size &&
                          device.calls[call].value == example->call[call].value,
                      "%s, call %d: 0x%" PRIx64, example->what, call, device.calls[call].value);
        }
    }
}

/* The calls cover [offset, offset + size) once, in order, aligned, and none is for nothing. */
static void check_calls(const struct device *device, const struct bb_access_rules *rules,
                        uint64_t offset, unsigned size)
{
    uint64_t covered = offset;

    for (int i = 0; i < device->call_count; i++) {
        const struct call *call = &device->calls[i];
        cr_assert(call->size >= rules->impl_min && call->size <= rules->impl_max);
        cr_assert_eq(call->offset % call->size, 0);
        cr_assert_leq(call->offset, covered);
        cr_assert_gt(call->offset + call->size, covered);
        covered = call->offset + call->size;
        if (call->size > rules->impl_min) {
            cr_assert(call->offset >= offset && covered <= offset + size,
                      "wider than need be: %u at %" PRIu64, call->size, call->offset);
        }
    }
    cr_assert_geq(covered, offset + size);
    if (offset % size == 0 && size <= rules->impl_max) {
        cr_assert_eq(device->call_count, 1);
    } else if (offset % size == 0) {
        cr_assert_eq(device->call_count, (int)(size / rules->impl_max));
    }
}

static void check_combination(const struct bb_access_rules *rules, uint64_t offset, unsigned size)
{
    bool valid = size >= rules->valid_min && size <= rules->valid_max &&
                 (rules->unaligned || offset % size == 0);
    uint8_t bytes[64], untouched[64];
    struct device device;
    struct device before;
    struct target target;
    device_reset(&device, rules->endian == BB_BIG_ENDIAN);
    before = device;
    target_make(&target, &device, *rules);

    memset(bytes, 0x5a, sizeof(bytes));
    memset(untouched, 0x5a, sizeof(untouched));
    int result = read_bytes(&target, offset, bytes, size);
    cr_assert_eq(result, valid ? BB_OK : BB_E_DEVICE);
    cr_assert_eq(memcmp(bytes, valid ? &device.bytes[offset] : untouched, size), 0,
                 "read %u at %" PRIu64, size, offset);
    if (valid) {
        check_calls(&device, rules, offset, size);
    } else {
        cr_assert_eq(device.call_count, 0);
    }

    device.call_count = 0;
    for (unsigned i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(0xf1 - 3 * i);
    }
    result = write_bytes(&target, offset, bytes, size);
    cr_assert_eq(result, valid ? BB_OK : BB_E_DEVICE);
    if (!valid) {
        cr_assert_eq(device.call_count, 0);
        return;
    }
    check_calls(&device, rules, offset, size);
    for (int i = 0; i < device.call_count; i++) {
        memset(&before.bytes[device.calls[i].offset], 0, device.calls[i].size);
    }
    memcpy(&before.bytes[offset], bytes, size);
    cr_assert_eq(memcmp(device.bytes, before.bytes, DEVICE_BYTES), 0, "write %u at %" PRIu64, size,
                 offset);
}

/* A smallest and a largest power of two from 1 to 2^(count - 1): the pair of that number. */
static void sizes_of(unsigned number, unsigned count, uint8_t *min, uint8_t *max)
{
    for (unsigned least = 0; least < count; least++) {
        if (number < count - least) {
            *min = (uint8_t)(1 << least);
            *max = (uint8_t)(1 << (least + number));
            return;
        }
        number -= count - least;
    }
}

enum { VALID_PAIRS = 28, IMPL_PAIRS = 10 };

Test(access, every_combination_of_rules_agrees_with_a_bytewise_model)
{
    unsigned combinations = 0;

    for (unsigned number = 0; number < VALID_PAIRS * IMPL_PAIRS * 4; number++) {
        struct bb_access_rules rules = {.unaligned = number & 1,
                                        .endian =
                                            (number & 2) != 0 ? BB_BIG_ENDIAN : BB_LITTLE_ENDIAN};

        sizes_of(number / 4 % VALID_PAIRS, 7, &rules.valid_min, &rules.valid_max);
        sizes_of(number / 4 / VALID_PAIRS, 4, &rules.impl_min, &rules.impl_max);
        for (unsigned size = 1; size <= 64; size *= 2) {
            for (uint64_t offset = 0; offset + size <= DEVICE_BYTES; offset++) {
                check_combination(&rules, offset, size);
                combinations++;
            }
        }
    }
    cr_assert_eq(combinations, 4 * 28 * 10 * (96 + 95 + 93 + 89 + 81 + 65 + 33));
}

Test(access, wide_accesses_reach_callbacks_as_their_pieces_in_rising_order)
{
    struct bb_access_rules rules = {1, 64, 1, 8, false, BB_LITTLE_ENDIAN};

    for (unsigned big = 0; big < 2; big++) {
        for (unsigned size = 16; size <= 64; size *= 2) {
            struct device device;
            struct target target;
            uint8_t bytes[64];

            rules.endian = big != 0 ? BB_BIG_ENDIAN : BB_LITTLE_ENDIAN;
            device_reset(&device, big != 0);
            target_make(&target, &device, rules);
            for (unsigned i = 0; i < size; i++) {
                bytes[i] = (uint8_t)(i + 1);
            }
            cr_assert_eq(write_bytes(&target, 0, bytes, size), BB_OK);
            cr_assert_eq(device.call_count, (int)size / 8);
            /* The first bytes 01 02 ... 08, as one number or the other. */
            cr_assert_eq(device.calls[0].value,
                         big != 0 ? UINT64_C(0x0102030405060708) : UINT64_C(0x0807060504030201));
            for (int call = 0; call < device.call_count; call++) {
                cr_assert_eq(device.calls[call].offset, 8 * (unsigned)call);
                cr_assert_eq(device.calls[call].size, 8);
                cr_assert_eq(device.calls[call].value - device.calls[0].value,
                             (unsigned)call * UINT64_C(0x0808080808080808));
            }
        }
    }
}

Test(access, sizes_outside_the_valid_ones_are_refused_without_a_callback)
{
    struct bb_access_rules rules = {4, 16, 1, 8, false, BB_LITTLE_ENDIAN};
    struct device device;
    struct target target;
    uint8_t bytes[64] = {0};

    device_reset(&device, false);
    target_make(&target, &device, rules);
    for (unsigned size = 1; size <= 64; size++) {
        bool valid = size == 4 || size == 8 || size == 16;

        device.call_count = 0;
        cr_assert_eq(read_bytes(&target, 0, bytes, size), valid ? BB_OK : BB_E_DEVICE, "size %u",
                     size);
        cr_assert_eq(write_bytes(&target, 0, bytes, size), valid ? BB_OK : BB_E_DEVICE, "size %u",
                     size);
        cr_assert_eq(device.call_count != 0, valid, "size %u", size);
    }
}

Test(access, the_first_refused_piece_ends_the_access_and_leaves_the_bytes)
{
    struct bb_access_rules rules = {1, 64, 1, 2, false, BB_LITTLE_ENDIAN};

    for (int refused = 0; refused < 8; refused++) {
        struct device device;
        struct target target;
        uint8_t bytes[16], untouched[16];

        device_reset(&device, false);
        target_make(&target, &device, rules);
        memset(bytes, 77, sizeof(bytes));
        memset(untouched, 77, sizeof(untouched));
        device.refuse_call = refused;
        cr_assert_eq(read_bytes(&target, 0, bytes, 16), BB_E_DEVICE);
        cr_assert_eq(memcmp(bytes, untouched, 16), 0);
        cr_assert_eq(device.call_count, refused + 1);
        device.call_count = 0;
        cr_assert_eq(write_bytes(&target, 0, bytes, 16), BB_E_DEVICE);
        cr_assert_eq(device.call_count, refused + 1);
    }
}

Test(access, a_direction_without_callback_is_refused)
{
    struct bb_access_rules rules = {1, 8, 1, 8, false, BB_LITTLE_ENDIAN};
    struct device device;
    struct target target;
    uint64_t value = 77;

    device_reset(&device, false);
    target_make(&target, &device, rules);
    target.region.read_sizes = 0;
    target.region.read = NULL;
    cr_assert_eq(read_bytes(&target, 0, &value, 4), BB_E_DEVICE);
    cr_assert_eq(value, 77);
    value = 1;
    cr_assert_eq(write_bytes(&target, 0, &value, 4), BB_OK);
    target_make(&target, &device, rules);
    target.region.write_sizes = 0;
    target.region.write = NULL;
    cr_assert_eq(write_bytes(&target, 0, &value, 4), BB_E_DEVICE);
    value = 0;
    cr_assert_eq(read_bytes(&target, 0, &value, 4), BB_OK);
    cr_assert_eq(value, 1);
}

static int ask(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size, bool write,
               struct bb_attrs attrs)
{
    struct device *device = opaque;
    struct target *target = device->target;

    (void)ctx;
    cr_assert_eq(device->call_count, 0, "asked after a callback");
    target->question = (struct question){offset, size, write, attrs};
    target->asked++;
    return target->verdict;
}

Test(access, the_accept_hook_is_asked_once_with_the_access_as_it_was_made)
{
    struct bb_access_rules rules = {1, 64, 4, 4, false, BB_LITTLE_ENDIAN};
    struct bb_attrs attrs = {.requester_id = 0x1234, .secure = true};
    struct device device;
    struct target target;
    uint8_t bytes[64] = {0};

    for (unsigned size = 1; size <= 64; size *= 2) {
        for (unsigned write = 0; write < 2; write++) {
            device_reset(&device, false);
            target_make(&target, &device, rules);
            device.target = &target;
            target.region.accept = ask;
            target.region.read_sizes = target.region.write_sizes = 0; /* as creation does then */
            int result = write != 0
                             ? bb_leaf_write_(NULL, &target.leaf, 64 - size, bytes, size, attrs)
                             : bb_leaf_read_(NULL, &target.leaf, 64 - size, bytes, size, attrs);
            cr_assert_eq(result, BB_OK);
            cr_assert_eq(target.asked, 1);
            cr_assert_eq(target.question.offset, 64 - size);
            cr_assert_eq(target.question.size, size);
            cr_assert_eq(target.question.write, write != 0);
            cr_assert_eq(target.question.attrs.requester_id, 0x1234);
            cr_assert(target.question.attrs.secure && !target.question.attrs.privileged);
            cr_assert_eq(device.call_count, size <= 4 ? 1 : (int)size / 4);
        }
    }
}

Test(access, what_the_accept_hook_says_is_the_result_and_no_callback_runs)
{
    struct bb_access_rules rules = {2, 8, 1, 8, false, BB_LITTLE_ENDIAN};
    static const int verdicts[][2] = {{BB_OK, BB_OK},
                                      {BB_E_DECODE, BB_E_DECODE},
                                      {BB_E_DEVICE, BB_E_DEVICE},
                                      {BB_E_NOENT, BB_E_DEVICE},
                                      {1, BB_E_DEVICE}};
    struct device device;
    struct target target;
    uint8_t bytes[8] = {0};

    for (size_t i = 0; i < BB_ARRAY_LEN(verdicts); i++) {
        device_reset(&device, false);
        target_make(&target, &device, rules);
        device.target = &target;
        target.region.accept = ask;
        target.region.read_sizes = target.region.write_sizes = 0;
        target.verdict = verdicts[i][0];
        cr_assert_eq(read_bytes(&target, 8, bytes, 4), verdicts[i][1]);
        cr_assert_eq(device.call_count, verdicts[i][0] == BB_OK ? 1 : 0);
        device.call_count = 0;
        cr_assert_eq(write_bytes(&target, 8, bytes, 4), verdicts[i][1]);
        cr_assert_eq(device.call_count, verdicts[i][0] == BB_OK ? 1 : 0);
    }
    /* Sizes come first, missing callbacks last. */
    device.call_count = target.asked = 0;
    cr_assert_eq(read_bytes(&target, 8, bytes, 1), BB_E_DEVICE);
    cr_assert_eq(write_bytes(&target, 9, bytes, 2), BB_E_DEVICE);
    cr_assert_eq(target.asked, 0);
    target.region.read = NULL;
    target.region.write = NULL;
    target.verdict = BB_E_DECODE;
    cr_assert_eq(read_bytes(&target, 8, bytes, 4), BB_E_DECODE);
    cr_assert_eq(write_bytes(&target, 8, bytes, 4), BB_E_DECODE);
    cr_assert_eq(target.asked, 2);
}

/* A leaf that shows `host` from byte 16 of its region on. */
static void memory_make(struct target *target, uint8_t *host, enum bb_kind kind)
{
    *target = (struct target){
        .region = {.kind = (uint8_t)kind, .host = host - 16, .last = DEVICE_BYTES + 15},
        .leaf = {.first = 0x1000,
                 .last_offset = DEVICE_BYTES - 1,
                 .region_offset = 16,
                 .kind = (uint8_t)kind,
                 .host = host,
                 .memory = true},
    };
    target->leaf.region = &target->region;
}

Test(access, ram_holds_what_is_written_at_every_size_and_alignment)
{
    _Alignas(8) uint8_t all[DEVICE_BYTES + 16];
    uint8_t *host = &all[16], model[DEVICE_BYTES], bytes[64], found[64];
    struct target target;

    memory_make(&target, host, BB_KIND_RAM);
    for (unsigned size = 1; size <= 64; size++) {
        for (uint64_t at = 0; at + size <= DEVICE_BYTES; at++) {
            for (unsigned i = 0; i < size; i++) {
                bytes[i] = (uint8_t)(0x81 + at + i);
            }
            memset(host, 0x3c, DEVICE_BYTES);
            memset(model, 0x3c, sizeof(model));
            memcpy(&model[at], bytes, size);
            cr_assert_eq(write_bytes(&target, 16 + at, bytes, size), BB_OK);
            cr_assert_eq(memcmp(host, model, sizeof(model)), 0);
            memset(found, 0, sizeof(found));
            cr_assert_eq(read_bytes(&target, 16 + at, found, size), BB_OK);
            cr_assert_eq(memcmp(found, bytes, size), 0);
        }
    }
}

Test(access, memory_that_is_read_only_is_read_and_refuses_writes)
{
    _Alignas(8) uint8_t all[DEVICE_BYTES + 16] = {[20] = 0x77};
    struct target target;
    uint8_t byte = 0;

    memory_make(&target, &all[16], BB_KIND_RAM);
    target.leaf.read_only = true; /* the region's own, or an alias's */
    cr_assert_eq(write_bytes(&target, 20, &byte, 1), BB_E_DEVICE);
    cr_assert_eq(read_bytes(&target, 20, &byte, 1), BB_OK);
    cr_assert_eq(byte, 0x77);
}

Test(access, a_rom_device_reads_its_memory_by_no_rules_and_writes_its_callback_by_its_rules)
{
    struct bb_access_rules rules = {4, 4, 4, 4, false, BB_BIG_ENDIAN};
    _Alignas(8) uint8_t host[DEVICE_BYTES];
    struct device device;
    struct target target;
    uint8_t bytes[64];

    for (unsigned i = 0; i < DEVICE_BYTES; i++) {
        host[i] = (uint8_t)~i;
    }
    device_reset(&device, true);
    target_make(&target, &device, rules);
    target.region.kind = target.leaf.kind = BB_KIND_ROM_DEVICE;
    target.region.host = target.leaf.host = host;
    target.leaf.memory = true;
    cr_assert_eq(read_bytes(&target, 7, bytes, 33), BB_OK);
    cr_assert_eq(memcmp(bytes, &host[7], 33), 0);
    cr_assert_eq(device.call_count, 0);
    cr_assert_eq(write_bytes(&target, 8, bytes, 2), BB_E_DEVICE);
    cr_assert_eq(device.call_count, 0);
    cr_assert_eq(write_bytes(&target, 8, bytes, 4), BB_OK);
    cr_assert_eq(device.call_count, 1);
    cr_assert_eq(device.calls[0].value, UINT64_C(0xf8f7f6f5));
    cr_assert_eq(host[8], (uint8_t)~8u, "the memory is the device's to change");

    /* Out of ROM mode it is an I/O region. */
    target.leaf.memory = false;
    target.leaf.host = NULL;
    device.call_count = 0;
    cr_assert_eq(read_bytes(&target, 7, bytes, 4), BB_E_DEVICE);
    cr_assert_eq(read_bytes(&target, 4, bytes, 4), BB_OK);
    cr_assert_eq(device.call_count, 1);
    cr_assert_eq(memcmp(bytes, &device.bytes[4], 4), 0);
}

Test(access, reserved_ranges_are_decode_errors_for_every_access)
{
    struct target target = {.region = {.kind = BB_KIND_RESERVED}, .leaf.kind = BB_KIND_RESERVED};
    uint8_t bytes[64] = {0};

    target.leaf.region = &target.region;
    for (unsigned size = 1; size <= 64; size++) {
        cr_assert_eq(read_bytes(&target, 3, bytes, size), BB_E_DECODE);
        cr_assert_eq(write_bytes(&target, 3, bytes, size), BB_E_DECODE);
    }
}
