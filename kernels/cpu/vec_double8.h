/* Vectors of 8 doubles (AVX-512): d8_*, as d4_* in vec_double.h; and AVX-512's target for all. */
#ifndef KERNELS_CPU_VEC_DOUBLE8_H
#define KERNELS_CPU_VEC_DOUBLE8_H

#if defined(__x86_64__)

#define KRN_VEC_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")))
#include "kernels/cpu/vec_double.h"

typedef __m512d d8_f;

VEC_INLINE d8_f d8_set1(double x)
{
    return _mm512_set1_pd(x);
}
VEC_INLINE d8_f d8_add(d8_f a, d8_f b)
{
    return _mm512_add_pd(a, b);
}
VEC_INLINE d8_f d8_mul(d8_f a, d8_f b)
{
    return _mm512_mul_pd(a, b);
}
VEC_INLINE d8_f d8_div(d8_f a, d8_f b)
{
    return _mm512_div_pd(a, b);
}
VEC_INLINE void d8_store(double *p, d8_f x)
{
    _mm512_storeu_pd(p, x);
}
VEC_INLINE d8_f d8_low(__m512 x)
{
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}
VEC_INLINE d8_f d8_high(__m512 x)
{
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}
VEC_INLINE __m512 d8_narrow(d8_f low, d8_f high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high),
                              1);
}
VEC_INLINE bool d8_near_middle(d8_f x)
{
    __m512i rest = _mm512_and_si512(_mm512_castpd_si512(x), _mm512_set1_epi64(0x1FFFFFFF));
    rest = _mm512_sub_epi64(rest, _mm512_set1_epi64(0x10000000 - 4));
    __mmask8 near = _mm512_cmple_epu64_mask(rest, _mm512_set1_epi64(8));
    __mmask8 tiny = _mm512_cmp_pd_mask(x, _mm512_set1_pd(0x1p-126), _CMP_LT_OQ);
    return (near | (tiny & _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ))) != 0;
}
/* As d4_exp. */
VEC_INLINE d8_f d8_exp(d8_f x)
{
    x = _mm512_max_pd(_mm512_set1_pd(-200.0), x);
    x = _mm512_min_pd(_mm512_set1_pd(200.0), x);
    d8_f k = _mm512_roundscale_pd(_mm512_mul_pd(x, _mm512_set1_pd(0x1.71547652b82fep0)), 0);
    d8_f r = _mm512_fnmadd_pd(k, _mm512_set1_pd(0x1.62e42fefa39efp-1), x);
    r = _mm512_fnmadd_pd(k, _mm512_set1_pd(0x1.abc9e3b39803fp-56), r);
    d8_f p = _mm512_set1_pd(krn_exp_terms[0]);
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++)
        p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(krn_exp_terms[i]));
    p = _mm512_fmadd_pd(_mm512_mul_pd(r, r), p, r);
    p = _mm512_add_pd(p, _mm512_set1_pd(1.0));
    __m512i bits = _mm512_castpd_si512(_mm512_add_pd(k, _mm512_set1_pd(0x1.8p52)));
    __m512i scale = _mm512_slli_epi64(_mm512_add_epi64(bits, _mm512_set1_epi64(1023)), 52);
    return _mm512_mul_pd(p, _mm512_castsi512_pd(scale));
}

#endif
#endif
