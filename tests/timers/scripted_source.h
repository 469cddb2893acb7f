/* SPDX-License-Identifier: MIT */
/*
 * A time source that a test moves by hand, and that can run a hook in the middle of a read: what
 * the hook does is what other threads did while the reader was between two of its instructions.
 */
#ifndef BUSBAR_TESTS_TIMERS_SCRIPTED_SOURCE_H
#define BUSBAR_TESTS_TIMERS_SCRIPTED_SOURCE_H

#include "../../timers/timers_internal.h"

struct scripted_source {
    bb_ns_t now_ns;
    void (*early)(void *arg); /* runs once, before the next sample is taken */
    void (*late)(void *arg);  /* runs once, after it */
    void *arg;
};

static inline bb_ns_t scripted_now(void *opaque)
{
    struct scripted_source *source = opaque;
    void (*early)(void *) = source->early;
    void (*late)(void *) = source->late;
    bb_ns_t now_ns;

    source->early = NULL;
    source->late = NULL;
    if (early != NULL) {
        early(source->arg);
    }
    now_ns = source->now_ns;
    if (late != NULL) {
        late(source->arg);
    }
    return now_ns;
}

static inline struct bb_time_source scripted_source_of(struct scripted_source *source)
{
    return (struct bb_time_source){.now_ns = scripted_now, .opaque = source, .ordered = true};
}

#endif
