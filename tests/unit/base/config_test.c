/* Options: the four sources and their order, misuse, help, printing, the settings file. */
#include "tests/unit/test.h"

#include <unistd.h>

#include "base/config.h"
#include "tests/unit/capture.h"

typedef struct settings {
    bool verbose;
    int64_t threads;
    double rate;
    const char *model;
    uint64_t kv_memory;
    uint64_t timeout;
    int backend;
} settings;

static const char *const backends[] = {"cpu", "cuda", NULL};
static const sl_option options[] = {
    {.name = "verbose",
     .section = "Log",
     .type = SL_OPTION_BOOL,
     .offset = offsetof(settings, verbose),
     .default_text = "false",
     .help = "say more"},
    {.name = "threads",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = offsetof(settings, threads),
     .default_text = "2",
     .help = "worker threads",
     .min = 1,
     .max = 64},
    {.name = "rate",
     .section = "Engine",
     .type = SL_OPTION_DOUBLE,
     .offset = offsetof(settings, rate),
     .default_text = "1.5",
     .least = 0.001,
     .most = 1e9,
     .help = "a rate"},
    {.name = "model",
     .section = "Model",
     .type = SL_OPTION_STRING,
     .offset = offsetof(settings, model),
     .help = "model directory",
     .required = true},
    {.name = "kv-memory",
     .section = "Engine",
     .type = SL_OPTION_BYTES,
     .offset = offsetof(settings, kv_memory),
     .default_text = "4GiB",
     .help = "cache size"},
    {.name = "timeout",
     .section = "Engine",
     .type = SL_OPTION_DURATION,
     .offset = offsetof(settings, timeout),
     .default_text = "5s",
     .help = "a wait"},
    {.name = "backend",
     .section = "Engine",
     .type = SL_OPTION_CHOICE,
     .offset = offsetof(settings, backend),
     .default_text = "cpu",
     .help = "where to compute",
     .choices = backends},
};
#define OPTION_COUNT (sizeof(options) / sizeof(options[0]))

static sl_status check(const void *target, sl_err *err)
{
    const settings *s = target;
    if (s->threads == 13)
        return sl_fail(err, SL_INVALID, "--threads 13: no luck");
    return sl_ok();
}

static const sl_config_spec spec = {.program = "sluice-test",
                                    .summary = "a test program",
                                    .options = options,
                                    .option_count = OPTION_COUNT,
                                    .check = check};
static const sl_config_spec spec_positional = {.program = "sluice-test",
                                               .summary = "a test program",
                                               .positional = "PROMPT",
                                               .options = options,
                                               .option_count = OPTION_COUNT};

typedef struct outcome {
    sl_config_result result;
    int exit_code;
    sl_config *config;
    settings values;
    char out[8192], err[8192];
} outcome;

/* Parses with stdout and stderr captured. `line`: arguments separated by single spaces. */
static outcome parse_with(const sl_config_spec *the_spec, const char *line)
{
    static char copy[1024];
    static outcome o;
    char *argv[32] = {"sluice-test"};
    int argc = 1;
    memset(&o, 0, sizeof(o));
    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    capture c = capture_begin();
    o.result = sl_config_parse(the_spec, argc, argv, &o.values, &o.config, &o.exit_code);
    capture_end(&c, o.out, o.err, sizeof(o.out));
    return o;
}

static outcome parse(const char *line)
{
    return parse_with(&spec, line);
}

static char file_path[] = "/tmp/sluice-config-test-XXXXXX";

