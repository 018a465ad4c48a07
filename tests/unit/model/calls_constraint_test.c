/* Constraints with calls: random walks whose calls parse and satisfy their functions' parameters.
 */
#include "model/output.h"
#include "tests/unit/model/walks.h"

typedef struct calls_check {
    bool thinking;
    bool content; /* a string may stand instead of calls */
    size_t calls_max;
    const char *names;
} calls_check;

static void check_against(const char *schema, const mdl_call *call)
{
    sl_json_doc *doc = NULL;
    sl_err err;
    assert_ok(sl_json_parse(schema, strlen(schema), NULL, &doc, &err), &err);
    check_json(call->arguments.data, call->arguments.size, sl_json_root(doc));
    sl_json_doc_destroy(doc);
}

static void check_arguments(const mdl_call *call)
{
    static const char PARAMETERS[] =
        "{\"required\":[\"s\",\"n\"],\"properties\":{\"s\":{\"type\":\"string\"},\"n\":{\"type\":"
        "\"integer\",\"minimum\":1,\"maximum\":9},\"c\":{\"enum\":[\"a "
        "b\",\"<c>\"]},\"o\":{\"type\":"
        "\"array\",\"items\":{\"type\":[\"string\",\"null\"],\"maxLength\":3}},\"m\":{\"type\":["
        "\"string\",\"null\"],\"maxLength\":5},\"any\":{}},\"additionalProperties\":false}";
    check_against(strcmp(call->name, "f") == 0 ? PARAMETERS : "{\"type\":\"object\"}", call);
}

static void check_strict_arguments(const mdl_call *call)
{
    static const char PARAMETERS[] =
        "{\"required\":[\"s\",\"n\",\"o\"],\"properties\":{\"s\":{\"type\":\"string\"},\"n\":{"
        "\"type\":"
        "\"integer\",\"minimum\":1,\"maximum\":9},\"o\":{\"type\":\"array\",\"items\":{\"type\":["
        "\"string\",\"null\"],\"maxLength\":3}}},\"additionalProperties\":false}";
    check_against(strcmp(call->name, "f") == 0 ? PARAMETERS : "{\"type\":\"object\"}", call);
}

/* By the strict parser of the model's markup. */
static void check_calls(const char *text, size_t size, const void *context)
{
    const calls_check *check = context;
    mdl_message message;
    sl_err err;
    char *whole =
        sl_asprintf("test", "%.*s<\uff5cend\u2581of\u2581sentence\uff5c>", (int)size, text);
    mdl_message_init(&message);
    sl_status status =
        mdl_message_parse_strict(whole, strlen(whole), check->thinking, &message, &err);
    if (!sl_is_ok(status))
        fail_msg("%s: %s", err.text, whole);
    if (message.call_count == 0) {
        assert_true(check->content);
        assert_true(message.content.size >= 2 && message.content.data[0] == '"');
    } else {
        assert_int_equal(message.content.size, 0);
        assert_true(message.call_count <= check->calls_max);
    }
    for (size_t i = 0; i < message.call_count; i++) {
        assert_non_null(strstr(check->names, message.calls[i].name));
        check_arguments(&message.calls[i]);
    }
    mdl_message_fini(&message);
    sl_free(whole);
}

TEST(forced_calls_satisfy_their_parameters)
{
    static const calls_check ANY = {.calls_max = MDL_CALLS_MAX, .names = "f g"};
    static const calls_check ONE = {.calls_max = 1, .names = "f g"};
    static const calls_check NAMED = {.thinking = true, .calls_max = 1, .names = "f"};
    walk_many(ASK(TOOL_F "," TOOL_G, "\"tool_choice\":\"required\""), 30, 0, check_calls, &ANY);
    walk_many(ASK(TOOL_F "," TOOL_G, "\"tool_choice\":\"required\",\"parallel_tool_calls\":false"),
              20, 0, check_calls, &ONE);
    walk_many(ASK(TOOL_F "," TOOL_G,
                  "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":"
                  "\"f\"}},\"thinking\":{\"type\":\"enabled\"}"),
              20, 0, check_calls, &NAMED);
}

