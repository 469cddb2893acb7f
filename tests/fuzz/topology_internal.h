/* SPDX-License-Identifier: MIT */
/* Between topology.c, which keeps what programs make, and topology_steps.c, which runs them. */
#ifndef BUSBAR_TESTS_FUZZ_TOPOLOGY_INTERNAL_H
#define BUSBAR_TESTS_FUZZ_TOPOLOGY_INTERNAL_H

#include "../../base/atomic.h"
#include "../../base/bits.h"
#include "../../engine/device.h"
#include "../../engine/dma.h"
#include "../../memory/dirty.h"
#include "../../memory/inspect.h"
#include "../../memory/ram.h"
#include "topology.h"

enum {
    SPACES = 3,
    REGIONS = 24,
    DEVICES = 4,
    TXNS = 4,
    MAPPINGS = 4,
    CLIENTS = 3,
    LISTENERS = 3,
    NOTIFIERS = 3,
    ARENA_BYTES = 1 << 16,
    BUFFER_BYTES = 1 << 17,
    CALLBACK_DEPTH_MAX = 4,
    COPY_BUDGET = 1 << 18, /* bytes that one program may have copied */
};

struct slot {
    unsigned number;
    struct bb_region *region; /* NULL: free */
    int device;               /* it goes with; -1: none */
};

struct world {
    struct bb_engine *engine; /* NULL: none */
    struct bb_ctx *ctx;
    struct bb_space *space[SPACES];
    struct slot region[REGIONS];
    struct bb_device *device[DEVICES];
    struct bb_txn *txn[TXNS]; /* each but the first nested in the one before it */
    unsigned txns;
    struct bb_dma_mapping *mapping[MAPPINGS];
    uint64_t mapping_bytes[MAPPINGS];
    bool mapping_written[MAPPINGS]; /* the host may write there */
    struct bb_dirty_client *client[CLIENTS];
    struct bb_listener *listener[LISTENERS];
    struct bb_iommu_notifier *notifier[NOTIFIERS];
    int notifier_of[NOTIFIERS]; /* its region */
    uint8_t *arena;             /* what RAM of the embedder's lies in */
    uint8_t *buffer;
    int bell;             /* an eventfd */
    const uint8_t *bytes; /* what is left of the program */
    size_t left;
    uint64_t recent[8]; /* addresses at which something was put */
    unsigned recents;
    unsigned depth; /* callbacks, sections and locks around the step that runs */
    int locked;     /* the device whose lock the program holds; -1: none */
    size_t copied;
    uint64_t removals;  /* asked for */
    uint64_t completed; /* counted on bb-complete */
    uint64_t told;      /* calls of listeners' hooks */
    const char *wrong;  /* the first thing that was */
    char text[512];
    struct bb_error err;
};

extern struct world world;

/* The next byte, or the next `count` bytes as a number; 0 where the program is over. */
uint64_t take(unsigned count);
/* An address: mostly of something that was put somewhere lately, or a little behind it. */
uint64_t take_address(void);
void remember_address(uint64_t address);
/* A size that an access can have, mostly. */
unsigned take_size(void);
/* A number that is often small, or near 2^64, a page or a size. */
uint64_t take_number(void);
struct bb_attrs take_attrs(void);
/* Something that is there, or NULL. */
struct slot *take_region(void);
struct slot *take_region_of(enum bb_kind kind);
/* A slot that is free, or NULL. */
struct slot *free_region(void);

void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Checks the result of a call that was given world.err; clears that. Returns the result. */
int check(const char *call, int result);
/* The same for the results that an access can have. */
int check_access(const char *call, int result);
#define CHECK(call) check(#call, call)

static inline struct bb_space *take_space(uint64_t how)
{
    return world.space[(how >> 6) % SPACES];
}

/* One step of the program; and kinds of them. */
void step(void);
void make_region_step(void);
void adopt_step(void);
void remove_region_step(void);
void remove_device_step(void);
void begin_step(void);
void commit_step(void);
void abort_step(void);
void change_step(void);
void change_alone_step(void);
void access_step(void);
void dma_step(void);
void typed_step(void);
void map_step(void);

/* Runs a few steps inside whatever the caller is in. */
int callback(struct bb_ctx *ctx);

extern const struct bb_device_ops device_ops;
extern const struct bb_region_ops io_ops, hooked_ops, silent_ops;
extern const struct bb_iommu_ops iommu_ops;
extern const struct bb_listener_ops listener_ops, full_listener_ops;

/* Each takes down what its slot holds, and what must go before it. */
void abort_txns(void);
void remove_region(struct slot *slot, bool wait);
void remove_device(int number, bool wait);
void unmap(int number, uint64_t written);
void remove_notifier(int number);
void remove_listener(int number);
void remove_client(int number);

#endif
