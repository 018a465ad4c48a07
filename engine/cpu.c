/* The CPU backend: operations dispatched to the fp8 or the plain kernels, host memory.
 *
 * Owns nothing: works on the engine's scratch, done when it returns. Thread: the engine thread.
 * Takes no decision about what to compute. */
#include "engine/cpu.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/sum.h"

static bool fault(eng_engine *engine, bool ok, const char *what)
{
    if (!ok)
        engine->fault = what;
    return ok;
}

/* ---- weights ---- */

static sl_status cpu_model_open(eng_model *model, const char *object, sl_err *err)
{
    (void)model, (void)object;
    return krn_cpu_ready(err); /* a wrong SLUICE_CPU is said here */
}

static size_t cpu_matrix_bytes(const eng_model *model, krn_matrix_kind kind, uint32_t n, uint32_t k)
{
    (void)model;
    return krn_matrix_bytes(kind, n, k);
}

static void cpu_pack_fp8(const eng_model *model, const uint8_t *codes, const float *scales,
                         uint32_t n, uint32_t k, void *memory, krn_matrix *out_matrix)
{
    (void)model;
    krn_matrix_pack_fp8(codes, scales, n, k, memory, out_matrix);
}

static void cpu_pack_bf16(const eng_model *model, const uint16_t *weights, size_t n_stride,
                          size_t k_stride, uint32_t n, uint32_t k, void *memory,
                          krn_matrix *out_matrix)
{
    (void)model;
    krn_matrix_pack_bf16(weights, n_stride, k_stride, n, k, memory, out_matrix);
}

/* ---- memory ---- */

static sl_status cpu_create(eng_engine *engine, sl_err *err)
{
    (void)engine, (void)err;
    return sl_ok();
}

static void cpu_destroy(eng_engine *engine)
{
    (void)engine;
}

static void cpu_reloaded(eng_engine *engine)
{
    (void)engine;
}

static sl_status cpu_memory_create(const eng_model *model, eng_memory kind, size_t bytes,
                                   void **out_memory, sl_err *err)
{
    (void)model, (void)kind;
    return sl_alloc_pages(bytes, out_memory, err);
}

static void cpu_memory_destroy(const eng_model *model, eng_memory kind, void *memory, size_t bytes)
{
    (void)model, (void)kind;
    sl_free_pages(memory, bytes);
}

static void cpu_clear(eng_engine *engine, const eng_pieces *pieces)
{
    (void)engine;
    for (uint32_t i = 0; i < pieces->count; i++)
        memset((uint8_t *)pieces->to + i * pieces->to_stride, 0, pieces->bytes);
}

static void cpu_copy(eng_engine *engine, const eng_pieces *pieces)
{
    (void)engine;
    for (uint32_t i = 0; i < pieces->count; i++)
        memcpy((uint8_t *)pieces->to + i * pieces->to_stride,
               (const uint8_t *)pieces->from + i * pieces->from_stride, pieces->bytes);
}

static void cpu_move(eng_engine *engine, uint32_t count, size_t bytes, bool unless_fault)
{
    (void)unless_fault; /* it would not come here */
    for (uint32_t i = 0; i < count; i++)
        memcpy(engine->s.moves[i].to, engine->s.moves[i].from, bytes);
}

static void cpu_write(eng_engine *engine, void *to, const void *host, size_t bytes)
{
    (void)engine;
    memcpy(to, host, bytes);
}

static void cpu_fetch(eng_engine *engine, void *host, const void *at, size_t bytes)
{
    (void)engine;
    memcpy(host, at, bytes);
}

static void *cpu_read(eng_engine *engine, void *at, size_t bytes)
{
    (void)engine, (void)bytes;
    return at;
}

static void cpu_bind(eng_engine *engine, const eng_sequence *sequence)
{
    (void)engine, (void)sequence;
}

static void cpu_pieces_out(eng_engine *engine, const eng_outgoing *pieces, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        memcpy(pieces[i].to, pieces[i].from, pieces[i].bytes);
        *pieces[i].out_sum =
            sl_sum64(engine->sum_key, pieces[i].tweak, pieces[i].to, pieces[i].bytes);
    }
}

