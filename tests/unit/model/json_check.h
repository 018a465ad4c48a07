/* A judge of JSON values by JSON schema, written from the standard and not from the compiler: what
 * generated texts are measured by. Knows the keywords that model/json_schema.c offers; patterns go
 * to pcre2. */
#ifndef TESTS_UNIT_MODEL_JSON_CHECK_H
#define TESTS_UNIT_MODEL_JSON_CHECK_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>

#include "base/json.h"
#include "tests/unit/test.h"

static inline bool judge(const sl_json *root, const sl_json *schema, const sl_json *value);

/* Does the expression occur in the text (whole: is it all of it)? */
static inline bool judge_regex(const char *pattern, const char *text, size_t size, bool whole)
{
    char *anchored = sl_asprintf("test", whole ? "^(?:%s)$" : "%s", pattern);
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)anchored, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
    assert_non_null(re);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(re, NULL);
    bool found = pcre2_match(re, (PCRE2_SPTR)text, size, 0, 0, match, NULL) >= 0;
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    sl_free(anchored);
    return found;
}

static inline bool judge_equal(const sl_json *a, const sl_json *b)
{
    double x, y;
    size_t m, n;
    if (sl_json_double(a, &x) && sl_json_double(b, &y))
        return x == y;
    if (sl_json_typeof(a) != sl_json_typeof(b) || sl_json_count(a) != sl_json_count(b))
        return false;
    const char *s = sl_json_string(a, &m), *t = sl_json_string(b, &n);
    if (s)
        return m == n && memcmp(s, t, m) == 0;
    for (size_t i = 0; i < sl_json_count(a); i++) {
        const sl_json *other = sl_json_at(b, i);
        if (sl_json_typeof(a) == SL_JSON_OBJECT)
            other = sl_json_get(b, sl_json_key(a, i, NULL));
        if (!other || !judge_equal(sl_json_at(a, i), other))
            return false;
    }
    return true;
}

static inline bool judge_type(const char *type, const sl_json *value)
{
    double number;
    switch (sl_json_typeof(value)) {
    case SL_JSON_NULL:
        return strcmp(type, "null") == 0;
    case SL_JSON_FALSE:
    case SL_JSON_TRUE:
        return strcmp(type, "boolean") == 0;
    case SL_JSON_NUMBER:
        assert_true(sl_json_double(value, &number));
        return strcmp(type, "number") == 0 ||
               (strcmp(type, "integer") == 0 && number == floor(number));
    case SL_JSON_STRING:
        return strcmp(type, "string") == 0;
    case SL_JSON_ARRAY:
        return strcmp(type, "array") == 0;
    default:
        return strcmp(type, "object") == 0;
    }
}

static inline bool judge_types(const sl_json *type, const sl_json *value)
{
    if (sl_json_typeof(type) == SL_JSON_STRING)
        return judge_type(sl_json_string(type, NULL), value);
    for (size_t i = 0; i < sl_json_count(type); i++)
        if (judge_type(sl_json_string(sl_json_at(type, i), NULL), value))
            return true;
    return false;
}

static inline double judge_limit(const sl_json *schema, const char *keyword, double absent)
{
    double limit = absent;
    (void)sl_json_double(sl_json_get(schema, keyword), &limit);
    return limit;
}

/* As near as doubles tell. */
static inline bool judge_multiple(double number, double step)
{
    double count = step > 0 ? number / step : 0;
    return fabs(count - nearbyint(count)) <= 1e-9 * fmax(1, fabs(count));
}

static inline bool judge_number(const sl_json *schema, double number)
{
    bool above = false, below = false; /* of draft 4 */
    (void)sl_json_bool(sl_json_get(schema, "exclusiveMinimum"), &above);
    (void)sl_json_bool(sl_json_get(schema, "exclusiveMaximum"), &below);
    return number >= judge_limit(schema, "minimum", -INFINITY) &&
           number <= judge_limit(schema, "maximum", INFINITY) &&
           !(above && number == judge_limit(schema, "minimum", -INFINITY)) &&
           !(below && number == judge_limit(schema, "maximum", INFINITY)) &&
           number > judge_limit(schema, "exclusiveMinimum", -INFINITY) &&
           number < judge_limit(schema, "exclusiveMaximum", INFINITY) &&
           judge_multiple(number, judge_limit(schema, "multipleOf", 0));
}

