/* Log lines: formats one line on the stack and hands it to the kernel with one write.
 *
 * Owns the process-wide level and name (atomics). Any thread; never blocks on a lock, never
 * allocates. A line over LOG_LINE_MAX is cut and ends in "...". */
#include "base/log.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define LOG_LINE_MAX 4096

static const char *const LEVEL_NAMES[] = {"error", "warn", "info", "debug", "trace"};

static _Atomic int log_level = SL_LOG_INFO;
static _Atomic(const char *) log_name = "sluice";

void sl_log_set_name(const char *name)
{
    atomic_store_explicit(&log_name, name ? name : "sluice", memory_order_release);
}

void sl_log_set_level(sl_log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

sl_log_level sl_log_level_get(void)
{
    return (sl_log_level)atomic_load_explicit(&log_level, memory_order_relaxed);
}

bool sl_log_level_parse(const char *text, sl_log_level *out_level)
{
    for (int i = SL_LOG_ERROR; i <= SL_LOG_TRACE; i++) {
        if (text && strcmp(text, LEVEL_NAMES[i]) == 0) {
            *out_level = (sl_log_level)i;
            return true;
        }
    }
    return false;
}

/* Foreign text (a request id, a peer's error) must not forge a second line or send terminal codes.
 */
static void clean_line(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n' || c == '\t' || c == '\r')
            text[i] = ' ';
        else if (c < 0x20 || c == 0x7f)
            text[i] = '?';
    }
}

void sl_log_write(sl_log_level level, const char *format, ...)
{
    int saved = errno;
    char line[LOG_LINE_MAX];
    uint64_t wall = sl_wall_ns();
    time_t seconds = (time_t)(wall / SL_S_NS);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    size_t used = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
    int head = snprintf(line + used, sizeof(line) - used, ".%06uZ %-5s %s  ",
                        (unsigned)(wall % SL_S_NS / 1000), LEVEL_NAMES[level],
                        atomic_load_explicit(&log_name, memory_order_acquire));
    used += head > 0 ? (size_t)head : 0;
    if (used > sizeof(line) / 2)
        used = sizeof(line) / 2;
    size_t room = sizeof(line) - used - 1; /* one byte stays for the newline */
    va_list args;
    va_start(args, format);
    errno = saved; /* for %m */
    int body = vsnprintf(line + used, room, format, args);
    va_end(args);
    if (body < 0)
        body = 0;
    if ((size_t)body >= room) {
        body = (int)room - 1;
        memcpy(line + used + body - 3, "...", 3);
    }
    clean_line(line, used + (size_t)body);
    used += (size_t)body;
    line[used++] = '\n';
    ssize_t wrote;
    do {
        wrote = write(STDERR_FILENO, line, used);
    } while (wrote < 0 && errno == EINTR);
    errno = saved;
}
