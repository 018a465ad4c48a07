/* Draws on the device: parameters and the sparse changes to a row's logits, and the record that
 * comes back.
 *
 * The host says which ids change and how; the device changes them in the order of docs/SAMPLING.md.
 * Both sides reach into pinned memory, so that a recorded run needs no copies of it. Thread: the
 * engine thread. Allocates at create only. */
#include "engine/cuda_draw.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/rng.h"
#include "engine/cuda.h"

_Static_assert(ENG_LOGPROBS_MAX == KRN_CUDA_TOP_MAX, "alternatives of a draw");

/* The edit of an id; sampler->count holds 1 + its place. NULL: no room. */
static krn_cuda_edit *edit_of(eng_sampler *sampler, eng_cuda_edits *edits, uint32_t first,
                              uint32_t id)
{
    sl_assert(id < sampler->vocab_size);
    if (sampler->count[id] == 0) {
        if (edits->used == edits->most)
            return NULL;
        edits->at[edits->used++] = (krn_cuda_edit){.id = id};
        sampler->count[id] = edits->used - first;
    }
    return &edits->at[first + sampler->count[id] - 1];
}

static bool edit_penalties(eng_sampler *sampler, eng_cuda_edits *edits, uint32_t first,
                           const mdl_sampling *params, const uint32_t *context,
                           uint32_t context_count, uint32_t prompt_count)
{
    bool repetition = params->repetition_penalty != 1.0f && params->repetition_penalty > 0.0f;
    bool counts = params->presence_penalty != 0.0f || params->frequency_penalty != 0.0f;
    if (!repetition && !counts)
        return true;
    for (uint32_t i = repetition ? 0 : prompt_count; i < context_count; i++) {
        krn_cuda_edit *edit = edit_of(sampler, edits, first, context[i]);
        if (!edit)
            return false;
        edit->kinds |= repetition ? KRN_CUDA_EDIT_REPEATED : 0;
        edit->count += counts && i >= prompt_count;
    }
    return true;
}

static bool edit_bias(eng_sampler *sampler, eng_cuda_edits *edits, uint32_t first,
                      const mdl_sampling *params)
{
    for (int32_t i = 0; i < params->bias_count; i++) {
        const mdl_logit_bias *bias = &params->bias[i];
        if (bias->id < 0 || (uint32_t)bias->id >= sampler->vocab_size)
            continue;
        krn_cuda_edit *edit = edit_of(sampler, edits, first, (uint32_t)bias->id);
        if (!edit || edit->kinds & KRN_CUDA_EDIT_BIAS)
            return false; /* two on one id would be two additions */
        edit->kinds |= KRN_CUDA_EDIT_BIAS;
        edit->bias = bias->bias;
    }
    return true;
}

static bool bar(eng_sampler *sampler, eng_cuda_edits *edits, uint32_t first, int64_t id)
{
    if (id < 0 || id >= sampler->vocab_size)
        return true;
    krn_cuda_edit *edit = edit_of(sampler, edits, first, (uint32_t)id);
    if (edit)
        edit->kinds |= KRN_CUDA_EDIT_BARRED;
    return edit != NULL;
}

static bool edit_ends(eng_sampler *sampler, eng_cuda_edits *edits, uint32_t first,
                      const mdl_sampling *params)
{
    bool fits = bar(sampler, edits, first, sampler->eos_id);
    for (int32_t i = 0; i < params->stop_id_count && fits; i++)
        fits = bar(sampler, edits, first, params->stop_ids[i]);
    return fits;
}

bool eng_cuda_draw_prepare(eng_sampler *sampler, const mdl_sampling *params,
                           const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                           uint32_t position, const uint32_t *allowed, uint32_t allowed_row,
                           eng_cuda_edits *edits, krn_cuda_draw_row *out_row)
{
    sl_assert(prompt_count <= context_count);
    uint32_t first = edits->used;
    bool fits =
        edit_penalties(sampler, edits, first, params, context, context_count, prompt_count) &&
        edit_bias(sampler, edits, first, params);
    if (fits && eng_sampler_bars_ends(sampler, params, context_count - prompt_count, allowed))
        fits = edit_ends(sampler, edits, first, params);
    for (uint32_t i = first; i < edits->used; i++)
        sampler->count[edits->at[i].id] = 0;
    if (!fits) {
        edits->used = first;
        *out_row = (krn_cuda_draw_row){0};
        return false;
    }
    *out_row = (krn_cuda_draw_row){
        .u = sl_keyed_uniform(params->seed, position, ENG_SAMPLER_STREAM),
        .temperature = params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .repetition = params->repetition_penalty,
        .presence = params->presence_penalty,
        .frequency = params->frequency_penalty,
        .top_k = params->top_k > 0 ? (uint32_t)params->top_k : 0,
        .logprobs =
            params->logprob_count > ENG_LOGPROBS_MAX ? ENG_LOGPROBS_MAX : params->logprob_count,
        .drawn = 1,
        .edits_at = first,
        .edit_count = edits->used - first,
        .allowed = allowed ? 1 + allowed_row : 0,
    };
    return true;
}

