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

static sl_status read_type(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                           const char *keyword, const sl_json *value)
{
    unsigned kinds = 0, kind;
    if (sl_json_typeof(value) == SL_JSON_ARRAY) {
        for (size_t i = 0; i < sl_json_count(value); i++) {
            SL_TRY(kind_bit(c, sl_json_at(value, i), &kind));
            kinds |= kind;
        }
    } else {
        SL_TRY(kind_bit(c, value, &kinds));
    }
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
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many patterns for one value");
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
    if (!sl_json_i64(value, &number) || number != 1)
        return mdl_schema_fail(c, SL_UNSUPPORTED, keyword, "only 1 is supported");
    f->hints |= MDL_JSON_INTEGER;
    if (f->kinds & MDL_JSON_NUMBER)
        f->kinds &= ~(unsigned)MDL_JSON_NUMBER;
    return sl_ok();
}

static sl_status read_values(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                             const char *keyword, const sl_json *value)
{
    bool list = keyword[0] == 'e';
    if (list && (sl_json_typeof(value) != SL_JSON_ARRAY || sl_json_count(value) == 0))
        return must_be(c, keyword, "must be an array with at least one value");
    if (f->value_count == MDL_SCHEMA_FEW_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "too many enums for one value");
    f->value_is_list[f->value_count] = list;
    f->values[f->value_count++] = value;
    return sl_ok();
}

static bool all_add(mdl_schema_all *all, const sl_json *schema)
{
    for (uint32_t i = 0; i < all->count; i++)
        if (all->items[i].schema == schema)
            return true; /* twice says no more than once */
    if (all->count == MDL_SCHEMA_ALL_MAX)
        return false;
    all->items[all->count++] = (mdl_schema_item){.schema = schema};
    return true;
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
        return mdl_schema_fail(c, SL_TOO_LARGE, keyword, "more than 4 patterns");
    f->key_patterns = value;
    f->hints |= MDL_JSON_OBJECT;
    return sl_ok();
}

