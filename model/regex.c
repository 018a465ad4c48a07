/* A recursive descent parser that builds nodes as it reads. Any thread; no I/O. */
#include "model/regex.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "model/dfa.h"

#define CODE_POINT_MAX 0x10ffffu
#define RANGES_MAX     512u    /* of one class */
#define MARK           0xff5cu /* see MDL_REGEX_UNMARKED */

typedef struct range {
    uint32_t first, last;
} range;

/* A set of code points; negation is resolved when it is done. */
typedef struct ranges {
    range items[RANGES_MAX];
    uint32_t count;
    bool over;
} ranges;

typedef struct parser {
    mdl_grammar *grammar;
    const char *pattern;
    size_t size, at;
    unsigned flags;
    int depth;
    ranges set;   /* of the class being read */
    bool negated; /* the class is */
    /* Of the sequences that are open, the inner behind the outer: a byte makes one part at most. */
    mdl_node parts[MDL_REGEX_BYTES_MAX];
    size_t part_count;
    sl_err *err;
} parser;

static sl_status parse_alternatives(parser *p, mdl_node *out_node);

static sl_status unsupported(const parser *p, size_t at, const char *what)
{
    return sl_fail(p->err, SL_UNSUPPORTED, "at byte %zu: %s is not supported", at, what);
}

static sl_status wrong(const parser *p, size_t at, const char *what)
{
    return sl_fail(p->err, SL_INVALID, "at byte %zu: %s", at, what);
}

static bool more(const parser *p)
{
    return p->at < p->size;
}

static bool looking_at(const parser *p, const char *text)
{
    size_t size = strlen(text);
    return p->size - p->at >= size && memcmp(p->pattern + p->at, text, size) == 0;
}

static bool take(parser *p, const char *text)
{
    if (!looking_at(p, text))
        return false;
    p->at += strlen(text);
    return true;
}

/* ---- sets ---- */

static void add_range(ranges *set, uint32_t first, uint32_t last)
{
    if (set->count == RANGES_MAX) {
        set->over = true;
        return;
    }
    set->items[set->count++] = (range){first, last};
}

static int by_first(const void *a, const void *b)
{
    const range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Ascending, disjoint, not adjacent. */
static void normalise(ranges *set)
{
    uint32_t count = 0;
    qsort(set->items, set->count, sizeof(range), by_first);
    for (uint32_t i = 0; i < set->count; i++) {
        range r = set->items[i];
        if (count > 0 && r.first <= set->items[count - 1].last + 1) {
            if (r.last > set->items[count - 1].last)
                set->items[count - 1].last = r.last;
        } else {
            set->items[count++] = r;
        }
    }
    set->count = count;
}

static void negate(ranges *set)
{
    uint32_t from = 0, count = 0;
    range *out = sl_alloc(RANGES_MAX + 1, sizeof(range), "regex class");
    normalise(set);
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->items[i].first > from)
            out[count++] = (range){from, set->items[i].first - 1};
        from = set->items[i].last + 1;
    }
    if (from <= CODE_POINT_MAX)
        out[count++] = (range){from, CODE_POINT_MAX};
    set->over |= count > RANGES_MAX;
    set->count = count > RANGES_MAX ? RANGES_MAX : count;
    memcpy(set->items, out, set->count * sizeof(range));
    sl_free(out);
}

/* ---- code points as bytes ---- */

static mdl_node json_escape(mdl_grammar *g, uint32_t point)
{
    static const char SHORT[] = "\"\"\\\\\bb\ff\nn\rr\tt"; /* the character, then its letter */
    char text[8] = "\\";
    for (size_t i = 0; i + 1 < sizeof(SHORT); i += 2) {
        if ((uint32_t)(unsigned char)SHORT[i] == point) {
            text[1] = SHORT[i + 1];
            return mdl_grammar_literal(g, text, 2);
        }
    }
    static const char HEX[] = "0123456789abcdef";
    memcpy(text + 1, "u00", 3);
    text[4] = HEX[point >> 4];
    text[5] = HEX[point & 15];
    return mdl_grammar_literal(g, text, 6);
}

