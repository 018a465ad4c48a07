/* Grammars: which texts a constrained answer may be, as a graph of nodes over bytes.
 *
 * A grammar is built node by node, bottom up (rules may be named before they are defined), then
 * finished: checked and analysed. Afterwards it is immutable. model/matcher.h runs it. Every node
 * stands for at least one text, which is why a matcher can never be led into a dead end. Beside the
 * 256 bytes there are symbols: tokens that are more than their text. Building over a bound is
 * remembered and refused by finish. Thread: owner while building, any afterwards. */
#ifndef MODEL_GRAMMAR_H
#define MODEL_GRAMMAR_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_GRAMMAR_NODES_MAX      (1u << 16)
#define MDL_GRAMMAR_RULES_MAX      2048u
#define MDL_GRAMMAR_SETS_MAX       4096u
#define MDL_GRAMMAR_DFA_STATES_MAX (1u << 15) /* all automata together */
#define MDL_GRAMMAR_WORK_MAX       (1u << 19) /* closures of making automata: about 0.3 s */
#define MDL_GRAMMAR_TEXT_MAX       (1u << 20)
#define MDL_GRAMMAR_REPEAT_MAX     (1u << 20)
#define MDL_GRAMMAR_NEST_MAX       64u /* rules inside one another */
#define MDL_REPEAT_ANY             UINT32_MAX

typedef struct mdl_grammar mdl_grammar;
typedef struct mdl_dfa mdl_dfa;
typedef uint32_t mdl_node;

#define MDL_NODE_EMPTY 0u         /* the empty text */
#define MDL_NODE_NONE  UINT32_MAX /* no text at all: for builders, never part of a grammar */

/* Tokens that count as such: their text written by other tokens is something else. */
typedef enum mdl_symbol {
    MDL_SYMBOL_END_THINK,
    MDL_SYMBOL_DSML,
    MDL_SYMBOL_COUNT,
} mdl_symbol;

typedef struct mdl_byte_set {
    uint64_t bits[4];
} mdl_byte_set;

static inline void mdl_byte_set_add(mdl_byte_set *set, unsigned first, unsigned last)
{
    for (unsigned byte = first; byte <= last; byte++)
        set->bits[byte / 64] |= 1ull << (byte % 64);
}
static inline bool mdl_byte_set_has(const mdl_byte_set *set, unsigned byte)
{
    return set->bits[byte / 64] >> (byte % 64) & 1;
}

mdl_grammar *mdl_grammar_create(void);
void mdl_grammar_destroy(mdl_grammar *grammar);

/* One byte of a set that is not empty. */
mdl_node mdl_grammar_set(mdl_grammar *grammar, const mdl_byte_set *set);
mdl_node mdl_grammar_symbol(mdl_grammar *grammar, mdl_symbol symbol);
mdl_node mdl_grammar_literal(mdl_grammar *grammar, const char *text, size_t size);
mdl_node mdl_grammar_text(mdl_grammar *grammar, const char *text); /* terminated */
/* a then b, a or b. NONE is absorbed: NONE then b is NONE, NONE or b is b. */
mdl_node mdl_grammar_then(mdl_grammar *grammar, mdl_node a, mdl_node b);
mdl_node mdl_grammar_or(mdl_grammar *grammar, mdl_node a, mdl_node b);
mdl_node mdl_grammar_repeat(mdl_grammar *grammar, mdl_node node, uint32_t min, uint32_t max);
mdl_node mdl_grammar_optional(mdl_grammar *grammar, mdl_node node);
/* A name for a node that is defined later, so that grammars can be recursive. */
mdl_node mdl_grammar_rule(mdl_grammar *grammar);
void mdl_grammar_define(mdl_grammar *grammar, mdl_node rule, mdl_node body);
/* One code point of [first, last], as UTF-8; surrogates are left out. NONE when nothing is left. */
mdl_node mdl_grammar_code_points(mdl_grammar *grammar, uint32_t first, uint32_t last);
/* One of the words: prefixes are shared, so that thousands cost little. Sorts the array. */
typedef struct mdl_word {
    const char *data;
    size_t size;
} mdl_word;
mdl_node mdl_grammar_words(mdl_grammar *grammar, mdl_word *words, size_t count);
/* Takes the automaton over. */
mdl_node mdl_grammar_dfa(mdl_grammar *grammar, mdl_dfa *take_dfa);

/* Fixes the root. SL_TOO_LARGE: over a bound, named; SL_INVALID: no text matches it. */
SL_MUST_USE sl_status mdl_grammar_finish(mdl_grammar *grammar, mdl_node root, sl_err *err);
/* Nodes so far: what a compiler spends. */
uint32_t mdl_grammar_node_count(const mdl_grammar *grammar);
/* Counts what making an automaton on the way to this grammar has cost. */
void mdl_grammar_count_work(mdl_grammar *grammar, const mdl_dfa *dfa);
/* A bound was passed: finish will say which, so a compiler may stop. */
bool mdl_grammar_is_over(const mdl_grammar *grammar);

#ifdef __cplusplus
}
#endif
#endif
