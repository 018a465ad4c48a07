/* The plain C variant of cpu-amx-v1: the oracle of the tiles' order (amx_order.h).
 *
 * As ref.c, for what differs: products here, scores and attention in amx_ref_attention.c. Any
 * thread. */
#include "kernels/cpu/amx_order.h"
#include "kernels/cpu/variant.h"

static float fp8_block(const uint8_t *codes, const krn_matrix *m, uint32_t column, uint32_t first)
{
    const uint8_t *panels = m->panels;
    float p = 0.0f, x[KRN_TILE_STEP], w[KRN_TILE_STEP];
    for (uint32_t j = first; j < first + KRN_BLOCK; j += KRN_TILE_STEP) {
        for (uint32_t k = 0; k < KRN_TILE_STEP; k++) {
            x[k] = krn_e4m3_to_f32(codes[j + k]);
            w[k] = krn_e4m3_to_f32(panels[krn_panel_at_fp8(m, column, j + k)]);
        }
        p = krn_tile_step(x, w, p);
    }
    return p;
}

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
