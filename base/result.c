/* SPDX-License-Identifier: MIT */
/* Result names, phrases and error text; see result.h. */
#include "result.h"

#include <stdarg.h>
#include <stdio.h>

struct result_row {
    const char *name;
    const char *text;
};

/* Indexed by the negated code. */
static const struct result_row rows[] = {
    [-BB_OK] = {"BB_OK", "success"},
    [-BB_E_INVAL] = {"BB_E_INVAL", "malformed argument"},
    [-BB_E_RANGE] = {"BB_E_RANGE", "value out of range"},
    [-BB_E_NOMEM] = {"BB_E_NOMEM", "out of memory"},
    [-BB_E_EXIST] = {"BB_E_EXIST", "already exists"},
    [-BB_E_NOENT] = {"BB_E_NOENT", "does not exist"},
    [-BB_E_STATE] = {"BB_E_STATE", "not possible in this state"},
    [-BB_E_CONTEXT] = {"BB_E_CONTEXT", "would block inside a callback, section, pin or lock"},
    [-BB_E_TIMEOUT] = {"BB_E_TIMEOUT", "deadline passed"},
    [-BB_E_LIMIT] = {"BB_E_LIMIT", "documented bound reached"},
    [-BB_E_DECODE] = {"BB_E_DECODE", "no region at this address"},
    [-BB_E_DEVICE] = {"BB_E_DEVICE", "access refused"},
    [-BB_E_UNSUPPORTED] = {"BB_E_UNSUPPORTED", "not supported by this build or host"},
    [-BB_E_SYSTEM] = {"BB_E_SYSTEM", "the operating system refused"},
};

static const struct result_row *find_row(int code)
{
    static const struct result_row unknown = {"BB_E_?", "unknown result code"};
    if (code > 0 || code <= -(int)(sizeof(rows) / sizeof(rows[0]))) {
        return &unknown;
    }
    return &rows[-code];
}

const char *bb_result_name(int code)
{
    return find_row(code)->name;
}

const char *bb_result_text(int code)
{
    return find_row(code)->text;
}

int bb_error_set(struct bb_error *err, int code, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        err->code = code;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
    }
    return code;
}
