/* Packs a checkpoint's tensors into the kernels' layouts.
 *
 * Planning walks the shape and notes one job a tensor with its place in the arena; then the arena
 * is mapped and a pool runs the jobs; a resident backend then gets the arena. A job reads its
 * tensor (and scales) block by block, judges and sums the values (engine/tensor_read.h), then
 * packs; what was copied is unmapped from memory again, the page cache may keep it. Thread: whoever
 * opens the model; jobs on a pool of its own that ends with the load. Relies on
 * mdl_checkpoint_check: names, dtypes and shapes are right. */
#include "engine/ops.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/numa.h"
#include "engine/tensor_read.h"

#define ARENA_ALIGN     64u
#define JOBS_AHEAD      2u            /* of each thread, that the disk is asked for */
#define PROGRESS_PERIOD (1 * SL_S_NS) /* at least; later an eighth of the time so far */

typedef enum job_kind {
    JOB_MATRIX,     /* tensor [n][k] -> matrix */
    JOB_HEADS,      /* kv_b_proj -> matrix[n] (W_UK) and second[n] (W_UV), n heads */
    JOB_VECTOR_F32, /* f32 or bf16 tensor -> f32 copy */
    JOB_COPY,       /* tensor -> copy */
    JOB_MAPPED,     /* stays mapped; only looked at */
    JOB_ELSEWHERE,  /* of another rank: not looked at */
    JOB_SAME,       /* only compared with `original`, which is used for both */
} job_kind;

typedef struct job {
    job_kind kind;
    const mdl_tensor *tensor;
    const mdl_tensor *scale;    /* fp8 only */
    const mdl_tensor *original; /* JOB_SAME only */
    uint32_t n, k;
    krn_matrix_kind matrix_kind;
    size_t offset;
    krn_matrix *matrix, *second;
    const void **vector;
    eng_tensor_read read, scale_read; /* set by the job */
} job;

typedef struct loader {
    eng_model *model;
    const eng_model_options *options;
    job *jobs;
    uint32_t job_count, job_capacity;
    size_t arena_bytes;
    uint32_t jobs_ahead;
    uint64_t bytes_total;
    _Atomic uint64_t bytes_done;
    _Atomic bool failed;           /* a job met a fault: the rest is not begun */
    sl_time_ns start, progress_at; /* progress_at: the opening thread's */
} loader;

/* ---- planning ---- */

static job *loader_add(loader *load, job_kind kind, const mdl_tensor *tensor)
{
    if (load->job_count == load->job_capacity) {
        load->job_capacity = load->job_capacity ? 2 * load->job_capacity : 256;
        load->jobs = sl_realloc(load->jobs, load->job_capacity, sizeof(job), "weight jobs");
    }
    job *added = &load->jobs[load->job_count++];
    *added = (job){.kind = kind, .tensor = tensor};
    load->bytes_total += tensor->bytes;
    return added;
}

static size_t loader_take(loader *load, size_t bytes)
{
    size_t offset = load->arena_bytes;
    load->arena_bytes += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return offset;
}

/* mdl_checkpoint_check has passed, so a tensor that is not there or has another size is a bug. */
static sl_status loader_find(const loader *load, const char *name, uint64_t elements,
                             const mdl_tensor **out_tensor, sl_err *err)
{
    const mdl_tensor *tensor = mdl_checkpoint_find(load->model->checkpoint, name);
    if (!tensor)
        return sl_fail(err, SL_INTERNAL, "tensor %s: missing", name);
    if (tensor->bytes != elements * mdl_dtype_bytes(tensor->dtype))
        return sl_fail(err, SL_INTERNAL, "tensor %s: %zu bytes, expected %llu elements", name,
                       tensor->bytes, (unsigned long long)elements);
    *out_tensor = tensor;
    return sl_ok();
}

static sl_status loader_find_scale(const loader *load, const mdl_tensor *weight, uint32_t n,
                                   uint32_t k, const mdl_tensor **out_scale, sl_err *err)
{
    if (weight->dtype != MDL_DTYPE_F8_E4M3) {
        *out_scale = NULL;
        return sl_ok();
    }
    char name[MDL_TENSOR_NAME_MAX + 1];
    snprintf(name, sizeof(name), "%s_scale_inv", weight->name);
    uint64_t blocks =
        (uint64_t)((n + KRN_BLOCK - 1) / KRN_BLOCK) * ((k + KRN_BLOCK - 1) / KRN_BLOCK);
    return loader_find(load, name, blocks, out_scale, err);
}

