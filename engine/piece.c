/* SPDX-License-Identifier: MIT */
/*
 * The slow way of an access: as pieces, each of which lies in one region or in none.
 *
 * Cutting. From its first byte on, an access is cut into the largest powers of two of bytes that
 * are left of it and lie in one leaf, one hole, one translation. So an access of 16, 32 or 64 bytes
 * inside one region reaches it whole, and the region's rules say what becomes of it (access.c).
 * Pieces are made in rising order; one that fails does not keep the next from being made.
 *
 * What failed. A piece that met nothing reads the decode fill of the space in which the access was
 * made, one that was refused its device fill: byte i of the access is byte i mod 8 of the fill,
 * wherever the pieces lie. The result of the whole is a device error where any piece had one, else
 * a decode error where any had that.
 *
 * Translations. What is kept for later (a posted write, a coalesced one) keeps the space and the
 * address that it was given, and is looked up and translated again when it is made. An invalidation
 * that waits for accesses in flight waits for sections: a translation that was kept in a queue
 * would outlive it, and the write would land in a page that its owner has taken back. For the same
 * reason a write with attributes is never coalesced: a ring's entry has none to be translated by.
 *
 * Doorbells ring before anything else is asked, as they do inside an accelerator, where the engine
 * does not hear of the write at all: rules, the chain's re-entrancy and locks play no part, since
 * no callback runs. Only order does: behind a posted write a nested one is posted, and rings then.
 *
 * Coalesced writes are drained by outermost accesses alone, before their section begins. While
 * nothing is left by anybody that costs one look.
 *
 * Counting. An access counts once for each region that it meets, when it has left it; what is
 * posted or coalesced counts when it is made. Between two pieces the region's section has ended,
 * and it may be gone by the time that it is counted for: what is kept of it is what its slot is
 * found by.
 */
#include <string.h>

#include "engine_internal.h"

/* An access, and what has become of it so far. */
struct access {
    struct bb_ectx_ *e;
    struct bb_space *space;
    struct bb_attrs attrs;
    bool write;
    bool outermost;         /* no callback runs, and no effect */
    bool in_users_section;  /* which the access can't leave */
    struct bb_counted_ met; /* the region that is not yet counted for; serial 0: none */
    int met_result;
};

/* A piece of it. */
struct part {
    bb_gpa_t gpa;
    uint8_t *bytes;
    unsigned size;
    unsigned left;               /* of the access, from here on */
    const struct bb_flat_ *leaf; /* in its section */
    uint64_t offset;             /* in the leaf's region */
    bool translated;             /* on the way to that leaf */
    bool counted;                /* or will be, by who makes it */
};

/* Counting. */

static void count_met(struct access *a)
{
    if (a->met.serial != 0) {
        bb_tally_(a->e, a->met, a->write, a->met_result);
        a->met.serial = 0;
    }
}

/* While the region is kept alive by a section or a pin. */
static void count_part(struct access *a, const struct part *p, int result)
{
    struct bb_counted_ region = bb_counted_of_(p->leaf->region);

    /* Relaxed: counting that has just been turned on or off may be seen late. */
    if ((bb_load_relaxed(&a->e->mem.map->gate) & BB_SLOW_COUNT_) == 0) {
        return;
    }
    if (a->met.serial == region.serial) {
        a->met_result = a->met_result != BB_OK ? a->met_result : result;
    } else {
        count_met(a);
        a->met = region;
        a->met_result = result;
    }
}

/* Callbacks. */

static int touch(const struct access *a, const struct part *p)
{
    struct bb_ctx *ctx = &a->e->mem.base;

    return a->write ? bb_leaf_write_(ctx, p->leaf, p->offset, p->bytes, p->size, a->attrs)
                    : bb_leaf_read_(ctx, p->leaf, p->offset, p->bytes, p->size, a->attrs);
}

