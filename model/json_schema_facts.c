/* Reading schemas: references and allOf become one flat list, whose keywords become facts. Every
 * keyword is in the table below or refused. Any thread; no I/O. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/json_schema_parts.h"

/* ---- paths and errors ---- */

static void append_path(mdl_schema_compiler *c, const char *text)
{
    size_t room = sizeof(c->path) - c->path_size;
    int made = snprintf(c->path + c->path_size, room, "%s%s", c->path_size ? "." : "", text);
    c->path_size += (size_t)made < room ? (size_t)made : room - 1;
}

size_t mdl_schema_enter(mdl_schema_compiler *c, const char *name)
{
    size_t before = c->path_size;
    append_path(c, name);
    return before;
}

size_t mdl_schema_enter_index(mdl_schema_compiler *c, const char *name, size_t index)
{
    char text[64];
    snprintf(text, sizeof(text), "%s[%zu]", name, index);
    return mdl_schema_enter(c, text);
}

void mdl_schema_leave(mdl_schema_compiler *c, size_t size)
{
    c->path_size = size;
    c->path[size] = '\0';
}

sl_status mdl_schema_fail(const mdl_schema_compiler *c, sl_code code, const char *keyword,
                          const char *what)
{
    const char *dot = c->path_size > 0 && keyword[0] ? "." : "";
    return sl_fail(c->err, code, "%s%s%s: %s", c->path, dot, keyword, what);
}

bool mdl_schema_add(mdl_schema_all *all, const mdl_schema_item *item)
{
    for (uint32_t i = 0; i < all->count; i++)
        if (all->items[i].schema == item->schema && all->items[i].negated == item->negated &&
            all->items[i].keyword == item->keyword)
            return true; /* twice says no more than once */
    if (all->count == MDL_SCHEMA_ALL_MAX)
        return false;
    all->items[all->count++] = *item;
    return true;
}

static bool all_add(mdl_schema_all *all, const sl_json *schema)
{
    const mdl_schema_item item = {.schema = schema};
    return mdl_schema_add(all, &item);
}

/* ---- the keywords ---- */

typedef sl_status (*keyword_fn)(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                                const char *keyword, const sl_json *value);

static sl_status must_be(const mdl_schema_compiler *c, const char *keyword, const char *what)
{
    return mdl_schema_fail(c, SL_INVALID, keyword, what);
}

static sl_status note(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                      const char *keyword, const sl_json *value)
{
    return sl_ok(); /* says nothing about values */
}

static sl_status kind_bit(const mdl_schema_compiler *c, const sl_json *value, unsigned *out_kind)
{
    static const struct {
        const char *name;
        unsigned kind;
    } KINDS[] = {
        {"object", MDL_JSON_OBJECT},
        {"array", MDL_JSON_ARRAY},
        {"string", MDL_JSON_STRING},
        {"integer", MDL_JSON_INTEGER},
        {"boolean", MDL_JSON_BOOLEAN},
        {"null", MDL_JSON_NULL},
        {"number", MDL_JSON_NUMBER | MDL_JSON_INTEGER},
    };
    const char *name = sl_json_string(value, NULL);
    for (size_t i = 0; name && i < sizeof(KINDS) / sizeof(KINDS[0]); i++) {
        if (strcmp(name, KINDS[i].name) == 0) {
            *out_kind = KINDS[i].kind;
            return sl_ok();
        }
    }
    return must_be(c, "type", "must be object, array, string, number, integer, boolean or null");
}

sl_status mdl_schema_type_kinds(mdl_schema_compiler *c, const sl_json *type, unsigned *out_kinds)
{
    unsigned kinds = 0, kind;
    if (sl_json_typeof(type) != SL_JSON_ARRAY)
        return kind_bit(c, type, out_kinds);
    for (size_t i = 0; i < sl_json_count(type); i++) {
        SL_TRY(kind_bit(c, sl_json_at(type, i), &kind));
        kinds |= kind;
    }
    *out_kinds = kinds;
    return sl_ok();
}

static sl_status read_type(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                           const char *keyword, const sl_json *value)
{
    unsigned kinds = 0;
    SL_TRY(mdl_schema_type_kinds(c, value, &kinds));
    f->kinds &= kinds;
    f->typed = true;
    return sl_ok();
}

static sl_status read_count(mdl_schema_compiler *c, const char *keyword, const sl_json *value,
                            uint32_t *out_count)
{
    int64_t number;
    if (!sl_json_i64(value, &number) || number < 0)
        return must_be(c, keyword, "must be an integer of at least 0");
    if (number > MDL_GRAMMAR_REPEAT_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "must be at most 1048576");
    *out_count = (uint32_t)number;
    return sl_ok();
}

