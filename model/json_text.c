/* The texts of JSON as nodes: white space, strings, keys, any value, constants. Any thread. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/json_schema_parts.h"
#include "model/matcher.h"
#include "model/regex.h"

/* White space is bounded, so that a model cannot go on with it for ever. */
#define INDENT_SPACES_MAX 40u
#define INDENT_TABS_MAX   12u

#define DATE                                                                                 \
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|" \
    "02-(0[1-9]|1[0-9]|2[0-8]))"
#define TIME                                                                             \
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):" \
    "[0-5][0-9])"
#define BYTE     "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define LABEL    "[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?"
#define HOSTNAME LABEL "(\\." LABEL "){0,4}"

#define EMAIL "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,32}){0,1}@" HOSTNAME
#define URI                                                                                  \
    "[a-z][a-z0-9+.-]{1,15}://" HOSTNAME "(:[1-9][0-9]{0,3})?(/[A-Za-z0-9._~-]{0,64}){0,16}" \
    "(\\?[A-Za-z0-9._~=&-]{0,256})?(#[A-Za-z0-9._~-]{0,64})?"
#define POINTER "(/[A-Za-z0-9_-]{1,32}){0,8}"

/* Expressions for the inside of a string; each allows less than the standard, never more. */
static const struct {
    const char *name, *pattern;
} FORMATS[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P([0-9]{1,6}W|[0-9]{1,6}D(T[0-9]{1,6}H)?|T[0-9]{1,6}H([0-9]{1,6}M"
                 "([0-9]{1,6}S)?)?|T[0-9]{1,6}M([0-9]{1,6}S)?|T[0-9]{1,6}S)"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
    {"ipv4", BYTE "\\." BYTE "\\." BYTE "\\." BYTE},
    {"ipv6", "[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}"},
    {"hostname", HOSTNAME},
    {"idn-hostname", HOSTNAME},
    {"email", EMAIL},
    {"idn-email", EMAIL},
    {"uri", URI},
    {"uri-reference", URI},
    {"uri-template", URI},
    {"iri", URI},
    {"iri-reference", URI},
    {"json-pointer", POINTER},
    {"relative-json-pointer", "(0|[1-9][0-9]?)" POINTER},
    {"regex", NULL}, /* of the standard, not offered */
};
mdl_node mdl_json_space(mdl_schema_compiler *c)
{
    mdl_grammar *g = c->grammar;
    if (c->space != MDL_NODE_NONE)
        return c->space;
    mdl_node indent =
        mdl_grammar_or(g, mdl_grammar_repeat(g, mdl_grammar_text(g, " "), 0, INDENT_SPACES_MAX),
                       mdl_grammar_repeat(g, mdl_grammar_text(g, "\t"), 1, INDENT_TABS_MAX));
    mdl_node line = mdl_grammar_then(g, mdl_grammar_text(g, "\n"), indent);
    c->space = mdl_grammar_optional(g, mdl_grammar_or(g, mdl_grammar_text(g, " "), line));
    c->space = mdl_grammar_settle(g, c->space);
    return c->space;
}

mdl_node mdl_json_comma(mdl_schema_compiler *c)
{
    return mdl_grammar_then(c->grammar, mdl_grammar_text(c->grammar, ","), mdl_json_space(c));
}

mdl_node mdl_json_brackets(mdl_schema_compiler *c, const char *brackets, mdl_node members,
                           bool may_be_empty)
{
    mdl_grammar *g = c->grammar;
    char open[2] = {brackets[0], 0}, close[2] = {brackets[1], 0};
    members = mdl_grammar_then(g, mdl_json_space(c), members);
    members = mdl_grammar_then(g, members, mdl_json_space(c));
    if (may_be_empty)
        members = mdl_grammar_or(g, members, MDL_NODE_EMPTY);
    members = mdl_grammar_then(g, members, mdl_grammar_text(g, close));
    return mdl_grammar_then(g, mdl_grammar_text(g, open), members);
}

/* ---- strings ---- */

static mdl_node one_of(mdl_grammar *g, const char *bytes)
{
    mdl_byte_set set = {{0}};
    for (const char *at = bytes; *at; at++)
        mdl_byte_set_add(&set, (unsigned char)*at, (unsigned char)*at);
    return mdl_grammar_set(g, &set);
}

/* Four hexadecimal digits that are no surrogate. */
static mdl_node hex_unit(mdl_grammar *g)
{
    mdl_node hex = one_of(g, "0123456789abcdefABCDEF");
    mdl_node low =
        mdl_grammar_then(g, one_of(g, "0123456789abcefABCEF"), mdl_grammar_repeat(g, hex, 3, 3));
    mdl_node d = mdl_grammar_then(g, one_of(g, "dD"), one_of(g, "01234567"));
    return mdl_grammar_or(g, low, mdl_grammar_then(g, d, mdl_grammar_repeat(g, hex, 2, 2)));
}

/* The inside of any string: all escapes of JSON. */
static mdl_node any_text(mdl_schema_compiler *c)
{
    mdl_grammar *g = c->grammar;
    if (c->text != MDL_NODE_NONE)
        return c->text;
    mdl_byte_set plain = {{0}};
    mdl_byte_set_add(&plain, 0x20, '"' - 1);
    mdl_byte_set_add(&plain, '"' + 1, '\\' - 1);
    mdl_byte_set_add(&plain, '\\' + 1, 0x7f);
    mdl_node unit = mdl_grammar_then(g, mdl_grammar_text(g, "u"), hex_unit(g));
    mdl_node escape = mdl_grammar_or(g, one_of(g, "\"\\/bfnrt"), unit);
    escape = mdl_grammar_then(g, mdl_grammar_text(g, "\\"), escape);
    mdl_node one = mdl_grammar_code_points(g, 0x80, c->unmarked ? 0xff5b : 0x10ffff);
    if (c->unmarked)
        one = mdl_grammar_or(g, one, mdl_grammar_code_points(g, 0xff5d, 0x10ffff));
    one = mdl_grammar_or(g, one, escape);
    one = mdl_grammar_settle(g, mdl_grammar_or(g, mdl_grammar_set(g, &plain), one));
    c->text = mdl_grammar_repeat(g, one, 0, MDL_REPEAT_ANY);
    return c->text;
}

static mdl_node quoted(mdl_grammar *g, mdl_node inside)
{
    mdl_node end = mdl_grammar_then(g, inside, mdl_grammar_text(g, "\""));
    return mdl_grammar_then(g, mdl_grammar_text(g, "\""), end);
}

static unsigned regex_flags(const mdl_schema_compiler *c)
{
    return (c->raw ? 0u : MDL_REGEX_JSON) | (c->unmarked ? MDL_REGEX_UNMARKED : 0u);
}

/* What must hold together, one part at a time. */
typedef struct string_part {
    const char *pattern; /* NULL: the length, or the values to be left out */
    bool without;        /* its texts are left out */
    size_t size;
    unsigned flags;
    const char *keyword;
} string_part;

/* The strings that the value must not be, as they stand between quotes. */
static mdl_node other_strings(const mdl_schema_compiler *c, mdl_grammar *g,
                              const mdl_schema_facts *f)
{
    mdl_node out = MDL_NODE_NONE;
    for (uint32_t k = 0; k < f->without_count; k++) {
        size_t count = f->without_is_list[k] ? sl_json_count(f->without[k]) : 1, size;
        for (size_t i = 0; i < count; i++) {
            const sl_json *value =
                f->without_is_list[k] ? sl_json_at(f->without[k], i) : f->without[k];
            const char *text = sl_json_string(value, &size);
            sl_buf buf;
            if (!text)
                continue;
            sl_buf_init(&buf, 0);
            if (!c->raw)
                sl_json_write_string(&buf, text, size);
            out = mdl_grammar_or(g,
                                 c->raw ? mdl_grammar_literal(g, text, size)
                                        : mdl_grammar_literal(g, buf.data + 1, buf.size - 2),
                                 out);
            sl_buf_fini(&buf);
        }
    }
    return out;
}

static sl_status part_node(const mdl_schema_compiler *c, mdl_grammar *g, const string_part *part,
                           const mdl_schema_facts *f, mdl_node *out_node)
{
    if (!part->pattern && part->without) {
        *out_node = other_strings(c, g, f);
        return sl_ok();
    }
    if (!part->pattern) {
        if (f->length_min > f->length_max)
            return mdl_schema_fail(c, SL_INVALID, "maxLength", "is less than minLength");
        *out_node =
            mdl_grammar_repeat(g, mdl_regex_any(g, regex_flags(c)), f->length_min, f->length_max);
        return sl_ok();
    }
    sl_err inner = {0};
    sl_status status = mdl_regex_compile(g, part->pattern, part->size, part->flags | regex_flags(c),
                                         out_node, &inner);
    return sl_is_ok(status) ? status : mdl_schema_fail(c, status.code, part->keyword, inner.text);
}

/* Of any length. */
static sl_status part_dfa(const mdl_schema_compiler *c, const string_part *part,
                          const mdl_schema_facts *f, mdl_dfa **out_dfa)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node node = MDL_NODE_NONE;
    sl_err inner = {0};
    sl_status status = sl_ok();
    if (part->pattern || part->without)
        status = part_node(c, g, part, f, &node);
    else
        node = mdl_grammar_repeat(g, mdl_regex_any(g, regex_flags(c)), 0, MDL_REPEAT_ANY);
    if (sl_is_ok(status)) {
        status = mdl_grammar_finish(g, node, &inner);
        if (sl_is_ok(status))
            status = mdl_dfa_create(g, out_dfa, &inner);
        mdl_grammar_count_work(c->grammar, sl_is_ok(status) ? *out_dfa : NULL);
        if (!sl_is_ok(status))
            status = mdl_schema_fail(c, status.code, part->keyword, inner.text);
    }
    mdl_grammar_destroy(g);
    return status;
}

/* Has every text a length that is asked for? A character is a byte or more. */
static bool length_holds(const mdl_dfa *dfa, const mdl_schema_facts *f)
{
    uint32_t least = mdl_dfa_accepts(dfa, "", 0) ? 0 : 1;
    return f->length_min <= least && mdl_dfa_longest(dfa) <= f->length_max;
}

/* Any character, as it is written. */
static sl_status character_dfa(const mdl_schema_compiler *c, mdl_dfa **out_dfa, sl_err *err)
{
    mdl_grammar *g = mdl_grammar_create();
    sl_status status = mdl_grammar_finish(g, mdl_regex_any(g, regex_flags(c)), err);
    if (sl_is_ok(status))
        status = mdl_dfa_create(g, out_dfa, err);
    mdl_grammar_destroy(g);
    return status;
}

/* Leaves the texts of *all with a length that is asked for. */
static sl_status count_characters(const mdl_schema_compiler *c, const mdl_schema_facts *f,
                                  mdl_dfa **all)
{
    mdl_dfa *one = NULL, *counted = NULL;
    sl_err inner = {0};
    if (length_holds(*all, f))
        return sl_ok();
    sl_status status = character_dfa(c, &one, &inner);
    if (sl_is_ok(status))
        status = mdl_dfa_count(*all, one, f->length_min, f->length_max, &counted, &inner);
    mdl_dfa_destroy(one);
    if (!sl_is_ok(status))
        return mdl_schema_fail(c, status.code,
                               f->length_max == MDL_SCHEMA_COUNT_ANY ? "minLength" : "maxLength",
                               inner.text);
    mdl_grammar_count_work(c->grammar, counted);
    mdl_dfa_destroy(*all);
    *all = counted;
    return status;
}

/* The texts that all parts allow, with a length that is asked for. */
static sl_status cross_parts(const mdl_schema_compiler *c, const string_part *parts, uint32_t count,
                             const mdl_schema_facts *f, mdl_node *out_node)
{
    mdl_dfa *all = NULL;
    sl_status status = part_dfa(c, &parts[0], f, &all);
    for (uint32_t i = 1; i < count && sl_is_ok(status); i++) {
        mdl_dfa *next = NULL, *both = NULL;
        sl_err inner = {0};
        status = part_dfa(c, &parts[i], f, &next);
        if (sl_is_ok(status)) {
            status = parts[i].without ? mdl_dfa_without(all, next, &both, &inner)
                                      : mdl_dfa_both(all, next, &both, &inner);
            mdl_dfa_destroy(next);
            if (!sl_is_ok(status))
                status = mdl_schema_fail(c, status.code, parts[i].keyword, inner.text);
        }
        if (!sl_is_ok(status))
            break;
        mdl_dfa_destroy(all);
        all = both;
    }
    if (sl_is_ok(status))
        status = count_characters(c, f, &all);
    if (sl_is_ok(status))
        *out_node = mdl_grammar_dfa(c->grammar, all);
    else
        mdl_dfa_destroy(all);
    return status;
}

static int format_find(const char *format)
{
    for (size_t i = 0; i < sizeof(FORMATS) / sizeof(FORMATS[0]); i++)
        if (strcmp(FORMATS[i].name, format) == 0)
            return (int)i;
    return -1;
}

bool mdl_json_format_known(const char *format)
{
    return format_find(format) >= 0;
}

static sl_status format_part(const mdl_schema_compiler *c, const char *format, string_part *out)
{
    const char *pattern = FORMATS[format_find(format)].pattern;
    if (!pattern)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "format", "\"regex\" is not supported");
    *out = (string_part){.pattern = pattern, .size = strlen(pattern), .keyword = "format"};
    return sl_ok();
}

