/* Loads the model's files that a router uses, and turns options into limits. */
#include "router/settings.h"

#include "base/alloc.h"
#include "base/log.h"
#include "base/rng.h"
#include "model/config.h"
#include "model/hash.h"

#include <stdio.h>
#include <string.h>

#define INLINE_BYTES (16u << 10) /* a millisecond or two of encoding */

/* A router host may hold tokenizer and config only, or some of the weights: then stamps are
 * compared among nodes alone. Headers are enough: no weights are read. */
static void load_identity(const char *dir, char out_text[MDL_IDENTITY_CHARS + 1])
{
    mdl_checkpoint *checkpoint = NULL;
    sl_err err;
    out_text[0] = 0;
    sl_status status = mdl_checkpoint_open(dir, &checkpoint, &err);
    if (sl_is_ok(status) && mdl_checkpoint_absent_count(checkpoint) > 0)
        status = sl_fail(&err, SL_NOT_FOUND, "%s: %zu tensors of the index are not there", dir,
                         mdl_checkpoint_absent_count(checkpoint));
    if (sl_is_ok(status))
        status = mdl_identity(checkpoint, dir, out_text, &err);
    if (!sl_is_ok(status))
        sl_warn("nothing to compare the nodes' model with: %s", err.text);
    mdl_checkpoint_close(checkpoint);
}

/* "models/demo/" -> "demo" */
static char *directory_name(const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    return sl_strndup(path + begin, end - begin, "model name");
}

/* The name may say how its requests think; docs of the encoding, section 4. */
static mdl_chat_mode default_mode(const char *model_name)
{
    return strcmp(model_name, "deepseek-reasoner") == 0 ? MDL_CHAT_MODE_THINKING
                                                        : MDL_CHAT_MODE_CHAT;
}

static void fill_limits(const rtr_options *o, rtr_request_limits *limits)
{
    *limits = (rtr_request_limits){
        .place_timeout_ns = o->place_timeout_ns,
        .queue_timeout_ns = o->queue_timeout_ns,
        .admit_timeout_ns = o->admit_timeout_ns,
        .progress_timeout_ns = o->progress_timeout_ns,
        .self_timeout_ns = o->prefill_timeout_ns,
        .token_timeout_ns = o->token_timeout_ns,
        .attach_timeout_ns = o->attach_timeout_ns,
        .refusal_pause_ns = 100 * SL_MS_NS,
        .attempts_max = (uint32_t)o->attempts,
    };
}

void rtr_tuning_fill(const rtr_options *options, rtr_tuning *out_tuning)
{
    *out_tuning = (rtr_tuning){
        .queue_max = (uint32_t)options->queue_max,
        .self_prefill = options->self_prefill,
        .move_drained = options->move_drained,
        .pull_min = (uint32_t)options->pull_min,
        .recovery_tokens_per_s = (uint64_t)options->recovery_rate,
        .ttft_target_ns = options->ttft_target_ns,
        .tpot_target_ns = options->tpot_target_ns,
        .keep_alive_ns = options->keep_alive_ns,
        .weights_min = (uint32_t)options->weights_min,
    };
    fill_limits(options, &out_tuning->limits);
}

sl_status rtr_settings_load(const rtr_options *options, rtr_settings *out, sl_err *err)
{
    memset(out, 0, sizeof *out);
    rtr_shared *shared = &out->shared;
    SL_TRY(rtr_space_key_read(options->cluster_secret_file, &shared->api.space_key, err));
    SL_TRY(mdl_shape_load(options->model, &out->shape, err));
    SL_TRY(mdl_sampling_load(options->model, &shared->api.sampling_defaults, err));
    SL_TRY(mdl_tokenizer_load(options->model, &out->tokenizer, err));
    load_identity(options->model, out->model_identity);
    out->model_name = options->model_name ? sl_strdup(options->model_name, "model name")
                                          : directory_name(options->model);
    shared->api.tokenizer = out->tokenizer;
    shared->api.shape = &out->shape;
    shared->api.model_name = out->model_name;
    shared->api.chat.mode_default = default_mode(out->model_name);
    shared->api.max_tokens_default = (uint32_t)options->max_tokens_default;
    shared->api.plain_content = options->plain_content;
    shared->model_identity = out->model_identity[0] ? out->model_identity : NULL;
    shared->started_at = sl_wall_ns() / SL_S_NS;
    shared->incarnation = sl_random_u64();
    shared->context_max = (uint32_t)out->shape.position_max;
    if (options->context_max && (uint32_t)options->context_max < shared->context_max)
        shared->context_max = (uint32_t)options->context_max;
    shared->inline_bytes = INLINE_BYTES;
    shared->prefill_deadline_ms = (uint32_t)(options->prefill_timeout_ns / SL_MS_NS);
    rtr_tuning_fill(options, &shared->tuning);
    return sl_ok();
}

void rtr_settings_fini(rtr_settings *settings)
{
    mdl_tokenizer_destroy(settings->tokenizer);
    sl_free(settings->model_name);
    settings->tokenizer = NULL;
    settings->model_name = NULL;
}
