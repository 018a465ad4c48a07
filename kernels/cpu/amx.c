/* The AMX variant: products by bf16 tiles, in the order of amx_order.h. Any thread.
 *
 * A task runs down k in parts. Of each part it makes the rows' inputs bf16 once; then each panel's
 * weights, two scale blocks at a time, become bf16 (fp8; bf16 panels are tiles as they lie) and two
 * tiles of rows meet the two tiles of a panel. The sums of 32 rows and 32 columns wait in memory,
 * in one piece of 4 KB: the first cache has room for it beside the part's weights (16 KB) and the
 * inputs of 32 rows (16 KB). fp8: a block's sums leave the tiles to be scaled, which vectors do
 * while the next block is on the tiles. Up to 16 rows: amx_few.c. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_product.h"

#define TILE_SIDE  16u             /* rows of a tile, and columns of a tile of sums */
#define CUT        (2 * KRN_BLOCK) /* k of weights that are converted together */
#define PIECE_ROWS (2 * TILE_SIDE)
#define PIECE      (PIECE_ROWS * KRN_PANEL_COLUMNS)
#define SCALE_ROWS (KRN_AMX_TILE_ROWS + PIECE_ROWS) /* a piece may lack rows */
#define PIECES     (KRN_AMX_TILE_ROWS / PIECE_ROWS)

/* What a task works on. */
typedef struct work {
    _Alignas(64) float sums[KRN_TILE_PANELS][PIECES][PIECE];
    _Alignas(64) uint16_t a[KRN_AMX_TILE_ROWS * CUT]; /* [rows][part] */
    _Alignas(64) uint16_t w[CUT * KRN_PANEL_COLUMNS];
    _Alignas(64) float block_sums[2][PIECE];    /* fp8: of this block and the one before */
    float scales[CUT / KRN_BLOCK * SCALE_ROWS]; /* fp8: [block of the part][row] */
    uint32_t rows;
    uint32_t blocks;        /* fp8: done */
    const float *scales_to; /* fp8: of the block before; NULL: there is none */
    float *sums_to;
} work;

/* Inputs of the tile's rows in a part; the last step of bf16 is filled up with zeros. */
KRN_AMX_INLINE void make_inputs(const krn_amx_kind kind, const krn_gemm *gemm, const krn_tile *tile,
                                uint32_t k_first, uint32_t k, work *at)
{
    uint16_t *a = at->a;
    krn_codes_lookup table = krn_codes_lookup_load();
    uint32_t stride = gemm->input_stride ? gemm->input_stride : gemm->matrix->k;
    for (uint32_t r = 0; r < tile->row_count; r++, a += CUT) {
        size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
        size_t first = in * stride + k_first;
        if (kind == KRN_AMX_FP8) {
            for (uint32_t j = 0; j < k; j += 64)
                krn_codes_in_order(&table, (const uint8_t *)gemm->input + first + j, a + j);
        } else {
            const uint16_t *from = (const uint16_t *)gemm->input + first;
            uint32_t j = 0;
            for (; j + KRN_AMX_STEP <= k; j += KRN_AMX_STEP)
                _mm512_store_si512(a + j, _mm512_loadu_si512(from + j));
            for (; j % KRN_AMX_STEP != 0 || j < k; j++)
                a[j] = j < k ? from[j] : 0;
        }
    }
}

/* Products of the scales of a row's inputs and of the weights in scale blocks from k_first on. */
static void make_scales(const krn_gemm *gemm, const krn_tile *group, uint32_t k_first, uint32_t k,
                        float *scales)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t blocks = m->k / KRN_BLOCK, first = k_first / KRN_BLOCK;
    const float *of_weights = m->scales + (size_t)group->panel / KRN_GROUP_PANELS * blocks + first;
    for (uint32_t r = 0; r < group->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[group->row + r] : group->row + r;
        const float *of_inputs = gemm->input_scales + in * blocks + first;
        for (uint32_t b = 0; b < k / KRN_BLOCK; b++)
            scales[b * SCALE_ROWS + r] = of_inputs[b] * of_weights[b];
    }
}

/* `k` of a panel's weights from element `at` on, as tiles: pairs of k KRN_AMX_PAIR_BYTES apart. */
KRN_AMX_INLINE const uint16_t *make_weights(const krn_amx_kind kind, const krn_matrix *m, size_t at,
                                            uint32_t k, uint16_t *w)
{
    if (kind == KRN_AMX_BF16)
        return (const uint16_t *)m->panels + at;
    krn_codes_lookup table = krn_codes_lookup_load();
    const uint8_t *codes = (const uint8_t *)m->panels + at;
    for (uint32_t i = 0; i < k * KRN_PANEL_COLUMNS; i += 64) {
        __m512i low, high;
        krn_codes_halves(&table, _mm512_loadu_si512(codes + i), &low, &high);
        _mm512_store_si512(w + i, low);
        _mm512_store_si512(w + i + 32, high);
    }
    return w;
}

