/* Row operations: norms, Q128, SwiGLU product, embedding, exp.
 *
 * Splits rows over the pool and calls the variant. Thread: the pool's caller. */
#include "kernels/cpu/variant.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

float krn_exp(float x)
{
    return (float)exp((double)x);
}

bool krn_finite(const float *values, size_t count)
{
    /* Exponent all ones: NaN or infinity. */
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (krn_f32_bits(values[i]) & 0x7F800000u) == 0x7F800000u;
    return found == 0;
}

typedef struct norm_work {
    const uint16_t *x, *res, *weight;
    float epsilon;
    uint32_t n;
    uint16_t *out, *out_res;
    atomic_bool fault;
} norm_work;

static void norm_slice(void *context, uint32_t first, uint32_t count)
{
    norm_work *w = context;
    size_t at = (size_t)first * w->n;
    if (!krn_variant_current()->common->rmsnorm(w->x + at, w->res ? w->res + at : NULL, w->weight,
                                                w->epsilon, count, w->n, w->out + at,
                                                w->out_res ? w->out_res + at : NULL))
        atomic_store_explicit(&w->fault, true, memory_order_relaxed);
}

bool krn_rmsnorm_add(krn_pool *pool, const uint16_t *x, const uint16_t *res, const uint16_t *weight,
                     float epsilon, uint32_t rows, uint32_t n, uint16_t *out, uint16_t *out_res)
{
    norm_work w = {.x = x,
                   .res = res,
                   .weight = weight,
                   .epsilon = epsilon,
                   .n = n,
                   .out = out,
                   .out_res = out_res};
    krn_pool_slices(pool, rows, 16, norm_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

void krn_plain_layernorm(const float *z, const float *weight, const float *bias, float epsilon,
                         uint32_t n, float *out)
{
    float sum = 0.0f;
    for (uint32_t j = 0; j < n; j++)
        sum = sum + z[j];
    float mean = sum / (float)n;
    float squares = 0.0f;
    for (uint32_t j = 0; j < n; j++) {
        float difference = z[j] - mean;
        float square = difference * difference;
        squares = squares + square;
    }
    float root = sqrtf(squares / (float)n + epsilon);
    for (uint32_t j = 0; j < n; j++) {
        float scaled = (z[j] - mean) / root * weight[j];
        out[j] = scaled + bias[j];
    }
}

void krn_layernorm(const uint16_t *z, const float *weight, const float *bias, float epsilon,
                   uint32_t n, uint16_t *out)
{
    float sum = 0.0f;
    for (uint32_t j = 0; j < n; j++)
        sum = sum + krn_bf16_to_f32(z[j]);
    float mean = sum / (float)n;
    float squares = 0.0f;
    for (uint32_t j = 0; j < n; j++) {
        float difference = krn_bf16_to_f32(z[j]) - mean;
        float square = difference * difference;
        squares = squares + square;
    }
    float root = sqrtf(squares / (float)n + epsilon);
    for (uint32_t j = 0; j < n; j++) {
        float scaled = (krn_bf16_to_f32(z[j]) - mean) / root * weight[j];
        out[j] = krn_f32_to_bf16(scaled + bias[j]);
    }
}

typedef struct q128_work {
    const uint16_t *x;
    uint32_t k;
    bool pow2;
    uint8_t *codes;
    float *scales;
    atomic_bool fault;
} q128_work;

static void q128_slice(void *context, uint32_t first, uint32_t count)
{
    q128_work *w = context;
    size_t at = (size_t)first * w->k;
    if (!krn_variant_current()->common->q128(w->x + at, count, w->k, w->pow2, w->codes + at,
                                             w->scales + at / KRN_BLOCK))
        atomic_store_explicit(&w->fault, true, memory_order_relaxed);
}

bool krn_q128(krn_pool *pool, const uint16_t *x, uint32_t rows, uint32_t k, bool pow2,
              uint8_t *out_codes, float *out_scales)
{
    q128_work w = {.x = x, .k = k, .pow2 = pow2, .codes = out_codes, .scales = out_scales};
    krn_pool_slices(pool, rows, 16, q128_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

#define SILU_GRAIN 4096u /* elements of one slice unit */

typedef struct silu_work {
    const uint16_t *g, *u;
    size_t count;
    uint16_t *out;
} silu_work;

static void silu_slice(void *context, uint32_t first, uint32_t count)
{
    const silu_work *w = context;
    size_t from = (size_t)first * SILU_GRAIN;
    size_t to = from + (size_t)count * SILU_GRAIN;
    if (to > w->count)
        to = w->count;
    krn_variant_current()->common->silu_mul(w->g + from, w->u + from, to - from, w->out + from);
}

void krn_silu_mul(krn_pool *pool, const uint16_t *g, const uint16_t *u, size_t count,
                  uint16_t *out_a)
{
    silu_work w = {.g = g, .u = u, .count = count, .out = out_a};
    krn_pool_slices(pool, (uint32_t)((count + SILU_GRAIN - 1) / SILU_GRAIN), 1, silu_slice, &w);
}

void krn_embed(const uint16_t *table, const uint32_t *ids, uint32_t rows, uint32_t hidden,
               uint16_t *out_x)
{
    for (uint32_t t = 0; t < rows; t++)
        memcpy(out_x + (size_t)t * hidden, table + (size_t)ids[t] * hidden,
               hidden * sizeof(uint16_t));
}

/* ---- plain numerics ---- */

typedef struct plain_norm_work {
    const float *x, *res, *weight;
    float epsilon;
    uint32_t n;
    float *out, *out_res;
    atomic_bool fault;
} plain_norm_work;

static void plain_norm_slice(void *context, uint32_t first, uint32_t count)
{
    plain_norm_work *w = context;
    uint32_t n = w->n;
    for (uint32_t t = first; t < first + count; t++) {
        const float *x = w->x + (size_t)t * n;
        const float *res = w->res ? w->res + (size_t)t * n : NULL;
        float sum = 0.0f;
        for (uint32_t j = 0; j < n; j++) {
            float s = res ? x[j] + res[j] : x[j];
            float square = s * s;
            sum = sum + square;
        }
        if (!isfinite(sum))
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
        float r = 1.0f / sqrtf(sum / (float)n + w->epsilon);
        for (uint32_t j = 0; j < n; j++) {
            float s = res ? x[j] + res[j] : x[j];
            w->out[(size_t)t * n + j] = w->weight[j] * (s * r);
            if (w->out_res)
                w->out_res[(size_t)t * n + j] = s;
        }
    }
}

bool krn_plain_rmsnorm_add(krn_pool *pool, const float *x, const float *res, const float *weight,
                           float epsilon, uint32_t rows, uint32_t n, float *out, float *out_res)
{
    plain_norm_work w = {.x = x,
                         .res = res,
                         .weight = weight,
                         .epsilon = epsilon,
                         .n = n,
                         .out = out,
                         .out_res = out_res};
    krn_pool_slices(pool, rows, 16, plain_norm_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

typedef struct plain_silu_work {
    const float *g, *u;
    size_t count;
    float *out;
} plain_silu_work;

static void plain_silu_slice(void *context, uint32_t first, uint32_t count)
{
    const plain_silu_work *w = context;
    size_t from = (size_t)first * SILU_GRAIN;
    size_t to = from + (size_t)count * SILU_GRAIN;
    for (size_t i = from; i < to && i < w->count; i++)
        w->out[i] = w->g[i] / (1.0f + krn_exp(-w->g[i])) * w->u[i];
}

void krn_plain_silu_mul(krn_pool *pool, const float *g, const float *u, size_t count, float *out_a)
{
    plain_silu_work w = {.g = g, .u = u, .count = count, .out = out_a};
    krn_pool_slices(pool, (uint32_t)((count + SILU_GRAIN - 1) / SILU_GRAIN), 1, plain_silu_slice,
                    &w);
}
