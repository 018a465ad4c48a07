/* One rank's share of V3.2 with random weights: 61 layers with whole attention, the shared expert
 * and 8 of the 256 experts (32 ranks), the exchange between ranks stubbed by copies of its size on
 * the device. The operations and their order are the engine's (engine/layer.c).
 *
 * share_bench step: a decode step as one graph, by rows and context; without a graph for 1 row.
 * share_bench prefill: a chunk of 4,096 tokens behind a context, from the time of LAYERS_TIMED
 * layers. Medians of 5. Weights are each layer's own (37 GB); pages are random ones of a pool past
 * the L2. */
#include "kernels/cuda/load.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 61,
    LAYERS_TIMED = 2, /* of a prefill chunk */
    HIDDEN = 7168,
    Q_RANK = 1536,
    HEADS = 128,
    INDEX_HEADS = 64,
    MOE = 2048,
    EXPERTS = 256,
    LOCAL = 8, /* experts here; as many are chosen by a token */
    TOPK = 2048,
    CHUNK = 4096,
    ATTEND_ROWS = 128,
    CONTEXT_MAX = 131072,
    PAGE_BYTES = 50432,
    POOL_PAGES = 4096,
    VOCABULARY = 129280,
};

#define SCORE_BYTES (256ull << 20) /* as engine/cuda.c */

static const krn_cuda_api *gpu;
static cudaStream_t stream;
static uint8_t *memory;
static uint64_t memory_bytes, memory_used;

static void must(int code, const char *what)
{
    if (code != 0) {
        fprintf(stderr, "%s: code %d: %s\n", what, code, gpu->last_error());
        exit(1);
    }
}

static void *take(uint64_t bytes)
{
    void *at = memory + memory_used;
    memory_used += (bytes + 1023) & ~1023ull;
    if (memory_used > memory_bytes) {
        fprintf(stderr, "the device has too little memory\n");
        exit(1);
    }
    return at;
}

/* ---- weights ---- */

typedef struct matrix {
    uint8_t *at;
    uint64_t bytes; /* of one of the groups */
    uint32_t n, k, segments;
} matrix;

typedef struct layer {
    matrix q_a, kv_a, wk, q_b, wq_b, o, gate, up, down; /* fp8 */
    matrix expert_gate, expert_up, expert_down;         /* fp8, LOCAL groups */
    matrix w_uk, w_uv, weights_proj, router;            /* bf16 */
    uint8_t *pages;
} layer;

static struct {
    layer layers[LAYERS];
    matrix head;
    uint16_t *norm;
    float *bias;
    /* rows */
    uint16_t *x, *res, *n, *q_a, *kv, *ik, *qr, *q, *iq, *q_latent, *o, *v, *gate, *up, *shared;
    uint16_t *expert_gate, *expert_up, *expert_out;
    float *wt, *logits, *weights, *factors, *scores, *table, *head_logits;
    uint8_t *codes, *iq_codes, *exchange;
    float *code_scales;
    uint32_t *experts, *places, *lists, *list_counts, *offsets, *counts, *blocks, *ids;
    uint32_t *group_offsets, *group_rows, *group_places, *group_counts;
    krn_cuda_row *rows_at;
    void *workspace;
} m;

static matrix fp8(uint32_t n, uint32_t k, uint32_t stack_n, uint32_t groups)
{
    uint64_t bytes = gpu->weights_bytes(n, k);
    return (matrix){take(bytes * groups), bytes, n, k, gpu->segments(stack_n, k)};
}
static matrix bf16(uint32_t n, uint32_t k, uint32_t groups)
{
    uint64_t bytes = gpu->weights_bytes_bf16(n, k);
    return (matrix){take(bytes * groups), bytes, n, k, gpu->segments_bf16(n, k)};
}

