/* SPDX-License-Identifier: MIT */
/*
 * An allocator for tests: it can be told to fail from the n-th allocation on, and it poisons what
 * is freed and holds it back for a while, so that a use after free meets poison and not the next
 * owner's data. Also a seeded generator of random numbers.
 */
#ifndef BUSBAR_TESTS_MEMORY_TEST_MEMORY_H
#define BUSBAR_TESTS_MEMORY_TEST_MEMORY_H

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "../../base/heap.h"

enum { HELD_BACK_BLOCKS = 4096, POISON_BYTE = 0xa5 };

#define POISON_WORD UINT64_C(0xa5a5a5a5a5a5a5a5)

struct test_memory {
    pthread_mutex_t mutex;
    long fail_after; /* allocations that still succeed; negative: all do */
    long allocations;
    void *held_back[HELD_BACK_BLOCKS];
    unsigned held_next;
    struct bb_heap *heap;
};

/* Makes `heap` over this allocator. Asserts on failure, and at the end on leaks. */
void test_memory_begin(struct test_memory *memory);
void test_memory_end(struct test_memory *memory);

/* Lets `count` further allocations succeed and none after them; negative: all. */
void test_memory_fail_after(struct test_memory *memory, long count);

/* xorshift64*: good enough, and the same everywhere. */
struct test_random {
    uint64_t state;
};

/* Seeds from BUSBAR_SEED where it is set, else from the clock. Returns the seed, for messages. */
static inline uint64_t test_random_begin(struct test_random *random)
{
    const char *given = getenv("BUSBAR_SEED");
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0)
                                  : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    random->state = seed != 0 ? seed : 1;
    return random->state;
}

static inline uint64_t test_random_next(struct test_random *random)
{
    random->state ^= random->state >> 12;
    random->state ^= random->state << 25;
    random->state ^= random->state >> 27;
    return random->state * UINT64_C(0x2545f4914f6cdd1d);
}

static inline unsigned test_random_below(struct test_random *random, unsigned bound)
{
    return (unsigned)((test_random_next(random) >> 32) % bound);
}

/* How long a torture may take, in nanoseconds: BUSBAR_STRESS_SECONDS, 1 where it is not set. */
static inline uint64_t test_stress_ns(void)
{
    const char *given = getenv("BUSBAR_STRESS_SECONDS");
    double seconds = given != NULL ? strtod(given, NULL) : 1.0;

    return (uint64_t)(seconds * 1e9);
}

static inline uint64_t test_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
