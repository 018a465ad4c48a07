/* e4m3 codes to bf16 for tiles, 64 at a time: exact but for a factor, which the caller takes into
 * account in the other operand or in an exponent. Private to kernels/. */
#ifndef KERNELS_CPU_AMX_WIDEN_H
#define KERNELS_CPU_AMX_WIDEN_H

#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/vec16.h"

#define AMX_INLINE KRN_AMX_TARGET static inline __attribute__((always_inline, unused))

/* e4m3 -> bf16 of the value times 2^-117, exactly: a code's exponent field is raised by 3, so that
 * the smallest subnormal, 2^-9, becomes 2^-126: tiles take what is smaller for zero. The upper byte
 * by the code's bits 1..6 (codes 0 and 1 differ in the lower byte only), the lower one by bits
 * 0..5, where bit 6 has been put into bit 4 too: past the subnormals only bits 0..3 count. */
#define EIGHT(x) x, x, x, x, x, x, x, x
static const uint8_t upper_bytes[64] = {
    0, 1,        1,        1,        2,        2,        2,        2, 2, 2, 2,
    2, EIGHT(3), EIGHT(4), EIGHT(5), EIGHT(6), EIGHT(7), EIGHT(8), 9, 9, 9, 9};
#define EVEN 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
#define ODD  0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0
static const uint8_t lower_bytes[64] = {0x00, 0x80, 0x00, 0x40, 0x80, 0xA0, 0xC0, 0xE0,
                                        EVEN, ODD,  EVEN, ODD,  EVEN, ODD,  EVEN};
/* 64 codes -> 64 bf16 times 2^-117, in order. */
AMX_INLINE void krn_amx_widen(const uint8_t *codes, v16_i out[2])
{
    const v16_i upper_of = _mm512_loadu_si512(upper_bytes);
    const v16_i lower_of = _mm512_loadu_si512(lower_bytes);
    const v16_i sign = _mm512_set1_epi8((char)0x80), bit4 = _mm512_set1_epi8(0x10);
    /* Interleaving bytes works in quarters of a vector: their halves take their places first. */
    const v16_i places = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    v16_i x = _mm512_permutexvar_epi64(places, _mm512_loadu_si512(codes));
    /* Indices use 6 bits: what comes over from a neighbouring byte does no harm. */
    v16_i upper = _mm512_permutexvar_epi8(_mm512_srli_epi16(x, 1), upper_of);
    v16_i index = _mm512_or_si512(x, _mm512_and_si512(_mm512_srli_epi16(x, 2), bit4));
    v16_i lower = _mm512_permutexvar_epi8(index, lower_of);
    upper = _mm512_or_si512(upper, _mm512_and_si512(x, sign));
    out[0] = _mm512_unpacklo_epi8(lower, upper);
    out[1] = _mm512_unpackhi_epi8(lower, upper);
}

#endif
#endif
