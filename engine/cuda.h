/* The CUDA backend's parts: cuda.c (memory, batches, faults), cuda_ops.c (operations), cuda_graph.c
 * (repeated runs), cuda_draw.c (draws), cuda_transit.c (pages in and out), and the weights' forms
 * in cuda_weights.c. Internal to engine/. Thread: the engine thread. */
#ifndef ENGINE_CUDA_H
#define ENGINE_CUDA_H

#include "engine/cuda_draw.h"
#include "engine/ops.h"
#include "kernels/cuda/load.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What may meet NaN or infinity: one word a layer and kind, set by the kernels. In the order of a
 * layer, so that the first one set is where it began. */
typedef enum eng_cuda_fault {
    ENG_CUDA_FAULT_NORM,
    ENG_CUDA_FAULT_LINEAR,
    ENG_CUDA_FAULT_LATENT,
    ENG_CUDA_FAULT_KEY,
    ENG_CUDA_FAULT_QUERY,
    ENG_CUDA_FAULT_SCORE,
    ENG_CUDA_FAULT_F32, /* router, weights_proj, head */
    ENG_CUDA_FAULT_ROUTER,
    ENG_CUDA_FAULT_SILU,
    ENG_CUDA_FAULT_COUNT,
} eng_cuda_fault;

#define ENG_CUDA_GRAPHS_MAX 64u

typedef enum eng_cuda_mode {
    ENG_CUDA_MODE_RUN,
    ENG_CUDA_MODE_RECORD, /* operations go into a graph */
    ENG_CUDA_MODE_REPEAT, /* they are in one: only the values they start from are staged */
} eng_cuda_mode;

typedef struct eng_cuda_graph {
    eng_run_shape shape;
    krn_cuda_graph graph; /* NULL: of a shape that was run once */
    uint64_t used;        /* when it was last */
} eng_cuda_graph;

#define ENG_CUDA_OUT_MAX 4096u /* pieces on their way out, between two waits */
#define ENG_CUDA_MARKS   64u

/* cuda_transit.c */
typedef struct eng_cuda_transit {
    krn_cuda_stream stream; /* NULL: no transit memory */
    /* pinned, [ENG_CUDA_OUT_MAX] each: arguments and results of the sums */
    const uint8_t **pieces;
    uint64_t *tweaks, *sums;
    uint64_t **targets; /* [ENG_CUDA_OUT_MAX]: where the sums go in the end */
    uint32_t used;
    krn_cuda_event events[ENG_CUDA_MARKS];
    uint64_t marks;
} eng_cuda_transit;

#define ENG_CUDA_DRAWS_MAX  (ENG_SPANS_MAX * (1 + ENG_DRAFTS_MAX)) /* rows of a run */
#define ENG_CUDA_DRAW_EDITS 1024u /* a row, on average; where they do not fit, the host draws */

/* cuda_draw.c: pinned but for `undefined` */
typedef struct eng_cuda_draws {
    uint32_t row_count;      /* 0: the host draws */
    krn_cuda_draw_row *rows; /* [row_count] */
    krn_cuda_drawn *drawn;   /* [row_count] */
    uint32_t *masks;         /* [row_count][(vocab + 31) / 32] */
    eng_cuda_edits edits;
    uint32_t *undefined; /* device; NULL: none */
} eng_cuda_draws;

typedef struct eng_cuda {
    const krn_cuda_api *api;
    krn_cuda_stream stream;
    /* Small values on their way to the device: written once between two waits, each at its own
     * place of both buffers; a graph finds them there, copied as one. */
    uint8_t *stage, *device_stage;
    size_t stage_bytes, stage_used;
    uint32_t *blocks;      /* [sequences_max][blocks_max] */
    float *rope;           /* [context_max][64] */
    uint32_t *faults;      /* [layers + 1][ENG_CUDA_FAULT_COUNT]; the last for the head */
    uint32_t *host_faults; /* pinned */
    uint32_t fault_count;
    float *scores; /* [score_rows][score_stride] */
    uint32_t score_rows, score_stride;
    uint32_t *expert_counts;
    void *attend_workspace;
    uint32_t *ids;           /* [rows]: highest logits */
    uint32_t *host_ids;      /* pinned */
    uint8_t *mirror;         /* host: what was read of the scratch, at the same offsets */
    void *host_page;         /* what was read of the cache */
    krn_cuda_row *host_rows; /* [rows] */
    /* of the batch begun last */
    const uint32_t *tokens;
    const krn_cuda_row *rows;
    const void *quantised; /* s.codes hold the Q128 of these rows; NULL: of none */
    eng_cuda_mode mode;
    eng_cuda_graph graphs[ENG_CUDA_GRAPHS_MAX];
    eng_cuda_graph *graph; /* of this run, in modes RECORD and REPEAT */
    uint64_t graph_clock;
    uint32_t *ids_out; /* of arg_max, filled by finish */
    uint32_t id_count;
    eng_cuda_transit transit;
    eng_cuda_draws draws;
    char broken[200]; /* the first error of the device; operations do nothing from then on */
} eng_cuda;

