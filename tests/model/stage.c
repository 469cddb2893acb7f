/* SPDX-License-Identifier: MIT */
/* Engine and model, side by side: stage.h. */
#include "stage.h"

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/atomic.h"

const struct bb_fill stage_decode_fill[MODEL_SPACES] = {
    {BB_FILL_ONES, 0},
    {BB_FILL_PATTERN, UINT64_C(0x0123456789abcdef)},
    {BB_FILL_ONES, 0},
    {BB_FILL_ZEROS, 0},
};
const struct bb_fill stage_device_fill[MODEL_SPACES] = {
    {BB_FILL_ONES, 0},
    {BB_FILL_ZEROS, 0},
    {BB_FILL_PATTERN, UINT64_C(0xdeadbeefcafef00d)},
    {BB_FILL_ONES, 0},
};

const char *stage_wrong(struct stage *stage, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(stage->text, sizeof(stage->text), format, arguments);
    va_end(arguments);
    return stage->text;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * UINT64_C(0x9e3779b97f4a7c15) + b * UINT64_C(0xd6e8feb86659fd93);

    z = (z ^ (z >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return z ^ (z >> 32);
}

uint8_t stage_byte(int region, uint64_t offset)
{
    return (uint8_t)mix((uint64_t)region + 1, offset);
}

uint8_t stage_arena_byte(uint64_t at)
{
    return (uint8_t)mix(0, at);
}

bool stage_refuses(int region, uint64_t offset, bool write)
{
    return mix((uint64_t)region + (write ? 1000 : 100), offset) % 8 == 0;
}

int stage_accepts(int region, uint64_t offset, unsigned size, bool write)
{
    switch (mix((uint64_t)region + (write ? 3000 : 2000), offset * 65 + size) % 8) {
    case 0:
        return BB_E_DECODE;
    case 1:
        return BB_E_DEVICE;
    default:
        return BB_OK;
    }
}

static void record(struct stage_region *region, struct bb_ctx *ctx, struct stage_call call)
{
    struct stage *stage = region->stage;

    call.region = region->number;
    if (!call.accept) {
        call.attrs = bb_access_attrs(ctx);
    }
    if (stage->call_count < STAGE_CALLS_MAX) {
        stage->call[stage->call_count++] = call;
    }
}

static int read_callback(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                         uint64_t *value)
{
    struct stage_region *region = opaque;

    record(region, ctx, (struct stage_call){.offset = offset, .size = size});
    if (region->stage->refuses && stage_refuses(region->number, offset, false)) {
        return BB_E_DEVICE;
    }
    *value = 0;
    for (unsigned i = 0; i < size; i++) {
        unsigned place = region->make.rules.endian == BB_BIG_ENDIAN ? size - 1 - i : i;
        *value |= (uint64_t)stage_byte(region->number, offset + i) << (8 * place);
    }
    return BB_OK;
}

static int write_callback(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t value)
{
    struct stage_region *region = opaque;

    record(region, ctx,
           (struct stage_call){.offset = offset, .size = size, .value = value, .write = true});
    return region->stage->refuses && stage_refuses(region->number, offset, true) ? BB_E_DEVICE
                                                                                 : BB_OK;
}

static int accept_callback(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                           bool write, struct bb_attrs attrs)
{
    struct stage_region *region = opaque;

    record(region, ctx,
           (struct stage_call){
               .offset = offset, .size = size, .write = write, .accept = true, .attrs = attrs});
    return region->stage->refuses ? stage_accepts(region->number, offset, size, write) : BB_OK;
}

/* The translation itself is iommu_test.c's; here it is enough that an IOMMU was met. */
static int translate_callback(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova,
                              enum bb_iommu_access access, struct bb_attrs attrs,
                              struct bb_iommu_entry *entry)
{
    struct stage_region *region = opaque;

    (void)ctx;
    (void)access;
    (void)entry;
    if (region->stage->call_count < STAGE_CALLS_MAX) {
        region->stage->call[region->stage->call_count++] = (struct stage_call){
            .region = region->number, .offset = iova, .size = 0, .attrs = attrs};
    }
    return BB_E_DECODE;
}

static const struct bb_region_ops plain_ops = {.read = read_callback, .write = write_callback};
static const struct bb_region_ops accept_ops = {
    .read = read_callback, .write = write_callback, .accept = accept_callback};
static const struct bb_iommu_ops iommu_ops = {.translate = translate_callback};

static void count_removal(void *opaque)
{
    struct stage *stage = opaque;

    (void)bb_fetch_add_acq_rel(&stage->completed, 1); /* pairs with stage_end() */
}

static int remove_region(struct stage *stage, struct bb_region *region, struct bb_error *err)
{
    int result = bb_region_remove(stage->ctx, region, count_removal, stage, err);

    stage->removals += result == BB_OK;
    return result;
}

const char *stage_begin(struct stage *stage)
{
    static const enum bb_space_kind kinds[MODEL_SPACES] = {BB_SPACE_MMIO, BB_SPACE_MMIO,
                                                           BB_SPACE_PIO, BB_SPACE_MMIO};
    static const unsigned bits[MODEL_SPACES] = {64, 32, 0, 10};
    struct bb_engine_config config = {.name = "stage", .clock_mode = BB_CLOCK_MANUAL};
    struct bb_error err = {0};

    memset(stage, 0, sizeof(*stage));
    if (bb_engine_create(&config, &stage->engine, &err) != BB_OK ||
        bb_ctx_attach(stage->engine, "main", &stage->ctx, &err) != BB_OK) {
        return stage_wrong(stage, "engine: %s", err.text);
    }
    for (int i = 0; i < MODEL_SPACES; i++) {
        struct bb_space_config space = {.name = topology_space_name[i],
                                        .kind = kinds[i],
                                        .bits = bits[i],
                                        .decode_error = stage_decode_fill[i],
                                        .device_error = stage_device_fill[i]};
        if (bb_space_create(stage->ctx, &space, &stage->space[i], &err) != BB_OK) {
            return stage_wrong(stage, "space: %s", err.text);
        }
    }
    /* Not all: with a listener and without one, commits go different ways. */
    for (int i = 0; i < MODEL_SPACES; i += 2) {
        struct bb_listener_config listener = {.name = topology_space_name[i],
                                              .space = stage->space[i],
                                              .ops = &stage_mirror_ops,
                                              .opaque = &stage->mirror[i]};
        if (bb_listener_add(stage->ctx, &listener, &stage->mirror[i].listener, &err) != BB_OK) {
            return stage_wrong(stage, "listener: %s", err.text);
        }
    }
    stage->arena = calloc(1, TOPOLOGY_ARENA_BYTES);
    for (int i = 0; i < MODEL_REGIONS_MAX; i++) {
        stage->region[i] = (struct stage_region){.stage = stage, .number = i};
    }
    for (int i = 0; i < MODEL_SPACES; i++) {
        stage->region[i].region = bb_space_root(stage->space[i]);
    }
    model_begin(&stage->model, topology_space_last);
    return NULL;
}

const char *stage_end(struct stage *stage)
{
    struct bb_error err = {0};

    /* Pairs with count_removal(). */
    while (bb_load_acquire(&stage->completed) != stage->removals) {
        sched_yield();
    }
    free(stage->arena);
    stage->arena = NULL;
    for (int i = 0; i < MODEL_SPACES; i++) {
        if (stage->mirror[i].listener != NULL &&
            bb_listener_remove(stage->ctx, stage->mirror[i].listener, &err) != BB_OK) {
            return stage_wrong(stage, "listener: %s", err.text);
        }
        stage->mirror[i].listener = NULL;
    }
    if (bb_ctx_detach(stage->ctx, &err) != BB_OK ||
        bb_engine_destroy(stage->engine, &err) != BB_OK) {
        return stage_wrong(stage, "end: %s", err.text);
    }
    return NULL;
}

static int make_device(struct stage *stage, struct bb_error *err)
{
    struct bb_device_config config = {.name = "device", .opaque = stage};

    return stage->device != NULL ? BB_OK
                                 : bb_device_create(stage->ctx, &config, &stage->device, err);
}

static int make_io(struct stage *stage, struct stage_region *region, const char *name,
                   struct bb_error *err)
{
    const struct topology_region *make = &region->make;
    struct bb_region_config config = {.name = name,
                                      .size_bytes = make->size,
                                      .ops = make->accept ? &accept_ops : &plain_ops,
                                      .opaque = region,
                                      .rom_device = make->kind == BB_KIND_ROM_DEVICE,
                                      .klass = make->klass,
                                      .rules = make->rules};
    int result = make_device(stage, err);

    if (result == BB_OK) {
        result = bb_device_region_create(stage->ctx, stage->device, &config, &region->region, err);
    }
    if (result == BB_OK && config.rom_device) {
        uint8_t *host = bb_region_host(region->region);
        for (uint64_t i = 0; i < make->size; i++) {
            host[i] = stage_byte(region->number, i);
        }
    }
    return result;
}

static int make_region(struct stage *stage, const struct topology_step *step, struct bb_error *err)
{
    struct stage_region *region = &stage->region[step->region];
    const struct topology_region *make = &step->make;
    char name[16];
    int result;

    snprintf(name, sizeof(name), "#%d", step->region);
    region->make = *make;
    switch (make->kind) {
    case BB_KIND_CONTAINER:
        return bb_container_create(stage->ctx, name, make->size, &region->region, err);
    case BB_KIND_RESERVED:
        return bb_reserved_create(stage->ctx, name, make->size, &region->region, err);
    case BB_KIND_ALIAS: {
        struct bb_alias_config config = {.name = name,
                                         .target = stage->region[make->target].region,
                                         .offset = make->window,
                                         .size_bytes = make->size,
                                         .read_only = make->read_only};
        return bb_alias_create(stage->ctx, &config, &region->region, err);
    }
    case BB_KIND_RAM: {
        struct bb_ram_config config = {.name = name,
                                       .size_bytes = make->size,
                                       .size_bytes_max = make->size_max,
                                       .backing = BB_RAM_EMBEDDER,
                                       .host = (uint8_t *)stage->arena + make->arena,
                                       .read_only = make->read_only};
        return bb_ram_create(stage->ctx, &config, &region->region, err);
    }
    case BB_KIND_IOMMU: {
        struct bb_iommu_config config = {
            .name = name, .size_bytes = make->size, .ops = &iommu_ops, .opaque = region};
        result = make_device(stage, err);
        return result != BB_OK ? result
                               : bb_device_iommu_create(stage->ctx, stage->device, &config,
                                                        &region->region, err);
    }
    case BB_KIND_IO:
    case BB_KIND_ROM_DEVICE:
        return make_io(stage, region, name, err);
    }
    return BB_E_INVAL;
}

/* Running. */

static int add_change(struct stage *stage, struct bb_txn *txn, const struct model_change *change,
                      struct bb_error *err)
{
    struct bb_region *region = stage->region[change->region].region;

    switch (change->kind) {
    case MODEL_PLACE:
        return bb_txn_place(txn, stage->region[change->container].region, change->number, region,
                            change->priority, err);
    case MODEL_MAP:
        return bb_txn_map(txn, stage->space[change->container], change->number, region, err);
    case MODEL_UNMAP:
        return bb_txn_unmap(txn, region, err);
    case MODEL_MOVE:
        return bb_txn_move(txn, region, change->number, err);
    case MODEL_PRIORITY:
        return bb_txn_priority(txn, region, change->priority, err);
    case MODEL_ENABLE:
        return bb_txn_enable(txn, region, change->flag, err);
    case MODEL_RESIZE:
        return bb_txn_resize(txn, region, change->number, err);
    case MODEL_WINDOW:
        return bb_txn_window(txn, region, change->number, err);
    case MODEL_ROM_MODE:
        return bb_txn_rom_mode(txn, region, change->flag, err);
    case MODEL_READ_ONLY:
        return bb_txn_read_only(txn, region, change->flag, err);
    case MODEL_CHANGES:
        break;
    }
    return BB_E_INVAL;
}

/* What the model makes of a transaction. On BB_OK it has made it. */
static int model_commit(struct stage *stage, const struct stage_txn *txn)
{
    struct model tried = stage->model;

    for (unsigned i = 0; i < txn->count; i++) {
        int result = model_change(&tried, &txn->change[i]);
        if (result != BB_OK) {
            return result;
        }
    }
    int result = model_judge(&tried);
    if (result == BB_OK) {
        stage->model = tried;
    }
    return result;
}

static const char *end_transaction(struct stage *stage, int result, const struct bb_error *err)
{
    const struct stage_txn *txn = &stage->txn[0];
    struct model before = stage->model;
    int expected = model_commit(stage, txn);

    if (result == BB_E_LIMIT && expected == BB_OK && model_places(&stage->model) > 1000) {
        stage->model = before; /* the bound of places, documented and not modelled */
        expected = BB_E_LIMIT;
    }
    if (result != expected) {
        return stage_wrong(stage, "a transaction of %u changes gives %s (%s), by the model %s",
                           txn->count, bb_result_name(result), err->text, bb_result_name(expected));
    }
    if (result != BB_OK && err->code != result) {
        return stage_wrong(stage, "an error of %s says that it is %s", bb_result_name(result),
                           bb_result_name(err->code));
    }
    stage->codes |= 1u << -result;
    stage->commits += result == BB_OK;
    stage->refusals += result != BB_OK;
    return stage_compare(stage);
}

static const char *commit(struct stage *stage)
{
    struct bb_error err = {0};
    struct stage_txn *txn = &stage->txn[stage->depth - 1];
    int result = bb_txn_commit(txn->txn, &err);

    stage->depth--;
    if (stage->depth == 0) {
        return end_transaction(stage, result, &err);
    }
    if (result != BB_OK) {
        return stage_wrong(stage, "handing changes over gives %s", err.text);
    }
    struct stage_txn *parent = txn - 1;
    memcpy(&parent->change[parent->count], txn->change, txn->count * sizeof(txn->change[0]));
    parent->count += txn->count;
    return NULL;
}

static const char *begin(struct stage *stage)
{
    struct bb_error err = {0};
    struct stage_txn *txn = &stage->txn[stage->depth];
    int result = stage->depth == 0 ? bb_txn_begin(stage->ctx, &txn->txn, &err)
                                   : bb_txn_nest(txn[-1].txn, &txn->txn, &err);

    if (result != BB_OK) {
        return stage_wrong(stage, "begin: %s", err.text);
    }
    txn->count = 0;
    stage->depth++;
    return NULL;
}

static const char *change_step(struct stage *stage, const struct model_change *change)
{
    struct bb_error err = {0};
    bool alone = stage->depth == 0;

    if (stage->region[change->region].region == NULL ||
        ((change->kind == MODEL_PLACE || change->kind == MODEL_MAP) &&
         stage->region[change->container].region == NULL)) {
        return NULL;
    }
    const char *text = alone ? begin(stage) : NULL;
    if (text != NULL) {
        return text;
    }
    struct stage_txn *txn = &stage->txn[stage->depth - 1];
    int result = add_change(stage, txn->txn, change, &err);
    int expected = model_ask(&stage->model, change);
    stage->codes |= 1u << -result;
    if (result == BB_OK) {
        txn->change[txn->count++] = *change;
    }
    /* A root is refused; what is wrong with the change besides may be said first. */
    if (result != expected && (change->region >= MODEL_SPACES || result == BB_OK)) {
        text =
            stage_wrong(stage, "asking for a change of #%d gives %s (%s), by the model %s",
                        change->region, bb_result_name(result), err.text, bb_result_name(expected));
    }
    if (text == NULL && alone) {
        text = commit(stage);
    }
    return text;
}

static const char *remove_step(struct stage *stage, int number)
{
    struct stage_region *region = &stage->region[number];
    struct bb_error err = {0};

    if (region->region == NULL || stage->depth > 0 || number < MODEL_SPACES) {
        return NULL;
    }
    if (remove_region(stage, region->region, &err) != BB_OK) {
        return stage_wrong(stage, "removing #%d: %s", number, err.text);
    }
    region->region = NULL;
    model_remove(&stage->model, number);
    return stage_compare(stage);
}

static const char *step(struct stage *stage, const struct topology_step *step)
{
    struct bb_error err = {0};

    switch (step->kind) {
    case TOPOLOGY_MAKE:
        if (step->make.target != MODEL_NONE && stage->region[step->make.target].region == NULL) {
            return NULL;
        }
        if (make_region(stage, step, &err) != BB_OK) {
            return stage_wrong(stage, "making #%d: %s", step->region, err.text);
        }
        topology_model_make(&stage->model, step);
        return NULL;
    case TOPOLOGY_BEGIN:
        return stage->depth < STAGE_DEPTH ? begin(stage) : NULL;
    case TOPOLOGY_COMMIT:
        return stage->depth > 0 ? commit(stage) : NULL;
    case TOPOLOGY_ABORT:
        if (stage->depth == 0) {
            return NULL;
        }
        stage->depth--;
        bb_txn_abort(stage->txn[stage->depth].txn);
        return stage->depth == 0 ? stage_compare(stage) : NULL;
    case TOPOLOGY_CHANGE:
        return change_step(stage, &step->change);
    case TOPOLOGY_REMOVE:
        return remove_step(stage, step->region);
    }
    return NULL;
}

const char *stage_run(struct stage *stage, const struct topology *topology)
{
    const char *text = NULL;

    for (uint64_t i = 0; i < TOPOLOGY_ARENA_BYTES; i++) {
        ((uint8_t *)stage->arena)[i] = stage_arena_byte(i);
    }
    for (unsigned i = 0; i < topology->count && text == NULL; i++) {
        text = step(stage, &topology->step[i]);
    }
    while (stage->depth > 0 && text == NULL) {
        text = commit(stage);
    }
    return text;
}

const char *stage_clear(struct stage *stage)
{
    struct bb_error err = {0};
    const char *text = NULL;

    while (stage->depth > 0) {
        bb_txn_abort(stage->txn[--stage->depth].txn);
    }
    for (int i = MODEL_REGIONS_MAX - 1; i >= MODEL_SPACES; i--) {
        struct stage_region *region = &stage->region[i];
        if (region->region != NULL && bb_region_device(region->region) == NULL &&
            remove_region(stage, region->region, &err) != BB_OK) {
            text = stage_wrong(stage, "removing #%d: %s", i, err.text);
        }
        region->region = NULL;
    }
    if (stage->device != NULL) {
        stage->removals++;
        if (bb_device_remove(stage->ctx, stage->device, count_removal, stage, &err) != BB_OK) {
            text = stage_wrong(stage, "removing the device: %s", err.text);
        }
    }
    stage->device = NULL;
    model_begin(&stage->model, topology_space_last);
    for (int space = 0; space < MODEL_SPACES && text == NULL; space++) {
        text = stage_compare_space(stage, space, false);
    }
    return text;
}
