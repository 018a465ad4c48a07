/* What the commands' outputs share. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "cli/commands.h"

int ctl_fail(const sl_err *err)
{
    fprintf(stderr, "sluicectl: %s\n", err->text);
    return CTL_EXIT_FAILURE;
}

void ctl_print(sl_buf *buf)
{
    if (buf->size > 0)
        fwrite(buf->data, 1, buf->size, stdout);
    fflush(stdout);
    sl_buf_fini(buf);
}

/* A comma, unless a bracket was opened just now. */
static void begin(sl_buf *buf, const char *key)
{
    char last = buf->size > 0 ? buf->data[buf->size - 1] : '{';
    if (last != '{' && last != '[')
        sl_buf_putc(buf, ',');
    if (!key)
        return;
    sl_json_write_string(buf, key, strlen(key));
    sl_buf_putc(buf, ':');
}

void ctl_json_text(sl_buf *buf, const char *key, const char *text)
{
    begin(buf, key);
    sl_json_write_string(buf, text, strlen(text));
}

void ctl_json_number(sl_buf *buf, const char *key, uint64_t value)
{
    begin(buf, key);
    sl_buf_printf(buf, "%llu", (unsigned long long)value);
}

void ctl_json_bool(sl_buf *buf, const char *key, bool value)
{
    begin(buf, key);
    sl_buf_puts(buf, value ? "true" : "false");
}

void ctl_json_double(sl_buf *buf, const char *key, double value)
{
    begin(buf, key);
    sl_buf_printf(buf, "%.4f", value);
}

void ctl_json_open(sl_buf *buf, const char *key, char bracket)
{
    begin(buf, key);
    sl_buf_putc(buf, bracket);
}

void ctl_age_text(uint64_t ms, char *out_text, size_t size)
{
    if (ms < 60000)
        snprintf(out_text, size, "%.1fs", (double)ms / 1e3);
    else if (ms < 3600000)
        snprintf(out_text, size, "%.1fm", (double)ms / 60e3);
    else
        snprintf(out_text, size, "%.1fh", (double)ms / 3600e3);
}
