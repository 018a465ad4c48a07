/* Vectors of 8 (AVX2) and 16 (AVX-512) f32, one name for each operation.
 *
 * The including file defines KRN_VEC_TARGET (a target attribute) and, for 16 lanes, KRN_VEC_WIDE.
 * Functions are v8_* and v16_*; the *.inc.h templates choose by V(). Lanes are always independent
 * outputs: nothing here sums across lanes. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include "kernels/kernels.h"

#include <immintrin.h>

#define VEC_INLINE static inline __attribute__((always_inline, unused)) KRN_VEC_TARGET

/* ---- 8 lanes ---- */

typedef __m256 v8_f;
typedef __m256i v8_i;

VEC_INLINE v8_f v8_zero(void)
{
    return _mm256_setzero_ps();
}
VEC_INLINE v8_f v8_set1(float x)
{
    return _mm256_set1_ps(x);
}
VEC_INLINE v8_f v8_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
VEC_INLINE void v8_store(float *p, v8_f x)
{
    _mm256_storeu_ps(p, x);
}
VEC_INLINE v8_f v8_fma(v8_f a, v8_f b, v8_f c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VEC_INLINE v8_f v8_mul(v8_f a, v8_f b)
{
    return _mm256_mul_ps(a, b);
}
VEC_INLINE v8_f v8_add(v8_f a, v8_f b)
{
    return _mm256_add_ps(a, b);
}
VEC_INLINE v8_f v8_sub(v8_f a, v8_f b)
{
    return _mm256_sub_ps(a, b);
}
VEC_INLINE v8_f v8_div(v8_f a, v8_f b)
{
    return _mm256_div_ps(a, b);
}
/* The second operand where they are unordered or equal. */
VEC_INLINE v8_f v8_max(v8_f a, v8_f b)
{
    return _mm256_max_ps(a, b);
}
VEC_INLINE v8_f v8_negate(v8_f a)
{
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}
/* 8 e4m3 codes, no NaN codes. */
VEC_INLINE v8_f v8_from_e4m3(const uint8_t *p)
{
    v8_i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    x = _mm256_and_si256(_mm256_slli_epi32(x, 20), _mm256_set1_epi32((int)0x87F00000));
    return _mm256_mul_ps(_mm256_castsi256_ps(x), _mm256_set1_ps(0x1p120f));
}
/* The code in byte `byte` (a constant) of each lane. */
VEC_INLINE v8_f v8_e4m3_of_byte(v8_i x, const int byte)
{
    x = _mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * byte), 4);
    x = _mm256_and_si256(x, _mm256_set1_epi32((int)0x87F00000));
    return _mm256_mul_ps(_mm256_castsi256_ps(x), _mm256_set1_ps(0x1p120f));
}
VEC_INLINE v8_f v8_from_bf16(const uint16_t *p)
{
    v8_i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
/* bf16 bits in the low halves of the lanes; quiet NaNs as krn_f32_to_bf16. */
VEC_INLINE v8_i v8_bf16_bits(v8_f v)
{
    v8_i x = _mm256_castps_si256(v);
    v8_i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    v8_i rounded = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    v8_i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    v8_i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
VEC_INLINE void v8_store_bf16(uint16_t *p, v8_f v)
{
    v8_i x = v8_bf16_bits(v);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128((__m128i *)p, packed);
}
VEC_INLINE v8_f v8_round_bf16(v8_f v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(v8_bf16_bits(v), 16));
}
/* e4m3 codes (nearest even, saturating) of finite values. */
VEC_INLINE void v8_store_e4m3(uint8_t *p, v8_f v)
{
    v8_i x = _mm256_castps_si256(v);
    v8_i size = _mm256_and_si256(x, _mm256_set1_epi32(0x7FFFFFFF));
    size = _mm256_min_epi32(size, _mm256_set1_epi32(0x43E00000));
    v8_i odd = _mm256_and_si256(_mm256_srli_epi32(size, 20), _mm256_set1_epi32(1));
    v8_i normal = _mm256_add_epi32(size, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFFF)));
    normal = _mm256_sub_epi32(_mm256_srli_epi32(normal, 20), _mm256_set1_epi32(960));
    v8_f shifted = _mm256_add_ps(_mm256_castsi256_ps(size), _mm256_set1_ps(0x1p14f));
    v8_i tiny = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x46800000));
    v8_i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3C800000), size);
    v8_i code = _mm256_blendv_epi8(normal, tiny, is_tiny);
    code =
        _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(x, 24), _mm256_set1_epi32(0x80)));
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
}

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
VEC_INLINE v8_f v8_exp(v8_f x)
{
    __m128 low = _mm256_cvtpd_ps(v4_exp(_mm256_cvtps_pd(_mm256_castps256_ps128(x))));
    __m128 high = _mm256_cvtpd_ps(v4_exp(_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
/* Rows become columns. */
VEC_INLINE void v8_transpose(v8_f x[8])
{
    v8_f a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

VEC_INLINE v8_i v8_load_words(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
VEC_INLINE void v8_transpose_words(v8_i x[8])
{
    v8_f f[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        f[i] = _mm256_castsi256_ps(x[i]);
    v8_transpose(f);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm256_castps_si256(f[i]);
}
VEC_INLINE v8_i v8_zero_words(void)
{
    return _mm256_setzero_si256();
}
/* counts + 1 where x >= limit. */
VEC_INLINE v8_i v8_count_ge(v8_i counts, v8_f x, v8_f limit)
{
    return _mm256_sub_epi32(counts, _mm256_castps_si256(_mm256_cmp_ps(x, limit, _CMP_GE_OQ)));
}
VEC_INLINE uint32_t v8_ge_mask(v8_f x, v8_f limit)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ));
}
VEC_INLINE uint32_t v8_gt_mask(v8_f x, v8_f limit)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GT_OQ));
}
VEC_INLINE uint32_t v8_nan_mask(v8_f x)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
/* Stores base + i for the lanes of mask, ascending; returns how many. */
VEC_INLINE uint32_t v8_store_lanes(uint32_t *p, uint32_t base, uint32_t mask)
{
    uint32_t count = 0;
    for (; mask != 0; mask &= mask - 1)
        p[count++] = base + (uint32_t)__builtin_ctz(mask);
    return count;
}
VEC_INLINE uint32_t v8_sum_words(v8_i x)
{
    uint32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lanes, x);
    for (int i = 0; i < 8; i++)
        sum += lanes[i];
    return sum;
}

