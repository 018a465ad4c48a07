/* One rank of an instance: which run comes next, and how it takes part in it.
 *
 * A run begins with a header: what each rank would run. It is posted when a step begins and awaited
 * before its first layer with experts; drafts go before steps, so that all steps meet. A rank whose
 * wish does not come first takes part with no rows, then asks again. After a fault a rank goes on
 * without rows to the run's end: the others need its experts. Thread: the engine thread. */
#include "engine/parallel.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/ranks.h"

/* ---- model ---- */

void eng_model_ranks_layout(const eng_model *model, uint32_t rows_max, com_layout *out_layout)
{
    const mdl_shape *shape = &model->shape;
    uint32_t hidden = (uint32_t)shape->hidden_size;
    *out_layout = (com_layout){
        .rows_max = rows_max ? rows_max : ENG_ROWS_DEFAULT,
        .chosen = (uint32_t)shape->experts_per_token,
        .expert_count = (uint32_t)shape->expert_count,
        .row_bytes = shape->quantised ? hidden : hidden * (uint32_t)sizeof(uint16_t),
        .scale_bytes = shape->quantised ? hidden / KRN_BLOCK * (uint32_t)sizeof(float) : 0,
        .output_bytes = hidden * (uint32_t)sizeof(uint16_t),
        .placement_version = 1,
        .rank_of = model->rank_of,
    };
}

uint64_t eng_model_expert_bytes(const eng_model *model)
{
    return model->expert_bytes;
}

void eng_model_free_sums(eng_model *model)
{
    sl_free(model->sums);
    sl_free(model->sum_ranks);
    model->sums = NULL;
    model->sum_ranks = NULL;
}

#define IDENTITY_WORDS ((MDL_IDENTITY_CHARS + 7) / 8)

/* Sums of all tensors from the ranks that loaded them; all [size][words], sums behind the identity.
 */
static sl_status join_sums(eng_model *model, const uint64_t *all, uint32_t size, sl_err *err)
{
    size_t words = IDENTITY_WORDS + model->sum_count;
    for (uint32_t r = 0; r < size; r++) {
        if (memcmp(all + r * words, all, IDENTITY_WORDS * sizeof(*all)) != 0)
            return sl_fail(err, SL_INCOMPATIBLE, "ranks 0 and %u have opened different models", r);
        for (size_t i = 0; i < model->sum_count; i++) {
            if (model->sum_ranks[i] != ENG_EVERY_RANK)
                continue;
            if (all[r * words + IDENTITY_WORDS + i] != all[IDENTITY_WORDS + i])
                return sl_fail(err, SL_INCOMPATIBLE, "ranks 0 and %u have loaded different %s", r,
                               model->sums[i].name);
        }
    }
    for (size_t i = 0; i < model->sum_count; i++)
        if (model->sum_ranks[i] != ENG_EVERY_RANK)
            model->sums[i].sum = all[model->sum_ranks[i] * words + IDENTITY_WORDS + i];
    return mdl_model_hash(model->identity, model->sums, model->sum_count, model->hash, err);
}

sl_status eng_model_join(eng_model *model, com_group *group, sl_err *err)
{
    uint32_t size = com_group_size(group);
    size_t words = IDENTITY_WORDS + model->sum_count;
    if (size != model->ep_size || com_group_rank(group) != model->ep_rank)
        return sl_fail(err, SL_INVALID, "the model was opened as rank %u of %u, not %u of %u",
                       model->ep_rank, model->ep_size, com_group_rank(group), size);
    if (size == 1)
        return sl_ok();
    if (!model->sums)
        return sl_fail(err, SL_CONFLICT, "the model has joined its ranks already");
    uint64_t *mine = sl_alloc(words, sizeof(*mine), "tensor sums of a rank");
    uint64_t *all = sl_alloc(words * size, sizeof(*all), "tensor sums of all ranks");
    memcpy(mine, model->identity, MDL_IDENTITY_CHARS);
    for (size_t i = 0; i < model->sum_count; i++)
        mine[IDENTITY_WORDS + i] = model->sums[i].sum;
    sl_status status = com_gather(group, mine, words * sizeof(*mine), all, err);
    if (sl_is_ok(status))
        status = join_sums(model, all, size, err);
    sl_free(mine);
    sl_free(all);
    if (sl_is_ok(status))
        eng_model_free_sums(model);
    return status;
}

