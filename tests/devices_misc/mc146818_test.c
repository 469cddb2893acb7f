/* SPDX-License-Identifier: MIT */
/* The real-time clock: formats, setting, update in progress, calendar, and what it keeps. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)

static uint8_t get(struct rig *rig, uint8_t index)
{
    outb(rig, 0x70, index);
    return inb(rig, 0x71);
}

static void set(struct rig *rig, uint8_t index, uint8_t value)
{
    outb(rig, 0x70, index);
    outb(rig, 0x71, value);
}

/* Year (with century), month, day, hours, minutes, seconds as read. */
static void expect_bcd(struct rig *rig, unsigned year, unsigned month, unsigned day, unsigned hours,
                       unsigned minutes, unsigned seconds)
{
    unsigned got[6] = {(unsigned)get(rig, 0x32) << 8 | get(rig, 9),
                       get(rig, 8),
                       get(rig, 7),
                       get(rig, 4),
                       get(rig, 2),
                       get(rig, 0)};
    unsigned want[6] = {year, month, day, hours, minutes, seconds};

    for (unsigned i = 0; i < 6; i++) {
        cr_assert_eq(got[i], want[i], "field %u: %#x, not %#x", i, got[i], want[i]);
    }
}

Test(mc146818, time_of_day_follows_the_clock_over_a_leap_day)
{
    struct rig *rig = set_up();

    expect_bcd(rig, 0x2024, 0x02, 0x28, 0x23, 0x59, 0x59);
    cr_assert_eq(get(rig, 6), 4, "a Wednesday");
    step_ns(rig, NS_PER_S);
    expect_bcd(rig, 0x2024, 0x02, 0x29, 0x00, 0x00, 0x00);
    step_ns(rig, 86400 * NS_PER_S);
    expect_bcd(rig, 0x2024, 0x03, 0x01, 0x00, 0x00, 0x00);
    cr_assert_eq(get(rig, 6), 6, "a Friday");
    tear_down(rig);
}

Test(mc146818, every_day_to_2099_is_the_c_librarys)
{
    struct rig *rig = set_up();
    int64_t now_s = BASE_UNIX_S;

    set(rig, 11, 0x06); /* binary, 24 hours */
    while (now_s < INT64_C(4102444799) - 5 * 86400 - 3661) {
        step_ns(rig, (5 * 86400 + 3661) * NS_PER_S);
        now_s += 5 * 86400 + 3661;
        time_t t = (time_t)now_s;
        struct tm tm;
        cr_assert_not_null(gmtime_r(&t, &tm));
        unsigned century = get(rig, 0x32);
        unsigned year = (century >> 4) * 1000 + (century & 15) * 100 + get(rig, 9);
        cr_assert_eq(year, (unsigned)tm.tm_year + 1900);
        cr_assert_eq(get(rig, 8), tm.tm_mon + 1);
        cr_assert_eq(get(rig, 7), tm.tm_mday);
        cr_assert_eq(get(rig, 6), tm.tm_wday + 1);
        cr_assert_eq(get(rig, 4), tm.tm_hour);
        cr_assert_eq(get(rig, 2), tm.tm_min);
        cr_assert_eq(get(rig, 0), tm.tm_sec);
    }
    tear_down(rig);
}

Test(mc146818, twelve_hour_format_marks_the_afternoon)
{
    struct rig *rig = set_up();

    set(rig, 11, 0x00);
    cr_assert_eq(get(rig, 4), 0x91, "11 p.m.");
    step_ns(rig, NS_PER_S);
    cr_assert_eq(get(rig, 4), 0x12, "midnight is 12 a.m.");
    step_ns(rig, 12 * 3600 * NS_PER_S);
    cr_assert_eq(get(rig, 4), 0x92, "noon is 12 p.m.");
    set(rig, 11, 0x04);
    cr_assert_eq(get(rig, 4), 0x8c);
    tear_down(rig);
}

Test(mc146818, update_in_progress_warns_before_each_second)
{
    struct rig *rig = set_up();

    step_ns(rig, NS_PER_S - 244001);
    cr_assert_eq(get(rig, 10), 0x26);
    step_ns(rig, 1);
    cr_assert_eq(get(rig, 10), 0xa6);
    step_ns(rig, 244000);
    cr_assert_eq(get(rig, 10), 0x26);
    set(rig, 11, 0x82);
    step_ns(rig, NS_PER_S - 1);
    cr_assert_eq(get(rig, 10), 0x26, "no updates while SET");
    tear_down(rig);
}