/* Fetches `k` of a panel from element `at` on (beyond the last panel that does not fault). */
KRN_AMX_INLINE void fetch_ahead(const krn_amx_kind kind, const krn_matrix *m, size_t at, uint32_t k)
{
    size_t bytes = kind == KRN_AMX_FP8 ? 1 : sizeof(uint16_t);
    const char *p = (const char *)m->panels + at * bytes;
    for (size_t i = 0; i < k * KRN_PANEL_COLUMNS * bytes; i += 64)
        _mm_prefetch(p + i, _MM_HINT_T1);
}

/* One step of one or two tiles of rows. */
KRN_AMX_INLINE void multiply_step(const bool two, const uint16_t *a, const uint16_t *w)
{
    const size_t a_bytes = CUT * sizeof *a;
    KRN_TILE_LOAD(6, w, KRN_AMX_PAIR_BYTES);
    KRN_TILE_LOAD(4, a, a_bytes);
    KRN_TILE_DOT_BF16(0, 4, 6);
    KRN_TILE_LOAD(7, w + KRN_AMX_STEP, KRN_AMX_PAIR_BYTES);
    KRN_TILE_DOT_BF16(1, 4, 7);
    if (two) {
        KRN_TILE_LOAD(5, a + TILE_SIDE * CUT, a_bytes);
        KRN_TILE_DOT_BF16(2, 5, 6);
        KRN_TILE_DOT_BF16(3, 5, 7);
    }
}

KRN_AMX_INLINE void sums_load(const bool two, const float *sums)
{
    const float *below = sums + TILE_SIDE * KRN_PANEL_COLUMNS;
    KRN_TILE_LOAD(0, sums, KRN_AMX_SUM_BYTES);
    KRN_TILE_LOAD(1, sums + TILE_SIDE, KRN_AMX_SUM_BYTES);
    if (two) {
        KRN_TILE_LOAD(2, below, KRN_AMX_SUM_BYTES);
        KRN_TILE_LOAD(3, below + TILE_SIDE, KRN_AMX_SUM_BYTES);
    }
}

KRN_AMX_INLINE void sums_store(const bool two, float *sums)
{
    float *below = sums + TILE_SIDE * KRN_PANEL_COLUMNS;
    KRN_TILE_STORE(0, sums, KRN_AMX_SUM_BYTES);
    KRN_TILE_STORE(1, sums + TILE_SIDE, KRN_AMX_SUM_BYTES);
    if (two) {
        KRN_TILE_STORE(2, below, KRN_AMX_SUM_BYTES);
        KRN_TILE_STORE(3, below + TILE_SIDE, KRN_AMX_SUM_BYTES);
    }
}

/* Rows [from, to) of the block before, scaled, to their sums. Rows that the piece lacks are there
 * in memory, and nobody reads their sums. */
KRN_AMX_INLINE void finish_rows(work *at, uint32_t from, uint32_t to)
{
    const size_t first = (size_t)from * KRN_PANEL_COLUMNS;
    krn_amx_add_scaled(at->block_sums[(at->blocks + 1) % 2] + first, at->scales_to + from,
                       to - from, at->sums_to + first);
}

/* `rows` rows from `first` on times `k` of a panel's weights. */
KRN_AMX_INLINE void multiply_piece(const krn_amx_kind kind, const bool two, work *at,
                                   const uint16_t *w, uint32_t first, uint32_t k, float *sums)
{
    const uint32_t block_steps = KRN_BLOCK / KRN_AMX_STEP, step_rows = PIECE_ROWS / block_steps;
    const uint32_t steps = (k + KRN_AMX_STEP - 1) / KRN_AMX_STEP;
    const uint16_t *a = at->a + (size_t)first * CUT;
    if (kind == KRN_AMX_BF16)
        sums_load(two, sums);
    for (uint32_t s = 0; s < steps; s++, a += KRN_AMX_STEP, w += KRN_AMX_STEP * KRN_PANEL_COLUMNS) {
        const uint32_t step = s % block_steps;
        if (kind == KRN_AMX_FP8 && step == 0) {
            KRN_TILE_ZERO(0);
            KRN_TILE_ZERO(1);
            KRN_TILE_ZERO(2);
            KRN_TILE_ZERO(3);
        }
        multiply_step(two, a, w);
        if (kind == KRN_AMX_BF16)
            continue;
        if (at->scales_to != NULL)
            finish_rows(at, step * step_rows, (step + 1) * step_rows);
        if (step == block_steps - 1) {
            sums_store(two, at->block_sums[at->blocks++ % 2]);
            at->scales_to = at->scales + s / block_steps * SCALE_ROWS + first;
            at->sums_to = sums;
        }
    }
    if (kind == KRN_AMX_BF16)
        sums_store(two, sums);
}

