/* SPDX-License-Identifier: MIT */
/* The board's own ports; see board_ports.h. All but the page port run under the device's lock. */
#include "board_ports.h"

#include <string.h>
#include <sys/mman.h>

#include "../base/bits.h"
#include "acpi.h"

enum {
    PM1_EVT_BYTES = 4, /* status, enable */
    PM1_CNT_BYTES = 2,
    PM1_CNT_SCI_EN = 1 << 0,
    PM1_CNT_SLP_TYP_SHIFT = 10,
    PM1_CNT_SLP_TYP_BITS = 3,
    PM1_CNT_SLP_EN = 1 << 13, /* write-only */
    ZAP_BYTES = 4,
    PAGE = 4096,
};

static const char shutdown_text[] = "Shutdown";

struct ports {
    /* Immutable after create. */
    struct bb_engine *engine;
    struct bb_board_ports_config config;
    struct bb_source *sources[BB_BOARD_GSIS];

    /* Guarded by the device's lock. */
    uint16_t pm1_enable;
    uint16_t pm1_control;
    unsigned shutdown_matched; /* letters of shutdown_text seen in a row */
};

static int pm1_event_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t *value)
{
    const struct ports *p = opaque;
    uint64_t whole = (uint64_t)p->pm1_enable << 16;
    (void)ctx;
    *value = bb_field_get(whole, (unsigned)offset * 8, size * 8);
    return BB_OK;
}

static int pm1_event_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                           uint64_t value)
{
    struct ports *p = opaque;
    uint64_t whole = (uint64_t)p->pm1_enable << 16;
    (void)ctx;
    whole = bb_field_set(whole, (unsigned)offset * 8, size * 8, value);
    p->pm1_enable = (uint16_t)(whole >> 16);
    return BB_OK;
}

static int pm1_control_read(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                            uint64_t *value)
{
    const struct ports *p = opaque;
    (void)ctx;
    *value = bb_field_get(p->pm1_control, (unsigned)offset * 8, size * 8);
    return BB_OK;
}

static int pm1_control_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                             uint64_t value)
{
    struct ports *p = opaque;
    uint64_t whole = bb_field_set(p->pm1_control, (unsigned)offset * 8, size * 8, value);
    (void)ctx;
    p->pm1_control = (uint16_t)((whole & ~(uint64_t)PM1_CNT_SLP_EN) | PM1_CNT_SCI_EN);
    if ((whole & PM1_CNT_SLP_EN) != 0 &&
        bb_field_get(whole, PM1_CNT_SLP_TYP_SHIFT, PM1_CNT_SLP_TYP_BITS) == BB_ACPI_S5_TYPE) {
        bb_stop_request(p->config.stop, BB_STOP_POWER_OFF, 0);
    }
    return BB_OK;
}

static int shutdown_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                          uint64_t value)
{
    struct ports *p = opaque;
    (void)ctx;
    (void)offset;
    (void)size;
    if ((char)value == shutdown_text[p->shutdown_matched]) {
        p->shutdown_matched++;
    } else {
        p->shutdown_matched = (char)value == shutdown_text[0] ? 1 : 0;
    }
    if (p->shutdown_matched == sizeof(shutdown_text) - 1) {
        p->shutdown_matched = 0;
        bb_stop_request(p->config.stop, BB_STOP_POWER_OFF, 0);
    }
    return BB_OK;
}

static int irq_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t value)
{
    struct ports *p = opaque;
    (void)size;
    bb_source_set(ctx, p->sources[offset], (value & 0xff) != 0);
    return BB_OK;
}

/*
 * Changes the page's protection and changes it back, content untouched, so that whoever maps guest
 * memory a second time (KVM) must fault it in anew. The page gains a right for a moment and never
 * loses one: what other vCPUs and devices write meanwhile must arrive. Nothing here executes it.
 * Addresses outside RAM do nothing.
 */
static int zap_write(struct bb_ctx *ctx, void *opaque, uint64_t offset, unsigned size,
                     uint64_t value)
{
    const struct ports *p = opaque;
    (void)ctx;
    (void)offset;
    (void)size;
    void *page = bb_gmem_at(p->config.mem, value & ~(uint64_t)(PAGE - 1), PAGE);
    if (page != NULL) {
        mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    }
    return BB_OK;
}

