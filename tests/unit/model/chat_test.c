/* Chat encoding: the published vectors, splits, number formats, and every refusal. */
#include "model/chat.h"
#include "tests/unit/model/support.h"

#define ENCODING SHARED "/vectors/encoding"
#define U        "{\"role\":\"user\",\"content\":\"q\"}"
#define A        "{\"role\":\"assistant\",\"content\":\"a\"}"
#define CALL(id, name, arguments)                                             \
    "{\"id\":\"" id "\",\"type\":\"function\",\"function\":{\"name\":\"" name \
    "\",\"arguments\":" arguments "}}"
#define TOOL(id, text) "{\"role\":\"tool\",\"tool_call_id\":\"" id "\",\"content\":\"" text "\"}"
#define CALLS(calls) \
    "{\"role\":\"assistant\",\"reasoning_content\":\"r\",\"tool_calls\":[" calls "]}"
#define F "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}"

static const mdl_chat_options THINKING = {.mode_default = MDL_CHAT_MODE_THINKING};
static const mdl_chat_options COMPLETE = {.mode_default = MDL_CHAT_MODE_THINKING,
                                          .developer_allowed = true,
                                          .final_assistant_allowed = true};

/* A request with its document. */
typedef struct parsed {
    sl_json_doc *doc;
    mdl_chat *chat;
} parsed;

static sl_status try_parse(const char *text, const mdl_chat_options *options, parsed *out,
                           sl_err *err)
{
    sl_status status;

    memset(out, 0, sizeof(*out));
    assert_ok(sl_json_parse(text, strlen(text), NULL, &out->doc, err), err);
    status = mdl_chat_parse(sl_json_root(out->doc), options, &out->chat, err);
    if (!sl_is_ok(status))
        assert_null(out->chat);
    return status;
}

static void drop(parsed *p)
{
    mdl_chat_destroy(p->chat);
    sl_json_doc_destroy(p->doc);
}

static void check_prompt(const char *request, const mdl_chat_options *options, const char *expected)
{
    parsed p;
    mdl_prompt prompt = {0};
    sl_err err;

    assert_ok(try_parse(request, options, &p, &err), &err);
    mdl_chat_render(p.chat, 0, &prompt);
    assert_string_equal(prompt.text.data, expected);
    mdl_prompt_fini(&prompt);
    drop(&p);
}

static void check_refused(const char *request, const mdl_chat_options *options, sl_code code,
                          const char *part)
{
    parsed p;
    sl_err err = {0};
    sl_status status = try_parse(request, options, &p, &err);

    if (status.code != code)
        fail_msg("%s\n%s: %s", request, sl_code_name(status.code), err.text);
    if (!strstr(err.text, part))
        fail_msg("%s\n\"%s\" does not contain \"%s\"", request, err.text, part);
    drop(&p);
}

/* --- the published vectors --- */

static void check_vector(const char *input, const char *output)
{
    sl_json_doc *doc;
    mdl_chat *chat;
    mdl_prompt whole = {0}, tail = {0};
    sl_buf expected;
    size_t begin = 0, end;
    sl_err err;

    assert_ok(sl_json_parse_file(input, NULL, &doc, &err), &err);
    assert_ok(mdl_chat_parse(sl_json_root(doc), &COMPLETE, &chat, &err), &err);
    read_whole(output, &expected);
    end = expected.size;
    while (begin < end && strchr(" \n\r\t", expected.data[begin]))
        begin++;
    while (end > begin && strchr(" \n\r\t", expected.data[end - 1]))
        end--;
    mdl_chat_render(chat, 0, &whole);
    assert_int_equal(whole.text.size, end - begin);
    assert_memory_equal(whole.text.data, expected.data + begin, end - begin);
    /* Every split: what is rendered from message i on ends the whole. */
    for (size_t i = 1; i <= mdl_chat_message_count(chat); i++) {
        mdl_chat_render(chat, i, &tail);
        assert_true(tail.text.size <= whole.text.size);
        assert_memory_equal(tail.text.data, whole.text.data + whole.text.size - tail.text.size,
                            tail.text.size);
    }
    mdl_prompt_fini(&whole);
    mdl_prompt_fini(&tail);
    sl_buf_fini(&expected);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
}

