/* Rows from one place to another: by index (embedding, rope table), by pairs of addresses (h_final
 * in and out of the cache); and the highest logit of each row. Bound by memory or, for a few rows,
 * by the launch: 16 bytes a thread. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.cuh"

#define THREADS 256

static __global__ void __launch_bounds__(THREADS) gather_kernel(const krn_cuda_gather_params p)
{
    in_turn();
    const uint4 *from = (const uint4 *)(p.table + (uint64_t)p.index[blockIdx.x] * p.bytes);
    uint4 *to = (uint4 *)(p.out + (uint64_t)blockIdx.x * p.bytes);
    for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < p.bytes / 16;
         i += gridDim.y * THREADS)
        to[i] = from[i];
}

KRN_CUDA_LOCAL int krn_cuda_gather(const krn_cuda_gather_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->bytes > 0 && p->bytes % 16 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    dim3 grid(p->rows, (p->bytes / 16 + THREADS - 1) / THREADS);
    return launch_in_turn("gather", {grid, THREADS, 1, 0, (cudaStream_t)stream}, gather_kernel, *p);
}

static __global__ void __launch_bounds__(THREADS) move_kernel(const krn_cuda_move_params p)
{
    in_turn();
    bool bad = false;
    for (uint32_t i = threadIdx.x; i < p.fault_count; i += THREADS)
        bad = bad || p.faults[i] != 0;
    if (__syncthreads_or(bad))
        return;
    const uint4 *from = (const uint4 *)p.moves[2 * blockIdx.x + 1];
    uint4 *to = (uint4 *)p.moves[2 * blockIdx.x];
    for (uint32_t i = threadIdx.x; i < p.bytes / 16; i += THREADS)
        to[i] = from[i];
}

KRN_CUDA_LOCAL int krn_cuda_move(const krn_cuda_move_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->bytes > 0 && p->bytes % 16 == 0);
    if (p->count == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("move", {dim3(p->count), THREADS, 1, 0, (cudaStream_t)stream},
                          move_kernel, *p);
}

/* ---- highest logit ---- */

#define ARG_THREADS 1024

static __global__ void __launch_bounds__(ARG_THREADS)
    arg_max_kernel(const krn_cuda_arg_max_params p)
{
    in_turn();
    __shared__ uint64_t best_of[ARG_THREADS / 32];
    const float *row = p.logits + (size_t)blockIdx.x * p.n;
    uint64_t best = 0; /* ordered value, then the complement of the index */
    for (uint32_t i = threadIdx.x; i < p.n; i += ARG_THREADS) {
        uint64_t key = (uint64_t)ordered(row[i]) << 32 | (0xFFFFFFFFu - i);
        best = key > best ? key : best;
    }
    for (int round = 0; round < 2; round++) {
        for (int far = 16; far > 0; far /= 2) {
            uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, best, far);
            best = other > best ? other : best;
        }
        if (round == 1)
            break;
        if (threadIdx.x % 32 == 0)
            best_of[threadIdx.x / 32] = best;
        __syncthreads();
        best = best_of[threadIdx.x % 32];
    }
    if (threadIdx.x == 0)
        p.out_ids[blockIdx.x] = 0xFFFFFFFFu - (uint32_t)best;
}

KRN_CUDA_LOCAL int krn_cuda_arg_max(const krn_cuda_arg_max_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("arg_max", {dim3(p->rows), ARG_THREADS, 1, 0, (cudaStream_t)stream},
                          arg_max_kernel, *p);
}
