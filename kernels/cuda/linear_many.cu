/* FP8 products of many rows (order and few rows: linear.cu), a persistent grid of pairs of CTAs.
 *
 * Cycles first: a tile of 128 x 192 and a block of 128 k keep the matrix unit 768 cycles; two
 * warpgroups take turns, one adds what the other multiplies over. Shared memory: the unit reads 85
 * bytes a cycle and copies write 53, of 128. L2: 40 KB a block and CTA; the two CTAs of a cluster
 * share one operand by multicast, which leaves 28 (rows side by side: weights shared) or 32 KB
 * (columns side by side: codes shared; for groups, whose last tile of rows has no neighbour).
 * y goes out by bulk stores from a buffer of its own, under the next tile's products.
 *
 * A column's tile is 192 or 128 wide, whichever keeps more CTAs at work to the end. */
#include "kernels/cuda/linear.cuh"

#include <cuda.h>

#define MANY_ROWS 128
#define THREADS   384
#define BAND      8u /* units of rows that share the weights of one walk over the columns */

template <int NT> struct many_shape {
    static constexpr int tiles = NT / TILE_N;
    static constexpr int pitch = NT * 2 + 16; /* of a row of y in bytes: no two rows in one bank */
    static constexpr int stage_bytes = NT * 128 + MANY_ROWS * 128 + MANY_ROWS * 4;
    static constexpr int stages = (227 * 1024 - 1280 - MANY_ROWS * pitch) / stage_bytes;
    static constexpr int smem_bytes = 1024 + stages * stage_bytes + MANY_ROWS * pitch + 256;
};

template <int NT> struct many_smem {
    uint8_t *weights, *codes, *out;
    float *scales;
    uint64_t *full, *empty;
};

template <int NT> static __device__ __forceinline__ many_smem<NT> many_carve(uint8_t *raw)
{
    constexpr int stages = many_shape<NT>::stages;
    many_smem<NT> s;
    s.weights = raw + ((1024 - (smem_at(raw) & 1023)) & 1023);
    s.codes = s.weights + stages * NT * 128;
    s.out = s.codes + stages * MANY_ROWS * 128;
    s.scales = (float *)(s.out + MANY_ROWS * many_shape<NT>::pitch);
    s.full = (uint64_t *)(s.scales + stages * MANY_ROWS);
    s.empty = s.full + stages;
    return s;
}

/* ---- which tiles ---- */

struct many_args {
    linear_args linear;
    uint32_t groups;
    uint32_t rows_paired; /* the two CTAs: rows side by side, else columns */
};

struct many_tile {
    row_tile rows;         /* of codes and y; none: the CTA works for its peer only */
    uint32_t group, first; /* first tile of weights; past the last one: likewise */
};

/* Every role of a CTA walks the units, the work of a cluster, by itself. */
struct unit_walk {
    uint32_t next, group, base;
};

static __device__ __forceinline__ unit_walk walk_start(void)
{
    unit_walk walk = {blockIdx.x / 2, 0, 0};
    return walk;
}

template <int NT>
static __device__ __forceinline__ bool walk_next(const many_args &args, unit_walk &walk,
                                                 many_tile &tile)
{
    const linear_args &a = args.linear;
    uint32_t paired = args.rows_paired, rank = blockIdx.x % 2;
    uint32_t height = paired ? 2 * MANY_ROWS : MANY_ROWS, width = paired ? NT : 2 * NT;
    uint32_t columns = (a.n + width - 1) / width, rows;
    for (;; walk.group++) {
        if (walk.group == args.groups)
            return false;
        rows = ((a.counts ? __ldg(a.counts + walk.group) : a.rows) + height - 1) / height;
        if (walk.next - walk.base < rows * columns)
            break;
        walk.base += rows * columns;
    }
    uint32_t at = walk.next - walk.base, band = at / (BAND * columns) * BAND;
    uint32_t high = rows - band < BAND ? rows - band : BAND, in = at - band * columns;
    uint32_t m = band + in % high, n = in / high;
    walk.next += gridDim.x / 2;
    tile.group = walk.group;
    tile.first = (paired ? n : 2 * n + rank) * many_shape<NT>::tiles;
    tile.rows = tile_of(a, walk.group, (paired ? 2 * m + rank : m) * MANY_ROWS, MANY_ROWS);
    return true;
}

/* ---- copies ---- */

