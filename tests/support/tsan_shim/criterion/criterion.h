/* SPDX-License-Identifier: MIT */
/*
 * As much of Criterion's interface as busbar's suites use, over a runner that works under
 * ThreadSanitizer (Criterion itself can't start there: it wants a memory arena at an address that
 * the sanitizer occupies). The same test sources compile with either; this directory comes first
 * on the include path of a ThreadSanitizer build and of no other.
 *
 * One process a test, forked by runner.c. An assertion that fails prints where and ends that
 * process. A race that the sanitizer reports ends it with status 66, which is a failure, or what
 * the test wanted (.exit_code = 66).
 */
#ifndef BUSBAR_TESTS_TSAN_SHIM_CRITERION_H
#define BUSBAR_TESTS_TSAN_SHIM_CRITERION_H

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

struct shim_options {
    void (*init)(void);
    void (*fini)(void);
    int signal;
    int exit_code;
    double timeout;
    const char *description;
};

struct shim_params {
    size_t size;
    char *items;
    size_t length;
};

struct shim_test {
    const char *suite;
    const char *name;
    void (*plain)(void);
    void (*with_param)(void *param);
    struct shim_params (*params)(void);
    struct shim_options options;
    struct shim_test *next;
};

struct shim_suite {
    const char *name;
    struct shim_options options;
    struct shim_suite *next;
};

void shim_add_test(struct shim_test *test);
void shim_add_suite(struct shim_suite *suite);
/* Ends the test unless `holds`; `fatal` false lets it go on and fail at its end. */
void shim_check(bool holds, bool fatal, const char *file, int line, const char *expression,
                const char *format, ...) __attribute__((format(printf, 6, 7)));
void shim_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void shim_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif

#define SHIM_TEST_(suite_, name_, field_, function_, params_, ...)                                 \
    __attribute__((constructor)) static void suite_##_##name_##_shim_register(void)                \
    {                                                                                              \
        static struct shim_test test = {.suite = #suite_,                                          \
                                        .name = #name_,                                            \
                                        .field_ = function_,                                       \
                                        .params = params_,                                         \
                                        .options = {__VA_ARGS__}};                                 \
        shim_add_test(&test);                                                                      \
    }

#define Test(suite_, name_, ...)                                                                   \
    static void suite_##_##name_##_shim_body(void);                                                \
    SHIM_TEST_(suite_, name_, plain, suite_##_##name_##_shim_body, NULL, __VA_ARGS__)              \
    static void suite_##_##name_##_shim_body(void)

#define TestSuite(suite_, ...)                                                                     \
    __attribute__((constructor)) static void suite_##_shim_register_suite(void)                    \
    {                                                                                              \
        static struct shim_suite suite = {.name = #suite_, .options = {__VA_ARGS__}};              \
        shim_add_suite(&suite);                                                                    \
    }                                                                                              \
    struct shim_swallow_semicolon_

#define ParameterizedTestParameters(suite_, name_)                                                 \
    static struct shim_params suite_##_##name_##_shim_params(void)

#define cr_make_param_array(type_, array_, length_, ...)                                           \
    ((struct shim_params){sizeof(type_), (char *)(array_), (length_)})

#define ParameterizedTest(param_, suite_, name_, ...)                                              \
    static void suite_##_##name_##_shim_body(param_);                                              \
    static void suite_##_##name_##_shim_call(void *param)                                          \
    {                                                                                              \
        suite_##_##name_##_shim_body(param);                                                       \
    }                                                                                              \
    SHIM_TEST_(suite_, name_, with_param, suite_##_##name_##_shim_call,                            \
               suite_##_##name_##_shim_params, __VA_ARGS__)                                        \
    static void suite_##_##name_##_shim_body(param_)

/* The space keeps an absent message from being an empty format. */
#define SHIM_CHECK_(fatal_, holds_, text_, ...)                                                    \
    shim_check((holds_), (fatal_), __FILE__, __LINE__, (text_), " " __VA_ARGS__)

#define cr_assert(c, ...) SHIM_CHECK_(true, !!(c), #c, __VA_ARGS__)
#define cr_assert_not(c, ...) SHIM_CHECK_(true, !(c), "!(" #c ")", __VA_ARGS__)
#define cr_assert_eq(a, b, ...) SHIM_CHECK_(true, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) SHIM_CHECK_(true, (a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) SHIM_CHECK_(true, (a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) SHIM_CHECK_(true, (a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) SHIM_CHECK_(true, (a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) SHIM_CHECK_(true, (a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(p, ...) SHIM_CHECK_(true, (p) == NULL, #p " == NULL", __VA_ARGS__)
#define cr_assert_not_null(p, ...) SHIM_CHECK_(true, (p) != NULL, #p " != NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)                                                                \
    SHIM_CHECK_(true, strcmp((a), (b)) == 0, #a " reads " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)                                                               \
    SHIM_CHECK_(true, strcmp((a), (b)) != 0, #a " differs from " #b, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...)                                                             \
    SHIM_CHECK_(true, memcmp((a), (b), (n)) == 0, #a " equals " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...)                                                           \
    SHIM_CHECK_(true, fabs((double)(a) - (double)(b)) <= (double)(e), #a " is about " #b,          \
                __VA_ARGS__)
#define cr_assert_fail(...) SHIM_CHECK_(true, false, "reached", __VA_ARGS__)
#define cr_fatal(...) cr_assert_fail(__VA_ARGS__)

#define cr_expect(c, ...) SHIM_CHECK_(false, !!(c), #c, __VA_ARGS__)
#define cr_expect_eq(a, b, ...) SHIM_CHECK_(false, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...) SHIM_CHECK_(false, (a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)                                                                \
    SHIM_CHECK_(false, strcmp((a), (b)) == 0, #a " reads " #b, __VA_ARGS__)
#define cr_fail(...) SHIM_CHECK_(false, false, "reached", __VA_ARGS__)

#define cr_skip_test(...) shim_skip(" " __VA_ARGS__)
#define cr_skip(...) shim_skip(" " __VA_ARGS__)
#define cr_log_info(...) shim_log(__VA_ARGS__)
#define cr_log_warn(...) shim_log(__VA_ARGS__)
#define cr_log_error(...) shim_log(__VA_ARGS__)

#endif
