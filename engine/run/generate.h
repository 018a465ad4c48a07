/* One prompt through one engine: prefill in chunks, forced tokens, then sampling. Thread: main. */
#ifndef ENGINE_RUN_GENERATE_H
#define ENGINE_RUN_GENERATE_H

#include "base/bytes.h"
#include "engine/engine.h"
#include "engine/prompt.h"
#include "engine/run/options.h"
#include "model/grammar.h"
#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_run_result {
    uint32_t *ids; /* prompt, forced, generated */
    uint32_t prompt_count;
    uint32_t forced_count;
    uint32_t count;
    eng_sampled *sampled; /* of the generated ones; with --logprobs only */
    sl_buf routing;       /* rows of the generated ones, with --handout; model/handout.h */
    sl_buf masks;
    eng_prompt_rows *prompt_rows; /* NULL: neither --prompt-logprobs nor --prompt-routing */
    mdl_shape shape;
    sl_buf text; /* of the generated ones, end of sentence excluded */
    const char *finish_reason;
    uint32_t steps; /* of the model after the prompt */
    uint32_t drafted;
    uint32_t accepted;
    uint64_t cache_bytes;   /* that the sequence could bind */
    uint64_t scratch_bytes; /* that steps could touch */
    double prefill_ms;
    double decode_ms;
} eng_run_result;

typedef void (*eng_run_text_fn)(void *context, const char *text, size_t size);

typedef struct eng_run_generate_args {
    const eng_run_options *options;
    const mdl_tokenizer *tokenizer;
    const mdl_sampling *sampling;
    const mdl_ids *prompt;
    mdl_grammar *grammar;    /* NULL: any answer */
    eng_run_text_fn on_text; /* NULL: not streamed */
    void *context;
} eng_run_generate_args;

/* result: zeroed; eng_run_result_fini also after a failure. */
SL_MUST_USE sl_status eng_run_generate(const eng_run_generate_args *args, eng_run_result *result,
                                       sl_err *err);
void eng_run_result_fini(eng_run_result *result);
/* --layers A:B --hidden-in FILE --dump FILE */
SL_MUST_USE sl_status eng_run_layers(const eng_run_options *options, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
