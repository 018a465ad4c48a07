/* Products of up to 16 rows by tiles, whose weights stream from memory. Any thread.
 *
 * Memory bounds them, so all else stands back: two panels are two streams, and what comes AHEAD
 * bytes later is fetched while a step's weights become bf16. The order is that of amx_order.h. */
#if defined(__x86_64__)

#include "kernels/cpu/amx_product.h"

#define STEP KRN_AMX_STEP

#define PART          8192u /* k whose inputs are made at once: 256 KB, for the second cache */
#define TILE          (STEP * KRN_PANEL_COLUMNS) /* elements of one step of a panel */
#define PIECE         (KRN_AMX_FEW_ROWS * KRN_PANEL_COLUMNS)
#define AHEAD         2u /* items: what comes so much later is fetched */
#define ELEMENT(kind) ((kind) == KRN_AMX_FP8 ? 1u : (uint32_t)sizeof(uint16_t)) /* bytes */

typedef struct work {
    _Alignas(64) float sums[KRN_TILE_PANELS][PIECE];                   /* [row][column] */
    _Alignas(64) uint16_t a[PART * KRN_AMX_FEW_ROWS];                  /* [step][row][STEP] */
    _Alignas(64) uint16_t w[2][TILE];                                  /* of two steps in turn */
    _Alignas(64) float block_sums[2][PIECE];                           /* fp8: of two blocks */
    float scales[KRN_TILE_GROUPS][PART / KRN_BLOCK][KRN_AMX_FEW_ROWS]; /* fp8 */
} work;

static void make_scales(const krn_gemm *gemm, const krn_tile *tile, uint32_t k_first, uint32_t k,
                        work *at)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t blocks = m->k / KRN_BLOCK, first = k_first / KRN_BLOCK;
    for (uint32_t r = 0; r < tile->row_count; r++) {
        const float *of_inputs =
            gemm->input_scales + (size_t)krn_amx_input_row(gemm, tile->row + r) * blocks;
        for (uint32_t g = 0; g * KRN_GROUP_PANELS < tile->panel_count; g++) {
            const float *of_weights =
                m->scales + (size_t)(tile->panel / KRN_GROUP_PANELS + g) * blocks;
            for (uint32_t b = 0; b < k / KRN_BLOCK; b++)
                at->scales[g][b][r] = of_inputs[first + b] * of_weights[first + b];
        }
    }
}

/* One step of a panel: as tiles, pairs of k KRN_AMX_PAIR_BYTES apart. What comes `ahead` is
 * fetched. */
KRN_AMX_INLINE const uint16_t *make_weights(const krn_amx_kind kind, const krn_codes_lookup *table,
                                            const uint8_t *from, const uint8_t *ahead, uint16_t *w)
{
    if (kind == KRN_AMX_BF16) {
        for (uint32_t i = 0; i < TILE * sizeof(uint16_t); i += 64)
            _mm_prefetch((const char *)ahead + i, _MM_HINT_T0);
        return (const uint16_t *)from;
    }
#pragma GCC unroll 2
    for (uint32_t i = 0; i < TILE; i += 128) {
        __m512i codes[2], even[2], odd[2];
        for (uint32_t v = 0; v < 2; v++) {
            _mm_prefetch((const char *)ahead + i + v * 64, _MM_HINT_T0);
            codes[v] = _mm512_loadu_si512(from + i + v * 64);
        }
        krn_codes_halves_down(table, codes, even, odd);
        for (uint32_t v = 0; v < 2; v++) {
            _mm512_store_si512(w + i + v * 64, even[v]);
            _mm512_store_si512(w + i + v * 64 + 32, odd[v]);
        }
    }
    return w;
}

/* Panels of one scale block, by items of a block of k of one panel; an item's sums are one of two
 * pairs of tiles in turn. */
typedef struct run {
    const uint8_t *from, *next; /* the first panel's k; what is needed after the last item */
    size_t stride;              /* bytes between panels */
    uint32_t panels, rows;
    uint32_t steps, block_steps;             /* of a panel, of an item */
    const float (*scales)[KRN_AMX_FEW_ROWS]; /* fp8: [block][row] */
    float *sums;                             /* [panel][PIECE] */
    work *at;
} run;

/* An item; `first`: its first step in the panel. */
typedef struct item {
    uint32_t panel, first, steps;
} item;

static inline item item_at(const run *r, uint32_t index)
{
    item i = {.panel = index % r->panels, .first = index / r->panels * r->block_steps};
    i.steps = r->steps - i.first < r->block_steps ? r->steps - i.first : r->block_steps;
    return i;
}

KRN_AMX_INLINE const uint8_t *item_weights(const krn_amx_kind kind, const run *r, const item *i)
{
    return r->from + i->panel * r->stride + (size_t)i->first * TILE * ELEMENT(kind);
}

