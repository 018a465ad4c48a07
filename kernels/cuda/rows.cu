/* Operations on rows of activations: RMSNorm with residual, SwiGLU product, Q128, the sum of expert
 * outputs.
 *
 * All are bound by memory: 16-byte accesses, one pass, the quantised form written while the row is
 * in registers. Norm: the sum of squares is a chain in each of 256 threads (8 columns at a time,
 * 2,048 apart), a butterfly in each warp (distance 16 first), then warps ascending. The others have
 * no sums that differ from the CPU's and give its bits. */
#include "kernels/cuda/launch.cuh"

#define THREADS     256
#define NORM_CHUNKS 4

/* 8 bf16-rounded values of columns k .. k + 7 of row r -> codes; 16 lanes hold one group. */
static __device__ __forceinline__ void quantise8(const float *x, bool active, uint32_t r,
                                                 uint32_t k, uint8_t *codes, float *scales,
                                                 uint32_t rows_tiled, uint32_t pow2)
{
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    largest = lanes_max(active ? largest : 0.0f, 16);
    if (!active)
        return;
    float scale = q128_scale(largest, pow2), y[8];
    if (pow2) {
        float inverse = __fdiv_rn(1.0f, scale); /* exact */
#pragma unroll
        for (int i = 0; i < 8; i++)
            y[i] = __fmul_rn(x[i], inverse);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            y[i] = __fdiv_rn(x[i], scale);
    }
    uint2 word = make_uint2(e4m3_pair(y[0], y[1]) | e4m3_pair(y[2], y[3]) << 16,
                            e4m3_pair(y[4], y[5]) | e4m3_pair(y[6], y[7]) << 16);
    *(uint2 *)(codes + tiled_at(r, k, rows_tiled) + k % 16) = word;
    if (threadIdx.x % 16 == 0)
        scales[(size_t)(k / 128) * rows_tiled + r] = scale;
}

static __device__ __forceinline__ void round8(float *x)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = bf16_f32(f32_bf16(x[i]));
}

static __device__ __forceinline__ bool finite8(const float *x)
{
    bool fine = true;
#pragma unroll
    for (int i = 0; i < 8; i++)
        fine = fine && is_finite(x[i]);
    return fine;
}

/* ---- norm ---- */

static __device__ __forceinline__ float block_sum(float x)
{
    __shared__ float parts[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = parts[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++)
        sum = __fadd_rn(sum, parts[i]);
    return sum;
}

template <int CHUNKS>
__global__ void __launch_bounds__(THREADS) norm_kernel(const krn_cuda_norm_params p)
{
    in_turn();
    uint32_t r = blockIdx.x, n = p.n;
    const uint16_t *x = p.x + (size_t)r * p.x_stride;
    float s[CHUNKS][8], sum = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        uint32_t k = (threadIdx.x + c * THREADS) * 8;
#pragma unroll
        for (int i = 0; i < 8; i++)
            s[c][i] = 0.0f;
        if (k < n) {
            bf16x8_f32(*(const uint4 *)(x + k), s[c]);
            if (p.res) {
                float res[8];
                bf16x8_f32(*(const uint4 *)(p.res + (size_t)r * n + k), res);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    s[c][i] = __fadd_rn(s[c][i], res[i]);
            }
            if (p.out_res)
                *(uint4 *)(p.out_res + (size_t)r * n + k) = f32_bf16x8(s[c]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = fmaf(s[c][i], s[c][i], sum);
    }
    sum = block_sum(sum);
    report(p.fault, threadIdx.x == 0 && !is_finite(sum));
    float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), p.epsilon)));
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        uint32_t k = (threadIdx.x + c * THREADS) * 8;
        if (k < n) {
            float w[8];
            bf16x8_f32(*(const uint4 *)(p.weight + k), w);
#pragma unroll
            for (int i = 0; i < 8; i++)
                s[c][i] = __fmul_rn(w[i], __fmul_rn(s[c][i], scale));
            if (p.out)
                *(uint4 *)(p.out + (size_t)r * n + k) = f32_bf16x8(s[c]);
        }
        if (p.out_codes) {
            round8(s[c]);
            report(p.fault, !finite8(s[c]));
            quantise8(s[c], k < n, r, k, p.out_codes, p.out_scales, p.rows_tiled, p.pow2);
        }
    }
}

KRN_CUDA_LOCAL int krn_cuda_norm(const krn_cuda_norm_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->n % 128 == 0 && p->n <= THREADS * 8 * NORM_CHUNKS);
    KRN_CUDA_ENSURE(p->x_stride >= p->n && p->x_stride % 8 == 0);
    KRN_CUDA_ENSURE(!p->out_codes || (p->out_scales && p->rows_tiled % 8 == 0));
    KRN_CUDA_ENSURE(!p->out_codes || p->rows <= p->rows_tiled);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    cudaStream_t s = (cudaStream_t)stream;
    if (p->n <= THREADS * 8)
        return launch_in_turn("norm", {dim3(p->rows), THREADS, 1, 0, s}, norm_kernel<1>, *p);
    return launch_in_turn("norm", {dim3(p->rows), THREADS, 1, 0, s}, norm_kernel<NORM_CHUNKS>, *p);
}

