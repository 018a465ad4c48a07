/* Numbers within bounds: for one bound, the digits are compared one by one; for two, the automata
 * of both are crossed. Any thread; no I/O. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/dfa.h"
#include "model/json_schema_parts.h"

/* Of an integer or a fraction: a model that repeats zeros comes to an end. */
#define DIGITS_MAX       20u
#define BOUND_DIGITS_MAX 18u /* of the integer part where there are bounds */
#define EXPONENT_DIGITS  2u  /* so that a double holds it */

/* A bound: sign and the digits before and behind the point, without needless zeros. */
typedef struct decimal {
    bool negative;
    char whole[BOUND_DIGITS_MAX + 1];
    char fraction[DIGITS_MAX + 1];
} decimal;

/* ---- reading bounds ---- */

static void place_digit(decimal *d, char digit, int power, bool *fits)
{
    /* power: of ten, of the digit's place */
    if (digit == '0')
        return;
    if (power >= (int)BOUND_DIGITS_MAX || power < -(int)DIGITS_MAX)
        *fits = false;
    else if (power >= 0)
        d->whole[BOUND_DIGITS_MAX - 1 - (unsigned)power] = digit;
    else
        d->fraction[-power - 1] = digit;
}

static bool decimal_read(const char *text, decimal *out)
{
    decimal d = {.negative = *text == '-'};
    bool fits = true;
    memset(d.whole, '0', BOUND_DIGITS_MAX);
    memset(d.fraction, '0', DIGITS_MAX);
    const char *mantissa = text + d.negative, *e = strpbrk(mantissa, "eE");
    const char *end = e ? e : mantissa + strlen(mantissa);
    const char *point = memchr(mantissa, '.', (size_t)(end - mantissa));
    long exponent = e ? strtol(e + 1, NULL, 10) : 0;
    if (exponent > 1000 || exponent < -1000)
        return false;
    long power = (point ? point : end) - mantissa - 1 + exponent;
    for (const char *at = mantissa; at < end; at++) {
        if (*at == '.')
            continue;
        place_digit(&d, *at, power < -1000 ? -1000 : (int)power, &fits);
        power--;
    }
    size_t zeros = strspn(d.whole, "0");
    if (zeros == BOUND_DIGITS_MAX)
        zeros--;
    memmove(d.whole, d.whole + zeros, BOUND_DIGITS_MAX - zeros + 1);
    for (size_t size = DIGITS_MAX; size > 0 && d.fraction[size - 1] == '0'; size--)
        d.fraction[size - 1] = '\0';
    if (strcmp(d.whole, "0") == 0 && !d.fraction[0])
        d.negative = false;
    *out = d;
    return fits;
}

static int compare_size(const decimal *a, const decimal *b)
{
    size_t x = strlen(a->whole), y = strlen(b->whole);
    if (x != y)
        return x < y ? -1 : 1;
    int order = strcmp(a->whole, b->whole);
    return order != 0 ? order : strcmp(a->fraction, b->fraction);
}

bool mdl_json_number_above(const char *a, const char *b)
{
    decimal x, y;
    if (!decimal_read(a, &x) || !decimal_read(b, &y))
        return strtod(a, NULL) > strtod(b, NULL);
    if (x.negative != y.negative)
        return y.negative;
    return x.negative ? compare_size(&x, &y) < 0 : compare_size(&x, &y) > 0;
}

/* ---- digits ---- */

static mdl_node digit(mdl_grammar *g, char first, char last)
{
    mdl_byte_set set = {{0}};
    if (first > last)
        return MDL_NODE_NONE;
    mdl_byte_set_add(&set, (unsigned char)first, (unsigned char)last);
    return mdl_grammar_set(g, &set);
}

static mdl_node digits(mdl_grammar *g, uint32_t min, uint32_t max)
{
    return mdl_grammar_repeat(g, digit(g, '0', '9'), min, max);
}

/* A nonzero integer of at most `max` digits, or zero. */
static mdl_node whole_any(mdl_grammar *g, uint32_t max)
{
    mdl_node more = mdl_grammar_then(g, digit(g, '1', '9'), digits(g, 0, max - 1));
    return mdl_grammar_or(g, mdl_grammar_text(g, "0"), more);
}

/* As many digits as `bound`, and at most (up: at least) that number. */
static mdl_node same_length(mdl_grammar *g, const char *bound, bool up, bool leading)
{
    if (!*bound)
        return MDL_NODE_EMPTY;
    uint32_t rest = (uint32_t)strlen(bound) - 1;
    char low = leading && rest > 0 ? '1' : '0';
    mdl_node past = up ? digit(g, (char)(*bound + 1), '9') : digit(g, low, (char)(*bound - 1));
    past = mdl_grammar_then(g, past, digits(g, rest, rest));
    mdl_node equal =
        mdl_grammar_then(g, digit(g, *bound, *bound), same_length(g, bound + 1, up, false));
    return mdl_grammar_or(g, past, equal);
}

