/* One rank of an instance: which run comes next, how it takes part in it, and how the ranks go over
 * to another formation.
 *
 * A run begins with a header: what each rank would run, and for which formation it is ready. It is
 * posted when a step begins and awaited before its first layer with experts; drafts go before
 * steps, so that all steps meet. A rank whose wish does not come first takes part with no rows,
 * then asks again. After a fault a rank goes on without rows to the run's end: the others need its
 * experts. Headers in which all are ready for the same formation open no run: all go over to it and
 * ask there. Thread: the engine thread, but where parallel.h says so. */
#include "engine/parallel.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/micro_batch.h"
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
        .layer_count = model->moe_layers,
        .slot_count = model->ep_slots,
        .slots = model->ep_table,
    };
}

uint64_t eng_model_expert_bytes(const eng_model *model)
{
    return __atomic_load_n(&model->expert_bytes, __ATOMIC_RELAXED);
}

#define IDENTITY_WORDS ((MDL_IDENTITY_CHARS + 7) / 8)

/* Sums of all tensors from the ranks that know them; all [size][words], sums behind the identity,
 * those of ranks outside the mask are not looked at. */
static sl_status join_sums(eng_model *model, const uint64_t *all, uint64_t mask, sl_err *err)
{
    size_t words = IDENTITY_WORDS + model->sum_count;
    uint32_t own = model->ep_rank;
    for (uint32_t r = 0; r < model->ep_size; r++) {
        if ((mask >> r & 1) == 0)
            continue;
        if (memcmp(all + r * words, all + own * words, IDENTITY_WORDS * sizeof(*all)) != 0)
            return sl_fail(err, SL_INCOMPATIBLE, "ranks %u and %u have opened different models",
                           own < r ? own : r, own < r ? r : own);
    }
    for (size_t i = 0; i < model->sum_count; i++) {
        uint64_t known = 0;
        uint32_t first = 0;
        for (uint32_t r = 0; r < model->ep_size; r++) {
            uint64_t sum = mask >> r & 1 ? all[r * words + IDENTITY_WORDS + i] : 0;
            if (sum != 0 && known != 0 && sum != known)
                return sl_fail(err, SL_INCOMPATIBLE, "ranks %u and %u have loaded different %s",
                               first, r, model->sums[i].name);
            first = known == 0 && sum != 0 ? r : first;
            known = sum != 0 ? sum : known;
        }
        if (known == 0)
            return sl_fail(err, SL_INCOMPATIBLE, "no rank has loaded %s", model->sums[i].name);
        if (model->hash[0] == '\0')
            model->sums[i].sum = known;
    }
    if (model->hash[0] != '\0')
        return sl_ok(); /* whoever reads it may go on */
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
    uint64_t *mine = sl_alloc(words, sizeof(*mine), "tensor sums of a rank");
    uint64_t *all = sl_alloc(words * size, sizeof(*all), "tensor sums of all ranks");
    memcpy(mine, model->identity, MDL_IDENTITY_CHARS);
    for (size_t i = 0; i < model->sum_count; i++)
        mine[IDENTITY_WORDS + i] = model->sums[i].sum;
    sl_status status = com_gather(group, mine, words * sizeof(*mine), all, err);
    if (sl_is_ok(status))
        status = join_sums(model, all, com_group_mask(group), err);
    sl_free(mine);
    sl_free(all);
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
    if (model->hash[0] == '\0' || (group && model->ep_size != com_group_size(group)))
        return sl_fail(err, SL_INVALID, "the model is one of %u ranks that have not been joined",
                       model->ep_size);
    if (model->ep_size == 1)
        return sl_ok();
    com_layout layout;
    eng_model_ranks_layout(model, engine->rows_max, &layout);
    size_t rows = (size_t)engine->rows_max * model->ep_size;
    eng_ranks *ranks = engine->ranks = sl_alloc(1, sizeof(*ranks), "ranks");
    ranks->group = group;
    ranks->fixed = group != NULL;
    ranks->rank = model->ep_rank;
    ranks->size = model->ep_size;
    ranks->row_bytes = layout.row_bytes;
    ranks->scale_bytes = layout.scale_bytes;
    pthread_mutex_init(&ranks->lock, NULL);
    ranks->loads = sl_alloc((size_t)model->moe_layers * layout.expert_count, sizeof(*ranks->loads),
                            "expert loads");
    SL_TRY(sl_mailbox_create(1, 2, &ranks->doorbell, err));
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

/* Outputs come back behind the engine's own. */
static void returns_set(eng_engine *engine, com_group *group)
{
    com_group_set_returns(group, eng_row_at(engine, engine->s.down, eng_places_max(engine),
                                            (size_t)engine->model->shape.hidden_size));
}

sl_status eng_ranks_prepare(eng_engine *engine, sl_err *err)
{
    if (!engine->ranks || !engine->ranks->group)
        return sl_ok();
    com_group *group = engine->ranks->group;
    uint64_t bytes = (uint64_t)engine->rows_max * (uint32_t)engine->model->shape.experts_per_token *
                     eng_hidden_bytes(engine);
    if (com_group_return_bytes(group) != bytes)
        return sl_fail(err, SL_INVALID, "the ranks were connected for steps of other size");
    returns_set(engine, group);
    return sl_ok();
}

void eng_ranks_destroy(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks)
        return;
    if (ranks->memory)
        sl_free_pages(ranks->memory, ranks->bytes);
    sl_mailbox_destroy(ranks->doorbell);
    sl_free(ranks->loads);
    pthread_mutex_destroy(&ranks->lock);
    sl_free(ranks);
    engine->ranks = NULL;
}

