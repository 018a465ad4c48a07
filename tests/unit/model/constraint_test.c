/* Constraints from request to mask: random walks over the masks end, and their texts parse and
 * satisfy the schema, by a judge of its own (json_check.h). */
#include "model/constraint.h"

#include "base/rng.h"
#include "model/masks.h"
#include "model/tokenizer.h"
#include "tests/unit/model/json_check.h"
#include "tests/unit/model/support.h"

#define WALK_MAX 6000u

static mdl_tokenizer *tokenizer;
static mdl_masks *masks;
static uint64_t draws;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(sl_keyed_uniform(7, draws++, 0) * below);
}

static sl_status try_compile(const char *request, mdl_constraint *constraint,
                             mdl_grammar **out_grammar, sl_err *err)
{
    sl_json_doc *doc = NULL;
    assert_ok(sl_json_parse(request, strlen(request), NULL, &doc, err), err);
    mdl_chat *chat = NULL;
    sl_status status = sl_ok();
    if (sl_json_get(sl_json_root(doc), "messages"))
        status = mdl_chat_parse(sl_json_root(doc), NULL, &chat, err);
    mdl_constraint_init(constraint);
    if (sl_is_ok(status))
        status = mdl_constraint_parse(sl_json_root(doc), chat, constraint, err);
    if (sl_is_ok(status))
        status = mdl_constraint_compile(constraint, out_grammar, err);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    return status;
}

static bool allowed(const uint32_t *mask, uint32_t id)
{
    return mask[id / 32] >> (id % 32) & 1;
}

static uint32_t single(char byte)
{
    for (int32_t id = 0; id < mdl_tokenizer_id_end(tokenizer); id++) {
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, id);
        if (bytes.size == 1 && bytes.data[0] == (uint8_t)byte)
            return (uint32_t)id;
    }
    fail();
    return 0;
}

/* Any allowed token; or, when it should end soon, one that ends something. */
static uint32_t choose(const uint32_t *mask, bool soon)
{
    static const char ENDS[] = "\"}]0abcde.@<\n>/";
    uint32_t end = (uint32_t)mdl_tokenizer_id_end(tokenizer), count = 0, id;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->eos))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->eos;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->dsml))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->dsml;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->end_think))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->end_think;
    /* The first ones end values, any of the others may end a word. */
    bool values = draw(2) > 0;
    for (int turn = 0; soon && turn < 40; turn++) {
        uint32_t at = turn < 3 && values ? (uint32_t)turn : draw(sizeof(ENDS) - 1);
        if (draw(4) > 0 && allowed(mask, id = single(ENDS[at])))
            return id;
    }
    for (id = 0; id < end; id++)
        count += allowed(mask, id);
    assert_true(count > 0);
    uint32_t chosen = draw(count);
    for (id = 0; !allowed(mask, id) || chosen-- > 0; id++)
        ;
    return id;
}

/* Every bit of the mask, by stepping each token's bytes. */
static void check_mask(const mdl_cursor *cursor, const uint32_t *mask)
{
    const mdl_special *special = mdl_tokenizer_special(tokenizer);
    for (int32_t id = 0; id < mdl_tokenizer_id_end(tokenizer); id++) {
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, id);
        uint32_t to = cursor->state;
        if (id == special->eos) {
            to = mdl_matcher_accepts(cursor->matcher, to) ? to : MDL_STATE_DEAD;
        } else if (id == special->dsml) {
            to = mdl_matcher_symbol(cursor->matcher, to, MDL_SYMBOL_DSML);
        } else if (id == special->end_think) {
            to = mdl_matcher_symbol(cursor->matcher, to, MDL_SYMBOL_END_THINK);
        } else if (mdl_tokenizer_is_added(tokenizer, id) || bytes.size == 0) {
            to = MDL_STATE_DEAD;
        }
        bool by_bytes = id != special->eos && id != special->dsml && id != special->end_think;
        for (size_t i = 0; by_bytes && i < bytes.size && to > MDL_STATE_DEAD; i++)
            to = mdl_matcher_byte(cursor->matcher, to, bytes.data[i]);
        if (to == MDL_STATE_FULL)
            return; /* the table is full: another state's turn */
        if (allowed(mask, (uint32_t)id) != (to != MDL_STATE_DEAD))
            fail_msg("token %d \"%.*s\": mask says %d", id, (int)bytes.size, bytes.data,
                     allowed(mask, (uint32_t)id));
    }
}

