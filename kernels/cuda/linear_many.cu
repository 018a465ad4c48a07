/* FP8 products of many rows (order and few rows: linear.cu), a persistent grid of pairs of CTAs.
 *
 * Three tiles of y, rows x columns: 128 x 192 and 256 x 128 keep the matrix unit 768 and 1,024
 * cycles a block of 128 k (some 820 and 1,160 pass), 128 x 128 keeps it 512 (610). Two warpgroups
 * take turns: one adds what the other multiplies over, so that all that one does between two
 * products has to fit in the products of the other. That is why stages are known when compiled, why
 * the next stage is asked for before the addition, and why one thread copies, with a copy for each
 * half of an operand: copies must not take it longer than a block. L2: the two CTAs of a cluster
 * share one operand by multicast (rows side by side: the weights; columns side by side: the codes;
 * for groups, whose last tile of rows has no neighbour).
 *
 * The tile whose last CTA ends first is taken. */
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define THREADS     384
#define BAND        8u /* units of rows that share the weights of one walk over the columns */
#define TILES_AHEAD 8  /* more than the producer can be ahead: a tile has a stage at least */
#define BLOCKS_MOST 256
#define OUT_PITCH   144 /* of a row of 64 columns of y in bytes: no two rows in one bank */
#define OUT_BYTES   (16 * OUT_PITCH)

/* The work of a CTA for one run of stages. */
struct many_tile {
    row_tile rows;         /* of codes and y; none: the CTA works for its peer only */
    uint32_t group, first; /* first tile of weights; past the last one: likewise */
};
#define NO_GROUP UINT32_MAX /* there are no more tiles */

/* A stage's weights lie in two halves: rows 0 to 31 of each of its tiles, then rows 32 to 63, so
 * that a half of either operand is one copy. Columns of the accumulators are in that order, too. */
template <int NT, int MT> struct many_shape {
    static constexpr int tiles = NT / TILE_N;
    static constexpr int parts = MT / 128;      /* 64 rows of a warpgroup each */
    static constexpr int sums = NT / 2 * parts; /* of a thread */
    static constexpr int stage_bytes = NT * 128 + MT * 128 + MT * 4;
    static constexpr int factor_bytes = tiles * BLOCKS_MOST * 4; /* scales of a tile's weights */
    static constexpr int fixed_bytes = 1024 + 8 * OUT_BYTES + 2 * factor_bytes + 384;
    static constexpr int stages = (227 * 1024 - fixed_bytes) / stage_bytes;
    static constexpr int smem_bytes = fixed_bytes + stages * stage_bytes;
    static_assert(stages < TILES_AHEAD && 16 * TILES_AHEAD + 16 * (stages + 2) <= 384, "the rest");
};

template <int NT, int MT> struct many_smem {
    uint8_t *weights, *codes;
    float *scales;
    uint8_t *out;   /* of each warp OUT_BYTES */
    float *factors; /* [2][tiles][BLOCKS_MOST] */
    uint4 *tiles;   /* [TILES_AHEAD] many_tile */
    uint64_t *full, *empty;
    uint64_t *factors_full, *factors_empty; /* [2] */
};

template <int NT, int MT>
static __device__ __forceinline__ many_smem<NT, MT> many_carve(uint8_t *raw)
{
    constexpr int stages = many_shape<NT, MT>::stages;
    many_smem<NT, MT> s;
    s.weights = raw + ((1024 - (smem_at(raw) & 1023)) & 1023);
    s.codes = s.weights + stages * NT * 128;
    s.scales = (float *)(s.codes + stages * MT * 128);
    s.out = (uint8_t *)(s.scales + stages * MT);
    s.factors = (float *)(s.out + 8 * OUT_BYTES);
    s.tiles = (uint4 *)(s.factors + 2 * many_shape<NT, MT>::factor_bytes / 4);
    s.full = (uint64_t *)(s.tiles + TILES_AHEAD);
    s.empty = s.full + stages;
    s.factors_full = s.empty + stages;
    s.factors_empty = s.factors_full + 2;
    return s;
}

/* ---- which tiles ---- */

