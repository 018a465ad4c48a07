/* Constraints: from request fields to one description, from that to a grammar. Any thread; no
 * I/O. */
#include "model/constraint.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/json_schema.h"
#include "model/matcher.h"
#include "model/regex.h"

#define START_STATES 16u /* room to see whether the start fits */

void mdl_constraint_init(mdl_constraint *constraint)
{
    memset(constraint, 0, sizeof(*constraint));
    sl_buf_init(&constraint->text, 0);
    sl_buf_init(&constraint->tools, 0);
}

void mdl_constraint_fini(mdl_constraint *constraint)
{
    sl_buf_fini(&constraint->text);
    sl_buf_fini(&constraint->tools);
}

bool mdl_constraint_is_set(const mdl_constraint *constraint)
{
    return constraint->kind != MDL_CONSTRAINT_NONE || constraint->calls == MDL_CALLS_REQUIRED;
}

/* ---- reading requests ---- */

/* NULL when absent or null. */
static const sl_json *given(const sl_json *object, const char *field)
{
    const sl_json *value = sl_json_get(object, field);
    return sl_json_typeof(value) == SL_JSON_NULL ? NULL : value;
}

static sl_status set_kind(mdl_constraint *c, mdl_constraint_kind kind, const char *field,
                          sl_err *err)
{
    if (c->kind != MDL_CONSTRAINT_NONE)
        return sl_fail(err, SL_INVALID, "%s: given beside %s; an answer has one form", field,
                       c->field);
    c->kind = kind;
    c->field = field;
    return sl_ok();
}

/* A schema, or a string that holds one. */
static sl_status read_schema(mdl_constraint *c, const sl_json *value, const char *field,
                             sl_err *err)
{
    size_t size;
    const char *text = sl_json_string(value, &size);
    SL_TRY(set_kind(c, MDL_CONSTRAINT_JSON_SCHEMA, field, err));
    if (text)
        sl_buf_append(&c->text, text, size);
    else if (sl_json_typeof(value) == SL_JSON_OBJECT)
        sl_json_write(&c->text, value);
    else
        return sl_fail(err, SL_INVALID, "%s: must be a schema or a string of one", field);
    return sl_ok();
}

static sl_status read_regex(mdl_constraint *c, const sl_json *value, const char *field, sl_err *err)
{
    size_t size;
    const char *text = sl_json_string(value, &size);
    if (!text)
        return sl_fail(err, SL_INVALID, "%s: must be a string", field);
    SL_TRY(set_kind(c, MDL_CONSTRAINT_REGEX, field, err));
    sl_buf_append(&c->text, text, size);
    return sl_ok();
}

static sl_status read_choice(mdl_constraint *c, const sl_json *value, const char *field,
                             sl_err *err)
{
    if (sl_json_typeof(value) != SL_JSON_ARRAY)
        return sl_fail(err, SL_INVALID, "%s: must be an array of strings", field);
    SL_TRY(set_kind(c, MDL_CONSTRAINT_CHOICE, field, err));
    sl_json_write(&c->text, value);
    return sl_ok();
}

static sl_status read_structured(mdl_constraint *c, const sl_json *request, sl_err *err)
{
    static const mdl_constraint_names NAMES = {
        "structured_outputs.json", "structured_outputs.regex", "structured_outputs.choice",
        "structured_outputs.json_object"};
    const mdl_constraint_names *names = c->names ? c->names : &NAMES;
    const sl_json *outputs = given(request, "structured_outputs");
    bool object = false;
    if (!outputs)
        return sl_ok();
    if (sl_json_typeof(outputs) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "structured_outputs: must be an object");
    if (given(outputs, "grammar") || given(outputs, "structural_tag"))
        return sl_fail(err, SL_UNSUPPORTED,
                       "structured_outputs: grammar and structural_tag are not supported; use "
                       "json, regex or choice");
    if (given(outputs, "json"))
        SL_TRY(read_schema(c, given(outputs, "json"), names->json, err));
    if (given(outputs, "regex"))
        SL_TRY(read_regex(c, given(outputs, "regex"), names->regex, err));
    if (given(outputs, "choice"))
        SL_TRY(read_choice(c, given(outputs, "choice"), names->choice, err));
    if (given(outputs, "json_object") && !sl_json_bool(given(outputs, "json_object"), &object))
        return sl_fail(err, SL_INVALID, "%s: must be true or false", names->json_object);
    if (object)
        SL_TRY(set_kind(c, MDL_CONSTRAINT_JSON_OBJECT, names->json_object, err));
    if (c->kind == MDL_CONSTRAINT_NONE)
        return sl_fail(err, SL_INVALID,
                       "structured_outputs: needs one of json, regex, choice, json_object: true");
    return sl_ok();
}