TEST(vectors)
{
    skip_without(ENCODING);
    check_vector(ENCODING "/test_input.json", ENCODING "/test_output.txt");
    check_vector(ENCODING "/test_input_search_w_date.json",
                 ENCODING "/test_output_search_w_date.txt");
}

/* {"messages": the first `count` ones, "tools": ...} */
static void render_first(const sl_json *root, size_t count, mdl_prompt *prompt, bool *out_good)
{
    const sl_json *messages = sl_json_get(root, "messages");
    const sl_json *tools = sl_json_get(root, "tools");
    sl_buf text;
    parsed p;
    sl_err err;

    sl_buf_init(&text, 0);
    sl_buf_puts(&text, "{\"messages\":[");
    for (size_t i = 0; i < count; i++) {
        sl_buf_puts(&text, i ? "," : "");
        sl_json_write(&text, sl_json_at(messages, i));
    }
    sl_buf_putc(&text, ']');
    if (tools) {
        sl_buf_puts(&text, ",\"tools\":");
        sl_json_write(&text, tools);
    }
    sl_buf_putc(&text, '}');
    *out_good = sl_is_ok(try_parse(text.data, &COMPLETE, &p, &err));
    if (*out_good)
        mdl_chat_render(p.chat, 0, prompt);
    drop(&p);
    sl_buf_fini(&text);
}

/* Adding assistant and tool messages extends the prompt. */
static void check_append_only(const char *input)
{
    sl_json_doc *doc;
    const sl_json *messages;
    mdl_prompt shorter = {0}, longer = {0};
    size_t extended = 0;
    sl_err err;

    assert_ok(sl_json_parse_file(input, NULL, &doc, &err), &err);
    messages = sl_json_get(sl_json_root(doc), "messages");
    for (size_t i = 1; i < sl_json_count(messages); i++) {
        const char *role = sl_json_string(sl_json_get(sl_json_at(messages, i), "role"), NULL);
        bool good;

        render_first(sl_json_root(doc), i, &shorter, &good);
        if (!good || strcmp(role, "user") == 0)
            continue; /* results are incomplete there; or the former turn changes */
        for (size_t k = i + 1; k <= sl_json_count(messages); k++) {
            const char *next =
                sl_json_string(sl_json_get(sl_json_at(messages, k - 1), "role"), NULL);

            if (strcmp(next, "user") == 0)
                break;
            render_first(sl_json_root(doc), k, &longer, &good);
            if (!good)
                continue;
            assert_true(longer.text.size >= shorter.text.size);
            assert_memory_equal(longer.text.data, shorter.text.data, shorter.text.size);
            extended++;
        }
    }
    assert_true(extended > 3);
    mdl_prompt_fini(&shorter);
    mdl_prompt_fini(&longer);
    sl_json_doc_destroy(doc);
}

TEST(assistant_and_tool_messages_only_append)
{
    skip_without(ENCODING);
    check_append_only(ENCODING "/test_input.json");
    check_append_only(ENCODING "/test_input_search_w_date.json");
}

TEST(content_ranges_cover_what_the_client_sent)
{
    parsed p;
    mdl_prompt prompt = {0};
    sl_err err;
    const char *request =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"SSS\"},{\"role\":\"user\",\"content\":"
        "\"QQQ\"},{\"role\":\"assistant\",\"content\":\"AAA\"},{\"role\":\"user\",\"content\":"
        "\"WWW\"}]}";
    static const char *const CONTENT[] = {"SSS", "QQQ", "AAA", "WWW"};

    assert_ok(try_parse(request, NULL, &p, &err), &err);
    for (int round = 0; round < 2; round++) { /* a prompt may be used again */
        mdl_chat_render(p.chat, 0, &prompt);
        assert_int_equal(prompt.content_count, 4);
        for (size_t i = 0; i < 4; i++) {
            mdl_range r = prompt.content[i];

            assert_int_equal(r.end - r.begin, 3);
            assert_memory_equal(prompt.text.data + r.begin, CONTENT[i], 3);
        }
    }
    mdl_prompt_fini(&prompt);
    drop(&p);
}