static void destroy(void *opaque)
{
    struct ports *p = opaque;
    bb_device_free(p->engine, p, sizeof(*p));
}

static const struct bb_device_ops device_ops = {.destroy = destroy};

static const struct bb_region_ops pm1_event_ops = {.read = pm1_event_read,
                                                   .write = pm1_event_write};
static const struct bb_region_ops pm1_control_ops = {.read = pm1_control_read,
                                                     .write = pm1_control_write};
static const struct bb_region_ops shutdown_ops = {.write = shutdown_write};
static const struct bb_region_ops irq_ops = {.write = irq_write};
static const struct bb_region_ops zap_ops = {.write = zap_write};

struct row {
    bb_gpa_t port;
    struct bb_region_config region;
};

static const struct row rows[] = {
    {BB_BOARD_PM1A_EVENT,
     {.name = "pm1a-event",
      .size_bytes = PM1_EVT_BYTES,
      .ops = &pm1_event_ops,
      .klass = BB_CLASS_DEVICE_LOCK,
      .rules = {.valid_min = 1, .valid_max = 4}}},
    {BB_BOARD_PM1A_CONTROL,
     {.name = "pm1a-control",
      .size_bytes = PM1_CNT_BYTES,
      .ops = &pm1_control_ops,
      .klass = BB_CLASS_DEVICE_LOCK,
      .rules = {.valid_min = 1, .valid_max = 2}}},
    {BB_BOARD_SHUTDOWN,
     {.name = "shutdown",
      .size_bytes = 1,
      .ops = &shutdown_ops,
      .klass = BB_CLASS_DEVICE_LOCK,
      .rules = {.valid_min = 1, .valid_max = 1}}},
    {BB_BOARD_IRQ_PORT,
     {.name = "irq-lines",
      .size_bytes = BB_BOARD_GSIS,
      .ops = &irq_ops,
      .klass = BB_CLASS_LOCKFREE,
      .rules = {.valid_min = 1, .valid_max = 1}}},
    {BB_BOARD_ZAP_PAGE,
     {.name = "zap-page",
      .size_bytes = ZAP_BYTES,
      .ops = &zap_ops,
      .klass = BB_CLASS_MAY_SLEEP,
      .rules = {.valid_min = 4, .valid_max = 4}}},
};

static int add_regions(struct bb_ctx *ctx, struct bb_space *pio, struct bb_device *device,
                       struct ports *p, struct bb_error *err)
{
    for (size_t i = 0; i < BB_ARRAY_LEN(rows); i++) {
        struct bb_region_config config = rows[i].region;
        struct bb_region *region;
        config.opaque = p;
        int rc = bb_device_region_create(ctx, device, &config, &region, err);
        if (rc == BB_OK) {
            rc = bb_space_map(ctx, pio, rows[i].port, region, err);
        }
        if (rc != BB_OK) {
            return rc;
        }
    }
    return BB_OK;
}

int bb_board_ports_create(struct bb_ctx *ctx, struct bb_space *pio,
                          const struct bb_board_ports_config *config, struct bb_device **out,
                          struct bb_error *err)
{
    struct bb_device *device;
    struct ports *p = bb_device_alloc(bb_ctx_engine(ctx), sizeof(*p));
    if (p == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for the board's ports");
    }
    p->engine = bb_ctx_engine(ctx);
    p->config = *config;
    p->pm1_control = PM1_CNT_SCI_EN;
    struct bb_device_config device_config = {.name = "board", .ops = &device_ops, .opaque = p};
    int rc = bb_device_create(ctx, &device_config, &device, err);
    if (rc != BB_OK) {
        bb_device_free(p->engine, p, sizeof(*p));
        return rc;
    }
    for (unsigned gsi = 0; gsi < BB_BOARD_GSIS && rc == BB_OK; gsi++) {
        rc = bb_source_create(ctx, device, config->lines[gsi], &p->sources[gsi], err);
    }
    if (rc == BB_OK) {
        rc = add_regions(ctx, pio, device, p, err);
    }
    if (rc != BB_OK) {
        bb_device_remove_wait(ctx, device, NULL); /* frees p */
        return rc;
    }
    *out = device;
    return BB_OK;
}
