/* SPDX-License-Identifier: MIT */
/*
 * Interrupt lines; see line.h.
 *
 * The word of a line: bits 0 to 31, one for each source that asserts it; bits 32 to 63, the count
 * of rises. Every change is one compare-and-swap of the whole word.
 *
 * Invariants:
 *  1. A set's compare-and-swap is its linearization point: levels and rises of a line have one
 *     order, in which each thread's own sets are in program order.
 *  2. The sink is notified after the swap and pulls the word. A notification that is late pulls a
 *     newer word, never an older one than the swap it announces: a stale level can't be delivered.
 *  3. A rise is counted in the word; a sink that remembers the count it has consumed takes each
 *     once, however many notifications announce it.
 */
#include <string.h>

#include "engine_internal.h"

enum { LINE_RISE_SHIFT = 32 };

static void free_box(struct bb_rcu_head *head)
{
    struct bb_line_sink_box_ *box = BB_CONTAINER_OF(head, struct bb_line_sink_box_, head);

    bb_heap_free(box->engine->heap, box, sizeof(*box));
}

static void free_line(struct bb_rcu_head *head)
{
    struct bb_line *line = BB_CONTAINER_OF(head, struct bb_line, head);

    bb_heap_free(line->engine->heap, line, sizeof(*line));
}

int bb_line_create(struct bb_ctx *ctx, const char *name, const struct bb_line_sink *sink,
                   struct bb_line **line, struct bb_error *err)
{
    struct bb_engine *engine = bb_ectx_(ctx)->engine;

    if (name == NULL || name[0] == '\0' || line == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a line needs a name and a place");
    }
    if (sink != NULL && sink->notify == NULL) {
        return bb_error_set(err, BB_E_INVAL, "line %s: its sink has no notify function", name);
    }
    if (sink != NULL && sink->device != NULL && sink->device->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "line %s: its sink, device %s, is another engine's",
                            name, sink->device->name);
    }
    struct bb_line *made = bb_heap_alloc(engine->heap, sizeof(*made));
    struct bb_line_sink_box_ *box = NULL;
    if (sink != NULL) {
        box = bb_heap_alloc(engine->heap, sizeof(*box));
    }
    if (made == NULL || (sink != NULL && box == NULL)) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return bb_error_set(err, BB_E_NOMEM, "line %s: out of memory", name);
    }
    strncpy(made->name, name, sizeof(made->name) - 1);
    made->engine = engine;
    if (box != NULL) {
        box->sink = *sink;
        box->engine = engine;
        made->sink = box;
    }
    bb_lock_acquire(ctx, &engine->table);
    made->next = engine->lines;
    engine->lines = made;
    bb_lock_release(ctx, &engine->table);
    *line = made;
    return BB_OK;
}

int bb_line_destroy(struct bb_ctx *ctx, struct bb_line *line, struct bb_error *err)
{
    if (line == NULL) {
        return bb_error_set(err, BB_E_INVAL, "no line to destroy: it is NULL");
    }
    struct bb_engine *engine = line->engine;
    int sources;

    if (bb_ectx_(ctx)->engine != engine) {
        return bb_error_set(err, BB_E_INVAL, "line %s is another engine's than the context",
                            line->name);
    }

    bb_lock_acquire(ctx, &engine->table);
    sources = __builtin_popcount(line->source_bits);
    if (sources == 0) {
        struct bb_line **link = &engine->lines;
        while (*link != line) {
            link = &(*link)->next;
        }
        *link = line->next;
    }
    bb_lock_release(ctx, &engine->table);
    if (sources != 0) {
        return bb_error_set(err, BB_E_STATE,
                            "line %s has %d source%s; remove the devices that drive it first",
                            line->name, sources, sources == 1 ? "" : "s");
    }
    if (line->sink != NULL) {
        bb_rcu_defer_(engine->rcu, &line->sink->head, free_box, sizeof(*line->sink));
    }
    bb_rcu_defer_(engine->rcu, &line->head, free_line, sizeof(*line));
    return BB_OK;
}

