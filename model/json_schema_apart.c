/* Alternatives of a oneOf: can no value satisfy both, and by what else can they be told apart? What
 * is said by groups inside them counts for nothing here, so that the answer is no rather than
 * wrong. Any thread; no I/O. */
#include <string.h>

#include "model/json_schema_parts.h"

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
            both = mdl_schema_allowed_by(b, k, values[i]);
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
    found = !all->items[i].negated && requires(all->items[i].schema, p);
    return found;
}

static bool is_bare(const mdl_schema_all *all)
{
    const sl_json *schema = all->items[0].schema;
    bool bare = all->count == 1;
    for (size_t i = 0; i < sl_json_count(schema) && bare; i++) {
        const char *keyword = sl_json_key(schema, i, NULL);
        bare = strcmp(keyword, "required") == 0 || mdl_schema_is_note(keyword);
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
