/* Exact selection of the topk largest scores: ties to the lower position, -0.0 = +0.0, positions
 * ascending. One CTA a row: up to three histograms (11, 11, 10 bits of the ordered key) find the
 * smallest kept key and how many of its equals are kept; then positions are collected in order by
 * block scans. As soon as a histogram says that few enough keys can still be kept, these go to
 * shared memory, and the rest is done there: scores are read twice, three times where many are
 * close, four times where many are equal. Integer arithmetic only: the result is the CPU's. */
#include "kernels/cuda/launch.cuh"

#define THREADS 1024
#define WARPS   (THREADS / 32)
#define BINS    2048

#define GATHERED 8192u /* keys that fit in shared memory */

struct topk_scratch {
    uint32_t bins[BINS];
    uint32_t warps[WARPS];
    uint32_t bin, above, in_bin; /* of a search */
    alignas(16) uint32_t keys[GATHERED];
    uint32_t positions[GATHERED];
};

/* Sum over the threads before this one; out_total: over all. */
static __device__ __forceinline__ uint32_t scan(uint32_t x, uint32_t *warps, uint32_t *out_total)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
#pragma unroll
    for (int far = 1; far < 32; far *= 2) {
        uint32_t other = __shfl_up_sync(0xFFFFFFFFu, sum, far);
        sum += lane >= far ? other : 0;
    }
    __syncthreads(); /* the last call's readers are done */
    if (lane == 31)
        warps[warp] = sum;
    __syncthreads();
    uint32_t w = warps[lane], before = w;
#pragma unroll
    for (int far = 1; far < 32; far *= 2) {
        uint32_t other = __shfl_up_sync(0xFFFFFFFFu, before, far);
        before += lane >= far ? other : 0;
    }
    *out_total = __shfl_sync(0xFFFFFFFFu, before, 31);
    return sum - x + __shfl_sync(0xFFFFFFFFu, before - w, warp);
}

/* The bin, from the top, in which the need-th largest lies; above: how many lie over it. */
static __device__ __forceinline__ void find_bin(topk_scratch &s, uint32_t need)
{
    uint32_t high = BINS - 1 - 2 * threadIdx.x, total;
    uint32_t a = s.bins[high], b = s.bins[high - 1];
    uint32_t before = scan(a + b, s.warps, &total);
    if (before < need && before + a >= need) {
        s.bin = high;
        s.above = before;
        s.in_bin = a;
    } else if (before + a < need && before + a + b >= need) {
        s.bin = high - 1;
        s.above = before + a;
        s.in_bin = b;
    }
    __syncthreads();
}

/* Keys in the order of their positions: of all scores, or of those gathered. Four at once, i a
 * multiple of 4; past the count: any. */
struct all_keys {
    const float *scores;
    uint32_t count, first;
    __device__ __forceinline__ void at(uint32_t i, uint32_t *key) const
    {
        float4 four = *(const float4 *)(scores + i);
        key[0] = ordered(four.x), key[1] = ordered(four.y);
        key[2] = ordered(four.z), key[3] = ordered(four.w);
    }
    __device__ __forceinline__ uint32_t position(uint32_t i) const
    {
        return first + i;
    }
};
struct gathered_keys {
    const uint32_t *keys, *positions;
    uint32_t count;
    __device__ __forceinline__ void at(uint32_t i, uint32_t *key) const
    {
        uint4 four = *(const uint4 *)(keys + i);
        key[0] = four.x, key[1] = four.y, key[2] = four.z, key[3] = four.w;
    }
    __device__ __forceinline__ uint32_t position(uint32_t i) const
    {
        return positions[i];
    }
};

/* What is known of the smallest kept key after a histogram: its upper bits, how many keys with
 * these bits are kept, and how many there are. */
struct topk_limit {
    uint32_t bits, need, count;
    int shift; /* the bits above; 32 at first */
};

static __device__ __forceinline__ bool key_is_nan(uint32_t key)
{
    return key > 0xFF800000u || key < 0x007FFFFFu;
}

/* Histogram of (key >> shift) % (mask + 1) over keys whose upper bits match; NaN among them: true.
 * A thread's loads of one turn are under way together. */
