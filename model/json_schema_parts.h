/* The inside of the schema compiler, shared by its files. Not for others. */
#ifndef MODEL_JSON_SCHEMA_PARTS_H
#define MODEL_JSON_SCHEMA_PARTS_H

#include "model/json_schema.h"

#define MDL_SCHEMA_ALL_MAX         16  /* schemas that hold for one value together */
#define MDL_SCHEMA_FEW_MAX         4   /* patterns, enums of one value */
#define MDL_SCHEMA_PATH_MAX        400 /* longer ones are cut */
#define MDL_SCHEMA_COMPARISONS_MAX 20000u
#define MDL_SCHEMA_ALTERNATIVES_MAX \
    4096u /* of a schema, those inside others as often as they are met */
#define MDL_SCHEMA_COUNT_ANY UINT32_MAX

typedef enum mdl_json_kind {
    MDL_JSON_OBJECT = 1 << 0,
    MDL_JSON_ARRAY = 1 << 1,
    MDL_JSON_STRING = 1 << 2,
    MDL_JSON_NUMBER = 1 << 3,  /* any, integers too */
    MDL_JSON_INTEGER = 1 << 4, /* set without NUMBER: integers only */
    MDL_JSON_BOOLEAN = 1 << 5,
    MDL_JSON_NULL = 1 << 6,
    MDL_JSON_ANY = (1 << 7) - 1,
} mdl_json_kind;

/* Parts of a schema that are accounted for elsewhere. */
typedef enum mdl_schema_skip {
    MDL_SKIP_REF = 1 << 0,
    MDL_SKIP_ALL_OF = 1 << 1,
    MDL_SKIP_ANY_OF = 1 << 2,
    MDL_SKIP_ONE_OF = 1 << 3,
    MDL_SKIP_NOT = 1 << 4,
    MDL_SKIP_IF = 1 << 5,
    MDL_SKIP_DEPENDENCIES = 1 << 6, /* those of newer drafts too */
} mdl_schema_skip;

typedef struct mdl_schema_item {
    const sl_json *schema;
    unsigned skip;
    uint32_t dependencies; /* accounted for, of the schema's in order */
    bool negated;          /* the value must break it */
    const char *keyword;   /* negated: this keyword of it; NULL: any */
} mdl_schema_item;

/* A member that must be there; item.schema NULL: it may be anything. */
typedef struct mdl_schema_needed {
    mdl_word name;
    mdl_schema_item item;
} mdl_schema_needed;

/* Schemas that all hold for one value, members that it, an object then, must not or must have, and
 * kinds that it is not of. */
typedef struct mdl_schema_all {
    mdl_schema_item items[MDL_SCHEMA_ALL_MAX];
    uint32_t count;
    mdl_word forbidden[MDL_SCHEMA_ALL_MAX];
    uint32_t forbidden_count;
    mdl_schema_needed needed[MDL_SCHEMA_ALL_MAX];
    uint32_t needed_count;
    unsigned other_kinds;
} mdl_schema_all;

/* Do the schemas say all there is? */
static inline bool mdl_schema_is_plain(const mdl_schema_all *all)
{
    return all->forbidden_count == 0 && all->needed_count == 0 && all->other_kinds == 0;
}

typedef struct mdl_schema_property {
    const char *name;
    size_t name_size;
    bool required;
    bool declared;  /* by properties, not by required alone */
    bool forbidden; /* by another alternative of a oneOf */
    mdl_schema_all all;
} mdl_schema_property;

typedef struct mdl_json_bounds {
    const char *lower, *upper; /* number texts, NULL = none */
    bool lower_open, upper_open;
} mdl_json_bounds;

/* What the schemas of one value say together, groups of alternatives aside. */
typedef struct mdl_schema_facts {
    unsigned kinds;
    unsigned hints; /* kinds that the keywords speak of */
    bool typed;     /* a type was given */
    mdl_schema_property *properties;
    size_t property_count, property_capacity;
    const sl_json *closed[MDL_SCHEMA_FEW_MAX]; /* schemas with additionalProperties false */
    uint32_t closed_count;
    const sl_json *key_patterns;           /* patternProperties, not empty */
    mdl_dfa *key_dfas[MDL_SCHEMA_FEW_MAX]; /* of the patterns, made when first asked for */
    uint32_t size_min, size_max;           /* members */
    const sl_json *additional;             /* additionalProperties as a schema, or true */
    mdl_schema_all items;
    bool items_none; /* items false */
    const sl_json *prefix_items;
    uint32_t items_min, items_max;
    uint32_t length_min, length_max;
    const sl_json *patterns[MDL_SCHEMA_FEW_MAX];
    uint32_t pattern_count;
    const char *format;
    mdl_json_bounds bounds;
    const char *multiple;    /* multipleOf, NULL = none */
    mdl_schema_all names;    /* propertyNames */
    mdl_dfa *names_dfa;      /* made when there are any; NULL then: no name will do */
    bool unique;             /* uniqueItems */
    const sl_json *contains; /* NULL = none, or no number of them would be wrong */
    uint32_t contains_min, contains_max;
    const sl_json *without[MDL_SCHEMA_FEW_MAX]; /* enum arrays and constants it is none of */
    bool without_is_list[MDL_SCHEMA_FEW_MAX];
    uint32_t without_count;
    const sl_json *not_patterns[MDL_SCHEMA_FEW_MAX];
    uint32_t not_pattern_count;
    const sl_json *values[MDL_SCHEMA_FEW_MAX]; /* enum arrays and constants */
    bool value_is_list[MDL_SCHEMA_FEW_MAX];
    uint32_t value_count;
} mdl_schema_facts;

