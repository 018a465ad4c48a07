/* Sparse attention with tiles, in the order of cpu-amx-v1 (amx_attend.h). Any thread.
 *
 * For each chunk of the list: blocks of 64 keys are gathered as bf16 twice, as rows (operand A of
 * the scores, whose lanes are heads) and as pairs of keys (operand B of the values); then softmax
 * with heads in lanes, weights turned into rows of heads, and values added to the sums, which lie
 * in memory as tiles. Budget (cycles a key): gather 72, scores 18 and values 16 for up to 8 heads,
 * 144 and 256 for 128. */
#if defined(__x86_64__)

#include "kernels/cpu/amx_attend.h"
#include "kernels/cpu/amx_widen.h"

#include <math.h>
#include <string.h>

#define SIDE        16
#define TILE_WORDS  (SIDE * SIDE)
#define TILE_KEYS   32                            /* of operand B of the values */
#define DIM_STEPS   ((int)KRN_PLAIN_ROW_DIM / 32) /* of the scores */
#define VALUE_TILES ((int)KRN_LATENT_DIM / SIDE)  /* tiles of sums of a group */
#define CHUNK       ((int)KRN_ATTEND_CHUNK)
#define BLOCK       ((int)KRN_ATTEND_BLOCK)
#define CHUNK_STEPS (CHUNK / TILE_KEYS)
#define QUERY_SIZE  (DIM_STEPS * TILE_WORDS) /* words of a vector of queries */

/* One row's work. */
typedef struct attending {
    const krn_attend_args *args;
    const uint32_t *blocks;
    const uint32_t *list;
    uint32_t count; /* of the list */
    uint32_t heads; /* of this call */
    krn_attend_parts parts;
    uint32_t *queries;
    uint16_t *keys;
    uint32_t *values;
    float *scores;
    uint16_t *weights;
    float *sums;
    float *largest, *total, *factor;
} attending;

/* ---- queries ---- */

/* 16 heads (`heads` of them there) -> operand B: row i of step s has dimensions 32 s + 2 i, + 1. */
AMX_INLINE void spread_queries(const uint16_t *q_latent, const uint16_t *q, uint32_t heads,
                               uint32_t *out)
{
    for (int step = 0; step < DIM_STEPS; step++) {
        v16_i words[SIDE];
        uint32_t d = 32u * (uint32_t)step;
        for (uint32_t h = 0; h < SIDE; h++) {
            const uint16_t *from = d < KRN_LATENT_DIM
                                       ? q_latent + h * KRN_LATENT_DIM + d
                                       : q + h * KRN_HEAD_DIM + KRN_NOPE_DIM + d - KRN_LATENT_DIM;
            words[h] = h < heads ? v16_load_words(from) : v16_zero_words();
        }
        v16_transpose_words(words);
        for (int i = 0; i < SIDE; i++, out += SIDE)
            v16_store_words(out, words[i]);
    }
}

/* ---- gather ---- */

/* 64 numbers of a key as bf16, in order. */
typedef struct numbers {
    v16_i half[2];
} numbers;

/* Numbers times 2^-117 (krn_amx_widen) times 2^117 and the key's scale, which is a power of two:
 * `up` is what that adds to an exponent. */
AMX_INLINE v16_i scale_up(v16_i x, v16_i up)
{
    __mmask32 some = _mm512_test_epi16_mask(x, _mm512_set1_epi16(0x7FFF));
    return _mm512_mask_add_epi16(x, some, x, up);
}

/* The same for any scale, rounded. */
AMX_INLINE v16_i scale_any(v16_i x, float scale)
{
    v16_f up = v16_set1(0x1p117f), factor = v16_set1(scale);
    v16_f low = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    v16_f high = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xFFFF0000)));
    return v16_bf16_pairs(v16_mul(v16_mul(low, up), factor), v16_mul(v16_mul(high, up), factor));
}

/* Whether any code times the scale is a normal bf16 number, by adding to its exponent. */
static inline bool shifts(uint32_t scale_bits)
{
    uint32_t exponent = scale_bits >> 23;
    return (scale_bits & 0x7FFFFFu) == 0 && exponent >= 10 && exponent <= 240;
}

