/* Sparse absorbed attention over the fp8 cache, bf16 wgmma.
 *
 * A CTA owns up to 64 heads of one row and walks its list in blocks of 64 entries. One warpgroup
 * gathers cache rows and turns them into bf16 in shared memory (two buffers); two warpgroups
 * multiply: each scores 32 of the block's entries and owns 256 of the 512 value dimensions. Where a
 * row has an even number of sets of 64 heads, two CTAs of a cluster have two of them and turn half
 * of each block each, which they copy to each other. Cycles of a block and SM: scores 64 x 64 x 576
 * = 1,152, values 1,024 tensor cycles; about 500 issue slots of conversion (1,000 alone); bytes 64
 * x 656, and 36 KB to and from the peer.
 *
 * Order (docs/CUDA-ORDER.md): score = one chain over 512 latent then 64 rope dimensions; m runs
 * over blocks; p = ex2(fma(s, c, -(m c))), c = scale * log2(e); o = o * alpha, then one chain over
 * the block's entries with p in bf16. Scores do not depend on each other nor value dimensions on
 * each other, so another split of either gives the same bits. */
#include "kernels/cuda/attend_split.cuh"

#define THREADS 384
#define PAIR    2 /* CTAs that share the conversion */
#define HALF    (BLOCK / PAIR)

/* Sets of 64 heads up to which the split schedule is the faster one. */
#define SPLIT_SETS_MAX 32u

struct attend_smem {
    uint8_t q[CHUNKS * CHUNK];
    uint8_t keys[2][CHUNKS * CHUNK];
    uint8_t p[CHUNK];
    float shared_max[2][HEADS_A_CTA];
    uint64_t full[2], empty[2];
};

/* ---- gathering ---- */

/* One lane's share of what the CTA turns of a block, all of it or its half: 16 entries a round, 8
 * lanes each. */
template <uint32_t ROUNDS> struct raw_block {
    uint4 codes[ROUNDS][4]; /* [entry 16 i + thread / 8][group] */
    uint4 rope[ROUNDS];
    float4 scales; /* of the lane's entry */
};

/* Stores a round of a block and, as its registers come free, loads the next block's: next is the
 * row of the lane's entry, first the round's first entry. factors: of the lane's entry now, as
 * store_piece wants them. */
template <bool EXACT, uint32_t ROUNDS>
static __device__ __forceinline__ void turn_round(uint8_t *keys, raw_block<ROUNDS> &raw, uint32_t i,
                                                  uint32_t first, const uint32_t *factors,
                                                  const uint8_t *next)
{
    uint32_t lane = threadIdx.x % 32, c = lane % 8;
    uint32_t peer = 4 * i + lane / 8, e = first + threadIdx.x % 128 / 8;
    const uint8_t *from = (const uint8_t *)__shfl_sync(0xFFFFFFFFu, (uint64_t)next, peer);
#pragma unroll
    for (uint32_t g = 0; g < 4; g++) {
        store_piece<EXACT>(keys, e, g, c, raw.codes[i][g],
                           __shfl_sync(0xFFFFFFFFu, factors[g], peer));
        raw.codes[i][g] = __ldg((const uint4 *)(from + g * 128) + c);
    }
    *(uint4 *)(keys + 8 * CHUNK + e * 128 + ((c ^ (e % 8)) * 16)) = raw.rope[i];
    raw.rope[i] = __ldg((const uint4 *)(from + LATENT_ROPE) + c);
}

/* 16 entries from `first` on are there: they go to the peer, too, whose own come with the barrier's
 * bytes. */
static __device__ __forceinline__ void share_round(uint8_t *keys, uint32_t first, uint32_t rank,
                                                   uint64_t *full)
{
    fence_async();
    bar_sync(3, 128);
    uint32_t chunk = threadIdx.x % 128;
    if (chunk < CHUNKS)
        peer_copy(keys + chunk * CHUNK + first * 128, rank ^ 1, 16 * 128, full);
}

template <bool EXACT, bool SHARED, uint32_t ROUNDS>
static __device__ __forceinline__ void turn_over(uint8_t *keys, raw_block<ROUNDS> &raw,
                                                 uint32_t rank, const uint32_t *factors,
                                                 const uint8_t *next, uint64_t *full)
{
    if (SHARED && threadIdx.x % 128 == 0)
        barrier_expect(full, CHUNKS * CHUNK / PAIR);
#pragma unroll
    for (uint32_t i = 0; i < ROUNDS; i++) {
        turn_round<EXACT>(keys, raw, i, rank * HALF + i * 16, factors, next);
        if (SHARED)
            share_round(keys, rank * HALF + i * 16, rank, full);
    }
    raw.scales = __ldg((const float4 *)(next + LATENT_SCALES));
    fence_async();
    barrier_arrive(full);
}

