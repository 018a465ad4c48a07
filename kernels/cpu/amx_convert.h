/* e4m3 codes to bf16 by table, 64 at a time (AVX-512 VBMI).
 *
 * Exact, and never a subnormal number: tiles read those as zero, and a vector's multiply-add with
 * one as operand costs an Intel core some 150 cycles. Private to kernels/. */
#ifndef KERNELS_CPU_AMX_CONVERT_H
#define KERNELS_CPU_AMX_CONVERT_H

#include "kernels/cpu/amx.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define KRN_AMX_INLINE KRN_AMX_TARGET static inline __attribute__((always_inline))

/* Lower and upper bytes of the bf16 numbers of codes 0..127. */
typedef struct krn_e4m3_table {
    uint8_t low[128], high[128];
} __attribute__((aligned(64))) krn_e4m3_table;

extern const krn_e4m3_table krn_e4m3_bf16;

typedef struct krn_codes_lookup {
    __m512i low[2], high[2];
} krn_codes_lookup;

KRN_AMX_INLINE krn_codes_lookup krn_codes_lookup_load(void)
{
    const krn_e4m3_table *t = &krn_e4m3_bf16;
    return (krn_codes_lookup){
        .low = {_mm512_load_si512(t->low), _mm512_load_si512(t->low + 64)},
        .high = {_mm512_load_si512(t->high), _mm512_load_si512(t->high + 64)},
    };
}

/* The bytes of 64 codes' bf16 numbers, the sign where it belongs. */
KRN_AMX_INLINE void krn_codes_bytes(const krn_codes_lookup *t, __m512i codes, __m512i *out_low,
                                    __m512i *out_high)
{
    const int or_and = 0xF8; /* a | (b & c) */
    *out_low = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    __m512i high = _mm512_permutex2var_epi8(t->high[0], codes, t->high[1]);
    *out_high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), or_and);
}

/* 32 words of 16 bits: the codes of the even places, then those of the odd ones. */
KRN_AMX_INLINE void krn_codes_halves(const krn_codes_lookup *t, __m512i codes, __m512i *out_even,
                                     __m512i *out_odd)
{
    const int select = 0xE4; /* c ? a : b */
    const __m512i lower = _mm512_set1_epi16(0x00FF);
    __m512i low, high;
    krn_codes_bytes(t, codes, &low, &high);
    *out_even = _mm512_ternarylogic_epi32(low, _mm512_slli_epi16(high, 8), lower, select);
    *out_odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high, lower, select);
}

/* The same of two vectors, times 2^-KRN_CODES_DOWN, by moving bits: a code's exponent is raised by
 * 16. That is wrong where it is 0, below 2^-6, which few codes are: then by table, as above. */
#define KRN_CODES_DOWN 104

KRN_AMX_INLINE __m512i krn_bf16_rescale(__m512i x, int exponent)
{
    __mmask32 some = _mm512_test_epi16_mask(x, _mm512_set1_epi16(0x7FFF)); /* 0 stays 0 */
    return _mm512_mask_add_epi16(x, some, x, _mm512_set1_epi16((short)(exponent * 128)));
}

KRN_AMX_INLINE void krn_codes_halves_down(const krn_codes_lookup *t, const __m512i codes[2],
                                          __m512i out_even[2], __m512i out_odd[2])
{
    const int and_or = 0xEA; /* (a & b) | c */
    const __m512i kept = _mm512_set1_epi16((short)0x87F0), up = _mm512_set1_epi16(0x0800);
    const __m512i exponent = _mm512_set1_epi8(0x78);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i odd = _mm512_srai_epi16(codes[i], 4);
        __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(codes[i], 8), 4);
        out_odd[i] = _mm512_ternarylogic_epi32(odd, kept, up, and_or);
        out_even[i] = _mm512_ternarylogic_epi32(even, kept, up, and_or);
    }
    __mmask64 low0 = _mm512_testn_epi8_mask(codes[0], exponent);
    __mmask64 low1 = _mm512_testn_epi8_mask(codes[1], exponent);
    if (__builtin_expect(!_kortestz_mask64_u8(low0, low1), 0)) {
        for (int i = 0; i < 2; i++) {
            krn_codes_halves(t, codes[i], &out_even[i], &out_odd[i]);
            out_even[i] = krn_bf16_rescale(out_even[i], -KRN_CODES_DOWN);
            out_odd[i] = krn_bf16_rescale(out_odd[i], -KRN_CODES_DOWN);
        }
    }
}

/* 64 codes as they lie -> 64 bf16 numbers in the same order. */
KRN_AMX_INLINE void krn_codes_in_order(const krn_codes_lookup *t, const void *codes,
                                       uint16_t *out_values)
{
    /* Unpacking works within 16 bytes: first the first half's eights go to their lower halves. */
    const __m512i spread = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __m512i low, high;
    krn_codes_bytes(t, _mm512_permutexvar_epi64(spread, _mm512_loadu_si512(codes)), &low, &high);
    _mm512_storeu_si512(out_values, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(out_values + 32, _mm512_unpackhi_epi8(low, high));
}

#endif
#endif
