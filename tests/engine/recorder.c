/* SPDX-License-Identifier: MIT */
/* The device of recorder.h. */
#include "recorder.h"

#include "../../engine/engine_internal.h"

/* Position of byte `i` of a value of `size` bytes, in bits. */
static unsigned lane(const struct recorder *recorder, unsigned i, unsigned size)
{
    return 8 * (recorder->endian == BB_BIG_ENDIAN ? size - 1 - i : i);
}

static int write_down(struct bb_ctx *ctx, struct recorder *recorder, struct record record)
{
    record.attrs = bb_access_attrs(ctx);
    record.fast = bb_load_relaxed(&bb_ectx_(ctx)->busy) == 0; /* our own */
    if (recorder->count < RECORDS_MAX) {
        recorder->record[recorder->count] = record;
    }
    recorder->count++;
    if (recorder->also != NULL) {
        recorder->also(ctx, recorder, &record);
    }
    return recorder->result;
}

static int recorder_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                         uint64_t *value)
{
    struct recorder *recorder = opaque;

    *value = 0;
    for (unsigned i = 0; i < size; i++) {
        *value |= (uint64_t)recorder->bytes[offset + i] << lane(recorder, i, size);
    }
    return write_down(ctx, recorder,
                      (struct record){.offset = offset, .size = size, .value = *value});
}

static int recorder_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t value)
{
    struct recorder *recorder = opaque;

    for (unsigned i = 0; i < size; i++) {
        recorder->bytes[offset + i] = (uint8_t)(value >> lane(recorder, i, size));
    }
    return write_down(
        ctx, recorder,
        (struct record){.write = true, .offset = offset, .size = size, .value = value});
}

static int recorder_accept(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                           bool write, struct bb_attrs attrs)
{
    struct recorder *recorder = opaque;

    (void)ctx;
    recorder->asked[recorder->asked_count++ % RECORDS_MAX] =
        (struct record){.write = write, .offset = offset, .size = size, .attrs = attrs};
    return recorder->verdict;
}

const struct bb_region_ops recorder_ops = {.read = recorder_read, .write = recorder_write};
const struct bb_region_ops recorder_ask_ops = {
    .read = recorder_read, .write = recorder_write, .accept = recorder_accept};
const struct bb_region_ops recorder_read_ops = {.read = recorder_read};
const struct bb_region_ops recorder_write_ops = {.write = recorder_write};

void recorder_make(struct machine *machine, struct recorder *recorder, const char *name, unsigned n,
                   const struct bb_region_config *config)
{
    struct bb_error err = {0};
    struct bb_device_config device = {.name = name, .opaque = recorder};
    struct bb_region_config region = *config;

    recorder->machine = machine;
    recorder->gpa = DEVICE_GPA(n);
    recorder->endian = config->rules.endian;
    for (unsigned i = 0; i < DEVICE_BYTES; i++) {
        recorder->bytes[i] = (uint8_t)(i + 1);
    }
    region.name = name;
    region.ops = config->ops != NULL ? config->ops : &recorder_ops;
    region.opaque = recorder;
    region.size_bytes = DEVICE_BYTES;
    cr_assert_eq(bb_device_create(machine->ctx, &device, &recorder->device, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(
        bb_device_region_create(machine->ctx, recorder->device, &region, &recorder->region, &err),
        BB_OK, "%s", err.text);
    cr_assert_eq(bb_space_map(machine->ctx, machine->mmio, recorder->gpa, recorder->region, &err),
                 BB_OK, "%s", err.text);
}

void recorder_drop(struct recorder *recorder)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(recorder->machine->ctx, recorder->device, &err), BB_OK, "%s",
                 err.text);
}

void recorder_reset(struct recorder *recorder)
{
    recorder->count = 0;
    recorder->asked_count = 0;
}

void recorder_expect(const struct recorder *recorder, unsigned index, bool write, uint64_t offset,
                     unsigned size)
{
    const struct record *record = &recorder->record[index];

    cr_assert_lt(index, recorder->count);
    cr_assert(record->write == write && record->offset == offset && record->size == size,
              "call %u is a %s of %u at %lu", index, record->write ? "write" : "read", record->size,
              (unsigned long)record->offset);
}
