/* FP8 products y = x W^T: one MMA family for every M, two schedules with the same bits.
 *
 * Bytes first: at M <= 128 the weights are read once from HBM and everything else is small, so the
 * floor is n * k bytes; 8 KB a stage and as many stages as fit keep the memory busy. At large M the
 * floor is 2 m n k / FP8 rate.
 *
 * Order (docs/CUDA-ORDER.md): K is cut into `segments` equal runs of blocks of 128. Inside a run
 * acc = fma(p, sa * sw, acc) over blocks ascending from +0, p one chain of four m64nNk32; the runs'
 * results are added in ascending order, starting from the first; one rounding to bf16.
 *
 * few_kernel (M <= 128 a tile): weights are operand A (64 columns of y), rows of x operand B; a
 * cluster of `segments` CTAs shares one tile of y, each takes one segment and the partial sums meet
 * through distributed shared memory. many_kernel: 128 rows x 128 columns, all segments in one CTA.
 * One warp copies, the others multiply. */
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/partial.cuh"

#define TILE_N      64
#define WEIGHT_TILE 8192
#define STAGE_BYTES (160 * 1024) /* of shared memory for stages, at most */

struct linear_args {
    const uint8_t *codes;
    const float *scales;
    const uint8_t *weights;
    uint16_t *out;
    const uint32_t *offsets, *counts;
    uint64_t weights_bytes;
    uint32_t rows, n, blocks, rows_tiled, out_stride;
};

/* One tile of one group: rows row .. row + rows - 1 of x and y. */
struct row_tile {
    uint32_t row, rows;
};

static __device__ __forceinline__ row_tile tile_of(const linear_args &args, uint32_t group,
                                                   uint32_t at, uint32_t rows_max)
{
    uint32_t first = args.offsets ? args.offsets[group] : 0;
    uint32_t count = args.counts ? args.counts[group] : args.rows;
    row_tile tile = {first + at, at < count ? count - at : 0};
    tile.rows = tile.rows < rows_max ? tile.rows : rows_max;
    return tile;
}

/* Whole atoms that hold `rows` rows. */
static __device__ __forceinline__ uint32_t atoms_of(uint32_t rows)
{
    return (rows + 7) / 8;
}

/* ---- few rows ---- */

template <int NT> struct few_shape {
    static constexpr int stage_bytes = WEIGHT_TILE + NT * 128;
    static constexpr int fit = (NT <= 32 ? 80 * 1024 : STAGE_BYTES) / stage_bytes;
    static constexpr int stages = fit > 8 ? 8 : fit;
    static constexpr int smem_bytes = 1024 + stages * (stage_bytes + NT * 4) + 256 * 4 + 128;
};

template <int NT> struct few_smem {
    uint8_t *weights, *codes;
    float *scales, *weight_scales;
    uint64_t *full, *empty;
};

template <int NT> static __device__ __forceinline__ few_smem<NT> few_carve(uint8_t *raw)
{
    constexpr int stages = few_shape<NT>::stages;
    few_smem<NT> s;
    s.weights = raw + ((1024 - (smem_at(raw) & 1023)) & 1023);
    s.codes = s.weights + stages * WEIGHT_TILE;
    s.scales = (float *)(s.codes + stages * NT * 128);
    s.weight_scales = s.scales + stages * NT;
    s.full = (uint64_t *)(s.weight_scales + 256);
    s.empty = s.full + stages;
    return s;
}

template <int NT>
static __device__ __forceinline__ void few_produce(const linear_args &args, few_smem<NT> s,
                                                   const uint8_t *weights, row_tile tile,
                                                   uint32_t first, uint32_t count)
{
    constexpr int stages = few_shape<NT>::stages;
    uint32_t atoms = atoms_of(tile.rows), atoms_all = args.rows_tiled / 8;
    const uint8_t *codes = args.codes + (size_t)tile.row / 8 * 1024;
    const float *scales = args.scales + tile.row;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t stage = i % stages, block = first + i;
        if (i >= stages)
            barrier_wait(&s.empty[stage], (i / stages - 1) & 1);
        barrier_expect(&s.full[stage], WEIGHT_TILE + atoms * (1024 + 32));
        bulk_copy(s.weights + stage * WEIGHT_TILE, weights + (size_t)block * WEIGHT_TILE,
                  WEIGHT_TILE, &s.full[stage]);
        bulk_copy(s.codes + stage * NT * 128, codes + (size_t)block * atoms_all * 1024,
                  atoms * 1024, &s.full[stage]);
        bulk_copy(s.scales + stage * NT, scales + (size_t)block * args.rows_tiled, atoms * 32,
                  &s.full[stage]);
    }
}

