/* The schema compiler: see json_schema.h. Recursion follows the schema and is bounded; references
 * become rules, each compiled once. Any thread; no I/O. */
#include "model/json_schema.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/json_schema_parts.h"
#include "model/matcher.h"

#define VALUES_MAX 8192u

/* The compiler with a grammar of its own, for what is asked about and not kept. */
static mdl_schema_compiler side_compiler(const mdl_schema_compiler *c)
{
    mdl_schema_compiler side = *c;
    side.grammar = mdl_grammar_create();
    side.rules = NULL;
    side.rule_count = side.rule_capacity = 0;
    side.space = side.text = side.any = MDL_NODE_NONE;
    side.raw = false;
    return side;
}

static void side_fini(mdl_schema_compiler *side, mdl_schema_compiler *c)
{
    c->alternatives = side->alternatives;
    sl_free(side->rules);
    mdl_grammar_destroy(side->grammar);
}

/* ---- objects ---- */

/* Which names members may have. */
static sl_status compile_names(mdl_schema_compiler *c, mdl_schema_facts *f)
{
    sl_err inner = {0};
    mdl_node node = MDL_NODE_NONE;
    if (f->names.count == 0 || f->names_dfa)
        return sl_ok();
    mdl_schema_compiler side = side_compiler(c);
    size_t before = mdl_schema_enter(&side, "propertyNames");
    sl_status status = mdl_schema_value(&side, &f->names, MDL_JSON_STRING, &node);
    if (sl_is_ok(status) && node != MDL_NODE_NONE) {
        status = mdl_grammar_finish(side.grammar, node, &inner);
        if (sl_is_ok(status))
            status = mdl_dfa_create(side.grammar, &f->names_dfa, &inner);
        mdl_grammar_count_work(c->grammar, f->names_dfa);
        if (!sl_is_ok(status))
            status = mdl_schema_fail(&side, status.code, "", inner.text);
    }
    mdl_schema_leave(&side, before);
    side_fini(&side, c);
    return status;
}

/* The property's schemas, those of patterns that match its name among them; *out_closed: a closed
 * schema leaves it out. */
static sl_status property_schemas(mdl_schema_compiler *c, mdl_schema_facts *f,
                                  const mdl_schema_property *p, mdl_schema_all *all,
                                  bool *out_closed)
{
    bool matched = false;
    *all = p->all;
    for (size_t i = 0; i < sl_json_count(f->key_patterns); i++) {
        const mdl_schema_item item = {.schema = sl_json_at(f->key_patterns, i)};
        bool matches = false;
        SL_TRY(mdl_json_key_matches(c, f, i, p, &matches));
        if (matches && !mdl_schema_add(all, &item))
            return mdl_schema_fail(c, SL_TOO_LARGE, "patternProperties", "too many for one name");
        matched |= matches;
    }
    const mdl_schema_item additional = {.schema = f->additional};
    if (!p->declared && !matched && f->additional && !mdl_schema_add(all, &additional))
        return mdl_schema_fail(c, SL_TOO_LARGE, "additionalProperties", "too many for one name");
    *out_closed = p->forbidden || !mdl_json_name_fits(f, p);
    if (*out_closed)
        return sl_ok();
    for (uint32_t i = 0; i < f->closed_count; i++) {
        const sl_json *closed = f->closed[i];
        bool known = sl_json_get(sl_json_get(closed, "properties"), p->name) ||
                     (matched && sl_json_get(closed, "patternProperties") == f->key_patterns);
        *out_closed |= !known;
    }
    return sl_ok();
}

