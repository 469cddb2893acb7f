/* SPDX-License-Identifier: MIT */
/* What is made of results: the verdict fails for each thing that can be wrong, and latencies. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "../../vmm/hist.h"
#include "../../vmm/storm.h"

/* Guest memory as a payload on two vCPUs would leave it after a good run. */
struct image {
    uint8_t *ram;
    uint64_t bytes;
    struct bb_storm_params params;
    struct storm_control *control;
    struct storm_vcpu *vcpu[2];
};

static struct image good_image(void)
{
    struct image image = {.bytes = bb_storm_ram_bytes(2), .params = bb_storm_defaults(2, false)};
    struct bb_storm_entry entry;
    image.ram = calloc(1, image.bytes);
    image.params.tsc_khz = 1000000; /* a tick is 1 ns */
    cr_assert_eq(bb_storm_load(image.ram, image.bytes, &image.params, &entry, NULL), BB_OK);
    image.control = (struct storm_control *)(image.ram + STORM_CONTROL_GPA);
    image.control->finished = 1;
    for (unsigned i = 0; i < 2; i++) {
        image.vcpu[i] =
            (struct storm_vcpu *)(image.ram + STORM_VCPU_GPA + (uint64_t)i * STORM_VCPU_BYTES);
        for (unsigned phase = 0; phase < STORM_READING_PHASES; phase++) {
            struct storm_reading *reading = &image.vcpu[i]->reading[phase];
            reading->reads = 10;
            reading->begin = 1000;
            reading->end = 2000;
            reading->latency_sum = 500;
            reading->hist[storm_hist_bucket(50)] = 10;
        }
        image.vcpu[i]->toggles = i == 0 ? 5 : 0;
        image.vcpu[i]->holds = i == 0 ? 5 : 0;
        image.vcpu[i]->timers.programmed[STORM_MSI] = 3;
        image.vcpu[i]->timers.arrived[STORM_MSI] = 3;
    }
    return image;
}

static struct bb_storm_results collect(struct image *image)
{
    struct bb_storm_results results;
    cr_assert_eq(
        bb_storm_collect(image->ram, image->bytes, &image->params, BB_LOCK_FREE, &results, NULL),
        BB_OK);
    free(image->ram);
    return results;
}

Test(storm_report, good_results_are_ok_and_summed_up)
{
    struct image image = good_image();
    struct bb_storm_results results = collect(&image);
    cr_assert(bb_storm_ok(&results));
    cr_assert_eq(results.reading[STORM_READ].reads, 20);
    cr_assert_float_eq(results.reading[STORM_READ].avg_ns, 50, 0.01);
    /* 20 reads in a microsecond. */
    cr_assert_float_eq(results.reading[STORM_READ].per_second, 20e6, 1);
    cr_assert_eq(results.programmed[STORM_MSI], 6);
}

Test(storm_report, each_thing_that_can_be_wrong_fails_the_verdict)
{
    enum { FAULTS = 13 };
    for (unsigned fault = 0; fault < FAULTS; fault++) {
        struct image image = good_image();
        struct storm_vcpu *vcpu = image.vcpu[1];
        switch (fault) {
        case 0:
            image.control->finished = 0;
            break;
        case 1:
            image.control->failed = 1;
            break;
        case 2:
            vcpu->reading[STORM_READ].backward_self = 1;
            break;
        case 3:
            vcpu->reading[STORM_READ].backward_cross = 1;
            break;
        case 4:
            vcpu->reading[STORM_TORTURE].backward_self = 1;
            break;
        case 5:
            vcpu->reading[STORM_NOISY].backward_cross = 1;
            break;
        case 6:
            vcpu->halted_moved = 1;
            break;
        case 7:
            vcpu->timers.arrived[STORM_MSI] = 2;
            break;
        case 8:
            vcpu->timers.spurious[STORM_EDGE] = 1;
            break;
        case 9:
            vcpu->timers.spurious[STORM_LEVEL] = 1;
            break;
        case 10:
            image.vcpu[0]->toggles = 0;
            break;
        case 11:
            image.vcpu[0]->holds = 0;
            break;
        default:
            image.vcpu[0]->reading[STORM_NOISY].reads = 0;
            vcpu->reading[STORM_NOISY].reads = 0;
            break;
        }
        struct bb_storm_results results = collect(&image);
        cr_assert_not(bb_storm_ok(&results), "fault %u passed", fault);
    }
}

