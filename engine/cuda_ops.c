/* The operations of the layer program on the device: each fills a params struct and launches.
 *
 * Norms and SwiGLU write the Q128 of their rows beside them, so that the linear layer that follows
 * does not look at the rows again (cuda->quantised says whose codes s.codes holds). Thread: the
 * engine thread. Waits for nothing. */
#include "engine/cuda.h"

#include "base/assert.h"

#define INDEX_NORM_EPSILON 1e-6f /* spec 1: not in the config */

/* Calls api->what(&params, stream) unless the device is broken. */
#define RUN(engine, what, params)                                           \
    do {                                                                    \
        eng_cuda *cuda_ = eng_cuda_of(engine);                              \
        if (eng_cuda_launches(cuda_))                                       \
            eng_cuda_check(cuda_, cuda_->api->what(params, cuda_->stream)); \
    } while (0)

static float epsilon(const eng_engine *engine)
{
    return (float)engine->model->shape.rms_eps;
}

static uint32_t tiled(uint32_t rows)
{
    return (rows + 7) / 8 * 8;
}

static krn_cuda_cache cache_of(const eng_engine *engine, const krn_cache *cache)
{
    return (krn_cuda_cache){
        .base = cache->base,
        .page_bytes = cache->page_bytes,
        .blocks = eng_cuda_of(engine)->blocks,
        .block_stride = engine->blocks_max,
    };
}

void eng_cuda_embed(eng_engine *engine, const eng_batch *batch, void *out_x)
{
    const krn_cuda_gather_params params = {
        .table = engine->model->embed,
        .index = eng_cuda_of(engine)->tokens,
        .out = out_x,
        .rows = batch->row_count,
        .bytes = (uint32_t)eng_hidden_bytes(engine),
    };
    RUN(engine, gather, &params);
}

bool eng_cuda_norm(eng_engine *engine, const void *x, const void *res, const void *weight,
                   uint32_t rows, uint32_t n, void *out, void *out_res)
{
    const krn_cuda_norm_params params = {
        .x = x,
        .res = res,
        .weight = weight,
        .out = out,
        .out_res = out_res,
        .out_codes = engine->s.codes,
        .out_scales = engine->s.code_scales,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_NORM),
        .rows = rows,
        .n = n,
        .x_stride = n,
        .rows_tiled = tiled(rows),
        .epsilon = epsilon(engine),
        .pow2 = engine->model->pow2,
    };
    RUN(engine, norm, &params);
    eng_cuda_of(engine)->quantised = out;
    return true;
}

/* ---- linear layers ---- */

/* s.codes = Q128 of input, unless they are already. */
static void quantise(eng_engine *engine, const void *input, uint32_t rows, uint32_t k)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (cuda->quantised == input)
        return;
    const krn_cuda_quant_params params = {
        .x = input,
        .out_codes = engine->s.codes,
        .out_scales = engine->s.code_scales,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_LINEAR),
        .rows = rows,
        .n = k,
        .stride = k,
        .rows_tiled = tiled(rows),
        .pow2 = engine->model->pow2,
    };
    RUN(engine, quant, &params);
    cuda->quantised = input;
}

/* The products share an order as if their matrices were one. */
static uint32_t stack_n(const eng_product *products, uint32_t count)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++)
        n += products[i].matrix->n;
    return n;
}

static void linear_bf16(eng_engine *engine, const krn_matrix *matrix, const void *input,
                        const uint32_t *row_index, uint32_t rows, bool out_f32, void *output)
{
    const krn_cuda_linear_bf16_params params = {
        .x = input,
        .row_index = row_index,
        .weights = matrix->panels,
        .out = output,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_F32),
        .rows = rows,
        .groups = 1,
        .n = matrix->n,
        .k = matrix->k,
        .x_stride = matrix->k,
        .out_stride = matrix->n,
        .out_f32 = out_f32,
        .segments = eng_cuda_of(engine)->api->segments_bf16(matrix->n, matrix->k),
    };
    RUN(engine, linear_bf16, &params);
}

