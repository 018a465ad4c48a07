/* config.json: what it must say, in tables. Owns nothing; runs at start-up. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)

typedef struct int_key {
    const char *key;
    size_t offset; /* int32_t in mdl_shape */
    int32_t min, max;
    int32_t multiple; /* 0 = any */
} int_key;

#define FIELD(member) offsetof(mdl_shape, member)

/* Upper bounds keep every product of two of them well inside 64 bit. */
static const int_key INT_KEYS[] = {
    {"vocab_size", FIELD(vocab_size), 8, 1 << 20, 0},
    {"hidden_size", FIELD(hidden_size), 128, 1 << 16, 128},
    {"num_hidden_layers", FIELD(layer_count), 1, 1024, 0},
    {"first_k_dense_replace", FIELD(dense_layer_count), 0, 1024, 0},
    {"intermediate_size", FIELD(intermediate_size), 128, 1 << 18, 128},
    {"moe_intermediate_size", FIELD(moe_intermediate_size), 128, 1 << 16, 128},
    {"n_routed_experts", FIELD(expert_count), 2, 4096, 0},
    {"num_experts_per_tok", FIELD(experts_per_token), 1, 64, 0},
    {"n_shared_experts", FIELD(shared_expert_count), 1, 16, 0},
    {"n_group", FIELD(group_count), 1, 256, 0},
    {"topk_group", FIELD(topk_group_count), 1, 256, 0},
    {"num_attention_heads", FIELD(head_count), 1, 1024, 0},
    {"q_lora_rank", FIELD(q_lora_rank), 128, 1 << 16, 128},
    {"index_n_heads", FIELD(index_head_count), 8, 1024, 0},
    {"index_topk", FIELD(index_topk), 64, 1 << 16, 64},
    {"max_position_embeddings", FIELD(position_max), 1, 1 << 24, 0},
    {"bos_token_id", FIELD(bos_id), 0, (1 << 20) - 1, 0},
    {"eos_token_id", FIELD(eos_id), 0, (1 << 20) - 1, 0},
};

/* Cache rows, rope and kernels are built for these. */
static const struct {
    const char *key;
    size_t offset;
    int32_t value;
} FIXED_KEYS[] = {
    {"kv_lora_rank", FIELD(kv_lora_rank), 512},     {"qk_nope_head_dim", FIELD(qk_nope_dim), 128},
    {"qk_rope_head_dim", FIELD(qk_rope_dim), 64},   {"v_head_dim", FIELD(v_head_dim), 128},
    {"index_head_dim", FIELD(index_head_dim), 128},
};

/* Values that select another computation. optional: absent means this value. */
static const struct {
    const char *key;
    const char *value; /* JSON text of the only supported value */
    bool optional;
} CONSTANT_KEYS[] = {
    {"hidden_act", "\"silu\"", false},      {"scoring_func", "\"sigmoid\"", false},
    {"topk_method", "\"noaux_tc\"", false}, {"norm_topk_prob", "true", false},
    {"attention_bias", "false", false},     {"tie_word_embeddings", "false", false},
    {"moe_layer_freq", "1", true},          {"model_type", "\"deepseek_v32\"", false},
};

static sl_status missing(sl_err *err, const char *key)
{
    return sl_fail(err, SL_INVALID, "config.json: \"%s\" is missing", key);
}

static sl_status get_int(const sl_json *object, const char *key, int32_t min, int32_t max,
                         int32_t *out_value, sl_err *err)
{
    const sl_json *value = sl_json_get(object, key);
    int64_t number;

    if (!value)
        return missing(err, key);
    if (sl_json_typeof(value) == SL_JSON_NULL)
        return sl_fail(err, SL_UNSUPPORTED, "config.json: \"%s\": null is not supported", key);
    if (!sl_json_i64(value, &number))
        return sl_fail(err, SL_INVALID, "config.json: \"%s\" must be an integer, is %s", key,
                       sl_json_type_name(sl_json_typeof(value)));
    if (number < min || number > max)
        return sl_fail(err, SL_INVALID, "config.json: \"%s\" is %lld, must be %d to %d", key,
                       (long long)number, min, max);
    *out_value = (int32_t)number;
    return sl_ok();
}

static sl_status get_double(const sl_json *object, const char *key, double min, double max,
                            double *out_value, sl_err *err)
{
    const sl_json *value = sl_json_get(object, key);
    double number;

    if (!value)
        return missing(err, key);
    if (!sl_json_double(value, &number))
        return sl_fail(err, SL_INVALID, "config.json: \"%s\" must be a number, is %s", key,
                       sl_json_type_name(sl_json_typeof(value)));
    if (!(number >= min && number <= max))
        return sl_fail(err, SL_INVALID, "config.json: \"%s\" is %g, must be %g to %g", key, number,
                       min, max);
    *out_value = number;
    return sl_ok();
}

