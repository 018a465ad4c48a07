/* config.json: the demo model's, and everything that must be refused by name. */
#include "model/config.h"
#include "tests/unit/model/support.h"

static const char BASE[] =
    "{\"architectures\":[\"DeepseekV32ForCausalLM\"],\"attention_bias\":false,"
    "\"attention_dropout\":0.0,\"bos_token_id\":0,\"eos_token_id\":1,\"first_k_dense_replace\":1,"
    "\"hidden_act\":\"silu\",\"hidden_size\":256,\"index_head_dim\":128,\"index_n_heads\":8,"
    "\"index_topk\":256,\"intermediate_size\":1024,\"kv_lora_rank\":512,"
    "\"max_position_embeddings\":163840,\"model_type\":\"deepseek_v32\","
    "\"moe_intermediate_size\":128,\"moe_layer_freq\":1,\"n_group\":4,\"n_routed_experts\":16,"
    "\"n_shared_experts\":1,\"norm_topk_prob\":true,\"num_attention_heads\":8,"
    "\"num_experts_per_tok\":4,\"num_hidden_layers\":6,\"num_key_value_heads\":8,"
    "\"num_nextn_predict_layers\":1,\"q_lora_rank\":256,\"qk_nope_head_dim\":128,"
    "\"qk_rope_head_dim\":64,\"quantization_config\":{\"activation_scheme\":\"dynamic\","
    "\"fmt\":\"e4m3\",\"quant_method\":\"fp8\",\"scale_fmt\":\"ue8m0\","
    "\"weight_block_size\":[128,128]},\"rms_norm_eps\":1e-06,\"rope_scaling\":{\"beta_fast\":32,"
    "\"beta_slow\":1,\"factor\":40,\"mscale\":1.0,\"mscale_all_dim\":1.0,"
    "\"original_max_position_embeddings\":4096,\"type\":\"yarn\"},\"rope_theta\":10000,"
    "\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\",\"tie_word_embeddings\":false,"
    "\"topk_group\":2,\"topk_method\":\"noaux_tc\",\"v_head_dim\":128,\"vocab_size\":8192}";

/* BASE with one piece of text replaced. */
static sl_status parse_changed(const char *from, const char *to, mdl_shape *shape, sl_err *err)
{
    const char *at = strstr(BASE, from);
    sl_json_doc *doc;
    sl_buf text;
    sl_status status;

    assert_non_null(at);
    sl_buf_init(&text, 0);
    sl_buf_append(&text, BASE, (size_t)(at - BASE));
    sl_buf_puts(&text, to);
    sl_buf_puts(&text, at + strlen(from));
    assert_ok(sl_json_parse(text.data, text.size, NULL, &doc, err), err);
    status = mdl_shape_parse(sl_json_root(doc), shape, err);
    sl_json_doc_destroy(doc);
    sl_buf_fini(&text);
    return status;
}

TEST(demo_model)
{
    mdl_shape s;
    sl_err err;

    assert_ok(mdl_shape_load(DEMO_MODEL, &s, &err), &err);
    assert_int_equal(s.vocab_size, 8192);
    assert_int_equal(s.hidden_size, 256);
    assert_int_equal(s.layer_count, 6);
    assert_int_equal(s.mtp_layer_count, 1);
    assert_int_equal(s.dense_layer_count, 1);
    assert_int_equal(s.expert_count, 16);
    assert_int_equal(s.experts_per_token, 4);
    assert_int_equal(s.index_topk, 256);
    assert_int_equal(s.position_max, 163840);
    assert_true(s.yarn_factor == 40.0);
    assert_true(s.rms_eps == 1e-6);
    assert_true(s.routed_scaling_factor == 2.5);
    assert_true(s.quantised);
    assert_true(s.scale_ue8m0);
    assert_int_equal(s.bos_id, 0);
    assert_int_equal(s.eos_id, 1);
}

TEST(variants)
{
    mdl_shape s;
    sl_err err;

    assert_ok(parse_changed("\"scale_fmt\":\"ue8m0\",", "", &s, &err), &err);
    assert_true(s.quantised);
    assert_false(s.scale_ue8m0);
    assert_ok(parse_changed("\"quantization_config\"", "\"ignored\"", &s, &err), &err);
    assert_false(s.quantised);
    assert_true(s.scale_ue8m0);
    assert_ok(parse_changed("\"num_nextn_predict_layers\":1,", "", &s, &err), &err);
    assert_int_equal(s.mtp_layer_count, 0);
    assert_ok(parse_changed("\"type\":\"yarn\"", "\"rope_type\":\"yarn\"", &s, &err), &err);
}

