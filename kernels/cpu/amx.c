/* The AMX variant: products by bf16 tiles, in the order of amx_order.h. Any thread.
 *
 * A task runs down k in parts. Of each part it makes the rows' inputs bf16 once; then each panel's
 * weights, two scale blocks at a time, become bf16 (fp8; bf16 panels are tiles as they lie) and two
 * tiles of rows meet the two tiles of a panel. The sums of 32 rows and 32 columns wait in memory,
 * in one piece of 4 KB: the first cache has room for it beside the step's weights (16 KB) and the
 * inputs of 32 rows (16 KB). fp8: a block's sums leave the tiles to be scaled.
 *
 * Many rows: a part is one step, so that weights are converted once for all of them. Few rows: a
 * part is as long as there is room for inputs, so that weights come from memory in long runs. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_convert.h"
#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16.h"

#define TILE_SIDE  16u             /* rows of a tile, and columns of a tile of sums */
#define STEP       32u             /* k of one tile instruction */
#define CUT        (2 * KRN_BLOCK) /* k of weights that are converted together */
#define FEW_PART   (CUT * KRN_AMX_TILE_ROWS / TILE_SIDE)
#define PIECE_ROWS (2 * TILE_SIDE)
#define PIECE      (PIECE_ROWS * KRN_PANEL_COLUMNS)
#define PIECES     (KRN_AMX_TILE_ROWS / PIECE_ROWS)
#define SUM_BYTES  (KRN_PANEL_COLUMNS * sizeof(float))
#define PAIR_BYTES (2 * KRN_PANEL_COLUMNS * sizeof(uint16_t)) /* one pair of k of a panel */

/* Constant at every call, so branches fold. */
typedef enum product_kind {
    PRODUCT_FP8,
    PRODUCT_BF16,
} product_kind;

/* What a task works on. */
typedef struct work {
    _Alignas(64) float sums[KRN_TILE_PANELS][PIECES][PIECE];
    _Alignas(64) uint16_t a[KRN_AMX_TILE_ROWS * CUT]; /* [rows][part] */
    _Alignas(64) uint16_t w[CUT * KRN_PANEL_COLUMNS];
    _Alignas(64) float block_sums[PIECE];              /* fp8 */
    float scales[KRN_AMX_TILE_ROWS * CUT / KRN_BLOCK]; /* fp8: [blocks of the part][rows] */
    uint32_t rows, part;
} work;

