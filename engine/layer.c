/* The layer program: norm, attention through indexer and block table, norm, MLP or MoE (spec 3, 4).
 *
 * Projections run over all rows of the batch, whatever sequences they belong to; the rows' cache
 * entries are written before anything is scored. Thread: the engine thread. */
#include "engine/layer.h"

#include "base/assert.h"
#include "engine/ranks.h"

bool eng_batch_scored(const eng_engine *engine, const eng_batch *batch)
{
    uint32_t topk = (uint32_t)engine->model->shape.index_topk;
    for (uint32_t i = 0; i < batch->row_count; i++) {
        if (batch->rows[i].slot + 1 - batch->rows[i].first > topk)
            return true;
    }
    return false;
}

static bool attention_inputs(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                             const eng_batch *batch, bool scored)
{
    eng_scratch *s = &engine->s;
    uint32_t rows = batch->row_count;
    const eng_product from_hidden[] = {
        {.matrix = &layer->q_a, .output = s->q_a},
        {.matrix = &layer->kv_a, .output = s->kv},
        {.matrix = &layer->index_k, .output = s->ik},
    };
    if (!engine->ops->linear(engine, s->n, rows, from_hidden, 3))
        return false;
    if (!engine->ops->norm(engine, s->q_a, NULL, layer->q_norm, rows, layer->q_a.n, s->qr, NULL))
        return false;
    const eng_product from_latent[] = {
        {.matrix = &layer->q_b, .output = s->q},
        {.matrix = &layer->index_q, .output = s->iq},
    };
    if (!engine->ops->linear(engine, s->qr, rows, from_latent, scored ? 2 : 1))
        return false;
    if (scored)
        engine->ops->linear_f32(engine, &layer->index_weights, s->n, NULL, rows, s->wt);
    return engine->ops->put(engine, layer, cache, batch);
}

/* s.n -> s.x */
static bool attention(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                      const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    bool scored = eng_batch_scored(engine, batch);
    size_t heads = (size_t)engine->model->shape.head_count;
    if (!attention_inputs(engine, layer, cache, batch, scored))
        return false;
    if (!engine->ops->select(engine, cache, batch, scored))
        return false;
    engine->ops->rope_queries(engine, batch);
    for (uint32_t first = 0; first < batch->row_count; first += ENG_ATTEND_ROWS) {
        uint32_t rows = batch->row_count - first;
        rows = rows < ENG_ATTEND_ROWS ? rows : ENG_ATTEND_ROWS;
        engine->ops->heads(engine,
                           &(eng_heads_product){
                               .matrices = layer->w_uk,
                               .input = eng_row_at(engine, s->q, first, heads * KRN_HEAD_DIM),
                               .input_width = KRN_HEAD_DIM,
                               .output = s->q_latent,
                               .rows = rows,
                           });
        engine->ops->attend(engine, cache, batch, first, rows);
        engine->ops->heads(engine,
                           &(eng_heads_product){
                               .matrices = layer->w_uv,
                               .input = s->o,
                               .input_width = KRN_LATENT_DIM,
                               .output = eng_row_at(engine, s->v, first, heads * KRN_VALUE_DIM),
                               .rows = rows,
                           });
    }
    const eng_product out = {.matrix = &layer->o, .output = s->x};
    return engine->ops->linear(engine, s->v, batch->row_count, &out, 1);
}

/* s.n -> s.x */
static bool dense_mlp(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const eng_product inputs[] = {
        {.matrix = &layer->mlp.gate, .output = s->gate},
        {.matrix = &layer->mlp.up, .output = s->up},
    };
    if (!engine->ops->linear(engine, s->n, rows, inputs, 2))
        return false;
    engine->ops->silu_mul(engine, s->gate, s->up, rows, layer->mlp.gate.n);
    const eng_product out = {.matrix = &layer->mlp.down, .output = s->x};
    return engine->ops->linear(engine, s->gate, rows, &out, 1);
}

/* Of main layers: drafts are not what the model answers with. first: row of the step. */
static void keep_routing(eng_engine *engine, uint32_t first, uint32_t rows)
{
    const mdl_routing_layout *layout = &engine->routing;
    if (!engine->step_routing || engine->step_layer >= (uint32_t)engine->model->shape.layer_count)
        return;
    size_t count = (size_t)rows * layout->chosen;
    const uint32_t *experts =
        engine->ops->read(engine, engine->s.experts, count * sizeof(*experts));
    const float *weights =
        engine->ops->read(engine, engine->s.expert_weights, count * sizeof(*weights));
    for (uint32_t row = 0; row < rows; row++)
        mdl_routing_put(layout, engine->step_layer, experts + (size_t)row * layout->chosen,
                        weights + (size_t)row * layout->chosen,
                        engine->routing_rows + (size_t)(first + row) * layout->row_bytes);
}

