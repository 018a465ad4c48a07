/* The AMX variant: bf16 tiles. Any thread. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/variant.h"

static void gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_variant_amx_ref.gemm_fp8(gemm, tile);
}

static void gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_variant_amx_ref.gemm_bf16(gemm, tile);
}

static void gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    krn_variant_amx_ref.gemm_f32(gemm, tile);
}

const krn_variant krn_variant_amx = {
    .name = "amx",
    .numerics_id = KRN_NUMERICS_AMX,
    .common = &krn_common_avx512,
    .gemm_fp8 = gemm_fp8,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score_queries = krn_amx_score_queries,
    .score = krn_amx_score,
    .attend = krn_amx_attend,
};

#endif