static void layers_take(void)
{
    for (int i = 0; i < LAYERS; i++)
        m.layers[i] = (layer){
            .q_a = fp8(Q_RANK, HIDDEN, 2240, 1),
            .kv_a = fp8(576, HIDDEN, 2240, 1),
            .wk = fp8(128, HIDDEN, 2240, 1),
            .q_b = fp8(HEADS * 192, Q_RANK, HEADS * 192, 1),
            .wq_b = fp8(INDEX_HEADS * 128, Q_RANK, HEADS * 192, 1),
            .o = fp8(HIDDEN, HEADS * 128, HIDDEN, 1),
            .gate = fp8(MOE, HIDDEN, 2 * MOE, 1),
            .up = fp8(MOE, HIDDEN, 2 * MOE, 1),
            .down = fp8(HIDDEN, MOE, HIDDEN, 1),
            .expert_gate = fp8(MOE, HIDDEN, 2 * MOE, LOCAL),
            .expert_up = fp8(MOE, HIDDEN, 2 * MOE, LOCAL),
            .expert_down = fp8(HIDDEN, MOE, HIDDEN, LOCAL),
            .w_uk = bf16(512, 128, HEADS),
            .w_uv = bf16(128, 512, HEADS),
            .weights_proj = bf16(INDEX_HEADS, HIDDEN, 1),
            .router = bf16(EXPERTS, HIDDEN, 1),
            .pages = take((uint64_t)POOL_PAGES * PAGE_BYTES),
        };
    m.head = bf16(VOCABULARY, HIDDEN, 1);
}

static void rows_take(uint32_t rows)
{
    uint64_t placed = (uint64_t)rows * LOCAL + LOCAL * 8;
    m.norm = take(8192 * 2), m.bias = take(EXPERTS * 4);
    m.x = take(rows * HIDDEN * 2ull), m.res = take(rows * HIDDEN * 2ull);
    m.n = take(rows * HIDDEN * 2ull), m.q_a = take(rows * Q_RANK * 2ull);
    m.kv = take(rows * 576 * 2ull), m.ik = take(rows * 128 * 2ull);
    m.qr = take(rows * Q_RANK * 2ull), m.q = take(rows * HEADS * 192 * 2ull);
    m.iq = take(rows * INDEX_HEADS * 128 * 2ull), m.wt = take(rows * INDEX_HEADS * 4ull);
    m.q_latent = take(ATTEND_ROWS * HEADS * 512 * 2ull);
    m.o = take(ATTEND_ROWS * HEADS * 512 * 2ull), m.v = take(rows * HEADS * 128 * 2ull);
    m.gate = take(rows * MOE * 2ull), m.up = take(rows * MOE * 2ull);
    m.shared = take(rows * HIDDEN * 2ull), m.expert_gate = take(placed * MOE * 2);
    m.expert_up = take(placed * MOE * 2), m.expert_out = take(placed * HIDDEN * 2);
    m.logits = take(rows * EXPERTS * 4ull), m.weights = take(rows * LOCAL * 4ull);
    m.factors = take(rows * INDEX_HEADS * 4ull), m.scores = take(SCORE_BYTES);
    m.table = take(rows * 256ull), m.codes = take((placed + rows) * HEADS * 128);
    m.code_scales = take((placed + rows) * HEADS * 4),
    m.iq_codes = take(rows * INDEX_HEADS * 128ull);
    m.exchange = take(placed * HIDDEN * 2), m.experts = take(rows * LOCAL * 4ull);
    m.places = take(rows * LOCAL * 4ull), m.lists = take(rows * TOPK * 4ull);
    m.list_counts = take(rows * 4ull), m.offsets = take(4096), m.counts = take(4096);
    m.blocks = take(256ull * (CONTEXT_MAX / 64) * 4), m.rows_at = take(rows * 12ull);
    m.group_offsets = take(4096), m.group_rows = take((rows * 8ull + EXPERTS * 8) * 4);
    m.group_places = take(rows * LOCAL * 4ull), m.group_counts = take(4096);
    m.ids = take(rows * 4ull), m.head_logits = take(ATTEND_ROWS * VOCABULARY * 4ull);
    m.workspace = take(gpu->attend_workspace_bytes(rows, HEADS, TOPK) + 1024);
}

/* Bytes that are e4m3 and bf16 of ordinary size and, as f32, about 0.01; latent scales powers of
 * two, as V3.2 has them. */