/* Inputs of the tile's rows in a part; the last step of bf16 is filled up with zeros. */
KRN_AMX_INLINE void make_inputs(const product_kind kind, const krn_gemm *gemm, const krn_tile *tile,
                                uint32_t k_first, uint32_t k, work *at)
{
    uint16_t *a = at->a;
    krn_codes_lookup table = krn_codes_lookup_load();
    uint32_t stride = gemm->input_stride ? gemm->input_stride : gemm->matrix->k;
    for (uint32_t r = 0; r < tile->row_count; r++, a += at->part) {
        size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
        size_t first = in * stride + k_first;
        if (kind == PRODUCT_FP8) {
            for (uint32_t j = 0; j < k; j += 64)
                krn_codes_in_order(&table, (const uint8_t *)gemm->input + first + j, a + j);
        } else {
            const uint16_t *from = (const uint16_t *)gemm->input + first;
            uint32_t j = 0;
            for (; j + STEP <= k; j += STEP)
                _mm512_store_si512(a + j, _mm512_loadu_si512(from + j));
            for (; j % STEP != 0 || j < k; j++)
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
            scales[b * group->row_count + r] = of_inputs[b] * of_weights[b];
    }
}

/* `k` of a panel's weights from element `at` on, as tiles: pairs of k PAIR_BYTES apart. few: what
 * follows them is fetched meanwhile. */
KRN_AMX_INLINE const uint16_t *make_weights(const product_kind kind, const krn_matrix *m, size_t at,
                                            uint32_t k, bool few, uint16_t *w)
{
    if (kind == PRODUCT_BF16)
        return (const uint16_t *)m->panels + at;
    krn_codes_lookup table = krn_codes_lookup_load();
    const uint8_t *codes = (const uint8_t *)m->panels + at;
    for (uint32_t i = 0; i < k * KRN_PANEL_COLUMNS; i += 64) {
        __m512i low, high;
        if (few)
            _mm_prefetch((const char *)codes + i + CUT * KRN_PANEL_COLUMNS, _MM_HINT_T0);
        krn_codes_halves(&table, _mm512_loadu_si512(codes + i), &low, &high);
        _mm512_store_si512(w + i, low);
        _mm512_store_si512(w + i + 32, high);
    }
    return w;
}

/* Fetches `k` of a panel from element `at` on (beyond the last panel that does not fault). */
KRN_AMX_INLINE void fetch_ahead(const product_kind kind, const krn_matrix *m, size_t at, uint32_t k)
{
    size_t bytes = kind == PRODUCT_FP8 ? 1 : sizeof(uint16_t);
    const char *p = (const char *)m->panels + at * bytes;
    for (size_t i = 0; i < k * KRN_PANEL_COLUMNS * bytes; i += 64)
        _mm_prefetch(p + i, _MM_HINT_T1);
}

/* One or two tiles of rows times a panel; `fresh`: the sums begin at zero. */
KRN_AMX_INLINE void multiply(const bool two, const bool fresh, const uint16_t *a, uint32_t part,
                             const uint16_t *w, uint32_t steps, float *sums)
{
    const size_t a_bytes = part * sizeof *a;
    float *const below = sums + TILE_SIDE * KRN_PANEL_COLUMNS;
    if (fresh) {
        KRN_TILE_ZERO(0);
        KRN_TILE_ZERO(1);
        KRN_TILE_ZERO(2);
        KRN_TILE_ZERO(3);
    } else {
        KRN_TILE_LOAD(0, sums, SUM_BYTES);
        KRN_TILE_LOAD(1, sums + TILE_SIDE, SUM_BYTES);
        if (two) {
            KRN_TILE_LOAD(2, below, SUM_BYTES);
            KRN_TILE_LOAD(3, below + TILE_SIDE, SUM_BYTES);
        }
    }
    for (uint32_t s = 0; s < steps; s++, a += STEP, w += STEP * KRN_PANEL_COLUMNS) {
        KRN_TILE_LOAD(6, w, PAIR_BYTES);
        KRN_TILE_LOAD(4, a, a_bytes);
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_LOAD(7, w + STEP, PAIR_BYTES);
        KRN_TILE_DOT_BF16(1, 4, 7);
        if (two) {
            KRN_TILE_LOAD(5, a + TILE_SIDE * part, a_bytes);
            KRN_TILE_DOT_BF16(2, 5, 6);
            KRN_TILE_DOT_BF16(3, 5, 7);
        }
    }
    KRN_TILE_STORE(0, sums, SUM_BYTES);
    KRN_TILE_STORE(1, sums + TILE_SIDE, SUM_BYTES);
    if (two) {
        KRN_TILE_STORE(2, below, SUM_BYTES);
        KRN_TILE_STORE(3, below + TILE_SIDE, SUM_BYTES);
    }
}

/* sums += block_sums * scale for `rows` rows of a piece. */
KRN_AMX_INLINE void add_scaled(const float *block_sums, const float *scales, uint32_t rows,
                               float *sums)
{
    for (uint32_t i = 0; i < rows * KRN_PANEL_COLUMNS; i += KRN_PANEL_COLUMNS) {
        v16_f scale = v16_set1(scales[i / KRN_PANEL_COLUMNS]);
        v16_f left = v16_mul(v16_load(block_sums + i), scale);
        v16_f right = v16_mul(v16_load(block_sums + i + 16), scale);
        v16_store(sums + i, v16_add(v16_load(sums + i), left));
        v16_store(sums + i + 16, v16_add(v16_load(sums + i + 16), right));
    }
}

/* `rows` rows from `first` on times `k` of a panel's weights, from `offset` in the part on. */
KRN_AMX_INLINE void multiply_piece(const product_kind kind, const bool two, work *at,
                                   const uint16_t *w, uint32_t first, uint32_t rows,
                                   uint32_t offset, uint32_t k, float *sums)
{
    const uint16_t *a = at->a + first * at->part + offset;
    if (kind == PRODUCT_BF16) {
        multiply(two, false, a, at->part, w, (k + STEP - 1) / STEP, sums);
        return;
    }
    const float *scales = at->scales + offset / KRN_BLOCK * at->rows + first;
    for (uint32_t b = 0; b < k / KRN_BLOCK; b++, scales += at->rows) {
        multiply(two, true, a + b * KRN_BLOCK, at->part, w + b * KRN_BLOCK * KRN_PANEL_COLUMNS,
                 KRN_BLOCK / STEP, at->block_sums);
        add_scaled(at->block_sums, scales, rows, sums);
    }
}

KRN_AMX_INLINE void multiply_rows(const product_kind kind, work *at, const uint16_t *w,
                                  uint32_t offset, uint32_t k, float (*pieces)[PIECE])
{
    for (uint32_t r = 0; r < at->rows; r += PIECE_ROWS, pieces++) {
        uint32_t left = at->rows - r < PIECE_ROWS ? at->rows - r : PIECE_ROWS;
        if (left > TILE_SIDE)
            multiply_piece(kind, true, at, w, r, left, offset, k, *pieces);
        else
            multiply_piece(kind, false, at, w, r, left, offset, k, *pieces);
    }
}

KRN_AMX_INLINE void write_output(const bool to_bf16, const krn_gemm *gemm, const krn_tile *tile,
                                 uint32_t panel, float (*pieces)[PIECE])
{
    uint32_t n = gemm->matrix->n, first = panel * KRN_PANEL_COLUMNS;
    uint32_t stride = gemm->output_stride ? gemm->output_stride : n;
    uint32_t columns = n - first < KRN_PANEL_COLUMNS ? n - first : KRN_PANEL_COLUMNS;
    for (uint32_t r = 0; r < tile->row_count; r++) {
        const float *sums = pieces[r / PIECE_ROWS] + r % PIECE_ROWS * KRN_PANEL_COLUMNS;
        size_t at = (size_t)(tile->row + r) * stride + first;
        if (to_bf16) {
            uint16_t *out = (uint16_t *)gemm->output + at;
            uint32_t c = 0;
            for (; c + 16 <= columns; c += 16)
                v16_store_bf16(out + c, v16_load(sums + c));
            for (; c < columns; c++)
                out[c] = krn_f32_to_bf16(sums[c]);
        } else if (columns == KRN_PANEL_COLUMNS) {
            v16_store((float *)gemm->output + at, v16_load(sums));
            v16_store((float *)gemm->output + at + 16, v16_load(sums + 16));
        } else {
            memcpy((float *)gemm->output + at, sums, columns * sizeof(float));
        }
    }
}

/* One part, from k_first on, of all panels. */
KRN_AMX_INLINE void product_part(const product_kind kind, const krn_gemm *gemm,
                                 const krn_tile *tile, uint32_t k_first, uint32_t k, work *at)
{
    const krn_matrix *m = gemm->matrix;
    const bool few = at->rows <= TILE_SIDE;
    krn_tile group;
    make_inputs(kind, gemm, tile, k_first, k, at);
    for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++) {
        if (kind == PRODUCT_FP8)
            make_scales(gemm, &group, k_first, k, at->scales);
        for (uint32_t p = 0; p < group.panel_count; p++) {
            size_t from =
                (group.panel + p) * krn_panel_size(m) + (size_t)k_first * KRN_PANEL_COLUMNS;
            if (!few)
                fetch_ahead(kind, m, from + krn_panel_size(m), k);
            for (uint32_t offset = 0; offset < k; offset += CUT) {
                uint32_t cut = k - offset < CUT ? k - offset : CUT;
                const uint16_t *w =
                    make_weights(kind, m, from + offset * KRN_PANEL_COLUMNS, cut, few, at->w);
                multiply_rows(kind, at, w, offset, cut, at->sums[g * KRN_GROUP_PANELS + p]);
            }
        }
    }
}

