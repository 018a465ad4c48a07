/* Sampling parameters from requests and generation_config.json. Owns nothing. Thread: any. */
#include "model/sampling.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)
#define TOKENS_MAX       (1 << 24)
#define CHOICE_STREAM    1 /* of the keyed random number; 0 draws tokens */

void mdl_sampling_init(mdl_sampling *out_sampling)
{
    memset(out_sampling, 0, sizeof(*out_sampling));
    out_sampling->temperature = 1.0f;
    out_sampling->top_p = 1.0f;
    out_sampling->repetition_penalty = 1.0f;
    out_sampling->logprob_count = -1;
}

uint64_t mdl_choice_seed(uint64_t seed, uint32_t index)
{
    return index == 0 ? seed : (uint64_t)(sl_keyed_uniform(seed, index, CHOICE_STREAM) * 0x1p53);
}

/* --- checking --- */

static const struct {
    const char *field;
    size_t offset;
    double min, max;
    bool min_excluded;
} FLOATS[] = {
    {"temperature", offsetof(mdl_sampling, temperature), 0.0, 2.0, false},
    {"top_p", offsetof(mdl_sampling, top_p), 0.0, 1.0, true},
    {"min_p", offsetof(mdl_sampling, min_p), 0.0, 1.0, false},
    {"presence_penalty", offsetof(mdl_sampling, presence_penalty), -2.0, 2.0, false},
    {"frequency_penalty", offsetof(mdl_sampling, frequency_penalty), -2.0, 2.0, false},
    {"repetition_penalty", offsetof(mdl_sampling, repetition_penalty), 0.0, 2.0, true},
};

