/* Arrays: elements from the last to the first, each with what may stand behind it. Any thread; no
 * I/O. */
#include <string.h>

#include "model/json_schema_parts.h"

#define UNIQUE_MAX          8u /* values of elements that must differ: each set is a state */
#define CONTAINS_MAX        255u
#define CONTAINS_PLACES_MAX 1024u /* of levels times elements */

/* Elements from the last to the first: behind nothing, and behind another element. */
typedef struct chain {
    mdl_node first, more; /* NONE: nothing can stand here */
} chain;

/* What stands behind the prefix: elements of one kind. */
static sl_status rest_of_array(mdl_schema_compiler *c, const mdl_schema_facts *f, uint32_t prefix,
                               chain *at)
{
    mdl_grammar *g = c->grammar;
    uint32_t least = f->items_min > prefix ? f->items_min - prefix : 0;
    uint32_t most = f->items_max == MDL_SCHEMA_COUNT_ANY ? MDL_REPEAT_ANY : f->items_max - prefix;
    mdl_node item;
    if (f->items_none || most == 0) {
        *at = (chain){MDL_NODE_NONE, least > 0 ? MDL_NODE_NONE : MDL_NODE_EMPTY};
        return sl_ok();
    }
    size_t before = mdl_schema_enter(c, "items");
    SL_TRY(mdl_schema_value(c, &f->items, MDL_JSON_ANY, &item));
    mdl_schema_leave(c, before);
    mdl_node behind = mdl_grammar_then(g, mdl_json_comma(c), item);
    at->more = mdl_grammar_repeat(g, behind, least, most);
    mdl_node others = mdl_grammar_repeat(g, behind, least > 0 ? least - 1 : 0,
                                         most == MDL_REPEAT_ANY ? most : most - 1);
    at->first = mdl_grammar_then(g, item, others);
    return sl_ok();
}

/* What may follow a set of used values: bit i of the set is value i. */
static mdl_node unique_from(mdl_schema_compiler *c, const mdl_schema_facts *f,
                            const mdl_node *values, uint32_t count, mdl_node *known, uint32_t used)
{
    mdl_grammar *g = c->grammar;
    uint32_t size = (uint32_t)__builtin_popcount(used);
    if (known[used] != MDL_NODE_EMPTY)
        return known[used];
    mdl_node out = size > 0 && size >= f->items_min ? MDL_NODE_EMPTY : MDL_NODE_NONE;
    for (uint32_t i = count; i-- > 0 && size < f->items_max;) {
        if (used >> i & 1)
            continue;
        mdl_node rest = unique_from(c, f, values, count, known, used | 1u << i);
        mdl_node one = mdl_grammar_then(g, values[i], rest);
        if (size > 0)
            one = mdl_grammar_then(g, mdl_json_comma(c), one);
        out = mdl_grammar_or(g, one, out);
    }
    return known[used] = out;
}

/* The values that elements may have, when they are few and listed; 0: they are not. */
static size_t unique_values(const mdl_schema_facts *items, const sl_json **out_values)
{
    unsigned kinds = mdl_schema_kinds(items);
    size_t count = 0;
    const sl_json *values[UNIQUE_MAX + 1];
    if (items->value_count == 0 || mdl_schema_is_constrained(items))
        return 0;
    size_t all = mdl_schema_values(items, kinds, values, UNIQUE_MAX + 1);
    for (size_t i = 0; i < all && all <= UNIQUE_MAX; i++) {
        bool new = true;
        for (size_t k = 0; k < count; k++)
            new &= !mdl_schema_may_be_equal(out_values[k], values[i]);
        if (new)
            out_values[count++] = values[i];
    }
    return count;
}

