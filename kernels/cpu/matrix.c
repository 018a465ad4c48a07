/* Packed weights: layout and conversion at load time.
 *
 * Layout: panels of 32 output columns; panel p holds, for k ascending, the 32 elements of columns
 * 32p..32p+31 (missing columns are zeros). f32 panels have the columns in order. In bf16 panels
 * a 32-bit word holds k and k + 1 of a column (k even), columns in order, and k ends in zeros up to
 * a multiple of 32: a tile loads them as they are. In fp8 panels a word holds k and k + 1 of
 * columns c and c + 16. Whole vectors of words give vectors of columns by shifts and masks alone
 * (krn_panel_at_*). The block scales of fp8 follow at the next multiple of 64 bytes. A panel never
 * crosses a scale block. Any thread; different matrices may be packed at the same time. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

#include <string.h>

static uint32_t panel_count(uint32_t n)
{
    return (n + KRN_PANEL_COLUMNS - 1) / KRN_PANEL_COLUMNS;
}

static size_t element_bytes(krn_matrix_kind kind)
{
    return kind == KRN_MATRIX_FP8 ? 1 : kind == KRN_MATRIX_BF16 ? 2 : 4;
}

static size_t panels_bytes(krn_matrix_kind kind, uint32_t n, uint32_t k)
{
    return krn_align64((size_t)panel_count(n) * krn_panel_k(kind, k) * KRN_PANEL_COLUMNS *
                       element_bytes(kind));
}

static size_t scale_count(uint32_t n, uint32_t k)
{
    return (size_t)((n + KRN_BLOCK - 1) / KRN_BLOCK) * ((k + KRN_BLOCK - 1) / KRN_BLOCK);
}

size_t krn_matrix_bytes(krn_matrix_kind kind, uint32_t n, uint32_t k)
{
    size_t bytes = panels_bytes(kind, n, k);
    if (kind == KRN_MATRIX_FP8)
        bytes += krn_align64(scale_count(n, k) * sizeof(float));
    return bytes;
}

/* ---- fp8: a byte at a time would be as slow as a disk */

#define HALF (KRN_PANEL_COLUMNS / 2)

typedef uint8_t v16u8 __attribute__((vector_size(16)));
typedef uint32_t v4u32 __attribute__((vector_size(16)));

/* The rows that make up one panel; NULL beyond the last. */
typedef struct panel_rows {
    const uint8_t *row[KRN_PANEL_COLUMNS];
} panel_rows;

static v16u8 row_load(const panel_rows *rows, uint32_t column, size_t k)
{
    v16u8 codes = {0};
    if (rows->row[column])
        memcpy(&codes, rows->row[column] + k, sizeof(codes));
    return codes;
}

/* words[i] holds four pairs of k of column c + i: to four lines, a pair of k each. */
static void store_words(const v4u32 words[4], uint8_t *lines)
{
    const v4u32 ab_low = __builtin_shufflevector(words[0], words[1], 0, 4, 1, 5);
    const v4u32 ab_high = __builtin_shufflevector(words[0], words[1], 2, 6, 3, 7);
    const v4u32 cd_low = __builtin_shufflevector(words[2], words[3], 0, 4, 1, 5);
    const v4u32 cd_high = __builtin_shufflevector(words[2], words[3], 2, 6, 3, 7);
    const v4u32 out[4] = {
        __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
        __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
        __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
        __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7),
    };
    for (uint32_t pair = 0; pair < 4; pair++)
        memcpy(lines + pair * 2 * KRN_PANEL_COLUMNS, &out[pair], sizeof(out[pair]));
}

/* Columns c..c+3 and their other halves, 16 values of k from `k` on. */
static void pack_quad(const panel_rows *rows, uint32_t c, size_t k, uint8_t *panel)
{
    v4u32 low[4], high[4];
    uint8_t *lines = panel + k * KRN_PANEL_COLUMNS + 4 * c;
    for (uint32_t i = 0; i < 4; i++) {
        v16u8 a = row_load(rows, c + i, k), b = row_load(rows, c + i + HALF, k);
        low[i] = (v4u32)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                                22, 7, 23);
        high[i] = (v4u32)__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                                 14, 30, 15, 31);
    }
    store_words(low, lines);
    store_words(high, lines + 4 * 2 * KRN_PANEL_COLUMNS);
}