/* --- shapes --- */

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USR "<｜User｜>"
#define AST "<｜Assistant｜>"

TEST(plain_turns)
{
    check_prompt("{\"messages\":[" U "]}", NULL, BOS USR "q" AST "</think>");
    check_prompt("{\"messages\":[" U "]}", &THINKING, BOS USR "q" AST "<think>");
    check_prompt("{\"messages\":[" U "],\"thinking\":{\"type\":\"enabled\"}}", NULL,
                 BOS USR "q" AST "<think>");
    check_prompt("{\"messages\":[" U "],\"thinking\":{\"type\":\"disabled\"}}", &THINKING,
                 BOS USR "q" AST "</think>");
    check_prompt("{\"messages\":[" U "],\"chat_template_kwargs\":{\"thinking\":true}}", NULL,
                 BOS USR "q" AST "<think>");
    check_prompt("{\"messages\":[" U "],\"chat_template_kwargs\":{\"enable_thinking\":false}}",
                 &THINKING, BOS USR "q" AST "</think>");
    check_prompt("{\"messages\":[" U "," A "," U "]}", &THINKING,
                 BOS USR "q" AST "</think>a" EOS USR "q" AST "<think>");
    check_prompt("{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"a\","
                 "\"reasoning_content\":\"gone\"}," U "]}",
                 &THINKING, BOS USR "q" AST "</think>a" EOS USR "q" AST "<think>");
    check_prompt("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"}," U "," A
                 ",{\"role\":\"system\",\"content\":\"mid\"}," U "]}",
                 NULL, BOS "s" USR "q" AST "</think>a" EOS "mid" USR "q" AST "</think>");
    check_prompt("{\"messages\":[{\"role\":\"system\",\"content\":null}," U "]}", NULL,
                 BOS USR "q" AST "</think>");
    check_prompt("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
                 "\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
                 NULL, BOS USR "a\nb" AST "</think>");
    check_prompt("{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", NULL,
                 BOS USR AST "</think>");
}

#define CALLS_BEGIN "\n\n<｜DSML｜function_calls>\n"
#define CALLS_END   "</｜DSML｜function_calls>" EOS

TEST(calls_and_results)
{
    const char *expected =
        BOS USR "q" AST "<think>r</think>" CALLS_BEGIN "<｜DSML｜invoke name=\"f\">\n"
                "<｜DSML｜parameter name=\"s\" string=\"true\"> \"x\"\n</｜DSML｜parameter>\n"
                "<｜DSML｜parameter name=\"o\" string=\"false\">{\"a\": [1, 2.0, "
                "null]}</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"g\">\n\n"
                "</｜DSML｜invoke>\n" CALLS_END
                "\n\n<function_results>\n<result>one</result>\n<result>two</result>\n"
                "</function_results>\n\n<think>";
    const char *calls = CALLS(
        CALL("c1", "f",
             "\"{\\\"s\\\":\\\" "
             "\\\\\\\"x\\\\\\\"\\\\n\\\",\\\"o\\\":{\\\"a\\\":[1,2.0,null]}}\"") "," CALL("c2", "g",
                                                                                          "{}"));
    char request[2048];

    snprintf(request, sizeof(request),
             "{\"messages\":[" U ",%s," TOOL("c1", "one") "," TOOL("c2", "two") "]}", calls);
    check_prompt(request, &THINKING, expected);
    /* Ids put the results in call order. */
    snprintf(request, sizeof(request),
             "{\"messages\":[" U ",%s," TOOL("c2", "two") "," TOOL("c1", "one") "]}", calls);
    check_prompt(request, &THINKING, expected);
    /* Without an id they go by order. */
    snprintf(request, sizeof(request),
             "{\"messages\":[" U
             ",%s,{\"role\":\"tool\",\"content\":\"one\"}," TOOL("zz", "two") "]}",
             calls);
    check_prompt(request, &THINKING, expected);
}

