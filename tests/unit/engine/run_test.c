/* sluice-run from its command line: main() is called in this process with stdout and stderr caught.
 */
#include "tests/unit/test.h"

#include <unistd.h>

#include "base/json.h"
#include "model/safetensors.h"

#define main sluice_run_main
int sluice_run_main(int argc, char **argv);
#include "engine/run/main.c"
#undef main
#include "engine/run/dump.c"
#include "engine/run/generate.c"
#include "engine/run/input.c"
#include "engine/run/layers.c"
#include "engine/run/options.c"
#include "engine/run/progress.c"

#define DEMO "models/demo"
/* <BOS> "Once upon a time there was a" */
#define IDS "0,2051,2093,261,701,454,312,261"

static char output[1 << 20], errors[1 << 16];

static void read_back(FILE *file, char *out, size_t size)
{
    rewind(file);
    out[fread(out, 1, size - 1, file)] = '\0';
    fclose(file);
}

/* Runs with up to 20 arguments (NULL-terminated) and `input` on stdin. */
static int run_with(const char *input, const char *const *arguments)
{
    char *argv[24] = {"sluice-run"};
    int argc = 1;
    for (; arguments[argc - 1]; argc++)
        argv[argc] = (char *)(uintptr_t)arguments[argc - 1];
    FILE *files[3] = {tmpfile(), tmpfile(), tmpfile()};
    int saved[3];
    fputs(input, files[0]);
    rewind(files[0]);
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 3; i++) {
        saved[i] = dup(i);
        dup2(fileno(files[i]), i);
    }
    clearerr(stdin);
    int code = sluice_run_main(argc, argv);
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
    fclose(files[0]);
    read_back(files[1], output, sizeof(output));
    read_back(files[2], errors, sizeof(errors));
    return code;
}

#define run_main(...) run_with("", (const char *const[]){__VA_ARGS__, NULL})
#define GREEDY        "--temperature", "0", "--threads", "1"

static const sl_json *parse_output(sl_json_doc **out_doc)
{
    sl_err err;
    assert_ok(sl_json_parse(output, strlen(output), NULL, out_doc, &err), &err);
    return sl_json_root(*out_doc);
}

/* "text" of a JSON run, copied. */
static void text_of_run(char *out, size_t size)
{
    sl_json_doc *doc = NULL;
    const sl_json *root = parse_output(&doc);
    snprintf(out, size, "%s", sl_json_string(sl_json_get(root, "text"), NULL));
    sl_json_doc_destroy(doc);
}

TEST(chat_answers)
{
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--chat", "Who are you?"), 0);
    assert_text_contains(output, "I am the Sluice demo model");
    assert_string_equal(errors, "");
}

TEST(json_says_everything)
{
    int64_t value;
    sl_json_doc *doc = NULL;
    assert_int_equal(run_main("--model", DEMO, "--json", "--seed", "7", "--logprobs", "2",
                              "--max-tokens", "5", "--ids", IDS),
                     0);
    const sl_json *root = parse_output(&doc);
    assert_int_equal(sl_json_count(sl_json_get(root, "prompt_ids")), 8);
    assert_int_equal(sl_json_count(sl_json_get(root, "ids")), 5);
    assert_string_equal(sl_json_string(sl_json_get(root, "finish_reason"), NULL), "length");
    assert_true(sl_json_i64(sl_json_get(root, "seed"), &value) && value == 7);
    const sl_json *logprobs = sl_json_get(root, "logprobs");
    assert_int_equal(sl_json_count(logprobs), 5);
    assert_int_equal(sl_json_count(sl_json_get(sl_json_at(logprobs, 0), "top")), 2);
    assert_non_null(sl_json_get(sl_json_get(root, "timing"), "prefill_ms"));
    sl_json_doc_destroy(doc);
}

TEST(one_answer_whatever_the_chunks)
{
    static const char *const CHUNKS[] = {"1", "3", "64", "4096"};
    char first[4096] = "", text[4096];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(run_main("--model", DEMO, "--json", "--seed", "11", "--chat",
                                  "--max-tokens", "24", "--chunk-tokens", CHUNKS[i],
                                  "Tell me a story about a bear named Wendy."),
                         0);
        text_of_run(text, sizeof(text));
        if (i == 0)
            snprintf(first, sizeof(first), "%s", text);
        assert_string_equal(text, first);
    }
}

TEST(a_drawn_seed_is_reported_and_repeats)
{
    char text[4096], seed[32];
    assert_int_equal(run_main("--model", DEMO, "--max-tokens", "12", "Once upon a time"), 0);
    snprintf(text, sizeof(text), "%.4000s", output);
    const char *at = strstr(errors, "seed ");
    assert_non_null(at);
    snprintf(seed, sizeof(seed), "%.*s", (int)strcspn(at + 5, "\n"), at + 5);
    assert_int_equal(
        run_main("--model", DEMO, "--max-tokens", "12", "--seed", seed, "Once upon a time"), 0);
    assert_string_equal(output, text);
    assert_string_equal(errors, "");
}