/* minLength, maxLength, minItems, maxItems. */
static sl_status read_extent(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                             const char *keyword, const sl_json *value)
{
    bool items = strstr(keyword, "Items") != NULL;
    uint32_t count = 0, *least = items ? &f->items_min : &f->length_min;
    uint32_t *most = items ? &f->items_max : &f->length_max;
    SL_TRY(read_count(c, keyword, value, &count));
    f->hints |= items ? MDL_JSON_ARRAY : MDL_JSON_STRING;
    if (keyword[1] == 'i')
        *least = count > *least ? count : *least;
    else
        *most = count < *most ? count : *most;
    return sl_ok();
}

static sl_status read_pattern(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                              const char *keyword, const sl_json *value)
{
    if (sl_json_typeof(value) != SL_JSON_STRING)
        return must_be(c, keyword, "must be a string");
    if (f->pattern_count == MDL_SCHEMA_FEW_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword,
                               "more than 4 patterns for one value; leave some out");
    f->patterns[f->pattern_count++] = value;
    f->hints |= MDL_JSON_STRING;
    return sl_ok();
}

static sl_status read_format(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                             const char *keyword, const sl_json *value)
{
    const char *format = sl_json_string(value, NULL);
    if (!format)
        return must_be(c, keyword, "must be a string");
    if (!mdl_json_format_known(format))
        return c->strict
                   ? mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "is no format of the standard")
                   : sl_ok();
    if (f->format && strcmp(f->format, format) != 0)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two formats for one value");
    f->format = format;
    f->hints |= MDL_JSON_STRING;
    return sl_ok();
}

/* minimum, maximum, exclusiveMinimum, exclusiveMaximum: the tightest counts. */
static sl_status read_bound(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                            const char *keyword, const sl_json *value)
{
    const char *text = sl_json_number_text(value);
    bool open = keyword[0] == 'e', lower = strstr(keyword, open ? "Min" : "min") != NULL;
    mdl_json_bounds *b = &f->bounds;
    bool flag;
    if (open && sl_json_bool(value, &flag))
        return sl_ok(); /* draft 4: speaks of minimum or maximum, which reads it */
    if (!open &&
        sl_json_bool(sl_json_get(schema, lower ? "exclusiveMinimum" : "exclusiveMaximum"), &flag))
        open = flag;
    if (!text)
        return must_be(c, keyword, "must be a number");
    f->hints |= MDL_JSON_NUMBER | MDL_JSON_INTEGER;
    const char **side = lower ? &b->lower : &b->upper;
    bool *side_open = lower ? &b->lower_open : &b->upper_open;
    if (*side) {
        bool above = mdl_json_number_above(text, *side), below = mdl_json_number_above(*side, text);
        if (lower ? below : above)
            return sl_ok();
        if (!above && !below)
            open |= *side_open;
    }
    *side = text;
    *side_open = open;
    return sl_ok();
}

static sl_status read_multiple(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                               const char *keyword, const sl_json *value)
{
    int64_t number;
    const char *text = sl_json_number_text(value);
    if (!text || !mdl_json_number_above(text, "0"))
        return must_be(c, keyword, "must be a number above 0");
    if (sl_json_i64(value, &number) && number == 1) { /* integers, as every kind says it */
        f->hints |= MDL_JSON_INTEGER;
        if (f->kinds & MDL_JSON_NUMBER)
            f->kinds &= ~(unsigned)MDL_JSON_NUMBER;
        return sl_ok();
    }
    f->hints |= MDL_JSON_NUMBER | MDL_JSON_INTEGER;
    if (f->multiple && strcmp(f->multiple, text) != 0)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two of them for one value");
    f->multiple = text;
    return sl_ok();
}

static sl_status read_names(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                            const char *keyword, const sl_json *value)
{
    f->hints |= MDL_JSON_OBJECT;
    if (!all_add(&f->names, value))
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many schemas for one value");
    return sl_ok();
}

static sl_status read_unique(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                             const char *keyword, const sl_json *value)
{
    bool unique;
    if (!sl_json_bool(value, &unique))
        return must_be(c, keyword, "must be true or false");
    f->unique |= unique;
    if (unique)
        f->hints |= MDL_JSON_ARRAY;
    return sl_ok();
}