TEST(a_new_user_message_removes_reasoning_but_not_calls)
{
    check_prompt("{\"messages\":[" U "," CALLS(CALL("c", "f", "{}")) "," TOOL("c", "x") "," U "]}",
                 &THINKING,
                 BOS USR "q" AST "</think>" CALLS_BEGIN "<｜DSML｜invoke name=\"f\">\n\n"
                         "</｜DSML｜invoke>\n" CALLS_END
                         "\n\n<function_results>\n<result>x</result>\n</function_results>\n\n"
                         "</think>" USR "q" AST "<think>");
}

TEST(tools_and_format_attach_to_the_front)
{
    parsed p;
    mdl_prompt with = {0}, without = {0};
    sl_err err;

    /* Inserted system message; the tools text ends in one newline. */
    assert_ok(try_parse("{\"messages\":[" U "],\"tools\":[" F "]}", NULL, &p, &err), &err);
    mdl_chat_render(p.chat, 0, &with);
    assert_int_equal(mdl_chat_message_count(p.chat), 2);
    assert_true(mdl_chat_calls_expected(p.chat));
    assert_text_contains(with.text.data, BOS "\n\n## Tools\n\nYou have");
    assert_text_contains(with.text.data, "<functions>\n{\"name\": \"f\", \"parameters\": {}}\n"
                                         "</functions>\n" USR "q");
    assert_string_equal(mdl_chat_tool_name(p.chat, 0), "f");
    drop(&p);
    assert_ok(try_parse("{\"messages\":[" U "],\"tools\":[" F "],\"tool_choice\":\"none\"}", NULL,
                        &p, &err),
              &err);
    mdl_chat_render(p.chat, 0, &without);
    assert_string_equal(without.text.data, BOS USR "q" AST "</think>");
    assert_false(mdl_chat_calls_expected(p.chat));
    drop(&p);
    assert_ok(try_parse("{\"messages\":[" U "],\"tools\":[" F "],\"response_format\":{\"type\":"
                        "\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":{\"type\":"
                        "\"object\"}}}}",
                        NULL, &p, &err),
              &err);
    assert_int_equal(mdl_chat_message_count(p.chat), 2);
    mdl_chat_render(p.chat, 0, &with);
    assert_text_contains(with.text.data,
                         "</functions>\n\n\n## Response Format:\n\nYou MUST strictly adhere to the "
                         "following schema to reply:\n{\"type\": \"object\"}" USR "q");
    assert_int_equal(mdl_chat_response_format(p.chat), MDL_RESPONSE_JSON_SCHEMA);
    drop(&p);
    check_prompt("{\"messages\":[" U "],\"response_format\":{\"type\":\"json_object\"}}", NULL,
                 BOS USR "q" AST "</think>");
    mdl_prompt_fini(&with);
    mdl_prompt_fini(&without);
}

TEST(developer)
{
    mdl_chat_options keep = COMPLETE;
    const char *request = "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"}," U "]}";

    check_prompt("{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"}]}", &COMPLETE,
                 BOS USR "\n\n# The user's message is: d" AST "<think>");
    check_prompt(request, &COMPLETE, BOS USR "q" AST "<think>"); /* dropped */
    keep.keep_developer = true;
    check_prompt(request, &keep,
                 BOS USR "\n\n# The user's message is: d" AST "</think>" USR "q" AST "<think>");
    keep.keep_developer = false;
    keep.mode_default = MDL_CHAT_MODE_CHAT;
    check_prompt(request, &keep,
                 BOS USR "\n\n# The user's message is: d" AST "</think>" USR "q" AST "</think>");
}

static void check_open(const char *request, const mdl_chat_options *options, bool open)
{
    parsed p;
    sl_err err;

    assert_ok(try_parse(request, options, &p, &err), &err);
    assert_int_equal(mdl_chat_reasoning_open(p.chat), open);
    drop(&p);
}

