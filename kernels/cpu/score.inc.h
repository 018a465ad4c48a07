/* Template: indexer scores and exact selection. The including file defines V(x), LANES and
 * SCORE_HEADS (heads of the register tile).
 *
 * Scores: lanes are keys. A page's codes are transposed to f32 [128][2 vectors of keys] once and
 * met by every row of the tile; per key, heads add up in ascending order. Selection: the smallest
 * kept value is found bit by bit over vector counts, then positions are collected in order. */

#define SCORE_KEYS  (2 * LANES) /* keys of the register tile */
#define SCORE_PARTS ((int)KRN_PAGE_TOKENS / SCORE_KEYS)

/* Index heads a page's queries are converted for at once. */
#define SCORE_HEADS_MAX 128u

/* Codes [SCORE_KEYS][128] -> f32 [128][SCORE_KEYS]. */
VEC_INLINE void score_keys(const uint8_t *codes, float *out_keys)
{
    for (int group = 0; group < 2; group++) {
        for (int d = 0; d < (int)KRN_INDEX_DIM; d += 4 * LANES) {
            V(i) words[LANES]; /* 4 codes of a key each */
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                words[i] = V(load_words)(codes + (group * LANES + i) * (int)KRN_INDEX_DIM + d);
            V(transpose_words)(words);
            float *out = out_keys + (size_t)d * SCORE_KEYS + group * LANES;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++, out += 4 * SCORE_KEYS) {
                V(store)(out, V(e4m3_of_byte)(words[i], 0));
                V(store)(out + SCORE_KEYS, V(e4m3_of_byte)(words[i], 1));
                V(store)(out + 2 * SCORE_KEYS, V(e4m3_of_byte)(words[i], 2));
                V(store)(out + 3 * SCORE_KEYS, V(e4m3_of_byte)(words[i], 3));
            }
        }
    }
}

/* SCORE_KEYS dot products for SCORE_HEADS (or fewer: H) heads, then relu, factor, sum over heads.
 */
