/* Answers: the events of a stream, and that they say the same as the whole answer for every cut. */
#include "tests/unit/router/api_kit.h"

#include <math.h>

#include "base/json.h"
#include "router/answer.h"
#include "router/answer_json.h"

#define TOOLS                                                                                    \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":" \
    "\"object\",\"properties\":{\"a\":{\"type\":\"number\"},\"s\":{\"type\":\"string\"}}}}}]"
#define DSML       \
    "\xef\xbd\x9c" \
    "DSML"         \
    "\xef\xbd\x9c"
#define CALL_TEXT                                                                              \
    "\n\n<" DSML "function_calls>\n<" DSML "invoke name=\"add\">\n<" DSML                      \
    "parameter name=\"a\" string=\"false\">1</" DSML "parameter>\n<" DSML                      \
    "parameter name=\"s\" string=\"true\">x\"y</" DSML "parameter>\n</" DSML "invoke>\n<" DSML \
    "invoke name=\"add\">\n\n</" DSML "invoke>\n</" DSML "function_calls>"

typedef struct fixture {
    rtr_api_request *request;
    rtr_answer *answer;
    mdl_ids ids;
} fixture;

static void open_fixture(fixture *f, rtr_api_kind kind, const char *body, const char *text)
{
    sl_err err;
    rtr_api_error error;
    memset(f, 0, sizeof *f);
    if (!rtr_api_prepare(&kit_settings, kind, body, strlen(body), 1000, &f->request, &error))
        fail_msg("%s", error.message);
    rtr_answer_options options = {.request = f->request,
                                  .tokenizer = kit_tokenizer,
                                  .shape = &kit_shape,
                                  .request_id = "r-1",
                                  .model = "demo",
                                  .created = 12};
    assert_ok(rtr_answer_create(&options, &f->answer, &err), &err);
    assert_ok(mdl_tokenizer_encode(kit_tokenizer, text, strlen(text), NULL, &f->ids, &err), &err);
}

static void close_fixture(fixture *f)
{
    rtr_answer_destroy(f->answer);
    rtr_api_request_destroy(f->request);
    mdl_ids_fini(&f->ids);
}

/* All tokens in steps of `cut`; false if a stop string ended it. */
static bool push_all(fixture *f, size_t cut)
{
    rtr_answer_begin(f->answer, "cpu-test");
    for (size_t at = 0; at < f->ids.count; at += cut) {
        size_t count = f->ids.count - at < cut ? f->ids.count - at : cut;
        if (!rtr_answer_push(f->answer, 0, (const uint32_t *)f->ids.data + at, NULL, count))
            return false;
    }
    return true;
}

static void check_text(fixture *f, const char *expected)
{
    sl_buf *out = rtr_answer_output(f->answer);
    if (strcmp(out->data, expected) != 0)
        fail_msg("got:\n%s\nexpected:\n%s", out->data, expected);
}

#define HEAD_CHAT                                                                             \
    "{\"id\":\"chatcmpl-r-1\",\"object\":\"chat.completion.chunk\",\"created\":12,\"model\":" \
    "\"demo\",\"system_fingerprint\":\"cpu-test\""
#define CHOICE(delta, finish) \
    ",\"choices\":[{\"index\":0,\"delta\":" delta ",\"logprobs\":null,\"finish_reason\":" finish