static inline eng_cuda *eng_cuda_of(const eng_engine *engine)
{
    return (eng_cuda *)engine->backend;
}
/* Copies a host array into the stage; returns its device address. NULL: the device is broken. */
void *eng_cuda_stage(eng_engine *engine, const void *host, size_t bytes);
/* Whether operations are to be put on the stream. */
static inline bool eng_cuda_launches(const eng_cuda *cuda)
{
    return !cuda->broken[0] && cuda->mode != ENG_CUDA_MODE_REPEAT;
}
/* Keeps the first error. */
void eng_cuda_check(eng_cuda *cuda, int code);
void eng_cuda_wait(eng_cuda *cuda);
uint32_t *eng_cuda_fault_at(const eng_engine *engine, eng_cuda_fault kind);

/* cuda_graph.c: `start` of the table, and the end of a run, before it is waited for. */
void eng_cuda_start(eng_engine *engine, const eng_run_shape *shape);
void eng_cuda_graph_finish(eng_cuda *cuda);
/* All of them: they name the weights. */
void eng_cuda_graphs_forget(eng_engine *engine);

/* cuda_transit.c: as in eng_ops. */
SL_MUST_USE sl_status eng_cuda_transit_create(eng_engine *engine, sl_err *err);
void eng_cuda_transit_destroy(eng_cuda *cuda);
void eng_cuda_pieces_out(eng_engine *engine, const eng_outgoing *pieces, uint32_t count);
bool eng_cuda_out_busy(const eng_engine *engine);
bool eng_cuda_out_wait(eng_engine *engine);
void eng_cuda_page_in(eng_engine *engine, void *page, const void *host);
uint64_t eng_cuda_page_mark(eng_engine *engine);
bool eng_cuda_page_done(eng_engine *engine, uint64_t mark, bool wait);

/* cuda_draw.c: draw_row, draw and drawn as in eng_ops. */
SL_MUST_USE sl_status eng_cuda_draws_create(eng_engine *engine, sl_err *err);
void eng_cuda_draws_destroy(eng_cuda *cuda);
bool eng_cuda_draw_row(eng_engine *engine, uint32_t row, const mdl_sampling *params,
                       const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                       const uint32_t *allowed, bool likeliest);
void eng_cuda_draw(eng_engine *engine, const float *logits, uint32_t rows);
bool eng_cuda_drawn(eng_engine *engine, uint32_t row, eng_sampled *out_sampled);

/* cuda_weights.c */
sl_status eng_cuda_model_open(eng_model *model, const char *object, sl_err *err);
size_t eng_cuda_matrix_bytes(const eng_model *model, krn_matrix_kind kind, uint32_t n, uint32_t k);
void eng_cuda_pack_fp8(const eng_model *model, const uint8_t *codes, const float *scales,
                       uint32_t n, uint32_t k, void *memory, krn_matrix *out_matrix);
void eng_cuda_pack_bf16(const eng_model *model, const uint16_t *weights, size_t n_stride,
                        size_t k_stride, uint32_t n, uint32_t k, void *memory,
                        krn_matrix *out_matrix);
sl_status eng_cuda_upload(const eng_model *model, void *to, const void *host, size_t bytes,
                          sl_err *err);

/* cuda_ops.c: as in eng_ops. */
void eng_cuda_embed(eng_engine *engine, const eng_batch *batch, void *out_x);
bool eng_cuda_norm(eng_engine *engine, const void *x, const void *res, const void *weight,
                   uint32_t rows, uint32_t n, void *out, void *out_res);
bool eng_cuda_linear(eng_engine *engine, const void *input, uint32_t rows,
                     const eng_product *products, uint32_t count);
void eng_cuda_linear_f32(eng_engine *engine, const krn_matrix *matrix, const void *input,
                         const uint32_t *row_index, uint32_t rows, float *output);
void eng_cuda_heads(eng_engine *engine, const eng_heads_product *product);
void eng_cuda_silu_mul(eng_engine *engine, void *gate, const void *up, uint32_t rows, uint32_t n);
bool eng_cuda_put(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                  const eng_batch *batch);
bool eng_cuda_select(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                     bool scored);
void eng_cuda_rope_queries(eng_engine *engine, const eng_batch *batch);
void eng_cuda_attend(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                     uint32_t first, uint32_t rows);
bool eng_cuda_route(eng_engine *engine, const eng_layer *layer, uint32_t rows);
bool eng_cuda_experts(eng_engine *engine, const eng_layer *layer, uint32_t rows);
void eng_cuda_combine(eng_engine *engine, uint32_t rows, void *out_y);
void eng_cuda_logits_out(eng_engine *engine, uint32_t rows);
void eng_cuda_arg_max(eng_engine *engine, uint32_t rows, uint32_t *out_ids);

#ifdef __cplusplus
}
#endif
#endif
