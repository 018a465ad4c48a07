/* Lengths beside an expression: two bytes of bounds, then the expression. Counting agrees with the
 * product of both automata wherever that is small enough, and never leads into a dead end. */
#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "model/dfa.h"
#include "model/grammar_parts.h"
#include "model/regex.h"

#define WALKS      8u
#define WALK_BYTES 400u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of the expression; pattern NULL: of any character. NULL: refused. */
static mdl_dfa *dfa_of(const uint8_t *pattern, size_t size)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node node = pattern ? MDL_NODE_NONE : mdl_regex_any(g, MDL_REGEX_JSON);
    mdl_dfa *dfa = NULL;
    sl_err err;
    sl_status status = sl_ok();
    if (pattern)
        status = mdl_regex_compile(g, (const char *)pattern, size, MDL_REGEX_JSON, &node, &err);
    if (sl_is_ok(status))
        status = mdl_grammar_finish(g, node, &err);
    if (sl_is_ok(status))
        status = mdl_dfa_create(g, &dfa, &err);
    mdl_grammar_destroy(g);
    return sl_is_ok(status) ? dfa : NULL;
}

/* product NULL: there is none. */
static void walk(const mdl_dfa *counted, const mdl_dfa *product, uint64_t seed)
{
    uint32_t place = MDL_PLACE_START, state = 1;
    for (uint32_t i = 0; i < WALK_BYTES; i++) {
        bool accepts = mdl_counted_accepts(counted, place);
        uint32_t start = (uint32_t)(sl_keyed_uniform(seed, i, 0) * 256), chosen = 256;
        sl_assert(!product || accepts == product->accepts[state]);
        for (uint32_t k = 0; k < 256; k++) {
            uint8_t byte = (uint8_t)(start + k);
            bool lives = mdl_dfa_go(counted, place, byte) != 0;
            sl_assert(!product || lives == (mdl_dfa_step(product, state, byte) != 0));
            if (lives && chosen == 256)
                chosen = byte;
        }
        sl_assert(accepts || chosen < 256); /* no dead end */
        sl_assert(mdl_counted_goes_on(counted, place) == (chosen < 256));
        if (chosen == 256)
            return;
        place = mdl_dfa_go(counted, place, chosen);
        state = product ? mdl_dfa_step(product, state, chosen) : 0;
    }
}

static void check(const mdl_dfa *texts, const mdl_dfa *one, uint32_t min, uint32_t max)
{
    mdl_dfa *length = NULL, *product = NULL, *counted = NULL;
    sl_err err = {0};
    sl_status expected = mdl_dfa_repeat(one, min, max, &length, &err);
    if (sl_is_ok(expected))
        expected = mdl_dfa_both(texts, length, &product, &err);
    sl_status status = mdl_dfa_count(texts, one, min, max, &counted, &err);
    sl_assert(sl_is_ok(status) == (counted != NULL));
    if (status.code != SL_TOO_LARGE && expected.code != SL_TOO_LARGE)
        sl_assert(status.code == expected.code);
    for (uint64_t seed = 0; counted && seed < WALKS; seed++)
        walk(counted, product, seed);
    mdl_dfa_destroy(length);
    mdl_dfa_destroy(product);
    mdl_dfa_destroy(counted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    mdl_dfa *texts = dfa_of(data + 2, size - 2), *one = dfa_of(NULL, 0);
    if (texts)
        check(texts, one, data[0], data[1] == 255 ? MDL_REPEAT_ANY : data[0] + data[1]);
    mdl_dfa_destroy(texts);
    mdl_dfa_destroy(one);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
