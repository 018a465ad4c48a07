/* Masks beside a judge of its own: PCRE2 says of each token whether the text may go on with it. */
#include "model/masks.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "model/constraint.h"
#include "model/regex.h"
#include "tests/unit/model/support.h"
#include "tests/unit/model/temp_dir.h"

#define WALK_TOKENS 36u
#define TEXT_MAX    16384u
#define ADDED_FROM  8200 /* ids of words that the demo model does not have */

/* ASCII only: so the judge need not know of UTF-8. */
static const char *const PATTERNS[] = {
    "([A-Z][a-z]{1,14} ){3,40}",
    "([a-z]+[ ,.]){10,400}",
    "( ?[a-z]{2,5}){4,60}",
    "([A-Za-z]{3,17}[ .]){2,30}",
    "[a-z]{0,15}( [A-Z]{1,2}[a-z]{0,3})*",
    "(([a-z]{3} ){2,9}[0-9]{1,3};){1,40}",
    "[a-z ]{3,60}",
    "[A-Z][a-z]{17,400}( [a-z]{300,900})?",
    "[ -~]{200,500}",
    "(ab|abc|b[c-e]{2})*(x[!-w]){0,5}(\"[a-z\\\\]*\")?",
};

typedef struct judge {
    pcre2_code *code;
    pcre2_match_data *match;
    char text[TEXT_MAX];
    size_t size;
} judge;

static void judge_init(judge *j, const char *pattern)
{
    char *whole = sl_asprintf("test", "^(?:%s)$", pattern);
    int code;
    PCRE2_SIZE at;
    j->code = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED, PCRE2_DOLLAR_ENDONLY, &code,
                            &at, NULL);
    assert_non_null(j->code);
    (void)pcre2_jit_compile(j->code, PCRE2_JIT_PARTIAL_SOFT); /* only faster */
    j->match = pcre2_match_data_create_from_pattern(j->code, NULL);
    j->size = 0;
    sl_free(whole);
}

static void judge_fini(judge *j)
{
    pcre2_match_data_free(j->match);
    pcre2_code_free(j->code);
}

/* Whether the text with this behind it is one, or begins one. */
static bool may_follow(judge *j, sl_span bytes)
{
    assert_true(j->size + bytes.size <= TEXT_MAX);
    memcpy(j->text + j->size, bytes.data, bytes.size);
    int found = pcre2_match(j->code, (PCRE2_SPTR)j->text, j->size + bytes.size, 0,
                            PCRE2_PARTIAL_SOFT, j->match, NULL);
    return found >= 0 || found == PCRE2_ERROR_PARTIAL;
}

static bool allowed(const uint32_t *mask, uint32_t id)
{
    return mask[id / 32] >> (id % 32) & 1;
}

/* Of the tokens from `first` on. */
static void check_mask(const mdl_tokenizer *tokenizer, int32_t first, judge *j,
                       const uint32_t *mask)
{
    for (int32_t id = first; id < mdl_tokenizer_id_end(tokenizer); id++) {
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, id);
        bool text = bytes.size > 0 && bytes.size <= MDL_REACH_FAR &&
                    !mdl_tokenizer_is_added(tokenizer, id) &&
                    id != mdl_tokenizer_special(tokenizer)->eos;
        if (text && allowed(mask, (uint32_t)id) != may_follow(j, bytes))
            fail_msg("behind \"%.*s\" token \"%.*s\": mask says %d", (int)j->size, j->text,
                     (int)bytes.size, bytes.data, allowed(mask, (uint32_t)id));
        if (bytes.size > MDL_REACH_FAR)
            assert_false(allowed(mask, (uint32_t)id));
    }
}

/* An allowed token, now and then the longest. */
static uint32_t choose(const mdl_tokenizer *tokenizer, const uint32_t *mask, uint32_t seed,
                       uint32_t position)
{
    uint32_t end = (uint32_t)mdl_tokenizer_id_end(tokenizer), best = end;
    uint32_t start = (uint32_t)(sl_keyed_uniform(seed, position, 1) * end);
    bool longest = position % 7 == 6;
    for (uint32_t i = 0; i < end; i++) {
        uint32_t id = (start + i) % end;
        bool longer = best == end || mdl_tokenizer_bytes(tokenizer, (int32_t)id).size >
                                         mdl_tokenizer_bytes(tokenizer, (int32_t)best).size;
        if (allowed(mask, id) && longer && (best == end || longest))
            best = id;
    }
    assert_true(best < end);
    return best;
}

