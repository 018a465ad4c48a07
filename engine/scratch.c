/* Scratch of a step: every buffer the forward pass needs, carved at create from one mapping of the
 * host's memory and one of the backend's.
 *
 * Sizes follow rows_max and the shape; pages of it that no step touches cost no memory. Thread: the
 * engine thread. Never grows. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/ops.h"

#define CARVE_ALIGN 64u

/* The first pass (base NULL) adds up, the second hands out. */
typedef struct carver {
    uint8_t *base;
    size_t used;
} carver;

static void *carve(carver *at, size_t count, size_t size)
{
    void *memory = at->base ? at->base + at->used : NULL;
    at->used += (count * size + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    return memory;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void carve_host(eng_engine *engine, carver *at)
{
    eng_scratch *s = &engine->s;
    size_t rows = engine->rows_max;
    s->tokens = carve(at, rows, sizeof(uint32_t));
    s->positions = carve(at, rows, sizeof(uint32_t));
    s->rows = carve(at, rows, sizeof(krn_row));
    s->wanted = carve(at, rows, sizeof(uint32_t));
    s->moves = carve(at, rows, sizeof(eng_move));
    s->draft_ids = carve(at, rows, sizeof(uint32_t));
    s->mtp_tokens = carve(at, rows, sizeof(uint32_t));
    s->mtp_positions = carve(at, rows, sizeof(uint32_t));
    s->mtp_rows = carve(at, rows, sizeof(krn_row));
    s->gemms = carve(at, KRN_GEMMS_MAX, sizeof(krn_gemm));
    uint32_t threads = krn_pool_threads(engine->pool);
    s->select_bytes =
        krn_select_scratch_bytes(threads, (uint32_t)engine->model->shape.index_head_count,
                                 engine->blocks_max * ENG_PAGE_TOKENS);
    s->select_scratch = carve(at, s->select_bytes, 1);
    s->attend_scratch =
        carve(at,
              krn_attend_scratch_bytes(threads, (uint32_t)engine->model->shape.head_count,
                                       engine->list_stride),
              1);
}

static void carve_rows(eng_engine *engine, carver *at)
{
    eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    size_t rows = engine->rows_max, hidden = (size_t)shape->hidden_size;
    size_t vocab = (size_t)shape->vocab_size, element = engine->element_bytes;
    s->table = carve(at, rows * 2 * KRN_ROPE_PAIRS, sizeof(float));
    s->x = carve(at, rows * hidden, element);
    s->res = carve(at, rows * hidden, element);
    s->n = carve(at, rows * hidden, element);
    s->h = carve(at, rows * hidden, element);
    s->mtp_table = carve(at, rows * 2 * KRN_ROPE_PAIRS, sizeof(float));
    s->mtp_h = carve(at, rows * hidden, element);
    s->mtp_cat = carve(at, rows * 2 * hidden, element);
    s->head_in = carve(at, rows * hidden, element);
    s->logits = carve(at, rows * vocab, sizeof(float));
    s->head_logits = carve(at, vocab, sizeof(float));
}

static void carve_attention(eng_engine *engine, carver *at)
{
    eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    size_t rows = engine->rows_max, lora = (size_t)shape->q_lora_rank;
    size_t heads = (size_t)shape->head_count, index_heads = (size_t)shape->index_head_count;
    size_t element = engine->element_bytes;
    s->q_a = carve(at, rows * lora, element);
    s->qr = carve(at, rows * lora, element);
    s->kv = carve(at, rows * (KRN_LATENT_DIM + KRN_ROPE_DIM), element);
    s->ik = carve(at, rows * KRN_INDEX_DIM, element);
    s->q = carve(at, rows * heads * KRN_HEAD_DIM, element);
    s->iq = carve(at, rows * index_heads * KRN_INDEX_DIM, element);
    s->wt = carve(at, rows * index_heads, sizeof(float));
    s->factors = carve(at, rows * index_heads, sizeof(float));
    s->iq_codes = carve(at, rows * index_heads * KRN_INDEX_DIM, 1);
    s->lists = carve(at, rows * engine->list_stride, sizeof(uint32_t));
    s->list_counts = carve(at, rows, sizeof(uint32_t));
    s->q_latent = carve(at, ENG_ATTEND_ROWS * heads * KRN_LATENT_DIM, element);
    s->o = carve(at, ENG_ATTEND_ROWS * heads * KRN_LATENT_DIM, element);
    s->v = carve(at, rows * heads * KRN_VALUE_DIM, element);
}

static void carve_mlp(eng_engine *engine, carver *at)
{
    eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    size_t rows = engine->rows_max, hidden = (size_t)shape->hidden_size;
    size_t chosen = (size_t)shape->experts_per_token, element = engine->element_bytes;
    size_t expert_width = (size_t)shape->moe_intermediate_size;
    size_t shared_width = expert_width * (size_t)shape->shared_expert_count;
    size_t places = eng_places_max(engine);
    size_t wide = larger(rows * (size_t)shape->intermediate_size,
                         places * expert_width + rows * shared_width);
    s->gate = carve(at, wide, element);
    s->up = carve(at, wide, element);
    size_t returned = engine->ranks ? rows * chosen * engine->model->ep_size : 0;
    s->down = carve(at, (places + returned) * hidden, element); /* behind: from other ranks */
    s->shared_out = carve(at, rows * hidden, element);
    s->router_logits = carve(at, rows * (size_t)shape->expert_count, sizeof(float));
    s->experts = carve(at, rows * chosen, sizeof(uint32_t));
    s->expert_weights = carve(at, rows * chosen, sizeof(float));
    s->expert_offsets = carve(at, (size_t)shape->expert_count + 1, sizeof(uint32_t));
    s->expert_rows = carve(at, places, sizeof(uint32_t));
    s->expert_places = carve(at, rows * chosen, sizeof(uint32_t));
    /* one linear layer's input: of all places, or of the rows as they are */
    size_t widest = larger((size_t)shape->head_count * KRN_VALUE_DIM,
                           larger(2 * hidden, (size_t)shape->q_lora_rank));
    size_t quantised = larger(wide, rows * widest);
    if (engine->ops->expert_align > 1) /* inputs of the experts are copied, one a place */
        quantised = larger(quantised, places * hidden);
    s->codes = carve(at, quantised, 1);
    s->code_scales = carve(at, quantised / KRN_BLOCK, sizeof(float));
}

static void carve_device(eng_engine *engine, carver *at)
{
    carve_rows(engine, at);
    carve_attention(engine, at);
    carve_mlp(engine, at);
}

sl_status eng_scratch_carve(eng_engine *engine, sl_err *err)
{
    engine->list_stride = (uint32_t)engine->model->shape.index_topk;
    eng_scratch *s = &engine->s;
    carver host = {0}, device = {0};
    carve_host(engine, &host);
    carve_device(engine, &device);
    SL_TRY(sl_alloc_pages(host.used, &s->memory, err));
    s->bytes = host.used;
    SL_TRY(engine->ops->memory_create(engine->model, ENG_MEMORY_DEVICE, device.used,
                                      &s->device_memory, err));
    s->device_bytes = device.used;
    host = (carver){.base = s->memory};
    device = (carver){.base = s->device_memory};
    carve_host(engine, &host);
    carve_device(engine, &device);
    sl_assert(host.used == s->bytes && device.used == s->device_bytes);
    return sl_ok();
}

void eng_scratch_free(eng_engine *engine)
{
    if (engine->s.memory)
        sl_free_pages(engine->s.memory, engine->s.bytes);
    if (engine->s.device_memory)
        engine->ops->memory_destroy(engine->model, ENG_MEMORY_DEVICE, engine->s.device_memory,
                                    engine->s.device_bytes);
    memset(&engine->s, 0, sizeof(engine->s));
}
