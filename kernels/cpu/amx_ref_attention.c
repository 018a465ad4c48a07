/* Plain C: index scores and attention of cpu-amx-v1. Any thread. */
#include "kernels/cpu/amx_order.h"
#include "kernels/cpu/variant.h"

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

void krn_amx_ref_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                        uint32_t head_count, void *scratch)
{
    krn_variant_ref.attend(args, row, head, head_count, scratch);
}