typedef struct mdl_schema_rule {
    const sl_json *schema;
    mdl_node rule;
} mdl_schema_rule;

typedef struct mdl_schema_compiler {
    mdl_grammar *grammar;
    const sl_json *root;
    bool strict;
    bool raw;      /* strings stand as they are, not as JSON */
    bool unmarked; /* the model's markup stands around: its mark is kept out of strings */
    char path[MDL_SCHEMA_PATH_MAX];
    size_t path_size;
    int depth;
    uint32_t comparisons;   /* of alternatives */
    uint32_t alternatives;  /* compiled */
    mdl_schema_rule *rules; /* of $ref targets */
    size_t rule_count, rule_capacity;
    mdl_node space, text, any; /* shared nodes; NONE = not made yet */
    sl_err *err;
} mdl_schema_compiler;

/* ---- json_schema_facts.c ---- */

/* Appends ".name" to the path; the returned size is given back to leave. */
size_t mdl_schema_enter(mdl_schema_compiler *c, const char *name);
size_t mdl_schema_enter_index(mdl_schema_compiler *c, const char *name, size_t index);
void mdl_schema_leave(mdl_schema_compiler *c, size_t size);
/* "path.keyword: ..." */
SL_MUST_USE sl_status mdl_schema_fail(const mdl_schema_compiler *c, sl_code code,
                                      const char *keyword, const char *what);

/* Resolves references and allOf into the list, drops what says nothing. */
SL_MUST_USE sl_status mdl_schema_flatten(mdl_schema_compiler *c, mdl_schema_all *all);
/* A schema that is a reference and nothing else. */
bool mdl_schema_is_reference(const mdl_schema_item *item);
SL_MUST_USE sl_status mdl_schema_resolve(const mdl_schema_compiler *c, const sl_json *reference,
                                         const sl_json **out_target);
/* all: flat. facts: to be given to fini, also after a failure. */
SL_MUST_USE sl_status mdl_schema_collect(mdl_schema_compiler *c, const mdl_schema_all *all,
                                         mdl_schema_facts *facts);
void mdl_schema_facts_fini(mdl_schema_facts *facts);
/* The kinds that are left. */
unsigned mdl_schema_kinds(const mdl_schema_facts *facts);
unsigned mdl_schema_kind_of(const sl_json *value);
/* Numbers by their size; of objects and arrays all. */
bool mdl_schema_may_be_equal(const sl_json *a, const sl_json *b);
/* Is it one of those that the value must not be? */
bool mdl_schema_is_without(const mdl_schema_facts *facts, const sl_json *value);
/* Of a kind, some of them. */
bool mdl_schema_without_kind(const mdl_schema_facts *facts, unsigned kinds);
/* Is it of enum or const number `index`? */
bool mdl_schema_allowed_by(const mdl_schema_facts *facts, uint32_t index, const sl_json *value);
/* The values of enum and const that all of them and the kinds allow, in order. */
size_t mdl_schema_values(const mdl_schema_facts *facts, unsigned kinds, const sl_json **out_values,
                         size_t max);
/* ---- json_schema_apart.c ---- */

/* A member that b requires, and neither a nor the list, whose schemas hold for both; *out_name.data
 * NULL: there is none, or they are not objects alone. *out_bare: b says nothing else. */
SL_MUST_USE sl_status mdl_schema_required_beyond(mdl_schema_compiler *c, const mdl_schema_all *all,
                                                 const sl_json *a, const sl_json *b,
                                                 mdl_word *out_name, bool *out_bare);
