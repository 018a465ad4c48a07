/* Secrets in files: one line that nobody else on the machine may read.
 *
 * Owns nothing: what was read is the caller's, who wipes it (explicit_bzero). Thread: any. */
#ifndef BASE_SECRET_H
#define BASE_SECRET_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The file's first line, without its end, into out_line (size bytes, with the NUL), which is left
 * alone on failure. The file must be a regular one of root's or our own, that its group may read at
 * most and others not at all: SL_INVALID says what to do. So is a line that is shorter than min
 * bytes, that does not fit or holds a NUL. option names it in errors ("--etcd-password-file"). */
SL_MUST_USE sl_status sl_secret_read(const char *option, const char *path, size_t min,
                                     char *out_line, size_t size, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
