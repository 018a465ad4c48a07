/* The AVX2 variants: the templates with 8 lanes. Any thread. */
#if defined(__x86_64__)

#define V(name)     v8_##name
#define LANES       8
#define GEMM_ROWS   6
#define FEW_ROWS    16
#define STREAM_ROWS 4
/* 16 registers, of which sums take 8. */
#define STREAM_VECTORS(rows) ((rows) == 1 ? 8 : (rows) == 2 ? 4 : 2)
#define FEW_INPUTS           (16u * 2048)
/* The end of 16 turns is foreseen, that of 64 is not. */
#define STREAM_UNROLL _Pragma("GCC unroll 4")
#define BARE_CODES    1
#define PAIR_CODES    0
#define SCORE_HEADS   4
#define S(name)       v8_##name
#define SCORE_LANES   8
#define SCORE_TILE    8
#define VALUE_HEADS   4
#define ATTEND_NAME   attend

#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec8_bare.h"

#include "base/assert.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.inc"
#include "kernels/cpu/rows.inc"
#include "kernels/cpu/score_wide.inc"

#include "kernels/cpu/score.inc"

static void attend(const krn_attend_args *args, uint32_t row, uint32_t head, uint32_t head_count,
                   void *scratch);
#include "kernels/cpu/attend.inc"

static const krn_common common = {
    .draw = &krn_draw_avx2,
    .gemm_plain = gemm_plain,
    .rmsnorm = rmsnorm,
    .q128 = q128,
    .silu_mul = silu_mul,
    .hadamard = hadamard,
    .topk = topk,
    .combine = combine,
};

KRN_VEC_TARGET static void gemm_fp8_bare(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_FP8_BARE, true, gemm, tile);
}

const krn_variant krn_variant_avx2 = {
    .name = "avx2",
    .numerics_id = KRN_NUMERICS_F32,
    .tile_rows = KRN_TILE_ROWS,
    .common = &common,
    .gemm_fp8 = gemm_fp8,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score = score,
    .attend = attend,
};

/* Codes below 2^-6 are multiplied as the subnormals that their bits are: on Zen that costs
 * nothing. */
const krn_variant krn_variant_zen = {
    .name = "zen",
    .numerics_id = KRN_NUMERICS_F32,
    .tile_rows = KRN_TILE_ROWS,
    .common = &common,
    .gemm_fp8 = gemm_fp8_bare,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score = score,
    .attend = attend,
};

#endif
