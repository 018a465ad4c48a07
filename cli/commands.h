/* The commands of sluicectl, one function each. They print to stdout what was asked for, to stderr
 * what went wrong, and return the program's exit code. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "cli/session.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CTL_EXIT_OK      0
#define CTL_EXIT_FAILURE 1 /* not reached, not done, or something is wrong */
#define CTL_EXIT_MISUSE  2

typedef struct ctl_command {
    const char *name;
    bool takes_node;
    int (*run)(ctl_session *session, const char *argument);
} ctl_command;

int ctl_members(ctl_session *session, const char *argument);
int ctl_check(ctl_session *session, const char *argument);
int ctl_drain(ctl_session *session, const char *name);
int ctl_resume(ctl_session *session, const char *name);

/* "sluicectl: ..", to stderr; returns CTL_EXIT_FAILURE. */
int ctl_fail(const sl_err *err);
/* Prints `buf` to stdout and ends it. */
void ctl_print(sl_buf *buf);
/* One more field of the object that buf ends in: "key":"text". */
void ctl_json_text(sl_buf *buf, const char *key, const char *text);
void ctl_json_number(sl_buf *buf, const char *key, uint64_t value);
void ctl_json_bool(sl_buf *buf, const char *key, bool value);
/* Begins a field, or an element, whose value follows. */
void ctl_json_open(sl_buf *buf, const char *key, char bracket);

#ifdef __cplusplus
}
#endif
#endif