/* A row's way from the list to its bytes, one step a block: the loads depend on each other. */
struct row_chain {
    uint32_t slot;      /* of the block three ahead */
    const uint8_t *row; /* of the block two ahead */
};

/* The lanes' rows into the L2. */
template <uint32_t ROUNDS> static __device__ __forceinline__ void prefetch_row(const uint8_t *row)
{
    constexpr uint32_t PART = LATENT_ROW * ROUNDS / 8; /* of a lane */
#pragma unroll
    for (uint32_t i = 0; i < PART; i += 128)
        asm volatile(
            "prefetch.global.L2 [%0];" ::"l"(row + threadIdx.x % 32 / (4 * ROUNDS) * PART + i));
}

/* In one load 8 lanes read 128 bytes of a row: a load that touches 32 rows would take the L1 32
 * cycles. Rows of the block after next are prefetched into the L2. */
template <bool SHARED>
static __device__ __forceinline__ void gather(attend_smem &s, const krn_cuda_attend_params &p,
                                              uint32_t count, uint32_t sequence)
{
    constexpr uint32_t ROUNDS = SHARED ? HALF / 16 : BLOCK / 16;
    uint32_t t = threadIdx.x % 128, lane = t % 32, rank = SHARED ? blockIdx.x % PAIR : 0;
    uint32_t of = lane % (4 * ROUNDS); /* of the warp's: the entry whose way this lane follows */
    uint32_t mine = rank * HALF + of / 4 * 16 + t / 32 * 4 + of % 4;
    const uint32_t *list = p.lists + (size_t)blockIdx.y * p.list_stride;
    const uint8_t *row = slot_row(p.cache, sequence, entry_slot(list, mine, count));
    const uint8_t *next = slot_row(p.cache, sequence, entry_slot(list, BLOCK + mine, count));
    row_chain ahead = {entry_slot(list, 3 * BLOCK + mine, count),
                       slot_row(p.cache, sequence, entry_slot(list, 2 * BLOCK + mine, count))};
    uint32_t blocks = (count + BLOCK - 1) / BLOCK;
    raw_block<ROUNDS> raw;
#pragma unroll
    for (uint32_t i = 0; i < ROUNDS; i++) {
        const uint8_t *from =
            (const uint8_t *)__shfl_sync(0xFFFFFFFFu, (uint64_t)row, 4 * i + lane / 8);
#pragma unroll
        for (uint32_t g = 0; g < 4; g++)
            raw.codes[i][g] = __ldg((const uint4 *)(from + g * 128) + lane % 8);
        raw.rope[i] = __ldg((const uint4 *)(from + LATENT_ROPE) + lane % 8);
    }
    raw.scales = __ldg((const float4 *)(row + LATENT_SCALES));
    for (uint32_t b = 0; b < blocks; b++) {
        prefetch_row<ROUNDS>(ahead.row);
        const uint8_t *after = ahead.row;
        ahead.row = slot_row(p.cache, sequence, ahead.slot);
        ahead.slot = entry_slot(list, (b + 4) * BLOCK + mine, count);
        const float scales[4] = {raw.scales.x, raw.scales.y, raw.scales.z, raw.scales.w};
        uint32_t factors[4], plain[4];
        bool exact = true;
#pragma unroll
        for (int g = 0; g < 4; g++) {
            factors[g] = exact_factor(scales[g]);
            plain[g] = __float_as_uint(scales[g]);
            exact = exact && factors[g] != 0;
        }
        if (b >= 2)
            barrier_wait(&s.empty[b % 2], (b / 2 - 1) & 1);
        if (__all_sync(0xFFFFFFFFu, exact))
            turn_over<true, SHARED>(s.keys[b % 2], raw, rank, factors, next, &s.full[b % 2]);
        else
            turn_over<false, SHARED>(s.keys[b % 2], raw, rank, plain, next, &s.full[b % 2]);
        next = after;
    }
}

/* ---- multiplying ---- */

struct softmax_state {
    float m[2], l[2]; /* of rows lane / 4 and + 8; l: this lane's part */
};

