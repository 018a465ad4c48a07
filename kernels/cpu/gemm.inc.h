/* Template: the tile kernels of the linear layers. The including file defines V(x) (vector prefix),
 * LANES, GEMM_ROWS (rows of the register tile) and FEW_ROWS (2 or 4).
 *
 * Many rows: weights and inputs of a block of 128 k are converted to f32 once, then a register tile
 * of GEMM_ROWS x 2 vectors runs down the block. Up to FEW_ROWS rows (decode): weights are converted
 * in registers as they stream by. Lanes are output columns; each output is one chain over k. */

#define PANEL_VECTORS ((int)KRN_PANEL_COLUMNS / LANES)
#define TILE_COLUMNS  (KRN_TILE_PANELS * KRN_PANEL_COLUMNS)

/* Of the weights (and, fp8 and bf16, the inputs): constant at every call, so branches fold. */
typedef enum gemm_kind {
    GEMM_FP8,
    GEMM_BF16,
    GEMM_PLAIN,
} gemm_kind;

VEC_INLINE V(f) gemm_load(const gemm_kind kind, const void *p, size_t index)
{
    if (kind == GEMM_FP8)
        return V(from_e4m3)((const uint8_t *)p + index);
    if (kind == GEMM_BF16)
        return V(from_bf16)((const uint16_t *)p + index);
    return V(load)((const float *)p + index);
}

VEC_INLINE V(f) gemm_step(const gemm_kind kind, V(f) a, V(f) w, V(f) acc)
{
    /* Plain operands are f32: the product is rounded. */
    return kind == GEMM_PLAIN ? V(add)(acc, V(mul)(a, w)) : V(fma)(a, w, acc);
}

/* Ends a block: fp8 adds the scaled block sum, the others carry the chain on. */
VEC_INLINE void gemm_finish(const gemm_kind kind, float *acc, V(f) sum, float scale)
{
    if (kind == GEMM_FP8)
        sum = V(add)(V(load)(acc), V(mul)(sum, V(set1)(scale)));
    V(store)(acc, sum);
}

/* R rows x 2 vectors of columns over `k` steps. a: rows KRN_BLOCK apart; w: 32 columns a step. */
VEC_INLINE void gemm_block(const gemm_kind kind, const int R, const float *a, const float *w,
                           uint32_t k, float *acc, const float *scales)
{
    V(f) sum[GEMM_ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < 2; v++)
            sum[r][v] = kind == GEMM_FP8 ? V(zero)() : V(load)(acc + r * TILE_COLUMNS + v * LANES);
    }
    for (uint32_t j = 0; j < k; j++) {
        V(f) w0 = V(load)(w + (size_t)j * KRN_PANEL_COLUMNS);
        V(f) w1 = V(load)(w + (size_t)j * KRN_PANEL_COLUMNS + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            V(f) x = V(set1)(a[r * KRN_BLOCK + j]);
            sum[r][0] = gemm_step(kind, x, w0, sum[r][0]);
            sum[r][1] = gemm_step(kind, x, w1, sum[r][1]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < 2; v++)
            gemm_finish(kind, acc + r * TILE_COLUMNS + v * LANES, sum[r][v], scales[r]);
    }
}

VEC_INLINE void gemm_block_rows(const gemm_kind kind, uint32_t rows, const float *a, const float *w,
                                uint32_t k, float *acc, const float *scales)
{
    while (rows >= GEMM_ROWS) {
        gemm_block(kind, GEMM_ROWS, a, w, k, acc, scales);
        rows -= GEMM_ROWS;
        a += GEMM_ROWS * KRN_BLOCK;
        acc += GEMM_ROWS * TILE_COLUMNS;
        scales += GEMM_ROWS;
    }
    while (rows > 0) {
        uint32_t step = rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        if (step == 4)
            gemm_block(kind, 4, a, w, k, acc, scales);
        else if (step == 2)
            gemm_block(kind, 2, a, w, k, acc, scales);
        else
            gemm_block(kind, 1, a, w, k, acc, scales);
        rows -= step;
        a += step * KRN_BLOCK;
        acc += step * TILE_COLUMNS;
        scales += step;
    }
}