/* contains, and how many of them: minContains and maxContains say nothing alone. */
static sl_status read_contains(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                               const char *keyword, const sl_json *value)
{
    const sl_json *least = sl_json_get(schema, "minContains");
    const sl_json *most = sl_json_get(schema, "maxContains");
    sl_json_type type = sl_json_typeof(value);
    uint32_t count[2] = {1, MDL_SCHEMA_COUNT_ANY};
    if (keyword[0] == 'm')
        return read_count(c, keyword, value, &count[0]);
    if (type != SL_JSON_OBJECT && type != SL_JSON_TRUE && type != SL_JSON_FALSE)
        return must_be(c, keyword, "must be a schema");
    f->hints |= MDL_JSON_ARRAY;
    if (least)
        SL_TRY(read_count(c, "minContains", least, &count[0]));
    if (most)
        SL_TRY(read_count(c, "maxContains", most, &count[1]));
    if (count[0] == 0 && !most)
        return sl_ok(); /* any number will do */
    if (f->contains)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two of them for one value");
    f->contains = value;
    f->contains_min = count[0];
    f->contains_max = count[1];
    return sl_ok();
}

static sl_status read_values(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                             const char *keyword, const sl_json *value)
{
    bool list = keyword[0] == 'e';
    if (list && (sl_json_typeof(value) != SL_JSON_ARRAY || sl_json_count(value) == 0))
        return must_be(c, keyword, "must be an array with at least one value");
    if (f->value_count == MDL_SCHEMA_FEW_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword,
                               "more than 4 enums for one value; leave some out");
    f->value_is_list[f->value_count] = list;
    f->values[f->value_count++] = value;
    return sl_ok();
}

static mdl_schema_property *property_of(mdl_schema_facts *f, const char *name, size_t size)
{
    for (size_t i = 0; i < f->property_count; i++) {
        mdl_schema_property *p = &f->properties[i];
        if (p->name_size == size && memcmp(p->name, name, size) == 0)
            return p;
    }
    if (f->property_count == f->property_capacity) {
        f->property_capacity = f->property_capacity ? 2 * f->property_capacity : 16;
        f->properties = sl_realloc(f->properties, f->property_capacity, sizeof(f->properties[0]),
                                   "schema properties");
    }
    mdl_schema_property *p = &f->properties[f->property_count++];
    memset(p, 0, sizeof(*p));
    p->name = name;
    p->name_size = size;
    return p;
}

static sl_status read_properties(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                                 const char *keyword, const sl_json *value)
{
    if (sl_json_typeof(value) != SL_JSON_OBJECT)
        return must_be(c, keyword, "must be an object");
    if (sl_json_count(value) > 1024)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "more than 1024 properties");
    f->hints |= MDL_JSON_OBJECT;
    for (size_t i = 0; i < sl_json_count(value); i++) {
        size_t size;
        const char *name = sl_json_key(value, i, &size);
        mdl_schema_property *p = property_of(f, name, size);
        p->declared = true;
        if (!all_add(&p->all, sl_json_at(value, i)))
            return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many schemas for one property");
    }
    return sl_ok();
}

static sl_status read_required(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                               const char *keyword, const sl_json *value)
{
    if (sl_json_typeof(value) != SL_JSON_ARRAY || sl_json_count(value) > 1024)
        return must_be(c, keyword, "must be an array of at most 1024 names");
    f->hints |= MDL_JSON_OBJECT;
    for (size_t i = 0; i < sl_json_count(value); i++) {
        size_t size;
        const char *name = sl_json_string(sl_json_at(value, i), &size);
        if (!name)
            return must_be(c, keyword, "must be an array of strings");
        property_of(f, name, size)->required = true;
    }
    return sl_ok();
}

static sl_status read_additional(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                                 const char *keyword, const sl_json *value)
{
    f->hints |= MDL_JSON_OBJECT;
    if (sl_json_typeof(value) == SL_JSON_FALSE) {
        if (f->closed_count == MDL_SCHEMA_FEW_MAX)
            return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many closed schemas together");
        f->closed[f->closed_count++] = schema;
        return sl_ok();
    }
    if (sl_json_typeof(value) != SL_JSON_TRUE && sl_json_typeof(value) != SL_JSON_OBJECT)
        return must_be(c, keyword, "must be a schema");
    if (f->additional && f->additional != value)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two of them for one value");
    f->additional = value;
    return sl_ok();
}

