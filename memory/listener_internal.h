/* SPDX-License-Identifier: MIT */
/*
 * What listener.c and news.c share: listeners, and the news of a commit; see the heads of both.
 */
#ifndef BUSBAR_MEMORY_LISTENER_INTERNAL_H
#define BUSBAR_MEMORY_LISTENER_INTERNAL_H

#include "memory_internal.h"

struct bb_listener {
    struct bb_listener *next, *prev; /* in rising order of priority; of one, in order of adding */
    /* Immutable. */
    struct bb_map *map;
    struct bb_space *space;
    const struct bb_listener_ops *ops;
    void *opaque;
    int priority;
    char name[BB_CTX_NAME_BYTES];
};

struct bb_listeners_ {
    struct bb_lock lock; /* rank LISTENERS */
    struct bb_listener *first, *last;
    struct bb_told_ *queue; /* (a) oldest first; written under the map's lock, which orders all but
                               the look of bb_listeners_lock_() */
    struct bb_told_ **queue_end;
};

enum bb_event_kind_ {
    BB_EVENT_RANGE_,
    BB_EVENT_UNCHANGED_,
    BB_EVENT_DOORBELL_,
    BB_EVENT_COALESCED_
};

/* One call to come of each listener. */
struct bb_event_ {
    enum bb_event_kind_ kind;
    unsigned pin; /* ranges, while queued: the side to put back */
    union {
        struct bb_piece_ piece; /* its bells are not looked at */
        struct {
            bb_gpa_t at;
            struct bb_doorbell doorbell;
        } bell;
        struct {
            bb_gpa_t first, last;
        } coalesced;
    };
};

/* What one commit does to one space. */
struct bb_news_ {
    struct bb_change change;
    const struct bb_delta_ *delta; /* the commit's, gone once the news is made */
    bool wants_unchanged;          /* by a listener of the space */
    struct bb_event_ *removed;     /* in order of telling, like the next */
    struct bb_event_ *added;
    size_t removed_count, added_count;
};

struct bb_told_ {
    struct bb_told_ *next;
    size_t bytes;
    size_t count;
    struct bb_news_ news[]; /* then the events of all */
};

/*
 * The doorbells of a piece: those that begin in it. And the part of a coalesced range that it
 * shows, by offset; false where it shows none.
 */
struct bb_bell_span_ {
    const struct bb_doorbell *at;
    size_t count;
};
struct bb_bell_span_ bb_bells_in_(const struct bb_piece_ *piece);
bool bb_coalesced_in_(const struct bb_piece_ *piece, const struct bb_coalesced_ *range,
                      struct bb_coalesced_ *part);

/* Visits the ranges of a view, rising or falling, under the map's lock. */
void bb_view_walk_(uintptr_t tree, bool falling,
                   void (*visit)(void *opaque, const struct bb_piece_ *piece), void *opaque);

#endif
