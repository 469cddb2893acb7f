/* SPDX-License-Identifier: MIT */
/* What a storm found, for people and for programs. */
#include "hist.h"
#include "storm.h"

static const char *const phase_names[STORM_PHASES] = {"read", "torture", "noisy", "timers"};
static const char *const route_names[STORM_ROUTES] = {"msi", "edge", "level"};
static const char *const lock_names[] = {
    [BB_LOCK_FREE] = "free", [BB_LOCK_DEVICE] = "device", [BB_LOCK_BIG] = "big"};

static void print_reading(FILE *out, const char *name, const struct bb_storm_latency *latency)
{
    char avg[16], p50[16], p99[16], p999[16], max[16];
    fprintf(out, "  %-8s %10llu %12.0f %10s %10s %10s %10s %10s %6llu %6llu\n", name,
            (unsigned long long)latency->reads, latency->per_second,
            bb_hist_format_ns(avg, sizeof(avg), latency->avg_ns),
            bb_hist_format_ns(p50, sizeof(p50), latency->p50_ns),
            bb_hist_format_ns(p99, sizeof(p99), latency->p99_ns),
            bb_hist_format_ns(p999, sizeof(p999), latency->p999_ns),
            bb_hist_format_ns(max, sizeof(max), latency->max_ns),
            (unsigned long long)latency->backward_self,
            (unsigned long long)latency->backward_cross);
}

void bb_storm_print_table(FILE *out, const struct bb_storm_results *results)
{
    fprintf(out, "storm on %u %s, --lock %s: %s\n", results->vcpus,
            results->threads ? "host threads" : "vCPUs", lock_names[results->lock_mode],
            bb_storm_ok(results) ? "ok" : "FAILED");
    if (!results->finished) {
        fprintf(out, "  did not finish%s%s\n", results->failure[0] ? ": " : "", results->failure);
    }
    fprintf(out, "  %-8s %10s %12s %10s %10s %10s %10s %10s %13s\n", "phase", "reads", "reads/s",
            "avg", "p50", "p99", "p99.9", "max", "backward");
    fprintf(out, "  %96s %6s\n", "self", "cross");
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        if (results->phases & 1u << phase) {
            print_reading(out, phase_names[phase], &results->reading[phase]);
        }
    }
    if (results->phases & 1u << STORM_TORTURE) {
        fprintf(out, "  torture: %llu toggles of ENABLE_CNF; counter moved while disabled: %llu\n",
                (unsigned long long)results->toggles, (unsigned long long)results->halted_moved);
    }
    if (results->phases & 1u << STORM_NOISY) {
        fprintf(out, "  noisy: a neighbour held its device's lock %llu times\n",
                (unsigned long long)results->holds);
    }
    if (results->phases & 1u << STORM_TIMERS) {
        fprintf(out, "  timers, arrived of programmed:");
        for (unsigned route = 0; route < STORM_ROUTES; route++) {
            fprintf(out, " %s %llu of %llu, %llu unasked;", route_names[route],
                    (unsigned long long)results->arrived[route],
                    (unsigned long long)results->programmed[route],
                    (unsigned long long)results->spurious[route]);
        }
        fprintf(out, " begun again %llu\n", (unsigned long long)results->missed);
        if (results->ended_early) {
            fprintf(out,
                    "  timers: KVM ended %llu level interrupts before their handlers did, so "
                    "some came twice\n",
                    (unsigned long long)results->ended_early);
        }
    }
}

void bb_storm_print_json(FILE *out, const struct bb_storm_results *results)
{
    fprintf(out, "{\"vcpus\":%u,\"cpu\":\"%s\",\"lock\":\"%s\",\"ok\":%s,\"finished\":%s",
            results->vcpus, results->threads ? "threads" : "kvm", lock_names[results->lock_mode],
            bb_storm_ok(results) ? "true" : "false", results->finished ? "true" : "false");
    for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
        const struct bb_storm_latency *latency = &results->reading[phase];
        if (!(results->phases & 1u << phase)) {
            continue;
        }
        fprintf(out,
                ",\"%s\":{\"reads\":%llu,\"per_second\":%.0f,\"avg_ns\":%.1f,\"p50_ns\":%.1f,"
                "\"p99_ns\":%.1f,\"p999_ns\":%.1f,\"max_ns\":%.1f,\"backward_self\":%llu,"
                "\"backward_cross\":%llu}",
                phase_names[phase], (unsigned long long)latency->reads, latency->per_second,
                latency->avg_ns, latency->p50_ns, latency->p99_ns, latency->p999_ns,
                latency->max_ns, (unsigned long long)latency->backward_self,
                (unsigned long long)latency->backward_cross);
    }
    fprintf(out, ",\"toggles\":%llu,\"halted_moved\":%llu,\"holds\":%llu",
            (unsigned long long)results->toggles, (unsigned long long)results->halted_moved,
            (unsigned long long)results->holds);
    if (results->phases & 1u << STORM_TIMERS) {
        fprintf(out, ",\"timers\":{");
        for (unsigned route = 0; route < STORM_ROUTES; route++) {
            fprintf(out, "\"%s\":{\"programmed\":%llu,\"arrived\":%llu,\"spurious\":%llu},",
                    route_names[route], (unsigned long long)results->programmed[route],
                    (unsigned long long)results->arrived[route],
                    (unsigned long long)results->spurious[route]);
        }
        fprintf(out, "\"begun_again\":%llu,\"ended_early\":%llu}",
                (unsigned long long)results->missed, (unsigned long long)results->ended_early);
    }
    fprintf(out, "}\n");
}
