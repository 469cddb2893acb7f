/* SPDX-License-Identifier: MIT */
/* `busbar run --count-accesses`: what is reported is what the guest did. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "image.h"
#include "payload.h"

static struct command_result result;

static json_t *run_json(const char *const *args)
{
    json_error_t error;

    command_run(&result, 120, args);
    json_t *report = json_loads(result.out, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(report, "status %d: %s: line %d: %s", result.status, result.err, error.line,
                       error.text);
    return report;
}

/* What one vCPU did with a region, by key; 0 where it is not in the report. */
static json_int_t counted(const json_t *report, const char *region, unsigned vcpu, const char *key)
{
    size_t i, j;
    json_t *row, *one;

    json_array_foreach(json_object_get(report, "accesses"), i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "region")), region) != 0) {
            continue;
        }
        json_array_foreach(json_object_get(row, "vcpus"), j, one)
        {
            if (json_integer_value(json_object_get(one, "vcpu")) == (json_int_t)vcpu) {
                return json_integer_value(json_object_get(one, key));
            }
        }
    }
    return 0;
}

Test(counts, each_thread_of_the_storm_has_its_own, .timeout = 150)
{
    json_t *report =
        run_json((const char *const[]){"run", "--cpu", "threads", "--vcpus", "2", "--reads", "1000",
                                       "--count-accesses", "--json", NULL});

    cr_assert_eq(result.status, 0, "%s", result.err);
    json_int_t holds = json_integer_value(json_object_get(report, "holds"));
    cr_assert_gt(holds, 0);
    cr_assert_eq(counted(report, "storm", 0, "writes"), holds);
    cr_assert_eq(counted(report, "storm", 1, "writes"), 0);
    cr_assert_geq(counted(report, "hpet", 1, "reads"), 3000, "1000 in each of three phases");
    cr_assert_geq(counted(report, "hpet", 0, "reads"), 1000);
    json_decref(report);
}

Test(counts, the_table_names_region_device_and_vcpu, .timeout = 150)
{
    command_run(&result, 120,
                (const char *const[]){"run", "--cpu", "threads", "--vcpus", "2", "--reads", "100",
                                      "--count-accesses", NULL});
    cr_assert_eq(result.status, 0, "%s", result.err);
    cr_assert_not_null(strstr(result.out, "accesses by region and vCPU"), "%s", result.out);
    cr_assert_not_null(strstr(result.out, "  hpet                  hpet                all"), "%s",
                       result.out);
}

Test(counts, nothing_is_counted_unless_asked_for, .timeout = 150)
{
    json_t *report = run_json((const char *const[]){"run", "--cpu", "threads", "--vcpus", "2",
                                                    "--reads", "100", "--json", NULL});

    cr_assert_null(json_object_get(report, "accesses"));
    json_decref(report);
}

Test(counts, a_guests_accesses_are_counted_exactly, .timeout = 150)
{
    static struct image image;

    if (!have_kvm()) {
        cr_skip_test("/dev/kvm can't be opened here");
    }
    image_multiboot_elf(&image, payload_rep_out, sizeof(payload_rep_out));
    const char *kernel = temporary_file("kernel", image.bytes, sizeof(image.bytes));
    json_t *report = run_json((const char *const[]){"run", "--kernel", kernel, "--vcpus", "2",
                                                    "--count-accesses", "--json", NULL});

    cr_assert_eq(result.status, 1, "%s", result.err);
    cr_assert_eq(counted(report, "uart16550", 0, "writes"), 11);
    cr_assert_eq(counted(report, "uart16550", 1, "writes"), 0);
    cr_assert_eq(counted(report, "debug-exit", 0, "writes"), 1);
    json_decref(report);
}
