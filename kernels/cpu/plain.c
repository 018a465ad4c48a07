/* Plain numerics: f32 rows, f32 cache, no Q128, no Hadamard. For comparison with the plain vectors.
 *
 * Straight loops, arranged so that the compiler vectorises over independent outputs. Thread: the
 * pool's caller. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

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

/* 16 keys with their dimensions side by side, so that the compiler vectorises over keys: one chain
 * each. Lanes without a key repeat the first. */
#define KEYS_AT_ONCE 16

typedef struct key_tile {
    float values[KRN_PLAIN_ROW_DIM][KEYS_AT_ONCE];
} key_tile;

static void key_tile_fill(key_tile *tile, const float *const *keys, uint32_t n)
{
    for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
        for (uint32_t d = 0; d < n; d++)
            tile->values[d][i] = keys[i][d];
}

/* Four floats: what every x86-64 and arm64 has, without a variant. */
typedef float four __attribute__((vector_size(16), aligned(4)));

/* Dot products with dimensions [from, to). */
static void dots(const float *query, const key_tile *tile, uint32_t from, uint32_t to,
                 float *out_dots)
{
    four acc0 = {0}, acc1 = {0}, acc2 = {0}, acc3 = {0};
    for (uint32_t d = from; d < to; d++) {
        const four *key = (const four *)tile->values[d];
        float q = query[d - from];
        acc0 = acc0 + q * key[0];
        acc1 = acc1 + q * key[1];
        acc2 = acc2 + q * key[2];
        acc3 = acc3 + q * key[3];
    }
    memcpy(out_dots, &acc0, sizeof acc0);
    memcpy(out_dots + 4, &acc1, sizeof acc1);
    memcpy(out_dots + 8, &acc2, sizeof acc2);
    memcpy(out_dots + 12, &acc3, sizeof acc3);
}

typedef struct attend_work {
    const krn_attend_args *args;
    size_t thread_bytes;
} attend_work;

/* Scores of 16 keys for every head: p [heads][count]. */
static void attend_scores(const krn_attend_args *args, uint32_t row, const key_tile *tile,
                          uint32_t first, uint32_t keys, float *p)
{
    uint32_t count = args->list_counts[row];
    for (uint32_t h = 0; h < args->heads; h++) {
        size_t index = (size_t)row * args->heads + h;
        float latent[KEYS_AT_ONCE], rope[KEYS_AT_ONCE];
        dots((const float *)args->q_latent + index * KRN_LATENT_DIM, tile, 0, KRN_LATENT_DIM,
             latent);
        dots((const float *)args->q + index * KRN_HEAD_DIM + KRN_NOPE_DIM, tile, KRN_LATENT_DIM,
             KRN_PLAIN_ROW_DIM, rope);
        for (uint32_t j = 0; j < keys; j++)
            p[(size_t)h * count + first + j] = (latent[j] + rope[j]) * args->scale;
    }
}

/* Softmax and P.V of one head. */
static void attend_values(const krn_attend_args *args, uint32_t row, uint32_t h, float *p)
{
    const uint32_t *list = args->lists + (size_t)row * args->list_stride;
    uint32_t count = args->list_counts[row];
    float largest = p[0], sum = 0.0f;
    for (uint32_t i = 1; i < count; i++)
        largest = p[i] > largest ? p[i] : largest;
    for (uint32_t i = 0; i < count; i++) {
        p[i] = krn_exp(p[i] - largest);
        sum = sum + p[i];
    }
    float *o = (float *)args->output + ((size_t)row * args->heads + h) * KRN_LATENT_DIM;
    memset(o, 0, KRN_LATENT_DIM * sizeof(float));
    for (uint32_t i = 0; i < count; i++) {
        const float *key = plain_latent(args->cache, args->rows[row].blocks, list[i]);
        float weight = p[i] / sum;
        for (uint32_t d = 0; d < KRN_LATENT_DIM; d += 4)
            *(four *)(o + d) = *(const four *)(o + d) + weight * *(const four *)(key + d);
    }
}

static void attend_task(void *context, uint32_t task, uint32_t thread)
{
    const attend_work *w = context;
    const krn_attend_args *args = w->args;
    float *p = (float *)((uint8_t *)args->scratch + thread * w->thread_bytes);
    const uint32_t *list = args->lists + (size_t)task * args->list_stride;
    uint32_t count = args->list_counts[task];
    key_tile tile;
    for (uint32_t i = 0; i < count; i += KEYS_AT_ONCE) {
        const float *keys[KEYS_AT_ONCE];
        for (uint32_t j = 0; j < KEYS_AT_ONCE; j++)
            keys[j] =
                plain_latent(args->cache, args->rows[task].blocks, list[i + j < count ? i + j : i]);
        key_tile_fill(&tile, keys, KRN_PLAIN_ROW_DIM);
        attend_scores(args, task, &tile, i, count - i < KEYS_AT_ONCE ? count - i : KEYS_AT_ONCE, p);
    }
    for (uint32_t h = 0; h < args->heads; h++)
        attend_values(args, task, h, p + (size_t)h * count);
}

void krn_plain_attend(krn_pool *pool, const krn_attend_args *args)
{
    attend_work w = {.args = args,
                     .thread_bytes = krn_attend_thread_bytes(args->heads, args->list_stride)};
    sl_assert(args->heads <= KRN_PLAIN_ROW_DIM); /* the scratch holds that many rows of scores */
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

static void score_page(const krn_score_tile *tile, const krn_score_page *part)
{
    const float *page = (const float *)(part->page + KRN_PLAIN_INDEX_AT);
    key_tile keys;
    for (uint32_t s = part->from; s < part->to; s += KEYS_AT_ONCE) {
        const float *rows[KEYS_AT_ONCE];
        for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
            rows[i] = page + (size_t)(s + i < part->to ? s + i : s) * KRN_INDEX_DIM;
        key_tile_fill(&keys, rows, KRN_INDEX_DIM);
        for (uint32_t r = 0; r < tile->row_count; r++) {
            float acc[KEYS_AT_ONCE] = {0}, dot[KEYS_AT_ONCE];
            for (uint32_t h = 0; h < tile->heads; h++) {
                size_t at = (size_t)r * tile->heads + h;
                dots((const float *)tile->queries + at * KRN_INDEX_DIM, &keys, 0, KRN_INDEX_DIM,
                     dot);
                for (uint32_t i = 0; i < KEYS_AT_ONCE; i++)
                    acc[i] = acc[i] + (dot[i] > 0.0f ? dot[i] : 0.0f) * tile->factors[at];
            }
            for (uint32_t i = 0; i < KEYS_AT_ONCE && s + i < part->to; i++)
                part->out[r * tile->out_stride + s + i - part->from] = acc[i];
        }
    }
}

void krn_plain_score(const krn_score_tile *tile)
{
    krn_score_pages(tile, score_page);
}
