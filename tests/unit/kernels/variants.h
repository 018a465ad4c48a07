/* Runs a block once for every CPU variant; says which ones this CPU lacks. */
#ifndef TESTS_UNIT_KERNELS_VARIANTS_H
#define TESTS_UNIT_KERNELS_VARIANTS_H

#include "kernels/kernels.h"

#include <stdio.h>

#define VARIANT_COUNT 3

static inline bool use_variant(int index)
{
    static const char *const names[VARIANT_COUNT] = {"ref", "avx2", "avx512"};
    static bool told[VARIANT_COUNT];
    sl_err err;
    if (sl_is_ok(krn_cpu_select(names[index], &err)))
        return true;
    if (!told[index])
        fprintf(stderr, "SKIPPED: variant %s: %s\n", names[index], err.text);
    told[index] = true;
    return false;
}

#define EACH_VARIANT                           \
    for (int v_ = 0; v_ < VARIANT_COUNT; v_++) \
        if (use_variant(v_))

#endif
