/* The output parser: each rule at every cut, stop strings, round trips of the published vectors. */
#include "model/output.h"
#include "tests/unit/model/support.h"

#define CB     "<｜DSML｜function_calls>"
#define CE     "</｜DSML｜function_calls>"
#define IB(n)  "<｜DSML｜invoke name=\"" n "\">"
#define IE     "</｜DSML｜invoke>"
#define PE     "</｜DSML｜parameter>"
#define PS(k)  "<｜DSML｜parameter name=\"" k "\" string=\"true\">"
#define PJ(k)  "<｜DSML｜parameter name=\"" k "\" string=\"false\">"
#define PN(k)  "<｜DSML｜parameter name=\"" k "\">"
#define CALL_F IB("f") "\n" PS("a") "x" PE "\n" IE "\n"
#define EOS    "<｜end▁of▁sentence｜>"

/* One answer as a line: reasoning|content|name(arguments)...|finish */
static void describe(const mdl_message *m, mdl_finish finish, sl_buf *out)
{
    sl_buf_append(out, m->reasoning.data ? m->reasoning.data : "", m->reasoning.size);
    sl_buf_putc(out, '|');
    sl_buf_append(out, m->content.data ? m->content.data : "", m->content.size);
    sl_buf_putc(out, '|');
    for (size_t i = 0; i < m->call_count; i++) {
        sl_buf_printf(out, "%s(", m->calls[i].name);
        sl_buf_append(out, m->calls[i].arguments.data, m->calls[i].arguments.size);
        sl_buf_putc(out, ')');
        assert_true(m->calls[i].complete);
    }
    sl_buf_printf(out, "|%s", mdl_finish_name(finish));
}

/* Checks what every event must hold: whole characters, and only one kind of order. */
typedef struct watcher {
    mdl_message message;
    int32_t open_call; /* -1 = none */
    int32_t last_call;
    bool content_seen;
} watcher;

static void watch(void *context, const mdl_event *event)
{
    watcher *w = context;

    assert_true(sl_utf8_valid(event->text, event->size));
    switch (event->kind) {
    case MDL_EVENT_REASONING:
        assert_false(w->content_seen);
        assert_true(event->size > 0);
        break;
    case MDL_EVENT_CONTENT:
        w->content_seen = true;
        assert_true(event->size > 0);
        break;
    case MDL_EVENT_CALL_BEGIN:
        assert_int_equal(w->open_call, -1);
        assert_int_equal(event->call_index, w->last_call + 1);
        assert_int_equal(strlen(event->id), 29);
        w->open_call = w->last_call = event->call_index;
        w->content_seen = true;
        break;
    case MDL_EVENT_ARGUMENTS:
        assert_int_equal(event->call_index, w->open_call);
        break;
    case MDL_EVENT_CALL_END:
    case MDL_EVENT_CALL_BROKEN:
        assert_int_equal(event->call_index, w->open_call);
        w->open_call = -1;
        break;
    }
    mdl_message_collect(&w->message, event);
}

/* Feeds text in pieces that end at the given cut and then every `stride` bytes. */
static void feed(const mdl_output_options *options, mdl_finish cause, const char *text, size_t size,
                 size_t first, size_t stride, sl_buf *out)
{
    watcher w = {.open_call = -1, .last_call = -1};
    mdl_output *o;
    mdl_finish finish;
    sl_err err;

    mdl_message_init(&w.message);
    w.message.length_limited = cause == MDL_FINISH_LENGTH;
    assert_ok(mdl_output_create(options, watch, &w, &o, &err), &err);
    for (size_t at = 0; at < size;) {
        size_t n = at == 0 && first > 0 ? first : stride;

        if (n > size - at)
            n = size - at;
        if (!mdl_output_push(o, text + at, n)) {
            assert_false(mdl_output_push(o, "more", 4));
            break;
        }
        at += n;
    }
    finish = mdl_output_finish(o, cause);
    sl_buf_clear(out);
    describe(&w.message, finish, out);
    mdl_output_destroy(o);
    mdl_message_fini(&w.message);
}

