/* Weights of one model as the kernels want them. Internal to engine/.
 *
 * Owned by eng_model; immutable after eng_model_open, so shareable among threads. Matrices are
 * packed copies in one arena (fp8 stays one byte a weight), embedding and norms point into the
 * mapped checkpoint (plain numerics: f32 copies in the arena). A resident backend
 * has all of it in its own memory. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include "engine/engine.h"
#include "kernels/cuda/sluice_cuda.h"
#include "kernels/kernels.h"
#include "model/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_mlp {
    krn_matrix gate;
    krn_matrix up;
    krn_matrix down;
} eng_mlp;

/* Vectors that norms multiply with are bf16 (fp8 numerics) or f32 (plain): const void. */
typedef struct eng_layer {
    const void *input_norm; /* [hidden] */
    const void *post_norm;  /* [hidden] */
    const void *q_norm;     /* [q_lora] */
    const void *kv_norm;    /* [512] */
    krn_matrix q_a;
    krn_matrix q_b;
    krn_matrix kv_a;
    krn_matrix o;
    krn_matrix *w_uk; /* [heads] 512 x 128 */
    krn_matrix *w_uv; /* [heads] 128 x 512 */
    krn_matrix index_q;
    krn_matrix index_k;
    krn_matrix index_weights;
    const float *index_norm_weight; /* [128] */
    const float *index_norm_bias;
    bool dense;
    eng_mlp mlp; /* dense MLP, or the shared expert */
    krn_matrix router;
    const float *router_bias; /* [experts] */
    eng_mlp *experts;         /* [experts] */
} eng_layer;

typedef struct eng_ops eng_ops;
typedef struct eng_expert_memory eng_expert_memory;

struct eng_model {
    mdl_shape shape;
    eng_numerics numerics;
    const eng_ops *ops;       /* the backend */
    const krn_cuda_api *cuda; /* its table; CUDA only */
    void *resident; /* the arena in the backend's memory; NULL: the arena itself is used */
    mdl_checkpoint *checkpoint;
    char identity[MDL_IDENTITY_CHARS + 1];
    char hash[MDL_HASH_CHARS + 1]; /* set by the load */
    mdl_tokenizer *tokenizer;      /* NULL: none in the directory */
    uint32_t *undefined; /* bitmap of ids without token; NULL: no tokenizer in the directory */
    uint32_t layer_first, layer_end;
    bool whole;        /* all main layers: tokens can be stepped */
    bool mtp;          /* the MTP layer is loaded: layers[layer_end - layer_first] */
    bool mtp_alone;    /* nothing but the MTP layer, layers[0]; mtp is false */
    eng_layer *layers; /* main ones, then MTP */
    uint32_t layer_count;
    const void *embed; /* bf16 [vocab][hidden], mapped, in both numerics */
    const void *final_norm;
    krn_matrix head;
    const void *mtp_enorm;
    const void *mtp_hnorm;
    const void *mtp_norm;
    krn_matrix mtp_eh;
    krn_rope rope;
    float attention_scale;
    bool pow2; /* scales of activations are powers of two */
    void *arena;
    size_t arena_bytes;
    uint32_t ep_rank, ep_size; /* of how many processes with a share of the experts each */
    uint32_t moe_layers, ep_slots;
    uint16_t *ep_table; /* [moe_layers][ep_size][ep_slots]: which experts they hold; NULL: alone */
    eng_expert_memory *expert_memory; /* [moe_layers][experts] of those that are here */
    uint64_t expert_bytes;            /* of all those; atomic accesses only */
    uint64_t swaps;                   /* of sets of experts; the same */
    mdl_tensor_sum *sums; /* several ranks: of all tensors, by name; 0: not loaded here, and the
                             ranks have not joined */
    size_t sum_count;
};

/* The place of one expert's matrices. */
struct eng_expert_memory {
    void *memory;
    size_t bytes;
    bool owned; /* pages of its own, not the arena's */
};

/* One expert of one layer (counted over those that have experts), outside the model. */
typedef struct eng_expert {
    uint32_t layer, expert;
    eng_mlp mlp;
    eng_expert_memory memory;
} eng_expert;

/* Layer `layer` of those with experts. */
static inline eng_layer *eng_moe_layer(const eng_model *model, uint32_t layer)
{
    return &model->layers[(uint32_t)model->shape.dense_layer_count + layer];
}

/* Whether `table` (of the model's form) gives an expert to `rank`. */
bool eng_table_has(const eng_model *model, const uint16_t *table, uint32_t layer, uint32_t rank,
                   uint32_t expert);
/* weights.c. Reads and packs one expert beside those in use; its tensors' sums must be those that
 * the ranks have told each other: SL_CORRUPT. layer and expert of out_expert are set before. */
SL_MUST_USE sl_status eng_expert_load(const eng_model *model, eng_expert *out_expert, sl_err *err);
void eng_expert_free(eng_expert *expert);

/* model.c. As eng_model_open, but reads no weights and opens no device: for eng_model_close only.
 */
SL_MUST_USE sl_status eng_model_look(const eng_model_options *options, eng_model **out_model,
                                     sl_err *err);
/* Exchanges their weights; shape, tokenizer and ids, which are equal, stay where others have
 * pointers to them. */
void eng_model_exchange(eng_model *model, eng_model *fresh);
/* Packs everything and completes the hash; model has shape, numerics, checkpoint, identity and
 * layer range. Errors name tensor and file. */
SL_MUST_USE sl_status eng_weights_load(eng_model *model, const eng_model_options *options,
                                       sl_err *err);
void eng_weights_free(eng_model *model);
/* experts.c */
void eng_model_free_ranks(eng_model *model);

#ifdef __cplusplus
}
#endif
#endif
