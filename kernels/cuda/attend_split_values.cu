/* Third kernel of the split attention: o of SETS sets of 64 heads and N value dimensions.
 *
 * Two warpgroups turn values into bf16, every other block of 64 entries each; one or two multiply.
 * p comes by bulk copies, each half once for the two CTAs of a cluster, which have the same heads
 * and neighbouring dimensions. Bytes of a CTA: SETS x 256 KB of p, 2,048 N of values; cycles of a
 * block: 2 SETS N of the tensor cores, some 150 between two blocks of a chain. */
#include "kernels/cuda/attend_split.cuh"

#define PAIR 2 /* CTAs of a cluster */

template <int SETS, int N> struct values_shape {
    static constexpr uint32_t VALUE_BYTES = N > 64 ? 2 * CHUNK : CHUNK;
    static constexpr uint32_t RING = SETS == 1 ? 8 : 6;
    static constexpr uint32_t PIECES = N > 32 ? N / 32 : 1; /* of 16 codes, a thread and block */
    static constexpr uint32_t AHEAD = N > 64 ? 2 : 4;       /* blocks in registers */
    static constexpr uint32_t MULTIPLIERS = SETS * 128;
    static constexpr uint32_t THREADS = MULTIPLIERS + 256;
    struct smem {
        uint8_t values[RING][VALUE_BYTES];
        uint8_t p[RING][SETS * CHUNK];
        float alphas[SETS][BLOCKS_MAX][HEADS_A_CTA];
        uint64_t rows[SPLIT_LIST_MAX];
        uint64_t full[RING], empty[RING], alphas_full;
    };
};

/* To both CTAs of the cluster, and to both their barriers. */
static __device__ __forceinline__ void bulk_copy_both(void *to, const void *from, uint32_t bytes,
                                                      uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(smem_at(to)),
                 "l"(from), "r"(bytes), "r"(smem_at(barrier)), "h"((uint16_t)3)
                 : "memory");
}

/* ---- conversion ---- */

/* Piece i of thread t: entry and 16 codes of it. */
template <int N> static __device__ __forceinline__ uint32_t piece_entry(uint32_t t, uint32_t i)
{
    return (t + 128 * i) / (N / 16);
}

template <int N, int PIECES> struct split_values {
    uint4 codes[PIECES];
    float scales[PIECES];
};

template <int N, int PIECES>
static __device__ __forceinline__ void values_load(const uint64_t *rows, const uint8_t *base,
                                                   uint32_t dim_first, split_values<N, PIECES> &v)
{
    uint32_t t = threadIdx.x % 128, dim = dim_first + t % (N / 16) * 16;
    if (t >= 4 * N)
        return;
#pragma unroll
    for (uint32_t i = 0; i < PIECES; i++) {
        const uint8_t *row = base + rows[piece_entry<N>(t, i)];
        v.codes[i] = __ldg((const uint4 *)(row + dim));
        v.scales[i] = __ldg((const float *)(row + LATENT_SCALES) + dim / 128);
    }
}

template <bool EXACT, int N, int PIECES>
static __device__ __forceinline__ void
values_codes(uint8_t *values, const split_values<N, PIECES> &v, const uint32_t *factors)
{
    uint32_t t = threadIdx.x % 128;
#pragma unroll
    for (uint32_t i = 0; i < PIECES; i++)
        store_piece<EXACT>(values, piece_entry<N>(t, i), 0, t % (N / 16), v.codes[i], factors[i]);
}

template <int N, int PIECES>
static __device__ __forceinline__ void values_store(uint8_t *values,
                                                    const split_values<N, PIECES> &v)
{
    uint32_t factors[PIECES], plain[PIECES];
    bool exact = true;
    if (threadIdx.x % 128 >= 4 * N)
        return;
#pragma unroll
    for (uint32_t i = 0; i < PIECES; i++) {
        factors[i] = exact_factor(v.scales[i]);
        plain[i] = __float_as_uint(v.scales[i]);
        exact = exact && factors[i] != 0;
    }
    if (__all_sync(0xFFFFFFFFu, exact)) /* whole warps are here: 4 N is a multiple of 32 */
        values_codes<true>(values, v, factors);
    else
        values_codes<false>(values, v, plain);
}