TEST(stream_of_chat)
{
    fixture f;
    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true}", "I am");
    assert_true(push_all(&f, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    check_text(&f, "data: " HEAD_CHAT CHOICE(
                       "{\"role\":\"assistant\",\"content\":\"\"}",
                       "null}]}\n\n") "data: " HEAD_CHAT CHOICE("{\"content\":\"I\"}",
                                                                "null}]}\n\n") "data: " HEAD_CHAT
                       CHOICE("{\"content\":\" am\"}", "null}]}\n\n") "data: " HEAD_CHAT CHOICE(
                           "{}", "\"stop\"}]}\n\n") "data: [DONE]\n\n");
    close_fixture(&f);
}

TEST(stream_with_usage_and_ids)
{
    fixture f;
    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,"
                 "\"stream_options\":{\"include_usage\":true},\"return_token_ids\":true}",
                 "I am");
    assert_true(push_all(&f, 2));
    rtr_answer_set_cached(f.answer, 3);
    uint32_t eos = (uint32_t)mdl_tokenizer_special(kit_tokenizer)->eos;
    assert_true(rtr_answer_push(f.answer, 0, &eos, NULL, 1)); /* counted, not shown */
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    check_text(
        &f,
        "data: " HEAD_CHAT ",\"prompt_token_ids\":[0,8179,74,75,8180,8189]" CHOICE(
            "{\"role\":\"assistant\",\"content\":\"\"}",
            "null}],\"usage\":null}\n\n") "data: " HEAD_CHAT
            CHOICE("{\"content\":\"I am\"}", "null,\"token_ids\":[43,562]}],"
                                             "\"usage\":null}\n\n") "data: " HEAD_CHAT
                CHOICE(
                    "{}",
                    "\"stop\",\"token_ids\":[1]}],\"usage\":null}\n\n") "data: " HEAD_CHAT
                                                                        ",\"choices\":[],\"usage\":"
                                                                        "{\"prompt_tokens\":6,"
                                                                        "\"completion_tokens\":3,"
                                                                        "\"total_tokens\":9,"
                                                                        "\"prompt_tokens_details\":"
                                                                        "{\"cached_tokens\":3},"
                                                                        "\"completion_tokens_"
                                                                        "details\":{\"reasoning_"
                                                                        "tokens\":0}}}\n\n"
                                                                        "data: [DONE]\n\n");
    close_fixture(&f);
}

/* Free text stays what it is: calls behind it are found, whichever functions are strict. */
TEST(calls_behind_text_of_strict_functions)
{
    static const char *const STRICT[] = {"false", "true"};
    for (size_t i = 0; i < 2; i++) {
        fixture f;
        char *body = sl_asprintf("test",
                                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"tools\":"
                                 "[{\"type\":\"function\","
                                 "\"function\":{\"name\":\"add\",\"strict\":%s,\"parameters\":{"
                                 "\"type\":\"object\",\"required\":["
                                 "\"a\",\"s\"],\"additionalProperties\":false,\"properties\":{"
                                 "\"a\":{\"type\":\"number\"},\"s\":{"
                                 "\"type\":\"string\"}}}}}]}",
                                 STRICT[i]);
        open_fixture(&f, RTR_API_CHAT, body, "I add" CALL_TEXT);
        assert_true(push_all(&f, 1));
        rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
        sl_buf *out = rtr_answer_output(f.answer);
        assert_text_contains(out->data, "\"content\":\"I add\"");
        assert_text_contains(out->data,
                             "\"arguments\":\"{\\\"a\\\": 1, \\\"s\\\": \\\"x\\\\\\\"y\\\"}\"");
        assert_text_contains(out->data, "\"finish_reason\":\"tool_calls\"");
        close_fixture(&f);
        sl_free(body);
    }
}

TEST(whole_chat_answer)
{
    fixture f;
    open_fixture(&f, RTR_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
                 "say \"x\"");
    assert_true(push_all(&f, 3));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH);
    sl_json_doc *doc;
    sl_err err;
    sl_buf *out = rtr_answer_output(f.answer);
    assert_ok(sl_json_parse(out->data, out->size, NULL, &doc, &err), &err);
    assert_text_contains(out->data, "\"object\":\"chat.completion\",\"created\":12");
    assert_text_contains(out->data, "\"message\":{\"role\":\"assistant\",\"content\":"
                                    "\"say \\\"x\\\"\"},\"logprobs\":null,"
                                    "\"finish_reason\":\"length\"}],\"usage\":{");
    sl_json_doc_destroy(doc);
    close_fixture(&f);
}

/* What a client would put together from a stream. */
typedef struct joined {
    sl_buf reasoning, content, arguments[4];
    char names[4][32], ids[4][32], finish[16];
    size_t calls;
    mdl_ids tokens;
} joined;