TEST(effort)
{
    static const struct {
        const char *fields;
        bool open;
    } CASES[] = {
        {"", false},
        {",\"reasoning_effort\":null", false},
        {",\"reasoning_effort\":\"none\"", false},
        {",\"reasoning_effort\":\"minimal\"", true},
        {",\"reasoning_effort\":\"xhigh\"", true},
        {",\"reasoning_effort\":\"high\",\"thinking\":{\"type\":\"disabled\"}", false},
        {",\"reasoning_effort\":\"none\",\"chat_template_kwargs\":{\"thinking\":true}", true},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        char request[512];
        snprintf(request, sizeof(request), "{\"messages\":[" U "]%s}", CASES[i].fields);
        check_open(request, NULL, CASES[i].open);
    }
}

TEST(prefix)
{
    const char *both = "{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"c\","
                       "\"reasoning_content\":\"r\",\"prefix\":true}]}";
    const char *open = "{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"\","
                       "\"reasoning_content\":\"r\",\"prefix\":true}]}";

    check_prompt("{\"messages\":[" U "," A "],\"continue_final_message\":true}", NULL,
                 BOS USR "q" AST "</think>a");
    check_prompt(both, NULL, BOS USR "q" AST "</think>c");
    check_prompt(both, &THINKING, BOS USR "q" AST "<think>r</think>c");
    check_prompt(open, &THINKING, BOS USR "q" AST "<think>r");
    check_open(both, &THINKING, false);
    check_open(open, &THINKING, true);
    check_open(open, NULL, false);
    check_open("{\"messages\":[" U "]}", &THINKING, true);
    check_open("{\"messages\":[" U "]}", NULL, false);
    check_open("{\"messages\":[" U "," CALLS(CALL("c", "f", "{}")) "," TOOL("c", "x") "]}",
               &THINKING, true);
}

static void check_number(const char *source, const char *expected)
{
    char request[512], part[256];
    parsed p;
    mdl_prompt prompt = {0};
    sl_err err;

    snprintf(request, sizeof(request),
             "{\"messages\":[" U ",{\"role\":\"assistant\",\"tool_calls\":[" CALL(
                 "c", "f", "{\"x\":%s}") "]}," TOOL("c", "y") "]}",
             source);
    snprintf(part, sizeof(part), "string=\"false\">%s</｜DSML｜parameter>", expected);
    assert_ok(try_parse(request, NULL, &p, &err), &err);
    mdl_chat_render(p.chat, 0, &prompt);
    assert_text_contains(prompt.text.data, part);
    mdl_prompt_fini(&prompt);
    drop(&p);
}

TEST(numbers_in_python_style)
{
    static const char *const CASES[][2] = {
        {"0", "0"},
        {"-0", "0"},
        {"5", "5"},
        {"12345678901234567890123", "12345678901234567890123"},
        {"5.0", "5.0"},
        {"-0.0", "-0.0"},
        {"0.1", "0.1"},
        {"0.10", "0.1"},
        {"1e0", "1.0"},
        {"100000.0", "100000.0"},
        {"0.0001", "0.0001"},
        {"0.00001", "1e-05"},
        {"1e-05", "1e-05"},
        {"1E16", "1e+16"},
        {"1e16", "1e+16"},
        {"9999999999999998.0", "9999999999999998.0"},
        {"1e15", "1000000000000000.0"},
        {"1.5e16", "1.5e+16"},
        {"1e22", "1e+22"},
        {"1e100", "1e+100"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"5e-324", "5e-324"},
        {"0.1e1", "1.0"},
        {"3.141592653589793238", "3.141592653589793"},
        {"true", "true"},
        {"null", "null"},
        {"[1,\"\\u00e9\\u0001\\/\"]", "[1, \"é\\u0001/\"]"},
    };

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        check_number(CASES[i][0], CASES[i][1]);
}

/* --- refusals --- */

