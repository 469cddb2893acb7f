/* SPDX-License-Identifier: MIT */
/*
 * The storm: what its writers (storm_writers.c) and its readers (storm_test.c) share.
 *
 * The map has windows, a few for each writer, and in each window things come and go, one over the
 * other. A value says to which window it belongs and at which offset of a page it lies, so that a
 * reader knows what a right one looks like wherever things are moved.
 */
#ifndef BUSBAR_TESTS_ENGINE_STORM_H
#define BUSBAR_TESTS_ENGINE_STORM_H

#include "fixture.h"

enum {
    WRITERS = 4,
    READERS = 8,
    WINDOWS_EACH = 4,
    WINDOWS = WRITERS * WINDOWS_EACH,
    THINGS = 2, /* in each window, one over the other */
    PAGE = 0x1000,
    WINDOW_PAGES = 16,
    WINDOW_BYTES = WINDOW_PAGES * PAGE,
};

#define WINDOWS_GPA UINT64_C(0xc0000000)
#define TAG UINT64_C(0xb5b5)

struct thing;

/* What a writer knows of one, besides. */
struct place {
    struct thing *thing;
    bool enabled;
};

struct storm {
    struct machine machine;
    struct bb_region *window[WINDOWS];
    uint64_t seed;
    unsigned stop;        /* (a) */
    uint64_t outstanding; /* (a) things made whose end has not been seen */
    uint64_t made, removed, callbacks, reads, changes, told; /* (a) */
    unsigned failed;                                         /* (a) */
    pthread_mutex_t mutex;
    char why[400]; /* the first failure */
};

struct storm_thread {
    struct storm *storm;
    unsigned number;
    uint64_t random;
    int priority; /* writers: the last one given out */
    struct place place[WINDOWS_EACH][THINGS];
};

/* Notes a failure, which ends the storm; the first is kept. */
void storm_fail(struct storm *storm, const char *what, uint64_t a, uint64_t b, const char *text);
uint64_t storm_random(struct storm_thread *thread);
bool storm_goes_on(const struct storm *storm);
/* A writer's life: makes, changes and removes things until the storm ends, then removes the rest.
 */
void storm_write(struct bb_ctx *ctx, void *arg);

static inline uint64_t value_of(unsigned window, uint64_t offset)
{
    return TAG << 48 | (uint64_t)window << 32 | (uint32_t)offset;
}

static inline bool is_value_at(uint64_t value, bb_gpa_t gpa)
{
    unsigned window = (unsigned)((gpa - WINDOWS_GPA) / WINDOW_BYTES);

    return value >> 48 == TAG && (value >> 32 & 0xffff) == window &&
           (value & (PAGE - 1)) == (gpa & (PAGE - 1));
}

#endif
