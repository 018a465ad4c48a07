/* Indexer logits of many rows (order and few rows: scores.cu): the rows of a sequence that lie side
 * by side in a tile of 8 share its keys.
 *
 * Cycles first: a page of 64 keys and a row keep the matrix unit 128 cycles. Keys are operand A, in
 * registers from one reading of a page for all rows: operands in shared memory would be 4 KB a step
 * of 32 cycles, all that it gives. The sums beside it are some 90 instructions a warp; four
 * warpgroups a multiprocessor take turns. L2: 8 KB a page and tile, 8 bytes a cycle.
 *
 * A warpgroup takes every other page of its CTA's span, two rows at a time. */
#include "kernels/cuda/scores.cuh"
#include "kernels/cuda/tensor_map.cuh"

#define ROWS       8u /* of a tile */
#define THREADS    256u
#define GROUPS     2u
#define STAGES     2u /* of a warpgroup */
#define SPAN_LEAST 8u
#define SPAN_MOST  128u
#define PAGES_MOST (1ull << 30) /* of the tensor map: any page's number is under it */

template <int HEADS> struct many_scores {
    static constexpr int pitch = (HEADS < 16 ? 4 : HEADS / 4) + 4; /* of a lane's factors */
    uint8_t codes[GROUPS][STAGES][PAGE_TOKENS * 128];
    uint8_t queries[ROWS][HEADS * 128];
    float factors[ROWS][4][pitch]; /* by lane of a quad, in the order of its heads */
    float scales[GROUPS][STAGES][PAGE_TOKENS];
    uint64_t full[GROUPS][STAGES], ready;
    krn_cuda_row rows_at[ROWS];
};

/* ---- which pages ---- */

struct scores_tile {
    const krn_cuda_row *rows_at;
    uint32_t rows, from, span; /* of pages */
};

/* A warpgroup's walk: runs of rows first .. end - 1 that are of one sequence, and of the `pages` of
 * a run in this CTA's span every other one. */
struct page_walk {
    uint32_t first, end, sequence, pages, at;
    uint32_t seen; /* by every row of the run: slots 0 .. seen - 1; 0: not known */
};

static __device__ __forceinline__ bool walk_next(const scores_tile &tile, page_walk &walk)
{
    for (walk.at += GROUPS; walk.at >= walk.pages; walk.at = threadIdx.x / 128) {
        walk.first = walk.end;
        if (walk.first >= tile.rows)
            return false;
        uint32_t last = 0, least = UINT32_MAX, late = 0;
        walk.sequence = tile.rows_at[walk.first].sequence;
        for (; walk.end < tile.rows && tile.rows_at[walk.end].sequence == walk.sequence;
             walk.end++) {
            last = max(last, tile.rows_at[walk.end].slot);
            least = min(least, tile.rows_at[walk.end].slot);
            late = max(late, tile.rows_at[walk.end].first);
        }
        walk.seen = late == 0 ? least + 1 : 0;
        uint32_t pages = last / PAGE_TOKENS + 1;
        walk.pages = pages > tile.from ? min(tile.span, pages - tile.from) : 0;
    }
    return true;
}

/* ---- copies: by one thread of a warpgroup, for that one ---- */

/* The page that is to be copied next; its number is fetched one page before. */
struct page_copies {
    page_walk walk;
    uint32_t page, count;
    bool more;
};

static __device__ __forceinline__ void copies_next(const krn_cuda_cache &cache,
                                                   const scores_tile &tile, page_copies &copies)
{
    copies.more = walk_next(tile, copies.walk);
    if (copies.more)
        copies.page = cache.blocks[(size_t)copies.walk.sequence * cache.block_stride + tile.from +
                                   copies.walk.at];
}

template <int HEADS>
static __device__ __forceinline__ void copy_page(const krn_cuda_cache &cache,
                                                 const CUtensorMap *map, many_scores<HEADS> &s,
                                                 const scores_tile &tile, page_copies &copies)
{
    uint32_t group = threadIdx.x / 128, stage = copies.count++ % STAGES;
    uint64_t *full = &s.full[group][stage];
    if (!copies.more)
        return;
    barrier_expect(full, PAGE_TOKENS * 128 + PAGE_TOKENS * 4);
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %2, %3}], [%4];" ::"r"(smem_at(s.codes[group][stage])),
                 "l"(map), "r"(0), "r"(copies.page), "r"(smem_at(full))
                 : "memory");
    bulk_copy(s.scales[group][stage],
              cache.base + (uint64_t)copies.page * cache.page_bytes + INDEX_SCALES_AT,
              PAGE_TOKENS * 4, full);
    copies_next(cache, tile, copies);
}

/* ---- scores ---- */

/* Operand A of the warp's 16 keys. */
static __device__ __forceinline__ void load_keys(const uint8_t *codes, uint32_t keys[4][4])
{
    uint32_t lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(keys[k][0]), "=r"(keys[k][1]), "=r"(keys[k][2]), "=r"(keys[k][3])
                     : "r"(smem_at(codes) + row * 128 + (2 * k + lane / 16 ^ row % 8) * 16)
                     : "memory");
}

