/* BF16 products y = x W^T with bf16 or f32 output: W_UK and W_UV (a group a head), router,
 * weights_proj, head, the MTP projection.
 *
 * Weights are operand A (64 columns of y), rows of x operand B, for every M: one MMA family and one
 * chain, so that a row's bits do not depend on its batch. Bytes: the weights once at M <= 128;
 * stages of 64 k (8 KB of weights, 128 B a row of x), several CTAs an SM. At large M the L2 bounds
 * it: 24 KB a stage for 64 x 128 x 64 products.
 *
 * Order (docs/CUDA-ORDER.md): K is cut into `segments` equal runs; in a run one wgmma chain, k 16 a
 * step; the runs' results are added in ascending order, starting from the first; one rounding. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma_bf16.cuh"
#include "kernels/cuda/operations.cuh"
#include "kernels/cuda/partial.cuh"

#define TILE_N      64
#define BLOCK_K     64
#define WEIGHT_TILE 8192
#define AHEAD       (STAGES - 2) /* stages being loaded while one is multiplied and one drains */
#define STAGES      6

template <int NT> struct bf16_shape {
    static constexpr int stage_bytes = WEIGHT_TILE + NT * 128;
    static constexpr int smem_bytes = 1024 + STAGES * stage_bytes;
};

/* The rows of x that this thread copies: 16 bytes each, 16 rows apart. */
template <int NT> struct row_set {
    static constexpr int count = NT > 16 ? NT / 16 : 1;
    const uint16_t *from[count];
};

template <int NT>
static __device__ __forceinline__ row_set<NT> rows_of(const krn_cuda_linear_bf16_params &p,
                                                      uint32_t first)
{
    row_set<NT> set;
    uint32_t t = threadIdx.x;
#pragma unroll
    for (int j = 0; j < row_set<NT>::count; j++) {
        uint32_t r = min(first + t / 8 + 16 * j, p.rows - 1); /* those past the end: not stored */
        if (p.row_index)
            r = p.row_index[r];
        set.from[j] = p.x + (size_t)r * p.x_stride + (size_t)blockIdx.z * p.x_group + t % 8 * 8;
    }
    return set;
}

template <int NT>
static __device__ __forceinline__ void load_stage(uint8_t *stage, const uint8_t *weights,
                                                  const row_set<NT> &rows, uint32_t block)
{
    uint32_t t = threadIdx.x, r = t / 8, c = t % 8;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        copy16(stage + (t + 128 * j) * 16,
               weights + (size_t)block * WEIGHT_TILE + (t + 128 * j) * 16);
    uint8_t *at = stage + WEIGHT_TILE + r * 128 + ((c ^ (r % 8)) * 16);
    if (NT >= 16 || t < 64) {
#pragma unroll
        for (int j = 0; j < row_set<NT>::count; j++)
            copy16(at + j * 2048, rows.from[j] + (size_t)block * BLOCK_K);
    }
}

/* Blocks first .. first + count - 1 as one chain. */
template <int NT>
static __device__ __forceinline__ void multiply(uint8_t *stages, const uint8_t *weights,
                                                const row_set<NT> &rows, uint32_t first,
                                                uint32_t count, float *acc)
{
    constexpr uint32_t bytes = bf16_shape<NT>::stage_bytes;
    for (uint32_t i = 0; i < AHEAD; i++) {
        if (i < count)
            load_stage<NT>(stages + i * bytes, weights, rows, first + i);
        copy_commit();
    }
    mma_pin<NT / 2>(acc);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *stage = stages + i % STAGES * bytes;
        copy_wait<AHEAD - 1>();
        fence_async();
        __syncthreads(); /* also: everybody has done with stage i - 2 */
        mma_fence();
        uint64_t a = mma_operand(stage), b = mma_operand(stage + WEIGHT_TILE);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            wgmma_bf16<NT, 0>(acc, a + 2 * j, b + 2 * j, i + j);
        mma_commit();
        if (i + AHEAD < count)
            load_stage<NT>(stages + (i + AHEAD) % STAGES * bytes, weights, rows, first + i + AHEAD);
        copy_commit();
        mma_wait<1>();
    }
    copy_wait<0>();
    mma_wait<0>();
    mma_pin<NT / 2>(acc);
}

static __device__ __forceinline__ void store4(const krn_cuda_linear_bf16_params &p, size_t at,
                                              uint32_t column, float4 y)
{
    const float v[4] = {y.x, y.y, y.z, y.w};
    bool fine = true;
    for (uint32_t i = 0; i < 4; i++)
        fine = fine && (column + i >= p.n || is_finite(v[i]));
    report(p.fault, !fine);
    if (column + 4 <= p.n && at % 4 == 0) {
        if (p.out_f32)
            *(float4 *)((float *)p.out + at) = y;
        else
            *(uint2 *)((uint16_t *)p.out + at) =
                make_uint2(bf16_pair(y.x, y.y), bf16_pair(y.z, y.w));
        return;
    }
    for (uint32_t i = 0; i < 4 && column + i < p.n; i++) {
        if (p.out_f32)
            ((float *)p.out)[at + i] = v[i];
        else
            ((uint16_t *)p.out)[at + i] = f32_bf16(v[i]);
    }
}

