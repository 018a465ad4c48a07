/* Rope and absorbed multi-head latent attention (spec 3.4, 3.5).
 *
 * Order of use in a layer: krn_latent_put (kv_a output into the cache), krn_rope_queries, W_UK as
 * krn_linear_bf16 with one product a head (input q + 192 h, input_stride 192 H, output_stride 512
 * H), krn_attend, W_UV as krn_linear_bf16 (input o + 512 h, output v + 128 h). Rows are
 * independent: a caller may run them in slices of any size to bound its buffers. Thread: the pool's
 * caller. */
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H

#include "kernels/cache.h"
#include "kernels/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_ROPE_PAIRS 32u /* rope dimensions / 2 */

typedef struct krn_rope_config {
    double theta;
    double factor; /* <= 1: plain rope, no YaRN */
    double original_positions;
    double beta_fast;
    double beta_slow;
} krn_rope_config;

typedef struct krn_rope {
    float frequency[KRN_ROPE_PAIRS];
} krn_rope;

void krn_rope_init(const krn_rope_config *config, krn_rope *out_rope);
/* out_table [count][64]: 32 cosines, then 32 sines of f32(f32(position) * frequency), correctly
 * rounded. Once a step, for all layers. */
void krn_rope_table(krn_pool *pool, const krn_rope *rope, const uint32_t *positions, uint32_t count,
                    float *out_table);
/* Softmax scale 192^-0.5 * (0.1 * mscale_all_dim * ln(factor) + 1)^2 (factor <= 1: no m). */
float krn_attention_scale(double factor, double mscale_all_dim);

/* Rotates one vector of 64 in place; table is one row of krn_rope_table. */
void krn_rope_interleaved(uint16_t *x, const float *table);
void krn_rope_half_split(uint16_t *x, const float *table);
/* q [rows][heads][192] bf16: dimensions 128..191 of every head, interleaved, in place. */
void krn_rope_queries(krn_pool *pool, uint16_t *q, uint32_t rows, uint32_t heads,
                      const float *table);

/* kv [rows][576] bf16 (kv_a output) -> cache row at rows[i].slot: RMSNorm of 0..511 with weight
 * [512] bf16, Q128 in 4 groups, interleaved rope of 512..575. False: NaN or infinity. pow2: scales
 * are powers of two (scale_fmt ue8m0). */
SL_MUST_USE bool krn_latent_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                                uint32_t count, const uint16_t *kv, const uint16_t *weight,
                                float epsilon, const float *table, bool pow2);

typedef struct krn_attend_args {
    const krn_cache *cache;
    const krn_row *rows; /* [count] */
    uint32_t count;
    uint32_t heads;
    const void *q_latent;        /* [count][heads][512] bf16 (plain: f32), after W_UK */
    const void *q;               /* [count][heads][192]: 128..191 are read (after rope) */
    const uint32_t *lists;       /* [count][list_stride] selected slots, ascending */
    const uint32_t *list_counts; /* [count], >= 1 */
    uint32_t list_stride;        /* >= every list_counts[i] */
    float scale;
    void *scratch; /* krn_attend_scratch_bytes, aligned to 64 */
    void *output;  /* [count][heads][512] bf16 (plain: f32) */
} krn_attend_args;

size_t krn_attend_scratch_bytes(uint32_t threads, uint32_t heads, uint32_t list_stride);
void krn_attend(krn_pool *pool, const krn_attend_args *args);

/* Plain numerics: f32 rows [64 * 576 f32] in pages of KRN_PLAIN_LAYER_BYTES. */
void krn_plain_rope_queries(krn_pool *pool, float *q, uint32_t rows, uint32_t heads,
                            const float *table);
void krn_plain_latent_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows,
                          uint32_t count, const float *kv, const float *weight, float epsilon,
                          const float *table);
void krn_plain_attend(krn_pool *pool, const krn_attend_args *args);

#ifdef __cplusplus
}
#endif
#endif