static void memory_fill(void)
{
    enum { BYTES = 64 << 20, PAGES = 1024 };
    uint64_t state = 88172645463325252ull;
    uint8_t *host = malloc(BYTES);
    for (uint64_t i = 0; i < BYTES; i += 4) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint32_t word = ((uint32_t)state & 0x80FF80FFu) | ((uint32_t)state & 0x03000300u);
        word += 0x39003900u;
        word ^= (word & 0x7F) == 0x7F;
        word ^= (uint32_t)((word >> 16 & 0x7F) == 0x7F) << 16;
        memcpy(host + i, &word, 4);
    }
    must(cudaMemcpy(memory, host, BYTES, cudaMemcpyHostToDevice), "fill");
    for (uint64_t at = BYTES; at < memory_used; at += BYTES)
        must(cudaMemcpy(memory + at, memory, BYTES, cudaMemcpyDeviceToDevice), "fill");
    for (uint64_t i = 0; i < PAGES * 64ull; i++)
        for (uint32_t g = 0; g < 4; g++) {
            uint32_t bits = (120 + (uint32_t)(i + g) % 5) << 23;
            memcpy(host + i / 64 * PAGE_BYTES + i % 64 * 656 + 512 + g * 4, &bits, 4);
        }
    must(cudaMemcpy(m.scores, host, PAGES * PAGE_BYTES, cudaMemcpyHostToDevice), "pages");
    for (int i = 0; i < LAYERS; i++)
        for (uint64_t j = 0; j < POOL_PAGES; j += PAGES)
            must(cudaMemcpy(m.layers[i].pages + j * PAGE_BYTES, m.scores, PAGES * PAGE_BYTES,
                            cudaMemcpyDeviceToDevice),
                 "pages");
    free(host);
}

/* ---- what the host says of a step ---- */

static void *staged(void *to, const void *host, uint64_t bytes)
{
    must(cudaMemcpy(to, host, bytes, cudaMemcpyHostToDevice), "stage");
    return to;
}

/* rows: of `sequences` in turn, the last of each at slot context - 1. */
static void step_stage(uint32_t rows, uint32_t sequences, uint32_t context)
{
    uint32_t blocks = CONTEXT_MAX / 64, seed = 1, each = rows / sequences,
             tiled = (rows + 7) / 8 * 8;
    uint32_t *host = malloc(256ull * blocks * 4 + rows * 32ull);
    for (uint64_t i = 0; i < (uint64_t)sequences * blocks; i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = (uint32_t)((uint64_t)seed * POOL_PAGES >> 32);
    }
    staged(m.blocks, host, (uint64_t)sequences * blocks * 4);
    krn_cuda_row *at = (krn_cuda_row *)host;
    for (uint32_t i = 0; i < rows; i++)
        at[i] = (krn_cuda_row){.sequence = i / each, .slot = context - each + i % each};
    staged(m.rows_at, host, rows * sizeof(*at));
    for (uint32_t i = 0; i < rows * LOCAL; i++) /* token i's 8 go to the 8 experts here */
        host[i] = i % LOCAL * tiled + i / LOCAL;
    staged(m.places, host, rows * LOCAL * 4ull);
    for (uint32_t i = 0; i <= LOCAL; i++)
        host[i] = i * tiled, host[64 + i] = rows;
    staged(m.offsets, host, (LOCAL + 1) * 4);
    staged(m.counts, host + 64, LOCAL * 4);
    free(host);
}

/* ---- operations ---- */

static uint32_t tiled(uint32_t rows)
{
    return (rows + 7) / 8 * 8;
}

static void norm(uint32_t rows, uint32_t n, const uint16_t *x, uint16_t *res, uint16_t *out)
{
    must(gpu->norm(&(krn_cuda_norm_params){.x = x,
                                           .res = res,
                                           .weight = m.norm,
                                           .out = out,
                                           .out_res = res,
                                           .out_codes = m.codes,
                                           .out_scales = m.code_scales,
                                           .rows = rows,
                                           .n = n,
                                           .x_stride = n,
                                           .rows_tiled = tiled(rows),
                                           .epsilon = 1e-6f,
                                           .pow2 = 1},
                   stream),
         "norm");
}

static void linear(const matrix *w, uint32_t rows, uint16_t *out)
{
    must(gpu->linear_fp8(&(krn_cuda_linear_params){.codes = m.codes,
                                                   .scales = m.code_scales,
                                                   .weights = w->at,
                                                   .out = out,
                                                   .rows = rows,
                                                   .groups = 1,
                                                   .n = w->n,
                                                   .k = w->k,
                                                   .rows_tiled = tiled(rows),
                                                   .out_stride = w->n,
                                                   .segments = w->segments},
                         stream),
         "linear");
}

static void grouped(const matrix *w, uint32_t rows, uint16_t *out)
{
    must(gpu->linear_fp8(&(krn_cuda_linear_params){.codes = m.codes,
                                                   .scales = m.code_scales,
                                                   .weights = w->at,
                                                   .out = out,
                                                   .offsets = m.offsets,
                                                   .counts = m.counts,
                                                   .weights_bytes = w->bytes,
                                                   .rows = rows,
                                                   .groups = LOCAL,
                                                   .n = w->n,
                                                   .k = w->k,
                                                   .rows_tiled = LOCAL * tiled(rows),
                                                   .out_stride = w->n,
                                                   .segments = w->segments},
                         stream),
         "experts");
}

