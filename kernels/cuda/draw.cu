/* Draws a token from each row of logits, as docs/SAMPLING.md defines it: changes, softmax, filters,
 * the keyed draw. One answer: every number that decides is the one that the CPU's sampler gets.
 *
 * A cluster of 8 CTAs holds a row in shared memory, 32 ids a thread. exp is the CPU's own
 * polynomial, sums of the softmax and of what is kept are its chains (chain.cuh); sums of
 * probabilities of at least 2^-29 are whole multiples of 2^-52, so top_p finds its end by bisection
 * in any order. Only the sum behind log-probabilities has an order of its own. */
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/operations.cuh"

#define EXACT_LEAST 0x1p-29f

struct draw_smem {
    chain_smem chain;
    krn_cuda_draw_row row;
};

struct draw_state {
    const krn_cuda_draw_params *p;
    draw_smem *s;
    float *leaf; /* the thread's values */
    const float *logits;
    uint32_t turn;
    uint32_t leaves;   /* of a CTA that ids take */
    uint32_t first_id; /* of the CTA's */
};

static __device__ __forceinline__ uint32_t bits_of(float x)
{
    return __float_as_uint(x);
}

/* As the CPU's vectors do it: rounding the result to f32 is rounding the exact exp. */
static __device__ __forceinline__ double exp_wide(double x)
{
    const double terms[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0,
                            1.0 / 3628800.0,    1.0 / 362880.0,    1.0 / 40320.0,
                            1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,
                            1.0 / 24.0,         1.0 / 6.0,         0.5};
    x = x < -200.0 ? -200.0 : x;
    double k = rint(__dmul_rn(x, 0x1.71547652b82fep0));
    double r = __fma_rn(-k, 0x1.62e42fefa39efp-1, x);
    r = __fma_rn(-k, 0x1.abc9e3b39803fp-56, r);
    double p = terms[0];
#pragma unroll
    for (int i = 1; i < 12; i++)
        p = __fma_rn(p, r, terms[i]);
    p = __dadd_rn(__fma_rn(__dmul_rn(r, r), p, r), 1.0);
    return __dmul_rn(p, __longlong_as_double((long long)(1023 + (int)k) << 52));
}

/* ---- logits ---- */

static __device__ float changed(float logit, const krn_cuda_edit &edit,
                                const krn_cuda_draw_row &row)
{
    if (edit.kinds & KRN_CUDA_EDIT_REPEATED)
        logit = logit > 0.0f ? fminf(__fdiv_rn(logit, row.repetition), 0x1.fffffep127f)
                             : __fmul_rn(logit, row.repetition);
    if (edit.count > 0)
        logit =
            __fsub_rn(logit, __fadd_rn(__fmul_rn((float)edit.count, row.frequency), row.presence));
    if (edit.kinds & KRN_CUDA_EDIT_BIAS)
        logit = __fadd_rn(logit, edit.bias);
    return edit.kinds & KRN_CUDA_EDIT_BARRED ? -INFINITY : logit;
}

/* The row's part into shared memory, penalised, biased and masked. */
static __device__ void load_row(const draw_state &d)
{
    draw_smem &s = *d.s;
    const krn_cuda_draw_params &p = *d.p;
    uint32_t count = d.leaves * CHAIN_LEAF, words = (p.n + 31) / 32;
    uint32_t word = d.first_id / 32 + threadIdx.x;
    bool holds = word < words && threadIdx.x < d.leaves;
    uint32_t barred = holds ? 0 : 0xFFFFFFFFu;
    if (holds && s.row.allowed)
        barred = ~p.allowed[(size_t)(s.row.allowed - 1) * words + word];
    if (holds && p.undefined)
        barred |= p.undefined[word];
    for (uint32_t i = threadIdx.x; i < count; i += CLUSTER_THREADS)
        s.chain.values[i + i / CHAIN_LEAF] =
            d.first_id + i < p.n ? d.logits[d.first_id + i] : -INFINITY;
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < s.row.edit_count; e += CLUSTER_THREADS) {
        krn_cuda_edit edit = p.edits[s.row.edits_at + e];
        uint32_t i = edit.id - d.first_id;
        if (i < count) {
            float *at = &s.chain.values[i + i / CHAIN_LEAF];
            *at = changed(*at, edit, s.row);
        }
    }
    __syncthreads();
    for (uint32_t i = 0; i < CHAIN_LEAF; i++)
        if (barred >> i & 1)
            d.leaf[i] = -INFINITY;
}