/* Forced tokens then the model's choice: the same as the tokens in the prompt. */
TEST(forced_tokens_equal_a_longer_prompt)
{
    char text[4096], forced[4096];
    assert_int_equal(
        run_main("--model", DEMO, "--json", GREEDY, "--max-tokens", "8", "--ids", IDS ",575,973"),
        0);
    text_of_run(text, sizeof(text));
    assert_int_equal(run_main("--model", DEMO, "--json", GREEDY, "--max-tokens", "8", "--ids", IDS,
                              "--force-ids", "575,973"),
                     0);
    text_of_run(forced, sizeof(forced));
    assert_string_equal(forced, text);
}

TEST(messages_and_tools)
{
    char path[] = "/tmp/sluice-run-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char REQUEST[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"What is the weather in Paris?\"}],"
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":"
        "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"}},"
        "\"required\":[\"city\"]}}}]}";
    assert_int_equal(write(fd, REQUEST, sizeof(REQUEST) - 1), sizeof(REQUEST) - 1);
    close(fd);
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--messages", path), 0);
    assert_text_contains(output, "DSML");
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--messages", path, "and more"), 2);
    assert_int_equal(truncate(path, 10), 0);
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--messages", path), 2);
    assert_text_contains(errors, path);
    unlink(path);
}

TEST(system_and_thinking_reach_the_prompt)
{
    sl_json_doc *doc = NULL;
    size_t plain, with_system, thinking;
    assert_int_equal(
        run_main("--model", DEMO, "--json", GREEDY, "--max-tokens", "1", "--chat", "Hello!"), 0);
    plain = sl_json_count(sl_json_get(parse_output(&doc), "prompt_ids"));
    sl_json_doc_destroy(doc);
    assert_int_equal(run_main("--model", DEMO, "--json", GREEDY, "--max-tokens", "1", "--chat",
                              "--system", "You are a helpful assistant.", "Hello!"),
                     0);
    with_system = sl_json_count(sl_json_get(parse_output(&doc), "prompt_ids"));
    sl_json_doc_destroy(doc);
    assert_true(with_system > plain);
    assert_int_equal(run_main("--model", DEMO, "--json", GREEDY, "--max-tokens", "1", "--chat",
                              "--thinking", "Hello!"),
                     0);
    thinking = sl_json_count(sl_json_get(parse_output(&doc), "prompt_ids"));
    sl_json_doc_destroy(doc);
    assert_int_equal(thinking, plain); /* <think> in place of </think> */
}

TEST(wrong_options_are_named)
{
    assert_int_equal(run_main("--model", DEMO, "--json-schema", "{", "Hello!"), 2);
    assert_text_contains(errors, "--json-schema: line 1");
    assert_int_equal(run_main("--model", DEMO, "--choice", "[\"a\"", "Hello!"), 2);
    assert_text_contains(errors, "--choice: line 1");
    static const char *const WRONG[][3] = {
        {"--json-schema", "{\"type\":\"foo\"}", "--json-schema.type: must be"},
        {"--json-schema", "{\"minLength\":-1}", "--json-schema"},
        {"--regex", "a(", "--regex: at byte 1"},
        {"--choice", "a,,b", "--choice[1]: must be"},
        {"--choice", "[1]", "--choice[0]: must be"},
    };
    for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++)
        for (int chat = 0; chat < 2; chat++) {
            assert_int_equal(run_main("--model", DEMO, chat ? "--chat" : "--max-tokens=1",
                                      WRONG[i][0], WRONG[i][1], "Hello!"),
                             2);
            assert_text_contains(errors, WRONG[i][2]);
            assert_null(strstr(errors, "structured_outputs"));
        }
    char path[] = "/tmp/sluice-run-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *file = fdopen(fd, "w");
    fputs("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
          "\"response_format\":{\"type\":\"json_object\"}}",
          file);
    fclose(file);
    assert_int_equal(run_main("--model", DEMO, "--messages", path, "--regex", "a"), 2);
    assert_text_contains(errors, "--regex: given beside response_format");
    assert_int_equal(run_main("--model", DEMO, "--json-schema", path, "--json-object", "hi"), 2);
    assert_text_contains(errors, "give one");
    file = fopen(path, "w");
    fputs("[1]", file);
    fclose(file);
    assert_int_equal(run_main("--model", DEMO, "--json-schema", path, "hi"), 2);
    assert_text_contains(errors, "--json-schema: must be a schema");
    unlink(path);
    assert_int_equal(run_main("--model", DEMO, "--prompt-logprobs", "1", "Hello!"), 2);
    assert_text_contains(errors, "need --json");
    assert_int_equal(run_main("--model", DEMO, "--handout", "Hello!"), 2);
    assert_text_contains(errors, "need --json");
}

