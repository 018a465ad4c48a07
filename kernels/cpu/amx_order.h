/* The order in which a tile adds up, in plain C: what TDPBF16PS does to one number of C.
 *
 * A sum over k is cut into steps of 32. A step makes two chains from +0 over its 16 pairs, one of
 * the even k, one of the odd k, each a fused multiply-add a pair, ascending; then adds the two,
 * then adds that to C. Every operation rounds to nearest even, reads a subnormal operand as zero
 * and writes zero, sign kept, for a result that is below the normal range after rounding. Any
 * thread. */
#ifndef KERNELS_CPU_AMX_ORDER_H
#define KERNELS_CPU_AMX_ORDER_H

#include "kernels/numbers.h"

#include <float.h>
#include <math.h>

#define KRN_TILE_STEP 32u /* k of one step */

static inline float krn_tile_flush(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

static inline float krn_tile_add(float a, float b)
{
    /* A sum below the normal range is exact: nothing rounds up into it. */
    return krn_tile_flush(krn_tile_flush(a) + krn_tile_flush(b));
}

static inline float krn_tile_fma(float a, float b, float c)
{
    a = krn_tile_flush(a), b = krn_tile_flush(b), c = krn_tile_flush(c);
    float sum = fmaf(a, b, c);
    if (fabsf(sum) != FLT_MIN)
        return krn_tile_flush(sum);
    /* Rounded up to the smallest normal number, maybe only for lack of bits below it. Doubles hold
     * the sum exactly enough: bf16 products have 16 bits, c none below 2^-149. */
    double exact = fma((double)a, (double)b, (double)c);
    return fabs(exact) < 0x1p-126 * (1 - 0x1p-25) ? copysignf(0.0f, sum) : sum;
}

/* The first k numbers of a step, k even. A tile of so few columns does this; ours are full, what is
 * missing being zeros. */
static inline float krn_tile_part(const float *a, const float *b, uint32_t k, float c)
{
    float even = 0.0f, odd = 0.0f;
    for (uint32_t i = 0; i < k; i += 2) {
        even = krn_tile_fma(a[i], b[i], even);
        odd = krn_tile_fma(a[i + 1], b[i + 1], odd);
    }
    return krn_tile_add(c, krn_tile_add(even, odd));
}

static inline float krn_tile_step(const float *a, const float *b, float c)
{
    return krn_tile_part(a, b, KRN_TILE_STEP, c);
}

#endif