/* The same place of both CTAs' shared memory is written, and both barriers count the bytes. */
static __device__ __forceinline__ void share_codes(void *to, const CUtensorMap *map, uint32_t row,
                                                   uint32_t block, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(smem_at(to)),
                 "l"(map), "r"(0), "r"(row), "r"(block), "r"(smem_at(barrier)), "h"((uint16_t)3)
                 : "memory");
}
static __device__ __forceinline__ void share_weights(void *to, const CUtensorMap *map, uint32_t row,
                                                     uint32_t tile, uint32_t block, uint32_t group,
                                                     uint64_t *barrier)
{
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(smem_at(to)),
        "l"(map), "r"(0), "r"(row), "r"(block), "r"(tile), "r"(group), "r"(smem_at(barrier)),
        "h"((uint16_t)3)
        : "memory");
}

/* Half of the stage's shared operand into both CTAs, all of the other one. */
template <int NT>
static __device__ __forceinline__ void many_copy(const many_args &args, const CUtensorMap *map,
                                                 many_smem<NT> s, const many_tile &tile,
                                                 uint32_t block, uint32_t stage)
{
    constexpr uint32_t tiles = many_shape<NT>::tiles;
    const linear_args &a = args.linear;
    uint32_t rank = blockIdx.x % 2, atoms = atoms_of(tile.rows.rows);
    uint8_t *weights = s.weights + stage * NT * 128, *codes = s.codes + stage * MANY_ROWS * 128;
    uint64_t *full = &s.full[stage];
    if (args.rows_paired) {
        barrier_expect(full, NT * 128 + atoms * (1024 + 32));
        for (uint32_t j = 0; j < tiles; j++)
            share_weights(weights + j * WEIGHT_TILE + rank * WEIGHT_TILE / 2, map,
                          rank * TILE_N / 2, tile.first + j, block, tile.group, full);
        if (atoms > 0)
            bulk_copy(codes,
                      a.codes + ((size_t)block * (a.rows_tiled / 8) + tile.rows.row / 8) * 1024,
                      atoms * 1024, full);
    } else {
        uint32_t all = (a.n + TILE_N - 1) / TILE_N;
        uint32_t valid = tile.first < all ? all - tile.first : 0;
        valid = valid < tiles ? valid : tiles;
        barrier_expect(full, valid * WEIGHT_TILE + MANY_ROWS * 128 + atoms * 32);
        share_codes(codes + rank * MANY_ROWS * 64, map, tile.rows.row + rank * MANY_ROWS / 2, block,
                    full);
        const uint8_t *from = a.weights + tile.group * a.weights_bytes +
                              ((size_t)tile.first * a.blocks + block) * WEIGHT_TILE;
        for (uint32_t j = 0; j < valid; j++)
            bulk_copy(weights + j * WEIGHT_TILE, from + (size_t)j * a.blocks * WEIGHT_TILE,
                      WEIGHT_TILE, full);
    }
    if (atoms > 0)
        bulk_copy(s.scales + stage * MANY_ROWS,
                  a.scales + (size_t)block * a.rows_tiled + tile.rows.row, atoms * 32, full);
}

