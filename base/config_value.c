/* Option values: text to typed value. Owns nothing, any thread. */
#include "base/config_value.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

typedef struct unit {
    const char *name;
    uint64_t factor;
} unit;

/* "12" or "1.5" times a unit; the product must be whole and fit. */
static bool parse_amount(const char *text, const unit *units, uint64_t *out_amount)
{
    uint64_t whole = 0, fraction = 0, divisor = 1, scaled;
    if (!isdigit((unsigned char)*text))
        return false;
    for (; isdigit((unsigned char)*text); text++)
        if (__builtin_mul_overflow(whole, 10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*text - '0'), &whole))
            return false;
    if (*text == '.') {
        text++;
        if (!isdigit((unsigned char)*text))
            return false;
        for (; isdigit((unsigned char)*text); text++) {
            if (divisor >= 1000000000)
                return false;
            fraction = fraction * 10 + (uint64_t)(*text - '0');
            divisor *= 10;
        }
    }
    for (; units->name; units++)
        if (strcmp(units->name, text) == 0)
            break;
    if (!units->name || __builtin_mul_overflow(whole, units->factor, &whole) ||
        __builtin_mul_overflow(fraction, units->factor, &scaled) || scaled % divisor != 0)
        return false;
    return !__builtin_add_overflow(whole, scaled / divisor, out_amount);
}

bool sl_parse_bytes(const char *text, uint64_t *out_bytes)
{
    static const unit units[] = {{"", 1},
                                 {"B", 1},
                                 {"KiB", 1ull << 10},
                                 {"MiB", 1ull << 20},
                                 {"GiB", 1ull << 30},
                                 {"TiB", 1ull << 40},
                                 {"kB", 1000},
                                 {"KB", 1000},
                                 {"MB", 1000000},
                                 {"GB", 1000000000},
                                 {"TB", 1000000000000},
                                 {NULL, 0}};
    return parse_amount(text, units, out_bytes);
}

bool sl_parse_duration_ns(const char *text, uint64_t *out_ns)
{
    static const unit units[] = {{"ns", 1},         {"us", 1000},       {"ms", 1000000},
                                 {"s", 1000000000}, {"m", 60000000000}, {"h", 3600000000000},
                                 {NULL, 0}};
    if (strcmp(text, "0") == 0) { /* the one number that needs no unit */
        *out_ns = 0;
        return true;
    }
    return parse_amount(text, units, out_ns);
}

static sl_status convert_bool(const char *text, bool *out_value, sl_err *err)
{
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out_value = strcmp(text, yes[i]) == 0;
            return sl_ok();
        }
    }
    return sl_fail(err, SL_INVALID, "\"%s\" is neither true nor false", text);
}

static sl_status convert_integer(const sl_option *option, const char *text, int64_t *out_value,
                                 sl_err *err)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text) || errno == ERANGE)
        return sl_fail(err, SL_INVALID, "\"%s\" is not an integer", text);
    bool bounded = option->min != 0 || option->max != 0;
    if (bounded && (value < option->min || value > option->max))
        return sl_fail(err, SL_INVALID, "%lld is not within %lld to %lld", value,
                       (long long)option->min, (long long)option->max);
    *out_value = value;
    return sl_ok();
}

static sl_status convert_choice(const sl_option *option, const char *text, int *out_value,
                                sl_err *err)
{
    char list[200];
    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *out_value = i;
            return sl_ok();
        }
    }
    sl_config_placeholder(option, list, sizeof(list));
    return sl_fail(err, SL_INVALID, "\"%s\" is not one of %s", text, list);
}

static sl_status convert_real(const sl_option *option, const char *text, double *out_value,
                              sl_err *err)
{
    char *end;
    *out_value = strtod(text, &end);
    if (end == text || *end || !isfinite(*out_value) || isspace((unsigned char)*text) ||
        strpbrk(text, "xX"))
        return sl_fail(err, SL_INVALID, "\"%s\" is not a number", text);
    bool bounded = option->least != 0 || option->most != 0;
    if (bounded && (*out_value < option->least || *out_value > option->most))
        return sl_fail(err, SL_INVALID, "%s is not within %g to %g", text, option->least,
                       option->most);
    return sl_ok();
}

