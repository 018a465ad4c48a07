/* Template: absorbed sparse attention of one row. The including file defines ATTEND_NAME, V(x),
 * LANES, VALUE_HEADS (heads of the P.V register tile), SCORE_TILE (keys of the score register
 * tile), and S(x), SCORE_LANES for the score part, whose lanes are heads: 8 of them also where V
 * has 16.
 *
 * The list's rows are gathered once as f32 into slabs of 32 dimensions, [18][keys][32]: scores read
 * a key's dimensions as scalars for all heads at once, P.V streams a slab as vectors. Softmax runs
 * with heads in lanes, so its sums are chains over keys. */

#define SLAB_DIM    32u
#define SLAB_COUNT  (KRN_PLAIN_ROW_DIM / SLAB_DIM)
#define LATENT_SLAB (KRN_LATENT_DIM / SLAB_DIM)

/* 32 codes times a scale, rounded to bf16 where that is not exact. */
VEC_INLINE void gather_codes(const uint8_t *codes, float scale, bool exact, float *out)
{
    V(f) factor = V(set1)(scale);
#pragma GCC unroll 4
    for (int i = 0; i < (int)SLAB_DIM; i += LANES) {
        V(f) c = V(mul)(V(from_e4m3)(codes + i), factor);
        V(store)(out + i, exact ? c : V(round_bf16)(c));
    }
}

VEC_INLINE void gather(const krn_attend_args *args, const uint32_t *blocks, const uint32_t *list,
                       uint32_t count, size_t slab_size, float *slabs)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *row = krn_cache_latent(args->cache, blocks, list[i]);
        float *out = slabs + (size_t)i * SLAB_DIM;
        if (i + 2 < count) {
            const uint8_t *ahead = krn_cache_latent(args->cache, blocks, list[i + 2]);
            for (uint32_t b = 0; b < KRN_LATENT_ROW_BYTES; b += 64)
                _mm_prefetch((const char *)ahead + b, _MM_HINT_T0);
        }
        for (uint32_t g = 0; g < KRN_LATENT_DIM / KRN_BLOCK; g++) {
            float scale;
            memcpy(&scale, row + KRN_LATENT_SCALES_AT + g * sizeof scale, sizeof scale);
            bool exact = (krn_f32_bits(scale) & 0x7FFFFFu) == 0;
            for (uint32_t d = g * KRN_BLOCK; d < (g + 1) * KRN_BLOCK; d += SLAB_DIM)
                gather_codes(row + d, scale, exact, out + d / SLAB_DIM * slab_size);
        }
        for (uint32_t d = 0; d < KRN_ROPE_DIM; d += LANES) {
            uint16_t rope[LANES];
            memcpy(rope, row + KRN_LATENT_ROPE_AT + d * sizeof rope[0], sizeof rope);
            V(store)
            (out + (LATENT_SLAB + d / SLAB_DIM) * slab_size + d % SLAB_DIM, V(from_bf16)(rope));
        }
    }
}

/* Queries of SCORE_LANES heads as f32 [576][SCORE_LANES]; absent heads are zero. */
VEC_INLINE void spread_queries(const uint16_t *q_latent, const uint16_t *q, uint32_t heads,
                               float *out)
{
    static const uint16_t none[8];
    for (uint32_t lane = 0; lane < SCORE_LANES; lane += 8) {
        for (uint32_t d = 0; d < KRN_PLAIN_ROW_DIM; d += 8) {
            v8_f x[8];
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++) {
                const uint16_t *p = d < KRN_LATENT_DIM ? q_latent + (lane + i) * KRN_LATENT_DIM + d
                                                       : q + (lane + i) * KRN_HEAD_DIM +
                                                             KRN_NOPE_DIM + d - KRN_LATENT_DIM;
                x[i] = v8_from_bf16(lane + i < heads ? p : none);
            }
            v8_transpose(x);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++)
                v8_store(out + (size_t)(d + i) * SCORE_LANES + lane, x[i]);
        }
    }
}

/* One slab's 32 steps of T keys' chains. */
VEC_INLINE void score_slab(const int T, const float *queries, const float *keys, S(f) * sum)
{
    for (int d = 0; d < (int)SLAB_DIM; d++) {
        S(f) q = S(load)(queries + d * SCORE_LANES);
#pragma GCC unroll 16
        for (int i = 0; i < T; i++)
            sum[i] = S(fma)(q, S(set1)(keys[i * (int)SLAB_DIM + d]), sum[i]);
    }
}

VEC_INLINE void score_tile(const int T, const float *queries, const float *slabs, size_t slab_size,
                           float scale, float *out)
{
    S(f) latent[SCORE_TILE], rope[SCORE_TILE];
#pragma GCC unroll 16
    for (int i = 0; i < T; i++)
        latent[i] = S(zero)();
    for (uint32_t s = 0; s < LATENT_SLAB; s++)
        score_slab(T, queries + s * SLAB_DIM * SCORE_LANES, slabs + s * slab_size, latent);
#pragma GCC unroll 16
    for (int i = 0; i < T; i++) {
        /* Parked, so that both sets of chains need not live in registers. */
        S(store)(out + i * SCORE_LANES, latent[i]);
        rope[i] = S(zero)();
    }
    for (uint32_t s = LATENT_SLAB; s < SLAB_COUNT; s++)
        score_slab(T, queries + s * SLAB_DIM * SCORE_LANES, slabs + s * slab_size, rope);
#pragma GCC unroll 16
    for (int i = 0; i < T; i++) {
        S(f) sum = S(add)(S(load)(out + i * SCORE_LANES), rope[i]);
        S(store)(out + i * SCORE_LANES, S(mul)(sum, S(set1)(scale)));
    }
}

