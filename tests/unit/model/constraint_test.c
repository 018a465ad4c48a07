/* Constraints from request to mask: random walks over the masks end, and their texts parse and
 * satisfy the schema, by a judge of its own (json_check.h). */
#include "model/regex.h"
#include "tests/unit/model/json_schemas.h"
#include "tests/unit/model/walks.h"

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

/* Several answers share a matcher whose table keeps filling: each is told the same as alone. */
TEST(answers_share_a_small_matcher)
{
    enum { ANSWERS = 3, TOKENS = 120 };
    static const char REQUEST[] = "{\"guided_json\":{\"type\":\"array\",\"items\":{\"properties\":{"
                                  "\"a\":{\"type\":\"string\","
                                  "\"maxLength\":40},\"b\":{}},\"required\":[\"a\",\"b\"]}}}";
    static uint32_t ids[ANSWERS][TOKENS];
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    mdl_cursor shared[ANSWERS] = {{0}}, alone[ANSWERS] = {{0}};
    uint32_t count[ANSWERS] = {0}, words = 8192 / 32;
    assert_ok(try_compile(REQUEST, &constraint, &grammar, &err), &err);
    mdl_matcher *small = mdl_matcher_create(grammar, 100), *large = mdl_matcher_create(grammar, 0);
    uint32_t *copy = sl_alloc(words, sizeof(*copy), "test");
    for (uint32_t turn = 0; turn < ANSWERS * (TOKENS - 1); turn++) {
        uint32_t i = turn % ANSWERS;
        const uint32_t *mask;
        shared[i].matcher = small;
        alone[i].matcher = large;
        assert_ok(mdl_cursor_mask(&shared[i], masks, ids[i], count[i], &mask, &err), &err);
        memcpy(copy, mask, words * sizeof(*copy));
        assert_ok(mdl_cursor_mask(&alone[i], masks, ids[i], count[i], &mask, &err), &err);
        assert_memory_equal(mask, copy, words * sizeof(*copy));
        ids[i][count[i]] = choose(mask, false);
        if (ids[i][count[i]] == (uint32_t)mdl_tokenizer_special(tokenizer)->eos)
            count[i] = 0; /* anew */
        else
            count[i]++;
    }
    assert_true(mdl_matcher_epoch(small) > 3);
    uint32_t wrong = (uint32_t)mdl_tokenizer_special(tokenizer)->user;
    const uint32_t *mask;
    ids[0][count[0]] = wrong; /* a token that no mask allowed */
    assert_code(mdl_cursor_mask(&alone[0], masks, ids[0], count[0] + 1, &mask, &err), SL_CONFLICT);
    assert_text_contains(err.text, "breaks the constraint");
    sl_free(copy);
    mdl_matcher_destroy(small);
    mdl_matcher_destroy(large);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
}

/* A look ahead tells what a cursor that took the drafts is told, and moves nothing: not the cursor,
 * and in a table that is full not the matcher either. */
TEST(looking_ahead_moves_nothing)
{
    enum { AHEAD = 3, TOKENS = 80 };
    static const char REQUEST[] = "{\"guided_json\":{\"type\":\"array\",\"items\":{\"properties\":{"
                                  "\"a\":{\"type\":\"string\",\"maxLength\":40},\"b\":{}},"
                                  "\"required\":[\"a\",\"b\"]}}}";
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    uint32_t words = 8192 / 32, unknown = 0;
    assert_ok(try_compile(REQUEST, &constraint, &grammar, &err), &err);
    uint32_t *copy = sl_alloc(words, sizeof(*copy), "test");
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t ids[TOKENS + AHEAD];
        mdl_matcher *matcher = mdl_matcher_create(grammar, turn ? 60 : 0);
        mdl_matcher *other = mdl_matcher_create(grammar, 0);
        mdl_cursor cursor = {.matcher = matcher}, guide = {.matcher = other};
        const uint32_t *mask;
        for (uint32_t count = 0; count < TOKENS + AHEAD; count++) { /* what will be said */
            assert_ok(mdl_cursor_mask(&guide, masks, ids, count, &mask, &err), &err);
            do
                ids[count] = choose(mask, false);
            while (ids[count] == (uint32_t)mdl_tokenizer_special(tokenizer)->eos);
        }
        for (uint32_t count = 0; count < TOKENS; count++) {
            assert_ok(mdl_cursor_mask(&cursor, masks, ids, count, &mask, &err), &err);
            uint32_t epoch = mdl_matcher_epoch(matcher);
            for (uint32_t n = 0; n <= AHEAD; n++) {
                const mdl_cursor_ahead ahead = {ids, count, ids + count, n};
                const uint32_t *seen = mdl_cursor_mask_ahead(&cursor, masks, &ahead);
                unknown += seen == NULL;
                assert_int_equal(cursor.taken, count);
                if (!seen)
                    continue;
                memcpy(copy, seen, words * sizeof(*copy));
                guide = (mdl_cursor){.matcher = other};
                assert_ok(mdl_cursor_mask(&guide, masks, ids, count + n, &mask, &err), &err);
                assert_memory_equal(mask, copy, words * sizeof(*copy));
            }
            assert_int_equal(mdl_matcher_epoch(matcher), epoch);
        }
        assert_true(turn ? unknown > 0 : unknown == 0);
        mdl_matcher_destroy(matcher);
        mdl_matcher_destroy(other);
    }
    sl_free(copy);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
}