static sl_status read_items(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                            const char *keyword, const sl_json *value)
{
    f->hints |= MDL_JSON_ARRAY;
    bool list = sl_json_typeof(value) == SL_JSON_ARRAY; /* of items: older drafts' prefixItems */
    if (list || strcmp(keyword, "prefixItems") == 0) {
        if (!list || sl_json_count(value) > 1024)
            return must_be(c, keyword, "must be an array of at most 1024 schemas");
        if (f->prefix_items)
            return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two of them for one value");
        f->prefix_items = value;
    } else if (strcmp(keyword, "additionalItems") == 0 &&
               sl_json_typeof(sl_json_get(schema, "items")) != SL_JSON_ARRAY) {
        return sl_ok(); /* says nothing then */
    } else if (sl_json_typeof(value) == SL_JSON_FALSE) {
        f->items_none = true;
    } else if (!all_add(&f->items, value)) {
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many schemas for one value");
    }
    return sl_ok();
}

static sl_status read_size(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                           const char *keyword, const sl_json *value)
{
    uint32_t count = 0;
    SL_TRY(read_count(c, keyword, value, &count));
    f->hints |= MDL_JSON_OBJECT;
    if (keyword[1] == 'i')
        f->size_min = count > f->size_min ? count : f->size_min;
    else
        f->size_max = count < f->size_max ? count : f->size_max;
    return sl_ok();
}

static sl_status read_patterns(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                               const char *keyword, const sl_json *value)
{
    if (sl_json_typeof(value) != SL_JSON_OBJECT)
        return must_be(c, keyword, "must be an object");
    if (sl_json_count(value) == 0)
        return sl_ok();
    if (f->key_patterns && f->key_patterns != value)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "two of them for one value");
    if (sl_json_count(value) > MDL_SCHEMA_FEW_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword,
                               "more than 4 patterns; join those of one schema by |");
    f->key_patterns = value;
    f->hints |= MDL_JSON_OBJECT;
    return sl_ok();
}

/* A keyword of a standard that is not offered. */
static sl_status refuse(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                        const char *keyword, const sl_json *value)
{
    return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "is not supported");
}

static const struct {
    const char *name;
    keyword_fn read;
} KEYWORDS[] = {
    {"type", read_type},
    {"properties", read_properties},
    {"required", read_required},
    {"additionalProperties", read_additional},
    {"items", read_items},
    {"prefixItems", read_items},
    {"minItems", read_extent},
    {"maxItems", read_extent},
    {"minLength", read_extent},
    {"maxLength", read_extent},
    {"pattern", read_pattern},
    {"format", read_format},
    {"minimum", read_bound},
    {"maximum", read_bound},
    {"exclusiveMinimum", read_bound},
    {"exclusiveMaximum", read_bound},
    {"multipleOf", read_multiple},
    {"enum", read_values},
    {"const", read_values},
    {"additionalItems", read_items},
    {"minProperties", read_size},
    {"maxProperties", read_size},
    {"patternProperties", read_patterns},
    {"propertyNames", read_names},
    {"uniqueItems", read_unique},
    {"contains", read_contains},
    {"minContains", read_contains},
    {"maxContains", read_contains},
    /* of some draft, and not offered */
    {"unevaluatedItems", refuse},
    {"unevaluatedProperties", refuse},
    {"$dynamicRef", refuse},
    {"$recursiveRef", refuse},
    {"divisibleBy", refuse},
    {"disallow", refuse},
    {"extends", refuse},
    /* accounted for by flatten and by the groups */
    {"$ref", note},
    {"allOf", note},
    {"anyOf", note},
    {"oneOf", note},
    {"not", note},
    {"if", note},
    {"then", note},
    {"else", note},
    {"dependencies", note},
    {"dependentRequired", note},
    {"dependentSchemas", note},
    /* annotations */
    {"$schema", note},
    {"$id", note},
    {"$comment", note},
    {"$defs", note},
    {"definitions", note},
    {"title", note},
    {"description", note},
    {"default", note},
    {"examples", note},
    {"example", note},
    {"deprecated", note},
    {"readOnly", note},
    {"writeOnly", note},
    {"discriminator", note},
    {"contentMediaType", note},
    {"contentEncoding", note},
};

/* What no standard knows is a note, as the standard says of such keywords. */
static keyword_fn keyword_find(const char *name)
{
    for (size_t i = 0; i < sizeof(KEYWORDS) / sizeof(KEYWORDS[0]); i++)
        if (strcmp(name, KEYWORDS[i].name) == 0)
            return KEYWORDS[i].read;
    return note;
}

static bool is_standard(const char *name)
{
    for (size_t i = 0; i < sizeof(KEYWORDS) / sizeof(KEYWORDS[0]); i++)
        if (strcmp(name, KEYWORDS[i].name) == 0)
            return true;
    return false;
}

