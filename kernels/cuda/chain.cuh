/* One chain of additions in double, s = s + x[0] + x[1] + .., made by a cluster bit for bit.
 *
 * While a sum stays between two powers of two, its last bit has one worth: adding a term adds a
 * whole number of them, the same for every sum but for terms that lie in the middle between two
 * numbers, which go to the even sum. So a run of terms is a pair of whole numbers, what it adds to
 * an even and to an odd sum, and two runs side by side are one. Where a run leaves the binade, as
 * the exact sum before it tells, its parts are taken, in the end the terms themselves. The binade
 * that a run starts in is a guess from sums in another order: a wrong guess costs time only.
 * Private to kernels/cuda. */
#ifndef KERNELS_CUDA_CHAIN_CUH
#define KERNELS_CUDA_CHAIN_CUH

#include "kernels/cuda/cluster.cuh"

#define CHAIN_LEAF  32u                            /* terms of a thread */
#define CHAIN_RUNS  (CLUSTER_CTAS * CLUSTER_WARPS) /* of 32 leaves */
#define CHAIN_PITCH (CHAIN_LEAF + 1)               /* so that leaves lie in banks of their own */

#define BINADE_ANY  INT32_MIN /* nothing is added */
#define BINADE_NONE INT32_MAX /* by its parts only */

struct chain_run {
    uint64_t adds[2]; /* last bits, to an even and to an odd sum */
    int32_t binade;   /* of the sum before and after */
};

struct chain_smem {
    float values[CLUSTER_THREADS * CHAIN_PITCH]; /* leaf t: [t * CHAIN_PITCH ..] */
    chain_run leaves[CLUSTER_THREADS];
    cluster_smem cluster;
    double sum;
    /* of the first CTA */
    chain_run runs[CHAIN_RUNS];
    double ends[CHAIN_RUNS]; /* the sum behind each run */
};

/* ---- runs ---- */

static __device__ __forceinline__ int32_t binade_of(double sum)
{
    return (int32_t)(__double_as_longlong(sum) >> 52) - 1023;
}

/* Of the thread's leaf, if the sum before it is about `start`. */
static __device__ chain_run leaf_run(const float *leaf, double start)
{
    chain_run run = {{0, 0}, BINADE_ANY};
    const double scale =
        __longlong_as_double((long long)(start > 0 ? 1023 + 52 - binade_of(start) : 1023) << 52);
#pragma unroll 4
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        float term = leaf[i];
        if (term == 0.0f || run.binade == BINADE_NONE)
            continue;
        double bits = __dmul_rn((double)term, scale); /* exact: a power of two */
        run.binade = start > 0 && bits < 0x1p53 ? binade_of(start) : BINADE_NONE;
        double whole = floor(bits), rest = __dsub_rn(bits, whole);
        uint64_t add = (uint64_t)whole + (rest > 0.5);
        uint64_t odd = rest == 0.5; /* the even neighbour */
        run.adds[0] += add + (odd & (run.adds[0] + add));
        run.adds[1] += add + (odd & (run.adds[1] + add + 1));
    }
    if (run.adds[0] >> 53 || run.adds[1] >> 53)
        run.binade = BINADE_NONE;
    return run;
}

static __device__ __forceinline__ chain_run joined(const chain_run &a, const chain_run &b)
{
    chain_run c;
    c.adds[0] = a.adds[0] + (a.adds[0] & 1 ? b.adds[1] : b.adds[0]);
    c.adds[1] = a.adds[1] + (a.adds[1] & 1 ? b.adds[0] : b.adds[1]);
    c.binade = a.binade == BINADE_ANY                           ? b.binade
               : b.binade == BINADE_ANY || a.binade == b.binade ? a.binade
                                                                : BINADE_NONE;
    return c;
}

/* false, and nothing is added: the sum is not in the run's binade, or leaves it. */
static __device__ __forceinline__ bool add_run(double &sum, const chain_run &run)
{
    const uint64_t fraction = (1ull << 52) - 1;
    if (run.binade == BINADE_ANY)
        return true;
    if (run.binade != binade_of(sum))
        return false;
    uint64_t bits = (uint64_t)__double_as_longlong(sum);
    uint64_t units = (bits & fraction) + (1ull << 52) + (bits & 1 ? run.adds[1] : run.adds[0]);
    if (units >> 53)
        return false;
    sum = __longlong_as_double((long long)((bits & ~fraction) | (units & fraction)));
    return true;
}

static __device__ __forceinline__ chain_run run_up(const chain_run &run, uint32_t far)
{
    return {{__shfl_up_sync(0xFFFFFFFFu, run.adds[0], far),
             __shfl_up_sync(0xFFFFFFFFu, run.adds[1], far)},
            __shfl_up_sync(0xFFFFFFFFu, run.binade, far)};
}

/* Adds the runs of lanes from..31, each lane one, as far as they can be added and the sum stays
 * within the limit; returns the first lane that is stuck, or 32. behind: the sum behind the lane,
 * where it was added. */
static __device__ uint32_t add_lanes(const chain_run &mine, uint32_t from, double &sum,
                                     double limit, double &behind)
{
    uint32_t lane = threadIdx.x % 32;
    const chain_run nothing = {{0, 0}, BINADE_ANY};
    chain_run upto = lane < from ? nothing : mine;
#pragma unroll
    for (uint32_t far = 1; far < 32; far *= 2) {
        chain_run other = run_up(upto, far);
        if (lane >= far)
            upto = joined(other, upto);
    }
    double after = sum;
    bool added = add_run(after, upto) && after <= limit;
    uint32_t stuck = ~__ballot_sync(0xFFFFFFFFu, added);
    uint32_t first = stuck ? (uint32_t)__ffs((int)stuck) - 1 : 32;
    if (lane >= from && lane < first)
        behind = after;
    if (first > from)
        sum = __shfl_sync(0xFFFFFFFFu, after, first - 1);
    return first;
}

