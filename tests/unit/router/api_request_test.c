/* API requests: each wrong field is refused by name, each right one arrives. */
#include "tests/unit/router/api_kit.h"

#include "base/bytes.h"

#define MESSAGES   "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define CHAT(more) "{" MESSAGES "," more "}"
#define TEXT(more) "{\"prompt\":\"hi\"," more "}"

#define STRICT(parameters)                                                            \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true," \
    "\"parameters\":" parameters "}}]"

typedef struct bad_case {
    rtr_api_kind kind;
    const char *body;
    int status;
    const char *param; /* "" = none */
    const char *part;  /* of the message */
} bad_case;

#define C RTR_API_CHAT
#define P RTR_API_COMPLETION
#define T RTR_API_TOKENIZE
#define D RTR_API_DETOKENIZE

static const bad_case BAD[] = {
    {C, "", 400, "", "no body"},
    {C, "{", 400, "", "not valid JSON"},
    {C, "[]", 400, "", "must be a JSON object"},
    {C, "5", 400, "", "must be a JSON object"},
    {C, "{\"messages\":[],}", 400, "", "not valid JSON"},
    {C, "{\"a\":\"\xff\"}", 400, "", "not valid JSON"},
    {C, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\"}]}", 400, "", "UTF-8"},
    {C, "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}", 400, "", "not valid JSON"},
    {C, "{}", 400, "messages", "messages"},
    {C, "{\"messages\":\"hi\"}", 400, "messages", "must be an array"},
    {C, "{\"messages\":[]}", 400, "messages", "empty"},
    {C, "{\"messages\":[5]}", 400, "messages[0]", "must be an object"},
    {C, "{\"messages\":[{\"role\":\"user\"}]}", 400, "messages[0].content", "missing"},
    {C, "{\"messages\":[{\"role\":\"user\",\"content\":5}]}", 400, "messages[0].content", "number"},
    {C, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", 400, "messages[0].role", "role"},
    {C, CHAT("\"model\":\"gpt\""), 404, "model", "does not exist"},
    {C, CHAT("\"model\":5"), 400, "model", "must be a string"},
    {C, CHAT("\"stream\":1"), 400, "stream", "must be true or false"},
    {C, CHAT("\"stream\":\"true\""), 400, "stream", "must be true or false"},
    {C, CHAT("\"stream_options\":[]"), 400, "stream_options", "must be an object"},
    {C, CHAT("\"stream_options\":{\"include_usage\":0}"), 400, "stream_options.include_usage",
     "must be true or false"},
    {C, CHAT("\"sluice\":true"), 400, "sluice", "must be an object"},
    {C, CHAT("\"sluice\":{\"rooting\":true}"), 400, "sluice", "\"rooting\" is not known"},
    {C, CHAT("\"sluice\":{\"routing\":1}"), 400, "sluice.routing", "true or false"},
    {C, CHAT("\"prompt_logprobs\":21"), 400, "prompt_logprobs", "0 to 20"},
    {C, CHAT("\"prompt_logprobs\":-1"), 400, "prompt_logprobs", "0 to 20"},
    {C, CHAT("\"prompt_logprobs\":true"), 400, "prompt_logprobs", "must be an integer"},
    {C, CHAT("\"n\":129"), 400, "n", "1 to 128"},
    {C, CHAT("\"n\":0"), 400, "n", "1 to 128"},
    {C, CHAT("\"n\":\"1\""), 400, "n", "must be an integer"},
    {C, CHAT("\"user\":7"), 400, "user", "must be a string"},
    {C, CHAT("\"cache_salt\":7"), 400, "cache_salt", "must be a string"},
    {C, CHAT("\"priority\":\"high\""), 400, "priority", "must be an integer"},
    {C, CHAT("\"priority\":2147483648"), 400, "priority", "is 2147483648"},
    {C, CHAT("\"temperature\":3"), 400, "temperature", "at most 2"},
    {C, CHAT("\"temperature\":\"hot\""), 400, "temperature", "must be a number"},
    {C, CHAT("\"top_p\":0"), 400, "top_p", "above 0"},
    {C, CHAT("\"max_tokens\":0"), 400, "max_tokens", "max_tokens"},
    {C, CHAT("\"max_completion_tokens\":0"), 400, "max_completion_tokens", "at least 1"},
    {C, CHAT("\"max_tokens\":1.5"), 400, "max_tokens", "integer"},
    {C, CHAT("\"max_completion_tokens\":-1"), 400, "max_completion_tokens", ""},
    {C, CHAT("\"presence_penalty\":9"), 400, "presence_penalty", ""},
    {C, CHAT("\"frequency_penalty\":-9"), 400, "frequency_penalty", ""},
    {C, CHAT("\"seed\":1.5"), 400, "seed", ""},
    {C, CHAT("\"seed\":true"), 400, "seed", ""},
    {C, CHAT("\"logit_bias\":[]"), 400, "logit_bias", "must be an object"},
    {C, CHAT("\"logit_bias\":{\"x\":1}"), 400, "logit_bias", "not a token id"},
    {C, CHAT("\"logit_bias\":{\"99999999\":1}"), 400, "logit_bias", "vocabulary"},
    {C, CHAT("\"logit_bias\":{\"5\":101}"), 400, "logit_bias", "-100 to 100"},
    {C, CHAT("\"logprobs\":3"), 400, "logprobs", "must be true or false"},
    {C, CHAT("\"top_logprobs\":3"), 400, "top_logprobs", "needs logprobs"},
    {C, CHAT("\"logprobs\":true,\"top_logprobs\":21"), 400, "top_logprobs", ""},
    {C, CHAT("\"stop\":5"), 400, "stop", "a string or an array"},
    {C, CHAT("\"stop\":[\"a\",5]"), 400, "stop[1]", "must be a string"},
    {C, CHAT("\"stop\":\"\""), 400, "stop", "1 to 256 bytes"},
    {C, CHAT("\"stop\":[\"a\\u0000b\"]"), 400, "stop[0]", "no NUL"},
    {C,
     CHAT("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\","
          "\"d\",\"e\",\"f\",\"g\",\"h\"]"),
     400, "stop", "at most 16"},
    {C, CHAT("\"return_token_ids\":\"yes\""), 400, "return_token_ids", "must be true or false"},
    {C, CHAT("\"tools\":5"), 400, "tools", "must be an array"},
    {C, CHAT("\"tools\":[{\"type\":\"x\"}]"), 400, "tools[0].type", ""},
    {C, CHAT("\"tool_choice\":5"), 400, "tool_choice", ""},
    {C, CHAT(STRICT("{\"properties\":{\"a\":{}},\"required\":[\"a\"]}")), 400,
     "tools[0].function.parameters.additionalProperties", "must be false under strict"},
    {C, CHAT(STRICT("{\"additionalProperties\":false}") ",\"ignore_eos\":true"), 400, "ignore_eos",
     "ends where its form does"},
    {C, CHAT("\"thinking\":true"), 400, "thinking", ""},
    {C, CHAT("\"thinking\":{\"type\":\"maybe\"}"), 400, "thinking", ""},
    {C, CHAT("\"chat_template_kwargs\":5"), 400, "chat_template_kwargs", "must be an object"},
    {C, CHAT("\"response_format\":{\"type\":\"xml\"}"), 400, "response_format.type", "must be"},
    {C,
     CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":"
          "{\"properties\":{\"a\":{\"unevaluatedItems\":{}}}}}}"),
     400, "response_format.json_schema.schema.properties.a.unevaluatedItems", "not supported"},
    {C, CHAT("\"response_format\":{\"type\":\"json_object\"},\"ignore_eos\":true"), 400,
     "ignore_eos", "ends where its form does"},
    {C, CHAT("\"response_format\":{\"type\":\"json_object\"},\"guided_regex\":\"a\""), 400,
     "guided_regex", "one form"},
    {C, CHAT("\"structured_outputs\":{}"), 400, "structured_outputs", "needs one of"},
    {C, CHAT("\"structured_outputs\":{\"grammar\":\"x\"}"), 400, "structured_outputs",
     "not supported"},
    {C, CHAT("\"structured_outputs\":{\"regex\":\"(\"}"), 400, "structured_outputs.regex",
     "not closed"},
    {C, CHAT("\"structured_outputs\":{\"choice\":[\"a\",5]}"), 400, "structured_outputs.choice[1]",
     "must be a string"},
    {C, CHAT("\"structured_outputs\":{\"json\":\"{\"}"), 400, "structured_outputs.json",
     "is not JSON"},
    {P, TEXT("\"guided_json\":{\"$ref\":\"#/x\"}"), 400, "guided_json", "leads nowhere"},
    {P, "{}", 400, "prompt", "missing"},
    {P, "{\"prompt\":5}", 400, "prompt", "a string or an array"},
    {P, "{\"prompt\":[]}", 400, "prompt", "empty"},
    {P, "{\"prompt\":\"\",\"add_special_tokens\":false}", 400, "prompt", "empty"},
    {P, "{\"prompt\":[\"\"],\"add_special_tokens\":false}", 400, "prompt", "empty"},
    {P, "{\"prompt\":[\"a\",\"b\"]}", 400, "prompt", "several prompts"},
    {P, "{\"prompt\":[[1],[2]]}", 400, "prompt", "several prompts"},
    {P, "{\"prompt\":[1,\"a\"]}", 400, "prompt[1]", "must be a token id"},
    {P, "{\"prompt\":[1,1.5]}", 400, "prompt[1]", "must be a token id"},
    {P, "{\"prompt\":[1,-1]}", 400, "prompt[1]", "vocabulary"},
    {P, "{\"prompt\":[8192]}", 400, "prompt[0]", "vocabulary"},
    {P, TEXT("\"logprobs\":true"), 400, "logprobs", "must be an integer"},
    {P, TEXT("\"logprobs\":21"), 400, "logprobs", ""},
    {P, TEXT("\"echo\":1"), 400, "echo", "must be true or false"},
    {P, TEXT("\"suffix\":\"x\""), 400, "suffix", "not supported"},
    {P, TEXT("\"suffix\":5"), 400, "suffix", "must be a string"},
    {P, TEXT("\"best_of\":2"), 400, "best_of", "must be n"},
    {P, TEXT("\"add_special_tokens\":1"), 400, "add_special_tokens", "must be true or false"},
    {T, "{}", 400, "prompt", "missing"},
    {D, "{}", 400, "tokens", "missing"},
    {D, "{\"tokens\":\"x\"}", 400, "tokens", "must be an array"},
    {D, "{\"tokens\":[8192]}", 400, "tokens[0]", "vocabulary"},
};