static bool cpu_out_busy(const eng_engine *engine)
{
    (void)engine;
    return false;
}

static bool cpu_out_wait(eng_engine *engine)
{
    (void)engine;
    return true;
}

static void cpu_page_in(eng_engine *engine, void *page, const void *host)
{
    memcpy(page, host, (size_t)engine->layout.page_bytes);
}

static uint64_t cpu_page_mark(eng_engine *engine)
{
    (void)engine;
    return 0;
}

static bool cpu_page_done(eng_engine *engine, uint64_t mark, bool wait)
{
    (void)engine, (void)mark, (void)wait;
    return true;
}

static void cpu_start(eng_engine *engine, const eng_run_shape *shape)
{
    (void)engine, (void)shape;
}

static void cpu_begin(eng_engine *engine, const eng_batch *batch)
{
    krn_rope_table(engine->pool, &engine->model->rope, batch->positions, batch->row_count,
                   batch->table);
}

static bool cpu_finish(eng_engine *engine)
{
    (void)engine;
    return true;
}

/* ---- operations ---- */

static float epsilon(const eng_engine *engine)
{
    return (float)engine->model->shape.rms_eps;
}

#define INDEX_NORM_EPSILON 1e-6f /* spec 1: not in the config */

static bool cpu_norm(eng_engine *engine, const void *x, const void *res, const void *weight,
                     uint32_t rows, uint32_t n, void *out, void *out_res)
{
    bool ok = engine->plain ? krn_plain_rmsnorm_add(engine->pool, x, res, weight, epsilon(engine),
                                                    rows, n, out, out_res)
                            : krn_rmsnorm_add(engine->pool, x, res, weight, epsilon(engine), rows,
                                              n, out, out_res);
    return fault(engine, ok, "a norm's input");
}

void eng_cpu_products(eng_engine *engine, const void *input, const float *scales,
                      const eng_cpu_product *products, uint32_t count)
{
    sl_assert(count > 0 && count <= KRN_GEMMS_MAX);
    eng_scratch *s = &engine->s;
    const krn_matrix_kind kind = products[0].matrix->kind;
    const uint32_t k = products[0].matrix->k;
    const size_t element = kind == KRN_MATRIX_FP8 ? 1 : engine->element_bytes;
    for (uint32_t i = 0; i < count; i++) {
        const eng_cpu_product *product = &products[i];
        sl_assert(product->matrix->kind == kind && product->matrix->k == k);
        size_t at = product->input_row;
        s->gemms[i] = (krn_gemm){
            .matrix = product->matrix,
            .row_index = product->row_index,
            .rows = product->rows,
            .input = (const uint8_t *)input + at * k * element,
            .output = product->output,
        };
        if (kind == KRN_MATRIX_FP8)
            s->gemms[i].input_scales = scales + at * (k / KRN_BLOCK);
    }
    if (kind == KRN_MATRIX_FP8)
        krn_linear_fp8(engine->pool, s->gemms, count);
    else if (kind == KRN_MATRIX_BF16)
        krn_linear_bf16(engine->pool, s->gemms, count);
    else
        krn_plain_linear(engine->pool, s->gemms, count);
}

bool eng_cpu_linear(eng_engine *engine, const void *input, uint32_t input_rows,
                    const eng_cpu_product *products, uint32_t count)
{
    eng_scratch *s = &engine->s;
    if (products[0].matrix->kind != KRN_MATRIX_FP8) {
        eng_cpu_products(engine, input, NULL, products, count);
        return true;
    }
    if (!krn_q128(engine->pool, input, input_rows, products[0].matrix->k, engine->model->pow2,
                  s->codes, s->code_scales))
        return fault(engine, false, "a linear layer's input");
    eng_cpu_products(engine, s->codes, s->code_scales, products, count);
    return true;
}

static bool cpu_linear(eng_engine *engine, const void *input, uint32_t rows,
                       const eng_product *products, uint32_t count)
{
    eng_cpu_product list[ENG_PRODUCTS_MAX];
    sl_assert(count <= ENG_PRODUCTS_MAX);
    for (uint32_t i = 0; i < count; i++)
        list[i] = (eng_cpu_product){
            .matrix = products[i].matrix, .rows = rows, .output = products[i].output};
    return eng_cpu_linear(engine, input, rows, list, count);
}