/* A keyword of a standard that is not offered; uniqueItems false and the like say nothing. */
static sl_status refuse(mdl_schema_compiler *c, mdl_schema_facts *f, const sl_json *schema,
                        const char *keyword, const sl_json *value)
{
    if (strcmp(keyword, "uniqueItems") == 0 && sl_json_typeof(value) == SL_JSON_FALSE)
        return sl_ok();
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
    /* of some draft, and not offered */
    {"uniqueItems", refuse},
    {"contains", refuse},
    {"minContains", refuse},
    {"maxContains", refuse},
    {"unevaluatedItems", refuse},
    {"unevaluatedProperties", refuse},
    {"propertyNames", refuse},
    {"dependencies", refuse},
    {"dependentRequired", refuse},
    {"dependentSchemas", refuse},
    {"not", refuse},
    {"if", refuse},
    {"then", refuse},
    {"else", refuse},
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

sl_status mdl_schema_collect(mdl_schema_compiler *c, const mdl_schema_all *all,
                             mdl_schema_facts *facts)
{
    memset(facts, 0, sizeof(*facts));
    facts->kinds = MDL_JSON_ANY;
    facts->items_max = facts->length_max = facts->size_max = MDL_SCHEMA_COUNT_ANY;
    if (all->forbidden_count > 0) {
        facts->kinds = MDL_JSON_OBJECT;
        facts->hints = MDL_JSON_OBJECT;
    }
    for (uint32_t i = 0; i < all->count; i++) {
        const sl_json *schema = all->items[i].schema;
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
    return sl_ok();
}

void mdl_schema_facts_fini(mdl_schema_facts *facts)
{
    for (size_t i = 0; i < MDL_SCHEMA_FEW_MAX; i++)
        mdl_dfa_destroy(facts->key_dfas[i]);
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
        return sl_json_double(value, &number) && number == (double)(int64_t)number
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

static bool allowed_by(const mdl_schema_facts *f, uint32_t index, const sl_json *value)
{
    const sl_json *list = f->values[index];
    if (!f->value_is_list[index])
        return equal_values(list, value);
    for (size_t i = 0; i < sl_json_count(list); i++)
        if (equal_values(sl_json_at(list, i), value))
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
        bool good = mdl_schema_kind_of(value) & kinds;
        for (uint32_t k = 1; k < f->value_count && good; k++)
            good = allowed_by(f, k, value);
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
    return strcmp(keyword, "$ref") == 0    ? MDL_SKIP_REF
           : strcmp(keyword, "allOf") == 0 ? MDL_SKIP_ALL_OF
           : strcmp(keyword, "anyOf") == 0 ? MDL_SKIP_ANY_OF
           : strcmp(keyword, "oneOf") == 0 ? MDL_SKIP_ONE_OF
                                           : 0u;
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
    return sl_json_get(item->schema, "$ref") && !(item->skip & MDL_SKIP_REF) &&
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
        if (!silent)
            all->items[kept++] = all->items[i];
    }
    all->count = kept;
}

sl_status mdl_schema_flatten(mdl_schema_compiler *c, mdl_schema_all *all)
{
    drop_silent(all);
    for (uint32_t i = 0; i < all->count; i++) {
        if (all->count == 1 && all->forbidden_count == 0 && mdl_schema_is_reference(&all->items[0]))
            return sl_ok(); /* stays one: a rule of its own */
        SL_TRY(flatten_item(c, all, i));
    }
    uint32_t before = all->count;
    drop_silent(all);
    if (before > 1 && all->count == 1)
        return mdl_schema_flatten(c, all); /* what is left may be a lone reference */
    return sl_ok();
}

/* ---- disjointness ---- */

static bool values_meet(const mdl_schema_facts *a, const mdl_schema_facts *b)
{
    const sl_json *values[256];
    size_t count = mdl_schema_values(a, mdl_schema_kinds(a), values, 256);
    if (count == 256)
        return true;
    for (size_t i = 0; i < count; i++) {
        bool both = mdl_schema_kind_of(values[i]) & mdl_schema_kinds(b);
        for (uint32_t k = 0; k < b->value_count && both; k++)
            both = allowed_by(b, k, values[i]);
        if (both)
            return true;
    }
    return false;
}

static const mdl_schema_property *find_property(const mdl_schema_facts *f,
                                                const mdl_schema_property *like)
{
    for (size_t i = 0; i < f->property_count; i++)
        if (f->properties[i].name_size == like->name_size &&
            memcmp(f->properties[i].name, like->name, like->name_size) == 0)
            return &f->properties[i];
    return NULL;
}

/* Objects: a property that both require with values that differ, or one that a requires and b,
 * being closed, never has. */
static sl_status objects_disjoint(mdl_schema_compiler *c, const mdl_schema_facts *a,
                                  const mdl_schema_facts *b, bool *out_disjoint)
{
    *out_disjoint = false;
    for (size_t i = 0; i < a->property_count && !*out_disjoint; i++) {
        const mdl_schema_property *p = &a->properties[i], *q = find_property(b, p);
        if (!p->required)
            continue;
        if (!q)
            *out_disjoint = b->closed_count > 0;
        else if (q->required && p->all.count == 1 && q->all.count == 1)
            SL_TRY(mdl_schema_disjoint(c, p->all.items[0].schema, q->all.items[0].schema,
                                       out_disjoint));
    }
    return sl_ok();
}

static sl_status facts_disjoint(mdl_schema_compiler *c, const mdl_schema_facts *a,
                                const mdl_schema_facts *b, bool *out_disjoint)
{
    unsigned both = mdl_schema_kinds(a) & mdl_schema_kinds(b);
    *out_disjoint = both == 0 || (a->value_count > 0 && !values_meet(a, b)) ||
                    (b->value_count > 0 && !values_meet(b, a));
    if (*out_disjoint || both != MDL_JSON_OBJECT)
        return sl_ok();
    SL_TRY(objects_disjoint(c, a, b, out_disjoint));
    return *out_disjoint ? sl_ok() : objects_disjoint(c, b, a, out_disjoint);
}

/* The list of one schema, references followed to the end. */
static sl_status flatten_one(mdl_schema_compiler *c, const sl_json *schema, mdl_schema_all *all)
{
    *all = (mdl_schema_all){.items = {{.schema = schema}}, .count = 1};
    for (int turn = 0; turn < MDL_SCHEMA_ALL_MAX; turn++) {
        SL_TRY(mdl_schema_flatten(c, all));
        if (all->count != 1 || !mdl_schema_is_reference(&all->items[0]))
            return sl_ok();
        SL_TRY(mdl_schema_resolve(c, sl_json_get(all->items[0].schema, "$ref"),
                                  &all->items[0].schema));
    }
    return mdl_schema_fail(c, SL_INVALID, "$ref", "refers to itself");
}

sl_status mdl_schema_disjoint(mdl_schema_compiler *c, const sl_json *a, const sl_json *b,
                              bool *out_disjoint)
{
    mdl_schema_facts facts[2] = {{0}, {0}};
    mdl_schema_all all;
    const sl_json *const schemas[2] = {a, b};
    sl_status status = sl_ok();
    if (++c->depth > MDL_SCHEMA_DEPTH_MAX || ++c->comparisons > MDL_SCHEMA_COMPARISONS_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, "oneOf", "too many or too deep alternatives");
    for (int i = 0; i < 2 && sl_is_ok(status); i++) {
        status = flatten_one(c, schemas[i], &all);
        if (sl_is_ok(status))
            status = mdl_schema_collect(c, &all, &facts[i]);
    }
    if (sl_is_ok(status))
        status = facts_disjoint(c, &facts[0], &facts[1], out_disjoint);
    mdl_schema_facts_fini(&facts[0]);
    mdl_schema_facts_fini(&facts[1]);
    c->depth--;
    return status;
}

/* ---- telling alternatives apart ---- */

bool mdl_schema_forbid(mdl_schema_all *all, const mdl_word *name)
{
    for (uint32_t i = 0; i < all->forbidden_count; i++)
        if (all->forbidden[i].size == name->size &&
            memcmp(all->forbidden[i].data, name->data, name->size) == 0)
            return true;
    if (all->forbidden_count == MDL_SCHEMA_ALL_MAX)
        return false;
    all->forbidden[all->forbidden_count++] = *name;
    return true;
}

static bool requires(const sl_json *schema, const mdl_schema_property *p)
{
    const sl_json *required = sl_json_get(schema, "required");
    for (size_t i = 0; i < sl_json_count(required); i++) {
        size_t size;
        const char *name = sl_json_string(sl_json_at(required, i), &size);
        if (name && size == p->name_size && memcmp(name, p->name, size) == 0)
            return true;
    }
    return false;
}

static bool required_anyway(const mdl_schema_all *all, const mdl_schema_facts *a,
                            const mdl_schema_property *p)
{
    const mdl_schema_property *same = find_property(a, p);
    bool found = same && same->required;
    for (uint32_t i = 0; i < all->count && !found; i++)
    found = requires(all->items[i].schema, p);
    return found;
}

static bool is_bare(const mdl_schema_all *all)
{
    const sl_json *schema = all->items[0].schema;
    bool bare = all->count == 1;
    for (size_t i = 0; i < sl_json_count(schema) && bare; i++) {
        const char *keyword = sl_json_key(schema, i, NULL);
        bare = keyword_find(keyword) == read_required ||
               (keyword_find(keyword) == note && !skip_bit(keyword));
    }
    return bare;
}

sl_status mdl_schema_required_beyond(mdl_schema_compiler *c, const mdl_schema_all *all,
                                     const sl_json *a, const sl_json *b, mdl_word *out_name,
                                     bool *out_bare)
{
    mdl_schema_facts facts[2] = {{0}, {0}};
    mdl_schema_all flat[2];
    const sl_json *const schemas[2] = {a, b};
    sl_status status = sl_ok();
    *out_name = (mdl_word){NULL, 0};
    *out_bare = false;
    for (int i = 0; i < 2 && sl_is_ok(status); i++) {
        status = flatten_one(c, schemas[i], &flat[i]);
        if (sl_is_ok(status))
            status = mdl_schema_collect(c, &flat[i], &facts[i]);
    }
    bool objects = mdl_schema_kinds(&facts[0]) == MDL_JSON_OBJECT &&
                   mdl_schema_kinds(&facts[1]) == MDL_JSON_OBJECT;
    *out_bare = sl_is_ok(status) && objects && is_bare(&flat[1]);
    for (size_t i = 0; i < facts[1].property_count && sl_is_ok(status) && objects; i++) {
        const mdl_schema_property *p = &facts[1].properties[i];
        if (!p->required || required_anyway(all, &facts[0], p))
            continue;
        *out_name = (mdl_word){p->name, p->name_size};
        break;
    }
    mdl_schema_facts_fini(&facts[0]);
    mdl_schema_facts_fini(&facts[1]);
    return status;
}