static void join_text(sl_buf *out, const sl_json *value)
{
    size_t size;
    const char *text = sl_json_string(value, &size);
    if (text)
        sl_buf_append(out, text, size);
}

static void join_choice(joined *j, const sl_json *choice)
{
    const sl_json *delta = sl_json_get(choice, "delta");
    join_text(&j->reasoning, sl_json_get(delta, "reasoning_content"));
    join_text(&j->content, sl_json_get(delta, "content"));
    const sl_json *calls = sl_json_get(delta, "tool_calls");
    assert_true(sl_json_count(calls) <= 1);
    if (sl_json_count(calls) == 1) {
        const sl_json *call = sl_json_at(calls, 0);
        int64_t index;
        assert_true(sl_json_i64(sl_json_get(call, "index"), &index) && index < 4);
        const sl_json *function = sl_json_get(call, "function");
        if (sl_json_get(call, "id")) {
            assert_int_equal(index, j->calls);
            j->calls++;
            snprintf(j->ids[index], 32, "%s", sl_json_string(sl_json_get(call, "id"), NULL));
            snprintf(j->names[index], 32, "%s",
                     sl_json_string(sl_json_get(function, "name"), NULL));
        }
        join_text(&j->arguments[index], sl_json_get(function, "arguments"));
    }
    const sl_json *tokens = sl_json_get(choice, "token_ids");
    for (size_t i = 0; i < sl_json_count(tokens); i++) {
        int64_t id;
        assert_true(sl_json_i64(sl_json_at(tokens, i), &id));
        mdl_ids_push(&j->tokens, (int32_t)id);
    }
    const char *finish = sl_json_string(sl_json_get(choice, "finish_reason"), NULL);
    if (finish)
        snprintf(j->finish, sizeof j->finish, "%s", finish);
}

static void join_stream(joined *j, const char *text)
{
    memset(j, 0, sizeof *j);
    bool done = false;
    while (*text) {
        sl_json_doc *doc;
        sl_err err;
        const char *end = strstr(text, "\n\n");
        assert_non_null(end);
        assert_memory_equal(text, "data: ", 6);
        assert_false(done);
        text += 6;
        if (strncmp(text, "[DONE]", 6) == 0) {
            done = true;
        } else {
            assert_ok(sl_json_parse(text, (size_t)(end - text), NULL, &doc, &err), &err);
            const sl_json *choices = sl_json_get(sl_json_root(doc), "choices");
            if (sl_json_count(choices))
                join_choice(j, sl_json_at(choices, 0));
            sl_json_doc_destroy(doc);
        }
        text = end + 2;
    }
    assert_true(done);
}

static void joined_fini(joined *j)
{
    sl_buf_fini(&j->reasoning);
    sl_buf_fini(&j->content);
    for (size_t i = 0; i < 4; i++)
        sl_buf_fini(&j->arguments[i]);
    mdl_ids_fini(&j->tokens);
}

