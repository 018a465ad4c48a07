/* First kernel of the split attention: scores of 128 heads and a part of the list.
 *
 * Two warpgroups gather 32 entries each and turn them into bf16, two multiply, 64 heads each.
 * Cycles of 32 entries: 1,152 of the tensor cores; a conversion takes 600 of one of its two
 * warpgroups. Bytes: queries 147 KB once, 656 an entry, 512 of scores an entry. */
#include "kernels/cuda/attend_split.cuh"

#define SUB        32 /* entries scored at once */
#define SUBS_MAX   16 /* of a CTA */
#define THREADS    512
#define PREFETCHED 3 /* loads of a stage ahead */

struct scores_smem {
    uint8_t q[2][CHUNKS * CHUNK];
    uint8_t keys[CHUNKS * CHUNK]; /* two stages: the halves of a block of 64 */
    uint64_t rows[SUBS_MAX * SUB];
    uint64_t full[2], empty[2];
};

/* ---- conversion: threads 256..511, a stage each 128 ---- */

/* One lane's share of 32 entries: 16 codes of entries warp + 4 j, 16 B of rope of two entries. */
struct split_raw {
    uint4 codes[8], rope[2];
    float scales[8];
};

/* rows: of the first of the 32 entries. */
static __device__ __forceinline__ void split_load(const uint64_t *rows, const uint8_t *base,
                                                  split_raw &raw)
{
    uint32_t t = threadIdx.x % 128, lane = t % 32;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint8_t *row = base + rows[t / 32 + 4 * j];
        raw.codes[j] = __ldg((const uint4 *)row + lane);
        raw.scales[j] = __ldg((const float *)(row + LATENT_SCALES) + lane / 8);
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
        raw.rope[j] = __ldg((const uint4 *)(base + rows[t / 8 + 16 * j] + LATENT_ROPE) + t % 8);
}

template <bool EXACT>
static __device__ __forceinline__ void split_codes(uint8_t *keys, uint32_t stage,
                                                   const split_raw &raw, const uint32_t *factors)
{
    uint32_t t = threadIdx.x % 128, lane = t % 32;
#pragma unroll
    for (int j = 0; j < 8; j++)
        store_piece<EXACT>(keys, stage * SUB + t / 32 + 4 * j, lane / 8, lane % 8, raw.codes[j],
                           factors[j]);
}

static __device__ __forceinline__ void split_store(uint8_t *keys, uint32_t stage,
                                                   const split_raw &raw)
{
    uint32_t t = threadIdx.x % 128, factors[8], plain[8];
    bool exact = true;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        factors[j] = exact_factor(raw.scales[j]);
        plain[j] = __float_as_uint(raw.scales[j]);
        exact = exact && factors[j] != 0;
    }
    if (__all_sync(0xFFFFFFFFu, exact))
        split_codes<true>(keys, stage, raw, factors);
    else
        split_codes<false>(keys, stage, raw, plain);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint32_t e = stage * SUB + t / 8 + 16 * j;
        *(uint4 *)(keys + 8 * CHUNK + e * 128 + (((t % 8) ^ (e % 8)) * 16)) = raw.rope[j];
    }
}

/* Into the L2: rows of 32 entries, a line a thread. */
static __device__ __forceinline__ void split_prefetch(const uint64_t *rows, const uint8_t *base)
{
    const uint32_t lines = (LATENT_ROW + 127) / 128;
    for (uint32_t i = threadIdx.x % 128; i < SUB * lines; i += 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(base + rows[i / lines] + i % lines * 128));
}

/* A stage's loads wait for the registers of those before: the rows come to the L2 meanwhile. */
static __device__ __forceinline__ void scores_convert(scores_smem &s,
                                                      const krn_cuda_attend_params &p,
                                                      uint32_t first, uint32_t subs, uint32_t count,
                                                      uint32_t early)
{
    uint32_t t = threadIdx.x - 256, stage = t / 128;
    for (uint32_t i = t; i < subs * SUB; i += 256) {
        s.rows[i] = entry_offset(p, blockIdx.y, first * SUB + i, count, early);
        early = entry_early(p, blockIdx.y, first * SUB + i + 256);
    }
    bar_sync(1, 256);
    split_raw raw;
    if (stage < subs)
        split_load(s.rows + stage * SUB, p.cache.base, raw);
    for (uint32_t i = stage + 2; i < subs && i < 2 * PREFETCHED; i += 2)
        split_prefetch(s.rows + i * SUB, p.cache.base);
    for (uint32_t i = stage; i < subs; i += 2) {
        if (i >= 2)
            barrier_wait(&s.empty[stage], (i / 2 - 1) & 1);
        split_store(s.keys, stage, raw);
        fence_async();
        barrier_arrive(&s.full[stage]);
        if (i + 2 < subs)
            split_load(s.rows + (i + 2) * SUB, p.cache.base, raw);
        if (i + 2 * PREFETCHED < subs)
            split_prefetch(s.rows + (i + 2 * PREFETCHED) * SUB, p.cache.base);
    }
}