static const char *file_with(const char *text)
{
    static char option[64];
    FILE *file = fopen(file_path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    snprintf(option, sizeof(option), "--config %s", file_path);
    return option;
}

static void assert_misuse(const char *line, const char *part)
{
    outcome o = parse(line);
    assert_int_equal(o.result, SL_CONFIG_EXIT);
    assert_int_equal(o.exit_code, 2);
    assert_null(o.config);
    assert_string_equal(o.out, "");
    assert_text_contains(o.err, part);
    assert_text_contains(o.err, "--help");
}

TEST(defaults)
{
    outcome o = parse("--model m");
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_false(o.values.verbose);
    assert_int_equal(o.values.threads, 2);
    assert_true(o.values.rate == 1.5);
    assert_string_equal(o.values.model, "m");
    assert_true(o.values.kv_memory == 4ull << 30);
    assert_true(o.values.timeout == 5000000000ull);
    assert_int_equal(o.values.backend, 0);
    assert_true(sl_config_is_set(o.config, "model"));
    assert_false(sl_config_is_set(o.config, "threads"));
    sl_config_destroy(o.config);
    sl_config_destroy(NULL);
}

TEST(command_line_forms)
{
    outcome o =
        parse("--verbose --threads=7 --rate 2e-3 --model m --kv-memory 512MiB --timeout=300ms "
              "--backend cuda --threads 8");
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_true(o.values.verbose);
    assert_int_equal(o.values.threads, 8); /* the last one counts */
    assert_true(o.values.rate == 2e-3);
    assert_true(o.values.kv_memory == 512ull << 20);
    assert_true(o.values.timeout == 300000000ull);
    assert_int_equal(o.values.backend, 1);
    sl_config_destroy(o.config);
    o = parse("--verbose=false --model=");
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_false(o.values.verbose);
    assert_string_equal(o.values.model, "");
    sl_config_destroy(o.config);
}

TEST(precedence)
{
    char line[256];
    const char *option =
        file_with("{\"model\": \"from-file\", \"threads\": 5, \"rate\": 7, \"verbose\": true}");
    snprintf(line, sizeof(line), "%s --threads 3", option);
    setenv("SLUICE_THREADS", "4", 1);
    setenv("SLUICE_RATE", "9", 1);
    outcome o = parse(line);
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_int_equal(o.values.threads, 3);
    assert_true(o.values.rate == 9);
    assert_string_equal(o.values.model, "from-file");
    assert_true(o.values.verbose);
    sl_config_destroy(o.config);
    snprintf(line, sizeof(line), "%s --threads 3 --print-config", option);
    o = parse(line);
    assert_int_equal(o.result, SL_CONFIG_EXIT);
    assert_int_equal(o.exit_code, 0);
    assert_text_contains(o.out, "threads = 3 (command line)\n");
    assert_text_contains(o.out, "rate = 9 (environment)\n");
    assert_text_contains(o.out, "model = from-file (settings file)\n");
    assert_text_contains(o.out, "kv-memory = 4GiB (default)\n");
    unsetenv("SLUICE_THREADS");
    unsetenv("SLUICE_RATE");
    setenv("SLUICE_CONFIG", file_path, 1);
    o = parse("");
    assert_int_equal(o.values.threads, 5);
    sl_config_destroy(o.config);
    unsetenv("SLUICE_CONFIG");
}

TEST(misuse_of_the_command_line)
{
    assert_misuse("", "--model is required (or SLUICE_MODEL, or \"model\" in the settings file)");
    assert_misuse("--model", "--model needs a value");
    assert_misuse("--model --verbose", "--model needs a value");
    assert_misuse("--model m --thread 3", "did you mean --threads?");
    assert_misuse("--model m --zzzzzzz", "unknown option --zzzzzzz");
    assert_misuse("--model m -v", "options are long");
    assert_misuse("--model m stray", "unexpected argument \"stray\"");
    assert_misuse("--model m -- stray", "unexpected argument \"stray\"");
    assert_misuse("--model m --threads 0", "--threads: 0 is not within 1 to 64");
    assert_misuse("--model m --threads 65", "not within");
    assert_misuse("--model m --threads 3x", "\"3x\" is not an integer");
    assert_misuse("--model m --threads=", "is not an integer");
    assert_misuse("--model m --threads 99999999999999999999", "is not an integer");
    assert_misuse("--model m --rate nan", "is not a number");
    assert_misuse("--model m --rate 1,5", "is not a number");
    assert_misuse("--model m --rate 0x10", "is not a number");
    assert_misuse("--model m --rate -1", "-1 is not within 0.001 to 1e+09");
    assert_misuse("--model m --rate 1e308", "is not within");
    assert_misuse("--model m --kv-memory 4XB", "\"4XB\" is not a size");
    assert_misuse("--model m --timeout 5", "\"5\" is not a duration");
    assert_misuse("--model m --backend tpu", "\"tpu\" is not one of cpu|cuda");
    assert_misuse("--model m --verbose=maybe", "neither true nor false");
    assert_misuse("--model m --check-config=1", "takes no value");
}

TEST(misuse_of_the_environment)
{
    setenv("SLUICE_KV_MEMORY", "lots", 1);
    assert_misuse("--model m", "environment variable SLUICE_KV_MEMORY: \"lots\" is not a size");
    /* Also where the command line overrides it. */
    assert_misuse("--model m --kv-memory 1GiB", "SLUICE_KV_MEMORY");
    unsetenv("SLUICE_KV_MEMORY");
}

TEST(misuse_of_the_file)
{
    char part[256];
    assert_misuse("--config /nonexistent/x.json", "open /nonexistent/x.json: No such file");
    assert_misuse("--config /", "read /");
    snprintf(part, sizeof(part), "%s: line 2, column 3: ", file_path);
    assert_misuse(file_with("{\n  model: 1}"), part);
    assert_misuse(file_with("{\"model\": \"m\",\n  \"thread\": 3}"), part);
    assert_misuse(file_with("{\"model\": \"m\",\n  \"thread\": 3}"), "did you mean \"threads\"?");
    assert_misuse(file_with("{\"model\": \"m\",\n  \"threads\": 99}"), part);
    assert_misuse(file_with("{\"model\": \"threads\",\n  \"threads\": 99}"), part);
    assert_misuse(file_with("{\"model\": null}"), "\"model\" cannot be a JSON null");
    assert_misuse(file_with("{\"model\": {}}"), "\"model\" cannot be a JSON object");
    assert_misuse(file_with("{\"model\": [1]}"), "\"model\" cannot be a JSON array");
    assert_misuse(file_with("{\"model\": \"a\\u0000b\"}"), "cannot be a JSON string");
    assert_misuse(file_with("[]"), "settings are a JSON object");
    assert_misuse(file_with(""), "line 1, column 1");
}

TEST(file_lists_join)
{
    outcome o = parse(file_with("{\"model\": [\"a\", \"b\"], \"threads\": 1}"));
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_string_equal(o.values.model, "a,b");
    sl_config_destroy(o.config);
}

TEST(help_and_version)
{
    outcome o = parse("--bogus --help");
    assert_int_equal(o.result, SL_CONFIG_EXIT);
    assert_int_equal(o.exit_code, 0);
    assert_string_equal(o.err, "");
    assert_text_contains(o.out, "sluice-test: a test program");
    assert_text_contains(o.out, "usage: sluice-test [options]\n");
    assert_text_contains(o.out, "\nEngine\n");
    assert_text_contains(o.out, "--backend cpu|cuda");
    assert_text_contains(o.out, "(default 4GiB)");
    assert_text_contains(o.out, "(required)");
    /* Each section once, each option once. */
    assert_null(strstr(strstr(o.out, "\nEngine\n") + 1, "\nEngine\n"));
    assert_null(strstr(strstr(o.out, "--backend") + 1, "--backend"));
    o = parse("--version");
    assert_int_equal(o.exit_code, 0);
    assert_string_equal(o.out, "sluice-test " SL_VERSION "\n");
}

TEST(check_config)
{
    outcome o = parse("--check-config --model m");
    assert_int_equal(o.result, SL_CONFIG_EXIT);
    assert_int_equal(o.exit_code, 0);
    assert_string_equal(o.err, "");
    assert_misuse("--check-config", "--model is required");
    assert_misuse("--check-config --model m --threads 13", "--threads 13: no luck");
    assert_misuse("--model m --threads 13", "--threads 13: no luck");
}

TEST(positional)
{
    outcome o = parse_with(&spec_positional, "one --model m -x -- --two");
    assert_int_equal(o.result, SL_CONFIG_RUN);
    assert_int_equal(sl_config_positional_count(o.config), 3);
    assert_string_equal(sl_config_positional(o.config, 0), "one");
    assert_string_equal(sl_config_positional(o.config, 1), "-x");
    assert_string_equal(sl_config_positional(o.config, 2), "--two");
    assert_null(sl_config_positional(o.config, 3));
    sl_config_destroy(o.config);
}

TEST(sizes)
{
    uint64_t value;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"0", 0},         {"1000", 1000},         {"7B", 7},
                {"1KiB", 1024},   {"1.5GiB", 3ull << 29}, {"2TiB", 2ull << 40},
                {"3MB", 3000000}, {"1kB", 1000},          {"18446744073709551615", UINT64_MAX}};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(sl_parse_bytes(good[i].text, &value));
        assert_true(value == good[i].value);
    }
    static const char *const bad[] = {"",
                                      "GiB",
                                      "-1",
                                      "1 GiB",
                                      "1gib",
                                      "1.3B",
                                      "0x10",
                                      "1..5KiB",
                                      "1.",
                                      ".5KiB",
                                      "18446744073709551616",
                                      "17179869184GiB",
                                      "1GiBx",
                                      " 1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (sl_parse_bytes(bad[i], &value))
            fail_msg("accepted \"%s\"", bad[i]);
}

