/* Packed weights: layout and conversion at load time.
 *
 * Layout: panels of 32 output columns; panel p holds, for k ascending, the 32 elements of columns
 * 32p..32p+31 (missing columns are zeros). f32 panels have the columns in order. In bf16 panels
 * columns c and c + 16 are the halves of a 32-bit word, in fp8 panels a word holds both for k and
 * k + 1 (k even): whole vectors of words then give vectors of columns by shifts and masks alone
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
    return krn_align64((size_t)panel_count(n) * k * KRN_PANEL_COLUMNS * element_bytes(kind));
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

void krn_matrix_pack_fp8(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         void *memory, krn_matrix *out_matrix)
{
    sl_assert(k % KRN_BLOCK == 0);
    uint8_t *panels = memory;
    krn_matrix m = {.kind = KRN_MATRIX_FP8, .n = n, .k = k, .panels = panels};
    for (uint32_t i = 0; i < panel_count(n) * KRN_PANEL_COLUMNS; i++)
        for (uint32_t j = 0; j < k; j++)
            panels[krn_panel_at_fp8(&m, i, j)] = i < n ? codes[(size_t)i * k + j] : 0;
    float *scale_copy = (float *)(panels + panels_bytes(KRN_MATRIX_FP8, n, k));
    memcpy(scale_copy, scales, scale_count(n, k) * sizeof(float));
    m.scales = scale_copy;
    *out_matrix = m;
}

void krn_matrix_pack_bf16(const uint16_t *weights, size_t n_stride, size_t k_stride, uint32_t n,
                          uint32_t k, void *memory, krn_matrix *out_matrix)
{
    uint16_t *panels = memory;
    krn_matrix m = {.kind = KRN_MATRIX_BF16, .n = n, .k = k, .panels = panels};
    for (uint32_t j = 0; j < k; j++)
        for (uint32_t i = 0; i < panel_count(n) * KRN_PANEL_COLUMNS; i++)
            panels[krn_panel_at_bf16(&m, i, j)] = i < n ? weights[i * n_stride + j * k_stride] : 0;
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