static krn_matrix_kind loader_kind(const loader *load, const mdl_tensor *tensor)
{
    if (load->model->numerics == ENG_NUMERICS_PLAIN)
        return KRN_MATRIX_F32;
    return tensor->dtype == MDL_DTYPE_F8_E4M3 ? KRN_MATRIX_FP8 : KRN_MATRIX_BF16;
}

static sl_status plan_matrix(loader *load, const char *prefix, const char *name, uint32_t n,
                             uint32_t k, krn_matrix *out_matrix, sl_err *err)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *tensor = NULL, *scale = NULL;
    snprintf(full, sizeof(full), "%s%s.weight", prefix, name);
    SL_TRY(loader_find(load, full, (uint64_t)n * k, &tensor, err));
    SL_TRY(loader_find_scale(load, tensor, n, k, &scale, err));
    job *added = loader_add(load, JOB_MATRIX, tensor);
    added->scale = scale;
    added->n = n;
    added->k = k;
    added->matrix_kind = loader_kind(load, tensor);
    added->matrix = out_matrix;
    added->offset =
        loader_take(load, load->model->ops->matrix_bytes(load->model, added->matrix_kind, n, k));
    return sl_ok();
}

/* Of W_UK or W_UV of one head. */
static size_t head_bytes(const eng_model *model, krn_matrix_kind kind, bool uk)
{
    return uk ? model->ops->matrix_bytes(model, kind, KRN_LATENT_DIM, KRN_NOPE_DIM)
              : model->ops->matrix_bytes(model, kind, KRN_VALUE_DIM, KRN_LATENT_DIM);
}

static sl_status plan_heads(loader *load, const char *prefix, eng_layer *layer, sl_err *err)
{
    uint32_t heads = (uint32_t)load->model->shape.head_count;
    uint32_t rows = KRN_NOPE_DIM + KRN_VALUE_DIM;
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *tensor = NULL, *scale = NULL;
    snprintf(full, sizeof(full), "%sself_attn.kv_b_proj.weight", prefix);
    SL_TRY(loader_find(load, full, (uint64_t)heads * rows * KRN_LATENT_DIM, &tensor, err));
    SL_TRY(loader_find_scale(load, tensor, heads * rows, KRN_LATENT_DIM, &scale, err));
    layer->w_uk = sl_alloc(heads, sizeof(krn_matrix), "W_UK");
    layer->w_uv = sl_alloc(heads, sizeof(krn_matrix), "W_UV");
    krn_matrix_kind kind =
        load->model->numerics == ENG_NUMERICS_PLAIN ? KRN_MATRIX_F32 : KRN_MATRIX_BF16;
    job *added = loader_add(load, JOB_HEADS, tensor);
    added->scale = scale;
    added->n = heads;
    added->matrix_kind = kind;
    added->matrix = layer->w_uk;
    added->second = layer->w_uv;
    added->offset = loader_take(
        load, heads * (head_bytes(load->model, kind, true) + head_bytes(load->model, kind, false)));
    return sl_ok();
}

/* Always an f32 copy. */
static sl_status plan_f32(loader *load, const char *prefix, const char *name, uint32_t n,
                          const void **out_vector, sl_err *err)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *tensor = NULL;
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    SL_TRY(loader_find(load, full, n, &tensor, err));
    job *added = loader_add(load, JOB_VECTOR_F32, tensor);
    added->n = n;
    added->vector = out_vector;
    added->offset = loader_take(load, n * sizeof(float));
    return sl_ok();
}

/* Stays mapped, or is copied for a resident backend; looked at either way. */
static void plan_mapped(loader *load, const mdl_tensor *tensor, const void **out_data)
{
    bool resident = load->model->ops->resident;
    job *added = loader_add(load, resident ? JOB_COPY : JOB_MAPPED, tensor);
    *out_data = tensor->data;
    if (!resident)
        return;
    added->vector = out_data;
    added->offset = loader_take(load, tensor->bytes);
}

