/* Chooses the CPU variant: from the caller, SLUICE_CPU, or the CPU's features.
 *
 * Owns the process-wide pointer to the variant. Set at start; read by any thread. */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/variant.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic(const krn_variant *) current;

typedef struct choice {
    const char *name;
    const krn_variant *variant; /* NULL: not built for this machine */
    bool (*usable)(void);
} choice;

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* And f32 subnormals cost nothing. */
static bool has_zen(void)
{
    return has_avx2() && __builtin_cpu_is("amd");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* And products of pairs, at the rate of others (Intel's have half of it), in our order. */
static bool has_zen4(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd") &&
           krn_pairs_in_order();
}

static bool has_amx(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vbmi") && krn_amx_usable();
}

#define VARIANT(name) &krn_variant_##name
#else
#define VARIANT(name) NULL
#define has_avx2      always
#define has_zen       always
#define has_avx512    always
#define has_zen4      always
#define has_amx       always
#endif

/* The best first. */
static const choice CHOICES[] = {
    {"amx", VARIANT(amx), has_amx},
    {"zen4", VARIANT(zen4), has_zen4},
    {"avx512", VARIANT(avx512), has_avx512},
    {"zen", VARIANT(zen), has_zen},
    {"avx2", VARIANT(avx2), has_avx2},
    {"ref", &krn_variant_ref, always},
    {"amx-ref", &krn_variant_amx_ref, always},
};
#define CHOICE_COUNT (sizeof(CHOICES) / sizeof(CHOICES[0]))

static bool usable(const choice *c)
{
    return c->variant != NULL && c->usable();
}

/* numerics_id: NULL = any. */
static const choice *best(const char *numerics_id)
{
    const choice *c = CHOICES;
    while (!usable(c) || (numerics_id != NULL && strcmp(c->variant->numerics_id, numerics_id) != 0))
        c++; /* the plain ones end it */
    return c;
}

/* A variant, or the best one of a numerics id. */
static const choice *named(const char *name)
{
    if (strcmp(name, KRN_NUMERICS_F32) == 0 || strcmp(name, KRN_NUMERICS_AMX) == 0)
        return best(name);
    for (size_t i = 0; i < CHOICE_COUNT; i++)
        if (strcmp(name, CHOICES[i].name) == 0)
            return &CHOICES[i];
    return NULL;
}

sl_status krn_cpu_select(const char *variant, sl_err *err)
{
    if (variant == NULL)
        variant = getenv("SLUICE_CPU");
    bool any = variant == NULL || variant[0] == '\0';
    const choice *chosen = any ? best(NULL) : named(variant);
    if (chosen == NULL)
        return sl_fail(err, SL_INVALID,
                       "CPU variant \"%s\": use amx, zen4, avx512, zen, avx2, ref, amx-ref or the "
                       "numerics id " KRN_NUMERICS_F32 " or " KRN_NUMERICS_AMX,
                       variant);
    if (!usable(chosen))
        return sl_fail(err, SL_UNSUPPORTED, "this CPU or its kernel lacks what variant %s needs",
                       variant);
    atomic_store_explicit(&current, chosen->variant, memory_order_release);
    return sl_ok();
}

sl_status krn_cpu_ready(sl_err *err)
{
    if (atomic_load_explicit(&current, memory_order_acquire) != NULL)
        return sl_ok();
    return krn_cpu_select(NULL, err);
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

const char *krn_numerics_id(void)
{
    return krn_variant_current()->numerics_id;
}
