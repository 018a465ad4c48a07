/* Rope, insertion into the paged cache, indexer queries, and the sums of cache pieces.
 *
 * Cache row: 512 e4m3 codes, 4 f32 scales, 64 bf16 rope (656 B); index row: 128 codes and one f32
 * scale (132 B); page layout in kernels/cache.h. A warp owns an index row or head: 4 dimensions a
 * lane, so the Hadamard butterflies of stride 1 and 2 stay in a lane and the others are shuffles.
 * Sums: latent norm a chain of 8 columns a thread, butterfly (16 first), then two warps; layer norm
 * a chain of 4 a lane, butterfly. */
#include "kernels/cuda/launch.cuh"

/* ---- queries of the main attention ---- */

static __global__ void __launch_bounds__(256) rope_kernel(const krn_cuda_rope_params p)
{
    in_turn();
    uint32_t i = blockIdx.x * 256 + threadIdx.x; /* 8 dimensions each */
    uint32_t head = i / 8, part = i % 8;
    if (head >= p.rows * p.heads)
        return;
    const float *table = p.table + (size_t)(head / p.heads) * 64;
    uint4 *at = (uint4 *)(p.q + (size_t)head * 192 + 128 + part * 8);
    float x[8];
    bf16x8_f32(*at, x);
    float4 c = *(const float4 *)(table + part * 4), s = *(const float4 *)(table + 32 + part * 4);
    rotate(x[0], x[1], c.x, s.x);
    rotate(x[2], x[3], c.y, s.y);
    rotate(x[4], x[5], c.z, s.z);
    rotate(x[6], x[7], c.w, s.w);
    *at = f32_bf16x8(x);
}

KRN_CUDA_LOCAL int krn_cuda_rope_queries(const krn_cuda_rope_params *p, krn_cuda_stream stream)
{
    if (p->rows == 0 || p->heads == 0)
        return KRN_CUDA_OK;
    uint32_t blocks = (p->rows * p->heads * 8 + 255) / 256;
    return launch_in_turn("rope", {dim3(blocks), 256, 1, 0, (cudaStream_t)stream}, rope_kernel, *p);
}

/* ---- latent row ---- */

/* Threads 0..63: 8 latent dimensions each; 64..71: 8 rope dimensions each. */
static __global__ void __launch_bounds__(96) latent_kernel(const krn_cuda_latent_params p)
{
    in_turn();
    __shared__ float parts[2];
    uint32_t r = blockIdx.x, t = threadIdx.x;
    krn_cuda_row at = p.rows_at[r];
    uint8_t *row = cache_page(p.cache, at.sequence, at.slot) + at.slot % PAGE_TOKENS * LATENT_ROW;
    float x[8] = {0}, sum = 0.0f;
    if (t < 72)
        bf16x8_f32(*(const uint4 *)(p.kv + (size_t)r * p.stride + t * 8), x);
    if (t < 64) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = fmaf(x[i], x[i], sum);
        sum = warp_sum(sum);
        if (t % 32 == 0)
            parts[t / 32] = sum;
    }
    __syncthreads();
    if (t < 64) {
        sum = __fadd_rn(parts[0], parts[1]);
        float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, 512.0f), p.epsilon)));
        float w[8], largest = 0.0f;
        bf16x8_f32(*(const uint4 *)(p.weight + t * 8), w);
        bool fine = is_finite(sum);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[i] = bf16_f32(f32_bf16(__fmul_rn(w[i], __fmul_rn(x[i], scale))));
            fine = fine && is_finite(x[i]);
            largest = fmaxf(largest, fabsf(x[i]));
        }
        report(p.fault, !fine);
        float q = q128_scale(lanes_max(largest, 16), p.pow2);
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = __fdiv_rn(x[i], q);
        *(uint2 *)(row + t * 8) = make_uint2(e4m3_pair(x[0], x[1]) | e4m3_pair(x[2], x[3]) << 16,
                                             e4m3_pair(x[4], x[5]) | e4m3_pair(x[6], x[7]) << 16);
        if (t % 16 == 0)
            *(float *)(row + LATENT_SCALES + t / 16 * 4) = q;
    } else if (t < 72) {
        const float *table = p.table + (size_t)r * 64 + (t - 64) * 4;
        bool fine = true;
#pragma unroll
        for (int i = 0; i < 4; i++)
            rotate(x[2 * i], x[2 * i + 1], table[i], table[32 + i]);
#pragma unroll
        for (int i = 0; i < 8; i++)
            fine = fine && is_finite(bf16_f32(f32_bf16(x[i])));
        report(p.fault, !fine);
        *(uint4 *)(row + LATENT_ROPE + (t - 64) * 16) = f32_bf16x8(x);
    }
}