/* OpenAI's rules for strict schemas. */
static sl_status check_strict(mdl_schema_compiler *c, const sl_json *schema)
{
    const char *type = sl_json_string(sl_json_get(schema, "type"), NULL);
    const sl_json *properties = sl_json_get(schema, "properties");
    const sl_json *required = sl_json_get(schema, "required");
    if (!c->strict || ((!type || strcmp(type, "object") != 0) && !properties))
        return sl_ok();
    if (sl_json_typeof(sl_json_get(schema, "additionalProperties")) != SL_JSON_FALSE)
        return must_be(c, "additionalProperties", "must be false under strict");
    for (size_t i = 0; i < sl_json_count(properties); i++) {
        const char *name = sl_json_key(properties, i, NULL);
        bool found = false;
        for (size_t k = 0; k < sl_json_count(required) && !found; k++) {
            const char *other = sl_json_string(sl_json_at(required, k), NULL);
            found = other && strcmp(other, name) == 0;
        }
        if (!found)
            return sl_fail(c->err, SL_INVALID, "%s.required: must name \"%.64s\" under strict",
                           c->path, name);
    }
    return sl_ok();
}

/* ---- what must be broken ---- */

static const struct {
    const char *name;
    const char *opposite; /* of bounds */
    unsigned kinds;       /* of values that break it */
} NEGATED[] = {
    {"enum", NULL, MDL_JSON_ANY},
    {"const", NULL, MDL_JSON_ANY},
    {"pattern", NULL, MDL_JSON_STRING},
    {"minLength", NULL, MDL_JSON_STRING},
    {"maxLength", NULL, MDL_JSON_STRING},
    {"minItems", NULL, MDL_JSON_ARRAY},
    {"maxItems", NULL, MDL_JSON_ARRAY},
    {"minProperties", NULL, MDL_JSON_OBJECT},
    {"maxProperties", NULL, MDL_JSON_OBJECT},
    {"minimum", "exclusiveMaximum", MDL_JSON_NUMBER | MDL_JSON_INTEGER},
    {"maximum", "exclusiveMinimum", MDL_JSON_NUMBER | MDL_JSON_INTEGER},
    {"exclusiveMinimum", "maximum", MDL_JSON_NUMBER | MDL_JSON_INTEGER},
    {"exclusiveMaximum", "minimum", MDL_JSON_NUMBER | MDL_JSON_INTEGER},
};

static int negated_find(const char *keyword)
{
    for (size_t i = 0; i < sizeof(NEGATED) / sizeof(NEGATED[0]); i++)
        if (strcmp(keyword, NEGATED[i].name) == 0)
            return (int)i;
    return -1;
}

bool mdl_schema_can_negate(const char *keyword)
{
    return negated_find(keyword) >= 0;
}

/* Fewer than a least count, more than a greatest one. */
static sl_status read_other_count(mdl_schema_compiler *c, mdl_schema_facts *f, const char *keyword,
                                  const sl_json *value)
{
    uint32_t *least = &f->length_min, *most = &f->length_max, count = 0;
    SL_TRY(read_count(c, keyword, value, &count));
    if (strstr(keyword, "Items")) {
        least = &f->items_min;
        most = &f->items_max;
    } else if (strstr(keyword, "Properties")) {
        least = &f->size_min;
        most = &f->size_max;
    }
    if (keyword[1] == 'a')
        *least = count + 1 > *least ? count + 1 : *least;
    else if (count == 0) /* nothing has less than none */
        f->kinds = 0;
    else
        *most = count - 1 < *most ? count - 1 : *most;
    return sl_ok();
}

static sl_status read_negated(mdl_schema_compiler *c, mdl_schema_facts *f,
                              const mdl_schema_item *item)
{
    const char *keyword = item->keyword;
    const sl_json *value = sl_json_get(item->schema, keyword);
    int at = negated_find(keyword);
    sl_assert(at >= 0);
    f->kinds &= NEGATED[at].kinds;
    if (NEGATED[at].opposite)
        return read_bound(c, f, NULL, NEGATED[at].opposite, value);
    if (keyword[0] == 'm')
        return read_other_count(c, f, keyword, value);
    if (keyword[0] == 'p') {
        if (sl_json_typeof(value) != SL_JSON_STRING)
            return must_be(c, keyword, "must be a string");
        if (f->not_pattern_count == MDL_SCHEMA_FEW_MAX)
            return mdl_schema_fail(c, SL_TOO_LARGE, keyword,
                                   "more than 4 patterns for one value; leave some out");
        f->not_patterns[f->not_pattern_count++] = value;
        return sl_ok();
    }
    if (keyword[0] == 'e' && sl_json_typeof(value) != SL_JSON_ARRAY)
        return must_be(c, keyword, "must be an array");
    if (f->without_count == MDL_SCHEMA_FEW_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword,
                               "more than 4 enums for one value; leave some out");
    f->without_is_list[f->without_count] = keyword[0] == 'e';
    f->without[f->without_count++] = value;
    return sl_ok();
}