/* Tiles of pair `second`: instructions name their tiles. */
KRN_AMX_INLINE void sums_begin(const krn_amx_kind kind, const bool second, const float *sums)
{
    if (kind == KRN_AMX_FP8 && second) {
        KRN_TILE_ZERO(2);
        KRN_TILE_ZERO(3);
    } else if (kind == KRN_AMX_FP8) {
        KRN_TILE_ZERO(0);
        KRN_TILE_ZERO(1);
    } else if (second) {
        KRN_TILE_LOAD(2, sums, KRN_AMX_SUM_BYTES);
        KRN_TILE_LOAD(3, sums + 16, KRN_AMX_SUM_BYTES);
    } else {
        KRN_TILE_LOAD(0, sums, KRN_AMX_SUM_BYTES);
        KRN_TILE_LOAD(1, sums + 16, KRN_AMX_SUM_BYTES);
    }
}

KRN_AMX_INLINE void sums_store(const bool second, float *sums)
{
    if (second) {
        KRN_TILE_STORE(2, sums, KRN_AMX_SUM_BYTES);
        KRN_TILE_STORE(3, sums + 16, KRN_AMX_SUM_BYTES);
    } else {
        KRN_TILE_STORE(0, sums, KRN_AMX_SUM_BYTES);
        KRN_TILE_STORE(1, sums + 16, KRN_AMX_SUM_BYTES);
    }
}

KRN_AMX_INLINE void multiply(const bool second, const uint16_t *a, const uint16_t *w)
{
    if (second) {
        KRN_TILE_LOAD(5, a, STEP * sizeof *a);
        KRN_TILE_LOAD(6, w, KRN_AMX_PAIR_BYTES);
        KRN_TILE_DOT_BF16(2, 5, 6);
        KRN_TILE_LOAD(7, w + STEP, KRN_AMX_PAIR_BYTES);
        KRN_TILE_DOT_BF16(3, 5, 7);
    } else {
        KRN_TILE_LOAD(4, a, STEP * sizeof *a);
        KRN_TILE_LOAD(6, w, KRN_AMX_PAIR_BYTES);
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_LOAD(7, w + STEP, KRN_AMX_PAIR_BYTES);
        KRN_TILE_DOT_BF16(1, 4, 7);
    }
}

/* Takes an item's sums out of its tiles. */
KRN_AMX_INLINE void finish_tiles(const krn_amx_kind kind, const bool second, const run *r,
                                 const item *i)
{
    sums_store(second,
               kind == KRN_AMX_FP8 ? r->at->block_sums[second] : r->sums + i->panel * PIECE);
}

/* fp8: adds rows [from, to) of them, scaled. */
KRN_AMX_INLINE void finish_rows(const bool second, const run *r, const item *i, uint32_t from,
                                uint32_t to)
{
    const size_t at = (size_t)from * KRN_PANEL_COLUMNS;
    krn_amx_add_scaled(r->at->block_sums[second] + at, r->scales[i->first / r->block_steps] + from,
                       to - from, r->sums + i->panel * PIECE + at);
}

/* Item `index`; the one before it is finished between its steps: right away that would wait for the
 * tiles, and with it what fetches weights. */
KRN_AMX_INLINE void run_item(const krn_amx_kind kind, const bool second, const run *r,
                             uint32_t index, uint32_t count)
{
    const item i = item_at(r, index), later = item_at(r, index + AHEAD);
    const item before = index > 0 ? item_at(r, index - 1) : i;
    const uint32_t bytes = TILE * ELEMENT(kind), half = r->rows / 2;
    const uint8_t *from = item_weights(kind, r, &i);
    const uint8_t *ahead = index + AHEAD < count ? item_weights(kind, r, &later) : r->next;
    const uint16_t *a = r->at->a + (size_t)i.first * r->rows * STEP;
    const krn_codes_lookup table = krn_codes_lookup_load();
    sums_begin(kind, second, r->sums + i.panel * PIECE);
    for (uint32_t s = 0; s < i.steps; s++, from += bytes, ahead += bytes, a += r->rows * STEP) {
        multiply(second, a, make_weights(kind, &table, from, ahead, r->at->w[s % 2]));
        if (index == 0)
            continue;
        if (s == 0)
            finish_tiles(kind, !second, r, &before);
        else if (kind == KRN_AMX_FP8 && s == 1)
            finish_rows(!second, r, &before, 0, half);
        else if (kind == KRN_AMX_FP8 && s == 2)
            finish_rows(!second, r, &before, half, r->rows);
    }
}

KRN_AMX_INLINE void run_items(const krn_amx_kind kind, const run *r)
{
    const uint32_t count = (r->steps + r->block_steps - 1) / r->block_steps * r->panels;
    uint32_t i = 0;
    for (; i + 2 <= count; i += 2) {
        run_item(kind, false, r, i, count);
        run_item(kind, true, r, i + 1, count);
    }
    if (i < count)
        run_item(kind, false, r, i, count);
    const item last = item_at(r, count - 1);
    const bool second = count % 2 == 0;
    if (second)
        finish_tiles(kind, true, r, &last);
    else
        finish_tiles(kind, false, r, &last);
    if (kind == KRN_AMX_FP8)
        finish_rows(second, r, &last, 0, r->rows);
}

