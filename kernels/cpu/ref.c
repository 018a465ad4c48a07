/* The plain C variant: the oracle.
 *
 * Simple loops in the canonical order of kernels/kernels.h, nothing blocked, nothing clever: the
 * other variants must give these bits. Any thread. */
#include "kernels/cpu/variant.h"

#include <math.h>
#include <string.h>

/* ---- products ---- */

void krn_ref_gemm_fp8(const krn_gemm *gemm, const krn_tile *tile, krn_ref_fp8_fn block)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t blocks = m->k / KRN_BLOCK;
    uint32_t output_stride = gemm->output_stride ? gemm->output_stride : m->n;
    uint32_t first = tile->panel * KRN_PANEL_COLUMNS;
    uint32_t end = (tile->panel + tile->panel_count) * KRN_PANEL_COLUMNS;
    for (uint32_t r = tile->row; r < tile->row + tile->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[r] : r;
        const uint8_t *codes = (const uint8_t *)gemm->input + in * m->k;
        const float *scales = gemm->input_scales + in * blocks;
        uint16_t *out = (uint16_t *)gemm->output + (size_t)r * output_stride;
        for (uint32_t i = first; i < end && i < m->n; i++) {
            float acc = 0.0f;
            for (uint32_t b = 0; b < blocks; b++) {
                float p = block(codes, m, i, b * KRN_BLOCK);
                float scale = scales[b] * m->scales[(size_t)(i / KRN_BLOCK) * blocks + b];
                float scaled = p * scale;
                acc = acc + scaled;
            }
            out[i] = krn_f32_to_bf16(acc);
        }
    }
}

void krn_ref_gemm_bf16(const krn_gemm *gemm, const krn_tile *tile, krn_ref_bf16_fn dot, bool round)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t input_stride = gemm->input_stride ? gemm->input_stride : m->k;
    uint32_t output_stride = gemm->output_stride ? gemm->output_stride : m->n;
    uint32_t first = tile->panel * KRN_PANEL_COLUMNS;
    uint32_t end = (tile->panel + tile->panel_count) * KRN_PANEL_COLUMNS;
    for (uint32_t r = tile->row; r < tile->row + tile->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[r] : r;
        const uint16_t *x = (const uint16_t *)gemm->input + in * input_stride;
        for (uint32_t i = first; i < end && i < m->n; i++) {
            float y = dot(x, m, i);
            if (round)
                ((uint16_t *)gemm->output)[(size_t)r * output_stride + i] = krn_f32_to_bf16(y);
            else
                ((float *)gemm->output)[(size_t)r * output_stride + i] = y;
        }
    }
}

static float fp8_block(const uint8_t *codes, const krn_matrix *m, uint32_t column, uint32_t first)
{
    const uint8_t *panels = m->panels;
    float p = 0.0f;
    for (uint32_t j = first; j < first + KRN_BLOCK; j++)
        p = fmaf(krn_e4m3_to_f32(codes[j]), krn_e4m3_to_f32(panels[krn_panel_at_fp8(m, column, j)]),
                 p);
    return p;
}

static float bf16_dot(const uint16_t *x, const krn_matrix *m, uint32_t column)
{
    const uint16_t *panels = m->panels;
    float acc = 0.0f;
    for (uint32_t j = 0; j < m->k; j++)
        acc = fmaf(krn_bf16_to_f32(x[j]), krn_bf16_to_f32(panels[krn_panel_at_bf16(m, column, j)]),
                   acc);
    return acc;
}

static void ref_gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_ref_gemm_fp8(gemm, tile, fp8_block);
}

static void ref_gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_ref_gemm_bf16(gemm, tile, bf16_dot, true);
}

static void ref_gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_ref_gemm_bf16(gemm, tile, bf16_dot, false);
}