/* Integers above (up) or below the bound, the bound excluded. NONE when there are none. */
static mdl_node whole_past(mdl_grammar *g, const char *bound, bool up)
{
    char next[BOUND_DIGITS_MAX + 2];
    uint32_t size = (uint32_t)strlen(bound);
    unsigned long long value = strtoull(bound, NULL, 10);
    if (!up && value == 0)
        return MDL_NODE_NONE;
    snprintf(next, sizeof(next), "%llu", up ? value + 1 : value - 1);
    size = (uint32_t)strlen(next);
    mdl_node out = size <= BOUND_DIGITS_MAX ? same_length(g, next, up, true) : MDL_NODE_NONE;
    mdl_node others = MDL_NODE_NONE;
    if (up && size < BOUND_DIGITS_MAX)
        others = mdl_grammar_then(g, digit(g, '1', '9'), digits(g, size, BOUND_DIGITS_MAX - 1));
    else if (!up && size > 1)
        others = whole_any(g, size - 1);
    return mdl_grammar_or(g, out, others);
}

/* ---- fractions ---- */

static mdl_node fraction_any(mdl_grammar *g)
{
    return mdl_grammar_optional(
        g, mdl_grammar_then(g, mdl_grammar_text(g, "."), digits(g, 1, DIGITS_MAX)));
}

/* Digits behind the point that make more than zero. */
static mdl_node above_zero(mdl_grammar *g, uint32_t max)
{
    mdl_node zeros = mdl_grammar_repeat(g, digit(g, '0', '0'), 0, max - 1);
    mdl_node rest = mdl_grammar_then(g, digit(g, '1', '9'), digits(g, 0, max - 1));
    return mdl_grammar_then(g, zeros, rest);
}

static mdl_node fraction_up(mdl_grammar *g, const char *bound, bool open)
{
    if (!*bound)
        return open ? above_zero(g, DIGITS_MAX) : digits(g, 0, DIGITS_MAX);
    mdl_node past =
        mdl_grammar_then(g, digit(g, (char)(*bound + 1), '9'), digits(g, 0, DIGITS_MAX));
    mdl_node equal = mdl_grammar_then(g, digit(g, *bound, *bound), fraction_up(g, bound + 1, open));
    return mdl_grammar_or(g, past, equal);
}

static mdl_node fraction_down(mdl_grammar *g, const char *bound, bool open)
{
    mdl_node past =
        mdl_grammar_then(g, digit(g, '0', (char)(*bound - 1)), digits(g, 0, DIGITS_MAX));
    mdl_node rest = open ? MDL_NODE_NONE : MDL_NODE_EMPTY;
    if (bound[1])
        rest = mdl_grammar_or(g, MDL_NODE_EMPTY, fraction_down(g, bound + 1, open));
    mdl_node equal = mdl_grammar_then(g, digit(g, *bound, *bound), rest);
    return mdl_grammar_or(g, past, equal);
}

/* ---- one bound ---- */

/* Numbers without sign at least (up) or at most the bound. */
static mdl_node size_past(mdl_grammar *g, const decimal *bound, bool up, bool open, bool integer)
{
    mdl_node same = mdl_grammar_text(g, bound->whole), fraction = MDL_NODE_EMPTY;
    mdl_node past = whole_past(g, bound->whole, up);
    bool whole = !bound->fraction[0];
    if (integer)
        return mdl_grammar_or(g, (whole && open) || (up && !whole) ? MDL_NODE_NONE : same, past);
    past = mdl_grammar_then(g, past, fraction_any(g));
    mdl_node point = mdl_grammar_text(g, ".");
    if (up && whole)
        fraction = open ? mdl_grammar_then(g, point, above_zero(g, DIGITS_MAX)) : fraction_any(g);
    else if (up)
        fraction = mdl_grammar_then(g, point, fraction_up(g, bound->fraction, open));
    else if (whole)
        fraction = open ? MDL_NODE_NONE : MDL_NODE_EMPTY;
    else
        fraction = mdl_grammar_optional(
            g, mdl_grammar_then(g, point, fraction_down(g, bound->fraction, open)));
    return mdl_grammar_or(g, mdl_grammar_then(g, same, fraction), past);
}

