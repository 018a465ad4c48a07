/* Counted automata against the product of the automaton and the length, place by place: the same
 * steps live, the same places accept, and what is near has the same texts within the margin. */
#include "model/dfa.h"
#include "model/grammar_parts.h"
#include "model/regex.h"
#include "tests/unit/test.h"

#define PAIRS_MAX 20000u

static mdl_dfa *dfa_of(const char *pattern)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node node = mdl_regex_any(g, MDL_REGEX_JSON);
    mdl_dfa *dfa = NULL;
    sl_err err;
    if (pattern)
        assert_ok(mdl_regex_compile(g, pattern, strlen(pattern), MDL_REGEX_JSON, &node, &err),
                  &err);
    assert_ok(mdl_grammar_finish(g, node, &err), &err);
    assert_ok(mdl_dfa_create(g, &dfa, &err), &err);
    mdl_grammar_destroy(g);
    return dfa;
}

typedef struct walk {
    const mdl_dfa *counted, *product;
    uint32_t place[PAIRS_MAX], state[PAIRS_MAX], count;
} walk;

/* A pair of a place and a state, met once. */
static void meet(walk *w, uint32_t place, uint32_t state)
{
    for (uint32_t i = 0; i < w->count; i++)
        if (w->state[i] == state && w->place[i] == place)
            return;
    assert_true(w->count < PAIRS_MAX);
    w->place[w->count] = place;
    w->state[w->count++] = state;
}

/* All pairs that some text leads to. */
static void walk_both(walk *w)
{
    w->count = 0;
    meet(w, MDL_PLACE_START, 1);
    for (uint32_t i = 0; i < w->count; i++) {
        bool goes_on = false;
        assert_int_equal(mdl_counted_accepts(w->counted, w->place[i]),
                         w->product->accepts[w->state[i]]);
        for (unsigned byte = 0; byte < 256; byte++) {
            uint32_t place = mdl_dfa_go(w->counted, w->place[i], byte);
            uint32_t state = mdl_dfa_step(w->product, w->state[i], byte);
            assert_int_equal(place != 0, state != 0);
            goes_on |= place != 0;
            if (place != 0)
                meet(w, place, state);
        }
        assert_int_equal(mdl_counted_goes_on(w->counted, w->place[i]), goes_on);
    }
}

/* Random texts of at most `margin` bytes go the same way from both. */
static void check_near(const mdl_dfa *dfa, uint32_t place, uint32_t margin, uint64_t *dice)
{
    uint32_t near = mdl_counted_near(dfa, place, margin);
    assert_int_equal(mdl_counted_near(dfa, near, margin), near);
    for (int turn = 0; turn < 4 && near != place; turn++) {
        uint32_t a = place, b = near;
        for (uint32_t i = 0; i <= margin && a != 0; i++) {
            assert_int_equal(mdl_counted_accepts(dfa, a), mdl_counted_accepts(dfa, b));
            if (i == margin)
                break;
            uint8_t live[256];
            uint32_t lives = 0;
            for (unsigned byte = 0; byte < 256; byte++) {
                assert_int_equal(mdl_dfa_go(dfa, a, byte) != 0, mdl_dfa_go(dfa, b, byte) != 0);
                if (mdl_dfa_go(dfa, a, byte) != 0)
                    live[lives++] = (uint8_t)byte;
            }
            if (lives == 0)
                break;
            *dice = *dice * 6364136223846793005ull + 1442695040888963407ull;
            uint8_t byte = live[(*dice >> 33) % lives];
            a = mdl_dfa_go(dfa, a, byte);
            b = mdl_dfa_go(dfa, b, byte);
        }
    }
}

/* Returns how many places are near others. */
static uint32_t check(const char *pattern, uint32_t min, uint32_t max)
{
    static walk w;
    sl_err err, product_err;
    mdl_dfa *texts = dfa_of(pattern), *one = dfa_of(NULL), *length = NULL, *product = NULL,
            *counted = NULL;
    uint64_t dice = min * 1000 + max;
    uint32_t near = 0;
    assert_ok(mdl_dfa_repeat(one, min, max, &length, &err), &err);
    sl_status expected = mdl_dfa_both(texts, length, &product, &product_err);
    sl_status status = mdl_dfa_count(texts, one, min, max, &counted, &err);
    assert_int_equal(status.code, expected.code);
    if (sl_is_ok(status)) {
        w.counted = counted;
        w.product = product;
        walk_both(&w);
        assert_true(product->shortest >= counted->shortest);
        assert_int_equal(product->shortest == 0, counted->shortest == 0);
        for (uint32_t i = 0; i < w.count; i++) {
            near += mdl_counted_near(counted, w.place[i], 5) != w.place[i];
            check_near(counted, w.place[i], 5, &dice);
        }
    }
    mdl_dfa_destroy(texts);
    mdl_dfa_destroy(one);
    mdl_dfa_destroy(length);
    mdl_dfa_destroy(product);
    mdl_dfa_destroy(counted);
    return near;
}

