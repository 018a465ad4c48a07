/* exp in vectors of doubles, and what all vector headers need.
 *
 * KRN_VEC_TARGET is the target attribute of the functions that use vectors; vec16.h sets it for
 * AVX-512. */
#ifndef KERNELS_CPU_VEC_EXP_H
#define KERNELS_CPU_VEC_EXP_H

#if defined(__x86_64__)

#include <immintrin.h>

#ifndef KRN_VEC_TARGET
#define KRN_VEC_TARGET __attribute__((target("avx2,fma")))
#endif
#define VEC_INLINE static inline __attribute__((always_inline, unused)) KRN_VEC_TARGET

/* exp of 4 doubles that are floats in value, accurate enough that rounding the result to f32 is
 * rounding the exact exp (tests/unit/kernels/exp_test.c). NaN stays NaN. */
VEC_INLINE __m256d v4_exp(__m256d x)
{
    /* Limits beyond f32's range of results; the second operand survives a NaN. */
    x = _mm256_max_pd(_mm256_set1_pd(-200.0), x);
    x = _mm256_min_pd(_mm256_set1_pd(200.0), x);
    __m256d k = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(0x1.71547652b82fep0)),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256d r = _mm256_fnmadd_pd(k, _mm256_set1_pd(0x1.62e42fefa39efp-1), x);
    r = _mm256_fnmadd_pd(k, _mm256_set1_pd(0x1.abc9e3b39803fp-56), r);
    static const double terms[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0,
                                   1.0 / 3628800.0,    1.0 / 362880.0,    1.0 / 40320.0,
                                   1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,
                                   1.0 / 24.0,         1.0 / 6.0,         0.5};
    __m256d p = _mm256_set1_pd(terms[0]);
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++)
        p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(terms[i]));
    p = _mm256_fmadd_pd(_mm256_mul_pd(r, r), p, r);
    p = _mm256_add_pd(p, _mm256_set1_pd(1.0));
    /* k as a double plus 1.5 * 2^52 holds k in its low bits. */
    __m256i bits = _mm256_castpd_si256(_mm256_add_pd(k, _mm256_set1_pd(0x1.8p52)));
    __m256i scale = _mm256_slli_epi64(_mm256_add_epi64(bits, _mm256_set1_epi64x(1023)), 52);
    return _mm256_mul_pd(p, _mm256_castsi256_pd(scale));
}

#endif
#endif
