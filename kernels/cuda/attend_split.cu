/* Sparse attention for few rows: a cluster of 8 CTAs shares 64 heads of one row.
 *
 * First each CTA scores the blocks rank, rank + 8, .. of the list; the blocks' maxima go around
 * through distributed shared memory, so that everybody knows the running maximum at each block;
 * then p of the own blocks, through the workspace (the L2: peers' shared memory gives some 14 B a
 * cycle). Last each CTA owns 64 of the 512 value dimensions and walks all blocks in order: one
 * warpgroup converts values, the other multiplies. Nothing is added in another order than by
 * attend.cu: the bits are its.
 *
 * Bytes a CTA: 4 blocks x 64 x 656 scored, 2,048 x 64 of values, 256 KB of p. Cycles, measured at 1
 * row (82,000 in all): list and queries 11,000, scores 22,000, maxima and p 11,000, values 25,000
 * (the conversion, one warp a scheduler), sums and store 7,000. */
#include "kernels/cuda/attend.cuh"

#define CTAS    8
#define OWN_MAX (SPLIT_LIST_MAX / BLOCK / CTAS) /* blocks scored by one CTA */
#define ALL_MAX (SPLIT_LIST_MAX / BLOCK)
#define SLICE   (KRN_VALUES / CTAS)
#define RING    8 /* blocks of values in shared memory */
#define AHEAD   4 /* blocks of values in registers */
#define THREADS 256

#define PITCH (HEADS_A_CTA + 1) /* lanes that hold blocks do not meet in a bank */

struct split_smem {
    union {
        struct {
            uint8_t q[CHUNKS * CHUNK];
            uint8_t keys[CHUNKS * CHUNK];
        } score;
        struct {
            uint8_t values[RING][CHUNK];
            uint8_t p[RING][CHUNK];
        } value;
    };
    uint8_t p[OWN_MAX][CHUNK];              /* of the own blocks */
    float sums[OWN_MAX][2][HEADS_A_CTA][4]; /* [half of the block][head][lane of a quad] */
    float halves[OWN_MAX][2][HEADS_A_CTA];  /* maxima */
    float maxima[ALL_MAX][PITCH];           /* of all blocks: running */
    float alphas[ALL_MAX][PITCH];
    float inverse[HEADS_A_CTA];    /* of heads 8 rank .. 8 rank + 7: 1 / l */
    uint64_t rows[SPLIT_LIST_MAX]; /* offset of each entry's cache row */
    uint64_t full[RING], empty[RING];
};

static __device__ __forceinline__ float peer_load_one(const float *p, uint32_t rank)
{
    uint32_t at;
    float x;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_at(p)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}

static __device__ __forceinline__ void peer_store_one(float *p, uint32_t rank, float x)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_at(p)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
}

/* p of a block in the workspace. */
static __device__ __forceinline__ uint8_t *p_at(const krn_cuda_attend_params &p, uint32_t block)
{
    size_t set = (size_t)blockIdx.y * (gridDim.x / CTAS) + blockIdx.x / CTAS;
    return (uint8_t *)p.workspace + (set * ALL_MAX + block) * CHUNK;
}

/* ---- scores ---- */

/* One lane's share of a warpgroup's 32 entries: 16 codes of entries warp + 4 j, 16 B of rope of two
 * entries. */
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
static __device__ __forceinline__ void split_codes(uint8_t *keys, uint32_t group,
                                                   const split_raw &raw, const uint32_t *factors)
{
    uint32_t t = threadIdx.x % 128, lane = t % 32;
#pragma unroll
    for (int j = 0; j < 8; j++)
        store_piece<EXACT>(keys, group * 32 + t / 32 + 4 * j, lane / 8, lane % 8, raw.codes[j],
                           factors[j]);
}

static __device__ __forceinline__ void split_store(uint8_t *keys, uint32_t group,
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
        split_codes<true>(keys, group, raw, factors);
    else
        split_codes<false>(keys, group, raw, plain);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint32_t e = group * 32 + t / 8 + 16 * j;
        *(uint4 *)(keys + 8 * CHUNK + e * 128 + (((t % 8) ^ (e % 8)) * 16)) = raw.rope[j];
    }
}