/* vLLM's older names. */
static sl_status read_guided(mdl_constraint *c, const sl_json *request, sl_err *err)
{
    if (given(request, "guided_grammar"))
        return sl_fail(err, SL_UNSUPPORTED, "guided_grammar: is not supported");
    if (given(request, "guided_json"))
        SL_TRY(read_schema(c, given(request, "guided_json"), "guided_json", err));
    if (given(request, "guided_regex"))
        SL_TRY(read_regex(c, given(request, "guided_regex"), "guided_regex", err));
    if (given(request, "guided_choice"))
        SL_TRY(read_choice(c, given(request, "guided_choice"), "guided_choice", err));
    return sl_ok();
}

static sl_status read_format(mdl_constraint *c, const sl_json *request, sl_err *err)
{
    static const char SCHEMA[] = "response_format.json_schema.schema";
    const sl_json *format = given(request, "response_format");
    const char *type = sl_json_string(sl_json_get(format, "type"), NULL);
    if (!format || (type && strcmp(type, "text") == 0))
        return sl_ok();
    if (type && strcmp(type, "json_object") == 0)
        return set_kind(c, MDL_CONSTRAINT_JSON_OBJECT, "response_format", err);
    if (!type || strcmp(type, "json_schema") != 0)
        return sl_fail(err, SL_INVALID,
                       "response_format.type: must be text, json_object or json_schema");
    const sl_json *outer = given(format, "json_schema"), *strict = given(outer, "strict");
    const sl_json *schema = sl_json_get(outer, "schema");
    if (sl_json_typeof(schema) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s: %s", SCHEMA,
                       schema ? "must be an object" : "is missing");
    if (strict && !sl_json_bool(strict, &c->strict))
        return sl_fail(err, SL_INVALID,
                       "response_format.json_schema.strict: must be true or false");
    return read_schema(c, schema, SCHEMA, err);
}

static bool is_strict(const sl_json *function)
{
    bool strict = false;
    return sl_json_bool(sl_json_get(function, "strict"), &strict) && strict;
}

static bool any_strict(const mdl_chat *chat)
{
    for (size_t i = 0; i < mdl_chat_tool_count(chat); i++)
        if (is_strict(mdl_chat_tool(chat, i)))
            return true;
    return false;
}

/* What the chat says of calls. */
static void read_calls(mdl_constraint *c, const mdl_chat *chat)
{
    if (mdl_chat_calls_forced(chat)) {
        c->calls = MDL_CALLS_REQUIRED;
    } else if (mdl_chat_calls_expected(chat) &&
               (c->kind != MDL_CONSTRAINT_NONE || any_strict(chat))) {
        c->calls = MDL_CALLS_ALLOWED;
        c->kind = c->kind == MDL_CONSTRAINT_NONE ? MDL_CONSTRAINT_TEXT : c->kind;
    }
}

/* The functions that may be called, as an array. */
static void write_tools(mdl_constraint *c, const mdl_chat *chat)
{
    const char *only = mdl_chat_forced_name(chat);
    bool any = false;
    sl_buf_putc(&c->tools, '[');
    for (size_t i = 0; i < mdl_chat_tool_count(chat); i++) {
        if (only && strcmp(only, mdl_chat_tool_name(chat, i)) != 0)
            continue;
        if (any)
            sl_buf_putc(&c->tools, ',');
        sl_json_write(&c->tools, mdl_chat_tool(chat, i));
        any = true;
    }
    sl_buf_putc(&c->tools, ']');
}

static sl_status check_size(const sl_buf *text, const char *field, sl_err *err)
{
    if (text->size <= MDL_CONSTRAINT_BYTES_MAX)
        return sl_ok();
    return sl_fail(err, SL_TOO_LARGE, "%s: %zu bytes, at most %zu", field, text->size,
                   MDL_CONSTRAINT_BYTES_MAX);
}