static void ref_gemm_plain(const krn_gemm *gemm, const krn_tile *tile)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t input_stride = gemm->input_stride ? gemm->input_stride : m->k;
    uint32_t output_stride = gemm->output_stride ? gemm->output_stride : m->n;
    for (uint32_t r = tile->row; r < tile->row + tile->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[r] : r;
        const float *x = (const float *)gemm->input + in * input_stride;
        float *out = (float *)gemm->output + (size_t)r * output_stride;
        for (uint32_t p = tile->panel; p < tile->panel + tile->panel_count; p++) {
            const float *panel = (const float *)m->panels + (size_t)p * m->k * KRN_PANEL_COLUMNS;
            float acc[KRN_PANEL_COLUMNS] = {0};
            for (uint32_t j = 0; j < m->k; j++)
                for (uint32_t c = 0; c < KRN_PANEL_COLUMNS; c++)
                    acc[c] = acc[c] + x[j] * panel[(size_t)j * KRN_PANEL_COLUMNS + c];
            for (uint32_t c = 0; c < KRN_PANEL_COLUMNS && p * KRN_PANEL_COLUMNS + c < m->n; c++)
                out[p * KRN_PANEL_COLUMNS + c] = acc[c];
        }
    }
}

/* ---- rows ---- */

static bool ref_rmsnorm(const uint16_t *x, const uint16_t *res, const uint16_t *weight,
                        float epsilon, uint32_t rows, uint32_t n, uint16_t *out, uint16_t *out_res)
{
    bool finite = true;
    for (uint32_t t = 0; t < rows; t++) {
        const uint16_t *xt = x + (size_t)t * n;
        const uint16_t *rt = res ? res + (size_t)t * n : NULL;
        float sum = 0.0f;
        for (uint32_t j = 0; j < n; j++) {
            float s = krn_bf16_to_f32(xt[j]);
            if (rt)
                s = s + krn_bf16_to_f32(rt[j]);
            float square = s * s;
            sum = sum + square;
        }
        finite = finite && isfinite(sum);
        float r = 1.0f / sqrtf(sum / (float)n + epsilon);
        for (uint32_t j = 0; j < n; j++) {
            float s = krn_bf16_to_f32(xt[j]);
            if (rt)
                s = s + krn_bf16_to_f32(rt[j]);
            float scaled = s * r;
            out[(size_t)t * n + j] = krn_f32_to_bf16(krn_bf16_to_f32(weight[j]) * scaled);
            if (out_res)
                out_res[(size_t)t * n + j] = krn_f32_to_bf16(s);
        }
    }
    return finite;
}

static bool ref_q128(const uint16_t *x, uint32_t rows, uint32_t k, bool pow2, uint8_t *out_codes,
                     float *out_scales)
{
    bool finite = true;
    for (size_t group = 0; group < (size_t)rows * (k / KRN_BLOCK); group++) {
        const uint16_t *g = x + group * KRN_BLOCK;
        float largest = 0.0f;
        for (uint32_t j = 0; j < KRN_BLOCK; j++) {
            float size = fabsf(krn_bf16_to_f32(g[j]));
            finite = finite && isfinite(size);
            largest = size > largest ? size : largest;
        }
        float scale = krn_q128_scale(largest, pow2);
        for (uint32_t j = 0; j < KRN_BLOCK; j++)
            out_codes[group * KRN_BLOCK + j] = krn_f32_to_e4m3(krn_bf16_to_f32(g[j]) / scale);
        out_scales[group] = scale;
    }
    return finite;
}

static void ref_silu_mul(const uint16_t *g, const uint16_t *u, size_t count, uint16_t *out_a)
{
    for (size_t i = 0; i < count; i++) {
        float z = krn_bf16_to_f32(g[i]);
        float silu = z / (1.0f + krn_exp(-z));
        out_a[i] = krn_f32_to_bf16(silu * krn_bf16_to_f32(u[i]));
    }
}

