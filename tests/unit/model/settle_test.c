/* Small parts of a grammar as automata: the same texts, shared, and only where there are few
 * states. */
#include "base/rng.h"
#include "model/dfa.h"
#include "model/grammar_parts.h"
#include "model/matcher.h"
#include "tests/unit/test.h"

#define ALPHABET "ab0"
#define LENGTH   6u

static bool matches(mdl_matcher *matcher, const char *text)
{
    uint32_t state = mdl_matcher_start(matcher);
    for (; *text && state > MDL_STATE_DEAD; text++)
        state = mdl_matcher_byte(matcher, state, (uint8_t)*text);
    assert_int_not_equal(state, MDL_STATE_FULL);
    return state != MDL_STATE_DEAD && mdl_matcher_accepts(matcher, state);
}

/* A random part of at most so many operators. */
static mdl_node part(mdl_grammar *g, uint64_t seed, uint32_t depth)
{
    static const char *const WORDS[] = {"a", "b", "ab", "0", "aa0"};
    uint32_t kind = (uint32_t)(sl_keyed_uniform(seed, depth, 0) * 4);
    uint64_t left = seed * 6364136223846793005u + depth, right = left ^ 0x9e3779b97f4a7c15u;
    mdl_byte_set set = {{0}};
    mdl_byte_set_add(&set, 'a', 'b');
    if (depth == 0)
        return seed % 6 == 5 ? mdl_grammar_set(g, &set) : mdl_grammar_text(g, WORDS[seed % 6]);
    if (kind == 0)
        return mdl_grammar_repeat(g, part(g, left, depth - 1), (uint32_t)(seed % 3),
                                  seed & 8 ? MDL_REPEAT_ANY : 3);
    mdl_node a = part(g, left, depth - 1), b = part(g, right, depth - 1);
    return kind == 1 ? mdl_grammar_then(g, a, b) : mdl_grammar_or(g, a, b);
}

static void check_same(mdl_grammar *plain, mdl_grammar *settled)
{
    mdl_matcher *a = mdl_matcher_create(plain, 0), *b = mdl_matcher_create(settled, 0);
    uint32_t count = 1;
    for (uint32_t i = 0; i < LENGTH; i++)
        count *= sizeof(ALPHABET);
    for (uint32_t number = 0; number < count; number++) {
        char text[LENGTH + 1] = "";
        uint32_t rest = number, size = 0; /* digit 0 ends the text */
        for (; rest % sizeof(ALPHABET) && size < LENGTH; rest /= sizeof(ALPHABET))
            text[size++] = ALPHABET[rest % sizeof(ALPHABET) - 1];
        if (matches(a, text) != matches(b, text))
            fail_msg("\"%s\": %d without automaton", text, matches(a, text));
    }
    assert_true(mdl_matcher_state_count(b) <= mdl_matcher_state_count(a) + 1);
    mdl_matcher_destroy(a);
    mdl_matcher_destroy(b);
}

TEST(texts_stay_the_same)
{
    for (uint64_t seed = 1; seed <= 60; seed++) {
        sl_err err;
        mdl_grammar *plain = mdl_grammar_create(), *settled = mdl_grammar_create();
        mdl_node end = mdl_grammar_text(settled, "b"), node = part(settled, seed, 4);
        node = mdl_grammar_then(settled, mdl_grammar_settle(settled, node), end);
        assert_ok(mdl_grammar_finish(settled, node, &err), &err);
        node = mdl_grammar_then(plain, part(plain, seed, 4), mdl_grammar_text(plain, "b"));
        assert_ok(mdl_grammar_finish(plain, node, &err), &err);
        check_same(plain, settled);
        mdl_grammar_destroy(plain);
        mdl_grammar_destroy(settled);
    }
}

TEST(equal_parts_share_an_automaton)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node one = mdl_grammar_settle(g, mdl_grammar_code_points(g, 0, 0x10ffff));
    mdl_node two = mdl_grammar_settle(g, mdl_grammar_code_points(g, 0, 0x10ffff));
    mdl_node other = mdl_grammar_settle(g, mdl_grammar_code_points(g, 0x80, 0x10ffff));
    assert_int_equal(one, two);
    assert_int_not_equal(one, other);
    assert_int_equal(g->dfa_count, 2);
    /* UTF-8 as its definition has it: one, two, three bytes to come, four leads of their own. */
    assert_int_equal(g->dfas[0]->state_count, 1 + 9);
    mdl_grammar_destroy(g);
}

TEST(what_has_no_small_automaton_stays)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node rule = mdl_grammar_rule(g), text = mdl_grammar_text(g, "ab");
    mdl_node many = mdl_grammar_repeat(g, text, 0, 4000);
    mdl_node symbol = mdl_grammar_symbol(g, MDL_SYMBOL_DSML);
    mdl_node with_rule = mdl_grammar_or(g, text, rule);
    mdl_node with_symbol = mdl_grammar_then(g, symbol, text);
    assert_int_equal(mdl_grammar_settle(g, many), many);
    assert_int_equal(mdl_grammar_settle(g, with_rule), with_rule);
    assert_int_equal(mdl_grammar_settle(g, with_symbol), with_symbol);
    assert_int_equal(mdl_grammar_settle(g, text), text); /* is one cell already */
    assert_int_equal(mdl_grammar_settle(g, MDL_NODE_NONE), MDL_NODE_NONE);
    mdl_node long_one = text;
    for (int i = 0; i < 2000; i++)
        long_one = mdl_grammar_or(g, mdl_grammar_text(g, "ab"), long_one);
    assert_int_equal(mdl_grammar_settle(g, long_one), long_one);
    assert_int_equal(g->dfa_count, 0);
    mdl_grammar_destroy(g);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(texts_stay_the_same),
    cmocka_unit_test(equal_parts_share_an_automaton),
    cmocka_unit_test(what_has_no_small_automaton_stays),
};
TEST_MAIN(TESTS)