/* Key and value; NONE: the property cannot be there. */
static sl_status property_member(mdl_schema_compiler *c, mdl_schema_facts *f,
                                 const mdl_schema_property *p, mdl_node *out_node)
{
    mdl_schema_all all;
    mdl_node value = MDL_NODE_NONE;
    char name[80];
    bool closed = false;
    SL_TRY(property_schemas(c, f, p, &all, &closed));
    if (closed && p->required && !p->forbidden && mdl_json_name_fits(f, p))
        return mdl_schema_fail(c, SL_INVALID, "required",
                               "names a property that additionalProperties forbids");
    snprintf(name, sizeof(name), "properties.%.*s", (int)(p->name_size < 64 ? p->name_size : 64),
             p->name);
    size_t before = mdl_schema_enter(c, name);
    if (!closed)
        SL_TRY(mdl_schema_value(c, &all, MDL_JSON_ANY, &value));
    mdl_schema_leave(c, before);
    *out_node = mdl_grammar_then(c->grammar, mdl_json_key(c, p->name, p->name_size), value);
    return sl_ok();
}

/* One member that is no property: of a pattern, or any other; NONE: there is none. */
static sl_status other_member(mdl_schema_compiler *c, mdl_schema_facts *f, mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    mdl_schema_all all = {.count = 0};
    mdl_node key = MDL_NODE_NONE, value = MDL_NODE_NONE, out = MDL_NODE_NONE;
    bool others = f->closed_count == 0 &&
                  (f->additional || (f->property_count == 0 && !f->key_patterns && !c->strict));
    for (size_t i = 0; i < sl_json_count(f->key_patterns); i++) {
        mdl_schema_all one = mdl_schema_one(sl_json_at(f->key_patterns, i));
        size_t before = mdl_schema_enter_index(c, "patternProperties", i);
        SL_TRY(mdl_schema_value(c, &one, MDL_JSON_ANY, &value));
        mdl_schema_leave(c, before);
        SL_TRY(mdl_json_other_key(c, f, i, &key));
        out = mdl_grammar_or(g, mdl_grammar_then(g, key, value), out);
    }
    if (others) {
        if (f->additional)
            all = mdl_schema_one(f->additional);
        SL_TRY(mdl_json_other_key(c, f, MDL_KEY_OTHER, &key));
        size_t before = mdl_schema_enter(c, "additionalProperties");
        SL_TRY(mdl_schema_value(c, &all, MDL_JSON_ANY, &value));
        mdl_schema_leave(c, before);
        out = mdl_grammar_or(g, mdl_grammar_then(g, key, value), out);
    }
    *out_node = out;
    return sl_ok();
}

/* Members from the last to the first: at[k] is what may follow k members. Where only "none yet"
 * matters, k stops at 1. Empty is not among what follows none. */
typedef struct members {
    mdl_node *at;
    uint32_t levels;
    bool counted; /* k is exact */
} members;

/* What may stand behind the properties. Keys may repeat, so only one other counts for sure. */
static mdl_node members_tail(mdl_schema_compiler *c, const mdl_schema_facts *f, const members *m,
                             mdl_node other, uint32_t k)
{
    mdl_grammar *g = c->grammar;
    uint32_t least = f->size_min > k ? f->size_min - k : 0, most = MDL_REPEAT_ANY;
    uint32_t before = m->counted ? k : (uint32_t)f->property_count;
    if (f->size_max != MDL_SCHEMA_COUNT_ANY)
        most = f->size_max > before ? f->size_max - before : 0;
    if (other == MDL_NODE_NONE || most == 0)
        return k > 0 && least == 0 ? MDL_NODE_EMPTY : MDL_NODE_NONE;
    if (least > 1)
        return MDL_NODE_NONE;
    mdl_node behind = mdl_grammar_then(g, mdl_json_comma(c), other);
    if (k > 0)
        return mdl_grammar_repeat(g, behind, least, most);
    most = most == MDL_REPEAT_ANY ? most : most - 1;
    return mdl_grammar_then(g, other, mdl_grammar_repeat(g, behind, 0, most));
}

static void members_prepend(mdl_schema_compiler *c, members *m, mdl_node member, bool required)
{
    mdl_grammar *g = c->grammar;
    for (uint32_t k = 0; k <= m->levels; k++) {
        mdl_node with = MDL_NODE_NONE;
        if (k < m->levels || !m->counted)
            with = mdl_grammar_then(g, member, m->at[k < m->levels ? k + 1 : k]);
        if (k > 0)
            with = mdl_grammar_then(g, mdl_json_comma(c), with);
        m->at[k] = mdl_grammar_or(g, with, required ? MDL_NODE_NONE : m->at[k]);
    }
}