static sl_status collect_needed(mdl_schema_compiler *c, const mdl_schema_all *all,
                                mdl_schema_facts *facts)
{
    for (uint32_t i = 0; i < all->needed_count; i++) {
        const mdl_schema_needed *needed = &all->needed[i];
        mdl_schema_property *p = property_of(facts, needed->name.data, needed->name.size);
        p->required = true;
        if (needed->item.schema && !mdl_schema_add(&p->all, &needed->item))
            return mdl_schema_fail(c, SL_TOO_LARGE, "not", "too many schemas for one property");
    }
    return sl_ok();
}

sl_status mdl_schema_collect(mdl_schema_compiler *c, const mdl_schema_all *all,
                             mdl_schema_facts *facts)
{
    memset(facts, 0, sizeof(*facts));
    facts->kinds = MDL_JSON_ANY;
    facts->items_max = facts->length_max = facts->size_max = MDL_SCHEMA_COUNT_ANY;
    if (all->forbidden_count + all->needed_count > 0) {
        facts->kinds = MDL_JSON_OBJECT;
        facts->hints = MDL_JSON_OBJECT;
    }
    facts->kinds &= ~all->other_kinds;
    for (uint32_t i = 0; i < all->count; i++) {
        const sl_json *schema = all->items[i].schema;
        if (all->items[i].negated) {
            SL_TRY(read_negated(c, facts, &all->items[i]));
            continue;
        }
        SL_TRY(check_strict(c, schema));
        for (size_t k = 0; k < sl_json_count(schema); k++) {
            const char *keyword = sl_json_key(schema, k, NULL);
            if (c->strict && !is_standard(keyword) && strncmp(keyword, "x-", 2) != 0) {
                char name[64];
                snprintf(name, sizeof(name), "%s", keyword);
                return mdl_schema_fail(c, SL_INVALID, name, "is no keyword of JSON schema");
            }
            SL_TRY(keyword_find(keyword)(c, facts, schema, keyword, sl_json_at(schema, k)));
        }
    }
    for (uint32_t i = 0; i < all->forbidden_count; i++)
        property_of(facts, all->forbidden[i].data, all->forbidden[i].size)->forbidden = true;
    return collect_needed(c, all, facts);
}

void mdl_schema_facts_fini(mdl_schema_facts *facts)
{
    for (size_t i = 0; i < MDL_SCHEMA_FEW_MAX; i++)
        mdl_dfa_destroy(facts->key_dfas[i]);
    mdl_dfa_destroy(facts->names_dfa);
    sl_free(facts->properties);
    *facts = (mdl_schema_facts){0};
}

unsigned mdl_schema_kinds(const mdl_schema_facts *facts)
{
    return facts->typed || facts->hints == 0 ? facts->kinds : facts->kinds & facts->hints;
}

/* ---- values ---- */

unsigned mdl_schema_kind_of(const sl_json *value)
{
    double number;
    switch (sl_json_typeof(value)) {
    case SL_JSON_NULL:
        return MDL_JSON_NULL;
    case SL_JSON_FALSE:
    case SL_JSON_TRUE:
        return MDL_JSON_BOOLEAN;
    case SL_JSON_NUMBER:
        if (sl_json_number_is_integer(value))
            return MDL_JSON_INTEGER;
        if (!sl_json_double(value, &number))
            return MDL_JSON_NUMBER;
        /* Doubles as large as that are whole. */
        return number >= 1e18 || number <= -1e18 || number == (double)(int64_t)number
                   ? MDL_JSON_INTEGER
                   : MDL_JSON_NUMBER;
    case SL_JSON_STRING:
        return MDL_JSON_STRING;
    case SL_JSON_ARRAY:
        return MDL_JSON_ARRAY;
    case SL_JSON_OBJECT:
        return MDL_JSON_OBJECT;
    }
    return 0;
}

static bool equal_values(const sl_json *a, const sl_json *b)
{
    sl_buf x, y;
    sl_buf_init(&x, 0);
    sl_buf_init(&y, 0);
    sl_json_write_python(&x, a);
    sl_json_write_python(&y, b);
    bool equal = x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
    sl_buf_fini(&x);
    sl_buf_fini(&y);
    return equal;
}

