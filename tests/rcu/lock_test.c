/* SPDX-License-Identifier: MIT */
/* Ranked locks: their count, their order, and the checker of debug builds. */
#include "rcu_test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef NDEBUG
#define NEEDS_CHECKER() cr_skip_test("release build: the order checker is not compiled in")
enum { ON_VIOLATION = 0 };
#else
#define NEEDS_CHECKER() ((void)0)
enum { ON_VIOLATION = SIGABRT };
#endif

static struct domain domain;

static void begin(void)
{
    domain_begin(&domain, NULL);
}

static void end(void)
{
    domain_end(&domain);
}

static struct bb_lock *lock_of(const char *name, enum bb_lock_rank rank)
{
    struct bb_lock *lock = NULL;
    struct bb_error err = {.text = ""};

    cr_assert_eq(bb_lock_create(domain.ctx, name, rank, &lock, &err), BB_OK, "%s", err.text);
    return lock;
}

Test(rcu_lock, a_lock_needs_a_name_and_a_known_rank, .init = begin, .fini = end)
{
    struct bb_lock *lock = NULL;

    cr_assert_eq(bb_lock_create(domain.ctx, NULL, BB_RANK_NARROW, &lock, NULL), BB_E_INVAL);
    cr_assert_eq(bb_lock_create(domain.ctx, "l", (enum bb_lock_rank)31, &lock, NULL), BB_E_INVAL);
    cr_assert_eq(bb_lock_create(domain.ctx, "l", (enum bb_lock_rank)0, &lock, NULL), BB_E_INVAL);
    cr_assert_null(lock);
    bb_lock_destroy(domain.ctx, NULL);
}

Test(rcu_lock, held_locks_are_counted_and_may_be_released_in_any_order, .init = begin, .fini = end)
{
    struct bb_lock *low = lock_of("low", BB_RANK_DEVICE);
    struct bb_lock *high = lock_of("high", BB_RANK_NARROW);

    bb_lock_acquire(domain.ctx, low);
    cr_assert_eq(domain.ctx->lock_depth, 1);
    bb_lock_acquire(domain.ctx, high);
    cr_assert_eq(domain.ctx->lock_depth, 2);
    bb_lock_release(domain.ctx, low);
    cr_assert_eq(domain.ctx->lock_depth, 1);
    bb_lock_release(domain.ctx, high);
    cr_assert_eq(domain.ctx->lock_depth, 0);
    bb_lock_destroy(domain.ctx, low);
    bb_lock_destroy(domain.ctx, high);
}

Test(rcu_lock, a_try_never_waits_and_may_go_against_the_order, .init = begin, .fini = end)
{
    struct bb_lock *low = lock_of("low", BB_RANK_DEVICE);
    struct bb_lock *same = lock_of("same", BB_RANK_DEVICE);
    struct bb_lock *high = lock_of("high", BB_RANK_MAP);

    bb_lock_acquire(domain.ctx, high);
    cr_assert(bb_lock_try(domain.ctx, low));
    cr_assert(bb_lock_try(domain.ctx, same));
    cr_assert_not(bb_lock_try(domain.ctx, low));
    cr_assert_eq(domain.ctx->lock_depth, 3);
    bb_lock_release(domain.ctx, same);
    bb_lock_release(domain.ctx, low);
    bb_lock_release(domain.ctx, high);
    bb_lock_destroy(domain.ctx, low);
    bb_lock_destroy(domain.ctx, same);
    bb_lock_destroy(domain.ctx, high);
}

Test(rcu_lock, a_lower_rank_under_a_higher_one_aborts, .signal = ON_VIOLATION)
{
    NEEDS_CHECKER();
    begin();
    bb_lock_acquire(domain.ctx, lock_of("map", BB_RANK_MAP));
    bb_lock_acquire(domain.ctx, lock_of("device", BB_RANK_DEVICE));
}

Test(rcu_lock, two_locks_of_one_rank_abort, .signal = ON_VIOLATION)
{
    NEEDS_CHECKER();
    begin();
    bb_lock_acquire(domain.ctx, lock_of("one", BB_RANK_DEVICE));
    bb_lock_acquire(domain.ctx, lock_of("two", BB_RANK_DEVICE));
}

