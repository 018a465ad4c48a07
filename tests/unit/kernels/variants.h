/* Runs a block once for every CPU variant of a numerics id (NULL: of any); says which ones this CPU
 * lacks. */
#ifndef TESTS_UNIT_KERNELS_VARIANTS_H
#define TESTS_UNIT_KERNELS_VARIANTS_H

#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

static const char *const variant_names[] = {"ref",  "avx2",    "zen", "avx512",
                                            "zen4", "amx-ref", "amx"};
#define VARIANT_COUNT ((int)(sizeof(variant_names) / sizeof(variant_names[0])))

static inline bool use_variant(int index, const char *numerics_id)
{
    static bool told[VARIANT_COUNT];
    sl_err err;
    if (sl_is_ok(krn_cpu_select(variant_names[index], &err)))
        return numerics_id == NULL || strcmp(krn_numerics_id(), numerics_id) == 0;
    if (!told[index])
        fprintf(stderr, "SKIPPED: variant %s: %s\n", variant_names[index], err.text);
    told[index] = true;
    return false;
}

#define EACH_VARIANT_OF(id)                    \
    for (int v_ = 0; v_ < VARIANT_COUNT; v_++) \
        if (use_variant(v_, id))
#define EACH_VARIANT     EACH_VARIANT_OF(KRN_NUMERICS_F32)
#define EACH_AMX_VARIANT EACH_VARIANT_OF(KRN_NUMERICS_AMX)

#endif
