/* The AMX variant: products by bf16 tiles, in the order of amx_order.h. Any thread.
 *
 * A task runs down k in blocks of 128. Of each block it makes the rows' inputs bf16 once, and a
 * panel's weights once for all rows (fp8; bf16 panels are tiles as they lie); then two tiles of
 * rows meet two tiles of columns. fp8: a block's sums leave the tiles to be scaled and added up;
 * bf16: the sums of a task wait in memory between blocks. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_convert.h"
#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16.h"

#define GROUP_COLUMNS (KRN_GROUP_PANELS * KRN_PANEL_COLUMNS)
#define TILE_SIDE     16u /* rows of a tile, and columns of a tile of sums */
#define STEP          32u /* k of one tile instruction */
#define PAIR_BYTES    (2 * KRN_PANEL_COLUMNS * sizeof(uint16_t)) /* one pair of k of a panel */
#define A_BYTES       (KRN_BLOCK * sizeof(uint16_t))
#define ACC_BYTES     (GROUP_COLUMNS * sizeof(float))
#define P_BYTES       (KRN_PANEL_COLUMNS * sizeof(float))

/* Constant at every call, so branches fold. */
typedef enum product_kind {
    PRODUCT_FP8,
    PRODUCT_BF16,
} product_kind;

/* What a task works on, block by block. */
typedef struct work {
    _Alignas(64) float acc[KRN_TILE_GROUPS][KRN_AMX_TILE_ROWS * GROUP_COLUMNS];
    _Alignas(64) uint16_t a[KRN_AMX_TILE_ROWS * KRN_BLOCK];
    _Alignas(64) uint16_t w[KRN_BLOCK * KRN_PANEL_COLUMNS];
    _Alignas(64) float p[2 * TILE_SIDE * KRN_PANEL_COLUMNS];
    float scales[KRN_AMX_TILE_ROWS];
} work;

/* Inputs of the tile's rows and one block of k; the last step of bf16 is filled up with zeros. */
KRN_AMX_INLINE void make_inputs(const product_kind kind, const krn_gemm *gemm, const krn_tile *tile,
                                uint32_t k_first, uint32_t k, uint16_t *a)
{
    krn_codes_lookup table = krn_codes_lookup_load();
    uint32_t stride = gemm->input_stride ? gemm->input_stride : gemm->matrix->k;
    for (uint32_t r = 0; r < tile->row_count; r++, a += KRN_BLOCK) {
        size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
        size_t at = in * stride + k_first;
        if (kind == PRODUCT_FP8) {
            krn_codes_in_order(&table, (const uint8_t *)gemm->input + at, a);
            krn_codes_in_order(&table, (const uint8_t *)gemm->input + at + 64, a + 64);
        } else {
            memcpy(a, (const uint16_t *)gemm->input + at, k * sizeof *a);
            memset(a + k, 0, (0 - k) % STEP * sizeof *a);
        }
    }
}

/* Products of the scales of a row's inputs and of the group's weights in block `block`. */
static void make_scales(const krn_gemm *gemm, const krn_tile *group, uint32_t block, float *scales)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t blocks = m->k / KRN_BLOCK;
    for (uint32_t r = 0; r < group->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[group->row + r] : group->row + r;
        scales[r] = gemm->input_scales[in * blocks + block] *
                    m->scales[group->panel / KRN_GROUP_PANELS * blocks + block];
    }
}

/* A panel's weights in one block of k, as tiles: pairs of k PAIR_BYTES apart. */
KRN_AMX_INLINE const uint16_t *make_weights(const product_kind kind, const krn_matrix *m,
                                            uint32_t panel, uint32_t k_first, uint16_t *w)
{
    size_t at = panel * krn_panel_size(m) + (size_t)k_first * KRN_PANEL_COLUMNS;
    if (kind == PRODUCT_BF16)
        return (const uint16_t *)m->panels + at;
    krn_codes_lookup table = krn_codes_lookup_load();
    const uint8_t *codes = (const uint8_t *)m->panels + at;
    for (uint32_t i = 0; i < KRN_BLOCK * KRN_PANEL_COLUMNS; i += 64) {
        __m512i low, high;
        krn_codes_halves(&table, _mm512_loadu_si512(codes + i), &low, &high);
        _mm512_store_si512(w + i, low);
        _mm512_store_si512(w + i + 32, high);
    }
    return w;
}