TEST(refused_messages)
{
    static const struct {
        const char *request, *part;
    } CASES[] = {
        {"[]", "request"},
        {"{}", "messages: is missing"},
        {"{\"messages\":[]}", "messages: is empty"},
        {"{\"messages\":{}}", "messages: must be an array"},
        {"{\"messages\":[7]}", "messages[0]: must be an object"},
        {"{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":\"function\",\"content\":\"x\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", "use \"system\""},
        {"{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content: is missing"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "messages[0].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "messages[0].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"s\"}]}", "nothing to answer"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\"}," U "]}", "messages[1].content"},
        {"{\"messages\":[" U "," A "]}", "\"prefix\": true"},
        {"{\"messages\":[" A "],\"continue_final_message\":true}", "to answer"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"a\",\"prefix\":true}," U "]}",
         "messages[1].prefix"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"a\",\"prefix\":1}]}",
         "messages[1].prefix"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\",\"content\":\"a\",\"reasoning\":1}," U "]}",
         "messages[1].reasoning"},
        {"{\"messages\":[" U "],\"continue_final_message\":\"yes\"}", "continue_final_message"},
        {"{\"messages\":[" U "],\"thinking\":true}", "thinking"},
        {"{\"messages\":[" U "],\"thinking\":{\"type\":\"on\"}}", "thinking"},
        {"{\"messages\":[" U "],\"chat_template_kwargs\":{\"thinking\":\"x\"}}",
         "chat_template_kwargs.thinking"},
        {"{\"messages\":[" U "],\"chat_template_kwargs\":[]}", "chat_template_kwargs"},
        {"{\"messages\":[" U "],\"reasoning_effort\":\"some\"}", "reasoning_effort: must be none"},
        {"{\"messages\":[" U "],\"reasoning_effort\":3}", "reasoning_effort: must be none"},
        {"{\"messages\":[" U "],\"response_format\":{\"type\":\"xml\"}}", "response_format"},
        {"{\"messages\":[" U "],\"response_format\":{\"type\":\"json_schema\"}}",
         "response_format.json_schema.schema"},
    };

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        check_refused(CASES[i].request, NULL, SL_INVALID, CASES[i].part);
    check_refused("{\"messages\":[{\"role\":\"developer\",\"content\":\"\"}]}", &COMPLETE,
                  SL_INVALID, "messages[0].content: must not be empty");
    /* After the last user message thinking mode needs reasoning. */
    check_refused("{\"messages\":[" U "," A "," CALLS(CALL("c", "f", "{}")) "," TOOL("c", "x") "]}",
                  &THINKING, SL_INVALID, "messages[1].reasoning_content");
}