static void bf16_product(const matrix *w, const uint16_t *x, uint32_t rows, uint32_t groups,
                         void *out, uint32_t f32)
{
    must(gpu->linear_bf16(
             &(krn_cuda_linear_bf16_params){.x = x,
                                            .weights = w->at,
                                            .out = out,
                                            .weights_bytes = w->bytes,
                                            .rows = rows,
                                            .groups = groups,
                                            .n = w->n,
                                            .k = w->k,
                                            .x_stride =
                                                groups * (groups > 1 && w->k == 128 ? 192 : w->k),
                                            .x_group = groups > 1 && w->k == 128 ? 192 : w->k,
                                            .out_stride = groups * w->n,
                                            .out_group = w->n,
                                            .out_f32 = f32,
                                            .segments = w->segments},
             stream),
         "bf16");
}

static void quant(const uint16_t *x, uint32_t rows, uint32_t n)
{
    must(gpu->quant(&(krn_cuda_quant_params){.x = x,
                                             .out_codes = m.codes,
                                             .out_scales = m.code_scales,
                                             .rows = rows,
                                             .n = n,
                                             .stride = n,
                                             .rows_tiled = tiled(rows),
                                             .pow2 = 1},
                    stream),
         "quant");
}

static void silu(uint16_t *gate, const uint16_t *up, uint32_t rows)
{
    must(gpu->silu(&(krn_cuda_silu_params){.g = gate,
                                           .u = up,
                                           .out = gate,
                                           .out_codes = m.codes,
                                           .out_scales = m.code_scales,
                                           .rows = rows,
                                           .n = MOE,
                                           .stride = MOE,
                                           .rows_tiled = tiled(rows),
                                           .pow2 = 1},
                   stream),
         "silu");
}

static krn_cuda_cache cache_of(const layer *l)
{
    return (krn_cuda_cache){.base = l->pages,
                            .page_bytes = PAGE_BYTES,
                            .blocks = m.blocks,
                            .block_stride = CONTEXT_MAX / 64};
}

static void inputs(const layer *l, uint32_t rows)
{
    krn_cuda_cache cache = cache_of(l);
    linear(&l->q_a, rows, m.q_a);
    linear(&l->kv_a, rows, m.kv);
    linear(&l->wk, rows, m.ik);
    norm(rows, Q_RANK, m.q_a, NULL, m.qr);
    linear(&l->q_b, rows, m.q);
    linear(&l->wq_b, rows, m.iq);
    bf16_product(&l->weights_proj, m.n, rows, 1, m.wt, 1);
    must(gpu->latent_put(&(krn_cuda_latent_params){.cache = cache,
                                                   .rows_at = m.rows_at,
                                                   .kv = m.kv,
                                                   .weight = m.norm,
                                                   .table = m.table,
                                                   .rows = rows,
                                                   .stride = 576,
                                                   .epsilon = 1e-6f,
                                                   .pow2 = 1},
                         stream),
         "latent");
    must(gpu->index_put(&(krn_cuda_index_put_params){.cache = cache,
                                                     .rows_at = m.rows_at,
                                                     .z = m.ik,
                                                     .weight = m.bias,
                                                     .bias = m.bias,
                                                     .table = m.table,
                                                     .rows = rows,
                                                     .stride = 128,
                                                     .epsilon = 1e-6f,
                                                     .pow2 = 1},
                        stream),
         "index put");
    must(gpu->index_query(&(krn_cuda_index_query_params){.q = m.iq,
                                                         .wt = m.wt,
                                                         .table = m.table,
                                                         .out_codes = m.iq_codes,
                                                         .out_factors = m.factors,
                                                         .rows = rows,
                                                         .heads = INDEX_HEADS,
                                                         .pow2 = 1},
                          stream),
         "index query");
}