/* ---- formations ---- */

void eng_ranks_ring(eng_engine *engine)
{
    sl_mailbox_wake(engine->ranks->doorbell);
    if (engine->wake)
        engine->wake(engine->wake_context);
}

void eng_engine_offer(eng_engine *engine, eng_formation *formation)
{
    __atomic_store_n(&engine->ranks->offered, formation, __ATOMIC_RELEASE);
    eng_ranks_ring(engine);
}

void eng_engine_give_up(eng_engine *engine, const char *text)
{
    if (!engine->ranks)
        return;
    __atomic_store_n(&engine->ranks->give_up, text, __ATOMIC_RELEASE);
    eng_ranks_ring(engine);
}

void eng_engine_on_ranks(eng_engine *engine, void (*fn)(void *context), void *context)
{
    engine->ranks->on_change = fn;
    engine->ranks->on_change_context = context;
}

void eng_engine_ranks_state(eng_engine *engine, eng_ranks_state *out_state)
{
    pthread_mutex_lock(&engine->ranks->lock);
    *out_state = engine->ranks->state;
    pthread_mutex_unlock(&engine->ranks->lock);
}

void eng_engine_expert_loads(const eng_engine *engine, uint64_t *out_rows)
{
    const eng_model *model = engine->model;
    size_t count = (size_t)model->moe_layers * (size_t)model->shape.expert_count;
    for (size_t i = 0; i < count; i++)
        out_rows[i] = __atomic_load_n(&engine->ranks->loads[i], __ATOMIC_RELAXED);
}

static void changed(eng_ranks *ranks, const eng_ranks_state *state)
{
    pthread_mutex_lock(&ranks->lock);
    ranks->state = *state;
    pthread_mutex_unlock(&ranks->lock);
    if (ranks->on_change)
        ranks->on_change(ranks->on_change_context);
}

/* What was offered, if it may be used. */
static eng_formation *ranks_offer(const eng_ranks *ranks)
{
    eng_formation *next = __atomic_load_n(&ranks->offered, __ATOMIC_ACQUIRE);
    const eng_ranks_state *state = &ranks->state; /* written by this thread only */
    return next && next->number > state->used && next->number > state->failed ? next : NULL;
}

/* Made for experts that have been exchanged since: the owner took another one for failed that this
 * rank then went over to. The others of it hear that this rank cannot. */
static void ranks_refuse(eng_ranks *ranks, eng_formation *next)
{
    eng_ranks_state state = ranks->state;
    com_abort(next->group, "its experts are not the right ones any more");
    (void)com_header_pending(next->group); /* says so */
    ranks->lost = true;
    state.failed = next->number;
    state.why = com_group_failed(next->group);
    state.failed_at = sl_now_ns();
    changed(ranks, &state);
}

static void ranks_take(eng_engine *engine, eng_formation *next)
{
    eng_ranks *ranks = engine->ranks;
    eng_ranks_state state = ranks->state;
    if (!eng_experts_fit(next->model, next->experts)) {
        ranks_refuse(ranks, next);
        return;
    }
    eng_experts_swap(next->model, next->experts);
    ranks->group = next->group;
    ranks->reload_told = 0;
    ranks->lost = false;
    ranks->next = NULL;
    ranks->told = next->number;
    returns_set(engine, next->group);
    state.used = next->number;
    changed(ranks, &state);
}

/* The group has failed. One that was to follow it has no part any more in what comes: some ranks
 * may have gone over to it, and hear of that at once. */