template <int NT, int S>
__global__ void __launch_bounds__(128) linear_kernel(const krn_cuda_linear_bf16_params p)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    uint8_t *stages = raw + ((1024 - (smem_at(raw) & 1023)) & 1023);
    uint32_t rank = S > 1 ? blockIdx.x % S : 0, tile = blockIdx.x / S, t = threadIdx.x;
    uint32_t first_row = blockIdx.y * NT, blocks = p.k / BLOCK_K, count = blocks / S;
    const uint8_t *weights =
        p.weights + blockIdx.z * p.weights_bytes + (size_t)tile * blocks * WEIGHT_TILE;
    row_set<NT> rows = rows_of<NT>(p, first_row);
    float acc[NT / 2];
#pragma unroll
    for (int i = 0; i < NT / 2; i++)
        acc[i] = 0.0f;
    multiply<NT>(stages, weights, rows, rank * count, count, acc);
    __syncthreads();
    float *part = (float *)stages;
    partial_put<NT>(part, acc);
    if (S > 1)
        cluster_sync();
    else
        __syncthreads();
    uint32_t here = min((uint32_t)NT, p.rows - first_row);
    for (uint32_t r = rank + S * (t / 16); r < here; r += S * 8) {
        float4 y = partial_sum<S>(part + r * PARTIAL_PITCH + t % 16 * 4);
        uint32_t column = tile * TILE_N + t % 16 * 4;
        size_t at = (size_t)(first_row + r) * p.out_stride + (size_t)blockIdx.z * p.out_group;
        store4(p, at + column, column, y);
    }
    if (S > 1)
        cluster_sync(); /* the partial sums are read by the others */
}

/* ---- host ---- */

template <int NT, int S>
static int bf16_launch(const krn_cuda_linear_bf16_params *p, cudaStream_t stream)
{
    const int bytes = bf16_shape<NT>::smem_bytes;
    static_assert(NT * PARTIAL_PITCH * 4 <= STAGES * bf16_shape<NT>::stage_bytes, "partial sums");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)linear_kernel<NT, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear_bf16: %s", cudaGetErrorString(ready));
    dim3 grid((p->n + TILE_N - 1) / TILE_N * S, (p->rows + NT - 1) / NT, p->groups);
    return launch_in_turn("linear_bf16", {grid, 128, S, bytes, stream}, linear_kernel<NT, S>, *p);
}

template <int S> static int bf16_rows(const krn_cuda_linear_bf16_params *p, cudaStream_t stream)
{
    if (p->rows <= 8)
        return bf16_launch<8, S>(p, stream);
    if (p->rows <= 16)
        return bf16_launch<16, S>(p, stream);
    if (p->rows <= 32)
        return bf16_launch<32, S>(p, stream);
    if (p->rows <= 64)
        return bf16_launch<64, S>(p, stream);
    return bf16_launch<128, S>(p, stream);
}

/* Table of the canonical order: router and weights_proj would leave most of the chip idle. */
KRN_CUDA_LOCAL uint32_t krn_cuda_segments_bf16(uint32_t n, uint32_t k)
{
    return n <= 512 && k >= 4096 && k / BLOCK_K % 8 == 0 ? 8 : 1;
}

KRN_CUDA_LOCAL int krn_cuda_linear_bf16(const krn_cuda_linear_bf16_params *p,
                                        krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->k > 0 && p->k % BLOCK_K == 0);
    KRN_CUDA_ENSURE(p->x_stride % 8 == 0 && p->x_group % 8 == 0 && p->weights_bytes % 16 == 0);
    KRN_CUDA_ENSURE(p->groups >= 1 && p->groups <= 65535 && p->rows <= 65535 * 8);
    KRN_CUDA_ENSURE(p->segments == 1 || p->segments == 8);
    KRN_CUDA_ENSURE(p->k / BLOCK_K % p->segments == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    cudaStream_t s = (cudaStream_t)stream;
    return p->segments == 8 ? bf16_rows<8>(p, s) : bf16_rows<1>(p, s);
}

KRN_CUDA_LOCAL uint64_t krn_cuda_weights_bytes_bf16(uint32_t n, uint32_t k)
{
    return (uint64_t)((n + TILE_N - 1) / TILE_N) * ((k + BLOCK_K - 1) / BLOCK_K) * WEIGHT_TILE;
}

KRN_CUDA_LOCAL void krn_cuda_weights_pack_bf16(const uint16_t *weights, size_t n_stride,
                                               size_t k_stride, uint32_t n, uint32_t k,
                                               uint8_t *out)
{
    uint32_t blocks = (k + BLOCK_K - 1) / BLOCK_K, tiles = (n + TILE_N - 1) / TILE_N;
    for (uint32_t i = 0; i < tiles * TILE_N; i++) {
        for (uint32_t j = 0; j < blocks * BLOCK_K; j++) {
            uint32_t r = i % TILE_N, c = j % BLOCK_K / 8;
            uint8_t *tile = out + ((size_t)(i / TILE_N) * blocks + j / BLOCK_K) * WEIGHT_TILE;
            uint16_t *row = (uint16_t *)(tile + r / 8 * 1024 + r % 8 * 128);
            row[(c ^ (r % 8)) * 8 + j % 8] =
                i < n && j < k ? weights[i * n_stride + j * k_stride] : 0;
        }
    }
}