Test(rcu_lock, a_lock_that_was_tried_counts_in_the_order, .signal = ON_VIOLATION)
{
    NEEDS_CHECKER();
    begin();
    (void)bb_lock_try(domain.ctx, lock_of("map", BB_RANK_MAP));
    bb_lock_acquire(domain.ctx, lock_of("device", BB_RANK_DEVICE));
}

Test(rcu_lock, a_released_lock_no_longer_counts_in_the_order, .init = begin, .fini = end)
{
    struct bb_lock *low = lock_of("low", BB_RANK_DEVICE);
    struct bb_lock *high = lock_of("high", BB_RANK_MAP);

    for (int i = 0; i < 100; i++) {
        bb_lock_acquire(domain.ctx, low);
        bb_lock_acquire(domain.ctx, high);
        bb_lock_release(domain.ctx, i % 2 == 0 ? high : low);
        bb_lock_release(domain.ctx, i % 2 == 0 ? low : high);
    }
    bb_lock_destroy(domain.ctx, low);
    bb_lock_destroy(domain.ctx, high);
}

Test(rcu_lock, releasing_a_lock_that_is_not_held_aborts, .signal = ON_VIOLATION)
{
    NEEDS_CHECKER();
    begin();
    bb_lock_release(domain.ctx, lock_of("free", BB_RANK_DEVICE));
}

Test(rcu_lock, destroying_a_held_lock_aborts, .signal = ON_VIOLATION)
{
    struct bb_lock *lock;

    NEEDS_CHECKER();
    begin();
    lock = lock_of("held", BB_RANK_DEVICE);
    bb_lock_acquire(domain.ctx, lock);
    bb_lock_destroy(domain.ctx, lock);
}

Test(rcu_lock, the_report_shows_where_both_locks_were_taken)
{
    char path[] = "/tmp/busbar-lock-XXXXXX";
    char text[8000] = "";
    int file;
    int status;
    FILE *in;
    pid_t child;

    NEEDS_CHECKER();
    file = mkstemp(path);
    cr_assert_geq(file, 0);
    child = fork();
    if (child == 0) {
        (void)signal(SIGABRT, SIG_DFL);
        (void)dup2(file, 2);
        begin();
        bb_lock_acquire(domain.ctx, lock_of("outer", BB_RANK_MAP));
        bb_lock_acquire(domain.ctx, lock_of("inner", BB_RANK_DEVICE));
        _exit(0);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x", (unsigned)status);
    in = fopen(path, "r");
    cr_assert_not_null(in);
    (void)fread(text, 1, sizeof(text) - 1, in);
    (void)fclose(in);
    (void)unlink(path);
    cr_assert_not_null(strstr(text, "takes 'inner' (rank 20) while it holds 'outer' (rank 50)"),
                       "%s", text);
    cr_assert_not_null(strstr(text, "'outer' was taken at:"), "%s", text);
    cr_assert_not_null(strstr(text, "is taken at:"), "%s", text);
}

enum { THREADS = 3, ROUNDS = 20000 };

struct shared {
    struct bb_lock *lock;
    uint64_t plain; /* guarded by the lock */
};

static void *count_under_lock(void *arg)
{
    struct shared *shared = arg;
    struct bb_ctx *ctx = domain_attach(domain.rcu, "counter");

    if (ctx == NULL) {
        abort();
    }
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 3 != 0 || !bb_lock_try(ctx, shared->lock)) {
            bb_lock_acquire(ctx, shared->lock);
        }
        shared->plain++;
        bb_lock_release(ctx, shared->lock);
    }
    (void)bb_ctx_detach_(ctx, NULL);
    return NULL;
}

Test(rcu_lock, one_thread_at_a_time_is_inside, .init = begin, .fini = end)
{
    struct shared shared = {.lock = lock_of("count", BB_RANK_NARROW)};
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++) {
        cr_assert_eq(pthread_create(&threads[i], NULL, count_under_lock, &shared), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    cr_assert_eq(shared.plain, (uint64_t)THREADS * ROUNDS);
    bb_lock_destroy(domain.ctx, shared.lock);
}