template <int TOGETHER, typename K>
static __device__ __forceinline__ bool histogram(topk_scratch &s, const K &keys,
                                                 const topk_limit &limit, int shift, uint32_t mask)
{
    constexpr uint32_t together = TOGETHER;
    bool bad = false;
    s.bins[threadIdx.x] = s.bins[threadIdx.x + THREADS] = 0;
    __syncthreads();
    for (uint32_t from = threadIdx.x * 4; from < keys.count; from += THREADS * 4 * together) {
        uint32_t key[together][4] = {};
#pragma unroll
        for (uint32_t u = 0; u < together; u++)
            if (from + u * THREADS * 4 < keys.count)
                keys.at(from + u * THREADS * 4, key[u]);
#pragma unroll
        for (uint32_t j = 0; j < together * 4; j++) {
            uint32_t x = key[j / 4][j % 4];
            if (from + j / 4 * THREADS * 4 + j % 4 >= keys.count ||
                (limit.shift < 32 && x >> limit.shift != limit.bits))
                continue;
            bad = bad || key_is_nan(x);
            atomicAdd(&s.bins[(x >> shift) & mask], 1u);
        }
    }
    __syncthreads();
    return bad;
}

template <int TOGETHER, typename K>
static __device__ __forceinline__ bool narrow(topk_scratch &s, const K &keys, topk_limit &limit)
{
    int bits = limit.shift == 10 ? 10 : 11, shift = limit.shift - bits;
    bool bad = histogram<TOGETHER>(s, keys, limit, shift, (1u << bits) - 1);
    find_bin(s, limit.need);
    limit.bits = limit.shift < 32 ? limit.bits << bits | s.bin : s.bin;
    limit.need -= s.above;
    limit.count = s.in_bin;
    limit.shift = shift;
    return bad;
}

/* Positions whose key is over the limit, and the first of those at it. */
template <typename K>
static __device__ __forceinline__ void collect(topk_scratch &s, const K &keys,
                                               const topk_limit &limit, uint32_t *list)
{
    uint32_t over = 0, same = 0; /* before this tile */
    for (uint32_t from = 0; from < keys.count; from += THREADS * 4) {
        uint32_t i = from + threadIdx.x * 4, key[4] = {}, mine = 0, total;
        if (i < keys.count)
            keys.at(i, key);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            key[j] = i + j < keys.count ? key[j] : 0;
            mine += key[j] > limit.bits                          ? 1u
                    : key[j] == limit.bits && i + j < keys.count ? 0x10000u
                                                                 : 0u;
        }
        uint32_t before = scan(mine, s.warps, &total);
        uint32_t o = over + (before & 0xFFFF), e = same + (before >> 16);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (key[j] > limit.bits) {
                list[o + min(e, limit.need)] = keys.position(i + j);
                o++;
            } else if (key[j] == limit.bits && i + j < keys.count) {
                if (e < limit.need)
                    list[o + e] = keys.position(i + j);
                e++;
            }
        }
        over += total & 0xFFFF;
        same += total >> 16;
    }
}

/* Keys from `least` on and their positions, in order, to shared memory; there is room for them. A
 * warp takes TOGETHER times 128 scores at a time, a lane 4 of each 128. least may be 0, what is
 * past the end not. */
