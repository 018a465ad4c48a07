/* Options from one table: defaults < settings file (JSON object) < environment SLUICE_<NAME> <
 * command line.
 *
 * Each option: {name "kv-memory", section, type, offset into the caller's struct, default text,
 * help}. The same table gives parsing, --help, --version, --print-config (value and origin) and
 * --check-config. Long options only, `--name value` or `--name=value`; flags take `--name`,
 * `--name=false`. A list in the settings file (array of strings) becomes comma-separated text.
 * Thread: start-up. */
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sl_option_type {
    SL_OPTION_BOOL,     /* bool */
    SL_OPTION_INT,      /* int64_t, within [min, max] */
    SL_OPTION_DOUBLE,   /* double */
    SL_OPTION_STRING,   /* const char * (owned by the config; NULL when no default) */
    SL_OPTION_BYTES,    /* uint64_t; "4GiB", "512MiB", "1000" */
    SL_OPTION_DURATION, /* uint64_t nanoseconds; "5s", "300ms", "2m" */
    SL_OPTION_CHOICE,   /* int index into choices */
} sl_option_type;

typedef struct sl_option {
    const char *name;
    const char *section; /* groups --help */
    sl_option_type type;
    size_t offset;
    const char *default_text; /* NULL: no default (STRING: NULL) */
    const char *help;
    int64_t min, max;           /* INT only; both 0 = unbounded */
    double least, most;         /* DOUBLE only; both 0 = unbounded */
    const char *const *choices; /* CHOICE only, NULL-terminated */
    bool required;
} sl_option;

typedef struct sl_config_spec {
    const char *program;    /* "sluice-router" */
    const char *summary;    /* one line */
    const char *positional; /* NULL: none allowed; else how help names them ("PROMPT") */
    const sl_option *options;
    size_t option_count;
    /* May be NULL: what the table cannot say of the filled target. Its text names the option. */
    sl_status (*check)(const void *target, sl_err *err);
    /* What --check-config looks at besides: whatever a start would refuse before its work begins,
     * files too. NULL: nothing. */
    sl_status (*probe)(const void *target, sl_err *err);
} sl_config_spec;

typedef struct sl_config sl_config;

typedef enum sl_config_result {
    SL_CONFIG_RUN,  /* go on */
    SL_CONFIG_EXIT, /* --help, --version, --print-config, --check-config answered: exit with
                       out_exit_code */
} sl_config_result;

/* Fills *target. Misuse is told on stderr with a hint (exit code 2), help goes to stdout (0).
 * --config FILE names the settings file; its errors have line and column. The config owns the
 * strings that target points to. positional arguments: sl_config_positional. */
sl_config_result sl_config_parse(const sl_config_spec *spec, int argc, char **argv, void *target,
                                 sl_config **out_config, int *out_exit_code);
#define SL_CONFIG_POSITIONAL_MAX 256
size_t sl_config_positional_count(const sl_config *config);
const char *sl_config_positional(const sl_config *config, size_t index);
/* True if the value did not come from the default. */
bool sl_config_is_set(const sl_config *config, const char *name);
bool sl_config_on_command_line(const sl_config *config, const char *name);
void sl_config_destroy(sl_config *config);

/* One option of the table by name; NULL: none. */
const sl_option *sl_config_option(const sl_config_spec *spec, const char *name);
/* Sets one option of a filled target; not of strings, whose text somebody must own. */
SL_MUST_USE sl_status sl_config_set(const sl_option *option, const char *text, void *target,
                                    sl_err *err);
/* Its value in the form that --name takes; not of strings. */
void sl_config_text(const sl_option *option, const void *target, char *out_text, size_t size);

SL_MUST_USE bool sl_parse_bytes(const char *text, uint64_t *out_bytes);
SL_MUST_USE bool sl_parse_duration_ns(const char *text, uint64_t *out_ns);

#ifdef __cplusplus
}
#endif
#endif