AMX_INLINE numbers latent_numbers(const uint8_t *codes, float scale)
{
    numbers x;
    uint32_t bits = krn_f32_bits(scale);
    krn_amx_widen(codes, x.half);
    if (shifts(bits)) {
        v16_i up = _mm512_set1_epi16((short)((bits >> 23) - 127 + 117) * 128);
        x.half[0] = scale_up(x.half[0], up);
        x.half[1] = scale_up(x.half[1], up);
    } else {
        x.half[0] = scale_any(x.half[0], scale);
        x.half[1] = scale_any(x.half[1], scale);
    }
    return x;
}

/* 32 dimensions of two keys -> a row of each of two tiles of values: words of both keys. The first
 * tile has dimensions 0..3, 8..11, 16..19, 24..27, the second the others. */
AMX_INLINE void put_values(v16_i even, v16_i odd, uint32_t *out)
{
    v16_store_words(out, _mm512_unpacklo_epi16(even, odd));
    v16_store_words(out + TILE_WORDS, _mm512_unpackhi_epi16(even, odd));
}

/* Two keys: rows of 576 numbers, and row `pair` of the tiles of values. */
AMX_INLINE void gather_pair(const uint8_t *const rows[2], uint16_t *keys, uint32_t *values)
{
    float scales[2][KRN_LATENT_DIM / KRN_BLOCK];
    uint16_t *second = keys + KRN_PLAIN_ROW_DIM;
    memcpy(scales[0], rows[0] + KRN_LATENT_SCALES_AT, sizeof scales[0]);
    memcpy(scales[1], rows[1] + KRN_LATENT_SCALES_AT, sizeof scales[1]);
    for (uint32_t d = 0; d < KRN_LATENT_DIM; d += 64, values += 4 * TILE_WORDS) {
        numbers a = latent_numbers(rows[0] + d, scales[0][d / KRN_BLOCK]);
        numbers b = latent_numbers(rows[1] + d, scales[1][d / KRN_BLOCK]);
        for (int i = 0; i < 2; i++) {
            v16_store_words((uint32_t *)(void *)(keys + d + 32 * i), a.half[i]);
            v16_store_words((uint32_t *)(void *)(second + d + 32 * i), b.half[i]);
            put_values(a.half[i], b.half[i], values + 2 * i * TILE_WORDS);
        }
    }
    memcpy(keys + KRN_LATENT_DIM, rows[0] + KRN_LATENT_ROPE_AT, KRN_ROPE_DIM * sizeof *keys);
    memcpy(second + KRN_LATENT_DIM, rows[1] + KRN_LATENT_ROPE_AT, KRN_ROPE_DIM * sizeof *keys);
}

static const uint8_t no_key[KRN_LATENT_ROW_BYTES];

static inline const uint8_t *key_at(const attending *a, uint32_t i)
{
    return i < a->count ? krn_cache_latent(a->args->cache, a->blocks, a->list[i]) : no_key;
}

/* Keys [first, first + count) of the list, which begin at `in_chunk`; up to the next multiple of 32
 * there are zeros. */
AMX_INLINE void gather(const attending *a, uint32_t first, uint32_t in_chunk, uint32_t count)
{
    for (uint32_t i = 0; i < ((count + 31) & ~31u); i += 2) {
        const uint8_t *const rows[2] = {key_at(a, first + i), key_at(a, first + i + 1)};
        uint32_t key = in_chunk + i;
        for (uint32_t ahead = first + i + 4; ahead < first + i + 6 && ahead < a->count; ahead++) {
            const uint8_t *row = key_at(a, ahead);
            for (uint32_t b = 0; b < KRN_LATENT_ROW_BYTES; b += 64)
                _mm_prefetch((const char *)row + b, _MM_HINT_T0);
        }
        gather_pair(rows, a->keys + (size_t)i * KRN_PLAIN_ROW_DIM,
                    a->values + (size_t)(key / TILE_KEYS) * VALUE_TILES * TILE_WORDS +
                        key % TILE_KEYS / 2 * SIDE);
    }
}

/* ---- scores ---- */

#define KEY_BYTES (KRN_PLAIN_ROW_DIM * 2)