static void cpu_linear_f32(eng_engine *engine, const krn_matrix *matrix, const void *input,
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

static void cpu_heads(eng_engine *engine, const eng_heads_product *product)
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

static void cpu_embed(eng_engine *engine, const eng_batch *batch, void *out_x)
{
    uint32_t hidden = (uint32_t)engine->model->shape.hidden_size;
    const uint16_t *table = engine->model->embed;
    if (!engine->plain) {
        krn_embed(table, batch->tokens, batch->row_count, hidden, out_x);
        return;
    }
    for (uint32_t i = 0; i < batch->row_count; i++)
        krn_bf16_to_f32_many(table + (size_t)batch->tokens[i] * hidden, hidden,
                             (float *)out_x + (size_t)i * hidden);
}

void eng_cpu_silu_mul(eng_engine *engine, void *gate, const void *up, size_t count)
{
    if (engine->plain)
        krn_plain_silu_mul(engine->pool, gate, up, count, gate);
    else
        krn_silu_mul(engine->pool, gate, up, count, gate);
}

static void cpu_silu_mul(eng_engine *engine, void *gate, const void *up, uint32_t rows, uint32_t n)
{
    eng_cpu_silu_mul(engine, gate, up, (size_t)rows * n);
}

static bool cpu_put(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
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

static bool cpu_select(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                       bool scored)
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

static void cpu_rope_queries(eng_engine *engine, const eng_batch *batch)
{
    uint32_t heads = (uint32_t)engine->model->shape.head_count;
    if (engine->plain)
        krn_plain_rope_queries(engine->pool, engine->s.q, batch->row_count, heads, batch->table);
    else
        krn_rope_queries(engine->pool, engine->s.q, batch->row_count, heads, batch->table);
}

static void cpu_attend(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
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

static void cpu_combine(eng_engine *engine, uint32_t rows, void *out_y)
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

static bool cpu_finite(eng_engine *engine, const float *values, size_t count)
{
    return fault(engine, krn_finite(values, count), "the logits");
}

static void cpu_arg_max(eng_engine *engine, uint32_t rows, uint32_t *out_ids)
{
    uint32_t vocab = (uint32_t)engine->model->shape.vocab_size;
    for (uint32_t i = 0; i < rows; i++)
        out_ids[i] = krn_arg_max(engine->s.logits + (size_t)i * vocab, vocab);
}

const eng_ops eng_ops_cpu = {
    .numerics_id = krn_numerics_id,
    .expert_align = 1,
    .model_open = cpu_model_open,
    .matrix_bytes = cpu_matrix_bytes,
    .pack_fp8 = cpu_pack_fp8,
    .pack_bf16 = cpu_pack_bf16,
    .create = cpu_create,
    .destroy = cpu_destroy,
    .reloaded = cpu_reloaded,
    .memory_create = cpu_memory_create,
    .memory_destroy = cpu_memory_destroy,
    .clear = cpu_clear,
    .copy = cpu_copy,
    .move = cpu_move,
    .write = cpu_write,
    .fetch = cpu_fetch,
    .read = cpu_read,
    .bind = cpu_bind,
    .pieces_out = cpu_pieces_out,
    .out_busy = cpu_out_busy,
    .out_wait = cpu_out_wait,
    .page_in = cpu_page_in,
    .page_mark = cpu_page_mark,
    .page_done = cpu_page_done,
    .start = cpu_start,
    .begin = cpu_begin,
    .finish = cpu_finish,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .linear_f32 = cpu_linear_f32,
    .heads = cpu_heads,
    .silu_mul = cpu_silu_mul,
    .put = cpu_put,
    .select = cpu_select,
    .rope_queries = cpu_rope_queries,
    .attend = cpu_attend,
    .route = eng_cpu_route,
    .experts = eng_cpu_experts,
    .exchange = &eng_cpu_exchange,
    .combine = cpu_combine,
    .finite = cpu_finite,
    .arg_max = cpu_arg_max,
};