/* Cuts every line off whose sink belongs to `device`; notifications in flight are in sections. */
void bb_lines_disconnect_(struct bb_ctx *ctx, struct bb_device *device)
{
    struct bb_engine *engine = device->engine;

    bb_lock_acquire(ctx, &engine->table);
    for (struct bb_line *line = engine->lines; line != NULL; line = line->next) {
        struct bb_line_sink_box_ *box = line->sink;
        if (box != NULL && box->sink.device == device) {
            bb_publish_(&line->sink, NULL); /* pairs with notify_sink() */
            bb_rcu_defer_(engine->rcu, &box->head, free_box, sizeof(*box));
        }
    }
    bb_lock_release(ctx, &engine->table);
}

int bb_source_create(struct bb_ctx *ctx, struct bb_device *device, struct bb_line *line,
                     struct bb_source **source, struct bb_error *err)
{
    if (device == NULL || source == NULL) {
        return bb_error_set(err, BB_E_INVAL, "a source needs a device and a place");
    }
    struct bb_engine *engine = device->engine;
    int result = BB_OK;

    if (bb_ectx_(ctx)->engine != engine || (line != NULL && line->engine != engine)) {
        return bb_error_set(err, BB_E_INVAL,
                            "a source of %s: the context, the device and the line must be of one "
                            "engine",
                            device->name);
    }
    struct bb_source *made = bb_heap_alloc(engine->heap, sizeof(*made));

    if (made == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "a source of %s: out of memory", device->name);
    }
    made->device = device;
    made->line = line;
    bb_lock_acquire(ctx, &engine->table);
    if (bb_load_relaxed(&device->removing) != 0) { /* guarded by the table lock */
        result = bb_error_set(err, BB_E_STATE, "device %s is being removed", device->name);
    } else if (line != NULL && line->source_bits == UINT32_MAX) {
        result = bb_error_set(err, BB_E_LIMIT,
                              "line %s has %d sources already, the most there can be; connect a "
                              "second line's sink to one of them",
                              line->name, BB_LINE_SOURCES_MAX);
    } else {
        if (line != NULL) {
            made->bit = ~line->source_bits & (line->source_bits + 1);
            line->source_bits |= made->bit;
        }
        made->next = device->sources;
        device->sources = made;
    }
    bb_lock_release(ctx, &engine->table);
    if (result != BB_OK) {
        bb_heap_free(engine->heap, made, sizeof(*made));
        return result;
    }
    *source = made;
    return BB_OK;
}

/*
 * In a frame of the sink's device, or else of the source's: what notify() does is nested, wherever
 * the line was set, so that an access of its own is no outermost one in the middle of a section.
 */
static void notify_sink(struct bb_ctx *ctx, const struct bb_source *source)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);
    bool begun = bb_event_begin_(e);

    bb_section_enter_(ctx);
    /* Pairs with the publication in bb_lines_disconnect_() and with creation. */
    const struct bb_line_sink_box_ *box = bb_deref_(&source->line->sink);
    if (box != NULL) {
        struct bb_device *device = box->sink.device != NULL ? box->sink.device : source->device;
        struct bb_frame_ frame = bb_frame_enter_(e, device, device->id, e->chain.record);
        box->sink.notify(ctx, box->sink.opaque, box->sink.pin);
        bb_frame_leave_(e, frame);
    }
    bb_section_leave_(ctx);
    bb_event_end_(e, begun);
}

/* Drives the source's level now, whatever stands in the chain's queue. */
void bb_source_apply_(struct bb_ctx *ctx, struct bb_source *source, bool level)
{
    struct bb_line *line = source->line;
    uint64_t word;
    uint64_t wanted;

    /* Acquire and release: a sink that pulls the word sees what the setter did before it set the
     * line. Pairs with bb_line_read(). */
    if (line == NULL) {
        bb_store_release(&source->level, level);
        return;
    }
    word = bb_load_acquire(&line->word);
    do {
        wanted = level ? word | source->bit : word & ~(uint64_t)source->bit;
        if (wanted == word) {
            return;
        }
        if ((uint32_t)word == 0) {
            wanted += UINT64_C(1) << LINE_RISE_SHIFT;
        }
    } while (!bb_cas_acq_rel(&line->word, &word, wanted));
    notify_sink(ctx, source);
}

