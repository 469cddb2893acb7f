/* SPDX-License-Identifier: MIT */
/* Reading the storm's latency histograms; see hist.h. */
#include "hist.h"

#include <stdio.h>

void bb_hist_add(uint64_t *sum, const uint32_t *buckets)
{
    for (unsigned i = 0; i < STORM_HIST_BUCKETS; i++) {
        sum[i] += buckets[i];
    }
}

uint64_t bb_hist_bucket_low(unsigned bucket)
{
    if (bucket < (1u << STORM_HIST_SUB_BITS)) {
        return bucket;
    }
    unsigned octave = bucket / 16 - 1, sub = bucket % 16;
    return (uint64_t)(16 + sub) << octave;
}

double bb_hist_quantile(const uint64_t *sum, double q)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < STORM_HIST_BUCKETS; i++) {
        total += sum[i];
    }
    double below = 0, wanted = q * (double)total;
    for (unsigned i = 0; i < STORM_HIST_BUCKETS; i++) {
        if (sum[i] != 0 && below + (double)sum[i] >= wanted) {
            double low = (double)bb_hist_bucket_low(i), high = (double)bb_hist_bucket_low(i + 1);
            return low + (high - low) * (wanted - below) / (double)sum[i];
        }
        below += (double)sum[i];
    }
    return 0;
}

const char *bb_hist_format_ns(char *text, size_t bytes, double ns)
{
    if (ns < 1000) {
        snprintf(text, bytes, "%.0f ns", ns);
    } else if (ns < 1e6) {
        snprintf(text, bytes, "%.1f us", ns / 1e3);
    } else {
        snprintf(text, bytes, "%.1f ms", ns / 1e6);
    }
    return text;
}