bool mdl_schema_forbid(mdl_schema_all *all, const mdl_word *name);
/* False: there is no room. */
bool mdl_schema_add(mdl_schema_all *all, const mdl_schema_item *item);
/* What reads a keyword of a negated item, or NULL; and whether it is one that says nothing. */
bool mdl_schema_can_negate(const char *keyword);
bool mdl_schema_is_note(const char *keyword);
/* The kinds that a type keyword names. */
SL_MUST_USE sl_status mdl_schema_type_kinds(mdl_schema_compiler *c, const sl_json *type,
                                            unsigned *out_kinds);
/* Can no value satisfy both? */
SL_MUST_USE sl_status mdl_schema_disjoint(mdl_schema_compiler *c, const sl_json *a,
                                          const sl_json *b, bool *out_disjoint);

/* ---- json_schema_groups.c ---- */

/* Keywords that mean one of several: the first of them that is not accounted for becomes its
 * alternatives. *out_found false: there is none left. */
SL_MUST_USE sl_status mdl_schema_group(mdl_schema_compiler *c, const mdl_schema_all *all,
                                       unsigned kinds, bool *out_found, mdl_node *out_node);
bool mdl_schema_has_group(const mdl_schema_all *all);

/* ---- json_schema.c ---- */

/* One value of the wanted kinds; NONE when no such value satisfies the schemas. */
SL_MUST_USE sl_status mdl_schema_value(mdl_schema_compiler *c, const mdl_schema_all *all,
                                       unsigned kinds, mdl_node *out_node);

/* Does any keyword say more than kinds and values? */
bool mdl_schema_is_constrained(const mdl_schema_facts *facts);

static inline mdl_schema_all mdl_schema_one(const sl_json *schema)
{
    mdl_schema_all all = {.count = 1};
    all.items[0].schema = schema;
    return all;
}

/* ---- json_schema_arrays.c ---- */

SL_MUST_USE sl_status mdl_schema_array(mdl_schema_compiler *c, const mdl_schema_facts *facts,
                                       mdl_node *out_node);

/* ---- json_text.c: the texts of JSON ---- */

mdl_node mdl_json_space(mdl_schema_compiler *c);
/* The comma, and the white space behind it. */
mdl_node mdl_json_comma(mdl_schema_compiler *c);
/* Members between brackets ("[]", "{}") and white space; may_be_empty: or nothing. */
mdl_node mdl_json_brackets(mdl_schema_compiler *c, const char *brackets, mdl_node members,
                           bool may_be_empty);
mdl_node mdl_json_any(mdl_schema_compiler *c);
/* An object or an array of anything. */
mdl_node mdl_json_any_object(mdl_schema_compiler *c);
mdl_node mdl_json_any_array(mdl_schema_compiler *c);
struct mdl_matcher;
/* Is the value, written without white space, a text of the matcher's grammar? */
bool mdl_json_is_text_of(struct mdl_matcher *matcher, const sl_json *value);
mdl_node mdl_json_value(mdl_schema_compiler *c, const sl_json *value);
/* Others are notes: names of somebody's own. */
bool mdl_json_format_known(const char *format);
/* "name" and the colon behind it. */
mdl_node mdl_json_key(mdl_schema_compiler *c, const char *name, size_t size);
/* A key that is none of the properties' and matches one pattern alone: key_patterns' number
 * `pattern`, or none of them (MDL_KEY_OTHER). NONE: there is no such key. */
#define MDL_KEY_OTHER SIZE_MAX
SL_MUST_USE sl_status mdl_json_other_key(mdl_schema_compiler *c, mdl_schema_facts *facts,
                                         size_t pattern, mdl_node *out_node);
/* Does a key pattern match a property's name? */
SL_MUST_USE sl_status mdl_json_key_matches(mdl_schema_compiler *c, mdl_schema_facts *facts,
                                           size_t pattern, const mdl_schema_property *property,
                                           bool *out_matches);
/* A string: with quotes and escapes, or as it is when the compiler is set to raw. */
SL_MUST_USE sl_status mdl_json_string(mdl_schema_compiler *c, const mdl_schema_facts *facts,
                                      mdl_node *out_node);

/* Has the property a name that propertyNames allows? */
bool mdl_json_name_fits(const mdl_schema_facts *facts, const mdl_schema_property *property);

/* ---- json_number.c ---- */

/* Is a bound tighter: a > b? */
bool mdl_json_number_above(const char *a, const char *b);
SL_MUST_USE sl_status mdl_json_number(mdl_grammar *grammar, bool integer,
                                      const mdl_json_bounds *bounds, mdl_node *out_node,
                                      sl_err *err);
/* With multipleOf, and without some values (integers only). NONE: those were all. */
SL_MUST_USE sl_status mdl_json_number_of(mdl_grammar *grammar, bool integer,
                                         const mdl_schema_facts *facts, mdl_node *out_node,
                                         sl_err *err);

#endif