/* Adds this CTA's blocks into acc; columns of acc are rows of x. */
template <int NT>
static __device__ __forceinline__ void few_consume(few_smem<NT> s, uint32_t count, float *acc)
{
    constexpr int stages = few_shape<NT>::stages;
    float p[NT / 2];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t stage = i % stages;
        barrier_wait(&s.full[stage], (i / stages) & 1);
        mma_block<NT>(p, mma_operand(s.weights + stage * WEIGHT_TILE),
                      mma_operand(s.codes + stage * NT * 128));
        const float *sa = s.scales + stage * NT + threadIdx.x % 4 * 2;
        float sw = s.weight_scales[i];
        mma_wait<0>();
        mma_pin<NT / 2>(p);
#pragma unroll
        for (int j = 0; j < NT / 8; j++) {
            float2 pair = *(const float2 *)(sa + 8 * j);
            float low = __fmul_rn(pair.x, sw), high = __fmul_rn(pair.y, sw);
            acc[4 * j] = fmaf(p[4 * j], low, acc[4 * j]);
            acc[4 * j + 1] = fmaf(p[4 * j + 1], high, acc[4 * j + 1]);
            acc[4 * j + 2] = fmaf(p[4 * j + 2], low, acc[4 * j + 2]);
            acc[4 * j + 3] = fmaf(p[4 * j + 3], high, acc[4 * j + 3]);
        }
        barrier_arrive(&s.empty[stage]);
    }
}

/* acc of all CTAs of the cluster -> y; part: over the weight stages. */
template <int NT, int S>
static __device__ __forceinline__ void few_finish(const linear_args &args, float *part,
                                                  const float *acc, row_tile tile, uint32_t column,
                                                  uint32_t rank)
{
    uint32_t t = threadIdx.x;
    if (t < 128)
        partial_put<NT>(part, acc);
    if (S > 1)
        cluster_sync();
    else
        __syncthreads();
    /* Rows rank, rank + S, .. of the tile; 16 threads a row, 4 columns each. */
    for (uint32_t r = rank + S * (t / 16); t < 128 && r < tile.rows; r += S * 8) {
        float4 y = partial_sum<S>(part + r * PARTIAL_PITCH + t % 16 * 4);
        uint32_t c = column + t % 16 * 4;
        uint16_t *out = args.out + (size_t)(tile.row + r) * args.out_stride + c;
        if (c + 4 <= args.n && args.out_stride % 4 == 0) {
            *(uint2 *)out = make_uint2(bf16_pair(y.x, y.y), bf16_pair(y.z, y.w));
            continue;
        }
        const float v[4] = {y.x, y.y, y.z, y.w};
        for (uint32_t i = 0; i < 4 && c + i < args.n; i++)
            out[i] = f32_bf16(v[i]);
    }
    if (S > 1)
        cluster_sync();
}

template <int NT, int S> __global__ void __launch_bounds__(160) few_kernel(const linear_args args)
{
    extern __shared__ uint8_t raw[];
    few_smem<NT> s = few_carve<NT>(raw);
    uint32_t rank = S > 1 ? blockIdx.x % S : 0, tile_n = blockIdx.x / S;
    row_tile tile = tile_of(args, blockIdx.z, blockIdx.y * NT, NT);
    if (tile.rows == 0)
        return; /* the whole cluster does */
    uint32_t count = args.blocks / S, first = rank * count;
    const uint8_t *group = args.weights + blockIdx.z * args.weights_bytes;
    uint32_t tiles = (args.n + TILE_N - 1) / TILE_N;
    const float *scales = (const float *)(group + (size_t)tiles * args.blocks * WEIGHT_TILE);
    if (threadIdx.x == 0) {
        for (int i = 0; i < few_shape<NT>::stages; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], 128);
        }
        fence_async();
    }
    for (uint32_t i = threadIdx.x; i < count; i += 160)
        s.weight_scales[i] = scales[(size_t)tile_n * args.blocks + first + i];
    __syncthreads();
    float acc[NT / 2];