/* Scores of the own blocks; entries behind the list's end are -infinity. Maxima into s.halves. Each
 * warpgroup converts and scores its own half of a block, so that one multiplies while the other
 * converts. */
static __device__ __forceinline__ void split_scores(split_smem &s, const uint8_t *base,
                                                    uint32_t rank, uint32_t count, float (*x)[16])
{
    uint32_t t = threadIdx.x % 128, group = threadIdx.x / 128, row = t / 32 * 16 + t % 32 / 4;
    uint32_t blocks = (count + BLOCK - 1) / BLOCK;
    split_raw raw;
    float d[16];
    if (rank < blocks)
        split_load(s.rows + rank * BLOCK + group * 32, base, raw);
#pragma unroll 1 /* code that runs once waits for the instruction cache */
    for (uint32_t i = 0; i < OWN_MAX; i++) {
        uint32_t block = rank + i * CTAS;
#pragma unroll
        for (int j = 0; j < 16; j++)
            d[j] = 0.0f;
        if (block >= blocks)
            break;
        bar_sync(1 + group, 128); /* its last keys are read */
        split_store(s.score.keys, group, raw);
        fence_async();
        bar_sync(1 + group, 128);
        if (block + CTAS < blocks)
            split_load(s.rows + (block + CTAS) * BLOCK + group * 32, base, raw);
        score_block(s.score.q, s.score.keys, group, d);
        mma_wait<0>();
        mma_pin<16>(d);
        float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t entry = block * BLOCK + group * 32 + 8 * (j / 4) + 2 * (t % 4) + j % 2;
            x[i][j] = entry < count ? d[j] : -INFINITY;
            most[j / 2 % 2] = fmaxf(most[j / 2 % 2], x[i][j]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            most[h] = lanes_max(most[h], 4);
            if (t % 4 == 0)
                s.halves[i][group][row + 8 * h] = most[h];
        }
    }
}

/* The own blocks' maxima to everybody. */
static __device__ __forceinline__ void split_tell(split_smem &s, uint32_t rank, uint32_t blocks)
{
    uint32_t i = threadIdx.x / HEADS_A_CTA, head = threadIdx.x % HEADS_A_CTA;
    __syncthreads();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); /* they have begun */
    if (rank + i * CTAS >= blocks)
        return;
    float most = fmaxf(s.halves[i][0][head], s.halves[i][1][head]);
    for (uint32_t peer = 0; peer < CTAS; peer++)
        peer_store_one(&s.maxima[rank + i * CTAS][head], peer, most);
}

/* s.maxima of the blocks -> running, and s.alphas: what o and l are multiplied with at a block. A
 * warp takes 8 heads, a lane a block. */
static __device__ __forceinline__ void split_maxima(split_smem &s, uint32_t blocks, float c)
{
    uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * 8;
    float most[8];
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        most[i] = lane < blocks ? s.maxima[lane][first + i] : -INFINITY;
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
#pragma unroll
        for (uint32_t far = 1; far < 32; far *= 2) {
            float other = __shfl_up_sync(0xFFFFFFFFu, most[i], far);
            most[i] = lane >= far ? fmaxf(most[i], other) : most[i];
        }
        float before = __shfl_up_sync(0xFFFFFFFFu, most[i], 1);
        before = lane ? before : -INFINITY;
        if (lane < blocks) {
            s.maxima[lane][first + i] = most[i];
            s.alphas[lane][first + i] = exp2_fast(fmaf(before, c, -__fmul_rn(most[i], c)));
        }
    }
    __syncthreads();
}