bool eng_cuda_linear(eng_engine *engine, const void *input, uint32_t rows,
                     const eng_product *products, uint32_t count)
{
    const uint32_t k = products[0].matrix->k;
    bool fp8 = products[0].matrix->kind == KRN_MATRIX_FP8;
    if (fp8)
        quantise(engine, input, rows, k);
    for (uint32_t i = 0; i < count; i++) {
        const krn_matrix *matrix = products[i].matrix;
        if (!fp8) {
            linear_bf16(engine, matrix, input, NULL, rows, false, products[i].output);
            continue;
        }
        const krn_cuda_linear_params params = {
            .codes = engine->s.codes,
            .scales = engine->s.code_scales,
            .weights = matrix->panels,
            .out = products[i].output,
            .rows = rows,
            .groups = 1,
            .n = matrix->n,
            .k = k,
            .rows_tiled = tiled(rows),
            .out_stride = matrix->n,
            .segments = eng_cuda_of(engine)->api->segments(stack_n(products, count), k),
        };
        RUN(engine, linear_fp8, &params);
    }
    return true;
}

void eng_cuda_linear_f32(eng_engine *engine, const krn_matrix *matrix, const void *input,
                         const uint32_t *row_index, uint32_t rows, float *output)
{
    const uint32_t *index = NULL;
    if (row_index)
        index = eng_cuda_stage(engine, row_index, rows * sizeof(uint32_t));
    linear_bf16(engine, matrix, input, index, rows, true, output);
}

/* Matrices of one kind lie at equal distances. */
static uint64_t distance(const krn_matrix *first, const krn_matrix *second)
{
    return (uint64_t)((const uint8_t *)second->panels - (const uint8_t *)first->panels);
}

void eng_cuda_heads(eng_engine *engine, const eng_heads_product *product)
{
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    const krn_matrix *first = &product->matrices[0];
    const krn_cuda_linear_bf16_params params = {
        .x = product->input,
        .weights = first->panels,
        .out = product->output,
        .weights_bytes = heads > 1 ? distance(first, &product->matrices[1]) : 0,
        .rows = product->rows,
        .groups = heads,
        .n = first->n,
        .k = first->k,
        .x_stride = heads * product->input_width,
        .x_group = product->input_width,
        .out_stride = heads * first->n,
        .out_group = first->n,
        .segments = 1,
    };
    RUN(engine, linear_bf16, &params);
}

/* row_index: rows that are left out; s.codes are the product's. */
static void silu(eng_engine *engine, void *gate, const void *up, const uint32_t *row_index,
                 uint32_t rows, uint32_t n)
{
    const krn_cuda_silu_params params = {
        .g = gate,
        .u = up,
        .row_index = row_index,
        .out = gate,
        .out_codes = engine->s.codes,
        .out_scales = engine->s.code_scales,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_SILU),
        .rows = rows,
        .n = n,
        .stride = n,
        .rows_tiled = tiled(rows),
        .pow2 = engine->model->pow2,
    };
    RUN(engine, silu, &params);
    eng_cuda_of(engine)->quantised = gate;
}

void eng_cuda_silu_mul(eng_engine *engine, void *gate, const void *up, uint32_t rows, uint32_t n)
{
    silu(engine, gate, up, NULL, rows, n);
}

/* ---- attention ---- */

bool eng_cuda_put(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                  const eng_batch *batch)
{
    const eng_scratch *s = &engine->s;
    const krn_cuda_latent_params latent = {
        .cache = cache_of(engine, cache),
        .rows_at = eng_cuda_of(engine)->rows,
        .kv = s->kv,
        .weight = layer->kv_norm,
        .table = batch->table,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_LATENT),
        .rows = batch->row_count,
        .stride = KRN_LATENT_DIM + KRN_ROPE_DIM,
        .epsilon = epsilon(engine),
        .pow2 = engine->model->pow2,
    };
    const krn_cuda_index_put_params key = {
        .cache = latent.cache,
        .rows_at = latent.rows_at,
        .z = s->ik,
        .weight = layer->index_norm_weight,
        .bias = layer->index_norm_bias,
        .table = batch->table,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_KEY),
        .rows = batch->row_count,
        .stride = KRN_INDEX_DIM,
        .epsilon = INDEX_NORM_EPSILON,
        .pow2 = engine->model->pow2,
    };
    RUN(engine, latent_put, &latent);
    RUN(engine, index_put, &key);
    return true;
}

static void index_query(eng_engine *engine, const eng_batch *batch, uint32_t heads)
{
    const eng_scratch *s = &engine->s;
    const krn_cuda_index_query_params params = {
        .q = s->iq,
        .wt = s->wt,
        .table = batch->table,
        .out_codes = s->iq_codes,
        .out_factors = s->factors,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_QUERY),
        .rows = batch->row_count,
        .heads = heads,
        .pow2 = engine->model->pow2,
    };
    RUN(engine, index_query, &params);
}