#pragma unroll
    for (int i = 0; i < NT / 2; i++)
        acc[i] = 0.0f;
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128)
            few_produce<NT>(args, s, group + (size_t)tile_n * args.blocks * WEIGHT_TILE, tile,
                            first, count);
    } else {
        few_consume<NT>(s, count, acc);
        bar_sync(1, 128); /* all of this CTA's stages are read */
    }
    __syncwarp();
    few_finish<NT, S>(args, (float *)s.weights, acc, tile, tile_n * TILE_N, rank);
}

/* ---- many rows ---- */

#define MANY_ROWS   128
#define MANY_N      128
#define MANY_STAGES 5
#define MANY_STAGE  (MANY_ROWS * 128 + MANY_N * 128)
#define MANY_SMEM   (1024 + MANY_STAGES * (MANY_STAGE + MANY_ROWS * 4) + 512 * 4 + 128)

struct many_smem {
    uint8_t *weights, *codes;
    float *scales, *weight_scales;
    uint64_t *full, *empty;
};

static __device__ __forceinline__ many_smem many_carve(uint8_t *raw)
{
    many_smem s;
    s.weights = raw + ((1024 - (smem_at(raw) & 1023)) & 1023);
    s.codes = s.weights + MANY_STAGES * MANY_N * 128;
    s.scales = (float *)(s.codes + MANY_STAGES * MANY_ROWS * 128);
    s.weight_scales = s.scales + MANY_STAGES * MANY_ROWS;
    s.full = (uint64_t *)(s.weight_scales + 512);
    s.empty = s.full + MANY_STAGES;
    return s;
}

static __device__ __forceinline__ void many_produce(const linear_args &args, many_smem s,
                                                    const uint8_t *weights, uint32_t halves,
                                                    row_tile tile)
{
    uint32_t atoms = atoms_of(tile.rows), atoms_all = args.rows_tiled / 8;
    const uint8_t *codes = args.codes + (size_t)tile.row / 8 * 1024;
    const float *scales = args.scales + tile.row;
    for (uint32_t i = 0; i < args.blocks; i++) {
        uint32_t stage = i % MANY_STAGES;
        if (i >= MANY_STAGES)
            barrier_wait(&s.empty[stage], (i / MANY_STAGES - 1) & 1);
        barrier_expect(&s.full[stage], halves * WEIGHT_TILE + atoms * (1024 + 32));
        for (uint32_t half = 0; half < halves; half++)
            bulk_copy(s.weights + stage * MANY_N * 128 + half * WEIGHT_TILE,
                      weights + ((size_t)half * args.blocks + i) * WEIGHT_TILE, WEIGHT_TILE,
                      &s.full[stage]);
        bulk_copy(s.codes + stage * MANY_ROWS * 128, codes + (size_t)i * atoms_all * 1024,
                  atoms * 1024, &s.full[stage]);
        bulk_copy(s.scales + stage * MANY_ROWS, scales + (size_t)i * args.rows_tiled, atoms * 32,
                  &s.full[stage]);
    }
}

/* acc += p * (sa * sw); sw of columns 0..63 and 64..127 apart (stacked matrices). */
static __device__ __forceinline__ void many_promote(const float *p, float2 sa, float2 sw,
                                                    float *acc)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float w = half ? sw.y : sw.x;
        float low = __fmul_rn(sa.x, w), high = __fmul_rn(sa.y, w);
#pragma unroll
        for (int i = half * 32; i < half * 32 + 32; i += 4) {
            acc[i] = fmaf(p[i], low, acc[i]);
            acc[i + 1] = fmaf(p[i + 1], low, acc[i + 1]);
            acc[i + 2] = fmaf(p[i + 2], high, acc[i + 2]);
            acc[i + 3] = fmaf(p[i + 3], high, acc[i + 3]);
        }
    }
}