/* Any text, the markup of calls aside. */
static sl_status raw_text(const mdl_schema_compiler *c, mdl_node *out_node)
{
    static const char *const MARKS[] = {"\uff5cDSML\uff5c"};
    return mdl_grammar_unmarked(c->grammar, MARKS, 1, out_node, c->err);
}

sl_status mdl_json_string(mdl_schema_compiler *c, const mdl_schema_facts *f, mdl_node *out_node)
{
    string_part parts[2 * MDL_SCHEMA_FEW_MAX + 4];
    uint32_t count = 0;
    mdl_node node = MDL_NODE_NONE;
    for (uint32_t i = 0; i < f->pattern_count; i++) {
        string_part part = {.flags = MDL_REGEX_SEARCH, .keyword = "pattern"};
        part.pattern = sl_json_string(f->patterns[i], &part.size);
        parts[count++] = part;
    }
    if (f->format)
        SL_TRY(format_part(c, f->format, &parts[count++]));
    bool length = f->length_min > 0 || f->length_max != MDL_SCHEMA_COUNT_ANY, beside = count > 0;
    if (length && !beside)
        parts[count++] = (string_part){
            .keyword = f->length_max == MDL_SCHEMA_COUNT_ANY ? "minLength" : "maxLength"};
    bool without = mdl_schema_without_kind(f, MDL_JSON_STRING);
    sl_status status = sl_ok();
    if (count == 0 && (without || f->not_pattern_count > 0)) /* of any length, then */
        parts[count++] = (string_part){.keyword = "not"};
    for (uint32_t i = 0; i < f->not_pattern_count; i++) {
        string_part part = {.flags = MDL_REGEX_SEARCH, .keyword = "not", .without = true};
        part.pattern = sl_json_string(f->not_patterns[i], &part.size);
        parts[count++] = part;
    }
    if (without)
        parts[count++] = (string_part){.keyword = "not", .without = true};
    if (count == 0 && c->raw)
        SL_TRY(raw_text(c, &node));
    else if (count == 0)
        node = any_text(c);
    else if (count == 1 && !(length && beside))
        SL_TRY(part_node(c, c->grammar, &parts[0], f, &node));
    else
        status = cross_parts(c, parts, count, f, &node);
    if (status.code == SL_INVALID && (without || f->not_pattern_count > 0)) {
        *out_node = MDL_NODE_NONE; /* none is left */
        return sl_ok();
    }
    SL_TRY(status);
    *out_node = c->raw ? node : quoted(c->grammar, node);
    return sl_ok();
}

