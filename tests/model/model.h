/* SPDX-License-Identifier: MIT */
/*
 * A model of the address space, to hold the engine's against: a table of regions, and functions
 * that are slow and plain. It resolves one byte by walking the tree as the head of memory/region.h
 * describes it, keeps no view, and remembers nothing from one question to the next. A transaction
 * is a copy of the table on which changes are made; it replaces the table or is thrown away.
 *
 * It shares no code with memory/, only the enumerations of its public headers. Regions are numbers;
 * the first MODEL_SPACES of them are the spaces' roots.
 */
#ifndef BUSBAR_TESTS_MODEL_MODEL_H
#define BUSBAR_TESTS_MODEL_MODEL_H

#include "../../memory/space.h"

enum {
    MODEL_SPACES = 4,
    MODEL_REGIONS_MAX = 48, /* the roots among them */
    MODEL_NONE = -1,
    MODEL_BOUNDS_MAX = 1 << 15,
    /* More places than this for one region, and the engine may say that it is too much. */
    MODEL_PLACES_MANY = 4096,
};

struct model_region {
    bool exists; /* made, and not removed since */
    enum bb_kind kind;
    uint64_t last;     /* highest offset */
    uint64_t last_max; /* RAM: to which it may grow */
    unsigned impl_min; /* I/O: its size is a multiple of this */
    int parent;        /* MODEL_NONE: in no place */
    uint64_t at;
    int priority;
    bool enabled;
    bool read_only;
    bool rom_mode;
    int target; /* alias: MODEL_NONE once that is removed */
    uint64_t window;
};

struct model {
    struct model_region region[MODEL_REGIONS_MAX];
};

enum model_change_kind {
    MODEL_PLACE,
    MODEL_MAP, /* in the root of space `container` */
    MODEL_UNMAP,
    MODEL_MOVE,
    MODEL_PRIORITY,
    MODEL_ENABLE,
    MODEL_RESIZE,
    MODEL_WINDOW,
    MODEL_ROM_MODE,
    MODEL_READ_ONLY,
    MODEL_CHANGES,
};

struct model_change {
    enum model_change_kind kind;
    int region;
    int container;
    uint64_t number; /* offset, size, window */
    int priority;
    bool flag;
};

/* Empty spaces whose highest addresses are `last`. */
void model_begin(struct model *model, const uint64_t last[MODEL_SPACES]);

/* What is said of a change when it is asked for, by the regions as they are then: BB_OK, or why it
 * can't be part of a transaction. */
int model_ask(const struct model *model, const struct model_change *change);

/* Makes one change that could be asked for, judged by what those before it left: BB_OK, or why it
 * can't be made. */
int model_change(struct model *model, const struct model_change *change);

/* BB_E_EXIST where two enabled children of one region and one priority overlap, or BB_OK. */
int model_judge(const struct model *model);

/* Takes a region out of its place, its children out of it, and its aliases' target away. */
void model_remove(struct model *model, int region);

/* What a space shows at one address. */
struct model_byte {
    int region; /* MODEL_NONE: nothing */
    uint64_t offset;
    bool read_only; /* the region is, or an alias on the way to it */
};
struct model_byte model_resolve(const struct model *model, int space, bb_gpa_t gpa);

/*
 * Every address of a space at which something may begin or end: the first and last byte of every
 * place where a region is, shown or not, cut by what is around it or not; one before and one after
 * each; and both ends of the space. Sorted, each once. Returns how many: at most
 * MODEL_BOUNDS_MAX, after which it gives up looking.
 */
unsigned model_bounds(const struct model *model, int space, bb_gpa_t *bounds);

/* In how many places, over all spaces, the model met regions in model_bounds()'s way. */
unsigned model_places(const struct model *model);

/* A switch for the test of the tests: a model with it set resolves wrongly, taking the child of
 * lowest priority for the one in front. */
extern bool model_broken;

#endif
