/* Options of sluice-run: one table, parsed once at start. Thread: main. */
#ifndef ENGINE_RUN_OPTIONS_H
#define ENGINE_RUN_OPTIONS_H

#include "base/config.h"
#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_RUN_EXIT_MISUSE 2

typedef struct eng_run_options {
    const char *model;
    /* prompt */
    bool chat;
    bool thinking;
    const char *system;
    const char *tools;
    const char *messages;
    bool plain_content;
    const char *prompt_file;
    const char *ids;
    const char *force_ids;
    const char *prompt; /* the positional argument, NULL if none */
    /* sampling: what is not given comes from generation_config.json */
    int64_t max_tokens;
    double temperature;
    double top_p;
    int64_t top_k;
    double min_p;
    const char *seed;
    int64_t logprobs;
    bool ignore_eos;
    int64_t mtp_depth;
    /* the answer's form */
    const char *json_schema;
    bool json_object;
    const char *regex;
    const char *choice;
    /* engine */
    int numerics; /* eng_numerics */
    int backend;  /* eng_backend */
    const char *cuda_library;
    int64_t chunk_tokens;
    int64_t threads;
    uint64_t kv_memory;
    const char *layers;
    const char *hidden_in;
    /* output */
    bool json;
    bool handout;
    int64_t prompt_logprobs;
    bool prompt_routing;
    const char *dump;
    const char *dump_positions;
    bool tokenize;
    bool detokenize;
    const char *tokenizer;
} eng_run_options;

/* As sl_config_parse; the config owns the strings. */
sl_config_result eng_run_options_parse(int argc, char **argv, eng_run_options *out_options,
                                       sl_config **out_config, int *out_exit_code);
/* "1,2,3" -> numbers, at most count_max. Errors name the option. */
SL_MUST_USE sl_status eng_run_parse_list(const char *option, const char *text, uint32_t count_max,
                                         uint32_t **out_values, uint32_t *out_count, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
