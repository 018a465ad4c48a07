/* e4m3 codes as f32 by moving their bits and nothing else, for CPUs on which subnormals cost
 * nothing (Zen). Numbers are times 2^-120. */
#ifndef KERNELS_CPU_VEC8_BARE_H
#define KERNELS_CPU_VEC8_BARE_H

#include "kernels/cpu/vec8.h"

#if defined(__x86_64__)

#define KRN_BARE_UP 0x1p120f

VEC_INLINE v8_f v8_from_bare(const uint8_t *p)
{
    v8_i x = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)), 20);
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0x87F00000)));
}
/* Code i of each word in out[i]. */
VEC_INLINE void v8_four_bare(const uint8_t *p, v8_f out[4])
{
    v8_i even, odd;
    v8_halves_of_words(_mm256_loadu_si256((const __m256i *)p), &even, &odd);
    v8_four_of_halves(even, odd, out);
}
/* Words of four codes at `codes` times the inputs of four rows, `stride` floats apart, for two k
 * from `a` on: sum[row][0] and [1] are of codes 0 and 1 of each word, then of 2 and 3. By hand,
 * since 8 sums, 4 vectors of weights, a scalar and two masks leave the compiler one register. */
VEC_INLINE void v8_four_rows_bare(v8_f sum[4][2], const uint8_t *codes, const float *a,
                                  const int stride)
{
    const v8_i kept = _mm256_set1_epi16((short)0x87F0);
    const v8_i upper = _mm256_set1_epi32((int)0x87F00000);
    const v8_i sixteen = _mm256_set1_epi16(16);
    v8_i even, odd, even_low, odd_low;
    v8_f x;
#define TIMES_ROW(offset, row, first, second)                        \
    "vbroadcastss " #offset "+4*%c[stride]*" #row "(%[a]), %[x]\n\t" \
    "vfmadd231ps %[x], %[" #first "], %[s" #row "0]\n\t"             \
    "vfmadd231ps %[x], %[" #second "], %[s" #row "1]\n\t"
#define TIMES_ROWS(offset, first, second) \
    TIMES_ROW(offset, 0, first, second)   \
    TIMES_ROW(offset, 1, first, second)   \
    TIMES_ROW(offset, 2, first, second) TIMES_ROW(offset, 3, first, second)
    __asm__("vmovdqu %[codes], %[odd]\n\t"
            "vpmaddubsw %[odd], %[sixteen], %[even]\n\t"
            "vpsraw $4, %[odd], %[odd]\n\t"
            "vpand %[kept], %[odd], %[odd_low]\n\t"
            "vpand %[upper], %[odd], %[odd]\n\t"
            "vpand %[kept], %[even], %[even_low]\n\t"
            "vpslld $16, %[odd_low], %[odd_low]\n\t"
            "vpand %[upper], %[even], %[even]\n\t"
            "vpslld $16, %[even_low], %[even_low]\n\t" TIMES_ROWS(0, even_low, odd_low)
                TIMES_ROWS(4, even, odd)
            : [s00] "+x"(sum[0][0]), [s01] "+x"(sum[0][1]), [s10] "+x"(sum[1][0]),
              [s11] "+x"(sum[1][1]), [s20] "+x"(sum[2][0]), [s21] "+x"(sum[2][1]),
              [s30] "+x"(sum[3][0]), [s31] "+x"(sum[3][1]), [even] "=&x"(even), [odd] "=&x"(odd),
              [even_low] "=&x"(even_low), [odd_low] "=&x"(odd_low), [x] "=&x"(x)
            : [codes] "m"(*(const uint8_t(*)[32])codes), [a] "r"(a), [stride] "i"(stride),
              [sixteen] "x"(sixteen), [kept] "x"(kept), [upper] "x"(upper),
              "m"(*(const float(*)[3 * 128 + 2]) a));
#undef TIMES_ROWS
#undef TIMES_ROW
}

#endif
#endif
