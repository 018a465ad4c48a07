/* Sparse absorbed attention over the fp8 cache, bf16 wgmma.
 *
 * A CTA owns up to 64 heads of one row and walks its list in blocks of 64 entries. One warpgroup
 * gathers cache rows and turns them into bf16 in shared memory (two buffers); two multiply: they
 * score a block by turns, 64 x 64, and make its p, of which each multiplies 256 of the 512 value
 * dimensions. Where a row has an even number of sets of 64 heads, two CTAs of a cluster have two of
 * them and turn half of each block each, which they copy to each other. Cycles of a block and SM:
 * scores 64 x 64 x 576 = 1,152, values 1,024 tensor cycles; about 500 issue slots of conversion;
 * bytes 64 x 656, and 36 KB to and from the peer.
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

enum {              /* named barriers */
       BAR_OWN = 1, /* + warpgroup: its own threads */
       BAR_END = 3,
       BAR_GATHER = 4, /* the gathering warpgroup's */
};

struct attend_smem {
    uint8_t q[CHUNKS * CHUNK];
    uint8_t keys[2][CHUNKS * CHUNK];
    uint8_t p[CHUNK]; /* of one block, and: */
    float tops[HEADS_A_CTA], alphas[HEADS_A_CTA];
    float sums[128][2]; /* of the other warpgroup's half of the entries, [thread][row] */
    uint64_t full[2], empty[2];
    uint64_t ready[2], read[2]; /* p of block % 2: made by its warpgroup, read by both */
    uint64_t ended;
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
    bar_sync(BAR_GATHER, 128);
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

/* Low words of the operands' descriptors, worked out once: a warpgroup's own blocks lie in one
 * buffer of keys, the other's in the other one. */
struct walk_operands {
    uint32_t q, keys, p, values[2]; /* values: of own blocks, of the other's */
};

static __device__ __forceinline__ walk_operands operands_of(attend_smem &s, uint32_t group)
{
    const uint64_t low[] = {mma_operand(s.q), mma_operand(s.keys[group]), mma_operand(s.p),
                            mma_operand_along_n(s.keys[group] + group * 4 * CHUNK, CHUNK),
                            mma_operand_along_n(s.keys[group ^ 1] + group * 4 * CHUNK, CHUNK)};
    walk_operands at;
    at.q = __shfl_sync(0xFFFFFFFFu, (uint32_t)low[0], 0);
    at.keys = __shfl_sync(0xFFFFFFFFu, (uint32_t)low[1], 0);
    at.p = __shfl_sync(0xFFFFFFFFu, (uint32_t)low[2], 0);
    at.values[0] = __shfl_sync(0xFFFFFFFFu, (uint32_t)low[3], 0);
    at.values[1] = __shfl_sync(0xFFFFFFFFu, (uint32_t)low[4], 0);
    return at;
}

static __device__ __forceinline__ uint64_t operand_at(uint32_t low)
{
    return (mma_operand(NULL) & 0xFFFFFFFF00000000ull) | low;
}

struct softmax_state { /* of rows lane / 4 and + 8 */
    float l[2];        /* this lane's part, of the warpgroup's half of the entries */
};

/* p of one block, as it goes to shared memory. */
struct soft_block {
    uint32_t p[2][8];
    float alpha[2], sums[2]; /* sums: of the other half of the entries */
};

static __device__ __forceinline__ void score_whole(const walk_operands &at, float *d)
{
    mma_pin<32>(d);
    mma_fence();
#pragma unroll
    for (uint32_t c = 0; c < CHUNKS; c++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            wgmma_bf16<64, 0>(d, operand_at(at.q + c * (CHUNK / 16) + 2 * i),
                              operand_at(at.keys + c * (CHUNK / 16) + 2 * i), c + i);
    mma_commit();
}

/* Largest score of the block; what is behind the end of the list does not count. */
static __device__ __forceinline__ void soften_max(float *d, uint32_t t, uint32_t valid, float *most)
{
    uint32_t q = t % 4;
    if (valid < BLOCK) {
#pragma unroll
        for (uint32_t i = 0; i < 32; i++)
            d[i] = 8 * (i / 4) + 2 * q + i % 2 < valid ? d[i] : -INFINITY;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = fmaxf(d[2 * h], d[2 * h + 1]);
#pragma unroll
        for (int i = 4; i < 32; i += 4)
            most[h] = fmaxf(most[h], fmaxf(d[i + 2 * h], d[i + 2 * h + 1]));
        most[h] = lanes_max(most[h], 4);
    }
}

/* x -> p, and the sums of both halves. NORMAL: no power is subnormal, which exp2_fast would spend
 * three more instructions on. */
template <bool NORMAL>
static __device__ __forceinline__ void soften_powers(const float *x, float sums[2][2],
                                                     soft_block &out)
{
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            float a = NORMAL ? exp2_normal(x[i + 2 * h]) : exp2_fast(x[i + 2 * h]);
            float b = NORMAL ? exp2_normal(x[i + 2 * h + 1]) : exp2_fast(x[i + 2 * h + 1]);
            float before = i % 16 == 0 ? 0.0f : sums[h][i / 16];
            sums[h][i / 16] = __fadd_rn(__fadd_rn(before, a), b);
            out.p[h][i / 4] = bf16_pair(a, b);
        }
}

/* before, m: maxima without the block and with it. */
static __device__ __forceinline__ void soften(softmax_state &state, float *d, float c,
                                              const float *before, const float *m, uint32_t group,
                                              soft_block &out)
{
    float sums[2][2];
    bool normal = true;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float base = __fmul_rn(m[h], c);
        out.alpha[h] = exp2_fast(fmaf(before[h], c, -base));
#pragma unroll
        for (int i = 2 * h; i < 32; i += i % 2 == 0 ? 1 : 3) {
            d[i] = fmaf(d[i], c, -base);
            normal = normal && d[i] >= -126.0f;
        }
    }
    if (__all_sync(0xFFFFFFFFu, normal))
        soften_powers<true>(d, sums, out);
    else
        soften_powers<false>(d, sums, out);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        state.l[h] = fmaf(state.l[h], out.alpha[h], group == 0 ? sums[h][0] : sums[h][1]);
        out.sums[h] = group == 0 ? sums[h][1] : sums[h][0];
    }
}