template <int NT>
static __device__ __forceinline__ void many_produce(const many_args &args, const CUtensorMap *map,
                                                    many_smem<NT> s)
{
    constexpr uint32_t stages = many_shape<NT>::stages;
    unit_walk walk = walk_start();
    many_tile tile;
    uint32_t stage = 0, phase = 1;
    while (walk_next<NT>(args, walk, tile)) {
        for (uint32_t block = 0; block < args.linear.blocks; block++) {
            barrier_wait(&s.empty[stage], phase); /* of both CTAs: both are written */
            many_copy<NT>(args, map, s, tile, block, stage);
            stage = stage + 1 == stages ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

/* ---- products ---- */

/* Where stage 0 of a warpgroup's operands lies, worked out once: computed anew for every block, as
 * the compiler would, it is a third of what a warpgroup does beside its products. */
struct many_at {
    uint32_t codes, weights; /* low words of the descriptors */
    uint32_t scales, full;
    uint32_t empty, peer_empty;
    uint32_t stage, phase;
};

template <int NT>
static __device__ __forceinline__ many_at at_start(many_smem<NT> s, uint32_t group)
{
    uint32_t t = threadIdx.x % 128, row = group * 64 + t / 32 * 16 + t % 32 / 4;
    many_at at;
    at.codes = __shfl_sync(0xFFFFFFFFu, (uint32_t)mma_operand(s.codes + group * 64 * 128), 0);
    at.weights = __shfl_sync(0xFFFFFFFFu, (uint32_t)mma_operand(s.weights), 0);
    at.scales = smem_at(s.scales + row);
    at.full = smem_at(s.full);
    at.empty = smem_at(s.empty);
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(at.peer_empty)
                 : "r"(at.empty), "r"(blockIdx.x % 2 ^ 1));
    at.stage = at.phase = 0;
    asm volatile("" : "+r"(at.codes), "+r"(at.weights), "+r"(at.scales), "+r"(at.full));
    return at;
}

template <int NT> static __device__ __forceinline__ void at_next(many_at &at)
{
    at.stage = at.stage + 1 == many_shape<NT>::stages ? 0 : at.stage + 1;
    at.phase ^= at.stage == 0;
}

/* The thread has read the stage; lane 0 tells the peer of its warp, too. What the peer will write
 * was read by wgmma, which is over: an order of this CTA's own loads (a release of the cluster,
 * some hundred cycles) is not needed. */
static __device__ __forceinline__ void many_release(const many_at &at, uint32_t stage)
{
    uint32_t lane = threadIdx.x % 32;
    asm volatile("{\n"
                 ".reg .pred first;\n"
                 "setp.eq.u32 first, %2, 0;\n"
                 "mbarrier.arrive.shared::cta.b64 _, [%0];\n"
                 "@first mbarrier.arrive.shared::cluster.b64 _, [%1];\n"
                 "}" ::"r"(at.empty + stage * 8),
                 "r"(at.peer_empty + stage * 8), "r"(lane)
                 : "memory");
}

static __device__ __forceinline__ float shared_load(uint32_t at)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}

/* acc += p * (sa * sw); sw of each 64 columns apart (stacked matrices). */
template <int NT>
static __device__ __forceinline__ void many_promote(const float *p, float2 sa, const float *sw,
                                                    float *acc)
{
#pragma unroll
    for (int tile = 0; tile < NT / TILE_N; tile++) {
        float low = __fmul_rn(sa.x, sw[tile]), high = __fmul_rn(sa.y, sw[tile]);
#pragma unroll
        for (int i = tile * 32; i < tile * 32 + 32; i += 4) {
            acc[i] = fmaf(p[i], low, acc[i]);
            acc[i + 1] = fmaf(p[i + 1], low, acc[i + 1]);
            acc[i + 2] = fmaf(p[i + 2], high, acc[i + 2]);
            acc[i + 3] = fmaf(p[i + 3], high, acc[i + 3]);
        }
    }
}

/* Scales of a tile's 64 columns each; past the last one: any. */
template <int NT>
static __device__ __forceinline__ void weight_scales(const linear_args &a, const many_tile &tile,
                                                     const float **out)
{
    uint32_t all = (a.n + TILE_N - 1) / TILE_N;
    const uint8_t *group = a.weights + tile.group * a.weights_bytes;
    const float *scales = (const float *)(group + (size_t)all * a.blocks * WEIGHT_TILE);
#pragma unroll
    for (int j = 0; j < NT / TILE_N; j++)
        out[j] = scales + (size_t)min(tile.first + j, all - 1) * a.blocks;
}

/* p of one block; the stage is free again. */
template <int NT>
static __device__ __forceinline__ void many_block(many_at &at, float *p, float2 &sa)
{
    const uint64_t high = mma_operand(NULL) & 0xFFFFFFFF00000000ull;
    uint32_t stage = at.stage;
    barrier_wait_at(at.full + stage * 8, at.phase);
    mma_block<NT>(p, high | (at.codes + stage * (MANY_ROWS * 128 / 16)),
                  high | (at.weights + stage * (NT * 128 / 16)));
    sa.x = shared_load(at.scales + stage * (MANY_ROWS * 4));
    sa.y = shared_load(at.scales + stage * (MANY_ROWS * 4) + 32);
    at_next<NT>(at);
    mma_wait<0>();
    mma_pin<NT / 2>(p);
    many_release(at, stage);
}

/* acc: the sum of a run of blocks. */
template <int NT>
static __device__ __forceinline__ void many_run(many_at &at, uint32_t blocks,
                                                const float **scales_at, float *acc)
{
    constexpr int tiles = NT / TILE_N;
    float p[NT / 2], sw[tiles];
    float2 sa;
#pragma unroll
    for (int i = 0; i < NT / 2; i++)
        acc[i] = 0.0f;
    for (uint32_t left = blocks; left > 0; left--) {
#pragma unroll
        for (int j = 0; j < tiles; j++)
            sw[j] = __ldg(scales_at[j]++);
        many_block<NT>(at, p, sa);
        many_promote<NT>(p, sa, sw, acc);
    }
}

/* total: the runs' sums, added in order. They wait in local memory (volatile keeps them there):
 * once a run is rare, and registers for them would be taken from the products. */
template <int NT, int S>
static __device__ __forceinline__ void many_consume(const linear_args &a, const many_tile &tile,
                                                    many_at &at, float *total)
{
    const float *scales_at[NT / TILE_N];
    weight_scales<NT>(a, tile, scales_at);
    volatile float parked[S > 1 ? NT / 2 : 1];
#pragma unroll
    for (uint32_t run = 0; run < S; run++) {
        many_run<NT>(at, a.blocks / S, scales_at, total);
        if (S > 1 && run > 0) {
#pragma unroll
            for (int j = 0; j < NT / 2; j++)
                total[j] = __fadd_rn(parked[j], total[j]);
        }
        if (S > 1 && run + 1 < S) {
#pragma unroll
            for (int j = 0; j < NT / 2; j++)
                parked[j] = total[j];
        }
    }
}

/* ---- y ---- */

static __device__ __forceinline__ void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c,
                                                      uint32_t d)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_at(to)),
        "r"(a), "r"(b), "r"(c), "r"(d)
        : "memory");
}
static __device__ __forceinline__ void bulk_store(void *to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(smem_at(from)), "r"(bytes)
                 : "memory");
}
/* The thread's own stores have read shared memory. */
static __device__ __forceinline__ void bulk_stores_wait(void)
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* The warpgroup's 64 rows from shared memory, a bulk store a row where y is aligned for it. */
template <int NT>
static __device__ __forceinline__ void many_send(const linear_args &a, const many_tile &tile,
                                                 const uint8_t *from, uint32_t group)
{
    constexpr uint32_t pitch = many_shape<NT>::pitch;
    uint32_t t = threadIdx.x % 128, column = tile.first * TILE_N;
    uint32_t rows = tile.rows.rows > group * 64 ? tile.rows.rows - group * 64 : 0;
    uint32_t columns = column < a.n ? min(a.n - column, (uint32_t)NT) : 0;
    uint16_t *out = a.out + (size_t)(tile.rows.row + group * 64) * a.out_stride + column;
    rows = min(rows, 64u);
    if (((a.out_stride | a.n) % 8) == 0 && (uintptr_t)a.out % 16 == 0) {
        if (t < rows && columns > 0)
            bulk_store(out + (size_t)t * a.out_stride, from + t * pitch, columns * 2);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        return;
    }
    for (uint32_t i = t; i < rows * columns; i += 128) {
        uint32_t r = i / columns, c = i % columns;
        out[(size_t)r * a.out_stride + c] = *(const uint16_t *)(from + r * pitch + c * 2);
    }
}

