/* JSON: what is refused, what is kept, and the three writers against the number rules of the chat
 * encoding. */
#include "tests/unit/test.h"

#include <unistd.h>

#include "base/json.h"

static sl_json_doc *parsed(const char *text)
{
    sl_err err;
    sl_json_doc *doc = NULL;
    assert_ok(sl_json_parse(text, strlen(text), NULL, &doc, &err), &err);
    return doc;
}

static void assert_writes(const char *source, const char *compact, const char *python)
{
    sl_json_doc *doc = parsed(source);
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write(&buf, sl_json_root(doc));
    assert_string_equal(buf.data, compact);
    sl_buf_clear(&buf);
    sl_json_write_python(&buf, sl_json_root(doc));
    assert_string_equal(buf.data, python);
    sl_buf_fini(&buf);
    sl_json_doc_destroy(doc);
}

TEST(refuses_what_is_not_json)
{
    static const char *const wrong[] = {"",
                                        " ",
                                        "{",
                                        "[",
                                        "\"",
                                        "nul",
                                        "tru",
                                        "True",
                                        "NaN",
                                        "Infinity",
                                        "-Infinity",
                                        "+1",
                                        "01",
                                        "-",
                                        "-01",
                                        "1.",
                                        ".5",
                                        "1e",
                                        "1e+",
                                        "0x10",
                                        "1 2",
                                        "[1,]",
                                        "[,1]",
                                        "[1 2]",
                                        "{,}",
                                        "{\"a\"}",
                                        "{\"a\":}",
                                        "{\"a\":1,}",
                                        "{a:1}",
                                        "{'a':1}",
                                        "{1:2}",
                                        "[1]]",
                                        "{}}",
                                        "\"\t\"",
                                        "\"\n\"",
                                        "\"\\x41\"",
                                        "\"\\u12\"",
                                        "\"\\u12g4\"",
                                        "\"\\",
                                        "\"\\u",
                                        "\"abc",
                                        "'a'",
                                        "// c\n1",
                                        "/* */1",
                                        "\xef\xbb\xbf{}",
                                        "\"\x80\"",
                                        "\"\xc3\"",
                                        "\"\xed\xa0\x80\"",
                                        "\"\\ud800\"",
                                        "\"\\udc00\"",
                                        "\"\\ud800x\"",
                                        "\"\\ud800\\n\"",
                                        "\"\\ud800\\ud800\"",
                                        "\"\\ud83d\\u0041\"",
                                        "[1}",
                                        "{\"a\":1]",
                                        "\x0c"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        sl_err err;
        sl_json_doc *doc = NULL;
        sl_status status = sl_json_parse(wrong[i], strlen(wrong[i]), NULL, &doc, &err);
        if (status.code != SL_INVALID)
            fail_msg("accepted: %s", wrong[i]);
        assert_null(doc);
        assert_text_contains(err.text, "line ");
    }
}

TEST(errors_name_line_and_column)
{
    sl_err err;
    sl_json_doc *doc;
    const char *text = "{\n  \"\xc3\xa4\": tru\n}";
    assert_code(sl_json_parse(text, strlen(text), NULL, &doc, &err), SL_INVALID);
    assert_string_equal(err.text, "line 2, column 8: expected a value");
}

TEST(text_need_not_be_terminated)
{
    sl_err err;
    sl_json_doc *doc;
    assert_ok(sl_json_parse("123456", 3, NULL, &doc, &err), &err);
    assert_string_equal(sl_json_number_text(sl_json_root(doc)), "123");
    sl_json_doc_destroy(doc);
    assert_code(sl_json_parse("truex", 3, NULL, &doc, &err), SL_INVALID);
    assert_code(sl_json_parse("1\0", 2, NULL, &doc, &err), SL_INVALID);
}