/* A norm's weight: bf16 as it is, or an f32 copy for plain numerics. */
static sl_status plan_norm(loader *load, const char *prefix, const char *name, uint32_t n,
                           const void **out_vector, sl_err *err)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *tensor = NULL;
    snprintf(full, sizeof(full), "%s.weight", name);
    if (load->model->numerics == ENG_NUMERICS_PLAIN)
        return plan_f32(load, prefix, full, n, out_vector, err);
    snprintf(full, sizeof(full), "%s%s.weight", prefix, name);
    SL_TRY(loader_find(load, full, n, &tensor, err));
    plan_mapped(load, tensor, out_vector);
    return sl_ok();
}

static sl_status plan_mlp(loader *load, const char *prefix, uint32_t width, eng_mlp *mlp,
                          sl_err *err)
{
    uint32_t hidden = (uint32_t)load->model->shape.hidden_size;
    SL_TRY(plan_matrix(load, prefix, "gate_proj", width, hidden, &mlp->gate, err));
    SL_TRY(plan_matrix(load, prefix, "up_proj", width, hidden, &mlp->up, err));
    return plan_matrix(load, prefix, "down_proj", hidden, width, &mlp->down, err);
}

/* An expert of another rank: its tensors are part of the model's hash, their sums come from there.
 */
static sl_status plan_elsewhere(loader *load, const char *prefix, sl_err *err)
{
    static const char *const NAMES[] = {"gate_proj", "up_proj", "down_proj"};
    const mdl_shape *shape = &load->model->shape;
    uint32_t hidden = (uint32_t)shape->hidden_size;
    uint32_t width = (uint32_t)shape->moe_intermediate_size;
    for (int i = 0; i < 3; i++) {
        char full[MDL_TENSOR_NAME_MAX + 32];
        const mdl_tensor *tensor = NULL, *scale = NULL;
        snprintf(full, sizeof(full), "%s%s.weight", prefix, NAMES[i]);
        SL_TRY(loader_find(load, full, (uint64_t)width * hidden, &tensor, err));
        SL_TRY(loader_find_scale(load, tensor, i < 2 ? width : hidden, i < 2 ? hidden : width,
                                 &scale, err));
        loader_add(load, JOB_ELSEWHERE, tensor)->scale = scale;
        load->bytes_total -= tensor->bytes;
    }
    return sl_ok();
}

static sl_status plan_expert(loader *load, const char *prefix, uint32_t expert, eng_layer *layer,
                             sl_err *err)
{
    eng_model *model = load->model;
    char name[MDL_TENSOR_NAME_MAX + 1];
    snprintf(name, sizeof(name), "%smlp.experts.%u.", prefix, expert);
    size_t before = load->arena_bytes;
    uint32_t at = model->ep_table ? (uint32_t)(layer - eng_moe_layer(model, 0)) : 0;
    if (model->ep_table && !eng_table_has(model, model->ep_table, at, model->ep_rank, expert))
        return plan_elsewhere(load, name, err);
    SL_TRY(plan_mlp(load, name, (uint32_t)model->shape.moe_intermediate_size,
                    &layer->experts[expert], err));
    size_t bytes = load->arena_bytes - before;
    (void)__atomic_fetch_add(&model->expert_bytes, bytes, __ATOMIC_RELAXED);
    if (model->ep_table) /* an offset as yet: the arena is to come */
        model->expert_memory[at * (uint32_t)model->shape.expert_count + expert] =
            (eng_expert_memory){.memory = (void *)(uintptr_t)before, .bytes = bytes};
    return sl_ok();
}