typedef struct walk {
    uint32_t ids[WALK_MAX];
    uint32_t count;
    sl_buf text;
} walk;

/* One random answer, the end of sentence left out. */
static void walk_once(mdl_matcher *matcher, uint32_t soon_after, walk *w)
{
    mdl_cursor cursor = {.matcher = matcher};
    sl_err err;
    w->count = 0;
    sl_buf_init(&w->text, 0);
    for (;;) {
        const uint32_t *mask;
        assert_ok(mdl_cursor_mask(&cursor, masks, w->ids, w->count, &mask, &err), &err);
        if (w->count % 5 == 0)
            check_mask(&cursor, mask);
        uint32_t id = choose(mask, w->count >= soon_after);
        if (id == (uint32_t)mdl_tokenizer_special(tokenizer)->eos)
            break;
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, (int32_t)id);
        sl_buf_append(&w->text, bytes.data, bytes.size);
        if (w->count == WALK_MAX)
            fail_msg("no end: %.400s", w->text.data);
        w->ids[w->count++] = id;
    }
    /* Rebuilt from the tokens alone, the last state is the same. */
    mdl_cursor again = {.matcher = matcher};
    const uint32_t *mask;
    assert_ok(mdl_cursor_mask(&again, masks, w->ids, w->count, &mask, &err), &err);
    assert_true(allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->eos));
}

typedef void (*check_fn)(const char *text, size_t size, const void *context);

static void walk_many(const char *request, uint32_t turns, uint32_t states_max, check_fn check,
                      const void *context)
{
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err = {0};
    sl_status status = try_compile(request, &constraint, &grammar, &err);
    if (!sl_is_ok(status))
        fail_msg("%s: %s", request, err.text);
    mdl_matcher *matcher = mdl_matcher_create(grammar, states_max);
    walk *w = sl_alloc(1, sizeof(*w), "test");
    for (uint32_t turn = 0; turn < turns; turn++) {
        walk_once(matcher, turn % 4 * 12, w);
        if (getenv("SHOW"))
            printf("%.*s\n", (int)w->text.size, w->text.data);
        check(w->text.data ? w->text.data : "", w->text.size, context);
        sl_buf_fini(&w->text);
    }
    sl_free(w);
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
}

static void check_json(const char *text, size_t size, const void *context)
{
    sl_json_doc *doc = NULL;
    sl_err err;
    const sl_json *schema = context;
    if (!sl_is_ok(sl_json_parse(text, size, NULL, &doc, &err)))
        fail_msg("%s: %.*s", err.text, (int)size, text);
    if (!judge(schema, schema, sl_json_root(doc)))
        fail_msg("breaks the schema: %.*s", (int)size, text);
    sl_json_doc_destroy(doc);
}

static void walk_schema(const char *schema, uint32_t turns, uint32_t states_max)
{
    char *request = sl_asprintf("test", "{\"structured_outputs\":{\"json\":%s}}", schema);
    sl_json_doc *doc = NULL;
    sl_err err;
    assert_ok(sl_json_parse(schema, strlen(schema), NULL, &doc, &err), &err);
    walk_many(request, turns, states_max, check_json, sl_json_root(doc));
    sl_json_doc_destroy(doc);
    sl_free(request);
}