/* ---- values ---- */

static mdl_node written_string(mdl_grammar *g, const char *text, size_t size)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write_string(&buf, text, size);
    mdl_node node = mdl_grammar_literal(g, buf.data, buf.size);
    sl_buf_fini(&buf);
    return node;
}

mdl_node mdl_json_key(mdl_schema_compiler *c, const char *name, size_t size)
{
    mdl_node key = written_string(c->grammar, name, size);
    key = mdl_grammar_then(c->grammar, key, mdl_grammar_text(c->grammar, ":"));
    return mdl_grammar_then(c->grammar, key, mdl_json_space(c));
}

/* brackets around members that stand behind one another with commas; members NONE: none. */
static mdl_node bracketed(mdl_schema_compiler *c, const char *brackets, mdl_node members)
{
    mdl_grammar *g = c->grammar;
    char open[2] = {brackets[0], 0}, close[2] = {brackets[1], 0};
    if (members != MDL_NODE_NONE) {
        members = mdl_grammar_then(g, mdl_json_space(c), members);
        members = mdl_grammar_then(g, members, mdl_json_space(c));
    } else {
        members = MDL_NODE_EMPTY;
    }
    members = mdl_grammar_then(g, members, mdl_grammar_text(g, close));
    return mdl_grammar_then(g, mdl_grammar_text(g, open), members);
}

