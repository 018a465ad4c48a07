/* Keywords that mean one of several: anyOf and oneOf say so; `if` is its `then` or else not itself;
 * a dependency is met or not called for; and a schema is broken by breaking any of its keywords.
 * Each becomes alternatives of the list of schemas that holds for the value. Any thread; no I/O. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json_schema_parts.h"

#define ALTERNATIVES_MAX 256u

typedef struct group {
    uint32_t index; /* of the item in the list */
    unsigned bit;
    const char *name;
} group;

typedef struct alternatives {
    mdl_schema_all *items;
    uint32_t count, capacity;
} alternatives;

/* ---- which is next ---- */

static const char *const DEPENDENCIES[] = {"dependencies", "dependentRequired", "dependentSchemas"};

/* The dependency of that number; NULL: there are not so many. */
static const sl_json *dependency_at(const sl_json *schema, uint32_t number, mdl_word *out_name)
{
    for (size_t k = 0; k < sizeof(DEPENDENCIES) / sizeof(DEPENDENCIES[0]); k++) {
        const sl_json *all = sl_json_get(schema, DEPENDENCIES[k]);
        if (number >= sl_json_count(all)) {
            number -= (uint32_t)sl_json_count(all);
            continue;
        }
        out_name->data = sl_json_key(all, number, &out_name->size);
        return sl_json_at(all, number);
    }
    return NULL;
}

static bool find_group(const mdl_schema_all *all, group *out)
{
    static const struct {
        const char *name;
        unsigned bit;
    } GROUPS[] = {{"not", MDL_SKIP_NOT},
                  {"anyOf", MDL_SKIP_ANY_OF},
                  {"oneOf", MDL_SKIP_ONE_OF},
                  {"if", MDL_SKIP_IF}};
    for (uint32_t i = 0; i < all->count; i++) {
        const mdl_schema_item *item = &all->items[i];
        mdl_word name;
        *out = (group){.index = i, .name = "not"};
        if (item->negated && !item->keyword)
            return true;
        if (item->negated)
            continue;
        for (size_t k = 0; k < sizeof(GROUPS) / sizeof(GROUPS[0]); k++) {
            *out = (group){i, GROUPS[k].bit, GROUPS[k].name};
            if (sl_json_get(item->schema, out->name) && !(item->skip & out->bit))
                return true;
        }
        *out = (group){i, MDL_SKIP_DEPENDENCIES, "dependencies"};
        if (!(item->skip & out->bit) && dependency_at(item->schema, item->dependencies, &name))
            return true;
    }
    return false;
}

bool mdl_schema_has_group(const mdl_schema_all *all)
{
    group found;
    return find_group(all, &found);
}

/* ---- alternatives ---- */

/* Another one: what the list says so far. NULL: too many. */
static mdl_schema_all *another(alternatives *a, const mdl_schema_all *base)
{
    if (a->count == ALTERNATIVES_MAX)
        return NULL;
    if (a->count == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 4;
        a->items = sl_realloc(a->items, a->capacity, sizeof(a->items[0]), "schema alternatives");
    }
    a->items[a->count] = *base;
    return &a->items[a->count++];
}

static sl_status too_many(mdl_schema_compiler *c, const char *name)
{
    return mdl_schema_fail(c, SL_TOO_LARGE, name, "too many alternatives");
}

static sl_status another_with(mdl_schema_compiler *c, alternatives *a, const mdl_schema_all *base,
                              const mdl_schema_item *item, const char *name)
{
    mdl_schema_all *one = another(a, base);
    return one && mdl_schema_add(one, item) ? sl_ok() : too_many(c, name);
}

static sl_status another_without(mdl_schema_compiler *c, alternatives *a,
                                 const mdl_schema_all *base, const mdl_word *name)
{
    mdl_schema_all *one = another(a, base);
    return one && mdl_schema_forbid(one, name) ? sl_ok() : too_many(c, "required");
}

static bool need(mdl_schema_all *all, const mdl_word *name, const mdl_schema_item *item)
{
    static const mdl_schema_item ANY = {.schema = NULL};
    if (all->needed_count == MDL_SCHEMA_ALL_MAX)
        return false;
    all->needed[all->needed_count++] = (mdl_schema_needed){*name, item ? *item : ANY};
    return true;
}

