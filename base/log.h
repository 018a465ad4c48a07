/* Log lines to stderr: `2026-01-31T12:00:00.123456Z info  router  request r-12: placed on
 * decode-0`.
 *
 * Only daemons log at info and above; libraries never above debug. Lower case, ids greppable
 * ("request %s"), one line an event. Thread: any (one write(2) a line). */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sl_log_level {
    SL_LOG_ERROR,
    SL_LOG_WARN,
    SL_LOG_INFO,
    SL_LOG_DEBUG,
    SL_LOG_TRACE
} sl_log_level;

/* The name stands in each line ("prefill-0"); borrowed for the life of the process. */
void sl_log_set_name(const char *name);
void sl_log_set_level(sl_log_level level);
sl_log_level sl_log_level_get(void);
/* "error", "warn", "info", "debug", "trace"; false if unknown. */
bool sl_log_level_parse(const char *text, sl_log_level *out_level);
void sl_log_write(sl_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define sl_log(level, ...)                      \
    do {                                        \
        if ((level) <= sl_log_level_get())      \
            sl_log_write((level), __VA_ARGS__); \
    } while (0)
#define sl_error(...) sl_log(SL_LOG_ERROR, __VA_ARGS__)
#define sl_warn(...)  sl_log(SL_LOG_WARN, __VA_ARGS__)
#define sl_info(...)  sl_log(SL_LOG_INFO, __VA_ARGS__)
#define sl_debug(...) sl_log(SL_LOG_DEBUG, __VA_ARGS__)
#define sl_trace(...) sl_log(SL_LOG_TRACE, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
#endif
