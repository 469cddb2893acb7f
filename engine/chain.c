/* SPDX-License-Identifier: MIT */
/*
 * Chains: why no lock order exists between devices.
 *
 * A chain is an outermost access, an expiry or an outermost bb_post(), and everything it sets off
 * on its context. While one of its callbacks runs, an effect on another device either runs at once
 * or is posted here and runs in the epilogue, after the callback's lock, pin and section have been
 * dropped and before the access returns.
 *
 * Invariants:
 *  1. When an effect begins, the chain holds no device lock, no narrow lock, no pin of its own and
 *     no section. (The pin that posting took belongs to the effect, and is waited for by removal
 *     only, which holds nothing.) So whatever lock an effect waits for, nobody waits for this
 *     thread because of a lock that the engine gave it: no cycle of waiting can be built.
 *  2. Order: effects posted while effect E ran go directly behind E, in the order posted, before
 *     what was posted earlier to run after E. The outcome is that of a synchronous machine in which
 *     each write finishes with all it causes before the next begins.
 *  3. Once a write has been posted by the running callback, later RAM writes, messages and raises
 *     of that callback are posted behind it (`ordered` > 0), so that the guest can't see the
 *     announcement before the data. A raise is posted as "look again", never as a level.
 *  4. Each effect carries the record of the callback that posted it; records form a tree by parent.
 *     A device is re-entered where a record on the way to the root names it: a matter of this
 *     chain alone, so concurrent vCPUs never refuse one another.
 *  5. A chain posts at most chain_effects_max effects in its life and has at most BB_CHAIN_QUEUE_
 *     outstanding: two devices that write to each other for ever cost a bounded number of steps.
 *  6. A context with effects outstanding is `busy`: pause waits for it, and its effects pass the
 *     gate.
 *  7. Data before announcement. RAM is written by relaxed stores, so what announces it releases
 *     them: the swap of a line's word (bb_source_apply_(), source_pulse_now() in line.c) and the
 *     fence before a message is delivered (bb_msi_send()). Whoever acquires what these wrote, a
 *     line's word or what the sink stored, sees every write to RAM that its thread made before.
 *  8. An epilogue ends when neither effects are left nor commits that listeners have yet to be told
 *     of; effects make commits, but telling posts nothing, so the effects' budget bounds it.
 */
#include <string.h>

#include "engine_internal.h"

void bb_chain_init_(struct bb_chain_ *chain)
{
    for (unsigned i = 0; i < BB_CHAIN_QUEUE_; i++) {
        chain->effect[i].next = (uint16_t)(i + 1);
    }
    chain->free = 0;
    chain->head = BB_CHAIN_QUEUE_;
    chain->insert = BB_CHAIN_QUEUE_;
    chain->record = 0;
    chain->record_count = 1;
    chain->records[0].parent = BB_CHAIN_NO_RECORD_;
}

bool bb_may_block_(const struct bb_ectx_ *e)
{
    const struct bb_external_lock *external = &e->engine->external;

    return bb_ctx_may_block_(&e->mem.base) && !e->chain.epilogue &&
           (external->held == NULL || !external->held(external->opaque));
}

/* True where `device_id` stands on the way from `record` to the root of the chain. */
bool bb_chain_has_(const struct bb_chain_ *chain, uint16_t record, uint32_t device_id)
{
    while (record != BB_CHAIN_NO_RECORD_) {
        if (chain->records[record].device_id == device_id) {
            return true;
        }
        record = chain->records[record].parent;
    }
    return false;
}

/*
 * Fills in the first record, which the fast path leaves alone. To be called before the record is
 * looked at or another frame begins: while only the chain's root callback runs, outside the
 * epilogue, the context's device is the one that belongs there.
 */
void bb_chain_root_(struct bb_ectx_ *e)
{
    if (e->mem.base.callback_depth == 1 && e->chain.record == 0 && !e->chain.epilogue) {
        e->chain.records[0].device_id = bb_load_relaxed(&e->mem.base.device_id); /* our own */
    }
}