static sl_status members_build(mdl_schema_compiler *c, mdl_schema_facts *f, members *m)
{
    mdl_node other = MDL_NODE_NONE, member = MDL_NODE_NONE;
    SL_TRY(other_member(c, f, &other));
    for (uint32_t k = 0; k <= m->levels; k++)
        m->at[k] = members_tail(c, f, m, other, k);
    for (size_t i = f->property_count; i-- > 0;) {
        SL_TRY(property_member(c, f, &f->properties[i], &member));
        members_prepend(c, m, member, f->properties[i].required);
    }
    return sl_ok();
}

static sl_status compile_object(mdl_schema_compiler *c, mdl_schema_facts *f, mdl_node *out_node)
{
    SL_TRY(compile_names(c, f));
    uint32_t count = (uint32_t)f->property_count;
    bool may_be_empty = f->size_min == 0;
    members m = {.levels = 1};
    for (size_t i = 0; i < count; i++)
        may_be_empty &= !f->properties[i].required;
    m.counted = f->size_min > 1 || f->size_max < count;
    if (m.counted)
        m.levels = f->size_max < count ? f->size_max : count;
    m.at = sl_alloc(m.levels + 1, sizeof(*m.at), "schema members");
    sl_status status = members_build(c, f, &m);
    if (sl_is_ok(status))
        *out_node = mdl_json_brackets(c, "{}", m.at[0], may_be_empty);
    sl_free(m.at);
    return status;
}

/* ---- constants ---- */

static sl_status compile_facts(mdl_schema_compiler *c, mdl_schema_facts *f, unsigned wanted,
                               mdl_node *out_node);

bool mdl_schema_is_constrained(const mdl_schema_facts *f)
{
    return f->property_count || f->closed_count || f->additional || f->key_patterns ||
           f->size_min || f->size_max != MDL_SCHEMA_COUNT_ANY || f->items.count || f->items_none ||
           f->prefix_items || f->items_min || f->pattern_count || f->format ||
           f->items_max != MDL_SCHEMA_COUNT_ANY || f->length_min || f->bounds.lower ||
           f->length_max != MDL_SCHEMA_COUNT_ANY || f->bounds.upper || f->multiple ||
           f->names.count || f->unique || f->contains || f->not_pattern_count;
}

/* Drops the values that the other keywords do not allow: their grammar is asked. */
static sl_status filter_values(mdl_schema_compiler *c, mdl_schema_facts *f, unsigned kinds,
                               const sl_json **values, size_t *count)
{
    mdl_schema_compiler others = side_compiler(c);
    uint32_t value_count = f->value_count;
    mdl_node node = MDL_NODE_NONE;
    size_t kept = 0;
    f->value_count = 0;
    sl_status status = compile_facts(&others, f, kinds, &node);
    f->value_count = value_count;
    sl_err inner = {0};
    if (sl_is_ok(status) && sl_is_ok(mdl_grammar_finish(others.grammar, node, &inner))) {
        mdl_matcher *matcher = mdl_matcher_create(others.grammar, 0);
        for (size_t i = 0; i < *count; i++)
            if (mdl_json_is_text_of(matcher, values[i]))
                values[kept++] = values[i];
        mdl_matcher_destroy(matcher);
    } else if (sl_is_ok(status) && inner.code != SL_INVALID) {
        status = mdl_schema_fail(c, inner.code, "enum", inner.text);
    }
    *count = kept;
    side_fini(&others, c);
    return status;
}

