/* SPDX-License-Identifier: MIT */
/*
 * A device of one region that is an array of bytes and writes down what reaches its callbacks.
 * For one thread at a time.
 */
#ifndef BUSBAR_TESTS_ENGINE_RECORDER_H
#define BUSBAR_TESTS_ENGINE_RECORDER_H

#include "fixture.h"

enum { RECORDS_MAX = 128 };

struct record {
    bool write;
    bool fast; /* on the fast path */
    uint64_t offset;
    unsigned size;
    uint64_t value;
    struct bb_attrs attrs; /* of bb_access_attrs(); for accept as it was told */
};

struct recorder {
    struct machine *machine;
    struct bb_device *device;
    struct bb_region *region;
    bb_gpa_t gpa;
    uint8_t bytes[DEVICE_BYTES];
    enum bb_endian endian;
    int result;  /* of callbacks */
    int verdict; /* of the accept hook */
    /* Called by each callback, before anything else. */
    void (*also)(struct bb_ctx *ctx, struct recorder *recorder, const struct record *record);
    void *arg;
    struct record record[RECORDS_MAX];
    unsigned count;
    struct record asked[RECORDS_MAX]; /* of the accept hook */
    unsigned asked_count;
};

extern const struct bb_region_ops recorder_ops;      /* read, write */
extern const struct bb_region_ops recorder_ask_ops;  /* and accept */
extern const struct bb_region_ops recorder_read_ops; /* read alone */
extern const struct bb_region_ops recorder_write_ops;

/* Made with `config`, whose name, size and opaque are filled in, and ops where they are NULL; at
 * DEVICE_GPA(n). The bytes are 1, 2, ... */
void recorder_make(struct machine *machine, struct recorder *recorder, const char *name, unsigned n,
                   const struct bb_region_config *config);
void recorder_drop(struct recorder *recorder);
/* Forgets what was written down. */
void recorder_reset(struct recorder *recorder);
/* Asserts what one record is. */
void recorder_expect(const struct recorder *recorder, unsigned index, bool write, uint64_t offset,
                     unsigned size);

#endif
