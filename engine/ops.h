/* What a backend does: the operations of the layer program, and the memory they work on. Internal
 * to engine/.
 *
 * One table a backend (cpu.c, cuda.c); the program (layer.c, mtp.c, step.c) is written once. `rows`
 * pointers are the backend's memory: only these operations look into it. An operation may return
 * before it has run: `false`, NaN or infinity met, may come from a later one, at the latest from
 * `finish`; then engine->fault names the operation and engine->step_layer the layer. Thread: the
 * engine thread. */
#ifndef ENGINE_OPS_H
#define ENGINE_OPS_H

#include "engine/state.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_PRODUCTS_MAX 3u

/* One matrix over all rows of a shared input. */
typedef struct eng_product {
    const krn_matrix *matrix;
    void *output; /* [rows][matrix->n] */
} eng_product;

/* matrices[h] over column slice h of each input row (W_UK, W_UV). */
typedef struct eng_heads_product {
    const krn_matrix *matrices; /* [heads] */
    const void *input;          /* row r, head h at (r * heads + h) * input_width */
    uint32_t input_width;
    void *output; /* [rows][heads][n] */
    uint32_t rows;
} eng_heads_product;

/* `count` pieces of `bytes` each, from_stride and to_stride bytes apart. */
typedef struct eng_pieces {
    void *to;
    const void *from;
    size_t to_stride, from_stride, bytes;
    uint32_t count;
} eng_pieces;

/* A piece of a page on its way to host memory, and the sum made of it. */
typedef struct eng_outgoing {
    void *to;         /* host */
    const void *from; /* the cache */
    size_t bytes;     /* the same in one call */
    uint64_t tweak;
    uint64_t *out_sum; /* host; set when it is there */
} eng_outgoing;

/* Two runs of equal shape put the same operations on the same places, so that a backend may record
 * one and repeat it. All fields of one type: no padding, comparable as bytes. */
typedef struct eng_run_shape {
    uint32_t plain; /* the host looks into it on the way: nothing to repeat */
    uint32_t drafts;
    uint32_t rows, logits, mtp_rows;
    uint32_t stored; /* rows of h_final that go into the cache */
    uint32_t scored;
    uint32_t slots; /* no row sees a slot from here on: a power of two */
    uint32_t drawn; /* rows of logits that tokens are drawn from; `logits`: that leave the device */
} eng_run_shape;

/* `experts` over the ranks of an instance, in its parts and in this order: what a rank does between
 * `send` and `experts`, and between that and `receive`, hides what is on its way. `rows` of its own
 * may be 0: the others need its experts. false: a fault, or ranks->lost. */
typedef struct eng_exchange_ops {
    bool (*prepare)(eng_engine *engine, uint32_t rows); /* s.n in the form that travels */
    bool (*send)(eng_engine *engine, const eng_layer *layer, uint32_t rows);
    bool (*shared)(eng_engine *engine, const eng_layer *layer, uint32_t rows);  /* anywhere */
    bool (*experts)(eng_engine *engine, const eng_layer *layer, uint32_t rows); /* of all ranks */
    bool (*receive)(eng_engine *engine); /* then `combine` may run */
} eng_exchange_ops;

struct eng_ops {
    const char *(*numerics_id)(void);
    uint32_t expert_align; /* the rows of an expert start at a multiple of it */
    bool resident;         /* weights are copied to the backend's memory, all of them */

    /* Weights. object: the backend's shared object, NULL = by the loader's search path. The forms
     * are made in host memory. */
    sl_status (*model_open)(eng_model *model, const char *object, sl_err *err);
    size_t (*matrix_bytes)(const eng_model *model, krn_matrix_kind kind, uint32_t n, uint32_t k);
    void (*pack_fp8)(const eng_model *model, const uint8_t *codes, const float *scales, uint32_t n,
                     uint32_t k, void *memory, krn_matrix *out_matrix);
    void (*pack_bf16)(const eng_model *model, const uint16_t *weights, size_t n_stride,
                      size_t k_stride, uint32_t n, uint32_t k, void *memory,
                      krn_matrix *out_matrix);
    sl_status (*upload)(const eng_model *model, void *to, const void *host, size_t bytes,
                        sl_err *err); /* resident ones; waits */

    /* Zeroed memory of the backend; of kind HOST: the host may look into it, between steps. */
    sl_status (*memory_create)(const eng_model *model, eng_memory kind, size_t bytes,
                               void **out_memory, sl_err *err);
    void (*memory_destroy)(const eng_model *model, eng_memory kind, void *memory, size_t bytes);
    /* The engine's part of the backend, once its scratch is there. */
    sl_status (*create)(eng_engine *engine, sl_err *err);
    void (*destroy)(eng_engine *engine);
    /* Other weights are in the place of the model's; between steps. */
    void (*reloaded)(eng_engine *engine);
    void (*clear)(eng_engine *engine, const eng_pieces *pieces); /* `from` is not looked at */
    void (*copy)(eng_engine *engine, const eng_pieces *pieces);
    /* s.moves [count] of `bytes` each. unless_fault: not when an operation of the run met NaN. */
    void (*move)(eng_engine *engine, uint32_t count, size_t bytes, bool unless_fault);
    void (*write)(eng_engine *engine, void *to, const void *host, size_t bytes);
    void (*fetch)(eng_engine *engine, void *host, const void *at, size_t bytes); /* waits */
    /* As fetch, to memory of the backend's own: until the next read of the same place. When the
     * device failed, engine->broken is set: then nothing that was read may be used. */
    void *(*read)(eng_engine *engine, void *at, size_t bytes);
    /* Before a step's operations look at a sequence's block table, after it was changed. */
    void (*bind)(eng_engine *engine, const eng_sequence *sequence);