template <int NT>
static __device__ __forceinline__ void many_store(const linear_args &a, many_smem<NT> s,
                                                  const many_tile &tile, const float *total,
                                                  uint32_t group)
{
    constexpr uint32_t pitch = many_shape<NT>::pitch;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    uint8_t *out = s.out + group * 64 * pitch;
    uint8_t *to = out + (warp * 16 + lane % 16) * pitch + lane / 16 * 16;
    bulk_stores_wait();
    bar_sync(1 + group, 128);
#pragma unroll
    for (int j = 0; j < NT / 16; j++) {
        const float *y = total + 8 * j;
        store_matrices(to + 32 * j, bf16_pair(y[0], y[1]), bf16_pair(y[2], y[3]),
                       bf16_pair(y[4], y[5]), bf16_pair(y[6], y[7]));
    }
    fence_async();
    bar_sync(1 + group, 128);
    many_send<NT>(a, tile, out, group);
}

template <int NT, int S>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    many_kernel(const __grid_constant__ many_args args, const __grid_constant__ CUtensorMap map)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    many_smem<NT> s = many_carve<NT>(raw);
    if (threadIdx.x == 0) {
        for (int i = 0; i < many_shape<NT>::stages; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], 256 + 256 / 32); /* threads here, warps there */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
    __syncwarp();
    cluster_sync();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        if (threadIdx.x == 256)
            many_produce<NT>(args, &map, s);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        uint32_t group = threadIdx.x / 128;
        unit_walk walk = walk_start();
        many_tile tile;
        many_at at = at_start<NT>(s, group);
        while (walk_next<NT>(args, walk, tile)) {
            float total[NT / 2];
            many_consume<NT, S>(args.linear, tile, at, total);
            many_store<NT>(args.linear, s, tile, total, group);
        }
        bulk_stores_wait();
    }
    __syncwarp();
    cluster_sync(); /* the peer writes here no more */
}