bool eng_layer_route(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    engine->ops->linear_f32(engine, &layer->router, s->n, NULL, rows, s->router_logits);
    return engine->ops->route(engine, layer, rows);
}

void eng_layer_combine(eng_engine *engine, uint32_t first, uint32_t rows)
{
    engine->ops->combine(engine, rows, engine->s.x);
    keep_routing(engine, first, rows);
}

/* s.n -> s.x */
static bool moe(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    if (engine->ranks)
        return eng_ranks_moe(engine, layer, rows);
    if (!eng_layer_route(engine, layer, rows) || !engine->ops->experts(engine, layer, rows))
        return false;
    eng_layer_combine(engine, 0, rows);
    return true;
}

static void layer_show(eng_engine *engine, uint32_t index, const eng_batch *batch, bool dense)
{
    const eng_model *model = engine->model;
    eng_scratch *s = &engine->s;
    if (!engine->tap || !engine->tap->layer)
        return;
    size_t rows = batch->row_count, bytes = rows * eng_hidden_bytes(engine);
    size_t chosen = rows * (size_t)model->shape.experts_per_token;
    const eng_ops *ops = engine->ops;
    eng_tap_layer shown = {
        .layer = model->layer_first + index,
        .row_count = batch->row_count,
        .positions = batch->positions,
        .x = ops->read(engine, s->x, bytes),
        .res = ops->read(engine, s->res, bytes),
        .lists = ops->read(engine, s->lists, rows * engine->list_stride * sizeof(uint32_t)),
        .list_counts = ops->read(engine, s->list_counts, rows * sizeof(uint32_t)),
        .list_stride = engine->list_stride,
        .experts = dense ? NULL : ops->read(engine, s->experts, chosen * sizeof(uint32_t)),
    };
    engine->tap->layer(engine->tap->context, &shown);
}

bool eng_layer_attend(eng_engine *engine, uint32_t index, const eng_batch *batch, bool first)
{
    sl_assert(batch->row_count > 0 && batch->row_count <= engine->rows_max);
    eng_scratch *s = &engine->s;
    const eng_layer *layer = &engine->model->layers[index];
    const krn_cache cache = eng_engine_layer_cache(engine, index);
    uint32_t rows = batch->row_count, hidden = (uint32_t)engine->model->shape.hidden_size;
    engine->step_layer = engine->model->layer_first + index;
    return engine->ops->norm(engine, s->x, first ? NULL : s->res, layer->input_norm, rows, hidden,
                             s->n, s->res) &&
           attention(engine, layer, &cache, batch) &&
           engine->ops->norm(engine, s->x, s->res, layer->post_norm, rows, hidden, s->n, s->res);
}

bool eng_layer_run(eng_engine *engine, uint32_t index, const eng_batch *batch, bool first)
{
    const eng_layer *layer = &engine->model->layers[index];
    uint32_t rows = batch->row_count;
    if (!eng_layer_attend(engine, index, batch, first))
        return false;
    bool ok = layer->dense ? dense_mlp(engine, layer, rows) : moe(engine, layer, rows);
    if (ok)
        layer_show(engine, index, batch, layer->dense);
    return ok;
}

bool eng_layer_run_keys(eng_engine *engine, uint32_t index, const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    const eng_layer *layer = &engine->model->layers[index];
    const krn_cache cache = eng_engine_layer_cache(engine, index);
    uint32_t rows = batch->row_count;
    engine->step_layer = engine->model->layer_first + index;
    if (!engine->ops->norm(engine, s->x, NULL, layer->input_norm, rows,
                           (uint32_t)engine->model->shape.hidden_size, s->n, NULL))
        return false;
    const eng_product products[] = {
        {.matrix = &layer->kv_a, .output = s->kv},
        {.matrix = &layer->index_k, .output = s->ik},
    };
    return engine->ops->linear(engine, s->n, rows, products, 2) &&
           engine->ops->put(engine, layer, &cache, batch);
}