TEST(wrong_requests_are_refused_by_name)
{
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        rtr_api_request *request = NULL;
        rtr_api_error error;
        bool ok = rtr_api_prepare(&kit_settings, BAD[i].kind, BAD[i].body, strlen(BAD[i].body),
                                  1000, &request, &error);
        if (ok)
            fail_msg("case %zu was accepted: %s", i, BAD[i].body);
        if (error.status != BAD[i].status || strcmp(error.param, BAD[i].param) != 0)
            fail_msg("case %zu: status %d param \"%s\": %s\n%s", i, error.status, error.param,
                     error.message, BAD[i].body);
        assert_text_contains(error.message, BAD[i].part);
        assert_string_equal(error.type, "invalid_request_error");
    }
}

TEST(constraints_may_be_slow)
{
    static const char PLAIN[] = CHAT("\"temperature\":1"), FORM[] = CHAT("\"guided_regex\":\"a\"");
    static const char ESCAPED[] = CHAT("\"guided\\u005Fregex\":\"a\"");
    static const char CALLS[] = CHAT(STRICT("{}"));
    assert_true(rtr_api_may_be_slow(CALLS, strlen(CALLS)));
    assert_false(rtr_api_may_be_slow(PLAIN, strlen(PLAIN)));
    assert_false(rtr_api_may_be_slow("", 0));
    assert_true(rtr_api_may_be_slow(FORM, strlen(FORM)));
    assert_true(rtr_api_may_be_slow(ESCAPED, strlen(ESCAPED)));
}

