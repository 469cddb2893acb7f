/* SPDX-License-Identifier: MIT */
/*
 * Interrupt lines: a wired OR of up to 32 sources, and one sink.
 *
 * A line is one 64-bit atomic word: a bit for each source that asserts it, and a count of rises
 * (changes of the OR from 0 to 1, and pulses). Setting a source is one compare-and-swap; then the
 * sink is notified, and pulls the word: it never receives a level as a value, so a slow setter
 * can't overwrite a newer level. Edges are counted, so none is lost and none is seen twice: an
 * edge-sensitive sink remembers the rises it has consumed.
 *
 * Order: what one thread does to one line is seen in that order. When a raise returns, the sink has
 * it in its state or in its inbox. Behind a posted write of the same chain, raises are posted too
 * (as "look at the source again", never as a value).
 *
 * Threads: set, pulse and read from any thread with a context, in callbacks, sections and under
 * device locks; lock-free. Creating and connecting: control threads, before sources are used.
 */
#ifndef BUSBAR_ENGINE_LINE_H
#define BUSBAR_ENGINE_LINE_H

#include "engine.h"

BB_BEGIN_DECLS

struct bb_line;
struct bb_source;

enum { BB_LINE_SOURCES_MAX = 32 };

struct bb_line_state {
    bool level;     /* at least one source asserts it */
    uint32_t rises; /* count of rises so far, modulo 2^32 */
};

/* What a line is connected to. */
struct bb_line_sink {
    /*
     * The line may have changed: pull it with bb_line_read(). May be called from several threads at
     * once for one line; must publish what it found and then pull again until nothing changed.
     * Called in sections and under other devices' locks: lock-free. A sink whose state needs its
     * device's lock calls bb_device_notify() here, which uses the device's inbox.
     */
    void (*notify)(struct bb_ctx *ctx, void *opaque, unsigned pin);
    void *opaque;
    unsigned pin;
    /* The device that notify() belongs to; when it is removed the line is disconnected. NULL: what
     * notify() uses outlives the line. */
    struct bb_device *device;
};

/*
 * Creates a line without sources. `sink` is copied; NULL connects it to nothing (it can still be
 * read). Returns BB_OK, BB_E_INVAL without a name, BB_E_NOMEM.
 * Threads: the context's own; allocates. Lifetime: until bb_line_destroy().
 */
BB_API int bb_line_create(struct bb_ctx *ctx, const char *name, const struct bb_line_sink *sink,
                          struct bb_line **line, struct bb_error *err);

/*
 * Frees a line after a grace period. Returns BB_OK, or BB_E_STATE while it has sources.
 * Threads: the context's own; does not wait. Lifetime: nobody may read the line from now on.
 */
BB_API int bb_line_destroy(struct bb_ctx *ctx, struct bb_line *line, struct bb_error *err);

/*
 * Adds a source of `device`. `line` NULL makes a source that goes nowhere, so that a device needs
 * no special case for an unconnected output.
 * Returns BB_OK; BB_E_LIMIT past 32 sources (connect a second line's sink to a source of the
 * first); BB_E_STATE where the device is being removed; BB_E_INVAL for a device or line of another
 * engine; BB_E_NOMEM.
 * Threads: the context's own; allocates. Lifetime: withdrawn and freed when the device is removed.
 */
BB_API int bb_source_create(struct bb_ctx *ctx, struct bb_device *device, struct bb_line *line,
                            struct bb_source **source, struct bb_error *err);

/*
 * Sets the level that this source drives; nothing where it is unchanged.
 * Threads: the context's own, also in callbacks and under any lock; lock-free, apart from what the
 * sink's notify() does.
 * Ordering: what the caller did before is seen by who reads the level (bb_line_read()); what one
 * thread does to one line is seen in that order.
 */
BB_API void bb_source_set(struct bb_ctx *ctx, struct bb_source *source, bool level);

/* One rise and fall at once: counted as an edge if the line was low. As bb_source_set(). */
BB_API void bb_source_pulse(struct bb_ctx *ctx, struct bb_source *source);

/* The level that this source drives now. Threads: any; wait-free. Pairs with bb_source_set(). */
BB_API bool bb_source_level(const struct bb_source *source);

/*
 * The line's level and rises, as of one moment. Threads: any; wait-free. Ordering: pairs with
 * bb_source_set() and bb_source_pulse().
 */
BB_API struct bb_line_state bb_line_read(const struct bb_line *line);
/* Threads: any; wait-free. Lifetime: the line's. */
BB_API const char *bb_line_name(const struct bb_line *line);

BB_END_DECLS

#endif
