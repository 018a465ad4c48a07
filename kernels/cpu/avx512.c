/* The AVX-512 variants: the templates with 16 lanes. Any thread. */
#if defined(__x86_64__)

#define V(name)     v16_##name
#define LANES       16
#define GEMM_ROWS   12
#define FEW_ROWS    16
#define FEW_INPUTS  (16u * 2048)
#define STREAM_ROWS 8
/* 32 registers. */
#define STREAM_VECTORS(rows) ((rows) == 1 ? 8 : (rows) <= 4 ? 4 : 2)
#define STREAM_UNROLL        _Pragma("GCC unroll 1")
#define BARE_CODES           0
#define PAIR_CODES           1
#define SCORE_HEADS          8

#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16_pairs.h"

#include "base/assert.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.inc"
#include "kernels/cpu/rows.inc"
#include "kernels/cpu/score_words.inc"

#include "kernels/cpu/score.inc"

static void attend(const krn_attend_args *args, uint32_t row, uint32_t head, uint32_t head_count,
                   void *scratch)
{
    if (head_count <= 8)
        krn_avx512_attend8(args, row, head, head_count, scratch);
    else
        krn_avx512_attend16(args, row, head, head_count, scratch);
}

const krn_common krn_common_avx512 = {
    .draw = &krn_draw_avx512,
    .gemm_plain = gemm_plain,
    .rmsnorm = rmsnorm,
    .q128 = q128,
    .silu_mul = silu_mul,
    .hadamard = hadamard,
    .topk = topk,
    .combine = combine,
};

const krn_variant krn_variant_avx512 = {
    .name = "avx512",
    .numerics_id = KRN_NUMERICS_F32,
    .tile_rows = KRN_TILE_ROWS,
    .common = &krn_common_avx512,
    .gemm_fp8 = gemm_fp8,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score = score,
    .attend = attend,
};

KRN_VEC_TARGET static void gemm_fp8_pairs(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_FP8_PAIRS, true, gemm, tile);
}

/* Products of fp8 take two k at once. */
const krn_variant krn_variant_zen4 = {
    .name = "zen4",
    .numerics_id = KRN_NUMERICS_F32,
    .tile_rows = KRN_TILE_ROWS,
    .common = &krn_common_avx512,
    .gemm_fp8 = gemm_fp8_pairs,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score_queries = krn_zen4_score_queries,
    .score = krn_zen4_score,
    .attend = attend,
};

#endif