struct many_args {
    linear_args linear;
    uint32_t groups;
    uint32_t rows_paired; /* the two CTAs: rows side by side, else columns */
    uint32_t run;         /* blocks of a K-segment */
};

/* Boxes: half of a stage's weights, half of its codes, all of its scales. */
struct many_maps {
    CUtensorMap weights, codes, scales;
};

/* The units, the work of a cluster; those that copy walk them and tell the others. */
struct unit_walk {
    uint32_t next, group, base;
};

static __device__ __forceinline__ unit_walk walk_start(void)
{
    unit_walk walk = {blockIdx.x / 2, 0, 0};
    return walk;
}

template <int NT, int MT>
static __device__ __forceinline__ bool walk_next(const many_args &args, unit_walk &walk,
                                                 many_tile &tile)
{
    const linear_args &a = args.linear;
    uint32_t paired = args.rows_paired, rank = blockIdx.x % 2;
    uint32_t height = paired ? 2 * MT : MT, width = paired ? NT : 2 * NT;
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
    tile.first = (paired ? n : 2 * n + rank) * many_shape<NT, MT>::tiles;
    tile.rows = tile_of(a, walk.group, (paired ? 2 * m + rank : m) * MT, MT);
    return true;
}

/* ---- copies ---- */

/* The same place of both CTAs' shared memory is written, and both barriers count the bytes. */
static __device__ __forceinline__ void share_codes(uint32_t to, const CUtensorMap *map,
                                                   uint32_t atom, uint32_t block, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(0), "r"(atom), "r"(block), "r"(barrier), "h"((uint16_t)3)
                 : "memory");
}
static __device__ __forceinline__ void copy_codes(uint32_t to, const CUtensorMap *map,
                                                  uint32_t atom, uint32_t block, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(0), "r"(atom), "r"(block), "r"(barrier)
                 : "memory");
}
static __device__ __forceinline__ void share_weights(uint32_t to, const CUtensorMap *map,
                                                     uint32_t atom, uint32_t block,
                                                     const many_tile &tile, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(to),
                 "l"(map), "r"(0), "r"(atom), "r"(block), "r"(tile.first), "r"(tile.group),
                 "r"(barrier), "h"((uint16_t)3)
                 : "memory");
}
static __device__ __forceinline__ void copy_weights(uint32_t to, const CUtensorMap *map,
                                                    uint32_t atom, uint32_t block,
                                                    const many_tile &tile, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to),
                 "l"(map), "r"(0), "r"(atom), "r"(block), "r"(tile.first), "r"(tile.group),
                 "r"(barrier)
                 : "memory");
}
static __device__ __forceinline__ void copy_scales(uint32_t to, const CUtensorMap *map,
                                                   uint32_t row, uint32_t block, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(row), "r"(block), "r"(barrier)
                 : "memory");
}

/* Half of the stage's shared operand into both CTAs, all of the other one. The bytes are the same
 * for every tile: what is past the end of an operand arrives as zeros. */
template <int NT, int MT>
static __device__ __forceinline__ void many_copy(const many_maps &maps, uint32_t paired,
                                                 many_smem<NT, MT> s, const many_tile &tile,
                                                 uint32_t block, uint32_t stage)
{
    constexpr uint32_t weight_half = NT * 64, code_half = MT * 64;
    uint32_t rank = blockIdx.x % 2, atom = tile.rows.row / 8;
    uint32_t weights = smem_at(s.weights) + stage * NT * 128;
    uint32_t codes = smem_at(s.codes) + stage * MT * 128;
    uint32_t full = smem_at(s.full) + stage * 8;
    barrier_expect(&s.full[stage], many_shape<NT, MT>::stage_bytes);
    if (paired) {
        share_weights(weights + rank * weight_half, &maps.weights, rank * 4, block, tile, full);
        copy_codes(codes, &maps.codes, atom, block, full);
        copy_codes(codes + code_half, &maps.codes, atom + MT / 16, block, full);
    } else {
        share_codes(codes + rank * code_half, &maps.codes, atom + rank * (MT / 16), block, full);
        copy_weights(weights, &maps.weights, 0, block, tile, full);
        copy_weights(weights + weight_half, &maps.weights, 4, block, tile, full);
    }
    copy_scales(smem_at(s.scales) + stage * MT * 4, &maps.scales, tile.rows.row, block, full);
}