/* queries: the low word of their descriptor, the same in all lanes. */
template <int HEADS>
static __device__ __forceinline__ void multiply_keys(float *d, const uint32_t keys[4][4],
                                                     uint32_t queries)
{
    const uint64_t high = mma_operand(NULL) & 0xFFFFFFFF00000000ull;
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        wgmma_fp8<HEADS>(d, keys[k], high | (queries + 2 * k), k);
    mma_commit();
}

/* What this lane adds of keys g (x) and g + 8 (y). */
template <int HEADS>
static __device__ __forceinline__ float2 lane_sums(const float *d, const float *factors)
{
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < HEADS / 8; j += 2) {
        float4 a = *(const float4 *)(factors + 2 * j);
        const float *at = d + 4 * j;
        sum.x = fmaf(fmaxf(at[0], 0.0f), a.x, sum.x);
        sum.x = fmaf(fmaxf(at[1], 0.0f), a.y, sum.x);
        sum.y = fmaf(fmaxf(at[2], 0.0f), a.x, sum.y);
        sum.y = fmaf(fmaxf(at[3], 0.0f), a.y, sum.y);
        if (j + 1 < HEADS / 8) {
            sum.x = fmaf(fmaxf(at[4], 0.0f), a.z, sum.x);
            sum.x = fmaf(fmaxf(at[5], 0.0f), a.w, sum.x);
            sum.y = fmaf(fmaxf(at[6], 0.0f), a.z, sum.y);
            sum.y = fmaf(fmaxf(at[7], 0.0f), a.w, sum.y);
        }
    }
    return sum;
}

/* (q0 + q1) + (q2 + q3) over a quad of four sums, one for each lane: lane q has row q % 2 and key g
 * + 8 (q / 2). */
static __device__ __forceinline__ float quad_sums(float2 first, float2 second)
{
    bool odd = threadIdx.x % 2, high = threadIdx.x % 4 / 2;
    float2 mine = odd ? second : first, other = odd ? first : second;
    mine.x = __fadd_rn(mine.x, __shfl_xor_sync(0xFFFFFFFFu, other.x, 1));
    mine.y = __fadd_rn(mine.y, __shfl_xor_sync(0xFFFFFFFFu, other.y, 1));
    return __fadd_rn(high ? mine.y : mine.x,
                     __shfl_xor_sync(0xFFFFFFFFu, high ? mine.x : mine.y, 2));
}

/* A page against the rows of a run; page, slot: the first of the page and the lane's own. What is
 * worked out here is as much as half of the work: whatever holds for the run is taken out of the
 * loop. */
template <int HEADS>
static __device__ __forceinline__ void
score_page(const krn_cuda_scores_params &p, const many_scores<HEADS> &s, const uint32_t keys[4][4],
           float scale, const page_walk &run, uint32_t page, uint32_t slot)
{
    constexpr uint32_t apart = HEADS * 128 / 16; /* of rows in descriptors */
    uint32_t q = threadIdx.x % 4, end = __shfl_sync(0xFFFFFFFFu, run.end, 0);
    uint32_t first_row = __shfl_sync(0xFFFFFFFFu, run.first, 0);
    uint32_t queries = __shfl_sync(0xFFFFFFFFu, (uint32_t)mma_operand(s.queries), 0);
    bool whole = page + PAGE_TOKENS <= run.seen;
    float *to = p.scores + (size_t)(blockIdx.y * ROWS + first_row + q % 2) * p.stride + slot;
    for (uint32_t r = first_row; r < end; r += 2) {
        uint32_t second = min(r + 1, end - 1), mine = r + q % 2;
        float d[2][HEADS / 2];
        mma_pin<HEADS / 2>(d[0]);
        mma_pin<HEADS / 2>(d[1]);
        mma_fence();
        multiply_keys<HEADS>(d[0], keys, queries + r * apart);
        multiply_keys<HEADS>(d[1], keys, queries + second * apart);
        mma_wait<1>();
        mma_pin<HEADS / 2>(d[0]);
        float2 sums = lane_sums<HEADS>(d[0], s.factors[r][q]);
        mma_wait<0>();
        mma_pin<HEADS / 2>(d[1]);
        float y = __fmul_rn(quad_sums(sums, lane_sums<HEADS>(d[1], s.factors[second][q])), scale);
        if (whole) {
            if (mine < end)
                *to = y;
        } else if (mine < end && slot >= s.rows_at[mine].first && slot <= s.rows_at[mine].slot) {
            *(to - s.rows_at[mine].first) = y;
        }
        to += 2 * (size_t)p.stride;
    }
}