bool mdl_schema_allowed_by(const mdl_schema_facts *f, uint32_t index, const sl_json *value)
{
    const sl_json *list = f->values[index];
    if (!f->value_is_list[index])
        return equal_values(list, value);
    for (size_t i = 0; i < sl_json_count(list); i++)
        if (equal_values(sl_json_at(list, i), value))
            return true;
    return false;
}

bool mdl_schema_may_be_equal(const sl_json *a, const sl_json *b)
{
    unsigned containers = MDL_JSON_OBJECT | MDL_JSON_ARRAY;
    double x, y;
    if (sl_json_double(a, &x) && sl_json_double(b, &y))
        return x == y;
    if (mdl_schema_kind_of(a) & mdl_schema_kind_of(b) & containers)
        return true;
    return equal_values(a, b);
}

static size_t without_size(const mdl_schema_facts *f, uint32_t index)
{
    return f->without_is_list[index] ? sl_json_count(f->without[index]) : 1;
}

static const sl_json *without_at(const mdl_schema_facts *f, uint32_t index, size_t i)
{
    return f->without_is_list[index] ? sl_json_at(f->without[index], i) : f->without[index];
}

bool mdl_schema_is_without(const mdl_schema_facts *f, const sl_json *value)
{
    for (uint32_t k = 0; k < f->without_count; k++)
        for (size_t i = 0; i < without_size(f, k); i++)
            if (mdl_schema_may_be_equal(without_at(f, k, i), value))
                return true;
    return false;
}

bool mdl_schema_without_kind(const mdl_schema_facts *f, unsigned kinds)
{
    for (uint32_t k = 0; k < f->without_count; k++)
        for (size_t i = 0; i < without_size(f, k); i++)
            if (mdl_schema_kind_of(without_at(f, k, i)) & kinds)
                return true;
    return false;
}

size_t mdl_schema_values(const mdl_schema_facts *f, unsigned kinds, const sl_json **out_values,
                         size_t max)
{
    size_t made = 0;
    size_t count = f->value_is_list[0] ? sl_json_count(f->values[0]) : 1;
    for (size_t i = 0; i < count && made < max; i++) {
        const sl_json *value = f->value_is_list[0] ? sl_json_at(f->values[0], i) : f->values[0];
        bool good = (mdl_schema_kind_of(value) & kinds) && !mdl_schema_is_without(f, value);
        for (uint32_t k = 1; k < f->value_count && good; k++)
            good = mdl_schema_allowed_by(f, k, value);
        if (good)
            out_values[made++] = value;
    }
    return made;
}

/* ---- references ---- */

/* The next part of a JSON pointer, unescaped. */
static bool pointer_part(const char **at, char *out_part, size_t size)
{
    size_t used = 0;
    if (**at != '/')
        return false;
    for ((*at)++; **at && **at != '/'; (*at)++) {
        char byte = **at;
        unsigned hex;
        if (byte == '~' && ((*at)[1] == '0' || (*at)[1] == '1')) {
            byte = (*at)[1] == '0' ? '~' : '/';
            (*at)++;
        } else if (byte == '%' && sscanf(*at + 1, "%2x", &hex) == 1 && (*at)[1] && (*at)[2]) {
            byte = (char)hex;
            *at += 2;
        }
        if (used + 1 >= size)
            return false;
        out_part[used++] = byte;
    }
    out_part[used] = '\0';
    return true;
}

sl_status mdl_schema_resolve(const mdl_schema_compiler *c, const sl_json *reference,
                             const sl_json **out_target)
{
    const char *text = sl_json_string(reference, NULL), *at = text ? text + 1 : NULL;
    const sl_json *target = c->root;
    char part[256];
    if (!text || text[0] != '#')
        return mdl_schema_fail(c, SL_UNSUPPORTED, "$ref",
                               "must be a reference into this schema: \"#/...\"");
    while (*at && target) {
        if (!pointer_part(&at, part, sizeof(part)))
            return mdl_schema_fail(c, SL_UNSUPPORTED, "$ref", "is no JSON pointer");
        if (sl_json_typeof(target) == SL_JSON_ARRAY) {
            char *end;
            unsigned long index = strtoul(part, &end, 10);
            target =
                *part && !*end && index < sl_json_count(target) ? sl_json_at(target, index) : NULL;
        } else {
            target = sl_json_get(target, part);
        }
    }
    if (!target)
        return mdl_schema_fail(c, SL_INVALID, "$ref", "leads nowhere");
    *out_target = target;
    return sl_ok();
}

