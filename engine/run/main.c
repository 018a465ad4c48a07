/* sluice-run: one model, one prompt, one process: the reference of "one answer".
 *
 * Thread: main. Streams text to stdout, or prints one JSON object (--json). Exit 0, 1 on failure, 2
 * on misuse. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"
#include "base/rng.h"
#include "engine/run/generate.h"
#include "engine/run/input.h"
#include "engine/run/options.h"

static int tell(const sl_err *err, int exit_code)
{
    fprintf(stderr, "sluice-run: %s\n", err->text);
    return exit_code;
}

/* ---- sampling parameters ---- */

static sl_status parse_seed(const char *text, uint64_t *out_seed, sl_err *err)
{
    char *end = NULL;
    errno = 0;
    unsigned long long seed = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        return sl_fail(err, SL_INVALID, "--seed: \"%s\" is not a 64-bit number", text);
    *out_seed = seed;
    return sl_ok();
}

static sl_status load_sampling(const eng_run_options *options, const sl_config *config,
                               int32_t vocab_size, mdl_sampling *out_sampling, sl_err *err)
{
    mdl_sampling sampling;
    SL_TRY(mdl_sampling_load(options->model, &sampling, err));
    if (sl_config_is_set(config, "temperature"))
        sampling.temperature = (float)options->temperature;
    if (sl_config_is_set(config, "top-p"))
        sampling.top_p = (float)options->top_p;
    if (sl_config_is_set(config, "top-k"))
        sampling.top_k = (int32_t)options->top_k;
    if (sl_config_is_set(config, "min-p"))
        sampling.min_p = (float)options->min_p;
    sampling.max_tokens = (int32_t)options->max_tokens;
    sampling.logprob_count = (int32_t)options->logprobs;
    sampling.ignore_eos = options->ignore_eos;
    sampling.seed_given = options->seed != NULL;
    if (options->seed)
        SL_TRY(parse_seed(options->seed, &sampling.seed, err));
    else
        sampling.seed = sl_random_u64() >> 11; /* as routers draw it: exact as a JSON number */
    SL_TRY(mdl_sampling_check(&sampling, vocab_size, err));
    *out_sampling = sampling;
    return sl_ok();
}

/* ---- output ---- */