static sl_status expect(const sl_json *object, const char *key, const char *text, bool optional,
                        sl_err *err)
{
    const sl_json *value = sl_json_get(object, key);
    sl_buf buf;
    bool same;
    sl_status status = sl_ok();

    if (!value)
        return optional ? sl_ok() : missing(err, key);
    sl_buf_init(&buf, 4096);
    sl_json_write(&buf, value);
    same = !buf.overflow && buf.size == strlen(text) && memcmp(buf.data, text, buf.size) == 0;
    if (!same)
        status = sl_fail(err, SL_UNSUPPORTED, "config.json: \"%s\" is %.80s, supported is only %s",
                         key, buf.data, text);
    sl_buf_fini(&buf);
    return status;
}

static sl_status parse_ints(const sl_json *config, mdl_shape *shape, sl_err *err)
{
    for (size_t i = 0; i < sizeof(INT_KEYS) / sizeof(INT_KEYS[0]); i++) {
        const int_key *k = &INT_KEYS[i];
        int32_t value = 0;

        SL_TRY(get_int(config, k->key, k->min, k->max, &value, err));
        if (k->multiple && value % k->multiple != 0)
            return sl_fail(err, SL_UNSUPPORTED, "config.json: \"%s\" is %d, must divide by %d",
                           k->key, value, k->multiple);
        memcpy((char *)shape + k->offset, &value, sizeof(value));
    }
    for (size_t i = 0; i < sizeof(FIXED_KEYS) / sizeof(FIXED_KEYS[0]); i++) {
        int32_t value = 0;

        SL_TRY(get_int(config, FIXED_KEYS[i].key, INT32_MIN, INT32_MAX, &value, err));
        if (value != FIXED_KEYS[i].value)
            return sl_fail(err, SL_UNSUPPORTED, "config.json: \"%s\" is %d, supported is only %d",
                           FIXED_KEYS[i].key, value, FIXED_KEYS[i].value);
        memcpy((char *)shape + FIXED_KEYS[i].offset, &value, sizeof(value));
    }
    return sl_ok();
}

static sl_status parse_rope(const sl_json *config, mdl_shape *shape, sl_err *err)
{
    const sl_json *rope = sl_json_get(config, "rope_scaling");

    SL_TRY(get_double(config, "rope_theta", 1.0, 1e12, &shape->rope_theta, err));
    if (!rope)
        return missing(err, "rope_scaling");
    if (sl_json_typeof(rope) != SL_JSON_OBJECT)
        return sl_fail(err, SL_UNSUPPORTED, "config.json: \"rope_scaling\" must be a YaRN object");
    SL_TRY(expect(rope, sl_json_get(rope, "type") ? "type" : "rope_type", "\"yarn\"", false, err));
    SL_TRY(get_double(rope, "factor", 1.0, 1e6, &shape->yarn_factor, err));
    SL_TRY(get_int(rope, "original_max_position_embeddings", 1, 1 << 24,
                   &shape->yarn_original_position_max, err));
    SL_TRY(get_double(rope, "beta_fast", 0.0, 1e6, &shape->yarn_beta_fast, err));
    SL_TRY(get_double(rope, "beta_slow", 0.0, 1e6, &shape->yarn_beta_slow, err));
    SL_TRY(get_double(rope, "mscale", 0.0, 1e3, &shape->yarn_mscale, err));
    return get_double(rope, "mscale_all_dim", 0.0, 1e3, &shape->yarn_mscale_all_dim, err);
}

static sl_status parse_quantisation(const sl_json *config, mdl_shape *shape, sl_err *err)
{
    const sl_json *q = sl_json_get(config, "quantization_config");

    if (!q || sl_json_typeof(q) == SL_JSON_NULL) {
        /* A bf16 checkpoint; cache rows are still FP8, with power-of-two scales. */
        shape->quantised = false;
        shape->scale_ue8m0 = true;
        return sl_ok();
    }
    if (sl_json_typeof(q) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "config.json: \"quantization_config\" must be an object");
    shape->quantised = true;
    SL_TRY(expect(q, "quant_method", "\"fp8\"", false, err));
    SL_TRY(expect(q, "fmt", "\"e4m3\"", false, err));
    SL_TRY(expect(q, "activation_scheme", "\"dynamic\"", false, err));
    SL_TRY(expect(q, "weight_block_size", "[128,128]", false, err));
    shape->scale_ue8m0 = sl_json_get(q, "scale_fmt") != NULL;
    return expect(q, "scale_fmt", "\"ue8m0\"", true, err);
}

