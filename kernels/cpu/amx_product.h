/* What the products on tiles share, of many rows (amx.c) and of few (amx_few.c): sums of a piece,
 * rows of KRN_PANEL_COLUMNS. Private to kernels/. */
#ifndef KERNELS_CPU_AMX_PRODUCT_H
#define KERNELS_CPU_AMX_PRODUCT_H

#include "kernels/cpu/amx_convert.h"
#include "kernels/cpu/variant.h"

#if defined(__x86_64__)

#include "kernels/cpu/vec16.h"

#define KRN_AMX_STEP       32u /* k of one tile instruction */
#define KRN_AMX_SUM_BYTES  (KRN_PANEL_COLUMNS * sizeof(float))
#define KRN_AMX_PAIR_BYTES (2 * KRN_PANEL_COLUMNS * sizeof(uint16_t)) /* a pair of k of a panel */

/* Constant at every call, so branches fold. */
typedef enum krn_amx_kind {
    KRN_AMX_FP8,
    KRN_AMX_BF16,
} krn_amx_kind;

/* Where row `row` of a product has its input. */
static inline size_t krn_amx_input_row(const krn_gemm *gemm, uint32_t row)
{
    return gemm->row_index ? gemm->row_index[row] : row;
}

/* sums += block_sums * scale for `rows` rows of a piece. */
KRN_AMX_INLINE void krn_amx_add_scaled(const float *block_sums, const float *scales, uint32_t rows,
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

/* `rows` rows of a panel to the output, from row `row` on. */
KRN_AMX_INLINE void krn_amx_write(const bool to_bf16, const krn_gemm *gemm, uint32_t row,
                                  uint32_t rows, uint32_t panel, const float *sums)
{
    uint32_t n = gemm->matrix->n, first = panel * KRN_PANEL_COLUMNS;
    uint32_t stride = gemm->output_stride ? gemm->output_stride : n;
    uint32_t columns = n - first < KRN_PANEL_COLUMNS ? n - first : KRN_PANEL_COLUMNS;
    for (uint32_t r = 0; r < rows; r++, sums += KRN_PANEL_COLUMNS) {
        size_t at = (size_t)(row + r) * stride + first;
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

#endif
#endif