/* ---- host ---- */

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function: the library is not linked with the driver. */
static encode_fn encode_find(void)
{
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_fn)found : NULL;
}

/* The shared operand as boxes of half a tile: bytes are as shared memory wants them. */
static int map_init(CUtensorMap *map, const many_args &args)
{
    static const encode_fn encode = encode_find();
    if (!encode)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear: the driver has no cuTensorMapEncodeTiled");
    const linear_args &a = args.linear;
    uint32_t tiles = (a.n + TILE_N - 1) / TILE_N, paired = args.rows_paired;
    const cuuint64_t weights[] = {128, TILE_N, a.blocks, tiles, args.groups};
    const cuuint64_t weights_apart[] = {128, WEIGHT_TILE, (cuuint64_t)a.blocks * WEIGHT_TILE,
                                        a.weights_bytes};
    const cuuint64_t codes[] = {128, a.rows_tiled, a.blocks};
    const cuuint64_t codes_apart[] = {128, (cuuint64_t)a.rows_tiled * 128};
    const cuuint32_t rows = paired ? TILE_N / 2 : MANY_ROWS / 2, box[] = {128, rows, 1, 1, 1};
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    CUresult code = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, paired ? 5 : 3,
                           (void *)(paired ? a.weights : a.codes), paired ? weights : codes,
                           paired ? weights_apart : codes_apart, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return code == CUDA_SUCCESS ? KRN_CUDA_OK
                                : krn_cuda_fail(KRN_CUDA_INVALID, "linear: tensor map: %d", code);
}

static uint32_t pairs_of_multiprocessors(void)
{
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return (uint32_t)count / 2;
}

static uint64_t units_of(const many_args &args, uint32_t nt)
{
    uint32_t height = args.rows_paired ? 2 * MANY_ROWS : MANY_ROWS;
    uint32_t width = args.rows_paired ? nt : 2 * nt;
    return (uint64_t)((args.linear.rows + height - 1) / height) *
           ((args.linear.n + width - 1) / width) * args.groups;
}

template <int NT, int S>
static int many_launch(const many_args &args, uint32_t pairs, cudaStream_t stream)
{
    const int bytes = many_shape<NT>::smem_bytes;
    static_assert(many_shape<NT>::smem_bytes <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)many_kernel<NT, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear: %s", cudaGetErrorString(ready));
    CUtensorMap map;
    int code = map_init(&map, args);
    if (code != KRN_CUDA_OK)
        return code;
    uint64_t units = units_of(args, NT);
    uint32_t grid = 2 * (uint32_t)(units < pairs ? units : pairs);
    return launch_in_turn("linear", {grid, THREADS, 1, bytes, stream}, many_kernel<NT, S>, args,
                          map);
}

/* The wide tile takes fewer cycles a column; the narrow one may leave fewer CTAs without work at
 * the end. cycles: of a block of 128 k, measured. */
template <int S> static int many_choose(const many_args &args, uint32_t pairs, cudaStream_t stream)
{
    enum { WIDE_CYCLES = 955, NARROW_CYCLES = 742 };
    uint64_t wide = (units_of(args, 192) + pairs - 1) / pairs * WIDE_CYCLES;
    uint64_t narrow = (units_of(args, 128) + pairs - 1) / pairs * NARROW_CYCLES;
    return wide <= narrow ? many_launch<192, S>(args, pairs, stream)
                          : many_launch<128, S>(args, pairs, stream);
}

KRN_CUDA_LOCAL int krn_cuda_linear_many(const linear_args &args, uint32_t groups, uint32_t segments,
                                        cudaStream_t stream)
{
    static const uint32_t pairs = pairs_of_multiprocessors();
    many_args many = {args, groups, args.offsets == NULL};
    switch (segments) {
    case 1:
        return many_choose<1>(many, pairs, stream);
    case 2:
        return many_choose<2>(many, pairs, stream);
    case 4:
        return many_launch<128, 4>(many, pairs, stream);
    case 8:
        return many_launch<128, 8>(many, pairs, stream);
    }
    return krn_cuda_fail(KRN_CUDA_INVALID, "linear: segments is %u, not 1, 2, 4 or 8", segments);
}