static sl_status check_schema(mdl_schema_compiler *c, const sl_json *schema, const char *name)
{
    sl_json_type type = sl_json_typeof(schema);
    if (type == SL_JSON_OBJECT || type == SL_JSON_TRUE || type == SL_JSON_FALSE)
        return sl_ok();
    return mdl_schema_fail(c, SL_INVALID, name, "must be a schema: an object, true or false");
}

/* ---- anyOf, oneOf ---- */

/* Makes values of alternative `a` of a oneOf break alternative `b`: by a member that b requires and
 * a does without. *a_all: what holds for values of a. */
static sl_status tell_from(mdl_schema_compiler *c, const mdl_schema_all *base,
                           const sl_json *choices, size_t a, size_t b, mdl_schema_all *a_all)
{
    mdl_word name;
    bool bare;
    SL_TRY(mdl_schema_required_beyond(c, base, sl_json_at(choices, a), sl_json_at(choices, b),
                                      &name, &bare));
    if (name.data && mdl_schema_forbid(a_all, &name))
        return sl_ok();
    if (!name.data && bare) { /* whatever satisfies a satisfies b */
        a_all->other_kinds = MDL_JSON_ANY;
        return sl_ok();
    }
    return sl_fail(c->err, SL_UNSUPPORTED,
                   "%s.oneOf: alternatives %zu and %zu may both match; use anyOf, or tell them "
                   "apart by type, by a required constant or by required properties",
                   c->path, a < b ? a : b, a < b ? b : a);
}

/* oneOf: no value may satisfy two alternatives. */
static sl_status tell_apart(mdl_schema_compiler *c, const mdl_schema_all *base,
                            const sl_json *choices, mdl_schema_all *list)
{
    for (size_t i = 0; i < sl_json_count(choices); i++) {
        for (size_t k = i + 1; k < sl_json_count(choices); k++) {
            bool disjoint;
            SL_TRY(
                mdl_schema_disjoint(c, sl_json_at(choices, i), sl_json_at(choices, k), &disjoint));
            if (disjoint)
                continue;
            SL_TRY(tell_from(c, base, choices, i, k, &list[i]));
            SL_TRY(tell_from(c, base, choices, k, i, &list[k]));
        }
    }
    return sl_ok();
}

static sl_status expand_list(mdl_schema_compiler *c, const mdl_schema_all *base,
                             const mdl_schema_all *all, const group *g, alternatives *out)
{
    const sl_json *list = sl_json_get(all->items[g->index].schema, g->name);
    if (sl_json_typeof(list) != SL_JSON_ARRAY || sl_json_count(list) == 0)
        return mdl_schema_fail(c, SL_INVALID, g->name, "must be an array with at least one schema");
    for (size_t i = 0; i < sl_json_count(list); i++) {
        mdl_schema_all *one = another(out, base);
        if (!one || one->count == MDL_SCHEMA_ALL_MAX)
            return too_many(c, g->name);
        one->items[one->count++] = (mdl_schema_item){.schema = sl_json_at(list, i)};
    }
    return g->bit == MDL_SKIP_ONE_OF ? tell_apart(c, all, list, out->items) : sl_ok();
}

/* ---- if, dependencies ---- */

static sl_status expand_if(mdl_schema_compiler *c, const mdl_schema_all *base,
                           const sl_json *schema, alternatives *out)
{
    const sl_json *condition = sl_json_get(schema, "if"), *then = sl_json_get(schema, "then");
    const sl_json *otherwise = sl_json_get(schema, "else");
    const mdl_schema_item met = {.schema = condition};
    const mdl_schema_item broken = {.schema = condition, .negated = true};
    SL_TRY(check_schema(c, condition, "if"));
    if (!then && !otherwise)
        return another(out, base) ? sl_ok() : too_many(c, "if");
    SL_TRY(another_with(c, out, base, &met, "if"));
    const mdl_schema_item then_item = {.schema = then}, else_item = {.schema = otherwise};
    if (then)
        SL_TRY(check_schema(c, then, "then"));
    if (then && !mdl_schema_add(&out->items[out->count - 1], &then_item))
        return too_many(c, "then");
    SL_TRY(another_with(c, out, base, &broken, "if"));
    if (otherwise)
        SL_TRY(check_schema(c, otherwise, "else"));
    if (otherwise && !mdl_schema_add(&out->items[out->count - 1], &else_item))
        return too_many(c, "else");
    return sl_ok();
}