/* Scores of the own blocks -> p and the lanes' sums. */
static __device__ __forceinline__ void split_soften(split_smem &s, uint32_t rank, uint32_t blocks,
                                                    float c, const float (*x)[16])
{
    uint32_t t = threadIdx.x % 128, group = threadIdx.x / 128, row = t / 32 * 16 + t % 32 / 4;
    uint32_t q = t % 4;
#pragma unroll 1 /* code that runs once waits for the instruction cache */
    for (uint32_t i = 0; i < OWN_MAX; i++) {
        uint32_t block = rank + i * CTAS;
        if (block >= blocks)
            break;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t r = row + 8 * h;
            float base = __fmul_rn(s.maxima[block][r], c), sum = 0.0f;
#pragma unroll
            for (uint32_t j = 0; j < 16; j += 4) {
                float a = exp2_fast(fmaf(x[i][j + 2 * h], c, -base));
                float b = exp2_fast(fmaf(x[i][j + 2 * h + 1], c, -base));
                sum = __fadd_rn(__fadd_rn(sum, a), b);
                uint32_t unit = group * 4 + j / 4;
                *(uint32_t *)(s.p[i] + r * 128 + ((unit ^ (r % 8)) * 16) + q * 4) = bf16_pair(a, b);
            }
            s.sums[i][group][r][q] = sum;
        }
    }
}

/* 1 / l of heads 8 rank .. 8 rank + 7: a lane for each head, half and lane of a quad. */
static __device__ __forceinline__ void split_inverse(split_smem &s, uint32_t rank, uint32_t blocks)
{
    uint32_t t = threadIdx.x - (THREADS - 64), head = rank * 8 + t / 8, group = t / 4 % 2;
    if (threadIdx.x < THREADS - 64)
        return;
    float l = 0.0f, sums[ALL_MAX];
#pragma unroll
    for (uint32_t block = 0; block < ALL_MAX; block++)
        sums[block] = block < blocks
                          ? peer_load_one(&s.sums[block / CTAS][group][head][t % 4], block % CTAS)
                          : 0.0f;
#pragma unroll
    for (uint32_t block = 0; block < ALL_MAX; block++)
        if (block < blocks)
            l = fmaf(l, s.alphas[block][head], sums[block]);
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 1));
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 2));
    l = __fadd_rn(l, __shfl_xor_sync(0xFFFFFFFFu, l, 4));
    if (t % 8 == 0)
        s.inverse[head] = __frcp_rn(l);
}

/* ---- values ---- */

/* p of the own blocks to the workspace. */
static __device__ __forceinline__ void
split_publish(const split_smem &s, const krn_cuda_attend_params &p, uint32_t rank, uint32_t blocks)
{
    fence_async();
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (uint32_t i = 0; rank + i * CTAS < blocks; i++)
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                         p_at(p, rank + i * CTAS)),
                     "r"(smem_at(s.p[i])), "r"(CHUNK)
                     : "memory");
    asm volatile("cp.async.bulk.commit_group;\n"
                 "cp.async.bulk.wait_group 0;\n"
                 "fence.proxy.async;" ::
                     : "memory");
}

/* One thread's share of a block of values: 16 codes of entries t / 4 and t / 4 + 32. */
struct split_values {
    uint4 codes[2];
    float scales[2];
};

static __device__ __forceinline__ void values_load(const split_smem &s, const uint8_t *base,
                                                   uint32_t rank, uint32_t block, split_values &v)
{
    uint32_t t = threadIdx.x % 128;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint8_t *row = base + s.rows[block * BLOCK + t / 4 + 32 * i];
        v.codes[i] = __ldg((const uint4 *)(row + rank * SLICE) + t % 4);
        v.scales[i] = __ldg((const float *)(row + LATENT_SCALES) + rank * SLICE / 128);
    }
}

template <bool EXACT>
static __device__ __forceinline__ void values_codes(uint8_t *values, const split_values &v,
                                                    const uint32_t *factors)
{
    uint32_t t = threadIdx.x % 128, unit = t % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t e = t / 4 + 32 * i;
        uint8_t *row = values + e * 128;
        *(uint4 *)(row + ((unit ^ (e % 8)) * 16)) =
            dequantise8<EXACT>(make_uint2(v.codes[i].x, v.codes[i].y), factors[i]);
        *(uint4 *)(row + (((unit + 1) ^ (e % 8)) * 16)) =
            dequantise8<EXACT>(make_uint2(v.codes[i].z, v.codes[i].w), factors[i]);
    }
}