template <int S>
static __device__ __forceinline__ void many_consume(many_smem s, uint32_t blocks, uint32_t group,
                                                    float *total)
{
    uint32_t t = threadIdx.x % 128, row = group * 64 + t / 32 * 16 + t % 32 / 4;
    float p[64], acc[64];
    uint32_t run = blocks / S;
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = 0.0f;
    for (uint32_t i = 0, left = run; i < blocks; i++) {
        uint32_t stage = i % MANY_STAGES;
        barrier_wait(&s.full[stage], (i / MANY_STAGES) & 1);
        mma_block<MANY_N>(p, mma_operand(s.codes + stage * MANY_ROWS * 128 + group * 64 * 128),
                          mma_operand(s.weights + stage * MANY_N * 128));
        const float *scales = s.scales + stage * MANY_ROWS + row;
        float2 sa = make_float2(scales[0], scales[8]);
        float2 sw = *(const float2 *)(s.weight_scales + 2 * i);
        mma_wait<0>();
        mma_pin<64>(p);
        barrier_arrive(&s.empty[stage]);
        many_promote(p, sa, sw, acc);
        if (S > 1 && --left == 0) {
            left = run;
            bool fresh = i + 1 == run;
#pragma unroll
            for (int j = 0; j < 64; j++) {
                total[j] = fresh ? acc[j] : __fadd_rn(total[j], acc[j]);
                acc[j] = 0.0f;
            }
        }
    }
    if (S == 1) {
#pragma unroll
        for (int j = 0; j < 64; j++)
            total[j] = acc[j];
    }
}

static __device__ __forceinline__ void many_store(const linear_args &args, const float *total,
                                                  row_tile tile, uint32_t column, uint32_t group)
{
    uint32_t t = threadIdx.x % 128, row = group * 64 + t / 32 * 16 + t % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t r = row + half * 8;
        if (r >= tile.rows)
            continue;
        uint16_t *out = args.out + (size_t)(tile.row + r) * args.out_stride;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t c = column + j * 8 + t % 4 * 2;
            const float *y = total + 4 * j + 2 * half;
            if (c + 2 <= args.n && args.out_stride % 2 == 0)
                *(uint32_t *)(out + c) = bf16_pair(y[0], y[1]);
            else if (c < args.n) {
                out[c] = f32_bf16(y[0]);
                if (c + 1 < args.n)
                    out[c + 1] = f32_bf16(y[1]);
            }
        }
    }
}

template <int S> __global__ void __launch_bounds__(384, 1) many_kernel(const linear_args args)
{
    extern __shared__ uint8_t raw[];
    many_smem s = many_carve(raw);
    row_tile tile = tile_of(args, blockIdx.z, blockIdx.x * MANY_ROWS, MANY_ROWS);
    if (tile.rows == 0)
        return;
    uint32_t tiles = (args.n + TILE_N - 1) / TILE_N, first = blockIdx.y * 2;
    uint32_t halves = tiles - first < 2 ? 1 : 2;
    const uint8_t *group = args.weights + blockIdx.z * args.weights_bytes;
    const float *scales = (const float *)(group + (size_t)tiles * args.blocks * WEIGHT_TILE) +
                          (size_t)first * args.blocks;
    if (threadIdx.x == 0) {
        for (int i = 0; i < MANY_STAGES; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], 256);
        }
        fence_async();
    }
    for (uint32_t i = threadIdx.x; i < args.blocks * 2; i += 384)
        s.weight_scales[i] = i % 2 < halves ? scales[(size_t)(i % 2) * args.blocks + i / 2] : 0.0f;
    __syncthreads();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256)
            many_produce(args, s, group + (size_t)first * args.blocks * WEIGHT_TILE, halves, tile);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        float total[64];
        many_consume<S>(s, args.blocks, threadIdx.x / 128, total);
        many_store(args, total, tile, blockIdx.y * MANY_N, threadIdx.x / 128);
    }
}

/* ---- host ---- */

template <int NT, int S>
static int few_launch(const linear_args &args, uint32_t groups, cudaStream_t stream)
{
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)few_kernel<NT, S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        few_shape<NT>::smem_bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear: %s", cudaGetErrorString(ready));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {S, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((args.n + TILE_N - 1) / TILE_N * S, (args.rows + NT - 1) / NT, groups);
    config.blockDim = dim3(160);
    config.dynamicSmemBytes = few_shape<NT>::smem_bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = S > 1 ? 1 : 0;
    cudaLaunchKernelEx(&config, few_kernel<NT, S>, args);
    return krn_cuda_launched("linear");
}

template <int S> static int few_rows(const linear_args &args, uint32_t groups, cudaStream_t stream)
{
    if (args.rows <= 8)
        return few_launch<8, S>(args, groups, stream);
    if (args.rows <= 16)
        return few_launch<16, S>(args, groups, stream);
    if (args.rows <= 32)
        return few_launch<32, S>(args, groups, stream);
    if (args.rows <= 64)
        return few_launch<64, S>(args, groups, stream);
    return few_launch<128, S>(args, groups, stream);
}

