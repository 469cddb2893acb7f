/* SPDX-License-Identifier: MIT */
/*
 * What a grace period orders, told to ThreadSanitizer. liburcu 0.13 carries no annotations and its
 * order comes from membarrier, which no checker sees; without help every free after a grace period
 * would be reported against the readers that it waited for.
 *
 * Two tags stand for the two directions:
 *  1. `began`: what a writer did before it waited is seen by sections that begin afterwards.
 *     Released before the wait, acquired on entering a section.
 *  2. `ended`: what a section read is read before a writer that has waited goes on. Released on
 *     leaving a section, acquired after the wait.
 *
 * A free without a grace period touches neither tag, and is reported: tests/rcu/use_after_grace
 * injects one. Outside TSan builds nothing of this exists.
 */
#include "rcu_internal.h"

#if BB_TSAN
void __tsan_acquire(void *tag);
void __tsan_release(void *tag);

static char began;
static char ended;

void bb_rcu_tsan_enter_(void)
{
    __tsan_acquire(&began);
}

void bb_rcu_tsan_leave_(void)
{
    __tsan_release(&ended);
}

void bb_rcu_tsan_before_(void)
{
    __tsan_release(&began);
}

void bb_rcu_tsan_after_(void)
{
    __tsan_acquire(&ended);
}
#else
void bb_rcu_tsan_before_(void) {}
void bb_rcu_tsan_after_(void) {}
#endif
