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
