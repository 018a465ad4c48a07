/* Exact selection of the topk largest scores: ties to the lower position, -0.0 = +0.0, positions
 * ascending. One CTA a row: three histogram passes (11, 11, 10 bits of the ordered key) find the
 * smallest kept key and how many of its equals are kept, a fourth pass collects in order by block
 * scans. Integer arithmetic only: the result is the CPU's. Reads each score four times, from L2
 * but for the first. */
#include "kernels/cuda/launch.cuh"

#define THREADS 1024
#define WARPS   (THREADS / 32)
#define BINS    2048

struct topk_scratch {
    uint32_t bins[BINS];
    uint32_t warps[WARPS];
    uint32_t bin, above; /* of a search */
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
    } else if (before + a < need && before + a + b >= need) {
        s.bin = high - 1;
        s.above = before + a;
    }
    __syncthreads();
}

/* Histogram of (key >> shift) % (mask + 1) over keys whose upper bits match; NaN: returns true. */
static __device__ __forceinline__ bool histogram(topk_scratch &s, const float *scores,
                                                 uint32_t count, uint32_t match, int match_shift,
                                                 int shift, uint32_t mask)
{
    bool bad = false;
    s.bins[threadIdx.x] = s.bins[threadIdx.x + THREADS] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x * 4; i < count; i += THREADS * 4) {
        float4 four = *(const float4 *)(scores + i);
        const float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t key = ordered(x[j]);
            if (i + j >= count || (match_shift < 32 && key >> match_shift != match))
                continue;
            bad = bad || isnan(x[j]);
            atomicAdd(&s.bins[(key >> shift) & mask], 1u);
        }
    }
    __syncthreads();
    return bad;
}

/* Positions whose key is over limit, and the first `equals` of those at it. */
static __device__ __forceinline__ void collect(topk_scratch &s, const float *scores, uint32_t count,
                                               uint32_t limit, uint32_t equals, uint32_t base,
                                               uint32_t *list)
{
    uint32_t over = 0, same = 0; /* before this tile */
    for (uint32_t from = 0; from < count; from += THREADS * 4) {
        uint32_t i = from + threadIdx.x * 4, key[4], mine = 0, total;
        float4 four = make_float4(0, 0, 0, 0);
        if (i < count)
            four = *(const float4 *)(scores + i);
        const float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            key[j] = i + j < count ? ordered(x[j]) : 0;
            mine += key[j] > limit ? 1u : key[j] == limit && i + j < count ? 0x10000u : 0u;
        }
        uint32_t before = scan(mine, s.warps, &total);
        uint32_t o = over + (before & 0xFFFF), e = same + (before >> 16);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (key[j] > limit) {
                list[o + min(e, equals)] = base + i + j;
                o++;
            } else if (key[j] == limit && i + j < count) {
                if (e < equals)
                    list[o + e] = base + i + j;
                e++;
            }
        }
        over += total & 0xFFFF;
        same += total >> 16;
    }
}

static __global__ void __launch_bounds__(THREADS) topk_kernel(const krn_cuda_topk_params p)
{
    in_turn();
    __shared__ topk_scratch s;
    uint32_t r = blockIdx.x;
    krn_cuda_row at = p.rows_at[r];
    uint32_t count = at.slot + 1 - at.first;
    const float *scores = p.scores + (size_t)r * p.stride;
    uint32_t *list = p.lists + (size_t)r * p.list_stride;
    if (threadIdx.x == 0)
        p.list_counts[r] = count < p.topk ? count : p.topk;
    if (count <= p.topk) { /* all of them, unscored */
        for (uint32_t i = threadIdx.x; i < count; i += THREADS)
            list[i] = at.first + i;
        return;
    }
    uint32_t need = p.topk;
    report(p.fault, histogram(s, scores, count, 0, 32, 21, BINS - 1));
    find_bin(s, need);
    uint32_t limit = s.bin;
    need -= s.above;
    histogram(s, scores, count, limit, 21, 10, BINS - 1);
    find_bin(s, need);
    limit = limit << 11 | s.bin;
    need -= s.above;
    histogram(s, scores, count, limit, 10, 0, 1023);
    find_bin(s, need);
    limit = limit << 10 | s.bin;
    need -= s.above;
    collect(s, scores, count, limit, need, at.first, list);
}

KRN_CUDA_LOCAL int krn_cuda_topk(const krn_cuda_topk_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->topk > 0 && p->list_stride >= p->topk && p->stride % 4 == 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return launch_in_turn("topk", {dim3(p->rows), THREADS, 1, 0, (cudaStream_t)stream}, topk_kernel,
                          *p);
}