static mdl_node one_sided(mdl_grammar *g, const decimal *bound, bool lower, bool open, bool integer)
{
    bool zero = strcmp(bound->whole, "0") == 0 && !bound->fraction[0];
    mdl_node minus = mdl_grammar_text(g, "-");
    mdl_node any = whole_any(g, BOUND_DIGITS_MAX);
    if (!integer)
        any = mdl_grammar_then(g, any, fraction_any(g));
    if (lower && !bound->negative)
        return size_past(g, bound, true, open, integer);
    if (lower)
        return mdl_grammar_or(
            g, any, mdl_grammar_then(g, minus, size_past(g, bound, false, open, integer)));
    if (bound->negative || (zero && open))
        return mdl_grammar_then(g, minus, size_past(g, bound, true, open, integer));
    return mdl_grammar_or(g, mdl_grammar_then(g, minus, any),
                          size_past(g, bound, false, open, integer));
}

/* ---- both ---- */

static sl_status side_dfa(const decimal *bound, bool lower, bool open, bool integer,
                          mdl_dfa **out_dfa, sl_err *err)
{
    mdl_grammar *g = mdl_grammar_create();
    sl_status status = mdl_grammar_finish(g, one_sided(g, bound, lower, open, integer), err);
    if (sl_is_ok(status))
        status = mdl_dfa_create(g, out_dfa, err);
    mdl_grammar_destroy(g);
    return status;
}

static sl_status between(mdl_grammar *g, const decimal *lower, const decimal *upper,
                         const mdl_json_bounds *bounds, bool integer, mdl_node *out_node,
                         sl_err *err)
{
    mdl_dfa *low = NULL, *high = NULL, *both = NULL;
    sl_status status = side_dfa(lower, true, bounds->lower_open, integer, &low, err);
    if (sl_is_ok(status))
        status = side_dfa(upper, false, bounds->upper_open, integer, &high, err);
    if (sl_is_ok(status))
        status = mdl_dfa_both(low, high, &both, err);
    mdl_grammar_count_work(g, low);
    mdl_grammar_count_work(g, high);
    mdl_dfa_destroy(low);
    mdl_dfa_destroy(high);
    if (sl_is_ok(status))
        *out_node = mdl_grammar_dfa(g, both);
    return status;
}

static mdl_node unbounded(mdl_grammar *g, bool integer)
{
    mdl_node minus = mdl_grammar_optional(g, mdl_grammar_text(g, "-"));
    mdl_node out = mdl_grammar_then(g, minus, whole_any(g, DIGITS_MAX));
    if (integer)
        return out;
    mdl_byte_set signs = {{0}}, marks = {{0}};
    mdl_byte_set_add(&signs, '+', '+');
    mdl_byte_set_add(&signs, '-', '-');
    mdl_byte_set_add(&marks, 'e', 'e');
    mdl_byte_set_add(&marks, 'E', 'E');
    mdl_node power = mdl_grammar_then(g, mdl_grammar_optional(g, mdl_grammar_set(g, &signs)),
                                      digits(g, 1, EXPONENT_DIGITS));
    power = mdl_grammar_then(g, mdl_grammar_set(g, &marks), power);
    out = mdl_grammar_then(g, out, fraction_any(g));
    return mdl_grammar_then(g, out, mdl_grammar_optional(g, power));
}

sl_status mdl_json_number(mdl_grammar *grammar, bool integer, const mdl_json_bounds *bounds,
                          mdl_node *out_node, sl_err *err)
{
    decimal lower, upper;
    if ((bounds->lower && !decimal_read(bounds->lower, &lower)) ||
        (bounds->upper && !decimal_read(bounds->upper, &upper)))
        return sl_fail(err, SL_UNSUPPORTED,
                       "a bound with more than %u digits before or %u behind the point",
                       BOUND_DIGITS_MAX, DIGITS_MAX);
    mdl_node node = MDL_NODE_NONE;
    if (bounds->lower && bounds->upper)
        SL_TRY(between(grammar, &lower, &upper, bounds, integer, &node, err));
    else if (bounds->lower)
        node = one_sided(grammar, &lower, true, bounds->lower_open, integer);
    else if (bounds->upper)
        node = one_sided(grammar, &upper, false, bounds->upper_open, integer);
    else
        node = unbounded(grammar, integer);
    if (node == MDL_NODE_NONE)
        return sl_fail(err, SL_INVALID, "no number is within the bounds");
    *out_node = mdl_grammar_settle(grammar, node);
    return sl_ok();
}

/* ---- multiples, and integers but for some ---- */

static sl_status node_dfa(mdl_grammar *own, mdl_node node, mdl_dfa **out_dfa, sl_err *err)
{
    SL_TRY(mdl_grammar_finish(own, node, err));
    return mdl_dfa_create(own, out_dfa, err);
}