/* A new record, or BB_CHAIN_NO_RECORD_ where the chain has used up its records. */
uint16_t bb_chain_record_(struct bb_ectx_ *e, uint32_t device_id, uint16_t parent)
{
    struct bb_chain_ *chain = &e->chain;

    if (chain->record_count == BB_CHAIN_RECORDS_) {
        return BB_CHAIN_NO_RECORD_;
    }
    uint16_t record = chain->record_count++;
    chain->records[record].device_id = device_id;
    chain->records[record].parent = parent;
    e->mem.base.pending = true; /* the epilogue gives the records back */
    return record;
}

struct bb_frame_ bb_frame_enter_(struct bb_ectx_ *e, struct bb_device *device, uint32_t device_id,
                                 uint16_t record)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_frame_ before = {e->chain.device, ctx->device_id, e->chain.record, e->attrs};

    bb_chain_root_(e);
    e->chain.device = device;
    e->chain.record = record;
    e->attrs = (struct bb_attrs){0};
    /* Relaxed: read by stall and pause reports only, which want any recent value. */
    bb_store_relaxed(&ctx->device_id, device_id);
    ctx->callback_depth++;
    return before;
}

void bb_frame_leave_(struct bb_ectx_ *e, struct bb_frame_ before)
{
    struct bb_ctx *ctx = &e->mem.base;

    ctx->callback_depth--;
    bb_store_relaxed(&ctx->device_id, before.device_id); /* relaxed: as in bb_frame_enter_ */
    e->chain.record = before.record;
    e->chain.device = before.device;
    e->attrs = before.attrs;
}

/*
 * Pins and expiries lie in an inbox for whoever finds them, so their record has no parent: were it
 * the finder's, a device on the finder's way would be refused what another vCPU caused. A loop by
 * way of an inbox ends at the budget. Where the chain is out of records the finder's ancestry is
 * taken, which refuses more, never less.
 */
struct bb_inbox_frame_ bb_inbox_frame_enter_(struct bb_ectx_ *e, struct bb_device *device)
{
    struct bb_inbox_frame_ before = {
        .spent = e->chain.spent,
        .record_count = e->chain.record_count,
        .pending = e->mem.base.pending,
    };
    uint16_t record = bb_chain_record_(e, device->id, BB_CHAIN_NO_RECORD_);

    before.frame = bb_frame_enter_(e, device, device->id,
                                   record == BB_CHAIN_NO_RECORD_ ? e->chain.record : record);
    return before;
}

void bb_inbox_frame_leave_(struct bb_ectx_ *e, struct bb_inbox_frame_ before)
{
    bb_frame_leave_(e, before.frame);
    if (e->chain.spent == before.spent) { /* nothing was posted that refers to the record */
        e->chain.record_count = before.record_count;
        e->mem.base.pending = before.pending || e->mem.untold;
    }
}

/*
 * Takes an effect from the pool, puts it in its place in the queue and pins `device` (NULL: the
 * device whose callback runs). The caller fills in what it does. NULL where a bound was reached.
 */
struct bb_effect_ *bb_chain_post_(struct bb_ectx_ *e, struct bb_device *device, bool ordered,
                                  enum bb_effect_kind_ kind)
{
    struct bb_chain_ *chain = &e->chain;
    uint16_t index = chain->free;

