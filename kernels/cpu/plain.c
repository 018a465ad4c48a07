/* Plain numerics: f32 rows, f32 cache, no Q128, no Hadamard. For comparison with the plain vectors.
 *
 * Straight loops, arranged so that the compiler vectorises over independent outputs. Thread: the
 * pool's caller. */
#include "kernels/cpu/variant.h"

#include <math.h>
#include <string.h>

#define INDEX_ROOT 0.08838834764831845f /* 128^-0.5 */

static const float *plain_latent(const krn_cache *cache, const uint32_t *blocks, uint32_t slot)
{
    return (const float *)krn_cache_page(cache, blocks, slot) +
           (size_t)(slot % KRN_PAGE_TOKENS) * KRN_PLAIN_ROW_DIM;
}

static void rope_interleaved(float *x, const float *table)
{
    for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
        float a = x[2 * j], b = x[2 * j + 1], c = table[j], s = table[KRN_ROPE_PAIRS + j];
        x[2 * j] = a * c - b * s;
        x[2 * j + 1] = a * s + b * c;
    }
}

static void rope_half_split(float *x, const float *table)
{
    for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
        float a = x[j], b = x[j + KRN_ROPE_PAIRS], c = table[j], s = table[KRN_ROPE_PAIRS + j];
        x[j] = a * c - b * s;
        x[j + KRN_ROPE_PAIRS] = a * s + b * c;
    }
}

typedef struct rope_work {
    float *q;
    uint32_t heads;
    const float *table;
} rope_work;

static void rope_slice(void *context, uint32_t first, uint32_t count)
{
    const rope_work *w = context;
    for (size_t t = first; t < (size_t)first + count; t++)
        for (uint32_t h = 0; h < w->heads; h++)
            rope_interleaved(w->q + (t * w->heads + h) * KRN_HEAD_DIM + KRN_NOPE_DIM,
                             w->table + t * KRN_ROPE_DIM);
}

void krn_plain_rope_queries(krn_pool *pool, float *q, uint32_t rows, uint32_t heads,
                            const float *table)
{
    rope_work w = {.q = q, .heads = heads, .table = table};
    krn_pool_slices(pool, rows, 16, rope_slice, &w);
}

void krn_plain_latent_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                          uint32_t count, const float *kv, const float *weight, float epsilon,
                          const float *table)
{
    (void)pool;
    for (uint32_t t = 0; t < count; t++) {
        float *row = (float *)plain_latent(cache, rows[t].blocks, rows[t].slot);
        const float *x = kv + (size_t)t * KRN_PLAIN_ROW_DIM;
        /* Not finite here shows again in the next norm, which reports it. */
        (void)!krn_plain_rmsnorm_add(NULL, x, NULL, weight, epsilon, 1, KRN_LATENT_DIM, row, NULL);
        memcpy(row + KRN_LATENT_DIM, x + KRN_LATENT_DIM, KRN_ROPE_DIM * sizeof(float));
        rope_interleaved(row + KRN_LATENT_DIM, table + (size_t)t * KRN_ROPE_DIM);
    }
}

/* Dot products of one query with up to 16 keys at once: one chain each. */
#define KEYS_AT_ONCE 16

static void dots(const float *query, const float *const *keys, uint32_t n, float *out_dots)
{
    float acc[KEYS_AT_ONCE] = {0};
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
            acc[i] = acc[i] + query[d] * keys[i][d];
    memcpy(out_dots, acc, sizeof acc);
}

typedef struct attend_work {
    const krn_attend_args *args;
    size_t thread_bytes;
} attend_work;

