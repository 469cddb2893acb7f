/* SPDX-License-Identifier: MIT */
/*
 * What the suites of coalesced writes stand on: a device `target`, writes to the first RANGE bytes
 * of which are coalesced, a LOCKFREE one, `other`, beside it, and a note of the writes as they were
 * made: for one thread at a time.
 */
#ifndef BUSBAR_TESTS_ENGINE_TARGET_H
#define BUSBAR_TESTS_ENGINE_TARGET_H

#include "fixture.h"

enum { MADE_LOG = 512, RANGE = 0x80, RING = 128 };

/* A device of two regions: writes to the first RANGE bytes of `probe`'s are coalesced; a read of
 * `status`, which is LOCKFREE, says how many have been made. */
struct target {
    struct probe probe;
    struct bb_region *status;
    bb_gpa_t status_gpa;
};
extern struct machine machine;
extern struct target target;
extern struct probe other;

/* A write as it was made; to `status`: at offset 0x1000. */
struct made {
    const struct probe *probe;
    uint64_t offset;
    unsigned size;
    uint64_t value;
};
extern struct made made[MADE_LOG];
extern unsigned made_count;

/* The whole of it, with the embedder's lock below; world_setup(): lock-free, a DEVICE_LOCK target.
 */
void world_make(enum bb_lock_mode mode, enum bb_class klass);
void world_setup(void);
void world_drop(void);
void target_make(struct target *t, const char *name, unsigned n, enum bb_class klass);

/* A transaction that coalesces, or takes off, one range; the second asserts that it succeeds. */
int try_range(struct bb_region *region, uint64_t offset, uint64_t length, bool add,
              struct bb_error *err);
void change_range(struct bb_region *region, uint64_t offset, uint64_t length, bool add);

/* A write to the target that must be taken. */
void leave(uint64_t offset, unsigned size, uint64_t value);
void assert_made(unsigned i, const struct probe *probe, uint64_t offset, unsigned size,
                 uint64_t value);

/* Callbacks: notes the write; and writes the value to the probe that is its `arg`, if any. */
int note(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size, uint64_t value);
int note_and_post(struct bb_ctx *ctx, struct probe *probe, uint64_t offset, unsigned size,
                  uint64_t value);
/* For a worker: writes the uint64_t at `arg` to the target. */
void write_one(struct bb_ctx *ctx, void *arg);

#endif