static inline bool judge_string(const sl_json *schema, const char *text, size_t size)
{
    size_t points = 0;
    for (size_t i = 0; i < size; i++)
        points += ((unsigned char)text[i] & 0xc0) != 0x80;
    const char *pattern = sl_json_string(sl_json_get(schema, "pattern"), NULL);
    return (double)points >= judge_limit(schema, "minLength", 0) &&
           (double)points <= judge_limit(schema, "maxLength", INFINITY) &&
           (!pattern || judge_regex(pattern, text, size, false));
}

static inline bool judge_array(const sl_json *root, const sl_json *schema, const sl_json *value)
{
    const sl_json *prefix = sl_json_get(schema, "prefixItems"), *items;
    items = sl_json_get(schema, "items");
    if (sl_json_typeof(items) == SL_JSON_ARRAY) { /* older drafts */
        prefix = items;
        items = sl_json_get(schema, "additionalItems");
    }
    if ((double)sl_json_count(value) < judge_limit(schema, "minItems", 0) ||
        (double)sl_json_count(value) > judge_limit(schema, "maxItems", INFINITY))
        return false;
    const sl_json *contains = sl_json_get(schema, "contains");
    double hits = 0;
    for (size_t i = 0; contains && i < sl_json_count(value); i++)
        hits += judge(root, contains, sl_json_at(value, i));
    if (contains && (hits < judge_limit(schema, "minContains", 1) ||
                     hits > judge_limit(schema, "maxContains", INFINITY)))
        return false;
    bool unique = false;
    (void)sl_json_bool(sl_json_get(schema, "uniqueItems"), &unique);
    for (size_t i = 0; unique && i < sl_json_count(value); i++)
        for (size_t k = 0; k < i; k++)
            if (judge_equal(sl_json_at(value, i), sl_json_at(value, k)))
                return false;
    for (size_t i = 0; i < sl_json_count(value); i++) {
        const sl_json *item = i < sl_json_count(prefix) ? sl_json_at(prefix, i) : items;
        if (item && !judge(root, item, sl_json_at(value, i)))
            return false;
    }
    return true;
}

/* Dependencies, old and new. */
static inline bool judge_dependencies(const sl_json *root, const sl_json *all, const sl_json *value)
{
    for (size_t i = 0; i < sl_json_count(all); i++) {
        const sl_json *wanted = sl_json_at(all, i);
        if (!sl_json_get(value, sl_json_key(all, i, NULL)))
            continue;
        if (sl_json_typeof(wanted) != SL_JSON_ARRAY && !judge(root, wanted, value))
            return false;
        for (size_t k = 0; sl_json_typeof(wanted) == SL_JSON_ARRAY && k < sl_json_count(wanted);
             k++)
            if (!sl_json_get(value, sl_json_string(sl_json_at(wanted, k), NULL)))
                return false;
    }
    return true;
}

/* The keys, as an array of strings. */
static inline bool judge_names(const sl_json *root, const sl_json *schema, const sl_json *value)
{
    for (size_t i = 0; schema && i < sl_json_count(value); i++) {
        sl_json_doc *doc = NULL;
        size_t size;
        sl_buf text;
        sl_err err;
        const char *key = sl_json_key(value, i, &size);
        sl_buf_init(&text, 0);
        sl_json_write_string(&text, key, size);
        assert_ok(sl_json_parse(text.data, text.size, NULL, &doc, &err), &err);
        bool good = judge(root, schema, sl_json_root(doc));
        sl_json_doc_destroy(doc);
        sl_buf_fini(&text);
        if (!good)
            return false;
    }
    return true;
}