static const char *const SCHEMAS[] = {
    "{}",
    "{\"type\":\"object\"}",
    "{\"type\":\"object\",\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{\"type\":\"integer\"}}"
    ","
    "\"required\":[\"a\",\"b\"],\"additionalProperties\":false}",
    "{\"properties\":{\"a\":{},\"b\":{\"type\":\"null\"},\"c\":{\"type\":\"boolean\"}},"
    "\"required\":[\"b\"]}",
    "{\"type\":\"object\",\"properties\":{\"na\\\"me\":{\"type\":\"number\"},\"\\u00fc\\n\":{"
    "\"type\":"
    "\"integer\"}},\"additionalProperties\":{\"type\":\"boolean\"}}",
    "{\"type\":\"object\",\"required\":[\"x\"],\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"ab\":{\"type\":\"null\"}},"
    "\"additionalProperties\":true}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":3,\"maximum\":120},"
    "\"minItems\":2,"
    "\"maxItems\":5}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"integer\"}],\"items\":"
    "false,"
    "\"minItems\":1}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"enum\":[3,"
    "\"x\"]},"
    "\"minItems\":3,\"maxItems\":6}",
    "{\"type\":\"array\",\"maxItems\":0}",
    "{\"type\":[\"string\",\"null\"]}",
    "{\"enum\":[\"red\",\"green\",\"re\\\"d\",1,1.5,null,true,{\"a\":[1,{}]},[],[\"\\u20ac\"]]}",
    "{\"type\":\"string\",\"enum\":[\"a\",\"b\",3]}",
    "{\"const\":{\"k\":\"v\",\"l\":[1,2]}}",
    "{\"type\":\"string\",\"minLength\":3,\"maxLength\":7}",
    "{\"type\":\"string\",\"minLength\":40}",
    "{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}-[0-9]+$\"}",
    "{\"type\":\"string\",\"pattern\":\"ab|cd$\"}",
    "{\"type\":\"string\",\"pattern\":\"^[^a-z\\\\\\\\]{1,4}\\\\\\\\.\\\"\\\\n?$\"}",
    "{\"type\":\"string\",\"pattern\":\"^(abc)+$\",\"maxLength\":10,\"minLength\":4}",
    "{\"type\":\"string\",\"pattern\":\"^[a-z]+$\",\"maxLength\":20}",
    "{\"allOf\":[{\"type\":\"string\",\"pattern\":\"^a\"},{\"pattern\":\"b$\"},{\"maxLength\":8}]}",
    "{\"type\":\"integer\"}",
    "{\"type\":\"integer\",\"minimum\":-5,\"maximum\":17}",
    "{\"type\":\"integer\",\"minimum\":100}",
    "{\"type\":\"integer\",\"exclusiveMaximum\":0}",
    "{\"type\":\"integer\",\"minimum\":7.5,\"maximum\":1e3}",
    "{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
    "{\"type\":\"number\",\"exclusiveMinimum\":-0.25,\"maximum\":0.125}",
    "{\"type\":\"number\",\"minimum\":-273.15}",
    "{\"type\":\"number\",\"exclusiveMaximum\":-1.05,\"minimum\":-20}",
    "{\"type\":\"number\",\"exclusiveMinimum\":0}",
    "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"object\",\"properties\":{\"t\":{\"const\":1}},"
    "\"required\":[\"t\"]},{\"type\":\"object\",\"properties\":{\"t\":{\"const\":2},\"u\":{"
    "\"type\":"
    "\"string\"}},\"required\":[\"t\",\"u\"]}]}",
    "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"kind\":{\"const\":\"a\"},\"x\":{\"type\":"
    "\"number\"}},\"required\":[\"kind\"]},{\"type\":\"object\",\"properties\":{\"kind\":{\"enum\":"
    "[\"b\",\"c\"]}},\"required\":[\"kind\"]},{\"type\":\"null\"}]}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"],"
    "\"anyOf\":["
    "{\"properties\":{\"b\":{\"type\":\"null\"}},\"required\":[\"b\"]},{\"properties\":{\"c\":{"
    "\"type\":"
    "\"boolean\"}},\"required\":[\"c\"]}]}",
    "{\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
    "\"next\":{"
    "\"anyOf\":[{\"$ref\":\"#/$defs/node\"},{\"type\":\"null\"}]}},\"required\":[\"v\",\"next\"],"
    "\"additionalProperties\":false}},\"$ref\":\"#/$defs/node\"}",
    "{\"type\":\"object\",\"properties\":{\"children\":{\"type\":\"array\",\"items\":{\"$ref\":\"#"
    "\"}},"
    "\"name\":{\"type\":\"string\",\"maxLength\":4}},\"required\":[\"name\"]}",
    "{\"allOf\":[{\"$ref\":\"#/definitions/base\"},{\"properties\":{\"b\":{\"type\":\"string\"}},"
    "\"required\":[\"b\"]}],\"definitions\":{\"base\":{\"type\":\"object\",\"properties\":{\"a\":{"
    "\"type\":\"integer\"}},\"required\":[\"a\"]}}}",
    "{\"type\":\"string\",\"format\":\"date-time\"}",
    "{\"type\":\"string\",\"format\":\"uuid\"}",
    "{\"type\":\"string\",\"format\":\"ipv4\"}",
    "{\"type\":\"string\",\"format\":\"email\"}",
    "{\"type\":\"string\",\"format\":\"uri\"}",
    "{\"type\":\"string\",\"format\":\"duration\"}",
    "{\"type\":\"object\",\"title\":\"T\",\"description\":\"d\",\"x-note\":1,\"properties\":{\"a\":"
    "{"
    "\"type\":\"string\",\"default\":\"q\",\"format\":\"date\"}}}",
};

