/* SPDX-License-Identifier: MIT */
/*
 * Where programs are run on an engine and on the model, side by side. One engine serves many
 * programs; its spaces stay, regions come and go.
 *
 * Every byte of every region has a value of its own, which its callbacks answer with and which its
 * memory holds in the beginning, so that a read tells which byte of which region it has met.
 * Callbacks are recorded.
 */
#ifndef BUSBAR_TESTS_MODEL_STAGE_H
#define BUSBAR_TESTS_MODEL_STAGE_H

#include "../../engine/device.h"
#include "../../memory/inspect.h"
#include "../../memory/ram.h"
#include "topology.h"

enum {
    STAGE_CALLS_MAX = 512,
    STAGE_DEPTH = 8,
    STAGE_TEXT_BYTES = 512,
    STAGE_RANGES_MAX = 1 << 13,
};

/* One callback, as the engine made it or as the model says it must. */
struct stage_call {
    int region;
    bool accept;
    bool write;
    uint64_t offset;
    unsigned size;
    uint64_t value; /* of a write */
    struct bb_attrs attrs;
};

struct stage_region {
    struct stage *stage;
    int number;
    struct bb_region *region; /* NULL: not made, or removed */
    struct topology_region make;
};

struct stage_txn {
    struct bb_txn *txn;
    unsigned count;
    struct model_change change[TOPOLOGY_STEPS_MAX];
};

/* A space's view as its listener has been told. */
struct stage_mirror {
    struct bb_listener *listener; /* NULL: none */
    bool open;                    /* between begin and commit */
    struct bb_change change;      /* what is still to come of it */
    const char *wrong;
    unsigned count;
    struct bb_range range[STAGE_RANGES_MAX];
};

struct stage {
    struct bb_engine *engine;
    struct bb_ctx *ctx;
    struct bb_space *space[MODEL_SPACES];
    struct bb_device *device; /* of the program's I/O regions; NULL: none yet */
    struct stage_region region[MODEL_REGIONS_MAX];
    struct stage_mirror mirror[MODEL_SPACES];
    struct model model;
    struct stage_txn txn[STAGE_DEPTH];
    unsigned depth;
    bool views_only;    /* comparing makes no accesses: the rules may not have bytes read */
    bool refuses;       /* callbacks and hooks refuse some accesses: stage_refuses() */
    uint64_t *arena;    /* TOPOLOGY_ARENA_BYTES, what RAM regions lie in */
    uint64_t removals;  /* asked for */
    uint64_t completed; /* of these; counted on bb-complete */
    unsigned call_count;
    struct stage_call call[STAGE_CALLS_MAX];
    char text[STAGE_TEXT_BYTES]; /* what is wrong */
    /* What was run: for the tests that ask whether programs are worth anything. */
    uint64_t commits, refusals, compared, shown;
    uint32_t codes; /* results met: bit n for -n */
};

/* What reads of nothing, and refused reads, yield in each space. */
extern const struct bb_fill stage_decode_fill[MODEL_SPACES];
extern const struct bb_fill stage_device_fill[MODEL_SPACES];

/* Makes the engine. NULL, or what went wrong. */
const char *stage_begin(struct stage *stage);
/* Waits for all removals, and ends it; it proves that nothing leaked. */
const char *stage_end(struct stage *stage);

/*
 * Runs a program. After each transaction that was to succeed, and after each that was refused,
 * the whole of what every space shows is compared with the model. Returns NULL, or what differs.
 * What the program made is left for stage_clear().
 */
const char *stage_run(struct stage *stage, const struct topology *topology);
/* Compares everything once more. */
const char *stage_compare(struct stage *stage);
/* Removes all regions, and checks that the spaces show nothing. NULL, or what is wrong. */
const char *stage_clear(struct stage *stage);

/* The same for one space, at the bounds of its view alone or at all that the model knows. */
const char *stage_compare_space(struct stage *stage, int space, bool bounds);
/* Keeps what is wrong. Returns it. */
const char *stage_wrong(struct stage *stage, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
extern const struct bb_listener_ops stage_mirror_ops;

/* The value of a byte. */
uint8_t stage_byte(int region, uint64_t offset);
uint8_t stage_arena_byte(uint64_t at);
/* Whether a callback refuses; and what an accept hook says. Functions of their arguments. */
bool stage_refuses(int region, uint64_t offset, bool write);
int stage_accepts(int region, uint64_t offset, unsigned size, bool write);

#endif