KRN_CUDA_LOCAL int krn_cuda_latent_put(const krn_cuda_latent_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->stride >= 576 && p->stride % 8 == 0 && p->cache.page_bytes % 64 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("latent_put", {dim3(p->rows), 96, 1, 0, (cudaStream_t)stream},
                          latent_kernel, *p);
}

/* ---- index keys and queries ---- */

static __device__ __forceinline__ void round4(float *x)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = bf16_f32(f32_bf16(x[i]));
}

/* Half-split rope of dimensions 0..63 (lanes 0..15), Hadamard, rounded after each. */
static __device__ __forceinline__ void turn_and_mix(float *x, const float *table)
{
    uint32_t lane = threadIdx.x % 32;
    const float *row = table + lane % 8 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], 8);
        float a = lane & 8 ? other : x[i], b = lane & 8 ? x[i] : other;
        rotate(a, b, row[i], row[32 + i]);
        if (lane < 16)
            x[i] = bf16_f32(f32_bf16(lane & 8 ? b : a));
    }
    float a = __fadd_rn(x[0], x[1]), b = __fsub_rn(x[0], x[1]);
    float c = __fadd_rn(x[2], x[3]), d = __fsub_rn(x[2], x[3]);
    x[0] = __fadd_rn(a, c);
    x[2] = __fsub_rn(a, c);
    x[1] = __fadd_rn(b, d);
    x[3] = __fsub_rn(b, d);
#pragma unroll
    for (uint32_t far = 1; far < 32; far *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], far);
            x[i] = lane & far ? __fsub_rn(other, x[i]) : __fadd_rn(x[i], other);
        }
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = __fmul_rn(x[i], INDEX_ROOT);
    round4(x);
}

/* The warp's 128 values -> 4 codes a lane, and the scale. */
static __device__ __forceinline__ uint32_t quantise_warp(const float *x, uint32_t pow2,
                                                         uint32_t *fault, float *out_scale)
{
    float largest = 0.0f;
    bool fine = true;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        fine = fine && is_finite(x[i]);
        largest = fmaxf(largest, fabsf(x[i]));
    }
    report(fault, !fine);
    float scale = q128_scale(lanes_max(largest, 32), pow2);
    *out_scale = scale;
    return e4m3_pair(__fdiv_rn(x[0], scale), __fdiv_rn(x[1], scale)) |
           e4m3_pair(__fdiv_rn(x[2], scale), __fdiv_rn(x[3], scale)) << 16;
}

static __device__ __forceinline__ void load4(const uint16_t *p, float *x)
{
    uint2 word = *(const uint2 *)p;
    x[0] = __uint_as_float(word.x << 16);
    x[1] = __uint_as_float(word.x & 0xFFFF0000u);
    x[2] = __uint_as_float(word.y << 16);
    x[3] = __uint_as_float(word.y & 0xFFFF0000u);
}

static __global__ void __launch_bounds__(128) index_put_kernel(const krn_cuda_index_put_params p)
{
    in_turn();
    uint32_t r = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= p.rows)
        return;
    float x[4], sum = 0.0f, square = 0.0f;
    load4(p.z + (size_t)r * p.stride + lane * 4, x);
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum = __fadd_rn(sum, x[i]);
    float mean = __fdiv_rn(warp_sum(sum), 128.0f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float d = __fsub_rn(x[i], mean);
        square = fmaf(d, d, square);
    }
    float root = __fsqrt_rn(__fadd_rn(__fdiv_rn(warp_sum(square), 128.0f), p.epsilon));
    float4 w = *(const float4 *)(p.weight + lane * 4), b = *(const float4 *)(p.bias + lane * 4);
    const float weight[4] = {w.x, w.y, w.z, w.w}, bias[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = __fadd_rn(__fmul_rn(__fdiv_rn(__fsub_rn(x[i], mean), root), weight[i]), bias[i]);
    round4(x);
    turn_and_mix(x, p.table + (size_t)r * 64);
    float scale;
    uint32_t codes = quantise_warp(x, p.pow2, p.fault, &scale);
    krn_cuda_row at = p.rows_at[r];
    uint8_t *page = cache_page(p.cache, at.sequence, at.slot);
    uint32_t in_page = at.slot % PAGE_TOKENS;
    *(uint32_t *)(page + INDEX_CODES_AT + in_page * 128 + lane * 4) = codes;
    if (lane == 0)
        *(float *)(page + INDEX_SCALES_AT + in_page * 4) = scale;
}

