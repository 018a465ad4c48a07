/* The option table of sluice-run, and lists of numbers. Thread: main. Reads no file. */
#include "engine/run/options.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"

#define AT(field) offsetof(eng_run_options, field)

static const char *const NUMERICS_NAMES[] = {"fp8", "plain", NULL};

static const char *const BACKEND_NAMES[] = {"cpu", "cuda", NULL};

static const sl_option OPTIONS[] = {
    {.name = "model",
     .section = "Model",
     .type = SL_OPTION_STRING,
     .offset = AT(model),
     .help = "model directory (config.json, tokenizer.json, safetensors)"},
    {.name = "numerics",
     .section = "Model",
     .type = SL_OPTION_CHOICE,
     .offset = AT(numerics),
     .default_text = "fp8",
     .choices = NUMERICS_NAMES,
     .help = "fp8: the model's semantics with all roundings; plain: float32 throughout"},
    {.name = "backend",
     .section = "Model",
     .type = SL_OPTION_CHOICE,
     .offset = AT(backend),
     .default_text = "cpu",
     .choices = BACKEND_NAMES,
     .help = "cuda: a Hopper GPU through libsluice_cuda.so (make cuda); another numerics id"},
    {.name = "cuda-library",
     .section = "Model",
     .type = SL_OPTION_STRING,
     .offset = AT(cuda_library),
     .help = "path of libsluice_cuda.so [the loader's search path]"},
    {.name = "threads",
     .section = "Model",
     .type = SL_OPTION_INT,
     .offset = AT(threads),
     .default_text = "0",
     .max = 1024,
     .help = "CPU threads; 0 = all cores"},
    {.name = "kv-memory",
     .section = "Model",
     .type = SL_OPTION_BYTES,
     .offset = AT(kv_memory),
     .default_text = "0",
     .help = "cache memory; 0 = what the prompt and --max-tokens need"},
    {.name = "chunk-tokens",
     .section = "Model",
     .type = SL_OPTION_INT,
     .offset = AT(chunk_tokens),
     .default_text = "256",
     .min = 1,
     .max = ENG_BATCH_ROWS_MAX,
     .help = "prompt tokens of one step; changes speed, never the answer"},
    {.name = "chat",
     .section = "Prompt",
     .type = SL_OPTION_BOOL,
     .offset = AT(chat),
     .default_text = "false",
     .help = "the prompt is a user's message; without it, it is continued as raw text"},
    {.name = "thinking",
     .section = "Prompt",
     .type = SL_OPTION_BOOL,
     .offset = AT(thinking),
     .default_text = "false",
     .help = "chat: the model thinks before it answers"},
    {.name = "system",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(system),
     .help = "chat: text of the system message"},
    {.name = "tools",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(tools),
     .help = "chat: JSON file with an array of tools (OpenAI form)"},
    {.name = "messages",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(messages),
     .help = "JSON file with messages (OpenAI form), or an object with messages and tools"},
    {.name = "plain-content",
     .section = "Prompt",
     .type = SL_OPTION_BOOL,
     .offset = AT(plain_content),
     .default_text = "true",
     .help = "special tokens inside message contents count as text, as the router does"},
    {.name = "prompt-file",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(prompt_file),
     .help = "read the prompt from a file (- = stdin)"},
    {.name = "ids",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(ids),
     .help = "token ids of the whole prompt, nothing added: 0,464,277"},
    {.name = "force-ids",
     .section = "Prompt",
     .type = SL_OPTION_STRING,
     .offset = AT(force_ids),
     .help = "tokens fed one at a time after the prompt before the model chooses"},
    {.name = "max-tokens",
     .section = "Sampling",
     .type = SL_OPTION_INT,
     .offset = AT(max_tokens),
     .default_text = "256",
     .min = 1,
     .max = 1 << 20,
     .help = "most tokens to generate"},
    {.name = "temperature",
     .section = "Sampling",
     .type = SL_OPTION_DOUBLE,
     .offset = AT(temperature),
     .help = "0 = always the likeliest token [generation_config.json]"},
    {.name = "top-p",
     .section = "Sampling",
     .type = SL_OPTION_DOUBLE,
     .offset = AT(top_p),
     .help = "smallest set of tokens with this probability [generation_config.json]"},
    {.name = "top-k",
     .section = "Sampling",
     .type = SL_OPTION_INT,
     .offset = AT(top_k),
     .max = INT32_MAX,
     .help = "only the k likeliest tokens; 0 = off [generation_config.json]"},
    {.name = "min-p",
     .section = "Sampling",
     .type = SL_OPTION_DOUBLE,
     .offset = AT(min_p),
     .help = "only tokens at least this likely, relative to the best; 0 = off"},
    {.name = "seed",
     .section = "Sampling",
     .type = SL_OPTION_STRING,
     .offset = AT(seed),
     .help = "64-bit number; drawn and reported when not given"},
    {.name = "logprobs",
     .section = "Sampling",
     .type = SL_OPTION_INT,
     .offset = AT(logprobs),
     .default_text = "-1",
     .min = -1,
     .max = ENG_LOGPROBS_MAX,
     .help = "with --json: log-probabilities and this many alternatives; -1 = none"},
    {.name = "ignore-eos",
     .section = "Sampling",
     .type = SL_OPTION_BOOL,
     .offset = AT(ignore_eos),
     .default_text = "false",
     .help = "go on after the end-of-sentence token"},
    {.name = "mtp-depth",
     .section = "Sampling",
     .type = SL_OPTION_INT,
     .offset = AT(mtp_depth),
     .default_text = "0",
     .min = 0,
     .max = ENG_DRAFTS_MAX,
     .help = "tokens drafted ahead in a step; never changes the answer; none with --dump"},
    {.name = "json-schema",
     .section = "Form of the answer",
     .type = SL_OPTION_STRING,
     .offset = AT(json_schema),
     .help = "JSON that this schema accepts: a file, or the schema itself ({..})"},
    {.name = "json-object",
     .section = "Form of the answer",
     .type = SL_OPTION_BOOL,
     .offset = AT(json_object),
     .default_text = "false",
     .help = "a JSON object"},
    {.name = "regex",
     .section = "Form of the answer",
     .type = SL_OPTION_STRING,
     .offset = AT(regex),
     .help = "text that is all of this expression"},
    {.name = "choice",
     .section = "Form of the answer",
     .type = SL_OPTION_STRING,
     .offset = AT(choice),
     .help = "one of these texts: A,B,.. (with commas inside: a JSON array)"},
    {.name = "json",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print one JSON object at the end instead of streaming text"},
    {.name = "prompt-logprobs",
     .section = "Output",
     .type = SL_OPTION_INT,
     .offset = AT(prompt_logprobs),
     .default_text = "-1",
     .min = -1,
     .max = ENG_LOGPROBS_MAX,
     .help = "with --json: log-probabilities of the prompt's tokens and this many alternatives"},
    {.name = "prompt-routing",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(prompt_routing),
     .default_text = "false",
     .help = "with --json: routed experts of the prompt's tokens, for training"},
    {.name = "handout",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(handout),
     .default_text = "false",
     .help =
         "with --json: routed experts and sampling masks of the generated tokens, for training"},
    {.name = "dump",
     .section = "Output",
     .type = SL_OPTION_STRING,
     .offset = AT(dump),
     .help = "write logits, hidden states, index sets and drafts to this .safetensors file"},
    {.name = "dump-positions",
     .section = "Output",
     .type = SL_OPTION_STRING,
     .offset = AT(dump_positions),
     .help = "positions whose index sets are dumped [the last three of the prompt]"},
    {.name = "layers",
     .section = "Output",
     .type = SL_OPTION_STRING,
     .offset = AT(layers),
     .help = "A:B, load and run layers A..B-1 alone on --hidden-in and --dump what leaves them; "
             "the MTP layer, which comes after the last, runs by itself"},
    {.name = "hidden-in",
     .section = "Output",
     .type = SL_OPTION_STRING,
     .offset = AT(hidden_in),
     .help = ".safetensors file with layer_x and layer_res (bf16) that enter layer A"},
    {.name = "tokenize",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(tokenize),
     .default_text = "false",
     .help = "print the token ids of stdin as JSON, run nothing"},
    {.name = "detokenize",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(detokenize),
     .default_text = "false",
     .help = "print the text of each line of token ids (1,2,3) on stdin as JSON, run nothing"},
    {.name = "tokenizer",
     .section = "Output",
     .type = SL_OPTION_STRING,
     .offset = AT(tokenizer),
     .help = "tokenize or detokenize with this tokenizer.json instead of the model's"},
};

static const sl_config_spec SPEC = {
    .program = "sluice-run",
    .summary = "Run a model in one process: the reference of one answer.",
    .positional = "PROMPT",
    .options = OPTIONS,
    .option_count = sizeof(OPTIONS) / sizeof(OPTIONS[0]),
};

sl_config_result eng_run_options_parse(int argc, char **argv, eng_run_options *out_options,
                                       sl_config **out_config, int *out_exit_code)
{
    sl_config_result result =
        sl_config_parse(&SPEC, argc, argv, out_options, out_config, out_exit_code);
    if (result != SL_CONFIG_RUN)
        return result;
    size_t count = sl_config_positional_count(*out_config);
    if (count > 1) {
        fprintf(stderr, "sluice-run: %zu prompts: quote a prompt of several words\n", count);
        *out_exit_code = ENG_RUN_EXIT_MISUSE;
        return SL_CONFIG_EXIT;
    }
    out_options->prompt = count > 0 ? sl_config_positional(*out_config, 0) : NULL;
    return result;
}

sl_status eng_run_parse_list(const char *option, const char *text, uint32_t count_max,
                             uint32_t **out_values, uint32_t *out_count, sl_err *err)
{
    uint32_t capacity = 1;
    for (const char *c = text; *c; c++)
        capacity += *c == ',';
    if (capacity > count_max)
        return sl_fail(err, SL_TOO_LARGE, "--%s: %u numbers, at most %u", option, capacity,
                       count_max);
    uint32_t *values = sl_alloc(capacity, sizeof(uint32_t), "run list");
    uint32_t count = 0;
    const char *at = text;
    while (*at) {
        char *end = NULL;
        errno = 0;
        unsigned long value = strtoul(at, &end, 10);
        if (end == at || *at == '-' || errno || value > INT32_MAX || (*end && *end != ',') ||
            (*end == ',' && !end[1])) {
            sl_free(values);
            return sl_fail(err, SL_INVALID, "--%s: \"%.40s\" is not a list of numbers", option, at);
        }
        values[count++] = (uint32_t)value;
        at = *end ? end + 1 : end;
    }
    *out_values = values;
    *out_count = count;
    return sl_ok();
}
