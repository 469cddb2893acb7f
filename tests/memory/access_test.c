/* SPDX-License-Identifier: MIT */
/*
 * Access rules: literal examples first, then every combination of size, alignment, endianness and
 * sizes valid and implemented against a model that knows bytes only. The device is an array of
 * bytes; what its callbacks return is composed from it by the definition in region.h.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "../../memory/memory_core.h"

enum { DEVICE_BYTES = 32, CALLS_MAX = 16 };

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

/* A region as bb_region_create_io_() makes it; made here so that no map is needed. */
static struct bb_region region_of(struct device *device, struct bb_access_rules rules)
{
    struct bb_region region = {.read = device_read,
                               .write = device_write,
                               .opaque = device,
                               .kind = BB_REGION_IO_,
                               .size_bytes = DEVICE_BYTES,
                               .rules = rules};

    for (unsigned size = 1; size <= 8 && rules.endian == BB_LITTLE_ENDIAN; size *= 2) {
        if (size >= rules.valid_min && size <= rules.valid_max && size >= rules.impl_min &&
            size <= rules.impl_max) {
            region.fast_sizes |= (uint8_t)size;
        }
    }
    return region;
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
        struct bb_region region = region_of(&device, example->rules);
        uint64_t value = 0;

        cr_assert_eq(bb_region_read_(NULL, &region, example->offset, example->size, &value), BB_OK);
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
        struct bb_region region = region_of(&device, example->rules);
        /* Bytes above the size must not leak into the callback. */
        uint64_t value = example->value | UINT64_MAX << (8 * example->size);

        cr_assert_eq(bb_region_write_(NULL, &region, example->offset, example->size, value), BB_OK);
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
    struct device device;
    struct device before;
    device_reset(&device, rules->endian == BB_BIG_ENDIAN);
    before = device;
    struct bb_region region = region_of(&device, *rules);

    uint64_t value = 0x5a5a;
    int result = bb_region_read_(NULL, &region, offset, size, &value);
    cr_assert_eq(result, valid ? BB_OK : BB_E_DEVICE);
    uint64_t expected = 0;
    for (unsigned i = 0; i < size; i++) {
        expected |= (uint64_t)device.bytes[offset + i] << (8 * i);
    }
    cr_assert_eq(value, valid ? expected : 0x5a5a, "read %u at %" PRIu64, size, offset);
    if (valid) {
        check_calls(&device, rules, offset, size);
    } else {
        cr_assert_eq(device.call_count, 0);
    }

    device.call_count = 0;
    value = 0xf1e2d3c4b5a69788;
    result = bb_region_write_(NULL, &region, offset, size, value);
    cr_assert_eq(result, valid ? BB_OK : BB_E_DEVICE);
    if (!valid) {
        cr_assert_eq(device.call_count, 0);
        return;
    }
    check_calls(&device, rules, offset, size);
    for (int i = 0; i < device.call_count; i++) {
        memset(&before.bytes[device.calls[i].offset], 0, device.calls[i].size);
    }
    for (unsigned i = 0; i < size; i++) {
        before.bytes[offset + i] = (uint8_t)(value >> (8 * i));
    }
    cr_assert_eq(memcmp(device.bytes, before.bytes, DEVICE_BYTES), 0, "write %u at %" PRIu64, size,
                 offset);
}

Test(access, every_combination_of_rules_agrees_with_a_bytewise_model)
{
    unsigned combinations = 0;
    struct bb_access_rules rules;

    for (unsigned bits = 0; bits < 1 << 10; bits++) {
        rules.valid_min = (uint8_t)(1 << (bits & 3));
        rules.valid_max = (uint8_t)(1 << (bits >> 2 & 3));
        rules.impl_min = (uint8_t)(1 << (bits >> 4 & 3));
        rules.impl_max = (uint8_t)(1 << (bits >> 6 & 3));
        rules.unaligned = bits >> 8 & 1;
        rules.endian = (bits >> 9 & 1) != 0 ? BB_BIG_ENDIAN : BB_LITTLE_ENDIAN;
        if (rules.valid_min > rules.valid_max || rules.impl_min > rules.impl_max) {
            continue;
        }
        for (unsigned size = 1; size <= 8; size *= 2) {
            for (uint64_t offset = 0; offset + size <= DEVICE_BYTES; offset++) {
                check_combination(&rules, offset, size);
                combinations++;
            }
        }
    }
    cr_assert_eq(combinations, 2 * 2 * 10 * 10 * (32 + 31 + 29 + 25));
}

Test(access, the_first_refused_piece_ends_the_access_and_leaves_the_value)
{
    struct bb_access_rules rules = {1, 8, 1, 2, false, BB_LITTLE_ENDIAN};

    for (int refused = 0; refused < 4; refused++) {
        struct device device;
        device_reset(&device, false);
        struct bb_region region = region_of(&device, rules);
        uint64_t value = 77;

        device.refuse_call = refused;
        cr_assert_eq(bb_region_read_(NULL, &region, 0, 8, &value), BB_E_DEVICE);
        cr_assert_eq(value, 77);
        cr_assert_eq(device.call_count, refused + 1);
        device.call_count = 0;
        cr_assert_eq(bb_region_write_(NULL, &region, 0, 8, value), BB_E_DEVICE);
        cr_assert_eq(device.call_count, refused + 1);
    }
}

Test(access, a_direction_without_callback_is_refused)
{
    struct bb_access_rules rules = {1, 8, 1, 8, false, BB_LITTLE_ENDIAN};
    struct device device;
    device_reset(&device, false);
    struct bb_region region = region_of(&device, rules);
    uint64_t value = 77;

    region.fast_sizes = 0;
    region.read = NULL;
    cr_assert_eq(bb_region_read_(NULL, &region, 0, 4, &value), BB_E_DEVICE);
    cr_assert_eq(bb_region_write_(NULL, &region, 0, 4, 1), BB_OK);
    region.read = device_read;
    region.write = NULL;
    cr_assert_eq(bb_region_write_(NULL, &region, 0, 4, 1), BB_E_DEVICE);
    cr_assert_eq(bb_region_read_(NULL, &region, 0, 4, &value), BB_OK);
    cr_assert_eq(value, 1);
}

Test(access, ram_holds_what_is_written_at_every_size_and_alignment)
{
    _Alignas(8) uint8_t host[DEVICE_BYTES];
    uint8_t model[DEVICE_BYTES];
    struct bb_region region = {.kind = BB_REGION_RAM_,
                               .host = host,
                               .size_bytes = DEVICE_BYTES,
                               .rules = {1, 8, 1, 8, true, BB_LITTLE_ENDIAN}};

    for (unsigned size = 1; size <= 8; size *= 2) {
        for (uint64_t offset = 0; offset + size <= DEVICE_BYTES; offset++) {
            uint64_t value = UINT64_C(0x8182838485868788) + offset;
            uint64_t found = 0;
            memset(host, 0x3c, sizeof(host));
            memset(model, 0x3c, sizeof(model));
            memcpy(&model[offset], &value, size);
            cr_assert_eq(bb_region_write_(NULL, &region, offset, size, value), BB_OK);
            cr_assert_eq(memcmp(host, model, sizeof(host)), 0);
            cr_assert_eq(bb_region_read_(NULL, &region, offset, size, &found), BB_OK);
            cr_assert_eq(found, value & bb_mask_bytes(size));
        }
    }
    region.read_only = true;
    memcpy(model, host, sizeof(host));
    cr_assert_eq(bb_region_write_(NULL, &region, 0, 4, 0), BB_E_DEVICE);
    cr_assert_eq(memcmp(host, model, sizeof(host)), 0);
}
