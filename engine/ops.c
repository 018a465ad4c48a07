/* Operations of a layer, dispatched to the fp8 or the plain kernels.
 *
 * Owns nothing: works on the engine's scratch. Thread: the engine thread. Takes no decision about
 * what to compute. */
#include "engine/ops.h"

#include "base/assert.h"

static bool fault(eng_engine *engine, bool ok, const char *what)
{
    if (!ok)
        engine->fault = what;
    return ok;
}

static float epsilon(const eng_engine *engine)
{
    return (float)engine->model->shape.rms_eps;
}

#define INDEX_NORM_EPSILON 1e-6f /* spec 1: not in the config */

bool eng_op_norm(eng_engine *engine, const void *x, const void *res, const void *weight,
                 uint32_t rows, uint32_t n, void *out, void *out_res)
{
    bool ok = engine->plain ? krn_plain_rmsnorm_add(engine->pool, x, res, weight, epsilon(engine),
                                                    rows, n, out, out_res)
                            : krn_rmsnorm_add(engine->pool, x, res, weight, epsilon(engine), rows,
                                              n, out, out_res);
    return fault(engine, ok, "a norm's input");
}

bool eng_op_linear(eng_engine *engine, const void *input, uint32_t input_rows,
                   const eng_product *products, uint32_t count)
{
    sl_assert(count > 0 && count <= KRN_GEMMS_MAX);
    eng_scratch *s = &engine->s;
    const krn_matrix_kind kind = products[0].matrix->kind;
    const uint32_t k = products[0].matrix->k;
    if (kind == KRN_MATRIX_FP8 && !krn_q128(engine->pool, input, input_rows, k, engine->model->pow2,
                                            s->codes, s->code_scales))
        return fault(engine, false, "a linear layer's input");
    for (uint32_t i = 0; i < count; i++) {
        const eng_product *product = &products[i];
        sl_assert(product->matrix->kind == kind && product->matrix->k == k);
        size_t at = product->input_row;
        s->gemms[i] = (krn_gemm){
            .matrix = product->matrix,
            .row_index = product->row_index,
            .rows = product->rows,
            .output = product->output,
        };
        if (kind == KRN_MATRIX_FP8) {
            s->gemms[i].input = s->codes + at * k;
            s->gemms[i].input_scales = s->code_scales + at * (k / KRN_BLOCK);
        } else {
            s->gemms[i].input = (const uint8_t *)input + at * k * engine->element_bytes;
        }
    }
    if (kind == KRN_MATRIX_FP8)
        krn_linear_fp8(engine->pool, s->gemms, count);
    else if (kind == KRN_MATRIX_BF16)
        krn_linear_bf16(engine->pool, s->gemms, count);
    else
        krn_plain_linear(engine->pool, s->gemms, count);
    return true;
}

void eng_op_linear_f32(eng_engine *engine, const krn_matrix *matrix, const void *input,
                       const uint32_t *row_index, uint32_t rows, float *output)
{
    krn_gemm gemm = {
        .matrix = matrix,
        .input = input,
        .row_index = row_index,
        .rows = rows,
        .output = output,
    };
    if (engine->plain)
        krn_plain_linear(engine->pool, &gemm, 1);
    else
        krn_linear_f32(engine->pool, &gemm, 1);
}

void eng_op_heads(eng_engine *engine, const eng_heads_product *product)
{
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    sl_assert(heads <= KRN_GEMMS_MAX);
    for (uint32_t h = 0; h < heads; h++) {
        const krn_matrix *matrix = &product->matrices[h];
        engine->s.gemms[h] = (krn_gemm){
            .matrix = matrix,
            .input = (const uint8_t *)product->input +
                     (size_t)h * product->input_width * engine->element_bytes,
            .rows = product->rows,
            .input_stride = heads * product->input_width,
            .output_stride = heads * matrix->n,
            .output = (uint8_t *)product->output + (size_t)h * matrix->n * engine->element_bytes,
        };
    }
    if (engine->plain)
        krn_plain_linear(engine->pool, engine->s.gemms, heads);
    else
        krn_linear_bf16(engine->pool, engine->s.gemms, heads);
}

void eng_op_embed(eng_engine *engine, const uint32_t *ids, uint32_t rows, void *out_x)
{
    uint32_t hidden = (uint32_t)engine->model->shape.hidden_size;
    const uint16_t *table = engine->model->embed;
    if (!engine->plain) {
        krn_embed(table, ids, rows, hidden, out_x);
        return;
    }
    for (uint32_t i = 0; i < rows; i++)
        krn_bf16_to_f32_many(table + (size_t)ids[i] * hidden, hidden,
                             (float *)out_x + (size_t)i * hidden);
}