static sl_status plan_attention(loader *load, const char *prefix, eng_layer *layer, sl_err *err)
{
    const mdl_shape *shape = &load->model->shape;
    uint32_t hidden = (uint32_t)shape->hidden_size, lora = (uint32_t)shape->q_lora_rank;
    uint32_t heads = (uint32_t)shape->head_count, index_heads = (uint32_t)shape->index_head_count;
    char attn[MDL_TENSOR_NAME_MAX + 1];
    snprintf(attn, sizeof(attn), "%sself_attn.", prefix);
    SL_TRY(plan_matrix(load, attn, "q_a_proj", lora, hidden, &layer->q_a, err));
    SL_TRY(plan_norm(load, attn, "q_a_layernorm", lora, &layer->q_norm, err));
    SL_TRY(plan_matrix(load, attn, "q_b_proj", heads * KRN_HEAD_DIM, lora, &layer->q_b, err));
    SL_TRY(plan_matrix(load, attn, "kv_a_proj_with_mqa", KRN_LATENT_DIM + KRN_ROPE_DIM, hidden,
                       &layer->kv_a, err));
    SL_TRY(plan_norm(load, attn, "kv_a_layernorm", KRN_LATENT_DIM, &layer->kv_norm, err));
    SL_TRY(plan_heads(load, prefix, layer, err));
    SL_TRY(plan_matrix(load, attn, "o_proj", hidden, heads * KRN_VALUE_DIM, &layer->o, err));
    SL_TRY(plan_matrix(load, attn, "indexer.wq_b", index_heads * KRN_INDEX_DIM, lora,
                       &layer->index_q, err));
    SL_TRY(plan_matrix(load, attn, "indexer.wk", KRN_INDEX_DIM, hidden, &layer->index_k, err));
    SL_TRY(plan_matrix(load, attn, "indexer.weights_proj", index_heads, hidden,
                       &layer->index_weights, err));
    SL_TRY(plan_f32(load, attn, "indexer.k_norm.weight", KRN_INDEX_DIM,
                    (const void **)&layer->index_norm_weight, err));
    return plan_f32(load, attn, "indexer.k_norm.bias", KRN_INDEX_DIM,
                    (const void **)&layer->index_norm_bias, err);
}

static sl_status plan_moe(loader *load, const char *prefix, eng_layer *layer, sl_err *err)
{
    const mdl_shape *shape = &load->model->shape;
    uint32_t experts = (uint32_t)shape->expert_count;
    uint32_t width = (uint32_t)shape->moe_intermediate_size;
    char name[MDL_TENSOR_NAME_MAX + 1];
    SL_TRY(plan_matrix(load, prefix, "mlp.gate", experts, (uint32_t)shape->hidden_size,
                       &layer->router, err));
    SL_TRY(plan_f32(load, prefix, "mlp.gate.e_score_correction_bias", experts,
                    (const void **)&layer->router_bias, err));
    layer->experts = sl_alloc(experts, sizeof(eng_mlp), "experts");
    for (uint32_t e = 0; e < experts; e++)
        SL_TRY(plan_expert(load, prefix, e, layer, err));
    snprintf(name, sizeof(name), "%smlp.shared_experts.", prefix);
    return plan_mlp(load, name, width * (uint32_t)shape->shared_expert_count, &layer->mlp, err);
}

static sl_status plan_layer(loader *load, uint32_t index, eng_layer *layer, sl_err *err)
{
    const mdl_shape *shape = &load->model->shape;
    uint32_t hidden = (uint32_t)shape->hidden_size;
    char prefix[64];
    snprintf(prefix, sizeof(prefix), "model.layers.%u.", index);
    SL_TRY(plan_norm(load, prefix, "input_layernorm", hidden, &layer->input_norm, err));
    SL_TRY(plan_norm(load, prefix, "post_attention_layernorm", hidden, &layer->post_norm, err));
    SL_TRY(plan_attention(load, prefix, layer, err));
    layer->dense = index < (uint32_t)shape->dense_layer_count;
    if (!layer->dense)
        return plan_moe(load, prefix, layer, err);
    char name[MDL_TENSOR_NAME_MAX + 1];
    snprintf(name, sizeof(name), "%smlp.", prefix);
    return plan_mlp(load, name, (uint32_t)shape->intermediate_size, &layer->mlp, err);
}

static sl_status plan_mtp(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    uint32_t hidden = (uint32_t)model->shape.hidden_size;
    uint32_t index = (uint32_t)model->shape.layer_count;
    char prefix[64];
    snprintf(prefix, sizeof(prefix), "model.layers.%u.", index);
    SL_TRY(plan_norm(load, prefix, "enorm", hidden, &model->mtp_enorm, err));
    SL_TRY(plan_norm(load, prefix, "hnorm", hidden, &model->mtp_hnorm, err));
    SL_TRY(plan_norm(load, prefix, "shared_head.norm", hidden, &model->mtp_norm, err));
    SL_TRY(plan_matrix(load, prefix, "eh_proj", hidden, 2 * hidden, &model->mtp_eh, err));
    return plan_layer(load, index, &model->layers[model->layer_count - 1], err);
}

