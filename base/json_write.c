/* JSON writers: strings, the compact form that keeps number text, and Python's json.dumps form.
 *
 * Owns nothing, any thread. Recursion is bounded by the parser's depth limit. */
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json_tree.h"

void sl_json_write_string(sl_buf *buf, const char *text, size_t size)
{
    size_t kept = 0; /* start of the run not yet written */
    sl_buf_putc(buf, '"');
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        static const char from[] = "\"\\\n\r\t\b\f";
        static const char to[] = "\"\\nrtbf";
        const char *found = c ? strchr(from, c) : NULL;
        sl_buf_append(buf, text + kept, i - kept);
        kept = i + 1;
        if (found) {
            char escape[2] = {'\\', to[found - from]};
            sl_buf_append(buf, escape, 2);
        } else {
            sl_buf_printf(buf, "\\u%04x", c);
        }
    }
    sl_buf_append(buf, text + kept, size - kept);
    sl_buf_putc(buf, '"');
}

/* "d.ddde[+-]x" with `digits` significant digits; true if it reads back as x. */
static bool try_digits(double x, int digits, char out_text[32])
{
    snprintf(out_text, 32, "%.*e", digits - 1, x);
    return strtod(out_text, NULL) == x;
}

/* Just above a power of two the gap below is half the gap above, so the nearest decimal may lie in
 * the gap below without reading back, while its upper neighbour does. */
static bool try_next_digit_up(double x, int digits, char text[32])
{
    int at = digits == 1 ? 0 : digits; /* index of the last significant digit (after the '.') */
    while (at >= 0 && text[at] == '9')
        text[at--] = '0';
    if (at == 1)
        at = 0;
    if (at < 0 || text[at] == '9')
        return false;
    text[at]++;
    return strtod(text, NULL) == x;
}

/* The shortest decimal that reads back as |x|: digits without point, and the exponent of the first
 * digit. */
static int shortest(double x, char out_digits[24], int *out_exponent)
{
    char text[32];
    int unused;
    bool power_of_two = frexp(x, &unused) == 0.5;
    /* 15 digits always survive the way there and back for normal numbers: then the shortest text is
     * those digits without trailing zeros. Subnormals carry fewer and need the search from one. */
    int digits = x < 0x1p-1022 ? 1 : 15;
    for (; digits < 17; digits++) {
        if (try_digits(x, digits, text))
            break;
        if (power_of_two && try_next_digit_up(x, digits, text))
            break;
    }
    if (digits == 17)
        snprintf(text, sizeof(text), "%.16e", x);
    char *mark = strchr(text, 'e');
    sl_assert(mark);
    *out_exponent = atoi(mark + 1);
    int count = 0;
    for (const char *c = text; c < mark; c++)
        if (*c != '.')
            out_digits[count++] = *c;
    while (count > 1 && out_digits[count - 1] == '0')
        count--;
    out_digits[count] = '\0';
    return count;
}

static void write_python_float(sl_buf *buf, const char *source)
{
    double x = strtod(source, NULL);
    char digits[24];
    int exponent;
    if (*source == '-')
        sl_buf_putc(buf, '-'); /* -0.0 keeps its sign */
    x = fabs(x);
    if (isinf(x)) {
        sl_buf_puts(buf, "Infinity"); /* what json.dumps makes of 1e999 */
        return;
    }
    if (x == 0) {
        sl_buf_puts(buf, "0.0");
        return;
    }
    int count = shortest(x, digits, &exponent);
    if (exponent < -4 || exponent >= 16) {
        sl_buf_putc(buf, digits[0]);
        if (count > 1)
            sl_buf_printf(buf, ".%s", digits + 1);
        sl_buf_printf(buf, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        sl_buf_printf(buf, "0.%.*s%s", -exponent - 1, "000", digits);
    } else if (count <= exponent + 1) {
        sl_buf_puts(buf, digits);
        for (int i = count; i < exponent + 1; i++)
            sl_buf_putc(buf, '0');
        sl_buf_puts(buf, ".0");
    } else {
        sl_buf_printf(buf, "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
    }
}

static void write_number(sl_buf *buf, const sl_json *value, bool python)
{
    const char *text = value->as.text;
    if (!python)
        sl_buf_append(buf, text, value->count);
    else if (!value->is_integer)
        write_python_float(buf, text);
    else if (strcmp(text, "-0") == 0)
        sl_buf_putc(buf, '0');
    else
        sl_buf_append(buf, text, value->count);
}

static void write_value(sl_buf *buf, const sl_json *value, bool python)
{
    const char *comma = python ? ", " : ",";
    switch (sl_json_typeof(value)) {
    case SL_JSON_NULL:
        sl_buf_puts(buf, "null");
        break;
    case SL_JSON_FALSE:
        sl_buf_puts(buf, "false");
        break;
    case SL_JSON_TRUE:
        sl_buf_puts(buf, "true");
        break;
    case SL_JSON_NUMBER:
        write_number(buf, value, python);
        break;
    case SL_JSON_STRING:
        sl_json_write_string(buf, value->as.text, value->count);
        break;
    case SL_JSON_ARRAY:
        sl_buf_putc(buf, '[');
        for (size_t i = 0; i < value->count; i++) {
            if (i)
                sl_buf_puts(buf, comma);
            write_value(buf, &value->as.items[i], python);
        }
        sl_buf_putc(buf, ']');
        break;
    case SL_JSON_OBJECT:
        sl_buf_putc(buf, '{');
        for (size_t i = 0; i < value->count; i++) {
            const sl_json_member *member = &value->as.members[i];
            if (i)
                sl_buf_puts(buf, comma);
            sl_json_write_string(buf, member->key, member->key_size);
            sl_buf_puts(buf, python ? ": " : ":");
            write_value(buf, &member->value, python);
        }
        sl_buf_putc(buf, '}');
        break;
    }
}

void sl_json_write(sl_buf *buf, const sl_json *value)
{
    write_value(buf, value, false);
}

void sl_json_write_python(sl_buf *buf, const sl_json *value)
{
    write_value(buf, value, true);
}