sl_status mdl_constraint_parse(const sl_json *request, const mdl_chat *chat,
                               mdl_constraint *constraint, sl_err *err)
{
    SL_TRY(read_format(constraint, request, err));
    SL_TRY(read_structured(constraint, request, err));
    SL_TRY(read_guided(constraint, request, err));
    if (chat)
        read_calls(constraint, chat);
    if (!mdl_constraint_is_set(constraint))
        return sl_ok();
    if (chat && mdl_chat_continues(chat) && constraint->kind != MDL_CONSTRAINT_TEXT)
        return sl_fail(err, SL_UNSUPPORTED,
                       "%s: together with an assistant message to be continued",
                       constraint->field ? constraint->field : "tool_choice");
    constraint->reasoning = chat && mdl_chat_reasoning_open(chat);
    if (constraint->calls != MDL_CALLS_NONE) {
        constraint->one_call = mdl_chat_one_call(chat);
        write_tools(constraint, chat);
        SL_TRY(check_size(&constraint->tools, "tools", err));
    }
    return check_size(&constraint->text, constraint->field ? constraint->field : "tools", err);
}

/* ---- content ---- */

static const char *field_of(const mdl_constraint *c)
{
    return c->field ? c->field : "constraint";
}

static const char *text_of(const sl_buf *buf)
{
    return buf->data ? buf->data : "";
}

static sl_status schema_node(const mdl_constraint *c, mdl_grammar *g, mdl_node *out_node,
                             sl_err *err)
{
    mdl_schema_options options = {.path = field_of(c), .strict = c->strict};
    sl_json_doc *doc = NULL;
    sl_status status = sl_json_parse(text_of(&c->text), c->text.size, NULL, &doc, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "%s: is not JSON", field_of(c));
    status = mdl_schema_compile(g, sl_json_root(doc), &options, out_node, err);
    sl_json_doc_destroy(doc);
    return status;
}

static sl_status choice_words(const mdl_constraint *c, const sl_json *list, mdl_grammar *g,
                              mdl_node *out_node, sl_err *err)
{
    size_t count = sl_json_count(list);
    if (sl_json_typeof(list) != SL_JSON_ARRAY || count == 0 || count > MDL_CHOICES_MAX)
        return sl_fail(err, SL_INVALID, "%s: must be an array of 1 to %u strings", field_of(c),
                       MDL_CHOICES_MAX);
    mdl_word *words = sl_alloc(count, sizeof(*words), "choices");
    sl_status status = sl_ok();
    for (size_t i = 0; i < count && sl_is_ok(status); i++) {
        words[i].data = sl_json_string(sl_json_at(list, i), &words[i].size);
        if (!words[i].data || words[i].size == 0)
            status = sl_fail(err, SL_INVALID, "%s[%zu]: must be a string that is not empty",
                             field_of(c), i);
    }
    if (sl_is_ok(status))
        *out_node = mdl_grammar_words(g, words, count);
    sl_free(words);
    return status;
}

static sl_status choice_node(const mdl_constraint *c, mdl_grammar *g, mdl_node *out_node,
                             sl_err *err)
{
    sl_json_doc *doc = NULL;
    sl_status status = sl_json_parse(text_of(&c->text), c->text.size, NULL, &doc, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "%s: is not JSON", field_of(c));
    status = choice_words(c, sl_json_root(doc), g, out_node, err);
    sl_json_doc_destroy(doc);
    return status;
}

/* What a text that is something else must not hold: the parser of answers knows markers by their
 * text. */
static const char *const MARKS[] = {"</think>", "\uff5cDSML\uff5c"};

