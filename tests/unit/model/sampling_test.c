/* Sampling parameters: defaults, overlays, ranges with field names. */
#include "model/sampling.h"
#include "tests/unit/model/support.h"

static sl_status parse(const char *text, const mdl_sampling *defaults, mdl_sampling *out,
                       sl_err *err)
{
    sl_json_doc *doc;
    sl_status status;

    assert_ok(sl_json_parse(text, strlen(text), NULL, &doc, err), err);
    status = mdl_sampling_parse(sl_json_root(doc), defaults, 1000, out, err);
    sl_json_doc_destroy(doc);
    return status;
}

TEST(defaults)
{
    mdl_sampling base, s;
    sl_err err;

    mdl_sampling_init(&base);
    assert_ok(parse("{}", &base, &s, &err), &err);
    assert_memory_equal(&base, &s, sizeof(s));
    assert_true(s.temperature == 1.0f && s.top_p == 1.0f && s.repetition_penalty == 1.0f);
    assert_int_equal(s.logprob_count, -1);
    assert_false(s.seed_given);
    assert_ok(parse("{\"temperature\":null,\"seed\":null,\"logit_bias\":null,\"logprobs\":null,"
                    "\"max_tokens\":null,\"stop_token_ids\":null,\"top_k\":null}",
                    &base, &s, &err),
              &err);
    assert_memory_equal(&base, &s, sizeof(s));
}

TEST(everything_given)
{
    mdl_sampling base, s;
    sl_err err;

    mdl_sampling_init(&base);
    assert_ok(parse("{\"temperature\":0.5,\"top_p\":0.25,\"min_p\":0.125,\"top_k\":7,"
                    "\"presence_penalty\":-1,\"frequency_penalty\":2,\"repetition_penalty\":1.5,"
                    "\"seed\":-3,\"max_tokens\":10,\"min_tokens\":2,\"ignore_eos\":true,"
                    "\"stop_token_ids\":[5,6],\"logit_bias\":{\"9\":1.5,\"3\":-100},"
                    "\"logprobs\":true,\"top_logprobs\":4}",
                    &base, &s, &err),
              &err);
    assert_true(s.temperature == 0.5f && s.top_p == 0.25f && s.min_p == 0.125f);
    assert_true(s.presence_penalty == -1.0f && s.frequency_penalty == 2.0f);
    assert_true(s.repetition_penalty == 1.5f && s.ignore_eos && s.seed_given);
    assert_true(s.seed == (uint64_t)-3);
    assert_int_equal(s.top_k, 7);
    assert_int_equal(s.max_tokens, 10);
    assert_int_equal(s.min_tokens, 2);
    assert_int_equal(s.stop_id_count, 2);
    assert_int_equal(s.stop_ids[1], 6);
    assert_int_equal(s.bias_count, 2);
    assert_int_equal(s.bias[0].id, 3); /* ascending */
    assert_true(s.bias[0].bias == -100.0f && s.bias[1].bias == 1.5f);
    assert_int_equal(s.logprob_count, 4);
    assert_ok(parse("{\"logprobs\":3,\"max_completion_tokens\":5,\"top_k\":-1}", &base, &s, &err),
              &err);
    assert_int_equal(s.logprob_count, 3);
    assert_int_equal(s.max_tokens, 5);
    assert_int_equal(s.top_k, 0);
    assert_ok(parse("{\"logprobs\":true}", &base, &s, &err), &err);
    assert_int_equal(s.logprob_count, 0);
}

TEST(refusals)
{
    static const struct {
        const char *request, *part;
    } CASES[] = {
        {"{\"temperature\":-0.1}", "temperature"},
        {"{\"temperature\":2.1}", "temperature"},
        {"{\"temperature\":\"1\"}", "temperature: must be a number"},
        {"{\"temperature\":1e999}", "temperature"},
        {"{\"top_p\":0}", "top_p: must be above 0"},
        {"{\"top_p\":1.01}", "top_p"},
        {"{\"min_p\":-1}", "min_p"},
        {"{\"top_k\":-2}", "top_k"},
        {"{\"top_k\":1.5}", "top_k"},
        {"{\"presence_penalty\":3}", "presence_penalty"},
        {"{\"frequency_penalty\":-3}", "frequency_penalty"},
        {"{\"repetition_penalty\":0}", "repetition_penalty"},
        {"{\"seed\":1.5}", "seed"},
        {"{\"seed\":\"x\"}", "seed"},
        {"{\"max_completion_tokens\":-1}", "max_completion_tokens"},
        {"{\"max_tokens\":5,\"min_tokens\":6}", "min_tokens"},
        {"{\"ignore_eos\":1}", "ignore_eos"},
        {"{\"stop_token_ids\":5}", "stop_token_ids"},
        {"{\"stop_token_ids\":[-1]}", "stop_token_ids[0]"},
        {"{\"stop_token_ids\":[1000]}", "stop_token_ids: token id 1000"},
        {"{\"temperature\":1e308}", "temperature: 1e308 is far out of range"},
        {"{\"top_p\":-1e999}", "top_p: -1e999 is far out of range"},
        {"{\"logit_bias\":[]}", "logit_bias"},
        {"{\"logit_bias\":{\"x\":1}}", "logit_bias"},
        {"{\"logit_bias\":{\"1x\":1}}", "logit_bias"},
        {"{\"logit_bias\":{\"1\":\"y\"}}", "logit_bias"},
        {"{\"logit_bias\":{\"1\":101}}", "logit_bias"},
        {"{\"logit_bias\":{\"1000\":1}}", "logit_bias"},
        {"{\"logit_bias\":{\"1\":1,\"01\":2}}", "logit_bias: token 1 twice"},
        {"{\"logprobs\":\"x\"}", "logprobs"},
        {"{\"logprobs\":21}", "logprobs"},
        {"{\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs"},
        {"{\"top_logprobs\":2}", "top_logprobs: needs"},
    };
    mdl_sampling base, s;
    sl_err err;

    mdl_sampling_init(&base);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        sl_status status = parse(CASES[i].request, &base, &s, &err);

        if (status.code != SL_INVALID)
            fail_msg("%s: %s", CASES[i].request, sl_code_name(status.code));
        assert_text_contains(err.text, CASES[i].part);
    }
}

