/* Router: sigmoid gate with bias, groups, exact choice with ties to the lower index, weights; and
 * the sort of assignments by expert. A warp owns a row. Same operations in the same order as
 * kernels/cpu/moe.c: the bits are the CPU's. */
#include "kernels/cuda/launch.cuh"

#define EXPERTS_MAX 512
#define GROUPS_MAX  64
#define CHOSEN_MAX  32
#define ROWS_A_CTA  4
#define PLACE_WARPS 8

struct route_scratch {
    float sigmoid[EXPERTS_MAX], biased[EXPERTS_MAX], group[GROUPS_MAX];
    uint32_t chosen[EXPERTS_MAX / 32], kept[GROUPS_MAX / 32];
};

static __device__ __forceinline__ bool marked(const uint32_t *marks, uint32_t i)
{
    return (marks[i / 32] >> (i % 32)) & 1;
}

/* Marks the `keep` largest of values [count] that are not marked yet; ties: the lower index. */
static __device__ __forceinline__ void mark_largest(const float *values, uint32_t count,
                                                    uint32_t keep, uint32_t *marks)
{
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t i = 0; i < keep; i++) {
        uint64_t best = 0; /* ordered value, then the complement of the index */
        for (uint32_t j = lane; j < count; j += 32) {
            uint64_t key = (uint64_t)ordered(values[j]) << 32 | (0xFFFFFFFFu - j);
            if (!marked(marks, j) && key > best)
                best = key;
        }
        for (int far = 16; far > 0; far /= 2) {
            uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, best, far);
            best = other > best ? other : best;
        }
        uint32_t index = 0xFFFFFFFFu - (uint32_t)best;
        __syncwarp();
        if (lane == 0)
            marks[index / 32] |= 1u << (index % 32);
        __syncwarp();
    }
}

static __device__ __forceinline__ float two_largest(const float *values, uint32_t count)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        if (values[i] > first) {
            second = first;
            first = values[i];
        } else if (values[i] > second) {
            second = values[i];
        }
    }
    return __fadd_rn(first, second);
}

/* The marked experts ascending, and their weights. */
static __device__ __forceinline__ void write_chosen(const krn_cuda_route_params &p,
                                                    const route_scratch &s, uint32_t r)
{
    uint32_t *experts = p.out_experts + (size_t)r * p.chosen;
    float *weights = p.out_weights + (size_t)r * p.chosen;
    float sum = 0.0f;
    uint32_t count = 0;
    for (uint32_t word = 0; word < EXPERTS_MAX / 32; word++)
        for (uint32_t bits = s.chosen[word]; bits; bits &= bits - 1) {
            uint32_t e = word * 32 + __ffs(bits) - 1;
            experts[count++] = e;
            sum = __fadd_rn(sum, s.sigmoid[e]);
        }
    for (uint32_t i = 0; i < count; i++) {
        float w = s.sigmoid[experts[i]];
        weights[i] = __fmul_rn(p.normalise ? __fdiv_rn(w, sum) : w, p.scaling);
    }
}

static __global__ void __launch_bounds__(ROWS_A_CTA * 32)
    route_kernel(const krn_cuda_route_params p)
{
    in_turn();
    __shared__ route_scratch scratch[ROWS_A_CTA];
    route_scratch &s = scratch[threadIdx.x / 32];
    uint32_t r = blockIdx.x * ROWS_A_CTA + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= p.rows)
        return;
    uint32_t size = p.experts / p.groups;
    bool bad = false;
    for (uint32_t e = lane; e < p.experts; e += 32) {
        float z = p.logits[(size_t)r * p.experts + e];
        s.sigmoid[e] = __frcp_rn(__fadd_rn(1.0f, exp_rounded(-z)));
        s.biased[e] = __fadd_rn(s.sigmoid[e], p.bias[e]);
        bad = bad || isnan(s.biased[e]);
    }
    report(p.fault, bad);
    if (lane < EXPERTS_MAX / 32)
        s.chosen[lane] = 0;
    if (lane < GROUPS_MAX / 32)
        s.kept[lane] = 0;
    __syncwarp();
    for (uint32_t g = lane; g < p.groups; g += 32)
        s.group[g] = two_largest(s.biased + g * size, size);
    __syncwarp();
    mark_largest(s.group, p.groups, p.groups_kept, s.kept);
    for (uint32_t e = lane; e < p.experts; e += 32)
        if (!marked(s.kept, e / size))
            s.biased[e] = -INFINITY;
    __syncwarp();
    mark_largest(s.biased, p.experts, p.chosen, s.chosen);
    if (lane == 0)
        write_chosen(p, s, r);
}