static mdl_node comma(mdl_schema_compiler *c)
{
    return mdl_grammar_then(c->grammar, mdl_grammar_text(c->grammar, ","), mdl_json_space(c));
}

mdl_node mdl_json_value(mdl_schema_compiler *c, const sl_json *value)
{
    mdl_grammar *g = c->grammar;
    bool object = sl_json_typeof(value) == SL_JSON_OBJECT;
    if (!object && sl_json_typeof(value) != SL_JSON_ARRAY) {
        sl_buf buf;
        sl_buf_init(&buf, 0);
        sl_json_write(&buf, value);
        mdl_node node = mdl_grammar_literal(g, buf.data, buf.size);
        sl_buf_fini(&buf);
        return node;
    }
    mdl_node members = MDL_NODE_NONE;
    for (size_t i = sl_json_count(value); i-- > 0;) {
        mdl_node member = mdl_json_value(c, sl_json_at(value, i));
        if (object) {
            size_t size;
            const char *key = sl_json_key(value, i, &size);
            member = mdl_grammar_then(g, mdl_json_key(c, key, size), member);
        }
        if (members != MDL_NODE_NONE)
            members = mdl_grammar_then(g, comma(c), members);
        members = members == MDL_NODE_NONE ? member : mdl_grammar_then(g, member, members);
    }
    return bracketed(c, object ? "{}" : "[]", members);
}