TEST(tool_calls_and_reasoning_in_every_cut)
{
    static const char BODY[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"1+1\"}]," TOOLS
        ",\"thinking\":{\"type\":\"enabled\"},\"stream\":true,\"return_token_ids\":true}";
    static const char TEXT[] = "Let me add \xf0\x9f\x98\x80.</think>Sure." CALL_TEXT;
    for (size_t cut = 1; cut < 80; cut++) {
        fixture f;
        joined j;
        open_fixture(&f, RTR_API_CHAT, BODY, TEXT);
        assert_true(push_all(&f, cut));
        rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
        join_stream(&j, rtr_answer_output(f.answer)->data);
        assert_string_equal(j.reasoning.data, "Let me add \xf0\x9f\x98\x80.");
        assert_string_equal(j.content.data, "Sure.");
        assert_int_equal(j.calls, 2);
        assert_string_equal(j.names[0], "add");
        assert_string_equal(j.arguments[0].data, "{\"a\": 1, \"s\": \"x\\\"y\"}");
        assert_string_equal(j.arguments[1].data, "{}");
        assert_string_not_equal(j.ids[0], j.ids[1]);
        assert_string_equal(j.finish, "tool_calls");
        assert_int_equal(j.tokens.count, f.ids.count); /* each token once, in order */
        assert_memory_equal(j.tokens.data, f.ids.data, f.ids.count * sizeof(int32_t));
        assert_true(rtr_answer_usage_get(f.answer)->reasoning_tokens > 3);
        joined_fini(&j);
        close_fixture(&f);
    }
}

TEST(whole_answer_with_calls)
{
    fixture f;
    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"1+1\"}]," TOOLS "}",
                 CALL_TEXT + 0);
    assert_true(push_all(&f, 1000));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    const char *text = rtr_answer_output(f.answer)->data;
    assert_text_contains(text, "\"content\":null,\"tool_calls\":[{\"id\":\"call_");
    assert_text_contains(text, "\"function\":{\"name\":\"add\",\"arguments\":\"{\\\"a\\\": 1, "
                               "\\\"s\\\": \\\"x\\\\\\\"y\\\"}\"}}");
    assert_text_contains(text, "\"finish_reason\":\"tool_calls\"");
    close_fixture(&f);
}

TEST(stop_string_in_every_cut)
{
    static const char *const BODIES[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stop\":[\"o w\",\"zz\"],"
        "\"stream\":true}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stop\":\"o w\"}"};
    for (size_t cut = 1; cut < 12; cut++) {
        for (int whole = 0; whole < 2; whole++) {
            fixture f;
            open_fixture(&f, RTR_API_CHAT, BODIES[whole], "hello world, hello");
            assert_false(push_all(&f, cut));
            rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
            if (whole) {
                assert_text_contains(rtr_answer_output(f.answer)->data, "\"content\":\"hell\"}");
            } else {
                joined j;
                join_stream(&j, rtr_answer_output(f.answer)->data);
                assert_string_equal(j.content.data, "hell");
                assert_string_equal(j.finish, "stop");
                joined_fini(&j);
            }
            close_fixture(&f);
        }
    }
}

static rtr_token_logprobs logprobs_of(uint32_t id)
{
    rtr_token_logprobs l = {.logprob = -0.5f, .top_count = 2};
    l.top[0] = (rtr_logprob){id, -0.5f};
    l.top[1] = (rtr_logprob){id + 1, -INFINITY};
    return l;
}