/* uniqueItems: exact where the values are few; white space and order as elsewhere. */
static sl_status compile_unique(mdl_schema_compiler *c, const mdl_schema_facts *f,
                                mdl_node *out_node)
{
    const sl_json *values[UNIQUE_MAX];
    mdl_node nodes[UNIQUE_MAX], known[1u << UNIQUE_MAX] = {MDL_NODE_EMPTY};
    mdl_schema_facts items = {0};
    mdl_schema_all all = f->items;
    size_t count = 0;
    sl_status status = mdl_schema_flatten(c, &all);
    bool listed = sl_is_ok(status) && !f->prefix_items && !f->items_none && all.count > 0 &&
                  !mdl_schema_has_group(&all);
    if (listed)
        status = mdl_schema_collect(c, &all, &items);
    if (sl_is_ok(status) && listed)
        count = unique_values(&items, values);
    mdl_schema_facts_fini(&items);
    if (sl_is_ok(status) && count == 0)
        status = mdl_schema_fail(c, SL_UNSUPPORTED, "uniqueItems",
                                 "is offered for items that are an enum of at most 8 values; "
                                 "leave it out and look at the answer, or set maxItems to 1");
    SL_TRY(status);
    for (size_t i = 0; i < count; i++)
        nodes[i] = mdl_json_value(c, values[i]);
    mdl_node elements = unique_from(c, f, nodes, (uint32_t)count, known, 0);
    *out_node = mdl_json_brackets(c, "[]", elements, f->items_min == 0);
    return *out_node == MDL_NODE_NONE
               ? mdl_schema_fail(c, SL_INVALID, "minItems", "is more than the array may hold")
               : sl_ok();
}

/* ---- contains ---- */

/* An element that counts, and one that does not; where no number is too many, any for the latter.
 * NONE: there is no such element. */
typedef struct sorted {
    mdl_node hit, other;
} sorted;

/* What may follow: behind `at` elements (0 .. places), of which k count (0 .. levels, and there no
 * other number makes a difference). */
typedef struct contents {
    const mdl_schema_facts *f;
    uint32_t levels, places;
    mdl_node rest[CONTAINS_MAX + 1]; /* [k]: behind all places, of an array without maxItems */
    mdl_node next[CONTAINS_MAX + 1]; /* [k]: behind one element more than now */
} contents;

static sl_status sort_element(mdl_schema_compiler *c, const mdl_schema_facts *f, uint32_t at,
                              sorted *out)
{
    mdl_schema_all all = f->items;
    const mdl_schema_item hit = {.schema = f->contains};
    const mdl_schema_item other = {.schema = f->contains, .negated = true};
    *out = (sorted){MDL_NODE_NONE, MDL_NODE_NONE};
    if (at < sl_json_count(f->prefix_items))
        all = mdl_schema_one(sl_json_at(f->prefix_items, at));
    else if (f->items_none)
        return sl_ok();
    mdl_schema_all with = all;
    bool room = mdl_schema_add(&with, &hit);
    if (f->contains_max != MDL_SCHEMA_COUNT_ANY)
        room = mdl_schema_add(&all, &other) && room;
    if (!room)
        return mdl_schema_fail(c, SL_TOO_LARGE, "contains", "too many schemas for one value");
    size_t before = mdl_schema_enter(c, "contains");
    SL_TRY(mdl_schema_value(c, &with, MDL_JSON_ANY, &out->hit));
    SL_TRY(mdl_schema_value(c, &all, MDL_JSON_ANY, &out->other));
    mdl_schema_leave(c, before);
    return sl_ok();
}

/* Any number of elements that make no difference, then one that does. */
static void fill_rest(mdl_schema_compiler *c, contents *m, const sorted *element)
{
    mdl_grammar *g = c->grammar;
    mdl_node others = mdl_grammar_then(g, mdl_json_comma(c), element->other);
    mdl_node hit = mdl_grammar_then(g, mdl_json_comma(c), element->hit);
    for (uint32_t k = m->levels + 1; k-- > 0;) {
        mdl_node out = k >= m->f->contains_min ? MDL_NODE_EMPTY : MDL_NODE_NONE;
        if (k < m->levels)
            out = mdl_grammar_or(g, mdl_grammar_then(g, hit, m->rest[k + 1]), out);
        m->rest[k] = mdl_grammar_then(g, mdl_grammar_repeat(g, others, 0, MDL_REPEAT_ANY), out);
    }
}

/* m->next becomes what may follow `at` elements. */
static void prepend_element(mdl_schema_compiler *c, contents *m, uint32_t at, const sorted *element)
{
    mdl_grammar *g = c->grammar;
    for (uint32_t k = 0; k <= m->levels; k++) { /* upwards: k + 1 is still the one behind */
        mdl_node one = mdl_grammar_then(g, element->other, m->next[k]);
        if (k < m->levels)
            one = mdl_grammar_or(g, mdl_grammar_then(g, element->hit, m->next[k + 1]), one);
        if (at > 0)
            one = mdl_grammar_then(g, mdl_json_comma(c), one);
        bool ends = at > 0 && at >= m->f->items_min && k >= m->f->contains_min;
        m->next[k] = mdl_grammar_or(g, one, ends ? MDL_NODE_EMPTY : MDL_NODE_NONE);
    }
}

