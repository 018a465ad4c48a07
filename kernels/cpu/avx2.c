/* The AVX2 variant: the templates with 8 lanes. Any thread. */
#if defined(__x86_64__)

#define V(name)     v8_##name
#define LANES       8
#define GEMM_ROWS   6
#define FEW_ROWS    2
#define SCORE_HEADS 4
#define S(name)     v8_##name
#define SCORE_LANES 8
#define SCORE_TILE  8
#define VALUE_HEADS 4
#define ATTEND_NAME attend

#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec8.h"

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

#endif