/* The MTP layer's copy may be left out, but must not differ. */
static void plan_copy(loader *load, const char *name, const mdl_tensor *original)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    snprintf(full, sizeof(full), "model.layers.%d.%s", load->model->shape.layer_count, name);
    const mdl_tensor *copy = mdl_checkpoint_find(load->model->checkpoint, full);
    if (copy)
        loader_add(load, JOB_SAME, copy)->original = original;
}

static sl_status plan_ends(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    uint32_t vocab = (uint32_t)model->shape.vocab_size;
    uint32_t hidden = (uint32_t)model->shape.hidden_size;
    const mdl_tensor *embed = NULL, *head = NULL;
    SL_TRY(loader_find(load, "model.embed_tokens.weight", (uint64_t)vocab * hidden, &embed, err));
    SL_TRY(loader_find(load, "lm_head.weight", (uint64_t)vocab * hidden, &head, err));
    plan_mapped(load, embed, &model->embed);
    SL_TRY(plan_norm(load, "model.", "norm", hidden, &model->final_norm, err));
    SL_TRY(plan_matrix(load, "", "lm_head", vocab, hidden, &model->head, err));
    if (!model->mtp)
        return sl_ok();
    plan_copy(load, "embed_tokens.weight", embed);
    plan_copy(load, "shared_head.head.weight", head);
    return plan_mtp(load, err);
}

static sl_status plan_model(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    model->layers = sl_alloc(model->layer_count, sizeof(eng_layer), "layers");
    if (model->mtp_alone)
        return plan_mtp(load, err);
    for (uint32_t i = model->layer_first; i < model->layer_end; i++)
        SL_TRY(plan_layer(load, i, &model->layers[i - model->layer_first], err));
    return model->whole ? plan_ends(load, err) : sl_ok();
}

/* ---- jobs ---- */

/* Scales as f32: the mapped ones, or exponent bytes converted (caller frees). */
static float *scales_from_e8m0(const mdl_tensor *scale)
{
    const uint8_t *bytes = scale->data;
    float *scales = sl_alloc(scale->bytes, sizeof(float), "e8m0 scales");
    for (size_t i = 0; i < scale->bytes; i++)
        scales[i] = ldexpf(1.0f, (int)bytes[i] - 127); /* 255 was refused */
    return scales;
}

static void run_matrix(const eng_model *model, job *work, const float *scales)
{
    const mdl_tensor *tensor = work->tensor;
    uint8_t *memory = (uint8_t *)model->arena + work->offset;
    uint32_t n = work->n, k = work->k;
    if (work->matrix_kind == KRN_MATRIX_FP8) {
        model->ops->pack_fp8(model, tensor->data, scales, n, k, memory, work->matrix);
    } else if (work->matrix_kind == KRN_MATRIX_BF16) {
        model->ops->pack_bf16(model, tensor->data, k, 1, n, k, memory, work->matrix);
    } else {
        float *wide = sl_alloc((size_t)n * k, sizeof(float), "wide weights");
        if (tensor->dtype == MDL_DTYPE_F8_E4M3)
            krn_dequantise_f32(tensor->data, scales, n, k, wide);
        else
            krn_bf16_to_f32_many(tensor->data, (size_t)n * k, wide);
        krn_matrix_pack_f32(wide, k, 1, n, k, memory, work->matrix);
        sl_free(wide);
    }
}