bool mdl_json_is_text_of(mdl_matcher *matcher, const sl_json *value)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write(&buf, value);
    uint32_t state = mdl_matcher_start(matcher);
    for (size_t i = 0; i < buf.size && state > MDL_STATE_DEAD; i++)
        state = mdl_matcher_byte(matcher, state, (uint8_t)buf.data[i]);
    sl_buf_fini(&buf);
    /* A table that is full says no: less is allowed than might be. */
    return state > MDL_STATE_DEAD && mdl_matcher_accepts(matcher, state);
}

/* ---- any value ---- */

static mdl_node any_list(mdl_schema_compiler *c, const char *brackets, mdl_node member)
{
    mdl_grammar *g = c->grammar;
    mdl_node more = mdl_grammar_then(g, comma(c), member);
    mdl_node members = mdl_grammar_then(g, member, mdl_grammar_repeat(g, more, 0, MDL_REPEAT_ANY));
    return mdl_grammar_or(g, bracketed(c, brackets, members),
                          bracketed(c, brackets, MDL_NODE_NONE));
}

mdl_node mdl_json_any_object(mdl_schema_compiler *c)
{
    mdl_grammar *g = c->grammar;
    mdl_node key = mdl_grammar_then(g, quoted(g, any_text(c)), mdl_grammar_text(g, ":"));
    key = mdl_grammar_then(g, key, mdl_json_space(c));
    return any_list(c, "{}", mdl_grammar_then(g, key, mdl_json_any(c)));
}

