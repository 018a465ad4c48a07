/* Options from one table: parsing of the four sources, help, printing.
 *
 * A config owns copies of every text it took a value from, so that string options stay valid until
 * sl_config_destroy. Start-up only; writes to stdout (help, --print-config) and stderr (misuse). */
#include "base/config.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/config_value.h"
#include "base/json.h"

#define FILE_BYTES_MAX ((size_t)1 << 20)
#define EXIT_MISUSE    2

/* In rising precedence. */
typedef enum origin { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_ENVIRONMENT, ORIGIN_COMMAND_LINE } origin;

typedef struct entry {
    char *text; /* NULL: no value */
    origin from;
} entry;

struct sl_config {
    const sl_config_spec *spec;
    entry *entries;
    char *file; /* --config */
    bool help, version, print, check;
    size_t positional_count;
    char *positional[SL_CONFIG_POSITIONAL_MAX];
};

static const char *const COMMON_HELP =
    "Common\n"
    "  --config FILE             settings file, a JSON object of the names above\n"
    "  --print-config            print each value and where it came from\n"
    "  --check-config            check the settings and what they name, and exit; starts nothing\n"
    "  --version                 print the version\n"
    "  --help                    this text\n";

static size_t option_index(const sl_config_spec *spec, const char *name, size_t size)
{
    for (size_t i = 0; i < spec->option_count; i++)
        if (strlen(spec->options[i].name) == size && memcmp(spec->options[i].name, name, size) == 0)
            return i;
    return SIZE_MAX;
}

static size_t edit_distance(const char *a, size_t a_size, const char *b)
{
    size_t row[65], b_size = strlen(b);
    if (a_size > 64 || b_size > 64)
        return SIZE_MAX;
    for (size_t j = 0; j <= b_size; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_size; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[b_size];
}

/* The known name nearest to a mistyped one; NULL if none is near. */
static const char *nearest_name(const sl_config_spec *spec, const char *name, size_t size)
{
    const char *best = NULL;
    size_t best_distance = 4;
    for (size_t i = 0; i < spec->option_count; i++) {
        size_t distance = edit_distance(name, size, spec->options[i].name);
        if (distance < best_distance && distance < size) {
            best_distance = distance;
            best = spec->options[i].name;
        }
    }
    return best;
}

static void set_entry(sl_config *config, size_t index, const char *text, origin from)
{
    entry *e = &config->entries[index];
    if (e->text && e->from > from)
        return;
    sl_free(e->text);
    e->text = sl_strdup(text, "config value");
    e->from = from;
}

/* A value must be right even where a stronger source overrides it: it would bite later. */
static sl_status check_value(const sl_option *option, const char *text, sl_err *err)
{
    sl_config_value ignored;
    return sl_config_convert(option, text, &ignored, err);
}

/* --- command line --- */

static bool *builtin_flag(sl_config *config, const char *name, size_t size)
{
    static const char *const names[] = {"help", "version", "print-config", "check-config"};
    bool *flags[] = {&config->help, &config->version, &config->print, &config->check};
    for (size_t i = 0; i < 4; i++)
        if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0)
            return flags[i];
    return NULL;
}

static sl_status unknown_option(const sl_config_spec *spec, const char *name, size_t size,
                                sl_err *err)
{
    const char *near = nearest_name(spec, name, size);
    if (near)
        return sl_fail(err, SL_INVALID, "unknown option --%.*s: did you mean --%s?", (int)size,
                       name, near);
    return sl_fail(err, SL_INVALID, "unknown option --%.*s", (int)size, name);
}

/* argv[*at] is "--name..."; moves *at over a separate value. */
static sl_status take_option(sl_config *config, int argc, char **argv, int *at, sl_err *err)
{
    const char *name = argv[*at] + 2;
    const char *equals = strchr(name, '=');
    size_t size = equals ? (size_t)(equals - name) : strlen(name);
    const char *value = equals ? equals + 1 : NULL;
    bool *flag = builtin_flag(config, name, size);
    if (flag) {
        if (value)
            return sl_fail(err, SL_INVALID, "--%.*s takes no value", (int)size, name);
        *flag = true;
        return sl_ok();
    }
    bool is_file = size == 6 && memcmp(name, "config", 6) == 0;
    size_t index = is_file ? SIZE_MAX : option_index(config->spec, name, size);
    if (!is_file && index == SIZE_MAX)
        return unknown_option(config->spec, name, size, err);
    const sl_option *option = is_file ? NULL : &config->spec->options[index];
    if (!value && option && option->type == SL_OPTION_BOOL)
        value = "true";
    if (!value) {
        if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0)
            return sl_fail(err, SL_INVALID, "--%.*s needs a value", (int)size, name);
        value = argv[++*at];
    }
    if (is_file) {
        sl_free(config->file);
        config->file = sl_strdup(value, "config file name");
        return sl_ok();
    }
    sl_status status = check_value(option, value, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "--%s", option->name);
    set_entry(config, index, value, ORIGIN_COMMAND_LINE);
    return sl_ok();
}