/* ---- create ---- */

static size_t take(size_t *used, size_t count, size_t size)
{
    size_t at = *used;
    *used += (count * size + 63) / 64 * 64;
    return at;
}

sl_status eng_ranks_create(eng_engine *engine, com_group *group, sl_err *err)
{
    const eng_model *model = engine->model;
    if (model->ep_size <= 1 && !group)
        return sl_ok();
    if (!group || model->ep_size != com_group_size(group) || model->hash[0] == '\0')
        return sl_fail(err, SL_INVALID, "the model is one of %u ranks that have not been joined",
                       model->ep_size);
    if (model->ep_size == 1)
        return sl_ok();
    com_layout layout;
    eng_model_ranks_layout(model, engine->rows_max, &layout);
    size_t rows = (size_t)engine->rows_max * model->ep_size;
    eng_ranks *ranks = engine->ranks = sl_alloc(1, sizeof(*ranks), "ranks");
    ranks->group = group;
    ranks->rank = model->ep_rank;
    ranks->size = model->ep_size;
    ranks->row_bytes = layout.row_bytes;
    ranks->scale_bytes = layout.scale_bytes;
    size_t used = 0;
    size_t rows_at = take(&used, rows, layout.row_bytes);
    size_t scales_at = take(&used, rows, layout.scale_bytes);
    size_t places_at = take(&used, rows * layout.chosen, sizeof(uint32_t));
    SL_TRY(sl_alloc_pages(used, &ranks->memory, err));
    ranks->bytes = used;
    uint8_t *memory = ranks->memory;
    ranks->rows = memory + rows_at;
    ranks->scales = memory + scales_at;
    ranks->places = (uint32_t *)(memory + places_at);
    return sl_ok();
}

sl_status eng_ranks_prepare(eng_engine *engine, sl_err *err)
{
    if (!engine->ranks)
        return sl_ok();
    com_group *group = engine->ranks->group;
    uint64_t bytes = (uint64_t)engine->rows_max * (uint32_t)engine->model->shape.experts_per_token *
                     eng_hidden_bytes(engine);
    if (com_group_return_bytes(group) != bytes)
        return sl_fail(err, SL_INVALID, "the ranks were connected for steps of other size");
    com_group_set_returns(group, eng_row_at(engine, engine->s.down, eng_places_max(engine),
                                            (size_t)engine->model->shape.hidden_size));
    return sl_ok();
}

void eng_ranks_destroy(eng_engine *engine)
{
    if (!engine->ranks)
        return;
    if (engine->ranks->memory)
        sl_free_pages(engine->ranks->memory, engine->ranks->bytes);
    sl_free(engine->ranks);
    engine->ranks = NULL;
}

/* ---- runs ---- */

static bool ranks_broken(eng_engine *engine)
{
    engine->broken = com_group_failed(engine->ranks->group);
    sl_assert(engine->broken);
    engine->ranks->wish = ENG_WISH_NONE;
    return false;
}

static bool ranks_post(eng_engine *engine, eng_wish wish, uint32_t rows)
{
    const eng_ranks *ranks = engine->ranks;
    const com_header header = {
        .wish = wish,
        .rows = rows,
        .rank_mask = UINT64_MAX >> (64 - ranks->size),
        .placement_ready = 1,
    };
    return sl_is_ok(com_header_post(ranks->group, &header, NULL)) || ranks_broken(engine);
}

/* Layers of a run, of model->layers. */
static void run_layers(const eng_engine *engine, eng_wish run, uint32_t *out_first,
                       uint32_t *out_end)
{
    const eng_model *model = engine->model;
    *out_end = run == ENG_WISH_STEP ? (uint32_t)model->shape.layer_count : model->layer_count;
    *out_first =
        run == ENG_WISH_STEP ? (uint32_t)model->shape.dense_layer_count : model->layer_count - 1;
}

