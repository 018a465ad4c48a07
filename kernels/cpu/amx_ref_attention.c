/* Plain C: index scores and attention of cpu-amx-v1. Any thread. */
#include "kernels/cpu/amx_attend.h"

#include <string.h>

#define LANES 16 /* heads h, h + 16, .. share a lane */

/* ---- index scores ---- */

static float index_dot(const uint8_t *query, const uint8_t *key)
{
    float dot = 0.0f;
    for (uint32_t d = 0; d < KRN_INDEX_DIM; d += KRN_TILE_STEP) {
        float q[KRN_TILE_STEP], k[KRN_TILE_STEP];
        for (uint32_t i = 0; i < KRN_TILE_STEP; i++) {
            q[i] = krn_e4m3_to_f32(query[d + i]);
            k[i] = krn_e4m3_to_f32(key[d + i]);
        }
        dot = krn_tile_step(k, q, dot);
    }
    return dot;
}

/* Lanes at distance 8 are added, then at 4, 2 and 1. */
static float add_lanes(float lanes[LANES])
{
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        for (int i = 0; i < distance; i++)
            lanes[i] = lanes[i] + lanes[i + distance];
    return lanes[0];
}

void krn_amx_ref_score(const krn_score_tile *tile)
{
    for (uint32_t s = tile->from; s < tile->to; s++) {
        const uint8_t *page = krn_cache_page(tile->cache, tile->blocks, s);
        uint32_t in_page = s % KRN_PAGE_TOKENS;
        const uint8_t *key = page + KRN_INDEX_CODES_AT + in_page * KRN_INDEX_DIM;
        float key_scale;
        memcpy(&key_scale, page + KRN_INDEX_SCALES_AT + in_page * sizeof(float), sizeof key_scale);
        for (uint32_t r = 0; r < tile->row_count; r++) {
            float sums[LANES] = {0};
            for (uint32_t h = 0; h < tile->heads; h++) {
                size_t at = (size_t)r * tile->heads + h;
                float dot = index_dot((const uint8_t *)tile->queries + at * KRN_INDEX_DIM, key);
                sums[h % LANES] = fmaf(dot > 0.0f ? dot : 0.0f, tile->factors[at], sums[h % LANES]);
            }
            tile->out[r * tile->out_stride + s - tile->from] = add_lanes(sums) * key_scale;
        }
    }
}

/* ---- attention ---- */

static float latent_value(const uint8_t *row, uint32_t d)
{
    float scale;
    memcpy(&scale, row + KRN_LATENT_SCALES_AT + d / KRN_BLOCK * sizeof scale, sizeof scale);
    return krn_round_bf16(krn_e4m3_to_f32(row[d]) * scale);
}

static float key_value(const uint8_t *row, uint32_t d)
{
    uint16_t value;
    if (d < KRN_LATENT_DIM)
        return latent_value(row, d);
    memcpy(&value, row + KRN_LATENT_ROPE_AT + (d - KRN_LATENT_DIM) * sizeof value, sizeof value);
    return krn_bf16_to_f32(value);
}

/* One head of one row; the sums that chunks carry on. */
typedef struct head_sums {
    float largest, total;
    float high[KRN_LATENT_DIM], low[KRN_LATENT_DIM];
} head_sums;

static float attend_score(const uint8_t *key, const uint16_t *q_latent, const uint16_t *q_rope)
{
    float score = 0.0f;
    for (uint32_t d = 0; d < KRN_PLAIN_ROW_DIM; d += KRN_TILE_STEP) {
        float k[KRN_TILE_STEP], q[KRN_TILE_STEP];
        for (uint32_t i = 0; i < KRN_TILE_STEP; i++) {
            k[i] = key_value(key, d + i);
            q[i] = krn_bf16_to_f32(d < KRN_LATENT_DIM ? q_latent[d + i]
                                                      : q_rope[d - KRN_LATENT_DIM + i]);
        }
        score = krn_tile_step(k, q, score);
    }
    return score;
}

/* Up to 32 keys' weights times values. */
static void add_values(head_sums *s, const uint8_t *const *keys, const float *weights,
                       uint32_t count)
{
    float high[KRN_TILE_STEP] = {0}, low[KRN_TILE_STEP] = {0};
    for (uint32_t i = 0; i < count; i++) {
        high[i] = krn_bits_f32(krn_f32_bits(weights[i]) & 0xFFFF0000u);
        low[i] = krn_bits_f32((krn_f32_bits(weights[i] - high[i]) + 0x8000u) & 0xFFFF0000u);
    }
    for (uint32_t d = 0; d < KRN_LATENT_DIM; d++) {
        float c[KRN_TILE_STEP] = {0};
        for (uint32_t i = 0; i < count; i++)
            c[i] = latent_value(keys[i], d);
        s->high[d] = krn_tile_step(high, c, s->high[d]);
        s->low[d] = krn_tile_step(low, c, s->low[d]);
    }
}

/* The keys of a chunk; weights: their scores, become weights. */
static void add_chunk(head_sums *s, const uint8_t *const *keys, float *weights, uint32_t count)
{
    float largest = s->largest;
    for (uint32_t i = 0; i < count; i++)
        largest = weights[i] > largest ? weights[i] : largest;
    float factor = krn_attend_exp(s->largest - largest);
    s->largest = largest;
    s->total = s->total * factor;
    for (uint32_t d = 0; d < KRN_LATENT_DIM; d++) {
        s->high[d] = s->high[d] * factor;
        s->low[d] = s->low[d] * factor;
    }
    for (uint32_t i = 0; i < count; i++) {
        weights[i] = krn_attend_exp(weights[i] - largest);
        s->total = s->total + weights[i];
    }
    for (uint32_t i = 0; i < count; i += KRN_TILE_STEP)
        add_values(s, keys + i, weights + i, count - i < KRN_TILE_STEP ? count - i : KRN_TILE_STEP);
}

static void attend_head(const krn_attend_args *args, uint32_t row, uint32_t head)
{
    const uint32_t *list = args->lists + (size_t)row * args->list_stride;
    size_t index = (size_t)row * args->heads + head;
    const uint16_t *q_latent = (const uint16_t *)args->q_latent + index * KRN_LATENT_DIM;
    const uint16_t *q_rope = (const uint16_t *)args->q + index * KRN_HEAD_DIM + KRN_NOPE_DIM;
    uint16_t *out = (uint16_t *)args->output + index * KRN_LATENT_DIM;
    head_sums s = {.largest = -INFINITY};
    uint32_t count;
    for (uint32_t first = 0; first < args->list_counts[row]; first += count) {
        const uint8_t *keys[KRN_ATTEND_CHUNK];
        float weights[KRN_ATTEND_CHUNK];
        count = args->list_counts[row] - first;
        count = count < KRN_ATTEND_CHUNK ? count : KRN_ATTEND_CHUNK;
        for (uint32_t i = 0; i < count; i++) {
            keys[i] = krn_cache_latent(args->cache, args->rows[row].blocks, list[first + i]);
            weights[i] = attend_score(keys[i], q_latent, q_rope) * args->scale;
        }
        add_chunk(&s, keys, weights, count);
    }
    float inverse = 1.0f / s.total;
    for (uint32_t d = 0; d < KRN_LATENT_DIM; d++)
        out[d] = krn_f32_to_bf16((s.high[d] + s.low[d]) * inverse);
}

void krn_amx_ref_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                        uint32_t head_count, void *scratch)
{
    (void)scratch;
    for (uint32_t h = head; h < head + head_count; h++)
        attend_head(args, row, h);
}