KRN_AMX_INLINE void product(const product_kind kind, const bool to_bf16, const krn_gemm *gemm,
                            const krn_tile *tile)
{
    work at;
    uint32_t k = gemm->matrix->k;
    at.rows = tile->row_count;
    at.part = at.rows > TILE_SIDE ? CUT : FEW_PART;
    /* Fewer rows than a tile has: the rows of A and of the sums are only those. */
    krn_tiles tiles = krn_tiles_full;
    if (at.rows < TILE_SIDE)
        tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = (uint8_t)at.rows;
    for (uint32_t p = 0; p < tile->panel_count; p++)
        memset(at.sums[p], 0, at.rows * SUM_BYTES);
    KRN_TILES_BEGIN(&tiles);
    for (uint32_t first = 0; first < k; first += at.part)
        product_part(kind, gemm, tile, first, k - first < at.part ? k - first : at.part, &at);
    KRN_TILES_END();
    for (uint32_t p = 0; p < tile->panel_count; p++)
        write_output(to_bf16, gemm, tile, tile->panel + p, at.sums[p]);
}

KRN_AMX_TARGET static void gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    if (tile->row_count <= KRN_AMX_STREAM_ROWS)
        krn_amx_stream_fp8(gemm, tile);
    else
        product(PRODUCT_FP8, true, gemm, tile);
}

KRN_AMX_TARGET static void gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    product(PRODUCT_BF16, true, gemm, tile);
}

KRN_AMX_TARGET static void gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    product(PRODUCT_BF16, false, gemm, tile);
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