static void check(const mdl_output_options *options, mdl_finish cause, const char *text,
                  const char *expected)
{
    size_t size = strlen(text);
    sl_buf out;

    sl_buf_init(&out, 0);
    feed(options, cause, text, size, 0, size + 1, &out);
    assert_string_equal(out.data, expected);
    for (size_t cut = 1; cut < size; cut++) { /* in two */
        feed(options, cause, text, size, cut, size, &out);
        if (strcmp(out.data, expected) != 0)
            fail_msg("cut at %zu: %s\nexpected %s", cut, out.data, expected);
    }
    for (size_t stride = 1; stride <= 7; stride++) {
        feed(options, cause, text, size, 0, stride, &out);
        if (strcmp(out.data, expected) != 0)
            fail_msg("pieces of %zu: %s\nexpected %s", stride, out.data, expected);
    }
    sl_buf_fini(&out);
}

static const mdl_output_options CHAT = {.parse_calls = true, .request_id = "r-1"};
static const mdl_output_options THINK = {.parse_calls = true, .reasoning_open = true};
static const mdl_output_options NO_TOOLS = {.reasoning_open = false};
static const mdl_output_options NO_TOOLS_THINK = {.reasoning_open = true};

#define STOP   MDL_FINISH_STOP
#define LENGTH MDL_FINISH_LENGTH

TEST(text_and_reasoning)
{
    check(&CHAT, STOP, "", "|||stop");
    check(&CHAT, STOP, "Hello", "|Hello||stop");
    check(&CHAT, LENGTH, "Hello\n\n", "|Hello\n\n||length");
    check(&CHAT, STOP, "a < b <think <｜DSML｜", "|a < b <think <｜DSML｜||stop");
    check(&CHAT, STOP, "毕老师 👩‍👩‍👧 é\n",
          "|毕老师 👩‍👩‍👧 é\n||stop");
    check(&THINK, STOP, "why</think>because", "why|because||stop");
    check(&THINK, STOP, "</think>x", "|x||stop");
    check(&THINK, STOP, "why</think>", "why|||stop");
    check(&THINK, STOP, "a</thin>b</think>c", "a</thin>b|c||stop");
    check(&NO_TOOLS_THINK, STOP, "\n\nwhy\n</think>\n\nx", "\n\nwhy\n|\n\nx||stop");
}

/* --- the rows of the table of tolerance --- */

TEST(a_repeated_think_is_dropped)
{
    check(&THINK, STOP, "<think>why</think>x", "why|x||stop");
    check(&THINK, STOP, "<thin</think>x", "<thin|x||stop");
    check(&THINK, STOP, "<thin", "<thin|||stop");
    check(&THINK, STOP, "a<think>b</think>c", "a<think>b|c||stop");
}

TEST(end_think_in_content_is_dropped)
{
    check(&CHAT, STOP, "</think>x", "|x||stop");
    check(&CHAT, STOP, "a</think>b</think>c", "|abc||stop");
    check(&THINK, STOP, "r</think>a</think>b", "r|ab||stop");
    check(&CHAT, STOP, "a</think\n></think>", "|a</think\n>||stop");
}

TEST(calls_end_reasoning)
{
    check(&THINK, STOP, "why\n\n" CB "\n" CALL_F CE, "why||f({\"a\": \"x\"})|tool_calls");
    check(&THINK, STOP, "why" CB "\n" CALL_F CE, "why||f({\"a\": \"x\"})|tool_calls");
}

TEST(all_is_reasoning_without_its_end)
{
    check(&THINK, STOP, "why", "why|||stop");
    check(&THINK, LENGTH, "why\n\n</thi", "why\n\n</thi|||length");
}