TEST(refused_tools_and_calls)
{
    static const struct {
        const char *request, *part;
    } CASES[] = {
        {"{\"messages\":[" U "],\"tools\":{}}", "tools: must be an array"},
        {"{\"messages\":[" U "],\"tools\":[{}]}", "tools[0].type"},
        {"{\"messages\":[" U "],\"tools\":[{\"type\":\"function\"}]}", "tools[0].function"},
        {"{\"messages\":[" U "],\"tools\":[" F ",{\"type\":\"function\",\"function\":{}}]}",
         "tools[1].function.name"},
        {"{\"messages\":[" U
         "],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a<b\"}}]}",
         "tools[0].function.name"},
        {"{\"messages\":[" U "],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\","
         "\"parameters\":[]}}]}",
         "tools[0].function.parameters"},
        {"{\"messages\":[" U "],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\","
         "\"strict\":1}}]}",
         "tools[0].function.strict: must be true or false"},
        {"{\"messages\":[" U "],\"tools\":[" F "," F "]}", "is also the name of tools[0]"},
        {"{\"messages\":[" U "],\"tool_choice\":\"maybe\"}", "tool_choice"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"\",\"tools\":[" F "]}," U
         "],\"tools\":[" F "]}",
         "tools: given in the request and in a message"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\",\"tool_calls\":{}}," U "]}",
         "messages[1].tool_calls"},
        {"{\"messages\":[" U ",{\"role\":\"assistant\",\"tool_calls\":[{}]}," U "]}",
         "messages[1].tool_calls[0].function"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "\"[1]\"")) "," U "]}",
         "messages[1].tool_calls[0].function.arguments: must be a JSON object"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "\"{x\"")) "," U "]}", "is not JSON"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "\"\"")) "," U "]}", "is not JSON"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "5")) "," U "]}", "arguments"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{\"a\\\"b\":1}")) "," U "]}",
         "parameter name"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f\\n", "{}")) "," U "]}", "function.name"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{}") "," CALL("c", "g", "{}")) "," U "]}",
         "messages[1].tool_calls[1].id: occurs twice"},
        {"{\"messages\":[" U "," TOOL("c", "x") "]}", "messages[1]: tool message"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{}")) "," U "]}", "missing: c"},
        {"{\"messages\":[" U
         "," CALLS(CALL("c", "f", "{}") "," CALL("d", "g", "{}")) "," TOOL("c", "x") "]}",
         "missing: d"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{}") "," CALL("d", "g", "{}")) "," TOOL(
             "c", "x") "," TOOL("c", "y") "]}",
         "messages[3].tool_call_id: \"c\" is answered twice"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{}")) "," TOOL("e", "x") "]}",
         "messages[2].tool_call_id: \"e\" is not a call"},
        {"{\"messages\":[" U
         "," CALLS(CALL("c", "f", "{}")) "," TOOL("c", "x") "," TOOL("c", "y") "]}",
         "messages[3]: tool message without a call"},
        {"{\"messages\":[" U "," CALLS(CALL("c", "f", "{}")) "],\"continue_final_message\":true}",
         "not allowed in a prefix"},
    };
    mdl_chat_options speciale = {.speciale = true};

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        check_refused(CASES[i].request, NULL, SL_INVALID, CASES[i].part);
    check_refused("{\"messages\":[" U "],\"tool_choice\":\"required\"}", NULL, SL_INVALID,
                  "there are no tools");
    check_refused("{\"messages\":[" U "],\"tools\":[" F "],\"tool_choice\":{\"type\":\"function\","
                  "\"function\":{\"name\":\"g\"}}}",
                  NULL, SL_INVALID, "is not among tools");
    check_refused("{\"messages\":[" U "],\"tools\":[" F "]}", &speciale, SL_INVALID,
                  "does not support tool calls");
    check_refused("{\"messages\":[" U "],\"thinking\":{\"type\":\"disabled\"}}", &speciale,
                  SL_INVALID, "thinking");
    check_prompt("{\"messages\":[" U "]}", &speciale, BOS USR "q" AST "<think>");
}

TEST(counts_for_metrics)
{
    parsed p;
    sl_err err;

    assert_ok(try_parse("{\"messages\":[" U "," A "," U
                        ",{\"role\":\"assistant\",\"tool_calls\":[" CALL("c", "f", "{}") "]}," TOOL(
                            "c", "x") "]}",
                        &THINKING, &p, &err),
              &err);
    assert_int_equal(mdl_chat_calls_without_reasoning(p.chat), 1);
    assert_int_equal(mdl_chat_user_turns(p.chat), 2);
    drop(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(vectors),
    cmocka_unit_test(assistant_and_tool_messages_only_append),
    cmocka_unit_test(content_ranges_cover_what_the_client_sent),
    cmocka_unit_test(plain_turns),
    cmocka_unit_test(calls_and_results),
    cmocka_unit_test(a_new_user_message_removes_reasoning_but_not_calls),
    cmocka_unit_test(tools_and_format_attach_to_the_front),
    cmocka_unit_test(developer),
    cmocka_unit_test(effort),
    cmocka_unit_test(prefix),
    cmocka_unit_test(numbers_in_python_style),
    cmocka_unit_test(refused_messages),
    cmocka_unit_test(refused_tools_and_calls),
    cmocka_unit_test(counts_for_metrics),
};
TEST_MAIN(tests)