static mdl_grammar *compile(const char *pattern)
{
    mdl_node node = MDL_NODE_NONE;
    sl_err err;
    mdl_grammar *grammar = mdl_grammar_create();
    assert_ok(mdl_regex_compile(grammar, pattern, strlen(pattern), 0, &node, &err), &err);
    assert_ok(mdl_grammar_finish(grammar, node, &err), &err);
    return grammar;
}

static void walk(const mdl_tokenizer *tokenizer, int32_t first, mdl_masks *masks,
                 const char *pattern, uint32_t seed)
{
    static judge j;
    uint32_t ids[WALK_TOKENS], count = 0;
    mdl_grammar *grammar = compile(pattern);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
    mdl_cursor cursor = {.matcher = matcher};
    const uint32_t *mask;
    sl_err err;
    judge_init(&j, pattern);
    while (count < WALK_TOKENS) {
        assert_ok(mdl_cursor_mask(&cursor, masks, ids, count, &mask, &err), &err);
        if ((count + 4 * seed) % 8 == 0)
            check_mask(tokenizer, first, &j, mask);
        ids[count] = choose(tokenizer, mask, seed, count);
        if (ids[count] == (uint32_t)mdl_tokenizer_special(tokenizer)->eos)
            break;
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, (int32_t)ids[count++]);
        memcpy(j.text + j.size, bytes.data, bytes.size);
        j.size += bytes.size;
    }
    judge_fini(&j);
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
}

static void walk_all(const mdl_tokenizer *tokenizer, int32_t first)
{
    mdl_masks *masks =
        mdl_masks_create(tokenizer, (uint32_t)mdl_tokenizer_id_end(tokenizer), 4 << 20);
    for (uint32_t i = 0; i < sizeof(PATTERNS) / sizeof(PATTERNS[0]); i++)
        for (uint32_t seed = 0; seed < 2; seed++)
            walk(tokenizer, first, masks, PATTERNS[i], seed);
    mdl_masks_destroy(masks);
}

TEST(masks_are_what_the_expression_allows)
{
    mdl_tokenizer *tokenizer = NULL;
    sl_err err;
    assert_ok(mdl_tokenizer_load(DEMO_MODEL, &tokenizer, &err), &err);
    walk_all(tokenizer, 0);
    mdl_tokenizer_destroy(tokenizer);
}

/* The demo model's tokenizer with words that are longer than any of its own. */
static void write_tokenizer(const char *path)
{
    static const uint32_t LETTERS[] = {16, 17, 31, 32, 33, 40, 90, 254, 255, 256};
    static const char *const LEADS[] = {"", "\u0120", "A", "\u0120A"}; /* \u0120: a space */
    static const char MARK[] = "\"vocab\": {";
    sl_buf text;
    uint32_t id = ADDED_FROM;
    read_whole(DEMO_MODEL "/tokenizer.json", &text);
    const char *at = strstr(text.data, MARK);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_non_null(at);
    at += strlen(MARK);
    fwrite(text.data, 1, (size_t)(at - text.data), file);
    for (size_t lead = 0; lead < sizeof(LEADS) / sizeof(LEADS[0]); lead++) {
        for (size_t i = 0; i < sizeof(LETTERS) / sizeof(LETTERS[0]); i++) {
            fprintf(file, "\"%s", LEADS[lead]);
            for (uint32_t k = 0; k < LETTERS[i]; k++)
                fputc(k % 5 == 4 ? 'e' : 'q', file);
            fprintf(file, "\": %u,", id++);
        }
    }
    fputs(at, file);
    assert_int_equal(fclose(file), 0);
    sl_buf_fini(&text);
}

TEST(long_tokens_are_told_apart)
{
    mdl_tokenizer *tokenizer = NULL;
    sl_err err;
    write_tokenizer(in_dir("tokenizer.json"));
    assert_ok(mdl_tokenizer_load(in_dir("tokenizer.json"), &tokenizer, &err), &err);
    walk_all(tokenizer, ADDED_FROM);
    mdl_tokenizer_destroy(tokenizer);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(masks_are_what_the_expression_allows),
    cmocka_unit_test_setup_teardown(long_tokens_are_told_apart, set_up, tear_down),
};

TEST_MAIN(tests)