/* The highest below `limit`: ordered value, then the complement of the id. */
static __device__ uint64_t highest(draw_state &d, uint64_t limit)
{
    uint32_t id = d.first_id + threadIdx.x * CHAIN_LEAF;
    uint64_t best = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        uint64_t key = (uint64_t)ordered(d.leaf[i]) << 32 | (0xFFFFFFFFu - (id + i));
        best = key < limit && key > best ? key : best;
    }
    best = block_reduce(d.s->chain.cluster, best, u64_max);
    const cluster_pair *told = tell_all(d.s->chain.cluster, d.turn, {best, 0});
    for (uint32_t r = 0; r < CLUSTER_CTAS; r++)
        best = u64_max(best, told[r].a);
    return best;
}

static __device__ __forceinline__ uint32_t id_of(uint64_t key)
{
    return 0xFFFFFFFFu - (uint32_t)key;
}
static __device__ __forceinline__ float value_of(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
}

/* ---- log-probabilities ---- */

/* What they need, while the values are logits still. */
static __device__ void note_logprobs(draw_state &d, uint64_t best, krn_cuda_drawn &out)
{
    double sum = 0;
    float max = value_of(best);
    for (uint32_t i = 0; i < CHAIN_LEAF; i++)
        if (d.leaf[i] > -INFINITY)
            sum += exp_wide((double)d.leaf[i] - (double)max);
    sum = __longlong_as_double(
        (long long)block_reduce(d.s->chain.cluster, (uint64_t)__double_as_longlong(sum), f64_add));
    const cluster_pair *told =
        tell_all(d.s->chain.cluster, d.turn, {(uint64_t)__double_as_longlong(sum), 0});
    sum = 0;
    for (uint32_t r = 0; r < CLUSTER_CTAS; r++)
        sum += __longlong_as_double((long long)told[r].a);
    uint32_t count = 0;
    for (uint64_t key = best; count < (uint32_t)d.s->row.logprobs; count++) {
        key = count > 0 ? highest(d, key) : best;
        if (key == 0 || value_of(key) == -INFINITY)
            break;
        if (threadIdx.x == 0 && rank_in_cluster() == 0) {
            out.top_ids[count] = id_of(key);
            out.top_logits[count] = value_of(key);
        }
    }
    if (threadIdx.x == 0 && rank_in_cluster() == 0) {
        out.sum = sum;
        out.max = max;
        out.top_count = count;
    }
}

/* The logit of an id that was drawn; a whole warp. */
static __device__ float logit_of(const draw_state &d, uint32_t id)
{
    const krn_cuda_draw_row &row = d.s->row;
    float logit = d.logits[id];
    for (uint32_t first = 0; first < row.edit_count; first += 32) {
        uint32_t e = first + threadIdx.x % 32;
        krn_cuda_edit edit = {UINT32_MAX, 0, 0, 0};
        if (e < row.edit_count)
            edit = d.p->edits[row.edits_at + e];
        uint32_t here = __ballot_sync(0xFFFFFFFFu, edit.id == id);
        if (here != 0)
            return __shfl_sync(0xFFFFFFFFu, changed(logit, edit, row), __ffs(here) - 1);
    }
    return logit;
}

/* ---- filters ---- */

/* Count and sum, in units of 2^-52, of the probabilities of at least that of these bits; the sum
 * only of those of at least 2^-29. */