TEST(depth_and_size_are_bounded)
{
    sl_err err;
    sl_json_doc *doc;
    char text[4001];
    memset(text, '[', 2000);
    memset(text + 2000, ']', 2000);
    assert_code(sl_json_parse(text, 4000, NULL, &doc, &err), SL_TOO_LARGE);
    assert_code(sl_json_parse(text + 2000 - 129, 258, NULL, &doc, &err), SL_TOO_LARGE);
    assert_ok(sl_json_parse(text + 2000 - 128, 256, NULL, &doc, &err), &err);
    sl_json_doc_destroy(doc);
    sl_json_limits limits = {.bytes_max = 10, .depth_max = 2};
    assert_code(sl_json_parse("[[[]]]", 6, &limits, &doc, &err), SL_TOO_LARGE);
    assert_code(sl_json_parse("\"123456789\"", 11, &limits, &doc, &err), SL_TOO_LARGE);
    assert_ok(sl_json_parse("[[1]]", 5, &limits, &doc, &err), &err);
    sl_json_doc_destroy(doc);
}

TEST(tree_is_reachable)
{
    sl_json_doc *doc = parsed("{\"a\":[1,\"x\",null,true],\"b\":{\"c\":false}}");
    const sl_json *root = sl_json_root(doc), *a = sl_json_get(root, "a");
    size_t size;
    bool flag;
    int64_t number;
    assert_int_equal(sl_json_typeof(root), SL_JSON_OBJECT);
    assert_int_equal(sl_json_count(root), 2);
    assert_string_equal(sl_json_key(root, 1, &size), "b");
    assert_int_equal(size, 1);
    assert_int_equal(sl_json_count(a), 4);
    assert_true(sl_json_i64(sl_json_at(a, 0), &number));
    assert_int_equal(number, 1);
    assert_string_equal(sl_json_string(sl_json_at(a, 1), &size), "x");
    assert_int_equal(sl_json_typeof(sl_json_at(a, 2)), SL_JSON_NULL);
    assert_true(sl_json_bool(sl_json_at(a, 3), &flag) && flag);
    assert_true(sl_json_bool(sl_json_get(sl_json_get(root, "b"), "c"), &flag) && !flag);
    sl_json_doc_destroy(doc);
}

TEST(wrong_kinds_answer_nothing)
{
    sl_json_doc *doc = parsed("[\"s\",1]");
    const sl_json *root = sl_json_root(doc), *string = sl_json_at(root, 0);
    int64_t number = 5;
    double real = 5;
    bool flag = true;
    assert_null(sl_json_get(root, "a"));
    assert_null(sl_json_get(NULL, "a"));
    assert_null(sl_json_at(root, 2));
    assert_null(sl_json_at(string, 0));
    assert_null(sl_json_key(root, 0, NULL));
    assert_null(sl_json_string(sl_json_at(root, 1), NULL));
    assert_null(sl_json_number_text(string));
    assert_false(sl_json_i64(string, &number));
    assert_false(sl_json_double(string, &real));
    assert_false(sl_json_bool(string, &flag));
    assert_false(sl_json_number_is_integer(string));
    assert_int_equal(number, 5);
    assert_int_equal(sl_json_count(string), 0);
    assert_int_equal(sl_json_typeof(NULL), SL_JSON_NULL);
    sl_json_doc_destroy(doc);
    sl_json_doc_destroy(NULL);
}

TEST(strings_are_unescaped)
{
    sl_json_doc *doc =
        parsed("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e4\\u2581\\uD83D\\uDE00\\u0000z\"");
    static const char want[] = "\"\\/\b\f\n\r\tA\xc3\xa4\xe2\x96\x81\xf0\x9f\x98\x80\0z";
    size_t size;
    const char *text = sl_json_string(sl_json_root(doc), &size);
    assert_int_equal(size, sizeof(want) - 1);
    assert_memory_equal(text, want, sizeof(want));
    sl_json_doc_destroy(doc);
}