/* W_UK of a head as 512 x 128 (transposed rows 0..127 of the head), W_UV as 128 x 512. */
static void run_head(const eng_model *model, job *work, uint32_t head, uint8_t *uk, uint8_t *uv,
                     const float *scales)
{
    const mdl_tensor *tensor = work->tensor;
    uint32_t rows = KRN_NOPE_DIM + KRN_VALUE_DIM, k = KRN_LATENT_DIM;
    size_t at = (size_t)head * rows * k, split = (size_t)KRN_NOPE_DIM * k;
    const float *head_scales =
        scales ? scales + (size_t)head * (rows / KRN_BLOCK) * (k / KRN_BLOCK) : NULL;
    bool fp8 = tensor->dtype == MDL_DTYPE_F8_E4M3;
    if (work->matrix_kind == KRN_MATRIX_F32) {
        float *wide = sl_alloc((size_t)rows * k, sizeof(float), "wide head");
        if (fp8)
            krn_dequantise_f32((const uint8_t *)tensor->data + at, head_scales, rows, k, wide);
        else
            krn_bf16_to_f32_many((const uint16_t *)tensor->data + at, (size_t)rows * k, wide);
        krn_matrix_pack_f32(wide, 1, k, k, KRN_NOPE_DIM, uk, &work->matrix[head]);
        krn_matrix_pack_f32(wide + split, k, 1, KRN_VALUE_DIM, k, uv, &work->second[head]);
        sl_free(wide);
        return;
    }
    uint16_t *half = sl_alloc((size_t)rows * k, sizeof(uint16_t), "bf16 head");
    if (fp8)
        krn_dequantise_bf16((const uint8_t *)tensor->data + at, head_scales, rows, k, half);
    else
        memcpy(half, (const uint16_t *)tensor->data + at, (size_t)rows * k * sizeof(uint16_t));
    model->ops->pack_bf16(model, half, 1, k, k, KRN_NOPE_DIM, uk, &work->matrix[head]);
    model->ops->pack_bf16(model, half + split, k, 1, KRN_VALUE_DIM, k, uv, &work->second[head]);
    sl_free(half);
}

static void run_heads(const eng_model *model, job *work, const float *scales)
{
    uint8_t *at = (uint8_t *)model->arena + work->offset;
    size_t uk_bytes = head_bytes(model, work->matrix_kind, true);
    size_t uv_bytes = head_bytes(model, work->matrix_kind, false);
    for (uint32_t head = 0; head < work->n; head++, at += uk_bytes + uv_bytes)
        run_head(model, work, head, at, at + uk_bytes, scales);
}

static void run_vector(job *work, void *arena)
{
    float *memory = (float *)((uint8_t *)arena + work->offset);
    if (work->tensor->dtype == MDL_DTYPE_BF16)
        krn_bf16_to_f32_many(work->tensor->data, work->n, memory);
    else
        memcpy(memory, work->tensor->data, work->n * sizeof(float));
    *work->vector = memory;
}

static void run_pack(const eng_model *model, job *work)
{
    float *owned = NULL;
    const float *scales = work->scale ? work->scale->data : NULL;
    if (work->scale && work->scale->dtype != MDL_DTYPE_F32)
        scales = owned = scales_from_e8m0(work->scale);
    if (work->kind == JOB_MATRIX)
        run_matrix(model, work, scales);
    else if (work->kind == JOB_HEADS)
        run_heads(model, work, scales);
    else if (work->kind == JOB_COPY)
        *work->vector =
            memcpy((uint8_t *)model->arena + work->offset, work->tensor->data, work->tensor->bytes);
    else
        run_vector(work, model->arena);
    sl_free(owned);
}

static bool run_read(loader *load, job *work)
{
    bool pow2 = load->model->shape.scale_ue8m0;
    if (work->kind == JOB_SAME)
        return eng_tensor_compare(work->tensor, work->original, &work->read);
    return eng_tensor_look(work->tensor, ENG_VALUES_WEIGHTS, &work->read) &&
           (!work->scale ||
            eng_tensor_look(work->scale, pow2 ? ENG_VALUES_POW2_SCALES : ENG_VALUES_SCALES,
                            &work->scale_read));
}

static void progress(loader *load)
{
    sl_time_ns now = sl_now_ns();
    if (!load->options->progress || now < load->progress_at)
        return;
    sl_time_ns period = (now - load->start) / 8;
    load->progress_at = now + (period > PROGRESS_PERIOD ? period : PROGRESS_PERIOD);
    eng_load_progress shown = {
        .bytes_done = atomic_load_explicit(&load->bytes_done, memory_order_relaxed),
        .bytes_total = load->bytes_total,
        .seconds = (double)(now - load->start) / (double)SL_S_NS,
    };
    load->options->progress(load->options->progress_context, &shown);
}

