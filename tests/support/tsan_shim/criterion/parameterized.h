/* SPDX-License-Identifier: MIT */
/* Criterion keeps these macros in a header of their own; the stand-in has them in its only one. */
#include "criterion.h"