static __device__ cluster_pair reaching(draw_state &d, uint32_t least)
{
    uint64_t count = 0, sum = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        uint32_t bits = bits_of(d.leaf[i]);
        if (bits < least)
            continue;
        count++;
        if (bits >= bits_of(EXACT_LEAST))
            sum += (uint64_t)((bits & 0x7FFFFFu) | 0x800000u) << ((bits >> 23) - 98);
    }
    const cluster_pair *told =
        tell_all(d.s->chain.cluster, d.turn, block_add(d.s->chain.cluster, d.turn, {count, sum}));
    cluster_pair all = {0, 0};
    for (uint32_t r = 0; r < CLUSTER_CTAS; r++) {
        all.a += told[r].a;
        all.b += told[r].b;
    }
    return all;
}

/* Where the prefix of the most probable ends: all above `bits`, and of those equal the first. */
struct prefix_end {
    uint32_t bits, equals;
};

struct prefix_limits {
    uint64_t count, sum;
};

static __device__ __forceinline__ bool ends(const cluster_pair &kept, const prefix_limits &limits)
{
    return kept.a > 0 && (kept.a >= limits.count || kept.b >= limits.sum);
}

/* false: it ends where the order of a sum shows. largest: the highest probability. */
static __device__ bool find_end(draw_state &d, float largest, prefix_end &end)
{
    const krn_cuda_draw_row &row = d.s->row;
    bool limited = row.top_p < 1.0f;
    const prefix_limits limits = {row.top_k > 0 ? row.top_k : UINT64_MAX,
                                  limited ? (uint64_t)ceil((double)fmaxf(row.top_p, 0.0f) * 0x1p52)
                                          : UINT64_MAX};
    uint32_t low = limited ? bits_of(EXACT_LEAST) : 1, high = bits_of(largest) + 1;
    cluster_pair at_low = reaching(d, low), at_high = {0, 0};
    end = {low, UINT32_MAX};
    if (!ends(at_low, limits)) {
        end.bits = 1; /* all of them */
        return !limited || reaching(d, 1).a == at_low.a;
    }
    while (high - low > 1 && at_low.a - at_high.a > 1) {
        uint32_t middle = low + (high - low) / 2;
        cluster_pair here = reaching(d, middle);
        bool over = ends(here, limits);
        low = over ? middle : low;
        at_low = over ? here : at_low;
        high = over ? high : middle;
        at_high = over ? at_high : here;
    }
    end.bits = low;
    if (at_low.a - at_high.a == 1)
        return true;
    uint64_t unit = (at_low.b - at_high.b) / (at_low.a - at_high.a), most = UINT64_MAX;
    if (limited)
        most = limits.sum <= at_high.b ? 1 : (limits.sum - at_high.b + unit - 1) / unit;
    uint64_t left = limits.count - at_high.a;
    most = left < most ? left : most;
    end.equals = most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;
    return true;
}

/* Values of what top_k, top_p and min_p drop become zero. */
static __device__ bool filter(draw_state &d, double sum)
{
    const krn_cuda_draw_row &row = d.s->row;
    float largest = (float)__ddiv_rn(1.0, sum);
    float low = row.min_p > 0.0f ? __fmul_rn(row.min_p, largest) : 0.0f;
    prefix_end end = {1, UINT32_MAX};
    if ((row.top_k > 0 || row.top_p < 1.0f) && !find_end(d, largest, end))
        return false;
    uint64_t before = 0, total;
    if (end.equals != UINT32_MAX) {
        for (uint32_t i = 0; i < CHAIN_LEAF; i++)
            before += bits_of(d.leaf[i]) == end.bits;
        before = cluster_before(d.s->chain.cluster, d.turn, before, u64_add, total);
    }
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        float p = d.leaf[i];
        bool kept = bits_of(p) > end.bits;
        if (bits_of(p) == end.bits)
            kept = before++ < end.equals || end.equals == UINT32_MAX;
        if (!kept || p < low)
            d.leaf[i] = 0.0f;
    }
    return true;
}