template <int TOGETHER>
static __device__ __forceinline__ gathered_keys gather(topk_scratch &s, const all_keys &all,
                                                       uint32_t least)
{
    constexpr uint32_t bits = 32 / TOGETHER, mask = (1u << bits) - 1; /* of a count, at most 128 */
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, done = 0;
    for (uint32_t from = 0; from < all.count; from += THREADS * 4 * TOGETHER) {
        uint32_t first = from + warp * 128 * TOGETHER + lane * 4, key[TOGETHER][4] = {};
        uint32_t mine = 0, kept = 0, here = 0, total;
#pragma unroll
        for (uint32_t u = 0; u < TOGETHER; u++)
            if (first + u * 128 < all.count)
                all.at(first + u * 128, key[u]);
#pragma unroll
        for (uint32_t j = 0; j < 4 * TOGETHER; j++) {
            bool keep = first + j / 4 * 128 + j % 4 < all.count && key[j / 4][j % 4] >= least;
            kept |= (keep ? 1u : 0u) << j;
            mine += (keep ? 1u : 0u) << j / 4 * bits;
        }
        uint32_t sum = mine;
#pragma unroll
        for (int far = 1; far < 32; far *= 2) {
            uint32_t other = __shfl_up_sync(0xFFFFFFFFu, sum, far);
            sum += lane >= far ? other : 0;
        }
        uint32_t all_lanes = __shfl_sync(0xFFFFFFFFu, sum, 31);
#pragma unroll
        for (uint32_t u = 0; u < TOGETHER; u++)
            here += all_lanes >> u * bits & mask;
        uint32_t at = done + scan(lane == 31 ? here : 0, s.warps, &total);
        at = __shfl_sync(0xFFFFFFFFu, at, 31); /* before this warp */
        sum -= mine;
#pragma unroll
        for (uint32_t u = 0; u < TOGETHER; u++) {
            uint32_t to = at + (sum >> u * bits & mask);
            at += all_lanes >> u * bits & mask;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                if ((kept >> (u * 4 + j) & 1) == 0)
                    continue;
                s.keys[to] = key[u][j];
                s.positions[to++] = all.position(first + u * 128 + j);
            }
        }
        done += total;
    }
    __syncthreads();
    return {s.keys, s.positions, done};
}

/* TOGETHER: loads of a thread that are under way together. 4 where a row has a multiprocessor for
 * itself, 2 where two rows share one. */
template <int TOGETHER>
static __global__ void __launch_bounds__(THREADS, TOGETHER == 4 ? 1 : 2)
    topk_kernel(const krn_cuda_topk_params p)
{
    in_turn();
    extern __shared__ uint8_t raw[];
    topk_scratch &s = *(topk_scratch *)raw;
    uint32_t r = blockIdx.x;
    krn_cuda_row at = p.rows_at[r];
    uint32_t count = at.slot + 1 - at.first;
    uint32_t *list = p.lists + (size_t)r * p.list_stride;
    if (threadIdx.x == 0)
        p.list_counts[r] = count < p.topk ? count : p.topk;
    if (count <= p.topk) { /* all of them, unscored */
        for (uint32_t i = threadIdx.x; i < count; i += THREADS)
            list[i] = at.first + i;
        return;
    }
    all_keys all = {p.scores + (size_t)r * p.stride, count, at.first};
    topk_limit limit = {0, p.topk, count, 32};
    if (count <= GATHERED) { /* they all fit */
        float *here = (float *)s.keys;
        for (uint32_t i = threadIdx.x * 4; i < count; i += THREADS * 4)
            *(float4 *)(here + i) = *(const float4 *)(all.scores + i);
        __syncthreads();
        all_keys few = {here, count, at.first};
        report(p.fault, narrow<TOGETHER>(s, few, limit));
        while (limit.shift > 0)
            narrow<TOGETHER>(s, few, limit);
        collect(s, few, limit, list);
        return;
    }
    report(p.fault, narrow<TOGETHER>(s, all, limit));
    while (limit.shift > 0 && p.topk - limit.need + limit.count > GATHERED)
        narrow<TOGETHER>(s, all, limit);
    if (limit.shift == 0) {
        collect(s, all, limit, list);
        return;
    }
    gathered_keys few = gather<TOGETHER>(s, all, limit.bits << limit.shift);
    while (limit.shift > 0)
        narrow<TOGETHER>(s, few, limit);
    collect(s, few, limit, list);
}

template <int TOGETHER> static int topk_launch(const krn_cuda_topk_params *p, cudaStream_t stream)
{
    const int bytes = sizeof(topk_scratch);
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)topk_kernel<TOGETHER>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "topk: %s", cudaGetErrorString(ready));
    return launch_in_turn("topk", {dim3(p->rows), THREADS, 1, bytes, stream}, topk_kernel<TOGETHER>,
                          *p);
}

KRN_CUDA_LOCAL int krn_cuda_topk(const krn_cuda_topk_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->topk > 0 && p->list_stride >= p->topk && p->stride % 4 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return p->rows <= 132 ? topk_launch<4>(p, (cudaStream_t)stream)
                          : topk_launch<2>(p, (cudaStream_t)stream);
}