/* One code point of [first, last] inside a JSON string. */
static mdl_node json_points(mdl_grammar *g, uint32_t first, uint32_t last)
{
    mdl_node out = MDL_NODE_NONE;
    for (uint32_t point = first; point <= last && point < 0x20; point++)
        out = mdl_grammar_or(g, json_escape(g, point), out);
    static const range PLAIN[] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, CODE_POINT_MAX}};
    for (size_t i = 0; i < sizeof(PLAIN) / sizeof(PLAIN[0]); i++) {
        uint32_t low = first > PLAIN[i].first ? first : PLAIN[i].first;
        uint32_t high = last < PLAIN[i].last ? last : PLAIN[i].last;
        if (low <= high)
            out = mdl_grammar_or(g, mdl_grammar_code_points(g, low, high), out);
    }
    if (first <= '"' && last >= '"')
        out = mdl_grammar_or(g, json_escape(g, '"'), out);
    if (first <= '\\' && last >= '\\')
        out = mdl_grammar_or(g, json_escape(g, '\\'), out);
    return out;
}

static mdl_node one_of_range(mdl_grammar *g, unsigned flags, uint32_t first, uint32_t last)
{
    if ((flags & MDL_REGEX_UNMARKED) && first <= MARK && last >= MARK) {
        unsigned rest = flags & ~(unsigned)MDL_REGEX_UNMARKED;
        mdl_node low = first < MARK ? one_of_range(g, rest, first, MARK - 1) : MDL_NODE_NONE;
        mdl_node high = last > MARK ? one_of_range(g, rest, MARK + 1, last) : MDL_NODE_NONE;
        return mdl_grammar_or(g, low, high);
    }
    return flags & MDL_REGEX_JSON ? json_points(g, first, last)
                                  : mdl_grammar_code_points(g, first, last);
}

mdl_node mdl_regex_any(mdl_grammar *grammar, unsigned flags)
{
    return mdl_grammar_settle(grammar, one_of_range(grammar, flags, 0, CODE_POINT_MAX));
}

/* Ranges of single bytes become one set, so that `[a-zA-Z_]` is one node. */
static sl_status set_node(parser *p, size_t at, mdl_node *out_node)
{
    ranges *set = &p->set;
    mdl_byte_set bytes = {{0}};
    bool any = false;
    mdl_node out = MDL_NODE_NONE;
    if (set->over)
        return sl_fail(p->err, SL_TOO_LARGE, "at byte %zu: a class of more than %u ranges", at,
                       RANGES_MAX);
    normalise(set);
    bool json = p->flags & MDL_REGEX_JSON;
    for (uint32_t i = 0; i < set->count; i++) {
        uint32_t first = set->items[i].first, last = set->items[i].last;
        for (; first <= last && first < 0x80; first++) {
            if (json && (first < 0x20 || first == '"' || first == '\\')) {
                out = mdl_grammar_or(p->grammar, json_escape(p->grammar, first), out);
            } else {
                mdl_byte_set_add(&bytes, first, first);
                any = true;
            }
        }
        if (first <= last)
            out = mdl_grammar_or(p->grammar, one_of_range(p->grammar, p->flags, first, last), out);
    }
    if (any)
        out = mdl_grammar_or(p->grammar, mdl_grammar_set(p->grammar, &bytes), out);
    if (out == MDL_NODE_NONE)
        return wrong(p, at, "a class that no character is in");
    *out_node = mdl_grammar_settle(p->grammar, out);
    return sl_ok();
}

/* ---- escapes ---- */

/* Dialects disagree about \d, \w and \s beyond ASCII. What is generated must be right in all: so
 * where a shorthand allows, it is ASCII; where it forbids, it is all that any dialect means. */
static const range DIGITS_NARROW[] = {{'0', '9'}};
static const range DIGITS_WIDE[] = {
    {'0', '9'},       {0x660, 0x669},   {0x6f0, 0x6f9},   {0x7c0, 0x7c9},   {0x900, 0x109f},
    {0x17e0, 0x17e9}, {0x1800, 0x1cff}, {0xa620, 0xabff}, {0xff10, 0xff19}, {0x10000, 0x1ffff}};