static bool ranks_fail(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    eng_ranks_state state = ranks->state;
    const char *why = com_group_failed(ranks->group);
    sl_assert(why);
    ranks->lost = true;
    ranks->wish = ENG_WISH_NONE;
    if (ranks->fixed) {
        engine->broken = why;
        return false;
    }
    if (state.failed >= state.used && state.used > 0)
        return false; /* told already */
    eng_formation *next = ranks_offer(ranks);
    if (next) {
        com_abort(next->group, "the formation before it has failed");
        (void)com_header_pending(next->group); /* says so */
    }
    state.failed = next ? next->number : state.used;
    state.lost = com_group_lost(ranks->group);
    state.why = why;
    state.failed_at = sl_now_ns();
    state.again_at = 0;
    changed(ranks, &state);
    return false;
}

/* After a failure, or at the start. false: there is nothing to go over to yet; or for good, then
 * engine->broken is set. */
static bool ranks_take_offer(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    eng_formation *next = ranks_offer(ranks);
    const char *text = __atomic_load_n(&ranks->give_up, __ATOMIC_ACQUIRE);
    if (next && !text)
        ranks_take(engine, next);
    else if (text)
        engine->broken = ranks->state.why ? ranks->state.why : text;
    return next && !text && !ranks->lost;
}

static bool ranks_idle(const eng_ranks *ranks)
{
    return !ranks->group || ranks->lost;
}

bool eng_ranks_recover(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks || engine->broken || !ranks_idle(ranks))
        return false;
    for (;;) {
        sl_mailbox_clear(ranks->doorbell);
        if (ranks_take_offer(engine))
            return true;
        if (engine->broken)
            return false;
        sl_mailbox_wait(ranks->doorbell, SL_NEVER);
    }
}

/* A run has ended well. */
static void ranks_note(eng_ranks *ranks)
{
    eng_ranks_state state = ranks->state;
    if (state.failed_at == 0 || state.again_at != 0)
        return;
    state.again_at = sl_now_ns();
    changed(ranks, &state);
}

/* ---- runs ---- */

static bool ranks_post(eng_engine *engine, eng_wish wish, uint32_t rows)
{
    eng_ranks *ranks = engine->ranks;
    ranks->next = ranks_offer(ranks);
    ranks->told = ranks->next ? ranks->next->number : ranks->state.used;
    ranks->reload_told = __atomic_load_n(&ranks->reload, __ATOMIC_ACQUIRE);
    const com_header header = {
        .wish = wish,
        .rows = rows,
        .rank_mask = com_group_mask(ranks->group),
        .ready = ranks->told,
        .reload = ranks->reload_told,
    };
    return sl_is_ok(com_header_post(ranks->group, &header, NULL)) || ranks_fail(engine);
}

/* What a run is made of: layers of model->layers, in micro-batches. */
static void run_set(eng_engine *engine, eng_wish run)
{
    const eng_model *model = engine->model;
    eng_ranks *ranks = engine->ranks;
    bool draft = run == ENG_WISH_DRAFT;
    ranks->at = draft ? model->layer_count - 1 : (uint32_t)model->shape.dense_layer_count;
    ranks->end = draft ? model->layer_count : (uint32_t)model->shape.layer_count;
    ranks->batches = run == ENG_WISH_STEP_SPLIT ? 2 : 1;
}

/* What is left of the run, with no rows of its own. */
static bool run_idle(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    for (; ranks->at < ranks->end; ranks->at++)
        if (!eng_micro_moe(engine, ranks->at, 0, ranks->batches) && ranks->lost)
            return ranks_fail(
                engine); /* a fault of another kind fails those whose rows these are */
    return true;
}

/* All ranks of the group say that they are ready for what this rank was offered. */
static bool ranks_all_ready(const eng_ranks *ranks, const com_header *headers)
{
    uint64_t mask = com_group_mask(ranks->group);
    for (uint32_t r = 0; r < ranks->size && ranks->next; r++)
        if ((mask >> r & 1) != 0 && headers[r].ready != ranks->next->number)
            return false;
    return ranks->next != NULL;
}

/* Awaits the others' headers. out_run: NONE if nobody wants anything, or it failed, or all have
 * gone over to another formation: out_over. */
static eng_wish ranks_agree(eng_engine *engine, bool *out_over)
{
    com_header headers[COM_RANKS_MAX];
    eng_ranks *ranks = engine->ranks;
    uint32_t run = ENG_WISH_NONE;
    *out_over = false;
    if (!sl_is_ok(com_header_wait(ranks->group, headers, NULL))) {
        (void)ranks_fail(engine);
        return ENG_WISH_NONE;
    }
    if (ranks->state.settled < ranks->state.used) {
        eng_ranks_state state = ranks->state;
        state.settled = state.used;
        changed(ranks, &state);
    }
    eng_ranks_hear(ranks, headers);
    if (ranks_all_ready(ranks, headers)) {
        ranks_take(engine, ranks->next);
        *out_over = !ranks->lost;
        return ENG_WISH_NONE;
    }
    for (uint32_t r = 0; r < ranks->size; r++)
        run = headers[r].wish > run ? headers[r].wish : run;
    ranks->runs++;
    ranks->split_runs += run == ENG_WISH_STEP_SPLIT;
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
    if (engine->broken || ranks_idle(ranks))
        return false;
    ranks->wish =
        wish == ENG_WISH_STEP && rows >= engine->micro_batch_rows ? ENG_WISH_STEP_SPLIT : wish;
    ranks->joined = false;
    return ranks_post(engine, ranks->wish, rows);
}

