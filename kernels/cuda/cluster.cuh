/* What the threads of a cluster of 8 CTAs find together: sums, the highest, what comes before.
 * Private to kernels/cuda. */
#ifndef KERNELS_CUDA_CLUSTER_CUH
#define KERNELS_CUDA_CLUSTER_CUH

#include "kernels/cuda/launch.cuh"

#define CLUSTER_CTAS    8u
#define CLUSTER_THREADS 512u /* of a CTA */
#define CLUSTER_WARPS   (CLUSTER_THREADS / 32)

struct cluster_pair {
    uint64_t a, b;
};

struct cluster_smem {
    cluster_pair slots[2][CLUSTER_CTAS];  /* what each CTA told, by turns */
    cluster_pair pairs[2][CLUSTER_WARPS]; /* of warps, by turns too */
    uint64_t parts[CLUSTER_WARPS];
};

/* Generic address of the same place in CTA `rank`. */
template <typename T> static __device__ __forceinline__ T *in_peer(T *p, uint32_t rank)
{
    uint64_t at;
    asm("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(p), "r"(rank));
    return (T *)at;
}
static __device__ __forceinline__ uint32_t rank_in_cluster(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

template <typename F>
static __device__ __forceinline__ uint64_t block_reduce(cluster_smem &s, uint64_t x, F join)
{
    for (int far = 16; far > 0; far /= 2)
        x = join(x, __shfl_xor_sync(0xFFFFFFFFu, x, far));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        s.parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = s.parts[threadIdx.x % CLUSTER_WARPS];
    for (int far = CLUSTER_WARPS / 2; far > 0; far /= 2)
        x = join(x, __shfl_xor_sync(0xFFFFFFFFu, x, far));
    return x;
}

/* Both summed over the CTA, before the next tell_all. A warp's counts fit in 32 bits. */
static __device__ __forceinline__ cluster_pair block_add(cluster_smem &s, uint32_t turn,
                                                         cluster_pair x)
{
    x.a = __reduce_add_sync(0xFFFFFFFFu, (uint32_t)x.a);
#pragma unroll
    for (int far = 16; far > 0; far /= 2)
        x.b += __shfl_xor_sync(0xFFFFFFFFu, x.b, far);
    cluster_pair *parts = s.pairs[turn % 2];
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[threadIdx.x % CLUSTER_WARPS];
#pragma unroll
    for (int far = CLUSTER_WARPS / 2; far > 0; far /= 2) {
        x.a += __shfl_xor_sync(0xFFFFFFFFu, x.a, far);
        x.b += __shfl_xor_sync(0xFFFFFFFFu, x.b, far);
    }
    return x;
}

/* Every CTA's `mine`, the same in all of its threads; until the turn after the next. */
static __device__ __forceinline__ const cluster_pair *tell_all(cluster_smem &s, uint32_t &turn,
                                                               cluster_pair mine)
{
    cluster_pair *slots = s.slots[turn++ % 2];
    if (threadIdx.x < CLUSTER_CTAS)
        *in_peer(slots + rank_in_cluster(), threadIdx.x) = mine;
    cluster_sync();
    return slots;
}

static __device__ __forceinline__ uint64_t u64_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static __device__ __forceinline__ uint64_t u64_add(uint64_t a, uint64_t b)
{
    return a + b;
}
static __device__ __forceinline__ uint64_t f64_add(uint64_t a, uint64_t b)
{
    return __double_as_longlong(__longlong_as_double(a) + __longlong_as_double(b));
}

/* The sum (join) of x of all threads before this one, in this and all CTAs before; total: of all.
 */
template <typename F>
static __device__ uint64_t cluster_before(cluster_smem &s, uint32_t &turn, uint64_t x, F join,
                                          uint64_t &total)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t upto = x, before = 0;
    for (uint32_t far = 1; far < 32; far *= 2) {
        uint64_t other = __shfl_up_sync(0xFFFFFFFFu, upto, far);
        upto = lane >= far ? join(other, upto) : upto;
    }
    __syncthreads();
    if (lane == 31)
        s.parts[warp] = upto;
    __syncthreads();
    uint64_t own = 0, upto_lane = __shfl_up_sync(0xFFFFFFFFu, upto, 1);
    for (uint32_t w = 0; w < CLUSTER_WARPS; w++) {
        before = w == warp ? own : before;
        own = join(own, s.parts[w]);
    }
    const cluster_pair *told = tell_all(s, turn, {own, 0});
    uint64_t ctas = 0;
    total = 0;
    for (uint32_t r = 0; r < CLUSTER_CTAS; r++) {
        ctas = r == rank_in_cluster() ? total : ctas;
        total = join(total, told[r].a);
    }
    before = join(ctas, before);
    return lane > 0 ? join(before, upto_lane) : before;
}

#endif