sl_status sl_config_convert(const sl_option *option, const char *text, sl_config_value *out_value,
                            sl_err *err)
{
    switch (option->type) {
    case SL_OPTION_BOOL:
        return convert_bool(text, &out_value->boolean, err);
    case SL_OPTION_INT:
        return convert_integer(option, text, &out_value->integer, err);
    case SL_OPTION_DOUBLE:
        return convert_real(option, text, &out_value->real, err);
    case SL_OPTION_STRING:
        out_value->text = text;
        return sl_ok();
    case SL_OPTION_BYTES:
        if (!sl_parse_bytes(text, &out_value->amount))
            return sl_fail(err, SL_INVALID, "\"%s\" is not a size (as 4GiB, 512MiB, 1000)", text);
        return sl_ok();
    case SL_OPTION_DURATION:
        if (!sl_parse_duration_ns(text, &out_value->amount))
            return sl_fail(err, SL_INVALID, "\"%s\" is not a duration (as 5s, 300ms, 2m)", text);
        return sl_ok();
    case SL_OPTION_CHOICE:
        return convert_choice(option, text, &out_value->choice, err);
    }
    return sl_fail(err, SL_INTERNAL, "option type %d", (int)option->type);
}

/* The largest unit that it is a whole number of; zero: unit, a name of one of them. */
static void amount_text(uint64_t amount, const unit *units, const char *zero, char *out_text,
                        size_t size)
{
    while (units[1].name &&
           (amount == 0 ? strcmp(units->name, zero) != 0 : amount % units->factor != 0))
        units++;
    snprintf(out_text, size, "%llu%s", (unsigned long long)(amount / units->factor), units->name);
}

void sl_config_text(const sl_option *option, const void *target, char *out_text, size_t size)
{
    static const unit TIMES[] = {
        {"h", 3600000000000}, {"m", 60000000000}, {"s", 1000000000}, {"ms", 1000000},
        {"us", 1000},         {"ns", 1},          {NULL, 0}};
    static const unit SIZES[] = {{"TiB", 1ull << 40},
                                 {"GiB", 1ull << 30},
                                 {"MiB", 1ull << 20},
                                 {"KiB", 1ull << 10},
                                 {"", 1},
                                 {NULL, 0}};
    const char *at = (const char *)target + option->offset;
    switch (option->type) {
    case SL_OPTION_BOOL:
        snprintf(out_text, size, "%s", *(const bool *)(const void *)at ? "true" : "false");
        break;
    case SL_OPTION_INT:
        snprintf(out_text, size, "%lld", (long long)*(const int64_t *)(const void *)at);
        break;
    case SL_OPTION_DOUBLE:
        snprintf(out_text, size, "%g", *(const double *)(const void *)at);
        break;
    case SL_OPTION_BYTES:
        amount_text(*(const uint64_t *)(const void *)at, SIZES, "", out_text, size);
        break;
    case SL_OPTION_DURATION:
        amount_text(*(const uint64_t *)(const void *)at, TIMES, "s", out_text, size);
        break;
    case SL_OPTION_CHOICE:
        snprintf(out_text, size, "%s", option->choices[*(const int *)(const void *)at]);
        break;
    case SL_OPTION_STRING:
        sl_assert(!"the text of a string is the target's own");
    }
}

void sl_config_store(const sl_option *option, const sl_config_value *value, void *target)
{
    static const size_t sizes[] = {sizeof(bool),         sizeof(int64_t),  sizeof(double),
                                   sizeof(const char *), sizeof(uint64_t), sizeof(uint64_t),
                                   sizeof(int)};
    sl_assert((size_t)option->type < sizeof(sizes) / sizeof(sizes[0]));
    memcpy((char *)target + option->offset, value, sizes[option->type]);
}

void sl_config_placeholder(const sl_option *option, char *out_text, size_t size)
{
    static const char *const names[] = {"", "N", "X", "TEXT", "SIZE", "TIME", ""};
    size_t used = 0;
    snprintf(out_text, size, "%s", names[option->type]);
    if (option->type != SL_OPTION_CHOICE)
        return;
    for (int i = 0; option->choices[i] && used < size; i++)
        used += (size_t)snprintf(out_text + used, size - used, "%s%s", i ? "|" : "",
                                 option->choices[i]);
}