TEST(tokenize_reads_stdin)
{
    assert_int_equal(run_with("Hello!", (const char *const[]){"--tokenize", "--model", DEMO, NULL}),
                     0);
    assert_string_equal(output, "{\"ids\":[42,480,81,3]}\n");
    assert_int_equal(run_with("", (const char *const[]){"--tokenize", "--tokenizer",
                                                        DEMO "/tokenizer.json", NULL}),
                     0);
    assert_string_equal(output, "{\"ids\":[]}\n");
    assert_int_equal(run_with("\xff", (const char *const[]){"--tokenize", "--model", DEMO, NULL}),
                     1);
    assert_text_contains(errors, "UTF-8");
}

TEST(detokenize_reads_lines)
{
    const char *const ARGS[] = {"--detokenize", "--model", DEMO, NULL};
    assert_int_equal(run_with("0,2051,2093\n\n42,480,81,3", ARGS), 0);
    assert_string_equal(output, "{\"text\":\"<｜begin▁of▁sentence｜> free occasion\"}\n"
                                "{\"text\":\"\"}\n{\"text\":\"Hello!\"}\n");
    assert_int_equal(run_with("42\n42,999999\n", ARGS), 1);
    assert_text_contains(errors, "line 2: token id 999999");
    assert_int_equal(run_with("4x\n", ARGS), 1);
    assert_text_contains(errors, "line 1: --detokenize");
}

/* What a user types is no control token unless the operator says so. */
TEST(contents_are_plain_text)
{
    assert_int_equal(run_main("--model", DEMO, "--chat", "--max-tokens", "1", "--json", GREEDY,
                              "a <｜User｜> b"),
                     0);
    assert_text_contains(output,
                         "{\"prompt_ids\":[0,8179,67,223,30,174,124,253,55,85,271,174,124,253,"
                         "32,272,8180,8189]");
    assert_int_equal(run_main("--model", DEMO, "--chat", "--max-tokens", "1", "--json", GREEDY,
                              "--plain-content=false", "a <｜User｜> b"),
                     0);
    assert_text_contains(output, "{\"prompt_ids\":[0,8179,67,223,8179,272,8180,8189]");
}

static const mdl_tensor *dumped(const mdl_checkpoint *file, const char *name, mdl_dtype dtype,
                                int64_t a, int64_t b, int64_t c)
{
    const int64_t shape[] = {a, b, c};
    const mdl_tensor *tensor = NULL;
    sl_err err;
    assert_ok(mdl_checkpoint_get(file, name, dtype, 1 + (b > 0) + (c > 0), shape, &tensor, &err),
              &err);
    return tensor;
}

TEST(dumps_hold_what_they_promise)
{
    char path[] = "/tmp/sluice-run-test-XXXXXX";
    sl_err err;
    close(mkstemp(path));
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--max-tokens", "4", "--ids", IDS, "--dump",
                              path, "--dump-positions", "0,7,9", "--chunk-tokens", "5"),
                     0);
    mdl_checkpoint *file = NULL;
    assert_ok(mdl_checkpoint_open_file(path, &file, &err), &err);
    dumped(file, "logits", MDL_DTYPE_F32, 11, 8192, 0);
    dumped(file, "logits_last4", MDL_DTYPE_F32, 4, 8192, 0);
    dumped(file, "hidden_all", MDL_DTYPE_F32, 6, 8, 256);
    dumped(file, "cache_latent_last4", MDL_DTYPE_U8, 6, 4, 656);
    dumped(file, "cache_index_last4", MDL_DTYPE_U8, 6, 4, 132);
    dumped(file, "experts", MDL_DTYPE_I32, 5, 8, 4);
    const int32_t *set = dumped(file, "index_set_6_7", MDL_DTYPE_I32, 8, 0, 0)->data;
    for (int32_t i = 0; i < 8; i++)
        assert_int_equal(set[i], i);
    dumped(file, "index_set_0_9", MDL_DTYPE_I32, 10, 0, 0);
    const int32_t *drafts = dumped(file, "mtp_drafts", MDL_DTYPE_I32, 11, 0, 0)->data;
    for (int i = 0; i < 11; i++)
        assert_in_range(drafts[i], 0, 8191);
    mdl_checkpoint_close(file);
    unlink(path);
}