/* One or two tiles of rows times a panel. from: the sums so far, NULL = none. */
KRN_AMX_INLINE void multiply(const bool two, const uint16_t *a, const uint16_t *w, uint32_t steps,
                             const float *from, float *to, size_t stride)
{
    const size_t below = TILE_SIDE * stride / sizeof(float);
    if (from) {
        KRN_TILE_LOAD(0, from, stride);
        KRN_TILE_LOAD(1, from + TILE_SIDE, stride);
        if (two) {
            KRN_TILE_LOAD(2, from + below, stride);
            KRN_TILE_LOAD(3, from + below + TILE_SIDE, stride);
        }
    } else {
        KRN_TILE_ZERO(0);
        KRN_TILE_ZERO(1);
        if (two) {
            KRN_TILE_ZERO(2);
            KRN_TILE_ZERO(3);
        }
    }
    for (uint32_t s = 0; s < steps; s++, a += STEP, w += STEP * KRN_PANEL_COLUMNS) {
        KRN_TILE_LOAD(6, w, PAIR_BYTES);
        KRN_TILE_LOAD(4, a, A_BYTES);
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_LOAD(7, w + STEP, PAIR_BYTES);
        KRN_TILE_DOT_BF16(1, 4, 7);
        if (two) {
            KRN_TILE_LOAD(5, a + TILE_SIDE * KRN_BLOCK, A_BYTES);
            KRN_TILE_DOT_BF16(2, 5, 6);
            KRN_TILE_DOT_BF16(3, 5, 7);
        }
    }
    KRN_TILE_STORE(0, to, stride);
    KRN_TILE_STORE(1, to + TILE_SIDE, stride);
    if (two) {
        KRN_TILE_STORE(2, to + below, stride);
        KRN_TILE_STORE(3, to + below + TILE_SIDE, stride);
    }
}

/* acc += p * scale for `rows` rows of a panel. */
KRN_AMX_INLINE void add_scaled(const float *p, const float *scales, uint32_t rows, float *acc)
{
    for (uint32_t r = 0; r < rows; r++, p += KRN_PANEL_COLUMNS, acc += GROUP_COLUMNS) {
        v16_f scale = v16_set1(scales[r]);
        v16_store(acc, v16_add(v16_load(acc), v16_mul(v16_load(p), scale)));
        v16_store(acc + 16, v16_add(v16_load(acc + 16), v16_mul(v16_load(p + 16), scale)));
    }
}

KRN_AMX_INLINE void multiply_rows(const product_kind kind, work *at, const uint16_t *w,
                                  uint32_t rows, uint32_t steps, float *acc)
{
    for (uint32_t r = 0; r < rows; r += 2 * TILE_SIDE, acc += 2 * TILE_SIDE * GROUP_COLUMNS) {
        const uint16_t *a = at->a + r * KRN_BLOCK;
        uint32_t left = rows - r;
        float *to = kind == PRODUCT_FP8 ? at->p : acc;
        const float *from = kind == PRODUCT_FP8 ? NULL : acc;
        size_t stride = kind == PRODUCT_FP8 ? P_BYTES : ACC_BYTES;
        if (left > TILE_SIDE)
            multiply(true, a, w, steps, from, to, stride);
        else
            multiply(false, a, w, steps, from, to, stride);
        if (kind == PRODUCT_FP8)
            add_scaled(at->p, at->scales + r, left < 2 * TILE_SIDE ? left : 2 * TILE_SIDE, acc);
    }
}

KRN_AMX_INLINE void write_output(const bool to_bf16, const krn_gemm *gemm, const krn_tile *group,
                                 const float *acc)
{
    uint32_t n = gemm->matrix->n;
    uint32_t stride = gemm->output_stride ? gemm->output_stride : n;
    uint32_t first = group->panel * KRN_PANEL_COLUMNS;
    uint32_t columns = group->panel_count * KRN_PANEL_COLUMNS;
    columns = columns < n - first ? columns : n - first;
    for (uint32_t r = 0; r < group->row_count; r++, acc += GROUP_COLUMNS) {
        size_t at = (size_t)(group->row + r) * stride + first;
        uint32_t c = 0;
        if (!to_bf16) {
            memcpy((float *)gemm->output + at, acc, columns * sizeof(float));
            continue;
        }
        for (; c + 16 <= columns; c += 16)
            v16_store_bf16((uint16_t *)gemm->output + at + c, v16_load(acc + c));
        for (; c < columns; c++)
            ((uint16_t *)gemm->output)[at + c] = krn_f32_to_bf16(acc[c]);
    }
}

KRN_AMX_INLINE void product(const product_kind kind, const bool to_bf16, const krn_gemm *gemm,
                            const krn_tile *tile)
{
    work at;
    const krn_matrix *m = gemm->matrix;
    krn_tile group;
    /* Fewer rows than a tile has: the rows of A and of the sums are only those. */
    krn_tiles tiles = krn_tiles_full;
    if (tile->row_count < TILE_SIDE)
        tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = (uint8_t)tile->row_count;
    KRN_TILES_BEGIN(&tiles);
    for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++)
        memset(at.acc[g], 0, tile->row_count * ACC_BYTES);
    for (uint32_t first = 0; first < m->k; first += KRN_BLOCK) {
        uint32_t k = m->k - first < KRN_BLOCK ? m->k - first : KRN_BLOCK;
        make_inputs(kind, gemm, tile, first, k, at.a);
        for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++) {
            if (kind == PRODUCT_FP8)
                make_scales(gemm, &group, first / KRN_BLOCK, at.scales);
            for (uint32_t p = 0; p < group.panel_count; p++)
                multiply_rows(kind, &at, make_weights(kind, m, group.panel + p, first, at.w),
                              tile->row_count, (k + STEP - 1) / STEP,
                              at.acc[g] + p * KRN_PANEL_COLUMNS);
        }
    }
    KRN_TILES_END();
    for (uint32_t g = 0; krn_tile_group(tile, g, &group); g++)
        write_output(to_bf16, gemm, &group, at.acc[g]);
}

KRN_AMX_TARGET static void gemm_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
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
