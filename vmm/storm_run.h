/* SPDX-License-Identifier: MIT */
/*
 * Between the storm's own files: the parts that a run in a guest and one on host threads share.
 */
#ifndef BUSBAR_VMM_STORM_RUN_H
#define BUSBAR_VMM_STORM_RUN_H

#include "storm.h"

/* The frequency of storm_ticks() on this host, measured against CLOCK_MONOTONIC. */
uint64_t storm_host_tsc_khz(void);

/* Fills a zeroed control block. `tsc_khz` as in the parameters, but never 0. */
void storm_control_init(struct storm_control *control, const struct bb_storm_params *params,
                        uint64_t tsc_khz);

int storm_params_check(const struct bb_storm_params *params, struct bb_error *err);

/* Sums up vCPUs one after the other: begin, add each, end. */
struct storm_sum {
    struct bb_storm_results *results;
    double ns_per_tick;
    double latency_sum[STORM_READING_PHASES];
    uint64_t latency_max[STORM_READING_PHASES];
    uint64_t begin[STORM_READING_PHASES]; /* of the first to begin; TSCs of vCPUs are in step */
    uint64_t end[STORM_READING_PHASES];   /* of the last to end */
    uint64_t hist[STORM_READING_PHASES][STORM_HIST_BUCKETS];
};
void storm_sum_begin(struct storm_sum *sum, struct bb_storm_results *results,
                     const struct bb_storm_params *params, uint64_t tsc_khz);
void storm_sum_add(struct storm_sum *sum, const struct storm_vcpu *vcpu);
void storm_sum_end(struct storm_sum *sum);

/* Puts into words why a run gave up. */
void storm_describe_failure(struct bb_storm_results *results, const struct storm_control *control);

#endif
