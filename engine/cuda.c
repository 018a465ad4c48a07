/* The CUDA backend: device memory, what a batch brings to the device, faults.
 *
 * Operations are put on one stream and run behind the host; eng_cuda_finish and reads wait. Small
 * host values travel through a pinned stage, each with a place of its own until the next wait.
 * Faults are words that kernels set. Thread: the engine thread. Allocates at create only. */
#include "engine/cuda.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define STAGE_ALIGN 64u
#define LOGIT_ROWS  256u /* of a step, brought to the host with it; more are read one by one */
#define SCORE_BYTES (256ull << 20) /* index scores of the rows selected at a time */

static const char *const FAULT_NAMES[ENG_CUDA_FAULT_COUNT] = {
    [ENG_CUDA_FAULT_NORM] = "a norm's input",
    [ENG_CUDA_FAULT_LINEAR] = "a linear layer's input",
    [ENG_CUDA_FAULT_LATENT] = "the latent",
    [ENG_CUDA_FAULT_KEY] = "the index key",
    [ENG_CUDA_FAULT_QUERY] = "the index query",
    [ENG_CUDA_FAULT_SCORE] = "an index score",
    [ENG_CUDA_FAULT_F32] = "the logits",
    [ENG_CUDA_FAULT_ROUTER] = "a router score",
    [ENG_CUDA_FAULT_SILU] = "an MLP's inner rows",
};

void eng_cuda_check(eng_cuda *cuda, int code)
{
    if (code != KRN_CUDA_OK && !cuda->broken[0])
        snprintf(cuda->broken, sizeof(cuda->broken), "%s", cuda->api->last_error());
}

uint32_t *eng_cuda_fault_at(const eng_engine *engine, eng_cuda_fault kind)
{
    uint32_t layer = engine->step_layer - engine->model->layer_first;
    return eng_cuda_of(engine)->faults + (size_t)layer * ENG_CUDA_FAULT_COUNT + kind;
}

/* ---- memory ---- */

static sl_status cuda_memory_create(const eng_model *model, eng_memory kind, size_t bytes,
                                    void **out_memory, sl_err *err)
{
    const krn_cuda_api *api = model->cuda;
    void *memory;
    if (kind == ENG_MEMORY_HOST) {
        SL_TRY(krn_cuda_status(api, api->host_create(bytes, &memory), err));
        memset(memory, 0, bytes);
    } else {
        SL_TRY(krn_cuda_status(api, api->memory_create(bytes, &memory), err));
        int code = api->fill(memory, 0, bytes, NULL);
        sl_status status = krn_cuda_status(api, code ? code : api->stream_wait(NULL), err);
        if (!sl_is_ok(status)) {
            api->memory_destroy(memory);
            return status;
        }
    }
    *out_memory = memory;
    return sl_ok();
}

static void cuda_memory_destroy(const eng_model *model, eng_memory kind, void *memory, size_t bytes)
{
    (void)bytes;
    if (kind == ENG_MEMORY_HOST)
        model->cuda->host_destroy(memory);
    else
        model->cuda->memory_destroy(memory);
}

void eng_cuda_wait(eng_cuda *cuda)
{
    eng_cuda_check(cuda, cuda->api->stream_wait(cuda->stream));
    cuda->stage_used = 0;
}

static void cuda_clear(eng_engine *engine, const eng_pieces *pieces)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    size_t stride = pieces->count > 1 ? pieces->to_stride : pieces->bytes;
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->clear_pieces(pieces->to, stride, pieces->bytes,
                                                     pieces->count, cuda->stream));
}

static void cuda_copy(eng_engine *engine, const eng_pieces *pieces)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    bool many = pieces->count > 1;
    if (eng_cuda_launches(cuda))
        eng_cuda_check(
            cuda, cuda->api->copy_pieces(pieces->to, many ? pieces->to_stride : pieces->bytes,
                                         pieces->from, many ? pieces->from_stride : pieces->bytes,
                                         pieces->bytes, pieces->count, cuda->stream));
}

void *eng_cuda_stage(eng_engine *engine, const void *host, size_t bytes)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    size_t taken = (bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
    sl_assert(taken <= cuda->stage_bytes);
    if (cuda->stage_used + taken > cuda->stage_bytes)
        eng_cuda_wait(cuda); /* cannot be: a step's values fit */
    uint8_t *at = cuda->device_stage + cuda->stage_used;
    memcpy(cuda->stage + cuda->stage_used, host, bytes);
    if (eng_cuda_launches(cuda) && cuda->mode == ENG_CUDA_MODE_RUN)
        eng_cuda_check(cuda,
                       cuda->api->copy(at, cuda->stage + cuda->stage_used, bytes, cuda->stream));
    cuda->stage_used += taken;
    return at;
}