KRN_CUDA_LOCAL int krn_cuda_route(const krn_cuda_route_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->experts > 0 && p->experts <= EXPERTS_MAX);
    KRN_CUDA_ENSURE(p->groups > 0 && p->groups <= GROUPS_MAX && p->experts % p->groups == 0);
    KRN_CUDA_ENSURE(p->groups_kept > 0 && p->groups_kept <= p->groups);
    KRN_CUDA_ENSURE(p->chosen > 0 && p->chosen <= CHOSEN_MAX);
    KRN_CUDA_ENSURE(p->groups_kept * (p->experts / p->groups) >= p->chosen);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    uint32_t blocks = (p->rows + ROWS_A_CTA - 1) / ROWS_A_CTA;
    return launch_in_turn("route", {dim3(blocks), ROWS_A_CTA * 32, 1, 0, (cudaStream_t)stream},
                          route_kernel, *p);
}

/* ---- sort by expert ---- */

static __global__ void __launch_bounds__(1024) count_kernel(const krn_cuda_group_params p)
{
    in_turn();
    __shared__ uint32_t counts[EXPERTS_MAX];
    for (uint32_t e = threadIdx.x; e < EXPERTS_MAX; e += 1024)
        counts[e] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.rows * p.chosen; i += 1024)
        atomicAdd(&counts[p.experts_chosen[i]], 1u);
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < p.experts; e += 1024)
        p.out_counts[e] = counts[e];
    if (threadIdx.x == 0) {
        uint32_t at = 0;
        for (uint32_t e = 0; e < p.experts; e++) {
            p.out_offsets[e] = at;
            at += (counts[e] + p.align - 1) / p.align * p.align;
        }
        p.out_offsets[p.experts] = at;
    }
}

/* A block owns an expert; its warps count, then place, a run of the assignments each, in order. */
static __global__ void __launch_bounds__(PLACE_WARPS * 32)
    place_kernel(const krn_cuda_group_params p)
{
    in_turn();
    __shared__ uint32_t counts[PLACE_WARPS];
    uint32_t e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t total = p.rows * p.chosen,
             run = (total + PLACE_WARPS * 32 - 1) / (PLACE_WARPS * 32) * 32;
    uint32_t first = warp * run, last = min(first + run, total), count = 0;
#pragma unroll 4
    for (uint32_t i = first; i < last; i += 32)
        count +=
            __popc(__ballot_sync(0xFFFFFFFFu, i + lane < last && p.experts_chosen[i + lane] == e));
    if (lane == 0)
        counts[warp] = count;
    __syncthreads();
    uint32_t at = p.out_offsets[e], end = p.out_offsets[e + 1], behind = at;
    for (uint32_t w = 0; w < PLACE_WARPS; w++) {
        at += w < warp ? counts[w] : 0;
        behind += counts[w];
    }
#pragma unroll 4
    for (uint32_t i = first; i < last; i += 32) {
        bool mine = i + lane < last && p.experts_chosen[i + lane] == e;
        uint32_t mask = __ballot_sync(0xFFFFFFFFu, mine);
        uint32_t place = at + __popc(mask & ((1u << lane) - 1));
        if (mine) {
            p.out_rows[place] = (i + lane) / p.chosen;
            p.out_places[i + lane] = place;
        }
        at += __popc(mask);
    }
    if (e == p.experts - 1) /* all behind it are gaps too */
        end = (total + p.experts * (p.align - 1) + p.align - 1) / p.align * p.align;
    for (uint32_t place = behind + threadIdx.x; place < end; place += PLACE_WARPS * 32)
        p.out_rows[place] = UINT32_MAX;
}

KRN_CUDA_LOCAL int krn_cuda_route_group(const krn_cuda_group_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->experts > 0 && p->experts <= EXPERTS_MAX);
    KRN_CUDA_ENSURE(p->align == 1 || p->align == 8);
    cudaStream_t s = (cudaStream_t)stream;
    int code = launch_in_turn("route_group", {dim3(1), 1024, 1, 0, s}, count_kernel, *p);
    if (code != KRN_CUDA_OK)
        return code;
    return launch_in_turn("route_group", {dim3(p->experts), PLACE_WARPS * 32, 1, 0, s},
                          place_kernel, *p);
}
