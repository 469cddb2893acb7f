/* SPDX-License-Identifier: MIT */
/*
 * Threads that run slices of batches together, each pinned to a core. Between slices they sleep.
 *
 * A machine that runs other jobs takes a core away from one thread for milliseconds, and what the
 * other does meanwhile is not contended. bench_team_collect() therefore asks, for every batch,
 * whether all threads had their cores while it ran.
 */
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "../base/atomic.h"
#include "bench.h"

enum { BATCHES_MAX = 1 << 15 };

/* How often this thread was made to give up its core; waiting for a lock doesn't count. */
static long preempted(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

static void run_slice(struct bench_thread *self, unsigned (*run)(struct bench_thread *, void *),
                      void *argument)
{
    long before = preempted();
    uint64_t begin_ns = bench_now_ns();

    self->batches = 0;
    self->accesses = 0;
    /* Relaxed: nothing but an end is told by it. */
    while (!bb_load_relaxed(&self->team->stop) && self->batches < BATCHES_MAX) {
        struct bench_batch *batch = &self->batch[self->batches++];
        long after;

        /* Batches leave no gap between them, so that the other threads' can be seen to cover one
         * another; the accesses of one are timed by themselves. */
        batch->begin_ns = begin_ns;
        begin_ns = bench_now_ns();
        self->accesses += run(self, argument);
        batch->run_ns = bench_now_ns() - begin_ns;
        after = preempted();
        batch->disturbed = after != before;
        before = after;
        begin_ns = bench_now_ns();
        batch->end_ns = begin_ns;
    }
}

static void *thread_main(void *opaque)
{
    struct bench_thread *self = opaque;
    struct bench_team *team = self->team;
    uint64_t seen = 0;
    struct bb_error err;

    bench_pin(self->index % bench_cores());
    for (unsigned i = 0; i < team->machines; i++) {
        if (bb_ctx_attach(team->machine[i]->engine, "bench-thread", &self->ctx[i], &err) != BB_OK) {
            bench_die(&err, "attaching a thread");
        }
    }
    pthread_mutex_lock(&team->lock);
    team->running--;
    pthread_cond_broadcast(&team->changed);
    for (;;) {
        while (!team->quit && (team->slice == seen || self->index >= team->wanted)) {
            pthread_cond_wait(&team->changed, &team->lock);
        }
        if (team->quit) {
            break;
        }
        seen = team->slice;
        pthread_mutex_unlock(&team->lock);
        run_slice(self, team->run, team->argument);
        pthread_mutex_lock(&team->lock);
        team->running--;
        pthread_cond_broadcast(&team->changed);
    }
    pthread_mutex_unlock(&team->lock);
    for (unsigned i = 0; i < team->machines; i++) {
        if (bb_ctx_detach(self->ctx[i], &err) != BB_OK) {
            bench_die(&err, "detaching a thread");
        }
    }
    return NULL;
}

static void wait_for_all_locked(struct bench_team *team)
{
    while (team->running > 0) {
        pthread_cond_wait(&team->changed, &team->lock);
    }
}

void bench_team_create(struct bench_team *team, unsigned threads, struct bench_machine **machine,
                       unsigned machines)
{
    *team = (struct bench_team){.threads = threads, .machines = machines, .running = threads};
    for (unsigned i = 0; i < machines; i++) {
        team->machine[i] = machine[i];
    }
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->changed, NULL);
    for (unsigned i = 0; i < threads; i++) {
        struct bench_thread *thread = &team->thread[i];

        thread->team = team;
        thread->index = i;
        thread->batch = malloc(BATCHES_MAX * sizeof(*thread->batch));
        if (thread->batch == NULL ||
            pthread_create(&thread->thread, NULL, thread_main, thread) != 0) {
            bench_die(NULL, "a thread can't be made");
        }
    }
    pthread_mutex_lock(&team->lock);
    wait_for_all_locked(team);
    pthread_mutex_unlock(&team->lock);
}

void bench_team_destroy(struct bench_team *team)
{
    pthread_mutex_lock(&team->lock);
    team->quit = true;
    pthread_cond_broadcast(&team->changed);
    pthread_mutex_unlock(&team->lock);
    for (unsigned i = 0; i < team->threads; i++) {
        pthread_join(team->thread[i].thread, NULL);
        free(team->thread[i].batch);
    }
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->changed);
}

void bench_team_slice(struct bench_team *team, unsigned threads, unsigned ms,
                      unsigned (*run)(struct bench_thread *thread, void *argument), void *argument)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

    pthread_mutex_lock(&team->lock);
    team->run = run;
    team->argument = argument;
    team->wanted = threads;
    team->running = threads;
    bb_store_relaxed(&team->stop, false); /* the mutex orders it */
    team->slice++;
    pthread_cond_broadcast(&team->changed);
    pthread_mutex_unlock(&team->lock);
    nanosleep(&pause, NULL);
    bb_store_relaxed(&team->stop, true); /* seen some time; nothing hangs on when */
    pthread_mutex_lock(&team->lock);
    wait_for_all_locked(team);
    pthread_mutex_unlock(&team->lock);
}

/* True where `other` ran from begin to end of `batch`: its batches cover it, and it was never made
 * to give up its core in them. *at moves along with rising batches. */
static bool ran_through(const struct bench_thread *other, const struct bench_batch *batch,
                        size_t *at)
{
    size_t i = *at;

    while (i < other->batches && other->batch[i].end_ns <= batch->begin_ns) {
        i++;
    }
    *at = i;
    if (i == other->batches || other->batch[i].begin_ns > batch->begin_ns) {
        return false;
    }
    for (; i < other->batches && !other->batch[i].disturbed; i++) {
        if (other->batch[i].end_ns >= batch->end_ns) {
            return true;
        }
    }
    return false;
}

size_t bench_team_collect(const struct bench_team *team, unsigned threads, unsigned accesses,
                          struct bench_samples *samples)
{
    size_t all = 0;

    for (unsigned t = 0; t < threads; t++) {
        const struct bench_thread *self = &team->thread[t];
        size_t at[BENCH_THREADS_MAX] = {0};

        all += self->batches;
        for (size_t i = 0; i < self->batches; i++) {
            const struct bench_batch *batch = &self->batch[i];
            bool together = !batch->disturbed;

            for (unsigned o = 0; o < threads && together; o++) {
                together = o == t || ran_through(&team->thread[o], batch, &at[o]);
            }
            if (together) {
                bench_add(samples, (double)batch->run_ns / accesses);
            }
        }
    }
    return all;
}
