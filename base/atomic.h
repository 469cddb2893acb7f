/* SPDX-License-Identifier: MIT */
/*
 * Atomics whose names carry their memory order, over plain integers and pointers.
 *
 * Every field that two threads touch is accessed through these and nothing else. There is no
 * default order: a reader of the code sees at each use what it relies on. An operation that is not
 * relaxed names its partner in a comment; docs/memory-model.md numbers the pairs.
 *
 * ThreadSanitizer does not model stand-alone fences (gcc 12 refuses to compile them), so under it
 * bb_fence_full() is a sequentially consistent read-modify-write of a thread-private word: the
 * same barrier to the processor, and no happens-before edge to the checker, which therefore errs
 * towards reporting.
 *
 * Public: usable by device models outside the tree. Compiles as C11 and C++17 with gcc and clang.
 */
#ifndef BUSBAR_BASE_ATOMIC_H
#define BUSBAR_BASE_ATOMIC_H

#include "api.h"

#if defined(__SANITIZE_THREAD__)
#define BB_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BB_TSAN 1
#endif
#endif
#ifndef BB_TSAN
#define BB_TSAN 0
#endif

#define bb_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define bb_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define bb_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define bb_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#define bb_xchg_relaxed(p, v) __atomic_exchange_n((p), (v), __ATOMIC_RELAXED)
#define bb_xchg_acquire(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQUIRE)
#define bb_xchg_release(p, v) __atomic_exchange_n((p), (v), __ATOMIC_RELEASE)
#define bb_xchg_acq_rel(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)

#define bb_fetch_add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define bb_fetch_add_acquire(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQUIRE)
#define bb_fetch_add_acq_rel(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
#define bb_fetch_sub_release(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELEASE)
#define bb_fetch_sub_acq_rel(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_ACQ_REL)
#define bb_fetch_or_release(p, v) __atomic_fetch_or((p), (v), __ATOMIC_RELEASE)
#define bb_fetch_or_acq_rel(p, v) __atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL)
#define bb_fetch_and_acquire(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQUIRE)
#define bb_fetch_and_acq_rel(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL)

/*
 * Compare and swap, strong. `expected` points to the value wanted; on failure it receives the
 * value found (loaded with the failure order: acquire for acq_rel and acquire, else relaxed).
 * Returns true where the swap was done.
 */
#define bb_cas_relaxed(p, expected, v)                                                             \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
#define bb_cas_acquire(p, expected, v)                                                             \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)
#define bb_cas_release(p, expected, v)                                                             \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)
#define bb_cas_acq_rel(p, expected, v)                                                             \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

BB_BEGIN_DECLS

/*
 * Orders every earlier access of this thread before every later one, store before load included.
 * Each use says which store and which load it keeps in order, and what breaks without it.
 */
static inline void bb_fence_full(void)
{
#if BB_TSAN
    unsigned private_word = 0;
    (void)__atomic_fetch_add(&private_word, 1u, __ATOMIC_SEQ_CST);
    __asm__ __volatile__("" : : "r"(&private_word) : "memory");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/*
 * Orders every earlier access of this thread before every later store: what a later relaxed store
 * announces. On x86 it costs nothing but what the compiler may not move.
 */
static inline void bb_fence_release(void)
{
#if BB_TSAN
    bb_fence_full();
#else
    __atomic_thread_fence(__ATOMIC_RELEASE);
#endif
}

/* Keeps the compiler from moving accesses across it; the processor is not told. */
static inline void bb_compiler_barrier(void)
{
    __asm__ __volatile__("" : : : "memory");
}

/*
 * Completes every earlier load, and every earlier instruction, before any later one begins. On
 * x86 this is lfence, the only thing that orders a load after rdtsc (rdtscp waits for what is
 * before it, not for what is behind it); on AArch64 isb after a counter read has that effect.
 */
static inline void bb_load_fence_serializing(void)
{
#if defined(__x86_64__)
    __asm__ __volatile__("lfence" : : : "memory");
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" : : : "memory");
#else
    bb_fence_full();
#endif
}

/* Tells the processor that this is a waiting loop. Never on a path called lock-free. */
static inline void bb_cpu_relax(void)
{
#if defined(__x86_64__)
    __asm__ __volatile__("pause" : : : "memory");
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" : : : "memory");
#endif
}

BB_END_DECLS

#endif