static rtr_api_request *prepare(rtr_api_kind kind, const char *body)
{
    rtr_api_request *request = NULL;
    rtr_api_error error;
    if (!rtr_api_prepare(&kit_settings, kind, body, strlen(body), 1000, &request, &error))
        fail_msg("%d %s: %s", error.status, error.param, error.message);
    return request;
}

TEST(strict_functions_constrain_the_answer)
{
    rtr_api_request *r = prepare(C, CHAT(STRICT("{\"additionalProperties\":false}")));
    assert_int_equal(r->constraint.kind, MDL_CONSTRAINT_TEXT);
    assert_int_equal(r->constraint.calls, MDL_CALLS_ALLOWED);
    rtr_api_request_destroy(r);
    r = prepare(C, CHAT(STRICT("{\"additionalProperties\":false}") ",\"tool_choice\":\"none\""));
    assert_false(mdl_constraint_is_set(&r->constraint));
    rtr_api_request_destroy(r);
}

TEST(defaults_and_unknown_fields)
{
    rtr_api_request *r =
        prepare(C, CHAT("\"model\":\"demo\",\"priority\":5,\"metadata\":{\"a\":1},"
                        "\"cache_salt\":\"x\",\"stop\":null,\"n\":1,\"seed\":null"));
    assert_false(r->stream || r->include_usage || r->return_token_ids);
    assert_int_equal(r->sampling.max_tokens, 100);
    assert_int_equal(r->priority, 5);
    assert_true(r->sampling.temperature == 0.7f);
    assert_int_equal(r->sampling.logprob_count, -1);
    assert_true(r->sampling.seed_given && r->sampling.seed < (1ull << 53));
    assert_int_equal(r->stop_count, 0);
    assert_int_equal(r->prompt.data[0], mdl_tokenizer_special(kit_tokenizer)->bos);
    uint64_t seed = r->sampling.seed;
    rtr_api_request_destroy(r);
    r = prepare(C, CHAT("\"n\":1"));
    assert_true(r->sampling.seed != seed); /* drawn anew: equal once in 2^53 runs */
    rtr_api_request_destroy(r);
}