static void run_job(void *context, uint32_t task, uint32_t thread)
{
    loader *load = context;
    job *work = &load->jobs[task];
    if (work->kind == JOB_ELSEWHERE || atomic_load_explicit(&load->failed, memory_order_relaxed))
        return;
    if (task + load->jobs_ahead < load->job_count)
        eng_tensor_expect(load->jobs[task + load->jobs_ahead].tensor);
    if (!run_read(load, work)) {
        atomic_store_explicit(&load->failed, true, memory_order_relaxed);
        return;
    }
    if (work->kind != JOB_MAPPED && work->kind != JOB_SAME)
        run_pack(load->model, work);
    if (work->kind != JOB_MAPPED)
        eng_tensor_forget(work->tensor);
    atomic_fetch_add_explicit(&load->bytes_done,
                              work->tensor->bytes + (work->scale ? work->scale->bytes : 0),
                              memory_order_relaxed);
    if (thread == 0)
        progress(load);
}

static sl_status loader_faults(const loader *load, sl_err *err)
{
    for (uint32_t i = 0; i < load->job_count; i++) {
        const job *work = &load->jobs[i];
        bool weight = work->read.fault[0];
        const mdl_tensor *tensor = weight ? work->tensor : work->scale;
        const char *fault = weight ? work->read.fault : work->scale_read.fault;
        if (fault[0])
            return sl_fail(err, SL_CORRUPT, "%s: tensor %s: %s", tensor->file, tensor->name, fault);
    }
    return sl_ok();
}