static void attend_head(const krn_attend_args *args, uint32_t row, uint32_t h, float *p)
{
    size_t index = (size_t)row * args->heads + h;
    const float *q_latent = (const float *)args->q_latent + index * KRN_LATENT_DIM;
    const float *q_rope = (const float *)args->q + index * KRN_HEAD_DIM + KRN_NOPE_DIM;
    const uint32_t *blocks = args->rows[row].blocks;
    const uint32_t *list = args->lists + (size_t)row * args->list_stride;
    uint32_t count = args->list_counts[row];
    float largest = -INFINITY, sum = 0.0f;
    for (uint32_t i = 0; i < count; i += KEYS_AT_ONCE) {
        const float *latents[KEYS_AT_ONCE], *ropes[KEYS_AT_ONCE];
        float latent[KEYS_AT_ONCE], rope[KEYS_AT_ONCE];
        for (uint32_t j = 0; j < KEYS_AT_ONCE; j++) {
            uint32_t s = i + j < count ? list[i + j] : list[i];
            latents[j] = plain_latent(args->cache, blocks, s);
            ropes[j] = latents[j] + KRN_LATENT_DIM;
        }
        dots(q_latent, latents, KRN_LATENT_DIM, latent);
        dots(q_rope, ropes, KRN_ROPE_DIM, rope);
        for (uint32_t j = 0; j < KEYS_AT_ONCE && i + j < count; j++) {
            p[i + j] = (latent[j] + rope[j]) * args->scale;
            largest = p[i + j] > largest ? p[i + j] : largest;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        p[i] = krn_exp(p[i] - largest);
        sum = sum + p[i];
    }
    float *o = (float *)args->output + index * KRN_LATENT_DIM;
    memset(o, 0, KRN_LATENT_DIM * sizeof(float));
    for (uint32_t i = 0; i < count; i++) {
        const float *key = plain_latent(args->cache, blocks, list[i]);
        float weight = p[i] / sum;
        for (uint32_t d = 0; d < KRN_LATENT_DIM; d++)
            o[d] = o[d] + weight * key[d];
    }
}

static void attend_task(void *context, uint32_t task, uint32_t thread)
{
    const attend_work *w = context;
    for (uint32_t h = 0; h < w->args->heads; h++)
        attend_head(w->args, task, h,
                    (float *)((uint8_t *)w->args->scratch + thread * w->thread_bytes));
}

void krn_plain_attend(krn_pool *pool, const krn_attend_args *args)
{
    attend_work w = {.args = args, .thread_bytes = krn_attend_thread_bytes(args->list_stride)};
    krn_pool_run(pool, args->count, attend_task, &w);
}

void krn_plain_index_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                         uint32_t count, const float *z, const float *weight, const float *bias,
                         float epsilon, const float *table)
{
    (void)pool;
    for (uint32_t t = 0; t < count; t++) {
        float *key =
            (float *)(krn_cache_page(cache, rows[t].blocks, rows[t].slot) + KRN_PLAIN_INDEX_AT) +
            (size_t)(rows[t].slot % KRN_PAGE_TOKENS) * KRN_INDEX_DIM;
        krn_plain_layernorm(z + (size_t)t * KRN_INDEX_DIM, weight, bias, epsilon, KRN_INDEX_DIM,
                            key);
        rope_half_split(key, table + (size_t)t * KRN_ROPE_DIM);
    }
}

void krn_plain_index_query(krn_pool *pool, float *q, const float *wt, uint32_t rows, uint32_t heads,
                           const float *table, float *out_factors)
{
    float root = (float)(1.0 / sqrt((double)heads));
    (void)pool;
    for (size_t t = 0; t < rows; t++) {
        for (uint32_t h = 0; h < heads; h++) {
            rope_half_split(q + (t * heads + h) * KRN_INDEX_DIM, table + t * KRN_ROPE_DIM);
            out_factors[t * heads + h] = wt[t * heads + h] * root * INDEX_ROOT;
        }
    }
}

void krn_plain_score(const krn_score_tile *tile)
{
    const float *page = (const float *)(tile->page + KRN_PLAIN_INDEX_AT);
    for (uint32_t s = tile->from; s < tile->to; s += KEYS_AT_ONCE) {
        const float *keys[KEYS_AT_ONCE];
        for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
            keys[i] = page + (size_t)(s + i < tile->to ? s + i : s) * KRN_INDEX_DIM;
        for (uint32_t r = 0; r < tile->row_count; r++) {
            float acc[KEYS_AT_ONCE] = {0}, dot[KEYS_AT_ONCE];
            for (uint32_t h = 0; h < tile->heads; h++) {
                size_t at = (size_t)r * tile->heads + h;
                dots((const float *)tile->queries + at * KRN_INDEX_DIM, keys, KRN_INDEX_DIM, dot);
                for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
                    acc[i] = acc[i] + (dot[i] > 0.0f ? dot[i] : 0.0f) * tile->factors[at];
            }
            for (uint32_t i = 0; i < KEYS_AT_ONCE && s + i < tile->to; i++)
                tile->out[r * tile->out_stride + s + i - tile->from] = acc[i];
        }
    }
}
