/* Vectors of 8 f32 (AVX2), one name for each operation: v8_*.
 *
 * The *.inc templates choose between these and v16_* by V(). Lanes are always independent outputs:
 * nothing here adds up floats across lanes. */
#ifndef KERNELS_CPU_VEC8_H
#define KERNELS_CPU_VEC8_H

#if defined(__x86_64__)

#include "kernels/cpu/vec_double.h"
#include "kernels/kernels.h"

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
/* a[i] * *p + acc[i], rounded once. */
VEC_INLINE void v8_fma_two(v8_f acc[2], const float *p, const v8_f a[2])
{
    v8_f x;
    /* Loaded anew each time: kept in registers, scalars would push sums out of them. */
    __asm__ volatile("vbroadcastss %1, %0" : "=x"(x) : "m"(*p));
    acc[0] = _mm256_fmadd_ps(a[0], x, acc[0]);
    acc[1] = _mm256_fmadd_ps(a[1], x, acc[1]);
}
/* acc + (*p * a), both rounded. */
VEC_INLINE v8_f v8_add_scaled(v8_f acc, const float *p, v8_f a)
{
    return _mm256_add_ps(acc, _mm256_mul_ps(_mm256_broadcast_ss(p), a));
}
/* The second operand where they are unordered or equal. */
VEC_INLINE v8_f v8_min(v8_f a, v8_f b)
{
    return _mm256_min_ps(a, b);
}
VEC_INLINE v8_f v8_max(v8_f a, v8_f b)
{
    return _mm256_max_ps(a, b);
}
VEC_INLINE v8_f v8_negate(v8_f a)
{
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}
/* e4m3 codes (no NaN codes) become f32 times KRN_CODE_DOWN: their bits are moved and 16 is added to
 * the exponent. Codes below 2^-6 (exponent 0) then read as (1 + m / 8) 2^-111 in place of m / 8
 * 2^-110 and are settled. Moved without the 16 they would be f32 subnormals, each of which costs a
 * multiply more than a hundred cycles on Intel. */
#define KRN_CODE_DOWN 0x1p-104f
#define KRN_CODE_UP   0x1p104f

VEC_INLINE v8_f v8_settle(v8_f x)
{
    v8_i bits = _mm256_castps_si256(x);
    v8_i low = _mm256_cmpeq_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x07800000)),
                                  _mm256_setzero_si256());
    v8_i one = _mm256_and_si256(bits, _mm256_set1_epi32((int)0xFF800000));
    x = _mm256_sub_ps(x, _mm256_castsi256_ps(_mm256_and_si256(one, low)));
    return _mm256_add_ps(x, _mm256_and_ps(x, _mm256_castsi256_ps(low)));
}
VEC_INLINE v8_f v8_from_e4m3(const uint8_t *p)
{
    v8_i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    x = _mm256_and_si256(_mm256_slli_epi32(x, 20), _mm256_set1_epi32((int)0x87F00000));
    x = _mm256_or_si256(x, _mm256_set1_epi32(0x08000000));
    return _mm256_mul_ps(v8_settle(_mm256_castsi256_ps(x)), _mm256_set1_ps(KRN_CODE_UP));
}
/* Is there a code below 2^-6? Few are: branches on this are cheap. */
VEC_INLINE bool v8_any_low_code(v8_i x)
{
    v8_i exponents = _mm256_and_si256(x, _mm256_set1_epi8(0x78));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(exponents, _mm256_setzero_si256())) != 0;
}
/* Halves of words of four codes, each code's bits where bf16 has them: codes 1 and 3 in odd, 0 and
 * 2 in even. 16 bits at a time: widening bytes one by one takes twice the time (Zen 4). A multiply
 * does what two shifts would, on a port that has less to do (Zen 3). */
VEC_INLINE void v8_halves_of_words(v8_i x, v8_i *even, v8_i *odd)
{
    const v8_i kept = _mm256_set1_epi16((short)0x87F0);
    *even = _mm256_and_si256(_mm256_maddubs_epi16(_mm256_set1_epi16(16), x), kept);
    *odd = _mm256_and_si256(_mm256_srai_epi16(x, 4), kept);
}
VEC_INLINE void v8_four_of_halves(v8_i even, v8_i odd, v8_f out[4])
{
    const v8_i upper = _mm256_set1_epi32((int)0xFFFF0000);
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(even, 16));
    out[1] = _mm256_castsi256_ps(_mm256_slli_epi32(odd, 16));
    out[2] = _mm256_castsi256_ps(_mm256_and_si256(even, upper));
    out[3] = _mm256_castsi256_ps(_mm256_and_si256(odd, upper));
}
/* Code i of each word times KRN_CODE_DOWN in out[i]. */
VEC_INLINE void v8_four_of_words(v8_i x, v8_f out[4])
{
    const v8_i up = _mm256_set1_epi16(0x0800);
    v8_i even, odd;
    v8_halves_of_words(x, &even, &odd);
    v8_four_of_halves(_mm256_or_si256(even, up), _mm256_or_si256(odd, up), out);
    if (__builtin_expect(v8_any_low_code(x), 0)) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            out[i] = v8_settle(out[i]);
    }
}
VEC_INLINE void v8_four_e4m3(const uint8_t *p, v8_f out[4])
{
    v8_four_of_words(_mm256_loadu_si256((const __m256i *)p), out);
}
VEC_INLINE v8_f v8_from_bf16(const uint16_t *p)
{
    v8_i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
/* Words of two bf16 numbers: number i of each word in out[i]. */
VEC_INLINE void v8_two_bf16(const uint16_t *p, v8_f out[2])
{
    v8_i x = _mm256_loadu_si256((const __m256i *)p);
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xFFFF0000)));
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
/* Words of two bf16 numbers: low in the lower half. */
VEC_INLINE v8_i v8_bf16_pairs(v8_f low, v8_f high)
{
    return _mm256_or_si256(v8_bf16_bits(low), _mm256_slli_epi32(v8_bf16_bits(high), 16));
}
VEC_INLINE void v8_store_words(uint32_t *p, v8_i x)
{
    _mm256_storeu_si256((__m256i *)p, x);
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

VEC_INLINE v8_f v8_exp(v8_f x)
{
    return d4_narrow(d4_exp(d4_low(x)), d4_exp(d4_high(x)));
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
/* x where it is >= limit, else 0. */
VEC_INLINE v8_f v8_zero_below(v8_f x, v8_f limit)
{
    return _mm256_and_ps(x, _mm256_cmp_ps(x, limit, _CMP_GE_OQ));
}
VEC_INLINE uint32_t v8_gt_mask(v8_f x, v8_f limit)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GT_OQ));
}
/* At or above the limit, or NaN. */
VEC_INLINE uint32_t v8_not_lt_mask(v8_f x, v8_f limit)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ));
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
/* The same where a whole vector may be written. */
VEC_INLINE uint32_t v8_pack_lanes(uint32_t *p, uint32_t base, uint32_t mask)
{
    return v8_store_lanes(p, base, mask);
}
VEC_INLINE uint32_t v8_sum_words(v8_i x)
{
    uint32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lanes, x);
    for (int i = 0; i < 8; i++)
        sum += lanes[i];
    return sum;
}

#endif
#endif