static void choose(const layer *l, uint32_t rows, uint32_t context)
{
    uint32_t at_once = (uint32_t)(SCORE_BYTES / 4 / context);
    for (uint32_t first = 0; first < rows; first += at_once) {
        uint32_t here = rows - first < at_once ? rows - first : at_once;
        must(gpu->scores(
                 &(krn_cuda_scores_params){.cache = cache_of(l),
                                           .rows_at = m.rows_at + first,
                                           .queries = m.iq_codes + first * INDEX_HEADS * 128ull,
                                           .factors = m.factors + first * INDEX_HEADS,
                                           .scores = m.scores,
                                           .rows = here,
                                           .next_n = 1,
                                           .heads = INDEX_HEADS,
                                           .slots_max = context,
                                           .stride = context},
                 stream),
             "scores");
        must(gpu->topk(&(krn_cuda_topk_params){.scores = m.scores,
                                               .rows_at = m.rows_at + first,
                                               .lists = m.lists + first * (uint64_t)TOPK,
                                               .list_counts = m.list_counts + first,
                                               .rows = here,
                                               .stride = context,
                                               .topk = TOPK,
                                               .list_stride = TOPK},
                       stream),
             "topk");
    }
}

static void attention(const layer *l, uint32_t rows, uint32_t context)
{
    inputs(l, rows);
    choose(l, rows, context);
    must(gpu->rope_queries(
             &(krn_cuda_rope_params){.q = m.q, .table = m.table, .rows = rows, .heads = HEADS},
             stream),
         "rope");
    for (uint32_t first = 0; first < rows; first += ATTEND_ROWS) {
        uint32_t here = rows - first < ATTEND_ROWS ? rows - first : ATTEND_ROWS;
        uint16_t *q = m.q + first * HEADS * 192ull;
        bf16_product(&l->w_uk, q, here, HEADS, m.q_latent, 0);
        must(gpu->attend(&(krn_cuda_attend_params){.cache = cache_of(l),
                                                   .rows_at = m.rows_at + first,
                                                   .q_latent = m.q_latent,
                                                   .q = q,
                                                   .lists = m.lists + first * (uint64_t)TOPK,
                                                   .list_counts = m.list_counts + first,
                                                   .out = m.o,
                                                   .workspace = m.workspace,
                                                   .rows = here,
                                                   .heads = HEADS,
                                                   .list_stride = TOPK,
                                                   .scale = 0.135f},
                         stream),
             "attend");
        bf16_product(&l->w_uv, m.o, here, HEADS, m.v + first * HEADS * 128ull, 0);
    }
    quant(m.v, rows, HEADS * 128);
    linear(&l->o, rows, m.x);
}

/* Rows to the experts' ranks and back: as many come as go. */
static void experts(const layer *l, uint32_t rows)
{
    uint64_t placed = (uint64_t)rows * LOCAL;
    bf16_product(&l->router, m.n, rows, 1, m.logits, 1);
    must(gpu->route(&(krn_cuda_route_params){.logits = m.logits,
                                             .bias = m.bias,
                                             .out_experts = m.experts,
                                             .out_weights = m.weights,
                                             .rows = rows,
                                             .experts = EXPERTS,
                                             .groups = 8,
                                             .groups_kept = 4,
                                             .chosen = LOCAL,
                                             .scaling = 2.5f,
                                             .normalise = 1},
                    stream),
         "route");
    must(gpu->route_group(&(krn_cuda_group_params){.experts_chosen = m.experts,
                                                   .out_offsets = m.group_offsets,
                                                   .out_rows = m.group_rows,
                                                   .out_places = m.group_places,
                                                   .out_counts = m.group_counts,
                                                   .rows = rows,
                                                   .chosen = LOCAL,
                                                   .experts = EXPERTS,
                                                   .align = 8},
                          stream),
         "group");
    linear(&l->gate, rows, m.gate);
    linear(&l->up, rows, m.up);
    silu(m.gate, m.up, rows);
    linear(&l->down, rows, m.shared);
    must(gpu->copy(m.codes, m.exchange, placed * (HIDDEN + HIDDEN / 32), stream), "dispatch");
    grouped(&l->expert_gate, rows, m.expert_gate);
    grouped(&l->expert_up, rows, m.expert_up);
    silu(m.expert_gate, m.expert_up, LOCAL * tiled(rows));
    grouped(&l->expert_down, rows, m.expert_out);
    must(gpu->copy(m.exchange, m.expert_out, placed * HIDDEN * 2, stream), "return");
    must(gpu->combine(&(krn_cuda_combine_params){.outputs = m.expert_out,
                                                 .places = m.places,
                                                 .weights = m.weights,
                                                 .shared = m.shared,
                                                 .out = m.x,
                                                 .rows = rows,
                                                 .chosen = LOCAL,
                                                 .hidden = HIDDEN},
                      stream),
         "combine");
}