/* With no rows of its own. */
static bool run_idle(eng_engine *engine, uint32_t first, uint32_t end)
{
    for (uint32_t layer = first; layer < end; layer++) {
        engine->step_layer = layer;
        if (!engine->ops->exchange(engine, &engine->model->layers[layer], 0) && engine->broken)
            return false; /* a fault of another kind fails those whose rows these are */
    }
    return true;
}

/* Awaits the others' headers. out_run: NONE if nobody wants anything, or it failed. */
static eng_wish ranks_agree(eng_engine *engine)
{
    com_header headers[COM_RANKS_MAX];
    eng_ranks *ranks = engine->ranks;
    uint32_t run = ENG_WISH_NONE;
    if (!sl_is_ok(com_header_wait(ranks->group, headers, NULL))) {
        (void)ranks_broken(engine);
        return ENG_WISH_NONE;
    }
    for (uint32_t r = 0; r < ranks->size; r++)
        run = headers[r].wish > run ? headers[r].wish : run;
    ranks->runs++;
    bool known = run < ENG_WISH_COUNT && (run != ENG_WISH_DRAFT || engine->model->mtp);
    if (known)
        return (eng_wish)run;
    com_abort(ranks->group, "a rank wants a run that there is not");
    (void)ranks_post(engine, ENG_WISH_NONE, 0); /* which fails */
    return ENG_WISH_NONE;
}

bool eng_ranks_begin(eng_engine *engine, eng_wish wish, uint32_t rows)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks)
        return true;
    sl_assert(ranks->wish == ENG_WISH_NONE && wish != ENG_WISH_NONE && !engine->tap);
    if (engine->broken)
        return false;
    ranks->wish = wish;
    ranks->joined = false;
    return ranks_post(engine, wish, rows);
}

bool eng_ranks_join(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks || ranks->joined)
        return true;
    uint32_t first, end, layer = engine->step_layer;
    for (;;) {
        eng_wish run = ranks_agree(engine);
        if (engine->broken)
            return false;
        run_layers(engine, run, &first, &end);
        if (run == ranks->wish)
            break;
        eng_wish wish = ranks->wish;
        if (!run_idle(engine, first, end) || !ranks_post(engine, wish, 0))
            return false;
    }
    engine->step_layer = layer;
    ranks->at = first;
    ranks->end = end;
    ranks->joined = true;
    return true;
}

bool eng_ranks_moe(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_ranks *ranks = engine->ranks;
    sl_assert(ranks->joined && layer == &engine->model->layers[ranks->at] &&
              ranks->at < ranks->end);
    ranks->at++;
    return engine->ops->exchange(engine, layer, rows) || (engine->broken && ranks_broken(engine));
}

void eng_ranks_end(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks || ranks->wish == ENG_WISH_NONE || engine->broken)
        return;
    const char *fault = engine->fault;
    uint32_t layer = engine->step_layer;
    if (eng_ranks_join(engine))
        (void)run_idle(engine, ranks->at, ranks->end); /* broken: engine->broken says it */
    engine->fault = fault;
    engine->step_layer = layer;
    ranks->wish = ENG_WISH_NONE;
}

bool eng_engine_take_part(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    uint32_t first, end;
    if (!ranks || engine->broken || !com_header_pending(ranks->group))
        return false;
    if (!ranks_post(engine, ENG_WISH_NONE, 0))
        return true;
    eng_wish run = ranks_agree(engine);
    if (run == ENG_WISH_NONE)
        return true;
    run_layers(engine, run, &first, &end);
    (void)run_idle(engine, first, end);
    return true;
}

uint64_t eng_engine_runs(const eng_engine *engine)
{
    return engine->ranks ? engine->ranks->runs : 0;
}

int eng_engine_ranks_fd(const eng_engine *engine)
{
    return engine->ranks && !engine->broken ? com_fd(engine->ranks->group) : -1;
}

bool eng_engine_ranks_arm(eng_engine *engine)
{
    return !engine->ranks || com_arm(engine->ranks->group);
}