static sl_status take_command_line(sl_config *config, int argc, char **argv, sl_err *err)
{
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_positional && strcmp(arg, "--") == 0) {
            only_positional = true;
        } else if (!only_positional && strncmp(arg, "--", 2) == 0) {
            SL_TRY(take_option(config, argc, argv, &i, err));
        } else if (!only_positional && arg[0] == '-' && arg[1] && !config->spec->positional) {
            return sl_fail(err, SL_INVALID, "unknown option %s: options are long (--name)", arg);
        } else if (!config->spec->positional) {
            return sl_fail(err, SL_INVALID, "unexpected argument \"%s\"", arg);
        } else if (config->positional_count == SL_CONFIG_POSITIONAL_MAX) {
            return sl_fail(err, SL_TOO_LARGE, "more than %d arguments", SL_CONFIG_POSITIONAL_MAX);
        } else {
            config->positional[config->positional_count++] = sl_strdup(arg, "config argument");
        }
    }
    return sl_ok();
}

/* --- environment --- */

static void environment_name(const char *name, char *out_text, size_t size)
{
    int used = snprintf(out_text, size, "SLUICE_%s", name);
    sl_assert(used > 0 && (size_t)used < size);
    for (char *c = out_text; *c; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

static sl_status take_environment(sl_config *config, sl_err *err)
{
    char variable[128];
    for (size_t i = 0; i < config->spec->option_count; i++) {
        const sl_option *option = &config->spec->options[i];
        environment_name(option->name, variable, sizeof(variable));
        const char *value = getenv(variable);
        if (!value)
            continue;
        sl_status status = check_value(option, value, err);
        if (!sl_is_ok(status))
            return sl_wrap(err, status, "environment variable %s", variable);
        set_entry(config, i, value, ORIGIN_ENVIRONMENT);
    }
    const char *file = getenv("SLUICE_CONFIG");
    if (file && !config->file)
        config->file = sl_strdup(file, "config file name");
    return sl_ok();
}

/* --- settings file --- */

/* Line and column of a top-level key in a text that is known to be a valid JSON object. */
static void key_position(const char *text, size_t size, const char *key, size_t *out_line,
                         size_t *out_column)
{
    size_t line = 1, line_start = 0, key_size = strlen(key);
    int depth = 0;
    *out_line = *out_column = 1;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\n') {
            line++;
            line_start = i + 1;
        }
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (c != '"')
            continue;
        size_t start = i + 1;
        for (i = start; i < size && text[i] != '"'; i++)
            i += text[i] == '\\';
        size_t next = i + 1;
        while (next < size && isspace((unsigned char)text[next]))
            next++;
        if (depth == 1 && next < size && text[next] == ':' && i - start == key_size &&
            memcmp(text + start, key, key_size) == 0) {
            *out_line = line; /* the last one wins, as in the parser */
            *out_column = start - line_start;
        }
    }
}

/* The text of a setting, in the form the command line has; arrays of strings join with commas. */
static bool setting_text(const sl_json *value, sl_buf *buf)
{
    size_t size;
    bool flag;
    if (sl_json_typeof(value) == SL_JSON_ARRAY) {
        for (size_t i = 0; i < sl_json_count(value); i++) {
            const char *item = sl_json_string(sl_json_at(value, i), &size);
            if (!item || memchr(item, '\0', size))
                return false;
            sl_buf_printf(buf, "%s%s", i ? "," : "", item);
        }
        return true;
    }
    if (sl_json_bool(value, &flag))
        sl_buf_puts(buf, flag ? "true" : "false");
    else if (sl_json_number_text(value))
        sl_buf_puts(buf, sl_json_number_text(value));
    else if (sl_json_string(value, &size) && !memchr(sl_json_string(value, &size), '\0', size))
        sl_buf_append(buf, sl_json_string(value, NULL), size);
    else
        return false;
    return true;
}