/* Scalars share their prefixes; objects and arrays stand for themselves. */
static sl_status compile_values(mdl_schema_compiler *c, mdl_schema_facts *f, unsigned kinds,
                                mdl_node *out_node)
{
    size_t max = f->value_is_list[0] ? sl_json_count(f->values[0]) : 1;
    if (max > VALUES_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, "enum", "more than 8192 values");
    const sl_json **values = sl_alloc(max, sizeof(*values), "schema values");
    mdl_word *words = sl_alloc(max, sizeof(*words), "schema values");
    sl_buf *texts = sl_alloc(max, sizeof(*texts), "schema values");
    size_t count = mdl_schema_values(f, kinds, values, max), word_count = 0;
    mdl_node out = MDL_NODE_NONE;
    sl_status status =
        mdl_schema_is_constrained(f) ? filter_values(c, f, kinds, values, &count) : sl_ok();
    count = sl_is_ok(status) ? count : 0;
    for (size_t i = 0; i < count; i++) {
        sl_buf_init(&texts[i], 0);
        if (mdl_schema_kind_of(values[i]) & (MDL_JSON_OBJECT | MDL_JSON_ARRAY)) {
            out = mdl_grammar_or(c->grammar, mdl_json_value(c, values[i]), out);
            continue;
        }
        if (c->raw) {
            size_t size;
            const char *text = sl_json_string(values[i], &size);
            sl_buf_append(&texts[i], text, size);
        } else {
            sl_json_write(&texts[i], values[i]);
        }
        words[word_count++] = (mdl_word){texts[i].data, texts[i].size};
    }
    out = mdl_grammar_or(c->grammar, mdl_grammar_words(c->grammar, words, word_count), out);
    for (size_t i = 0; i < count; i++)
        sl_buf_fini(&texts[i]);
    sl_free(values);
    sl_free(words);
    sl_free(texts);
    *out_node = out; /* NONE: none of the wanted kinds */
    return status;
}

/* ---- one value ---- */

static sl_status compile_number(mdl_schema_compiler *c, const mdl_schema_facts *f, bool integer,
                                mdl_node *out_node)
{
    sl_err inner = {0};
    if (!integer && mdl_schema_without_kind(f, MDL_JSON_NUMBER | MDL_JSON_INTEGER))
        return mdl_schema_fail(c, SL_UNSUPPORTED, "not",
                               "numbers can be left out of integers only (1 is also 1.0)");
    sl_status status = mdl_json_number_of(c->grammar, integer, f, out_node, &inner);
    if (sl_is_ok(status))
        return status;
    const char *keyword = f->multiple       ? "multipleOf"
                          : f->bounds.lower ? "minimum"
                          : f->bounds.upper ? "maximum"
                                            : "not";
    return mdl_schema_fail(c, status.code, keyword, inner.text);
}

/* true, false or null, but for those that are left out. */
static mdl_node compile_word(mdl_schema_compiler *c, const mdl_schema_facts *f, sl_json_type type)
{
    for (uint32_t k = 0; k < f->without_count; k++) {
        const sl_json *list = f->without[k];
        size_t count = f->without_is_list[k] ? sl_json_count(list) : 1;
        for (size_t i = 0; i < count; i++) {
            const sl_json *value = f->without_is_list[k] ? sl_json_at(list, i) : list;
            if (sl_json_typeof(value) == type)
                return MDL_NODE_NONE;
        }
    }
    return mdl_grammar_text(c->grammar, type == SL_JSON_TRUE    ? "true"
                                        : type == SL_JSON_FALSE ? "false"
                                                                : "null");
}

static sl_status compile_kind(mdl_schema_compiler *c, mdl_schema_facts *f, unsigned kind,
                              unsigned kinds, mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    switch (kind) {
    case MDL_JSON_OBJECT:
        return compile_object(c, f, out_node);
    case MDL_JSON_ARRAY:
        return mdl_schema_array(c, f, out_node);
    case MDL_JSON_STRING:
        return mdl_json_string(c, f, out_node);
    case MDL_JSON_INTEGER: /* numbers are all of them */
        if (kinds & MDL_JSON_NUMBER)
            return sl_ok();
        return compile_number(c, f, true, out_node);
    case MDL_JSON_NUMBER:
        return compile_number(c, f, !(kinds & MDL_JSON_INTEGER), out_node);
    case MDL_JSON_BOOLEAN:
        *out_node =
            mdl_grammar_or(g, compile_word(c, f, SL_JSON_TRUE), compile_word(c, f, SL_JSON_FALSE));
        return sl_ok();
    default:
        *out_node = compile_word(c, f, SL_JSON_NULL);
        return sl_ok();
    }
}