TEST(log_probabilities)
{
    fixture f;
    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"logprobs\":true,"
                 "\"top_logprobs\":2}",
                 "I");
    rtr_token_logprobs l = logprobs_of(43);
    rtr_answer_begin(f.answer, "x");
    assert_true(rtr_answer_push(f.answer, 0, (const uint32_t *)f.ids.data, &l, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    assert_text_contains(rtr_answer_output(f.answer)->data,
                         "\"logprobs\":{\"content\":[{\"token\":\"I\",\"logprob\":-0.5,\"bytes\":"
                         "[73],\"top_logprobs\":[{\"token\":\"I\",\"logprob\":-0.5,\"bytes\":[73]},"
                         "{\"token\":\"J\",\"logprob\":-9999,\"bytes\":[74]}]}],\"refusal\":null}");
    close_fixture(&f);

    open_fixture(&f, RTR_API_COMPLETION, "{\"prompt\":\"x\",\"logprobs\":2,\"stream\":true}", "I");
    rtr_answer_begin(f.answer, "x");
    for (int i = 0; i < 2; i++)
        assert_true(rtr_answer_push(f.answer, 0, (const uint32_t *)f.ids.data, &l, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH);
    assert_text_contains(
        rtr_answer_output(f.answer)->data,
        "\"choices\":[{\"index\":0,\"text\":\"I\",\"logprobs\":{\"tokens\":[\"I\"],"
        "\"token_logprobs\":[-0.5],\"top_logprobs\":[{\"I\":-0.5,\"J\":-9999}],"
        "\"text_offset\":[1]},\"finish_reason\":null}]}");
    close_fixture(&f);
}

/* Two choices whose tokens come in turns: each has its own texts, ends and ids. */
TEST(two_choices)
{
    fixture f;
    open_fixture(&f, RTR_API_COMPLETION,
                 "{\"prompt\":\"x\",\"n\":2,\"seed\":7,\"stop\":\"am\",\"return_token_ids\":true}",
                 "I am");
    const uint32_t *ids = (const uint32_t *)f.ids.data;
    rtr_answer_begin(f.answer, "x");
    assert_true(rtr_answer_push(f.answer, 1, ids, NULL, 1));
    assert_true(rtr_answer_push(f.answer, 0, ids, NULL, 1));
    assert_false(rtr_answer_push(f.answer, 1, ids + 1, NULL, 1));
    assert_false(rtr_answer_finish(f.answer, 1, MDL_FINISH_STOP));
    assert_int_equal(rtr_answer_output(f.answer)->size, 0);
    assert_true(rtr_answer_push(f.answer, 0, ids, NULL, 1));
    assert_true(rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH));
    const char *text = rtr_answer_output(f.answer)->data;
    assert_text_contains(text, "{\"index\":0,\"text\":\"II\",\"logprobs\":null,\"finish_reason\":"
                               "\"length\",\"seed\":7,\"token_ids\":[43,43]},{\"index\":1,");
    assert_text_contains(text, "{\"index\":1,\"text\":\"I \",\"logprobs\":null,\"finish_reason\":"
                               "\"stop\",\"seed\":");
    assert_text_contains(text, "\"completion_tokens\":4");
    close_fixture(&f);

    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"n\":2,\"stream\":true}",
                 "I");
    rtr_answer_begin(f.answer, "x");
    text = rtr_answer_output(f.answer)->data;
    assert_text_contains(text, "{\"index\":0,\"delta\":{\"role\"");
    assert_text_contains(text, "{\"index\":1,\"delta\":{\"role\"");
    assert_true(rtr_answer_push(f.answer, 1, ids = (const uint32_t *)f.ids.data, NULL, 1));
    assert_text_contains(rtr_answer_output(f.answer)->data,
                         "{\"index\":1,\"delta\":{\"content\":\"I\"}");
    assert_false(rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP));
    assert_null(strstr(rtr_answer_output(f.answer)->data, "[DONE]"));
    assert_true(rtr_answer_finish(f.answer, 1, MDL_FINISH_STOP));
    assert_text_contains(rtr_answer_output(f.answer)->data, "data: [DONE]");
    close_fixture(&f);
}