TEST(odd_spacing_of_tags)
{
    static const char *const TEXTS[] = {
        "hi\n\n" CB "\n" CALL_F CE,
        "hi\n" CB "\n" CALL_F CE,
        "hi" CB CALL_F CE,
        "hi" CB " \t" IB("f") "  " PS("a") "x" PE IE CE,
        "hi\n\n<｜DSML｜function_calls >\n\n<｜DSML｜invoke  name=\"f\" >\n"
        "<｜DSML｜parameter name=\"a\"  string=\"true\" >x</｜DSML｜parameter >\n"
        "</｜DSML｜invoke >\n</｜DSML｜function_calls >",
        "hi\n\n<｜DSML｜function_calls｜>\n<｜DSML｜invoke name=\"f\"｜>\n"
        "<｜DSML｜parameter name=\"a\" string=\"true\"｜>x</｜DSML｜parameter｜>\n"
        "</｜DSML｜invoke｜>\n</｜DSML｜function_calls｜>",
    };

    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++)
        check(&CHAT, STOP, TEXTS[i], "|hi|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, "hi\n\n\n" CB "\n" CALL_F CE, "|hi\n|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, "hi \n\n \n" CB "\n" CALL_F CE, "|hi \n\n |f({\"a\": \"x\"})|tool_calls");
}

TEST(no_tools_no_parsing)
{
    check(&NO_TOOLS, STOP, "hi\n\n" CB "\n" CALL_F CE, "|hi\n\n" CB "\n" CALL_F CE "||stop");
    check(&NO_TOOLS_THINK, STOP, "w" CB "</think>" CB, "w" CB "|" CB "||stop");
}