/* Runs the callbacks of one piece in the frame of `record`. */
static int call_region(const struct access *a, const struct part *p, uint16_t record)
{
    const struct bb_region *region = p->leaf->region;
    struct bb_frame_ frame = bb_frame_enter_(a->e, region->owner, region->owner_id, record);
    int result;

    a->e->attrs = a->attrs;
    result = touch(a, p);
    bb_frame_leave_(a->e, frame);
    return result;
}

/*
 * A callback outside any section, with a pin on the device in its place. Called in the section in
 * which the region was found; leaves it for the time of the callback, and is in another on return,
 * in which neither leaf nor region need exist any more.
 */
static int call_pinned(struct access *a, struct part *p, uint16_t record)
{
    struct bb_ectx_ *e = a->e;
    struct bb_ctx *ctx = &e->mem.base;
    const struct bb_external_lock *external = &e->engine->external;
    struct bb_flat_ leaf = {0};
    struct bb_device *device = p->leaf->owner;
    unsigned side = bb_pins_get_(&device->pins);
    bool lock = false;
    int result;

    /* Not the writer's fields at its end, which may be written meanwhile. */
    memcpy(&leaf, p->leaf, offsetof(struct bb_flat_, txn));
    p->leaf = &leaf;
    bb_section_leave_(ctx);
    if (leaf.region->klass == BB_CLASS_EXTERNAL_LOCK) {
        lock = external->held == NULL || !external->held(external->opaque);
        if (lock) {
            /* The baseline's big lock comes after it in rank, and gives way. */
            bool big = e->big;
            if (big) {
                bb_big_unlock_(e);
            }
            external->lock(external->opaque);
            if (big) {
                bb_big_lock_(e);
            }
        }
    }
    ctx->pin_depth++;
    result = call_region(a, p, record);
    ctx->pin_depth--;
    if (lock) {
        external->unlock(external->opaque);
    }
    count_part(a, p, result);
    p->leaf = NULL;
    p->counted = true;
    bb_section_enter_(ctx);
    bb_pins_put_(e->engine->rcu, &device->pins, side);
    return result;
}

/* Memory, to this access: no callback runs. */
static bool is_memory(const struct access *a, const struct part *p)
{
    return p->leaf->memory && (!a->write || p->leaf->kind == BB_KIND_RAM);
}

/* One piece of an outermost access or of a posted write. In a section; nothing else is held. */
static int outer_part(struct access *a, struct part *p)
{
    struct bb_ectx_ *e = a->e;
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_chain_ *chain = &e->chain;
    const struct bb_region *region = p->leaf->region;
    struct bb_device *device = p->leaf->owner; /* the region's own may be set meanwhile: adoption */
    uint16_t record = 0;
    int result;

    if (is_memory(a, p)) {
        return touch(a, p);
    }
    if (chain->epilogue) {
        if (!region->reentrant && bb_chain_has_(chain, chain->record, region->owner_id)) {
            bb_count_(e, reentrant);
            return BB_E_DEVICE;
        }
        record = bb_chain_record_(e, region->owner_id, chain->record);
        if (record == BB_CHAIN_NO_RECORD_) {
            bb_count_(e, effects_refused);
            return BB_E_DEVICE;
        }
    } else {
        chain->records[0].device_id = region->owner_id;
    }
    switch ((enum bb_class)region->klass) {
    case BB_CLASS_LOCKFREE:
        /* Relaxed: the bit never changes in an engine's life. */
        if ((bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_LOCK_DEVICE_) != 0) {
            if (ctx->lock_depth > 0) {
                return BB_E_CONTEXT; /* as for DEVICE_LOCK below */
            }
            bb_lock_acquire(ctx, &device->baseline);
            result = call_region(a, p, record);
            bb_lock_release(ctx, &device->baseline);
            return result;
        }
        return call_region(a, p, record);
    case BB_CLASS_DEVICE_LOCK:
        if (ctx->lock_depth > 0) {
            return BB_E_CONTEXT; /* the embedder holds a ranked lock around its access */
        }
        bb_device_lock(ctx, device);
        result = call_region(a, p, record);
        bb_device_unlock(ctx, device);
        return result;
    case BB_CLASS_MAY_SLEEP:
    case BB_CLASS_EXTERNAL_LOCK:
        if (ctx->lock_depth > 0 || a->in_users_section) {
            return BB_E_CONTEXT;
        }
        return call_pinned(a, p, record);
    }
    return BB_E_DEVICE;
}