static sl_status take_setting(sl_config *config, const char *name, const sl_json *value,
                              sl_err *err)
{
    size_t index = option_index(config->spec, name, strlen(name));
    if (index == SIZE_MAX) {
        const char *near = nearest_name(config->spec, name, strlen(name));
        return sl_fail(err, SL_INVALID, "unknown setting \"%s\"%s%s%s", name,
                       near ? ": did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    sl_buf text;
    sl_buf_init(&text, 0);
    sl_buf_puts(&text, "");
    sl_status status = sl_ok();
    if (!setting_text(value, &text))
        status = sl_fail(err, SL_INVALID, "\"%s\" cannot be a JSON %s", name,
                         sl_json_type_name(sl_json_typeof(value)));
    else if (!sl_is_ok(status = check_value(&config->spec->options[index],
                                            text.data ? text.data : "", err)))
        status = sl_wrap(err, status, "\"%s\"", name);
    else
        set_entry(config, index, text.data ? text.data : "", ORIGIN_FILE);
    sl_buf_fini(&text);
    return status;
}

static sl_status read_text(const char *path, sl_buf *out, sl_err *err)
{
    char piece[4096];
    size_t got;
    FILE *file = fopen(path, "re");
    if (!file)
        return sl_fail_errno(err, SL_IO, "open %s", path);
    while ((got = fread(piece, 1, sizeof(piece), file)) > 0 && !out->overflow)
        sl_buf_append(out, piece, got);
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed)
        return sl_fail(err, SL_IO, "read %s: error or not a file", path);
    if (out->overflow)
        return sl_fail(err, SL_TOO_LARGE, "%s is over %zu bytes", path, FILE_BYTES_MAX);
    return sl_ok();
}

static sl_status take_file(sl_config *config, sl_err *err)
{
    sl_json_doc *doc = NULL;
    sl_buf text;
    if (!config->file)
        return sl_ok();
    sl_buf_init(&text, FILE_BYTES_MAX);
    sl_status status = read_text(config->file, &text, err);
    if (!sl_is_ok(status))
        goto done;
    status = sl_json_parse(text.data ? text.data : "", text.size, NULL, &doc, err);
    if (!sl_is_ok(status)) {
        status = sl_wrap(err, status, "%s", config->file);
        goto done;
    }
    const sl_json *root = sl_json_root(doc);
    if (sl_json_typeof(root) != SL_JSON_OBJECT) {
        status = sl_fail(err, SL_INVALID, "%s: line 1, column 1: settings are a JSON object",
                         config->file);
        goto done;
    }
    for (size_t i = 0; i < sl_json_count(root) && sl_is_ok(status); i++) {
        const char *name = sl_json_key(root, i, NULL);
        size_t line, column;
        status = take_setting(config, name, sl_json_at(root, i), err);
        if (!sl_is_ok(status)) {
            key_position(text.data, text.size, name, &line, &column);
            status = sl_wrap(err, status, "%s: line %zu, column %zu", config->file, line, column);
        }
    }
done:
    sl_json_doc_destroy(doc);
    sl_buf_fini(&text);
    return status;
}

/* --- output --- */

static void print_option(const sl_option *option)
{
    char left[256], placeholder[200];
    sl_config_placeholder(option, placeholder, sizeof(placeholder));
    snprintf(left, sizeof(left), "--%s%s%s", option->name, placeholder[0] ? " " : "", placeholder);
    if (strlen(left) > 25)
        printf("  %s\n  %-25s", left, "");
    else
        printf("  %-25s", left);
    printf(" %s", option->help);
    if (option->default_text)
        printf(" (default %s)\n", option->default_text[0] ? option->default_text : "\"\"");
    else
        printf("%s\n", option->required ? " (required)" : "");
}

static void print_help(const sl_config_spec *spec)
{
    printf("%s: %s\n\nusage: %s [options]%s%s\n", spec->program, spec->summary, spec->program,
           spec->positional ? " " : "", spec->positional ? spec->positional : "");
    for (size_t i = 0; i < spec->option_count; i++) {
        const char *section = spec->options[i].section;
        size_t first = 0;
        while (strcmp(spec->options[first].section, section) != 0)
            first++;
        if (first != i)
            continue; /* its section was printed at its first option */
        printf("\n%s\n", section);
        for (size_t j = i; j < spec->option_count; j++)
            if (strcmp(spec->options[j].section, section) == 0)
                print_option(&spec->options[j]);
    }
    printf("\n%s\nEach option is also SLUICE_<NAME> in the environment and a key of the settings "
           "file.\nThe command line wins over the environment, that over the file, that over the "
           "default.\n",
           COMMON_HELP);
}

static void print_values(const sl_config *config)
{
    static const char *const names[] = {"default", "settings file", "environment", "command line"};
    for (size_t i = 0; i < config->spec->option_count; i++) {
        const entry *e = &config->entries[i];
        printf("%s = %s (%s)\n", config->spec->options[i].name, e->text ? e->text : "(none)",
               names[e->from]);
    }
}

/* --- all together --- */

static sl_status fill_target(sl_config *config, void *target, sl_err *err)
{
    for (size_t i = 0; i < config->spec->option_count; i++) {
        const sl_option *option = &config->spec->options[i];
        const char *text = config->entries[i].text;
        sl_config_value value;
        memset(&value, 0, sizeof(value));
        if (!text && option->required) {
            char variable[128];
            environment_name(option->name, variable, sizeof(variable));
            return sl_fail(err, SL_INVALID,
                           "--%s is required (or %s, or \"%s\" in the settings file)", option->name,
                           variable, option->name);
        }
        if (text) /* was checked when it was taken; a default is the program's own */
            SL_TRY(sl_config_convert(option, text, &value, err));
        sl_config_store(option, &value, target);
    }
    return sl_ok();
}

static sl_status take_all(sl_config *config, int argc, char **argv, sl_err *err)
{
    SL_TRY(take_command_line(config, argc, argv, err));
    if (config->help || config->version)
        return sl_ok();
    SL_TRY(take_environment(config, err));
    SL_TRY(take_file(config, err));
    for (size_t i = 0; i < config->spec->option_count; i++)
        if (!config->entries[i].text && config->spec->options[i].default_text)
            set_entry(config, i, config->spec->options[i].default_text, ORIGIN_DEFAULT);
    return sl_ok();
}

/* --help anywhere before "--" wins over whatever else is wrong on the line. */
static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return true;
    return false;
}

