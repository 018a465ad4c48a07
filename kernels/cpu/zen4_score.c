/* Indexer scores by products of pairs (vec16_pairs.h): two dimensions at once, the earlier one in
 * the upper half. Lanes are keys; per key, heads add up in ascending order.
 *
 * A page's keys become pairs once and are met by every row of the tile. The first row multiplies
 * half a key while the other half becomes pairs: both are short enough for the CPU to overlap them.
 * Any thread. */
#if defined(__x86_64__)

#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16_pairs.h"

#include <string.h>

#define LANES 16
#define HEADS 8                        /* of the register tile */
#define PAIRS ((int)KRN_INDEX_DIM / 2) /* of a key, and of a head of a query */
#define HALF  (PAIRS / 2)
#define PARTS ((int)KRN_PAGE_TOKENS / LANES)

/* LANES keys of a page. */
typedef struct part {
    _Alignas(64) float pairs[PAIRS][LANES];
} part;

/* 64 codes of each key of a part. */
VEC_INLINE void half_of_keys(const uint8_t *codes, float (*out_pairs)[LANES])
{
    /* Of four codes, 1 and 0 go where v16_four_pairs takes one pair from, 3 and 2 where it takes
     * the other. */
    const v16_i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 3, 0, 2, 5, 7, 4, 6, 9, 11, 8, 10, 13, 15, 12, 14));
    v16_i words[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        words[i] = _mm512_shuffle_epi8(v16_load_words(codes + i * (int)KRN_INDEX_DIM), order);
    v16_transpose_words(words);
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2, out_pairs += 4) {
        v16_f pairs[4];
        v16_four_pairs(true, words + i, pairs);
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++)
            v16_store(out_pairs[p], pairs[p]);
    }
}

/* A pair of each key times that of H heads. */
VEC_INLINE void multiply(const int H, const float *q, const float *key, v16_f *dot)
{
    v16_f pair = v16_load(key);
#pragma GCC unroll 8
    for (int h = 0; h < H; h++)
        dot[h] = v16_add_pairs_scalar(dot[h], q + h * PAIRS, pair);
}

/* Relu, factor, sum over heads. */
VEC_INLINE v16_f add_heads(const int H, const float *factors, const v16_f *dot, v16_f sum)
{
#pragma GCC unroll 8
    for (int h = 0; h < H; h++) {
        /* A NaN operand would come out of max as zero, but sums of codes are never NaN. */
        v16_f whole = v16_max(dot[h], v16_zero());
        sum = v16_add(sum, v16_mul(whole, v16_set1(factors[h])));
    }
    return sum;
}

/* The first H heads of the first row, which finds codes and leaves pairs. ahead: codes of a part,
 * fetched meanwhile. */
VEC_INLINE v16_f first_heads(const int H, const float *q, const float *factors,
                             const uint8_t *codes, const uint8_t *ahead, part *out_keys)
{
    v16_f dot[HEADS];
#pragma GCC unroll 8
    for (int h = 0; h < H; h++)
        dot[h] = v16_zero();
    for (int first = 0; first < PAIRS; first += HALF) {
        half_of_keys(codes + 2 * first, out_keys->pairs + first);
        for (int p = first; p < first + HALF; p++) {
            if (p % 2 == 0)
                __builtin_prefetch(ahead + p / 2 * 64);
            multiply(H, q + p, out_keys->pairs[p], dot);
        }
    }
    return add_heads(H, factors, dot, v16_zero());
}

VEC_INLINE v16_f more_heads(const int H, const float *q, const float *factors, const part *keys,
                            v16_f sum)
{
    v16_f dot[HEADS];
#pragma GCC unroll 8
    for (int h = 0; h < H; h++)
        dot[h] = v16_zero();
    for (int p = 0; p < PAIRS; p++)
        multiply(H, q + p, keys->pairs[p], dot);
    return add_heads(H, factors, dot, sum);
}

/* Heads [from, heads). */
VEC_INLINE v16_f rest_of_heads(const float *q, const float *factors, uint32_t from, uint32_t heads,
                               const part *keys, v16_f sum)
{
    uint32_t h = from;
    for (; h + HEADS <= heads; h += HEADS)
        sum = more_heads(HEADS, q + h * PAIRS, factors + h, keys, sum);
    for (; h < heads; h++)
        sum = more_heads(1, q + h * PAIRS, factors + h, keys, sum);
    return sum;
}

KRN_VEC_TARGET static void score_page(const krn_score_tile *tile, const krn_score_page *at)
{
    part parts[PARTS];
    float out[KRN_PAGE_TOKENS];
    uint32_t first = at->from / LANES, end = (at->to - 1) / LANES + 1, heads = tile->heads;
    const float *q = tile->queries;
    krn_score_fetch_scales(at);
    for (uint32_t r = 0; r < tile->row_count; r++, q += heads * PAIRS) {
        const float *factors = tile->factors + r * heads;
        for (uint32_t i = first; i < end; i++) {
            size_t codes_at = KRN_INDEX_CODES_AT + i * LANES * KRN_INDEX_DIM;
            const uint8_t *codes = at->page + codes_at, *ahead = at->next + codes_at;
            v16_f sum = v16_zero();
            uint32_t done = r > 0 ? 0 : heads < HEADS ? 1 : HEADS;
            if (done == 1)
                sum = first_heads(1, q, factors, codes, ahead, &parts[i]);
            else if (done == HEADS)
                sum = first_heads(HEADS, q, factors, codes, ahead, &parts[i]);
            sum = rest_of_heads(q, factors, done, heads, &parts[i], sum);
            float scales[LANES];
            memcpy(scales, at->page + KRN_INDEX_SCALES_AT + i * sizeof scales, sizeof scales);
            v16_store(out + i * LANES, v16_mul(sum, v16_load(scales)));
        }
        memcpy(at->out + r * tile->out_stride, out + at->from, (at->to - at->from) * sizeof(float));
    }
}

void krn_zen4_score(const krn_score_tile *tile)
{
    krn_score_pages(tile, score_page);
}

/* The form: [rows][heads][PAIRS]. Factors are read where they are. */
KRN_VEC_TARGET void krn_zen4_score_queries(const uint8_t *queries, const float *factors,
                                           uint32_t row_count, uint32_t heads, void *out_form)
{
    float *out = out_form;
    for (uint32_t i = 0; i < row_count * heads * KRN_INDEX_DIM; i += 2 * LANES, out += LANES)
        _mm512_storeu_si512(out, _mm512_rol_epi32(v16_input_numbers(queries + i), 16));
}

#endif
