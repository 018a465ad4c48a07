/* Vectors of 16 f32 (AVX-512), one name for each operation: v16_*, as v8_* in vec8.h, which
 * functions of this target may use too. */
#ifndef KERNELS_CPU_VEC16_H
#define KERNELS_CPU_VEC16_H

#if defined(__x86_64__)

#include "kernels/cpu/vec_double8.h"

#include "kernels/cpu/vec8.h"

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
VEC_INLINE v16_f v16_fma_scalar(v16_f acc, const float *p, v16_f a)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*p));
    return acc;
}
VEC_INLINE void v16_fma_two(v16_f acc[2], const float *p, const v16_f a[2])
{
    acc[0] = v16_fma_scalar(acc[0], p, a[0]);
    acc[1] = v16_fma_scalar(acc[1], p, a[1]);
}
VEC_INLINE v16_f v16_add_scaled(v16_f acc, const float *p, v16_f a)
{
    v16_f product;
    /* The embedded broadcast needs no vector pipe; the compiler would broadcast into a register,
     * which on Zen 4 costs a third of the rate (77 against 113 GFLOP/s). */
    __asm__("vmulps %2%{1to16%}, %1, %0" : "=v"(product) : "v"(a), "m"(*p));
    return _mm512_add_ps(acc, product);
}
VEC_INLINE v16_f v16_min(v16_f a, v16_f b)
{
    return _mm512_min_ps(a, b);
}
VEC_INLINE v16_f v16_max(v16_f a, v16_f b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE v16_f v16_negate(v16_f a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
VEC_INLINE v16_f v16_settle(v16_f x)
{
    v16_i bits = _mm512_castps_si512(x);
    __mmask16 low = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x07800000));
    v16_i one = _mm512_and_si512(bits, _mm512_set1_epi32((int)0xFF800000));
    x = _mm512_mask_sub_ps(x, low, x, _mm512_castsi512_ps(one));
    return _mm512_mask_add_ps(x, low, x, x);
}
VEC_INLINE v16_f v16_from_e4m3(const uint8_t *p)
{
    v16_i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    x = _mm512_and_si512(_mm512_slli_epi32(x, 20), _mm512_set1_epi32((int)0x87F00000));
    x = _mm512_or_si512(x, _mm512_set1_epi32(0x08000000));
    return _mm512_mul_ps(v16_settle(_mm512_castsi512_ps(x)), _mm512_set1_ps(KRN_CODE_UP));
}
VEC_INLINE bool v16_any_low_code(v16_i x)
{
    return _mm512_testn_epi8_mask(x, _mm512_set1_epi8(0x78)) != 0;
}
VEC_INLINE void v16_four_of_words(v16_i x, v16_f out[4])
{
    const v16_i kept = _mm512_set1_epi16((short)0x87F0), upper = _mm512_set1_epi32((int)0xFFFF0000);
    const v16_i up = _mm512_set1_epi16(0x0800);
    v16_i odd = _mm512_and_si512(_mm512_srai_epi16(x, 4), kept);
    v16_i even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(x, 8), 4), kept);
    odd = _mm512_or_si512(odd, up); /* one operation with the mask (vpternlogd) */
    even = _mm512_or_si512(even, up);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(even, 16));
    out[1] = _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16));
    out[2] = _mm512_castsi512_ps(_mm512_and_si512(even, upper));
    out[3] = _mm512_castsi512_ps(_mm512_and_si512(odd, upper));
    if (__builtin_expect(v16_any_low_code(x), 0)) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            out[i] = v16_settle(out[i]);
    }
}
VEC_INLINE void v16_four_e4m3(const uint8_t *p, v16_f out[4])
{
    v16_four_of_words(_mm512_loadu_si512(p), out);
}
VEC_INLINE v16_f v16_from_bf16(const uint16_t *p)
{
    v16_i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
VEC_INLINE void v16_two_bf16(const uint16_t *p, v16_f out[2])
{
    v16_i x = _mm512_loadu_si512(p);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xFFFF0000)));
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
VEC_INLINE v16_i v16_bf16_pairs(v16_f low, v16_f high)
{
    return _mm512_or_si512(v16_bf16_bits(low), _mm512_slli_epi32(v16_bf16_bits(high), 16));
}
VEC_INLINE void v16_store_words(uint32_t *p, v16_i x)
{
    _mm512_storeu_si512(p, x);
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
    return d8_narrow(d8_exp(d8_low(x)), d8_exp(d8_high(x)));
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
VEC_INLINE v16_f v16_zero_below(v16_f x, v16_f limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), x);
}
VEC_INLINE uint32_t v16_gt_mask(v16_f x, v16_f limit)
{
    return _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ);
}
VEC_INLINE uint32_t v16_not_lt_mask(v16_f x, v16_f limit)
{
    return _mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ);
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
VEC_INLINE uint32_t v16_pack_lanes(uint32_t *p, uint32_t base, uint32_t mask)
{
    v16_i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)base));
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32((__mmask16)mask, lanes));
    return (uint32_t)__builtin_popcount(mask);
}
VEC_INLINE uint32_t v16_sum_words(v16_i x)
{
    return (uint32_t)_mm512_reduce_add_epi32(x);
}

#endif
#endif
