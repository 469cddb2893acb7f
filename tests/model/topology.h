/* SPDX-License-Identifier: MIT */
/*
 * Programs that build address spaces: lists of steps, made from a seed, printed, shrunk. A step
 * that makes no sense where it stands (a commit without a transaction, a change of a region that
 * was never made) is skipped, so that what is left of a program when steps are dropped is a
 * program.
 */
#ifndef BUSBAR_TESTS_MODEL_TOPOLOGY_H
#define BUSBAR_TESTS_MODEL_TOPOLOGY_H

#include <stdio.h>

#include "model.h"

enum {
    TOPOLOGY_STEPS_MAX = 256,
    TOPOLOGY_ARENA_BYTES = 1 << 16, /* memory that all RAM regions lie in */
    TOPOLOGY_ROM_BYTES_MAX = 1 << 13,
};

/* How a region is made. */
struct topology_region {
    enum bb_kind kind;
    uint64_t size; /* BB_SIZE_ALL: 2^64 */
    uint64_t size_max;
    uint64_t arena; /* RAM: where in it */
    struct bb_access_rules rules;
    enum bb_class klass;
    bool accept; /* with an accept hook */
    bool read_only;
    int target;
    uint64_t window;
};

enum topology_step_kind {
    TOPOLOGY_MAKE,
    TOPOLOGY_BEGIN, /* inside the one that is open, if one is */
    TOPOLOGY_COMMIT,
    TOPOLOGY_ABORT,
    TOPOLOGY_CHANGE, /* a transaction of its own, where none is open */
    TOPOLOGY_REMOVE, /* not while one is open */
};

struct topology_step {
    enum topology_step_kind kind;
    int region;                  /* MAKE, REMOVE */
    struct topology_region make; /* MAKE */
    struct model_change change;  /* CHANGE */
};

struct topology {
    uint64_t seed;
    unsigned count;
    struct topology_step step[TOPOLOGY_STEPS_MAX];
};

/* xorshift64*, seeded through splitmix64, so that neighbouring seeds have nothing in common. */
struct random {
    uint64_t state;
};
void random_begin(struct random *random, uint64_t seed);
uint64_t random_next(struct random *random);
/* 0 to bound - 1. */
uint64_t random_below(struct random *random, uint64_t bound);
static inline bool random_one_in(struct random *random, uint64_t n)
{
    return random_below(random, n) == 0;
}

/* Highest addresses and names of the spaces that programs build. */
extern const uint64_t topology_space_last[MODEL_SPACES];
extern const char *const topology_space_name[MODEL_SPACES];

/* What the harder rules of access programs need: sizes, endianness, hooks at random, or only what
 * lets every byte be read by itself. */
enum topology_rules { TOPOLOGY_BYTES, TOPOLOGY_ANY_RULES };
void topology_make(struct topology *topology, uint64_t seed, enum topology_rules rules);

/* Puts what MAKE makes into a model. */
void topology_model_make(struct model *model, const struct topology_step *step);

void topology_print(FILE *out, const struct topology *topology);

/*
 * Drops steps one by one for as long as `wrong` still says that something is, and leaves the least
 * program for which it does. Returns how often it was asked.
 */
unsigned topology_shrink(struct topology *topology,
                         bool (*wrong)(void *opaque, const struct topology *topology),
                         void *opaque);

#endif
