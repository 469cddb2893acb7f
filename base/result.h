/* SPDX-License-Identifier: MIT */
/*
 * Results and error text.
 *
 * Every busbar function that can fail returns BB_OK (0) or one of the negative codes below.
 * Functions that take an embedder's input also take a `struct bb_error *` (NULL is allowed): on
 * failure it receives the code and a sentence that says which value was wrong and what would be
 * right. On success it is untouched. A `struct bb_error` is plain memory of the caller's; nothing
 * is kept per thread or per process.
 */
#ifndef BUSBAR_BASE_RESULT_H
#define BUSBAR_BASE_RESULT_H

#include "api.h"

BB_BEGIN_DECLS

enum bb_result {
    BB_OK = 0,
    BB_E_INVAL = -1,   /* an argument is malformed: NULL, a bad flag, a bad enum value */
    BB_E_RANGE = -2,   /* a number is outside its range, or an address range wraps */
    BB_E_NOMEM = -3,   /* the allocator gave nothing */
    BB_E_EXIST = -4,   /* something is already there: overlap, name taken, added twice */
    BB_E_NOENT = -5,   /* not there: not mapped, not attached */
    BB_E_STATE = -6,   /* the object is in a state in which this can't be done */
    BB_E_CONTEXT = -7, /* would block, and was called inside a callback, section, pin or lock */
    BB_E_TIMEOUT = -8, /* the deadline passed; whatever had begun was undone */
    BB_E_LIMIT = -9,   /* a documented bound was reached: queue full, budget spent, table full */
    BB_E_DECODE = -10, /* an access met no region */
    BB_E_DEVICE = -11, /* an access was refused: by the device, by its rules, by the chain's */
    BB_E_UNSUPPORTED = -12, /* this build or this host can't do it */
    BB_E_SYSTEM = -13,      /* the operating system refused; the text carries errno's */
};

enum { BB_ERROR_TEXT_BYTES = 256 };

struct bb_error {
    int code;                       /* the result code that the function returned */
    char text[BB_ERROR_TEXT_BYTES]; /* always terminated; truncated where it does not fit */
};

/*
 * The name of a result code as written in source, "BB_E_RANGE".
 * Returns a constant string, "BB_E_?" for a number that is no code.
 * Threads: any; wait-free.
 */
BB_API const char *bb_result_name(int code);

/*
 * One short English phrase for a result code, without a full stop.
 * Returns a constant string, never NULL. Threads: any; wait-free.
 */
BB_API const char *bb_result_text(int code);

/*
 * Fills `err` (if not NULL) with `code` and the formatted text.
 * Returns `code`, so that a caller can write `return bb_error_set(err, BB_E_RANGE, ...)`.
 * Threads: any; `err` must not be shared.
 */
BB_API int bb_error_set(struct bb_error *err, int code, const char *fmt, ...) BB_PRINTF(3, 4);

BB_END_DECLS

#endif