TEST(refusals)
{
    static const struct {
        const char *from, *to;
        sl_code code;
        const char *part;
    } CASES[] = {
        {"DeepseekV32", "DeepseekV3", SL_UNSUPPORTED, "architectures"},
        {"\"attention_bias\":false", "\"attention_bias\":true", SL_UNSUPPORTED, "attention_bias"},
        {"\"attention_dropout\":0.0", "\"attention_dropout\":0.1", SL_INVALID, "attention_dropout"},
        {"\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true", SL_UNSUPPORTED,
         "tie_word_embeddings"},
        {"\"sigmoid\"", "\"softmax\"", SL_UNSUPPORTED, "scoring_func"},
        {"\"noaux_tc\"", "\"greedy\"", SL_UNSUPPORTED, "topk_method"},
        {"\"norm_topk_prob\":true", "\"norm_topk_prob\":false", SL_UNSUPPORTED, "norm_topk_prob"},
        {"\"silu\"", "\"gelu\"", SL_UNSUPPORTED, "hidden_act"},
        {"\"yarn\"", "\"linear\"", SL_UNSUPPORTED, "type"},
        {"\"rope_scaling\":", "\"rope_scaling_not\":", SL_INVALID, "rope_scaling"},
        {"\"q_lora_rank\":256", "\"q_lora_rank\":null", SL_UNSUPPORTED, "q_lora_rank"},
        {"\"q_lora_rank\":256", "\"q_lora_rank\":200", SL_UNSUPPORTED, "q_lora_rank"},
        {"\"hidden_size\":256,", "", SL_INVALID, "hidden_size"},
        {"\"hidden_size\":256", "\"hidden_size\":\"256\"", SL_INVALID, "hidden_size"},
        {"\"hidden_size\":256", "\"hidden_size\":-256", SL_INVALID, "hidden_size"},
        {"\"hidden_size\":256", "\"hidden_size\":1e30", SL_INVALID, "hidden_size"},
        {"\"hidden_size\":256", "\"hidden_size\":256.5", SL_INVALID, "hidden_size"},
        {"\"kv_lora_rank\":512", "\"kv_lora_rank\":256", SL_UNSUPPORTED, "kv_lora_rank"},
        {"\"v_head_dim\":128", "\"v_head_dim\":64", SL_UNSUPPORTED, "v_head_dim"},
        {"\"index_n_heads\":8", "\"index_n_heads\":12", SL_UNSUPPORTED, "index_n_heads"},
        {"\"index_topk\":256", "\"index_topk\":100", SL_UNSUPPORTED, "index_topk"},
        {"\"n_routed_experts\":16", "\"n_routed_experts\":15", SL_UNSUPPORTED, "n_routed_experts"},
        {"\"n_routed_experts\":16", "\"n_routed_experts\":4", SL_UNSUPPORTED, "groups of at least"},
        {"\"topk_group\":2", "\"topk_group\":5", SL_INVALID, "topk_group"},
        {"\"num_experts_per_tok\":4", "\"num_experts_per_tok\":9", SL_INVALID,
         "num_experts_per_tok"},
        {"\"num_key_value_heads\":8", "\"num_key_value_heads\":1", SL_UNSUPPORTED,
         "num_key_value_heads"},
        {"\"first_k_dense_replace\":1", "\"first_k_dense_replace\":7", SL_INVALID,
         "first_k_dense_replace"},
        {"\"num_nextn_predict_layers\":1", "\"num_nextn_predict_layers\":2", SL_INVALID,
         "num_nextn_predict_layers"},
        {"\"eos_token_id\":1", "\"eos_token_id\":[1,2]", SL_INVALID, "eos_token_id"},
        {"\"eos_token_id\":1", "\"eos_token_id\":8192", SL_INVALID, "eos_token_id"},
        {"\"fmt\":\"e4m3\"", "\"fmt\":\"e5m2\"", SL_UNSUPPORTED, "fmt"},
        {"\"fp8\"", "\"awq\"", SL_UNSUPPORTED, "quant_method"},
        {"[128,128]", "[64,64]", SL_UNSUPPORTED, "weight_block_size"},
        {"\"ue8m0\"", "\"fp32\"", SL_UNSUPPORTED, "scale_fmt"},
        {"\"dynamic\"", "\"static\"", SL_UNSUPPORTED, "activation_scheme"},
        {"\"moe_layer_freq\":1", "\"moe_layer_freq\":2", SL_UNSUPPORTED, "moe_layer_freq"},
        {"\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":\"x\"", SL_INVALID, "rms_norm_eps"},
    };

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        mdl_shape s;
        sl_err err = {0};
        sl_status status = parse_changed(CASES[i].from, CASES[i].to, &s, &err);

        if (status.code != CASES[i].code)
            fail_msg("%s: %s: %s", CASES[i].to, sl_code_name(status.code), err.text);
        assert_text_contains(err.text, CASES[i].part);
    }
}

TEST(missing_file)
{
    mdl_shape s;
    sl_err err;

    assert_false(sl_is_ok(mdl_shape_load("/nonexistent", &s, &err)));
    assert_text_contains(err.text, "/nonexistent/config.json");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(demo_model),
    cmocka_unit_test(variants),
    cmocka_unit_test(refusals),
    cmocka_unit_test(missing_file),
};
TEST_MAIN(tests)