template <int HEADS>
static __device__ __forceinline__ void score_pages(const krn_cuda_scores_params &p,
                                                   const CUtensorMap *map, many_scores<HEADS> &s,
                                                   const scores_tile &tile)
{
    uint32_t t = threadIdx.x % 128, group = threadIdx.x / 128;
    uint32_t key = t / 32 * 16 + t % 32 / 4 + t % 4 / 2 * 8; /* whose score this lane has */
    page_walk walk = {};
    page_copies copies = {};
    if (t == 0) {
        copies_next(p.cache, tile, copies);
        for (uint32_t i = 0; i < STAGES; i++)
            copy_page<HEADS>(p.cache, map, s, tile, copies);
    }
    __syncwarp();
    barrier_wait(&s.ready, 0);
    for (uint32_t n = 0; walk_next(tile, walk); n++) {
        uint32_t stage = n % STAGES, keys[4][4];
        barrier_wait(&s.full[group][stage], n / STAGES % 2);
        load_keys(s.codes[group][stage], keys);
        float scale = s.scales[group][stage][key];
        bar_sync(1 + group, 128);
        if (t == 0)
            copy_page<HEADS>(p.cache, map, s, tile, copies);
        __syncwarp();
        uint32_t page = (tile.from + walk.at) * PAGE_TOKENS;
        score_page<HEADS>(p, s, keys, scale, walk, page, page + key);
    }
}

template <int HEADS>
__global__ void __launch_bounds__(THREADS, 2)
    scores_many_kernel(const __grid_constant__ krn_cuda_scores_params p, uint32_t span,
                       const __grid_constant__ CUtensorMap map)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    many_scores<HEADS> &s = *(many_scores<HEADS> *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    uint32_t first = blockIdx.y * ROWS, t = threadIdx.x, last = 0;
    scores_tile tile = {s.rows_at, min(ROWS, p.rows - first), blockIdx.x * span, span};
    for (uint32_t i = 0; i < tile.rows; i++)
        last = max(last, p.rows_at[first + i].slot);
    if (tile.from > last / PAGE_TOKENS)
        return;
    if (t == 0) {
        for (uint32_t i = 0; i < GROUPS * STAGES; i++)
            barrier_init(&s.full[0][0] + i, 1);
        barrier_init(&s.ready, 1);
        fence_async();
        uint32_t bytes = tile.rows * HEADS * 128;
        barrier_expect(&s.ready, bytes);
        bulk_copy(s.queries, p.queries + (size_t)first * HEADS * 128, bytes, &s.ready);
    }
    if (t < tile.rows)
        s.rows_at[t] = p.rows_at[first + t];
    for (uint32_t i = t; i < tile.rows * HEADS; i += THREADS) {
        uint32_t head = i % HEADS;
        s.factors[i / HEADS][head / 2 % 4][head / 8 * 2 + head % 2] =
            p.factors[(size_t)first * HEADS + i];
    }
    __syncthreads();
    score_pages<HEADS>(p, &map, s, tile);
}

/* ---- host ---- */

template <int HEADS> static int many_launch(const krn_cuda_scores_params *p, cudaStream_t stream)
{
    const int bytes = sizeof(many_scores<HEADS>) + 1024;
    static_assert(sizeof(many_scores<HEADS>) + 1024 <= 113 * 1024, "two CTAs a multiprocessor");
    static const cudaError_t ready =
        cudaFuncSetAttribute((const void *)scores_many_kernel<HEADS>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "scores: %s", cudaGetErrorString(ready));
    const cuuint64_t dims[] = {128, PAGE_TOKENS, PAGES_MOST}, apart[] = {128, p->cache.page_bytes};
    const cuuint32_t box[] = {128, PAGE_TOKENS, 1};
    CUtensorMap map;
    int code = tensor_map_init(&map, "scores", CU_TENSOR_MAP_DATA_TYPE_UINT8,
                               p->cache.base + INDEX_CODES_AT, 3, dims, apart, box,
                               CU_TENSOR_MAP_SWIZZLE_128B);
    if (code != KRN_CUDA_OK)
        return code;
    /* Some six CTAs for each place on the chip, so that the last ones leave little idle. */
    uint32_t pages = (p->slots_max + PAGE_TOKENS - 1) / PAGE_TOKENS;
    uint32_t tiles = (p->rows + ROWS - 1) / ROWS;
    uint64_t span = (uint64_t)pages * tiles / (2 * 132 * 6);
    span = span < SPAN_LEAST ? SPAN_LEAST : span > SPAN_MOST ? SPAN_MOST : span;
    dim3 grid((uint32_t)((pages + span - 1) / span), tiles);
    return launch_in_turn("scores", {grid, THREADS, 1, bytes, stream}, scores_many_kernel<HEADS>,
                          *p, (uint32_t)span, map);
}

KRN_CUDA_LOCAL int krn_cuda_scores_many(const krn_cuda_scores_params *p, cudaStream_t stream)
{
    switch (p->heads) {
    case 8:
        return many_launch<8>(p, stream);
    case 16:
        return many_launch<16>(p, stream);
    case 32:
        return many_launch<32>(p, stream);
    case 64:
        return many_launch<64>(p, stream);
    }
    return krn_cuda_fail(KRN_CUDA_INVALID, "scores: %u heads, not 8, 16, 32 or 64", p->heads);
}