TEST(duplicate_keys_last_value_first_position)
{
    assert_writes("{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":3,\"b\":2}", "{\"a\": 3, \"b\": 2}");
    /* The same beyond the linear size, and with enough duplicates to shrink the table. */
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_buf_putc(&buf, '{');
    for (int i = 0; i < 1000; i++)
        sl_buf_printf(&buf, "%s\"k%d\":%d", i ? "," : "", i % 100, i);
    sl_buf_putc(&buf, '}');
    sl_json_doc *doc = parsed(buf.data);
    const sl_json *root = sl_json_root(doc);
    assert_int_equal(sl_json_count(root), 100);
    for (int i = 0; i < 100; i++) {
        char key[16];
        int64_t value;
        snprintf(key, sizeof(key), "k%d", i);
        assert_string_equal(sl_json_key(root, (size_t)i, NULL), key);
        assert_true(sl_json_i64(sl_json_get(root, key), &value));
        assert_int_equal(value, 900 + i);
    }
    assert_null(sl_json_get(root, "k100"));
    assert_null(sl_json_get(root, ""));
    sl_json_doc_destroy(doc);
    sl_buf_fini(&buf);
}

TEST(keys_may_hold_nul)
{
    sl_json_doc *doc = parsed("{\"a\\u0000b\":1,\"a\":2}");
    int64_t value;
    assert_int_equal(sl_json_count(sl_json_root(doc)), 2);
    assert_true(sl_json_i64(sl_json_get(sl_json_root(doc), "a"), &value));
    assert_int_equal(value, 2);
    sl_json_doc_destroy(doc);
}