KRN_CUDA_LOCAL int krn_cuda_index_put(const krn_cuda_index_put_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->stride >= 128 && p->stride % 4 == 0 && p->cache.page_bytes % 64 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("index_put", {dim3((p->rows + 3) / 4), 128, 1, 0, (cudaStream_t)stream},
                          index_put_kernel, *p);
}

static __global__ void __launch_bounds__(128)
    index_query_kernel(const krn_cuda_index_query_params p, float root)
{
    in_turn();
    uint32_t i = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= p.rows * p.heads)
        return;
    uint32_t r = i / p.heads, h = i % p.heads;
    float x[4], scale;
    load4(p.q + (size_t)i * 128 + lane * 4, x);
    turn_and_mix(x, p.table + (size_t)r * 64);
    uint32_t codes = quantise_warp(x, p.pow2, p.fault, &scale);
    uint8_t *atom = p.out_codes + ((size_t)r * (p.heads / 8) + h / 8) * 1024;
    *(uint32_t *)(atom + h % 8 * 128 + ((lane / 4) ^ (h % 8)) * 16 + lane % 4 * 4) = codes;
    if (lane == 0)
        p.out_factors[i] = __fmul_rn(__fmul_rn(__fmul_rn(p.wt[i], root), scale), INDEX_ROOT);
}

KRN_CUDA_LOCAL int krn_cuda_index_query(const krn_cuda_index_query_params *p,
                                        krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->heads > 0 && p->heads % 8 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    float root = (float)(1.0 / sqrt((double)p->heads));
    uint32_t blocks = (p->rows * p->heads + 3) / 4;
    return launch_in_turn("index_query", {dim3(blocks), 128, 1, 0, (cudaStream_t)stream},
                          index_query_kernel, *p, root);
}

/* ---- sums of pieces: base/sum.c defines them ---- */

#define SUM_G       0x9e3779b97f4a7c15ull
#define SUM_STEP    0xa0761d6478bd642full
#define SUM_THREADS 256

static __device__ __forceinline__ uint64_t sum_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static __device__ __forceinline__ uint64_t sum_product(uint64_t word, uint64_t key)
{
    uint64_t x = word ^ key;
    return (x & 0xffffffffu) * (x >> 32);
}

static __global__ void __launch_bounds__(SUM_THREADS) sums_kernel(const krn_cuda_sum_params p)
{
    in_turn();
    __shared__ unsigned long long lanes[4];
    uint32_t t = threadIdx.x, half = t % 2 * 2;
    uint64_t s = sum_mix((sum_mix(p.key + SUM_G) ^ p.tweaks[blockIdx.x]) + SUM_G);
    uint64_t k0 = sum_mix(s + (half + 1) * SUM_G), k1 = sum_mix(s + (half + 2) * SUM_G);
    if (t < 4)
        lanes[t] = sum_mix(s + (t + 5) * SUM_G);
    __syncthreads();
    const uint4 *data = (const uint4 *)p.pieces[blockIdx.x];
    uint64_t low = 0, high = 0; /* lanes half and half + 1 */
    uint64_t units = p.bytes / 16, padded = (units + 1) & ~1ull;
#pragma unroll 4
    for (uint64_t u = t; u < padded; u += SUM_THREADS) {
        uint4 d = u < units ? data[u] : make_uint4(0, 0, 0, 0);
        uint64_t w0 = (uint64_t)d.y << 32 | d.x, w1 = (uint64_t)d.w << 32 | d.z;
        uint64_t step = u / 2 * SUM_STEP;
        low += sum_product(w0, k0 + step) + w1;
        high += sum_product(w1, k1 + step) + w0;
    }
    for (int far = 16; far > 1; far /= 2) { /* lanes of one parity */
        low += __shfl_xor_sync(0xFFFFFFFFu, low, far);
        high += __shfl_xor_sync(0xFFFFFFFFu, high, far);
    }
    if (t % 32 < 2) {
        atomicAdd(&lanes[half], (unsigned long long)low);
        atomicAdd(&lanes[half + 1], (unsigned long long)high);
    }
    __syncthreads();
    if (t == 0) {
        uint64_t h = p.bytes;
        for (int i = 0; i < 4; i++)
            h = sum_mix((h ^ lanes[i]) + SUM_G);
        p.out_sums[blockIdx.x] = h;
    }
}

KRN_CUDA_LOCAL int krn_cuda_sums(const krn_cuda_sum_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->bytes > 0 && p->bytes % 16 == 0);
    if (p->count == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("sums", {dim3(p->count), SUM_THREADS, 1, 0, (cudaStream_t)stream},
                          sums_kernel, *p);
}