TEST(values)
{
    check(&CHAT, STOP, CB IB("f") PS("a") "  \"q\"\n\\ </｜DSML｜ < </ \t\x01 é👩 " PE IE CE,
          "||f({\"a\": \"  \\\"q\\\"\\n\\\\ </｜DSML｜ < </ \\t\\u0001 é👩 \"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PJ("a") "[1, {\"b\": 2.50}]" PE PJ("c") "true" PE IE CE,
          "||f({\"a\": [1, {\"b\": 2.50}], \"c\": true})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PS("") "" PE IE CE, "||f({\"\": \"\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") "\n\n" IE IB("g") "\n" IE CE, "||f({})g({})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PJ("a") "not json" PE IE CE,
          "||f({\"a\": \"not json\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PJ("a") "" PE IE CE, "||f({\"a\": \"\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PJ("a") "NaN" PE IE CE, "||f({\"a\": \"NaN\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PJ("a") " 1 " PE IE CE, "||f({\"a\":  1 })|tool_calls");
    /* Attribute missing or odd, no schema: JSON if it is, else a string. */
    check(&CHAT, STOP, CB IB("f") PN("a") "5" PE PN("b") "five" PE IE CE,
          "||f({\"a\": 5, \"b\": \"five\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") "<｜DSML｜parameter name=\"a\" string=\"maybe\">[]" PE IE CE,
          "||f({\"a\": []})|tool_calls");
    /* Duplicate keys: JSON readers take the last. */
    check(&CHAT, STOP, CB IB("f") PS("a") "1" PE PS("a") "2" PE IE CE,
          "||f({\"a\": \"1\", \"a\": \"2\"})|tool_calls");
}

TEST(schema_decides_when_the_attribute_does_not)
{
    static const char REQUEST[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"tools\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"s\":{"
        "\"type\":\"string\"},\"n\":{\"type\":\"number\"}}}}}]}";
    mdl_output_options options = CHAT;
    sl_json_doc *doc;
    mdl_chat *chat;
    sl_err err;

    assert_ok(sl_json_parse(REQUEST, strlen(REQUEST), NULL, &doc, &err), &err);
    assert_ok(mdl_chat_parse(sl_json_root(doc), NULL, &chat, &err), &err);
    options.chat = chat;
    check(&options, STOP, CB IB("f") PN("s") "5" PE PN("n") "5" PE IE CE,
          "||f({\"s\": \"5\", \"n\": 5})|tool_calls");
    check(&options, STOP, "a" CB IB("g") PS("x") "y" PE IE CE, "|a|g({\"x\": \"y\"})|tool_calls");
    options.refuse_unknown = true;
    check(&options, STOP, "a" CB IB("g") PS("x") "y" PE IE CE,
          "|a" CB IB("g") PS("x") "y" PE IE "||stop");
    check(&options, STOP, "a" CB IB("f") IE IB("g") IE IB("f") IE CE,
          "|a" IB("g") IE "|f({})f({})|tool_calls");
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
}

TEST(a_json_body_is_accepted)
{
    check(&CHAT, STOP, CB IB("f") "\n{\"b\": [1], \"a\": \"<\"}\n" IE CE,
          "||f({\"b\": [1], \"a\": \"<\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") "\n[1]\n" IE CE "x", "|" CB IB("f") "\n[1]\n" IE "x||stop");
    check(&CHAT, STOP, CB IB("f") "words" IE IB("g") IE CE,
          "|" CB IB("f") "words" IE "|g({})|tool_calls");
    check(&CHAT, STOP, CB IB("f") "words" PS("a") "x" PE "more" IE CE,
          "|wordsmore|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, CB IB("f") PS("a") "x" PE "\n</b> \n c \n" IE CE,
          "|</b> \n c \n|f({\"a\": \"x\"})|tool_calls");
}

TEST(self_closing)
{
    check(&CHAT, STOP, "x" CB "<｜DSML｜invoke name=\"f\"/>" CE, "|x|f({})|tool_calls");
    check(&CHAT, STOP, "x" CB "<｜DSML｜invoke name=\"f\" />\n<｜DSML｜invoke name=\"g\"｜/>" CE,
          "|x|f({})g({})|tool_calls");
    check(&CHAT, STOP, CB IB("f") "<｜DSML｜parameter name=\"a\" string=\"true\"/>" IE CE,
          "||f({\"a\": \"\"})|tool_calls");
}

TEST(unclosed_at_the_end)
{
    check(&CHAT, STOP, "x\n\n" CB "\n" CALL_F IB("g") "\n" PS("b") "12",
          "|x" IB("g") "\n" PS("b") "12|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, "x\n\n" CB "\n" IB("g") "\n" PS("b") "12",
          "|x\n\n" CB "\n" IB("g") "\n" PS("b") "12||stop");
    check(&CHAT, STOP, "x\n\n" CB "\n" IB("g") "\n" PS("b") "12</｜DSML｜para",
          "|x\n\n" CB "\n" IB("g") "\n" PS("b") "12</｜DSML｜para||stop");
    check(&CHAT, STOP, "x\n\n" CB "\n" IB("g") "\n" PS("b") "12" PE,
          "|x\n\n" CB "\n" IB("g") "\n" PS("b") "12" PE "||stop");
    check(&CHAT, STOP, "x\n\n" CB "\n<｜DSML｜inv", "|x\n\n" CB "\n<｜DSML｜inv||stop");
    check(&CHAT, STOP, "x\n\n" CB "\n", "|x\n\n" CB "\n||stop");
    check(&CHAT, STOP, "x\n\n<｜DSML｜function_c", "|x\n\n<｜DSML｜function_c||stop");
    check(&CHAT, STOP, "x" CB CALL_F, "|x|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, "x" CB CALL_F "</｜DSML", "|x</｜DSML|f({\"a\": \"x\"})|tool_calls");
    /* An end that is missing in the middle. */
    check(&CHAT, STOP, "x" CB IB("g") PS("b") "1" PE IB("f") IE CE,
          "|x" CB IB("g") PS("b") "1" PE "|f({})|tool_calls");
    check(&CHAT, STOP, "x" CB IB("g") PS("b") "1" PE CE, "|x" CB IB("g") PS("b") "1" PE "||stop");
}

TEST(unclosed_at_the_length_limit)
{
    check(&CHAT, LENGTH, "x\n\n" CB "\n" CALL_F IB("g") "\n" PS("b") "12",
          "|x|f({\"a\": \"x\"})|length");
    check(&CHAT, LENGTH, "x\n\n" CB "\n" IB("g") "\n" PS("b") "12", "|x||length");
    check(&CHAT, LENGTH, "x\n\n" CB "\n<｜DSML｜inv", "|x||length");
    check(&CHAT, LENGTH, "x\n\n<｜DSML｜", "|x||length");
    check(&CHAT, LENGTH, "x\n\n<｜DSML｜function_c", "|x||length");
    check(&CHAT, LENGTH, "x\n\n<｜DSM", "|x\n\n<｜DSM||length");
    check(&CHAT, STOP, "x\n\n<｜DSML｜", "|x\n\n<｜DSML｜||stop");
    check(&CHAT, LENGTH, "x\n\n" CB "\n" CALL_F "</｜DSM", "|x|f({\"a\": \"x\"})|length");
}

TEST(text_behind_a_block)
{
    check(&CHAT, STOP, CB CALL_F CE " \n\n", "||f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, "a" CB CALL_F CE "\n b \n", "|ab \n|f({\"a\": \"x\"})|tool_calls");
    check(&CHAT, STOP, CB CALL_F CE "\n\n" CB IB("g") IE CE, "||f({\"a\": \"x\"})g({})|tool_calls");
    check(&CHAT, STOP, CB CALL_F CE "b\n\n" CB IB("g") IE CE,
          "|b|f({\"a\": \"x\"})g({})|tool_calls");
}

TEST(text_inside_a_block)
{
    /* Talk about a block is not a block. */
    check(&CHAT, STOP, "use " CB " blocks", "|use " CB " blocks||stop");
    check(&CHAT, STOP, "use\n\n" CB "\n...\n" CE " so", "|use\n\n" CB "\n...\n" CE " so||stop");
    check(&CHAT, STOP, "a" CB "\n" CE, "|a" CB "\n" CE "||stop");
    check(&CHAT, STOP, CB CALL_F "and é <b> \n" IB("g") IE CE,
          "|\nand é <b> \n|f({\"a\": \"x\"})g({})|tool_calls");
}

TEST(tags_without_dsml_are_text)
{
    const char *text = "\n\n<function_calls>\n<invoke name=\"f\">\n</invoke></function_calls>";
    char expected[256];

    snprintf(expected, sizeof(expected), "|%s||stop", text);
    check(&CHAT, STOP, text, expected);
    check(&CHAT, STOP, IB("f") IE, "|" IB("f") IE "||stop"); /* outside of a block */
    check(&CHAT, STOP, "<｜DSML｜function_callsX>", "|<｜DSML｜function_callsX>||stop");
    check(&CHAT, STOP, "<｜DSML｜function_calls         >",
          "|<｜DSML｜function_calls         >||stop");
    check(&CHAT, STOP, CB "<｜DSML｜invoke name=\"a<b\">" CE,
          "|" CB "<｜DSML｜invoke name=\"a<b\">" CE "||stop");
}

TEST(stop_strings)
{
    static const char *const ONE[] = {"END"}, *const MANY[] = {"x\n\n", "\n\n", "</think>", "é!"};
    mdl_output_options options = CHAT;

    options.stops = ONE;
    options.stop_count = 1;
    check(&options, STOP, "abEN END cd", "|abEN ||stop");
    check(&options, STOP, "abEN", "|abEN||stop");
    check(&options, STOP, "a" CB IB("f") PS("a") "END" PE IE CE "b END c",
          "|ab |f({\"a\": \"END\"})|tool_calls");
    options.reasoning_open = true;
    check(&options, STOP, "why END</think>a END b", "why END|a ||stop");
    options.reasoning_open = false;
    options.stops = MANY;
    options.stop_count = 4;
    check(&options, STOP, "aé!b", "|a||stop");
    check(&options, STOP, "a\n\nb", "|a||stop");
    /* Markers come first: their bytes are no content. */
    check(&options, STOP, "a\n\n" CB CALL_F CE, "|a|f({\"a\": \"x\"})|tool_calls");
    check(&options, STOP, "x\n\n" CB CALL_F CE, "|x|f({\"a\": \"x\"})|tool_calls");
    check(&options, STOP, "a</think>b", "|ab||stop");
    options.raw = true;
    check(&options, STOP, "a</think>b", "|a||stop");
    check(&options, STOP, "ax\n\nb", "|a||stop");
    options.include_stop = true;
    check(&options, STOP, "ax\n\nb", "|ax\n\n||stop");
    check(&options, STOP, "a</think>b", "|a</think>||stop");
    options.raw = options.include_stop = false;
    options.stop_count = 0;
    options.raw = true;
    check(&options, STOP, "a</think>b\n\n" CB CALL_F, "|a</think>b\n\n" CB CALL_F "||stop");
}

TEST(options_are_checked)
{
    static const char *const EMPTY[] = {""};
    const char *many[MDL_STOP_STRINGS_MAX + 1];
    char long_text[MDL_STOP_STRING_BYTES_MAX + 2];
    mdl_output_options options = CHAT;
    mdl_output *o = NULL;
    sl_err err;

    options.stops = EMPTY;
    options.stop_count = 1;
    assert_code(mdl_output_create(&options, watch, NULL, &o, &err), SL_INVALID);
    assert_text_contains(err.text, "stop[0]");
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    many[0] = long_text;
    options.stops = many;
    assert_code(mdl_output_create(&options, watch, NULL, &o, &err), SL_INVALID);
    for (size_t i = 0; i < MDL_STOP_STRINGS_MAX + 1; i++)
        many[i] = "x";
    options.stop_count = MDL_STOP_STRINGS_MAX + 1;
    assert_code(mdl_output_create(&options, watch, NULL, &o, &err), SL_INVALID);
    assert_null(o);
}

static void ignore(void *context, const mdl_event *event)
{
}

TEST(counts)
{
    static const char TEXT[] = "hi" CB IB("f") PJ("a") "bad" PE PS("a") "x" PE IE IB("g");
    mdl_output_options options = CHAT;
    mdl_output *o;
    const mdl_output_counts *c;
    sl_err err;

    options.reasoning_open = true;
    assert_ok(mdl_output_create(&options, ignore, NULL, &o, &err), &err);
    assert_true(mdl_output_in_reasoning(o));
    mdl_output_push(o, "x</think>", 9);
    assert_false(mdl_output_in_reasoning(o));
    mdl_output_push(o, TEXT, strlen(TEXT));
    assert_int_equal(mdl_output_finish(o, LENGTH), LENGTH);
    c = mdl_output_counts_get(o);
    assert_int_equal(c->calls, 1);
    assert_int_equal(c->broken_calls, 1);
    assert_int_equal(c->invalid_json_values, 1);
    assert_int_equal(c->duplicate_keys, 1);
    assert_int_equal(c->bytes_in, strlen(TEXT) + 9);
    mdl_output_destroy(o);
}

TEST(call_ids_depend_on_request_and_index_only)
{
    char a[MDL_CALL_ID_SIZE], b[MDL_CALL_ID_SIZE];

    mdl_call_id("r-1", 0, a);
    mdl_call_id("r-1", 0, b);
    assert_string_equal(a, b);
    assert_int_equal(strlen(a), 29);
    assert_memory_equal(a, "call_", 5);
    mdl_call_id("r-1", 1, b);
    assert_string_not_equal(a, b);
    mdl_call_id("r-2", 0, b);
    assert_string_not_equal(a, b);
}

/* --- strict --- */

static void check_strict(const char *text, bool thinking, const char *expected)
{
    mdl_message m;
    sl_buf out;
    sl_err err;

    mdl_message_init(&m);
    sl_buf_init(&out, 0);
    if (expected) {
        assert_ok(mdl_message_parse_strict(text, strlen(text), thinking, &m, &err), &err);
        describe(&m, STOP, &out);
        assert_string_equal(out.data, expected);
    } else {
        assert_code(mdl_message_parse_strict(text, strlen(text), thinking, &m, &err), SL_INVALID);
    }
    sl_buf_fini(&out);
    mdl_message_fini(&m);
}

TEST(strict_grammar)
{
    check_strict("hi" EOS, false, "|hi||stop");
    check_strict("why</think>hi" EOS, true, "why|hi||stop");
    check_strict("hi\n\n" CB "\n" CALL_F CE EOS, false, "|hi|f({\"a\": \"x\"})|stop");
    check_strict("\n\n" CB "\n" IB("f") "\n\n" IE "\n" CE EOS, false, "||f({})|stop");
    check_strict("hi", false, NULL);
    check_strict("hi" EOS "x", false, NULL);
    check_strict("why" EOS, true, NULL);
    check_strict("<think>why</think>x" EOS, true, NULL);
    check_strict("a</think>x" EOS, false, NULL);
    check_strict("a｜DSML｜" EOS, false, NULL);
    check_strict("hi\n\n" CB "\n" CE EOS, false, NULL);
    check_strict("hi\n" CB "\n" CALL_F CE EOS, false, NULL);
    check_strict("\n\n" CB "\n" CALL_F CE "x" EOS, false, NULL);
    check_strict("\n\n" CB "\n" CALL_F EOS, false, NULL);
    check_strict("\n\n" CB "\n" IB("f") "\n" PS("a") "x" EOS, false, NULL);
    check_strict("\n\n" CB "\n" IB("f") "\n" PN("a") "x" PE "\n" IE "\n" CE EOS, false, NULL);
    check_strict("\n\n" CB "\n" IB("f") "\n" PS("a") "x" PE "\n" PS("a") "y" PE "\n" IE "\n" CE EOS,
                 false, NULL);
}

/* The request of messages 0 to `index` of a vector, with its tools. */
static void request_up_to(const sl_json *root, size_t index, sl_buf *out)
{
    const sl_json *messages = sl_json_get(root, "messages");
    const sl_json *tools = sl_json_get(root, "tools");

    sl_buf_puts(out, "{\"messages\":[");
    for (size_t i = 0; i <= index; i++) {
        sl_buf_puts(out, i ? "," : "");
        sl_json_write(out, sl_json_at(messages, i));
    }
    sl_buf_putc(out, ']');
    if (tools) {
        sl_buf_puts(out, ",\"tools\":");
        sl_json_write(out, tools);
    }
    sl_buf_putc(out, '}');
}

/* Renders assistant message i after its context and reads it back, strictly and tolerantly. */
static void check_round_trip(const sl_json *root, size_t index)
{
    const sl_json *messages = sl_json_get(root, "messages");
    const sl_json *original = sl_json_at(messages, index);
    const sl_json *calls = sl_json_get(original, "tool_calls");
    mdl_chat_options options = {.mode_default = MDL_CHAT_MODE_THINKING,
                                .developer_allowed = true,
                                .final_assistant_allowed = true};
    mdl_prompt prompt = {0};
    mdl_message m;
    mdl_chat *chat;
    sl_json_doc *doc;
    sl_buf text, strict;
    size_t size;
    const char *expected;
    sl_err err;

    sl_buf_init(&text, 0);
    sl_buf_init(&strict, 0);
    request_up_to(root, index, &text);
    assert_ok(sl_json_parse(text.data, text.size, NULL, &doc, &err), &err);
    assert_ok(mdl_chat_parse(sl_json_root(doc), &options, &chat, &err), &err);
    mdl_chat_render(chat, index, &prompt);
    mdl_message_init(&m);
    assert_ok(mdl_message_parse_strict(prompt.text.data, prompt.text.size, true, &m, &err), &err);
    expected = sl_json_string(sl_json_get(original, "reasoning_content"), &size);
    assert_int_equal(m.reasoning.size, size);
    assert_memory_equal(m.reasoning.data, expected, size);
    expected = sl_json_string(sl_json_get(original, "content"), &size);
    assert_int_equal(m.content.size, expected ? size : 0);
    if (expected)
        assert_memory_equal(m.content.data, expected, size);
    assert_int_equal(m.call_count, sl_json_count(calls));
    for (size_t i = 0; i < m.call_count; i++) {
        const sl_json *function = sl_json_get(sl_json_at(calls, i), "function");

        assert_string_equal(m.calls[i].name, sl_json_string(sl_json_get(function, "name"), NULL));
        expected = sl_json_string(sl_json_get(function, "arguments"), &size);
        assert_int_equal(m.calls[i].arguments.size, size);
        assert_memory_equal(m.calls[i].arguments.data, expected, size);
    }
    describe(&m, m.call_count > 0 ? MDL_FINISH_TOOL_CALLS : STOP, &strict);
    /* The tolerant parser never sees EOS. */
    sl_buf_clear(&text);
    sl_buf_append(&text, prompt.text.data, prompt.text.size - strlen(EOS));
    for (size_t stride = 1; stride < 2000; stride = stride * 3 + 1) {
        sl_buf out;

        sl_buf_init(&out, 0);
        feed(&THINK, STOP, text.data, text.size, 0, stride, &out);
        assert_string_equal(out.data, strict.data);
        sl_buf_fini(&out);
    }
    mdl_message_fini(&m);
    mdl_prompt_fini(&prompt);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    sl_buf_fini(&strict);
    sl_buf_fini(&text);
}

TEST(round_trips_of_the_vectors)
{
    static const char *const FILES[] = {SHARED "/vectors/encoding/test_input.json",
                                        SHARED "/vectors/encoding/test_input_search_w_date.json"};
    size_t count = 0;

    for (size_t f = 0; f < 2; f++) {
        sl_json_doc *doc;
        const sl_json *messages;
        sl_err err;

        skip_without(FILES[f]);
        assert_ok(sl_json_parse_file(FILES[f], NULL, &doc, &err), &err);
        messages = sl_json_get(sl_json_root(doc), "messages");
        for (size_t i = 0; i < sl_json_count(messages); i++) {
            const char *role = sl_json_string(sl_json_get(sl_json_at(messages, i), "role"), NULL);

            if (strcmp(role, "assistant") != 0)
                continue;
            check_round_trip(sl_json_root(doc), i);
            count++;
        }
        sl_json_doc_destroy(doc);
    }
    assert_true(count > 8);
}

/* Of a constrained answer, content is what the form says, whatever it looks like. */
TEST(literal_content)
{
    static const char *const STOPS[] = {"stop"};
    mdl_output_options options = CHAT;

    options.literal = true;
    check(&options, STOP, "\"</think>\"", "|\"</think>\"||stop");
    check(&options, STOP, "[\"a\",\"" CB "\"]", "|[\"a\",\"" CB "\"]||stop");
    check(&options, STOP, "{\n \"a\": \"\n\n" CB "\n" CALL_F CE "\"}",
          "|{\n \"a\": \"\n\n" CB "\n" CALL_F CE "\"}||stop");
    check(&options, STOP, "\n\n" CB "\n" CALL_F CE, "||f({\"a\": \"x\"})|tool_calls");
    check(&options, LENGTH, "\n\n", "|\n\n||length");
    options.reasoning_open = true;
    check(&options, STOP, "why</think>\"</think>" CB "\"", "why|\"</think>" CB "\"||stop");
    check(&options, STOP, "why</think>\n\n" CB "\n" CALL_F CE, "why||f({\"a\": \"x\"})|tool_calls");
    options.stops = STOPS; /* they cut content as ever */
    options.stop_count = 1;
    check(&options, STOP, "</think>[\"a stop\"]", "|[\"a ||stop");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(text_and_reasoning),
    cmocka_unit_test(literal_content),
    cmocka_unit_test(a_repeated_think_is_dropped),
    cmocka_unit_test(end_think_in_content_is_dropped),
    cmocka_unit_test(calls_end_reasoning),
    cmocka_unit_test(all_is_reasoning_without_its_end),
    cmocka_unit_test(odd_spacing_of_tags),
    cmocka_unit_test(no_tools_no_parsing),
    cmocka_unit_test(values),
    cmocka_unit_test(schema_decides_when_the_attribute_does_not),
    cmocka_unit_test(a_json_body_is_accepted),
    cmocka_unit_test(self_closing),
    cmocka_unit_test(unclosed_at_the_end),
    cmocka_unit_test(unclosed_at_the_length_limit),
    cmocka_unit_test(text_behind_a_block),
    cmocka_unit_test(text_inside_a_block),
    cmocka_unit_test(tags_without_dsml_are_text),
    cmocka_unit_test(stop_strings),
    cmocka_unit_test(options_are_checked),
    cmocka_unit_test(counts),
    cmocka_unit_test(call_ids_depend_on_request_and_index_only),
    cmocka_unit_test(strict_grammar),
    cmocka_unit_test(round_trips_of_the_vectors),
};
TEST_MAIN(tests)