/* Without the member; with it and all that it calls for; no object at all. */
static sl_status expand_dependency(mdl_schema_compiler *c, const mdl_schema_all *base,
                                   const sl_json *schema, uint32_t number, alternatives *out)
{
    mdl_word name;
    const sl_json *wanted = dependency_at(schema, number, &name);
    SL_TRY(another_without(c, out, base, &name));
    mdl_schema_all *with = another(out, base);
    if (!with || !need(with, &name, NULL))
        return too_many(c, "dependencies");
    if (sl_json_typeof(wanted) == SL_JSON_ARRAY) {
        for (size_t i = 0; i < sl_json_count(wanted); i++) {
            mdl_word other;
            other.data = sl_json_string(sl_json_at(wanted, i), &other.size);
            if (!other.data)
                return mdl_schema_fail(c, SL_INVALID, "dependencies", "must list names");
            if (!need(with, &other, NULL))
                return too_many(c, "dependencies");
        }
    } else {
        const mdl_schema_item item = {.schema = wanted};
        SL_TRY(check_schema(c, wanted, "dependencies"));
        if (!mdl_schema_add(with, &item))
            return too_many(c, "dependencies");
    }
    mdl_schema_all *other = another(out, base);
    if (!other)
        return too_many(c, "dependencies");
    other->other_kinds |= MDL_JSON_OBJECT;
    return sl_ok();
}

/* ---- not ---- */

static sl_status break_members(mdl_schema_compiler *c, const mdl_schema_all *base,
                               const sl_json *properties, alternatives *out)
{
    for (size_t i = 0; i < sl_json_count(properties); i++) {
        const mdl_schema_item broken = {.schema = sl_json_at(properties, i), .negated = true};
        mdl_word name;
        name.data = sl_json_key(properties, i, &name.size);
        mdl_schema_all *one = another(out, base);
        SL_TRY(check_schema(c, broken.schema, "properties"));
        if (!one || !need(one, &name, &broken))
            return too_many(c, "properties");
    }
    return sl_ok();
}

static sl_status break_required(mdl_schema_compiler *c, const mdl_schema_all *base,
                                const sl_json *required, alternatives *out)
{
    for (size_t i = 0; i < sl_json_count(required); i++) {
        mdl_word name;
        name.data = sl_json_string(sl_json_at(required, i), &name.size);
        if (!name.data)
            return mdl_schema_fail(c, SL_INVALID, "required", "must be an array of strings");
        SL_TRY(another_without(c, out, base, &name));
    }
    return sl_ok();
}

/* None of several, all at once (anyOf), or one that is broken (allOf). */
static sl_status break_list(mdl_schema_compiler *c, const mdl_schema_all *base, const sl_json *list,
                            const char *name, alternatives *out)
{
    bool each = strcmp(name, "anyOf") == 0;
    mdl_schema_all *one = NULL;
    for (size_t i = 0; i < sl_json_count(list); i++) {
        const mdl_schema_item broken = {.schema = sl_json_at(list, i), .negated = true};
        SL_TRY(check_schema(c, broken.schema, name));
        if (!one || !each)
            one = another(out, base);
        if (!one || !mdl_schema_add(one, &broken))
            return too_many(c, name);
    }
    return sl_ok();
}

static sl_status break_type(mdl_schema_compiler *c, const mdl_schema_all *base, const sl_json *type,
                            alternatives *out)
{
    unsigned kinds = 0;
    SL_TRY(mdl_schema_type_kinds(c, type, &kinds));
    mdl_schema_all *one = another(out, base);
    if (!one)
        return too_many(c, "type");
    /* A number that is no integer is not offered where integers are not. */
    one->other_kinds |= kinds & MDL_JSON_INTEGER ? kinds | MDL_JSON_NUMBER : kinds;
    return sl_ok();
}

