/* e4m3 codes as pairs of bf16 numbers, and the product that takes a pair at once (AVX512_BF16). It
 * is two multiply-adds, each rounded once, of the upper numbers first: hence k lies above k + 1.
 * Subnormals are zeros to it, so that none are made. */
#ifndef KERNELS_CPU_VEC16_PAIRS_H
#define KERNELS_CPU_VEC16_PAIRS_H

#include "kernels/cpu/vec16.h"

#if defined(__x86_64__)

/* What is added to a code's exponent, where bf16 has it: weights are times KRN_CODE_DOWN, inputs
 * times KRN_CODE_UP. */
#define KRN_PAIR_WEIGHT_UP 0x0800
#define KRN_PAIR_INPUT_UP  0x7000

/* acc + a * w of the upper numbers of each pair, + a * w of the lower ones. */
VEC_INLINE v16_f v16_add_pairs(v16_f acc, v16_f a, v16_f w)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
    return acc;
}
/* The same of one pair *p. */
VEC_INLINE v16_f v16_add_pairs_scalar(v16_f acc, const float *p, v16_f w)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*p));
    return acc;
}
VEC_INLINE void v16_add_pairs_two(v16_f acc[2], const float *p, const v16_f w[2])
{
    acc[0] = v16_add_pairs_scalar(acc[0], p, w[0]);
    acc[1] = v16_add_pairs_scalar(acc[1], p, w[1]);
}
/* Codes below 2^-6, m / 8 * 2^-6, were read as (1 + m / 8) * 2^-7: bits that have `up` in place of
 * the exponent. Few are, so nothing for them is to be held in registers of a loop: its constants
 * are hidden from the compiler. */
VEC_INLINE v16_i v16_settle_pairs(v16_i x, const int up)
{
    int exponent = 0x0780, sign = (short)0x8000, half = up - 0x80;
    __asm__ volatile("" : "+r"(exponent), "+r"(sign), "+r"(half));
    const v16_i table = _mm512_zextsi128_si512(
        _mm_add_epi16(_mm_set1_epi16((short)half),
                      _mm_setr_epi16((short)(0x80 - up), -0x80, 0, 0x40, 0x80, 0xA0, 0xC0, 0xE0)));
    __mmask32 low = _mm512_testn_epi16_mask(x, _mm512_set1_epi16((short)exponent));
    v16_i size = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 4), table); /* by m where low */
    size = _mm512_or_si512(size, _mm512_and_si512(x, _mm512_set1_epi16((short)sign)));
    return _mm512_mask_mov_epi16(x, low, size);
}
/* What lies before a panel's first words and behind its last: codes that need no settling. */
VEC_INLINE v16_i v16_no_codes(void)
{
    return _mm512_set1_epi8(0x38);
}
/* Words of a panel hold codes k (lower half) and k + 1 (upper half) of columns c and c + 16. The
 * upper half of words and the lower half of the next ones are a pair: k + 1 above k + 2. */
VEC_INLINE v16_i v16_pairs_of(v16_i words, v16_i next)
{
    const int select = 0xE4; /* c ? a : b */
    return _mm512_ternarylogic_epi32(words, next, _mm512_set1_epi32((int)0xFFFF0000), select);
}
/* Words of codes: pairs of columns c and of columns c + 16 of each, times KRN_CODE_DOWN. few: where
 * products leave multipliers idle, one of them does what two shifts would. */
VEC_INLINE void v16_four_pairs(const bool few, const v16_i x[2], v16_f out[4])
{
    const int and_or = 0xEA; /* (a & b) | c */
    const v16_i kept = _mm512_set1_epi16((short)0x87F0), exponent = _mm512_set1_epi8(0x78);
    const v16_i up = _mm512_set1_epi16(KRN_PAIR_WEIGHT_UP);
    v16_i pairs[4];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        v16_i even = few ? _mm512_maddubs_epi16(_mm512_set1_epi16(16), x[i])
                         : _mm512_srai_epi16(_mm512_slli_epi16(x[i], 8), 4);
        v16_i odd = _mm512_srai_epi16(x[i], 4);
        pairs[2 * i] = _mm512_ternarylogic_epi32(even, kept, up, and_or);
        pairs[2 * i + 1] = _mm512_ternarylogic_epi32(odd, kept, up, and_or);
    }
    __mmask64 low0 = _mm512_testn_epi8_mask(x[0], exponent);
    __mmask64 low1 = _mm512_testn_epi8_mask(x[1], exponent);
    if (__builtin_expect(!_kortestz_mask64_u8(low0, low1), 0)) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            pairs[i] = v16_settle_pairs(pairs[i], KRN_PAIR_WEIGHT_UP);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        out[i] = _mm512_castsi512_ps(pairs[i]);
}
/* 32 codes as numbers in their order, times KRN_CODE_UP. */
VEC_INLINE v16_i v16_input_numbers(const uint8_t *codes)
{
    const int and_or = 0xEA;
    v16_i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    v16_i kept = _mm512_set1_epi16((short)0x87F0), up = _mm512_set1_epi16(KRN_PAIR_INPUT_UP);
    x = _mm512_ternarylogic_epi32(_mm512_slli_epi16(x, 4), kept, up, and_or);
    if (_mm512_testn_epi16_mask(x, _mm512_set1_epi16(0x0780)) != 0)
        x = v16_settle_pairs(x, KRN_PAIR_INPUT_UP);
    return x;
}
/* 128 codes of a row, times KRN_CODE_UP: out [65] pairs that meet those of v16_pairs_of, the first
 * of nothing and code 0, the last of code 127 and nothing; zeros up to out[80]. */
VEC_INLINE void v16_input_pairs(const uint8_t *codes, float *out)
{
    v16_i before = _mm512_setzero_si512();
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) {
        v16_i x = _mm512_setzero_si512();
        if (i < 4)
            x = v16_input_numbers(codes + 32 * i);
        _mm512_storeu_si512(out + 16 * i, v16_pairs_of(_mm512_alignr_epi32(x, before, 15), x));
        before = x;
    }
}

#endif
#endif
