/* Linear layers y = x W^T over packed weights.
 *
 * A krn_matrix is packed once at load from [n][k] row-major weights into panels of 32 output
 * columns, k-major inside a panel (byte layout in cpu/matrix.c); fp8 weights stay one byte. All
 * functions take a list of independent products, so that several matrices over one input (q_a,
 * kv_a, wk) or all experts of a layer are one parallel call. Sums: canonical order in kernels.h. */
#ifndef KERNELS_LINEAR_H
#define KERNELS_LINEAR_H

#include "kernels/pool.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_PANEL_COLUMNS 32u
#define KRN_BLOCK         128u  /* side of a weight scale block, length of an activation group */
#define KRN_GEMMS_MAX     1024u /* products of one call */
#define KRN_MATRIX_ALIGN  64u

typedef enum krn_matrix_kind {
    KRN_MATRIX_FP8,  /* e4m3 codes with f32 scales of 128x128 blocks */
    KRN_MATRIX_BF16, /* bf16 */
    KRN_MATRIX_F32,  /* f32: plain numerics */
} krn_matrix_kind;

typedef struct krn_matrix { /* borrows the packed memory */
    krn_matrix_kind kind;
    uint32_t n, k;
    const void *panels;
    const float *scales; /* fp8: [ceil(n/128)][k/128] */
} krn_matrix;

/* Bytes of the packed form, a multiple of KRN_MATRIX_ALIGN. */
size_t krn_matrix_bytes(krn_matrix_kind kind, uint32_t n, uint32_t k);
/* NaN codes (0x7F, 0xFF) and NaN scales are the loader's to refuse.
 * memory: krn_matrix_bytes, aligned to KRN_MATRIX_ALIGN. codes [n][k]; scales
 * [ceil(n/128)][k/128]; k is a multiple of 128, n need not be. */
void krn_matrix_pack_fp8(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         void *memory, krn_matrix *out_matrix);
/* Element (i, j) of [n][k] is weights[i * n_stride + j * k_stride] (strides in elements): a
 * transposed matrix packs without a copy. Any k. */
void krn_matrix_pack_bf16(const uint16_t *weights, size_t n_stride, size_t k_stride, uint32_t n,
                          uint32_t k, void *memory, krn_matrix *out_matrix);
void krn_matrix_pack_f32(const float *weights, size_t n_stride, size_t k_stride, uint32_t n,
                         uint32_t k, void *memory, krn_matrix *out_matrix);

/* Real weights of an fp8 matrix [n][k] (spec 2): bf16 (exact when scales are powers of two, else
 * rounded) or f32. scales [ceil(n/128)][ceil(k/128)]. For W_UK, W_UV and plain numerics. */
void krn_dequantise_bf16(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         uint16_t *out_weights);
void krn_dequantise_f32(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                        float *out_weights);
/* Any bf16 tensor as f32 (gate, norms, plain numerics). */
void krn_bf16_to_f32_many(const uint16_t *values, size_t count, float *out_values);
void krn_f32_to_bf16_many(const float *values, size_t count, uint16_t *out_values);

/* One product: rows x n outputs. Strides are in elements between rows. */
typedef struct krn_gemm {
    const krn_matrix *matrix;
    const void *input;         /* [..][k]: e4m3 codes, bf16 or f32, as the function says */
    const float *input_scales; /* fp8 only: [..][k/128] */
    const uint32_t *row_index; /* row r reads input row row_index[r]; NULL = r */
    uint32_t rows;             /* 0 is allowed */
    uint32_t input_stride;     /* 0 = k; fp8: always k */
    uint32_t output_stride;    /* 0 = n */
    void *output;              /* [rows][n] */
} krn_gemm;

/* FP8 weights, e4m3 input with scales (krn_q128), bf16 output (spec 3.3). */
void krn_linear_fp8(krn_pool *pool, const krn_gemm *gemms, uint32_t count);
/* BF16 weights and input, bf16 output: eh_proj, W_UK, W_UV, checkpoints without fp8. */
void krn_linear_bf16(krn_pool *pool, const krn_gemm *gemms, uint32_t count);
/* BF16 weights and input, f32 output: router gate, weights_proj, head. */
void krn_linear_f32(krn_pool *pool, const krn_gemm *gemms, uint32_t count);
/* F32 weights, input and output: plain numerics. */
void krn_plain_linear(krn_pool *pool, const krn_gemm *gemms, uint32_t count);

#ifdef __cplusplus
}
#endif
#endif