Test(mc146818, set_holds_the_bytes_and_starts_from_them)
{
    struct rig *rig = set_up();

    set(rig, 11, 0x82);
    step_ns(rig, 100 * NS_PER_S);
    expect_bcd(rig, 0x2024, 0x02, 0x28, 0x23, 0x59, 0x59);
    set(rig, 0, 0x30);
    set(rig, 2, 0x15);
    set(rig, 4, 0x08);
    set(rig, 7, 0x31);
    set(rig, 8, 0x12);
    set(rig, 9, 0x99);
    set(rig, 0x32, 0x19);
    expect_bcd(rig, 0x1999, 0x12, 0x31, 0x08, 0x15, 0x30);
    set(rig, 11, 0x02);
    expect_bcd(rig, 0x1999, 0x12, 0x31, 0x08, 0x15, 0x30);
    step_ns(rig, (15 * 3600 + 44 * 60 + 30) * NS_PER_S);
    expect_bcd(rig, 0x2000, 0x01, 0x01, 0x00, 0x00, 0x00);
    tear_down(rig);
}

Test(mc146818, one_byte_can_be_set_while_the_clock_runs)
{
    struct rig *rig = set_up();

    step_ns(rig, NS_PER_S / 4 * 3);
    set(rig, 4, 0x05);
    expect_bcd(rig, 0x2024, 0x02, 0x28, 0x05, 0x59, 0x59);
    step_ns(rig, NS_PER_S / 4); /* the second that had begun goes on */
    expect_bcd(rig, 0x2024, 0x02, 0x28, 0x06, 0x00, 0x00);
    tear_down(rig);
}

Test(mc146818, impossible_dates_become_the_nearest)
{
    struct rig *rig = set_up();

    set(rig, 11, 0x82);
    set(rig, 0, 0xff);
    set(rig, 2, 0x99);
    set(rig, 4, 0x77);
    set(rig, 7, 0x31);
    set(rig, 8, 0x02);
    set(rig, 9, 0x23);
    set(rig, 11, 0x02);
    expect_bcd(rig, 0x2023, 0x02, 0x28, 0x23, 0x59, 0x59);
    tear_down(rig);
}

Test(mc146818, registers_c_and_d_are_read_only_and_bytes_are_kept)
{
    struct rig *rig = set_up();

    set(rig, 12, 0xff);
    set(rig, 13, 0x00);
    cr_assert_eq(get(rig, 12), 0x00);
    cr_assert_eq(get(rig, 13), 0x80, "valid RAM and time");
    for (unsigned i = 14; i < 128; i++) {
        if (i != 0x32) {
            set(rig, (uint8_t)i, (uint8_t)(i * 7));
        }
    }
    for (unsigned i = 14; i < 128; i++) {
        if (i != 0x32) {
            cr_assert_eq(get(rig, (uint8_t)i), (uint8_t)(i * 7));
        }
    }
    set(rig, 5, 0x12);
    cr_assert_eq(get(rig, 5), 0x12, "an alarm byte");
    cr_assert_eq(get(rig, 0x80 | 13), 0x80, "the NMI bit is no address");
    cr_assert_eq(bb_mc146818_set_byte(rig->ctx, rig->rtc, 0x34, 0x5a), BB_OK);
    cr_assert_eq(get(rig, 0x34), 0x5a);
    cr_assert_eq(bb_mc146818_set_byte(rig->ctx, rig->rtc, 13, 0), BB_E_RANGE);
    cr_assert_eq(bb_mc146818_set_byte(rig->ctx, rig->rtc, 128, 0), BB_E_RANGE);
    tear_down(rig);
}

Test(mc146818, a_base_outside_its_years_is_refused)
{
    struct rig *rig = set_up();
    struct bb_mc146818 *rtc = NULL;
    struct bb_error err = {0};
    const int64_t bad[] = {-1, INT64_C(4102444800), INT64_MAX};

    for (size_t i = 0; i < BB_ARRAY_LEN(bad); i++) {
        struct bb_mc146818_config config = {.base_unix_s = bad[i]};
        cr_assert_eq(bb_mc146818_create(rig->ctx, &config, &rtc, &err), BB_E_RANGE);
        cr_assert_null(rtc);
    }
    tear_down(rig);
}