/* One thread. A block must take it less time than the products do: everything that is not a copy is
 * done once a tile. A run of blocks begins at stage 0, so that consumers know a stage when they are
 * compiled; phases: of each stage a bit. */
template <int NT, int MT>
static __device__ __forceinline__ void many_produce(const many_args &args, const many_maps &maps,
                                                    many_smem<NT, MT> s)
{
    constexpr uint32_t stages = many_shape<NT, MT>::stages;
    unit_walk walk = walk_start();
    many_tile tile;
    uint32_t phases = UINT32_MAX, n = 0;
    while (walk_next<NT, MT>(args, walk, tile)) {
        s.tiles[n++ % TILES_AHEAD] =
            make_uint4(tile.rows.row, tile.rows.rows, tile.group, tile.first);
        uint32_t stage = 0, end = args.run;
        for (uint32_t block = 0; block < args.linear.blocks; block++) {
            if (block == end) {
                stage = 0;
                end += args.run;
            }
            barrier_wait(&s.empty[stage], phases >> stage & 1); /* of both CTAs */
            many_copy<NT, MT>(maps, args.rows_paired, s, tile, block, stage);
            phases ^= 1u << stage;
            stage = stage + 1 == stages ? 0 : stage + 1;
        }
    }
    barrier_wait(&s.empty[0], phases & 1);
    s.tiles[n % TILES_AHEAD] = make_uint4(0, 0, NO_GROUP, 0);
    barrier_arrive(&s.full[0]);
}

static __device__ __forceinline__ void copy4(void *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_at(to)), "l"(from)
                 : "memory");
}

/* One warp: scales of the weights, a tile ahead. Past the last column: any. */
template <int NT, int MT>
static __device__ __forceinline__ void factors_produce(const many_args &args, many_smem<NT, MT> s)
{
    const linear_args &a = args.linear;
    uint32_t all = (a.n + TILE_N - 1) / TILE_N, lane = threadIdx.x % 32;
    unit_walk walk = walk_start();
    many_tile tile;
    for (uint32_t n = 0; walk_next<NT, MT>(args, walk, tile); n++) {
        const float *scales = (const float *)(a.weights + tile.group * a.weights_bytes +
                                              (size_t)all * a.blocks * WEIGHT_TILE);
        float *to = s.factors + n % 2 * (many_shape<NT, MT>::factor_bytes / 4);
        barrier_wait(&s.factors_empty[n % 2], n / 2 % 2 ^ 1);
        for (uint32_t j = 0; j < many_shape<NT, MT>::tiles; j++)
            for (uint32_t i = lane; i < a.blocks; i += 32)
                copy4(to + j * BLOCKS_MOST + i,
                      scales + (size_t)min(tile.first + j, all - 1) * a.blocks + i);
        copy_commit();
        copy_wait<0>();
        barrier_arrive(&s.factors_full[n % 2]);
    }
}

/* ---- products ---- */

/* Where stage 0 of a warpgroup's operands lies, worked out once: what a warpgroup does between its
 * products is what the matrix unit may have to wait for. */
struct many_at {
    uint32_t codes, weights; /* low words of the descriptors */
    uint32_t scales, full;
    uint32_t empty, peer_empty;
    uint32_t phases; /* of each stage a bit */
};

template <int NT, int MT>
static __device__ __forceinline__ many_at at_start(many_smem<NT, MT> s, uint32_t group)
{
    uint32_t t = threadIdx.x % 128, row = group * 64 + t / 32 * 16 + t % 32 / 4;
    many_at at;
    at.codes = __shfl_sync(0xFFFFFFFFu, (uint32_t)mma_operand(s.codes + group * 64 * 128), 0);
    at.weights = __shfl_sync(0xFFFFFFFFu, (uint32_t)mma_operand(s.weights), 0);
    at.scales = smem_at(s.scales + row);
    at.full = smem_at(s.full);
    at.empty = smem_at(s.empty);
    at.peer_empty = peer_at(s.empty, blockIdx.x % 2 ^ 1);
    at.phases = 0;
    asm volatile("" : "+r"(at.codes), "+r"(at.weights), "+r"(at.scales), "+r"(at.full));
    return at;
}