static const range WORD_NARROW[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const range WORD_WIDE[] = {
    {'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}, {0x80, CODE_POINT_MAX}};
static const range SPACE_NARROW[] = {{'\t', '\r'}, {' ', ' '}};
static const range SPACE_WIDE[] = {{'\t', '\r'},     {0x1c, ' '},      {0x85, 0x85},
                                   {0xa0, 0xa0},     {0x1680, 0x1680}, {0x180e, 0x180e},
                                   {0x2000, 0x200b}, {0x2028, 0x2029}, {0x202f, 0x202f},
                                   {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};

static const struct {
    char kind;
    const range *narrow, *wide;
    size_t narrow_count, wide_count;
} SHORTHANDS[] = {
    {'d', DIGITS_NARROW, DIGITS_WIDE, 1, sizeof(DIGITS_WIDE) / sizeof(range)},
    {'w', WORD_NARROW, WORD_WIDE, 4, 5},
    {'s', SPACE_NARROW, SPACE_WIDE, 2, sizeof(SPACE_WIDE) / sizeof(range)},
};

static void add_shorthand(ranges *set, char kind, bool wide)
{
    size_t i = 0;
    while (SHORTHANDS[i].kind != kind)
        i++;
    const range *items = wide ? SHORTHANDS[i].wide : SHORTHANDS[i].narrow;
    size_t count = wide ? SHORTHANDS[i].wide_count : SHORTHANDS[i].narrow_count;
    for (size_t k = 0; k < count; k++)
        add_range(set, items[k].first, items[k].last);
}

/* \D, \W, \S add the complement. */
static void add_negated_shorthand(ranges *set, char kind, bool wide)
{
    ranges *other = sl_alloc(1, sizeof(*other), "regex class");
    add_shorthand(other, kind, wide);
    negate(other);
    for (uint32_t i = 0; i < other->count; i++)
        add_range(set, other->items[i].first, other->items[i].last);
    sl_free(other);
}

static bool hex(parser *p, int digits, uint32_t *out_value)
{
    uint32_t value = 0;
    for (int i = 0; i < digits; i++) {
        if (!more(p))
            return false;
        char c = p->pattern[p->at++];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16)
            return false;
        value = value * 16 + digit;
    }
    *out_value = value;
    return true;
}

static sl_status hex_escape(parser *p, size_t at, char kind, uint32_t *out_point)
{
    uint32_t point = 0;
    bool good;
    if (take(p, "{")) {
        size_t end = p->at;
        while (end < p->size && p->pattern[end] != '}')
            end++;
        good = end < p->size && end > p->at && end - p->at <= 6 &&
               hex(p, (int)(end - p->at), &point) && take(p, "}");
    } else {
        good = hex(p, kind == 'x' ? 2 : 4, &point);
    }
    uint32_t low;
    if (good && point >= 0xd800 && point <= 0xdbff && take(p, "\\u")) {
        if (!hex(p, 4, &low) || low < 0xdc00 || low > 0xdfff)
            good = false;
        else
            point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    if (!good || point > CODE_POINT_MAX || (point >= 0xd800 && point <= 0xdfff))
        return wrong(p, at, "not a code point in hexadecimal");
    *out_point = point;
    return sl_ok();
}

/* Behind the backslash. A single character, or a shorthand that is added to the set. */
static sl_status parse_escape(parser *p, bool *out_single, uint32_t *out_point)
{
    static const char CONTROLS[] = "n\nr\rt\tf\fv\v";
    size_t at = p->at - 1;
    if (!more(p))
        return wrong(p, at, "ends in a backslash");
    char c = p->pattern[p->at++];
    *out_single = false;
    if (c && strchr("dws", c)) {
        add_shorthand(&p->set, c, p->negated);
        return sl_ok();
    }
    if (c && strchr("DWS", c)) {
        add_negated_shorthand(&p->set, (char)(c + 'a' - 'A'), !p->negated);
        return sl_ok();
    }
    *out_single = true;
    for (size_t i = 0; i + 1 < sizeof(CONTROLS); i += 2) {
        if (CONTROLS[i] == c) {
            *out_point = (uint32_t)CONTROLS[i + 1];
            return sl_ok();
        }
    }
    if (c == 'x' || c == 'u')
        return hex_escape(p, at, c, out_point);
    if (c == '0' && !(more(p) && p->pattern[p->at] >= '0' && p->pattern[p->at] <= '9')) {
        *out_point = 0;
        return sl_ok();
    }
    if (c >= '0' && c <= '9')
        return unsupported(p, at, "a back reference");
    if (c == 'p' || c == 'P')
        return unsupported(p, at, "a Unicode property (\\p)");
    if (c == 'b' || c == 'B')
        return unsupported(p, at, "a word boundary");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return unsupported(p, at, "this escape");
    p->at--;
    p->at += (size_t)sl_utf8_decode(p->pattern + p->at, p->size - p->at, out_point);
    return sl_ok();
}

/* ---- classes ---- */

/* One element of a class; a shorthand goes to the set at once. */
static sl_status class_element(parser *p, bool *out_single, uint32_t *out_point)
{
    if (looking_at(p, "[:"))
        return unsupported(p, p->at, "a POSIX class");
    if (take(p, "\\b")) { /* inside a class: backspace */
        *out_single = true;
        *out_point = '\b';
        return sl_ok();
    }
    if (take(p, "\\"))
        return parse_escape(p, out_single, out_point);
    *out_single = true;
    p->at += (size_t)sl_utf8_decode(p->pattern + p->at, p->size - p->at, out_point);
    return sl_ok();
}

/* Behind the bracket. */
static sl_status parse_class(parser *p, mdl_node *out_node)
{
    size_t begin = p->at - 1;
    p->set.count = 0;
    p->set.over = false;
    p->negated = take(p, "^");
    for (bool first = true;; first = false) {
        if (!more(p))
            return wrong(p, begin, "a class that is not closed");
        if (p->pattern[p->at] == ']' && !first)
            break;
        size_t at = p->at;
        bool single, single_last;
        uint32_t from = 0, to = 0;
        if (p->pattern[p->at] == ']' && first && p->negated)
            return unsupported(p, at, "an empty class");
        SL_TRY(class_element(p, &single, &from));
        if (!single)
            continue;
        to = from;
        if (looking_at(p, "-") && !looking_at(p, "-]")) {
            p->at++;
            if (!more(p))
                return wrong(p, begin, "a class that is not closed");
            SL_TRY(class_element(p, &single_last, &to));
            if (!single_last || to < from)
                return wrong(p, at, "a range that is out of order");
        }
        add_range(&p->set, from, to);
    }
    p->at++;
    if (p->negated)
        negate(&p->set);
    return set_node(p, begin, out_node);
}

/* ---- atoms and quantifiers ---- */

static sl_status parse_group(parser *p, mdl_node *out_node)
{
    size_t at = p->at - 1;
    if (++p->depth > MDL_REGEX_DEPTH_MAX)
        return sl_fail(p->err, SL_TOO_LARGE, "at byte %zu: groups nested deeper than %d", at,
                       MDL_REGEX_DEPTH_MAX);
    if (take(p, "?")) {
        if (looking_at(p, "=") || looking_at(p, "!") || looking_at(p, "<=") || looking_at(p, "<!"))
            return unsupported(p, at, "looking ahead or behind");
        bool named = take(p, "P<") || take(p, "<");
        while (named && more(p) && p->pattern[p->at] != '>')
            p->at++;
        if (named ? !take(p, ">") : !take(p, ":"))
            return unsupported(p, at, "this kind of group");
    }
    SL_TRY(parse_alternatives(p, out_node));
    if (!take(p, ")"))
        return wrong(p, at, "a group that is not closed");
    p->depth--;
    return sl_ok();
}

static sl_status parse_atom(parser *p, mdl_node *out_node)
{
    size_t at = p->at;
    uint32_t point = 0;
    bool single = true;
    if (take(p, "("))
        return parse_group(p, out_node);
    if (take(p, "["))
        return parse_class(p, out_node);
    if (looking_at(p, "^") || looking_at(p, "$"))
        return unsupported(p, at, "^ or $ inside an expression");
    if (looking_at(p, "*") || looking_at(p, "+") || looking_at(p, "?"))
        return wrong(p, at, "nothing to repeat");
    p->set.count = 0;
    p->set.over = false;
    p->negated = false;
    if (take(p, ".")) { /* no line's end of any dialect */
        add_range(&p->set, '\n', '\n');
        add_range(&p->set, '\r', '\r');
        add_range(&p->set, 0x2028, 0x2029);
        negate(&p->set);
        return set_node(p, at, out_node);
    }
    if (take(p, "\\"))
        SL_TRY(parse_escape(p, &single, &point));
    else
        p->at += (size_t)sl_utf8_decode(p->pattern + p->at, p->size - p->at, &point);
    if (single)
        add_range(&p->set, point, point);
    return set_node(p, at, out_node);
}

/* "{m}", "{m,}", "{m,n}" at the position; a brace that is none of them is a character. */
static bool parse_braces(parser *p, uint32_t *out_min, uint32_t *out_max)
{
    size_t at = p->at + 1;
    uint64_t bounds[2] = {0, MDL_REPEAT_ANY};
    int part = 0;
    size_t digits = 0;
    for (; at < p->size && p->pattern[at] != '}'; at++) {
        char c = p->pattern[at];
        if (c == ',' && part == 0 && digits > 0) {
            part = 1;
            digits = 0;
        } else if (c >= '0' && c <= '9') {
            uint64_t before = digits++ == 0 ? 0 : bounds[part];
            bounds[part] =
                before > MDL_GRAMMAR_REPEAT_MAX ? before : before * 10 + (uint64_t)(c - '0');
        } else {
            return false;
        }
    }
    if (at == p->size || (part == 0 && digits == 0))
        return false;
    *out_min = (uint32_t)bounds[0];
    *out_max = (uint32_t)(part == 0 ? bounds[0] : bounds[1]);
    p->at = at + 1;
    return true;
}

static sl_status parse_quantified(parser *p, mdl_node *out_node)
{
    mdl_node node;
    SL_TRY(parse_atom(p, &node));
    for (bool any = false;; any = true) {
        uint32_t min = 0, max = MDL_REPEAT_ANY;
        size_t at = p->at;
        if (take(p, "*")) {
        } else if (take(p, "+")) {
            min = 1;
        } else if (take(p, "?")) {
            max = 1;
        } else if (!looking_at(p, "{") || !parse_braces(p, &min, &max)) {
            break;
        }
        if (any)
            return wrong(p, at, "a quantifier behind a quantifier");
        if (min > max)
            return wrong(p, at, "a quantifier that is out of order");
        if (looking_at(p, "+"))
            return unsupported(p, p->at, "a possessive quantifier");
        (void)take(p, "?"); /* lazy: the same texts */
        node = mdl_grammar_repeat(p->grammar, node, min, max);
    }
    *out_node = node;
    return sl_ok();
}

/* ---- sequences and alternatives ---- */

static mdl_node anything(const parser *p)
{
    return mdl_grammar_repeat(p->grammar, mdl_regex_any(p->grammar, p->flags), 0, MDL_REPEAT_ANY);
}

static sl_status parse_sequence(parser *p, mdl_node *out_node)
{
    bool outer = p->depth == 0;
    bool anchored = outer && take(p, "^"), ended = false;
    mdl_node node = MDL_NODE_EMPTY;
    size_t first = p->part_count;
    while (more(p) && p->pattern[p->at] != '|' && p->pattern[p->at] != ')') {
        if (outer && (looking_at(p, "$|") || (looking_at(p, "$") && p->at + 1 == p->size))) {
            p->at++;
            ended = true;
            break;
        }
        mdl_node next = MDL_NODE_NONE;
        SL_TRY(parse_quantified(p, &next));
        p->parts[p->part_count++] = next;
    }
    /* From the right, so that the way to the first part is short. */
    while (p->part_count > first)
        node = mdl_grammar_then(p->grammar, p->parts[--p->part_count], node);
    if (outer && (p->flags & MDL_REGEX_SEARCH)) {
        if (!anchored)
            node = mdl_grammar_then(p->grammar, anything(p), node);
        if (!ended)
            node = mdl_grammar_then(p->grammar, node, anything(p));
    }
    *out_node = node;
    return sl_ok();
}

static sl_status parse_alternatives(parser *p, mdl_node *out_node)
{
    mdl_node out = MDL_NODE_NONE;
    do {
        mdl_node next = MDL_NODE_NONE;
        SL_TRY(parse_sequence(p, &next));
        out = mdl_grammar_or(p->grammar, next, out);
    } while (take(p, "|"));
    *out_node = out;
    return sl_ok();
}

sl_status mdl_regex_compile(mdl_grammar *grammar, const char *pattern, size_t size, unsigned flags,
                            mdl_node *out_node, sl_err *err)
{
    mdl_node node = MDL_NODE_NONE;
    if (size > MDL_REGEX_BYTES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "an expression of %zu bytes, at most %u", size,
                       MDL_REGEX_BYTES_MAX);
    if (!sl_utf8_valid(pattern, size))
        return sl_fail(err, SL_INVALID, "not valid UTF-8");
    parser *p = sl_alloc(1, sizeof(*p), "regex parser");
    p->grammar = grammar;
    p->pattern = pattern;
    p->size = size;
    p->flags = flags;
    p->err = err;
    sl_status status = parse_alternatives(p, &node);
    if (sl_is_ok(status) && more(p))
        status = wrong(p, p->at, "a bracket ) that closes nothing");
    sl_free(p);
    if (sl_is_ok(status))
        *out_node = node;
    return status;
}