static __device__ __forceinline__ void soft_store(attend_smem &s, const soft_block &soft,
                                                  const float *m, uint32_t t)
{
    uint32_t row = t / 32 * 16 + t % 32 / 4, q = t % 4;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t r = row + 8 * h;
#pragma unroll
        for (uint32_t unit = 0; unit < 8; unit++)
            *(uint32_t *)(s.p + r * 128 + ((unit ^ (r % 8)) * 16) + q * 4) = soft.p[h][unit];
        s.sums[t][h] = soft.sums[h];
        if (q == 0) {
            s.tops[r] = m[h];
            s.alphas[r] = soft.alpha[h];
        }
    }
    fence_async();
}

/* Takes over what the other warpgroup made of its block. */
static __device__ __forceinline__ void soft_take(const attend_smem &s, softmax_state &state,
                                                 uint32_t t, float *out_m, float *out_alpha)
{
    uint32_t row = t / 32 * 16 + t % 32 / 4;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        out_m[h] = s.tops[row + 8 * h];
        out_alpha[h] = s.alphas[row + 8 * h];
        state.l[h] = fmaf(state.l[h], out_alpha[h], s.sums[t][h]);
    }
}

/* o * alpha + p V, begun. */
static __device__ __forceinline__ void value_block(uint32_t p, uint32_t values, uint32_t keep,
                                                   const float *alpha, float *o)
{
    if (__any_sync(0xFFFFFFFFu, alpha[0] != 1.0f || alpha[1] != 1.0f)) { /* times 1 is exact */
#pragma unroll
        for (int i = 0; i < VALUES / 2; i++)
            o[i] = __fmul_rn(o[i], alpha[i / 2 % 2]);
    }
    mma_pin<VALUES / 2>(o);
    mma_fence();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        wgmma_bf16<VALUES, 1>(o, operand_at(p + 2 * i), operand_at(values + 128 * i), keep + i);
    mma_commit();
}

template <bool SHARED>
static __device__ __forceinline__ void value_wait(attend_smem &s, uint32_t block, float *o)
{
    mma_wait<0>();
    mma_pin<VALUES / 2>(o);
    barrier_arrive(&s.read[block % 2]);
    if (SHARED && threadIdx.x % 32 < PAIR)
        peer_arrive(&s.empty[block % 2], threadIdx.x % 32);
    else if (!SHARED && threadIdx.x % 32 == 0)
        barrier_arrive(&s.empty[block % 2]);
}

