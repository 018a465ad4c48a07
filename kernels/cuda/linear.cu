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
 * few_kernel (tiles of up to 128 rows): weights are operand A (64 columns of y), rows of x operand
 * B; a cluster of `segments` CTAs shares one tile of y, each takes one segment and the partial sums
 * meet through distributed shared memory. One warp copies, the others multiply. More rows:
 * linear_many.cu. */
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/partial.cuh"

#define STAGE_BYTES (160 * 1024) /* of shared memory for stages, at most */

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

/* Starts the weights of block i of this CTA, and says what else its stage will get. */
template <int NT>
static __device__ __forceinline__ void few_weights(few_smem<NT> s, const uint8_t *weights,
                                                   uint32_t i, uint32_t stage, uint32_t bytes)
{
    barrier_expect(&s.full[stage], WEIGHT_TILE + bytes);
    bulk_copy(s.weights + stage * WEIGHT_TILE, weights + (size_t)i * WEIGHT_TILE, WEIGHT_TILE,
              &s.full[stage]);
}

/* One thread. weights: this CTA's first block; its codes start at block `first`. */
template <int NT>
static __device__ __forceinline__ void few_produce(const linear_args &args, few_smem<NT> s,
                                                   const uint8_t *weights, row_tile tile,
                                                   uint32_t first, uint32_t count)
{
    constexpr uint32_t stages = few_shape<NT>::stages;
    uint32_t atoms = atoms_of(tile.rows), stage = 0, phase = 1;
    const uint8_t *codes =
        args.codes + ((size_t)first * (args.rows_tiled / 8) + tile.row / 8) * 1024;
    const float *scales = args.scales + (size_t)first * args.rows_tiled + tile.row;
    size_t codes_apart = (size_t)args.rows_tiled * 128;
    for (uint32_t i = 0; i < count && i < stages; i++) /* weights wait for nobody */
        few_weights<NT>(s, weights, i, i, atoms * (1024 + 32));
    wait_for_previous();
    for (uint32_t i = 0; i < count; i++) {
        if (i >= stages) {
            barrier_wait(&s.empty[stage], phase);
            few_weights<NT>(s, weights, i, stage, atoms * (1024 + 32));
        }
        bulk_copy(s.codes + stage * NT * 128, codes, atoms * 1024, &s.full[stage]);
        bulk_copy(s.scales + stage * NT, scales, atoms * 32, &s.full[stage]);
        codes += codes_apart;
        scales += args.rows_tiled;
        stage = stage + 1 == stages ? 0 : stage + 1;
        phase ^= stage == 0;
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
    let_next_start();
    if (args.offsets) /* of the rows: a kernel's; else the thread that fetches codes waits */
        wait_for_previous();
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
        if (elected())
            few_produce<NT>(args, s, group + ((size_t)tile_n * args.blocks + first) * WEIGHT_TILE,
                            tile, first, count);
    } else {
        few_consume<NT>(s, count, acc);
        bar_sync(1, 128); /* all of this CTA's stages are read */
    }
    __syncwarp();
    few_finish<NT, S>(args, (float *)s.weights, acc, tile, tile_n * TILE_N, rank);
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
    dim3 grid((args.n + TILE_N - 1) / TILE_N * S, (args.rows + NT - 1) / NT, groups);
    return launch_in_turn("linear", {grid, 160, S, few_shape<NT>::smem_bytes, stream},
                          few_kernel<NT, S>, args);
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

/* The schedule: up to 128 rows are the few one's, but where there are tiles enough to keep every
 * multiprocessor at work, the many one's persistent grid does not stop between them. Measured. */
static bool many_are_faster(const linear_args &args, uint32_t groups)
{
    uint64_t tiles = (uint64_t)(args.n + TILE_N - 1) / TILE_N * groups;
    return args.rows > 128 || (args.rows > (groups > 1 ? 32u : 64u) && tiles > 264);
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
    if (many_are_faster(args, p->groups))
        return krn_cuda_linear_many(args, p->groups, p->segments, s);
    switch (p->segments) {
    case 1:
        return few_rows<1>(args, p->groups, s);
    case 2:
        return few_rows<2>(args, p->groups, s);
    case 4:
        return few_rows<4>(args, p->groups, s);
    case 8:
        return few_rows<8>(args, p->groups, s);
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
