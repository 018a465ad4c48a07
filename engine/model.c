/* Opens a model directory: shape, checkpoint, hash, ids without token, packed weights.
 *
 * Thread: any at open; immutable afterwards. */
#include "engine/ops.h"
#include "engine/ranks.h"

#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/reload.h"
#include "model/config.h"
#include "model/tokenizer.h"

/* gate and up of all experts and the shared one are one call of the kernels. */
#define ENG_EXPERTS_MAX (((int32_t)KRN_GEMMS_MAX - 2) / 2)

static sl_status model_load_tokenizer(eng_model *model, const char *dir, sl_err *err)
{
    char *path = sl_asprintf("model path", "%s/tokenizer.json", dir);
    bool there = access(path, F_OK) == 0;
    sl_status status = there ? mdl_tokenizer_load(path, &model->tokenizer, err) : sl_ok();
    sl_free(path);
    SL_TRY(status);
    if (!there)
        return sl_ok();
    int32_t vocab = model->shape.vocab_size;
    model->undefined = sl_alloc(((size_t)vocab + 31) / 32, sizeof(uint32_t), "undefined ids");
    mdl_tokenizer_undefined_mask(model->tokenizer, vocab, model->undefined);
    return sl_ok();
}

static sl_status model_set_layers(eng_model *model, const eng_model_options *options, sl_err *err)
{
    const mdl_shape *shape = &model->shape;
    int first = options->layer_first, end = options->layer_end;
    bool all = first == 0 && end == 0;
    if (all)
        end = shape->layer_count;
    model->mtp_alone =
        shape->mtp_layer_count > 0 && first == shape->layer_count && end == first + 1;
    if (!model->mtp_alone && (first < 0 || first >= end || end > shape->layer_count))
        return sl_fail(err, SL_INVALID, "layers %d:%d: the model has layers 0:%d%s", first, end,
                       shape->layer_count,
                       shape->mtp_layer_count > 0 ? ", and the MTP layer after them, alone" : "");
    model->layer_first = (uint32_t)first;
    model->layer_end = (uint32_t)end;
    model->whole = first == 0 && end == shape->layer_count;
    model->mtp = all && shape->mtp_layer_count > 0;
    model->layer_count = model->layer_end - model->layer_first + model->mtp;
    return sl_ok();
}

/* What the kernels are written for; mdl_shape_load has checked the rest. */
static sl_status model_check_shape(const mdl_shape *shape, sl_err *err)
{
    if (shape->kv_lora_rank != KRN_LATENT_DIM || shape->qk_rope_dim != KRN_ROPE_DIM ||
        shape->qk_nope_dim != KRN_NOPE_DIM || shape->v_head_dim != KRN_VALUE_DIM ||
        shape->index_head_dim != KRN_INDEX_DIM)
        return sl_fail(err, SL_UNSUPPORTED,
                       "config.json: head dimensions are not those of DeepSeek-V3.2");
    if (shape->expert_count > ENG_EXPERTS_MAX ||
        shape->experts_per_token > (int32_t)KRN_EXPERTS_CHOSEN_MAX ||
        shape->group_count > (int32_t)KRN_EXPERT_GROUPS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "config.json: %d experts, %d a token, %d groups",
                       shape->expert_count, shape->experts_per_token, shape->group_count);
    return sl_ok();
}

static sl_status model_set_ranks(eng_model *model, const eng_model_options *options, sl_err *err)
{
    const mdl_shape *shape = &model->shape;
    uint32_t experts = (uint32_t)shape->expert_count;
    model->ep_size = options->ep_size ? options->ep_size : 1;
    model->ep_rank = options->ep_rank;
    if (model->ep_rank >= model->ep_size)
        return sl_fail(err, SL_INVALID, "rank %u of %u", model->ep_rank, model->ep_size);
    if (model->ep_size == 1)
        return sl_ok();
    if (model->ep_size > experts || model->ep_size > COM_RANKS_MAX ||
        shape->experts_per_token > (int32_t)COM_CHOSEN_MAX)
        return sl_fail(err, SL_TOO_LARGE, "%u experts over %u ranks, at most %u are possible",
                       experts, model->ep_size, COM_RANKS_MAX);
    if (model->numerics != ENG_NUMERICS_FP8 || !model->ops->exchange || !model->whole ||
        shape->dense_layer_count >= shape->layer_count)
        return sl_fail(err, SL_UNSUPPORTED,
                       "several ranks: with the CPU backend, fp8 numerics and whole models only");
    return eng_model_set_table(model, options->ep_table, options->ep_slots, err);
}