TEST(bounds_of_lists)
{
    mdl_sampling base, s;
    sl_buf text;
    sl_err err;

    mdl_sampling_init(&base);
    sl_buf_init(&text, 0);
    for (int count = MDL_LOGIT_BIAS_MAX; count <= MDL_LOGIT_BIAS_MAX + 1; count++) {
        sl_buf_clear(&text);
        for (int i = 0; i < count; i++)
            sl_buf_printf(&text, "%s\"%d\":1", i ? "," : "{\"logit_bias\":{", i);
        sl_buf_puts(&text, "}}");
        assert_code(parse(text.data, &base, &s, &err),
                    count > MDL_LOGIT_BIAS_MAX ? SL_INVALID : SL_OK);
    }
    for (int count = MDL_STOP_IDS_MAX; count <= MDL_STOP_IDS_MAX + 1; count++) {
        sl_buf_clear(&text);
        for (int i = 0; i < count; i++)
            sl_buf_printf(&text, "%s%d", i ? "," : "{\"stop_token_ids\":[", i);
        sl_buf_puts(&text, "]}");
        assert_code(parse(text.data, &base, &s, &err),
                    count > MDL_STOP_IDS_MAX ? SL_INVALID : SL_OK);
    }
    sl_buf_fini(&text);
    /* As it would come over a wire. */
    s = base;
    s.bias_count = MDL_LOGIT_BIAS_MAX + 1;
    assert_code(mdl_sampling_check(&s, 1000, &err), SL_INVALID);
    s = base;
    s.stop_id_count = -1;
    assert_code(mdl_sampling_check(&s, 1000, &err), SL_INVALID);
    s = base;
    s.temperature = (float)__builtin_nan("");
    assert_code(mdl_sampling_check(&s, 1000, &err), SL_INVALID);
}

TEST(generation_config)
{
    mdl_sampling s;
    sl_err err;
    char dir[] = "/tmp/sluice-sampling-XXXXXX", path[64];
    static const struct {
        const char *text;
        sl_code code;
        float temperature;
    } CASES[] = {
        {"{\"do_sample\":true,\"temperature\":0.7}", SL_OK, 0.7f},
        {"{\"do_sample\":false,\"temperature\":0.7}", SL_OK, 0.0f},
        {"{}", SL_OK, 1.0f},
        {"{\"temperature\":9}", SL_INVALID, 0},
        {"{\"do_sample\":3}", SL_INVALID, 0},
        {"nonsense", SL_INVALID, 0},
    };

    assert_non_null(mkdtemp(dir));
    assert_ok(mdl_sampling_load(dir, &s, &err), &err); /* no file */
    assert_true(s.temperature == 1.0f);
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        write_whole(path, CASES[i].text, strlen(CASES[i].text));
        assert_code(mdl_sampling_load(dir, &s, &err), CASES[i].code);
        if (CASES[i].code == SL_OK)
            assert_true(s.temperature == CASES[i].temperature);
        else
            assert_text_contains(err.text, "generation_config.json");
    }
    unlink(path);
    rmdir(dir);
    assert_ok(mdl_sampling_load(DEMO_MODEL, &s, &err), &err);
    assert_true(s.temperature == 0.7f && s.top_p == 0.95f);
}

TEST(seeds_of_choices)
{
    char line[512];
    int rows = 0;
    FILE *file = fopen("docs/SAMPLING.md", "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        unsigned long long seed, expected;
        unsigned index;
        if (sscanf(line, "| 0x%llx | %u | %llu |", &seed, &index, &expected) != 3)
            continue;
        rows++;
        assert_true(mdl_choice_seed(seed, index) == expected);
    }
    fclose(file);
    assert_int_equal(rows, 8);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(defaults),          cmocka_unit_test(everything_given),
    cmocka_unit_test(refusals),          cmocka_unit_test(bounds_of_lists),
    cmocka_unit_test(generation_config), cmocka_unit_test(seeds_of_choices),
};
TEST_MAIN(tests)