static sl_status break_keyword(mdl_schema_compiler *c, const mdl_schema_all *base,
                               const sl_json *schema, const char *keyword, const sl_json *value,
                               alternatives *out)
{
    if (mdl_schema_can_negate(keyword)) {
        const mdl_schema_item item = {.schema = schema, .negated = true, .keyword = keyword};
        return another_with(c, out, base, &item, "not");
    }
    if (strcmp(keyword, "type") == 0)
        return break_type(c, base, value, out);
    if (strcmp(keyword, "required") == 0)
        return break_required(c, base, value, out);
    if (strcmp(keyword, "properties") == 0)
        return break_members(c, base, value, out);
    if (strcmp(keyword, "anyOf") == 0 || strcmp(keyword, "allOf") == 0)
        return break_list(c, base, value, keyword, out);
    if (strcmp(keyword, "not") == 0) {
        const mdl_schema_item item = {.schema = value};
        SL_TRY(check_schema(c, value, "not"));
        return another_with(c, out, base, &item, "not");
    }
    if (strcmp(keyword, "$ref") == 0) {
        mdl_schema_item item = {.negated = true};
        SL_TRY(mdl_schema_resolve(c, value, &item.schema));
        SL_TRY(check_schema(c, item.schema, "$ref"));
        return another_with(c, out, base, &item, "not");
    }
    char text[120];
    snprintf(text, sizeof(text), "cannot be told of %.64s; say what values may be instead",
             keyword);
    return mdl_schema_fail(c, SL_UNSUPPORTED, "not", text);
}

/* base: without the item. No alternative: nothing breaks the schema. */
static sl_status expand_broken(mdl_schema_compiler *c, const mdl_schema_all *base,
                               const sl_json *schema, alternatives *out)
{
    if (sl_json_typeof(schema) == SL_JSON_FALSE)
        return another(out, base) ? sl_ok() : too_many(c, "not");
    for (size_t i = 0; i < sl_json_count(schema); i++) {
        const char *keyword = sl_json_key(schema, i, NULL);
        if (!mdl_schema_is_note(keyword))
            SL_TRY(break_keyword(c, base, schema, keyword, sl_json_at(schema, i), out));
    }
    return sl_ok();
}

/* ---- all of them ---- */

static sl_status expand(mdl_schema_compiler *c, const mdl_schema_all *all, const group *g,
                        alternatives *out)
{
    mdl_schema_all base = *all;
    mdl_schema_item *item = &base.items[g->index];
    const sl_json *schema = item->schema;
    if (item->negated) {
        *item = base.items[--base.count];
        return expand_broken(c, &base, schema, out);
    }
    if (g->bit == MDL_SKIP_DEPENDENCIES) {
        mdl_word name;
        uint32_t number = item->dependencies++;
        if (!dependency_at(schema, item->dependencies, &name))
            item->skip |= g->bit;
        return expand_dependency(c, &base, schema, number, out);
    }
    item->skip |= g->bit;
    if (g->bit == MDL_SKIP_IF)
        return expand_if(c, &base, schema, out);
    if (g->bit != MDL_SKIP_NOT)
        return expand_list(c, &base, all, g, out);
    const mdl_schema_item broken = {.schema = sl_json_get(schema, "not"), .negated = true};
    SL_TRY(check_schema(c, broken.schema, "not"));
    return another_with(c, out, &base, &broken, "not");
}

static sl_status compile(mdl_schema_compiler *c, const alternatives *a, unsigned kinds,
                         const char *name, mdl_node *out_node)
{
    mdl_node out = MDL_NODE_NONE;
    c->alternatives += a->count;
    if (c->alternatives > MDL_SCHEMA_ALTERNATIVES_MAX)
        return too_many(c, name);
    for (uint32_t i = a->count; i-- > 0;) {
        mdl_node node = MDL_NODE_NONE;
        bool listed = strstr(name, "Of") != NULL;
        size_t before = listed ? mdl_schema_enter_index(c, name, i) : mdl_schema_enter(c, name);
        SL_TRY(mdl_schema_value(c, &a->items[i], kinds, &node));
        mdl_schema_leave(c, before);
        out = mdl_grammar_or(c->grammar, node, out);
    }
    *out_node = out;
    return sl_ok();
}

sl_status mdl_schema_group(mdl_schema_compiler *c, const mdl_schema_all *all, unsigned kinds,
                           bool *out_found, mdl_node *out_node)
{
    group g;
    alternatives list = {0};
    *out_found = find_group(all, &g);
    if (!*out_found)
        return sl_ok();
    sl_status status = expand(c, all, &g, &list);
    if (sl_is_ok(status))
        status = compile(c, &list, kinds, g.name, out_node);
    sl_free(list.items);
    return status;
}