static sl_status compile_facts(mdl_schema_compiler *c, mdl_schema_facts *f, unsigned wanted,
                               mdl_node *out_node)
{
    unsigned kinds = mdl_schema_kinds(f) & wanted;
    mdl_node out = MDL_NODE_NONE;
    if (f->value_count > 0)
        return compile_values(c, f, kinds, out_node);
    if (mdl_schema_without_kind(f, kinds & (MDL_JSON_OBJECT | MDL_JSON_ARRAY)))
        return mdl_schema_fail(c, SL_UNSUPPORTED, "not",
                               "objects and arrays cannot be left out by their value");
    for (unsigned kind = 1; kind < MDL_JSON_ANY; kind <<= 1) {
        mdl_node node = MDL_NODE_NONE;
        if (!(kinds & kind))
            continue;
        SL_TRY(compile_kind(c, f, kind, kinds, &node));
        out = mdl_grammar_or(c->grammar, node, out);
    }
    *out_node = out;
    return sl_ok();
}

/* ---- references ---- */

static sl_status compile_reference(mdl_schema_compiler *c, const sl_json *reference,
                                   mdl_node *out_node)
{
    const sl_json *target;
    SL_TRY(mdl_schema_resolve(c, reference, &target));
    for (size_t i = 0; i < c->rule_count; i++) {
        if (c->rules[i].schema == target) {
            *out_node = c->rules[i].rule;
            return sl_ok();
        }
    }
    if (c->rule_count == c->rule_capacity) {
        c->rule_capacity = c->rule_capacity ? 2 * c->rule_capacity : 16;
        c->rules = sl_realloc(c->rules, c->rule_capacity, sizeof(c->rules[0]), "schema rules");
    }
    mdl_node rule = mdl_grammar_rule(c->grammar), body;
    c->rules[c->rule_count++] = (mdl_schema_rule){target, rule};
    mdl_schema_all all = mdl_schema_one(target);
    size_t before = c->path_size;
    char text[100];
    snprintf(text, sizeof(text), "%.96s", sl_json_string(reference, NULL));
    mdl_schema_enter(c, text);
    SL_TRY(mdl_schema_value(c, &all, MDL_JSON_ANY, &body));
    mdl_schema_leave(c, before);
    mdl_grammar_define(c->grammar, rule, body);
    *out_node = rule;
    return sl_ok();
}

/* ---- one value ---- */

static sl_status check_schemas(const mdl_schema_compiler *c, const mdl_schema_all *all)
{
    for (uint32_t i = 0; i < all->count; i++) {
        sl_json_type type = sl_json_typeof(all->items[i].schema);
        if (type != SL_JSON_OBJECT && type != SL_JSON_TRUE && type != SL_JSON_FALSE)
            return mdl_schema_fail(c, SL_INVALID, "", "must be a schema: an object, true or false");
    }
    return sl_ok();
}

static bool is_false(const mdl_schema_all *all)
{
    for (uint32_t i = 0; i < all->count; i++)
        if (sl_json_typeof(all->items[i].schema) == SL_JSON_FALSE && !all->items[i].negated)
            return true;
    return false;
}

