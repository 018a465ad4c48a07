/* The commands of sluicectl, one function each. They print to stdout what was asked for, to stderr
 * what went wrong, and return the program's exit code. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "base/config.h"
#include "cli/session.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CTL_EXIT_OK      0
#define CTL_EXIT_FAILURE 1 /* not reached, not done, or something is wrong */
#define CTL_EXIT_MISUSE  2

#define CTL_READS   1u /* again and again with --watch */
#define CTL_LIVE    4u /* the same without being told */
#define CTL_CHANGES 2u /* says what it would do with --dry-run */

typedef struct ctl_command {
    const char *name;  /* one word or two: "settings set" */
    const char *words; /* after it: "NODE"; "" = none */
    size_t words_min, words_max;
    unsigned flags;
    const char *options[8]; /* that go with it alone; NULL-terminated */
    const char *help;
    int (*run)(ctl_session *session, const char *const *words); /* NULL-terminated */
    /* The same of a command that asks no cluster: run is NULL. */
    int (*alone)(const ctl_options *options, const char *const *words);
} ctl_command;

/* All of them, for the command line, the manual page and completion alike. */
extern const ctl_command CTL_COMMANDS[];
extern const size_t CTL_COMMAND_COUNT;
extern const sl_config_spec CTL_CONFIG_SPEC;

int ctl_members(ctl_session *session, const char *const *words);
int ctl_node(ctl_session *session, const char *const *words);
int ctl_check(ctl_session *session, const char *const *words);
int ctl_drain(ctl_session *session, const char *const *words);
int ctl_resume(ctl_session *session, const char *const *words);
int ctl_cordon(ctl_session *session, const char *const *words);
int ctl_uncordon(ctl_session *session, const char *const *words);
int ctl_requests(ctl_session *session, const char *const *words);
int ctl_cancel(ctl_session *session, const char *const *words);
int ctl_trace(ctl_session *session, const char *const *words);
int ctl_explain(ctl_session *session, const char *const *words);
int ctl_settings_get(ctl_session *session, const char *const *words);
int ctl_settings_set(ctl_session *session, const char *const *words);
int ctl_top(ctl_session *session, const char *const *words);
int ctl_role(ctl_session *session, const char *const *words);
int ctl_scale_plan(ctl_session *session, const char *const *words);
int ctl_scale_apply(ctl_session *session, const char *const *words);
int ctl_events(ctl_session *session, const char *const *words);
int ctl_weights_pause(ctl_session *session, const char *const *words);
int ctl_weights_resume(ctl_session *session, const char *const *words);
int ctl_weights_reload(ctl_session *session, const char *const *words);
int ctl_placement_show(ctl_session *session, const char *const *words);
int ctl_placement_plan(ctl_session *session, const char *const *words);
int ctl_placement_apply(ctl_session *session, const char *const *words);
int ctl_doctor(ctl_session *session, const char *const *words);
int ctl_size(ctl_session *session, const char *const *words);
int ctl_version(ctl_session *session, const char *const *words);
int ctl_pki_init(const ctl_options *options, const char *const *words);
int ctl_pki_issue(const ctl_options *options, const char *const *words);
int ctl_completion(const ctl_options *options, const char *const *words);
int ctl_manual(const ctl_options *options, const char *const *words);

/* A request's id, from that or from the `id` of its answer ("chatcmpl-ID", "cmpl-ID"); within
 * `word`. */
const char *ctl_request_id(const char *word);
/* "sluicectl: ..", to stderr; returns CTL_EXIT_FAILURE. */
int ctl_fail(const sl_err *err);
/* Prints `buf` to stdout and ends it. */
void ctl_print(sl_buf *buf);
/* One more field of the object that buf ends in: "key":"text". */
void ctl_json_text(sl_buf *buf, const char *key, const char *text);
void ctl_json_number(sl_buf *buf, const char *key, uint64_t value);
void ctl_json_double(sl_buf *buf, const char *key, double value); /* four decimals */
void ctl_json_bool(sl_buf *buf, const char *key, bool value);
/* Begins a field, or an element, whose value follows. */
void ctl_json_open(sl_buf *buf, const char *key, char bracket);
/* "1.5 s", "3 min", "2 h". */
void ctl_age_text(uint64_t ms, char *out_text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