static void ref_hadamard(uint16_t *x)
{
    float a[KRN_INDEX_DIM];
    for (uint32_t i = 0; i < KRN_INDEX_DIM; i++)
        a[i] = krn_bf16_to_f32(x[i]);
    for (uint32_t stride = 1; stride < KRN_INDEX_DIM; stride *= 2) {
        for (uint32_t i = 0; i < KRN_INDEX_DIM; i++) {
            if (i & stride)
                continue;
            float low = a[i], high = a[i + stride];
            a[i] = low + high;
            a[i + stride] = low - high;
        }
    }
    for (uint32_t i = 0; i < KRN_INDEX_DIM; i++)
        x[i] = krn_f32_to_bf16(a[i] * 0.08838834764831845f);
}

/* ---- indexer ---- */

static void ref_score(const krn_score_tile *tile)
{
    for (uint32_t s = tile->from; s < tile->to; s++) {
        const uint8_t *page = krn_cache_page(tile->cache, tile->blocks, s);
        uint32_t in_page = s % KRN_PAGE_TOKENS;
        const uint8_t *key = page + KRN_INDEX_CODES_AT + in_page * KRN_INDEX_DIM;
        float key_scale;
        memcpy(&key_scale, page + KRN_INDEX_SCALES_AT + in_page * sizeof(float), sizeof key_scale);
        for (uint32_t r = 0; r < tile->row_count; r++) {
            float acc = 0.0f;
            for (uint32_t h = 0; h < tile->heads; h++) {
                const uint8_t *q =
                    (const uint8_t *)tile->queries + ((size_t)r * tile->heads + h) * KRN_INDEX_DIM;
                float dot = 0.0f;
                for (uint32_t d = 0; d < KRN_INDEX_DIM; d++)
                    dot = fmaf(krn_e4m3_to_f32(q[d]), krn_e4m3_to_f32(key[d]), dot);
                float term = (dot > 0.0f ? dot : 0.0f) * tile->factors[r * tile->heads + h];
                acc = acc + term;
            }
            tile->out[r * tile->out_stride + s - tile->from] = acc * key_scale;
        }
    }
}

static bool ref_topk(const float *scores, uint32_t count, uint32_t topk, uint32_t base,
                     uint32_t *out_positions)
{
    for (uint32_t i = 0; i < count; i++)
        if (isnan(scores[i]))
            return false;
    /* The largest value that at least topk scores reach, bit by bit. */
    uint32_t limit = 0;
    for (uint32_t bit = 0x80000000u; count > topk && bit != 0; bit >>= 1) {
        uint32_t reached = 0;
        for (uint32_t i = 0; i < count; i++)
            reached += krn_ordered(scores[i]) >= (limit | bit);
        if (reached >= topk)
            limit |= bit;
    }
    uint32_t above = 0;
    for (uint32_t i = 0; i < count; i++)
        above += krn_ordered(scores[i]) > limit;
    uint32_t equal_left = topk - above; /* unused when all are kept */
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t key = krn_ordered(scores[i]);
        if (count > topk && key < limit)
            continue;
        if (count > topk && key == limit) {
            if (equal_left == 0)
                continue;
            equal_left--;
        }
        out_positions[kept++] = base + i;
    }
    return true;
}

/* ---- attention ---- */

static float latent_value(const uint8_t *row, uint32_t d)
{
    float scale;
    memcpy(&scale, row + KRN_LATENT_SCALES_AT + d / KRN_BLOCK * sizeof scale, sizeof scale);
    return krn_round_bf16(krn_e4m3_to_f32(row[d]) * scale);
}

static float rope_value(const uint8_t *row, uint32_t d)
{
    uint16_t value;
    memcpy(&value, row + KRN_LATENT_ROPE_AT + d * sizeof value, sizeof value);
    return krn_bf16_to_f32(value);
}