static void cuda_move(eng_engine *engine, uint32_t count, size_t bytes, bool unless_fault)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (count == 0)
        return;
    const krn_cuda_move_params params = {
        .moves = eng_cuda_stage(engine, engine->s.moves, count * sizeof(eng_move)),
        .faults = cuda->faults,
        .count = count,
        .bytes = (uint32_t)bytes,
        .fault_count = unless_fault ? cuda->fault_count : 0,
    };
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->move(&params, cuda->stream));
}

static void cuda_write(eng_engine *engine, void *to, const void *host, size_t bytes)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->copy(to, host, bytes, cuda->stream));
    eng_cuda_wait(cuda); /* the host's values may change at once */
}

static void cuda_fetch(eng_engine *engine, void *host, const void *at, size_t bytes)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->copy(host, at, bytes, cuda->stream));
    eng_cuda_wait(cuda);
    if (cuda->broken[0])
        engine->broken = cuda->broken; /* what was read is nothing */
}

static void *cuda_read(eng_engine *engine, void *at, size_t bytes)
{
    const eng_cuda *cuda = eng_cuda_of(engine);
    const eng_scratch *s = &engine->s;
    size_t offset = (size_t)((uint8_t *)at - (uint8_t *)s->device_memory);
    bool scratch = offset < s->device_bytes;
    sl_assert(scratch ? bytes <= s->device_bytes - offset : bytes <= engine->layout.page_bytes);
    void *to = scratch ? cuda->mirror + offset : cuda->host_page;
    cuda_fetch(engine, to, at, bytes);
    return to;
}

static void cuda_bind(eng_engine *engine, const eng_sequence *sequence)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    size_t at = (size_t)(sequence->pages - engine->sequence_pages);
    cuda_write(engine, cuda->blocks + at, sequence->pages, sequence->page_count * sizeof(uint32_t));
}

/* ---- batches ---- */

static void cuda_begin(eng_engine *engine, const eng_batch *batch)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    uint32_t count = batch->row_count;
    krn_cuda_row *rows = cuda->host_rows;
    for (uint32_t i = 0; i < count; i++)
        rows[i] = (krn_cuda_row){
            .sequence = (uint32_t)((size_t)(batch->rows[i].blocks - engine->sequence_pages) /
                                   engine->blocks_max),
            .slot = batch->rows[i].slot,
            .first = batch->rows[i].first,
        };
    cuda->rows = eng_cuda_stage(engine, rows, count * sizeof(*rows));
    cuda->tokens = eng_cuda_stage(engine, batch->tokens, count * sizeof(uint32_t));
    cuda->quantised = NULL;
    const krn_cuda_gather_params params = {
        .table = (const uint8_t *)cuda->rope,
        .index = eng_cuda_stage(engine, batch->positions, count * sizeof(uint32_t)),
        .out = (uint8_t *)batch->table,
        .rows = count,
        .bytes = 2 * KRN_ROPE_PAIRS * sizeof(float),
    };
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->gather(&params, cuda->stream));
}

/* The first fault by layer, then by the order within one. */
static bool faults_read(eng_engine *engine)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    for (uint32_t i = 0; i < cuda->fault_count; i++) {
        if (cuda->host_faults[i] == 0)
            continue;
        engine->step_layer = engine->model->layer_first + i / ENG_CUDA_FAULT_COUNT;
        engine->fault = FAULT_NAMES[i % ENG_CUDA_FAULT_COUNT];
        eng_cuda_check(cuda, cuda->api->fill(cuda->faults, 0, cuda->fault_count * sizeof(uint32_t),
                                             cuda->stream));
        return false;
    }
    return true;
}

static bool cuda_finish(eng_engine *engine)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (eng_cuda_launches(cuda))
        eng_cuda_check(cuda, cuda->api->copy(cuda->host_faults, cuda->faults,
                                             cuda->fault_count * sizeof(uint32_t), cuda->stream));
    eng_cuda_graph_finish(cuda);
    eng_cuda_wait(cuda);
    if (cuda->ids_out)
        memcpy(cuda->ids_out, cuda->host_ids, cuda->id_count * sizeof(uint32_t));
    cuda->ids_out = NULL;
    if (!cuda->broken[0])
        return faults_read(engine);
    engine->broken = cuda->broken;
    return false;
}

static bool cuda_finite(eng_engine *engine, const float *values, size_t count)
{
    (void)engine, (void)values, (void)count;
    return true; /* linear_f32 has looked */
}

/* ---- create and destroy ---- */

