/* fp8 products of few rows in the tiles' order, without tiles (AVX-512 VBMI). Any thread.
 *
 * Weights stream from memory into registers: a word of codes gives the even and the odd k of 32
 * columns, each the next link of its own chain. Sums of codes' products have no subnormal numbers
 * on the way (they are multiples of 2^-18), so nothing needs flushing. */
#if defined(__x86_64__)

#include "kernels/cpu/amx_convert.h"
#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16.h"

#define COLUMNS (KRN_TILE_PANELS * KRN_PANEL_COLUMNS) /* of a task */
#define PART    4096u                                 /* k whose inputs are made at once */
#define STEP    32u
/* Bytes: two pages, where the hardware would begin anew (50 -> 70 % of the roof of reading). */
#define AHEAD    8192
#define ROWS_MAX KRN_AMX_STREAM_ROWS

/* Inputs of the rows as f32. */
KRN_AMX_INLINE void make_inputs(const krn_gemm *gemm, const krn_tile *tile, uint32_t k_first,
                                uint32_t k, float (*a)[PART])
{
    krn_codes_lookup table = krn_codes_lookup_load();
    for (uint32_t r = 0; r < tile->row_count; r++) {
        size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
        const uint8_t *codes = (const uint8_t *)gemm->input + in * gemm->matrix->k + k_first;
        for (uint32_t j = 0; j < k; j += 64) {
            _Alignas(64) uint16_t values[64];
            krn_codes_in_order(&table, codes + j, values);
            for (uint32_t i = 0; i < 64; i += 16)
                v16_store(a[r] + j + i, v16_from_bf16(values + i));
        }
    }
}

/* One step of R rows and P panels, `stride` bytes apart: sums[r][p][half] of 16 columns. */
KRN_AMX_INLINE void stream_step(const int R, const int P, const krn_codes_lookup *table,
                                const uint8_t *codes, size_t stride, const float (*a)[PART],
                                v16_f (*sums)[2][2])
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000);
    v16_f chain[4][2][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                chain[r][p][c] = v16_zero();
    for (uint32_t k = 0; k < STEP; k += 2) {
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
            __m512i low, high;
            const uint8_t *from = codes + p * stride + k * KRN_PANEL_COLUMNS;
            _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
            krn_codes_halves(table, _mm512_loadu_si512(from), &low, &high);
            const v16_f w[4] = {
                _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(low, upper)),
                _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(high, upper)),
            };
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
                    chain[r][p][c] = v16_fma_scalar(chain[r][p][c], &a[r][k + c % 2], w[c]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                sums[r][p][half] = v16_add(
                    sums[r][p][half], v16_add(chain[r][p][2 * half], chain[r][p][2 * half + 1]));
}

/* One block of R rows and P panels, added up scaled. acc: rows COLUMNS apart. */
KRN_AMX_INLINE void stream_block(const int R, const int P, const uint8_t *codes, size_t stride,
                                 const float (*a)[PART], const float *scales, float *acc)
{
    krn_codes_lookup table = krn_codes_lookup_load();
    v16_f sums[4][2][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * P; i++)
            sums[r][i / 2][i % 2] = v16_zero();
    for (uint32_t k = 0; k < KRN_BLOCK; k += STEP)
        stream_step(R, P, &table, codes + k * KRN_PANEL_COLUMNS, stride,
                    (const float(*)[PART])(a[0] + k), sums);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * P; i++) {
            float *to = acc + r * (int)COLUMNS + i * 16;
            v16_f scaled = v16_mul(sums[r][i / 2][i % 2], v16_set1(scales[r]));
            v16_store(to, v16_add(v16_load(to), scaled));
        }
}

/* P panels from `panel` on over the `k` from k_first on. */
KRN_AMX_INLINE void stream_panels(const int R, const int P, const krn_gemm *gemm,
                                  const krn_tile *tile, uint32_t panel, uint32_t k_first,
                                  uint32_t k, const float (*a)[PART], float *acc)
{
    const krn_matrix *m = gemm->matrix;
    uint32_t blocks = m->k / KRN_BLOCK;
    size_t stride = krn_panel_size(m);
    const uint8_t *codes = (const uint8_t *)m->panels + panel * stride;
    const float *of_weights = m->scales + (size_t)panel / KRN_GROUP_PANELS * blocks;
    for (uint32_t j = 0; j < k; j += KRN_BLOCK) {
        uint32_t block = (k_first + j) / KRN_BLOCK;
        float scales[ROWS_MAX];
        for (int r = 0; r < R; r++) {
            size_t in = gemm->row_index ? gemm->row_index[tile->row + r] : tile->row + r;
            scales[r] = gemm->input_scales[in * blocks + block] * of_weights[block];
        }
        stream_block(R, P, codes + (size_t)block * KRN_BLOCK * KRN_PANEL_COLUMNS, stride,
                     (const float(*)[PART])(a[0] + j), scales, acc);
    }
}

KRN_AMX_INLINE void stream_rows(const int R, const krn_gemm *gemm, const krn_tile *tile, float *acc)
{
    _Alignas(64) float a[ROWS_MAX][PART];
    uint32_t k = gemm->matrix->k;
    for (uint32_t first = 0; first < k; first += PART) {
        uint32_t part = k - first < PART ? k - first : PART;
        uint32_t p = 0;
        make_inputs(gemm, tile, first, part, a);
        for (; p + 2 <= tile->panel_count; p += 2)
            stream_panels(R, 2, gemm, tile, tile->panel + p, first, part, (const float(*)[PART])a,
                          acc + p * KRN_PANEL_COLUMNS);
        for (; p < tile->panel_count; p++)
            stream_panels(R, 1, gemm, tile, tile->panel + p, first, part, (const float(*)[PART])a,
                          acc + p * KRN_PANEL_COLUMNS);
    }
}

KRN_AMX_TARGET void krn_amx_stream_fp8(const krn_gemm *gemm, const krn_tile *tile)
{
    _Alignas(64) float acc[ROWS_MAX][COLUMNS];
    uint32_t n = gemm->matrix->n, output_stride = gemm->output_stride ? gemm->output_stride : n;
    uint32_t first = tile->panel * KRN_PANEL_COLUMNS;
    uint32_t columns = tile->panel_count * KRN_PANEL_COLUMNS;
    columns = columns < n - first ? columns : n - first;
    memset(acc, 0, sizeof acc);
    if (tile->row_count == 1)
        stream_rows(1, gemm, tile, acc[0]);
    else
        stream_rows(2, gemm, tile, acc[0]);
    for (uint32_t r = 0; r < tile->row_count; r++)
        krn_f32_to_bf16_many(acc[r], columns,
                             (uint16_t *)gemm->output + (size_t)(tile->row + r) * output_stride +
                                 first);
}

#endif