/* The thread has read the stage; lane 0 tells the peer of its warp, too. What the peer will write
 * was read by wgmma, which is over: an order of this CTA's own loads (a release of the cluster,
 * some hundred cycles) is not needed. */
static __device__ __forceinline__ void many_release(const many_at &at, uint32_t stage)
{
    asm volatile("{\n"
                 ".reg .pred first;\n"
                 "setp.eq.u32 first, %2, 0;\n"
                 "mbarrier.arrive.shared::cta.b64 _, [%0];\n"
                 "@first mbarrier.arrive.shared::cluster.b64 _, [%1];\n"
                 "}" ::"r"(at.empty + stage * 8),
                 "r"(at.peer_empty + stage * 8), "r"(threadIdx.x % 32)
                 : "memory");
}

/* 1: the phase is over; does not wait. */
static __device__ __forceinline__ uint32_t barrier_test_at(uint32_t barrier, uint32_t parity)
{
    uint32_t over;
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, done;\n"
                 "}"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return over;
}

static __device__ __forceinline__ float shared_load(uint32_t at)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}

/* acc += p * scale; low, high: of rows g and g + 8 for each 64 columns (stacked matrices), of which
 * a half has 32. */
template <int NT>
static __device__ __forceinline__ void many_promote(const float *p, const float *low,
                                                    const float *high, float *acc)
{
    constexpr int tiles = NT / TILE_N;
#pragma unroll
    for (int part = 0; part < 2 * tiles; part++) {
#pragma unroll
        for (int i = part * 16; i < part * 16 + 16; i += 4) {
            acc[i] = fmaf(p[i], low[part % tiles], acc[i]);
            acc[i + 1] = fmaf(p[i + 1], low[part % tiles], acc[i + 1]);
            acc[i + 2] = fmaf(p[i + 2], high[part % tiles], acc[i + 2]);
            acc[i + 3] = fmaf(p[i + 3], high[part % tiles], acc[i + 3]);
        }
    }
}

/* The tile whose first block is next; false: there is none. */
template <int NT, int MT>
static __device__ __forceinline__ bool tile_wait(many_smem<NT, MT> s, const many_at &at, uint32_t n,
                                                 many_tile &tile)
{
    barrier_wait_at(at.full, at.phases & 1);
    uint4 told = s.tiles[n % TILES_AHEAD];
    tile.rows.row = __shfl_sync(0xFFFFFFFFu, told.x, 0);
    tile.rows.rows = __shfl_sync(0xFFFFFFFFu, told.y, 0);
    tile.group = __shfl_sync(0xFFFFFFFFu, told.z, 0);
    tile.first = __shfl_sync(0xFFFFFFFFu, told.w, 0);
    return tile.group != NO_GROUP;
}

/* The block in `stage`, which is there; returns whether the next stage's is. */
template <int NT, int MT>
static __device__ __forceinline__ uint32_t many_block(many_at &at, uint32_t stage, uint32_t factors,
                                                      float *acc)
{
    constexpr uint32_t tiles = NT / TILE_N, stages = many_shape<NT, MT>::stages;
    constexpr uint32_t parts = many_shape<NT, MT>::parts;
    const uint64_t high_word = mma_operand(NULL) & 0xFFFFFFFF00000000ull;
    uint32_t next = (stage + 1) % stages, ready = 0;
    at.phases ^= 1u << stage;
#pragma unroll
    for (uint32_t part = 0; part < parts; part++) {
        float p[NT / 2], low[tiles], high[tiles];
        float x = shared_load(at.scales + (stage * MT + part * 128) * 4);
        float y = shared_load(at.scales + (stage * MT + part * 128) * 4 + 32);
#pragma unroll
        for (uint32_t j = 0; j < tiles; j++)
            low[j] = shared_load(factors + (j * BLOCKS_MOST + stage) * 4);
        mma_block<NT>(p, high_word | (at.codes + (stage * MT + part * 128) * 128 / 16),
                      high_word | (at.weights + stage * (NT * 128 / 16)));
#pragma unroll
        for (uint32_t j = 0; j < tiles; j++) {
            high[j] = __fmul_rn(y, low[j]);
            low[j] = __fmul_rn(x, low[j]);
        }
        mma_wait<0>();
        mma_pin<NT / 2>(p);
        if (part + 1 == parts) {
            many_release(at, stage);
            ready = barrier_test_at(at.full + next * 8, at.phases >> next & 1);
        }
        many_promote<NT>(p, low, high, acc + part * (NT / 2));
    }
    return ready;
}

