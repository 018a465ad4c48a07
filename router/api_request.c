/* Checking of API requests. One function a field group; the first error wins. Thread: any. */
#include "router/api_request.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "model/handout.h"
#include "model/output.h"
#include "router/limits.h"

#include <stdio.h>
#include <string.h>

static const char TYPE_INVALID[] = "invalid_request_error";
static const char TYPE_SERVER[] = "server_error";

/* ---- errors */

static bool fail(rtr_api_error *error, int status, const char *code, const char *param,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));

static bool fail(rtr_api_error *error, int status, const char *code, const char *param,
                 const char *format, ...)
{
    va_list arguments;
    memset(error, 0, sizeof *error);
    error->status = status;
    error->type = status >= 499 ? TYPE_SERVER : TYPE_INVALID; /* 499: an operator ended it */
    error->code = code;
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return false;
}

/* The model's parsers say "messages[3].content: must be ..": what stands before is the field. */
static void set_param(rtr_api_error *error, const char *text)
{
    static const char FIELD[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.[]";
    size_t size = strspn(text, FIELD);
    if (size > 0 && size < sizeof error->param && text[size] == ':' && text[size + 1] == ' ')
        snprintf(error->param, sizeof error->param, "%.*s", (int)size, text);
}

static bool fail_status(rtr_api_error *error, const sl_err *err)
{
    rtr_api_error_set(error, err->code, err->text);
    set_param(error, err->text);
    return false;
}

void rtr_api_error_set(rtr_api_error *error, sl_code code, const char *text)
{
    switch (code) {
    case SL_INVALID:
        fail(error, 400, NULL, NULL, "%s", text);
        break;
    case SL_TOO_LARGE:
        fail(error, 400, "too_large", NULL, "%s", text);
        break;
    case SL_UNSUPPORTED:
        fail(error, 400, "unsupported", NULL, "%s", text);
        break;
    case SL_NOT_FOUND:
        fail(error, 404, "not_found", NULL, "%s", text);
        break;
    case SL_FULL:
        fail(error, 503, "overloaded", NULL, "%s", text);
        break;
    case SL_UNAVAILABLE:
    case SL_INCOMPATIBLE:
        fail(error, 503, "unavailable", NULL, "%s", text);
        break;
    case SL_DEADLINE:
        fail(error, 504, "deadline", NULL, "%s", text);
        break;
    case SL_CANCELLED:
        fail(error, 499, "cancelled", NULL, "%s", text);
        break;
    default:
        fail(error, 500, sl_code_name(code), NULL, "%s", text);
        break;
    }
}

static bool wrong_type(rtr_api_error *error, const char *field, const char *expected,
                       const sl_json *value)
{
    return fail(error, 400, NULL, field, "%s: must be %s, is %s", field, expected,
                sl_json_type_name(sl_json_typeof(value)));
}

/* ---- single fields; null counts as not given */

static const sl_json *given(const sl_json *root, const char *field)
{
    const sl_json *value = sl_json_get(root, field);
    return value && sl_json_typeof(value) != SL_JSON_NULL ? value : NULL;
}

static bool read_bool(const sl_json *object, const char *field, const char *path, bool *value,
                      rtr_api_error *error)
{
    const sl_json *json = given(object, field);
    if (json && !sl_json_bool(json, value))
        return wrong_type(error, path, "true or false", json);
    return true;
}

static bool check_string(const sl_json *root, const char *field, rtr_api_error *error)
{
    const sl_json *json = given(root, field);
    if (json && sl_json_typeof(json) != SL_JSON_STRING)
        return wrong_type(error, field, "a string", json);
    return true;
}

/* Requests with unlike salts never share cached pages, nor does timing tell them of each other. */
static bool read_cache_salt(const rtr_api_settings *settings, rtr_api_request *r,
                            const sl_json *root, rtr_api_error *error)
{
    if (!check_string(root, "cache_salt", error))
        return false;
    size_t size = 0;
    const char *salt = sl_json_string(given(root, "cache_salt"), &size);
    r->cache_space = rtr_space(&settings->space_key, salt ? salt : "", size);
    return true;
}

static bool check_model(const rtr_api_settings *settings, const sl_json *root, rtr_api_error *error)
{
    size_t size;
    const sl_json *json = given(root, "model");
    if (!json)
        return true;
    const char *name = sl_json_string(json, &size);
    if (!name)
        return wrong_type(error, "model", "a string", json);
    if (strlen(settings->model_name) == size && memcmp(name, settings->model_name, size) == 0)
        return true;
    return fail(error, 404, "model_not_found", "model",
                "the model \"%.128s\" does not exist here; \"%s\" does", name,
                settings->model_name);
}

static bool read_count(const sl_json *root, const char *field, uint32_t *count,
                       rtr_api_error *error)
{
    int64_t value;
    const sl_json *json = given(root, field);
    if (!json)
        return true;
    if (!sl_json_i64(json, &value))
        return wrong_type(error, field, "an integer", json);
    if (value < 1 || value > RTR_CHOICES_MAX)
        return fail(error, 400, NULL, field, "%s: must be 1 to %u, is %lld", field, RTR_CHOICES_MAX,
                    (long long)value);
    *count = (uint32_t)value;
    return true;
}

static bool read_priority(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    int64_t value;
    const sl_json *json = given(root, "priority");
    if (!json)
        return true;
    if (!sl_json_i64(json, &value))
        return wrong_type(error, "priority", "an integer", json);
    if (value < INT32_MIN || value > INT32_MAX)
        return fail(error, 400, NULL, "priority", "priority: must be %d to %d, is %lld", INT32_MIN,
                    INT32_MAX, (long long)value);
    r->priority = (int32_t)value;
    return true;
}

static bool read_stream(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    if (!read_bool(root, "stream", "stream", &r->stream, error))
        return false;
    const sl_json *options = given(root, "stream_options");
    if (!options)
        return true;
    if (sl_json_typeof(options) != SL_JSON_OBJECT)
        return wrong_type(error, "stream_options", "an object", options);
    return read_bool(options, "include_usage", "stream_options.include_usage", &r->include_usage,
                     error);
}

/* Our own object: a name we do not know is a mistake, not another server's field. */
static bool read_handout(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    const sl_json *json = given(root, "sluice");
    if (!json)
        return true;
    if (sl_json_typeof(json) != SL_JSON_OBJECT)
        return wrong_type(error, "sluice", "an object", json);
    for (size_t i = 0; i < sl_json_count(json); i++) {
        const char *key = sl_json_key(json, i, NULL);
        if (strcmp(key, "routing") != 0 && strcmp(key, "sampling_mask") != 0 &&
            strcmp(key, "prompt_routing") != 0)
            return fail(error, 400, NULL, "sluice",
                        "sluice: \"%.64s\" is not known; routing, prompt_routing and "
                        "sampling_mask are",
                        key);
    }
    return read_bool(json, "routing", "sluice.routing", &r->want_routing, error) &&
           read_bool(json, "prompt_routing", "sluice.prompt_routing", &r->want_prompt_routing,
                     error) &&
           read_bool(json, "sampling_mask", "sluice.sampling_mask", &r->want_mask, error);
}

static bool check_handout_size(const rtr_api_settings *settings, const rtr_api_request *r,
                               rtr_api_error *error)
{
    mdl_routing_layout layout;
    mdl_routing_layout_init(settings->shape, &layout);
    uint64_t tokens = (uint64_t)r->choice_count * (uint64_t)r->sampling.max_tokens;
    int32_t scores = rtr_api_prompt_scores(r);
    uint64_t entries = (uint64_t)r->prompt.count * r->choice_count * (uint64_t)(scores + 1);
    if (scores >= 0 && entries > RTR_PROMPT_SCORES_MAX)
        return fail(error, 400, "too_large", r->prompt_logprobs >= 0 ? "prompt_logprobs" : "echo",
                    "%llu log-probabilities of the prompt (tokens, times alternatives and one, "
                    "times n); at most %u fit into one answer",
                    (unsigned long long)entries, RTR_PROMPT_SCORES_MAX);
    if (r->want_prompt_routing &&
        (uint64_t)r->prompt.count * layout.row_bytes > RTR_HANDOUT_BYTES_MAX)
        return fail(error, 400, "too_large", "sluice.prompt_routing",
                    "sluice.prompt_routing: %zu tokens of %u bytes; at most %u fit into one answer",
                    r->prompt.count, layout.row_bytes, RTR_HANDOUT_BYTES_MAX / layout.row_bytes);
    if (!r->want_routing || tokens * layout.row_bytes <= RTR_HANDOUT_BYTES_MAX)
        return true;
    return fail(error, 400, "too_large", "sluice.routing",
                "sluice.routing: %llu tokens (n times max_tokens) of %u bytes; at most %u fit into "
                "one answer",
                (unsigned long long)tokens, layout.row_bytes,
                RTR_HANDOUT_BYTES_MAX / layout.row_bytes);
}

static bool add_stop(rtr_api_request *r, const sl_json *json, const char *path,
                     rtr_api_error *error)
{
    size_t size;
    const char *text = sl_json_string(json, &size);
    if (!text)
        return wrong_type(error, path, "a string", json);
    if (size == 0 || size > MDL_STOP_STRING_BYTES_MAX || strlen(text) != size)
        return fail(error, 400, NULL, path, "%s: must have 1 to %d bytes and no NUL", path,
                    MDL_STOP_STRING_BYTES_MAX);
    r->stops[r->stop_count++] = text;
    return true;
}

static bool read_stop(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    _Static_assert(sizeof r->stops / sizeof r->stops[0] == MDL_STOP_STRINGS_MAX, "stops");
    const sl_json *json = given(root, "stop");
    if (!json)
        return true;
    if (sl_json_typeof(json) == SL_JSON_STRING)
        return add_stop(r, json, "stop", error);
    if (sl_json_typeof(json) != SL_JSON_ARRAY)
        return wrong_type(error, "stop", "a string or an array of strings", json);
    if (sl_json_count(json) > MDL_STOP_STRINGS_MAX)
        return fail(error, 400, NULL, "stop", "stop: at most %d strings", MDL_STOP_STRINGS_MAX);
    for (size_t i = 0; i < sl_json_count(json); i++) {
        char path[32];
        snprintf(path, sizeof path, "stop[%zu]", i);
        if (!add_stop(r, sl_json_at(json, i), path, error))
            return false;
    }
    return true;
}

static bool check_logprobs_type(rtr_api_kind kind, const sl_json *root, rtr_api_error *error)
{
    const sl_json *json = given(root, "logprobs");
    if (!json)
        return true;
    bool is_bool = sl_json_typeof(json) == SL_JSON_TRUE || sl_json_typeof(json) == SL_JSON_FALSE;
    if (kind == RTR_API_CHAT && !is_bool)
        return wrong_type(error, "logprobs", "true or false", json);
    if (kind == RTR_API_COMPLETION && is_bool)
        return wrong_type(error, "logprobs", "an integer", json);
    return true;
}

static bool read_prompt_logprobs(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    static const char FIELD[] = "prompt_logprobs";
    int64_t value;
    const sl_json *json = given(root, FIELD);
    r->prompt_logprobs = -1;
    if (!json)
        return true;
    if (!sl_json_i64(json, &value))
        return wrong_type(error, FIELD, "an integer", json);
    if (value < 0 || value > MDL_LOGPROBS_MAX)
        return fail(error, 400, NULL, FIELD, "%s: must be 0 to %d, is %lld", FIELD,
                    MDL_LOGPROBS_MAX, (long long)value);
    r->prompt_logprobs = (int32_t)value;
    return true;
}

int32_t rtr_api_prompt_scores(const rtr_api_request *r)
{
    int32_t echoed = r->echo ? r->sampling.logprob_count : -1;
    return echoed > r->prompt_logprobs ? echoed : r->prompt_logprobs;
}

/* What completions offer elsewhere and not here. */
static bool read_completion_fields(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    uint32_t best_of = r->choice_count;
    if (!read_bool(root, "echo", "echo", &r->echo, error) ||
        !read_count(root, "best_of", &best_of, error) || !check_string(root, "suffix", error))
        return false;
    if (best_of != r->choice_count)
        return fail(error, 400, "unsupported", "best_of",
                    "best_of: must be n (%u): all answers are returned, none is chosen",
                    r->choice_count);
    if (given(root, "suffix"))
        return fail(error, 400, "unsupported", "suffix", "suffix: is not supported");
    return true;
}

/* ---- prompts */

static bool read_ids(const rtr_api_settings *settings, const sl_json *list, const char *field,
                     mdl_ids *ids, rtr_api_error *error)
{
    for (size_t i = 0; i < sl_json_count(list); i++) {
        int64_t id;
        char path[48];
        snprintf(path, sizeof path, "%s[%zu]", field, i);
        if (sl_json_typeof(sl_json_at(list, i)) != SL_JSON_NUMBER ||
            !sl_json_i64(sl_json_at(list, i), &id))
            return wrong_type(error, path, "a token id", sl_json_at(list, i));
        if (id < 0 || id >= settings->shape->vocab_size)
            return fail(error, 400, NULL, path, "%s: token id %lld is not in the vocabulary", path,
                        (long long)id);
        mdl_ids_push(ids, (int32_t)id);
    }
    return true;
}

static bool encode_text(const rtr_api_settings *settings, const sl_json *json, const char *field,
                        bool add_bos, mdl_ids *ids, rtr_api_error *error)
{
    size_t size;
    sl_err err;
    const char *text = sl_json_string(json, &size);
    mdl_encode_options options = {.id_max = RTR_PROMPT_MAX};
    if (add_bos)
        mdl_ids_push(ids, mdl_tokenizer_special(settings->tokenizer)->bos);
    if (!sl_is_ok(mdl_tokenizer_encode(settings->tokenizer, text, size, &options, ids, &err))) {
        fail_status(error, &err);
        snprintf(error->param, sizeof error->param, "%s", field);
        return false;
    }
    return true;
}

/* A string (BOS is put before it, as sluice-run does), or an array of ids, taken as they are. */
static bool read_prompt(const rtr_api_settings *settings, rtr_api_request *r, const sl_json *root,
                        rtr_api_error *error)
{
    bool add_bos = true;
    const sl_json *json = given(root, "prompt");
    if (!read_bool(root, "add_special_tokens", "add_special_tokens", &add_bos, error))
        return false;
    if (!json)
        return fail(error, 400, NULL, "prompt", "prompt: is missing");
    if (sl_json_typeof(json) == SL_JSON_STRING)
        return encode_text(settings, json, "prompt", add_bos, &r->prompt, error);
    if (sl_json_typeof(json) != SL_JSON_ARRAY)
        return wrong_type(error, "prompt", "a string or an array of token ids", json);
    if (sl_json_count(json) == 1 && sl_json_typeof(sl_json_at(json, 0)) == SL_JSON_STRING)
        return encode_text(settings, sl_json_at(json, 0), "prompt", add_bos, &r->prompt, error);
    if (sl_json_count(json) == 0)
        return fail(error, 400, NULL, "prompt", "prompt: is empty");
    if (sl_json_typeof(sl_json_at(json, 0)) != SL_JSON_NUMBER)
        return fail(error, 400, "unsupported", "prompt",
                    "prompt: several prompts in one request are not supported");
    return read_ids(settings, json, "prompt", &r->prompt, error);
}

static bool encode_chat(const rtr_api_settings *settings, rtr_api_request *r, const sl_json *root,
                        rtr_api_error *error)
{
    sl_err err;
    if (!sl_is_ok(mdl_chat_parse(root, &settings->chat, &r->chat, &err)))
        return fail_status(error, &err);
    mdl_prompt prompt = {0};
    mdl_chat_render(r->chat, 0, &prompt);
    mdl_encode_options options = {.id_max = RTR_PROMPT_MAX};
    if (settings->plain_content) {
        options.plain = prompt.content;
        options.plain_count = prompt.content_count;
    }
    sl_status status = mdl_tokenizer_encode(settings->tokenizer, prompt.text.data, prompt.text.size,
                                            &options, &r->prompt, &err);
    mdl_prompt_fini(&prompt);
    if (sl_is_ok(status))
        return true;
    fail_status(error, &err);
    snprintf(error->param, sizeof error->param, "messages");
    return false;
}

/* Compiled here only to say what is wrong with it before any node is asked. */
static bool read_constraint(rtr_api_request *r, const sl_json *root, rtr_api_error *error)
{
    sl_err err;
    mdl_grammar *grammar = NULL;
    mdl_constraint *constraint = &r->constraint;
    if (!sl_is_ok(mdl_constraint_parse(root, r->chat, constraint, &err)))
        return fail_status(error, &err);
    if (!mdl_constraint_is_set(constraint))
        return true;
    if (r->sampling.ignore_eos)
        return fail(error, 400, NULL, "ignore_eos",
                    "ignore_eos: a constrained answer ends where its form does");
    if (!sl_is_ok(mdl_constraint_compile(constraint, &grammar, &err))) {
        fail_status(error, &err);
        if (!error->param[0])
            snprintf(error->param, sizeof error->param, "%s",
                     constraint->field ? constraint->field : "tools");
        return false;
    }
    mdl_grammar_destroy(grammar);
    return true;
}

/* ---- limits and defaults */

static bool resolve_lengths(const rtr_api_settings *settings, rtr_api_request *r,
                            uint32_t context_max, rtr_api_error *error)
{
    const char *field = r->kind == RTR_API_CHAT ? "messages" : "prompt";
    if (r->prompt.count == 0) /* an empty text without BOS */
        return fail(error, 400, NULL, field, "%s: is empty", field);
    if (r->prompt.count >= context_max)
        return fail(error, 400, "context_length_exceeded", field,
                    "this model's maximum context length is %u tokens; there are %zu in the %s, "
                    "and at least one more is needed for the answer",
                    context_max, r->prompt.count, field);
    int32_t room = (int32_t)(context_max - r->prompt.count);
    mdl_sampling *s = &r->sampling;
    bool told = r->kind == RTR_API_COMPLETION &&
                (r->echo || r->prompt_logprobs >= 0 || r->want_prompt_routing);
    const char *length = given(sl_json_root(r->doc), "max_completion_tokens")
                             ? "max_completion_tokens" /* it counts when both are there */
                             : "max_tokens";
    if (s->nothing && !told)
        return fail(error, 400, NULL, length,
                    "%s: must be at least 1; 0 is for completions that echo or tell something of "
                    "the prompt",
                    length);
    if (s->nothing)
        s->max_tokens = 1; /* drawn and not shown */
    r->max_tokens_given = s->max_tokens > 0;
    if (s->max_tokens == 0)
        s->max_tokens = r->kind == RTR_API_CHAT ? (int32_t)settings->max_tokens_default
                                                : RTR_COMPLETION_TOKENS_DEFAULT;
    if (s->max_tokens > room)
        s->max_tokens = room;
    if (s->min_tokens > s->max_tokens)
        s->min_tokens = s->max_tokens;
    return true;
}

void rtr_api_fit_default(rtr_api_request *r, uint64_t cache_tokens)
{
    mdl_sampling *s = &r->sampling;
    if (r->max_tokens_given || cache_tokens <= r->prompt.count)
        return; /* asked for, or larger than any cache anyway: that is told */
    uint64_t room = cache_tokens - r->prompt.count;
    if ((uint64_t)s->max_tokens > room)
        s->max_tokens = (int32_t)room;
    if (s->min_tokens > s->max_tokens)
        s->min_tokens = s->max_tokens;
}

bool rtr_api_check_fits(const rtr_api_request *r, uint64_t cache_tokens, uint32_t context_max,
                        rtr_api_error *error)
{
    static const char WHAT[] = "prompt and max_tokens together exceed the cache of every decode "
                               "node: the largest holds %llu tokens, and %zu are in the %s";
    const char *field = r->kind == RTR_API_CHAT ? "messages" : "prompt";
    char text[256];
    if (r->prompt.count + (uint64_t)r->sampling.max_tokens <= cache_tokens)
        return true;
    snprintf(text, sizeof text, WHAT, (unsigned long long)cache_tokens, r->prompt.count, field);
    if (r->prompt.count >= cache_tokens)
        return fail(error, 400, "too_large", field,
                    "%s (this model's maximum context length is %u)", text, context_max);
    return fail(error, 400, "too_large", "max_tokens",
                "%s, which leaves %llu for max_tokens (this model's maximum context length is %u)",
                text, (unsigned long long)(cache_tokens - r->prompt.count), context_max);
}

/* Below 2^53, so that clients whose numbers are doubles can send it back. */
static void draw_seed(mdl_sampling *sampling)
{
    if (sampling->seed_given)
        return;
    sampling->seed = sl_random_u64() >> 11;
    sampling->seed_given = true;
}

static bool prepare_generation(const rtr_api_settings *settings, rtr_api_request *r,
                               const sl_json *root, uint32_t context_max, rtr_api_error *error)
{
    sl_err err;
    r->choice_count = 1;
    if (!read_stream(r, root, error) || !read_count(root, "n", &r->choice_count, error) ||
        !check_string(root, "user", error) || !read_cache_salt(settings, r, root, error) ||
        !read_priority(r, root, error) || !read_stop(r, root, error) ||
        !read_bool(root, "include_stop_str_in_output", "include_stop_str_in_output",
                   &r->include_stop, error) ||
        !read_handout(r, root, error) || !read_prompt_logprobs(r, root, error) ||
        !check_logprobs_type(r->kind, root, error) ||
        !read_bool(root, "return_token_ids", "return_token_ids", &r->return_token_ids, error))
        return false;
    if (!sl_is_ok(mdl_sampling_parse(root, &settings->sampling_defaults,
                                     settings->shape->vocab_size, &r->sampling, &err)))
        return fail_status(error, &err);
    if (r->kind == RTR_API_COMPLETION && !read_completion_fields(r, root, error))
        return false;
    bool encoded = r->kind == RTR_API_CHAT ? encode_chat(settings, r, root, error)
                                           : read_prompt(settings, r, root, error);
    if (!encoded || !read_constraint(r, root, error) ||
        !resolve_lengths(settings, r, context_max, error) ||
        !check_handout_size(settings, r, error))
        return false;
    draw_seed(&r->sampling);
    return true;
}

static bool prepare_tokens(const rtr_api_settings *settings, rtr_api_request *r,
                           const sl_json *root, rtr_api_error *error)
{
    if (r->kind == RTR_API_TOKENIZE)
        return given(root, "messages") ? encode_chat(settings, r, root, error)
                                       : read_prompt(settings, r, root, error);
    const sl_json *tokens = given(root, "tokens");
    if (!tokens)
        return fail(error, 400, NULL, "tokens", "tokens: is missing");
    if (sl_json_typeof(tokens) != SL_JSON_ARRAY)
        return wrong_type(error, "tokens", "an array of token ids", tokens);
    return read_ids(settings, tokens, "tokens", &r->prompt, error);
}

bool rtr_api_prepare(const rtr_api_settings *settings, rtr_api_kind kind, const void *body,
                     size_t size, uint32_t context_max, rtr_api_request **out_request,
                     rtr_api_error *error)
{
    sl_err err;
    sl_json_limits limits = {.bytes_max = size + 1, .depth_max = RTR_JSON_DEPTH};
    sl_json_doc *doc = NULL;
    if (size == 0)
        return fail(error, 400, NULL, NULL, "the request has no body; it must be a JSON object");
    if (!sl_is_ok(sl_json_parse(body, size, &limits, &doc, &err)))
        return fail(error, 400, "invalid_json", NULL, "the body is not valid JSON: %s", err.text);
    rtr_api_request *r = sl_alloc(1, sizeof *r, "api request");
    r->kind = kind;
    r->doc = doc;
    mdl_constraint_init(&r->constraint);
    const sl_json *root = sl_json_root(doc);
    bool ok = true;
    if (sl_json_typeof(root) != SL_JSON_OBJECT)
        ok = fail(error, 400, NULL, NULL, "the body must be a JSON object, is %s",
                  sl_json_type_name(sl_json_typeof(root)));
    ok = ok && check_model(settings, root, error);
    if (ok && (kind == RTR_API_CHAT || kind == RTR_API_COMPLETION))
        ok = prepare_generation(settings, r, root, context_max, error);
    else if (ok)
        ok = prepare_tokens(settings, r, root, error);
    if (!ok) {
        rtr_api_request_destroy(r);
        return false;
    }
    *out_request = r;
    return true;
}

bool rtr_api_may_be_slow(const void *body, size_t size)
{
    /* The last three: a letter of a name written as an escape, which nobody does in earnest. */
    static const char *const MARKS[] = {"json_schema", "structured_outputs",
                                        "guided_",     "tool_choice",
                                        "\"strict\"",  "\\u005",
                                        "\\u006",      "\\u007"};
    for (size_t i = 0; i < sizeof MARKS / sizeof MARKS[0]; i++)
        if (size > 0 && memmem(body, size, MARKS[i], strlen(MARKS[i])))
            return true;
    return false;
}

void rtr_api_request_destroy(rtr_api_request *request)
{
    if (!request)
        return;
    mdl_ids_fini(&request->prompt);
    mdl_constraint_fini(&request->constraint);
    mdl_chat_destroy(request->chat); /* borrows from the document */
    sl_json_doc_destroy(request->doc);
    sl_free(request);
}