/* The shapes that the kernels are made for. */
static sl_status cuda_check_shape(const mdl_shape *shape, sl_err *err)
{
    int index_heads = shape->index_head_count;
    if (index_heads != 8 && index_heads != 16 && index_heads != 32 && index_heads != 64)
        return sl_fail(err, SL_UNSUPPORTED, "cuda: %d index heads, not 8, 16, 32 or 64",
                       index_heads);
    if (shape->hidden_size % 128 || shape->hidden_size > 8192 || shape->q_lora_rank % 128)
        return sl_fail(err, SL_UNSUPPORTED,
                       "cuda: hidden size %d and q_lora_rank %d: multiples of 128 up to 8192",
                       shape->hidden_size, shape->q_lora_rank);
    return sl_ok();
}

static sl_status cuda_device(const eng_engine *engine, size_t bytes, void **out_memory, sl_err *err)
{
    return cuda_memory_create(engine->model, ENG_MEMORY_DEVICE, bytes, out_memory, err);
}

static sl_status cuda_pinned(const eng_engine *engine, size_t bytes, void **out_memory, sl_err *err)
{
    return cuda_memory_create(engine->model, ENG_MEMORY_HOST, bytes, out_memory, err);
}

/* cos and sin of every position: one table for all steps. */
static sl_status cuda_make_rope(eng_engine *engine, eng_cuda *cuda, sl_err *err)
{
    enum { CHUNK = 4096 };
    size_t row = 2 * KRN_ROPE_PAIRS * sizeof(float);
    void *memory;
    SL_TRY(cuda_device(engine, engine->context_max * row, &memory, err));
    cuda->rope = memory;
    uint32_t *positions = sl_alloc(CHUNK, sizeof(uint32_t), "rope positions");
    float *table = sl_alloc(CHUNK, row, "rope table");
    for (uint32_t first = 0; first < engine->context_max; first += CHUNK) {
        uint32_t count = engine->context_max - first < CHUNK ? engine->context_max - first : CHUNK;
        for (uint32_t i = 0; i < count; i++)
            positions[i] = first + i;
        krn_rope_table(engine->pool, &engine->model->rope, positions, count, table);
        cuda_write(engine, cuda->rope + (size_t)first * 2 * KRN_ROPE_PAIRS, table, count * row);
    }
    sl_free(positions);
    sl_free(table);
    return sl_ok();
}

/* Tokens, positions, rows and moves of a step's two batches, the rows wanted, and room to align. */
static size_t stage_bytes(const eng_engine *engine)
{
    size_t row =
        2 * (2 * sizeof(uint32_t) + sizeof(krn_cuda_row) + sizeof(eng_move)) + 2 * sizeof(uint32_t);
    return engine->rows_max * row + 32 * STAGE_ALIGN;
}

static sl_status cuda_build(eng_engine *engine, eng_cuda *cuda, sl_err *err)
{
    const mdl_shape *shape = &engine->model->shape;
    uint32_t rows = engine->rows_max;
    SL_TRY(cuda_check_shape(shape, err));
    SL_TRY(krn_cuda_status(cuda->api, cuda->api->stream_create(&cuda->stream), err));
    cuda->stage_bytes = stage_bytes(engine);
    cuda->fault_count = (engine->model->layer_count + 1) * ENG_CUDA_FAULT_COUNT;
    cuda->score_stride = engine->blocks_max * ENG_PAGE_TOKENS;
    uint64_t fit = SCORE_BYTES / (cuda->score_stride * sizeof(float));
    cuda->score_rows = fit < 1 ? 1 : fit < rows ? (uint32_t)fit : rows;
    size_t blocks = (size_t)engine->sequences_max * engine->blocks_max * sizeof(uint32_t);
    size_t faults = cuda->fault_count * sizeof(uint32_t), ids = rows * sizeof(uint32_t);
    size_t scores = (size_t)cuda->score_rows * cuda->score_stride * sizeof(float);
    size_t workspace = (size_t)cuda->api->attend_workspace_bytes(rows, (uint32_t)shape->head_count,
                                                                 engine->list_stride);
    SL_TRY(cuda_pinned(engine, cuda->stage_bytes, (void **)&cuda->stage, err));
    SL_TRY(cuda_device(engine, cuda->stage_bytes, (void **)&cuda->device_stage, err));
    SL_TRY(cuda_device(engine, blocks, (void **)&cuda->blocks, err));
    SL_TRY(cuda_device(engine, faults, (void **)&cuda->faults, err));
    SL_TRY(cuda_pinned(engine, faults, (void **)&cuda->host_faults, err));
    SL_TRY(cuda_device(engine, scores, (void **)&cuda->scores, err));
    SL_TRY(cuda_device(engine, (size_t)shape->expert_count * sizeof(uint32_t),
                       (void **)&cuda->expert_counts, err));
    SL_TRY(cuda_device(engine, ids, (void **)&cuda->ids, err));
    if (workspace > 0)
        SL_TRY(cuda_device(engine, workspace, &cuda->attend_workspace, err));
    SL_TRY(cuda_pinned(engine, ids, (void **)&cuda->host_ids, err));
    uint32_t logit_rows = rows < LOGIT_ROWS ? rows : LOGIT_ROWS;
    SL_TRY(cuda_pinned(engine, logit_rows * (size_t)shape->vocab_size * sizeof(float),
                       (void **)&engine->host_logits, err));
    engine->host_logit_rows = logit_rows;
    SL_TRY(eng_cuda_transit_create(engine, err));
    SL_TRY(eng_cuda_draws_create(engine, err));
    SL_TRY(cuda_make_rope(engine, cuda, err));
    SL_TRY(sl_alloc_pages(engine->s.device_bytes, (void **)&cuda->mirror, err));
    cuda->host_page = sl_alloc(1, (size_t)engine->layout.page_bytes, "cuda page");
    cuda->host_rows = sl_alloc(rows, sizeof(krn_cuda_row), "cuda rows");
    return sl_ok();
}