/* ---- draw ---- */

static __device__ uint32_t draw_one(draw_state &d, float max, uint32_t &id)
{
    const krn_cuda_draw_row &row = d.s->row;
    chain_smem &chain = d.s->chain;
    for (uint32_t i = 0; i < CHAIN_LEAF; i++) {
        float x = __fdiv_rn(__fsub_rn(d.leaf[i], max), row.temperature);
        d.leaf[i] = x < -104.0f ? 0.0f : __double2float_rn(exp_wide((double)x));
    }
    double sum = chain_sum(chain, d.turn);
    for (uint32_t i = 0; i < CHAIN_LEAF; i++)
        d.leaf[i] = __double2float_rn(__ddiv_rn((double)d.leaf[i], sum));
    if (!filter(d, sum))
        return KRN_CUDA_DRAW_LONG;
    double total = chain_sum(chain, d.turn);
    if (rank_in_cluster() == 0 && threadIdx.x < 32) {
        uint32_t place = chain_find(chain, __dmul_rn(row.u, total));
        uint32_t leaf = place / CHAIN_LEAF;
        id = (leaf / CLUSTER_THREADS * d.leaves + leaf % CLUSTER_THREADS) * CHAIN_LEAF +
             place % CHAIN_LEAF;
    }
    return KRN_CUDA_DRAWN;
}

static __global__ void __launch_bounds__(CLUSTER_THREADS, 2)
    draw_kernel(const krn_cuda_draw_params p)
{
    in_turn();
    extern __shared__ __align__(16) uint8_t memory[];
    draw_smem &s = *(draw_smem *)memory;
    uint32_t row = blockIdx.x / CLUSTER_CTAS;
    krn_cuda_drawn &out = p.out[row];
    if (threadIdx.x < sizeof(s.row) / 4)
        ((uint32_t *)&s.row)[threadIdx.x] = ((const uint32_t *)&p.rows_at[row])[threadIdx.x];
    __syncthreads();
    if (!s.row.drawn)
        return;
    cluster_sync(); /* all have begun: their memory may be written */
    draw_state d = {&p, &s, s.chain.values + threadIdx.x * CHAIN_PITCH,
                    p.logits + (size_t)row * p.n};
    d.leaves = ((p.n + CHAIN_LEAF - 1) / CHAIN_LEAF + CLUSTER_CTAS - 1) / CLUSTER_CTAS;
    d.first_id = rank_in_cluster() * d.leaves * CHAIN_LEAF;
    load_row(d);
    uint64_t best = highest(d, UINT64_MAX);
    uint32_t id = id_of(best), code = KRN_CUDA_DRAWN;
    if (!is_finite(value_of(best)))
        code = KRN_CUDA_DRAW_NOTHING;
    else if (s.row.logprobs >= 0)
        note_logprobs(d, best, out);
    if (code == KRN_CUDA_DRAWN && s.row.temperature > 0.0f)
        code = draw_one(d, value_of(best), id);
    if (rank_in_cluster() == 0 && threadIdx.x < 32) {
        float logit = code == KRN_CUDA_DRAWN && s.row.logprobs >= 0 ? logit_of(d, id) : 0.0f;
        if (threadIdx.x == 0) {
            out.id = id;
            out.logit = logit;
            out.code = code;
        }
    }
    cluster_sync(); /* none goes while others look into its memory */
}

KRN_CUDA_LOCAL int krn_cuda_draw(const krn_cuda_draw_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->n > 0 && p->n <= KRN_CUDA_DRAW_MAX);
    const int bytes = sizeof(draw_smem);
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "draw: %s", cudaGetErrorString(ready));
    if (p->rows == 0)
        return KRN_CUDA_OK;
    return launch_in_turn(
        "draw",
        {dim3(p->rows * CLUSTER_CTAS), CLUSTER_THREADS, CLUSTER_CTAS, bytes, (cudaStream_t)stream},
        draw_kernel, *p);
}
