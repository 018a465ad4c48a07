/* Router, grouping of rows by expert, and the sum of expert outputs (spec 3.7).
 *
 * The experts themselves are lists of products (kernels/linear.h): krn_route -> krn_route_group ->
 * gate and up of all experts in one krn_linear_fp8 (row_index = out_rows + out_offsets[e]) ->
 * krn_silu_mul -> krn_q128 -> down of all experts in one call -> krn_combine. */
#ifndef KERNELS_MOE_H
#define KERNELS_MOE_H

#include "kernels/pool.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_EXPERTS_MAX        512u
#define KRN_EXPERTS_CHOSEN_MAX 32u
#define KRN_EXPERT_GROUPS_MAX  64u

typedef struct krn_route_args {
    uint32_t experts;     /* E */
    uint32_t groups;      /* n_group; each of E / groups experts, at least 2 */
    uint32_t groups_kept; /* topk_group */
    uint32_t chosen;      /* num_experts_per_tok */
    float scaling;        /* routed_scaling_factor */
    bool normalise;       /* norm_topk_prob */
} krn_route_args;

/* logits [rows][E] f32 (gate output), bias [E] -> out_experts [rows][chosen], ascending ids, and
 * out_weights [rows][chosen]. False: NaN. */
SL_MUST_USE bool krn_route(krn_pool *pool, const krn_route_args *args, const float *logits,
                           const float *bias, uint32_t rows, uint32_t *out_experts,
                           float *out_weights);
/* Sorts the rows x chosen assignments by expert (rows ascending inside one): out_offsets [E + 1],
 * out_rows [rows * chosen] = input row of each place, out_places [rows][chosen] = place (row of the
 * experts' stacked outputs) of each assignment. */
void krn_route_group(const uint32_t *experts_chosen, uint32_t rows, uint32_t chosen,
                     uint32_t experts, uint32_t *out_offsets, uint32_t *out_rows,
                     uint32_t *out_places);
/* y[t] = bf(sum over chosen experts ascending of weights[t][i] * f32(outputs[places[t][i]]) +
 * f32(shared[t])), from 0. outputs [rows * chosen][hidden], shared [rows][hidden] (NULL: none). */
void krn_combine(krn_pool *pool, const uint16_t *outputs, const uint32_t *places,
                 const float *weights, uint32_t chosen, const uint16_t *shared, uint32_t rows,
                 uint32_t hidden, uint16_t *out_y);
void krn_plain_combine(krn_pool *pool, const float *outputs, const uint32_t *places,
                       const float *weights, uint32_t chosen, const float *shared, uint32_t rows,
                       uint32_t hidden, float *out_y);

#ifdef __cplusplus
}
#endif
#endif