TEST(walks_satisfy_their_schemas)
{
    for (size_t i = 0; i < sizeof(SCHEMAS) / sizeof(SCHEMAS[0]); i++)
        walk_schema(SCHEMAS[i], 12, 0);
}

TEST(small_tables_change_nothing)
{
    /* So few states that the table fills again and again: walks are replayed, and stay right. */
    for (size_t i = 0; i < sizeof(SCHEMAS) / sizeof(SCHEMAS[0]); i += 3)
        walk_schema(SCHEMAS[i], 4, 400);
}

static void check_object(const char *text, size_t size, const void *context)
{
    sl_json_doc *doc = NULL;
    sl_err err;
    assert_ok(sl_json_parse(text, size, NULL, &doc, &err), &err);
    assert_int_equal(sl_json_typeof(sl_json_root(doc)), SL_JSON_OBJECT);
    sl_json_doc_destroy(doc);
}

TEST(json_object_is_an_object)
{
    walk_many("{\"response_format\":{\"type\":\"json_object\"}}", 30, 0, check_object, NULL);
}

static void check_whole(const char *text, size_t size, const void *context)
{
    if (!judge_regex(context, text, size, true))
        fail_msg("not %s: %.*s", (const char *)context, (int)size, text);
}

TEST(walks_match_their_expressions)
{
    static const char *const PATTERNS[] = {
        "a",
        "abc|abd|x*",
        "[0-9]{3}-[0-9]{2,4}",
        "(?:yes|no)( (?:yes|no)){0,3}",
        "\\d+\\.\\d*|\\.\\d+",
        "[^\\x00-\\x7f]{2}",
        "\\w+@\\w+\\.(c|org)",
        "[\\u4e00-\\u9fff]{1,3}\\s?",
        ".{5}",
        "^st.*e$",
        "(a|b)*c(a|b){3}",
        "(?<year>\\d{4})?-?[]x]",
        "x{0}y{2,}?",
        "((a?)*b?)*c",
        "[\\w.-]{1,3}\\\\[\\]\\[]",
        "\\D\\W\\S",
        "a{,2}",
    };
    for (size_t i = 0; i < sizeof(PATTERNS) / sizeof(PATTERNS[0]); i++) {
        sl_buf request;
        sl_buf_init(&request, 0);
        sl_buf_puts(&request, i % 2 ? "{\"guided_regex\":" : "{\"structured_outputs\":{\"regex\":");
        sl_json_write_string(&request, PATTERNS[i], strlen(PATTERNS[i]));
        sl_buf_puts(&request, i % 2 ? "}" : "}}");
        walk_many(request.data, 12, 0, check_whole,
                  strcmp(PATTERNS[i], "[\\u4e00-\\u9fff]{1,3}\\s?") == 0
                      ? "[\\x{4e00}-\\x{9fff}]{1,3}\\s?"
                      : PATTERNS[i]);
        sl_buf_fini(&request);
    }
}

static void check_choice(const char *text, size_t size, const void *context)
{
    static const char *const CHOICES[] = {"yes", "no", "yesterday", "\xe2\x82\xac"};
    for (size_t i = 0; i < 4; i++)
        if (strlen(CHOICES[i]) == size && memcmp(CHOICES[i], text, size) == 0)
            return;
    fail_msg("no choice: %.*s", (int)size, text);
}

TEST(a_choice_is_one_of_them)
{
    walk_many(
        "{\"structured_outputs\":{\"choice\":[\"yes\",\"no\",\"yesterday\",\"\xe2\x82\xac\"]}}", 20,
        0, check_choice, NULL);
    walk_many("{\"guided_choice\":[\"no\"]}", 2, 0, check_choice, NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walks_satisfy_their_schemas),
        cmocka_unit_test(small_tables_change_nothing),
        cmocka_unit_test(json_object_is_an_object),
        cmocka_unit_test(walks_match_their_expressions),
        cmocka_unit_test(a_choice_is_one_of_them),
    };
    sl_err err;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!sl_is_ok(mdl_tokenizer_load(DEMO_MODEL, &tokenizer, &err))) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    masks = mdl_masks_create(tokenizer, 8192, 4 << 20);
    int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
    mdl_masks_destroy(masks);
    mdl_tokenizer_destroy(tokenizer);
    if (failed == 0 && sl_alloc_live() != 0) {
        sl_alloc_print_live();
        return 1;
    }
    return failed;
}
