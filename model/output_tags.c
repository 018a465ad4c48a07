/* Tags: "<" or "</", ｜DSML｜, a word, attributes, slack, ">". Pure functions.
 *
 * Every rule gives the same verdict however the text is cut: NO only if no continuation helps. */
#include "model/output_tags.h"

#include <string.h>

#include "model/chat.h"

#define SLACK_MAX 8 /* odd characters before ">" */
#define BAR       "｜"

typedef struct cursor {
    const char *data;
    size_t size;
    size_t at;
} cursor;

mdl_match mdl_literal_match(const char *data, size_t size, const char *literal)
{
    size_t length = strlen(literal);
    size_t common = size < length ? size : length;

    if (memcmp(data, literal, common) != 0)
        return MDL_MATCH_NO;
    return common == length ? MDL_MATCH_YES : MDL_MATCH_PARTIAL;
}

static mdl_match take(cursor *c, const char *literal)
{
    mdl_match m = mdl_literal_match(c->data + c->at, c->size - c->at, literal);

    if (m == MDL_MATCH_YES)
        c->at += strlen(literal);
    return m;
}

static bool is_space(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r';
}

/* Up to the next quote. */
static mdl_match take_quoted(cursor *c, size_t size_max, const char **out_text, size_t *out_size)
{
    size_t begin = c->at;

    for (; c->at < c->size; c->at++) {
        char ch = c->data[c->at];

        if (ch == '"') {
            *out_text = c->data + begin;
            *out_size = c->at - begin;
            c->at++;
            return MDL_MATCH_YES;
        }
        if (ch == '<' || ch == '>' || ch == '\n' || ch == '\0' || c->at - begin == size_max)
            return MDL_MATCH_NO;
    }
    return MDL_MATCH_PARTIAL;
}

/* Spaces and stray bars, then "/>" or ">". */
static mdl_match take_end(cursor *c, bool may_close, bool *out_self_closing)
{
    for (int slack = 0; slack <= SLACK_MAX; slack++) {
        mdl_match bar;

        if (c->at == c->size)
            return MDL_MATCH_PARTIAL;
        if (c->data[c->at] == '>') {
            c->at++;
            return MDL_MATCH_YES;
        }
        if (c->data[c->at] == '/' && may_close) {
            *out_self_closing = true;
            c->at++;
            return take(c, ">");
        }
        if (is_space(c->data[c->at])) {
            c->at++;
            continue;
        }
        bar = take(c, BAR);
        if (bar != MDL_MATCH_YES)
            return bar;
    }
    return MDL_MATCH_NO;
}

static mdl_match take_spaces(cursor *c)
{
    size_t begin = c->at;

    while (c->at < c->size && is_space(c->data[c->at]) && c->at - begin <= SLACK_MAX)
        c->at++;
    if (c->at == c->size)
        return MDL_MATCH_PARTIAL;
    return c->at > begin && c->at - begin <= SLACK_MAX ? MDL_MATCH_YES : MDL_MATCH_NO;
}

/* string="..." after a parameter's name; optional. */
static mdl_match take_string_attribute(cursor *c, mdl_tag *tag)
{
    cursor ahead = *c;
    const char *text;
    size_t size;
    mdl_match m = take_spaces(&ahead);

    if (m == MDL_MATCH_YES)
        m = take(&ahead, "string=\"");
    if (m == MDL_MATCH_NO)
        return MDL_MATCH_YES; /* not there */
    if (m == MDL_MATCH_YES)
        m = take_quoted(&ahead, 16, &text, &size);
    if (m != MDL_MATCH_YES)
        return m;
    if (size == 4 && memcmp(text, "true", 4) == 0)
        tag->string = MDL_TAG_STRING_TRUE;
    else if (size == 5 && memcmp(text, "false", 5) == 0)
        tag->string = MDL_TAG_STRING_FALSE;
    *c = ahead;
    return MDL_MATCH_YES;
}

static mdl_match take_attributes(cursor *c, mdl_tag *tag)
{
    bool invoke = tag->kind == MDL_TAG_OPEN_INVOKE;
    mdl_match m = take_spaces(c);

    if (m == MDL_MATCH_YES)
        m = take(c, "name=\"");
    if (m == MDL_MATCH_YES)
        m = take_quoted(c, invoke ? MDL_FUNCTION_NAME_MAX : MDL_PARAMETER_NAME_MAX, &tag->name,
                        &tag->name_size);
    if (m == MDL_MATCH_YES && !invoke)
        m = take_string_attribute(c, tag);
    if (m == MDL_MATCH_YES && invoke && tag->name_size == 0)
        m = MDL_MATCH_NO;
    return m;
}

static const struct {
    const char *text;
    mdl_tag_kind kind;
    bool attributes;
} TAGS[] = {
    {"<｜DSML｜function_calls", MDL_TAG_OPEN_CALLS, false},
    {"</｜DSML｜function_calls", MDL_TAG_CLOSE_CALLS, false},
    {"<｜DSML｜invoke", MDL_TAG_OPEN_INVOKE, true},
    {"</｜DSML｜invoke", MDL_TAG_CLOSE_INVOKE, false},
    {"<｜DSML｜parameter", MDL_TAG_OPEN_PARAMETER, true},
    {"</｜DSML｜parameter", MDL_TAG_CLOSE_PARAMETER, false},
};

mdl_match mdl_tag_parse(const char *data, size_t size, unsigned wanted, mdl_tag *out_tag)
{
    mdl_match best = MDL_MATCH_NO;

    if (size > 0 && data[0] != '<')
        return MDL_MATCH_NO;
    for (size_t i = 0; i < sizeof(TAGS) / sizeof(TAGS[0]); i++) {
        cursor c = {data, size, 0};
        mdl_tag tag = {.kind = TAGS[i].kind};
        mdl_match m;

        if (!(wanted & TAGS[i].kind))
            continue;
        m = take(&c, TAGS[i].text);
        if (m == MDL_MATCH_YES && TAGS[i].attributes)
            m = take_attributes(&c, &tag);
        if (m == MDL_MATCH_YES)
            m = take_end(&c, TAGS[i].attributes, &tag.self_closing);
        if (m == MDL_MATCH_YES) {
            tag.length = c.at;
            *out_tag = tag;
            return m;
        }
        if (m == MDL_MATCH_PARTIAL)
            best = m;
    }
    return best;
}
