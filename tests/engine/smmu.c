/* SPDX-License-Identifier: MIT */
/* The model of an IOMMU; see smmu.h. */
#include "smmu.h"

#include <string.h>

struct machine machine;
struct bb_space *bus;
struct smmu smmu;
const struct bb_attrs nobody;
uint64_t messages, last_message;

struct bb_attrs master(uint32_t id)
{
    return (struct bb_attrs){.requester_id = id};
}

static int translate(struct bb_ctx *ctx, void *opaque, bb_gpa_t iova, enum bb_iommu_access access,
                     struct bb_attrs attrs, struct bb_iommu_entry *entry)
{
    struct smmu *of = opaque;
    uint64_t word;

    (void)bb_fetch_add_relaxed(&of->asked, 1); /* a counter */
    if (of->besides != NULL) {
        of->besides(ctx, of, attrs);
    }
    if (attrs.requester_id < 1 || attrs.requester_id > REQUESTERS || iova / PAGE >= TABLE_ENTRIES) {
        return BB_E_DECODE;
    }
    bb_gpa_t at = TABLE + (attrs.requester_id - 1) * TABLE_STEP + iova / PAGE * 8;
    int result =
        bb_dma_load(ctx, of->tables, at, 8, BB_LITTLE_ENDIAN, master(attrs.requester_id), &word);
    if (result != BB_OK) {
        return result;
    }
    *entry = (struct bb_iommu_entry){of->target, iova & ~UINT64_C(0xfff), word & ~UINT64_C(0xfff),
                                     12, (unsigned)word & 3};
    if ((word & (uint64_t)access) != (uint64_t)access) {
        if (of->tells) {
            (void)bb_msi_send(ctx, 0xfee00000, attrs.requester_id);
        }
        return (word & 3) == 0 ? BB_E_DECODE : BB_E_DEVICE;
    }
    return BB_OK;
}

static const struct bb_iommu_ops smmu_ops = {translate};

struct bb_space *space_make(const char *name)
{
    struct bb_space_config config = {.name = name,
                                     .decode_error = {BB_FILL_PATTERN, 0xdddddddddddddddd},
                                     .device_error = {BB_FILL_PATTERN, 0xeeeeeeeeeeeeeeee}};
    struct bb_space *space = NULL;
    struct bb_error err = {0};

    cr_assert_eq(bb_space_create(machine.ctx, &config, &space, &err), BB_OK, "%s", err.text);
    return space;
}

void smmu_make(struct smmu *made, const char *name, struct bb_space *in, struct bb_space *target)
{
    struct bb_device_config device = {.name = name};
    struct bb_iommu_config config = {name, BB_SIZE_ALL, &smmu_ops, made};
    struct bb_error err = {0};

    memset(made, 0, sizeof(*made));
    made->machine = &machine;
    made->target = target;
    made->tables = machine.mmio;
    cr_assert_eq(bb_device_create(machine.ctx, &device, &made->device, &err), BB_OK, "%s",
                 err.text);
    cr_assert_eq(bb_device_iommu_create(machine.ctx, made->device, &config, &made->region, &err),
                 BB_OK, "%s", err.text);
    cr_assert_eq(bb_region_place(machine.ctx, bb_space_root(in), 0, made->region, 0, &err), BB_OK,
                 "%s", err.text);
}

void smmu_drop(struct smmu *dropped)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_device_remove_wait(machine.ctx, dropped->device, &err), BB_OK, "%s", err.text);
}

static int take_message(struct bb_ctx *ctx, void *opaque, uint64_t address, uint32_t data)
{
    (void)ctx;
    (void)opaque;
    (void)address;
    messages++;
    last_message = data;
    return BB_OK;
}

void smmu_begin(void)
{
    struct bb_engine_config config = {.msi_sink = {.deliver = take_message}};

    messages = 0;
    machine_make(&machine, &config);
    bus = space_make("bus");
    smmu_make(&smmu, "smmu", bus, machine.mmio);
}

void smmu_end(void)
{
    if (smmu.device != NULL) {
        smmu_drop(&smmu);
    }
    machine_drop(&machine);
}

void page_set(uint32_t requester, bb_gpa_t iova, uint64_t word)
{
    bb_gpa_t at = TABLE + (requester - 1) * TABLE_STEP + iova / PAGE * 8;

    cr_assert_eq(bb_dma_store(machine.ctx, machine.mmio, at, 8, BB_LITTLE_ENDIAN, nobody, word),
                 BB_OK);
}

void void_all(struct bb_region *region)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_iommu_invalidate(machine.ctx, region, 0, UINT64_MAX, NULL, NULL, &err), BB_OK,
                 "%s", err.text);
}

int load(struct bb_ctx *ctx, bb_gpa_t gpa, uint32_t requester, uint64_t *value)
{
    return bb_dma_load(ctx, bus, gpa, 8, BB_LITTLE_ENDIAN, master(requester), value);
}

int store(struct bb_ctx *ctx, bb_gpa_t gpa, uint32_t requester, uint64_t value)
{
    return bb_dma_store(ctx, bus, gpa, 8, BB_LITTLE_ENDIAN, master(requester), value);
}

uint64_t ram_word(bb_gpa_t gpa)
{
    uint64_t word;

    memcpy(&word, machine.ram_host + gpa, sizeof(word));
    return word;
}
