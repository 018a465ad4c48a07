/* Index scores with tiles, in the order of cpu-amx-v1. Any thread.
 *
 * Rows of operand A are keys, columns of B the heads of the tile's rows (a form of queries, see
 * krn_amx_score_queries), so that keys stay in their natural order and lanes of C are heads: relu
 * and factor are two operations a vector, the sum over lanes is a tree for 16 keys at once.
 *
 * A step is 32 keys x 2 vectors of lanes: 4 tiles of C. While a step multiplies, the products of
 * the step before are folded and a few keys of the next page are converted: the three do not wait
 * for each other. Budget (cycles for 16 keys and a vector): tiles 64, fold about 40, conversion of
 * a page 12 a key. */
#if defined(__x86_64__)

#include "kernels/cpu/amx_widen.h"
#include "kernels/cpu/variant.h"

#include "base/assert.h"

#include <string.h>

#define SIDE        16 /* rows and lanes of a tile */
#define TILE_DIMS   32 /* dimensions of a tile of A */
#define DIM_STEPS   ((int)KRN_INDEX_DIM / TILE_DIMS)
#define STEP_KEYS   (2 * SIDE) /* keys of a step */
#define PAGE_KEYS   ((int)KRN_PAGE_TOKENS)
#define TILE_WORDS  (SIDE * SIDE)                    /* 32-bit words */
#define VECTOR_SIZE ((size_t)DIM_STEPS * TILE_WORDS) /* words of a vector of a form */

/* What queries are raised by besides, so that products have their own size: 2^234. */
#define QUERY_UP (234 << 7)

/* ---- the form of queries ----
 * Lanes are heads of rows, krn_score_lanes a row. For each vector of 16 lanes four tiles of B (32
 * dimensions each): row i has the dimensions 2i and 2i + 1 of each lane. Then the factors of all
 * vectors. Lanes without a head are zeros. */

/* 16 lanes' codes (NULL: none) -> four tiles. */
AMX_INLINE void form_vector(const uint8_t *const codes[SIDE], uint32_t *out)
{
    v16_i words[DIM_STEPS][SIDE];
    const v16_i up = _mm512_set1_epi16((short)QUERY_UP), size = _mm512_set1_epi16(0x7FFF);
    for (int lane = 0; lane < SIDE; lane++) {
        for (int half = 0; half < 2; half++) {
            v16_i wide[2] = {v16_zero_words(), v16_zero_words()};
            if (codes[lane] != NULL)
                krn_amx_widen(codes[lane] + 64 * half, wide);
            for (int i = 0; i < 2; i++)
                words[2 * half + i][lane] = _mm512_mask_add_epi16(
                    wide[i], _mm512_test_epi16_mask(wide[i], size), wide[i], up);
        }
    }
    for (int step = 0; step < DIM_STEPS; step++) {
        v16_transpose_words(words[step]);
        for (int i = 0; i < SIDE; i++, out += SIDE)
            v16_store_words(out, words[step][i]);
    }
}

KRN_AMX_TARGET void krn_amx_score_queries(const uint8_t *queries, const float *factors,
                                          uint32_t row_count, uint32_t heads, void *out_form)
{
    uint32_t lanes = krn_score_lanes(heads), vectors = krn_score_vectors(row_count, heads);
    uint32_t *tiles = out_form;
    float *out_factors = (float *)(tiles + vectors * VECTOR_SIZE);
    for (uint32_t v = 0; v < vectors; v++) {
        const uint8_t *codes[SIDE];
        for (uint32_t i = 0; i < SIDE; i++) {
            uint32_t row = (v * SIDE + i) / lanes, head = (v * SIDE + i) % lanes;
            bool any = row < row_count && head < heads;
            size_t at = (size_t)row * heads + head;
            codes[i] = any ? queries + at * KRN_INDEX_DIM : NULL;
            out_factors[v * SIDE + i] = any ? factors[at] : 0.0f;
        }
        form_vector(codes, tiles + v * VECTOR_SIZE);
    }
}

/* ---- scores ---- */

/* A page being scored. */
typedef struct scoring {
    const krn_score_tile *tile;
    const krn_score_page *page;
    const uint16_t *keys; /* [64][128] bf16 */
    const uint32_t *form;
    const float *factors;
    uint32_t vectors;
    uint32_t row_vectors; /* of a row; 0: a vector has two rows */
    float *sums;          /* [64][16]: of a row whose vectors are not all folded */
    const uint8_t *next;  /* codes of the next page, NULL: none */
    uint16_t *next_keys;
    int next_done;        /* keys of it converted */
    const uint8_t *ahead; /* codes of the page after it, which are fetched into the cache */
} scoring;

typedef struct products {
    float c[2][2][SIDE][SIDE]; /* tile of keys, vector, key, lane */
} products;