static sl_status compile_flat(mdl_schema_compiler *c, mdl_schema_all *all, unsigned kinds,
                              mdl_node *out_node)
{
    mdl_schema_facts facts;
    SL_TRY(check_schemas(c, all));
    SL_TRY(mdl_schema_flatten(c, all));
    if (is_false(all) || (kinds & ~all->other_kinds) == 0) {
        *out_node = MDL_NODE_NONE;
        return sl_ok();
    }
    if (all->count == 0 && mdl_schema_is_plain(all) && kinds == MDL_JSON_ANY) {
        *out_node = mdl_json_any(c);
        return sl_ok();
    }
    if (all->count == 1 && mdl_schema_is_plain(all) && mdl_schema_is_reference(&all->items[0])) {
        const sl_json *reference = sl_json_get(all->items[0].schema, "$ref");
        if (kinds == MDL_JSON_ANY)
            return compile_reference(c, reference, out_node);
        const sl_json *target;
        SL_TRY(mdl_schema_resolve(c, reference, &target));
        mdl_schema_all inner = mdl_schema_one(target);
        return mdl_schema_value(c, &inner, kinds, out_node);
    }
    bool found;
    SL_TRY(mdl_schema_group(c, all, kinds, &found, out_node));
    if (found)
        return sl_ok();
    sl_status status = mdl_schema_collect(c, all, &facts);
    if (sl_is_ok(status))
        status = compile_facts(c, &facts, kinds, out_node);
    mdl_schema_facts_fini(&facts);
    return status;
}

sl_status mdl_schema_value(mdl_schema_compiler *c, const mdl_schema_all *all, unsigned kinds,
                           mdl_node *out_node)
{
    mdl_schema_all flat = *all;
    if (++c->depth > MDL_SCHEMA_DEPTH_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, "", "schemas nested deeper than 64");
    if (mdl_grammar_is_over(c->grammar))
        return mdl_schema_fail(c, SL_TOO_LARGE, "",
                               "the schema needs too large a grammar (docs/API.md has the bounds)");
    SL_TRY(compile_flat(c, &flat, kinds, out_node));
    c->depth--;
    return sl_ok();
}

/* ---- entry ---- */

static mdl_schema_compiler compiler(mdl_grammar *grammar, const sl_json *root,
                                    const mdl_schema_options *options, sl_err *err)
{
    mdl_schema_compiler c = {
        .grammar = grammar,
        .root = root,
        .strict = options && options->strict,
        .space = MDL_NODE_NONE,
        .text = MDL_NODE_NONE,
        .any = MDL_NODE_NONE,
        .err = err,
    };
    if (options && options->path)
        mdl_schema_enter(&c, options->path);
    return c;
}

sl_status mdl_schema_compile(mdl_grammar *grammar, const sl_json *schema,
                             const mdl_schema_options *options, mdl_node *out_node, sl_err *err)
{
    mdl_schema_compiler c = compiler(grammar, schema, options, err);
    mdl_schema_all all = mdl_schema_one(schema);
    mdl_node node;
    sl_status status = mdl_schema_value(&c, &all, MDL_JSON_ANY, &node);
    sl_free(c.rules);
    if (sl_is_ok(status) && node == MDL_NODE_NONE)
        return mdl_schema_fail(&c, SL_INVALID, "", "no value satisfies the schema");
    if (sl_is_ok(status))
        *out_node = node;
    return status;
}

mdl_node mdl_schema_any_object(mdl_grammar *grammar)
{
    mdl_schema_compiler c = compiler(grammar, NULL, NULL, NULL);
    return mdl_json_any_object(&c);
}

/* ---- the parameters of a call ---- */

/* One tag; a value that may be a string or not can be written either way. */
static sl_status parameter(mdl_schema_compiler *c, const mdl_schema_property *p, mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    mdl_node text, other, out;
    c->raw = true;
    SL_TRY(mdl_schema_value(c, &p->all, MDL_JSON_STRING, &text));
    c->raw = false;
    SL_TRY(mdl_schema_value(c, &p->all, MDL_JSON_ANY & ~(unsigned)MDL_JSON_STRING, &other));
    text = mdl_grammar_then(g, mdl_grammar_text(g, "true\">"), text);
    other = mdl_grammar_then(g, mdl_grammar_text(g, "false\">"), other);
    mdl_node end = mdl_grammar_then(g, mdl_grammar_symbol(g, MDL_SYMBOL_DSML),
                                    mdl_grammar_text(g, "parameter>"));
    end = mdl_grammar_then(g, mdl_grammar_text(g, "</"), end);
    out = mdl_grammar_then(g, mdl_grammar_or(g, text, other), end);
    out = mdl_grammar_then(g, mdl_grammar_text(g, "\" string=\""), out);
    out = mdl_grammar_then(g, mdl_grammar_literal(g, p->name, p->name_size), out);
    out = mdl_grammar_then(g, mdl_grammar_text(g, "parameter name=\""), out);
    out = mdl_grammar_then(g, mdl_grammar_symbol(g, MDL_SYMBOL_DSML), out);
    *out_node = mdl_grammar_then(g, mdl_grammar_text(g, "<"), out);
    return sl_ok();
}