/* The own half of p of the sets' block to both CTAs. */
template <int SETS>
static __device__ __forceinline__ void values_p(uint8_t *to, const split_work &w, uint32_t set,
                                                uint32_t block, uint64_t *full)
{
    uint32_t half = blockIdx.x % PAIR * (CHUNK / PAIR);
    barrier_expect(full, SETS * CHUNK);
#pragma unroll
    for (uint32_t i = 0; i < SETS; i++)
        bulk_copy_both(to + i * CHUNK + half,
                       w.p_bf16 + ((size_t)(set + i) * BLOCKS_MAX + block) * CHUNK + half,
                       CHUNK / PAIR, full);
}

template <int SETS, int N>
static __device__ __forceinline__ void values_produce(typename values_shape<SETS, N>::smem &s,
                                                      const split_work &w, uint32_t set,
                                                      uint32_t dim_first, uint32_t blocks)
{
    typedef values_shape<SETS, N> shape;
    constexpr uint32_t AHEAD = shape::AHEAD, RING = shape::RING;
    uint32_t group = (threadIdx.x - shape::MULTIPLIERS) / 128;
    split_values<N, shape::PIECES> v[AHEAD];
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++)
        if (group + 2 * i < blocks)
            values_load(s.rows + (group + 2 * i) * BLOCK, w.p.cache.base, dim_first, v[i]);
    bool copies = threadIdx.x % 128 == 0;
    if (copies)
        wait_for_previous();
    if (copies && group == 0) {
        barrier_expect(&s.alphas_full, SETS * blocks * HEADS_A_CTA * 4);
#pragma unroll
        for (uint32_t i = 0; i < SETS; i++)
            bulk_copy(s.alphas[i], w.alphas + (size_t)(set + i) * BLOCKS_MAX * HEADS_A_CTA,
                      blocks * HEADS_A_CTA * 4, &s.alphas_full);
    }
    for (uint32_t first = group; first < blocks; first += 2 * AHEAD) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            uint32_t block = first + 2 * i, slot = block % RING, next = block + 2 * AHEAD;
            if (block >= blocks)
                break;
            if (block >= RING)
                barrier_wait(&s.empty[slot], (block / RING - 1) & 1);
            if (copies)
                values_p<SETS>(s.p[slot], w, set, block, &s.full[slot]);
            values_store(s.values[slot], v[i]);
            fence_async();
            barrier_arrive(&s.full[slot]);
            if (next < blocks)
                values_load(s.rows + next * BLOCK, w.p.cache.base, dim_first, v[i]);
        }
    }
}

/* ---- products ---- */

/* Warps of a warpgroup must come to wgmma by the same way, so nothing branches on alpha: times 1 is
 * exact. */
template <int SETS, int N>
static __device__ __forceinline__ void values_multiply(typename values_shape<SETS, N>::smem &s,
                                                       uint32_t blocks, float *o)
{
    constexpr uint32_t RING = values_shape<SETS, N>::RING;
    uint32_t t = threadIdx.x % 128, group = threadIdx.x / 128;
    uint32_t row = t / 32 * 16 + t % 32 / 4;
    barrier_wait(&s.alphas_full, 0);
    for (uint32_t block = 0; block < blocks; block++) {
        uint32_t slot = block % RING;
        float alpha[2] = {s.alphas[group][block][row], s.alphas[group][block][row + 8]};
        barrier_wait(&s.full[slot], block / RING & 1);
        mma_wait<0>();
        mma_pin<N / 2>(o);
        if (block > 0 && t % 32 < PAIR)
            peer_arrive(&s.empty[(block - 1) % RING], t % 32);
#pragma unroll
        for (int j = 0; j < N / 2; j++)
            o[j] = __fmul_rn(o[j], alpha[j / 2 % 2]);
        uint64_t a = mma_operand(s.p[slot] + group * CHUNK);
        uint64_t b = mma_operand_along_n(s.values[slot], CHUNK);
        mma_pin<N / 2>(o);
        mma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            wgmma_bf16<N, 1>(o, a + 2 * k, b + 128 * k, block + k);
        mma_commit();
    }
    mma_wait<0>();
    mma_pin<N / 2>(o);
}