TEST(all_fields_arrive)
{
    rtr_api_request *r =
        prepare(C, CHAT("\"stream\":true,\"stream_options\":{\"include_usage\":true},\"seed\":7,"
                        "\"temperature\":0,\"top_p\":0.5,\"max_tokens\":9,\"stop\":[\"a\",\"bc\"],"
                        "\"logprobs\":true,\"top_logprobs\":3,\"logit_bias\":{\"5\":-1.5},"
                        "\"presence_penalty\":0.5,\"frequency_penalty\":0.25,\"user\":\"u\","
                        "\"return_token_ids\":true,\"thinking\":{\"type\":\"enabled\"}"));
    assert_true(r->stream && r->include_usage && r->return_token_ids);
    assert_int_equal(r->sampling.seed, 7);
    assert_int_equal(r->sampling.max_tokens, 9);
    assert_true(r->sampling.temperature == 0 && r->sampling.top_p == 0.5f);
    assert_int_equal(r->stop_count, 2);
    assert_string_equal(r->stops[1], "bc");
    assert_int_equal(r->sampling.logprob_count, 3);
    assert_int_equal(r->sampling.bias_count, 1);
    assert_true(r->sampling.bias[0].bias == -1.5f);
    assert_true(r->sampling.presence_penalty == 0.5f && r->sampling.frequency_penalty == 0.25f);
    assert_true(mdl_chat_reasoning_open(r->chat));
    rtr_api_request_destroy(r);
    r = prepare(C,
                CHAT("\"max_completion_tokens\":11,\"chat_template_kwargs\":{\"thinking\":true}"));
    assert_int_equal(r->sampling.max_tokens, 11);
    assert_true(mdl_chat_reasoning_open(r->chat));
    rtr_api_request_destroy(r);
}

TEST(salts_make_cache_spaces)
{
    static const char *const BODIES[] = {CHAT("\"cache_salt\":\"a\""), CHAT("\"cache_salt\":\"b\""),
                                         CHAT("\"cache_salt\":\"a\""), CHAT("\"cache_salt\":\"\""),
                                         CHAT("\"n\":1")};
    uint64_t spaces[5];
    for (size_t i = 0; i < 5; i++) {
        rtr_api_request *r = prepare(C, BODIES[i]);
        spaces[i] = r->cache_space;
        rtr_api_request_destroy(r);
    }
    assert_true(spaces[0] == spaces[2] && spaces[0] != spaces[1] && spaces[0] != 0);
    assert_true(spaces[3] == 0 && spaces[4] == 0);
}

TEST(completion_prompts)
{
    rtr_api_request *text = prepare(P, "{\"prompt\":\"Once upon\"}");
    rtr_api_request *list = prepare(P, "{\"prompt\":[\"Once upon\"]}");
    rtr_api_request *bare = prepare(P, "{\"prompt\":\"Once upon\",\"add_special_tokens\":false}");
    rtr_api_request *ids = prepare(P, "{\"prompt\":[0,5,6],\"max_tokens\":1}");
    assert_int_equal(text->sampling.max_tokens, RTR_COMPLETION_TOKENS_DEFAULT);
    assert_int_equal(text->prompt.count, list->prompt.count);
    assert_int_equal(text->prompt.count, bare->prompt.count + 1);
    assert_int_equal(text->prompt.data[0], mdl_tokenizer_special(kit_tokenizer)->bos);
    assert_int_equal(ids->prompt.count, 3);
    assert_int_equal(ids->prompt.data[2], 6);
    rtr_api_request_destroy(text);
    rtr_api_request_destroy(list);
    rtr_api_request_destroy(bare);
    rtr_api_request_destroy(ids);
}

