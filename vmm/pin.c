/* SPDX-License-Identifier: MIT */
/* Threads on processors of their own; see pin.h. */
#include "pin.h"

#include <sched.h>

unsigned bb_pin_processors(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) != 0) {
        return 1;
    }
    int count = CPU_COUNT(&set);
    return count > 0 ? (unsigned)count : 1;
}

bool bb_pin(pthread_attr_t *attributes, unsigned n)
{
    cpu_set_t usable, one;
    unsigned left = n % bb_pin_processors();

    if (sched_getaffinity(0, sizeof(usable), &usable) != 0) {
        return false;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &usable) && left-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            return pthread_attr_setaffinity_np(attributes, sizeof(one), &one) == 0;
        }
    }
    return false;
}
