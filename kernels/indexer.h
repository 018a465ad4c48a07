/* Lightning indexer: key insertion, query preparation, scores and exact selection (spec 4).
 *
 * Thread: the pool's caller. NaN is a fault, reported by `false`. */
#ifndef KERNELS_INDEXER_H
#define KERNELS_INDEXER_H

#include "kernels/cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* z [rows][128] bf16 (wk output) -> index row at rows[i].slot: LayerNorm with weight, bias [128]
 * f32, half-split rope of 0..63, Hadamard, Q128. table as for attention. */
SL_MUST_USE bool krn_index_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                               uint32_t count, const uint16_t *z, const float *weight,
                               const float *bias, float epsilon, const float *table, bool pow2);

/* q [rows][heads * 128] bf16 (wq_b output, overwritten) -> half-split rope, Hadamard, Q128:
 * out_codes [rows][heads * 128] and out_factors [rows][heads] = ((wt * heads^-0.5) * sq) * 128^-0.5
 * where wt [rows][heads] is the f32 output of weights_proj. */
SL_MUST_USE bool krn_index_query(krn_pool *pool, uint16_t *q, const float *wt, uint32_t rows,
                                 uint32_t heads, const float *table, bool pow2, uint8_t *out_codes,
                                 float *out_factors);

typedef struct krn_select_args {
    const krn_cache *cache;
    const krn_row *rows; /* [count] */
    uint32_t count;
    uint32_t heads;
    const void *queries;  /* [count][heads * 128] e4m3 codes (plain: f32) */
    const float *factors; /* [count][heads] */
    uint32_t topk;
    uint32_t list_stride; /* >= topk */
    void *scratch;        /* krn_select_scratch_bytes, aligned to 64 */
    size_t scratch_bytes;
    uint32_t *lists;       /* out: [count][list_stride] slots ascending */
    uint32_t *list_counts; /* out: [count] = min(topk, slots seen) */
} krn_select_args;

/* slots_max: largest number of slots a row may see. */
size_t krn_select_scratch_bytes(uint32_t threads, uint32_t heads, uint32_t slots_max);
/* Scores every row against the slots it sees and keeps the topk largest (ties: lower slot). Rows
 * that see no more than topk slots get all of them without scoring. */
SL_MUST_USE bool krn_index_select(krn_pool *pool, const krn_select_args *args);
/* Scores of one row alone: out_scores[i] for slot first + i. For tests and dumps. */
void krn_index_scores(const krn_cache *cache, const krn_row *row, const uint8_t *codes,
                      const float *factors, uint32_t heads, float *out_scores);
/* The topk largest of scores [count], ties to the lower position, -0.0 = +0.0: out_positions
 * ascending, min(topk, count) of them. False: a score is NaN. Overwrites nothing else. */
SL_MUST_USE bool krn_topk(const float *scores, uint32_t count, uint32_t topk,
                          uint32_t *out_positions);

/* 128 values: natural order, 7 butterfly stages, stride 1 first, times 128^-0.5, one rounding. */
void krn_hadamard(uint16_t *x);

/* Plain numerics: no Hadamard, no Q128; factors = (wt * heads^-0.5) * 128^-0.5. */
void krn_plain_index_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                         uint32_t count, const float *z, const float *weight, const float *bias,
                         float epsilon, const float *table);
void krn_plain_index_query(krn_pool *pool, float *q, const float *wt, uint32_t rows, uint32_t heads,
                           const float *table, float *out_factors);
SL_MUST_USE bool krn_plain_index_select(krn_pool *pool, const krn_select_args *args);
void krn_plain_index_scores(const krn_cache *cache, const krn_row *row, const float *query,
                            const float *factors, uint32_t heads, float *out_scores);

#ifdef __cplusplus
}
#endif
#endif