/* 64 keys against one vector of heads; out: of the block's first key. */
AMX_INLINE void score_one(const uint16_t *keys, const uint32_t *queries, float *out)
{
    const size_t next = (size_t)SIDE * KRN_PLAIN_ROW_DIM;
    KRN_TILE_ZERO(0);
    KRN_TILE_ZERO(1);
    KRN_TILE_ZERO(2);
    KRN_TILE_ZERO(3);
    for (int i = 0; i < DIM_STEPS; i++, keys += 32, queries += TILE_WORDS) {
        KRN_TILE_LOAD(4, queries, SIDE * 4);
        KRN_TILE_LOAD(5, keys, KEY_BYTES);
        KRN_TILE_LOAD(6, keys + next, KEY_BYTES);
        KRN_TILE_DOT_BF16(0, 5, 4);
        KRN_TILE_LOAD(7, keys + 2 * next, KEY_BYTES);
        KRN_TILE_DOT_BF16(1, 6, 4);
        KRN_TILE_LOAD(5, keys + 3 * next, KEY_BYTES);
        KRN_TILE_DOT_BF16(2, 7, 4);
        KRN_TILE_DOT_BF16(3, 5, 4);
    }
    KRN_TILE_STORE(0, out, SIDE * 4);
    KRN_TILE_STORE(1, out + TILE_WORDS, SIDE * 4);
    KRN_TILE_STORE(2, out + 2 * TILE_WORDS, SIDE * 4);
    KRN_TILE_STORE(3, out + 3 * TILE_WORDS, SIDE * 4);
}

/* 32 keys against two vectors of heads. */
AMX_INLINE void score_two(const uint16_t *keys, const uint32_t *queries, float *out)
{
    float *second = out + CHUNK * SIDE;
    KRN_TILE_ZERO(0);
    KRN_TILE_ZERO(1);
    KRN_TILE_ZERO(2);
    KRN_TILE_ZERO(3);
    for (int i = 0; i < DIM_STEPS; i++, keys += 32, queries += TILE_WORDS) {
        KRN_TILE_LOAD(4, queries, SIDE * 4);
        KRN_TILE_LOAD(5, queries + QUERY_SIZE, SIDE * 4);
        KRN_TILE_LOAD(6, keys, KEY_BYTES);
        KRN_TILE_DOT_BF16(0, 6, 4);
        KRN_TILE_DOT_BF16(1, 6, 5);
        KRN_TILE_LOAD(7, keys + (size_t)SIDE * KRN_PLAIN_ROW_DIM, KEY_BYTES);
        KRN_TILE_DOT_BF16(2, 7, 4);
        KRN_TILE_DOT_BF16(3, 7, 5);
    }
    KRN_TILE_STORE(0, out, SIDE * 4);
    KRN_TILE_STORE(1, second, SIDE * 4);
    KRN_TILE_STORE(2, out + TILE_WORDS, SIDE * 4);
    KRN_TILE_STORE(3, second + TILE_WORDS, SIDE * 4);
}

/* Scores of the block that begins at key `in_chunk` of the chunk. */
AMX_INLINE void score_block(const attending *a, uint32_t in_chunk)
{
    uint32_t v = 0;
    for (; v + 2 <= a->parts.vectors; v += 2)
        for (uint32_t key = 0; key < KRN_ATTEND_BLOCK; key += 32)
            score_two(a->keys + (size_t)key * KRN_PLAIN_ROW_DIM, a->queries + v * QUERY_SIZE,
                      a->scores + ((size_t)v * CHUNK + in_chunk + key) * SIDE);
    if (v < a->parts.vectors)
        score_one(a->keys, a->queries + v * QUERY_SIZE,
                  a->scores + ((size_t)v * CHUNK + in_chunk) * SIDE);
}

/* ---- softmax ---- */

