/* The layer program: norm, attention through indexer and block table, norm, MLP or MoE (spec 3, 4).
 *
 * Projections run over all rows of the batch, whatever sequences they belong to; the rows' cache
 * entries are written before anything is scored. Thread: the engine thread. */
#include "engine/layer.h"

#include "base/assert.h"

/* Does any row see more slots than are selected? Else scores would change nothing. */
static bool batch_scored(const eng_engine *engine, const eng_batch *batch)
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
        {.matrix = &layer->q_a, .rows = rows, .output = s->q_a},
        {.matrix = &layer->kv_a, .rows = rows, .output = s->kv},
        {.matrix = &layer->index_k, .rows = rows, .output = s->ik},
    };
    if (!eng_op_linear(engine, s->n, rows, from_hidden, 3))
        return false;
    if (!eng_op_norm(engine, s->q_a, NULL, layer->q_norm, rows, layer->q_a.n, s->qr, NULL))
        return false;
    const eng_product from_latent[] = {
        {.matrix = &layer->q_b, .rows = rows, .output = s->q},
        {.matrix = &layer->index_q, .rows = rows, .output = s->iq},
    };
    if (!eng_op_linear(engine, s->qr, rows, from_latent, scored ? 2 : 1))
        return false;
    if (scored)
        eng_op_linear_f32(engine, &layer->index_weights, s->n, NULL, rows, s->wt);
    return eng_op_put(engine, layer, cache, batch);
}

/* s.n -> s.x */
static bool attention(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                      const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    bool scored = batch_scored(engine, batch);
    size_t heads = (size_t)engine->model->shape.head_count;
    if (!attention_inputs(engine, layer, cache, batch, scored))
        return false;
    if (!eng_op_select(engine, cache, batch, scored))
        return false;
    eng_op_rope_queries(engine, batch);
    for (uint32_t first = 0; first < batch->row_count; first += ENG_ATTEND_ROWS) {
        uint32_t rows = batch->row_count - first;
        rows = rows < ENG_ATTEND_ROWS ? rows : ENG_ATTEND_ROWS;
        eng_op_heads(engine, &(eng_heads_product){
                                 .matrices = layer->w_uk,
                                 .input = eng_row_at(engine, s->q, first, heads * KRN_HEAD_DIM),
                                 .input_width = KRN_HEAD_DIM,
                                 .output = s->q_latent,
                                 .rows = rows,
                             });
        eng_op_attend(engine, cache, batch, first, rows);
        eng_op_heads(engine, &(eng_heads_product){
                                 .matrices = layer->w_uv,
                                 .input = s->o,
                                 .input_width = KRN_LATENT_DIM,
                                 .output = eng_row_at(engine, s->v, first, heads * KRN_VALUE_DIM),
                                 .rows = rows,
                             });
    }
    const eng_product out = {.matrix = &layer->o, .rows = batch->row_count, .output = s->x};
    return eng_op_linear(engine, s->v, batch->row_count, &out, 1);
}

/* s.n -> s.x */
static bool dense_mlp(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const eng_product inputs[] = {
        {.matrix = &layer->mlp.gate, .rows = rows, .output = s->gate},
        {.matrix = &layer->mlp.up, .rows = rows, .output = s->up},
    };
    if (!eng_op_linear(engine, s->n, rows, inputs, 2))
        return false;
    eng_op_silu_mul(engine, s->gate, s->up, (size_t)rows * layer->mlp.gate.n);
    const eng_product out = {.matrix = &layer->mlp.down, .rows = rows, .output = s->x};
    return eng_op_linear(engine, s->gate, rows, &out, 1);
}

static bool moe_route(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    const krn_route_args args = {
        .experts = (uint32_t)shape->expert_count,
        .groups = (uint32_t)shape->group_count,
        .groups_kept = (uint32_t)shape->topk_group_count,
        .chosen = (uint32_t)shape->experts_per_token,
        .scaling = (float)shape->routed_scaling_factor,
        .normalise = true,
    };
    eng_op_linear_f32(engine, &layer->router, s->n, NULL, rows, s->router_logits);
    if (!krn_route(engine->pool, &args, s->router_logits, layer->router_bias, rows, s->experts,
                   s->expert_weights)) {
        engine->fault = "a router score";
        return false;
    }
    krn_route_group(s->experts, rows, args.chosen, args.experts, s->expert_offsets, s->expert_rows,
                    s->expert_places);
    return true;
}

