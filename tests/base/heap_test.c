/* SPDX-License-Identifier: MIT */
/* Heaps: what they hand out, what they count, and that destruction finds what was not given back.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/heap.h"

static struct bb_heap *new_heap(void)
{
    struct bb_heap *heap = NULL;
    struct bb_error err = {0};
    cr_assert_eq(bb_heap_create(NULL, &heap, &err), BB_OK, "%s", err.text);
    return heap;
}

static void end_heap(struct bb_heap *heap)
{
    struct bb_error err = {0};
    cr_assert_eq(bb_heap_destroy(heap, &err), BB_OK, "%s", err.text);
}

Test(heap, memory_is_zeroed_even_where_it_was_used_before)
{
    struct bb_heap *heap = new_heap();
    for (int round = 0; round < 64; round++) {
        unsigned char *memory = bb_heap_alloc(heap, 300);
        cr_assert_not_null(memory);
        for (int i = 0; i < 300; i++) {
            cr_assert_eq(memory[i], 0);
        }
        memset(memory, 0xa5, 300);
        bb_heap_free(heap, memory, 300);
    }
    end_heap(heap);
}

Test(heap, alignment_asked_for_is_kept_and_others_are_refused)
{
    struct bb_heap *heap = new_heap();
    for (size_t align = 8; align <= 4096; align *= 2) {
        for (size_t bytes = 1; bytes < 100000; bytes = bytes * 3 + 1) {
            void *memory = bb_heap_alloc_aligned(heap, bytes, align);
            cr_assert_not_null(memory);
            cr_assert_eq((uintptr_t)memory % align, 0);
            bb_heap_free(heap, memory, bytes);
        }
    }
    const size_t refused[] = {0, 1, 4, 12, 24, 8192, SIZE_MAX};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        cr_assert_null(bb_heap_alloc_aligned(heap, 64, refused[i]));
    }
    cr_assert_null(bb_heap_alloc(heap, 0));
    end_heap(heap);
}

Test(heap, more_than_there_is_gives_null_and_counts_nothing)
{
    struct bb_heap *heap = new_heap();
    cr_assert_null(bb_heap_alloc(heap, (size_t)1 << 62));
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 0);
    cr_assert_eq(bb_heap_usage(heap).live_bytes, 0);
    end_heap(heap);
}

Test(heap, usage_counts_bytes_and_blocks_as_asked)
{
    struct bb_heap *heap = new_heap();
    void *a = bb_heap_alloc(heap, 100);
    void *b = bb_heap_alloc(heap, 1000);
    cr_assert_eq(bb_heap_usage(heap).live_bytes, 1100);
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 2);
    bb_heap_free(heap, a, 100);
    cr_assert_eq(bb_heap_usage(heap).live_bytes, 1000);
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 1);
    bb_heap_free(heap, NULL, 5);
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 1);
    bb_heap_free(heap, b, 1000);
    end_heap(heap);
}

Test(heap, destroy_refuses_while_something_lives_and_says_how_much)
{
    struct bb_heap *heap = new_heap();
    struct bb_error err = {0};
    void *a = bb_heap_alloc(heap, 100);
    void *b = bb_heap_alloc(heap, 23);
    cr_assert_eq(bb_heap_destroy(heap, &err), BB_E_STATE);
    cr_assert_eq(err.code, BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "123 bytes"), "%s", err.text);
    cr_assert_not_null(strstr(err.text, "2 blocks"), "%s", err.text);
    bb_heap_free(heap, a, 100);
    bb_heap_free(heap, b, 23);
    end_heap(heap);
}

Test(heap, two_heaps_count_apart)
{
    struct bb_heap *one = new_heap();
    struct bb_heap *two = new_heap();
    void *a = bb_heap_alloc(one, 4000);
    cr_assert_eq(bb_heap_usage(one).live_blocks, 1);
    cr_assert_eq(bb_heap_usage(two).live_blocks, 0);
    end_heap(two);
    bb_heap_free(one, a, 4000);
    end_heap(one);
}

Test(heap, an_arena_agrees_with_the_heaps_own_count)
{
    struct bb_heap *one = new_heap();
    struct bb_heap *two = new_heap();
    if (strcmp(bb_heap_usage(one).kind, "jemalloc arena") != 0) {
        cr_skip_test("heaps are over libc in this build");
    }
    cr_assert_eq(bb_heap_usage(one).arena_bytes, 0);
    void *small = bb_heap_alloc(one, 100);
    void *large = bb_heap_alloc_aligned(one, 1 << 20, 4096);
    cr_assert_geq(bb_heap_usage(one).arena_bytes, 100 + (1 << 20));
    cr_assert_leq(bb_heap_usage(one).arena_bytes, 2 * (100 + (1 << 20)));
    cr_assert_eq(bb_heap_usage(two).arena_bytes, 0);
    bb_heap_free(one, small, 100);
    bb_heap_free(one, large, 1 << 20);
    cr_assert_eq(bb_heap_usage(one).arena_bytes, 0);
    end_heap(one);
    end_heap(two);
}

Test(heap, freeing_with_another_size_is_found_at_destruction)
{
    struct bb_heap *heap = new_heap();
    struct bb_error err = {0};
    void *memory = bb_heap_alloc(heap, 100);
    bb_heap_free(heap, memory, 60);
    cr_assert_eq(bb_heap_destroy(heap, &err), BB_E_STATE);
    cr_assert_not_null(strstr(err.text, "40 bytes"), "%s", err.text);
}

Test(heap, hundreds_of_heaps_come_and_go)
{
    for (int round = 0; round < 300; round++) {
        struct bb_heap *heap = new_heap();
        void *memory = bb_heap_alloc(heap, 5000);
        cr_assert_not_null(memory);
        bb_heap_free(heap, memory, 5000);
        end_heap(heap);
    }
}

struct count {
    int allocs;
    int frees;
    size_t bytes;
    bool refuse;
};

static void *count_alloc(void *opaque, size_t bytes, size_t align)
{
    struct count *count = opaque;
    void *memory = NULL;
    if (count->refuse || posix_memalign(&memory, align, bytes) != 0) {
        return NULL;
    }
    memset(memory, 0xee, bytes);
    count->allocs++;
    count->bytes += bytes;
    return memory;
}

static void count_free(void *opaque, void *memory, size_t bytes)
{
    struct count *count = opaque;
    count->frees++;
    count->bytes -= bytes;
    free(memory);
}

Test(heap, all_memory_of_an_embedders_heap_comes_from_the_embedder)
{
    struct count count = {0};
    struct bb_allocator allocator = {count_alloc, count_free, &count};
    struct bb_heap *heap = NULL;
    cr_assert_eq(bb_heap_create(&allocator, &heap, NULL), BB_OK);
    cr_assert_str_eq(bb_heap_usage(heap).kind, "embedder");
    int before = count.allocs;
    unsigned char *memory = bb_heap_alloc_aligned(heap, 77, 64);
    cr_assert_eq(count.allocs, before + 1);
    cr_assert_eq(memory[76], 0);
    count.refuse = true;
    cr_assert_null(bb_heap_alloc(heap, 8));
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 1);
    bb_heap_free(heap, memory, 77);
    end_heap(heap);
    cr_assert_eq(count.allocs, count.frees);
    cr_assert_eq(count.bytes, 0);
}

Test(heap, an_allocator_that_lacks_a_function_or_gives_nothing_is_refused)
{
    struct count count = {.refuse = true};
    struct bb_allocator allocator = {count_alloc, NULL, &count};
    struct bb_heap *heap = NULL;
    struct bb_error err = {0};
    cr_assert_eq(bb_heap_create(&allocator, &heap, &err), BB_E_INVAL);
    cr_assert_not_null(strstr(err.text, "free"));
    allocator = (struct bb_allocator){NULL, count_free, &count};
    cr_assert_eq(bb_heap_create(&allocator, &heap, &err), BB_E_INVAL);
    allocator.alloc = count_alloc;
    cr_assert_eq(bb_heap_create(&allocator, &heap, &err), BB_E_NOMEM);
    cr_assert_null(heap);
}

enum { CHURN_THREADS = 4, CHURN_ROUNDS = 20000, CHURN_SLOTS = 64 };

static void *churn(void *opaque)
{
    struct bb_heap *heap = opaque;
    void *slots[CHURN_SLOTS] = {0};
    size_t sizes[CHURN_SLOTS] = {0};
    uint32_t random = 12345u + (uint32_t)(uintptr_t)&slots;

    for (int round = 0; round < CHURN_ROUNDS; round++) {
        random = random * 1664525u + 1013904223u;
        unsigned slot = (random >> 16) % CHURN_SLOTS;
        bb_heap_free(heap, slots[slot], sizes[slot]);
        sizes[slot] = 1 + (random >> 8) % 3000;
        slots[slot] = bb_heap_alloc(heap, sizes[slot]);
    }
    for (int slot = 0; slot < CHURN_SLOTS; slot++) {
        bb_heap_free(heap, slots[slot], sizes[slot]);
    }
    return NULL;
}

Test(heap, threads_that_churn_one_heap_leave_it_empty)
{
    struct bb_heap *heap = new_heap();
    pthread_t threads[CHURN_THREADS];
    for (int i = 0; i < CHURN_THREADS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, churn, heap), 0);
    }
    for (int i = 0; i < CHURN_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    cr_assert_eq(bb_heap_usage(heap).live_bytes, 0);
    cr_assert_eq(bb_heap_usage(heap).live_blocks, 0);
    end_heap(heap);
}