TEST(drafts_that_break_the_form_have_no_mask)
{
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    assert_ok(try_compile("{\"guided_regex\":\"ab?\"}", &constraint, &grammar, &err), &err);
    mdl_cursor cursor = {.matcher = mdl_matcher_create(grammar, 0)};
    uint32_t a = token_of("a", 1), b = token_of("b", 1), c = token_of("c", 1);
    uint32_t eos = (uint32_t)mdl_tokenizer_special(tokenizer)->eos;
    const mdl_cursor_ahead good = {&a, 1, &b, 1}, wrong = {&a, 1, &c, 1}, ended = {&a, 1, &eos, 1},
                           broken = {&c, 1, &b, 1};
    const uint32_t *mask = mdl_cursor_mask_ahead(&cursor, masks, &good);
    assert_true(mask && allowed(mask, eos) && !allowed(mask, b));
    assert_null(mdl_cursor_mask_ahead(&cursor, masks, &wrong));
    assert_null(mdl_cursor_mask_ahead(&cursor, masks, &ended));
    cursor.state = MDL_STATE_FULL; /* anew */
    assert_null(mdl_cursor_mask_ahead(&cursor, masks, &broken));
    mdl_matcher_destroy(cursor.matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
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

static bool matches(const char *pattern, const char *text)
{
    mdl_node node = MDL_NODE_NONE;
    sl_err err;
    mdl_grammar *grammar = mdl_grammar_create();
    assert_ok(mdl_regex_compile(grammar, pattern, strlen(pattern), 0, &node, &err), &err);
    assert_ok(mdl_grammar_finish(grammar, node, &err), &err);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
    uint32_t state = mdl_matcher_start(matcher);
    for (const char *at = text; *at; at++)
        state = mdl_matcher_byte(matcher, state, (uint8_t)*at);
    bool accepts = mdl_matcher_accepts(matcher, state);
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    return accepts;
}

/* What some dialect takes for a space, a digit or a word's character is neither said to be one nor
 * not to be one. */
TEST(shorthands_hold_in_every_dialect)
{
    static const char *const UNCLEAR[][2] = {
        {"\\s", "\xc2\x85"},   {"\\S", "\xc2\x85"},    {"[^\\s]", "\xe3\x80\x80"},
        {"[\\S]", "\xc2\xa0"}, {"\\d", "\xd9\xa0"},    {"\\D", "\xd9\xa0"},
        {"\\w", "\xc3\xa9"},   {"[^\\w]", "\xc3\xa9"}, {"[^\\W]", "\xc3\xa9"},
        {".", "\r"},           {".", "\xe2\x80\xa8"}};
    static const char *const CLEAR[][2] = {
        {"\\s", " "}, {"\\S", "\xe4\xb8\xad"}, {"[^\\s]", "a"},    {"\\D", "\xe4\xb8\xad"},
        {"\\W", "-"}, {"[^\\W]", "a"},         {"[^\\D\\s]", "5"}, {".", "\xe2\x82\xac"}};
    for (size_t i = 0; i < sizeof(UNCLEAR) / sizeof(UNCLEAR[0]); i++)
        if (matches(UNCLEAR[i][0], UNCLEAR[i][1]))
            fail_msg("%s matches case %zu", UNCLEAR[i][0], i);
    for (size_t i = 0; i < sizeof(CLEAR) / sizeof(CLEAR[0]); i++)
        if (!matches(CLEAR[i][0], CLEAR[i][1]))
            fail_msg("%s does not match case %zu", CLEAR[i][0], i);
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

/* ---- refusals ---- */

#define JSON(schema) "{\"guided_json\":" schema "}"
#define REGEX(text)  "{\"guided_regex\":\"" text "\"}"
#define FORCED(parameters)                                                                     \
    ASK("{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":" parameters "}}", \
        "\"tool_choice\":\"required\"")
#define AUTO(parameters)                                                       \
    ASK("{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true," \
        "\"parameters\":" parameters "}}",                                     \
        "\"tool_choice\":\"auto\"")
#define FORMAT(rest) "{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{" rest "}}}"

static const struct {
    const char *request;
    sl_code code;
    const char *part;
} REFUSED[] = {
    {JSON("5"), SL_INVALID, "guided_json: must be a schema"},
    {JSON("\"x\""), SL_INVALID, "guided_json: is not JSON"},
    {JSON("{\"not\":{}}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"not\":5}"), SL_INVALID, "guided_json.not: must be a schema"},
    {JSON("{\"properties\":{\"a\":{\"not\":{\"items\":{}}}}}"), SL_UNSUPPORTED,
     "guided_json.properties.a.not.not: cannot be told of items"},
    {JSON("{\"type\":\"number\",\"not\":{\"const\":1}}"), SL_UNSUPPORTED, "1 is also 1.0"},
    {JSON("{\"not\":{\"const\":[]}}"), SL_UNSUPPORTED, "cannot be left out"},
    {JSON("{\"if\":5,\"then\":{}}"), SL_INVALID, "guided_json.if: must be a schema"},
    {JSON("{\"dependencies\":{\"a\":5}}"), SL_INVALID, "guided_json.dependencies"},
    {JSON("{\"dependentRequired\":{\"a\":[5]}}"), SL_INVALID, "must list names"},
    {JSON("{\"propertyNames\":5}"), SL_INVALID, "guided_json.propertyNames: must be a schema"},
    {JSON("{\"properties\":{\"ab\":{}},\"required\":[\"ab\"],\"propertyNames\":{\"maxLength\":1}}"),
     SL_INVALID, "no value satisfies"},
    {JSON("{\"multipleOf\":0}"), SL_INVALID, "guided_json.multipleOf: must be a number above 0"},
    {JSON("{\"multipleOf\":123457}"), SL_TOO_LARGE, "guided_json.multipleOf: too large"},
    {JSON("{\"type\":\"text\"}"), SL_INVALID, "guided_json.type: must be object"},
    {JSON("{\"uniqueItems\":true}"), SL_UNSUPPORTED, "guided_json.uniqueItems: is offered for"},
    {JSON("{\"uniqueItems\":1}"), SL_INVALID, "guided_json.uniqueItems: must be true"},
    {JSON("{\"format\":\"regex\"}"), SL_UNSUPPORTED, "guided_json.format"},
    {JSON("{\"type\":\"object\",\"minProperties\":2}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"properties\":{\"a\":{},\"b\":{}},\"required\":[\"a\",\"b\"],\"maxProperties\":1}"),
     SL_INVALID, "no value satisfies"},
    {JSON("{\"patternProperties\":{\"(\":{}}}"), SL_INVALID, "guided_json.patternProperties"},
    {FORMAT("\"strict\":true,\"schema\":{\"type\":\"string\",\"minLenght\":1}"), SL_INVALID,
     "minLenght: is no keyword"},
    {FORMAT("\"strict\":true,\"schema\":{\"type\":\"string\",\"format\":\"topic\"}"),
     SL_UNSUPPORTED, "no format of the standard"},
    {JSON("{\"pattern\":\"(?=a)\"}"), SL_UNSUPPORTED, "guided_json.pattern: at byte 0: looking"},
    {JSON("{\"pattern\":5}"), SL_INVALID, "guided_json.pattern: must be a string"},
    {JSON("{\"minLength\":-1}"), SL_INVALID, "guided_json.minLength"},
    {JSON("{\"pattern\":\"^ab$\",\"minLength\":5}"), SL_INVALID, "guided_json.minLength: no text"},
    {JSON("{\"maxLength\":2000000}"), SL_TOO_LARGE, "guided_json.maxLength"},
    {JSON("{\"minLength\":3,\"maxLength\":2}"), SL_INVALID, "less than minLength"},
    {JSON("{\"minItems\":3,\"maxItems\":2}"), SL_INVALID, "less than minItems"},
    {JSON("{\"items\":false,\"minItems\":1}"), SL_INVALID, "more than the array may hold"},
    {JSON("{\"type\":\"integer\",\"minimum\":3.2,\"maximum\":3.8}"), SL_INVALID,
     "no text satisfies"},
    {JSON("{\"type\":\"number\",\"minimum\":3,\"exclusiveMaximum\":3}"), SL_INVALID, "no text"},
    {JSON("{\"type\":\"number\",\"minimum\":1e30}"), SL_UNSUPPORTED, "digits"},
    {JSON("{\"minimum\":\"x\"}"), SL_INVALID, "guided_json.minimum: must be a number"},
    {JSON("{\"enum\":[]}"), SL_INVALID, "guided_json.enum"},
    {JSON("{\"enum\":[1],\"type\":\"string\"}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"enum\":[\"a\"],\"minLength\":2}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"type\":\"string\",\"allOf\":[{\"type\":\"null\"}]}"), SL_INVALID,
     "no value satisfies"},
    {JSON("{\"anyOf\":[]}"), SL_INVALID, "guided_json.anyOf"},
    {JSON("{\"anyOf\":[false]}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"anyOf\":[5]}"), SL_INVALID, "must be a schema"},
    {JSON("{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}"), SL_UNSUPPORTED, "0 and 1"},
    {JSON("{\"oneOf\":[{\"properties\":{\"a\":{}},\"required\":[\"a\"]},{\"properties\":{\"b\":{}}}"
          "]}"),
     SL_UNSUPPORTED, "may both match"},
    {JSON("{\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"a\"]}]}"), SL_INVALID,
     "no value satisfies"},
    {JSON("{\"$ref\":\"#/$defs/a\"}"), SL_INVALID, "$ref: leads nowhere"},
    {JSON("{\"$ref\":\"https://x/y\"}"), SL_UNSUPPORTED, "into this schema"},
    {JSON("{\"$ref\":\"#\"}"), SL_INVALID, "recursion never ends"},
    {JSON("{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}"), SL_INVALID,
     "recursion never ends"},
    {JSON("{\"required\":[\"a\"],\"additionalProperties\":false}"), SL_INVALID, "forbids"},
    {JSON("{\"properties\":{\"a\":{\"type\":\"array\",\"items\":{\"properties\":{\"b\":{"
          "\"unevaluatedItems\":"
          "{}}}}}}}"),
     SL_UNSUPPORTED, "guided_json.properties.a.items.properties.b.unevaluatedItems"},
    {JSON("{\"contains\":5}"), SL_INVALID, "guided_json.contains: must be a schema"},
    {JSON("{\"contains\":{},\"minContains\":-1}"), SL_INVALID, "guided_json.minContains"},
    {JSON("{\"contains\":{},\"maxContains\":1.5}"), SL_INVALID, "guided_json.maxContains"},
    {JSON("{\"maxContains\":\"x\"}"), SL_INVALID, "guided_json.maxContains"},
    {JSON("{\"contains\":{},\"minContains\":3,\"maxContains\":2}"), SL_INVALID, "no value"},
    {JSON("{\"contains\":{},\"minContains\":3,\"maxItems\":2}"), SL_INVALID, "no value"},
    {JSON("{\"contains\":false}"), SL_INVALID, "no value satisfies"},
    {JSON("{\"contains\":{\"const\":1},\"maxContains\":2}"), SL_UNSUPPORTED, "1 is also 1.0"},
    {JSON("{\"contains\":{\"items\":{}},\"maxContains\":2}"), SL_UNSUPPORTED,
     "guided_json.contains.not: cannot be told of items"},
    {JSON("{\"contains\":{},\"minContains\":300}"), SL_TOO_LARGE, "guided_json.contains: too much"},
    {JSON("{\"contains\":{},\"minContains\":30,\"maxItems\":90}"), SL_TOO_LARGE, "too much"},
    {JSON("{\"allOf\":[{\"contains\":{}},{\"contains\":{\"type\":\"null\"}}]}"), SL_UNSUPPORTED,
     "contains: two of them"},
    {JSON("{\"contains\":{},\"uniqueItems\":true}"), SL_UNSUPPORTED, "beside uniqueItems"},
    {JSON("{\"pattern\":\"^(x(a{101})*|y(a{103})*|z(a{107})*)$\",\"minLength\":1,\"maxLength\":"
          "1000000}"),
     SL_TOO_LARGE, "guided_json.maxLength: too large: the lengths beside the pattern take"},
    {JSON("{\"pattern\":\"^(a|b)*a(a|b){14}$\",\"maxLength\":100}"), SL_TOO_LARGE,
     "make the pattern or the number simpler"},
    {JSON("{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"},{\"pattern\":\"c\"},{\"pattern\":"
          "\"d\"},{\"pattern\":\"e\"}]}"),
     SL_TOO_LARGE, "more than 4 patterns for one value; leave some out"},
    {JSON("{\"allOf\":[{\"enum\":[1]},{\"enum\":[1,2]},{\"enum\":[1,3]},{\"enum\":[1,4]},"
          "{\"const\":1}]}"),
     SL_TOO_LARGE, "more than 4 enums for one value; leave some out"},
    {JSON("{\"patternProperties\":{\"a\":{},\"b\":{},\"c\":{},\"d\":{},\"e\":{}}}"), SL_TOO_LARGE,
     "more than 4 patterns; join those of one schema by |"},
    {FORMAT("\"name\":\"n\""), SL_INVALID, "response_format.json_schema.schema: is missing"},
    {FORMAT("\"schema\":5"), SL_INVALID, "response_format.json_schema.schema: must be an object"},
    {FORMAT("\"schema\":{},\"strict\":1"), SL_INVALID, "strict"},
    {FORMAT("\"strict\":true,\"schema\":{\"type\":\"object\"}"), SL_INVALID,
     "schema.additionalProperties: must be false under strict"},
    {FORMAT(
         "\"strict\":true,\"schema\":{\"properties\":{\"a\":{}},\"additionalProperties\":false}"),
     SL_INVALID, "must name \"a\" under strict"},
    {REGEX("a**"), SL_INVALID, "at byte 2: a quantifier behind"},
    {REGEX("*a"), SL_INVALID, "nothing to repeat"},
    {REGEX("a{3,2}"), SL_INVALID, "out of order"},
    {REGEX("[b-a]"), SL_INVALID, "out of order"},
    {REGEX("[a"), SL_INVALID, "not closed"},
    {REGEX("(a"), SL_INVALID, "not closed"},
    {REGEX("a)"), SL_INVALID, "closes nothing"},
    {REGEX("a$b"), SL_UNSUPPORTED, "inside an expression"},
    {REGEX("(^a)"), SL_UNSUPPORTED, "inside an expression"},
    {REGEX("\\\\1"), SL_UNSUPPORTED, "back reference"},
    {REGEX("\\\\bx"), SL_UNSUPPORTED, "word boundary"},
    {REGEX("\\\\p{L}"), SL_UNSUPPORTED, "property"},
    {REGEX("(?i)a"), SL_UNSUPPORTED, "kind of group"},
    {REGEX("(?<!a)b"), SL_UNSUPPORTED, "looking ahead or behind"},
    {REGEX("a++"), SL_UNSUPPORTED, "possessive"},
    {REGEX("[[:alpha:]]"), SL_UNSUPPORTED, "POSIX"},
    {REGEX("\\\\ud800"), SL_INVALID, "not a code point"},
    {REGEX("\\\\q"), SL_UNSUPPORTED, "this escape"},
    {REGEX("a{2000000}"), SL_TOO_LARGE, "repetitions"},
    {REGEX("[^\\\\s\\\\S]"), SL_INVALID, "no character is in"},
    {"{\"guided_choice\":\"a\"}", SL_INVALID, "guided_choice: must be an array"},
    {"{\"guided_choice\":[]}", SL_INVALID, "guided_choice"},
    {"{\"guided_choice\":[\"\"]}", SL_INVALID, "guided_choice[0]"},
    {"{\"guided_grammar\":\"x\"}", SL_UNSUPPORTED, "guided_grammar"},
    {"{\"structured_outputs\":5}", SL_INVALID, "structured_outputs: must be an object"},
    {"{\"structured_outputs\":{\"json_object\":1}}", SL_INVALID, "json_object"},
    {"{\"structured_outputs\":{\"json\":{},\"regex\":\"a\"}}", SL_INVALID, "one form"},
    {ASK(TOOL_F, "\"tool_choice\":\"required\",\"parallel_tool_calls\":5"), SL_INVALID,
     "parallel_tool_calls"},
    {FORCED("{\"type\":\"string\"}"), SL_INVALID, "parameters.type: must be object"},
    {FORCED("{\"const\":{\"a\":1}}"), SL_UNSUPPORTED, "parameters: enum and const"},
    {FORCED("{\"type\":\"object\",\"not\":{\"enum\":[{}]}}"), SL_UNSUPPORTED, "parameters"},
    {FORCED("{\"additionalProperties\":{},\"minProperties\":1}"), SL_UNSUPPORTED,
     "parameters.minProperties: cannot be told"},
    {FORCED("{\"properties\":{\"a\":{},\"b\":{}},\"maxProperties\":1}"), SL_UNSUPPORTED,
     "parameters.maxProperties: cannot be told"},
    {FORCED("{\"properties\":{\"a\":{}},\"propertyNames\":{\"maxLength\":9}}"), SL_UNSUPPORTED,
     "parameters.propertyNames: cannot be told"},
    {AUTO("{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":[\"a\"]}"), SL_INVALID,
     "tools[0].function.parameters.additionalProperties: must be false under strict"},
    {AUTO("{\"properties\":{\"a\":{}},\"additionalProperties\":false}"), SL_INVALID,
     "must name \"a\" under strict"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"{"
     "\","
     "\"prefix\":true}],\"guided_json\":{}}",
     SL_UNSUPPORTED, "to be continued"},
};

TEST(refusals_say_what_and_where)
{
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(REFUSED[0]); i++) {
        mdl_constraint constraint;
        mdl_grammar *grammar = NULL;
        sl_err err = {0};
        sl_status status = try_compile(REFUSED[i].request, &constraint, &grammar, &err);
        if (status.code != REFUSED[i].code || !strstr(err.text, REFUSED[i].part))
            fail_msg("%s: %s \"%s\"", REFUSED[i].request, sl_code_name(status.code), err.text);
        assert_null(grammar);
        mdl_constraint_fini(&constraint);
    }
}

/* Schemas that a careless compiler would blow up on. */
TEST(size_is_bounded)
{
    sl_buf request;
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    sl_buf_init(&request, 0);
    sl_buf_puts(&request, "{\"guided_json\":");
    for (int i = 0; i < 80; i++) /* deeper than 64 */
        sl_buf_puts(&request, i < 40 ? "{\"items\":" : "{\"properties\":{\"a\":");
    sl_buf_puts(&request, "{}");
    for (int i = 0; i < 120; i++)
        sl_buf_putc(&request, '}');
    sl_buf_putc(&request, '}');
    assert_code(try_compile(request.data, &constraint, &grammar, &err), SL_TOO_LARGE);
    assert_text_contains(err.text, "nested deeper than 64");
    mdl_constraint_fini(&constraint);

    sl_buf_clear(&request); /* 2^16 combinations */
    sl_buf_puts(&request, "{\"guided_json\":{\"allOf\":[");
    for (int i = 0; i < 15; i++)
        sl_buf_printf(&request,
                      "%s{\"anyOf\":[{\"properties\":{\"a%d\":{}}},{\"properties\":{\"b%d\":{}}}]}",
                      i ? "," : "", i, i);
    sl_buf_puts(&request, "]}}");
    assert_code(try_compile(request.data, &constraint, &grammar, &err), SL_TOO_LARGE);
    mdl_constraint_fini(&constraint);

    sl_buf_clear(&request); /* nested counts: many nodes are asked for, few are made */
    sl_buf_puts(&request,
                "{\"guided_regex\":\"((((a{1000}){1000}){1000}b){1000}c|[a-z]{5}){1000}\"}");
    assert_ok(try_compile(request.data, &constraint, &grammar, &err), &err);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
    sl_buf_fini(&request);
}

/* The longest expression: its first character is found without unfolding all of it. */
TEST(the_longest_expression_is_matched)
{
    sl_buf request;
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    sl_buf_init(&request, 0);
    sl_buf_puts(&request, "{\"guided_regex\":\"");
    for (uint32_t i = 0; i < MDL_REGEX_BYTES_MAX; i++)
        sl_buf_putc(&request, 'a');
    sl_buf_puts(&request, "\"}");
    assert_ok(try_compile(request.data, &constraint, &grammar, &err), &err);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 4 * MDL_REGEX_BYTES_MAX);
    uint32_t at = mdl_matcher_start(matcher);
    for (uint32_t i = 0; i < MDL_REGEX_BYTES_MAX; i++) {
        assert_false(mdl_matcher_accepts(matcher, at));
        at = mdl_matcher_byte(matcher, at, 'a');
        assert_int_not_equal(at, MDL_STATE_FULL);
    }
    assert_true(mdl_matcher_accepts(matcher, at));
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
    sl_buf_fini(&request);
}