/* Hand-outs of two tokens in a stream: each chunk says what its tokens are, base64 of its rows. */
TEST(hand_outs)
{
    fixture f;
    sl_err err;
    mdl_routing_layout layout;
    uint8_t rows[2 * 256] = {0}, mask[2][9];
    ProtobufCBinaryData masks[2];
    Sluice__V1__TokenRun run = SLUICE__V1__TOKEN_RUN__INIT;
    open_fixture(
        &f, RTR_API_COMPLETION,
        "{\"prompt\":\"x\",\"stream\":true,\"sluice\":{\"routing\":true,\"sampling_mask\":true}}",
        "I am");
    mdl_routing_layout_init(&kit_shape, &layout);
    assert_true(2 * layout.row_bytes <= sizeof rows);
    for (uint32_t i = 0; i < 2; i++)
        masks[i] = (ProtobufCBinaryData){mdl_mask_pack_one(i, mask[i]), mask[i]};
    rtr_handout *handout = rtr_answer_handout(f.answer, 0);
    assert_non_null(handout);
    run.n_ids = 2;
    run.routing = (ProtobufCBinaryData){2 * layout.row_bytes, rows};
    run.sampling_masks = masks;
    run.n_sampling_masks = 2;
    assert_code(rtr_handout_take(handout, &run, 0, 2, &err), SL_UNSUPPORTED); /* no version */
    run.weights_version = "7";
    run.routing.len--;
    assert_code(rtr_handout_take(handout, &run, 0, 2, &err), SL_CORRUPT);
    run.routing.len = 0;
    assert_code(rtr_handout_take(handout, &run, 0, 2, &err), SL_UNSUPPORTED);
    run.routing.len = 2 * layout.row_bytes;
    run.n_sampling_masks = 1;
    assert_code(rtr_handout_take(handout, &run, 0, 2, &err), SL_CORRUPT);
    run.n_sampling_masks = 2;
    assert_ok(rtr_handout_take(handout, &run, 0, 1, &err), &err);
    run.weights_version = "8";
    assert_ok(rtr_handout_take(handout, &run, 1, 1, &err), &err);
    mask[1][0] = 9;
    assert_code(rtr_handout_take(handout, &run, 1, 1, &err), SL_CORRUPT);
    rtr_answer_begin(f.answer, "x");
    for (uint32_t i = 0; i < 2; i++)
        assert_true(rtr_answer_push(f.answer, 0, (const uint32_t *)f.ids.data + i, NULL, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    const char *text = rtr_answer_output(f.answer)->data;
    assert_text_contains(
        text,
        "\"sluice\":{\"first_token\":0,\"weights_versions\":[[0,\"7\"]],\"routing\":\"U0xSVAEA");
    assert_text_contains(text, "\"sampling_mask\":\"U0xTTQEAACAAAAAAAQAAAAEBAAAAAAAAAA==\"");
    assert_text_contains(text, "\"sluice\":{\"first_token\":1,\"weights_versions\":[[1,\"8\"]]");
    assert_text_contains(text, "\"finish_reason\":\"stop\"}]}"); /* nothing left for the end */
    close_fixture(&f);
}

/* Stop strings count from min_tokens on, and stay in the text if that is wanted. */
TEST(stop_strings_and_min_tokens)
{
    static const struct {
        const char *fields, *text;
    } CASES[] = {
        {"\"stop\":\" am\"", "\"text\":\"I\""},
        {"\"stop\":\" am\",\"include_stop_str_in_output\":true", "\"text\":\"I am\""},
        {"\"stop\":\" am\",\"min_tokens\":2", "\"text\":\"I\""},
        {"\"stop\":\" am\",\"min_tokens\":3", "\"text\":\"I am I\""},
        {"\"stop\":\"m I\",\"min_tokens\":3", "\"text\":\"I am I\""}, /* began too early */
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        fixture f;
        char body[256];
        snprintf(body, sizeof body, "{\"prompt\":\"x\",%s}", CASES[i].fields);
        open_fixture(&f, RTR_API_COMPLETION, body, "I am I am");
        assert_int_equal(f.ids.count, 4);
        f.ids.count = 3;
        bool whole = push_all(&f, 1);
        rtr_answer_finish(f.answer, 0, whole ? MDL_FINISH_LENGTH : MDL_FINISH_STOP);
        assert_text_contains(rtr_answer_output(f.answer)->data, CASES[i].text);
        close_fixture(&f);
    }
}

/* max_tokens 0: the token that is drawn all the same is not shown, counted or waited for. */
TEST(nothing_but_the_prompt)
{
    fixture f;
    open_fixture(&f, RTR_API_COMPLETION, "{\"prompt\":\"I am\",\"echo\":true,\"max_tokens\":0}",
                 "I");
    assert_int_equal(f.request->sampling.max_tokens, 1);
    assert_true(push_all(&f, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_STOP);
    assert_text_contains(rtr_answer_output(f.answer)->data,
                         "\"text\":\"I am\",\"logprobs\":null,\"finish_reason\":\"length\"");
    assert_text_contains(rtr_answer_output(f.answer)->data, "\"completion_tokens\":0");
    close_fixture(&f);
}

/* ---- what an answer tells of its prompt */

/* Rows [first, first + count) of a prompt: token t scores -t, rank t, one alternative (id t). */
static sl_status take_rows(rtr_answer *answer, uint32_t first, uint32_t count, uint32_t prompt,
                           uint32_t alternatives, sl_err *err)
{
    uint8_t bytes[16 * 64] = {0};
    uint32_t size = mdl_score_bytes(alternatives);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t token = first + i + 1;
        mdl_score_top top = {token, -0.25f};
        mdl_score score = {-(float)token, token, alternatives ? 1 : 0, &top};
        if (token < prompt)
            mdl_score_pack(&score, alternatives, bytes + i * size);
    }
    Sluice__V1__PromptRows rows = SLUICE__V1__PROMPT_ROWS__INIT;
    rows.first = first;
    rows.count = count;
    rows.scores = (ProtobufCBinaryData){(size_t)count * size, bytes};
    return rtr_prompt_take(rtr_answer_prompt(answer), &rows, err);
}

TEST(prompt_logprobs)
{
    fixture f;
    sl_err err;
    open_fixture(&f, RTR_API_COMPLETION, "{\"prompt\":[0,43,562],\"prompt_logprobs\":1,\"n\":2}",
                 "I");
    rtr_prompt *prompt = rtr_answer_prompt(f.answer);
    assert_non_null(prompt);
    assert_ok(take_rows(f.answer, 0, 1, 3, 1, &err), &err);
    assert_code(take_rows(f.answer, 2, 1, 3, 1, &err), SL_CORRUPT); /* a gap */
    assert_code(take_rows(f.answer, 1, 3, 3, 1, &err), SL_CORRUPT); /* too many */
    assert_code(take_rows(f.answer, 1, 2, 3, 2, &err), SL_CORRUPT); /* of another size */
    assert_code(take_rows(f.answer, 1, 2, 4, 1, &err), SL_CORRUPT); /* the last one scores none */
    assert_int_equal(rtr_prompt_next(prompt), 1);
    assert_ok(take_rows(f.answer, 0, 1, 3, 1, &err), &err); /* again, from another node */
    assert_false(rtr_prompt_complete(prompt));
    assert_ok(take_rows(f.answer, 0, 3, 3, 1, &err), &err);
    assert_true(rtr_prompt_complete(prompt));
    rtr_answer_begin(f.answer, "x");
    for (uint32_t i = 0; i < 2; i++) {
        assert_true(rtr_answer_push(f.answer, i, (const uint32_t *)f.ids.data, NULL, 1));
        rtr_answer_finish(f.answer, i, MDL_FINISH_STOP);
    }
    const char *text = rtr_answer_output(f.answer)->data;
    const char *list = "\"prompt_logprobs\":[null,{\"43\":{\"logprob\":-1,\"rank\":1,"
                       "\"decoded_token\":\"I\"},\"1\":{\"logprob\":-0.25,\"rank\":1,";
    assert_text_contains(text, list);
    assert_text_contains(strstr(text, list) + 1, list); /* in each choice */
    close_fixture(&f);

    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"prompt_logprobs\":0,"
                 "\"stream\":true}",
                 "I");
    uint32_t count = (uint32_t)f.request->prompt.count;
    assert_ok(take_rows(f.answer, 0, count, count, 0, &err), &err);
    rtr_answer_begin(f.answer, "x");
    assert_text_contains(rtr_answer_output(f.answer)->data,
                         "\"system_fingerprint\":\"x\",\"prompt_logprobs\":[null,{");
    sl_buf_clear(rtr_answer_output(f.answer));
    assert_true(rtr_answer_push(f.answer, 0, (const uint32_t *)f.ids.data, NULL, 1));
    assert_null(strstr(rtr_answer_output(f.answer)->data, "prompt_logprobs"));
    close_fixture(&f);
}

/* Echo: text and log-probabilities of the prompt first, offsets count from its begin; a stop string
 * inside the prompt stops nothing. */
TEST(echo)
{
    static const char *const BODIES[] = {
        "{\"prompt\":\"I am\",\"echo\":true,\"logprobs\":1,\"stop\":\"am\"}",
        "{\"prompt\":\"I am\",\"echo\":true,\"logprobs\":1,\"stop\":\"am\",\"stream\":true}"};
    for (size_t i = 0; i < 2; i++) {
        fixture f;
        sl_err err;
        rtr_token_logprobs l = logprobs_of(43);
        open_fixture(&f, RTR_API_COMPLETION, BODIES[i], "I");
        assert_int_equal(f.request->prompt.count, 3); /* BOS, "I", " am" */
        assert_ok(take_rows(f.answer, 0, 3, 3, 1, &err), &err);
        rtr_answer_begin(f.answer, "x");
        assert_true(rtr_answer_push(f.answer, 0, (const uint32_t *)f.ids.data, &l, 1));
        rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH);
        const char *text = rtr_answer_output(f.answer)->data;
        assert_text_contains(text, "\"text\":\"I amI\",\"logprobs\":{\"tokens\":[");
        assert_text_contains(text, "\"I\",\" am\",\"I\"],\"token_logprobs\":[null,-1,-2,-0.5],"
                                   "\"top_logprobs\":[null,{");
        assert_text_contains(text, "\"text_offset\":[0,0,1,4]}");
        close_fixture(&f);
    }
    fixture f;
    open_fixture(&f, RTR_API_COMPLETION, "{\"prompt\":\"I am\",\"echo\":true}", "I");
    assert_null(rtr_answer_prompt(f.answer)); /* the text needs no node */
    assert_true(push_all(&f, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH);
    assert_text_contains(rtr_answer_output(f.answer)->data, "\"text\":\"I amI\"");
    close_fixture(&f);
}

TEST(error_in_a_stream)
{
    fixture f;
    rtr_api_error error;
    open_fixture(&f, RTR_API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true}", "I");
    assert_true(push_all(&f, 1));
    sl_buf_clear(rtr_answer_output(f.answer));
    rtr_api_error_set(&error, SL_UNAVAILABLE, "no \"node\"");
    rtr_answer_fail(f.answer, &error);
    check_text(&f, "data: {\"error\":{\"message\":\"no \\\"node\\\"\",\"type\":\"server_error\","
                   "\"param\":null,\"code\":\"unavailable\"}}\n\n");
    close_fixture(&f);
}

/* Characters of several tokens, cut off by the end. */
TEST(incomplete_character_at_the_end)
{
    fixture f;
    joined j;
    open_fixture(&f, RTR_API_COMPLETION, "{\"prompt\":\"x\",\"stream\":true}", "a\xf0\x9f\x98\x80");
    assert_true(f.ids.count > 2);
    f.ids.count--;
    assert_true(push_all(&f, 1));
    rtr_answer_finish(f.answer, 0, MDL_FINISH_LENGTH);
    assert_text_contains(rtr_answer_output(f.answer)->data, "\"text\":\"a\"");
    assert_text_contains(rtr_answer_output(f.answer)->data, "\"text\":\"\xef\xbf\xbd\"");
    join_stream(&j, rtr_answer_output(f.answer)->data);
    assert_string_equal(j.finish, "length");
    joined_fini(&j);
    close_fixture(&f);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(stream_of_chat),
    cmocka_unit_test(stream_with_usage_and_ids),
    cmocka_unit_test(calls_behind_text_of_strict_functions),
    cmocka_unit_test(whole_chat_answer),
    cmocka_unit_test(tool_calls_and_reasoning_in_every_cut),
    cmocka_unit_test(whole_answer_with_calls),
    cmocka_unit_test(stop_string_in_every_cut),
    cmocka_unit_test(log_probabilities),
    cmocka_unit_test(two_choices),
    cmocka_unit_test(hand_outs),
    cmocka_unit_test(stop_strings_and_min_tokens),
    cmocka_unit_test(nothing_but_the_prompt),
    cmocka_unit_test(prompt_logprobs),
    cmocka_unit_test(echo),
    cmocka_unit_test(error_in_a_stream),
    cmocka_unit_test(incomplete_character_at_the_end),
};
API_TEST_MAIN(TESTS)
