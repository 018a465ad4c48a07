/* Indexer logits over the paged cache on fp8 wgmma: keys of a page are operand A (64), heads of a
 * row operand B (64), one chain of four m64n64k32 a page and row.
 *
 * Bytes: 132 a key, read once for the up to 4 rows of a sequence; 8,448 B a page in flight x 5
 * stages x 3 CTAs an SM. Order (docs/CUDA-ORDER.md): a lane of a quad adds fma(max(d, 0), a_h, acc)
 * over its heads 2 q, 2 q + 1, 2 q + 8, 2 q + 9, ..; then (q0 + q1) + (q2 + q3); then times the
 * key's scale. */
#include "kernels/cuda/scores.cuh"

#define HEADS_MAX  64
#define STAGES     6
#define SPAN_MAX   64u /* pages of a CTA */
#define NEXT_MAX   4u
#define FEW_ROWS   128u
#define PAGE_BYTES (PAGE_TOKENS * 128 + PAGE_TOKENS * 4)

struct scores_smem {
    uint8_t codes[STAGES][PAGE_TOKENS * 128];
    uint8_t queries[NEXT_MAX][HEADS_MAX * 128];
    float scales[STAGES][PAGE_TOKENS];
    float factors[NEXT_MAX][HEADS_MAX];
    uint32_t pages[SPAN_MAX];
};

static __device__ __forceinline__ void load_page(scores_smem &s, const krn_cuda_cache &cache,
                                                 uint32_t i)
{
    uint32_t t = threadIdx.x, stage = i % STAGES;
    const uint8_t *page = cache.base + (uint64_t)s.pages[i] * cache.page_bytes;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t id = t + 128 * j, key = id / 8, c = id % 8;
        copy16(s.codes[stage] + key * 128 + ((c ^ (key % 8)) * 16),
               page + INDEX_CODES_AT + id * 16);
    }
    if (t < PAGE_TOKENS / 4)
        copy16(s.scales[stage] + t * 4, page + INDEX_SCALES_AT + t * 16);
}

/* One page against one row. */
template <int HEADS>
static __device__ __forceinline__ void score_page(const scores_smem &s, uint32_t i, uint32_t q,
                                                  const krn_cuda_row &at, uint32_t slot,
                                                  float *scores)
{
    uint32_t t = threadIdx.x, stage = i % STAGES, key = t / 32 * 16 + t % 32 / 4;
    float d[HEADS / 2], low = 0.0f, high = 0.0f;
    mma_block<HEADS>(d, mma_operand(s.codes[stage]), mma_operand(s.queries[q]));
    float low_scale = s.scales[stage][key], high_scale = s.scales[stage][key + 8];
    mma_wait<0>();
    mma_pin<HEADS / 2>(d);
#pragma unroll
    for (int j = 0; j < HEADS / 8; j++) {
        float2 a = *(const float2 *)(s.factors[q] + 8 * j + t % 4 * 2);
        low = fmaf(fmaxf(d[4 * j], 0.0f), a.x, low);
        low = fmaf(fmaxf(d[4 * j + 1], 0.0f), a.y, low);
        high = fmaf(fmaxf(d[4 * j + 2], 0.0f), a.x, high);
        high = fmaf(fmaxf(d[4 * j + 3], 0.0f), a.y, high);
    }
#pragma unroll
    for (int far = 1; far < 4; far *= 2) {
        low = __fadd_rn(low, __shfl_xor_sync(0xFFFFFFFFu, low, far));
        high = __fadd_rn(high, __shfl_xor_sync(0xFFFFFFFFu, high, far));
    }
    if (t % 4 != 0)
        return;
    if (slot + key >= at.first && slot + key <= at.slot)
        scores[slot + key - at.first] = __fmul_rn(low, low_scale);
    if (slot + key + 8 >= at.first && slot + key + 8 <= at.slot)
        scores[slot + key + 8 - at.first] = __fmul_rn(high, high_scale);
}