AMX_INLINE void convert_keys(const uint8_t *codes, int count, uint16_t *out)
{
    for (int i = 0; i < 2 * count; i++, codes += 64, out += 64) {
        v16_i wide[2];
        krn_amx_widen(codes, wide);
        v16_store_words((uint32_t *)out, wide[0]);
        v16_store_words((uint32_t *)(out + 32), wide[1]);
    }
}

AMX_INLINE void convert_next(scoring *s, int count)
{
    if (s->next == NULL || s->next_done == PAGE_KEYS)
        return;
    if (count > PAGE_KEYS - s->next_done)
        count = PAGE_KEYS - s->next_done;
    size_t at = (size_t)s->next_done * KRN_INDEX_DIM;
    /* Pages lie far apart: the machine does not foresee where the next begins. */
    for (size_t b = at; b < at + (size_t)count * KRN_INDEX_DIM; b += 64)
        _mm_prefetch((const char *)s->ahead + b, _MM_HINT_T0);
    convert_keys(s->next + at, count, s->next_keys + at);
    s->next_done += count;
}

/* A step: 32 keys against one or two vectors. */
typedef struct step {
    int half;
    uint32_t vector;
} step;

AMX_INLINE step step_at(int i)
{
    return (step){.half = i % 2, .vector = (uint32_t)(i / 2 * 2)};
}

/* Lanes at distance 8 (or 4, 2, 1 below) are added; the sums of a fill the lanes without that bit,
 * those of b the lanes with it. */
AMX_INLINE v16_f add_8(v16_f a, v16_f b)
{
    return _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, a, b), _mm512_shuffle_f32x4(a, b, 0x4E));
}
AMX_INLINE v16_f add_4(v16_f a, v16_f b)
{
    v16_f other = _mm512_mask_blend_ps(0xF0F0, b, a);
    return _mm512_add_ps(_mm512_mask_blend_ps(0xF0F0, a, b),
                         _mm512_shuffle_f32x4(other, other, 0xB1));
}
AMX_INLINE v16_f add_2(v16_f a, v16_f b)
{
    return _mm512_add_ps(_mm512_mask_blend_ps(0xCCCC, a, b), _mm512_shuffle_ps(a, b, 0x4E));
}
AMX_INLINE v16_f add_1(v16_f a, v16_f b)
{
    v16_f other = _mm512_mask_blend_ps(0xAAAA, b, a);
    return _mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, a, b), _mm512_permute_ps(other, 0xB1));
}

/* From 8 vectors whose lanes at distances 4, 2 and 1 are added: vector i's go to the lanes whose
 * number is i in bits 0..2. */
AMX_INLINE v16_f add_eighths(const v16_f x[8])
{
    v16_f a = add_2(add_4(x[0], x[4]), add_4(x[2], x[6]));
    v16_f b = add_2(add_4(x[1], x[5]), add_4(x[3], x[7]));
    return add_1(a, b);
}

AMX_INLINE void put_scores(const scoring *s, uint32_t row, int key, v16_f sums)
{
    const krn_score_page *page = s->page;
    float scales[SIDE];
    if (row >= s->tile->row_count)
        return;
    memcpy(scales, page->page + KRN_INDEX_SCALES_AT + (size_t)key * sizeof scales[0],
           sizeof scales);
    int first = (int)page->from - key, end = (int)page->to - key;
    uint32_t from = first > 0 ? (uint32_t)first : 0, to = end < SIDE ? (uint32_t)end : SIDE;
    if (end <= 0 || from >= SIDE)
        return;
    uint32_t kept = ((1u << to) - 1) & ~((1u << from) - 1);
    float *out = page->out + row * s->tile->out_stride + key - (ptrdiff_t)page->from;
    _mm512_mask_storeu_ps(out, (__mmask16)kept, v16_mul(sums, v16_load(scales)));
}

/* Folds the products of 16 keys, from `key` on, and one vector. */
AMX_INLINE void fold_tile(const scoring *s, const float (*c)[SIDE], int key, uint32_t vector)
{
    v16_f factor = v16_load(s->factors + vector * SIDE), x[SIDE];
    uint32_t part = s->row_vectors > 1 ? vector % s->row_vectors : 0;
    float *sums = s->sums + (size_t)key * SIDE;
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i++) {
        v16_f sum = part == 0 ? v16_zero() : v16_load(sums + i * SIDE);
        x[i] = v16_fma(v16_max(v16_load(c[i]), v16_zero()), factor, sum);
    }
    if (part + 1 < s->row_vectors) {
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++)
            v16_store(sums + i * SIDE, x[i]);
        return;
    }
    if (s->row_vectors == 0) {
        v16_f low = add_eighths(x), high = add_eighths(x + 8);
        put_scores(s, 2 * vector, key, _mm512_shuffle_f32x4(low, high, 0x44));
        put_scores(s, 2 * vector + 1, key, _mm512_shuffle_f32x4(low, high, 0xEE));
        return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = add_8(x[i], x[i + 8]);
    put_scores(s, vector / s->row_vectors, key, add_eighths(x));
}