/* One part, from k_first on, of a panel. */
KRN_AMX_INLINE void product_panel(const krn_amx_kind kind, const krn_matrix *m, uint32_t panel,
                                  uint32_t k_first, uint32_t k, work *at, float (*pieces)[PIECE])
{
    size_t from = panel * krn_panel_size(m) + (size_t)k_first * KRN_PANEL_COLUMNS;
    fetch_ahead(kind, m, from + krn_panel_size(m), k);
    const uint16_t *w = make_weights(kind, m, from, k, at->w);
    for (uint32_t r = 0; r < at->rows; r += PIECE_ROWS, pieces++) {
        if (at->rows - r > TILE_SIDE)
            multiply_piece(kind, true, at, w, r, k, *pieces);
        else
            multiply_piece(kind, false, at, w, r, k, *pieces);
    }
}

/* One part, from k_first on, of all panels. */
KRN_AMX_INLINE void product_part(const krn_amx_kind kind, const krn_gemm *gemm,
                                 const krn_tile *tile, uint32_t k_first, uint32_t k, work *at)
{
    krn_tile group;
    make_inputs(kind, gemm, tile, k_first, k, at);
    for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++) {
        if (kind == KRN_AMX_FP8)
            make_scales(gemm, &group, k_first, k, at->scales);
        for (uint32_t p = 0; p < group.panel_count; p++)
            product_panel(kind, gemm->matrix, group.panel + p, k_first, k, at,
                          at->sums[g * KRN_GROUP_PANELS + p]);
        /* The group's scales are made anew for the next. */
        if (at->scales_to != NULL)
            finish_rows(at, 0, PIECE_ROWS);
        at->scales_to = NULL;
    }
}

KRN_AMX_INLINE void product(const krn_amx_kind kind, const bool to_bf16, const krn_gemm *gemm,
                            const krn_tile *tile)
{
    work at;
    uint32_t k = gemm->matrix->k;
    at.rows = tile->row_count;
    at.blocks = 0;
    at.scales_to = NULL;
    memset(at.scales, 0, sizeof at.scales);
    for (uint32_t p = 0; p < tile->panel_count; p++)
        memset(at.sums[p], 0, (at.rows + PIECE_ROWS - 1) / PIECE_ROWS * sizeof at.sums[p][0]);
    KRN_TILES_BEGIN(&krn_tiles_full);
    for (uint32_t first = 0; first < k; first += CUT)
        product_part(kind, gemm, tile, first, k - first < CUT ? k - first : CUT, &at);
    KRN_TILES_END();
    for (uint32_t p = 0; p < tile->panel_count; p++)
        for (uint32_t r = 0; r < at.rows; r += PIECE_ROWS)
            krn_amx_write(to_bf16, gemm, tile->row + r,
                          at.rows - r < PIECE_ROWS ? at.rows - r : PIECE_ROWS, tile->panel + p,
                          at.sums[p][r / PIECE_ROWS]);
}

KRN_AMX_TARGET static void gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    if (tile->row_count <= KRN_AMX_FEW_ROWS)
        krn_amx_few_fp8(gemm, tile);
    else
        product(KRN_AMX_FP8, true, gemm, tile);
}

KRN_AMX_TARGET static void gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    if (tile->row_count <= KRN_AMX_FEW_ROWS)
        krn_amx_few_bf16(gemm, tile);
    else
        product(KRN_AMX_BF16, true, gemm, tile);
}

KRN_AMX_TARGET static void gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    if (tile->row_count <= KRN_AMX_FEW_ROWS)
        krn_amx_few_f32(gemm, tile);
    else
        product(KRN_AMX_BF16, false, gemm, tile);
}

const krn_variant krn_variant_amx = {
    .name = "amx",
    .numerics_id = KRN_NUMERICS_AMX,
    .tile_rows = KRN_AMX_TILE_ROWS,
    .common = &krn_common_avx512,
    .gemm_fp8 = gemm_fp8,
    .gemm_bf16 = gemm_bf16,
    .gemm_f32 = gemm_f32,
    .score_queries = krn_amx_score_queries,
    .score = krn_amx_score,
    .attend = krn_amx_attend,
};

#endif