static __device__ __forceinline__ void values_store(uint8_t *values, const split_values &v)
{
    uint32_t factors[2] = {exact_factor(v.scales[0]), exact_factor(v.scales[1])};
    const uint32_t plain[2] = {__float_as_uint(v.scales[0]), __float_as_uint(v.scales[1])};
    if (__all_sync(0xFFFFFFFFu, factors[0] != 0 && factors[1] != 0))
        values_codes<true>(values, v, factors);
    else
        values_codes<false>(values, v, plain);
}

/* Threads 128..255: the blocks' values and p into the ring. */
static __device__ __forceinline__ void values_produce(split_smem &s,
                                                      const krn_cuda_attend_params &p,
                                                      uint32_t rank, uint32_t blocks,
                                                      split_values *v)
{
    for (uint32_t first = 0; first < blocks; first += AHEAD) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            uint32_t block = first + i, slot = block % RING;
            if (block >= blocks)
                break;
            if (block >= RING)
                barrier_wait(&s.empty[slot], (block / RING - 1) & 1);
            if (threadIdx.x == 128) {
                barrier_expect(&s.full[slot], CHUNK);
                bulk_copy(s.value.p[slot], p_at(p, block), CHUNK, &s.full[slot]);
            }
            values_store(s.value.values[slot], v[i]);
            fence_async();
            barrier_arrive(&s.full[slot]);
            if (block + AHEAD < blocks)
                values_load(s, p.cache.base, rank, block + AHEAD, v[i]);
        }
    }
}

/* Threads 0..127: o of 64 heads and the own 64 value dimensions. Warps of a warpgroup must come to
 * wgmma by the same way, so nothing branches on alpha: times 1 is exact. */
static __device__ __forceinline__ void values_multiply(split_smem &s, uint32_t blocks, float *o)
{
    uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
    for (uint32_t block = 0; block < blocks; block++) {
        uint32_t slot = block % RING;
        float alpha[2] = {s.alphas[block][row], s.alphas[block][row + 8]};
        barrier_wait(&s.full[slot], block / RING & 1);
        mma_wait<0>();
        mma_pin<SLICE / 2>(o);
        if (block > 0)
            barrier_arrive(&s.empty[(block - 1) % RING]);
#pragma unroll
        for (int j = 0; j < SLICE / 2; j++)
            o[j] = __fmul_rn(o[j], alpha[j / 2 % 2]);
        uint64_t a = mma_operand(s.value.p[slot]);
        uint64_t b = mma_operand_along_n(s.value.values[slot], CHUNK);
        mma_pin<SLICE / 2>(o);
        mma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            wgmma_bf16<SLICE, 1>(o, a + 2 * k, b + 128 * k, block + k);
        mma_commit();
    }
    mma_wait<0>();
    mma_pin<SLICE / 2>(o);
}

static __device__ __forceinline__ void split_store_out(const split_smem &s,
                                                       const krn_cuda_attend_params &p,
                                                       uint32_t rank, uint32_t head_first,
                                                       const float *o)
{
    uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, q = t % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t r = row + 8 * h;
        float inverse = peer_load_one(&s.inverse[r], r / 8);
        if (head_first + r >= p.heads)
            continue;
        size_t at = ((size_t)blockIdx.y * p.heads + head_first + r) * KRN_VALUES + rank * SLICE;
#pragma unroll
        for (int j = 0; j < SLICE / 8; j++)
            *(uint32_t *)(p.out + at + 8 * j + q * 2) = bf16_pair(
                __fmul_rn(o[4 * j + 2 * h], inverse), __fmul_rn(o[4 * j + 2 * h + 1], inverse));
    }
}

/* ---- all of it ---- */