static void pack_panel(const panel_rows *rows, uint32_t k, uint8_t *panel)
{
    for (size_t at = 0; at < k; at += 64) /* a cache line of each row */
        for (uint32_t c = 0; c < HALF; c += 4)
            for (size_t j = at; j < at + 64; j += 16)
                pack_quad(rows, c, j, panel);
}

void krn_matrix_pack_fp8(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         void *memory, krn_matrix *out_matrix)
{
    sl_assert(k % KRN_BLOCK == 0);
    uint8_t *panels = memory;
    for (uint32_t p = 0; p < panel_count(n); p++) {
        panel_rows rows;
        for (uint32_t c = 0; c < KRN_PANEL_COLUMNS; c++) {
            uint32_t i = p * KRN_PANEL_COLUMNS + c;
            rows.row[c] = i < n ? codes + (size_t)i * k : NULL;
        }
        pack_panel(&rows, k, panels + (size_t)p * k * KRN_PANEL_COLUMNS);
    }
    float *scale_copy = (float *)(panels + panels_bytes(KRN_MATRIX_FP8, n, k));
    memcpy(scale_copy, scales, scale_count(n, k) * sizeof(float));
    *out_matrix = (krn_matrix){
        .kind = KRN_MATRIX_FP8, .n = n, .k = k, .panels = panels, .scales = scale_copy};
}

/* ---- the others */

void krn_matrix_pack_bf16(const uint16_t *weights, size_t n_stride, size_t k_stride, uint32_t n,
                          uint32_t k, void *memory, krn_matrix *out_matrix)
{
    uint16_t *panels = memory;
    krn_matrix m = {.kind = KRN_MATRIX_BF16, .n = n, .k = k, .panels = panels};
    for (uint32_t p = 0; p < panel_count(n); p++) {
        for (uint32_t j = 0; j < krn_panel_k(KRN_MATRIX_BF16, k); j++) {
            uint16_t *line = panels + krn_panel_at_bf16(&m, p * KRN_PANEL_COLUMNS, j);
            for (uint32_t c = 0; c < KRN_PANEL_COLUMNS; c++) {
                uint32_t i = p * KRN_PANEL_COLUMNS + c;
                line[c * 2] = i < n && j < k ? weights[i * n_stride + j * k_stride] : 0;
            }
        }
    }
    *out_matrix = m;
}

void krn_matrix_pack_f32(const float *weights, size_t n_stride, size_t k_stride, uint32_t n,
                         uint32_t k, void *memory, krn_matrix *out_matrix)
{
    float *panels = memory;
    for (uint32_t p = 0; p < panel_count(n); p++) {
        for (uint32_t j = 0; j < k; j++) {
            float *line = panels + ((size_t)p * k + j) * KRN_PANEL_COLUMNS;
            for (uint32_t c = 0; c < KRN_PANEL_COLUMNS; c++) {
                uint32_t i = p * KRN_PANEL_COLUMNS + c;
                line[c] = i < n ? weights[i * n_stride + j * k_stride] : 0.0f;
            }
        }
    }
    *out_matrix = (krn_matrix){.kind = KRN_MATRIX_F32, .n = n, .k = k, .panels = panels};
}

void krn_dequantise_bf16(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         uint16_t *out_weights)
{
    uint32_t blocks = (k + KRN_BLOCK - 1) / KRN_BLOCK;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < k; j++)
            out_weights[(size_t)i * k + j] =
                krn_f32_to_bf16(krn_e4m3_to_f32(codes[(size_t)i * k + j]) *
                                scales[(size_t)(i / KRN_BLOCK) * blocks + j / KRN_BLOCK]);
}

void krn_dequantise_f32(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                        float *out_weights)
{
    uint32_t blocks = (k + KRN_BLOCK - 1) / KRN_BLOCK;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < k; j++)
            out_weights[(size_t)i * k + j] =
                krn_e4m3_to_f32(codes[(size_t)i * k + j]) *
                scales[(size_t)(i / KRN_BLOCK) * blocks + j / KRN_BLOCK];
}

void krn_bf16_to_f32_many(const uint16_t *values, size_t count, float *out_values)
{
    for (size_t i = 0; i < count; i++)
        out_values[i] = krn_bf16_to_f32(values[i]);
}

void krn_f32_to_bf16_many(const float *values, size_t count, uint16_t *out_values)
{
    for (size_t i = 0; i < count; i++)
        out_values[i] = krn_f32_to_bf16(values[i]);
}