static void check_finite(const char *text, size_t size, const void *context)
{
    sl_json_doc *doc = NULL;
    double number;
    sl_err err;
    assert_ok(sl_json_parse(text, size, NULL, &doc, &err), &err);
    if (!sl_json_double(sl_json_root(doc), &number))
        fail_msg("more than a double holds: %.*s", (int)size, text);
    sl_json_doc_destroy(doc);
}

/* Many readers refuse what they cannot hold, so the longest exponents must be small ones. */
TEST(numbers_fit_into_a_double)
{
    walk_many("{\"guided_json\":{\"type\":\"number\"}}", 400, 0, check_finite, NULL);
}

/* As many properties as may be, and each may be left out: all may stand first. */
static void puts_optional(sl_buf *schema, const char *prefix)
{
    sl_buf_puts(schema, "{\"additionalProperties\":{\"type\":\"null\"},\"properties\":{");
    for (int i = 0; i < 1024; i++)
        sl_buf_printf(schema, "%s\"%s%d\":{\"type\":\"null\"}", i ? "," : "", prefix, i);
    sl_buf_puts(schema, "}}");
}

TEST(many_optional_properties)
{
    /* The last: names that differ late, so that all stay open for as long as a token is. */
    static const char *const PREFIXES[] = {"p", "----------------------------------------"};
    sl_buf schema;
    for (size_t i = 0; i < 2; i++) {
        sl_buf_init(&schema, 0);
        puts_optional(&schema, PREFIXES[i]);
        walk_schema(schema.data, 2, 0);
        sl_buf_fini(&schema);
    }
}