VEC_INLINE void score_heads(const int H, const float *q, const float *factors, const float *keys,
                            V(f) sum[2])
{
    V(f) dot[SCORE_HEADS][2];
#pragma GCC unroll 8
    for (int h = 0; h < H; h++)
        dot[h][0] = dot[h][1] = V(zero)();
    for (uint32_t d = 0; d < KRN_INDEX_DIM; d++) {
        V(f) k0 = V(load)(keys + (size_t)d * SCORE_KEYS);
        V(f) k1 = V(load)(keys + (size_t)d * SCORE_KEYS + LANES);
#pragma GCC unroll 8
        for (int h = 0; h < H; h++) {
            V(f) x = V(set1)(q[h * (int)KRN_INDEX_DIM + d]);
            dot[h][0] = V(fma)(x, k0, dot[h][0]);
            dot[h][1] = V(fma)(x, k1, dot[h][1]);
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; h++) {
        V(f) factor = V(set1)(factors[h]);
        /* A NaN operand would come out of max as zero, but sums of codes are never NaN. */
        sum[0] = V(add)(sum[0], V(mul)(V(max)(dot[h][0], V(zero)()), factor));
        sum[1] = V(add)(sum[1], V(mul)(V(max)(dot[h][1], V(zero)()), factor));
    }
}

VEC_INLINE void score_part(uint32_t heads, const float *q, const float *factors, const float *keys,
                           const float *key_scales, float *out)
{
    V(f) sum[2] = {V(zero)(), V(zero)()};
    uint32_t h = 0;
    for (; h + SCORE_HEADS <= heads; h += SCORE_HEADS)
        score_heads(SCORE_HEADS, q + h * KRN_INDEX_DIM, factors + h, keys, sum);
    for (; h < heads; h++)
        score_heads(1, q + h * KRN_INDEX_DIM, factors + h, keys, sum);
    V(store)(out, V(mul)(sum[0], V(load)(key_scales)));
    V(store)(out + LANES, V(mul)(sum[1], V(load)(key_scales + LANES)));
}

KRN_VEC_TARGET static void score(const krn_score_tile *tile)
{
    _Alignas(64) float keys[KRN_INDEX_DIM * KRN_PAGE_TOKENS];
    _Alignas(64) float q[SCORE_HEADS_MAX * KRN_INDEX_DIM];
    _Alignas(64) float key_scales[KRN_PAGE_TOKENS], out[KRN_PAGE_TOKENS];
    uint32_t first_part = tile->from / SCORE_KEYS, end_part = (tile->to - 1) / SCORE_KEYS + 1;
    sl_assert(tile->heads <= SCORE_HEADS_MAX);
    memcpy(key_scales, tile->page + KRN_INDEX_SCALES_AT, sizeof key_scales);
    for (uint32_t part = first_part; part < end_part; part++)
        score_keys(tile->page + KRN_INDEX_CODES_AT + part * SCORE_KEYS * KRN_INDEX_DIM,
                   keys + part * SCORE_KEYS * KRN_INDEX_DIM);
    for (uint32_t r = 0; r < tile->row_count; r++) {
        const uint8_t *codes =
            (const uint8_t *)tile->queries + (size_t)r * tile->heads * KRN_INDEX_DIM;
        for (uint32_t i = 0; i < tile->heads * KRN_INDEX_DIM; i += LANES)
            V(store)(q + i, V(from_e4m3)(codes + i));
        for (uint32_t part = first_part; part < end_part; part++)
            score_part(tile->heads, q, tile->factors + r * tile->heads,
                       keys + part * SCORE_KEYS * KRN_INDEX_DIM, key_scales + part * SCORE_KEYS,
                       out + part * SCORE_KEYS);
        memcpy(tile->out + r * tile->out_stride, out + tile->from,
               (tile->to - tile->from) * sizeof(float));
    }
}

/* ---- selection ---- */

/* The value with these ordered bits (krn_ordered backwards). */
static inline float of_ordered(uint32_t ordered)
{
    return krn_bits_f32(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

VEC_INLINE bool any_nan(const float *scores, uint32_t count)
{
    uint32_t i = 0, found = 0;
    for (; i + LANES <= count; i += LANES)
        found |= V(nan_mask)(V(load)(scores + i));
    for (; i < count; i++)
        found |= isnan(scores[i]) != 0;
    return found != 0;
}

VEC_INLINE uint32_t count_reaching(const float *scores, uint32_t count, float limit)
{
    V(i) counts = V(zero_words)();
    V(f) limits = V(set1)(limit);
    uint32_t i = 0, rest = 0;
    for (; i + LANES <= count; i += LANES)
        counts = V(count_ge)(counts, V(load)(scores + i), limits);
    for (; i < count; i++)
        rest += scores[i] >= limit;
    return V(sum_words)(counts) + rest;
}

/* The lowest `keep` bits of mask. */
static inline uint32_t lowest_bits(uint32_t mask, uint32_t keep)
{
    uint32_t kept = 0;
    for (; keep > 0 && mask != 0; keep--, mask &= mask - 1)
        kept |= mask & -mask;
    return kept;
}

/* Positions of scores above limit, and of the first `equal` scores at it. */
VEC_INLINE void collect(const float *scores, uint32_t count, float limit, uint32_t equal,
                        uint32_t base, uint32_t *out_positions)
{
    V(f) limits = V(set1)(limit);
    uint32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        V(f) x = V(load)(scores + i);
        uint32_t above = V(gt_mask)(x, limits);
        uint32_t at = V(ge_mask)(x, limits) & ~above;
        if (at != 0) {
            at = lowest_bits(at, equal);
            equal -= (uint32_t)__builtin_popcount(at);
        }
        out_positions += V(store_lanes)(out_positions, base + i, above | at);
    }
    for (; i < count; i++) {
        bool at = scores[i] == limit && equal > 0;
        if (at)
            equal--;
        if (at || scores[i] > limit)
            *out_positions++ = base + i;
    }
}

KRN_VEC_TARGET static bool topk(const float *scores, uint32_t count, uint32_t keep, uint32_t base,
                                uint32_t *out_positions)
{
    if (any_nan(scores, count))
        return false;
    if (count <= keep) {
        for (uint32_t i = 0; i < count; i++)
            out_positions[i] = base + i;
        return true;
    }
    /* Largest value that at least `keep` scores reach: bisection over the ordered bits, between
     * "all reach it" and "none does". Float compares take -0.0 for +0.0. */
    uint32_t low = krn_ordered(-INFINITY), high = krn_ordered(INFINITY) + 1;
    uint32_t reached = count;
    while (high - low > 1 && reached != keep) {
        uint32_t middle = low + (high - low) / 2;
        uint32_t here = count_reaching(scores, count, of_ordered(middle));
        if (here >= keep) {
            low = middle;
            reached = here;
        } else {
            high = middle;
        }
    }
    /* Those above the limit, then the first at it. When exactly `keep` reach it, all at it stay. */
    uint32_t above = 0;
    if (reached != keep)
        above = count_reaching(scores, count, of_ordered(high));
    collect(scores, count, of_ordered(low), keep - above, base, out_positions);
    return true;
}