/* step / 10^places */
static sl_status multiples(const char *text, mdl_dfa **out_dfa, sl_err *err)
{
    decimal d;
    char digits[BOUND_DIGITS_MAX + DIGITS_MAX + 1];
    if (!decimal_read(text, &d) || strlen(d.whole) + strlen(d.fraction) > BOUND_DIGITS_MAX)
        return sl_fail(err, SL_UNSUPPORTED, "has more digits than are supported");
    snprintf(digits, sizeof(digits), "%s%s", d.whole, d.fraction);
    unsigned long long step = strtoull(digits, NULL, 10);
    if (step > MDL_DFA_STATES_MAX)
        return sl_fail(err, SL_TOO_LARGE,
                       "too large: its digits without the point are at most %u; "
                       "choose a rounder step",
                       MDL_DFA_STATES_MAX);
    return mdl_dfa_multiples((uint32_t)step, (uint32_t)strlen(d.fraction), out_dfa, err);
}

/* All ways in which integers write the values to be left out. NONE: there are no integers there. */
static sl_status other_integers(mdl_grammar *g, const mdl_schema_facts *f, mdl_node *out_node,
                                sl_err *err)
{
    mdl_node out = MDL_NODE_NONE;
    for (uint32_t k = 0; k < f->without_count; k++) {
        size_t count = f->without_is_list[k] ? sl_json_count(f->without[k]) : 1;
        for (size_t i = 0; i < count; i++) {
            const sl_json *value =
                f->without_is_list[k] ? sl_json_at(f->without[k], i) : f->without[k];
            int64_t number;
            char text[24];
            if (mdl_schema_kind_of(value) != MDL_JSON_INTEGER)
                continue;
            if (!sl_json_i64(value, &number))
                return sl_fail(err, SL_UNSUPPORTED, "an integer of more than 64 bits");
            snprintf(text, sizeof(text), "%lld", (long long)number);
            out = mdl_grammar_or(g, mdl_grammar_text(g, text), out);
            if (number == 0)
                out = mdl_grammar_or(g, mdl_grammar_text(g, "-0"), out);
        }
    }
    *out_node = out;
    return sl_ok();
}

/* *dfa with, or without, the other's texts. */
static sl_status combine(mdl_dfa **dfa, mdl_dfa *take_other, bool minus, sl_err *err)
{
    mdl_dfa *both = NULL;
    sl_status status = minus ? mdl_dfa_without(*dfa, take_other, &both, err)
                             : mdl_dfa_both(*dfa, take_other, &both, err);
    mdl_dfa_destroy(take_other);
    mdl_dfa_destroy(*dfa);
    *dfa = both;
    return status;
}

static sl_status leave_out(const mdl_schema_facts *f, mdl_dfa **dfa, sl_err *err)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node node = MDL_NODE_NONE;
    mdl_dfa *others = NULL;
    sl_status status = other_integers(g, f, &node, err);
    if (sl_is_ok(status) && node != MDL_NODE_NONE) {
        status = node_dfa(g, node, &others, err);
        if (sl_is_ok(status))
            status = combine(dfa, others, true, err);
        if (status.code == SL_INVALID) /* none is left */
            status = sl_ok();
    }
    mdl_grammar_destroy(g);
    return status;
}

sl_status mdl_json_number_of(mdl_grammar *grammar, bool integer, const mdl_schema_facts *f,
                             mdl_node *out_node, sl_err *err)
{
    bool without = mdl_schema_without_kind(f, MDL_JSON_INTEGER);
    if (!f->multiple && !without)
        return mdl_json_number(grammar, integer, &f->bounds, out_node, err);
    mdl_grammar *own = mdl_grammar_create();
    mdl_node node = MDL_NODE_NONE;
    mdl_dfa *dfa = NULL, *other = NULL;
    sl_status status = mdl_json_number(own, integer, &f->bounds, &node, err);
    if (sl_is_ok(status))
        status = node_dfa(own, node, &dfa, err);
    if (sl_is_ok(status) && f->multiple)
        status = multiples(f->multiple, &other, err);
    if (sl_is_ok(status) && other)
        status = combine(&dfa, other, false, err);
    if (sl_is_ok(status) && without)
        status = leave_out(f, &dfa, err);
    mdl_grammar_destroy(own);
    mdl_grammar_count_work(grammar, dfa);
    if (sl_is_ok(status))
        *out_node = dfa ? mdl_grammar_dfa(grammar, dfa) : MDL_NODE_NONE;
    else
        mdl_dfa_destroy(dfa);
    return status;
}