sl_config_result sl_config_parse(const sl_config_spec *spec, int argc, char **argv, void *target,
                                 sl_config **out_config, int *out_exit_code)
{
    sl_err err = {SL_OK, ""};
    if (asks_for_help(argc, argv)) {
        print_help(spec);
        *out_exit_code = 0;
        return SL_CONFIG_EXIT;
    }
    sl_config *config = sl_alloc(1, sizeof(*config), "config");
    config->spec = spec;
    config->entries = sl_alloc(spec->option_count, sizeof(entry), "config entries");
    *out_exit_code = 0;
    sl_status status = take_all(config, argc, argv, &err);
    if (sl_is_ok(status) && config->version) {
        printf("%s %s\n", spec->program, SL_VERSION);
        goto leave;
    }
    if (sl_is_ok(status) && config->print) {
        print_values(config);
        goto leave;
    }
    if (sl_is_ok(status))
        status = fill_target(config, target, &err);
    if (sl_is_ok(status) && spec->check)
        status = spec->check(target, &err);
    if (!sl_is_ok(status)) {
        fprintf(stderr, "%s: %s\ntry %s --help\n", spec->program, err.text, spec->program);
        *out_exit_code = EXIT_MISUSE;
        goto leave;
    }
    if (config->check && spec->probe && !sl_is_ok(spec->probe(target, &err))) {
        fprintf(stderr, "%s: %s\n", spec->program, err.text);
        *out_exit_code = EXIT_FAILURE;
        goto leave;
    }
    if (config->check) {
        printf("settings are fine\n");
        goto leave;
    }
    *out_config = config;
    return SL_CONFIG_RUN;
leave:
    fflush(stdout);
    sl_config_destroy(config);
    return SL_CONFIG_EXIT;
}

size_t sl_config_positional_count(const sl_config *config)
{
    return config->positional_count;
}

const char *sl_config_positional(const sl_config *config, size_t index)
{
    return index < config->positional_count ? config->positional[index] : NULL;
}

const sl_option *sl_config_option(const sl_config_spec *spec, const char *name)
{
    size_t index = option_index(spec, name, strlen(name));
    return index == SIZE_MAX ? NULL : &spec->options[index];
}

sl_status sl_config_set(const sl_option *option, const char *text, void *target, sl_err *err)
{
    sl_config_value value;
    sl_assert(option->type != SL_OPTION_STRING);
    SL_TRY(sl_wrap(err, sl_config_convert(option, text, &value, err), "%s", option->name));
    sl_config_store(option, &value, target);
    return sl_ok();
}

bool sl_config_is_set(const sl_config *config, const char *name)
{
    size_t index = option_index(config->spec, name, strlen(name));
    sl_assert(index != SIZE_MAX);
    return config->entries[index].text && config->entries[index].from != ORIGIN_DEFAULT;
}

bool sl_config_on_command_line(const sl_config *config, const char *name)
{
    size_t index = option_index(config->spec, name, strlen(name));
    sl_assert(index != SIZE_MAX);
    return config->entries[index].text && config->entries[index].from == ORIGIN_COMMAND_LINE;
}

void sl_config_destroy(sl_config *config)
{
    if (!config)
        return;
    for (size_t i = 0; i < config->spec->option_count; i++)
        sl_free(config->entries[i].text);
    for (size_t i = 0; i < config->positional_count; i++)
        sl_free(config->positional[i]);
    sl_free(config->entries);
    sl_free(config->file);
    sl_free(config);
}