static void print_text(void *context, const char *text, size_t size)
{
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

static void append_ids(sl_buf *out, const char *name, const uint32_t *ids, uint32_t count)
{
    sl_buf_printf(out, "\"%s\":[", name);
    for (uint32_t i = 0; i < count; i++)
        sl_buf_printf(out, "%s%u", i ? "," : "", ids[i]);
    sl_buf_puts(out, "]");
}

static void append_logprobs(sl_buf *out, const eng_run_result *result, uint32_t made)
{
    sl_buf_puts(out, ",\"logprobs\":[");
    for (uint32_t i = 0; i < made; i++) {
        const eng_sampled *sampled = &result->sampled[i];
        sl_buf_printf(out, "%s{\"id\":%u,\"logprob\":%.9g,\"top\":[", i ? "," : "", sampled->id,
                      (double)sampled->logprob);
        for (uint32_t j = 0; j < sampled->top_count; j++)
            sl_buf_printf(out, "%s{\"id\":%u,\"logprob\":%.9g}", j ? "," : "", sampled->top[j].id,
                          (double)sampled->top[j].logprob);
        sl_buf_puts(out, "]}");
    }
    sl_buf_puts(out, "]");
}

static void append_blob(sl_buf *out, const char *name, sl_buf *head, const sl_buf *rows)
{
    sl_buf_append(head, rows->data, rows->size);
    sl_buf_printf(out, ",\"%s\":\"", name);
    sl_buf_base64(out, head->data, head->size);
    sl_buf_putc(out, '"');
    sl_buf_clear(head);
}

/* "prompt_logprobs":[null, {..}, ..] of the prompt's tokens; "prompt_routing" as the router writes
 * it. */
static void append_prompt_rows(sl_buf *out, const eng_run_result *result)
{
    const eng_prompt_rows *rows = result->prompt_rows;
    uint32_t alternatives = (uint32_t)rows->want.logprob_count;
    if (rows->scores)
        sl_buf_puts(out, ",\"prompt_logprobs\":[null");
    for (uint32_t i = 1; rows->scores && i < rows->want.end; i++) {
        mdl_score_top top[ENG_LOGPROBS_MAX];
        mdl_score score;
        bool ok = mdl_score_unpack(rows->scores + (size_t)(i - 1) * rows->score_bytes, alternatives,
                                   UINT32_MAX, top, &score);
        sl_assert(ok);
        sl_buf_putc(out, ',');
        sl_buf_printf(out, "{\"id\":%u,\"logprob\":%.9g,\"rank\":%u,\"top\":[", result->ids[i],
                      (double)score.logprob, score.rank);
        for (uint32_t j = 0; j < score.top_count; j++)
            sl_buf_printf(out, "%s{\"id\":%u,\"logprob\":%.9g}", j ? "," : "", top[j].id,
                          (double)top[j].logprob);
        sl_buf_puts(out, "]}");
    }
    if (rows->scores)
        sl_buf_putc(out, ']');
    if (!rows->routing)
        return;
    sl_buf bytes,
        all = {.data = (char *)rows->routing, .size = (size_t)rows->want.end * rows->row_bytes};
    mdl_routing_layout layout;
    sl_buf_init(&bytes, 0);
    mdl_routing_layout_init(&result->shape, &layout);
    mdl_routing_header(&layout, rows->want.end, &bytes);
    append_blob(out, "prompt_routing", &bytes, &all);
    sl_buf_fini(&bytes);
}

/* As the router writes it. */
static void append_handout(sl_buf *out, const eng_run_result *result, uint32_t count)
{
    sl_buf bytes;
    sl_buf_init(&bytes, 0);
    sl_buf_puts(out, ",\"sluice\":{\"first_token\":0,\"weights_versions\":[[0,\"1\"]]");
    mdl_routing_layout layout;
    mdl_routing_layout_init(&result->shape, &layout);
    mdl_routing_header(&layout, count, &bytes);
    append_blob(out, "routing", &bytes, &result->routing);
    mdl_mask_header((uint32_t)result->shape.vocab_size, count, &bytes);
    append_blob(out, "sampling_mask", &bytes, &result->masks);
    sl_buf_putc(out, '}');
    sl_buf_fini(&bytes);
}

static void print_json(const eng_run_result *result, const mdl_sampling *sampling)
{
    uint32_t given = result->prompt_count + result->forced_count;
    sl_buf out;
    sl_buf_init(&out, 0);
    sl_buf_putc(&out, '{');
    append_ids(&out, "prompt_ids", result->ids, result->prompt_count);
    sl_buf_putc(&out, ',');
    if (result->forced_count > 0) {
        append_ids(&out, "forced_ids", result->ids + result->prompt_count, result->forced_count);
        sl_buf_putc(&out, ',');
    }
    append_ids(&out, "ids", result->ids + given, result->count - given);
    sl_buf_puts(&out, ",\"text\":");
    sl_json_write_string(&out, result->text.data ? result->text.data : "", result->text.size);
    sl_buf_printf(&out, ",\"finish_reason\":\"%s\",\"seed\":%llu", result->finish_reason,
                  (unsigned long long)sampling->seed);
    if (result->sampled)
        append_logprobs(&out, result, result->count - given);
    if (result->prompt_rows)
        append_prompt_rows(&out, result);
    if (result->masks.size > 0)
        append_handout(&out, result, result->count - given);
    if (result->drafted > 0)
        sl_buf_printf(&out, ",\"mtp\":{\"steps\":%u,\"drafted\":%u,\"accepted\":%u}", result->steps,
                      result->drafted, result->accepted);
    sl_buf_printf(&out, ",\"memory\":{\"cache\":%llu,\"scratch\":%llu}",
                  (unsigned long long)result->cache_bytes,
                  (unsigned long long)result->scratch_bytes);
    sl_buf_printf(&out, ",\"timing\":{\"prefill_ms\":%.3f,\"decode_ms\":%.3f}}\n",
                  result->prefill_ms, result->decode_ms);
    fwrite(out.data, 1, out.size, stdout);
    sl_buf_fini(&out);
}

/* ---- running ---- */

/* What only the object holds would be computed for nobody. */
static sl_status check_output(const eng_run_options *options, sl_err *err)
{
    if (!options->json && (options->logprobs >= 0 || options->prompt_logprobs >= 0 ||
                           options->prompt_routing || options->handout))
        return sl_fail(err, SL_INVALID,
                       "--logprobs, --prompt-logprobs, --prompt-routing and --handout need --json");
    return sl_ok();
}

static int run_prompt(const eng_run_options *options, const sl_config *config,
                      const mdl_tokenizer *tokenizer)
{
    sl_err err;
    mdl_ids prompt = {0};
    mdl_sampling sampling;
    eng_run_result result = {0};
    int code = 0;
    eng_run_generate_args args = {
        .options = options,
        .tokenizer = tokenizer,
        .sampling = &sampling,
        .prompt = &prompt,
        .on_text = options->json ? NULL : print_text,
    };
    if (!sl_is_ok(check_output(options, &err)) ||
        !sl_is_ok(load_sampling(options, config, MDL_VOCAB_MAX, &sampling, &err)) ||
        !sl_is_ok(eng_run_input(options, tokenizer, &prompt, &args.grammar, &err)))
        code = tell(&err, ENG_RUN_EXIT_MISUSE);
    else if (!sl_is_ok(eng_run_generate(&args, &result, &err)))
        code = tell(&err, EXIT_FAILURE);
    else if (options->json)
        print_json(&result, &sampling);
    else
        printf("\n");
    fflush(stdout); /* the text's line ends before the seed's begins; main looks for errors */
    if (code == 0 && !options->json && sampling.temperature > 0.0f && !sampling.seed_given)
        fprintf(stderr, "sluice-run: seed %llu\n", (unsigned long long)sampling.seed);
    eng_run_result_fini(&result);
    mdl_grammar_destroy(args.grammar);
    mdl_ids_fini(&prompt);
    return code;
}

static int run(const eng_run_options *options, const sl_config *config)
{
    sl_err err;
    if (options->tokenize)
        return sl_is_ok(eng_run_tokenize(options, &err)) ? 0 : tell(&err, EXIT_FAILURE);
    if (options->detokenize)
        return sl_is_ok(eng_run_detokenize(options, &err)) ? 0 : tell(&err, EXIT_FAILURE);
    if (!options->model) {
        fprintf(stderr, "sluice-run: --model is missing (see --help)\n");
        return ENG_RUN_EXIT_MISUSE;
    }
    if (options->layers)
        return sl_is_ok(eng_run_layers(options, &err)) ? 0 : tell(&err, EXIT_FAILURE);
    mdl_tokenizer *tokenizer = NULL;
    if (!sl_is_ok(sl_wrap(&err, mdl_tokenizer_load(options->model, &tokenizer, &err), "model %s",
                          options->model)))
        return tell(&err, EXIT_FAILURE);
    int code = run_prompt(options, config, tokenizer);
    mdl_tokenizer_destroy(tokenizer);
    return code;
}

int main(int argc, char **argv)
{
    eng_run_options options = {0};
    sl_config *config = NULL;
    int code = 0;
    if (eng_run_options_parse(argc, argv, &options, &config, &code) == SL_CONFIG_RUN)
        code = run(&options, config);
    sl_config_destroy(config);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "sluice-run: writing to stdout failed\n");
        code = code ? code : EXIT_FAILURE;
    }
    return code;
}
