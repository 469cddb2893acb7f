/* SPDX-License-Identifier: MIT */
/* The allocator of test_memory.h. */
#include "test_memory.h"

#include <criterion/criterion.h>
#include <string.h>

#include "../../base/atomic.h"

/* Sanitizers watch freed memory themselves, and better: they get it at once. */
#if defined(__SANITIZE_ADDRESS__) || BB_TSAN
enum { HOLD_BACK = 0 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { HOLD_BACK = 0 };
#else
enum { HOLD_BACK = 1 };
#endif
#else
enum { HOLD_BACK = 1 };
#endif

static void *counted_alloc(void *opaque, size_t bytes, size_t align)
{
    struct test_memory *memory = opaque;
    void *block = NULL;

    pthread_mutex_lock(&memory->mutex);
    bool fails = memory->fail_after == 0;
    if (memory->fail_after > 0) {
        memory->fail_after--;
    }
    memory->allocations++;
    pthread_mutex_unlock(&memory->mutex);
    if (fails || posix_memalign(&block, align, bytes) != 0) {
        return NULL;
    }
    return block;
}

static void poisoning_free(void *opaque, void *block, size_t bytes)
{
    struct test_memory *memory = opaque;

    memset(block, POISON_BYTE, bytes);
    if (!HOLD_BACK) {
        free(block);
        return;
    }
    pthread_mutex_lock(&memory->mutex);
    void *oldest = memory->held_back[memory->held_next];
    memory->held_back[memory->held_next] = block;
    memory->held_next = (memory->held_next + 1) % HELD_BACK_BLOCKS;
    pthread_mutex_unlock(&memory->mutex);
    free(oldest);
}

void test_memory_begin(struct test_memory *memory)
{
    struct bb_error err = {0};

    memset(memory, 0, sizeof(*memory));
    pthread_mutex_init(&memory->mutex, NULL);
    memory->fail_after = -1;
    struct bb_allocator allocator = {counted_alloc, poisoning_free, memory};
    cr_assert_eq(bb_heap_create(&allocator, &memory->heap, &err), BB_OK, "%s", err.text);
}

void test_memory_end(struct test_memory *memory)
{
    struct bb_error err = {0};

    cr_assert_eq(bb_heap_destroy(memory->heap, &err), BB_OK, "%s", err.text);
    for (unsigned i = 0; i < HELD_BACK_BLOCKS; i++) {
        free(memory->held_back[i]);
    }
    pthread_mutex_destroy(&memory->mutex);
}

void test_memory_fail_after(struct test_memory *memory, long count)
{
    pthread_mutex_lock(&memory->mutex);
    memory->fail_after = count;
    pthread_mutex_unlock(&memory->mutex);
}