/* Relations between keys. */
static sl_status check_relations(const sl_json *config, const mdl_shape *s, sl_err *err)
{
    int32_t kv_heads = 0;
    double dropout = 0.0;

    SL_TRY(get_int(config, "num_key_value_heads", 1, 1024, &kv_heads, err));
    if (kv_heads != s->head_count)
        return sl_fail(err, SL_UNSUPPORTED,
                       "config.json: \"num_key_value_heads\" is %d, must equal "
                       "\"num_attention_heads\" %d",
                       kv_heads, s->head_count);
    if (sl_json_get(config, "attention_dropout"))
        SL_TRY(get_double(config, "attention_dropout", 0.0, 0.0, &dropout, err));
    if (s->dense_layer_count > s->layer_count)
        return sl_fail(err, SL_INVALID,
                       "config.json: \"first_k_dense_replace\" is %d, more than "
                       "\"num_hidden_layers\" %d",
                       s->dense_layer_count, s->layer_count);
    if (s->expert_count % s->group_count != 0 || s->expert_count / s->group_count < 2)
        return sl_fail(err, SL_UNSUPPORTED,
                       "config.json: \"n_routed_experts\" is %d, must divide by \"n_group\" %d "
                       "into groups of at least 2",
                       s->expert_count, s->group_count);
    if (s->topk_group_count > s->group_count)
        return sl_fail(err, SL_INVALID,
                       "config.json: \"topk_group\" is %d, more than \"n_group\" "
                       "%d",
                       s->topk_group_count, s->group_count);
    if (s->topk_group_count * (s->expert_count / s->group_count) < s->experts_per_token)
        return sl_fail(err, SL_INVALID,
                       "config.json: \"num_experts_per_tok\" is %d, but \"topk_group\" %d groups "
                       "hold only %d experts",
                       s->experts_per_token, s->topk_group_count,
                       s->topk_group_count * (s->expert_count / s->group_count));
    if ((s->index_head_count & (s->index_head_count - 1)) != 0)
        return sl_fail(err, SL_UNSUPPORTED,
                       "config.json: \"index_n_heads\" is %d, must be a power "
                       "of two",
                       s->index_head_count);
    if (s->bos_id >= s->vocab_size || s->eos_id >= s->vocab_size)
        return sl_fail(err, SL_INVALID, "config.json: \"%s\" is not below \"vocab_size\" %d",
                       s->bos_id >= s->vocab_size ? "bos_token_id" : "eos_token_id", s->vocab_size);
    return sl_ok();
}

sl_status mdl_shape_parse(const sl_json *config, mdl_shape *out_shape, sl_err *err)
{
    mdl_shape shape;
    const sl_json *names = sl_json_get(config, "architectures");
    const char *name = sl_json_string(sl_json_at(names, 0), NULL);

    memset(&shape, 0, sizeof(shape));
    if (sl_json_typeof(config) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "config.json: must be an object");
    if (!name)
        return missing(err, "architectures");
    if (sl_json_count(names) != 1 || strcmp(name, "DeepseekV32ForCausalLM") != 0)
        return sl_fail(err, SL_UNSUPPORTED,
                       "config.json: \"architectures\" is %.80s, supported is only "
                       "DeepseekV32ForCausalLM",
                       name);
    for (size_t i = 0; i < sizeof(CONSTANT_KEYS) / sizeof(CONSTANT_KEYS[0]); i++)
        SL_TRY(expect(config, CONSTANT_KEYS[i].key, CONSTANT_KEYS[i].value,
                      CONSTANT_KEYS[i].optional, err));
    SL_TRY(parse_ints(config, &shape, err));
    if (sl_json_get(config, "num_nextn_predict_layers"))
        SL_TRY(get_int(config, "num_nextn_predict_layers", 0, 1, &shape.mtp_layer_count, err));
    SL_TRY(parse_rope(config, &shape, err));
    SL_TRY(parse_quantisation(config, &shape, err));
    SL_TRY(get_double(config, "rms_norm_eps", 1e-12, 1e-2, &shape.rms_eps, err));
    SL_TRY(
        get_double(config, "routed_scaling_factor", 1e-6, 1e6, &shape.routed_scaling_factor, err));
    SL_TRY(check_relations(config, &shape, err));
    *out_shape = shape;
    return sl_ok();
}

sl_status mdl_shape_load(const char *dir, mdl_shape *out_shape, sl_err *err)
{
    sl_json_limits limits = {.bytes_max = CONFIG_BYTES_MAX};
    char *path = sl_asprintf("model path", "%s/config.json", dir);
    sl_json_doc *doc = NULL;
    sl_status status = sl_json_parse_file(path, &limits, &doc, err);

    if (sl_is_ok(status)) {
        status = mdl_shape_parse(sl_json_root(doc), out_shape, err);
        if (!sl_is_ok(status))
            status = sl_wrap(err, status, "%s", dir);
        sl_json_doc_destroy(doc);
    }
    sl_free(path);
    return status;
}