static __device__ __forceinline__ void attend_store(attend_smem &s, const krn_cuda_attend_params &p,
                                                    const softmax_state &state, const float *o,
                                                    uint32_t group)
{
    uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, q = t % 4;
    float l[2], *ends = (float *)s.q; /* the last scores are made: l of either half */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = state.l[h];
        sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
        l[h] = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
        if (q == 0)
            ends[group * HEADS_A_CTA + row + 8 * h] = l[h];
    }
    barrier_arrive(&s.ended);
    barrier_wait(&s.ended, 0);
    size_t at = ((size_t)blockIdx.y * p.heads + blockIdx.x * HEADS_A_CTA + row) * KRN_VALUES;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (blockIdx.x * HEADS_A_CTA + row + 8 * h >= p.heads)
            break;
        float inverse = __frcp_rn(__fadd_rn(l[h], ends[(group ^ 1) * HEADS_A_CTA + row + 8 * h]));
        uint16_t *out = p.out + at + 8 * h * KRN_VALUES + group * VALUES + q * 2;
#pragma unroll
        for (int j = 0; j < VALUES / 8; j++)
            *(uint32_t *)(out + 8 * j) = bf16_pair(__fmul_rn(o[4 * j + 2 * h], inverse),
                                                   __fmul_rn(o[4 * j + 2 * h + 1], inverse));
    }
}

/* Values of the other warpgroup's block; out_m: the largest score up to it. */
template <bool SHARED>
static __device__ __forceinline__ void other_block(attend_smem &s, const walk_operands &at,
                                                   softmax_state &state, uint32_t b, uint32_t t,
                                                   float *out_m, float *o)
{
    float alpha[2];
    barrier_wait(&s.full[b % 2], (b / 2) & 1);
    barrier_wait(&s.ready[b % 2], (b / 2) & 1);
    soft_take(s, state, t, out_m, alpha);
    value_block(at.p, at.values[1], b, alpha, o);
    value_wait<SHARED>(s, b, o);
}

/* An own block, the other's before it first: its keys' buffer is waited for. t: thread of the
 * warpgroup. */
template <bool FIRST, bool SHARED>
static __device__ __forceinline__ void own_block(attend_smem &s, const walk_operands &at,
                                                 softmax_state &state, uint32_t b, uint32_t count,
                                                 float c, uint32_t t, float *d, float *o)
{
    uint32_t group = threadIdx.x / 128;
    float before[2] = {-INFINITY, -INFINITY}, m[2];
    soft_block soft;
    asm volatile("" : "+r"(t)); /* addresses are worked out anew: kept, they would be spilled */
    if (!FIRST)
        other_block<SHARED>(s, at, state, b - 1, t, before, o);
    barrier_wait(&s.full[b % 2], (b / 2) & 1);
    score_whole(at, d);
    mma_wait<0>();
    mma_pin<32>(d);
    soften_max(d, t, count - b * BLOCK, m);
    m[0] = fmaxf(before[0], m[0]);
    m[1] = fmaxf(before[1], m[1]);
    soften(state, d, c, before, m, group, soft);
    if (!FIRST)
        barrier_wait(&s.read[(b + 1) % 2], ((b - 1) / 2) & 1);
    soft_store(s, soft, m, t);
    barrier_arrive(&s.ready[b % 2]);
    bar_sync(BAR_OWN + group, 128);
    value_block(at.p, at.values[0], b, soft.alpha, o);
    value_wait<SHARED>(s, b, o);
}

template <bool SHARED>
static __device__ __forceinline__ void multiply(attend_smem &s, const krn_cuda_attend_params &p,
                                                uint32_t count)
{
    uint32_t group = threadIdx.x / 128, blocks = (count + BLOCK - 1) / BLOCK, last = blocks - 1;
    float o[VALUES / 2], d[32], c = __fmul_rn(p.scale, 1.4426950408889634f);
    uint32_t t = threadIdx.x % 128;
    softmax_state state = {{0.0f, 0.0f}};
    walk_operands at = operands_of(s, group);
    asm volatile("" : "+r"(t)); /* kept: to ask for it takes long */
#pragma unroll
    for (int i = 0; i < VALUES / 2; i++)
        o[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++)
        d[i] = 0.0f;
    if (group == 0)
        own_block<true, SHARED>(s, at, state, 0, count, c, t, d, o);
    for (uint32_t b = 2 - group; b < blocks; b += 2)
        own_block<false, SHARED>(s, at, state, b, count, c, t, d, o);
    if (last % 2 != group) {
        float m[2];
        other_block<SHARED>(s, at, state, last, t, m, o);
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
            barrier_init(&s.ready[i], 128);
            barrier_init(&s.read[i], 256);
        }
        barrier_init(&s.ended, 256);
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