/* All but the device and the weights. */
static sl_status model_look(eng_model *model, const eng_model_options *options, sl_err *err)
{
    SL_TRY(mdl_shape_load(options->dir, &model->shape, err));
    const mdl_shape *shape = &model->shape;
    SL_TRY(model_check_shape(shape, err));
    SL_TRY(model_set_layers(model, options, err));
    SL_TRY(model_set_ranks(model, options, err));
    SL_TRY(mdl_checkpoint_open(options->dir, &model->checkpoint, err));
    const mdl_part part = {
        .layer_first = (int32_t)model->layer_first,
        .layer_end = (int32_t)model->layer_end + model->mtp,
        .ends = model->whole,
    };
    SL_TRY(mdl_checkpoint_check(model->checkpoint, shape, &part, err));
    SL_TRY(mdl_identity(model->checkpoint, options->dir, model->identity, err));
    if (model->whole)
        SL_TRY(model_load_tokenizer(model, options->dir, err));
    return sl_ok();
}

static sl_status model_open(eng_model *model, const eng_model_options *options, sl_err *err)
{
    SL_TRY(model_look(model, options, err));
    SL_TRY(model->ops->model_open(model, options->cuda_object, err));
    const mdl_shape *shape = &model->shape;
    krn_rope_config rope = {
        .theta = shape->rope_theta,
        .factor = shape->yarn_factor,
        .original_positions = shape->yarn_original_position_max,
        .beta_fast = shape->yarn_beta_fast,
        .beta_slow = shape->yarn_beta_slow,
    };
    krn_rope_init(&rope, &model->rope);
    model->attention_scale = krn_attention_scale(shape->yarn_factor, shape->yarn_mscale_all_dim);
    model->pow2 = shape->scale_ue8m0 || !shape->quantised;
    return eng_weights_load(model, options, err);
}

static sl_status model_create(const eng_model_options *options,
                              sl_status (*fill)(eng_model *model, const eng_model_options *options,
                                                sl_err *err),
                              eng_model **out_model, sl_err *err)
{
    sl_assert(options->dir);
    eng_model *model = sl_alloc(1, sizeof(*model), "engine model");
    model->numerics = options->numerics;
    model->ops = options->backend == ENG_BACKEND_CUDA ? &eng_ops_cuda : &eng_ops_cpu;
    sl_status status = fill(model, options, err);
    if (!sl_is_ok(status)) {
        eng_model_close(model);
        return sl_wrap(err, status, "model %s", options->dir);
    }
    *out_model = model;
    return status;
}

sl_status eng_model_open(const eng_model_options *options, eng_model **out_model, sl_err *err)
{
    return model_create(options, model_open, out_model, err);
}

sl_status eng_model_look(const eng_model_options *options, eng_model **out_model, sl_err *err)
{
    return model_create(options, model_look, out_model, err);
}

void eng_model_close(eng_model *model)
{
    if (!model)
        return;
    eng_weights_free(model);
    eng_model_free_ranks(model);
    mdl_checkpoint_close(model->checkpoint);
    sl_free(model->undefined);
    mdl_tokenizer_destroy(model->tokenizer);
    sl_free(model);
}

sl_status eng_model_check_same(const eng_model *model, const eng_model *fresh, sl_err *err)
{
    bool same = strcmp(model->identity, fresh->identity) == 0 && model->ops == fresh->ops &&
                model->numerics == fresh->numerics && model->layer_first == fresh->layer_first &&
                model->layer_end == fresh->layer_end && model->layer_count == fresh->layer_count;
    if (!same)
        return sl_fail(err, SL_INCOMPATIBLE,
                       "config.json, tokenizer.json or the tensors' names, types or shapes differ "
                       "from those of the weights in use");
    return sl_ok();
}

void eng_model_exchange(eng_model *model, eng_model *fresh)
{
    eng_model old = *model;
    *model = *fresh;
    *fresh = old;
    model->swaps = old.swaps + 1; /* sets of experts of the old ones do not fit any more */
    fresh->tokenizer = model->tokenizer;
    fresh->undefined = model->undefined;
    model->tokenizer = old.tokenizer;
    model->undefined = old.undefined;
}

const mdl_shape *eng_model_shape(const eng_model *model)
{
    return &model->shape;
}

const mdl_tokenizer *eng_model_tokenizer(const eng_model *model)
{
    return model->tokenizer;
}