static sl_status fill_contents(mdl_schema_compiler *c, contents *m)
{
    const mdl_schema_facts *f = m->f;
    uint32_t prefix = (uint32_t)sl_json_count(f->prefix_items);
    sorted element;
    SL_TRY(sort_element(c, f, prefix, &element));
    if (f->items_max == MDL_SCHEMA_COUNT_ANY)
        fill_rest(c, m, &element);
    for (uint32_t k = 0; k <= m->levels; k++) {
        mdl_node end = k >= f->contains_min ? MDL_NODE_EMPTY : MDL_NODE_NONE;
        m->next[k] = f->items_max == MDL_SCHEMA_COUNT_ANY ? m->rest[k] : end;
    }
    for (uint32_t at = m->places; at-- > 0;) {
        if (at < prefix)
            SL_TRY(sort_element(c, f, at, &element));
        prepend_element(c, m, at, &element);
    }
    return sl_ok();
}

/* contains: levels of how many count, beside places as far as they must be counted. */
static sl_status compile_contains(mdl_schema_compiler *c, const mdl_schema_facts *f,
                                  mdl_node *out_node)
{
    uint32_t prefix = (uint32_t)sl_json_count(f->prefix_items);
    contents m = {.f = f, .levels = f->contains_min, .places = f->items_max};
    if (f->unique && f->items_max > 1)
        return mdl_schema_fail(c, SL_UNSUPPORTED, "contains", "beside uniqueItems");
    if (f->contains_max != MDL_SCHEMA_COUNT_ANY)
        m.levels = f->contains_max;
    if (f->items_max == MDL_SCHEMA_COUNT_ANY) { /* what must count is there anyway */
        m.places = f->items_min > f->contains_min ? f->items_min : 1;
        m.places = prefix > m.places ? prefix : m.places;
    }
    if (m.levels > CONTAINS_MAX || (uint64_t)(m.levels + 1) * m.places > CONTAINS_PLACES_MAX)
        return mdl_schema_fail(c, SL_TOO_LARGE, "contains",
                               "too much to count: minContains or maxContains, times minItems or "
                               "maxItems, may be at most about 1000");
    if (f->contains_min > f->contains_max) {
        *out_node = MDL_NODE_NONE;
        return sl_ok();
    }
    SL_TRY(fill_contents(c, &m));
    *out_node = mdl_json_brackets(c, "[]", m.next[0], f->items_min == 0 && f->contains_min == 0);
    return sl_ok();
}

sl_status mdl_schema_array(mdl_schema_compiler *c, const mdl_schema_facts *f, mdl_node *out_node)
{
    mdl_grammar *g = c->grammar;
    chain at;
    uint32_t prefix = (uint32_t)sl_json_count(f->prefix_items);
    if (f->contains && f->items_min <= f->items_max)
        return compile_contains(c, f, out_node);
    if (f->unique && f->items_max > 1)
        return compile_unique(c, f, out_node);
    if (f->items_min > f->items_max)
        return mdl_schema_fail(c, SL_INVALID, "maxItems", "is less than minItems");
    prefix = prefix < f->items_max ? prefix : f->items_max;
    SL_TRY(rest_of_array(c, f, prefix, &at));
    for (uint32_t i = prefix; i-- > 0;) {
        mdl_schema_all all = mdl_schema_one(sl_json_at(f->prefix_items, i));
        mdl_node item;
        size_t before = mdl_schema_enter_index(c, "prefixItems", i);
        SL_TRY(mdl_schema_value(c, &all, MDL_JSON_ANY, &item));
        mdl_schema_leave(c, before);
        /* Elements cannot be left out, but the array may end before them. */
        at.first = mdl_grammar_then(g, item, at.more);
        at.more = mdl_grammar_then(g, mdl_json_comma(c), at.first);
        if (i >= f->items_min)
            at.more = mdl_grammar_or(g, at.more, MDL_NODE_EMPTY);
    }
    *out_node = mdl_json_brackets(c, "[]", at.first, f->items_min == 0);
    if (*out_node == MDL_NODE_NONE)
        return mdl_schema_fail(c, SL_INVALID, "minItems", "is more than the array may hold");
    return sl_ok();
}
