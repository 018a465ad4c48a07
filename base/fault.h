/* Fault sites: named places where a test can hold, kill, fail or slow the process.
 *
 * SLUICE_FAULTS="prefill.group=hold@2;decode.step=exit;kvt.fetch=fail@3x2" arms sites:
 * action[@nth hit, from 1][xcount]; neither = every hit, only @n = that hit alone.
 *   fail     the site reports failure (sl_fault returns true)
 *   exit     _exit(86) at once
 *   hold     blocks the thread until the process gets SIGUSR2
 *   slow=MS  waits MS milliseconds (holds the thread)
 * Unarmed sites cost one load. Site names that the program does not know are an error at start
 * (sl_fault_init). Thread: any; sl_fault_init before threads start. */
#ifndef BASE_FAULT_H
#define BASE_FAULT_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parses the variable (NULL = not set). `sites` is the NULL-terminated list of names this program
 * has. */
SL_MUST_USE sl_status sl_fault_init(const char *const *sites, const char *spec, sl_err *err);
/* True if the site must fail now. May block or not return, as armed. */
bool sl_fault(const char *site);

#ifdef __cplusplus
}
#endif
#endif
