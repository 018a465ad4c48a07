/* Chooses the CPU variant: from the caller, SLUICE_CPU, or the CPU's features.
 *
 * Owns the process-wide pointer to the variant. Set at start; read by any thread. */
#include "kernels/cpu/variant.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic(const krn_variant *) current;

static bool has_avx2(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool has_avx512(void)
{
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

static const krn_variant *best(void)
{
#if defined(__x86_64__)
    if (has_avx512())
        return &krn_variant_avx512;
    if (has_avx2())
        return &krn_variant_avx2;
#endif
    return &krn_variant_ref;
}

sl_status krn_cpu_select(const char *variant, sl_err *err)
{
    if (variant == NULL)
        variant = getenv("SLUICE_CPU");
    const krn_variant *chosen = NULL;
    if (variant == NULL || variant[0] == '\0')
        chosen = best();
    else if (strcmp(variant, "ref") == 0)
        chosen = &krn_variant_ref;
#if defined(__x86_64__)
    else if (strcmp(variant, "avx2") == 0)
        chosen = has_avx2() ? &krn_variant_avx2 : NULL;
    else if (strcmp(variant, "avx512") == 0)
        chosen = has_avx512() ? &krn_variant_avx512 : NULL;
#else
    else if (strcmp(variant, "avx2") == 0 || strcmp(variant, "avx512") == 0)
        chosen = NULL;
#endif
    else
        return sl_fail(err, SL_INVALID, "CPU variant \"%s\": use ref, avx2 or avx512", variant);
    if (chosen == NULL)
        return sl_fail(err, SL_UNSUPPORTED, "this CPU lacks what variant %s needs", variant);
    atomic_store_explicit(&current, chosen, memory_order_release);
    return sl_ok();
}

const krn_variant *krn_variant_current(void)
{
    const krn_variant *variant = atomic_load_explicit(&current, memory_order_acquire);
    if (variant == NULL) {
        /* A wrong SLUICE_CPU is reported by programs that call krn_cpu_select; here the plain one
         * is always right. */
        if (!sl_is_ok(krn_cpu_select(NULL, NULL)))
            atomic_store_explicit(&current, &krn_variant_ref, memory_order_release);
        variant = atomic_load_explicit(&current, memory_order_acquire);
    }
    return variant;
}

const char *krn_cpu_variant(void)
{
    return krn_variant_current()->name;
}