    if (index == BB_CHAIN_QUEUE_ || chain->spent >= e->engine->chain_effects_max) {
        bb_count_(e, effects_refused);
        return NULL;
    }
    struct bb_effect_ *effect = &chain->effect[index];
    chain->free = effect->next;
    if (chain->insert == BB_CHAIN_QUEUE_) {
        effect->next = chain->head;
        chain->head = index;
    } else {
        effect->next = chain->effect[chain->insert].next;
        chain->effect[chain->insert].next = index;
    }
    chain->insert = index;
    chain->spent++;
    chain->ordered = (uint16_t)(chain->ordered + (ordered ? 1 : 0));
    e->mem.base.pending = true;
    bb_chain_root_(e);
    effect->kind = (uint8_t)kind;
    effect->record = chain->record;
    effect->device = device != NULL ? device : chain->device;
    effect->pin_side = 0;
    /*
     * Busy before the section is left (the caller's, or this one): a pause that has waited for a
     * grace period sees it. Pairs with the acquire load in scan_busy() (pause.c).
     */
    bb_section_enter_(&e->mem.base);
    bb_store_release(&e->busy, 1);
    if (effect->device != NULL) {
        effect->pin_side = (uint8_t)bb_pins_get_(&effect->device->pins);
    }
    bb_section_leave_(&e->mem.base);
    bb_count_(e, effects_posted);
    return effect;
}

static void run_call(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    struct bb_ctx *ctx = &e->mem.base;
    struct bb_frame_ frame = bb_frame_enter_(e, effect->device, effect->device->id, effect->record);

    /* Its pin counts as a lock: what it does to other devices is posted in its turn. */
    ctx->pin_depth++;
    effect->call.fn(ctx, effect->call.opaque, effect->call.argument);
    ctx->pin_depth--;
    bb_frame_leave_(e, frame);
}

static void run_effect(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    struct bb_ctx *ctx = &e->mem.base;

    switch ((enum bb_effect_kind_)effect->kind) {
    case BB_EFFECT_WRITE_:
        (void)bb_access_effect_(e, effect); /* a posted write's error is counted, as on a bus */
        break;
    case BB_EFFECT_BULK_:
        bb_dma_effect_(e, effect);
        break;
    case BB_EFFECT_MSI_:
        (void)bb_msi_send(ctx, effect->msi.address, effect->msi.data);
        break;
    case BB_EFFECT_RAISE_:
    case BB_EFFECT_PULSE_:
        bb_source_effect_(ctx, effect);
        break;
    case BB_EFFECT_CALL_:
        run_call(e, effect);
        break;
    }
}

/* An effect that has run, or will not: its pin and its bytes. */
static void let_go(struct bb_ectx_ *e, const struct bb_effect_ *effect)
{
    if (effect->kind == BB_EFFECT_BULK_) {
        e->chain.bulk_bytes -= effect->bulk.length;
        bb_heap_free(e->engine->heap, effect->bulk.bytes, effect->bulk.length);
    }
    if (effect->device != NULL) {
        bb_pins_put_(e->engine->rcu, &effect->device->pins, effect->pin_side);
    }
}

/* Takes the next effect to run off the queue. */
static struct bb_effect_ take_effect(struct bb_chain_ *chain)
{
    uint16_t index = chain->head;
    struct bb_effect_ effect = chain->effect[index];

    chain->head = effect.next;
    chain->effect[index].next = chain->free;
    chain->free = index;
    return effect;
}

/*
 * Runs what is queued and what that queues, then has listeners told of the commits that callbacks
 * made (invariant 8). Under a ranked lock, or in a section, of the embedder's they can't be told:
 * `untold` stays set, and with it `pending`, so that the next chain of this context tells them.
 */
static void run_queue(struct bb_ectx_ *e)
{
    struct bb_chain_ *chain = &e->chain;
    struct bb_ctx *ctx = &e->mem.base;

    for (;;) {
        chain->epilogue = true;
        while (chain->head != BB_CHAIN_QUEUE_) {
            struct bb_effect_ effect = take_effect(chain);

            chain->insert = BB_CHAIN_QUEUE_;
            chain->ordered = 0;
            chain->record = effect.record;
            chain->device = effect.device;
            run_effect(e, &effect);
            let_go(e, &effect);
        }
        chain->epilogue = false;
        if (BB_LIKELY(!e->mem.untold) || !bb_ctx_may_block_(ctx)) {
            break;
        }
        bb_listeners_settle_(ctx); /* clears it */
    }
    chain->insert = BB_CHAIN_QUEUE_;
    chain->ordered = 0;
    chain->spent = 0;
    chain->record = 0;
    chain->record_count = 1;
    ctx->pending = e->mem.untold;
}