bool eng_cuda_draw_take(const krn_cuda_drawn *drawn, const krn_cuda_draw_row *row,
                        eng_sampled *out_sampled)
{
    if (drawn->code != KRN_CUDA_DRAWN)
        return false;
    eng_sampled sampled = {.id = drawn->id};
    if (row->logprobs >= 0) {
        double norm = (double)drawn->max + log(drawn->sum);
        sampled.logprob = (float)((double)drawn->logit - norm);
        sampled.top_count = drawn->top_count;
        for (uint32_t i = 0; i < drawn->top_count; i++)
            sampled.top[i] =
                (eng_logprob){drawn->top_ids[i], (float)((double)drawn->top_logits[i] - norm)};
    }
    *out_sampled = sampled;
    return true;
}

/* ---- the engine's ---- */

static uint32_t mask_words(const eng_engine *engine)
{
    return ((uint32_t)engine->model->shape.vocab_size + 31) / 32;
}

static sl_status pinned(const eng_engine *engine, size_t bytes, void **out_memory, sl_err *err)
{
    return engine->ops->memory_create(engine->model, ENG_MEMORY_HOST, bytes, out_memory, err);
}

sl_status eng_cuda_draws_create(eng_engine *engine, sl_err *err)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    eng_cuda_draws *draws = &cuda->draws;
    size_t words = mask_words(engine) * sizeof(uint32_t);
    if ((uint32_t)engine->model->shape.vocab_size > KRN_CUDA_DRAW_MAX)
        return sl_ok(); /* the host draws */
    uint32_t rows = engine->rows_max < ENG_CUDA_DRAWS_MAX ? engine->rows_max : ENG_CUDA_DRAWS_MAX;
    draws->edits.most = rows * ENG_CUDA_DRAW_EDITS;
    SL_TRY(pinned(engine, rows * sizeof(krn_cuda_draw_row), (void **)&draws->rows, err));
    SL_TRY(
        pinned(engine, draws->edits.most * sizeof(krn_cuda_edit), (void **)&draws->edits.at, err));
    SL_TRY(pinned(engine, rows * words, (void **)&draws->masks, err));
    SL_TRY(pinned(engine, rows * sizeof(krn_cuda_drawn), (void **)&draws->drawn, err));
    if (engine->sampler.undefined) {
        SL_TRY(engine->ops->memory_create(engine->model, ENG_MEMORY_DEVICE, words,
                                          (void **)&draws->undefined, err));
        engine->ops->write(engine, draws->undefined, engine->sampler.undefined, words);
    }
    draws->row_count = rows;
    return sl_ok();
}

void eng_cuda_draws_destroy(eng_cuda *cuda)
{
    void *const host[] = {cuda->draws.rows, cuda->draws.edits.at, cuda->draws.masks,
                          cuda->draws.drawn};
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        cuda->api->host_destroy(host[i]);
    cuda->api->memory_destroy(cuda->draws.undefined);
}

bool eng_cuda_draw_row(eng_engine *engine, uint32_t row, const mdl_sampling *params,
                       const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                       const uint32_t *allowed, bool likeliest)
{
    eng_cuda_draws *draws = &eng_cuda_of(engine)->draws;
    if (row >= draws->row_count)
        return false;
    if (row == 0)
        draws->edits.used = 0;
    krn_cuda_draw_row *at = &draws->rows[row];
    draws->drawn[row].code = 0;
    *at = (krn_cuda_draw_row){0};
    if (!params ||
        !eng_cuda_draw_prepare(&engine->sampler, params, context, context_count, prompt_count,
                               context_count, allowed, row, &draws->edits, at))
        return false;
    if (likeliest)
        at->temperature = 0;
    if (allowed)
        memcpy(draws->masks + (size_t)row * mask_words(engine), allowed,
               mask_words(engine) * sizeof(uint32_t));
    return true;
}

void eng_cuda_draw(eng_engine *engine, const float *logits, uint32_t rows)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    const eng_cuda_draws *draws = &cuda->draws;
    const krn_cuda_draw_params params = {
        .logits = logits,
        .rows_at = draws->rows,
        .edits = draws->edits.at,
        .allowed = draws->masks,
        .undefined = draws->undefined,
        .out = draws->drawn,
        .rows = rows < draws->row_count ? rows : draws->row_count,
        .n = (uint32_t)engine->model->shape.vocab_size,
    };
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->draw(&params, cuda->stream));
}

bool eng_cuda_drawn(eng_engine *engine, uint32_t row, eng_sampled *out_sampled)
{
    const eng_cuda_draws *draws = &eng_cuda_of(engine)->draws;
    return row < draws->row_count && draws->rows[row].drawn &&
           eng_cuda_draw_take(&draws->drawn[row], &draws->rows[row], out_sampled);
}
