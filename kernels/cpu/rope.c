/* Rotary position embedding: YaRN frequencies, tables of cosines and sines, rotations.
 *
 * Thread: the pool's caller. */
#include "kernels/cpu/variant.h"

#include <math.h>

static double correction(const krn_rope_config *config, double rotations)
{
    return KRN_ROPE_DIM * log(config->original_positions / (rotations * 2.0 * M_PI)) /
           (2.0 * log(config->theta));
}

void krn_rope_init(const krn_rope_config *config, krn_rope *out_rope)
{
    double low = 0, high = 0;
    if (config->factor > 1.0) {
        low = fmin(fmax(floor(correction(config, config->beta_fast)), 0), KRN_ROPE_DIM - 1);
        high = fmin(fmax(ceil(correction(config, config->beta_slow)), 0), KRN_ROPE_DIM - 1);
        if (low == high)
            high += 0.001;
    }
    for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
        float power = (float)pow(config->theta, (double)(2 * j) / KRN_ROPE_DIM);
        float base = 1.0f / power;
        if (config->factor <= 1.0) {
            out_rope->frequency[j] = base;
            continue;
        }
        float ramp = ((float)j - (float)low) / (float)(high - low);
        ramp = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
        float keep = 1.0f - ramp;
        float stretched = base / (float)config->factor * (1.0f - keep);
        float kept = base * keep;
        out_rope->frequency[j] = stretched + kept;
    }
}

typedef struct table_work {
    const krn_rope *rope;
    const uint32_t *positions;
    float *table;
} table_work;

static void table_slice(void *context, uint32_t first, uint32_t count)
{
    const table_work *w = context;
    for (uint32_t i = first; i < first + count; i++) {
        float *row = w->table + (size_t)i * KRN_ROPE_DIM;
        for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
            float angle = (float)w->positions[i] * w->rope->frequency[j];
            double c, s;
            sincos((double)angle, &s, &c);
            row[j] = (float)c;
            row[KRN_ROPE_PAIRS + j] = (float)s;
        }
    }
}

void krn_rope_table(krn_pool *pool, const krn_rope *rope, const uint32_t *positions, uint32_t count,
                    float *out_table)
{
    table_work w = {.rope = rope, .positions = positions, .table = out_table};
    krn_pool_slices(pool, count, 16, table_slice, &w);
}

float krn_attention_scale(double factor, double mscale_all_dim)
{
    double m = factor > 1.0 ? 0.1 * mscale_all_dim * log(factor) + 1.0 : 1.0;
    return (float)(1.0 / sqrt((double)KRN_HEAD_DIM) * m * m);
}

void krn_rope_interleaved(uint16_t *x, const float *table)
{
    for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
        float a = krn_bf16_to_f32(x[2 * j]), b = krn_bf16_to_f32(x[2 * j + 1]);
        float c = table[j], s = table[KRN_ROPE_PAIRS + j];
        float ac = a * c, bs = b * s, as = a * s, bc = b * c;
        x[2 * j] = krn_f32_to_bf16(ac - bs);
        x[2 * j + 1] = krn_f32_to_bf16(as + bc);
    }
}

void krn_rope_half_split(uint16_t *x, const float *table)
{
    for (uint32_t j = 0; j < KRN_ROPE_PAIRS; j++) {
        float a = krn_bf16_to_f32(x[j]), b = krn_bf16_to_f32(x[j + KRN_ROPE_PAIRS]);
        float c = table[j], s = table[KRN_ROPE_PAIRS + j];
        float ac = a * c, bs = b * s, as = a * s, bc = b * c;
        x[j] = krn_f32_to_bf16(ac - bs);
        x[j + KRN_ROPE_PAIRS] = krn_f32_to_bf16(as + bc);
    }
}

typedef struct query_work {
    uint16_t *q;
    uint32_t heads;
    const float *table;
} query_work;

static void query_slice(void *context, uint32_t first, uint32_t count)
{
    const query_work *w = context;
    for (uint32_t t = first; t < first + count; t++)
        for (uint32_t h = 0; h < w->heads; h++)
            krn_rope_interleaved(w->q + ((size_t)t * w->heads + h) * KRN_HEAD_DIM + KRN_NOPE_DIM,
                                 w->table + (size_t)t * KRN_ROPE_DIM);
}

void krn_rope_queries(krn_pool *pool, uint16_t *q, uint32_t rows, uint32_t heads,
                      const float *table)
{
    query_work w = {.q = q, .heads = heads, .table = table};
    krn_pool_slices(pool, rows, 1 + 64 / heads, query_slice, &w);
}