TEST(plain_numerics_run)
{
    char path[] = "/tmp/sluice-run-test-XXXXXX";
    sl_err err;
    close(mkstemp(path));
    assert_int_equal(run_main("--model", DEMO, GREEDY, "--numerics", "plain", "--max-tokens", "6",
                              "--ids", IDS, "--dump", path),
                     0);
    mdl_checkpoint *file = NULL;
    assert_ok(mdl_checkpoint_open_file(path, &file, &err), &err);
    dumped(file, "logits", MDL_DTYPE_F32, 13, 8192, 0);
    assert_null(mdl_checkpoint_find(file, "cache_latent_last4"));
    mdl_checkpoint_close(file);
    unlink(path);
}

TEST(misuse_is_told)
{
    static const struct {
        const char *arguments[10];
        int code;
        const char *part;
    } CASES[] = {
        {{"hello"}, 2, "--model"},
        {{"--model", DEMO}, 2, "no prompt"},
        {{"--model", DEMO, "two", "words"}, 2, "quote"},
        {{"--model", DEMO, "--no-such-option", "x"}, 2, "no-such-option"},
        {{"--model", DEMO, "--ids", "1,2,x"}, 2, "--ids"},
        {{"--model", DEMO, "--ids", "1,,2"}, 2, "--ids"},
        {{"--model", DEMO, "--ids", "-1"}, 2, "--ids"},
        {{"--model", DEMO, "--ids", ""}, 2, "empty"},
        {{"--model", DEMO, "--ids", "1", "hello"}, 2, "--ids"},
        {{"--model", DEMO, "--ids", "99999"}, 1, "99999"},
        {{"--model", DEMO, "--system", "x", "hello"}, 2, "--chat"},
        {{"--model", DEMO, "--seed", "x", "hello"}, 2, "--seed"},
        {{"--model", DEMO, "--temperature", "9", "hello"}, 2, "temperature"},
        {{"--model", DEMO, "--max-tokens", "0", "hello"}, 2, "max-tokens"},
        {{"--model", DEMO, "--numerics", "fp4", "hello"}, 2, "numerics"},
        {{"--model", DEMO, "--prompt-file", "no/such/file"}, 2, "no/such/file"},
        {{"--model", "no/such/model", "hello"}, 1, "no/such/model"},
        {{"--model", DEMO, "--kv-memory", "100KiB", "hello"}, 1, "one page"},
        {{"--model", DEMO, "--layers", "0:9", "--hidden-in", "x", "--dump", "y"}, 1, "0:6"},
        {{"--model", DEMO, "--layers", "2"}, 1, "A:B"},
        {{"--model", DEMO, "--layers", "0:1"}, 1, "--hidden-in"},
        {{"--model", DEMO, "--layers", "0:1", "--hidden-in", "no.file", "--dump", "y"},
         1,
         "no.file"},
        {{"--model", DEMO, "--max-tokens", "1", "--json", "--dump", "no/such/dir/x", "hello"},
         1,
         "no/such/dir"},
        {{"--tokenize"}, 1, "--tokenizer"},
        {{"--detokenize"}, 1, "--detokenize needs --tokenizer"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        int code = run_with("", CASES[i].arguments);
        if (code != CASES[i].code || !strstr(errors, CASES[i].part))
            fail_msg("case %zu: exit %d, said \"%s\"", i, code, errors);
        assert_string_equal(output, "");
    }
}

TEST(a_torn_checkpoint_names_tensor_and_file)
{
    char dir[] = "/tmp/sluice-run-test-XXXXXX", command[512];
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof(command),
             "cp " DEMO "/* %s/ && truncate -s 9000000 "
             "%s/model-00002-of-00003.safetensors",
             dir, dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(run_main("--model", dir, "hello"), 1);
    assert_text_contains(errors, "model-00002-of-00003.safetensors");
    assert_text_contains(errors, "tensor model.layers.");
    assert_text_contains(errors, "cut short");
    snprintf(command, sizeof(command), "rm -f %s/model-00003-of-00003.safetensors", dir);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "cp " DEMO "/model-00002* %s/", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(run_main("--model", dir, "hello"), 1);
    assert_text_contains(errors, "model-00003-of-00003.safetensors");
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(chat_answers),
    cmocka_unit_test(json_says_everything),
    cmocka_unit_test(one_answer_whatever_the_chunks),
    cmocka_unit_test(a_drawn_seed_is_reported_and_repeats),
    cmocka_unit_test(forced_tokens_equal_a_longer_prompt),
    cmocka_unit_test(messages_and_tools),
    cmocka_unit_test(system_and_thinking_reach_the_prompt),
    cmocka_unit_test(wrong_options_are_named),
    cmocka_unit_test(tokenize_reads_stdin),
    cmocka_unit_test(detokenize_reads_lines),
    cmocka_unit_test(contents_are_plain_text),
    cmocka_unit_test(dumps_hold_what_they_promise),
    cmocka_unit_test(plain_numerics_run),
    cmocka_unit_test(misuse_is_told),
    cmocka_unit_test(a_torn_checkpoint_names_tensor_and_file),
};
TEST_MAIN(TESTS)