/* ---- SwiGLU product ---- */

static __global__ void __launch_bounds__(THREADS) silu_kernel(const krn_cuda_silu_params p)
{
    in_turn();
    uint32_t r = blockIdx.x, k = (blockIdx.y * THREADS + threadIdx.x) * 8;
    bool active = k < p.n;
    float a[8] = {0};
    if (p.row_index && p.row_index[r] == UINT32_MAX)
        return;
    if (active) {
        float g[8], u[8];
        bf16x8_f32(*(const uint4 *)(p.g + (size_t)r * p.stride + k), g);
        bf16x8_f32(*(const uint4 *)(p.u + (size_t)r * p.stride + k), u);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float silu = __fdiv_rn(g[i], __fadd_rn(1.0f, exp_rounded(-g[i])));
            a[i] = bf16_f32(f32_bf16(__fmul_rn(silu, u[i])));
        }
        if (p.out)
            *(uint4 *)(p.out + (size_t)r * p.n + k) = f32_bf16x8(a);
    }
    report(p.fault, !finite8(a));
    if (p.out_codes)
        quantise8(a, active, r, k, p.out_codes, p.out_scales, p.rows_tiled, p.pow2);
}

KRN_CUDA_LOCAL int krn_cuda_silu(const krn_cuda_silu_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->n % 128 == 0 && p->stride >= p->n && p->stride % 8 == 0);
    KRN_CUDA_ENSURE(!p->out_codes || (p->out_scales && p->rows_tiled % 8 == 0));
    KRN_CUDA_ENSURE(!p->out_codes || p->rows <= p->rows_tiled);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    dim3 grid(p->rows, (p->n / 8 + THREADS - 1) / THREADS);
    return launch_in_turn("silu", {grid, THREADS, 1, 0, (cudaStream_t)stream}, silu_kernel, *p);
}

/* ---- Q128 of chosen rows ---- */

static __global__ void __launch_bounds__(THREADS) quant_kernel(const krn_cuda_quant_params p)
{
    in_turn();
    uint32_t r = blockIdx.x, k = (blockIdx.y * THREADS + threadIdx.x) * 8;
    uint32_t from = p.row_index ? p.row_index[r] : r;
    if (from == UINT32_MAX)
        return;
    float x[8] = {0};
    bool active = k < p.n;
    if (active)
        bf16x8_f32(*(const uint4 *)(p.x + (size_t)from * p.stride + k), x);
    report(p.fault, !finite8(x));
    quantise8(x, active, r, k, p.out_codes, p.out_scales, p.rows_tiled, p.pow2);
}

KRN_CUDA_LOCAL int krn_cuda_quant(const krn_cuda_quant_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->n % 128 == 0 && p->stride >= p->n && p->stride % 8 == 0);
    KRN_CUDA_ENSURE(p->rows_tiled % 8 == 0 && p->rows <= p->rows_tiled);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    dim3 grid(p->rows, (p->n / 8 + THREADS - 1) / THREADS);
    return launch_in_turn("quant", {grid, THREADS, 1, 0, (cudaStream_t)stream}, quant_kernel, *p);
}

/* ---- combine ---- */

static __global__ void __launch_bounds__(THREADS) combine_kernel(const krn_cuda_combine_params p)
{
    in_turn();
    uint32_t t = blockIdx.x, k = (blockIdx.y * THREADS + threadIdx.x) * 8;
    if (k >= p.hidden)
        return;
    float acc[8] = {0}, x[8];
#pragma unroll 4
    for (uint32_t i = 0; i < p.chosen; i++) {
        size_t place = p.places[(size_t)t * p.chosen + i];
        float w = p.weights[(size_t)t * p.chosen + i];
        bf16x8_f32(*(const uint4 *)(p.outputs + place * p.hidden + k), x);
#pragma unroll
        for (int j = 0; j < 8; j++)
            acc[j] = __fadd_rn(acc[j], __fmul_rn(w, x[j]));
    }
    if (p.shared) {
        bf16x8_f32(*(const uint4 *)(p.shared + (size_t)t * p.hidden + k), x);
#pragma unroll
        for (int j = 0; j < 8; j++)
            acc[j] = __fadd_rn(acc[j], x[j]);
    }
    *(uint4 *)(p.out + (size_t)t * p.hidden + k) = f32_bf16x8(acc);
}

KRN_CUDA_LOCAL int krn_cuda_combine(const krn_cuda_combine_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->hidden > 0 && p->hidden % 8 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    dim3 grid(p->rows, (p->hidden / 8 + THREADS - 1) / THREADS);
    return launch_in_turn("combine", {grid, THREADS, 1, 0, (cudaStream_t)stream}, combine_kernel,
                          *p);
}