static void source_pulse_now(struct bb_ctx *ctx, struct bb_source *source)
{
    struct bb_line *line = source->line;
    uint64_t word;

    if (line == NULL) {
        return;
    }
    word = bb_load_acquire(&line->word); /* pairs as in bb_source_apply_() */
    do {
        if ((uint32_t)word != 0) {
            return; /* another source holds the line high: the OR does not rise */
        }
    } while (!bb_cas_acq_rel(&line->word, &word, word + (UINT64_C(1) << LINE_RISE_SHIFT)));
    notify_sink(ctx, source);
}

/*
 * A raise that queued behind a posted write. The device decides its level anew, or else the raise
 * stands if the source was not set again since; either under the device's lock, under which the
 * device sets it too.
 */
static void raise_again(struct bb_ctx *ctx, const struct bb_effect_ *effect)
{
    struct bb_source *source = effect->line.source;
    struct bb_device *device = source->device;
    struct bb_ectx_ *e = bb_ectx_(ctx);

    bb_device_lock(ctx, device);
    struct bb_frame_ frame = bb_frame_enter_(e, device, device->id, effect->record);
    if (device->ops != NULL && device->ops->relevel != NULL) {
        device->ops->relevel(ctx, device->opaque);
    } else if (bb_load_relaxed(&source->sequence) == effect->line.sequence) {
        /* Relaxed: a set under the lock that we hold now is ordered by it. */
        bb_source_apply_(ctx, source, true);
    }
    bb_frame_leave_(e, frame);
    bb_device_unlock(ctx, device);
}

void bb_source_effect_(struct bb_ctx *ctx, const struct bb_effect_ *effect)
{
    if (effect->kind == BB_EFFECT_PULSE_) {
        source_pulse_now(ctx, effect->line.source);
    } else {
        raise_again(ctx, effect);
    }
}

/* Posts a raise or a pulse behind the chain's writes. False where it may be made at once. */
static bool post_behind(struct bb_ectx_ *e, struct bb_source *source, uint64_t sequence,
                        enum bb_effect_kind_ kind)
{
    if (e->mem.base.callback_depth == 0 || e->chain.ordered == 0) {
        return false;
    }
    struct bb_effect_ *effect = bb_chain_post_(e, source->device, true, kind);
    if (effect == NULL) {
        return false; /* better early than never: an interrupt is not lost to a full queue */
    }
    effect->line.source = source;
    effect->line.sequence = sequence;
    return true;
}

void bb_source_set(struct bb_ctx *ctx, struct bb_source *source, bool level)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);

    if (BB_UNLIKELY(e->chain.ordered > 0)) {
        /* Relaxed: compared under the device's lock, or superseded by relevel(). */
        uint64_t sequence = bb_fetch_add_relaxed(&source->sequence, 1) + 1;
        if (level && post_behind(e, source, sequence, BB_EFFECT_RAISE_)) {
            return;
        }
    } else if (BB_UNLIKELY(bb_load_relaxed(&source->sequence) != 0)) {
        /* Once a raise was posted, every set counts, so that it can tell that it is out of date. */
        (void)bb_fetch_add_relaxed(&source->sequence, 1);
    }
    bb_source_apply_(ctx, source, level);
}

void bb_source_pulse(struct bb_ctx *ctx, struct bb_source *source)
{
    struct bb_ectx_ *e = bb_ectx_(ctx);

    if (!post_behind(e, source, 0, BB_EFFECT_PULSE_)) {
        source_pulse_now(ctx, source);
    }
}

bool bb_source_level(const struct bb_source *source)
{
    /* Acquire: pairs with the setter's swap, as in bb_line_read(). */
    if (source->line == NULL) {
        return bb_load_acquire(&source->level) != 0;
    }
    return (bb_load_acquire(&source->line->word) & source->bit) != 0;
}

struct bb_line_state bb_line_read(const struct bb_line *line)
{
    uint64_t word = bb_load_acquire(&line->word); /* pairs with the swap in bb_source_apply_() */
    struct bb_line_state state = {(uint32_t)word != 0, (uint32_t)(word >> LINE_RISE_SHIFT)};

    return state;
}

const char *bb_line_name(const struct bb_line *line)
{
    return line->name;
}