static unsigned skip_bit(const char *keyword)
{
    static const struct {
        const char *name;
        unsigned bit;
    } BITS[] = {{"$ref", MDL_SKIP_REF},
                {"allOf", MDL_SKIP_ALL_OF},
                {"anyOf", MDL_SKIP_ANY_OF},
                {"oneOf", MDL_SKIP_ONE_OF},
                {"not", MDL_SKIP_NOT},
                {"if", MDL_SKIP_IF},
                {"dependencies", MDL_SKIP_DEPENDENCIES},
                {"dependentRequired", MDL_SKIP_DEPENDENCIES},
                {"dependentSchemas", MDL_SKIP_DEPENDENCIES}};
    for (size_t i = 0; i < sizeof(BITS) / sizeof(BITS[0]); i++)
        if (strcmp(keyword, BITS[i].name) == 0)
            return BITS[i].bit;
    return 0;
}

bool mdl_schema_is_note(const char *keyword)
{
    return keyword_find(keyword) == note && !skip_bit(keyword);
}

/* Do only accounted-for keywords and annotations stand there? */
static bool says_only(const mdl_schema_item *item, unsigned skip)
{
    for (size_t i = 0; i < sl_json_count(item->schema); i++) {
        const char *keyword = sl_json_key(item->schema, i, NULL);
        unsigned bit = skip_bit(keyword);
        if (bit ? !(bit & (item->skip | skip)) : keyword_find(keyword) != note)
            return false;
    }
    return true;
}

bool mdl_schema_is_reference(const mdl_schema_item *item)
{
    return !item->negated && sl_json_get(item->schema, "$ref") && !(item->skip & MDL_SKIP_REF) &&
           says_only(item, MDL_SKIP_REF);
}

static sl_status add_or_fail(mdl_schema_compiler *c, mdl_schema_all *all, const sl_json *schema,
                             const char *keyword)
{
    if (sl_json_typeof(schema) != SL_JSON_OBJECT && sl_json_typeof(schema) != SL_JSON_TRUE &&
        sl_json_typeof(schema) != SL_JSON_FALSE)
        return must_be(c, keyword, "must be a schema: an object, true or false");
    if (!all_add(all, schema))
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many schemas for one value");
    return sl_ok();
}

static sl_status flatten_item(mdl_schema_compiler *c, mdl_schema_all *all, uint32_t index)
{
    mdl_schema_item *item = &all->items[index];
    if (item->negated)
        return sl_ok();
    const sl_json *ref = sl_json_get(item->schema, "$ref"), *target;
    const sl_json *all_of = sl_json_get(item->schema, "allOf");
    if (ref && !(item->skip & MDL_SKIP_REF)) {
        item->skip |= MDL_SKIP_REF;
        SL_TRY(mdl_schema_resolve(c, ref, &target));
        SL_TRY(add_or_fail(c, all, target, "$ref"));
    }
    if (all_of && !(item->skip & MDL_SKIP_ALL_OF)) {
        item->skip |= MDL_SKIP_ALL_OF;
        if (sl_json_typeof(all_of) != SL_JSON_ARRAY || sl_json_count(all_of) == 0)
            return must_be(c, "allOf", "must be an array with at least one schema");
        for (size_t i = 0; i < sl_json_count(all_of); i++)
            SL_TRY(add_or_fail(c, all, sl_json_at(all_of, i), "allOf"));
    }
    return sl_ok();
}

static void drop_silent(mdl_schema_all *all)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < all->count; i++) {
        bool silent = sl_json_typeof(all->items[i].schema) == SL_JSON_TRUE ||
                      (sl_json_typeof(all->items[i].schema) == SL_JSON_OBJECT &&
                       says_only(&all->items[i], 0));
        if (!silent || all->items[i].negated)
            all->items[kept++] = all->items[i];
    }
    all->count = kept;
}

sl_status mdl_schema_flatten(mdl_schema_compiler *c, mdl_schema_all *all)
{
    drop_silent(all);
    for (uint32_t i = 0; i < all->count; i++) {
        if (all->count == 1 && mdl_schema_is_plain(all) && mdl_schema_is_reference(&all->items[0]))
            return sl_ok(); /* stays one: a rule of its own */
        SL_TRY(flatten_item(c, all, i));
    }
    uint32_t before = all->count;
    drop_silent(all);
    if (before > 1 && all->count == 1)
        return mdl_schema_flatten(c, all); /* what is left may be a lone reference */
    return sl_ok();
}
