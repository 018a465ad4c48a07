/* Status codes and error text.
 *
 * Anything that can fail returns sl_status (must-use). Codes are grouped by the largest thing that
 * is affected for good, because that tells the caller the remedy. Folder-boundary calls also take
 * `sl_err *err` last: code plus text, filled where the fault is decided; err may be NULL. Thread:
 * any. */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sl_code {
    SL_OK = 0,
    /* request: this request is wrong or cannot be served; others go on */
    SL_INVALID = 1,     /* bad input; the text names the field and what to do */
    SL_TOO_LARGE = 2,   /* over a named limit */
    SL_UNSUPPORTED = 3, /* understood, but not offered */
    SL_NOT_FOUND = 4,
    SL_EXISTS = 5,
    SL_CANCELLED = 6,
    SL_DEADLINE = 7, /* the wait's own deadline passed */
    SL_FULL = 8,     /* a bounded queue, pool or table is full: retry later or elsewhere */
    SL_CONFLICT = 9, /* a compare failed, an epoch is old, a state does not allow it */
    /* transfer: fetch again, or take another source */
    SL_CORRUPT = 20, /* checksum or format mismatch */
    /* peer: take another peer */
    SL_UNAVAILABLE = 30,  /* cannot be reached, died, or is draining */
    SL_INCOMPATIBLE = 31, /* other numerics id, model, weights or cache format */
    SL_DENIED = 32,
    /* process or device: drain this process */
    SL_IO = 40,
    SL_NO_MEMORY = 41,
    SL_INTERNAL = 42, /* a bug: should not be seen */
} sl_code;

/* A struct, so that a status mistaken for another integer does not compile. Functions that return
 * it are declared SL_MUST_USE. */
typedef struct sl_status {
    sl_code code;
} sl_status;

#define SL_MUST_USE __attribute__((warn_unused_result))

#define SL_ERR_TEXT_MAX 512 /* with its NUL; a longer text ends in "..." */

typedef struct sl_err {
    sl_code code;
    char text[SL_ERR_TEXT_MAX];
} sl_err;

static inline sl_status sl_ok(void)
{
    sl_status s = {SL_OK};
    return s;
}
static inline bool sl_is_ok(sl_status s)
{
    return s.code == SL_OK;
}

/* Fills err (when not NULL) and returns the code: `return sl_fail(err, SL_INVALID, "..", ..)`. */
sl_status sl_fail(sl_err *err, sl_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with errno's text appended: "open /x: No such file or directory". */
sl_status sl_fail_errno(sl_err *err, sl_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Prepends context to err's text ("model demo: " + text) and returns its code. */
sl_status sl_wrap(sl_err *err, sl_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Lower-case name of a code, for logs and metrics labels ("deadline"). Never NULL. */
const char *sl_code_name(sl_code code);

/* Returns the failing status of `expr` to the caller. */
#define SL_TRY(expr)                       \
    do {                                   \
        sl_status sl_try_status_ = (expr); \
        if (!sl_is_ok(sl_try_status_))     \
            return sl_try_status_;         \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