/* Scores over the list -> probabilities, in place. */
static void softmax(float *scores, uint32_t count)
{
    float largest = scores[0];
    for (uint32_t i = 1; i < count; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    float sum = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        scores[i] = krn_exp(scores[i] - largest);
        sum = sum + scores[i];
    }
    for (uint32_t i = 0; i < count; i++)
        scores[i] = scores[i] / sum;
}

static void ref_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                       uint32_t head_count, void *scratch)
{
    const krn_row *at = &args->rows[row];
    const uint32_t *list = args->lists + (size_t)row * args->list_stride;
    uint32_t count = args->list_counts[row];
    float *p = scratch;
    for (uint32_t h = head; h < head + head_count; h++) {
        size_t index = (size_t)row * args->heads + h;
        const uint16_t *q_latent = (const uint16_t *)args->q_latent + index * KRN_LATENT_DIM;
        const uint16_t *q_rope = (const uint16_t *)args->q + index * KRN_HEAD_DIM + KRN_NOPE_DIM;
        for (uint32_t i = 0; i < count; i++) {
            const uint8_t *key = krn_cache_latent(args->cache, at->blocks, list[i]);
            float latent = 0.0f, rope = 0.0f;
            for (uint32_t d = 0; d < KRN_LATENT_DIM; d++)
                latent = fmaf(krn_bf16_to_f32(q_latent[d]), latent_value(key, d), latent);
            for (uint32_t d = 0; d < KRN_ROPE_DIM; d++)
                rope = fmaf(krn_bf16_to_f32(q_rope[d]), rope_value(key, d), rope);
            p[i] = (latent + rope) * args->scale;
        }
        softmax(p, count);
        float o[KRN_LATENT_DIM] = {0};
        for (uint32_t i = 0; i < count; i++) {
            const uint8_t *key = krn_cache_latent(args->cache, at->blocks, list[i]);
            for (uint32_t d = 0; d < KRN_LATENT_DIM; d++) {
                float term = p[i] * latent_value(key, d);
                o[d] = o[d] + term;
            }
        }
        uint16_t *out = (uint16_t *)args->output + index * KRN_LATENT_DIM;
        for (uint32_t d = 0; d < KRN_LATENT_DIM; d++)
            out[d] = krn_f32_to_bf16(o[d]);
    }
}

/* ---- experts ---- */

static void ref_combine(const uint16_t *outputs, const uint32_t *places, const float *weights,
                        uint32_t chosen, const uint16_t *shared, uint32_t rows, uint32_t hidden,
                        uint16_t *out_y)
{
    for (uint32_t t = 0; t < rows; t++) {
        for (uint32_t j = 0; j < hidden; j++) {
            float acc = 0.0f;
            for (uint32_t i = 0; i < chosen; i++) {
                size_t place = places[(size_t)t * chosen + i];
                float term =
                    weights[(size_t)t * chosen + i] * krn_bf16_to_f32(outputs[place * hidden + j]);
                acc = acc + term;
            }
            if (shared)
                acc = acc + krn_bf16_to_f32(shared[(size_t)t * hidden + j]);
            out_y[(size_t)t * hidden + j] = krn_f32_to_bf16(acc);
        }
    }
}

const krn_common krn_common_ref = {
    .draw = &krn_draw_ref,
    .gemm_plain = ref_gemm_plain,
    .rmsnorm = ref_rmsnorm,
    .q128 = ref_q128,
    .silu_mul = ref_silu_mul,
    .hadamard = ref_hadamard,
    .topk = ref_topk,
    .combine = ref_combine,
};

const krn_variant krn_variant_ref = {
    .name = "ref",
    .numerics_id = KRN_NUMERICS_F32,
    .tile_rows = KRN_TILE_ROWS,
    .common = &krn_common_ref,
    .gemm_fp8 = ref_gemm_fp8,
    .gemm_bf16 = ref_gemm_bf16,
    .gemm_f32 = ref_gemm_f32,
    .score = ref_score,
    .attend = ref_attend,
};