TEST(calls_stand_beside_content)
{
    static const calls_check EITHER = {
        .thinking = true, .content = true, .calls_max = MDL_CALLS_MAX, .names = "f g"};
    walk_many(ASK(TOOL_F "," TOOL_G, "\"guided_json\":{\"type\":\"string\"},\"thinking\":{\"type\":"
                                     "\"enabled\"}"),
              40, 0, check_calls, &EITHER);
}

#define TOOL_STRICT                                                                           \
    "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true,\"parameters\":{"    \
    "\"type\":\"object\","                                                                    \
    "\"required\":[\"s\",\"n\",\"o\"],\"additionalProperties\":false,\"properties\":{\"s\":{" \
    "\"type\":"                                                                               \
    "\"string\"},\"n\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":9},\"o\":{\"type\":"   \
    "\"array\","                                                                              \
    "\"items\":{\"type\":[\"string\",\"null\"],\"maxLength\":3}}}}}}"

static void collect(const char *text, size_t size, const mdl_chat *chat, bool thinking,
                    mdl_message *out_message)
{
    mdl_output_options options = {
        .reasoning_open = thinking, .parse_calls = true, .chat = chat, .request_id = "r"};
    mdl_output *output = NULL;
    sl_err err;
    mdl_message_init(out_message);
    assert_ok(mdl_output_create(&options, mdl_message_collect, out_message, &output, &err), &err);
    assert_true(mdl_output_push(output, text, size));
    (void)mdl_output_finish(output, MDL_FINISH_STOP);
    assert_int_equal(mdl_output_counts_get(output)->broken_calls, 0);
    assert_int_equal(mdl_output_counts_get(output)->unknown_names, 0);
    mdl_output_destroy(output);
}

/* Answers that begin so under `auto` keep what stands before the calls; those of f satisfy its
 * parameters, those of g are as the model writes them. */
static void walk_auto(const char *begin, const char *content, bool thinking, size_t calls_max)
{
    char *request = sl_asprintf(
        "test",
        ASK(TOOL_STRICT "," TOOL_G, "\"parallel_tool_calls\":%s,\"thinking\":{\"type\":\"%s\"}"),
        calls_max == 1 ? "false" : "true", thinking ? "enabled" : "disabled");
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_json_doc *doc = NULL;
    mdl_chat *chat = NULL;
    mdl_ids ids = {0};
    sl_err err;
    assert_ok(sl_json_parse(request, strlen(request), NULL, &doc, &err), &err);
    assert_ok(mdl_chat_parse(sl_json_root(doc), NULL, &chat, &err), &err);
    assert_ok(try_compile(request, &constraint, &grammar, &err), &err);
    assert_ok(mdl_tokenizer_encode(tokenizer, begin, strlen(begin), NULL, &ids, &err), &err);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
    size_t calls_of_f = 0, calls_of_g = 0;
    for (int turn = 0; turn < 20; turn++) {
        static walk w;
        mdl_message message;
        walk_behind(matcher, &ids, (uint32_t)ids.count + 40 + draw(40), &w);
        collect(w.text.data, w.text.size, chat, thinking, &message);
        if (content) {
            assert_int_equal(message.content.size, strlen(content));
            assert_memory_equal(message.content.data, content, strlen(content));
            assert_in_range(message.call_count, 1, calls_max);
        }
        for (size_t i = 0; i < message.call_count; i++) {
            bool is_f = strcmp(message.calls[i].name, "f") == 0;
            calls_of_f += is_f;
            calls_of_g += !is_f;
            check_strict_arguments(&message.calls[i]);
        }
        mdl_message_fini(&message);
        sl_buf_fini(&w.text);
    }
    assert_true(!content || (calls_of_f > 0 && calls_of_g > 0));
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    mdl_ids_fini(&ids);
    sl_free(request);
}

TEST(strict_functions_hold_under_auto)
{
    walk_auto("Let me see.\n\n<\uff5cDSML\uff5c", "Let me see.", false, MDL_CALLS_MAX);
    walk_auto("\n\n<\uff5cDSML\uff5c", "", false, 1);
    walk_auto("Why</think>a < b\n\n\n\n<\uff5cDSML\uff5c", "a < b\n\n", true, MDL_CALLS_MAX);
    walk_auto("", NULL, false, MDL_CALLS_MAX);
    walk_auto("Well", NULL, true, MDL_CALLS_MAX);
}