AMX_INLINE v16_f exp_of(v16_f x)
{
    v16_f n = _mm512_roundscale_ps(v16_mul(x, v16_set1(KRN_ATTEND_LOG2_E)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    v16_f r = v16_fma(n, v16_set1(-KRN_ATTEND_LN2_HIGH), x);
    v16_f p = v16_set1(krn_attend_exp_terms[0]);
    r = v16_fma(n, v16_set1(-KRN_ATTEND_LN2_LOW), r);
#pragma GCC unroll 8
    for (int i = 1; i < KRN_ATTEND_EXP_TERMS; i++)
        p = v16_fma(p, r, v16_set1(krn_attend_exp_terms[i]));
    __mmask16 none = _mm512_cmp_ps_mask(x, v16_set1(KRN_ATTEND_EXP_LEAST), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), none, v16_zero());
}

/* 32 keys' weights of 16 heads, as pairs of keys -> rows of two groups of heads. */
AMX_INLINE void put_weights(v16_i words[SIDE], uint32_t row, bool second_group, uint16_t *out)
{
    v16_transpose_words(words);
    for (int h = 0; h < SIDE; h++) {
        if (h >= 8 && !second_group)
            return;
        uint16_t *to = out + (h < 8 ? 0 : (size_t)CHUNK * SIDE);
        v16_store_words((uint32_t *)(void *)(to + (row + (uint32_t)h % 8) * TILE_KEYS), words[h]);
    }
}

/* Weights of 32 keys: their high and low parts. total: the sum so far. */
AMX_INLINE v16_f weigh(const float *scores, int count, v16_f scale, v16_f largest, v16_f total,
                       bool second_group, uint16_t *out)
{
    v16_i high[SIDE], low[SIDE];
    const v16_i upper = _mm512_set1_epi32((int)0xFFFF0000), half = _mm512_set1_epi32(0x8000);
    for (int i = 0; i < SIDE; i++) {
        v16_i h[2], l[2];
        for (int j = 0; j < 2; j++) {
            v16_f e = v16_zero();
            if (2 * i + j < count)
                e = exp_of(v16_sub(v16_mul(v16_load(scores + (2 * i + j) * SIDE), scale), largest));
            total = v16_add(total, e);
            h[j] = _mm512_and_si512(_mm512_castps_si512(e), upper);
            l[j] = _mm512_castps_si512(v16_sub(e, _mm512_castsi512_ps(h[j])));
            l[j] = _mm512_add_epi32(l[j], half);
        }
        high[i] = _mm512_or_si512(_mm512_srli_epi32(h[0], 16), h[1]);
        low[i] = _mm512_or_si512(_mm512_srli_epi32(l[0], 16), _mm512_and_si512(l[1], upper));
    }
    put_weights(high, 0, second_group, out);
    put_weights(low, 8, second_group, out);
    return total;
}

/* Maximum, factor, weights and their sum of one vector of heads over a chunk of `count` keys. */
AMX_INLINE void softmax(const attending *a, uint32_t v, int count)
{
    const float *scores = a->scores + (size_t)v * CHUNK * SIDE;
    v16_f scale = v16_set1(a->args->scale), before = v16_load(a->largest + v * SIDE);
    v16_f largest = v16_load(scores);
    for (int i = 1; i < count; i++)
        largest = v16_max(largest, v16_load(scores + i * SIDE));
    largest = v16_max(v16_mul(largest, scale), before);
    v16_f factor = exp_of(v16_sub(before, largest));
    v16_f total = v16_mul(v16_load(a->total + v * SIDE), factor);
    uint16_t *out = a->weights + (size_t)v * 2 * CHUNK * SIDE;
    for (int i = 0; i < count; i += TILE_KEYS, scores += TILE_KEYS * SIDE, out += SIDE * TILE_KEYS)
        total = weigh(scores, count - i < TILE_KEYS ? count - i : TILE_KEYS, scale, largest, total,
                      2 * v + 1 < a->parts.groups, out);
    v16_store(a->largest + v * SIDE, largest);
    v16_store(a->total + v * SIDE, total);
    v16_store(a->factor + v * SIDE, factor);
}

/* ---- values ---- */

/* The sums of earlier chunks, of heads whose maximum has grown since. */
AMX_INLINE void scale_sums(const attending *a)
{
    for (uint32_t h = 0; h < a->heads; h++) {
        if (a->factor[h] == 1.0f)
            continue;
        v16_f factor = v16_set1(a->factor[h]);
        float *row = a->sums + (size_t)(h / 8) * VALUE_TILES * TILE_WORDS + h % 8 * SIDE;
        for (int tile = 0; tile < VALUE_TILES; tile++, row += TILE_WORDS) {
            v16_store(row, v16_mul(v16_load(row), factor));
            v16_store(row + 8 * SIDE, v16_mul(v16_load(row + 8 * SIDE), factor));
        }
    }
}

AMX_INLINE void load_sums(const float *const at[4], bool zero)
{
    if (zero) {
        KRN_TILE_ZERO(0);
        KRN_TILE_ZERO(1);
        KRN_TILE_ZERO(2);
        KRN_TILE_ZERO(3);
        return;
    }
    KRN_TILE_LOAD(0, at[0], SIDE * 4);
    KRN_TILE_LOAD(1, at[1], SIDE * 4);
    KRN_TILE_LOAD(2, at[2], SIDE * 4);
    KRN_TILE_LOAD(3, at[3], SIDE * 4);
}

AMX_INLINE void store_sums(float *const at[4])
{
    KRN_TILE_STORE(0, at[0], SIDE * 4);
    KRN_TILE_STORE(1, at[1], SIDE * 4);
    KRN_TILE_STORE(2, at[2], SIDE * 4);
    KRN_TILE_STORE(3, at[3], SIDE * 4);
}

#define STEP_VALUES  ((size_t)VALUE_TILES * TILE_WORDS) /* words of 32 keys */
#define STEP_WEIGHTS ((size_t)SIDE * TILE_KEYS)

/* Two groups, 32 dimensions. */
AMX_INLINE void add_two(const uint16_t *weights, const uint32_t *values, int steps)
{
    for (int i = 0; i < steps; i++, weights += STEP_WEIGHTS, values += STEP_VALUES) {
        KRN_TILE_LOAD(4, weights, TILE_KEYS * 2);
        KRN_TILE_LOAD(5, weights + (size_t)CHUNK * SIDE, TILE_KEYS * 2);
        KRN_TILE_LOAD(6, values, SIDE * 4);
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_DOT_BF16(1, 5, 6);
        KRN_TILE_LOAD(7, values + TILE_WORDS, SIDE * 4);
        KRN_TILE_DOT_BF16(2, 4, 7);
        KRN_TILE_DOT_BF16(3, 5, 7);
    }
}

/* One group, 64 dimensions. */
AMX_INLINE void add_one(const uint16_t *weights, const uint32_t *values, int steps)
{
    for (int i = 0; i < steps; i++, weights += STEP_WEIGHTS, values += STEP_VALUES) {
        KRN_TILE_LOAD(4, weights, TILE_KEYS * 2);
        KRN_TILE_LOAD(5, values, SIDE * 4);
        KRN_TILE_DOT_BF16(0, 4, 5);
        KRN_TILE_LOAD(6, values + TILE_WORDS, SIDE * 4);
        KRN_TILE_DOT_BF16(1, 4, 6);
        KRN_TILE_LOAD(7, values + 2 * TILE_WORDS, SIDE * 4);
        KRN_TILE_DOT_BF16(2, 4, 7);
        KRN_TILE_LOAD(5, values + 3 * TILE_WORDS, SIDE * 4);
        KRN_TILE_DOT_BF16(3, 4, 5);
    }
}

/* Adds a chunk's weights times values to the sums; the first chunk begins them. */
AMX_INLINE void add_values(const attending *a, int count, bool first)
{
    int steps = (count + TILE_KEYS - 1) / TILE_KEYS;
    uint32_t pairs = a->parts.groups / 2 * 2;
    for (int tile = 0; tile < VALUE_TILES; tile += 2) {
        for (uint32_t g = 0; g < pairs; g += 2) {
            float *one = a->sums + ((size_t)g * VALUE_TILES + (size_t)tile) * TILE_WORDS;
            float *two = one + (size_t)VALUE_TILES * TILE_WORDS;
            float *const at[4] = {one, two, one + TILE_WORDS, two + TILE_WORDS};
            load_sums((const float *const *)at, first);
            add_two(a->weights + (size_t)g * CHUNK * SIDE, a->values + tile * TILE_WORDS, steps);
            store_sums(at);
        }
    }
    for (int tile = 0; pairs < a->parts.groups && tile < VALUE_TILES; tile += 4) {
        float *one = a->sums + ((size_t)pairs * VALUE_TILES + (size_t)tile) * TILE_WORDS;
        float *const at[4] = {one, one + TILE_WORDS, one + 2 * TILE_WORDS, one + 3 * TILE_WORDS};
        load_sums((const float *const *)at, first);
        add_one(a->weights + (size_t)pairs * CHUNK * SIDE, a->values + tile * TILE_WORDS, steps);
        store_sums(at);
    }
}

/* Sums over the sum of weights, in the order of dimensions. */
AMX_INLINE void put_outputs(const attending *a, uint16_t *out)
{
    for (uint32_t h = 0; h < a->heads; h++, out += KRN_LATENT_DIM) {
        v16_f inverse = v16_set1(1.0f / a->total[h]);
        const float *row = a->sums + (size_t)(h / 8) * VALUE_TILES * TILE_WORDS + h % 8 * SIDE;
        for (uint32_t d = 0; d < KRN_LATENT_DIM; d += 32, row += 2 * TILE_WORDS) {
            v16_f low = v16_add(v16_load(row), v16_load(row + 8 * SIDE));
            v16_f high = v16_add(v16_load(row + TILE_WORDS), v16_load(row + TILE_WORDS + 8 * SIDE));
            v16_i bits = _mm512_packus_epi32(v16_bf16_bits(v16_mul(low, inverse)),
                                             v16_bf16_bits(v16_mul(high, inverse)));
            v16_store_words((uint32_t *)(void *)(out + d), bits);
        }
    }
}

AMX_INLINE void begin(attending *a, uint32_t row, uint32_t head, uint8_t *scratch)
{
    const krn_attend_args *args = a->args;
    size_t index = (size_t)row * args->heads + head;
    krn_attend_parts p = krn_attend_parts_of(a->heads);
    a->blocks = args->rows[row].blocks;
    a->list = args->lists + (size_t)row * args->list_stride;
    a->count = args->list_counts[row];
    a->parts = p;
    a->queries = (uint32_t *)(void *)(scratch + p.queries);
    a->keys = (uint16_t *)(void *)(scratch + p.keys);
    a->values = (uint32_t *)(void *)(scratch + p.values);
    a->scores = (float *)(void *)(scratch + p.scores);
    a->weights = (uint16_t *)(void *)(scratch + p.weights);
    a->sums = (float *)(void *)(scratch + p.sums);
    a->largest = (float *)(void *)(scratch + p.state);
    a->total = a->largest + p.vectors * SIDE;
    a->factor = a->total + p.vectors * SIDE;
    for (uint32_t v = 0; v < p.vectors; v++) {
        size_t at = index + (size_t)v * SIDE;
        spread_queries((const uint16_t *)args->q_latent + at * KRN_LATENT_DIM,
                       (const uint16_t *)args->q + at * KRN_HEAD_DIM, a->heads - v * SIDE,
                       a->queries + v * QUERY_SIZE);
        v16_store(a->largest + v * SIDE, v16_set1(-INFINITY));
        v16_store(a->total + v * SIDE, v16_zero());
    }
}

KRN_AMX_TARGET void krn_amx_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                                   uint32_t head_count, void *scratch)
{
    attending a = {.args = args, .heads = head_count};
    KRN_TILES_BEGIN(&krn_tiles_full);
    begin(&a, row, head, scratch);
    for (uint32_t first = 0; first < a.count; first += KRN_ATTEND_CHUNK) {
        uint32_t left = a.count - first;
        uint32_t count = left < KRN_ATTEND_CHUNK ? left : KRN_ATTEND_CHUNK;
        for (uint32_t at = 0; at < count; at += KRN_ATTEND_BLOCK) {
            uint32_t some = count - at < KRN_ATTEND_BLOCK ? count - at : KRN_ATTEND_BLOCK;
            gather(&a, first + at, at, some);
            score_block(&a, at);
        }
        for (uint32_t v = 0; v < a.parts.vectors; v++)
            softmax(&a, v, (int)count);
        if (first > 0)
            scale_sums(&a);
        add_values(&a, (int)count, first == 0);
    }
    put_outputs(&a, (uint16_t *)args->output + ((size_t)row * args->heads + head) * KRN_LATENT_DIM);
    KRN_TILES_END();
}

#endif