static void layers_run(int layers, uint32_t rows, uint32_t context, bool head)
{
    for (int i = 0; i < layers; i++) {
        norm(rows, HIDDEN, m.x, m.res, m.n);
        attention(&m.layers[i], rows, context);
        norm(rows, HIDDEN, m.x, m.res, m.n);
        experts(&m.layers[i], rows);
    }
    norm(rows, HIDDEN, m.x, m.res, m.n);
    if (!head)
        return;
    bf16_product(&m.head, m.n, rows, 1, m.head_logits, 1);
    must(gpu->arg_max(
             &(krn_cuda_arg_max_params){
                 .logits = m.head_logits, .out_ids = m.ids, .rows = rows, .n = VOCABULARY},
             stream),
         "arg max");
}

/* ---- measuring ---- */

static int by_time(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static float median_ms(cudaGraphExec_t exec, int layers, uint32_t rows, uint32_t context, bool head)
{
    cudaEvent_t start, end;
    float ms[5];
    must(cudaEventCreate(&start), "event");
    must(cudaEventCreate(&end), "event");
    for (int i = -1; i < 5; i++) {
        must(cudaEventRecord(start, stream), "record");
        if (exec)
            must(cudaGraphLaunch(exec, stream), "launch");
        else
            layers_run(layers, rows, context, head);
        must(cudaEventRecord(end, stream), "record");
        must(cudaEventSynchronize(end), "wait");
        if (i >= 0)
            must(cudaEventElapsedTime(&ms[i], start, end), "time");
    }
    qsort(ms, 5, sizeof *ms, by_time);
    return ms[2];
}

static cudaGraphExec_t graph_of(int layers, uint32_t rows, uint32_t context, bool head,
                                size_t *out_nodes)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
    layers_run(layers, rows, context, head);
    must(cudaStreamEndCapture(stream, &graph), "capture end");
    must(cudaGraphGetNodes(graph, NULL, out_nodes), "nodes");
    must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    cudaGraphDestroy(graph);
    return exec;
}

static void step_row(uint32_t rows, uint32_t context, bool plain)
{
    size_t nodes;
    step_stage(rows, rows, context);
    cudaGraphExec_t exec = graph_of(LAYERS, rows, context, true, &nodes);
    float ms = median_ms(exec, LAYERS, rows, context, true);
    cudaGraphExecDestroy(exec);
    printf("step %3u rows at %6u: %8.3f ms, %7.0f tokens/s, %4zu nodes", rows, context, ms,
           rows / ms * 1e3, nodes);
    if (plain)
        printf(", without a graph %.3f ms", median_ms(NULL, LAYERS, rows, context, true));
    printf("\n");
    fflush(stdout);
}

static void prefill_row(uint32_t context)
{
    size_t nodes;
    step_stage(CHUNK, 1, context);
    cudaGraphExec_t exec = graph_of(LAYERS_TIMED, CHUNK, context, false, &nodes);
    float ms = median_ms(exec, LAYERS_TIMED, CHUNK, context, false) * LAYERS / LAYERS_TIMED;
    cudaGraphExecDestroy(exec);
    printf("prefill %u tokens up to %6u: %8.1f ms, %7.0f tokens/s\n", CHUNK, context, ms,
           CHUNK / ms * 1e3);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char path[4096];
    const char *slash = strrchr(argv[0], '/');
    snprintf(path, sizeof path, "%.*s/libsluice_cuda.so", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    sl_err err;
    krn_cuda_device device;
    if (!sl_is_ok(krn_cuda_load(path, 0, &gpu, &device, &err))) {
        printf("SKIPPED, NOTHING WAS MEASURED: %s\n", err.text);
        return 0;
    }
    bool prefill = argc > 1 && strcmp(argv[1], "prefill") == 0;
    must(cudaStreamCreate(&stream), "stream");
    memory_bytes = device.memory_bytes / 100 * 90;
    must(cudaMalloc((void **)&memory, memory_bytes), "memory");
    layers_take();
    rows_take(prefill ? CHUNK : 128);
    memory_fill();
    printf("%s: %.1f GB in use\n", device.name, memory_used * 1e-9);
    static const uint32_t contexts[] = {4096, 32768, 131072}, rows[] = {1, 8, 32, 128};
    for (int i = 0; i < 3 && prefill; i++)
        prefill_row(contexts[i]);
    for (int i = 0; i < 3 && !prefill; i++)
        for (int j = 0; j < 4; j++)
            step_row(rows[j], contexts[i], j == 0);
    cudaFree(memory);
    return 0;
}