/* One of a step's four tiles of products: 16 keys, one vector. */
AMX_INLINE void fold_part(const scoring *s, const products *p, step at, int part)
{
    int tile = part % 2, v = part / 2;
    if (at.vector + (uint32_t)v < s->vectors)
        fold_tile(s, p->c[tile][v], at.half * STEP_KEYS + tile * SIDE, at.vector + (uint32_t)v);
}

/* Multiplies the step `at` into tiles 0..3. Between the products: what is left of the step before
 * (NULL: none), and some keys of the next page. */
AMX_INLINE void multiply(scoring *s, step at, const products *before, step before_at, int convert)
{
    const uint16_t *keys = s->keys + (size_t)at.half * STEP_KEYS * KRN_INDEX_DIM;
    const uint32_t *b = s->form + at.vector * VECTOR_SIZE;
    const size_t stride = KRN_INDEX_DIM * sizeof *keys;
    bool two = at.vector + 1 < s->vectors;
    KRN_TILE_ZERO(0);
    KRN_TILE_ZERO(1);
    KRN_TILE_ZERO(2);
    KRN_TILE_ZERO(3);
    for (int i = 0; i < DIM_STEPS; i++, keys += TILE_DIMS, b += TILE_WORDS) {
        KRN_TILE_LOAD(4, keys, stride);
        KRN_TILE_LOAD(5, keys + SIDE * KRN_INDEX_DIM, stride);
        KRN_TILE_LOAD(6, b, SIDE * 4);
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_DOT_BF16(1, 5, 6);
        if (two) {
            KRN_TILE_LOAD(7, b + VECTOR_SIZE, SIDE * 4);
            KRN_TILE_DOT_BF16(2, 4, 7);
            KRN_TILE_DOT_BF16(3, 5, 7);
        }
        if (before != NULL)
            fold_part(s, before, before_at, i);
        convert_next(s, convert);
    }
}

AMX_INLINE void store_products(products *out, bool two)
{
    KRN_TILE_STORE(0, out->c[0][0], SIDE * 4);
    KRN_TILE_STORE(1, out->c[1][0], SIDE * 4);
    if (two) {
        KRN_TILE_STORE(2, out->c[0][1], SIDE * 4);
        KRN_TILE_STORE(3, out->c[1][1], SIDE * 4);
    }
}

AMX_INLINE void score_page(scoring *s)
{
    _Alignas(64) products p[2];
    int steps = 2 * (int)((s->vectors + 1) / 2);
    int convert = (PAGE_KEYS + DIM_STEPS * steps - 1) / (DIM_STEPS * steps);
    s->next_done = 0;
    for (int i = 0; i < steps; i++) {
        step at = step_at(i);
        multiply(s, at, i > 0 ? &p[(i - 1) % 2] : NULL, step_at(i - 1), convert);
        store_products(&p[i % 2], at.vector + 1 < s->vectors);
    }
    for (int part = 0; part < 4; part++)
        fold_part(s, &p[(steps - 1) % 2], step_at(steps - 1), part);
}

KRN_AMX_TARGET void krn_amx_score(const krn_score_tile *tile)
{
    _Alignas(64) uint16_t keys[2][PAGE_KEYS * (int)KRN_INDEX_DIM];
    _Alignas(64) float sums[PAGE_KEYS * SIDE];
    krn_score_page page, next;
    uint32_t lanes = krn_score_lanes(tile->heads);
    uint32_t vectors = krn_score_vectors(tile->row_count, tile->heads);
    scoring s = {.tile = tile,
                 .page = &page,
                 .form = tile->queries,
                 .factors =
                     (const float *)((const uint32_t *)tile->queries + vectors * VECTOR_SIZE),
                 .vectors = vectors,
                 .row_vectors = lanes / SIDE,
                 .sums = sums};
    KRN_TILES_BEGIN(&krn_tiles_full);
    page = krn_score_page_at(tile, tile->from);
    convert_keys(page.page + KRN_INDEX_CODES_AT, PAGE_KEYS, keys[0]);
    for (int now = 0;; now ^= 1, page = next) {
        uint32_t slot = tile->from + (uint32_t)(page.out - tile->out) + page.to - page.from;
        s.keys = keys[now];
        s.next = NULL;
        if (slot < tile->to) {
            next = krn_score_page_at(tile, slot);
            slot += next.to - next.from;
            s.next = next.page + KRN_INDEX_CODES_AT;
            s.ahead = s.next;
            if (slot < tile->to)
                s.ahead = krn_score_page_at(tile, slot).page + KRN_INDEX_CODES_AT;
            s.next_keys = keys[now ^ 1];
        }
        score_page(&s);
        if (s.next == NULL)
            break;
    }
    KRN_TILES_END();
}

#endif