/* scores [count][SCORE_LANES] -> probabilities in place. */
VEC_INLINE void softmax_lanes(float *scores, uint32_t count)
{
    S(f) largest = S(load)(scores);
    for (uint32_t i = 1; i < count; i++)
        largest = S(max)(largest, S(load)(scores + (size_t)i * SCORE_LANES));
    S(f) sum = S(zero)();
    for (uint32_t i = 0; i < count; i++) {
        S(f) e = S(exp)(S(sub)(S(load)(scores + (size_t)i * SCORE_LANES), largest));
        S(store)(scores + (size_t)i * SCORE_LANES, e);
        sum = S(add)(sum, e);
    }
    for (uint32_t i = 0; i < count; i++) {
        float *p = scores + (size_t)i * SCORE_LANES;
        S(store)(p, S(div)(S(load)(p), sum));
    }
}

/* H heads x 2 vectors of a slab (from dimension `at`), over all keys in order. */
VEC_INLINE void values_tile(const int H, const float *slab, uint32_t at, const float *p,
                            uint32_t count, uint16_t *out)
{
    V(f) sum[VALUE_HEADS][2];
#pragma GCC unroll 16
    for (int h = 0; h < H; h++)
        sum[h][0] = sum[h][1] = V(zero)();
    for (uint32_t i = 0; i < count; i++) {
        V(f) c0 = V(load)(slab + (size_t)i * SLAB_DIM + at);
        V(f) c1 = V(load)(slab + (size_t)i * SLAB_DIM + at + LANES);
#pragma GCC unroll 16
        for (int h = 0; h < H; h++) {
            V(f) weight = V(set1)(p[(size_t)i * SCORE_LANES + h]);
            sum[h][0] = V(add)(sum[h][0], V(mul)(weight, c0));
            sum[h][1] = V(add)(sum[h][1], V(mul)(weight, c1));
        }
    }
#pragma GCC unroll 16
    for (int h = 0; h < H; h++) {
        V(store_bf16)(out + (size_t)h * KRN_LATENT_DIM + at, sum[h][0]);
        V(store_bf16)(out + (size_t)h * KRN_LATENT_DIM + at + LANES, sum[h][1]);
    }
}

VEC_INLINE void values(const float *slabs, size_t slab_size, const float *p, uint32_t count,
                       uint32_t heads, uint16_t *out)
{
    for (uint32_t s = 0; s < LATENT_SLAB; s++, out += SLAB_DIM) {
        for (uint32_t at = 0; at < SLAB_DIM; at += 2 * LANES) {
            uint32_t h = 0;
            for (; h + VALUE_HEADS <= heads; h += VALUE_HEADS)
                values_tile(VALUE_HEADS, slabs + s * slab_size, at, p + h, count,
                            out + (size_t)h * KRN_LATENT_DIM);
            for (; h < heads; h++)
                values_tile(1, slabs + s * slab_size, at, p + h, count,
                            out + (size_t)h * KRN_LATENT_DIM);
        }
    }
}

/* Up to SCORE_LANES heads from `head` on. */
VEC_INLINE void attend_heads(const krn_attend_args *args, uint32_t row, uint32_t head,
                             uint32_t heads, const float *slabs, size_t slab_size, float *queries,
                             float *scores)
{
    size_t index = (size_t)row * args->heads + head;
    uint32_t count = args->list_counts[row];
    spread_queries((const uint16_t *)args->q_latent + index * KRN_LATENT_DIM,
                   (const uint16_t *)args->q + index * KRN_HEAD_DIM, heads, queries);
    uint32_t i = 0;
    for (; i + SCORE_TILE <= count; i += SCORE_TILE)
        score_tile(SCORE_TILE, queries, slabs + (size_t)i * SLAB_DIM, slab_size, args->scale,
                   scores + (size_t)i * SCORE_LANES);
    for (; i < count; i++)
        score_tile(1, queries, slabs + (size_t)i * SLAB_DIM, slab_size, args->scale,
                   scores + (size_t)i * SCORE_LANES);
    softmax_lanes(scores, count);
    values(slabs, slab_size, scores, count, heads,
           (uint16_t *)args->output + index * KRN_LATENT_DIM);
}

KRN_VEC_TARGET void ATTEND_NAME(const krn_attend_args *args, uint32_t row, uint32_t head,
                                uint32_t head_count, void *scratch)
{
    uint32_t count = args->list_counts[row];
    size_t slab_size = krn_attend_slab_size(args->list_stride);
    float *slabs = scratch;
    float *queries = slabs + SLAB_COUNT * slab_size;
    float *scores = queries + KRN_PLAIN_ROW_DIM * SCORE_LANES;
    gather(args, args->rows[row].blocks, args->lists + (size_t)row * args->list_stride, count,
           slab_size, slabs);
    for (uint32_t h = 0; h < head_count; h += SCORE_LANES) {
        uint32_t left = head_count - h;
        attend_heads(args, row, head + h, left < SCORE_LANES ? left : SCORE_LANES, slabs, slab_size,
                     queries, scores);
    }
}