/* d -> p in shared memory; out_alpha: what o is multiplied with. */
static __device__ __forceinline__ void soften(attend_smem &s, softmax_state &state, const float *d,
                                              float c, uint32_t valid, uint32_t group,
                                              float *out_alpha)
{
    uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, q = t % 4;
    float most[2] = {-INFINITY, -INFINITY}, x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) { /* d itself stays the matrix unit's */
        x[i] = group * 32 + 8 * (i / 4) + 2 * q + i % 2 < valid ? d[i] : -INFINITY;
        most[i / 2 % 2] = fmaxf(most[i / 2 % 2], x[i]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = lanes_max(most[h], 4);
        if (q == 0)
            s.shared_max[group][row + 8 * h] = most[h];
    }
    bar_sync(1, 256); /* also: both warpgroups are done with the last p */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = fmaxf(state.m[h], fmaxf(most[h], s.shared_max[group ^ 1][row + 8 * h]));
        float base = __fmul_rn(m, c), sum = 0.0f;
        out_alpha[h] = exp2_fast(fmaf(state.m[h], c, -base));
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            float a = exp2_fast(fmaf(x[i + 2 * h], c, -base));
            float b = exp2_fast(fmaf(x[i + 2 * h + 1], c, -base));
            sum = __fadd_rn(__fadd_rn(sum, a), b);
            uint32_t r = row + 8 * h, unit = group * 4 + i / 4;
            *(uint32_t *)(s.p + r * 128 + ((unit ^ (r % 8)) * 16) + q * 4) = bf16_pair(a, b);
        }
        state.l[h] = fmaf(state.l[h], out_alpha[h], sum);
        state.m[h] = m;
    }
    fence_async();
    bar_sync(2, 256);
}

static __device__ __forceinline__ void rescale(float *o, const float *alpha)
{
    if (!__any_sync(0xFFFFFFFFu, alpha[0] != 1.0f || alpha[1] != 1.0f))
        return; /* times 1 is exact */
#pragma unroll
    for (int i = 0; i < VALUES / 2; i++)
        o[i] = __fmul_rn(o[i], alpha[i / 2 % 2]);
}

static __device__ __forceinline__ void value_block(const uint8_t *p, const uint8_t *keys,
                                                   uint32_t group, uint32_t keep, float *o)
{
    uint64_t a = mma_operand(p), b = mma_operand_along_n(keys + group * 4 * CHUNK, CHUNK);
    mma_pin<VALUES / 2>(o);
    mma_fence();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        wgmma_bf16<VALUES, 1>(o, a + 2 * i, b + 128 * i, keep + i);
    mma_commit();
}

static __device__ __forceinline__ void attend_store(attend_smem &s, const krn_cuda_attend_params &p,
                                                    const softmax_state &state, const float *o,
                                                    uint32_t group)
{
    uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, q = t % 4;
    float l[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = state.l[h];
        sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
        l[h] = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
        if (q == 0)
            s.shared_max[group][row + 8 * h] = l[h];
    }
    bar_sync(1, 256);
    size_t at = ((size_t)blockIdx.y * p.heads + blockIdx.x * HEADS_A_CTA + row) * KRN_VALUES;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (blockIdx.x * HEADS_A_CTA + row + 8 * h >= p.heads)
            break;
        float inverse = __frcp_rn(__fadd_rn(l[h], s.shared_max[group ^ 1][row + 8 * h]));
        uint16_t *out = p.out + at + 8 * h * KRN_VALUES + group * VALUES + q * 2;
#pragma unroll
        for (int j = 0; j < VALUES / 8; j++)
            *(uint32_t *)(out + 8 * j) = bf16_pair(__fmul_rn(o[4 * j + 2 * h], inverse),
                                                   __fmul_rn(o[4 * j + 2 * h + 1], inverse));
    }
}

template <bool SHARED>
static __device__ __forceinline__ void multiply(attend_smem &s, const krn_cuda_attend_params &p,
                                                uint32_t count)
{
    uint32_t group = threadIdx.x / 128, blocks = (count + BLOCK - 1) / BLOCK;
    float o[VALUES / 2], d[16], alpha[2];
    float c = __fmul_rn(p.scale, 1.4426950408889634f);
    softmax_state state = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < VALUES / 2; i++)
        o[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++)
        d[i] = 0.0f;
    for (uint32_t b = 0; b < blocks; b++) {
        barrier_wait(&s.full[b % 2], (b / 2) & 1);
        score_block(s.q, s.keys[b % 2], group, d);
        mma_wait<0>();
        mma_pin<16>(d);
        soften(s, state, d, c, count - b * BLOCK, group, alpha);
        rescale(o, alpha);
        value_block(s.p, s.keys[b % 2], group, b, o);
        mma_wait<0>();
        mma_pin<VALUES / 2>(o);
        if (SHARED && threadIdx.x % 32 < PAIR)
            peer_arrive(&s.empty[b % 2], threadIdx.x % 32);
        else if (!SHARED && threadIdx.x % 32 == 0)
            barrier_arrive(&s.empty[b % 2]);
    }
    attend_store(s, p, state, o, group);
}