TEST(prompt_over_the_limit_is_told_with_counts)
{
    rtr_api_request *request = NULL;
    rtr_api_error error;
    const char *body = "{\"prompt\":[1,2,3,4,5,6,7,8,9,10],\"max_tokens\":5}";
    assert_false(rtr_api_prepare(&kit_settings, P, body, strlen(body), 10, &request, &error));
    assert_int_equal(error.status, 400);
    assert_string_equal(error.code, "context_length_exceeded");
    assert_string_equal(error.param, "prompt");
    assert_text_contains(error.message, "10 tokens");
    assert_text_contains(error.message, "are 10 in the prompt");
    /* one token of room: the answer is cut to it */
    assert_true(rtr_api_prepare(&kit_settings, P, body, strlen(body), 11, &request, &error));
    assert_int_equal(request->sampling.max_tokens, 1);
    rtr_api_request_destroy(request);
    body = "{" MESSAGES "}";
    assert_false(rtr_api_prepare(&kit_settings, C, body, strlen(body), 2, &request, &error));
    assert_string_equal(error.param, "messages");
}

TEST(special_tokens_in_content)
{
    const char *body =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a<\xef\xbd\x9cUser\xef\xbd\x9c>b\"}]}";
    rtr_api_request *open = prepare(C, body);
    kit_settings.plain_content = true;
    rtr_api_request *plain = prepare(C, body);
    kit_settings.plain_content = false;
    size_t user_open = 0, user_plain = 0;
    int32_t user = mdl_tokenizer_special(kit_tokenizer)->user;
    for (size_t i = 0; i < open->prompt.count; i++)
        user_open += open->prompt.data[i] == user;
    for (size_t i = 0; i < plain->prompt.count; i++)
        user_plain += plain->prompt.data[i] == user;
    assert_int_equal(user_open, 2); /* as the reference encodes it */
    assert_int_equal(user_plain, 1);
    rtr_api_request_destroy(open);
    rtr_api_request_destroy(plain);
}

TEST(deep_json_is_refused)
{
    sl_buf body;
    rtr_api_request *request = NULL;
    rtr_api_error error;
    sl_buf_init(&body, 0);
    for (int i = 0; i < 100000; i++)
        sl_buf_putc(&body, '[');
    assert_false(rtr_api_prepare(&kit_settings, C, body.data, body.size, 10, &request, &error));
    assert_int_equal(error.status, 400);
    sl_buf_fini(&body);
}

TEST(statuses)
{
    static const struct {
        sl_code code;
        int status;
    } TABLE[] = {{SL_INVALID, 400},   {SL_TOO_LARGE, 400},   {SL_UNSUPPORTED, 400},
                 {SL_NOT_FOUND, 404}, {SL_FULL, 503},        {SL_UNAVAILABLE, 503},
                 {SL_DEADLINE, 504},  {SL_CANCELLED, 499},   {SL_INTERNAL, 500},
                 {SL_IO, 500},        {SL_INCOMPATIBLE, 503}};
    for (size_t i = 0; i < sizeof TABLE / sizeof TABLE[0]; i++) {
        rtr_api_error error;
        rtr_api_error_set(&error, TABLE[i].code, "100%s of it");
        assert_int_equal(error.status, TABLE[i].status);
        assert_string_equal(error.message, "100%s of it");
        assert_string_equal(error.type,
                            error.status >= 499 ? "server_error" : "invalid_request_error");
    }
}

TEST(routing_is_bounded)
{
    static const char BODY[] = CHAT("\"sluice\":{\"routing\":true},\"n\":4,\"max_tokens\":90000");
    rtr_api_request *request = NULL;
    rtr_api_error error;
    assert_false(
        rtr_api_prepare(&kit_settings, RTR_API_CHAT, BODY, strlen(BODY), 100000, &request, &error));
    assert_int_equal(error.status, 400);
    assert_string_equal(error.param, "sluice.routing");
    assert_text_contains(error.message, "360000 tokens (n times max_tokens) of 120 bytes");
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(wrong_requests_are_refused_by_name),
    cmocka_unit_test(constraints_may_be_slow),
    cmocka_unit_test(strict_functions_constrain_the_answer),
    cmocka_unit_test(defaults_and_unknown_fields),
    cmocka_unit_test(all_fields_arrive),
    cmocka_unit_test(salts_make_cache_spaces),
    cmocka_unit_test(completion_prompts),
    cmocka_unit_test(prompt_over_the_limit_is_told_with_counts),
    cmocka_unit_test(special_tokens_in_content),
    cmocka_unit_test(deep_json_is_refused),
    cmocka_unit_test(routing_is_bounded),
    cmocka_unit_test(statuses),
};
API_TEST_MAIN(TESTS)