mdl_node mdl_json_any_array(mdl_schema_compiler *c)
{
    return any_list(c, "[]", mdl_json_any(c));
}

mdl_node mdl_json_any(mdl_schema_compiler *c)
{
    static const char *const NAMES[] = {"true", "false", "null"};
    static const mdl_json_bounds NO_BOUNDS = {NULL, NULL, false, false};
    mdl_grammar *g = c->grammar;
    mdl_node number = MDL_NODE_NONE;
    if (c->any != MDL_NODE_NONE)
        return c->any;
    c->any = mdl_grammar_rule(g);
    sl_status status = mdl_json_number(g, false, &NO_BOUNDS, &number, NULL);
    sl_assert(sl_is_ok(status));
    mdl_node body = mdl_grammar_or(g, quoted(g, any_text(c)), number);
    for (size_t i = 0; i < 3; i++)
        body = mdl_grammar_or(g, body, mdl_grammar_text(g, NAMES[i]));
    body = mdl_grammar_or(g, body, mdl_json_any_object(c));
    body = mdl_grammar_or(g, body, mdl_json_any_array(c));
    mdl_grammar_define(g, c->any, body);
    return c->any;
}

/* ---- other keys ---- */

typedef enum key_set {
    KEYS_ALL,     /* any, written as names are */
    KEYS_NAMES,   /* the properties' */
    KEYS_PATTERN, /* those that a pattern occurs in */
} key_set;

static sl_status key_node(const mdl_schema_compiler *c, mdl_grammar *g, const mdl_schema_facts *f,
                          key_set set, size_t pattern, mdl_node *out_node, sl_err *err)
{
    mdl_node node = MDL_NODE_NONE;
    for (size_t i = 0; i < f->property_count && set == KEYS_NAMES; i++) {
        const mdl_schema_property *p = &f->properties[i];
        node = mdl_grammar_or(g, written_string(g, p->name, p->name_size), node);
    }
    if (set == KEYS_ALL)
        node =
            quoted(g, mdl_grammar_repeat(g, mdl_regex_any(g, regex_flags(c)), 0, MDL_REPEAT_ANY));
    if (set == KEYS_PATTERN) {
        size_t size;
        const char *text = sl_json_key(f->key_patterns, pattern, &size);
        SL_TRY(mdl_regex_compile(g, text, size, MDL_REGEX_SEARCH | regex_flags(c), &node, err));
        node = quoted(g, node);
    }
    *out_node = node;
    return sl_ok();
}

static sl_status key_dfa(const mdl_schema_compiler *c, const mdl_schema_facts *f, key_set set,
                         size_t pattern, mdl_dfa **out_dfa, sl_err *err)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node node = MDL_NODE_NONE;
    sl_status status = key_node(c, g, f, set, pattern, &node, err);
    if (sl_is_ok(status))
        status = mdl_grammar_finish(g, node, err);
    if (sl_is_ok(status))
        status = mdl_dfa_create(g, out_dfa, err);
    mdl_grammar_count_work(c->grammar, sl_is_ok(status) ? *out_dfa : NULL);
    mdl_grammar_destroy(g);
    return status;
}

/* The keys of a pattern, made once. */
static sl_status pattern_keys(const mdl_schema_compiler *c, mdl_schema_facts *f, size_t pattern,
                              const mdl_dfa **out_keys, sl_err *err)
{
    if (!f->key_dfas[pattern])
        SL_TRY(key_dfa(c, f, KEYS_PATTERN, pattern, &f->key_dfas[pattern], err));
    *out_keys = f->key_dfas[pattern];
    return sl_ok();
}

/* Takes keys away from *keys; *keys NULL: none is left. */
static sl_status remove_keys(mdl_dfa **keys, const mdl_dfa *other, sl_err *err)
{
    mdl_dfa *left = NULL;
    if (!*keys)
        return sl_ok();
    sl_status status = mdl_dfa_without(*keys, other, &left, err);
    if (!sl_is_ok(status) && status.code != SL_INVALID)
        return status;
    mdl_dfa_destroy(*keys);
    *keys = left;
    return sl_ok();
}

