/* Operations of a layer in the engine's numerics: fp8 (bf16 rows, Q128) or plain (f32 rows).
 * Internal to engine/.
 *
 * One place chooses, so that the layer program is written once. `false` = NaN or infinity; then
 * engine->fault names the operation. Thread: the engine thread. */
#ifndef ENGINE_OPS_H
#define ENGINE_OPS_H

#include "engine/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One matrix over rows of a shared input. */
typedef struct eng_product {
    const krn_matrix *matrix;
    const uint32_t *row_index; /* NULL: rows input_row, input_row + 1, ... */
    uint32_t input_row;
    uint32_t rows;
    void *output; /* [rows][matrix->n] */
} eng_product;

SL_MUST_USE bool eng_op_norm(eng_engine *engine, const void *x, const void *res, const void *weight,
                             uint32_t rows, uint32_t n, void *out, void *out_res);
/* input [input_rows][k], k of every matrix; quantised once for all products. */
SL_MUST_USE bool eng_op_linear(eng_engine *engine, const void *input, uint32_t input_rows,
                               const eng_product *products, uint32_t count);
/* f32 output in both numerics: router, weights_proj, head. */
void eng_op_linear_f32(eng_engine *engine, const krn_matrix *matrix, const void *input,
                       const uint32_t *row_index, uint32_t rows, float *output);
/* matrices[h] over column slice h of each input row (W_UK, W_UV). */
typedef struct eng_heads_product {
    const krn_matrix *matrices; /* [heads] */
    const void *input;          /* row r, head h at (r * heads + h) * input_width */
    uint32_t input_width;
    void *output; /* [rows][heads][n] */
    uint32_t rows;
} eng_heads_product;
void eng_op_heads(eng_engine *engine, const eng_heads_product *product);

void eng_op_embed(eng_engine *engine, const uint32_t *ids, uint32_t rows, void *out_x);
void eng_op_silu_mul(eng_engine *engine, void *gate, const void *up, size_t count);
/* Latent and index rows of the batch into the cache, from s.kv and s.ik. */
SL_MUST_USE bool eng_op_put(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                            const eng_batch *batch);
/* s.lists and s.list_counts; scored: s.iq and s.wt are there. */
SL_MUST_USE bool eng_op_select(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                               bool scored);
void eng_op_rope_queries(eng_engine *engine, const eng_batch *batch);
/* Rows [first, first + rows) of the batch: s.q_latent -> s.o. */
void eng_op_attend(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                   uint32_t first, uint32_t rows);
void eng_op_combine(eng_engine *engine, uint32_t rows, void *out_y);

/* Row `row` of a buffer of rows of `width` elements. */
static inline void *eng_row_at(const eng_engine *engine, void *rows, size_t row, size_t width)
{
    return (uint8_t *)rows + row * width * engine->element_bytes;
}

#ifdef __cplusplus
}
#endif
#endif
