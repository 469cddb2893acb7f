/* SPDX-License-Identifier: MIT */
/* Results and error text: every code has its own name and phrase, and text is always terminated. */
#include <criterion/criterion.h>
#include <string.h>

#include "../../base/result.h"

static const int all_codes[] = {
    BB_OK,        BB_E_INVAL,   BB_E_RANGE, BB_E_NOMEM,  BB_E_EXIST,  BB_E_NOENT,       BB_E_STATE,
    BB_E_CONTEXT, BB_E_TIMEOUT, BB_E_LIMIT, BB_E_DECODE, BB_E_DEVICE, BB_E_UNSUPPORTED, BB_E_SYSTEM,
};
enum { CODES = sizeof(all_codes) / sizeof(all_codes[0]) };

Test(result, codes_are_consecutive_from_zero_down)
{
    for (int i = 0; i < CODES; i++) {
        cr_assert_eq(all_codes[i], -i);
    }
}

Test(result, every_code_has_a_name_and_a_phrase_of_its_own)
{
    for (int i = 0; i < CODES; i++) {
        cr_assert(strcmp(bb_result_name(all_codes[i]), "BB_E_?") != 0, "code %d has no name", -i);
        for (int j = 0; j < i; j++) {
            cr_assert(strcmp(bb_result_name(-i), bb_result_name(-j)) != 0);
            cr_assert(strcmp(bb_result_text(-i), bb_result_text(-j)) != 0);
        }
    }
}

Test(result, numbers_that_are_no_code_are_named_unknown)
{
    const int strangers[] = {1, -CODES, INT32_MAX, INT32_MIN, INT32_MIN + 1};
    for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++) {
        cr_assert_str_eq(bb_result_name(strangers[i]), "BB_E_?");
        cr_assert_str_eq(bb_result_text(strangers[i]), "unknown result code");
    }
}

Test(result, error_set_returns_its_code_with_and_without_a_place_for_text)
{
    struct bb_error err = {0};
    cr_assert_eq(bb_error_set(&err, BB_E_RANGE, "%d is past %d", 9, 8), BB_E_RANGE);
    cr_assert_eq(err.code, BB_E_RANGE);
    cr_assert_str_eq(err.text, "9 is past 8");
    cr_assert_eq(bb_error_set(NULL, BB_E_LIMIT, "%s", "nobody listens"), BB_E_LIMIT);
}

Test(result, text_that_does_not_fit_is_cut_and_terminated)
{
    struct {
        struct bb_error err;
        char guard;
    } box = {.guard = 'G'};
    char text[2 * BB_ERROR_TEXT_BYTES];

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    bb_error_set(&box.err, BB_E_INVAL, "%s", text);
    cr_assert_eq(strlen(box.err.text), BB_ERROR_TEXT_BYTES - 1);
    cr_assert_eq(box.guard, 'G');
}