/* Calls begin behind two newlines only, and end the answer; the end of reasoning stands once. */
TEST(free_text_has_its_markers_where_they_belong)
{
    static const struct {
        const char *before, *token;
        bool may;
    } STEPS[] = {
        {"Hi", "\uff5cDSML\uff5c", false},
        {"Hi <", "\uff5cDSML\uff5c", false},
        {"Hi\n\n<", "\uff5cDSML\uff5c", true},
        {"Hi\n\n<", "a", true},
        {"Hi", "</think>", false},
        {"Hi", "<\uff5cUser\uff5c>", false},
        {"", "<\uff5cend\u2581of\u2581sentence\uff5c>", true},
        {"Hi", "<\uff5cend\u2581of\u2581sentence\uff5c>", true},
        {"Hi\n\n<\uff5cDSML\uff5c", "<\uff5cend\u2581of\u2581sentence\uff5c>", false},
        {"Hi\n\n<\uff5cDSML\uff5cfunction_calls>\n<\uff5cDSML\uff5cinvoke name=\"", "h", false},
        {"Hi\n\n<\uff5cDSML\uff5cfunction_calls>\n<\uff5cDSML\uff5cinvoke name=\"", "f", true},
    };
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    assert_ok(
        try_compile(ASK(TOOL_STRICT, "\"tool_choice\":\"auto\""), &constraint, &grammar, &err),
        &err);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
    for (size_t i = 0; i < sizeof(STEPS) / sizeof(STEPS[0]); i++) {
        mdl_ids before = {0}, token = {0};
        mdl_cursor cursor = {.matcher = matcher};
        const char *text = STEPS[i].before, *next = STEPS[i].token;
        const uint32_t *mask;
        assert_ok(mdl_tokenizer_encode(tokenizer, text, strlen(text), NULL, &before, &err), &err);
        assert_ok(mdl_tokenizer_encode(tokenizer, next, strlen(next), NULL, &token, &err), &err);
        assert_int_equal(token.count, 1);
        assert_ok(mdl_cursor_mask(&cursor, masks, (const uint32_t *)before.data,
                                  (uint32_t)before.count, &mask, &err),
                  &err);
        if (allowed(mask, (uint32_t)token.data[0]) != STEPS[i].may)
            fail_msg("\"%s\" behind \"%s\"", next, text);
        mdl_ids_fini(&before);
        mdl_ids_fini(&token);
    }
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
}

/* Tools without a form, without force and none of them strict say nothing. */
TEST(nothing_is_constrained_unasked)
{
    mdl_constraint constraint;
    sl_json_doc *doc = NULL;
    mdl_chat *chat = NULL;
    sl_err err;
    static const char *const REQUESTS[] = {
        ASK(TOOL_F, "\"tool_choice\":\"auto\""),
        ASK(TOOL_F, "\"response_format\":{\"type\":\"text\"},\"tool_choice\":\"none\""),
        ASK(TOOL_STRICT, "\"tool_choice\":\"none\""),
        ASK(TOOL_F, "\"response_format\":null,\"structured_outputs\":null,\"guided_json\":null")};
    for (size_t i = 0; i < sizeof(REQUESTS) / sizeof(REQUESTS[0]); i++) {
        assert_ok(sl_json_parse(REQUESTS[i], strlen(REQUESTS[i]), NULL, &doc, &err), &err);
        assert_ok(mdl_chat_parse(sl_json_root(doc), NULL, &chat, &err), &err);
        mdl_constraint_init(&constraint);
        assert_ok(mdl_constraint_parse(sl_json_root(doc), chat, &constraint, &err), &err);
        assert_false(mdl_constraint_is_set(&constraint));
        mdl_constraint_fini(&constraint);
        mdl_chat_destroy(chat);
        sl_json_doc_destroy(doc);
    }
}

static int run(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forced_calls_satisfy_their_parameters),
        cmocka_unit_test(calls_stand_beside_content),
        cmocka_unit_test(strict_functions_hold_under_auto),
        cmocka_unit_test(free_text_has_its_markers_where_they_belong),
        cmocka_unit_test(nothing_is_constrained_unasked),
    };
    return cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    return walks_main(argc, argv, run);
}