Test(storm_report, level_interrupt_that_came_twice_is_excused_only_where_kvm_ended_it_early)
{
    struct image image = good_image();
    image.vcpu[1]->timers.spurious[STORM_LEVEL] = 1;
    image.vcpu[1]->timers.ended_early = 1;
    struct bb_storm_results results = collect(&image);
    cr_assert(bb_storm_ok(&results));
    image = good_image();
    image.vcpu[1]->timers.spurious[STORM_LEVEL] = 2;
    image.vcpu[1]->timers.ended_early = 1;
    results = collect(&image);
    cr_assert_not(bb_storm_ok(&results));
}

Test(storm_report, vcpu_that_read_nothing_does_not_stretch_the_time_of_a_phase)
{
    struct image image = good_image();
    struct storm_reading *holder = &image.vcpu[0]->reading[STORM_NOISY];
    memset(holder, 0, sizeof(*holder));
    holder->begin = holder->end = 1;
    struct bb_storm_results results = collect(&image);
    cr_assert_float_eq(results.reading[STORM_NOISY].per_second, 10e6, 1);
}

Test(storm_report, failure_of_a_guest_is_put_into_words)
{
    struct image image = good_image();
    image.control->failed = 1;
    image.control->failure = 13;
    image.control->failure_vcpu = 1;
    image.control->failure_rip = 0x100234;
    struct bb_storm_results results = collect(&image);
    cr_assert_not_null(strstr(results.failure, "vCPU 1 took exception 13"), "%s", results.failure);
    cr_assert_not_null(strstr(results.failure, "0x100234"), "%s", results.failure);
}

Test(storm_report, memory_without_a_storm_is_refused)
{
    struct image image = good_image();
    struct bb_storm_results results;
    image.control->magic ^= 1;
    cr_assert_eq(
        bb_storm_collect(image.ram, image.bytes, &image.params, BB_LOCK_FREE, &results, NULL),
        BB_E_STATE);
    cr_assert_eq(
        bb_storm_collect(image.ram, image.bytes - 1, &image.params, BB_LOCK_FREE, &results, NULL),
        BB_E_STATE);
    free(image.ram);
}

Test(storm_report, loading_checks_count_and_memory)
{
    struct bb_storm_entry entry;
    struct bb_storm_params params = bb_storm_defaults(1, false);
    uint64_t bytes = bb_storm_ram_bytes(1);
    void *ram = calloc(1, bytes);
    params.tsc_khz = 1000000;
    cr_assert_eq(bb_storm_load(ram, bytes, &params, &entry, NULL), BB_OK);
    cr_assert_eq(bb_storm_load(ram, bytes - 1, &params, &entry, NULL), BB_E_RANGE);
    params.vcpus = 0;
    cr_assert_eq(bb_storm_load(ram, bytes, &params, &entry, NULL), BB_E_RANGE);
    params.vcpus = STORM_VCPUS_MAX + 1;
    cr_assert_eq(bb_storm_load(ram, bytes, &params, &entry, NULL), BB_E_RANGE);
    free(ram);
}

Test(storm_report, every_value_lies_in_its_bucket)
{
    for (unsigned bit = 0; bit <= STORM_HIST_TOP_BIT; bit++) {
        for (int step = -1; step <= 1; step++) {
            uint64_t value = (UINT64_C(1) << bit) + (uint64_t)(int64_t)step;
            unsigned bucket = storm_hist_bucket(value);
            cr_assert_lt(bucket, STORM_HIST_BUCKETS);
            cr_assert_leq(bb_hist_bucket_low(bucket), value);
            cr_assert_gt(bb_hist_bucket_low(bucket + 1), value);
        }
    }
    cr_assert_eq(storm_hist_bucket(UINT64_MAX), STORM_HIST_BUCKETS - 1);
}

Test(storm_report, quantiles_are_right_to_the_width_of_a_bucket)
{
    static uint64_t sum[STORM_HIST_BUCKETS];
    static uint32_t buckets[STORM_HIST_BUCKETS];
    cr_assert_float_eq(bb_hist_quantile(sum, 0.5), 0, 0.001);
    for (uint64_t value = 1; value <= 100000; value++) {
        buckets[storm_hist_bucket(value)]++;
    }
    bb_hist_add(sum, buckets);
    static const double shares[] = {0.01, 0.5, 0.99, 0.999, 1};
    for (unsigned i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        double exact = shares[i] * 100000;
        cr_assert_float_eq(bb_hist_quantile(sum, shares[i]), exact, exact / 15, "at %f", shares[i]);
    }
}
