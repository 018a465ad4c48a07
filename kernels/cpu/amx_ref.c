/* The plain C variant of cpu-amx-v1: the oracle of the tiles' order (amx_order.h).
 *
 * As ref.c, for what differs: products here, scores and attention in amx_ref_attention.c. Any
 * thread. */
#include "kernels/cpu/amx_order.h"
#include "kernels/cpu/variant.h"

static void ref_gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
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
            const uint8_t *panels = m->panels;
            float acc = 0.0f;
            for (uint32_t b = 0; b < blocks; b++) {
                float p = 0.0f, x[KRN_TILE_STEP], w[KRN_TILE_STEP];
                for (uint32_t j = 0; j < KRN_BLOCK; j += KRN_TILE_STEP) {
                    for (uint32_t k = 0; k < KRN_TILE_STEP; k++) {
                        uint32_t at = b * KRN_BLOCK + j + k;
                        x[k] = krn_e4m3_to_f32(codes[at]);
                        w[k] = krn_e4m3_to_f32(panels[krn_panel_at_fp8(m, i, at)]);
                    }
                    p = krn_tile_step(x, w, p);
                }
                float scale = scales[b] * m->scales[(size_t)(i / KRN_BLOCK) * blocks + b];
                float scaled = p * scale;
                acc = acc + scaled;
            }
            out[i] = krn_f32_to_bf16(acc);
        }
    }
}

/* Output `column` of a product of bf16 operands. */
static float bf16_dot(const uint16_t *x, const krn_matrix *m, uint32_t column)
{
    const uint16_t *panels = m->panels;
    float acc = 0.0f;
    for (uint32_t j = 0; j < m->k; j += KRN_TILE_STEP) {
        float a[KRN_TILE_STEP] = {0}, w[KRN_TILE_STEP] = {0};
        for (uint32_t k = 0; k < KRN_TILE_STEP && j + k < m->k; k++) {
            a[k] = krn_bf16_to_f32(x[j + k]);
            w[k] = krn_bf16_to_f32(panels[krn_panel_at_bf16(m, column, j + k)]);
        }
        acc = krn_tile_step(a, w, acc);
    }
    return acc;
}

static void gemm_bf16_operands(const krn_gemm *gemm, const krn_tile *tile, bool round)
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
            float y = bf16_dot(x, m, i);
            if (round)
                ((uint16_t *)gemm->output)[(size_t)r * output_stride + i] = krn_f32_to_bf16(y);
            else
                ((float *)gemm->output)[(size_t)r * output_stride + i] = y;
        }
    }
}

static void ref_gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_bf16_operands(gemm, tile, true);
}

static void ref_gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_bf16_operands(gemm, tile, false);
}

const krn_variant krn_variant_amx_ref = {
    .name = "amx-ref",
    .numerics_id = KRN_NUMERICS_AMX,
    .tile_rows = KRN_TILE_ROWS,
    .common = &krn_common_ref,
    .gemm_fp8 = ref_gemm_fp8,
    .gemm_bf16 = ref_gemm_bf16,
    .gemm_f32 = ref_gemm_f32,
    .score = krn_amx_ref_score,
    .attend = krn_amx_ref_attend,
};