#ifdef KRN_VEC_WIDE
/* ---- 16 lanes ---- */

typedef __m512 v16_f;
typedef __m512i v16_i;

VEC_INLINE v16_f v16_zero(void)
{
    return _mm512_setzero_ps();
}
VEC_INLINE v16_f v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE v16_f v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_INLINE void v16_store(float *p, v16_f x)
{
    _mm512_storeu_ps(p, x);
}
VEC_INLINE v16_f v16_fma(v16_f a, v16_f b, v16_f c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE v16_f v16_mul(v16_f a, v16_f b)
{
    return _mm512_mul_ps(a, b);
}
VEC_INLINE v16_f v16_add(v16_f a, v16_f b)
{
    return _mm512_add_ps(a, b);
}
VEC_INLINE v16_f v16_sub(v16_f a, v16_f b)
{
    return _mm512_sub_ps(a, b);
}
VEC_INLINE v16_f v16_div(v16_f a, v16_f b)
{
    return _mm512_div_ps(a, b);
}
VEC_INLINE v16_f v16_max(v16_f a, v16_f b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE v16_f v16_negate(v16_f a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
VEC_INLINE v16_f v16_from_e4m3(const uint8_t *p)
{
    v16_i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    x = _mm512_and_si512(_mm512_slli_epi32(x, 20), _mm512_set1_epi32((int)0x87F00000));
    return _mm512_mul_ps(_mm512_castsi512_ps(x), _mm512_set1_ps(0x1p120f));
}
VEC_INLINE v16_f v16_e4m3_of_byte(v16_i x, const int byte)
{
    x = _mm512_srai_epi32(_mm512_slli_epi32(x, 24 - 8 * byte), 4);
    x = _mm512_and_si512(x, _mm512_set1_epi32((int)0x87F00000));
    return _mm512_mul_ps(_mm512_castsi512_ps(x), _mm512_set1_ps(0x1p120f));
}
VEC_INLINE v16_f v16_from_bf16(const uint16_t *p)
{
    v16_i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
VEC_INLINE v16_i v16_bf16_bits(v16_f v)
{
    v16_i x = _mm512_castps_si512(v);
    v16_i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    v16_i rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, x, _mm512_set1_epi32(0x400000));
    return _mm512_srli_epi32(rounded, 16);
}
VEC_INLINE void v16_store_bf16(uint16_t *p, v16_f v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v16_bf16_bits(v)));
}
VEC_INLINE v16_f v16_round_bf16(v16_f v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(v16_bf16_bits(v), 16));
}
VEC_INLINE void v16_store_e4m3(uint8_t *p, v16_f v)
{
    v16_i x = _mm512_castps_si512(v);
    v16_i size = _mm512_and_si512(x, _mm512_set1_epi32(0x7FFFFFFF));
    size = _mm512_min_epi32(size, _mm512_set1_epi32(0x43E00000));
    v16_i odd = _mm512_and_si512(_mm512_srli_epi32(size, 20), _mm512_set1_epi32(1));
    v16_i code = _mm512_add_epi32(size, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFFF)));
    code = _mm512_sub_epi32(_mm512_srli_epi32(code, 20), _mm512_set1_epi32(960));
    v16_f shifted = _mm512_add_ps(_mm512_castsi512_ps(size), _mm512_set1_ps(0x1p14f));
    __mmask16 is_tiny = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(0x3C800000));
    code = _mm512_mask_sub_epi32(code, is_tiny, _mm512_castps_si512(shifted),
                                 _mm512_set1_epi32(0x46800000));
    code =
        _mm512_or_si512(code, _mm512_and_si512(_mm512_srli_epi32(x, 24), _mm512_set1_epi32(0x80)));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(code));
}
VEC_INLINE v16_f v16_exp(v16_f x)
{
    v8_f low = v8_exp(_mm512_castps512_ps256(x));
    v8_f high = v8_exp(_mm512_extractf32x8_ps(x, 1));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
/* 16 x 16 words: rows become columns. */
VEC_INLINE void v16_transpose_words(v16_i x[16])
{
    v16_i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xDD);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xDD);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xDD);
        x[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xDD);
    }
}
VEC_INLINE v16_i v16_load_words(const void *p)
{
    return _mm512_loadu_si512(p);
}
VEC_INLINE v16_i v16_zero_words(void)
{
    return _mm512_setzero_si512();
}
VEC_INLINE v16_i v16_count_ge(v16_i counts, v16_f x, v16_f limit)
{
    return _mm512_mask_add_epi32(counts, _mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), counts,
                                 _mm512_set1_epi32(1));
}
VEC_INLINE uint32_t v16_ge_mask(v16_f x, v16_f limit)
{
    return _mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ);
}
VEC_INLINE uint32_t v16_gt_mask(v16_f x, v16_f limit)
{
    return _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ);
}
VEC_INLINE uint32_t v16_nan_mask(v16_f x)
{
    return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
}
VEC_INLINE uint32_t v16_store_lanes(uint32_t *p, uint32_t base, uint32_t mask)
{
    v16_i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)base));
    uint32_t count = (uint32_t)__builtin_popcount(mask);
    /* Compressing in a register, then a masked store: the memory form is microcoded on Zen 4. */
    lanes = _mm512_maskz_compress_epi32((__mmask16)mask, lanes);
    _mm512_mask_storeu_epi32(p, (__mmask16)((1u << count) - 1), lanes);
    return count;
}
VEC_INLINE uint32_t v16_sum_words(v16_i x)
{
    return (uint32_t)_mm512_reduce_add_epi32(x);
}
#endif

#endif