template <int N>
static __device__ __forceinline__ void values_out(const split_work &w, uint32_t set,
                                                  uint32_t dim_first, const float *o)
{
    uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
    uint32_t head = set % w.sets * HEADS_A_CTA + row;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (head + 8 * h >= w.p.heads)
            break;
        float inverse = w.inverses[set * HEADS_A_CTA + row + 8 * h];
        uint16_t *out = w.p.out + ((size_t)blockIdx.y * w.p.heads + head + 8 * h) * KRN_VALUES +
                        dim_first + t % 4 * 2;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
            *(uint32_t *)(out + 8 * j) = bf16_pair(__fmul_rn(o[4 * j + 2 * h], inverse),
                                                   __fmul_rn(o[4 * j + 2 * h + 1], inverse));
    }
}

/* ---- all of it ---- */

/* All entries' list loads, then all block loads, then the stores: not one entry after the other. */
template <uint32_t THREADS>
static __device__ __forceinline__ void values_rows(uint64_t *rows, const krn_cuda_attend_params &p,
                                                   uint32_t count, uint32_t blocks)
{
    constexpr uint32_t EACH = (SPLIT_LIST_MAX + THREADS - 1) / THREADS;
    uint32_t early[EACH];
    uint64_t offsets[EACH];
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++)
        early[i] = entry_early(p, blockIdx.y, threadIdx.x + i * THREADS);
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        uint32_t entry = threadIdx.x + i * THREADS;
        offsets[i] = entry_offset(p, blockIdx.y, entry, count, early[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++)
        if (threadIdx.x + i * THREADS < blocks * BLOCK)
            rows[threadIdx.x + i * THREADS] = offsets[i];
}

template <int SETS, int N>
static __global__ void __launch_bounds__(SETS * 128 + 256, 1)
    values_kernel(const __grid_constant__ split_work w)
{
    typedef values_shape<SETS, N> shape;
    extern __shared__ uint8_t raw[];
    typename shape::smem &s =
        *(typename shape::smem *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    constexpr uint32_t SLICES = KRN_VALUES / N;
    let_next_start();
    uint32_t count = w.p.list_counts[blockIdx.y], blocks = (count + BLOCK - 1) / BLOCK;
    uint32_t set = blockIdx.y * w.sets + blockIdx.x / SLICES * SETS;
    uint32_t dim_first = blockIdx.x % SLICES * N, t = threadIdx.x;
    values_rows<shape::THREADS>(s.rows, w.p, count, blocks);
    if (t == 0) {
        for (uint32_t i = 0; i < shape::RING; i++) {
            barrier_init(&s.full[i], 129);
            barrier_init(&s.empty[i], PAIR * SETS * 4);
        }
        barrier_init(&s.alphas_full, 1);
        fence_async();
    }
    __syncthreads(); /* rows */
    cluster_barriers_ready();
    if (t >= shape::MULTIPLIERS) {
        values_produce<SETS, N>(s, w, set, dim_first, blocks);
    } else {
        wait_for_previous(); /* for 1 / l */
        float o[N / 2];
#pragma unroll
        for (int j = 0; j < N / 2; j++)
            o[j] = 0.0f;
        values_multiply<SETS, N>(s, blocks, o);
        values_out<N>(w, set + t / 128, dim_first, o);
    }
    cluster_end();
}

template <int SETS, int N> static int launch(const split_work *work, cudaStream_t stream)
{
    typedef values_shape<SETS, N> shape;
    const int bytes = sizeof(typename shape::smem) + 1024;
    static_assert(sizeof(typename shape::smem) + 1024 <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)values_kernel<SETS, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "attend: %s", cudaGetErrorString(ready));
    const dim3 grid(work->sets / SETS * (KRN_VALUES / N), work->p.rows);
    return launch_in_turn("attend", {grid, shape::THREADS, PAIR, bytes, stream},
                          values_kernel<SETS, N>, *work);
}

/* The widest tile that still gives every multiprocessor one. */
KRN_CUDA_LOCAL int krn_cuda_split_values(const split_work *work, cudaStream_t stream)
{
    uint32_t sets = work->sets * work->p.rows;
    if (sets * 32 <= MULTIPROCESSORS)
        return launch<1, 16>(work, stream);
    if (sets * 16 <= MULTIPROCESSORS)
        return launch<1, 32>(work, stream);
    if (sets * 8 <= MULTIPROCESSORS || work->sets % 2 != 0)
        return launch<1, 64>(work, stream);
    if (sets * 4 <= MULTIPROCESSORS)
        return launch<2, 64>(work, stream);
    return launch<2, 128>(work, stream);
}
