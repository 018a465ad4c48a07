/* Status codes and error text. Owns nothing, any thread, never logs. */
#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A text that did not fit ends so that it is seen, and not inside a character. */
static void mark_cut(sl_err *err, int used, int size)
{
    static const char MARK[] = "...";
    if (used < size)
        return;
    size_t at = sizeof(err->text) - sizeof(MARK);
    while (at > 0 && ((unsigned char)err->text[at] & 0xc0) == 0x80)
        at--;
    memcpy(err->text + at, MARK, sizeof(MARK));
}

sl_status sl_fail(sl_err *err, sl_code code, const char *format, ...)
{
    sl_status status = {code};
    if (err) {
        va_list args;
        err->code = code;
        va_start(args, format);
        mark_cut(err, vsnprintf(err->text, sizeof(err->text), format, args), sizeof(err->text));
        va_end(args);
    }
    return status;
}

/* ": text" behind the first `used` bytes. */
static void add_behind(sl_err *err, int used, const char *text)
{
    if (used < 0) /* vsnprintf's own failure */
        return;
    int left = (int)sizeof(err->text) - used;
    mark_cut(err, left > 0 ? snprintf(err->text + used, (size_t)left, ": %s", text) : 0, left);
}

sl_status sl_fail_errno(sl_err *err, sl_code code, const char *format, ...)
{
    int saved = errno;
    sl_status status = {code};
    if (err) {
        char reason_buffer[128];
        /* GNU strerror_r: may return a constant instead of the buffer. */
        const char *reason = strerror_r(saved, reason_buffer, sizeof(reason_buffer));
        va_list args;
        err->code = code;
        va_start(args, format);
        int used = vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
        add_behind(err, used, reason);
    }
    errno = saved;
    return status;
}

sl_status sl_wrap(sl_err *err, sl_status status, const char *format, ...)
{
    if (err) {
        char inner[SL_ERR_TEXT_MAX];
        va_list args;
        memcpy(inner, err->text, sizeof(inner));
        inner[sizeof(inner) - 1] = '\0';
        err->code = status.code;
        va_start(args, format);
        int used = vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
        add_behind(err, used, inner);
    }
    return status;
}

const char *sl_code_name(sl_code code)
{
    switch (code) {
    case SL_OK:
        return "ok";
    case SL_INVALID:
        return "invalid";
    case SL_TOO_LARGE:
        return "too_large";
    case SL_UNSUPPORTED:
        return "unsupported";
    case SL_NOT_FOUND:
        return "not_found";
    case SL_EXISTS:
        return "exists";
    case SL_CANCELLED:
        return "cancelled";
    case SL_DEADLINE:
        return "deadline";
    case SL_FULL:
        return "full";
    case SL_CONFLICT:
        return "conflict";
    case SL_CORRUPT:
        return "corrupt";
    case SL_UNAVAILABLE:
        return "unavailable";
    case SL_INCOMPATIBLE:
        return "incompatible";
    case SL_DENIED:
        return "denied";
    case SL_IO:
        return "io";
    case SL_NO_MEMORY:
        return "no_memory";
    case SL_INTERNAL:
        return "internal";
    }
    return "unknown";
}