/* acc: the sum of a run of blocks. factors: of its first block, in shared memory. */
template <int NT, int MT>
static __device__ __forceinline__ void many_run(many_at &at, uint32_t blocks, uint32_t factors,
                                                float *acc)
{
    constexpr uint32_t stages = many_shape<NT, MT>::stages;
#pragma unroll
    for (int i = 0; i < many_shape<NT, MT>::sums; i++)
        acc[i] = 0.0f;
    uint32_t left = blocks;
    barrier_wait_at(at.full, at.phases & 1);
    for (;; factors += stages * 4) {
#pragma unroll
        for (uint32_t stage = 0; stage < stages; stage++) {
            uint32_t next = (stage + 1) % stages,
                     ready = many_block<NT, MT>(at, stage, factors, acc);
            if (--left == 0)
                return;
            if (!ready)
                barrier_wait_at(at.full + next * 8, at.phases >> next & 1);
        }
    }
}

/* total: the runs' sums, added in order. They wait in local memory (volatile keeps them there):
 * once a run is rare, and registers for them would be taken from the products. */
template <int NT, int MT, int S>
static __device__ __forceinline__ void many_consume(uint32_t run_blocks, uint32_t factors,
                                                    many_at &at, float *total)
{
    constexpr int sums = many_shape<NT, MT>::sums;
    volatile float parked[S > 1 ? sums : 1];
#pragma unroll 1
    for (uint32_t run = 0; run < S; run++) {
        many_run<NT, MT>(at, run_blocks, factors + run * run_blocks * 4, total);
        if (S > 1 && run > 0) {
#pragma unroll
            for (int j = 0; j < sums; j++)
                total[j] = __fadd_rn(parked[j], total[j]);
        }
        if (S > 1 && run + 1 < S) {
#pragma unroll
            for (int j = 0; j < sums; j++)
                parked[j] = total[j];
        }
    }
}

