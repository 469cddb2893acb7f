/* SPDX-License-Identifier: MIT */
/*
 * What every public header needs: symbol visibility, C linkage, and the integer types that name
 * what they hold. Public header; holds no state.
 */
#ifndef BUSBAR_BASE_API_H
#define BUSBAR_BASE_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BB_API __attribute__((visibility("default")))
#define BB_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

#ifdef __cplusplus
#define BB_BEGIN_DECLS extern "C" {
#define BB_END_DECLS }
#else
#define BB_BEGIN_DECLS
#define BB_END_DECLS
#endif

/* A guest-physical address (or a port number in a port I/O space). Never cast to a pointer. */
typedef uint64_t bb_gpa_t;

/* A virtual or host time in nanoseconds. Signed differences of two are meaningful to +-292 years.
 */
typedef uint64_t bb_ns_t;

#endif