static int by_name(const void *a, const void *b)
{
    const mdl_tensor_sum *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The copies that were only compared are not part of what was loaded. One rank of several has only
 * its part: eng_model_join completes it. */
static sl_status loader_hash(const loader *load, sl_err *err)
{
    eng_model *model = load->model;
    size_t most = 2 * (size_t)load->job_count, count = 0;
    model->sums = sl_alloc(most, sizeof(*model->sums), "tensor sums");
    for (uint32_t i = 0; i < load->job_count; i++) {
        const job *work = &load->jobs[i];
        if (work->kind == JOB_SAME)
            continue;
        model->sums[count++] = (mdl_tensor_sum){work->tensor->name, work->read.sum};
        if (work->scale)
            model->sums[count++] = (mdl_tensor_sum){work->scale->name, work->scale_read.sum};
    }
    model->sum_count = count;
    if (model->ep_size > 1) {
        qsort(model->sums, count, sizeof(*model->sums), by_name);
        return sl_ok();
    }
    sl_status status = mdl_model_hash(model->identity, model->sums, count, model->hash, err);
    eng_model_free_ranks(model);
    return status;
}

static const void *moved(const eng_model *model, const void *at)
{
    return (uint8_t *)model->resident + ((const uint8_t *)at - (const uint8_t *)model->arena);
}

/* The whole arena to the backend's memory, and everything that points into it. */
static sl_status loader_place(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    SL_TRY(model->ops->memory_create(model, ENG_MEMORY_DEVICE, model->arena_bytes, &model->resident,
                                     err));
    SL_TRY(model->ops->upload(model, model->resident, model->arena, model->arena_bytes, err));
    for (uint32_t i = 0; i < load->job_count; i++) {
        const job *work = &load->jobs[i];
        uint32_t matrices = work->kind == JOB_HEADS ? work->n : work->kind == JOB_MATRIX;
        for (uint32_t j = 0; j < matrices; j++) {
            work->matrix[j].panels = moved(model, work->matrix[j].panels);
            if (work->second)
                work->second[j].panels = moved(model, work->second[j].panels);
        }
        if (work->vector)
            *work->vector = moved(model, *work->vector);
    }
    sl_free_pages(model->arena, model->arena_bytes);
    model->arena = NULL;
    return sl_ok();
}

/* Better now than killed by the kernel after minutes of loading. */
static sl_status loader_check_memory(const loader *load, sl_err *err)
{
    uint64_t available = sl_memory_available();
    if (load->arena_bytes <= available)
        return sl_ok();
    return sl_fail(
        err, SL_NO_MEMORY,
        "the weights need %.1f GB of memory, %.1f GB are available: use a larger machine,"
        " or some layers only",
        (double)load->arena_bytes / 1e9, (double)available / 1e9);
}

static sl_status loader_run(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    SL_TRY(loader_check_memory(load, err));
    SL_TRY(sl_alloc_pages(load->arena_bytes, &model->arena, err));
    model->arena_bytes = load->arena_bytes;
    size_t places =
        model->expert_memory ? model->moe_layers * (size_t)model->shape.expert_count : 0;
    for (size_t i = 0; i < places; i++)
        if (model->expert_memory[i].bytes > 0)
            model->expert_memory[i].memory =
                (uint8_t *)model->arena + (uintptr_t)model->expert_memory[i].memory;
    sl_numa_interleave(model->arena, model->arena_bytes);
    krn_pool *pool = NULL;
    SL_TRY(krn_pool_create(load->options->threads, &pool, err));
    load->jobs_ahead = JOBS_AHEAD * krn_pool_threads(pool);
    load->start = sl_now_ns();
    load->progress_at = load->start + PROGRESS_PERIOD;
    krn_pool_run(pool, load->job_count, run_job, load);
    krn_pool_destroy(pool);
    SL_TRY(loader_faults(load, err));
    load->progress_at = 0;
    progress(load); /* the last: everything is done */
    SL_TRY(loader_hash(load, err));
    return model->ops->resident ? loader_place(load, err) : sl_ok();
}

sl_status eng_weights_load(eng_model *model, const eng_model_options *options, sl_err *err)
{
    loader load = {.model = model, .options = options};
    sl_status status = plan_model(&load, err);
    for (uint32_t i = 0; i < load.job_count; i++)
        if (load.jobs[i].kind != JOB_ELSEWHERE && load.jobs[i].scale)
            load.bytes_total += load.jobs[i].scale->bytes;
    if (sl_is_ok(status))
        status = loader_run(&load, err);
    sl_free(load.jobs);
    return status;
}

static sl_status check_sum(const eng_model *model, const mdl_tensor *tensor, uint64_t sum,
                           sl_err *err)
{
    const mdl_tensor_sum key = {.name = tensor->name};
    const mdl_tensor_sum *known =
        bsearch(&key, model->sums, model->sum_count, sizeof(key), by_name);
    if (known && known->sum == sum)
        return sl_ok();
    return sl_fail(err, SL_CORRUPT, "%s: tensor %s is not what the ranks have loaded", tensor->file,
                   tensor->name);
}

static sl_status expert_run(loader *load, sl_err *err)
{
    eng_model *model = load->model;
    SL_TRY(loader_check_memory(load, err));
    SL_TRY(sl_alloc_pages(load->arena_bytes, &model->arena, err));
    for (uint32_t i = 0; i < load->job_count; i++)
        run_job(load, i, 0);
    SL_TRY(loader_faults(load, err));
    for (uint32_t i = 0; i < load->job_count; i++) {
        const job *work = &load->jobs[i];
        SL_TRY(check_sum(model, work->tensor, work->read.sum, err));
        if (work->scale)
            SL_TRY(check_sum(model, work->scale, work->scale_read.sum, err));
    }
    return sl_ok();
}

sl_status eng_expert_load(const eng_model *model, eng_expert *out_expert, sl_err *err)
{
    static const eng_model_options QUIET = {0};
    eng_model beside = *model; /* of which the jobs know checkpoint, numerics, backend */
    loader load = {.model = &beside, .options = &QUIET};
    char prefix[MDL_TENSOR_NAME_MAX + 1];
    snprintf(prefix, sizeof(prefix), "model.layers.%u.mlp.experts.%u.",
             (uint32_t)model->shape.dense_layer_count + out_expert->layer, out_expert->expert);
    beside.arena = NULL;
    sl_status status = plan_mlp(&load, prefix, (uint32_t)model->shape.moe_intermediate_size,
                                &out_expert->mlp, err);
    if (sl_is_ok(status))
        status = expert_run(&load, err);
    out_expert->memory = (eng_expert_memory){beside.arena, load.arena_bytes, true};
    if (!sl_is_ok(status))
        eng_expert_free(out_expert);
    sl_free(load.jobs);
    return status;
}

void eng_weights_free(eng_model *model)
{
    for (uint32_t i = 0; model->layers && i < model->layer_count; i++) {
        sl_free(model->layers[i].w_uk);
        sl_free(model->layers[i].w_uv);
        sl_free(model->layers[i].experts);
    }
    sl_free(model->layers);
    if (model->arena)
        sl_free_pages(model->arena, model->arena_bytes);
    if (model->resident)
        model->ops->memory_destroy(model, ENG_MEMORY_DEVICE, model->resident, model->arena_bytes);
}