template <bool SHARED>
static __global__ void __launch_bounds__(THREADS, 1) attend_kernel(const krn_cuda_attend_params p)
{
    extern __shared__ uint8_t raw[];
    attend_smem &s = *(attend_smem *)(raw + ((1024 - (smem_at(raw) & 1023)) & 1023));
    in_turn();
    uint32_t t = threadIdx.x, count = p.list_counts[blockIdx.y];
    if (t == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(&s.full[i], SHARED ? 129 : 128);
            barrier_init(&s.empty[i], SHARED ? 8 * PAIR : 8);
        }
        fence_async();
    }
    for (uint32_t i = t; i < HEADS_A_CTA * CHUNKS * 8; i += THREADS) {
        uint32_t h = i / (CHUNKS * 8), unit = i % (CHUNKS * 8), chunk = unit / 8;
        size_t head = (size_t)blockIdx.y * p.heads + blockIdx.x * HEADS_A_CTA + h;
        const uint16_t *from = chunk < 8 ? p.q_latent + head * 512 + unit * 8
                                         : p.q + head * 192 + 128 + (unit - 64) * 8;
        uint8_t *to = s.q + chunk * CHUNK + h * 128 + ((unit % 8) ^ (h % 8)) * 16;
        if (blockIdx.x * HEADS_A_CTA + h < p.heads)
            copy16(to, from);
        else
            *(uint4 *)to = make_uint4(0, 0, 0, 0);
    }
    copy_commit();
    copy_wait<0>();
    fence_async();
    __syncthreads();
    if (SHARED)
        cluster_barriers_ready();
    if (t >= 256) { /* 168 * 384 registers in all */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 120;");
        gather<SHARED>(s, p, count, p.rows_at[blockIdx.y].sequence);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
        multiply<SHARED>(s, p, count);
    }
    if (SHARED)
        cluster_end();
}

static uint32_t sets_of(uint32_t rows, uint32_t heads)
{
    return (heads + HEADS_A_CTA - 1) / HEADS_A_CTA * rows;
}

/* What goes between the split schedule's kernels. */
KRN_CUDA_LOCAL uint64_t krn_cuda_attend_workspace_bytes(uint32_t rows, uint32_t heads,
                                                        uint32_t list_stride)
{
    uint32_t sets = sets_of(rows, heads);
    sets = sets < SPLIT_SETS_MAX ? sets : SPLIT_SETS_MAX;
    return list_stride <= SPLIT_LIST_MAX ? (uint64_t)sets * SPLIT_SET_BYTES : 0;
}

static bool splits(const krn_cuda_attend_params *p)
{
    if (p->list_stride > SPLIT_LIST_MAX || !p->workspace || p->schedule == 1)
        return false;
    return p->schedule == 2 || sets_of(p->rows, p->heads) <= SPLIT_SETS_MAX;
}

template <bool SHARED> static int walk(const krn_cuda_attend_params *p, cudaStream_t stream)
{
    const int bytes = sizeof(attend_smem) + 1024;
    static_assert(sizeof(attend_smem) + 1024 <= 227 * 1024, "one CTA's shared memory");
    static const cudaError_t ready = cudaFuncSetAttribute(
        (const void *)attend_kernel<SHARED>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "attend: %s", cudaGetErrorString(ready));
    const dim3 grid(sets_of(1, p->heads), p->rows);
    return launch_in_turn("attend", {grid, THREADS, SHARED ? PAIR : 1, bytes, stream},
                          attend_kernel<SHARED>, *p);
}

KRN_CUDA_LOCAL int krn_cuda_attend(const krn_cuda_attend_params *p, krn_cuda_stream stream)
{
    KRN_CUDA_ENSURE(p->heads > 0 && p->rows <= 65535);
    KRN_CUDA_ENSURE(p->cache.page_bytes % 64 == 0 && p->list_stride > 0);
    if (p->rows == 0)
        return KRN_CUDA_OK;
    if (splits(p))
        return krn_cuda_attend_split(p, (cudaStream_t)stream);
    if (sets_of(1, p->heads) % PAIR == 0)
        return walk<true>(p, (cudaStream_t)stream);
    return walk<false>(p, (cudaStream_t)stream);
}
