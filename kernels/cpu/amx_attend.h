/* What attention in the order of cpu-amx-v1 holds for one row, in one thread's scratch.
 *
 * The order: the list's keys in chunks of KRN_ATTEND_CHUNK; in a chunk, in steps of 32 keys. A
 * weight e is two bf16 numbers, so that f32's weights lose no more than 2^-16 of themselves: `high`
 * is e cut off after 16 bits, `low` the rest, rounded. Each has a sum of its own. */
#ifndef KERNELS_CPU_AMX_ATTEND_H
#define KERNELS_CPU_AMX_ATTEND_H

#include "kernels/cpu/amx_order.h"
#include "kernels/cpu/variant.h"

#define KRN_ATTEND_CHUNK 256u /* keys whose maximum is taken at once */
#define KRN_ATTEND_BLOCK 64u  /* keys whose scores are multiplied at once */

/* Where the parts begin, in bytes. Heads come in vectors of 16 lanes and, for the values, in groups
 * of eight: a group's operand has 8 rows of high and 8 of low parts. */
typedef struct krn_attend_parts {
    uint32_t vectors, groups;
    size_t queries; /* [vector][18][16][16] words: operand B of the scores */
    size_t keys;    /* [64][576] bf16: operand A of the scores */
    size_t values;  /* [8 steps][32][16][16] words: operand B of the values, 32 keys x 16 dims */
    size_t scores;  /* [vector][256][16] f32 */
    size_t weights; /* [group][8 steps][16][32] bf16: operand A of the values */
    size_t sums;    /* [group][32][16][16] f32: 16 rows x 16 dims */
    size_t state;   /* [3][vector][16] f32: maximum, sum of weights, factor of this chunk */
    size_t bytes;
} krn_attend_parts;

static inline krn_attend_parts krn_attend_parts_of(uint32_t heads)
{
    krn_attend_parts p = {.vectors = (heads + 15) / 16, .groups = (heads + 7) / 8};
    p.keys = (size_t)p.vectors * 16 * KRN_PLAIN_ROW_DIM * sizeof(uint16_t);
    p.values = p.keys + (size_t)KRN_ATTEND_BLOCK * KRN_PLAIN_ROW_DIM * sizeof(uint16_t);
    p.scores = p.values + (size_t)KRN_ATTEND_CHUNK * KRN_LATENT_DIM * sizeof(uint16_t);
    p.weights = p.scores + (size_t)p.vectors * KRN_ATTEND_CHUNK * 16 * sizeof(float);
    p.sums = p.weights + (size_t)p.groups * KRN_ATTEND_CHUNK * 16 * sizeof(uint16_t);
    p.state = p.sums + (size_t)p.groups * 16 * KRN_LATENT_DIM * sizeof(float);
    p.bytes = p.state + 3 * (size_t)p.vectors * 16 * sizeof(float);
    return p;
}

/* exp of the softmax, x <= 0: 2^n times a polynomial of the rest, 0 below -87, where the result
 * would leave the normal range. Within 1.5 units in the last place; 1 for 0. */
#define KRN_ATTEND_EXP_LEAST (-87.0f)
#define KRN_ATTEND_LOG2_E    0x1.715476p0f
#define KRN_ATTEND_LN2_HIGH  0x1.62e4p-1f
#define KRN_ATTEND_LN2_LOW   0x1.7f7d1cp-20f
#define KRN_ATTEND_EXP_TERMS 8
static const float krn_attend_exp_terms[KRN_ATTEND_EXP_TERMS] = {
    1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

static inline float krn_attend_exp(float x)
{
    if (x < KRN_ATTEND_EXP_LEAST)
        return 0.0f;
    float n = rintf(x * KRN_ATTEND_LOG2_E);
    float r = fmaf(n, -KRN_ATTEND_LN2_HIGH, x), p = krn_attend_exp_terms[0];
    r = fmaf(n, -KRN_ATTEND_LN2_LOW, r);
    for (int i = 1; i < KRN_ATTEND_EXP_TERMS; i++)
        p = fmaf(p, r, krn_attend_exp_terms[i]);
    return isnan(n) ? n : ldexpf(p, (int)n);
}

#endif