/* The blocks of a tile in which the warpgroup has no rows: the other one and the peer go on. */
template <int NT, int MT>
static __device__ __forceinline__ void many_skip(many_at &at, uint32_t blocks, uint32_t run)
{
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t stage = i % run % many_shape<NT, MT>::stages;
        barrier_wait_at(at.full + stage * 8, at.phases >> stage & 1);
        at.phases ^= 1u << stage;
        many_release(at, stage);
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

/* 16 rows of 64 columns from the warp's part of shared memory, 8 columns a lane. */
static __device__ __forceinline__ void out_send(const linear_args &a, const uint8_t *from,
                                                uint32_t row, uint32_t rows, uint32_t column)
{
    uint32_t lane = threadIdx.x % 32, c = column + lane % 8 * 8;
    uint16_t *out = a.out + (size_t)(row + lane / 8) * a.out_stride + c;
    uint4 words[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        words[i] = *(const uint4 *)(from + (lane / 8 + 4 * i) * OUT_PITCH + lane % 8 * 16);
    if (((a.out_stride | a.n) % 8) == 0 && (uintptr_t)a.out % 16 == 0) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (lane / 8 + 4 * i < rows && c < a.n)
                *(uint4 *)(out + (size_t)(4 * i) * a.out_stride) = words[i];
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t w[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
        for (uint32_t j = 0; j < 8; j++)
            if (lane / 8 + 4 * i < rows && c + j < a.n)
                out[(size_t)(4 * i) * a.out_stride + j] = (uint16_t)(w[j / 2] >> j % 2 * 16);
    }
}

/* A warp stores its 16 rows of each part by itself, 64 columns at a time. */
template <int NT, int MT>
static __device__ __forceinline__ void many_store(const linear_args &a, many_smem<NT, MT> s,
                                                  const many_tile &tile, const float *total)
{
    constexpr int tiles = NT / TILE_N;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint8_t *out = s.out + warp * OUT_BYTES;
    uint8_t *to = out + lane % 16 * OUT_PITCH + lane / 16 * 16;
#pragma unroll
    for (int part = 0; part < many_shape<NT, MT>::parts; part++) {
        uint32_t first = part * 128 + warp * 16;
        uint32_t rows = tile.rows.rows > first ? tile.rows.rows - first : 0;
#pragma unroll
        for (int j = 0; j < tiles; j++) {
            __syncwarp(); /* what was there before is read */
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *y = total + part * (NT / 2) + (i / 2 * tiles + j) * 16 + i % 2 * 8;
                store_matrices(to + i * 32, bf16_pair(y[0], y[1]), bf16_pair(y[2], y[3]),
                               bf16_pair(y[4], y[5]), bf16_pair(y[6], y[7]));
            }
            __syncwarp();
            out_send(a, out, tile.rows.row + first, rows, (tile.first + j) * TILE_N);
        }
    }
}

template <int NT, int MT, int S>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    many_kernel(const __grid_constant__ many_args args, const __grid_constant__ many_maps maps)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    many_smem<NT, MT> s = many_carve<NT, MT>(raw);
    if (threadIdx.x == 0) {
        for (int i = 0; i < many_shape<NT, MT>::stages; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], 256 + 256 / 32); /* threads here, warps there */
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(&s.factors_full[i], 32);
            barrier_init(&s.factors_empty[i], 256);
        }
        fence_async();
    }
    __syncwarp();
    cluster_barriers_ready();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        uint32_t warp = threadIdx.x / 32 - 8;
        if (warp == 0 && elected())
            many_produce<NT, MT>(args, maps, s);
        if (warp == 1)
            factors_produce<NT, MT>(args, s);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        many_tile tile;
        uint32_t group = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);
        many_at at = at_start<NT, MT>(s, group);
        for (uint32_t n = 0; tile_wait<NT, MT>(s, at, n, tile); n++) {
            float total[many_shape<NT, MT>::sums];
            barrier_wait(&s.factors_full[n % 2], n / 2 % 2);
            if (tile.rows.rows <= group * 64) {
                many_skip<NT, MT>(at, args.linear.blocks, args.run);
                barrier_arrive(&s.factors_empty[n % 2]);
                continue;
            }
            many_consume<NT, MT, S>(
                args.run, smem_at(s.factors) + n % 2 * many_shape<NT, MT>::factor_bytes, at, total);
            barrier_arrive(&s.factors_empty[n % 2]);
            many_store<NT, MT>(args.linear, s, tile, total);
        }
    }
    __syncwarp();
    cluster_end(); /* the peer writes here no more */
}

/* ---- host ---- */

