/* What both schedules of the sparse attention share: the conversion of cache rows to bf16 and the
 * scores of a block. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_ATTEND_CUH
#define KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma_bf16.cuh"
#include "kernels/cuda/operations.cuh"

#define HEADS_A_CTA 64
#define BLOCK       64   /* list entries */
#define CHUNK       8192 /* 64 rows of 64 bf16 */
#define CHUNKS      9
#define VALUES      (KRN_VALUES / 2)
#define KRN_VALUES  512

/* ---- conversion ---- */

/* 2 codes, bytes 0 and 1 or 2 and 3 -> 2 bf16 of their values times 2^-120. The bytes' signs fill
 * the upper halves, so that one mask does for signs and values. */
static __device__ __forceinline__ uint32_t spread_pair(uint32_t codes, uint32_t selector)
{
    uint32_t wide;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(wide) : "r"(codes), "r"(selector));
    return (wide << 4) & 0x87F087F0u;
}
static __device__ __forceinline__ uint2 spread(uint32_t codes)
{
    return make_uint2(spread_pair(codes, 0x9180), spread_pair(codes, 0xB3A2));
}

static __device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t factor)
{
    uint32_t out;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(pair), "r"(factor));
    return out;
}

/* 8 codes -> 8 bf16 of code * scale, rounded once. EXACT: factor is the pair of exact_factor; else
 * the bits of the scale. */
template <bool EXACT>
static __device__ __forceinline__ uint4 dequantise8(uint2 codes, uint32_t factor)
{
    uint2 low = spread(codes.x), high = spread(codes.y);
    if (EXACT)
        return make_uint4(scale_pair(low.x, factor), scale_pair(low.y, factor),
                          scale_pair(high.x, factor), scale_pair(high.y, factor));
    float scale = __uint_as_float(factor);
    uint32_t in[4] = {low.x, low.y, high.x, high.y}, out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float a = __fmul_rn(__uint_as_float(in[i] << 16), 0x1p120f);
        float b = __fmul_rn(__uint_as_float(in[i] & 0xFFFF0000u), 0x1p120f);
        out[i] = bf16_pair(__fmul_rn(a, scale), __fmul_rn(b, scale));
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/* Both halves 2^120 * scale as bf16 when scale is a power of two small enough; else 0. */
static __device__ __forceinline__ uint32_t exact_factor(float scale)
{
    uint32_t bits = __float_as_uint(scale), exponent = bits >> 23;
    if ((bits & 0x7FFFFFu) != 0 || exponent < 1 || exponent > 134)
        return 0;
    uint32_t half = (exponent + 120) << 7;
    return half << 16 | half;
}

/* 16 codes, piece c of group g of entry e. 8 lanes hold a group: those of the second chunk store
 * their odd half first, so that no two of the 8 meet in a bank. */
template <bool EXACT>
static __device__ __forceinline__ void store_piece(uint8_t *keys, uint32_t e, uint32_t g,
                                                   uint32_t c, uint4 codes, uint32_t factor)
{
    uint8_t *row = keys + (2 * g + c / 4) * CHUNK + e * 128;
    uint32_t unit = (c % 4 * 2) ^ (e % 8), odd = c / 4;
    uint2 low = make_uint2(codes.x, codes.y), high = make_uint2(codes.z, codes.w);
    *(uint4 *)(row + (unit ^ odd) * 16) = dequantise8<EXACT>(odd ? high : low, factor);
    *(uint4 *)(row + (unit ^ odd ^ 1) * 16) = dequantise8<EXACT>(odd ? low : high, factor);
}

/* ---- list ---- */

/* List entry i; entries past the end repeat the last one. */
static __device__ __forceinline__ uint32_t entry_slot(const uint32_t *list, uint32_t i,
                                                      uint32_t count)
{
    return __ldg(list + (i < count ? i : count - 1));
}
static __device__ __forceinline__ const uint8_t *slot_row(const krn_cuda_cache &cache,
                                                          uint32_t sequence, uint32_t slot)
{
    return cache_page(cache, sequence, slot) + slot % PAGE_TOKENS * LATENT_ROW;
}

/* ---- multiplying ---- */

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The same where 2^x is no subnormal. */
static __device__ __forceinline__ float exp2_normal(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Scores of the warpgroup's 32 entries: d[16]. */
static __device__ __forceinline__ void score_block(const uint8_t *q, const uint8_t *keys,
                                                   uint32_t group, float *d)
{
    mma_fence();
#pragma unroll
    for (uint32_t c = 0; c < CHUNKS; c++) {
        uint64_t a = mma_operand(q + c * CHUNK), b = mma_operand(keys + c * CHUNK + group * 4096);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            wgmma_bf16<32, 0>(d, a + 2 * i, b + 2 * i, c + i);
    }
    mma_commit();
}

/* Few rows: attend_split.cu. */
KRN_CUDA_LOCAL int krn_cuda_attend_split(const krn_cuda_attend_params *p, cudaStream_t stream);
#define SPLIT_LIST_MAX  2048u
#define MULTIPROCESSORS 132u /* of an H100 SXM, an H200: shapes grids, never bits */

#endif