/* Objects that cannot be told apart at first: all properties of all of them may stand there. */
TEST(many_optional_properties_of_alternatives)
{
    sl_buf schema;
    sl_buf_init(&schema, 0);
    sl_buf_puts(&schema, "{\"type\":\"array\",\"minItems\":1,\"items\":{\"anyOf\":[");
    puts_optional(&schema, "p");
    sl_buf_puts(&schema, ",");
    puts_optional(&schema, "q");
    sl_buf_puts(&schema, ",");
    puts_optional(&schema, "pq");
    sl_buf_puts(&schema, "]}}");
    walk_schema(schema.data, 2, 0);
    sl_buf_fini(&schema);
}

static int run(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_expression_is_matched),
        cmocka_unit_test(many_optional_properties),
        cmocka_unit_test(many_optional_properties_of_alternatives),
        cmocka_unit_test(numbers_fit_into_a_double),
        cmocka_unit_test(refusals_say_what_and_where),
        cmocka_unit_test(size_is_bounded),
        cmocka_unit_test(walks_satisfy_their_schemas),
        cmocka_unit_test(small_tables_change_nothing),
        cmocka_unit_test(answers_share_a_small_matcher),
        cmocka_unit_test(looking_ahead_moves_nothing),
        cmocka_unit_test(drafts_that_break_the_form_have_no_mask),
        cmocka_unit_test(json_object_is_an_object),
        cmocka_unit_test(walks_match_their_expressions),
        cmocka_unit_test(a_choice_is_one_of_them),
        cmocka_unit_test(shorthands_hold_in_every_dialect),
    };
    return cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    return walks_main(argc, argv, run);
}