/* Adds a leaf's terms one by one; returns the first that lifts the sum over the limit, or 32. */
static __device__ uint32_t add_terms(float term, double &sum, double limit)
{
    double mine = 0;
#pragma unroll
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        sum = __dadd_rn(sum, (double)__shfl_sync(0xFFFFFFFFu, term, i));
        mine = threadIdx.x % 32 == i ? sum : mine;
    }
    uint32_t over = __ballot_sync(0xFFFFFFFFu, mine > limit);
    return over ? (uint32_t)__ffs((int)over) - 1 : 32;
}

/* Adds run `index` by its leaves; a whole warp. Stops at the term that lifts the sum over the limit
 * and returns its place among all leaves' terms; else UINT32_MAX. */
static __device__ uint32_t add_leaves(chain_smem &s, uint32_t index, double &sum, double limit)
{
    uint32_t lane = threadIdx.x % 32, rank = index / CLUSTER_WARPS;
    uint32_t first = index % CLUSTER_WARPS * 32;
    const chain_run mine = *in_peer(&s.leaves[first + lane], rank);
    double behind;
    for (uint32_t leaf = 0; leaf < 32; leaf++) {
        leaf = add_lanes(mine, leaf, sum, limit, behind);
        if (leaf == 32)
            break;
        float term = *in_peer(&s.values[(first + leaf) * CHAIN_PITCH + lane], rank);
        uint32_t over = add_terms(term, sum, limit);
        if (over < 32)
            return (rank * CLUSTER_THREADS + first + leaf) * CHAIN_LEAF + over;
    }
    return UINT32_MAX;
}

/* First warp of the first CTA: adds all runs, notes the sum behind each. */
static __device__ double add_all(chain_smem &s)
{
    uint32_t lane = threadIdx.x % 32;
    double sum = 0;
    for (uint32_t group = 0; group < CHAIN_RUNS; group += 32) {
        const chain_run mine = s.runs[group + lane];
        double behind = 0;
        for (uint32_t run = 0; run < 32; run++) {
            run = add_lanes(mine, run, sum, INFINITY, behind);
            if (run == 32)
                break;
            add_leaves(s, group + run, sum, INFINITY);
            behind = lane == run ? sum : behind;
        }
        s.ends[group + lane] = behind;
    }
    __syncwarp();
    return sum;
}

/* The chain's sum over all values, in all threads; leaves and runs stay for chain_find. */
static __device__ double chain_sum(chain_smem &s, uint32_t &turn)
{
    const float *leaf = s.values + threadIdx.x * CHAIN_PITCH;
    double mine = 0;
    for (uint32_t i = 0; i < CHAIN_LEAF; i++)
        mine += (double)leaf[i];
    uint64_t total;
    double start = __longlong_as_double((long long)cluster_before(
        s.cluster, turn, (uint64_t)__double_as_longlong(mine), f64_add, total));
    chain_run run = leaf_run(leaf, start);
    s.leaves[threadIdx.x] = run;
    for (uint32_t far = 1; far < 32; far *= 2) {
        chain_run other = {{__shfl_down_sync(0xFFFFFFFFu, run.adds[0], far),
                            __shfl_down_sync(0xFFFFFFFFu, run.adds[1], far)},
                           __shfl_down_sync(0xFFFFFFFFu, run.binade, far)};
        if (threadIdx.x % (2 * far) == 0)
            run = joined(run, other);
    }
    if (threadIdx.x % 32 == 0)
        *in_peer(&s.runs[rank_in_cluster() * CLUSTER_WARPS + threadIdx.x / 32], 0) = run;
    cluster_sync();
    if (rank_in_cluster() == 0 && threadIdx.x < 32) {
        double sum = add_all(s);
        if (threadIdx.x < CLUSTER_CTAS)
            *in_peer(&s.sum, threadIdx.x) = sum;
    }
    cluster_sync();
    return s.sum;
}

/* First warp of the first CTA: the place of the first term at which the chain's sum is over the
 * limit; the last one that is not zero if there is none. */
static __device__ uint32_t chain_find(chain_smem &s, double limit)
{
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t first = 0; first < CHAIN_RUNS; first += 32) {
        uint32_t over = __ballot_sync(0xFFFFFFFFu, s.ends[first + lane] > limit);
        if (over == 0)
            continue;
        uint32_t index = first + (uint32_t)__ffs(over) - 1;
        double sum = index > 0 ? s.ends[index - 1] : 0;
        return add_leaves(s, index, sum, limit);
    }
    uint32_t index = CHAIN_RUNS - 1, leaf = 31;
    while (index > 0 && s.runs[index].binade == BINADE_ANY)
        index--;
    uint32_t rank = index / CLUSTER_WARPS, at = index % CLUSTER_WARPS * 32;
    while (leaf > 0 && in_peer(&s.leaves[at + leaf], rank)->binade == BINADE_ANY)
        leaf--;
    float term = *in_peer(&s.values[(at + leaf) * CHAIN_PITCH + lane], rank);
    uint32_t some = __ballot_sync(0xFFFFFFFFu, term > 0.0f);
    return (rank * CLUSTER_THREADS + at + leaf) * CHAIN_LEAF + (some ? 31 - __clz(some) : 0);
}

#endif