void bb_chain_step_(struct bb_ectx_ *e)
{
    if (e->mem.base.pending) {
        run_queue(e);
    }
}

/* The epilogue of an outermost access, expiry or post: with nothing held. */
void bb_chain_finish_(struct bb_ectx_ *e)
{
    struct bb_ctx *ctx = &e->mem.base;

    run_queue(e);
    e->active = false;
    bb_busy_clear_(e);
    if (ctx->throttle) {
        ctx->throttle = false;
        bb_rcu_throttle_(ctx);
    }
}

/*
 * A thread that ended in the middle of a chain: what it had posted is not run, only let go. But its
 * commits have been made, and removals wait until listeners know of them.
 */
void bb_chain_drop_(struct bb_ectx_ *e)
{
    while (e->chain.head != BB_CHAIN_QUEUE_) {
        struct bb_effect_ effect = take_effect(&e->chain);

        let_go(e, &effect);
    }
    if (e->mem.untold) {
        bb_listeners_settle_(&e->mem.base);
    }
    bb_busy_clear_(e);
}

/*
 * A backend event: an embedder's thread, in no chain, is about to run callbacks (a sink's, or an
 * inbox's under a device's lock). It does not pass the gate, for it can't wait, and is not busy for
 * itself: to end that takes the control mutex at a closed gate, and lines are lock-free. What it
 * takes out of an inbox, and what it posts, makes it busy (bb_device_drain_inbox_(),
 * bb_chain_post_()).
 */
bool bb_event_begin_(struct bb_ectx_ *e)
{
    if (e->mem.base.callback_depth > 0 || e->active || e->chain.epilogue) {
        return false;
    }
    e->active = true;
    return true;
}

/* What the event posted runs now, or, where the thread still holds something, at the first chance:
 * bb_chain_settle_(). */
void bb_event_end_(struct bb_ectx_ *e, bool begun)
{
    if (begun) {
        e->active = false;
        bb_chain_settle_(e);
    }
}

/*
 * Runs the effects of callbacks that ran outside any chain: a device's inbox that was emptied by an
 * embedder's thread which took the device's lock or set a line. Nothing where a chain is running,
 * which will do it itself, or where the thread still holds something.
 */
void bb_chain_settle_(struct bb_ectx_ *e)
{
    if (BB_UNLIKELY(e->mem.base.pending) && !e->active && !e->chain.epilogue &&
        bb_ctx_may_block_(&e->mem.base)) {
        bb_chain_finish_(e);
    }
}

bool bb_chain_at_once_(const struct bb_ectx_ *e, const struct bb_region *region)
{
    const struct bb_ctx *ctx = &e->mem.base;

    /* Relaxed: the bit never changes in an engine's life. */
    return region->klass == BB_CLASS_LOCKFREE && ctx->lock_depth == 0 && ctx->pin_depth == 0 &&
           (bb_load_relaxed(&e->mem.map->gate) & BB_SLOW_LOCK_DEVICE_) == 0;
}

static bool same_requester(const struct bb_attrs *a, const struct bb_attrs *b)
{
    return a->requester_id == b->requester_id && a->secure == b->secure &&
           a->privileged == b->privileged;
}

/* Lays `size` bytes that will be written at `at` over those that were read at `gpa`. */
static void lay_over(uint8_t *bytes, bb_gpa_t gpa, uint64_t length, const uint8_t *written,
                     bb_gpa_t at, uint64_t size)
{
    bb_gpa_t first = gpa > at ? gpa : at;
    bb_gpa_t last = gpa + (length - 1) < at + (size - 1) ? gpa + (length - 1) : at + (size - 1);

    if (first <= last) {
        memcpy(bytes + (first - gpa), written + (first - at), last - first + 1);
    }
}