/* An atom of 1,024 bytes is 256 elements: bytes are as shared memory wants them. */
template <int NT, int MT> static int maps_init(many_maps *maps, const many_args &args)
{
    const CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    const linear_args &a = args.linear;
    uint32_t tiles = (a.n + TILE_N - 1) / TILE_N;
    const cuuint64_t weights[] = {256, TILE_N / 8, a.blocks, tiles, args.groups};
    const cuuint64_t weights_apart[] = {1024, WEIGHT_TILE, (cuuint64_t)a.blocks * WEIGHT_TILE,
                                        a.weights_bytes};
    const cuuint32_t weights_box[] = {256, TILE_N / 16, 1, many_shape<NT, MT>::tiles, 1};
    const cuuint64_t codes[] = {256, a.rows_tiled / 8, a.blocks};
    const cuuint64_t codes_apart[] = {1024, (cuuint64_t)a.rows_tiled * 128};
    const cuuint32_t codes_box[] = {256, MT / 16, 1};
    const cuuint64_t scales[] = {a.rows_tiled, a.blocks};
    const cuuint64_t scales_apart[] = {(cuuint64_t)a.rows_tiled * 4};
    const cuuint32_t scales_box[] = {MT, 1};
    int code = tensor_map_init(&maps->weights, "linear", type, a.weights, 5, weights, weights_apart,
                               weights_box, CU_TENSOR_MAP_SWIZZLE_NONE);
    if (code == KRN_CUDA_OK)
        code = tensor_map_init(&maps->codes, "linear", type, a.codes, 3, codes, codes_apart,
                               codes_box, CU_TENSOR_MAP_SWIZZLE_NONE);
    return code == KRN_CUDA_OK
               ? tensor_map_init(&maps->scales, "linear", type, a.scales, 2, scales, scales_apart,
                                 scales_box, CU_TENSOR_MAP_SWIZZLE_NONE)
               : code;
}

static uint32_t pairs_of_multiprocessors(void)
{
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return (uint32_t)count / 2;
}

template <int NT, int MT> static uint64_t units_of(const many_args &args)
{
    uint32_t height = args.rows_paired ? 2 * MT : MT;
    uint32_t width = args.rows_paired ? NT : 2 * NT;
    return (uint64_t)((args.linear.rows + height - 1) / height) *
           ((args.linear.n + width - 1) / width) * args.groups;
}

template <int NT, int MT, int S>
static int many_launch(const many_args &args, uint32_t pairs, cudaStream_t stream)
{
    const int bytes = many_shape<NT, MT>::smem_bytes;
    static_assert(many_shape<NT, MT>::smem_bytes <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)many_kernel<NT, MT, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "linear: %s", cudaGetErrorString(ready));
    many_maps maps;
    int code = maps_init<NT, MT>(&maps, args);
    if (code != KRN_CUDA_OK)
        return code;
    uint64_t units = units_of<NT, MT>(args);
    uint32_t grid = 2 * (uint32_t)(units < pairs ? units : pairs);
    return launch_in_turn("linear", {grid, THREADS, 1, bytes, stream}, many_kernel<NT, MT, S>, args,
                          maps);
}

/* Cycles until the last CTA is done: of a block of 128 k and of a tile beside its blocks, as
 * measured. */
template <int NT, int MT>
static uint64_t cycles_of(const many_args &args, uint32_t pairs, uint32_t block, uint32_t tile)
{
    return (units_of<NT, MT>(args) + pairs - 1) / pairs * (args.linear.blocks * block + tile);
}

/* Wide and high tiles take fewest cycles for what they do, small ones leave least idle. */
template <int S> static int many_choose(const many_args &args, uint32_t pairs, cudaStream_t stream)
{
    uint64_t wide = cycles_of<192, 128>(args, pairs, 830, 3900);
    uint64_t high = cycles_of<128, 256>(args, pairs, 1160, 3300);
    uint64_t small = cycles_of<128, 128>(args, pairs, 610, 2400);
    if (small < wide && small < high)
        return many_launch<128, 128, S>(args, pairs, stream);
    return wide < high ? many_launch<192, 128, S>(args, pairs, stream)
                       : many_launch<128, 256, S>(args, pairs, stream);
}

KRN_CUDA_LOCAL int krn_cuda_linear_many(const linear_args &args, uint32_t groups, uint32_t segments,
                                        cudaStream_t stream)
{
    static const uint32_t pairs = pairs_of_multiprocessors();
    many_args many = {args, groups, args.offsets == NULL, args.blocks / segments};
    switch (segments) {
    case 1:
        return many_choose<1>(many, pairs, stream);
    case 2:
        return many_choose<2>(many, pairs, stream);
    case 4:
        return many_launch<128, 128, 4>(many, pairs, stream);
    case 8:
        return many_launch<128, 128, 8>(many, pairs, stream);
    }
    return krn_cuda_fail(KRN_CUDA_INVALID, "linear: segments is %u, not 1, 2, 4 or 8", segments);
}
