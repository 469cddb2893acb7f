/* SPDX-License-Identifier: MIT */
/*
 * Reading a latency histogram of the form in storm_abi.h: buckets of a sixteenth of a power of
 * two, so a quantile is right to about 6 %. Pure functions over the caller's arrays.
 */
#ifndef BUSBAR_VMM_HIST_H
#define BUSBAR_VMM_HIST_H

#include <stddef.h>

#include "storm_abi.h"

/* Adds one vCPU's buckets to a sum of STORM_HIST_BUCKETS. */
void bb_hist_add(uint64_t *sum, const uint32_t *buckets);

/* The smallest value that falls into a bucket, and the smallest that falls into the next one. */
uint64_t bb_hist_bucket_low(unsigned bucket);

/*
 * The value below which a share `q` (0 to 1) of all lies, interpolated within its bucket; 0 for an
 * empty histogram.
 */
double bb_hist_quantile(const uint64_t *sum, double q);

/* Writes a time in the unit that keeps it short: "63 ns", "12.4 us", "3.1 ms". Returns `text`. */
const char *bb_hist_format_ns(char *text, size_t bytes, double ns);

#endif