/*
 * A nested read of RAM must see the writes that the running effect has posted so far: lays their
 * bytes over what was read, in the order in which they will be made. What stands behind `insert` in
 * the queue comes later in the order of the synchronous machine (invariant 2) and is not seen.
 */
void bb_chain_forward_bytes_(const struct bb_ectx_ *e, const struct bb_space *space, bb_gpa_t gpa,
                             const struct bb_attrs *attrs, uint8_t *bytes, uint64_t length)
{
    const struct bb_chain_ *chain = &e->chain;

    if (BB_LIKELY(chain->insert == BB_CHAIN_QUEUE_)) {
        return;
    }
    uint16_t end = chain->effect[chain->insert].next;
    for (uint16_t i = chain->head; i != end; i = chain->effect[i].next) {
        const struct bb_effect_ *effect = &chain->effect[i];

        if (effect->kind == BB_EFFECT_WRITE_ && effect->write.space == space &&
            (attrs == NULL || same_requester(attrs, &effect->write.attrs))) {
            lay_over(bytes, gpa, length, effect->write.bytes, effect->write.gpa, effect->size);
        } else if (effect->kind == BB_EFFECT_BULK_ && effect->bulk.space == space &&
                   (attrs == NULL || same_requester(attrs, &effect->bulk.attrs))) {
            lay_over(bytes, gpa, length, bb_bulk_bytes_(effect), effect->bulk.gpa,
                     effect->bulk.length);
        }
    }
}

int bb_post(struct bb_ctx *ctx, struct bb_device *device,
            void (*fn)(struct bb_ctx *ctx, void *opaque, uint64_t argument), void *opaque,
            uint64_t argument)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    bool outermost = ctx->callback_depth == 0 && !e->chain.epilogue;

    if (device == NULL || fn == NULL) {
        return BB_E_INVAL;
    }
    if (outermost) {
        if (!bb_ctx_may_block_(ctx)) {
            return BB_E_CONTEXT; /* `fn` is promised that nothing is held */
        }
        if (!bb_gate_enter_(e)) {
            return BB_E_CONTEXT;
        }
        e->chain.records[0].device_id = device->id;
    }
    struct bb_effect_ *effect = bb_chain_post_(e, device, false, BB_EFFECT_CALL_);
    if (effect != NULL) {
        effect->call.fn = fn;
        effect->call.opaque = opaque;
        effect->call.argument = argument;
    }
    if (outermost) {
        bb_chain_finish_(e);
        bb_gate_leave_(e);
    }
    return effect != NULL ? BB_OK : BB_E_LIMIT;
}

int bb_msi_send(struct bb_ctx *ctx, uint64_t address, uint32_t data)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    const struct bb_msi_sink *sink = &e->engine->msi_sink;

    if (ctx->callback_depth > 0 && e->chain.ordered > 0) {
        struct bb_effect_ *effect = bb_chain_post_(e, NULL, true, BB_EFFECT_MSI_);
        if (effect == NULL) {
            bb_count_(e, msi_dropped);
            return BB_E_LIMIT;
        }
        effect->msi.address = address;
        effect->msi.data = data;
        return BB_OK;
    }
    int result = BB_E_DEVICE;
    if (sink->deliver != NULL) {
        /* In a frame: what the sink does is nested, wherever the message came from. */
        bool begun = bb_event_begin_(e);
        /* Writes to RAM before whatever the sink stores, should that be relaxed; partner: who loads
         * that with acquire. Invariant 7. */
        bb_fence_release();
        struct bb_frame_ frame =
            bb_frame_enter_(e, begun ? NULL : e->chain.device, ctx->device_id, e->chain.record);
        result = sink->deliver(ctx, sink->opaque, address, data);
        bb_frame_leave_(e, frame);
        bb_event_end_(e, begun);
    }
    if (result != BB_OK) {
        bb_count_(e, msi_dropped);
        return BB_E_DEVICE;
    }
    bb_count_(e, msi_sent);
    return BB_OK;
}
