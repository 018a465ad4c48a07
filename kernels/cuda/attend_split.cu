/* The split attention's launches, and its second kernel: scores of a head -> p, alphas, 1 / l. */
#include "kernels/cuda/attend_split.cuh"

#define HEADS   2 /* of a CTA */
#define THREADS 256

/* ---- softmax: thread = head, block, lane of a quad ---- */

struct soften_smem {
    uint8_t p[HEADS][BLOCKS_MAX * 128];
    float sums[HEADS][8][BLOCKS_MAX + 1]; /* [half of the block * 4 + lane of a quad] */
    float alphas[HEADS][BLOCKS_MAX];
    float tops[HEADS][4]; /* maxima of the warps' blocks */
};

struct soften_place {
    uint32_t h, block, q;
    bool live;
};

/* Largest score of the block, then of this and all blocks before; out_before: without this one. */
static __device__ __forceinline__ float running_max(soften_smem &s, const soften_place &at,
                                                    float most, float *out_before)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    float earlier = -INFINITY;
    most = lanes_max(most, 4);
#pragma unroll
    for (uint32_t far = 4; far < 32; far *= 2) {
        float other = __shfl_up_sync(0xFFFFFFFFu, most, far);
        most = lane >= far ? fmaxf(most, other) : most;
    }
    if (lane == 31)
        s.tops[at.h][warp] = most;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++)
        earlier = fmaxf(earlier, s.tops[at.h][i]);
    float before = __shfl_up_sync(0xFFFFFFFFu, most, 4);
    *out_before = lane < 4 ? earlier : fmaxf(before, earlier);
    return fmaxf(most, earlier);
}

/* Scores x [half][8] -> p and the lane's sums, in shared memory. */
static __device__ __forceinline__ void soften(soften_smem &s, const soften_place &at,
                                              const float (*x)[8], float m, float before, float c)
{
    float base = __fmul_rn(m, c);
    if (at.q == 0)
        s.alphas[at.h][at.block] = at.live ? exp2_fast(fmaf(before, c, -base)) : 0.0f;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            float a = at.live ? exp2_fast(fmaf(x[half][2 * j], c, -base)) : 0.0f;
            float b = at.live ? exp2_fast(fmaf(x[half][2 * j + 1], c, -base)) : 0.0f;
            uint32_t unit = (half * 4 + j) ^ (at.block % 8);
            sum = __fadd_rn(__fadd_rn(sum, a), b);
            *(uint32_t *)(s.p[at.h] + at.block * 128 + unit * 16 + at.q * 4) = bf16_pair(a, b);
        }
        s.sums[at.h][half * 4 + at.q][at.block] = sum;
    }
}

/* A warp: 1 / l of the heads, 8 lanes each. */
static __device__ __forceinline__ void soften_inverse(const soften_smem &s, const split_work &w,
                                                      uint32_t blocks)
{
    uint32_t t = threadIdx.x, h = t / 8 % HEADS;
    float l = 0.0f;
    for (uint32_t block = 0; block < blocks; block++)
        l = fmaf(l, s.alphas[h][block], s.sums[h][t % 8][block]);
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 1));
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 2));
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 4));
    if (t < 8 * HEADS && t % 8 == 0)
        w.inverses[blockIdx.y * w.sets * HEADS_A_CTA + blockIdx.x * HEADS + h] = __frcp_rn(l);
}

static __device__ __forceinline__ void soften_out(const soften_smem &s, const split_work &w,
                                                  uint32_t blocks)
{
    uint32_t first = blockIdx.x * HEADS, set = blockIdx.y * w.sets + first / HEADS_A_CTA;
    uint8_t *out = w.p_bf16 + (size_t)set * BLOCKS_MAX * CHUNK;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < HEADS * BLOCKS_MAX * 8; i += THREADS) {
        uint32_t h = i / (BLOCKS_MAX * 8), block = i / 8 % BLOCKS_MAX, unit = i % 8;
        uint32_t row = first % HEADS_A_CTA + h;
        if (block < blocks)
            *(uint4 *)(out + block * CHUNK + row * 128 + ((unit ^ (row % 8)) * 16)) =
                *(const uint4 *)(s.p[h] + block * 128 + ((unit ^ (block % 8)) * 16));
    }
    uint32_t t = threadIdx.x, block = t / HEADS;
    if (block < blocks)
        w.alphas[(set * BLOCKS_MAX + block) * HEADS_A_CTA + first % HEADS_A_CTA + t % HEADS] =
            s.alphas[t % HEADS][block];
}

static __global__ void __launch_bounds__(THREADS, 8)
    soften_kernel(const __grid_constant__ split_work w)
{
    __shared__ soften_smem s;
    uint32_t t = threadIdx.x, count = w.p.list_counts[blockIdx.y];
    uint32_t blocks = (count + BLOCK - 1) / BLOCK, head = blockIdx.x * HEADS + t / 128;
    soften_place at = {t / 128, t / 4 % BLOCKS_MAX, t % 4, false};
    at.live = at.block < blocks && head < w.p.heads;
    float c = __fmul_rn(w.p.scale, 1.4426950408889634f), x[2][8], most = -INFINITY, before;
    const float *scores = w.scores +
                          ((size_t)blockIdx.y * w.sets * HEADS_A_CTA + head) * SPLIT_LIST_MAX +
                          at.block * BLOCK + at.q * 2;
    let_next_start();
    wait_for_previous();
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) { /* pairs */
        uint32_t entry = at.block * BLOCK + i * 8 + at.q * 2;
        float2 pair = make_float2(-INFINITY, -INFINITY);
        if (at.live && entry < count)
            pair = *(const float2 *)(scores + i * 8);
        x[i / 4][i % 4 * 2] = pair.x;
        x[i / 4][i % 4 * 2 + 1] = entry + 1 < count ? pair.y : -INFINITY;
        most = fmaxf(most, fmaxf(pair.x, x[i / 4][i % 4 * 2 + 1]));
    }
    float m = running_max(s, at, most, &before);
    soften(s, at, x, m, before, c);
    __syncthreads();
    soften_out(s, w, blocks);
    if (t < 32)
        soften_inverse(s, w, blocks);
}

/* ---- launches ---- */

KRN_CUDA_LOCAL int krn_cuda_attend_split(const krn_cuda_attend_params *p, cudaStream_t stream)
{
    uint32_t sets = (p->heads + HEADS_A_CTA - 1) / HEADS_A_CTA;
    size_t all = (size_t)sets * p->rows;
    split_work work = {};
    work.p = *p;
    work.sets = sets;
    work.scores = (float *)p->workspace;
    work.p_bf16 = (uint8_t *)(work.scores + all * HEADS_A_CTA * SPLIT_LIST_MAX);
    work.alphas = (float *)(work.p_bf16 + all * BLOCKS_MAX * CHUNK);
    work.inverses = work.alphas + all * BLOCKS_MAX * HEADS_A_CTA;
    const dim3 grid(sets * HEADS_A_CTA / HEADS, p->rows);
    int code = krn_cuda_split_scores(&work, stream);
    if (code == KRN_CUDA_OK)
        code = launch_in_turn("attend", {grid, THREADS, 1, 0, stream}, soften_kernel, work);
    return code == KRN_CUDA_OK ? krn_cuda_split_values(&work, stream) : code;
}