static __device__ __forceinline__ void split_begin(split_smem &s, const krn_cuda_attend_params &p,
                                                   uint32_t head_first, uint32_t count)
{
    uint32_t sequence = p.rows_at[blockIdx.y].sequence;
    const uint32_t *list = p.lists + (size_t)blockIdx.y * p.list_stride;
    uint32_t padded = (count + BLOCK - 1) / BLOCK * BLOCK;
#pragma unroll
    for (uint32_t j = 0; j < SPLIT_LIST_MAX / THREADS; j++) {
        uint32_t i = threadIdx.x + j * THREADS;
        if (i >= padded)
            break;
        const uint8_t *row = slot_row(p.cache, sequence, entry_slot(list, i, count));
        s.rows[i] = (uint64_t)(row - p.cache.base);
        if (i / BLOCK % CTAS == blockIdx.x % CTAS) /* to be scored here */
            for (uint32_t k = 0; k < LATENT_ROW; k += 128)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(row + k));
    }
    for (uint32_t i = threadIdx.x; i < HEADS_A_CTA * CHUNKS * 8; i += THREADS) {
        uint32_t h = i / (CHUNKS * 8), unit = i % (CHUNKS * 8), chunk = unit / 8;
        size_t head = (size_t)blockIdx.y * p.heads + head_first + h;
        const uint16_t *from = chunk < 8 ? p.q_latent + head * 512 + unit * 8
                                         : p.q + head * 192 + 128 + (unit - 64) * 8;
        uint8_t *to = s.score.q + chunk * CHUNK + h * 128 + ((unit % 8) ^ (h % 8)) * 16;
        if (head_first + h < p.heads)
            copy16(to, from);
        else
            *(uint4 *)to = make_uint4(0, 0, 0, 0);
    }
    copy_commit();
    copy_wait<0>();
    fence_async();
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS, 1) split_kernel(const krn_cuda_attend_params p)
{
    extern __shared__ uint8_t raw[];
    split_smem &s = *(split_smem *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    uint32_t rank = blockIdx.x % CTAS, head_first = blockIdx.x / CTAS * HEADS_A_CTA;
    uint32_t count = p.list_counts[blockIdx.y], blocks = (count + BLOCK - 1) / BLOCK;
    float c = __fmul_rn(p.scale, 1.4426950408889634f);
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    split_begin(s, p, head_first, count);
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; i++) {
            barrier_init(&s.full[i], 129);
            barrier_init(&s.empty[i], 128);
        }
        fence_async();
    }
    {
        float x[OWN_MAX][16];
        split_scores(s, p.cache.base, rank, count, x);
        split_tell(s, rank, blocks);
        cluster_sync();
        split_maxima(s, blocks, c);
        split_soften(s, rank, blocks, c, x);
        split_publish(s, p, rank, blocks);
    }
    split_values v[AHEAD];
    if (threadIdx.x >= 128)
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
            if (i < blocks)
                values_load(s, p.cache.base, rank, i, v[i]);
    cluster_sync(); /* p and sums are there; q and keys are read */
    float o[SLICE / 2];
#pragma unroll
    for (int j = 0; j < SLICE / 2; j++)
        o[j] = 0.0f;
    if (threadIdx.x >= 128) {
        values_produce(s, p, rank, blocks, v);
        split_inverse(s, rank, blocks);
    } else {
        values_multiply(s, blocks, o);
    }
    cluster_sync();
    if (threadIdx.x < 128)
        split_store_out(s, p, rank, head_first, o);
    cluster_sync(); /* the inverses are read */
}

KRN_CUDA_LOCAL int krn_cuda_attend_split(const krn_cuda_attend_params *p, cudaStream_t stream)
{
    const int bytes = sizeof(split_smem) + 1024;
    static_assert(sizeof(split_smem) + 1024 <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)split_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "attend: %s", cudaGetErrorString(ready));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {CTAS, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((p->heads + HEADS_A_CTA - 1) / HEADS_A_CTA * CTAS, p->rows);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, split_kernel, *p);
    return krn_cuda_launched("attend");
}