/* A rank that wants a step takes part in a split one with its own rows. */
static bool is_wished(eng_wish wish, eng_wish run)
{
    return run == wish || (wish == ENG_WISH_STEP && run == ENG_WISH_STEP_SPLIT);
}

bool eng_ranks_join(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks || ranks->joined)
        return true;
    uint32_t layer = engine->step_layer;
    for (;;) {
        bool over;
        eng_wish run = ranks_agree(engine, &over), wish = ranks->wish;
        if (ranks->lost)
            return false;
        run_set(engine, run);
        if (is_wished(wish, run))
            break;
        if ((!over && !run_idle(engine)) || !ranks_post(engine, wish, 0))
            return false;
    }
    engine->step_layer = layer;
    ranks->joined = true;
    return true;
}

bool eng_ranks_moe(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_ranks *ranks = engine->ranks;
    if (!eng_ranks_join(engine))
        return false;
    sl_assert(layer == &engine->model->layers[ranks->at] && ranks->at < ranks->end);
    return eng_micro_moe(engine, ranks->at++, rows, ranks->batches) ||
           (ranks->lost && ranks_fail(engine));
}

bool eng_ranks_split(const eng_engine *engine)
{
    const eng_ranks *ranks = engine->ranks;
    return ranks && ranks->joined && ranks->batches > 1 && ranks->at < ranks->end;
}

bool eng_ranks_layers(eng_engine *engine, const eng_batch *batch, uint32_t first,
                      bool (*fn)(void *context, uint32_t index), void *context)
{
    eng_ranks *ranks = engine->ranks;
    sl_assert(eng_ranks_split(engine) && first == ranks->at);
    ranks->at = ranks->end;
    return eng_micro_layers(engine, batch, first, ranks->end, fn, context) ||
           (ranks->lost && ranks_fail(engine));
}

void eng_ranks_end(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    if (!ranks || ranks->wish == ENG_WISH_NONE || ranks->lost)
        return;
    const char *fault = engine->fault;
    uint32_t layer = engine->step_layer;
    if (eng_ranks_join(engine))
        (void)run_idle(engine); /* lost: ranks->lost says it */
    if (!ranks->lost)
        ranks_note(ranks);
    engine->fault = fault;
    engine->step_layer = layer;
    ranks->wish = ENG_WISH_NONE;
}

bool eng_ranks_round(eng_engine *engine, eng_wish *out_run)
{
    bool over;
    *out_run = ENG_WISH_NONE;
    if (!ranks_post(engine, ENG_WISH_NONE, 0))
        return false;
    eng_wish run = ranks_agree(engine, &over);
    if (run == ENG_WISH_NONE)
        return !engine->ranks->lost;
    run_set(engine, run);
    if (!run_idle(engine))
        return false;
    ranks_note(engine->ranks);
    *out_run = run;
    return true;
}

bool eng_engine_take_part(eng_engine *engine)
{
    eng_ranks *ranks = engine->ranks;
    eng_wish run;
    if (!ranks || engine->broken)
        return false;
    if (ranks_idle(ranks))
        return ranks_take_offer(engine);
    const eng_formation *next = ranks_offer(ranks);
    uint64_t word = __atomic_load_n(&ranks->reload, __ATOMIC_ACQUIRE);
    bool news = next && next->number != ranks->told; /* worth a header of its own */
    news |= word != ranks->reload_told;
    if (!news && !com_header_pending(ranks->group))
        return false;
    return eng_ranks_round(engine, &run) || ranks->lost;
}

uint64_t eng_engine_runs(const eng_engine *engine)
{
    return engine->ranks ? engine->ranks->runs : 0;
}

uint64_t eng_engine_split_runs(const eng_engine *engine)
{
    return engine->ranks ? engine->ranks->split_runs : 0;
}

int eng_engine_ranks_fd(const eng_engine *engine)
{
    const eng_ranks *ranks = engine->ranks;
    return ranks && !engine->broken && !ranks_idle(ranks) ? com_fd(ranks->group) : -1;
}

bool eng_engine_ranks_arm(eng_engine *engine)
{
    const eng_ranks *ranks = engine->ranks;
    return !ranks || ranks_idle(ranks) || com_arm(ranks->group);
}