static sl_status cuda_create(eng_engine *engine, sl_err *err)
{
    if (engine->plain)
        return sl_fail(err, SL_UNSUPPORTED, "cuda: the plain numerics are the CPU's only");
    eng_cuda *cuda = sl_alloc(1, sizeof(*cuda), "cuda backend");
    cuda->api = engine->model->cuda;
    engine->backend = cuda;
    return cuda_build(engine, cuda, err);
}

static void cuda_destroy(eng_engine *engine)
{
    eng_cuda *cuda = engine->backend;
    if (!cuda)
        return;
    if (cuda->stream)
        (void)cuda->api->stream_wait(cuda->stream);
    eng_cuda_graphs_forget(engine);
    eng_cuda_transit_destroy(cuda);
    eng_cuda_draws_destroy(cuda);
    void *const device[] = {
        cuda->device_stage, cuda->blocks, cuda->faults,        cuda->scores,
        cuda->rope,         cuda->ids,    cuda->expert_counts, cuda->attend_workspace};
    void *const pinned[] = {cuda->stage, cuda->host_faults, cuda->host_ids, engine->host_logits};
    for (size_t i = 0; i < sizeof(device) / sizeof(device[0]); i++)
        cuda->api->memory_destroy(device[i]);
    for (size_t i = 0; i < sizeof(pinned) / sizeof(pinned[0]); i++)
        cuda->api->host_destroy(pinned[i]);
    if (cuda->mirror)
        sl_free_pages(cuda->mirror, engine->s.device_bytes);
    cuda->api->stream_destroy(cuda->stream);
    sl_free(cuda->host_page);
    sl_free(cuda->host_rows);
    sl_free(cuda);
    engine->backend = NULL;
}

static const char *cuda_numerics_id(void)
{
    return KRN_CUDA_NUMERICS_ID;
}

const eng_ops eng_ops_cuda = {
    .numerics_id = cuda_numerics_id,
    .expert_align = 8,
    .resident = true,
    .model_open = eng_cuda_model_open,
    .matrix_bytes = eng_cuda_matrix_bytes,
    .pack_fp8 = eng_cuda_pack_fp8,
    .pack_bf16 = eng_cuda_pack_bf16,
    .upload = eng_cuda_upload,
    .create = cuda_create,
    .destroy = cuda_destroy,
    .reloaded = eng_cuda_graphs_forget,
    .memory_create = cuda_memory_create,
    .memory_destroy = cuda_memory_destroy,
    .clear = cuda_clear,
    .copy = cuda_copy,
    .move = cuda_move,
    .write = cuda_write,
    .fetch = cuda_fetch,
    .read = cuda_read,
    .bind = cuda_bind,
    .pieces_out = eng_cuda_pieces_out,
    .out_busy = eng_cuda_out_busy,
    .out_wait = eng_cuda_out_wait,
    .page_in = eng_cuda_page_in,
    .page_mark = eng_cuda_page_mark,
    .page_done = eng_cuda_page_done,
    .start = eng_cuda_start,
    .begin = cuda_begin,
    .finish = cuda_finish,
    .embed = eng_cuda_embed,
    .norm = eng_cuda_norm,
    .linear = eng_cuda_linear,
    .linear_f32 = eng_cuda_linear_f32,
    .heads = eng_cuda_heads,
    .silu_mul = eng_cuda_silu_mul,
    .put = eng_cuda_put,
    .select = eng_cuda_select,
    .rope_queries = eng_cuda_rope_queries,
    .attend = eng_cuda_attend,
    .route = eng_cuda_route,
    .experts = eng_cuda_experts,
    .combine = eng_cuda_combine,
    .finite = cuda_finite,
    .logits_out = eng_cuda_logits_out,
    .draw_row = eng_cuda_draw_row,
    .draw = eng_cuda_draw,
    .drawn = eng_cuda_drawn,
    .arg_max = eng_cuda_arg_max,
};