static sl_status remove_names(const mdl_schema_compiler *c, const mdl_schema_facts *f,
                              mdl_dfa **keys, sl_err *err)
{
    mdl_dfa *names = NULL;
    if (f->property_count == 0)
        return sl_ok();
    SL_TRY(key_dfa(c, f, KEYS_NAMES, 0, &names, err));
    sl_status status = remove_keys(keys, names, err);
    mdl_dfa_destroy(names);
    return status;
}

/* Leaves the names that propertyNames allows. */
static sl_status keep_names(const mdl_schema_facts *f, mdl_dfa **keys, sl_err *err)
{
    mdl_dfa *left = NULL;
    if (!*keys || f->names.count == 0)
        return sl_ok();
    sl_status status = sl_ok();
    if (f->names_dfa)
        status = mdl_dfa_both(*keys, f->names_dfa, &left, err);
    if (!sl_is_ok(status) && status.code != SL_INVALID)
        return status;
    mdl_dfa_destroy(*keys);
    *keys = left;
    return sl_ok();
}

static sl_status other_keys(const mdl_schema_compiler *c, mdl_schema_facts *f, size_t pattern,
                            mdl_dfa **keys, sl_err *err)
{
    const mdl_dfa *matched = NULL;
    SL_TRY(key_dfa(c, f, pattern == MDL_KEY_OTHER ? KEYS_ALL : KEYS_PATTERN, pattern, keys, err));
    SL_TRY(remove_names(c, f, keys, err));
    for (size_t i = 0; i < sl_json_count(f->key_patterns); i++) {
        if (i == pattern)
            continue;
        SL_TRY(pattern_keys(c, f, i, &matched, err));
        SL_TRY(remove_keys(keys, matched, err));
    }
    return keep_names(f, keys, err);
}

bool mdl_json_name_fits(const mdl_schema_facts *f, const mdl_schema_property *p)
{
    if (f->names.count == 0)
        return true;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write_string(&buf, p->name, p->name_size);
    bool fits = f->names_dfa && mdl_dfa_accepts(f->names_dfa, buf.data, buf.size);
    sl_buf_fini(&buf);
    return fits;
}

sl_status mdl_json_other_key(mdl_schema_compiler *c, mdl_schema_facts *f, size_t pattern,
                             mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    mdl_node key = MDL_NODE_NONE;
    if (f->property_count == 0 && !f->key_patterns && f->names.count == 0) {
        key = quoted(g, any_text(c));
    } else {
        const char *keyword =
            pattern == MDL_KEY_OTHER ? "additionalProperties" : "patternProperties";
        mdl_dfa *keys = NULL;
        sl_err inner = {0};
        sl_status status = other_keys(c, f, pattern, &keys, &inner);
        if (!sl_is_ok(status)) {
            mdl_dfa_destroy(keys);
            return mdl_schema_fail(c, status.code, keyword, inner.text);
        }
        if (keys)
            key = mdl_grammar_dfa(g, keys);
    }
    key = mdl_grammar_then(g, key, mdl_grammar_text(g, ":"));
    *out_node = mdl_grammar_then(g, key, mdl_json_space(c));
    return sl_ok();
}

sl_status mdl_json_key_matches(mdl_schema_compiler *c, mdl_schema_facts *f, size_t pattern,
                               const mdl_schema_property *p, bool *out_matches)
{
    const mdl_dfa *keys = NULL;
    sl_err inner = {0};
    sl_status status = pattern_keys(c, f, pattern, &keys, &inner);
    if (!sl_is_ok(status))
        return mdl_schema_fail(c, status.code, "patternProperties", inner.text);
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_json_write_string(&buf, p->name, p->name_size);
    *out_matches = mdl_dfa_accepts(keys, buf.data, buf.size);
    sl_buf_fini(&buf);
    return sl_ok();
}