static sl_status content_node(const mdl_constraint *c, mdl_grammar *g, mdl_node *out_node,
                              sl_err *err)
{
    sl_status status;
    switch (c->kind) {
    case MDL_CONSTRAINT_JSON_SCHEMA:
        return schema_node(c, g, out_node, err);
    case MDL_CONSTRAINT_JSON_OBJECT:
        *out_node = mdl_schema_any_object(g);
        return sl_ok();
    case MDL_CONSTRAINT_REGEX:
        status = mdl_regex_compile(g, text_of(&c->text), c->text.size, 0, out_node, err);
        return sl_is_ok(status) ? status : sl_wrap(err, status, "%s", field_of(c));
    case MDL_CONSTRAINT_CHOICE:
        return choice_node(c, g, out_node, err);
    case MDL_CONSTRAINT_TEXT:
        return mdl_grammar_unmarked(g, MARKS + 1, 1, out_node, err);
    default:
        *out_node = MDL_NODE_NONE;
        return sl_ok();
    }
}

/* ---- calls ---- */

/* head, the symbol, tail. */
static mdl_node tag(mdl_grammar *g, const char *head, const char *tail)
{
    mdl_node end =
        mdl_grammar_then(g, mdl_grammar_symbol(g, MDL_SYMBOL_DSML), mdl_grammar_text(g, tail));
    return mdl_grammar_then(g, mdl_grammar_text(g, head), end);
}

/* Parameters as the model writes them, but well-formed: a tag each line, names without what would
 * end them. */
static sl_status free_parameters(mdl_grammar *g, mdl_node *out_node, sl_err *err)
{
    static const struct {
        uint32_t first, last;
    } OF_NAMES[] = {{0x20, 0x21}, {0x23, 0x3b}, {0x3d, 0x3d}, {0x3f, 0xff5b}, {0xff5d, 0x10ffff}};
    mdl_node name = MDL_NODE_NONE, value;
    SL_TRY(mdl_grammar_unmarked(g, MARKS + 1, 1, &value, err));
    for (size_t i = 0; i < sizeof(OF_NAMES) / sizeof(OF_NAMES[0]); i++)
        name = mdl_grammar_or(g, name,
                              mdl_grammar_code_points(g, OF_NAMES[i].first, OF_NAMES[i].last));
    name = mdl_grammar_repeat(g, mdl_grammar_settle(g, name), 1, MDL_PARAMETER_NAME_MAX / 4);
    mdl_node kind = mdl_grammar_or(g, mdl_grammar_text(g, "true"), mdl_grammar_text(g, "false"));
    mdl_node one = mdl_grammar_then(g, value, tag(g, "</", "parameter>"));
    one = mdl_grammar_then(g, mdl_grammar_text(g, "\">"), one);
    one = mdl_grammar_then(g, mdl_grammar_text(g, "\" string=\""), mdl_grammar_then(g, kind, one));
    one = mdl_grammar_then(g, tag(g, "<", "parameter name=\""), mdl_grammar_then(g, name, one));
    mdl_node more = mdl_grammar_then(g, mdl_grammar_text(g, "\n"), one);
    more = mdl_grammar_repeat(g, more, 0, MDL_REPEAT_ANY);
    *out_node = mdl_grammar_optional(g, mdl_grammar_then(g, one, more));
    return sl_ok();
}

/* free: the parameters of functions whose schema does not count; NONE: every schema does. */
static sl_status call_node(const sl_json *function, size_t index, mdl_node free, mdl_grammar *g,
                           mdl_node *out_node, sl_err *err)
{
    char path[64];
    bool strict = is_strict(function);
    size_t size = 0;
    const char *name = sl_json_string(sl_json_get(function, "name"), &size);
    snprintf(path, sizeof(path), "tools[%zu].function.parameters", index);
    if (!name || size == 0)
        return sl_fail(err, SL_INVALID, "tools[%zu].function.name: is missing", index);
    mdl_schema_options options = {.path = path, .strict = strict};
    if (strict || free == MDL_NODE_NONE)
        SL_TRY(mdl_schema_parameters(g, given(function, "parameters"), &options, &free, err));
    mdl_node out = mdl_grammar_then(g, free, tag(g, "\n</", "invoke>\n"));
    out = mdl_grammar_then(g, mdl_grammar_text(g, "\">\n"), out);
    *out_node = mdl_grammar_then(g, mdl_grammar_literal(g, name, size), out);
    return sl_ok();
}