/* As eng_run_shape.slots: the launches depend on that alone. */
static uint32_t slots_bound(const eng_cuda *cuda, const eng_batch *batch)
{
    uint32_t bound = ENG_PAGE_TOKENS;
    for (uint32_t i = 0; i < batch->row_count; i++)
        while (bound <= batch->rows[i].slot)
            bound *= 2;
    return bound < cuda->score_stride ? bound : cuda->score_stride;
}

/* Rows [first, first + rows) of the batch. */
static void select_rows(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                        uint32_t first, uint32_t rows, bool scored)
{
    const eng_scratch *s = &engine->s;
    const eng_cuda *cuda = eng_cuda_of(engine);
    uint32_t heads = (uint32_t)engine->model->shape.index_head_count;
    const krn_cuda_scores_params scores = {
        .cache = cache_of(engine, cache),
        .rows_at = cuda->rows + first,
        .queries = s->iq_codes + (size_t)first * heads * KRN_INDEX_DIM,
        .factors = s->factors + (size_t)first * heads,
        .scores = cuda->scores,
        .rows = rows,
        .next_n = 1,
        .heads = heads,
        .slots_max = slots_bound(cuda, batch),
        .stride = cuda->score_stride,
    };
    if (scored)
        RUN(engine, scores, &scores);
    const krn_cuda_topk_params topk = {
        .scores = cuda->scores,
        .rows_at = scores.rows_at,
        .lists = s->lists + (size_t)first * engine->list_stride,
        .list_counts = s->list_counts + first,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_SCORE),
        .rows = rows,
        .stride = cuda->score_stride,
        .topk = (uint32_t)engine->model->shape.index_topk,
        .list_stride = engine->list_stride,
    };
    RUN(engine, topk, &topk);
}

bool eng_cuda_select(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                     bool scored)
{
    uint32_t at_once = eng_cuda_of(engine)->score_rows;
    if (scored)
        index_query(engine, batch, (uint32_t)engine->model->shape.index_head_count);
    for (uint32_t first = 0; first < batch->row_count; first += at_once) {
        uint32_t rows = batch->row_count - first;
        select_rows(engine, cache, batch, first, rows < at_once ? rows : at_once, scored);
    }
    return true;
}

void eng_cuda_rope_queries(eng_engine *engine, const eng_batch *batch)
{
    const krn_cuda_rope_params params = {
        .q = engine->s.q,
        .table = batch->table,
        .rows = batch->row_count,
        .heads = (uint32_t)engine->model->shape.head_count,
    };
    RUN(engine, rope_queries, &params);
}

void eng_cuda_attend(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                     uint32_t first, uint32_t rows)
{
    (void)batch;
    const eng_scratch *s = &engine->s;
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    const krn_cuda_attend_params params = {
        .cache = cache_of(engine, cache),
        .rows_at = eng_cuda_of(engine)->rows + first,
        .q_latent = s->q_latent,
        .q = eng_row_at(engine, s->q, first, (size_t)heads * KRN_HEAD_DIM),
        .lists = s->lists + (size_t)first * engine->list_stride,
        .list_counts = s->list_counts + first,
        .out = s->o,
        .workspace = eng_cuda_of(engine)->attend_workspace,
        .rows = rows,
        .heads = heads,
        .list_stride = engine->list_stride,
        .scale = engine->model->attention_scale,
    };
    RUN(engine, attend, &params);
}

/* ---- experts ---- */

bool eng_cuda_route(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    const eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    const krn_cuda_route_params route = {
        .logits = s->router_logits,
        .bias = layer->router_bias,
        .out_experts = s->experts,
        .out_weights = s->expert_weights,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_ROUTER),
        .rows = rows,
        .experts = (uint32_t)shape->expert_count,
        .groups = (uint32_t)shape->group_count,
        .groups_kept = (uint32_t)shape->topk_group_count,
        .chosen = (uint32_t)shape->experts_per_token,
        .scaling = (float)shape->routed_scaling_factor,
        .normalise = 1,
    };
    const krn_cuda_group_params group = {
        .experts_chosen = s->experts,
        .out_offsets = s->expert_offsets,
        .out_rows = s->expert_rows,
        .out_places = s->expert_places,
        .out_counts = eng_cuda_of(engine)->expert_counts,
        .rows = rows,
        .chosen = route.chosen,
        .experts = route.experts,
        .align = engine->ops->expert_align,
    };
    RUN(engine, route, &route);
    RUN(engine, route_group, &group);
    return true;
}

