/* SPDX-License-Identifier: MIT */
/*
 * Accesses by the model: what callbacks an access makes, in which order and of which sizes, what it
 * reads, what it leaves in memory, and its result. Worked out byte by byte from the rules that
 * memory/region.h and engine/access.h state, and the two sentences about cutting in the heads of
 * memory/access.c and engine/piece.c.
 */
#ifndef BUSBAR_TESTS_MODEL_PROGRAM_H
#define BUSBAR_TESTS_MODEL_PROGRAM_H

#include "stage.h"

enum { PROGRAM_ACCESSES_MAX = 200, PROGRAM_BYTES_MAX = 64 };

struct program_access {
    int space;
    bb_gpa_t gpa;
    unsigned size;
    bool write;
    bool plain; /* bb_mmio_read(), bb_mmio_write() */
    struct bb_attrs attrs;
    uint8_t bytes[PROGRAM_BYTES_MAX]; /* to write */
};

struct program {
    struct topology topology;
    unsigned count;
    struct program_access access[PROGRAM_ACCESSES_MAX];
};

struct program_outcome {
    int result;
    uint8_t bytes[PROGRAM_BYTES_MAX];
    unsigned call_count;
    struct stage_call call[STAGE_CALLS_MAX];
};

/* `arena` is the model's copy of the memory of all RAM regions. */
void program_model(const struct stage *stage, uint8_t *arena, const struct program_access *access,
                   struct program_outcome *outcome);

/* The same access on the engine. What is not written stays 0x5a. */
void program_engine(struct stage *stage, const struct program_access *access,
                    struct program_outcome *outcome);

/* Random accesses, most of them where something begins or ends in the model as it is now. */
void program_make_accesses(struct program *program, const struct model *model);

void program_print_access(FILE *out, const struct program_access *access);

#endif