template <int HEADS, int NEXT>
__global__ void __launch_bounds__(128) scores_kernel(const krn_cuda_scores_params p, uint32_t span)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    scores_smem &s = *(scores_smem *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    uint32_t group = blockIdx.y * NEXT, t = threadIdx.x, last = 0;
    krn_cuda_row at[NEXT];
#pragma unroll
    for (int q = 0; q < NEXT; q++) {
        at[q] = p.rows_at[group + q];
        last = max(last, at[q].slot);
    }
    uint32_t first_page = blockIdx.x * span, pages = last / PAGE_TOKENS + 1;
    if (first_page >= pages)
        return;
    uint32_t count = min(span, pages - first_page);
    if (t < count)
        s.pages[t] = p.cache.blocks[(size_t)at[0].sequence * p.cache.block_stride + first_page + t];
    for (uint32_t i = t; i < NEXT * HEADS * 8; i += 128)
        copy16(s.queries[i / (HEADS * 8)] + i % (HEADS * 8) * 16,
               p.queries + (size_t)group * HEADS * 128 + i * 16);
    for (uint32_t i = t; i < NEXT * HEADS; i += 128)
        s.factors[i / HEADS][i % HEADS] = p.factors[(size_t)group * HEADS + i];
    __syncthreads();
    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < count)
            load_page(s, p.cache, i);
        copy_commit();
    }
    for (uint32_t i = 0; i < count; i++) {
        copy_wait<STAGES - 2>();
        fence_async();
        __syncthreads();
        if (i + STAGES - 1 < count)
            load_page(s, p.cache, i + STAGES - 1);
        copy_commit();
#pragma unroll
        for (int q = 0; q < NEXT; q++)
            score_page<HEADS>(s, i, q, at[q], (first_page + i) * PAGE_TOKENS,
                              p.scores + (size_t)(group + q) * p.stride);
    }
}

template <int HEADS, int NEXT>
static int scores_launch(const krn_cuda_scores_params *p, cudaStream_t stream)
{
    const int bytes = sizeof(scores_smem) + 1024;
    static const cudaError_t ready =
        cudaFuncSetAttribute((const void *)scores_kernel<HEADS, NEXT>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "scores: %s", cudaGetErrorString(ready));
    /* Enough CTAs to fill the chip several times, long enough spans to keep the stages full. */
    uint32_t pages = (p->slots_max + PAGE_TOKENS - 1) / PAGE_TOKENS, groups = p->rows / NEXT;
    uint32_t span = (uint32_t)((uint64_t)pages * groups / (132 * 12));
    span = span < 4 ? 4 : span > SPAN_MAX ? SPAN_MAX : span;
    dim3 grid((pages + span - 1) / span, groups);
    return launch_in_turn("scores", {grid, 128, 1, bytes, stream}, scores_kernel<HEADS, NEXT>, *p,
                          span);
}

template <int HEADS> static int scores_next(const krn_cuda_scores_params *p, cudaStream_t stream)
{
    switch (p->next_n) {
    case 1:
        return scores_launch<HEADS, 1>(p, stream);
    case 2:
        return scores_launch<HEADS, 2>(p, stream);
    case 3:
        return scores_launch<HEADS, 3>(p, stream);
    }
    return scores_launch<HEADS, 4>(p, stream);
}

KRN_CUDA_LOCAL int krn_cuda_scores(const krn_cuda_scores_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->slots_max > 0 && p->stride >= p->slots_max);
    KRN_CUDA_ENSURE(p->next_n >= 1 && p->next_n <= NEXT_MAX && p->rows % p->next_n == 0);
    KRN_CUDA_ENSURE(p->rows / p->next_n <= 65535 && p->cache.page_bytes % 64 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    if (p->next_n == 1 && p->rows > FEW_ROWS)
        return krn_cuda_scores_many(p, (cudaStream_t)stream);
    switch (p->heads) {
    case 8:
        return scores_next<8>(p, (cudaStream_t)stream);
    case 16:
        return scores_next<16>(p, (cudaStream_t)stream);
    case 32:
        return scores_next<32>(p, (cudaStream_t)stream);
    case 64:
        return scores_next<64>(p, (cudaStream_t)stream);
    }
    return krn_cuda_fail(KRN_CUDA_INVALID, "scores: %u heads, not 8, 16, 32 or 64", p->heads);
}