/* Outputs of the experts' down projections into s.down (stacked by expert) and s.shared_out. */
static bool moe_down(eng_engine *engine, const eng_layer *layer, uint32_t rows, uint32_t stacked)
{
    eng_scratch *s = &engine->s;
    eng_product products[KRN_EXPERTS_MAX + 1];
    uint32_t experts = (uint32_t)engine->model->shape.expert_count, count = 0;
    size_t hidden = (size_t)engine->model->shape.hidden_size;
    uint32_t width = layer->experts[0].gate.n, shared_width = layer->mlp.gate.n;
    void *shared_in = eng_row_at(engine, s->gate, stacked, width);
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t at = s->expert_offsets[e];
        if (s->expert_offsets[e + 1] == at)
            continue;
        products[count++] = (eng_product){
            .matrix = &layer->experts[e].down,
            .input_row = at,
            .rows = s->expert_offsets[e + 1] - at,
            .output = eng_row_at(engine, s->down, at, hidden),
        };
    }
    eng_product shared = {.matrix = &layer->mlp.down, .rows = rows, .output = s->shared_out};
    if (shared_width == width) { /* same length of rows: one call for all */
        shared.input_row = stacked;
        products[count++] = shared;
        return eng_op_linear(engine, s->gate, stacked + rows, products, count);
    }
    return eng_op_linear(engine, s->gate, stacked, products, count) &&
           eng_op_linear(engine, shared_in, rows, &shared, 1);
}

/* s.n -> s.x: each expert works on the rows that chose it, stacked by expert. */
static bool moe(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    if (!moe_route(engine, layer, rows))
        return false;
    eng_product products[2 * KRN_EXPERTS_MAX + 2];
    uint32_t experts = (uint32_t)engine->model->shape.expert_count, count = 0;
    uint32_t stacked = rows * (uint32_t)engine->model->shape.experts_per_token;
    uint32_t width = layer->experts[0].gate.n, shared_width = layer->mlp.gate.n;
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t at = s->expert_offsets[e];
        if (s->expert_offsets[e + 1] == at)
            continue;
        eng_product product = {
            .matrix = &layer->experts[e].gate,
            .row_index = s->expert_rows + at,
            .rows = s->expert_offsets[e + 1] - at,
            .output = eng_row_at(engine, s->gate, at, width),
        };
        products[count++] = product;
        product.matrix = &layer->experts[e].up;
        product.output = eng_row_at(engine, s->up, at, width);
        products[count++] = product;
    }
    eng_product shared = {
        .matrix = &layer->mlp.gate,
        .rows = rows,
        .output = eng_row_at(engine, s->gate, stacked, width),
    };
    products[count++] = shared;
    shared.matrix = &layer->mlp.up;
    shared.output = eng_row_at(engine, s->up, stacked, width);
    products[count++] = shared;
    if (!eng_op_linear(engine, s->n, rows, products, count))
        return false;
    eng_op_silu_mul(engine, s->gate, s->up, (size_t)stacked * width + (size_t)rows * shared_width);
    if (!moe_down(engine, layer, rows, stacked))
        return false;
    eng_op_combine(engine, rows, s->x);
    return true;
}

static void layer_show(eng_engine *engine, uint32_t index, const eng_batch *batch, bool dense)
{
    const eng_model *model = engine->model;
    eng_scratch *s = &engine->s;
    if (!engine->tap || !engine->tap->layer)
        return;
    eng_tap_layer shown = {
        .layer = model->layer_first + index,
        .row_count = batch->row_count,
        .positions = batch->positions,
        .x = s->x,
        .res = s->res,
        .lists = s->lists,
        .list_counts = s->list_counts,
        .list_stride = engine->list_stride,
        .experts = dense ? NULL : s->experts,
    };
    engine->tap->layer(engine->tap->context, &shown);
}

bool eng_layer_run(eng_engine *engine, uint32_t index, const eng_batch *batch, bool first)
{
    sl_assert(batch->row_count > 0 && batch->row_count <= engine->rows_max);
    eng_scratch *s = &engine->s;
    const eng_layer *layer = &engine->model->layers[index];
    const krn_cache cache = eng_engine_layer_cache(engine, index);
    uint32_t rows = batch->row_count, hidden = (uint32_t)engine->model->shape.hidden_size;
    engine->step_layer = engine->model->layer_first + index;
    if (!eng_op_norm(engine, s->x, first ? NULL : s->res, layer->input_norm, rows, hidden, s->n,
                     s->res))
        return false;
    if (!attention(engine, layer, &cache, batch))
        return false;
    if (!eng_op_norm(engine, s->x, s->res, layer->post_norm, rows, hidden, s->n, s->res))
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
    if (!eng_op_norm(engine, s->x, NULL, layer->input_norm, rows,
                     (uint32_t)engine->model->shape.hidden_size, s->n, NULL))
        return false;
    const eng_product products[] = {
        {.matrix = &layer->kv_a, .rows = rows, .output = s->kv},
        {.matrix = &layer->index_k, .rows = rows, .output = s->ik},
    };
    return eng_op_linear(engine, s->n, rows, products, 2) &&
           eng_op_put(engine, layer, &cache, batch);
}