template <int S> static int many_rows(const linear_args &args, uint32_t groups, cudaStream_t stream)
{
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)many_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, MANY_SMEM);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear: %s", cudaGetErrorString(ready));
    dim3 grid((args.rows + MANY_ROWS - 1) / MANY_ROWS, (args.n + MANY_N - 1) / MANY_N, groups);
    many_kernel<S><<<grid, 384, MANY_SMEM, stream>>>(args);
    return krn_cuda_launched("linear");
}

/* Table of the canonical order: few columns over a long K would leave most of the chip idle. */
KRN_CUDA_LOCAL uint32_t krn_cuda_segments(uint32_t n, uint32_t k)
{
    return n <= 2560 && k >= 4096 && k / 128 % 2 == 0 ? 2 : 1;
}

KRN_CUDA_LOCAL int krn_cuda_linear_fp8(const krn_cuda_linear_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->k > 0 && p->k % 128 == 0 && p->k / 128 <= 256);
    KRN_CUDA_ENSURE(p->rows_tiled % 8 == 0 && p->out_stride >= p->n && p->groups >= 1);
    KRN_CUDA_ENSURE((p->offsets != NULL) == (p->counts != NULL));
    KRN_CUDA_ENSURE(p->offsets || (p->groups == 1 && p->rows <= p->rows_tiled));
    KRN_CUDA_ENSURE(p->groups <= 65535 && p->weights_bytes % 16 == 0);
    KRN_CUDA_ENSURE(p->segments >= 1 && p->k / 128 % p->segments == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    linear_args args = {p->codes,   p->scales,  p->weights,       p->out,
                        p->offsets, p->counts,  p->weights_bytes, p->rows,
                        p->n,       p->k / 128, p->rows_tiled,    p->out_stride};
    cudaStream_t s = (cudaStream_t)stream;
    bool few = p->rows <= 128;
    switch (p->segments) {
    case 1:
        return few ? few_rows<1>(args, p->groups, s) : many_rows<1>(args, p->groups, s);
    case 2:
        return few ? few_rows<2>(args, p->groups, s) : many_rows<2>(args, p->groups, s);
    case 4:
        return few ? few_rows<4>(args, p->groups, s) : many_rows<4>(args, p->groups, s);
    case 8:
        return few ? few_rows<8>(args, p->groups, s) : many_rows<8>(args, p->groups, s);
    }
    return krn_cuda_fail(KRN_CUDA_INVALID, "linear: segments is %u, not 1, 2, 4 or 8", p->segments);
}

KRN_CUDA_LOCAL uint64_t krn_cuda_weights_bytes(uint32_t n, uint32_t k)
{
    uint64_t tiles = (uint64_t)((n + TILE_N - 1) / TILE_N) * (k / 128);
    return (tiles * (WEIGHT_TILE + sizeof(float)) + 255) & ~(uint64_t)255;
}

KRN_CUDA_LOCAL void krn_cuda_weights_pack(const uint8_t *codes, const float *scales, uint32_t n,
                                          uint32_t k, uint32_t at, uint32_t stack_n, uint8_t *out)
{
    uint32_t blocks = k / 128, tiles = (n + TILE_N - 1) / TILE_N;
    float *out_scales = (float *)(out + (size_t)(stack_n / TILE_N) * blocks * WEIGHT_TILE);
    for (uint32_t tile = 0; tile < tiles; tile++) {
        for (uint32_t block = 0; block < blocks; block++) {
            size_t place = (size_t)(at / TILE_N + tile) * blocks + block;
            out_scales[place] = scales[(size_t)(tile / 2) * blocks + block];
            for (uint32_t r = 0; r < TILE_N; r++) {
                uint8_t *row = out + place * WEIGHT_TILE + r / 8 * 1024 + r % 8 * 128;
                uint32_t i = tile * TILE_N + r;
                for (uint32_t c = 0; c < 8; c++)
                    for (uint32_t b = 0; b < 16; b++)
                        row[(c ^ (r % 8)) * 16 + b] =
                            i < n ? codes[(size_t)i * k + block * 128 + c * 16 + b] : 0;
            }
        }
    }
}
