/* What the engine tests share: a model and engine of a nano checkpoint, token streams, prefill. */
#ifndef TESTS_UNIT_ENGINE_SUPPORT_H
#define TESTS_UNIT_ENGINE_SUPPORT_H

#include "engine/cache.h"
#include "tests/unit/engine/nano.h"

typedef struct rig {
    nano files;
    eng_model *model;
    eng_engine *engine;
} rig;

/* Path of libsluice_cuda.so, where these tests are to run on a device (tests/cuda/run): the cache
 * is then in host memory, so that they may look into it. */
static inline const char *rig_cuda(void)
{
    return getenv("SLUICE_TEST_CUDA");
}

static inline eng_engine *rig_engine(const rig *r, const eng_options *options)
{
    eng_engine *engine = NULL;
    sl_err err;
    eng_options there = *options;
    there.cache_on_host = rig_cuda() != NULL;
    assert_ok(eng_engine_create(r->model, &there, &engine, &err), &err);
    return engine;
}

static inline void rig_open_options(rig *r, const nano_options *files, const eng_options *options)
{
    sl_err err;
    nano_make(&r->files, files);
    eng_model_options model_options = {
        .dir = r->files.dir,
        .threads = 2,
        .backend = rig_cuda() ? ENG_BACKEND_CUDA : ENG_BACKEND_CPU,
        .cuda_object = rig_cuda(),
    };
    r->model = NULL;
    assert_ok(eng_model_open(&model_options, &r->model, &err), &err);
    r->engine = rig_engine(r, options);
}

static inline void rig_open(rig *r)
{
    rig_open_options(r, NULL, &(eng_options){.kv_bytes = 64 << 20, .rows_max = 320, .threads = 2});
}

static inline void rig_close(rig *r)
{
    eng_engine_destroy(r->engine);
    eng_model_close(r->model);
    nano_remove(&r->files);
}

/* Token i of stream `stream`. */
static inline uint32_t stream_token(uint32_t stream, uint32_t i)
{
    return (uint32_t)(sl_keyed_uniform(stream, i, 5) * NANO_VOCAB);
}

static inline void stream_fill(uint32_t stream, uint32_t count, uint32_t *out_tokens)
{
    for (uint32_t i = 0; i < count; i++)
        out_tokens[i] = stream_token(stream, i);
}

static inline eng_sequence *sequence_open(eng_engine *engine, uint32_t capacity)
{
    eng_sequence *sequence = NULL;
    sl_err err;
    assert_ok(eng_sequence_open(engine, capacity, &sequence, &err), &err);
    return sequence;
}

/* Appends tokens in chunks; the last row's logits to out_logits (NULL: none). */
static inline void sequence_feed(eng_engine *engine, eng_sequence *sequence, const uint32_t *tokens,
                                 uint32_t count, uint32_t chunk, float *out_logits)
{
    sl_err err;
    for (uint32_t at = 0; at < count; at += chunk) {
        eng_span span = {.sequence = sequence,
                         .tokens = tokens + at,
                         .token_count = count - at < chunk ? count - at : chunk,
                         .logits = ENG_LOGITS_LAST,
                         .routing = true};
        assert_ok(eng_step(engine, &span, 1, NULL, NULL, &err), &err);
    }
    if (out_logits)
        memcpy(out_logits, eng_step_logits(engine, 0), NANO_VOCAB * sizeof(float));
}

/* All bytes of a sequence's pages, one after another; the caller frees. */
static inline uint8_t *sequence_bytes(eng_engine *engine, const eng_sequence *sequence,
                                      size_t *out_size)
{
    const eng_cache_layout *layout = eng_engine_layout(engine);
    uint32_t blocks = (eng_sequence_length(sequence) + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS;
    uint8_t *bytes = sl_alloc(blocks, layout->page_bytes, "pages of a test");
    for (uint32_t i = 0; i < blocks; i++)
        memcpy(bytes + i * layout->page_bytes,
               eng_engine_cache_base(engine) + eng_sequence_page(sequence, i) * layout->page_bytes,
               layout->page_bytes);
    *out_size = blocks * layout->page_bytes;
    return bytes;
}

#endif