TEST(counting_equals_the_product)
{
    static const char *const PATTERNS[] = {
        "a*",
        "(ab)*",
        "(abc|de)+",
        "(a{3}|b{5})*",
        "(aa|bbb)c?(aa|bbb)*",
        "a{2,4}|b{7}",
        "(ab|cde)?(x|\u00fcyz){0,2}",
        "[^a]*a.{3}",
        ".*",
        "\u00fc(\\n|\"|x)*",
        "((a|b){6})*c{0,3}",
        "(a(b(c{4})*){3})*",
        "(a{3})*|(b{4})*|[c-e]*f{1,2}",
    };
    static const uint32_t BOUNDS[][2] = {{0, 0},
                                         {0, 1},
                                         {1, 1},
                                         {0, 7},
                                         {3, 9},
                                         {7, 7},
                                         {10, 12},
                                         {13, 13},
                                         {25, 40},
                                         {0, 31},
                                         {1, MDL_REPEAT_ANY},
                                         {6, MDL_REPEAT_ANY},
                                         {30, MDL_REPEAT_ANY}};
    uint32_t near = 0;
    for (size_t i = 0; i < sizeof(PATTERNS) / sizeof(PATTERNS[0]); i++)
        for (size_t k = 0; k < sizeof(BOUNDS) / sizeof(BOUNDS[0]); k++)
            near += check(PATTERNS[i], BOUNDS[k][0], BOUNDS[k][1]);
    assert_true(near > 100);
}

TEST(long_lengths_take_little)
{
    sl_err err;
    mdl_dfa *texts = dfa_of("(a|bc)*d"), *one = dfa_of(NULL), *counted = NULL;
    assert_ok(mdl_dfa_count(texts, one, 5, 100000, &counted, &err), &err);
    assert_true(counted->state_count < 40 && counted->counter->left_count < 40);
    assert_true(mdl_dfa_accepts(counted, "aaaad", 5));
    assert_false(mdl_dfa_accepts(counted, "aaad", 4));
    mdl_dfa_destroy(counted);
    mdl_dfa_destroy(texts);
    mdl_dfa_destroy(one);
}

static uint32_t most_behind(const mdl_dfa *counted, const char *text)
{
    uint32_t place = MDL_PLACE_START;
    for (; *text; text++)
        place = mdl_dfa_step(counted, place, (uint8_t)*text);
    return counted->counter->most[place];
}

/* Sets may go in a circle of some 10,000: what cannot go on for long is known without a look at
 * each. */
TEST(long_circles_are_not_walked_for_what_ends)
{
    sl_err err;
    mdl_dfa *texts = dfa_of("(a{3})*|(b{4})*|(c{5})*|(d{7})*|(e{11})*|[k-z]*f{1,2}"),
            *one = dfa_of(NULL), *counted = NULL;
    assert_ok(mdl_dfa_count(texts, one, 100000, 110000, &counted, &err), &err);
    assert_int_equal(counted->counter->period, 3 * 4 * 5 * 7 * 11);
    assert_int_equal(most_behind(counted, "kf"), 1);
    assert_int_equal(most_behind(counted, "kff"), 0);
    assert_int_equal(most_behind(counted, "e"), UINT32_MAX);
    mdl_dfa_destroy(counted);
    mdl_dfa_destroy(texts);
    mdl_dfa_destroy(one);
}

TEST(what_is_refused)
{
    sl_err err;
    mdl_dfa *odd = dfa_of("(aa)*a"), *wide = dfa_of("(a|b)*a(a|b){6}"), *one = dfa_of(NULL),
            *out = NULL;
    assert_code(mdl_dfa_count(odd, one, 3, 2, &out, &err), SL_INVALID);
    assert_code(mdl_dfa_count(odd, one, 4, 4, &out, &err), SL_INVALID);
    assert_text_contains(err.text, "no text satisfies it");
    assert_code(mdl_dfa_count(wide, one, 1, 1u << 31, &out, &err), SL_TOO_LARGE);
    assert_null(out);
    mdl_dfa_destroy(odd);
    mdl_dfa_destroy(wide);
    mdl_dfa_destroy(one);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(counting_equals_the_product),
    cmocka_unit_test(long_lengths_take_little),
    cmocka_unit_test(long_circles_are_not_walked_for_what_ends),
    cmocka_unit_test(what_is_refused),
};
TEST_MAIN(TESTS)
