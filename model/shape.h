/* The shape of a DeepSeek-V3.2 model: every dimension and constant that config.json gives.
 *
 * A plain struct without function bodies, because kernels include it. model/config.h loads and
 * checks it, so whoever gets one may rely on what is written beside the fields. Immutable after
 * loading. */
#ifndef MODEL_SHAPE_H
#define MODEL_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_BLOCK 128 /* FP8 weights: one scale per 128 x 128 block, cut at the edge */

typedef struct mdl_shape {
    int32_t vocab_size;      /* rows of embedding and head; ids above the tokenizer's are unused */
    int32_t hidden_size;     /* multiple of 128 */
    int32_t layer_count;     /* main layers, 0..layer_count-1 */
    int32_t mtp_layer_count; /* 0 or 1; the MTP layer has index layer_count in the checkpoint */
    int32_t dense_layer_count; /* the first ones have a dense MLP, the others (MTP too) MoE */

    int32_t intermediate_size;     /* dense MLP, multiple of 128 */
    int32_t moe_intermediate_size; /* one expert, multiple of 128 */
    int32_t expert_count;          /* routed experts; multiple of group_count, >= 2 a group */
    int32_t experts_per_token;
    int32_t shared_expert_count; /* width of the shared MLP = this * moe_intermediate_size */
    int32_t group_count;
    int32_t topk_group_count;

    int32_t head_count;
    int32_t q_lora_rank;  /* multiple of 128 */
    int32_t kv_lora_rank; /* 512 */
    int32_t qk_nope_dim;  /* 128 */
    int32_t qk_rope_dim;  /* 64 */
    int32_t v_head_dim;   /* 128 */

    int32_t index_head_count; /* power of two, >= 8 */
    int32_t index_head_dim;   /* 128 */
    int32_t index_topk;       /* multiple of 64 */

    int32_t position_max;
    double rope_theta;
    double yarn_factor;
    int32_t yarn_original_position_max;
    double yarn_beta_fast;
    double yarn_beta_slow;
    double yarn_mscale;
    double yarn_mscale_all_dim;

    double rms_eps;
    double routed_scaling_factor;

    bool quantised;   /* FP8 e4m3 matrices with block scales; else all of them bf16 */
    bool scale_ue8m0; /* scales, of weights and of activations, are powers of two */

    int32_t bos_id;
    int32_t eos_id;
} mdl_shape;

#ifdef __cplusplus
}
#endif
#endif
