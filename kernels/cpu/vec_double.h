/* Vectors of 4 doubles (AVX2): d4_*, as d8_* in vec_double8.h; and what all vector headers need.
 *
 * KRN_VEC_TARGET is the target attribute of the functions that use vectors; vec_double8.h sets it
 * for AVX-512. */
#ifndef KERNELS_CPU_VEC_DOUBLE_H
#define KERNELS_CPU_VEC_DOUBLE_H

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdbool.h>

#ifndef KRN_VEC_TARGET
#define KRN_VEC_TARGET __attribute__((target("avx2,fma")))
#endif
#define VEC_INLINE static inline __attribute__((always_inline, unused)) KRN_VEC_TARGET

typedef __m256d d4_f;

/* 1 / 13! to 1 / 2!. */
static const double krn_exp_terms[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0,
                                       1.0 / 3628800.0,    1.0 / 362880.0,    1.0 / 40320.0,
                                       1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,
                                       1.0 / 24.0,         1.0 / 6.0,         0.5};

/* exp of 4 doubles that are floats in value, accurate enough that rounding the result to f32 is
 * rounding the exact exp (tests/unit/kernels/exp_test.c). NaN stays NaN. */
VEC_INLINE d4_f d4_exp(d4_f x)
{
    /* Limits beyond f32's range of results; the second operand survives a NaN. */
    x = _mm256_max_pd(_mm256_set1_pd(-200.0), x);
    x = _mm256_min_pd(_mm256_set1_pd(200.0), x);
    d4_f k = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(0x1.71547652b82fep0)),
                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    d4_f r = _mm256_fnmadd_pd(k, _mm256_set1_pd(0x1.62e42fefa39efp-1), x);
    r = _mm256_fnmadd_pd(k, _mm256_set1_pd(0x1.abc9e3b39803fp-56), r);
    d4_f p = _mm256_set1_pd(krn_exp_terms[0]);
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++)
        p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(krn_exp_terms[i]));
    p = _mm256_fmadd_pd(_mm256_mul_pd(r, r), p, r);
    p = _mm256_add_pd(p, _mm256_set1_pd(1.0));
    /* k as a double plus 1.5 * 2^52 holds k in its low bits. */
    __m256i bits = _mm256_castpd_si256(_mm256_add_pd(k, _mm256_set1_pd(0x1.8p52)));
    __m256i scale = _mm256_slli_epi64(_mm256_add_epi64(bits, _mm256_set1_epi64x(1023)), 52);
    return _mm256_mul_pd(p, _mm256_castsi256_pd(scale));
}
VEC_INLINE d4_f d4_set1(double x)
{
    return _mm256_set1_pd(x);
}
VEC_INLINE d4_f d4_add(d4_f a, d4_f b)
{
    return _mm256_add_pd(a, b);
}
VEC_INLINE d4_f d4_mul(d4_f a, d4_f b)
{
    return _mm256_mul_pd(a, b);
}
VEC_INLINE d4_f d4_div(d4_f a, d4_f b)
{
    return _mm256_div_pd(a, b);
}
VEC_INLINE void d4_store(double *p, d4_f x)
{
    _mm256_storeu_pd(p, x);
}
VEC_INLINE d4_f d4_low(__m256 x)
{
    return _mm256_cvtps_pd(_mm256_castps256_ps128(x));
}
VEC_INLINE d4_f d4_high(__m256 x)
{
    return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}
VEC_INLINE __m256 d4_narrow(d4_f low, d4_f high)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high),
                                1);
}
/* Is one of them (none negative) within 4 steps of the middle between two f32, or f32-subnormal? */
VEC_INLINE bool d4_near_middle(d4_f x)
{
    __m256i rest = _mm256_and_si256(_mm256_castpd_si256(x), _mm256_set1_epi64x(0x1FFFFFFF));
    rest = _mm256_sub_epi64(rest, _mm256_set1_epi64x(0x10000000));
    __m256i near = _mm256_and_si256(_mm256_cmpgt_epi64(rest, _mm256_set1_epi64x(-5)),
                                    _mm256_cmpgt_epi64(_mm256_set1_epi64x(5), rest));
    d4_f tiny = _mm256_and_pd(_mm256_cmp_pd(x, _mm256_set1_pd(0x1p-126), _CMP_LT_OQ),
                              _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ));
    return _mm256_movemask_pd(_mm256_or_pd(tiny, _mm256_castsi256_pd(near))) != 0;
}

#endif
#endif