/* ---- products: threads 0..255, 64 heads each 128 ---- */

/* Starts the copy of 64 heads: 8 lanes read 128 B of one. */
static __device__ __forceinline__ void scores_queries(uint8_t *q, const krn_cuda_attend_params &p,
                                                      uint32_t head_first)
{
    uint32_t t = threadIdx.x % 128, unit = t % 8;
#pragma unroll
    for (uint32_t h = t / 8; h < HEADS_A_CTA; h += 16) {
        size_t head = (size_t)blockIdx.y * p.heads + head_first + h;
        const uint16_t *latent = p.q_latent + head * 512 + unit * 8;
        const uint16_t *rope = p.q + head * 192 + 128 + unit * 8;
        uint8_t *to = q + h * 128 + (unit ^ (h % 8)) * 16;
        bool there = head_first + h < p.heads;
#pragma unroll
        for (uint32_t c = 0; c < CHUNKS; c++)
            if (there)
                copy16(to + c * CHUNK, c < 8 ? latent + c * 64 : rope);
            else
                *(uint4 *)(to + c * CHUNK) = make_uint4(0, 0, 0, 0);
    }
    copy_commit();
}

static __device__ __forceinline__ void scores_multiply(scores_smem &s, const split_work &w,
                                                       uint32_t first, uint32_t subs)
{
    uint32_t group = threadIdx.x / 128, t = threadIdx.x % 128, set = blockIdx.z * 2 + group;
    uint32_t row = t / 32 * 16 + t % 32 / 4;
    if (set < w.sets) /* not before: the rows' way is the longer one */
        scores_queries(s.q[group], w.p, set * HEADS_A_CTA);
    copy_wait<0>();
    fence_async();
    bar_sync(2 + group, 128);
    float *out = w.scores +
                 (((size_t)blockIdx.y * w.sets + set) * HEADS_A_CTA + row) * SPLIT_LIST_MAX +
                 first * SUB + t % 4 * 2;
    float d[16];
    for (uint32_t i = 0; i < subs; i++) {
        uint32_t stage = i % 2;
        barrier_wait(&s.full[stage], i / 2 & 1);
        if (set < w.sets) {
#pragma unroll
            for (int j = 0; j < 16; j++)
                d[j] = 0.0f;
            score_block(s.q[group], s.keys, stage, d);
            mma_wait<0>();
            mma_pin<16>(d);
        }
        barrier_arrive(&s.empty[stage]);
        if (set >= w.sets)
            continue;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                *(float2 *)(out + 8 * h * SPLIT_LIST_MAX + i * SUB + 8 * j) =
                    make_float2(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]);
    }
}

static __global__ void __launch_bounds__(THREADS, 1)
    scores_kernel(const __grid_constant__ split_work w)
{
    extern __shared__ uint8_t raw[];
    scores_smem &s = *(scores_smem *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    wait_for_previous(); /* first: the third kernel reads lists before it waits */
    let_next_start();
    uint32_t count = w.p.list_counts[blockIdx.y], subs_all = (count + SUB - 1) / SUB;
    uint32_t span = (w.p.list_stride + SUB * gridDim.x - 1) / (SUB * gridDim.x);
    uint32_t first = blockIdx.x * span;
    uint32_t early = 0;
    if (threadIdx.x >= 256)
        early = entry_early(w.p, blockIdx.y, first * SUB + threadIdx.x - 256);
    if (first >= subs_all)
        return;
    uint32_t subs = subs_all - first < span ? subs_all - first : span;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(&s.full[i], 128);
            barrier_init(&s.empty[i], 256);
        }
        fence_async();
    }
    __syncthreads();
    if (threadIdx.x >= 256)
        scores_convert(s, w.p, first, subs, count, early);
    else
        scores_multiply(s, w, first, subs);
}

KRN_CUDA_LOCAL int krn_cuda_split_scores(const split_work *work, cudaStream_t stream)
{
    const int bytes = sizeof(scores_smem) + 1024;
    static_assert(sizeof(scores_smem) + 1024 <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)scores_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "attend: %s", cudaGetErrorString(ready));
    uint32_t pairs = (work->sets + 1) / 2, subs = (work->p.list_stride + SUB - 1) / SUB;
    uint32_t parts = MULTIPROCESSORS / (work->p.rows * pairs);
    uint32_t least = (subs + SUBS_MAX - 1) / SUBS_MAX;
    parts = parts > subs ? subs : parts < least ? least : parts;
    uint32_t span = (subs + parts - 1) / parts;
    const dim3 grid((subs + span - 1) / span, work->p.rows, pairs);
    return launch_in_turn("attend", {grid, THREADS, 1, bytes, stream}, scores_kernel, *work);
}
