/* Sums of the K-segments of one tile of y, 64 columns x NT rows: accumulators of the swapped
 * operands to shared memory, then added over the cluster. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_PARTIAL_CUH
#define KERNELS_CUDA_PARTIAL_CUH

#include "kernels/cuda/device.cuh"

#define PARTIAL_PITCH 68 /* f32; conflict-free */

/* Threads 0..127; part [NT][PARTIAL_PITCH]. Columns of acc are rows of y. */
template <int NT> static __device__ __forceinline__ void partial_put(float *part, const float *acc)
{
    uint32_t t = threadIdx.x, n = t / 32 * 16 + t % 32 / 4, row = t % 4 * 2;
#pragma unroll
    for (int j = 0; j < NT / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[(8 * j + row + i % 2) * PARTIAL_PITCH + n + i / 2 * 8] = acc[4 * j + i];
}

/* Four columns: the cluster's CTAs ascending, starting from the first. */
template <int S> static __device__ __forceinline__ float4 partial_sum(const float *at)
{
    float4 y = S > 1 ? peer_load(at, 0) : *(const float4 *)at;
#pragma unroll
    for (uint32_t i = 1; i < S; i++) {
        float4 x = peer_load(at, i);
        y = make_float4(__fadd_rn(y.x, x.x), __fadd_rn(y.y, x.y), __fadd_rn(y.z, x.z),
                        __fadd_rn(y.w, x.w));
    }
    return y;
}

#endif