/* Fetches line `line` of the items' weights into the second cache, if there are so many. */
KRN_AMX_INLINE void fetch_line(const krn_amx_kind kind, const run *r, uint32_t line)
{
    const uint32_t lines = r->block_steps * TILE * ELEMENT(kind) / 64;
    const item i = item_at(r, line / lines);
    if (i.first < r->steps)
        _mm_prefetch((const char *)item_weights(kind, r, &i) + line % lines * 64, _MM_HINT_T1);
}

/* Inputs of `k` from k_first on, step by step; memory brings the first weights meanwhile. */
KRN_AMX_INLINE void make_inputs(const krn_amx_kind kind, const krn_gemm *gemm, const krn_tile *tile,
                                uint32_t k_first, uint32_t k, const run *r)
{
    krn_codes_lookup table = krn_codes_lookup_load();
    size_t stride = gemm->input_stride ? gemm->input_stride : gemm->matrix->k;
    const uint32_t rows = tile->row_count;
    uint32_t line = 0;
    for (uint32_t row = 0; row < rows; row++) {
        size_t first = krn_amx_input_row(gemm, tile->row + row) * stride + k_first;
        uint16_t *to = r->at->a + row * STEP;
        if (kind == KRN_AMX_FP8) {
            for (uint32_t j = 0; j < k; j += 2 * STEP, to += 2 * rows * STEP) {
                _Alignas(64) uint16_t values[2 * STEP];
                fetch_line(kind, r, line++);
                krn_codes_in_order(&table, (const uint8_t *)gemm->input + first + j, values);
                for (uint32_t i = 0; i < 2; i++) {
                    __m512i x = _mm512_load_si512(values + i * STEP);
                    _mm512_store_si512(to + i * rows * STEP, krn_bf16_rescale(x, KRN_CODES_DOWN));
                }
            }
        } else {
            const uint16_t *from = (const uint16_t *)gemm->input + first;
            for (uint32_t j = 0; j < k; j += STEP, to += rows * STEP) {
                /* The last step is filled up with zeros. */
                uint32_t left = k - j;
                fetch_line(kind, r, line++);
                __mmask32 there = left < STEP ? (1u << left) - 1 : 0xFFFFFFFFu;
                _mm512_store_si512(to, _mm512_maskz_loadu_epi16(there, from + j));
            }
        }
    }
}

/* One part, from k_first on, of all panels. */
KRN_AMX_INLINE void product_part(const krn_amx_kind kind, const krn_gemm *gemm,
                                 const krn_tile *tile, uint32_t k_first, uint32_t k, work *at)
{
    const krn_matrix *m = gemm->matrix;
    const size_t stride = krn_panel_size(m) * ELEMENT(kind);
    const uint8_t *from = (const uint8_t *)m->panels + tile->panel * stride +
                          (size_t)k_first * KRN_PANEL_COLUMNS * ELEMENT(kind);
    run r = {.stride = stride, .steps = (k + STEP - 1) / STEP, .rows = tile->row_count, .at = at};
    krn_tile group;
    for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++) {
        r.from = from + (size_t)(group.panel - tile->panel) * stride;
        r.next = r.from + group.panel_count * stride;
        r.panels = group.panel_count;
        /* bf16: an item takes its panel's sums up again, which the item before must have left. */
        r.block_steps = kind == KRN_AMX_BF16 && r.panels == 1 ? r.steps : KRN_BLOCK / STEP;
        r.scales = (const float(*)[KRN_AMX_FEW_ROWS])at->scales[g];
        r.sums = at->sums[g * KRN_GROUP_PANELS];
        if (g == 0) {
            make_inputs(kind, gemm, tile, k_first, k, &r);
            if (kind == KRN_AMX_FP8)
                make_scales(gemm, tile, k_first, k, at);
        }
        run_items(kind, &r);
    }
}

KRN_AMX_INLINE void product(const krn_amx_kind kind, const bool to_bf16, const krn_gemm *gemm,
                            const krn_tile *tile)
{
    work at;
    krn_tiles tiles = krn_tiles_full;
    uint32_t k = gemm->matrix->k;
    for (int t = 0; t < 6; t++) /* sums and inputs */
        tiles.rows[t] = (uint8_t)tile->row_count;
    for (uint32_t p = 0; p < tile->panel_count; p++)
        memset(at.sums[p], 0, tile->row_count * KRN_AMX_SUM_BYTES);
    KRN_TILES_BEGIN(&tiles);
    for (uint32_t first = 0; first < k; first += PART)
        product_part(kind, gemm, tile, first, k - first < PART ? k - first : PART, &at);
    KRN_TILES_END();
    for (uint32_t p = 0; p < tile->panel_count; p++)
        krn_amx_write(to_bf16, gemm, tile->row, tile->row_count, tile->panel + p, at.sums[p]);
}

KRN_AMX_TARGET void krn_amx_few_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    product(KRN_AMX_FP8, true, gemm, tile);
}

KRN_AMX_TARGET void krn_amx_few_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    product(KRN_AMX_BF16, true, gemm, tile);
}

KRN_AMX_TARGET void krn_amx_few_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    product(KRN_AMX_BF16, false, gemm, tile);
}

#endif