    /* Transit pages, which are memory of kind HOST. These copies may run beside the operations;
     * the rows they read rest, and pages they write are in no step. */
    void (*pieces_out)(eng_engine *engine, const eng_outgoing *pieces, uint32_t count);
    bool (*out_busy)(const eng_engine *engine);
    bool (*out_wait)(eng_engine *engine); /* false: the device failed */
    void (*page_in)(eng_engine *engine, void *page, const void *host);
    uint64_t (*page_mark)(eng_engine *engine);
    /* Whether all is there that went in before the mark, or the device failed. */
    bool (*page_done)(eng_engine *engine, uint64_t mark, bool wait);

    /* A run of operations up to `finish`, of a shape. */
    void (*start)(eng_engine *engine, const eng_run_shape *shape);
    /* Tokens, rows and rope table of the rows that the operations until the next begin run over. */
    void (*begin)(eng_engine *engine, const eng_batch *batch);
    bool (*finish)(eng_engine *engine); /* waits for all of it */

    void (*embed)(eng_engine *engine, const eng_batch *batch, void *out_x);
    bool (*norm)(eng_engine *engine, const void *x, const void *res, const void *weight,
                 uint32_t rows, uint32_t n, void *out, void *out_res);
    /* input [rows][k], k of every matrix; quantised once for all products. */
    bool (*linear)(eng_engine *engine, const void *input, uint32_t rows,
                   const eng_product *products, uint32_t count);
    /* f32 output in all numerics: router, weights_proj, head. row_index: host, or NULL. */
    void (*linear_f32)(eng_engine *engine, const krn_matrix *matrix, const void *input,
                       const uint32_t *row_index, uint32_t rows, float *output);
    void (*heads)(eng_engine *engine, const eng_heads_product *product);
    void (*silu_mul)(eng_engine *engine, void *gate, const void *up, uint32_t rows, uint32_t n);
    /* Latent and index rows of the batch into the cache, from s.kv and s.ik. */
    bool (*put)(eng_engine *engine, const eng_layer *layer, const krn_cache *cache,
                const eng_batch *batch);
    /* s.lists and s.list_counts; scored: s.iq and s.wt are there. */
    bool (*select)(eng_engine *engine, const krn_cache *cache, const eng_batch *batch, bool scored);
    void (*rope_queries)(eng_engine *engine, const eng_batch *batch);
    /* Rows [first, first + rows) of the batch: s.q_latent -> s.o. */
    void (*attend)(eng_engine *engine, const krn_cache *cache, const eng_batch *batch,
                   uint32_t first, uint32_t rows);
    /* s.router_logits -> s.experts, s.expert_weights, and the rows of each expert. */
    bool (*route)(eng_engine *engine, const eng_layer *layer, uint32_t rows);
    /* s.n -> s.down (rows stacked by expert) and s.shared_out. */
    bool (*experts)(eng_engine *engine, const eng_layer *layer, uint32_t rows);
    const eng_exchange_ops *exchange; /* NULL: the backend works alone only */
    void (*combine)(eng_engine *engine, uint32_t rows, void *out_y);
    bool (*finite)(eng_engine *engine, const float *values, size_t count);
    /* Brings the first `rows` of s.logits to engine->host_logits; there after finish. NULL:
     * host_logit_rows is 0. */
    void (*logits_out)(eng_engine *engine, uint32_t rows);
    /* Draws in a run; NULL: the host draws. First all rows of the run, in order: how row `row` is
     * drawn, arguments as eng_sample's; false: the host must. likeliest: no matter what temperature
     * says. params NULL: it is not drawn. */
    bool (*draw_row)(eng_engine *engine, uint32_t row, const mdl_sampling *params,
                     const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                     const uint32_t *allowed, bool likeliest);
    void (*draw)(eng_engine *engine, const float *logits, uint32_t rows);
    /* After finish. false: the host must draw. */
    bool (*drawn)(eng_engine *engine, uint32_t row, eng_sampled *out_sampled);
    /* Highest of each row of s.logits, ties to the lowest id; there after finish. */
    void (*arg_max)(eng_engine *engine, uint32_t rows, uint32_t *out_ids);
};

extern const eng_ops eng_ops_cpu;
extern const eng_ops eng_ops_cuda;

/* Row `row` of a buffer of rows of `width` elements. */
static inline void *eng_row_at(const eng_engine *engine, void *rows, size_t row, size_t width)
{
    return (uint8_t *)rows + row * width * engine->element_bytes;
}

/* Rows of the experts' stacked inputs and outputs, at most. */
static inline size_t eng_places_max(const eng_engine *engine)
{
    const mdl_shape *shape = &engine->model->shape;
    size_t align = engine->ops->expert_align;
    size_t rows = (size_t)engine->rows_max * (engine->ranks ? engine->model->ep_size : 1);
    size_t places =
        rows * (size_t)shape->experts_per_token + (size_t)shape->expert_count * (align - 1);
    return (places + align - 1) / align * align;
}

static inline size_t eng_hidden_bytes(const eng_engine *engine)
{
    return (size_t)engine->model->shape.hidden_size * engine->element_bytes;
}

#ifdef __cplusplus
}
#endif
#endif