/* One matrix of every expert over its own rows of s.codes. */
static void grouped(eng_engine *engine, const krn_matrix *first, const krn_matrix *second,
                    uint32_t stacked_n, uint32_t rows, uint32_t places, void *output)
{
    const eng_cuda *cuda = eng_cuda_of(engine);
    const krn_cuda_linear_params params = {
        .codes = engine->s.codes,
        .scales = engine->s.code_scales,
        .weights = first->panels,
        .out = output,
        .offsets = engine->s.expert_offsets,
        .counts = cuda->expert_counts,
        .weights_bytes = distance(first, second),
        .rows = rows,
        .groups = (uint32_t)engine->model->shape.expert_count,
        .n = first->n,
        .k = first->k,
        .rows_tiled = places,
        .out_stride = first->n,
        .segments = cuda->api->segments(stacked_n, first->k),
    };
    RUN(engine, linear_fp8, &params);
}

static bool shared_expert(eng_engine *engine, const eng_layer *layer, uint32_t rows, void *gate,
                          void *up)
{
    const eng_product inputs[] = {
        {.matrix = &layer->mlp.gate, .output = gate},
        {.matrix = &layer->mlp.up, .output = up},
    };
    const eng_product out = {.matrix = &layer->mlp.down, .output = engine->s.shared_out};
    if (!eng_cuda_linear(engine, engine->s.n, rows, inputs, 2))
        return false;
    silu(engine, gate, up, NULL, rows, layer->mlp.gate.n);
    return eng_cuda_linear(engine, gate, rows, &out, 1);
}

bool eng_cuda_experts(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    const eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    const eng_mlp *expert = layer->experts;
    uint32_t hidden = expert->gate.k, width = expert->gate.n, align = engine->ops->expert_align;
    uint32_t places =
        rows * (uint32_t)shape->experts_per_token + (uint32_t)shape->expert_count * (align - 1);
    places = (places + align - 1) / align * align;
    if (!shared_expert(engine, layer, rows, eng_row_at(engine, s->gate, places, width),
                       eng_row_at(engine, s->up, places, width)))
        return false;
    const krn_cuda_quant_params quant = {
        .x = s->n,
        .row_index = s->expert_rows,
        .out_codes = s->codes,
        .out_scales = s->code_scales,
        .fault = eng_cuda_fault_at(engine, ENG_CUDA_FAULT_LINEAR),
        .rows = places,
        .n = hidden,
        .stride = hidden,
        .rows_tiled = places,
        .pow2 = engine->model->pow2,
    };
    RUN(engine, quant, &quant);
    grouped(engine, &expert[0].gate, &expert[1].gate, 2 * width, rows, places, s->gate);
    grouped(engine, &expert[0].up, &expert[1].up, 2 * width, rows, places, s->up);
    silu(engine, s->gate, s->up, s->expert_rows, places, width);
    grouped(engine, &expert[0].down, &expert[1].down, hidden, rows, places, s->down);
    eng_cuda_of(engine)->quantised = NULL;
    return true;
}

void eng_cuda_combine(eng_engine *engine, uint32_t rows, void *out_y)
{
    const eng_scratch *s = &engine->s;
    const krn_cuda_combine_params params = {
        .outputs = s->down,
        .places = s->expert_places,
        .weights = s->expert_weights,
        .shared = s->shared_out,
        .out = out_y,
        .rows = rows,
        .chosen = (uint32_t)engine->model->shape.experts_per_token,
        .hidden = (uint32_t)engine->model->shape.hidden_size,
    };
    RUN(engine, combine, &params);
}

void eng_cuda_logits_out(eng_engine *engine, uint32_t rows)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    size_t row = (size_t)engine->model->shape.vocab_size * sizeof(float);
    if (eng_cuda_launches(cuda))
        eng_cuda_check(
            cuda, cuda->api->copy(engine->host_logits, engine->s.logits, rows * row, cuda->stream));
}

void eng_cuda_arg_max(eng_engine *engine, uint32_t rows, uint32_t *out_ids)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    const krn_cuda_arg_max_params params = {
        .logits = engine->s.logits,
        .out_ids = cuda->ids,
        .rows = rows,
        .n = (uint32_t)engine->model->shape.vocab_size,
    };
    RUN(engine, arg_max, &params);
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->copy(cuda->host_ids, cuda->ids, rows * sizeof(uint32_t),
                                             cuda->stream));
    cuda->ids_out = out_ids;
    cuda->id_count = rows;
}