TEST(integers_are_exact_or_refused)
{
    static const struct {
        const char *text;
        bool fits;
        int64_t value;
    } cases[] = {{"0", true, 0},
                 {"-0", true, 0},
                 {"9223372036854775807", true, INT64_MAX},
                 {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775808", false, 0},
                 {"-9223372036854775809", false, 0},
                 {"123456789012345678901234567890", false, 0},
                 {"3.0", true, 3},
                 {"1e2", true, 100},
                 {"1.5e1", true, 15},
                 {"1200e-2", true, 12},
                 {"0.0", true, 0},
                 {"0e999999999999", true, 0},
                 {"9007199254740993.0", true, 9007199254740993},
                 {"922337203685477580.7e1", true, INT64_MAX},
                 {"100000000000000000000e-2", true, 1000000000000000000},
                 {"3.5", false, 0},
                 {"1e-1", false, 0},
                 {"1e19", false, 0},
                 {"1e999999999999999999999", false, 0},
                 {"1e-999999999999999999999", false, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        sl_json_doc *doc = parsed(cases[i].text);
        int64_t value = 77;
        if (sl_json_i64(sl_json_root(doc), &value) != cases[i].fits)
            fail_msg("%s", cases[i].text);
        assert_int_equal(value, cases[i].fits ? cases[i].value : 77);
        sl_json_doc_destroy(doc);
    }
}

TEST(doubles)
{
    double value = 0;
    sl_json_doc *doc = parsed("[0.1,-2,1e999]");
    assert_true(sl_json_double(sl_json_at(sl_json_root(doc), 0), &value));
    assert_true(value == 0.1);
    assert_true(sl_json_double(sl_json_at(sl_json_root(doc), 1), &value));
    assert_true(value == -2);
    assert_false(sl_json_double(sl_json_at(sl_json_root(doc), 2), &value));
    sl_json_doc_destroy(doc);
}

/* Expected texts: what Python's json.dumps(json.loads(x)) gives. */
TEST(python_numbers)
{
    static const char *const cases[][2] = {
        {"1", "1"},
        {"-0", "0"},
        {"-7", "-7"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"1.0", "1.0"},
        {"-0.0", "-0.0"},
        {"0e5", "0.0"},
        {"1e5", "100000.0"},
        {"1E+2", "100.0"},
        {"100000.000", "100000.0"},
        {"0.0001", "0.0001"},
        {"0.00012345", "0.00012345"},
        {"0.00001", "1e-05"},
        {"1.5e-7", "1.5e-07"},
        {"1e15", "1000000000000000.0"},
        {"9999999999999998.0", "9999999999999998.0"},
        {"1e16", "1e+16"},
        {"15e15", "1.5e+16"},
        {"1e22", "1e+22"},
        {"1e100", "1e+100"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"5e-324", "5e-324"},
        {"4.9406564584124654e-324", "5e-324"},
        {"2.2250738585072014e-308", "2.2250738585072014e-308"},
        {"2.225073858507201e-308", "2.225073858507201e-308"},
        {"5.684341886080802e-14", "5.684341886080802e-14"},
        {"9007199254740993.0", "9007199254740992.0"},
        {"0.1", "0.1"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"3.141592653589793", "3.141592653589793"},
        {"0.10000000000000000555", "0.1"},
        {"123456.789", "123456.789"},
        {"1e-400", "0.0"},
        {"-1e-400", "-0.0"},
        {"1e999", "Infinity"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_writes(cases[i][0], cases[i][0], cases[i][1]);
}

TEST(python_form_of_structures)
{
    assert_writes(" { \"b\" : [ 1 , 2.50 , { } , [ ] ] , \"a\" : null } ",
                  "{\"b\":[1,2.50,{},[]],\"a\":null}", "{\"b\": [1, 2.5, {}, []], \"a\": null}");
    assert_writes("[true,false,\"\\u00e4\\u2028/\\u007f\"]",
                  "[true,false,\"\xc3\xa4\xe2\x80\xa8/\x7f\"]",
                  "[true, false, \"\xc3\xa4\xe2\x80\xa8/\x7f\"]");
}

TEST(string_escapes)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write_string(&buf, "a\"b\\c\n\r\t\b\f\x01\x1f\0/\x7f", 15);
    assert_string_equal(buf.data, "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001f\\u0000/\x7f\"");
    sl_buf_clear(&buf);
    sl_json_write_string(&buf, "", 0);
    assert_string_equal(buf.data, "\"\"");
    sl_buf_fini(&buf);
}

TEST(files_are_named_in_errors)
{
    sl_err err;
    sl_json_doc *doc;
    char path[] = "/tmp/sluice-json-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\":1}", 7), 7);
    assert_ok(sl_json_parse_file(path, NULL, &doc, &err), &err);
    sl_json_doc_destroy(doc);
    assert_int_equal(write(fd, "x", 1), 1);
    assert_code(sl_json_parse_file(path, NULL, &doc, &err), SL_INVALID);
    assert_text_contains(err.text, path);
    assert_text_contains(err.text, "line 1, column 8");
    sl_json_limits limits = {.bytes_max = 4};
    assert_code(sl_json_parse_file(path, &limits, &doc, &err), SL_TOO_LARGE);
    close(fd);
    unlink(path);
    assert_code(sl_json_parse_file(path, NULL, &doc, &err), SL_NOT_FOUND);
    assert_code(sl_json_parse_file("/", NULL, &doc, &err), SL_INVALID);
}

/* The shape of a large tokenizer.json: one object of 128k keys. */
TEST(large_objects)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_buf_putc(&buf, '{');
    for (int i = 0; i < 128000; i++)
        sl_buf_printf(&buf, "%s\"token\xe2\x96\x81%d\":%d", i ? "," : "", i, i);
    sl_buf_putc(&buf, '}');
    sl_json_doc *doc = parsed(buf.data);
    int64_t value;
    assert_true(sl_json_i64(sl_json_get(sl_json_root(doc), "token\xe2\x96\x81"
                                                           "127999"),
                            &value));
    assert_int_equal(value, 127999);
    sl_json_doc_destroy(doc);
    sl_buf_fini(&buf);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(refuses_what_is_not_json),
    cmocka_unit_test(errors_name_line_and_column),
    cmocka_unit_test(text_need_not_be_terminated),
    cmocka_unit_test(depth_and_size_are_bounded),
    cmocka_unit_test(tree_is_reachable),
    cmocka_unit_test(wrong_kinds_answer_nothing),
    cmocka_unit_test(strings_are_unescaped),
    cmocka_unit_test(duplicate_keys_last_value_first_position),
    cmocka_unit_test(keys_may_hold_nul),
    cmocka_unit_test(integers_are_exact_or_refused),
    cmocka_unit_test(doubles),
    cmocka_unit_test(python_numbers),
    cmocka_unit_test(python_form_of_structures),
    cmocka_unit_test(string_escapes),
    cmocka_unit_test(files_are_named_in_errors),
    cmocka_unit_test(large_objects),
};
TEST_MAIN(tests)