static const struct {
    const char *field;
    size_t offset;
    int32_t min, max;
} INTS[] = {
    {"top_k", offsetof(mdl_sampling, top_k), 0, INT32_MAX},
    {"max_tokens", offsetof(mdl_sampling, max_tokens), 0, TOKENS_MAX},
    {"min_tokens", offsetof(mdl_sampling, min_tokens), 0, TOKENS_MAX},
    {"top_logprobs", offsetof(mdl_sampling, logprob_count), -1, MDL_LOGPROBS_MAX},
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static sl_status check_id(const char *field, int32_t id, int32_t vocab_size, sl_err *err)
{
    if (id < 0 || id >= vocab_size)
        return sl_fail(err, SL_INVALID, "%s: token id %d is not in the vocabulary (0 to %d)", field,
                       id, vocab_size - 1);
    return sl_ok();
}

static sl_status check_lists(const mdl_sampling *s, int32_t vocab_size, sl_err *err)
{
    if (s->stop_id_count < 0 || s->stop_id_count > MDL_STOP_IDS_MAX)
        return sl_fail(err, SL_INVALID, "stop_token_ids: more than %d", MDL_STOP_IDS_MAX);
    if (s->bias_count < 0 || s->bias_count > MDL_LOGIT_BIAS_MAX)
        return sl_fail(err, SL_INVALID, "logit_bias: more than %d entries", MDL_LOGIT_BIAS_MAX);
    for (int32_t i = 0; i < s->stop_id_count; i++)
        SL_TRY(check_id("stop_token_ids", s->stop_ids[i], vocab_size, err));
    for (int32_t i = 0; i < s->bias_count; i++) {
        SL_TRY(check_id("logit_bias", s->bias[i].id, vocab_size, err));
        if (!(s->bias[i].bias >= -100.0f && s->bias[i].bias <= 100.0f))
            return sl_fail(err, SL_INVALID, "logit_bias: value for token %d must be -100 to 100",
                           s->bias[i].id);
        if (i > 0 && s->bias[i].id <= s->bias[i - 1].id)
            return sl_fail(err, SL_INVALID, "logit_bias: token %d twice or out of order",
                           s->bias[i].id);
    }
    return sl_ok();
}

sl_status mdl_sampling_check(const mdl_sampling *sampling, int32_t vocab_size, sl_err *err)
{
    for (size_t i = 0; i < COUNT(FLOATS); i++) {
        float value;

        memcpy(&value, (const char *)sampling + FLOATS[i].offset, sizeof(value));
        if (!((double)value >= FLOATS[i].min && (double)value <= FLOATS[i].max) ||
            (FLOATS[i].min_excluded && (double)value <= FLOATS[i].min))
            return sl_fail(err, SL_INVALID, "%s: must be %s%g and at most %g, is %g",
                           FLOATS[i].field, FLOATS[i].min_excluded ? "above " : "at least ",
                           FLOATS[i].min, FLOATS[i].max, (double)value);
    }
    for (size_t i = 0; i < COUNT(INTS); i++) {
        int32_t value;

        memcpy(&value, (const char *)sampling + INTS[i].offset, sizeof(value));
        if (value < INTS[i].min || value > INTS[i].max)
            return sl_fail(err, SL_INVALID, "%s: must be %d to %d, is %d", INTS[i].field,
                           INTS[i].min < 0 ? 0 : INTS[i].min, INTS[i].max, value);
    }
    if (sampling->max_tokens > 0 && sampling->min_tokens > sampling->max_tokens)
        return sl_fail(err, SL_INVALID, "min_tokens: %d is more than max_tokens %d",
                       sampling->min_tokens, sampling->max_tokens);
    return check_lists(sampling, vocab_size, err);
}

/* --- reading JSON --- */

/* NULL when absent or null. */
static const sl_json *given(const sl_json *object, const char *field)
{
    const sl_json *value = sl_json_get(object, field);

    return sl_json_typeof(value) == SL_JSON_NULL ? NULL : value;
}

static sl_status wrong_type(sl_err *err, const char *field, const char *expected,
                            const sl_json *value)
{
    return sl_fail(err, SL_INVALID, "%s: must be %s, is %s", field, expected,
                   sl_json_type_name(sl_json_typeof(value)));
}

static sl_status read_int(const sl_json *object, const char *field, int32_t min, int32_t max,
                          int32_t *value, sl_err *err)
{
    const sl_json *json = given(object, field);
    int64_t number;

    if (!json)
        return sl_ok();
    if (!sl_json_i64(json, &number))
        return wrong_type(err, field, "an integer", json);
    if (number < min || number > max)
        return sl_fail(err, SL_INVALID, "%s: must be %d to %d, is %lld", field, min, max,
                       (long long)number);
    *value = (int32_t)number;
    return sl_ok();
}

static sl_status read_bool(const sl_json *object, const char *field, bool *value, sl_err *err)
{
    const sl_json *json = given(object, field);

    if (json && !sl_json_bool(json, value))
        return wrong_type(err, field, "true or false", json);
    return sl_ok();
}

static sl_status read_floats(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    for (size_t i = 0; i < COUNT(FLOATS); i++) {
        const sl_json *json = given(object, FLOATS[i].field);
        double number;
        float value;

        if (!json)
            continue;
        if (!sl_json_number_text(json))
            return wrong_type(err, FLOATS[i].field, "a number", json);
        if (!sl_json_double(json, &number) || fabs(number) > FLT_MAX)
            return sl_fail(err, SL_INVALID, "%s: %.40s is far out of range", FLOATS[i].field,
                           sl_json_number_text(json));
        value = (float)number;
        memcpy((char *)s + FLOATS[i].offset, &value, sizeof(value));
    }
    return sl_ok();
}

/* max_tokens 0 in a request would mean "nothing"; in the struct it means "no limit of its own". */
static sl_status read_lengths(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    int32_t asked = -1;
    SL_TRY(read_int(object, "max_tokens", 0, TOKENS_MAX, &asked, err));
    SL_TRY(read_int(object, "max_completion_tokens", 0, TOKENS_MAX, &asked, err));
    s->nothing = asked == 0;
    if (asked > 0)
        s->max_tokens = asked;
    SL_TRY(read_int(object, "min_tokens", 0, TOKENS_MAX, &s->min_tokens, err));
    if (given(object, "top_k")) { /* -1 is other servers' word for off */
        SL_TRY(read_int(object, "top_k", -1, INT32_MAX, &s->top_k, err));
        if (s->top_k < 0)
            s->top_k = 0;
    }
    return read_bool(object, "ignore_eos", &s->ignore_eos, err);
}

/* Chat: logprobs true + top_logprobs n. Completions: logprobs n. */
static sl_status read_logprobs(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    const sl_json *logprobs = given(object, "logprobs");
    bool on = false;

    if (logprobs && !sl_json_bool(logprobs, &on)) {
        if (sl_json_typeof(logprobs) != SL_JSON_NUMBER)
            return wrong_type(err, "logprobs", "true, false or an integer", logprobs);
        return read_int(object, "logprobs", 0, MDL_LOGPROBS_MAX, &s->logprob_count, err);
    }
    if (on)
        s->logprob_count = 0;
    if (!given(object, "top_logprobs"))
        return sl_ok();
    if (!on)
        return sl_fail(err, SL_INVALID, "top_logprobs: needs logprobs true");
    return read_int(object, "top_logprobs", 0, MDL_LOGPROBS_MAX, &s->logprob_count, err);
}

static sl_status read_seed(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    const sl_json *json = given(object, "seed");
    int64_t number;

    if (!json)
        return sl_ok();
    if (!sl_json_i64(json, &number))
        return wrong_type(err, "seed", "a 64-bit integer", json);
    s->seed = (uint64_t)number;
    s->seed_given = true;
    return sl_ok();
}

static sl_status read_stop_ids(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    const sl_json *list = given(object, "stop_token_ids");

    if (!list)
        return sl_ok();
    if (sl_json_typeof(list) != SL_JSON_ARRAY)
        return wrong_type(err, "stop_token_ids", "an array", list);
    if (sl_json_count(list) > MDL_STOP_IDS_MAX)
        return sl_fail(err, SL_INVALID, "stop_token_ids: more than %d", MDL_STOP_IDS_MAX);
    s->stop_id_count = 0;
    for (size_t i = 0; i < sl_json_count(list); i++) {
        int64_t id;

        if (!sl_json_i64(sl_json_at(list, i), &id) || id < 0 || id > INT32_MAX)
            return sl_fail(err, SL_INVALID, "stop_token_ids[%zu]: must be a token id", i);
        s->stop_ids[s->stop_id_count++] = (int32_t)id;
    }
    return sl_ok();
}

static int by_id(const void *a, const void *b)
{
    const mdl_logit_bias *x = a, *y = b;

    return x->id < y->id ? -1 : x->id > y->id;
}

static sl_status read_bias(const sl_json *object, mdl_sampling *s, sl_err *err)
{
    const sl_json *map = given(object, "logit_bias");

    if (!map)
        return sl_ok();
    if (sl_json_typeof(map) != SL_JSON_OBJECT)
        return wrong_type(err, "logit_bias", "an object", map);
    if (sl_json_count(map) > MDL_LOGIT_BIAS_MAX)
        return sl_fail(err, SL_INVALID, "logit_bias: %zu entries, at most %d", sl_json_count(map),
                       MDL_LOGIT_BIAS_MAX);
    s->bias_count = 0;
    for (size_t i = 0; i < sl_json_count(map); i++) {
        const char *key = sl_json_key(map, i, NULL);
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        double bias;

        if (*key < '0' || *key > '9' || *end || id > INT32_MAX)
            return sl_fail(err, SL_INVALID, "logit_bias: key \"%.64s\" is not a token id", key);
        if (!sl_json_double(sl_json_at(map, i), &bias))
            return sl_fail(err, SL_INVALID, "logit_bias: value for %s must be a number", key);
        s->bias[s->bias_count++] = (mdl_logit_bias){(int32_t)id, (float)bias};
    }
    qsort(s->bias, (size_t)s->bias_count, sizeof(s->bias[0]), by_id);
    return sl_ok();
}

sl_status mdl_sampling_parse(const sl_json *request, const mdl_sampling *defaults,
                             int32_t vocab_size, mdl_sampling *out_sampling, sl_err *err)
{
    mdl_sampling s = *defaults;

    SL_TRY(read_floats(request, &s, err));
    SL_TRY(read_lengths(request, &s, err));
    SL_TRY(read_logprobs(request, &s, err));
    SL_TRY(read_seed(request, &s, err));
    SL_TRY(read_stop_ids(request, &s, err));
    SL_TRY(read_bias(request, &s, err));
    SL_TRY(mdl_sampling_check(&s, vocab_size, err));
    *out_sampling = s;
    return sl_ok();
}

sl_status mdl_sampling_load(const char *dir, mdl_sampling *out_sampling, sl_err *err)
{
    sl_json_limits limits = {.bytes_max = CONFIG_BYTES_MAX};
    char *path = sl_asprintf("model path", "%s/generation_config.json", dir);
    bool sample = true;
    mdl_sampling s;
    sl_json_doc *doc = NULL;
    sl_status status = sl_ok();

    mdl_sampling_init(&s);
    if (access(path, F_OK) == 0) {
        status = sl_json_parse_file(path, &limits, &doc, err);
        if (sl_is_ok(status)) {
            const sl_json *root = sl_json_root(doc);

            status = read_floats(root, &s, err);
            if (sl_is_ok(status))
                status = read_int(root, "top_k", 0, INT32_MAX, &s.top_k, err);
            if (sl_is_ok(status))
                status = read_bool(root, "do_sample", &sample, err);
            if (!sample)
                s.temperature = 0.0f;
            if (sl_is_ok(status))
                status = mdl_sampling_check(&s, INT32_MAX, err);
            if (!sl_is_ok(status))
                status = sl_wrap(err, status, "%s", path);
        }
        sl_json_doc_destroy(doc);
    }
    sl_free(path);
    if (sl_is_ok(status))
        *out_sampling = s;
    return status;
}