void eng_op_silu_mul(eng_engine *engine, void *gate, const void *up, size_t count)
{
    if (engine->plain)
        krn_plain_silu_mul(engine->pool, gate, up, count, gate);
    else
        krn_silu_mul(engine->pool, gate, up, count, gate);
}

bool eng_op_put(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    uint32_t count = batch->row_count;
    if (engine->plain) {
        krn_plain_latent_put(engine->pool, cache, batch->rows, count, s->kv, layer->kv_norm,
                             epsilon(engine), batch->table);
        krn_plain_index_put(engine->pool, cache, batch->rows, count, s->ik,
                            layer->index_norm_weight, layer->index_norm_bias, INDEX_NORM_EPSILON,
                            batch->table);
        return true;
    }
    bool pow2 = engine->model->pow2;
    if (!krn_latent_put(engine->pool, cache, batch->rows, count, s->kv, layer->kv_norm,
                        epsilon(engine), batch->table, pow2))
        return fault(engine, false, "the latent");
    return fault(engine,
                 krn_index_put(engine->pool, cache, batch->rows, count, s->ik,
                               layer->index_norm_weight, layer->index_norm_bias, INDEX_NORM_EPSILON,
                               batch->table, pow2),
                 "the index key");
}

bool eng_op_select(eng_engine *engine, const krn_cache *cache, const eng_batch *batch, bool scored)
{
    eng_scratch *s = &engine->s;
    uint32_t heads = (uint32_t)engine->model->shape.index_head_count;
    if (scored && engine->plain)
        krn_plain_index_query(engine->pool, s->iq, s->wt, batch->row_count, heads, batch->table,
                              s->factors);
    else if (scored && !krn_index_query(engine->pool, s->iq, s->wt, batch->row_count, heads,
                                        batch->table, engine->model->pow2, s->iq_codes, s->factors))
        return fault(engine, false, "the index query");
    krn_select_args args = {
        .cache = cache,
        .rows = batch->rows,
        .count = batch->row_count,
        .heads = heads,
        .queries = engine->plain ? s->iq : (const void *)s->iq_codes,
        .factors = s->factors,
        .topk = (uint32_t)engine->model->shape.index_topk,
        .list_stride = engine->list_stride,
        .scratch = s->select_scratch,
        .scratch_bytes = s->select_bytes,
        .lists = s->lists,
        .list_counts = s->list_counts,
    };
    bool ok = engine->plain ? krn_plain_index_select(engine->pool, &args)
                            : krn_index_select(engine->pool, &args);
    return fault(engine, ok, "an index score");
}

void eng_op_rope_queries(eng_engine *engine, const eng_batch *batch)
{
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    if (engine->plain)
        krn_plain_rope_queries(engine->pool, engine->s.q, batch->row_count, heads, batch->table);
    else
        krn_rope_queries(engine->pool, engine->s.q, batch->row_count, heads, batch->table);
}

void eng_op_attend(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                   uint32_t first, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    krn_attend_args args = {
        .cache = cache,
        .rows = batch->rows + first,
        .count = rows,
        .heads = heads,
        .q_latent = s->q_latent,
        .q = eng_row_at(engine, s->q, first, (size_t)heads * KRN_HEAD_DIM),
        .lists = s->lists + (size_t)first * engine->list_stride,
        .list_counts = s->list_counts + first,
        .list_stride = engine->list_stride,
        .scale = engine->model->attention_scale,
        .scratch = s->attend_scratch,
        .output = s->o,
    };
    if (engine->plain)
        krn_plain_attend(engine->pool, &args);
    else
        krn_attend(engine->pool, &args);
}

void eng_op_combine(eng_engine *engine, uint32_t rows, void *out_y)
{
    eng_scratch *s = &engine->s;
    uint32_t hidden = (uint32_t)engine->model->shape.hidden_size;
    uint32_t chosen = (uint32_t)engine->model->shape.experts_per_token;
    if (engine->plain)
        krn_plain_combine(engine->pool, s->down, s->expert_places, s->expert_weights, chosen,
                          s->shared_out, rows, hidden, out_y);
    else
        krn_combine(engine->pool, s->down, s->expert_places, s->expert_weights, chosen,
                    s->shared_out, rows, hidden, out_y);
}