/* R rows x VS vectors, weights converted on the way. panels: first column of the first vector. */
VEC_INLINE void gemm_stream(const gemm_kind kind, const int R, const int VS, const float *a,
                            const void *panels, size_t panel_size, size_t first, uint32_t k,
                            float *acc, const float *scales)
{
    V(f) sum[4][8];
    size_t at[8];
#pragma GCC unroll 8
    for (int v = 0; v < VS; v++) {
        at[v] = first + (size_t)(v / PANEL_VECTORS) * panel_size + v % PANEL_VECTORS * LANES;
        for (int r = 0; r < R; r++)
            sum[r][v] = kind == GEMM_FP8 ? V(zero)() : V(load)(acc + r * TILE_COLUMNS + v * LANES);
    }
    for (uint32_t j = 0; j < k; j++) {
#pragma GCC unroll 8
        for (int v = 0; v < VS; v++) {
            V(f) w = gemm_load(kind, panels, at[v] + (size_t)j * KRN_PANEL_COLUMNS);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                sum[r][v] = gemm_step(kind, V(set1)(a[r * KRN_BLOCK + j]), w, sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < VS; v++) {
        for (int r = 0; r < R; r++)
            gemm_finish(kind, acc + r * TILE_COLUMNS + v * LANES, sum[r][v], scales[r]);
    }
}

/* All panels of a tile for few rows: 8 vectors at once for one row, else 4 or 2, panel by panel at
 * the end. */
VEC_INLINE void gemm_stream_rows(const gemm_kind kind, const int R, const float *a,
                                 const krn_matrix *m, const krn_tile *tile, uint32_t k_first,
                                 uint32_t k, float *acc, const float *scales)
{
    size_t panel_size = (size_t)m->k * KRN_PANEL_COLUMNS;
    size_t first = tile->panel * panel_size + (size_t)k_first * KRN_PANEL_COLUMNS;
    uint32_t left = tile->panel_count;
    const int wide = R == 1 ? 8 / PANEL_VECTORS : PANEL_VECTORS == 2 ? 2 : 1;
    while (left >= (uint32_t)wide) {
        gemm_stream(kind, R, wide * PANEL_VECTORS, a, m->panels, panel_size, first, k, acc, scales);
        left -= (uint32_t)wide;
        first += (size_t)wide * panel_size;
        acc += wide * (int)KRN_PANEL_COLUMNS;
    }
    for (; left > 0; left--) {
        gemm_stream(kind, R, PANEL_VECTORS, a, m->panels, panel_size, first, k, acc, scales);
        first += panel_size;
        acc += KRN_PANEL_COLUMNS;
    }
}

VEC_INLINE void gemm_input(const gemm_kind kind, const krn_gemm *gemm, const krn_tile *tile,
                           uint32_t block, uint32_t k, float *a, float *scales)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t stride = gemm->input_stride ? gemm->input_stride : m->k;
    uint32_t blocks = (m->k + KRN_BLOCK - 1) / KRN_BLOCK;
    uint32_t scale_row = tile->panel / KRN_TILE_PANELS * blocks;
    for (uint32_t r = 0; r < tile->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
        size_t at = in * stride + (size_t)block * KRN_BLOCK;
        uint32_t j = 0;
        for (; j + LANES <= k; j += LANES)
            V(store)(a + r * KRN_BLOCK + j, gemm_load(kind, gemm->input, at + j));
        for (; j < k; j++)
            a[r * KRN_BLOCK + j] = kind == GEMM_PLAIN
                                       ? ((const float *)gemm->input)[at + j]
                                       : krn_bf16_to_f32(((const uint16_t *)gemm->input)[at + j]);
        scales[r] = kind == GEMM_FP8
                        ? gemm->input_scales[in * blocks + block] * m->scales[scale_row + block]
                        : 1.0f;
    }
}

VEC_INLINE void gemm_output(const bool to_bf16, const krn_gemm *gemm, const krn_tile *tile,
                            const float *acc)
{
    uint32_t n = gemm->matrix->n;
    uint32_t stride = gemm->output_stride ? gemm->output_stride : n;
    uint32_t first = tile->panel * KRN_PANEL_COLUMNS;
    uint32_t columns = tile->panel_count * KRN_PANEL_COLUMNS;
    columns = columns < n - first ? columns : n - first;
    for (uint32_t r = 0; r < tile->row_count; r++, acc += TILE_COLUMNS) {
        size_t at = (size_t)(tile->row + r) * stride + first;
        uint32_t c = 0;
        if (!to_bf16) {
            memcpy((float *)gemm->output + at, acc, columns * sizeof(float));
            continue;
        }
        for (; c + LANES <= columns; c += LANES)
            V(store_bf16)((uint16_t *)gemm->output + at + c, V(load)(acc + c));
        for (; c < columns; c++)
            ((uint16_t *)gemm->output)[at + c] = krn_f32_to_bf16(acc[c]);
    }
}

/* Weights of one panel and block as f32. */
VEC_INLINE void gemm_weights(const gemm_kind kind, const krn_matrix *m, uint32_t panel,
                             uint32_t k_first, uint32_t k, float *w)
{
    size_t at = ((size_t)panel * m->k + k_first) * KRN_PANEL_COLUMNS;
    for (uint32_t i = 0; i < k * KRN_PANEL_COLUMNS; i += LANES)
        V(store)(w + i, gemm_load(kind, m->panels, at + i));
}

VEC_INLINE void gemm_many(const gemm_kind kind, const krn_matrix *m, const krn_tile *tile,
                          const float *a, uint32_t k_first, uint32_t k, float *acc,
                          const float *scales)
{
    _Alignas(64) float w[KRN_BLOCK * KRN_PANEL_COLUMNS];
    for (uint32_t p = 0; p < tile->panel_count; p++) {
        gemm_weights(kind, m, tile->panel + p, k_first, k, w);
        for (int c = 0; c < (int)KRN_PANEL_COLUMNS; c += 2 * LANES)
            gemm_block_rows(kind, tile->row_count, a, w + c, k, acc + p * KRN_PANEL_COLUMNS + c,
                            scales);
    }
}

VEC_INLINE void gemm_tile(const gemm_kind kind, const bool to_bf16, const krn_gemm *gemm,
                          const krn_tile *tile)
{
    _Alignas(64) float acc[KRN_TILE_ROWS * TILE_COLUMNS];
    _Alignas(64) float a[KRN_TILE_ROWS * KRN_BLOCK];
    float scales[KRN_TILE_ROWS];
    const krn_matrix *m = gemm->matrix;
    memset(acc, 0, tile->row_count * TILE_COLUMNS * sizeof(float));
    for (uint32_t first = 0; first < m->k; first += KRN_BLOCK) {
        uint32_t k = m->k - first < KRN_BLOCK ? m->k - first : KRN_BLOCK;
        gemm_input(kind, gemm, tile, first / KRN_BLOCK, k, a, scales);
        if (tile->row_count == 1)
            gemm_stream_rows(kind, 1, a, m, tile, first, k, acc, scales);
        else if (tile->row_count == 2)
            gemm_stream_rows(kind, 2, a, m, tile, first, k, acc, scales);
        else if (FEW_ROWS >= 3 && tile->row_count == 3)
            gemm_stream_rows(kind, 3, a, m, tile, first, k, acc, scales);
        else if (FEW_ROWS >= 4 && tile->row_count == 4)
            gemm_stream_rows(kind, 4, a, m, tile, first, k, acc, scales);
        else
            gemm_many(kind, m, tile, a, first, k, acc, scales);
    }
    gemm_output(to_bf16, gemm, tile, acc);
}

KRN_VEC_TARGET static void gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_FP8, true, gemm, tile);
}

KRN_VEC_TARGET static void gemm_bf16(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_BF16, true, gemm, tile);
}

KRN_VEC_TARGET static void gemm_f32(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_BF16, false, gemm, tile);
}

KRN_VEC_TARGET static void gemm_plain(const krn_gemm *gemm, const krn_tile *tile)
{
    gemm_tile(GEMM_PLAIN, false, gemm, tile);
}