static int post_write(const struct access *a, struct part *p)
{
    struct bb_effect_ *effect = bb_chain_post_(a->e, NULL, true, BB_EFFECT_WRITE_);

    if (effect == NULL) {
        return BB_E_DEVICE;
    }
    effect->size = (uint8_t)p->size;
    effect->write.space = a->space;
    effect->write.gpa = p->gpa;
    effect->write.value = 0;
    memcpy(effect->write.bytes, p->bytes, p->size);
    effect->write.attrs = a->attrs;
    p->counted = true;
    return BB_OK;
}

/* One piece of a nested access, by rule 1 of the chains. In a section. */
static int nested_part(struct access *a, struct part *p)
{
    struct bb_ectx_ *e = a->e;
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_chain_ *chain = &e->chain;
    const struct bb_region *region = p->leaf->region;
    bool must_queue = a->write && chain->ordered > 0;
    int result;

    if (is_memory(a, p)) {
        if (must_queue) {
            return post_write(a, p);
        }
        result = touch(a, p);
        /* What is posted to memory that is read-only will be refused. */
        if (!a->write && p->leaf->kind == BB_KIND_RAM && !p->leaf->read_only) {
            bb_chain_forward_bytes_(e, a->space, p->gpa, p->translated ? &a->attrs : NULL, p->bytes,
                                    p->size);
        }
        return result;
    }
    bb_chain_root_(e);
    if (!region->reentrant && bb_chain_has_(chain, chain->record, region->owner_id)) {
        bb_count_(e, reentrant);
        return BB_E_DEVICE;
    }
    if (must_queue || !bb_chain_at_once_(e, region)) {
        if (a->write) {
            return post_write(a, p);
        }
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    if (ctx->callback_depth >= BB_NEST_MAX_) {
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    uint16_t records_before = chain->record_count;
    uint32_t spent_before = chain->spent;
    uint16_t record = bb_chain_record_(e, region->owner_id, chain->record);
    if (record == BB_CHAIN_NO_RECORD_) {
        bb_count_(e, nested_refused);
        return BB_E_DEVICE;
    }
    result = call_region(a, p, record);
    if (chain->spent == spent_before) {
        chain->record_count = records_before; /* nothing refers to it */
    }
    return result;
}

/* Pieces. */

/* True where the write needs no callback now: it rang a doorbell, or waits in the ring. */
static bool taken(const struct access *a, struct part *p, bool drained)
{
    struct bb_ectx_ *e = a->e;
    bool plain = a->attrs.requester_id == 0 && !a->attrs.secure && !a->attrs.privileged;
    uint64_t value = 0;

    if (e->mem.base.callback_depth > 0 && e->chain.ordered > 0) {
        return false; /* to be posted */
    }
    memcpy(&value, p->bytes, p->size < 8 ? p->size : 8);
    if (bb_doorbell_ring_(e, p->leaf, p->offset, p->size, value)) {
        return true;
    }
    if (a->outermost && !drained && plain && p->size <= 8 &&
        bb_coalesce_take_(e, a->space, p->gpa, p->leaf, p->offset, p->size, value)) {
        p->counted = true;
        return true;
    }
    return false;
}

/* What lies at the piece's address is in `leaf`; its size is cut down to that. In a section. */
static int find(const struct access *a, struct part *p)
{
    enum bb_iommu_access wanted = a->write ? BB_IOMMU_WRITE : BB_IOMMU_READ;
    struct bb_found_ found;
    int result = bb_map_resolve_(&a->e->mem, a->space, p->gpa, p->size, wanted, a->attrs, &found);

    while (p->size > found.length) {
        p->size /= 2;
    }
    if (result != BB_OK) {
        return result;
    }
    p->leaf = found.leaf;
    p->offset = found.offset;
    p->translated = found.space != a->space || found.gpa != p->gpa;
    return p->leaf == NULL ? BB_E_DECODE : BB_OK;
}

/* The piece that begins at p->gpa, of at most p->size bytes. */
static int access_part(struct access *a, struct part *p)
{
    struct bb_ectx_ *e = a->e;
    struct bb_ctx *ctx = &e->mem.base;
    bool drained = false;
    int result;

    bb_section_enter_(ctx);
    for (;;) {
        result = find(a, p);
        if (result != BB_OK) {
            p->counted = true; /* no region was met */
            break;
        }
        if (a->write && p->leaf->bells != NULL && taken(a, p, drained)) {
            break;
        }
        if (p->leaf->drains && a->outermost && !drained && bb_coalesce_pending_(e->engine)) {
            bb_section_leave_(ctx);
            drained = bb_may_block_(e);
            if (drained) {
                bb_coalesce_drain_(e);
            }
            bb_section_enter_(ctx);
            if (drained) {
                continue; /* the leaf was of the section that is over */
            }
            p->counted = true;
            result = BB_E_CONTEXT;
            break;
        }
        if (p->leaf->kind == BB_KIND_RESERVED) {
            result = BB_E_DECODE;
        } else {
            result = ctx->callback_depth > 0 ? nested_part(a, p) : outer_part(a, p);
        }
        break;
    }
    if (!p->counted) {
        count_part(a, p, result);
    }
    bb_section_leave_(ctx);
    return result;
}

/* What failed reads: from byte `at` of the access on. */
static void fill(uint8_t *bytes, unsigned at, unsigned size, uint64_t pattern)
{
    for (unsigned i = at; i < at + size; i++) {
        bytes[i] = (uint8_t)(pattern >> (8 * (i % 8)));
    }
}

int bb_access_pieces_(struct bb_ectx_ *e, struct bb_space *space, bb_gpa_t gpa, void *bytes,
                      unsigned size, bool write, struct bb_attrs attrs)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct access a = {.e = e, .space = space, .attrs = attrs, .write = write};
    bool unassigned = false, refused = false, context = false;

    if (ctx->callback_depth == 0) {
        a.in_users_section = bb_section_active_(ctx);
        a.outermost = !e->chain.epilogue;
    }
    for (unsigned done = 0; done < size;) {
        struct part p = {.gpa = gpa + done,
                         .bytes = (uint8_t *)bytes + done,
                         .size = BB_ACCESS_BYTES_MAX_,
                         .left = size - done};
        while (p.size > p.left) {
            p.size /= 2;
        }
        int result = access_part(&a, &p);

        unassigned |= result == BB_E_DECODE;
        refused |= result != BB_OK && result != BB_E_DECODE;
        context |= result == BB_E_CONTEXT;
        if (result != BB_OK && !write) {
            fill(bytes, done, p.size,
                 result == BB_E_DECODE ? space->decode_fill : space->device_fill);
        }
        done += p.size;
    }
    count_met(&a);
    if (unassigned && write) {
        bb_count_(e, unassigned_writes);
    } else if (unassigned) {
        bb_count_(e, unassigned_reads);
    }
    if (refused) {
        bb_count_(e, refused);
        return context ? BB_E_CONTEXT : BB_E_DEVICE;
    }
    return unassigned ? BB_E_DECODE : BB_OK;
}

int bb_access_effect_(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    uint8_t bytes[BB_ACCESS_BYTES_MAX_];

    memcpy(bytes, effect->write.bytes, effect->size);
    return bb_access_pieces_(e, effect->write.space, effect->write.gpa, bytes, effect->size, true,
                             effect->write.attrs);
}