TEST(durations)
{
    uint64_t value;
    assert_true(sl_parse_duration_ns("0", &value) && value == 0);
    assert_true(sl_parse_duration_ns("5s", &value) && value == 5000000000ull);
    assert_true(sl_parse_duration_ns("1.5s", &value) && value == 1500000000ull);
    assert_true(sl_parse_duration_ns("2m", &value) && value == 120000000000ull);
    assert_true(sl_parse_duration_ns("1h", &value) && value == 3600000000000ull);
    assert_true(sl_parse_duration_ns("10us", &value) && value == 10000);
    assert_true(sl_parse_duration_ns("3ns", &value) && value == 3);
    assert_false(sl_parse_duration_ns("5", &value));
    assert_false(sl_parse_duration_ns("5 s", &value));
    assert_false(sl_parse_duration_ns("-5s", &value));
    assert_false(sl_parse_duration_ns("1d", &value));
    assert_false(sl_parse_duration_ns("", &value));
    assert_false(sl_parse_duration_ns("1.5ns", &value));
}

static int make_file(void **state)
{
    int fd = mkstemp(file_path);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int remove_file(void **state)
{
    return unlink(file_path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(defaults),
    cmocka_unit_test(command_line_forms),
    cmocka_unit_test(precedence),
    cmocka_unit_test(misuse_of_the_command_line),
    cmocka_unit_test(misuse_of_the_environment),
    cmocka_unit_test(misuse_of_the_file),
    cmocka_unit_test(file_lists_join),
    cmocka_unit_test(help_and_version),
    cmocka_unit_test(check_config),
    cmocka_unit_test(positional),
    cmocka_unit_test(sizes),
    cmocka_unit_test(durations),
};

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name(__FILE__, tests, make_file, remove_file);
    if (failed == 0 && sl_alloc_live() != 0) {
        sl_alloc_print_live();
        failed = 1;
    }
    return failed;
}