static sl_status calls_of_tools(const mdl_constraint *c, const sl_json *tools, mdl_grammar *g,
                                mdl_node *out_node, sl_err *err)
{
    mdl_node any = MDL_NODE_NONE, free = MDL_NODE_NONE;
    if (c->kind == MDL_CONSTRAINT_TEXT)
        SL_TRY(free_parameters(g, &free, err));
    for (size_t i = sl_json_count(tools); i-- > 0;) {
        mdl_node one = MDL_NODE_NONE;
        SL_TRY(call_node(sl_json_at(tools, i), i, free, g, &one, err));
        any = mdl_grammar_or(g, one, any);
    }
    if (any == MDL_NODE_NONE)
        return sl_fail(err, SL_INVALID, "tools: there is no function to call");
    any = mdl_grammar_then(g, tag(g, "<", "invoke name=\""), any);
    any = mdl_grammar_repeat(g, any, 1, c->one_call ? 1 : MDL_CALLS_MAX);
    any = mdl_grammar_then(g, any, tag(g, "</", "function_calls>"));
    *out_node = mdl_grammar_then(g, tag(g, "\n\n<", "function_calls>\n"), any);
    return sl_ok();
}

static sl_status calls_node(const mdl_constraint *c, mdl_grammar *g, mdl_node *out_node,
                            sl_err *err)
{
    sl_json_doc *doc = NULL;
    if (c->calls == MDL_CALLS_NONE) {
        *out_node = MDL_NODE_NONE;
        return sl_ok();
    }
    sl_status status = sl_json_parse(text_of(&c->tools), c->tools.size, NULL, &doc, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "tools: is not JSON");
    status = calls_of_tools(c, sl_json_root(doc), g, out_node, err);
    sl_json_doc_destroy(doc);
    return status;
}

/* ---- the whole answer ---- */

/* Reasoning ends at its token, never at the same text from other tokens; nor may calls begin. */
static sl_status reasoning_node(mdl_grammar *g, mdl_node *out_node, sl_err *err)
{
    mdl_node text;
    SL_TRY(mdl_grammar_unmarked(g, MARKS, 2, &text, err));
    *out_node = mdl_grammar_then(g, text, mdl_grammar_symbol(g, MDL_SYMBOL_END_THINK));
    return sl_ok();
}

static sl_status answer_node(const mdl_constraint *c, mdl_grammar *g, mdl_node *out_node,
                             sl_err *err)
{
    mdl_node content = MDL_NODE_NONE, calls = MDL_NODE_NONE, reasoning = MDL_NODE_EMPTY;
    if (c->calls != MDL_CALLS_REQUIRED)
        SL_TRY(content_node(c, g, &content, err));
    SL_TRY(calls_node(c, g, &calls, err));
    if (c->reasoning)
        SL_TRY(reasoning_node(g, &reasoning, err));
    mdl_node answer = c->kind == MDL_CONSTRAINT_TEXT && calls != MDL_NODE_NONE
                          ? mdl_grammar_then(g, content, mdl_grammar_optional(g, calls))
                          : mdl_grammar_or(g, content, calls);
    *out_node = mdl_grammar_then(g, reasoning, answer);
    return sl_ok();
}

static sl_status check_start(const mdl_grammar *g, sl_err *err)
{
    mdl_matcher *matcher = mdl_matcher_create(g, START_STATES);
    bool full = mdl_matcher_start(matcher) == MDL_STATE_FULL;
    mdl_matcher_destroy(matcher);
    return full ? sl_fail(err, SL_TOO_LARGE, "too many alternatives at its start") : sl_ok();
}

sl_status mdl_constraint_compile(const mdl_constraint *constraint, mdl_grammar **out_grammar,
                                 sl_err *err)
{
    mdl_node root;
    sl_err inner = {0};
    mdl_grammar *g = mdl_grammar_create();
    sl_assert(mdl_constraint_is_set(constraint));
    sl_status status = answer_node(constraint, g, &root, err);
    if (sl_is_ok(status)) {
        status = mdl_grammar_finish(g, root, &inner);
        if (sl_is_ok(status))
            status = check_start(g, &inner);
        if (!sl_is_ok(status))
            status = sl_fail(err, status.code, "%s: %s",
                             constraint->field ? constraint->field : "tools", inner.text);
    }
    if (sl_is_ok(status))
        *out_grammar = g;
    else
        mdl_grammar_destroy(g);
    return status;
}