static inline bool judge_object(const sl_json *root, const sl_json *schema, const sl_json *value)
{
    const sl_json *properties = sl_json_get(schema, "properties");
    const sl_json *additional = sl_json_get(schema, "additionalProperties");
    const sl_json *patterns = sl_json_get(schema, "patternProperties");
    const sl_json *required = sl_json_get(schema, "required");
    if (!judge_dependencies(root, sl_json_get(schema, "dependencies"), value) ||
        !judge_dependencies(root, sl_json_get(schema, "dependentRequired"), value) ||
        !judge_dependencies(root, sl_json_get(schema, "dependentSchemas"), value) ||
        !judge_names(root, sl_json_get(schema, "propertyNames"), value))
        return false;
    for (size_t i = 0; i < sl_json_count(required); i++)
        if (!sl_json_get(value, sl_json_string(sl_json_at(required, i), NULL)))
            return false;
    if ((double)sl_json_count(value) < judge_limit(schema, "minProperties", 0) ||
        (double)sl_json_count(value) > judge_limit(schema, "maxProperties", INFINITY))
        return false;
    for (size_t i = 0; i < sl_json_count(value); i++) {
        size_t size;
        const char *key = sl_json_key(value, i, &size);
        const sl_json *property = sl_json_get(properties, key);
        bool known = property != NULL;
        if (property && !judge(root, property, sl_json_at(value, i)))
            return false;
        for (size_t k = 0; k < sl_json_count(patterns); k++) {
            if (!judge_regex(sl_json_key(patterns, k, NULL), key, size, false))
                continue;
            known = true;
            if (!judge(root, sl_json_at(patterns, k), sl_json_at(value, i)))
                return false;
        }
        if (!known && additional && !judge(root, additional, sl_json_at(value, i)))
            return false;
    }
    return true;
}

/* How many of the schemas accept the value. */
static inline size_t judge_count(const sl_json *root, const sl_json *list, const sl_json *value)
{
    size_t count = 0;
    for (size_t i = 0; i < sl_json_count(list); i++)
        count += judge(root, sl_json_at(list, i), value);
    return count;
}

static inline const sl_json *judge_target(const sl_json *root, const char *reference)
{
    char copy[256];
    assert_true(reference[0] == '#' && strlen(reference) < sizeof(copy));
    memcpy(copy, reference, strlen(reference) + 1);
    char *save = NULL;
    for (char *part = strtok_r(copy + 1, "/", &save); part; part = strtok_r(NULL, "/", &save))
        root = sl_json_get(root, part);
    assert_non_null(root);
    return root;
}

static inline bool judge_groups(const sl_json *root, const sl_json *schema, const sl_json *value)
{
    const sl_json *any_of = sl_json_get(schema, "anyOf"), *all_of = sl_json_get(schema, "allOf");
    const sl_json *one_of = sl_json_get(schema, "oneOf"), *list = sl_json_get(schema, "enum");
    bool listed = !list;
    for (size_t i = 0; i < sl_json_count(list); i++)
        listed |= judge_equal(sl_json_at(list, i), value);
    const sl_json *not = sl_json_get(schema, "not"), *condition = sl_json_get(schema, "if");
    if (not &&judge(root, not, value))
        return false;
    if (condition) {
        const sl_json *then = sl_json_get(schema, judge(root, condition, value) ? "then" : "else");
        if (then && !judge(root, then, value))
            return false;
    }
    return listed && (!any_of || judge_count(root, any_of, value) > 0) &&
           (!one_of || judge_count(root, one_of, value) == 1) &&
           (!all_of || judge_count(root, all_of, value) == sl_json_count(all_of));
}

static inline bool judge(const sl_json *root, const sl_json *schema, const sl_json *value)
{
    size_t size;
    double number;
    if (sl_json_typeof(schema) != SL_JSON_OBJECT)
        return sl_json_typeof(schema) == SL_JSON_TRUE;
    const char *reference = sl_json_string(sl_json_get(schema, "$ref"), NULL);
    const char *text = sl_json_string(value, &size);
    const sl_json *constant = sl_json_get(schema, "const"), *type = sl_json_get(schema, "type");
    if ((reference && !judge(root, judge_target(root, reference), value)) ||
        (type && !judge_types(type, value)) || (constant && !judge_equal(constant, value)) ||
        !judge_groups(root, schema, value))
        return false;
    if (text)
        return judge_string(schema, text, size);
    if (sl_json_typeof(value) == SL_JSON_NUMBER)
        return sl_json_double(value, &number) && judge_number(schema, number);
    if (sl_json_typeof(value) == SL_JSON_ARRAY)
        return judge_array(root, schema, value);
    return sl_json_typeof(value) != SL_JSON_OBJECT || judge_object(root, schema, value);
}

#endif