static sl_status parameters(mdl_schema_compiler *c, const mdl_schema_facts *f, mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    mdl_node first = MDL_NODE_EMPTY, more = MDL_NODE_EMPTY;
    for (size_t i = f->property_count; i-- > 0;) {
        const mdl_schema_property *p = &f->properties[i];
        mdl_node one;
        if (strpbrk(p->name, "\"<>\n") || p->name_size == 0 || strlen(p->name) != p->name_size)
            return mdl_schema_fail(c, SL_UNSUPPORTED, "properties",
                                   "a parameter's name with \", <, > or a newline");
        char name[80];
        snprintf(name, sizeof(name), "properties.%.64s", p->name);
        size_t before = mdl_schema_enter(c, name);
        SL_TRY(parameter(c, p, &one));
        if (one == MDL_NODE_NONE && p->required)
            return mdl_schema_fail(c, SL_INVALID, "", "no value satisfies the schema");
        mdl_schema_leave(c, before);
        mdl_node with = mdl_grammar_then(g, one, more);
        mdl_node behind = mdl_grammar_then(g, mdl_grammar_text(g, "\n"), with);
        first = mdl_grammar_or(g, with, p->required ? MDL_NODE_NONE : first);
        more = mdl_grammar_or(g, behind, p->required ? MDL_NODE_NONE : more);
    }
    *out_node = first;
    return sl_ok();
}

/* A call writes the properties that the schema names, each or not: what says more of the object
 * than which of them must be there is refused, never ignored. */
static sl_status check_parameters(const mdl_schema_compiler *c, const mdl_schema_facts *f)
{
    size_t required = 0;
    for (size_t i = 0; i < f->property_count; i++)
        required += f->properties[i].required;
    if (!(f->kinds & MDL_JSON_OBJECT))
        return mdl_schema_fail(c, SL_INVALID, "type", "must be object where calls are constrained");
    if (f->value_count > 0 || f->without_count > 0)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "",
                               "enum and const of all parameters where calls are constrained; "
                               "say what each one may be");
    if (f->names.count > 0)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "propertyNames",
                               "cannot be told of parameters; leave out what it forbids");
    if (f->size_min > required)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "minProperties",
                               "cannot be told of parameters; require some by name");
    if (f->size_max < f->property_count)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "maxProperties",
                               "cannot be told of parameters; name fewer");
    return sl_ok();
}

sl_status mdl_schema_parameters(mdl_grammar *grammar, const sl_json *schema,
                                const mdl_schema_options *options, mdl_node *out_node, sl_err *err)
{
    mdl_schema_compiler c = compiler(grammar, schema, options, err);
    mdl_schema_all all = mdl_schema_one(schema);
    mdl_schema_facts facts = {0};
    if (!schema) {
        *out_node = MDL_NODE_EMPTY;
        return sl_ok();
    }
    c.unmarked = true;
    SL_TRY(mdl_schema_flatten(&c, &all));
    if (mdl_schema_has_group(&all) || (all.count == 1 && mdl_schema_is_reference(&all.items[0])))
        return mdl_schema_fail(&c, SL_UNSUPPORTED, "",
                               "must be one object with properties where calls are constrained");
    sl_status status = mdl_schema_collect(&c, &all, &facts);
    if (sl_is_ok(status))
        status = check_parameters(&c, &facts);
    if (sl_is_ok(status))
        status = parameters(&c, &facts, out_node);
    mdl_schema_facts_fini(&facts);
    sl_free(c.rules);
    return status;
}
